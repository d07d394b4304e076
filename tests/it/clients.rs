//! What clients may do to the core: a test for each row, the rows of malformed framing in `conformance`.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::sockopt::set_socket_linger,
    process::{Resource, Rlimit, getrlimit, kill_process, setrlimit},
};
use serde_json::json;
use toru_tests::{Client, DEADLINE, Daemon, Signal, Stage, request_bytes, wait_for};

fn started(stage: Stage) -> Daemon {
    let daemon = stage.faulty("p", &json!({})).start();
    daemon.wait_ready("p");
    daemon
}

/// How many requests have reached the plugin, this one included.
fn count(daemon: &Daemon) -> u64 {
    daemon.get("/api/plugins/p/count").text().parse().unwrap()
}

/// Sends a byte every `pause` until the core has closed the connection; how long that took, and what came.
fn drip(mut client: Client<TcpStream>, bytes: &[u8], pause: Duration) -> (Duration, String) {
    let start = Instant::now();
    for byte in bytes.iter().cycle() {
        assert!(start.elapsed() < DEADLINE, "never cut");
        // The pause is the fault that is injected.
        thread::sleep(pause);
        if client.send(&[*byte]).is_err() {
            break;
        }
        if client.has_answer() {
            break;
        }
    }
    let took = start.elapsed();
    let text =
        client.rest().map_or_else(|_| String::new(), |rest| String::from_utf8_lossy(&rest).into_owned());
    (took, text)
}

// Row: slow head, slow body
#[test]
fn a_head_that_drips_is_cut_at_its_deadline() {
    let daemon = started(Stage::new().set("http.head_timeout_ms", 1000));
    let before = count(&daemon);
    let mut client = daemon.client();
    client.send(b"GET /api/plugins/p/x HTTP/1.1\r\nhost: a\r\n").unwrap();
    let (took, text) = drip(client, b"x: y\r\n", Duration::from_millis(50));
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408 "), "{text}");
    assert!(took >= Duration::from_millis(500), "cut after {took:?}");
    assert_eq!(count(&daemon), before + 1, "nothing of it was forwarded");

    // The second head of a connection has the same deadline, not what is left of another.
    let mut client = daemon.client();
    assert_eq!(client.get("/api/plugins/p/x").status, 200);
    client.send(b"G").unwrap();
    assert!(client.response("GET").map_or(true, |answer| answer.status == 408));
}

// Row: slow head, slow body
#[test]
fn a_body_that_drips_is_cut_by_its_rate_and_not_by_a_timer_for_each_read() {
    let daemon = started(Stage::new().set("http.body_rate_after_ms", 500));
    let before = count(&daemon);
    for framing in ["content-length: 100000", "transfer-encoding: chunked"] {
        let mut client = daemon.client();
        let head = format!("POST /api/plugins/p/mirror HTTP/1.1\r\nhost: a\r\n{framing}\r\n\r\n");
        client.send(head.as_bytes()).unwrap();
        let (took, text) = drip(client, b"1\r\nx\r\n", Duration::from_millis(40));
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408 "), "{text}");
        assert!(took >= Duration::from_millis(400), "{framing}: cut after {took:?}");
    }
    assert_eq!(count(&daemon), before + 1, "nothing of it was forwarded");

    // Slow, but fast enough.
    let mut client = daemon.client();
    let head = b"POST /api/plugins/p/mirror HTTP/1.1\r\nhost: a\r\ncontent-length: 40000\r\n\r\n";
    client.send(head).unwrap();
    for _ in 0..40 {
        thread::sleep(Duration::from_millis(30));
        client.send(&[b'x'; 1000]).unwrap();
    }
    assert_eq!(client.response("POST").unwrap().body.len(), 40_000);
}

// Row: slow reader
#[test]
fn a_reader_that_is_slow_but_reads_is_served() {
    let daemon = started(Stage::new().set("http.write_timeout_ms", 1500));
    let mut client = daemon.client();
    rustix::net::sockopt::set_socket_recv_buffer_size(client.stream(), 16 * 1024).unwrap();
    client.send(&request_bytes("GET", "/api/plugins/p/bytes/1000000", &[], b"").repeat(8)).unwrap();
    let mut stream = client.stream().try_clone().unwrap();
    let (start, mut total, mut buffer) = (Instant::now(), 0, vec![0; 64 * 1024]);
    // Longer than one deadline in all, and never without a read for as long.
    while total < 8_000_000 {
        thread::sleep(Duration::from_millis(20));
        match stream.read(&mut buffer) {
            Ok(0) => panic!("cut after {total} bytes and {:?}", start.elapsed()),
            Ok(read) => total += read,
            Err(error) => panic!("{error} after {total} bytes"),
        }
    }
    assert!(start.elapsed() > Duration::from_millis(1500), "the test was too quick to show it");
}

