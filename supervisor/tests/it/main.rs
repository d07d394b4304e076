//! Drives a whole supervisor with real processes.

mod process;
mod remains;
mod stage;
