//! The pure functions on a request's way, as cases to be measured: by time in `benches/micro.rs`, by instructions in
//! `counts.py`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use toru_http::{Connection, Event, Limits, Response, ResponseHead, encode_field};
use toru_plugin_api::frame::{Decoder, FRAME_BYTES_MAX_DEFAULT, Framing};
use toru_plugin_api::from_core::{
    CoreMessage, EncodedHeaders, HttpRequestFrame, KvReply, RequestStart, encode_kv_reply,
};
use toru_plugin_api::from_plugin::{
    KvRequest, PluginMessage, PluginMessageReader, ResponseStart, encode_http_response, encode_kv_request,
};
use toru_plugin_api::metadata::Protocol;
use toru_supervisor::state::{Event as Happened, Policy, State, Want, step};

const STAMP: &str = "2026-01-01T00:00:00.000Z";
const DATE: &str = "Thu, 01 Jan 2026 00:00:00 GMT";
const LIMIT: usize = FRAME_BYTES_MAX_DEFAULT;
const KIB: usize = 1024;

/// Answers of wrk's size, of a page's, and of a picture's.
const ANSWER_BYTES: [usize; 3] = [30, KIB, 16 * KIB];
const POSTED_BYTES: [usize; 3] = [0, KIB, 16 * KIB];

const SHORT_REQUEST: &[u8] =
    b"GET /api/plugins/echo/ HTTP/1.1\r\nhost: 127.0.0.1:3000\r\nuser-agent: bench\r\naccept: */*\r\n\r\n";

const BROWSER_REQUEST: &[u8] = b"GET /api/plugins/echo/items?page=2&sort=name HTTP/1.1\r\n\
    Host: panel.example.org\r\nConnection: keep-alive\r\nsec-ch-ua-platform: \"Linux\"\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Not_A Brand\";v=\"99\"\r\nsec-ch-ua-mobile: ?0\r\nAccept: */*\r\n\
    Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n\
    Referer: https://panel.example.org/items\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-US,en;q=0.9,de;q=0.8\r\nCookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n\r\n";

/// Something to measure: each call of `run` does it once.
pub struct Case {
    /// Says what it is; unique.
    pub name: String,
    /// How many bytes it reads or writes, for throughput.
    pub bytes: u64,
    /// Does it once.
    pub run: Box<dyn FnMut()>,
}

impl Case {
    fn new(name: impl Into<String>, bytes: usize, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), bytes: bytes as u64, run: Box::new(run) }
    }
}

/// All cases, in the order of a request's way.
pub fn cases() -> Vec<Case> {
    let mut cases =
        vec![head("short", SHORT_REQUEST), head("browser's", BROWSER_REQUEST), chunked(), answer()];
    cases.push(Case::new("route", 0, || {
        let _ = black_box(toru_runtime::route::route("GET", black_box("/api/plugins/echo/items/7"), false));
    }));
    for size in POSTED_BYTES {
        cases.push(write_request(size));
        cases.push(read_request(size));
    }
    for size in ANSWER_BYTES {
        cases.push(write_answer(size));
        cases.push(read_answer(size));
    }
    cases.push(kv_set());
    cases.push(supervisor_step());
    for size in ANSWER_BYTES {
        cases.push(whole_request(size));
    }
    cases
}

/// Text with something to escape now and then, as JSON and HTML have it.
pub fn content(size: usize) -> Vec<u8> {
    b"{\"name\":\"value of some length, in plain text\"}\n".iter().copied().cycle().take(size).collect()
}

/// The frame of an answer of so many bytes, as a plugin writes it.
pub fn answer_frame(size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    append_answer(&mut frame, "0-1f-3", &content(size));
    frame
}

fn append_answer(out: &mut Vec<u8>, request_id: &str, body: &[u8]) {
    let start = ResponseStart { request_id, timestamp: STAMP, status: 200 };
    let headers = [("content-type", "application/json")];
    encode_http_response(out, Framing::Length, &start, headers.into_iter(), body, LIMIT).expect("it fits");
}

/// What the core says of where requests come from, which it writes once for many of them.
fn source() -> EncodedHeaders {
    let fields: [(&str, &[u8]); 4] = [
        ("forwarded", b"for=127.0.0.1;host=\"127.0.0.1:3000\";proto=http"),
        ("x-forwarded-for", b"127.0.0.1"),
        ("x-forwarded-proto", b"http"),
        ("x-forwarded-host", b"127.0.0.1:3000"),
    ];
    EncodedHeaders::new(fields.into_iter())
}

