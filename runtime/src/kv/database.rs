//! The file itself: how it is made, opened and upgraded, and every statement that is run on it.
//!
//! Knows nothing of threads, queues or time limits; called by the two threads of [`super`] and by [`super::offline`].

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ToSql;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params, params_from_iter};
use serde_json::Value;
use toru_plugin_api::time::{as_str, rfc3339_millis};
use toru_supervisor::{Kept, KvQuestion};

use super::{EventQuery, EventRow, Known, OpenError};
use crate::config::Synchronous;

/// How long another process may hold the database locked before whoever wants it gives up.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The write-ahead log is cut back to this size after a burst made it larger.
const WAL_BYTES_KEPT: i64 = 16 * 1024 * 1024;
/// Rows that one pass of pruning removes; a pass holds up the writers behind it.
const PRUNE_ROWS_MAX: i64 = 5000;

/// What each schema version changed. A new file goes through all of them, an old one through those it lacks.
/// What has been released is never edited: another step is added.
const STEPS: [&str; 5] = [
    "CREATE TABLE plugin_kv (
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
    INSERT INTO meta (key, value) VALUES ('schema_version', '1');",
    // Pruning by age and asking for a span of time would read the whole trail.
    "CREATE INDEX plugin_events_by_time ON plugin_events (timestamp);",
    // `failed` says why a plugin was given up.
    "ALTER TABLE plugins ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE plugins ADD COLUMN failed TEXT;",
    // Crashes in a row, and what is told of the last one; times in milliseconds since 1970.
    "ALTER TABLE plugins ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE plugins ADD COLUMN next_start INTEGER;
    ALTER TABLE plugins ADD COLUMN last_restart INTEGER;
    ALTER TABLE plugins ADD COLUMN last_exit TEXT;",
    // A hash of what the plugin's file held when it was given up.
    "ALTER TABLE plugins ADD COLUMN failed_content INTEGER;",
];
pub const SCHEMA_VERSION: i64 = STEPS.len() as i64;

/// Opens the database for writing, making it if there is none and upgrading it if it is old.
///
/// Errors: it is damaged, no database of toru, newer than this toru, or cannot be read or written.
pub fn open(path: &Path, synchronous: Synchronous) -> Result<Connection, OpenError> {
    let there = path.try_exists().map_err(|error| unusable(path, &error))?;
    if !there {
        make(path).map_err(|error| explain(path, &error))?;
    }
    // Looked at by a connection that cannot write: one that can would, at its close, write what an old log holds into a
    // file that may be damaged.
    let looking = connect_read_only(path).map_err(|error| explain(path, &error))?;
    let health = quick_check(&looking).map_err(|error| explain(path, &error))?;
    if health != "ok" {
        return Err(damaged(path, &health));
    }
    let version = schema_version(&looking).map_err(|error| explain(path, &error))?;
    drop(looking);
    match version {
        1..=SCHEMA_VERSION => {}
        newer if newer > SCHEMA_VERSION => {
            return Err(OpenError(format!(
                "{} has schema version {newer}, but this toru knows {SCHEMA_VERSION}; use the newer toru, or another data folder",
                path.display()
            )));
        }
        _ => return Err(damaged(path, "it has none of toru's tables")),
    }
    let mut database = connect(path, synchronous).map_err(|error| explain(path, &error))?;
    take_steps(&mut database, version).map_err(|error| explain(path, &error))?;
    // A version before this one made the file with the mode of the umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|error| unusable(path, &error))?;
    Ok(database)
}

/// A new database, made whole under another name: a file that is empty or has no tables was never ours, so that it can
/// be told from one that lost its content, and refused.
fn make(path: &Path) -> rusqlite::Result<()> {
    let fresh = path.with_extension("db.new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(from_io(error)),
        _ => {}
    }
    create_private(&fresh)?;
    let mut database = Connection::open(&fresh)?;
    take_steps(&mut database, 0)?;
    database.close().map_err(|(_, error)| error)?;
    fs::rename(&fresh, path).and_then(|()| sync_folder(path)).map_err(from_io)
}

