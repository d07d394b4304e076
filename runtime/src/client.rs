//! Drives one client connection: bytes into `toru_http::Connection`, events out of it, requests to plugins, answers back.
//!
//! While a request is with its plugin the socket is read on: a client that resets the connection is noticed at once, one
//! that closes it after a moment in which it may only have closed its sending side; its place is freed and the plugin is
//! told. One request is answered at a time, so an answer in pieces needs no more than one
//! buffer.

use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use monoio::buf::IoBuf as _;
use monoio::io::{AsyncWriteRent, AsyncWriteRentExt};
use toru_http::{Connection, Event, Length, Phase as HttpPhase, RequestHead, Response, ResponseHead};
use toru_plugin_api::from_core::{HttpRequestFrame, RequestStart};

use crate::answer::{Failure, LocalAnswer, add_field};
use crate::api;
use crate::arrivals::{Presence, READ_BYTES_MAX};
use crate::config::Access;
use crate::driver::{Pace, waiting};
use crate::files::{self, Ask};
use crate::forward::{Own, usable_request_id};
use crate::history;
use crate::route::{Destination, route};
use crate::timers;
use crate::work::{ExchangeGuard, Flight, Otherwise, Progress, Recipient, Request, Words, Work, Working};
use crate::worker::{ClientEntry, ClientSlot, ClientStream, Peer, Target, Worker};

/// Read at a time; most heads fit.
const READ_BYTES: usize = 2 * 1024;
/// The same while content comes.
const READ_BYTES_LARGE: usize = READ_BYTES_MAX;
/// How long, and how much, a closing connection still takes of what the client sends: a close with unread bytes resets
/// the connection, and the client may lose its last answer (RFC 9112 section 9.6). Many read it only when all that they
/// have to send is out, so this is as much as a fast one sends in that time.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The status under which a request is logged whose client went before there was one, as nginx has it.
const CLIENT_GONE: u16 = 499;

/// What to note when the answer is complete, or the client has gone.
struct Account {
    target: Option<Rc<Target>>,
    words: Words,
    started: Instant,
    status: u16,
    /// The plugin could be asked: how long it takes is its latency.
    runs: bool,
}

