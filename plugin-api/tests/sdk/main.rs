//! The SDK from outside: a plugin's process, and a core that is a Unix socket in this file.
#![cfg(feature = "sdk")]

mod probe;

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use toru_plugin_api::ToruPlugin as _;
use toru_plugin_api::frame::{Decoder, Framing, begin_frame, end_frame};

/// Nothing here takes long; this only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(20);

/// The plugin's process is this test binary again, told to run this test only.
#[test]
fn probe_process() {
    probe::run_if_asked();
    probe::Probe::new().metadata().check().expect("valid metadata");
}

struct Probe {
    child: Option<Child>,
    dir: TempDir,
}

impl Probe {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), 2)
    }

    fn start_in(dir: TempDir, threads: usize) -> Self {
        let child = probe_command(&dir.path().join("p.sock"))
            .env("PROBE_THREADS", threads.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the probe runs");
        Self { child: Some(child), dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("p.sock")
    }

    fn connect(&self, framing: Framing) -> Core {
        let began = Instant::now();
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return Core::new(stream, framing),
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    /// The exit, and what was said on stderr until then.
    fn wait(mut self) -> Output {
        let child = self.child.take().expect("not waited for yet");
        child.wait_with_output().expect("the probe can be waited for")
    }

    /// The most memory that it has had, in KiB.
    fn peak_kib(&self) -> u64 {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of proc(5)");
        peak.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([name, &pid]).status().expect("kill exists");
        assert!(status.success());
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn probe_command(socket: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this test has a path"));
    command
        .args(["--exact", "probe_process", "--nocapture"])
        .env("PROBE_THREADS", "2")
        .env("TORU_PLUGIN_SOCKET", socket)
        .env("RUST_BACKTRACE", "0")
        .env_remove("TORU_PLUGIN_ID")
        .env_remove("TORU_INSTANCE_ID")
        .stdin(Stdio::null());
    // All of this file also holds for a plugin that reads through io_uring.
    if std::env::var_os("TORU_TEST_SDK_IO_URING").is_some() {
        command.env("PROBE_IO_URING", "1");
    }
    command
}

/// A connection as the core has it.
struct Core {
    stream: UnixStream,
    framing: Framing,
    decoder: Decoder,
}

impl Core {
    fn new(stream: UnixStream, framing: Framing) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream, framing, decoder: Decoder::new(framing, 16 << 20) }
    }

    fn frame(&self, message: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        let mark = begin_frame(&mut out, self.framing);
        out.extend_from_slice(message.to_string().as_bytes());
        end_frame(&mut out, mark, usize::MAX).expect("fits");
        out
    }

    fn send(&mut self, message: &Value) {
        let frame = self.frame(message);
        self.stream.write_all(&frame).expect("the probe reads");
    }

    /// The next message, or `None` once the probe has closed.
    fn receive(&mut self) -> Option<Value> {
        loop {
            if let Some(frame) = self.decoder.next_frame().expect("well framed") {
                return Some(serde_json::from_slice(frame).expect("JSON"));
            }
            let mut piece = [0; 65536];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(count) => self.decoder.feed(&piece[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    fn next(&mut self) -> Value {
        self.receive().expect("the connection is open")
    }

    /// Asks and takes the next message as the answer.
    fn ask(&mut self, message: &Value) -> Value {
        self.send(message);
        self.next()
    }

    fn init(&mut self, config: Value) -> Value {
        self.send(&init(config));
        self.next()
    }

    /// Status and body of a plain request.
    fn get(&mut self, path: &str) -> (u64, String) {
        let answer = self.ask(&http("r", path, None));
        assert_eq!(answer["request_id"], "r");
        response(&answer)
    }

    fn get_json(&mut self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

fn http(request_id: &str, path: &str, body: Option<&str>) -> Value {
    json!({
        "type": "http",
        "timestamp": "2026-01-01T00:00:00.000Z",
        "request_id": request_id,
        "payload": {
            "type": "http",
            "request_id": request_id,
            "payload": {"method": "POST", "path": path, "headers": {}, "body": body},
        },
    })
}

fn init(config: Value) -> Value {
    json!({"type": "lifecycle", "payload": {
        "action": "init", "instance_id": "i-1", "plugin_socket": "s", "log_path": "l",
        "protocol": "1.1", "plugin_id": "probe-2", "max_message_bytes": 1 << 20,
        "data_dir": "/data", "config": config,
    }})
}

fn lifecycle(action: &str) -> Value {
    json!({"type": "lifecycle", "payload": {"action": action}})
}

fn response(answer: &Value) -> (u64, String) {
    let payload = &answer["payload"];
    let status = payload["status"].as_u64().unwrap_or_else(|| panic!("no response: {answer}"));
    (status, payload["body"].as_str().expect("a string").to_owned())
}

#[test]
fn both_framings_whole_and_byte_by_byte() {
    let probe = Probe::start();
    for framing in [Framing::Length, Framing::Lines] {
        let mut core = probe.connect(framing);
        assert_eq!(core.init(json!({}))["payload"]["action"], "ready");
        assert_eq!(core.get("/"), (200, r#"{"ok":true}"#.to_owned()));
        let frame = core.frame(&http("ü\n1", "/echo?a=1&b", Some("grüß\n")));
        for byte in frame {
            core.stream.write_all(&[byte]).expect("the probe reads");
        }
        let answer = core.next();
        assert_eq!(answer["request_id"], "ü\n1");
        assert_eq!(response(&answer), (200, "grüß\n".to_owned()));
        assert_eq!(answer["payload"]["headers"]["x-query"], "a=1&b");
        assert!(answer["timestamp"].as_str().expect("text").ends_with('Z'));
    }
}

#[test]
fn content_that_is_not_text_goes_both_ways() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let mut request = http("r1", "/echo", Some("AP/+gA=="));
    request["payload"]["payload"]["body_encoding"] = json!("base64");
    let answer = core.ask(&request);
    assert_eq!(answer["payload"]["body"], "AP/+gA==");
    assert_eq!(answer["payload"]["body_encoding"], "base64");
}

#[test]
fn a_thousand_in_flight_are_answered_in_any_order_each_its_own() {
    for threads in [1, 2] {
        let probe = Probe::start_in(tempfile::tempdir().expect("a directory"), threads);
        let mut core = probe.connect(Framing::Length);
        let count = 1000;
        let mut batch = Vec::new();
        for index in 0..count {
            let nonce = format!("nonce-{}", index * 7919);
            let path = format!("/turn/{index}");
            batch.extend(core.frame(&http(&format!("r{index}"), &path, Some(&nonce))));
        }
        batch.extend(core.frame(&http("go", &format!("/start-turns/{}", count - 1), None)));
        core.stream.write_all(&batch).expect("the probe reads");
        let mut order = Vec::new();
        while order.len() < count {
            let answer = core.next();
            if answer["request_id"] == "go" {
                continue;
            }
            let id = answer["request_id"].as_str().expect("text").to_owned();
            let index: usize = id[1..].parse().expect("ours");
            assert_eq!(response(&answer), (200, format!("nonce-{}", index * 7919)));
            order.push(index);
        }
        // They are let go last first, each by the one before it. Whoever has let the next go on and is not answered yet
        // is on one of the SDK's threads or tokio's: no more answers than there are of those can be late at a time.
        for (place, index) in order.iter().enumerate() {
            let expected = count - 1 - place;
            assert!(index + 2 * threads >= expected, "{index} instead of {expected}: {order:?}");
        }
        order.sort_unstable();
        assert_eq!(order, (0..count).collect::<Vec<_>>());
    }
}

#[test]
fn requests_behind_a_slow_handler_are_answered_too() {
    let probe = Probe::start_in(tempfile::tempdir().expect("a directory"), 2);
    let mut core = probe.connect(Framing::Length);
    let mut batch = Vec::new();
    for index in 0..40 {
        let path = if index % 8 == 0 { "/slow" } else { "/echo" };
        let id = format!("r{index}");
        batch.extend(core.frame(&http(&id, path, Some(&id))));
    }
    core.stream.write_all(&batch).expect("the probe reads");
    let mut answers = HashMap::new();
    while answers.len() < 40 {
        let answer = core.next();
        let id = answer["request_id"].as_str().expect("text").to_owned();
        assert_eq!(response(&answer), (200, id.clone()));
        assert!(answers.insert(id, ()).is_none(), "answered twice");
    }
}

#[test]
fn a_handler_that_blocks_its_thread_holds_up_no_other_connection() {
    for threads in [2, 3] {
        let probe = Probe::start_in(tempfile::tempdir().expect("a directory"), threads);
        let mut others = [probe.connect(Framing::Length), probe.connect(Framing::Lines)];
        // The lead goes from one thread to the next and back.
        for round in 0..8 {
            let path = if round % 2 == 0 { "/block" } else { "/block-later" };
            let mut blocked: Vec<Core> = (1..threads).map(|_| probe.connect(Framing::Length)).collect();
            for (number, core) in blocked.iter_mut().enumerate() {
                core.send(&http("b", path, None));
                let began = Instant::now();
                while response(&others[0].ask(&http("n", "/blocked", None))).1 != (number + 1).to_string() {
                    assert!(began.elapsed() < PATIENCE, "it does not begin");
                }
                for core in &mut others {
                    let mut ping = lifecycle("ping");
                    ping["payload"]["seq"] = json!(round);
                    assert_eq!(core.ask(&ping)["payload"]["seq"], round);
                    assert_eq!(response(&core.ask(&http("e", "/echo", Some("x")))), (200, "x".to_owned()));
                }
            }
            others[1].ask(&http("u", "/unblock", None));
            for core in &mut blocked {
                assert_eq!(response(&core.next()), (200, "unblocked".to_owned()));
                // And on this connection it goes on as if nothing had been.
                assert_eq!(response(&core.ask(&http("e", "/echo", Some("y")))), (200, "y".to_owned()));
            }
        }
    }
}

#[test]
fn what_a_blocked_turn_leaves_to_be_done_is_done_after_it() {
    let probe = Probe::start();
    let mut other = probe.connect(Framing::Length);
    for _ in 0..4 {
        let mut core = probe.connect(Framing::Length);
        // The first holds up its thread in a turn that nothing but the turn before has asked for, and another thread then
        // waits for all connections. The second wants one more turn after that, and nothing else asks for it.
        let batch = ["/yield/2/block", "/yield/4"].map(|path| core.frame(&http(path, path, None))).concat();
        core.stream.write_all(&batch).expect("the probe reads");
        let began = Instant::now();
        while response(&other.ask(&http("n", "/blocked", None))).1 != "1" {
            assert!(began.elapsed() < PATIENCE, "it does not begin");
        }
        other.ask(&http("u", "/unblock", None));
        assert_eq!(response(&core.next()), (200, "unblocked".to_owned()));
        assert_eq!(response(&core.next()), (200, "yielded".to_owned()));
    }
}

#[test]
fn answers_wait_for_a_core_that_reads_late() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let mut ids: Vec<String> = (0..40).map(|index| format!("r{index}")).collect();
    for id in &ids {
        core.send(&http(id, "/bytes/200000", None));
    }
    // By now the socket is full; another connection finds nobody waiting for it.
    assert_eq!(response(&probe.connect(Framing::Length).ask(&http("o", "/echo", Some("x")))).0, 200);
    while !ids.is_empty() {
        let answer = core.next();
        assert_eq!(response(&answer).1.len(), 200_000);
        ids.retain(|id| answer["request_id"] != **id);
    }
    assert_eq!(response(&core.ask(&http("e", "/echo", Some("y")))), (200, "y".to_owned()));
}

#[test]
fn pings_are_answered_with_their_number() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let ping = json!({"type": "lifecycle", "payload": {"action": "ping", "seq": 9_007_199_254_740_991_u64}});
    let pong = core.ask(&ping);
    assert_eq!(pong["payload"]["action"], "pong");
    assert_eq!(pong["payload"]["seq"], 9_007_199_254_740_991_u64);
    // A later version's messages are passed over.
    core.send(&json!({"type": "telepathy", "payload": [1]}));
    core.send(&lifecycle("hibernate"));
    assert_eq!(core.ask(&lifecycle("ping"))["payload"]["action"], "pong");
}

#[test]
fn cancel_drops_the_handler() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.send(&http("r1", "/hold", None));
    core.send(&json!({"type": "cancel", "request_id": "r1", "payload": {}}));
    core.send(&json!({"type": "cancel", "request_id": "never-seen", "payload": {}}));
    assert_eq!(core.get("/dropped/1").0, 204);
}

#[test]
fn a_lost_connection_drops_its_handlers() {
    let probe = Probe::start();
    let mut other = probe.connect(Framing::Length);
    let mut core = probe.connect(Framing::Length);
    core.send(&http("r1", "/hold", None));
    core.stream.write_all(b"\0\0\0\0").expect("the probe reads");
    assert_eq!(core.receive(), None);
    assert_eq!(other.get("/dropped/1").0, 204);
}

#[test]
fn a_broken_frame_closes_its_connection_and_no_other() {
    let probe = Probe::start();
    let mut other = probe.connect(Framing::Lines);
    assert_eq!(other.get("/").0, 200);
    for broken in [
        &b"\0\0\0\0"[..],
        b"\0\x10\0\x01",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x02[]",
        b"\0\0\0\x04nope",
        b"\0\0\0\x05{\"\xff\"}",
        b"{\"type\":\"http\"}\n",
        b"{}\n\n",
    ] {
        let mut core = probe.connect(Framing::Length);
        core.stream.write_all(broken).expect("the probe reads");
        assert_eq!(core.receive(), None, "{broken:?}");
    }
    assert_eq!(other.get("/").0, 200);
    drop(other);
    probe.signal("-TERM");
    let output = probe.wait();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("frame of 1048577 bytes, the limit is 1048576"), "{said}");
}

#[test]
fn a_handlers_mistakes_are_a_500_and_a_log_line() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    for (path, complaint) in [
        ("/panic", "panicked: before any await"),
        ("/panic-later", "panicked: after an await"),
        ("/fail", "the secret cause"),
        ("/bytes/1048577", "made too large a response"),
        ("/bytes/1048500", "made too large a response"),
        ("/bad-header", "CR, LF, NUL"),
        ("/bad-status", "status is not from 200 to 599"),
    ] {
        let (answer, log) = {
            core.send(&http("r", path, None));
            let (first, second) = (core.next(), core.next());
            if first["type"] == "log" { (second, first) } else { (first, second) }
        };
        let (status, body) = response(&answer);
        assert_eq!(status, 500, "{path}");
        assert_eq!(answer["payload"]["headers"]["content-type"], "application/problem+json");
        assert!(!body.contains("secret"), "{body}");
        let message = log["payload"]["message"].as_str().expect("a log line");
        assert!(message.contains(complaint), "{path}: {message}");
        assert_eq!(log["payload"]["level"], "error");
        assert_eq!(log["payload"]["fields"]["request_id"], "r");
    }
    let (status, body) = core.get("/refuse");
    assert_eq!(status, 403);
    assert!(body.contains("not for you"), "{body}");
    assert!(body.contains(r#""request_id":"r""#), "{body}");
    assert_eq!(core.get("/").0, 200);
}

#[test]
fn problems_name_the_request_as_the_client_knows_it() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    for path in ["/refuse", "/panic", "/panic-later", "/fail", "/bytes/1048577", "/bad-status"] {
        let mut request = http("1-2-3", path, None);
        request["payload"]["payload"]["headers"] =
            json!({"accept": "*/*", "X-Request-Id": "known \"outside\""});
        core.send(&request);
        let mut answer = core.next();
        if answer["type"] == "log" {
            assert_eq!(answer["payload"]["fields"]["request_id"], "known \"outside\"", "{path}");
            answer = core.next();
        } else if path != "/refuse" {
            assert_eq!(core.next()["payload"]["fields"]["request_id"], "known \"outside\"", "{path}");
        }
        assert_eq!(answer["request_id"], "1-2-3");
        let problem: Value = serde_json::from_str(&response(&answer).1).expect("JSON");
        assert_eq!(problem["request_id"], "known \"outside\"", "{path}");
    }
}

#[test]
fn two_cookies_stay_two() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let answer = core.ask(&http("r", "/cookies", None));
    assert_eq!(answer["payload"]["headers"], json!({"set-cookie": ["a=1", "b=2"]}));
}

#[test]
fn init_runs_once_and_is_answered_each_time() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    assert_eq!(core.init(json!({"a": [1]}))["payload"]["action"], "ready");
    assert_eq!(core.init(json!({"a": [1]}))["payload"]["action"], "ready");
    let mut other = probe.connect(Framing::Length);
    assert_eq!(
        other.get_json("/context"),
        json!({
            "plugin_id": "probe-2", "instance_id": "i-1", "data_dir": "/data",
            "config": {"a": [1]}, "initialized": true, "inits": 1,
        })
    );
}

#[test]
fn a_failed_init_says_why() {
    for (how, why) in [("fail", "no licence"), ("panic", "panicked: as configured")] {
        let probe = Probe::start();
        let mut core = probe.connect(Framing::Length);
        let answer = core.init(json!({"init": how}));
        assert_eq!(answer["payload"]["action"], "failed");
        assert_eq!(answer["payload"]["error"], why);
        assert_eq!(core.get("/").0, 503);
    }
}

#[test]
fn requests_wait_for_init_and_init_can_use_the_core() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let mut worker = probe.connect(Framing::Length);
    let asked = core.init(json!({"init": "ask"}));
    assert_eq!(asked["payload"]["key"], "at-init");
    // `init` is waiting now. The answer to a ping shows that the request before it was read.
    worker.send(&http("r", "/context", None));
    assert_eq!(worker.ask(&lifecycle("ping"))["payload"]["action"], "pong");
    core.send(&json!({"type": "kv", "request_id": asked["request_id"], "payload": {"value": "7"}}));
    let answer = worker.next();
    assert!(response(&answer).1.contains(r#""initialized":true"#), "{answer}");
    let (log, ready) = (core.next(), core.next());
    assert_eq!(log["payload"]["fields"]["value"], "7");
    assert_eq!(ready["payload"]["action"], "ready");
}

#[test]
fn a_kv_request_does_not_outlive_its_connection() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({"init": "ask"}));
    drop(core);
    let answer = probe.connect(Framing::Length).init(json!({}));
    assert_eq!(answer["payload"]["action"], "failed");
    assert_eq!(answer["payload"]["error"], "the core's storage is out of reach");
}

#[test]
fn kv_goes_to_the_core_on_the_requests_own_connection() {
    let probe = Probe::start();
    probe.connect(Framing::Length).init(json!({}));
    let mut core = probe.connect(Framing::Length);
    for (path, request, reply, expect) in [
        ("get", json!({"action": "get", "key": "k"}), json!({"value": "v"}), json!({"value": "v"})),
        ("get", json!({"action": "get", "key": "k"}), json!({"value": null}), json!({"value": null})),
        (
            "set",
            json!({"action": "set", "key": "k", "value": "v"}),
            json!({"value": null}),
            json!({"value": null}),
        ),
        ("delete", json!({"action": "delete", "key": "k"}), json!({"value": null}), json!({"value": null})),
        (
            "list",
            json!({"action": "list", "prefix": "p/", "limit": 2}),
            json!({"keys": ["p/a", "p/b"]}),
            json!({"value": ["p/a", "p/b"]}),
        ),
        (
            "set",
            json!({"action": "set", "key": "k", "value": "v"}),
            json!({"error": {"code": "disk_full", "message": "no room"}}),
            json!({"code": "disk_full", "text": "the core's storage refused (disk_full): no room"}),
        ),
    ] {
        let mut asked = core.ask(&http("r", &format!("/kv/{path}"), None));
        let id = asked["request_id"].clone();
        assert_eq!(asked["type"], "kv");
        let payload = asked["payload"].as_object_mut().expect("an object");
        assert_eq!(payload.remove("type"), Some(json!("kv")));
        assert_eq!(payload.remove("request_id"), Some(id.clone()));
        assert_eq!(asked["payload"], request);
        // Answers to questions that were never asked change nothing.
        core.send(&json!({"type": "kv", "request_id": "k0", "payload": {"value": "wrong"}}));
        core.send(&json!({"type": "kv", "request_id": "x", "payload": {"value": "wrong"}}));
        let answer = core.ask(&json!({"type": "kv", "request_id": id, "payload": reply}));
        let got: Value = serde_json::from_str(&response(&answer).1).expect("JSON");
        assert_eq!(got, expect);
    }
    assert_eq!(core.get_json("/kv/large")["code"], "too_large");
}

fn kv(request_id: &str, request: Value) -> Value {
    json!({"type": "kv", "timestamp": "t", "request_id": request_id, "payload": request})
}

#[test]
fn a_kv_request_that_arrives_is_the_plugins_to_answer() {
    let probe = Probe::start();
    for framing in [Framing::Length, Framing::Lines] {
        let mut core = probe.connect(framing);
        // One of a 1.0 core, which reads its answer and closes, comes without any `init`.
        core.send(&json!({"type": "kv", "request_id": "k1", "payload": {
            "type": "kv", "request_id": "k1", "action": "Get", "key": "none", "value": null,
        }}));
        core.stream.shutdown(Shutdown::Write).expect("open");
        let answer = core.next();
        assert_eq!(answer["type"], "kv");
        assert_eq!(answer["request_id"], "k1");
        assert_eq!(answer["payload"], json!({"value": null}));
        assert_eq!(core.receive(), None);
    }
    for framing in [Framing::Length, Framing::Lines] {
        let mut core = probe.connect(framing);
        core.init(json!({}));
        for (request, expect) in [
            (json!({"action": "GET", "key": "a\n"}), json!({"value": "a\n=true"})),
            (json!({"payload": {"action": "get", "key": "a"}}), json!({"value": "a=true"})),
            (json!({"action": "Set", "key": "a", "value": "a"}), json!({"value": null})),
            (json!({"action": "delete", "key": "a"}), json!({"value": null})),
            (json!({"action": "list"}), json!({"keys": ["None"]})),
            (json!({"action": "list", "prefix": "p", "limit": 2}), json!({"keys": ["pSome(2)"]})),
            (
                json!({"action": "set", "key": "a", "value": "b"}),
                json!({"error": {"code": "invalid", "message": "differ"}}),
            ),
            (
                json!({"action": "set", "key": "a"}),
                json!({"error": {"code": "invalid", "message": "value must be a string"}}),
            ),
            (
                json!({"action": "add", "key": "a"}),
                json!({"error": {"code": "invalid", "message": "action must be get, set, delete or list"}}),
            ),
            (
                json!({"action": "get", "key": "refuse"}),
                json!({"error": {"code": "refused", "message": "not for you"}}),
            ),
            (
                json!({"action": "get", "key": "large"}),
                json!({"error": {"code": "too_large", "message": "the answer does not fit into a message"}}),
            ),
        ] {
            let answer = core.ask(&kv("ü", request.clone()));
            assert_eq!(answer["type"], "kv");
            assert_eq!(answer["request_id"], "ü");
            assert_eq!(answer["payload"], expect, "{request}");
        }
        for (key, complaint) in [("fail", "the secret cause"), ("panic", "panicked: in the kv handler")] {
            core.send(&kv("k", json!({"action": "get", "key": key})));
            let (first, second) = (core.next(), core.next());
            let (answer, log) = if first["type"] == "log" { (second, first) } else { (first, second) };
            let error = json!({"code": "failed", "message": "the plugin failed to handle the request"});
            assert_eq!(answer["payload"]["error"], error);
            assert!(log["payload"]["message"].as_str().expect("text").contains(complaint), "{log}");
        }
        assert_eq!(core.get("/").0, 200);
    }
}

#[test]
fn kv_in_both_directions_is_kept_apart() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    // Its answer takes a question of the plugin's own, under whatever id the plugin likes.
    core.send(&kv("k1", json!({"action": "get", "key": "core"})));
    core.send(&http("k1", "/hold", None));
    let asked = core.next();
    assert_eq!(asked["payload"]["key"], "from-kv");
    core.send(&kv(asked["request_id"].as_str().expect("text"), json!({"value": "7"})));
    let answer = core.next();
    assert_eq!((&answer["type"], &answer["request_id"]), (&json!("kv"), &json!("k1")));
    assert_eq!(answer["payload"], json!({"value": "7"}));
    // `cancel` is for requests of http, and one that waits for ever ends with its connection.
    core.send(&kv("k2", json!({"action": "get", "key": "hold"})));
    core.send(&json!({"type": "cancel", "request_id": "k1", "payload": {}}));
    assert_eq!(core.get("/dropped/1").0, 204);
    drop(core);
    let began = Instant::now();
    probe.connect(Framing::Length).send(&json!({"type": "lifecycle", "payload": {
        "action": "shutdown", "deadline_ms": 60_000,
    }}));
    assert_eq!(probe.wait().status.code(), Some(0));
    assert!(began.elapsed() < PATIENCE, "it waited for the handler");
}

#[test]
fn a_plugin_without_a_kv_handler_says_so_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let child = probe_command(&dir.path().join("p.sock"))
        .env("PROBE_PLAIN", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the probe runs");
    let plain = Probe { child: Some(child), dir };
    for framing in [Framing::Length, Framing::Lines] {
        let mut core = plain.connect(framing);
        let answer = core.ask(&kv("k1", json!({"action": "get", "key": "a"})));
        assert_eq!(answer["request_id"], "k1");
        let error = json!({"code": "unsupported", "message": "the plugin takes no kv requests"});
        assert_eq!(answer["payload"], json!({"error": error}));
    }
}

#[test]
fn kv_requests_wait_for_init() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    let asked = core.init(json!({"init": "ask"}));
    let mut worker = probe.connect(Framing::Length);
    worker.send(&kv("k9", json!({"action": "get", "key": "a"})));
    assert_eq!(worker.ask(&lifecycle("ping"))["payload"]["action"], "pong");
    core.send(&kv(asked["request_id"].as_str().expect("text"), json!({"value": null})));
    assert_eq!(worker.next()["payload"], json!({"value": "a=true"}));

    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    assert_eq!(core.init(json!({"init": "fail"}))["payload"]["action"], "failed");
    let answer = core.ask(&kv("k9", json!({"action": "get", "key": "a"})));
    assert_eq!(answer["payload"]["error"]["code"], "unavailable");
}

