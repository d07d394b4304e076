//! `toru plugin new`, `test` and `run`, as an author of plugins uses them.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::{Value, json};
use toru_tests::{
    Client, Lines, Signal, Stage, binary, has_program, long_output, output, repository, spawn, stage_faulty,
    wait_for, write_executable,
};

fn toru(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("toru"));
    command.arg("plugin").args(arguments);
    command
}

/// The report of `toru plugin test --json`.
fn report(plugin: &Path, more: &[&str]) -> (Output, Value) {
    let printed = long_output(toru(&["test", "--json"]).arg(plugin).args(more));
    let report =
        serde_json::from_slice(&printed.stdout).unwrap_or_else(|error| panic!("{error}: {printed:?}"));
    (printed, report)
}

#[track_caller]
fn assert_sound(plugin: &Path, protocol: &str) {
    let (printed, report) = report(plugin, &[]);
    assert!(printed.status.success(), "{report:#}");
    assert_eq!((&report["sound"], &report["protocol"]), (&json!(true), &json!(protocol)), "{report:#}");
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() > 10 && cases.iter().all(|case| case["ok"] != false), "{report:#}");
}

/// Sound, also where a request waits for a stored value at `target`.
#[track_caller]
fn assert_sound_with_kv(plugin: &Path, target: &str) {
    let (printed, report) = report(plugin, &["--target", target]);
    assert!(printed.status.success(), "{report:#}");
    let cases = report["cases"].as_array().unwrap();
    assert!(cases.len() > 10 && cases.iter().all(|case| case["ok"] == true), "{report:#}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}

#[test]
fn the_examples_and_sdks_are_sound() {
    assert_sound(&binary("toru-plugin-hello-rust"), "1.1");
    assert_sound(&binary("toru-plugin-echo"), "1.1");
    assert_sound(&repository().join("plugins/hello-python/hello-python.py"), "1.1");
    if has_program("socat") {
        assert_sound(&repository().join("plugins/hello-shell/hello-shell.sh"), "1.0");
    } else {
        println!("skipped: no socat here");
    }
    if has_program("node") {
        let folder = folder();
        let script = folder.path().join("node-sdk");
        let fixture = repository().join("plugin-api/node/test/fixture.js");
        write_executable(&script, &format!("#!/bin/sh\nexec node '{}' \"$@\"\n", fixture.display()));
        assert_sound(&script, "1.1");
    } else {
        println!("skipped: no node here");
    }
}

#[test]
fn applications_behind_the_adapters_are_sound() {
    let folder = folder();
    for kind in ["asgi", "wsgi"] {
        let script = folder.path().join(kind);
        let python = repository().join("plugin-api/python");
        let text = format!(
            "#!/bin/sh\nPYTHONPATH='{python}/src' exec python3 -m toru_plugin.{kind} fixture_{kind}:app --app-dir '{python}/tests' --id {kind} \"$@\"\n",
            python = python.display(),
        );
        write_executable(&script, &text);
        assert_sound(&script, "1.1");
    }
}

#[test]
fn plugins_of_1_0_that_are_deployed_are_sound() {
    let folder = folder();
    let python = fs::read_to_string(repository().join("tests/fixtures/legacy_python.py")).unwrap();
    let path = folder.path().join("legacy-python");
    write_executable(&path, &format!("#!/usr/bin/env python3\n{python}"));
    for plugin in [path, binary("legacy-rust")] {
        assert_sound(&plugin, "1.0");
    }
}

/// The faulty plugin with this misdeed fails this case, and is told so in these words.
#[track_caller]
fn assert_fault(command: &Value, target: &str, case: &str, words: &str) {
    let folder = folder();
    stage_faulty(folder.path(), "f", command);
    let plugin = folder.path().join("f.binary");
    let (printed, report) = report(&plugin, &["--case", case, "--target", target]);
    assert_eq!(printed.status.code(), Some(1), "{command} {target}: {report:#}");
    let failed = report["cases"].as_array().unwrap().iter().find(|one| one["ok"] == false).unwrap();
    assert_eq!(failed["case"], case, "{command} {target}: {report:#}");
    assert!(failed["seen"].as_str().unwrap().contains(words), "{command} {target}: {words}: {report:#}");
    assert!(!failed["change"].as_str().unwrap().is_empty());
}

#[test]
fn what_a_faulty_plugin_says_of_itself() {
    for (misdeed, words) in [
        ("metadata-hangs", "did not end within 5 s"),
        ("metadata-huge", "more than 65536 bytes"),
        ("metadata-invalid", "not one JSON object"),
        ("metadata-exit", "ended with exit status: 4"),
    ] {
        assert_fault(&json!({ "do": misdeed }), "/", "metadata", words);
    }
    // What is left behind by `--metadata`, with its output open, is waited for by nobody.
    let folder = folder();
    let plugin = folder.path().join("f.binary");
    write_executable(&plugin, "#!/bin/sh\nsleep 20 &\necho '{}'\n");
    let (printed, said) = report(&plugin, &["--case", "metadata"]);
    assert_eq!(printed.status.code(), Some(1), "{said:#}");
    assert!(said["cases"][0]["seen"].as_str().unwrap().contains("printed what is none"), "{said:#}");
    assert_fault(&json!({ "metadata": { "id": "a b" } }), "/", "metadata", "field `id`");
    assert_fault(&json!({ "metadata": { "route": null } }), "/", "metadata", "field `route`");
}

/// Checks every row at the same time: they mostly wait for what does not come.
fn at_once<Row: Send>(rows: impl IntoIterator<Item = Row>, check: impl Fn(Row) + Sync) {
    thread::scope(|scope| {
        for row in rows {
            let check = &check;
            scope.spawn(move || check(row));
        }
    });
}

#[test]
fn a_faulty_start_and_end() {
    at_once(
        [
            ("never-binds", "init", "there is no socket"),
            ("exit-before-ready", "init", "giving up before I began"),
            ("never-ready", "init", "`ready` did not come"),
            ("fail-init", "init", "the licence has run out"),
            ("no-pong", "ping", "a `pong` did not come"),
            ("ignore-term", "shutdown", "still there 5 s after `shutdown`"),
            ("ignore-term", "sigterm", "still there 7 s after SIGTERM"),
        ],
        |(misdeed, case, words)| assert_fault(&json!({ "do": misdeed }), "/", case, words),
    );
}

#[test]
fn faulty_answers() {
    at_once(
        [
            ("/garbage", "http", "no message"),
            ("/not-an-object", "http", "not an object"),
            ("/zero-length", "http", "broke the framing"),
            ("/oversize-length", "http", "broke the framing"),
            ("/deep-json", "http", "no message"),
            ("/half-frame", "http", "did not come within"),
            ("/close-connection", "http", "closed instead of an answer"),
            ("/exit/3", "http", "the process has ended"),
            ("/wrong-id", "http", "the request was `1-2a7f-3`"),
            ("/answer-twice", "http", "each request is answered once"),
            ("/status/99", "http", "status is missing or not an integer"),
            ("/no-status", "http", "status is missing"),
            ("/bad-header", "http", "CR, LF, NUL"),
            ("/bad-header-name", "http", "not a token"),
            ("/exit/3", "lost-connection", "the process has ended"),
            ("/kv/steal/a", "kv", "its kv request `kv-kv` is none"),
            ("/kv/set/a", "kv", "its kv request `kv-kv` is none"),
        ],
        |(target, case, words)| assert_fault(&json!({}), target, case, words),
    );
}

#[test]
fn each_other_case_has_a_plugin_that_fails_it() {
    at_once(
        [
            ("open-socket", "/", "private-socket", "mode is 0666"),
            ("keep-stale", "/", "stale-socket", "before it listened"),
            ("init-once", "/", "init-again", "another `ready` did not come"),
            ("whole-reads", "/", "pieces", "closed"),
            ("first-of-read", "/", "many-at-once", "the answer to"),
            ("one-connection", "/", "two-connections", "did not come within"),
            ("strict-types", "/", "unknown", "closed"),
            ("cancel-closes", "/", "cancel", "closed"),
            ("text-only", "/", "bodies", "closed"),
            ("small-limit", "/", "large-request", "closed"),
            ("one-by-one", "/kv/get/a", "overtaking", "behind one that waits did not come within"),
            ("any-frame", "/", "broken-frame", "still open 5 s after"),
            ("any-length", "/", "announced-length", "still open 5 s after"),
        ],
        |(misdeed, target, case, words)| assert_fault(&json!({ "do": misdeed }), target, case, words),
    );
    let folder = folder();
    stage_faulty(folder.path(), "f", &json!({ "do": "no-lines" }));
    let (printed, report) = report(&folder.path().join("f.binary"), &["--case", "by-hand"]);
    assert!(printed.status.success(), "advice fails nobody: {report:#}");
    let advice = &report["cases"][1];
    assert_eq!((&advice["ok"], &advice["advice"]), (&json!(false), &json!(true)), "{report:#}");
}

#[test]
fn a_faulty_plugin_that_does_nothing_wrong_is_sound() {
    let folder = folder();
    stage_faulty(folder.path(), "f", &json!({}));
    assert_sound_with_kv(&folder.path().join("f.binary"), "/kv/get/a");
}

#[test]
fn what_a_plugin_gives_no_occasion_for_is_not_passed() {
    let folder = folder();
    stage_faulty(folder.path(), "f", &json!({}));
    let plugin = folder.path().join("f.binary");
    let wanted = ["--case", "kv", "--case", "overtaking"];
    let (printed, said) = report(&plugin, &wanted);
    assert!(printed.status.success(), "{said:#}");
    assert_eq!(said["not_exercised"], json!(["kv", "overtaking"]), "{said:#}");
    assert_eq!(said["cases"][1]["ok"], json!(null), "{said:#}");
    assert!(said["cases"][1]["not_exercised"].as_str().unwrap().contains("--target"), "{said:#}");
    let printed = output(toru(&["test"]).args(wanted).arg(&plugin));
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.ends_with("as far as it was asked: not exercised were kv, overtaking\n"), "{text}");
    assert!(text.contains("--   kv: "), "{text}");
    // A path that takes a while does as well as a stored value.
    let (printed, said) = report(&plugin, &["--case", "overtaking", "--slow", "/slow/1000"]);
    assert!(printed.status.success() && said["cases"][1]["ok"] == true, "{said:#}");
    let (printed, said) = report(&plugin, &["--case", "overtaking", "--slow", "/", "--target", "/slow/1000"]);
    assert_eq!(printed.status.code(), Some(1), "{said:#}");
}

#[test]
fn the_report_for_people_says_what_to_change() {
    let printed = output(toru(&["test", "--case", "http"]).arg(binary("toru-plugin-echo")));
    assert!(printed.status.success(), "{printed:?}");
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.ends_with("is a sound 1.1 plugin\n") && text.contains("ok   http: "), "{text}");
    let printed = output(toru(&["test", "--", "nothing"]).arg("/nonexistent"));
    assert_eq!(printed.status.code(), Some(2), "the path stands before `--`: {printed:?}");
    let printed = output(&mut toru(&["test", "/nonexistent"]));
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("cannot be run") && text.contains("change: "), "{text}");
}

