//! Malformed and ambiguous requests against the real binary: never a guess, nothing forwarded, closed.
//!
//! The vectors of `http/tests` try each rule in every cut; these try that nothing is lost on the way from a socket.
//! The cases are those that public conformance suites and the literature on request smuggling collect.

use serde_json::json;
use toru_tests::{Client, Daemon, Stage};

/// What follows each case on the same connection: answered only by a server that was fooled, or closed too late.
const SMUGGLED: &str = "GET /api/plugins/p/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

fn daemon() -> Daemon {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

/// How many requests have reached the plugin, this one included.
fn count(daemon: &Daemon) -> u64 {
    daemon.get("/api/plugins/p/count").text().parse().unwrap()
}

/// Sends `bytes`; every status line that comes back until the core closes.
fn statuses(daemon: &Daemon, bytes: &[u8]) -> Vec<u16> {
    let mut client: Client<_> = daemon.client();
    // The core may have closed before it all was sent.
    let _ = client.send(bytes);
    let mut statuses = Vec::new();
    while let Ok(answer) = client.response("GET") {
        statuses.push(answer.status);
    }
    statuses
}

#[track_caller]
fn refused(daemon: &Daemon, name: &str, request: &[u8], expect: u16) {
    let bytes = [request, SMUGGLED.as_bytes()].concat();
    assert_eq!(statuses(daemon, &bytes), [expect], "{name}: {}", request.escape_ascii());
}

const TARGET: &str = "/api/plugins/p/mirror";

// Row: malformed or ambiguous framing
#[test]
fn what_is_malformed_is_refused_and_nothing_behind_it_is_taken() {
    let daemon = daemon();
    let get = |fields: &str| format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
    let line = |line: &str| format!("{line}\r\nhost: a\r\n\r\n");
    let post =
        |fields: &str, body: &str| format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}");
    let chunked = |body: &str| post("transfer-encoding: chunked", body);
    let cases: Vec<(&str, String, u16)> = vec![
        ("bare LF ends the request line", format!("GET {TARGET} HTTP/1.1\nhost: a\r\n\r\n"), 400),
        ("bare LF ends a field", format!("GET {TARGET} HTTP/1.1\r\nhost: a\nx: y\r\n\r\n"), 400),
        ("bare CR ends the request line", format!("GET {TARGET} HTTP/1.1\rhost: a\r\n\r\n"), 400),
        ("bare CR in a value", get("x: val\rue\r\n"), 400),
        ("folded field", get("x: y\r\n z\r\n"), 400),
        ("white space before the first field", format!("GET {TARGET} HTTP/1.1\r\n \r\nhost: a\r\n\r\n"), 400),
        ("space before the colon", get("x : y\r\n"), 400),
        ("tab in a name", get("content\tlength: 9\r\n"), 400),
        ("empty name", get(": y\r\n"), 400),
        ("bracket in a name", get("x[: y\r\n"), 400),
        ("beyond ASCII in a name", get("x\u{eb}: y\r\n"), 400),
        ("no colon", get("nothing\r\n"), 400),
        ("NUL in a value", get("x: a\0b\r\n"), 400),
        ("controls in a value", get("x: a\x07\x08\x0bb\r\n"), 400),
        ("no host", format!("GET {TARGET} HTTP/1.1\r\n\r\n"), 400),
        ("two hosts", get("host: b\r\n"), 400),
        ("the same host twice", get("host: a\r\n"), 400),
        ("empty host", format!("GET {TARGET} HTTP/1.1\r\nhost:\r\n\r\n"), 400),
        ("host with user", format!("GET {TARGET} HTTP/1.1\r\nhost: u@a\r\n\r\n"), 400),
        ("host with path", format!("GET {TARGET} HTTP/1.1\r\nhost: a/b\r\n\r\n"), 400),
        ("list of hosts", format!("GET {TARGET} HTTP/1.1\r\nhost: a, b\r\n\r\n"), 400),
        ("no target", line("GET HTTP/1.1"), 400),
        ("two spaces", line(&format!("GET  {TARGET} HTTP/1.1")), 400),
        ("tab for a space", line(&format!("GET\t{TARGET} HTTP/1.1")), 400),
        ("space in the target", line(&format!("GET {TARGET}/a b HTTP/1.1")), 400),
        ("space behind the version", line(&format!("GET {TARGET} HTTP/1.1 ")), 400),
        ("fragment", line(&format!("GET {TARGET}#f HTTP/1.1")), 400),
        ("asterisk with GET", line("GET * HTTP/1.1"), 400),
        ("authority with GET", line("GET a:80 HTTP/1.1"), 400),
        ("absolute target without a host", line(&format!("GET http://{TARGET} HTTP/1.1")), 400),
        ("absolute target of another scheme", line(&format!("GET ftp://a{TARGET} HTTP/1.1")), 400),
        ("user in an absolute target", line(&format!("GET http://u@a{TARGET} HTTP/1.1")), 400),
        ("NUL in the target", line(&format!("GET {TARGET}/\0 HTTP/1.1")), 400),
        ("beyond ASCII in the target", line(&format!("GET {TARGET}/\u{e9} HTTP/1.1")), 400),
        ("no version", format!("GET {TARGET}\r\n"), 400),
        ("lower-case version", line(&format!("GET {TARGET} http/1.1")), 400),
        ("version without minor", line(&format!("GET {TARGET} HTTP/1")), 400),
        ("version with zeros", line(&format!("GET {TARGET} HTTP/01.01")), 400),
        ("version with a space", line(&format!("GET {TARGET} HTTP/ 1.1")), 400),
        ("version 1.32", line(&format!("GET {TARGET} HTTP/1.32")), 400),
        ("CRs in the version", line(&format!("GET {TARGET} HTTP/\r\r1.1")), 400),
        ("LF for a space", format!("GET {TARGET}\nHTTP/1.1\r\nhost: a\r\n\r\n"), 400),
        ("quotes in the method", line(&format!("G=\":<>(e),[T];?\" {TARGET} HTTP/1.1")), 400),
        ("target without a slash", line("GET ! HTTP/1.1"), 400),
        ("NUL in a host", format!("GET {TARGET} HTTP/1.1\r\nhost: a\0.b\r\n\r\n"), 400),
        ("LF within a name", get("na\nme: y\r\n"), 400),
        ("CRLF within a name", get("transfer-\r\nencoding: chunked\r\n"), 400),
        ("CR before the next request", get("\rZGET / HTTP/1.1\r\n"), 400),
        ("version 9.9", line(&format!("GET {TARGET} HTTP/9.9")), 505),
        ("preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 505),
        ("two empty lines before", format!("\r\n\r\n{}", get("")), 400),
        ("white space for a request", "   \r\n\r\n".into(), 400),
        ("TLS", "\x16\x03\x01\x02\0\x01\0".into(), 400),
        ("a method without end", format!("{} / HTTP/1.1\r\nhost: a\r\n\r\n", "A".repeat(100_000)), 400),
        ("a long method", line(&format!("{} {TARGET} HTTP/1.1", "A".repeat(100))), 501),
        ("a long target", line(&format!("GET /{} HTTP/1.1", "a".repeat(100_000))), 414),
        ("a long value", get(&format!("x: {}\r\n", "a".repeat(100_000))), 431),
        ("a long name", get(&format!("{}: x\r\n", "a".repeat(100_000))), 431),
        ("many fields", get(&"x: y\r\n".repeat(101)), 431),
        ("unknown expectation", get("expect: 200-ok\r\n"), 417),
        ("two content types", post("content-length: 0\r\ncontent-type: a/b\r\ncontent-type: c/d", ""), 400),
        ("length: letters", post("content-length: abc", ""), 400),
        ("length: plus", post("content-length: +5", "hello"), 400),
        ("length: minus", post("content-length: -1", ""), 400),
        ("length: minus zero", post("content-length: -0", ""), 400),
        ("length: hexadecimal", post("content-length: 0x5", "hello"), 400),
        ("length: octal", post("content-length: 0o5", "hello"), 400),
        ("length: underscore", post("content-length: 1_0", "helloworld"), 400),
        ("length: inner space", post("content-length: 1 0", "helloworld"), 400),
        ("length: empty", post("content-length:", ""), 400),
        ("length: next line in the name", post("content-length\u{85}: 5", "hello"), 400),
        ("length: letter behind", post("content-length: 5Z", "hello"), 400),
        ("length: list", post("content-length: 5, 5", "hello"), 400),
        ("length: overflow", post("content-length: 99999999999999999999", ""), 400),
        ("length: space before the colon", post("content-length : 5", "hello"), 400),
        ("two lengths", post("content-length: 5\r\ncontent-length: 10", "helloworld"), 400),
        ("the same length twice", post("content-length: 5\r\ncontent-length: 5", "hello"), 400),
        ("length and chunked", post("content-length: 6\r\ntransfer-encoding: chunked", "0\r\n\r\nX"), 400),
        ("chunked and length", post("transfer-encoding: chunked\r\ncontent-length: 30", "0\r\n\r\nX"), 400),
        ("coding: unknown", post("transfer-encoding: xchunked", "5\r\nhello\r\n0\r\n\r\n"), 400),
        ("coding: identity", post("transfer-encoding: identity\r\ncontent-length: 5", "hello"), 400),
        ("coding: chunked twice", post("transfer-encoding: chunked, chunked", "0\r\n\r\n"), 400),
        (
            "coding: two lines",
            post("transfer-encoding: chunked\r\ntransfer-encoding: identity", "0\r\n\r\n"),
            400,
        ),
        ("coding: not last", post("transfer-encoding: chunked, gzip", "0\r\n\r\n"), 400),
        ("coding: before chunked", post("transfer-encoding: gzip, chunked", "0\r\n\r\n"), 501),
        ("coding: empty", post("transfer-encoding:", "0\r\n\r\n"), 400),
        ("coding: leading comma", post("transfer-encoding: , chunked", "0\r\n\r\n"), 400),
        ("coding: trailing comma", post("transfer-encoding: chunked,", "0\r\n\r\n"), 400),
        ("coding: parameter", post("transfer-encoding: chunked;a=b", "0\r\n\r\n"), 400),
        ("coding: vertical tab", post("transfer-encoding: \x0bchunked", "0\r\n\r\n"), 400),
        ("coding: no-break spaces", post("transfer-encoding: \u{a0}chunked\u{a0}", "0\r\n\r\n"), 400),
        ("coding: form feed", post("transfer-encoding: \x0cchunked", "0\r\n\r\n"), 400),
        ("coding: NUL", post("transfer-encoding: chunked\0", "0\r\n\r\n"), 400),
        ("coding: space before the colon", post("transfer-encoding : chunked", "0\r\n\r\n"), 400),
        ("coding: folded", post("transfer-encoding:\r\n chunked", "0\r\n\r\n"), 400),
        (
            "coding in 1.0",
            format!("POST {TARGET} HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("chunk: 0x", chunked("0x5\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: plus", chunked("+5\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: minus", chunked("-1\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: underscore", chunked("1_0\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: leading space", chunked(" 5\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: words behind", chunked("1these\r\nZ\r\n0\r\n\r\n"), 400),
        ("chunk: CRs before an extension", chunked("5\r\r;a=b\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: CR behind an extension", chunked("5;a=b\r\rhello\r\n0\r\n\r\n"), 400),
        ("chunk: minus zero in hexadecimal", chunked("-0x0\r\n\r\n"), 400),
        ("chunk: trailing space", chunked("5 \r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: overflow", chunked("FFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: empty line", chunked("\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: bare semicolon", chunked("5;\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: extension is no token", chunked("5;a[=x\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: NUL in an extension", chunked("5;\0a\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: CR in an extension", chunked("5;a\rX\r\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: LF ends an extension", chunked("5;a\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: long extension", chunked(&format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(65_536))), 400),
        ("chunk: LF behind the size", chunked("5\nhello\r\n0\r\n\r\n"), 400),
        ("chunk: CR behind the size", chunked("5\rhello\r\n0\r\n\r\n"), 400),
        ("chunk: LF behind the data", chunked("5\r\nhello\n0\r\n\r\n"), 400),
        ("chunk: nothing behind the data", chunked("5\r\nhello0\r\n\r\n"), 400),
        ("chunk: too much data", chunked("5\r\nhello!!\r\n0\r\n\r\n"), 400),
        ("chunk: LF ends the trailers", chunked("5\r\nhello\r\n0\r\n\n"), 400),
        ("trailer: folded", chunked("0\r\nx: y\r\n z\r\n\r\n"), 400),
        ("trailer: a request", chunked("0\r\nGET / HTTP/1.1\r\n\r\n"), 400),
    ];
    let before = count(&daemon);
    for (name, request, expect) in &cases {
        // Bytes, not characters: beyond ASCII each stands for itself.
        let bytes: Vec<u8> = request.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        refused(&daemon, name, &bytes, *expect);
    }
    assert_eq!(count(&daemon), before + 1, "something of it reached the plugin");
}

#[test]
fn what_is_odd_and_valid_is_taken_and_ends_where_it_says() {
    let daemon = daemon();
    let post =
        |fields: &str, body: &str| format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n{body}");
    let chunked = |body: &str| post("transfer-encoding: chunked", body);
    for (name, request) in [
        ("one empty line before", format!("\r\n{}", post("content-length: 0", ""))),
        ("no length", format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("minor version 2", format!("GET {TARGET} HTTP/1.2\r\nhost: a\r\n\r\n")),
        ("absolute target", format!("GET http://a{TARGET} HTTP/1.1\r\nhost: b\r\n\r\n")),
        ("backslash and quotes in the target", format!("GET {TARGET}/\\\"<>|^ HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("a long target", format!("GET {TARGET}/{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(7900))),
        ("a body with GET", format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello")),
        (
            "a body with HEAD",
            format!("OPTIONS {TARGET} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"),
        ),
        ("length with white space", post("content-length: \t 5 \t", "hello")),
        ("length with zeros", post("content-length: 0005", "hello")),
        ("coding in upper case", post("TRANSFER-ENCODING: CHUNKED", "5\r\nhello\r\n0\r\n\r\n")),
        ("size in upper case", chunked("A\r\nhelloworld\r\n0\r\n\r\n")),
        ("size with zeros", chunked("0005\r\nhello\r\n000\r\n\r\n")),
        ("quoted extension", chunked("5;a=\"b;\\\"c\" ; d\r\nhello\r\n0\r\n\r\n")),
        ("extension", chunked("5;ext=value\r\nhello\r\n0\r\n\r\n")),
        (
            "trailers that mean nothing here",
            chunked("5\r\nhello\r\n0\r\ncontent-length: 50\r\nhost: b\r\n\r\n"),
        ),
        (
            "underscores",
            post("content-length: 5\r\ncontent_length: 99\r\ntransfer_encoding: chunked", "hello"),
        ),
        ("expectation whose body comes at once", post("content-length: 5\r\nexpect: 100-continue", "hello")),
        ("upgrade", post("content-length: 5\r\nconnection: upgrade\r\nupgrade: websocket", "hello")),
        ("cookies", post("content-length: 0\r\ncookie: ===;;;\r\ncookie: a=b", "")),
    ] {
        let next = "GET /api/plugins/p/next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let statuses = statuses(&daemon, format!("{request}{next}").as_bytes());
        assert_eq!(statuses, [200, 200], "{name}: {}", request.escape_debug());
    }
    // What follows the last request of a connection is nobody's.
    for last in ["connection: close", "connection: keep-alive, Close", "connection: x\r\nconnection: close"] {
        let request = format!("GET {TARGET} HTTP/1.1\r\nhost: a\r\n{last}\r\n\r\n{SMUGGLED}");
        assert_eq!(statuses(&daemon, request.as_bytes()), [200], "{last}");
    }
    // A request that is not whole is answered by nobody until it is given up.
    let before = count(&daemon);
    let mut client = daemon.client();
    client.send(chunked("5\r\nhello\r\n").as_bytes()).unwrap();
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    crate::http::assert_problem(&client.response("POST").unwrap(), 400);
    assert_eq!(count(&daemon), before + 1);
}
