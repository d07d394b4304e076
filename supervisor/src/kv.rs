//! A plugin's question to its stored values and the answer to it, owned, on their way between threads.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use toru_plugin_api::frame::Framing;
use toru_plugin_api::from_core::{KvReply, encode_kv_reply};
use toru_plugin_api::from_plugin::{BadKvRequest, KvRequest};

/// What a plugin asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvQuestion {
    Get {
        key: String,
    },
    Set {
        key: String,
        value: String,
    },
    Delete {
        key: String,
    },
    /// `limit` is in keys.
    List {
        prefix: String,
        limit: Option<u64>,
    },
    /// It asked something that cannot be understood; the answer says so.
    Invalid {
        reason: String,
    },
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvAnswer {
    /// For `get`; `None` also for `set` and `delete`.
    Value(Option<String>),
    /// For `list`.
    Keys(Vec<String>),
    Error {
        /// A fixed word.
        code: &'static str,
        message: String,
    },
}

impl KvAnswer {
    /// Appends the answer as a message; one that does not fit into a frame becomes the error `too_large`.
    pub fn encode(
        &self,
        out: &mut Vec<u8>,
        framing: Framing,
        timestamp: &str,
        request_id: &str,
        frame_bytes_max: usize,
    ) {
        if encode_kv_reply(out, framing, timestamp, request_id, &self.as_reply(), frame_bytes_max).is_err() {
            let reply =
                KvReply::Error { code: "too_large", message: "the answer does not fit into a message" };
            // A request id so long that even this does not fit came in a frame no larger: nothing is lost by silence.
            let _ = encode_kv_reply(out, framing, timestamp, request_id, &reply, frame_bytes_max);
        }
    }

    /// `busy` instead of its content, where `too_much` of what was asked for before is not read yet. One without content
    /// says what has been done, and `busy` that nothing was.
    pub fn unless(&self, too_much: bool) -> Cow<'_, Self> {
        if too_much && self.content_bytes() > 0 { Cow::Owned(Self::busy()) } else { Cow::Borrowed(self) }
    }

    fn busy() -> Self {
        KvAnswer::Error { code: "busy", message: "earlier answers wait to be read".into() }
    }

    /// What of it may be large.
    fn content_bytes(&self) -> usize {
        match self {
            KvAnswer::Value(value) => value.as_ref().map_or(0, String::len),
            KvAnswer::Keys(keys) => keys.iter().map(String::len).sum(),
            KvAnswer::Error { .. } => 0,
        }
    }

    fn as_reply(&self) -> KvReply<'_> {
        match self {
            KvAnswer::Value(value) => KvReply::Value(value.as_deref()),
            KvAnswer::Keys(keys) => KvReply::Keys(keys),
            KvAnswer::Error { code, message } => KvReply::Error { code, message },
        }
    }
}

/// Bytes of answers that may be on their way from the store to one connection; beyond it they are `busy`.
const UNDERWAY_MAX: usize = 32 * 1024 * 1024;

/// An answer of the store on its way to a connection, counted there in bytes for as long as this lives.
///
/// The store reads faster than is written: without a bound here, all that a plugin has asked for would be in memory before
/// the first of it is on its way out.
pub struct Underway {
    of: Arc<AtomicUsize>,
    bytes: usize,
}

impl Underway {
    /// Counts an answer in its connection's count; where too much is on its way already, it becomes `busy`.
    pub fn begin(of: Arc<AtomicUsize>, answer: KvAnswer) -> (KvAnswer, Self) {
        let bytes = answer.content_bytes();
        if bytes > 0 && of.load(Relaxed) > UNDERWAY_MAX {
            return (KvAnswer::busy(), Self { of, bytes: 0 });
        }
        of.fetch_add(bytes, Relaxed);
        (answer, Self { of, bytes })
    }

    /// Whether it is the connection of this count that was asked on.
    pub fn is_of(&self, connection: &Arc<AtomicUsize>) -> bool {
        Arc::ptr_eq(&self.of, connection)
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Relaxed);
    }
}

impl From<Result<KvRequest<'_>, BadKvRequest>> for KvQuestion {
    fn from(request: Result<KvRequest<'_>, BadKvRequest>) -> Self {
        match request {
            Ok(KvRequest::Get { key }) => KvQuestion::Get { key: key.to_owned() },
            Ok(KvRequest::Set { key, value }) => {
                KvQuestion::Set { key: key.to_owned(), value: value.to_owned() }
            }
            Ok(KvRequest::Delete { key }) => KvQuestion::Delete { key: key.to_owned() },
            Ok(KvRequest::List { prefix, limit }) => KvQuestion::List { prefix: prefix.to_owned(), limit },
            Ok(_) => KvQuestion::Invalid { reason: "this action is not known".into() },
            Err(bad) => KvQuestion::Invalid { reason: bad.to_string() },
        }
    }
}
