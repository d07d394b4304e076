//! SIGHUP: what changes while the daemon runs, what waits for its next start, and what a bad file does.

use std::{sync::atomic::AtomicBool, sync::atomic::Ordering::Relaxed, thread};

use serde_json::{Value, json};
use toru_tests::{Daemon, Stage, request_bytes, wait_for};

use crate::http::assert_problem;

fn daemon() -> Daemon {
    let daemon = Stage::new()
        // Far beyond any test: what comes of a shorter one comes of the reload.
        .set("http.request_timeout_ms", 3_600_000)
        .set("log.summary_interval_s", 3_600)
        .faulty("p", &json!({}))
        .faulty("q", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    daemon
}

/// The lines with this message.
fn saying<'a>(lines: &'a [Value], message: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["message"].as_str().is_some_and(|said| said.contains(message))).collect()
}

#[test]
fn what_can_change_does_and_no_plugin_is_touched() {
    let mut daemon = daemon();
    let pids = [daemon.plugin_pid("p"), daemon.plugin_pid("q")];
    for (key, value) in [
        ("http.request_timeout_ms", "200"),
        ("http.head_bytes_max", "1024"),
        ("log.access", "\"all\""),
        ("log.level", "\"warn\""),
        ("log.summary_interval_s", "1"),
        ("auth.plugins_need_token", "true"),
        ("supervisor.backoff_ms", "[3600000]"),
    ] {
        daemon.set(key, value);
    }
    // The level holds before the end of the reload is told.
    daemon.set("log.level", "\"info\"");
    let lines = daemon.hang_up();
    let reloaded = saying(&lines, "Configuration reloaded");
    assert_eq!(reloaded.len(), 1, "{lines:?}");
    let changed = reloaded[0]["changed"].to_string();
    for key in ["http.request_timeout_ms", "log.access", "auth.plugins_need_token", "supervisor.backoff_ms"] {
        assert!(changed.contains(key), "{key} in {changed}");
    }
    assert!(!changed.contains("log.level"), "it is what it was: {changed}");

    let bearer = format!("Bearer {}", daemon.token());
    let with_token = [("authorization", bearer.as_str())];
    // A worker learns it by a message, which comes at once and not within the same moment.
    wait_for("the token to be asked for", || (daemon.get("/api/plugins/p/x").status == 401).then_some(()));
    assert_problem(&daemon.request("GET", "/api/plugins/p/never", &with_token, b""), 504);
    let long = "x".repeat(2_000);
    let answer = daemon.request("GET", "/api/plugins/p/x", &[with_token[0], ("x-long", &long)], b"");
    assert_eq!(answer.status, 431);
    wait_for("an access line of a good answer", || {
        assert_eq!(daemon.request("GET", "/api/plugins/p/x", &with_token, b"").status, 200);
        daemon.plugin_log("p").into_iter().find(|line| line["status"] == 200)
    });
    wait_for("a summary line", || {
        (!saying(&daemon.supervisor_log(), "Plugin summary").is_empty()).then_some(())
    });
    assert_eq!([daemon.plugin_pid("p"), daemon.plugin_pid("q")], pids);
    assert_problem(&daemon.request("GET", "/api/plugins/p/exit/1", &with_token, b""), 502);
    let crash = daemon.wait_event("p", "crashed", 1);
    assert!(crash["next_start_ms"].as_u64() > Some(1_800_000), "{crash}");
}

#[test]
fn what_cannot_change_is_named_with_when_it_will() {
    let mut daemon = daemon();
    daemon.set("server.workers", 3);
    daemon.set("protocol.message_bytes_max", 4096);
    daemon.set("kv.quota_bytes", 1);
    let lines = daemon.hang_up();
    for key in ["server.workers", "protocol.message_bytes_max", "kv.quota_bytes"] {
        let told = saying(&lines, &format!("{key} has changed, which takes effect at the next start"));
        assert_eq!(told.len(), 1, "{key}: {lines:?}");
        assert_eq!((&told[0]["level"], &told[0]["key"]), (&json!("warn"), &json!(key)));
    }
    let body = vec![b'x'; 10_000];
    assert_eq!(daemon.request("POST", "/api/plugins/p/mirror", &[], &body).status, 200);
    let daemon = daemon.restart();
    daemon.wait_ready("p");
    assert_eq!(daemon.request("POST", "/api/plugins/p/mirror", &[], &body).status, 413);
}

