//! The two threads that own SQLite: the plugins' values, the audit trail, what is enabled, who this installation is.
//!
//! One thread writes. All that wait together share one transaction and are answered only after its commit, so that a
//! burst of writers pays for one sync of the disk. The other thread reads, on a connection of its own that cannot
//! write, so that a `get` never waits behind writers. What was acknowledged before a question was asked is seen by it;
//! of two questions that are on their way at once, a read may be answered before an earlier write.
//!
//! Nobody else opens the database: a blocking call on a worker would stop every connection of that core. Asking takes
//! a lock for as long as it takes to put a question into a queue.
//!
//! A question is answered within [`PATIENCE`], except by a disk that hangs: one that waited as long in the queue is
//! refused and not done, and one that is refused leaves nothing behind. When a write fails for another reason than a
//! full disk or a lock, the database is closed, and writes are refused until it has been opened again, has taken a
//! sync of all that was acknowledged, and was checked; reads go on from what was acknowledged. Only if the process
//! dies in between may a value be there whose write was refused.

mod database;
pub mod offline;
pub mod portable;

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use serde::Serialize;
use serde_json::Value;
use toru_plugin_api::status::StoreStatus;
use toru_supervisor::{Kept, KvAnswer, KvQuestion, Level};

use crate::config::StoreConfig;
use crate::histogram::{Counts, Histogram};
use database::Usage;
use portable::Export;

pub const KEY_BYTES_MAX: usize = 512;
/// Keys in one answer to `list`, unless it asks for fewer.
pub const LIST_KEYS_MAX: usize = 1000;
/// Rows in one answer about events.
pub const EVENT_ROWS_MAX: usize = 1000;
/// How long a question may wait, for its turn or for another process that holds the database locked.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Writes that may wait, and reads beside them; beyond it a question is answered `busy`.
const QUEUE_QUESTIONS_MAX: usize = 4096;
/// Bytes of keys and values that may wait to be written.
const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Events that may wait, also for a database that cannot be written; beyond it they are dropped and counted.
const QUEUE_EVENTS_MAX: usize = 4096;
/// Questions in one transaction, and events beside them: bounds how long the first waits for the last.
const BATCH_ITEMS_MAX: usize = 512;
/// Bytes of keys and values in one transaction: what SQLite holds in memory, and what one sync has to write.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Between two words to the operator about values that are refused.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Between two attempts to open the database again, or to write events that could not be written.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Events are pruned after so many new ones, and by the hour.
const PRUNE_EVENTS: u64 = 1000;
const PRUNE_INTERVAL: Duration = Duration::from_secs(3600);

/// Takes the answer to a question; called on one of the store's threads, or at once on the asking one.
pub type Reply = Box<dyn FnOnce(KvAnswer) + Send>;
pub type EventsReply = Box<dyn FnOnce(Result<Vec<EventRow>, EventsError>) + Send>;
/// Tells the operator that the store no longer writes, or does again.
pub type Notice = Box<dyn Fn(Level, &str) + Send>;

/// What the database already knew at the start.
pub struct Known {
    pub instance_id: String,
    /// What was kept of each plugin.
    pub plugins: HashMap<String, Kept>,
    /// Plugins with a process that the audit trail tells no end of, and when it was started, as the trail has it.
    pub unended: HashMap<String, String>,
}

/// A database that cannot be used; the message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

/// What to look for in the audit trail; what is `None` is not asked for.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    pub plugin_id: Option<String>,
    pub event_type: Option<String>,
    /// From this time on, in milliseconds of the Unix epoch.
    pub since_unix_ms: Option<u64>,
    /// Before this time.
    pub until_unix_ms: Option<u64>,
    /// Only events after this one: the first `limit` of them. Without it, the last `limit` events.
    pub after_id: Option<i64>,
    /// Rows, up to [`EVENT_ROWS_MAX`].
    pub limit: usize,
}

