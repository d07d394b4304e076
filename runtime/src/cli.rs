//! `toru status`, `toru plugin …`, `toru kv …`: what a shell asks of the running daemon, over its control socket.
//!
//! Tables for people on a terminal, JSON for programs; colours only where somebody can see them.

pub mod values;

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use toru_plugin_api::status::{PluginStatus, is_format};
use toru_plugin_api::time::{as_str, rfc3339_millis, unix_ms_of};
use toru_supervisor::Skipped;

use crate::answer::{CROWDED, STILL_READING, STOPPING};

/// How long the daemon may say nothing, to a question or in the middle of an answer: longer than all that it waits for
/// itself, but for orders.
/// Events that are shown where nobody says how many.
pub const EVENTS_SHOWN: u16 = 100;
/// Keys that one answer of the daemon has at most.
const KEYS_LISTED_MAX: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an order or a change of values may take while the daemon answers other questions. Orders wait for plugins to
/// start and stop.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at what an order waits for.
const ORDER_LOOK: Duration = Duration::from_secs(2);

/// Which events `toru events` shows; what is `None` is not asked for.
#[derive(Clone, Debug, Default)]
pub struct WantedEvents {
    pub plugin: Option<String>,
    pub event_type: Option<String>,
    /// In milliseconds since 1970.
    pub since_unix_ms: Option<u64>,
    pub until_unix_ms: Option<u64>,
}

/// A moment as people name it: in UTC as the logs write it, a day, or so long ago (`90s`, `15m`, `2h`, `3d`). In
/// milliseconds since 1970.
///
/// Errors: it is none of these.
pub fn moment(text: &str) -> Result<u64, String> {
    let ago = text.split_at_checked(text.len().saturating_sub(1)).and_then(|(count, unit)| {
        let unit_ms: u64 = match unit {
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        Some(crate::kv::unix_ms().saturating_sub(count.parse::<u64>().ok()?.saturating_mul(unit_ms)))
    });
    ago.or_else(|| unix_ms_of(text))
        .ok_or_else(|| "must be like 15m, 2h, 3d, 2026-01-31 or 2026-01-31T12:00:00Z".into())
}

/// Why a command failed; says what to do.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("no daemon answers at {}: {error}; start it with `toru serve`, or name its socket with --control-socket", path.display())]
    Unreachable { path: PathBuf, error: io::Error },
    #[error(
        "the daemon at {} takes connections and says nothing for {} ms: it is stopped or hangs, or the machine is overloaded",
        path.display(), patience.as_millis()
    )]
    Silent { path: PathBuf, patience: Duration },
    #[error("the daemon at {} has ended, so nothing more follows", path.display())]
    Ended { path: PathBuf },
    #[error(
        "the control socket has as many connections as it takes; close some of those that hold them, or try again later"
    )]
    Crowded,
    #[error("the daemon is stopping")]
    Stopping,
    #[error("{0}")]
    Refused(String),
    #[error("the daemon's answer cannot be understood: {0}")]
    Garbled(String),
    #[error("cannot write: {0}")]
    Output(io::Error),
}

/// A connection to the daemon for one question.
struct Answer {
    status: u16,
    body: BufReader<UnixStream>,
    /// Whose it is.
    daemon: Daemon,
}

impl Answer {
    /// From here on the next line may take as long as it takes.
    fn follow(&self) -> Result<(), CliError> {
        self.body.get_ref().set_read_timeout(None).map_err(|error| self.daemon.lost(error))
    }
}

/// The daemon, as a shell command sees it.
#[derive(Clone)]
pub struct Daemon {
    control_socket: PathBuf,
    patience: Duration,
    order_look: Duration,
}

impl Daemon {
    pub fn new(control_socket: PathBuf) -> Self {
        Self { control_socket, patience: PATIENCE, order_look: ORDER_LOOK }
    }