/// An empty file for its owner alone; SQLite gives the files that it makes beside it the same mode.
pub fn create_private(path: &Path) -> rusqlite::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop).map_err(from_io)
}

pub fn from_io(error: io::Error) -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure(Box::new(error))
}

/// Makes a change of names in the folder of `path` durable.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Whether the database at `path` can be read and its pages hang together.
pub fn is_sound(path: &Path) -> bool {
    connect_read_only(path).and_then(|database| quick_check(&database)).is_ok_and(|found| found == "ok")
}

/// A connection for the one thread that writes.
pub fn connect(path: &Path, synchronous: Synchronous) -> rusqlite::Result<Connection> {
    let database = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    database.busy_timeout(LOCK_TIMEOUT)?;
    // WAL: readers (our own, backups, a curious operator) and the writer do not stop each other.
    database.pragma_update(None, "journal_mode", "WAL")?;
    // FULL: an acknowledged value survives power loss. NORMAL syncs only when the log is written back, and may lose
    // the last ones to power loss, though not to the end of the process.
    let word = match synchronous {
        Synchronous::Full => "FULL",
        Synchronous::Normal => "NORMAL",
    };
    database.pragma_update(None, "synchronous", word)?;
    database.pragma_update(None, "journal_size_limit", WAL_BYTES_KEPT)?;
    database.set_prepared_statement_cache_capacity(32);
    Ok(database)
}

/// A connection that cannot write, whatever it is asked.
pub fn connect_read_only(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    database.busy_timeout(LOCK_TIMEOUT)?;
    database.set_prepared_statement_cache_capacity(32);
    Ok(database)
}

/// Opens the database again after a write failed.
///
/// All that was acknowledged is written back into the file and synced, and the log is emptied: only if the disk does
/// that is it trusted again. What had been written to the log without being synced, and was refused for it, goes with
/// the log, provided that another connection stayed open meanwhile; the first one to open would take it for committed.
pub fn reopen(path: &Path, synchronous: Synchronous) -> rusqlite::Result<Connection> {
    let database = connect(path, synchronous)?;
    let held: bool = database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if held {
        return Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("another process holds the write-ahead log".into()),
        ));
    }
    match quick_check(&database)?.as_str() {
        "ok" => Ok(database),
        found => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
            Some(found.to_owned()),
        )),
    }
}

fn quick_check(database: &Connection) -> rusqlite::Result<String> {
    database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

pub fn schema_version(database: &Connection) -> rusqlite::Result<i64> {
    database.query_row("PRAGMA user_version", [], |row| row.get(0))
}

fn take_steps(database: &mut Connection, from: i64) -> rusqlite::Result<()> {
    if from == SCHEMA_VERSION {
        return Ok(());
    }
    let transaction = database.transaction()?;
    for (version, step) in (1..).zip(STEPS).skip(from as usize) {
        transaction.execute_batch(step)?;
        transaction
            .execute("UPDATE meta SET value = ?1 WHERE key = 'schema_version'", [version.to_string()])?;
        transaction.pragma_update(None, "user_version", version)?;
    }
    transaction.commit()
}

pub fn read_known(database: &Connection) -> rusqlite::Result<Known> {
    let found: Option<String> = database
        .query_row("SELECT value FROM meta WHERE key = 'instance_id'", [], |row| row.get(0))
        .optional()?;
    let instance_id = match found {
        Some(id) => id,
        None => {
            // 128 random bits, from SQLite's generator, which is seeded by the system.
            let id: String = database.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))?;
            database.execute("INSERT INTO meta (key, value) VALUES ('instance_id', ?1)", [&id])?;
            id
        }
    };
    let mut statement = database.prepare(
        "SELECT id, enabled, restarts, failed, failures, next_start, last_restart, last_exit, failed_content
         FROM plugins",
    )?;
    let moment = |found: Option<i64>| found.map(i64::unsigned_abs);
    let plugins = statement.query_map([], |row| {
        let kept = Kept {
            enabled: row.get(1)?,
            restarts: row.get::<_, i64>(2)?.unsigned_abs(),
            failed: row.get(3)?,
            failures: row.get(4)?,
            next_start_unix_ms: moment(row.get(5)?),
            restarted_unix_ms: moment(row.get(6)?),
            last_exit: row.get(7)?,
            failed_content: row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned),
        };
        Ok((row.get(0)?, kept))
    })?;
    let plugins = plugins.collect::<Result<_, _>>()?;
    let unended = read_unended(database)?;
    Ok(Known { instance_id, plugins, unended })
}

