//! What the supervisor says to a running plugin, and of one that ends.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};

use crate::stage::{PATIENCE, SENT, Said, Stage, Watched, folder, put, receive, send};

const WAIT: &str = "trap 'exit 0' TERM\nsleep 1000 & wait\n";

fn action(message: &Value) -> &str {
    message["payload"]["action"].as_str().expect("a lifecycle message")
}

/// A 1.1 plugin that has said that it is ready, and the connection to it.
fn ready_with_checks(every: Duration) -> (Stage, UnixStream) {
    let (dir, mut settings) = folder(&[]);
    put(dir.path(), "p", "1.1", WAIT);
    settings.adjustable.health_interval = every;
    let stage = Stage::start(dir, settings);
    let mut stream = stage.accept("p");
    assert_eq!(action(&receive(&mut stream)), "init");
    send(&mut stream, &json!({ "type": "lifecycle", "payload": { "action": "ready" } }));
    stage.event("p", "ready");
    (stage, stream)
}

fn pong(stream: &mut UnixStream, ping: &Value) {
    assert_eq!(action(ping), "ping");
    let pong = json!({ "action": "pong", "seq": ping["payload"]["seq"] });
    send(stream, &json!({ "type": "lifecycle", "payload": pong }));
}

#[test]
fn a_renewed_lifeline_begins_with_a_ping_and_no_second_init() {
    // No health check comes in between.
    let (stage, first) = ready_with_checks(PATIENCE);
    drop(first);
    let mut second = stage.accept_again("p");
    let ping = receive(&mut second);
    pong(&mut second, &ping);
    send(
        &mut second,
        &json!({ "type": "kv", "request_id": "k", "payload": { "action": "get", "key": "x" } }),
    );
    assert_eq!(receive(&mut second)["request_id"], "k", "its questions are answered there");
    assert_eq!(stage.status("p").unanswered_pings, 0);
    assert_eq!(stage.status("p").restarts, 0);
}

#[test]
fn a_crash_is_told_with_all_that_is_known() {
    let (dir, mut settings) = folder(&[]);
    let lines: String = (1..=25).map(|line| format!("echo line {line} >&2\n")).collect();
    put(dir.path(), "p", "1.1", &format!("{lines}kill -SEGV $$"));
    settings.adjustable.policy.restarts_max = 1;
    let stage = Stage::start(dir, settings);
    let crash = stage.event("p", "crashed");
    let (exit, dumped) = (crash["exit"].as_str().expect("an exit"), crash["core_dumped"] == true);
    assert_eq!(exit, if dumped { "killed by SIGSEGV, core dumped" } else { "killed by SIGSEGV" });
    assert_eq!((&crash["signal"], &crash["exit_code"]), (&json!(11), &Value::Null));
    assert_eq!((&crash["in_flight"], &crash["failures"]), (&json!(SENT), &json!(1)));
    assert!(crash["uptime_ms"].is_u64() && crash["next_start_ms"].as_u64().expect("a time") <= 10, "{crash}");
    let stderr = crash["stderr"].as_array().expect("lines");
    assert_eq!((stderr.len(), &stderr[0], &stderr[19]), (20, &json!("line 6"), &json!("line 25")));
    let last = stage.event("p", "crashed");
    assert_eq!(last["in_flight"], SENT, "without those that the first process took along");
    assert_eq!((&last["failures"], &last["next_start_ms"]), (&json!(2), &Value::Null), "nothing follows it");
    stage.event("p", "disabled_after_crashes");
}

