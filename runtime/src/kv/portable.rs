//! A plugin's values as JSON lines, to be taken elsewhere and back: `{"key":"k","value":"v"}` each.
//!
//! Out they come as they were at one moment, however long that takes; in they go as questions like any other.

use std::fmt;
use std::path::PathBuf;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use toru_supervisor::KvQuestion;

use super::database;

/// Bytes of lines that one [`Export::read`] gives, but for a value that is larger.
const READ_BYTES: usize = 256 * 1024;

/// A line of values that go in. Other fields are refused: what they meant would be lost.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub key: String,
    /// `null` removes the key.
    #[serde(deserialize_with = "required")]
    pub value: Option<String>,
}

/// `null` has to be said: a value that was forgotten must not remove anything.
fn required<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer)
}

impl Entry {
    /// Reads a line; nothing for one that is empty.
    ///
    /// Errors: it is no object of `key` and `value`, or they are no strings.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        if line.trim_ascii().is_empty() { Ok(None) } else { serde_json::from_slice(line).map(Some) }
    }

    pub fn into_question(self) -> KvQuestion {
        match self.value {
            Some(value) => KvQuestion::Set { key: self.key, value },
            None => KvQuestion::Delete { key: self.key },
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: &'a str,
}

/// The last line of an export, which tells a whole one from one that was cut off.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trailer {
    /// Values before it.
    pub values: u64,
}

/// Reads all values of one plugin, a piece at a time and all from the same moment.
///
/// Has a connection of its own, so that nobody waits for it. While it lives the write-ahead log cannot be emptied:
/// whoever reads it should not stop in the middle.
pub struct Export {
    path: PathBuf,
    plugin_id: String,
    /// Open in a transaction from the first piece on.
    database: Option<Connection>,
    /// The last key that was given.
    after: String,
    values: u64,
    ended: bool,
}

impl fmt::Debug for Export {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Export").field("plugin_id", &self.plugin_id).field("values", &self.values).finish()
    }
}

impl Export {
    /// Of the database at `path`, which is opened at the first read.
    pub fn new(path: PathBuf, plugin_id: String) -> Self {
        Self { path, plugin_id, database: None, after: String::new(), values: 0, ended: false }
    }

    /// The next whole lines, the [`Trailer`] last; nothing after it. Waits for the disk.
    pub fn read(&mut self) -> rusqlite::Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        if self.database.is_none() {
            let database = database::connect_read_only(&self.path)?;
            database.execute_batch("BEGIN")?;
            self.database = Some(database);
        }
        let Some(database) = &self.database else { return Ok(None) };
        let mut lines = Vec::new();
        // The key is never empty, so that the first piece begins with the first.
        let mut statement = database.prepare_cached(
            "SELECT key, value FROM plugin_kv WHERE plugin_id = ?1 AND key > ?2 ORDER BY key",
        )?;
        let mut rows = statement.query([&self.plugin_id, &self.after])?;
        while let Some(row) = rows.next()? {
            let key = row.get_ref(0)?.as_str()?;
            let value = row.get_ref(1)?.as_str()?;
            write_line(&mut lines, &Line { key, value })?;
            self.values += 1;
            if lines.len() >= READ_BYTES {
                self.after = key.to_owned();
                return Ok(Some(lines));
            }
        }
        drop(rows);
        drop(statement);
        self.ended = true;
        self.database = None;
        write_line(&mut lines, &Trailer { values: self.values })?;
        Ok(Some(lines))
    }
}

fn write_line(out: &mut Vec<u8>, line: &impl Serialize) -> rusqlite::Result<()> {
    serde_json::to_writer(&mut *out, line)
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    out.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_key_with_its_value_and_nothing_else() {
        let parse = |text: &str| Entry::parse(text.as_bytes());
        let entry =
            |key: &str, value: Option<&str>| Some(Entry { key: key.into(), value: value.map(str::to_owned) });
        assert_eq!(parse(r#"{"key":"k","value":"v"}"#).expect("a line"), entry("k", Some("v")));
        assert_eq!(parse(r#" {"value":"\u0000","key":""} "#).expect("a line"), entry("", Some("\0")));
        assert_eq!(parse(r#"{"key":"k","value":null}"#).expect("a line"), entry("k", None));
        assert_eq!(parse(" \t").expect("an empty line"), None);
        for bad in [
            r#"{"key":"k"}"#,
            r#"{"value":"v"}"#,
            r#"{"key":"k","value":1}"#,
            r#"{"key":"k","value":{}}"#,
            r#"{"key":"k","value":"v","expires":1}"#,
            r#"{"key":"k","value":"\ud800"}"#,
            r#"{"key":"k","value":"v"} {"key":"l","value":"w"}"#,
            r#"{"values":1}"#,
            "[]",
            "k v",
        ] {
            parse(bad).expect_err(bad);
        }
    }
}
