//! The plugin supervisor: who runs, since when, and what happens next.
//!
//! [`Supervisor::run`] is one loop on a thread of its own: wait, step, act, publish.
//! It never blocks on a plugin, a disk or a lock: pipes and sockets are non-blocking, and what it has to say goes through
//! [`Outlet`], whose methods hand over and return. One plugin's slow metadata, start, stop or back-off is a deadline
//! among others and delays nobody.
//!
//! This file has the loop and all that others say to it and hear of it. The rest is found by what went wrong:
//!
//! | where | what |
//! | --- | --- |
//! | [`state`], `transitions` | what follows from an event: the policy, and carrying it out |
//! | `process`, `plugin` | system calls on a process; what is known of a plugin |
//! | `socket`, `contact`, `lifeline` | its socket, reaching it, and the bytes of what is said |
//! | `health`, `output` | whether it is well, what it prints |
//! | `exits`, `remains` | its end, and what it leaves behind |
//! | `orders` | what an operator wants |
//! | `rescan`, `discovery` | which plugins there are, and what each says of itself |
//! | `notify`, `kv` | telling a maintainer; questions of plugins to the store |
//!
//! Workers speak to plugins over connections of their own and never through here.

mod contact;
mod discovery;
mod exits;
mod health;
mod kv;
mod lifeline;
mod notify;
mod orders;
mod output;
mod plugin;
mod process;
mod remains;
mod rescan;
mod socket;
pub mod state;
mod transitions;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signalfd::SignalFd;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use serde_json::{Map, Value};
use toru_plugin_api::from_plugin::PluginMessageReader;
use toru_plugin_api::metadata::Metadata;

pub use discovery::check;
use discovery::{Fingerprint, Look, Probe};
pub use kv::{KvAnswer, KvQuestion, Underway};
use lifeline::Lifeline;
pub use lifeline::Strays;
use notify::Notice;
use plugin::Plugin;
pub use process::{Exit, Helper, prepare};
use remains::{Marks, ProcessId};
use rescan::{Postponed, Rescan};
use socket::{FolderId, SocketsDir};
pub use socket::{Prepared, check_sockets_dir, claim_sockets_dir, lock_folder};
use state::{Event, Policy, State, Want};

/// Everything the supervisor is told at the start.
pub struct Settings {
    pub plugins_dir: PathBuf,
    /// Exists, belongs to this user, mode 0700; see [`claim_sockets_dir`]. Checked before each start of a plugin, and made
    /// anew where it is gone by then.
    pub sockets_dir: PathBuf,
    /// `<id>.log` in here is what `init` calls `log_path`.
    pub plugin_logs_dir: PathBuf,
    /// `<data>/plugins/<id>` is what `init` calls `data_dir`.
    pub data_dir: PathBuf,
    pub instance_id: String,
    pub metadata_timeout: Duration,
    /// How long a notification may take.
    pub notify_timeout: Duration,
    pub frame_bytes_max: usize,
    /// Each connects to every plugin that is ready.
    pub workers: usize,
    pub adjustable: Adjustable,
    /// What [`Outlet::keep`] was given in earlier runs, by id.
    pub kept: HashMap<String, Kept>,
    /// Plugins of earlier runs by id, of which [`Outlet::record`] heard a start and no end; with when they were started,
    /// RFC 3339.
    pub unended: HashMap<String, String>,
}

/// The settings that may change while the supervisor runs; see [`Command::Configure`].
#[derive(Clone)]
pub struct Adjustable {
    pub policy: Policy,
    pub health_interval: Duration,
    /// So many pings without an answer, and the plugin hangs.
    pub unanswered_pings: u32,
    /// `[plugins.ID]` of the configuration as JSON text, handed over in `init`.
    pub plugin_config: HashMap<String, String>,
    /// `[plugins.ID.process]` of the configuration.
    pub process: HashMap<String, ProcessSettings>,
    /// `notify.command`: run with the event as JSON on its standard input when a plugin is given up; empty for none.
    pub notify_command: Vec<String>,
}

/// What is to be known of a plugin at the daemon's next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What an operator wants.
    pub enabled: bool,
    /// Starts after the first one, over all runs of the daemon.
    pub restarts: u64,
    /// When the last of them was, in milliseconds since 1970.
    pub restarted_unix_ms: Option<u64>,
    /// Crashes in a row, until a run that is long enough or an order forgives them.
    pub failures: u32,
    /// When the back-off that it waits for ends, in milliseconds since 1970.
    pub next_start_unix_ms: Option<u64>,
    /// How its last process ended while the daemon ran, in words.
    pub last_exit: Option<String>,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
    /// A hash of what its file held then; `None` where that is not known.
    pub failed_content: Option<u64>,
}

