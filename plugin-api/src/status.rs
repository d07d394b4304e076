//! What the daemon says of itself to the console and to `toru status`: JSON, over the control socket.
//!
//! Readers ignore unknown fields, so that a console and a daemon of neighbouring versions understand each other.

use serde::{Deserialize, Serialize};

/// Whether a character shows nothing and makes what is around it read as another text: bidirectional overrides, zero
/// widths, tags. What the daemon tells holds plugins' words, and who prints them shows such by number.
#[doc(hidden)]
pub fn is_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

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
    /// `stopped`, `starting`, `running`, `crashed`, `deferred` (the core has no room to start it, or no folder for its socket), `stopping` or `failed`.
    pub state: String,
    /// Processes after the first.
    pub restarts: u64,
    /// When it was last restarted, in milliseconds since 1970; the audit trail knows of earlier ones.
    pub last_restart: Option<u64>,
    /// Crashes in a row, until a run that is long enough or an order forgives them.
    pub failures: u64,
    /// How the last process ended, in words.
    pub last_exit: Option<String>,
    /// When the back-off ends and the plugin is started again, in milliseconds since 1970; `None` in any other state.
    pub next_start: Option<u64>,
    /// Since the process was spawned; `None` while there is none.
    pub uptime_ms: Option<u64>,
    /// Round trip of the last answered ping.
    pub ping_us: Option<u64>,
    /// Requests that were answered or whose client went, since the daemon started, as are the next three.
    pub requests: u64,
    /// Answers with status 500 and above.
    pub errors: u64,
    /// Requests whose client went before the answer was there.
    pub abandoned: u64,
    /// Answers to requests that nobody waited for.
    pub stray_answers: u64,
    /// Lines that it printed or said beyond what is logged of one plugin in a second.
    pub dropped_log_lines: u64,
    /// Requests that are with the plugin now.
    pub in_flight: u64,
    /// Requests that wait for a place with the plugin.
    pub queued: u64,
    /// Half of the requests took at most this long, in microseconds: of those since the daemon started, in a line of
    /// `GET /v1/stream` of those of its last [`Snapshot::window_ms`]. `None` where there were none.
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
    /// The last second; on the stream alone, as are the next three.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// What it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Its load by worker, in the order of their numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_worker: Vec<PluginOnWorker>,
    /// The last lines of its newest process on standard error, 20 of 500 bytes at most; `None` where they are those
    /// of the stream's line before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Vec<String>>,
}

/// What a plugin may use, by its metadata and the core's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests at once; for a 1.0 plugin that is connections.
    pub in_flight_max: u64,
    /// For an answer.
    pub timeout_ms: u64,
    /// JSON of one message.
    pub message_bytes_max: u64,
    /// Its keys and values together.
    pub kv_bytes_max: u64,
    /// Address space of its process; `None` is no limit of its own, as in the next two.
    pub memory_bytes_max: Option<u64>,
    /// Open files of its process.
    pub open_files_max: Option<u64>,
    /// Of its process, from -20 (first) to 19 (last).
    pub nice: Option<i32>,
}

/// One plugin's load on one worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PluginOnWorker {
    /// From this worker to the plugin.
    pub connections: u64,
    /// Requests that are with the plugin.
    pub in_flight: u64,
    /// Requests that wait for a place with it.
    pub queued: u64,
    /// Answered since the daemon started.
    pub requests: u64,
}

/// One second of one plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// The end of the second, in milliseconds of the Unix epoch.
    pub unix_ms: u64,
    /// Answered requests.
    pub requests_per_s: f64,
    /// Answers with status 500 and above.
    pub errors_per_s: f64,
    /// Half of the requests of this second took at most this long, in microseconds; `None` without requests.
    pub p50_us: Option<u64>,
    /// The same for 95 of 100.
    pub p95_us: Option<u64>,
    /// The same for 99 of 100.
    pub p99_us: Option<u64>,
    /// Requests that were with the plugin at the end of the second.
    pub in_flight: u64,
    /// Of one core, since the sample before; `None` without a process.
    pub cpu_percent: Option<f64>,
    /// Resident memory; `None` without a process.
    pub rss_bytes: Option<u64>,
}

