//! One worker: one thread, one event loop, its own listener, its own copy of the routes, its own connections to plugins.
//!
//! Workers share nothing on a request's path but each plugin's [`Gate`]. News comes as messages; nobody reaches in.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender};
use monoio::io::{AsyncWriteRent, CancelHandle, Canceller};
use monoio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use rustix::ioctl::{Getter, ioctl};
use rustix::net::sockopt::{set_socket_linger, socket_error};
use serde_json::json;
use slab::Slab;
use toru_plugin_api::from_plugin::PluginMessageReader;
use toru_supervisor::{Command, KvAnswer, Level, PluginView, Underway};

use crate::answer::Failure;
use crate::arrivals::{Arrival, Arrivals, News};
use crate::client;
use crate::clock::Clock;
use crate::config::{Config, HttpConfig};
use crate::driver::{Driver, Pace, send_now, waiting};
use crate::exchange::Exchanges;
use crate::files::{Files, KeptFiles, Readers};
use crate::forward::{Origin, Sources};
use crate::gate::Gate;
use crate::histogram::Histogram;
use crate::history::{self, History, Resting};
use crate::kv::Store;
use crate::link::Link;
use crate::log::{Logger, PluginLog};
use crate::misfits::Misfits;
use crate::place::Losses;
use crate::room::Descriptors;
use crate::spare::Spare;
use crate::summary;
use crate::timers;
use crate::turns::{Line, Turns};

/// What a frame of a request without content takes, mostly.
const FRAME_BYTES: usize = 1024;
const FRAME_BYTES_KEPT: usize = 16 * 1024;
/// Pause in accepting when the system is out of descriptors; a shorter one would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a client for whom there is no room has for reading that, unless its descriptor is needed for the next before: a
/// close with unread bytes resets the connection, and the client may lose its answer (RFC 9112 section 9.6).
const REFUSED_LINGER: Duration = Duration::from_secs(2);
/// Between lines about clients for whom there is no room.
const CROWD_TOLD_EVERY: Duration = Duration::from_secs(10);
/// The sweep looks at deadlines this many times within the shortest of them.
const SWEEPS_PER_TIMEOUT: u32 = 16;
const SWEEP_MIN: Duration = Duration::from_millis(5);
const SWEEP_MAX: Duration = Duration::from_millis(250);

/// What all threads of the daemon share; nothing in here is locked on a request's path.
pub struct Shared {
    pub logger: Logger,
    pub store: Store,
    pub files: Files,
    /// Who reads logs and exports: a disk that is slow with those holds up no file of a page.
    pub records: Readers,
    pub supervisor: toru_supervisor::Handle,
    /// The management token.
    pub token: String,
    /// Of all clients of the public address.
    pub connections: AtomicUsize,
    /// Clients beyond what it has room for are told so.
    pub descriptors: Arc<Descriptors>,
    /// By worker; the last is the control thread's.
    pub workers: Box<[WorkerStats]>,
    /// To the control thread.
    pub control: Mailbox,
    pub resting: Resting,
    pub started: Instant,
    /// Distinguishes request ids of this run from those of the last.
    pub boot: String,
}

/// What a plugin's users on all workers share.
pub struct PluginShared {
    /// Its id, too.
    pub log: PluginLog,
    pub gate: Arc<Gate>,
    /// One for each worker, so that counting touches no other core's cache line.
    pub stats: Box<[Stats]>,
    /// As [`Stats::strays`], over the supervisor's connection.
    pub strays: AtomicU64,
    /// The process that has just lost a connection with requests on it, so that it may be about to end; 0 for none.
    pub suspect: AtomicU64,
}

#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats {
    pub requests: AtomicU64,
    /// Answers with status 500 and above.
    pub errors: AtomicU64,
    /// Requests whose client went before the answer.
    pub abandoned: AtomicU64,
    /// Answers to requests that had been given up, answered before, or never made.
    pub strays: AtomicU64,
    /// Requests that were sent and have no answer yet, and those that a process took along when it ended.
    pub unanswered: AtomicU64,
    /// Requests that are with the plugin.
    pub in_flight: AtomicU64,
    /// Requests that wait for a place with it.
    pub queued: AtomicU64,
    /// Connections to it.
    pub links: AtomicU64,
    pub latency: Histogram,
}

/// What one worker counts of itself; written by it alone.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct WorkerStats {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    /// How much later than asked for the sweep was woken, in microseconds: the worst of the last second or two;
    /// 0 while nothing has a deadline.
    pub lag_us: AtomicU64,
    /// Of this worker, which may have had to fall back.
    pub epoll: AtomicBool,
}

