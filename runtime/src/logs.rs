//! Reading a plugin's log back: by page, newest first, or following its end.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toru_supervisor::Level;

/// What is read of a log's end at once; a followed log is never held whole.
const FOLLOW_BYTES_MAX: u64 = 256 * 1024;
/// What is read of a log's past when somebody begins to follow it: there are followers on a thread with other work.
const BACKLOG_BYTES_MAX: u64 = 1024 * 1024;

/// The lines of one page, page 1 being the newest, each page oldest line first.
///
/// Bounds: one file, without its rotated predecessors; lines that are no JSON objects are left out.
pub fn read_page(path: &Path, page: usize, page_size: usize, level: Option<Level>) -> Vec<String> {
    let Ok(file) = File::open(path) else { return vec![] };
    let lines: Vec<String> =
        BufReader::new(file).lines().map_while(Result::ok).filter(|line| wanted(line, level)).collect();
    let end = lines.len().saturating_sub((page - 1).saturating_mul(page_size));
    lines[end.saturating_sub(page_size)..end].to_vec()
}

/// The answer to a question for a page; the lines are JSON already.
pub fn page_body(lines: &[String], page: usize, page_size: usize) -> Vec<u8> {
    format!("{{\"logs\":[{}],\"page\":{page},\"page_size\":{page_size}}}", lines.join(",")).into_bytes()
}

fn wanted(line: &str, level: Option<Level>) -> bool {
    #[derive(Deserialize)]
    struct Line<'a> {
        level: Option<&'a str>,
    }
    let Ok(parsed) = serde_json::from_str::<Line<'_>>(line) else { return false };
    level.is_none_or(|least| Level::from_word(parsed.level.unwrap_or("info")) >= least)
}

/// Follows a log over its rotations.
pub struct Follower {
    path: PathBuf,
    level: Option<Level>,
    /// Lines of the past to begin with; taken at the first look.
    backlog: Option<usize>,
    open: Option<(File, u64)>,
    partial: Vec<u8>,
}

impl Follower {
    pub fn new(path: PathBuf, level: Option<Level>, backlog: usize) -> Self {
        Self { path, level, backlog: Some(backlog), open: None, partial: vec![] }
    }

    /// Whole lines that came since the last look; empty where none did, or where there is no log yet.
    pub fn read(&mut self) -> Vec<u8> {
        let mut out = vec![];
        if let Some(backlog) = self.backlog.take() {
            // Whatever is written meanwhile comes with the next look.
            let _ = self.read_backlog(backlog, &mut out);
            return out;
        }
        if let Some((file, inode)) = &mut self.open {
            let mut news = vec![];
            let _ = file.take(FOLLOW_BYTES_MAX).read_to_end(&mut news);
            let (inode, ended) = (*inode, news.is_empty());
            self.partial.extend_from_slice(&news);
            // Rotated away, or taken away by somebody else: what is there now begins at its start.
            if ended && std::fs::metadata(&self.path).map(|found| found.ino()).ok() != Some(inode) {
                self.open = None;
                self.partial.clear();
            }
        }
        if self.open.is_none()
            && let Ok(file) = File::open(&self.path)
            && let Ok(found) = file.metadata()
        {
            self.open = Some((file, found.ino()));
        }
        while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            if std::str::from_utf8(&line[..end]).is_ok_and(|line| wanted(line, self.level)) {
                out.extend_from_slice(&line);
            }
        }
        out
    }

    /// The last lines of the past, at most `backlog`, and none beyond [`BACKLOG_BYTES_MAX`].
    fn read_backlog(&mut self, backlog: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let mut file = File::open(&self.path)?;
        let found = file.metadata()?;
        let skipped = found.len().saturating_sub(BACKLOG_BYTES_MAX);
        file.seek(SeekFrom::Start(skipped))?;
        let mut past = vec![];
        (&mut file).take(BACKLOG_BYTES_MAX).read_to_end(&mut past)?;
        let whole = past.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        self.partial = past.split_off(whole);
        let lines = past.split(|&byte| byte == b'\n').skip(usize::from(skipped > 0));
        let lines: Vec<&[u8]> = lines
            .filter(|line| std::str::from_utf8(line).is_ok_and(|line| wanted(line, self.level)))
            .collect();
        for line in &lines[lines.len().saturating_sub(backlog)..] {
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        self.open = Some((file, found.ino()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::io::Write;

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
            let seen = Follower::new(path.clone(), level, backlog).read();
            String::from_utf8(seen).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(last(None, 2), [line(39_998, "info"), line(39_999, "error")]);
        assert_eq!(last(Some(Level::Error), 2), [line(39_997, "error"), line(39_999, "error")]);
        let all = last(None, usize::MAX);
        assert!(all.len() > 1000 && all.len() < 40_000, "{}", all.len());
        let mut follower = Follower::new(path.clone(), None, 1);
        follower.read();
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(b"or\",\"message\":\"rest\"}\n").expect("write");
        assert_eq!(
            follower.read(),
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
        assert_eq!(follower.read(), (line(0, "info") + "\n").as_bytes());
        assert!(follower.read().is_empty());
        let (first, second) = (line(1, "info"), line(2, "info"));
        append(&first[..7]);
        assert!(follower.read().is_empty(), "half a line");
        append(&(first[7..].to_owned() + "\n"));
        assert_eq!(follower.read(), (first + "\n").as_bytes());
        std::fs::rename(&path, dir.path().join("a.log.1")).expect("rotate");
        append(&(second.clone() + "\n"));
        let news: Vec<u8> = (0..3).flat_map(|_| follower.read()).collect();
        assert_eq!(news, (second + "\n").as_bytes());
    }
}