#[test]
fn kv_without_a_core_that_stores_fails_at_once() {
    let probe = Probe::start();
    let mut by_hand = probe.connect(Framing::Lines);
    assert_eq!(by_hand.get_json("/kv/get")["code"], "unavailable");
    // A 1.0 core must not get messages that it does not know.
    by_hand.ask(&json!({"type": "lifecycle", "payload": {"action": "init", "instance_id": "test"}}));
    assert_eq!(by_hand.get_json("/kv/get")["code"], "unavailable");
    assert_eq!(by_hand.get("/log").0, 204);
    drop(by_hand);
    probe.signal("-TERM");
    let said = String::from_utf8_lossy(&probe.wait().stderr).into_owned();
    assert!(said.contains(r#"{"level":"warn","message":"as asked","n":1}"#), "{said}");
}

#[test]
fn log_lines_go_to_the_core() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    core.send(&http("r", "/log", None));
    let log = core.next();
    assert_eq!(log["type"], "log");
    assert_eq!(log["payload"], json!({"level": "warn", "message": "as asked", "fields": {"n": 1}}));
    assert_eq!(response(&core.next()).0, 204);
}

#[test]
fn log_lines_that_the_core_does_not_take_are_counted() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    let written = 3000;
    core.send(&http("r", &format!("/log-flood/{written}"), None));
    let mut kept = 0;
    let mut next = core.next();
    while next["type"] == "log" {
        kept += 1;
        next = core.next();
    }
    assert_eq!(response(&next).0, 204);
    assert!((500..2000).contains(&kept), "{kept}");
    let lost = core.ask(&http("r", "/log", None));
    let expect = format!("{} log lines were lost: the core did not read them in time", written - kept);
    assert_eq!(lost["payload"]["message"], expect);
    assert_eq!(core.next()["payload"]["message"], "as asked");
}