/// What a worker is told.
pub enum Message {
    Plugin {
        view: Arc<PluginView>,
        shared: Arc<PluginShared>,
    },
    KvReply {
        index: usize,
        request_id: String,
        reply: KvAnswer,
        underway: Underway,
    },
    /// To the control thread, while it rests: requests are answered again.
    Traffic,
    /// Go by these settings from now on.
    Configure(Arc<Config>),
    /// Every plugin that there was at the start has said what it is: whoever is unknown now does not exist.
    Scanned,
    /// The plugins folder is being looked at again, or is no more.
    Rescanning(bool),
    /// Take no more connections, finish what is under way, then end.
    Drain,
}

pub type Mailbox = UnboundedSender<Message>;

/// What clients come on.
pub trait ClientStream: AsyncWriteRent + AsRawFd + 'static {
    /// Whether a read that brings less than it could has brought all that there was.
    const READS_ALL: bool;
}

impl ClientStream for TcpStream {
    const READS_ALL: bool = true;
}

impl ClientStream for UnixStream {
    /// What came with descriptors is read by itself.
    const READS_ALL: bool = false;
}

/// Where a worker's clients come from.
pub enum Door {
    /// The worker's own listener on the public address.
    Public(std::net::TcpListener),
    /// The control socket, which only this user and root can open.
    Control(std::os::unix::net::UnixListener),
}

/// Who a client is.
pub struct Peer {
    /// For plugins and their logs: address and port.
    pub address: String,
    /// As forwarded requests name it.
    pub origin: Origin,
    /// Came through the control socket: needs no token, and sees more.
    pub trusted: bool,
}

/// One plugin as this worker knows it.
pub struct Target {
    pub view: RefCell<Arc<PluginView>>,
    pub shared: Arc<PluginShared>,
    /// The connection of this worker to a 1.1 plugin; made when the first request needs it.
    pub link: RefCell<Option<Rc<Link>>>,
    /// The one before, which was not read for so long that new requests go over another.
    pub retired: RefCell<Option<Rc<Link>>>,
    /// Answers that could not be passed on and are not told yet.
    pub misfits: RefCell<Misfits>,
    /// Requests that lost their connection, as long as nobody knows why.
    pub losses: Cell<Losses>,
    /// Its requests that wait for a turn of the loop.
    pub line: Rc<Line>,
}

/// One client connection as the sweep sees it.
pub struct ClientSlot {
    fd: RawFd,
    pub deadline: Cell<Option<Instant>>,
    /// The deadline is for a write; else for a read.
    pub writing: Cell<bool>,
    /// Nothing of a request has come: may be closed at any time.
    pub idle: Cell<bool>,
    /// When the content began to come, and how much has.
    pub body: Cell<Option<(Instant, u64)>>,
    /// How many bytes the client had not taken yet when it was looked at, with the deadline that this counts for.
    untaken: Cell<Option<(Instant, u64)>>,
    /// The sweep cut the connection.
    pub expired: Cell<bool>,
    /// Nothing more is read of it, by this side's will: an end says nothing of the client. What had come before is served.
    pub shut: Cell<bool>,
    /// What has come from it.
    pub arrival: Arrival,
}

/// A client that was told that there is no room for it, until it has had a moment to read that.
struct Refused {
    stream: Box<dyn AsRawFd>,
    since: Instant,
}

impl Refused {
    /// Takes what has come: unread bytes would make the close a reset. Whether the client may send more.
    fn drain(&self) -> bool {
        let mut scratch = [0; 4096];
        // One that sends without an end is not waited for.
        for _ in 0..16 {
            match recv(self.stream.as_raw_fd(), &mut scratch, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return false,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return error == Errno::EAGAIN,
            }
        }
        true
    }
}

