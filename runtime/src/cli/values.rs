//! `toru kv export` and `toru kv import`: a plugin's values as JSON lines, through the running daemon.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tempfile::SpooledTempFile;

use super::{Answer, CliError, Daemon, parse, print, printable, read_success, segment};
use crate::config::StoreConfig;
use crate::kv::offline::{self, OfflineError};
use crate::kv::portable::{Entry, Trailer};

/// Bytes and lines of one request: well below what the daemon takes, and enough for its transactions.
const BATCH_BYTES: usize = 128 * 1024;
const BATCH_LINES: usize = 500;
/// A line may be as long as the largest message, of which each byte may be escaped.
const LINE_BYTES_MAX: u64 = 6 * 16 * 1024 * 1024 + 4096;
/// What is kept in memory of values on their way, before a file without a name takes them.
const SPOOL_BYTES: usize = 16 * 1024 * 1024;
/// How long to ask again while the daemon is busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(30);
const BUSY_PAUSE: Duration = Duration::from_millis(200);
/// Lines that are named when the daemon refuses many of one request.
const REFUSED_SHOWN: usize = 10;

/// Lines that have been read to their end, each found to be one.
pub struct Lines {
    spool: SpooledTempFile,
    /// Where they came from, for messages.
    source: String,
    /// Of those that set a value, if somebody wants to know.
    keys: Option<HashSet<String>>,
}

impl Lines {
    /// Reads `file`, or the standard input, whole: nothing is to be changed for a file with a bad line.
    ///
    /// Errors: it cannot be read, or a line is none; the message names it.
    pub fn read(file: Option<&Path>, keep_keys: bool) -> Result<Self, CliError> {
        let source = file.map_or("the standard input".to_owned(), |path| path.display().to_string());
        let unreadable = |error: io::Error| CliError::Refused(format!("cannot read {source}: {error}"));
        let input: Box<dyn Read> = match file {
            Some(path) => Box::new(File::open(path).map_err(unreadable)?),
            None => Box::new(io::stdin().lock()),
        };
        let mut input = BufReader::new(input);
        let mut spool = SpooledTempFile::new(SPOOL_BYTES);
        let mut keys = keep_keys.then(HashSet::new);
        let mut line = Vec::new();
        for number in 1_u64.. {
            if !next_line(&mut input, &mut line).map_err(unreadable)? {
                break;
            }
            let refuse = |why: &dyn std::fmt::Display| {
                CliError::Refused(format!("{source}, line {number}: {why}; nothing was changed"))
            };
            if line.len() as u64 > LINE_BYTES_MAX {
                return Err(refuse(&"longer than any value"));
            }
            let entry = Entry::parse(&line).map_err(|error| refuse(&error))?;
            if let (Some(keys), Some(Entry { key, value: Some(_) })) = (&mut keys, entry) {
                keys.insert(key);
            }
            spool.write_all(&line).and_then(|()| spool.write_all(b"\n")).map_err(unreadable)?;
        }
        spool.rewind().map_err(unreadable)?;
        Ok(Self { spool, source, keys })
    }

    /// Calls `take` with each line that is not empty, and its number from 1 on.
    pub fn each(&mut self, mut take: impl FnMut(u64, &[u8]) -> Result<(), CliError>) -> Result<(), CliError> {
        let mut spool = BufReader::new(&mut self.spool);
        let mut line = Vec::new();
        for number in 1_u64.. {
            let more = next_line(&mut spool, &mut line);
            if !more.map_err(|error| CliError::Refused(format!("cannot read the copy: {error}")))? {
                break;
            }
            if !line.trim_ascii().is_empty() {
                take(number, &line)?;
            }
        }
        Ok(())
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether a line sets this key; for lines read with their keys kept.
    pub fn sets(&self, key: &str) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.contains(key))
    }
}

/// The next line without its end; false after the last.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if input.take(LINE_BYTES_MAX + 2).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(true)
}

