//! The same behaviour on io_uring and on epoll, chosen or forced.

use std::thread;

use serde_json::json;
use toru_tests::{Daemon, IO_URING, Stage, has_program, refuse};

use crate::http::assert_problem;

/// A bit of everything that goes through a driver: accept, read, write, connect, timers, cancels.
fn behaves(daemon: &Daemon) {
    for id in ["p", "old"] {
        daemon.wait_ready(id);
    }
    let body = vec![b'x'; 300_000];
    thread::scope(|scope| {
        for number in 0..20 {
            let (daemon, body) = (&daemon, &body);
            scope.spawn(move || {
                let mut client = daemon.client();
                for round in 0..10 {
                    let path = format!("/{number}/{round}");
                    let answer = client.get(&format!("/api/plugins/p{path}"));
                    assert_eq!(answer.json()["path"], *path);
                }
                let answer = client.request("POST", "/api/plugins/p/mirror", &[], body);
                assert_eq!(answer.body.len(), body.len());
                assert_eq!(client.get("/api/plugins/old/x").json()["path"], "/x");
            });
        }
    });
    assert_problem(&daemon.get("/api/plugins/p/never"), 504);
    assert_problem(&daemon.get("/api/plugins/p/exit/1"), 502);
    daemon.wait_ready("p");
}

fn stage() -> Stage {
    Stage::new().set("http.request_timeout_ms", 2_000).faulty("p", &json!({})).legacy_rust("old")
}

/// Lines of stderr that warn about the ring.
fn warnings(daemon: &Daemon) -> Vec<String> {
    daemon.stderr.containing("io_uring")
}

fn ring_is_allowed() -> bool {
    // The sysctl is younger than the ring; without it the ring is allowed.
    let text = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    text.map_or(true, |text| text.trim() == "0")
}

#[test]
fn epoll_when_told_so() {
    let mut daemon = stage().driver("epoll").start();
    behaves(&daemon);
    assert!(!has_ring(&daemon));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(
        daemon.stderr.containing("falling back").is_empty(),
        "nothing fell back: {:?}",
        daemon.stderr.all()
    );
}

#[test]
fn io_uring_when_told_so() {
    if !ring_is_allowed() {
        println!("skipped: this kernel has io_uring switched off");
        return;
    }
    let mut daemon = stage().driver("io_uring").start();
    behaves(&daemon);
    assert!(has_ring(&daemon));
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// Whether the daemon holds a ring.
fn has_ring(daemon: &Daemon) -> bool {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero()))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .any(|target| target.to_string_lossy().contains("io_uring"))
}

// Row: io_uring refused
#[test]
fn epoll_with_one_warning_where_io_uring_is_refused() {
    let mut daemon = stage().driver("auto").under(refuse(IO_URING)).start();
    behaves(&daemon);
    assert!(!has_ring(&daemon));
    assert_eq!(daemon.terminate().code(), Some(0));
    let warned = warnings(&daemon);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("epoll"), "{warned:?}");
}

#[test]
fn io_uring_insisted_on_and_refused_is_an_error() {
    let printed = stage().driver("io_uring").under(refuse(IO_URING)).serve_output();
    assert!(!printed.status.success());
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(stderr.contains("io_uring"), "{stderr}");
}

// Row: low locked-memory limit
#[test]
fn a_low_limit_on_locked_memory_is_no_obstacle() {
    if !has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let daemon = stage().driver("auto").under(["prlimit", "--memlock=65536"]).start();
    behaves(&daemon);
}
