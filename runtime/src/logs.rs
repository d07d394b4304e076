//! Reading a plugin's log back: by page, newest first, or following its end.
//!
//! A log is its file and the rotated ones before it (`x.log`, `x.log.1`, `x.log.2`), which may be renamed at any moment:
//! what is to be read next is told by the inode, and a name only says where to look for it.
//!
//! All of it waits for a disk, so it is done on reading threads alone. A log is never held whole, and what stands in a
//! log's place and is no regular file, such as a pipe that nobody writes to, counts as no log.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::OFlags;
use serde::Deserialize;
use toru_supervisor::Level;

use crate::log::rotated_path;

/// What is read at once on the way from a log's end to its beginning.
const BLOCK_BYTES: usize = 64 * 1024;
/// How far back from a log's end pages go.
const PAGES_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What is read of a log's end at once; a followed log is never held whole.
const FOLLOW_BYTES_MAX: u64 = 256 * 1024;
/// How far back the lines lie with which somebody begins to follow a log.
const BACKLOG_BYTES_MAX: u64 = 1024 * 1024;
/// How often a log that is rotated all the time is looked at anew; what is seen then has to do.
const LOOKS_MAX: u32 = 100;
/// Longer lines are left out: no message of a plugin makes one.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The lines of one page, page 1 being the newest, each page oldest line first.
///
/// Bounds: the last [`PAGES_BYTES_MAX`], over all files together; lines that are no JSON objects are left out, as are
/// those beyond [`LINE_BYTES_MAX`].
pub fn read_page(path: &Path, page: usize, page_size: usize, level: Option<Level>) -> Vec<String> {
    let mut newer = (page - 1).saturating_mul(page_size);
    let mut lines: Vec<String> = vec![];
    let mut bytes_left = PAGES_BYTES_MAX;
    for piece in pieces(path) {
        // One that is not there any more was the oldest.
        let Ok((file, found)) = piece.open(path) else { break };
        let seen = read_backwards(&file, found.len(), bytes_left, |_, line| {
            if let Some(line) = wanted(line, level) {
                if newer > 0 {
                    newer -= 1;
                } else {
                    lines.push(line.to_owned());
                }
            }
            lines.len() < page_size
        });
        bytes_left = bytes_left.saturating_sub(found.len());
        // What could be read of a file that was cut, or of a broken disk, is what there is; older lines would hide the gap.
        if seen.is_err() || lines.len() >= page_size || bytes_left == 0 {
            break;
        }
    }
    lines.reverse();
    lines
}

/// The answer to a question for a page; the lines are JSON already.
pub fn page_body(lines: &[String], page: usize, page_size: usize) -> Vec<u8> {
    format!("{{\"logs\":[{}],\"page\":{page},\"page_size\":{page_size}}}", lines.join(",")).into_bytes()
}

/// Whether the log ends within a line, as one does whose writer was killed, or whose disk was full.
pub fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let (file, found) = open(path)?;
    let Some(last) = found.len().checked_sub(1) else { return Ok(false) };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte != *b"\n")
}

