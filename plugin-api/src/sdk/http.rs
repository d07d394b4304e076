//! Requests, responses and errors as a handler sees them.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::spare;
use crate::cursor::Cursor;
use crate::from_core::usual;
use crate::from_core::{HttpRequestMessage, KvReply, KvRequestMessage};
use crate::json::{write_string, write_u64};

/// What the core calls a request by, for clients and logs.
const X_REQUEST_ID: &str = "x-request-id";

/// What a handler returns.
pub type PluginResult<T> = Result<T, PluginError>;

/// An HTTP request.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HttpRequest {
    /// Names the request on its connection; for people and logs there is [`known_id`](Self::known_id).
    pub request_id: String,
    /// As the client sent it, in capitals by custom.
    pub method: String,
    /// What follows `/api/plugins/<id>`, without the query; at least `/`, percent-encoding as sent.
    pub path: String,
    /// What stands behind `?`, without it; empty if there is none. See [`query_value`](Self::query_value).
    pub query: String,
    /// As the client sent them, without those that concern its connection alone; `x-request-id` is among them.
    pub headers: Headers,
    /// Empty if there is none.
    pub body: Vec<u8>,
    /// The client, `address:port`; a 1.0 core does not say.
    pub remote_addr: Option<String>,
    /// When the core stops waiting, counted from when it sent the request; a 1.0 core does not say.
    pub timeout: Option<Duration>,
}

impl HttpRequest {
    pub(crate) fn from_message(request_id: String, message: HttpRequestMessage<'_>) -> Self {
        let (path, query) = path_and_query(&message.path);
        let mut headers = Headers::default();
        headers.fields.spans.reserve(message.headers.len());
        headers
            .fields
            .text
            .reserve(message.headers.iter().map(|(name, value)| name.len() + value.len()).sum());
        for (name, value) in &message.headers {
            headers.append(name, value);
        }
        Self {
            request_id,
            method: message.method.into_owned(),
            path,
            query,
            headers,
            body: message.body.into_owned(),
            remote_addr: message.remote_addr.map(Cow::into_owned),
            timeout: message.timeout_ms.map(Duration::from_millis),
        }
    }

    /// A request in the usual shape, with the ids that an answer needs; `None` leaves it to
    /// [`from_message`](Self::from_message).
    ///
    /// `room` is for what is unescaped.
    pub(crate) fn read<'f>(frame: &'f [u8], room: &mut String) -> Option<(Self, Ids<'f>)> {
        room.clear();
        let mut fields = Fill { fields: Fields::spare(), rest: "", room, known_id: None };
        let usual = usual::read_request(frame, &mut fields)?;
        let (path, query) = path_and_query(usual.path);
        let ids = Ids { request_id: usual.request_id, known_id: fields.known_id.unwrap_or(usual.request_id) };
        let request = Self {
            request_id: usual.request_id.to_owned(),
            method: usual.method.to_owned(),
            path,
            query,
            headers: Headers { fields: fields.fields },
            body: usual.body.into_owned(),
            remote_addr: usual.remote_addr.map(str::to_owned),
            timeout: usual.timeout_ms.map(Duration::from_millis),
        };
        Some((request, ids))
    }

    /// The request's id outside of its connection: the `x-request-id` that the client and the core's log know.
    ///
    /// Where there is none, as by hand, it is `request_id`.
    pub fn known_id(&self) -> &str {
        self.headers.get(X_REQUEST_ID).unwrap_or(&self.request_id)
    }

    /// The body as text. Errors: not UTF-8, a 400 if passed on.
    pub fn text(&self) -> PluginResult<&str> {
        std::str::from_utf8(&self.body)
            .map_err(|_| PluginError::status(400, "the request's content is not UTF-8"))
    }

    /// The body read as JSON. Errors: not JSON, or not of that shape, a 400 if passed on.
    pub fn json<T: DeserializeOwned>(&self) -> PluginResult<T> {
        serde_json::from_slice(&self.body).map_err(|error| {
            PluginError::status(400, format!("the request's content is not as expected: {error}"))
        })
    }

    /// The first value of `name` in the query, decoded; `?name` alone is an empty value.
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// All names and values of the query, decoded: `%xx`, and `+` for a space.
    pub fn query_pairs(&self) -> impl Iterator<Item = (String, String)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode_query(name), decode_query(value))
        })
    }
}

