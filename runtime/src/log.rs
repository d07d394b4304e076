//! The one thread that writes log files, and the cheap handle that everybody else logs through.
//!
//! A line is made by whoever has something to say and handed over through a bounded queue.
//! When the queue is full the line is dropped and counted, and the count is logged once there is room:
//! a full or slow disk never holds up a request, the supervisor or a plugin.
//!
//! Own code rather than `tracing`: the contract fixes the keys and their order, each plugin has its own rotated file,
//! and a drop has to be counted; what would be left of a subscriber is its macros.

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use toru_plugin_api::json::write_string;
use toru_plugin_api::time::{as_str, rfc3339_millis};
use toru_supervisor::Level;

use crate::config::LogConfig;

/// Lines that may wait for the disk.
const QUEUE_LINES_MAX: usize = 8192;
/// A file that could not be opened is tried again after this.
const REOPEN_AFTER: Duration = Duration::from_secs(5);
/// Between reports of lines that were lost, while more are.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between two looks whether a file that is written still has a name: a look is a system call.
const LOOK_EVERY: Duration = Duration::from_secs(1);

enum Entry {
    Core {
        line: Vec<u8>,
        human: Option<String>,
    },
    Plugin {
        id: Arc<str>,
        line: Vec<u8>,
    },
    /// Nothing to write: look at what was set meanwhile.
    Wake,
    Stop,
}

/// Logs from any thread; never blocks.
#[derive(Clone)]
pub struct Logger {
    queue: Sender<Entry>,
    /// Lines in the queue.
    waiting: Arc<AtomicUsize>,
    settings: Arc<Settings>,
    dropped: Arc<AtomicU64>,
}

/// What may change while the writer writes. Set, not sent: a queue that a dead disk has filled holds up no signal.
struct Settings {
    /// From which level on a line is written, and shown on standard error; as [`Level`]'s numbers.
    written: AtomicU8,
    echoed: AtomicU8,
    rotate_bytes: AtomicU64,
    rotate_keep: AtomicU32,
    /// Somebody has moved the files away.
    reopen: AtomicBool,
}

/// How long what is queued may take to be written at the end.
const FINISH_PATIENCE: Duration = Duration::from_secs(5);