/// An event of the audit trail. Ids rise with time and are never given twice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EventRow {
    pub id: i64,
    pub plugin_id: String,
    pub event_type: String,
    /// RFC 3339, UTC, with milliseconds.
    pub timestamp: String,
    pub details: Value,
}

/// Why events could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventsError {
    /// Too many questions wait; ask again.
    #[error("too many questions are waiting")]
    Busy,
    /// The database cannot be read now.
    #[error("the store cannot be read now")]
    Unavailable,
}

/// Opens `<folder>/toru.db`, making it if it is not there, and starts its threads. The folder must be there.
///
/// Errors: the file is damaged, was written by a newer version, or cannot be read or written.
pub fn start(
    folder: &Path,
    settings: StoreConfig,
    notice: Notice,
) -> Result<(Store, Owner, Known), OpenError> {
    let path = folder.join("toru.db");
    let file = path.clone();
    let writing = database::open(&path, settings.synchronous)?;
    let known = database::read_known(&writing).map_err(|error| database::explain(&path, &error))?;
    let mut reader = Reader { path: path.clone(), database: None };
    reader.connect().map_err(|error| database::explain(&path, &error))?;
    let shared = Arc::new(Shared::default());
    let writer = Writer {
        path,
        settings,
        notice,
        shared: shared.clone(),
        database: Some(writing),
        usage: Usage::default(),
        retry_at: None,
        told_at: None,
        // At once: the trail may have aged while nothing ran.
        prune_at: Instant::now(),
        events_since_prune: 0,
    };
    let run = |name: &str, life: Box<dyn FnOnce() + Send>| {
        let life = std::panic::AssertUnwindSafe(life);
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                if std::panic::catch_unwind(life).is_err() {
                    // Every question from here on would wait for ever.
                    crate::fatal("the store panicked");
                }
            })
            .map_err(|error| OpenError(format!("cannot start the store's thread: {error}")))
    };
    let reading = shared.clone();
    let reader = run("toru-store-read", Box::new(move || reader.run(&reading)))?;
    let writer = run("toru-store", Box::new(move || writer.run()))?;
    let store =
        Store { shared: shared.clone(), value_bytes_max: settings.value_bytes_max, path: file.into() };
    Ok((store, Owner { shared, reader, writer }, known))
}

/// Asks the store from any thread; never waits for the disk.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    value_bytes_max: usize,
    path: Arc<Path>,
}

/// Joins the store's threads.
pub struct Owner {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Owner {
    /// Commits what is queued, and closes the database. Gives how many events were dropped since the start.
    pub fn finish(self) -> u64 {
        self.shared.lock().stopping = true;
        self.shared.asked.notify_all();
        let _ = self.reader.join();
        // The writer last: a connection that cannot write leaves the log behind when it is the last to close.
        self.shared.lock().closing = true;
        self.shared.written.notify_all();
        let _ = self.writer.join();
        self.shared.events_dropped.load(Ordering::Relaxed)
    }
}

impl Store {
    /// Asks a plugin's question.
    ///
    /// Bounds: keys of 1 to [`KEY_BYTES_MAX`] bytes; values, and all that a plugin keeps, as configured.
    /// Errors, as the answer's code: `invalid`, `too_large` and `quota` are the plugin's own; `disk_full` lasts until
    /// somebody makes room; after `busy` and `unavailable` it may ask again.
    pub fn ask(&self, plugin_id: &str, question: KvQuestion, reply: Reply) {
        if let Err(refusal) = self.check(&question) {
            return reply(refusal);
        }
        let asked = Asked {
            plugin_id: plugin_id.to_owned(),
            deadline: Instant::now() + PATIENCE,
            bytes: database::question_bytes(&question),
            question,
            reply,
        };
        let mut waiting = self.shared.lock();
        let refusal = if waiting.stopping {
            CLOSED
        } else if matches!(asked.question, KvQuestion::Get { .. } | KvQuestion::List { .. }) {
            if waiting.reads.len() < QUEUE_QUESTIONS_MAX {
                waiting.reads.push_back(Read::Value(asked));
                return self.shared.wake_reader(waiting);
            }
            CROWDED
        } else {
            let bytes = waiting.write_bytes + asked.bytes;
            if waiting.writes.len() < QUEUE_QUESTIONS_MAX && bytes <= QUEUE_BYTES_MAX {
                waiting.write_bytes = bytes;
                waiting.writes.push_back(asked);
                return self.shared.wake_writer(waiting);
            }
            CROWDED
        };
        drop(waiting);
        (asked.reply)(refusal.answer());
    }

