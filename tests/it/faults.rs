//! Plugins and clients that break the rules, one test a row of what may go wrong.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::Shutdown,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::{
    net::sockopt::set_socket_linger,
    process::{Pid, Signal, kill_process, test_kill_process},
};
use serde_json::{Value, json};
use toru_tests::{DEADLINE, Daemon, Stage, request_bytes, spawn, wait_for};

use crate::crashes::told_unanswered;
use crate::http::assert_problem;

/// A daemon with a plugin `p` that does what a request's path says, and a short timeout.
fn daemon() -> Daemon {
    let daemon = Stage::new().set("supervisor.max_restarts", 1_000).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

/// The next good answer, once the plugin or its connection is back.
#[track_caller]
fn works_again(daemon: &Daemon) {
    wait_for("a good answer again", || {
        let answer = daemon.get("/api/plugins/p/again");
        match answer.status {
            200 => {
                assert_eq!(answer.json()["path"], "/again");
                Some(())
            }
            502..=504 => None,
            _ => panic!("{answer:?}"),
        }
    });
}

// Row: oversized, zero-length, garbage, bad UTF-8, deeply nested JSON
#[test]
fn a_broken_frame_is_502_at_once_and_closes_that_connection() {
    for deed in [
        "garbage",
        "noise",
        "not-an-object",
        "zero-length",
        "bad-utf8",
        "deep-json",
        "oversize-length",
        "oversize",
    ] {
        // A daemon each: three in a minute would count as a crash.
        let daemon = daemon();
        let start = Instant::now();
        let answer = daemon.get(&format!("/api/plugins/p/{deed}"));
        assert_problem(&answer, 502);
        // Nowhere near the timeout of 30 seconds.
        assert!(start.elapsed() < Duration::from_secs(10), "{deed}");
        let details = daemon.wait_event("p", "protocol_error", 1);
        assert!(details.to_string().len() > 10, "{deed}: {details}");
        works_again(&daemon);
        assert_eq!(daemon.starts("p").len(), 1, "{deed}: the process lives on");
    }
}

// Row: oversized, zero-length, garbage, bad UTF-8, deeply nested JSON
#[test]
fn a_broken_frame_fails_what_is_in_flight_beside_it() {
    let daemon = Stage::new().set("server.workers", 1).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..5).map(|_| scope.spawn(|| daemon.get("/api/plugins/p/never"))).collect();
        wait_for("five in flight", || {
            let count = daemon.get("/api/plugins/p/count");
            // The five, and each asking for the count.
            (daemon.status("p")?["in_flight"].as_u64()? >= 5 && count.status == 200).then_some(())
        });
        let start = Instant::now();
        assert_problem(&daemon.get("/api/plugins/p/garbage"), 502);
        for thread in waiting {
            assert_problem(&thread.join().unwrap(), 502);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    });
    works_again(&daemon);
}

// Row: oversized, zero-length, garbage, bad UTF-8, deeply nested JSON
#[test]
fn three_broken_frames_in_a_minute_count_as_a_crash() {
    let daemon = daemon();
    for _ in 0..3 {
        works_again(&daemon);
        assert_problem(&daemon.get("/api/plugins/p/garbage"), 502);
    }
    daemon.wait_event("p", "crashed", 1);
    wait_for("a second start", || (daemon.starts("p").len() == 2).then_some(()));
    works_again(&daemon);
}

// Row: oversized, zero-length, garbage, bad UTF-8, deeply nested JSON
#[test]
fn an_answer_that_is_torn_breaks_the_protocol_unless_the_plugin_died_of_it() {
    for protocol in ["1.0", "1.1"] {
        let command = json!({"protocol": protocol});
        let daemon = Stage::new().set("supervisor.max_restarts", 1_000).faulty("p", &command).start();
        daemon.wait_ready("p");
        for number in 1..=3 {
            let answer = daemon.get("/api/plugins/p/close-mid-frame");
            assert_problem(&answer, 502);
            let why = answer.json()["detail"].as_str().expect("in words").to_owned();
            assert!(why.contains("closed the connection in its answer"), "{protocol}: {why}");
            let told = daemon.wait_event("p", "protocol_error", number);
            assert_eq!(told["reason"], "closed the connection in the middle of a frame", "{protocol}");
        }
        let crash = daemon.wait_event("p", "crashed", 1);
        assert!(crash["reason"].as_str().is_some_and(|why| why.contains("protocol")), "{protocol}: {crash}");
        works_again(&daemon);
        assert_problem(&daemon.get("/api/plugins/p/exit-mid-frame"), 502);
        assert_eq!(daemon.wait_event("p", "crashed", 2)["exit"], "exit code 9");
        // What would be told of the connection is told before the next start could be.
        daemon.wait_event("p", "ready", 3);
        let broken = daemon.events("p").into_iter().filter(|(kind, _)| kind == "protocol_error");
        assert_eq!(broken.count(), 3, "{protocol}: a death is told as a crash alone");
    }
}

// Row: oversized, zero-length, garbage, bad UTF-8, deeply nested JSON
#[test]
fn nothing_is_allocated_from_an_announced_length() {
    let daemon = Stage::new()
        .set("protocol.message_bytes_max", 16 * 1024 * 1024)
        .set("supervisor.max_restarts", 1_000)
        .set("http.request_timeout_ms", 500)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let before = daemon.memory_kib("VmHWM");
    // 16 MiB less a byte is announced, and three bytes come.
    let answer = daemon.get("/api/plugins/p/prefix-only");
    assert!(matches!(answer.status, 502 | 504), "{answer:?}");
    // The kernel sums its counters up now and then, so a little may seem to have gone.
    let grown = daemon.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < 12 * 1024, "{grown} KiB");
}

/// Answers of `p` that came for nobody, as the daemon counts them.
fn strays(daemon: &Daemon) -> u64 {
    let text = String::from_utf8(daemon.control().get("/metrics").body).expect("metrics are text");
    let line =
        text.lines().find_map(|line| line.strip_prefix("toru_plugin_stray_answers_total{plugin=\"p\"} "));
    line.expect("each plugin has the counter").parse().expect("a count")
}

// Row: dies in the middle of a response
#[test]
fn a_death_is_502_within_50_ms() {
    let daemon = daemon();
    // A busy machine may take longer over any one of them; one that is as quick as it should be shows what it can do.
    let mut took = Vec::new();
    for _ in 0..30 {
        works_again(&daemon);
        let mut client = daemon.client();
        let start = Instant::now();
        assert_problem(&client.get("/api/plugins/p/exit-mid-frame"), 502);
        took.push(start.elapsed());
        if start.elapsed() < Duration::from_millis(50) {
            return;
        }
    }
    panic!("{took:?}");
}

// Row: dies in the middle of a response
#[test]
fn death_in_the_middle_of_an_answer_is_502_at_once() {
    for deed in ["exit-mid-frame", "exit/3", "abort"] {
        let daemon = daemon();
        let start = Instant::now();
        let answer = daemon.get(&format!("/api/plugins/p/{deed}"));
        assert_problem(&answer, 502);
        assert!(start.elapsed() < Duration::from_secs(10), "{deed}");
        daemon.wait_event("p", "crashed", 1);
        works_again(&daemon);
        assert_eq!(daemon.starts("p").len(), 2, "{deed}");
        assert_eq!(daemon.status("p").unwrap()["restarts"], 1);
    }
}

// Row: dies in the middle of a response
#[test]
fn a_crash_fails_every_request_in_flight_and_no_other_plugin() {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({"do": "slow=300"})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    thread::scope(|scope| {
        let failing: Vec<_> = (0..20).map(|_| scope.spawn(|| daemon.get("/api/plugins/p/never"))).collect();
        let good: Vec<_> = (0..20).map(|_| scope.spawn(|| daemon.get("/api/plugins/q/x"))).collect();
        daemon.wait_status("p", "twenty in flight", |status| status["in_flight"].as_u64() >= Some(20));
        kill_process(daemon.plugin_pid("p"), Signal::KILL).unwrap();
        for thread in failing {
            assert_problem(&thread.join().unwrap(), 502);
        }
        for thread in good {
            assert_eq!(thread.join().unwrap().status, 200);
        }
    });
    works_again(&daemon);
}