/// Joins the writer; dropping it without [`Writer::finish`] leaves the thread to the process's end.
pub struct Writer {
    queue: Sender<Entry>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Writes what is queued, and ends; a disk that does not take it within [`FINISH_PATIENCE`] does not get it.
    pub fn finish(self) {
        let until = Instant::now() + FINISH_PATIENCE;
        let _ = self.queue.send(Entry::Stop);
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts the writer's thread.
///
/// Files: `plugin-supervisor.log` and `plugins/<id>.log` in `folder`, each line one JSON object.
/// A folder that cannot be made or written is told once on standard error, and the lines are counted as dropped.
pub fn start(folder: &Path, config: &LogConfig) -> io::Result<(Logger, Writer)> {
    // Plugins are told where their logs are, and log watchers watch the folder, before the first line is there. Where it cannot
    // be made, the first line says why.
    let _ = fs::create_dir_all(folder.join("plugins"));
    // Bounded by a count of its own: a bounded channel would take half a megabyte for places that are empty.
    let (queue, entries) = channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let dropped = Arc::new(AtomicU64::new(0));
    let settings = Arc::new(Settings {
        written: AtomicU8::new(config.level as u8),
        echoed: AtomicU8::new(config.echo as u8),
        rotate_bytes: AtomicU64::new(config.rotate_bytes),
        rotate_keep: AtomicU32::new(config.rotate_keep),
        reopen: AtomicBool::new(false),
    });
    let files = Files {
        folder: folder.to_owned(),
        settings: settings.clone(),
        open: HashMap::new(),
        complained: false,
        dropped: dropped.clone(),
    };
    let counters = (waiting.clone(), dropped.clone());
    let thread = std::thread::Builder::new()
        .name("toru-log".into())
        .spawn(move || write_entries(&entries, files, &counters.0, &counters.1))?;
    Ok((Logger { queue: queue.clone(), waiting, settings, dropped }, Writer { queue, thread }))
}

/// Where the core's own log is.
pub fn core_log_path(folder: &Path) -> PathBuf {
    folder.join("plugin-supervisor.log")
}

/// Where the log of a plugin is.
pub fn plugin_log_path(folder: &Path, id: &str) -> PathBuf {
    folder.join("plugins").join(format!("{id}.log"))
}

/// Where a log is once it has been rotated so many times.
pub fn rotated_path(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

impl Logger {
    /// Lines that were lost because the disk was too slow or full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub fn enabled(&self, level: Level) -> bool {
        level as u8 >= self.settings.written.load(Ordering::Relaxed)
    }

    /// A line of the core's log: `component` says which part speaks.
    pub fn core(
        &self,
        level: Level,
        component: &str,
        message: &str,
        plugin_id: Option<&str>,
        fields: &Map<String, Value>,
    ) {
        if self.enabled(level) {
            self.core_line(level, component, message, plugin_id, fields);
        }
    }

    /// A plugin's figures of an interval, which the setting of that interval decides on and no level.
    pub fn summary(&self, plugin_id: &str, fields: &Map<String, Value>) {
        self.core_line(Level::Info, "plugin_supervisor", "Plugin summary", Some(plugin_id), fields);
    }

    fn core_line(
        &self,
        level: Level,
        component: &str,
        message: &str,
        plugin_id: Option<&str>,
        fields: &Map<String, Value>,
    ) {
        let stamp = rfc3339_millis(unix_ms());
        let mut line = Vec::with_capacity(160);
        open_line(&mut line, as_str(&stamp), level.word());
        text_field(&mut line, "component", component);
        text_field(&mut line, "message", message);
        if let Some(id) = plugin_id {
            text_field(&mut line, "plugin_id", id);
        }
        more_fields(&mut line, fields, &["timestamp", "level", "component", "message", "plugin_id"]);
        close_line(&mut line);
        let human = (level as u8 >= self.settings.echoed.load(Ordering::Relaxed)).then(|| {
            let mut human = format!("{} {:5} {component}: {message}", as_str(&stamp), level.word());
            if let Some(id) = plugin_id {
                human.push_str(&format!(" [{id}]"));
            }
            for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                human.push_str(&format!(" {key}={value}"));
            }
            human
        });
        self.hand_over(Entry::Core { line, human });
    }

    /// A line of a plugin's log. `fields` is JSON text of an object, or of nothing.
    pub fn plugin(&self, id: &Arc<str>, level: Level, message: &str, fields: Option<&Map<String, Value>>) {
        self.plugin_line(id, level, message, 0, |line| {
            if let Some(fields) = fields {
                more_fields(line, fields, &["timestamp", "level", "plugin_id", "message"]);
            }
        });
    }

    /// A line of a plugin's log with fields in the plugin's own text, none of which has a name of ours.
    pub fn plugin_json(&self, id: &Arc<str>, level: Level, message: &str, fields: &[(String, &RawValue)]) {
        self.plugin_line(id, level, message, 0, |line| {
            for (name, value) in fields {
                line.push(b',');
                write_string(line, name);
                line.push(b':');
                line.extend_from_slice(value.get().as_bytes());
            }
        });
    }

    /// An access line: the message and keys that log watchers look for. Whether one is wanted says `log.access`, not its
    /// level.
    pub fn access(
        &self,
        id: &Arc<str>,
        request_id: &str,
        method: &str,
        path: &str,
        status: u16,
        duration: Duration,
    ) {
        let level = if status >= 500 { Level::Warn } else { Level::Info };
        self.write_plugin_line(id, level, "HTTP request handled", 64 + path.len(), |line| {
            text_field(line, "method", method);
            text_field(line, "path", path);
            let micros = duration.as_micros();
            let _ =
                write!(line, ",\"status\":{status},\"duration_ms\":{}.{:03}", micros / 1000, micros % 1000);
            text_field(line, "request_id", request_id);
        });
    }

    /// A line of a plugin's log; `add` appends what comes behind the message, `room` bytes of it without growing.
    fn plugin_line(
        &self,
        id: &Arc<str>,
        level: Level,
        message: &str,
        room: usize,
        add: impl FnOnce(&mut Vec<u8>),
    ) {
        if self.enabled(level) {
            self.write_plugin_line(id, level, message, room, add);
        }
    }

    fn write_plugin_line(
        &self,
        id: &Arc<str>,
        level: Level,
        message: &str,
        room: usize,
        add: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut line = Vec::with_capacity(128 + message.len() + room);
        open_line(&mut line, as_str(&rfc3339_millis(unix_ms())), level.word());
        text_field(&mut line, "plugin_id", id);
        text_field(&mut line, "message", message);
        add(&mut line);
        close_line(&mut line);
        self.hand_over(Entry::Plugin { id: id.clone(), line });
    }

    /// Closes and opens every file, after somebody moved them away.
    pub fn reopen(&self) {
        self.settings.reopen.store(true, Ordering::Relaxed);
        let _ = self.queue.send(Entry::Wake);
    }

    /// Goes by these settings from now on.
    pub fn configure(&self, config: &LogConfig) {
        self.settings.written.store(config.level as u8, Ordering::Relaxed);
        self.settings.echoed.store(config.echo as u8, Ordering::Relaxed);
        self.settings.rotate_bytes.store(config.rotate_bytes, Ordering::Relaxed);
        self.settings.rotate_keep.store(config.rotate_keep, Ordering::Relaxed);
    }

    fn hand_over(&self, entry: Entry) {
        let is_full = self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE_LINES_MAX;
        if is_full || self.queue.send(entry).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A plugin's log as all who write to it share it.
#[derive(Debug)]
pub struct PluginLog {
    pub id: Arc<str>,
    /// Lines that were too many and so are not in it; those of a second that is not over are still to be added.
    pub dropped: AtomicU64,
}

impl PluginLog {
    pub fn new(id: &str) -> Self {
        Self { id: id.into(), dropped: AtomicU64::new(0) }
    }
}

/// Lines of one plugin that are logged in a second, from each place they come from; a flood beyond it is counted instead.
const PLUGIN_LINES_PER_SECOND: u32 = 1000;

/// How much a plugin may still log in this second. Each thread that takes lines from plugins has its own.
#[derive(Debug, Default)]
pub struct LineBudget {
    since: Cell<Option<Instant>>,
    lines: Cell<u32>,
    dropped: Cell<u64>,
}

impl LineBudget {
    /// Whether one more line may be logged; says how many were not, once a new second begins.
    pub fn take(&self, logger: &Logger, log: &PluginLog) -> bool {
        let now = Instant::now();
        if self.since.get().is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            self.since.set(Some(now));
            self.lines.set(0);
            self.account(logger, log, true);
        }
        if self.lines.get() == PLUGIN_LINES_PER_SECOND {
            self.dropped.set(self.dropped.get() + 1);
            return false;
        }
        self.lines.set(self.lines.get() + 1);
        true
    }

    /// Whether the last line was the first that was not logged of those that are not told of.
    pub fn begins_to_drop(&self) -> bool {
        self.dropped.get() == 1
    }

    /// Says how many lines were not logged, if any, once their second is over or there will be no more: `ended`.
    pub fn account(&self, logger: &Logger, log: &PluginLog, ended: bool) {
        let is_over = || self.since.get().is_none_or(|since| since.elapsed() >= Duration::from_secs(1));
        if self.dropped.get() > 0 && (ended || is_over()) {
            let dropped = self.dropped.take();
            log.dropped.fetch_add(dropped, Ordering::Relaxed);
            let fields = json!({ "dropped": dropped });
            logger.plugin(&log.id, Level::Warn, "Output lines dropped", fields.as_object());
        }
    }
}

fn open_line(line: &mut Vec<u8>, timestamp: &str, level: &str) {
    line.extend_from_slice(b"{\"timestamp\":\"");
    line.extend_from_slice(timestamp.as_bytes());
    line.extend_from_slice(b"\",\"level\":\"");
    line.extend_from_slice(level.as_bytes());
    line.push(b'"');
}

fn text_field(line: &mut Vec<u8>, key: &str, value: &str) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(key.as_bytes());
    line.extend_from_slice(b"\":");
    write_string(line, value);
}

/// Appends what is not null and has no name that is `taken`: the process first, of which such a line mostly tells.
fn more_fields(line: &mut Vec<u8>, fields: &Map<String, Value>, taken: &[&str]) {
    let pid = fields.get_key_value("pid").into_iter();
    let others = fields.iter().filter(|(key, _)| *key != "pid");
    for (key, value) in
        pid.chain(others).filter(|(key, value)| !value.is_null() && !taken.contains(&key.as_str()))
    {
        line.push(b',');
        write_string(line, key);
        line.push(b':');
        // Writing a Value into a Vec cannot fail: its keys are strings and a Vec takes every write.
        let _ = serde_json::to_writer(&mut *line, value);
    }
}

fn close_line(line: &mut Vec<u8>) {
    line.extend_from_slice(b"}\n");
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

// ---- the writer's side ----

/// Shows a line on standard error, unless nobody takes what is there already: whoever stopped reading must not hold up the
/// files.
///
/// Bounds: cut at what a pipe that has any room takes at once.
fn show(line: &str) {
    const BYTES_MAX: usize = 4096 - "…\n".len();
    let stderr = io::stderr();
    let mut poll = [PollFd::new(&stderr, PollFlags::OUT)];
    let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
    if polled.is_ok() && poll[0].revents().contains(PollFlags::OUT) {
        let (shown, end) = match line.len() > BYTES_MAX {
            true => (&line[..line.floor_char_boundary(BYTES_MAX)], "…\n"),
            false => (line, "\n"),
        };
        // In one piece: each by itself could be one too many.
        let _ = stderr.lock().write_all([shown, end].concat().as_bytes());
    }
}

struct Files {
    folder: PathBuf,
    settings: Arc<Settings>,
    /// By name: empty for the core's own file.
    open: HashMap<Arc<str>, Slot>,
    complained: bool,
    dropped: Arc<AtomicU64>,
}

enum Slot {
    Open {
        file: File,
        bytes: u64,
        /// When it was last seen to have a name.
        seen: Instant,
    },
    Broken {
        since: Instant,
    },
}

fn write_entries(entries: &Receiver<Entry>, mut files: Files, waiting: &AtomicUsize, dropped: &AtomicU64) {
    let core: Arc<str> = "".into();
    let (mut told, mut told_at) = (0, None::<Instant>);
    loop {
        let entry = if dropped.load(Ordering::Relaxed) > told {
            match entries.recv_timeout(REPORT_EVERY) {
                Ok(entry) => entry,
                Err(RecvTimeoutError::Timeout) => Entry::Wake,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        } else {
            let Ok(entry) = entries.recv() else { return };
            entry
        };
        if matches!(entry, Entry::Core { .. } | Entry::Plugin { .. }) {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
        let ends = matches!(entry, Entry::Stop);
        if files.settings.reopen.swap(false, Ordering::Relaxed) {
            files.open.clear();
        }
        match entry {
            Entry::Core { line, human } => {
                if let Some(human) = human {
                    show(&human);
                }
                files.write(&core, &line);
            }
            Entry::Plugin { id, line } => files.write(&id, &line),
            Entry::Wake | Entry::Stop => {}
        }
        let now = dropped.load(Ordering::Relaxed);
        // Not with each loss: where only a plugin's file cannot be written, the reports would fill the disk that both
        // are on.
        let is_due = ends || told_at.is_none_or(|at| at.elapsed() >= REPORT_EVERY);
        if now > told && is_due && !files.is_broken(&core) {
            told_at = Some(Instant::now());
            let mut line = Vec::new();
            open_line(&mut line, as_str(&rfc3339_millis(unix_ms())), "warn");
            text_field(&mut line, "component", "log");
            text_field(&mut line, "message", "Log lines dropped");
            let _ = write!(line, ",\"dropped\":{},\"dropped_total\":{now}", now - told);
            close_line(&mut line);
            // The report of a loss is no line of its own: if it cannot be written, the next one says more.
            if files.try_write(&core, &line).is_ok() {
                told = now;
            }
        }
        if ends {
            return;
        }
    }
}

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        if name.is_empty() { core_log_path(&self.folder) } else { plugin_log_path(&self.folder, name) }
    }

    fn is_broken(&self, name: &str) -> bool {
        matches!(self.open.get(name), Some(Slot::Broken { .. }))
    }

    fn write(&mut self, name: &Arc<str>, line: &[u8]) {
        if let Err(error) = self.try_write(name, line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            if !matches!(self.open.get(name), Some(Slot::Broken { .. })) {
                self.open.insert(name.clone(), Slot::Broken { since: Instant::now() });
            }
            if !self.complained {
                self.complained = true;
                let path = self.path(name).display().to_string();
                show(&format!("toru: cannot write {path}: {error}; serving on, lost log lines are counted"));
            }
        }
    }

    fn try_write(&mut self, name: &Arc<str>, line: &[u8]) -> io::Result<()> {
        if self.is_lost(name) {
            self.open.remove(name);
        }
        match self.open.get_mut(name) {
            Some(Slot::Open { file, bytes, .. }) => {
                if *bytes + line.len() as u64 <= self.settings.rotate_bytes.load(Ordering::Relaxed)
                    || *bytes == 0
                {
                    let outcome = append(file, line);
                    match &outcome {
                        Ok(()) => *bytes += line.len() as u64,
                        // How it ends now is looked at when it is opened anew.
                        Err(_) => drop(self.open.remove(name)),
                    }
                    return outcome;
                }
                self.open.remove(name);
                self.rotate(name)?;
            }
            Some(Slot::Broken { since }) if since.elapsed() < REOPEN_AFTER => {
                return Err(io::ErrorKind::NotConnected.into());
            }
            Some(Slot::Broken { .. }) | None => {}
        }
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
        let found = file.metadata()?;
        let bytes = found.len();
        // Whoever wrote it last was killed in the middle of a line, or could not take it back.
        if found.is_file() && crate::logs::ends_within_a_line(&path).unwrap_or(false) {
            append(&mut file, &[b"\n", line].concat())?;
        } else {
            append(&mut file, line)?;
        }
        self.complained = false;
        let bytes = bytes + line.len() as u64;
        self.open.insert(name.clone(), Slot::Open { file, bytes, seen: Instant::now() });
        Ok(())
    }

    /// Whether somebody has removed the file, perhaps with its folder: nobody could ever read what is written to it. One
    /// that was moved is written on until it is asked to be opened anew, so that who moves it gets whole lines.
    fn is_lost(&mut self, name: &str) -> bool {
        let Some(Slot::Open { file, seen, .. }) = self.open.get_mut(name) else { return false };
        let now = Instant::now();
        if now.saturating_duration_since(*seen) < LOOK_EVERY {
            return false;
        }
        *seen = now;
        file.metadata().is_ok_and(|found| found.nlink() == 0)
    }

    /// `x.log` becomes `x.log.1`, and so on; the oldest goes. Where somebody has moved `x.log` away there is nothing to do.
    fn rotate(&self, name: &str) -> io::Result<()> {
        let path = self.path(name);
        if !path.try_exists()? {
            return Ok(());
        }
        let keep = self.settings.rotate_keep.load(Ordering::Relaxed);
        if keep == 0 {
            return fs::remove_file(&path);
        }
        let numbered = |number: u32| rotated_path(&path, number);
        for number in (1..keep).rev() {
            match fs::rename(numbered(number), numbered(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&path, numbered(1))
    }
}

/// Writes a line whole or, as far as the disk lets it, not at all: the next would end up in the same line as its half.
fn append(file: &mut File, line: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < line.len() {
        let error = match file.write(&line[written..]) {
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                written += count;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => error,
        };
        if written > 0 {
            // From where it ends now: somebody may have emptied it meanwhile.
            let len = file.metadata()?.len();
            file.set_len(len.saturating_sub(written as u64))?;
        }
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Access;

    fn config(rotate_bytes: u64) -> LogConfig {
        LogConfig {
            level: Level::Info,
            echo: Level::Error,
            access: Access::All,
            summary_interval: Duration::from_secs(60),
            rotate_bytes,
            rotate_keep: 2,
        }
    }

    #[test]
    fn lines_have_the_keys_of_the_contract_in_their_order() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (log, writer) = start(dir.path(), &config(1 << 20)).expect("thread");
        let fields = json!({ "pid": 12345, "nothing": null, "generation": 1 });
        log.core(
            Level::Info,
            "plugin_supervisor",
            "Plugin started",
            Some("acme"),
            fields.as_object().expect("object"),
        );
        log.core(Level::Debug, "plugin_supervisor", "not at this level", None, &Map::new());
        let took = Duration::from_micros(15_300);
        log.access(&"acme".into(), "r-1", "GET", "/certificates?x=\"1\"", 200, took);
        writer.finish();
        let core = fs::read_to_string(dir.path().join("plugin-supervisor.log")).expect("core log");
        let rest = core.split_once(",\"level\"").expect("level follows the timestamp").1;
        assert_eq!(
            rest,
            ":\"info\",\"component\":\"plugin_supervisor\",\"message\":\"Plugin started\",\"plugin_id\":\"acme\",\"pid\":12345,\"generation\":1}\n"
        );
        let plugin = fs::read_to_string(dir.path().join("plugins/acme.log")).expect("plugin log");
        let line: Value = serde_json::from_str(&plugin).expect("one JSON object");
        assert_eq!(line["duration_ms"], 15.3);
        assert_eq!(line["path"], "/certificates?x=\"1\"");
        assert_eq!(line["request_id"], "r-1");
    }

    #[test]
    fn lines_that_were_dropped_are_told_of_at_the_end_too() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (log, writer) = start(dir.path(), &config(1 << 20)).expect("thread");
        let (of_a, budget) = (PluginLog::new("a"), LineBudget::default());
        let mut refused = 0;
        while refused < 3 {
            refused += u32::from(!budget.take(&log, &of_a));
        }
        budget.account(&log, &of_a, true);
        budget.account(&log, &of_a, true);
        writer.finish();
        assert_eq!(of_a.dropped.load(Ordering::Relaxed), 3);
        let lines = fs::read_to_string(dir.path().join("plugins/a.log")).expect("plugin log");
        assert_eq!(lines.matches("Output lines dropped").count(), 1, "{lines}");
        assert!(lines.contains("\"dropped\":3"), "{lines}");
    }

    #[test]
    fn files_rotate_by_size_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (log, writer) = start(dir.path(), &config(4096)).expect("thread");
        let id: Arc<str> = "a".into();
        for _ in 0..10 {
            log.plugin(&id, Level::Info, &"x".repeat(3000), None);
        }
        writer.finish();
        let mut names: Vec<_> = fs::read_dir(dir.path().join("plugins"))
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        assert_eq!(names, ["a.log", "a.log.1", "a.log.2"]);
    }

    #[test]
    fn a_file_that_was_moved_away_is_followed_by_a_new_one_when_it_is_full() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (log, writer) = start(dir.path(), &config(4096)).expect("thread");
        let (id, path) = (Arc::from("a"), plugin_log_path(dir.path(), "a"));
        log.plugin(&id, Level::Info, &"x".repeat(3000), None);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !path.exists() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::rename(&path, path.with_extension("saved")).expect("it is there");
        log.plugin(&id, Level::Info, &"y".repeat(3000), None);
        writer.finish();
        assert_eq!(log.dropped(), 0);
        assert!(fs::read_to_string(&path).expect("a new file").contains('y'));
    }

    #[test]
    fn access_lines_and_summaries_are_written_at_any_level() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let quiet = LogConfig { level: Level::Error, ..config(1 << 20) };
        let (log, writer) = start(dir.path(), &quiet).expect("thread");
        let id = Arc::from("a");
        log.core(Level::Warn, "toru", "not this", None, &Map::new());
        log.plugin(&id, Level::Warn, "not this", None);
        log.access(&id, "r-1", "GET", "/", 200, Duration::ZERO);
        log.summary("a", &Map::new());
        writer.finish();
        let core = fs::read_to_string(core_log_path(dir.path())).expect("core log");
        let plugin = fs::read_to_string(plugin_log_path(dir.path(), "a")).expect("plugin log");
        assert!(core.contains("Plugin summary") && plugin.contains("HTTP request handled"));
        assert!(!core.contains("not this") && !plugin.contains("not this"));
    }

