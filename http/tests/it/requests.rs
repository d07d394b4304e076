//! Every rule about what a client may send, as vectors.

use std::sync::Arc;

use toru_http::{Connection, Event, Limits, Phase};

use crate::{check, check_with, connection_at_head, events, poll_until, response, sent};

#[test]
fn request_lines() {
    for (line, expect) in [
        ("GET / HTTP/1.1", "GET / 1.1; end; idle"),
        ("get / HTTP/1.1", "get / 1.1; end; idle"),
        ("X-!#$%&'*+.^_`|~9 / HTTP/1.1", "X-!#$%&'*+.^_`|~9 / 1.1; end; idle"),
        ("GET / HTTP/1.0", "GET / 1.0; end; closed"),
        ("GET / HTTP/1.2", "GET / 1.1; end; idle"),
        ("GET / HTTP/1.9", "GET / 1.1; end; idle"),
        ("GET / HTTP/0.9", "505 UnsupportedVersion; closed"),
        ("GET / HTTP/2.0", "505 UnsupportedVersion; closed"),
        ("PRI * HTTP/2.0", "505 UnsupportedVersion; closed"),
        ("GET / HTTP/3.0", "505 UnsupportedVersion; closed"),
        ("GET /", "400 BadRequestLine; closed"),
        ("GET", "400 BadRequestLine; closed"),
        ("GET ", "400 BadRequestLine; closed"),
        ("GET  / HTTP/1.1", "400 BadRequestLine; closed"),
        ("GET /  HTTP/1.1", "400 BadVersion; closed"),
        ("GET / HTTP/1.1 ", "400 BadVersion; closed"),
        ("GET / / HTTP/1.1", "400 BadVersion; closed"),
        (" GET / HTTP/1.1", "400 BadMethod; closed"),
        ("\tGET / HTTP/1.1", "400 BadMethod; closed"),
        ("GET\t/ HTTP/1.1", "400 BadMethod; closed"),
        ("GET /\tHTTP/1.1", "400 BadRequestLine; closed"),
        ("GET /\x0bHTTP/1.1 HTTP/1.1", "400 BadTargetCharacter; closed"),
        ("G(T / HTTP/1.1", "400 BadMethod; closed"),
        ("G:T / HTTP/1.1", "400 BadMethod; closed"),
        ("GÉT / HTTP/1.1", "400 BadMethod; closed"),
        ("\0GET / HTTP/1.1", "400 BadMethod; closed"),
        ("GET / http/1.1", "400 BadVersion; closed"),
        ("GET / Http/1.1", "400 BadVersion; closed"),
        ("GET / HTTP/1", "400 BadVersion; closed"),
        ("GET / HTTP/11", "400 BadVersion; closed"),
        ("GET / HTTP/1.", "400 BadVersion; closed"),
        ("GET / HTTP/1.10", "400 BadVersion; closed"),
        ("GET / HTTP/01.1", "400 BadVersion; closed"),
        ("GET / HTTP/1,1", "400 BadVersion; closed"),
        ("GET / HTTP/a.1", "400 BadVersion; closed"),
        ("GET / HTTPS/1.1", "400 BadVersion; closed"),
        ("GET / HTTP/1.1\r", "400 BadVersion; closed"),
        ("GET / ", "400 BadVersion; closed"),
        ("HTTP/1.1 200 OK", "400 BadMethod; closed"),
        (&format!("{} / HTTP/1.1", "A".repeat(64)), &format!("{} / 1.1; end; idle", "A".repeat(64))),
        (&format!("{} / HTTP/1.1", "A".repeat(65)), "501 MethodTooLong; closed"),
        (&format!("{} / HTTP/1.1", "A".repeat(8193)), "400 BadRequestLine; closed"),
        (&format!("GET /{} HTTP/1.1", "a".repeat(8193)), "414 RequestLineTooLong; closed"),
    ] {
        check(format!("{line}\r\nhost: a\r\n\r\n"), expect);
    }
}

