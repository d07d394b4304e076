//! What operators ask for, and what they are answered.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use serde_json::json;
use toru_supervisor::{Command, Kept, Order, ProcessSettings, Rescanned};

use crate::stage::{PATIENCE, Said, Stage, folder, put, put_file};

const WAIT: &str = "trap 'exit 0' TERM\nsleep 1000 & wait\n";

fn refused(outcome: Result<(), toru_supervisor::OrderError>) -> String {
    outcome.expect_err("refused").to_string()
}

#[test]
fn start_and_stop_are_not_kept_and_enable_and_disable_are() {
    let stage = Stage::of(&[("p", WAIT)]);
    stage.event("p", "ready");
    stage.order("p", Order::Stop).expect("stops");
    let status = stage.status("p");
    assert_eq!((status.state, status.enabled, status.pid), ("stopped", true, None));
    stage.order("p", Order::Stop).expect("it is stopped");
    stage.order("p", Order::Start).expect("starts");
    assert_eq!(stage.status("p").state, "running");
    stage.order("p", Order::Disable).expect("stops");
    assert!(!stage.status("p").enabled);
    stage.order("p", Order::Start).expect("starts");
    let status = stage.status("p");
    assert_eq!((status.state, status.enabled), ("running", false), "as with systemctl start");
    stage.order("p", Order::Restart).expect("restarts");
    assert!(!stage.status("p").enabled);
    stage.order("p", Order::ResetFailed).expect("nothing to forget");
    assert_eq!(stage.status("p").state, "running");
    stage.event("p", "disabled");
    assert!(refused(stage.order("nobody", Order::Start)).contains("nobody"));
}

#[test]
fn an_order_that_cannot_be_done_says_what_it_waits_for() {
    let (dir, mut settings) = folder(&[]);
    settings.adjustable.policy.backoff = vec![Duration::from_secs(3600)];
    // 1.1: a 1.0 plugin would be ready as soon as its socket is there, which is the test's.
    put(dir.path(), "p", "1.1", "exit 3");
    let stage = Stage::start(dir, settings);
    stage.event("p", "crashed");
    let why = refused(stage.order("p", Order::Start));
    assert!(why.contains("exit code 3") && why.contains("the next start is in"), "{why}");
    stage.order("p", Order::Stop).expect("there is nothing to stop");
    assert_eq!(stage.status("p").state, "stopped");
    stage.event("p", "stopped");
    // Started again, so there is a crash to be stopped after; what is told then is about no run.
    let _ = stage.order("p", Order::Start);
    stage.event("p", "crashed");
    stage.order("p", Order::Stop).expect("there is nothing to stop");
    let told = stage.event("p", "stopped");
    assert!(told["uptime_ms"].is_null() && told["exit"].is_null(), "{told}");
    assert!(told["reason"].as_str().is_some_and(|why| why.contains("stop was ordered")), "{told}");
}

#[test]
fn an_order_is_overtaken_by_its_opposite() {
    // Neither of them ends by itself: it never gets ready, and hears no SIGTERM.
    let (dir, mut settings) = folder(&[]);
    settings.adjustable.policy.term_grace = PATIENCE;
    put(dir.path(), "p", "1.1", "trap '' TERM\necho up\nwhile :; do sleep 1000; done");
    let stage = Stage::start(dir, settings);
    stage.line("p", "up");
    let ask = |order| {
        let (tell, told) = channel();
        let done = Box::new(move |outcome| tell.send(outcome).expect("the test waits"));
        stage.handle.send(Command::Order { id: "p".into(), order, done });
        told
    };
    let enable = ask(Order::Enable);
    let disable = ask(Order::Disable);
    let why = refused(enable.recv_timeout(PATIENCE).expect("an answer"));
    assert!(why.contains("stopped meanwhile"), "{why}");
    let enable = ask(Order::Enable);
    let why = refused(disable.recv_timeout(PATIENCE).expect("an answer"));
    assert!(why.contains("started again meanwhile"), "{why}");
    stage.handle.send(Command::StopNow);
    let why = refused(enable.recv_timeout(PATIENCE).expect("an answer"));
    assert!(why.contains("stopped meanwhile"), "{why}");
}

