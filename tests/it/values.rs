//! `toru kv export` and `import`: a plugin's values as JSON lines, out and in again.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::Path,
    process::{Command, Output},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};
use toru_tests::{DEADLINE, Daemon, Stage, binary, output, output_with};

fn said(printed: &Output) -> String {
    String::from_utf8_lossy(&printed.stdout).into_owned() + &String::from_utf8_lossy(&printed.stderr)
}

fn daemon() -> Daemon {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    daemon
}

fn set(daemon: &Daemon, id: &str, key: &str, value: &str) {
    let request = json!({"action": "set", "key": key, "value": value}).to_string();
    let answer = daemon.manage("POST", &format!("/api/plugins/{id}/kv"), request.as_bytes());
    assert_eq!(answer.status, 200, "{answer:?}");
}

fn get(daemon: &Daemon, id: &str, key: &str) -> Value {
    let request = json!({"action": "get", "key": key}).to_string();
    daemon.manage("POST", &format!("/api/plugins/{id}/kv"), request.as_bytes()).json()["value"].take()
}

fn export(daemon: &Daemon, id: &str) -> String {
    let printed = daemon.toru("kv", &["export", id]);
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).expect("UTF-8")
}

/// `toru kv import` with these lines on the standard input.
fn import(daemon: &Daemon, arguments: &[&str], lines: &str) -> Output {
    let mut command = Command::new(binary("toru"));
    command
        .args(["kv", "import"])
        .args(arguments)
        .env("HOME", daemon.root().join("home"))
        .env("TORU_CONTROL_SOCKET", daemon.root().join("control.sock"));
    output_with(&mut command, lines.as_bytes())
}

fn line(key: &str, value: &str) -> String {
    json!({"key": key, "value": value}).to_string() + "\n"
}

#[test]
fn what_is_exported_while_the_plugin_writes_is_one_moment_and_comes_back_whole() {
    let daemon = daemon();
    // More than one answer to `list` holds, and more than one piece of an export and request of an import.
    let many: String =
        (0..1500).map(|number| line(&format!("many-{number:04}"), &number.to_string())).collect();
    let printed = import(&daemon, &["p"], &many);
    assert!(printed.status.success() && said(&printed).contains("1500 lines"), "{printed:?}");
    let odd = [
        ("", "an empty value"),
        ("Grüße 🦀 \u{0} \"quotes\" \\ \r\n\t\u{7f}\u{2028}", "key \u{0}\n\"\\ ü"),
        (&"\u{1}".repeat(100_000), "all escaped"),
        (&"x".repeat(900_000), "large"),
        ("{\"looks\": [\"like\", \"JSON\"]}", "json"),
    ];
    for (value, key) in &odd {
        set(&daemon, "p", key, value);
    }
    let name = daemon.root().join("values.jsonl");
    let file = name.to_str().unwrap();
    let (before, after) = thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        // The plugin sets both in turn: in no moment are they more than one apart.
        let daemon = &daemon;
        let writer = scope.spawn(move || {
            for number in 1_u64.. {
                for key in ["turn-m", "turn-n"] {
                    let answer = daemon.get(&format!("/api/plugins/route/p/kv/set/{key}/{number}"));
                    assert_eq!(answer.json(), json!({"value": null}));
                }
                if tell.send(number).is_err() {
                    return number;
                }
            }
            unreachable!("the channel closes first")
        });
        let mut before = 0;
        for _ in 0..20 {
            before = told.recv_timeout(DEADLINE).expect("the plugin gets on");
        }
        for _ in 0..3 {
            let printed = daemon.toru("kv", &["export", "p", file]);
            assert!(printed.status.success(), "{printed:?}");
            assert!(said(&printed).contains("1507 values of p"), "{printed:?}");
        }
        drop(told);
        (before, writer.join().unwrap())
    });
    assert_eq!(fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o600, "for its owner alone");
    let text = fs::read_to_string(&name).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 1507, "a line a value, and nothing else");
    let keys: Vec<&str> = lines.iter().map(|line| line["key"].as_str().unwrap()).collect();
    assert!(keys.is_sorted());
    let value = |key: &str| {
        let found = lines.iter().find(|line| line["key"] == key).unwrap_or_else(|| panic!("no {key:?}"));
        assert_eq!(found.as_object().unwrap().len(), 2, "{found}");
        found["value"].as_str().unwrap()
    };
    for (expected, key) in odd {
        assert_eq!(value(key), expected, "{key:?}");
    }
    let number = |key: &str| value(key).parse::<u64>().unwrap();
    let (m, n) = (number("turn-m"), number("turn-n"));
    assert!(m == n || m == n + 1, "m is {m}, n is {n}");
    assert!((before..=after).contains(&m), "{m} is not from {before} to {after}");

    // Into another plugin, and out again: the same bytes.
    let printed = daemon.toru("kv", &["import", "q", file]);
    assert!(printed.status.success() && said(&printed).contains("1507 lines"), "{printed:?}");
    assert!(export(&daemon, "q") == text);
    assert_eq!(get(&daemon, "q", "many-1499"), "1499");
    let asked = daemon.get("/api/plugins/route/q/kv/get/many-0007");
    assert_eq!(asked.json(), json!({"value": "7"}), "the plugin sees what the operator took in");
    let rest: Vec<_> = fs::read_dir(daemon.root())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("export"))
        .collect();
    assert_eq!(rest, [""; 0], "nothing of the making is left");
}