/// Who was started last and not told to have ended, with the time of the start.
///
/// Goes from plugin to plugin along the index, and from the end of each backwards: the trail may be long.
fn read_unended(database: &Connection) -> rusqlite::Result<HashMap<String, String>> {
    let mut statement = database.prepare(
        "WITH RECURSIVE plugin (id) AS (
             SELECT min(plugin_id) FROM plugin_events
             UNION ALL
             SELECT (SELECT min(plugin_id) FROM plugin_events WHERE plugin_id > plugin.id)
             FROM plugin WHERE plugin.id IS NOT NULL
         )
         SELECT plugin.id, last.timestamp FROM plugin JOIN plugin_events AS last ON last.id = (
             SELECT id FROM plugin_events
             WHERE plugin_id = plugin.id
                 AND event_type IN ('started', 'stopped', 'crashed', 'disabled_after_crashes')
             ORDER BY id DESC LIMIT 1
         ) WHERE last.event_type = 'started'",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    rows.collect()
}

pub fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        _ => unusable(path, error),
    }
}

fn unusable(path: &Path, error: &dyn std::error::Error) -> OpenError {
    OpenError(format!("cannot use the database {}: {error}", path.display()))
}

fn damaged(path: &Path, what: &str) -> OpenError {
    let file = path.display();
    let recovered: PathBuf = path.with_extension("recovered.db");
    OpenError(format!(
        "the database {file} is damaged ({what}); it was left as it is. Put a backup in its place with `toru db restore`, save what can be read with `sqlite3 {file} .recover | sqlite3 {}`, or move it away to start with nothing",
        recovered.display()
    ))
}

// ---- values ----

/// Bytes of keys and values that each plugin keeps, as the database has them.
///
/// Summed at the open and whenever another process has written; between, every transaction adds its own changes, and
/// one that failed adds none.
#[derive(Default)]
pub struct Usage {
    bytes: HashMap<String, u64>,
    /// SQLite's count of what other connections wrote.
    data_version: Option<i64>,
}

impl Usage {
    /// Sums anew if somebody else wrote. To be called within a transaction, so that nobody can in between.
    pub fn refresh(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let version =
            transaction.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get::<_, i64>(0))?;
        if self.data_version == Some(version) {
            return Ok(());
        }
        let mut sums = transaction.prepare_cached(
            "SELECT plugin_id, sum(octet_length(key) + octet_length(value)) FROM plugin_kv GROUP BY plugin_id",
        )?;
        let rows = sums.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?;
        self.bytes = rows.collect::<Result<_, _>>()?;
        self.data_version = Some(version);
        Ok(())
    }

    pub fn of(&self, plugin_id: &str) -> u64 {
        self.bytes.get(plugin_id).copied().unwrap_or(0)
    }

    /// Takes over what a transaction that is now committed has changed.
    pub fn adopt(&mut self, changed: HashMap<&str, u64>) {
        for (plugin_id, bytes) in changed {
            match self.bytes.get_mut(plugin_id) {
                Some(known) => *known = bytes,
                None => drop(self.bytes.insert(plugin_id.to_owned(), bytes)),
            }
        }
    }
}