#[test]
fn a_plugin_that_was_given_up_comes_back_by_reset_failed() {
    let (dir, settings) = folder(&[]);
    let broken = dir.path().join("broken");
    std::fs::write(&broken, "").expect("write");
    put(dir.path(), "p", "1.0", &format!("[ -e {} ] && exit 127\n{WAIT}", broken.display()));
    let stage = Stage::start(dir, settings);
    stage.event("p", "disabled_after_crashes");
    assert_eq!(stage.status("p").state, "failed");
    // It may have been ready for a moment before it ended, since its socket is the test's.
    let _ = stage.order("p", Order::ResetFailed);
    let details = stage.event("p", "disabled_after_crashes");
    assert!(details["exit"].as_str().expect("an exit").contains("127"), "it tries again, and fails again");
    std::fs::remove_file(&broken).expect("remove");
    stage.order("p", Order::ResetFailed).expect("starts");
    assert_eq!(stage.status("p").state, "running");
}

#[test]
fn what_is_kept_holds_in_the_next_run() {
    let (dir, settings) = folder(&[("off", WAIT), ("broken", "exit 127"), ("p", WAIT)]);
    let mut next = folder(&[]).1;
    (next.plugins_dir, next.sockets_dir) = (settings.plugins_dir.clone(), settings.sockets_dir.clone());
    let mut stage = Stage::start(dir, settings);
    stage.event("broken", "disabled_after_crashes");
    stage.event("off", "ready");
    stage.event("p", "ready");
    stage.order("off", Order::Disable).expect("stops");
    stage.order("p", Order::Restart).expect("restarts");
    stage.order("p", Order::Stop).expect("stops");
    // The last that is said of each, once its end is in it.
    let mut kept = |id: &str, is_whole: &dyn Fn(&Kept) -> bool| {
        let kept = stage.find(&format!("what is kept of {id}"), |said| match said {
            Said::Kept { plugin, kept } if plugin == id && is_whole(kept) => Some(kept.clone()),
            _ => None,
        });
        next.kept.insert(id.to_owned(), kept.clone());
        kept
    };
    let broken = kept("broken", &|kept| kept.failed.is_some());
    assert!(broken.failed.as_ref().expect("given up").contains("127"), "{broken:?}");
    let in_words = "exit code 127: what it should run was not found";
    assert_eq!((broken.failures, broken.last_exit.as_deref()), (1, Some(in_words)));
    let off = kept("off", &|kept| kept.last_exit.is_some());
    assert_eq!((off.enabled, off.restarts, off.failures, off.failed), (false, 0, 0, None));
    let p = kept("p", &|kept| kept.restarts == 1 && kept.last_exit.is_some());
    assert_eq!((p.enabled, p.failures, p.failed.clone()), (true, 0, None));
    assert!(p.restarted_unix_ms > Some(1_700_000_000_000), "{p:?}");
    drop(stage.unheard());
    let at_the_end = stage.hear_the_end();
    assert!(!at_the_end.iter().any(|said| matches!(said, Said::Kept { .. })), "{at_the_end:#?}");
    let stage = Stage::start(stage.stop(), next);
    stage.event("p", "ready");
    stage.event("off", "discovered");
    stage.event("broken", "discovered");
    assert_eq!((stage.status("p").state, stage.status("p").restarts), ("running", 1));
    assert_eq!((stage.status("off").state, stage.status("off").enabled), ("stopped", false));
    let status = stage.status("broken");
    assert_eq!((status.state, status.failures, status.last_exit), ("failed", 1, broken.last_exit));
    assert_eq!(stage.status("p").restarted_unix_ms, p.restarted_unix_ms);
    put(stage.dir.path(), "broken", "1.0", WAIT);
    // A file that was mended starts without being told: what was given up was another one.
    rescan(&stage);
    stage.event("broken", "ready");
    stage.find("that it is forgotten", |said| match said {
        Said::Kept { plugin, kept } if plugin == "broken" && kept.failed.is_none() => Some(()),
        _ => None,
    });
}

