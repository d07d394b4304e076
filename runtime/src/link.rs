//! One worker's connection to one 1.1 plugin: frames out, frames in, many requests at once.
//!
//! Frames that are ready together go out in one write: requests append to the outbox, and the writer, which has its turn
//! behind them, takes all of it once its last write is done. Answers are read into one buffer, read where they lie, and
//! handed to the exchange that waits for them; they may come in any order.
//! The link never decides what a plugin *is*: it fails its own requests and reports to the supervisor.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use monoio::buf::{IoBuf as _, IoBufMut as _};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt, Splitable};
use monoio::net::UnixStream;
use nix::sys::socket::{Shutdown, shutdown};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::json;
use toru_http::{encode_field, is_reserved_in_response};
use toru_plugin_api::frame::{Decoder, Framing};
use toru_plugin_api::from_core::encode_cancel;
use toru_plugin_api::from_plugin::{HttpResponse, PluginMessage};
use toru_supervisor::{Command, KvAnswer, Level, Phase, Strays, Underway};

use crate::answer::{AnswerHead, Failure, Pieces, add_field};
use crate::config::HeadLimits;
use crate::driver::{Driver, Pace, send_now, waiting};
use crate::exchange::{Delivery, ExchangeId};
use crate::log::LineBudget;
use crate::misfits::Advice;
use crate::place::{self, Counted};
use crate::said;
use crate::spare::{self, Spare};
use crate::timers;
use crate::turns::Line;
use crate::worker::{Message, Target, Worker, untaken};

/// Bytes that may wait for a plugin that does not read, those that are being written among them, and the frame that goes
/// beyond; then requests are refused with 503.
const OUTBOX_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of requests that may wait for room in an outbox, and how long each does, or for a quarter of its time: a plugin that
/// reads makes room soon.
const ROOM_WANTED_MAX: usize = 64 * 1024 * 1024;
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// Written at a time to a plugin whose socket is full: what it has read makes room for more, and is no reason to take it for
/// one that reads nothing.
const WRITE_BYTES: usize = 64 * 1024;
/// A written outbox of at most this capacity is kept for the next write.
const OUTBOX_BYTES_KEPT: usize = 256 * 1024;
/// Room for one read; more while a frame larger than that is on its way.
const READ_BYTES: usize = 16 * 1024;
const READ_BYTES_LARGE: usize = 256 * 1024;
/// More answers than this at a time go to their clients through the ring, all with one system call. Of fewer each is sent at
/// once, which sets its client going while the others are still written.
const CROWD: usize = 32;
/// How long a refused connection waits for the supervisor's word: a plugin that has just died refuses a moment before the
/// workers hear of it, and "not now" is a better answer to a request that was never sent than "gone".
pub const VERDICT_PATIENCE: Duration = Duration::from_millis(100);
/// How long after a connection that ended in the middle of a frame the process may end, too: then it died, and broke no
/// protocol. Nobody waits for this.
pub const TORN_PATIENCE: Duration = Duration::from_secs(1);
/// So many requests in a row without an answer, with something unread, and new ones go over another connection.
const DEAF_REQUESTS: u32 = 3;
/// For so many times a request's time the old one is kept for a plugin that has long work, until it is taken for one that
/// its plugin has lost.
const RETIRED_TIMES: u32 = 4;
/// Between attempts to connect while the plugin's backlog is full.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

pub struct Link {
    pub index: usize,
    /// The spawn of the plugin that this connection belongs to.
    pub generation: u64,
    framing: Framing,
    /// How long the plugin may take over the rest of a frame that it has begun.
    frame_timeout: Duration,
    outbox: RefCell<Vec<u8>>,
    writer: Cell<Option<Waker>>,
    /// Bytes taken from the outbox for which the plugin has made no room yet.
    being_written: Cell<usize>,
    /// Requests that wait for room in the outbox, and how many bytes they are together.
    in_want: RefCell<Vec<Waker>>,
    room_wanted: Cell<usize>,
    closed: Cell<bool>,
    /// Ended by this side, which has said why: what comes after is no news.
    given_up: Cell<bool>,
    /// Was once; requests on a link that never was have not been sent.
    pub connected: Cell<bool>,
    /// So many requests wait for it to be.
    pub unsent: Cell<u64>,
    /// While connected. What the tasks that read and write own beside: shutdown(2) ends what is pending there under either
    /// driver, and a direct send goes no long way.
    fd: Cell<Option<RawFd>>,
    write_since: Cell<Option<Instant>>,
    /// When the frame began of which only a part is there.
    frame_since: Cell<Option<Instant>>,
    strays: Cell<Strays>,
    /// Requests that were given up while the plugin read nothing.
    deaf: Cell<Deaf>,
    /// For turns with what comes.
    answers: Rc<Line>,
    log_budget: LineBudget,
    /// Bytes of kv answers between the store and the outbox.
    answers_underway: Arc<AtomicUsize>,
}

