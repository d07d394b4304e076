//! The command line: what it prints and what it exits with.

use std::process::Command;

use toru_tests::{Stage, binary, output};

const USAGE: i32 = 2;
const BAD_CONFIGURATION: i32 = 78;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn version_and_help() {
    let printed = output(Command::new(binary("toru")).arg("--version"));
    assert_eq!(printed.status.code(), Some(0));
    assert!(text(&printed.stdout).starts_with("toru "), "{printed:?}");
    let printed = output(Command::new(binary("toru")).arg("--help"));
    assert_eq!(printed.status.code(), Some(0));
    for word in ["serve", "demo"] {
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
