//! What the peers of a comparison need: a backend as fast as can be, and the ceiling of the whole arrangement.
//!
//! | command | is |
//! | --- | --- |
//! | `bench-peer backend SOCKET` | an HTTP/1.1 server on a Unix socket: what nginx, HAProxy and Caddy proxy to |
//! | `bench-peer axum SOCKET` | the same on axum, two threads: as people write a backend |
//! | `bench-peer front ADDRESS SOCKET` | a front without routing, checks, timeouts or counters, and |
//! | `bench-peer plugin SOCKET` | the blocking plugin behind it, one link between them: the ceiling |
//!
//! All but `axum` are one thread and raw epoll or blocking calls, and trust whatever they read: only for a bench on loopback.
//! The backends answer `GET /` with 30 bytes of JSON, `GET /bytes/N` with N bytes, and `POST` with what was posted.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use memchr::memmem;
use rustix::event::epoll;
use rustix::io::Errno;

const ANSWER: &[u8] = br#"{"message":"hello","ok":true}"#;
const READ_BYTES: usize = 64 * 1024;
/// The key of the listener, and of the link, among the keys of connections.
const LISTENER: u64 = u64::MAX;
const LINK: u64 = u64::MAX - 1;

struct Client {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Its socket was full.
    waits: bool,
}

/// A request at the start of `input`: its path, where its content lies, its length altogether.
struct Parsed<'a> {
    path: &'a [u8],
    body: std::ops::Range<usize>,
}

fn parse(input: &[u8]) -> Option<Parsed<'_>> {
    let head = memmem::find(input, b"\r\n\r\n")?;
    let path = input.split(|byte| *byte == b' ').nth(1)?;
    let mut length = 0;
    if input[0] != b'G' {
        for line in input[..head].split(|byte| *byte == b'\n').skip(1) {
            if line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:") {
                length = std::str::from_utf8(&line[15..]).ok()?.trim().parse().ok()?;
            }
        }
    }
    let body = head + 4..head + 4 + length;
    (input.len() >= body.end).then_some(Parsed { path, body })
}

fn answer(output: &mut Vec<u8>, content_type: &str, content: &[u8]) {
    let _ = write!(
        output,
        "HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        content.len()
    );
    output.extend_from_slice(content);
}

/// One read, appended to `input`. What is read into is not cleared first: that alone takes longer than a request.
fn read(socket: impl AsFd, input: &mut Vec<u8>) -> Result<usize, Errno> {
    input.reserve(READ_BYTES);
    rustix::io::read(socket, rustix::buffer::spare_capacity(input))
}

/// One nonblocking read; `false` when the peer is gone.
fn fill(client: &mut Client) -> bool {
    matches!(read(&client.socket, &mut client.input), Ok(1..) | Err(Errno::AGAIN))
}

/// Writes what can be written; `false` when the peer is gone.
fn drain(client: &mut Client) -> bool {
    match rustix::io::write(&client.socket, &client.output) {
        Ok(count) => drop(client.output.drain(..count)),
        Err(Errno::AGAIN) => {}
        Err(_) => return false,
    }
    true
}

/// Serves clients of `listener`, on one thread, for ever.
///
/// `request` takes a parsed request of client `key`; what it appends to the output goes to that client.
/// `answers` is called when `link` is readable, and gives the keys of clients that now have output; `flush` ends a turn.
fn serve<L: AsFd>(
    listener: &L,
    link: Option<&UnixStream>,
    mut request: impl FnMut(u64, &Parsed<'_>, &[u8], &mut Vec<u8>),
    mut answers: impl FnMut(&mut HashMap<u64, Client>) -> Vec<u64>,
    mut flush: impl FnMut(),
) -> std::io::Result<()> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let readable = epoll::EventFlags::IN;
    epoll::add(&epoll, listener, epoll::EventData::new_u64(LISTENER), readable)?;
    if let Some(link) = link {
        epoll::add(&epoll, link, epoll::EventData::new_u64(LINK), readable)?;
    }
    let mut clients: HashMap<u64, Client> = HashMap::new();
    let mut next = 0;
    let mut events = Vec::with_capacity(256);
    loop {
        epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let key = event.data.u64();
            let ready = match key {
                LISTENER => {
                    let socket = rustix::net::accept_with(listener, rustix::net::SocketFlags::NONBLOCK)?;
                    let _ = rustix::net::sockopt::set_tcp_nodelay(&socket, true);
                    epoll::add(&epoll, &socket, epoll::EventData::new_u64(next), readable)?;
                    clients.insert(next, Client { socket, input: vec![], output: vec![], waits: false });
                    next += 1;
                    continue;
                }
                LINK => answers(&mut clients),
                _ => {
                    let Some(client) = clients.get_mut(&key) else { continue };
                    if !fill(client) {
                        clients.remove(&key);
                        continue;
                    }
                    let Client { input, output, .. } = client;
                    let mut taken = 0;
                    while let Some(parsed) = parse(&input[taken..]) {
                        request(key, &parsed, &input[taken..], output);
                        taken += parsed.body.end;
                    }
                    input.drain(..taken);
                    vec![key]
                }
            };
            for key in ready {
                let Some(client) = clients.get_mut(&key) else { continue };
                if client.output.is_empty() {
                    continue;
                }
                let alive = drain(client);
                // Only a content larger than the socket's buffer leaves something to wait for.
                if alive && client.waits == client.output.is_empty() {
                    client.waits = !client.waits;
                    let flags = if client.waits { readable | epoll::EventFlags::OUT } else { readable };
                    epoll::modify(&epoll, &client.socket, epoll::EventData::new_u64(key), flags)?;
                }
                if !alive {
                    clients.remove(&key);
                }
            }
        }
        flush();
    }
}

