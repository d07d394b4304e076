//! A plugin that misbehaves on command, writing its frames by hand.
//!
//! The core gives a plugin no arguments, so the command stands in a file beside the binary,
//! `<binary>.json`: `id` (default: the name of the file), `protocol` (default 1.1), `framing`,
//! `metadata` (fields merged over the usual ones, null removes one) and `do`, what to do wrong.
//! What `do` leaves alone the plugin does right, and then the first segment of a request's path may
//! ask for one misdeed, so that "fails once, works again" needs one plugin only.
//!
//! It writes what it saw to `<binary>.trace`, one JSON object a line: `start`, `open`, `close`,
//! and `message` for everything but HTTP requests.

#![forbid(unsafe_code)]

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    env,
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::PathBuf,
    process::{Command, exit},
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use toru_tests::wire::{Framing, detect, frame, read_frame};

const TIMESTAMP: &str = "2026-01-01T00:00:00.000Z";
const OVERSIZE_ANNOUNCED: u32 = 16 * 1024 * 1024;
/// The largest frame until `init` says otherwise.
const FRAME_BYTES_MAX: usize = 1_048_576;

fn main() {
    let plugin = Arc::new(Plugin::load());
    match (env::args().nth(1).as_deref(), plugin.mode.as_str()) {
        (Some("--metadata"), _) => plugin.print_metadata(),
        (_, "ignore-term") if env::var_os("FAULTY_TERM_IGNORED").is_none() => ignore_term(),
        _ => plugin.serve(),
    }
}

