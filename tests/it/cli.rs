//! The command line: what it prints and what it exits with.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use toru_tests::{
    Daemon, Lines, Signal, Stage, binary, output, spawn, stage_faulty, wait_for, write_executable,
};

const USAGE: i32 = 2;
const UNREACHABLE: i32 = 69;
const BAD_CONFIGURATION: i32 = 78;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[track_caller]
fn toru(daemon: &Daemon, command: &str, arguments: &[&str]) -> String {
    let printed = daemon.toru(command, arguments);
    assert_eq!(printed.status.code(), Some(0), "toru {command} {arguments:?}: {}", text(&printed.stderr));
    text(&printed.stdout).to_owned()
}

#[track_caller]
fn toru_json(daemon: &Daemon, command: &str, arguments: &[&str]) -> Value {
    let stdout = toru(daemon, command, arguments);
    serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error} in {stdout}"))
}

#[test]
fn version_and_help() {
    let printed = output(Command::new(binary("toru")).arg("--version"));
    assert_eq!(printed.status.code(), Some(0));
    assert!(text(&printed.stdout).starts_with("toru "), "{printed:?}");
    let printed = output(Command::new(binary("toru")).arg("--help"));
    assert_eq!(printed.status.code(), Some(0));
    for word in ["serve", "demo", "check", "status", "plugin", "events", "kv"] {
        assert!(text(&printed.stdout).contains(word), "{word}");
    }
}

#[test]
fn usage_errors_exit_2_and_say_why_on_stderr() {
    for arguments in [
        &[][..],
        &["fly"],
        &["serve", "--no-such-flag"],
        &["serve", "--driver", "kqueue"],
        &["serve", "--listen", "not an address"],
        &["plugin"],
        &["plugin", "show"],
        &["plugin", "fly", "p"],
        &["plugin", "show", ""],
        &["plugin", "restart", ""],
        &["kv", "list", ""],
        &["kv", "get", "p"],
        &["kv", "set", "p", "k"],
    ] {
        let printed = output(Command::new(binary("toru")).args(arguments));
        assert_eq!(printed.status.code(), Some(USAGE), "{arguments:?}: {printed:?}");
        assert!(printed.stdout.is_empty(), "{arguments:?}: {printed:?}");
        assert!(!printed.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn bad_configuration_exits_78_with_file_line_and_column() {
    for (config, line, reason) in [
        ("[server]\nworkers = 2\nworkrs = 3\n", 3, "workrs"),
        ("[server\n", 1, ""),
        ("\n\n[nonsense]\nx = 1\n", 3, "nonsense"),
        ("[server]\nworkers = \"two\"\n", 2, ""),
        ("[server]\nlisten = \"nowhere\"\n", 2, ""),
        ("[server]\nworkers = 0\n", 2, ""),
        ("[server]\ndriver = \"kqueue\"\n", 2, ""),
        ("[protocol]\nmessage_bytes_max = 99999999\n", 2, ""),
        ("[supervisor]\nbackoff_ms = []\n", 2, ""),
        ("[paths]\n\ncontrol_socket = \"\"\n", 3, "a path that is empty"),
        ("[server]\nweb_root = \"\"\n", 2, "a path that is empty"),
        ("[auth]\ntoken_file = \"\"\n", 2, "a path that is empty"),
        ("[http]\nrequest_timeout_ms = -1\n", 2, ""),
        ("[log]\naccess = \"some\"\n", 2, ""),
    ] {
        let stage = Stage::new().config_file(config);
        let printed = stage.serve_output();
        assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "{config:?}: {printed:?}");
        let stderr = text(&printed.stderr);
        let place = format!("line {line}, column ");
        assert!(stderr.contains("toru.toml"), "{config:?}: {stderr}");
        assert!(stderr.contains(&place), "{config:?}: {stderr}");
        assert!(stderr.contains(reason), "{config:?}: {stderr}");
    }
}

#[test]
fn a_configuration_file_that_is_named_and_missing_is_78() {
    let printed = output(Command::new(binary("toru")).args([
        "serve",
        "--config",
        "/no/such/toru.toml",
        "--listen",
        "127.0.0.1:0",
    ]));
    assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "{printed:?}");
    assert!(text(&printed.stderr).contains("/no/such/toru.toml"));
}

#[test]
fn an_address_in_use_is_a_failure_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let printed = Stage::new().listen(&address).serve_output();
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(text(&printed.stderr).contains(&address), "{printed:?}");
    assert!(printed.stdout.is_empty());
}

