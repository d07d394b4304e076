//! A supervisor on a thread, plugins of a few lines of shell, and everything that it says, in order.
//!
//! The plugins here are processes and nothing more: their sockets are the test's. A 1.0 plugin is ready once its socket
//! took a message, so a listener that nobody reads from is enough.
//!
//! No test of this binary makes a process by itself: it would be taken for an orphan of some plugin.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io};

use serde_json::{Map, Value};
use toru_supervisor::state::Policy;
use toru_supervisor::{
    Adjustable, Command, Handle, Kept, KvAnswer, KvQuestion, Level, Order, OrderError, Outlet, PluginStatus,
    PluginView, Settings, Skipped, Stream, Supervisor,
};

/// Longer than anything here takes, even on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What the supervisor said.
#[derive(Debug)]
pub enum Said {
    Event { plugin: String, kind: &'static str, details: Value },
    Log { message: String, fields: Map<String, Value> },
    Line { plugin: String, text: String },
    Kept { plugin: String, kept: Kept },
}

/// Requests that each process is sent, and never answers.
pub const SENT: u64 = 7;

type Listeners = Arc<Mutex<HashMap<String, UnixListener>>>;

pub struct Stage {
    pub dir: tempfile::TempDir,
    pub handle: Handle,
    /// Requests without an answer, of any plugin: [`SENT`] more with each start.
    pub unanswered: Arc<AtomicU64>,
    listeners: Listeners,
    said: Receiver<Said>,
    heard: RefCell<Vec<Said>>,
    thread: Option<JoinHandle<()>>,
}

struct Ear {
    unanswered: Arc<AtomicU64>,
    said: Sender<Said>,
    sockets: PathBuf,
    listeners: Listeners,
}

impl Outlet for Ear {
    fn publish(&self, _: Arc<PluginView>) {}

    fn record(&self, plugin: &str, kind: &'static str, details: Value) {
        let mut listeners = self.listeners.lock().expect("no test panicked here");
        match kind {
            // The plugin's part: the supervisor tries to reach it only after this.
            "started" => {
                let listener = UnixListener::bind(self.sockets.join(format!("{plugin}.sock")));
                listeners.insert(plugin.to_owned(), listener.expect("the socket's place is free"));
                self.unanswered.fetch_add(SENT, Ordering::Relaxed);
            }
            "stopped" | "crashed" => drop(listeners.remove(plugin)),
            _ => {}
        }
        let _ = self.said.send(Said::Event { plugin: plugin.to_owned(), kind, details });
    }

    fn log(&self, _: Level, _: Option<&str>, message: &str, fields: Map<String, Value>) {
        let _ = self.said.send(Said::Log { message: message.to_owned(), fields });
    }

    fn plugin_output(&self, plugin: &str, _: Stream, line: &[u8], _: Option<u64>) {
        let text = String::from_utf8_lossy(line).into_owned();
        let _ = self.said.send(Said::Line { plugin: plugin.to_owned(), text });
    }

    fn plugin_log(&self, _: &str, _: Level, _: &str, _: Option<&str>) {}

    fn account_output(&self, _: &str, _: bool) {}

    fn strays(&self, _: usize, _: u64) {}

    fn kv(&self, _: &str, _: KvQuestion, reply: Box<dyn FnOnce(KvAnswer) + Send>) {
        reply(KvAnswer::Value(None));
    }

    fn keep(&self, plugin: &str, kept: &Kept) {
        let _ = self.said.send(Said::Kept { plugin: plugin.to_owned(), kept: kept.clone() });
    }

    fn scanned(&self) {}

    fn rescanning(&self, _: bool) {}

