//! The OpenAPI document against the real daemon: each operation is asked, and each answer must be as it says.

use std::collections::BTreeSet;

use jsonschema::Validator;
use serde_json::{Value, json};
use toru_tests::{Client, Daemon, Response, Stage, wait_for};

struct Document {
    text: Value,
    /// Operations that were asked and answered well.
    asked: BTreeSet<String>,
}

impl Document {
    fn read(daemon: &Daemon) -> Self {
        let answer = daemon.get("/api/openapi.json");
        assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")));
        let text = answer.json();
        assert!(text["openapi"].as_str().unwrap().starts_with("3.1."));
        Self { text, asked: BTreeSet::new() }
    }

    /// Method and operation by the id.
    fn operation(&self, id: &str) -> (String, &Value) {
        for item in self.text["paths"].as_object().unwrap().values() {
            for (method, operation) in item.as_object().unwrap() {
                if operation["operationId"] == id {
                    return (method.to_uppercase(), operation);
                }
            }
        }
        panic!("no operation {id}");
    }

    /// What the document says of an answer with this status; a reference is followed.
    fn response(&self, id: &str, status: u16) -> &Value {
        let responses = &self.operation(id).1["responses"];
        let found = match &responses[status.to_string()] {
            Value::Null => &responses["default"],
            found => found,
        };
        assert!(!found.is_null(), "{id} is not said to answer {status}");
        match found["$ref"].as_str() {
            Some(reference) => self.text.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
            None => found,
        }
    }

    /// A schema as a validator that takes no field which the document does not name.
    fn validator(&self, schema: &Value) -> Validator {
        let mut whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "allOf": [schema],
            "components": self.text["components"],
        });
        forbid_others(&mut whole);
        jsonschema::validator_for(&whole).unwrap_or_else(|error| panic!("{error} in {schema}"))
    }

    #[track_caller]
    fn judge(&mut self, id: &str, answer: &Response) {
        let said = self.response(id, answer.status);
        let content = said["content"].as_object();
        let kind = answer.field("content-type").map(|kind| kind.split(';').next().unwrap_or_default());
        match (content, kind) {
            (None, None) => {}
            (Some(content), Some(kind)) => {
                let schema = content.get(kind).or(content.get("*/*"));
                let schema = schema.unwrap_or_else(|| panic!("{id} is not said to answer {kind}"));
                self.judge_content(id, kind, &schema["schema"], answer.text());
            }
            (content, kind) => panic!("{id} answers {kind:?}, said is {content:?}: {answer:?}"),
        }
        self.asked.insert(id.to_owned());
    }

    #[track_caller]
    fn judge_content(&self, id: &str, kind: &str, schema: &Value, content: &str) {
        if schema.is_null() {
            return;
        }
        let validator = self.validator(schema);
        let values: Vec<Value> = match kind {
            "application/x-ndjson" => {
                content.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
            }
            "text/plain" => vec![json!(content)],
            _ => vec![serde_json::from_str(content).expect("JSON")],
        };
        for value in &values {
            let wrong: Vec<String> = validator
                .iter_errors(value)
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert!(wrong.is_empty(), "{id}: {wrong:#?} in {value:#}");
        }
    }

    /// The first lines of an answer without an end.
    #[track_caller]
    fn judge_stream(&mut self, daemon: &Daemon, id: &str, target: &str, lines: usize) {
        let mut client: Client<_> = daemon.control();
        client.send(format!("GET {target} HTTP/1.1\r\nhost: toru\r\n\r\n").as_bytes()).unwrap();
        assert!(client.line().unwrap().contains(" 200 "));
        while !client.line().unwrap().is_empty() {}
        let mut content = String::new();
        for _ in 0..lines {
            // What frames the chunks stands between.
            let line = loop {
                let line = client.line().unwrap();
                if line.starts_with('{') {
                    break line;
                }
            };
            content.push_str(&line);
            content.push('\n');
        }
        let kind = "application/x-ndjson";
        let schema = self.response(id, 200)["content"][kind]["schema"].clone();
        assert!(!schema.is_null(), "{id} is not said to answer {kind}");
        self.judge_content(id, kind, &schema, &content);
        self.asked.insert(id.to_owned());
    }
}