#[test]
fn crash_on_the_third_request() {
    let daemon = Stage::new().faulty("p", &json!({"do": "crash-on=3"})).start();
    daemon.wait_running("p");
    let mut seen = Vec::new();
    wait_for("two crashes", || {
        let answer = daemon.get("/api/plugins/p/x");
        if answer.status != 503 {
            seen.push(answer.status);
        }
        (seen.len() == 6).then_some(())
    });
    assert_eq!(seen, [200, 200, 502, 200, 200, 502]);
}

// Row: part of a frame, then silence
#[test]
fn half_a_frame_and_then_silence_has_a_deadline() {
    for deed in ["half-frame", "prefix-only", "slow-body", "halves/60/stop"] {
        // The frame is late before its request is: then it is a broken one.
        let daemon = Stage::new().set("protocol.frame_timeout_ms", 300).faulty("p", &json!({})).start();
        daemon.wait_ready("p");
        assert_problem(&daemon.get(&format!("/api/plugins/p/{deed}")), 502);
        let details = daemon.wait_event("p", "protocol_error", 1);
        assert_eq!(details["reason"], "did not finish a frame within 300 ms", "{deed}");
        works_again(&daemon);
        assert_eq!(daemon.starts("p").len(), 1, "{deed}: the process lives on");

        // Both are late at once: either may be seen first. One event for each, since that the core closes the connection
        // then is no second one.
        let daemon = Stage::new()
            .set("server.workers", 1)
            .set("http.request_timeout_ms", 1_000)
            .faulty("p", &json!({}))
            .start();
        daemon.wait_ready("p");
        for number in [1, 2] {
            let answer = daemon.get(&format!("/api/plugins/p/{deed}"));
            assert!(matches!(answer.status, 502 | 504), "{deed}: {answer:?}");
            let details = daemon.wait_event("p", "protocol_error", number);
            let reason = details["reason"].as_str().unwrap();
            assert!(reason.contains("did not finish a frame"), "{deed}, {number}: {details}");
            works_again(&daemon);
        }
    }
}

// Row: part of a frame, then silence
#[test]
fn the_time_for_a_frame_begins_with_each_frame() {
    const FRAME_TIMEOUT: Duration = Duration::from_secs(3);
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("protocol.frame_timeout_ms", FRAME_TIMEOUT.as_millis())
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let connection = daemon.get("/api/plugins/p/connection").body;
    let answer = daemon.get(&format!("/api/plugins/p/halves/{}", (FRAME_TIMEOUT * 2).as_millis()));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(daemon.get("/api/plugins/p/connection").body, connection, "nobody has closed it");
    assert_eq!(faults_told(&daemon, "p"), [""; 0]);
}

// Row: hangs on one request
#[test]
fn no_answer_in_time_is_504_with_a_cancel_and_the_late_answer_goes_nowhere() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 300)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    let answer = client.get("/api/plugins/p/late/900");
    assert_problem(&answer, 504);
    let cancel = wait_for("the cancel", || daemon.messages("p", "cancel").pop());
    assert!(cancel["request_id"].is_string(), "{cancel}");
    assert!(cancel["payload"].is_object(), "{cancel}");
    daemon.wait_event("p", "request_timeout", 1);
    // Each answer is its own while the late one arrives, and well after.
    let end = Instant::now() + Duration::from_millis(1_500);
    while Instant::now() < end {
        let answer = client.get("/api/plugins/p/mine");
        assert_eq!((answer.status, &answer.json()["path"]), (200, &json!("/mine")));
    }
    assert_eq!(daemon.starts("p").len(), 1, "the plugin lives on");
    wait_for("the late answer to be counted", || (strays(&daemon) == 1).then_some(()));
}

// Row: hangs on one request
#[test]
fn the_timeout_of_the_metadata_wins() {
    let daemon = Stage::new().faulty("p", &json!({"metadata": {"timeout_ms": 200}})).start();
    daemon.wait_ready("p");
    let start = Instant::now();
    assert_problem(&daemon.get("/api/plugins/p/never"), 504);
    assert!(start.elapsed() < Duration::from_secs(15));
    assert_eq!(daemon.get("/api/plugins/p/x").json()["timeout_ms"], 200);
}

#[test]
fn a_1_0_plugin_that_does_not_answer_is_504_and_gets_no_cancel() {
    let daemon =
        Stage::new().set("http.request_timeout_ms", 300).faulty("p", &json!({"protocol": "1.0"})).start();
    daemon.wait_ready("p");
    assert_problem(&daemon.get("/api/plugins/p/never"), 504);
    for _ in 0..20 {
        works_again(&daemon);
    }
    let strange: Vec<_> = daemon
        .trace("p")
        .into_iter()
        .filter(|line| line["event"] == "message" && line["message"]["type"] != "lifecycle")
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
}

// Row: goes away in mid request
#[test]
fn a_client_that_goes_away_cancels_its_request() {
    let daemon = daemon();
    let mut client = daemon.client();
    client.send(&request_bytes("GET", "/api/plugins/p/never", &[], b"")).unwrap();
    daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
    // A reset: a closed sending side alone may be a client that still reads.
    set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_for("the cancel", || daemon.messages("p", "cancel").pop());
    daemon.wait_status("p", "none in flight", |status| status["in_flight"] == 0);
    works_again(&daemon);
}

// Row: answers twice
#[test]
fn answers_for_nobody_are_dropped() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 300)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    assert_problem(&client.get("/api/plugins/p/wrong-id"), 504);
    for _ in 0..20 {
        let answer = client.get("/api/plugins/p/answer-twice");
        assert_eq!((answer.status, &answer.json()["path"]), (200, &json!("/answer-twice")));
        let answer = client.get("/api/plugins/p/mine");
        assert_eq!(answer.json()["path"], "/mine");
    }
    let answer = client.get("/api/plugins/p/unknown-type");
    assert_eq!(answer.json()["path"], "/unknown-type", "unknown types are passed over");
    assert_eq!(daemon.starts("p").len(), 1);
    wait_for("each to be counted", || (strays(&daemon) >= 21).then_some(()));
}

#[test]
fn a_second_answer_of_a_1_0_plugin_is_for_nobody_and_counted() {
    let daemon = Stage::new().faulty("p", &json!({"protocol": "1.0"})).start();
    daemon.wait_ready("p");
    let before = strays(&daemon);
    for number in 1..=5 {
        let answer = daemon.get("/api/plugins/p/answer-twice");
        assert_eq!((answer.status, &answer.json()["path"]), (200, &json!("/answer-twice")));
        wait_for("the second answer to be counted", || (strays(&daemon) == before + number).then_some(()));
    }
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    assert_eq!(strays(&daemon), before + 5, "one answer is nobody's stray");
}

// Row: floods with unknown request ids
#[test]
fn a_flood_of_answers_for_nobody_leaves_the_core_alive() {
    let daemon = Stage::new()
        .set("supervisor.max_restarts", 1_000)
        .faulty("p", &json!({}))
        .faulty("q", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    let before = daemon.memory_kib("VmRSS");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut answered = 0;
            while !is_over.load(Relaxed) || answered == 0 {
                assert_eq!(daemon.get("/api/plugins/q/x").status, 200);
                answered += 1;
            }
        });
        // Past a rate the connection is closed. A machine that is busy may not get there, and then answers in the end.
        let closed = (0..5).any(|_| {
            let answer = daemon.get("/api/plugins/p/flood/1000000");
            assert!(matches!(answer.status, 200 | 502 | 504), "{answer:?}");
            let is_closed = answer.status == 502;
            works_again(&daemon);
            is_closed
        });
        is_over.store(true, Relaxed);
        neighbour.join().expect("the neighbour is served meanwhile");
        assert!(closed, "past ten thousand a second it is cut off");
    });
    let told = daemon.wait_event("p", "protocol_error", 1);
    assert!(told["reason"].as_str().unwrap().contains("answers to nobody"), "{told}");
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert!(strays(&daemon) > 0, "they are counted");
    works_again(&daemon);
}