/// Lets `write` fill a file that takes the place of `file` once it is whole, for its owner alone; or the standard output.
pub fn deliver<T>(
    file: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let Some(path) = file else {
        // Whoever reads slowly must not hold up the database's log: all of it comes here first.
        let mut spool = SpooledTempFile::new(SPOOL_BYTES);
        let outcome = write(&mut spool)?;
        spool.rewind().map_err(CliError::Output)?;
        return match io::copy(&mut spool, &mut io::stdout().lock()) {
            // `toru kv export acme | head -1` has what it wants.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(outcome),
            copied => copied.map(|_| outcome).map_err(CliError::Output),
        };
    };
    let cannot = |error: io::Error| CliError::Refused(format!("cannot write {}: {error}", path.display()));
    if path.exists() && !path.is_file() {
        // `/dev/stdout` and pipes have no place that could be taken.
        return write(&mut File::options().write(true).open(path).map_err(cannot)?);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut fresh = tempfile::Builder::new().prefix(".toru-export-").tempfile_in(folder).map_err(cannot)?;
    let outcome = write(&mut fresh)?;
    fresh.as_file().sync_all().map_err(cannot)?;
    fresh.persist(path).map_err(|error| cannot(error.error))?;
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(cannot)?;
    Ok(outcome)
}

/// Tells what an export came to, where that is not in the way of the values.
pub fn tell_exported(id: &str, file: Option<&Path>, values: u64) -> Result<(), CliError> {
    match file {
        Some(path) => print(&format!("{}: {values} values of {id}\n", path.display())),
        None => Ok(()),
    }
}

/// Tells what an import came to.
pub fn tell_imported(id: &str, lines: u64, removed: u64) -> Result<(), CliError> {
    let removed = if removed > 0 { format!(", {removed} values removed before") } else { String::new() };
    print(&format!("{id}: {lines} lines taken in{removed}\n"))
}

impl From<OfflineError> for CliError {
    fn from(error: OfflineError) -> Self {
        CliError::Refused(error.to_string())
    }
}

impl Daemon {
    /// `toru kv export ID`: all values as they are at one moment, in order of their keys, in `file` or on the standard
    /// output. A file is replaced at the end, or left as it was.
    pub fn export(&self, id: &str, file: Option<&Path>) -> Result<(), CliError> {
        let values = deliver(file, |out| {
            self.each_value(id, |line| {
                out.write_all(line).and_then(|()| out.write_all(b"\n")).map_err(CliError::Output)
            })
        })?;
        tell_exported(id, file, values)
    }

    /// `toru kv import ID`: sets what the lines of `file` or of the standard input say, in their order and a batch at a
    /// time; with `replace`, removes first what they do not set.
    ///
    /// Errors: a line is none, before anything is changed; or the daemon refuses one, which is named. What came before
    /// it is stored, and the same import may be run again.
    pub fn import(&self, id: &str, file: Option<&Path>, replace: bool) -> Result<(), CliError> {
        let mut lines = Lines::read(file, replace)?;
        let source = lines.source().to_owned();
        let mut removed = Batches::new(self, id, "the removal of other values");
        if replace {
            let mut others = Vec::new();
            self.each_value(id, |line| {
                let known: Key = parse(&String::from_utf8_lossy(line))?;
                if !lines.sets(&known.key) {
                    others.push(known.key);
                }
                Ok(())
            })?;
            for (number, key) in (1..).zip(others) {
                removed
                    .push(number, serde_json::json!({ "key": key, "value": null }).to_string().as_bytes())?;
            }
            removed.send()?;
        }
        let mut taken = Batches::new(self, id, &source);
        lines.each(|number, line| taken.push(number, line))?;
        taken.send()?;
        tell_imported(id, taken.done, removed.done)
    }

    /// Calls `take` with each line of an export; how many there were.
    fn each_value(
        &self,
        id: &str,
        mut take: impl FnMut(&[u8]) -> Result<(), CliError>,
    ) -> Result<u64, CliError> {
        let mut answer = self.ask("GET", &format!("/v1/plugins/{}/kv", segment(id)), None)?;
        if answer.status != 200 {
            return read_success(answer).map(|_| 0);
        }
        let mut count = 0;
        let mut line = Vec::new();
        while next_line(&mut answer.body, &mut line).map_err(|error| self.lost(error))? {
            // A value has other fields than the last line.
            if let Ok(trailer) = serde_json::from_slice::<Trailer>(&line) {
                if trailer.values == count {
                    return Ok(count);
                }
                break;
            }
            count += 1;
            take(&line)?;
        }
        Err(CliError::Refused(format!("the values of {id} ended early, after {count}; see the daemon's log")))
    }
}

/// `toru kv export --offline ID`: as [`Daemon::export`], from the database in `data_dir`.
pub fn export_offline(data_dir: &Path, id: &str, file: Option<&Path>) -> Result<(), CliError> {
    let cannot = |error: &dyn std::fmt::Display| CliError::Refused(error.to_string());
    let mut export = offline::export(data_dir, id).map_err(|error| cannot(&error))?;
    let values = deliver(file, |out| {
        let mut count = 0;
        while let Some(piece) = export.read().map_err(|error| cannot(&error))? {
            for line in piece.split_inclusive(|&byte| byte == b'\n') {
                match serde_json::from_slice::<Trailer>(line) {
                    Ok(trailer) => count = trailer.values,
                    Err(_) => out.write_all(line).map_err(CliError::Output)?,
                }
            }
        }
        Ok(count)
    })?;
    tell_exported(id, file, values)
}

/// `toru kv import --offline ID`: as [`Daemon::import`], into the database in `data_dir`, all lines or none.
pub fn import_offline(
    data_dir: &Path,
    settings: &StoreConfig,
    id: &str,
    file: Option<&Path>,
    replace: bool,
) -> Result<(), CliError> {
    toru_plugin_api::metadata::check_id(id).map_err(|error| CliError::Refused(error.to_string()))?;
    let mut lines = Lines::read(file, false)?;
    let source = lines.source().to_owned();
    let mut count = 0;
    let removed = offline::import(data_dir, settings, id, replace, |take| {
        lines.each(|number, line| {
            let place = |error: &dyn std::fmt::Display| {
                CliError::Refused(format!("{source}, line {number}: {error}; nothing was changed"))
            };
            if let Some(entry) = Entry::parse(line).map_err(|error| place(&error))? {
                take(&entry).map_err(|error| place(&error))?;
                count += 1;
            }
            Ok(())
        })
    })?;
    tell_imported(id, count, removed)
}

#[derive(Deserialize)]
struct Key {
    key: String,
}

/// Lines on their way to the daemon, some at a time.
struct Batches<'a> {
    daemon: &'a Daemon,
    id: &'a str,
    source: &'a str,
    body: Vec<u8>,
    /// Numbers of the lines in `body`.
    numbers: Vec<u64>,
    done: u64,
}