    /// Answers what needs no database.
    fn check(&self, question: &KvQuestion) -> Result<(), KvAnswer> {
        let (key, value) = match question {
            KvQuestion::Invalid { reason } => return Err(failure("invalid", reason)),
            KvQuestion::List { .. } => return Ok(()),
            KvQuestion::Get { key } | KvQuestion::Delete { key } => (key, ""),
            KvQuestion::Set { key, value } => (key, value.as_str()),
        };
        check_entry(key, value, self.value_bytes_max).map_err(|(code, message)| failure(code, &message))
    }

    /// All values of a plugin, as they are at the first read.
    pub fn export(&self, plugin_id: &str) -> Export {
        Export::new(self.path.to_path_buf(), plugin_id.to_owned())
    }

    /// Reads the audit trail; rows come in order of their ids.
    pub fn events(&self, mut query: EventQuery, reply: EventsReply) {
        query.limit = query.limit.min(EVENT_ROWS_MAX);
        let mut waiting = self.shared.lock();
        let refusal = if waiting.stopping {
            EventsError::Unavailable
        } else if waiting.reads.len() == QUEUE_QUESTIONS_MAX {
            EventsError::Busy
        } else {
            let deadline = Instant::now() + PATIENCE;
            waiting.reads.push_back(Read::Events { query, deadline, reply });
            return self.shared.wake_reader(waiting);
        };
        drop(waiting);
        reply(Err(refusal));
    }

    /// Adds to the audit trail. While the database cannot be written events wait; too many are dropped and counted.
    pub fn record(&self, plugin_id: &str, kind: &'static str, details: Value) {
        let unix_ms = unix_ms();
        let mut waiting = self.shared.lock();
        if waiting.stopping || waiting.events.len() >= QUEUE_EVENTS_MAX {
            self.shared.events_dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.events.push_back(Event { plugin_id: plugin_id.to_owned(), kind, details, unix_ms });
        self.shared.wake_writer(waiting);
    }

    /// Keeps what is to be known of a plugin at the next start, once the database can be written.
    pub fn keep(&self, plugin_id: &str, kept: Kept) {
        let mut waiting = self.shared.lock();
        waiting.plugins.insert(plugin_id.to_owned(), kept);
        self.shared.wake_writer(waiting);
    }

    /// What waits, and how long the disk takes.
    pub fn status(&self) -> StoreStatus {
        let mut commits = Counts::default();
        self.shared.commits.add_to(&mut commits);
        let last = self.shared.last_commit_us.load(Ordering::Relaxed);
        let waiting = self.shared.lock();
        StoreStatus {
            writable: !self.shared.broken.load(Ordering::Relaxed),
            queued_writes: waiting.writes.len() as u64,
            queued_bytes: waiting.write_bytes as u64,
            queued_events: waiting.events.len() as u64,
            queued_reads: waiting.reads.len() as u64,
            dropped_events: self.events_dropped(),
            commits: commits.total(),
            last_commit_us: (commits.total() > 0).then_some(last),
            p50_commit_us: commits.quantile_us(0.5),
            p99_commit_us: commits.quantile_us(0.99),
        }
    }

    /// Events that were dropped since the start.
    pub fn events_dropped(&self) -> u64 {
        self.shared.events_dropped.load(Ordering::Relaxed)
    }
}

// ---- between the threads ----

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    /// Work for the thread that writes.
    written: Condvar,
    /// Work for the thread that reads.
    asked: Condvar,
    events_dropped: AtomicU64,
    /// How long each commit took; counted by the thread that writes, as is the next.
    commits: Histogram,
    last_commit_us: AtomicU64,
    /// The database is closed after a failure.
    broken: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    writes: VecDeque<Asked>,
    write_bytes: usize,
    events: VecDeque<Event>,
    /// The last word for each plugin; as many as there are plugins.
    plugins: HashMap<String, Kept>,
    reads: VecDeque<Read>,
    /// Nothing more is taken.
    stopping: bool,
    /// The writer ends after what is queued.
    closing: bool,
    /// Whoever works looks into its queue by itself afterwards and needs no system call to be woken.
    writer_sleeps: bool,
    reader_sleeps: bool,
}

struct Asked {
    plugin_id: String,
    question: KvQuestion,
    bytes: usize,
    deadline: Instant,
    reply: Reply,
}

enum Read {
    Value(Asked),
    Events { query: EventQuery, deadline: Instant, reply: EventsReply },
}

struct Event {
    plugin_id: String,
    kind: &'static str,
    details: Value,
    unix_ms: u64,
}

/// What one transaction is to do.
#[derive(Default)]
struct Batch {
    questions: Vec<Asked>,
    events: Vec<Event>,
    plugins: Vec<(String, Kept)>,
    /// The store is closing, and no question comes after these.
    last: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_writer(&self, waiting: MutexGuard<'_, Waiting>) {
        let sleeps = waiting.writer_sleeps;
        drop(waiting);
        if sleeps {
            self.written.notify_one();
        }
    }

