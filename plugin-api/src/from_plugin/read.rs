//! The core's decoder: by position what the SDKs write, anything else as simd-json's tape, walked in place.
//!
//! No value tree is built, and strings, bodies above all, are borrowed from the frame.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use simd_json::{Buffers, ErrorType, Node, StaticNode, Tape};
use thiserror::Error;

use super::raw::{Mended, Numbers, member, mend};
use super::{BadKvRequest, KvRequest, usual};
use crate::headers::{is_field_value, is_token};
use crate::json::{write_string, write_u64};
use crate::message::MessageError;

/// Levels of nesting that a plugin's message may have.
pub const DEPTH_MAX: usize = 128;

/// A tape that grew past this many nodes for one message is cut back; a node is 24 bytes.
const TAPE_NODES_KEPT: usize = 16 * 1024;
const TEXT_BYTES_KEPT: usize = 256 * 1024;

/// Reads what plugins send. One per worker: its buffers are used again for each message.
pub struct PluginMessageReader {
    buffers: Buffers,
    tape: Tape<'static>,
    /// The response inside a nested one.
    nested_tape: Tape<'static>,
    nested_text: Vec<u8>,
    /// The frame as it came: reading rewrites it.
    raw: Vec<u8>,
    /// Header values that were numbers, as text, each ended by `\n`, in the order of the headers.
    number_texts: String,
}

impl fmt::Debug for PluginMessageReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PluginMessageReader").finish_non_exhaustive()
    }
}

impl Default for PluginMessageReader {
    fn default() -> Self {
        Self::new()
    }
}

impl PluginMessageReader {
    /// A reader with empty buffers; they grow with the messages and are cut back after large ones.
    pub fn new() -> Self {
        Self {
            buffers: Buffers::with_max_depth(4096, DEPTH_MAX),
            tape: Tape(Vec::new()),
            nested_tape: Tape(Vec::new()),
            nested_text: Vec::new(),
            raw: Vec::new(),
            number_texts: String::new(),
        }
    }

