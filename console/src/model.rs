//! What the console knows, and where the operator is in it. Plain data without a terminal.
//!
//! Changed by `update.rs` alone, shown by `view.rs`. Everything that came from outside is already [`clean`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nucleo_matcher::pattern::{AtomKind, CaseMatching, Normalization, Pattern};
use nucleo_matcher::{Config, Matcher, Utf32Str};
use serde_json::{Map, Value};
use toru_plugin_api::status::{History, PluginStatus, Sample, Snapshot, WorkerStatus};
use tui_input::Input;

use crate::columns::{self, Column};
use crate::sheet::Sheet;
use crate::text::{self, clean, latency, parse_time};

/// Seconds of samples for each plugin: the ten minutes that the charts show.
pub const HISTORY_MAX: usize = 600;
/// Lines that a log view holds; older ones go.
pub const LOG_LINES_MAX: usize = 10_000;
/// Characters of a log line that are held: a plugin may print a megabyte without a line end.
pub const LOG_LINE_CHARS_MAX: usize = 4096;
/// Between snapshots, as the console asks for them.
pub const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// A picture that nobody has renewed for so long is no present one: two snapshots and a half.
pub const STALE_AFTER: Duration = Duration::from_millis(SNAPSHOT_INTERVAL.as_millis() as u64 * 5 / 2);
/// Entries of the audit trail that the console begins with; the most that the core gives at once.
pub const EVENTS_BACKLOG: usize = 1000;
/// Entries of the audit trail that are held; older ones go.
pub const EVENTS_MAX: usize = 2000;
/// Deaths further apart than this are accidents, closer together a loop.
pub const LOOP_WINDOW_MS: u64 = 120_000;
/// What the core's own log is called among the plugins'; no id has this sign.
pub const CORE: &str = "@core";
/// Columns and rows; below this nothing useful can be said, and nothing may be asked.
pub const SIZE_MIN: (u16, u16) = (20, 6);
/// How long the outcome of an action stays on the screen.
pub const TOAST: Duration = Duration::from_secs(8);

/// A moment, by the clock that never goes back and by the one on the wall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now {
    /// Since the console started.
    pub elapsed: Duration,
    pub unix_ms: u64,
}

/// The line to the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Not reached yet; why the last attempt failed.
    Connecting {
        since: Now,
        reason: Option<String>,
    },
    Live,
    /// What is shown is the last picture.
    Lost {
        since: Now,
        reason: String,
    },
}

/// How a plugin is, worst last; the order of the default sort is this one turned around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Disabled,
    Stopped,
    Running,
    Stopping,
    Starting,
    /// The core has no room to start it, which is no fault of its own.
    Deferred,
    Crashed,
    Hung,
    CrashLoop,
    Failed,
}

impl Condition {
    pub fn word(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Starting => "starting",
            Self::Deferred => "deferred",
            Self::Crashed => "crashed",
            Self::Hung => "HUNG",
            Self::CrashLoop => "CRASH-LOOP",
            Self::Failed => "FAILED",
        }
    }

    /// Whether somebody has to look at it.
    pub fn is_trouble(self) -> bool {
        self >= Self::Deferred
    }
}

/// One plugin: what the core last said, and what the console has seen of it.
#[derive(Clone, Debug, Default)]
pub struct Plugin {
    pub status: PluginStatus,
    /// Oldest first, at most [`HISTORY_MAX`]. A second that is left out was one without requests.
    pub history: VecDeque<Sample>,
    /// Requests/s by worker.
    pub worker_rates: Vec<f64>,
    pub last_restart_unix_ms: Option<u64>,
    /// Deaths within [`LOOP_WINDOW_MS`].
    pub deaths_unix_ms: VecDeque<u64>,
    /// Why the core counted its last end as a crash, where it had a reason of its own.
    pub fault: Option<String>,
    /// How it last crashed, as the trail has it: a core that began after it was given up did not see it end.
    pub trail_exit: Option<String>,
    /// Why the core last found that it does not answer.
    pub hang: Option<String>,
    /// The end of its present process's stderr.
    pub stderr: Vec<String>,
    /// The end of its stderr at its last death.
    pub last_words: Vec<String>,
}

impl Plugin {
    pub fn condition(&self) -> Condition {
        // Two within the window, or as many in a row as the core counts, which knows no window.
        let looping = self.deaths_unix_ms.len() >= 2 || self.status.failures >= 2;
        match self.status.state.as_str() {
            "failed" => Condition::Failed,
            "running" if self.status.health == "unresponsive" => Condition::Hung,
            "crashed" | "starting" | "running" if looping => Condition::CrashLoop,
            "crashed" => Condition::Crashed,
            "running" => Condition::Running,
            "starting" => Condition::Starting,
            "deferred" => Condition::Deferred,
            "stopping" => Condition::Stopping,
            _ if !self.status.enabled => Condition::Disabled,
            _ => Condition::Stopped,
        }
    }