/// Serves a client until it or the server has had enough.
pub async fn serve<S: ClientStream>(
    worker: Rc<Worker>,
    mut stream: S,
    peer: Peer,
    slot: Rc<ClientSlot>,
    entry: ClientEntry,
) {
    let mut connection = Connection::new(worker.http_limits());
    // Dropped before the socket, so that the sweep never shuts down a descriptor that is somebody else's by then.
    let _entry = entry;
    let mut working: Option<Working> = None;
    let mut pace = Pace::default();
    let mut request: Option<Request> = None;
    let mut account: Option<Account> = None;
    // When a client that has closed its sending side is taken for gone. It may still read (RFC 9112 section 9.6), but most
    // have closed both sides, and only a write could tell.
    let mut gone_at: Option<Instant> = None;
    // More of an answer follows at once.
    let mut steady = false;
    // The client has closed its sending side, and all before that was read.
    let mut ended = false;
    // The time of the last look at the clock, while it is as good as now.
    let mut looked: Option<Instant> = None;
    // Since when the connection is in its phase. A new request is news even where the phase looks the same afterwards,
    // as it does for one that is refused at its head: `Closing` is no phase that is waited in.
    let mut phase = (HttpPhase::Closing, Instant::now());
    'client: loop {
        // What is answered goes out before the next request is begun: a client that does not read has one answer waiting, and
        // no place with a plugin.
        match flush(&worker, &mut connection, &mut stream, &slot, &mut looked).await {
            Ok(true) => gone_at = another_moment(&worker, gone_at),
            Ok(false) => {}
            Err(_) => break,
        }
        // Take in what has come, as far as it goes.
        let answer_due = loop {
            // A request was refused, and who was meant by it.
            let mut refused = None;
            match connection.poll_event() {
                Event::NeedInput => break false,
                Event::Head(head) => match begin(&worker, &head, &peer) {
                    Ok(begun) => {
                        phase.0 = HttpPhase::Closing;
                        slot.body.set(head.has_content().then_some((begun.started, 0)));
                        request = Some(begun);
                        connection.send_continue();
                    }
                    Err((failure, mut words, target)) => {
                        phase.0 = HttpPhase::Closing;
                        // Its content is dropped, and may take no longer for that.
                        slot.body.set(head.has_content().then(|| (Instant::now(), 0)));
                        if let Some(target) = &target {
                            let status = failure.status();
                            if status >= 500 {
                                count_answer(&worker, target, status);
                            }
                            words.add(head.method, &plugin_path(&head, peer.trusted));
                            note(&worker, target, &words, status, Duration::ZERO);
                        }
                        respond(&worker, &mut connection, failure.to_answer(words.id()), words.id());
                        worker.spare.keep(words.into_buffer());
                        refused = Some(target);
                    }
                },
                Event::Body(piece) => {
                    if let Some(request) = &mut request {
                        count_content(&slot, piece.len());
                        request.body.extend_from_slice(piece);
                    }
                }
                Event::End => {
                    // It stays in its place until it is sent: to move it is to copy it, and a second place, kept over the
                    // await, would be room in each connection's task.
                    if let Some(whole) = &mut request {
                        if slot.body.get().is_some() {
                            // How long its content took says nothing of who answers.
                            whole.started = Instant::now();
                        }
                        let (target, runs) = match &whole.to {
                            Recipient::Plugin { target, .. }
                            | Recipient::File { otherwise: Otherwise::Plugin { target, .. }, .. } => {
                                (Some(target.clone()), true)
                            }
                            Recipient::File { otherwise: Otherwise::Nobody { target, .. }, .. } => {
                                (target.clone(), false)
                            }
                            Recipient::Core { .. } => (None, false),
                        };
                        let line = target.as_ref().map_or(&worker.line, |target| &target.line);
                        worker.turns.take(line).await;
                        account = Some(Account {
                            target,
                            runs,
                            words: std::mem::take(&mut whole.words),
                            started: whole.started,
                            status: 0,
                        });
                    }
                    if let Some(whole) = request.take() {
                        working = Some(Working::begin(&worker, Work::Launch(whole)));
                    }
                }
                Event::ResponseDue => break true,
                Event::Failed(error) => {
                    request = None;
                    if connection.can_respond() {
                        let request_id = fresh_id(&worker);
                        let failure =
                            Failure::Malformed { status: error.status(), detail: error.to_string() };
                        respond(&worker, &mut connection, failure.to_answer(&request_id), &request_id);
                    } else {
                        connection.abort_response();
                    }
                }
                Event::Closed => {
                    // The error of a client that has gone is told once, here: nothing that comes later would see it.
                    if flush(&worker, &mut connection, &mut stream, &slot, &mut None).await.is_ok() {
                        if ended {
                            // It waits for nothing but this.
                            slot.shutdown_write();
                        }
                        if slot.expired.get() || ended || linger(&worker, &slot).await.is_ok() {
                            await_taken(&worker, &slot).await;
                        }
                    }
                    break 'client;
                }
            }
            if let Some(target) = refused {
                // A refusal takes nearly as much of a turn as a request.
                let line = target.as_ref().map_or(&worker.line, |target| &target.line);
                worker.turns.take(line).await;
            }
        };
        // Refusals, and whoever waits to be told to go on.
        match flush(&worker, &mut connection, &mut stream, &slot, &mut looked).await {
            Ok(true) => gone_at = another_moment(&worker, gone_at),
            Ok(false) => {}
            Err(_) => break,
        }
        if worker.draining.get() {
            connection.close_after_response();
            if connection.is_closing() {
                continue;
            }
        }
        set_deadline(&worker, &connection, &slot, &mut phase, looked.take());
        if answer_due && working.is_none() {
            // Every complete request is either answered or being worked on; this is our own mistake.
            let failure = Failure::Internal("the request got lost inside the server".into());
            respond(&worker, &mut connection, failure.to_answer(""), "");
            continue;
        }
        let reads = !ended && connection.wants_input();
        let happening = std::future::poll_fn(|cx| {
            // Enough has come for now: no read would tell.
            if !reads {
                match slot.arrival.presence() {
                    // An operator's script may have closed both ways and want it done all the same.
                    Presence::Gone if !ended || !peer.trusted => return Poll::Ready(Happened::Gone),
                    Presence::SentAll if !ended && gone_at.is_none() && !slot.shut.get() => {
                        return Poll::Ready(Happened::SentAll);
                    }
                    Presence::Gone | Presence::SentAll | Presence::Here => {}
                }
                let _ = slot.arrival.poll_news(cx);
            }
            if let Poll::Ready(progress) = Working::poll(&mut working, &worker, cx) {
                return Poll::Ready(Happened::Progress(progress));
            }
            if reads && slot.arrival.poll_readable(cx).is_ready() {
                return Poll::Ready(Happened::Readable);
            }
            Poll::Pending
        });
        let (waited, happened) = match gone_at {
            // Writing to it tells.
            _ if steady => waiting(happening).await,
            None => waiting(happening).await,
            Some(gone_at) => {
                let left = gone_at.saturating_duration_since(Instant::now());
                match Box::pin(waiting(timers::timeout(left, happening))).await {
                    (waited, Ok(happened)) => (waited, happened),
                    (_, Err(_)) => break,
                }
            }
        };
        pace.keep(waited).await;
        match happened {
            // The client is gone; dropping the work frees its place and tells the plugin.
            Happened::Gone => break,
            // The end itself is still to be read, behind what is pipelined.
            Happened::SentAll => {
                gone_at = Some(Instant::now() + worker.config().http.half_close_timeout);
            }
            Happened::Readable => {
                let outcome = {
                    let mut buffer = worker.arrivals.buffer();
                    let large = connection.phase() == HttpPhase::Body;
                    let room = if large { READ_BYTES_LARGE } else { READ_BYTES };
                    let outcome = slot.read(&mut buffer[..room]);
                    if let Ok(Some(count @ 1..)) = outcome {
                        connection.handle_input(&buffer[..count]);
                        if request.is_none() {
                            // What is refused is dropped without a word of it.
                            count_content(&slot, count);
                        }
                    }
                    outcome
                };
                match outcome {
                    Ok(None | Some(1..)) => {}
                    Ok(Some(0)) if slot.expired.get() => {
                        // One that was refused at its head has its answer.
                        let unanswered = connection.phase() == HttpPhase::Head
                            || connection.phase() == HttpPhase::Body && connection.can_respond();
                        if unanswered {
                            connection.handle_timeout();
                            let id = fresh_id(&worker);
                            respond(&worker, &mut connection, Failure::ClientTooSlow.to_answer(&id), &id);
                            let _ = stream.write_all(connection.take_output()).await;
                        }
                        break;
                    }
                    Ok(Some(0)) => {
                        ended = true;
                        connection.handle_eof();
                        if !slot.shut.get() {
                            gone_at = Some(Instant::now() + worker.config().http.half_close_timeout);
                        }
                    }
                    Err(_) => break,
                }
            }
            Happened::Progress(progress) => {
                if worker.draining.get() {
                    connection.close_after_response();
                }
                let now = Instant::now();
                looked = Some(now);
                let flight = take_progress(&worker, &mut connection, progress, &mut account, now);
                steady = flight.as_ref().is_some_and(Flight::is_steady);
                if let Some(flight) = flight {
                    working = Some(Working::begin(&worker, Work::Continue(flight)));
                }
            }
        }
    }
    if let Some(unanswered) = account {
        unanswered.abandon(&worker);
    }
}