    #[test]
    fn files_that_are_removed_while_they_are_written_are_made_anew() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let folder = dir.path().join("log");
        let (log, writer) = start(&folder, &config(1 << 20)).expect("thread");
        let (core, plugin) = (core_log_path(&folder), plugin_log_path(&folder, "a"));
        // Says something until both files are there.
        let say = |what: &str| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !(core.exists() && plugin.exists()) {
                assert!(Instant::now() < deadline, "{what}: {core:?} {plugin:?}");
                log.core(Level::Info, "toru", what, None, &Map::new());
                log.plugin(&"a".into(), Level::Info, what, None);
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        say("before");
        fs::remove_dir_all(&folder).expect("nobody makes anything in it");
        say("after");
        fs::remove_file(&plugin).expect("it is there");
        say("at last");
        writer.finish();
        let text = fs::read_to_string(&plugin).expect("plugin log");
        assert!(text.contains("at last") && !text.contains("before"), "{text}");
        assert!(fs::read_to_string(&core).expect("core log").contains("after"));
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_made_costs_lines_and_nothing_else() {
        let (log, writer) = start(Path::new("/dev/null/log"), &config(4096)).expect("thread");
        log.plugin(&"a".into(), Level::Info, "lost", None);
        writer.finish();
        assert_eq!(log.dropped.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_half_of_a_line_is_taken_back_or_stays_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("plugins/a.log");
        fs::create_dir(dir.path().join("plugins")).expect("folder");
        // As a kill leaves it.
        fs::write(&path, "{\"message\":\"caf").expect("write");
        let (log, writer) = start(dir.path(), &config(1 << 20)).expect("thread");
        log.plugin(&"a".into(), Level::Info, "first", None);
        writer.finish();
        let text = fs::read_to_string(&path).expect("plugin log");
        let (torn, line) = text.split_once('\n').expect("two lines");
        assert_eq!(torn, "{\"message\":\"caf");
        assert_eq!(serde_json::from_str::<Value>(line).expect("JSON")["message"], "first");
    }
}
