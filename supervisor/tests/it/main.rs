//! Drives a whole supervisor with real processes.

mod remains;
mod stage;
