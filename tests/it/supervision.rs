//! Who runs, since when, and what is said about it.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toru_tests::{
    Daemon, Stage, ending, has_program, output, stage_faulty, wait_for, wait_within, write_executable,
};

use crate::{http::assert_problem, kv::Unmount};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .permissions()
        .mode()
        & 0o7777
}

/// Lines of the supervisor's log and of stderr that speak of `word`.
fn complaints(daemon: &Daemon, word: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        daemon.supervisor_log().iter().map(Value::to_string).chain(daemon.stderr.all()).collect();
    lines.retain(|line| line.contains(word));
    lines
}

// Row: metadata that hangs, is huge, is invalid, repeats an id or route
#[test]
fn a_plugin_that_cannot_be_described_is_skipped_with_file_and_reason() {
    let stage = Stage::new()
        .faulty("hangs", &json!({"do": "metadata-hangs"}))
        .faulty("huge", &json!({"do": "metadata-huge"}))
        .faulty("invalid", &json!({"do": "metadata-invalid"}))
        .faulty("exits", &json!({"do": "metadata-exit"}))
        .faulty("noroute", &json!({"metadata": {"route": "no-slash"}}))
        .faulty("noversion", &json!({"metadata": {"version": null}}))
        .faulty("badid", &json!({"id": "not an id"}))
        .faulty("reserved", &json!({"id": "route"}))
        .faulty("major", &json!({"protocol": "2.0"}))
        .faulty("good", &json!({}));
    let daemon = stage.start();
    daemon.wait_ready("good");
    for (name, reason) in [
        ("hangs", "time"),
        ("huge", "65536"),
        ("invalid", ""),
        ("exits", "4"),
        ("noroute", "route"),
        ("noversion", "version"),
        ("badid", "id"),
        ("reserved", "id"),
        ("major", "protocol"),
    ] {
        let file = format!("{name}.binary");
        let lines = wait_for(&format!("a complaint about {file}"), || {
            Some(complaints(&daemon, &file)).filter(|lines| !lines.is_empty())
        });
        assert!(lines.iter().any(|line| line.contains(reason)), "{name}: {reason:?} in {lines:?}");
        assert!(lines.iter().all(|line| line.matches(&file).count() == 1), "the path once: {lines:?}");
        assert!(daemon.starts(name).is_empty(), "{name} was started");
    }
    wait_for("what was asked to be gone", || (daemon.processes().len() == 1).then_some(()));
    assert_eq!(daemon.get("/api/plugins/good/x").status, 200);
}

// Row: metadata that hangs, is huge, is invalid, repeats an id or route
#[test]
fn of_duplicates_the_first_in_name_order_wins() {
    let daemon = Stage::new()
        .faulty("a", &json!({"id": "same", "metadata": {"route": "/one"}}))
        .faulty("b", &json!({"id": "same", "metadata": {"route": "/two"}}))
        .faulty("c", &json!({"metadata": {"route": "/one"}}))
        .faulty("d", &json!({}))
        .start();
    for file in ["b.binary", "c.binary"] {
        wait_for(&format!("a complaint about {file}"), || {
            (!complaints(&daemon, file).is_empty()).then_some(())
        });
    }
    // A later one that described itself sooner may have run for a moment; it had to give way.
    wait_for("the first to run", || (daemon.starts("a").len() == 1).then_some(()));
    daemon.wait_ready("same");
    daemon.wait_ready("d");
    wait_for("the others to be gone", || (daemon.processes().len() == 2).then_some(()));
    assert_eq!(daemon.get("/api/plugins/route/one/x").status, 200);
    assert_problem(&daemon.get("/api/plugins/route/two/x"), 404);
    assert_problem(&daemon.get("/api/plugins/c/x"), 404);
    assert!(complaints(&daemon, "a.binary: ").is_empty());
}

