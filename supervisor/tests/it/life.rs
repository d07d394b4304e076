//! What the supervisor says to a running plugin, and of one that ends.

use serde_json::{Value, json};

use crate::stage::{Stage, folder, put, receive, send};

const WAIT: &str = "trap 'exit 0' TERM\nsleep 1000 & wait\n";

fn action(message: &Value) -> &str {
    message["payload"]["action"].as_str().expect("a lifecycle message")
}

#[test]
fn a_renewed_lifeline_begins_with_a_ping_and_no_second_init() {
    let (dir, mut settings) = folder(&[]);
    put(dir.path(), "p", "1.1", WAIT);
    // No health check comes in between.
    settings.health_interval = crate::stage::PATIENCE;
    let stage = Stage::start(dir, settings);
    let mut first = stage.accept("p");
    assert_eq!(action(&receive(&mut first)), "init");
    send(&mut first, &json!({ "type": "lifecycle", "payload": { "action": "ready" } }));
    stage.event("p", "ready");
    drop(first);
    let mut second = stage.accept_again("p");
    let ping = receive(&mut second);
    assert_eq!(action(&ping), "ping");
    let pong = json!({ "action": "pong", "seq": ping["payload"]["seq"] });
    send(&mut second, &json!({ "type": "lifecycle", "payload": pong }));
    send(
        &mut second,
        &json!({ "type": "kv", "request_id": "k", "payload": { "action": "get", "key": "x" } }),
    );
    assert_eq!(receive(&mut second)["request_id"], "k", "its questions are answered there");
    assert_eq!(stage.status("p").unanswered_pings, 0);
    assert_eq!(stage.status("p").restarts, 0);
}

#[test]
fn a_crash_is_told_with_all_that_is_known() {
    let (dir, mut settings) = folder(&[]);
    let lines: String = (1..=25).map(|line| format!("echo line {line} >&2\n")).collect();
    put(dir.path(), "p", "1.1", &format!("{lines}kill -SEGV $$"));
    settings.policy.restarts_max = 1;
    let stage = Stage::start(dir, settings);
    let crash = stage.event("p", "crashed");
    let (exit, dumped) = (crash["exit"].as_str().expect("an exit"), crash["core_dumped"] == true);
    assert_eq!(exit, if dumped { "killed by SIGSEGV, core dumped" } else { "killed by SIGSEGV" });
    assert_eq!((&crash["signal"], &crash["exit_code"]), (&json!(11), &Value::Null));
    assert_eq!((&crash["in_flight"], &crash["failures"]), (&json!(7), &json!(1)));
    assert!(crash["uptime_ms"].is_u64() && crash["next_start_ms"].as_u64().expect("a time") <= 10, "{crash}");
    let stderr = crash["stderr"].as_array().expect("lines");
    assert_eq!((stderr.len(), &stderr[0], &stderr[19]), (20, &json!("line 6"), &json!("line 25")));
    let last = stage.event("p", "crashed");
    assert_eq!((&last["failures"], &last["next_start_ms"]), (&json!(2), &Value::Null), "nothing follows it");
    stage.event("p", "disabled_after_crashes");
}