    /// Reads one frame and hands the message to `use_message`.
    ///
    /// Shape: the message borrows from the frame, whose bytes are rewritten in the process.
    /// Bounds: [`DEPTH_MAX`] levels. Errors: the plugin broke the protocol; close the connection.
    /// A response or kv request that is wrong in itself is no error but a message that says so; so is one with half a
    /// surrogate pair in it, which elsewhere counts as U+FFFD.
    pub fn read<R>(
        &mut self,
        frame: &mut [u8],
        use_message: impl FnOnce(PluginMessage<'_>) -> R,
    ) -> Result<R, MessageError> {
        if let Some(usual::Answer { request_id, status, headers, body }) = usual::read(frame) {
            let headers = ResponseHeaders(Headers::Text(headers));
            let response = Ok(HttpResponse { status, headers, body, body_is_json: false });
            return Ok(use_message(PluginMessage::HttpResponse { request_id, response }));
        }
        self.read_general(frame, use_message)
    }

    /// Reads any frame, however it is written.
    pub(super) fn read_general<R>(
        &mut self,
        frame: &mut [u8],
        use_message: impl FnOnce(PluginMessage<'_>) -> R,
    ) -> Result<R, MessageError> {
        let Self { buffers, tape: kept_tape, nested_tape: kept_nested_tape, nested_text, raw, number_texts } =
            self;
        let (mut mended_frame, mut mended_nested) = (Vec::new(), Vec::new());
        let mut tape = std::mem::replace(kept_tape, Tape(Vec::new())).reset();
        let mut nested_tape = std::mem::replace(kept_nested_tape, Tape(Vec::new())).reset();
        nested_text.clear();
        number_texts.clear();
        raw.clear();
        raw.extend_from_slice(frame);
        let raw_frame = &raw[..];

        let mut mended = None;
        let mut parsed = simd_json::fill_tape(frame, buffers, &mut tape);
        if parsed.is_err() {
            mended_frame.extend_from_slice(raw_frame);
            mended = mend(&mut mended_frame);
            if mended.is_some() {
                tape = tape.reset();
                parsed = simd_json::fill_tape(&mut mended_frame, buffers, &mut tape);
            }
        }
        let result = match parsed {
            Err(error) => Err(classify(&error)),
            Ok(()) => Envelope::read(&tape.0).map(|envelope| {
                let nested = Nested { text: &mut *nested_text, mended_text: &mut mended_nested };
                let response = match envelope.kind {
                    "http" if is_half_text(mended) => Err(BadResponse::BadText),
                    "http" => find_response(&envelope, buffers, nested, &mut nested_tape),
                    _ => Err(BadResponse::BadPayload),
                };
                // The fields now stand in one tape or the other.
                let response = response.and_then(|place| {
                    let payload = |outer| member(outer, "payload").unwrap_or_default();
                    let (nodes, raw) = match place {
                        Place::Payload => (envelope.payload, payload(raw_frame)),
                        Place::InnerBody(nodes) => {
                            (nodes, member(payload(payload(raw_frame)), "body").unwrap_or_default())
                        }
                        Place::InnerText(text) => (&nested_tape.0[..], text.as_bytes()),
                    };
                    HttpResponse::read(nodes, raw, number_texts)
                });
                use_message(envelope.into_message(raw_frame, mended, response))
            }),
        };

        let mut tape = tape.reset();
        tape.0.shrink_to(TAPE_NODES_KEPT);
        *kept_tape = tape;
        let mut nested_tape = nested_tape.reset();
        nested_tape.0.shrink_to(TAPE_NODES_KEPT);
        *kept_nested_tape = nested_tape;
        for text in [nested_text, raw] {
            if text.capacity() > TEXT_BYTES_KEPT {
                *text = Vec::new();
            }
        }
        result
    }
}

/// A message of a plugin, as the core reads it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum PluginMessage<'a> {
    /// An answer to a request.
    HttpResponse {
        /// As the plugin gave it back: it may be nobody's.
        request_id: &'a str,
        /// On `Err` the client gets 502 and the connection lives on.
        response: Result<HttpResponse<'a>, BadResponse>,
    },
    /// `init` is done, requests may come.
    Ready,
    /// `init` did not succeed.
    Failed {
        /// Empty where the plugin gave no reason.
        error: &'a str,
    },
    /// The answer to a ping.
    Pong {
        /// That of the ping, if the plugin is honest.
        seq: u64,
    },
    /// A line for the plugin's log.
    Log {
        /// `info` where the plugin gave none; not checked against a list.
        level: &'a str,
        /// Empty where the plugin gave none.
        message: &'a str,
        /// JSON text of an object, on one line.
        fields_json: Option<Cow<'a, str>>,
    },
    /// A question to the plugin's stored values.
    Kv {
        /// As the plugin chose it; goes back with the answer.
        request_id: &'a str,
        /// On `Err` the plugin gets a kv error and the connection lives on.
        request: Result<KvRequest<'a>, BadKvRequest>,
    },
    /// A type or a lifecycle action that is not known here: ignore it.
    Unknown {
        /// The type, or the action of a lifecycle message.
        kind: &'a str,
    },
}

/// A response whose status and headers may be passed on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HttpResponse<'a> {
    /// 200..=599.
    pub status: u16,
    /// Names are tokens; values have no control character but tab. Hop-by-hop fields are the core's business.
    pub headers: ResponseHeaders<'a>,
    /// The content, decoded where it came in base64.
    pub body: Cow<'a, [u8]>,
    /// The body was a JSON value other than a string, and is its compact text.
    pub body_is_json: bool,
}