// Row: cannot run at all: 126, 127, wrong architecture, no run bit
#[test]
fn what_cannot_run_is_one_clear_error_and_no_loop() {
    let stage = Stage::new()
        .script("text", "this is no program\n")
        .script("lost", "#!/no/such/interpreter\n")
        .faulty("good", &json!({}));
    let plain = stage.plugins().join("plain.binary");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    // A program for RISC-V: magic, class and byte order, and at 18 the machine.
    let foreign = stage.plugins().join("foreign.binary");
    fs::write(&foreign, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0 and so on").unwrap();
    fs::set_permissions(&foreign, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(stage.plugins().join("folder.binary")).unwrap();
    symlink("/nowhere", stage.plugins().join("dangling.binary")).unwrap();
    let pipe = stage.plugins().join("pipe.binary");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::XUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let daemon = stage.start();
    daemon.wait_ready("good");
    for (name, reason) in [
        ("text", "#!"),
        ("lost", "interpreter"),
        ("plain", "chmod +x"),
        ("foreign", "processor"),
        ("folder", "is a folder"),
        ("dangling", "leads to nothing"),
        ("pipe", "is a pipe"),
    ] {
        let file = format!("{name}.binary");
        let lines = wait_for(&format!("a complaint about {file}"), || {
            Some(complaints(&daemon, &file)).filter(|lines| !lines.is_empty())
        });
        assert!(lines.iter().all(|line| line.contains(reason)), "{name}: {reason:?} in {lines:?}");
    }
    // What was to be told of any of them has been told by now.
    wait_for("the first scan to end", || (daemon.get("/readyz").status == 200).then_some(()));
    daemon.hang_up();
    for name in ["text", "lost", "plain", "foreign", "folder", "dangling", "pipe"] {
        let file = format!("/{name}.binary");
        let skipped = daemon.supervisor_log().into_iter().filter(|line| {
            line["message"] == "Plugin skipped" && line["file"].as_str().unwrap().ends_with(&file)
        });
        assert_eq!(skipped.count(), 2, "{name}: at the start and at the rescan, once each");
    }
    assert_eq!(daemon.get("/api/plugins/good/x").status, 200);
    let checked = daemon.toru("check", &["--plugins-dir", daemon.plugins().to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(78));
    let stderr = String::from_utf8(checked.stderr).unwrap();
    assert!(stderr.contains("pipe.binary: it is a pipe") && stderr.contains("dangling.binary"), "{stderr}");
}

// Row: cannot run at all: 126, 127, wrong architecture, no run bit
#[test]
fn a_plugin_that_can_be_described_and_not_run_is_disabled_at_once() {
    let metadata = json!({
        "id": "p", "name": "P", "version": "1", "icon": "x", "route": "/p", "protocol": "1.1",
    });
    for code in [126, 127] {
        // It describes itself and then says what a shell says of a command it cannot execute.
        let script = format!(
            "#!/bin/sh\necho run >> \"$0.runs\"\n\
             if [ \"$1\" = --metadata ]; then echo '{metadata}'; exit 0; fi\nexit {code}\n"
        );
        let daemon = Stage::new().script("p", &script).start();
        daemon.wait_event("p", "crashed", 1);
        // Each worker hears of it in its own time, and each of these may come to another one.
        wait_for("p to be given up", || {
            let answer = daemon.get("/api/plugins/p/x");
            (answer.status == 404 && answer.text().contains("was given up")).then_some(())
        });
        let told = daemon.wait_event("p", "disabled_after_crashes", 1);
        let (exit, reason) = (told["exit"].as_str().unwrap(), told["reason"].as_str().unwrap());
        assert!(exit == format!("exit code {code}") && reason.len() > 10, "in words: {told}");
        let runs = fs::read_to_string(daemon.plugins().join("p.binary.runs")).unwrap();
        assert_eq!(runs.lines().count(), 2, "--metadata, and one start");
        // Stopped, it is as any other that is; and the next run knows why it does not start.
        assert!(daemon.toru("plugin", &["stop", "p"]).status.success());
        wait_for("p to be stopped", || (daemon.get("/api/plugins/p/x").status == 503).then_some(()));
        let daemon = daemon.restart();
        wait_for("p to be known as given up", || {
            (daemon.get("/api/plugins/p/x").status == 404).then_some(())
        });
        let shown = String::from_utf8(daemon.toru("status", &[]).stdout).unwrap();
        assert!(shown.contains("failed"), "{shown}");
        let shown = String::from_utf8(daemon.toru("plugin", &["show", "p"]).stdout).unwrap();
        assert!(
            shown.contains("failures  1") && shown.contains(&format!("last_exit  exit code {code}")),
            "{shown}"
        );
    }
}

#[test]
fn a_plugin_gets_its_environment_and_its_init() {
    let daemon = Stage::new()
        .set("plugins.p.greeting", "\"hello\"")
        .set("plugins.p.numbers", "[1, 2]")
        .set("plugins.p.process.env", "{ FAULTY_EXTRA = \"yes\" }")
        .set("plugins.p.process.args", "[\"--verbose\"]")
        .faulty("p", &json!({}))
        .faulty("old", &json!({"protocol": "1.0"}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_running("old");
    let socket = daemon.root().join("s/p.sock");
    let start = &daemon.starts("p")[0];
    let environment = &start["environment"];
    assert_eq!(environment["TORU_PLUGIN_SOCKET"], json!(socket));
    assert_eq!(environment["TORU_PLUGIN_ID"], "p");
    assert_eq!(environment["FAULTY_EXTRA"], "yes");
    assert_eq!(start["arguments"], json!(["--verbose"]));
    assert_eq!(daemon.starts("old")[0]["environment"]["FAULTY_EXTRA"], json!(null), "for p alone");
    let instance = environment["TORU_INSTANCE_ID"].as_str().unwrap().to_owned();
    assert!(instance.len() >= 16, "{instance}");

    let lifecycle = daemon.messages("p", "lifecycle");
    let init = &lifecycle[0];
    let payload = &init["payload"];
    let timestamp = init["timestamp"].as_str().unwrap();
    assert!(timestamp.len() == 24 && timestamp.ends_with('Z'), "{init}");
    for (key, value) in [
        ("type", json!("lifecycle")),
        ("action", json!("init")),
        ("instance_id", json!(instance)),
        ("plugin_socket", json!(socket)),
        ("log_path", json!(daemon.root().join("log/plugins/p.log"))),
        ("protocol", json!("1.1")),
        ("plugin_id", json!("p")),
        ("max_message_bytes", json!(1_048_576)),
        ("config", json!({"greeting": "hello", "numbers": [1, 2]})),
    ] {
        assert_eq!(payload[key], value, "{key} in {init}");
    }
    // Also before anybody has written into it.
    assert!(daemon.root().join("log/plugins").is_dir());
    let data = payload["data_dir"].as_str().unwrap();
    assert!(data.starts_with(daemon.root().to_str().unwrap()), "{data}");
    assert!(Path::new(data).is_dir(), "{data}");

    // A 1.0 plugin is told what 1.0 knows, and no more.
    let init = wait_for("init of old", || daemon.messages("old", "lifecycle").into_iter().next());
    let mut keys: Vec<&String> = init["payload"].as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["action", "instance_id", "log_path", "plugin_socket", "type"]);

    let daemon = daemon.restart();
    daemon.wait_ready("p");
    let again = &daemon.starts("p")[1]["environment"]["TORU_INSTANCE_ID"];
    assert_eq!(*again, instance, "stable for this installation");
}

#[test]
fn a_plugin_gets_no_descriptor_that_the_daemon_was_started_with() {
    let stage = Stage::new().faulty("p", &json!({}));
    let file = stage.root().join("inherited");
    fs::write(&file, "a secret").expect("the stage can be written");
    let hand_over = format!("exec 9< {0} 120>> {0}; exec \"$@\"", file.display());
    let daemon = stage.under(["bash", "-c", &*hand_over, "bash"]).start();
    daemon.wait_ready("p");
    let open = |pid: Pid| -> Vec<PathBuf> {
        let entries = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).expect("it lives").flatten();
        entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    };
    let file = fs::canonicalize(file).expect("it is there");
    assert!(open(daemon.pid()).contains(&file), "the daemon was started with it");
    let plugin = open(daemon.plugin_pid("p"));
    assert!(!plugin.contains(&file), "{plugin:?}");
}

#[test]
fn sockets_are_for_their_owner_alone() {
    let daemon = Stage::new().faulty("p", &json!({})).legacy_python("python").start();
    daemon.wait_ready("p");
    daemon.wait_ready("python");
    let sockets = daemon.root().join("s");
    assert_eq!(mode(&sockets), 0o700);
    for socket in [sockets.join("p.sock"), sockets.join("python.sock")] {
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
        assert_eq!(mode(&socket), 0o600, "{}", socket.display());
    }
}

#[test]
fn a_socket_directory_that_is_a_link_is_refused() {
    let stage = Stage::new().faulty("p", &json!({}));
    let elsewhere = stage.root().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, stage.root().join("s")).unwrap();
    let printed = stage.serve_output();
    assert!(!printed.status.success());
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(stderr.contains("/s") && stderr.contains("link"), "{stderr}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[test]
fn a_socket_directory_open_to_others_is_closed_or_refused() {
    let stage = Stage::new().faulty("p", &json!({}));
    let sockets = stage.root().join("s");
    fs::create_dir(&sockets).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).unwrap();
    let daemon = stage.start();
    daemon.wait_ready("p");
    assert_eq!(mode(&sockets), 0o700);
}

#[test]
fn a_socket_directory_that_is_removed_while_plugins_run_is_made_anew() {
    let daemon = Stage::new()
        .set("supervisor.health_interval_ms", 200)
        .faulty("p", &json!({}))
        .legacy_python("python")
        .start();
    let sockets = daemon.root().join("s");
    for id in ["p", "python"] {
        daemon.wait_ready(id);
    }
    fs::remove_dir_all(&sockets).unwrap();
    for id in ["p", "python"] {
        daemon.wait_status(id, "a fresh process", |status| {
            status["restarts"] == 1 && status["state"] == "running"
        });
        wait_for("an answer", || (daemon.get(&format!("/api/plugins/{id}/x")).status == 200).then_some(()));
        assert_eq!(daemon.status(id).unwrap()["failures"], 0);
        let events = daemon.events(id);
        assert!(!events.iter().any(|(kind, _)| kind == "crashed"), "{events:?}");
        assert_eq!(mode(&sockets.join(format!("{id}.sock"))), 0o600);
    }
    assert_eq!(mode(&sockets), 0o700);
    assert!(!complaints(&daemon, "made anew").is_empty());
    // Held as the first one was.
    let second = Stage::new().socket_dir(&sockets).serve_output();
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && stderr.contains("another toru"), "{stderr}");
}

#[test]
fn a_socket_directory_that_is_replaced_while_plugins_run_gets_no_socket() {
    let daemon = Stage::new().set("supervisor.backoff_ms", "[50]").faulty("p", &json!({})).start();
    let (sockets, evil) = (daemon.root().join("s"), daemon.root().join("evil"));
    daemon.wait_ready("p");
    fs::remove_dir_all(&sockets).unwrap();
    fs::create_dir(&evil).unwrap();
    symlink(&evil, &sockets).unwrap();
    let printed = daemon.toru("plugin", &["restart", "p"]);
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(!printed.status.success() && stderr.contains("is a symbolic link; remove it"), "{stderr}");
    let status = daemon.wait_status("p", "put off", |status| status["state"] == "deferred");
    assert_eq!(status["failures"], 0);
    assert_eq!(fs::read_dir(&evil).unwrap().count(), 0);
    // Ours and open to others: closed, and said once.
    fs::remove_file(&sockets).unwrap();
    fs::create_dir(&sockets).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).unwrap();
    daemon.wait_ready("p");
    assert_eq!(mode(&sockets), 0o700);
    let told = wait_for("a warning", || complaints(&daemon, "open to others").pop());
    assert!(told.contains("Socket folder"), "{told}");
}

// Row: its socket path is a symbolic link or another user's
#[test]
fn a_socket_path_that_is_a_link_is_refused_and_its_target_untouched() {
    let stage = Stage::new().faulty("p", &json!({})).faulty("q", &json!({}));
    let precious = stage.root().join("precious");
    fs::write(&precious, "do not touch").unwrap();
    let sockets = stage.root().join("s");
    fs::create_dir(&sockets).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&precious, sockets.join("p.sock")).unwrap();
    let daemon = stage.start();
    daemon.wait_ready("q");
    let told = daemon.wait_event("p", "crashed", 1);
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("p.sock") && reason.contains("link"), "{told}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "do not touch");
    assert!(sockets.join("p.sock").is_symlink(), "nor is the link");
    assert_ne!(daemon.get("/api/plugins/p/x").status, 200);
    assert!(daemon.starts("p").is_empty());
}

