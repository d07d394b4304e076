//! The plugin under test: its process, and connections to it as the core makes them.
//!
//! Blocking and single-threaded but for the threads that drain what the plugin prints.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::{Rc, Weak};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use toru_plugin_api::frame::{Decoder, FRAME_BYTES_MAX_DEFAULT, Framing};
use toru_plugin_api::from_core::{self, Init, KvReply, RequestStart};
use toru_plugin_api::from_plugin::{KvRequest, PluginMessage, PluginMessageReader};
use toru_plugin_api::metadata::{Metadata, Protocol};
use toru_plugin_api::time::{as_str, rfc3339_millis};
use toru_supervisor::Helper;

/// From a program's end to that of its output.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);
/// From the start to a socket that takes connections, as `supervisor.ready_timeout_ms`.
const LISTEN_PATIENCE: Duration = Duration::from_secs(5);
/// For one answer. Plugins answer in milliseconds; a loaded machine gets room.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// As the supervisor's own bound of that call.
const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Output of the plugin that is kept, to explain a failure.
const SAID_BYTES_KEPT: usize = 4096;
const POLL: Duration = Duration::from_millis(5);
/// How long what has ended may have words in its pipes that are not read yet.
const WORDS_PATIENCE: Duration = Duration::from_secs(1);

/// What went wrong, in words for the plugin's author.
pub type Fault = String;

/// How a plugin is started.
pub struct Program {
    pub path: PathBuf,
    pub args: Vec<OsString>,
    /// What the requests ask for where a case does not care.
    pub target: String,
    /// What takes a while, if the author says so.
    pub slow: Option<String>,
    pub folder: tempfile::TempDir,
}

impl Program {
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("plugin.sock")
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // As the core does: nothing of its own environment but what the protocol names.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TORU_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// A running plugin; killed on drop.
pub struct Subject {
    program: Rc<Program>,
    child: Child,
    is_gone: bool,
    pub socket: PathBuf,
    pub metadata: Metadata,
    /// Why the case could not be tried, once it says so.
    pub left_out: Option<&'static str>,
    core: Rc<RefCell<Core>>,
    data_dir: PathBuf,
    said: Arc<Mutex<VecDeque<u8>>>,
}

impl Subject {
    /// Starts the plugin and waits until it listens.
    pub fn start(program: &Rc<Program>, metadata: &Metadata) -> Result<Self, Fault> {
        // What the process of the last case left there.
        let _ = std::fs::remove_file(program.socket());
        Self::start_where_it_was(program, metadata)
    }