    /// `toru status` and `toru plugin list`.
    pub fn status(&self, as_json: bool) -> Result<(), CliError> {
        let text = self.get("/api/plugins")?;
        if as_json {
            return print(&text);
        }
        let plugins: Vec<PluginStatus> = parse(&text)?;
        let more = self.still_reads();
        if plugins.is_empty() && more {
            return print("no plugins yet: they are still being read\n");
        }
        print(&table(&plugins, unix_ms(), colours(&io::stdout())))?;
        if more {
            let _ = writeln!(io::stderr(), "toru: plugins are still being read; there may be more");
        }
        for line in self.skipped() {
            let _ = writeln!(io::stderr(), "toru: skipped {line}");
        }
        Ok(())
    }

    /// Files that are no plugins, each with the reason.
    fn skipped(&self) -> Vec<String> {
        // A daemon of another version may not tell; what there is has been shown.
        let said: Value = self.get("/v1/skipped").ok().and_then(|text| parse(&text).ok()).unwrap_or_default();
        let skipped = said["skipped"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let skipped =
            skipped.map(|one| Skipped { file: text(&one["file"]).into(), reason: text(&one["reason"]) });
        skipped.map(|one| printable(&one.to_string())).collect()
    }

    /// Whether some plugins of the start have not said yet what they are.
    fn still_reads(&self) -> bool {
        let mut text = String::new();
        let answer = self.ask("GET", "/readyz", None);
        answer.is_ok_and(|mut answer| answer.body.read_to_string(&mut text).is_ok())
            && serde_json::from_str::<Value>(&text).is_ok_and(|said| said["code"] == STILL_READING)
    }

    /// `toru plugin show ID`.
    pub fn show(&self, id: &str, as_json: bool) -> Result<(), CliError> {
        let text = self.get(&format!("/api/plugins/{}", segment(id)))?;
        if as_json {
            return print(&text);
        }
        let Value::Object(fields) = parse::<Value>(&text)? else {
            return Err(CliError::Garbled("no object".into()));
        };
        let width = fields.keys().map(String::len).max().unwrap_or(0);
        let mut out = String::new();
        for (key, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            out.push_str(&format!("{key:>width$}  {}\n", field(key, value)));
        }
        print(&out)
    }

    /// `toru plugin enable ID` and its like; returns when it is done, and says meanwhile what it waits for.
    pub fn order(&self, id: &str, order: &str) -> Result<(), CliError> {
        let mut told = String::new();
        let say = |state: String| {
            if state != told {
                let _ = writeln!(io::stderr(), "toru: waiting for {id}: {state}");
                told = state;
            }
        };
        self.order_saying(id, order, say)
    }

    /// As [`Self::order`]; `say` hears what it waits for, again and again.
    fn order_saying(&self, id: &str, order: &str, mut say: impl FnMut(String)) -> Result<(), CliError> {
        let path = format!("/v1/plugins/{}/{order}", segment(id));
        let look = || {
            let text = self.get(&format!("/api/plugins/{}", segment(id)))?;
            say(progress(&parse(&text)?));
            Ok(())
        };
        let answer = self.ask_patiently("POST", &path, None, self.order_look, look)?;
        read_success(answer).map(drop)
    }

    /// `toru plugin logs ID`.
    pub fn logs(
        &self,
        id: &str,
        lines: usize,
        level: Option<&str>,
        follow: bool,
        as_json: bool,
    ) -> Result<(), CliError> {
        #[derive(serde::Deserialize)]
        struct Page {
            logs: Vec<Box<RawValue>>,
        }
        // Raw, so that the keys stay in the order of the log.
        let shown = |line: &str| match serde_json::from_str(line) {
            Ok(parsed) if !as_json => human_line(&parsed),
            _ => printable(line),
        };
        let mut path = format!("/v1/plugins/{}/logs?page_size={lines}", segment(id));
        if let Some(level) = level {
            path.push_str(&format!("&level={}", segment(level)));
        }
        if !follow {
            let page: Page = parse(&self.get(&path)?)?;
            return page.logs.iter().try_for_each(|line| print(&format!("{}\n", shown(line.get()))));
        }
        let answer = self.ask("GET", &format!("{path}&follow=1"), None)?;
        if answer.status != 200 {
            return read_success(answer).map(drop);
        }
        answer.follow()?;
        for line in answer.body.lines() {
            let line = line.map_err(|error| self.lost(error))?;
            print(&format!("{}\n", shown(&line)))?;
        }
        Err(self.ended())
    }

    /// `toru events`.
    pub fn events(
        &self,
        wanted: &WantedEvents,
        limit: u16,
        follow: bool,
        as_json: bool,
    ) -> Result<(), CliError> {
        #[derive(serde::Deserialize)]
        struct Page {
            events: Vec<Box<RawValue>>,
        }
        let coloured = colours(&io::stdout());
        let shown = |line: &str| match serde_json::from_str(line) {
            Ok(parsed) if !as_json => human_event(&parsed, coloured),
            _ => printable(line),
        };
        let mut path = format!("/v1/events?limit={limit}");
        for (name, text) in [("plugin", &wanted.plugin), ("type", &wanted.event_type)] {
            if let Some(text) = text {
                path.push_str(&format!("&{name}={}", segment(text)));
            }
        }
        for (name, unix_ms) in [("since", wanted.since_unix_ms), ("until", wanted.until_unix_ms)] {
            if let Some(unix_ms) = unix_ms {
                path.push_str(&format!("&{name}={unix_ms}"));
            }
        }
        let answer = self.ask("GET", &if follow { format!("{path}&follow=1") } else { path }, None)?;
        if let (404, Some(id)) = (answer.status, &wanted.plugin) {
            let id = printable(id);
            return Err(CliError::Refused(format!("no plugin has the id {id:?}, and no event tells of one")));
        }
        if !follow {
            let page: Page = parse(&read_success(answer)?)?;
            for event in &page.events {
                print(&format!("{}\n", shown(event.get())))?;
            }
            if limit == EVENTS_SHOWN && page.events.len() == usize::from(limit) {
                eprintln!("toru: the last {limit}; there may be more, which -n shows");
            }
            return Ok(());
        }
        if answer.status != 200 {
            return read_success(answer).map(drop);
        }
        answer.follow()?;
        for line in answer.body.lines() {
            print(&format!("{}\n", shown(&line.map_err(|error| self.lost(error))?)))?;
        }
        Err(self.ended())
    }

    /// `toru kv …`: the answer's value, or its keys a line each.
    pub fn kv(&self, id: &str, question: &Value) -> Result<(), CliError> {
        let path = format!("/api/plugins/{}/kv", segment(id));
        let answer = self.ask("POST", &path, Some(("application/json", question.to_string().as_bytes())))?;
        let answer: Value = parse(&read_success(answer)?)?;
        if let Some(keys) = answer["keys"].as_array() {
            for key in keys.iter().filter_map(Value::as_str) {
                print(&format!("{key}\n"))?;
            }
            if keys.len() == KEYS_LISTED_MAX {
                eprintln!(
                    "toru: the first {KEYS_LISTED_MAX}; there may be more, which `toru kv export` has, too"
                );
            }
            return Ok(());
        }
        match (question["action"].as_str(), &answer["value"]) {
            (Some("get"), Value::String(value)) => print(&format!("{value}\n")),
            (Some("get"), _) => Err(CliError::Refused(format!("{id} has no value for {}", question["key"]))),
            _ => Ok(()),
        }
    }

    fn get(&self, path: &str) -> Result<String, CliError> {
        read_success(self.ask("GET", path, None)?)
    }

    /// `content` is its media type and its bytes.
    fn ask(&self, method: &str, path: &str, content: Option<(&str, &[u8])>) -> Result<Answer, CliError> {
        let silence = || self.lost(io::ErrorKind::TimedOut.into());
        if method == "GET" {
            return self.ask_patiently(method, path, content, self.patience, || Err(silence()));
        }
        // A disk may be slow; a daemon that answers nothing at all is waited for no longer than with any other question.
        let left = Self { patience: self.patience.saturating_sub(self.order_look), ..self.clone() };
        let look = || match left.ask("GET", "/healthz", None) {
            Err(CliError::Silent { .. }) => Err(silence()),
            outcome => outcome.map(drop),
        };
        self.ask_patiently(method, path, content, self.order_look, look)
    }

    /// As [`Self::ask`], but each time that nothing came for `wait`, `look` says whether there is a point in waiting on.
    fn ask_patiently(
        &self,
        method: &str,
        path: &str,
        content: Option<(&str, &[u8])>,
        wait: Duration,
        mut look: impl FnMut() -> Result<(), CliError>,
    ) -> Result<Answer, CliError> {
        let mut stream = self.connect().map_err(|error| self.lost(error))?;
        let mut request = format!("{method} {path} HTTP/1.0\r\n").into_bytes();
        if let Some((media_type, body)) = content {
            let fields = format!("content-type: {media_type}\r\ncontent-length: {}\r\n\r\n", body.len());
            request.extend_from_slice(fields.as_bytes());
            request.extend_from_slice(body);
        } else {
            request.extend_from_slice(b"\r\n");
        }
        let sent = stream.set_read_timeout(Some(wait)).and_then(|()| stream.write_all(&request));
        sent.map_err(|error| self.lost(error))?;
        let mut reader = BufReader::new(stream);
        let asked = Instant::now();
        while let Err(error) = reader.fill_buf() {
            // Whoever was put in the background and comes back asks on.
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if !is_silence(&error) || asked.elapsed() >= ORDER_TIMEOUT {
                return Err(self.lost(error));
            }
            look()?;
        }
        reader.get_ref().set_read_timeout(Some(self.patience)).map_err(|error| self.lost(error))?;
        // HTTP/1.0: no chunks, and the content ends with the connection, which is all that a stream needs.
        let mut line = String::new();
        if reader.read_line(&mut line).map_err(|error| self.lost(error))? == 0 {
            // It took the connection, and ended before it came to it.
            return Err(self.lost(io::ErrorKind::UnexpectedEof.into()));
        }
        let status = line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| CliError::Garbled(format!("it begins with {line:?}")))?;
        loop {
            line.clear();
            let count = reader.read_line(&mut line).map_err(|error| self.lost(error))?;
            if count == 0 || line == "\r\n" {
                break;
            }
        }
        Ok(Answer { status, body: reader, daemon: self.clone() })
    }