    fn wake_reader(&self, waiting: MutexGuard<'_, Waiting>) {
        let sleeps = waiting.reader_sleeps;
        drop(waiting);
        if sleeps {
            self.asked.notify_one();
        }
    }

    /// Sleeps until there is something to write, or until `alarm`. Events and orders alone do not count before
    /// `held_until`.
    fn next_batch(&self, alarm: Instant, held_until: Option<Instant>) -> Batch {
        let mut waiting = self.lock();
        loop {
            let now = Instant::now();
            let held = held_until.is_some_and(|until| now < until);
            let others = !(waiting.events.is_empty() && waiting.plugins.is_empty());
            if !waiting.writes.is_empty() || (others && !held) || waiting.closing || now >= alarm {
                return waiting.take_batch();
            }
            let until = if held { held_until.map_or(alarm, |until| until.min(alarm)) } else { alarm };
            waiting.writer_sleeps = true;
            (waiting, _) = self
                .written
                .wait_timeout(waiting, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner);
            waiting.writer_sleeps = false;
        }
    }

    /// Keeps what could not be written for later, before what has come meanwhile.
    fn put_back(&self, events: Vec<Event>, plugins: Vec<(String, Kept)>) {
        let mut waiting = self.lock();
        for (id, kept) in plugins {
            waiting.plugins.entry(id).or_insert(kept);
        }
        for event in events.into_iter().rev() {
            waiting.events.push_front(event);
        }
        let kept = waiting.events.len().min(QUEUE_EVENTS_MAX);
        let dropped = waiting.events.drain(kept..).count();
        self.events_dropped.fetch_add(dropped as u64, Ordering::Relaxed);
    }

