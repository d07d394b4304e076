//! `toru plugin test`: is this program a sound plugin? Asked without a core, case by case.
//!
//! Every case says what it looks at, and on a failure what was seen and what to change. A case never looks at what the
//! plugin answers to a request, only at whether it answers as the protocol wants it.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::net::Shutdown;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use serde_json::json;
use toru_plugin_api::frame::{FRAME_BYTES_MAX_DEFAULT, Framing};
use toru_plugin_api::metadata::{Metadata, Protocol};

use super::subject::{ANSWER_PATIENCE, Ask, Fault, Heard, Link, Program, Silence, Subject, metadata};

/// The core's `supervisor.stop_grace_ms` and `term_grace_ms`.
const STOP_GRACE: Duration = Duration::from_millis(5000);
const TERM_GRACE: Duration = Duration::from_millis(2000);
/// How long a connection that has to be closed may stay open.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// From a fault to the end of a process that had it because it ended.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Requests at once, less where the plugin takes less.
const MANY: u32 = 200;
/// So many bytes of a frame have a pause behind them, in which a plugin reads what has come. Where all of these pauses are
/// too short for it, as on a very busy machine, a fault is not seen; one that is seen does not hang on them.
const BYTES_ALONE: usize = 32;
const BYTE_PAUSE: Duration = Duration::from_millis(2);

type Check = fn(&mut Subject) -> Result<(), Fault>;

/// One thing that is looked at.
struct Case {
    name: &'static str,
    /// What is asked, and what a sound plugin does.
    asks: &'static str,
    check: Check,
    /// What to change where it fails; the fault itself may say more.
    remedy: &'static str,
    /// Not needed under the core, but good for people: a failure is told and does not count.
    is_advice: bool,
}

impl Case {
    const fn new(name: &'static str, asks: &'static str, check: Check, remedy: &'static str) -> Self {
        Self { name, asks, check, remedy, is_advice: false }
    }

    const fn advice(name: &'static str, asks: &'static str, check: Check, remedy: &'static str) -> Self {
        Self { name, asks, check, remedy, is_advice: true }
    }
}

const BOTH: [Case; 2] = [
    Case::new(
        "private-socket",
        "the socket is a socket and its user's alone",
        private_socket,
        "leave the umask that the core sets, or set it to 0177 around bind; no chmod",
    ),
    Case::new(
        "stale-socket",
        "a socket file that a killed process left behind is no hindrance",
        stale_socket,
        "where the path is a socket that refuses connections, remove it before bind",
    ),
];