#[test]
fn answers_for_nobody_over_the_supervisors_connection_are_counted_and_a_flood_of_them_ends_it() {
    let daemon = Stage::new().faulty("p", &json!({})).faulty("q", &json!({})).start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    assert_eq!(daemon.get("/api/plugins/p/flood/5000/lifecycle").status, 200);
    wait_for("each to be counted", || (strays(&daemon) == 5_000).then_some(()));
    assert_eq!(faults_told(&daemon, "p"), [""; 0], "as many as that may be late");
    // A machine that is busy may not get to the rate.
    let told = wait_for("the connection to be ended", || {
        let answer = daemon.get("/api/plugins/p/flood/1000000/lifecycle");
        assert!(matches!(answer.status, 200 | 504), "{answer:?}");
        daemon.events("p").into_iter().find(|(kind, _)| kind == "protocol_error").map(|(_, told)| told)
    });
    assert!(told["reason"].as_str().unwrap().contains("answers to nobody"), "{told}");
    wait_for("a message over another connection", || {
        let lines = daemon.trace("p").into_iter();
        let messages = lines.filter(|line| line["message"]["type"] == "lifecycle");
        (messages.map(|line| line["connection"].as_u64()).collect::<BTreeSet<_>>().len() > 1).then_some(())
    });
    assert_eq!(daemon.get("/api/plugins/q/x").status, 200);
    works_again(&daemon);
    assert_eq!(daemon.starts("p").len(), 1, "once is no crash");
}

// Row: header with CR, LF or NUL; status 99, 150, 999
#[test]
fn an_answer_that_is_no_http_is_502_and_nothing_of_it_reaches_the_client() {
    let daemon = daemon();
    let mut client = daemon.client();
    let deeds = [
        "status/99",
        "status/100",
        "status/101",
        "status/150",
        "status/600",
        "status/999",
        "status/-1",
        "status/200.5",
        "status/ok",
        "no-status",
        "bad-header",
        "nul-header",
        "bad-header-name",
    ];
    for deed in deeds {
        let answer = client.get(&format!("/api/plugins/p/{deed}"));
        assert_problem(&answer, 502);
        assert_eq!(answer.field("set-cookie"), None, "{answer:?}");
        assert_eq!(answer.field("x-note"), None, "{answer:?}");
        // The connection of the client is good, and so is the plugin's.
        assert_eq!(client.get("/api/plugins/p/x").status, 200, "{deed}");
    }
    // One at once, and the rest a second later, each kind by its own words.
    for words in ["status is", "a header value", "a header name"] {
        wait_for(&format!("an event about {words}"), || {
            let mut told = daemon.events("p").into_iter().filter(|(kind, _)| kind == "protocol_error");
            told.any(|(_, details)| details.to_string().contains(words)).then_some(())
        });
    }
}

#[test]
fn what_json_allows_and_few_can_hold_costs_one_answer_at_most() {
    for driver in ["auto", "epoll"] {
        let daemon = Stage::new().driver(driver).set("server.workers", 1).faulty("p", &json!({})).start();
        daemon.wait_ready("p");
        let connection = || daemon.get("/api/plugins/p/connection").text().to_owned();
        let before = connection();
        // More than the three broken frames that count as a crash.
        for _ in 0..3 {
            for deed in ["half-pair", "half-pair-in-text"] {
                assert_problem(&daemon.get(&format!("/api/plugins/p/raw-body/{deed}")), 502);
            }
            let answer = daemon.get("/api/plugins/p/raw-body/numbers");
            assert_eq!(answer.text(), r#"{"large":1e400,"long":[12345678901234567890123,0.10]}"#);
            assert_eq!(answer.field("content-type"), Some("application/json"));
        }
        let told = daemon.wait_event("p", "protocol_error", 1).to_string();
        assert!(told.contains("half a surrogate pair"), "{told}");
        assert_eq!(connection(), before, "{driver}: the connection lives on");
        assert_eq!(daemon.starts("p").len(), 1, "{driver}");
    }
}

#[test]
fn a_head_of_an_answer_that_is_large_or_contradicts_itself_is_502_that_says_so() {
    let daemon = daemon();
    for (deed, setting) in [
        ("long-header/200000", "http.answer_head_bytes_max"),
        ("many-headers/5000", "http.answer_fields_max"),
        ("many-headers/257", "http.answer_fields_max"),
        ("two-types", "two content types"),
    ] {
        let errors = || daemon.status("p").unwrap()["errors"].as_u64().unwrap();
        let before = errors();
        let answer = daemon.get(&format!("/api/plugins/p/{deed}"));
        assert_problem(&answer, 502);
        assert!(answer.json()["detail"].as_str().unwrap().contains(setting), "{answer:?}");
        assert!(answer.field("x-long").or(answer.field("x-many")).is_none(), "{answer:?}");
        wait_for("the error to be counted", || (errors() == before + 1).then_some(()));
    }
    let told = daemon.wait_event("p", "protocol_error", 1).to_string();
    assert!(told.contains("http.answer_"), "{told}");
    let answer = daemon.get("/api/plugins/p/long-header/60000");
    assert_eq!(answer.field("x-long").map(str::len), Some(60_000));
    assert_eq!(daemon.get("/api/plugins/p/many-headers/256").fields("x-many").count(), 256);
}

#[test]
fn a_plugin_that_is_not_ready_is_503_with_retry_after() {
    let daemon = Stage::new().faulty("p", &json!({"do": "never-ready"})).faulty("q", &json!({})).start();
    daemon.wait_ready("q");
    let answer = daemon.get("/api/plugins/p/x");
    assert_problem(&answer, 503);
    let seconds = answer.field("retry-after").unwrap_or_default();
    assert!(seconds.parse::<u32>().is_ok(), "{answer:?}");
}

// Row: dies in the middle of a response
#[test]
fn a_plugin_in_back_off_is_503_until_it_is_back() {
    let daemon = Stage::new().set("supervisor.backoff_ms", "[3000]").faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    assert_problem(&daemon.get("/api/plugins/p/exit/1"), 502);
    daemon.wait_event("p", "crashed", 1);
    let answer = daemon.get("/api/plugins/p/x");
    assert_problem(&answer, 503);
    let seconds: u32 = answer.field("retry-after").unwrap_or_default().parse().unwrap();
    assert!((1..=3).contains(&seconds), "{answer:?}");
    works_again(&daemon);
}

#[test]
fn a_back_off_says_when_it_ends() {
    let unix_ms = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let daemon = Stage::new().set("supervisor.backoff_ms", "[3600000]").faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    assert!(daemon.status("p").unwrap()["next_start"].is_null());
    let before = unix_ms();
    assert_problem(&daemon.get("/api/plugins/p/exit/1"), 502);
    let status = daemon.wait_status("p", "crashed", |status| status["state"] == "crashed");
    let next = status["next_start"].as_u64().expect("a time");
    assert!((before + 3_600_000 - 5..=unix_ms() + 3_600_000).contains(&next), "{next} from {before}");
    assert_eq!(daemon.manage("POST", "/api/plugins/p/restart", b"").status, 200);
    assert!(daemon.status("p").unwrap()["next_start"].is_null());
}

#[test]
fn connections_past_the_limit_are_refused_and_those_within_served() {
    let daemon =
        Stage::new().set("server.workers", 1).set("http.connections_max", 10).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let mut within: Vec<_> = wait_for("ten connections that are served", || {
        let mut clients: Vec<_> = (0..10).map(|_| daemon.client()).collect();
        clients
            .iter_mut()
            .all(|client| {
                client
                    .try_request("GET", "/api/plugins/p/x", &[], b"")
                    .is_ok_and(|answer| answer.status == 200)
            })
            .then_some(clients)
    });
    let mut past = daemon.client();
    match past.try_request("GET", "/api/plugins/p/x", &[], b"") {
        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
        Err(error) => panic!("refused without a word: {error}"),
    }
    for client in &mut within {
        assert_eq!(client.get("/api/plugins/p/x").status, 200);
    }
    drop(within.pop());
    wait_for("the free place to be given", || {
        daemon
            .client()
            .try_request("GET", "/api/plugins/p/x", &[], b"")
            .is_ok_and(|answer| answer.status == 200)
            .then_some(())
    });
}

#[test]
fn a_plugin_that_stays_not_ready_is_restarted() {
    for deed in ["never-ready", "never-binds", "exit-before-ready", "fail-init"] {
        let daemon = Stage::new()
            .set("supervisor.ready_timeout_ms", 500)
            .set("supervisor.max_restarts", 1_000)
            .faulty("p", &json!({"do": deed}))
            .faulty("q", &json!({}))
            .start();
        wait_for(&format!("{deed}: a third start"), || (daemon.starts("p").len() >= 3).then_some(()));
        assert_problem(&daemon.get("/api/plugins/p/x"), 503);
        let crashed = daemon.wait_event("p", "crashed", 1).to_string();
        if deed == "fail-init" {
            assert!(crashed.contains("the licence has run out"), "{crashed}");
        }
        if deed == "exit-before-ready" {
            assert!(crashed.contains('3'), "the exit code: {crashed}");
        }
    }
}

// Row: SIGSTOP
#[test]
fn a_stopped_process_times_out_and_is_restarted() {
    let mut daemon = Stage::new()
        // Nobody looks at its health before all requests are out of time.
        .set("supervisor.health_interval_ms", 3_600_000)
        .set("http.request_timeout_ms", 300)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    toru_tests::halt(pid);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_problem(&daemon.get("/api/plugins/p/x"), 504));
        }
    });
    daemon.set("supervisor.health_interval_ms", 50);
    daemon.hang_up();
    let told = daemon.wait_event("p", "unresponsive", 1);
    assert_eq!(told["reason"], "3 pings in a row were not answered");
    let crash = daemon.wait_event("p", "crashed", 1);
    assert_eq!((&crash["exit"], &crash["reason"]), (&json!("killed by SIGKILL"), &told["reason"]));
    wait_for("a second start", || (daemon.starts("p").len() == 2).then_some(()));
    works_again(&daemon);
    assert_ne!(daemon.plugin_pid("p"), pid);
    // Not as if somebody else had killed it.
    let last = daemon.status("p").unwrap()["last_exit"].clone();
    assert_eq!(last, "killed by the core: 3 pings in a row were not answered");
}

