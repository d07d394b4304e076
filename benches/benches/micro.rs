//! The pure parts of a request's way: reading a head, writing a frame, finding a frame, reading an answer.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use toru_http::{Connection, Event, Limits, Response, ResponseHead};
use toru_plugin_api::frame::{Decoder, FRAME_BYTES_MAX_DEFAULT, Framing};
use toru_plugin_api::from_core::{HttpRequestFrame, RequestStart};
use toru_plugin_api::from_plugin::{PluginMessage, PluginMessageReader, ResponseStart, encode_http_response};
use toru_plugin_api::metadata::Protocol;

const REQUEST: &[u8] =
    b"GET /api/plugins/echo/ HTTP/1.1\r\nhost: 127.0.0.1:3000\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";
const STAMP: &str = "2026-01-01T00:00:00.000Z";

fn head(criterion: &mut Criterion) {
    let limits = Arc::new(Limits::default());
    let mut connection = Connection::new(limits);
    criterion.bench_function("http: head, answer", |bench| {
        bench.iter(|| {
            connection.handle_input(black_box(REQUEST));
            loop {
                match connection.poll_event() {
                    Event::Head(head) => {
                        black_box(head.target.path());
                    }
                    Event::ResponseDue => break,
                    _ => {}
                }
            }
            let head = ResponseHead { status: 200, fields: b"", date: "Thu, 01 Jan 2026 00:00:00 GMT" };
            connection.respond(&Response { head, body: b"{\"ok\":true}" });
            let output = connection.take_output();
            connection.reuse_output(black_box(output));
        });
    });
}

fn request_frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame: request");
    for size in [0, 1024, 16 * 1024] {
        let body = "x".repeat(size).into_bytes();
        group.throughput(Throughput::Bytes(size as u64 + 300));
        group.bench_function(format!("{size} B"), |bench| {
            let start = RequestStart {
                request_id: "0-1f-3",
                timestamp: STAMP,
                method: "POST",
                path: "/echo?x=1",
                remote_addr: Some("127.0.0.1"),
                timeout_ms: Some(30_000),
            };
            let headers: [(&str, &[u8]); 2] = [("content-type", b"text/plain"), ("accept", b"*/*")];
            bench.iter(|| {
                HttpRequestFrame::start(Framing::Length, Protocol::V1_1, &start, headers.into_iter())
                    .finish(black_box(&body), FRAME_BYTES_MAX_DEFAULT)
            });
        });
    }
    group.finish();
}

fn answer_frame(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame: answer");
    for size in [30, 1024, 16 * 1024] {
        let body = "y".repeat(size);
        let mut frame = Vec::new();
        let headers = [("content-type", "text/plain")];
        let start = ResponseStart { request_id: "0-1f-3", timestamp: STAMP, status: 200 };
        encode_http_response(
            &mut frame,
            Framing::Length,
            &start,
            headers.into_iter(),
            body.as_bytes(),
            FRAME_BYTES_MAX_DEFAULT,
        )
        .expect("it fits");
        group.throughput(Throughput::Bytes(frame.len() as u64));
        let mut reader = PluginMessageReader::new();
        let mut decoder = Decoder::new(Framing::Length, FRAME_BYTES_MAX_DEFAULT);
        group.bench_function(format!("{size} B"), |bench| {
            bench.iter_batched_ref(
                || frame.clone(),
                |frame| {
                    decoder.feed(frame);
                    let json = decoder.next_frame().expect("valid").expect("whole");
                    reader.read(json, |message| match message {
                        PluginMessage::HttpResponse { response: Ok(response), .. } => response.body.len(),
                        other => panic!("{other:?}"),
                    })
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(micro, head, request_frame, answer_frame);
criterion_main!(micro);
