//! The database against what can happen to it: kills, disks that are full or fail, backups in mid write.
//!
//! What the values are good for is in `kv.rs`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toru_tests::{Client, DEADLINE, Daemon, Killed, Response, Stage, has_program, output, spawn, wait_for};

const WRITERS: usize = 8;

fn call(daemon: &Daemon, request: &Value) -> Response {
    daemon.manage("POST", "/api/plugins/p/kv", request.to_string().as_bytes())
}

fn set(daemon: &Daemon, key: &str, value: &str) -> Response {
    call(daemon, &json!({"action": "set", "key": key, "value": value}))
}

fn get(daemon: &Daemon, key: &str) -> Value {
    let answer = call(daemon, &json!({"action": "get", "key": key}));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["value"].take()
}

#[track_caller]
fn assert_failure(answer: &Response, status: u16, code: &str) {
    assert_eq!((answer.status, &answer.json()["code"]), (status, &json!(code)), "{answer:?}");
}

/// Values are kept for plugins that are known, and one is known once it has described itself.
fn wait_known(daemon: &Daemon) {
    wait_for("the plugin to be known", || {
        (call(daemon, &json!({"action": "list"})).status == 200).then_some(())
    });
}

/// One set on a connection that stays; an error when the core is gone.
fn try_set(
    client: &mut Client<TcpStream>,
    bearer: &str,
    key: &str,
    value: &str,
) -> std::io::Result<Response> {
    let request = json!({"action": "set", "key": key, "value": value}).to_string();
    let fields = [("authorization", bearer), ("content-type", "application/json")];
    client.try_request("POST", "/api/plugins/p/kv", &fields, request.as_bytes())
}

/// What is in the file, read as the next start would.
fn stored(root: &Path, key: &str) -> Option<String> {
    let database = Connection::open_with_flags(root.join("data/toru.db"), OpenFlags::SQLITE_OPEN_READ_WRITE)
        .expect("there is a database");
    database
        .query_row("SELECT value FROM plugin_kv WHERE plugin_id = 'p' AND key = ?1", [key], |row| row.get(0))
        .optional()
        .expect("it can be read")
}