/// Why a response cannot be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadResponse {
    /// `payload` is missing or no object.
    #[error("payload is missing or not an object")]
    BadPayload,
    /// `payload.payload` is there, and its `body` is neither a response as JSON text nor one as an object.
    #[error("payload.payload.body is not a response as JSON text")]
    BadNested,
    /// `status` is missing, no integer, or not from 200 to 599.
    #[error("status is missing or not an integer from 200 to 599")]
    BadStatus,
    /// `headers` is neither an object nor null.
    #[error("headers is not an object")]
    BadHeaders,
    /// A name in `headers` is no token.
    #[error("a header name is not a token")]
    BadHeaderName,
    /// A value in `headers` is an object, a list of lists, or a text with CR, LF, NUL or another control character.
    #[error("a header value is not text, or has CR, LF, NUL or another control character in it")]
    BadHeaderValue,
    /// `body_encoding` is there and is not `base64`.
    #[error("body_encoding is not known")]
    BadEncoding,
    /// `body` is not what `body_encoding` says: standard alphabet, padded, no white space.
    #[error("body is not base64")]
    BadBase64,
    /// There is half a surrogate pair (`\ud83d`) in the message, which is no text.
    #[error("half a surrogate pair is no text")]
    BadText,
}

/// The headers of a response, in order; arrays are flattened.
#[derive(Clone, Debug)]
pub struct ResponseHeaders<'a>(Headers<'a>);

#[derive(Clone, Debug)]
enum Headers<'a> {
    Text(usual::Headers<'a>),
    Tape(TapeHeaders<'a>),
}

impl<'a> Iterator for ResponseHeaders<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Headers::Text(headers) => headers.next(),
            Headers::Tape(headers) => headers.next(),
        }
    }
}

#[derive(Clone, Debug)]
struct TapeHeaders<'a> {
    /// The rest of the object's entries.
    nodes: &'a [Node<'a>],
    /// Inside an array: its name, and how many elements are still to come.
    array: Option<(&'a str, usize)>,
    number_texts: &'a str,
}

impl<'a> Iterator for TapeHeaders<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let name = match self.array {
                Some((_, 0)) => {
                    self.array = None;
                    continue;
                }
                Some((name, ref mut left)) => {
                    *left -= 1;
                    name
                }
                None => {
                    let (Node::String(name), rest) = self.nodes.split_first()? else {
                        return None;
                    };
                    self.nodes = rest;
                    name
                }
            };
            let (value, rest) = self.nodes.split_first()?;
            self.nodes = rest;
            match value {
                Node::String(text) => return Some((name, text)),
                Node::Static(StaticNode::Bool(true)) => return Some((name, "true")),
                Node::Static(StaticNode::Bool(false)) => return Some((name, "false")),
                Node::Static(StaticNode::Null) => {}
                Node::Static(_) => {
                    let (text, rest) = self.number_texts.split_once('\n')?;
                    self.number_texts = rest;
                    return Some((name, text));
                }
                Node::Array { len, .. } => self.array = Some((name, *len)),
                Node::Object { .. } => return None,
            }
        }
    }
}

fn classify(error: &simd_json::Error) -> MessageError {
    match error.error() {
        ErrorType::InvalidUtf8 => MessageError::BadUtf8,
        ErrorType::DepthLimitExceeded => MessageError::TooDeep { depth_max: DEPTH_MAX },
        other => MessageError::BadJson { reason: in_words(other, error) },
    }
}

/// What is wrong and where, for whoever wrote the plugin: the parser has names of its own.
fn in_words(what: &ErrorType, error: &simd_json::Error) -> String {
    let words = match what {
        ErrorType::ExpectedArrayComma | ErrorType::ExpectedArrayContent => {
            "an array lacks an element, a comma or its end"
        }
        ErrorType::BadKeyType
        | ErrorType::ExpectedMapComma
        | ErrorType::ExpectedMapEnd
        | ErrorType::ExpectedObjectColon
        | ErrorType::ExpectedObjectContent
        | ErrorType::ExpectedObjectKey
        | ErrorType::KeyMustBeAString => "an object lacks a key, a colon, a value, a comma or its end",
        ErrorType::ExpectedTrue | ErrorType::ExpectedFalse | ErrorType::ExpectedNull => {
            "a word that is none of true, false and null"
        }
        ErrorType::InvalidNumber | ErrorType::InvalidExponent | ErrorType::ExpectedNumber => {
            "a number that is none"
        }
        ErrorType::InvalidEscape | ErrorType::InvalidUnicodeEscape | ErrorType::InvalidUnicodeCodepoint => {
            "an escape that is none in a string"
        }
        ErrorType::UnterminatedString => "a string without an end",
        ErrorType::Eof => "the text ends too early",
        ErrorType::TrailingData => "something follows the value",
        ErrorType::UnexpectedCharacter => "a character that begins no value",
        // It cannot tell, nor where.
        _ => return "the text is no JSON value".into(),
    };
    match error.character() {
        Some(character) => format!("{words}, at byte {} ({character:?})", error.index()),
        None => format!("{words}, at byte {}", error.index()),
    }
}