fn succeed(command: &mut Command) {
    let printed = long_output(command);
    let said = [printed.stdout, printed.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(printed.status.success(), "{command:?}: {}\n{}", said[0], said[1]);
}

/// A new project: its own tests pass, it builds, it is sound, and the core serves it.
fn check_project(lang: &str, protocol: &str, test: &[&str]) {
    let stage = Stage::new();
    let name = format!("my-{lang}");
    succeed(toru(&["new", &name, "--lang", lang, "--dir"]).arg(stage.root()));
    let project: PathBuf = stage.root().join(&name);
    if lang == "rust" {
        // What the workspace has been built with is there already, so no registry is asked.
        fs::copy(repository().join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    }
    let target = toru_tests::profile_folder().join("toru-test-projects");
    let run = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(&project).env("CARGO_TARGET_DIR", &target);
        command
    };
    succeed(&mut run(test));
    succeed(run(&["./build.sh"]).arg(stage.plugins()));
    let built = stage.plugins().join(format!("{name}.binary"));
    if lang == "shell" {
        assert_sound(&built, protocol);
    } else {
        assert_sound_with_kv(&built, "/notes/a");
    }
    let daemon = stage.start();
    daemon.wait_ready(&name);
    let answer = daemon.get(&format!("/api/plugins/{name}/"));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.json()["hello"].is_string(), "{answer:?}");
    if lang != "shell" {
        let note = format!("/api/plugins/{name}/notes/a");
        assert_eq!(daemon.get(&note).status, 404);
        assert_eq!(daemon.request("PUT", &note, &[], b"remember").status, 204);
        assert_eq!(daemon.get(&note).body, b"remember");
    }
}

