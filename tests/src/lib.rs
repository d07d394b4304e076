//! Holds the real `toru` by its edges: its arguments, files, sockets, signals and exit codes.
//!
//! Nothing here links a crate of ours; what a test can do, a user can do. [`Stage`] lays out a
//! private directory, [`Daemon`] runs in it, and dropping the daemon stops it and fails the test if
//! a plugin process stayed behind. Called by `it/` alone, except [`wire`], which the fixtures use.

#![forbid(unsafe_code)]

pub mod client;
pub mod wire;

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fmt::Display,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

pub use client::{Client, Response, request_bytes};
pub use rustix::process::Signal;
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, kill_process},
};
use serde_json::Value;
use tempfile::TempDir;

/// How long a thing may take that normally takes milliseconds. Nothing waits this long unless it
/// is broken, so a loaded two-core machine gets all the room it could want.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls `probe` until it gives a value; past `deadline` the test fails, naming `what`.
pub fn wait_within<T>(deadline: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// As [`wait_within`], by a clock that stands while this machine does: of each turn at most as much counts as a turn takes
/// on a machine that has nothing else to do. For what has to be done within a time that a busy machine has not got.
pub fn wait_counted<T>(allowed: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    const TURN_MAX: Duration = Duration::from_millis(20);
    let start = Instant::now();
    let mut counted = Duration::ZERO;
    loop {
        let turn = Instant::now();
        if let Some(value) = probe() {
            return value;
        }
        assert!(counted < allowed, "waited {allowed:?} ({:?} by the clock) for {what}", start.elapsed());
        thread::sleep(Duration::from_millis(5));
        counted += turn.elapsed().min(TURN_MAX);
    }
}

/// [`wait_within`] the usual [`DEADLINE`].
pub fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, probe)
}

/// Held while a file that will be executed is written and while a process is being made.
///
/// A child that another thread forks meanwhile would hold the file open for writing until it
/// executes, and the kernel would refuse to run the file (ETXTBSY).
fn exec_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A process that is killed and waited for when this goes, also where a test fails.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end with what it printed; one that does not end is killed and fails.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(spawn(command), DEADLINE, &format!("{command:?}"))
}

/// As [`output`], for what takes a minute by nature: a build, an installation, another test suite.
pub fn long_output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    finish(spawn(command), 15 * DEADLINE, &format!("{command:?}"))
}

/// As [`output`], with `input` on stdin.
pub fn output_with(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command);
    let mut stdin = child.stdin.take().expect("it is piped");
    // Who does not read it says so by what it prints.
    let _ = stdin.write_all(input);
    drop(stdin);
    finish(child, DEADLINE, &format!("{command:?}"))
}

fn finish(mut child: Child, deadline: Duration, what: &str) -> Output {
    fn gather(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            bytes
        })
    }
    let stdout = gather(child.stdout.take().expect("it is piped"));
    let stderr = gather(child.stderr.take().expect("it is piped"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("our own child") {
            break status;
        }
        if start.elapsed() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            let stderr = stderr.join().expect("reading does not panic");
            panic!("{what} did not end: {}", String::from_utf8_lossy(&stderr));
        }
        thread::sleep(Duration::from_millis(2));
    };
    Output {
        status,
        stdout: stdout.join().expect("reading does not panic"),
        stderr: stderr.join().expect("reading does not panic"),
    }
}

