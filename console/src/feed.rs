//! The control socket: threads that read it, reconnect, and tell what they heard as [`News`].
//!
//! HTTP/1.1 over a Unix socket, one connection a question; the few lines of it that a client needs are here.
//! Nothing in here touches the model or the terminal.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use toru_plugin_api::status::History;

use crate::model::{CORE, EVENTS_BACKLOG, SNAPSHOT_INTERVAL, Verb};
use crate::update::News;

/// A stream without a snapshot for so long is a lost one.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often a quiet log is looked at for whether anybody still wants it.
const POLL: Duration = Duration::from_secs(1);
/// A core stops a plugin in seven seconds at most, and starts it in five, unless it is told otherwise.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);
/// A snapshot of a thousand plugins has about half a megabyte; a line beyond this is a mistake.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Lines of the past that a log view begins with.
const LOG_BACKLOG: u32 = 500;

/// Events of one plugin that are asked for when none of it is known.
const PLUGIN_EVENTS: usize = 100;

/// Takes news; `false` when nobody listens any more.
pub type Tell = Arc<dyn Fn(News) -> bool + Send + Sync>;

/// How long to wait before the n-th attempt in a row, counted from 0: doubled from a quarter of a second to five.
pub fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(250 * 2u64.pow(attempt.min(5))).min(Duration::from_secs(5))
}

/// Everything that goes on beside the screen.
pub struct Feed {
    socket: PathBuf,
    tell: Tell,
    /// The generation of log followers that is wanted; others end.
    generation: Arc<AtomicU64>,
}

impl Feed {
    /// Begins to read snapshots and events.
    pub fn start(socket: PathBuf, tell: Tell) -> Self {
        {
            let (socket, tell) = (socket.clone(), tell.clone());
            thread::spawn(move || read_snapshots(&socket, &tell));
        }
        {
            let (socket, tell) = (socket.clone(), tell.clone());
            thread::spawn(move || read_events(&socket, &tell));
        }
        Self { socket, tell, generation: Arc::default() }
    }

    /// Follows these plugins' logs and no others.
    pub fn follow_logs(&self, generation: u64, plugins: Vec<String>) {
        self.generation.store(generation, Relaxed);
        for plugin in plugins {
            let (socket, tell, wanted) = (self.socket.clone(), self.tell.clone(), self.generation.clone());
            thread::spawn(move || read_log(&socket, &tell, &wanted, generation, &plugin));
        }
    }

    pub fn stop_logs(&self) {
        self.generation.store(0, Relaxed);
    }

    /// A plugin's own events, which the common trail of the beginning may not reach back to.
    pub fn ask_events(&self, plugin: String) {
        let (socket, tell) = (self.socket.clone(), self.tell.clone());
        thread::spawn(move || {
            let of = format!("&plugin={}", encoded(&plugin));
            // Without an answer the screen says how far back it knows.
            for event in events(&socket, &of, PLUGIN_EVENTS).unwrap_or_default() {
                if !tell(News::Event(event)) {
                    return;
                }
            }
        });
    }

    pub fn order(&self, verb: Verb, plugin: String) {
        let (socket, tell) = (self.socket.clone(), self.tell.clone());
        thread::spawn(move || {
            let begun = Instant::now();
            let error = order(&socket, verb, &plugin).err();
            let after_ms = begun.elapsed().as_millis() as u64;
            tell(News::Outcome { verb: verb.word().into(), plugin, after_ms, error });
        });
    }
}

fn read_snapshots(socket: &Path, tell: &Tell) {
    let mut attempt = 0;
    loop {
        let reason = match stream(socket, SNAPSHOT_INTERVAL, true, |news| {
            attempt = 0;
            tell(news)
        }) {
            Ok(()) => "the core closed the stream".to_owned(),
            Err(error) => in_words(socket, &error),
        };
        if !tell(News::Lost { reason }) {
            return;
        }
        thread::sleep(backoff(attempt));
        attempt += 1;
    }
}