#[test]
fn a_new_python_project() {
    check_project("python", "1.1", &["python3", "-m", "unittest"]);
}

#[test]
fn a_new_node_project() {
    if !has_program("node") {
        println!("skipped: no node here");
        return;
    }
    check_project("node", "1.1", &["node", "--test"]);
}

#[test]
fn a_new_rust_project() {
    check_project("rust", "1.1", &["cargo", "test", "--quiet"]);
}

#[test]
fn a_new_shell_project() {
    if !has_program("socat") {
        println!("skipped: no socat here");
        return;
    }
    check_project("shell", "1.0", &["./test.sh"]);
}

#[test]
fn names_that_are_none_and_folders_that_are_there() {
    let folder = folder();
    let printed = output(toru(&["new", "a b", "--lang", "python", "--dir"]).arg(folder.path()));
    assert_eq!(printed.status.code(), Some(2), "{printed:?}");
    assert!(
        String::from_utf8_lossy(&printed.stderr).contains("`a b` cannot be a plugin's id"),
        "{printed:?}"
    );
    fs::create_dir(folder.path().join("here")).unwrap();
    let printed = output(toru(&["new", "here", "--lang", "shell", "--dir"]).arg(folder.path()));
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(String::from_utf8_lossy(&printed.stderr).contains("is there already"), "{printed:?}");
}