fn path_and_query(target: &str) -> (String, String) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut spare = spare::short();
    spare.push_str(path);
    (spare, query.to_owned())
}

/// What a request is known by.
#[derive(Clone, Copy)]
pub(crate) struct Ids<'a> {
    /// What the answer carries.
    pub request_id: &'a str,
    /// What client and log are told; see [`HttpRequest::known_id`].
    pub known_id: &'a str,
}

/// Fills in [`Headers`]: all fields are copied together as they are written, quotes and all, and values with escapes
/// once more behind that.
struct Fill<'f, 'r> {
    fields: Fields,
    /// The frame from the first field on.
    rest: &'f str,
    /// Values with escapes, without them.
    room: &'r mut String,
    /// The first `x-request-id`.
    known_id: Option<&'f str>,
}

/// In a span, for what is in [`Fill::room`] yet. A frame has at most 16 MiB.
const IN_ROOM: u32 = 1 << 31;

impl<'f> Fill<'f, '_> {
    /// The place of a value with escapes, and the cursor behind it.
    // The cursor goes in and out by value, so that the loop around this keeps it in registers.
    #[inline(never)]
    fn unescape(&mut self, name: &str, mut at: Cursor<'f>) -> Option<((u32, u32), Cursor<'f>)> {
        // Such an id is left to the general reader.
        if name.eq_ignore_ascii_case(X_REQUEST_ID) {
            return None;
        }
        let begin = self.room.len() as u32 | IN_ROOM;
        at.append_text(self.room)?;
        Some(((begin, self.room.len() as u32 | IN_ROOM), at))
    }
}

impl<'f> usual::Fields<'f> for Fill<'f, '_> {
    fn begin(&mut self, rest: &'f str) {
        self.rest = rest;
        // What the usual request needs.
        self.fields.spans.reserve(16);
    }

    // In the one loop that calls it: a call costs as much as what it does.
    #[inline(always)]
    fn take(&mut self, name: &'f str, at: &mut Cursor<'f>) -> Option<()> {
        let rest = self.rest;
        let span = |text: &str| {
            let begin = (text.as_ptr().addr() - rest.as_ptr().addr()) as u32;
            (begin, begin + text.len() as u32)
        };
        let value = if let Some(value) = at.string() {
            // The core writes it in lower case.
            if name.len() == X_REQUEST_ID.len()
                && self.known_id.is_none()
                && (name == X_REQUEST_ID || name.eq_ignore_ascii_case(X_REQUEST_ID))
            {
                self.known_id = Some(value);
            }
            span(value)
        } else {
            let (place, behind) = self.unescape(name, Cursor(at.0))?;
            *at = behind;
            place
        };
        self.fields.spans.push(Span { name: span(name), value });
        Some(())
    }

    fn end(&mut self, json: &'f str) -> Option<()> {
        let (text, unescaped) = (&mut self.fields.text, &*self.room);
        text.reserve_exact(json.len() + unescaped.len());
        text.push_str(json);
        if !unescaped.is_empty() {
            text.push_str(unescaped);
            let place = |at: u32| if at & IN_ROOM == 0 { at } else { (at - IN_ROOM) + json.len() as u32 };
            for Span { value: (begin, end), .. } in &mut self.fields.spans {
                (*begin, *end) = (place(*begin), place(*end));
            }
        }
        Some(())
    }
}