// Row: SIGSTOP
#[test]
fn a_stopped_plugin_of_1_0_is_restarted() {
    let daemon = Stage::new().set("supervisor.health_interval_ms", 50).legacy_python("p").start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    toru_tests::halt(pid);
    daemon.wait_event("p", "crashed", 1);
    daemon.wait_status("p", "another process", |status| {
        status["state"] == "running" && status["pid"] != pid.as_raw_nonzero().get()
    });
}

// Row: closes its socket but lives
#[test]
fn a_plugin_of_1_0_that_keeps_a_ping_and_listens_no_more_is_restarted() {
    let metadata = json!({ "id": "p", "name": "P", "version": "1", "icon": "x", "route": "/p" }).to_string();
    for end in ["listener.close()", "os.unlink(path)"] {
        let script = format!(
            "#!/usr/bin/env python3
import os, socket, sys, time
if '--metadata' in sys.argv:
    print({metadata:?})
    sys.exit()
path = os.environ['TORU_PLUGIN_SOCKET']
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
kept = []
while not kept or b'ping' not in kept[-1].recv(65536):
    kept.append(listener.accept()[0])
{end}
time.sleep(1000)
"
        );
        let daemon = Stage::new().set("supervisor.health_interval_ms", 50).script("p", &script).start();
        let crash = daemon.wait_event("p", "crashed", 1);
        assert!(crash["reason"].as_str().unwrap().starts_with("nothing listened"), "{end}: {crash}");
    }
}

// Row: SIGSTOP
#[test]
fn pings_that_nobody_answers_end_in_a_restart() {
    let daemon =
        Stage::new().set("supervisor.health_interval_ms", 50).faulty("p", &json!({"do": "no-pong"})).start();
    daemon.wait_event("p", "unresponsive", 1);
    wait_for("a second start", || (daemon.starts("p").len() >= 2).then_some(()));
}

#[test]
fn an_answer_to_a_ping_counts_however_late_it_comes() {
    let daemon = Stage::new()
        .set("supervisor.health_interval_ms", 50)
        // A busy machine may be late by itself.
        .set("supervisor.unanswered_pings", 20)
        .faulty("p", &json!({"do": "late-pong"}))
        .start();
    daemon.wait_ready("p");
    let is_ping = |message: &Value| message["payload"]["action"] == "ping";
    let pings = || daemon.messages("p", "lifecycle").iter().filter(|message| is_ping(message)).count();
    wait_for("more pings than may go unanswered", || (pings() >= 30).then_some(()));
    let status = daemon.status("p").unwrap();
    assert_eq!((&status["state"], &status["restarts"]), (&json!("running"), &json!(0)), "{status}");
    // On a busy machine it may be two answers behind for a moment.
    daemon.wait_status("p", "healthy", |status| status["health"] == "healthy");
    assert!(!daemon.events("p").iter().any(|(kind, _)| kind == "unresponsive"));
}

#[test]
fn a_plugin_of_1_0_owes_no_pong() {
    let daemon = Stage::new()
        .set("supervisor.health_interval_ms", 50)
        .legacy_rust("rust")
        .legacy_python("python")
        .faulty("p", &json!({"protocol": "1.0"}))
        .start();
    for id in ["rust", "python"] {
        daemon.wait_ready(id);
    }
    wait_for("twenty pings", || {
        let pings = daemon
            .messages("p", "lifecycle")
            .iter()
            .filter(|message| message["payload"]["action"] == "ping")
            .count();
        (pings >= 20).then_some(())
    });
    for id in ["rust", "python", "p"] {
        assert_eq!(daemon.status(id).unwrap()["restarts"], 0, "{id}");
        assert_eq!(daemon.get(&format!("/api/plugins/{id}/x")).status, 200);
    }
}

// Row: closes its socket but lives
#[test]
fn a_socket_that_closes_under_a_living_plugin() {
    let daemon = Stage::new()
        .set("supervisor.health_interval_ms", 100)
        .set("supervisor.max_restarts", 1_000)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let pid = daemon.plugin_pid("p");
    assert_problem(&daemon.get("/api/plugins/p/close-socket"), 502);
    let answer = daemon.get("/api/plugins/p/x");
    assert!(matches!(answer.status, 200 | 502 | 503), "{answer:?}");
    // If it goes on, it is a crash: the supervisor's own connection still stands, or does not.
    wait_for("a second start", || {
        let _ = daemon.get("/api/plugins/p/x");
        (daemon.starts("p").len() == 2).then_some(())
    });
    let crash = daemon.wait_event("p", "crashed", 1);
    assert!(crash["reason"].as_str().unwrap().contains("nothing listened at its socket"), "{crash}");
    works_again(&daemon);
    assert_ne!(daemon.plugin_pid("p"), pid);
}

// Row: closes its socket but lives
#[test]
fn a_closed_connection_is_502_and_then_opened_again() {
    let daemon =
        Stage::new().faulty("p", &json!({})).faulty("old", &json!({"metadata": {"protocol": "1.0"}})).start();
    for id in ["p", "old"] {
        daemon.wait_ready(id);
        // It closes the connection behind a good answer, too, if it is a 1.0 plugin.
        assert_eq!(daemon.get(&format!("/api/plugins/{id}/x")).status, 200);
    }
    works_again(&daemon);
    for round in 1..=3 {
        for id in ["p", "old"] {
            for _ in 0..3 {
                assert_problem(&daemon.get(&format!("/api/plugins/{id}/close-connection")), 502);
            }
        }
        works_again(&daemon);
        for id in ["p", "old"] {
            wait_for("word of each", || (told_unanswered(&daemon, id) == 3 * round).then_some(()));
        }
    }
    for id in ["p", "old"] {
        let told = faults_told(&daemon, id);
        assert!(told.len() < 9 && told.iter().all(|kind| kind == "protocol_error"), "{id}: {told:?}");
        let status = daemon.status(id).unwrap();
        assert_eq!((&status["restarts"], &status["failures"]), (&json!(0), &json!(0)), "{id}");
        assert_eq!(daemon.starts(id).len(), 1);
    }
}

