//! What is done for a request once it is complete, until something comes of its answer.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use toru_plugin_api::from_core::{EncodeError, HttpRequestFrame};
use toru_plugin_api::metadata::Protocol;
use toru_supervisor::Command;

use crate::answer::{Failure, LocalAnswer, Pieces};
use crate::api;
use crate::exchange::ExchangeId;
use crate::files::{self, Ask, Outcome, Reply, Transfer};
use crate::gate::Full;
use crate::legacy::{self, Breach};
use crate::link::Link;
use crate::place::{Counted, Place, Queued};
use crate::timers;
use crate::worker::{Target, Worker};

/// A request on its way to whoever answers it.
pub struct Request {
    pub exchange: ExchangeGuard,
    pub words: Words,
    pub to: Recipient,
    pub body: Vec<u8>,
    pub started: Instant,
}

/// A request's id, and for the access log its method and path: one buffer, since each request needs one.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    id_end: usize,
    method_end: usize,
}

impl Words {
    /// `text` is the id.
    pub fn of_id(text: String) -> Self {
        let id_end = text.len();
        Self { text, id_end, method_end: id_end }
    }

    /// Adds method and path, once.
    pub fn add(&mut self, method: &str, path: &str) {
        self.text.push_str(method);
        self.method_end = self.text.len();
        self.text.push_str(path);
    }

    pub fn id(&self) -> &str {
        &self.text[..self.id_end]
    }

    pub fn method(&self) -> &str {
        &self.text[self.id_end..self.method_end]
    }

    pub fn path(&self) -> &str {
        &self.text[self.method_end..]
    }

