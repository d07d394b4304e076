//! HTTP as a client sees it: routing, bodies, fields, framing, and what is refused.

use std::{
    fs,
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use toru_tests::{Daemon, Response, Stage, request_bytes, wait_for};

/// A daemon with one well-behaved 1.1 plugin `p`.
fn daemon() -> Daemon {
    started(Stage::new())
}

fn started(stage: Stage) -> Daemon {
    let daemon = stage.faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

#[track_caller]
pub fn assert_problem(answer: &Response, status: u16) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.field("content-type"), Some("application/problem+json"), "{answer:?}");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{problem}");
    for field in ["type", "title", "detail", "request_id"] {
        let text = problem[field].as_str().unwrap_or_default();
        assert!(!text.is_empty(), "{field} in {problem}");
    }
    problem
}

/// The request that an echo answer saw: `method`, `path`, `headers`, `body` and the rest.
#[track_caller]
fn seen(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

#[test]
fn a_path_reaches_the_plugin_as_it_was_sent() {
    let daemon = daemon();
    for (target, path) in [
        ("/api/plugins/p/", "/"),
        ("/api/plugins/p/?x=1", "/?x=1"),
        ("/api/plugins/route/p?x=1", "/?x=1"),
        ("/api/plugins/p/a", "/a"),
        ("/api/plugins/p/a/", "/a/"),
        ("/api/plugins/p/a/b?x=1&x=2&empty=&flag", "/a/b?x=1&x=2&empty=&flag"),
        ("/api/plugins/p/a%20b/c%2Fd/%C3%A9?q=%26%3D", "/a%20b/c%2Fd/%C3%A9?q=%26%3D"),
        ("/api/plugins/p/a;v=1/~b/@c/(d)?e=/?f", "/a;v=1/~b/@c/(d)?e=/?f"),
        ("/api/plugins/route/p", "/"),
        ("/api/plugins/route/p/a?x=%41", "/a?x=%41"),
        // What is reserved after an id stays reachable by the route.
        ("/api/plugins/route/p/logs?page=1", "/logs?page=1"),
    ] {
        let answer = daemon.get(target);
        assert_eq!(seen(&answer)["path"], path, "{target}");
    }
}

#[test]
fn no_path_climbs_from_one_plugin_into_another() {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    let count = |id: &str| daemon.get(&format!("/api/plugins/{id}/count")).text().parse::<u64>().unwrap();
    let before = (count("p"), count("q"));
    for target in [
        "/api/plugins/p/../q/x",
        "/api/plugins/p/%2e%2e/q/x",
        "/api/plugins/p/a/../../q/x",
        "/api/plugins/route/p/.%2E/q/x",
        "/api/plugins/p/%00",
        "/api/plugins/p/%zz",
        "/api/plugins/p/%",
    ] {
        assert_problem(&daemon.get(target), 400);
    }
    assert_eq!((count("p"), count("q")), (before.0 + 1, before.1 + 1), "only the counts were asked");
}

#[test]
fn a_target_may_be_absolute() {
    let daemon = daemon();
    let answer = daemon.get("http://localhost/api/plugins/p/x?y=1");
    assert_eq!(seen(&answer)["path"], "/x?y=1");
    let mut client = daemon.client();
    let answer = client.request("OPTIONS", "*", &[], b"");
    assert!(answer.status < 500, "{answer:?}");
    let answer = daemon.request("CONNECT", "example.org:443", &[], b"");
    assert!((400..=501).contains(&answer.status), "{answer:?}");
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
}

#[test]
fn an_id_and_a_route_may_differ() {
    let daemon =
        Stage::new().faulty("a", &json!({"metadata": {"route": "/front"}})).faulty("b", &json!({})).start();
    daemon.wait_ready("a");
    daemon.wait_ready("b");
    let pid = |target: &str| daemon.get(target).text().to_owned();
    assert_eq!(pid("/api/plugins/a/pid"), pid("/api/plugins/route/front/pid"));
    assert_ne!(pid("/api/plugins/a/pid"), pid("/api/plugins/route/b/pid"));
    assert_problem(&daemon.get("/api/plugins/front/pid"), 404);
    assert_problem(&daemon.get("/api/plugins/route/a/pid"), 404);
}

#[test]
fn unknown_paths_are_404_with_a_problem() {
    let daemon = daemon();
    for target in [
        "/api/plugins/nobody/x",
        "/api/plugins/route/nobody/x",
        // An id is compared with case.
        "/api/plugins/P/x",
        "/api/other",
        "/nothing/here",
    ] {
        assert_problem(&daemon.get(target), 404);
    }
}

#[test]
fn every_method_arrives() {
    let daemon = daemon();
    let mut client = daemon.client();
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
        let answer = client.request(method, "/api/plugins/p/m", &[], b"");
        assert_eq!(seen(&answer)["method"], method);
    }
}

