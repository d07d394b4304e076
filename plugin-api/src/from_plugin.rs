//! What a plugin says to the core: the SDK's encoders, and the decoder that the core reads with.
//!
//! Source: PROTOCOL.md, "Messages".

use thiserror::Error;

use crate::frame::{FrameError, Framing, begin_frame, end_frame};
use crate::from_core::{begin_lifecycle, begin_message, end_small, write_content, write_envelope};
use crate::headers::{EncodedHeaders, Repeats, write_headers};
use crate::json::{Writer, is_text, write_string, write_u64};

#[cfg(feature = "core")]
mod raw;
#[cfg(feature = "core")]
mod read;
#[cfg(feature = "core")]
pub use read::*;
#[cfg(feature = "core")]
mod usual;

/// A kv request of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvRequest<'a> {
    /// Asks for a value.
    Get {
        /// 1 to 512 bytes; the core refuses others.
        key: &'a str,
    },
    /// Asks to store a value; answered when it is on the disk.
    Set {
        /// As in `Get`.
        key: &'a str,
        /// Any text that fits in a message.
        value: &'a str,
    },
    /// Asks to forget a value; that there is none is no error.
    Delete {
        /// As in `Get`.
        key: &'a str,
    },
    /// `limit` is in keys; `None` leaves it to the core.
    List {
        /// What the keys start with; empty for all.
        prefix: &'a str,
        /// In keys, at most 1000 count.
        limit: Option<u64>,
    },
}

/// Why a kv request cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadKvRequest {
    /// `action` is missing, no string, or no word of the protocol.
    #[error("action must be get, set, delete or list")]
    BadAction,
    /// `key` is missing or no string.
    #[error("key must be a string")]
    BadKey,
    /// `set` without a `value` that is a string.
    #[error("value must be a string")]
    BadValue,
    /// `list` with a `prefix` that is no string.
    #[error("prefix must be a string")]
    BadPrefix,
    /// `list` with a `limit` that is no integer from 0.
    #[error("limit must be a number of keys")]
    BadLimit,
    /// There is half a surrogate pair (`\ud83d`) in the message, which is no text.
    #[error("half a surrogate pair is no text")]
    BadText,
}

/// Bytes that the head of a usual response takes as JSON.
const HEAD_ROOM: usize = 192;

/// What stands before the headers of a response.
#[derive(Clone, Copy, Debug)]
pub struct ResponseStart<'a> {
    /// As the request had it.
    pub request_id: &'a str,
    /// RFC 3339, see [`crate::time`].
    pub timestamp: &'a str,
    /// 200..=599; the core refuses others.
    pub status: u16,
}

/// Appends the answer to an HTTP request, in the plain shape.
///
/// Shape: a header name that repeats becomes an array; content that is not UTF-8 becomes base64.
/// Bounds: `frame_bytes_max` is in bytes of JSON. Errors: `out` is as before.
pub fn encode_http_response<'f>(
    out: &mut Vec<u8>,
    framing: Framing,
    response: &ResponseStart<'_>,
    headers: impl Iterator<Item = (&'f str, &'f str)> + Clone,
    body: &[u8],
    frame_bytes_max: usize,
) -> Result<(), FrameError> {
    let is_text = is_text(body);
    // A new buffer for a large body shall have room for it once, with an escape every eight bytes.
    let content_bytes = if is_text { body.len() + body.len() / 8 } else { body.len().div_ceil(3) * 4 };
    out.reserve(content_bytes.min(frame_bytes_max) + 512);
    let mark = begin_frame(out, framing);
    let mut to = Writer::new(out, HEAD_ROOM + body.len());
    let json_at = to.len();
    write_envelope(&mut to, "http", response.timestamp, Some(response.request_id));
    to.literal("{\"status\":");
    to.number(u64::from(response.status));
    to.literal(",\"headers\":");
    let headers = headers.map(|(name, value)| (name, value.as_bytes()));
    write_headers(&mut to, Repeats::Array, headers, &EncodedHeaders::default());
    to.literal(",\"body\":");
    // What is longer than the frame before escaping needs no escaping to be refused.
    let json_bytes = to.len() - json_at + body.len();
    if json_bytes > frame_bytes_max {
        to.finish();
        mark.abandon(out);
        return Err(FrameError::TooLong { frame_bytes: json_bytes as u64, frame_bytes_max });
    }
    write_content(&mut to, body, is_text);
    to.literal("}}");
    to.finish();
    end_frame(out, mark, frame_bytes_max)
}