enum Happened {
    Readable,
    Progress(Progress),
    SentAll,
    Gone,
}

/// Of a client that has closed its sending side and took what was written: the next of its pipelined requests has a moment of
/// its own.
fn another_moment(worker: &Worker, gone_at: Option<Instant>) -> Option<Instant> {
    gone_at.map(|_| Instant::now() + worker.config().http.half_close_timeout)
}

/// Writes what there is for the client; gives whether there was anything. `looked` is the time if it was looked at just now, and nothing once this had to wait.
async fn flush(
    worker: &Worker,
    connection: &mut Connection,
    writer: &mut impl AsyncWriteRent,
    slot: &ClientSlot,
    looked: &mut Option<Instant>,
) -> io::Result<bool> {
    if connection.output().is_empty() {
        return Ok(false);
    }
    let mut output = connection.take_output();
    // An answer is sent sooner and for less without a turn of the loop; of many, the ring sends all in one go.
    let mut written = if worker.crowded_answers.get() { 0 } else { slot.send_now(&output)? };
    if written == output.len() {
        slot.idle.set(false);
        slot.deadline.set(None);
        connection.reuse_output(output);
        return Ok(true);
    }
    let write_timeout = worker.config().http.write_timeout;
    slot.writing.set(true);
    slot.idle.set(false);
    let outcome = loop {
        // Anew with each piece: who reads slowly is served, who does not read is cut.
        slot.deadline.set(Some(looked.take().unwrap_or_else(Instant::now) + write_timeout));
        let (outcome, rest) = writer.write(output.slice(written..)).await;
        output = rest.into_inner();
        match outcome {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(error) => break Err(error),
        }
        if written == output.len() {
            break Ok(true);
        }
    };
    slot.writing.set(false);
    slot.deadline.set(None);
    connection.reuse_output(output);
    outcome
}