#[test]
fn head_has_the_fields_and_no_body() {
    let daemon = daemon();
    let mut client = daemon.client();
    let answer = client.request("HEAD", "/api/plugins/p/x", &[], b"");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.field("x-method"), Some("HEAD"));
    // A body after the head would be read as the next answer.
    assert_eq!(seen(&client.get("/api/plugins/p/next"))["path"], "/next");
}

#[test]
fn a_connection_is_kept_for_many_requests() {
    let daemon = daemon();
    let mut client = daemon.client();
    for number in 0..200 {
        let answer = client.get(&format!("/api/plugins/p/n/{number}"));
        assert_eq!(seen(&answer)["path"], format!("/n/{number}"));
    }
    let answer = client.request("GET", "/api/plugins/p/x", &[("connection", "close")], b"");
    assert_eq!(answer.status, 200);
    assert!(client.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = Stage::new().faulty("p", &json!({"do": "unordered"})).start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    let targets: Vec<String> = (0..100).map(|n| format!("/api/plugins/p/{n}")).collect();
    let bytes: Vec<u8> = targets.iter().flat_map(|target| request_bytes("GET", target, &[], b"")).collect();
    client.send(&bytes).unwrap();
    for number in 0..targets.len() {
        let answer = client.response("GET").unwrap();
        assert_eq!(seen(&answer)["path"], format!("/{number}"));
    }
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let daemon = daemon();
    let mut client = daemon.client();
    client.send(b"GET /api/plugins/p/old HTTP/1.0\r\n\r\n").unwrap();
    let answer = client.response("GET").unwrap();
    assert_eq!(seen(&answer)["path"], "/old");
    assert_eq!(answer.field("transfer-encoding"), None);
    assert!(client.is_closed());
}

#[test]
fn fields_go_both_ways() {
    let daemon = daemon();
    let answer = daemon.request(
        "GET",
        "/api/plugins/p/x",
        &[
            ("X-Request-Thing", "Value, with \"quotes\" and \\"),
            ("x-many", "1"),
            ("x-other", ""),
            ("X-Many", "2"),
            ("cookie", "a=1"),
        ],
        b"",
    );
    let headers = &seen(&answer)["headers"];
    assert_eq!(headers["x-request-thing"], "Value, with \"quotes\" and \\");
    assert_eq!(headers["x-many"], json!(["1", "2"]));
    assert_eq!(headers["x-other"], "");
    assert_eq!(headers["cookie"], "a=1");
    assert_eq!(headers["host"], "localhost");
    assert_eq!(answer.field("content-type"), Some("application/json"));
}

#[test]
fn what_1_1_adds_to_a_request() {
    let daemon = started(Stage::new().set("http.request_timeout_ms", 12_345));
    let request = seen(&daemon.get("/api/plugins/p/x"));
    assert_eq!(request["timeout_ms"], 12_345, "{request}");
    let remote = request["remote_addr"].as_str().unwrap_or_default();
    assert!(remote.starts_with("127.0.0.1"), "{request}");
    assert_eq!(request["body"], Value::Null);
}

// Row: sends content-length, transfer-encoding, connection and other hop-by-hop fields
#[test]
fn hop_by_hop_fields_stop_at_the_core() {
    let daemon = daemon();
    let answer = daemon.request(
        "GET",
        "/api/plugins/p/x",
        &[
            ("connection", "keep-alive, x-private"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("proxy-connection", "keep-alive"),
            ("x-kept", "1"),
        ],
        b"",
    );
    let headers = &seen(&answer)["headers"];
    for name in ["connection", "keep-alive", "x-private", "te", "proxy-connection"] {
        assert_eq!(headers[name], Value::Null, "{name} in {headers}");
    }
    assert_eq!(headers["x-kept"], "1");

    let mut client = daemon.client();
    let answer = client.get("/api/plugins/p/hop-by-hop");
    assert_eq!(answer.text(), "longer than three");
    assert_eq!(answer.field("x-kept"), Some("yes"));
    for name in ["keep-alive", "upgrade", "trailer", "proxy-connection"] {
        assert_eq!(answer.field(name), None, "{answer:?}");
    }
    assert!(answer.fields("content-length").count() <= 1, "{answer:?}");
    // The plugin's `connection: close` was not for this connection.
    assert_eq!(client.get("/api/plugins/p/x").status, 200);
}

#[test]
fn two_cookies_arrive_as_two_fields() {
    let answer = daemon().get("/api/plugins/p/cookies");
    assert_eq!(answer.fields("set-cookie").collect::<Vec<_>>(), ["a=1; Path=/", "b=2; HttpOnly"]);
    assert_eq!(answer.field("x-one"), Some("1"));
    assert!(answer.body.is_empty());
}

#[test]
fn answers_in_every_shape() {
    let daemon = daemon();
    let mut client = daemon.client();
    let answer = client.get("/api/plugins/p/object-body");
    assert_eq!(answer.json(), json!({"a": [1, 2.5, null], "b": "é\n"}));
    let answer = client.get("/api/plugins/p/array-body");
    assert_eq!(answer.json(), json!([1, {"two": 2}]));
    for empty in ["null-body", "no-body"] {
        let answer = client.get(&format!("/api/plugins/p/{empty}"));
        assert!(answer.body.is_empty(), "{answer:?}");
        assert_eq!(answer.field("content-length"), Some("0"));
    }
    let answer = client.get("/api/plugins/p/nested");
    assert_eq!((answer.status, answer.text()), (202, "inner"));
    assert_eq!(answer.field("x-nested"), Some("1"));
    let answer = client.get("/api/plugins/p/binary");
    assert_eq!(answer.body, b"\x00\xff\x80\r\n");
    let answer = client.get("/api/plugins/p/pieces");
    assert_eq!(seen(&answer)["path"], "/pieces");
    for status in [200, 204, 304, 404, 418, 599] {
        let answer = client.get(&format!("/api/plugins/p/status/{status}"));
        assert_eq!(answer.status, status);
        // 204 and 304 have no body by definition, whatever the plugin sends.
        let body = if matches!(status, 204 | 304) { "" } else { "as asked" };
        assert_eq!(answer.text(), body);
    }
    assert_eq!(client.get("/api/plugins/p/after").status, 200);
}

#[test]
fn bodies_go_both_ways_unchanged() {
    let daemon = daemon();
    let mut client = daemon.client();
    let all_bytes: Vec<u8> = (0..=255).collect();
    // Under the limit of a frame with everything around it, and without a byte to escape.
    let large = vec![b'x'; 900_000];
    let large_binary: Vec<u8> = all_bytes.iter().copied().cycle().take(600_000).collect();
    let controls: Vec<u8> = (0..128).collect();
    for body in [
        b"".as_slice(),
        b"{}",
        "Grüße 🦀 \u{0} \"\\\r\n\t".as_bytes(),
        &controls,
        &all_bytes,
        b"\xef\xbb\xbfwith a mark",
        b"cut short: \xe2\x82",
        &large,
        &large_binary,
    ] {
        let answer = client.request("POST", "/api/plugins/p/mirror", &[], body);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body == body, "{} bytes came back as {answer:?}", body.len());
        assert_eq!(answer.field("content-type"), Some("application/x-mirror"));
    }
    let answer = client.get("/api/plugins/p/bytes/1000000");
    assert_eq!(answer.body.len(), 1_000_000);
}

#[test]
fn a_chunked_upload_arrives_whole() {
    let daemon = daemon();
    let mut client = daemon.client();
    let head = b"POST /api/plugins/p/mirror HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks =
        b"4\r\nWiki\r\n6;name=\"value\"\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nx-trailer: 1\r\n\r\n";
    let whole = [head.as_slice(), chunks].concat();
    client.send(&whole).unwrap();
    let answer = client.response("POST").unwrap();
    assert_eq!(answer.text(), "Wikipedia in \r\n\r\nchunks.");
    // Byte by byte, and another request right behind it.
    for byte in &whole {
        client.send(&[*byte]).unwrap();
    }
    client.send(&request_bytes("GET", "/api/plugins/p/next", &[], b"")).unwrap();
    let answer = client.response("POST").unwrap();
    assert_eq!(answer.text(), "Wikipedia in \r\n\r\nchunks.");
    assert_eq!(seen(&client.response("GET").unwrap())["path"], "/next");
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let daemon = daemon();
    let mut client = daemon.client();
    client
        .send(
            b"POST /api/plugins/p/mirror HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\n\
              content-length: 5\r\n\r\n",
        )
        .unwrap();
    assert_eq!(client.response("POST").unwrap().status, 100);
    client.send(b"hello").unwrap();
    assert_eq!(client.response("POST").unwrap().text(), "hello");

    // A body that will not be taken is not asked for.
    let mut client = daemon.client();
    client
        .send(
            b"POST /api/plugins/p/mirror HTTP/1.1\r\nhost: t\r\nexpect: 100-continue\r\n\
              content-length: 1000000000\r\n\r\n",
        )
        .unwrap();
    assert_problem(&client.response("POST").unwrap(), 413);
}

#[test]
fn what_does_not_fit_a_frame_is_413() {
    let daemon = started(Stage::new().set("protocol.message_bytes_max", 65_536));
    let fits = daemon.request("POST", "/api/plugins/p/mirror", &[], &[b'x'; 60_000]);
    assert_eq!(fits.body.len(), 60_000);
    // Too long as it is; only by the escapes it needs; only as base64.
    for body in [vec![b'x'; 70_000], vec![b'"'; 40_000], vec![0xff; 50_000]] {
        let answer = daemon.request("POST", "/api/plugins/p/mirror", &[], &body);
        assert_problem(&answer, 413);
    }
    assert!(daemon.events("p").iter().all(|(kind, _)| kind != "protocol_error"));
}

#[test]
fn a_request_as_large_as_a_message_may_be_reaches_its_plugin() {
    let daemon = started(Stage::new().set("protocol.message_bytes_max", 16 * 1024 * 1024));
    let body = vec![b'x'; 15 * 1024 * 1024];
    for _ in 0..2 {
        let answer = daemon.request("POST", "/api/plugins/p/mirror", &[], &body);
        assert_eq!((answer.status, answer.body.len()), (200, body.len()));
    }
}

#[test]
fn whoever_forbids_uploads_still_stores_values_by_the_control_socket() {
    let daemon = started(Stage::new().set("http.body_bytes_max", 10));
    assert_problem(&daemon.request("POST", "/api/plugins/p/mirror", &[], &[b'x'; 11]), 413);
    let stored = daemon.toru("kv", &["set", "p", "key", "a value of more than ten bytes"]);
    assert_eq!(stored.status.code(), Some(0), "{stored:?}");
}

#[test]
fn a_plugin_of_1_0_takes_text_alone() {
    let daemon = Stage::new().legacy_rust("rust").legacy_python("python").start();
    for id in ["rust", "python"] {
        daemon.wait_ready(id);
        let target = format!("/api/plugins/{id}/x?y=1");
        let fields = [("x-many", "1"), ("x-many", "2"), ("cookie", "a=1"), ("cookie", "b=2")];
        let answer = daemon.request("POST", &target, &fields, "Grüße \"x\"".as_bytes());
        let request = seen(&answer);
        assert_eq!(request["path"], "/x?y=1");
        assert_eq!(request["body"], "Grüße \"x\"");
        assert_eq!(request["headers"]["x-many"], "1, 2");
        assert_eq!(request["headers"]["cookie"], "a=1; b=2");
        assert!(answer.field("x-sdk").is_some_and(|sdk| sdk.ends_with("-1.0")));
        let answer = daemon.request("POST", &target, &[], b"\xff\xfe");
        assert_problem(&answer, 415);
        let large = vec![b'x'; 400_000];
        let answer = daemon.request("POST", &target, &[], &large);
        assert_eq!(seen(&answer)["body"].as_str().map(str::len), Some(large.len()));
    }
    let answer = daemon.get("/api/plugins/rust/missing");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["path"], "/missing", "the plugin's own 404");
    let answer = daemon.get("/api/plugins/python/object");
    assert_eq!(seen(&answer)["path"], "/object", "an object for a body");
}

