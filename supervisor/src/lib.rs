//! The plugin supervisor: who runs, since when, and what happens next.
//!
//! [`Supervisor::run`] is one loop on a thread of its own: wait, step, act, publish.
//! It never blocks on a plugin, a disk or a lock: pipes and sockets are non-blocking, and what it has to say goes through
//! [`Outlet`], whose methods hand over and return. One plugin's slow metadata, start, stop or back-off is a deadline
//! among others and delays nobody.
//!
//! The policy is in [`state`], the processes in `process`, looking for plugins in `discovery`, and the wire to a
//! running plugin in `lifeline`. Workers speak to plugins over connections of their own and never through here.

mod discovery;
mod kv;
mod lifeline;
mod notify;
mod process;
mod remains;
pub mod state;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use nix::sys::signalfd::SignalFd;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd};
use serde_json::{Map, Value, json};
use toru_plugin_api::from_plugin::PluginMessageReader;
use toru_plugin_api::metadata::{Metadata, Protocol};
use toru_plugin_api::time::{as_str, rfc3339_millis};

pub use discovery::check;
use discovery::{Fingerprint, Looked, Probe};
pub use kv::{KvAnswer, KvQuestion};
use lifeline::{Lifeline, Said};
use notify::Notice;
pub use process::{Exit, prepare};
use process::{Process, Spec};
use remains::{Mark, ProcessId, Table};
use state::{Action, Event, Happening, Policy, Rung, State, Want, step};

/// Everything the supervisor is told at the start.
pub struct Settings {
    pub plugins_dir: PathBuf,
    /// Exists, belongs to this user, mode 0700.
    pub sockets_dir: PathBuf,
    /// `<id>.log` in here is what `init` calls `log_path`.
    pub plugin_logs_dir: PathBuf,
    /// `<data>/plugins/<id>` is what `init` calls `data_dir`.
    pub data_dir: PathBuf,
    pub instance_id: String,
    pub policy: Policy,
    pub health_interval: Duration,
    /// So many pings without an answer, and the plugin hangs.
    pub unanswered_pings: u32,
    pub metadata_timeout: Duration,
    pub frame_bytes_max: usize,
    /// `[plugins.ID]` of the configuration as JSON text, handed over in `init`.
    pub plugin_config: HashMap<String, String>,
    /// `[plugins.ID.process]` of the configuration.
    pub process: HashMap<String, ProcessSettings>,
    /// `notify.command`: run with the event as JSON on its standard input when a plugin is given up; empty for none.
    pub notify_command: Vec<String>,
    /// What [`Outlet::keep`] was given in earlier runs, by id.
    pub kept: HashMap<String, Kept>,
}

/// What is to be known of a plugin at the daemon's next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What an operator wants.
    pub enabled: bool,
    /// Starts after the first one, over all runs of the daemon.
    pub restarts: u64,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
}

impl Kept {
    /// A plugin that was never seen before.
    fn fresh() -> Self {
        Self { enabled: true, restarts: 0, failed: None }
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

/// Standard output of a plugin's metadata call, at most.
pub(crate) const METADATA_BYTES_MAX: usize = 64 * 1024;
/// A longer line of a plugin's output is cut into lines of this size.
const OUTPUT_LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines of standard error kept for the event that tells of a crash.
const STDERR_LINES_KEPT: usize = 20;
/// So many protocol errors within [`PROTOCOL_ERROR_WINDOW`] count as a crash.
const PROTOCOL_ERRORS_MAX: usize = 3;
const PROTOCOL_ERROR_WINDOW: Duration = Duration::from_secs(60);
/// Between attempts to reach the socket of a starting plugin: from the first to the last of these.
const CONNECT_RETRY_MIN: Duration = Duration::from_millis(2);
const CONNECT_RETRY_MAX: Duration = Duration::from_millis(50);
/// How long what a plugin left behind may take to be gone after SIGKILL, until its end is told nevertheless: a process
/// in uninterruptible sleep must not hold up the restart.
const REMAINS_PATIENCE: Duration = Duration::from_secs(2);
/// Before looking again at a process that is just being replaced by an exec, or could not be opened.
const REMAINS_LOOK: Duration = Duration::from_millis(10);
/// So often one orphan is found in the middle of an exec until it is taken for one that hides its arguments.
const REMAINS_LOOKS_MAX: u32 = 100;
/// Looks that find nothing until whoever holds a plugin's output is taken for somebody that it gave it to.
const QUIET_LOOKS_MAX: u32 = 20;
/// Between two looks for orphans to reap; or ten times what the last look took, if that is more.
const REAP_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Notifications on their way at once; beyond it one is dropped, with a line in the log.
const NOTICES_MAX: usize = 16;
/// Before trying again to run a file that is being written.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// What a client is told to wait when no better time is known.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

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
        match word.to_ascii_lowercase().as_str() {
            "trace" | "debug" => Level::Debug,
            "warn" | "warning" => Level::Warn,
            "error" | "critical" | "fatal" => Level::Error,
            _ => Level::Info,
        }
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
}

/// Whether requests are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Starting, in back-off, stopping or stopped until somebody starts it: 503 with this `Retry-After`.
    Waiting {
        retry_after: Duration,
    },
    /// Disabled and not running, given up or removed: 404.
    Absent,
}

