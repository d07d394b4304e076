//! What plugins leave behind.

use std::time::{Duration, Instant};

use toru_supervisor::{Command, Helper, Order};

use crate::stage::{PATIENCE, Said, Stage, Watched, folder, put, put_file};

/// Lines of shell for a process that has left its group and its parent. It tells its pid once it has.
fn double_fork(word: &str) -> String {
    format!("(setsid sh -c 'echo {word} $$; exec sleep 1000' &)\n")
}

/// A plugin's last line: it waits, and hears SIGTERM while it does.
const WAIT: &str = "trap 'exit 0' TERM\nsleep 1000 & wait\n";

#[test]
fn a_stopped_plugin_leaves_nobody() {
    let body =
        format!("{}{}{WAIT}", double_fork("a"), "(setsid sh -c 'setsid sleep 1001 & echo b $!; wait' &)\n");
    let stage = Stage::of(&[("p", &body)]);
    let (a, b) = {
        // They write to the same pipe, in any order.
        let mut found = [None, None];
        while found.iter().any(Option::is_none) {
            let (slot, pid) = stage.find("two pids", |said| match said {
                Said::Line { text, .. } => match text.split_once(' ') {
                    Some(("a", pid)) => Some((0, pid.parse::<i32>().ok()?)),
                    Some(("b", pid)) => Some((1, pid.parse::<i32>().ok()?)),
                    _ => None,
                },
                _ => None,
            });
            found[slot] = Some(Watched::new(pid));
        }
        let [a, b] = found;
        (a.expect("found"), b.expect("found"))
    };
    stage.event("p", "ready");
    assert!(!a.has_ended() && !b.has_ended(), "they live while their plugin does");
    stage.order("p", Order::Disable).expect("stops");
    assert!(a.has_ended() && b.has_ended(), "an order is done when everything is gone");
    assert!(!a.is_zombie() && !b.is_zombie());
}

#[test]
fn a_plugin_that_dies_takes_its_orphans_along() {
    let body = format!("{}read line < /dev/null; sleep 1000 & wait", double_fork("orphan"));
    let stage = Stage::of(&[("p", &body)]);
    let orphan = stage.process("p", "orphan");
    stage.event("p", "ready");
    let plugin = stage.status("p").pid.expect("runs");
    let plugin = rustix::process::Pid::from_raw(plugin as i32).expect("a pid");
    rustix::process::kill_process(plugin, rustix::process::Signal::KILL).expect("kill");
    let crash = stage.event("p", "crashed");
    assert_eq!(crash["exit"], "killed by SIGKILL");
    assert!(orphan.has_ended(), "nobody hears of the crash before they are gone");
    assert!(!orphan.is_zombie());
}

#[test]
fn another_plugins_orphans_are_left_alone() {
    let body = |word: &str| format!("{}{WAIT}", double_fork(word));
    let stage = Stage::of(&[("a", &body("orphan")), ("b", &body("orphan"))]);
    let mut orphans = vec![];
    while orphans.len() < 2 {
        let (plugin, pid) = stage.find("an orphan", |said| match said {
            Said::Line { plugin, text } => {
                Some((plugin.clone(), text.strip_prefix("orphan ")?.parse().ok()?))
            }
            _ => None,
        });
        orphans.push((plugin, Watched::new(pid)));
    }
    let of = |id: &str| &orphans.iter().find(|(plugin, _)| plugin == id).expect("both told").1;
    stage.order("a", Order::Disable).expect("stops");
    assert!(of("a").has_ended());
    assert!(!of("b").has_ended());
    stage.order("b", Order::Disable).expect("stops");
    assert!(of("b").has_ended());
}

#[test]
fn a_child_without_environment_is_known_by_where_it_hung() {
    // Not orphaned before the stop: what hangs below the plugin then is its own, whatever it carries.
    let body =
        "env -i setsid sh -c 'echo child $$; exec sleep 1000' &\ntrap 'exit 0' TERM\nwhile :; do wait; done";
    let other = WAIT;
    let stage = Stage::of(&[("a", other), ("b", body)]);
    let child = stage.process("b", "child");
    stage.order("b", Order::Disable).expect("stops");
    assert!(child.has_ended(), "although plugin a still runs, and is older or not");
}