/// `%xx` that is no hexadecimal stays as it is; bytes that are not UTF-8 become U+FFFD.
fn decode_query(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
        match (byte, hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', _, _) => {
                decoded.push(b' ');
                at += 1;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(decoded).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Header fields in order; names compare without case.
#[derive(Clone, Default)]
pub struct Headers {
    fields: Fields,
}

/// Leaves its buffers to the next request.
#[derive(Clone, Default)]
struct Fields {
    /// All names and values in one piece: a request has some twenty, and two allocations serve them all. There may be
    /// other things between them.
    text: String,
    spans: Vec<Span>,
}

impl Fields {
    /// None yet, in the buffers of a request before, if there are any.
    fn spare() -> Self {
        let (text, spans) = spare::fields();
        Self { text, spans }
    }
}

impl Drop for Fields {
    fn drop(&mut self) {
        spare::keep_fields(std::mem::take(&mut self.text), std::mem::take(&mut self.spans));
    }
}

/// Where name and value of a field begin and end in [`Fields::text`].
#[derive(Clone, Copy)]
pub(super) struct Span {
    name: (u32, u32),
    value: (u32, u32),
}

impl Headers {
    /// Appends a field; one of the same name stays.
    pub fn append(&mut self, name: &str, value: &str) {
        let Fields { text, spans } = &mut self.fields;
        // A frame has at most 16 MiB.
        let begin = text.len() as u32;
        text.push_str(name);
        let middle = text.len() as u32;
        text.push_str(value);
        spans.push(Span { name: (begin, middle), value: (middle, text.len() as u32) });
    }

    /// The first value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All values of `name`.
    pub fn get_all<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h str> {
        self.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All fields.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        let Fields { text, spans } = &self.fields;
        let text = |(begin, end): (u32, u32)| &text[begin as usize..end as usize];
        spans.iter().map(move |span| (text(span.name), text(span.value)))
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

/// An HTTP response.
///
/// It has to fit into a message: 1 MiB, or what the core says. Where it does not, or status or headers cannot be sent, the
/// client gets a 500 and the plugin's log the reason.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct HttpResponse {
    /// 200 to 599.
    pub status: u16,
    /// Names and values in order; a value has no control character but tab. The core frames the response: `content-length` and the like are dropped there.
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// The content.
    pub body: Vec<u8>,
}

impl HttpResponse {
    /// A response without content.
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with `value` as JSON.
    ///
    /// A value that JSON cannot express, such as a map whose keys are no strings, is a 500 that says so.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes("application/json", body),
            Err(error) => Self::text(format!("the answer cannot be JSON: {error}")).with_status(500),
        }
    }

    /// 200 with text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::bytes("text/plain; charset=utf-8", text.into().into_bytes())
    }

    /// 200 with HTML.
    pub fn html(html: impl Into<String>) -> Self {
        Self::bytes("text/html; charset=utf-8", html.into().into_bytes())
    }

    /// 200 with bytes of any kind.
    pub fn bytes(content_type: impl Into<Cow<'static, str>>, body: impl Into<Vec<u8>>) -> Self {
        let mut headers = spare::response_fields();
        headers.push((Cow::Borrowed("content-type"), content_type.into()));
        Self { status: 200, headers, body: body.into() }
    }

    /// Leaves its buffers to the next request.
    pub(crate) fn leave_buffers(self) {
        spare::keep_response_fields(self.headers);
        spare::keep_short(self.body);
    }

    /// Changes the status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Appends a header field; one of the same name stays, so two `set-cookie` are two.
    #[must_use]
    pub fn header(mut self, name: impl Into<Cow<'static, str>>, value: impl Into<Cow<'static, str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Shape: RFC 9457; `known_id` is what the client can name the request by.
    pub(crate) fn problem(status: u16, detail: &str, known_id: &str) -> Self {
        let title = match status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            409 => "Conflict",
            413 => "Content Too Large",
            415 => "Unsupported Media Type",
            422 => "Unprocessable Content",
            429 => "Too Many Requests",
            500 => "Internal Server Error",
            501 => "Not Implemented",
            503 => "Service Unavailable",
            _ => "Error",
        };
        let mut body = b"{\"type\":\"about:blank\",\"title\":".to_vec();
        write_string(&mut body, title);
        body.extend_from_slice(b",\"status\":");
        write_u64(&mut body, u64::from(status));
        body.extend_from_slice(b",\"detail\":");
        write_string(&mut body, detail);
        body.extend_from_slice(b",\"request_id\":");
        write_string(&mut body, known_id);
        body.push(b'}');
        Self::bytes("application/problem+json", body).with_status(status)
    }
}

/// A kv request to the plugin itself; see [`ToruPlugin::handle_kv`](super::ToruPlugin::handle_kv).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvRequest {
    /// Asks for the value of `key`.
    Get {
        /// Of any length that fits in a message.
        key: String,
    },
    /// Asks to store `value` under `key`.
    Set {
        /// As in `Get`.
        key: String,
        /// Any text.
        value: String,
    },
    /// Asks to forget `key`; that there is none is no error.
    Delete {
        /// As in `Get`.
        key: String,
    },
    /// Asks for the keys that start with `prefix`, in order.
    List {
        /// Empty for all keys.
        prefix: String,
        /// At most so many keys; `None` leaves it to the plugin.
        limit: Option<u64>,
    },
}