/// The last that is kept of a plugin that was given up, with the hash of its file.
fn given_up(stage: &Stage, id: &str) -> Kept {
    stage.find("that it was given up", |said| match said {
        Said::Kept { plugin, kept } if plugin == id && kept.failed_content.is_some() => Some(kept.clone()),
        _ => None,
    })
}

/// Waits until a plugin runs. An event says less: one that fails may have been ready for a moment before.
#[track_caller]
fn runs(stage: &Stage, id: &str) {
    let deadline = Instant::now() + PATIENCE;
    while (stage.status(id).state, stage.status(id).failures) != ("running", 0) {
        assert!(Instant::now() < deadline, "{:?}", stage.status(id));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_was_given_up_starts_with_another_file_and_not_with_the_same() {
    let (dir, settings) = folder(&[("p", "exit 127"), ("q", "exit 127")]);
    let mut next = folder(&[]).1;
    (next.plugins_dir, next.sockets_dir) = (settings.plugins_dir.clone(), settings.sockets_dir.clone());
    let stage = Stage::start(dir, settings);
    for id in ["p", "q"] {
        next.kept.insert(id.into(), given_up(&stage, id));
    }
    // In the place of one, after it was taken away, comes the same, and then another.
    let file = stage.dir.path().join("plugins/q.binary");
    for (body, message) in [
        ("exit 127", "Plugin not started: it was given up with the same file before"),
        (WAIT, "Plugin was given up with another file, and is started with this one"),
    ] {
        std::fs::remove_file(&file).expect("remove");
        assert_eq!(rescan(&stage).removed, names(&["q"]));
        put(stage.dir.path(), "q", "1.0", body);
        assert_eq!(rescan(&stage).added, names(&["q"]));
        stage.find(message, |said| match said {
            Said::Log { message: found, .. } if found == message => Some(()),
            _ => None,
        });
    }
    runs(&stage, "q");
    // The same while no daemon runs.
    let dir = stage.stop();
    put(dir.path(), "p", "1.0", WAIT);
    put(dir.path(), "q", "1.0", "exit 127");
    let stage = Stage::start(dir, next);
    stage.event("p", "discovered");
    runs(&stage, "p");
    stage.find("that the other one stays", |said| match said {
        Said::Log { message, .. } => message.ends_with("it was given up in an earlier run").then_some(()),
        _ => None,
    });
    assert_eq!((stage.status("q").state, stage.status("q").failures), ("failed", 1));
}

fn rescan(stage: &Stage) -> Rescanned {
    let (tell, told) = channel();
    let done = Box::new(move |found| tell.send(found).expect("the test waits"));
    stage.handle.send(Command::Rescan { done });
    told.recv_timeout(PATIENCE).expect("a rescan ends")
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_file_too_slow_to_say_what_it_is_is_asked_again_and_told_of_once() {
    let (dir, mut settings) = folder(&[]);
    settings.metadata_timeout = Duration::from_millis(500);
    let stage = Stage::start(dir, settings);
    // After this the first look is over.
    assert_eq!(rescan(&stage), Rescanned::default());
    let asked = stage.dir.path().join("asked");
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\n\
         echo >>{asked}\n[ $(wc -l <{asked}) -ge 3 ] || exec sleep 1000\n\
         echo '{{\"id\":\"p\",\"name\":\"P\",\"version\":\"1\",\"icon\":\"-\",\"route\":\"/p\"}}'; exit\nfi\n{WAIT}",
        asked = asked.display(),
    );
    put_file(stage.dir.path(), "p", &text);
    let skipped = rescan(&stage).skipped;
    assert!(skipped.len() == 1 && skipped[0].contains("asked again by itself, next in 1 s"), "{skipped:?}");
    stage.event("p", "ready");
    assert_eq!(rescan(&stage), Rescanned::default(), "it is what it was when it answered");
    let told = |said: &Said| matches!(said, Said::Log { message, .. } if message == "Plugin skipped");
    assert_eq!(stage.unheard().iter().filter(|said| told(said)).count(), 1);
}

#[test]
fn a_changed_file_too_slow_to_say_what_it_is_is_asked_again_while_the_old_one_runs() {
    let (dir, mut settings) = folder(&[("p", &format!("echo up\n{WAIT}"))]);
    settings.metadata_timeout = Duration::from_millis(500);
    let stage = Stage::start(dir, settings);
    stage.event("p", "ready");
    stage.line("p", "up");
    let pid = stage.status("p").pid;
    let (asked, gate) = (stage.dir.path().join("asked"), stage.dir.path().join("gate"));
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\necho >>{asked}\n[ -e {gate} ] || exec sleep 1000\n\
         echo '{{\"id\":\"p\",\"name\":\"P\",\"version\":\"2\",\"icon\":\"-\",\"route\":\"/p\",\"protocol\":\"1.0\"}}'; exit\nfi\n{WAIT}",
        asked = asked.display(),
        gate = gate.display(),
    );
    put_file(stage.dir.path(), "p", &text);
    let found = rescan(&stage);
    assert!(found.skipped[0].contains("asked again by itself, next in 1 s"), "{found:?}");
    assert_eq!(found.changed, [""; 0]);
    let told = stage.event("p", "binary_changed");
    assert!(told["refused"].as_str().is_some_and(|why| why.contains("did not end in time")), "{told}");
    let began = Instant::now();
    while std::fs::read_to_string(&asked).expect("it was asked").len() < 2 {
        assert!(began.elapsed() < PATIENCE, "it is not asked again");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(stage.status("p").pid, pid, "{:#?}", stage.unheard());
    std::fs::write(&gate, "").expect("write");
    let told = stage.event("p", "binary_changed");
    assert_eq!(told["version"], "2", "told once that it was slow: {told}");
    stage.event("p", "ready");
    assert_eq!(stage.status("p").metadata.version, "2");
    assert_eq!(rescan(&stage), Rescanned::default(), "it is what it was when it answered");
}

#[test]
fn a_rescan_starts_new_files_stops_gone_ones_and_restarts_changed_ones() {
    let stage = Stage::of(&[("changes", WAIT), ("goes", WAIT), ("stays", WAIT)]);
    for id in ["changes", "goes", "stays"] {
        stage.event(id, "ready");
    }
    assert_eq!(rescan(&stage), Rescanned::default());
    let (stays, changes) = (stage.status("stays").pid, stage.status("changes").pid);
    let dir = stage.dir.path();
    std::fs::remove_file(dir.join("plugins/goes.binary")).expect("remove");
    put(dir, "comes", "1.0", WAIT);
    put(dir, "changes", "1.0", &format!("echo changed\n{WAIT}"));
    // Written again with the same content: another inode and other times, and still the same plugin.
    put(dir, "stays", "1.0", WAIT);
    let found = rescan(&stage);
    let expect = Rescanned {
        added: names(&["comes"]),
        changed: names(&["changes"]),
        removed: names(&["goes"]),
        skipped: vec![],
    };
    assert_eq!(found, expect);
    stage.event("goes", "stopped");
    stage.event("comes", "ready");
    stage.event("changes", "binary_changed");
    stage.line("changes", "changed");
    stage.event("changes", "ready");
    assert_ne!(stage.status("changes").pid, changes);
    assert_eq!(stage.status("stays").pid, stays);
    assert_eq!(rescan(&stage), Rescanned::default());
    // And back again, as a new entry under the old name.
    put(stage.dir.path(), "goes", "1.0", WAIT);
    assert_eq!(rescan(&stage).added, ["goes"]);
    stage.event("goes", "ready");
}

#[test]
fn a_changed_file_that_cannot_be_run_leaves_the_running_one_alone_and_is_told() {
    let stage = Stage::of(&[("p", &format!("echo up\n{WAIT}"))]);
    stage.event("p", "ready");
    stage.line("p", "up");
    let pid = stage.status("p").pid;
    let file = stage.dir.path().join("plugins/p.binary");
    for (text, why) in [("this is no program\n", "#!"), ("#!/no/such/interpreter\n", "interpreter")] {
        put_file(stage.dir.path(), "p", text);
        let found = rescan(&stage);
        assert!(found.skipped.len() == 1 && found.skipped[0].contains(why), "{found:?}");
        let told = stage.event("p", "binary_changed");
        assert!(told["refused"].as_str().is_some_and(|reason| reason.contains(why)), "{told}");
        assert_eq!((&told["file"], &told["pid"]), (&json!(file), &json!(pid)), "{told}");
    }
    assert_eq!(stage.status("p").pid, pid, "{:#?}", stage.unheard());
    put(stage.dir.path(), "p", "1.0", &format!("echo new\n{WAIT}"));
    assert_eq!(rescan(&stage).changed, ["p"]);
    stage.line("p", "new");
}

#[test]
fn a_changed_file_that_is_no_plugin_leaves_the_running_one_alone() {
    let stage = Stage::of(&[("p", &format!("echo up\n{WAIT}"))]);
    stage.event("p", "ready");
    // Its socket is the test's, so it may be ready before its shell has opened the file that is to be replaced.
    stage.line("p", "up");
    let pid = stage.status("p").pid;
    put_file(stage.dir.path(), "p", "#!/bin/sh\necho nonsense\n");
    let found = rescan(&stage);
    assert!(found.skipped[0].contains("p.binary: --metadata"), "{found:?}");
    assert_eq!((found.changed.len(), found.removed.len()), (0, 0));
    let listed = stage.skipped();
    assert!(listed.len() == 1 && listed[0].1.contains("--metadata"), "{listed:?}");
    let told = stage.event("p", "binary_changed");
    assert!(told["refused"].as_str().is_some_and(|why| why.contains("--metadata")), "{told}");
    assert_eq!(stage.status("p").pid, pid, "{:#?}", stage.unheard());
    let long = "#!/bin/sh\nfor line in $(seq 500); do echo \"line $line\"; done >&2\necho 'the reason' >&2\nexit 1\n";
    put_file(stage.dir.path(), "p", long);
    let found = rescan(&stage);
    let (_, words) = found.skipped[0].split_once("it wrote, in the end: line ").expect("what it wrote last");
    assert!(words.ends_with("\nthe reason") && words.len() < 1024, "{words}");
    std::fs::rename(stage.dir.path().join("plugins"), stage.dir.path().join("away")).expect("rename");
    let found = rescan(&stage);
    assert!(found.skipped[0].contains("nothing changes"), "{found:?}");
    assert_eq!(stage.status("p").pid, pid, "{:#?}", stage.unheard());
    std::fs::rename(stage.dir.path().join("away"), stage.dir.path().join("plugins")).expect("rename");
    put(stage.dir.path(), "p", "1.0", &format!("echo up\n{WAIT}"));
    rescan(&stage);
    assert_eq!(stage.skipped(), [], "it is what runs again");
    assert_eq!(stage.status("p").pid, pid, "{:#?}", stage.unheard());
}

#[test]
fn a_file_that_is_another_plugin_now_removes_the_one_that_it_was() {
    let stage = Stage::of(&[("p", WAIT)]);
    stage.event("p", "ready");
    let metadata = r#"{"id":"q","name":"q","version":"1","icon":"-","route":"/q","protocol":"1.0"}"#;
    put_file(stage.dir.path(), "p", &format!("#!/bin/sh\n[ $1 ] && echo '{metadata}' && exit\n{WAIT}"));
    let found = rescan(&stage);
    assert_eq!((found.changed, found.removed), (names(&["q"]), names(&["p"])));
    stage.event("p", "stopped");
    stage.event("q", "ready");
}

#[test]
fn a_changed_file_that_did_not_answer_once_is_asked_again() {
    let stage = Stage::of(&[("p", &format!("echo up\n{WAIT}"))]);
    stage.event("p", "ready");
    stage.line("p", "up");
    let broken = stage.dir.path().join("broken");
    std::fs::write(&broken, "").expect("write");
    let metadata = r#"{"id":"p","name":"p","version":"2","icon":"-","route":"/p","protocol":"1.0"}"#;
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\n[ -e {} ] && exit 1\necho '{metadata}'\nexit\nfi\n{WAIT}",
        broken.display()
    );
    put_file(stage.dir.path(), "p", &text);
    for _ in 0..2 {
        let found = rescan(&stage);
        assert_eq!((found.skipped.len(), found.changed.len()), (1, 0), "{found:?}");
    }
    std::fs::remove_file(&broken).expect("remove");
    assert_eq!(rescan(&stage).changed, ["p"]);
    stage.event("p", "ready");
    assert_eq!(stage.status("p").metadata.version, "2");
    assert_eq!(rescan(&stage), Rescanned::default());
}

#[test]
fn a_table_that_changed_restarts_what_crashed_or_was_given_up() {
    let (dir, mut settings) = folder(&[("failed", "[ $GO ] || exit 127\nsleep 1000 & wait")]);
    settings.adjustable.policy.backoff = vec![Duration::from_secs(3600)];
    put(dir.path(), "waiting", "1.1", "[ $GO ] || exit 3\nsleep 1000 & wait");
    let mut new = settings.adjustable.clone();
    let stage = Stage::start(dir, settings);
    for (id, end) in [("failed", "disabled_after_crashes"), ("waiting", "crashed")] {
        stage.event(id, "started");
        stage.event(id, end);
        let env = vec![("GO".to_owned(), "1".to_owned())];
        new.process.insert(id.to_owned(), ProcessSettings { env, ..ProcessSettings::default() });
    }
    stage.handle.send(Command::Configure(Box::new(new)));
    for id in ["failed", "waiting"] {
        stage.event(id, "started");
        assert!(stage.status(id).pid.is_some(), "{id}");
    }
}

#[test]
fn a_stop_forgives_nothing() {
    let stage = Stage::of(&[("p", "exit 127")]);
    stage.event("p", "disabled_after_crashes");
    assert!(given_up(&stage, "p").failed.is_some_and(|why| why.contains("127")));
    drop(stage.unheard());
    stage.order("p", Order::Stop).expect("there is nothing to stop");
    assert_eq!(stage.status("p").state, "stopped");
    let told = stage.unheard();
    assert!(!told.iter().any(|said| matches!(said, Said::Kept { .. })), "{told:#?}");
    stage.order("p", Order::ResetFailed).expect("it is not wanted");
    let forgiven = stage.find("what is kept", |said| match said {
        Said::Kept { kept, .. } => Some(kept.clone()),
        _ => None,
    });
    assert_eq!((forgiven.failed, forgiven.failed_content), (None, None));
}

#[test]
fn the_first_in_name_order_wins_on_a_rescan_too() {
    let stage = Stage::of(&[("b", WAIT)]);
    stage.event("b", "ready");
    let same_id = |file: &str| {
        let text = std::fs::read_to_string(stage.dir.path().join("plugins/b.binary")).expect("read");
        put_file(stage.dir.path(), file, &format!("{text}\n# {file}\n"));
    };
    same_id("c");
    let found = rescan(&stage);
    assert!(found.skipped[0].contains("c.binary: field `id`"), "{found:?}");
    let pid = stage.status("b").pid;
    same_id("a");
    let found = rescan(&stage);
    assert!(found.skipped.iter().any(|why| why.contains("b.binary: field `id`")), "{found:?}");
    stage.event("b", "stopped");
    stage.event("b", "ready");
    assert_ne!(stage.status("b").pid, pid);
    // The winner goes, and the next in order takes its place.
    std::fs::remove_file(stage.dir.path().join("plugins/a.binary")).expect("remove");
    let found = rescan(&stage);
    // Whichever of the two calls ended first.
    assert!(found.skipped[0].contains("c.binary") && found.skipped[0].ends_with("b.binary"), "{found:?}");
    assert_eq!((found.removed, found.added), (names(&["b"]), names(&["b"])));
    stage.event("b", "ready");
}

#[test]
fn a_file_that_becomes_another_plugin_is_another_plugin() {
    let stage = Stage::of(&[("p", WAIT)]);
    stage.event("p", "ready");
    let text = std::fs::read_to_string(stage.dir.path().join("plugins/p.binary")).expect("read");
    put_file(
        stage.dir.path(),
        "p",
        &text.replace("\"id\":\"p\"", "\"id\":\"q\"").replace("\"/p\"", "\"/q\""),
    );
    assert_eq!(rescan(&stage).changed, ["q"]);
    stage.event("p", "stopped");
    stage.event("q", "ready");
    stage.find("its removal", |said| match said {
        Said::Log { message, .. } if message == "Plugin removed" => Some(()),
        _ => None,
    });
}

#[test]
fn one_slow_metadata_call_delays_no_other_plugin() {
    let stage = Stage::of(&[("p", WAIT)]);
    stage.event("p", "ready");
    put_file(stage.dir.path(), "a-slow", "#!/bin/sh\nread line < \"$0.gate\"\n");
    let gate = stage.dir.path().join("plugins/a-slow.binary.gate");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, mode, 0).expect("fifo");
    put(stage.dir.path(), "q", "1.0", WAIT);
    let (tell, told) = channel();
    stage.handle.send(Command::Rescan { done: Box::new(move |found| tell.send(found).expect("waits")) });
    stage.event("q", "ready");
    stage.order("p", Order::Restart).expect("restarts");
    assert!(told.try_recv().is_err(), "the slow call is still on its way");
    std::fs::write(&gate, "go\n").expect("write");
    assert!(told.recv_timeout(PATIENCE).expect("a rescan ends").skipped[0].contains("a-slow"));
}