#[derive(Deserialize)]
struct Outcome {
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    /// In the request, from 1 on.
    line: usize,
    code: String,
    message: String,
}

impl<'a> Batches<'a> {
    fn new(daemon: &'a Daemon, id: &'a str, source: &'a str) -> Self {
        Self { daemon, id, source, body: vec![], numbers: vec![], done: 0 }
    }

    fn push(&mut self, number: u64, line: &[u8]) -> Result<(), CliError> {
        if self.numbers.len() == BATCH_LINES || self.body.len() + line.len() > BATCH_BYTES {
            self.send()?;
        }
        self.body.extend_from_slice(line);
        self.body.push(b'\n');
        self.numbers.push(number);
        Ok(())
    }

    /// Sends what is left.
    fn send(&mut self) -> Result<(), CliError> {
        if self.numbers.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let path = format!("/v1/plugins/{}/kv", segment(self.id));
        let refused = loop {
            let content = Some(("application/x-ndjson", &self.body[..]));
            let answer: Answer = self.daemon.ask("POST", &path, content)?;
            let status = answer.status;
            let text = read_success(answer).map_err(|error| self.name_lines(status, error))?;
            let outcome: Outcome = parse(&text)?;
            let busy = outcome.refused.iter().all(|refused| refused.code == "busy");
            if outcome.refused.is_empty() || !busy || began.elapsed() > BUSY_PATIENCE {
                break outcome.refused;
            }
            // All of it: of two lines with the same key the later must stay the later.
            std::thread::sleep(BUSY_PAUSE);
        };
        let fitted = self.numbers.len().saturating_sub(refused.len()) as u64;
        self.done += fitted;
        if refused.is_empty() {
            self.body.clear();
            self.numbers.clear();
            return Ok(());
        }
        let mut text = String::new();
        for one in refused.iter().take(REFUSED_SHOWN) {
            let number = self.numbers.get(one.line.wrapping_sub(1)).copied().unwrap_or_default();
            let message = printable(&one.message);
            text.push_str(&format!("{}, line {number}: {} ({message})\n", self.source, one.code));
        }
        if refused.len() > REFUSED_SHOWN {
            text.push_str(&format!("and {} lines more\n", refused.len() - REFUSED_SHOWN));
        }
        // The daemon takes a portion line by line, and those behind a refused one as well.
        let last = self.numbers.last().copied().unwrap_or_default();
        text.push_str(&format!(
            "{} other lines up to line {last} were taken in; what follows that was not tried",
            self.done
        ));
        Err(CliError::Refused(text))
    }

    /// The daemon refused the request itself.
    fn name_lines(&self, status: u16, error: CliError) -> CliError {
        let (first, last) = (self.numbers.first().copied(), self.numbers.last().copied());
        let (first, last) = (first.unwrap_or_default(), last.unwrap_or_default());
        match error {
            CliError::Refused(why) if status != 404 => CliError::Refused(format!(
                "{}, lines {first} to {last}: {why}; {} lines before were taken in",
                self.source, self.done
            )),
            other => other,
        }
    }
}
