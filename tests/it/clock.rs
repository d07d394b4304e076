//! The wall clock jumps, and nobody minds: everything that waits goes by the monotonic clock.

use std::{fs, path::PathBuf, thread};

use serde_json::json;
use toru_tests::{Daemon, Stage, wait_for};

/// libfaketime, for programs with threads.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten().map(|entry| entry.path());
    folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|library| library.exists())
}

/// The newest year in the plugin's log.
fn year(daemon: &Daemon) -> i32 {
    daemon.get("/api/plugins/p/print");
    let line = wait_for("a line", || daemon.plugin_log("p").pop());
    line["timestamp"].as_str().expect("a time")[..4].parse().expect("a year")
}

// Row: wall clock jumps
#[test]
fn a_wall_clock_that_jumps_times_nothing_out_and_restarts_nothing() {
    let Some(library) = library() else {
        println!("skipped: no libfaketime here");
        return;
    };
    let stage = Stage::new();
    let clock = stage.root().join("clock");
    fs::write(&clock, "+0d\n").unwrap();
    let daemon = stage
        .environment("LD_PRELOAD", library)
        .environment("FAKETIME_TIMESTAMP_FILE", &clock)
        .environment("FAKETIME_NO_CACHE", "1")
        .environment("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .set("supervisor.health_interval_ms", 100)
        // An hour: a jump of a year goes over each of them.
        .set("http.request_timeout_ms", 3_600_000)
        .set("http.idle_timeout_ms", 3_600_000)
        .set("supervisor.stable_after_ms", 3_600_000)
        .faulty("p", &json!({}))
        .faulty("q", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    let now = year(&daemon);
    let mut kept = daemon.client();
    assert_eq!(kept.get("/api/plugins/p/x").status, 200);
    for (jump, expect) in [("+800d\n", now + 2), ("-800d\n", now - 3), ("+0d\n", now)] {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| daemon.get("/api/plugins/p/late/1500").status);
            daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
            fs::write(&clock, jump).unwrap();
            wait_for("the daemon to see another year", || {
                let seen = year(&daemon);
                ((seen - expect).abs() <= 1 && (seen == now) == (expect == now)).then_some(())
            });
            assert_eq!(waiting.join().unwrap(), 200);
        });
        assert_eq!(kept.get("/api/plugins/p/x").status, 200, "an idle connection stays");
        // A back-off that begins in one year ends in another.
        let starts = daemon.starts("q").len();
        assert_eq!(daemon.get("/api/plugins/q/exit/1").status, 502);
        wait_for("q again", || (daemon.starts("q").len() > starts).then_some(()));
        daemon.wait_ready("q");
    }
    assert_eq!(daemon.starts("p").len(), 1);
    let kinds: Vec<String> = daemon.events("p").into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["discovered", "started", "ready"]);
    let kinds: Vec<String> = daemon.events("q").into_iter().map(|(kind, _)| kind).collect();
    assert!(!kinds.contains(&"unresponsive".to_owned()), "{kinds:?}");
}
