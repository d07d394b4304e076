//! What the daemon says of itself to the console and to `toru status`: JSON, over the control socket.
//!
//! Readers ignore unknown fields, so that a console and a daemon of neighbouring versions understand each other.

use serde::{Deserialize, Serialize};

/// One plugin at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginStatus {
    /// From the metadata, as are the next five.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// The plugin's own version.
    pub version: String,
    /// Who made it.
    pub author: Option<String>,
    /// Usually one emoji.
    pub icon: String,
    /// `/` and one segment.
    pub route: String,
    /// Whether the operator wants it to run.
    pub enabled: bool,
    /// Whether it is ready and served.
    pub running: bool,
    /// `healthy`, `unresponsive`, or the state's word while it does not run.
    pub health: String,
    /// Of the process that there is now.
    pub pid: Option<u32>,
    /// Where it listens.
    pub socket_path: String,
    /// `stopped`, `starting`, `running`, `crashed`, `stopping` or `failed`.
    pub state: String,
    /// Processes after the first.
    pub restarts: u64,
    /// How the last process ended, in words.
    pub last_exit: Option<String>,
    /// When the back-off ends and the plugin is started again, in milliseconds since 1970; `None` in any other state.
    pub next_start: Option<u64>,
    /// Since the process was spawned; `None` while there is none.
    pub uptime_ms: Option<u64>,
    /// Round trip of the last answered ping.
    pub ping_us: Option<u64>,
    /// Answered requests since the daemon started, as are the next two.
    pub requests: u64,
    /// Answers with status 500 and above.
    pub errors: u64,
    /// Answers to requests that nobody waited for.
    pub stray_answers: u64,
    /// Requests that are with the plugin now.
    pub in_flight: u64,
    /// Requests that wait for a place with the plugin.
    pub queued: u64,
    /// Half of the requests since the daemon started took at most this long, in microseconds.
    /// `None` before the first.
    pub p50_us: Option<u64>,
    /// The same for 95 of 100.
    pub p95_us: Option<u64>,
    /// The same for 99 of 100.
    pub p99_us: Option<u64>,
    /// Of one core, since the last look; `None` while it does not run.
    pub cpu_percent: Option<f64>,
    /// Resident memory; `None` while it does not run.
    pub rss_bytes: Option<u64>,
    /// `1.0` or `1.1`.
    pub protocol: String,
}

/// One worker thread at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// From 0.
    pub number: u64,
    /// `io_uring` or `epoll`.
    pub driver: String,
    /// Clients that are connected now.
    pub connections: u64,
    /// Answered requests of plugins.
    pub requests: u64,
}

/// Everything at one moment: one line of `GET /v1/stream`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// RFC 3339 UTC, milliseconds.
    pub timestamp: String,
    /// Of the daemon.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Of the daemon.
    pub uptime_ms: u64,
    /// Lines that the log did not take in time, since the daemon started.
    pub dropped_log_lines: u64,
    /// In the order of their ids.
    pub plugins: Vec<PluginStatus>,
    /// In the order of their numbers.
    pub workers: Vec<WorkerStatus>,
}