impl Kept {
    /// A plugin that was never seen before.
    pub fn fresh() -> Self {
        Self {
            enabled: true,
            restarts: 0,
            restarted_unix_ms: None,
            failures: 0,
            next_start_unix_ms: None,
            last_exit: None,
            failed: None,
            failed_content: None,
        }
    }
}

/// What an operator set for a plugin's process.
///
/// It holds for the plugin itself: its metadata call comes before its id is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessSettings {
    /// On top of what every plugin gets, and over it; never a `TORU_` variable.
    pub env: Vec<(String, String)>,
    pub args: Vec<String>,
    /// The daemon's own where there is none.
    pub cwd: Option<PathBuf>,
    /// From -20 (first) to 19 (last); below the daemon's own only for root.
    pub nice: Option<i32>,
    /// Address space (RLIMIT_AS).
    pub memory_bytes_max: Option<u64>,
    /// RLIMIT_NOFILE; the limit that the daemon was started with where there is none.
    pub open_files_max: Option<u64>,
}

/// Every kind of event that [`Outlet::record`] is given.
pub const EVENT_KINDS: [&str; 15] = [
    "discovered",
    "started",
    "ready",
    "stopped",
    "crashed",
    "restarting",
    "unresponsive",
    "disabled_after_crashes",
    "start_deferred",
    "enabled",
    "disabled",
    "reset_failed",
    "protocol_error",
    "request_timeout",
    "binary_changed",
];

/// How serious a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }

    /// A plugin's own word for a level; an unknown one counts as `info`.
    pub fn from_word(word: &str) -> Self {
        Self::known_word(word).unwrap_or(Level::Info)
    }

    /// As [`Self::from_word`]; none for a word that means no level.
    pub fn known_word(word: &str) -> Option<Self> {
        Some(match word.to_ascii_lowercase().as_str() {
            "trace" | "verbose" | "debug" => Level::Debug,
            "info" | "information" | "notice" => Level::Info,
            "warn" | "warning" => Level::Warn,
            "err" | "error" | "crit" | "critical" | "alert" | "emerg" | "emergency" | "fatal" | "panic" => {
                Level::Error
            }
            _ => return None,
        })
    }
}

/// Where a plugin's output line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What the workers need to know of one plugin; published whole whenever any of it changes.
#[derive(Debug)]
pub struct PluginView {
    /// Small and stable as long as the daemon runs: an index for the workers' tables.
    pub index: usize,
    pub metadata: Arc<Metadata>,
    pub socket: PathBuf,
    pub phase: Phase,
    /// The spawn that this view is about while its process exists; connections of any other are dead.
    pub generation: Option<u64>,
    /// Of the process of `generation`.
    pub pid: Option<u32>,
}

/// Whether requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Starting, in back-off, stopping or stopped until somebody starts it: 503 with this `Retry-After`.
    Waiting {
        retry_after: Duration,
    },
    /// Disabled and not running, or removed, in which case it has no id and no route: 404.
    Absent,
    /// Wanted, and not started again until an operator says so: 404.
    GivenUp,
}