    /// When the core last restarted it; what an earlier core did is no part of the count that stands beside it, but of
    /// what is to be known of a plugin that was given up.
    pub fn last_restart(&self) -> Option<u64> {
        let told = self.status.restarts > 0 || self.status.last_restart.is_some() || self.is_given_up();
        self.last_restart_unix_ms.filter(|_| told)
    }

    fn is_given_up(&self) -> bool {
        self.status.state == "failed"
    }

    /// Why it last ended and how: that the core killed it says nothing without the reason.
    pub fn last_end(&self) -> Option<String> {
        let exit = self.status.last_exit.as_ref().or(self.trail_exit.as_ref().filter(|_| self.is_given_up()));
        // The core says it in one where it killed the plugin.
        let fault =
            self.fault.as_ref().filter(|fault| exit.is_none_or(|exit| !exit.contains(fault.as_str())));
        let words: Vec<&str> = [fault, exit].into_iter().flatten().map(String::as_str).collect();
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// The condition's word, and that the operator does not want it to run where it does.
    pub fn state_words(&self) -> String {
        let word = self.condition().word();
        if self.runs_disabled() { format!("{word} (disabled)") } else { word.to_owned() }
    }

    /// Whether it runs, or is about to, although it is disabled.
    pub fn runs_disabled(&self) -> bool {
        !self.status.enabled
            && !matches!(self.condition(), Condition::Disabled | Condition::Stopped | Condition::Failed)
    }

    pub fn latest(&self) -> Sample {
        self.history.back().cloned().unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default)]
pub struct Worker {
    pub status: WorkerStatus,
    pub requests_per_s: f64,
    /// Requests/s, oldest first, at most [`HISTORY_MAX`].
    pub history: VecDeque<f64>,
}

/// One entry of the audit trail.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// As the database numbers it: it tells a repetition after a reconnect.
    pub id: u64,
    pub plugin: String,
    pub kind: String,
    pub unix_ms: u64,
    pub details: Value,
}

impl Event {
    /// Errors: `None` for what is no entry; the line is skipped.
    pub fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let details = match value.get("details") {
            // The column holds text; a daemon may hand it on as it is.
            Some(Value::String(text)) => serde_json::from_str(text).unwrap_or(Value::Null),
            Some(details) => details.clone(),
            None => Value::Null,
        };
        Some(Self {
            id: value.get("id")?.as_u64()?,
            plugin: clean(value.get("plugin_id")?.as_str()?),
            kind: clean(value.get("event_type")?.as_str()?),
            unix_ms: parse_time(value.get("timestamp")?.as_str()?)?,
            details,
        })
    }

    /// The details in words, one line: why first, long output last.
    pub fn text(&self) -> String {
        let Some(details) = self.details.as_object() else { return String::new() };
        let mut parts = [Map::new(), Map::new(), Map::new()];
        for (key, value) in details {
            let place = match key.as_str() {
                "exit" | "reason" | "error" => 0,
                "stderr" => 2,
                "core_dumped" if value == &Value::Bool(false) => continue,
                // `exit` has it in words.
                "exit_code" | "signal" if details.contains_key("exit") => continue,
                _ => 1,
            };
            parts[place].insert(key.clone(), value.clone());
        }
        let parts = parts.iter().map(fields).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(" ")
    }

    /// Everything of it in rows of at most `width` columns: what a row tells, where it is its first, and the words.
    pub fn rows(&self, width: usize) -> Vec<(String, String)> {
        let width = width.saturating_sub(EVENT_LABEL + 1).max(8);
        let mut told = vec![
            ("time".to_owned(), vec![format!("{} UTC", text::date_and_clock(self.unix_ms))]),
            ("plugin".to_owned(), vec![self.plugin.clone()]),
            ("event".to_owned(), vec![self.kind.clone()]),
        ];
        for (key, value) in self.details.as_object().into_iter().flatten() {
            let words = match value {
                Value::Null => continue,
                Value::Array(items) if items.is_empty() => continue,
                Value::Array(items) => items.iter().map(plain).collect(),
                Value::String(text) => text.lines().map(clean).collect(),
                value => vec![plain(value)],
            };
            told.push((clean(key), words));
        }
        // Long output last: what is short is read first.
        told.sort_by_key(|(key, _)| key == "stderr");
        let mut rows = Vec::new();
        for (key, lines) in told {
            let pieces = lines.iter().flat_map(|line| text::wrapped(line, width));
            let labels = std::iter::once(key).chain(std::iter::repeat(String::new()));
            rows.extend(labels.zip(pieces));
        }
        rows
    }
}