    fn unanswered(&self, _: usize) -> u64 {
        self.unanswered.load(Ordering::Relaxed)
    }
}

/// A folder with `plugins` of name and shell lines, and settings short enough for a test.
pub fn folder(plugins: &[(&str, &str)]) -> (tempfile::TempDir, Settings) {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let dir = tempfile::tempdir().expect("temporary directory");
    for name in ["plugins", "sockets", "logs", "data"] {
        fs::create_dir(dir.path().join(name)).expect("folder");
    }
    for (name, body) in plugins {
        put(dir.path(), name, "1.0", body);
    }
    let settings = Settings {
        plugins_dir: dir.path().join("plugins"),
        sockets_dir: dir.path().join("sockets"),
        plugin_logs_dir: dir.path().join("logs"),
        data_dir: dir.path().join("data"),
        // Tests share a process: each needs an installation of its own.
        instance_id: format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)),
        metadata_timeout: PATIENCE,
        notify_timeout: PATIENCE,
        frame_bytes_max: 1024 * 1024,
        workers: 1,
        adjustable: Adjustable {
            policy: Policy {
                backoff: vec![Duration::from_millis(10)],
                stop_grace: Duration::from_millis(10),
                term_grace: Duration::from_millis(500),
                ready_timeout: PATIENCE,
                ..Policy::default()
            },
            // A listener that nobody reads from takes 128 connections, one for each health check of a 1.0 plugin.
            health_interval: Duration::from_millis(500),
            unanswered_pings: 1000,
            plugin_config: HashMap::new(),
            process: HashMap::new(),
            notify_command: vec![],
        },
        kept: HashMap::new(),
        unended: HashMap::new(),
    };
    (dir, settings)
}

/// Writes the plugin `name`, whose metadata names `protocol`, and which else runs `body`.
pub fn put(dir: &Path, name: &str, protocol: &str, body: &str) {
    let metadata = format!(
        r#"{{"id":"{name}","name":"{name}","version":"1","icon":"-","route":"/{name}","protocol":"{protocol}"}}"#
    );
    let text = format!("#!/bin/sh\nif [ \"$1\" = --metadata ]; then echo '{metadata}'; exit; fi\n{body}\n");
    put_file(dir, name, &text);
}

/// Writes a plugin as a whole, in one step as a careful operator would.
pub fn put_file(dir: &Path, name: &str, text: &str) {
    let (next, path) = (dir.join(format!("{name}.next")), dir.join("plugins").join(format!("{name}.binary")));
    fs::write(&next, text).expect("write");
    fs::set_permissions(&next, fs::Permissions::from_mode(0o755)).expect("chmod");
    fs::rename(&next, path).expect("rename");
}

/// The next message on a connection to a plugin.
pub fn receive(stream: &mut UnixStream) -> Value {
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("a frame");
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).expect("a whole frame");
    serde_json::from_slice(&frame).expect("JSON")
}

pub fn send(stream: &mut UnixStream, message: &Value) {
    let text = message.to_string();
    stream.write_all(&(text.len() as u32).to_be_bytes()).expect("write");
    stream.write_all(text.as_bytes()).expect("write");
}

impl Stage {
    pub fn of(plugins: &[(&str, &str)]) -> Self {
        let (dir, settings) = folder(plugins);
        Self::start(dir, settings)
    }

    pub fn start(dir: tempfile::TempDir, settings: Settings) -> Self {
        let (tell, said) = channel();
        let listeners = Listeners::default();
        let unanswered = Arc::<AtomicU64>::default();
        let sockets = settings.sockets_dir.clone();
        let ear = Ear { unanswered: unanswered.clone(), said: tell, sockets, listeners: listeners.clone() };
        let supervisor = Supervisor::new(settings, Box::new(ear)).expect("descriptors");
        let handle = supervisor.handle();
        let thread = std::thread::spawn(move || supervisor.run());
        Self { dir, handle, unanswered, listeners, said, heard: RefCell::default(), thread: Some(thread) }
    }

