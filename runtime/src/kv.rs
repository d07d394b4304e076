//! The one thread that owns SQLite: the plugins' values, the audit trail, what is enabled, who this installation is.
//!
//! Jobs come through a bounded queue. All that wait together share one transaction and are answered only after its
//! commit, so that a burst of writers pays for one fsync. Nobody else opens the database: a blocking call on a worker
//! would stop every connection of that core.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde_json::Value;
use toru_plugin_api::time::{as_str, rfc3339_millis};
use toru_supervisor::{KvAnswer, KvQuestion};

/// Jobs that may wait; beyond it a question is answered `busy` and an event is counted as dropped.
const QUEUE_JOBS_MAX: usize = 4096;
/// Jobs in one transaction.
const BATCH_JOBS_MAX: usize = 512;
pub const KEY_BYTES_MAX: usize = 512;
/// Keys in one answer to `list`, unless it asks for fewer.
const LIST_KEYS_MAX: u64 = 1000;
/// How long another process may hold the database locked before a question fails.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
CREATE TABLE plugin_kv (
    plugin_id TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (plugin_id, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE plugin_events (
    id INTEGER PRIMARY KEY,
    plugin_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    timestamp TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX plugin_events_by_plugin ON plugin_events (plugin_id, id);
CREATE TABLE plugins (id TEXT PRIMARY KEY, enabled INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
";

type Reply = Box<dyn FnOnce(KvAnswer) + Send>;

enum Job {
    Question { plugin_id: String, question: KvQuestion, reply: Reply },
    Event { plugin_id: String, kind: &'static str, details: Value, unix_ms: u64 },
    SetEnabled { plugin_id: String, enabled: bool },
    Stop,
}

/// Asks the store from any thread; never blocks.
#[derive(Clone)]
pub struct Store {
    queue: SyncSender<Job>,
    events_dropped: Arc<AtomicU64>,
}

/// What the database already knew at the start.
pub struct Known {
    pub instance_id: String,
    pub disabled: HashSet<String>,
}

/// Joins the store's thread.
pub struct Owner {
    queue: SyncSender<Job>,
    thread: JoinHandle<()>,
}

/// A database that cannot be used; the message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

impl Owner {
    /// Commits what is queued, and closes the database.
    pub fn finish(self) {
        let _ = self.queue.send(Job::Stop);
        let _ = self.thread.join();
    }
}

/// Opens `<folder>/toru.db`, making it if it is not there, and starts its thread.
///
/// Errors: the folder cannot be made, the file is damaged, or it was written by a newer version.
pub fn start(folder: &Path) -> Result<(Store, Owner, Known), OpenError> {
    std::fs::create_dir_all(folder)
        .map_err(|error| OpenError(format!("cannot make the data folder {}: {error}", folder.display())))?;
    let path = folder.join("toru.db");
    let mut database = open(&path)?;
    let known = read_known(&mut database).map_err(|error| explain(&path, &error))?;
    let (queue, jobs) = sync_channel(QUEUE_JOBS_MAX);
    let thread = std::thread::Builder::new()
        .name("toru-store".into())
        .spawn(move || serve(database, &jobs))
        .map_err(|error| OpenError(format!("cannot start the store's thread: {error}")))?;
    let store = Store { queue: queue.clone(), events_dropped: Arc::new(AtomicU64::new(0)) };
    Ok((store, Owner { queue, thread }, known))
}

impl Store {
    /// Asks a plugin's question; `reply` is called on the store's thread, or here when the queue is full.
    pub fn ask(&self, plugin_id: &str, question: KvQuestion, reply: Reply) {
        let job = Job::Question { plugin_id: plugin_id.to_owned(), question, reply };
        match self.queue.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(Job::Question { reply, .. })) => {
                reply(failure("busy", "too many questions are waiting; try again"));
            }
            Err(TrySendError::Disconnected(Job::Question { reply, .. })) => {
                reply(failure("unavailable", "the store is closed"));
            }
            Err(_) => unreachable!("the job that comes back is the one that was sent"),
        }
    }

    /// Adds to the audit trail. When the store cannot keep up, events are dropped and counted.
    pub fn record(&self, plugin_id: &str, kind: &'static str, details: Value) {
        let job = Job::Event { plugin_id: plugin_id.to_owned(), kind, details, unix_ms: unix_ms() };
        if self.queue.try_send(job).is_err() {
            self.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn set_enabled(&self, plugin_id: &str, enabled: bool) {
        let _ = self.queue.try_send(Job::SetEnabled { plugin_id: plugin_id.to_owned(), enabled });
    }
}

fn open(path: &Path) -> Result<Connection, OpenError> {
    let prepare = || -> rusqlite::Result<Connection> {
        let database = Connection::open(path)?;
        database.busy_timeout(BUSY_TIMEOUT)?;
        // WAL: readers of the file (backups, a curious operator) and the writer do not stop each other.
        // FULL: an acknowledged value survives power loss, which NORMAL does not promise in WAL mode.
        database.pragma_update(None, "journal_mode", "WAL")?;
        database.pragma_update(None, "synchronous", "FULL")?;
        database.set_prepared_statement_cache_capacity(32);
        Ok(database)
    };
    let mut database = prepare().map_err(|error| explain(path, &error))?;
    let health: String = database
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| explain(path, &error))?;
    if health != "ok" {
        return Err(damaged(path, &health));
    }
    migrate(&mut database, path)?;
    use std::os::unix::fs::PermissionsExt;
    let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600));
    Ok(database)
}

fn migrate(database: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let version: i64 = database
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| explain(path, &error))?;
    match version {
        SCHEMA_VERSION => Ok(()),
        0 => {
            let make = |database: &mut Connection| -> rusqlite::Result<()> {
                let transaction = database.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.execute(
                    "INSERT INTO meta (key, value) VALUES ('schema_version', ?1)",
                    params![SCHEMA_VERSION.to_string()],
                )?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
                transaction.commit()
            };
            make(database).map_err(|error| explain(path, &error))
        }
        newer => Err(OpenError(format!(
            "{} has schema version {newer}, but this toru knows {SCHEMA_VERSION}; use the newer toru, or another data folder",
            path.display()
        ))),
    }
}

fn read_known(database: &mut Connection) -> rusqlite::Result<Known> {
    let found: Option<String> = database
        .query_row("SELECT value FROM meta WHERE key = 'instance_id'", [], |row| row.get(0))
        .optional()?;
    let instance_id = match found {
        Some(id) => id,
        None => {
            // 128 random bits, from SQLite's generator, which is seeded by the system.
            let id: String = database.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))?;
            database.execute("INSERT INTO meta (key, value) VALUES ('instance_id', ?1)", params![id])?;
            id
        }
    };
    let mut statement = database.prepare("SELECT id FROM plugins WHERE enabled = 0")?;
    let disabled = statement.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(Known { instance_id, disabled })
}

fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        _ => OpenError(format!("cannot use the database {}: {error}", path.display())),
    }
}

fn damaged(path: &Path, what: &str) -> OpenError {
    let file = path.display();
    let recovered: PathBuf = path.with_extension("recovered.db");
    OpenError(format!(
        "the database {file} is damaged ({what}); it was left as it is. Restore a backup over it, or save what can be read with: sqlite3 {file} .recover | sqlite3 {}",
        recovered.display()
    ))
}

fn serve(mut database: Connection, jobs: &Receiver<Job>) {
    let mut batch = Vec::new();
    while let Ok(first) = jobs.recv() {
        batch.push(first);
        while batch.len() < BATCH_JOBS_MAX
            && let Ok(next) = jobs.try_recv()
        {
            batch.push(next);
        }
        let stop = batch.iter().any(|job| matches!(job, Job::Stop));
        commit(&mut database, std::mem::take(&mut batch));
        if stop {
            return;
        }
    }
}

/// Does all of `batch` in one transaction, then answers.
fn commit(database: &mut Connection, batch: Vec<Job>) {
    let mut answers: Vec<(Reply, KvAnswer)> = vec![];
    let mut failed = None;
    match database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate) {
        Err(error) => {
            let reply = translate(&error);
            answers.extend(batch.into_iter().filter_map(|job| match job {
                Job::Question { reply: to, .. } => Some((to, reply.clone())),
                _ => None,
            }));
        }
        Ok(transaction) => {
            for job in batch {
                match job {
                    Job::Question { plugin_id, question, reply } => {
                        let answer = answer(&transaction, &plugin_id, question)
                            .unwrap_or_else(|error| translate(&error));
                        answers.push((reply, answer));
                    }
                    Job::Event { plugin_id, kind, details, unix_ms } => {
                        let _ = insert_event(&transaction, &plugin_id, kind, &details, unix_ms);
                    }
                    Job::SetEnabled { plugin_id, enabled } => {
                        let _ = transaction
                            .prepare_cached("INSERT OR REPLACE INTO plugins (id, enabled) VALUES (?1, ?2)")
                            .and_then(|mut statement| statement.execute(params![plugin_id, enabled]));
                    }
                    Job::Stop => {}
                }
            }
            if let Err(error) = transaction.commit() {
                failed = Some(translate(&error));
            }
        }
    }
    for (reply, answer) in answers {
        // What was read before a failed commit may never have been true.
        reply(failed.clone().unwrap_or(answer));
    }
}