#[test]
fn no_daemon_is_69() {
    let stage = Stage::new();
    let socket = stage.root().join("control.sock");
    for arguments in
        [&["status"][..], &["plugin", "list"], &["plugin", "restart", "p"], &["kv", "get", "p", "k"]]
    {
        let printed = output(
            Command::new(binary("toru"))
                .args(arguments)
                .env("TORU_CONTROL_SOCKET", &socket)
                .env("TORU_CONFIG", write_empty_config(&stage)),
        );
        assert_eq!(printed.status.code(), Some(UNREACHABLE), "{arguments:?}: {printed:?}");
        assert!(text(&printed.stderr).contains("control.sock"), "{printed:?}");
    }
}

#[test]
fn a_daemon_whose_socket_is_named_is_asked_though_its_configuration_is_broken() {
    let daemon = Stage::new().start();
    let broken = daemon.root().join("broken.toml");
    fs::write(&broken, "bogus = 1\n").unwrap();
    let status = |with_socket: bool| {
        let mut line = Command::new(binary("toru"));
        line.arg("status").arg("--config").arg(&broken);
        if with_socket {
            line.arg("--control-socket").arg(daemon.root().join("control.sock"));
        }
        output(&mut line).status.code()
    };
    assert_eq!((status(true), status(false)), (Some(0), Some(BAD_CONFIGURATION)));
}

fn write_empty_config(stage: &Stage) -> PathBuf {
    let path = stage.root().join("empty.toml");
    fs::write(&path, "").unwrap();
    path
}

#[test]
fn status_prints_a_line_a_plugin() {
    let daemon = Stage::new().faulty("p", &json!({})).legacy_rust("old").start();
    daemon.wait_ready("p");
    daemon.wait_ready("old");
    let status = toru(&daemon, "status", &[]);
    for id in ["p", "old"] {
        let lines: Vec<&str> =
            status.lines().filter(|line| line.split_whitespace().any(|word| word == id)).collect();
        assert_eq!(lines.len(), 1, "{id} in {status}");
    }
    for (command, arguments) in [("status", &["--json"][..]), ("plugin", &["list", "--json"])] {
        let listed = toru_json(&daemon, command, arguments);
        let listed = listed
            .as_array()
            .or_else(|| listed["plugins"].as_array())
            .unwrap_or_else(|| panic!("{listed}"))
            .clone();
        let mut ids: Vec<&str> = listed.iter().filter_map(|plugin| plugin["id"].as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["old", "p"]);
    }
    let shown = toru_json(&daemon, "plugin", &["show", "p", "--json"]);
    assert_eq!((&shown["id"], &shown["running"]), (&json!("p"), &json!(true)));
    let shown = toru(&daemon, "plugin", &["show", "p"]);
    assert!(shown.contains("Faulty p") && shown.contains("uptime_ms"), "{shown}");
    // What is no plugin is said, though it has no line.
    write_executable(&daemon.plugins().join("q.binary"), "#!/bin/sh\necho nonsense\n");
    daemon.hang_up();
    let printed = daemon.toru("status", &[]);
    let (table, said) = (text(&printed.stdout), text(&printed.stderr));
    assert!(table.lines().count() == 3 && !table.contains("q.binary"), "{table}");
    assert!(said.contains("skipped") && said.contains("q.binary: --metadata"), "{said}");
    assert_eq!(toru_json(&daemon, "status", &["--json"]).as_array().map(Vec::len), Some(2));
    let printed = daemon.toru("plugin", &["show", "nobody"]);
    assert_eq!(printed.status.code(), Some(1));
    assert!(text(&printed.stderr).contains("no plugin"), "{printed:?}");
}

#[test]
fn plugin_commands_do_it() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    toru(&daemon, "plugin", &["restart", "p"]);
    assert_ne!(daemon.plugin_pid("p"), pid);
    toru(&daemon, "plugin", &["stop", "p"]);
    assert!(daemon.processes().is_empty());
    assert_eq!(daemon.status("p").unwrap()["enabled"], true, "stopped, not disabled");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 503);
    toru(&daemon, "plugin", &["start", "p"]);
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    toru(&daemon, "plugin", &["disable", "p"]);
    assert_eq!(daemon.get("/api/plugins/p/x").status, 404);
    toru(&daemon, "plugin", &["enable", "p"]);
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    toru(&daemon, "plugin", &["reset-failed", "p"]);
    assert_eq!(daemon.wait_event("p", "reset_failed", 1)["failures"], 0);
    let printed = daemon.toru("plugin", &["restart", "nobody"]);
    assert_eq!(printed.status.code(), Some(1));
}