/// A client whose kernel takes so much on its behalf.
fn client_with_room(daemon: &Daemon, bytes: usize) -> Client<TcpStream> {
    let client = daemon.client();
    rustix::net::sockopt::set_socket_recv_buffer_size(client.stream(), bytes).unwrap();
    client
}

// Row: slow reader
#[test]
fn a_reader_of_a_few_bytes_a_second_is_reset() {
    let stage = Stage::new().set("http.write_timeout_ms", 500).set("http.idle_timeout_ms", 500);
    let daemon = started(stage.set("http.write_bytes_per_second_min", 100_000));
    // Of one answer the kernel takes all at once, and the connection rests; of many the next cannot be written.
    for count in [1, 20] {
        let mut client = client_with_room(&daemon, 2048);
        client.send(&request_bytes("GET", "/api/plugins/p/bytes/1000000", &[], b"").repeat(count)).unwrap();
        assert!(client.line().unwrap().contains(" 200 "));
        let error = wait_for("the reset", || {
            // What came before it can still be read.
            client.stream().read_exact(&mut [0]).unwrap();
            client.stream().take_error().unwrap()
        });
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{count}");
    }
}

// Row: slow reader
#[test]
fn a_reader_that_is_fast_enough_gets_all_of_what_the_kernel_has_for_it() {
    let stage = Stage::new().set("http.write_timeout_ms", 1500).set("http.idle_timeout_ms", 300);
    let daemon = started(stage);
    // The kernel takes megabytes, and more only once a third of them is gone, which takes longer than the deadline.
    for count in [1, 5] {
        let mut client = client_with_room(&daemon, 64 * 1024);
        client.send(&request_bytes("GET", "/api/plugins/p/bytes/1000000", &[], b"").repeat(count)).unwrap();
        let (mut stream, mut total, mut buffer) = (client.stream(), 0, vec![0; 32 * 1024]);
        while total < count * 1_000_000 {
            thread::sleep(Duration::from_millis(60));
            match stream.read(&mut buffer) {
                Ok(0) => panic!("{count}: cut after {total} bytes"),
                Ok(read) => total += read,
                Err(error) => panic!("{count}: {error} after {total} bytes"),
            }
        }
    }
}

// Row: goes away in mid request
#[test]
fn a_client_whose_machine_is_gone_is_noticed_by_the_kernel() {
    let daemon = started(Stage::new());
    let client = follow_over_tcp(&daemon, "GET", "/api/plugins/p/logs?follow=1&level=error");
    // Local port, remote port, established, and the timer: 02 is neither a retransmission nor a probe of a closed window.
    let (own, remote) = (daemon.address().port(), client.stream().local_addr().unwrap().port());
    wait_for("a timer for its silence", || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|line| {
            line[1].ends_with(&format!(":{own:04X}")) && line[2].ends_with(&format!(":{remote:04X}"))
        });
        line.is_some_and(|line| line[5].starts_with("02:")).then_some(())
    });
}

// Row: goes away in mid request
#[test]
fn a_client_that_resets_frees_its_place_at_once_even_behind_a_flood_of_requests() {
    let daemon = started(Stage::new());
    for flood in [0, 5000] {
        let before = daemon.messages("p", "cancel").len();
        let mut client = daemon.client();
        client.send(&request_bytes("GET", "/api/plugins/p/never", &[], b"")).unwrap();
        // More than the core buffers: it stops reading, and no read tells of the reset.
        client.send(&request_bytes("GET", "/api/plugins/p/x", &[], b"").repeat(flood)).unwrap();
        daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
        if flood > 0 {
            // Full: the kernel takes no more from us because the core takes no more from the kernel.
            client.stream().set_nonblocking(true).unwrap();
            wait_for("the core to stop reading", || {
                let more = request_bytes("GET", "/api/plugins/p/x", &[], b"").repeat(1000);
                client.stream().try_clone().unwrap().write(&more).is_err().then_some(())
            });
        }
        set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_for("the cancel", || (daemon.messages("p", "cancel").len() > before).then_some(()));
        daemon.wait_status("p", "none in flight", |status| status["in_flight"] == 0);
    }
}