    /// Sleeps until there is something to read; nothing once the store is closing and all has been answered.
    fn next_reads(&self) -> Option<VecDeque<Read>> {
        let mut waiting = self.lock();
        loop {
            if !waiting.reads.is_empty() {
                return Some(std::mem::take(&mut waiting.reads));
            }
            if waiting.stopping {
                return None;
            }
            waiting.reader_sleeps = true;
            waiting = self.asked.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            waiting.reader_sleeps = false;
        }
    }
}

impl Waiting {
    fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let mut bytes = 0;
        while batch.questions.len() < BATCH_ITEMS_MAX
            && let Some(next) =
                self.writes.pop_front_if(|next| bytes == 0 || bytes + next.bytes <= BATCH_BYTES_MAX)
        {
            bytes += next.bytes;
            batch.questions.push(next);
        }
        self.write_bytes -= bytes;
        // The last transaction takes all of them: there is no later one to leave them for.
        batch.last = self.closing && self.writes.is_empty();
        let events_max = if batch.last { QUEUE_EVENTS_MAX } else { BATCH_ITEMS_MAX };
        batch.events.extend(self.events.drain(..self.events.len().min(events_max)));
        batch.plugins.extend(self.plugins.drain());
        batch
    }
}

// ---- the thread that writes ----

struct Writer {
    path: PathBuf,
    settings: StoreConfig,
    notice: Notice,
    shared: Arc<Shared>,
    /// `None` after a write failed, until the database could be opened again.
    database: Option<Connection>,
    usage: Usage,
    /// When to try again what did not work: to open the database, or to write what waits.
    retry_at: Option<Instant>,
    /// When the operator was last told why values are refused.
    told_at: Option<Instant>,
    prune_at: Instant,
    events_since_prune: u64,
}

impl Writer {
    fn run(mut self) {
        loop {
            let alarm = match (&self.database, self.retry_at) {
                (None, Some(retry_at)) => retry_at,
                _ => self.prune_at,
            };
            let batch = self.shared.next_batch(alarm, self.retry_at);
            let last = batch.last;
            if self.database.is_none() && self.retry_at.is_none_or(|at| last || Instant::now() >= at) {
                self.reopen();
            }
            self.settle(batch);
            if last {
                return self.close();
            }
            self.prune();
        }
    }

    fn close(self) {
        let waiting = self.shared.lock();
        self.shared.events_dropped.fetch_add(waiting.events.len() as u64, Ordering::Relaxed);
        drop(waiting);
        if let Some(database) = self.database
            && let Err((_, error)) = database.close()
        {
            (self.notice)(Level::Warn, &format!("the database was not closed well: {error}"));
        }
    }

    /// Does all of `batch` and answers, or refuses its questions and keeps the rest for later.
    fn settle(&mut self, mut batch: Batch) {
        batch.refuse_late(LATE);
        if batch.is_empty() {
            return;
        }
        loop {
            let patience = batch.patience();
            let error = match self.transact(&batch, patience) {
                Ok(answers) => {
                    self.retry_at = None;
                    self.events_since_prune += batch.events.len() as u64;
                    return batch.answer(answers);
                }
                Err(error) => error,
            };
            match Trouble::of(&error) {
                Trouble::Locked => {
                    let before = batch.questions.len();
                    batch.refuse_late(LOCKED);
                    if batch.questions.len() < before {
                        self.tell(LOCKED);
                    }
                    if !batch.questions.is_empty() {
                        continue;
                    }
                }
                // One value too many must not refuse those that fit.
                Trouble::DiskFull if batch.questions.len() > 1 => self.settle_singly(&mut batch),
                Trouble::DiskFull => {
                    self.tell(FULL);
                    batch.refuse(FULL);
                }
                Trouble::Broken => {
                    batch.refuse(BROKEN);
                    self.degrade(&error);
                }
            }
            if self.database.is_some() {
                self.retry_at = Some(Instant::now() + RETRY_PAUSE);
            }
            return self.shared.put_back(batch.events, batch.plugins);
        }
    }