// Row: forks children that outlive it
#[test]
fn a_child_that_drops_everything_goes_with_a_plugin_that_dies() {
    // One hangs below the plugin until that dies, and the other lost its parent at once; plugin a is older than both.
    let body = "env -i setsid sh -c 'echo child $$; exec sleep 1000' &\n\
                (env -i setsid sh -c 'echo orphan $$; exec sleep 1000' &)\n\
                while :; do wait; done";
    let (dir, settings) = folder(&[("a", WAIT)]);
    put(
        dir.path(),
        "b",
        "1.0",
        &format!("while [ ! -e {}/go ]; do sleep 0.01; done\n{body}", dir.path().display()),
    );
    let stage = Stage::start(dir, settings);
    stage.event("a", "ready");
    std::fs::write(stage.dir.path().join("go"), "").expect("write");
    for round in 0..3 {
        let (child, orphan) = (stage.process("b", "child"), stage.process("b", "orphan"));
        stage.event("b", "ready");
        assert!(!child.has_ended() && !orphan.has_ended(), "they live while their plugin does");
        let plugin = stage.status("b").pid.expect("runs");
        let plugin = rustix::process::Pid::from_raw(plugin as i32).expect("a pid");
        rustix::process::kill_process(plugin, rustix::process::Signal::KILL).expect("kill");
        stage.event("b", "crashed");
        assert!(child.has_ended(), "round {round}: what hung below it");
        assert!(orphan.has_ended(), "round {round}: what it had lost");
        assert!(!child.is_zombie() && !orphan.is_zombie());
    }
}

#[test]
fn orphans_that_end_are_reaped_while_their_plugin_runs() {
    let body = format!("(setsid sh -c 'echo orphan $$; read line < {{gate}}' &)\n{WAIT}");
    let (dir, settings) = folder(&[]);
    let gate = dir.path().join("gate");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, mode, 0).expect("fifo");
    put(dir.path(), "p", "1.0", &body.replace("{gate}", &gate.display().to_string()));
    let stage = Stage::start(dir, settings);
    let orphan = stage.process("p", "orphan");
    // Opens as soon as the orphan reads, and lets it go on.
    std::fs::write(&gate, "go\n").expect("write");
    assert!(orphan.ends_within(PATIENCE));
    let deadline = Instant::now() + PATIENCE;
    while orphan.is_zombie() {
        assert!(Instant::now() < deadline, "a zombie stays");
        // A snapshot is one more turn of the loop, whose health checks look for zombies.
        stage.status("p");
    }
}

#[test]
fn what_a_metadata_call_leaves_behind_goes_too() {
    let (dir, settings) = folder(&[]);
    let told = dir.path().join("told");
    let metadata = r#"{"id":"p","name":"p","version":"1","icon":"-","route":"/p"}"#;
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then\n\
         (setsid sh -c 'echo $$ > {told}; exec sleep 1000' < /dev/null > /dev/null 2>&1 &)\n\
         while [ ! -s {told} ]; do :; done\necho '{metadata}'\nexit\nfi\n{WAIT}",
        told = told.display()
    );
    put_file(dir.path(), "p", &text);
    let stage = Stage::start(dir, settings);
    stage.event("p", "discovered");
    let pid: i32 = std::fs::read_to_string(&told).expect("told").trim().parse().expect("a pid");
    if let Some(pid) = rustix::process::Pid::from_raw(pid)
        && rustix::process::test_kill_process(pid).is_ok()
    {
        assert!(Watched::new(pid.as_raw_nonzero().get()).ends_within(PATIENCE));
    }
}

// Row: core SIGKILLed
#[test]
fn the_next_start_ends_what_a_killed_daemon_left() {
    let (dir, settings) = folder(&[]);
    // What the plugin of a killed daemon leaves is made here by somebody else's plugin, which nobody kills.
    let body = format!(
        "(export TORU_INSTANCE_ID={} TORU_PLUGIN_ID=q TORU_PLUGIN_SOCKET={}/q.sock\n\
         setsid sh -c 'echo orphan $$; exec sleep 1000' &)\n{WAIT}",
        settings.instance_id,
        settings.sockets_dir.display(),
    );
    let maker = Stage::of(&[("p", &body)]);
    let orphan = maker.process("p", "orphan");
    let (other_dir, mut other) = folder(&[]);
    other.instance_id = settings.instance_id.clone();
    let copy = Stage::start(other_dir, other);
    copy.order("p", Order::Disable).expect_err("it has no plugin");
    assert!(!orphan.has_ended(), "another socket folder is another daemon, if with a copy of the data");
    let next = Stage::start(dir, settings);
    let found = next.find("the report", |said| match said {
        Said::Log { message, fields } if message.contains("earlier run") => Some(fields.clone()),
        _ => None,
    });
    assert!(found["pids"].as_array().expect("pids").contains(&orphan.pid.into()), "{found:?}");
    assert_eq!(found["plugins"], serde_json::json!(["q"]));
    assert!(orphan.ends_within(PATIENCE));
}

