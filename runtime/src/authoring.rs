//! What an author of plugins is given: a project to begin with, a test for any plugin, a plugin in the foreground.
//!
//! Nothing here runs in a daemon; `main.rs` calls it for `toru plugin new`, `test` and `run`.

pub mod kit;
pub mod new;
pub mod run;
mod subject;
