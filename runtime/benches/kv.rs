//! Durable sets and gets in a second, with their latencies: the disk alone, plain rusqlite loops, the store, and the whole
//! path through the real binary, from a plugin over its socket and from an HTTP client, in turn within one run. Only
//! their ratios say something: disks and machines differ.
//!
//! Every value is another one, since SQLite does not sync for a value that is there already.
//!
//! The plugin is this same executable under the name `p.binary`; it asks as the Rust SDK lets it, and measures itself.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use toru_plugin_api::{
    HttpRequest, HttpResponse, PluginContext, PluginError, PluginMetadata, PluginResult, ToruPlugin,
    async_trait,
};
use toru_runtime::config::{StoreConfig, Synchronous};
use toru_runtime::kv::{self, Store};
use toru_supervisor::{KvAnswer, KvQuestion};

/// Each figure of a round is taken over this time.
static SPAN: OnceLock<Duration> = OnceLock::new();
const KEYS: u64 = 1000;

fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if Path::new(&name).extension().is_some_and(|extension| extension == "binary") {
        return toru_plugin_api::run(Asking);
    }
    // A run of all targets' tests only wants to know that it works.
    let measures = std::env::args().any(|argument| argument == "--bench");
    SPAN.get_or_init(|| Duration::from_millis(if measures { 1000 } else { 10 }));
    compare(if measures { 5 } else { 1 });
    ExitCode::SUCCESS
}

fn span() -> Duration {
    *SPAN.get().expect("set at the start")
}

fn compare(round_count: usize) {
    let disk = std::env::var_os("TORU_BENCH_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
    let folder = tempfile::tempdir_in(disk).expect("a folder on a disk");
    let disk = Disk::open(&folder.path().join("disk"));
    let mut plain = Plain::open(&folder.path().join("plain.db"));
    let (store, owner, _) =
        kv::start(&make(folder.path(), "store"), settings(), Box::new(|_, text| eprintln!("{text}")))
            .expect("the store opens");
    let daemon = Daemon::start(&make(folder.path(), "daemon"));
    let mut figures: Vec<(&str, Vec<Figure>)> = vec![];
    for _ in 0..round_count {
        let mut note = |name, figure| match figures.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rounds)) => rounds.push(figure),
            None => figures.push((name, vec![figure])),
        };
        note("4 KiB and fdatasync, no database", disk.syncs());
        note("set, plain rusqlite, one at a time", plain.sets());
        note("set, plain rusqlite, 64 a transaction", plain.sets_together());
        note("set, store, one waiting", through_store(&store, 1, set));
        note("set, store, 64 waiting", through_store(&store, 64, set));
        note("set, plugin, one waiting", daemon.over_socket("set", 1));
        note("set, plugin, 64 waiting", daemon.over_socket("set", 64));
        note("set, HTTP, one waiting", daemon.over_http(1, set_body));
        note("set, HTTP, 64 waiting", daemon.over_http(64, set_body));
        note("get, plain rusqlite, one at a time", plain.gets());
        note("get, store, one waiting", through_store(&store, 1, get));
        note("get, store, 64 waiting", through_store(&store, 64, get));
        note("get, plugin, one waiting", daemon.over_socket("get", 1));
        note("get, plugin, 64 waiting", daemon.over_socket("get", 64));
        note("get, HTTP, one waiting", daemon.over_http(1, get_body));
        note("get, HTTP, 64 waiting", daemon.over_http(64, get_body));
    }
    drop(daemon);
    owner.finish();
    println!("{:38} {:>9} {:19} {:>8} {:>8}", "", "a second", "(least to most)", "p50 us", "p99 us");
    for (name, rounds) in figures {
        let median = |of: fn(&Figure) -> f64| {
            let mut sorted: Vec<f64> = rounds.iter().map(of).collect();
            sorted.sort_by(f64::total_cmp);
            (sorted[round_count / 2], sorted[0], sorted[round_count - 1])
        };
        let (rate, least, most) = median(|figure| figure.per_second);
        let spread = format!("({least:.0} to {most:.0})");
        let (p50, p99) = (median(|figure| figure.p50_us).0, median(|figure| figure.p99_us).0);
        println!("{name:38} {rate:9.0} {spread:19} {p50:8.0} {p99:8.0}");
    }
    println!("medians of {round_count} rounds");
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

