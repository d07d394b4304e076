//! What the core says to a plugin: the core's encoders, and the decoder that the SDK reads with.
//!
//! Encoders write into the buffer that goes to the socket; no tree and no copy in between.
//! A 1.0 plugin gets the fields and message types of 1.0 and nothing else.
//! Source: PROTOCOL.md, "Messages".

pub(crate) mod usual;

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::frame::{FrameError, FrameMark, Framing, begin_frame, end_frame};
use crate::from_plugin::BadKvRequest;
pub use crate::headers::EncodedHeaders;
use crate::headers::{Repeats, write_headers};
use crate::json::{Writer, is_text, write_string, write_u64};
use crate::message::MessageError;
use crate::metadata::Protocol;

/// Levels of nesting that serde_json reads before it refuses.
const DEPTH_MAX: usize = 128;

/// Bytes that the head of a usual request takes as JSON, its path aside.
const HEAD_ROOM: usize = 512;

/// The request line and what else the core knows about a request.
#[derive(Clone, Copy, Debug)]
pub struct RequestStart<'a> {
    /// Unique among the requests in flight to this plugin.
    pub request_id: &'a str,
    /// RFC 3339, see [`crate::time`].
    pub timestamp: &'a str,
    /// As the client sent it.
    pub method: &'a str,
    /// What follows `/api/plugins/<id>`, at least `/`, with its query.
    pub path: &'a str,
    /// The client, `address:port`. Written for 1.1 only.
    pub remote_addr: Option<&'a str>,
    /// Written for 1.1 only.
    pub timeout_ms: Option<u64>,
}

/// A request that cannot be sent to this plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The client gets 413.
    #[error("request of at least {json_bytes} bytes as a frame, the limit is {frame_bytes_max}")]
    TooLarge {
        /// What it would take, or a lower bound of it: escaping is not tried where it cannot help.
        json_bytes: usize,
        /// The limit, in bytes of JSON.
        frame_bytes_max: usize,
    },
    /// The client gets 415: protocol 1.0 cannot carry it.
    #[error("request content is not UTF-8, and protocol 1.0 carries text only")]
    NotText,
}

/// An HTTP request on its way into a frame: the head is written, the content is still coming.
#[derive(Debug)]
pub struct HttpRequestFrame {
    out: Vec<u8>,
    mark: FrameMark,
    protocol: Protocol,
}

impl HttpRequestFrame {
    /// Writes everything but the content.
    ///
    /// Names become lower case. A name that repeats becomes an array at its first place (1.1) or one
    /// string, joined with `, ` or for `cookie` with `; ` (1.0). Values that are not UTF-8 are read as Latin-1.
    pub fn start<'f>(
        framing: Framing,
        protocol: Protocol,
        request: &RequestStart<'_>,
        headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
    ) -> Self {
        let out = Vec::with_capacity(1024 + request.path.len());
        Self::start_in(out, framing, protocol, request, headers, &EncodedHeaders::default())
    }

    /// The same behind what `out` already holds, so that a buffer can be used again, and with more fields.
    ///
    /// Bounds: none of the names that are `encoded` is among `headers`.
    pub fn start_in<'f>(
        mut out: Vec<u8>,
        framing: Framing,
        protocol: Protocol,
        request: &RequestStart<'_>,
        headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
        encoded: &EncodedHeaders,
    ) -> Self {
        let mark = write_request_head(&mut out, framing, protocol, request, headers, encoded);
        Self { out, mark, protocol }
    }

    /// Writes the content and closes the frame.
    ///
    /// Shape: no content is `null`; content that is not UTF-8 is base64 with `body_encoding`.
    /// Bounds: `frame_bytes_max` is in bytes of JSON; content that alone is longer is refused before it is escaped.
    /// Errors: carry the HTTP status that the client deserves, see [`EncodeError`].
    pub fn finish(mut self, body: &[u8], frame_bytes_max: usize) -> Result<Vec<u8>, EncodeError> {
        write_request_body(&mut self.out, self.mark, self.protocol, body, frame_bytes_max)?;
        Ok(self.out)
    }
}

/// Appends a whole HTTP request, for content that is already there; see [`HttpRequestFrame`].
///
/// Errors: `out` is as before.
pub fn encode_http_request<'f>(
    out: &mut Vec<u8>,
    framing: Framing,
    protocol: Protocol,
    request: &RequestStart<'_>,
    headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
    body: &[u8],
    frame_bytes_max: usize,
) -> Result<(), EncodeError> {
    let encoded = EncodedHeaders::default();
    let mark = write_request_head(out, framing, protocol, request, headers, &encoded);
    write_request_body(out, mark, protocol, body, frame_bytes_max)
}