pub struct Worker {
    pub number: u8,
    pub driver: Driver,
    pub shared: Arc<Shared>,
    /// A copy of its own: counting references to a shared one would touch other cores for each request.
    config: RefCell<Rc<Config>>,
    /// Serves the control socket.
    is_control: bool,
    http_limits: RefCell<Arc<toru_http::Limits>>,
    /// Wakes a task that waits for the time that a setting gives.
    configured: Cell<Option<Waker>>,
    /// Whether all plugins of the start are known.
    pub scanned: Cell<bool>,
    /// Whether a later look at the plugins folder is under way.
    rescanning: Cell<bool>,
    pub mailbox: Mailbox,
    pub exchanges: RefCell<Exchanges>,
    pub reader: RefCell<PluginMessageReader>,
    /// The last read from a plugin brought many messages: answers to many clients go out in this turn of the loop.
    pub crowded_answers: Cell<bool>,
    pub kept_files: KeptFiles,
    /// For the next request's frame: one is begun and submitted in one go, unless it has content or has to wait.
    frame: Cell<Vec<u8>>,
    targets: RefCell<Targets>,
    pub turns: Rc<Turns>,
    /// Requests that no plugin answers wait for a turn of the loop in a line of their own.
    pub line: Rc<Line>,
    clients: RefCell<Slab<Rc<ClientSlot>>>,
    pub arrivals: Arrivals,
    refused: RefCell<VecDeque<Refused>>,
    pub clock: Clock,
    /// Buffers for words of requests and for answers.
    pub spare: Spare,
    pub sources: RefCell<Sources>,
    pub draining: Cell<bool>,
    /// When a client for whom there was no room was last told of, and how many there were since.
    crowded: Cell<(Option<Instant>, u64)>,
    /// Taken when draining begins.
    accepting: RefCell<Option<Canceller>>,
    /// By plugin: the process whose CPU time was looked at last, when, and what it was.
    pub cpu_seen: RefCell<HashMap<usize, (u32, Instant, Duration)>>,
    /// Kept by the control thread alone.
    pub history: History,
    sweep_period: Cell<Duration>,
    sweeper: Cell<Option<Waker>>,
    /// Wakes the main task when the last client has gone.
    emptied: Cell<Option<Waker>>,
}

#[derive(Default)]
struct Targets {
    by_index: HashMap<usize, Rc<Target>>,
    by_id: HashMap<String, Rc<Target>, foldhash::fast::RandomState>,
    by_route: HashMap<String, Rc<Target>, foldhash::fast::RandomState>,
}

/// Runs a worker until it has drained. The thread's whole life.
pub async fn run(
    number: u8,
    driver: Driver,
    shared: Arc<Shared>,
    config: &Config,
    door: Door,
    mailbox: Mailbox,
    inbox: UnboundedReceiver<Message>,
) -> std::io::Result<()> {
    shared.workers[usize::from(number)].epoll.store(driver == Driver::Epoll, Relaxed);
    let is_control = matches!(door, Door::Control(_));
    let worker = Rc::new(Worker {
        number,
        driver,
        shared,
        config: RefCell::new(Rc::new(config.clone())),
        is_control,
        http_limits: RefCell::new(http_limits(config, is_control)),
        configured: Cell::new(None),
        scanned: Cell::new(false),
        rescanning: Cell::new(false),
        mailbox,
        exchanges: RefCell::new(Exchanges::new(number)),
        reader: RefCell::new(PluginMessageReader::new()),
        crowded_answers: Cell::new(false),
        kept_files: RefCell::default(),
        frame: Cell::default(),
        targets: RefCell::default(),
        turns: Turns::new(driver),
        line: Rc::default(),
        clients: RefCell::default(),
        arrivals: Arrivals::new()?,
        refused: RefCell::default(),
        clock: Clock::default(),
        spare: Spare::default(),
        sources: RefCell::default(),
        draining: Cell::new(false),
        crowded: Cell::default(),
        accepting: RefCell::new(Some(Canceller::new())),
        cpu_seen: RefCell::default(),
        history: History::default(),
        sweep_period: Cell::new(sweep_period(config)),
        sweeper: Cell::new(None),
        emptied: Cell::new(None),
    });
    monoio::spawn(read_mail(worker.clone(), inbox));
    monoio::spawn(sweep(worker.clone()));
    monoio::spawn(tell_of_arrivals(worker.clone()));
    match door {
        // The ring wants blocking listeners (a non-blocking one fails instead of waiting), epoll the opposite.
        Door::Public(listener) => {
            listener.set_nonblocking(driver == Driver::Epoll)?;
            accept_public(&worker, TcpListener::from_std(listener)?).await;
        }
        Door::Control(listener) => {
            listener.set_nonblocking(driver == Driver::Epoll)?;
            monoio::spawn(summary::run(worker.clone()));
            monoio::spawn(history::run(worker.clone()));
            accept_control(&worker, UnixListener::from_std(listener)?).await;
        }
    }
    std::future::poll_fn(|cx| {
        if worker.clients.borrow().is_empty() {
            return Poll::Ready(());
        }
        worker.emptied.set(Some(cx.waker().clone()));
        Poll::Pending
    })
    .await;
    Ok(())
}