/// Appends `ready`: `init` is done, requests may come.
pub fn encode_ready(out: &mut Vec<u8>, framing: Framing, timestamp: &str) {
    let mark = begin_lifecycle(out, framing, timestamp, "ready");
    end_small(out, mark, "}}");
}

/// Appends `failed`: `init` did not succeed.
///
/// Bounds: of `error` the first 4096 bytes are sent.
pub fn encode_failed(out: &mut Vec<u8>, framing: Framing, timestamp: &str, error: &str) {
    let mark = begin_lifecycle(out, framing, timestamp, "failed");
    out.extend_from_slice(b",\"error\":");
    write_string(out, &error[..error.floor_char_boundary(4096)]);
    end_small(out, mark, "}}");
}

/// Appends `pong`, the answer to a `ping` with this `seq`; one typed by hand may have none.
pub fn encode_pong(out: &mut Vec<u8>, framing: Framing, timestamp: &str, seq: Option<u64>) {
    let mark = begin_lifecycle(out, framing, timestamp, "pong");
    if let Some(seq) = seq {
        out.extend_from_slice(b",\"seq\":");
        write_u64(out, seq);
    }
    end_small(out, mark, "}}");
}

/// Appends a log line. `fields` is JSON text of an object, or empty for none.
///
/// Errors: longer than `frame_bytes_max`; `out` is as before.
pub fn encode_log(
    out: &mut Vec<u8>,
    framing: Framing,
    timestamp: &str,
    level: &str,
    message: &str,
    fields: &str,
    frame_bytes_max: usize,
) -> Result<(), FrameError> {
    let mark = begin_message(out, framing, "log", timestamp, None);
    out.extend_from_slice(b"{\"level\":");
    write_string(out, level);
    out.extend_from_slice(b",\"message\":");
    write_string(out, message);
    if !fields.is_empty() {
        out.extend_from_slice(b",\"fields\":");
        out.extend_from_slice(fields.as_bytes());
    }
    out.extend_from_slice(b"}}");
    end_frame(out, mark, frame_bytes_max)
}

/// Appends a kv request, in the words of 1.1: `action` in lower case.
///
/// A 1.0 core may send the same message the other way, see [`crate::from_core::CoreMessage::KvRequest`].
/// Errors: longer than `frame_bytes_max`; `out` is as before.
pub fn encode_kv_request(
    out: &mut Vec<u8>,
    framing: Framing,
    timestamp: &str,
    request_id: &str,
    request: &KvRequest<'_>,
    frame_bytes_max: usize,
) -> Result<(), FrameError> {
    let mark = begin_message(out, framing, "kv", timestamp, Some(request_id));
    out.extend_from_slice(b"{\"type\":\"kv\",\"request_id\":");
    write_string(out, request_id);
    let (action, key) = match request {
        KvRequest::Get { key } => ("get", Some(key)),
        KvRequest::Set { key, .. } => ("set", Some(key)),
        KvRequest::Delete { key } => ("delete", Some(key)),
        KvRequest::List { .. } => ("list", None),
    };
    out.extend_from_slice(b",\"action\":");
    write_string(out, action);
    if let Some(key) = key {
        out.extend_from_slice(b",\"key\":");
        write_string(out, key);
    }
    match request {
        KvRequest::Set { value, .. } => {
            out.extend_from_slice(b",\"value\":");
            write_string(out, value);
        }
        KvRequest::List { prefix, limit } => {
            out.extend_from_slice(b",\"prefix\":");
            write_string(out, prefix);
            if let Some(limit) = limit {
                out.extend_from_slice(b",\"limit\":");
                write_u64(out, *limit);
            }
        }
        KvRequest::Get { .. } | KvRequest::Delete { .. } => {}
    }
    out.extend_from_slice(b"}}");
    end_frame(out, mark, frame_bytes_max)
}