#[test]
fn the_core_is_found_again_by_its_ping() {
    let probe = Probe::start();
    let mut first = probe.connect(Framing::Length);
    first.init(json!({}));
    drop(first);
    let mut again = probe.connect(Framing::Length);
    again.ask(&json!({"type": "lifecycle", "payload": {"action": "ping", "seq": 1}}));
    again.send(&lifecycle("shutdown"));
    // What the plugin has to say at its end has no request's connection to go by.
    assert_eq!(again.next()["payload"]["key"], "goodbye");
}

#[test]
fn shutdown_answers_what_is_there_and_exits_0() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    let mut worker = probe.connect(Framing::Length);
    worker.send(&http("waiting", "/turn/5", Some("last words")));
    assert_eq!(worker.ask(&lifecycle("ping"))["payload"]["action"], "pong");
    core.send(&json!({"type": "lifecycle", "payload": {"action": "shutdown", "deadline_ms": 15_000}}));
    // Written after `shutdown`, and in two halves: what is on its way is still handled.
    let release = worker.frame(&http("release", "/start-turns/5", None));
    worker.stream.write_all(&release[..9]).expect("open");
    assert_eq!(core.ask(&lifecycle("ping"))["payload"]["action"], "pong");
    worker.stream.write_all(&release[9..]).expect("open");
    let ids: Vec<Value> =
        [worker.next(), worker.next()].iter().map(|answer| answer["request_id"].clone()).collect();
    assert!(ids.contains(&json!("waiting")) && ids.contains(&json!("release")), "{ids:?}");
    // Its own goodbye still reaches the core.
    let goodbye = core.next();
    assert_eq!(goodbye["payload"]["key"], "goodbye");
    core.send(&json!({"type": "kv", "request_id": goodbye["request_id"], "payload": {"value": null}}));
    assert_eq!((core.receive(), worker.receive()), (None, None));
    let socket = probe.socket();
    let output = probe.wait();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("shutdown: Ok(())"));
    assert!(!socket.exists());
}

