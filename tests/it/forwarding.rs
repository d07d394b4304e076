//! What a plugin learns of its client, and what of either never crosses the core.

use serde_json::{Value, json};
use toru_tests::{Daemon, Stage, request_bytes, wait_for};

fn started(stage: Stage) -> Daemon {
    let daemon = stage.faulty("p", &json!({})).legacy_python("old").start();
    daemon.wait_ready("p");
    daemon.wait_ready("old");
    daemon
}

/// The fields that the plugin got of a request with these.
#[track_caller]
fn headers(daemon: &Daemon, id: &str, fields: &[(&str, &str)]) -> Value {
    let answer = daemon.request("GET", &format!("/api/plugins/{id}/x"), fields, b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["headers"].clone()
}

const SAID: &[(&str, &str)] = &[
    ("Forwarded", "for=192.0.2.1;proto=https"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "elsewhere.test"),
    ("X-Forwarded-Port", "443"),
    ("X_Forwarded_For", "192.0.2.2"),
    ("X-Real-IP", "192.0.2.1"),
];

#[test]
fn a_plugin_learns_whom_it_serves_and_a_client_cannot_make_it_up() {
    let daemon = started(Stage::new());
    for id in ["p", "old"] {
        for fields in [&[][..], SAID] {
            let headers = headers(&daemon, id, fields);
            assert_eq!(headers["forwarded"], "for=127.0.0.1;host=\"localhost\";proto=http", "{id}");
            assert_eq!(headers["x-forwarded-for"], "127.0.0.1", "{id}");
            assert_eq!(headers["x-forwarded-proto"], "http", "{id}");
            assert_eq!(headers["x-forwarded-host"], "localhost", "{id}");
            for name in ["x-forwarded-port", "x_forwarded_for", "x-real-ip"] {
                assert_eq!(headers[name], Value::Null, "{id}: {name}");
            }
        }
    }
}

#[test]
fn a_proxy_in_the_configuration_is_believed() {
    let daemon = started(Stage::new().set("http.trusted_proxies", "[\"192.0.2.0/24\", \"127.0.0.1\"]"));
    let headers = headers(&daemon, "p", SAID);
    let forwarded = "for=192.0.2.1;proto=https, for=127.0.0.1;host=\"localhost\";proto=http";
    assert_eq!(headers["forwarded"], forwarded);
    assert_eq!(headers["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "elsewhere.test");
}

#[test]
fn the_control_socket_is_no_proxy() {
    let daemon = started(Stage::new().set("http.trusted_proxies", "[\"0.0.0.0/0\", \"::/0\"]"));
    let answer = daemon.control().request("GET", "/api/plugins/p/x", SAID, b"");
    let headers = answer.json()["headers"].clone();
    assert_eq!(headers["x-forwarded-for"], "unknown", "{headers}");
    assert_eq!(headers["forwarded"], "for=unknown;host=\"localhost\";proto=http");
}

#[test]
fn trace_context_passes_when_it_is_valid() {
    let daemon = started(Stage::new());
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for id in ["p", "old"] {
        let passed = headers(&daemon, id, &[("traceparent", parent), ("tracestate", "a=1,b=2")]);
        assert_eq!(passed["traceparent"], parent);
        assert_eq!(passed["tracestate"], "a=1,b=2");
        let passed = headers(&daemon, id, &[("traceparent", "00-0-0-01"), ("tracestate", "a=1")]);
        assert_eq!((&passed["traceparent"], &passed["tracestate"]), (&Value::Null, &Value::Null));
    }
}

#[test]
fn one_request_id_in_the_request_the_answer_and_the_log() {
    let daemon = started(Stage::new().set("log.access", "\"all\""));
    let target = "/api/plugins/p/x";
    let answer = daemon.request("GET", target, &[("X-Request-ID", "01977c44-6a2f")], b"");
    assert_eq!(answer.field("x-request-id"), Some("01977c44-6a2f"));
    assert_eq!(answer.json()["headers"]["x-request-id"], "01977c44-6a2f");
    let mut made = Vec::new();
    for theirs in ["", "a b", "a\"b", "<a>", &"a".repeat(129)] {
        let answer = daemon.request("GET", target, &[("x-request-id", theirs)], b"");
        let id = answer.field("x-request-id").unwrap_or_default().to_owned();
        assert!(!id.is_empty() && id != theirs, "{answer:?}");
        assert_eq!(answer.json()["headers"]["x-request-id"], id);
        made.push(id);
    }
    made.push("01977c44-6a2f".to_owned());
    for id in made {
        wait_for(&format!("the access line of {id}"), || {
            daemon.plugin_log("p").into_iter().find(|line| line["request_id"] == id)
        });
    }
}

// Row: sends content-length, transfer-encoding, connection and other hop-by-hop fields
#[test]
fn what_an_answer_says_about_its_connection_stops_here() {
    let daemon = started(Stage::new());
    let mut client = daemon.client();
    let answer = client.get("/api/plugins/p/names-hop-by-hop");
    assert_eq!(answer.status, 200, "{answer:?}");
    for name in ["x-private", "x-other"] {
        assert_eq!(answer.field(name), None, "its `connection` names it: {answer:?}");
    }
    assert_eq!(answer.field("connection"), None, "{answer:?}");
    assert_eq!(answer.field("x-kept"), Some("yes"));
    for name in ["date", "server"] {
        assert_eq!(answer.fields(name).count(), 1, "{name} in {answer:?}");
    }
    assert_eq!(client.get("/api/plugins/p/x").status, 200);
}

// Row: sends content-length, transfer-encoding, connection and other hop-by-hop fields
#[test]
fn a_length_that_the_plugin_claims_means_nothing() {
    let daemon = started(Stage::new());
    let mut client = daemon.client();
    for deed in ["claims-length/3", "claims-length/100000", "claims-length/nonsense"] {
        let answer = client.get(&format!("/api/plugins/p/{deed}"));
        assert_eq!(answer.text(), "seventeen bytes..", "{deed}");
        assert_eq!(answer.fields("content-length").collect::<Vec<_>>(), ["17"]);
        let head = client.request("HEAD", &format!("/api/plugins/p/{deed}"), &[], b"");
        assert!(head.fields("content-length").all(|length| length == "17"), "{head:?}");
    }
    client.send(&request_bytes("GET", "/api/plugins/p/next", &[], b"")).unwrap();
    assert_eq!(client.response("GET").unwrap().json()["path"], "/next");
}

// Row: header with CR, LF or NUL; status 99, 150, 999
#[test]
fn controls_in_an_answer_are_502() {
    let daemon = started(Stage::new());
    let mut client = daemon.client();
    for code in [0, 1, 8, 10, 11, 13, 27, 127] {
        let answer = client.get(&format!("/api/plugins/p/control-header/{code}"));
        crate::http::assert_problem(&answer, 502);
        assert_eq!(answer.field("x-note"), None, "{code}: {answer:?}");
        assert_eq!(client.get("/api/plugins/p/x").status, 200, "{code}");
    }
    // A tab is no control here, and text beyond ASCII is passed on as it is.
    assert_eq!(client.get("/api/plugins/p/control-header/9").field("x-note"), Some("a\tb"));
    assert_eq!(client.get("/api/plugins/p/control-header/233").field("x-note"), Some("a\u{e9}b"));
}
