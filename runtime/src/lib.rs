//! The daemon: everything is started here in one visible order, and stopped in the reverse one.
//!
//! Threads: one per worker, one more worker for the control socket, the supervisor, two of the store (SQLite), the log
//! writer, one that waits for signals, two that read files once there is one to read, two
//! that read logs and exports likewise, and the first, which starts and stops the others.

mod answer;
mod api;
mod arrivals;
pub mod authoring;
pub mod cli;
mod client;
mod clock;
pub mod config;
pub mod demo;
mod driver;
mod exchange;
mod files;
mod forward;
mod gate;
mod histogram;
mod history;
pub mod kv;
mod legacy;
mod link;
mod log;
mod logs;
mod memory;
mod metrics;
mod misfits;
mod outlet;
mod place;
mod reload;
mod room;
pub mod route;
mod said;
mod service;
mod site;
mod spare;
mod status;
mod summary;
mod timers;
mod turns;
mod work;
mod worker;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use futures_channel::mpsc::unbounded;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde_json::{Map, json};
use toru_supervisor::{Adjustable, Command, Level, Settings, Supervisor};

use config::{Config, DriverChoice, Overrides, Pin};
use driver::Driver;
use reload::Reload;
use room::Descriptors;
use service::Service;
use worker::{Door, Mailbox, Message, Shared, WorkerStats};

/// Connections that may wait in the kernel for a worker to accept them.
/// The kernel holds it to `net.core.somaxconn`. A client beyond it tries again after a second, so a crowd has to fit.
const LISTEN_BACKLOG: i32 = 4096;
/// A client whose machine or network is gone says no word: after so much silence the kernel asks, so often and so many
/// times, and then ends the connection. Only followers of a quiet stream come that far: all others have deadlines.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// How long a metadata call may take.
pub const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the command of `notify.command` may take.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long killed processes may take to be gone at a stop that was asked for twice.
const KILL_PATIENCE: Duration = Duration::from_secs(2);
/// How long those who ask over the control socket may take to hear the end.
const CONTROL_PATIENCE: Duration = Duration::from_secs(1);
/// From this many cores on, worker threads are bound to cores by default.
const PIN_CORES_MIN: usize = 4;

/// The daemon could not start or go on; the message says what and where.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Store(#[from] kv::OpenError),
    #[error("cannot listen on {address}: {error}; `--listen` or `server.listen` gives another address")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("{0}")]
    Start(String),
}

/// What the first thread hears of the others.
enum News {
    Signal(Signal),
    WorkerEnded(Result<(), String>),
    SupervisorEnded,
    /// Every plugin of the start has said what it is, or was skipped.
    Scanned,
}