#[test]
fn shutdown_ends_by_its_deadline() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.send(&http("r", "/hold", None));
    core.send(&json!({"type": "lifecycle", "payload": {"action": "shutdown", "deadline_ms": 200}}));
    let began = Instant::now();
    assert_eq!(core.receive(), None);
    assert_eq!(probe.wait().status.code(), Some(0));
    assert!(began.elapsed() >= Duration::from_millis(100), "it waited for the handler");
}

#[test]
fn sigterm_and_sigint_stop_it() {
    for signal in ["-TERM", "-INT"] {
        let probe = Probe::start();
        let mut core = probe.connect(Framing::Length);
        assert_eq!(core.get("/").0, 200);
        probe.signal(signal);
        assert_eq!(core.receive(), None);
        let socket = probe.socket();
        assert_eq!(probe.wait().status.code(), Some(0));
        assert!(!socket.exists());
    }
}

#[test]
fn sigterm_cuts_a_long_deadline_short() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.send(&http("r", "/hold", None));
    // The largest number that JSON readers agree on, too.
    for deadline_ms in [9_007_199_254_740_991_u64, 600_000] {
        core.send(&json!({"type": "lifecycle", "payload": {
            "action": "shutdown", "deadline_ms": deadline_ms,
        }}));
    }
    assert_eq!(core.ask(&lifecycle("ping"))["payload"]["action"], "pong");
    probe.signal("-TERM");
    assert_eq!(core.receive(), None);
    assert_eq!(probe.wait().status.code(), Some(0));
}

