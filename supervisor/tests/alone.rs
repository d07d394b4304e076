//! What can be seen only when nothing else happens in the process: one test at a time.

#[path = "it/stage.rs"]
#[allow(dead_code, reason = "shared with the other tests, which need all of it")]
mod stage;

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard};

use toru_supervisor::{Command, Order};

use stage::{PATIENCE, Stage};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[test]
fn an_orphan_without_environment_goes_with_the_last_that_could_have_made_it() {
    let _turn = turn();
    let body = "(env -i setsid sh -c 'echo orphan $$; exec sleep 1000' &)\n\
                trap 'exit 0' TERM\nsleep 1000 & wait\n";
    let stage = Stage::of(&[("p", body)]);
    let orphan = stage.process("p", "orphan");
    stage.event("p", "ready");
    assert!(!orphan.has_ended());
    stage.order("p", Order::Disable).expect("stops");
    assert!(orphan.ends_within(PATIENCE));
}

/// Descriptors of this process, counted on the supervisor's thread, where nothing else is open meanwhile.
fn descriptors(stage: &Stage) -> usize {
    let (tell, told) = channel();
    let count = Box::new(move |_| {
        tell.send(std::fs::read_dir("/proc/self/fd").expect("proc").count()).expect("the test waits");
    });
    stage.handle.send(Command::Snapshot(count));
    told.recv_timeout(PATIENCE).expect("a snapshot")
}

/// Everything below this process, zombies too.
fn children() -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(line) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if line.rsplit(')').next().is_some_and(|rest| rest.split_whitespace().nth(1) == Some(&own)) {
            found.insert(line);
        }
    }
    found
}

#[test]
fn a_hundred_starts_stops_and_kills_leak_nothing() {
    let _turn = turn();
    // It leaves an orphan behind each time, dies by itself every other time, and is stopped every other time.
    let body = "(setsid sleep 1000 &)\ntrap 'exit 0' TERM\nsleep 1000 & wait\n";
    let stage = Stage::of(&[("p", body)]);
    stage.event("p", "ready");
    stage.order("p", Order::Disable).expect("stops");
    // The thread that reads the files at the start is done before a rescan ends.
    let (tell, told) = channel();
    stage.handle.send(Command::Rescan { done: Box::new(move |found| tell.send(found).expect("waits")) });
    told.recv_timeout(PATIENCE).expect("a rescan ends");
    let before = descriptors(&stage);
    for round in 0..100 {
        stage.order("p", Order::Enable).expect("starts");
        if round % 2 == 0 {
            let pid = stage.status("p").pid.expect("runs");
            let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid");
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
            stage.event("p", "crashed");
        }
        stage.order("p", Order::Disable).expect("stops");
    }
    assert_eq!(stage.status("p").state, "stopped");
    assert_eq!(descriptors(&stage), before);
    assert_eq!(children(), BTreeSet::new());
    let sockets = stage.dir.path().join("sockets");
    assert_eq!(std::fs::read_dir(&sockets).expect("sockets").count(), 0, "a socket is left in {sockets:?}");
    drop(stage);
    assert_eq!(children(), BTreeSet::new());
}
