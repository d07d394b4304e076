//! What the client gets for what the driver says.

use std::sync::Arc;

use toru_http::{
    Connection, Event, FieldError, Length, Limits, Response, ResponseHead, encode_field, is_hop_by_hop,
    is_reserved_in_response, reason_phrase,
};

use crate::{DATE, connection_at_head, events, head, poll_until, response, sent, stream};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n";
const OLD: &str = "GET / HTTP/1.0\r\n\r\n";
const OLD_KEPT: &str = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";

#[test]
fn a_whole_response() {
    let mut connection = connection_at_head(GET);
    let mut fields = Vec::new();
    encode_field(&mut fields, "content-type", "text/plain").unwrap();
    encode_field(&mut fields, "Set-Cookie", " a=b\t").unwrap();
    let head = ResponseHead { status: 200, fields: &fields, date: DATE };
    connection.respond(&Response { head, body: b"hello" });
    assert_eq!(
        String::from_utf8_lossy(connection.output()),
        "HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: toru\r\n\
         content-type: text/plain\r\nSet-Cookie: a=b\r\ncontent-length: 5\r\n\r\nhello"
    );
}

#[test]
fn framing_of_whole_responses() {
    for (request, status, body, expect) in [
        (GET, 200, "", "200 OK\r\ncontent-length: 0\r\n\r\n"),
        (GET, 404, "abc", "404 Not Found\r\ncontent-length: 3\r\n\r\nabc"),
        (GET, 204, "abc", "204 No Content\r\n\r\n"),
        (GET, 205, "abc", "205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
        (GET, 304, "abc", "304 Not Modified\r\n\r\n"),
        (GET, 299, "", "299 \r\ncontent-length: 0\r\n\r\n"),
        (GET, 999, "", "999 \r\ncontent-length: 0\r\n\r\n"),
        (HEAD, 200, "abc", "200 OK\r\ncontent-length: 3\r\n\r\n"),
        (HEAD, 200, "", "200 OK\r\n\r\n"),
        (HEAD, 204, "", "204 No Content\r\n\r\n"),
        (OLD, 200, "abc", "200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc"),
        (OLD_KEPT, 200, "abc", "200 OK\r\ncontent-length: 3\r\nconnection: keep-alive\r\n\r\nabc"),
        ("CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", 200, "abc", "200 OK\r\nconnection: close\r\n\r\n"),
        (
            "CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
            405,
            "abc",
            "405 Method Not Allowed\r\ncontent-length: 3\r\n\r\nabc",
        ),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
            200,
            "abc",
            "200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nabc",
        ),
    ] {
        let mut connection = connection_at_head(request);
        connection.respond(&response(status, body.as_bytes()));
        assert_eq!(sent(&mut connection), format!("HTTP/1.1 {expect}"), "{request:?}");
        let closes = expect.contains("connection: close");
        assert_eq!(matches!(connection.poll_event(), Event::Closed), closes, "{request:?}");
        assert_eq!(connection.is_closing(), closes, "{request:?}");
    }
}

