//! One test binary over the real daemon; each module is one side of it.

#![forbid(unsafe_code)]

mod fixtures;
