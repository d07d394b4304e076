//! Messages that a plugin on the Rust SDK answers in a second on one core.
//!
//! `cargo bench -p toru-benches --bench sdk`; `cargo test` runs it for a moment.
//! This binary is the plugin, too, started as a process of its own and bound to the last core; requests come over one
//! connection from the first, as a worker of the core sends them: each after the last answer, or 64 at once.
//! CPU is the plugin's user and system time, from /proc. Each case is measured in turn with a plugin that reads as the SDK
//! does by default, and with one that reads through io_uring (`Options::io_uring`).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use toru_plugin_api::frame::{Decoder, FRAME_BYTES_MAX_DEFAULT, Framing};
use toru_plugin_api::from_core::{HttpRequestFrame, RequestStart};
use toru_plugin_api::metadata::Protocol;
use toru_plugin_api::{
    HttpRequest, HttpResponse, Options, PluginContext, PluginMetadata, PluginResult, ToruPlugin, async_trait,
    run_with,
};

const PATIENCE: Duration = Duration::from_secs(20);

const EPOLL: &str = "epoll";
const IO_URING: &str = "io_uring";

struct Bench;

#[async_trait]
impl ToruPlugin for Bench {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new("bench", "Bench", "1.0.0")
    }

    async fn handle_http(&self, request: HttpRequest, _ctx: &PluginContext) -> PluginResult<HttpResponse> {
        match request.path.as_str() {
            "/wait" => tokio::task::yield_now().await,
            "/echo" => return Ok(HttpResponse::bytes("application/octet-stream", request.body)),
            _ => {}
        }
        Ok(HttpResponse::bytes("application/json", br#"{"message":"hello","ok":true}"#))
    }
}

struct Plugin {
    child: Child,
    stream: UnixStream,
    _folder: tempfile::TempDir,
}

impl Plugin {
    fn start(reads: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("bench.sock");
        let binary = std::env::current_exe().expect("this binary");
        let child = Command::new(binary)
            .env("TORU_PLUGIN_SOCKET", &socket)
            .env("TORU_BENCH_IS_PLUGIN", reads)
            .spawn()
            .expect("the plugin starts");
        let began = Instant::now();
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            std::thread::yield_now();
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Self { child, stream, _folder: folder }
    }

    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let (_, fields) = stat.rsplit_once(')').expect("a line of proc(5)");
        let ticks: u64 = fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|number| number.parse::<u64>().expect("ticks"))
            .sum();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let start = RequestStart {
        request_id: "0-1f-3",
        timestamp: "2026-01-01T00:00:00.000Z",
        method: if body.is_empty() { "GET" } else { "POST" },
        path,
        remote_addr: Some("127.0.0.1:51234"),
        timeout_ms: Some(30_000),
    };
    let headers: [(&str, &[u8]); 3] =
        [("host", b"127.0.0.1:3000"), ("accept", b"*/*"), ("x-request-id", b"0192d3a4b5c6d7e8")];
    HttpRequestFrame::start(Framing::Length, Protocol::V1_1, &start, headers.into_iter())
        .finish(body, FRAME_BYTES_MAX_DEFAULT)
        .expect("it fits")
}

/// Sends as many requests as fit in the time, `depth` at once; gives their number and the time.
fn load(stream: &mut UnixStream, frame: &[u8], depth: usize, time: Duration) -> (u64, Duration) {
    let batch = frame.repeat(depth);
    let mut decoder = Decoder::new(Framing::Length, FRAME_BYTES_MAX_DEFAULT);
    let mut buffer = vec![0; 64 * 1024];
    let (began, mut answered) = (Instant::now(), 0);
    while began.elapsed() < time {
        // Written while answers are read: neither side's buffer holds all of large requests.
        std::thread::scope(|scope| {
            if batch.len() > 64 * 1024 {
                let mut writer = stream.try_clone().expect("a socket");
                let batch = &batch;
                scope.spawn(move || writer.write_all(batch).expect("the plugin reads"));
            } else {
                stream.write_all(&batch).expect("the plugin reads");
            }
            let mut left = depth;
            while left > 0 {
                let count = stream.read(&mut buffer).expect("the plugin answers");
                assert!(count > 0, "the plugin closed the connection");
                decoder.feed(&buffer[..count]);
                while decoder.next_frame().expect("valid").is_some() {
                    left -= 1;
                }
            }
        });
        answered += depth as u64;
    }
    (answered, began.elapsed())
}

fn bind(core: Option<usize>) {
    if let Some(core) = core {
        let mut set = CpuSet::new();
        set.set(core);
        // Only makes the figures steadier.
        let _ = sched_setaffinity(None, &set);
    }
}

fn main() -> std::process::ExitCode {
    if let Some(reads) = std::env::var_os("TORU_BENCH_IS_PLUGIN") {
        return run_with(Bench, Options::default().io_uring(reads == IO_URING));
    }
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (time, rounds) = if is_bench { (Duration::from_secs(1), 5) } else { (Duration::from_millis(10), 1) };
    let cores: Vec<usize> = match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect(),
        Err(_) => vec![],
    };
    let (first, last) = (cores.first().copied(), cores.last().copied());
    let cases = [
        ("30 B, each after the last", request("/", b""), 1),
        ("30 B, 64 at once", request("/", b""), 64),
        ("30 B, 64 at once, the handler awaits once", request("/wait", b""), 64),
        ("echo of 1 KiB, 64 at once", request("/echo", &[b'x'; 1024]), 64),
        ("echo of 16 KiB, 64 at once", request("/echo", &[b'x'; 16 * 1024]), 64),
    ];
    println!(
        "| messages | reads by | a second (least to most) | CPU of the plugin, µs each |\n| --- | --- | --- | --- |"
    );
    // Whom this thread starts is bound as it is.
    bind(last);
    let mut plugins = [EPOLL, IO_URING].map(|reads| (reads, Plugin::start(reads)));
    bind(first);
    for (name, frame, depth) in cases {
        let mut figures = [(vec![], vec![]), (vec![], vec![])];
        for _ in 0..rounds {
            for ((_, plugin), (rates, costs)) in plugins.iter_mut().zip(&mut figures) {
                let before = plugin.cpu_seconds();
                let (count, took) = load(&mut plugin.stream, &frame, depth, time);
                rates.push(count as f64 / took.as_secs_f64());
                costs.push((plugin.cpu_seconds() - before) / count as f64 * 1e6);
            }
        }
        for ((reads, _), (mut rates, mut costs)) in plugins.iter().zip(figures) {
            rates.sort_by(f64::total_cmp);
            costs.sort_by(f64::total_cmp);
            let (least, middle, most) = (rates[0], rates[rounds / 2], rates[rounds - 1]);
            let cost = costs[rounds / 2];
            println!("| {name} | {reads} | {middle:.0} ({least:.0} to {most:.0}) | {cost:.1} |");
        }
    }
    std::process::ExitCode::SUCCESS
}