    fn settle_singly(&mut self, batch: &mut Batch) {
        for question in batch.questions.drain(..) {
            let mut single = Batch { questions: vec![question], ..Batch::default() };
            match self.transact(&single, single.patience()) {
                Ok(answers) => single.answer(answers),
                Err(error) => match Trouble::of(&error) {
                    Trouble::Locked => {
                        self.tell(LOCKED);
                        single.refuse(LOCKED);
                    }
                    Trouble::DiskFull => {
                        self.tell(FULL);
                        single.refuse(FULL);
                    }
                    Trouble::Broken => {
                        single.refuse(BROKEN);
                        self.degrade(&error);
                    }
                },
            }
        }
    }

    /// One transaction, committed and synced, or nothing at all; waits for a lock as long as `patience`.
    fn transact(&mut self, batch: &Batch, patience: Duration) -> rusqlite::Result<Vec<KvAnswer>> {
        let Some(database) = &mut self.database else { return Err(not_open()) };
        database.busy_timeout(patience)?;
        let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.usage.refresh(&transaction)?;
        for (id, kept) in &batch.plugins {
            database::keep(&transaction, id, kept)?;
        }
        for event in &batch.events {
            database::insert_event(
                &transaction,
                &event.plugin_id,
                event.kind,
                &event.details,
                event.unix_ms,
            )?;
        }
        let mut changed: HashMap<&str, u64> = HashMap::new();
        let mut answers = Vec::with_capacity(batch.questions.len());
        for asked in &batch.questions {
            let id = asked.plugin_id.as_str();
            let used = changed.get(id).copied().unwrap_or_else(|| self.usage.of(id));
            // An error may have ended the transaction in SQLite; nothing must be written after it. Hence `?`.
            answers.push(match &asked.question {
                KvQuestion::Set { key, value } => {
                    match database::set(&transaction, id, key, value, used, self.settings.quota_bytes)? {
                        Some(sum) => {
                            changed.insert(id, sum);
                            KvAnswer::Value(None)
                        }
                        None => {
                            let quota = self.settings.quota_bytes;
                            failure(
                                "quota",
                                &format!("a plugin keeps at most {quota} bytes of keys and values"),
                            )
                        }
                    }
                }
                KvQuestion::Delete { key } => {
                    changed.insert(id, database::delete(&transaction, id, key, used)?);
                    KvAnswer::Value(None)
                }
                KvQuestion::Get { .. } | KvQuestion::List { .. } | KvQuestion::Invalid { .. } => {
                    unreachable!("only sets and deletes are queued for the writer")
                }
            });
        }
        let begun = Instant::now();
        transaction.commit()?;
        let took = begun.elapsed();
        self.shared.commits.record(took);
        self.shared.last_commit_us.store(took.as_micros() as u64, Ordering::Relaxed);
        self.usage.adopt(changed);
        Ok(answers)
    }

    /// Tells the operator why values are refused, once within a while: some may fit and others not.
    fn tell(&mut self, why: Refusal) {
        let now = Instant::now();
        if self.told_at.is_none_or(|at| now.duration_since(at) >= TELL_EVERY) {
            self.told_at = Some(now);
            let text = format!("the database {} takes no values: {}", self.path.display(), why.message);
            (self.notice)(Level::Warn, &text);
        }
    }

    /// No write is trusted any more: after a failed sync the kernel may show what the disk does not have.
    fn degrade(&mut self, error: &rusqlite::Error) {
        // Questions that come while it is closed must not put off when it is opened again.
        if self.database.take().is_none() {
            return;
        }
        self.shared.broken.store(true, Ordering::Relaxed);
        self.retry_at = Some(Instant::now() + RETRY_PAUSE);
        let text = format!(
            "the database {} could not be written and is closed: {error}; trying again every {} s",
            self.path.display(),
            RETRY_PAUSE.as_secs()
        );
        (self.notice)(Level::Error, &text);
    }

    fn reopen(&mut self) {
        match database::reopen(&self.path, self.settings.synchronous) {
            Ok(database) => {
                self.shared.broken.store(false, Ordering::Relaxed);
                self.database = Some(database);
                self.usage = Usage::default();
                self.retry_at = None;
                (self.notice)(Level::Warn, &format!("the database {} is written again", self.path.display()));
            }
            Err(_) => self.retry_at = Some(Instant::now() + RETRY_PAUSE),
        }
    }