    /// The first thing said that `wanted` takes, and that no earlier call took; waits for it.
    #[track_caller]
    pub fn find<T>(&self, what: &str, mut wanted: impl FnMut(&Said) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.heard.borrow_mut();
        let mut position = 0;
        loop {
            while let Some(said) = heard.get(position) {
                if let Some(found) = wanted(said) {
                    heard.remove(position);
                    return found;
                }
                position += 1;
            }
            match self.said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(said) => heard.push(said),
                Err(error) => panic!("waited for {what} ({error}), and heard {heard:#?}"),
            }
        }
    }

    #[track_caller]
    pub fn event(&self, plugin: &str, kind: &str) -> Value {
        self.find(&format!("{kind} of {plugin}"), |said| match said {
            Said::Event { plugin: of, kind: found, details } if of == plugin && *found == kind => {
                Some(details.clone())
            }
            _ => None,
        })
    }

    /// The rest of a plugin's output line that begins with `word`.
    #[track_caller]
    pub fn line(&self, plugin: &str, word: &str) -> String {
        self.find(&format!("{word} from {plugin}"), |said| match said {
            Said::Line { plugin: of, text } if of == plugin => {
                text.strip_prefix(word).map(|rest| rest.trim().to_owned())
            }
            _ => None,
        })
    }

    /// A process that a plugin told of in a line `word PID`.
    #[track_caller]
    pub fn process(&self, plugin: &str, word: &str) -> Watched {
        let pid = self.line(plugin, word);
        Watched::new(pid.parse().unwrap_or_else(|_| panic!("{word} is followed by {pid:?}")))
    }

    /// The plugin's part of the next connection of the supervisor to it.
    pub fn accept(&self, id: &str) -> UnixStream {
        self.event(id, "started");
        self.accept_again(id)
    }

    /// As [`Stage::accept`], for a process that was connected to before.
    pub fn accept_again(&self, id: &str) -> UnixStream {
        let listener = {
            let listeners = self.listeners.lock().expect("no test panicked here");
            listeners.get(id).expect("it was started").try_clone().expect("descriptors")
        };
        let (stream, _) = listener.accept().expect("the supervisor connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Takes every connection that waits, and closes it; how many there were.
    pub fn waiting_connections(&self, id: &str) -> usize {
        let listeners = self.listeners.lock().expect("no test panicked here");
        let listener = listeners.get(id).expect("it was started");
        listener.set_nonblocking(true).expect("a socket can be told not to wait");
        let count = std::iter::from_fn(|| listener.accept().ok()).count();
        listener.set_nonblocking(false).expect("a socket can be told to wait");
        count
    }

    /// Closes the plugin's listener; its process runs on.
    pub fn stop_listening(&self, id: &str) {
        self.listeners.lock().expect("no test panicked here").remove(id);
    }

    pub fn order(&self, id: &str, order: Order) -> Result<(), OrderError> {
        let (tell, told) = channel();
        let done = Box::new(move |outcome| tell.send(outcome).expect("the test waits"));
        self.handle.send(Command::Order { id: id.to_owned(), order, done });
        told.recv_timeout(PATIENCE).expect("an order is answered")
    }

    pub fn status(&self, id: &str) -> PluginStatus {
        let (tell, told) = channel();
        let take = Box::new(move |plugins| tell.send(plugins).expect("the test waits"));
        self.handle.send(Command::Snapshot(take));
        let plugins: Vec<PluginStatus> = told.recv_timeout(PATIENCE).expect("a snapshot");
        plugins.into_iter().find(|plugin| plugin.metadata.id == id).expect("known")
    }

    /// The names of the files that are skipped, each with the reason.
    pub fn skipped(&self) -> Vec<(String, String)> {
        let (tell, told) = channel();
        let take = Box::new(move |skipped| tell.send(skipped).expect("the test waits"));
        self.handle.send(Command::Skipped(take));
        let skipped: Vec<Skipped> = told.recv_timeout(PATIENCE).expect("a list");
        let name = |file: &Path| file.file_name().expect("a name").to_string_lossy().into_owned();
        skipped.into_iter().map(|one| (name(&one.file), one.reason)).collect()
    }

    /// Stops everything, and gives the folder back once the supervisor has returned.
    pub fn stop(mut self) -> tempfile::TempDir {
        self.end();
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("temporary directory"))
    }

    /// Everything that was said and not looked at, to explain a failure.
    pub fn unheard(&self) -> Vec<Said> {
        self.heard.take().into_iter().chain(self.said.try_iter()).collect()
    }

    /// Stops everything, and gives what was said in the course of it and not looked at before.
    pub fn hear_the_end(&mut self) -> Vec<Said> {
        self.end();
        self.unheard()
    }

    fn end(&mut self) {
        self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the supervisor panicked");
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end();
    }
}

/// A process that was alive when it was first looked at.
pub struct Watched {
    pub pid: i32,
    pidfd: std::os::fd::OwnedFd,
}

impl Watched {
    #[track_caller]
    pub fn new(pid: i32) -> Self {
        let named = rustix::process::Pid::from_raw(pid).expect("a pid is positive");
        let pidfd = rustix::process::pidfd_open(named, rustix::process::PidfdFlags::empty());
        Self { pid, pidfd: pidfd.unwrap_or_else(|error| panic!("process {pid}: {error}")) }
    }

    /// Whether it ends within `patience`; a zombie has ended.
    pub fn ends_within(&self, patience: Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let patience =
            Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) };
        poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&patience)).expect("poll") == 1
    }

    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Whether its pid is still taken by a zombie.
    pub fn is_zombie(&self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            Ok(line) => line.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            // Reaped before the file was opened, or while it was read.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => false,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::NotFound);
                false
            }
        }
    }
}