#[test]
fn what_cannot_be_run_or_watched_is_said_before_anything_is_built() {
    let folder = folder();
    let plugin = folder.path().join("plugin");
    write_executable(&plugin, "#!/bin/sh\necho words\n");
    let built = folder.path().join("built");
    let build = format!("touch '{}'", built.display());
    let run = |more: &[&str], path: &Path| {
        let printed = output(toru(&["run", "--listen", "127.0.0.1:0"]).args(more).arg(path));
        assert_eq!(printed.status.code(), Some(1), "{printed:?}");
        String::from_utf8(printed.stderr).unwrap()
    };
    let said = run(&["--watch", "/nonexistent", "--build", &build], &plugin);
    assert!(said.contains("cannot watch /nonexistent: No such file") && !built.exists(), "{said}");
    let said = run(&["--build", "exit 3"], &plugin);
    assert!(said.contains("`exit 3` failed, so there is nothing to run"), "{said}");
    let said = run(&["--build", &build], &plugin);
    assert!(said.contains("`--metadata` printed what is none") && built.exists(), "{said}");
    let said = run(&[], &folder.path().join("none"));
    assert!(said.contains("it cannot be run: No such file"), "{said}");
}

/// The first line of a stream with `part` in it.
fn wait_line(lines: &Lines, part: &str) -> String {
    wait_for(part, || lines.containing(part).into_iter().next())
}