/// Hands on snapshots, and in front of them the plugins' past where it is wanted, until `each` has enough or the
/// stream ends.
pub fn stream(
    socket: &Path,
    interval: Duration,
    past: bool,
    mut each: impl FnMut(News) -> bool,
) -> io::Result<()> {
    #[derive(Deserialize)]
    struct Past {
        history: Box<History>,
    }
    let past = if past { "&history=*" } else { "" };
    let target = format!("/v1/stream?interval_ms={}{past}", interval.as_millis());
    let mut answer = ask(socket, "GET", &target, SILENCE_MAX)?.successful()?;
    let mut line = Vec::new();
    while answer.read_line(&mut line)? {
        let news = if line.starts_with(b"{\"history\":") {
            News::History(serde_json::from_slice::<Past>(&line)?.history)
        } else {
            News::Snapshot(serde_json::from_slice(&line)?)
        };
        line.clear();
        if !each(news) {
            return Ok(());
        }
    }
    Ok(())
}

/// The newest entries of the audit trail, a JSON object each, oldest first.
pub fn recent_events(socket: &Path) -> io::Result<Vec<String>> {
    events(socket, "", EVENTS_BACKLOG)
}

fn events(socket: &Path, of: &str, limit: usize) -> io::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Page {
        events: Vec<serde_json::Value>,
    }
    let mut answer =
        ask(socket, "GET", &format!("/v1/events?limit={limit}{of}"), SILENCE_MAX)?.successful()?;
    let mut body = Vec::new();
    answer.body.by_ref().take(LINE_BYTES_MAX).read_to_end(&mut body)?;
    let page: Page = serde_json::from_slice(&body)?;
    Ok(page.events.iter().map(serde_json::Value::to_string).collect())
}

fn read_events(socket: &Path, tell: &Tell) {
    let mut attempt = 0;
    loop {
        // The core gives a hundred unless it is asked for more; a busy plugin's would crowd out the others'.
        let target = format!("/v1/events?follow=1&limit={EVENTS_BACKLOG}");
        let outcome = ask(socket, "GET", &target, POLL).and_then(Answer::successful);
        let outcome = outcome.and_then(|mut answer| {
            attempt = 0;
            answer.follow(|line| tell(News::Event(line)), || true)
        });
        // The stream of snapshots tells of a lost core; this is about a core that has no events to give.
        if let Err(error) = outcome
            && let Some(Refused { status }) = error.get_ref().and_then(|inner| inner.downcast_ref())
        {
            let reason = match status {
                404 => "This core gives no events.".to_owned(),
                status => format!("The core refuses its events: status {status}."),
            };
            if !tell(News::EventsUnavailable { reason }) {
                return;
            }
        }
        thread::sleep(backoff(attempt));
        attempt += 1;
    }
}

/// Follows a log for as long as it is wanted, also over the end of the core: what it had told is not told again.
fn read_log(socket: &Path, tell: &Tell, wanted: &AtomicU64, generation: u64, plugin: &str) {
    let of = if plugin == CORE { "/v1".into() } else { format!("/v1/plugins/{}", encoded(plugin)) };
    let target = format!("{of}/logs?follow=1&page_size={LOG_BACKLOG}");
    let is_wanted = || wanted.load(Relaxed) == generation;
    let mut told = Told::default();
    let mut attempt = 0;
    while is_wanted() {
        let outcome =
            ask(socket, "GET", &target, POLL).and_then(Answer::successful).and_then(|mut answer| {
                if attempt > 0 && !tell(News::LogResumed { generation, plugin: plugin.to_owned() }) {
                    return Ok(());
                }
                told.begin();
                let each = |line: String| {
                    attempt = 0;
                    !told.is_new(&line) || tell(News::Log { generation, plugin: plugin.to_owned(), line })
                };
                answer.follow(each, is_wanted)
            });
        if !is_wanted() {
            return;
        }
        let reason = match outcome {
            Ok(()) => "the core closed the log; trying again".to_owned(),
            Err(error) => format!("{}; trying again", in_words(socket, &error)),
        };
        if !tell(News::LogUnavailable { generation, plugin: plugin.to_owned(), reason }) {
            return;
        }
        thread::sleep(backoff(attempt));
        attempt += 1;
    }
}