#[test]
fn a_stale_socket_is_no_obstacle() {
    let stage = Stage::new().faulty("p", &json!({})).legacy_rust("old");
    let sockets = stage.root().join("s");
    fs::create_dir(&sockets).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700)).unwrap();
    for id in ["p", "old"] {
        drop(std::os::unix::net::UnixListener::bind(sockets.join(format!("{id}.sock"))).unwrap());
    }
    let daemon = stage.start();
    daemon.wait_ready("p");
    daemon.wait_ready("old");
}

#[test]
fn a_socket_path_too_long_is_a_clear_error_at_start() {
    let stage = Stage::new().faulty("p", &json!({}));
    let long = stage.root().join("x".repeat(100));
    let printed = stage.socket_dir(long).serve_output();
    assert!(!printed.status.success());
    let stderr = String::from_utf8_lossy(&printed.stderr);
    assert!(stderr.contains("107"), "{stderr}");
}

#[test]
fn stopping_asks_first_and_answers_what_is_in_flight() {
    let mut daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    thread::scope(|scope| {
        let daemon = &daemon;
        let waiting = scope.spawn(move || daemon.get("/api/plugins/p/late/700"));
        daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
        daemon.signal(Signal::TERM);
        assert_eq!(waiting.join().unwrap().status, 200);
    });
    let status = daemon.wait();
    assert_eq!(status.code(), Some(0), "{}", ending(status));
    let shutdown = daemon
        .messages("p", "lifecycle")
        .into_iter()
        .find(|message| message["payload"]["action"] == "shutdown")
        .expect("it was asked");
    assert!(shutdown["payload"]["deadline_ms"].is_u64(), "{shutdown}");
    assert!(!daemon.root().join("s/p.sock").exists(), "no stray socket is left");
    let events = daemon.events("p");
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(kinds.last(), Some(&"stopped"), "{kinds:?}");
    assert!(!kinds.contains(&"crashed"), "{kinds:?}");
}