fn write_request_head<'f>(
    out: &mut Vec<u8>,
    framing: Framing,
    protocol: Protocol,
    request: &RequestStart<'_>,
    headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
    encoded: &EncodedHeaders,
) -> FrameMark {
    let mark = begin_frame(out, framing);
    let mut to = Writer::new(out, HEAD_ROOM + request.path.len());
    write_envelope(&mut to, "http", request.timestamp, Some(request.request_id));
    // 1.0 plugins on the Rust SDK refuse a message without the doubled type and id.
    to.literal("{\"type\":\"http\",\"request_id\":\"");
    to.text(request.request_id);
    to.literal("\",\"payload\":{\"method\":\"");
    to.text(request.method);
    to.literal("\",\"path\":\"");
    to.text(request.path);
    to.literal("\",\"headers\":");
    let repeats = match protocol {
        Protocol::V1_0 => Repeats::Joined,
        Protocol::V1_1 => Repeats::Array,
    };
    write_headers(&mut to, repeats, headers, encoded);
    if protocol >= Protocol::V1_1 {
        if let Some(remote_addr) = request.remote_addr {
            to.literal(",\"remote_addr\":\"");
            to.text(remote_addr);
            to.literal("\"");
        }
        if let Some(timeout_ms) = request.timeout_ms {
            to.literal(",\"timeout_ms\":");
            to.number(timeout_ms);
        }
    }
    to.literal(",\"body\":");
    to.finish();
    mark
}

fn write_request_body(
    out: &mut Vec<u8>,
    mark: FrameMark,
    protocol: Protocol,
    body: &[u8],
    frame_bytes_max: usize,
) -> Result<(), EncodeError> {
    // Escaping only makes it longer, so this needs no escaping to be sure.
    let json_bytes = mark.json_bytes(out) + body.len();
    if json_bytes > frame_bytes_max {
        mark.abandon(out);
        return Err(EncodeError::TooLarge { json_bytes, frame_bytes_max });
    }
    if body.is_empty() {
        out.extend_from_slice(b"null");
    } else {
        let is_text = is_text(body);
        if protocol == Protocol::V1_0 && !is_text {
            mark.abandon(out);
            return Err(EncodeError::NotText);
        }
        let mut to = Writer::new(out, body.len());
        write_content(&mut to, body, is_text);
        to.finish();
    }
    out.extend_from_slice(b"}}}");
    let json_bytes = mark.json_bytes(out);
    end_frame(out, mark, frame_bytes_max).map_err(|_| EncodeError::TooLarge { json_bytes, frame_bytes_max })
}

/// Appends content as a string, in base64 unless it `is_text`.
pub(crate) fn write_content(to: &mut Writer<'_>, body: &[u8], is_text: bool) {
    to.literal("\"");
    if is_text {
        to.content(body);
        to.literal("\"");
    } else {
        to.base64(body);
        to.literal("\",\"body_encoding\":\"base64\"");
    }
}

/// What a plugin learns at its start.
///
/// 1.0 gets `instance_id`, `plugin_socket` and `log_path`.
#[derive(Clone, Copy, Debug)]
pub struct Init<'a> {
    /// This installation's id, the same for ever.
    pub instance_id: &'a str,
    /// The path that the plugin listens on.
    pub plugin_socket: &'a str,
    /// The file that the core writes the plugin's log to.
    pub log_path: &'a str,
    /// The plugin's own id.
    pub plugin_id: &'a str,
    /// The frame limit of both directions.
    pub max_message_bytes: usize,
    /// A directory that the plugin may fill.
    pub data_dir: &'a str,
    /// JSON text of the plugin's table in the core's configuration; `None` is sent as `{}`.
    pub config: Option<&'a str>,
}

/// Appends `init`.
///
/// Errors: the configuration makes it longer than `max_message_bytes`; `out` is as before.
pub fn encode_init(
    out: &mut Vec<u8>,
    framing: Framing,
    protocol: Protocol,
    timestamp: &str,
    init: &Init<'_>,
) -> Result<(), FrameError> {
    let mark = begin_lifecycle(out, framing, timestamp, "init");
    let text = |out: &mut Vec<u8>, key: &str, value: &str| {
        out.extend_from_slice(key.as_bytes());
        write_string(out, value);
    };
    text(out, ",\"instance_id\":", init.instance_id);
    text(out, ",\"plugin_socket\":", init.plugin_socket);
    text(out, ",\"log_path\":", init.log_path);
    if protocol >= Protocol::V1_1 {
        text(out, ",\"protocol\":", Protocol::V1_1.as_str());
        text(out, ",\"plugin_id\":", init.plugin_id);
        out.extend_from_slice(b",\"max_message_bytes\":");
        write_u64(out, init.max_message_bytes as u64);
        text(out, ",\"data_dir\":", init.data_dir);
        out.extend_from_slice(b",\"config\":");
        out.extend_from_slice(init.config.unwrap_or("{}").as_bytes());
    }
    out.extend_from_slice(b"}}");
    end_frame(out, mark, init.max_message_bytes)
}