/// Requests whose time was up, or whose client went, one after the other, while their plugin sent nothing and read
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Deaf {
    requests: u32,
    /// Of the first of them.
    since: Option<Instant>,
    /// What was unread at the last look: as long as nothing is read it only grows.
    unread: u64,
}

impl Deaf {
    /// A request is given up, and so much is unread.
    fn after_request(self, now: Instant, unread: u64) -> Self {
        match self.since {
            _ if unread == 0 => Self::default(),
            Some(since) if unread >= self.unread => {
                Self { requests: self.requests + 1, since: Some(since), unread }
            }
            _ => Self { requests: 1, since: Some(now), unread },
        }
    }

    /// A look at a connection that gets no more requests, and so much is unread: since when nothing was read.
    fn at_look(self, now: Instant, unread: u64) -> (Self, Instant) {
        match self.since {
            Some(since) if unread >= self.unread => (self, since),
            _ => (Self { requests: self.requests.max(1), since: Some(now), unread }, now),
        }
    }

    /// So much is unread before more is sent. Less than before says that the plugin reads, if slowly, which by the next
    /// timeout what is sent now may hide.
    fn before_write(self, unread: u64) -> Self {
        if unread < self.unread { Self::default() } else { self }
    }

    /// So much is unread now that more was sent.
    fn after_write(self, unread: u64) -> Self {
        Self { unread, ..self }
    }
}

struct GiveBack<'a> {
    wanted: &'a Cell<usize>,
    bytes: usize,
}

impl Drop for GiveBack<'_> {
    fn drop(&mut self) {
        self.wanted.set(self.wanted.get() - self.bytes);
    }
}

/// How a connection's life ended.
enum End {
    /// It never began.
    Unreachable,
    Closed,
    /// This side ended it, and has said why.
    GivenUp,
    /// It ended in the middle of a frame.
    Torn,
    /// The plugin broke the protocol.
    Broken(String),
}

impl Target {
    /// Why the plugin takes no requests now, if it takes none.
    pub fn refusal(&self) -> Option<Failure> {
        match self.view.borrow().phase {
            Phase::Serving => None,
            Phase::Waiting { retry_after } => Some(Failure::Waiting(retry_after)),
            Phase::Absent => Some(Failure::NotFound("the plugin is disabled")),
            Phase::GivenUp => {
                Some(Failure::NotFound("the plugin failed and was given up until somebody restarts it"))
            }
        }
    }

    /// Waits for news of a plugin that refused a connection, as long as [`VERDICT_PATIENCE`].
    pub async fn await_verdict(&self, generation: u64) {
        self.await_end(generation, VERDICT_PATIENCE).await;
    }

    /// Waits until the process of `generation` is known to have ended; whether that came within `patience`.
    pub async fn await_end(&self, generation: u64, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while self.view.borrow().generation == Some(generation) {
            if Instant::now() >= until {
                return false;
            }
            timers::sleep(CONNECT_RETRY).await;
        }
        true
    }

    /// The connection that a question to the store came on, unless it is gone: on another one the same id may be that of
    /// another question.
    pub fn link_of(&self, underway: &Underway) -> Option<Rc<Link>> {
        let asked = |link: &Rc<Link>| underway.is_of(&link.answers_underway);
        [&self.link, &self.retired].into_iter().find_map(|place| place.borrow().clone().filter(asked))
    }

    /// This worker's connection to the plugin, new if there is none.
    pub fn link(self: &Rc<Self>, worker: &Rc<Worker>) -> Rc<Link> {
        // One that has just ended takes no more.
        if let Some(link) = self.link.borrow().as_ref().filter(|link| !link.closed.get()) {
            return link.clone();
        }
        let (link, socket) = {
            let view = self.view.borrow();
            // No request waits longer than its own time, so no frame may hold up the others for longer either.
            let frame_timeout = worker.config().frame_timeout.min(worker.time_limit(&view));
            let generation = view.generation.unwrap_or(0);
            let link = Rc::new(Link::new(view.index, generation, view.metadata.framing, frame_timeout));
            (link, view.socket.clone())
        };
        *self.link.borrow_mut() = Some(link.clone());
        monoio::spawn(live(worker.clone(), self.clone(), link.clone(), socket));
        link
    }
}

impl Link {
    fn new(index: usize, generation: u64, framing: Framing, frame_timeout: Duration) -> Self {
        Self {
            index,
            generation,
            framing,
            frame_timeout,
            outbox: RefCell::default(),
            writer: Cell::new(None),
            being_written: Cell::new(0),
            in_want: RefCell::default(),
            room_wanted: Cell::new(0),
            closed: Cell::new(false),
            given_up: Cell::new(false),
            connected: Cell::new(false),
            unsent: Cell::new(0),
            fd: Cell::new(None),
            write_since: Cell::new(None),
            frame_since: Cell::new(None),
            strays: Cell::default(),
            deaf: Cell::default(),
            answers: Rc::default(),
            log_budget: LineBudget::default(),
            answers_underway: Arc::default(),
        }
    }

    /// A link to nobody.
    #[cfg(test)]
    pub fn detached() -> Rc<Self> {
        Rc::new(Self::new(0, 0, Framing::Length, Duration::from_secs(10)))
    }