#[test]
fn sigint_stops_as_sigterm_does() {
    let mut daemon = Stage::new().legacy_python("python").start();
    daemon.wait_ready("python");
    daemon.signal(Signal::INT);
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(daemon.stdout.all().len(), 1, "{:?}", daemon.stdout.all());
}

// Row: ignores SIGTERM
#[test]
fn who_ignores_sigterm_is_killed_in_time() {
    let mut daemon = Stage::new()
        .set("supervisor.stop_grace_ms", 300)
        .set("supervisor.term_grace_ms", 300)
        .faulty("p", &json!({"do": "ignore-term"}))
        .start();
    daemon.wait_ready("p");
    let start = Instant::now();
    assert_eq!(daemon.terminate().code(), Some(0));
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(550), "{took:?}: both graces are given");
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert!(daemon.processes().is_empty());
}

#[test]
fn a_second_signal_stops_at_once() {
    let mut daemon = Stage::new()
        .set("supervisor.stop_grace_ms", 600_000)
        .faulty("p", &json!({"do": "ignore-term"}))
        .start();
    daemon.wait_ready("p");
    daemon.signal(Signal::TERM);
    wait_for("the shutdown to be asked", || {
        daemon
            .messages("p", "lifecycle")
            .iter()
            .any(|message| message["payload"]["action"] == "shutdown")
            .then_some(())
    });
    daemon.signal(Signal::TERM);
    daemon.wait();
    wait_within(Duration::from_secs(10), "the plugin to go too", || {
        daemon.processes().is_empty().then_some(())
    });
}

// Row: dies in the middle of a response
#[test]
fn crashes_are_restarted_with_a_growing_pause() {
    let daemon = Stage::new()
        .set("supervisor.backoff_ms", "[100, 400, 1600]")
        .set("supervisor.max_restarts", 3)
        .faulty("p", &json!({"do": "exit-before-ready"}))
        .start();
    daemon.wait_event("p", "disabled_after_crashes", 1);
    let starts = daemon.starts("p").len();
    assert_eq!(starts, 4, "the first and three restarts");
    let events = daemon.events("p");
    let count = |kind: &str| events.iter().filter(|(found, _)| found == kind).count();
    assert_eq!(count("started"), 4, "{events:?}");
    assert_eq!(count("crashed"), 4, "{events:?}");
    assert_eq!(count("restarting"), 3, "{events:?}");
    // Only lower bounds: a busy machine may always take longer.
    let times = event_times(&daemon, "started");
    for (pair, pause) in times.windows(2).zip([100, 400, 1_600]) {
        let between = pair[1] - pair[0];
        assert!(between >= pause - 5, "{between} ms of {pause}");
    }
    assert_problem(&daemon.get("/api/plugins/p/x"), 404);
    let lines = daemon.plugin_log("p");
    assert!(
        lines.iter().any(|line| line["message"] == "giving up before I began"),
        "its last words are kept: {lines:?}"
    );
}