#[test]
fn a_plugin_in_the_foreground_is_rebuilt_when_its_source_changes() {
    let folder = folder();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let word = source.join("word.txt");
    fs::write(&word, "first").unwrap();
    let built = folder.path().join("it's built");
    let script = format!(
        "#!/usr/bin/env python3\nimport sys\nsys.path.insert(0, '{}')\nfrom toru_plugin import Plugin\n\
         plugin = Plugin(id='live', name='Live', version='1.0.0', route='/@WORD@')\n\n@plugin.get('/')\nasync def index(request, ctx):\n    \
         ctx.log.warn('asked')\n    return '@WORD@'\n\nplugin.run()\n",
        repository().join("plugin-api/python/src").display()
    );
    fs::write(source.join("plugin.py"), &script).unwrap();
    let build = r#"grep -q broken source/word.txt && exit 1; grep -q slowly source/word.txt && echo $$ > building && sleep 1000; sed "s/@WORD@/$(cat source/word.txt)/" source/plugin.py > .new && chmod +x .new && mv .new "it's built""#;
    let mut command = toru(&["run", "--listen", "127.0.0.1:0", "--watch", "source", "--build", build]);
    command.arg(&built).current_dir(folder.path()).env("XDG_CONFIG_HOME", folder.path());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(&mut command);
    let stdout = Lines::gather(child.stdout.take().unwrap());
    let stderr = Lines::gather(child.stderr.take().unwrap());
    let line = wait_line(&stdout, "listening on http://");
    let address: SocketAddr = line.rsplit('/').next().unwrap().parse().unwrap();
    let get = |target: &str| {
        let stream = TcpStream::connect(address).ok()?;
        let answer = Client::new(stream).get(target);
        (answer.status == 200).then(|| String::from_utf8(answer.body).unwrap())
    };
    let answer = || get("/api/plugins/live/");
    wait_for("the first answer", || (answer()? == "first").then_some(()));
    wait_line(&stdout, "warn  asked");
    fs::write(&word, "broken").unwrap();
    wait_line(&stderr, "the build failed");
    assert_eq!(answer().as_deref(), Some("first"));
    fs::write(&word, "second").unwrap();
    wait_line(&stderr, "restarted");
    wait_for("the second answer", || (answer()? == "second").then_some(()));
    // It was asked anew what it is.
    assert_eq!(get("/api/plugins/route/second/").as_deref(), Some("second"));
    assert_eq!(get("/api/plugins/route/first/"), None);
    // Another plugin altogether, at another place and with another log.
    let heard = stdout.containing("warn  asked").len();
    fs::write(source.join("plugin.py"), script.replace("'live'", "'moved'")).unwrap();
    wait_line(&stderr, &format!("restarted; it is at http://{address}/api/plugins/moved/"));
    assert_eq!(get("/api/plugins/moved/").as_deref(), Some("second"));
    assert_eq!(answer(), None);
    wait_for("a line of its log", || (stdout.containing("warn  asked").len() > heard).then_some(()));
    // What says nothing good of itself does not come in its place.
    fs::write(source.join("plugin.py"), script.replace("'live'", "'a b'")).unwrap();
    wait_line(&stderr, "not restarted: ");
    assert_eq!(get("/api/plugins/moved/").as_deref(), Some("second"));
    // One that crashes is built anew, too, and a build that runs ends with the command.
    let crashing = script
        .replace("plugin.run()", "import sys\nif '--metadata' in sys.argv: plugin.run()\nsys.exit(127)");
    fs::write(source.join("plugin.py"), crashing).unwrap();
    wait_line(&stderr, "not restarted: it was given up");
    fs::write(&word, "slowly").unwrap();
    let building = folder.path().join("building");
    let pid =
        wait_for("the build to begin", || fs::read_to_string(&building).ok()?.trim().parse::<i32>().ok());
    let build = rustix::process::Pid::from_raw(pid).unwrap();
    let build = rustix::process::pidfd_open(build, rustix::process::PidfdFlags::empty()).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{:?}", stderr.all());
    // What was ended has not failed.
    assert!(stderr.all().last().is_some_and(|line| line.contains("has changed")), "{:?}", stderr.all());
    let mut ended = [rustix::event::PollFd::new(&build, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut ended, Some(&rustix::event::Timespec::default())).unwrap(), 1);
}