/// Columns of the names of an event's fields.
pub const EVENT_LABEL: usize = 14;

/// A string as it is, anything else as JSON; harmless.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        value => clean(&value.to_string()),
    }
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    Debug,
    Info,
    Warn,
    Error,
}

impl Level {
    pub fn word(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "debug" | "trace" => Self::Debug,
            "warn" | "warning" => Self::Warn,
            "error" | "fatal" | "critical" => Self::Error,
            _ => Self::Info,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    pub plugin: String,
    pub unix_ms: u64,
    pub level: Level,
    /// The message and the fields after it, one line.
    pub text: String,
    /// Lines that this one stands for, because they were too many to hold; 0 for a line of a log.
    pub gone: u64,
}

impl LogLine {
    /// A line of the plugin's log; one that is no JSON object is shown as it is.
    pub fn parse(plugin: &str, line: &str) -> Self {
        let Ok(Value::Object(mut object)) = serde_json::from_str(line) else {
            return Self {
                plugin: clean(plugin),
                unix_ms: 0,
                level: Level::Info,
                text: clean(shortened(line)),
                gone: 0,
            };
        };
        let mut take = |key: &str| match object.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let unix_ms = parse_time(&take("timestamp")).unwrap_or_default();
        let level = Level::from_word(&take("level"));
        let mut message = take("message");
        let about = take("plugin_id");
        if plugin == CORE {
            // Which part of the core speaks is seldom the question; about whom it speaks is.
            take("component");
            if !about.is_empty() {
                message = format!("{about}: {message}");
            }
        }
        if message == ACCESS
            && let Some((status, method, path, took)) = access(&object)
        {
            message = format!("{status} {method} {path} {took}");
            object.retain(|key, _| !["status", "method", "path", "duration_ms"].contains(&key.as_str()));
        }
        let message = shortened(&message);
        let rest = fields(&object);
        let (rest, gap) = (shortened(&rest), if rest.is_empty() { "" } else { "  " });
        Self {
            plugin: clean(plugin),
            unix_ms,
            level,
            text: format!("{}{gap}{rest}", clean(message)),
            gone: 0,
        }
    }
}

/// Columns of a log's times and levels.
pub const LOG_LABEL: usize = 15;
/// Columns that the later rows of a wrapped line leave free.
pub const LOG_INDENT: usize = 4;

impl LogLine {
    /// Rows that it takes where lines are wrapped at `width`; among several logs its plugin is named.
    pub fn rows(&self, width: usize, several: bool) -> usize {
        let named = if several { text::columns(&self.plugin) + 1 } else { 0 };
        let beyond = (LOG_LABEL + named + text::columns(&self.text)).saturating_sub(width);
        1 + beyond.div_ceil(width.saturating_sub(LOG_INDENT).max(1))
    }

    fn gone(count: u64, unix_ms: u64) -> Self {
        let text = format!("{count} lines that came while this was paused are not held");
        Self { gone: count, ..Self::mark("", unix_ms, &text) }
    }

    /// A remark of the console between the lines; no level hides it.
    pub fn mark(plugin: &str, unix_ms: u64, text: &str) -> Self {
        Self { plugin: clean(plugin), unix_ms, level: Level::Error, text: text.to_owned(), gone: 0 }
    }
}

/// What the core says of an answered request; there are many, and 80 columns are few.
const ACCESS: &str = "HTTP request handled";

fn access(object: &Map<String, Value>) -> Option<(u64, &str, &str, String)> {
    let took = object.get("duration_ms")?.as_f64()?;
    let took = latency((took * 1000.0) as u64);
    Some((
        object.get("status")?.as_u64()?,
        object.get("method")?.as_str()?,
        object.get("path")?.as_str()?,
        took,
    ))
}

fn shortened(text: &str) -> &str {
    text.char_indices().nth(LOG_LINE_CHARS_MAX).map_or(text, |(end, _)| &text[..end])
}

/// `key=value` pairs, cleaned, without those that say nothing.
fn fields(object: &Map<String, Value>) -> String {
    let mut out = String::new();
    for (key, value) in object {
        let value = match value {
            Value::Null => continue,
            Value::String(text) if text.is_empty() => continue,
            Value::Array(items) if items.is_empty() => continue,
            Value::String(text) if text.contains(' ') => format!("{text:?}").replace("\\u{1b}", "\u{1b}"),
            Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&clean(key));
        out.push('=');
        out.push_str(&clean(&value));
    }
    out
}

/// Where the operator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Screen {
    Plugins,
    Detail(String),
    Logs,
    /// Of one plugin, or of all.
    Events(Option<String>),
    /// One entry of the trail, whole, by its number.
    Event(u64),
    Workers,
}