    fn connect(&self) -> io::Result<UnixStream> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Before connecting: where too many wait to be accepted, connect(2) itself waits, as long as this says.
        set_socket_timeout(&socket, Timeout::Send, Some(self.patience))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(self.control_socket.as_path())?)?;
        Ok(UnixStream::from(socket))
    }

    /// What follows without end was cut off.
    fn ended(&self) -> CliError {
        CliError::Ended { path: self.control_socket.clone() }
    }

    fn lost(&self, error: io::Error) -> CliError {
        if is_silence(&error) {
            return CliError::Silent { path: self.control_socket.clone(), patience: self.patience };
        }
        CliError::Unreachable { path: self.control_socket.clone(), error }
    }
}

/// A field of a plugin's status for people: what is counted in a small unit also in one that can be read.
fn field(key: &str, value: &Value) -> String {
    let Some(count) = value.as_u64() else {
        return match (value.as_str(), value.as_f64()) {
            (Some(text), _) => printable(text),
            (None, Some(number)) => format!("{number:.1}"),
            (None, None) => printable(&value.to_string()),
        };
    };
    let read = match key.rsplit('_').next() {
        _ if matches!(key, "last_restart" | "next_start") => {
            return as_str(&rfc3339_millis(count)).to_owned();
        }
        Some("ms") if count >= 1000 => duration(count),
        Some("us") if count >= 1000 => latency(count),
        Some("bytes") if count >= 1024 => bytes(count),
        _ => return count.to_string(),
    };
    format!("{count} ({read})")
}