    fn start_where_it_was(program: &Rc<Program>, metadata: &Metadata) -> Result<Self, Fault> {
        let socket = program.socket();
        let mut command = program.command();
        command
            .env("TORU_PLUGIN_SOCKET", &socket)
            .env("TORU_PLUGIN_ID", &metadata.id)
            .env("TORU_INSTANCE_ID", "conformance");
        // What it forks ends with it, where it stays in its group.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| {
            format!(
                "{} cannot be run: {error}; it must be executable, and a script needs a `#!` line",
                program.path.display()
            )
        })?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        for pipe in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
            drain(pipe, Arc::clone(&said));
        }
        let data_dir = program.folder.path().join("data");
        let _ = std::fs::create_dir(&data_dir);
        let program = Rc::clone(program);
        let mut subject = Self {
            program,
            child,
            is_gone: false,
            socket,
            metadata: metadata.clone(),
            left_out: None,
            core: Rc::default(),
            data_dir,
            said,
        };
        subject.wait_until_it_listens()?;
        Ok(subject)
    }

    fn wait_until_it_listens(&mut self) -> Result<(), Fault> {
        let began = Instant::now();
        loop {
            let refused = match UnixStream::connect(&self.socket) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("it ended with {status} before it listened{}", self.final_words()));
            }
            if began.elapsed() > LISTEN_PATIENCE {
                let why = match refused.kind() {
                    ErrorKind::NotFound => "there is no socket",
                    ErrorKind::ConnectionRefused => "the socket is there, and nobody listens on it",
                    _ => "it cannot be connected to",
                };
                return Err(format!(
                    "{why} at the path in TORU_PLUGIN_SOCKET after {} s: bind and listen there before anything that takes long{}",
                    LISTEN_PATIENCE.as_secs(),
                    self.last_words()
                ));
            }
            thread::sleep(POLL);
        }
    }

    /// The socket's mode, if it is a socket.
    pub fn socket_mode(&self) -> Option<u32> {
        let found = std::fs::symlink_metadata(&self.socket).ok()?;
        found.file_type().is_socket().then(|| found.permissions().mode() & 0o777)
    }

    /// What the plugin printed last, for the end of a sentence.
    pub fn last_words(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = said.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.trim().lines().rev().take(4).collect();
        if lines.is_empty() {
            return String::new();
        }
        format!("; it printed: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" / "))
    }

    /// The same of one that has ended: all that it has left in its pipes is read first, unless something else holds them
    /// open.
    pub fn final_words(&self) -> String {
        let began = Instant::now();
        // Each reader has one of these as long as it reads.
        while Arc::strong_count(&self.said) > 1 && began.elapsed() < WORDS_PATIENCE {
            thread::sleep(POLL);
        }
        self.last_words()
    }

    /// Kills the plugin, whose socket file stays, and starts it again in its place.
    pub fn kill_and_start_again(&mut self) -> Result<(), Fault> {
        self.kill();
        if self.socket_mode().is_none() {
            return Err("its socket file is gone with it, so nothing could be tried".into());
        }
        *self = Self::start_where_it_was(&self.program, &self.metadata)?;
        Ok(())
    }

    /// How it ended, if it does within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if began.elapsed() > patience {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    pub fn terminate(&self) {
        // It may have ended already, which `wait` tells.
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn kill(&mut self) {
        if std::mem::replace(&mut self.is_gone, true) {
            return;
        }
        // The group's number is nobody else's while any of it is left.
        if let Some(group) = self.pid() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// A connection in the framing of the metadata.
    pub fn connect(&self) -> Result<Link, Fault> {
        self.connect_in(self.metadata.framing)
    }

    pub fn connect_in(&self, framing: Framing) -> Result<Link, Fault> {
        let stream = UnixStream::connect(&self.socket)
            .map_err(|error| format!("it takes no further connection: {error}{}", self.last_words()))?;
        // Reads are short so that every wait has its own end; a write that blocks means that the plugin does not read.
        let bounded = stream
            .set_read_timeout(Some(POLL))
            .and_then(|()| stream.set_write_timeout(Some(ANSWER_PATIENCE)));
        bounded.map_err(|error| format!("the connection cannot be used: {error}"))?;
        let inner = Rc::new(RefCell::new(Inner {
            stream,
            framing,
            decoder: Decoder::new(framing, FRAME_BYTES_MAX_DEFAULT),
            reader: PluginMessageReader::new(),
            heard: VecDeque::new(),
            end: None,
        }));
        self.core.borrow_mut().connections.push(Rc::downgrade(&inner));
        Ok(Link {
            inner,
            core: Rc::clone(&self.core),
            framing,
            target: self.program.target.clone(),
            protocol: self.metadata.protocol,
        })
    }

    /// What the author named as taking a while.
    pub fn slow(&self) -> Option<String> {
        self.program.slow.clone()
    }

    /// How many questions of kv have come.
    pub fn questions(&self) -> u64 {
        self.core.borrow().questions
    }

    /// From here on questions of kv wait, until [`answer_new_questions`](Self::answer_new_questions).
    pub fn hold_questions(&self) {
        self.core.borrow_mut().holds = true;
    }

    /// Whether a question waits.
    pub fn holds_a_question(&self) -> bool {
        !self.core.borrow().held.is_empty()
    }

    /// New questions are answered again; those that wait go on waiting.
    pub fn answer_new_questions(&self) {
        self.core.borrow_mut().holds = false;
    }

    /// Answers the questions that wait.
    pub fn answer_held_questions(&self) -> Result<(), Fault> {
        let held = std::mem::take(&mut self.core.borrow_mut().held);
        for (inner, id, question) in held {
            if let Some(inner) = inner.upgrade() {
                inner.borrow_mut().answer_kv(&self.core, &id, question)?;
            }
        }
        Ok(())
    }

    /// The bytes of `init`.
    pub fn init(&self, framing: Framing) -> Vec<u8> {
        let mut out = vec![];
        let socket = self.socket.to_string_lossy();
        let data_dir = self.data_dir.to_string_lossy();
        let init = Init {
            instance_id: "conformance",
            plugin_socket: &socket,
            log_path: "/dev/null",
            plugin_id: &self.metadata.id,
            max_message_bytes: FRAME_BYTES_MAX_DEFAULT,
            data_dir: &data_dir,
            config: None,
        };
        from_core::encode_init(&mut out, framing, self.metadata.protocol, &now(), &init)
            .expect("a short message fits the default limit");
        out
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        self.kill();
    }
}

fn boxed(pipe: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(pipe)
}

/// Reads a pipe to its end and keeps the last of it.
fn drain(mut pipe: Box<dyn Read + Send>, said: Arc<Mutex<VecDeque<u8>>>) {
    thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut chunk) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.extend(&chunk[..count]);
            let surplus = said.len().saturating_sub(SAID_BYTES_KEPT);
            said.drain(..surplus);
        }
    });
}

