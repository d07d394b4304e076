//! The control socket: the same management without a token, and what the console reads.

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    process::Command,
};

use serde_json::{Value, json};
use toru_tests::{Client, Daemon, Stage, has_program, output, wait_for};

use crate::http::assert_problem;

fn daemon() -> Daemon {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

/// Lines of an answer that does not end, past its head.
pub fn follow(daemon: &Daemon, target: &str) -> Client<UnixStream> {
    let mut control = daemon.control();
    control.send(format!("GET {target} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).unwrap();
    let first = control.line().unwrap();
    assert!(first.contains(" 200 "), "{target}: {first}");
    while !control.line().unwrap().is_empty() {}
    control
}

/// The next line that is a JSON object; what frames the chunks stands between.
pub fn next_object(control: &mut Client<UnixStream>) -> Value {
    loop {
        let line = control.line().unwrap();
        if let Ok(object @ Value::Object(_)) = serde_json::from_str(&line) {
            return object;
        }
    }
}

#[test]
fn it_is_for_its_owner_alone_and_goes_with_the_daemon() {
    let mut daemon = daemon();
    let path = daemon.root().join("control.sock");
    let found = fs::symlink_metadata(&path).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o7777, 0o600);
    // Without a token, and with what else the listener offers.
    assert_eq!(daemon.control().get("/api/plugins/p").json()["id"], "p");
    assert_eq!(daemon.control().get("/healthz").status, 200);
    let answer = daemon.control().request("POST", "/api/plugins/p/restart", &[], b"");
    assert_eq!(answer.json(), json!({"success": true}));
    // Over TCP none of it is there.
    for target in ["/metrics", "/v1/stream", "/v1/events", "/v1/plugins/p/logs"] {
        assert_problem(&daemon.manage("GET", target, b""), 404);
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_stale_control_socket_is_replaced_and_a_living_one_is_not() {
    let mut daemon = daemon();
    daemon.kill();
    assert!(daemon.root().join("control.sock").exists(), "nobody was left to remove it");
    let daemon = daemon.start_again();
    assert_eq!(daemon.control().get("/healthz").status, 200);
    assert!(!daemon.second().status.success());
    assert_eq!(daemon.control().get("/healthz").status, 200);
}

#[test]
fn the_control_socket_speaks_http_to_curl() {
    let daemon = daemon();
    if !has_program("curl") {
        println!("skipped: no curl here");
        return;
    }
    let socket = daemon.root().join("control.sock");
    let curl = |target: &str| {
        let printed = output(
            Command::new("curl")
                .args(["-sS", "--fail", "--max-time", "20", "--unix-socket"])
                .arg(&socket)
                .arg(format!("http://toru{target}")),
        );
        assert!(printed.status.success(), "{target}: {printed:?}");
        String::from_utf8(printed.stdout).unwrap()
    };
    let status: Value = serde_json::from_str(&curl("/api/plugins/p")).unwrap();
    assert_eq!(status["id"], "p");
    assert!(curl("/api/plugins").contains("\"p\""));
    let metrics = curl("/metrics");
    assert!(metrics.contains("# TYPE "), "{metrics}");
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_control_client_is_any_http_client() {
    let daemon = daemon();
    let mut control = daemon.control();
    for _ in 0..20 {
        assert_eq!(control.get("/api/plugins/p").json()["id"], "p");
    }
    assert_problem(&control.get("/v1/nothing"), 404);
    let mut control = daemon.control();
    control.send(b"NONSENSE\r\n\r\n").unwrap();
    assert_eq!(control.response("GET").unwrap().status, 400);
}

#[test]
fn logs_are_served_in_pages_and_by_level() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    for _ in 0..3 {
        daemon.get("/api/plugins/p/print");
        daemon.get("/api/plugins/p/log");
    }
    wait_for("the lines", || {
        let lines = daemon.plugin_log("p");
        // Over the socket, and the last that is printed on either stream.
        let said = |message: &str| lines.iter().filter(|line| line["message"] == message).count();
        let last = ["said over the socket", "a JSON line on stdout", "another"];
        last.iter().all(|message| said(message) == 3).then_some(())
    });
    let page = daemon.manage("GET", "/api/plugins/p/logs?page=1&page_size=2", b"").json();
    assert_eq!((&page["page"], &page["page_size"]), (&json!(1), &json!(2)), "{page}");
    assert_eq!(page["logs"].as_array().unwrap().len(), 2, "{page}");
    let next = daemon.manage("GET", "/api/plugins/p/logs?page=2&page_size=2", b"").json();
    // Several of these lines are alike: the pages are told apart by what they are part of. The first has the newest.
    let all = daemon.manage("GET", "/api/plugins/p/logs?page=1&page_size=4", b"").json();
    let both: Vec<&Value> =
        [&next, &page].into_iter().flat_map(|page| page["logs"].as_array().unwrap()).collect();
    assert_eq!(all["logs"].as_array().unwrap().iter().collect::<Vec<_>>(), both);
    let warnings = daemon.manage("GET", "/api/plugins/p/logs?level=warn", b"").json();
    let warnings = warnings["logs"].as_array().unwrap().clone();
    assert!(!warnings.is_empty());
    for line in warnings {
        assert!(line["level"] == "warn" || line["level"] == "error", "{line}");
    }
    for query in ["level=eror", "level=", "follow=1&level=eror"] {
        let refused = daemon.manage("GET", &format!("/api/plugins/p/logs?{query}"), b"");
        let problem = assert_problem(&refused, 400).to_string();
        assert!(problem.contains("debug, info, warn or error"), "{problem}");
    }
}

#[test]
fn the_stream_gives_a_full_snapshot_a_line() {
    let daemon = daemon();
    let mut control = follow(&daemon, "/v1/stream?interval_ms=100");
    for _ in 0..3 {
        let snapshot = next_object(&mut control);
        assert_eq!(snapshot["plugins"][0]["id"], "p", "{snapshot}");
        assert!(snapshot["plugins"][0]["rss_bytes"].as_u64() > Some(0), "{snapshot}");
        assert!(snapshot["plugins"][0]["cpu_percent"].is_number(), "{snapshot}");
        assert_eq!(snapshot["workers"].as_array().map(Vec::len), Some(2), "{snapshot}");
    }
    // A watcher that goes away and one that never reads harm nobody.
    drop(control);
    let idle: Vec<_> = (0..20).map(|_| follow(&daemon, "/v1/stream?interval_ms=50")).collect();
    for _ in 0..50 {
        assert_eq!(daemon.control().get("/api/plugins/p").status, 200);
        assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    }
    drop(idle);
}

#[test]
fn logs_are_followed() {
    let daemon = daemon();
    let mut control = follow(&daemon, "/v1/plugins/p/logs?follow=1");
    daemon.get("/api/plugins/p/print");
    loop {
        let line = next_object(&mut control);
        assert_eq!(line["plugin_id"], "p");
        if line["message"] == "a plain line on stderr" {
            break;
        }
    }
}

#[test]
fn neither_a_torn_line_nor_a_pipe_in_a_log_s_place_holds_up_who_reads_it() {
    let stage = Stage::new().faulty("p", &json!({}));
    let web = stage.root().join("web");
    fs::create_dir(&web).unwrap();
    fs::write(web.join("page"), "x").unwrap();
    let daemon = stage.argument("--web-root").argument(&web).start();
    daemon.wait_ready("p");
    let folder = daemon.root().join("log/plugins");
    fs::create_dir_all(&folder).unwrap();
    let log = folder.join("p.log");
    let text = b"{\"level\":\"info\",\"message\":\"caf\xc3\n{\"level\":\"error\",\"message\":\"new\"}\n";
    fs::write(&log, text).unwrap();
    let page = daemon.manage("GET", "/api/plugins/p/logs", b"").json();
    assert!(page["logs"].as_array().unwrap().iter().any(|line| line["message"] == "new"), "{page}");
    fs::remove_file(&log).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &log, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut followers: Vec<_> = (0..3).map(|_| follow(&daemon, "/v1/plugins/p/logs?follow=1")).collect();
    for _ in 0..3 {
        let page = daemon.manage("GET", "/api/plugins/p/logs", b"").json();
        assert_eq!(page["logs"], json!([]));
        assert_eq!(daemon.control().get("/healthz").status, 200);
        assert_eq!(daemon.get("/page").status, 200);
    }
    fs::remove_file(&log).unwrap();
    fs::write(&log, text).unwrap();
    for follower in &mut followers {
        assert_eq!(next_object(follower)["message"], "new");
    }
}

#[test]
fn another_user_is_turned_away_even_where_the_mode_lets_him_in() {
    if !rustix::process::geteuid().is_root() || !has_program("setpriv") || !has_program("curl") {
        println!("skipped: it takes root, setpriv and curl to be somebody else");
        return;
    }
    let daemon = daemon();
    let socket = daemon.root().join("control.sock");
    fs::set_permissions(daemon.root(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let ask = |user: &str| {
        let mut command = Command::new("setpriv");
        command.args([
            &format!("--reuid={user}"),
            &format!("--regid={user}"),
            "--clear-groups",
            "curl",
            "-sS",
        ]);
        command.args(["--max-time", "20", "--unix-socket"]).arg(&socket).arg("http://toru/api/plugins");
        output(&mut command)
    };
    let answered = ask("0");
    assert!(answered.status.success() && answered.stdout.starts_with(b"["), "{answered:?}");
    let refused = ask("65534");
    assert!(!refused.status.success() && refused.stdout.is_empty(), "{refused:?}");
    wait_for("the line about it", || {
        let said = |line: &Value| line["message"].as_str().is_some_and(|text| text.contains("user 65534"));
        daemon.supervisor_log().iter().any(said).then_some(())
    });
    assert_eq!(daemon.control().get("/healthz").status, 200);
}

#[test]
fn who_does_not_read_a_stream_costs_his_own_connection_alone() {
    let mut stage = Stage::new().set("http.write_timeout_ms", 1000);
    for number in 0..8 {
        stage = stage.faulty(&format!("p{number}"), &json!({}));
    }
    let daemon = stage.start();
    daemon.wait_ready("p7");
    let mut good = follow(&daemon, "/v1/stream?interval_ms=50");
    next_object(&mut good);
    let (memory, descriptors) = (daemon.memory_kib("VmRSS"), daemon.descriptors());
    let readers: Vec<_> =
        ["/v1/stream?interval_ms=50&history=*", "/v1/events?follow=1", "/v1/plugins/p0/logs?follow=1"]
            .iter()
            .cycle()
            .take(60)
            .map(|target| {
                let mut control = daemon.control();
                control.send(format!("GET {target} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).unwrap();
                control
            })
            .collect();
    // The others get what they asked for, in the order of time, and orders are carried out.
    let mut last = String::new();
    let mut worst = 0;
    for _ in 0..60 {
        let snapshot = next_object(&mut good);
        let timestamp = snapshot["timestamp"].as_str().unwrap().to_owned();
        assert!(timestamp > last, "{timestamp} after {last}");
        assert_eq!(snapshot["plugins"].as_array().unwrap().len(), 8);
        last = timestamp;
        worst = worst.max(daemon.memory_kib("VmRSS"));
    }
    let answer = daemon.control().request("POST", "/v1/plugins/p0/restart", &[], b"");
    assert_eq!(answer.json(), json!({"success": true}));
    let grown = worst.saturating_sub(memory);
    assert!(grown < 60 * 256, "{grown} KiB for sixty readers that do not read");
    // A stream of snapshots fills its socket, and is cut once it has taken nothing for the time of a write.
    wait_for("streams without a reader to be cut", || {
        (daemon.descriptors() <= descriptors + 40).then_some(())
    });
    next_object(&mut good);
    drop(readers);
    wait_for("the rest to go with their clients", || (daemon.descriptors() <= descriptors).then_some(()));
}

#[test]
fn a_query_may_be_encoded_as_libraries_do() {
    let daemon = daemon();
    let events = |query: &str| {
        let answer = daemon.control().get(&format!("/v1/events?{query}"));
        assert_eq!(answer.status, 200, "{query}: {answer:?}");
        answer.json()["events"].as_array().unwrap().len()
    };
    let all = events("plugin=p");
    assert!(all > 0);
    assert_eq!(events("plugin=%70&since=2026-01-01T00%3A00%3A00Z&limit=1%300"), all.min(10));
    // Decoded once, it is a name that nobody has.
    assert_problem(&daemon.control().get("/v1/events?plugin=%2570"), 404);
    assert_problem(&daemon.control().get("/v1/events?since=2026-01-01T00%3A00%3"), 400);
}

#[test]
fn a_query_or_a_question_with_a_value_of_no_sense_is_refused() {
    let daemon = daemon();
    for target in [
        "/v1/events?after=first",
        "/v1/events?after=99999999999999999999",
        "/v1/events?follow=yes",
        "/v1/logs?follow=",
        "/v1/plugins/p/logs?follow=2",
    ] {
        assert_problem(&daemon.control().get(target), 400);
    }
    assert_eq!(daemon.control().get("/v1/events?after=0&follow=0").status, 200);
    for (question, expect) in [
        (r#"{"action":"list","limit":"5"}"#, 400),
        (r#"{"action":"list","limit":-1}"#, 400),
        (r#"{"action":"list","limit":1.5}"#, 400),
        (r#"{"action":"list","limit":5.0}"#, 200),
        (r#"{"action":"list","limit":null,"prefix":null}"#, 200),
    ] {
        let answer = daemon.manage("POST", "/api/plugins/p/kv", question.as_bytes());
        assert_eq!(answer.status, expect, "{question}: {answer:?}");
    }
}