#[test]
fn who_answers_pings_late_does_not_hang() {
    let (dir, mut settings) = folder(&[]);
    put(dir.path(), "p", "1.1", WAIT);
    settings.adjustable.health_interval = Duration::from_millis(50);
    // So many that a busy machine does not miss them all.
    settings.adjustable.unanswered_pings = 20;
    let stage = Stage::start(dir, settings);
    let mut stream = stage.accept("p");
    assert_eq!(action(&receive(&mut stream)), "init");
    send(&mut stream, &json!({ "type": "lifecycle", "payload": { "action": "ready" } }));
    let mut before = receive(&mut stream);
    for _ in 0..30 {
        let ping = receive(&mut stream);
        // Of the one before, never of the newest.
        pong(&mut stream, &before);
        before = ping;
    }
    let status = stage.status("p");
    assert_eq!((status.state, status.restarts), ("running", 0));
    assert!(status.ping >= Some(Duration::from_millis(40)), "the time of its own ping: {:?}", status.ping);
}

#[test]
fn a_socket_folder_that_was_taken_away_is_made_anew_and_nobody_blamed() {
    let (dir, mut settings) = folder(&[("p", WAIT), ("q", WAIT)]);
    settings.adjustable.health_interval = Duration::from_millis(50);
    let sockets = settings.sockets_dir.clone();
    let stage = Stage::start(dir, settings);
    for plugin in ["p", "q"] {
        stage.event(plugin, "ready");
    }
    std::fs::remove_dir_all(&sockets).expect("ours");
    stage.find("that the folder is made anew", |said| match said {
        Said::Log { message, .. } if message.contains("made anew") => Some(()),
        _ => None,
    });
    for plugin in ["p", "q"] {
        let stopped = stage.event(plugin, "stopped");
        let reason = stopped["reason"].as_str().expect("a reason");
        assert!(reason.contains("socket folder") && reason.contains("removed"), "{stopped}");
        stage.event(plugin, "ready");
        let status = stage.status(plugin);
        assert_eq!((status.state, status.failures), ("running", 0));
        assert!(sockets.join(format!("{plugin}.sock")).exists());
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&sockets.metadata().expect("there").permissions());
    assert_eq!(mode & 0o777, 0o700);
    let unheard = stage.unheard();
    let crash = |said: &&Said| matches!(said, Said::Event { kind: "crashed" | "unresponsive", .. });
    assert!(unheard.iter().find(crash).is_none(), "{unheard:#?}");
}

#[test]
fn a_start_without_a_fit_socket_folder_is_put_off_and_held_against_nobody() {
    let (dir, mut settings) = folder(&[("p", WAIT)]);
    // The order finds it first.
    settings.adjustable.health_interval = PATIENCE;
    let (sockets, evil) = (settings.sockets_dir.clone(), dir.path().join("evil"));
    let stage = Stage::start(dir, settings);
    stage.event("p", "ready");
    std::fs::remove_dir_all(&sockets).expect("ours");
    std::fs::create_dir(&evil).expect("folder");
    std::os::unix::fs::symlink(&evil, &sockets).expect("symlink");
    let refused = stage.order("p", toru_supervisor::Order::Restart).expect_err("refused").to_string();
    assert!(refused.contains("put off") && refused.contains("is a symbolic link; remove it"), "{refused}");
    let status = stage.status("p");
    assert_eq!((status.state, status.failures, status.restarts), ("deferred", 0, 0));
    assert!(status.last_exit.as_ref().is_some_and(|why| why.contains("symbolic link")), "{status:?}");
    let deferred = stage.event("p", "start_deferred");
    assert_eq!(deferred["counts_as_crash"], false);
    assert!(deferred["reason"].as_str().is_some_and(|why| why.contains(&*sockets.to_string_lossy())));
    assert!(deferred["remedy"].as_str().is_some_and(|what| what.contains("socket folder")), "{deferred}");
    assert_eq!(std::fs::read_dir(&evil).expect("readable").count(), 0);
    std::fs::remove_file(&sockets).expect("a link");
    stage.event("p", "ready");
    assert_eq!((stage.status("p").state, stage.status("p").failures), ("running", 0));
}