// Row: malformed or ambiguous framing
#[test]
fn malformed_requests_are_400_closed_and_never_forwarded() {
    let daemon = daemon();
    let count = || daemon.get("/api/plugins/p/count").text().parse::<u64>().unwrap();
    let before = count();
    let heads: &[&str] = &[
        "GET\r\n\r\n",
        "GET /api/plugins/p/x\r\n\r\n",
        "GET  /api/plugins/p/x HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /api/plugins/p/a b HTTP/1.1\r\nhost: t\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\nhost: t\n\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost : t\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\n host: t\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nx: a\r\n folded\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nno colon\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nx: a\u{0}b\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nx: a\rb\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\n\r\n",
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 1, 2\r\n\r\nab",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: -1\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: +1\r\n\r\na",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 0x1\r\n\r\na",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n1;x=\n\r\na\r\n0\r\n\r\n",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}\r\n\r\n",
    ];
    for head in heads {
        let mut client = daemon.client();
        // A second request behind the first must not be served either.
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend(request_bytes("GET", "/api/plugins/p/smuggled", &[], b""));
        client.send(&bytes).unwrap();
        let answer = client.response("GET").unwrap_or_else(|error| panic!("{head:?}: {error}"));
        assert!(matches!(answer.status, 400 | 413 | 501 | 505), "{head:?}: {answer:?}");
        assert_ne!(answer.status, 501, "only an unknown coding is 501: {head:?}");
        assert!(client.is_closed(), "{head:?}: still open");
    }
    assert_eq!(count(), before + 1, "nothing was forwarded");
}