/// Lets the client read its last answer before the close.
///
/// Errors: the client has gone.
async fn linger(worker: &Worker, slot: &ClientSlot) -> io::Result<()> {
    slot.shutdown_write();
    slot.body.set(None);
    slot.idle.set(false);
    slot.deadline.set(Some(Instant::now() + LINGER));
    let mut dropped = 0;
    let mut pace = Pace::default();
    // What comes after the end of time is still read by the kernel's rules, so that end has to be looked at.
    while dropped < LINGER_BYTES_MAX && !slot.expired.get() {
        let (waited, ()) = waiting(std::future::poll_fn(|cx| slot.arrival.poll_readable(cx))).await;
        pace.keep(waited).await;
        match slot.read(&mut worker.arrivals.buffer())? {
            Some(count @ 1..) => dropped += count,
            None => {}
            Some(0) => break,
        }
    }
    Ok(())
}

/// Waits until the client has taken what the kernel has for it: a close would have it kept for a client that takes nothing.
/// One that takes too little is reset, as while it is written to.
async fn await_taken(worker: &Worker, slot: &ClientSlot) {
    const LOOK_EVERY: Duration = Duration::from_millis(100);
    // Of one that has gone the kernel still says what it has not taken.
    let waits = || slot.untaken() > 0 && !slot.has_failed();
    if !waits() {
        return;
    }
    slot.expired.set(false);
    slot.writing.set(true);
    slot.deadline.set(Some(Instant::now() + worker.config().http.write_timeout));
    // A stop does not wait for that: the kernel goes on with what it has.
    while waits() && !slot.expired.get() && !worker.draining.get() {
        timers::sleep(LOOK_EVERY).await;
    }
}

/// Counts what has come of a request's content.
fn count_content(slot: &ClientSlot, bytes: usize) {
    if let Some((since, before)) = slot.body.get() {
        slot.body.set(Some((since, before + bytes as u64)));
    }
}

fn set_deadline(
    worker: &Worker,
    connection: &Connection,
    slot: &ClientSlot,
    last: &mut (HttpPhase, Instant),
    looked: Option<Instant>,
) {
    let phase = connection.phase();
    if phase == HttpPhase::Response {
        // The request's own deadline rules; no clock is read on the way of a request for it.
        last.0 = phase;
        slot.idle.set(false);
        slot.deadline.set(None);
        slot.body.set(None);
        return;
    }
    let now = looked.unwrap_or_else(Instant::now);
    if last.0 != phase {
        *last = (phase, now);
    }
    if phase != HttpPhase::Body {
        slot.body.set(None);
    }
    let config = worker.config();
    let http = &config.http;
    slot.idle.set(phase == HttpPhase::Idle);
    slot.deadline.set(match phase {
        HttpPhase::Idle => Some(last.1 + http.idle_timeout),
        // From the first byte on, whatever comes meanwhile.
        HttpPhase::Head => Some(last.1 + http.head_timeout),
        HttpPhase::Body => Some(last.1 + http.body_timeout),
        HttpPhase::Response | HttpPhase::Closing => Some(now + LINGER),
    });
}