const OF_1_1: [Case; 19] = [
    Case::new(
        "init",
        "`init` is answered with `ready`",
        init,
        "answer `init` on its own connection with the lifecycle action `ready`",
    ),
    Case::new(
        "init-again",
        "a repeated `init` is answered with `ready` again",
        init_again,
        "answer each `init`; do the work of the first one once",
    ),
    Case::new(
        "http",
        "a request gets one sound answer with its `request_id`",
        http,
        "write `{\"type\":\"http\",\"request_id\":…,\"payload\":{\"status\":…,\"headers\":{…},\"body\":\"…\"}}`",
    ),
    Case::new(
        "pieces",
        "a frame that comes byte by byte is put together",
        pieces,
        "keep what was read until the frame is whole; never take one read for one frame",
    ),
    Case::new(
        "many-at-once",
        "requests that come in one write are answered, each once",
        many_at_once,
        "take every frame out of what was read, not only the first, and give each `request_id` back as it came",
    ),
    Case::new(
        "two-connections",
        "`init` keeps one connection while requests come on others, with the same ids",
        two_connections,
        "serve every connection at the same time, and answer on the one that the request came on",
    ),
    Case::new(
        "unknown",
        "types, lifecycle actions and fields that are not known are ignored",
        unknown,
        "skip messages whose `type` or `action` you do not know, and fields likewise",
    ),
    Case::new(
        "ping",
        "`ping` is answered with a `pong` of its `seq`, also behind requests",
        ping,
        "answer `ping` at once with the action `pong` and the same `seq`, whatever else is going on",
    ),
    Case::new(
        "cancel",
        "`cancel` ends nothing but its request, known or not",
        cancel,
        "stop working on that request, or ignore the message; never close the connection over it",
    ),
    Case::new(
        "bodies",
        "contents of any bytes and repeated headers are taken",
        bodies,
        "read `body_encoding` \"base64\", and header values that are arrays",
    ),
    Case::new(
        "large-request",
        "a request close to the limit is answered",
        large_request,
        "read frames up to `max_message_bytes` of `init`, 1 048 576 by default",
    ),
    Case::new(
        "kv",
        "stored values are asked for as the protocol has it",
        kv,
        "send `{\"type\":\"kv\",\"request_id\":…,\"payload\":{\"action\":…,\"key\":…}}` and wait for the answer of that id",
    ),
    Case::new(
        "overtaking",
        "a request that waits is overtaken by one behind it on its connection",
        overtaking,
        "handle each request in a task or thread of its own, so that one that waits holds up no other",
    ),
    Case::new(
        "broken-frame",
        "a broken frame ends its connection and nothing else",
        broken_frame,
        "close that connection and go on serving the others",
    ),
    Case::new(
        "announced-length",
        "a length past the limit is refused at once",
        announced_length,
        "compare the length with the limit before anything is read or allocated for it",
    ),
    Case::new(
        "lost-connection",
        "a connection that is lost takes nothing with it",
        lost_connection,
        "expect writes to fail, ignore SIGPIPE, and go on serving the others",
    ),
    Case::advice(
        "by-hand",
        "a person with socat is answered in lines",
        by_hand,
        "look at the first byte of each connection: `{` means line framing",
    ),
    Case::new(
        "shutdown",
        "`shutdown` answers what is there and exits 0 within its deadline",
        shutdown,
        "stop accepting, answer what was asked, and exit 0",
    ),
    Case::new(
        "sigterm",
        "SIGTERM ends the process within its grace",
        sigterm,
        "end on SIGTERM as on `shutdown`",
    ),
];

const OF_1_0: [Case; 8] = [
    Case::new(
        "init",
        "`init` is taken without an answer",
        init_1_0,
        "read the message and say nothing: in 1.0 lifecycle messages have no answer",
    ),
    Case::new(
        "http",
        "a request gets one sound answer with its `request_id`",
        http,
        "write one frame with the `request_id` of the request, then let the core close",
    ),
    Case::new(
        "pieces",
        "a frame that comes byte by byte is put together",
        pieces,
        "keep what was read until the frame is whole; never take one read for one frame",
    ),
    Case::new(
        "one-after-the-other",
        "exchange follows exchange, each on a connection of its own",
        exchanges_1_0,
        "accept the next connection when one is closed",
    ),
    Case::new(
        "four-at-once",
        "four connections at once are all answered",
        four_at_once_1_0,
        "go on accepting; the core opens up to `protocol.legacy_connections`, 4",
    ),
    Case::new(
        "ping",
        "`ping` and the closing of its connection are harmless",
        ping_1_0,
        "read the message and say nothing",
    ),
    Case::new(
        "lost-connection",
        "a connection that is lost takes nothing with it",
        lost_connection,
        "expect writes to fail, ignore SIGPIPE, and go on serving the others",
    ),
    Case::new("sigterm", "SIGTERM ends the process within its grace", sigterm, "end on SIGTERM"),
];

/// How one case went.
struct Verdict {
    name: &'static str,
    asks: &'static str,
    outcome: Outcome,
    is_advice: bool,
}