// Row: metadata that hangs, is huge, is invalid, repeats an id or route
#[test]
fn who_is_there_does_not_depend_on_who_described_itself_first() {
    let (dir, settings) = folder(&[]);
    let describe = |id: &str, route: &str, before: &str| {
        format!(
            "#!/bin/sh\nif [ \"$1\" = --metadata ]; then {before}\n\
             echo '{{\"id\":\"{id}\",\"name\":\"n\",\"version\":\"1\",\"icon\":\"-\",\"route\":\"{route}\",\"protocol\":\"1.0\"}}'\n\
             exit; fi\n{WAIT}"
        )
    };
    // a takes the id of b, which took the route of c: with b gone nothing speaks against c.
    put_file(dir.path(), "a", &describe("x", "/a", "until [ -e \"$0.go\" ]; do sleep 0.02; done"));
    put_file(dir.path(), "b", &describe("x", "/b", ""));
    put_file(dir.path(), "c", &describe("c", "/b", ""));
    let stage = Stage::start(dir, settings);
    let skipped = |file: &str| {
        stage.find(&format!("that {file} is skipped"), |said| match said {
            Said::Log { message, fields }
                if message == "Plugin skipped"
                    && fields["file"].as_str().is_some_and(|path| path.ends_with(file)) =>
            {
                fields["reason"].as_str().map(str::to_owned)
            }
            _ => None,
        })
    };
    stage.event("x", "ready");
    let why = skipped("c.binary");
    assert!(why.contains("b.binary"), "{why}");
    assert_eq!(stage.skipped(), [("c.binary".to_owned(), why)]);
    std::fs::write(stage.dir.path().join("plugins/a.binary.go"), "").expect("write");
    let why = skipped("b.binary");
    assert!(why.contains("a.binary"), "{why}");
    stage.event("x", "stopped");
    stage.event("x", "ready");
    // It may have described itself before b, and have been ready until that took its place.
    stage.find("ready of c as it runs now", |said| match said {
        Said::Event { plugin, kind: "ready", details } if plugin == "c" => {
            Path::new(&format!("/proc/{}", details["pid"])).exists().then_some(())
        }
        _ => None,
    });
    let (x, c) = (stage.status("x"), stage.status("c"));
    assert_eq!((x.metadata.route.as_str(), c.state), ("/a", "running"), "{:#?}", stage.unheard());
    assert_eq!(stage.skipped(), [("b.binary".to_owned(), why)], "c is in its place now");
}

