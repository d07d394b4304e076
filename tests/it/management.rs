//! Management over TCP: who may ask, from where, how; and what is told of it.

use std::{fs, os::unix::fs::PermissionsExt};

use serde_json::json;
use toru_tests::{Daemon, Response, Stage, wait_for};

use crate::http::assert_problem;

fn daemon() -> Daemon {
    started(Stage::new())
}

fn started(stage: Stage) -> Daemon {
    let daemon = stage.faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

/// Every management request of the TCP listener, by its one good method.
const MANAGEMENT: [(&str, &str); 7] = [
    ("GET", "/api/plugins"),
    ("GET", "/api/plugins/p"),
    ("GET", "/api/plugins/p/logs"),
    ("POST", "/api/plugins/p/kv"),
    ("POST", "/api/plugins/p/enable"),
    ("POST", "/api/plugins/p/disable"),
    ("POST", "/api/plugins/p/restart"),
];

/// A request with these fields and no others; `host` is among them or it is HTTP/1.0.
fn ask(daemon: &Daemon, method: &str, target: &str, fields: &[(&str, &str)]) -> Response {
    let version = if fields.iter().any(|(name, _)| *name == "host") { "1.1" } else { "1.0" };
    let mut request = format!("{method} {target} HTTP/{version}\r\n");
    for (name, value) in fields {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let mut client = daemon.client();
    client.send(request.as_bytes()).unwrap();
    client.response(method).unwrap()
}

#[test]
fn the_token_is_for_its_owner_and_opens_everything() {
    let daemon = daemon();
    let path = daemon.root().join("data/token");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let token = daemon.token();
    assert_eq!(token.len(), 64, "32 random bytes in hexadecimal");
    let other: String = token.chars().rev().collect();
    let longer = format!("{token}0");
    for (method, target) in MANAGEMENT {
        let refused = [
            None,
            Some(format!("Bearer {other}")),
            Some(format!("Bearer {longer}")),
            Some(format!("Bearer {}", &token[1..])),
            Some("Bearer ".to_owned()),
            Some(token.clone()),
            Some(format!("Basic {token}")),
        ];
        for authorization in refused {
            let mut fields = vec![("content-type", "application/json")];
            if let Some(authorization) = &authorization {
                fields.push(("authorization", authorization));
            }
            let answer = daemon.request(method, target, &fields, b"");
            assert_problem(&answer, 401);
            assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"toru\""));
        }
    }
    // A cookie is no token: a browser would send it for any page.
    let cookie = format!("token={token}");
    assert_problem(&daemon.request("GET", "/api/plugins", &[("cookie", &cookie)], b""), 401);
    for bearer in [format!("bearer {token}"), format!("Bearer   {token}")] {
        assert_eq!(daemon.request("GET", "/api/plugins", &[("authorization", &bearer)], b"").status, 200);
    }
    assert_eq!(daemon.restart().token(), token, "it is kept");
}

#[test]
fn every_path_names_its_methods() {
    let daemon = daemon();
    for (method, target) in MANAGEMENT {
        let others = if method == "GET" { ["POST", "DELETE", "OPTIONS"] } else { ["GET", "PUT", "OPTIONS"] };
        for other in others {
            let answer = daemon.manage(other, target, b"");
            assert_problem(&answer, 405);
            let allow = if method == "GET" { "GET, HEAD" } else { "POST" };
            assert_eq!(answer.field("allow"), Some(allow), "{other} {target}");
            assert!(answer.fields.iter().all(|(name, _)| !name.starts_with("access-control-")), "{answer:?}");
        }
        if method == "GET" {
            let head = daemon.manage("HEAD", target, b"");
            assert_eq!(head.status, 200);
        }
    }
    for target in ["/healthz", "/readyz"] {
        assert_eq!(daemon.request("HEAD", target, &[], b"").status, 200);
        let answer = daemon.request("POST", target, &[], b"");
        assert_problem(&answer, 405);
        assert_eq!(answer.field("allow"), Some("GET, HEAD"));
    }
}

