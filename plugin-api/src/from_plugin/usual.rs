//! Answers exactly as [`super::encode_http_response`] and the other SDKs write them, read by position.
//!
//! Nearly every frame of a plugin is one of these, and most of what reading one costs is finding out that it is.
//! Whatever differs by a byte, in the order of its fields, in a space, in a header that repeats or has an escape, is left
//! to the general reader; both must see the same in what both can read, which a test holds them to.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cursor::Cursor;
use crate::headers::{is_field_value, is_token};

/// An answer, with the id of its request.
pub(super) struct Answer<'a> {
    pub request_id: &'a str,
    pub status: u16,
    pub headers: Headers<'a>,
    pub body: Cow<'a, [u8]>,
}

/// Headers that have been read once: what stands between the braces, without escapes and arrays.
#[derive(Clone, Debug)]
pub(super) struct Headers<'a>(&'a str);

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let mut at = Cursor(self.0);
        // Behind the first there is a comma.
        let _ = at.skip(",");
        let header = header(&mut at)?;
        self.0 = at.0;
        Some(header)
    }
}

fn header<'a>(at: &mut Cursor<'a>) -> Option<(&'a str, &'a str)> {
    at.skip("\"")?;
    let name = at.string()?;
    at.skip(":\"")?;
    Some((name, at.string()?))
}

/// `None` leaves the frame to the general reader.
pub(super) fn read(frame: &[u8]) -> Option<Answer<'_>> {
    // Cheaper than finding out later: all of the frame is looked at for its UTF-8.
    if !frame.starts_with(br#"{"type":"http","timestamp":""#) {
        return None;
    }
    let mut at = Cursor::new(frame)?;
    at.skip(r#"{"type":"http","timestamp":""#)?;
    at.string()?;
    at.skip(r#","request_id":""#)?;
    let request_id = at.string()?;
    at.skip(r#","payload":{"status":"#)?;
    let status = at.number().filter(|status| (200..=599).contains(status))? as u16;
    at.skip(r#","headers":{"#)?;
    let headers = headers(&mut at)?;
    at.skip(r#","body":""#)?;
    let content = at.content()?;
    let body = match at.0 {
        "}}" => content,
        r#","body_encoding":"base64"}}"# => Cow::Owned(STANDARD.decode(&*content).ok()?),
        _ => return None,
    };
    Some(Answer { request_id, status, headers, body })
}

/// The rest of the object whose brace was skipped, if the core passes all of it on.
fn headers<'a>(at: &mut Cursor<'a>) -> Option<Headers<'a>> {
    let start = at.0;
    if at.skip("}").is_some() {
        return Some(Headers(""));
    }
    loop {
        let (name, value) = header(at)?;
        if !is_token(name) || !is_field_value(value) {
            return None;
        }
        let end = start.len() - at.0.len();
        if at.skip("}").is_some() {
            return Some(Headers(&start[..end]));
        }
        at.skip(",")?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PluginMessage, PluginMessageReader, ResponseStart, encode_http_response};
    use super::*;
    use crate::frame::Framing;
    use crate::json::tests::{assert_leaves_alone, count_variants};

    fn meaning(message: PluginMessage<'_>) -> String {
        match message {
            PluginMessage::HttpResponse { request_id, response: Ok(response) } => {
                let headers: Vec<_> = response.headers.clone().collect();
                let (status, body) = (response.status, response.body.escape_ascii());
                format!("{request_id:?} {status} {headers:?} {body} {}", response.body_is_json)
            }
            other => format!("{other:?}"),
        }
    }

    /// What both readers can read they read alike; whether both can.
    fn assert_same(json: &[u8]) -> bool {
        if read(json).is_none() {
            return false;
        }
        let usual = PluginMessageReader::new().read(&mut json.to_vec(), meaning);
        let general = PluginMessageReader::new().read_general(&mut json.to_vec(), meaning);
        assert_eq!(usual, general, "{}", json.escape_ascii());
        true
    }

    fn frame(headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let start =
            ResponseStart { request_id: "0-1f-3", timestamp: "2026-01-01T00:00:00.000Z", status: 201 };
        let mut out = Vec::new();
        encode_http_response(&mut out, Framing::Lines, &start, headers.iter().copied(), body, 1 << 20)
            .expect("it fits");
        out.pop();
        out
    }

    const BODIES: [&[u8]; 7] = [
        b"",
        b"plain",
        br#"{"k":"v\n"}"#,
        &[0xff, 0, 1],
        "\u{1f600} \u{7}".as_bytes(),
        b"\"",
        b"\r\n\t\\\x08\x0c\x1f",
    ];

    #[test]
    fn what_the_sdk_writes_is_read_by_position() {
        let fields = [("content-type", "text/plain"), ("x-b", ""), ("x-c", "b=\u{fc}\u{1f600}")];
        for count in 0..=fields.len() {
            for body in BODIES {
                assert!(assert_same(&frame(&fields[..count], body)));
            }
        }
    }

    #[test]
    fn any_change_of_a_frame_is_seen_alike() {
        let headers = [("content-type", "application/json"), ("x-a", "1")];
        let mut read_by_position = 0;
        for body in BODIES {
            read_by_position += count_variants(&frame(&headers, body), 2_000, assert_same);
        }
        assert!(read_by_position > 1_000, "most changes within a value leave the shape: {read_by_position}");
    }

    #[test]
    fn what_only_resembles_an_answer_is_left_alone() {
        let changes = [
            ("\"status\"", "\"STATUS\""),
            ("201", "0201"),
            ("201", "199"),
            ("201", "600"),
            ("201", "2e2"),
            ("\"b\"", "[\"b\"]"),
            ("\"b\"", "\"\\u0062\""),
            ("\"b\"", "\"\u{7f}\""),
            ("\"b\"", "7"),
            ("\"a\"", "\"a b\""),
            ("\"a\"", "\"\""),
            ("\"x\"", "null"),
            ("\"x\"", "\"x\" "),
            ("\"x\"", "\"x\",\"body_encoding\":\"base64\""),
            ("\"x\"", "\"x\",\"body_encoding\":\"hex\""),
            ("\"x\"", "\"x\",\"status\":500"),
            ("}}", "},\"type\":\"log\"}"),
        ];
        let usual = frame(&[("a", "b")], b"x");
        assert_leaves_alone(&usual, &changes, |json| read(json).is_some());
    }
}
