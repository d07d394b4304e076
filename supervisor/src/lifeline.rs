//! The supervisor's own connection to a plugin: init, ready, ping, shutdown, and what the plugin says unasked.
//!
//! A 1.1 plugin keeps one as long as it lives; for a 1.0 plugin one is made for each message.
//! Requests never come this way: each worker has connections of its own.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use toru_plugin_api::frame::{Decoder, FrameError, Framing};
use toru_plugin_api::from_core::{self, Init};
use toru_plugin_api::from_plugin::{PluginMessage, PluginMessageReader};
use toru_plugin_api::metadata::{Metadata, Protocol};
use toru_plugin_api::time::{as_str, rfc3339_millis};

use crate::{KvAnswer, KvQuestion, Level};

/// What may wait to be written to a plugin that does not read; beyond it the connection is given up.
const OUT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Where more waits, a plugin that asks for more of its values is told that it has to read first.
const OUT_BYTES_BUSY: usize = 8 * 1024 * 1024;
/// Bytes read in one turn of the loop; the rest waits for the next, so that a chatty plugin starves nobody.
const READS_PER_TURN: usize = 4;

/// Answers to nobody within a second, beyond which a plugin is taken for broken: one that answers late sends as many as it
/// was asked, one that floods does not stop there.
const STRAYS_PER_SECOND_MAX: u32 = 10_000;

/// Counts the answers to nobody on one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strays {
    since: Option<Instant>,
    count: u32,
}

impl Strays {
    /// Counts one more.
    ///
    /// Errors: there were too many, in words; the connection must end.
    pub fn count(&mut self, now: Instant) -> Result<(), String> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count += 1;
        if self.count > STRAYS_PER_SECOND_MAX {
            return Err(format!("sent more than {STRAYS_PER_SECOND_MAX} answers to nobody within a second"));
        }
        Ok(())
    }
}

/// Connects without ever waiting: a Unix socket either takes the connection now or says no.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

/// What `init` tells a plugin.
pub(crate) struct InitFacts<'a> {
    pub instance_id: &'a str,
    pub socket: &'a Path,
    pub log_path: &'a Path,
    pub data_dir: &'a Path,
    pub frame_bytes_max: usize,
    pub config: Option<&'a str>,
}

/// What a plugin said.
pub(crate) enum Said {
    Ready,
    Failed(String),
    Pong(u64),
    Log { level: Level, message: String, fields: Option<String> },
    Kv { request_id: String, question: KvQuestion },
}

/// Why a lifeline ended.
pub(crate) enum Lost {
    Closed,
    /// The plugin broke the protocol.
    Broken(String),
}

pub(crate) struct Lifeline {
    stream: UnixStream,
    framing: Framing,
    protocol: Protocol,
    decoder: Decoder,
    frame_bytes_max: usize,
    out: Vec<u8>,
    waits_to_write: bool,
    token: u64,
    strays: Strays,
    /// Bytes of answers of the store that are on their way to here.
    pub answers_underway: Arc<AtomicUsize>,
}

impl Lifeline {
    /// `stream` is non-blocking.
    pub fn new(stream: UnixStream, metadata: &Metadata, frame_bytes_max: usize) -> Self {
        Self {
            stream,
            framing: metadata.framing,
            protocol: metadata.protocol,
            decoder: Decoder::new(metadata.framing, frame_bytes_max),
            frame_bytes_max,
            out: vec![],
            waits_to_write: false,
            token: 0,
            strays: Strays::default(),
            answers_underway: Arc::default(),
        }
    }

    pub fn set_token(&mut self, token: u64) {
        self.token = token;
    }

    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether the loop was asked to tell when the socket is writable.
    pub fn waits_to_write(&self) -> bool {
        self.waits_to_write
    }

    pub fn set_waits_to_write(&mut self, waits: bool) {
        self.waits_to_write = waits;
    }

    /// Errors: the plugin's configuration does not fit into a message.
    pub fn send_init(
        &mut self,
        metadata: &Metadata,
        facts: &InitFacts<'_>,
        unix_ms: u64,
    ) -> Result<(), FrameError> {
        let (socket, log_path, data_dir) = (
            facts.socket.to_string_lossy(),
            facts.log_path.to_string_lossy(),
            facts.data_dir.to_string_lossy(),
        );
        let init = Init {
            instance_id: facts.instance_id,
            plugin_socket: &socket,
            log_path: &log_path,
            plugin_id: &metadata.id,
            max_message_bytes: facts.frame_bytes_max,
            data_dir: &data_dir,
            config: facts.config,
        };
        from_core::encode_init(
            &mut self.out,
            self.framing,
            self.protocol,
            as_str(&rfc3339_millis(unix_ms)),
            &init,
        )
    }