#[test]
fn an_unknown_transfer_coding_or_version_is_refused() {
    let daemon = daemon();
    for (head, statuses) in [
        (
            "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            [400, 501],
        ),
        ("GET /api/plugins/p/x HTTP/2.0\r\nhost: t\r\n\r\n", [400, 505]),
        ("GET /api/plugins/p/x HTTP/1.9\r\nhost: t\r\n\r\n", [200, 505]),
    ] {
        let mut client = daemon.client();
        client.send(head.as_bytes()).unwrap();
        let answer = client.response("GET").unwrap();
        assert!(statuses.contains(&answer.status), "{head:?}: {answer:?}");
    }
}

#[test]
fn heads_have_a_size_limit() {
    let daemon = started(Stage::new().set("http.head_bytes_max", 8_192));
    let long = "x".repeat(20_000);
    let answer = daemon.request("GET", "/api/plugins/p/x", &[("x-long", &long)], b"");
    assert_problem(&answer, 431);
    let mut client = daemon.client();
    client.send(format!("GET /api/plugins/p/{long} HTTP/1.1\r\nhost: t\r\n\r\n").as_bytes()).unwrap();
    let answer = client.response("GET").unwrap();
    assert!(matches!(answer.status, 414 | 431), "{answer:?}");
    assert!(client.is_closed());
}