/// Starts `command`; every process of the tests is made here.
pub fn spawn(command: &mut Command) -> Child {
    let _held = exec_lock();
    command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Whether a program is on the path, for tests of things that a machine may lack.
pub fn has_program(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

/// `io_uring_setup`, `io_uring_enter`, `io_uring_register`: the same numbers on every architecture.
pub const IO_URING: &str = "425,426,427";
/// `openat2`, everywhere.
pub const OPENAT2: &str = "437";

/// A wrapper for [`Stage::under`] that runs the daemon where the kernel refuses these system calls.
pub fn refuse(syscalls: &str) -> [OsString; 2] {
    [binary("refuse").into(), syscalls.into()]
}

/// The root of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the repository").to_owned()
}

/// A binary of this workspace, beside the test executable.
///
/// Cargo builds the binaries of a package whose own integration tests run, so under
/// `cargo test --workspace` they are all there and current. Otherwise they are built here, once.
pub fn binary(name: &str) -> PathBuf {
    let folder = profile_folder();
    let path = folder.join(name);
    if !path.exists() {
        static BUILD: Mutex<()> = Mutex::new(());
        let _one_thread = BUILD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !path.exists() {
            build(&folder);
        }
    }
    assert!(path.exists(), "{} is missing: run `cargo build --workspace --bins`", path.display());
    path
}

/// `target/<profile>`, two up from `target/<profile>/deps/it-…`.
pub fn profile_folder() -> PathBuf {
    let exe = env::current_exe().expect("/proc is mounted");
    let folder = exe.parent().expect("a file stands in a folder");
    match folder.file_name() {
        Some(name) if name == "deps" => folder.parent().expect("deps stands in a profile"),
        _ => folder,
    }
    .to_owned()
}

fn build(profile_folder: &Path) {
    // Another test process (nextest runs one a test) may be building already.
    let lock = fs::File::create(profile_folder.join(".toru-tests-build.lock"))
        .expect("the target directory can be written");
    flock(&lock, FlockOperation::LockExclusive).expect("local files can be locked");
    let profile = match profile_folder.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(repository())
        .args(["build", "--workspace", "--bins", "--profile", profile])
        .arg("--target-dir")
        .arg(profile_folder.parent().expect("a profile stands in target"));
    eprintln!("toru-tests: a binary is missing, running {command:?}");
    let status = spawn(&mut command).wait().expect("cargo ends");
    assert!(status.success(), "{command:?}: {status}");
}

/// A directory laid out for one daemon: settings, plugins, and nothing outside it.
pub struct Stage {
    root: TempDir,
    /// Table to key to TOML value.
    settings: BTreeMap<String, BTreeMap<String, String>>,
    whole_file: Option<String>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
    /// `--driver`; `TORU_TEST_DRIVER` runs the whole suite on one.
    driver: Option<String>,
    listen: String,
    /// Relative to the root, or absolute.
    socket_dir: PathBuf,
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

impl Stage {
    pub fn new() -> Self {
        // Directly under /tmp: the path of a socket may have 107 bytes, and the id can take 64.
        let root = tempfile::Builder::new().prefix("tt").tempdir_in("/tmp").expect("/tmp can be written");
        for folder in ["plugins", "home"] {
            fs::create_dir(root.path().join(folder)).expect("a fresh directory");
        }
        let stage = Self {
            root,
            settings: BTreeMap::new(),
            whole_file: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
            driver: env::var("TORU_TEST_DRIVER").ok(),
            listen: "127.0.0.1:0".to_owned(),
            socket_dir: "s".into(),
        };
        stage
            .set("server.workers", 2)
            .set("supervisor.backoff_ms", "[50, 100, 200]")
            // A plugin starts in milliseconds, a machine with two cores and thirty tests does not.
            .set("supervisor.ready_timeout_ms", 20_000)
            .set("supervisor.stop_grace_ms", 10_000)
    }

    pub fn listen(mut self, address: &str) -> Self {
        self.listen = address.to_owned();
        self
    }

    pub fn socket_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.socket_dir = path.into();
        self
    }

    /// This driver whatever the environment says, for tests of drivers.
    pub fn driver(mut self, driver: &str) -> Self {
        self.driver = Some(driver.to_owned());
        self
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    pub fn plugins(&self) -> PathBuf {
        self.root().join("plugins")
    }

    /// A setting by its dotted name, with its value as TOML writes it.
    pub fn set(mut self, key: &str, value: impl Display) -> Self {
        self.change(key, value);
        self
    }

    fn change(&mut self, key: &str, value: impl Display) {
        let (table, key) = key.rsplit_once('.').expect("a table, a dot and a key");
        self.settings.entry(table.to_owned()).or_default().insert(key.to_owned(), value.to_string());
    }

    /// The whole configuration file, in place of everything [`Self::set`] said.
    pub fn config_file(mut self, text: &str) -> Self {
        self.whole_file = Some(text.to_owned());
        self
    }

    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub fn environment(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon under a command that executes its arguments.
    pub fn under<I: Into<OsString>>(mut self, wrapper: impl IntoIterator<Item = I>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// A copy of a binary of this workspace as plugin `name`.
    pub fn plugin(self, name: &str, binary_name: &str) -> Self {
        stage_binary(&self.plugins(), name, binary_name);
        self
    }

    /// A [faulty plugin](../faulty_plugin/index.html) that does what `command` says.
    pub fn faulty(self, name: &str, command: &Value) -> Self {
        stage_faulty(&self.plugins(), name, command);
        self
    }

    /// The 1.0 imitation in Rust.
    pub fn legacy_rust(self, name: &str) -> Self {
        self.plugin(name, "legacy-rust")
    }

    /// The 1.0 imitation in Python.
    pub fn legacy_python(self, name: &str) -> Self {
        let source = include_str!("../fixtures/legacy_python.py");
        let text = format!("#!{}\n{source}", python().display());
        self.script(name, &text)
    }

    /// An executable script as plugin `name`.
    pub fn script(self, name: &str, text: &str) -> Self {
        write_executable(&self.plugins().join(format!("{name}.binary")), text);
        self
    }

    /// `toru COMMAND` with this stage's directories, configuration and environment.
    pub fn command(&self, command: &str) -> Command {
        let root = self.root();
        let config = root.join("toru.toml");
        let text = self.whole_file.clone().unwrap_or_else(|| self.settings());
        fs::write(&config, text).expect("the stage can be written");
        let toru = binary("toru");
        let mut words = self.wrapper.clone();
        words.push(toru.into());
        let mut line = Command::new(&words[0]);
        line.args(&words[1..])
            .arg(command)
            .current_dir(root)
            .stdin(Stdio::null())
            .env("HOME", root.join("home"))
            .env("XDG_CONFIG_HOME", root.join("home/config"))
            .env("XDG_STATE_HOME", root.join("home/state"))
            .env("XDG_RUNTIME_DIR", root.join("home"))
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .arg("--config")
            .arg(&config);
        line
    }

    /// `toru serve` with every directory inside the stage.
    pub fn serve(&self) -> Command {
        let mut line = self.command("serve");
        let root = self.root();
        line.args(["--listen", &self.listen]);
        for (flag, path) in [
            ("--plugins-dir", Path::new("plugins")),
            ("--socket-dir", &self.socket_dir),
            ("--log-dir", Path::new("log")),
            ("--data-dir", Path::new("data")),
            ("--control-socket", Path::new("control.sock")),
        ] {
            line.arg(flag).arg(root.join(path));
        }
        if let Some(driver) = &self.driver {
            line.arg("--driver").arg(driver);
        }
        line.args(&self.arguments);
        line
    }

    /// Starts the daemon and returns when it accepts connections.
    pub fn start(self) -> Daemon {
        Daemon::start(self)
    }

    /// Runs `toru serve` where it is expected to refuse.
    pub fn serve_output(&self) -> Output {
        output(&mut self.serve())
    }

    fn settings(&self) -> String {
        let mut text = String::new();
        for (table, keys) in &self.settings {
            text.push_str(&format!("[{table}]\n"));
            for (key, value) in keys {
                text.push_str(&format!("{key} = {value}\n"));
            }
        }
        text
    }
}

/// Puts a hard link of a binary of this workspace into `plugins` as plugin `name`.
pub fn stage_binary(plugins: &Path, name: &str, binary_name: &str) {
    let source = binary(binary_name);
    let target = plugins.join(format!("{name}.binary"));
    // A link costs nothing and cannot meet ETXTBSY; a copy is for a target directory elsewhere.
    if fs::hard_link(&source, &target).is_err() {
        let _held = exec_lock();
        fs::copy(&source, &target).expect("the plugins directory can be written");
    }
}

/// Puts a faulty plugin that does what `command` says into `plugins`.
pub fn stage_faulty(plugins: &Path, name: &str, command: &Value) {
    let sidecar = plugins.join(format!("{name}.binary.json"));
    fs::write(&sidecar, command.to_string()).expect("the plugins directory can be written");
    stage_binary(plugins, name, "faulty-plugin");
}

/// Writes a script and lets it be run.
pub fn write_executable(path: &Path, text: &str) {
    let _held = exec_lock();
    fs::write(path, text).expect("the directory can be written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
}

/// The interpreter itself, since a version manager's shim costs a shell for every start.
fn python() -> PathBuf {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let found =
                output(Command::new("python3").args(["-c", "import sys; print(sys.executable, end='')"]));
            assert!(found.status.success(), "python3: {found:?}");
            PathBuf::from(OsString::from(String::from_utf8(found.stdout).expect("a path in UTF-8")))
        })
        .clone()
}

/// Lines of a pipe, gathered by a thread of their own so that the writer never waits.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn gather(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let gathered = lines.clone();
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                gathered.0.lock().expect("no panic holds it").push(text);
                line.clear();
            }
        });
        lines
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().expect("no panic holds it").clone()
    }

    pub fn containing(&self, part: &str) -> Vec<String> {
        let mut lines = self.all();
        lines.retain(|line| line.contains(part));
        lines
    }
}