/// Bytes of the key and its value, if it is there.
fn entry_bytes(database: &Connection, plugin_id: &str, key: &str) -> rusqlite::Result<Option<u64>> {
    database
        .prepare_cached("SELECT octet_length(value) FROM plugin_kv WHERE plugin_id = ?1 AND key = ?2")?
        .query_row([plugin_id, key], |row| row.get::<_, i64>(0))
        .optional()
        .map(|value| value.map(|value| value.cast_unsigned() + key.len() as u64))
}

/// Stores a value unless it would take the plugin past `quota_bytes`; gives the plugin's new sum, or `None` if refused.
///
/// A value that makes less of what is there is taken also above the quota, which may have been lowered.
pub fn set(
    database: &Connection,
    plugin_id: &str,
    key: &str,
    value: &str,
    used_bytes: u64,
    quota_bytes: u64,
) -> rusqlite::Result<Option<u64>> {
    let before = entry_bytes(database, plugin_id, key)?.unwrap_or(0);
    let after = (key.len() + value.len()) as u64;
    let sum = (used_bytes - before).saturating_add(after);
    if sum > quota_bytes && after > before {
        return Ok(None);
    }
    database
        .prepare_cached(
            "INSERT INTO plugin_kv (plugin_id, key, value) VALUES (?1, ?2, ?3)
             ON CONFLICT (plugin_id, key) DO UPDATE SET value = excluded.value",
        )?
        .execute([plugin_id, key, value])?;
    Ok(Some(sum))
}

/// Removes a value; gives the plugin's new sum.
pub fn delete(database: &Connection, plugin_id: &str, key: &str, used_bytes: u64) -> rusqlite::Result<u64> {
    let Some(before) = entry_bytes(database, plugin_id, key)? else { return Ok(used_bytes) };
    database
        .prepare_cached("DELETE FROM plugin_kv WHERE plugin_id = ?1 AND key = ?2")?
        .execute([plugin_id, key])?;
    Ok(used_bytes - before)
}

pub fn get(database: &Connection, plugin_id: &str, key: &str) -> rusqlite::Result<Option<String>> {
    database
        .prepare_cached("SELECT value FROM plugin_kv WHERE plugin_id = ?1 AND key = ?2")?
        .query_row([plugin_id, key], |row| row.get(0))
        .optional()
}

