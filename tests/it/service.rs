//! What a service manager hears, and what a terminal shows.

use std::{os::unix::net::UnixDatagram, process::Command, time::Instant};

use rustix::process::Signal;
use serde_json::json;
use toru_tests::{DEADLINE, Daemon, Stage, binary, has_program, output};

/// The next message that holds `part`; those before it are dropped.
#[track_caller]
fn hear(socket: &UnixDatagram, part: &str) -> String {
    let began = Instant::now();
    let mut heard = Vec::new();
    while began.elapsed() < DEADLINE {
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).unwrap_or_else(|error| panic!("{error}; after {heard:?}"));
        let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
        if text.lines().any(|line| line.starts_with(part)) {
            return text;
        }
        heard.push(text);
    }
    panic!("waited for {part}: {heard:?}")
}

fn manager(stage: &Stage) -> UnixDatagram {
    let socket = UnixDatagram::bind(stage.root().join("notify")).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

#[test]
fn the_service_manager_hears_ready_status_watchdog_reload_and_stop() {
    let stage = Stage::new().faulty("p", &json!({})).faulty("q", &json!({"do": "never-ready"}));
    let socket = manager(&stage);
    let path = stage.root().join("notify");
    let mut daemon = stage.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "300000").start();
    hear(&socket, "READY=1");
    daemon.wait_ready("p");
    hear(&socket, "STATUS=2 plugins, 1 running");
    let beat = hear(&socket, "WATCHDOG=1");
    assert!(beat.contains("STATUS="), "one message says both: {beat}");
    let environment = &daemon.starts("p")[0]["environment"];
    assert!(environment["NOTIFY_SOCKET"].is_null() && environment["WATCHDOG_USEC"].is_null());

    daemon.signal(Signal::HUP);
    let reloading = hear(&socket, "RELOADING=1");
    let usec =
        reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("in one message");
    assert!(usec.parse::<u64>().unwrap() > 0);
    hear(&socket, "READY=1");

    daemon.signal(Signal::TERM);
    hear(&socket, "STOPPING=1");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn reloads_without_end_keep_no_beat_back() {
    let stage = Stage::new();
    let socket = manager(&stage);
    let path = stage.root().join("notify");
    let daemon = stage.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "600000").start();
    hear(&socket, "READY=1");
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    let (began, mut beats) = (Instant::now(), 0);
    while beats < 3 {
        assert!(began.elapsed() < DEADLINE, "{beats} beats");
        daemon.signal(Signal::HUP);
        let mut text = String::new();
        while !text.contains("READY=1") {
            let mut bytes = [0; 4096];
            let count = socket.recv(&mut bytes).expect("the end of the reload");
            text = String::from_utf8_lossy(&bytes[..count]).into_owned();
            beats += u32::from(text.contains("WATCHDOG=1"));
        }
    }
}

/// What `toru COMMAND` shows on a terminal.
fn on_a_terminal(daemon: &Daemon, command: &str, environment: &[(&str, &str)]) -> String {
    let mut line = Command::new("script");
    line.args(["-qec", &format!("{} {command}", binary("toru").display()), "/dev/null"])
        .env("TORU_CONTROL_SOCKET", daemon.root().join("control.sock"))
        .env("HOME", daemon.root().join("home"))
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .envs(environment.iter().copied());
    let printed = output(&mut line);
    assert_eq!(printed.status.code(), Some(0), "{command}: {printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

#[test]
fn colours_are_for_terminals_alone_and_no_color_turns_them_off() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let piped = daemon.toru("status", &[]);
    let piped = String::from_utf8(piped.stdout).unwrap();
    assert!(piped.starts_with("ID") && piped.contains("running") && !piped.contains('\x1b'), "{piped:?}");
    if !has_program("script") {
        println!("skipped: no script here");
        return;
    }
    let shown = on_a_terminal(&daemon, "status", &[]);
    assert!(shown.contains("\x1b[32mrunning\x1b[0m"), "{shown:?}");
    let plain = on_a_terminal(&daemon, "status", &[("NO_COLOR", "1")]);
    assert!(plain.contains("running") && !plain.contains('\x1b'), "{plain:?}");
    for command in ["plugin show p", "events", "plugin logs p"] {
        let shown = on_a_terminal(&daemon, command, &[("NO_COLOR", "1")]);
        assert!(!shown.contains('\x1b'), "{command}: {shown:?}");
    }
    let json = on_a_terminal(&daemon, "status --json", &[]);
    assert!(serde_json::from_str::<serde_json::Value>(json.trim()).is_ok(), "{json:?}");
}