#[test]
fn targets() {
    for (method, target, expect) in [
        ("GET", "/a/b?c=d&e=%2f", ""),
        ("GET", "//a", ""),
        ("GET", "/a\"<>\\^`{|}", ""),
        ("GET", "/%zz", ""),
        ("GET", "http://a", ""),
        ("GET", "HTTP://a/b?c", ""),
        ("GET", "https://a:8443/", ""),
        ("GET", "http://[::1]:80/", ""),
        ("OPTIONS", "*", ""),
        ("OPTIONS", "/a", ""),
        ("CONNECT", "a:443", ""),
        ("CONNECT", "[::1]:443", ""),
        ("GET", "/#a", "400 BadTargetCharacter"),
        ("GET", "#", "400 BadTargetCharacter"),
        ("GET", "/\u{e9}", "400 BadTargetCharacter"),
        ("GET", "/\0", "400 BadTargetCharacter"),
        ("GET", "/\x7f", "400 BadTargetCharacter"),
        ("GET", "/\r", "400 BadTargetCharacter"),
        ("GET", "a", "400 BadTargetForm"),
        ("GET", "?a", "400 BadTargetForm"),
        ("GET", "*", "400 BadTargetForm"),
        ("OPTIONS", "**", "400 BadTargetForm"),
        ("GET", "a:443", "400 BadTargetForm"),
        ("GET", "ftp://a/", "400 BadTargetForm"),
        ("GET", "http:/a/", "400 BadTargetForm"),
        ("GET", "://a/", "400 BadTargetForm"),
        ("CONNECT", "/", "400 BadTargetForm"),
        ("CONNECT", "a", "400 BadTargetForm"),
        ("CONNECT", "a:", "400 BadTargetForm"),
        ("CONNECT", "http://a:80", "400 BadTargetForm"),
        ("GET", "http://", "400 BadAuthority"),
        ("GET", "http:///a", "400 BadAuthority"),
        ("GET", "http://:80/", "400 BadAuthority"),
        ("GET", "http://u@a/", "400 BadAuthority"),
        ("GET", "http://u:p@a/", "400 BadAuthority"),
        ("GET", "http://a:65536/", "400 BadAuthority"),
        ("GET", "http://a:b/", "400 BadAuthority"),
        ("GET", "http://[::1/", "400 BadAuthority"),
        ("GET", "http://[g]/", "400 BadAuthority"),
    ] {
        let expect = match expect {
            // Answering 200 would open a tunnel, which ends the connection's HTTP.
            "" if method == "CONNECT" => format!("{method} {target} 1.1; end; closed"),
            "" => format!("{method} {target} 1.1; end; idle"),
            failure => format!("{failure}; closed"),
        };
        check(format!("{method} {target} HTTP/1.1\r\nhost: a\r\n\r\n"), &expect);
    }
}

#[test]
fn empty_lines_before_a_request() {
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    check(get, "GET / 1.1; end; idle");
    check(format!("\r\n{get}"), "GET / 1.1; end; idle");
    check(format!("{get}\r\n{get}"), "GET / 1.1; end; GET / 1.1; end; idle");
    check(format!("\r\n\r\n{get}"), "400 TooManyEmptyLines; closed");
    check(format!("\n{get}"), "400 BareLf; closed");
    check(format!("\r{get}"), "400 BareCr; closed");
    check(format!("\r\r\n{get}"), "400 BareCr; closed");
    check("", "idle");
    check("\r\n", "idle");
    check("\r", "more");
    check("G", "more");
}

#[test]
fn hosts() {
    for (fields, version, expect) in [
        ("Host: a", "1.1", ""),
        ("HOST:a", "1.1", ""),
        ("host: a:8080", "1.1", ""),
        ("host: a:", "1.1", ""),
        ("host: 127.0.0.1:3000", "1.1", ""),
        ("host: [::1]:3000", "1.1", ""),
        ("host: under_score.ex-ample~", "1.1", ""),
        ("host: %41", "1.1", ""),
        ("x: y", "1.0", ""),
        ("host: a", "1.0", ""),
        ("x: y", "1.1", "400 MissingHost"),
        ("host: a\r\nhost: a", "1.1", "400 RepeatedHost"),
        ("host: a\r\nHost: b", "1.0", "400 RepeatedHost"),
        ("host:", "1.1", "400 BadHost"),
        ("host:  ", "1.1", "400 BadHost"),
        ("host:", "1.0", "400 BadHost"),
        ("host: a b", "1.1", "400 BadHost"),
        ("host: a, b", "1.1", "400 BadHost"),
        ("host: a/b", "1.1", "400 BadHost"),
        ("host: a@b", "1.1", "400 BadHost"),
        ("host: a:b", "1.1", "400 BadHost"),
        ("host: a:1:2", "1.1", "400 BadHost"),
        ("host: a:99999", "1.1", "400 BadHost"),
        ("host: a:+1", "1.1", "400 BadHost"),
        ("host: [::1", "1.1", "400 BadHost"),
        ("host: [::1]a", "1.1", "400 BadHost"),
        ("host: ::1", "1.1", "400 BadHost"),
        ("host: %4", "1.1", "400 BadHost"),
        ("host: \u{e9}", "1.1", "400 BadHost"),
    ] {
        let expect = match (expect, version) {
            ("", "1.1") => "GET / 1.1; end; idle".to_owned(),
            ("", _) => "GET / 1.0; end; closed".to_owned(),
            (failure, _) => format!("{failure}; closed"),
        };
        check(format!("GET / HTTP/{version}\r\n{fields}\r\n\r\n"), &expect);
    }
}