/// What the supervisor tells the rest of the daemon. Called on its thread: methods hand over and return at once.
pub trait Outlet: Send {
    fn publish(&self, view: Arc<PluginView>);
    /// A line for `plugin_events`; `kind` is a word of the contract's list.
    fn record(&self, plugin_id: &str, kind: &'static str, details: Value);
    /// A line for the core's log.
    fn log(&self, level: Level, plugin_id: Option<&str>, message: &str, fields: Map<String, Value>);
    /// A line that a plugin wrote to one of its standard streams, without the newline.
    fn plugin_output(&self, plugin_id: &str, stream: Stream, line: &[u8]);
    /// A `log` message of a plugin; `fields` is JSON text of an object.
    fn plugin_log(&self, plugin_id: &str, level: Level, message: &str, fields: Option<&str>);
    /// Ask the store; `reply` may be called on any thread.
    fn kv(&self, plugin_id: &str, question: KvQuestion, reply: Box<dyn FnOnce(KvAnswer) + Send>);
    /// Keep this for the next run of the daemon, in place of what was kept of the plugin.
    fn keep(&self, plugin_id: &str, kept: &Kept);
    /// Requests that are with the plugin of this index now.
    fn in_flight(&self, index: usize) -> usize;
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
    /// An operator's wish; the closure hears how it ended.
    Order { id: String, order: Order, done: Box<dyn FnOnce(Result<(), OrderError>) + Send> },
    /// Look at the plugins folder again: new files start, those that are gone stop and leave, those whose content
    /// changed restart. `done` hears of it once every metadata call has ended, which is not to wait for starts and stops.
    Rescan { done: Box<dyn FnOnce(Rescanned) + Send> },
    #[doc(hidden)]
    Looked(Looks),
    #[doc(hidden)]
    KvAnswer { index: usize, generation: u64, request_id: String, reply: KvAnswer },
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

#[doc(hidden)]
pub struct Looks(io::Result<Vec<Looked>>);

/// A rescan on its way.
#[derive(Default)]
struct Rescan {
    report: Rescanned,
    /// Files whose metadata call has not ended.
    pending: HashSet<PathBuf>,
    done: Vec<Box<dyn FnOnce(Rescanned) + Send>>,
}

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
    pub last_exit: Option<String>,
    /// Until the next start, where a back-off waits for it.
    pub next_start: Option<Duration>,
    /// Round trip of the last answered ping.
    pub ping: Option<Duration>,
    /// Pings sent since the last answer.
    pub unanswered_pings: u32,
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

pub(crate) struct Plugin {
    index: usize,
    file: PathBuf,
    metadata: Arc<Metadata>,
    /// What a changed file says of itself; counts from the next process on.
    next_metadata: Option<Metadata>,
    socket: PathBuf,
    want: Want,
    enabled: bool,
    /// Leaves the table when stopped: its file is gone or is another plugin now, or an earlier file has its id or route.
    removed: bool,
    state: State,
    generation: u64,
    process: Option<Process>,
    /// The process has ended, and what it left behind is on its way out; nobody has heard of it yet.
    ending: Option<Ending>,
    pipes: [Option<Pipe>; 2],
    lifeline: Option<Lifeline>,
    /// Next attempt to reach the plugin's socket, and the wait after that.
    connect_at: Option<(Instant, Duration)>,
    spawned_at: Option<Instant>,
    restarts: u64,
    last_exit: Option<String>,
    /// How the newest process ended.
    exit: Option<Exit>,
    /// Requests that were with the plugin when its run came to an end, if it did.
    in_flight: Option<usize>,
    /// Why the last transition happened, where the state machine's event does not say it.
    reason: Option<String>,
    ping: PingTally,
    stderr_tail: VecDeque<String>,
    protocol_errors: VecDeque<Instant>,
    timeouts_unrecorded: u64,
    timeout_recorded_at: Option<Instant>,
    waiting: Vec<Waiting>,
}

/// Between the end of a plugin's process and the end of the last process that it left behind.
struct Ending {
    exit: Exit,
    /// Killed and not gone yet, with the token that tells of it.
    victims: HashMap<u64, OwnedFd>,
    /// Not to be killed by this user.
    spared: Vec<ProcessId>,
    /// Not every look so far was a quiet one.
    found_some: bool,
    /// Looks in a row that found nothing.
    quiet_looks: u32,
    look_at: Option<Instant>,
    give_up_at: Instant,
}

#[derive(Default)]
struct PingTally {
    seq: u64,
    sent_at: Option<Instant>,
    unanswered: u32,
    /// Checks in a row in which nothing listened at the socket.
    unreachable: u32,
    round_trip: Option<Duration>,
}

struct Pipe {
    fd: OwnedFd,
    token: u64,
    stream: Stream,
    partial: Vec<u8>,
}

/// An operator waits for an order to be done.
struct Waiting {
    order: Order,
    /// Only a newer process counts as restarted.
    after_generation: u64,
    /// Nobody waits longer; a process in uninterruptible sleep may never end.
    until: Instant,
    done: Box<dyn FnOnce(Result<(), OrderError>) + Send>,
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

pub struct Supervisor {
    settings: Settings,
    outlet: Box<dyn Outlet>,
    inbox: Receiver<Command>,
    handle: Handle,
    epoll: OwnedFd,
    sources: HashMap<u64, Source>,
    next_token: u64,
    plugins: Vec<Plugin>,
    probes: Vec<Probe>,
    notices: Vec<Notice>,
    /// Files that somebody is still writing: when to try again, and when to give up.
    busy: Vec<(PathBuf, Instant, Instant)>,
    /// What the files were at the last look.
    fingerprints: HashMap<PathBuf, Fingerprint>,
    /// A thread looks at the files and has not answered.
    looking: bool,
    rescan: Option<Rescan>,
    /// Those who asked for a rescan while another was on its way.
    rescan_next: Vec<Box<dyn FnOnce(Rescanned) + Send>>,
    /// Probed plugins whose id or route is still held by a plugin that is leaving.
    admissible: Vec<(PathBuf, Metadata)>,
    reader: PluginMessageReader,
    health_at: Instant,
    children: Arc<SignalFd>,
    reap_at: Option<Instant>,
    /// Looks for orphans cost time in proportion to the processes of the machine; this keeps them rare.
    reap_again_at: Instant,
    /// What was seen below a plugin's process, or bore its mark: whose it is.
    seen: HashMap<ProcessId, usize>,
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
        let health_at = Instant::now() + settings.health_interval;
        let mut supervisor = Self {
            settings,
            outlet,
            inbox,
            handle: Handle { commands, wake: wake.clone() },
            epoll,
            sources: HashMap::new(),
            next_token: 0,
            plugins: vec![],
            probes: vec![],
            notices: vec![],
            busy: vec![],
            fingerprints: HashMap::new(),
            looking: false,
            rescan: None,
            rescan_next: vec![],
            admissible: vec![],
            reader: PluginMessageReader::new(),
            health_at,
            children: children.clone(),
            reap_at: None,
            reap_again_at: Instant::now(),
            seen: HashMap::new(),
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
        self.sweep_former_run();
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

    // ---- sources ----

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
            at_most(plugin.state.deadline(&self.settings.policy));
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
            if self.plugins[index].state.deadline(&self.settings.policy).is_some_and(|at| at <= now) {
                if matches!(self.plugins[index].state, State::Starting { .. }) {
                    let waited = self.settings.policy.ready_timeout.as_millis();
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
                let why = format!("it did not end within {} s", notify::TIMEOUT.as_secs());
                self.end_notice(position, Err(why)).abandon();
            }
        }
        for position in (0..self.busy.len()).rev() {
            if self.busy[position].1 <= now {
                let (file, _, give_up_at) = self.busy.swap_remove(position);
                self.probe(file, now, give_up_at);
            }
        }
        if self.reap_at.is_some_and(|at| at <= now) {
            self.look_after_orphans(now);
        }
        if self.health_at <= now {
            self.health_at = now + self.settings.health_interval;
            self.look_after_orphans(now);
            for index in 0..self.plugins.len() {
                if matches!(self.plugins[index].state, State::Running { .. }) {
                    self.check_health(index, now);
                }
            }
        }
    }

    // ---- discovery ----

    /// Starts a metadata call for every `*.binary` in the plugins folder.
    fn scan(&mut self) {
        let found = match discovery::find(&self.settings.plugins_dir) {
            Ok(found) => found,
            Err(error) => {
                let message = format!(
                    "cannot read the plugins folder {}: {error}; no plugin is started",
                    self.settings.plugins_dir.display()
                );
                self.outlet.log(Level::Error, None, &message, Map::new());
                return;
            }
        };
        let now = Instant::now();
        for file in found {
            if let Ok(print) = Fingerprint::of_stamp(&file) {
                self.fingerprints.insert(file.clone(), print);
            }
            self.probe(file, now, now + self.settings.metadata_timeout);
        }
        self.look();
    }

    /// Lets a thread read the files, which may be large and on a slow disk; it answers with [`Command::Looked`].
    fn look(&mut self) {
        let (handle, folder) = (self.handle.clone(), self.settings.plugins_dir.clone());
        let known = self.fingerprints.clone();
        let look = move || handle.send(Command::Looked(Looks(discovery::look(&folder, &known))));
        match std::thread::Builder::new().name("toru-files".into()).spawn(look) {
            Ok(_) => self.looking = true,
            Err(error) => {
                let message = format!("cannot look for changed plugins: {error}");
                self.outlet.log(Level::Error, None, &message, Map::new());
                self.finish_rescan();
            }
        }
    }

    fn on_rescan(&mut self, done: Box<dyn FnOnce(Rescanned) + Send>) {
        if self.looking || self.rescan.is_some() {
            // The look on its way may already have passed what this one is about.
            return self.rescan_next.push(done);
        }
        self.rescan = Some(Rescan { done: vec![done], ..Rescan::default() });
        self.look();
    }

    fn on_looked(&mut self, found: io::Result<Vec<Looked>>) {
        self.looking = false;
        match found {
            Ok(found) => {
                if self.rescan.is_some() && !self.stopping {
                    self.apply(&found);
                }
                // Without a rescan, what changed since the start is left for the next one to find.
                let first = self.rescan.is_none();
                let known = std::mem::take(&mut self.fingerprints);
                let prints = found.into_iter().filter_map(|one| {
                    let print =
                        if first && one.changed { known.get(&one.file).copied() } else { one.fingerprint };
                    Some((one.file, print?))
                });
                self.fingerprints = prints.collect();
            }
            Err(error) => {
                let folder = self.settings.plugins_dir.clone();
                self.skip(&folder, &format!("cannot read the plugins folder: {error}; nothing changes"));
            }
        }
        self.finish_rescan();
    }

    /// Carries out what a rescan found.
    fn apply(&mut self, found: &[Looked]) {
        let gone = |plugin: &&Plugin| !plugin.removed && !found.iter().any(|one| one.file == plugin.file);
        let gone: Vec<usize> = self.plugins.iter().filter(gone).map(|plugin| plugin.index).collect();
        for index in gone {
            if let Some(rescan) = &mut self.rescan {
                rescan.report.removed.push(self.plugins[index].metadata.id.clone());
            }
            self.leave(index, "its file is gone");
        }
        let now = Instant::now();
        for one in found {
            let known = self.plugins.iter().any(|plugin| !plugin.removed && plugin.file == one.file);
            let on_its_way = self.probes.iter().any(|probe| probe.file() == one.file)
                || self.busy.iter().any(|(file, ..)| *file == one.file)
                || self.admissible.iter().any(|(file, _)| *file == one.file);
            // A file that was skipped may be good now, though it did not change: its rival may be gone.
            if on_its_way || (known && !one.changed) {
                continue;
            }
            if let Some(rescan) = &mut self.rescan {
                rescan.pending.insert(one.file.clone());
            }
            self.probe(one.file.clone(), now, now + self.settings.metadata_timeout);
        }
    }

    /// Tells those who wait for the rescan, once nothing of it is on its way.
    fn finish_rescan(&mut self) {
        if self.looking || self.rescan.as_ref().is_some_and(|rescan| !rescan.pending.is_empty()) {
            return;
        }
        if let Some(Rescan { report, done, .. }) = self.rescan.take() {
            let fields = json!({
                "added": report.added, "changed": report.changed, "removed": report.removed,
                "skipped": report.skipped,
            });
            self.outlet.log(Level::Info, None, "Plugins rescanned", object(fields));
            for done in done {
                done(report.clone());
            }
        }
        let waiting = std::mem::take(&mut self.rescan_next);
        if self.stopping {
            waiting.into_iter().for_each(|done| done(Rescanned::default()));
        } else if !waiting.is_empty() {
            self.rescan = Some(Rescan { done: waiting, ..Rescan::default() });
            self.look();
        }
    }

    /// Stops a plugin and takes it out of the table.
    fn leave(&mut self, index: usize, why: &str) {
        let plugin = &mut self.plugins[index];
        plugin.removed = true;
        plugin.want = Want::Down;
        let fields = object(json!({ "file": plugin.file.display().to_string(), "reason": why }));
        self.outlet.log(Level::Info, Some(&plugin.metadata.id), "Plugin removed", fields);
        self.publish(index);
        self.drive(index, Event::Wanted);
    }

    /// The file of a plugin in the table has another content, and said this of itself.
    fn change(&mut self, index: usize, file: PathBuf, metadata: Metadata) {
        let plugin = &mut self.plugins[index];
        let old = plugin.metadata.clone();
        if let Some(rescan) = &mut self.rescan {
            rescan.report.changed.push(metadata.id.clone());
        }
        let details = json!({
            "file": file.display().to_string(), "version": metadata.version, "old_version": old.version,
        });
        self.outlet.record(&old.id, "binary_changed", details.clone());
        self.outlet.log(Level::Info, Some(&old.id), "Plugin binary changed", object(details));
        let same_place = old.id == metadata.id
            && old.route == metadata.route
            && old.protocol == metadata.protocol
            && old.max_in_flight == metadata.max_in_flight;
        if !same_place {
            // What the workers keep for a plugin is made once, so it comes back as another one.
            self.admissible.push((file, metadata));
            return self.leave(index, "its file is another plugin now");
        }
        plugin.next_metadata = Some(metadata);
        self.drive(index, Event::RestartAsked);
    }

    fn probe(&mut self, file: PathBuf, now: Instant, give_up_at: Instant) {
        let id = self.next_token;
        let deadline = now + self.settings.metadata_timeout;
        let probe = match Probe::start(id, file.clone(), &self.environment(None), deadline) {
            Ok(probe) => probe,
            Err(error) if error.busy && now < give_up_at => {
                return self.busy.push((file, now + BUSY_RETRY, give_up_at));
            }
            Err(error) => {
                self.skip(&file, &error.reason);
                return self.end_probe(&file);
            }
        };
        let mut tokens = vec![];
        for fd in probe.fds() {
            tokens.push(self.watch(fd, Source::Probe { id }, epoll::EventFlags::IN));
        }
        self.probes.push(probe);
        if let Some(Err(error)) = tokens.into_iter().find(Result::is_err) {
            // What cannot be watched is ended by its deadline, which need not be waited for.
            if let Some(mut probe) = self.probes.pop() {
                probe.expire();
            }
            self.sources.retain(|_, source| !matches!(source, Source::Probe { id: other } if *other == id));
            self.skip(&file, &format!("cannot watch it: {error}"));
            self.end_probe(&file);
        }
    }

    fn on_probe(&mut self, id: u64) {
        let Some(position) = self.probes.iter().position(|probe| probe.id() == id) else { return };
        if self.probes[position].advance(&mut self.scratch) {
            self.finish_probe(position);
        }
    }

    fn finish_probe(&mut self, position: usize) {
        let probe = self.probes.swap_remove(position);
        let id = probe.id();
        self.sources.retain(|_, source| !matches!(source, Source::Probe { id: other } if *other == id));
        let file = probe.file().to_owned();
        match probe.finish() {
            _ if self.stopping => {}
            Ok(metadata) => {
                match self.plugins.iter().position(|plugin| !plugin.removed && plugin.file == file) {
                    Some(index) => self.change(index, file.clone(), metadata),
                    None => {
                        let id = metadata.id.clone();
                        if self.admit(file.clone(), metadata)
                            && let Some(rescan) = &mut self.rescan
                            && !rescan.report.added.contains(&id)
                        {
                            rescan.report.added.push(id);
                        }
                    }
                }
            }
            Err(reason) => self.skip(&file, &reason),
        }
        self.end_probe(&file);
    }

    /// A metadata call is over, however it ended.
    fn end_probe(&mut self, file: &Path) {
        if let Some(rescan) = &mut self.rescan {
            rescan.pending.remove(file);
        }
        if self.probes.is_empty() {
            // What metadata calls left behind is nobody's from now on.
            self.reap_at.get_or_insert(self.reap_again_at);
        }
        self.finish_rescan();
    }

    fn skip(&mut self, file: &Path, reason: &str) {
        let fields = object(json!({ "file": file.display().to_string(), "reason": reason }));
        let message = format!("Plugin skipped: {}: {reason}", file.display());
        self.outlet.log(Level::Error, None, &message, fields);
        if let Some(rescan) = &mut self.rescan {
            rescan.report.skipped.push(format!("{}: {reason}", file.display()));
        }
    }

    /// Takes a plugin into the table and starts it, unless an earlier file has its id or route.
    ///
    /// Metadata calls end in any order, but of two files with the same id or route the first in name order wins:
    /// a later file that was quicker has to leave again.
    ///
    /// Gives whether it was taken, if only as soon as another one has left.
    fn admit(&mut self, file: PathBuf, metadata: Metadata) -> bool {
        // One that waits for a name has its claim already.
        let same = |other: &Metadata| other.id == metadata.id || other.route == metadata.route;
        if let Some(position) = self.admissible.iter().position(|(_, waiting)| same(waiting)) {
            let what = if self.admissible[position].1.id == metadata.id { "id" } else { "route" };
            let taken = |by: &Path| format!("its field `{what}` is already taken by {}", by.display());
            if self.admissible[position].0 <= file {
                let reason = taken(&self.admissible[position].0);
                self.skip(&file, &reason);
                return false;
            }
            let (late, _) = self.admissible.remove(position);
            self.skip(&late, &taken(&file));
        }
        let mut must_leave = vec![];
        let mut skipped = vec![];
        for plugin in
            self.plugins.iter().filter(|p| p.metadata.id == metadata.id || p.metadata.route == metadata.route)
        {
            if plugin.removed {
                must_leave.push(plugin.index);
                continue;
            }
            let (what, value) = if plugin.metadata.id == metadata.id {
                ("id", &metadata.id)
            } else {
                ("route", &metadata.route)
            };
            let taken = |by: &Path| format!("field `{what}`: {value:?} is already taken by {}", by.display());
            if plugin.file <= file {
                let reason = taken(&plugin.file);
                self.skip(&file, &reason);
                return false;
            }
            must_leave.push(plugin.index);
            skipped.push((plugin.file.clone(), taken(&file)));
        }
        for (file, reason) in skipped {
            self.skip(&file, &reason);
        }
        if !must_leave.is_empty() {
            self.admissible.push((file, metadata));
            for index in must_leave {
                self.plugins[index].removed = true;
                self.plugins[index].want = Want::Down;
                self.drive(index, Event::Wanted);
            }
            self.admit_waiting();
            return true;
        }

        let socket = self.settings.sockets_dir.join(format!("{}.sock", metadata.id));
        if socket.as_os_str().len() > 107 {
            let reason = format!("its socket path {} is longer than 107 bytes", socket.display());
            self.skip(&file, &reason);
            return false;
        }
        let kept = self.settings.kept.get(&metadata.id).cloned().unwrap_or_else(Kept::fresh);
        let enabled = kept.enabled;
        let given_up = kept.failed.clone().filter(|_| enabled);
        let index = self.plugins.len();
        let details = json!({
            "file": file.display().to_string(), "version": metadata.version, "route": metadata.route,
            "protocol": metadata.protocol.as_str(), "enabled": enabled,
        });
        self.outlet.record(&metadata.id, "discovered", details.clone());
        self.outlet.log(Level::Info, Some(&metadata.id), "Plugin discovered", object(details));
        self.plugins.push(Plugin {
            index,
            file,
            metadata: Arc::new(metadata),
            next_metadata: None,
            socket,
            want: if enabled { Want::Up } else { Want::Down },
            enabled,
            removed: false,
            state: if given_up.is_some() { State::Failed } else { State::Stopped },
            generation: 0,
            process: None,
            ending: None,
            pipes: [None, None],
            lifeline: None,
            connect_at: None,
            spawned_at: None,
            restarts: kept.restarts,
            last_exit: None,
            exit: None,
            in_flight: None,
            reason: given_up.clone(),
            ping: PingTally::default(),
            stderr_tail: VecDeque::new(),
            protocol_errors: VecDeque::new(),
            timeouts_unrecorded: 0,
            timeout_recorded_at: None,
            waiting: vec![],
        });
        self.publish(index);
        if let Some(reason) = given_up {
            let plugin = &self.plugins[index];
            let fields = object(json!({
                "reason": reason,
                "remedy": format!("mend it, then: toru plugin reset-failed {}", plugin.metadata.id),
            }));
            let message = "Plugin not started: it was given up in an earlier run";
            self.outlet.log(Level::Warn, Some(&plugin.metadata.id), message, fields);
        }
        self.drive(index, Event::Wanted);
        true
    }

    /// Admits what waited for an id or a route that is free by now.
    fn admit_waiting(&mut self) {
        let (ready, waiting) = std::mem::take(&mut self.admissible).into_iter().partition(|(_, metadata)| {
            !self.plugins.iter().any(|p| {
                (p.metadata.id == metadata.id || p.metadata.route == metadata.route) && p.state.has_process()
            })
        });
        self.admissible = waiting;
        let ready: Vec<_> = ready;
        for (file, metadata) in ready {
            // The entries that left keep their index for ever; only their names are given up.
            for index in 0..self.plugins.len() {
                let plugin = &mut self.plugins[index];
                if plugin.removed
                    && (plugin.metadata.id == metadata.id || plugin.metadata.route == metadata.route)
                {
                    let mut vacated = (*plugin.metadata).clone();
                    vacated.id.clear();
                    vacated.route.clear();
                    plugin.metadata = Arc::new(vacated);
                    self.publish(index);
                }
            }
            self.admit(file, metadata);
        }
    }

    // ---- the state machine and its consequences ----

    fn drive(&mut self, index: usize, event: Event) {
        let plugin = &mut self.plugins[index];
        if matches!(plugin.state, State::Running { .. }) && event == Event::Misbehaved {
            plugin.in_flight.get_or_insert_with(|| self.outlet.in_flight(index));
        }
        let (state, actions) = step(Instant::now(), &self.settings.policy, plugin.want, plugin.state, event);
        let before = std::mem::replace(&mut plugin.state, state);
        for action in actions {
            self.act(index, action, before);
        }
        self.keep(index);
        self.settle(index);
        if self.plugins[index].removed
            && !self.plugins[index].state.has_process()
            && !self.admissible.is_empty()
        {
            self.admit_waiting();
        }
    }

    /// Has written down what the next run of the daemon is to know, where that changed.
    fn keep(&mut self, index: usize) {
        let plugin = &self.plugins[index];
        // Its name may be another's by now; and that everything stops with the daemon is nothing to be known of a plugin.
        if plugin.removed || self.stopping {
            return;
        }
        let failed = (plugin.state == State::Failed).then(|| {
            let why = plugin.reason.as_ref().or(plugin.last_exit.as_ref());
            why.cloned().unwrap_or_else(|| "it failed".into())
        });
        let kept = Kept { enabled: plugin.enabled, restarts: plugin.restarts, failed };
        let id = &plugin.metadata.id;
        if *self.settings.kept.get(id).unwrap_or(&Kept::fresh()) != kept {
            self.outlet.keep(id, &kept);
            self.settings.kept.insert(id.clone(), kept);
        }
    }

    fn act(&mut self, index: usize, action: Action, before: State) {
        match action {
            Action::Spawn => self.spawn(index),
            Action::Serve | Action::Withdraw => self.publish(index),
            Action::Ask => {
                self.note_children(index);
                self.ask(index);
            }
            Action::Terminate => {
                self.note_children(index);
                if let Some(process) = &self.plugins[index].process {
                    process.terminate();
                }
            }
            Action::Kill => {
                self.note_children(index);
                if let Some(process) = &self.plugins[index].process {
                    process.kill();
                }
            }
            Action::Record(happening) => self.record(index, happening, before),
        }
    }

    fn spawn(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        plugin.generation += 1;
        plugin.reason = None;
        plugin.exit = None;
        plugin.in_flight = None;
        plugin.spawned_at = None;
        if let Some(metadata) = plugin.next_metadata.take() {
            plugin.metadata = Arc::new(metadata);
        }
        plugin.ping = PingTally { seq: plugin.ping.seq, ..PingTally::default() };
        plugin.stderr_tail.clear();
        if let Err(reason) = vacate_socket(&plugin.socket) {
            plugin.reason = Some(reason);
            return self.drive(index, Event::SpawnFailed { permanent: false });
        }
        let env = self.environment(Some(index));
        let plugin = &self.plugins[index];
        let settings = self.settings.process.get(&plugin.metadata.id);
        let args: Vec<&str> = settings.iter().flat_map(|own| &own.args).map(String::as_str).collect();
        let spec = Spec {
            args: &args,
            cwd: settings.and_then(|own| own.cwd.as_deref()),
            nice: settings.and_then(|own| own.nice),
            memory_bytes_max: settings.and_then(|own| own.memory_bytes_max),
            open_files_max: settings.and_then(|own| own.open_files_max),
            ..Spec::new(&plugin.file, &env)
        };
        let (process, pipes) = match Process::spawn(&spec) {
            Ok(spawned) => spawned,
            Err(error) => {
                self.plugins[index].reason = Some(error.reason);
                return self.drive(index, Event::SpawnFailed { permanent: error.permanent });
            }
        };
        let generation = plugin.generation;
        let watched =
            self.watch(&process, Source::Exit { index, generation }, epoll::EventFlags::IN).and_then(|_| {
                let stdout =
                    self.watch(&pipes.stdout, Source::Output { index, pipe: 0 }, epoll::EventFlags::IN)?;
                let stderr =
                    self.watch(&pipes.stderr, Source::Output { index, pipe: 1 }, epoll::EventFlags::IN)?;
                Ok([(pipes.stdout, stdout, Stream::Stdout), (pipes.stderr, stderr, Stream::Stderr)])
            });
        let plugin = &mut self.plugins[index];
        match watched {
            Ok(pipes) => {
                for (slot, (fd, token, stream)) in plugin.pipes.iter_mut().zip(pipes) {
                    *slot = Some(Pipe { fd, token, stream, partial: vec![] });
                }
            }
            Err(error) => {
                // An unwatched process cannot stay; the state machine hears of it as a failed spawn.
                process.abandon();
                plugin.reason = Some(format!("cannot watch the new process: {error}"));
                return self.drive(index, Event::SpawnFailed { permanent: false });
            }
        }
        plugin.spawned_at = Some(now);
        plugin.connect_at = Some((now + CONNECT_RETRY_MIN, CONNECT_RETRY_MIN));
        if generation > 1 {
            plugin.restarts += 1;
        }
        let pid = process.pid();
        plugin.process = Some(process);
        let id = &plugin.metadata.id;
        self.outlet.record(id, "started", json!({ "pid": pid, "generation": generation }));
        let fields = object(json!({ "pid": pid, "generation": generation }));
        self.outlet.log(Level::Info, Some(id), "Plugin started", fields);
    }

    fn publish(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &self.plugins[index];
        let ended = plugin.ending.is_some();
        let phase = match plugin.state {
            State::Running { .. } if ended => Phase::Waiting { retry_after: RETRY_AFTER_MIN },
            State::Running { .. } => Phase::Serving,
            State::Starting { .. } => Phase::Waiting { retry_after: RETRY_AFTER_MIN },
            State::Crashed { until, .. } => {
                Phase::Waiting { retry_after: until.saturating_duration_since(now).max(RETRY_AFTER_MIN) }
            }
            State::Stopping { next_at, .. } => {
                Phase::Waiting { retry_after: next_at.saturating_duration_since(now).max(RETRY_AFTER_MIN) }
            }
            // It can be started at any time; clients of one that is disabled need not come back.
            State::Stopped if plugin.enabled && !plugin.removed => {
                Phase::Waiting { retry_after: RETRY_AFTER_MIN }
            }
            State::Stopped | State::Failed => Phase::Absent,
        };
        let generation = (plugin.state.has_process() && !ended).then_some(plugin.generation);
        self.outlet.publish(Arc::new(PluginView {
            index,
            metadata: plugin.metadata.clone(),
            socket: plugin.socket.clone(),
            phase,
            generation,
        }));
    }

    fn record(&mut self, index: usize, happening: Happening, before: State) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        let id = plugin.metadata.id.clone();
        let uptime_ms = plugin.spawned_at.map(|at| now.saturating_duration_since(at).as_millis() as u64);
        let (failures, next_start_ms) = match plugin.state {
            State::Crashed { until, failures } => {
                (failures, Some(until.saturating_duration_since(now).as_millis() as u64))
            }
            _ => (before.failures() + 1, None),
        };
        let exit = plugin.exit.as_ref().map(Exit::to_string);
        let pid = plugin.process.as_ref().map(Process::pid);
        let (kind, level, message, details) = match happening {
            Happening::Ready => {
                ("ready", Level::Info, "Plugin ready", json!({ "pid": pid, "startup_ms": uptime_ms }))
            }
            Happening::Stopped => {
                ("stopped", Level::Info, "Plugin stopped", json!({ "exit": exit, "uptime_ms": uptime_ms }))
            }
            Happening::Crashed => (
                "crashed",
                Level::Error,
                "Plugin crashed",
                json!({
                    "exit": exit, "exit_code": plugin.exit.and_then(|exit| exit.code),
                    "signal": plugin.exit.and_then(|exit| exit.signal),
                    "core_dumped": plugin.exit.is_some_and(|exit| exit.core_dumped),
                    "reason": plugin.reason, "uptime_ms": uptime_ms, "in_flight": plugin.in_flight.unwrap_or(0),
                    "failures": failures, "next_start_ms": next_start_ms, "stderr": plugin.stderr_tail,
                }),
            ),
            Happening::Restarting => (
                "restarting",
                Level::Info,
                "Plugin restarting",
                json!({ "failures": before.failures(), "restarts": plugin.restarts + 1 }),
            ),
            Happening::Unresponsive => (
                "unresponsive",
                Level::Warn,
                "Plugin unresponsive",
                json!({ "pid": pid, "reason": plugin.reason, "uptime_ms": uptime_ms }),
            ),
            Happening::DisabledAfterCrashes => (
                "disabled_after_crashes",
                Level::Error,
                "Plugin disabled after crashes",
                json!({
                    "exit": exit, "reason": plugin.reason, "failures": failures,
                    "stderr": plugin.stderr_tail,
                    "remedy": "mend the plugin, then enable or restart it",
                }),
            ),
        };
        self.outlet.record(&id, kind, details.clone());
        if happening == Happening::DisabledAfterCrashes {
            self.notify(&id, kind, &details);
        }
        self.outlet.log(level, Some(&id), message, object(details));
    }

    /// Runs the command that tells somebody outside of an event.
    fn notify(&mut self, plugin_id: &str, kind: &str, details: &Value) {
        if self.settings.notify_command.is_empty() || self.stopping {
            return;
        }
        if self.notices.len() >= NOTICES_MAX {
            return self.tell_of_notice("too many are on their way");
        }
        let timestamp = rfc3339_millis(unix_ms());
        let event = json!({
            "timestamp": as_str(&timestamp), "plugin_id": plugin_id, "event_type": kind, "details": details,
        });
        let input = format!("{event}\n").into_bytes();
        let id = self.next_token;
        let command = &self.settings.notify_command;
        let notice = match Notice::start(id, command, &self.environment(None), input, Instant::now()) {
            Ok(notice) => notice,
            Err(why) => return self.tell_of_notice(&why),
        };
        let watched = {
            let (reading, writing) = notice.fds();
            let reading = reading.map(|fd| (fd, epoll::EventFlags::IN));
            let mut fds = reading.chain(writing.map(|fd| (fd, epoll::EventFlags::OUT)));
            fds.try_for_each(|(fd, flags)| self.watch(fd, Source::Notice { id }, flags).map(drop))
        };
        self.notices.push(notice);
        if let Err(error) = watched {
            let position = self.notices.len() - 1;
            self.end_notice(position, Err(format!("cannot watch it: {error}"))).abandon();
        }
    }

    fn on_notice(&mut self, id: u64) {
        let Some(position) = self.notices.iter().position(|notice| notice.id() == id) else { return };
        if let Some(outcome) = self.notices[position].advance(&mut self.scratch) {
            drop(self.end_notice(position, outcome));
        }
    }

    fn end_notice(&mut self, position: usize, outcome: Result<(), String>) -> Notice {
        let notice = self.notices.swap_remove(position);
        let id = notice.id();
        self.sources.retain(|_, source| !matches!(source, Source::Notice { id: other } if *other == id));
        if let Err(why) = outcome {
            self.tell_of_notice(&why);
        }
        // What it left behind is nobody's from now on.
        self.reap_at.get_or_insert(self.reap_again_at);
        notice
    }

    fn tell_of_notice(&self, why: &str) {
        let fields = object(json!({ "command": self.settings.notify_command, "reason": why }));
        self.outlet.log(Level::Error, None, "Notification failed", fields);
    }

    /// Answers those whose order is done, cannot be done any more, or takes too long.
    fn settle(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        if plugin.waiting.is_empty() {
            return;
        }
        let (state, want, generation) = (plugin.state, plugin.want, plugin.generation);
        let waits_for = plugin.waits_for(now);
        let failed = |why: &str| Err(OrderError::Failed(why.to_owned()));
        let mut still = vec![];
        for waiting in std::mem::take(&mut plugin.waiting) {
            let outcome = match waiting.order {
                Order::Enable | Order::Start | Order::Restart | Order::ResetFailed => match state {
                    _ if want == Want::Down => failed("it was stopped meanwhile"),
                    State::Running { .. }
                        if waiting.order != Order::Restart || generation > waiting.after_generation =>
                    {
                        Ok(())
                    }
                    State::Failed | State::Crashed { .. } => failed(&waits_for),
                    State::Starting { .. }
                    | State::Running { .. }
                    | State::Stopping { .. }
                    | State::Stopped
                        if now < waiting.until =>
                    {
                        still.push(waiting);
                        continue;
                    }
                    State::Starting { .. }
                    | State::Running { .. }
                    | State::Stopping { .. }
                    | State::Stopped => failed(&waits_for),
                },
                Order::Disable | Order::Stop => match state {
                    State::Stopped => Ok(()),
                    _ if want == Want::Up => failed("it was started again meanwhile"),
                    _ if now < waiting.until => {
                        still.push(waiting);
                        continue;
                    }
                    _ => failed(&waits_for),
                },
            };
            (waiting.done)(outcome);
        }
        self.plugins[index].waiting = still;
    }

    // ---- what plugins do ----

    fn on_exit(&mut self, index: usize, generation: u64) {
        if self.plugins[index].generation != generation {
            return;
        }
        let Some(exit) = self.plugins[index].process.as_ref().and_then(Process::reap) else { return };
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        // Before anything else: the workers see the broken connections at the same time, and fail what was on them.
        plugin.in_flight.get_or_insert_with(|| self.outlet.in_flight(index));
        plugin.process = None;
        plugin.lifeline = None;
        plugin.connect_at = None;
        plugin.ending = Some(Ending {
            exit,
            victims: HashMap::new(),
            spared: vec![],
            found_some: false,
            quiet_looks: 0,
            look_at: None,
            give_up_at: now + REMAINS_PATIENCE,
        });
        self.sources.retain(|_, source| match source {
            Source::Exit { index: i, .. } | Source::Lifeline { index: i, .. } => *i != index,
            Source::Output { .. }
            | Source::Inbox
            | Source::Probe { .. }
            | Source::Children
            | Source::Victim { .. }
            | Source::Notice { .. } => true,
        });
        // What it left behind may take a while to go; the workers must not send it requests meanwhile.
        self.publish(index);
        self.clear_remains(index, now);
    }

    /// The process has ended and left nothing behind: only now anybody hears of it.
    fn finish_exit(&mut self, index: usize) {
        let Some(Ending { exit, victims, .. }) = self.plugins[index].ending.take() else { return };
        for token in victims.keys() {
            self.sources.remove(token);
        }
        // What it wrote last explains why it ended: read it before the pipes go.
        for pipe in 0..2 {
            self.drain(index, pipe);
        }
        let plugin = &mut self.plugins[index];
        plugin.last_exit = Some(exit.to_string());
        plugin.exit = Some(exit);
        if plugin.reason.is_none() {
            plugin.reason = exit.permanent().map(str::to_owned);
        }
        let socket = plugin.socket.clone();
        let _ = vacate_socket(&socket);
        self.drive(index, Event::Exited { permanent: exit.permanent().is_some() });
    }

    // ---- what plugins leave behind ----

    /// Reads the process table and reaps what ended in it.
    fn survey(&mut self) -> Option<Table> {
        Some(self.take_in(Table::read().ok()?))
    }

    /// A survey that kills adopted processes with the mark of a plugin where it meets them: of `only` this one, whose
    /// process has ended, or of every one.
    ///
    /// What forks without end has moved on by the time that a whole table is read.
    fn strike(&mut self, only: Option<usize>) -> Option<(Table, Vec<OwnedFd>)> {
        let own = own_pid();
        let mut killed = vec![];
        let table = Table::read_with(|id, parent| {
            if parent != own {
                return;
            }
            if let Mark::Plugin { id: plugin, socket } = remains::mark(id.pid, &self.settings.instance_id)
                && socket.parent() == Some(&self.settings.sockets_dir)
                && only.is_none_or(|index| *self.plugins[index].metadata.id == *plugin)
            {
                killed.extend(process::kill_exactly(id).ok().flatten());
            }
        });
        Some((self.take_in(table.ok()?), killed))
    }

    fn take_in(&mut self, table: Table) -> Table {
        process::reap_orphans(table.zombies(own_pid()));
        self.seen.retain(|id, _| table.holds(*id));
        self.changing.retain(|id, _| table.holds(*id));
        table
    }

    /// Writes down what hangs below a plugin's process: when that ends, its children lose the only sign of whose they
    /// are that they cannot drop.
    fn note_children(&mut self, index: usize) {
        let Some(pid) = self.plugins[index].process.as_ref().map(Process::pid) else { return };
        let Some(table) = self.survey() else { return };
        self.seen.extend(table.below(pid as i32).into_iter().map(|id| (id, index)));
    }

    /// Orphans by the plugin whose they are, and whether one has to be looked at again.
    ///
    /// `None` stands for those that belong to no plugin of the table: leftovers of calls that are over, and what nobody
    /// who still lives can have made. Others' are left out.
    fn orphans(&mut self, table: &Table) -> (Vec<(Option<usize>, ProcessId)>, bool) {
        let mut found = vec![];
        let mut undecided = false;
        let spawned = process::spawned_here();
        for orphan in table.orphans(own_pid(), &spawned) {
            let seen = orphan.members.iter().find_map(|id| self.seen.get(id).copied());
            let owner = match seen {
                Some(index) => Some(index),
                None => match remains::mark(orphan.id.pid, &self.settings.instance_id) {
                    // A copy of this installation's data elsewhere has other sockets.
                    Mark::Plugin { socket, .. } if socket.parent() != Some(&self.settings.sockets_dir) => {
                        continue;
                    }
                    Mark::Plugin { id, .. } => {
                        self.plugins.iter().rfind(|p| *p.metadata.id == *id).map(|p| p.index)
                    }
                    _ if !orphan.adopted => continue,
                    Mark::Call if self.probes.is_empty() && self.notices.is_empty() => None,
                    Mark::Call | Mark::Foreign => continue,
                    mark @ (Mark::Nothing | Mark::Changing) => {
                        if mark == Mark::Changing {
                            let looks = self.changing.entry(orphan.id).or_default();
                            *looks += 1;
                            undecided |= *looks <= REMAINS_LOOKS_MAX;
                        }
                        let mut parents = spawned.iter().filter_map(|pid| table.find(*pid));
                        if parents.any(|parent| parent.started <= orphan.id.started) {
                            continue;
                        }
                        None
                    }
                },
            };
            if let Some(index) = owner {
                self.seen.extend(orphan.members.iter().map(|id| (*id, index)));
            }
            found.extend(orphan.members.into_iter().map(|id| (owner, id)));
        }
        (found, undecided)
    }

    /// Kills what a plugin whose process has ended left behind, until there is nothing more.
    fn clear_remains(&mut self, index: usize, now: Instant) {
        let Some((table, killed)) = self.strike(Some(index)) else { return self.finish_exit(index) };
        let (orphans, undecided) = self.orphans(&table);
        let Some(mut ending) = self.plugins[index].ending.take() else { return };
        ending.look_at = None;
        let mut quiet = killed.is_empty() && !undecided;
        for pidfd in killed {
            match self.watch(&pidfd, Source::Victim { index }, epoll::EventFlags::IN) {
                Ok(token) => drop(ending.victims.insert(token, pidfd)),
                Err(_) => quiet = false,
            }
        }
        for (owner, id) in orphans {
            if owner.is_some_and(|owner| owner != index) || ending.spared.contains(&id) {
                continue;
            }
            match process::kill_exactly(id) {
                Ok(Some(pidfd)) => {
                    quiet = false;
                    if let Ok(token) = self.watch(&pidfd, Source::Victim { index }, epoll::EventFlags::IN) {
                        ending.victims.insert(token, pidfd);
                    }
                }
                Err(rustix::io::Errno::PERM) => ending.spared.push(id),
                // Gone since the table was read, and perhaps it had children; or it cannot be opened now.
                Ok(None) | Err(_) => quiet = false,
            }
        }
        ending.found_some |= !quiet;
        ending.quiet_looks = if quiet { ending.quiet_looks + 1 } else { 0 };
        // What forks while the table is read can be missed in it. Most of what a plugin leaves behind holds on to its
        // output, whose pipes say so.
        let enough = match (self.output_is_held(index), ending.found_some) {
            (true, _) => QUIET_LOOKS_MAX,
            (false, true) => 2,
            (false, false) => 1,
        };
        let done = ending.quiet_looks >= enough;
        if ending.victims.is_empty() && !done {
            ending.look_at = Some(now + REMAINS_LOOK);
        }
        let spared = if done { ending.spared.clone() } else { vec![] };
        self.plugins[index].ending = Some(ending);
        if done {
            if !spared.is_empty() {
                self.tell_of_remains(index, spared.iter().map(|id| id.pid), "belong to another user");
            }
            self.finish_exit(index);
        }
    }

    /// Whether anybody can still write to the pipes of a plugin.
    fn output_is_held(&self, index: usize) -> bool {
        self.plugins[index].pipes.iter().flatten().any(|pipe| {
            let mut poll = [PollFd::new(&pipe.fd, PollFlags::IN)];
            let _ = rustix::event::poll(&mut poll, Some(&Timespec::default()));
            !poll[0].revents().contains(PollFlags::HUP)
        })
    }

    fn on_victim(&mut self, index: usize, token: u64) {
        self.sources.remove(&token);
        let Some(ending) = &mut self.plugins[index].ending else { return };
        ending.victims.remove(&token);
        if ending.victims.is_empty() {
            // Whoever was below it is an orphan by now, and may have made another meanwhile.
            self.clear_remains(index, Instant::now());
        }
    }

    fn give_up_on_remains(&mut self, index: usize) {
        let left = self.survey().map(|table| self.orphans(&table).0).unwrap_or_default();
        let pids = left.into_iter().filter(|(owner, _)| *owner == Some(index)).map(|(_, id)| id.pid);
        self.tell_of_remains(index, pids, "did not end after SIGKILL");
        self.finish_exit(index);
    }

    fn tell_of_remains(&self, index: usize, pids: impl Iterator<Item = i32>, why: &str) {
        let pids: Vec<i32> = pids.collect();
        let fields = object(json!({ "pids": pids, "reason": why }));
        let id = &self.plugins[index].metadata.id;
        self.outlet.log(Level::Error, Some(id), "Plugin left processes behind", fields);
    }

    /// Reaps orphans that ended, and kills those whose plugin or call is over.
    fn look_after_orphans(&mut self, now: Instant) {
        self.reap_at = None;
        if let Some(table) = self.survey() {
            for (owner, id) in self.orphans(&table).0 {
                let over = owner.is_none_or(|index| {
                    let plugin = &self.plugins[index];
                    plugin.process.is_none() && plugin.ending.is_none()
                });
                if over {
                    let _ = process::kill_exactly(id);
                }
            }
        }
        self.reap_again_at = Instant::now() + REAP_INTERVAL_MIN.max(now.elapsed() * 10);
    }

    /// Kills every orphan, and waits for it: the last thing that a supervisor does.
    fn end_orphans(&mut self) {
        let give_up_at = Instant::now() + REMAINS_PATIENCE;
        let mut quiet_looks = 0;
        while let Some((table, mut killed)) = self.strike(None) {
            let (orphans, undecided) = self.orphans(&table);
            killed.extend(orphans.iter().filter_map(|(_, id)| process::kill_exactly(*id).ok().flatten()));
            quiet_looks = if killed.is_empty() { quiet_looks + 1 } else { 0 };
            // What forks while the table is read can be missed in it: nothing found counts only the second time.
            if (quiet_looks >= 2 && !undecided) || Instant::now() >= give_up_at {
                return;
            }
            process::wait_for_ends(&killed, REMAINS_LOOK);
            if killed.is_empty() {
                std::thread::sleep(REMAINS_LOOK);
            }
        }
    }

    /// Kills what plugins of an earlier run left behind, which ended too suddenly to do it itself.
    ///
    /// A process is one of those if it carries this installation's id and a socket in this daemon's socket folder, which
    /// is locked: nobody else alive can have given it both. It is read before the first spawn, so whatever carries them
    /// is older than every process of this run. The daemon itself and those that it descends from are left alone, as it
    /// may have been started from within a plugin.
    fn sweep_former_run(&mut self) {
        // One that forked just before it died has a child which only the next look finds; so is one in the middle of an
        // exec. Some kernels show their own threads like that, always.
        const LOOKS_MAX: u32 = 4;
        let mut ended = vec![];
        let mut ids = HashSet::new();
        for _ in 0..LOOKS_MAX {
            let table = match Table::read() {
                Ok(table) => table,
                Err(error) => {
                    let message =
                        format!("cannot read /proc ({error}); what plugins leave behind will stay behind");
                    return self.outlet.log(Level::Warn, None, &message, Map::new());
                }
            };
            let known = ended.len();
            let mut undecided = false;
            for id in table.all_but_line_of(own_pid()) {
                if ended.contains(&id.pid) {
                    continue;
                }
                match remains::mark(id.pid, &self.settings.instance_id) {
                    Mark::Plugin { id: plugin, socket }
                        if socket.parent() == Some(&self.settings.sockets_dir) =>
                    {
                        if let Ok(Some(_)) = process::kill_exactly(id) {
                            ended.push(id.pid);
                            ids.insert(plugin.to_string_lossy().into_owned());
                        }
                    }
                    Mark::Changing => undecided = true,
                    Mark::Plugin { .. } | Mark::Call | Mark::Foreign | Mark::Nothing => {}
                }
            }
            if ended.len() == known {
                if !undecided {
                    break;
                }
                std::thread::sleep(REMAINS_LOOK);
            }
        }
        if !ended.is_empty() {
            let fields = object(json!({ "pids": ended, "plugins": ids }));
            self.outlet.log(Level::Warn, None, "Processes of an earlier run ended", fields);
        }
    }

    fn on_output(&mut self, index: usize, pipe: usize) {
        // One read for each turn of the loop: a flood on one pipe must not starve the others.
        self.read_output(index, pipe);
    }

    fn drain(&mut self, index: usize, pipe: usize) {
        // A pipe holds 64 KiB by default, 1 MiB at most; a stranger that still writes must not keep us here.
        for _ in 0..32 {
            if !self.read_output(index, pipe) {
                break;
            }
        }
        if let Some(pipe) = self.plugins[index].pipes[pipe].take() {
            self.sources.remove(&pipe.token);
            if !pipe.partial.is_empty() {
                self.on_output_line(index, pipe.stream, &pipe.partial);
            }
        }
    }

    /// Reads once; whether more may be there.
    fn read_output(&mut self, index: usize, pipe: usize) -> bool {
        let Some(Pipe { fd, token, stream, partial }) = &mut self.plugins[index].pipes[pipe] else {
            return false;
        };
        let (token, stream) = (*token, *stream);
        let count = match rustix::io::read(&*fd, &mut self.scratch[..]) {
            Ok(0) => {
                // Closed by the plugin: nothing more will come, and a readable end of file would spin.
                let closed = self.plugins[index].pipes[pipe].take();
                self.sources.remove(&token);
                if let Some(closed) = closed.filter(|closed| !closed.partial.is_empty()) {
                    self.on_output_line(index, stream, &closed.partial);
                }
                return false;
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        let mut lines = std::mem::take(partial);
        lines.extend_from_slice(&self.scratch[..count]);
        let mut rest = &lines[..];
        while let Some(end) = rest.iter().take(OUTPUT_LINE_BYTES_MAX).position(|&byte| byte == b'\n') {
            self.on_output_line(index, stream, &rest[..end]);
            rest = &rest[end + 1..];
        }
        while rest.len() >= OUTPUT_LINE_BYTES_MAX {
            let (line, more) = rest.split_at(OUTPUT_LINE_BYTES_MAX);
            self.on_output_line(index, stream, line);
            rest = more;
        }
        let rest = rest.to_vec();
        if let Some(pipe) = &mut self.plugins[index].pipes[pipe] {
            pipe.partial = rest;
        }
        true
    }

    fn on_output_line(&mut self, index: usize, stream: Stream, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let plugin = &mut self.plugins[index];
        if stream == Stream::Stderr {
            if plugin.stderr_tail.len() == STDERR_LINES_KEPT {
                plugin.stderr_tail.pop_front();
            }
            let kept = &line[..line.len().min(500)];
            plugin.stderr_tail.push_back(String::from_utf8_lossy(kept).into_owned());
        }
        self.outlet.plugin_output(&plugin.metadata.id, stream, line);
    }

    /// Tries to reach the socket of a starting plugin, and hands it its `init`; or renews a lost lifeline.
    fn reach(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        let Some((_, wait)) = plugin.connect_at.take() else { return };
        let starting = matches!(plugin.state, State::Starting { .. });
        if !starting && !matches!(plugin.state, State::Running { .. }) {
            return;
        }
        let stream = match connect(&plugin.socket) {
            Ok(Some(stream)) => stream,
            Ok(None) => {
                let wait = (wait * 2).min(CONNECT_RETRY_MAX);
                plugin.connect_at = Some((now + wait, wait));
                return;
            }
            Err(reason) => {
                plugin.reason = Some(reason);
                return self.drive(index, Event::Misbehaved);
            }
        };
        let id = plugin.metadata.id.clone();
        let data_dir = self.settings.data_dir.join("plugins").join(&id);
        let init = lifeline::InitFacts {
            instance_id: &self.settings.instance_id,
            socket: &plugin.socket,
            log_path: &self.settings.plugin_logs_dir.join(format!("{id}.log")),
            data_dir: &data_dir,
            frame_bytes_max: self.settings.frame_bytes_max,
            config: self.settings.plugin_config.get(&id).map(String::as_str),
        };
        let mut lifeline = Lifeline::new(stream, &plugin.metadata, self.settings.frame_bytes_max);
        if plugin.metadata.protocol == Protocol::V1_1 {
            // Plugins are told where they may keep files; making the folder spares each of them the same code.
            let _ = fs::create_dir_all(&data_dir);
        }
        if starting && let Err(error) = lifeline.send_init(&plugin.metadata, &init, unix_ms()) {
            plugin.reason = Some(format!("its [plugins.{id}] table does not fit into a message: {error}"));
            return self.drive(index, Event::Misbehaved);
        }
        if let Err(error) = lifeline.flush() {
            plugin.reason = Some(format!("closed the connection before init was sent: {error}"));
            plugin.connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
            return;
        }
        match plugin.metadata.protocol {
            // One connection for one exchange; an init has no answer, so taking it is all there is to wait for.
            Protocol::V1_0 => {
                drop(lifeline);
                self.drive(index, Event::Ready);
            }
            Protocol::V1_1 => {
                let generation = plugin.generation;
                match self.watch(
                    lifeline.as_fd(),
                    Source::Lifeline { index, generation },
                    epoll::EventFlags::IN,
                ) {
                    Ok(token) => {
                        lifeline.set_token(token);
                        let plugin = &mut self.plugins[index];
                        if !starting {
                            // It had its init. A ping shows it the new connection, so that it asks and logs over this
                            // one; it is no health check and is not counted as one.
                            plugin.ping.seq += 1;
                            plugin.ping.sent_at = Some(now);
                            lifeline.send_ping(plugin.ping.seq, unix_ms());
                        }
                        plugin.lifeline = Some(lifeline);
                        self.flush_lifeline(index);
                    }
                    Err(error) => {
                        self.plugins[index].reason = Some(format!("cannot watch its connection: {error}"));
                        self.plugins[index].connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
                    }
                }
            }
        }
    }

    fn on_lifeline(&mut self, index: usize, generation: u64) {
        if self.plugins[index].generation != generation {
            return;
        }
        let Some(mut lifeline) = self.plugins[index].lifeline.take() else { return };
        let mut said = vec![];
        let outcome = lifeline.advance(&mut self.scratch, &mut self.reader, &mut said);
        self.plugins[index].lifeline = Some(lifeline);
        self.flush_lifeline(index);
        let now = Instant::now();
        for one in said {
            self.on_said(index, one, now);
        }
        match outcome {
            Ok(()) => {}
            Err(lifeline::Lost::Closed) => self.lose_lifeline(index, now),
            Err(lifeline::Lost::Broken(reason)) => {
                self.lose_lifeline(index, now);
                self.on_protocol_error(index, generation, reason, true);
            }
        }
    }

    /// Writes what waits, and asks to be told when the rest can go.
    fn flush_lifeline(&mut self, index: usize) {
        let Some(lifeline) = &mut self.plugins[index].lifeline else { return };
        match lifeline.flush() {
            Ok(waiting) => {
                if lifeline.waits_to_write() != waiting {
                    lifeline.set_waits_to_write(waiting);
                    let write = if waiting { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
                    let data = epoll::EventData::new_u64(lifeline.token());
                    let _ = epoll::modify(&self.epoll, lifeline.as_fd(), data, epoll::EventFlags::IN | write);
                }
            }
            Err(_) => self.lose_lifeline(index, Instant::now()),
        }
    }

    fn lose_lifeline(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        if let Some(lifeline) = plugin.lifeline.take() {
            self.sources.remove(&lifeline.token());
        }
        // An exit usually follows at once and says more. A plugin that lives on is reached again, and counted at pings.
        if matches!(plugin.state, State::Starting { .. } | State::Running { .. }) {
            plugin.connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
        }
    }

    fn on_said(&mut self, index: usize, said: Said, now: Instant) {
        let plugin = &mut self.plugins[index];
        match said {
            Said::Ready => {
                if matches!(plugin.state, State::Starting { .. }) {
                    self.drive(index, Event::Ready);
                }
            }
            Said::Failed(error) => {
                if matches!(plugin.state, State::Starting { .. }) {
                    plugin.reason = Some(format!("init failed: {error}"));
                    self.drive(index, Event::Misbehaved);
                }
            }
            Said::Pong(seq) => {
                if seq == plugin.ping.seq {
                    plugin.ping.unanswered = 0;
                    plugin.ping.round_trip =
                        plugin.ping.sent_at.take().map(|sent| now.saturating_duration_since(sent));
                }
            }
            Said::Log { level, message, fields } => {
                self.outlet.plugin_log(&plugin.metadata.id, level, &message, fields.as_deref());
            }
            Said::Kv { request_id, question } => {
                let (handle, generation) = (self.handle.clone(), plugin.generation);
                let reply = Box::new(move |reply| {
                    handle.send(Command::KvAnswer { index, generation, request_id, reply });
                });
                self.outlet.kv(&plugin.metadata.id, question, reply);
            }
        }
    }

    fn check_health(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        if plugin.ending.is_some() {
            return;
        }
        if plugin.timeouts_unrecorded > 0 {
            self.record_timeouts(index, now);
        }
        let plugin = &mut self.plugins[index];
        if plugin.ping.unanswered >= self.settings.unanswered_pings {
            plugin.reason = Some(format!("{} pings in a row were not answered", plugin.ping.unanswered));
            return self.drive(index, Event::Misbehaved);
        }
        // A plugin may answer pings on the connection that it has, and take no new ones from the workers.
        if plugin.metadata.protocol == Protocol::V1_1 {
            let listening = fs::symlink_metadata(&plugin.socket)
                .is_ok_and(|found| check_socket(&plugin.socket, &found).is_ok())
                && match lifeline::connect(&plugin.socket) {
                    Ok(_) => true,
                    // A full backlog has a listener behind it, and our own want of descriptors says nothing of it.
                    Err(error) => matches!(
                        error.raw_os_error(),
                        Some(nix::libc::EAGAIN | nix::libc::EMFILE | nix::libc::ENFILE)
                    ),
                };
            plugin.ping.unreachable = if listening { 0 } else { plugin.ping.unreachable + 1 };
            if plugin.ping.unreachable >= self.settings.unanswered_pings {
                let checks = plugin.ping.unreachable;
                plugin.reason = Some(format!("nothing listened at its socket in {checks} checks in a row"));
                return self.drive(index, Event::Misbehaved);
            }
        }
        plugin.ping.seq += 1;
        plugin.ping.unanswered += 1;
        plugin.ping.sent_at = Some(now);
        match plugin.metadata.protocol {
            Protocol::V1_1 => {
                if let Some(lifeline) = &mut plugin.lifeline {
                    lifeline.send_ping(plugin.ping.seq, unix_ms());
                    self.flush_lifeline(index);
                }
            }
            // No answer comes: a connection and a written ping are all that health can mean.
            Protocol::V1_0 => {
                let metadata = plugin.metadata.clone();
                let sent = connect(&plugin.socket).ok().flatten().is_some_and(|stream| {
                    let mut lifeline = Lifeline::new(stream, &metadata, self.settings.frame_bytes_max);
                    lifeline.send_ping(plugin.ping.seq, unix_ms());
                    lifeline.flush().is_ok()
                });
                if sent {
                    plugin.ping.unanswered = 0;
                    plugin.ping.round_trip = Some(now.elapsed());
                }
            }
        }
    }

    /// Sends the shutdown message; where it cannot be sent, SIGTERM follows at once.
    fn ask(&mut self, index: usize) {
        let grace = self.settings.policy.stop_grace;
        let plugin = &mut self.plugins[index];
        plugin.connect_at = None;
        let metadata = plugin.metadata.clone();
        if plugin.lifeline.is_none()
            && let Ok(Some(stream)) = connect(&plugin.socket)
        {
            plugin.lifeline = Some(Lifeline::new(stream, &metadata, self.settings.frame_bytes_max));
        }
        let sent = plugin.lifeline.as_mut().is_some_and(|lifeline| {
            lifeline.send_shutdown(grace, unix_ms());
            lifeline.flush().is_ok()
        });
        if metadata.protocol == Protocol::V1_0 {
            plugin.lifeline = None;
        }
        if !sent {
            self.drive(index, Event::TimerExpired);
        }
    }

    fn on_protocol_error(&mut self, index: usize, generation: u64, reason: String, fatal: bool) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        let id = plugin.metadata.id.clone();
        let details = json!({ "reason": reason, "generation": generation });
        self.outlet.record(&id, "protocol_error", details.clone());
        self.outlet.log(Level::Error, Some(&id), "Plugin broke the protocol", object(details));
        if !fatal
            || plugin.generation != generation
            || !matches!(plugin.state, State::Starting { .. } | State::Running { .. })
        {
            return;
        }
        plugin.protocol_errors.retain(|&at| now.saturating_duration_since(at) < PROTOCOL_ERROR_WINDOW);
        plugin.protocol_errors.push_back(now);
        if plugin.protocol_errors.len() >= PROTOCOL_ERRORS_MAX {
            plugin.protocol_errors.clear();
            plugin.reason =
                Some(format!("broke the protocol {PROTOCOL_ERRORS_MAX} times within a minute: {reason}"));
            self.drive(index, Event::Misbehaved);
        }
    }

    /// One event a second at most, with the count: a plugin that hangs under load must not flood the audit trail.
    fn record_timeouts(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        if plugin
            .timeout_recorded_at
            .is_some_and(|at| now.saturating_duration_since(at) < Duration::from_secs(1))
        {
            return;
        }
        plugin.timeout_recorded_at = Some(now);
        let count = std::mem::take(&mut plugin.timeouts_unrecorded);
        let details = json!({ "count": count });
        self.outlet.record(&plugin.metadata.id, "request_timeout", details.clone());
        self.outlet.log(Level::Warn, Some(&plugin.metadata.id), "Request timed out", object(details));
    }

    // ---- what others ask ----

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
            Command::Order { id, order, done } => self.on_order(id, order, done),
            Command::Rescan { done } => self.on_rescan(done),
            Command::Looked(Looks(found)) => self.on_looked(found),
            Command::KvAnswer { index, generation, request_id, reply } => {
                let plugin = &mut self.plugins[index];
                if plugin.generation == generation
                    && let Some(lifeline) = &mut plugin.lifeline
                {
                    lifeline.send_kv_reply(&request_id, &reply, unix_ms());
                    self.flush_lifeline(index);
                }
            }
        }
    }

    fn on_order(&mut self, id: String, order: Order, done: Box<dyn FnOnce(Result<(), OrderError>) + Send>) {
        let Some(index) = self.plugins.iter().position(|p| p.metadata.id == id && !p.removed) else {
            return done(Err(OrderError::Unknown(id)));
        };
        if self.stopping {
            return done(Err(OrderError::Failed("the daemon is stopping".into())));
        }
        let policy = &self.settings.policy;
        // The whole ladder, a start, and a moment for the kernel.
        let patience = policy.stop_grace + policy.term_grace * 2 + REMAINS_PATIENCE + policy.ready_timeout;
        let plugin = &mut self.plugins[index];
        let given_up = plugin.state == State::Failed;
        let (want, enabled, event) = match order {
            Order::Enable => (Want::Up, true, Event::Wanted),
            Order::Start => (Want::Up, plugin.enabled, Event::Wanted),
            Order::Restart => (Want::Up, plugin.enabled, Event::RestartAsked),
            Order::Disable => (Want::Down, false, Event::Wanted),
            Order::Stop => (Want::Down, plugin.enabled, Event::Wanted),
            Order::ResetFailed => (plugin.want, plugin.enabled, Event::ResetFailed),
        };
        let event = match (event, want, plugin.state) {
            // An operator who starts a plugin that crashed or was given up has mended it.
            (Event::Wanted, Want::Up, State::Failed | State::Crashed { .. }) => Event::RestartAsked,
            (event, ..) => event,
        };
        self.outlet.log(Level::Info, Some(&id), "Plugin order", object(json!({ "order": order.word() })));
        plugin.want = want;
        if plugin.enabled != enabled {
            plugin.enabled = enabled;
            self.outlet.record(&id, if enabled { "enabled" } else { "disabled" }, json!({}));
            let message = if enabled { "Plugin enabled" } else { "Plugin disabled" };
            self.outlet.log(Level::Info, Some(&id), message, Map::new());
            // The answer to clients of one that does not run depends on it.
            self.publish(index);
        }
        if order == Order::ResetFailed && !(given_up && want == Want::Up) {
            self.drive(index, event);
            return done(Ok(()));
        }
        let plugin = &mut self.plugins[index];
        let until = Instant::now() + patience + Duration::from_secs(1);
        plugin.waiting.push(Waiting { order, after_generation: plugin.generation, until, done });
        self.drive(index, event);
    }

    fn environment(&self, plugin: Option<usize>) -> Vec<(OsString, OsString)> {
        // What steers the core, or lets somebody speak in its name, is not the plugins' business.
        const PRIVATE: [&str; 5] =
            ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "CREDENTIALS_DIRECTORY"];
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(key, _)| {
                let key = key.to_string_lossy();
                !key.starts_with("TORU_") && !PRIVATE.contains(&&*key)
            })
            .collect();
        if let Some(index) = plugin
            && let Some(own) = self.settings.process.get(&self.plugins[index].metadata.id)
        {
            // A later entry wins.
            env.extend(own.env.iter().map(|(key, value)| (key.into(), value.into())));
        }
        env.push(("TORU_INSTANCE_ID".into(), (&self.settings.instance_id).into()));
        if let Some(index) = plugin {
            let plugin = &self.plugins[index];
            env.push(("TORU_PLUGIN_SOCKET".into(), plugin.socket.as_os_str().to_owned()));
            env.push(("TORU_PLUGIN_ID".into(), (&plugin.metadata.id).into()));
        }
        env
    }
}

