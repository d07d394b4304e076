//! Durable sets and gets in a second: a bare rusqlite loop, the store, and the whole path from an HTTP client through
//! the real binary, in turn within one run. Only their ratios say something: disks and machines differ.
//!
//! Every value is another one, since SQLite does not sync for a value that is there already.

use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use toru_runtime::config::{StoreConfig, Synchronous};
use toru_runtime::kv::{self, Store};
use toru_supervisor::{KvAnswer, KvQuestion};

const ROUNDS: usize = 5;
/// Each figure of a round is taken over this time.
const SPAN: Duration = Duration::from_secs(1);
const KEYS: u64 = 1000;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        // A run of all targets' tests only wants to know that it builds.
        return;
    }
    let folder = tempfile::tempdir_in(std::env::var_os("TORU_BENCH_DIR").unwrap_or_else(|| ".".into()))
        .expect("a folder on a disk");
    let mut plain = Plain::open(&folder.path().join("plain.db"));
    let (store, owner, _) =
        kv::start(&make(folder.path(), "store"), settings(), Box::new(|_, text| eprintln!("{text}")))
            .expect("the store opens");
    let daemon = Daemon::start(&make(folder.path(), "daemon"));
    let mut figures: Vec<(&str, Vec<f64>)> = vec![];
    for _ in 0..ROUNDS {
        let mut note = |name, rate| match figures.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rates)) => rates.push(rate),
            None => figures.push((name, vec![rate])),
        };
        note("set, plain rusqlite, one at a time", plain.sets());
        note("set, store, one waiting", through_store(&store, 1, set));
        note("set, store, 64 waiting", through_store(&store, 64, set));
        note("set, HTTP, one waiting", daemon.rate(1, set_body));
        note("set, HTTP, 64 waiting", daemon.rate(64, set_body));
        note("get, plain rusqlite, one at a time", plain.gets());
        note("get, store, one waiting", through_store(&store, 1, get));
        note("get, store, 64 waiting", through_store(&store, 64, get));
        note("get, HTTP, one waiting", daemon.rate(1, get_body));
        note("get, HTTP, 64 waiting", daemon.rate(64, get_body));
    }
    drop(daemon);
    owner.finish();
    println!("a second, median of {ROUNDS} rounds (least to most)");
    for (name, mut rates) in figures {
        rates.sort_by(f64::total_cmp);
        println!("{name:36} {:9.0} ({:.0} to {:.0})", rates[ROUNDS / 2], rates[0], rates[ROUNDS - 1]);
    }
}

fn make(parent: &Path, name: &str) -> std::path::PathBuf {
    let path = parent.join(name);
    std::fs::create_dir(&path).expect("a fresh folder");
    path
}

fn settings() -> StoreConfig {
    StoreConfig {
        synchronous: Synchronous::Full,
        quota_bytes: 64 * 1024 * 1024,
        value_bytes_max: 1024 * 1024,
        events_kept: Duration::from_secs(90 * 86_400),
        event_rows_max: 100_000,
    }
}

/// Calls `once` with rising numbers for a [`SPAN`] and gives how often in a second.
fn rate(mut once: impl FnMut(u64)) -> f64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let start = Instant::now();
    let mut count = 0_u64;
    while start.elapsed() < SPAN {
        once(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        count += 1;
    }
    count as f64 / start.elapsed().as_secs_f64()
}