/// When the events of a kind happened, in milliseconds of the day.
fn event_times(daemon: &Daemon, kind: &str) -> Vec<i64> {
    let database = rusqlite::Connection::open(daemon.root().join("data/toru.db")).unwrap();
    let mut query =
        database.prepare("SELECT timestamp FROM plugin_events WHERE event_type = ?1 ORDER BY id").unwrap();
    let texts: Vec<rusqlite::types::Value> =
        query.query_map([kind], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    texts
        .into_iter()
        .map(|value| match value {
            rusqlite::types::Value::Integer(milliseconds) => milliseconds,
            rusqlite::types::Value::Text(text) => {
                // 2026-01-01T12:34:56.789Z
                let digits = |range: std::ops::Range<usize>| text[range].parse::<i64>().unwrap();
                let day = digits(8..10);
                (((day * 24 + digits(11..13)) * 60 + digits(14..16)) * 60 + digits(17..19)) * 1_000
                    + digits(20..23)
            }
            other => panic!("{other:?}"),
        })
        .collect()
}

// Row: exits at once, code 0
#[test]
fn exit_code_0_in_a_loop_is_a_crash_loop_too() {
    let daemon = Stage::new()
        .set("supervisor.backoff_ms", "[10]")
        .set("supervisor.max_restarts", 2)
        .faulty("p", &json!({"do": "exit-zero"}))
        .start();
    daemon.wait_event("p", "disabled_after_crashes", 1);
    assert_eq!(daemon.starts("p").len(), 3);
}

// Row: crashes once a month
#[test]
fn the_count_of_crashes_resets_after_a_stable_time() {
    let daemon = Stage::new()
        .set("supervisor.backoff_ms", "[10]")
        .set("supervisor.max_restarts", 1)
        .set("supervisor.stable_after_ms", 200)
        .faulty("p", &json!({}))
        .start();
    for crash in 1..=4 {
        daemon.wait_ready("p");
        daemon.wait_status("p", "stable", |status| status["uptime_ms"].as_u64() >= Some(400));
        assert_problem(&daemon.get("/api/plugins/p/exit/1"), 502);
        daemon.wait_event("p", "crashed", crash);
    }
    daemon.wait_ready("p");
    let events = daemon.events("p");
    assert!(events.iter().all(|(kind, _)| kind != "disabled_after_crashes"), "{events:?}");
}

#[test]
fn what_a_plugin_prints_and_says_is_in_its_log() {
    let daemon = Stage::new().set("log.access", "\"all\"").faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon.get("/api/plugins/p/print?secret=1");
    daemon.get("/api/plugins/p/log");
    let find = |message: &str| {
        wait_for(&format!("{message:?} in the log"), || {
            daemon.plugin_log("p").into_iter().find(|line| line["message"] == message)
        })
    };
    find("a plain line on stdout");
    find("a plain line on stderr");
    let line = find("a JSON line on stdout");
    assert_eq!((&line["level"], &line["part"]), (&json!("error"), &json!(7)), "{line}");
    // A level below the log's own is left out as from anywhere else, and a name of ours cannot be taken.
    let line = find("another");
    assert_eq!((&line["level"], &line["user"]), (&json!("warn"), &json!({"id": 8})), "{line}");
    assert_eq!(line["plugin_id"], "p");
    assert!(daemon.plugin_log("p").iter().all(|line| line["message"] != "a JSON line on stderr"));
    let line = find("said over the socket");
    assert_eq!(line["level"], "warn");
    assert!(line.to_string().contains("42"), "{line}");

    let line = wait_for("the access line", || {
        daemon.plugin_log("p").into_iter().find(|line| {
            line["message"] == "HTTP request handled"
                && line["path"].as_str().is_some_and(|path| path.starts_with("/print"))
        })
    });
    assert_eq!(line["method"], "GET");
    assert_eq!(line["status"], 200);
    assert!(line["duration_ms"].is_number(), "{line}");

    // The keys stand in the order that scripts rely on.
    let text = fs::read_to_string(daemon.root().join("log/plugins/p.log")).unwrap();
    for line in text.lines() {
        assert!(line.starts_with("{\"timestamp\":\"2"), "{line}");
        let at = |key: &str| line.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{line}"));
        assert!(at("timestamp") < at("level") && at("level") < at("plugin_id"), "{line}");
        assert!(at("plugin_id") < at("message"), "{line}");
    }
    let text = fs::read_to_string(daemon.root().join("log/plugin-supervisor.log")).unwrap();
    assert!(text.lines().count() > 0);
    for line in text.lines() {
        let at = |key: &str| line.find(&format!("\"{key}\":")).unwrap_or_else(|| panic!("{line}"));
        assert!(line.starts_with("{\"timestamp\":\"2"), "{line}");
        assert!(at("level") < at("component") && at("component") < at("message"), "{line}");
    }
    let started = daemon
        .supervisor_log()
        .into_iter()
        .find(|line| line["message"] == "Plugin started" && line["plugin_id"] == "p")
        .expect("the line that log watchers look for");
    assert!(started["pid"].is_u64(), "{started}");
    for file in ["plugin-supervisor.log", "plugins/p.log"] {
        assert_eq!(mode(&daemon.root().join("log").join(file)), 0o640, "{file}");
    }
}

/// A plugin that prints these lines on standard error, and does nothing else.
fn prints(id: &str, lines: &str) -> String {
    let metadata =
        format!(r#"{{"id":"{id}","name":"p","version":"1","icon":"-","route":"/{id}","protocol":"1.0"}}"#);
    format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then echo '{metadata}'; exit; fi\n\
         cat >&2 <<'END'\n{lines}\nEND\nexec sleep 1000\n"
    )
}

#[test]
fn the_core_says_more_where_it_is_asked_for_details() {
    let daemon = Stage::new().faulty("p", &json!({})).environment("RUST_LOG", "error,toru=debug").start();
    daemon.wait_ready("p");
    assert_eq!(daemon.get("/api/plugins/p/close-connection").status, 502);
    for message in ["Connection to the plugin opened", "Connection to the plugin closed"] {
        wait_for(message, || {
            let found = daemon.supervisor_log().into_iter().find(|line| line["message"] == message)?;
            assert_eq!((&found["level"], &found["plugin_id"]), (&json!("debug"), &json!("p")), "{found}");
            Some(())
        });
    }
}

#[test]
fn a_json_line_keeps_what_it_says_of_its_level() {
    let lines = [
        r#"{"level":"err","message":"syslog's word"}"#,
        r#"{"level":"WARNING","message":"Python's word"}"#,
        r#"{"level":40,"msg":"pino's number"}"#,
        r#"{"level":6,"msg":"anybody's number","timestamp":"2001-01-01T00:00:00Z","plugin_id":"x"}"#,
        r#"{"level":"loud","msg":"nobody's word"}"#,
    ];
    let daemon = Stage::new().script("p", &prints("p", &lines.join("\n"))).start();
    let line = |message: &str| {
        wait_for(message, || daemon.plugin_log("p").into_iter().find(|line| line["message"] == message))
    };
    for (message, level) in [("syslog's word", "error"), ("Python's word", "warn"), ("pino's number", "warn")]
    {
        let line = line(message);
        assert_eq!((&line["level"], &line["original_level"]), (&json!(level), &Value::Null), "{line}");
    }
    let number = line("anybody's number");
    assert_eq!((&number["level"], &number["original_level"]), (&json!("info"), &json!(6)), "{number}");
    assert_eq!(number["original_timestamp"], "2001-01-01T00:00:00Z");
    assert_eq!((&number["plugin_id"], &number["original_plugin_id"]), (&json!("p"), &json!("x")));
    assert_eq!(line("nobody's word")["original_level"], "loud");
}

#[test]
fn a_json_line_is_known_by_other_keys_and_loses_nothing() {
    let lines = [
        r#"{"severity":"ERROR","message":"a cloud's key","n":0}"#,
        r#"{"lvl":"warn","msg":"a Go library's key"}"#,
        r#"{"levelname":"CRITICAL","message":"Python's key","n":null}"#,
        r#"  {"level":"fatal","msg":"behind blanks"}"#,
    ];
    // No reader of JSON that counts in `f64` takes this one, so it stands in a log of its own.
    let huge = r#"{"msg":"huge","z":1e400,"big":123456789012345678901234567890,"a":0.10}"#;
    let daemon =
        Stage::new().script("p", &prints("p", &lines.join("\n"))).script("q", &prints("q", huge)).start();
    let line = |message: &str| {
        wait_for(message, || daemon.plugin_log("p").into_iter().find(|line| line["message"] == message))
    };
    for (message, level, kept) in [
        ("a cloud's key", "error", json!({"severity": "ERROR", "n": 0})),
        ("a Go library's key", "warn", json!({"lvl": "warn"})),
        ("Python's key", "error", json!({"levelname": "CRITICAL", "n": null})),
        ("behind blanks", "error", json!({"original_level": "fatal"})),
    ] {
        let mut line = line(message);
        assert_eq!(line["level"], level, "{line}");
        let fields = line.as_object_mut().unwrap();
        for key in ["timestamp", "level", "plugin_id", "message"] {
            fields.remove(key);
        }
        assert_eq!(line, kept);
    }
    let log = daemon.root().join("log/plugins/q.log");
    wait_for("the numbers as they were written", || {
        let text = fs::read_to_string(&log).ok()?;
        text.contains(r#""message":"huge","z":1e400,"big":123456789012345678901234567890,"a":0.10}"#)
            .then_some(())
    });
    // Nor do its readers lose it.
    let shown = String::from_utf8(daemon.toru("plugin", &["logs", "q"]).stdout).unwrap();
    assert!(shown.contains("1e400") && shown.contains("huge"), "{shown}");
}

#[test]
fn a_json_line_that_is_too_long_keeps_its_level_and_what_of_it_is_whole() {
    // What a part takes, and a little more.
    let long = "x".repeat(17_000);
    let lines = [
        format!(r#"{{"level":"error","user":7,"message":"traceback {long}","after":1}}"#),
        format!(r#"{{"level":"error","message":"with frames","user":8,"frames":[{{"name":"{long}"}}]}}"#),
        format!(r#"{{"level":"debug","message":"nobody asked {long}"}}"#),
        format!("plain {long}"),
        r#"{"level":"info","message":"the next"}"#.to_owned(),
    ];
    let daemon = Stage::new().script("p", &prints("p", &lines.join("\n"))).start();
    let printed = wait_for("the last line", || {
        let lines = daemon.plugin_log("p");
        lines.iter().any(|line| line["message"] == "the next").then_some(lines)
    });
    let said: Vec<_> = printed
        .iter()
        .map(|line| {
            let message = line["message"].as_str().unwrap();
            let begin = &message[..message.floor_char_boundary(20)];
            (line["level"].as_str().unwrap(), &line["line_part"], &line["user"], begin)
        })
        .collect();
    let xs = "x".repeat(20);
    let (one, two, none) = (&json!(1), &json!(2), &Value::Null);
    let expect = [
        ("error", one, &json!(7), &*format!("traceback {}", "x".repeat(10))),
        ("error", two, none, &*xs),
        ("error", one, &json!(8), "with frames"),
        ("error", one, none, r#""frames":[{"name":"x"#),
        ("error", two, none, &*xs),
        ("warn", one, none, &*format!("plain {}", "x".repeat(14))),
        ("warn", two, none, &*xs),
        ("info", none, none, "the next"),
    ];
    assert_eq!(said, expect);
    let whole = |first: usize| -> usize {
        [first, first + 1].iter().map(|&at| printed[at]["message"].as_str().unwrap().len()).sum()
    };
    assert_eq!(whole(0), "traceback ".len() + long.len() + r#"","after":1}"#.len(), "nothing is lost");
    assert_eq!(whole(3), lines[1].len() - r#"{"level":"error","message":"with frames","user":8,"#.len());
    assert_eq!(whole(5), lines[3].len());
}

#[test]
fn without_a_mark_on_its_processes_the_core_says_so_once() {
    if !has_program("setpriv") || !has_program("prlimit") {
        println!("skipped: no setpriv or no prlimit here");
        return;
    }
    let under = [
        "prlimit",
        "--locks=1000:1000",
        "setpriv",
        "--bounding-set=-sys_resource",
        "--inh-caps=-sys_resource",
    ];
    let daemon = Stage::new().under(under).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let told =
        || daemon.supervisor_log().iter().filter(|line| line.to_string().contains("RLIMIT_LOCKS")).count();
    assert_eq!(told(), 1);
    daemon.hang_up();
    assert_eq!(told(), 1);
    drop(daemon);
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    assert!(complaints(&daemon, "RLIMIT_LOCKS").is_empty());
}

#[test]
fn events_tell_a_plugins_life() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    assert_problem(&daemon.get("/api/plugins/p/exit/5"), 502);
    daemon.wait_event("p", "ready", 2);
    let kinds: Vec<String> = daemon.events("p").into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["discovered", "started", "ready", "crashed", "restarting", "started", "ready"]);
    let crashed = daemon.wait_event("p", "crashed", 1);
    assert!(crashed.is_object() && crashed.to_string().contains('5'), "{crashed}");
    let last_exit = daemon.status("p").unwrap()["last_exit"].to_string();
    assert!(last_exit.contains('5'), "{last_exit}");
}

#[test]
fn disable_enable_and_restart_do_what_they_say() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let done = |daemon: &Daemon, word: &str| {
        let answer = daemon.manage("POST", &format!("/api/plugins/p/{word}"), b"");
        assert_eq!(answer.status, 200, "{word}: {answer:?}");
        assert_eq!(answer.json(), json!({"success": true}), "{word}");
    };
    let first = daemon.plugin_pid("p");
    done(&daemon, "restart");
    // Done means done: no wait here.
    assert_ne!(daemon.plugin_pid("p"), first);
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);

    done(&daemon, "disable");
    assert!(daemon.processes().is_empty());
    assert_problem(&daemon.get("/api/plugins/p/x"), 404);
    let status = daemon.status("p").unwrap();
    assert_eq!((&status["enabled"], &status["running"]), (&json!(false), &json!(false)));

    // Remembered over a restart of the core.
    let daemon = daemon.restart();
    daemon.wait_status("p", "known and still disabled", |status| status["enabled"] == false);
    assert_problem(&daemon.get("/api/plugins/p/x"), 404);
    done(&daemon, "enable");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    let starts = daemon.starts("p").len();
    done(&daemon, "enable");
    assert_eq!(daemon.starts("p").len(), starts, "enabling twice starts once");
    for kind in ["enabled", "disabled"] {
        daemon.wait_event("p", kind, 1);
    }
    for word in ["enable", "disable", "restart"] {
        assert_problem(&daemon.manage("POST", &format!("/api/plugins/nobody/{word}"), b""), 404);
        let answer = daemon.manage("GET", &format!("/api/plugins/p/{word}"), b"");
        assert_eq!(answer.status, 405, "{answer:?}");
    }
}

#[test]
fn hangup_reopens_the_logs() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let log = daemon.root().join("log/plugins/p.log");
    daemon.get("/api/plugins/p/print");
    wait_for("the first lines", || (daemon.plugin_log("p").len() > 1).then_some(()));
    let moved = log.with_extension("moved");
    fs::rename(&log, &moved).unwrap();
    daemon.signal(Signal::HUP);
    wait_for("the log to be there again", || {
        daemon.get("/api/plugins/p/print");
        (!daemon.plugin_log("p").is_empty()).then_some(())
    });
    assert_ne!(fs::metadata(&log).unwrap().ino(), fs::metadata(&moved).unwrap().ino());
}

// Row: log directory missing, read-only, full
#[test]
fn logs_that_cannot_be_written_stop_nothing() {
    let stage = Stage::new().faulty("p", &json!({}));
    // A file where the directory should be: nobody can write there, root neither.
    fs::write(stage.root().join("log"), "").unwrap();
    let daemon = stage.start();
    daemon.wait_ready("p");
    for _ in 0..50 {
        assert_eq!(daemon.get("/api/plugins/p/print").status, 200);
    }
    let lines = daemon.stderr.containing("log");
    assert!(!lines.is_empty(), "{:?}", daemon.stderr.all());
}

// Row: log directory missing, read-only, full
#[test]
fn a_full_disk_under_the_logs_stops_nothing() {
    let stage = Stage::new().faulty("p", &json!({})).faulty("q", &json!({}));
    let logs = stage.root().join("log/plugins");
    fs::create_dir_all(&logs).unwrap();
    symlink("/dev/full", logs.join("p.log")).unwrap();
    let daemon = stage.start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    for _ in 0..50 {
        assert_eq!(daemon.get("/api/plugins/p/print").status, 200);
        assert_eq!(daemon.get("/api/plugins/q/print").status, 200);
    }
    wait_for("the log of the other plugin", || {
        daemon.plugin_log("q").iter().any(|line| line["message"] == "a plain line on stdout").then_some(())
    });
    assert_eq!(daemon.status("p").unwrap()["restarts"], 0);
}

// Row: log directory missing, read-only, full
#[test]
fn a_disk_that_was_full_leaves_no_half_line_in_a_log() {
    if !rustix::process::geteuid().is_root() || !has_program("mount") {
        println!("skipped: only root can mount a small file system");
        return;
    }
    let stage = Stage::new().faulty("p", &json!({}));
    let logs = stage.root().join("log");
    fs::create_dir(&logs).unwrap();
    let mut mount = Command::new("mount");
    let mounted = output(mount.args(["-t", "tmpfs", "-o", "size=64k,mode=0700", "tmpfs"]).arg(&logs));
    if !mounted.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&mounted.stderr));
        return;
    }
    let _unmount = Unmount(logs.clone());
    let ballast = logs.join("ballast");
    fs::write(&ballast, [0; 32_768]).unwrap();
    let daemon = stage.set("log.access", "\"all\"").start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    wait_for("lines to be lost", || {
        for _ in 0..50 {
            assert_eq!(client.get("/api/plugins/p/before").status, 200);
        }
        let metrics = daemon.control().get("/metrics").text().to_owned();
        (!metrics.contains("toru_log_lines_dropped_total 0\n")).then_some(())
    });
    fs::remove_file(&ballast).unwrap();
    wait_for("lines to be written again", || {
        // Each line of these is lost until then, and to tell of each would fill the disk again, which is the core's, too.
        for _ in 0..20 {
            assert_eq!(client.get("/api/plugins/p/after").status, 200);
        }
        let page = daemon.control().get("/v1/plugins/p/logs?page_size=10").json();
        page["logs"].as_array().unwrap().iter().any(|line| line["path"] == "/after").then_some(())
    });
    // Each line of it is JSON, or this fails.
    assert!(daemon.plugin_log("p").iter().any(|line| line["path"] == "/after"));
}