fn append_request(out: Vec<u8>, source: &EncodedHeaders, body: &[u8]) -> Vec<u8> {
    let start = RequestStart {
        request_id: "0-1f-3",
        timestamp: STAMP,
        method: if body.is_empty() { "GET" } else { "POST" },
        path: "/items?page=2",
        remote_addr: Some("127.0.0.1:51234"),
        timeout_ms: Some(30_000),
    };
    let headers: [(&str, &[u8]); 3] =
        [("content-type", b"application/json"), ("accept", b"*/*"), ("x-request-id", b"0192d3a4b5c6d7e8")];
    HttpRequestFrame::start_in(out, Framing::Length, Protocol::V1_1, &start, headers.into_iter(), source)
        .finish(body, LIMIT)
        .expect("it fits")
}

fn decoder() -> Decoder {
    Decoder::new(Framing::Length, LIMIT)
}

/// Everything of one request but its answer.
fn take_request(connection: &mut Connection, request: &[u8]) {
    connection.handle_input(black_box(request));
    loop {
        match connection.poll_event() {
            Event::Head(head) => {
                black_box(head.target.path());
            }
            Event::Body(piece) => {
                black_box(piece);
            }
            Event::End => {}
            Event::ResponseDue => return,
            other => panic!("{other:?}"),
        }
    }
}

fn respond(connection: &mut Connection, fields: &[u8], body: &[u8]) {
    connection.respond(&Response { head: ResponseHead { status: 200, fields, date: DATE }, body });
    let output = connection.take_output();
    connection.reuse_output(black_box(output));
}

fn head(name: &str, request: &'static [u8]) -> Case {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    Case::new(format!("http: {name} head, empty answer"), request.len(), move || {
        take_request(&mut connection, request);
        respond(&mut connection, b"", b"");
    })
}