impl Plugin {
    /// Why an order is not done, for whoever gave it.
    fn waits_for(&self, now: Instant) -> String {
        let why = || self.reason.clone().or(self.last_exit.clone()).unwrap_or_else(|| "it failed".into());
        let pid = self.process.as_ref().map_or(0, Process::pid);
        match self.state {
            State::Failed => format!("it was given up: {}", why()),
            State::Crashed { until, .. } => {
                let next = until.saturating_duration_since(now).as_millis();
                format!("it crashed: {}; the next start is in {next} ms", why())
            }
            State::Starting { .. } => format!("it is starting: process {pid} has not said that it is ready"),
            State::Stopping { rung, .. } => {
                let sent = match rung {
                    Rung::Asked => "the shutdown message",
                    Rung::Terminated => "SIGTERM",
                    Rung::Killed => "SIGKILL",
                };
                format!("it is stopping: process {pid} was sent {sent} and has not ended")
            }
            State::Running { .. } => "it is running".into(),
            State::Stopped => "it is stopped".into(),
        }
    }

    fn status(&self, now: Instant) -> PluginStatus {
        PluginStatus {
            index: self.index,
            metadata: self.metadata.clone(),
            state: self.state.word(),
            enabled: self.enabled,
            pid: self.process.as_ref().map(Process::pid),
            socket: self.socket.clone(),
            uptime: self
                .process
                .as_ref()
                .and(self.spawned_at)
                .map(|spawned| now.saturating_duration_since(spawned)),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            next_start: match self.state {
                State::Crashed { until, .. } => Some(until.saturating_duration_since(now)),
                _ => None,
            },
            ping: self.ping.round_trip,
            unanswered_pings: self.ping.unanswered,
        }
    }
}

/// Makes way for a plugin's socket: removes a stale socket of ours, refuses everything else.
fn vacate_socket(path: &Path) -> Result<(), String> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot look at {}: {error}", path.display())),
    };
    check_socket(path, &found)?;
    fs::remove_file(path)
        .map_err(|error| format!("cannot remove the stale socket {}: {error}", path.display()))
}

fn check_socket(path: &Path, found: &fs::Metadata) -> Result<(), String> {
    let path = path.display();
    if found.file_type().is_symlink() {
        return Err(format!("{path} is a symbolic link; remove it"));
    }
    if !found.file_type().is_socket() {
        return Err(format!("{path} is no socket; remove it"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!("{path} belongs to user {}; remove it", found.uid()));
    }
    Ok(())
}

/// A non-blocking connection to a plugin, or `None` while nobody listens there yet.
///
/// Errors: the path is not a socket of ours; in words.
fn connect(path: &Path) -> Result<Option<std::os::unix::net::UnixStream>, String> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(None) };
    check_socket(path, &found)?;
    if found.mode() & 0o777 != 0o600 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|error| format!("cannot make {} private: {error}", path.display()))?;
    }
    Ok(lifeline::connect(path).ok())
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