#[test]
fn orders_that_plugins_have_words_for_are_under_v1_over_tcp_too() {
    let stage = Stage::new();
    let site = stage.root().join("site");
    fs::create_dir_all(site.join("v1/plugins/p")).unwrap();
    fs::write(site.join("v1/plugins/p/start"), "a file").unwrap();
    let daemon = started(stage.set("server.web_root", json!(site)));
    let state = || daemon.status("p").unwrap()["state"].clone();
    for (word, state_then) in [
        ("stop", "stopped"),
        ("start", "running"),
        ("restart", "running"),
        ("disable", "stopped"),
        ("enable", "running"),
        ("reset-failed", "running"),
    ] {
        let target = format!("/v1/plugins/p/{word}");
        assert_problem(&daemon.request("POST", &target, &[], b""), 401);
        let rebound = [("host", "evil.example")];
        assert_problem(&ask(&daemon, "POST", &target, &rebound), 403);
        let answer = daemon.manage("POST", &target, b"");
        assert_eq!((answer.status, answer.json()), (200, json!({"success": true})), "{word}");
        assert_eq!(state(), state_then, "{word}");
        // Below its id the word is the plugin's, but for the three that are the core's.
        if !["restart", "disable", "enable"].contains(&word) && state_then == "running" {
            assert_eq!(
                daemon.manage("POST", &format!("/api/plugins/p/{word}"), b"").json()["path"],
                format!("/{word}")
            );
        }
        assert_problem(&daemon.manage("POST", &format!("/v1/plugins/nobody/{word}"), b""), 404);
        let put = daemon.manage("PUT", &target, b"");
        assert_problem(&put, 405);
        assert_eq!(put.field("allow"), Some("POST"));
    }
    // What is read there is a file like any other.
    assert_eq!(daemon.get("/v1/plugins/p/start").text(), "a file");
    assert_eq!(daemon.get("/v1/plugins/p/stop").status, 404);
    for target in ["/v1/plugins/p/kv", "/v1/plugins/p/dance"] {
        assert_ne!(daemon.manage("POST", target, b"").status, 200);
    }
}

#[test]
fn content_is_json_or_refused() {
    let daemon = daemon();
    let bearer = format!("Bearer {}", daemon.token());
    let post = |target: &str, kind: &str, body: &[u8]| {
        let fields = [("authorization", bearer.as_str()), ("content-type", kind)];
        daemon.request("POST", target, &fields[..if kind.is_empty() { 1 } else { 2 }], body)
    };
    for kind in ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"] {
        assert_problem(&post("/api/plugins/p/enable", kind, b"{}"), 415);
        // Plugins of 1.0 ask for values as their library does.
        assert_eq!(post("/api/plugins/p/kv", kind, b"{\"action\":\"get\",\"key\":\"k\"}").status, 200);
        assert_problem(&post("/api/plugins/p/kv", kind, b"action=get&key=k"), 400);
    }
    for kind in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(post("/api/plugins/p/kv", kind, b"{\"action\":\"get\",\"key\":\"k\"}").status, 200);
        assert_eq!(post("/api/plugins/p/enable", kind, b"{}").status, 200);
    }
    // `curl -X POST` and `curl -d ''` send none.
    assert_eq!(post("/api/plugins/p/enable", "", b"").status, 200);
    assert_eq!(post("/api/plugins/p/enable", "application/x-www-form-urlencoded", b"").status, 200);
}