/// Within 100 ms, of which nothing but the order can be told on any machine: whoever waits for the place has it long before
/// the request that was given up, or its own, would have come to an end by themselves.
// Row: goes away in mid request
#[test]
fn the_place_of_a_client_that_resets_goes_to_the_next_who_waits() {
    let stage = Stage::new().set("http.request_timeout_ms", 60_000);
    let daemon = stage.faulty("p", &json!({"metadata": {"max_in_flight": 1}})).start();
    daemon.wait_ready("p");
    for flood in [0, 2000] {
        let before = daemon.messages("p", "cancel").len();
        let mut first = daemon.client();
        first.send(&request_bytes("GET", "/api/plugins/p/never", &[], b"")).unwrap();
        first.send(&request_bytes("GET", "/api/plugins/p/x", &[], b"").repeat(flood)).unwrap();
        daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
        let mut second = daemon.client();
        second.send(&request_bytes("GET", "/api/plugins/p/x", &[], b"")).unwrap();
        daemon.wait_status("p", "one in the queue", |status| status["queued"] == 1);
        let start = Instant::now();
        set_socket_linger(first.stream(), Some(Duration::ZERO)).unwrap();
        drop(first);
        assert_eq!(second.response("GET").unwrap().status, 200);
        assert!(start.elapsed() < Duration::from_secs(10), "after {:?}", start.elapsed());
        wait_for("the cancel", || (daemon.messages("p", "cancel").len() > before).then_some(()));
    }
}

/// A client that does not read keeps no place with a plugin that has answered it long ago.
// Row: slow reader
#[test]
fn a_client_that_does_not_read_has_its_next_request_wait_for_it() {
    for driver in ["auto", "epoll"] {
        let stage =
            Stage::new().driver(driver).set("server.workers", 1).set("http.request_timeout_ms", 60_000);
        let daemon = stage.faulty("p", &json!({"metadata": {"max_in_flight": 4}})).start();
        daemon.wait_ready("p");
        let mut deaf: Vec<_> = (0..4)
            .map(|_| {
                let mut client = daemon.client();
                client
                    .send(&request_bytes("GET", "/api/plugins/p/bytes/900000", &[], b"").repeat(30))
                    .unwrap();
                client
            })
            .collect();
        let requests = || daemon.status("p").expect("it runs")["requests"].as_u64();
        wait_for("the kernel to take no more for them", || {
            let before = requests();
            thread::sleep(Duration::from_millis(500));
            (before >= Some(4) && requests() == before).then_some(())
        });
        assert_eq!(daemon.status("p").expect("it runs")["in_flight"], 0);
        for _ in 0..20 {
            assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
        }
        for client in &mut deaf {
            for _ in 0..30 {
                assert_eq!(client.response("GET").unwrap().body.len(), 900_000);
            }
        }
    }
}

// Row: goes away in mid request
#[test]
fn a_client_that_closes_its_side_and_then_resets_frees_its_place_at_once() {
    let daemon = started(Stage::new().set("http.half_close_timeout_ms", 60_000));
    let mut client = daemon.client();
    client.send(&request_bytes("GET", "/api/plugins/p/never", &[], b"")).unwrap();
    daemon.wait_status("p", "one in flight", |status| status["in_flight"] == 1);
    client.stream().shutdown(Shutdown::Write).unwrap();
    thread::sleep(Duration::from_millis(200));
    daemon.wait_status("p", "still in flight", |status| status["in_flight"] == 1);
    let began = Instant::now();
    set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
    drop(client);
    wait_for("the cancel", || (!daemon.messages("p", "cancel").is_empty()).then_some(()));
    daemon.wait_status("p", "none in flight", |status| status["in_flight"] == 0);
    assert!(began.elapsed() < Duration::from_secs(25), "long before its time is up");
}