// Row: log directory missing, read-only, full
#[test]
fn a_disk_that_hangs_under_the_logs_stops_nothing() {
    let stage = Stage::new().faulty("p", &json!({}));
    let logs = stage.root().join("log/plugins");
    fs::create_dir_all(&logs).unwrap();
    // Nobody reads from the pipe: whoever opens it to write waits for ever.
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, logs.join("p.log"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let mut daemon = stage.set("log.access", "\"all\"").start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    // More lines than the queue takes: they are lost, and counted where an operator can see it.
    for _ in 0..9_000 {
        assert_eq!(client.get("/api/plugins/p/x").status, 200);
    }
    let metrics = daemon.control().get("/metrics").text().to_owned();
    let lost = metrics.lines().find_map(|line| line.strip_prefix("toru_log_lines_dropped_total ")).unwrap();
    assert!(lost.parse::<f64>().unwrap() > 0.0, "{lost}");
    stage_faulty(&daemon.plugins(), "q", &json!({}));
    daemon.signal(Signal::HUP);
    wait_for("q to be known", || daemon.status("q"));
    assert_eq!(daemon.terminate().code(), Some(0));
}

// Row: its socket path is a symbolic link or another user's
#[test]
fn a_socket_of_another_user_is_refused() {
    let stage = Stage::new().faulty("p", &json!({})).faulty("q", &json!({}));
    let sockets = stage.root().join("s");
    fs::create_dir(&sockets).unwrap();
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o700)).unwrap();
    let theirs = sockets.join("p.sock");
    let listener = std::os::unix::net::UnixListener::bind(&theirs).unwrap();
    // Nobody, by tradition.
    if std::os::unix::fs::chown(&theirs, Some(65_534), None).is_err() {
        println!("skipped: only root can give a file away");
        return;
    }
    let inode = fs::symlink_metadata(&theirs).unwrap().ino();
    let daemon = stage.start();
    daemon.wait_ready("q");
    let told = daemon.wait_event("p", "crashed", 1);
    assert!(told["reason"].as_str().unwrap().contains("p.sock"), "{told}");
    assert_eq!(fs::symlink_metadata(&theirs).unwrap().ino(), inode, "untouched");
    assert_ne!(daemon.get("/api/plugins/p/x").status, 200);
    drop(listener);
}