#[test]
fn the_crashes_of_a_later_file_are_not_held_against_the_first() {
    let (dir, settings) = folder(&[]);
    put(dir.path(), "x", "1.0", WAIT);
    let first = dir.path().join("plugins/x.binary");
    let text = std::fs::read_to_string(&first).expect("read");
    std::fs::remove_file(first).expect("remove");
    let slow = text.replacen("then echo", "then until [ -e \"$0.go\" ]; do sleep 0.02; done; echo", 1);
    assert_ne!(slow, text);
    put_file(dir.path(), "a", &slow);
    put_file(dir.path(), "b", &text.replace(WAIT, "exit 127"));
    let stage = Stage::start(dir, settings);
    // It describes itself first, and is given up at once.
    stage.event("x", "disabled_after_crashes");
    assert_eq!(stage.status("x").failures, 1);
    // It may have been ready for a moment, since its socket is the test's.
    drop(stage.unheard());
    std::fs::write(stage.dir.path().join("plugins/a.binary.go"), "").expect("write");
    stage.event("x", "ready");
    let status = stage.status("x");
    assert_eq!((status.state, status.failures, status.last_exit), ("running", 0, None));
    let kept = stage.unheard().into_iter().rev().find_map(|said| match said {
        Said::Kept { plugin, kept } if plugin == "x" => Some(kept),
        _ => None,
    });
    assert_eq!(kept.expect("the crash is taken back"), Kept::fresh());
}