/// A line being typed at the bottom.
#[derive(Clone, Debug)]
pub enum Prompt {
    Filter(Input),
    Search(Input),
    Command(Input),
}

impl Prompt {
    pub fn input(&self) -> &Input {
        match self {
            Self::Filter(input) | Self::Search(input) | Self::Command(input) => input,
        }
    }
}

/// What can be done to a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Start,
    Stop,
    Restart,
    Enable,
    Disable,
    ResetFailed,
}

impl Verb {
    pub const ALL: [Self; 6] =
        [Self::Restart, Self::Start, Self::Stop, Self::Enable, Self::Disable, Self::ResetFailed];

    /// The word on the command line and in the path.
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::ResetFailed => "reset-failed",
        }
    }

    pub fn key(self) -> char {
        match self {
            Self::Start => 's',
            Self::Stop => 'x',
            Self::Restart => 'r',
            Self::Enable => '+',
            Self::Disable => '-',
            Self::ResetFailed => 'f',
        }
    }

    /// What it means for this plugin, for the confirmation.
    pub fn meaning(self, plugin: &Plugin) -> &'static str {
        match self {
            Self::Start => "It runs until it is stopped or the core ends.",
            Self::Stop => "It finishes what it has in flight, then ends; clients get 503.",
            Self::Restart => "It finishes what it has in flight, ends, and starts anew.",
            Self::Enable => "It starts now and whenever the core does.",
            Self::Disable => "It stops, and stays stopped when the core starts again.",
            Self::ResetFailed if plugin.condition() != Condition::Failed => {
                "Its crashes are forgotten; it goes on as it is."
            }
            Self::ResetFailed if plugin.status.enabled => "Its crashes are forgotten, and it starts now.",
            Self::ResetFailed => "Its crashes are forgotten; it is disabled and stays stopped.",
        }
    }
}

/// A question that waits for `y`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    pub verb: Verb,
    pub plugin: String,
}

/// The outcome of an action, or a complaint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toast {
    pub text: String,
    /// The plugin that the text names; where room is short it is cut and not the outcome.
    pub id: String,
    pub good: bool,
    pub until: Duration,
}

/// Lines of one plugin's log or of several, merged as they come.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    /// Counts up when other sources are followed: lines of former ones are dropped.
    pub generation: u64,
    pub sources: Vec<String>,
    pub lines: VecDeque<LogLine>,
    /// Lines that went out of `lines` at the front.
    pub forgotten: u64,
    /// Number of the last line shown, counted from the first ever; `None` follows the end.
    pub bottom: Option<u64>,
    pub level: Level,
    pub wrap: bool,
    pub search: String,
    /// Why a source gives nothing, by plugin.
    pub complaints: BTreeMap<String, String>,
}

impl Logs {
    /// Lines that the level lets through, with their numbers, up to the bottom.
    pub fn shown(&self) -> impl DoubleEndedIterator<Item = (u64, &LogLine)> {
        let bottom = self.bottom.unwrap_or(u64::MAX);
        (self.forgotten..)
            .zip(&self.lines)
            .collect::<Vec<_>>()
            .into_iter()
            .filter(move |(number, line)| *number <= bottom && line.level >= self.level)
    }

    /// Adds a line where its time belongs: each of several sources begins with a past of its own.
    pub fn add(&mut self, line: LogLine) {
        let newer = match self.sources.len() > 1 && line.unix_ms > 0 {
            true => self.lines.iter().rev().take_while(|known| known.unix_ms > line.unix_ms).count(),
            false => 0,
        };
        let at = self.lines.len() - newer;
        if let Some(bottom) = &mut self.bottom
            && self.forgotten + (at as u64) <= *bottom
        {
            *bottom += 1;
        }
        self.lines.insert(at, line);
    }

    /// Keeps to [`LOG_LINES_MAX`]. Of a paused view the last `window` lines stay, which somebody reads: what goes
    /// then is what comes right below, and a line says how much that was.
    pub fn trim(&mut self, window: usize) {
        while self.lines.len() > LOG_LINES_MAX {
            let below = match self.bottom {
                Some(bottom) => (bottom + 1).saturating_sub(self.forgotten) as usize,
                None => usize::MAX,
            };
            let read = self.lines.iter().take(below).filter(|line| line.level >= self.level);
            if below.saturating_add(1) >= self.lines.len() || read.take(window + 1).count() > window {
                self.lines.pop_front();
                self.forgotten += 1;
                continue;
            }
            let Some(next) = self.lines.remove(below) else { return };
            if next.gone > 0 {
                // It stood there already: one more goes.
                self.lines.remove(below);
                self.lines.insert(below, LogLine::gone(next.gone + 1, next.unix_ms));
            } else {
                self.lines.remove(below);
                self.lines.insert(below, LogLine::gone(2, next.unix_ms));
            }
        }
    }