#[test]
fn a_killed_plugin_comes_back_and_only_that_one() {
    let daemon = Stage::new().faulty("p", &json!({})).legacy_rust("old").start();
    daemon.wait_ready("p");
    daemon.wait_ready("old");
    let (p, old) = (daemon.plugin_pid("p"), daemon.plugin_pid("old"));
    kill_process(old, Signal::KILL).unwrap();
    daemon.wait_event("old", "ready", 2);
    daemon.wait_ready("old");
    assert_ne!(daemon.plugin_pid("old"), old);
    assert_eq!(daemon.plugin_pid("p"), p);
}

#[test]
fn two_daemons_on_one_state_directory_do_not_fight() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    let printed = daemon.second();
    assert!(!printed.status.success());
    assert_eq!(daemon.plugin_pid("p"), pid, "the first one's plugin was left alone");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    assert!(daemon.root().join("s/p.sock").exists());
}

#[test]
fn a_plugin_framed_in_lines_is_a_shell_script() {
    let script = toru_tests::repository().join("plugins/hello-shell/hello-shell.sh");
    if !has_program("socat") {
        println!("skipped: no socat here");
        return;
    }
    let daemon = Stage::new().script("hello-shell", &fs::read_to_string(script).unwrap()).start();
    daemon.wait_ready("hello-shell");
    for _ in 0..10 {
        let answer = daemon.get("/api/plugins/hello-shell/");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(!answer.body.is_empty());
    }
    assert_eq!(daemon.status("hello-shell").unwrap()["protocol"], "1.0");
}

