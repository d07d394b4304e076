//! What the daemon says of itself to the console and to `toru status`: JSON, over the control socket.
//!
//! Readers ignore unknown fields, so that a console and a daemon of neighbouring versions understand each other.

use serde::{Deserialize, Serialize};

/// One plugin at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginStatus {
    pub id: String,
    pub name: String,
    pub version: String,
    pub author: Option<String>,
    pub icon: String,
    pub route: String,
    pub enabled: bool,
    pub running: bool,
    /// `healthy`, `unresponsive`, or the state's word while it does not run.
    pub health: String,
    pub pid: Option<u32>,
    pub socket_path: String,
    /// `stopped`, `starting`, `running`, `crashed`, `stopping` or `failed`.
    pub state: String,
    /// Processes after the first.
    pub restarts: u64,
    /// How the last process ended, in words.
    pub last_exit: Option<String>,
    pub uptime_ms: Option<u64>,
    /// Round trip of the last answered ping.
    pub ping_us: Option<u64>,
    pub requests: u64,
    /// Answers with status 500 and above.
    pub errors: u64,
    /// Answers to requests that nobody waited for.
    pub stray_answers: u64,
    pub in_flight: u64,
    /// Requests that wait for a place with the plugin.
    pub queued: u64,
    pub p50_us: Option<u64>,
    pub p95_us: Option<u64>,
    pub p99_us: Option<u64>,
    /// Of one core, since the last look; `None` while it does not run.
    pub cpu_percent: Option<f64>,
    pub rss_bytes: Option<u64>,
    pub protocol: String,
}

/// One worker thread at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    pub number: u64,
    /// `io_uring` or `epoll`.
    pub driver: String,
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
    pub version: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub dropped_log_lines: u64,
    pub plugins: Vec<PluginStatus>,
    pub workers: Vec<WorkerStatus>,
}