/// What the supervisor tells the rest of the daemon. Called on its thread: methods hand over and return at once.
pub trait Outlet: Send {
    fn publish(&self, view: Arc<PluginView>);
    /// A line for `plugin_events`; `kind` is one of [`EVENT_KINDS`].
    fn record(&self, plugin_id: &str, kind: &'static str, details: Value);
    /// A line for the core's log.
    fn log(&self, level: Level, plugin_id: Option<&str>, message: &str, fields: Map<String, Value>);
    /// A line that a plugin wrote to one of its standard streams, without the newline. One that was too long comes in parts,
    /// which `part` counts from 1.
    fn plugin_output(&self, plugin_id: &str, stream: Stream, line: &[u8], part: Option<u64>);
    /// A `log` message of a plugin; `fields` is JSON text of an object.
    fn plugin_log(&self, plugin_id: &str, level: Level, message: &str, fields: Option<&str>);
    /// Say what of the plugin's lines was not logged, if there were too many: at each look at its health, and when its
    /// process has `ended`.
    fn account_output(&self, plugin_id: &str, ended: bool);
    /// So many answers came over the supervisor's connection to the plugin, where nobody had asked.
    fn strays(&self, index: usize, count: u64);
    /// Ask the store; `reply` may be called on any thread.
    fn kv(&self, plugin_id: &str, question: KvQuestion, reply: Box<dyn FnOnce(KvAnswer) + Send>);
    /// Keep this for the next run of the daemon, in place of what was kept of the plugin.
    fn keep(&self, plugin_id: &str, kept: &Kept);
    /// Every file that was there at the start has said which plugin it is, or was skipped. Called once.
    fn scanned(&self);
    /// Whether the plugins folder is being looked at again: whoever is unknown may be known in a moment.
    fn rescanning(&self, begun: bool);
    /// Requests that were sent to the plugin of this index and have no answer: those that wait for one, and all that a
    /// process of it took along when it ended.
    fn unanswered(&self, index: usize) -> u64;
}

/// What others ask of the supervisor.
pub enum Command {
    /// Stop every plugin by the ladder, then return from [`Supervisor::run`].
    Stop,
    /// SIGKILL every plugin, then return.
    StopNow,
    /// A worker saw the plugin break the protocol; `fatal` if that ended the connection.
    ProtocolError { index: usize, generation: u64, reason: String, fatal: bool },
    /// A worker gave up waiting for an answer.
    RequestTimeout { index: usize },
    /// The state of every plugin, to be handed to the closure on the supervisor's thread.
    Snapshot(Box<dyn FnOnce(Vec<PluginStatus>) + Send>),
    /// Every file that was skipped and still would be, in name order; handed over likewise.
    Skipped(Box<dyn FnOnce(Vec<Skipped>) + Send>),
    /// An operator's wish; the closure hears how it ended.
    Order { id: String, order: Order, done: Box<dyn FnOnce(Result<(), OrderError>) + Send> },
    /// Look at the plugins folder again: new files start, those that are gone stop and leave, those whose content
    /// changed restart. `done` hears of it once every metadata call has ended, which is not to wait for starts and stops.
    Rescan { done: Box<dyn FnOnce(Rescanned) + Send> },
    /// Go by these settings from now on. A plugin whose own tables changed gets a fresh process.
    Configure(Box<Adjustable>),
    #[doc(hidden)]
    Looked(Looks),
    #[doc(hidden)]
    KvAnswer { index: usize, request_id: String, reply: KvAnswer, underway: Underway },
}

/// What an operator can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Run it, now and in later runs of the daemon. Done when it is ready.
    Enable,
    /// Stop it, now and in later runs of the daemon. Done when its process and all that it left behind are gone.
    Disable,
    /// Replace its process; start it if there is none. Done when the new one is ready.
    Restart,
    /// Run it, until the daemon ends. Done when it is ready.
    Start,
    /// Stop it, until the daemon ends. Done as for [`Order::Disable`].
    Stop,
    /// Forget its crashes. One that was given up starts again, if it is wanted: then done when it is ready.
    ResetFailed,
}

impl Order {
    fn word(self) -> &'static str {
        match self {
            Order::Enable => "enable",
            Order::Disable => "disable",
            Order::Restart => "restart",
            Order::Start => "start",
            Order::Stop => "stop",
            Order::ResetFailed => "reset-failed",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("no plugin has the id {0:?}")]
    Unknown(String),
    #[error("the daemon is stopping")]
    Stopping,
    /// It cannot be done, or not as soon as somebody would wait for it: in words, with what it waits for.
    #[error("{0}")]
    Failed(String),
}

/// What another look at the plugins folder found; ids, but for files that were skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rescanned {
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    /// File and reason, in words.
    pub skipped: Vec<String>,
}

/// A file that is in no plugin's place, or would be in none if it were started now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub file: PathBuf,
    /// In words.
    pub reason: String,
}

impl fmt::Display for Skipped {
    /// File and reason, which may begin with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.to_string_lossy();
        match self.reason.strip_prefix(&*file) {
            Some(reason) => write!(f, "{file}{reason}"),
            None => write!(f, "{file}: {}", self.reason),
        }
    }
}

#[doc(hidden)]
pub struct Looks(io::Result<Look>);