/// Opens a log without waiting for anybody to write to it.
///
/// Errors: as open(2); `NotFound` for what is no regular file.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let found = file.metadata()?;
    if found.is_file() { Ok((file, found)) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// One file of a log, by what a rotation does not change.
#[derive(Clone, Copy)]
struct Piece {
    /// How often it had been rotated when it was seen.
    number: u32,
    device: u64,
    inode: u64,
    modified: SystemTime,
    is_empty: bool,
}

impl Piece {
    fn is(&self, found: &Metadata) -> bool {
        (self.device, self.inode) == (found.dev(), found.ino())
    }

    /// Errors: as open(2); `NotFound` if it is gone.
    fn open(&self, path: &Path) -> io::Result<(File, Metadata)> {
        let mut number = self.number;
        for _ in 0..LOOKS_MAX {
            match open(&piece_path(path, number)) {
                Ok((file, found)) if self.is(&found) => return Ok((file, found)),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // It was rotated since.
                _ => {}
            }
            let same = |piece: &Piece| (piece.device, piece.inode) == (self.device, self.inode);
            let Some(now) = pieces(path).into_iter().find(same) else { break };
            number = now.number;
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

fn piece_path(path: &Path, number: u32) -> PathBuf {
    if number == 0 { path.to_owned() } else { rotated_path(path, number) }
}

/// The files of a log that are there, the newest first.
fn pieces(path: &Path) -> Vec<Piece> {
    let mut pieces = vec![];
    for _ in 0..LOOKS_MAX {
        pieces = pieces_seen(path);
        // While the newest keeps its name, one rotation may be under way, and no second one.
        let newest = pieces.first().map_or(0, |piece| piece.number);
        let found = std::fs::metadata(piece_path(path, newest)).ok().filter(Metadata::is_file);
        if found
            .as_ref()
            .map_or(pieces.is_empty(), |found| pieces.first().is_some_and(|piece| piece.is(found)))
        {
            break;
        }
    }
    pieces
}

/// What is seen by one look at each name in their order. A rotation gives each file the next name, the oldest first, so
/// whoever looks while one is under way may see a file twice, passes by none, and finds one name at most that is nobody's.
fn pieces_seen(path: &Path) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = vec![];
    let (mut number, mut missing) = (0, 0);
    while missing < 2 {
        let found = std::fs::metadata(piece_path(path, number));
        missing = if found.is_ok() { 0 } else { missing + 1 };
        if let Ok(found) = found
            && found.is_file()
            && pieces.last().is_none_or(|last| !last.is(&found))
        {
            pieces.push(Piece {
                number,
                device: found.dev(),
                inode: found.ino(),
                modified: found.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                is_empty: found.len() == 0,
            });
        }
        number += 1;
    }
    pieces
}

/// Gives each line without its end, the last one first, and where it begins, until `take` says that it is enough or
/// `bytes_max` have been looked through. The last line is the one that is not ended yet, which may be empty.
fn read_backwards(
    file: &File,
    len: u64,
    bytes_max: u64,
    mut take: impl FnMut(u64, &[u8]) -> bool,
) -> io::Result<()> {
    let floor = len.saturating_sub(bytes_max);
    let (mut buffer, mut long) = (vec![0; BLOCK_BYTES], vec![]);
    // Where the line ends whose beginning is looked for, and the block that was looked through last.
    let (mut line_end, mut start) = (len, len);
    while start > floor {
        let end = start;
        start = end.saturating_sub(BLOCK_BYTES as u64).max(floor);
        let block = &mut buffer[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        let mut unseen = block.len();
        loop {
            let newline = block[..unseen].iter().rposition(|&byte| byte == b'\n');
            let line_start = match newline {
                Some(at) => start + at as u64 + 1,
                None if start == 0 => 0,
                None => break,
            };
            let line = if line_end <= end {
                &block[(line_start - start) as usize..(line_end - start) as usize]
            } else if line_end - line_start <= LINE_BYTES_MAX as u64 {
                long.resize((line_end - line_start) as usize, 0);
                file.read_exact_at(&mut long, line_start)?;
                &long
            } else {
                &[][..]
            };
            let more = take(line_start, line);
            let (true, Some(at)) = (more, newline) else { return Ok(()) };
            (line_end, unseen) = (start + at as u64, at);
        }
    }
    Ok(())
}

/// The line, if it is a JSON object of this level at least.
fn wanted(line: &[u8], level: Option<Level>) -> Option<&str> {
    #[derive(Deserialize)]
    struct Line<'a> {
        level: Option<&'a str>,
    }
    let line = std::str::from_utf8(line).ok().filter(|line| line.starts_with('{'))?;
    let parsed: Line<'_> = serde_json::from_str(line).ok()?;
    level.is_none_or(|least| Level::from_word(parsed.level.unwrap_or("info")) >= least).then_some(line)
}

/// Follows a log over its rotations.
pub struct Follower {
    path: PathBuf,
    level: Option<Level>,
    /// Lines of the past to begin with; taken at the first look.
    backlog: Option<usize>,
    open: Option<Open>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Within a line that is left out.
    skipping: bool,
    /// Whole lines that nobody has taken yet.
    ready: Vec<u8>,
}

struct Open {
    file: File,
    /// What lies before this was read.
    at: u64,
}

impl Open {
    fn has_ended(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() <= self.at)
    }
}

impl Follower {
    pub fn new(path: PathBuf, level: Option<Level>, backlog: usize) -> Self {
        Self {
            path,
            level,
            backlog: Some(backlog),
            open: None,
            partial: vec![],
            skipping: false,
            ready: vec![],
        }
    }

    /// Whole lines that were found; empty where none came since, or where there is no log yet.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ready)
    }

    /// Looks for more lines, once those that were found are taken. Waits for the disk.
    pub fn look(&mut self) {
        if !self.ready.is_empty() {
            return;
        }
        if let Some(backlog) = self.backlog.take() {
            // Whatever is written meanwhile comes with the next look, as does all of a log that is not there yet.
            if self.read_backlog(backlog).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
                self.backlog = Some(backlog);
            }
            return;
        }
        // A disk that is broken for a moment has the same lines afterwards.
        let _ = self.read_on();
        let whole = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        for line in self.partial[..whole].split_inclusive(|&byte| byte == b'\n') {
            let left_out = std::mem::replace(&mut self.skipping, false);
            if !left_out && wanted(&line[..line.len() - 1], self.level).is_some() {
                self.ready.extend_from_slice(line);
            }
        }
        self.partial.drain(..whole);
        if self.partial.len() > LINE_BYTES_MAX {
            self.partial = vec![];
            self.skipping = true;
        }
    }

    /// Adds what came since to what is there of a line.
    fn read_on(&mut self) -> io::Result<()> {
        if self.open.is_none() && !self.go_on()? {
            return Ok(());
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let len = open.file.metadata()?.len();
        if len < open.at {
            // Half a line was taken back, or somebody has emptied the file.
            let line = open.at - self.partial.len() as u64;
            open.at = if self.skipping || len >= line { line.min(len) } else { 0 };
            self.partial.clear();
        }
        if open.at < len {
            let known = self.partial.len();
            self.partial.resize(known + FOLLOW_BYTES_MAX.min(len - open.at) as usize, 0);
            let count = open.file.read_at(&mut self.partial[known..], open.at);
            self.partial.truncate(known + count.as_ref().unwrap_or(&0));
            open.at += count? as u64;
            return Ok(());
        }
        if self.go_on()? { self.read_on() } else { Ok(()) }
    }

    /// Turns to the file after the one that is open, where that has been read and one follows; false if not.
    fn go_on(&mut self) -> io::Result<bool> {
        let Some(next) = self.next_piece()? else { return Ok(false) };
        // Until something is written to the next file, the one before may still be written to; all of that comes first.
        if let Some(open) = &self.open
            && !open.has_ended()?
        {
            return Ok(true);
        }
        let (file, _) = next.open(&self.path)?;
        (self.open, self.skipping) = (Some(Open { file, at: 0 }), false);
        self.partial.clear();
        Ok(true)
    }

    /// What follows the file that is open, or all of a log that was not there until now.
    fn next_piece(&self) -> io::Result<Option<Piece>> {
        let Some(open) = &self.open else { return Ok(pieces(&self.path).pop()) };
        let known = open.file.metadata()?;
        let newest = std::fs::metadata(&self.path);
        if newest.is_ok_and(|newest| (newest.dev(), newest.ino()) == (known.dev(), known.ino())) {
            return Ok(None);
        }
        let pieces = pieces(&self.path);
        let next = match pieces.iter().position(|piece| piece.is(&known)) {
            Some(at) => at.checked_sub(1),
            // Rotated beyond those that are kept, or taken away by somebody: what was written later comes after it. Where the
            // clock was put back that may be none, but what is being written is newer in any case.
            None => {
                let left = known.modified()?;
                let newer = pieces.iter().rposition(|piece| piece.modified >= left);
                newer.or_else(|| pieces.first().filter(|piece| piece.number == 0).map(|_| 0))
            }
        };
        Ok(next.map(|at| pieces[at]).filter(|piece| !piece.is_empty))
    }

    /// The last lines of the past, at most `backlog`, and none beyond [`BACKLOG_BYTES_MAX`].
    fn read_backlog(&mut self, backlog: usize) -> io::Result<()> {
        let pieces = pieces(&self.path);
        let Some((newest, rotated)) = pieces.split_first() else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let (file, found) = newest.open(&self.path).map_err(|_| io::ErrorKind::Interrupted)?;
        let mut lines: Vec<Vec<u8>> = vec![];
        let mut unended = None;
        read_backwards(&file, found.len(), BACKLOG_BYTES_MAX, |at, line| {
            if unended.is_none() {
                unended = Some(at);
            } else if let Some(line) = wanted(line, self.level) {
                lines.push(line.as_bytes().to_vec());
            }
            lines.len() < backlog
        })?;
        let mut bytes_left = BACKLOG_BYTES_MAX.saturating_sub(found.len());
        for piece in rotated {
            if lines.len() >= backlog || bytes_left == 0 {
                break;
            }
            // One that is not there any more was the oldest.
            let Ok((file, found)) = piece.open(&self.path) else { break };
            read_backwards(&file, found.len(), bytes_left, |_, line| {
                lines.extend(wanted(line, self.level).map(|line| line.as_bytes().to_vec()));
                lines.len() < backlog
            })?;
            bytes_left = bytes_left.saturating_sub(found.len());
        }
        for line in lines.iter().rev() {
            self.ready.extend_from_slice(line);
            self.ready.push(b'\n');
        }
        // Nothing but one long line: what is left of it is no line.
        self.skipping = unended.is_none() && found.len() > 0;
        self.open = Some(Open { file, at: unended.unwrap_or(found.len()) });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(follower: &mut Follower) -> Vec<u8> {
        follower.look();
        follower.take()
    }

    fn line(number: usize, level: &str) -> String {
        format!("{{\"timestamp\":\"t\",\"level\":\"{level}\",\"message\":\"{number}\"}}")
    }

    #[test]
    fn pages_begin_at_the_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        assert!(read_page(&path, 1, 10, None).is_empty(), "no log yet");
        let lines: Vec<String> = (0..5).map(|n| line(n, if n == 2 { "error" } else { "info" })).collect();
        std::fs::write(&path, lines.join("\n") + "\nno json\n").expect("write");
        assert_eq!(read_page(&path, 1, 2, None), lines[3..5]);
        assert_eq!(read_page(&path, 2, 2, None), lines[1..3]);
        assert_eq!(read_page(&path, 3, 2, None), lines[..1]);
        assert!(read_page(&path, 4, 2, None).is_empty());
        assert_eq!(read_page(&path, 1, 10, Some(Level::Warn)), lines[2..3]);
        let body = page_body(&lines[..1], 3, 2);
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!((&body["logs"][0]["message"], &body["page"]), (&"0".into(), &3.into()));
    }

    #[test]
    fn a_follower_begins_with_the_end_of_a_long_log() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let mut text = String::new();
        for number in 0..40_000 {
            text.push_str(&line(number, if number % 2 == 0 { "info" } else { "error" }));
            text.push('\n');
        }
        assert!(text.len() as u64 > BACKLOG_BYTES_MAX);
        std::fs::write(&path, text + "{\"level\":\"err").expect("write");
        let last = |level, backlog| {
            let seen = read(&mut Follower::new(path.clone(), level, backlog));
            String::from_utf8(seen).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(last(None, 2), [line(39_998, "info"), line(39_999, "error")]);
        assert_eq!(last(Some(Level::Error), 2), [line(39_997, "error"), line(39_999, "error")]);
        let all = last(None, usize::MAX);
        assert!(all.len() > 1000 && all.len() < 40_000, "{}", all.len());
        let mut follower = Follower::new(path.clone(), None, 1);
        read(&mut follower);
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"or\",\"message\":\"rest\"}\n").expect("write");
        assert_eq!(
            read(&mut follower),
            b"{\"level\":\"error\",\"message\":\"rest\"}\n",
            "half of it was there before"
        );
    }

    #[test]
    fn a_follower_goes_over_a_rotation_and_never_gives_half_a_line() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let append = |text: &str| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
            file.write_all(text.as_bytes()).expect("write");
        };
        append(&(line(0, "info") + "\n"));
        let mut follower = Follower::new(path.clone(), None, 10);
        assert_eq!(read(&mut follower), (line(0, "info") + "\n").as_bytes());
        assert!(read(&mut follower).is_empty());
        let (first, second) = (line(1, "info"), line(2, "info"));
        append(&first[..7]);
        assert!(read(&mut follower).is_empty(), "half a line");
        append(&(first[7..].to_owned() + "\n"));
        assert_eq!(read(&mut follower), (first + "\n").as_bytes());
        std::fs::rename(&path, dir.path().join("a.log.1")).expect("rotate");
        append(&(second.clone() + "\n"));
        let news: Vec<u8> = (0..3).flat_map(|_| read(&mut follower)).collect();
        assert_eq!(news, (second + "\n").as_bytes());
    }

    #[test]
    fn a_line_that_is_no_text_hides_no_other() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let (first, last) = (line(1, "info"), line(2, "info"));
        let torn = b"{\"level\":\"info\",\"message\":\"caf\xc3";
        std::fs::write(
            &path,
            [first.as_bytes(), torn, b"", b"[\"info\"]", last.as_bytes(), b""].join(&b'\n'),
        )
        .expect("write");
        assert_eq!(read_page(&path, 1, 10, None), [first.clone(), last.clone()]);
        let mut follower = Follower::new(path.clone(), None, 10);
        assert_eq!(read(&mut follower), format!("{first}\n{last}\n").as_bytes());
    }

    #[test]
    fn pages_are_the_same_wherever_the_blocks_end() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        // Lines that lie across the ends of blocks, fill some, and end with one.
        let long = |bytes: usize| format!("{{\"message\":\"{}\"}}", "x".repeat(bytes - 14));
        let mut lines: Vec<String> = (0..5000).map(|number| line(number, "info")).collect();
        lines.insert(1000, long(3 * BLOCK_BYTES + 5));
        lines.insert(2000, long(BLOCK_BYTES));
        lines.push(long(BLOCK_BYTES - 1));
        lines.push(line(5000, "info"));
        std::fs::write(&path, lines.join("\n") + "\n").expect("write");
        let mut seen: Vec<String> = vec![];
        for page in 1.. {
            let older = read_page(&path, page, 300, None);
            if older.is_empty() {
                break;
            }
            seen.splice(0..0, older);
        }
        assert!(seen == lines, "{} of {} lines", seen.len(), lines.len());
        std::fs::write(&path, "\n").expect("write");
        assert!(read_page(&path, 1, 10, None).is_empty());
        std::fs::write(&path, &lines[0]).expect("write");
        assert_eq!(read_page(&path, 1, 10, None), lines[..1], "whole, if not ended");
        std::fs::write(&path, "").expect("write");
        assert!(read_page(&path, 1, 10, None).is_empty());
    }

    #[test]
    fn a_pipe_in_a_log_s_place_holds_nobody_up() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).expect("pipe");
        assert!(read_page(&path, 1, 10, None).is_empty());
        let mut follower = Follower::new(path.clone(), None, 10);
        assert!(read(&mut follower).is_empty());
        assert!(read(&mut follower).is_empty());
        std::fs::remove_file(&path).expect("remove");
        let text = line(1, "info") + "\n";
        std::fs::write(&path, &text).expect("write");
        assert_eq!(read(&mut follower), text.as_bytes());
    }

    #[test]
    fn a_follower_notices_that_half_a_line_was_taken_back_and_that_a_log_was_emptied() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let (first, second) = (line(1, "info") + "\n", line(2, "info") + "\n");
        let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
        file.write_all(first.as_bytes()).expect("write");
        let mut follower = Follower::new(path.clone(), None, 10);
        assert_eq!(read(&mut follower), first.as_bytes());
        file.write_all(&second.as_bytes()[..20]).expect("write");
        assert!(read(&mut follower).is_empty());
        file.set_len(first.len() as u64).expect("cut");
        assert!(read(&mut follower).is_empty());
        file.write_all(second.as_bytes()).expect("write");
        assert_eq!(read(&mut follower), second.as_bytes());
        file.set_len(0).expect("cut");
        file.write_all(second.as_bytes()).expect("write");
        assert_eq!(read(&mut follower), second.as_bytes());
    }

    #[test]
    fn pages_and_followers_reach_back_into_rotated_files() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let all: Vec<String> = (0..9).map(|number| line(number, "info")).collect();
        let write = |name: &str, lines: &[String]| {
            std::fs::write(dir.path().join(name), lines.join("\n") + "\n").expect("write");
        };
        write("a.log.2", &all[..3]);
        write("a.log.1", &all[3..6]);
        write("a.log", &all[6..]);
        let backlog = |count| {
            let seen = read(&mut Follower::new(path.clone(), None, count));
            String::from_utf8(seen).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(read_page(&path, 1, 4, None), all[5..]);
        assert_eq!(read_page(&path, 2, 4, None), all[1..5]);
        assert_eq!(read_page(&path, 3, 4, None), all[..1]);
        assert_eq!((backlog(4), backlog(100)), (all[5..].to_vec(), all.clone()));
        // In the middle of a rotation one name is nobody's: one of the others, or the first.
        let rename = |from: &str, to: &str| {
            std::fs::rename(dir.path().join(from), dir.path().join(to)).expect("rotate");
        };
        rename("a.log.2", "a.log.3");
        assert_eq!((read_page(&path, 1, 100, None), backlog(100)), (all.clone(), all.clone()));
        rename("a.log.1", "a.log.2");
        rename("a.log", "a.log.1");
        assert_eq!((read_page(&path, 1, 100, None), backlog(100)), (all.clone(), all.clone()));
        let mut follower = Follower::new(path.clone(), None, 1);
        assert_eq!(read(&mut follower), (all[8].clone() + "\n").as_bytes());
        write("a.log", &all[..1]);
        assert_eq!(read(&mut follower), (all[0].clone() + "\n").as_bytes());
        assert!(read(&mut follower).is_empty());
    }

    #[test]
    fn a_follower_that_looks_seldom_reads_each_file_that_was_rotated_meanwhile() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.log");
        let name = |number: usize| match number {
            0 => path.clone(),
            _ => dir.path().join(format!("a.log.{number}")),
        };
        let rotate = |keep: usize| {
            for number in (0..keep).rev().filter(|number| name(*number).exists()) {
                std::fs::rename(name(number), name(number + 1)).expect("rotate");
            }
        };
        let write = |number: usize| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).expect("open");
            file.write_all((line(number, "info") + "\n").as_bytes()).expect("write");
        };
        let lines = |numbers: std::ops::Range<usize>| -> String {
            numbers.map(|number| line(number, "info") + "\n").collect()
        };
        let drain = |follower: &mut Follower| {
            let seen: Vec<u8> = (0..10).flat_map(|_| read(follower)).collect();
            String::from_utf8(seen).expect("text")
        };
        // Before there is a log, within one, and with its file gone beyond those that are kept.
        let mut follower = Follower::new(path.clone(), None, 10);
        assert_eq!(drain(&mut follower), "");
        for number in 0..4 {
            write(number);
            rotate(3);
        }
        assert_eq!(drain(&mut follower), lines(1..4));
        for number in 4..7 {
            write(number);
            rotate(3);
        }
        assert_eq!(drain(&mut follower), lines(4..7));
        for number in 7..12 {
            write(number);
            rotate(3);
        }
        write(12);
        assert_eq!(drain(&mut follower), lines(9..13), "the oldest are gone");
        // Removed by hand: those before it were read.
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(drain(&mut follower), "");
        write(13);
        assert_eq!(drain(&mut follower), lines(13..14));
        // Moved by hand: it is written on until it is opened anew, also when there is an empty one already.
        let mut moved = OpenOptions::new().append(true).open(&path).expect("open");
        std::fs::rename(&path, dir.path().join("saved")).expect("move");
        std::fs::write(&path, "").expect("write");
        assert_eq!(drain(&mut follower), "");
        moved.write_all(lines(14..15).as_bytes()).expect("write");
        assert_eq!(drain(&mut follower), lines(14..15));
        write(15);
        assert_eq!(drain(&mut follower), lines(15..16));
    }

    #[test]
    fn nothing_is_lost_or_repeated_while_a_log_is_rotated() {
        const LINES: usize = 3000;
        let dir = tempfile::tempdir().expect("temporary directory");
        let settings = crate::config::LogConfig {
            level: Level::Info,
            echo: Level::Error,
            access: crate::config::Access::Off,
            summary_interval: std::time::Duration::from_secs(60),
            rotate_bytes: 4096,
            rotate_keep: 1000,
        };
        let (log, writer) = crate::log::start(dir.path(), &settings).expect("thread");
        let path = crate::log::plugin_log_path(dir.path(), "a");
        let number = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["message"].as_str().expect("text").parse::<usize>().expect("a number")
        };
        let mut follower = Follower::new(path.clone(), None, 0);
        let mut seen = vec![];
        let mut follow = |seen: &mut Vec<usize>| {
            let news = String::from_utf8(read(&mut follower)).expect("text");
            seen.extend(news.lines().map(number));
        };
        follow(&mut seen);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                for number in 0..LINES {
                    log.plugin(&"a".into(), Level::Info, &number.to_string(), None);
                    if number % 8 == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            while !writing.is_finished() {
                follow(&mut seen);
                let page: Vec<usize> =
                    read_page(&path, 1, 200, None).iter().map(|line| number(line)).collect();
                assert!(page.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{page:?}");
                assert!(page.len() == 200 || page.first().is_none_or(|first| *first == 0), "{page:?}");
            }
        });
        writer.finish();
        assert_eq!(log.dropped(), 0);
        while seen.len() < LINES {
            let before = seen.len();
            follow(&mut seen);
            assert!(before < seen.len(), "{seen:?}");
        }
        assert!(seen.iter().copied().eq(0..LINES), "{seen:?}");
        assert!(rotated_path(&path, 20).exists(), "it was rotated");
    }
}