impl KvRequest {
    pub(crate) fn from_message(message: KvRequestMessage<'_>) -> Self {
        match message {
            KvRequestMessage::Get { key } => Self::Get { key: key.into_owned() },
            KvRequestMessage::Set { key, value } => {
                Self::Set { key: key.into_owned(), value: value.into_owned() }
            }
            KvRequestMessage::Delete { key } => Self::Delete { key: key.into_owned() },
            KvRequestMessage::List { prefix, limit } => Self::List { prefix: prefix.into_owned(), limit },
        }
    }
}

/// The answer to a [`KvRequest`]; an `Option<String>` or a `Vec<String>` becomes one with `into`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KvResponse {
    /// To `Get`, where `None` says that there is none; `None` also to `Set` and `Delete`.
    Value(Option<String>),
    /// To `List`.
    Keys(Vec<String>),
}

impl KvResponse {
    pub(crate) fn as_reply(&self) -> KvReply<'_> {
        match self {
            Self::Value(value) => KvReply::Value(value.as_deref()),
            Self::Keys(keys) => KvReply::Keys(keys),
        }
    }
}

impl From<Option<String>> for KvResponse {
    fn from(value: Option<String>) -> Self {
        Self::Value(value)
    }
}

impl From<Vec<String>> for KvResponse {
    fn from(keys: Vec<String>) -> Self {
        Self::Keys(keys)
    }
}

/// Why a handler has no answer.
///
/// Made with [`PluginError::status`] it is meant for the client, who gets the status and the text
/// (as `application/problem+json`). Made from any other error with `?` it is a 500:
/// the client gets fixed words, the plugin's log gets the cause.
///
/// In answer to a kv request the status becomes a code: 400 `invalid`, 413 `too_large`, 501 `unsupported`,
/// 503 `unavailable`, 507 `disk_full`, others from 400 on `refused`, all else `failed`.
#[derive(Debug)]
pub struct PluginError {
    status: u16,
    message: String,
}

impl PluginError {
    /// An error for the client, with the HTTP status from 400 to 599 that it deserves. Any other status makes it one for
    /// the log, see [`internal`](Self::internal).
    pub fn status(status: u16, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// An error for the log; the client gets a 500 without the text.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { status: 0, message: message.into() }
    }

    /// What the client gets, and what the log gets.
    pub(crate) fn into_response(self, known_id: &str) -> (HttpResponse, Option<String>) {
        match self.status {
            400..=599 => (HttpResponse::problem(self.status, &self.message, known_id), None),
            _ => (
                HttpResponse::problem(500, "the plugin failed to handle the request", known_id),
                Some(self.message),
            ),
        }
    }

    /// What the one who asked for kv gets, code and message, and what the log gets.
    pub(crate) fn into_kv_error(self) -> (&'static str, Cow<'static, str>, Option<String>) {
        let code = match self.status {
            400 | 422 => "invalid",
            413 => "too_large",
            501 => "unsupported",
            503 => "unavailable",
            507 => "disk_full",
            400..=499 => "refused",
            500..=599 => "failed",
            _ => return ("failed", "the plugin failed to handle the request".into(), Some(self.message)),
        };
        (code, self.message.into(), None)
    }
}