async fn accept_public(worker: &Rc<Worker>, listener: TcpListener) {
    let mut trouble = AcceptTrouble::default();
    let mut pace = Pace::default();
    while let Some(handle) = worker.accept_handle() {
        // Never under a timeout or select: a lost race would leak the accepted descriptor.
        let (waited, accepted) = waiting(listener.cancelable_accept(handle)).await;
        match accepted {
            Ok((stream, peer)) => {
                // Answers are written whole: waiting for more would only delay their last segment.
                let _ = stream.set_nodelay(true);
                let origin = Origin::remote(peer.ip(), &worker.config().http.trusted_proxies);
                worker.make_room(false).await;
                worker.admit(stream, Peer { address: peer.to_string(), origin, trusted: false });
            }
            Err(error) => trouble.wait(worker, &error).await,
        }
        // Those that were taken have their turn, even where accepting never has to wait.
        pace.keep(waited).await;
    }
}

async fn accept_control(worker: &Rc<Worker>, listener: UnixListener) {
    let mut trouble = AcceptTrouble::default();
    while let Some(handle) = worker.accept_handle() {
        match listener.cancelable_accept(handle).await {
            // The socket's mode keeps others out; this holds even where somebody has changed it.
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => {
                    let origin = Origin::local();
                    worker.make_room(true).await;
                    worker.admit(stream, Peer { address: "control".into(), origin, trusted: true });
                }
                Ok(peer) => worker.log(Level::Warn, &format!("user {} is not let in", peer.uid())),
                Err(_) => {}
            },
            Err(error) => trouble.wait(worker, &error).await,
        }
    }
}

/// What to do when accepting fails.
#[derive(Default)]
struct AcceptTrouble {
    told: Option<Instant>,
}

impl AcceptTrouble {
    async fn wait(&mut self, worker: &Worker, error: &std::io::Error) {
        // A client that went away before it was accepted is no trouble of ours; no descriptors is.
        if worker.draining.get() || error.raw_os_error() == Some(nix::libc::ECONNABORTED) {
            return;
        }
        if self.told.is_none_or(|at| at.elapsed() > Duration::from_secs(10)) {
            self.told = Some(Instant::now());
            worker.log(Level::Error, &format!("cannot accept connections: {error}; pausing"));
        }
        timers::sleep(ACCEPT_PAUSE).await;
    }
}

/// Wakes the clients from whom something has come.
async fn tell_of_arrivals(worker: Rc<Worker>) {
    loop {
        let Err(error) = worker.arrivals.tell(|key, news| worker.note_arrival(key, news)).await;
        worker.log(Level::Error, &format!("cannot wait for clients: {error}; pausing"));
        timers::sleep(ACCEPT_PAUSE).await;
    }
}

async fn read_mail(worker: Rc<Worker>, mut inbox: UnboundedReceiver<Message>) {
    while let Ok(message) = inbox.recv().await {
        match message {
            Message::Plugin { view, shared } => worker.learn(view, shared),
            Message::KvReply { index, request_id, reply, underway } => {
                let target = worker.targets.borrow().by_index.get(&index).cloned();
                if let Some(link) = target.and_then(|target| target.link_of(&underway)) {
                    link.send_kv_reply(&worker, &request_id, &reply);
                }
                drop((reply, underway));
            }
            Message::Traffic => worker.history.wake(),
            Message::Configure(config) => worker.configure(&config),
            Message::Scanned => worker.scanned.set(true),
            Message::Rescanning(begun) => worker.rescanning.set(begun),
            Message::Drain => worker.drain(),
        }
    }
}