/// Appends `shutdown`; `deadline_ms` is for 1.1.
pub fn encode_shutdown(
    out: &mut Vec<u8>,
    framing: Framing,
    protocol: Protocol,
    timestamp: &str,
    deadline_ms: u64,
) {
    let mark = begin_lifecycle(out, framing, timestamp, "shutdown");
    if protocol >= Protocol::V1_1 {
        out.extend_from_slice(b",\"deadline_ms\":");
        write_u64(out, deadline_ms);
    }
    end_small(out, mark, "}}");
}

/// Appends `ping`; `seq` is for 1.1, where the plugin answers with `pong`.
pub fn encode_ping(out: &mut Vec<u8>, framing: Framing, protocol: Protocol, timestamp: &str, seq: u64) {
    let mark = begin_lifecycle(out, framing, timestamp, "ping");
    if protocol >= Protocol::V1_1 {
        out.extend_from_slice(b",\"seq\":");
        write_u64(out, seq);
    }
    end_small(out, mark, "}}");
}

/// Appends `cancel`. 1.1 only: 1.0 plugins drop the connection over it.
pub fn encode_cancel(out: &mut Vec<u8>, framing: Framing, timestamp: &str, request_id: &str) {
    let mark = begin_message(out, framing, "cancel", timestamp, Some(request_id));
    end_small(out, mark, "{}}");
}

/// The answer to a kv request.
#[derive(Clone, Copy, Debug)]
pub enum KvReply<'a> {
    /// For `get`; `None` also for `set` and `delete`.
    Value(Option<&'a str>),
    /// For `list`.
    Keys(&'a [String]),
    /// A fixed word for the program and a text for its author.
    Error {
        /// A fixed word, for programs.
        code: &'a str,
        /// For people.
        message: &'a str,
    },
}

/// Appends the answer to a kv request: of the core in 1.1, of a plugin where a core of 1.0 asked.
///
/// Errors: longer than `frame_bytes_max`; `out` is as before, answer with an error instead.
pub fn encode_kv_reply(
    out: &mut Vec<u8>,
    framing: Framing,
    timestamp: &str,
    request_id: &str,
    reply: &KvReply<'_>,
    frame_bytes_max: usize,
) -> Result<(), FrameError> {
    let mark = begin_message(out, framing, "kv", timestamp, Some(request_id));
    match reply {
        KvReply::Value(None) => out.extend_from_slice(b"{\"value\":null}"),
        KvReply::Value(Some(value)) => {
            out.extend_from_slice(b"{\"value\":");
            write_string(out, value);
            out.push(b'}');
        }
        KvReply::Keys(keys) => {
            out.extend_from_slice(b"{\"keys\":[");
            for (index, key) in keys.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(out, key);
            }
            out.extend_from_slice(b"]}");
        }
        KvReply::Error { code, message } => {
            out.extend_from_slice(b"{\"error\":{\"code\":");
            write_string(out, code);
            out.extend_from_slice(b",\"message\":");
            write_string(out, message);
            out.extend_from_slice(b"}}");
        }
    }
    out.push(b'}');
    end_frame(out, mark, frame_bytes_max)
}

/// Opens a message up to and without its payload's value: `{"type":…,"request_id":…,"payload":`.
///
/// An empty timestamp is left out.
pub(crate) fn begin_message(
    out: &mut Vec<u8>,
    framing: Framing,
    kind: &'static str,
    timestamp: &str,
    request_id: Option<&str>,
) -> FrameMark {
    let mark = begin_frame(out, framing);
    let mut to = Writer::new(out, 128);
    write_envelope(&mut to, kind, timestamp, request_id);
    to.finish();
    mark
}

/// Appends a message's beginning, up to and without its payload's value.
#[inline(always)]
pub(crate) fn write_envelope(
    to: &mut Writer<'_>,
    kind: &'static str,
    timestamp: &str,
    request_id: Option<&str>,
) {
    to.literal("{\"type\":\"");
    to.literal(kind);
    if !timestamp.is_empty() {
        to.literal("\",\"timestamp\":\"");
        to.text(timestamp);
    }
    if let Some(request_id) = request_id {
        to.literal("\",\"request_id\":\"");
        to.text(request_id);
    }
    to.literal("\",\"payload\":");
}

/// Opens a lifecycle message up to its action; further fields follow with a comma.
pub(crate) fn begin_lifecycle(
    out: &mut Vec<u8>,
    framing: Framing,
    timestamp: &str,
    action: &str,
) -> FrameMark {
    let mark = begin_message(out, framing, "lifecycle", timestamp, None);
    out.extend_from_slice(b"{\"type\":\"lifecycle\",\"action\":\"");
    out.extend_from_slice(action.as_bytes());
    out.push(b'"');
    mark
}

