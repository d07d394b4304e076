//! The crate seen as its driver sees it: bytes in, events as text; responses in, bytes out.

mod corpus;
mod fuzzed;
mod properties;
mod requests;
mod responses;
mod targets;

use std::sync::Arc;

use toru_http::{Connection, Event, Length, Limits, Phase, Response, ResponseHead, Version};

pub const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// Feeds `input` in pieces of the sizes given (the rest at once) and writes down what the driver is told.
///
/// Requests are answered when they are due. Events are separated by `; `, pieces of content are joined, and the last
/// word is where the connection stands: `idle`, `more` within a request, or `closed`.
pub fn events(limits: &Arc<Limits>, input: &[u8], sizes: impl IntoIterator<Item = usize>) -> String {
    let mut connection = Connection::new(limits.clone());
    let mut sizes = sizes.into_iter();
    let mut words: Vec<String> = Vec::new();
    let mut rest = input;
    let mut in_body = false;
    loop {
        let event = connection.poll_event();
        let continues = std::mem::replace(&mut in_body, matches!(event, Event::Body(_)));
        match event {
            Event::NeedInput => {
                in_body = continues;
                if rest.is_empty() {
                    words.push(if connection.phase() == Phase::Idle { "idle" } else { "more" }.to_owned());
                    return words.join("; ");
                }
                let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
                connection.handle_input(&rest[..size]);
                rest = &rest[size..];
            }
            Event::Head(head) => {
                let mut word = format!("{} {} ", head.method, head.target.raw);
                word.push_str(match head.version {
                    Version::Http10 => "1.0",
                    Version::Http11 => "1.1",
                });
                if let Some(length) = head.content_length {
                    word.push_str(&format!(" length={length}"));
                }
                if head.chunked {
                    word.push_str(" chunked");
                }
                if head.expects_continue {
                    word.push_str(" expects");
                }
                words.push(word);
            }
            Event::Body(piece) => {
                // Byte by byte, so that where a piece is cut can't matter.
                let piece: String = piece.iter().copied().map(char::from).collect();
                match words.last_mut() {
                    Some(last) if continues => last.push_str(&piece),
                    _ => words.push(format!("body {piece}")),
                }
            }
            Event::End => words.push("end".to_owned()),
            Event::ResponseDue => connection.respond(&response(200, b"")),
            Event::Failed(error) => {
                let again = format!("{:?}", connection.poll_event());
                assert_eq!(again, format!("Failed({error:?})"), "a failure is sticky");
                words.push(format!("{} {:?}", error.status(), error.kind));
                connection.handle_input(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
                connection.respond(&response(error.status(), b""));
                let output = String::from_utf8(connection.take_output()).unwrap();
                assert!(output.ends_with("connection: close\r\n\r\n"), "{output}");
            }
            Event::Closed => {
                assert!(connection.is_closing());
                words.push("closed".to_owned());
                return words.join("; ");
            }
        }
    }
}

/// One vector, fed whole, byte by byte, and with bytes behind it.
#[track_caller]
pub fn check(input: impl AsRef<[u8]>, expect: &str) {
    check_with(&Arc::new(Limits::default()), input, expect);
}

#[track_caller]
pub fn check_with(limits: &Arc<Limits>, input: impl AsRef<[u8]>, expect: &str) {
    let input = input.as_ref();
    let shown = String::from_utf8_lossy(input);
    assert_eq!(events(limits, input, []), expect, "whole: {shown:?}");
    assert_eq!(events(limits, input, std::iter::repeat(1)), expect, "byte by byte: {shown:?}");
    // More can change only what is not decided yet: between requests a next one begins, within one nothing is known.
    let expect = match expect.strip_suffix("idle") {
        Some(before) => format!("{before}more"),
        None if expect.ends_with("more") => return,
        None => expect.to_owned(),
    };
    assert_eq!(events(limits, &[input, b"TRAILING"].concat(), []), expect, "with trailing bytes: {shown:?}");
}

pub fn head(status: u16) -> ResponseHead<'static> {
    ResponseHead { status, fields: b"", date: DATE }
}

pub fn response(status: u16, body: &[u8]) -> Response<'_> {
    Response { head: head(status), body }
}

/// A connection whose request has come up to its head, or further if `input` holds more.
pub fn connection_at_head(input: impl AsRef<[u8]>) -> Connection {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    connection.handle_input(input.as_ref());
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    connection
}

/// Polls up to the event wanted; gives up where events only repeat.
#[track_caller]
pub fn poll_until(connection: &mut Connection, wanted: fn(&Event<'_>) -> bool) {
    assert!((0..1000).any(|_| wanted(&connection.poll_event())), "the event does not come");
}

/// The output as text, without the three lines that every response has.
pub fn sent(connection: &mut Connection) -> String {
    let output = String::from_utf8(connection.take_output()).unwrap();
    output.replace(&format!("date: {DATE}\r\nserver: toru\r\n"), "")
}

/// Streams `pieces` and returns what the client got.
pub fn stream(connection: &mut Connection, status: u16, length: Length, pieces: &[&str]) -> String {
    connection.start_response(&head(status), length);
    for piece in pieces {
        connection.send_body(piece.as_bytes());
    }
    connection.finish_response();
    sent(connection)
}
