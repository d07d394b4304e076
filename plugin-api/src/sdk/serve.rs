//! Connections of the core: frames in, handlers run, answers out.
//!
//! A connection gets turns, from the threads in [`Lead`]: it reads, decodes, and writes what is ready.
//! It polls handlers itself, so that one which waits for a stored value costs no other thread either, and answers that
//! are ready together go out in one write. Where handlers compute, they become tasks of tokio's, on its threads.

use std::any::Any;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::net::UnixListener;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::AbortHandle;

use super::context::{KvAnswer, KvError, PluginContext, Start};
use super::http::{HttpRequest, HttpResponse, Ids, KvRequest, KvResponse, PluginResult};
use super::lead::Lead;
use super::outbox::Outbox;
use super::ring::{Inbox, Readers};
use super::{PluginError, ToruPlugin};
use crate::frame::{Decoder, FRAME_BYTES_MAX_DEFAULT, FRAME_BYTES_MAX_LIMIT, FrameError, Framing};
use crate::from_core::{
    CoreMessage, InitMessage, KvReply, KvReplyMessage, KvRequestMessage, encode_kv_reply,
};
use crate::from_plugin::{
    BadKvRequest, ResponseStart, encode_failed, encode_http_response, encode_log, encode_pong, encode_ready,
};
use crate::headers::{is_field_value, is_token};
use crate::metadata::Metadata;
use crate::time::{as_str, rfc3339_millis};

/// Room for each read.
const READ_BYTES: usize = 64 * 1024;

/// Other connections get a turn after so many full reads.
const READS_A_TURN: usize = 4;

/// With more than this waiting to be written, a connection reads no requests, and begins and continues no handlers.
const UNWRITTEN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// With more than this waiting to be written, log lines are lost.
const UNWRITTEN_BYTES_MAX_FOR_LOGS: usize = 1024 * 1024;

/// About what a frame without content of its own takes.
const SMALL_FRAME_BYTES: usize = 256;

/// A handler that takes longer than this between two `await`s holds up the requests behind it...
const SLOW_POLL: Duration = Duration::from_micros(200);

/// ...so this many requests after it get tasks of their own, which other threads can take.
const TASKS_AFTER_SLOW: u32 = 256;

/// What a header value with escapes needs at most, by far.
const ROOM_BYTES_KEPT: usize = 64 * 1024;

/// For a `shutdown` without a deadline, and for SIGTERM, after which the core waits 2 s.
const STOP_DEADLINE_DEFAULT: Duration = Duration::from_millis(1500);

/// A day: whoever gives a plugin longer means for ever.
const STOP_DEADLINE_MAX: Duration = Duration::from_secs(86_400);

/// Accepting pauses for this long when there is no descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type HandlerFuture = Pin<Box<dyn Future<Output = PluginResult<HttpResponse>> + Send>>;

/// A poisoned lock only says that a handler's panic passed by; the data is a buffer or a table.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `init` came to.
#[derive(Clone, Debug)]
enum InitState {
    NotAsked,
    Running,
    Ready,
    Failed(Arc<str>),
}

/// Phases of the process, in [`Shared::phase`].
const SERVING: u8 = 0;
/// Answer what is there.
const DRAINING: u8 = 1;
/// Write what is ready, then close.
const CLOSING: u8 = 2;

#[derive(Clone, Copy, Debug, Default)]
struct Connections {
    open: usize,
    /// Those that have nothing left to do while draining.
    drained: usize,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    start: OnceLock<Start>,
    start_by_hand: Start,
    frame_bytes_max: AtomicUsize,
    init: watch::Sender<InitState>,
    /// The connection that carried `init` last.
    control: Mutex<Weak<Connection>>,
    kv_next: AtomicU64,
    kv_waiting: Mutex<HashMap<u64, KvWaiting>>,
    /// The moment by which the process is to be gone, once it is to go.
    stop_at: watch::Sender<Option<Instant>>,
    phase: AtomicU8,
    connections: watch::Sender<Connections>,
    /// Who gives turns; nobody for a context without a core.
    lead: OnceLock<Arc<Lead>>,
}

#[derive(Debug)]
struct KvWaiting {
    connection_id: u64,
    answer: oneshot::Sender<Result<KvAnswer, KvError>>,
}

impl Shared {
    pub fn new(metadata: &Metadata) -> Self {
        let environment = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        Self {
            start: OnceLock::new(),
            start_by_hand: Start {
                plugin_id: match environment("TORU_PLUGIN_ID") {
                    Some(id) => Cow::Owned(id),
                    None => Cow::Owned(metadata.id.clone()),
                },
                instance_id: environment("TORU_INSTANCE_ID").unwrap_or_default(),
                data_dir: None,
                config: "{}".to_owned(),
                core_is_1_1: false,
            },
            frame_bytes_max: AtomicUsize::new(FRAME_BYTES_MAX_DEFAULT),
            init: watch::Sender::new(InitState::NotAsked),
            control: Mutex::new(Weak::new()),
            kv_next: AtomicU64::new(1),
            kv_waiting: Mutex::new(HashMap::new()),
            stop_at: watch::Sender::new(None),
            phase: AtomicU8::new(SERVING),
            connections: watch::Sender::new(Connections::default()),
            lead: OnceLock::new(),
        }
    }

    pub fn start(&self) -> &Start {
        self.start.get().unwrap_or(&self.start_by_hand)
    }

    pub fn frame_bytes_max(&self) -> usize {
        self.frame_bytes_max.load(Ordering::Relaxed)
    }

    fn lead(&self) -> &Lead {
        self.lead.get().expect("a connection has its turns from somebody")
    }