    fn prune(&mut self) {
        // A small trail may not grow by a multiple before it is looked at.
        let many = self.events_since_prune >= (self.settings.event_rows_max / 10).clamp(1, PRUNE_EVENTS);
        let Some(database) = &self.database else { return };
        let now = Instant::now();
        if !many && now < self.prune_at {
            return;
        }
        let kept_ms = u64::try_from(self.settings.events_kept.as_millis()).unwrap_or(u64::MAX);
        let oldest = unix_ms().saturating_sub(kept_ms);
        // Nobody waits for this, but questions would wait behind it for whoever holds the database locked.
        let _ = database.busy_timeout(Duration::ZERO);
        let more = match database::prune_events(database, oldest, self.settings.event_rows_max) {
            Ok(more) => more,
            Err(error) => {
                if matches!(Trouble::of(&error), Trouble::Broken) {
                    self.degrade(&error);
                }
                false
            }
        };
        self.events_since_prune = 0;
        self.prune_at = if more { now } else { now + PRUNE_INTERVAL };
    }
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.questions.is_empty() && self.events.is_empty() && self.plugins.is_empty()
    }

    /// How long the one that has waited longest may still wait. With no question, no longer than a question that comes
    /// meanwhile could bear.
    fn patience(&self) -> Duration {
        let oldest = self.questions.iter().map(|asked| asked.deadline).min();
        let patience =
            oldest.map_or(RETRY_PAUSE, |deadline| deadline.saturating_duration_since(Instant::now()));
        // Zero would be no waiting at all, not even for a reader that ends.
        patience.max(Duration::from_millis(1))
    }

    fn answer(self, answers: Vec<KvAnswer>) {
        debug_assert_eq!(self.questions.len(), answers.len());
        for (asked, answer) in self.questions.into_iter().zip(answers) {
            (asked.reply)(answer);
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        for asked in self.questions.drain(..) {
            (asked.reply)(refusal.answer());
        }
    }

    /// Refuses the questions whose time is up.
    fn refuse_late(&mut self, refusal: Refusal) {
        let now = Instant::now();
        for asked in self.questions.extract_if(.., |asked| asked.deadline <= now) {
            (asked.reply)(refusal.answer());
        }
    }
}

// ---- the thread that reads ----

struct Reader {
    path: PathBuf,
    /// `None` after a read failed, until the next.
    database: Option<Connection>,
}

impl Reader {
    fn connect(&mut self) -> rusqlite::Result<&Connection> {
        if self.database.is_none() {
            let database = database::connect_read_only(&self.path)?;
            // SQLite opens the write-ahead log at the first read. From then on this connection keeps the log's index
            // alive while the writer opens the database again; see `database::reopen`.
            database::schema_version(&database)?;
            self.database = Some(database);
        }
        self.database.as_ref().ok_or_else(not_open)
    }

    fn run(mut self, shared: &Shared) {
        while let Some(reads) = shared.next_reads() {
            // All of these were asked before now: one snapshot taken from now on holds whatever they may expect.
            let together = reads.len() > 1 && self.begin();
            for read in reads {
                self.answer(read);
            }
            if together {
                self.end();
            }
        }
    }

    fn begin(&mut self) -> bool {
        self.connect().is_ok_and(|database| database.execute_batch("BEGIN").is_ok())
    }

    fn end(&mut self) {
        if let Some(database) = &self.database
            && !database.is_autocommit()
            && database.execute_batch("COMMIT").is_err()
        {
            self.database = None;
        }
    }