#[test]
fn framing_of_streamed_responses() {
    use Length::{Chunked, Known};
    for (request, status, length, pieces, expect) in [
        (GET, 200, Known(5), &["ab", "", "cde"][..], "200 OK\r\ncontent-length: 5\r\n\r\nabcde"),
        (GET, 200, Known(0), &[], "200 OK\r\ncontent-length: 0\r\n\r\n"),
        // More than announced must not become the next response.
        (GET, 200, Known(3), &["ab", "cde", "f"], "200 OK\r\ncontent-length: 3\r\n\r\nabc"),
        (GET, 200, Chunked, &[], "200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            GET,
            200,
            Chunked,
            &["a", "", "0123456789abcdef"],
            "200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n",
        ),
        (HEAD, 200, Known(5), &["abcde"], "200 OK\r\ncontent-length: 5\r\n\r\n"),
        (HEAD, 200, Chunked, &["abcde"], "200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
        (GET, 204, Known(5), &["abcde"], "204 No Content\r\n\r\n"),
        (GET, 204, Chunked, &["abcde"], "204 No Content\r\n\r\n"),
        (GET, 304, Chunked, &["abcde"], "304 Not Modified\r\n\r\n"),
        (GET, 205, Chunked, &["abcde"], "205 Reset Content\r\ncontent-length: 0\r\n\r\n"),
        (OLD, 200, Known(2), &["ab"], "200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nab"),
        (OLD_KEPT, 200, Known(2), &["ab"], "200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab"),
        (OLD_KEPT, 200, Chunked, &["ab", "c"], "200 OK\r\nconnection: close\r\n\r\nabc"),
        (OLD_KEPT, 204, Chunked, &["ab"], "204 No Content\r\nconnection: keep-alive\r\n\r\n"),
        (
            "HEAD / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
            200,
            Chunked,
            &["ab"],
            "200 OK\r\nconnection: keep-alive\r\n\r\n",
        ),
    ] {
        let mut connection = connection_at_head(request);
        let output = stream(&mut connection, status, length, pieces);
        assert_eq!(output, format!("HTTP/1.1 {expect}"), "{request:?}");
        assert_eq!(connection.is_closing(), expect.contains("connection: close"), "{request:?}");
    }
}

#[test]
fn too_little_content_closes() {
    let mut connection = connection_at_head(GET);
    let output = stream(&mut connection, 200, Length::Known(5), &["abc"]);
    assert!(output.ends_with("content-length: 5\r\n\r\nabc"));
    assert!(connection.is_closing());

    let mut connection = connection_at_head(GET);
    connection.start_response(&head(200), Length::Chunked);
    connection.send_body(b"abc");
    connection.abort_response();
    assert!(connection.is_closing());
    assert!(sent(&mut connection).ends_with("3\r\nabc\r\n"), "no last chunk");
    assert!(matches!(connection.poll_event(), Event::Closed));
}

#[test]
fn an_early_answer_drops_the_content_or_closes() {
    let known = |length: usize| format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n");
    for (length, kept) in [(0, true), (1, true), (65536, true), (65537, false)] {
        let mut connection = connection_at_head(known(length));
        connection.respond(&response(404, b"no"));
        assert_eq!(sent(&mut connection).contains("connection: close"), !kept, "{length} bytes");
        assert_eq!(connection.is_closing(), !kept, "{length} bytes");
        if kept {
            connection.handle_input(&vec![b'x'; length]);
            connection.handle_input(b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n");
            let Event::Head(head) = connection.poll_event() else { panic!("the content is not told") };
            assert_eq!(head.target.raw, "/next");
        }
    }
    // What has come by then no longer counts.
    let mut connection = connection_at_head(known(65537));
    connection.handle_input(b"x");
    assert!(matches!(connection.poll_event(), Event::Body(b"x")));
    connection.respond(&response(404, b""));
    assert!(!connection.is_closing());

    // Dropped in pieces, and the client may go away meanwhile.
    let mut connection = connection_at_head(known(10));
    connection.respond(&response(404, b""));
    connection.handle_input(b"xxx");
    assert!(matches!(connection.poll_event(), Event::NeedInput));
    connection.handle_eof();
    assert!(matches!(connection.poll_event(), Event::Closed));

    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n",
    ] {
        let mut connection = connection_at_head(request);
        connection.respond(&response(404, b""));
        assert!(sent(&mut connection).ends_with("connection: close\r\n\r\n"), "{request:?}");
        assert!(connection.is_closing());
        connection.handle_input(b"1\r\na\r\n0\r\n\r\n");
        assert!(matches!(connection.poll_event(), Event::Closed));
    }

    // Once told to go on the client will send its content, so it can be dropped.
    let mut connection =
        connection_at_head("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n");
    connection.send_continue();
    connection.respond(&response(404, b""));
    assert!(!connection.is_closing());
}

#[test]
fn content_is_told_while_an_early_answer_streams() {
    let mut connection = connection_at_head("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab");
    connection.start_response(&head(200), Length::Chunked);
    assert!(!connection.can_respond());
    assert!(matches!(connection.poll_event(), Event::Body(b"ab")));
    connection.send_body(b"ab");
    connection.handle_input(b"cd");
    assert!(matches!(connection.poll_event(), Event::Body(b"cd")));
    connection.send_body(b"cd");
    assert!(matches!(connection.poll_event(), Event::End));
    assert!(matches!(connection.poll_event(), Event::ResponseDue));
    connection.finish_response();
    assert!(sent(&mut connection).ends_with("chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"));
    assert!(matches!(connection.poll_event(), Event::NeedInput));
}

#[test]
fn a_failure_within_a_streamed_answer_leaves_only_the_close() {
    let mut connection =
        connection_at_head("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nbroken\r\n");
    connection.start_response(&head(200), Length::Chunked);
    let Event::Failed(error) = connection.poll_event() else { panic!() };
    assert_eq!(error.status(), 400);
    assert!(!connection.can_respond());
    assert!(!connection.is_closing());
    connection.abort_response();
    assert!(matches!(connection.poll_event(), Event::Closed));
}

#[test]
fn a_failed_head_request_gets_no_content() {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    connection.handle_input(b"HEAD / HTTP/1.1\r\nhost: a\r\ncontent-length: 9999999\r\n\r\n");
    let Event::Failed(error) = connection.poll_event() else { panic!() };
    connection.respond(&response(error.status(), b"too large"));
    assert_eq!(
        sent(&mut connection),
        "HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\nconnection: close\r\n\r\n"
    );
}

#[test]
fn a_head_request_that_breaks_off_or_is_none_gets_no_content_either() {
    // What came, whether it then ends, is late, or is wrong by itself, and whether the method is known to be HEAD.
    for (input, then, status, is_head) in [
        ("HEAD / HTTP/1.1\r\nhost: a\r\nx", "late", 408, true),
        ("HEAD / HT", "late", 408, true),
        ("GET / HTTP/1.1\r\nhost: a\r\nx", "late", 408, false),
        ("HEAD", "late", 408, false),
        ("HEAD / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nx", "late", 408, true),
        ("HEAD / HTTP/1.1\r\nhost: a\r\nx", "ends", 400, true),
        ("HEAD / HT", "ends", 400, true),
        ("HEAD / HTTP/1.1\r\nhost: a\r\n: x\r\n", "", 400, true),
        ("HEAD / HTTP/2.0\r\n", "", 505, true),
        ("HEAD /\u{1} HTTP/1.1\r\n", "", 400, true),
        ("HEADS / HTTP/2.0\r\n", "", 505, false),
        ("head / HTTP/2.0\r\n", "", 505, false),
        ("HEAD\r\n", "", 400, false),
        // What was asked for before has nothing to do with it.
        ("HEAD / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/2.0\r\n", "", 505, false),
    ] {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(input.as_bytes());
        let mut failure = None;
        for _ in 0..10 {
            match connection.poll_event() {
                Event::ResponseDue => {
                    connection.respond(&response(200, b"before"));
                    connection.take_output();
                }
                Event::NeedInput if then == "late" => connection.handle_timeout(),
                Event::NeedInput => connection.handle_eof(),
                Event::Failed(error) => failure = Some(error.status()),
                _ => {}
            }
        }
        assert_eq!(failure, Some(status), "{input:?}");
        connection.respond(&response(status, b"words"));
        let answer = sent(&mut connection);
        assert!(answer.contains("\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"), "{answer}");
        assert_eq!(answer.ends_with("\r\n\r\n"), is_head, "{input:?}: {answer}");
    }
}

#[test]
fn a_request_that_is_answered_or_complete_is_not_late() {
    let late = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nx";
    let mut refused = connection_at_head(late);
    refused.respond(&response(404, b""));
    refused.handle_timeout();
    assert!(!refused.can_respond() && refused.is_closing());
    let mut begun = connection_at_head(late);
    begun.start_response(&head(200), Length::Chunked);
    begun.handle_timeout();
    assert!(matches!(begun.poll_event(), Event::Body(_) | Event::Failed(_)) && !begun.can_respond());
    let mut due = connection_at_head(GET);
    poll_until(&mut due, |event| matches!(event, Event::ResponseDue));
    due.handle_timeout();
    assert!(matches!(due.poll_event(), Event::ResponseDue));
    let mut idle = Connection::new(Arc::new(Limits::default()));
    idle.handle_timeout();
    assert!(matches!(idle.poll_event(), Event::NeedInput));
}

#[test]
fn the_driver_can_make_any_response_the_last() {
    let mut idle = Connection::new(Arc::new(Limits::default()));
    idle.close_after_response();
    assert!(idle.is_closing());
    assert!(matches!(idle.poll_event(), Event::Closed));

    let mut due = connection_at_head(GET);
    due.close_after_response();
    assert!(!due.is_closing());
    due.respond(&response(200, b""));
    assert!(sent(&mut due).contains("connection: close\r\n"));
    assert!(due.is_closing());

    let mut begun = Connection::new(Arc::new(Limits::default()));
    begun.handle_input(&GET.as_bytes()[..5]);
    assert!(matches!(begun.poll_event(), Event::NeedInput));
    begun.close_after_response();
    begun.handle_input(&GET.as_bytes()[5..]);
    assert!(matches!(begun.poll_event(), Event::Head(_)));
    begun.respond(&response(200, b""));
    assert!(begun.is_closing());

    let mut streaming = connection_at_head(GET);
    streaming.start_response(&head(200), Length::Chunked);
    streaming.close_after_response();
    assert!(!streaming.is_closing());
    streaming.finish_response();
    assert!(streaming.is_closing());

    let mut dropping = connection_at_head("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n");
    dropping.respond(&response(404, b""));
    dropping.close_after_response();
    assert!(dropping.is_closing());
}

#[test]
fn output_buffers_go_round() {
    let mut connection = connection_at_head(GET);
    connection.respond(&response(200, b"abc"));
    let written = connection.take_output();
    assert!(connection.output().is_empty());
    let place = written.as_ptr();
    connection.reuse_output(written);
    assert!(connection.output().is_empty(), "what was written is not written again");
    connection.handle_input(GET.as_bytes());
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    connection.respond(&response(200, b"abc"));
    let again = connection.take_output();
    assert_eq!(again.as_ptr(), place, "no allocation for the second response");

    connection.reuse_output(Vec::with_capacity(8 * 1024 + 1));
    assert_eq!(connection.take_output().capacity(), 0, "a large buffer is not kept");

    connection.handle_input(GET.as_bytes());
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    connection.respond(&response(200, b"abc"));
    connection.reuse_output(again);
    assert!(!connection.output().is_empty(), "new output is not lost to an old buffer");
}

#[test]
fn chunks_read_back_as_they_were_sent() {
    let mut connection = connection_at_head(GET);
    let pieces: Vec<String> =
        [1, 9, 15, 16, 17, 255, 256, 4095, 4096, 70000].map(|size| "x".repeat(size)).into();
    connection.start_response(&head(200), Length::Chunked);
    for piece in &pieces {
        connection.send_body(piece.as_bytes());
    }
    connection.finish_response();
    let output = sent(&mut connection);
    let (_, content) = output.split_once("\r\n\r\n").unwrap();
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{content}");
    assert_eq!(
        events(&Arc::new(Limits::default()), request.as_bytes(), []),
        format!("POST / 1.1 chunked; body {}; end; idle", pieces.concat())
    );
}

#[test]
fn fields_that_would_split_a_response_are_refused() {
    for (name, value, expect) in [
        ("a", &b""[..], Ok("a: \r\n")),
        ("A-b", b"c d\te", Ok("A-b: c d\te\r\n")),
        ("a", b" \tb\t ", Ok("a: b\r\n")),
        ("", b"b", Err(FieldError::BadName)),
        ("a b", b"", Err(FieldError::BadName)),
        ("a:", b"", Err(FieldError::BadName)),
        ("a\r\n", b"", Err(FieldError::BadName)),
        ("\u{e9}", b"", Err(FieldError::BadName)),
        ("a", b"b\r\nc: d", Err(FieldError::BadValue)),
        ("a", b"b\n", Err(FieldError::BadValue)),
        ("a", b"\r", Err(FieldError::BadValue)),
        ("a", b"\0", Err(FieldError::BadValue)),
        ("a", b"\x7f", Err(FieldError::BadValue)),
    ] {
        let mut out = b"x: y\r\n".to_vec();
        let encoded = encode_field(&mut out, name, value);
        match expect {
            Ok(line) => assert_eq!(out, format!("x: y\r\n{line}").into_bytes()),
            Err(error) => {
                assert_eq!(encoded, Err(error));
                assert_eq!(out, b"x: y\r\n");
            }
        }
    }
    let mut out = Vec::new();
    encode_field(&mut out, "a", b"\xc3\xa9\xff").unwrap();
    assert_eq!(out, b"a: \xc3\xa9\xff\r\n");
}

#[test]
fn reserved_names() {
    for name in [
        "connection",
        "Keep-Alive",
        "proxy-connection",
        "TE",
        "trailer",
        "Transfer-Encoding",
        "upgrade",
        "proxy-authenticate",
        "proxy-authorization",
    ] {
        assert!(is_hop_by_hop(name), "{name}");
        assert!(is_reserved_in_response(name), "{name}");
    }
    for name in ["content-length", "Date", "SERVER"] {
        assert!(!is_hop_by_hop(name), "{name}");
        assert!(is_reserved_in_response(name), "{name}");
    }
    for name in ["", "content-type", "set-cookie", "ta", "tee", "upgraded", "dates", "x-connection"] {
        assert!(!is_hop_by_hop(name) && !is_reserved_in_response(name), "{name}");
    }
}

#[test]
fn every_status_of_a_failure_has_a_reason() {
    for status in [400, 408, 413, 414, 417, 431, 500, 501, 502, 503, 504, 505, 507] {
        assert_ne!(reason_phrase(status), "", "{status}");
    }
}

#[test]
#[should_panic(expected = "no response is due")]
fn a_response_without_a_request_is_our_mistake() {
    Connection::new(Arc::new(Limits::default())).respond(&response(200, b""));
}

#[test]
#[should_panic(expected = "is no final one")]
fn an_interim_response_is_our_mistake() {
    connection_at_head(GET).respond(&response(199, b""));
}