#[test]
fn a_head_or_body_that_does_not_come_is_cut() {
    let daemon = started(Stage::new().set("http.head_timeout_ms", 300).set("http.body_timeout_ms", 300));
    for start in [
        "GET /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nx-",
        "POST /api/plugins/p/x HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nabc",
    ] {
        let mut client = daemon.client();
        client.send(start.as_bytes()).unwrap();
        // A byte now and then must not keep it alive: the timer is not one per read.
        let answer = wait_for("the connection to be cut", || {
            let _ = client.send(b"a");
            client.stream().set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
            match client.response("GET") {
                Ok(answer) => Some(Some(answer)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
                Err(_) => Some(None),
            }
        });
        if let Some(answer) = answer {
            assert_eq!(answer.status, 408, "{start:?}: {answer:?}");
        }
    }
    // Nothing is sent into the close, so the whole answer arrives: of HEAD without its content, with its length.
    for (start, has_content) in [("GET", true), ("HEAD", false)] {
        let mut client = daemon.client();
        client.send(format!("{start} /api/plugins/p/x HTTP/1.1\r\nhost: t\r\nx-").as_bytes()).unwrap();
        let answer = String::from_utf8(client.rest().unwrap()).unwrap();
        let (head, content) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
        assert!(head.starts_with("HTTP/1.1 408 ") && head.contains("\r\nconnection: close"), "{answer}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        assert!(length.parse::<usize>().unwrap() > 50, "{head}");
        assert_eq!(!content.is_empty(), has_content, "{answer}");
    }
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
}

#[test]
fn management_needs_the_token() {
    let daemon = daemon();
    let reads = ["/api/plugins", "/api/plugins/p"];
    let token = daemon.token();
    for target in reads {
        assert_problem(&daemon.get(target), 401);
        for wrong in [
            "Bearer wrong".to_owned(),
            "Bearer ".to_owned(),
            format!("Basic {token}"),
            format!("Bearer {token}x"),
        ] {
            let answer = daemon.request("GET", target, &[("authorization", &wrong)], b"");
            assert_problem(&answer, 401);
        }
        let cookie = format!("authorization=Bearer {token}");
        assert_problem(&daemon.request("GET", target, &[("cookie", &cookie)], b""), 401);
        assert_eq!(daemon.manage("GET", target, b"").status, 200, "{target}");
    }
    for word in ["enable", "disable", "restart", "kv"] {
        let target = format!("/api/plugins/p/{word}");
        assert_problem(&daemon.request("POST", &target, &[], b"{}"), 401);
    }
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200, "still enabled");

    let mode = {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(daemon.root().join("data/token")).unwrap().permissions().mode()
    };
    assert_eq!(mode & 0o777, 0o600);
    let daemon = daemon.restart();
    assert_eq!(daemon.token(), token, "written by the first start alone");
}

#[test]
fn forwarding_needs_the_token_only_when_told_so() {
    let daemon = Stage::new().set("auth.plugins_need_token", true).faulty("p", &json!({})).start();
    daemon.wait_running("p");
    assert_problem(&daemon.get("/api/plugins/p/x"), 401);
    let answer = wait_for("the plugin behind the token", || {
        Some(daemon.manage("GET", "/api/plugins/p/x", b"")).filter(|answer| answer.status != 503)
    });
    assert_eq!(seen(&answer)["path"], "/x");
    assert_eq!(seen(&answer)["headers"]["authorization"], Value::Null, "the token is the core's");
}

#[test]
fn the_token_reaches_no_plugin_and_what_is_the_plugins_own_does() {
    let daemon = daemon();
    let token = daemon.token();
    let passed = |value: &str| {
        let answer = daemon.request("GET", "/api/plugins/p/logs/", &[("authorization", value)], b"");
        seen(&answer)["headers"]["authorization"].clone()
    };
    for value in [format!("Bearer {token}"), format!("bearer   {token}")] {
        assert_eq!(passed(&value), Value::Null, "the token is the core's");
    }
    let other = format!("Bearer {}", token.chars().rev().collect::<String>());
    assert_eq!(passed(&other), other);
    assert_eq!(passed("Basic YTpi"), "Basic YTpi");
}

#[test]
fn an_order_with_a_content_that_is_no_json_is_refused() {
    let daemon = daemon();
    for target in ["/api/plugins/p/restart", "/v1/plugins/p/stop"] {
        assert_problem(&daemon.manage("POST", target, b"{{"), 400);
    }
    assert_eq!(daemon.status("p").unwrap()["running"], true);
    for content in [&b""[..], b"{}", b"null"] {
        assert_eq!(daemon.manage("POST", "/api/plugins/p/enable", content).status, 200);
    }
}

#[test]
fn status_says_what_runs() {
    let daemon = Stage::new()
        .faulty("p", &json!({"metadata": {"author": "Ann", "name": "Paul"}}))
        .legacy_rust("old")
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("old");
    let list = daemon.manage("GET", "/api/plugins", b"").json();
    let list = list.as_array().or_else(|| list["plugins"].as_array()).unwrap_or_else(|| panic!("{list}"));
    assert_eq!(list.len(), 2);
    let status = daemon.manage("GET", "/api/plugins/p", b"").json();
    let listed = list.iter().find(|plugin| plugin["id"] == "p").unwrap();
    assert_eq!(listed["pid"], status["pid"]);
    for (key, value) in [
        ("id", json!("p")),
        ("name", json!("Paul")),
        ("version", json!("1.0.0")),
        ("author", json!("Ann")),
        ("icon", json!("💥")),
        ("route", json!("/p")),
        ("enabled", json!(true)),
        ("running", json!(true)),
        ("protocol", json!("1.1")),
        ("restarts", json!(0)),
        ("socket_path", json!(daemon.root().join("s/p.sock"))),
    ] {
        assert_eq!(status[key], value, "{key} in {status}");
    }
    for key in [
        "health",
        "pid",
        "state",
        "last_exit",
        "uptime_ms",
        "requests",
        "errors",
        "in_flight",
        "p50_us",
        "p95_us",
        "p99_us",
    ] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
    let before = status["requests"].as_u64().unwrap();
    for _ in 0..10 {
        daemon.get("/api/plugins/p/x");
    }
    daemon.wait_status("p", "ten more requests", |status| status["requests"].as_u64() >= Some(before + 10));
    assert_eq!(daemon.status("old").unwrap()["protocol"], "1.0");
    assert_problem(&daemon.manage("GET", "/api/plugins/nobody", b""), 404);
}

#[test]
fn health_is_public_and_ready_means_every_plugin() {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({"do": "never-ready"})).start();
    assert_eq!(daemon.get("/healthz").status, 200);
    daemon.wait_ready("p");
    assert_eq!(daemon.get("/readyz").status, 503);
    wait_for("q to be known", || daemon.status("q"));
    assert_eq!(daemon.manage("POST", "/api/plugins/q/disable", b"").status, 200);
    wait_for("readyz without q", || (daemon.get("/readyz").status == 200).then_some(()));
}