// Row: no descriptors left
#[test]
fn files_that_are_sent_slowly_leave_plugins_and_operators_their_descriptors() {
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let stage = Stage::new().under(["prlimit", "--nofile=256"]).set("server.workers", 1);
    let root = stage.root().join("www");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(root.join("large.bin"), vec![b'x'; 16 << 20]).unwrap();
    let stage = stage.set("server.web_root", format!("{:?}", root.display().to_string()));
    let daemon = started(stage);
    let pid = daemon.plugin_pid("p");
    let mut clients = Vec::new();
    for _ in 0..200 {
        let Ok(mut client) = daemon.try_client() else { break };
        let _ = client.send(&request_bytes("GET", "/large.bin", &[], b""));
        clients.push(client);
    }
    thread::sleep(Duration::from_secs(1));
    let before = daemon.starts("p").len();
    kill_process(pid, Signal::KILL).unwrap();
    wait_for("the next start", || (daemon.starts("p").len() > before).then_some(()));
    assert_eq!(daemon.control().get("/healthz").status, 200);
    assert!(daemon.supervisor_log().iter().all(|line| !line.to_string().contains("Too many open files")));
    // Some are served, and of the others some were let in and have no room for a file.
    let mut whole = 0;
    let mut refused = 0;
    for client in &mut clients {
        match client.response("GET") {
            Ok(answer) if answer.status == 503 => refused += 1,
            Ok(answer) => whole += usize::from((answer.status, answer.body.len()) == (200, 16 << 20)),
            Err(_) => {}
        }
        if whole > 0 && refused > 0 {
            return;
        }
    }
    panic!("{whole} were served, and {refused} refused");
}

/// Raises this process's limit of open files as far as it may; how many connections fit, for as long as the guard lives.
///
/// One test at a time: all of them run in one process, and two crowds may not fit into it.
pub fn connections_that_fit(wanted: usize) -> (usize, MutexGuard<'static, ()>) {
    static CROWD: Mutex<()> = Mutex::new(());
    let alone = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    // The daemon inherits the limit and keeps a quarter of it, at most 4096, for other things.
    let fit = limit.saturating_sub(4096 + 500).min(wanted);
    if fit < wanted {
        println!("{fit} connections instead of {wanted}: the limit of open files is {limit}");
    }
    (fit, alone)
}

// Row: 10 000 connections
#[test]
fn ten_thousand_connections_are_served_or_told_at_once_that_there_is_no_room() {
    let (count, _alone) = connections_that_fit(10_000);
    let daemon = started(Stage::new());
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    let before = daemon.memory_kib("VmRSS");
    let mut crowd: Vec<_> = (0..count).map(|_| daemon.client()).collect();
    let connected = |expect: u64| {
        wait_for("all to be accepted", || {
            let metrics = daemon.control().get("/metrics");
            let text = metrics.text();
            let open: u64 = text
                .lines()
                .filter(|line| {
                    line.starts_with("toru_worker_connections{") || line.starts_with("toru_connections")
                })
                .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
                .sum();
            (open >= expect).then_some(())
        });
    };
    connected(count as u64);
    wait_for("a new request within a second", || {
        let start = Instant::now();
        (daemon.get("/api/plugins/p/x").status == 200 && start.elapsed() < Duration::from_secs(1))
            .then_some(())
    });
    let mut served = 0;
    for client in crowd.iter_mut().step_by(10) {
        match client.get("/api/plugins/p/x").status {
            200 => served += 1,
            503 => {}
            status => panic!("{status}"),
        }
    }
    assert!(served > 0);
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    // Debug builds have larger futures; the figure of a release build is in ARCHITECTURE.md.
    assert!(grown < count as u64 * 24, "{grown} KiB for {count} connections");
}