pub fn now() -> String {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    as_str(&rfc3339_millis(since_1970.as_millis() as u64)).to_owned()
}

/// What a plugin said, as far as the cases look at it.
#[derive(Debug)]
pub enum Heard {
    Answer { request_id: String, status: u16, body: Vec<u8> },
    Ready,
    Failed(String),
    Pong(u64),
}

/// How waiting ended without the message.
pub enum Silence {
    /// Nothing came in time.
    Late,
    /// The plugin closed the connection.
    Closed,
    /// What came breaks the protocol.
    Broken(Fault),
}

/// What the connections share: the values of the plugin, and what it asks about them.
#[derive(Default)]
struct Core {
    connections: Vec<Weak<RefCell<Inner>>>,
    values: BTreeMap<String, String>,
    questions: u64,
    holds: bool,
    held: Vec<(Weak<RefCell<Inner>>, String, Question)>,
}

/// One connection. While anything is waited for, questions of kv on all of them are answered from memory, as the core
/// would: a plugin may ask on another connection than the one that its request came on.
pub struct Link {
    inner: Rc<RefCell<Inner>>,
    core: Rc<RefCell<Core>>,
    pub framing: Framing,
    target: String,
    protocol: Protocol,
}

struct Inner {
    stream: UnixStream,
    framing: Framing,
    decoder: Decoder,
    reader: PluginMessageReader,
    heard: VecDeque<Heard>,
    /// How it ended, seen before anybody waited for it.
    end: Option<Silence>,
}

/// A request of a case.
#[derive(Clone, Default)]
pub struct Ask<'a> {
    pub id: &'a str,
    pub method: &'a str,
    /// `None` is the target of the command line.
    pub path: Option<&'a str>,
    pub headers: &'a [(&'a str, &'a [u8])],
    pub body: &'a [u8],
}

impl<'a> Ask<'a> {
    pub fn get(id: &'a str) -> Self {
        Self { id, method: "GET", ..Self::default() }
    }
}

impl Link {
    pub fn is_1_0(&self) -> bool {
        self.protocol == Protocol::V1_0
    }