/// A running `toru serve`. Dropping it stops it and looks for processes left behind.
pub struct Daemon {
    stage: Stage,
    child: Child,
    /// Set once the child has been reaped.
    exit: Option<ExitStatus>,
    address: SocketAddr,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Daemon {
    fn start(stage: Stage) -> Self {
        let mut command = stage.serve();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command);
        let stdout = Lines::gather(child.stdout.take().expect("it is piped"));
        let stderr = Lines::gather(child.stderr.take().expect("it is piped"));
        let mut daemon =
            Self { stage, child, exit: None, address: SocketAddr::from(([127, 0, 0, 1], 0)), stdout, stderr };
        daemon.address = wait_for("the line `listening on http://…`", || {
            if let Some(status) = daemon.try_wait() {
                panic!("toru serve ended with {status}");
            }
            let lines = daemon.stdout.all();
            let first = lines.first()?;
            let address = first
                .strip_prefix("listening on http://")
                .unwrap_or_else(|| panic!("unexpected line on stdout: {first}"));
            Some(address.parse().expect("an address and a port"))
        });
        daemon
    }

    /// Stops this daemon and starts another on the same directories.
    pub fn restart(mut self) -> Self {
        let status = self.terminate();
        assert_eq!(status.code(), Some(0), "stopped as asked");
        self.start_again()
    }