    /// Queues a request's frame.
    ///
    /// Errors: the plugin reads too slowly.
    pub fn submit(
        self: &Rc<Self>,
        worker: &Worker,
        id: ExchangeId,
        frame: &[u8],
        deadline: Instant,
    ) -> Result<(), Failure> {
        if !self.has_room() {
            return Err(Failure::Busy);
        }
        worker.exchanges.borrow_mut().launch(id, self.clone(), deadline);
        self.send(|outbox| outbox.extend_from_slice(frame));
        Ok(())
    }

    /// Whether a request is taken now.
    pub fn has_room(&self) -> bool {
        self.waiting() <= OUTBOX_BYTES_MAX
    }

    /// For whoever looks for the reason of something.
    fn tell(&self, worker: &Worker, target: &Target, message: &str) {
        if worker.shared.logger.enabled(Level::Debug) {
            let fields = json!({ "worker": worker.number, "generation": self.generation });
            if let Some(fields) = fields.as_object() {
                let id = &target.shared.log.id;
                worker.shared.logger.core(Level::Debug, "worker", message, Some(id), fields);
            }
        }
    }

    /// Bytes that the plugin has made no room for yet.
    fn waiting(&self) -> usize {
        self.outbox.borrow().len() + self.being_written.get()
    }

    fn tell_of_room(&self) {
        if self.has_room() {
            self.in_want.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Waits until a frame of so many bytes is taken; the next to be submitted is.
    ///
    /// Errors: too many wait already, or the plugin does not read.
    pub async fn await_room(&self, worker: &Worker, bytes: usize) -> Result<(), Failure> {
        if self.has_room() {
            return Ok(());
        }
        let before = self.room_wanted.get();
        if before + bytes > ROOM_WANTED_MAX {
            return Err(Failure::Busy);
        }
        self.room_wanted.set(before + bytes);
        let room = std::future::poll_fn(|cx| {
            if self.closed.get() || self.has_room() {
                return Poll::Ready(());
            }
            self.in_want.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        });
        let _given_back = GiveBack { wanted: &self.room_wanted, bytes };
        let patience = ROOM_PATIENCE.min(self.time_limit(worker) / 4);
        timers::timeout(patience, room).await.map_err(|_| Failure::Busy)
    }

    /// Tells the plugin that nobody waits for this answer any more.
    pub fn cancel(&self, worker: &Worker, id: ExchangeId) {
        // A plugin that does not read does not care either.
        if self.waiting() < OUTBOX_BYTES_MAX {
            let stamp = worker.timestamp().to_owned();
            self.send(|outbox| {
                encode_cancel(outbox, self.framing, &stamp, id.text().as_str());
            });
        }
    }

    /// Answers a kv question. A plugin that asks and does not read is answered `busy`, in the end cut off: its answers
    /// must not fill the core's memory.
    pub fn send_kv_reply(&self, worker: &Worker, request_id: &str, answer: &KvAnswer) {
        let waiting = self.waiting();
        if waiting > 2 * OUTBOX_BYTES_MAX {
            worker.report_broken(self.index, self.generation, "does not read its kv answers".into(), true);
            self.given_up.set(true);
            return self.close();
        }
        let answer = answer.unless(waiting > OUTBOX_BYTES_MAX);
        let stamp = worker.timestamp().to_owned();
        let max = worker.config().message_bytes_max;
        self.send(|outbox| {
            answer.encode(outbox, self.framing, &stamp, request_id, max);
        });
    }

    fn send(&self, append: impl FnOnce(&mut Vec<u8>)) {
        if !self.closed.get() {
            append(&mut self.outbox.borrow_mut());
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        }
    }

    /// Ends the connection, and at once every request that waits for it.
    pub fn fail(self: &Rc<Self>, worker: &Worker, failure: &Failure) {
        worker.exchanges.borrow_mut().fail_link(self, failure);
        self.given_up.set(true);
        self.close();
    }

    /// Deadlines: on a write that the plugin does not take, and on a frame that it does not finish.
    pub fn check(self: &Rc<Self>, worker: &Worker, now: Instant) {
        let passed = |since: Option<Instant>, limit: fn(&Self, &Worker) -> Duration| {
            since.is_some_and(|since| now.saturating_duration_since(since) > limit(self, worker))
        };
        // By then nobody waits any more for what is being written, nor for what the plugin had before.
        if passed(self.write_since.get(), Self::time_limit) {
            self.write_since.set(None);
            let limit = self.time_limit(worker).as_millis();
            let reason = format!("did not read its requests for {limit} ms");
            // It may be busy and well otherwise: pings say that, and this is no crash.
            worker.report_broken(self.index, self.generation, reason, false);
            self.fail(worker, &Failure::PluginGone("the plugin does not read its requests"));
        } else if passed(self.frame_since.get(), |link, _| link.frame_timeout) {
            self.frame_since.set(None);
            let reason = format!("did not finish a frame within {} ms", self.frame_timeout.as_millis());
            worker.report_broken(self.index, self.generation, reason, true);
            self.fail(worker, &Failure::PluginGone("the plugin did not finish its answer"));
        }
    }

    /// How long a request may be with the plugin.
    fn time_limit(&self, worker: &Worker) -> Duration {
        let target = worker.by_index(self.index);
        target.map_or(worker.config().http.request_timeout, |target| worker.time_limit(&target.view.borrow()))
    }

    /// The time of a request was up, or its client has gone. A plugin that is busy with long work has mostly read what it
    /// was sent; one that for the time of a request has neither read nor answered any of [`DEAF_REQUESTS`] may have lost
    /// this connection, and new requests go over another. The kernel takes small requests for a long time, so no write would
    /// tell.
    ///
    /// What is on this one may still be answered, and [`Self::check_retired`] sees to its end. A plugin has one such
    /// connection at most: one that works for long on each has no use for many.
    pub fn count_given_up(self: &Rc<Self>, worker: &Worker, now: Instant) {
        let Some(unread) = self.unread().filter(|_| !self.given_up.get()) else { return };
        let deaf = self.deaf.get().after_request(now, unread);
        self.deaf.set(deaf);
        let Deaf { requests: DEAF_REQUESTS.., since: Some(since), .. } = deaf else { return };
        if now.saturating_duration_since(since) < self.time_limit(worker) {
            return;
        }
        let Some(target) = worker.by_index(self.index) else { return };
        let is_current = |link: &mut Rc<Self>| Rc::ptr_eq(link, self);
        let mut retired = target.retired.borrow_mut();
        if retired.is_none() {
            *retired = target.link.borrow_mut().take_if(is_current);
        }
    }

    /// Ends a connection that gets no more requests, once nothing was read of it for [`RETIRED_TIMES`] as long as a request
    /// may take. The supervisor is told, unless the plugin had read all of it.
    pub fn check_retired(self: &Rc<Self>, worker: &Worker, now: Instant) {
        let Some(unread) = self.unread().filter(|_| !self.closed.get()) else { return };
        let (deaf, since) = self.deaf.get().at_look(now, unread);
        self.deaf.set(deaf);
        let silent = now.saturating_duration_since(since);
        if silent < self.time_limit(worker).saturating_mul(RETIRED_TIMES) {
            return;
        }
        if unread > 0 {
            let (requests, silent) = (deaf.requests, silent.as_millis());
            let reason =
                format!("did not read its requests for {silent} ms: {requests} in a row got no answer");
            worker.report_broken(self.index, self.generation, reason, false);
        }
        self.fail(worker, &Failure::TimedOut);
    }

    /// What the plugin has not read of what was sent, with what the kernel adds to it; none while there is no connection.
    fn unread(&self) -> Option<u64> {
        self.socket().map(untaken)
    }

    /// Looks whether a plugin that is suspected of reading nothing does read; any other costs nothing.
    fn watch_reading(&self, look: impl FnOnce(Deaf, u64) -> Deaf) {
        let deaf = self.deaf.get();
        if deaf.requests > 0
            && let Some(unread) = self.unread()
        {
            self.deaf.set(look(deaf, unread));
        }
    }

    pub fn has_deadline(&self) -> bool {
        self.write_since.get().is_some() || self.frame_since.get().is_some()
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the link's task closes its socket only once it has taken the descriptor out of the link.
        self.fd.get().map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    fn close(&self) {
        self.closed.set(true);
        if let Some(fd) = self.fd.get() {
            let _ = shutdown(fd, Shutdown::Both);
        }
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        self.in_want.take().into_iter().for_each(Waker::wake);
    }
}

/// The connection's task, from connecting to its end.
async fn live(worker: Rc<Worker>, target: Rc<Target>, link: Rc<Link>, socket: std::path::PathBuf) {
    // Where its backlog is full, and until nobody waits for that any more: what was given up is not to be done later.
    let unwanted = || link.closed.get() || link.unsent.get() == 0;
    let end = match connect(&worker, &socket, unwanted).await {
        Err(_) => {
            if link.unsent.get() == 0 {
                link.close();
            }
            target.await_verdict(link.generation).await;
            End::Unreachable
        }
        Ok(stream) => {
            link.connected.set(true);
            let unanswered = &target.shared.stats[usize::from(worker.number)].unanswered;
            place::change(unanswered, link.unsent.take() as i64);
            let _counted = Counted::new(&worker, &target, |stats| &stats.links);
            link.fd.set(Some(stream.as_raw_fd()));
            link.tell(&worker, &target, "Connection to the plugin opened");
            let (reader, writer) = stream.into_split();
            let writing = monoio::spawn(write(worker.clone(), target.clone(), link.clone(), writer));
            let end = read(&worker, &target, &link, reader).await;
            // Shut down first: the writer may wait for a plugin that will never read again.
            link.close();
            writing.await;
            link.fd.set(None);
            link.tell(&worker, &target, "Connection to the plugin closed");
            link.log_budget.account(&worker.shared.logger, &target.shared.log, true);
            if link.given_up.get() { End::GivenUp } else { end }
        }
    };
    for place in [&target.link, &target.retired] {
        place.borrow_mut().take_if(|current| Rc::ptr_eq(current, &link));
    }
    match end {
        End::Unreachable => link.fail(&worker, &target.refusal().unwrap_or(Failure::Unreachable)),
        End::GivenUp => link.fail(&worker, &Failure::PluginGone("the connection to the plugin was given up")),
        End::Closed => {
            let detail = "the plugin closed the connection before it answered";
            link.fail(&worker, &Failure::Severed { detail, told: false });
        }
        End::Broken(reason) => {
            link.fail(&worker, &Failure::PluginGone("the plugin broke the protocol"));
            worker.report_broken(link.index, link.generation, reason, true);
        }
        End::Torn => {
            let detail = "the plugin closed the connection in its answer";
            link.fail(&worker, &Failure::Severed { detail, told: true });
            worker.report_torn(&target, link.generation);
        }
    }
}

/// Connects to a plugin, waiting only while its backlog is full.
///
/// A plain non-blocking connect(2): for a Unix socket it is done or refused at once, and it cannot leak a descriptor
/// when its task is given up, as a cancelled submission can.
pub async fn connect(
    worker: &Worker,
    path: &Path,
    give_up: impl Fn() -> bool,
) -> std::io::Result<UnixStream> {
    loop {
        // The ring wants blocking sockets (a non-blocking one fails instead of waiting), epoll the opposite.
        let stream = {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
                Ok(()) => Some(StdUnixStream::from(socket)),
                Err(rustix::io::Errno::AGAIN) if !give_up() => None,
                Err(error) => return Err(error.into()),
            }
        };
        if let Some(stream) = stream {
            stream.set_nonblocking(worker.driver == Driver::Epoll)?;
            return UnixStream::from_std(stream);
        }
        timers::sleep(CONNECT_RETRY).await;
    }
}

async fn write(worker: Rc<Worker>, target: Rc<Target>, link: Rc<Link>, mut half: impl AsyncWriteRentExt) {
    let mut spare = Vec::new();
    loop {
        std::future::poll_fn(|cx| {
            if link.closed.get() || !link.outbox.borrow().is_empty() {
                return Poll::Ready(());
            }
            link.writer.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
        if link.closed.get() {
            return;
        }
        let batch = std::mem::replace(&mut *link.outbox.borrow_mut(), spare);
        target.line.note_sent();
        link.watch_reading(Deaf::before_write);
        let sent = link.socket().map_or(Ok(0), |socket| send_now(socket, &batch));
        let Ok(sent) = sent else { return link.close() };
        link.watch_reading(Deaf::after_write);
        spare = batch;
        let mut at = sent;
        while at < spare.len() {
            link.write_since.set(Some(Instant::now()));
            worker.expect_deadlines();
            link.being_written.set(spare.len() - at);
            link.tell_of_room();
            let end = spare.len().min(at + WRITE_BYTES);
            let (outcome, rest) = half.write_all(spare.slice(at..end)).await;
            link.write_since.set(None);
            link.being_written.set(0);
            if outcome.is_err() {
                return link.close();
            }
            // Its socket was full, and took the rest.
            link.deaf.take();
            spare = rest.into_inner();
            at = end;
        }
        link.tell_of_room();
        spare.clear();
        if spare.capacity() > OUTBOX_BYTES_KEPT {
            spare = Vec::new();
        }
    }
}

async fn read(
    worker: &Rc<Worker>,
    target: &Rc<Target>,
    link: &Rc<Link>,
    mut half: impl AsyncReadRent,
) -> End {
    let mut decoder = Decoder::new(link.framing, worker.config().message_bytes_max);
    let mut pace = Pace::default();
    loop {
        let spare = if decoder.is_mid_frame() { READ_BYTES_LARGE } else { READ_BYTES };
        let buffer = decoder.take_buffer(spare);
        let (from, to) = (buffer.len(), buffer.capacity());
        let (waited, (outcome, buffer)) = waiting(half.read(buffer.slice_mut(from..to))).await;
        pace.keep(waited).await;
        decoder.restore_buffer(buffer.into_inner());
        match outcome {
            Ok(0) if decoder.is_mid_frame() => {
                return End::Torn;
            }
            Ok(0) | Err(_) => return End::Closed,
            Ok(_) => {}
        }
        let mut frames = 0;
        loop {
            let frame = match decoder.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) => return End::Broken(error.to_string()),
            };
            frames += 1;
            worker.turns.pace(&link.answers).await;
            let read = worker.reader.borrow_mut().read(frame, |message| take(worker, target, link, message));
            match read {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return End::Broken(reason),
                Err(error) => return End::Broken(error.to_string()),
            }
        }
        worker.crowded_answers.set(frames > CROWD);
        link.deaf.take();
        let mid_frame = decoder.is_mid_frame();
        // Where one was finished, what has begun is another: under load there is always one that has.
        let since = link.frame_since.get().filter(|_| frames == 0);
        link.frame_since.set(mid_frame.then(|| since.unwrap_or_else(Instant::now)));
        if mid_frame {
            worker.expect_deadlines();
        }
        if link.closed.get() {
            return End::Closed;
        }
    }
}

/// One message of the plugin.
///
/// Errors: the connection must end, with the reason.
fn take(
    worker: &Rc<Worker>,
    target: &Rc<Target>,
    link: &Rc<Link>,
    message: PluginMessage<'_>,
) -> Result<(), String> {
    match message {
        PluginMessage::HttpResponse { request_id, response } => {
            let id = ExchangeId::parse(request_id);
            let (news, bad) = match response {
                Ok(response) => match pieces(response, worker.config().http.head_limits(), &worker.spare) {
                    Ok(pieces) => (Ok(pieces), None),
                    Err(unfit) => (Err(Failure::BadAnswerHead(unfit)), Some(unfit.to_owned())),
                },
                Err(bad) => (Err(Failure::BadAnswer), Some(bad.to_string())),
            };
            let delivery =
                id.map_or(Delivery::Stray, |id| worker.exchanges.borrow_mut().deliver(id, link, news));
            if delivery == Delivery::Stray {
                target.shared.stats[worker.number as usize].strays.fetch_add(1, Relaxed);
                let mut strays = link.strays.get();
                let counted = strays.count(Instant::now());
                link.strays.set(strays);
                counted?;
            } else if let Some(bad) = bad {
                worker.report_bad_answer(target, link.generation, &bad);
            }
        }
        PluginMessage::Kv { request_id, request } => {
            let (mailbox, index) = (worker.mailbox.clone(), link.index);
            let request_id = request_id.to_owned();
            let underway = link.answers_underway.clone();
            let reply = Box::new(move |reply| {
                let (reply, underway) = Underway::begin(underway, reply);
                let news = Message::KvReply { index, request_id, reply, underway };
                let _ = mailbox.unbounded_send(news);
            });
            worker.shared.store.ask(&target.shared.log.id, request.into(), reply);
        }
        PluginMessage::Log { level, message, fields_json } => {
            if !link.log_budget.take(&worker.shared.logger, &target.shared.log) {
                if link.log_budget.begins_to_drop() {
                    monoio::spawn(tell_of_drops(worker.clone(), target.clone(), link.clone()));
                }
                return Ok(());
            }
            let fields = fields_json.as_deref().and_then(said::fields).unwrap_or_default();
            worker.shared.logger.plugin_json(
                &target.shared.log.id,
                Level::from_word(level),
                message,
                &fields,
            );
        }
        // Lifecycle is between the plugin and the supervisor; unknown messages are ignored by contract.
        PluginMessage::Ready
        | PluginMessage::Failed { .. }
        | PluginMessage::Pong { .. }
        | PluginMessage::Unknown { .. } => {}
        // Types that a newer plugin-api knows and this file does not yet.
        _ => {}
    }
    Ok(())
}

/// Tells how many log lines were dropped in a second, also where none comes after it.
async fn tell_of_drops(worker: Rc<Worker>, target: Rc<Target>, link: Rc<Link>) {
    timers::sleep(Duration::from_millis(1100)).await;
    link.log_budget.account(&worker.shared.logger, &target.shared.log, false);
}

/// A whole answer as the pieces that a client's task takes.
///
/// Errors: its head is larger than the settings allow, or has two content types; in words.
pub fn pieces(response: HttpResponse<'_>, limits: HeadLimits, spare: &Spare) -> Result<Pieces, &'static str> {
    // With room for the request's id.
    let mut fields = spare.take();
    let mut content_type;
    let connection = response.headers.clone().filter(|(name, _)| name.eq_ignore_ascii_case("connection"));
    let names = |name: &str| {
        let mut options = connection.clone().flat_map(|(_, value)| value.split(','));
        options.any(|option| option.trim_matches([' ', '\t']).eq_ignore_ascii_case(name))
    };
    // Hardly any plugin has one, and each field would be looked for in it: only where there is one all begins again.
    let mut any_named = false;
    'fields: loop {
        fields.clear();
        content_type = None;
        let (mut count, mut bytes) = (0, 0);
        for (name, value) in response.headers.clone() {
            if !any_named && name.eq_ignore_ascii_case("connection") {
                any_named = true;
                continue 'fields;
            }
            // Also those that are dropped: each is looked at.
            count += 1;
            bytes += name.len() + value.len();
            if count > limits.fields_max {
                return Err("the plugin's answer has more fields than http.answer_fields_max");
            }
            if bytes > limits.bytes_max {
                return Err(
                    "the fields of the plugin's answer have more bytes than http.answer_head_bytes_max",
                );
            }
            // Which of two holds, each client would decide in its own way.
            let again = name.eq_ignore_ascii_case("content-type")
                && match content_type.replace(value) {
                    Some(before) if !is_same_type(before, value) => {
                        return Err("the plugin's answer has two content types");
                    }
                    before => before.is_some(),
                };
            // The core frames the answer and names the request; what the plugin says about that would only contradict it.
            let dropped = again
                || is_reserved_in_response(name)
                || name.eq_ignore_ascii_case("x-request-id")
                || (any_named && names(name));
            if !dropped {
                // The reader has refused whatever this could refuse.
                let encoded = encode_field(&mut fields, name, value);
                debug_assert!(encoded.is_ok(), "{name}: {value:?}");
            }
        }
        break;
    }
    // Of a string nobody but the plugin knows what it is; a JSON value is one.
    if response.body_is_json && content_type.is_none() {
        add_field(&mut fields, "content-type", "application/json");
    }
    let head = AnswerHead { status: response.status, fields };
    let content = match response.body {
        Cow::Owned(content) => content,
        Cow::Borrowed(body) if body.len() > spare::BYTES_KEPT_MAX => body.to_vec(),
        Cow::Borrowed(body) => {
            let mut content = spare.take();
            content.extend_from_slice(body);
            content
        }
    };
    Ok(Pieces { head: Some(head), content, complete: true })
}

/// Whether two media types differ in case and white space at most.
fn is_same_type(one: &str, other: &str) -> bool {
    let plain = |text: &str| {
        text.bytes().filter(|byte| !b" \t".contains(byte)).map(|byte| byte.to_ascii_lowercase()).collect()
    };
    let (one, other): (Vec<u8>, Vec<u8>) = (plain(one), plain(other));
    one == other
}

impl Worker {
    /// Tells the supervisor that a plugin broke the protocol.
    pub fn report_broken(&self, index: usize, generation: u64, reason: String, fatal: bool) {
        self.shared.supervisor.send(Command::ProtocolError { index, generation, reason, fatal });
    }

    /// Tells the supervisor of a connection that ended in the middle of a frame, unless the process has died of whatever it
    /// was: that is told already.
    pub fn report_torn(self: &Rc<Self>, target: &Rc<Target>, generation: u64) {
        let (worker, target) = (self.clone(), target.clone());
        monoio::spawn(async move {
            if !target.await_end(generation, TORN_PATIENCE).await {
                let index = target.view.borrow().index;
                let reason = "closed the connection in the middle of a frame".into();
                worker.report_broken(index, generation, reason, true);
            }
        });
    }

    /// Tells the supervisor of an answer that could not be passed on: at once, or, of more within a second, at its end.
    pub fn report_bad_answer(self: &Rc<Self>, target: &Rc<Target>, generation: u64, reason: &str) {
        let index = target.view.borrow().index;
        let advice = target.misfits.borrow_mut().note(Instant::now(), generation, reason);
        match advice {
            Advice::Tell => self.report_broken(index, generation, reason.to_owned(), false),
            Advice::Nothing => {}
            Advice::WaitUntil(at) => {
                let (worker, target) = (self.clone(), target.clone());
                monoio::spawn(async move {
                    timers::sleep_until(at).await;
                    let due = target.misfits.borrow_mut().take_due(Instant::now());
                    for (generation, reason) in due {
                        worker.report_broken(index, generation, reason, false);
                    }
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use toru_plugin_api::from_plugin::PluginMessageReader;

    use super::*;

    #[test]
    fn a_plugin_that_reads_is_not_deaf() {
        let now = Instant::now();
        let (one, two) = (now + Duration::from_secs(1), now + Duration::from_secs(2));
        let deaf = Deaf::default().after_request(now, 700).after_request(one, 700).after_request(two, 1400);
        assert_eq!(deaf, Deaf { requests: 3, since: Some(now), unread: 1400 });
        assert_eq!(deaf.after_request(two, 1399), Deaf { requests: 1, since: Some(two), unread: 1399 });
        assert_eq!(deaf.after_request(two, 0), Deaf::default());
    }

    #[test]
    fn a_connection_without_requests_is_silent_since_something_was_read_last() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let (deaf, since) = Deaf { requests: 3, since: Some(now), unread: 700 }.at_look(at(1), 700);
        assert_eq!((deaf.requests, since), (3, now));
        // A cancel went out meanwhile.
        let (deaf, since) = deaf.after_write(900).at_look(at(2), 900);
        assert_eq!((deaf.requests, since), (3, now));
        let (deaf, since) = deaf.at_look(at(3), 300);
        assert_eq!((deaf.unread, since), (300, at(3)));
        assert_eq!(deaf.at_look(at(4), 300).1, at(3));
        // An answer came.
        assert_eq!(Deaf::default().at_look(at(5), 300).1, at(5));
    }

    #[test]
    fn a_plugin_that_reads_a_request_now_and_then_is_not_deaf_though_more_and_more_is_unread() {
        use std::io::{Read, Write};
        const FRAME: usize = 300;
        let now = Instant::now();
        // Requests come twice as fast as they are read, if they are; none is answered in time.
        let suspected = |reads: bool| {
            let (mut core, mut plugin) = StdUnixStream::pair().expect("descriptors");
            let mut deaf = Deaf::default();
            for _ in 0..5 {
                for _ in 0..2 {
                    deaf = deaf.before_write(untaken(core.as_fd()));
                    core.write_all(&[b'x'; FRAME]).expect("it fits");
                    deaf = deaf.after_write(untaken(core.as_fd()));
                }
                deaf = deaf.after_request(now, untaken(core.as_fd()));
                if reads {
                    plugin.read_exact(&mut [0; FRAME]).expect("it is there");
                }
            }
            deaf.requests
        };
        assert_eq!(suspected(false), 5);
        assert_eq!(suspected(true), 1, "each read takes the suspicion away");
    }

    fn fields_of(payload: &str) -> String {
        let mut frame = format!(r#"{{"type":"http","request_id":"r","payload":{payload}}}"#).into_bytes();
        let fields = PluginMessageReader::new().read(&mut frame, |message| match message {
            PluginMessage::HttpResponse { response: Ok(response), .. } => {
                let limits = HeadLimits { fields_max: 100, bytes_max: 1000 };
                pieces(response, limits, &Spare::default())
                    .expect("small")
                    .head
                    .expect("a whole answer has one")
                    .fields
            }
            other => panic!("{other:?}"),
        });
        String::from_utf8(fields.expect("a message")).expect("ASCII")
    }

    #[test]
    fn a_json_value_without_a_content_type_gets_one() {
        let json = "content-type: application/json\r\n";
        for body in [r#"{"a":1}"#, "[]", "7", "true"] {
            assert_eq!(fields_of(&format!(r#"{{"status":200,"body":{body}}}"#)), json, "{body}");
        }
        let own = r#"{"status":200,"headers":{"Content-Type":"application/ld+json"},"body":{}}"#;
        assert_eq!(fields_of(own).to_ascii_lowercase(), "content-type: application/ld+json\r\n");
        // Text may be anything, and no content is of no type.
        for body in [r#""{}""#, r#""""#, "null"] {
            assert_eq!(fields_of(&format!(r#"{{"status":200,"body":{body}}}"#)), "", "{body}");
        }
    }

    #[test]
    fn of_two_content_types_none_is_passed_on_and_of_one_said_twice_one() {
        let judge = |headers: &str| {
            let mut frame =
                format!(r#"{{"type":"http","request_id":"r","payload":{{"status":200,"headers":{headers},"body":""}}}}"#)
                    .into_bytes();
            let judged = PluginMessageReader::new().read(&mut frame, |message| match message {
                PluginMessage::HttpResponse { response: Ok(response), .. } => {
                    let limits = HeadLimits { fields_max: 100, bytes_max: 1000 };
                    pieces(response, limits, &Spare::default())
                        .map(|pieces| pieces.head.expect("a head").fields)
                }
                other => panic!("{other:?}"),
            });
            judged.expect("a message").map(|fields| String::from_utf8(fields).expect("ASCII"))
        };
        for two in [
            r#"{"Content-Type":"a/b","content-type":"c/d"}"#,
            r#"{"content-type":["a/b","a/c"]}"#,
            r#"{"content-type":["a/b","a/b","a/b; charset=utf-8"]}"#,
            r#"{"content-type":["a/b",""]}"#,
        ] {
            assert_eq!(judge(two), Err("the plugin's answer has two content types"), "{two}");
        }
        for (twice, expect) in [
            (r#"{"content-type":["a/b","A/b "]}"#, "content-type: a/b\r\n"),
            (
                r#"{"Content-Type":"a/b; charset=utf-8","content-type":"a/b;charset=UTF-8"}"#,
                "Content-Type: a/b; charset=utf-8\r\n",
            ),
        ] {
            let fields = judge(twice).expect("one type");
            assert!(fields.eq_ignore_ascii_case(expect), "{twice}: {fields:?}");
        }
    }

    #[test]
    fn a_head_is_bounded_to_the_byte_and_the_field() {
        let judge = |headers: &str, bytes_max, fields_max| {
            let mut frame =
                format!(r#"{{"type":"http","request_id":"r","payload":{{"status":200,"headers":{headers},"body":""}}}}"#)
                    .into_bytes();
            let judged = PluginMessageReader::new().read(&mut frame, |message| match message {
                PluginMessage::HttpResponse { response: Ok(response), .. } => {
                    pieces(response, HeadLimits { bytes_max, fields_max }, &Spare::default()).err()
                }
                other => panic!("{other:?}"),
            });
            judged.expect("a message")
        };
        // `a: 1` and `te: xyz`, names and values alone; the second is dropped and counts.
        let two = r#"{"a":"1","te":"xyz"}"#;
        assert_eq!(judge(two, 2 + 5, 2), None);
        assert!(judge(two, 2 + 5 - 1, 2).is_some_and(|why| why.contains("http.answer_head_bytes_max")));
        assert!(judge(two, 2 + 5, 1).is_some_and(|why| why.contains("http.answer_fields_max")));
        let list = r#"{"set-cookie":["a=1","b=2"]}"#;
        assert_eq!(judge(list, 1000, 2), None);
        assert!(judge(list, 1000, 1).is_some(), "each of a list is a field");
    }
}