fn chunked() -> Case {
    let mut request = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for chunk in content(16 * KIB).chunks(KIB) {
        request.extend_from_slice(b"400\r\n");
        request.extend_from_slice(chunk);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let mut connection = Connection::new(Arc::new(Limits::default()));
    Case::new("http: content of 16 chunks of 1 KiB, empty answer", request.len(), move || {
        take_request(&mut connection, &request);
        respond(&mut connection, b"", b"");
    })
}

fn answer() -> Case {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    let body = content(KIB);
    Case::new("http: short head, answer of 1 KiB with three fields", body.len(), move || {
        take_request(&mut connection, SHORT_REQUEST);
        let mut fields = Vec::with_capacity(128);
        for (name, value) in
            [("content-type", "application/json"), ("etag", "\"1\""), ("cache-control", "no-store")]
        {
            encode_field(&mut fields, name, value).expect("a field");
        }
        respond(&mut connection, &fields, &body);
    })
}

fn write_request(size: usize) -> Case {
    let (body, source, mut out) = (content(size), source(), Vec::new());
    Case::new(format!("core: write a request with {size} bytes"), size, move || {
        out.clear();
        out = append_request(std::mem::take(&mut out), &source, black_box(&body));
    })
}

fn read_request(size: usize) -> Case {
    let (frame, mut decoder) = (append_request(Vec::new(), &source(), &content(size)), decoder());
    Case::new(format!("plugin: read a request with {size} bytes"), frame.len(), move || {
        decoder.feed(black_box(&frame));
        let json = decoder.next_frame().expect("valid").expect("whole");
        match CoreMessage::read(json).expect("valid") {
            CoreMessage::Http { request, .. } => {
                black_box(request);
            }
            other => panic!("{other:?}"),
        }
    })
}

fn write_answer(size: usize) -> Case {
    let (body, mut out) = (content(size), Vec::new());
    Case::new(format!("plugin: write an answer of {size} bytes"), size, move || {
        out.clear();
        append_answer(&mut out, "0-1f-3", black_box(&body));
    })
}

fn read_answer(size: usize) -> Case {
    let (frame, mut decoder, mut reader) = (answer_frame(size), decoder(), PluginMessageReader::new());
    Case::new(format!("core: read an answer of {size} bytes"), frame.len(), move || {
        decoder.feed(black_box(&frame));
        let json = decoder.next_frame().expect("valid").expect("whole");
        let read = reader.read(json, |message| match message {
            PluginMessage::HttpResponse { response: Ok(response), .. } => {
                black_box(response.body.len());
            }
            other => panic!("{other:?}"),
        });
        read.expect("valid");
    })
}

/// A question for a value to be stored, and its answer, as both sides write and read them.
fn kv_set() -> Case {
    let (mut question, mut reply) = (Vec::new(), Vec::new());
    let (mut in_core, mut in_plugin, mut reader) = (decoder(), decoder(), PluginMessageReader::new());
    let value = String::from_utf8(content(100)).expect("text");
    Case::new("kv: a set of 100 bytes, question and answer", value.len(), move || {
        question.clear();
        reply.clear();
        let set = KvRequest::Set { key: "notes/1", value: black_box(&value) };
        encode_kv_request(&mut question, Framing::Length, STAMP, "k17", &set, LIMIT).expect("it fits");
        in_core.feed(&question);
        let json = in_core.next_frame().expect("valid").expect("whole");
        let read = reader.read(json, |message| match message {
            PluginMessage::Kv { request_id, request: Ok(KvRequest::Set { value, .. }) } => {
                black_box(value);
                encode_kv_reply(&mut reply, Framing::Length, STAMP, request_id, &KvReply::Value(None), LIMIT)
            }
            other => panic!("{other:?}"),
        });
        read.expect("valid").expect("it fits");
        in_plugin.feed(&reply);
        let json = in_plugin.next_frame().expect("valid").expect("whole");
        black_box(CoreMessage::read(json).expect("valid"));
    })
}

/// A start, a crash and the start after it.
fn supervisor_step() -> Case {
    let (policy, now) = (Policy::default(), Instant::now());
    Case::new("supervisor: start, ready, crash, back-off", 0, move || {
        let events = [
            Happened::Wanted,
            Happened::Ready,
            Happened::Exited { permanent: false },
            Happened::TimerExpired,
        ];
        let mut state = State::Stopped;
        for (second, event) in events.into_iter().enumerate() {
            let now = now + Duration::from_secs(second as u64 * 2);
            let (next, actions) = step(now, &policy, Want::Up, black_box(state), black_box(event));
            black_box(actions);
            state = next;
        }
    })
}

/// The pure parts of a request together, from the bytes of the client to the bytes of the answer, core and plugin: without
/// sockets, and without what the core and the SDK keep of it in between.
fn whole_request(size: usize) -> Case {
    let mut connection = Connection::new(Arc::new(Limits::default()));
    let (mut to_plugin, mut to_core, body) = (Vec::new(), Vec::new(), content(size));
    let (mut in_core, mut in_plugin, mut reader) = (decoder(), decoder(), PluginMessageReader::new());
    let source = source();
    Case::new(format!("whole request, answer of {size} bytes"), size, move || {
        to_plugin.clear();
        to_core.clear();
        connection.handle_input(black_box(SHORT_REQUEST));
        loop {
            match connection.poll_event() {
                Event::Head(head) => {
                    let _ = black_box(toru_runtime::route::route(head.method, head.target.path(), false));
                    to_plugin = append_request(std::mem::take(&mut to_plugin), &source, b"");
                }
                Event::ResponseDue => break,
                Event::End => {}
                other => panic!("{other:?}"),
            }
        }
        in_plugin.feed(&to_plugin);
        let json = in_plugin.next_frame().expect("valid").expect("whole");
        match CoreMessage::read(json).expect("valid") {
            CoreMessage::Http { request_id, request } => {
                black_box(request);
                append_answer(&mut to_core, &request_id, &body);
            }
            other => panic!("{other:?}"),
        }
        in_core.feed(&to_core);
        let json = in_core.next_frame().expect("valid").expect("whole");
        let read = reader.read(json, |message| match message {
            PluginMessage::HttpResponse { response: Ok(response), .. } => {
                let mut fields = Vec::with_capacity(64);
                for (name, value) in response.headers.clone() {
                    encode_field(&mut fields, name, value).expect("a field");
                }
                respond(&mut connection, &fields, &response.body);
            }
            other => panic!("{other:?}"),
        });
        read.expect("valid");
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn every_case_runs_again_and_again_under_a_name_of_its_own() {
        let mut names = HashSet::new();
        for mut case in super::cases() {
            for _ in 0..3 {
                (case.run)();
            }
            assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
        }
    }
}
