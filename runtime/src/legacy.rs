//! Requests to 1.0 plugins: one connection for one exchange, one frame each way.
//!
//! Never two messages on one connection: the 1.0 Rust SDK makes a new buffered reader for each message and loses
//! whatever arrived behind the first. How many connections a plugin has at once is its [`crate::gate::Gate`]'s business.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use monoio::buf::IoBufMut as _;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use nix::sys::socket::{Shutdown, shutdown};
use toru_plugin_api::frame::{Decoder, Framing};
use toru_plugin_api::from_plugin::PluginMessage;

use crate::answer::{Failure, Pieces};
use crate::link::{connect, pieces};
use crate::place::Place;
use crate::timers;
use crate::worker::Worker;

const READ_BYTES: usize = 16 * 1024;

/// What went wrong, and what the supervisor should hear of it.
pub struct LegacyFailure {
    pub failure: Failure,
    pub breach: Option<Breach>,
}

/// How the plugin broke the protocol.
pub enum Breach {
    /// It closed the connection in the middle of its answer.
    Torn,
    /// In words.
    Said(String),
}

/// One request, one answer. The place in `sent` learns that the request has gone, to the process of the generation there.
///
/// Errors: the plugin cannot be reached, closes early, breaks the protocol, or is not done by `deadline`.
pub async fn exchange(
    worker: &Worker,
    socket: &Path,
    framing: Framing,
    frame: Vec<u8>,
    request_id: &str,
    deadline: Instant,
    sent: (&mut Place, u64),
) -> Result<Pieces, LegacyFailure> {
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    match timers::timeout(left, attempt(worker, socket, framing, frame, request_id, deadline, sent)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::TimedOut.into()),
    }
}

async fn attempt(
    worker: &Worker,
    socket: &Path,
    framing: Framing,
    frame: Vec<u8>,
    request_id: &str,
    deadline: Instant,
    (place, generation): (&mut Place, u64),
) -> Result<Pieces, LegacyFailure> {
    let mut stream =
        connect(worker, socket, || Instant::now() >= deadline).await.map_err(|_| Failure::Unreachable)?;
    place.goes_alone(generation);
    // When this future is given up, the pending read or write must end before the socket can be closed.
    let _guard = ShutdownOnDrop(stream.as_raw_fd());
    let (outcome, _) = stream.write_all(frame).await;
    outcome.map_err(|_| severed("the plugin did not take the request", false))?;
    let mut decoder = Decoder::new(framing, worker.config().message_bytes_max);
    loop {
        let buffer = decoder.take_buffer(READ_BYTES);
        let (from, to) = (buffer.len(), buffer.capacity());
        let (outcome, buffer) = stream.read(buffer.slice_mut(from..to)).await;
        decoder.restore_buffer(buffer.into_inner());
        match outcome {
            Ok(0) if decoder.is_mid_frame() => {
                let failure = severed("the plugin closed the connection in its answer", true);
                return Err(LegacyFailure { failure, breach: Some(Breach::Torn) });
            }
            Ok(0) | Err(_) => {
                return Err(severed("the plugin closed the connection before it answered", false).into());
            }
            Ok(_) => {}
        }
        let frame = match decoder.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => continue,
            Err(error) => return Err(LegacyFailure::broken(error.to_string())),
        };
        let answer = worker.reader.borrow_mut().read(frame, |message| match message {
            // An answer without an id can only be this request's; one with another id is somebody else's.
            PluginMessage::HttpResponse { request_id: theirs, .. }
                if !theirs.is_empty() && theirs != request_id =>
            {
                Err(LegacyFailure::broken(format!(
                    "answered the request {theirs:?} instead of {request_id:?}"
                )))
            }
            PluginMessage::HttpResponse { response: Ok(response), .. } => {
                pieces(response, worker.config().http.head_limits(), &worker.spare).map_err(|unfit| {
                    LegacyFailure {
                        failure: Failure::BadAnswerHead(unfit),
                        breach: Some(Breach::Said(unfit.to_owned())),
                    }
                })
            }
            PluginMessage::HttpResponse { response: Err(bad), .. } => Err(LegacyFailure {
                failure: Failure::BadAnswer,
                breach: Some(Breach::Said(bad.to_string())),
            }),
            _ => Err(LegacyFailure::broken("answered a request with something else than a response".into())),
        });
        let strays = std::iter::from_fn(|| decoder.next_frame().ok().flatten().map(|_| ())).count();
        if strays > 0 {
            place.note_strays(strays as u64);
        }
        return answer.unwrap_or_else(|error| Err(LegacyFailure::broken(error.to_string())));
    }
}

impl LegacyFailure {
    fn broken(reason: String) -> Self {
        let failure = Failure::PluginGone("the plugin broke the protocol");
        Self { failure, breach: Some(Breach::Said(reason)) }
    }
}

impl From<Failure> for LegacyFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, breach: None }
    }
}

fn severed(detail: &'static str, told: bool) -> Failure {
    Failure::Severed { detail, told }
}

/// Declared after its stream, so that it is dropped before it.
struct ShutdownOnDrop(RawFd);

impl Drop for ShutdownOnDrop {
    fn drop(&mut self) {
        let _ = shutdown(self.0, Shutdown::Both);
    }
}