/// The last lines of a log that were handed on, by their hashes: a new answer begins with a past that may hold them.
#[derive(Default)]
struct Told {
    hashes: VecDeque<u64>,
    /// Lines of the answer that may still be of the past.
    past: u32,
    /// What had been told before this answer.
    before: HashSet<u64>,
}

impl Told {
    /// A new answer begins.
    fn begin(&mut self) {
        self.before = self.hashes.iter().copied().collect();
        self.past = LOG_BACKLOG;
    }

    /// Whether the line was not told in an earlier answer; from now on it was.
    fn is_new(&mut self, line: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        let hash = hasher.finish();
        if self.past > 0 {
            self.past -= 1;
            if self.before.contains(&hash) {
                return false;
            }
        }
        if self.hashes.len() == LOG_BACKLOG as usize {
            self.hashes.pop_front();
        }
        self.hashes.push_back(hash);
        true
    }
}

fn order(socket: &Path, verb: Verb, plugin: &str) -> Result<(), String> {
    let target = format!("/v1/plugins/{}/{}", encoded(plugin), verb.word());
    let words = |error: io::Error| in_words(socket, &error);
    let mut answer = ask(socket, "POST", &target, ORDER_TIMEOUT).map_err(words)?;
    if (200..300).contains(&answer.status) {
        return Ok(());
    }
    let mut body = String::new();
    let _ = answer.body.by_ref().take(HEAD_BYTES_MAX).read_to_string(&mut body);
    // RFC 9457, or whatever it is.
    let problem: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    let why = ["detail", "title", "error"].iter().find_map(|key| problem.get(key)?.as_str());
    match (answer.status, why) {
        (404, None) => Err(format!("this core cannot {}", verb.word())),
        (status, Some(why)) => Err(format!("{why} ({status})")),
        (status, None) => Err(format!("refused with status {status}")),
    }
}

/// Ids are letters, digits and hyphens; a core that says otherwise shall not shape the request.
fn encoded(id: &str) -> String {
    let mut out = String::new();
    for byte in id.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What an operator reads when the core cannot be reached or read.
pub fn in_words(socket: &Path, error: &io::Error) -> String {
    let path = socket.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("no core at {path}"),
        io::ErrorKind::ConnectionRefused => format!("nobody listens at {path}"),
        io::ErrorKind::PermissionDenied => format!("{path} may not be opened by this user"),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the core is silent".into(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "the core closed the line".into()
        }
        _ => error.to_string(),
    }
}

// ---- HTTP ----

/// An answer with a status that is no success.
#[derive(Debug)]
struct Refused {
    status: u16,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the core answered with status {}", self.status)
    }
}

impl std::error::Error for Refused {}

struct Answer {
    status: u16,
    body: BufReader<Content<BufReader<UnixStream>>>,
}

/// Sends a request and reads the head of its answer. Reads time out after `silence_max`.
fn ask(socket: &Path, method: &str, target: &str, silence_max: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    // The head comes when an order is done, and at once otherwise.
    stream.set_read_timeout(Some(silence_max.max(SILENCE_MAX)))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: toru\r\n{length}Connection: close\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let (status, framing) = read_head(&mut reader)?;
    reader.get_ref().set_read_timeout(Some(silence_max))?;
    Ok(Answer { status, body: BufReader::new(Content { inner: reader, framing, line: Vec::new() }) })
}

impl Answer {
    fn successful(self) -> io::Result<Self> {
        match self.status {
            200..300 => Ok(self),
            status => Err(io::Error::other(Refused { status })),
        }
    }

