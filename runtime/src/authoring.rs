//! What an author of plugins is given: a project to begin with, and a test for any plugin.
//!
//! Nothing here runs in a daemon; `main.rs` calls it for `toru plugin new` and `toru plugin test`.

pub mod kit;
pub mod new;
mod subject;