/// The question for `toru kv` as the daemon takes it.
pub fn kv_question(action: &str, key: Option<&str>, value: Option<&str>) -> Value {
    match action {
        "list" => json!({ "action": action, "prefix": key }),
        _ => json!({ "action": action, "key": key, "value": value }),
    }
}

/// Whether nothing came, or went, in time.
fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What an order for this plugin waits for.
fn progress(plugin: &PluginStatus) -> String {
    let mut said = format!("it is {}", plugin.state);
    if let Some(pid) = plugin.pid {
        said.push_str(&format!(", process {pid}"));
    }
    if let (None, Some(exit)) = (plugin.pid, &plugin.last_exit) {
        said.push_str(&format!(" ({})", printable(exit)));
    }
    said
}

/// Whether a terminal shows it and nobody minds (no-color.org).
pub fn colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|value| value != "dumb")
}

fn read_success(mut answer: Answer) -> Result<String, CliError> {
    let mut text = String::new();
    answer.body.read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => CliError::Garbled(error.to_string()),
        _ => answer.daemon.lost(error),
    })?;
    if answer.status < 300 {
        return Ok(text);
    }
    let problem: Value = serde_json::from_str(&text).unwrap_or_default();
    if problem["code"] == STOPPING {
        return Err(CliError::Stopping);
    }
    if problem["code"] == CROWDED {
        return Err(CliError::Crowded);
    }
    Err(CliError::Refused(match problem["detail"].as_str() {
        Some(detail) => printable(detail),
        None => format!("the daemon answered with status {}", answer.status),
    }))
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, CliError> {
    serde_json::from_str(text).map_err(|error| CliError::Garbled(error.to_string()))
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `toru status | head -1` has what it wants.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => outcome.map_err(CliError::Output),
    }
}