/// Runs the daemon until a signal stops it.
///
/// At SIGHUP the settings are read anew from where `overrides` says; without them they stay as they are.
/// `on_listening` is called once connections are taken, with the address in use.
/// Errors: something it needs cannot be had; nothing is left running.
pub fn run(
    config: Config,
    overrides: Option<Overrides>,
    on_listening: impl FnOnce(SocketAddr, toru_supervisor::Handle),
) -> Result<(), RunError> {
    let start = |what: &str, error: io::Error| RunError::Start(format!("cannot start {what}: {error}"));
    toru_supervisor::prepare().map_err(|error| start("the supervisor", error))?;
    // Before the first thread, so that all inherit it and only the signal thread hears them.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|error| RunError::Start(format!("cannot block signals: {error}")))?;

    let (sockets_dir, _sockets_lock) =
        toru_supervisor::claim_sockets_dir(&config.sockets_dir).map_err(RunError::Start)?;
    let control = open_control_socket(&config.control_socket)?;
    let control_socket = RemoveOnDrop(config.control_socket.clone());
    // Held before anything in it is touched, and until the database is closed.
    let _data_lock = claim_data_dir(&config.data_dir)?;
    let (logger, log_writer) =
        log::start(&config.log_dir, &config.log).map_err(|error| start("the log", error))?;
    let notice = {
        let logger = logger.clone();
        Box::new(move |level, message: &str| logger.core(level, "store", message, None, &Map::new()))
    };
    if let Some(mode) = sockets_dir.mode_before {
        let fields =
            json!({ "folder": config.sockets_dir.display().to_string(), "mode": format!("{mode:04o}") });
        let fields = fields.as_object().unwrap_or(&Map::new()).clone();
        logger.core(Level::Warn, "toru", "Socket folder was open to others, now closed", None, &fields);
    }
    let (store, store_owner, known) = kv::start(&config.data_dir, config.store, notice)?;
    let token = read_or_make_token(&config.token_file)?;
    let (driver, warning) = driver::choose(config.driver).map_err(RunError::Start)?;
    if let Some(warning) = warning {
        logger.core(Level::Warn, "toru", &warning, None, &Map::new());
    }
    let (listeners, address) = listen(config.listen, config.workers)
        .map_err(|error| RunError::Listen { address: config.listen, error })?;

    // One more than workers: the control thread is a worker whose clients come through the control socket.
    let (mailboxes, inboxes): (Vec<Mailbox>, Vec<_>) = (0..=config.workers).map(|_| unbounded()).unzip();
    let (tell, news) = channel();
    let scanned = Arc::new(AtomicBool::new(false));
    let on_scanned = {
        let (scanned, tell) = (scanned.clone(), tell.clone());
        Box::new(move || {
            scanned.store(true, Relaxed);
            let _ = tell.send(News::Scanned);
        })
    };
    let descriptors = Arc::new(Descriptors::of_this_process(
        config.workers,
        config.legacy_connections,
        &config.plugins_dir,
    ));
    let outlet = outlet::Outlet {
        workers: mailboxes.clone(),
        on_scanned,
        logger: logger.clone(),
        store: store.clone(),
        legacy_connections: config.legacy_connections,
        plugins: Default::default(),
        descriptors: descriptors.clone(),
        reserved: Default::default(),
        short_of: Default::default(),
        output: Default::default(),
    };
    let supervisor = Supervisor::new(supervisor_settings(&config, known), Box::new(outlet))
        .map_err(|error| start("the supervisor", error))?;
    let handle = supervisor.handle();

    let shared = Arc::new(Shared {
        logger: logger.clone(),
        store,
        supervisor: handle.clone(),
        files: files::Files::new(
            config.web_root.clone(),
            config.web_fallback.clone(),
            config.plugins_dir.clone(),
        ),
        records: files::Readers::new("toru-records"),
        token,
        connections: AtomicUsize::new(0),
        descriptors,
        workers: mailboxes.iter().map(|_| WorkerStats::default()).collect(),
        control: mailboxes[config.workers].clone(),
        resting: Default::default(),
        started: Instant::now(),
        boot: random_hex::<4>()?,
    });
    if let Some(trouble) = shared.files.trouble() {
        logger.core(Level::Warn, "toru", &trouble, None, &Map::new());
    }
    let config = Arc::new(config);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = match config.pin {
        Pin::Always => true,
        Pin::Never => false,
        Pin::Auto => cores >= PIN_CORES_MIN,
    };
    let doors = listeners.into_iter().map(Door::Public).chain([Door::Control(control)]);
    for (number, (door, (mailbox, inbox))) in doors.zip(mailboxes.iter().zip(inboxes)).enumerate() {
        let public = matches!(door, Door::Public(_));
        // Few, rare clients: the ring's memory would be for nothing.
        let driver = if public { driver } else { Driver::Epoll };
        let (shared, config) = (shared.clone(), config.clone());
        let (mailbox, tell) = (mailbox.clone(), tell.clone());
        std::thread::Builder::new()
            .name(if public { format!("toru-worker-{number}") } else { "toru-control".into() })
            .spawn(move || {
                if pinned && public {
                    pin_to(number % cores);
                }
                let may_fall_back = config.driver == DriverChoice::Auto;
                let life = |in_use| {
                    if in_use != driver {
                        let why = format!("worker {number} got no ring of its own; using epoll");
                        shared.logger.core(Level::Warn, "toru", &why, None, &Map::new());
                    }
                    worker::run(number as u8, in_use, shared, &config, door, mailbox, inbox)
                };
                let run = || driver::block_on(driver, may_fall_back, life);
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                let outcome = match ended {
                    Ok(Ok(Ok(()))) => Ok(()),
                    Ok(Ok(Err(error)) | Err(error)) => Err(error.to_string()),
                    Err(_) => Err("it panicked".into()),
                };
                let _ = tell.send(News::WorkerEnded(outcome));
            })
            .map_err(|error| start("a worker", error))?;
    }
    spawn_named("toru-supervisor", tell.clone(), move || {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| supervisor.run()));
        if ended.is_err() {
            // Plugins get the parent-death signal; the service manager starts anew.
            fatal("the supervisor panicked");
        }
        News::SupervisorEnded
    })
    .map_err(|error| start("the supervisor", error))?;
    let signal_teller = tell.clone();
    std::thread::Builder::new()
        .name("toru-signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                if signal_teller.send(News::Signal(signal)).is_err() {
                    return;
                }
            }
        })
        .map_err(|error| start("the signal thread", error))?;
    drop(tell);

    let facts = json!({
        "address": address.to_string(), "workers": config.workers, "driver": driver.name(),
        "pinned": pinned, "version": env!("CARGO_PKG_VERSION"), "pid": std::process::id(),
    });
    logger.core(Level::Info, "toru", "Listening", None, facts.as_object().unwrap_or(&Map::new()));
    let service = Service::from_env(scanned);
    service.ready(&handle);
    on_listening(address, handle.clone());

    let core = Core { shared: &shared, mailboxes: &mailboxes, supervisor: &handle, service: &service };
    core.wait_and_stop(&news, (*config).clone(), overrides.as_ref());
    let events_dropped = store_owner.finish();
    if events_dropped > 0 {
        let fields = json!({ "dropped": events_dropped });
        logger.core(Level::Warn, "store", "Events dropped", None, fields.as_object().unwrap_or(&Map::new()));
    }
    logger.core(Level::Info, "toru", "Stopped", None, &Map::new());
    log_writer.finish();
    drop(control_socket);
    Ok(())
}