fn forbid_others(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) && fields.contains_key("type") {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
            fields.values_mut().for_each(forbid_others);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_others),
        _ => {}
    }
}

#[test]
fn every_operation_answers_as_the_document_says() {
    let stage = Stage::new();
    std::fs::create_dir(stage.plugins().join("p")).unwrap();
    std::fs::write(stage.plugins().join("p/bundle.js"), "export {}").unwrap();
    let daemon = stage.faulty("p", &json!({})).faulty("q", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    // Until the plugins folder is read, a worker says 503 of what it does not know.
    wait_for("every worker to know all plugins", || {
        (0..8).all(|_| daemon.get("/api/plugins/nobody/x").status == 404).then_some(())
    });
    let mut document = Document::read(&daemon);
    document.judge("openapi", &daemon.get("/api/openapi.json"));
    assert_eq!(daemon.control().get("/v1/openapi.json").json(), document.text);

    // Over TCP, with the token and without.
    let kv = |body: Value| daemon.manage("POST", "/api/plugins/p/kv", body.to_string().as_bytes());
    for (id, answer) in [
        ("health", daemon.get("/healthz")),
        ("ready", daemon.get("/readyz")),
        ("list-plugins", daemon.manage("GET", "/api/plugins", b"")),
        ("list-plugins", daemon.get("/api/plugins")),
        ("show-plugin", daemon.manage("GET", "/api/plugins/p", b"")),
        ("show-plugin", daemon.manage("GET", "/api/plugins/nobody", b"")),
        ("plugin-logs", daemon.manage("GET", "/api/plugins/p/logs", b"")),
        ("plugin-logs", daemon.manage("GET", "/api/plugins/p/logs?page=0", b"")),
        ("plugin-logs", daemon.manage("GET", "/api/plugins/nobody/logs", b"")),
        ("plugin-kv", kv(json!({"action": "set", "key": "k", "value": "v"}))),
        ("plugin-kv", kv(json!({"action": "get", "key": "k"}))),
        ("plugin-kv", kv(json!({"action": "list"}))),
        ("plugin-kv", kv(json!({"action": "delete", "key": "none"}))),
        ("plugin-kv", kv(json!({"action": "dance"}))),
        ("plugin-kv", kv(json!({"action": "set", "key": "k".repeat(5000), "value": "v"}))),
        ("plugin-kv", daemon.request("POST", "/api/plugins/p/kv", &[], b"{}")),
        ("plugin-bundle", daemon.get("/api/plugins/p/bundle.js")),
        ("plugin-bundle", daemon.get("/api/plugins/nobody/bundle.js")),
        ("disable-plugin", daemon.manage("POST", "/api/plugins/q/disable", b"")),
        ("enable-plugin", daemon.manage("POST", "/api/plugins/q/enable", b"")),
        ("enable-plugin", daemon.manage("POST", "/api/plugins/nobody/enable", b"")),
        ("restart-plugin", daemon.manage("POST", "/api/plugins/q/restart", b"")),
        ("restart-plugin", daemon.request("POST", "/api/plugins/q/restart", &[], b"")),
        // Words that belong to plugins below /api/.
        ("v1-stop-plugin", daemon.manage("POST", "/v1/plugins/q/stop", b"")),
        ("v1-start-plugin", daemon.manage("POST", "/v1/plugins/q/start", b"")),
        ("v1-start-plugin", daemon.request("POST", "/v1/plugins/q/start", &[], b"")),
        ("v1-reset-failed-plugin", daemon.manage("POST", "/v1/plugins/q/reset-failed", b"")),
    ] {
        document.judge(id, &answer);
    }
    for method in ["get", "post", "put", "patch", "delete", "options"] {
        for (by, target) in [("id", "/api/plugins/p/x"), ("route", "/api/plugins/route/p/x")] {
            let answer = daemon.request(&method.to_uppercase(), target, &[], b"");
            document.judge(&format!("{method}-plugin-by-{by}"), &answer);
            let answer = daemon.request(&method.to_uppercase(), &target.replace("p/x", "nobody/x"), &[], b"");
            assert_eq!(answer.status, 404);
            document.judge(&format!("{method}-plugin-by-{by}"), &answer);
        }
    }

    // Through the control socket.
    let asked = |method: &str, target: &str, body: &[u8]| daemon.control().request(method, target, &[], body);
    let ndjson = [("content-type", "application/x-ndjson")];
    let import = |body: &[u8]| daemon.control().request("POST", "/v1/plugins/p/kv", &ndjson, body);
    let values = asked("GET", "/v1/plugins/p/kv", b"");
    assert!(values.text().contains("\"k\""), "{values:?}");
    for (id, answer) in [
        ("socket-openapi", asked("GET", "/v1/openapi.json", b"")),
        ("core-logs", asked("GET", "/v1/logs?page_size=5", b"")),
        ("events", asked("GET", "/v1/events", b"")),
        ("events", asked("GET", "/v1/events?plugin=p&limit=1", b"")),
        ("events", asked("GET", "/v1/events?limit=0", b"")),
        ("events", asked("GET", "/v1/events?plugin=nobody", b"")),
        ("skipped", asked("GET", "/v1/skipped", b"")),
        ("metrics", asked("GET", "/metrics", b"")),
        ("socket-plugin-logs", asked("GET", "/v1/plugins/p/logs", b"")),
        ("socket-plugin-logs", asked("GET", "/v1/plugins/nobody/logs", b"")),
        ("plugin-history", asked("GET", "/v1/plugins/p/history", b"")),
        ("plugin-history", asked("GET", "/v1/plugins/nobody/history", b"")),
        ("import-values", import(&values.body)),
        ("import-values", import(b"no json")),
        ("import-values", asked("POST", "/v1/plugins/p/kv", b"{}")),
        ("export-values", values),
        ("v1-disable-plugin", asked("POST", "/v1/plugins/q/disable", b"")),
        ("v1-start-plugin", asked("POST", "/v1/plugins/q/start", b"")),
        ("v1-enable-plugin", asked("POST", "/v1/plugins/q/enable", b"")),
        ("v1-stop-plugin", asked("POST", "/v1/plugins/q/stop", b"")),
        ("v1-start-plugin", asked("POST", "/v1/plugins/q/start", b"")),
        ("v1-restart-plugin", asked("POST", "/v1/plugins/q/restart", b"")),
        ("v1-reset-failed-plugin", asked("POST", "/v1/plugins/q/reset-failed", b"")),
        ("v1-reset-failed-plugin", asked("POST", "/v1/plugins/nobody/reset-failed", b"")),
    ] {
        document.judge(id, &answer);
    }
    document.judge_stream(&daemon, "stream", "/v1/stream?interval_ms=50&history=*", 5);
    document.judge_stream(&daemon, "events", "/v1/events?follow=1", 3);
    document.judge_stream(&daemon, "core-logs", "/v1/logs?follow=1", 3);
    daemon.get("/api/plugins/p/exit/1");
    document.judge_stream(&daemon, "socket-plugin-logs", "/v1/plugins/p/logs?follow=1", 1);

    // Who may open the control socket needs no token.
    for item in document.text["paths"].as_object().unwrap().values() {
        for operation in item.as_object().unwrap().values().filter(|of| of["operationId"].is_string()) {
            let on_socket = operation["tags"] == json!(["control socket"]);
            assert!(!on_socket || operation["security"] == json!([]), "{operation}");
        }
    }

    let all: BTreeSet<String> = document.text["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter_map(|operation| operation["operationId"].as_str().map(str::to_owned))
        .collect();
    let missed: Vec<_> = all.difference(&document.asked).collect();
    assert!(missed.is_empty(), "never asked: {missed:?}");
}

#[test]
fn the_judge_is_strict() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let document = Document::read(&daemon);
    let validator = document.validator(&json!({"$ref": "#/components/schemas/Plugin"}));
    let good = daemon.status("p").unwrap();
    assert!(validator.is_valid(&good));
    let changed = |key: &str, value: Option<Value>| {
        let mut plugin = good.clone();
        match value {
            Some(value) => plugin[key] = value,
            None => drop(plugin.as_object_mut().unwrap().remove(key)),
        }
        plugin
    };
    for bad in [
        changed("invented", Some(json!(1))),
        changed("restarts", None),
        changed("state", Some(json!("dancing"))),
        changed("pid", Some(json!("7"))),
    ] {
        assert!(!validator.is_valid(&bad), "{bad}");
    }
}