// Row: never reads, or a byte a second
#[test]
fn a_plugin_that_never_reads_fills_no_memory() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("protocol.message_bytes_max", 16 << 20)
        .set("http.request_timeout_ms", 8_000)
        .set("supervisor.max_restarts", 1_000)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let body = vec![b'x'; 500_000];
    let before = daemon.memory_kib("VmRSS");
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = daemon.client().try_request("GET", "/api/plugins/p/stop-reading", &[], b"");
        });
        daemon.wait_status("p", "one in flight", |status| status["in_flight"].as_u64() >= Some(1));
        // Nearly all that may wait for it, in one piece: what is being written waits as much as what comes behind it.
        scope.spawn(|| daemon.request("POST", "/api/plugins/p/mirror", &[], &vec![b'x'; 7_500_000]));
        daemon.wait_status("p", "two in flight", |status| status["in_flight"].as_u64() >= Some(2));
        // More than there is room for, and all of it before the first has waited for too long.
        let threads: Vec<_> = (0..24)
            .map(|_| {
                scope.spawn(|| {
                    let mut statuses = Vec::new();
                    for _ in 0..20 {
                        let answer = daemon.request("POST", "/api/plugins/p/mirror", &[], &body);
                        if answer.status == 503 {
                            let seconds = answer.field("retry-after").unwrap_or_default();
                            assert!(seconds.parse::<u32>().is_ok_and(|wait| wait >= 1), "{answer:?}");
                        }
                        statuses.push(answer.status);
                        if answer.status == 200 {
                            break;
                        }
                    }
                    statuses
                })
            })
            .collect();
        let statuses: Vec<u16> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert!(statuses.iter().all(|status| matches!(status, 200 | 502..=504)), "{statuses:?}");
        assert!(statuses.contains(&503), "the queue is bounded: {statuses:?}");
    });
    let told = daemon.wait_event("p", "protocol_error", 1);
    assert_eq!(told["reason"], "did not read its requests for 8000 ms");
    works_again(&daemon);
    assert_eq!(daemon.starts("p").len(), 1, "another connection is read");
    // Up to 480 bodies of half a megabyte were sent; a queue without bound would hold 240 MB.
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 100 * 1024, "{grown} KiB");
}

// Row: never reads, or a byte a second
#[test]
fn a_connection_that_is_not_read_is_given_up_though_the_kernel_takes_it_all() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 300)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    assert_problem(&daemon.get("/api/plugins/p/stop-reading"), 504);
    // Its pings are answered all the while, on a connection that it reads.
    wait_for("another connection", || {
        let answer = daemon.get("/api/plugins/p/x");
        assert!(matches!(answer.status, 200 | 504), "{answer:?}");
        (answer.status == 200).then_some(())
    });
    // The old one is kept a while for a plugin that is slow.
    let told = daemon.wait_event("p", "protocol_error", 1)["reason"].to_string();
    assert!(told.contains("did not read its requests") && told.contains("in a row"), "{told}");
    assert_eq!(daemon.starts("p").len(), 1);
}

/// Sends a request and resets the connection after a moment, unless it is answered by then: with this status.
fn ask_impatiently(daemon: &Daemon, target: &str) -> Option<u16> {
    let mut client = daemon.client();
    client.send(&request_bytes("GET", target, &[], b"")).unwrap();
    client.stream().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let answer = client.response("GET").ok();
    set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
    answer.map(|answer| answer.status)
}

// Row: never reads, or a byte a second
#[test]
fn a_connection_that_is_not_read_is_given_up_also_where_no_client_waits_for_the_timeout() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 1_000)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    assert_eq!(ask_impatiently(&daemon, "/api/plugins/p/stop-reading"), None);
    wait_for("another connection", || {
        let status = ask_impatiently(&daemon, "/api/plugins/p/x");
        assert!(matches!(status, None | Some(200)), "{status:?}");
        status
    });
    let told = daemon.wait_event("p", "protocol_error", 1)["reason"].to_string();
    assert!(told.contains("did not read its requests"), "{told}");
    assert_eq!(faults_told(&daemon, "p"), ["protocol_error"], "nobody waited for a timeout");
}

// Row: hangs on one request
#[test]
fn a_plugin_that_works_longer_than_a_request_may_take_and_reads_is_not_taken_for_deaf() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 500)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    // More than it reads ahead, so that each is read when the one before is done; and all of it fits into the sockets.
    let body = [b'x'; 10_000];
    let until = Instant::now() + Duration::from_secs(4);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while Instant::now() < until {
                    assert_problem(&daemon.request("POST", "/api/plugins/p/busy/1200", &[], &body), 504);
                }
            });
        }
    });
    let told = faults_told(&daemon, "p");
    assert!(!told.is_empty() && told.iter().all(|kind| kind == "request_timeout"), "{told:?}");
}

// Row: hangs on one request
#[test]
fn a_request_behind_long_work_has_the_time_that_the_plugin_asks_for() {
    let daemon = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 300)
        .faulty("p", &json!({"metadata": {"timeout_ms": 60_000}}))
        .start();
    daemon.wait_ready("p");
    // More than the kernel takes while nothing is read.
    let body = vec![b'x'; 900_000];
    thread::scope(|scope| {
        let first = scope.spawn(|| daemon.get("/api/plugins/p/busy/1500").status);
        daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
        assert_eq!(daemon.request("POST", "/api/plugins/p/bytes/10", &[], &body).status, 200);
        assert_eq!(first.join().unwrap(), 200);
    });
    assert_eq!(faults_told(&daemon, "p"), [""; 0]);
}

// Row: slow reader
#[test]
fn a_slow_reader_is_dropped() {
    let daemon = Stage::new().set("http.write_timeout_ms", 1_000).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let before = daemon.memory_kib("VmRSS");
    let descriptors = daemon.descriptors();
    let slow: Vec<_> = (0..50)
        .map(|_| {
            let mut client = daemon.client();
            let requests = request_bytes("GET", "/api/plugins/p/bytes/1000000", &[], b"").repeat(20);
            client.send(&requests).unwrap();
            client
        })
        .collect();
    // Whoever reads is served meanwhile.
    assert_eq!(daemon.get("/api/plugins/p/bytes/1000000").body.len(), 1_000_000);
    // At most one buffered answer a connection: a fraction of the gigabyte asked for.
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 400 * 1024, "{grown} KiB");
    wait_for("the slow readers to be dropped", || (daemon.descriptors() <= descriptors + 5).then_some(()));
    drop(slow);
}