/// Looks at all deadlines, as long as there is anything to look at.
///
/// One timer for a whole worker instead of one for each read and request: a deadline is a store into a cell, and being
/// a fraction of itself late does it no harm.
async fn sweep(worker: Rc<Worker>) {
    let mut lag = Lag::default();
    loop {
        std::future::poll_fn(|cx| {
            if worker.has_deadlines() {
                return Poll::Ready(());
            }
            lag = Lag::default();
            worker.stats().lag_us.store(0, Relaxed);
            worker.sweeper.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        let due = Instant::now() + worker.sweep_period.get();
        timers::sleep_until(due).await;
        let now = Instant::now();
        worker.stats().lag_us.store(lag.worst(now, now.saturating_duration_since(due)), Relaxed);
        worker.close_refused(now);
        let config = worker.config();
        for slot in worker.clients.borrow().iter().map(|(_, slot)| slot) {
            slot.check(&config.http, now);
        }
        let expired = worker.exchanges.borrow_mut().expire(now);
        for (id, link) in expired {
            link.cancel(&worker, id);
            worker.shared.supervisor.send(Command::RequestTimeout { index: link.index });
            link.count_given_up(&worker, now);
        }
        let (links, retired) = {
            let targets = worker.targets.borrow();
            let all = || targets.by_index.values();
            let links: Vec<_> = all().filter_map(|target| target.link.borrow().clone()).collect();
            let retired: Vec<_> = all().filter_map(|target| target.retired.borrow().clone()).collect();
            (links, retired)
        };
        for link in links {
            link.check(&worker, now);
        }
        for link in retired {
            link.check(&worker, now);
            link.check_retired(&worker, now);
        }
    }
}

/// How late the loop comes to what is due: the time that its other tasks, or other processes, took before.
///
/// Seen at the sweep's own timer, which runs anyway, so it costs no wake-up; timers are exact to a millisecond.
#[derive(Default)]
struct Lag {
    since: Option<Instant>,
    worst: Duration,
    worst_before: Duration,
}

impl Lag {
    /// Adds one; gives the worst of this second and the last, in microseconds.
    fn worst(&mut self, now: Instant, lag: Duration) -> u64 {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            self.since = Some(now);
            self.worst_before = std::mem::take(&mut self.worst);
        }
        self.worst = self.worst.max(lag);
        self.worst.max(self.worst_before).as_micros() as u64
    }
}

/// What clients may send. Who forbids uploads means the public, and may still store values by the control socket.
fn http_limits(config: &Config, is_control: bool) -> Arc<toru_http::Limits> {
    let body_bytes_max = match is_control {
        true => config.message_bytes_max as u64,
        false => config.http.body_bytes_max,
    };
    Arc::new(toru_http::Limits {
        head_bytes_max: config.http.head_bytes_max,
        body_bytes_max,
        ..toru_http::Limits::default()
    })
}

/// How often the deadlines of requests to a plugin with a time limit of its own want to be looked at.
fn sweep_period_of(view: &PluginView) -> Duration {
    let limit = view.metadata.timeout_ms.map_or(Duration::MAX, Duration::from_millis);
    (limit / SWEEPS_PER_TIMEOUT).max(SWEEP_MIN)
}

fn sweep_period(config: &Config) -> Duration {
    let http = &config.http;
    [http.head_timeout, http.body_timeout, http.idle_timeout, http.write_timeout, http.request_timeout]
        .into_iter()
        .chain([config.frame_timeout, http.body_rate_after])
        .map(|timeout| timeout / SWEEPS_PER_TIMEOUT)
        .fold(SWEEP_MAX, Duration::min)
        .max(SWEEP_MIN)
}

impl Worker {
    /// A handle that ends a pending accept; none once no more are wanted.
    fn accept_handle(&self) -> Option<CancelHandle> {
        self.accepting.borrow().as_ref().map(Canceller::handle)
    }

    fn note_arrival(&self, key: usize, news: News) {
        if let Some(slot) = self.clients.borrow().get(key) {
            slot.arrival.note(news);
        }
    }

    /// Whether there is no place for one more client, beside so many `others` of all workers.
    fn is_full(&self, at_control: bool, others: usize) -> bool {
        if at_control {
            self.clients.borrow().len() >= self.shared.descriptors.control_max
        } else {
            others >= self.config().http.connections_max || self.shared.descriptors.are_taken(others)
        }
    }

    /// Before a client is refused: who has left this worker gives up the place, also where nobody has looked since.
    async fn make_room(&self, at_control: bool) {
        if !self.is_full(at_control, self.shared.connections.load(Relaxed)) {
            return;
        }
        if self.arrivals.tell_at_once(|key, news| self.note_arrival(key, news)).is_ok() {
            // Has its turn behind all who were told of.
            monoio::spawn(async {}).await;
        }
    }

    /// Takes a client in, or tells it that there is no room.
    fn admit<S: ClientStream>(self: &Rc<Self>, stream: S, peer: Peer) {
        let at_control = peer.trusted;
        // Counted first: each of several workers may take the last place. Operators take none of it.
        let others = self.shared.connections.fetch_add(usize::from(!at_control), Relaxed);
        if self.is_full(at_control, others) {
            self.shared.connections.fetch_sub(usize::from(!at_control), Relaxed);
            self.tell_of_crowd(at_control);
            return self.refuse(stream, at_control);
        }
        self.count_clients(1);
        let slot = Rc::new(ClientSlot {
            fd: stream.as_raw_fd(),
            deadline: Cell::new(None),
            writing: Cell::new(false),
            idle: Cell::new(true),
            body: Cell::new(None),
            untaken: Cell::new(None),
            expired: Cell::new(false),
            shut: Cell::new(false),
            arrival: Arrival::new(S::READS_ALL),
        });
        let key = self.clients.borrow_mut().insert(slot.clone());
        let entry = ClientEntry { worker: self.clone(), key, at_control };
        if let Err(error) = self.arrivals.enter(slot.socket(), key) {
            return self.log(Level::Error, &format!("cannot wait for a client, which is closed: {error}"));
        }
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.wake();
        }
        let worker = self.clone();
        monoio::spawn(async move {
            // Boxed, since each hand from which a future is passed on by value keeps room for it.
            let mut serving = Box::pin(client::serve(worker.clone(), stream, peer, slot, entry));
            if let Err(panic) = catch_unwind(serving.as_mut()).await {
                let what = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("of an unknown kind");
                worker.log(
                    Level::Error,
                    &format!("a client's task panicked and its connection was closed: {what}"),
                );
            }
        });
    }

    /// Tells a client that there is no room, on the spot: a crowd has to be told as fast as it comes, since who waits
    /// behind it may be a client that there is room for.
    fn refuse<S: ClientStream>(self: &Rc<Self>, stream: S, at_control: bool) {
        // SAFETY: open as long as `stream` is, which outlives this.
        let socket = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
        // All of it fits into a new socket; a client that has gone needs none.
        let _ = send_now(socket, &client::canned(self, &Failure::Crowded));
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        let shared = &self.shared;
        let kept = if at_control {
            shared.descriptors.control_max / 4
        } else {
            shared.descriptors.crowd_max / (shared.workers.len() - 1).max(1)
        };
        let mut refused = self.refused.borrow_mut();
        while refused.len() >= kept.max(1) {
            if let Some(longest) = refused.pop_front() {
                longest.drain();
            }
        }
        refused.push_back(Refused { stream: Box::new(stream), since: Instant::now() });
        drop(refused);
        self.expect_deadlines();
    }

    /// Closes those that were refused and have read it, or have had their time for that.
    fn close_refused(&self, now: Instant) {
        let stays = |one: &Refused| one.drain() && now.saturating_duration_since(one.since) < REFUSED_LINGER;
        self.refused.borrow_mut().retain(stays);
    }

    /// One line for many clients: a crowd must not become a crowd of lines.
    fn tell_of_crowd(&self, at_control: bool) {
        let (told, untold) = self.crowded.get();
        let now = Instant::now();
        if told.is_some_and(|told| now.saturating_duration_since(told) < CROWD_TOLD_EVERY) {
            return self.crowded.set((told, untold + 1));
        }
        self.crowded.set((Some(now), 0));
        let open = self.shared.connections.load(Relaxed);
        let more = if untold > 0 {
            format!(", and {untold} clients more since the last such line")
        } else {
            String::new()
        };
        let told = if at_control {
            let open = self.clients.borrow().len();
            format!(
                "a client of the control socket was refused: {open} are connected{more}; close some of them"
            )
        } else {
            format!(
                "a client was refused: {open} connections are open{more}; raise http.connections_max or the limit of open files"
            )
        };
        self.log(Level::Warn, &told);
    }

    /// Takes in news of a plugin.
    fn learn(&self, view: Arc<PluginView>, shared: Arc<PluginShared>) {
        self.sweep_period.set(self.sweep_period.get().min(sweep_period_of(&view)));
        let (target, dead) = {
            let mut targets = self.targets.borrow_mut();
            let target = targets
                .by_index
                .entry(view.index)
                .or_insert_with(|| {
                    Rc::new(Target {
                        view: RefCell::new(view.clone()),
                        shared,
                        link: RefCell::new(None),
                        retired: RefCell::new(None),
                        misfits: RefCell::default(),
                        losses: Cell::default(),
                        line: Rc::default(),
                    })
                })
                .clone();
            let generation = view.generation;
            *target.view.borrow_mut() = view;
            targets.rebuild();
            let of_another = |link: &mut Rc<Link>| Some(link.generation) != generation;
            let dead = [&target.link, &target.retired].map(|link| link.borrow_mut().take_if(of_another));
            (target, dead)
        };
        for link in dead.into_iter().flatten() {
            let ended = Failure::Severed { detail: "the plugin ended before it answered", told: true };
            let never_sent = if link.connected.get() { None } else { target.refusal() };
            link.fail(self, &never_sent.unwrap_or(ended));
        }
    }

    /// The settings in force. Hold them no longer than a decision takes: they change at a reload.
    pub fn config(&self) -> Rc<Config> {
        self.config.borrow().clone()
    }

    /// The settings in force for a new connection.
    pub fn http_limits(&self) -> Arc<toru_http::Limits> {
        self.http_limits.borrow().clone()
    }

    fn configure(&self, config: &Config) {
        *self.config.borrow_mut() = Rc::new(config.clone());
        *self.http_limits.borrow_mut() = http_limits(config, self.is_control);
        let targets = self.targets.borrow();
        let of_plugins = targets.by_index.values().map(|target| sweep_period_of(&target.view.borrow()));
        self.sweep_period.set(of_plugins.fold(sweep_period(config), Duration::min));
        if let Some(waker) = self.configured.take() {
            waker.wake();
        }
    }

    /// Sleeps as long as a setting says, also when the setting changes meanwhile. One task may do so.
    pub async fn sleep_as_set(&self, setting: impl Fn(&Config) -> Duration) {
        let began = Instant::now();
        loop {
            let left = setting(&self.config()).saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            let mut asleep = false;
            let news = std::future::poll_fn(|cx| {
                if std::mem::replace(&mut asleep, true) {
                    return Poll::Ready(());
                }
                self.configured.set(Some(cx.waker().clone()));
                Poll::Pending
            });
            let _ = timers::timeout(left, news).await;
        }
    }

    /// The failure for a plugin that this worker does not know.
    pub fn unknown(&self, why: &'static str) -> Failure {
        if self.scanned.get() { Failure::NotFound(why) } else { Failure::StillReading }
    }

    /// The same for an operator, who may have put the plugin there a moment ago.
    pub fn unknown_to_operator(&self, why: &'static str) -> Failure {
        if self.rescanning.get() { Failure::StillReading } else { self.unknown(why) }
    }

    /// How long a plugin's answer may take.
    pub fn time_limit(&self, view: &PluginView) -> Duration {
        view.metadata.timeout_ms.map_or(self.config().http.request_timeout, Duration::from_millis)
    }

    pub fn stats(&self) -> &WorkerStats {
        &self.shared.workers[self.number as usize]
    }

    fn count_clients(&self, change: i64) {
        let connections = &self.stats().connections;
        connections.store(connections.load(Relaxed).wrapping_add_signed(change), Relaxed);
    }

    pub fn by_id(&self, id: &str) -> Option<Rc<Target>> {
        self.targets.borrow().by_id.get(id).cloned()
    }

    pub fn by_route(&self, route: &str) -> Option<Rc<Target>> {
        self.targets.borrow().by_route.get(route).cloned()
    }

    /// All plugins with their indexes, in no order.
    pub fn targets(&self) -> Vec<(usize, Rc<Target>)> {
        self.targets.borrow().by_index.iter().map(|(index, target)| (*index, target.clone())).collect()
    }

    pub fn by_index(&self, index: usize) -> Option<Rc<Target>> {
        self.targets.borrow().by_index.get(&index).cloned()
    }

    fn has_deadlines(&self) -> bool {
        let link_is_late = |target: &Rc<Target>| {
            target.link.borrow().as_ref().is_some_and(|link| link.has_deadline())
                || target.retired.borrow().is_some()
        };
        !self.clients.borrow().is_empty()
            || !self.refused.borrow().is_empty()
            || !self.exchanges.borrow().is_empty()
            || self.targets.borrow().by_index.values().any(link_is_late)
    }

    /// Wakes the sweep, which sleeps while nothing has a deadline.
    pub fn expect_deadlines(&self) {
        if let Some(sweeper) = self.sweeper.take() {
            sweeper.wake();
        }
    }

    fn drain(&self) {
        self.draining.set(true);
        if let Some(canceller) = self.accepting.borrow_mut().take() {
            canceller.cancel();
        }
        for (_, slot) in self.clients.borrow().iter() {
            if slot.idle.get() {
                slot.shut_read();
            }
        }
    }

    /// An empty buffer for a request's frame.
    pub fn take_frame(&self) -> Vec<u8> {
        let mut buffer = self.frame.take();
        buffer.reserve(FRAME_BYTES);
        buffer
    }

    /// Takes it back once it is sent.
    pub fn reuse_frame(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= FRAME_BYTES_KEPT {
            buffer.clear();
            self.frame.set(buffer);
        }
    }

    pub fn unix_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    pub fn timestamp(&self) -> Ref<'_, str> {
        self.clock.timestamp(Instant::now())
    }

    pub fn log(&self, level: Level, message: &str) {
        let fields = json!({ "worker": self.number });
        if let Some(fields) = fields.as_object() {
            self.shared.logger.core(level, "worker", message, None, fields);
        }
    }
}