#[test]
fn logs_are_printed() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon.get("/api/plugins/p/print");
    wait_for("the line", || {
        toru(&daemon, "plugin", &["logs", "p"]).contains("a plain line on stdout").then_some(())
    });
    for line in toru(&daemon, "plugin", &["logs", "p", "--json"]).lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["plugin_id"], "p");
    }
}

#[test]
fn logs_reach_back_over_rotations() {
    let daemon = Stage::new()
        .set("log.rotate_bytes", 4096)
        .set("log.rotate_keep", 30)
        .set("log.access", "\"all\"")
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let paths = |lines: &str, count: usize| -> Vec<String> {
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut paths: Vec<String> =
            lines.filter_map(|line| Some(line["path"].as_str()?.to_owned())).collect();
        paths.drain(..paths.len().saturating_sub(count));
        paths
    };
    let mut follower = spawn(
        Command::new(binary("toru"))
            .args(["plugin", "logs", "p", "-f", "--json"])
            .env("TORU_CONTROL_SOCKET", daemon.root().join("control.sock"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped()),
    );
    let followed = Lines::gather(follower.stdout.take().expect("it is piped"));
    daemon.get("/api/plugins/p/first");
    wait_for("the follower", || (!followed.containing("/first").is_empty()).then_some(()));
    let mut client = daemon.client();
    let expect: Vec<String> = (0..200).map(|number| format!("/n/{number}")).collect();
    for path in &expect {
        assert_eq!(client.get(&format!("/api/plugins/p{path}")).status, 200);
    }
    wait_for("the last line", || (!followed.containing("/n/199\"").is_empty()).then_some(()));
    assert!(daemon.root().join("log/plugins/p.log.2").exists(), "it was rotated");
    assert_eq!(paths(&followed.all().join("\n"), 200), expect);
    assert_eq!(paths(&toru(&daemon, "plugin", &["logs", "p", "-n", "200", "--json"]), 200), expect);
    let page = daemon.manage("GET", "/api/plugins/p/logs?page=2&page_size=50", b"").json();
    let page: Vec<&str> =
        page["logs"].as_array().unwrap().iter().filter_map(|line| line["path"].as_str()).collect();
    assert_eq!(page, expect[100..150]);
    follower.kill().unwrap();
    follower.wait().unwrap();
}

#[test]
fn values_are_read_and_written() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    toru(&daemon, "kv", &["set", "p", "colour", "red"]);
    toru(&daemon, "kv", &["set", "p", "count", "7"]);
    assert_eq!(toru(&daemon, "kv", &["get", "p", "colour"]).trim(), "red");
    let keys = toru(&daemon, "kv", &["list", "p"]);
    assert_eq!(keys.lines().collect::<Vec<_>>(), ["colour", "count"]);
    // What the operator set is what the plugin reads.
    let asked = daemon.get("/api/plugins/route/p/kv/get/colour");
    assert_eq!(asked.json(), json!({"value": "red"}));
    toru(&daemon, "kv", &["delete", "p", "colour"]);
    let printed = daemon.toru("kv", &["get", "p", "colour"]);
    assert_eq!(printed.status.code(), Some(1), "no such key: {printed:?}");
    assert!(printed.stdout.is_empty());
}

#[test]
fn check_validates_without_starting_anything() {
    let stage = Stage::new().faulty("p", &json!({})).legacy_rust("old");
    let plugins = stage.plugins();
    let check_command = |stage: &Stage| {
        let mut command = stage.command("check");
        command.arg("--plugins-dir").arg(stage.plugins());
        command
    };
    let check = |stage: &Stage| output(&mut check_command(stage));
    let printed = check(&stage);
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let trace = fs::read_to_string(plugins.join("p.binary.trace")).unwrap();
    assert!(!trace.contains("\"start\""), "{trace}");
    let stage = stage.set("plugins.misspelt.x", 1).set("plugins.p.x", 1);
    let printed = check(&stage);
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    let warnings = text(&printed.stderr);
    assert!(warnings.contains("[plugins.misspelt]") && !warnings.contains("[plugins.p]"), "{warnings}");
    let long = "x".repeat(64);
    stage_faulty(&plugins, "long", &json!({"id": long, "metadata": {"route": "/long"}}));
    let sockets = stage.root().join("s".repeat(107 - long.len()));
    let printed = output(check_command(&stage).arg("--socket-dir").arg(sockets));
    assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "{printed:?}");
    assert!(text(&printed.stderr).contains("longer than 107 bytes"), "{printed:?}");
    stage_faulty(&plugins, "q", &json!({"metadata": {"route": "bad"}}));
    let printed = check(&stage);
    assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "{printed:?}");
    let said = format!("{}{}", text(&printed.stdout), text(&printed.stderr));
    assert!(said.contains("q.binary") && said.contains("route"), "{said}");
    fs::remove_dir_all(&plugins).unwrap();
    let printed = check(&stage);
    assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "{printed:?}");
    let said = text(&printed.stderr);
    assert!(said.contains(&*plugins.to_string_lossy()) && said.contains("No such file"), "{said}");
    fs::create_dir(&plugins).unwrap();
    let printed = check(&stage);
    assert_eq!(printed.status.code(), Some(0), "{printed:?}");
    assert!(text(&printed.stdout).starts_with("no plugins in "), "{printed:?}");
    let sockets = stage.root().join("link");
    std::os::unix::fs::symlink(stage.root(), &sockets).unwrap();
    for end in ["", "/", "/.", "//./"] {
        let sockets = format!("{}{end}", sockets.display());
        let printed = output(check_command(&stage).arg("--socket-dir").arg(&sockets));
        assert_eq!(printed.status.code(), Some(BAD_CONFIGURATION), "as a start would refuse it: {printed:?}");
        assert!(text(&printed.stderr).contains("is a symbolic link"), "{sockets}: {printed:?}");
    }
}