#[test]
fn a_1_1_plugin_may_be_framed_in_lines() {
    let daemon = Stage::new().faulty("p", &json!({"framing": "lines"})).start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    for _ in 0..20 {
        assert_eq!(client.get("/api/plugins/p/x").json()["path"], "/x");
    }
    let body = "two\nlines, and \"more\"";
    let answer = client.request("POST", "/api/plugins/p/mirror", &[], body.as_bytes());
    assert_eq!(answer.text(), body);
    assert_problem(&client.get("/api/plugins/p/garbage"), 502);
}

#[test]
fn a_summary_line_comes_at_the_interval() {
    let daemon = Stage::new().set("log.summary_interval_s", 1).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let text = wait_for("a summary with requests", || {
        daemon.get("/api/plugins/p/x");
        daemon
            .plugin_log("p")
            .iter()
            .chain(&daemon.supervisor_log())
            .find(|line| line.get("requests").is_some_and(|count| count.as_u64() > Some(0)))
            .map(Value::to_string)
    });
    for word in ["errors", "p50", "p95", "p99", "uptime", "restarts", "cpu"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn hangup_rescans_and_keeps_what_works() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    stage_faulty(&daemon.plugins(), "q", &json!({}));
    daemon.signal(Signal::HUP);
    wait_for("q to be known", || daemon.status("q"));
    daemon.wait_ready("q");
    assert_eq!(daemon.plugin_pid("p"), pid, "p was left alone");

    fs::remove_file(daemon.plugins().join("q.binary")).unwrap();
    daemon.signal(Signal::HUP);
    for target in ["/api/plugins/q/x", "/api/plugins/route/q/x"] {
        let mut last = None;
        wait_for("q to be gone", || {
            last = Some(daemon.get(target));
            last.as_ref().is_some_and(|answer| answer.status == 404).then_some(())
        });
        let detail = last.unwrap().text().to_owned();
        assert!(detail.contains("no plugin has this"), "{detail}");
    }
    assert_eq!(daemon.plugin_pid("p"), pid);
}

#[test]
fn the_maintainer_is_told_of_a_plugin_given_up() {
    let stage = Stage::new();
    let command = stage.root().join("notify.sh");
    let told = stage.root().join("told");
    write_executable(&command, &format!("#!/bin/sh\ncat >> {}\necho >> {0}\n", told.display()));
    let daemon = stage
        .set("notify.command", json!([command]))
        .set("supervisor.backoff_ms", "[10]")
        .set("supervisor.max_restarts", 1)
        .faulty("p", &json!({"do": "exit-before-ready"}))
        .start();
    daemon.wait_event("p", "disabled_after_crashes", 1);
    wait_for("the command to have run", || {
        fs::read_to_string(&told).ok()?.lines().find_map(|line| {
            let event: Value = serde_json::from_str(line).ok()?;
            event.to_string().contains("disabled_after_crashes").then(|| {
                assert!(event.to_string().contains("\"p\""), "{event}");
            })
        })
    });
}

#[test]
fn while_plugins_are_read_an_unknown_one_is_503() {
    let daemon =
        Stage::new().faulty("slow", &json!({"do": "metadata-hangs"})).faulty("p", &json!({})).start();
    // Well before the five seconds that `slow` has to say what it is.
    daemon.wait_ready("p");
    let answer = daemon.get("/api/plugins/later/x");
    assert_problem(&answer, 503);
    assert_eq!(answer.field("retry-after"), Some("1"));
    assert!(answer.json()["detail"].as_str().unwrap().contains("still being read"), "{answer:?}");
    assert_problem(&daemon.get("/api/plugins/route/later/x"), 503);
    assert_problem(&daemon.manage("GET", "/api/plugins/later", b""), 503);
    assert_problem(&daemon.manage("POST", "/api/plugins/later/restart", b""), 503);
    assert_problem(&daemon.get("/readyz"), 503);
    wait_for("the reading to end", || (daemon.get("/api/plugins/later/x").status == 404).then_some(()));
    assert_problem(&daemon.manage("GET", "/api/plugins/later", b""), 404);
    wait_for("readiness", || (daemon.get("/readyz").status == 200).then_some(()));
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    // An operator who has put it there hears the same of a later look; clients, and who asks for readiness, do not.
    stage_faulty(&daemon.plugins(), "later", &json!({"do": "metadata-hangs"}));
    daemon.signal(Signal::HUP);
    let order = || daemon.manage("POST", "/api/plugins/later/restart", b"");
    wait_for("the look to begin", || (order().status == 503).then_some(()));
    assert!(order().json()["detail"].as_str().unwrap().contains("still being read"), "{:?}", order());
    assert_problem(&daemon.get("/api/plugins/later/x"), 404);
    assert_eq!(daemon.get("/readyz").status, 200);
    wait_for("the look to end", || (order().status == 404).then_some(()));
}