// Row: stderr without end
#[test]
fn stderr_without_end_never_blocks_the_plugin_and_never_fills_the_disk() {
    let daemon = Stage::new()
        .set("log.rotate_bytes", 1_000_000)
        .set("log.rotate_keep", 2)
        .faulty("p", &json!({"do": "flood-stderr"}))
        .faulty("q", &json!({}))
        .start();
    daemon.wait_ready("p");
    daemon.wait_ready("q");
    let end = Instant::now() + Duration::from_secs(2);
    let mut answered = 0;
    while Instant::now() < end {
        assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
        assert_eq!(daemon.get("/api/plugins/q/x").status, 200);
        answered += 1;
    }
    assert!(answered > 5, "{answered} answers in two seconds");
    let bytes: u64 = fs::read_dir(daemon.root().join("log/plugins"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes < 6_000_000, "{bytes} bytes of log");
    wait_for("the count of dropped lines", || {
        daemon
            .plugin_log("p")
            .iter()
            .chain(&daemon.supervisor_log())
            .any(|line| line.to_string().contains("dropped"))
            .then_some(())
    });
}

// Row: log directory missing, read-only, full
#[test]
fn a_standard_error_that_nobody_reads_holds_up_no_log() {
    let stage = Stage::new().set("supervisor.backoff_ms", "[1]").set("supervisor.max_restarts", 1_000);
    let stage = stage.faulty("p", &json!({"do": "exit-before-ready"}));
    let mut command = stage.serve();
    let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()));
    let unread = child.stderr.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(&unread, 4096).unwrap();
    let log = stage.root().join("log/plugin-supervisor.log");
    let bytes = || fs::metadata(&log).map_or(0, |found| found.len());
    // Several times what the pipe holds.
    wait_for("the log to go on", || (bytes() > 30_000).then_some(()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(fs::read_to_string(&log).unwrap().contains("\"Stopping\""));
    drop(unread);
}

/// Lines of the plugin `p` that its log says were left out.
fn dropped_lines(daemon: &Daemon) -> u64 {
    daemon.plugin_log("p").iter().filter_map(|line| line["dropped"].as_u64()).sum()
}

#[test]
fn lines_that_a_dead_plugin_wrote_too_many_are_counted() {
    let metadata = json!({
        "id": "p", "name": "P", "version": "1", "icon": "x", "route": "/p", "protocol": "1.1",
    });
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = --metadata ]; then echo '{metadata}'; exit; fi\nseq 5000 >&2\nexit 3\n"
    );
    let daemon = Stage::new().set("supervisor.backoff_ms", "[3600000]").script("p", &script).start();
    daemon.wait_event("p", "crashed", 1);
    let told = wait_for("the count of dropped lines", || {
        daemon.plugin_log("p").into_iter().find(|line| line["message"] == "Output lines dropped")
    });
    assert!(told["dropped"].as_u64() > Some(0), "{told}");
    let dropped = dropped_lines(&daemon);
    assert_eq!(daemon.status("p").unwrap()["dropped_log_lines"], dropped);
    let metrics = daemon.control().get("/metrics").text().to_owned();
    let line = format!("toru_plugin_log_lines_dropped_total{{plugin=\"p\"}} {dropped}\n");
    assert!(metrics.contains(&line), "{line} in {metrics}");
}

/// What the faulty plugin `p` and its children are, once all are there: five, two of which carry no environment.
fn family(daemon: &Daemon) -> Vec<Pid> {
    wait_for("the children", || {
        let told = daemon.trace("p").into_iter().rev();
        let hidden: Vec<Pid> = told
            .take_while(|line| line["event"] != "start")
            .filter(|line| line["event"] == "child")
            .filter_map(|line| Pid::from_raw(i32::try_from(line["pid"].as_i64()?).ok()?))
            .collect();
        let mut found = daemon.processes();
        found.retain(|pid| !hidden.contains(pid));
        (found.len() >= 4 && hidden.len() == 2).then(|| [found, hidden].concat())
    })
}

// Row: forks children that outlive it
#[test]
fn children_of_a_plugin_do_not_outlive_it() {
    let mut daemon = Stage::new().faulty("p", &json!({"do": "fork-child"})).start();
    daemon.wait_ready("p");
    let children = family(&daemon);
    assert_eq!(daemon.manage("POST", "/api/plugins/p/disable", b"").status, 200);
    for pid in children {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
    assert!(daemon.processes().is_empty());
    assert_eq!(daemon.terminate().code(), Some(0));
}

// Row: forks children that outlive it
#[test]
fn children_of_a_plugin_that_crashes_go_while_an_older_one_runs() {
    // Whatever descends from `a` could be older than `p`, so their age says nothing here.
    let daemon = Stage::new().faulty("a", &json!({})).start();
    daemon.wait_ready("a");
    toru_tests::stage_faulty(&daemon.plugins(), "p", &json!({"do": "fork-child"}));
    daemon.hang_up();
    daemon.wait_ready("p");
    let a = daemon.plugin_pid("a");
    let mut children = family(&daemon);
    children.retain(|pid| *pid != a);
    kill_process(daemon.plugin_pid("p"), Signal::KILL).expect("it runs");
    daemon.wait_event("p", "crashed", 1);
    for pid in children {
        assert!(test_kill_process(pid).is_err(), "{pid:?} is left");
    }
    assert_eq!(daemon.plugin_pid("a"), a, "it was left alone");
}

// Row: core SIGKILLed
#[test]
fn a_killed_core_takes_its_plugins_with_it() {
    let mut daemon = Stage::new()
        .faulty("p", &json!({}))
        .legacy_python("python")
        .faulty("stubborn", &json!({"do": "ignore-term"}))
        .start();
    for id in ["p", "python", "stubborn"] {
        daemon.wait_ready(id);
    }
    assert!(daemon.processes().len() >= 3);
    daemon.kill();
    toru_tests::wait_counted(Duration::from_secs(2), "the plugins to go", || {
        daemon.processes().is_empty().then_some(())
    });
    let socket = |name: &str| daemon.root().join("s").join(format!("{name}.sock"));
    assert!(socket("p").exists() && socket("stubborn").exists(), "nobody was there to remove them");
    fs::remove_file(daemon.plugins().join("stubborn.binary")).expect("it is there");
    // The next start finds stale sockets and a lock of the dead, and works.
    let daemon = daemon.start_again();
    for id in ["p", "python"] {
        daemon.wait_ready(id);
    }
    daemon.wait_event("p", "ready", 2);
    let life = ["discovered", "started", "ready", "stopped"];
    for (id, expect) in [("p", [&life[..], &life[..3]].concat()), ("stubborn", life.to_vec())] {
        let told = daemon.events(id);
        let kinds: Vec<&str> = told.iter().map(|(kind, _)| kind.as_str()).collect();
        assert_eq!(kinds, expect, "{id}: the trail reads whole, though nobody was there to write its end");
        let why = told[3].1["reason"].as_str().expect("in words");
        assert!(why.contains("the daemon ended without stopping it"), "{why}");
    }
    assert!(!daemon.root().join("s/stubborn.sock").exists(), "no plugin is left that would remove it");
}

/// Whether it runs. One that nobody reaps is a zombie until the init of this machine does.
fn lives(pid: &Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    fs::read_to_string(path).is_ok_and(|line| !line.contains(") Z "))
}

// Row: core SIGKILLed
#[test]
fn what_a_killed_core_left_behind_is_swept_at_the_next_start() {
    let mut daemon = Stage::new().faulty("p", &json!({"do": "fork-child"})).start();
    daemon.wait_ready("p");
    let left = family(&daemon);
    daemon.kill();
    let daemon = daemon.start_again();
    daemon.wait_ready("p");
    // They were killed before the first plugin was started; a process may take a moment to be gone.
    toru_tests::wait_counted(Duration::from_secs(2), "all to be gone", || {
        (!left.iter().any(lives)).then_some(())
    });
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    // Its trail names all whom the log names, also those that say no more of whose they are than the limit they were born
    // with.
    let told = daemon.wait_event("p", "stopped", 1);
    let mut log = daemon.supervisor_log();
    log.retain(|line| line["message"] == "Processes of an earlier run ended");
    let pids = |list: &Value| -> BTreeSet<i64> {
        list.as_array().into_iter().flatten().map(|pid| pid.as_i64().unwrap()).collect()
    };
    assert!(!pids(&log[0]["pids"]).is_empty(), "{log:?}");
    assert_eq!(pids(&told["swept_pids"]), pids(&log[0]["pids"]), "{told}");
}

// Row: no descriptors left
#[test]
fn no_descriptors_left_does_not_end_or_spin_the_core() {
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let daemon = Stage::new()
        // Room for more clients than are asked for below: whoever runs the tests may pass on a descriptor or two.
        .under(["prlimit", "--nofile=72"])
        .set("supervisor.health_interval_ms", 100)
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let mut crowd: Vec<_> = (0..100).filter_map(|_| daemon.try_client().ok()).collect();
    // Some of them were taken and are served; the others wait or were refused.
    let request = request_bytes("GET", "/api/plugins/p/x", &[], b"");
    let mut served = 0;
    for client in &mut crowd {
        client.stream().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        if client.send(&request).is_ok() && client.response("GET").is_ok_and(|answer| answer.status == 200) {
            served += 1;
        }
    }
    assert!(served >= 10, "{served} served");
    let before = cpu_ticks(&daemon);
    let watched = Instant::now();
    // The thing observed is what it does while nothing happens, so there is nothing to wait for.
    thread::sleep(Duration::from_millis(500));
    let used = cpu_ticks(&daemon) - before;
    let whole = watched.elapsed().as_millis() as u64 / 10;
    assert!(used < whole / 2, "{used} of {whole} ticks: it spins");
    drop(crowd);
    wait_for("a new connection to be served", || {
        daemon
            .try_client()
            .ok()?
            .try_request("GET", "/api/plugins/p/x", &[], b"")
            .is_ok_and(|answer| answer.status == 200)
            .then_some(())
    });
    assert_eq!(daemon.starts("p").len(), 1, "health checks kept their descriptors");
}

// Row: no descriptors left
#[test]
fn clients_take_no_descriptors_of_many_plugins() {
    const PLUGINS: usize = 8;
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let mut stage = Stage::new()
        .under(["prlimit", "--nofile=144"])
        .set("server.workers", 1)
        .set("supervisor.backoff_ms", "[50]")
        // A machine with other things to do is no fault of a plugin.
        .set("supervisor.unanswered_pings", 100);
    // They come while the daemon runs, as after a SIGHUP, and the room for clients shrinks.
    for number in 0..PLUGINS / 2 {
        stage = stage.faulty(&format!("p{number}"), &json!({}));
    }
    let daemon = stage.start();
    for number in PLUGINS / 2..PLUGINS {
        toru_tests::stage_faulty(&daemon.plugins(), &format!("p{number}"), &json!({}));
    }
    daemon.hang_up();
    for number in 0..PLUGINS {
        daemon.wait_ready(&format!("p{number}"));
    }
    // Each of them may keep its connection.
    let mut crowd: Vec<_> = (0..160)
        .map(|_| {
            let mut client = daemon.client();
            let _ = client.send(&request_bytes("GET", "/api/plugins/p0/x", &[], b""));
            client
        })
        .collect();
    let (mut served, mut refused) = (vec![], 0);
    for (number, client) in crowd.iter_mut().enumerate() {
        match client.response("GET").map(|answer| answer.status) {
            Ok(200) => served.push(number),
            Ok(503) => refused += 1,
            other => panic!("{other:?} after {} and {refused}", served.len()),
        }
    }
    assert!(served.len() >= 10 && refused > 0, "{} served, {refused} refused", served.len());
    // What they left is enough for an operator, for every plugin, and for one that starts anew.
    assert!(daemon.toru("status", &[]).status.success());
    for number in 1..PLUGINS {
        let first = &mut crowd[served[0]];
        assert_eq!(first.get(&format!("/api/plugins/p{number}/x")).status, 200, "p{number}");
    }
    assert_problem(&crowd[served[0]].get("/api/plugins/p7/exit/5"), 502);
    daemon.wait_event("p7", "ready", 2);
    assert!(daemon.events("p7").iter().all(|(kind, _)| kind != "start_deferred"));
    wait_for("p7 again", || (crowd[served[0]].get("/api/plugins/p7/x").status == 200).then_some(()));
    drop(crowd);
    wait_for("room again", || (daemon.get("/api/plugins/p1/x").status == 200).then_some(()));
}

/// Processor time of the daemon in hundredths of a second.
fn cpu_ticks(daemon: &Daemon) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid().as_raw_nonzero())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