/// The last ten minutes of one plugin: `GET /v1/plugins/<id>/history`, and a line of `GET /v1/stream?history=<id>`.
///
/// Shape: columns of equal length, oldest first, at most 600; the fields are those of [`Sample`].
/// A second without a sample had no requests, and memory as in the sample before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "Sample has it")]
pub struct History {
    pub plugin: String,
    pub unix_ms: Vec<u64>,
    pub requests_per_s: Vec<f64>,
    pub errors_per_s: Vec<f64>,
    pub p50_us: Vec<Option<u64>>,
    pub p95_us: Vec<Option<u64>>,
    pub p99_us: Vec<Option<u64>>,
    pub in_flight: Vec<u64>,
    pub cpu_percent: Vec<Option<f64>>,
    pub rss_bytes: Vec<Option<u64>>,
}

impl History {
    /// Adds a sample that is newer than all others.
    pub fn push(&mut self, sample: &Sample) {
        self.unix_ms.push(sample.unix_ms);
        self.requests_per_s.push(sample.requests_per_s);
        self.errors_per_s.push(sample.errors_per_s);
        self.p50_us.push(sample.p50_us);
        self.p95_us.push(sample.p95_us);
        self.p99_us.push(sample.p99_us);
        self.in_flight.push(sample.in_flight);
        self.cpu_percent.push(sample.cpu_percent);
        self.rss_bytes.push(sample.rss_bytes);
    }

    /// Row by row. A column that another version does not have, or that is too short, gives nothing.
    pub fn samples(&self) -> impl Iterator<Item = Sample> {
        fn at<T: Copy + Default>(column: &[T], row: usize) -> T {
            column.get(row).copied().unwrap_or_default()
        }
        self.unix_ms.iter().enumerate().map(|(row, &unix_ms)| Sample {
            unix_ms,
            requests_per_s: at(&self.requests_per_s, row),
            errors_per_s: at(&self.errors_per_s, row),
            p50_us: at(&self.p50_us, row),
            p95_us: at(&self.p95_us, row),
            p99_us: at(&self.p99_us, row),
            in_flight: at(&self.in_flight, row),
            cpu_percent: at(&self.cpu_percent, row),
            rss_bytes: at(&self.rss_bytes, row),
        })
    }
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
    /// Requests that are with plugins.
    pub in_flight: u64,
    /// Requests that wait for a place with a plugin.
    pub queued: u64,
    /// How late the event loop came to its timer, in microseconds: the worst of the last second or two. 0 at rest.
    pub lag_us: u64,
    /// Answered requests in each of the last seconds, oldest first, at most 600; on the first snapshot of a stream
    /// with `history=*` alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub past_requests_per_s: Vec<f64>,
}

/// The store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatus {
    /// Whether values and events are written; if not, the database is closed after a failure and tried again.
    pub writable: bool,
    /// Writes that wait for the next transaction.
    pub queued_writes: u64,
    /// Keys and values of them.
    pub queued_bytes: u64,
    /// Events of the audit trail that wait.
    pub queued_events: u64,
    /// Reads that wait.
    pub queued_reads: u64,
    /// Events that were dropped since the daemon started.
    pub dropped_events: u64,
    /// Transactions since the daemon started.
    pub commits: u64,
    /// How long the last one took to be on the disk, in microseconds. `None` before the first, as are the next two.
    pub last_commit_us: Option<u64>,
    /// Half of them took at most this long.
    pub p50_commit_us: Option<u64>,
    /// The same for 99 of 100.
    pub p99_commit_us: Option<u64>,
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
    /// The database.
    pub store: StoreStatus,
    /// On the stream, how far back the plugins' latencies go; else `None`: to the start.
    pub window_ms: Option<u64>,
}