#[test]
fn the_target_names_the_host_before_the_field_does() {
    for (line, expect) in [
        ("GET / HTTP/1.1", Some("field:1")),
        ("GET http://target:2/ HTTP/1.1", Some("target:2")),
        ("GET http://target HTTP/1.0", Some("target")),
        ("CONNECT target:2 HTTP/1.1", Some("target:2")),
        ("OPTIONS * HTTP/1.1", Some("field:1")),
    ] {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(format!("{line}\r\nhost: field:1\r\n\r\n").as_bytes());
        let Event::Head(head) = connection.poll_event() else { panic!("{line}") };
        assert_eq!(head.host, expect, "{line}");
    }
    let mut connection = Connection::new(Arc::new(Limits::default()));
    connection.handle_input(b"GET / HTTP/1.0\r\n\r\n");
    let Event::Head(head) = connection.poll_event() else { panic!() };
    assert_eq!(head.host, None);
}

#[test]
fn field_lines() {
    for (line, expect) in [
        (&b"a: b"[..], ""),
        (b"a:b", ""),
        (b"a:", ""),
        (b"a: \t b c\t \t", ""),
        (b"a: \x80\xff\xc3\xa9", ""),
        (b"!#$%&'*+-.^_`|~09azAZ: b", ""),
        (b"a: b:c", ""),
        (b"a : b", "400 SpaceBeforeColon"),
        (b"a\t: b", "400 SpaceBeforeColon"),
        (b" a: b", "400 LineFolding"),
        (b"\ta: b", "400 LineFolding"),
        (b" ", "400 LineFolding"),
        (b"x: y\r\n folded", "400 LineFolding"),
        (b"x: y\r\n\tfolded", "400 LineFolding"),
        (b": b", "400 EmptyFieldName"),
        (b":", "400 EmptyFieldName"),
        (b"a", "400 MissingColon"),
        (b"a b", "400 MissingColon"),
        (b"a b: c", "400 BadFieldName"),
        (b"a(: b", "400 BadFieldName"),
        (b"\xe9: b", "400 BadFieldName"),
        (b"a\0: b", "400 BadFieldName"),
        (b"a\x0b: b", "400 BadFieldName"),
        (b"\"a\": b", "400 BadFieldName"),
        (b"a: \0", "400 BadFieldValue"),
        (b"a: b\0c", "400 BadFieldValue"),
        (b"a: \x01", "400 BadFieldValue"),
        (b"a: \x0b", "400 BadFieldValue"),
        (b"a: \x0c", "400 BadFieldValue"),
        (b"a: \x1f", "400 BadFieldValue"),
        (b"a: \x7f", "400 BadFieldValue"),
        (b"a: \x1b[31m", "400 BadFieldValue"),
        (b"a: b\rc", "400 BadFieldValue"),
        (b"a: b\r", "400 BadFieldValue"),
        (b"\ra: b", "400 BareCr"),
        (b"a: b\nc: d", "400 BareLf"),
        (b"a: b\n", "400 BareLf"),
    ] {
        let expect = match expect {
            "" => "GET / 1.1; end; idle".to_owned(),
            failure => format!("{failure}; closed"),
        };
        // First, in the middle, and last: some parsers treat the first field line apart.
        for (before, after) in [("host: a\r\n", ""), ("", "host: a\r\n"), ("host: a\r\nx: y\r\n", "z: z\r\n")]
        {
            let first = format!("GET / HTTP/1.1\r\n{before}");
            check([first.as_bytes(), line, b"\r\n", after.as_bytes(), b"\r\n"].concat(), &expect);
        }
    }
}

#[test]
fn fields_that_may_stand_once_do() {
    for field in ["Content-Type: a/b", "authorization: Bearer x", "ORIGIN: http://a"] {
        check(format!("GET / HTTP/1.1\r\nhost: a\r\n{field}\r\n\r\n"), "GET / 1.1; end; idle");
        let twice = format!("GET / HTTP/1.1\r\n{field}\r\nhost: a\r\n{}\r\n\r\n", field.to_lowercase());
        check(twice, "400 RepeatedField; closed");
    }
    // The next request starts afresh.
    let get = "GET / HTTP/1.1\r\nhost: a\r\norigin: http://a\r\n\r\n";
    check(get.repeat(2), "GET / 1.1; end; GET / 1.1; end; idle");
}