#[test]
fn a_core_of_1_0_has_a_connection_for_each_exchange() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.send(&json!({"type": "lifecycle", "timestamp": "2026-01-01T00:00:00Z", "payload": {
        "type": "lifecycle", "action": "init", "instance_id": "i-1", "plugin_socket": "s", "log_path": "l",
    }}));
    // It takes no answer to a lifecycle message, and closes; here only for writing, to see that none comes.
    core.stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(core.receive(), None);
    for index in 0..50 {
        let mut core = probe.connect(Framing::Length);
        let nonce = format!("n{index}");
        assert_eq!(response(&core.ask(&http("r", "/echo", Some(&nonce)))), (200, nonce));
        probe.connect(Framing::Length).send(&lifecycle("ping"));
    }
    assert_eq!(probe.connect(Framing::Length).get_json("/context")["instance_id"], "i-1");
}

#[test]
fn one_who_closes_for_writing_still_gets_the_answers() {
    // This is what `echo … | socat - UNIX-CONNECT:…` does.
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Lines);
    core.send(&lifecycle("init"));
    core.send(&http("r1", "/turn/3", Some("late")));
    core.stream.shutdown(Shutdown::Write).expect("open");
    assert_eq!(core.next()["payload"]["action"], "ready");
    probe.connect(Framing::Lines).get("/start-turns/3");
    assert_eq!(response(&core.next()), (200, "late".to_owned()));
    assert_eq!(core.receive(), None);
}