fn key(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

// ---- a loop over SQLite, as the best that one thread can do ----

struct Plain(Connection);

impl Plain {
    fn open(path: &Path) -> Self {
        let database = Connection::open(path).expect("open");
        database.pragma_update(None, "journal_mode", "WAL").expect("WAL");
        database.pragma_update(None, "synchronous", "FULL").expect("FULL");
        database
            .execute_batch(
                "CREATE TABLE kv (plugin_id TEXT, key TEXT, value TEXT, PRIMARY KEY (plugin_id, key)) STRICT, WITHOUT ROWID",
            )
            .expect("a table");
        Self(database)
    }

    fn sets(&mut self) -> f64 {
        let mut statement = self.0.prepare("INSERT OR REPLACE INTO kv VALUES ('p', ?1, ?2)").expect("SQL");
        rate(|number| {
            statement.execute([key(number), number.to_string()]).expect("set");
        })
    }

    fn gets(&mut self) -> f64 {
        let mut statement =
            self.0.prepare("SELECT value FROM kv WHERE plugin_id = 'p' AND key = ?1").expect("SQL");
        rate(|number| {
            let found: Option<String> = statement.query_row([key(number)], |row| row.get(0)).ok();
            black_box(found);
        })
    }
}

// ---- the store, as a worker asks it ----

fn set(number: u64) -> KvQuestion {
    KvQuestion::Set { key: key(number), value: number.to_string() }
}

fn get(number: u64) -> KvQuestion {
    KvQuestion::Get { key: key(number) }
}

fn through_store(store: &Store, waiting: usize, question: fn(u64) -> KvQuestion) -> f64 {
    let (tell, told) = channel();
    let ask = |number| {
        let tell = tell.clone();
        let reply = Box::new(move |answer: KvAnswer| {
            assert!(matches!(answer, KvAnswer::Value(_)), "{answer:?}");
            let _ = tell.send(());
        });
        store.ask("p", question(number), reply);
    };
    // As many as may wait are always on their way; each answer lets the next one go.
    for number in 1..waiting as u64 {
        ask(number);
    }
    let rate = rate(|number| {
        ask(number);
        told.recv().expect("an answer");
    });
    for _ in 1..waiting {
        told.recv().expect("an answer");
    }
    rate
}

// ---- the whole path ----

struct Daemon {
    child: Child,
    address: String,
    token: String,
}

fn set_body(number: u64) -> String {
    format!("{{\"action\":\"set\",\"key\":\"{}\",\"value\":\"{number}\"}}", key(number))
}

fn get_body(number: u64) -> String {
    format!("{{\"action\":\"get\",\"key\":\"{}\"}}", key(number))
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let plugins = make(folder, "plugins");
        let plugin = plugins.join("p.binary");
        // Values are kept for a plugin that is known; it need not do anything.
        let metadata = r#"{"id":"p","name":"p","version":"1","icon":"p","route":"/p"}"#;
        std::fs::write(&plugin, format!("#!/bin/sh\n[ \"$1\" = --metadata ] && echo '{metadata}'\n"))
            .expect("write");
        std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).expect("executable");
        std::fs::write(folder.join("toru.toml"), "").expect("write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_toru"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(folder.join("toru.toml"));
        for (flag, name) in [("--plugins-dir", "plugins"), ("--log-dir", "log"), ("--data-dir", "data")] {
            command.arg(flag).arg(folder.join(name));
        }
        // The path of a socket has a limit that the folder of a build may exceed.
        let sockets = std::env::temp_dir().join(format!("toru-bench-{}", std::process::id()));
        command.arg("--socket-dir").arg(&sockets).arg("--control-socket").arg(sockets.join("control"));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the built binary");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("a line");
        let address = line.trim_end().strip_prefix("listening on http://").expect("an address").to_owned();
        let token = std::fs::read_to_string(folder.join("data/token")).expect("a token").trim().to_owned();
        let daemon = Self { child, address, token };
        while daemon.ask(&mut daemon.connect(), &get_body(0)) == 404 {}
        daemon
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(&self.address).expect("connect");
        stream.set_nodelay(true).expect("TCP");
        BufReader::new(stream)
    }

    fn ask(&self, stream: &mut BufReader<TcpStream>, body: &str) -> u16 {
        let request = format!(
            "POST /api/plugins/p/kv HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        stream.get_mut().write_all(request.as_bytes()).expect("write");
        let mut line = String::new();
        let mut length = 0;
        let mut status = 0;
        while line != "\r\n" {
            line.clear();
            stream.read_line(&mut line).expect("read");
            if let Some(code) = line.strip_prefix("HTTP/1.1 ") {
                status = code[..3].parse().expect("a status");
            } else if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.trim_end().parse().expect("a length");
            }
        }
        let mut content = vec![0; length];
        stream.read_exact(&mut content).expect("read");
        status
    }

    fn rate(&self, clients: usize, body: fn(u64) -> String) -> f64 {
        std::thread::scope(|scope| {
            let one = || {
                let mut stream = self.connect();
                rate(|number| assert_eq!(self.ask(&mut stream, &body(number)), 200))
            };
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
            clients.into_iter().map(|client| client.join().expect("it ends")).sum()
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
