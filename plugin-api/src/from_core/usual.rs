//! HTTP requests exactly as [`super::HttpRequestFrame`] writes them, read by position.
//!
//! A plugin's share of a request is mostly reading JSON, and nearly every frame is one of these.
//! Whatever differs by a byte, in the order of its fields, in a space or in an escape where none is expected, is left to
//! the general reader; both must see the same in what both can read, which a test holds them to.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{CoreMessage, HttpRequestMessage};
use crate::cursor::Cursor;

/// How every request begins.
const START: &str = r#"{"type":"http","timestamp":""#;

/// `None` leaves the frame to the general reader.
pub(super) fn read(frame: &[u8]) -> Option<CoreMessage<'_>> {
    let mut headers = Vec::with_capacity(16);
    let request = read_request(frame, &mut headers)?;
    let message = HttpRequestMessage {
        method: Cow::Borrowed(request.method),
        path: Cow::Borrowed(request.path),
        headers,
        body: request.body,
        remote_addr: request.remote_addr.map(Cow::Borrowed),
        timeout_ms: request.timeout_ms,
    };
    Some(CoreMessage::Http { request_id: Cow::Borrowed(request.request_id), request: message })
}

/// A request but for its header fields; see [`HttpRequestMessage`].
pub(crate) struct UsualRequest<'a> {
    pub request_id: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub body: Cow<'a, [u8]>,
    pub remote_addr: Option<&'a str>,
    pub timeout_ms: Option<u64>,
}

/// What takes header fields in their order.
pub(crate) trait Fields<'a> {
    /// All that is left of the frame follows, fields first.
    fn begin(&mut self, _rest: &'a str) {}

    /// The value is the rest of the string at the cursor.
    fn take(&mut self, name: &'a str, at: &mut Cursor<'a>) -> Option<()>;

    /// That were all, and this is how they were written.
    fn end(&mut self, _json: &'a str) -> Option<()> {
        Some(())
    }
}

impl<'a> Fields<'a> for Vec<(Cow<'a, str>, Cow<'a, str>)> {
    fn take(&mut self, name: &'a str, at: &mut Cursor<'a>) -> Option<()> {
        self.push((Cow::Borrowed(name), at.text()?));
        Some(())
    }
}