#[test]
fn line_ends_are_crlf() {
    check("GET / HTTP/1.1\nhost: a\r\n\r\n", "400 BareLf; closed");
    check("GET / HTTP/1.1\r\nhost: a\n\r\n", "400 BareLf; closed");
    check("GET / HTTP/1.1\r\nhost: a\r\n\n", "400 BareLf; closed");
    check("GET / HTTP/1.1\r\nhost: a\r\n\r", "more");
    check("GET / HTTP/1.1\r\nhost: a\r\n\rX\r\n", "400 BareCr; closed");
    check("GET / HTTP/1.1\r\nhost: a\r\n\r\r\n", "400 BareCr; closed");
    check(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "400 BadMethod; closed");
}

#[test]
fn fields_are_told_as_sent() {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    let fields = "Host: a\r\nX-One:1\r\nx-two: \t2 2 \r\nX-ONE:  3\r\nempty:\r\nConnection: x-two, close\r\n";
    connection.handle_input(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes());
    let Event::Head(head) = connection.poll_event() else { panic!() };
    let told: Vec<_> = head.fields.iter().map(|field| (field.name, field.value)).collect();
    assert_eq!(
        told,
        [
            ("Host", &b"a"[..]),
            ("X-One", b"1"),
            ("x-two", b"2 2"),
            ("X-ONE", b"3"),
            ("empty", b""),
            ("Connection", b"x-two, close"),
        ]
    );
    assert_eq!(head.fields.len(), 6);
    assert_eq!(head.fields.get("x-one"), Some(&b"1"[..]));
    assert_eq!(head.fields.get_all("X-One").collect::<Vec<_>>(), [b"1", b"3"]);
    assert_eq!(head.fields.get("EMPTY"), Some(&b""[..]));
    assert_eq!(head.fields.get("absent"), None);
    assert!(head.fields.is_hop_by_hop("X-Two"), "a `connection` field names it");
    assert!(head.fields.is_hop_by_hop("keep-alive"));
    assert!(!head.fields.is_hop_by_hop("x-one"));
}