enum Outcome {
    Sound,
    /// The plugin gave no occasion; why, and what would.
    NotExercised(&'static str),
    /// What was seen, and what to change.
    Fault(Fault, &'static str),
}

/// Tests the program at `path`; whether it is sound. The report goes to stdout.
///
/// `target` is what most requests ask for; what the plugin answers to it, a 404 too, is its business. `slow` is
/// something that takes longer than `target`.
///
/// Errors: the temporary folder cannot be made, the report not be written.
pub fn run(
    path: &Path,
    args: Vec<OsString>,
    target: String,
    slow: Option<String>,
    only: &[String],
    as_json: bool,
) -> io::Result<bool> {
    // As the core starts plugins.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let folder = tempfile::Builder::new().prefix("toru-test-").tempdir()?;
    // A relative path would change its meaning, or be looked up in PATH.
    let path = std::path::absolute(path)?;
    let program = Rc::new(Program { path, args, target, slow, folder });
    let mut report = Report::new(as_json, &program.path);
    let found = match metadata(&program) {
        Ok(found) => found,
        Err(fault) => {
            report.add(Verdict {
                name: "metadata",
                asks: "`--metadata` prints one sound object",
                outcome: Outcome::Fault(fault, "print one JSON object with the protocol's fields and exit 0"),
                is_advice: false,
            })?;
            return report.end(None);
        }
    };
    report.add(Verdict {
        name: "metadata",
        asks: "`--metadata` prints one sound object",
        outcome: Outcome::Sound,
        is_advice: false,
    })?;
    let own: &[Case] = match found.protocol {
        Protocol::V1_0 => &OF_1_0,
        Protocol::V1_1 => &OF_1_1,
    };
    let wanted = |case: &&Case| only.is_empty() || only.iter().any(|name| name == case.name);
    for case in own.iter().take(1).chain(&BOTH).chain(&own[1..]).filter(wanted) {
        // Each case has a process of its own, so that one fault is told once.
        let outcome = Subject::start(&program, &found).and_then(|mut subject| {
            // A process that ends closes its connections a moment before anybody can know of it.
            let checked = (case.check)(&mut subject).map_err(|fault| match subject.wait(END_PATIENCE) {
                None => fault,
                Some(_) => format!("{fault}; and the process has ended{}", subject.final_words()),
            });
            checked.map(|()| subject.left_out.take())
        });
        let outcome = match outcome {
            Ok(None) => Outcome::Sound,
            Ok(Some(why)) => Outcome::NotExercised(why),
            Err(fault) => Outcome::Fault(fault, case.remedy),
        };
        let is_hopeless = matches!(outcome, Outcome::Fault(..)) && case.name == own[0].name;
        report.add(Verdict { name: case.name, asks: case.asks, outcome, is_advice: case.is_advice })?;
        // Every other case would tell the same.
        if is_hopeless {
            break;
        }
    }
    report.end(Some(&found))
}

/// What is printed, as it comes or as JSON at the end.
struct Report {
    as_json: bool,
    colours: bool,
    path: PathBuf,
    verdicts: Vec<Verdict>,
}

impl Report {
    fn new(as_json: bool, path: &Path) -> Self {
        let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { as_json, colours, path: path.to_owned(), verdicts: vec![] }
    }

    fn add(&mut self, verdict: Verdict) -> io::Result<()> {
        if !self.as_json {
            let (word, colour) = match (&verdict.outcome, verdict.is_advice) {
                (Outcome::Sound, _) => ("ok  ", "32"),
                (Outcome::NotExercised(_), _) => ("--  ", "33"),
                (Outcome::Fault(..), true) => ("note", "33"),
                (Outcome::Fault(..), false) => ("FAIL", "31"),
            };
            let word = if self.colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
            let mut out = io::stdout().lock();
            writeln!(out, "{word} {}: {}", verdict.name, verdict.asks)?;
            match &verdict.outcome {
                Outcome::Sound => {}
                Outcome::NotExercised(why) => writeln!(out, "     not exercised: {why}")?,
                Outcome::Fault(fault, remedy) => {
                    writeln!(out, "     seen:   {fault}\n     change: {remedy}")?;
                }
            }
        }
        self.verdicts.push(verdict);
        Ok(())
    }

    fn end(self, metadata: Option<&Metadata>) -> io::Result<bool> {
        let is_failed = |one: &&Verdict| matches!(one.outcome, Outcome::Fault(..)) && !one.is_advice;
        let failed = self.verdicts.iter().filter(is_failed).count();
        let is_left_out = |one: &&Verdict| matches!(one.outcome, Outcome::NotExercised(_));
        let left_out: Vec<&str> = self.verdicts.iter().filter(is_left_out).map(|one| one.name).collect();
        let sound = failed == 0;
        let mut out = io::stdout().lock();
        if self.as_json {
            let cases: Vec<_> = self
                .verdicts
                .iter()
                .map(|one| {
                    let (ok, why, fault, remedy) = match &one.outcome {
                        Outcome::Sound => (Some(true), None, None, None),
                        Outcome::NotExercised(why) => (None, Some(why), None, None),
                        Outcome::Fault(fault, remedy) => (Some(false), None, Some(fault), Some(remedy)),
                    };
                    json!({ "case": one.name, "asks": one.asks, "ok": ok, "not_exercised": why, "advice": one.is_advice, "seen": fault, "change": remedy })
                })
                .collect();
            let report = json!({
                "plugin": self.path,
                "id": metadata.map(|metadata| &metadata.id),
                "protocol": metadata.map(|metadata| metadata.protocol.as_str()),
                "sound": sound,
                "failed": failed,
                "not_exercised": left_out,
                "cases": cases,
            });
            writeln!(out, "{report:#}")?;
            return Ok(sound);
        }
        let path = self.path.display();
        match metadata {
            Some(metadata) if sound => {
                let so_far = match left_out.as_slice() {
                    [] => String::new(),
                    names => format!(", as far as it was asked: not exercised were {}", names.join(", ")),
                };
                writeln!(out, "\n{path} is a sound {} plugin{so_far}", metadata.protocol.as_str())?;
            }
            Some(metadata) => {
                writeln!(
                    out,
                    "\n{path} is no sound {} plugin yet: {failed} of {} cases fail",
                    metadata.protocol.as_str(),
                    self.verdicts.len()
                )?;
            }
            None => writeln!(out, "\n{path} is no plugin: nothing else was tried")?,
        }
        Ok(sound)
    }
}

// Cases of both versions

fn private_socket(subject: &mut Subject) -> Result<(), Fault> {
    match subject.socket_mode() {
        Some(mode) if mode & 0o077 == 0 => Ok(()),
        Some(mode) => Err(format!("the socket's mode is {mode:04o}")),
        None => Err("what stands at the path is no socket".into()),
    }
}

fn stale_socket(subject: &mut Subject) -> Result<(), Fault> {
    // `subject` listens already: kill it, so that its socket stays, and start another in its place.
    subject.kill_and_start_again()
}

fn http(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    let mut link = subject.connect()?;
    let ask = Ask::get("1-2a7f-3");
    link.send(&link.request(&ask))?;
    link.answer(ask.id)?;
    nothing_more(&mut link)
}

fn pieces(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    let mut link = subject.connect()?;
    if subject.metadata.protocol == Protocol::V1_1 {
        // Who has answered here waits for bytes now, and reads the first of them alone.
        link.send(&link.request(&Ask::get("whole")))?;
        link.answer("whole")?;
    }
    let ask = Ask::get("drip");
    for (place, byte) in link.request(&ask).iter().enumerate() {
        link.send(&[*byte])?;
        if place < BYTES_ALONE {
            std::thread::sleep(BYTE_PAUSE);
        }
    }
    link.answer(ask.id).map(drop)
}

fn lost_connection(subject: &mut Subject) -> Result<(), Fault> {
    let control = ready(subject)?;
    for _ in 0..5 {
        let mut link = subject.connect()?;
        link.send(&link.request(&Ask::get("gone")))?;
        drop(link);
    }
    drop(control);
    for _ in 0..2 {
        let mut link = subject.connect()?;
        link.send(&link.request(&Ask::get("after")))?;
        link.answer("after")?;
    }
    Ok(())
}

fn sigterm(subject: &mut Subject) -> Result<(), Fault> {
    // A plugin that is sent the signal before it is set up has an excuse.
    drop(ready(subject)?);
    let mut link = subject.connect()?;
    link.send(&link.request(&Ask::get("before")))?;
    link.answer("before")?;
    drop(link);
    subject.terminate();
    let patience = STOP_GRACE + TERM_GRACE;
    match subject.wait(patience) {
        Some(_) => Ok(()),
        None => Err(format!("it was still there {} s after SIGTERM", patience.as_secs())),
    }
}

/// What the core does before it sends requests: the connection with `init`, in 1.1 after `ready`.
fn ready(subject: &Subject) -> Result<Option<Link>, Fault> {
    let mut control = subject.connect()?;
    control.send(&subject.init(control.framing))?;
    if subject.metadata.protocol == Protocol::V1_0 {
        return Ok(None);
    }
    match control.expect("`ready`")? {
        Heard::Ready => Ok(Some(control)),
        Heard::Failed(error) => Err(format!("`init` was answered with `failed`: {error}")),
        other => Err(format!("{other:?} came instead of `ready`")),
    }
}

/// No second answer follows. A later message of another kind pushes it out: in 1.1 a ping.
fn nothing_more(link: &mut Link) -> Result<(), Fault> {
    if link.is_1_0() {
        return Ok(());
    }
    link.send(&link.ping(1))?;
    match link.expect("a `pong`")? {
        Heard::Pong(_) => Ok(()),
        other => Err(format!("{other:?} came behind the answer: each request is answered once")),
    }
}

// Cases of 1.1

fn init(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject).map(drop)
}

fn init_again(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    for _ in 0..2 {
        let init = subject.init(control.framing);
        control.send(&init)?;
        match control.expect("another `ready`")? {
            Heard::Ready => {}
            other => return Err(format!("{other:?} came instead of another `ready`")),
        }
    }
    // And on another connection, as after a loss.
    ready(subject).map(drop)
}

fn many_at_once(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    let ids: Vec<String> =
        (0..MANY.min(subject.metadata.max_in_flight)).map(|number| format!("{number:x}-many")).collect();
    let together: Vec<u8> = ids.iter().flat_map(|id| link.request(&Ask::get(id))).collect();
    link.send(&together)?;
    let mut waiting: HashSet<String> = ids.into_iter().collect();
    while !waiting.is_empty() {
        let what = format!("the answer to {} of the requests", waiting.len());
        match link.expect(&what)? {
            Heard::Answer { request_id, .. } if waiting.remove(&request_id) => {}
            Heard::Answer { request_id, .. } => {
                return Err(format!("an answer came for `{request_id}`, which nobody waits for (any more)"));
            }
            other => return Err(format!("{other:?} came among the answers")),
        }
    }
    nothing_more(&mut link)
}

fn two_connections(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    let mut first = subject.connect()?;
    let mut second = subject.connect()?;
    // The second is asked and answered while the first is silent.
    second.send(&second.request(&Ask::get("same")))?;
    second.answer("same")?;
    first.send(&first.request(&Ask::get("same")))?;
    second.send(&second.request(&Ask::get("same")))?;
    first.answer("same")?;
    second.answer("same")?;
    nothing_more(&mut first)?;
    nothing_more(&mut second)?;
    nothing_more(&mut control)
}

fn unknown(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    for json in [
        r#"{"type":"websocket","timestamp":"2026-01-01T00:00:00.000Z","request_id":"w1","payload":{"type":"websocket"}}"#,
        r#"{"type":"lifecycle","timestamp":"2026-01-01T00:00:00.000Z","payload":{"type":"lifecycle","action":"hibernate","minutes":5}}"#,
        r#"{"type":"http","timestamp":"2026-01-01T00:00:00.000Z","request_id":"r1","trace":[1,{"a":null}],"payload":{"type":"http","request_id":"r1","payload":{"method":"GET","path":"/","headers":{},"priority":1,"body":null},"deadline":{}}}"#,
    ] {
        let frame = link.frame(json);
        link.send(&frame)?;
    }
    link.answer("r1")?;
    nothing_more(&mut link)
}

fn ping(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    let mut link = subject.connect()?;
    let requests: Vec<u8> = (0..20.min(subject.metadata.max_in_flight))
        .flat_map(|number| link.request(&Ask::get(&format!("p{number}"))))
        .collect();
    link.send(&requests)?;
    for seq in [7, 8, (1 << 53) - 1] {
        control.send(&control.ping(seq))?;
        match control.expect("a `pong`")? {
            Heard::Pong(told) if told == seq => {}
            Heard::Pong(told) => {
                return Err(format!("a `pong` came with `seq` {told}, the `ping` had {seq}"));
            }
            other => return Err(format!("{other:?} came instead of a `pong`")),
        }
    }
    Ok(())
}

fn cancel(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    let bytes = [
        link.cancel("nobody"),
        link.request(&Ask::get("c1")),
        link.cancel("c1"),
        link.request(&Ask::get("c2")),
    ]
    .concat();
    link.send(&bytes)?;
    // The cancelled request may be answered or not.
    loop {
        match link.expect("an answer to the request behind the cancelled one")? {
            Heard::Answer { request_id, .. } if request_id == "c2" => return Ok(()),
            Heard::Answer { request_id, .. } if request_id == "c1" => {}
            other => return Err(format!("{other:?} came after a `cancel`")),
        }
    }
}

fn bodies(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    let every_byte: Vec<u8> = (0..=255).collect();
    let headers: [(&str, &[u8]); 3] =
        [("x-many", b"1"), ("x-many", b"2"), ("x-name", "gr\u{fc}\u{df}".as_bytes())];
    for (id, body) in
        [("b1", every_byte.as_slice()), ("b2", "{\"k\":\"\u{e9}\\n\u{1f40d}\"}".as_bytes()), ("b3", b"")]
    {
        let ask = Ask { id, method: "POST", path: Some("/%C3%A9?a=%20b&a"), headers: &headers, body };
        link.send(&link.request(&ask))?;
        link.answer(id)?;
    }
    Ok(())
}

fn large_request(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    let body = vec![b'x'; FRAME_BYTES_MAX_DEFAULT - 4096];
    link.send(&link.request(&Ask { id: "large", method: "POST", path: None, headers: &[], body: &body }))?;
    link.answer("large")?;
    link.send(&link.request(&Ask::get("small")))?;
    link.answer("small").map(drop)
}

fn kv(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    control.send(&control.request(&Ask::get("kv")))?;
    control.answer("kv")?;
    nothing_more(&mut control)?;
    if subject.questions() == 0 {
        subject.left_out = Some("it asked for no stored value; name a path where it does with --target");
    }
    Ok(())
}

/// The first request is held up: by the plugin itself, at the path that its author named, or by a stored value that it
/// asks for and does not get yet.
fn overtaking(subject: &mut Subject) -> Result<(), Fault> {
    let _control = ready(subject)?;
    let mut link = subject.connect()?;
    let slow = subject.slow();
    let is_held_by_kv = slow.is_none();
    if is_held_by_kv {
        subject.hold_questions();
    }
    link.send(&link.request(&Ask { path: slow.as_deref(), ..Ask::get("first") }))?;
    if is_held_by_kv {
        let began = Instant::now();
        while !subject.holds_a_question() {
            match link.hear(Duration::ZERO) {
                Ok(Heard::Answer { request_id, .. }) if request_id == "first" => {
                    subject.left_out = Some(
                        "it answered without a wait; name a path that takes a while with --slow, or one where it asks for a stored value with --target",
                    );
                    return Ok(());
                }
                Ok(other) => return Err(format!("{other:?} came instead of an answer to `first`")),
                Err(Silence::Late) if began.elapsed() < ANSWER_PATIENCE => {}
                Err(Silence::Late) => return Err("the first request was not answered".into()),
                Err(Silence::Closed) => return Err("the connection was closed instead of an answer".into()),
                Err(Silence::Broken(fault)) => return Err(fault),
            }
        }
        subject.answer_new_questions();
    }
    link.send(&link.request(&Ask::get("second")))?;
    match link.expect("the answer to a request behind one that waits")? {
        Heard::Answer { request_id, .. } if request_id == "second" => {}
        Heard::Answer { request_id, .. } if request_id == "first" => {
            return Err(match slow {
                Some(path) => format!("`{path}` was answered before the request behind it"),
                None => {
                    "the request that waited for a stored value was answered before the one behind it".into()
                }
            });
        }
        other => return Err(format!("{other:?} came instead of an answer to `second`")),
    }
    subject.answer_held_questions()?;
    link.answer("first")?;
    nothing_more(&mut link)
}

fn broken_frame(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    let broken: [&[u8]; 3] = match control.framing {
        Framing::Length => [b"\0\0\0\0", b"\0\0\0\x02[]", b"\0\0\0\x01{"],
        Framing::Lines => [b"\n", b"[]\n", b"{\n"],
    };
    for bytes in broken {
        let mut link = subject.connect()?;
        link.send(bytes)?;
        must_close(&mut link, &format!("the bytes {:?}", String::from_utf8_lossy(bytes)))?;
    }
    nothing_more(&mut control)?;
    let mut link = subject.connect()?;
    link.send(&link.request(&Ask::get("after")))?;
    link.answer("after").map(drop)
}

fn announced_length(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    let mut link = subject.connect_in(Framing::Length)?;
    link.send(&0x0fff_ffffu32.to_be_bytes())?;
    must_close(&mut link, "an announced length of 268 435 455 bytes")?;
    nothing_more(&mut control)
}

/// Errors: the connection is still open after a while.
fn must_close(link: &mut Link, after: &str) -> Result<(), Fault> {
    match link.hear(CLOSE_PATIENCE) {
        Err(Silence::Closed) => Ok(()),
        Err(Silence::Late) => {
            Err(format!("the connection was still open {} s after {after}", CLOSE_PATIENCE.as_secs()))
        }
        Err(Silence::Broken(fault)) => Err(fault),
        Ok(heard) => Err(format!("{heard:?} came in answer to {after}")),
    }
}

fn by_hand(subject: &mut Subject) -> Result<(), Fault> {
    let mut link = subject.connect_in(Framing::Lines)?;
    link.send(
        b"{\"type\":\"http\",\"request_id\":\"r1\",\"payload\":{\"method\":\"GET\",\"path\":\"/\"}}\n",
    )?;
    link.stream()
        .shutdown(Shutdown::Write)
        .map_err(|error| format!("the connection cannot be closed: {error}"))?;
    link.answer("r1").map(drop)
}

fn shutdown(subject: &mut Subject) -> Result<(), Fault> {
    let mut control = ready(subject)?.ok_or("no connection")?;
    let ids: Vec<String> =
        (0..20.min(subject.metadata.max_in_flight)).map(|number| format!("s{number}")).collect();
    let mut together: Vec<u8> = ids.iter().flat_map(|id| control.request(&Ask::get(id))).collect();
    together.extend(control.shutdown(STOP_GRACE.as_millis() as u64));
    control.send(&together)?;
    let mut waiting: HashSet<String> = ids.into_iter().collect();
    while !waiting.is_empty() {
        match control
            .expect(&format!("the answer to {} requests that were asked before `shutdown`", waiting.len()))?
        {
            Heard::Answer { request_id, .. } => drop(waiting.remove(&request_id)),
            other => return Err(format!("{other:?} came among the last answers")),
        }
    }
    match subject.wait(STOP_GRACE) {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(format!("it ended with {status} instead of exit status 0")),
        None => Err(format!("it was still there {} s after `shutdown`", STOP_GRACE.as_secs())),
    }
}

// Cases of 1.0

fn init_1_0(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    exchange(subject, "after-init")
}

/// One connection for one exchange.
fn exchange(subject: &Subject, id: &str) -> Result<(), Fault> {
    let mut link = subject.connect()?;
    link.send(&link.request(&Ask::get(id)))?;
    link.answer(id).map(drop)
}

fn exchanges_1_0(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    (0..10).try_for_each(|number| exchange(subject, &format!("e{number}")))
}

fn four_at_once_1_0(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    let mut links = (0..4).map(|_| subject.connect()).collect::<Result<Vec<_>, _>>()?;
    for (number, link) in links.iter_mut().enumerate() {
        link.send(&link.request(&Ask::get(&format!("f{number}"))))?;
    }
    for (number, mut link) in links.into_iter().enumerate() {
        // Each is closed with its answer: the plugin may serve one after the other.
        link.answer(&format!("f{number}"))?;
    }
    Ok(())
}

fn ping_1_0(subject: &mut Subject) -> Result<(), Fault> {
    ready(subject)?;
    for _ in 0..3 {
        let mut link = subject.connect()?;
        link.send(&link.ping(1))?;
    }
    exchange(subject, "after-ping")
}
