//! What an operator does with the database from outside the daemon: back it up, check it, put a backup in its place,
//! take a plugin's values out and in.
//!
//! What reads goes on beside a daemon that writes; what writes refuses while one runs. Called by `toru db` and
//! `toru kv --offline` alone.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, TransactionBehavior};
use toru_plugin_api::time::{as_str, rfc3339_millis};

use super::database::{self, SCHEMA_VERSION, Usage};
use super::portable::{Entry, Export};
use crate::config::StoreConfig;

/// What could not be done; the message names the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OfflineError(String);

/// What is in a database that is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub schema_version: i64,
    /// Plugins that keep values.
    pub plugins: i64,
    pub values: i64,
    /// Keys and values together.
    pub value_bytes: i64,
    pub events: i64,
}

impl fmt::Display for Content {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Content { schema_version, plugins, values, value_bytes, events } = self;
        write!(
            out,
            "sound, schema version {schema_version}, {values} values of {plugins} plugins ({value_bytes} bytes), {events} events"
        )
    }
}

/// Looks at every page of the database in `data_dir`, also while a daemon uses it.
///
/// Errors: there is none, it cannot be read, or it is damaged.
pub fn check(data_dir: &Path) -> Result<Content, OfflineError> {
    let path = data_dir.join("toru.db");
    examine(&open(&path)?, &path)
}

/// Copies the database in `data_dir` as it is at one moment, also while a daemon writes, and checks the copy.
///
/// `target` is replaced at the end, in one step, or left as it was. It is one file, for its owner alone.
/// Errors: the database or the folder of `target` cannot be used, or the copy is damaged.
pub fn backup(data_dir: &Path, target: &Path) -> Result<Content, OfflineError> {
    let path = data_dir.join("toru.db");
    let source = open(&path)?;
    let folder = folder_of(target);
    let is_own = target.file_name().is_some_and(|name| name.to_string_lossy().starts_with("toru.db"))
        && same_file(folder, data_dir);
    if is_own {
        return Err(OfflineError(format!(
            "{} belongs to the database itself; name another file",
            target.display()
        )));
    }
    let cannot = |error: &dyn fmt::Display| {
        OfflineError(format!("cannot write the backup {}: {error}", target.display()))
    };
    // In the same folder, so that it can be renamed; of a failure nothing stays.
    let workshop = tempfile::Builder::new()
        .prefix(".toru-backup-")
        .tempdir_in(folder)
        .map_err(|error| cannot(&error))?;
    let copy = workshop.path().join("toru.db");
    copy_into(&source, &copy).map_err(|error| cannot(&error))?;
    let content = examine(&open(&copy)?, &copy)?;
    fs::rename(&copy, target).and_then(|()| database::sync_folder(target)).map_err(|error| cannot(&error))?;
    Ok(content)
}

/// Puts a copy of `source` in the place of the database in `data_dir`.
///
/// Gives what is in it, and where the file that was there before is kept.
/// Errors: a daemon uses the folder; `source` is damaged, no database of toru or newer than this toru; a file cannot be
/// written. After an error the database is the one from before.
pub fn restore(data_dir: &Path, source: &Path) -> Result<(Content, Option<PathBuf>), OfflineError> {
    let path = data_dir.join("toru.db");
    if same_file(source, &path) {
        return Err(OfflineError(format!("{} is the database itself", source.display())));
    }
    let from = open(source)?;
    let content = examine(&from, source)?;
    let cannot =
        |error: &dyn fmt::Display| OfflineError(format!("cannot restore {}: {error}", path.display()));
    let _claim = crate::claim_data_dir(data_dir).map_err(|error| OfflineError(error.to_string()))?;
    let fresh = path.with_extension("db.new");
    remove(&fresh).map_err(|error| cannot(&error))?;
    copy_into(&from, &fresh).map_err(|error| cannot(&error))?;
    let kept = put_aside(&path).map_err(|error| cannot(&error))?;
    // The log belongs to the file that was put aside, and lies beside it. At no moment is there no database.
    remove(&path.with_extension("db-wal"))
        .and_then(|()| remove(&path.with_extension("db-shm")))
        .and_then(|()| fs::rename(&fresh, &path))
        .and_then(|()| database::sync_folder(&path))
        .map_err(|error| cannot(&error))?;
    Ok((content, kept))
}

/// Values of one plugin in the database in `data_dir`, also while a daemon uses it.
///
/// Errors: there is no database there.
pub fn export(data_dir: &Path, plugin_id: &str) -> Result<Export, OfflineError> {
    let path = data_dir.join("toru.db");
    open(&path)?;
    Ok(Export::new(path, plugin_id.to_owned()))
}