/// The fields of an object in a tape: each key with its value's nodes. Empty for anything else.
struct Fields<'t, 'i> {
    rest: &'t [Node<'i>],
    left: usize,
}

fn fields<'t, 'i>(nodes: &'t [Node<'i>]) -> Fields<'t, 'i> {
    match nodes.split_first() {
        Some((Node::Object { len, .. }, rest)) => Fields { rest, left: *len },
        _ => Fields { rest: &[], left: 0 },
    }
}

impl<'t, 'i> Iterator for Fields<'t, 'i> {
    type Item = (&'i str, &'t [Node<'i>]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let (Node::String(key), rest) = self.rest.split_first()? else {
            return None;
        };
        let (value, rest) = rest.split_at(node_count(rest));
        self.rest = rest;
        Some((key, value))
    }
}

/// Nodes that the value at the front takes up.
fn node_count(nodes: &[Node<'_>]) -> usize {
    match nodes.first() {
        Some(Node::Object { count, .. } | Node::Array { count, .. }) => 1 + count,
        Some(_) => 1,
        None => 0,
    }
}

fn is_object(nodes: &[Node<'_>]) -> bool {
    matches!(nodes.first(), Some(Node::Object { .. }))
}

fn is_null(nodes: &[Node<'_>]) -> bool {
    matches!(nodes.first(), None | Some(Node::Static(StaticNode::Null)))
}

fn text<'i>(nodes: &[Node<'i>]) -> Option<&'i str> {
    match nodes.first() {
        Some(Node::String(text)) => Some(text),
        _ => None,
    }
}

fn number(nodes: &[Node<'_>]) -> Option<u64> {
    match nodes.first() {
        Some(Node::Static(StaticNode::U64(number))) => Some(*number),
        Some(Node::Static(StaticNode::I64(number))) => u64::try_from(*number).ok(),
        _ => None,
    }
}

struct Envelope<'a> {
    kind: &'a str,
    /// Empty for kinds that have none.
    request_id: &'a str,
    /// Empty if missing.
    payload: &'a [Node<'a>],
    /// `payload.payload`; empty if missing.
    inner: &'a [Node<'a>],
}