#[test]
fn an_import_names_the_line_that_is_refused_and_what_was_done() {
    let daemon = Stage::new().faulty("p", &json!({})).set("kv.quota_bytes", 1000).start();
    daemon.wait_ready("p");
    let (good, long_key) = (line("a", "1"), line(&"k".repeat(513), "v"));
    for (lines, reasons) in [
        (
            format!("{good}\n{long_key}{}", line("b", "2")),
            ["line 3", "too_large", "2 other lines up to line 4"],
        ),
        (format!("{good}{}", line("large", &"v".repeat(1000))), ["line 2", "quota", "1000 bytes"]),
        (format!("{good}{}", line("", "v")), ["line 2", "invalid", "at least one byte"]),
    ] {
        let printed = import(&daemon, &["p"], &lines);
        assert_eq!(printed.status.code(), Some(1), "{printed:?}");
        for reason in reasons {
            assert!(said(&printed).contains(reason), "{reason}: {printed:?}");
        }
    }
    assert_eq!(export(&daemon, "p"), format!("{good}{}", line("b", "2")));

    // A file with a line that is none changes nothing, whatever stands before it.
    for bad in ["{\"key\":\"c\"}", "c 3", "{\"key\":\"c\",\"value\":3}", "{\"key\":\"c\",\"value\":\"\"}}"] {
        let printed = import(&daemon, &["p", "--replace"], &format!("{}{bad}\n", line("c", "3")));
        assert_eq!(printed.status.code(), Some(1), "{printed:?}");
        assert!(
            said(&printed).contains("line 2") && said(&printed).contains("nothing was changed"),
            "{printed:?}"
        );
    }
    assert_eq!(export(&daemon, "p"), format!("{good}{}", line("b", "2")));

    let printed = import(&daemon, &["nobody"], &good);
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(said(&printed).contains("no plugin has this id"), "{printed:?}");
    let printed = import(&daemon, &["p", "/no/such/file"], "");
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(said(&printed).contains("/no/such/file"), "{printed:?}");
}

#[test]
fn an_import_adds_and_with_replace_leaves_nothing_else() {
    let daemon = daemon();
    let two = line("a", "1") + &line("b", "2");
    assert!(import(&daemon, &["p"], &two).status.success());
    set(&daemon, "q", "other", "kept");
    // The last line of a key counts, null removes, and no newline at the end is needed.
    let printed =
        import(&daemon, &["p"], &(line("c", "3") + &line("c", "4") + "{\"key\":\"a\",\"value\":null}"));
    assert!(printed.status.success(), "{printed:?}");
    assert_eq!(export(&daemon, "p"), line("b", "2") + &line("c", "4"));
    let printed = import(&daemon, &["p", "--replace"], &two);
    assert!(printed.status.success() && said(&printed).contains("1 values removed"), "{printed:?}");
    assert_eq!(export(&daemon, "p"), two);
    assert!(import(&daemon, &["p", "--replace"], "").status.success());
    assert_eq!(export(&daemon, "p"), "");
    assert_eq!(export(&daemon, "q"), line("other", "kept"), "another plugin's values are its own");
}