    /// How many of these lines have room on a screen, at least one.
    pub fn fitting<'a>(
        &self,
        lines: impl Iterator<Item = &'a LogLine>,
        (columns, rows): (u16, usize),
    ) -> usize {
        let several = self.sources.len() > 1;
        let mut used = 0;
        let fits = lines.take_while(|line| {
            used += if self.wrap { line.rows(columns.into(), several) } else { 1 };
            used <= rows
        });
        fits.count().max(1)
    }

    pub fn matches(&self, line: &LogLine) -> bool {
        !self.search.is_empty() && line.text.to_lowercase().contains(&self.search.to_lowercase())
    }
}

/// Who sorts, and which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sort {
    pub column: Column,
    pub descending: bool,
}

/// What the sparkline shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spark {
    #[default]
    Requests,
    P99,
}

/// Everything.
#[derive(Clone, Debug)]
pub struct Model {
    pub now: Now,
    pub link: Link,
    pub replay: bool,
    pub readonly: bool,
    /// Whether clicks come; for the help alone.
    pub mouse: bool,
    /// How a recording ended, once it has.
    pub ended: Option<String>,
    /// When the last snapshot came.
    pub snapshot_at: Now,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),

    /// The last snapshot without its plugins and workers; `None` before the first.
    pub core: Option<Snapshot>,
    pub plugins: BTreeMap<String, Plugin>,
    /// Told before the snapshot that it belongs to.
    pub past: BTreeMap<String, History>,
    pub workers: Vec<Worker>,
    /// Oldest first, at most [`EVENTS_MAX`].
    pub events: VecDeque<Event>,
    /// Why there are no events, when there are none to be had.
    pub events_complaint: Option<String>,
    /// The plugin on the screen whose own events were asked for.
    pub events_asked: Option<String>,

    /// Never empty; the last one is shown.
    pub screens: Vec<Screen>,
    pub prompt: Option<Prompt>,
    pub confirm: Option<Confirm>,
    /// Rows of it that are scrolled off, while it is open.
    pub help: Option<u16>,
    pub toast: Option<Toast>,
    /// Orders on their way.
    pub pending: Vec<(Verb, String)>,
    pub sort: Sort,
    /// Of the plugins.
    pub filter: String,
    /// Of the events: words that a line has to hold.
    pub events_filter: String,
    /// Id of the plugin under the cursor.
    pub selected: Option<String>,
    pub marked: BTreeSet<String>,
    /// Rows scrolled off the top of the plugin list.
    pub scroll: usize,
    pub spark: Spark,
    pub logs: Logs,
    /// Rows of the plugin on the screen that are scrolled off the top.
    pub detail_down: usize,
    /// Workers scrolled off the top.
    pub workers_down: usize,
    /// The event under the cursor, counted up from the newest that is shown.
    pub event_at: usize,
    /// Entries scrolled up from the newest event.
    pub events_up: usize,
    /// Rows of an open event that are scrolled off.
    pub event_down: usize,
    /// Why what comes is no longer recorded, where it was to be.
    pub unrecorded: Option<String>,
}

impl Model {
    pub fn new(now: Now, size: (u16, u16), readonly: bool, replay: bool) -> Self {
        Self {
            now,
            link: Link::Connecting { since: now, reason: None },
            replay,
            readonly: readonly || replay,
            mouse: false,
            ended: None,
            snapshot_at: now,
            size,
            core: None,
            plugins: BTreeMap::new(),
            past: BTreeMap::new(),
            workers: Vec::new(),
            events: VecDeque::new(),
            events_complaint: None,
            events_asked: None,
            screens: vec![Screen::Plugins],
            prompt: None,
            confirm: None,
            help: None,
            toast: None,
            pending: Vec::new(),
            sort: Sort { column: Column::State, descending: true },
            filter: String::new(),
            events_filter: String::new(),
            selected: None,
            marked: BTreeSet::new(),
            scroll: 0,
            spark: Spark::default(),
            logs: Logs { level: Level::Info, ..Logs::default() },
            detail_down: 0,
            workers_down: 0,
            event_at: 0,
            events_up: 0,
            event_down: 0,
            unrecorded: None,
        }
    }