#[test]
fn a_core_that_does_not_read_is_not_read_from_for_ever() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.stream.set_nonblocking(true).expect("a socket");
    let request = core.frame(&http("r", "/bytes/500000", None));
    // Unread answers pile up to a bound; then requests pile up in the socket, which has one too.
    let mut sent = 0;
    let began = Instant::now();
    let mut idle_since = Instant::now();
    while idle_since.elapsed() < Duration::from_millis(300) {
        assert!(began.elapsed() < PATIENCE, "{sent} requests were read, with no answer taken");
        match core.stream.write(&request) {
            Ok(count) if count == request.len() => {
                sent += 1;
                idle_since = Instant::now();
            }
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    let mut other = probe.connect(Framing::Length);
    assert_eq!(other.get("/").0, 200);
}

#[test]
fn memory_follows_what_is_unread_and_not_what_was_sent() {
    let probe = Probe::start();
    let mut core = probe.connect(Framing::Length);
    core.init(json!({}));
    // Ever more than the socket takes, so that there is no moment at which all is written.
    let (count, at_once) = (1000, 16);
    for number in 0..count {
        core.send(&http(&format!("r{number}"), "/bytes/100000", None));
        if number >= at_once {
            core.next();
        }
    }
    for _ in 0..at_once {
        assert_eq!(response(&core.next()).1.len(), 100_000);
    }
    let peak = probe.peak_kib();
    assert!(peak < 48 * 1024, "{peak} KiB for {at_once} answers of 100 kB at a time");
}

#[test]
fn what_has_large_answers_is_handled_as_the_answers_are_read() {
    // Handlers that answer at once, those that are tasks after a slow one, and those that wait.
    for path in ["/bytes/400000", "/bytes-later/400000"] {
        let probe = Probe::start();
        let mut core = probe.connect(Framing::Length);
        core.init(json!({}));
        // All of them fit in one read.
        let count = 250;
        let batch: Vec<u8> =
            (0..count).flat_map(|number| core.frame(&http(&number.to_string(), path, None))).collect();
        assert!(batch.len() < 64 * 1024);
        core.stream.write_all(&batch).expect("the probe reads");
        // And nothing more: what is left must come up by itself.
        core.stream.shutdown(Shutdown::Write).expect("open");
        let mut seen = vec![false; count];
        for _ in 0..count {
            let answer = core.next();
            assert_eq!(response(&answer).1.len(), 400_000);
            let number: usize = answer["request_id"].as_str().expect("text").parse().expect("ours");
            assert!(!std::mem::replace(&mut seen[number], true), "answered twice");
        }
        let peak = probe.peak_kib();
        assert!(peak < 48 * 1024, "{peak} KiB, where 4 MiB may wait");
        assert_eq!(core.receive(), None);
    }
}

#[test]
fn the_socket_is_for_its_owner_and_replaces_a_stale_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("p.sock");
    drop(UnixListener::bind(&path).expect("a stale socket"));
    let probe = Probe::start_in(dir, 1);
    assert_eq!(probe.connect(Framing::Length).get("/").0, 200);
    let found = std::fs::symlink_metadata(&path).expect("bound");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);

    let second = probe_command(&path).output().expect("it runs");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("another process listens there"), "{said}");
    assert_eq!(probe.connect(Framing::Length).get("/").0, 200);
}

