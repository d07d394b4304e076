//! Many at once: every answer its own, none lost, and 1.0 plugins never crowded.

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;
use serde_json::{Value, json};
use toru_tests::{Daemon, Stage, request_bytes, wait_for};

use crate::clients::connections_that_fit;

/// Runs `clients` threads and gives back what they return; a panic in one fails the test.
fn in_parallel<T: Send>(clients: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|client| {
                let work = &work;
                scope.spawn(move || work(client))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn large_requests_at_once_wait_for_room_with_a_plugin_that_reads() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    // Three times what may lie before a plugin.
    let content = vec![b'x'; 1_000_000];
    let statuses = in_parallel(24, |_| daemon.request("POST", "/api/plugins/p/mirror", &[], &content).status);
    assert_eq!(statuses, [200; 24]);
}

#[test]
fn each_answer_is_its_own_when_they_come_out_of_order() {
    let daemon = Stage::new().faulty("p", &json!({"do": "unordered"})).start();
    daemon.wait_ready("p");
    in_parallel(16, |client| {
        let mut connection = daemon.client();
        for round in 0..50 {
            // Ten at once on each connection, so that the order inside one is at stake as well.
            let nonces: Vec<String> =
                (0..10).map(|number| format!("nonce-{client}-{round}-{number}")).collect();
            let bytes: Vec<u8> = nonces
                .iter()
                .flat_map(|nonce| request_bytes("GET", &format!("/api/plugins/p/{nonce}"), &[], b""))
                .collect();
            connection.send(&bytes).unwrap();
            for nonce in &nonces {
                let answer = connection.response("GET").unwrap();
                assert_eq!(answer.status, 200, "{answer:?}");
                assert_eq!(answer.json()["path"], format!("/{nonce}"));
            }
        }
    });
}

// Row: answers mixed up
#[test]
fn a_hundred_thousand_nonces_with_cancels_timeouts_and_crashes_going_on() {
    const CLIENTS: usize = 8;
    const REQUESTS: usize = 100_000;
    const PIPELINED: usize = 50;
    let daemon = Stage::new()
        .set("http.request_timeout_ms", 400)
        .set("supervisor.max_restarts", 10_000)
        .set("supervisor.backoff_ms", "[20]")
        .faulty("p", &json!({}))
        .start();
    daemon.wait_ready("p");
    let finished = AtomicBool::new(false);
    let (right, unanswered) = (AtomicU64::new(0), AtomicU64::new(0));
    let ask = |client: usize| {
        let mut left = REQUESTS / CLIENTS;
        let mut connection = daemon.client();
        while left > 0 {
            let nonces: Vec<String> =
                (0..PIPELINED.min(left)).map(|number| format!("/n-{client}-{left}-{number}")).collect();
            left -= nonces.len();
            let bytes: Vec<u8> = nonces
                .iter()
                .flat_map(|nonce| request_bytes("GET", &format!("/api/plugins/p{nonce}"), &[], b""))
                .collect();
            let sent = connection.send(&bytes);
            for nonce in &nonces {
                // Where the core closes after an error, what was behind it stays unanswered.
                let answer = match sent.is_ok().then(|| connection.response("GET")) {
                    Some(Ok(answer)) => answer,
                    Some(Err(error))
                        if !matches!(
                            error.kind(),
                            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
                        ) =>
                    {
                        panic!("{nonce}: {error}")
                    }
                    _ => {
                        connection = daemon.client();
                        break;
                    }
                };
                match answer.status {
                    200 => {
                        assert_eq!(answer.json()["path"], **nonce);
                        right.fetch_add(1, Ordering::Relaxed);
                    }
                    502..=504 => {
                        unanswered.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => panic!("{nonce}: {answer:?}"),
                }
            }
        }
    };
    let disturb = || {
        let mut turn = 0;
        while !finished.load(Ordering::Relaxed) {
            turn += 1;
            let mut connection = daemon.client();
            match turn % 8 {
                // The client goes away in mid request: a cancel goes out.
                0..=3 => {
                    set_socket_linger(connection.stream(), Some(Duration::ZERO)).unwrap();
                    let request = request_bytes("GET", "/api/plugins/p/late/50", &[], b"");
                    connection.send(&request).unwrap();
                }
                // Later than the timeout: a 504 now, a late answer afterwards.
                4 | 5 => {
                    let answer = connection.get("/api/plugins/p/late/600");
                    // Where this machine stood still for so long, both came due at once.
                    let in_time = answer.status == 200 && answer.json()["path"] == "/late/600";
                    assert!(in_time || matches!(answer.status, 502..=504), "{answer:?}");
                }
                6 => {
                    let answer = connection.get("/api/plugins/p/answer-twice");
                    assert!(matches!(answer.status, 200 | 502..=504), "{answer:?}");
                }
                _ => {
                    let answer = connection.get("/api/plugins/p/exit-mid-frame");
                    assert!(matches!(answer.status, 502..=504), "{answer:?}");
                }
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(disturb);
        in_parallel(CLIENTS, ask);
        finished.store(true, Ordering::Relaxed);
    });
    let right = right.into_inner();
    // While a plugin restarts its requests are refused at once, so most may be; some must not.
    assert!(right > REQUESTS as u64 / 20, "{right} right, {} refused", unanswered.into_inner());
    assert!(daemon.starts("p").len() > 1, "it crashed meanwhile");
}

#[test]
fn two_hundred_clients_at_once_on_each_1_0_plugin() {
    let daemon = Stage::new().legacy_rust("rust").legacy_python("python").start();
    for id in ["rust", "python"] {
        daemon.wait_ready(id);
        let bodies = in_parallel(200, |client| {
            let answer = daemon.get(&format!("/api/plugins/{id}/n?nonce={client}"));
            assert_eq!(answer.status, 200, "{id} {client}: {answer:?}");
            answer.json()["path"].as_str().unwrap().to_owned()
        });
        for (client, path) in bodies.iter().enumerate() {
            assert_eq!(*path, format!("/n?nonce={client}"));
        }
        assert_eq!(daemon.status(id).unwrap()["restarts"], 0);
    }
}

#[test]
fn a_1_0_plugin_never_has_more_than_four_connections() {
    let daemon = Stage::new()
        // The supervisor's own ping is one more connection, and not in question here.
        .set("supervisor.health_interval_ms", 600_000)
        .faulty("old", &json!({"protocol": "1.0", "do": "count-connections"}))
        .start();
    daemon.wait_ready("old");
    daemon.get("/api/plugins/old/start");
    in_parallel(200, |client| {
        for round in 0..5 {
            let answer = daemon.get(&format!("/api/plugins/old/{client}/{round}"));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json()["path"], format!("/{client}/{round}"));
        }
    });
    let most = most_open(&daemon);
    assert!(most <= 4, "{most} open at once");
    assert!(most >= 2, "{most}: the four are used");
}

#[test]
fn the_number_of_1_0_connections_is_a_setting() {
    let daemon = Stage::new()
        .set("supervisor.health_interval_ms", 600_000)
        .set("protocol.legacy_connections", 1)
        .faulty("old", &json!({"protocol": "1.0", "do": "count-connections"}))
        .start();
    daemon.wait_ready("old");
    daemon.get("/api/plugins/old/start");
    in_parallel(50, |client| {
        assert_eq!(daemon.get(&format!("/api/plugins/old/{client}")).status, 200);
    });
    assert_eq!(most_open(&daemon), 1, "{:?}", daemon.trace("old"));
}

fn most_open(daemon: &Daemon) -> u64 {
    daemon.trace("old").iter().filter_map(|line| line["most"].as_u64()).max().unwrap()
}

#[test]
fn a_1_1_plugin_gets_few_connections_for_many_clients() {
    let daemon = Stage::new().faulty("p", &json!({"do": "slow=20"})).start();
    daemon.wait_ready("p");
    in_parallel(100, |_| {
        let mut client = daemon.client();
        for _ in 0..5 {
            assert_eq!(client.get("/api/plugins/p/x").status, 200);
        }
    });
    let opened = daemon.trace("p").iter().filter(|line| line["event"] == "open").count();
    // One a worker and one of the supervisor; the core may try whether the socket answers first.
    assert!((2..=6).contains(&opened), "{opened} connections for two workers");
}

#[test]
fn a_plugin_takes_no_more_than_its_max_in_flight() {
    let daemon = Stage::new().faulty("p", &json!({"metadata": {"max_in_flight": 8}})).start();
    daemon.wait_ready("p");
    in_parallel(40, |_| {
        for _ in 0..5 {
            assert_eq!(daemon.get("/api/plugins/p/held/20").status, 200);
        }
    });
    let most = daemon.trace("p").iter().filter_map(|line| line["most"].as_u64()).max().unwrap();
    assert!((2..=8).contains(&most), "{most} at once, over the connections of two workers");
}

#[test]
fn who_finds_no_place_before_its_time_is_up_is_told_so() {
    let daemon = Stage::new()
        .faulty("p", &json!({"do": "never-answer", "metadata": {"max_in_flight": 8, "timeout_ms": 300}}))
        .start();
    daemon.wait_ready("p");
    let statuses = in_parallel(40, |_| {
        let answer = daemon.get("/api/plugins/p/x");
        if answer.status == 503 {
            let seconds = answer.field("retry-after").unwrap_or_default();
            assert!(seconds.parse::<u32>().is_ok(), "{answer:?}");
        }
        answer.status
    });
    let mut counted: HashMap<u16, usize> = HashMap::new();
    for status in statuses {
        *counted.entry(status).or_default() += 1;
    }
    assert_eq!(counted.keys().copied().collect::<HashSet<_>>(), HashSet::from([503, 504]), "{counted:?}");
}

#[test]
fn a_full_queue_of_a_1_0_plugin_is_503() {
    let daemon = Stage::new()
        .set("http.request_timeout_ms", 2_000)
        .faulty("old", &json!({"protocol": "1.0", "do": "never-answer"}))
        .start();
    daemon.wait_running("old");
    // Far more than any bounded queue holds, over few sockets: pipelined requests do not count as
    // in flight before their turn, so it takes connections.
    let statuses = in_parallel(600, |_| daemon.get("/api/plugins/old/x").status);
    let refused = statuses.iter().filter(|&&status| status == 503).count();
    let late = statuses.iter().filter(|&&status| status == 504).count();
    assert_eq!(refused + late, 600);
    assert!(late >= 4, "{late}");
    assert!(refused >= 1, "the queue is bounded");
}

#[test]
fn one_bad_plugin_does_not_slow_another() {
    let daemon = Arc::new(
        Stage::new()
            .set("http.request_timeout_ms", 300)
            .set("supervisor.max_restarts", 10_000)
            .faulty("good", &json!({}))
            .faulty("bad", &json!({}))
            .start(),
    );
    daemon.wait_ready("good");
    daemon.wait_ready("bad");
    let measure = |requests: usize| {
        let mut client = daemon.client();
        let mut times: Vec<Duration> = (0..requests)
            .map(|_| {
                let start = Instant::now();
                assert_eq!(client.get("/api/plugins/good/x").status, 200);
                start.elapsed()
            })
            .collect();
        times.sort();
        times[requests / 2]
    };
    measure(50);
    let quiet = measure(500);
    let finished = AtomicBool::new(false);
    let disturbed = thread::scope(|scope| {
        scope.spawn(|| {
            for deed in ["never", "late/400", "half-frame", "never", "exit/3"].iter().cycle() {
                if finished.load(Ordering::Relaxed) {
                    break;
                }
                let _ = daemon.client().try_request("GET", &format!("/api/plugins/bad/{deed}"), &[], b"");
            }
        });
        let disturbed = measure(500);
        finished.store(true, Ordering::Relaxed);
        disturbed
    });
    // Two cores shared with everything else that is tested: the median, and room for noise. A good
    // plugin waiting on the bad one would wait for its timeout, hundreds of times longer.
    assert!(
        disturbed < quiet * 20 + Duration::from_millis(20),
        "{quiet:?} when quiet, {disturbed:?} beside a bad plugin"
    );
}

#[test]
fn what_work_took_of_memory_is_given_back_when_it_is_over() {
    let daemon = Stage::new().set("log.summary_interval_s", 1).faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    // What the start took is given back after five seconds, which is not meant here.
    thread::sleep(Duration::from_secs(6));
    for _ in 0..100 {
        assert_eq!(daemon.get("/api/plugins/p/bytes/1000").status, 200);
    }
    // Code that nothing at rest needs.
    for path in ["/metrics", "/api/plugins", "/v1/plugins/p/logs", "/v1/events"] {
        assert_eq!(daemon.control().get(path).status, 200, "{path}");
    }
    let working = daemon.memory_kib("RssFile");
    // How much comes back with the little that a core at rest does is up to the page cache, which may map much around it.
    wait_for("less memory after an interval without requests", || {
        let now = daemon.memory_kib("RssFile");
        (now < working * 9 / 10).then_some(())
    });
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200, "and it lives on");
}

#[test]
fn many_idle_connections_cost_no_request() {
    let daemon = Stage::new().faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    let (wanted, _alone) = connections_that_fit(10_000);
    let before = daemon.memory_kib("VmRSS");
    let idle: Vec<_> = (0..wanted).filter_map(|_| daemon.try_client().ok()).collect();
    assert_eq!(idle.len(), wanted);
    let start = Instant::now();
    let answer = daemon.get("/api/plugins/p/x");
    assert_eq!(answer.status, 200);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 32 * wanted as u64, "{grown} KiB for {wanted} connections");
    drop(idle);
    let seen: Value = answer.json();
    assert_eq!(seen["path"], "/x");
}