/// At most `limit` keys that begin with `prefix`, in order of their bytes.
pub fn list(
    database: &Connection,
    plugin_id: &str,
    prefix: &str,
    limit: usize,
) -> rusqlite::Result<Vec<String>> {
    // Walks the index from the prefix on; SQLite's own string functions would stop at a NUL.
    let mut statement = database
        .prepare_cached("SELECT key FROM plugin_kv WHERE plugin_id = ?1 AND key >= ?2 ORDER BY key")?;
    let mut rows = statement.query([plugin_id, prefix])?;
    let mut keys = Vec::new();
    while keys.len() < limit
        && let Some(row) = rows.next()?
    {
        let key: String = row.get(0)?;
        if !key.starts_with(prefix) {
            break;
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Bytes that a question occupies while it waits.
pub fn question_bytes(question: &KvQuestion) -> usize {
    match question {
        KvQuestion::Set { key, value } => key.len() + value.len(),
        KvQuestion::Get { key } | KvQuestion::Delete { key } => key.len(),
        KvQuestion::List { prefix, .. } => prefix.len(),
        KvQuestion::Invalid { reason } => reason.len(),
    }
}

pub fn keep(database: &Connection, plugin_id: &str, kept: &Kept) -> rusqlite::Result<()> {
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO plugins
             (id, enabled, restarts, failed, failures, next_start, last_restart, last_exit, failed_content)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            plugin_id,
            kept.enabled,
            kept.restarts as i64,
            kept.failed,
            kept.failures,
            kept.next_start_unix_ms.map(|at| at as i64),
            kept.restarted_unix_ms.map(|at| at as i64),
            kept.last_exit,
            kept.failed_content.map(u64::cast_signed),
        ])
        .map(drop)
}

// ---- events ----

pub fn insert_event(
    database: &Connection,
    plugin_id: &str,
    kind: &str,
    details: &Value,
    unix_ms: u64,
) -> rusqlite::Result<()> {
    database
        .prepare_cached(
            "INSERT INTO plugin_events (plugin_id, event_type, timestamp, details) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![plugin_id, kind, as_str(&rfc3339_millis(unix_ms)), details.to_string()])
        .map(drop)
}

/// Removes events from before `oldest_unix_ms` and all but the last `rows_max`, a bounded number at a time; whether
/// there may be more to remove.
///
/// The newest always stays: ids go on from it, and who follows the trail asks for what came after one.
pub fn prune_events(database: &Connection, oldest_unix_ms: u64, rows_max: u64) -> rusqlite::Result<bool> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let too_old = database
        .prepare_cached(
            "DELETE FROM plugin_events WHERE id IN (
                 SELECT id FROM plugin_events WHERE timestamp < ?1 ORDER BY timestamp LIMIT ?2
             ) AND id < (SELECT max(id) FROM plugin_events)",
        )?
        .execute(params![as_str(&rfc3339_millis(oldest_unix_ms)), PRUNE_ROWS_MAX])?;
    let too_many = database
        .prepare_cached(
            "DELETE FROM plugin_events WHERE id IN (
                 SELECT id FROM plugin_events
                 WHERE id <= (SELECT id FROM plugin_events ORDER BY id DESC LIMIT 1 OFFSET ?1)
                 ORDER BY id LIMIT ?2
             )",
        )?
        .execute([rows_max, PRUNE_ROWS_MAX])?;
    // The newest may be among those that are too old, and stays.
    Ok(too_old as i64 >= PRUNE_ROWS_MAX - 1 || too_many as i64 >= PRUNE_ROWS_MAX)
}

pub fn events(database: &Connection, query: &EventQuery) -> rusqlite::Result<Vec<EventRow>> {
    let stamp = |unix_ms: u64| as_str(&rfc3339_millis(unix_ms)).to_owned();
    let (since, until) = (query.since_unix_ms.map(stamp), query.until_unix_ms.map(stamp));
    let limit = query.limit as i64;
    // Only what is asked for stands in the statement, so that SQLite picks the index for it.
    let mut conditions = vec![];
    let mut values: Vec<&dyn ToSql> = vec![];
    let mut condition = |text: &'static str, value| {
        conditions.push(text);
        values.push(value);
    };
    if let Some(id) = &query.after_id {
        condition("id > ?", id);
    }
    if let Some(plugin_id) = &query.plugin_id {
        condition("plugin_id = ?", plugin_id);
    }
    if let Some(kind) = &query.event_type {
        condition("event_type = ?", kind);
    }
    if let Some(since) = &since {
        condition("timestamp >= ?", since);
    }
    if let Some(until) = &until {
        condition("timestamp < ?", until);
    }
    values.push(&limit);
    let filter =
        if conditions.is_empty() { String::new() } else { format!("WHERE {}", conditions.join(" AND ")) };
    let order = if query.after_id.is_some() { "ASC" } else { "DESC" };
    let text = format!(
        "SELECT id, plugin_id, event_type, timestamp, details FROM plugin_events {filter} ORDER BY id {order} LIMIT ?"
    );
    let mut statement = database.prepare_cached(&text)?;
    let rows = statement.query_map(params_from_iter(values), |row| {
        let details: String = row.get(4)?;
        Ok(EventRow {
            id: row.get(0)?,
            plugin_id: row.get(1)?,
            event_type: row.get(2)?,
            timestamp: row.get(3)?,
            // Whatever an operator wrote there by hand is shown, too.
            details: serde_json::from_str(&details).unwrap_or(Value::String(details)),
        })
    })?;
    let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    if query.after_id.is_none() {
        rows.reverse();
    }
    Ok(rows)
}
