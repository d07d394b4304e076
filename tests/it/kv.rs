//! Values that plugins keep: over the socket, over HTTP, and over every kind of end.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toru_tests::{Daemon, Response, Stage, has_program, output, spawn, wait_for};

use crate::http::assert_problem;

fn daemon() -> Daemon {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    daemon
}

/// What the core replied to a question that the plugin asked over its socket.
fn ask(daemon: &Daemon, id: &str, question: &str) -> Value {
    let answer = daemon.get(&format!("/api/plugins/route/{id}/kv/{question}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// One call over HTTP, as 1.0 plugins make them.
fn call(daemon: &Daemon, id: &str, request: &Value) -> Response {
    daemon.manage("POST", &format!("/api/plugins/{id}/kv"), request.to_string().as_bytes())
}

#[test]
fn a_plugin_sets_gets_lists_and_deletes_over_its_socket() {
    let daemon = daemon();
    assert_eq!(ask(&daemon, "p", "get/colour"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "set/colour/red"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "set/count/1"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "get/colour"), json!({"value": "red"}));
    assert_eq!(ask(&daemon, "p", "set/colour/green"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "get/colour"), json!({"value": "green"}));
    assert_eq!(ask(&daemon, "p", "list/co"), json!({"keys": ["colour", "count"]}));
    assert_eq!(ask(&daemon, "p", "list/col"), json!({"keys": ["colour"]}));
    assert_eq!(ask(&daemon, "p", "delete/colour"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "get/colour"), json!({"value": null}));
    // The other plugin has values of its own.
    assert_eq!(ask(&daemon, "q", "get/count"), json!({"value": null}));
    assert_eq!(ask(&daemon, "q", "list/"), json!({"keys": []}));
}

#[test]
fn the_case_of_an_action_and_the_connection_of_a_question_do_not_matter() {
    let daemon = daemon();
    assert_eq!(ask(&daemon, "p", "Set/k/v"), json!({"value": null}));
    assert_eq!(ask(&daemon, "p", "lifecycle/GET/k"), json!({"value": "v"}));
    let wrong = ask(&daemon, "p", "increment/k");
    assert!(wrong["error"]["code"].is_string(), "{wrong}");
    assert!(wrong["error"]["message"].is_string(), "{wrong}");
    assert_eq!(ask(&daemon, "p", "get/k"), json!({"value": "v"}), "it goes on");
}

#[test]
fn values_come_back_as_they_were() {
    let daemon = daemon();
    for value in [
        "".to_owned(),
        "Grüße 🦀 \u{0} \"quotes\" \\ \n".to_owned(),
        "{\"looks\": [\"like\", \"JSON\"]}".to_owned(),
        "x".repeat(500_000),
    ] {
        let answer = daemon.request("POST", "/api/plugins/route/p/kv/set/key", &[], value.as_bytes());
        // An empty body is null on the wire, and null is no value to set.
        if value.is_empty() {
            assert!(answer.json()["error"].is_object(), "{answer:?}");
            continue;
        }
        assert_eq!(answer.json(), json!({"value": null}));
        assert_eq!(ask(&daemon, "p", "get/key")["value"], *value);
        let over_http = call(&daemon, "p", &json!({"action": "get", "key": "key"}));
        assert_eq!(over_http.json()["value"], *value);
    }
}

#[test]
fn a_1_0_plugin_asks_over_http_with_the_token() {
    let daemon = Stage::new().legacy_rust("old").start();
    daemon.wait_ready("old");
    let set = json!({"action": "set", "key": "k", "value": "v"});
    let without = daemon.request("POST", "/api/plugins/old/kv", &[], set.to_string().as_bytes());
    assert_problem(&without, 401);
    for (request, value) in [
        (json!({"action": "get", "key": "k"}), Value::Null),
        (set, Value::Null),
        (json!({"action": "get", "key": "k"}), json!("v")),
        (json!({"action": "Get", "key": "k"}), json!("v")),
        (json!({"action": "delete", "key": "k"}), Value::Null),
        (json!({"action": "get", "key": "k"}), Value::Null),
    ] {
        let answer = call(&daemon, "old", &request);
        assert_eq!(answer.status, 200, "{request}: {answer:?}");
        assert_eq!(answer.json(), json!({"value": value}), "{request}");
    }
    for bad in [
        json!({"action": "get"}),
        json!({"action": "fly", "key": "k"}),
        json!({"action": "set", "key": "k"}),
        json!([]),
        json!("get"),
    ] {
        let answer = call(&daemon, "old", &bad);
        assert_problem(&answer, 400);
    }
    let answer = daemon.manage("POST", "/api/plugins/old/kv", b"{not JSON");
    assert_problem(&answer, 400);
    assert_problem(&call(&daemon, "nobody", &json!({"action": "get", "key": "k"})), 404);
    assert_eq!(daemon.manage("GET", "/api/plugins/old/kv", b"").status, 405);
}

#[test]
fn values_outlive_the_core_and_the_plugin() {
    let daemon = daemon();
    ask(&daemon, "p", "set/kept/yes");
    assert_problem(&daemon.get("/api/plugins/p/exit/1"), 502);
    daemon.wait_ready("p");
    assert_eq!(ask(&daemon, "p", "get/kept"), json!({"value": "yes"}));
    let daemon = daemon.restart();
    daemon.wait_ready("p");
    assert_eq!(ask(&daemon, "p", "get/kept"), json!({"value": "yes"}));
}

// Row: core SIGKILLed while values are acknowledged
#[test]
fn every_acknowledged_value_is_there_after_a_sigkill() {
    const KILLS: usize = 50;
    let mut daemon = Stage::new().legacy_rust("old").start();
    daemon.wait_running("old");
    let mut acknowledged = 0_u64;
    for kill in 0..KILLS {
        let token = daemon.token();
        let bearer = format!("Bearer {token}");
        let pid = daemon.pid();
        let start = acknowledged;
        // A different moment each time: the kill comes from a thread that counts nothing but
        // its own turns, the seed of which is the number of the kill.
        let killer = thread::spawn(move || {
            thread::sleep(std::time::Duration::from_micros(500 * (kill as u64 * 7 % 50)));
            kill_process(pid, Signal::KILL).unwrap();
        });
        let mut client = daemon.client();
        loop {
            let next = acknowledged + 1;
            let request = json!({"action": "set", "key": "n", "value": next.to_string()});
            let answer = client.try_request(
                "POST",
                "/api/plugins/old/kv",
                &[("authorization", &bearer), ("content-type", "application/json")],
                request.to_string().as_bytes(),
            );
            match answer {
                // Each worker learns of the plugin by a message of its own.
                Ok(answer) if answer.status == 404 => {}
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{answer:?}");
                    acknowledged = next;
                }
                Err(_) => break,
            }
        }
        killer.join().unwrap();
        daemon.wait();
        daemon = daemon.start_again();
        // Known only once it has described itself.
        let value = wait_for("the plugin to be known", || {
            let answer = call(&daemon, "old", &json!({"action": "get", "key": "n"}));
            (answer.status == 200).then(|| answer.json())
        });
        let stored: u64 = value["value"].as_str().map_or(0, |text| text.parse().unwrap());
        // The last one may have been stored without its acknowledgement getting out.
        assert!(
            stored == acknowledged || stored == acknowledged + 1,
            "kill {kill}: {stored} stored, {start} to {acknowledged} acknowledged"
        );
        acknowledged = stored;
    }
    assert!(acknowledged > 0);
    let database = rusqlite::Connection::open(daemon.root().join("data/toru.db")).unwrap();
    let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
}

// Row: database locked
#[test]
fn a_locked_database_delays_values_and_no_request() {
    let daemon = daemon();
    ask(&daemon, "p", "set/k/v");
    let database = rusqlite::Connection::open(daemon.root().join("data/toru.db")).unwrap();
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| call(&daemon, "p", &json!({"action": "set", "key": "k", "value": "w"})));
        // The workers never wait for it.
        for _ in 0..100 {
            assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
        }
        assert!(!waiting.is_finished(), "the write waits for the lock");
        database.execute_batch("COMMIT").unwrap();
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    assert_eq!(ask(&daemon, "p", "get/k"), json!({"value": "w"}));

    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let refused = call(&daemon, "p", &json!({"action": "set", "key": "k", "value": "x"}));
    assert_eq!(refused.status, 503, "{refused:?}");
    database.execute_batch("COMMIT").unwrap();
    wait_for("the database to be usable again", || {
        let answer = call(&daemon, "p", &json!({"action": "set", "key": "k", "value": "y"}));
        (answer.status == 200).then_some(())
    });
}

#[test]
fn a_plugin_hears_of_a_locked_database_too() {
    let daemon = daemon();
    ask(&daemon, "p", "set/k/v");
    let database = rusqlite::Connection::open(daemon.root().join("data/toru.db")).unwrap();
    database.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let refused = ask(&daemon, "p", "set/k/w");
    assert!(refused["error"]["code"].is_string(), "{refused}");
    database.execute_batch("COMMIT").unwrap();
    assert_eq!(ask(&daemon, "p", "get/k"), json!({"value": "v"}));
}

// Row: database corrupt
#[test]
fn a_corrupt_database_is_refused_at_start_and_left_as_it_is() {
    let mut daemon = daemon();
    ask(&daemon, "p", "set/k/v");
    assert_eq!(daemon.terminate().code(), Some(0));
    let path = daemon.root().join("data/toru.db");
    let mut bytes = fs::read(&path).unwrap();
    for byte in &mut bytes[..4_096] {
        *byte = 0x5a;
    }
    fs::write(&path, &bytes).unwrap();
    let printed = daemon.second();
    assert!(!printed.status.success());
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(stderr.contains("toru.db"), "{stderr}");
    assert_eq!(fs::read(&path).unwrap(), bytes, "it is evidence");
}

// Row: disk full
#[test]
fn a_full_disk_refuses_values_keeps_the_old_and_recovers() {
    if !rustix::process::geteuid().is_root() || !has_program("mount") {
        println!("skipped: only root can mount a small file system");
        return;
    }
    let stage = Stage::new().faulty("p", &json!({}));
    let data = stage.root().join("data");
    fs::create_dir(&data).unwrap();
    let mounted =
        output(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m,mode=0700", "tmpfs"]).arg(&data));
    if !mounted.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let _unmount = Unmount(data.clone());
    let daemon = stage.start();
    daemon.wait_ready("p");
    let set =
        |key: &str, value: &str| call(&daemon, "p", &json!({"action": "set", "key": key, "value": value}));
    assert_eq!(set("first", "kept").status, 200);
    let ballast = data.join("ballast");
    // Fills what is left, to the last byte.
    let mut filled = fs::File::create(&ballast).unwrap();
    while std::io::Write::write(&mut filled, &[0; 4_096]).is_ok_and(|count| count > 0) {}
    let large = "x".repeat(100_000);
    let mut keys = 0;
    let refused = wait_for("a refusal", || {
        keys += 1;
        let answer = set(&format!("k{keys}"), &large);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 507, "{refused:?}");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200, "HTTP lives");
    let first = call(&daemon, "p", &json!({"action": "get", "key": "first"}));
    assert_eq!(first.json()["value"], "kept");
    fs::remove_file(&ballast).unwrap();
    drop(filled);
    wait_for("a value to be taken again", || (set("after", "fine").status == 200).then_some(()));
    assert_eq!(daemon.starts("p").len(), 1);
}

// Row: fsync fails
#[test]
fn a_write_that_cannot_be_synced_is_not_acknowledged() {
    if !has_program("strace") {
        println!("skipped: no strace here");
        return;
    }
    let daemon = daemon();
    ask(&daemon, "p", "set/k/before");
    let mut strace = spawn(
        Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null"])
            .args(["-e", "trace=fsync,fdatasync"])
            .args(["-e", "inject=fsync,fdatasync:error=EIO"])
            .args(["-p", &daemon.pid().as_raw_nonzero().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null()),
    );
    let attached = wait_for("strace to attach", || {
        if strace.try_wait().unwrap().is_some() {
            return Some(false);
        }
        every_thread_is_traced(&daemon).then_some(true)
    });
    if !attached {
        println!("skipped: this machine lets nobody trace");
        return;
    }
    let refused = call(&daemon, "p", &json!({"action": "set", "key": "k", "value": "lost"}));
    assert!(refused.status >= 500, "{refused:?}");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200, "HTTP lives");
    kill_process(Pid::from_child(&strace), Signal::INT).unwrap();
    strace.wait().unwrap();
    wait_for("a value to be taken again", || {
        let answer = call(&daemon, "p", &json!({"action": "set", "key": "k", "value": "after"}));
        (answer.status == 200).then_some(())
    });
    assert_eq!(ask(&daemon, "p", "get/k"), json!({"value": "after"}));
}

fn every_thread_is_traced(daemon: &Daemon) -> bool {
    fs::read_dir(format!("/proc/{}/task", daemon.pid().as_raw_nonzero())).unwrap().flatten().all(|task| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        !status.contains("TracerPid:\t0\n")
    })
}

/// Unmounts when the daemon that uses it is gone: declared before, so dropped after.
pub struct Unmount(pub std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let unmounted = output(Command::new("umount").arg("-l").arg(&self.0));
        if !unmounted.status.success() {
            eprintln!("umount {}: {unmounted:?}", self.0.display());
        }
    }
}

