//! The binary by its outermost edge: what it says without doing anything.

use std::process::{Command, Output};

fn toru(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toru")).args(args).output().expect("toru runs")
}

#[test]
fn it_tells_its_version() {
    let output = toru(&["--version"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), concat!("toru ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn bad_usage_is_exit_code_2_and_names_the_mistake() {
    for args in [&["serve", "--colour"][..], &["serve", "--listen", "nowhere"], &["dance"]] {
        let output = toru(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(args[args.len() - 1]), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn a_missing_configuration_file_is_exit_code_78() {
    let output = toru(&["serve", "--config", "/no/such/toru.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/toru.toml"));
}