fn answer(database: &Connection, plugin_id: &str, question: KvQuestion) -> rusqlite::Result<KvAnswer> {
    let too_long = |key: &str| key.len() > KEY_BYTES_MAX;
    let refused = || Ok(failure("too_large", &format!("a key has at most {KEY_BYTES_MAX} bytes")));
    match question {
        KvQuestion::Get { key } => {
            let value = database
                .prepare_cached("SELECT value FROM plugin_kv WHERE plugin_id = ?1 AND key = ?2")?
                .query_row(params![plugin_id, key], |row| row.get(0))
                .optional()?;
            Ok(KvAnswer::Value(value))
        }
        KvQuestion::Set { key, .. } if too_long(&key) => refused(),
        KvQuestion::Set { key, value } => {
            database
                .prepare_cached(
                    "INSERT OR REPLACE INTO plugin_kv (plugin_id, key, value) VALUES (?1, ?2, ?3)",
                )?
                .execute(params![plugin_id, key, value])?;
            Ok(KvAnswer::Value(None))
        }
        KvQuestion::Delete { key } => {
            database
                .prepare_cached("DELETE FROM plugin_kv WHERE plugin_id = ?1 AND key = ?2")?
                .execute(params![plugin_id, key])?;
            Ok(KvAnswer::Value(None))
        }
        KvQuestion::List { prefix, limit } => {
            let limit = limit.unwrap_or(LIST_KEYS_MAX).min(LIST_KEYS_MAX) as i64;
            let keys = database
                .prepare_cached(
                    "SELECT key FROM plugin_kv WHERE plugin_id = ?1 AND substr(key, 1, length(?2)) = ?2
                     ORDER BY key LIMIT ?3",
                )?
                .query_map(params![plugin_id, prefix, limit], |row| row.get(0))?
                .collect::<rusqlite::Result<Vec<String>>>()?;
            Ok(KvAnswer::Keys(keys))
        }
        KvQuestion::Invalid { reason } => Ok(failure("invalid", &reason)),
    }
}

fn insert_event(
    database: &Connection,
    plugin_id: &str,
    kind: &str,
    details: &Value,
    unix_ms: u64,
) -> rusqlite::Result<usize> {
    database
        .prepare_cached(
            "INSERT INTO plugin_events (plugin_id, event_type, timestamp, details) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![plugin_id, kind, as_str(&rfc3339_millis(unix_ms)), details.to_string()])
}

fn translate(error: &rusqlite::Error) -> KvAnswer {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => failure("disk_full", "the disk is full"),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            failure("busy", "another process holds the database locked")
        }
        _ => failure("unavailable", &format!("the store failed: {error}")),
    }
}

fn failure(code: &'static str, message: &str) -> KvAnswer {
    KvAnswer::Error { code, message: message.to_owned() }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn ask(store: &Store, plugin_id: &str, question: KvQuestion) -> KvAnswer {
        let (tx, rx) = channel();
        store.ask(plugin_id, question, Box::new(move |reply| tx.send(reply).expect("the test waits")));
        rx.recv_timeout(Duration::from_secs(30)).expect("an answer")
    }

    fn get(key: &str) -> KvQuestion {
        KvQuestion::Get { key: key.into() }
    }

    fn set(key: &str, value: &str) -> KvQuestion {
        KvQuestion::Set { key: key.into(), value: value.into() }
    }

    #[test]
    fn values_stay_within_their_plugin_and_survive_a_restart() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, owner, known) = start(dir.path()).expect("open");
        assert_eq!(ask(&store, "a", set("k", "1")), KvAnswer::Value(None));
        assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(Some("1".into())));
        assert_eq!(ask(&store, "b", get("k")), KvAnswer::Value(None));
        store.record("a", "ready", serde_json::json!({ "pid": 1 }));
        store.set_enabled("b", false);
        owner.finish();
        let (store, owner, again) = start(dir.path()).expect("open");
        assert_eq!(again.instance_id, known.instance_id);
        assert!(again.disabled.contains("b"));
        assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(Some("1".into())));
        let delete = KvQuestion::Delete { key: "k".into() };
        assert_eq!(ask(&store, "a", delete), KvAnswer::Value(None));
        assert_eq!(ask(&store, "a", get("k")), KvAnswer::Value(None));
        owner.finish();
        let database = Connection::open(dir.path().join("toru.db")).expect("open");
        let events: i64 =
            database.query_row("SELECT count(*) FROM plugin_events", [], |row| row.get(0)).expect("count");
        assert_eq!(events, 1);
    }

    #[test]
    fn list_takes_its_prefix_literally() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (store, owner, _) = start(dir.path()).expect("open");
        for key in ["a%1", "a%2", "ab", "b"] {
            ask(&store, "p", set(key, "x"));
        }
        let list = |prefix: &str, limit| KvQuestion::List { prefix: prefix.into(), limit };
        assert_eq!(ask(&store, "p", list("a%", None)), KvAnswer::Keys(vec!["a%1".into(), "a%2".into()]));
        assert_eq!(ask(&store, "p", list("", Some(1))), KvAnswer::Keys(vec!["a%1".into()]));
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert!(
            matches!(ask(&store, "p", set(&long, "")), KvAnswer::Error { code, .. } if code == "too_large")
        );
        owner.finish();
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("toru.db");
        std::fs::write(&path, b"this is no database, and long enough to be looked at as one".repeat(20))
            .expect("write");
        let before = std::fs::read(&path).expect("read");
        let error = start(dir.path()).err().expect("refused").to_string();
        assert!(error.contains("toru.db") && error.contains(".recover"), "{error}");
        assert_eq!(std::fs::read(&path).expect("read"), before);
    }
}