#[track_caller]
fn assert_sound(root: &Path) {
    let database = Connection::open(root.join("data/toru.db")).unwrap();
    let found: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(found, "ok");
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn nothing_that_eight_writers_were_acknowledged_is_lost_to_sigkills() {
    // `just kills` asks for more than a run of the suite has time for.
    let kills = std::env::var("TORU_TEST_KILLS").map_or(50, |text| text.parse().expect("a number"));
    let mut numbers = Numbers(7);
    let mut daemon = Stage::new().legacy_rust("p").start();
    wait_known(&daemon);
    let mut acknowledged = [0_u64; WRITERS];
    for kill in 0..kills {
        // The kill comes at a certain acknowledgement, in the middle of what the other writers do.
        let fatal = 1 + numbers.below(200);
        let bearer = format!("Bearer {}", daemon.token());
        thread::scope(|scope| {
            let (tell, told) = mpsc::channel();
            for (writer, last) in acknowledged.iter_mut().enumerate() {
                let (tell, bearer, daemon) = (tell.clone(), &bearer, &daemon);
                scope.spawn(move || {
                    let key = format!("w{writer}");
                    let Ok(mut client) = daemon.try_client() else { return };
                    while let Ok(answer) = try_set(&mut client, bearer, &key, &(*last + 1).to_string()) {
                        assert_eq!(answer.status, 200, "{answer:?}");
                        *last += 1;
                        if tell.send(()).is_err() {
                            // Nobody waits for more: the test has failed.
                            return;
                        }
                    }
                });
            }
            drop(tell);
            for _ in 0..fatal {
                told.recv_timeout(DEADLINE).expect("writers get on");
            }
            daemon.signal(Signal::KILL);
        });
        daemon.wait();
        daemon = daemon.start_again();
        wait_known(&daemon);
        for (writer, last) in acknowledged.iter_mut().enumerate() {
            let found = get(&daemon, &format!("w{writer}"));
            let found: u64 = found.as_str().map_or(0, |text| text.parse().unwrap());
            // One may have been stored without its acknowledgement getting out.
            assert!(
                found == *last || found == *last + 1,
                "kill {kill}: writer {writer} has {found}, {last} acknowledged"
            );
            *last = found;
        }
    }
    assert!(acknowledged.iter().all(|&last| last > 0), "{acknowledged:?}");
    println!("{kills} kills, {} values acknowledged, none lost", acknowledged.iter().sum::<u64>());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_sound(daemon.root());
}

/// Starts the daemon under strace, which kills it at one of its system calls, and sets `n` to one number after the
/// other until it is dead. Gives the last number acknowledged, beginning at `from`.
fn count_until_killed(stage: Stage, inject: &str, from: u64) -> (Stage, u64) {
    let stage = stage.under(["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject]);
    let mut daemon = Killed(spawn(stage.serve().stdout(Stdio::piped()).stderr(Stdio::null())));
    let mut acknowledged = from;
    let mut line = String::new();
    let stdout = daemon.0.stdout.take().expect("it is piped");
    BufReader::new(stdout).read_line(&mut line).expect("a line of text, or its end");
    if let Some(address) = line.trim_end().strip_prefix("listening on http://") {
        let token = fs::read_to_string(stage.root().join("data/token")).expect("it is made before");
        let bearer = format!("Bearer {}", token.trim());
        let connect = || {
            let stream = TcpStream::connect(address).ok()?;
            stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
            Some(Client::new(stream))
        };
        while let Some(mut client) = connect() {
            // Until the plugin is known it is 404; its own start is something to be killed at, too.
            while let Ok(answer) = try_set(&mut client, &bearer, "n", &(acknowledged + 1).to_string()) {
                match answer.status {
                    200 => acknowledged += 1,
                    404 | 503 => {}
                    _ => panic!("{answer:?}"),
                }
            }
        }
    }
    wait_for("the daemon to be killed", || daemon.0.try_wait().expect("our own child"));
    (stage.under([""; 0]), acknowledged)
}

/// Whether strace may trace here; else says why the test does nothing.
fn can_trace() -> bool {
    if !has_program("strace") {
        println!("skipped: no strace here");
        return false;
    }
    let tried = output(Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]));
    if !tried.status.success() {
        println!("skipped: {}", String::from_utf8_lossy(&tried.stderr));
    }
    tried.status.success()
}

/// A kill in front of each of the first writes: the file is made, the schema, values, and the log written back; each
/// start goes on from what the kill before it left.
// Row: core SIGKILLed while values are acknowledged
#[test]
fn nothing_acknowledged_is_lost_to_a_kill_at_each_of_the_first_writes() {
    const WRITES: u64 = 100;
    if !can_trace() {
        return;
    }
    let mut stage = Stage::new().legacy_rust("p").set("server.workers", 1);
    let mut last = 0;
    let mut killed_while_serving = 0;
    for number in 1..=WRITES {
        let inject = format!("inject=pwrite64:signal=KILL:when={number}");
        let acknowledged;
        (stage, acknowledged) = count_until_killed(stage, &inject, last);
        killed_while_serving += u64::from(acknowledged > last);
        // Killed while it made the file, it has none yet.
        if stage.root().join("data/toru.db").exists() {
            let found: u64 = stored(stage.root(), "n").map_or(0, |text| text.parse().unwrap());
            assert!(
                found == acknowledged || found == acknowledged + 1,
                "write {number}: {found} stored, {acknowledged} acknowledged"
            );
            assert_sound(stage.root());
            last = found;
        } else {
            assert_eq!(acknowledged, 0, "write {number}: what was acknowledged is gone with its file");
        }
    }
    assert!(killed_while_serving > WRITES / 4, "{killed_while_serving} of {WRITES}");
    let daemon = stage.start();
    wait_known(&daemon);
    assert_eq!(get(&daemon, "n"), json!(last.to_string()));
}

/// Traces every thread of the daemon with `inject`, or says why not.
fn trace(daemon: &Daemon, inject: &str) -> Option<Killed> {
    let pid = daemon.pid().as_raw_nonzero().to_string();
    let mut strace = Killed(spawn(
        Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", inject, "-p", &pid])
            .stdin(Stdio::null())
            .stderr(Stdio::null()),
    ));
    let attached = wait_for("strace to attach", || {
        if strace.0.try_wait().unwrap().is_some() {
            return Some(false);
        }
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let traced = |task: &fs::DirEntry| {
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        tasks.into_iter().all(|task| traced(&task)).then_some(true)
    });
    if !attached {
        println!("skipped: this machine lets nobody trace");
    }
    attached.then_some(strace)
}

// Row: fsync fails
#[test]
fn a_value_refused_by_a_failing_sync_never_comes_back() {
    if !can_trace() {
        return;
    }
    let mut daemon = Stage::new().legacy_rust("p").start();
    // No event is to come later: it would be written over what must not come back.
    daemon.wait_running("p");
    assert_eq!(set(&daemon, "k", "before").status, 200);
    let Some(mut strace) = trace(&daemon, "inject=fsync,fdatasync:error=EIO") else { return };
    assert_failure(&set(&daemon, "k", "lost"), 503, "unavailable");
    // Degraded: nothing is written, what was acknowledged is read, and everybody else is served.
    assert_failure(&set(&daemon, "other", "lost, too"), 503, "unavailable");
    assert_eq!(get(&daemon, "k"), "before");
    assert_eq!(daemon.get("/healthz").status, 200);
    kill_process(Pid::from_child(&strace.0), Signal::INT).unwrap();
    strace.0.wait().unwrap();
    let said = |part: &str| {
        daemon.supervisor_log().iter().any(|line| line["message"].as_str().unwrap_or_default().contains(part))
    };
    wait_for("the log to tell", || (said("could not be written") && said("is written again")).then_some(()));
    // Nothing has been written over the refused value yet: what lies in the files now is what the next start believes.
    daemon.kill();
    let daemon = daemon.start_again();
    wait_known(&daemon);
    assert_eq!(get(&daemon, "k"), "before");
    assert_eq!(get(&daemon, "other"), Value::Null);
    assert_eq!(set(&daemon, "k", "after").status, 200);
}

// Row: disk full
#[test]
fn a_disk_that_fills_under_load_loses_nothing_acknowledged() {
    // Root in a name space of its own may mount, whoever it is outside.
    let namespace = ["unshare", "--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o size=3m,mode=0700 tmpfs \"$1\" && shift && exec \"$@\"";
    let stage = Stage::new().legacy_rust("p");
    let data = stage.root().join("data");
    fs::create_dir(&data).unwrap();
    let mut tried = Command::new(namespace[0]);
    tried.args(&namespace[1..]).args(["sh", "-c", mount, "sh"]).arg(&data).arg("true");
    let possible = has_program("unshare") && output(&mut tried).status.success();
    if !possible {
        println!("skipped: nothing can be mounted here");
        return;
    }
    // The token would lie on the small disk, where only the daemon sees it.
    let token = stage.root().join("token");
    fs::write(&token, "0123456789abcdef0123456789abcdef").unwrap();
    fs::copy(&token, data.join("token")).unwrap();
    let mut wrapper: Vec<String> = namespace.map(str::to_owned).to_vec();
    wrapper.extend(["sh", "-c", mount, "sh"].map(str::to_owned));
    wrapper.push(data.to_str().unwrap().to_owned());
    let daemon = stage.set("auth.token_file", format!("{:?}", token)).under(wrapper).start();
    wait_known(&daemon);
    let inside = Path::new("/proc").join(daemon.pid().as_raw_nonzero().to_string()).join("root");
    let ballast = inside.join(data.strip_prefix("/").unwrap()).join("ballast");
    let mut file = fs::File::create(&ballast).expect("the daemon's disk can be reached");
    file.write_all(&vec![0; 1 << 20]).expect("there is room for a third");
    let bearer = format!("Bearer {}", daemon.token());
    let large = "x".repeat(20_000);
    let mut acknowledged: Vec<String> = Vec::new();
    let full_since = Instant::now();
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (daemon, bearer, large) = (&daemon, &bearer, &large);
                scope.spawn(move || {
                    let mut client = daemon.client();
                    let mut kept = Vec::new();
                    loop {
                        let key = format!("{writer}-{}", kept.len());
                        let answer = try_set(&mut client, bearer, &key, &format!("{key} {large}")).unwrap();
                        if answer.status != 200 {
                            assert_failure(&answer, 507, "disk_full");
                            return kept;
                        }
                        kept.push(key);
                    }
                })
            })
            .collect();
        for writer in writers {
            acknowledged.extend(writer.join().unwrap());
        }
    });
    assert!(!acknowledged.is_empty(), "there was room at first");
    assert_eq!(daemon.get("/healthz").status, 200, "HTTP lives");
    let check = |when: &str| {
        for key in &acknowledged {
            assert_eq!(get(&daemon, key), json!(format!("{key} {large}")), "{when}");
        }
    };
    check("on the full disk");
    let told = || {
        let mut lines = daemon.supervisor_log();
        lines.retain(|line| line["message"].as_str().is_some_and(|text| text.ends_with("the disk is full")));
        lines
    };
    let lines = wait_for("the log to tell of it", || Some(told()).filter(|lines| !lines.is_empty()));
    let text = lines[0]["message"].as_str().unwrap();
    assert!(text.contains("toru.db takes no values") && lines[0]["level"] == "warn", "{}", lines[0]);
    // Each writer was refused once; a few more, and there must not be a line for each.
    for _ in 0..10 {
        set(&daemon, "more", &large);
    }
    assert!(told().len() as u64 <= 1 + full_since.elapsed().as_secs() / 60, "{:?}", told());
    drop(file);
    fs::remove_file(&ballast).unwrap();
    wait_for("a value to be taken again", || (set(&daemon, "after", "fine").status == 200).then_some(()));
    check("with room again");
    assert_eq!(get(&daemon, "after"), "fine");
}