// Row: pipelined flood
#[test]
fn a_pipelined_flood_is_answered_in_order() {
    const REQUESTS: usize = 5_000;
    let daemon = daemon();
    let mut client = daemon.client();
    let writer = client.stream().try_clone().unwrap();
    let before = daemon.memory_kib("VmRSS");
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = toru_tests::Client::new(writer);
            for number in 0..REQUESTS {
                let target = format!("/api/plugins/p/{number}");
                writer.send(&request_bytes("GET", &target, &[], b"")).unwrap();
            }
        });
        for number in 0..REQUESTS {
            let answer = client.response("GET").unwrap();
            assert_eq!(answer.json()["path"], format!("/{number}"));
        }
    });
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
}

#[test]
fn a_pipelined_flood_keeps_no_other_client_waiting() {
    let daemon = Stage::new().set("server.workers", 1).start();
    let flood = daemon.client();
    let writer = flood.stream().try_clone().unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = toru_tests::Client::new(writer);
            let block = request_bytes("GET", "/healthz", &[], b"").repeat(20);
            while !is_over.load(Relaxed) {
                if writer.send(&block).is_err() {
                    break;
                }
            }
            let _ = writer.stream().shutdown(Shutdown::Write);
        });
        scope.spawn(|| std::io::copy(&mut flood.stream(), &mut std::io::sink()));
        let others = scope.spawn(|| {
            for _ in 0..50 {
                assert_eq!(daemon.get("/healthz").status, 200);
            }
        });
        let outcome = others.join();
        is_over.store(true, Relaxed);
        outcome.expect("answers while the flood goes on");
    });
}

#[test]
fn a_flood_of_log_messages_keeps_no_neighbour_waiting() {
    for driver in ["auto", "epoll"] {
        let stage = Stage::new().driver(driver).set("server.workers", 1);
        let daemon = stage.faulty("p", &json!({})).faulty("q", &json!({})).start();
        daemon.wait_ready("p");
        daemon.wait_ready("q");
        assert_eq!(daemon.get("/api/plugins/p/flood-log").status, 200);
        // It ends only when it is told to: whoever has to wait for its end gets no answer.
        let mut neighbour = daemon.client();
        wait_for("a thousand messages", || {
            for _ in 0..50 {
                assert_eq!(neighbour.get("/api/plugins/q/x").status, 200, "{driver}");
                assert_eq!(daemon.get("/api/plugins/q/x").status, 200, "{driver}");
            }
            let flooded: u64 = daemon.get("/api/plugins/p/flooded").text().parse().unwrap();
            (flooded > 1_000).then_some(())
        });
        assert_eq!(daemon.get("/api/plugins/p/calm").status, 200);
        wait_for("the lines that were left out to be told", || {
            // They are with the first line of another second.
            assert_eq!(daemon.get("/api/plugins/p/log").status, 200);
            daemon.plugin_log("p").iter().any(|line| line["dropped"].as_u64() > Some(0)).then_some(())
        });
    }
}

#[test]
fn log_messages_beyond_the_limit_are_counted_also_where_nothing_follows() {
    const SENT: u64 = 3_000;
    for driver in ["auto", "epoll"] {
        let daemon = Stage::new().driver(driver).faulty("p", &json!({})).start();
        daemon.wait_ready("p");
        let asked = Instant::now();
        assert_eq!(daemon.get(&format!("/api/plugins/p/log/{SENT}")).status, 200);
        // A busy machine may need several seconds for them, each with a count of its own: the last has no message behind it.
        wait_for("each message to be logged or counted", || {
            let lines = daemon.plugin_log("p");
            let logged = lines.iter().filter(|line| line["message"] == "said over the socket").count();
            let dropped: u64 = lines.iter().filter_map(|line| line["dropped"].as_u64()).sum();
            (dropped > 0 && logged as u64 + dropped == SENT).then_some(())
        });
        assert!(asked.elapsed() >= Duration::from_secs(1), "{driver}: once the second is over");
        assert_eq!(daemon.status("p").unwrap()["dropped_log_lines"], dropped_lines(&daemon), "{driver}");
    }
}

// Row: any fault of a plugin
#[test]
fn nothing_leaks_over_many_faults() {
    let daemon = Stage::new()
        .set("http.request_timeout_ms", 100)
        .set("supervisor.max_restarts", 1_000)
        .set("supervisor.backoff_ms", "[10]")
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let round = || {
        for deed in ["x", "never", "garbage", "exit/1", "close-connection", "half-frame"] {
            let answer = daemon.get(&format!("/api/plugins/p/{deed}"));
            assert!(matches!(answer.status, 200 | 502..=504), "{deed}: {answer:?}");
        }
        works_again(&daemon);
    };
    round();
    let before = daemon.descriptors();
    for _ in 0..15 {
        round();
    }
    wait_for("the descriptors to be closed", || (daemon.descriptors() <= before + 2).then_some(()));
    let zombies = daemon_children(&daemon).into_iter().filter(|stat| stat.contains(") Z ")).count();
    assert_eq!(zombies, 0);
}

