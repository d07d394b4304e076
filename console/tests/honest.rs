//! The console has no view yet, and must not pretend to.

use std::process::Command;

#[test]
fn says_that_there_is_no_view_and_what_there_is_instead() {
    let output = Command::new(env!("CARGO_BIN_EXE_toru-console")).output().expect("the console runs");
    assert_eq!(output.status.code(), Some(69));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no live view") && said.contains("/api/plugins"), "{said}");
}