/// What one round of one contender came to.
struct Figure {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
}

impl Figure {
    /// From the microseconds that each call took.
    fn new(mut took_us: Vec<f64>, elapsed: Duration) -> Self {
        took_us.sort_by(f64::total_cmp);
        let at = |share: f64| took_us.get((took_us.len() as f64 * share) as usize).copied().unwrap_or(0.0);
        let per_second = took_us.len() as f64 / elapsed.as_secs_f64();
        Self { per_second, p50_us: at(0.5), p99_us: at(0.99) }
    }
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_nanos() as f64 / 1000.0
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Calls `once` with rising numbers for a [`span`].
fn measure(mut once: impl FnMut(u64)) -> Figure {
    let start = Instant::now();
    let mut took = Vec::new();
    while start.elapsed() < span() {
        let began = Instant::now();
        once(next_number());
        took.push(micros(began));
    }
    Figure::new(took, start.elapsed())
}

fn key(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

// ---- what the disk allows ----

struct Disk(File);

impl Disk {
    const PAGES: u64 = 4096;

    /// A file with all its blocks, as a write-ahead log that is used again.
    fn open(path: &Path) -> Self {
        let file = File::create(path).expect("create");
        file.write_all_at(&vec![1; Self::PAGES as usize * 4096], 0).expect("write");
        file.sync_all().expect("sync");
        Self(file)
    }

    fn syncs(&self) -> Figure {
        measure(|number| {
            self.0.write_all_at(&[number as u8; 4096], number % Self::PAGES * 4096).expect("write");
            self.0.sync_data().expect("sync");
        })
    }
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

    fn sets(&mut self) -> Figure {
        let mut statement = self.0.prepare("INSERT OR REPLACE INTO kv VALUES ('p', ?1, ?2)").expect("SQL");
        measure(|number| {
            statement.execute([key(number), number.to_string()]).expect("set");
        })
    }

    /// The best that 64 who wait for one sync can get.
    fn sets_together(&mut self) -> Figure {
        let mut statement = self.0.prepare("INSERT OR REPLACE INTO kv VALUES ('p', ?1, ?2)").expect("SQL");
        let start = Instant::now();
        let mut took = Vec::new();
        while start.elapsed() < span() {
            let began = Instant::now();
            self.0.execute_batch("BEGIN IMMEDIATE").expect("begin");
            for _ in 0..64 {
                let number = next_number();
                statement.execute([key(number), number.to_string()]).expect("set");
            }
            self.0.execute_batch("COMMIT").expect("commit");
            took.extend([micros(began); 64]);
        }
        Figure::new(took, start.elapsed())
    }

    fn gets(&mut self) -> Figure {
        let mut statement =
            self.0.prepare("SELECT value FROM kv WHERE plugin_id = 'p' AND key = ?1").expect("SQL");
        measure(|number| {
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

fn through_store(store: &Store, waiting: usize, question: fn(u64) -> KvQuestion) -> Figure {
    let (tell, told) = channel();
    let ask = || {
        let (tell, began) = (tell.clone(), Instant::now());
        let reply = Box::new(move |answer: KvAnswer| {
            assert!(matches!(answer, KvAnswer::Value(_)), "{answer:?}");
            let _ = tell.send(micros(began));
        });
        store.ask("p", question(next_number()), reply);
    };
    let start = Instant::now();
    let mut took = Vec::new();
    // As many as may wait are always on their way; each answer lets the next one go.
    for _ in 1..waiting {
        ask();
    }
    while start.elapsed() < span() {
        ask();
        took.push(told.recv().expect("an answer"));
    }
    let elapsed = start.elapsed();
    for _ in 1..waiting {
        told.recv().expect("an answer");
    }
    Figure::new(took, elapsed)
}

// ---- the plugin ----

/// Answers `/set/N/MS` and `/get/N/MS` with what N askers at once got from the core within so many milliseconds.
struct Asking;

#[async_trait]
impl ToruPlugin for Asking {
    fn metadata(&self) -> PluginMetadata {
        PluginMetadata::new("p", "Asking", "1").icon("?")
    }

    async fn handle_http(&self, request: HttpRequest, ctx: &PluginContext) -> PluginResult<HttpResponse> {
        let wrong = || PluginError::status(404, "/set/N/MS or /get/N/MS");
        let (action, rest) = request.path[1..].split_once('/').ok_or_else(wrong)?;
        let (askers, millis) = rest.split_once('/').ok_or_else(wrong)?;
        let askers: usize = askers.parse().map_err(|_| wrong())?;
        let span = Duration::from_millis(millis.parse().map_err(|_| wrong())?);
        let sets = action == "set";
        let start = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..askers {
            let kv = ctx.kv.clone();
            tasks.spawn(async move {
                let mut took = Vec::new();
                while start.elapsed() < span {
                    let (number, began) = (next_number(), Instant::now());
                    match sets {
                        true => kv.set(&key(number), &number.to_string()).await?,
                        false => drop(kv.get(&key(number)).await?),
                    }
                    took.push(micros(began));
                }
                Ok::<_, toru_plugin_api::KvError>(took)
            });
        }
        let mut took = Vec::new();
        while let Some(outcome) = tasks.join_next().await {
            let outcome = outcome.map_err(|error| PluginError::internal(error.to_string()))?;
            took.extend(outcome.map_err(|error| PluginError::internal(error.to_string()))?);
        }
        let figure = Figure::new(took, start.elapsed());
        Ok(HttpResponse::json(
            &json!({ "per_second": figure.per_second, "p50_us": figure.p50_us, "p99_us": figure.p99_us }),
        ))
    }
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
        let (this, plugin) = (std::env::current_exe().expect("/proc"), plugins.join("p.binary"));
        // A link where the file system lets us: the file is large.
        if std::fs::hard_link(&this, &plugin).is_err() {
            std::fs::copy(&this, &plugin).expect("copy");
        }
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
        let started = Instant::now();
        while daemon.get(&mut daemon.connect(), "/readyz").0 != 200 {
            assert!(started.elapsed() < Duration::from_secs(30), "the plugin does not become ready");
        }
        daemon
    }

    fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(&self.address).expect("connect");
        stream.set_nodelay(true).expect("TCP");
        BufReader::new(stream)
    }

    fn get(&self, stream: &mut BufReader<TcpStream>, path: &str) -> (u16, Vec<u8>) {
        exchange(stream, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"))
    }

    fn ask(&self, stream: &mut BufReader<TcpStream>, body: &str) -> u16 {
        let request = format!(
            "POST /api/plugins/p/kv HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        );
        exchange(stream, &request).0
    }

    fn over_socket(&self, action: &str, askers: usize) -> Figure {
        let (status, body) = self.get(
            &mut self.connect(),
            &format!("/api/plugins/route/p/{action}/{askers}/{}", span().as_millis()),
        );
        let text = String::from_utf8_lossy(&body);
        assert_eq!(status, 200, "{text}");
        let figure: Value = serde_json::from_str(&text).expect("JSON");
        let number = |name: &str| figure[name].as_f64().expect("a number");
        Figure { per_second: number("per_second"), p50_us: number("p50_us"), p99_us: number("p99_us") }
    }

    fn over_http(&self, clients: usize, body: fn(u64) -> String) -> Figure {
        let start = Instant::now();
        let took = std::thread::scope(|scope| {
            let one = || {
                let mut stream = self.connect();
                let mut took = Vec::new();
                while start.elapsed() < span() {
                    let began = Instant::now();
                    assert_eq!(self.ask(&mut stream, &body(next_number())), 200);
                    took.push(micros(began));
                }
                took
            };
            let clients: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
            clients.into_iter().flat_map(|client| client.join().expect("it ends")).collect()
        });
        Figure::new(took, start.elapsed())
    }
}

/// Status and content of the answer.
fn exchange(stream: &mut BufReader<TcpStream>, request: &str) -> (u16, Vec<u8>) {
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
    (status, content)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