#[test]
fn a_rebound_name_manages_nothing() {
    let daemon = daemon();
    let bearer = format!("Bearer {}", daemon.token());
    let address = daemon.address().to_string();
    let own = format!("http://{address}");
    let with = |fields: &[(&str, &str)]| {
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend_from_slice(fields);
        ask(&daemon, "GET", "/api/plugins", &all)
    };
    for host in ["127.0.0.1", &address, "localhost:3000", "[::1]:3000", "192.0.2.1"] {
        assert_eq!(with(&[("host", host)]).status, 200, "{host}");
    }
    assert_eq!(with(&[]).status, 200, "HTTP/1.0 needs no host, and no browser speaks it");
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:3000"] {
        let problem = assert_problem(&with(&[("host", host)]), 403);
        assert!(problem["detail"].as_str().unwrap().contains("server.hosts"), "{problem}");
    }
    // The target's own name counts where it has one.
    let fields = [("authorization", bearer.as_str()), ("host", "evil.example")];
    assert_problem(&ask(&daemon, "GET", "http://evil.example/api/plugins", &fields), 403);
    assert_eq!(with(&[("host", &address), ("origin", &own)]).status, 200);
    for origin in ["http://evil.example", "null", "http://localhost:3000"] {
        let problem = assert_problem(&with(&[("host", &address), ("origin", origin)]), 403);
        assert!(problem["detail"].as_str().unwrap().contains("server.origins"), "{problem}");
    }
    // Refused before the token is looked at, and for everything that needs one.
    for (method, target) in MANAGEMENT {
        assert_problem(&ask(&daemon, method, target, &[("host", "evil.example")]), 403);
    }
    // A proxy passes its own name on to plugins; probes come under any.
    for target in ["/api/plugins/p/x", "/healthz", "/readyz"] {
        assert_eq!(ask(&daemon, "GET", target, &[("host", "panel.example.org")]).status, 200);
    }
    let mut control = daemon.control();
    control.send(b"GET /api/plugins HTTP/1.1\r\nhost: evil.example\r\norigin: null\r\n\r\n").unwrap();
    assert_eq!(control.response("GET").unwrap().status, 200, "the control socket has no name");
}

#[test]
fn the_names_and_pages_that_are_listed_may() {
    let stage = Stage::new()
        .set("server.hosts", "[\"Panel.example.org\"]")
        .set("server.origins", "[\"https://other.example.org\"]");
    let daemon = started(stage);
    let bearer = format!("Bearer {}", daemon.token());
    for (host, origin, status) in [
        ("panel.example.org", "", 200),
        ("PANEL.EXAMPLE.ORG:8443", "", 200),
        ("panel.example.org", "https://panel.example.org", 200),
        ("panel.example.org", "https://other.example.org", 200),
        ("panel.example.org", "https://third.example.org", 403),
        ("127.0.0.1", "", 200),
        ("other.example.org", "", 403),
    ] {
        let fields = [("authorization", bearer.as_str()), ("host", host), ("origin", origin)];
        let fields = &fields[..if origin.is_empty() { 2 } else { 3 }];
        assert_eq!(ask(&daemon, "GET", "/api/plugins", fields).status, status, "{host} {origin}");
    }
    // With a list, plugins and files are under these names too; who may ask plugins across sites is their business.
    assert_problem(&ask(&daemon, "GET", "/api/plugins/p/x", &[("host", "evil.example")]), 403);
    let fields = [("host", "panel.example.org"), ("origin", "https://third.example.org")];
    assert_eq!(ask(&daemon, "GET", "/api/plugins/p/x", &fields).status, 200);
    assert_eq!(ask(&daemon, "GET", "/healthz", &[("host", "evil.example")]).status, 200);
}

#[test]
fn a_refused_request_is_logged_with_the_path_that_its_plugin_would_have_got() {
    let stage = Stage::new().set("supervisor.backoff_ms", "[600000]").set("log.access", "\"all\"");
    let daemon = started(stage);
    assert_eq!(daemon.get("/api/plugins/p/x/../good?q=1").status, 200);
    daemon.get("/api/plugins/p/exit/1");
    daemon.wait_status("p", "in back-off", |status| status["running"] == false);
    let targets =
        ["/api/plugins/p/x/../a%2Fb?q=1&r", "/api/plugins/route/p/b", "/api/plugins/p/bundle.js?v=1"];
    for target in targets {
        wait_for("the worker to know", || (daemon.get(target).status == 503).then_some(()));
    }
    for (path, status) in [("/good?q=1", 200), ("/a%2Fb?q=1&r", 503), ("/b", 503)] {
        wait_for(&format!("the line of {path}"), || {
            let lines = daemon.plugin_log("p");
            lines.iter().any(|line| line["path"] == path && line["status"] == status).then_some(())
        });
    }
}