    pub fn send_ping(&mut self, seq: u64, unix_ms: u64) {
        from_core::encode_ping(
            &mut self.out,
            self.framing,
            self.protocol,
            as_str(&rfc3339_millis(unix_ms)),
            seq,
        );
    }

    pub fn send_shutdown(&mut self, grace: Duration, unix_ms: u64) {
        let deadline_ms = grace.as_millis() as u64;
        from_core::encode_shutdown(
            &mut self.out,
            self.framing,
            self.protocol,
            as_str(&rfc3339_millis(unix_ms)),
            deadline_ms,
        );
    }

    pub fn send_kv_reply(&mut self, request_id: &str, answer: &KvAnswer, unix_ms: u64) {
        answer.unless(self.out.len() > OUT_BYTES_BUSY).encode(
            &mut self.out,
            self.framing,
            as_str(&rfc3339_millis(unix_ms)),
            request_id,
            self.frame_bytes_max,
        );
    }

    /// Whether more waits to be written than may: the plugin asks and does not read.
    pub fn is_overfull(&self) -> bool {
        self.out.len() > OUT_BYTES_MAX
    }

    /// Writes what it can; whether something is left for when the socket is writable again.
    ///
    /// Errors: the connection is gone, or the plugin has not read for too long.
    pub fn flush(&mut self) -> io::Result<bool> {
        let mut written = 0;
        let outcome = loop {
            if written == self.out.len() {
                break Ok(());
            }
            match self.stream.write(&self.out[written..]) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.out.drain(..written);
        outcome?;
        if self.is_overfull() {
            return Err(io::Error::other("it does not read what it asked for"));
        }
        Ok(!self.out.is_empty())
    }

    /// Reads what is there. Messages that were whole count even if the connection then ends, and so do answers to nobody, in
    /// `strays`.
    pub fn advance(
        &mut self,
        now: Instant,
        scratch: &mut [u8],
        reader: &mut PluginMessageReader,
        said: &mut Vec<Said>,
        strays: &mut u64,
    ) -> Result<(), Lost> {
        for _ in 0..READS_PER_TURN {
            let count = match self.stream.read(scratch) {
                Ok(0) => return Err(Lost::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Lost::Closed),
            };
            self.decoder.feed(&scratch[..count]);
            loop {
                let frame = match self.decoder.next_frame() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) => return Err(Lost::Broken(error.to_string())),
                };
                match reader.read(frame, understand).map_err(|error| Lost::Broken(error.to_string()))? {
                    Understood::Said(one) => said.push(one),
                    Understood::Stray => {
                        *strays += 1;
                        self.strays.count(now).map_err(Lost::Broken)?;
                    }
                    Understood::Nothing => {}
                }
            }
        }
        Ok(())
    }
}

impl AsFd for Lifeline {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// What a message is here.
enum Understood {
    Said(Said),
    /// An answer to a request: none went out this way, so it is nobody's.
    Stray,
    Nothing,
}

fn understand(message: PluginMessage<'_>) -> Understood {
    Understood::Said(match message {
        PluginMessage::Ready => Said::Ready,
        PluginMessage::Failed { error } => Said::Failed(error.to_owned()),
        PluginMessage::Pong { seq } => Said::Pong(seq),
        PluginMessage::Log { level, message, fields_json } => Said::Log {
            level: Level::from_word(level),
            message: message.to_owned(),
            fields: fields_json.map(|fields| fields.into_owned()),
        },
        PluginMessage::Kv { request_id, request } => {
            Said::Kv { request_id: request_id.to_owned(), question: request.into() }
        }
        PluginMessage::HttpResponse { .. } => return Understood::Stray,
        // Ignored by contract.
        PluginMessage::Unknown { .. } => return Understood::Nothing,
        // Types that a newer plugin-api knows and this file does not yet.
        _ => return Understood::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_stray_more_than_the_limit_within_a_second_is_too_many() {
        let mut strays = Strays::default();
        let begin = Instant::now();
        let last = begin + Duration::from_millis(999);
        for _ in 0..STRAYS_PER_SECOND_MAX {
            strays.count(last).expect("within the limit");
        }
        assert!(strays.count(last).is_err_and(|why| why.contains("answers to nobody")));
        let mut strays = Strays::default();
        for second in 0..3 {
            for _ in 0..STRAYS_PER_SECOND_MAX {
                strays.count(begin + Duration::from_secs(second)).expect("each second has its own");
            }
        }
    }
}
