//! Drives a whole supervisor with real processes.

mod orders;
mod process;
mod remains;
mod stage;