impl fmt::Display for PluginError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl<E: std::error::Error + Send + Sync + 'static> From<E> for PluginError {
    fn from(error: E) -> Self {
        use std::fmt::Write as _;
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let _ = write!(message, ": {cause}");
            source = cause.source();
        }
        Self::internal(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Decoder, Framing};
    use crate::from_core::{CoreMessage, HttpRequestFrame, RequestStart};
    use crate::metadata::Protocol;

    #[test]
    fn the_usual_request_is_what_any_other_reader_says() {
        let some: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("host", b"a"), ("cookie", b"a=1"), ("accept", b"*/*"), ("Cookie", b"b=\"2\"")],
            &[
                ("X-Request-Id", b"first"),
                ("forwarded", b"for=\"127.0.0.1\";host=\"a:1\""),
                ("x-long", &[b'"'; 300]),
            ],
            &[("x-request-id", b"one"), ("accept", b"caf\xe9 \\"), ("x-request-id", b"two")],
            // Left to the other reader, because the id has an escape.
            &[("x-request-id", b"a\"b")],
        ];
        let (mut room, mut usual) = ("what was there".to_owned(), 0);
        for headers in some {
            for (path, body) in [("/", &b""[..]), ("/a?b=%20c&d", b"{\"k\":\n1}"), ("/%C3%A9?", b"\xff\x00")]
            {
                let start = RequestStart {
                    request_id: "0-1f-3",
                    timestamp: "2026-01-01T00:00:00.000Z",
                    method: "POST",
                    path,
                    remote_addr: Some("127.0.0.1:1"),
                    timeout_ms: Some(30_000),
                };
                let frame =
                    HttpRequestFrame::start(Framing::Length, Protocol::V1_1, &start, headers.iter().copied())
                        .finish(body, 1_000_000)
                        .expect("it fits");
                let mut decoder = Decoder::new(Framing::Length, 1_000_000);
                decoder.feed(&frame);
                let json = &*decoder.next_frame().expect("valid").expect("whole");
                let Ok(CoreMessage::Http { request_id, request }) = CoreMessage::read_general(json) else {
                    panic!("{}", json.escape_ascii());
                };
                let expect = HttpRequest::from_message(request_id.into_owned(), request);
                let Some((read, ids)) = HttpRequest::read(json, &mut room) else { continue };
                usual += 1;
                assert_eq!(format!("{read:?}"), format!("{expect:?}"));
                assert_eq!((ids.request_id, ids.known_id), ("0-1f-3", expect.known_id()));
            }
        }
        assert_eq!(usual, 4 * 3);
    }

    #[test]
    fn small_buffers_are_left_empty_to_the_next_request() {
        let leave_field = |bytes: usize| {
            let mut headers = Headers::default();
            headers.append("name", &"v".repeat(bytes));
            assert_eq!(headers.get("name").map(str::len), Some(bytes));
            drop(headers);
            let (text, spans) = spare::fields();
            assert!(text.is_empty() && spans.is_empty());
            text.capacity()
        };
        assert!(leave_field(100) >= 100);
        // Taken, it is not there a second time.
        assert_eq!(spare::fields().0.capacity(), 0);
        assert_eq!(leave_field(100_000), 0);
        let leave_content = |bytes: usize| {
            HttpResponse::text("x".repeat(bytes)).header("name", "value").leave_buffers();
            let (short, fields) = (spare::short(), spare::response_fields());
            assert!(short.is_empty() && fields.is_empty() && fields.capacity() >= 2);
            short.capacity()
        };
        assert!(leave_content(100) >= 100);
        assert_eq!(leave_content(0), 0);
        assert_eq!(leave_content(100_000), 0);
    }

    #[test]
    fn queries() {
        let request =
            HttpRequest { query: "a=1&b=%C3%A9+x&b=2&c&=d&e=%zz%f".to_owned(), ..HttpRequest::default() };
        let pairs: Vec<_> = request.query_pairs().collect();
        let expect = [("a", "1"), ("b", "é x"), ("b", "2"), ("c", ""), ("", "d"), ("e", "%zz%f")];
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, expect);
        assert_eq!(request.query_value("b").as_deref(), Some("é x"));
        assert_eq!(request.query_value("x"), None);
    }

    #[test]
    fn errors_say_to_the_client_what_is_meant_for_it() {
        let cause = "x".parse::<u8>().expect_err("no number");
        let (response, log) = PluginError::from(cause).into_response("r1");
        let body = String::from_utf8(response.body).expect("JSON");
        assert_eq!(response.status, 500);
        assert!(!body.contains("digit") && body.contains("r1"), "{body}");
        assert!(log.expect("logged").contains("digit"));
        let (response, log) = PluginError::status(404, "no such thing").into_response("r1");
        assert_eq!((response.status, log), (404, None));
        assert!(String::from_utf8(response.body).expect("JSON").contains("no such thing"));
    }
}