    fn enter_phase(&self, phase: u8) {
        self.phase.store(phase, Ordering::SeqCst);
        self.lead().poke_all();
    }

    pub fn control_connection(&self) -> Option<Arc<Connection>> {
        let control = lock(&self.control).upgrade();
        control.filter(|connection| connection.is_open())
    }

    /// Registers a kv request that is about to be sent on this connection.
    pub fn await_kv(self: &Arc<Self>, connection_id: u64) -> KvTicket {
        let number = self.kv_next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let waiting = KvWaiting { connection_id, answer: sender };
        lock(&self.kv_waiting).insert(number, waiting);
        KvTicket { shared: Arc::clone(self), number, request_id: format!("k{number}"), receiver }
    }

    fn answer_kv(&self, request_id: &str, reply: KvReplyMessage<'_>) {
        let number = request_id.strip_prefix('k').and_then(|number| number.parse().ok());
        let Some(waiting) = number.and_then(|number| lock(&self.kv_waiting).remove(&number)) else {
            return;
        };
        let answer = match reply.error {
            Some((code, message)) => {
                Err(KvError::Refused { code: code.into_owned(), message: message.into_owned() })
            }
            None => Ok(KvAnswer {
                value: reply.value.map(Cow::into_owned),
                keys: reply.keys.unwrap_or_default().into_iter().map(Cow::into_owned).collect(),
            }),
        };
        // Nobody waits any more if its handler was cancelled.
        let _ = waiting.answer.send(answer);
    }

    /// The connection is gone, and with it the answers that were to come on it.
    fn fail_kv(&self, connection_id: u64) {
        lock(&self.kv_waiting).retain(|_, waiting| waiting.connection_id != connection_id);
    }

    fn stop(&self, deadline: Option<Duration>) {
        let deadline = deadline.unwrap_or(STOP_DEADLINE_DEFAULT);
        // A tenth is kept for the way out. A deadline too far away to be a moment is none that matters.
        let now = Instant::now();
        let stop_at = now.checked_add(deadline - deadline / 10).unwrap_or(now + STOP_DEADLINE_MAX);
        // SIGTERM after `shutdown` says that patience has run out: the earlier moment counts.
        self.stop_at.send_if_modified(|current| {
            let is_earlier = current.is_none_or(|current| stop_at < current);
            if is_earlier {
                *current = Some(stop_at);
            }
            is_earlier
        });
    }
}

/// A kv request on its way; forgotten when dropped.
#[derive(Debug)]
pub(super) struct KvTicket {
    shared: Arc<Shared>,
    number: u64,
    request_id: String,
    receiver: oneshot::Receiver<Result<KvAnswer, KvError>>,
}

impl KvTicket {
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    pub async fn answer(&mut self) -> Result<KvAnswer, KvError> {
        (&mut self.receiver).await.unwrap_or(Err(KvError::Unavailable))
    }
}

impl Drop for KvTicket {
    fn drop(&mut self) {
        lock(&self.shared.kv_waiting).remove(&self.number);
    }
}

/// Serves one plugin on one listener.
pub(super) struct Server {
    plugin: Arc<dyn ToruPlugin>,
    shared: Arc<Shared>,
    threads: usize,
    /// Who reads in place of the connections themselves.
    readers: Option<Readers>,
}

/// Stops a [`Server`] from outside.
pub(super) struct Stopper(Arc<Shared>);

impl Stopper {
    pub fn stop(&self, deadline: Option<Duration>) {
        self.0.stop(deadline);
    }
}

impl Server {
    pub fn new(plugin: Arc<dyn ToruPlugin>, metadata: Metadata, threads: usize) -> Self {
        Self { plugin, shared: Arc::new(Shared::new(&metadata)), threads, readers: None }
    }

    #[cfg(feature = "tokio-uring")]
    pub fn with_readers(self, readers: Readers) -> Self {
        Self { readers: Some(readers), ..self }
    }

    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.shared))
    }

    /// Serves until told to stop, then until what is there is answered or the deadline has come.
    pub async fn serve(self, listener: StdUnixListener) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("failed to listen: {error}");
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let failed = |error: std::io::Error| format!("failed to start: {error}");
        let lead = Lead::new().map_err(failed)?;
        let lead = self.shared.lead.get_or_init(|| lead);
        lead.start(self.threads, &tokio::runtime::Handle::current()).map_err(failed)?;
        let mut stop_at = self.shared.stop_at.subscribe();
        let mut next_id = 0;
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let accepted = accepted.and_then(|(stream, _)| stream.into_std());
                    next_id += 1;
                    let added = accepted.and_then(|stream| self.take_connection(lead, next_id, stream));
                    if let Err(error) = added {
                        eprintln!("failed to accept a connection: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
                _ = stop_at.wait_for(Option::is_some) => break,
            }
        }
        drop(listener);
        let wind_up = self.wind_up();
        tokio::pin!(wind_up);
        loop {
            let deadline = stop_at.borrow_and_update().unwrap_or_else(Instant::now);
            tokio::select! {
                () = &mut wind_up => break,
                // What runs past the deadline is dropped with the runtime.
                () = tokio::time::sleep_until(deadline.into()) => break,
                _ = stop_at.changed() => {}
            }
        }
        lead.stop();
        Ok(())
    }

    fn take_connection(&self, lead: &Arc<Lead>, id: u64, stream: UnixStream) -> std::io::Result<()> {
        let Some(readers) = &self.readers else {
            return lead.add(id, Driver::new(self, id, stream));
        };
        // A ring's read waits in the kernel only on a socket that blocks; each write says that it does not.
        stream.set_nonblocking(false)?;
        let to_read = stream.try_clone()?;
        let mut driver = Driver::new(self, id, stream);
        let inbox = readers.inbox(driver.decoder.take_buffer(READ_BYTES));
        driver.inbox = Some(Arc::clone(&inbox));
        driver.is_lent = true;
        lead.add(id, driver)?;
        readers.read(id, to_read, inbox, Arc::clone(lead));
        Ok(())
    }

    async fn wind_up(&self) {
        let shared = &self.shared;
        let mut connections = shared.connections.subscribe();
        shared.enter_phase(DRAINING);
        let gone = "the sender is in `shared`";
        connections.wait_for(|now| now.drained >= now.open).await.expect(gone);
        // Connections are still open: the plugin may want to store something.
        let ctx = PluginContext::new(Arc::clone(shared), Weak::new());
        let mut goodbye = self.plugin.shutdown(&ctx);
        if let Err(panic) = guarded(goodbye.as_mut()).await {
            ctx.log.error(format!("shutdown panicked: {}", panic_text(&*panic)));
        }
        drop(goodbye);
        shared.enter_phase(CLOSING);
        connections.wait_for(|now| now.open == 0).await.expect(gone);
    }
}

