//! What a service manager hears, and what a terminal shows.

use std::{
    fs,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};
use serde_json::json;
use toru_tests::{DEADLINE, Daemon, Lines, Stage, binary, has_program, output, spawn, wait_for};

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

#[test]
fn the_status_says_that_plugins_are_still_being_read() {
    let stage = Stage::new().faulty("p", &json!({})).faulty("slow", &json!({"do": "metadata-hangs"}));
    let socket = manager(&stage);
    let path = stage.root().join("notify");
    let daemon = stage.environment("NOTIFY_SOCKET", path).start();
    hear(&socket, "READY=1");
    hear(&socket, "STATUS=still reading plugins: ");
    // Well before the next one is due: the end of the reading is told by itself.
    hear(&socket, "STATUS=1 plugin, 1 running");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
}

#[test]
fn a_service_manager_may_listen_at_an_abstract_address() {
    let stage = Stage::new().faulty("p", &json!({}));
    let name = format!("toru-tests-{}-{}", std::process::id(), stage.root().display());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut daemon =
        stage.environment("NOTIFY_SOCKET", format!("@{name}")).environment("WATCHDOG_USEC", "300000").start();
    hear(&socket, "READY=1");
    hear(&socket, "STATUS=1 plugin, 1 running");
    hear(&socket, "WATCHDOG=1");
    assert_eq!(daemon.terminate().code(), Some(0));
    hear(&socket, "STOPPING=1");
}

#[test]
fn a_service_manager_that_reads_nothing_holds_nobody_up() {
    let stage = Stage::new().faulty("p", &json!({}));
    let _socket = manager(&stage);
    let path = stage.root().join("notify");
    let mut daemon =
        stage.environment("NOTIFY_SOCKET", path.clone()).environment("WATCHDOG_USEC", "30000").start();
    daemon.wait_ready("p");
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"X=1", &path).is_ok() {}
    // By the supervisor, whose life is told every ten milliseconds.
    kill_process(daemon.plugin_pid("p"), Signal::KILL).unwrap();
    daemon.wait_event("p", "started", 2);
    assert_eq!(daemon.terminate().code(), Some(0));
}

/// Stops the thread of this id until its standard input closes; says `stopped` once it has.
const HOLD_THREAD: &str = "
import ctypes, os, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
SEIZE, INTERRUPT, ALL = 0x4206, 0x4207, 0x40000000
thread = int(sys.argv[1])
if ptrace(SEIZE, thread, None, None) or ptrace(INTERRUPT, thread, None, None):
    sys.exit(print('refused', flush=True))
os.waitpid(thread, ALL)
print('stopped', flush=True)
sys.stdin.read()
";

#[test]
fn a_supervisor_that_hangs_feeds_no_watchdog() {
    let stage = Stage::new().faulty("p", &json!({}));
    let socket = manager(&stage);
    let path = stage.root().join("notify");
    let daemon = stage.environment("NOTIFY_SOCKET", path).environment("WATCHDOG_USEC", "300000").start();
    hear(&socket, "WATCHDOG=1");
    daemon.wait_ready("p");
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid().as_raw_nonzero())).unwrap().flatten();
    // The kernel keeps fifteen bytes of a thread's name.
    let supervisor = threads
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "toru-supervisor\n")
        })
        .map(|task| task.file_name().into_string().unwrap())
        .next()
        .expect("its thread has a name");
    let mut holder = spawn(
        Command::new("python3")
            .args(["-c", HOLD_THREAD, &supervisor])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    );
    let said = Lines::gather(holder.stdout.take().expect("it is piped"));
    if wait_for("the thread to be held", || said.all().first().cloned()) == "refused" {
        println!("skipped: this user may not trace a process");
        holder.wait().unwrap();
        return;
    }
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    // Clients are served on, and the first thread goes on asking: what is not said is what counts, for longer than
    // the service manager would wait.
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    thread::sleep(Duration::from_millis(900));
    assert!(socket.recv(&mut [0; 4096]).is_err(), "nobody else speaks for it");
    socket.set_nonblocking(false).unwrap();
    drop(holder.stdin.take());
    holder.wait().unwrap();
    hear(&socket, "WATCHDOG=1");
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