/// An ignored signal stays ignored over exec: a shell can do it for us without unsafe code.
fn ignore_term() {
    let exe = env::current_exe().expect("/proc is mounted");
    let error = Command::new("/bin/sh")
        .args(["-c", r#"trap "" TERM INT; exec "$0""#])
        .arg(exe)
        .env("FAULTY_TERM_IGNORED", "1")
        .exec();
    panic!("/bin/sh: {error}");
}

struct Plugin {
    command: Value,
    /// The word of `do` up to `=`; empty for a plugin that behaves.
    mode: String,
    /// What follows `=`, or 0.
    argument: u64,
    id: String,
    trace: Mutex<File>,
    /// HTTP requests so far, over all connections.
    requests: AtomicU64,
    /// HTTP requests that are being held.
    held: AtomicUsize,
    held_most: AtomicUsize,
    /// The ping before this one, for who answers each only when the next has come.
    ping_before: AtomicU64,
    /// Connections so far; numbers them in the trace.
    connections: AtomicU64,
    /// The connection that carried `init`.
    lifecycle: OnceLock<Connection>,
    kv_waiting: Mutex<HashMap<String, mpsc::Sender<Value>>>,
    timer: Timer,
    socket_closed: AtomicBool,
    /// Ends what floods until it is told to stop.
    calm: AtomicBool,
    /// Log messages that were sent in floods.
    flooded: AtomicU64,
    frame_bytes_max: AtomicUsize,
}

/// One accepted connection, for whoever writes to it.
#[derive(Clone)]
struct Connection {
    number: u64,
    framing: Framing,
    stream: Arc<Mutex<UnixStream>>,
}

/// An HTTP request as it came.
struct Request {
    id: String,
    method: String,
    path: String,
    /// The innermost payload: method, path, headers, body and what 1.1 adds.
    payload: Value,
}

impl Plugin {
    fn load() -> Self {
        let exe = env::current_exe().expect("/proc is mounted");
        let beside = |suffix: &str| {
            let mut path = exe.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        let command: Value = match fs::read(beside(".json")) {
            Ok(text) => serde_json::from_slice(&text).expect("the command file is JSON"),
            Err(_) => json!({}),
        };
        let told = command["do"].as_str().unwrap_or_default();
        let (mode, argument) = told.split_once('=').unwrap_or((told, "0"));
        let id = match command["id"].as_str() {
            Some(id) => id.to_owned(),
            None => exe.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
        };
        let trace = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(beside(".trace"))
            .expect("the folder of the binary can be written");
        Self {
            mode: mode.to_owned(),
            argument: argument.parse().expect("a number after ="),
            id,
            trace: Mutex::new(trace),
            requests: AtomicU64::new(0),
            held: AtomicUsize::new(0),
            held_most: AtomicUsize::new(0),
            ping_before: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            lifecycle: OnceLock::new(),
            kv_waiting: Mutex::default(),
            timer: Timer::start(),
            socket_closed: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            flooded: AtomicU64::new(0),
            frame_bytes_max: AtomicUsize::new(FRAME_BYTES_MAX),
            command,
        }
    }

    fn is_legacy(&self) -> bool {
        self.command["protocol"].as_str() == Some("1.0")
    }

    fn trace(&self, line: &Value) {
        let mut text = line.to_string();
        text.push('\n');
        // One write a line, so that lines of two processes never mix.
        let _ = self.trace.lock().expect("no panic holds it").write_all(text.as_bytes());
    }

    fn print_metadata(&self) {
        let mut metadata = json!({
            "id": self.id,
            "name": format!("Faulty {}", self.id),
            "version": "1.0.0",
            "author": null,
            "icon": "💥",
            "route": format!("/{}", self.id),
            "protocol": "1.1",
        });
        for key in ["protocol", "framing"] {
            if let Some(value) = self.command.get(key) {
                metadata[key] = value.clone();
            }
        }
        for (key, value) in self.command["metadata"].as_object().into_iter().flatten() {
            if value.is_null() {
                metadata.as_object_mut().expect("built above").remove(key);
            } else {
                metadata[key] = value.clone();
            }
        }
        let mut out = io::stdout().lock();
        match self.mode.as_str() {
            "metadata-hangs" => loop {
                thread::park();
            },
            "metadata-huge" => {
                let chunk = vec![b' '; 64 * 1024];
                // A gigabyte, or until the reader has had enough.
                for _ in 0..16 * 1024 {
                    if out.write_all(&chunk).is_err() {
                        exit(1);
                    }
                }
            }
            "metadata-invalid" => {
                let _ = out.write_all(b"{\"id\": \"broken\", ");
                return;
            }
            "metadata-exit" => {
                eprintln!("no licence for this machine");
                exit(4);
            }
            _ => {}
        }
        let _ = writeln!(out, "{metadata}");
    }

    fn serve(self: Arc<Self>) {
        let seen: serde_json::Map<String, Value> = env::vars()
            .filter(|(name, _)| name.starts_with("TORU_") || name.starts_with("FAULTY_"))
            .map(|(name, value)| (name, value.into()))
            .collect();
        self.trace(&json!({
            "event": "start",
            "pid": std::process::id(),
            "environment": seen,
            "arguments": env::args().skip(1).collect::<Vec<_>>(),
        }));
        match self.mode.as_str() {
            "exit-zero" => exit(0),
            "exit-before-ready" => {
                eprintln!("giving up before I began");
                exit(3);
            }
            "never-binds" => loop {
                thread::park();
            },
            "fork-child" => fork_children(),
            "flood-stderr" => flood_stderr(),
            _ => {}
        }
        let path = env::var("TORU_PLUGIN_SOCKET").expect("TORU_PLUGIN_SOCKET is set");
        if self.mode != "keep-stale" {
            let _ = fs::remove_file(&path);
        }
        let listener = UnixListener::bind(&path).expect("the socket can be bound");
        if self.mode == "open-socket" {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("it is ours");
        }
        if self.mode == "count-connections" {
            return self.serve_counted(&listener);
        }
        self.accept(&listener);
        // The socket is closed and the process lives on, as the fault asks.
        drop(listener);
        fs::remove_file(&path).expect("nobody else removes it");
        loop {
            thread::park();
        }
    }

    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            if self.socket_closed.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let number = self.connections.fetch_add(1, Ordering::SeqCst);
            if self.mode == "sip" {
                thread::spawn(move || sip(stream));
                continue;
            }
            if self.mode == "accept-only" {
                // Held open and never read.
                std::mem::forget(stream);
                continue;
            }
            let plugin = self.clone();
            let serving = thread::spawn(move || {
                plugin.trace(&json!({"event": "open", "connection": number}));
                if let Err(error) = plugin.connection(number, stream) {
                    plugin
                        .trace(&json!({"event": "error", "connection": number, "error": error.to_string()}));
                }
                plugin.trace(&json!({"event": "close", "connection": number}));
            });
            if self.mode == "one-connection" {
                let _ = serving.join();
            }
        }
    }

    fn connection(self: &Arc<Self>, number: u64, stream: UnixStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let Some(framing) = detect(&mut reader)? else {
            return Ok(());
        };
        if framing == Framing::Lines && self.mode == "no-lines" {
            return Ok(());
        }
        let connection = Connection { number, framing, stream: Arc::new(Mutex::new(stream)) };
        let read = self.frames(&connection, &mut reader);
        if read.is_err() {
            // Others may hold the connection still, to answer on it.
            let stream = connection.stream.lock().expect("no panic holds it");
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        read
    }

    fn frames(
        self: &Arc<Self>,
        connection: &Connection,
        reader: &mut BufReader<UnixStream>,
    ) -> io::Result<()> {
        loop {
            if self.mode == "whole-reads" {
                // Takes what one read gives for one frame.
                let part = reader.fill_buf()?;
                if part.len() < 4
                    || part.len() - 4 != u32::from_be_bytes([part[0], part[1], part[2], part[3]]) as usize
                {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            }
            let limit = match self.mode.as_str() {
                "small-limit" => 65_536,
                "any-length" => usize::MAX,
                _ => self.frame_bytes_max.load(Ordering::SeqCst),
            };
            let Some(text) = read_frame(reader, connection.framing, limit)? else {
                return Ok(());
            };
            let message: Value = match serde_json::from_slice(&text) {
                Ok(message @ Value::Object(_)) => message,
                Ok(_) | Err(_) if self.mode == "any-frame" => continue,
                Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
                Err(error) => return Err(error.into()),
            };
            let kind = message["type"].as_str().unwrap_or_default();
            match self.mode.as_str() {
                "strict-types" if !["http", "lifecycle", "cancel", "kv"].contains(&kind) => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                "cancel-closes" if kind == "cancel" => return Err(io::ErrorKind::Interrupted.into()),
                "text-only" if message["payload"]["payload"]["body_encoding"].is_string() => {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                _ => {}
            }
            match message["type"].as_str() {
                Some("http") => {
                    if self.http(connection, &message) == Reading::Stops {
                        // The connection stays open and fills up.
                        loop {
                            thread::park();
                        }
                    }
                }
                _ => {
                    self.trace(
                        &json!({"event": "message", "connection": connection.number, "message": message}),
                    );
                    self.other(connection, &message);
                }
            }
            if self.mode == "first-of-read" {
                // What came behind the first frame of a read is lost.
                let rest = reader.buffer().len();
                reader.consume(rest);
            }
        }
    }

    /// Everything that is no HTTP request.
    fn other(self: &Arc<Self>, connection: &Connection, message: &Value) {
        let payload = &message["payload"];
        match (message["type"].as_str(), payload["action"].as_str()) {
            (Some("lifecycle"), Some("init")) if !self.is_legacy() => {
                if let Some(bytes) = payload["max_message_bytes"].as_u64() {
                    self.frame_bytes_max.store(bytes as usize, Ordering::SeqCst);
                }
                let is_first = self.lifecycle.set(connection.clone()).is_ok();
                match self.mode.as_str() {
                    "never-ready" => {}
                    "init-once" if !is_first => {}
                    "fail-init" => {
                        connection.lifecycle(json!({"action": "failed", "error": "the licence has run out"}))
                    }
                    _ => connection.lifecycle(json!({"action": "ready"})),
                }
            }
            (Some("lifecycle"), Some("ping")) if self.mode == "late-pong" => {
                let seq = payload["seq"].as_u64().unwrap_or_default();
                let before = self.ping_before.swap(seq, Ordering::SeqCst);
                if before > 0 {
                    connection.lifecycle(json!({"action": "pong", "seq": before}));
                }
            }
            (Some("lifecycle"), Some("ping")) if !self.is_legacy() && self.mode != "no-pong" => {
                connection.lifecycle(json!({"action": "pong", "seq": payload["seq"]}));
            }
            (Some("lifecycle"), Some("shutdown")) if self.mode != "ignore-term" => {
                // What is in flight is answered first; the deadline is the core's to enforce.
                let plugin = self.clone();
                thread::spawn(move || {
                    plugin.timer.wait_empty();
                    exit(0);
                });
            }
            (Some("kv"), _) => {
                let id = message["request_id"].as_str().unwrap_or_default();
                if let Some(waiting) = self.kv_waiting.lock().expect("no panic holds it").remove(id) {
                    let _ = waiting.send(payload.clone());
                }
            }
            _ => {}
        }
    }

    fn http(self: &Arc<Self>, connection: &Connection, message: &Value) -> Reading {
        let payload = &message["payload"]["payload"];
        let request = Request {
            id: message["request_id"].as_str().unwrap_or_default().to_owned(),
            method: payload["method"].as_str().unwrap_or_default().to_owned(),
            path: payload["path"].as_str().unwrap_or_default().to_owned(),
            payload: payload.clone(),
        };
        let seen = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        match self.mode.as_str() {
            "crash-on" if seen == self.argument => exit(7),
            "slow" => {
                let answer = request.echo();
                self.timer.send_in(Duration::from_millis(self.argument), connection, answer);
            }
            "unordered" => {
                let delay = scatter(seen) % 20_000;
                let answer = request.echo();
                self.timer.send_in(Duration::from_micros(delay), connection, answer);
            }
            "" | "ignore-term" | "fork-child" | "no-pong" | "late-pong" | "crash-on" | "flood-stderr"
            | "never-ready" | "one-by-one" => {
                let path = request.path.split('?').next().unwrap_or_default().to_owned();
                let mut segments = path.trim_start_matches('/').split('/');
                let deed = segments.next().unwrap_or_default();
                let rest: Vec<&str> = segments.collect();
                return self.deed(deed, &rest, connection, &request);
            }
            deed => return self.deed(deed, &[], connection, &request),
        }
        Reading::GoesOn
    }

    /// One request answered, or not, in the way that `deed` names; an unknown deed is an echo.
    fn deed(
        self: &Arc<Self>,
        deed: &str,
        rest: &[&str],
        connection: &Connection,
        request: &Request,
    ) -> Reading {
        let number = |default: u64| rest.first().and_then(|text| text.parse().ok()).unwrap_or(default);
        let ok = |payload: Value| request.answer(payload);
        match deed {
            // The connection breaks.
            "garbage" => connection.raw(&frame(b"{this is no JSON", connection.framing)),
            "noise" => connection.raw(b"\x00\x00\x00\x07garbage\x00\x00\x00\x03abc"),
            "not-an-object" => connection.raw(&frame(b"[1,2,3]", connection.framing)),
            "zero-length" => connection.raw(&[0; 4]),
            "bad-utf8" => connection.raw(&frame(
                b"{\"type\":\"http\",\"request_id\":\"\xff\xfe\",\"payload\":{}}",
                connection.framing,
            )),
            "deep-json" => {
                let depth = 200_000;
                let text = format!(
                    "{{\"type\":\"http\",\"request_id\":\"{}\",\"payload\":{{\"status\":200,\"body\":{}{}}}}}",
                    request.id,
                    "[".repeat(depth),
                    "]".repeat(depth)
                );
                connection.raw(&frame(text.as_bytes(), connection.framing));
            }
            "oversize-length" => connection.raw(&OVERSIZE_ANNOUNCED.to_be_bytes()),
            "oversize" => {
                let body = "x".repeat(2 * 1024 * 1024);
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": body})));
            }
            "half-frame" | "exit-mid-frame" | "close-mid-frame" => {
                let whole = frame(request.echo().to_string().as_bytes(), connection.framing);
                connection.raw(&whole[..whole.len() / 2]);
                match deed {
                    "exit-mid-frame" => exit(9),
                    "close-mid-frame" => connection.shut(),
                    _ => {}
                }
            }
            "prefix-only" => connection.raw(&[0, 0, 1]),
            "close-connection" => connection.shut(),
            "close-socket" => {
                self.socket_closed.store(true, Ordering::SeqCst);
                // Wakes the accept loop, which then drops the listener.
                let path = env::var("TORU_PLUGIN_SOCKET").expect("TORU_PLUGIN_SOCKET is set");
                drop(UnixStream::connect(path));
                connection.shut();
            }
            // The process breaks.
            "exit" => exit(number(1) as i32),
            "abort" => std::process::abort(),
            "stop-reading" => return Reading::Stops,
            // Reads nothing meanwhile.
            "busy" => {
                thread::sleep(Duration::from_millis(number(1_000)));
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": "done"})));
            }
            // The answer is late, missing, for somebody else, or one too many.
            "never" | "never-answer" => {}
            "slow" | "late" | "late-answer" => {
                self.timer.send_in(Duration::from_millis(number(1_000)), connection, request.echo());
            }
            "held" => {
                let held = self.held.fetch_add(1, Ordering::SeqCst) + 1;
                if held > self.held_most.fetch_max(held, Ordering::SeqCst) {
                    self.trace(&json!({"event": "held", "most": held}));
                }
                let (plugin, connection, echo) = (self.clone(), connection.clone(), request.echo());
                let time = Duration::from_millis(number(1_000));
                thread::spawn(move || {
                    thread::sleep(time);
                    // Before the core can know.
                    plugin.held.fetch_sub(1, Ordering::SeqCst);
                    connection.send(&echo);
                });
            }
            "wrong-id" => {
                let mut answer = request.echo();
                answer["request_id"] = json!(format!("{}-not", request.id));
                connection.send(&answer);
            }
            "answer-twice" => {
                let first = frame(request.echo().to_string().as_bytes(), connection.framing);
                let second = ok(json!({"status": 200, "headers": {}, "body": "the second answer"}));
                let second = frame(second.to_string().as_bytes(), connection.framing);
                connection.raw(&[first, second].concat());
            }
            "flood" => {
                let mut unknown = request.echo();
                unknown["request_id"] = json!("nobody-asked");
                let unknown = frame(unknown.to_string().as_bytes(), connection.framing);
                let many = unknown.repeat(100);
                // `flood/NUMBER/lifecycle`: over the connection that carried init.
                let flooded = match rest.get(1) {
                    Some(&"lifecycle") => self.lifecycle.get().expect("init came"),
                    _ => connection,
                };
                for _ in 0..number(1_000) / 100 {
                    flooded.raw(&many);
                }
                connection.send(&request.echo());
            }
            "unknown-type" => {
                connection.send(&json!({"type": "websocket", "payload": {"action": "open"}}));
                connection.lifecycle(json!({"action": "yawn"}));
                connection.send(&request.echo());
            }
            // The answer is not one to pass on.
            "status" => {
                let status: Value =
                    rest.first().and_then(|text| serde_json::from_str(text).ok()).unwrap_or(json!("ok"));
                connection.send(&ok(json!({"status": status, "headers": {}, "body": "as asked"})));
            }
            "no-status" => connection.send(&ok(json!({"headers": {}, "body": "which?"}))),
            "bad-header" => connection.send(&ok(json!({
                "status": 200,
                "headers": {"x-note": "one\r\nset-cookie: stolen=1\r\n\r\n<html>"},
                "body": "split",
            }))),
            "nul-header" => {
                connection.send(&ok(json!({"status": 200, "headers": {"x-note": "a\u{0}b"}, "body": ""})))
            }
            "control-header" => {
                let note = format!("a{}b", char::from_u32(number(0) as u32).unwrap_or_default());
                connection.send(&ok(json!({"status": 200, "headers": {"x-note": note}, "body": ""})))
            }
            "claims-length" => connection.send(&ok(json!({
                "status": 200,
                "headers": {"content-length": rest.first().copied().unwrap_or_default()},
                "body": "seventeen bytes..",
            }))),
            "names-hop-by-hop" => connection.send(&ok(json!({
                "status": 200,
                "headers": {
                    "connection": ["X-Private", "close, x-other"],
                    "x-private": "1",
                    "X-Other": "1",
                    "x-kept": "yes",
                    "date": "yesterday",
                    "server": "plugin",
                },
                "body": "",
            }))),
            // JSON by its grammar, and more than most readers take.
            "raw-body" => {
                let body = match rest.first() {
                    Some(&"half-pair") => r#"{"half":"\ud83d"}"#,
                    Some(&"half-pair-in-text") => r#""\ude00""#,
                    _ => r#"{"large": 1e400, "long": [12345678901234567890123, 0.10]}"#,
                };
                let text = format!(
                    r#"{{"type":"http","request_id":"{}","payload":{{"status":200,"headers":{{}},"body":{body}}}}}"#,
                    request.id
                );
                connection.raw(&frame(text.as_bytes(), connection.framing));
            }
            "long-header" => {
                let value = "v".repeat(number(0) as usize);
                connection.send(&ok(json!({"status": 200, "headers": {"x-long": value}, "body": "long"})));
            }
            "two-types" => {
                let headers = json!({"Content-Type": "text/plain", "content-type": "text/html"});
                connection.send(&ok(json!({"status": 200, "headers": headers, "body": "which?"})));
            }
            "many-headers" => {
                let values = vec!["v"; number(0) as usize];
                connection.send(&ok(json!({"status": 200, "headers": {"x-many": values}, "body": "many"})));
            }
            "bad-header-name" => {
                connection.send(&ok(json!({"status": 200, "headers": {"x note\n": "a"}, "body": ""})))
            }
            "hop-by-hop" => connection.send(&ok(json!({
                "status": 200,
                "headers": {
                    "content-length": "3",
                    "transfer-encoding": "chunked",
                    "connection": "close, x-private",
                    "keep-alive": "timeout=1",
                    "upgrade": "h2c",
                    "trailer": "x-sum",
                    "proxy-connection": "close",
                    "x-kept": "yes",
                },
                "body": "longer than three",
            }))),
            // Good answers in their many shapes.
            "cookies" | "set-cookie-twice" => connection.send(&ok(json!({
                "status": 200,
                "headers": {"set-cookie": ["a=1; Path=/", "b=2; HttpOnly"], "x-one": "1"},
                "body": "",
            }))),
            "object-body" => connection
                .send(&ok(json!({"status": 200, "headers": {}, "body": {"a": [1, 2.5, null], "b": "é\n"}}))),
            "array-body" => {
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": [1, {"two": 2}]})))
            }
            "null-body" => {
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": null})));
            }
            "no-body" => connection.send(&ok(json!({"status": 201}))),
            "nested" => connection.send(&json!({
                "type": "http",
                "timestamp": TIMESTAMP,
                "request_id": request.id,
                "payload": {
                    "type": "http",
                    "request_id": request.id,
                    "payload": {
                        "method": "RESPONSE",
                        "path": "",
                        "headers": {},
                        "body": json!({"status": 202, "headers": {"x-nested": "1"}, "body": "inner"})
                            .to_string(),
                    },
                },
            })),
            "binary" => connection.send(&ok(json!({
                "status": 200,
                "headers": {"content-type": "application/octet-stream"},
                // The bytes 00 ff 80 0d 0a.
                "body": "AP+ADQo=",
                "body_encoding": "base64",
            }))),
            "mirror" => {
                let mut payload = json!({
                    "status": 200,
                    "headers": {"content-type": "application/x-mirror"},
                    "body": request.payload["body"],
                });
                if let Some(encoding) = request.payload.get("body_encoding") {
                    payload["body_encoding"] = encoding.clone();
                }
                connection.send(&ok(payload));
            }
            "bytes" => {
                let body = "b".repeat(number(0) as usize);
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": body})));
            }
            "pieces" => {
                let whole = frame(request.echo().to_string().as_bytes(), connection.framing);
                for byte in whole {
                    connection.raw(&[byte]);
                }
            }
            "slow-body" => {
                // A byte now and then, for longer than any deadline on a frame.
                let whole = frame(request.echo().to_string().as_bytes(), connection.framing);
                let connection = connection.clone();
                thread::spawn(move || {
                    for byte in whole {
                        connection.raw(&[byte]);
                        thread::sleep(Duration::from_millis(200));
                    }
                });
            }
            "halves" => {
                // Of each frame the first half comes together with the second of the one before: always within one,
                // and never in the same for long. With `stop` the last remains a half.
                let line = json!({"type": "log", "payload": {"level": "info", "message": "in halves"}});
                let line = frame(line.to_string().as_bytes(), connection.framing);
                let answer = frame(request.echo().to_string().as_bytes(), connection.framing);
                let until = Instant::now() + Duration::from_millis(number(0));
                let stops = rest.get(1) == Some(&"stop");
                let connection = connection.clone();
                thread::spawn(move || {
                    // Nobody else may write within these frames.
                    let mut stream = connection.stream.lock().expect("no panic holds it");
                    let (first, second) = line.split_at(line.len() / 2);
                    let both = [second, first].concat();
                    let mut written = stream.write_all(first);
                    while written.is_ok() && Instant::now() < until {
                        thread::sleep(Duration::from_millis(20));
                        written = stream.write_all(&both);
                    }
                    if !stops {
                        let _ = stream.write_all(&[second, &answer].concat());
                    }
                });
            }
            // What it knows and says.
            "pid" => connection.send(&ok(json!({
                "status": 200,
                "headers": {},
                "body": std::process::id().to_string(),
            }))),
            "count" => connection.send(&ok(json!({
                "status": 200,
                "headers": {},
                "body": self.requests.load(Ordering::SeqCst).to_string(),
            }))),
            "connection" => connection.send(&ok(json!({
                "status": 200,
                "headers": {},
                "body": connection.number.to_string(),
            }))),
            "log" => {
                let line = json!({
                    "type": "log",
                    "timestamp": TIMESTAMP,
                    "payload": {
                        "level": "warn",
                        "message": "said over the socket",
                        "fields": {"answer": 42},
                    },
                });
                let line = frame(line.to_string().as_bytes(), connection.framing);
                connection.raw(&line.repeat(number(1) as usize));
                connection.send(&request.echo());
            }
            "flood-log" => {
                connection.send(&request.echo());
                let line = json!({"type": "log", "payload": {"level": "info", "message": "on and on"}});
                let block = frame(line.to_string().as_bytes(), connection.framing).repeat(100);
                let (plugin, connection) = (self.clone(), connection.clone());
                thread::spawn(move || {
                    while !plugin.calm.load(Ordering::SeqCst) {
                        connection.raw(&block);
                        plugin.flooded.fetch_add(100, Ordering::SeqCst);
                    }
                });
            }
            "calm" | "flooded" => {
                self.calm.fetch_or(deed == "calm", Ordering::SeqCst);
                let flooded = self.flooded.load(Ordering::SeqCst).to_string();
                connection.send(&ok(json!({"status": 200, "headers": {}, "body": flooded})));
            }
            "complain" => {
                for line in 1..=number(1) {
                    eprintln!("complaint {line}");
                }
                connection.send(&request.echo());
            }
            "print" => {
                println!("a plain line on stdout");
                println!("{}", json!({"level": "error", "message": "a JSON line on stdout", "part": 7}));
                eprintln!("a plain line on stderr");
                eprintln!("{}", json!({"msg": "a JSON line on stderr", "level": "debug", "user": {"id": 7}}));
                eprintln!(
                    "{}",
                    json!({"msg": "another", "level": "warning", "user": {"id": 8}, "plugin_id": "x"})
                );
                connection.send(&request.echo());
            }
            "kv" => {
                let plugin = self.clone();
                let connection = connection.clone();
                let (id, method) = (request.id.clone(), request.method.clone());
                let words: Vec<String> = rest.iter().map(|&word| word.to_owned()).collect();
                let body = request.payload["body"].clone();
                self.timer.count(1);
                let asking = thread::spawn(move || {
                    let reply = plugin.kv(&connection, &id, &words, body);
                    connection.send(&json!({
                        "type": "http",
                        "timestamp": TIMESTAMP,
                        "request_id": id,
                        "payload": {"status": 200, "headers": {"x-method": method}, "body": reply},
                    }));
                    plugin.timer.count(-1);
                });
                if self.mode == "one-by-one" {
                    let _ = asking.join();
                }
            }
            _ => connection.send(&request.echo()),
        }
        Reading::GoesOn
    }

    /// Asks the core `ACTION/KEY/VALUE`; the value may also be the body of the request.
    /// With `lifecycle` as the first word the question goes over the connection that carried init.
    fn kv(&self, asked_on: &Connection, id: &str, words: &[String], body: Value) -> Value {
        let (connection, words) = match words.split_first() {
            Some((first, rest)) if first == "lifecycle" => (self.lifecycle.get().expect("init came"), rest),
            _ => (asked_on, words),
        };
        let id = format!("kv-{id}");
        let word = |at: usize| words.get(at).cloned();
        let mut payload = json!({"type": "kv", "request_id": id, "action": word(0)});
        match word(0).unwrap_or_default().to_lowercase().as_str() {
            "list" => {
                payload["prefix"] = json!(word(1).unwrap_or_default());
                payload["limit"] = json!(100);
            }
            "set" => {
                payload["key"] = json!(word(1));
                payload["value"] = word(2).map_or(body, Value::from);
            }
            _ => payload["key"] = json!(word(1)),
        }
        let (sender, receiver) = mpsc::channel();
        self.kv_waiting.lock().expect("no panic holds it").insert(id.clone(), sender);
        connection.send(&json!({
            "type": "kv",
            "timestamp": TIMESTAMP,
            "request_id": id,
            "payload": payload,
        }));
        receiver
            .recv_timeout(Duration::from_secs(20))
            .unwrap_or_else(|_| json!({"lost": "the core gave no answer"}))
    }

    /// One exchange at a time, every connection accepted at once: knows how many are open.
    ///
    /// The listener stands first in each poll, so a peer that closes one connection before it opens
    /// the next is never counted with both. Counts from the request for `/start` on, so that what
    /// the supervisor needs at the beginning is not taken for requests.
    fn serve_counted(&self, listener: &UnixListener) {
        let mut open: Vec<UnixStream> = Vec::new();
        let mut most = 0;
        let mut counting = false;
        loop {
            let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
            polled.extend(open.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
            poll(&mut polled, None).expect("poll works on sockets");
            let ready: Vec<bool> = polled.iter().map(|entry| !entry.revents().is_empty()).collect();
            drop(polled);
            let mut index = 0;
            open.retain_mut(|stream| {
                index += 1;
                if !ready[index] {
                    return true;
                }
                let mut prefix = [0; 4];
                if stream.read_exact(&mut prefix).is_err() {
                    return false;
                }
                let mut text = vec![0; u32::from_be_bytes(prefix) as usize];
                stream.read_exact(&mut text).expect("the core sends whole frames");
                let message: Value = serde_json::from_slice(&text).expect("the core sends JSON");
                match (message["type"].as_str(), message["payload"]["action"].as_str()) {
                    (Some("http"), _) => {
                        let id = message["request_id"].as_str().unwrap_or_default();
                        let asked = &message["payload"]["payload"];
                        let body = json!({"path": asked["path"], "most_open": most});
                        counting |= asked["path"] == "/start";
                        let answer = json!({
                            "type": "http",
                            "timestamp": TIMESTAMP,
                            "request_id": id,
                            "payload": {"status": 200, "headers": {}, "body": body.to_string()},
                        });
                        let _ = stream.write_all(&frame(answer.to_string().as_bytes(), Framing::Length));
                    }
                    (_, Some("shutdown")) => exit(0),
                    _ => {}
                }
                true
            });
            if ready[0] {
                let (stream, _) = listener.accept().expect("one is waiting");
                open.push(stream);
                if counting && open.len() > most {
                    most = open.len();
                    self.trace(&json!({"event": "open", "most": most}));
                }
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Reading {
    GoesOn,
    Stops,
}

impl Request {
    fn answer(&self, payload: Value) -> Value {
        json!({"type": "http", "timestamp": TIMESTAMP, "request_id": self.id, "payload": payload})
    }

    /// The request itself as the body of a good answer.
    fn echo(&self) -> Value {
        self.answer(json!({
            "status": 200,
            "headers": {"content-type": "application/json", "x-method": self.method},
            "body": self.payload.to_string(),
        }))
    }
}

impl Connection {
    fn send(&self, message: &Value) {
        self.raw(&frame(message.to_string().as_bytes(), self.framing));
    }

    fn lifecycle(&self, payload: Value) {
        self.send(&json!({"type": "lifecycle", "timestamp": TIMESTAMP, "payload": payload}));
    }

    /// Bytes as they are. A connection that the core has closed is no fault of the plugin.
    fn raw(&self, bytes: &[u8]) {
        let _ = self.stream.lock().expect("no panic holds it").write_all(bytes);
    }

    fn shut(&self) {
        let _ = self.stream.lock().expect("no panic holds it").shutdown(std::net::Shutdown::Both);
    }
}

/// One thread that sends answers when they are due, so that thousands may wait at once.
struct Timer {
    queue: mpsc::Sender<Due>,
    /// How many answers have not gone out, and who waits for none.
    waiting: Arc<(Mutex<u64>, Condvar)>,
}

struct Due {
    at: Instant,
    order: u64,
    connection: Connection,
    answer: Value,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Due {}
impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl Timer {
    fn start() -> Self {
        let (queue, due) = mpsc::channel::<Due>();
        let waiting = Arc::new((Mutex::new(0), Condvar::new()));
        let count = waiting.clone();
        thread::spawn(move || {
            let mut heap = BinaryHeap::new();
            loop {
                let next = match heap.peek() {
                    None => due.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                    Some(Reverse(Due { at, .. })) => {
                        due.recv_timeout(at.saturating_duration_since(Instant::now()))
                    }
                };
                match next {
                    Ok(due) => heap.push(Reverse(due)),
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        let Some(Reverse(due)) = heap.pop() else {
                            continue;
                        };
                        due.connection.send(&due.answer);
                        let (left, changed) = &*count;
                        *left.lock().expect("no panic holds it") -= 1;
                        changed.notify_all();
                    }
                }
            }
        });
        Self { queue, waiting }
    }

    fn send_in(&self, delay: Duration, connection: &Connection, answer: Value) {
        let order = {
            let mut left = self.waiting.0.lock().expect("no panic holds it");
            *left += 1;
            *left
        };
        let due = Due { at: Instant::now() + delay, order, connection: connection.clone(), answer };
        self.queue.send(due).expect("the timer thread never ends");
    }

    /// One answer more, or one less, that a shutdown waits for.
    fn count(&self, change: i64) {
        let (left, changed) = &*self.waiting;
        let mut left = left.lock().expect("no panic holds it");
        *left = left.checked_add_signed(change).expect("counted up before down");
        changed.notify_all();
    }

    fn wait_empty(&self) {
        let (left, changed) = &*self.waiting;
        let guard = left.lock().expect("no panic holds it");
        drop(changed.wait_while(guard, |left| *left > 0).expect("no panic holds it"));
    }
}

/// Children that outlive the plugin: one of its own, one double-forked, one in a session of its own; and two without any
/// environment in sessions of their own, one of them double-forked, which tell their pids in the trace.
#[expect(clippy::zombie_processes, reason = "leaving children behind is the fault")]
fn fork_children() {
    let mut trace = env::current_exe().expect("/proc is mounted").into_os_string();
    trace.push(".trace");
    const TELL: &str = r#"sh -c 'echo "{\"event\":\"child\",\"pid\":$$}" >> "$0"; exec sleep 100000' "$0""#;
    for script in [
        "exec sleep 100000",
        "(exec sleep 100000) & exit 0",
        "setsid sleep 100000 & exit 0",
        &format!("exec env -i setsid {TELL}"),
        &format!("env -i setsid {TELL} & exit 0"),
    ] {
        // The children keep no pipe of the core open: whether they die must not hang on that.
        Command::new("/bin/sh")
            .args(["-c", script])
            .arg(&trace)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("/bin/sh runs");
    }
}

/// Reads its `init` as usual and says that it is ready, then takes a byte a second.
fn sip(stream: UnixStream) {
    let mut reader = stream.try_clone().expect("descriptors");
    let mut length = [0; 4];
    if reader.read_exact(&mut length).is_err() {
        return;
    }
    let mut text = vec![0; u32::from_be_bytes(length) as usize];
    if text.len() < 4096
        && reader.read_exact(&mut text).is_ok()
        && text.windows(6).any(|part| part == b"\"init\"")
    {
        let ready = json!({"type": "lifecycle", "timestamp": TIMESTAMP, "payload": {"action": "ready"}});
        let _ = (&stream).write_all(&frame(ready.to_string().as_bytes(), Framing::Length));
    }
    let mut byte = [0];
    while reader.read_exact(&mut byte).is_ok() {
        thread::sleep(Duration::from_secs(1));
    }
}

/// As fast as the pipe takes it, for as long as the plugin lives.
fn flood_stderr() {
    thread::spawn(|| {
        let lines = "what a day this is, and nobody asked\n".repeat(1_000);
        let mut stderr = io::stderr().lock();
        while stderr.write_all(lines.as_bytes()).is_ok() {}
    });
}

/// Scatters consecutive numbers (the finaliser of splitmix64).
fn scatter(number: u64) -> u64 {
    let mut x = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
