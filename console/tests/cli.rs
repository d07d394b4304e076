//! The program from outside, without a terminal; the terminal is `tests/it/console.rs` of `toru-tests`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::{fs, thread};

fn console(arguments: &[&str]) -> Output {
    console_with(&[], arguments)
}

/// With variables of the environment.
fn console_with(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toru-console"))
        .args(arguments)
        .env_remove("TORU_CONTROL_SOCKET")
        .env_remove("TORU_CONFIG")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the console runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A core that says what it is told to, to one caller; gives the request line.
fn core_at(path: &Path, answer: String) -> thread::JoinHandle<String> {
    let listener = UnixListener::bind(path).expect("a socket in a fresh folder");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the console comes");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let mut request = String::new();
        reader.read_line(&mut request).expect("a request line");
        let mut field = String::new();
        while reader.read_line(&mut field).is_ok_and(|count| count > 2) {
            field.clear();
        }
        // The console may have seen enough.
        let _ = stream.write_all(answer.as_bytes());
        request
    })
}

fn chunked(lines: &[String]) -> String {
    let mut answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
    for line in lines {
        answer.push_str(&format!("{:x}\r\n{line}\n\r\n", line.len() + 1));
    }
    answer + "0\r\n\r\n"
}

#[test]
fn once_prints_a_table_without_anything_that_steers_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("c");
    let snapshot = |uptime_ms: u64, requests: u64| {
        serde_json::json!({
            "timestamp": "2026-01-01T03:12:00.000Z", "version": "0.1.0", "pid": 7, "uptime_ms": uptime_ms,
            "workers": [{ "number": 0, "driver": "epoll" }],
            "plugins": [
                { "id": "acme", "state": "running", "running": true, "enabled": true, "requests": requests },
                { "id": "bad", "state": "failed", "enabled": true, "last_exit": "\u{1b}[2Jexit code 1" },
            ],
            "a field of tomorrow": [],
        })
        .to_string()
    };
    let core = core_at(&socket, chunked(&[snapshot(10_000, 0), snapshot(10_500, 50)]));
    let output = console(&["--once", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(core.join().unwrap().starts_with("GET /v1/stream?interval_ms="));
    let table = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines.len(), 4, "{table}");
    assert_eq!(lines[1][..3], ["STATE", "PLUGIN", "UP"]);
    assert_eq!(lines[2][..2], ["FAILED", "bad"], "the trouble comes first");
    assert!(table.contains("^[[2Jexit code 1") && !table.contains('\u{1b}'), "{table:?}");
    assert_eq!(lines[3][..2], ["running", "acme"]);
    assert!(lines[3].contains(&"100"), "50 requests in half a second: {table}");
}

#[test]
fn a_core_that_is_not_there_or_makes_no_sense_is_69_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere").display().to_string();
    let output = console(&["--once", "--socket", &nowhere]);
    assert_eq!(output.status.code(), Some(69));
    assert!(stderr(&output).contains(&format!("no core at {nowhere}")), "{}", stderr(&output));
    for (number, answer) in [
        chunked(&["{\"pid\":".to_owned()]),
        "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "220 mail.example ESMTP\r\n".to_owned(),
        String::new(),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = folder.path().join(number.to_string());
        let core = core_at(&socket, answer);
        let output = console(&["--once", "--socket", socket.to_str().unwrap()]);
        core.join().unwrap();
        assert_eq!(output.status.code(), Some(69), "{number}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{number}");
    }
}

#[test]
fn the_socket_is_found_as_the_commands_of_the_daemon_find_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let config =
        file("toru.toml", "[server]\nworkers = 1\n[paths]\ncontrol_socket = \"/nonexistent/file\"\n");
    let (config, variable) = (&*config, ("TORU_CONFIG", &*config));
    let socket_variable = ("TORU_CONTROL_SOCKET", "/nonexistent/variable");
    for (variables, flags, place) in [
        (&[][..], &["--config", config][..], "/nonexistent/file"),
        (&[variable], &[], "/nonexistent/file"),
        (&[("TORU_CONFIG", "/nonexistent/toml")], &["--config", config], "/nonexistent/file"),
        (&[variable, socket_variable], &[], "/nonexistent/variable"),
        (&[variable, socket_variable], &["--control-socket", "/nonexistent/flag"], "/nonexistent/flag"),
    ] {
        let output = console_with(variables, &[&["--once"], flags].concat());
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        assert!(stderr(&output).contains(&format!("no core at {place}")), "{place}: {output:?}");
    }
    let broken = file("broken.toml", "[paths]\n\ncontrol_socket = 7\n");
    for (config, why) in
        [(&*broken, "line 3, column 18"), ("/nonexistent/toml", "cannot read /nonexistent/toml")]
    {
        let output = console(&["--once", "--config", config]);
        assert_eq!(output.status.code(), Some(78), "{output:?}");
        assert!(output.stdout.is_empty() && stderr(&output).contains(why), "{why}: {output:?}");
        // It may be what is being mended.
        let output = console(&["--once", "--config", config, "--control-socket", "/nonexistent/flag"]);
        assert_eq!(output.status.code(), Some(69), "{output:?}");
    }
    // What is no business of the console hides no running daemon.
    let newer = file("newer.toml", "[tomorrow]\nx = 1\n[paths]\ncontrol_socket = \"/nonexistent/file\"\n");
    assert_eq!(console(&["--once", "--config", &newer]).status.code(), Some(69));
}

#[test]
fn without_a_terminal_it_says_what_works_there() {
    let output = console(&["--socket", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--once"), "{}", stderr(&output));
    assert!(output.stdout.is_empty(), "no escape sequence goes into a pipe");
    let output = console(&["--theme", "pink"]);
    assert_eq!(output.status.code(), Some(2));
    for (size, why) in [("1K", "at least 1M"), ("much", "such as 256M")] {
        let output = console(&["--record", "/nonexistent/x", "--record-max", size]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(why), "{}", stderr(&output));
    }
}

#[test]
fn what_is_known_and_what_is_decided_know_no_terminal() {
    for file in
        ["model.rs", "columns.rs", "sheet.rs", "update.rs", "text.rs", "feed.rs", "record.rs", "once.rs"]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        for word in ["ratatui", "crossterm", "crate::view"] {
            assert!(!code.contains(word), "{file} knows {word}");
        }
    }
    for file in ["model.rs", "columns.rs", "sheet.rs", "update.rs", "text.rs"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = fs::read_to_string(&path).unwrap();
        for word in ["Instant", "SystemTime", "std::net", "UnixStream", "std::fs", "thread"] {
            assert!(!text.contains(word), "{file} knows {word}");
        }
    }
}
