//! Drives a whole supervisor with real processes.

mod life;
mod orders;
mod process;
mod remains;
mod stage;