impl Targets {
    fn rebuild(&mut self) {
        self.by_id.clear();
        self.by_route.clear();
        for target in self.by_index.values() {
            let view = target.view.borrow();
            // One that had to leave has given up its names.
            if !view.metadata.id.is_empty() {
                self.by_id.insert(view.metadata.id.clone(), target.clone());
                self.by_route.insert(view.metadata.route.clone(), target.clone());
            }
        }
    }
}

impl ClientSlot {
    fn check(&self, http: &HttpConfig, now: Instant) {
        let late = self
            .deadline
            .get()
            .is_some_and(|deadline| deadline <= now && !self.is_taking(http, now, deadline));
        if let Some(deadline) = self.deadline.get()
            && self.writing.get()
            && self.untaken.get().is_none_or(|(of, _)| of != deadline)
        {
            self.untaken.set(Some((deadline, self.untaken())));
        }
        let body = self.body.get().filter(|_| !self.writing.get());
        let slow = body.is_some_and(|(since, bytes)| {
            let took = now.saturating_duration_since(since);
            let due = http.body_bytes_per_second_min.saturating_mul(took.as_millis() as u64) / 1000;
            took > http.body_rate_after && bytes < due
        });
        if late && self.idle.get() && !self.writing.get() && self.untaken() == 0 {
            // A request may have come a moment ago.
            self.deadline.set(None);
            self.shut_read();
        } else if (late || slow) && !self.expired.replace(true) {
            // Shutting down completes the pending operation with an end or an error, under either driver, and
            // leaves closing to the task that owns the socket.
            let _ = shutdown(self.fd, if self.writing.get() { Shutdown::Both } else { Shutdown::Read });
        }
    }