#[test]
fn keys_values_and_quota_have_their_codes_over_http() {
    let daemon = Stage::new().legacy_rust("p").set("kv.quota_bytes", 1000).start();
    wait_known(&daemon);
    assert_eq!(set(&daemon, &"k".repeat(512), "v").status, 200);
    assert_failure(&set(&daemon, &"k".repeat(513), "v"), 413, "too_large");
    assert_failure(&set(&daemon, "", "v"), 400, "invalid");
    assert_failure(&set(&daemon, "k", &"v".repeat(1000)), 507, "quota");
    assert_eq!(call(&daemon, &json!({"action": "delete", "key": "k".repeat(512)})).status, 200);
    assert_eq!(set(&daemon, "k", &"v".repeat(999)).status, 200);
    assert_failure(&set(&daemon, "l", ""), 507, "quota");
}

/// `toru db …` on the folder of a stage or daemon.
fn db(root: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(toru_tests::binary("toru"));
    command.arg("db").args(arguments).arg("--config").arg(root.join("toru.toml"));
    output(command.arg("--data-dir").arg(root.join("data")))
}

fn said(printed: &Output) -> String {
    String::from_utf8_lossy(&printed.stdout).into_owned() + &String::from_utf8_lossy(&printed.stderr)
}

#[test]
fn a_backup_in_mid_write_is_one_moment_and_can_be_restored() {
    let mut daemon = Stage::new().legacy_rust("p").start();
    wait_known(&daemon);
    assert_eq!(set(&daemon, "n", "0").status, 200);
    let backup = daemon.root().join("backup");
    let name = backup.to_str().unwrap();
    let bearer = format!("Bearer {}", daemon.token());
    let (before, after) = thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        // Both keys in turn: in no moment are they more than one apart. It ends when nobody listens.
        let (daemon, bearer) = (&daemon, &bearer);
        let writer = scope.spawn(move || {
            let mut client = daemon.client();
            let mut number = 0_u64;
            loop {
                number += 1;
                for key in ["m", "n"] {
                    let answer = try_set(&mut client, bearer, key, &number.to_string()).unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                }
                if tell.send(number).is_err() {
                    return number;
                }
            }
        });
        let mut before = 0;
        for _ in 0..20 {
            before = told.recv_timeout(DEADLINE).expect("the writer gets on");
        }
        for _ in 0..3 {
            let printed = db(daemon.root(), &["backup", name]);
            assert!(printed.status.success() && said(&printed).contains("sound"), "{printed:?}");
        }
        drop(told);
        (before, writer.join().unwrap())
    });
    let copy = Connection::open(&backup).unwrap();
    let number = |key: &str| -> u64 {
        let query = "SELECT value FROM plugin_kv WHERE plugin_id = 'p' AND key = ?1";
        copy.query_row(query, [key], |row| row.get::<_, String>(0)).unwrap().parse().unwrap()
    };
    let (m, n) = (number("m"), number("n"));
    assert!(n == m || n + 1 == m, "m is {m}, n is {n}");
    assert!((before..=after).contains(&m), "{m} is not from {before} to {after}");
    drop(copy);
    let names: Vec<_> =
        fs::read_dir(daemon.root()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    let rest: Vec<_> = names.iter().filter(|name| name.to_string_lossy().contains("backup")).collect();
    assert_eq!(rest, ["backup"], "one file, and nothing of the making");

    let checked = db(daemon.root(), &["check"]);
    assert!(checked.status.success() && said(&checked).contains("2 values of 1 plugins"), "{checked:?}");
    let refused = db(daemon.root(), &["restore", name]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(said(&refused).contains("another toru uses"), "{refused:?}");
    assert_eq!(get(&daemon, "n"), json!(after.to_string()), "nothing happened to it");

    // Killed, so that there is a log to be kept aside with its file.
    daemon.kill();
    let restored = db(daemon.root(), &["restore", name]);
    assert!(restored.status.success(), "{restored:?}");
    let printed = said(&restored);
    let kept = printed.trim_end().rsplit_once("kept as ").expect("it says where the old one is").1;
    let old = Connection::open(kept).unwrap();
    let value: String =
        old.query_row("SELECT value FROM plugin_kv WHERE key = 'n'", [], |row| row.get(0)).unwrap();
    assert_eq!(value, after.to_string());
    let daemon = daemon.start_again();
    wait_known(&daemon);
    assert_eq!(get(&daemon, "n"), json!(n.to_string()));
    assert_eq!(get(&daemon, "m"), json!(m.to_string()));
}

#[test]
fn what_is_no_backup_is_not_restored() {
    let mut daemon = Stage::new().legacy_rust("p").start();
    wait_known(&daemon);
    assert_eq!(set(&daemon, "k", "v").status, 200);
    assert_eq!(daemon.terminate().code(), Some(0));
    let root = daemon.root().to_owned();
    let there = fs::read(root.join("data/toru.db")).unwrap();
    let foreign = root.join("foreign");
    Connection::open(&foreign)
        .unwrap()
        .execute_batch("CREATE TABLE t (a); PRAGMA user_version = 99;")
        .unwrap();
    fs::write(root.join("garbage"), [0x5a; 5000]).unwrap();
    for (file, reason) in [
        ("nothing", "there is no database"),
        ("garbage", "damaged"),
        ("foreign", "schema version 99"),
        ("data/toru.db", "the database itself"),
    ] {
        let printed = db(&root, &["restore", root.join(file).to_str().unwrap()]);
        assert_eq!(printed.status.code(), Some(1), "{file}: {printed:?}");
        assert!(said(&printed).contains(reason), "{file}: {printed:?}");
        assert!(fs::read(root.join("data/toru.db")).unwrap() == there, "{file}: the database is as it was");
    }
    let mut bytes = there;
    bytes[..4096].fill(0x5a);
    fs::write(root.join("data/toru.db"), &bytes).unwrap();
    let printed = db(&root, &["check"]);
    assert_eq!(printed.status.code(), Some(1));
    assert!(said(&printed).contains("damaged"), "{printed:?}");
}