#[test]
fn a_refused_request_is_a_sign_of_life_too() {
    let daemon = Stage::new().set("http.idle_timeout_ms", 1500).start();
    wait_for("the plugins to be read", || (daemon.get("/readyz").status == 200).then_some(()));
    let mut client = daemon.client();
    let began = Instant::now();
    // Each well within the deadline, all together far beyond it: what is observed is that nothing happens.
    while began.elapsed() < Duration::from_millis(4000) {
        assert_eq!(client.request("GET", "/api/plugins/nobody/x", &[], b"").status, 404);
        thread::sleep(Duration::from_millis(150));
    }
}

#[test]
fn a_client_that_closed_its_side_is_answered_for_a_moment_and_then_taken_for_gone() {
    let daemon = started(Stage::new().set("http.half_close_timeout_ms", 1000));
    let ask = |path: &str| {
        let mut client = daemon.client();
        client.send(&request_bytes("GET", path, &[], b"")).expect("sent");
        client.stream().shutdown(Shutdown::Write).expect("half-closed");
        client
    };
    let mut quick = ask("/api/plugins/p/slow/100");
    assert_eq!(quick.response("GET").expect("answered").status, 200);
    let hanging = ask("/api/plugins/p/never-answer");
    wait_for("the cancel", || daemon.messages("p", "cancel").pop());
    drop(hanging);
    daemon.wait_status("p", "nothing in flight", |status| status["in_flight"] == 0);
}