/// The part of a connection that handlers' tasks reach.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    stream: UnixStream,
    is_read_elsewhere: bool,
    state: Mutex<State>,
    /// Less than [`UNWRITTEN_BYTES_MAX`] is unwritten again.
    room: Notify,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct State {
    open: bool,
    framing: Framing,
    /// Frames to be written.
    out: Outbox,
    /// Handlers with tasks of their own, which `cancel` can find.
    tasks: HashMap<String, AbortHandle>,
    /// Those that answer kv requests, whose ids are apart from the others'.
    kv_tasks: HashMap<String, AbortHandle>,
    in_flight: usize,
    /// Handlers that were woken, by their number.
    woken: VecDeque<u64>,
    /// It is in a turn, or will be given one: what is appended now gets written.
    is_due: bool,
    /// It wants a turn when a handler is done, written or not.
    counts_handlers: bool,
    logs_lost: u64,
    /// The last timestamp and the millisecond that it is of: requests come faster than milliseconds pass.
    timestamp: (u64, String),
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

impl State {
    /// Lets `encode` append a frame of about so many bytes, made now.
    fn append<R>(&mut self, frame_bytes: usize, encode: impl FnOnce(&mut Vec<u8>, Framing, &str) -> R) -> R {
        self.append_at(since_1970(), frame_bytes, encode)
    }

    /// The same for a frame made at a known moment.
    fn append_at<R>(
        &mut self,
        since_1970: Duration,
        frame_bytes: usize,
        encode: impl FnOnce(&mut Vec<u8>, Framing, &str) -> R,
    ) -> R {
        let unix_ms = since_1970.as_millis() as u64;
        if self.timestamp.0 != unix_ms {
            self.timestamp = (unix_ms, as_str(&rfc3339_millis(unix_ms)).to_owned());
        }
        let (framing, timestamp) = (self.framing, &*self.timestamp.1);
        self.out.append(frame_bytes, |out| encode(out, framing, timestamp))
    }

    fn unwritten(&self) -> usize {
        self.out.unwritten()
    }
}

impl Connection {
    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    pub fn is_open(&self) -> bool {
        lock(&self.state).open
    }

    /// Whether somebody else than its turns reads it.
    pub fn is_read_elsewhere(&self) -> bool {
        self.is_read_elsewhere
    }

    /// Appends a frame, to be written soon.
    pub fn send<R>(&self, encode: impl FnOnce(&mut Vec<u8>, Framing, &str) -> R) -> R {
        let mut state = lock(&self.state);
        let result = state.append(SMALL_FRAME_BYTES, encode);
        self.ask_for_turn(state);
        result
    }

    fn ask_for_turn(&self, mut state: MutexGuard<'_, State>) {
        if !std::mem::replace(&mut state.is_due, true) {
            drop(state);
            self.shared.lead().poke(self.id);
        }
    }

    /// Appends a log frame, unless the core is far behind with reading.
    pub fn send_log(&self, encode: impl FnOnce(&mut Vec<u8>, Framing, &str) -> Result<(), FrameError>) {
        let mut state = lock(&self.state);
        if state.unwritten() > UNWRITTEN_BYTES_MAX_FOR_LOGS {
            state.logs_lost += 1;
            return;
        }
        let lost = std::mem::take(&mut state.logs_lost);
        if lost > 0 {
            let message = format!("{lost} log lines were lost: the core did not read them in time");
            state
                .append(SMALL_FRAME_BYTES, |out, framing, timestamp| {
                    encode_log(out, framing, timestamp, "warn", &message, "", usize::MAX)
                })
                .expect("a short line");
        }
        // Not even cut it fits only where the limit is absurdly small.
        if state.append(SMALL_FRAME_BYTES, encode).is_err() {
            state.logs_lost += 1;
        }
        self.ask_for_turn(state);
    }

    /// Until there is room for another answer.
    async fn room(&self) {
        loop {
            // Made before the look, so that it hears of room that comes after it.
            let room = self.room.notified();
            if lock(&self.state).unwritten() < UNWRITTEN_BYTES_MAX {
                return;
            }
            room.await;
        }
    }

    /// Writes what the socket takes now.
    fn flush(&self, state: &mut State) -> Result<(), Errno> {
        let is_full = state.unwritten() >= UNWRITTEN_BYTES_MAX;
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = state.out.write(|pieces| match pieces {
            [piece] => retry_on_intr(|| rustix::net::send(&self.stream, piece, flags)),
            _ => retry_on_intr(|| sendmsg(&self.stream, pieces, &mut SendAncillaryBuffer::default(), flags)),
        });
        match sent {
            Ok(()) | Err(Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
        if is_full && state.unwritten() < UNWRITTEN_BYTES_MAX {
            self.room.notify_waiters();
        }
        Ok(())
    }

    /// Appends the answer to a request, whatever came of it at this moment; gives the bytes that are unwritten then.
    fn respond(
        &self,
        ctx: &PluginContext,
        ids: Ids<'_>,
        outcome: Result<PluginResult<HttpResponse>, Panic>,
        since_1970: Duration,
        frame_bytes_max: usize,
    ) -> usize {
        let (response, complaint) = match outcome {
            Ok(Ok(response)) => match fault_of(&response) {
                None => (response, None),
                Some(fault) => (
                    HttpResponse::problem(500, "the plugin made a bad response", ids.known_id),
                    Some(fault.to_owned()),
                ),
            },
            Ok(Err(error)) => error.into_response(ids.known_id),
            Err(panic) => (
                HttpResponse::problem(500, "the plugin failed to handle the request", ids.known_id),
                Some(format!("panicked: {}", panic_text(&*panic))),
            ),
        };
        let append = |response: &HttpResponse| {
            let mut state = lock(&self.state);
            let frame_bytes = SMALL_FRAME_BYTES + response.body.len();
            let encoded = state.append_at(since_1970, frame_bytes, |out, framing, timestamp| {
                let start = ResponseStart { request_id: ids.request_id, timestamp, status: response.status };
                let headers = response.headers.iter().map(|(name, value)| (&**name, &**value));
                encode_http_response(out, framing, &start, headers, &response.body, frame_bytes_max)
            });
            let unwritten = state.unwritten();
            self.ask_for_turn(state);
            (unwritten, encoded)
        };
        let (mut unwritten, encoded) = append(&response);
        let complaint = complaint.or_else(|| {
            let error = encoded.err()?;
            let detail = "the plugin made a response larger than a message can be";
            (unwritten, _) = append(&HttpResponse::problem(500, detail, ids.known_id));
            Some(format!("made too large a response: {error}"))
        });
        response.leave_buffers();
        if let Some(complaint) = complaint {
            ctx.log
                .with(serde_json::json!({ "request_id": ids.known_id }))
                .error(format!("a request handler {complaint}"));
        }
        unwritten
    }

    /// Appends the answer to a kv request, whatever came of it.
    fn respond_kv(
        &self,
        ctx: &PluginContext,
        request_id: &str,
        outcome: Result<PluginResult<KvResponse>, Panic>,
        frame_bytes_max: usize,
    ) {
        let (answer, complaint) = match outcome {
            Ok(Ok(response)) => (Ok(response), None),
            Ok(Err(error)) => {
                let (code, message, complaint) = error.into_kv_error();
                (Err((code, message)), complaint)
            }
            Err(panic) => (
                Err(("failed", "the plugin failed to handle the request".into())),
                Some(format!("panicked: {}", panic_text(&*panic))),
            ),
        };
        let reply = match &answer {
            Ok(response) => response.as_reply(),
            Err((code, message)) => KvReply::Error { code, message },
        };
        let encoded = self.send(|out, framing, timestamp| {
            encode_kv_reply(out, framing, timestamp, request_id, &reply, frame_bytes_max).or_else(|_| {
                let message = "the answer does not fit into a message";
                let reply = KvReply::Error { code: "too_large", message };
                encode_kv_reply(out, framing, timestamp, request_id, &reply, frame_bytes_max)
            })
        });
        // Only an id as long as a frame leaves no room for the error.
        let complaint = complaint.or_else(|| encoded.err().map(|error| format!("has no answer: {error}")));
        if let Some(complaint) = complaint {
            ctx.log
                .with(serde_json::json!({ "request_id": request_id }))
                .error(format!("the kv handler {complaint}"));
        }
    }
}

/// [`Ids`] of their own, in one allocation, for a request that outlives its frame.
struct RequestIds {
    both: String,
    /// How much of it is the first.
    request_id_bytes: usize,
}

impl RequestIds {
    fn new(ids: Ids<'_>) -> Self {
        Self { both: [ids.request_id, ids.known_id].concat(), request_id_bytes: ids.request_id.len() }
    }

    fn get(&self) -> Ids<'_> {
        let (request_id, known_id) = self.both.split_at(self.request_id_bytes);
        Ids { request_id, known_id }
    }
}

/// Why the core would refuse to pass this on.
fn fault_of(response: &HttpResponse) -> Option<&'static str> {
    if !(200..=599).contains(&response.status) {
        return Some("made a response whose status is not from 200 to 599");
    }
    for (name, value) in &response.headers {
        if !is_token(name) {
            return Some("made a response with a header name that is not a token");
        }
        if !is_field_value(value) {
            return Some("made a response with CR, LF, NUL or another control character in a header value");
        }
    }
    None
}

/// Whether the other side has closed both ways, so that no answer can reach it.
fn has_hung_up(stream: &UnixStream) -> bool {
    let mut poll = [PollFd::new(stream, PollFlags::empty())];
    let now = Timespec::default();
    rustix::event::poll(&mut poll, Some(&now)).is_ok() && poll[0].revents().contains(PollFlags::HUP)
}

type Panic = Box<dyn Any + Send>;

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no reason given"
    }
}