    /// The bytes of a request as the core writes them.
    pub fn request(&self, ask: &Ask<'_>) -> Vec<u8> {
        let mut out = vec![];
        let start = RequestStart {
            request_id: ask.id,
            timestamp: &now(),
            method: ask.method,
            path: ask.path.unwrap_or(&self.target),
            remote_addr: Some("127.0.0.1:9"),
            timeout_ms: Some(30_000),
        };
        let headers = [("host", b"conformance".as_slice()), ("x-request-id", ask.id.as_bytes())];
        let headers = headers.into_iter().chain(ask.headers.iter().copied());
        from_core::encode_http_request(
            &mut out,
            self.framing,
            self.protocol,
            &start,
            headers,
            ask.body,
            FRAME_BYTES_MAX_DEFAULT,
        )
        .expect("the cases stay below the limit");
        out
    }

    /// A message as it stands, framed.
    pub fn frame(&self, json: &str) -> Vec<u8> {
        match self.framing {
            Framing::Lines => format!("{json}\n").into_bytes(),
            Framing::Length => [&(json.len() as u32).to_be_bytes(), json.as_bytes()].concat(),
        }
    }

    pub fn ping(&self, seq: u64) -> Vec<u8> {
        let mut out = vec![];
        from_core::encode_ping(&mut out, self.framing, self.protocol, &now(), seq);
        out
    }

    pub fn shutdown(&self, deadline_ms: u64) -> Vec<u8> {
        let mut out = vec![];
        from_core::encode_shutdown(&mut out, self.framing, self.protocol, &now(), deadline_ms);
        out
    }

    pub fn cancel(&self, id: &str) -> Vec<u8> {
        let mut out = vec![];
        from_core::encode_cancel(&mut out, self.framing, &now(), id);
        out
    }

    pub fn stream(&self) -> Ref<'_, UnixStream> {
        Ref::map(self.inner.borrow(), |inner| &inner.stream)
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.inner.borrow_mut().send(bytes)
    }

    /// The next message that a case looks at; log lines and kv are dealt with on the way.
    pub fn hear(&mut self, patience: Duration) -> Result<Heard, Silence> {
        let began = Instant::now();
        loop {
            {
                let mut inner = self.inner.borrow_mut();
                if let Some(heard) = inner.heard.pop_front() {
                    return Ok(heard);
                }
                if let Some(end) = inner.end.take() {
                    return Err(end);
                }
                inner.read(&self.core, &Rc::downgrade(&self.inner));
                if !inner.heard.is_empty() || inner.end.is_some() {
                    continue;
                }
            }
            let others: Vec<_> = self.core.borrow().connections.iter().filter_map(Weak::upgrade).collect();
            for other in others.iter().filter(|other| !Rc::ptr_eq(other, &self.inner)) {
                other.borrow_mut().glance(&self.core, &Rc::downgrade(other));
            }
            if began.elapsed() > patience {
                return Err(Silence::Late);
            }
        }
    }

    /// [`hear`](Self::hear) with the reason why `what` did not come as the fault.
    pub fn expect(&mut self, what: &str) -> Result<Heard, Fault> {
        self.hear(ANSWER_PATIENCE).map_err(|silence| match silence {
            Silence::Late => format!("{what} did not come within {} s", ANSWER_PATIENCE.as_secs()),
            Silence::Closed => format!("the connection was closed instead of {what}"),
            Silence::Broken(fault) => fault,
        })
    }

    /// The answer to `id`, and nothing else before it.
    pub fn answer(&mut self, id: &str) -> Result<(u16, Vec<u8>), Fault> {
        match self.expect(&format!("an answer to the request `{id}`"))? {
            Heard::Answer { request_id, status, body } if request_id == id => Ok((status, body)),
            Heard::Answer { request_id, .. } => Err(format!(
                "an answer came for `{request_id}`, the request was `{id}`: give the `request_id` back as it came, and answer each request once"
            )),
            other => Err(format!("{other:?} came instead of an answer to `{id}`")),
        }
    }
}