/// Closes a message that is bounded by what it is made of.
pub(crate) fn end_small(out: &mut Vec<u8>, mark: FrameMark, close: &str) {
    out.extend_from_slice(close.as_bytes());
    end_frame(out, mark, usize::MAX).expect("made of short parts");
}

/// A message of the core, as a plugin reads it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum CoreMessage<'a> {
    /// The first message; a plugin of 1.1 answers `ready` or `failed`.
    Init(InitMessage<'a>),
    /// Answer what is there and exit.
    Shutdown {
        /// How long that may take; a core of 1.0 does not say.
        deadline_ms: Option<u64>,
    },
    /// Is the plugin alive?
    Ping {
        /// To be given back in `pong`; a core of 1.0 has none and takes no answer.
        seq: Option<u64>,
    },
    /// A request of a client.
    Http {
        /// To be given back with the response.
        request_id: Cow<'a, str>,
        /// What the client asks.
        request: HttpRequestMessage<'a>,
    },
    /// Nobody waits for the answer to this request any more.
    Cancel {
        /// That of an HTTP request on the same connection.
        request_id: Cow<'a, str>,
    },
    /// The answer to a question of the plugin.
    KvReply {
        /// As the plugin chose it.
        request_id: Cow<'a, str>,
        /// What the core answers.
        reply: KvReplyMessage<'a>,
    },
    /// A question to the plugin, told from an answer by its `action`. A core of 1.1 asks none.
    KvRequest {
        /// To be given back with the answer; apart from the ids of HTTP requests and of the plugin's own questions.
        request_id: Cow<'a, str>,
        /// On `Err` the core gets a kv error and the connection lives on.
        request: Result<KvRequestMessage<'a>, BadKvRequest>,
    },
    /// A type or a lifecycle action that is not known here: ignore it.
    Unknown,
}

/// `init`; what was not sent is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct InitMessage<'a> {
    /// The core's protocol as sent; absent means 1.0.
    pub protocol: Option<Cow<'a, str>>,
    /// This installation's id.
    pub instance_id: Option<Cow<'a, str>>,
    /// The path that the plugin listens on.
    pub plugin_socket: Option<Cow<'a, str>>,
    /// The file that the core writes the plugin's log to.
    pub log_path: Option<Cow<'a, str>>,
    /// The plugin's own id. 1.1 only.
    pub plugin_id: Option<Cow<'a, str>>,
    /// The frame limit of both directions. 1.1 only.
    pub max_message_bytes: Option<u64>,
    /// A directory that the plugin may fill. 1.1 only.
    pub data_dir: Option<Cow<'a, str>>,
    /// JSON text.
    pub config: Option<&'a str>,
}

/// A request; a missing method is `GET` and a missing path is `/`, for those who type one by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpRequestMessage<'a> {
    /// As the client sent it, in capitals by custom.
    pub method: Cow<'a, str>,
    /// What follows `/api/plugins/<id>`, percent-encoded, with its query.
    pub path: Cow<'a, str>,
    /// Arrays flattened; values of one name in their order.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// Decoded where it came in base64; empty where it was null or missing.
    pub body: Cow<'a, [u8]>,
    /// The client, `address:port`. 1.1 only.
    pub remote_addr: Option<Cow<'a, str>>,
    /// When the core stops waiting, counted from when it sent the request. 1.1 only.
    pub timeout_ms: Option<u64>,
}

/// The core's answer to a kv request; which member counts depends on the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KvReplyMessage<'a> {
    /// For `get`, where there is one.
    pub value: Option<Cow<'a, str>>,
    /// For `list`.
    pub keys: Option<Vec<Cow<'a, str>>>,
    /// Code and message.
    pub error: Option<(Cow<'a, str>, Cow<'a, str>)>,
}

/// A kv request as the core asks it; see [`crate::from_plugin::KvRequest`] for the fields.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvRequestMessage<'a> {
    /// Asks for a value.
    Get {
        /// Any text.
        key: Cow<'a, str>,
    },
    /// Asks to store a value.
    Set {
        /// Any text.
        key: Cow<'a, str>,
        /// Any text, also an empty one.
        value: Cow<'a, str>,
    },
    /// Asks to forget a value.
    Delete {
        /// Any text.
        key: Cow<'a, str>,
    },
    /// Asks for keys.
    List {
        /// What the keys start with; empty for all.
        prefix: Cow<'a, str>,
        /// In keys; `None` leaves it to who answers.
        limit: Option<u64>,
    },
}