/// A path segment or query value with everything but letters, digits and `-._` encoded.
fn segment(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Text of a plugin without what a terminal would obey, and with what would make a line read as another told by number.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            _ if character.is_control() => out.push('\u{fffd}'),
            _ if is_format(character) => out.push_str(&format!("<U+{:04X}>", u32::from(character))),
            _ => out.push(character),
        }
    }
    out
}

/// A log line for people: time, level, message, then the rest as it is.
pub(crate) fn human_line(line: &Value) -> String {
    let Value::Object(fields) = line else { return printable(&line.to_string()) };
    let text = |key: &str| fields.get(key).and_then(Value::as_str).unwrap_or_default();
    let mut out = format!("{} {:5} {}", text("timestamp"), text("level"), text("message"));
    let mut below = String::new();
    for (key, value) in fields {
        if ["timestamp", "level", "message", "plugin_id"].contains(&key.as_str()) {
            continue;
        }
        match value.as_str().filter(|text| text.contains('\n')) {
            // A traceback, above all, each line of it on one of its own.
            Some(text) => {
                for line in text.lines() {
                    below.push_str("\n    | ");
                    below.push_str(&printable(line));
                }
            }
            None => out.push_str(&format!(" {key}={value}")),
        }
    }
    printable(&out) + &below
}

/// How grave something is, as a terminal shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Doubtful,
    Bad,
    /// At rest.
    Faint,
}

impl Tone {
    pub fn paint(self, text: &str) -> String {
        match self {
            Tone::Plain => text.to_owned(),
            Tone::Good => format!("\x1b[32m{text}\x1b[0m"),
            Tone::Doubtful => format!("\x1b[33m{text}\x1b[0m"),
            Tone::Bad => format!("\x1b[31m{text}\x1b[0m"),
            Tone::Faint => format!("\x1b[2m{text}\x1b[0m"),
        }
    }

    fn of_event(kind: &str) -> Self {
        match kind {
            "ready" => Tone::Good,
            "crashed" | "disabled_after_crashes" => Tone::Bad,
            "unresponsive" | "start_deferred" | "protocol_error" | "request_timeout" => Tone::Doubtful,
            "stopped" | "disabled" => Tone::Faint,
            _ => Tone::Plain,
        }
    }