// Row: SIGHUP under load, and a bad file
#[test]
fn a_bad_file_keeps_the_old_configuration_and_says_why() {
    let daemon = daemon();
    let pid = daemon.plugin_pid("p");
    for (text, reasons) in [
        ("[server]\nworkers = 2\nworkrs = 3\n", ["line 3, column 1", "workrs"]),
        ("[http]\nrequest_timeout_ms = 0\n", ["line 2, column 22", "http.request_timeout_ms"]),
        ("[server\n", ["line 1", "toru.toml"]),
    ] {
        daemon.write_config(text);
        let lines = daemon.hang_up();
        let told = saying(&lines, "Configuration not reloaded");
        assert_eq!(told.len(), 1, "{text:?}: {lines:?}");
        assert_eq!(told[0]["level"], "error");
        let reason = told[0]["reason"].as_str().unwrap();
        assert!(reason.contains("toru.toml"), "{reason}");
        for part in reasons {
            assert!(reason.contains(part), "{part:?} in {reason}");
        }
        assert!(saying(&lines, "Configuration reloaded").is_empty(), "{lines:?}");
        assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    }
    assert_eq!(daemon.plugin_pid("p"), pid);
    assert_eq!(daemon.get("/api/plugins/p/x").json()["timeout_ms"], 3_600_000);
}

#[test]
fn a_plugin_whose_table_changed_gets_it_and_the_others_run_on() {
    let mut daemon = daemon();
    let q = daemon.plugin_pid("q");
    daemon.set("plugins.p.greeting", "\"hello\"");
    daemon.set("plugins.p.process.args", "[\"--again\"]");
    daemon.hang_up();
    daemon.wait_event("p", "ready", 2);
    assert_eq!(daemon.starts("p")[1]["arguments"], json!(["--again"]));
    let messages = daemon.messages("p", "lifecycle");
    let init = messages.iter().rfind(|message| message["payload"]["action"] == "init").unwrap();
    assert_eq!(init["payload"]["config"], json!({"greeting": "hello"}));
    assert_eq!(daemon.plugin_pid("q"), q);
    // The same file once more is no change.
    daemon.hang_up();
    assert_eq!(daemon.starts("p").len(), 2);
    let events = daemon.events("p");
    assert!(events.iter().all(|(kind, _)| kind != "crashed"), "{events:?}");
}

#[test]
fn a_table_of_no_plugin_is_told_of_once_at_the_start_and_at_each_reload() {
    const MESSAGE: &str = "tables for plugins that do not exist";
    let mut daemon = Stage::new()
        .set("plugins.qq.x", 1)
        .set("plugins.p.x", 1)
        .set("plugins.lost.process.nice", 5)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let lines = daemon.supervisor_log();
    let told = saying(&lines, MESSAGE);
    assert_eq!(told.len(), 1, "{lines:?}");
    assert_eq!((&told[0]["level"], &told[0]["ids"]), (&json!("warn"), &json!(["lost", "qq"])));
    daemon.set("plugins.third.x", 1);
    daemon.hang_up();
    wait_for("the second warning", || {
        let lines = daemon.supervisor_log();
        let told = saying(&lines, MESSAGE);
        (told.len() == 2).then(|| assert_eq!(told[1]["ids"], json!(["lost", "qq", "third"])))
    });
}

// Row: SIGHUP under load, and a bad file
#[test]
fn under_load_no_request_is_dropped() {
    let mut daemon = daemon();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let address = daemon.address();
        let done = &done;
        let clients: Vec<_> = (0..4)
            .map(|number| {
                scope.spawn(move || {
                    let stream = std::net::TcpStream::connect(address).unwrap();
                    stream.set_read_timeout(Some(toru_tests::DEADLINE)).unwrap();
                    let mut client = toru_tests::Client::new(stream);
                    let mut answered = 0;
                    while !done.load(Relaxed) || answered < 100 {
                        // Two at once on the wire, so that one is always with the plugin while the other is read.
                        let pair =
                            request_bytes("GET", &format!("/api/plugins/p/{number}"), &[], b"").repeat(2);
                        client.send(&pair).unwrap();
                        for _ in 0..2 {
                            let answer = client.response("GET").unwrap();
                            assert_eq!(answer.status, 200, "{answer:?}");
                            assert_eq!(answer.json()["path"], format!("/{number}"));
                            answered += 1;
                        }
                    }
                    answered
                })
            })
            .collect();
        for round in 0..12 {
            // Good files that change something, and bad ones in between.
            daemon.set("http.request_timeout_ms", 60_000 + round);
            daemon.set("plugins.q.round", round);
            if round % 3 == 2 {
                daemon.write_config("[http]\nrequest_timeout_ms = \"soon\"\n");
            }
            daemon.hang_up();
        }
        done.store(true, Relaxed);
        let answered: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(answered >= 400, "{answered}");
    });
    assert_eq!(daemon.starts("p").len(), 1);
    let reloads = saying(&daemon.supervisor_log(), "Configuration reloaded").len();
    let refusals = saying(&daemon.supervisor_log(), "Configuration not reloaded").len();
    assert_eq!((reloads, refusals), (8, 4));
}