impl<'a> CoreMessage<'a> {
    /// Reads one frame of the core.
    ///
    /// Shape: borrows from `frame` whatever has no escapes. Takes 1.0 and 1.1 and what people type:
    /// no timestamp, no doubled type, the request directly in `payload`.
    /// Errors: final; close the connection.
    pub fn read(frame: &'a [u8]) -> Result<Self, MessageError> {
        usual::read(frame).map_or_else(|| Self::read_general(frame), Ok)
    }

    /// The same for a frame that is not the usual request.
    pub(crate) fn read_general(frame: &'a [u8]) -> Result<Self, MessageError> {
        let mut envelope = Envelope::default();
        let mut json = serde_json::Deserializer::from_slice(frame);
        Fill(&mut envelope)
            .deserialize(&mut json)
            .and_then(|()| json.end())
            .map_err(|error| classify(frame, &error))?;
        if !envelope.is_object {
            return Err(MessageError::NotAnObject);
        }
        let Scalar::Text(kind) = envelope.kind else {
            return Err(MessageError::NoType);
        };
        let payload = envelope.payload;
        let request_id = envelope.request_id.text().or(payload.request_id.text());
        match &*kind {
            "lifecycle" => {
                let fields = *payload.lifecycle.unwrap_or_default();
                Ok(match payload.kv.unwrap_or_default().action.text().as_deref() {
                    Some("init") => Self::Init(InitMessage {
                        protocol: fields.protocol.text(),
                        instance_id: fields.instance_id.text(),
                        plugin_socket: fields.plugin_socket.text(),
                        log_path: fields.log_path.text(),
                        plugin_id: fields.plugin_id.text(),
                        max_message_bytes: fields.max_message_bytes.number(),
                        data_dir: fields.data_dir.text(),
                        config: fields.config.map(RawValue::get).filter(|json| *json != "null"),
                    }),
                    Some("shutdown") => Self::Shutdown { deadline_ms: fields.deadline_ms.number() },
                    Some("ping") => Self::Ping { seq: fields.seq.number() },
                    _ => Self::Unknown,
                })
            }
            "http" => Ok(Self::Http {
                request_id: request_id.ok_or(MessageError::NoRequestId)?,
                request: if payload.has_inner {
                    payload.inner.http.into_request()?
                } else {
                    payload.http.into_request()?
                },
            }),
            "cancel" => Ok(Self::Cancel { request_id: request_id.ok_or(MessageError::NoRequestId)? }),
            "kv" => {
                let request_id = request_id.ok_or(MessageError::NoRequestId)?;
                let fields = payload.kv.unwrap_or_default();
                let inner = payload.inner.kv.unwrap_or_default();
                let reply = *payload.kv_reply.unwrap_or_default();
                // Answers have no `action`; in questions of 1.0 it may stand one level deeper, as in `http`.
                let is_question = |fields: &KvFields<'_>| !matches!(fields.action, Scalar::Absent);
                Ok(if is_question(&fields) {
                    Self::KvRequest { request_id, request: fields.into_request() }
                } else if is_question(&inner) {
                    Self::KvRequest { request_id, request: inner.into_request() }
                } else {
                    let reply =
                        KvReplyMessage { value: fields.value.text(), keys: reply.keys, error: reply.error };
                    Self::KvReply { request_id, reply }
                })
            }
            _ => Ok(Self::Unknown),
        }
    }
}

fn classify(frame: &[u8], error: &serde_json::Error) -> MessageError {
    if std::str::from_utf8(frame).is_err() {
        return MessageError::BadUtf8;
    }
    let reason = error.to_string();
    if reason.starts_with("recursion limit") {
        return MessageError::TooDeep { depth_max: DEPTH_MAX };
    }
    MessageError::BadJson { reason }
}

/// A value where text or a number is expected; of anything else only that it was something else.
///
/// Types are judged once the message's kind is known: a later version may give a field another type.
#[derive(Default)]
enum Scalar<'a> {
    #[default]
    Absent,
    Number(u64),
    Text(Cow<'a, str>),
    Other,
}

impl<'a> Scalar<'a> {
    fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }
}

/// Reads any JSON value into `Self`; only what differs from "something else" is spelled out.
///
/// Objects and arrays are walked with `deserialize_any`, which counts levels;
/// serde_json's own way of ignoring a value takes any depth.
macro_rules! any_value {
    ($($method:tt)*) => {
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("any value")
        }
        $($method)*
    };
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Scalar<'de>;
            any_value! {
                fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok(Scalar::Absent) }
                fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok(Scalar::Other) }
                fn visit_u64<E>(self, n: u64) -> Result<Self::Value, E> { Ok(Scalar::Number(n)) }
                fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok(Scalar::Other) }
                fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok(Scalar::Other) }
                fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                    Ok(Scalar::Text(Cow::Borrowed(text)))
                }
                fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                    Ok(Scalar::Text(Cow::Owned(text.to_owned())))
                }
                fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                    while seq.next_element::<Scalar<'de>>()?.is_some() {}
                    Ok(Scalar::Other)
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    while map.next_entry::<Scalar<'de>, Scalar<'de>>()?.is_some() {}
                    Ok(Scalar::Other)
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Scalars and absent values are nothing to a visitor that wants an object or an array.
macro_rules! scalars_are_nothing {
    () => {
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
        fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
            Ok(Default::default())
        }
    };
}

