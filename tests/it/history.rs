//! What the console draws: the last ten minutes, the last seconds, and who carries the load.

use std::thread;

use rustix::process::{Pid, kill_process};
use serde_json::{Value, json};
use toru_tests::{Daemon, Signal, Stage, wait_for};

use crate::control::{follow, next_object};
use crate::http::assert_problem;

fn daemon() -> Daemon {
    let daemon = Stage::new().plugin("echo", "toru-plugin-echo").start();
    daemon.wait_running("echo");
    daemon
}

fn history(daemon: &Daemon) -> Value {
    daemon.control().get("/v1/plugins/echo/history").json()
}

fn sum(column: &Value) -> f64 {
    column.as_array().expect("a column").iter().filter_map(Value::as_f64).sum()
}

fn of<'a>(snapshot: &'a Value, id: &str) -> &'a Value {
    snapshot["plugins"].as_array().unwrap().iter().find(|plugin| plugin["id"] == id).expect("a plugin")
}

#[test]
fn seconds_are_kept_while_nobody_watches() {
    let daemon = daemon();
    for _ in 0..10 {
        assert_eq!(daemon.get("/api/plugins/echo/").status, 200);
    }
    assert_eq!(daemon.get("/api/plugins/echo/status/503").status, 503);
    // Each look takes a sample, so the first that is not empty is followed by nothing for a while.
    let kept = wait_for("a second with requests", || {
        let kept = history(&daemon);
        (sum(&kept["requests_per_s"]) > 0.0).then_some(kept)
    });
    assert_eq!(kept["plugin"], "echo");
    assert!(sum(&kept["errors_per_s"]) > 0.0, "{kept}");
    assert!(sum(&kept["p99_us"]) >= sum(&kept["p50_us"]) && sum(&kept["p50_us"]) > 0.0, "{kept}");
    assert!(
        kept["rss_bytes"].as_array().unwrap().iter().all(|bytes| bytes.as_u64() > Some(100_000)),
        "{kept}"
    );
    let rows = kept["unix_ms"].as_array().unwrap().len();
    for (name, column) in kept.as_object().unwrap().iter().filter(|(name, _)| *name != "plugin") {
        assert_eq!(column.as_array().unwrap().len(), rows, "{name}");
    }
    assert_problem(&daemon.control().get("/v1/plugins/nobody/history"), 404);
    assert_problem(&daemon.control().get("/v1/stream?history=nobody"), 404);
}

#[test]
fn a_stream_begins_with_the_past_when_asked_and_tells_the_last_seconds() {
    let daemon = daemon();
    daemon.get("/api/plugins/echo/");
    wait_for("a second with requests", || (sum(&history(&daemon)["requests_per_s"]) > 0.0).then_some(()));
    for history in ["echo", "*"] {
        let mut stream = follow(&daemon, &format!("/v1/stream?interval_ms=100&history={history}"));
        let past = next_object(&mut stream);
        assert_eq!(past["history"]["plugin"], "echo");
        assert!(sum(&past["history"]["requests_per_s"]) > 0.0, "{past}");
        assert_eq!(next_object(&mut stream)["window_ms"], 10_000);
        assert!(next_object(&mut stream)["plugins"].is_array(), "the past comes once");
    }
    let mut stream = follow(&daemon, "/v1/stream?interval_ms=100");
    let mut snapshot = || next_object(&mut stream);
    daemon.get("/api/plugins/echo/delay/30");
    let busy = wait_for("the latency of a slow answer", || {
        let snapshot = snapshot();
        (of(&snapshot, "echo")["p99_us"].as_u64() >= Some(30_000)).then_some(snapshot)
    });
    assert!(of(&busy, "echo")["sample"]["unix_ms"].is_u64(), "{busy}");
    wait_for("a window without requests", || of(&snapshot(), "echo")["p99_us"].is_null().then_some(()));
    let total = daemon.status("echo").unwrap();
    assert!(total["p99_us"].as_u64() >= Some(30_000), "elsewhere it is of the whole life: {total}");
    assert!(total.get("by_worker").is_none() && total.get("limits").is_none(), "{total}");
}