/// From a request's head to what will be sent once its content is there.
///
/// Errors: the request is refused right away; with its id, and the plugin it was meant for if there is one.
#[allow(clippy::type_complexity)]
fn begin(
    worker: &Rc<Worker>,
    head: &RequestHead<'_>,
    peer: &Peer,
) -> Result<Request, (Failure, Words, Option<Rc<Target>>)> {
    let exchange = ExchangeGuard::open(worker);
    let id = exchange.id.text();
    let id = id.as_str();
    let mut words = Words::of_id(match usable_request_id(head) {
        Some(theirs) => {
            let mut id = worker.spare.take_text();
            id.push_str(theirs);
            id
        }
        None => made_id(worker, id),
    });
    let refuse = |words: Words, failure, target| Err((failure, words, target));
    if head.method == "TRACE" || head.method == "CONNECT" {
        return refuse(words, Failure::MethodNotAllowed(api::METHODS), None);
    }
    let path = head.target.path();
    let destination = match route(head.method, path, peer.trusted) {
        Ok(destination) => destination,
        Err(error) => {
            return refuse(words, Failure::Malformed { status: 400, detail: error.to_string() }, None);
        }
    };
    let is_core = match destination {
        Destination::Core(_) => true,
        // Files say themselves what they take.
        Destination::Elsewhere => peer.trusted || !worker.shared.files.has_web_root(),
        _ => false,
    };
    if is_core && !is_known(head.method) {
        return refuse(words, Failure::UnknownMethod, None);
    }
    if !peer.trusted
        && !matches!(destination, Destination::Core(_))
        && let Err(failure) = worker.config().site.admits(head)
    {
        return refuse(words, failure, None);
    }
    let mut bundle = None;
    let (target, rest) = match destination {
        Destination::Core(endpoint) => {
            return match api::admit(worker, head, peer.trusted, endpoint) {
                Ok(call) => Ok(Request {
                    exchange,
                    words,
                    to: Recipient::Core { call: Box::new(call), head_only: head.method == "HEAD" },
                    body: Vec::new(),
                    started: Instant::now(),
                }),
                Err(failure) => refuse(words, failure, None),
            };
        }
        Destination::Elsewhere if !peer.trusted && worker.shared.files.has_web_root() => {
            return match Ask::page(head) {
                Ok(ask) => Ok(file_request(exchange, words, ask, files::NOTHING, None)),
                Err(failure) => refuse(words, failure, None),
            };
        }
        Destination::Elsewhere => return refuse(words, files::NOTHING, None),
        Destination::ById { id, path } => (worker.by_id(&id), path),
        Destination::ByRoute { route, path } => (worker.by_route(&route), path),
        Destination::Bundle { id } => match Ask::bundle(head, &id) {
            Ok(ask) => {
                bundle = Some(ask);
                (worker.by_id(&id), "/bundle.js".into())
            }
            Err(failure) => return refuse(words, failure, None),
        },
    };
    let Some(target) = target else {
        return refuse(words, worker.unknown("no plugin has this id or route"), None);
    };
    let config = worker.config();
    if config.plugins_need_token && !peer.trusted && !api::authorized(worker, head) {
        return refuse(words, Failure::Unauthorized, Some(target));
    }
    if let Some(failure) = target.refusal() {
        return match (bundle, &failure) {
            // Its bundle is there also while it is not.
            (Some(ask), Failure::Waiting(_)) => {
                if config.log.access != Access::Off {
                    words.add(head.method, &plugin_path(head, peer.trusted));
                }
                Ok(file_request(exchange, words, ask, failure, Some(target)))
            }
            _ => refuse(words, failure, Some(target)),
        };
    }
    let path_and_query = match head.target.query() {
        None => rest,
        Some(_) => with_query(rest.into_owned(), head).into(),
    };
    let started = Instant::now();
    let frame = {
        let view = target.view.borrow();
        let stamp = worker.clock.timestamp(started);
        let start = RequestStart {
            request_id: id,
            timestamp: &stamp,
            method: head.method,
            path: &path_and_query,
            remote_addr: Some(&peer.address),
            timeout_ms: Some(worker.time_limit(&view).as_millis() as u64),
        };
        let keep_secret = config.plugins_need_token || api::authorized(worker, head);
        let own = Own::new(head, words.id(), keep_secret);
        let mut sources = worker.sources.borrow_mut();
        let source = sources.of(head, &peer.origin);
        let (framing, protocol) = (view.metadata.framing, view.metadata.protocol);
        HttpRequestFrame::start_in(worker.take_frame(), framing, protocol, &start, own.fields(head), source)
    };
    if config.log.access != Access::Off {
        words.add(head.method, &path_and_query);
    }
    Ok(Request {
        exchange,
        words,
        body: Vec::with_capacity(head.content_length.unwrap_or(0).min(READ_BYTES_LARGE as u64) as usize),
        to: match bundle {
            None => Recipient::Plugin { target, frame },
            Some(ask) => {
                Recipient::File { ask: Box::new(ask), otherwise: Otherwise::Plugin { target, frame } }
            }
        },
        started,
    })
}