    /// Starts another daemon on the directories of one that has ended.
    pub fn start_again(mut self) -> Self {
        assert!(self.exit.is_some(), "this one has ended");
        let stage = std::mem::take(&mut self.stage);
        drop(self);
        Self::start(stage)
    }

    /// What a second daemon on the same directories says; it is expected to refuse.
    pub fn second(&self) -> Output {
        self.stage.serve_output()
    }

    pub fn root(&self) -> &Path {
        self.stage.root()
    }

    pub fn plugins(&self) -> PathBuf {
        self.stage.plugins()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        assert!(self.exit.is_none(), "a reaped pid may be a stranger's");
        kill_process(self.pid(), signal).expect("our own child can be signalled");
    }

    /// Changes a setting in the configuration file, which the daemon reads at the next [`Self::hang_up`].
    pub fn set(&mut self, key: &str, value: impl Display) {
        self.stage.change(key, value);
        self.write_config(&self.stage.settings());
    }

    /// Puts `text` in place of the configuration file, in one step as a careful operator would.
    pub fn write_config(&self, text: &str) {
        let (path, new) = (self.root().join("toru.toml"), self.root().join("toru.toml.new"));
        fs::write(&new, text).expect("the stage can be written");
        fs::rename(&new, &path).expect("the stage can be written");
    }