#[test]
fn content_lengths() {
    for (value, expect) in [
        ("0", "POST / 1.1 length=0; end; more"),
        ("3", "POST / 1.1 length=3; body abc; end; idle"),
        ("003", "POST / 1.1 length=3; body abc; end; idle"),
        ("00000000000000000000000000003", "POST / 1.1 length=3; body abc; end; idle"),
        ("  3  ", "POST / 1.1 length=3; body abc; end; idle"),
        ("2", "POST / 1.1 length=2; body ab; end; more"),
        ("4", "POST / 1.1 length=4; body abc; more"),
        ("1048576", "POST / 1.1 length=1048576; body abc; more"),
        ("1048577", "413 ContentTooLarge; closed"),
        ("18446744073709551615", "413 ContentTooLarge; closed"),
        ("18446744073709551616", "400 BadContentLength; closed"),
        ("99999999999999999999999999", "400 BadContentLength; closed"),
        ("", "400 BadContentLength; closed"),
        ("+3", "400 BadContentLength; closed"),
        ("-3", "400 BadContentLength; closed"),
        ("3.0", "400 BadContentLength; closed"),
        ("0x3", "400 BadContentLength; closed"),
        ("3,3", "400 BadContentLength; closed"),
        ("3, 3", "400 BadContentLength; closed"),
        ("3 3", "400 BadContentLength; closed"),
        ("3;", "400 BadContentLength; closed"),
        ("\"3\"", "400 BadContentLength; closed"),
        ("abc", "400 BadContentLength; closed"),
        ("\u{663}", "400 BadContentLength; closed"),
        ("3\r\ncontent-length: 3", "400 RepeatedContentLength; closed"),
        ("3\r\nContent-Length: 4", "400 RepeatedContentLength; closed"),
    ] {
        check(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {value}\r\n\r\nabc"), expect);
    }
}

#[test]
fn transfer_encodings() {
    let taken = "POST / 1.1 chunked; body abc; end; idle";
    for (fields, expect) in [
        ("transfer-encoding: chunked", taken),
        ("Transfer-Encoding:CHUNKED", taken),
        ("transfer-encoding: \tchunked ", taken),
        ("transfer-encoding: identity", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: gzip", "400 BadTransferEncoding; closed"),
        ("transfer-encoding:", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: ,chunked", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked,", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked, chunked", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked, gzip", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked\r\ntransfer-encoding: identity", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: xchunked", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chunked;q=1", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: \"chunked\"", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: chun ked", "400 BadTransferEncoding; closed"),
        ("transfer-encoding: \u{b}chunked", "400 BadFieldValue; closed"),
        ("transfer-encoding : chunked", "400 SpaceBeforeColon; closed"),
        ("transfer-encoding: gzip, chunked", "501 UnknownTransferCoding; closed"),
        ("transfer-encoding: gzip\r\ntransfer-encoding: chunked", "501 UnknownTransferCoding; closed"),
        ("transfer-encoding: identity, chunked", "501 UnknownTransferCoding; closed"),
        ("transfer-encoding: chunked\r\ncontent-length: 3", "400 LengthAndTransferEncoding; closed"),
        ("content-length: 3\r\ntransfer-encoding: chunked", "400 LengthAndTransferEncoding; closed"),
        ("content-length: 0\r\ntransfer-encoding: gzip, chunked", "400 LengthAndTransferEncoding; closed"),
    ] {
        check(format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"), expect);
    }
    check(
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 TransferEncodingInHttp10; closed",
    );
}

#[test]
fn chunks() {
    let long_extension = format!("0;{}\r\n\r\n", "a".repeat(253));
    let longest_extension = format!("0;{}\r\n\r\n", "a".repeat(252));
    for (content, expect) in [
        ("0\r\n\r\n", "end; idle"),
        ("000\r\n\r\n", "end; idle"),
        ("3\r\nabc\r\n0\r\n\r\n", "body abc; end; idle"),
        ("1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", "body abc; end; idle"),
        ("A\r\n0123456789\r\n0\r\n\r\n", "body 0123456789; end; idle"),
        ("a\r\n0123456789\r\n0\r\n\r\n", "body 0123456789; end; idle"),
        ("0000000000000000000000003\r\nabc\r\n0\r\n\r\n", "body abc; end; idle"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "body \r\n; end; idle"),
        ("3\r\nab", "body ab; more"),
        ("3\r\nabc\r", "body abc; more"),
        ("3\r\nabc\r\n0\r\n", "body abc; more"),
        // Sizes
        ("\r\n\r\n", "400 BadChunkSize; closed"),
        ("3\r\nabc\r\n\r\n\r\n", "body abc; 400 BadChunkSize; closed"),
        (" 3\r\nabc\r\n", "400 BadChunkSize; closed"),
        ("+3\r\nabc\r\n", "400 BadChunkSize; closed"),
        ("-1\r\nabc\r\n", "400 BadChunkSize; closed"),
        ("g\r\nabc\r\n", "400 BadChunkSize; closed"),
        (";a\r\nabc\r\n", "400 BadChunkSize; closed"),
        ("0x3\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("3 \r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("3\t\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("3_0\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("3h\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("3\0\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("10000000000000003\r\nabc\r\n", "400 BadChunkSize; closed"),
        ("ffffffffffffffff\r\nabc\r\n", "413 ContentTooLarge; closed"),
        ("3\r\nabc\r\nfffffffffffffffe\r\n", "body abc; 413 ContentTooLarge; closed"),
        ("100001\r\n", "413 ContentTooLarge; closed"),
        ("100000\r\n", "more"),
        ("1\r\na\r\n100000\r\n", "body a; 413 ContentTooLarge; closed"),
        // Line ends
        ("3\nabc\r\n0\r\n\r\n", "400 BareLf; closed"),
        ("3\r\nabc\n0\r\n\r\n", "body abc; 400 BadChunkEnd; closed"),
        ("3\r\nabcd\r\n0\r\n\r\n", "body abc; 400 BadChunkEnd; closed"),
        ("3\r\nabc0\r\n\r\n", "body abc; 400 BadChunkEnd; closed"),
        ("3\r\nabc\r0\r\n\r\n", "body abc; 400 BadChunkEnd; closed"),
        ("3\r\nabc\r\r\n0\r\n\r\n", "body abc; 400 BadChunkEnd; closed"),
        ("3\r\r\nabc\r\n", "400 BadChunkExtension; closed"),
        ("0\r\n\n", "400 BareLf; closed"),
        ("0\n\r\n", "400 BareLf; closed"),
        // Extensions
        ("0;a\r\n\r\n", "end; idle"),
        ("0;a=b\r\n\r\n", "end; idle"),
        ("0;a=b;c;d=\"e\"\r\n\r\n", "end; idle"),
        ("0 ; a = b ;c\r\n\r\n", "end; idle"),
        ("0;a=\"b;=\\\"\t \u{e9}\"\r\n\r\n", "end; idle"),
        ("0;a=\"\"\r\n\r\n", "end; idle"),
        ("0;\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;;a\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;=b\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a b\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"b\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"b\\\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"b\\\"\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"b\"c\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"\0\"\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a=\"\r\"\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a\0\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a\rb\r\n\r\n", "400 BadChunkExtension; closed"),
        ("0;a\n\r\n", "400 BareLf; closed"),
        (&longest_extension, "end; idle"),
        (&long_extension, "400 ChunkLineTooLong; closed"),
        // Trailers
        ("0\r\na: b\r\nc:d\r\n\r\n", "end; idle"),
        ("0\r\ncontent-length: 5\r\n\r\n", "end; idle"),
        ("0\r\na : b\r\n\r\n", "400 SpaceBeforeColon; closed"),
        ("0\r\n a: b\r\n\r\n", "400 LineFolding; closed"),
        ("0\r\na: b\r\n c\r\n\r\n", "400 LineFolding; closed"),
        ("0\r\na: \0\r\n\r\n", "400 BadFieldValue; closed"),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", "400 MissingColon; closed"),
        ("0\r\na: b\n\r\n", "400 BareLf; closed"),
    ] {
        let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        check(format!("{head}{content}"), &format!("POST / 1.1 chunked; {expect}"));
    }
}

#[test]
fn extensions_are_bounded_in_sum() {
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(127));
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let content = "a".repeat(128);
    check(
        format!("{head}{}0\r\n\r\n", chunk.repeat(128)),
        &format!("POST / 1.1 chunked; body {content}; end; idle"),
    );
    check(
        format!("{head}{}0;x\r\n\r\n", chunk.repeat(128)),
        &format!("POST / 1.1 chunked; body {content}; 400 ChunkExtensionsTooLarge; closed"),
    );
}

#[test]
fn expectations() {
    for (version, value, fields, expect) in [
        ("1.1", "100-continue", "content-length: 1", "POST / 1.1 length=1 expects; more"),
        ("1.1", "100-Continue", "transfer-encoding: chunked", "POST / 1.1 chunked expects; more"),
        // Without content, and from HTTP/1.0, it means nothing.
        ("1.1", "100-continue", "content-length: 0", "POST / 1.1 length=0; end; idle"),
        ("1.1", "100-continue", "x: y", "POST / 1.1; end; idle"),
        ("1.0", "100-continue", "content-length: 1", "POST / 1.0 length=1; more"),
        ("1.1", "100", "content-length: 1", "417 UnknownExpectation; closed"),
        ("1.1", "", "content-length: 1", "417 UnknownExpectation; closed"),
        ("1.1", "100-continue, other", "content-length: 1", "417 UnknownExpectation; closed"),
        ("1.1", "100-continue;a=b", "content-length: 1", "417 UnknownExpectation; closed"),
    ] {
        let head = format!("POST / HTTP/{version}\r\nhost: a\r\nexpect: {value}\r\n{fields}\r\n\r\n");
        check(head, expect);
    }
}

#[test]
fn connection_options_decide_what_follows() {
    for (version, options, expect) in [
        ("1.1", "x: y", "idle"),
        ("1.1", "connection: keep-alive", "idle"),
        ("1.1", "connection: close", "closed"),
        ("1.1", "Connection: CLOSE", "closed"),
        ("1.1", "connection: keep-alive, close", "closed"),
        ("1.1", "connection: te,close ,x", "closed"),
        ("1.1", "connection: te\r\nconnection: close", "closed"),
        ("1.1", "connection: closed", "idle"),
        ("1.1", "connection: ,, ,", "idle"),
        ("1.1", "connection:", "idle"),
        ("1.1", "proxy-connection: close", "idle"),
        ("1.0", "x: y", "closed"),
        ("1.0", "connection: keep-alive", "idle"),
        ("1.0", "connection: Keep-Alive", "idle"),
        ("1.0", "connection: keep-alive, close", "closed"),
        ("1.0", "connection: te", "closed"),
    ] {
        let head = format!("GET / HTTP/{version}\r\nhost: a\r\n{options}\r\n\r\n");
        check(head, &format!("GET / {version}; end; {expect}"));
    }
}

#[test]
fn pipelined_requests_come_in_order() {
    let mut input = String::new();
    let mut expect = String::new();
    for number in 0..50 {
        input.push_str(&format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n"));
        input
            .push_str(&format!("POST /{number} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{number:02}"));
        input.push_str("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
        expect.push_str(&format!(
            "GET /{number} 1.1; end; POST /{number} 1.1 length=2; body {number:02}; end; "
        ));
        expect.push_str("PUT / 1.1 chunked; body x; end; ");
    }
    check(&input, &format!("{expect}idle"));
    // A failure spares what came before it, and what follows is not looked at.
    check(
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /1 1.1; end; 400 MissingHost; closed",
    );
    check(
        "GET /1 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET /1 1.1; end; closed",
    );
}

#[test]
fn limits_hold_at_their_edge() {
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        Arc::new(limits)
    };
    let line = "GET /abc HTTP/1.1\r\n";
    assert_eq!(line.len(), 19);
    let get = format!("{line}host: a\r\n\r\n");
    let taken = "GET /abc 1.1; end; idle";

    check_with(&limits(|limits| limits.request_line_bytes_max = 19), &get, taken);
    let less = limits(|limits| limits.request_line_bytes_max = 18);
    check_with(&less, &get, "414 RequestLineTooLong; closed");
    check_with(&less, "GET /abcdefghijklm", "414 RequestLineTooLong; closed");
    check_with(&less, "GET /abcdefghijkl", "more");

    assert_eq!(get.len(), 30);
    check_with(&limits(|limits| limits.head_bytes_max = 30), &get, taken);
    let less = limits(|limits| limits.head_bytes_max = 29);
    check_with(&less, &get, "431 HeadTooLarge; closed");
    check_with(&less, format!("{line}abcdefghij"), "431 HeadTooLarge; closed");
    check_with(&less, format!("{line}abcdefghi"), "more");

    let two = limits(|limits| limits.fields_max = 2);
    check_with(&two, format!("{line}host: a\r\nb: c\r\n\r\n"), taken);
    check_with(&two, format!("{line}host: a\r\nb: c\r\nd: e\r\n\r\n"), "431 TooManyFields; closed");

    let options =
        |count| format!("{line}host: a\r\nconnection: {}\r\nconnection: b\r\n\r\n", "a, ,".repeat(count));
    check(options(31), taken);
    check(options(32), "431 TooManyConnectionOptions; closed");

    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    check_with(&two, format!("{chunked}0\r\na:\r\nb:\r\n\r\n"), "POST / 1.1 chunked; end; idle");
    check_with(
        &two,
        format!("{chunked}0\r\na:\r\nb:\r\nc:\r\n\r\n"),
        "POST / 1.1 chunked; 431 TooManyFields; closed",
    );

    let ten = limits(|limits| limits.trailer_bytes_max = 10);
    check_with(&ten, format!("{chunked}0\r\na:\r\nb:\r\n\r\n"), "POST / 1.1 chunked; end; idle");
    let too_large = "POST / 1.1 chunked; 431 TrailersTooLarge; closed";
    check_with(&ten, format!("{chunked}0\r\na:\r\nb:x\r\n\r\n"), too_large);
    check_with(&ten, format!("{chunked}0\r\na:\r\nbcdefg"), too_large);
    check_with(&ten, format!("{chunked}0\r\na:\r\nbcdef"), "POST / 1.1 chunked; more");

    let three = limits(|limits| limits.body_bytes_max = 3);
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length";
    check_with(&three, format!("{post}: 3\r\n\r\nabc"), "POST / 1.1 length=3; body abc; end; idle");
    check_with(&three, format!("{post}: 4\r\n\r\n"), "413 ContentTooLarge; closed");
    check_with(
        &three,
        format!("{chunked}2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"),
        "POST / 1.1 chunked; body abc; end; idle",
    );
    check_with(&three, format!("{chunked}2\r\nab\r\n2"), "POST / 1.1 chunked; body ab; more");
    check_with(
        &three,
        format!("{chunked}2\r\nab\r\n2\r\n"),
        "POST / 1.1 chunked; body ab; 413 ContentTooLarge; closed",
    );
}

#[test]
fn back_pressure_while_an_answer_is_due() {
    let mut connection = connection_at_head("GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(matches!(connection.poll_event(), Event::End));
    let pipelined = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(4096);
    let (first, second) = pipelined.split_at(64 * 1024 - 1);
    connection.handle_input(first);
    assert!(matches!(connection.poll_event(), Event::ResponseDue));
    assert!(connection.wants_input(), "one byte of room");
    connection.handle_input(&second[..1]);
    assert!(!connection.wants_input());
    connection.respond(&response(200, b""));
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    assert!(connection.wants_input());
}

#[test]
fn a_head_is_taken_even_if_little_may_be_pipelined() {
    let limits = Arc::new(Limits { pipelined_bytes_max: 0, ..Limits::default() });
    let mut connection = Connection::new(limits);
    for byte in b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" {
        poll_until(&mut connection, |event| matches!(event, Event::NeedInput));
        assert!(connection.wants_input());
        connection.handle_input(&[*byte]);
    }
    assert!(matches!(connection.poll_event(), Event::End));
    assert!(!connection.wants_input());
}

#[test]
fn the_end_of_input() {
    let after_eof = |input: &str| {
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(input.as_bytes());
        connection.handle_eof();
        assert!(!connection.wants_input());
        let mut words = Vec::new();
        loop {
            match connection.poll_event() {
                Event::Failed(error) => {
                    words.push(format!("{error}"));
                    connection.respond(&response(error.status(), b""));
                }
                Event::ResponseDue => {
                    words.push("due".to_owned());
                    connection.respond(&response(200, b""));
                }
                Event::Closed => return words.join("; "),
                Event::NeedInput => panic!("no more input can come"),
                Event::Head(_) | Event::Body(_) | Event::End => {}
            }
        }
    };
    assert_eq!(after_eof(""), "");
    assert_eq!(after_eof("\r\n"), "");
    assert_eq!(after_eof("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), "due");
    assert_eq!(after_eof(&"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(3)), "due; due; due");
    assert_eq!(after_eof("GET / HTTP/1.1\r\nhost: a\r\n\r\nGE"), "due; input ends within a request");
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab";
    for end in 1..post.len() {
        assert_eq!(after_eof(&post[..end]), "input ends within a request", "after {end} bytes");
    }
    assert_eq!(after_eof(post), "due");
    let chunked =
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\na: b\r\n\r\n";
    for end in 1..chunked.len() {
        assert_eq!(after_eof(&chunked[..end]), "input ends within a request", "after {end} bytes");
    }
    assert_eq!(after_eof(chunked), "due");
}

#[test]
fn phases_follow_the_exchange() {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    assert_eq!(connection.phase(), Phase::Idle);
    assert!(!connection.can_respond());
    connection.handle_input(b"P");
    assert_eq!(connection.phase(), Phase::Head);
    connection.handle_input(b"OST / HTTP/1.1\r\nhost: a\r\n");
    assert!(matches!(connection.poll_event(), Event::NeedInput));
    assert_eq!(connection.phase(), Phase::Head);
    connection.handle_input(b"content-length: 2\r\n\r\na");
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    assert_eq!(connection.phase(), Phase::Body);
    assert!(connection.can_respond());
    assert!(matches!(connection.poll_event(), Event::Body(b"a")));
    connection.handle_input(b"b");
    assert!(matches!(connection.poll_event(), Event::Body(b"b")));
    assert!(matches!(connection.poll_event(), Event::End));
    assert_eq!(connection.phase(), Phase::Response);
    assert!(matches!(connection.poll_event(), Event::ResponseDue));
    connection.respond(&response(200, b""));
    assert_eq!(connection.phase(), Phase::Idle);
    assert!(!connection.is_closing());
    connection.handle_input(b"?");
    assert_eq!(connection.phase(), Phase::Head);
    assert!(matches!(connection.poll_event(), Event::Failed(_)));
    assert_eq!(connection.phase(), Phase::Response);
    connection.respond(&response(400, b""));
    assert_eq!(connection.phase(), Phase::Closing);
    assert!(connection.is_closing());
}

#[test]
fn a_continue_is_sent_once_and_only_to_a_client_that_waits() {
    let expecting = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
    let mut connection = connection_at_head(expecting);
    connection.send_continue();
    connection.send_continue();
    assert_eq!(sent(&mut connection), "HTTP/1.1 100 Continue\r\n\r\n");
    connection.handle_input(b"ab");
    poll_until(&mut connection, |event| matches!(event, Event::ResponseDue));
    connection.respond(&response(204, b""));
    assert_eq!(sent(&mut connection), "HTTP/1.1 204 No Content\r\n\r\n");

    // The next request starts afresh.
    connection.handle_input(expecting.as_bytes());
    assert!(matches!(connection.poll_event(), Event::Head(_)));
    connection.send_continue();
    assert_eq!(sent(&mut connection), "HTTP/1.1 100 Continue\r\n\r\n");

    let mut came_unasked = connection_at_head(format!("{expecting}a"));
    came_unasked.send_continue();
    assert!(matches!(came_unasked.poll_event(), Event::Body(b"a")));
    came_unasked.send_continue();
    assert_eq!(sent(&mut came_unasked), "");

    let mut did_not_ask = connection_at_head("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n");
    did_not_ask.send_continue();
    assert_eq!(sent(&mut did_not_ask), "");

    let mut answered = connection_at_head(expecting);
    answered.respond(&response(401, b""));
    answered.send_continue();
    let output = sent(&mut answered);
    assert!(!output.contains("100 Continue") && output.contains("connection: close\r\n"), "{output}");
}

#[test]
fn messages_name_the_thing() {
    let limits = Arc::new(Limits::default());
    let mut connection = Connection::new(limits.clone());
    connection.handle_input(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n");
    let Event::Failed(error) = connection.poll_event() else { panic!() };
    assert_eq!(error.to_string(), "`host` is repeated");
    assert_eq!(events(&limits, b"GET / HTTP/1.1\r\n\r\n", [3, 5, 8]), "400 MissingHost; closed");
}