// Row: 10 000 connections
#[test]
fn a_crowd_beyond_the_descriptors_is_told_and_holds_up_nobody() {
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let (count, _alone) = connections_that_fit(10_000);
    let stage = Stage::new().set("http.idle_timeout_ms", 600_000);
    let daemon = started(stage.under(["prlimit", "--nofile=1024"]));
    let before = daemon.memory_kib("VmRSS");
    let request = request_bytes("GET", "/api/plugins/p/x", &[], b"");
    // All of them ask at once, and none goes away.
    let mut crowd: Vec<_> = (0..count)
        .map(|_| {
            let mut client = daemon.client();
            // It may be told before its request is out.
            let _ = client.send(&request);
            client
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for client in &mut crowd {
        match client.response("GET").map(|answer| answer.status) {
            Ok(200) => served += 1,
            Ok(503) => refused += 1,
            other => panic!("{other:?} after {served} and {refused}"),
        }
    }
    assert!(served > 0 && (count < 1024 || refused > 0), "{served} served, {refused} refused");
    wait_for("a new request within a second", || {
        let start = Instant::now();
        (daemon.get("/api/plugins/p/x").status == 503 && start.elapsed() < Duration::from_secs(1))
            .then_some(())
    });
    let grown = daemon.memory_kib("VmRSS").saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert_eq!(daemon.control().get("/healthz").status, 200, "an operator still comes in");
    drop(crowd);
    wait_for("room again", || (daemon.get("/api/plugins/p/x").status == 200).then_some(()));
}

#[test]
fn past_the_limit_of_connections_each_is_told_at_once() {
    let daemon = started(Stage::new().set("http.connections_max", 100).set("server.workers", 1));
    let mut within: Vec<_> = (0..100).map(|_| daemon.client()).collect();
    for client in &mut within {
        assert_eq!(client.get("/api/plugins/p/x").status, 200);
    }
    for _ in 0..500 {
        let answer = daemon.get("/api/plugins/p/x");
        crate::http::assert_problem(&answer, 503);
        assert!(answer.field("retry-after").is_some(), "{answer:?}");
    }
    let lines = wait_for("a line about it", || {
        let log = daemon.supervisor_log();
        let lines: Vec<_> =
            log.into_iter().filter(|line| line.to_string().contains("a client was refused")).collect();
        (!lines.is_empty()).then_some(lines)
    });
    assert!(lines.len() < 50, "one line for many: {lines:?}");
    for client in &mut within {
        assert_eq!(client.get("/api/plugins/p/x").status, 200);
    }
    drop(within);
    wait_for("room again", || (daemon.get("/api/plugins/p/x").status == 200).then_some(()));
}

#[test]
fn the_place_of_a_client_that_has_left_is_free_at_once() {
    let daemon = started(Stage::new().set("http.connections_max", 1).set("server.workers", 1));
    // One that comes while the worker is kept from its processor may still be early.
    let refused = || {
        let is_refused = |_: &usize| {
            let mut client = daemon.client();
            let status = client.get("/api/plugins/p/x").status;
            // Closed it might not be: a process that another test is just starting has all descriptors until its exec.
            client.stream().shutdown(Shutdown::Both).unwrap();
            status != 200
        };
        (0..300).filter(is_refused).count()
    };
    let alone = refused();
    assert!(alone < 30, "{alone} of 300, each with nobody else there");
    let mut operators: Vec<_> = (0..10).map(|_| daemon.control()).collect();
    for operator in &mut operators {
        assert_eq!(operator.get("/healthz").status, 200);
    }
    let beside_operators = refused();
    assert!(beside_operators < 30, "{beside_operators} of 300, who take nobody's place");
}

// Row: no descriptors left
#[test]
fn without_descriptors_for_more_clients_each_is_told_at_once() {
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let daemon = started(Stage::new().under(["prlimit", "--nofile=64"]));
    let mut crowd = Vec::new();
    let told = wait_for("a client for whom there is no room", || {
        let mut client = daemon.client();
        let answer = client.get("/api/plugins/p/x");
        crowd.push(client);
        (answer.status != 200).then_some(answer)
    });
    crate::http::assert_problem(&told, 503);
    for _ in 0..50 {
        crate::http::assert_problem(&daemon.get("/api/plugins/p/x"), 503);
    }
    assert_eq!(daemon.control().get("/healthz").status, 200, "an operator still comes in");
    drop(crowd);
    wait_for("room again", || (daemon.get("/api/plugins/p/x").status == 200).then_some(()));
}

#[test]
fn refused_clients_that_keep_their_connections_do_not_silence_the_port() {
    if !toru_tests::has_program("prlimit") {
        println!("skipped: no prlimit here");
        return;
    }
    let daemon = started(Stage::new().under(["prlimit", "--nofile=64"]));
    let start = Instant::now();
    let mut crowd = Vec::new();
    let mut refused = 0;
    // Each holds one of four places while it lingers: at two seconds each, all of them would take minutes.
    while refused < 200 {
        let mut client = daemon.client();
        // It may be told before its request is out.
        let _ = client.send(&request_bytes("GET", "/api/plugins/p/x", &[], b""));
        if client.response("GET").unwrap().status == 503 {
            refused += 1;
        }
        crowd.push(client);
        assert!(start.elapsed() < DEADLINE / 2, "only {refused} were told");
    }
    assert_eq!(daemon.control().get("/healthz").status, 200, "an operator still comes in");
    drop(crowd);
    wait_for("room again", || (daemon.get("/api/plugins/p/x").status == 200).then_some(()));
}

#[test]
fn the_control_socket_takes_so_many_clients_and_tells_the_others() {
    let daemon = started(Stage::new());
    let mut within: Vec<_> = (0..128).map(|_| daemon.control()).collect();
    for client in &mut within {
        assert_eq!(client.get("/healthz").status, 200);
    }
    let before = daemon.descriptors();
    let mut refused: Vec<_> = (0..100)
        .map(|_| {
            let mut client = daemon.control();
            // It may be told and closed before its request is out.
            let _ = client.send(&request_bytes("GET", "/healthz", &[], b""));
            crate::http::assert_problem(&client.response("GET").unwrap(), 503);
            client
        })
        .collect();
    assert!(daemon.descriptors() <= before + 50, "those who were refused keep few descriptors");
    let told = daemon.toru("status", &[]);
    assert_eq!(told.status.code(), Some(69), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stderr).contains("as many connections as it takes"), "{told:?}");
    for client in &mut within {
        assert_eq!(client.get("/healthz").status, 200, "those who were let in are served");
    }
    assert_eq!(daemon.get("/api/plugins/p/x").status, 200);
    refused.clear();
    drop(within);
    wait_for("room again", || {
        let mut client = daemon.control();
        let _ = client.send(&request_bytes("GET", "/healthz", &[], b""));
        client.response("GET").is_ok_and(|answer| answer.status == 200).then_some(())
    });
}

#[test]
fn the_server_as_a_whole_has_options_and_knows_its_methods() {
    let daemon = started(Stage::new());
    for target in ["*", "http://localhost"] {
        let answer = daemon.request("OPTIONS", target, &[], b"");
        assert_eq!(answer.status, 204, "{answer:?}");
        assert!(answer.field("allow").is_some_and(|allow| allow.contains("GET")), "{answer:?}");
        assert_eq!(answer.field("content-length"), None, "a 204 has none");
    }
    for (method, target, status) in [
        ("TRACE", "/healthz", 405),
        ("TRACE", "/api/plugins/p/x", 405),
        ("CONNECT", "example.org:443", 405),
        ("DELETE", "/healthz", 405),
        ("FOOBAR", "/healthz", 501),
        ("get", "/healthz", 501),
        ("QUERY", "/healthz", 405),
        ("FOOBAR", "/nothing", 501),
    ] {
        let answer = daemon.request(method, target, &[], b"");
        crate::http::assert_problem(&answer, status);
        assert_eq!(answer.field("allow").is_some(), status == 405, "{method}: {answer:?}");
    }
}

/// Begins to follow what the core says, and reads its head alone.
fn follow_over_tcp(daemon: &Daemon, method: &str, target: &str) -> Client<TcpStream> {
    let mut client = daemon.client();
    let authorization = format!("Bearer {}", daemon.token());
    client.send(&request_bytes(method, target, &[("authorization", &authorization)], b"")).unwrap();
    assert!(client.line().unwrap().contains(" 200 "), "{target}");
    while !client.line().unwrap().is_empty() {}
    client
}

#[test]
fn a_follower_that_leaves_frees_its_descriptor_also_while_there_is_nothing_to_tell() {
    let daemon = started(Stage::new().set("http.half_close_timeout_ms", 300));
    // The log of a plugin that says nothing, events that nobody causes, a snapshot an hour.
    let quiet = [
        "/v1/events?follow=1&type=unresponsive",
        "/v1/plugins/p/logs?follow=1&level=error",
        "/v1/logs?follow=1&level=error",
        "/v1/stream?interval_ms=3600000",
    ];
    // The first of each opens what stays open.
    for target in quiet {
        drop(crate::control::follow(&daemon, target));
    }
    drop(follow_over_tcp(&daemon, "GET", "/api/plugins/p/logs?follow=1&level=error"));
    wait_for("the first to be let go", || (connections(&daemon) <= 1).then_some(()));
    let before = daemon.descriptors();
    let mut followers = Vec::new();
    let mut remote = Vec::new();
    for _ in 0..8 {
        followers.extend(quiet.map(|target| crate::control::follow(&daemon, target)));
        remote.push(follow_over_tcp(&daemon, "GET", "/api/plugins/p/logs?follow=1&level=error"));
    }
    assert!(daemon.descriptors() >= before + 40);
    // Some have pipelined more than the core buffers, so that their end waits behind what it does not read.
    let flood = request_bytes("GET", "/healthz", &[], b"").repeat(2000);
    for follower in followers.iter_mut().step_by(3) {
        follower.send(&flood).unwrap();
    }
    for follower in remote.iter_mut().step_by(2) {
        follower.send(&flood).unwrap();
    }
    drop((followers, remote));
    wait_for("all to be let go", || (connections(&daemon) <= 1).then_some(()));
    wait_for("their descriptors", || (daemon.descriptors() <= before + 4).then_some(()));
}

/// Of all workers and the control socket, the asking one included.
fn connections(daemon: &Daemon) -> u64 {
    let metrics = daemon.control().get("/metrics");
    let of_workers = metrics
        .text()
        .lines()
        .filter(|line| line.starts_with("toru_worker_connections{") || line.starts_with("toru_connections"));
    of_workers.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn the_head_of_a_stream_is_an_answer_by_itself() {
    let daemon = started(Stage::new());
    for target in ["/v1/events?follow=1", "/v1/plugins/p/logs?follow=1", "/v1/logs?follow=1", "/v1/stream"] {
        let mut control = daemon.control();
        let both =
            [request_bytes("HEAD", target, &[], b""), request_bytes("GET", "/healthz", &[], b"")].concat();
        control.send(&both).unwrap();
        let head = control.response("HEAD").unwrap();
        assert_eq!(
            (head.status, head.field("content-type")),
            (200, Some("application/x-ndjson")),
            "{target}"
        );
        assert_eq!(control.response("GET").unwrap().json(), json!({"status": "ok"}), "{target}");
    }
    let mut client = follow_over_tcp(&daemon, "HEAD", "/api/plugins/p/logs?follow=1");
    assert_eq!(client.get("/healthz").status, 200);
}

#[test]
fn the_content_of_a_refused_request_may_not_drip_either_and_it_has_one_answer() {
    let daemon = started(Stage::new().set("http.body_rate_after_ms", 500));
    let mut client = daemon.client();
    client.send(b"POST /api/plugins/nobody/x HTTP/1.1\r\nhost: a\r\ncontent-length: 30000\r\n\r\n").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 404);
    let (_, text) = drip(client, b"x", Duration::from_millis(40));
    assert_eq!(text, "", "after an answer that is complete");
}

#[test]
fn the_content_of_a_refused_request_may_come_slowly() {
    let daemon = started(Stage::new().set("http.body_rate_after_ms", 300));
    let mut client = daemon.client();
    client.send(b"POST /api/plugins/nobody/x HTTP/1.1\r\nhost: a\r\ncontent-length: 20000\r\n\r\n").unwrap();
    assert_eq!(client.response("POST").unwrap().status, 404);
    for _ in 0..20 {
        thread::sleep(Duration::from_millis(50));
        client.send(&[b'x'; 1000]).unwrap();
    }
    assert_eq!(client.get("/healthz").status, 200, "on the same connection");
}

#[test]
fn how_long_a_content_comes_is_not_the_plugins_time() {
    let daemon = started(Stage::new().set("http.request_timeout_ms", 1000));
    let mut client = daemon.client();
    client.send(b"POST /api/plugins/p/slow/500 HTTP/1.1\r\nhost: a\r\ncontent-length: 3000\r\n\r\n").unwrap();
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(500));
        client.send(&[b'x'; 1000]).unwrap();
    }
    assert_eq!(client.response("POST").unwrap().status, 200);
    assert!(daemon.events("p").iter().all(|(kind, _)| kind != "request_timeout"));
}