/// `None` leaves the frame to the general reader, whatever `headers` has been given.
pub(crate) fn read_request<'a>(frame: &'a [u8], headers: &mut impl Fields<'a>) -> Option<UsualRequest<'a>> {
    if !frame.starts_with(START.as_bytes()) {
        return None;
    }
    let mut at = Cursor::new(frame)?;
    at.skip(START)?;
    at.string()?;
    at.skip(r#","request_id":""#)?;
    let request_id = at.string()?;
    at.skip(r#","payload":{"type":"http","request_id":""#)?;
    at.string()?;
    at.skip(r#","payload":{"method":""#)?;
    let method = at.string()?;
    at.skip(r#","path":""#)?;
    let path = at.string()?;
    at.skip(r#","headers":{"#)?;
    let rest = at.0;
    headers.begin(rest);
    at = read_headers(at, headers)?;
    headers.end(rest.get(..rest.len() - at.0.len())?)?;
    let mut remote_addr = None;
    if at.skip(r#","remote_addr":""#).is_some() {
        remote_addr = Some(at.string()?);
    }
    let mut timeout_ms = None;
    if at.skip(r#","timeout_ms":"#).is_some() {
        timeout_ms = Some(at.number()?);
    }
    at.skip(r#","body":"#)?;
    let body = body(at.0.strip_suffix("}}}")?)?;
    Some(UsualRequest { request_id, method, path, body, remote_addr, timeout_ms })
}

/// The rest of the object whose brace was skipped; gives the cursor behind it.
fn read_headers<'a>(mut at: Cursor<'a>, headers: &mut impl Fields<'a>) -> Option<Cursor<'a>> {
    if at.skip("}").is_some() {
        return Some(at);
    }
    at.skip("\"")?;
    loop {
        let name = at.string()?;
        if at.skip(":\"").is_some() {
            headers.take(name, &mut at)?;
        } else {
            at.skip(":[\"")?;
            loop {
                headers.take(name, &mut at)?;
                if at.skip("]").is_some() {
                    break;
                }
                at.skip(",\"")?;
            }
        }
        if at.skip(",\"").is_none() {
            at.skip("}")?;
            return Some(at);
        }
    }
}

/// A content with what may follow it, and nothing after that.
fn body(json: &str) -> Option<Cow<'_, [u8]>> {
    if json == "null" {
        return Some(Cow::Borrowed(&[]));
    }
    let mut at = Cursor(json.strip_prefix('"')?);
    let content = at.content()?;
    if at.0.is_empty() {
        return Some(content);
    }
    let is_last = at.0 == r#","body_encoding":"base64""#;
    if is_last { STANDARD.decode(&*content).ok().map(Cow::Owned) } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::{HttpRequestFrame, RequestStart};
    use super::*;
    use crate::frame::Framing;
    use crate::json::tests::{assert_leaves_alone, count_variants};
    use crate::metadata::Protocol;

    /// What both readers can read they read alike.
    fn assert_same(json: &[u8]) -> bool {
        let Some(usual) = read(json) else { return false };
        let general = CoreMessage::read_general(json);
        assert_eq!(Ok(usual), general, "{}", json.escape_ascii());
        true
    }

    fn frame(protocol: Protocol, path: &str, headers: &[(&str, &[u8])], body: &[u8]) -> Vec<u8> {
        let start = RequestStart {
            request_id: "0-1f-3",
            timestamp: "2026-01-01T00:00:00.000Z",
            method: "POST",
            path,
            remote_addr: Some("127.0.0.1"),
            timeout_ms: Some(30_000),
        };
        HttpRequestFrame::start(Framing::Lines, protocol, &start, headers.iter().copied())
            .finish(body, 1 << 20)
            .map(|mut frame| {
                frame.pop();
                frame
            })
            .expect("it fits")
    }

    #[test]
    fn what_the_core_writes_is_read_by_position() {
        let cookies: [(&str, &[u8]); 4] = [
            ("cookie", b"a=1"),
            ("forwarded", br#"host="h:1""#),
            ("accept", b"*/*"),
            ("cookie", "b=\u{fc}".as_bytes()),
        ];
        let bodies: [&[u8]; 6] =
            [b"", b"plain", br#"{"k":"v\n"}"#, &[0xff, 0, 1], "\u{1f600} \u{7}".as_bytes(), b"\""];
        for protocol in [Protocol::V1_0, Protocol::V1_1] {
            for headers in [&cookies[..], &cookies[..1], &[]] {
                for body in bodies {
                    if std::str::from_utf8(body).is_ok() || protocol == Protocol::V1_1 {
                        assert!(assert_same(&frame(protocol, "/a?b=%20c", headers, body)));
                    }
                }
            }
        }
    }

    #[test]
    fn any_change_of_a_frame_is_seen_alike() {
        let headers: [(&str, &[u8]); 2] = [("cookie", b"a=1"), ("cookie", b"b=2")];
        let original = frame(Protocol::V1_1, "/x", &headers, br#"{"k":1}"#);
        let read_by_position = count_variants(&original, 3_000, assert_same);
        assert!(read_by_position > 100, "most changes within a value leave the shape: {read_by_position}");
    }

    #[test]
    fn what_only_resembles_a_request_is_left_alone() {
        let changes = [
            ("\"path\"", "\"PATH\""),
            ("30000", "030000"),
            ("30000", "-1"),
            ("30000", "3e4"),
            ("null", "\"\u{1}\""),
            ("null", "\"a\" "),
            ("null", "\"a\",\"body_encoding\":\"hex\""),
            ("null", "[]"),
            ("/x", "/\\u0078"),
        ];
        let usual = frame(Protocol::V1_1, "/x", &[], b"");
        assert_leaves_alone(&usual, &changes, |json| read(json).is_some());
    }
}