macro_rules! seq_is_nothing {
    () => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<Scalar<'de>>()?.is_some() {}
            Ok(Default::default())
        }
    };
}

/// A key: borrowed unless somebody escaped it.
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Key<'de>;
            any_value! {
                fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                    Ok(Key(Cow::Borrowed(text)))
                }
                fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                    Ok(Key(Cow::Owned(text.to_owned())))
                }
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[derive(Default)]
struct Envelope<'a> {
    is_object: bool,
    has_payload: bool,
    kind: Scalar<'a>,
    request_id: Scalar<'a>,
    payload: Payload<'a>,
}

/// Reads an object into place: fields by value would be moved out of each level that they are read on.
struct Fill<'p, T>(&'p mut T);

impl<'de: 'a, 'a> DeserializeSeed<'de> for Fill<'_, Envelope<'a>> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Fill<'_, Envelope<'a>> {
    type Value = ();
    any_value! {
        scalars_are_nothing!();
        seq_is_nothing!();
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let envelope = self.0;
            envelope.is_object = true;
            while let Some(Key(key)) = map.next_key()? {
                match &*key {
                    "type" => envelope.kind = map.next_value()?,
                    "request_id" => envelope.request_id = map.next_value()?,
                    "payload" => {
                        if std::mem::replace(&mut envelope.has_payload, true) {
                            envelope.payload = Payload::default();
                        }
                        map.next_value_seed(Fill(&mut envelope.payload))?;
                    }
                    _ => { map.next_value::<Scalar<'de>>()?; }
                }
            }
            Ok(())
        }
    }
}

/// Every field that any message has in its payload, read in one pass over the frame.
///
/// What requests do not have, which are most messages, is boxed.
#[derive(Default)]
struct Payload<'a> {
    request_id: Scalar<'a>,
    lifecycle: Option<Box<LifecycleFields<'a>>>,
    kv: Option<Box<KvFields<'a>>>,
    kv_reply: Option<Box<KvReplyFields<'a>>>,
    /// What stands in `payload.payload`, where that is an object, goes to `http` and `kv` of its own.
    has_inner: bool,
    inner: InnerFields<'a>,
    http: HttpFields<'a>,
}

#[derive(Default)]
struct LifecycleFields<'a> {
    protocol: Scalar<'a>,
    instance_id: Scalar<'a>,
    plugin_socket: Scalar<'a>,
    log_path: Scalar<'a>,
    plugin_id: Scalar<'a>,
    max_message_bytes: Scalar<'a>,
    data_dir: Scalar<'a>,
    config: Option<&'a RawValue>,
    deadline_ms: Scalar<'a>,
    seq: Scalar<'a>,
}

impl<'a> LifecycleFields<'a> {
    fn has(key: &str) -> bool {
        matches!(
            key,
            "protocol"
                | "instance_id"
                | "plugin_socket"
                | "log_path"
                | "plugin_id"
                | "max_message_bytes"
                | "data_dir"
                | "config"
                | "deadline_ms"
                | "seq"
        )
    }

    fn read_field<'de: 'a, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let field = match key {
            "protocol" => &mut self.protocol,
            "instance_id" => &mut self.instance_id,
            "plugin_socket" => &mut self.plugin_socket,
            "log_path" => &mut self.log_path,
            "plugin_id" => &mut self.plugin_id,
            "max_message_bytes" => &mut self.max_message_bytes,
            "data_dir" => &mut self.data_dir,
            "config" => {
                self.config = map.next_value()?;
                return Ok(());
            }
            "deadline_ms" => &mut self.deadline_ms,
            _ => &mut self.seq,
        };
        *field = map.next_value()?;
        Ok(())
    }
}

#[derive(Default)]
struct KvReplyFields<'a> {
    keys: Option<Vec<Cow<'a, str>>>,
    error: Option<(Cow<'a, str>, Cow<'a, str>)>,
}