impl<'a> Envelope<'a> {
    fn read(nodes: &'a [Node<'a>]) -> Result<Self, MessageError> {
        if !is_object(nodes) {
            return Err(MessageError::NotAnObject);
        }
        let (mut kind, mut request_id) = (None, None);
        let mut payload: &[Node<'a>] = &[];
        for (key, value) in fields(nodes) {
            match key {
                "type" => kind = text(value),
                "request_id" => request_id = text(value),
                "payload" => payload = value,
                _ => {}
            }
        }
        let kind = kind.ok_or(MessageError::NoType)?;
        let mut inner: &[Node<'a>] = &[];
        let mut inner_request_id = None;
        for (key, value) in fields(payload) {
            match key {
                "payload" => inner = value,
                "request_id" => inner_request_id = text(value),
                _ => {}
            }
        }
        let request_id = request_id.or(inner_request_id);
        if request_id.is_none() && matches!(kind, "http" | "kv") {
            return Err(MessageError::NoRequestId);
        }
        Ok(Self { kind, request_id: request_id.unwrap_or(""), payload, inner })
    }

    fn into_message(
        self,
        raw: &[u8],
        mended: Option<Mended>,
        response: Result<HttpResponse<'a>, BadResponse>,
    ) -> PluginMessage<'a> {
        match self.kind {
            "kv" if is_half_text(mended) => {
                PluginMessage::Kv { request_id: self.request_id, request: Err(BadKvRequest::BadText) }
            }
            "http" => PluginMessage::HttpResponse { request_id: self.request_id, response },
            "kv" => PluginMessage::Kv {
                request_id: self.request_id,
                request: read_kv(if is_object(self.inner) { self.inner } else { self.payload }),
            },
            "lifecycle" => {
                let (mut action, mut error, mut seq) = ("", "", None);
                for (key, value) in fields(self.payload) {
                    match key {
                        "action" => action = text(value).unwrap_or(""),
                        "error" => error = text(value).unwrap_or(""),
                        "seq" => seq = number(value),
                        _ => {}
                    }
                }
                match (action, seq) {
                    ("ready", _) => PluginMessage::Ready,
                    ("failed", _) => PluginMessage::Failed { error },
                    ("pong", Some(seq)) => PluginMessage::Pong { seq },
                    _ => PluginMessage::Unknown { kind: action },
                }
            }
            "log" => {
                let (mut level, mut message, mut fields_json) = (None, None, None);
                for (key, value) in fields(self.payload) {
                    match key {
                        "level" => level = text(value),
                        "message" => message = text(value),
                        "fields" if is_object(value) => {
                            let raw = || member(member(raw, "payload")?, "fields");
                            let json = String::from_utf8(json_text(value, raw))
                                .expect("made of strings, digits and ASCII");
                            fields_json = Some(Cow::Owned(json));
                        }
                        _ => {}
                    }
                }
                PluginMessage::Log {
                    level: level.unwrap_or("info"),
                    message: message.unwrap_or(""),
                    fields_json,
                }
            }
            kind => PluginMessage::Unknown { kind },
        }
    }
}

/// Whether what was read is not all that was sent.
fn is_half_text(mended: Option<Mended>) -> bool {
    mended.is_some_and(|mended| mended.text)
}

/// Where the fields of a response stand.
enum Place<'a> {
    /// Plain: in the payload.
    Payload,
    /// Nested, but as an object instead of as text.
    InnerBody(&'a [Node<'a>]),
    /// Nested as this text, which now is in the nested tape.
    InnerText(&'a str),
}

/// Room for the text of a nested response, which reading rewrites.
struct Nested<'n> {
    text: &'n mut Vec<u8>,
    mended_text: &'n mut Vec<u8>,
}

fn find_response<'a, 'n>(
    envelope: &Envelope<'a>,
    buffers: &mut Buffers,
    nested: Nested<'n>,
    nested_tape: &mut Tape<'n>,
) -> Result<Place<'a>, BadResponse> {
    if !is_object(envelope.payload) {
        return Err(BadResponse::BadPayload);
    }
    if !is_object(envelope.inner) {
        return Ok(Place::Payload);
    }
    let body = fields(envelope.inner).filter(|(key, _)| *key == "body").last();
    match body {
        Some((_, nodes)) if is_object(nodes) => Ok(Place::InnerBody(nodes)),
        Some((_, &[Node::String(json)])) => {
            nested.text.extend_from_slice(json.as_bytes());
            let mut parsed = simd_json::fill_tape(nested.text, buffers, nested_tape);
            if parsed.is_err() {
                nested.mended_text.extend_from_slice(json.as_bytes());
                let mended = mend(nested.mended_text);
                if is_half_text(mended) {
                    return Err(BadResponse::BadText);
                }
                nested_tape.0.clear();
                parsed = simd_json::fill_tape(nested.mended_text, buffers, nested_tape);
            }
            match parsed {
                Ok(()) if is_object(&nested_tape.0) => Ok(Place::InnerText(json)),
                _ => Err(BadResponse::BadNested),
            }
        }
        _ => Err(BadResponse::BadNested),
    }
}

