//! The commands that the README shows are there, and do what it says.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use toru_tests::{
    Lines, Signal, binary, has_program, output, processes_with, repository, spawn, wait_for, wait_within,
};

use crate::sdk::{ByHand, hello_python};

/// Lines of the fenced blocks marked `sh`, without continuations and comments.
fn commands() -> Vec<String> {
    let text = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        match (inside, line) {
            (false, "```sh") => inside = true,
            (true, "```") => inside = false,
            (true, "") => {}
            (true, line) if line.starts_with('#') => {}
            (true, line) => commands.push(line.trim_start_matches("$ ").to_owned()),
            _ => {}
        }
    }
    assert!(!inside, "a fence of README.md is never closed");
    assert!(!commands.is_empty(), "README.md shows no command");
    commands
}

#[test]
fn every_toru_command_of_the_readme_is_one() {
    let help = output(Command::new(binary("toru")).arg("--help"));
    let help = String::from_utf8(help.stdout).unwrap();
    let mut seen = 0;
    for command in ["cargo run --release -- demo", "cargo test --workspace"] {
        assert!(commands().iter().any(|shown| shown == command), "{command}");
    }
    for command in commands() {
        let words: Vec<&str> = command.split_whitespace().collect();
        let Some(at) = words.iter().position(|word| *word == "toru" || word.ends_with("/toru")) else {
            continue;
        };
        let Some(verb) = words[at + 1..].iter().find(|word| !word.starts_with('-')) else {
            continue;
        };
        seen += 1;
        assert!(help.lines().any(|line| line.trim_start().starts_with(verb)), "{command}: no command {verb}");
    }
    assert!(seen > 0, "README.md shows no command of toru");
}

#[test]
fn the_words_by_hand_are_answered() {
    if !has_program("socat") {
        println!("skipped: no socat here");
        return;
    }
    let plugin = ByHand::start(hello_python);
    let said: Vec<String> = commands().into_iter().filter(|line| line.contains("| socat ")).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    let (words, address) = said[0].rsplit_once("UNIX-CONNECT:").unwrap();
    assert_eq!(address, "/tmp/hello.sock", "the place that the line before it names");
    let line = format!("{words}UNIX-CONNECT:{}", plugin.socket().display());
    let printed = output(Command::new("sh").args(["-c", &line]));
    let answer: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((&answer["request_id"], &answer["payload"]["status"]), (&json!("r1"), &json!(200)));
}

/// Not left running when the test fails.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_demo_serves_what_it_prints_and_cleans_up() {
    assert!(commands().iter().any(|command| command.contains("demo")), "README.md starts with the demo");
    let home = tempfile::Builder::new().prefix("td").tempdir_in("/tmp").unwrap();
    let mut demo = Demo(spawn(
        Command::new(binary("toru"))
            .arg("demo")
            .current_dir(repository())
            // Everything of it is in its temporary folder; HOME stays, since cargo lives there.
            .env("TMPDIR", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    ));
    let child = &mut demo.0;
    let stdout = Lines::gather(child.stdout.take().unwrap());
    let stderr = Lines::gather(child.stderr.take().unwrap());
    let printed = || [stdout.all(), stderr.all()].concat();
    // It may have the example plugins and all that they need to build, on a machine that is busy with other tests.
    let curls = wait_within(Duration::from_secs(900), "the demo to print its curl lines", || {
        if let Some(status) = child.try_wait().unwrap() {
            panic!("{status}: {:#?}", printed());
        }
        let lines = printed();
        let curls: Vec<String> =
            lines.iter().filter_map(|line| line.find("curl ").map(|at| line[at..].to_owned())).collect();
        // The one about all plugins comes last, so the others are there by then.
        curls.iter().any(|curl| curl.ends_with("/api/plugins")).then_some(curls)
    });
    if has_program("curl") {
        for curl in &curls {
            // As a newcomer would: the line goes into a shell as it stands.
            let answer = wait_for(curl, || {
                let answer = output(Command::new("sh").args(["-c", &format!("{curl} --fail -sS")]));
                answer.status.success().then_some(answer)
            });
            assert!(!answer.stdout.is_empty(), "{curl}");
        }
    } else {
        println!("curl lines not tried: no curl here");
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(child), Signal::INT).unwrap();
    let status = wait_for("the demo to end", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{:#?}", printed());
    wait_for("its plugins to be gone", || processes_with(home.path()).is_empty().then_some(()));
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_tables_beside_other_proxies_are_what_the_stored_runs_say() {
    let readme = fs::read_to_string(repository().join("README.md")).expect("README.md");
    // Whoever measures has newer runs beside those that are told of.
    let runs: Vec<&str> =
        readme.split("raw rows in `").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    assert_eq!(runs.len(), 2, "{runs:?}");
    let script = repository().join("benches/load/peers.py");
    for run in runs {
        let printed = output(Command::new("python3").arg(&script).arg("--table").arg(repository().join(run)));
        let table = String::from_utf8(printed.stdout).unwrap();
        assert!(table.lines().count() > 10, "{table}");
        assert!(readme.contains(table.trim()), "README.md has another table than this:\n{table}");
    }
}