impl<'de: 'a, 'a> DeserializeSeed<'de> for Fill<'_, Payload<'a>> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Fill<'_, Payload<'a>> {
    type Value = ();
    any_value! {
        scalars_are_nothing!();
        seq_is_nothing!();
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            let payload = self.0;
            while let Some(Key(key)) = map.next_key()? {
                match &*key {
                    "payload" => {
                        if std::mem::replace(&mut payload.has_inner, false) {
                            payload.inner = InnerFields::default();
                        }
                        payload.has_inner = map.next_value_seed(Fill(&mut payload.inner))?;
                    }
                    "request_id" => payload.request_id = map.next_value()?,
                    "keys" => payload.kv_reply.get_or_insert_default().keys = map.next_value::<Keys<'de>>()?.0,
                    "error" => {
                        payload.kv_reply.get_or_insert_default().error = map.next_value::<Failure<'de>>()?.0;
                    }
                    key if KvFields::has(key) => {
                        payload.kv.get_or_insert_default().read_field(key, &mut map)?;
                    }
                    key if LifecycleFields::has(key) => {
                        payload.lifecycle.get_or_insert_default().read_field(key, &mut map)?;
                    }
                    key => payload.http.read_field(key, &mut map)?,
                }
            }
            Ok(())
        }
    }
}

#[derive(Default)]
struct HttpFields<'a> {
    method: Scalar<'a>,
    path: Scalar<'a>,
    headers: Headers<'a>,
    body: Scalar<'a>,
    body_encoding: Scalar<'a>,
    remote_addr: Scalar<'a>,
    timeout_ms: Scalar<'a>,
}

impl<'a> HttpFields<'a> {
    fn read_field<'de: 'a, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "method" => self.method = map.next_value()?,
            "path" => self.path = map.next_value()?,
            "headers" => self.headers = map.next_value()?,
            "body" => self.body = map.next_value()?,
            "body_encoding" => self.body_encoding = map.next_value()?,
            "remote_addr" => self.remote_addr = map.next_value()?,
            "timeout_ms" => self.timeout_ms = map.next_value()?,
            _ => {
                map.next_value::<Scalar<'de>>()?;
            }
        }
        Ok(())
    }

    fn into_request(self) -> Result<HttpRequestMessage<'a>, MessageError> {
        let bad_field = |field, reason| MessageError::BadField { field, reason };
        let body = match self.body {
            Scalar::Absent => None,
            Scalar::Text(text) => Some(text),
            Scalar::Number(_) | Scalar::Other => {
                return Err(bad_field("body", "must be a string or null"));
            }
        };
        let body = match (body, self.body_encoding.text().as_deref()) {
            (None, _) => Cow::Borrowed(&[][..]),
            (Some(Cow::Borrowed(text)), None) => Cow::Borrowed(text.as_bytes()),
            (Some(Cow::Owned(text)), None) => Cow::Owned(text.into_bytes()),
            (Some(text), Some("base64")) => {
                Cow::Owned(STANDARD.decode(&*text).map_err(|_| bad_field("body", "is not base64"))?)
            }
            (Some(_), Some(_)) => return Err(bad_field("body_encoding", "is not known")),
        };
        Ok(HttpRequestMessage {
            method: self.method.text().unwrap_or(Cow::Borrowed("GET")),
            path: self.path.text().unwrap_or(Cow::Borrowed("/")),
            headers: self.headers.0,
            body,
            remote_addr: self.remote_addr.text(),
            timeout_ms: self.timeout_ms.number(),
        })
    }
}

/// The fields of a kv question, and of those `value` is an answer's and `action` a lifecycle message's too.
#[derive(Default)]
struct KvFields<'a> {
    action: Scalar<'a>,
    key: Scalar<'a>,
    value: Scalar<'a>,
    prefix: Scalar<'a>,
    limit: Scalar<'a>,
}

impl<'a> KvFields<'a> {
    fn has(key: &str) -> bool {
        matches!(key, "action" | "key" | "value" | "prefix" | "limit")
    }

    fn read_field<'de: 'a, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let field = match key {
            "action" => &mut self.action,
            "key" => &mut self.key,
            "value" => &mut self.value,
            "prefix" => &mut self.prefix,
            _ => &mut self.limit,
        };
        *field = map.next_value()?;
        Ok(())
    }

    fn into_request(self) -> Result<KvRequestMessage<'a>, BadKvRequest> {
        let action = self.action.text().unwrap_or_default();
        let is = |word: &str| action.eq_ignore_ascii_case(word);
        let key = self.key.text().ok_or(BadKvRequest::BadKey);
        if is("get") {
            Ok(KvRequestMessage::Get { key: key? })
        } else if is("set") {
            let (key, value) = (key?, self.value.text().ok_or(BadKvRequest::BadValue)?);
            Ok(KvRequestMessage::Set { key, value })
        } else if is("delete") {
            Ok(KvRequestMessage::Delete { key: key? })
        } else if is("list") {
            let prefix = match self.prefix {
                Scalar::Absent => Cow::Borrowed(""),
                Scalar::Text(prefix) => prefix,
                Scalar::Number(_) | Scalar::Other => return Err(BadKvRequest::BadPrefix),
            };
            let limit = match self.limit {
                Scalar::Absent => None,
                Scalar::Number(limit) => Some(limit),
                Scalar::Text(_) | Scalar::Other => return Err(BadKvRequest::BadLimit),
            };
            Ok(KvRequestMessage::List { prefix, limit })
        } else {
            Err(BadKvRequest::BadAction)
        }
    }
}