/// Polls once; a panic is a result like any other.
///
/// What the future left behind is only dropped afterwards, never used.
fn poll_guarded<T>(
    future: Pin<&mut (dyn Future<Output = T> + Send + '_)>,
    task: &mut Context<'_>,
) -> Poll<Result<T, Panic>> {
    match catch_unwind(AssertUnwindSafe(|| future.poll(task))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    }
}

async fn guarded<T>(mut future: Pin<&mut (dyn Future<Output = T> + Send + '_)>) -> Result<T, Panic> {
    std::future::poll_fn(|task| poll_guarded(future.as_mut(), task)).await
}

/// One handler less when dropped, also by `cancel`.
struct InFlight(Arc<Connection>);

impl InFlight {
    fn new(connection: &Arc<Connection>) -> Self {
        lock(&connection.state).in_flight += 1;
        Self(Arc::clone(connection))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.in_flight -= 1;
        if state.counts_handlers {
            self.0.ask_for_turn(state);
        }
    }
}

/// A handler that waits for something.
struct Waiting {
    future: HandlerFuture,
    ids: RequestIds,
    waker: Waker,
    wake: Arc<WakeHandler>,
    _in_flight: InFlight,
}

/// Has a handler polled in a turn of its connection.
struct WakeHandler {
    connection: Weak<Connection>,
    number: u64,
    is_woken: AtomicBool,
}

impl Wake for WakeHandler {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.is_woken.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(connection) = self.connection.upgrade() {
            let mut state = lock(&connection.state);
            state.woken.push_back(self.number);
            connection.ask_for_turn(state);
        }
    }
}

/// What handlers of a connection are called on and with: both are held for a request by one count.
struct Served {
    plugin: Arc<dyn ToruPlugin>,
    ctx: PluginContext,
}

/// What only a thread that gives the connection its turn has.
pub(super) struct Driver {
    served: Arc<Served>,
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    decoder: Decoder,
    waiting: HashMap<u64, Waiting>,
    /// Handlers that waited so far.
    waited: u64,
    /// Requests that get tasks at once, after one was slow.
    tasks_first: u32,
    is_drained: bool,
    /// There may be more to read.
    may_read: bool,
    /// Frames are left in the decoder, because too much waited to be written.
    has_frames: bool,
    /// The other side writes nothing more.
    is_end: bool,
    /// What the socket did not take is waited for.
    awaits_room: bool,
    /// Where bytes come from if not from the socket.
    inbox: Option<Arc<Inbox>>,
    /// The decoder's buffer is there.
    is_lent: bool,
    /// `init` has succeeded, which holds for good.
    is_started: bool,
    /// For what is unescaped of a request.
    room: String,
    /// The time of day, asked for once a turn; what handlers take is added.
    since_1970: Duration,
}

impl Driver {
    fn new(server: &Server, id: u64, stream: UnixStream) -> Self {
        let connection = Arc::new(Connection {
            id,
            stream,
            is_read_elsewhere: server.readers.is_some(),
            state: Mutex::new(State {
                open: true,
                framing: Framing::Length,
                out: Outbox::default(),
                tasks: HashMap::new(),
                kv_tasks: HashMap::new(),
                in_flight: 0,
                woken: VecDeque::new(),
                is_due: false,
                counts_handlers: false,
                logs_lost: 0,
                timestamp: (u64::MAX, String::new()),
            }),
            room: Notify::new(),
            shared: Arc::clone(&server.shared),
        });
        let shared = Arc::clone(&server.shared);
        shared.connections.send_modify(|connections| connections.open += 1);
        let link = Arc::downgrade(&connection);
        Self {
            served: Arc::new(Served {
                plugin: Arc::clone(&server.plugin),
                ctx: PluginContext::new(Arc::clone(&shared), link),
            }),
            decoder: Decoder::detecting(shared.frame_bytes_max()),
            shared,
            connection,
            waiting: HashMap::new(),
            waited: 0,
            tasks_first: 0,
            is_drained: false,
            may_read: false,
            has_frames: false,
            is_end: false,
            awaits_room: false,
            inbox: None,
            is_lent: false,
            is_started: false,
            room: String::new(),
            since_1970: since_1970(),
        }
    }

    pub fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    /// After the last turn.
    pub fn close(&mut self) {
        self.set_drained(false);
        let (tasks, kv_tasks) = {
            let mut state = lock(&self.connection.state);
            state.open = false;
            (std::mem::take(&mut state.tasks), std::mem::take(&mut state.kv_tasks))
        };
        // Nobody is left to hear their answers.
        self.waiting.clear();
        for task in tasks.into_values().chain(kv_tasks.into_values()) {
            task.abort();
        }
        self.shared.fail_kv(self.connection.id);
        if let Some(inbox) = &self.inbox {
            inbox.close();
        }
        // A handler that cannot be aborted keeps the descriptor.
        let _ = self.connection.stream.shutdown(Shutdown::Both);
        self.shared.connections.send_modify(|connections| connections.open -= 1);
    }

    /// Reads, handles and writes what there is; gives whether there is more to come.
    pub fn take_turn(&mut self, is_readable: bool, has_closed: bool) -> bool {
        self.may_read |= is_readable || self.inbox.is_some();
        match self.exchange(has_closed) {
            Ok(goes_on) => goes_on,
            Err(reason) => {
                eprintln!("closing a connection to the core: {reason}");
                false
            }
        }
    }

    /// Errors: what the core sent is not the protocol. That it went away is no error.
    fn exchange(&mut self, has_closed: bool) -> Result<bool, String> {
        let connection = Arc::clone(&self.connection);
        let mut unwritten = {
            let mut state = lock(&connection.state);
            state.is_due = true;
            state.unwritten()
        };
        for _ in 0..READS_A_TURN {
            let has_input = self.has_frames || self.may_read && !self.is_end;
            if !has_input || unwritten >= UNWRITTEN_BYTES_MAX {
                break;
            }
            if !self.has_frames {
                match self.read() {
                    // What comes later is an event, but for a close before that.
                    Ok((1.., is_full)) => self.may_read = is_full || has_closed,
                    // The other side may have closed for writing only, and wait for answers.
                    Ok((0, _)) => {
                        self.is_end = true;
                        continue;
                    }
                    Err(Errno::AGAIN) => {
                        self.may_read = false;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(_) => return Ok(false),
                }
            }
            let handled = self.handle_frames();
            if handled.is_err() {
                // What was answered before the mistake is theirs.
                let _ = connection.flush(&mut lock(&connection.state));
            }
            handled?;
            unwritten = lock(&connection.state).unwritten();
        }
        self.poll_woken();
        let phase = self.shared.phase.load(Ordering::SeqCst);
        let (in_flight, is_woken);
        {
            let mut state = lock(&connection.state);
            // From here on, what is appended asks for a turn.
            state.is_due = false;
            if connection.flush(&mut state).is_err() {
                return Ok(false);
            }
            (in_flight, unwritten) = (state.in_flight, state.unwritten());
            is_woken = !state.woken.is_empty();
            state.counts_handlers = self.is_end || phase != SERVING;
        }
        let is_done = in_flight == 0 && unwritten == 0 && !self.has_frames;
        if self.is_end && (is_done || has_hung_up(&connection.stream)) {
            return Ok(false);
        }
        if phase == DRAINING {
            // Asked of the kernel: what is known here may be older than the last bytes.
            let unread = rustix::io::ioctl_fionread(&connection.stream).unwrap_or(0);
            let is_busy = in_flight > 0 || unwritten > 0 || self.decoder.is_mid_frame();
            let is_settled = || self.inbox.as_ref().is_none_or(|inbox| inbox.is_settled());
            let has_all = self.is_end || unread == 0 && is_settled();
            self.set_drained(!is_busy && has_all);
        }
        if phase == CLOSING && unwritten == 0 {
            return Ok(false);
        }
        if self.awaits_room != (unwritten > 0) {
            self.awaits_room = unwritten > 0;
            self.shared.lead().watch_room(connection.id, &connection, self.awaits_room);
        }
        let has_input = self.has_frames || self.may_read && !self.is_end;
        if (is_woken || has_input) && unwritten < UNWRITTEN_BYTES_MAX {
            self.shared.lead().again(connection.id);
        }
        if let Some(inbox) = &self.inbox
            && !self.is_lent
            && !self.is_end
            && !has_input
        {
            self.is_lent = true;
            inbox.lend(self.decoder.take_buffer(READ_BYTES));
        }
        Ok(true)
    }

    /// Lets the decoder have what has come: how much, 0 at the end, and whether it filled the room there was.
    fn read(&mut self) -> Result<(usize, bool), Errno> {
        if let Some(inbox) = &self.inbox {
            let (read, buffer) = inbox.take().ok_or(Errno::AGAIN)?;
            self.decoder.restore_buffer(buffer);
            self.is_lent = false;
            let count = read.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            return Ok((count, false));
        }
        let mut buffer = self.decoder.take_buffer(READ_BYTES);
        let room = buffer.capacity() - buffer.len();
        let read = rustix::io::read(&self.connection.stream, spare_capacity(&mut buffer));
        self.decoder.restore_buffer(buffer);
        read.map(|count| (count, count == room))
    }

    fn set_drained(&mut self, is_drained: bool) {
        if self.is_drained != is_drained {
            self.is_drained = is_drained;
            self.shared.connections.send_modify(|connections| match is_drained {
                true => connections.drained += 1,
                false => connections.drained -= 1,
            });
        }
    }

    /// Handles the frames that are there, until too much waits to be written: small requests may have large answers.
    fn handle_frames(&mut self) -> Result<(), String> {
        self.has_frames = false;
        // The decoder steps aside, since a frame borrows it while the rest of `self` handles the frame.
        let mut decoder = std::mem::replace(&mut self.decoder, Decoder::detecting(0));
        let mut result = Ok(());
        if let Some(framing) = decoder.framing() {
            lock(&self.connection.state).framing = framing;
        }
        let mut handler = None;
        self.since_1970 = since_1970();
        loop {
            decoder.set_frame_bytes_max(self.shared.frame_bytes_max());
            let frame = match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => &*frame,
                Err(error) => {
                    result = Err(error.to_string());
                    break;
                }
            };
            let unwritten = if let Some((request, ids)) = HttpRequest::read(frame, &mut self.room) {
                self.handle_request(request, ids, &mut handler, handle)
            } else {
                match CoreMessage::read_general(frame) {
                    Ok(CoreMessage::Http { request_id, request }) => {
                        let request = HttpRequest::from_message(request_id.into_owned(), request);
                        let ids = RequestIds::new(Ids {
                            request_id: &request.request_id,
                            known_id: request.known_id(),
                        });
                        self.handle_request(request, ids.get(), &mut handler, handle)
                    }
                    Ok(message) => {
                        self.handle_message(message);
                        lock(&self.connection.state).unwritten()
                    }
                    Err(error) => {
                        result = Err(error.to_string());
                        break;
                    }
                }
            };
            if unwritten >= UNWRITTEN_BYTES_MAX {
                self.has_frames = true;
                break;
            }
        }
        if self.room.capacity() > ROOM_BYTES_KEPT {
            self.room = String::new();
        }
        self.decoder = decoder;
        result
    }

    fn handle_message(&mut self, message: CoreMessage<'_>) {
        let connection = &self.connection;
        match message {
            CoreMessage::Http { .. } => unreachable!("a request is handled before"),
            CoreMessage::Ping { seq } => {
                // When the connection of `init` is lost, the core goes on with another, which shows here.
                // A ping without a number is a person's, who may be gone after it.
                if seq.is_some() || self.shared.control_connection().is_none() {
                    *lock(&self.shared.control) = Arc::downgrade(connection);
                }
                lock(&connection.state).append(SMALL_FRAME_BYTES, |out, framing, timestamp| {
                    encode_pong(out, framing, timestamp, seq);
                });
            }
            CoreMessage::KvReply { request_id, reply } => self.shared.answer_kv(&request_id, reply),
            CoreMessage::KvRequest { request_id, request } => {
                self.handle_kv_request(request_id.into_owned(), request);
            }
            CoreMessage::Cancel { request_id } => {
                let task = lock(&connection.state).tasks.remove(&*request_id);
                match task {
                    Some(task) => task.abort(),
                    None => self.waiting.retain(|_, waiting| waiting.ids.get().request_id != request_id),
                }
            }
            CoreMessage::Init(init) => self.handle_init(init),
            CoreMessage::Shutdown { deadline_ms } => {
                self.shared.stop(deadline_ms.map(Duration::from_millis));
            }
            CoreMessage::Unknown => {}
        }
    }

    /// Starts `init` the first time, and answers each time with what came of it.
    ///
    /// A core of 1.0 takes no answer to it; a person, who writes lines, likes to see one.
    fn handle_init(&mut self, message: InitMessage<'_>) {
        let is_answered =
            message.protocol.is_some() || lock(&self.connection.state).framing == Framing::Lines;
        let shared = &self.shared;
        let by_hand = &shared.start_by_hand;
        let start = Start {
            plugin_id: match message.plugin_id {
                Some(id) => Cow::Owned(id.into_owned()),
                None => by_hand.plugin_id.clone(),
            },
            instance_id: match message.instance_id {
                Some(id) => id.into_owned(),
                None => by_hand.instance_id.clone(),
            },
            data_dir: message.data_dir.map(|path| PathBuf::from(path.into_owned())),
            config: message.config.unwrap_or("{}").to_owned(),
            core_is_1_1: message
                .protocol
                .is_some_and(|version| version.strip_prefix("1.").is_some_and(|minor| minor != "0")),
        };
        if let Some(bytes) = message.max_message_bytes {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).clamp(1, FRAME_BYTES_MAX_LIMIT);
            shared.frame_bytes_max.store(bytes, Ordering::Relaxed);
        }
        *lock(&shared.control) = Arc::downgrade(&self.connection);
        if shared.start.set(start).is_ok() {
            shared.init.send_replace(InitState::Running);
            let served = Arc::clone(&self.served);
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let mut init = served.plugin.init(&served.ctx);
                let state = match guarded(init.as_mut()).await {
                    Ok(Ok(())) => InitState::Ready,
                    Ok(Err(error)) => InitState::Failed(error.to_string().into()),
                    Err(panic) => InitState::Failed(format!("panicked: {}", panic_text(&*panic)).into()),
                };
                shared.init.send_replace(state);
            });
        }
        if !is_answered {
            return;
        }
        let mut init = shared.init.subscribe();
        let in_flight = self.in_flight();
        tokio::spawn(async move {
            let connection = &in_flight.0;
            let Ok(state) = init.wait_for(|state| !matches!(state, InitState::Running)).await else {
                return;
            };
            connection.send(|out, framing, timestamp| match &*state {
                InitState::Failed(error) => encode_failed(out, framing, timestamp, error),
                _ => encode_ready(out, framing, timestamp),
            });
        });
    }

    fn in_flight(&self) -> InFlight {
        InFlight::new(&self.connection)
    }

    /// Polls the request's handler once, or gives it a task; gives the bytes that are unwritten then.
    ///
    /// `place` is where handlers are that are done with their first poll: one allocation for all of them.
    fn handle_request<F>(
        &mut self,
        request: HttpRequest,
        ids: Ids<'_>,
        place: &mut Option<Pin<Box<F>>>,
        handle: impl FnOnce(Arc<Served>, Option<InitReceiver>, HttpRequest) -> F,
    ) -> usize
    where
        F: Future<Output = PluginResult<HttpResponse>> + Send + 'static,
    {
        let mut init = None;
        if !self.is_started {
            let state = self.shared.init.borrow();
            self.is_started = matches!(&*state, InitState::Ready);
            if matches!(&*state, InitState::Running | InitState::Failed(_)) {
                init = Some(self.shared.init.subscribe());
            }
        }
        let future = handle(Arc::clone(&self.served), init, request);
        if self.tasks_first > 0 {
            self.tasks_first -= 1;
            return self.spawn_handler(Box::pin(future), RequestIds::new(ids));
        }
        let handler = match place {
            Some(done) => {
                done.set(future);
                done
            }
            None => place.insert(Box::pin(future)),
        };
        // A future must take the waker of its latest poll, so a first poll that wakes nobody
        // is made good by the second, which is made in any case.
        match self.poll_handler(handler.as_mut(), Waker::noop()) {
            Poll::Ready(outcome) => self.respond(ids, outcome),
            Poll::Pending => {
                self.waited += 1;
                let number = self.waited;
                let wake = Arc::new(WakeHandler {
                    connection: Arc::downgrade(&self.connection),
                    number,
                    is_woken: AtomicBool::new(true),
                });
                let waker = Waker::from(Arc::clone(&wake));
                let _in_flight = self.in_flight();
                if let Some(future) = place.take() {
                    let ids = RequestIds::new(ids);
                    self.waiting.insert(number, Waiting { future, ids, waker, wake, _in_flight });
                }
                let mut state = lock(&self.connection.state);
                state.woken.push_back(number);
                state.unwritten()
            }
        }
    }

    /// Answers a request whose handler was polled last; gives the bytes that are unwritten then.
    fn respond(&mut self, ids: Ids<'_>, outcome: Result<PluginResult<HttpResponse>, Panic>) -> usize {
        let frame_bytes_max = self.shared.frame_bytes_max();
        self.connection.respond(&self.served.ctx, ids, outcome, self.since_1970, frame_bytes_max)
    }

    fn poll_handler(
        &mut self,
        future: Pin<&mut (dyn Future<Output = PluginResult<HttpResponse>> + Send + '_)>,
        waker: &Waker,
    ) -> Poll<Result<PluginResult<HttpResponse>, Panic>> {
        self.shared.lead().be_watched();
        let began = Instant::now();
        let polled = poll_guarded(future, &mut Context::from_waker(waker));
        let took = began.elapsed();
        self.since_1970 += took;
        if took > SLOW_POLL {
            self.tasks_first = TASKS_AFTER_SLOW;
        }
        polled
    }

    /// Polls the handlers that have been woken, each once, as long as there is room for answers.
    fn poll_woken(&mut self) {
        let count = lock(&self.connection.state).woken.len();
        if count > 0 {
            self.since_1970 = since_1970();
        }
        for _ in 0..count {
            let number = {
                let mut state = lock(&self.connection.state);
                // They stay woken.
                if state.unwritten() >= UNWRITTEN_BYTES_MAX {
                    break;
                }
                state.woken.pop_front()
            };
            let Some(number) = number else { break };
            // It may have been cancelled.
            let Some(mut waiting) = self.waiting.remove(&number) else { continue };
            waiting.wake.is_woken.store(false, Ordering::SeqCst);
            match self.poll_handler(waiting.future.as_mut(), &waiting.waker) {
                Poll::Pending => {
                    self.waiting.insert(number, waiting);
                }
                Poll::Ready(outcome) => {
                    self.respond(waiting.ids.get(), outcome);
                }
            }
        }
    }

    /// Gives the bytes that are unwritten.
    fn spawn_handler(&self, mut future: HandlerFuture, ids: RequestIds) -> usize {
        let frame_bytes_max = self.shared.frame_bytes_max();
        let in_flight = self.in_flight();
        let served = Arc::clone(&self.served);
        let key = ids.get().request_id.to_owned();
        // Held over the spawn, so that a handler that ends at once finds itself in the table.
        let mut state = lock(&self.connection.state);
        let task = tokio::spawn(async move {
            let connection = &in_flight.0;
            connection.room().await;
            let outcome = guarded(future.as_mut()).await;
            lock(&connection.state).tasks.remove(ids.get().request_id);
            connection.respond(&served.ctx, ids.get(), outcome, since_1970(), frame_bytes_max);
        });
        state.tasks.insert(key, task.abort_handle());
        state.unwritten()
    }

    fn handle_kv_request(&mut self, request_id: String, request: Result<KvRequestMessage<'_>, BadKvRequest>) {
        let frame_bytes_max = self.shared.frame_bytes_max();
        let request = match request {
            Ok(request) => KvRequest::from_message(request),
            Err(bad) => {
                let outcome = Ok(Err(PluginError::status(400, bad.to_string())));
                return self.connection.respond_kv(&self.served.ctx, &request_id, outcome, frame_bytes_max);
            }
        };
        let served = Arc::clone(&self.served);
        let init = self.shared.init.subscribe();
        let in_flight = self.in_flight();
        let key = request_id.clone();
        // Held over the spawn, for the reason given in `spawn_handler`.
        let mut state = lock(&self.connection.state);
        let task = tokio::spawn(async move {
            let of_handler = Arc::clone(&served);
            let mut future: Pin<Box<dyn Future<Output = PluginResult<KvResponse>> + Send>> =
                Box::pin(async move {
                    wait_for_init(init).await?;
                    of_handler.plugin.handle_kv(request, &of_handler.ctx).await
                });
            let outcome = guarded(future.as_mut()).await;
            let connection = &in_flight.0;
            lock(&connection.state).kv_tasks.remove(&request_id);
            connection.respond_kv(&served.ctx, &request_id, outcome, frame_bytes_max);
        });
        state.kv_tasks.insert(key, task.abort_handle());
    }
}

type InitReceiver = watch::Receiver<InitState>;

/// With `init`, waits for its end first.
// An `async fn` would have room for each argument twice, and move the request from the one to the other.
#[expect(clippy::manual_async_fn)]
fn handle(
    served: Arc<Served>,
    init: Option<InitReceiver>,
    request: HttpRequest,
) -> impl Future<Output = PluginResult<HttpResponse>> {
    async move {
        if let Some(init) = init {
            // Apart, so that those that need not wait have no room for it.
            Box::pin(wait_for_init(init)).await?;
        }
        served.plugin.handle_http(request, &served.ctx).await
    }
}

/// A 1.0 core does not wait for `ready`, so its first requests wait here.
///
/// Errors: 503, `init` has failed.
async fn wait_for_init(mut init: InitReceiver) -> PluginResult<()> {
    let has_failed = match init.wait_for(|state| !matches!(state, InitState::Running)).await {
        Ok(state) => matches!(&*state, InitState::Failed(_)),
        Err(_) => true,
    };
    if has_failed {
        return Err(PluginError::status(503, "the plugin failed to start"));
    }
    Ok(())
}