fn backend(socket: &str) -> std::io::Result<()> {
    let listener = UnixListener::bind(socket)?;
    let content = vec![b'x'; 1024 * 1024];
    let respond = |_: u64, parsed: &Parsed<'_>, input: &[u8], output: &mut Vec<u8>| {
        if !parsed.body.is_empty() {
            return answer(output, "application/octet-stream", &input[parsed.body.clone()]);
        }
        let size = memmem::find(parsed.path, b"/bytes/")
            .and_then(|at| std::str::from_utf8(&parsed.path[at + 7..]).ok()?.parse::<usize>().ok());
        match size {
            Some(size) => answer(output, "application/octet-stream", &content[..size.min(content.len())]),
            None => answer(output, "application/json", ANSWER),
        }
    };
    serve(&listener, None, respond, |_| vec![], || {})
}

fn axum(socket: &str) -> std::io::Result<()> {
    use axum::body::Bytes;
    use axum::extract::Path;
    use axum::http::header::CONTENT_TYPE;
    use axum::routing::{get, post};

    let router = axum::Router::new()
        .route("/", get(|| async { ([(CONTENT_TYPE, "application/json")], ANSWER) }))
        .route(
            "/bytes/{count}",
            get(|Path(count): Path<usize>| async move { vec![b'x'; count.min(1024 * 1024)] }),
        )
        .route("/echo", post(|content: Bytes| async move { content }));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build()?;
    runtime.block_on(async { axum::serve(tokio::net::UnixListener::bind(socket)?, router).await })
}

/// Frames of the ceiling: length (u32), key of the client (u64), content.
fn frame(outbox: &mut Vec<u8>, key: u64, content: &[u8]) {
    outbox.extend_from_slice(&(content.len() as u32).to_le_bytes());
    outbox.extend_from_slice(&key.to_le_bytes());
    outbox.extend_from_slice(content);
}

/// Calls `take` with each whole frame in `inbox`, and leaves the rest.
fn frames(inbox: &mut Vec<u8>, mut take: impl FnMut(u64, &[u8])) {
    let mut at = 0;
    while let Some((head, rest)) = inbox[at..].split_at_checked(12) {
        let size = u32::from_le_bytes(head[..4].try_into().unwrap_or_default()) as usize;
        let Some(content) = rest.get(..size) else { break };
        take(u64::from_le_bytes(head[4..].try_into().unwrap_or_default()), content);
        at += 12 + size;
    }
    inbox.drain(..at);
}

fn front(address: &str, socket: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    let link = UnixStream::connect(socket)?;
    let outbox = std::cell::RefCell::new(Vec::new());
    let mut inbox = Vec::new();
    let submit = |key: u64, parsed: &Parsed<'_>, input: &[u8], _: &mut Vec<u8>| {
        let content = if parsed.body.is_empty() { parsed.path } else { &input[parsed.body.clone()] };
        frame(&mut outbox.borrow_mut(), key, content);
    };
    let take = |clients: &mut HashMap<u64, Client>| {
        let mut ready = vec![];
        if read(&link, &mut inbox).unwrap_or(0) == 0 {
            std::process::exit(0);
        }
        frames(&mut inbox, |key, content| {
            if let Some(client) = clients.get_mut(&key) {
                answer(&mut client.output, "application/json", content);
                ready.push(key);
            }
        });
        ready
    };
    let flush = || {
        let mut outbox = outbox.borrow_mut();
        if !outbox.is_empty() {
            (&link).write_all(&outbox).expect("the plugin reads");
            outbox.clear();
        }
    };
    serve(&listener, Some(&link), submit, take, flush)
}

fn plugin(socket: &str) -> std::io::Result<()> {
    let (mut link, _) = UnixListener::bind(socket)?.accept()?;
    let (mut inbox, mut outbox) = (Vec::new(), Vec::new());
    loop {
        if read(&link, &mut inbox)? == 0 {
            return Ok(());
        }
        frames(&mut inbox, |key, _| frame(&mut outbox, key, ANSWER));
        link.write_all(&outbox)?;
        outbox.clear();
    }
}

fn main() -> std::process::ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments[..] {
        ["backend", socket] => backend(socket),
        ["axum", socket] => axum(socket),
        ["front", address, socket] => front(address, socket),
        ["plugin", socket] => plugin(socket),
        _ => {
            eprintln!(
                "usage: bench-peer backend SOCKET | axum SOCKET | front ADDRESS SOCKET | plugin SOCKET"
            );
            return std::process::ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-peer: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