/// Removes the control socket when the daemon ends, also when it could not start.
struct RemoveOnDrop(std::path::PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What the first thread steers once all others run.
struct Core<'a> {
    shared: &'a Shared,
    mailboxes: &'a [Mailbox],
    supervisor: &'a toru_supervisor::Handle,
    service: &'a Service,
}

impl Core<'_> {
    /// Sleeps until a signal asks for an end, then stops clients, and plugins after them.
    fn wait_and_stop(&self, news: &Receiver<News>, mut config: Config, overrides: Option<&Overrides>) {
        let next_beat = || self.service.interval().map(|interval| Instant::now() + interval);
        let mut beat_at = next_beat();
        loop {
            // However many signals come, the service manager does not wait longer for them.
            if beat_at.is_some_and(|at| at <= Instant::now()) {
                self.service.beat(self.supervisor);
                beat_at = next_beat();
            }
            let event = match beat_at {
                Some(at) => news.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Err(RecvTimeoutError::Timeout) => {}
                // What was said before was only half of it.
                Ok(News::Scanned) => self.service.beat(self.supervisor),
                Ok(News::Signal(Signal::SIGHUP)) => self.reload(&mut config, overrides),
                Ok(News::Signal(signal)) => {
                    self.log(Level::Info, "Stopping", json!({ "signal": signal.as_str() }));
                    break;
                }
                // Half a daemon serves nobody: end loudly, and let the service manager start a whole one.
                Ok(News::WorkerEnded(outcome)) => {
                    fatal(&format!(
                        "a worker ended: {}",
                        outcome.err().unwrap_or_else(|| "for no reason".into())
                    ));
                }
                Ok(News::SupervisorEnded) | Err(RecvTimeoutError::Disconnected) => {
                    fatal("the supervisor ended")
                }
            }
        }
        self.service.stopping();
        // Clients first, while their plugins still answer.
        let (control, public) =
            self.mailboxes.split_last().unwrap_or_else(|| unreachable!("there is always one"));
        for mailbox in public {
            let _ = mailbox.unbounded_send(Message::Drain);
        }
        let patience = Instant::now() + config.supervisor.policy.stop_grace;
        let mut serving = public.len();
        let mut at_once = false;
        while serving > 0 && !at_once {
            match news.recv_timeout(patience.saturating_duration_since(Instant::now())) {
                Ok(News::WorkerEnded(_)) => serving -= 1,
                Ok(News::Signal(Signal::SIGHUP) | News::Scanned) => {}
                Ok(News::Signal(_)) => at_once = true,
                Ok(News::SupervisorEnded) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        self.supervisor.send(if at_once { Command::StopNow } else { Command::Stop });
        let mut deadline: Option<Instant> = at_once.then(|| Instant::now() + KILL_PATIENCE);
        loop {
            let event = match deadline {
                Some(deadline) => news.recv_timeout(deadline.saturating_duration_since(Instant::now())),
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(News::SupervisorEnded) | Err(_) => break,
                Ok(News::WorkerEnded(_) | News::Signal(Signal::SIGHUP) | News::Scanned) => {}
                Ok(News::Signal(_)) => {
                    self.supervisor.send(Command::StopNow);
                    deadline = Some(Instant::now() + KILL_PATIENCE);
                }
            }
        }
        // Last, so that whoever asks how far the stop is gets an answer.
        let _ = control.unbounded_send(Message::Drain);
        let until = Instant::now() + CONTROL_PATIENCE;
        while let Ok(News::Signal(_) | News::Scanned) =
            news.recv_timeout(until.saturating_duration_since(Instant::now()))
        {}
    }

    /// Opens the logs anew, reads the settings anew, and has the plugins folder looked at.
    ///
    /// A file that cannot be used changes nothing and is told of; the rest is done nevertheless.
    fn reload(&self, config: &mut Config, overrides: Option<&Overrides>) {
        self.service.reloading();
        self.shared.logger.reopen();
        self.log(Level::Info, "Log files reopened", json!({}));
        match overrides.map(Config::load) {
            None => {}
            Some(Err(error)) => {
                self.log(
                    Level::Error,
                    "Configuration not reloaded; the old one stays in force",
                    json!({ "reason": error.to_string() }),
                );
            }
            Some(Ok(new)) => {
                let Reload { config: new, changed, at_next_start } = Reload::new(config, new);
                for key in at_next_start {
                    let message = format!("{key} has changed, which takes effect at the next start");
                    self.log(Level::Warn, &message, json!({ "key": key }));
                }
                self.shared.logger.configure(&new.log);
                let new = Arc::new(new);
                for mailbox in self.mailboxes {
                    let _ = mailbox.unbounded_send(Message::Configure(new.clone()));
                }
                self.supervisor.send(Command::Configure(Box::new(adjustable(&new))));
                self.log(Level::Info, "Configuration reloaded", json!({ "changed": changed }));
                config.clone_from(&new);
            }
        }
        let reloaded = self.service.reloaded();
        // The supervisor logs what it found.
        self.supervisor.send(Command::Rescan { done: Box::new(move |_| reloaded()) });
    }

    fn log(&self, level: Level, message: &str, fields: serde_json::Value) {
        self.shared.logger.core(level, "toru", message, None, fields.as_object().unwrap_or(&Map::new()));
    }
}

fn fatal(why: &str) -> ! {
    let _ = writeln!(io::stderr(), "toru: {why}; ending so that the service manager starts it anew");
    std::process::exit(1)
}

fn spawn_named(
    name: &str,
    tell: Sender<News>,
    work: impl FnOnce() -> News + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let _ = tell.send(work());
    };
    std::thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

fn supervisor_settings(config: &Config, known: kv::Known) -> Settings {
    Settings {
        plugins_dir: config.plugins_dir.clone(),
        sockets_dir: absolute(&config.sockets_dir),
        plugin_logs_dir: absolute(&config.log_dir).join("plugins"),
        data_dir: absolute(&config.data_dir),
        instance_id: known.instance_id,
        metadata_timeout: METADATA_TIMEOUT,
        notify_timeout: NOTIFY_TIMEOUT,
        frame_bytes_max: config.message_bytes_max,
        workers: config.workers,
        adjustable: adjustable(config),
        kept: known.plugins,
        unended: known.unended,
    }
}

fn adjustable(config: &Config) -> Adjustable {
    Adjustable {
        policy: config.supervisor.policy.clone(),
        health_interval: config.supervisor.health_interval,
        unanswered_pings: config.supervisor.unanswered_pings,
        plugin_config: config.plugins.clone(),
        process: config.processes.clone(),
        notify_command: config.notify_command.clone(),
    }
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Makes the folder for the database and the token, and keeps other daemons out of it.
fn claim_data_dir(path: &Path) -> Result<File, RunError> {
    fs::create_dir_all(path).map_err(|error| {
        RunError::Start(format!("cannot make the data folder {}: {error}", path.display()))
    })?;
    toru_supervisor::lock_folder(path).map_err(RunError::Start)
}

/// The management token: made at the first start, kept from then on.
fn read_or_make_token(path: &Path) -> Result<String, RunError> {
    if let Some(token) = read_token(path)? {
        return Ok(token);
    }
    let token = random_hex::<32>()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| token_error("make", path, error))?;
    writeln!(file, "{token}").map_err(|error| token_error("write", path, error))?;
    Ok(token)
}

/// `None` where there is no such file yet.
fn read_token(path: &Path) -> Result<Option<String>, RunError> {
    match fs::read_to_string(path) {
        Ok(token) if token.trim().len() >= 16 => Ok(Some(token.trim().to_owned())),
        Ok(_) => Err(RunError::Start(format!(
            "the token file {} has less than 16 characters; remove it, and the next start makes a new one",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(token_error("read", path, error)),
    }
}

fn token_error(what: &str, path: &Path, error: io::Error) -> RunError {
    RunError::Start(format!("cannot {what} the token file {}: {error}", path.display()))
}

/// Whether a start could read the token file, or make it; writes nothing.
///
/// Errors: as the start would have them.
pub fn check_token_file(config: &Config) -> Result<(), RunError> {
    let path = &config.token_file;
    // What a pipe says can be read once, and that is for the start.
    let special = |found: fs::Metadata| !found.is_file() && !found.is_dir();
    if fs::metadata(path).is_ok_and(special) || read_token(path)?.is_some() {
        return Ok(());
    }
    let cannot = |error: io::Error| token_error("make", path, error);
    if fs::symlink_metadata(path).is_ok() {
        // A link to nowhere.
        return Err(cannot(io::ErrorKind::AlreadyExists.into()));
    }
    let folder = absolute(path).parent().unwrap_or(Path::new("/")).to_owned();
    // The start makes the data folder, and no other.
    if !folder.exists() && absolute(&config.data_dir).starts_with(&folder) {
        return Ok(());
    }
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(&folder, access).map_err(|error| cannot(error.into()))
}

fn random_hex<const N: usize>() -> Result<String, RunError> {
    let mut bytes = [0; N];
    io::Read::read_exact(&mut File::open("/dev/urandom").map_err(no_random)?, &mut bytes)
        .map_err(no_random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn no_random(error: io::Error) -> RunError {
    RunError::Start(format!("cannot read /dev/urandom: {error}"))
}

/// One listening socket for each worker; the kernel spreads connections over them.
fn listen(address: SocketAddr, workers: usize) -> io::Result<(Vec<TcpListener>, SocketAddr)> {
    // Without SO_REUSEPORT first: a second daemon of the same user would else share the port unnoticed.
    drop(TcpListener::bind(address)?);
    let mut address = address;
    let mut listeners = Vec::with_capacity(workers);
    for _ in 0..workers {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        rustix::net::bind(&socket, &address)?;
        // Connections inherit this from their listener.
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, KEEPALIVE_IDLE)?;
        sockopt::set_tcp_keepintvl(&socket, KEEPALIVE_INTERVAL)?;
        sockopt::set_tcp_keepcnt(&socket, KEEPALIVE_PROBES)?;
        rustix::net::listen(&socket, LISTEN_BACKLOG)?;
        let listener = TcpListener::from(socket);
        // With port 0 the kernel picks one for the first; the others join it.
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((listeners, address))
}

/// Binds the control socket, 0600 from its first moment.
///
/// Errors: another daemon answers there, or something else has the name.
fn open_control_socket(path: &Path) -> Result<UnixListener, RunError> {
    let shown = path.display();
    let fail = |error: io::Error| RunError::Start(format!("cannot make the control socket {shown}: {error}"));
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(fail)?;
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(RunError::Start(format!(
                "{shown} is no socket; remove it or name another control socket"
            )));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(RunError::Start(format!(
                "another toru answers at the control socket {shown}; stop it or name another"
            )));
        }
        Ok(_) => fs::remove_file(path).map_err(fail)?,
    }
    // The mask is the process's, so this comes before the first thread.
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(fail)
}

fn pin_to(core: usize) {
    let mut set = CpuSet::new();
    if set.set(core).is_ok() {
        // A container may not allow this core; running unpinned is no worse than the default.
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}