/// A process's end is no end of its plugin's past.
#[test]
fn a_crash_does_not_cut_the_past() {
    let daemon = daemon();
    daemon.get("/api/plugins/echo/");
    let before = wait_for("a second with requests", || {
        let kept = history(&daemon);
        (sum(&kept["requests_per_s"]) > 0.0).then_some(kept)
    });
    kill_process(daemon.plugin_pid("echo"), Signal::KILL).expect("it runs");
    daemon.wait_status("echo", "again", |status| status["restarts"] == 1 && status["state"] == "running");
    daemon.get("/api/plugins/echo/");
    let after = wait_for("another second with requests", || {
        let kept = history(&daemon);
        (sum(&kept["requests_per_s"]) > sum(&before["requests_per_s"])).then_some(kept)
    });
    let first = &before["unix_ms"][0];
    // The wall clock is steered while tests run.
    let apart = after["unix_ms"][0].as_i64().unwrap() - first.as_i64().unwrap();
    assert!(apart.abs() < 5_000, "{first} {after}");
}

#[test]
fn who_carries_the_load_and_what_a_plugin_may_use() {
    let daemon = Stage::new()
        .plugin("echo", "toru-plugin-echo")
        .legacy_rust("old")
        .set("plugins.echo.process", "{ memory_bytes_max = 4000000000, open_files_max = 99, nice = 3 }")
        .set("protocol.legacy_connections", 2)
        .start();
    daemon.wait_running("echo");
    daemon.wait_running("old");
    let address = daemon.address();
    let held: Vec<_> = (0..3)
        .map(|_| {
            thread::spawn(move || {
                let stream = std::net::TcpStream::connect(address).expect("it listens");
                toru_tests::Client::new(stream).get("/api/plugins/echo/delay/1500").status
            })
        })
        .collect();
    let mut stream = follow(&daemon, "/v1/stream?interval_ms=50");
    // A request is counted a moment before the connection that is made for it.
    let snapshot =
        wait_for("three requests with the plugin, over one connection for each worker in use", || {
            let snapshot = next_object(&mut stream);
            let workers = snapshot["workers"].as_array().unwrap();
            let in_flight: u64 = workers.iter().filter_map(|worker| worker["in_flight"].as_u64()).sum();
            let shares = of(&snapshot, "echo")["by_worker"].as_array().unwrap();
            let connected = |share: &Value| share["connections"] == u64::from(share["in_flight"] != 0);
            (in_flight == 3 && shares.iter().all(connected)).then_some(snapshot)
        });
    let echo = of(&snapshot, "echo");
    assert_eq!(echo["by_worker"].as_array().unwrap().len(), 2);
    assert_eq!(
        echo["limits"],
        json!({
            "in_flight_max": 1024, "timeout_ms": 30_000, "message_bytes_max": 1_048_576, "kv_bytes_max": 67_108_864,
            "memory_bytes_max": 4_000_000_000u64, "open_files_max": 99, "nice": 3,
        })
    );
    assert_eq!(of(&snapshot, "old")["limits"]["in_flight_max"], 2);
    for held in held {
        assert_eq!(held.join().unwrap(), 200);
    }
    // Events were written.
    let store = &snapshot["store"];
    assert_eq!(store["writable"], true, "{store}");
    let stored = wait_for("a commit", || {
        let snapshot = next_object(&mut stream);
        (snapshot["store"]["commits"].as_u64() > Some(0)).then_some(snapshot)
    });
    assert!(
        stored["store"]["last_commit_us"].is_u64() && stored["store"]["p99_commit_us"].is_u64(),
        "{stored}"
    );
    wait_for("nothing in flight", || {
        let snapshot = next_object(&mut stream);
        let shares = of(&snapshot, "echo")["by_worker"].as_array().unwrap().clone();
        shares.iter().all(|share| share["in_flight"] == 0 && share["queued"] == 0).then_some(())
    });
}