impl Inner {
    fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.stream.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!(
                    "it has not read for {} s: go on reading while requests are handled",
                    ANSWER_PATIENCE.as_secs()
                )
            }
            _ => format!("it closed the connection while it was written to ({error})"),
        })
    }

    /// Reads what comes within [`POLL`].
    fn read(&mut self, core: &RefCell<Core>, own: &Weak<RefCell<Inner>>) {
        let mut chunk = vec![0; 64 * 1024];
        let read = self.stream.read(&mut chunk);
        self.take(read.map(|count| &chunk[..count]), core, own);
    }

    /// Reads what is there.
    fn glance(&mut self, core: &RefCell<Core>, own: &Weak<RefCell<Inner>>) {
        if self.end.is_none() {
            let mut chunk = vec![0; 64 * 1024];
            let read = recv(&self.stream, &mut chunk, RecvFlags::DONTWAIT);
            let read = read.map(|(count, _)| &chunk[..count]).map_err(Into::into);
            self.take(read, core, own);
        }
    }

    fn take(&mut self, read: std::io::Result<&[u8]>, core: &RefCell<Core>, own: &Weak<RefCell<Inner>>) {
        match read {
            Ok([]) if self.decoder.is_mid_frame() => {
                self.end = Some(Silence::Broken("it closed the connection in the middle of a frame".into()));
            }
            Ok([]) => self.end = Some(Silence::Closed),
            Ok(bytes) => {
                self.decoder.feed(bytes);
                if let Err(fault) = self.take_frames(core, own) {
                    self.end = Some(Silence::Broken(fault));
                }
            }
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            // A reset is an end with something unread.
            Err(_) => self.end = Some(Silence::Closed),
        }
    }

    fn take_frames(&mut self, core: &RefCell<Core>, own: &Weak<RefCell<Inner>>) -> Result<(), Fault> {
        let mut questions: Vec<(String, Result<Question, Fault>)> = vec![];
        loop {
            let frame = match self.decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return Err(format!("it broke the framing: {error}; {}", shape(self.framing))),
            };
            let shown = String::from_utf8_lossy(&frame[..frame.len().min(120)]).into_owned();
            let heard = self.reader.read(frame, |message| match message {
                PluginMessage::HttpResponse { request_id, response } => match response {
                    Ok(response) => Ok(Some(Heard::Answer {
                        request_id: request_id.to_owned(),
                        status: response.status,
                        body: response.body.into_owned(),
                    })),
                    Err(bad) => Err(format!("its answer to `{request_id}` is none: {bad}; it began {shown}")),
                },
                PluginMessage::Ready => Ok(Some(Heard::Ready)),
                PluginMessage::Failed { error } => Ok(Some(Heard::Failed(error.to_owned()))),
                PluginMessage::Pong { seq } => Ok(Some(Heard::Pong(seq))),
                PluginMessage::Kv { request_id, request } => {
                    let question = request.as_ref().map(Question::of).map_err(ToString::to_string);
                    questions.push((request_id.to_owned(), question));
                    Ok(None)
                }
                _ => Ok(None),
            });
            match heard {
                Ok(Ok(Some(heard))) => self.heard.push_back(heard),
                Ok(Ok(None)) => {}
                Ok(Err(fault)) => return Err(fault),
                Err(error) => return Err(format!("it said what is no message: {error}; it began {shown}")),
            }
        }
        for (id, question) in questions {
            let question = question.map_err(|reason| format!("its kv request `{id}` is none: {reason}"))?;
            let holds = {
                let mut core = core.borrow_mut();
                core.questions += 1;
                core.holds
            };
            if holds {
                core.borrow_mut().held.push((Weak::clone(own), id, question));
            } else {
                self.answer_kv(core, &id, question)?;
            }
        }
        Ok(())
    }

    fn answer_kv(&mut self, core: &RefCell<Core>, id: &str, question: Question) -> Result<(), Fault> {
        let mut out = vec![];
        let values = &mut core.borrow_mut().values;
        let (mut value, mut keys) = (None, None);
        match question {
            Question::Get(key) => value = values.get(&key).cloned(),
            Question::Set(key, new) => drop(values.insert(key, new)),
            Question::Delete(key) => drop(values.remove(&key)),
            Question::List(prefix) => {
                let found = values.keys().filter(|key| key.starts_with(&prefix)).cloned();
                keys = Some(found.collect::<Vec<String>>());
            }
        }
        let reply = match &keys {
            Some(keys) => KvReply::Keys(keys),
            None => KvReply::Value(value.as_deref()),
        };
        let told =
            from_core::encode_kv_reply(&mut out, self.framing, &now(), id, &reply, FRAME_BYTES_MAX_DEFAULT);
        told.expect("what came in a frame fits into one");
        self.send(&out)
    }
}

