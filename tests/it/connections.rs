//! What goes over a plugin's connections while it reads them slowly, not at all, or closes them.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use toru_tests::{Daemon, Stage, request_bytes};

/// A plugin that does with its connections as the path of a request says.
const CONTRARY: &str = r#"#!/usr/bin/env python3
import json, os, socket, struct, sys, threading, time
if sys.argv[1:] == ["--metadata"]:
    print(json.dumps({"id": "p", "name": "P", "version": "1", "icon": "p", "route": "/p", "protocol": "1.1"}))
    sys.exit()

LIFELINE = None


class Peer:
    def __init__(self, connection):
        self.connection = connection
        self.lock = threading.Lock()
        self.told = threading.Condition()
        self.answers = []
        self.pause = self.pace = 0
        self.has_left = False
        threading.Thread(target=self.serve, daemon=True).start()

    def write(self, message):
        text = json.dumps(message).encode()
        with self.lock:
            self.connection.sendall(struct.pack(">I", len(text)) + text)

    def ask(self, number, **question):
        self.write({"type": "kv", "request_id": f"k{number}", "payload": question})

    def wait_for_answers(self, count):
        with self.told:
            self.told.wait_for(lambda: len(self.answers) >= count, 50)
            return self.answers

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            time.sleep(self.pause + self.pace)
            self.pause = 0
            piece = self.connection.recv(min(count - len(data), 65536))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    def serve(self):
        try:
            while True:
                self.take(json.loads(self.receive(struct.unpack(">I", self.receive(4))[0])))
        except (EOFError, OSError):
            pass

    def take(self, message):
        global LIFELINE
        kind, payload = message["type"], message["payload"]
        if kind == "lifecycle":
            LIFELINE = self
            if payload["action"] == "init":
                self.write({"type": "lifecycle", "payload": {"action": "ready"}})
            elif payload["action"] == "ping":
                self.write({"type": "lifecycle", "payload": {"action": "pong", "seq": payload["seq"]}})
            elif payload["action"] == "shutdown":
                os._exit(0)
        elif kind == "kv":
            with self.told:
                self.answers.append(payload)
                self.told.notify_all()
        elif kind == "http":
            # Paces it at once, not when the thread has its turn.
            if payload["payload"]["path"] == "/slow":
                self.pace = 0.032
            threading.Thread(target=self.handle, args=[message["request_id"], payload["payload"]], daemon=True).start()

    def handle(self, request_id, request):
        def answer(body):
            answer = {"status": 200, "headers": {}, "body": json.dumps(body)}
            self.write({"type": "http", "request_id": request_id, "payload": answer})

        words = request["path"].split("/")[1:]
        asked_on = LIFELINE if "lifeline" in words else self
        if words[0] == "close-behind":
            answer("bye")
            self.connection.shutdown(socket.SHUT_RDWR)
        elif words[0] == "store":
            self.ask(0, action="set", key="large", value="x" * 500_000)
            answer(self.wait_for_answers(1))
        elif words[0] == "delete-and-leave":
            asked_on.has_left = True
            asked_on.ask(1, action="delete", key="k")
            if asked_on is not self:
                answer("left")
            asked_on.connection.shutdown(socket.SHUT_RDWR)
        elif words[0] == "set-too-much":
            # The supervisor's next connection comes a moment after the last was closed.
            while "lifeline" in words and asked_on.has_left:
                time.sleep(0.01)
                asked_on = LIFELINE
            asked_on.ask(1, action="set", key="k", value="x" * 2000)
            answer(asked_on.wait_for_answers(1)[0])
        elif words[0] == "ask-often":
            asked_on.pause = 3
            for number in range(100):
                asked_on.ask(number, action="get", key="large")
            answers = asked_on.wait_for_answers(100)
            values = sum("value" in answer for answer in answers)
            busy = sum(answer.get("error", {}).get("code") == "busy" for answer in answers)
            answer([len(answers), values, busy])
        elif words[0] == "ask-and-never-read":
            self.pause = 1000
            answer("asked")
            # Until the client has gone, and the core looks at no deadline of its.
            time.sleep(1)
            for number in range(20):
                self.ask(number, action="get", key="large")
        else:
            answer(len(request["body"] or ""))


listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["TORU_PLUGIN_SOCKET"])
listener.listen(64)
while True:
    Peer(listener.accept()[0])
"#;

fn stage() -> Stage {
    Stage::new().script("p", CONTRARY).set("server.workers", 1)
}