/// A plugin that stores a large value, asks for it hundreds of times, and reads none of the answers.
const ASKS_AND_NEVER_READS: &str = r#"#!/usr/bin/env python3
import json, os, socket, struct, sys, threading
if sys.argv[1:] == ["--metadata"]:
    print(json.dumps({"id": "greedy", "name": "Greedy", "version": "1", "icon": "g", "route": "/greedy", "protocol": "1.1"}))
    sys.exit()

def write(peer, message):
    text = json.dumps(message).encode()
    peer.sendall(struct.pack(">I", len(text)) + text)

def read(stream):
    head = stream.read(4)
    if len(head) < 4:
        return None
    return json.loads(stream.read(struct.unpack(">I", head)[0]))

def kv(number, **question):
    return {"type": "kv", "request_id": f"k{number}", "payload": question}

def serve(peer):
    stream = peer.makefile("rb")
    while message := read(stream):
        kind, payload = message["type"], message["payload"]
        if kind == "lifecycle" and payload["action"] == "init":
            write(peer, {"type": "lifecycle", "payload": {"action": "ready"}})
        elif kind == "lifecycle" and payload["action"] == "ping":
            write(peer, {"type": "lifecycle", "payload": {"action": "pong", "seq": payload["seq"]}})
        elif kind == "lifecycle" and payload["action"] == "shutdown":
            os._exit(0)
        elif kind == "http":
            write(peer, kv(0, action="set", key="large", value="x" * 900_000))
            read(stream)
            for number in range(1, 400):
                write(peer, kv(number, action="get", key="large"))
            threading.Event().wait()

listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["TORU_PLUGIN_SOCKET"])
listener.listen()
while True:
    threading.Thread(target=serve, args=listener.accept()[:1], daemon=True).start()
"#;

#[test]
fn answers_that_nobody_reads_do_not_fill_the_core() {
    let daemon =
        Stage::new().script("greedy", ASKS_AND_NEVER_READS).set("http.request_timeout_ms", 3000).start();
    daemon.wait_running("greedy");
    let before = daemon.memory_kib("VmRSS");
    let answer = daemon.get("/api/plugins/greedy/ask");
    assert!([502, 504].contains(&answer.status), "{answer:?}");
    // All 400 answers would be 360 MB.
    let peak = daemon.memory_kib("VmHWM").saturating_sub(before);
    assert!(peak < 150 * 1024, "{peak} KiB more than before");
    assert_eq!(daemon.get("/healthz").status, 200);
}