    pub fn screen(&self) -> &Screen {
        self.screens.last().unwrap_or(&Screen::Plugins)
    }

    /// Whether the terminal has no room for a picture: nobody sees what a key would do.
    pub fn is_too_small(&self) -> bool {
        self.size.0 < SIZE_MIN.0 || self.size.1 < SIZE_MIN.1
    }

    /// Whether the line is open but nothing has come for longer than it should take.
    pub fn is_stale(&self) -> bool {
        let silence = self.now.elapsed.saturating_sub(self.snapshot_at.elapsed);
        self.link == Link::Live && !self.replay && silence > STALE_AFTER
    }

    /// Why the screen shows no event of a plugin or of all.
    pub fn why_no_events(&self) -> String {
        match &self.events_complaint {
            Some(complaint) => complaint.clone(),
            // Older ones may be in the trail, only not here.
            None if self.events.len() >= EVENTS_BACKLOG => {
                format!("None among the newest {}.", self.events.len())
            }
            None => "No events yet.".into(),
        }
    }

    /// The plugin that keys act on.
    pub fn target(&self) -> Option<&str> {
        match self.screen() {
            Screen::Plugins => self.selected.as_deref(),
            Screen::Detail(id) | Screen::Events(Some(id)) => Some(id),
            Screen::Event(id) => self.event(*id).map(|event| event.plugin.as_str()),
            Screen::Logs if self.logs.sources.len() == 1 => Some(&self.logs.sources[0]),
            Screen::Logs | Screen::Events(None) | Screen::Workers => None,
        }
    }

    /// The filter of the screen, where it has one.
    pub fn filter_of_screen(&self) -> Option<&String> {
        match self.screen() {
            Screen::Plugins => Some(&self.filter),
            Screen::Events(_) => Some(&self.events_filter),
            Screen::Detail(_) | Screen::Event(_) | Screen::Logs | Screen::Workers => None,
        }
    }

    pub fn set_filter(&mut self, words: String) {
        match self.screen() {
            Screen::Events(_) => self.events_filter = words,
            Screen::Plugins | Screen::Detail(_) | Screen::Event(_) | Screen::Logs | Screen::Workers => {
                let is_new = self.filter.trim() != words.trim();
                self.filter = words;
                if is_new {
                    self.select_best();
                }
            }
        }
    }

    /// Moves the cursor to the plugin that the filter's words fit best; it stays on one that none fits better.
    /// The rows keep their order.
    fn select_best(&mut self) {
        let Some(mut filter) = Filter::new(&self.filter).filter(|filter| !filter.inverse) else { return };
        let fits: Vec<(Fit, bool, String)> = self
            .rows()
            .into_iter()
            .filter_map(|plugin| {
                let id = plugin.status.id.clone();
                Some((filter.fit(plugin)?, self.selected.as_ref() != Some(&id), id))
            })
            .collect();
        // The first of equals, which is the topmost.
        if let Some((_, _, id)) = fits.into_iter().min_by_key(|(fit, is_other, _)| (*fit, *is_other)) {
            self.selected = Some(id);
        }
    }

    /// Plugins that the filter lets through, in the order of the sort.
    pub fn rows(&self) -> Vec<&Plugin> {
        let mut rows: Vec<&Plugin> = match Filter::new(&self.filter) {
            Some(mut filter) => self.plugins.values().filter(|plugin| filter.lets_through(plugin)).collect(),
            None => self.plugins.values().collect(),
        };
        // Stable, over a map in the order of ids: equal ones do not jump about.
        rows.sort_by(|a, b| {
            let order = self.sort.column.compare(a, b);
            if self.sort.descending { order.reverse() } else { order }
        });
        rows
    }

    /// What is wrong, in rows of the screen's width: of each troubled condition its first plugin, the worst on top, so
    /// that one that was given up days ago does not hide one that crashes now.
    ///
    /// Bounds: as many rows as leave room for the list; one in a screen of less than twelve.
    pub fn alarms(&self) -> Vec<String> {
        let mut troubled = BTreeMap::<Condition, Vec<&Plugin>>::new();
        for plugin in self.plugins.values() {
            let condition = plugin.condition();
            if condition.is_trouble() {
                troubled.entry(condition).or_default().push(plugin);
            }
        }
        let most: usize = match self.size.1 {
            ..12 => 1,
            12..20 => 4,
            _ => 6,
        };
        let all: usize = troubled.values().map(Vec::len).sum();
        let told: Vec<(&Plugin, usize)> = match (troubled.values().next_back(), most) {
            (Some(worst), 1) => vec![(worst[0], all - 1)],
            _ => troubled.values().rev().map(|plugins| (plugins[0], plugins.len() - 1)).collect(),
        };
        let width = usize::from(self.size.0);
        let mut spare = most.saturating_sub(told.len());
        let mut rows = Vec::new();
        for (plugin, others) in told {
            let own = text::wrapped_at_most(&self.alarm(plugin, others), width, 1 + spare.min(1));
            spare -= own.len() - 1;
            rows.extend(own);
        }
        rows
    }