    /// Appends to `line` up to its end, which is taken off; `false` at the end of everything.
    ///
    /// Errors: after a timeout, what came is in `line`, and the call may be repeated.
    fn read_line(&mut self, line: &mut Vec<u8>) -> io::Result<bool> {
        let left = LINE_BYTES_MAX.saturating_sub(line.len() as u64);
        self.body.by_ref().take(left).read_until(b'\n', line)?;
        if line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(true);
        }
        match line.len() as u64 {
            0 => Ok(false),
            LINE_BYTES_MAX.. => Err(io::Error::other("a line of the core has no end")),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Hands on lines until the end, or until `each` or `wanted` says no; silence is no error.
    fn follow(&mut self, mut each: impl FnMut(String) -> bool, wanted: impl Fn() -> bool) -> io::Result<()> {
        let mut line = Vec::new();
        while wanted() {
            match self.read_line(&mut line) {
                Ok(true) => {
                    if !each(String::from_utf8_lossy(&line).into_owned()) {
                        return Ok(());
                    }
                    line.clear();
                }
                Ok(false) => return Ok(()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// How much content there is still.
#[derive(Debug, PartialEq)]
enum Framing {
    Length(u64),
    /// Bytes left of the current chunk; `None` before its size.
    Chunked(Option<u64>),
    ToEnd,
}

/// Status and framing of an answer; interim answers are skipped.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Framing)> {
    let bad = |what: &str| io::Error::other(format!("no HTTP: {what}"));
    let mut reader = reader.take(HEAD_BYTES_MAX);
    loop {
        let (mut status, mut framing) = (None, Framing::ToEnd);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end();
            if status.is_none() {
                let word = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
                status =
                    Some(word.and_then(|word| word.parse::<u16>().ok()).ok_or_else(|| bad("status line"))?);
                continue;
            }
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| bad("field"))?;
            let value = value.trim();
            if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
                framing = Framing::Chunked(None);
            } else if name.eq_ignore_ascii_case("content-length") && framing == Framing::ToEnd {
                framing = Framing::Length(value.parse().map_err(|_| bad("content-length"))?);
            }
        }
        match status {
            Some(100..200) => {}
            Some(status) => return Ok((status, framing)),
            None => return Err(bad("status line")),
        }
    }
}

/// The content of an answer without its framing.
struct Content<R> {
    inner: R,
    framing: Framing,
    /// What has come of a chunk's size: a timeout may fall into it.
    line: Vec<u8>,
}

impl<R: BufRead> Read for Content<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.framing {
                Framing::ToEnd => return self.inner.read(out),
                Framing::Length(0) => return Ok(0),
                Framing::Length(left) | Framing::Chunked(Some(left @ 1..)) => {
                    let most = out.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    let count = self.inner.read(&mut out[..most])?;
                    if count == 0 && most > 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    *left -= count as u64;
                    return Ok(count);
                }
                Framing::Chunked(before) => {
                    self.inner.read_until(b'\n', &mut self.line)?;
                    if self.line.last() != Some(&b'\n') {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let line = std::mem::take(&mut self.line);
                    let text = String::from_utf8_lossy(&line);
                    let text = text.trim();
                    // The line end after a chunk's content.
                    if *before == Some(0) && text.is_empty() {
                        *before = None;
                        continue;
                    }
                    let size = text.split(';').next().unwrap_or_default().trim();
                    let size =
                        u64::from_str_radix(size, 16).map_err(|_| io::Error::other("no HTTP: chunk"))?;
                    // Trailers are nothing to us, and the connection is not used again.
                    self.framing = if size == 0 { Framing::Length(0) } else { Framing::Chunked(Some(size)) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn content(text: &str) -> io::Result<(u16, String)> {
        let mut reader = Cursor::new(text.as_bytes());
        let (status, framing) = read_head(&mut reader)?;
        let mut body = String::new();
        Content { inner: reader, framing, line: vec![] }.read_to_string(&mut body)?;
        Ok((status, body))
    }

    #[test]
    fn content_is_read_in_every_framing() {
        for (text, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef", (200, "abc")),
            ("HTTP/1.1 404 Not Found\r\n\r\nto the end", (404, "to the end")),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
                (200, "abc0123456789"),
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", (204, "")),
        ] {
            let (status, body) = content(text).expect(text);
            assert_eq!((status, body.as_str()), expected);
        }
        for bad in [
            "",
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        ] {
            assert!(content(bad).is_err(), "{bad:?}");
        }
    }

    /// Gives a timeout between any two bytes.
    struct Halting(Cursor<Vec<u8>>, bool);

    impl Read for Halting {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 { Err(io::ErrorKind::WouldBlock.into()) } else { self.0.read(&mut out[..1]) }
        }
    }

    #[test]
    fn a_timeout_anywhere_loses_nothing() {
        let text = "2\r\n{}\r\n4\r\n\n{\"a\r\n5\r\n\":1}\n\r\n0\r\n\r\n";
        let inner = BufReader::with_capacity(1, Halting(Cursor::new(text.into()), false));
        let mut content = Content { inner, framing: Framing::Chunked(None), line: vec![] };
        let mut out = Vec::new();
        loop {
            let mut byte = [0];
            match content.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => out.push(byte[0]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(String::from_utf8_lossy(&out), "{}\n{\"a\":1}\n");
    }

    #[test]
    fn attempts_grow_rarer_up_to_a_limit() {
        let waits: Vec<u128> = (0..8).map(|attempt| backoff(attempt).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000, 5000]);
        assert_eq!(backoff(u32::MAX), Duration::from_secs(5));
    }

    #[test]
    fn an_id_cannot_shape_the_request() {
        assert_eq!(encoded("hello-rust"), "hello-rust");
        assert_eq!(encoded("a b\r\nc/../d"), "a%20b%0D%0Ac%2F..%2Fd");
    }

    /// Takes one request and gives this answer to it; the connection ends with it.
    fn serve_once(socket: &Path, lines: &[&str]) -> std::thread::JoinHandle<String> {
        let _ = std::fs::remove_file(socket);
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
        let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
        thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(&stream);
            let mut first = String::new();
            reader.read_line(&mut first).expect("a request");
            let mut line = String::new();
            while reader.read_line(&mut line).expect("a head") > 2 {
                line.clear();
            }
            write!(&stream, "HTTP/1.1 200 OK\r\n\r\n{body}").expect("a reader");
            first
        })
    }

    #[test]
    fn a_log_is_followed_over_the_end_of_the_core() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let (sender, news) = std::sync::mpsc::channel();
        let tell: Tell = Arc::new(move |news| sender.send(news).is_ok());
        let feed = Feed { socket: socket.clone(), tell, generation: Arc::default() };
        let next = || match news.recv_timeout(Duration::from_secs(30)).expect("news") {
            News::Log { line, .. } => line,
            News::LogResumed { .. } => "resumed".into(),
            News::LogUnavailable { .. } => "unavailable".into(),
            other => panic!("{other:?}"),
        };
        let core = serve_once(&socket, &["a", "b"]);
        feed.follow_logs(1, vec!["acme".into()]);
        assert_eq!([next(), next(), next()], ["a", "b", "unavailable"]);
        assert!(core.join().expect("served").starts_with("GET /v1/plugins/acme/logs?follow=1"));
        let core = serve_once(&socket, &["a", "b", "c"]);
        let after: Vec<String> =
            std::iter::repeat_with(next).skip_while(|word| word == "unavailable").take(2).collect();
        assert_eq!(after, ["resumed", "c"], "and nothing twice");
        core.join().expect("served");
        feed.stop_logs();
    }

    #[test]
    fn the_trail_begins_with_as_much_as_the_core_gives() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let core = serve_once(&socket, &[]);
        let tell: Tell = Arc::new(|_| false);
        let read = socket.clone();
        thread::spawn(move || read_events(&read, &tell));
        let request = core.join().expect("served");
        assert!(request.starts_with("GET /v1/events?follow=1&limit=1000 "), "{request}");
    }
}