impl<'a> HttpResponse<'a> {
    /// `raw` is the text that `nodes` were read from.
    fn read(nodes: &'a [Node<'a>], raw: &[u8], number_texts: &'a mut String) -> Result<Self, BadResponse> {
        let (mut status, mut encoding): (&[Node<'a>], &[Node<'a>]) = (&[], &[]);
        let (mut headers, mut body): (&[Node<'a>], &[Node<'a>]) = (&[], &[]);
        for (key, value) in fields(nodes) {
            match key {
                "status" => status = value,
                "headers" => headers = value,
                "body" => body = value,
                "body_encoding" => encoding = value,
                _ => {}
            }
        }
        let status = number(status)
            .filter(|status| (200..=599).contains(status))
            .ok_or(BadResponse::BadStatus)? as u16;
        let headers = read_headers(headers, raw, number_texts)?;
        let (body, body_is_json) = if is_null(encoding) {
            match body.first() {
                None | Some(Node::Static(StaticNode::Null)) => (Cow::Borrowed(&[][..]), false),
                Some(Node::String(text)) => (Cow::Borrowed(text.as_bytes()), false),
                Some(_) => (Cow::Owned(json_text(body, || member(raw, "body"))), true),
            }
        } else {
            if text(encoding) != Some("base64") {
                return Err(BadResponse::BadEncoding);
            }
            let body = match text(body) {
                Some(text) => STANDARD.decode(text).map_err(|_| BadResponse::BadBase64)?,
                None if is_null(body) => Vec::new(),
                None => return Err(BadResponse::BadBase64),
            };
            (Cow::Owned(body), false)
        };
        Ok(Self { status, headers, body, body_is_json })
    }
}

fn read_headers<'a>(
    nodes: &'a [Node<'a>],
    raw: &[u8],
    number_texts: &'a mut String,
) -> Result<ResponseHeaders<'a>, BadResponse> {
    if !is_object(nodes) && !is_null(nodes) {
        return Err(BadResponse::BadHeaders);
    }
    let mut numbers = None;
    for (name, value) in fields(nodes) {
        if !is_token(name) {
            return Err(BadResponse::BadHeaderName);
        }
        let values = match value {
            [Node::Array { .. }, elements @ ..] => elements,
            [Node::Object { .. }, ..] => return Err(BadResponse::BadHeaderValue),
            one => one,
        };
        for value in values {
            match value {
                Node::String(text) if is_field_value(text) => {}
                Node::Static(StaticNode::Null | StaticNode::Bool(_)) => {}
                Node::Static(_) => {
                    let numbers =
                        numbers.get_or_insert_with(|| Numbers(member(raw, "headers").unwrap_or_default()));
                    let number = numbers.next().ok_or(BadResponse::BadHeaderValue)?;
                    number_texts.push_str(std::str::from_utf8(number).expect("digits are ASCII"));
                    number_texts.push('\n');
                }
                // A value inside an array inside an array would show here as its array does.
                _ => return Err(BadResponse::BadHeaderValue),
            }
        }
    }
    let nodes = nodes.get(1..).unwrap_or(&[]);
    Ok(ResponseHeaders(Headers::Tape(TapeHeaders { nodes, array: None, number_texts })))
}