    pub fn into_buffer(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

pub enum Recipient {
    Plugin {
        target: Rc<Target>,
        frame: HttpRequestFrame,
    },
    Core {
        call: Box<api::Call>,
        /// A stream is over with its head.
        head_only: bool,
    },
    File {
        ask: Box<Ask>,
        otherwise: Otherwise,
    },
}

/// Who answers when there is no file.
pub enum Otherwise {
    Plugin {
        target: Rc<Target>,
        frame: HttpRequestFrame,
    },
    /// `target` would have, if it ran.
    Nobody {
        failure: Failure,
        target: Option<Rc<Target>>,
    },
}

/// Closes its exchange on drop; if the answer is still due, the plugin is told to forget it.
pub struct ExchangeGuard {
    worker: Rc<Worker>,
    pub id: ExchangeId,
}

impl ExchangeGuard {
    pub fn open(worker: &Rc<Worker>) -> Self {
        let id = worker.exchanges.borrow_mut().open();
        Self { worker: worker.clone(), id }
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        let due = self.worker.exchanges.borrow_mut().close(self.id);
        if let Some(link) = due {
            link.cancel(&self.worker, self.id);
            link.count_given_up(&self.worker, Instant::now());
        }
    }
}

/// What more of an answer comes from. Boxed, since nearly all answers come whole, and what may carry one is moved often.
pub enum Flight {
    Plugin(Box<Asked>),
    /// A stream of the core's own.
    Core(Box<api::Stream>),
    File(Box<Transfer>),
}

impl Flight {
    /// Whether it goes on without pauses of its own, so that writing it tells when the client has gone.
    pub fn is_steady(&self) -> bool {
        match self {
            Flight::File(_) => true,
            Flight::Core(stream) => matches!(**stream, api::Stream::Values(_)),
            Flight::Plugin(_) => false,
        }
    }
}

/// A request that its plugin has.
pub struct Asked {
    exchange: ExchangeGuard,
    place: Place,
}

impl Asked {
    /// What has come of its answer, once anything has.
    async fn progress(self, worker: &Worker) -> Progress {
        let news = poll_fn(|cx| worker.exchanges.borrow_mut().poll(self.exchange.id, cx)).await;
        self.take(news)
    }

    fn take(self, news: Result<Pieces, Failure>) -> Progress {
        match news {
            Ok(pieces) => Progress::Pieces {
                flight: (!pieces.complete).then(|| Flight::Plugin(Box::new(self))),
                pieces,
            },
            Err(failure) => {
                if let Failure::Severed { told, .. } = failure {
                    self.place.lost(&self.exchange.worker, told);
                }
                Progress::Failed(failure)
            }
        }
    }
}

/// The next thing to do for an answer.
pub enum Work {
    Launch(Request),
    Continue(Flight),
}

/// Work that is being done.
pub enum Working {
    /// Nearly all requests are this and nothing else, so it costs no future of its own: those are large, and each was
    /// moved twice.
    Asked(Asked),
    /// Whatever has to wait for more than that.
    Task(Pin<Box<dyn Future<Output = Progress>>>),
}

impl Working {
    pub fn begin(worker: &Rc<Worker>, work: Work) -> Self {
        let place = match &work {
            Work::Launch(Request { to: Recipient::Plugin { target, .. }, .. })
                if target.view.borrow().metadata.protocol == Protocol::V1_1 =>
            {
                target.shared.gate.try_enter().map(|permit| Place::new(worker, target, permit))
            }
            _ => None,
        };
        match (work, place) {
            (
                Work::Launch(Request {
                    exchange,
                    to: Recipient::Plugin { target, frame },
                    body,
                    started,
                    ..
                }),
                Some(mut place),
            ) => {
                let deadline = started + worker.time_limit(&target.view.borrow());
                let has_room = |link: &Option<Rc<Link>>| link.as_ref().is_none_or(|link| link.has_room());
                let sent = finish(worker, frame, &body).and_then(|frame| {
                    if !has_room(&target.link.borrow()) {
                        return Ok(Some(frame));
                    }
                    submit(worker, &exchange, &mut place, &target, &frame, deadline)?;
                    worker.reuse_frame(frame);
                    Ok(None)
                });
                match sent {
                    Ok(None) => Working::Asked(Asked { exchange, place }),
                    Ok(Some(frame)) => {
                        let worker = worker.clone();
                        Working::Task(Box::pin(async move {
                            let answer = send(&worker, exchange, place, &target, frame, deadline).await;
                            answer.unwrap_or_else(Progress::Failed)
                        }))
                    }
                    Err(failure) => Working::Task(Box::pin(async { Progress::Failed(failure) })),
                }
            }
            (Work::Continue(Flight::Plugin(asked)), _) => Working::Asked(*asked),
            (work, _) => Working::Task(Box::pin(advance(worker.clone(), work))),
        }
    }

    /// Ready when something has come of the answer, which ends the work.
    pub fn poll(working: &mut Option<Self>, worker: &Worker, cx: &mut Context<'_>) -> Poll<Progress> {
        let Some(current) = working.take() else { return Poll::Pending };
        let waits = match current {
            Working::Asked(asked) => {
                // Not borrowed any more when the request is dropped, which closes its exchange.
                let news = worker.exchanges.borrow_mut().poll(asked.exchange.id, cx);
                match news {
                    Poll::Ready(news) => return Poll::Ready(asked.take(news)),
                    Poll::Pending => Working::Asked(asked),
                }
            }
            Working::Task(mut task) => match task.as_mut().poll(cx) {
                Poll::Ready(progress) => return Poll::Ready(progress),
                Poll::Pending => Working::Task(task),
            },
        };
        *working = Some(waits);
        Poll::Pending
    }
}

pub enum Progress {
    Pieces { flight: Option<Flight>, pieces: Pieces },
    Local(LocalAnswer),
    File(Box<Reply>),
    Failed(Failure),
}

/// Does the next thing for an answer, to its end.
///
/// Boxed as a whole for as long as it works; what it waits for is boxed once more, so that the usual does not take the room
/// of the largest.
async fn advance(worker: Rc<Worker>, work: Work) -> Progress {
    let outcome = match work {
        Work::Launch(Request { to: Recipient::Core { call, head_only }, body, .. }) => {
            match Box::pin(call.answer(&worker, &body)).await {
                Ok(api::Answer::Whole(answer)) => Ok(Progress::Local(answer)),
                Ok(api::Answer::Stream(head, stream)) => Ok(Progress::Pieces {
                    flight: (!head_only).then(|| Flight::Core(Box::new(stream))),
                    pieces: Pieces { head: Some(head), content: Vec::new(), complete: head_only },
                }),
                Err(failure) => Err(failure),
            }
        }
        Work::Launch(Request {
            exchange, to: Recipient::Plugin { target, frame }, body, started, ..
        }) => launch(&worker, exchange, &target, frame, body, started).await,
        Work::Launch(Request { exchange, to: Recipient::File { ask, otherwise }, body, started, .. }) => {
            match (Box::pin(files::answer(&worker, *ask)).await, otherwise) {
                (Ok(Outcome::Reply(reply)), _) => Ok(Progress::File(Box::new(reply))),
                (Ok(Outcome::Local(answer)), _) => Ok(Progress::Local(answer)),
                (Err(Failure::NotFound(_)), Otherwise::Plugin { target, frame }) => {
                    Box::pin(launch(&worker, exchange, &target, frame, body, started)).await
                }
                (Err(Failure::NotFound(_)), Otherwise::Nobody { failure, .. }) | (Err(failure), _) => {
                    Err(failure)
                }
            }
        }
        Work::Continue(Flight::Plugin(asked)) => Ok(asked.progress(&worker).await),
        Work::Continue(Flight::File(mut transfer)) => Box::pin(transfer.next(&worker)).await.map(|pieces| {
            let flight = (!pieces.complete).then_some(Flight::File(transfer));
            Progress::Pieces { flight, pieces }
        }),
        Work::Continue(Flight::Core(mut stream)) => {
            let content = Box::pin(stream.next(&worker)).await;
            let complete = content.is_none();
            let pieces = Pieces { head: None, content: content.unwrap_or_default(), complete };
            Ok(Progress::Pieces { flight: (!complete).then_some(Flight::Core(stream)), pieces })
        }
    };
    outcome.unwrap_or_else(Progress::Failed)
}

/// A request's frame with its content.
fn finish(worker: &Worker, frame: HttpRequestFrame, body: &[u8]) -> Result<Vec<u8>, Failure> {
    let bytes_max = worker.config().message_bytes_max;
    frame.finish(body, bytes_max).map_err(|error| match error {
        EncodeError::NotText => Failure::NotText,
        EncodeError::TooLarge { .. } => Failure::TooLarge { bytes_max },
    })
}

/// The request may have waited, for its content or its turn: the plugin it was meant for may be gone.
fn may_ask(target: &Target) -> Result<(), Failure> {
    target.refusal().map_or(Ok(()), Err)
}

/// Sends a request to its 1.1 plugin.
fn submit(
    worker: &Rc<Worker>,
    exchange: &ExchangeGuard,
    place: &mut Place,
    target: &Rc<Target>,
    frame: &[u8],
    deadline: Instant,
) -> Result<(), Failure> {
    may_ask(target)?;
    let link = target.link(worker);
    link.submit(worker, exchange.id, frame, deadline)?;
    place.goes_over(link);
    worker.expect_deadlines();
    Ok(())
}

/// Sends a request to its 1.1 plugin once its connection has room, and waits for the first of the answer.
async fn send(
    worker: &Rc<Worker>,
    exchange: ExchangeGuard,
    mut place: Place,
    target: &Rc<Target>,
    frame: Vec<u8>,
    deadline: Instant,
) -> Result<Progress, Failure> {
    may_ask(target)?;
    let link = target.link(worker);
    link.await_room(worker, frame.len()).await?;
    submit(worker, &exchange, &mut place, target, &frame, deadline)?;
    drop(frame);
    Ok(Asked { exchange, place }.progress(worker).await)
}

/// Sends a request to its plugin once there is a place, and waits for the first of the answer.
async fn launch(
    worker: &Rc<Worker>,
    exchange: ExchangeGuard,
    target: &Rc<Target>,
    frame: HttpRequestFrame,
    body: Vec<u8>,
    started: Instant,
) -> Result<Progress, Failure> {
    let frame = finish(worker, frame, &body)?;
    drop(body);
    let deadline = started + worker.time_limit(&target.view.borrow());
    let mut place = enter(worker, target, deadline).await?;
    let view = target.view.borrow().clone();
    match view.metadata.protocol {
        Protocol::V1_0 => {
            may_ask(target)?;
            let id = exchange.id.text();
            let _counted = Counted::new(worker, target, |stats| &stats.links);
            let (framing, generation) = (view.metadata.framing, view.generation.unwrap_or(0));
            let sent = (&mut place, generation);
            let exchanged =
                legacy::exchange(worker, &view.socket, framing, frame, id.as_str(), deadline, sent);
            match Box::pin(exchanged).await {
                Ok(pieces) => Ok(Progress::Pieces { flight: None, pieces }),
                Err(legacy::LegacyFailure { failure, breach }) => {
                    if failure == Failure::Unreachable {
                        Box::pin(target.await_verdict(generation)).await;
                        return Err(target.refusal().unwrap_or(failure));
                    }
                    match breach {
                        Some(Breach::Said(reason))
                            if matches!(failure, Failure::BadAnswer | Failure::BadAnswerHead(_)) =>
                        {
                            worker.report_bad_answer(target, generation, &reason);
                        }
                        Some(Breach::Said(reason)) => {
                            worker.report_broken(view.index, generation, reason, true);
                        }
                        Some(Breach::Torn) => worker.report_torn(target, generation),
                        None => {}
                    }
                    if failure == Failure::TimedOut {
                        worker.shared.supervisor.send(Command::RequestTimeout { index: view.index });
                    }
                    if let Failure::Severed { told, .. } = failure {
                        place.lost(worker, told);
                    }
                    Err(failure)
                }
            }
        }
        Protocol::V1_1 => Box::pin(send(worker, exchange, place, target, frame, deadline)).await,
    }
}

/// Waits for a place with the plugin.
async fn enter(worker: &Worker, target: &Rc<Target>, deadline: Instant) -> Result<Place, Failure> {
    let gate = &target.shared.gate;
    if let Some(permit) = gate.try_enter() {
        return Ok(Place::new(worker, target, permit));
    }
    let entering = gate.enter().map_err(|Full| Failure::Busy)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let _queued = Queued::new(worker, target);
    let entered = Box::pin(timers::timeout(left, entering)).await;
    let permit = entered.map_err(|_| Failure::QueuedTooLong)?;
    Box::pin(target.sit_out_an_end()).await;
    Ok(Place::new(worker, target, permit))
}