/// What the plugin would have got as its path, for the log of a request that was refused.
fn plugin_path(head: &RequestHead<'_>, trusted: bool) -> String {
    let path = match route(head.method, head.target.path(), trusted) {
        Ok(Destination::ById { path, .. } | Destination::ByRoute { path, .. }) => path.into_owned(),
        Ok(Destination::Bundle { .. }) => "/bundle.js".to_owned(),
        Ok(Destination::Core(_) | Destination::Elsewhere) | Err(_) => head.target.path().to_owned(),
    };
    with_query(path, head)
}

fn with_query(mut path: String, head: &RequestHead<'_>) -> String {
    if let Some(query) = head.target.query() {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// A request for a file that nobody answers if there is none.
fn file_request(
    exchange: ExchangeGuard,
    words: Words,
    ask: Ask,
    failure: Failure,
    target: Option<Rc<Target>>,
) -> Request {
    Request {
        exchange,
        words,
        to: Recipient::File { ask: Box::new(ask), otherwise: Otherwise::Nobody { failure, target } },
        body: Vec::new(),
        started: Instant::now(),
    }
}

/// Whether the core knows a method, though not for every resource; plugins may know others.
fn is_known(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "QUERY")
}

/// Writes what has come of an answer; gives back the request if more follows.
fn take_progress(
    worker: &Worker,
    connection: &mut Connection,
    progress: Progress,
    account: &mut Option<Account>,
    now: Instant,
) -> Option<Flight> {
    let mut noted = account.take()?;
    match progress {
        Progress::Pieces { flight, pieces } => {
            if let Some(mut head) = pieces.head {
                add_field(&mut head.fields, "x-request-id", noted.words.id());
                noted.status = head.status;
                worker.clock.with_date(now, |date| {
                    let head = ResponseHead { status: head.status, fields: &head.fields, date };
                    if pieces.complete {
                        connection.respond(&Response { head, body: &pieces.content });
                    } else {
                        connection.start_response(&head, Length::Chunked);
                        connection.send_body(&pieces.content);
                    }
                });
                worker.spare.keep(head.fields);
                worker.spare.keep(pieces.content);
            } else {
                connection.send_body(&pieces.content);
                if pieces.complete {
                    connection.finish_response();
                }
            }
            if flight.is_some() {
                *account = Some(noted);
                return flight;
            }
        }
        Progress::Local(answer) => {
            // Answered without a plugin, so none of its requests.
            noted.target = None;
            respond(worker, connection, answer, noted.words.id());
        }
        Progress::File(reply) => {
            noted.target = None;
            let transfer =
                worker.clock.with_date(now, |date| reply.write(connection, date, noted.words.id()));
            if let Some(transfer) = transfer {
                *account = Some(noted);
                return Some(Flight::File(Box::new(transfer)));
            }
        }
        Progress::Failed(failure) => {
            // A plugin that this side ends is not to blame.
            let ends = matches!(
                failure,
                Failure::Severed { .. } | Failure::PluginGone(_) | Failure::Unreachable | Failure::Waiting(_)
            );
            let failure = if ends && worker.draining.get() { Failure::Stopping } else { failure };
            noted.status = failure.status();
            if connection.can_respond() {
                respond(worker, connection, failure.to_answer(noted.words.id()), noted.words.id());
            } else {
                // Part of the answer is out: only a cut tells the client that the rest will not come.
                connection.abort_response();
            }
        }
    }
    noted.settle(worker, now);
    None
}

fn respond(worker: &Worker, connection: &mut Connection, mut answer: LocalAnswer, request_id: &str) {
    if !request_id.is_empty() {
        add_field(&mut answer.fields, "x-request-id", request_id);
    }
    worker.clock.with_date(Instant::now(), |date| {
        let head = ResponseHead { status: answer.status, fields: &answer.fields, date };
        connection.respond(&Response { head, body: &answer.body });
    });
}

/// A failure outside any request, after which the connection closes.
pub fn canned(worker: &Rc<Worker>, failure: &Failure) -> Vec<u8> {
    let request_id = fresh_id(worker);
    let mut connection = Connection::new(worker.http_limits());
    connection.handle_input(b"GET / HTTP/1.0\r\n\r\n");
    while !matches!(connection.poll_event(), Event::ResponseDue) {}
    respond(worker, &mut connection, failure.to_answer(&request_id), &request_id);
    connection.take_output()
}

impl Account {
    /// Counts an answered request of a plugin, and logs it where that is wanted.
    fn settle(mut self, worker: &Worker, now: Instant) {
        if let Some(target) = self.target.take() {
            self.count(worker, &target, now);
        }
        worker.spare.keep(self.words.into_buffer());
    }

    fn count(&self, worker: &Worker, target: &Target, now: Instant) {
        let took = now.saturating_duration_since(self.started);
        if self.runs {
            target.shared.stats[worker.number as usize].latency.record(took);
        }
        count_answer(worker, target, self.status);
        note(worker, target, &self.words, self.status, took);
    }

    /// Counts a request of a plugin whose client went before all of the answer was there: no error of the plugin's, and how
    /// long it would have taken nobody knows.
    fn abandon(self, worker: &Worker) {
        let Some(target) = self.target else { return };
        count(&target.shared.stats[worker.number as usize].abandoned);
        let status = if self.status == 0 { CLIENT_GONE } else { self.status };
        count_answer(worker, &target, status);
        let took = self.started.elapsed();
        note(worker, &target, &self.words, status, took);
    }
}

/// Counts one more of what this thread alone counts.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed) + 1, Relaxed);
}