/// Takes values into the database in `data_dir`, which no daemon may use: all of them, or none.
///
/// `entries` are applied in their order; with `replace` all that the plugin kept is removed first. Gives how many
/// values that removed.
/// Errors: a daemon uses the folder, the database cannot be used, an entry is refused, or `entries` gives an error; the
/// database is then as it was.
pub fn import<E: From<OfflineError>>(
    data_dir: &Path,
    settings: &StoreConfig,
    plugin_id: &str,
    replace: bool,
    entries: impl FnOnce(&mut dyn FnMut(&Entry) -> Result<(), OfflineError>) -> Result<(), E>,
) -> Result<u64, E> {
    let path = data_dir.join("toru.db");
    // A new database belongs to a start of the daemon; here it would be a folder misspelt.
    open(&path)?;
    let _claim = crate::claim_data_dir(data_dir).map_err(|error| OfflineError(error.to_string()))?;
    let mut database =
        database::open(&path, settings.synchronous).map_err(|error| OfflineError(error.to_string()))?;
    let fail = |error: rusqlite::Error| unusable(&path, &error);
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    let removed = if replace {
        transaction.execute("DELETE FROM plugin_kv WHERE plugin_id = ?1", [plugin_id]).map_err(fail)?
    } else {
        0
    };
    let mut usage = Usage::default();
    usage.refresh(&transaction).map_err(fail)?;
    let mut used = usage.of(plugin_id);
    entries(&mut |Entry { key, value }| {
        super::check_entry(key, value.as_deref().unwrap_or_default(), settings.value_bytes_max)
            .map_err(|(code, message)| OfflineError(format!("{code} ({message})")))?;
        used = match value {
            None => database::delete(&transaction, plugin_id, key, used).map_err(fail)?,
            Some(value) => {
                let quota = settings.quota_bytes;
                database::set(&transaction, plugin_id, key, value, used, quota).map_err(fail)?.ok_or_else(
                    || {
                        OfflineError(format!(
                            "quota (a plugin keeps at most {quota} bytes of keys and values)"
                        ))
                    },
                )?
            }
        };
        Ok(())
    })?;
    transaction.commit().map_err(fail)?;
    database.close().map_err(|(_, error)| fail(error))?;
    Ok(removed as u64)
}

fn open(path: &Path) -> Result<Connection, OfflineError> {
    let there = path.try_exists().map_err(|error| OfflineError(format!("{}: {error}", path.display())))?;
    if !there {
        return Err(OfflineError(format!("there is no database {}", path.display())));
    }
    database::connect_read_only(path).map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, error: &rusqlite::Error) -> OfflineError {
    OfflineError(database::explain(path, error).to_string())
}

fn examine(database: &Connection, path: &Path) -> Result<Content, OfflineError> {
    let fail = |error: rusqlite::Error| unusable(path, &error);
    let found: String =
        database.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(fail)?;
    if found != "ok" {
        return Err(OfflineError(format!("the database {} is damaged: {found}", path.display())));
    }
    let schema_version = database::schema_version(database).map_err(fail)?;
    if !(1..=SCHEMA_VERSION).contains(&schema_version) {
        return Err(OfflineError(format!(
            "{} has schema version {schema_version}, but this toru knows 1 to {SCHEMA_VERSION}",
            path.display()
        )));
    }
    database
        .query_row(
            "SELECT count(DISTINCT plugin_id), count(*), coalesce(sum(octet_length(key) + octet_length(value)), 0),
                 (SELECT count(*) FROM plugin_events)
             FROM plugin_kv",
            [],
            |row| {
                Ok(Content {
                    schema_version,
                    plugins: row.get(0)?,
                    values: row.get(1)?,
                    value_bytes: row.get(2)?,
                    events: row.get(3)?,
                })
            },
        )
        .map_err(fail)
}

/// A new file at `target`, synced, with all of `source` as it is now.
fn copy_into(source: &Connection, target: &Path) -> rusqlite::Result<()> {
    database::create_private(target)?;
    let mut copy = Connection::open(target)?;
    // All pages in one step, which is one moment of the source: in several, every write in between would begin it
    // anew. With the write-ahead log this holds up nobody.
    match Backup::new(source, &mut copy)?.step(-1)? {
        StepResult::Done => {}
        other => {
            return Err(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                Some(format!("the copy did not end: {other:?}")),
            ));
        }
    }
    // One file, that can be moved about; the daemon takes up the log again.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    copy.close().map_err(|(_, error)| error)?;
    fs::File::open(target).and_then(|file| file.sync_all()).map_err(database::from_io)
}

/// Gives the database a second name, and its log if it has one.
fn put_aside(path: &Path) -> io::Result<Option<PathBuf>> {
    if !path.try_exists()? {
        return Ok(None);
    }
    // A sound one takes what its log holds into itself at the close of a connection. One that is not is kept as it is.
    if database::is_sound(path) {
        drop(database::connect(path, crate::config::Synchronous::Full));
    }
    let stamp = as_str(&rfc3339_millis(super::unix_ms())).replace([':', '.'], "-");
    let kept = path.with_extension(format!("db.before-{stamp}"));
    link_or_copy(path, &kept)?;
    let log = path.with_extension("db-wal");
    if log.try_exists()? {
        link_or_copy(&log, &path.with_extension(format!("db.before-{stamp}-wal")))?;
    }
    database::sync_folder(path)?;
    Ok(Some(kept))
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    // Not every file system has hard links.
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}