#[test]
fn what_is_no_file_is_told_once_a_look() {
    let (dir, settings) = folder(&[("p", WAIT)]);
    let plugins = dir.path().join("plugins");
    std::os::unix::fs::symlink("/nowhere", plugins.join("link.binary")).expect("link");
    std::fs::create_dir(plugins.join("folder.binary")).expect("folder");
    let checked = toru_supervisor::check(&plugins, dir.path(), PATIENCE).expect("it can be read");
    let reasons: Vec<String> = checked.into_iter().filter_map(|(_, outcome)| outcome.err()).collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(reasons[0].contains("folder") && reasons[1].contains("leads to nothing"), "{reasons:?}");
    let stage = Stage::start(dir, settings);
    stage.event("p", "ready");
    assert_eq!(rescan(&stage).skipped.len(), 2);
    let skipped = stage
        .unheard()
        .into_iter()
        .filter(|said| matches!(said, Said::Log { message, .. } if message == "Plugin skipped"));
    assert_eq!(skipped.count(), 4, "at the start, and at the rescan");
    let listed: Vec<String> = stage.skipped().into_iter().map(|(file, _)| file).collect();
    assert_eq!(listed, ["folder.binary", "link.binary"]);
    std::fs::remove_file(plugins.join("link.binary")).expect("remove");
    std::fs::remove_dir(plugins.join("folder.binary")).expect("remove");
    assert_eq!(rescan(&stage), Rescanned::default());
    assert_eq!(stage.skipped(), []);
}