/// Counts a request that was meant for a plugin. One that is refused because the plugin does not run is counted too, but
/// has no latency: the plugin never had it.
fn count_answer(worker: &Worker, target: &Target, status: u16) {
    let stats = &target.shared.stats[worker.number as usize];
    count(&worker.stats().requests);
    count(&stats.requests);
    if status >= 500 {
        count(&stats.errors);
    }
    history::note_traffic(&worker.shared);
}

fn note(worker: &Worker, target: &Target, words: &Words, status: u16, took: Duration) {
    let wanted = match worker.config().log.access {
        Access::Off => false,
        Access::Errors => status >= 500,
        Access::All => true,
    };
    if wanted {
        let (id, method, path) = (words.id(), words.method(), words.path());
        worker.shared.logger.access(&target.shared.log.id, id, method, path, status, took);
    }
}

/// An id for a failure that belongs to no request.
fn fresh_id(worker: &Rc<Worker>) -> String {
    made_id(worker, ExchangeGuard::open(worker).id.text().as_str())
}

/// A request id that no other run of this installation gives out.
fn made_id(worker: &Worker, id: &str) -> String {
    let boot = &worker.shared.boot;
    let mut made = worker.spare.take_text();
    made.push_str(boot);
    made.push('-');
    made.push_str(id);
    made
}