    /// What is wrong with one plugin, and how many more are in the same condition, in one line.
    fn alarm(&self, plugin: &Plugin, others: usize) -> String {
        let condition = plugin.condition();
        let id = text::shortened_id(&plugin.status.id, (usize::from(self.size.0) / 2).max(12));
        let mut words = format!("▲ {id} {}", condition.word());
        if others > 0 {
            words.push_str(&format!(" (+{others} more)"));
        }
        let deaths = plugin.deaths_unix_ms.len();
        let told = match condition {
            // How an earlier process ended is no part of it.
            Condition::Hung => vec![plugin.hang.as_deref().unwrap_or("no answer to pings").to_owned()],
            // Why comes first: what follows is the same for each.
            Condition::Failed => {
                let end = plugin.last_end().map(|end| format!("{end}; ")).unwrap_or_default();
                vec![format!("{end}given up, restart it when mended")]
            }
            _ => {
                let loops = match condition {
                    Condition::CrashLoop if deaths >= 2 => Some(format!("{deaths} crashes in 2 min")),
                    Condition::CrashLoop => Some(format!("{} crashes in a row", plugin.status.failures)),
                    _ => None,
                };
                [loops, self.countdown(plugin), plugin.last_end()].into_iter().flatten().collect()
            }
        };
        if !told.is_empty() {
            words.push_str(&format!(": {}", told.join(", ")));
        }
        words
    }

    /// When the core means to start it, while it waits.
    pub fn countdown(&self, plugin: &Plugin) -> Option<String> {
        columns::next_start(plugin, self.now.unix_ms).filter(|_| self.link == Link::Live)
    }

    /// Rows above the list of plugins: two of header, the alarms where there are some, the column titles.
    pub fn list_top(&self) -> u16 {
        3 + self.alarms().len() as u16
    }

    /// The columns of the list of plugins with their widths.
    pub fn list_columns(&self, width: u16) -> Vec<(Column, u16)> {
        let rows = self.rows();
        let id_width = rows.iter().map(|plugin| plugin.status.id.chars().count()).max().unwrap_or(0) as u16;
        columns::fit(width.saturating_sub(columns::GUTTER), id_width)
    }

    /// Rows of the screen above and below what it shows.
    pub fn hidden(&self) -> (usize, usize) {
        let of = |rows: usize, above: usize, window: usize| {
            let above = above.min(rows.saturating_sub(window));
            (above, rows.saturating_sub(above + window))
        };
        match self.screen() {
            Screen::Plugins => of(self.rows().len(), self.scroll, self.list_height()),
            Screen::Detail(id) => {
                let window = self.window();
                let rows = Sheet::of(self, id, self.size.0, window as u16).map_or(0, |sheet| sheet.rows());
                of(rows, self.detail_down, window)
            }
            Screen::Events(_) => {
                let (below, above) = of(self.events_shown().len(), self.events_up, self.window());
                (above, below)
            }
            Screen::Event(id) => {
                let rows = self.event(*id).map_or(0, |event| event.rows(self.size.0.into()).len());
                of(rows, self.event_down, self.window())
            }
            // These say by themselves how much there is.
            Screen::Logs | Screen::Workers => (0, 0),
        }
    }

    /// Rows that the list of plugins has; one is the footer's.
    pub fn list_height(&self) -> usize {
        usize::from(self.size.1.saturating_sub(self.list_top() + 1)).max(1)
    }

    /// Rows that a list below the header has; one is the footer's.
    pub fn window(&self) -> usize {
        usize::from(self.size.1.saturating_sub(3)).max(1)
    }

    pub fn event(&self, id: u64) -> Option<&Event> {
        self.events.iter().rev().find(|event| event.id == id)
    }

    /// Events of the screen, oldest first.
    pub fn events_shown(&self) -> Vec<&Event> {
        self.events.iter().filter(|event| self.shows(event)).collect()
    }

    /// Whether the list of events lets this one through.
    pub fn shows(&self, event: &Event) -> bool {
        // Under an open event the list stays what it was.
        let list = self.screens.iter().rev().find(|screen| matches!(screen, Screen::Events(_)));
        if let Some(Screen::Events(Some(only))) = list
            && event.plugin != *only
        {
            return false;
        }
        let (inverse, words) = match self.events_filter.strip_prefix('!') {
            Some(rest) => (true, rest.trim().to_lowercase()),
            None => (false, self.events_filter.trim().to_lowercase()),
        };
        words.is_empty()
            || inverse
                != format!("{} {} {}", event.plugin, event.kind, event.text()).to_lowercase().contains(&words)
    }
}