    /// Whether the client still takes an answer that the kernel has for it, and fast enough: it then has time for more.
    ///
    /// The kernel takes megabytes at once, and more only when a third of them is gone: how a write gets on says little of
    /// how the client does, and an answer that is written may be as far from it as ever.
    fn is_taking(&self, http: &HttpConfig, now: Instant, deadline: Instant) -> bool {
        if !self.writing.get() && !self.idle.get() {
            return false;
        }
        let untaken = self.untaken();
        let due = http.write_timeout.as_millis() as u64 * http.write_bytes_per_second_min / 1000;
        let before = self.untaken.get().filter(|(of, _)| *of == deadline).map(|(_, bytes)| bytes);
        let taking = untaken > 0 && before.is_none_or(|before| before.saturating_sub(untaken) >= due.max(1));
        if taking {
            let next = now + http.write_timeout;
            self.deadline.set(Some(next));
            self.untaken.set(Some((next, untaken)));
        } else if untaken > 0 {
            // Else the kernel would keep all that for it after the close.
            let _ = set_socket_linger(self.socket(), Some(Duration::ZERO));
        }
        taking
    }

    /// Bytes that were written to the client and that it has not taken yet.
    pub fn untaken(&self) -> u64 {
        untaken(self.socket())
    }

    /// Whether the client has reset the connection, or the kernel given it up, since the last read or look.
    pub fn has_failed(&self) -> bool {
        !matches!(socket_error(self.socket()), Ok(Ok(())))
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open and the client's as long as the slot is in the worker's table, where every caller
        // has it from: a `ClientEntry` takes it out before the socket is closed.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Reads what has come; see [`Arrival::read`].
    pub fn read(&self, buffer: &mut [u8]) -> std::io::Result<Option<usize>> {
        self.arrival.read(self.socket(), buffer)
    }

    /// Sends what the socket takes at once; see [`send_now`].
    pub fn send_now(&self, bytes: &[u8]) -> std::io::Result<usize> {
        send_now(self.socket(), bytes)
    }

    /// Ends what can be read, behind what has come.
    fn shut_read(&self) {
        self.shut.set(true);
        let _ = shutdown(self.fd, Shutdown::Read);
    }

    pub fn shutdown_write(&self) {
        let _ = shutdown(self.fd, Shutdown::Write);
    }
}

/// Bytes that were written to a socket and the other side has not taken yet; of a Unix socket with what they cost to keep.
pub fn untaken(socket: BorrowedFd<'_>) -> u64 {
    const SIOCOUTQ: u32 = nix::libc::TIOCOUTQ as u32;
    // SAFETY: tcp(7) and unix(7) have it store an int, as `Getter` is told here.
    let bytes = unsafe { ioctl(socket, Getter::<SIOCOUTQ, i32>::new()) };
    bytes.map_or(0, |bytes| bytes.max(0) as u64)
}

/// A client's place in the worker's table; leaves it on drop, which must come before the socket is closed.
pub struct ClientEntry {
    worker: Rc<Worker>,
    key: usize,
    at_control: bool,
}

impl Drop for ClientEntry {
    fn drop(&mut self) {
        let mut clients = self.worker.clients.borrow_mut();
        self.worker.arrivals.leave(clients[self.key].socket());
        clients.remove(self.key);
        self.worker.shared.connections.fetch_sub(usize::from(!self.at_control), Relaxed);
        self.worker.count_clients(-1);
        if clients.is_empty()
            && let Some(emptied) = self.worker.emptied.take()
        {
            emptied.wake();
        }
    }
}

/// Runs `future`, turning a panic into an error: monoio would let it end the whole worker.
async fn catch_unwind<F: Future>(future: F) -> std::thread::Result<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(move |cx| {
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}