    fn of_plugin(plugin: &PluginStatus) -> Self {
        match plugin.state.as_str() {
            "running" if plugin.health == "healthy" => Tone::Good,
            "crashed" | "deferred" | "failed" => Tone::Bad,
            "stopped" => Tone::Faint,
            _ => Tone::Doubtful,
        }
    }
}

/// An event for people: time, plugin, what happened, and what is known about it.
fn human_event(event: &Value, coloured: bool) -> String {
    let text = |key: &str| printable(event[key].as_str().unwrap_or_default());
    let kind = text("event_type");
    let tone = if coloured { Tone::of_event(&kind) } else { Tone::Plain };
    let head =
        format!("{}  {:20}  {}", text("timestamp"), text("plugin_id"), tone.paint(&format!("{kind:22}")));
    let mut out = String::new();
    if let Value::Object(details) = &event["details"] {
        let known = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
        for (key, value) in details.iter().filter(|(_, value)| known(value)) {
            match value {
                Value::String(value) => out.push_str(&format!(" {key}={value:?}")),
                _ if key == "stderr" => {}
                value => out.push_str(&format!(" {key}={value}")),
            }
        }
    }
    let out = head + &printable(&out);
    let mut out = out.trim_end().to_owned();
    // A plugin's last words, each on a line of its own.
    for line in event["details"]["stderr"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.push_str("\n    | ");
        out.push_str(&printable(line));
    }
    out
}