fn ask(daemon: &Daemon, path: &str) -> Value {
    let answer = daemon.get(&format!("/api/plugins/p/{path}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn what_a_plugin_has_read_of_a_large_request_makes_room_for_others() {
    let daemon = stage().set("protocol.message_bytes_max", 16 << 20).start();
    daemon.wait_ready("p");
    thread::scope(|scope| {
        // Read at two megabytes a second: a megabyte of it is more than may wait, and it takes longer than others wait for
        // room.
        ask(&daemon, "slow");
        let large = scope.spawn(|| daemon.request("POST", "/api/plugins/p/x", &[], &vec![b'x'; 9_000_000]));
        daemon.wait_status("p", "one in flight", |status| status["in_flight"].as_u64() >= Some(1));
        let small: Vec<_> = (0..4).map(|_| scope.spawn(|| daemon.get("/api/plugins/p/x"))).collect();
        for small in small {
            let answer = small.join().unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        assert_eq!(large.join().unwrap().json(), json!(9_000_000));
    });
}

#[test]
fn an_answer_to_a_question_of_a_lost_connection_is_for_no_other() {
    let daemon = stage().set("kv.quota_bytes", 1000).start();
    for place in ["worker", "lifeline"] {
        daemon.wait_ready("p");
        let database = rusqlite::Connection::open(daemon.root().join("data/toru.db")).unwrap();
        database.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let answer = daemon.get(&format!("/api/plugins/p/delete-and-leave/{place}"));
        assert_eq!(answer.status, if place == "worker" { 502 } else { 200 }, "{answer:?}");
        thread::scope(|scope| {
            let other = scope.spawn(|| ask(&daemon, &format!("set-too-much/{place}")));
            // Both questions are with the store by then; where not, the first answer finds nobody yet.
            thread::sleep(Duration::from_millis(500));
            database.execute_batch("COMMIT").unwrap();
            let answer = other.join().unwrap();
            assert_eq!(answer["error"]["code"], "quota", "{place}: {answer}");
        });
    }
    assert_eq!(daemon.wait_running("p")["restarts"], 0);
}

#[test]
fn a_plugin_that_asks_more_than_it_has_read_is_told_so_on_either_connection() {
    let daemon = stage().start();
    daemon.wait_ready("p");
    ask(&daemon, "store");
    for place in ["worker", "lifeline"] {
        let found = ask(&daemon, &format!("ask-often/{place}"));
        let [answers, values, busy] = [0, 1, 2].map(|position| found[position].as_u64().unwrap());
        assert_eq!((answers, values + busy), (100, 100), "{place}");
        assert!(values > 0, "{place}: {found}");
        assert!(busy > 0, "all were read although nothing was for three seconds: {found}");
    }
    assert!(daemon.events("p").iter().all(|(kind, _)| kind != "protocol_error"));
}

#[test]
fn a_write_has_its_deadline_also_where_no_client_is_left() {
    let daemon = stage().set("http.request_timeout_ms", 500).start();
    daemon.wait_ready("p");
    ask(&daemon, "store");
    ask(&daemon, "ask-and-never-read");
    let told = daemon.wait_event("p", "protocol_error", 1);
    assert_eq!(told["reason"], "did not read its requests for 500 ms");
    assert_eq!(ask(&daemon, "x"), json!(0), "the next goes over another connection");
}

#[test]
fn a_request_goes_over_no_connection_that_has_just_ended() {
    for driver in ["auto", "epoll"] {
        let daemon = stage().driver(driver).start();
        daemon.wait_ready("p");
        let mut client = daemon.client();
        for _ in 0..150 {
            let answer = client.request("GET", "/api/plugins/p/close-behind", &[], b"");
            // One that was sent before the end could be seen is lost with it.
            let was_sent = answer.text().contains("closed the connection before it answered");
            assert!(answer.status == 200 || (answer.status == 502 && was_sent), "{answer:?}");
        }
    }
}

/// How long one client after another takes for fifty requests to `p` while 32 others pipeline requests for `target`. A head
/// that does not come has its deadline meanwhile.
fn beside_a_flood(daemon: &Daemon, target: &str) -> Duration {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..32 {
            let stream = TcpStream::connect(daemon.address()).unwrap();
            let mut reader = stream.try_clone().unwrap();
            scope.spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while matches!(reader.read(&mut buffer), Ok(1..)) {}
            });
            let is_over = &is_over;
            scope.spawn(move || {
                let requests = request_bytes("GET", target, &[], b"").repeat(500);
                while !is_over.load(Relaxed) && (&stream).write_all(&requests).is_ok() {}
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
        thread::sleep(Duration::from_millis(300));
        let served = catch_unwind(AssertUnwindSafe(|| {
            let mut late = daemon.client();
            late.send(b"GET / HTTP/1.1\r\n").unwrap();
            let began = Instant::now();
            for _ in 0..50 {
                assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
            }
            let took = began.elapsed();
            assert_eq!(late.response("GET").unwrap().status, 408);
            took
        }));
        is_over.store(true, Relaxed);
        served.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[test]
fn who_floods_the_core_itself_leaves_plugins_and_deadlines_their_turns() {
    for driver in ["auto", "epoll"] {
        let daemon = Stage::new()
            .faulty("p", &json!({}))
            .faulty("q", &json!({}))
            .driver(driver)
            .set("server.workers", 1)
            .set("http.head_timeout_ms", 1000)
            .start();
        daemon.wait_ready("p");
        daemon.wait_ready("q");
        let of_plugin = beside_a_flood(&daemon, "/api/plugins/q/x");
        for target in ["/healthz", "/api/plugins/unknown/x"] {
            let of_core = beside_a_flood(&daemon, target);
            let allowed = 5 * of_plugin + Duration::from_secs(3);
            assert!(of_core < allowed, "{driver}, {target}: {of_core:?} instead of {of_plugin:?}");
        }
    }
}
