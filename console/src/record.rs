//! Recordings: what the core said and when, one JSON object a line, to be looked at later.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::feed::Tell;
use crate::model::Now;
use crate::text;
use crate::update::News;

#[derive(Serialize, Deserialize)]
struct Entry<N> {
    /// Since the recording began.
    elapsed_ms: u64,
    unix_ms: u64,
    news: N,
}

/// Left free for the line that tells of the end of a full recording.
const END_BYTES: u64 = 256;

/// Writes a recording.
pub struct Recorder {
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Recorder {
    /// Errors: the file is there already, or cannot be made. A recording never overwrites another.
    pub fn create(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file, bytes: 0, bytes_max })
    }

    /// Snapshots, events and the state of the line; logs and outcomes belong to the one who looked.
    ///
    /// Errors: the disk's; or the recording is full, which its last line says. Either way no more is to be written.
    pub fn write(&mut self, now: Now, news: &News) -> io::Result<()> {
        if !matches!(news, News::History(_) | News::Snapshot(_) | News::Event(_) | News::Lost { .. }) {
            return Ok(());
        }
        let line = line(now, news)?;
        if self.bytes + line.len() as u64 + END_BYTES > self.bytes_max {
            let most = text::bytes(self.bytes_max);
            let reason = format!("the recording was full at {most}");
            self.append(&self::line(now, &News::Ended { reason })?)?;
            return Err(io::Error::other(format!("full at {most}, as --record-max says")));
        }
        self.append(&line)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.bytes += line.len() as u64;
        self.file.write_all(line)
    }
}

fn line(now: Now, news: &News) -> io::Result<Vec<u8>> {
    let entry = Entry { elapsed_ms: now.elapsed.as_millis() as u64, unix_ms: now.unix_ms, news };
    let mut line = serde_json::to_vec(&entry)?;
    line.push(b'\n');
    Ok(line)
}

/// Plays a recording at its own pace; gives the time on the wall when it began.
///
/// Errors: no recording; a later line that is none ends the play, and the end says which.
pub fn play(path: &Path, tell: Tell) -> io::Result<u64> {
    let mut lines = BufReader::new(File::open(path)?).lines();
    let first = lines.next().ok_or_else(|| io::Error::other("the recording is empty"))??;
    let first: Entry<News> = serde_json::from_str(&first)?;
    let begin = (first.elapsed_ms, first.unix_ms);
    thread::spawn(move || {
        let started = Instant::now();
        let mut reason = "the recording has ended".to_owned();
        let others = lines.map(|line| line.and_then(|line| Ok(serde_json::from_str::<Entry<News>>(&line)?)));
        for (number, entry) in (1..).zip(std::iter::once(Ok(first)).chain(others)) {
            let Ok(entry) = entry else {
                reason = format!("the recording is damaged at line {number}");
                break;
            };
            let due = Duration::from_millis(entry.elapsed_ms.saturating_sub(begin.0));
            thread::sleep(due.saturating_sub(started.elapsed()));
            if let News::Ended { reason: told } = entry.news {
                reason = told;
                break;
            }
            if !tell(entry.news) {
                return;
            }
        }
        tell(News::Ended { reason });
    });
    Ok(begin.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc;

    #[test]
    fn what_was_recorded_is_played() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path, u64::MAX).expect("create");
        let at = |ms| Now { elapsed: Duration::from_millis(ms), unix_ms: 1_000_000 + ms };
        recorder.write(at(500), &News::Event("one".into())).expect("write");
        recorder.write(at(501), &News::EventsUnavailable { reason: "not kept".into() }).expect("write");
        recorder.write(at(502), &News::Snapshot(Box::default())).expect("write");
        assert!(Recorder::create(&path, u64::MAX).is_err(), "never overwritten");

        let (sender, receiver) = mpsc::channel();
        let begin = play(&path, Arc::new(move |news| sender.send(news).is_ok())).expect("play");
        assert_eq!(begin, 1_000_500);
        let played: Vec<News> = receiver.iter().collect();
        assert!(
            matches!(&played[..], [News::Event(one), News::Snapshot(_), News::Ended { .. }] if one == "one"),
            "{played:?}"
        );
    }

    #[test]
    fn a_full_recording_says_so_to_both() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path, 4096).expect("create");
        let mut count = 0;
        let error = loop {
            match recorder.write(Now::default(), &News::Event("x".repeat(100))) {
                Ok(()) => count += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.to_string(), "full at 4.0K, as --record-max says");
        assert!(count > 10 && std::fs::metadata(&path).expect("written").len() <= 4096);
        let (sender, receiver) = mpsc::channel();
        play(&path, Arc::new(move |news| sender.send(news).is_ok())).expect("play");
        let played: Vec<News> = receiver.iter().collect();
        assert_eq!(played.len(), count + 1);
        let end = "the recording was full at 4.0K";
        assert!(matches!(played.last(), Some(News::Ended { reason }) if reason == end), "{played:?}");
        // Not even its first line had room.
        let path = folder.path().join("tiny");
        let mut recorder = Recorder::create(&path, 100).expect("create");
        assert!(recorder.write(Now::default(), &News::Event("x".repeat(100))).is_err());
        let (sender, receiver) = mpsc::channel();
        play(&path, Arc::new(move |news| sender.send(news).is_ok())).expect("play");
        assert!(matches!(&receiver.iter().collect::<Vec<News>>()[..], [News::Ended { .. }]));
    }

    #[test]
    fn a_damaged_recording_says_where() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("recording");
        let mut recorder = Recorder::create(&path, u64::MAX).expect("create");
        for _ in 0..3 {
            recorder.write(Now::default(), &News::Snapshot(Box::default())).expect("write");
        }
        let whole = std::fs::read(&path).expect("what was written");
        for (content, count, end) in [
            (whole.clone(), 3, "the recording has ended"),
            (whole[..whole.len() - 10].to_vec(), 2, "the recording is damaged at line 3"),
            ([&whole[..], b"\xff\xfe\n", &whole[..]].concat(), 3, "the recording is damaged at line 4"),
        ] {
            std::fs::write(&path, content).expect("write");
            let (sender, receiver) = mpsc::channel();
            play(&path, Arc::new(move |news| sender.send(news).is_ok())).expect("play");
            let played: Vec<News> = receiver.iter().collect();
            assert_eq!(played.len(), count + 1);
            assert!(matches!(played.last(), Some(News::Ended { reason }) if reason == end), "{played:?}");
        }
    }
}