#[test]
fn exit_127_under_a_limit_on_memory_may_be_the_limits_fault() {
    let (dir, mut settings) = folder(&[("p", "exit 127")]);
    let own = toru_supervisor::ProcessSettings { memory_bytes_max: Some(1 << 30), ..Default::default() };
    settings.adjustable.process.insert("p".into(), own);
    let stage = Stage::start(dir, settings);
    let told = stage.event("p", "disabled_after_crashes");
    let reason = told["reason"].as_str().expect("a reason");
    assert!(reason.contains("127") && reason.contains("memory_bytes_max of 1073741824"), "{told}");
    assert_eq!(stage.status("p").last_exit.as_deref(), Some(reason));
}

fn kill(stage: &Stage) {
    let pid = stage.status("p").pid.expect("it runs") as i32;
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is there");
}

#[test]
fn what_a_dying_plugin_took_along_is_told_however_late_its_end() {
    let (stage, mut stream) = ready_with_checks(Duration::from_millis(50));
    let ping = receive(&mut stream);
    stage.unanswered.fetch_add(3, Relaxed);
    // A process that dies loses its connections before its end is seen; it said this before.
    pong(&mut stream, &ping);
    for _ in 0..3 {
        assert_eq!(action(&receive(&mut stream)), "ping", "a check comes in between");
    }
    kill(&stage);
    assert_eq!(stage.event("p", "crashed")["in_flight"], SENT + 3);
}

#[test]
fn a_start_that_fails_is_counted_as_any_other() {
    let (dir, mut settings) = folder(&[("p", WAIT)]);
    std::os::unix::fs::symlink(dir.path(), dir.path().join("sockets/p.sock")).expect("a link");
    settings.adjustable.policy.restarts_max = 2;
    let stage = Stage::start(dir, settings);
    for restarts in [1, 2] {
        assert_eq!(stage.event("p", "restarting")["restarts"], restarts);
    }
    stage.event("p", "disabled_after_crashes");
    assert_eq!(stage.status("p").restarts, 2);
}

/// A stage with a plugin that cannot run, and `sh -c script` to tell of it.
fn notified(script: &str, fifo: Option<&Path>) -> Stage {
    let (dir, mut settings) = folder(&[("p", "exit 127")]);
    if let Some(fifo) = fifo {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, mode, 0).expect("fifo");
    }
    settings.adjustable.notify_command = ["sh", "-c", script].map(str::to_owned).to_vec();
    Stage::start(dir, settings)
}

fn failure(stage: &Stage) -> String {
    stage.find("a failed notification", |said| match said {
        Said::Log { message, fields } if message == "Notification failed" => {
            Some(fields["reason"].as_str().expect("a reason").to_owned())
        }
        _ => None,
    })
}

#[test]
fn somebody_outside_is_told_when_a_plugin_is_given_up() {
    let place = tempfile::tempdir().expect("temporary directory");
    let fifo = place.path().join("told");
    let stage = notified(&format!("cat > {}", fifo.display()), Some(&fifo));
    // Ends when the command has written all of it.
    let told = std::fs::read_to_string(&fifo).expect("read");
    let event: Value = serde_json::from_str(&told).expect("one JSON object");
    assert_eq!(event["event_type"], "disabled_after_crashes");
    assert_eq!(event["plugin_id"], "p");
    assert!(event["timestamp"].as_str().expect("a time").ends_with('Z'));
    assert_eq!(event["details"], stage.event("p", "disabled_after_crashes"));
}

#[test]
fn a_command_that_fails_is_one_line_in_the_log() {
    let stage = notified("echo no mail today >&2; exit 3", None);
    assert_eq!(failure(&stage), "it ended with exit code 3; it wrote: no mail today");
    let (dir, mut settings) = folder(&[("p", "exit 127")]);
    settings.adjustable.notify_command = vec!["/no/such/command".into()];
    let stage = Stage::start(dir, settings);
    assert_eq!(failure(&stage), "/no/such/command is not there");
}