#[test]
fn check_tells_of_a_token_file_that_a_start_refuses() {
    let stage = Stage::new().faulty("p", &json!({}));
    let root = stage.root().to_owned();
    let path = |name: &str| root.join(name);
    fs::write(path("short"), "secret\n").unwrap();
    fs::write(path("empty"), "").unwrap();
    fs::write(path("binary"), [0xff; 32]).unwrap();
    fs::write(path("good"), "0123456789abcdef\n").unwrap();
    fs::create_dir(path("folder")).unwrap();
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    let mut stage = stage;
    for (name, reason) in [
        ("short", "less than 16 characters"),
        ("empty", "less than 16 characters"),
        ("binary", "cannot read"),
        ("folder", "cannot read"),
        ("dangling", "cannot make"),
        ("missing/token", "cannot make"),
        ("good/token", "cannot read"),
    ] {
        stage = stage.set("auth.token_file", format!("{:?}", path(name)));
        let mut command = stage.command("check");
        command.arg("--plugins-dir").arg(stage.plugins());
        for (printed, code) in [(output(&mut command), BAD_CONFIGURATION), (stage.serve_output(), 1)] {
            assert_eq!(printed.status.code(), Some(code), "{name}: {printed:?}");
            let said = text(&printed.stderr);
            let named = format!("token file {}", path(name).display());
            assert!(said.contains(reason) && said.contains(&named), "{name}: {said}");
        }
    }
    // One that is there, and one that the first start makes, with its folder.
    for name in ["good", "new", "state/data/token", "state/token"] {
        stage = stage.set("auth.token_file", format!("{:?}", path(name)));
        let mut command = stage.command("check");
        command.arg("--plugins-dir").arg(stage.plugins()).arg("--data-dir").arg(path("state/data"));
        let printed = output(&mut command);
        assert_eq!(printed.status.code(), Some(0), "{name}: {printed:?}");
    }
    assert!(!path("new").exists() && !path("state").exists(), "nothing is written");
}

#[test]
fn events_are_printed() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_event("p", "ready", 1);
    for word in ["discovered", "started", "ready"] {
        assert!(toru(&daemon, "events", &[]).contains(word), "{word}");
        assert!(toru(&daemon, "events", &["--plugin", "p"]).contains(word), "{word}");
    }
    for arguments in [&["--plugin", "nobody"][..], &["--plugin", "nobody", "--follow"]] {
        let misspelt = daemon.toru("events", arguments);
        assert_eq!((misspelt.status.code(), text(&misspelt.stdout)), (Some(1), ""), "{misspelt:?}");
        assert!(text(&misspelt.stderr).contains("no plugin has the id \"nobody\""), "{misspelt:?}");
    }
    // There is one, of which there is nothing to tell.
    assert_eq!(toru(&daemon, "events", &["--plugin", "p", "--type", "crashed"]), "");
    let count = |arguments: &[&str]| toru(&daemon, "events", arguments).lines().count();
    assert_eq!(count(&["--type", "ready"]), 1);
    assert_eq!(count(&["--type", "ready", "--plugin", "p", "--since", "1d", "--until", "9999-12-31"]), 1);
    assert_eq!(count(&["--until", "2001-01-01T00:00:00Z"]), 0);
    assert_eq!(count(&["--since", "9999-12-31"]), 0);
    assert_eq!(daemon.toru("events", &["--since", "yesterday"]).status.code(), Some(USAGE));
    let misspelt = daemon.toru("events", &["--type", "crash"]);
    assert_eq!(misspelt.status.code(), Some(USAGE));
    assert!(
        text(&misspelt.stderr).contains("disabled_after_crashes"),
        "it names what there is: {misspelt:?}"
    );
    let asked = |query: &str| daemon.control().get(&format!("/v1/events?{query}"));
    assert_eq!(asked("since=2001-01-01T00:00:00Z&type=ready").json()["events"].as_array().unwrap().len(), 1);
    assert_eq!(asked("until=978307200000").json(), json!({"events": []}));
    assert_eq!(asked("since=yesterday").status, 400);
    assert_eq!(asked("type=crash").status, 400);
    for line in toru(&daemon, "events", &["--json"]).lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        assert!(event["event_type"].is_string(), "{event}");
    }
}