    /// SIGHUP, and the lines of the core's log from there to the end of what it causes.
    pub fn hang_up(&self) -> Vec<Value> {
        let before = self.supervisor_log().len();
        self.signal(Signal::HUP);
        wait_for("the rescan to end", || {
            let mut lines = self.supervisor_log().split_off(before);
            let end = lines.iter().position(|line| line["message"] == "Plugins rescanned")?;
            lines.truncate(end + 1);
            Some(lines)
        })
    }

    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            self.exit = self.child.try_wait().expect("our own child");
        }
        self.exit
    }

    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the daemon to end", || self.try_wait())
    }

    /// SIGTERM, and the status it ends with.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// SIGKILL, as the kernel's out-of-memory killer would.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }

    /// A new connection to the TCP listener.
    pub fn client(&self) -> Client<TcpStream> {
        self.try_client().unwrap_or_else(|error| panic!("connect to {}: {error}", self.address))
    }

    pub fn try_client(&self) -> std::io::Result<Client<TcpStream>> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Client::new(stream))
    }

    /// A new connection to the control socket.
    pub fn control(&self) -> Client<UnixStream> {
        let path = self.root().join("control.sock");
        let stream = UnixStream::connect(&path)
            .unwrap_or_else(|error| panic!("connect to {}: {error}", path.display()));
        stream.set_read_timeout(Some(DEADLINE)).expect("not zero");
        Client::new(stream)
    }

    /// GET on a connection of its own.
    pub fn get(&self, target: &str) -> Response {
        self.client().get(target)
    }

    /// A request on a connection of its own.
    pub fn request(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Response {
        self.client().request(method, target, fields, body)
    }

    /// The bearer token that the first start wrote.
    pub fn token(&self) -> String {
        fs::read_to_string(self.root().join("data/token"))
            .expect("the first start writes <data>/token")
            .trim()
            .to_owned()
    }

    /// A management request with the token; a body is said to be JSON.
    pub fn manage(&self, method: &str, target: &str, body: &[u8]) -> Response {
        let bearer = format!("Bearer {}", self.token());
        let fields = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let count = if body.is_empty() { 1 } else { 2 };
        self.request(method, target, &fields[..count], body)
    }

    /// What the daemon says about a plugin, or `None` if it knows none, or none yet.
    pub fn status(&self, id: &str) -> Option<Value> {
        let answer = self.manage("GET", &format!("/api/plugins/{id}"), b"");
        match answer.status {
            200 => Some(answer.json()),
            404 | 503 => None,
            _ => panic!("status of {id}: {answer:?}"),
        }
    }

    pub fn wait_status(&self, id: &str, what: &str, accept: impl Fn(&Value) -> bool) -> Value {
        wait_for(&format!("{id}: {what}"), || self.status(id).filter(|status| accept(status)))
    }

    /// Waits until the supervisor and every worker know that the plugin is ready.
    ///
    /// The workers learn it by a message each, and a request may come to any of them: hence several
    /// good answers in a row, each on a connection of its own. `HEAD /ready` disturbs no fixture.
    pub fn wait_ready(&self, id: &str) {
        self.wait_status(id, "running", |status| status["running"] == true);
        let mut in_a_row = 0;
        wait_for(&format!("{id} to be ready"), || {
            let answer = self.request("HEAD", &format!("/api/plugins/{id}/ready"), &[], b"");
            in_a_row = if answer.status == 503 { 0 } else { in_a_row + 1 };
            (in_a_row == 8).then_some(())
        });
    }

    /// Waits for the supervisor's word alone, where a request would disturb what is counted.
    pub fn wait_running(&self, id: &str) -> Value {
        self.wait_status(id, "running", |status| status["running"] == true)
    }

    pub fn plugin_pid(&self, id: &str) -> Pid {
        let status = self.wait_running(id);
        let pid = status["pid"].as_i64().expect("a running plugin has a pid");
        Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("not zero")
    }

    /// Lines of a log file under the log directory, each parsed; a line that is no JSON fails.
    pub fn log(&self, file: &str) -> Vec<Value> {
        let path = self.root().join("log").join(file);
        let text = fs::read_to_string(path).unwrap_or_default();
        // The last line may be on its way.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect()
    }

    pub fn supervisor_log(&self) -> Vec<Value> {
        self.log("plugin-supervisor.log")
    }

    pub fn plugin_log(&self, id: &str) -> Vec<Value> {
        self.log(&format!("plugins/{id}.log"))
    }

    /// Lines that a faulty plugin wrote about what it saw.
    pub fn trace(&self, name: &str) -> Vec<Value> {
        let path = self.plugins().join(format!("{name}.binary.trace"));
        let text = fs::read_to_string(path).unwrap_or_default();
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect()
    }

    /// Messages of one kind that a faulty plugin got, whole; requests are not traced, since some tests make many.
    pub fn messages(&self, name: &str, kind: &str) -> Vec<Value> {
        assert_ne!(kind, "http", "not traced; ask the plugin for its `/count`");
        self.trace(name)
            .into_iter()
            .filter(|line| line["event"] == "message" && line["message"]["type"] == kind)
            .map(|mut line| line["message"].take())
            .collect()
    }

    /// Starts of a faulty plugin so far.
    pub fn starts(&self, name: &str) -> Vec<Value> {
        let mut lines = self.trace(name);
        lines.retain(|line| line["event"] == "start");
        lines
    }

    /// The audit trail of a plugin in order: event type and details.
    pub fn events(&self, id: &str) -> Vec<(String, Value)> {
        let path = self.root().join("data/toru.db");
        let read = || -> rusqlite::Result<Vec<(String, Option<String>)>> {
            let database =
                rusqlite::Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            let mut query = database
                .prepare("SELECT event_type, details FROM plugin_events WHERE plugin_id = ?1 ORDER BY id")?;
            query.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        read()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
            .into_iter()
            .map(|(kind, details)| {
                let details = details
                    .map_or(Value::Null, |text| serde_json::from_str(&text).expect("details are JSON"));
                (kind, details)
            })
            .collect()
    }

    /// Waits for the `count`th event of a kind and gives its details.
    pub fn wait_event(&self, id: &str, kind: &str, count: usize) -> Value {
        wait_for(&format!("{id}: event {kind} number {count}"), || {
            self.events(id)
                .into_iter()
                .filter(|(found, _)| found == kind)
                .nth(count - 1)
                .map(|(_, details)| details)
        })
    }

    /// Plugin processes of this daemon and whatever they made, wherever it hides.
    pub fn processes(&self) -> Vec<Pid> {
        let mut found = processes_with(self.root());
        if self.exit.is_none() {
            found.retain(|&pid| pid != self.pid());
        }
        found
    }

    /// What the open descriptors of the daemon are of, as /proc says it.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("the daemon lives");
        folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
    }

    /// How many they are.
    pub fn descriptors(&self) -> usize {
        self.open_files().len()
    }

    /// A line such as `VmRSS` of the daemon's `/proc/<pid>/status`, in KiB.
    pub fn memory_kib(&self, line: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the daemon lives");
        status
            .lines()
            .find_map(|found| found.strip_prefix(line)?.strip_prefix(':'))
            .and_then(|value| value.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("no {line} in {status}"))
    }

    /// Output of `toru COMMAND ARGUMENTS…` that talks to this daemon.
    pub fn toru(&self, command: &str, arguments: &[&str]) -> Output {
        let mut line = Command::new(binary("toru"));
        line.arg(command)
            .args(arguments)
            .current_dir(self.root())
            .env("HOME", self.root().join("home"))
            .env("TORU_CONTROL_SOCKET", self.root().join("control.sock"));
        output(&mut line)
    }

    fn show(&self) {
        eprintln!("--- stdout of toru serve");
        for line in self.stdout.all() {
            eprintln!("{line}");
        }
        eprintln!("--- stderr of toru serve");
        for line in self.stderr.all() {
            eprintln!("{line}");
        }
        let log = self.root().join("log");
        let mut files = vec![log.join("plugin-supervisor.log")];
        files.extend(
            fs::read_dir(log.join("plugins")).into_iter().flatten().flatten().map(|entry| entry.path()),
        );
        // A pipe that stands for a disk that hangs would hang this, too.
        files.retain(|file| file.is_file());
        for file in files {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {} ({} lines)", file.display(), lines.len());
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failing = thread::panicking();
        if failing {
            self.show();
        }
        let mut complaint = None;
        if self.try_wait().is_none() {
            self.signal(Signal::TERM);
            let end = Instant::now() + Duration::from_secs(30);
            while self.try_wait().is_none() {
                if Instant::now() > end {
                    complaint = Some("the daemon did not end on SIGTERM".to_owned());
                    self.signal(Signal::KILL);
                    self.exit = self.child.wait().ok();
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
        // A killed daemon leaves its plugins to the parent-death signal: that is not instant.
        let end = Instant::now() + Duration::from_secs(5);
        let mut left = self.processes();
        while !left.is_empty() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
            left = self.processes();
        }
        for &pid in &left {
            complaint.get_or_insert_with(|| format!("processes left behind: {left:?}"));
            let _ = kill_process(pid, Signal::KILL);
        }
        if let Some(complaint) = complaint
            && !failing
        {
            self.show();
            panic!("{complaint}");
        }
    }
}

/// Processes whose environment names `root`: only what was started from there does, also when it
/// has left its group, its session and its parent.
pub fn processes_with(root: &Path) -> Vec<Pid> {
    let needle = root.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
            continue;
        };
        // Gone meanwhile, or somebody else's: not ours either way.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(needle.len()).any(|window| window == needle) {
            found.push(pid);
        }
    }
    found
}

/// SIGSTOP, and the moment from which none of its threads runs: the signal alone says only that they will stop.
pub fn halt(pid: Pid) {
    kill_process(pid, Signal::STOP).expect("it runs");
    let tasks = format!("/proc/{}/task", pid.as_raw_nonzero());
    wait_for("all threads to have stopped", || {
        let threads = fs::read_dir(&tasks).ok()?.flatten();
        let mut lines = threads.map(|thread| fs::read_to_string(thread.path().join("stat")));
        lines.all(|line| line.is_ok_and(|line| line.contains(") T "))).then_some(())
    });
}

/// Why a process ended, for messages.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => status.to_string(),
    }
}