#[test]
fn what_is_no_stale_socket_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").expect("a file");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let long = dir.path().join("x".repeat(120));
    for (path, reason) in [
        (&file, "something that is no socket is in its place"),
        (&link, "something that is no socket is in its place"),
        (&long, "the limit is 107"),
    ] {
        let output = probe_command(path).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(reason), "{said}");
    }
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "precious");
}

const IO_URING_SETUP: u32 = 425;
const IO_URING_ENTER: u32 = 426;

/// A plugin that wants io_uring does what any does; whether it has it.
fn check_io_uring(refused: Option<u32>) -> bool {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = probe_command(&dir.path().join("p.sock"));
    command.env("PROBE_IO_URING", "1").stdout(Stdio::null()).stderr(Stdio::piped());
    if let Some(number) = refused {
        command.env("PROBE_REFUSED", number.to_string());
    }
    let probe = Probe { child: Some(command.spawn().expect("the probe runs")), dir };
    let mut control = probe.connect(Framing::Length);
    assert_eq!(control.init(json!({}))["payload"]["action"], "ready");
    let mut core = probe.connect(Framing::Length);
    for round in 0..50 {
        // Larger than a read and smaller, in one piece and in two.
        let body = "x".repeat(if round % 5 == 0 { 300_000 } else { round });
        let frame = core.frame(&http("r", "/echo", Some(&body)));
        let cut = if round % 2 == 0 { frame.len() } else { frame.len() / 3 };
        core.stream.write_all(&frame[..cut]).expect("it reads");
        core.stream.write_all(&frame[cut..]).expect("it reads");
        assert_eq!(response(&core.next()), (200, body));
    }
    let mut broken = probe.connect(Framing::Length);
    broken.stream.write_all(b"\0\0\0\0").expect("it reads");
    assert_eq!(broken.receive(), None);
    core.send(&http("last", "/", None));
    control.send(&json!({"type": "lifecycle", "payload": {"action": "shutdown", "deadline_ms": 15_000}}));
    assert_eq!(core.next()["request_id"], "last");
    let goodbye = control.next();
    control.send(&json!({"type": "kv", "request_id": goodbye["request_id"], "payload": {"value": null}}));
    assert_eq!((control.receive(), core.receive()), (None, None));
    let output = probe.wait();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    !said.contains("io_uring cannot be used")
}

#[test]
fn io_uring_is_read_through_where_it_is_wanted_and_there() {
    if !check_io_uring(None) {
        println!("skipped: no io_uring here");
    }
}

#[test]
fn without_io_uring_a_plugin_that_wants_it_runs_all_the_same() {
    assert!(!check_io_uring(Some(IO_URING_SETUP)), "no ring can be made");
    assert!(!check_io_uring(Some(IO_URING_ENTER)), "a ring can be made, and not used");
}
