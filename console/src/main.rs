//! `toru-console`, the live view of a running daemon: not built yet.
//!
//! It says so, names what there is instead, and exits as a program does whose daemon offers it nothing to show.

use std::process::ExitCode;

/// `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: u8 = 69;

fn main() -> ExitCode {
    eprintln!(
        "toru-console {}: this version has no live view yet; ask the daemon for the state of its plugins:\n\
         curl -H \"Authorization: Bearer $(cat <data>/token)\" http://127.0.0.1:3000/api/plugins",
        env!("CARGO_PKG_VERSION")
    );
    ExitCode::from(UNAVAILABLE)
}