/// A kv request, kept past its frame.
enum Question {
    Get(String),
    Set(String, String),
    Delete(String),
    List(String),
}

impl Question {
    fn of(request: &KvRequest<'_>) -> Self {
        match request {
            KvRequest::Get { key } => Self::Get((*key).to_owned()),
            KvRequest::Set { key, value } => Self::Set((*key).to_owned(), (*value).to_owned()),
            KvRequest::Delete { key } => Self::Delete((*key).to_owned()),
            KvRequest::List { prefix, .. } => Self::List((*prefix).to_owned()),
            // A later action is read here once it is in the protocol.
            _ => Self::List(String::new()),
        }
    }
}

fn shape(framing: Framing) -> &'static str {
    match framing {
        Framing::Length => "a frame is four bytes of length, big-endian, then that many bytes of JSON",
        Framing::Lines => "a frame is one JSON object and a line feed, without a line break inside",
    }
}

/// What `--metadata` says. Errors: for the author.
pub fn metadata(program: &Program) -> Result<Metadata, Fault> {
    let mut command = program.command();
    command.arg("--metadata").env("TORU_PLUGIN_SOCKET", program.socket());
    // A core may be running in this process.
    let mut helper = Helper::spawn(&mut command).map_err(|error| {
        format!("it cannot be run: {error}; it must be executable, and a script needs a `#!` line")
    })?;
    let pipes = (helper.child.stdout.take().map(boxed), helper.child.stderr.take().map(boxed));
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        let (tell, told) = channel();
        thread::spawn(move || {
            let mut chunk = [0; 4096];
            let Some(pipe) = pipe else { return };
            let mut pipe = pipe.take(METADATA_BYTES_MAX as u64 + 1);
            while let Ok(count @ 1..) = pipe.read(&mut chunk)
                && tell.send(chunk[..count].to_vec()).is_ok()
            {}
        });
        told
    };
    let (stdout, stderr) = (read(pipes.0), read(pipes.1));
    let began = Instant::now();
    let status = loop {
        if let Ok(Some(status)) = helper.try_wait() {
            break status;
        }
        if began.elapsed() > crate::METADATA_TIMEOUT {
            return Err(format!(
                "`--metadata` did not end within {} s: print the object and exit 0 before anything else is done",
                crate::METADATA_TIMEOUT.as_secs()
            ));
        }
        thread::sleep(POLL);
    };
    // A process that it has left behind may keep them open; what it wrote itself is there.
    let until = Instant::now() + OUTPUT_PATIENCE;
    let all = |told: Receiver<Vec<u8>>| {
        let left = || until.saturating_duration_since(Instant::now());
        std::iter::from_fn(|| told.recv_timeout(left()).ok()).flatten().collect::<Vec<u8>>()
    };
    let (said, complained) = (all(stdout), all(stderr));
    let complained = match String::from_utf8_lossy(&complained).trim() {
        "" => String::new(),
        words => format!("; it wrote: {words}"),
    };
    if said.len() > METADATA_BYTES_MAX {
        return Err(format!("`--metadata` printed more than {} bytes", METADATA_BYTES_MAX));
    }
    if !status.success() {
        return Err(format!("`--metadata` ended with {status}, it must exit 0{complained}"));
    }
    if std::fs::symlink_metadata(program.socket()).is_ok() {
        return Err("`--metadata` made the socket: print and exit before it is bound".into());
    }
    Metadata::parse(&said).map_err(|error| {
        format!(
            "`--metadata` printed what is none: {error}; PROTOCOL.md, \"Metadata\" has the rules{complained}"
        )
    })
}