#[test]
fn what_came_before_the_stop_is_answered_though_nobody_had_read_it() {
    let mut daemon = started(Stage::new());
    let mut clients: Vec<_> = (0..200).map(|_| daemon.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/healthz").status, 200);
    }
    daemon.signal(Signal::STOP);
    for client in &mut clients {
        // Longer than who has closed the sending side is waited for.
        client.send(&request_bytes("GET", "/api/plugins/p/slow/3000", &[], b"")).unwrap();
    }
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn what_came_just_before_the_idle_timeout_is_answered() {
    let daemon = started(Stage::new().set("http.idle_timeout_ms", 300));
    let mut clients: Vec<_> = (0..20).map(|_| daemon.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/healthz").status, 200);
    }
    daemon.signal(Signal::STOP);
    for client in &mut clients {
        client.send(&request_bytes("GET", "/api/plugins/p/slow/500", &[], b"")).unwrap();
    }
    thread::sleep(Duration::from_millis(600));
    daemon.signal(Signal::CONT);
    for client in &mut clients {
        assert_eq!(client.response("GET").unwrap().status, 200);
    }
}

#[test]
fn who_takes_nothing_of_its_last_answer_is_reset() {
    let stage = Stage::new().set("http.write_timeout_ms", 500);
    let daemon = started(stage.set("http.write_bytes_per_second_min", 100_000));
    let mut client = client_with_room(&daemon, 2048);
    client
        .send(&request_bytes("GET", "/api/plugins/p/bytes/1000000", &[("connection", "close")], b""))
        .unwrap();
    wait_for("the daemon to be done with it", || (connections(&daemon) == 0).then_some(()));
    let outcome = client.rest();
    assert!(outcome.is_err(), "{} bytes, and no reset", outcome.map_or(0, |rest| rest.len()));
}

#[test]
fn a_stop_waits_for_nobody_who_takes_nothing_of_a_last_answer() {
    let mut daemon = started(Stage::new().set("http.write_timeout_ms", 600_000));
    let mut client = client_with_room(&daemon, 2048);
    client
        .send(&request_bytes("GET", "/api/plugins/p/bytes/1000000", &[("connection", "close")], b""))
        .unwrap();
    assert!(client.line().unwrap().contains(" 200 "));
    // By then what it still sends is waited for no more.
    thread::sleep(Duration::from_millis(2500));
    assert_eq!(connections(&daemon), 1);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn who_resets_before_it_has_taken_a_last_answer_is_waited_for_no_more() {
    let daemon = started(
        Stage::new().set("http.write_timeout_ms", 600_000).set("protocol.message_bytes_max", 16 << 20),
    );
    // The kernel has all of the first answer when the client goes; of the second, some is still to be written.
    for bytes in [1_000_000, 8_000_000] {
        let mut client = client_with_room(&daemon, 2048);
        let path = format!("/api/plugins/p/bytes/{bytes}");
        client.send(&request_bytes("GET", &path, &[("connection", "close")], b"")).unwrap();
        assert!(client.line().unwrap().contains(" 200 "));
        set_socket_linger(client.stream(), Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_for("its place to be free", || (connections(&daemon) == 0).then_some(()));
    }
}

#[test]
fn requests_that_the_stop_takes_along_blame_no_plugin() {
    let mut daemon =
        started(Stage::new().set("supervisor.stop_grace_ms", 300).set("supervisor.term_grace_ms", 300));
    let mut client = daemon.client();
    client.send(&request_bytes("GET", "/api/plugins/p/never", &[], b"")).unwrap();
    wait_for("the request to be there", || (daemon.status("p")?["in_flight"] == 1).then_some(()));
    daemon.signal(Signal::TERM);
    crate::http::assert_problem(&client.response("GET").unwrap(), 503);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn a_client_that_sends_all_before_it_reads_is_told_that_it_was_too_much() {
    let daemon = started(Stage::new().set("http.body_bytes_max", 1_000_000));
    let content = vec![b'x'; 20_000_000];
    for round in 0..5 {
        let mut client = daemon.client();
        client.send(&request_bytes("POST", "/api/plugins/p/mirror", &[], &content)).unwrap();
        let answer = client.response("POST").unwrap_or_else(|error| panic!("round {round}: {error}"));
        crate::http::assert_problem(&answer, 413);
    }
}