#[test]
fn the_core_s_own_log_is_followed_over_the_control_socket() {
    let daemon = daemon();
    let mut log = follow(&daemon, "/v1/logs?follow=1&page_size=1000");
    let said = |line: &Value, message: &str| line["message"] == message;
    loop {
        let line = next_object(&mut log);
        assert!(line["component"].is_string(), "{line}");
        if said(&line, "Listening") {
            break;
        }
    }
    daemon.control().request("POST", "/v1/plugins/echo/stop", &[], b"");
    while !said(&next_object(&mut log), "Plugin stopped") {}
    let page = daemon.control().get("/v1/logs?page_size=1").json();
    assert_eq!(page["logs"].as_array().unwrap().len(), 1, "{page}");
}

#[test]
fn a_stream_tells_the_workers_past_at_its_begin() {
    let daemon = daemon();
    daemon.get("/api/plugins/echo/");
    wait_for("a second with requests", || (sum(&history(&daemon)["requests_per_s"]) > 0.0).then_some(()));
    let mut stream = follow(&daemon, "/v1/stream?interval_ms=50&history=*");
    while next_object(&mut stream).get("history").is_none() {}
    let past = |snapshot: &Value| {
        let workers = snapshot["workers"].as_array().unwrap().clone();
        workers
            .iter()
            .filter(|w| w["past_requests_per_s"].is_array())
            .map(|w| sum(&w["past_requests_per_s"]))
            .sum::<f64>()
    };
    assert!(past(&next_object(&mut stream)) > 0.0);
    assert!(next_object(&mut stream)["workers"][0].get("past_requests_per_s").is_none(), "once");
    let mut stream = follow(&daemon, "/v1/stream?interval_ms=50&history=echo");
    assert!(next_object(&mut stream).get("history").is_some());
    assert_eq!(past(&next_object(&mut stream)), 0.0, "nobody asked for theirs");
}

#[test]
fn a_stream_tells_the_end_of_stderr_when_it_is_another() {
    let talker = "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\n\
        echo '{\"id\":\"talker\",\"name\":\"T\",\"version\":\"1.0.0\",\"icon\":\"x\",\"route\":\"/talker\",\"author\":null}'\n\
        exit 0\nfi\necho first >&2\nwhile [ ! -e \"${0%/*}/go\" ]; do sleep 0.05; done\necho second >&2\nexec sleep 60\n";
    let daemon = Stage::new().script("talker", talker).set("supervisor.ready_timeout_ms", 60_000).start();
    daemon.wait_event("talker", "started", 1);
    let mut stream = follow(&daemon, "/v1/stream?interval_ms=50");
    let said = |stream: &mut _, lines: Value| {
        wait_for(&format!("{lines} on the stream"), || {
            (of(&next_object(stream), "talker")["stderr"] == lines).then_some(())
        });
    };
    said(&mut stream, json!(["first"]));
    for _ in 0..3 {
        assert!(of(&next_object(&mut stream), "talker").get("stderr").is_none(), "it is known");
    }
    std::fs::write(daemon.root().join("plugins/go"), "").unwrap();
    said(&mut stream, json!(["first", "second"]));
    let mut other = follow(&daemon, "/v1/stream?interval_ms=50");
    assert_eq!(of(&next_object(&mut other), "talker")["stderr"], json!(["first", "second"]));
    std::fs::remove_file(daemon.root().join("plugins/go")).unwrap();
    // It never is ready, which is nothing to wait for here.
    let pid = daemon.status("talker").unwrap()["pid"].as_i64().expect("it has started");
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    kill_process(pid, Signal::KILL).expect("it runs");
    said(&mut stream, json!(["first"]));
    assert!(daemon.status("talker").unwrap().get("stderr").is_none(), "on the stream alone");
}

#[test]
fn crashes_in_a_row_are_told_and_forgotten() {
    let daemon = daemon();
    assert_eq!(daemon.status("echo").unwrap()["failures"], 0);
    for row in 1..=2 {
        kill_process(daemon.plugin_pid("echo"), Signal::KILL).expect("it runs");
        daemon
            .wait_status("echo", "again", |status| status["failures"] == row && status["state"] == "running");
    }
    assert_eq!(daemon.control().request("POST", "/v1/plugins/echo/reset-failed", &[], b"").status, 200);
    daemon.wait_status("echo", "forgiven", |status| status["failures"] == 0);
}