    fn answer(&mut self, read: Read) {
        let now = Instant::now();
        match read {
            Read::Value(asked) if asked.deadline <= now => (asked.reply)(LATE.answer()),
            Read::Value(asked) => {
                let id = asked.plugin_id.as_str();
                let found = self.connect().and_then(|database| match &asked.question {
                    KvQuestion::Get { key } => database::get(database, id, key).map(KvAnswer::Value),
                    KvQuestion::List { prefix, limit } => {
                        let limit =
                            limit.map_or(LIST_KEYS_MAX, |limit| limit.min(LIST_KEYS_MAX as u64) as usize);
                        database::list(database, id, prefix, limit).map(KvAnswer::Keys)
                    }
                    KvQuestion::Set { .. } | KvQuestion::Delete { .. } | KvQuestion::Invalid { .. } => {
                        unreachable!("only gets and lists are queued for the reader")
                    }
                });
                (asked.reply)(found.unwrap_or_else(|error| match Trouble::of(&error) {
                    Trouble::Locked => LOCKED.answer(),
                    Trouble::DiskFull | Trouble::Broken => {
                        self.database = None;
                        UNREADABLE.answer()
                    }
                }));
            }
            Read::Events { deadline, reply, .. } if deadline <= now => reply(Err(EventsError::Unavailable)),
            Read::Events { query, reply, .. } => {
                let found = self.connect().and_then(|database| database::events(database, &query));
                reply(found.map_err(|error| match Trouble::of(&error) {
                    Trouble::Locked => EventsError::Busy,
                    Trouble::DiskFull | Trouble::Broken => {
                        self.database = None;
                        EventsError::Unavailable
                    }
                }));
            }
        }
    }
}

// ---- what went wrong, and what the plugin hears of it ----

/// Whether a key and its value have the size of one; else the code and the message.
fn check_entry(key: &str, value: &str, value_bytes_max: usize) -> Result<(), (&'static str, String)> {
    if key.is_empty() {
        return Err(("invalid", "a key has at least one byte".into()));
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(("too_large", format!("a key has at most {KEY_BYTES_MAX} bytes")));
    }
    if value.len() > value_bytes_max {
        return Err(("too_large", format!("a value has at most {value_bytes_max} bytes")));
    }
    Ok(())
}

/// What a failed transaction means for those that come after it.
enum Trouble {
    /// Another process holds the database; waiting helps.
    Locked,
    /// Nothing is lost, and what needs no room still works.
    DiskFull,
    /// The database has to be closed.
    Broken,
}

impl Trouble {
    fn of(error: &rusqlite::Error) -> Self {
        // The index of the write-ahead log is a file, too, and may be what does not fit.
        let no_room_for_index = error
            .sqlite_error()
            .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Trouble::Locked,
            Some(ErrorCode::DiskFull) => Trouble::DiskFull,
            _ if no_room_for_index => Trouble::DiskFull,
            _ => Trouble::Broken,
        }
    }
}

/// The words for the client; the cause goes to the log.
#[derive(Clone, Copy)]
struct Refusal {
    code: &'static str,
    message: &'static str,
}

const CROWDED: Refusal = Refusal { code: "busy", message: "too many questions are waiting; try again" };
const LOCKED: Refusal = Refusal { code: "busy", message: "another process holds the database locked" };
const LATE: Refusal = Refusal { code: "unavailable", message: "the store did not come to it in time" };
const CLOSED: Refusal = Refusal { code: "unavailable", message: "the store is closed" };
const BROKEN: Refusal = Refusal { code: "unavailable", message: "the store cannot be written now" };
const UNREADABLE: Refusal = Refusal { code: "unavailable", message: "the store cannot be read now" };
const FULL: Refusal = Refusal { code: "disk_full", message: "the disk is full" };

impl Refusal {
    fn answer(self) -> KvAnswer {
        failure(self.code, self.message)
    }
}

fn failure(code: &'static str, message: &str) -> KvAnswer {
    KvAnswer::Error { code, message: message.to_owned() }
}

fn not_open() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
        Some("the database is closed".into()),
    )
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests;