#[test]
fn who_follows_hears_that_the_daemon_has_ended() {
    let mut daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon.get("/api/plugins/p/print");
    let follow = |arguments: &[&str]| {
        let mut child = spawn(
            Command::new(binary("toru"))
                .args(arguments)
                .env("HOME", daemon.root().join("home"))
                .env("TORU_CONTROL_SOCKET", daemon.root().join("control.sock"))
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        );
        let out = Lines::gather(child.stdout.take().expect("it is piped"));
        let complaints = Lines::gather(child.stderr.take().expect("it is piped"));
        wait_for("the first line", || (!out.all().is_empty()).then_some(()));
        (child, out, complaints)
    };
    let followers = [follow(&["events", "--follow"]), follow(&["plugin", "logs", "p", "-f"])];
    assert_eq!(daemon.terminate().code(), Some(0));
    for (mut child, out, complaints) in followers {
        let status = child.wait().expect("our own child");
        assert_eq!(status.code(), Some(UNREACHABLE), "{:?}", out.all());
        wait_for("a word about it", || (!complaints.containing("has ended").is_empty()).then_some(()));
    }
}

#[test]
fn the_status_is_told_while_the_daemon_stops() {
    let mut daemon = Stage::new()
        .set("supervisor.stop_grace_ms", 60_000)
        .faulty("p", &json!({"do": "ignore-term"}))
        .faulty("q", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    // It answers nothing from now on, so its stop takes as long as it may.
    let pid = daemon.plugin_pid("p");
    toru_tests::halt(pid);
    daemon.signal(Signal::TERM);
    let status = wait_for("p to be stopping", || {
        let status = toru(&daemon, "status", &[]);
        (status.contains("stopping") && status.contains("stopped")).then_some(status)
    });
    assert_eq!(status.lines().count(), 3, "{status}");
    let refused = daemon.toru("plugin", &["start", "q"]);
    assert_eq!(refused.status.code(), Some(UNREACHABLE));
    assert!(text(&refused.stderr).contains("the daemon is stopping"), "{refused:?}");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn events_of_a_plugin_that_is_gone_are_still_told() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    fs::remove_file(daemon.plugins().join("p.binary")).unwrap();
    daemon.hang_up();
    daemon.wait_event("p", "stopped", 1);
    assert!(toru(&daemon, "events", &["--plugin", "p"]).contains("stopped"));
    assert_eq!(toru(&daemon, "events", &["--plugin", "p", "--type", "crashed"]), "");
}

#[test]
fn an_end_in_the_middle_of_a_question_is_unavailable() {
    let stage = Stage::new();
    let path = stage.root().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let body =
        r#"{"title":"Service Unavailable","status":503,"detail":"the server is stopping","code":"stopping"}"#;
    // What a daemon says whose supervisor has returned, and one that is gone before it says anything.
    let answers = [
        format!("HTTP/1.0 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\r\n{body}"),
        String::new(),
    ];
    for answer in answers {
        let printed = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
                std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
            });
            output(Command::new(binary("toru")).arg("status").arg("--control-socket").arg(&path))
        });
        assert_eq!(printed.status.code(), Some(UNREACHABLE), "{answer:?}: {printed:?}");
    }
}

#[test]
fn status_says_when_plugins_are_still_being_read() {
    let daemon = Stage::new().faulty("slow", &json!({"do": "metadata-hangs"})).start();
    assert_eq!(toru(&daemon, "status", &[]), "no plugins yet: they are still being read\n");
    assert_eq!(toru_json(&daemon, "status", &["--json"]), json!([]));
    wait_for("the reading to end", || (daemon.get("/readyz").status == 200).then_some(()));
    assert_eq!(toru(&daemon, "status", &[]), "no plugins\n");
}