/// What stands in `payload.payload`.
#[derive(Default)]
struct InnerFields<'a> {
    http: HttpFields<'a>,
    kv: Option<Box<KvFields<'a>>>,
}

/// The value is whether there was an object.
impl<'de: 'a, 'a> DeserializeSeed<'de> for Fill<'_, InnerFields<'a>> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de: 'a, 'a> Visitor<'de> for Fill<'_, InnerFields<'a>> {
    type Value = bool;
    any_value! {
        scalars_are_nothing!();
        seq_is_nothing!();
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let fields = self.0;
            while let Some(Key(key)) = map.next_key()? {
                if KvFields::has(&key) {
                    fields.kv.get_or_insert_default().read_field(&key, &mut map)?;
                } else {
                    fields.http.read_field(&key, &mut map)?;
                }
            }
            Ok(true)
        }
    }
}

#[derive(Default)]
struct Headers<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Headers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Headers<'de>;
            any_value! {
                scalars_are_nothing!();
                seq_is_nothing!();
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut headers = Vec::with_capacity(16);
                    while let Some(Key(name)) = map.next_key()? {
                        match map.next_value()? {
                            OneOrMany::One(Scalar::Text(value)) => headers.push((name, value)),
                            OneOrMany::One(_) => {}
                            OneOrMany::Many(values) => {
                                headers.extend(values.into_iter().map(|value| (name.clone(), value)));
                            }
                        }
                    }
                    Ok(Headers(headers))
                }
            }
        }
        deserializer.deserialize_any(Object)
    }
}

enum OneOrMany<'a> {
    One(Scalar<'a>),
    Many(Vec<Cow<'a, str>>),
}

impl<'de: 'a, 'a> Deserialize<'de> for OneOrMany<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = OneOrMany<'de>;
            any_value! {
                fn visit_unit<E>(self) -> Result<Self::Value, E> { Ok(OneOrMany::One(Scalar::Absent)) }
                fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> { Ok(OneOrMany::One(Scalar::Other)) }
                fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> { Ok(OneOrMany::One(Scalar::Other)) }
                fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> { Ok(OneOrMany::One(Scalar::Other)) }
                fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> { Ok(OneOrMany::One(Scalar::Other)) }
                fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                    Ok(OneOrMany::One(Scalar::Text(Cow::Borrowed(text))))
                }
                fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                    Ok(OneOrMany::One(Scalar::Text(Cow::Owned(text.to_owned()))))
                }
                fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                    read_texts(seq).map(OneOrMany::Many)
                }
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    while map.next_entry::<Scalar<'de>, Scalar<'de>>()?.is_some() {}
                    Ok(OneOrMany::One(Scalar::Other))
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn read_texts<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<Cow<'de, str>>, A::Error> {
    let mut texts = Vec::new();
    while let Some(value) = seq.next_element::<Scalar<'de>>()? {
        texts.extend(value.text());
    }
    Ok(texts)
}

#[derive(Default)]
struct Keys<'a>(Option<Vec<Cow<'a, str>>>);

impl<'de: 'a, 'a> Deserialize<'de> for Keys<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::Many(keys) => Some(keys),
            OneOrMany::One(_) => None,
        }))
    }
}

#[derive(Default)]
struct Failure<'a>(Option<(Cow<'a, str>, Cow<'a, str>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Failure<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Failure<'de>;
            any_value! {
                scalars_are_nothing!();
                seq_is_nothing!();
                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let (mut code, mut message) = (Scalar::Absent, Scalar::Absent);
                    while let Some(Key(key)) = map.next_key()? {
                        match &*key {
                            "code" => code = map.next_value()?,
                            "message" => message = map.next_value()?,
                            _ => { map.next_value::<Scalar<'de>>()?; }
                        }
                    }
                    let code = code.text().unwrap_or(Cow::Borrowed("error"));
                    Ok(Failure(Some((code, message.text().unwrap_or_default()))))
                }
            }
        }
        deserializer.deserialize_any(Object)
    }
}

/// Reading never panics, and what is read never holds more than the frame.
#[doc(hidden)]
pub fn fuzz_core_message(data: &[u8]) {
    if let Ok(CoreMessage::Http { request, .. }) = CoreMessage::read(data) {
        assert!(request.body.len() <= data.len());
    }
}