/// One plugin as an operator sees it.
#[derive(Clone, Debug)]
pub struct PluginStatus {
    pub index: usize,
    pub metadata: Arc<Metadata>,
    pub state: &'static str,
    pub enabled: bool,
    pub pid: Option<u32>,
    pub socket: PathBuf,
    pub uptime: Option<Duration>,
    pub restarts: u64,
    /// When it was last restarted, in milliseconds since 1970.
    pub restarted_unix_ms: Option<u64>,
    /// Crashes in a row, until a run that is long enough or an order forgives them.
    pub failures: u32,
    pub last_exit: Option<String>,
    /// Until the next start, where a back-off waits for it.
    pub next_start: Option<Duration>,
    /// Round trip of the last answered ping.
    pub ping: Option<Duration>,
    /// Pings sent since the last answer.
    pub unanswered_pings: u32,
    /// The last lines of the newest process on its standard error, 20 of 500 bytes at most.
    pub stderr: Arc<VecDeque<String>>,
}

/// Sends commands to a running supervisor; cheap to clone, never blocks.
#[derive(Clone)]
pub struct Handle {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

impl Handle {
    /// Queues `command`. After the supervisor has returned it goes nowhere, which is what a late caller wants.
    pub fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            // A full counter means that a wake-up is already due.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// What an epoll token stands for. A token is never used twice, so a stale one finds nothing.
#[derive(Clone, Copy, Debug)]
enum Source {
    Inbox,
    Exit {
        index: usize,
        generation: u64,
    },
    Output {
        index: usize,
        pipe: usize,
    },
    Lifeline {
        index: usize,
        generation: u64,
    },
    Probe {
        id: u64,
    },
    /// Some child ended: perhaps an orphan that waits to be reaped.
    Children,
    Victim {
        index: usize,
    },
    Notice {
        id: u64,
    },
}

/// How much is known of the plugins that are there at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FirstScan {
    /// The files are being listed.
    Listing,
    /// Some have not said what they are.
    Asking,
    /// Each has answered, or was skipped.
    Done,
}

pub struct Supervisor {
    settings: Settings,
    outlet: Box<dyn Outlet>,
    inbox: Receiver<Command>,
    handle: Handle,
    epoll: OwnedFd,
    sockets_dir: SocketsDir,
    sources: HashMap<u64, Source>,
    next_token: u64,
    plugins: Vec<Plugin>,
    probes: Vec<Probe>,
    notices: Vec<Notice>,
    /// Files that somebody is still writing: when to try again, and when to give up.
    busy: Vec<(PathBuf, Instant, Instant)>,
    /// Files that were skipped and are asked again by themselves.
    postponed: Vec<Postponed>,
    /// Why each file was skipped that still is.
    skipped: BTreeMap<PathBuf, String>,
    /// Ids of the plugins that were given up in this run.
    given_up: HashSet<String>,
    /// What the files were at the last look.
    fingerprints: HashMap<PathBuf, Fingerprint>,
    /// A thread looks at the files and has not answered.
    looking: bool,
    first_scan: FirstScan,
    rescan: Option<Rescan>,
    /// Those who asked for a rescan while another was on its way.
    rescan_next: Vec<Box<dyn FnOnce(Rescanned) + Send>>,
    /// Probed plugins whose id or route is still held by a plugin that is leaving.
    admissible: Vec<(PathBuf, Metadata)>,
    /// Probed plugins that were skipped because another file has their id or route.
    outranked: Vec<(PathBuf, Metadata)>,
    reader: PluginMessageReader,
    health_at: Instant,
    children: Arc<SignalFd>,
    reap_at: Option<Instant>,
    /// Looks for orphans cost time in proportion to the processes of the machine; this keeps them rare.
    reap_again_at: Instant,
    marks: Marks,
    /// What was seen below a plugin's process, or bore its mark: whose it is.
    seen: HashMap<ProcessId, usize>,
    /// When all that hangs below plugins was last written down for one that was to be stopped.
    noted_at: Option<Instant>,
    /// Orphans in the middle of an exec, and how often they were found so.
    changing: HashMap<ProcessId, u32>,
    stopping: bool,
    scratch: Box<[u8]>,
}

impl Supervisor {
    /// From here on this process adopts the orphans of all its children.
    ///
    /// Errors: the system is out of descriptors.
    pub fn new(settings: Settings, outlet: Box<dyn Outlet>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (commands, inbox) = channel();
        let children = Arc::new(process::adopt_orphans()?);
        let health_at = Instant::now() + settings.adjustable.health_interval;
        let sockets_dir = SocketsDir::held(&settings.sockets_dir);
        let marks = Marks::new(&settings.instance_id, &settings.sockets_dir, process::may_brand());
        let mut supervisor = Self {
            settings,
            outlet,
            inbox,
            handle: Handle { commands, wake: wake.clone() },
            epoll,
            sockets_dir,
            sources: HashMap::new(),
            next_token: 0,
            plugins: vec![],
            probes: vec![],
            notices: vec![],
            busy: vec![],
            postponed: vec![],
            skipped: BTreeMap::new(),
            given_up: HashSet::new(),
            fingerprints: HashMap::new(),
            looking: false,
            first_scan: FirstScan::Listing,
            rescan: None,
            rescan_next: vec![],
            admissible: vec![],
            outranked: vec![],
            reader: PluginMessageReader::new(),
            health_at,
            children: children.clone(),
            reap_at: None,
            reap_again_at: Instant::now(),
            marks,
            seen: HashMap::new(),
            noted_at: None,
            changing: HashMap::new(),
            stopping: false,
            scratch: vec![0; 64 * 1024].into_boxed_slice(),
        };
        supervisor.watch(wake.as_fd(), Source::Inbox, epoll::EventFlags::IN)?;
        supervisor.watch(&*children, Source::Children, epoll::EventFlags::IN)?;
        Ok(supervisor)
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Looks for plugins, then supervises them until [`Command::Stop`]; returns when every process is gone.
    pub fn run(mut self) {
        self.tell_of_missing_brand();
        let swept = self.sweep_former_run();
        self.tell_of_lost_ends(&swept);
        self.scan();
        let mut events = Vec::with_capacity(64);
        loop {
            if self.stopping && self.probes.is_empty() && self.plugins.iter().all(|p| !p.state.has_process())
            {
                return self.end_orphans();
            }
            let timeout = self.next_deadline().map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                // Round up: waking a moment too early would spin until the deadline.
                let left = left + Duration::from_millis(1);
                Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: i64::from(left.subsec_millis()) * 1_000_000,
                }
            });
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("the supervisor's epoll failed: {error}"),
            }
            for event in &events {
                let token = event.data.u64();
                if let Some(source) = self.sources.get(&token).copied() {
                    self.on_ready(token, source);
                }
            }
            self.fire_timers(Instant::now());
        }
    }

    fn watch(&mut self, fd: impl AsFd, source: Source, flags: epoll::EventFlags) -> io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?;
        self.sources.insert(token, source);
        Ok(token)
    }

    fn on_ready(&mut self, token: u64, source: Source) {
        match source {
            Source::Inbox => self.on_commands(),
            Source::Exit { index, generation } => self.on_exit(index, generation),
            Source::Output { index, pipe } => self.on_output(index, pipe),
            Source::Lifeline { index, generation } => self.on_lifeline(index, generation),
            Source::Probe { id } => self.on_probe(id),
            Source::Children => {
                while let Ok(Some(_)) = self.children.read_signal() {}
                self.reap_at.get_or_insert(self.reap_again_at);
            }
            Source::Victim { index } => self.on_victim(index, token),
            Source::Notice { id } => self.on_notice(id),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut at_most = |at: Option<Instant>| {
            if let Some(at) = at {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        };
        for plugin in &self.plugins {
            at_most(plugin.state.deadline(&self.settings.adjustable.policy));
            at_most(plugin.connect_at.map(|(at, _)| at));
            at_most(plugin.waiting.iter().map(|waiting| waiting.until).min());
            at_most(plugin.ending.as_ref().map(|ending| ending.look_at.unwrap_or(ending.give_up_at)));
        }
        at_most(self.reap_at);
        for probe in &self.probes {
            at_most(Some(probe.deadline()));
        }
        for notice in &self.notices {
            at_most(Some(notice.deadline()));
        }
        for (_, at, _) in &self.busy {
            at_most(Some(*at));
        }
        at_most(self.postponed.iter().filter_map(|postponed| postponed.at).min());
        if self.plugins.iter().any(|p| p.state.has_process()) {
            at_most(Some(self.health_at));
        }
        next
    }

    fn fire_timers(&mut self, now: Instant) {
        for index in 0..self.plugins.len() {
            let plugin = &mut self.plugins[index];
            if plugin.connect_at.is_some_and(|(at, _)| at <= now) {
                self.reach(index, now);
            }
            if self.plugins[index].waiting.iter().any(|waiting| waiting.until <= now) {
                self.settle(index);
            }
            if let Some(ending) = &mut self.plugins[index].ending {
                if ending.give_up_at <= now {
                    self.give_up_on_remains(index);
                } else if ending.look_at.is_some_and(|at| at <= now) {
                    self.clear_remains(index, now);
                }
            }
            if self.plugins[index]
                .state
                .deadline(&self.settings.adjustable.policy)
                .is_some_and(|at| at <= now)
            {
                if matches!(self.plugins[index].state, State::Starting { .. }) {
                    let waited = self.settings.adjustable.policy.ready_timeout.as_millis();
                    self.plugins[index].reason = Some(format!("not ready within {waited} ms"));
                }
                self.drive(index, Event::TimerExpired);
            }
        }
        for position in (0..self.probes.len()).rev() {
            if self.probes[position].deadline() <= now {
                self.probes[position].expire();
                self.finish_probe(position);
            }
        }
        for position in (0..self.notices.len()).rev() {
            if self.notices[position].deadline() <= now {
                let why = format!("it did not end within {} s", self.settings.notify_timeout.as_secs_f64());
                self.end_notice(position, Err(why)).abandon();
            }
        }
        for position in (0..self.busy.len()).rev() {
            if self.busy[position].1 <= now {
                let (file, _, give_up_at) = self.busy.swap_remove(position);
                self.probe(file, now, give_up_at);
            }
        }
        self.ask_postponed(now);
        if self.reap_at.is_some_and(|at| at <= now) {
            self.look_for_orphans(now);
        }
        if self.health_at <= now {
            self.health_at = now + self.settings.adjustable.health_interval;
            self.look_after_orphans(now);
            let sockets_dir = FolderId::of(&self.settings.sockets_dir);
            for index in 0..self.plugins.len() {
                if self.lost_its_socket(index, sockets_dir) {
                    self.replace_unreachable(index);
                } else if matches!(self.plugins[index].state, State::Running { .. }) {
                    self.check_health(index, now);
                }
            }
        }
    }

    fn on_commands(&mut self) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.handle.wake, &mut counter);
        while let Ok(command) = self.inbox.try_recv() {
            self.on_command(command);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Stop | Command::StopNow => {
                let now = matches!(command, Command::StopNow);
                self.stopping = true;
                self.admissible.clear();
                self.busy.clear();
                self.postponed.clear();
                for position in (0..self.notices.len()).rev() {
                    self.end_notice(position, Err("the daemon stops".into())).abandon();
                }
                for probe in &mut self.probes {
                    probe.expire();
                }
                for position in (0..self.probes.len()).rev() {
                    self.finish_probe(position);
                }
                for index in 0..self.plugins.len() {
                    self.plugins[index].want = Want::Down;
                    self.plugins[index].stop_cause = Some("the daemon stops".into());
                    if now && let Some(process) = &self.plugins[index].process {
                        process.kill();
                    }
                    self.drive(index, Event::Wanted);
                }
            }
            Command::ProtocolError { index, generation, reason, fatal } => {
                self.on_protocol_error(index, generation, reason, fatal);
            }
            Command::RequestTimeout { index } => {
                self.plugins[index].timeouts_unrecorded += 1;
                self.record_timeouts(index, Instant::now());
            }
            Command::Snapshot(take) => {
                let now = Instant::now();
                let known = self.plugins.iter().filter(|plugin| !plugin.removed);
                take(known.map(|plugin| plugin.status(now)).collect());
            }
            Command::Skipped(take) => {
                let skipped = self.skipped.clone().into_iter();
                take(skipped.map(|(file, reason)| Skipped { file, reason }).collect());
            }
            Command::Order { id, order, done } => self.on_order(id, order, done),
            Command::Rescan { done } => self.on_rescan(done),
            Command::Configure(new) => self.configure(*new),
            Command::Looked(Looks(found)) => self.on_looked(found),
            Command::KvAnswer { index, request_id, reply, underway } => {
                // On another connection the same id may be that of another question.
                let asked = |lifeline: &&mut Lifeline| underway.is_of(&lifeline.answers_underway);
                if let Some(lifeline) = self.plugins[index].lifeline.as_mut().filter(asked) {
                    lifeline.send_kv_reply(&request_id, &reply, unix_ms());
                    self.flush_lifeline(index);
                }
            }
        }
    }
}

fn own_pid() -> i32 {
    std::process::id() as i32
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("log fields are written as objects"),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