#[test]
fn a_command_that_hangs_delays_nobody_and_ends_with_the_daemon() {
    let place = tempfile::tempdir().expect("temporary directory");
    let fifo = place.path().join("told");
    let stage = notified(&format!("echo $$ > {}; exec sleep 1000", fifo.display()), Some(&fifo));
    let pid = std::fs::read_to_string(&fifo).expect("read").trim().parse().expect("a pid");
    let command = Watched::new(pid);
    put(stage.dir.path(), "q", "1.0", WAIT);
    stage.handle.send(toru_supervisor::Command::Rescan { done: Box::new(drop) });
    stage.event("q", "ready");
    assert!(!command.has_ended());
    drop(stage);
    assert!(command.has_ended() && !command.is_zombie());
}

#[test]
fn a_command_that_takes_too_long_is_killed_and_told_of() {
    let place = tempfile::tempdir().expect("temporary directory");
    let fifo = place.path().join("told");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).expect("fifo");
    let (dir, mut settings) = folder(&[("p", "exit 127")]);
    // It reads nothing and has children, as a shell that waits for a mail server does.
    let script = format!("echo $$ > {}; sleep 1000; echo done", fifo.display());
    settings.adjustable.notify_command = ["sh", "-c", &script].map(str::to_owned).to_vec();
    settings.notify_timeout = std::time::Duration::from_millis(300);
    let stage = Stage::start(dir, settings);
    let pid = std::fs::read_to_string(&fifo).expect("read").trim().parse().expect("a pid");
    let command = Watched::new(pid);
    assert_eq!(failure(&stage), "it did not end within 0.3 s");
    assert!(command.ends_within(PATIENCE));
}

/// Fills the backlog of the socket at `path`; the connections wait there as long as they are held.
fn fill_backlog(path: &Path) -> Vec<OwnedFd> {
    let address = SocketAddrUnix::new(path).expect("a path");
    let connect = || {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).expect("descriptors");
        rustix::net::connect(&socket, &address).map(|()| socket)
    };
    let mut waiting = vec![];
    loop {
        match connect() {
            Ok(socket) => waiting.push(socket),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN);
                return waiting;
            }
        }
    }
}

#[test]
fn a_busy_1_0_plugin_has_one_ping_waiting_and_a_full_backlog_is_no_fault() {
    let (dir, mut settings) = folder(&[("busy", WAIT), ("idle", WAIT)]);
    settings.adjustable.health_interval = Duration::from_millis(20);
    settings.adjustable.unanswered_pings = 3;
    let stage = Stage::start(dir, settings);
    let mut init = stage.accept("busy");
    assert_eq!(action(&receive(&mut init)), "init");
    assert_eq!(action(&receive(&mut stage.accept("idle"))), "init");
    stage.event("busy", "ready");
    stage.event("idle", "ready");
    let pid = stage.status("busy").pid;
    // Both are looked at in the same turns: each ping of the one is a look at the other.
    let looks = |count: u32| {
        for _ in 0..count {
            assert_eq!(action(&receive(&mut stage.accept_again("idle"))), "ping");
        }
    };
    let mut ping = stage.accept_again("busy");
    assert_eq!(action(&receive(&mut ping)), "ping");
    looks(10);
    assert_eq!(stage.waiting_connections("busy"), 0, "it still has the first");
    let waiting = fill_backlog(&stage.dir.path().join("sockets/busy.sock"));
    drop(ping);
    looks(10);
    let status = stage.status("busy");
    assert_eq!((status.state, status.pid, status.unanswered_pings), ("running", pid, 0));
    drop(waiting);
    assert!(stage.waiting_connections("busy") > 0);
    let mut ping = stage.accept_again("busy");
    assert_eq!(action(&receive(&mut ping)), "ping", "and on as before");
    drop(ping);
    // Without a listener it is another matter.
    stage.stop_listening("busy");
    stage.event("busy", "unresponsive");
}