#[test]
fn a_stopped_daemon_is_69_and_offline_does_all_or_nothing() {
    let mut daemon = daemon();
    set(&daemon, "p", "a", "1");
    let data = daemon.root().join("data");
    let file = daemon.root().join("values.jsonl");
    let config = daemon.root().join("toru.toml");
    let offline = |action: &str, more: &[&str]| {
        let mut command = Command::new(binary("toru"));
        command.args(["kv", action, "--offline", "p"]).arg(&file).args(more);
        output(command.arg("--config").arg(&config).arg("--data-dir").arg(&data))
    };
    // Reading goes on beside the daemon, writing does not.
    let printed = offline("export", &[]);
    assert!(printed.status.success() && said(&printed).contains("1 values"), "{printed:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), line("a", "1"));
    let printed = offline("import", &[]);
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(said(&printed).contains("another toru uses"), "{printed:?}");

    assert_eq!(daemon.terminate().code(), Some(0));
    for arguments in [["export", "p"], ["import", "p"]] {
        let printed = daemon.toru("kv", &[arguments[0], arguments[1], file.to_str().unwrap()]);
        assert_eq!(printed.status.code(), Some(69), "{printed:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), line("a", "1"), "it is as it was");
    }
    fs::write(&file, line("b", "2") + &line(&"k".repeat(513), "3")).unwrap();
    let printed = offline("import", &["--replace"]);
    assert_eq!(printed.status.code(), Some(1), "{printed:?}");
    assert!(
        said(&printed).contains("line 2: too_large") && said(&printed).contains("nothing was changed"),
        "{printed:?}"
    );
    fs::write(&file, line("c", "3")).unwrap();
    assert!(offline("import", &[]).status.success());
    assert!(offline("export", &[]).status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), line("a", "1") + &line("c", "3"));
    fs::write(&file, line("d", "4")).unwrap();
    assert!(offline("import", &["--replace"]).status.success());
    let daemon = daemon.start_again();
    daemon.wait_ready("p");
    assert_eq!(export(&daemon, "p"), line("d", "4"));
    assert_eq!(get(&daemon, "p", "d"), "4");
}

#[test]
fn an_export_that_is_cut_off_replaces_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (socket, file) = (root.path().join("control.sock"), root.path().join("values.jsonl"));
    fs::write(&file, "from before").unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let ended_early = |last: &'static str| {
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while head != "\r\n" {
                    head.clear();
                    reader.read_line(&mut head).unwrap();
                }
                let answer = format!("HTTP/1.1 200 OK\r\n\r\n{}{last}", line("a", "1"));
                stream.write_all(answer.as_bytes()).unwrap();
            });
            export_to(&socket, &file)
        })
    };
    for last in ["", "{\"key\":\"b\",\"val", "{\"values\":2}\n"] {
        let printed = ended_early(last);
        assert_eq!(printed.status.code(), Some(1), "{last}: {printed:?}");
        assert!(said(&printed).contains("ended early"), "{last}: {printed:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "from before");
    }
    let printed = ended_early("{\"values\":1}\n");
    assert!(printed.status.success(), "{printed:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), line("a", "1"));
}

fn export_to(socket: &Path, file: &Path) -> Output {
    let mut command = Command::new(binary("toru"));
    output(command.args(["kv", "export", "p"]).arg(file).arg("--control-socket").arg(socket))
}

#[test]
fn values_come_and_go_on_the_control_socket_alone() {
    let daemon = daemon();
    set(&daemon, "p", "a", "1");
    let answer = daemon.control().request("GET", "/v1/plugins/p/kv", &[], b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.text(), line("a", "1") + "{\"values\":1}\n");
    let answer = daemon.manage("GET", "/v1/plugins/p/kv", b"");
    assert_eq!(answer.status, 404, "{answer:?}");
    let answer = daemon.control().request("DELETE", "/v1/plugins/p/kv", &[], b"");
    assert_eq!(answer.status, 405, "{answer:?}");
    let import = |kind: &str, lines: &str| {
        daemon.control().request("POST", "/v1/plugins/p/kv", &[("content-type", kind)], lines.as_bytes())
    };
    let lines: String = (0..513).map(|number| line(&number.to_string(), "")).collect();
    let answer = import("application/x-ndjson", &lines);
    assert_eq!(answer.status, 400, "{answer:?}");
    let fewer = lines.lines().take(512).collect::<Vec<_>>().join("\n");
    assert_eq!(import("application/x-ndjson", &fewer).json(), json!({"done": 512, "refused": []}));
    assert_eq!(import("application/json", &line("a", "2")).json(), json!({"done": 1, "refused": []}));
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        assert_eq!(import(kind, &line("a", "3")).status, 415, "{kind}");
    }
    let head = daemon.control().request("HEAD", "/v1/plugins/p/kv", &[], b"");
    assert_eq!((head.status, head.field("content-type")), (200, Some("application/x-ndjson")));
}