/// How well a plugin fits the words of the filter, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    WholeId,
    BeginOfId,
    PartOfId,
    /// Its name or its state holds them.
    Beside,
    /// Its id has the letters, with others between them.
    Letters,
}

/// The words after `/`: fuzzy over the id, whole over name and state; a leading `!` turns them around.
struct Filter {
    inverse: bool,
    /// Small letters.
    words: String,
    fuzzy: Pattern,
    /// Scattered over a name of several words, almost any letters can be found.
    whole: Pattern,
    matcher: Matcher,
}

impl Filter {
    fn new(words: &str) -> Option<Self> {
        let (inverse, words) = match words.trim().strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, words.trim()),
        };
        if words.is_empty() {
            return None;
        }
        let (case, normalization) = (CaseMatching::Ignore, Normalization::Smart);
        let fuzzy = Pattern::parse(words, case, normalization);
        let whole = Pattern::new(words, case, normalization, AtomKind::Substring);
        let matcher = Matcher::new(Config::DEFAULT);
        Some(Self { inverse, words: words.to_lowercase(), fuzzy, whole, matcher })
    }

    /// `None` where the words do not fit, whichever way the filter is turned.
    fn fit(&mut self, plugin: &Plugin) -> Option<Fit> {
        let id = plugin.status.id.to_lowercase();
        match id.find(&self.words) {
            Some(0) if id.len() == self.words.len() => return Some(Fit::WholeId),
            Some(0) => return Some(Fit::BeginOfId),
            Some(_) => return Some(Fit::PartOfId),
            None => {}
        }
        let mut buffer = Vec::new();
        let mut found = |pattern: &Pattern, text: &str| {
            buffer.clear();
            pattern.score(Utf32Str::new(text, &mut buffer), &mut self.matcher).is_some()
        };
        if found(&self.whole, &plugin.state_words()) || found(&self.whole, &plugin.status.name) {
            return Some(Fit::Beside);
        }
        found(&self.fuzzy, &plugin.status.id).then_some(Fit::Letters)
    }

    fn lets_through(&mut self, plugin: &Plugin) -> bool {
        self.fit(plugin).is_some() != self.inverse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_of_any_kind_become_one_harmless_line() {
        let line = r#"{"timestamp":"2026-01-01T00:00:01.000Z","level":"error","plugin_id":"acme","message":"a\u001b[2Jb","status":500,"path":"/x y","none":null}"#;
        let parsed = LogLine::parse("acme", line);
        assert_eq!(parsed.text, "a^[[2Jb  path=\"/x y\" status=500");
        assert_eq!((parsed.level, parsed.unix_ms), (Level::Error, 1_767_225_601_000));
        let access = r#"{"level":"warn","message":"HTTP request handled","method":"GET","path":"/\u001b[2J","status":503,"duration_ms":2.432,"request_id":"r1"}"#;
        assert_eq!(LogLine::parse("acme", access).text, "503 GET /^[[2J 2.4ms  request_id=r1");
        let endless = LogLine::parse("acme", &"ü".repeat(LOG_LINE_CHARS_MAX + 1));
        assert_eq!(endless.text.chars().count(), LOG_LINE_CHARS_MAX);
        let raw = LogLine::parse("acme", "no json \x07");
        assert_eq!((raw.text.as_str(), raw.level), ("no json ^G", Level::Info));
    }

    #[test]
    fn events_are_read_with_details_as_object_or_as_text() {
        for details in [r#"{"exit":"exit code 1"}"#, r#""{\"exit\":\"exit code 1\"}""#] {
            let line = format!(
                r#"{{"id":7,"plugin_id":"acme","event_type":"crashed","timestamp":"1970-01-01T00:00:01.000Z","details":{details}}}"#
            );
            let event = Event::parse(&line).expect("an event");
            assert_eq!((event.id, event.unix_ms, event.text().as_str()), (7, 1000, "exit=\"exit code 1\""));
        }
        let details = serde_json::json!({
            "core_dumped": false, "stderr": ["x"], "failures": 1, "exit": "exit code 1", "exit_code": 1, "in_flight": 2,
        });
        let event = Event { details, ..Event::default() };
        assert_eq!(event.text(), "exit=\"exit code 1\" failures=1 in_flight=2 stderr=[\"x\"]");
        assert_eq!(Event::parse("{}"), None);
    }
}