// Row: core SIGKILLed
#[test]
fn the_next_start_ends_what_keeps_forking() {
    let (dir, settings) = folder(&[("w", WAIT)]);
    let script = dir.path().join("forks.sh");
    // Each generation lives a moment and leaves the next one behind.
    std::fs::write(&script, "f() { sleep 0.01; (setsid sh $0 &) ; }; f\n").expect("write");
    let body = format!(
        "(export TORU_INSTANCE_ID={} TORU_PLUGIN_ID=q TORU_PLUGIN_SOCKET={}/q.sock\nsetsid sh {} &)\necho forks\n{WAIT}",
        settings.instance_id,
        settings.sockets_dir.display(),
        script.display(),
    );
    let maker = Stage::of(&[("p", &body)]);
    maker.line("p", "forks");
    let next = Stage::start(dir, settings);
    // Nothing is started before they are gone. Where other tests of this process end meanwhile, they may be gone already: each
    // kills whom it meets in the middle of an exec.
    next.event("w", "started");
    let script = script.display().to_string();
    // Those that were killed are there until somebody has reaped them, without their words.
    let living: Vec<String> = std::fs::read_dir("/proc")
        .expect("proc")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| std::fs::read_to_string(path.join("cmdline")).is_ok_and(|line| line.contains(&script)))
        .map(|path| std::fs::read_to_string(path.join("status")).unwrap_or_default())
        .collect();
    assert!(living.is_empty(), "{living:#?}");
}

#[test]
fn the_next_start_ends_what_a_killed_daemon_s_calls_left() {
    let (dir, settings) = folder(&[]);
    let left = |sockets: &std::path::Path, word: &str| {
        format!(
            "(unset TORU_PLUGIN_ID TORU_PLUGIN_SOCKET\nexport TORU_INSTANCE_ID={} TORU_CALLED_FROM={}\n\
             setsid sh -c 'echo {word} $$; exec sleep 1000' &)\n",
            settings.instance_id,
            sockets.display(),
        )
    };
    let elsewhere = dir.path().join("elsewhere");
    let body = format!("{}{}{WAIT}", left(&settings.sockets_dir, "ours"), left(&elsewhere, "theirs"));
    let maker = Stage::of(&[("p", &body)]);
    let (ours, theirs) = (maker.process("p", "ours"), maker.process("p", "theirs"));
    let next = Stage::start(dir, settings);
    let found = next.find("the report", |said| match said {
        Said::Log { message, fields } if message.contains("earlier run") => Some(fields.clone()),
        _ => None,
    });
    assert_eq!(found["pids"], serde_json::json!([ours.pid]));
    assert!(ours.ends_within(PATIENCE) && !theirs.has_ended(), "another socket folder is another daemon");
}

// Row: forks children that outlive it
#[test]
fn a_stop_ends_what_keeps_forking() {
    // Each generation lives a moment and leaves the next one behind.
    let body = "echo 'f() { sleep 0.01; (setsid sh $0 &) ; }; f' > $TORU_PLUGIN_SOCKET.sh\n\
                (setsid sh $TORU_PLUGIN_SOCKET.sh &)\necho forks\ntrap 'exit 0' TERM\nsleep 1000 & wait\n";
    let stage = Stage::of(&[("p", body)]);
    stage.line("p", "forks");
    stage.event("p", "ready");
    let began = Instant::now();
    stage.order("p", Order::Disable).expect("stops");
    assert!(began.elapsed() < Duration::from_secs(5));
    let script = stage.dir.path().join("sockets/p.sock.sh").display().to_string();
    let living = || {
        let entries = std::fs::read_dir("/proc").expect("proc").flatten();
        let lines = entries.map(|entry| std::fs::read_to_string(entry.path().join("cmdline")));
        lines.flatten().filter(|line| line.contains(&script)).count()
    };
    let after_order = (living(), began.elapsed());
    stage.stop();
    assert_eq!(living(), 0, "after {:?}; {after_order:?} when the order was done", began.elapsed());
}

#[test]
fn a_helper_is_nobodys_leftover() {
    let stage = Stage::of(&[("p", "exit 127")]);
    stage.event("p", "disabled_after_crashes");
    // No plugin lives whose it could be.
    let gate = stage.dir.path().join("gate");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done; exit 7", gate.display());
    let mut helper =
        Helper::spawn(std::process::Command::new("/bin/sh").args(["-c", &script])).expect("spawn");
    for round in 0..5 {
        // Each start is a child that ends: there is reason to look for what was left behind.
        put(stage.dir.path(), "p", "1.0", &format!("# {round}\nexit 127"));
        let (tell, told) = std::sync::mpsc::channel();
        stage.handle.send(Command::Rescan { done: Box::new(move |_| tell.send(()).expect("awaited")) });
        told.recv_timeout(PATIENCE).expect("a rescan ends");
        stage.event("p", "disabled_after_crashes");
        std::thread::sleep(Duration::from_millis(150));
    }
    assert_eq!(helper.try_wait().expect("ours"), None, "it runs");
    std::fs::write(gate, "").expect("write");
    let began = Instant::now();
    let status = loop {
        assert!(began.elapsed() < PATIENCE);
        if let Some(status) = helper.try_wait().expect("nobody else has reaped it") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.code(), Some(7));
    let helper = Helper::spawn(std::process::Command::new("/bin/sh").args(["-c", "sleep 1000 & wait"]));
    let helper = helper.expect("spawn");
    let watched = Watched::new(helper.child.id() as i32);
    drop(helper);
    assert!(watched.has_ended() && !watched.is_zombie());
}