/// `/proc/<pid>/stat` of the daemon's children.
fn daemon_children(daemon: &Daemon) -> Vec<String> {
    let parent = format!(" {} ", daemon.pid().as_raw_nonzero());
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            // After the name: state, then the parent.
            stat.rsplit(')')
                .next()
                .and_then(|rest| rest.get(2..))
                .is_some_and(|rest| rest.starts_with(&parent))
        })
        .collect()
}

#[test]
fn a_client_that_stops_sending_holds_nothing() {
    let daemon = Stage::new().set("http.idle_timeout_ms", 300).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let mut client = daemon.client();
    client.stream().set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(client.get("/api/plugins/p/x").status, 200);
    assert!(client.is_closed(), "an idle connection is closed");
    match client.try_request("GET", "/api/plugins/p/x", &[], b"") {
        Ok(answer) => panic!("{answer:?} on a closed connection"),
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
            ),
            "{error}"
        ),
    }
}

/// Events of a plugin that tell of a fault, of whatever kind.
fn faults_told(daemon: &Daemon, id: &str) -> Vec<String> {
    const FAULTS: [&str; 4] = ["crashed", "protocol_error", "request_timeout", "unresponsive"];
    let kinds = daemon.events(id).into_iter().map(|(kind, _)| kind);
    kinds.filter(|kind| FAULTS.contains(&kind.as_str())).collect()
}

// Row: any fault of a plugin
#[test]
fn each_fault_is_told_once_and_leaves_neighbour_and_core_as_they_were() {
    // What a plugin does once, what its request is answered, and what is told of it.
    const DEEDS: [(&str, u16, &str); 19] = [
        ("exit-mid-frame", 502, "crashed"),
        ("exit/3", 502, "crashed"),
        ("abort", 502, "crashed"),
        ("never", 504, "request_timeout"),
        ("wrong-id", 504, "request_timeout"),
        ("garbage", 502, "protocol_error"),
        ("not-an-object", 502, "protocol_error"),
        ("zero-length", 502, "protocol_error"),
        ("bad-utf8", 502, "protocol_error"),
        ("deep-json", 502, "protocol_error"),
        ("oversize-length", 502, "protocol_error"),
        ("half-frame", 502, "protocol_error"),
        ("close-connection", 502, "protocol_error"),
        ("prefix-only", 502, "protocol_error"),
        ("status/99", 502, "protocol_error"),
        ("status/150", 502, "protocol_error"),
        ("bad-header", 502, "protocol_error"),
        ("nul-header", 502, "protocol_error"),
        ("bad-header-name", 502, "protocol_error"),
    ];
    let mut stage = Stage::new()
        .set("server.workers", 1)
        .set("http.request_timeout_ms", 1_500)
        .set("protocol.frame_timeout_ms", 300)
        // No health check finds what is over.
        .set("supervisor.health_interval_ms", 3_600_000)
        .faulty("neighbour", &json!({}));
    for number in 0..DEEDS.len() {
        stage = stage.faulty(&format!("p{number}"), &json!({}));
    }
    let daemon = stage.start();
    for number in 0..DEEDS.len() {
        daemon.wait_ready(&format!("p{number}"));
    }
    daemon.wait_ready("neighbour");
    // A log is opened with its first line.
    let descriptors = || {
        let logs = daemon.root().join("log");
        daemon.open_files().iter().filter(|file| !file.starts_with(&logs)).count()
    };
    let before = descriptors();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut client = daemon.client();
            while !is_over.load(Relaxed) {
                assert_eq!(client.get("/api/plugins/neighbour/x").status, 200);
            }
        });
        for (number, (deed, status, _)) in DEEDS.iter().enumerate() {
            assert_problem(&daemon.get(&format!("/api/plugins/p{number}/{deed}")), *status);
        }
        is_over.store(true, Relaxed);
        neighbour.join().expect("the neighbour is served meanwhile");
    });
    for (number, (deed, _, kind)) in DEEDS.iter().enumerate() {
        let id = format!("p{number}");
        daemon.wait_event(&id, kind, 1);
        wait_for(&format!("{deed}: a good answer again"), || {
            (daemon.get(&format!("/api/plugins/{id}/x")).status == 200).then_some(())
        });
        assert_eq!(faults_told(&daemon, &id), [*kind], "{deed}");
        let restarts = u64::from(*kind == "crashed");
        assert_eq!(daemon.status(&id).unwrap()["restarts"], restarts, "{deed}");
    }
    assert_eq!(faults_told(&daemon, "neighbour"), [""; 0]);
    wait_for("the descriptors to be closed", || (descriptors() <= before + 2).then_some(()));
}

/// Of two hundred requests to the plugin `neighbour`, one after the other.
fn p99(daemon: &Daemon) -> Duration {
    let mut client = daemon.client();
    let mut took: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            assert_eq!(client.get("/api/plugins/neighbour/x").status, 200);
            start.elapsed()
        })
        .collect();
    took.sort_unstable();
    took[took.len() * 99 / 100]
}

// Row: any fault of a plugin
#[test]
fn faults_that_only_wait_leave_the_others_as_quick() {
    let start = || {
        let mut stage = Stage::new()
            .set("server.workers", 1)
            .set("http.request_timeout_ms", 600_000)
            .set("protocol.frame_timeout_ms", 600_000)
            .set("supervisor.health_interval_ms", 3_600_000)
            .faulty("neighbour", &json!({}));
        for id in ["hangs", "halts", "stops", "deaf"] {
            stage = stage.faulty(id, &json!({}));
        }
        let daemon = stage.start();
        for id in ["neighbour", "hangs", "halts", "stops", "deaf"] {
            daemon.wait_ready(id);
        }
        daemon
    };
    let (quiet, troubled) = (start(), start());
    let stopped = troubled.plugin_pid("stops");
    toru_tests::halt(stopped);
    let mut waiting = Vec::new();
    let mut ask = |target: &str, body: &[u8]| {
        let mut client = troubled.client();
        client.send(&request_bytes("POST", target, &[], body)).unwrap();
        waiting.push(client);
    };
    ask("/api/plugins/halts/half-frame", b"");
    ask("/api/plugins/deaf/stop-reading", b"");
    for _ in 0..20 {
        ask("/api/plugins/hangs/never", b"");
        ask("/api/plugins/stops/x", b"");
        ask("/api/plugins/deaf/x", &[b'x'; 100_000]);
    }
    for id in ["hangs", "stops", "deaf"] {
        troubled.wait_status(id, "twenty in flight", |status| status["in_flight"].as_u64() >= Some(20));
    }
    // In turn, and the best of each: what else this machine does meanwhile is no part of it.
    let (mut without, mut with) = (Duration::MAX, Duration::MAX);
    for _ in 0..50 {
        without = without.min(p99(&quiet));
        with = with.min(p99(&troubled));
        if with <= 2 * without {
            break;
        }
    }
    assert!(with <= 2 * without, "p99 {with:?} with the faults, {without:?} without");
    kill_process(stopped, Signal::CONT).unwrap();
}

// Row: core SIGKILLed
#[test]
fn a_killed_core_leaves_nobody_however_often() {
    let mut daemon = Stage::new()
        .faulty("p", &json!({"do": "fork-child"}))
        .faulty("stubborn", &json!({"do": "ignore-term"}))
        .start();
    // Somebody else's, who carries none of our marks, and stands where a pid may come again.
    let mut stranger = toru_tests::spawn(std::process::Command::new("sleep").arg("1000"));
    for _ in 0..4 {
        for id in ["p", "stubborn"] {
            daemon.wait_ready(id);
        }
        let left = family(&daemon);
        daemon.kill();
        daemon = daemon.start_again();
        daemon.wait_ready("stubborn");
        toru_tests::wait_counted(Duration::from_secs(2), "those of the former run to be gone", || {
            (!left.iter().any(lives)).then_some(())
        });
    }
    assert!(stranger.try_wait().unwrap().is_none(), "nobody touched it");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}