fn read_kv<'a>(nodes: &'a [Node<'a>]) -> Result<KvRequest<'a>, BadKvRequest> {
    let (mut action, mut key, mut value) = ("", None, None);
    let (mut prefix, mut limit): (&[Node<'a>], &[Node<'a>]) = (&[], &[]);
    for (name, nodes) in fields(nodes) {
        match name {
            "action" => action = text(nodes).unwrap_or(""),
            "key" => key = text(nodes),
            "value" => value = text(nodes),
            "prefix" => prefix = nodes,
            "limit" => limit = nodes,
            _ => {}
        }
    }
    let is = |word: &str| action.eq_ignore_ascii_case(word);
    let key = key.ok_or(BadKvRequest::BadKey);
    if is("get") {
        Ok(KvRequest::Get { key: key? })
    } else if is("set") {
        Ok(KvRequest::Set { key: key?, value: value.ok_or(BadKvRequest::BadValue)? })
    } else if is("delete") {
        Ok(KvRequest::Delete { key: key? })
    } else if is("list") {
        Ok(KvRequest::List {
            prefix: match text(prefix) {
                Some(prefix) => prefix,
                None if is_null(prefix) => "",
                None => return Err(BadKvRequest::BadPrefix),
            },
            limit: match number(limit) {
                Some(limit) => Some(limit),
                None if is_null(limit) => None,
                None => return Err(BadKvRequest::BadLimit),
            },
        })
    } else {
        Err(BadKvRequest::BadAction)
    }
}

/// Compact JSON text of a value in a tape; `raw` finds the text that it was read from.
///
/// Numbers are as the plugin wrote them: a double may have fewer digits.
fn json_text<'r>(nodes: &[Node<'_>], raw: impl FnOnce() -> Option<&'r [u8]>) -> Vec<u8> {
    /// A container that is open: whether it is an object, and how many keys and values are to come.
    struct Open {
        is_object: bool,
        left: usize,
    }
    // Looked for only where a number is none of 64 bits, since those are all there.
    let is_double = |node: &Node<'_>| matches!(node, Node::Static(StaticNode::F64(_)));
    let mut numbers = if nodes.iter().any(is_double) { raw().map(Numbers) } else { None };
    let mut out = Vec::with_capacity(nodes.len() * 8);
    let mut open: Vec<Open> = Vec::new();
    for node in nodes {
        match node {
            Node::String(text) => write_string(&mut out, text),
            Node::Static(StaticNode::Null) => out.extend_from_slice(b"null"),
            Node::Static(StaticNode::Bool(true)) => out.extend_from_slice(b"true"),
            Node::Static(StaticNode::Bool(false)) => out.extend_from_slice(b"false"),
            Node::Static(number) => match numbers.as_mut().and_then(Iterator::next) {
                Some(written) => out.extend_from_slice(written),
                None => write_number(&mut out, *number),
            },
            Node::Object { len, .. } => {
                out.push(b'{');
                open.push(Open { is_object: true, left: len * 2 });
                if *len > 0 {
                    continue;
                }
            }
            Node::Array { len, .. } => {
                out.push(b'[');
                open.push(Open { is_object: false, left: *len });
                if *len > 0 {
                    continue;
                }
            }
        }
        // A value, or an empty container, is complete: close what it completes.
        loop {
            if let Some(Open { is_object, left: 0 }) = open.last() {
                out.push(if *is_object { b'}' } else { b']' });
                open.pop();
            }
            let Some(container) = open.last_mut() else {
                break;
            };
            container.left -= 1;
            if container.left > 0 {
                let after_key = container.is_object && container.left % 2 == 1;
                out.push(if after_key { b':' } else { b',' });
                break;
            }
        }
    }
    out
}

fn write_number(out: &mut Vec<u8>, number: StaticNode) {
    match number {
        StaticNode::U64(number) => write_u64(out, number),
        StaticNode::I64(number) => {
            if number < 0 {
                out.push(b'-');
            }
            write_u64(out, number.unsigned_abs());
        }
        StaticNode::F64(number) => serde_json::to_writer(out, &number).expect("a Vec takes every write"),
        StaticNode::Bool(_) | StaticNode::Null => {}
    }
}

/// Reading never panics, agrees with serde_json on what is JSON, and leaves the reader usable.
#[doc(hidden)]
pub fn fuzz_plugin_message(data: &[u8]) {
    let mut reader = PluginMessageReader::new();
    let mut frame = data.to_vec();
    let result = reader.read(&mut frame, |message| {
        if let PluginMessage::HttpResponse { response: Ok(response), .. } = message {
            assert!((200..=599).contains(&response.status));
            for (name, value) in response.headers {
                assert!(!name.is_empty() && !value.contains(['\r', '\n', '\0']));
            }
        }
    });
    let is_json = !matches!(
        result,
        Err(MessageError::BadUtf8 | MessageError::BadJson { .. } | MessageError::TooDeep { .. })
    );
    // By grammar alone, as numbers and escapes may be anything that it allows; it goes to any depth.
    let by_serde = std::str::from_utf8(data)
        .is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok());
    assert!(is_json == by_serde || matches!(result, Err(MessageError::TooDeep { .. })));
    let mut next = br#"{"type":"lifecycle","payload":{"action":"pong","seq":7}}"#.to_vec();
    let is_pong = |message: PluginMessage<'_>| matches!(message, PluginMessage::Pong { seq: 7 });
    assert_eq!(reader.read(&mut next, is_pong), Ok(true));
}