/// One line for each plugin under a head; columns as wide as they need to be.
fn table(plugins: &[PluginStatus], now_ms: u64, colours: bool) -> String {
    if plugins.is_empty() {
        return "no plugins\n".into();
    }
    let head =
        ["ID", "STATE", "PID", "UPTIME", "RESTARTS", "REQUESTS", "ERRORS", "P50", "P99", "MEMORY", "VERSION"];
    let rows: Vec<[String; 11]> = plugins
        .iter()
        .map(|plugin| {
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
            let state = match plugin.next_start {
                Some(at) => format!("{}, again in {}", plugin.state, duration(at.saturating_sub(now_ms))),
                None if plugin.enabled => plugin.state.clone(),
                None => format!("{} (disabled)", plugin.state),
            };
            [
                plugin.id.clone(),
                state,
                or_dash(plugin.pid.map(|pid| pid.to_string())),
                or_dash(plugin.uptime_ms.map(duration)),
                plugin.restarts.to_string(),
                plugin.requests.to_string(),
                plugin.errors.to_string(),
                or_dash(plugin.p50_us.map(latency)),
                or_dash(plugin.p99_us.map(latency)),
                or_dash(plugin.rss_bytes.map(bytes)),
                printable(&plugin.version),
            ]
        })
        .collect();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let left = [0, 1, 10];
    let mut out = String::new();
    let mut line = |cells: &[&str], tone: Tone| {
        let mut text = String::new();
        for (column, cell) in cells.iter().enumerate() {
            let shown = if column == 1 { tone.paint(cell) } else { (*cell).to_owned() };
            let pad = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let (lead, trail) = if left.contains(&column) { ("", pad.as_str()) } else { (pad.as_str(), "") };
            text.push_str(&format!("{lead}{shown}{trail}  "));
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    line(&head, Tone::Plain);
    for (plugin, row) in plugins.iter().zip(&rows) {
        let cells: Vec<&str> = row.iter().map(String::as_str).collect();
        line(&cells, if colours { Tone::of_plugin(plugin) } else { Tone::Plain });
    }
    out
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn latency(us: u64) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..1_000_000 => format!("{}.{}ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{}s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..1_048_576 => format!("{}K", count / 1024),
        1_048_576..1_073_741_824 => format!("{}.{}M", count >> 20, ((count & 0xf_ffff) * 10) >> 20),
        _ => format!("{}.{}G", count >> 30, ((count & 0x3fff_ffff) * 10) >> 30),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn what_has_several_lines_stands_below_its_line() {
        let line = serde_json::json!({
            "timestamp": "t", "level": "error", "message": "failed", "n": 1, "traceback": "Traceback:\n  \u{1b}[2J\n",
        });
        assert_eq!(human_line(&line), "t error failed n=1\n    | Traceback:\n    |   \u{fffd}[2J");
    }

    #[test]
    fn an_event_is_a_line_with_the_last_words_below_it() {
        let event = json!({
            "timestamp": "t", "plugin_id": "acme", "event_type": "crashed",
            "details": { "exit": "exit code 3", "signal": null, "failures": 1, "stderr": ["a\x1b[2J", "b"] },
        });
        let plain = human_event(&event, false);
        let head = format!("t  {:20}  {:22} exit=\"exit code 3\" failures=1", "acme", "crashed");
        assert_eq!(plain, format!("{head}\n    | a\u{fffd}[2J\n    | b"));
        let coloured = human_event(&event, true);
        let painted = format!("\x1b[31m{:22}\x1b[0m", "crashed");
        assert_eq!(coloured, plain.replace(&format!("{:22}", "crashed"), &painted));
        // What a plugin or a hand in the database wrote paints nothing.
        let forged =
            json!({ "timestamp": "t", "plugin_id": "\x1b[2J", "event_type": "\x1b[31mx", "details": {} });
        assert!(!human_event(&forged, true).contains('\x1b'));
        for kind in toru_supervisor::EVENT_KINDS {
            let painted = Tone::of_event(kind).paint(kind);
            assert!(painted == kind || painted.ends_with("\x1b[0m"), "{painted:?}");
        }
    }

    #[test]
    fn a_table_says_what_lives_and_what_does_not() {
        let plugins = [
            PluginStatus {
                id: "acme".into(),
                state: "running".into(),
                health: "healthy".into(),
                enabled: true,
                pid: Some(42),
                uptime_ms: Some(3_725_000),
                p99_us: Some(15_300),
                rss_bytes: Some(5 << 20),
                version: "1.2.3".into(),
                ..PluginStatus::default()
            },
            PluginStatus {
                id: "again".into(),
                state: "crashed".into(),
                enabled: true,
                next_start: Some(4_000),
                ..PluginStatus::default()
            },
            PluginStatus {
                id: "weather-station".into(),
                state: "failed".into(),
                version: "1\x1b[2J".into(),
                ..PluginStatus::default()
            },
        ];
        let text = table(&plugins, 0, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[1].starts_with("acme             running"), "{text}");
        assert!(
            lines[1].contains("1h02m") && lines[1].contains("15.3ms") && lines[1].contains("5.0M"),
            "{text}"
        );
        assert!(lines[2].contains("crashed, again in 4s"), "{text}");
        assert!(lines[3].contains("failed (disabled)") && !text.contains('\x1b'), "{text}");
        let painted = table(&plugins, 0, true);
        assert!(
            painted.contains("\x1b[32mrunning\x1b[0m") && painted.contains("\x1b[31mfailed"),
            "{painted}"
        );
    }

    /// A daemon at a socket of its own, with so little patience that a test has some.
    fn daemon() -> (tempfile::TempDir, UnixListener, Daemon) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
        let control_socket = dir.path().join("control.sock");
        let daemon = Daemon {
            control_socket,
            patience: Duration::from_millis(300),
            order_look: Duration::from_millis(50),
        };
        (dir, listener, daemon)
    }

    /// The next question, by its first line.
    fn question(listener: &UnixListener) -> (UnixStream, String) {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        (reader.into_inner(), line)
    }

    fn answer(mut stream: UnixStream, json: &Value) {
        stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{json}").as_bytes()).unwrap();
    }

    #[test]
    fn a_daemon_that_says_nothing_is_not_waited_for() {
        let (_dir, listener, daemon) = daemon();
        for outcome in [daemon.status(true), daemon.order("p", "restart"), daemon.kv("p", &json!({}))] {
            assert!(matches!(outcome, Err(CliError::Silent { .. })), "{outcome:?}");
        }
        // The same where so many wait to be accepted that no more may.
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = vec![];
        while let Ok(stream) = daemon.connect() {
            waiting.push(stream);
            assert!(waiting.len() < 100_000, "somebody accepts");
        }
        let outcome = daemon.status(true);
        assert!(matches!(outcome, Err(CliError::Silent { .. })), "{outcome:?}");
        drop(listener);
        let outcome = daemon.status(true);
        assert!(matches!(outcome, Err(CliError::Unreachable { .. })), "{outcome:?}");
    }

    #[test]
    fn an_answer_that_stops_in_the_middle_is_not_waited_for() {
        let (_dir, listener, daemon) = daemon();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = question(&listener);
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n[").unwrap();
                // Closed once the other side has given up.
                let _ = io::copy(&mut stream, &mut io::sink());
            });
            let outcome = daemon.status(true);
            assert!(matches!(outcome, Err(CliError::Silent { .. })), "{outcome:?}");
        });
    }

    #[test]
    fn an_order_says_what_it_waits_for() {
        let (_dir, listener, daemon) = daemon();
        let plugin = PluginStatus { state: "stopping".into(), pid: Some(7), ..PluginStatus::default() };
        let plugin = serde_json::to_value(plugin).unwrap();
        let mut said = vec![];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (order, line) = question(&listener);
                assert!(line.starts_with("POST /v1/plugins/p/restart "), "{line}");
                let (look, line) = question(&listener);
                assert!(line.starts_with("GET /api/plugins/p "), "{line}");
                answer(look, &plugin);
                let (look, _) = question(&listener);
                // In this order no third look follows.
                answer(order, &json!({ "success": true }));
                answer(look, &plugin);
            });
            daemon.order_saying("p", "restart", |state| said.push(state)).unwrap();
        });
        assert_eq!(said, ["it is stopping, process 7"; 2]);
    }

    #[test]
    fn a_change_that_takes_long_is_waited_for_as_long_as_the_daemon_answers() {
        let (_dir, listener, daemon) = daemon();
        // Longer than a test may take: who looks only after all of it fails.
        let daemon = Daemon { patience: Duration::from_secs(600), ..daemon };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (change, line) = question(&listener);
                assert!(line.starts_with("POST /api/plugins/p/kv "), "{line}");
                let (look, line) = question(&listener);
                assert!(line.starts_with("GET /healthz "), "{line}");
                // In this order no second look follows.
                answer(change, &json!({ "success": true }));
                answer(look, &json!({}));
            });
            daemon.kv("p", &kv_question("set", Some("k"), Some("v"))).unwrap();
        });
    }

    #[test]
    fn a_field_is_shown_for_people() {
        for (key, value, shown) in [
            ("last_restart", json!(1_700_000_000_001_u64), "2023-11-14T22:13:20.001Z"),
            ("uptime_ms", json!(3_725_000), "3725000 (1h02m)"),
            ("p50_us", json!(340), "340"),
            ("p99_us", json!(15_300), "15300 (15.3ms)"),
            ("rss_bytes", json!(5 << 20), "5242880 (5.0M)"),
            ("requests", json!(12_345), "12345"),
            ("cpu_percent", json!(1.23456), "1.2"),
            ("enabled", json!(true), "true"),
            ("name", json!("evil\u{202e}exe.\u{200b}\u{1b}[2J"), "evil<U+202E>exe.<U+200B>\u{fffd}[2J"),
            ("stderr", json!(["\u{202e}x"]), "[\"<U+202E>x\"]"),
        ] {
            assert_eq!(field(key, &value), shown, "{key}");
        }
    }

    #[test]
    fn ids_cannot_leave_their_segment() {
        assert_eq!(segment("a/../b?c"), "a%2F..%2Fb%3Fc");
    }
}
