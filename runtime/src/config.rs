//! The configuration: every setting, its default, its unit and its bounds.
//!
//! Flags win over the environment (both arrive as [`Overrides`]), the environment over the file, the file over the
//! defaults. The file is parsed once into a [`Config`] that cannot be wrong; nothing validates later.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;
use toru_plugin_api::frame::FRAME_BYTES_MAX_LIMIT;
use toru_plugin_api::places::{Places, config_text, line_and_column};
use toru_supervisor::state::Policy;
use toru_supervisor::{Level, ProcessSettings};

use crate::forward::Network;
use crate::site::Site;

/// Where plugins find their sockets by default, also when they are started by hand.
pub const SOCKETS_DIR: &str = "/tmp/toru-plugins";
/// Linux's `sun_path`, less its final NUL.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A day, the longest time of a setting in milliseconds: longer is a mistake of units, and far from any overflow.
const DAY_MS: u64 = 86_400_000;

/// Which driver the workers' event loops use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum DriverChoice {
    /// io_uring where the kernel allows it, else epoll with one warning.
    Auto,
    IoUring,
    Epoll,
}

/// Whether worker threads are bound to cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pin {
    /// From four cores up; on two, pinning was measured to cost a quarter of the throughput.
    Auto,
    Always,
    Never,
}

/// Which requests get a line in their plugin's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Off,
    /// Status 500 and above.
    Errors,
    All,
}

/// When a stored value is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Synchronous {
    /// Before it is acknowledged: it survives a power failure.
    Full,
    /// Soon after: it survives the end of the process, and the last ones may be lost to a power failure.
    Normal,
}

/// Everything `toru serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    pub workers: usize,
    pub driver: DriverChoice,
    pub pin: Pin,
    pub web_root: Option<PathBuf>,
    /// A file under the web root that stands for every page that does not exist, as an application of one page wants.
    pub web_fallback: Option<String>,
    pub site: Site,
    pub plugins_dir: PathBuf,
    pub sockets_dir: PathBuf,
    pub log_dir: PathBuf,
    pub data_dir: PathBuf,
    pub control_socket: PathBuf,
    pub supervisor: SupervisorConfig,
    pub http: HttpConfig,
    pub message_bytes_max: usize,
    /// How long a plugin may take over the rest of a frame that it has begun.
    pub frame_timeout: Duration,
    /// Connections open to one 1.0 plugin at once.
    pub legacy_connections: u32,
    pub log: LogConfig,
    pub store: StoreConfig,
    pub token_file: PathBuf,
    pub plugins_need_token: bool,
    pub notify_command: Vec<String>,
    /// `[plugins.ID]` as JSON text, without its `process` table.
    pub plugins: HashMap<String, String>,
    /// `[plugins.ID.process]`.
    pub processes: HashMap<String, ProcessSettings>,
}

#[derive(Clone, Debug)]
pub struct SupervisorConfig {
    pub policy: Policy,
    pub health_interval: Duration,
    pub unanswered_pings: u32,
}

#[derive(Clone, Debug)]
pub struct HttpConfig {
    pub head_timeout: Duration,
    pub body_timeout: Duration,
    pub idle_timeout: Duration,
    /// A client that takes its answer slower than [`HttpConfig::write_bytes_per_second_min`] for so long is cut.
    pub write_timeout: Duration,
    /// 0 where any byte within that time will do.
    pub write_bytes_per_second_min: u64,
    pub request_timeout: Duration,
    /// How long a client that has closed its sending side still gets an answer.
    pub half_close_timeout: Duration,
    /// A content that comes slower than this is cut: a timer for each read would let a byte now and then live for ever.
    pub body_bytes_per_second_min: u64,
    /// How long a slow content is tolerated before its rate counts.
    pub body_rate_after: Duration,
    pub head_bytes_max: usize,
    pub body_bytes_max: u64,
    /// Of a plugin's answer: all names and values as lines of a head, also those that are left out.
    pub answer_head_bytes_max: usize,
    pub answer_fields_max: usize,
    pub connections_max: usize,
    /// Clients whose word about their own clients is passed on.
    pub trusted_proxies: Vec<Network>,
}

/// How large a head an answer may have.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub fields_max: usize,
    /// Of names and values with what stands around them on a line.
    pub bytes_max: usize,
}

impl HttpConfig {
    pub fn head_limits(&self) -> HeadLimits {
        HeadLimits { fields_max: self.answer_fields_max, bytes_max: self.answer_head_bytes_max }
    }
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub level: Level,
    /// From this level on, the core's lines also go to standard error, for people.
    pub echo: Level,
    pub access: Access,
    pub summary_interval: Duration,
    pub rotate_bytes: u64,
    pub rotate_keep: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    pub synchronous: Synchronous,
    /// Keys and values of one plugin together.
    pub quota_bytes: u64,
    pub value_bytes_max: usize,
    pub events_kept: Duration,
    pub event_rows_max: u64,
}

/// What the command line or the environment said.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub config: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub plugins_dir: Option<PathBuf>,
    pub socket_dir: Option<PathBuf>,
    pub log_dir: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub control_socket: Option<PathBuf>,
    pub web_root: Option<PathBuf>,
    pub workers: Option<usize>,
    pub driver: Option<DriverChoice>,
}

/// A configuration that cannot be used. The message names the file, the line where there is one, and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

impl Config {
    /// Reads the configuration file, if there is one, and puts everything together.
    ///
    /// Errors: the file cannot be read or parsed, has an unknown key, or a value is out of bounds.
    pub fn load(overrides: &Overrides) -> Result<Config, ConfigError> {
        let places = Places::of(rustix::process::geteuid().is_root(), |name| std::env::var_os(name));
        let (path, required) = match &overrides.config {
            Some(path) => (path.clone(), true),
            None => (places.config.clone(), false),
        };
        let text = match std::fs::read(&path) {
            Ok(bytes) => {
                config_text(bytes).map_err(|reason| ConfigError(format!("{}: {reason}", path.display())))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
            Err(error) => return Err(ConfigError(format!("cannot read {}: {error}", path.display()))),
        };
        let file: File = toml::from_str(&text)
            .map_err(|error| ConfigError(format!("{}: {}", path.display(), error.to_string().trim_end())))?;
        file.resolve(overrides, &places, &Source { path: &path, text: &text })
    }
}

// ---- the file as it is written ----

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct File {
    server: ServerTable,
    paths: PathsTable,
    supervisor: SupervisorTable,
    http: HttpTable,
    protocol: ProtocolTable,
    log: LogTable,
    kv: KvTable,
    events: EventsTable,
    auth: AuthTable,
    notify: NotifyTable,
    plugins: HashMap<Spanned<String>, PluginTable>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ServerTable {
    listen: Option<Spanned<SocketAddr>>,
    workers: Option<Spanned<usize>>,
    driver: Option<DriverChoice>,
    pin: Option<Pin>,
    #[serde(deserialize_with = "path")]
    web_root: Option<PathBuf>,
    web_fallback: Option<Spanned<String>>,
    hosts: Vec<Spanned<String>>,
    origins: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct PathsTable {
    #[serde(deserialize_with = "path")]
    plugins: Option<PathBuf>,
    #[serde(deserialize_with = "path")]
    sockets: Option<PathBuf>,
    #[serde(deserialize_with = "path")]
    logs: Option<PathBuf>,
    #[serde(deserialize_with = "path")]
    data: Option<PathBuf>,
    #[serde(deserialize_with = "path")]
    control_socket: Option<PathBuf>,
}

/// An empty one is no path: a socket of that name would have none, and could be reached by nobody.
fn path<'de, D: serde::Deserializer<'de>>(found: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(found)?;
    if path.as_os_str().is_empty() {
        return Err(serde::de::Error::custom("a path that is empty; name one, or leave it out"));
    }
    Ok(Some(path))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct SupervisorTable {
    health_interval_ms: Option<Spanned<u64>>,
    ready_timeout_ms: Option<Spanned<u64>>,
    backoff_ms: Option<Spanned<Vec<u64>>>,
    max_restarts: Option<u32>,
    stable_after_ms: Option<Spanned<u64>>,
    stop_grace_ms: Option<Spanned<u64>>,
    term_grace_ms: Option<Spanned<u64>>,
    unanswered_pings: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct HttpTable {
    head_timeout_ms: Option<Spanned<u64>>,
    body_timeout_ms: Option<Spanned<u64>>,
    idle_timeout_ms: Option<Spanned<u64>>,
    write_timeout_ms: Option<Spanned<u64>>,
    write_bytes_per_second_min: Option<Spanned<u64>>,
    request_timeout_ms: Option<Spanned<u64>>,
    half_close_timeout_ms: Option<Spanned<u64>>,
    body_bytes_per_second_min: Option<Spanned<u64>>,
    body_rate_after_ms: Option<Spanned<u64>>,
    head_bytes_max: Option<Spanned<usize>>,
    body_bytes_max: Option<Spanned<u64>>,
    answer_head_bytes_max: Option<Spanned<usize>>,
    answer_fields_max: Option<Spanned<usize>>,
    connections_max: Option<Spanned<usize>>,
    trusted_proxies: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ProtocolTable {
    message_bytes_max: Option<Spanned<usize>>,
    legacy_connections: Option<Spanned<u32>>,
    frame_timeout_ms: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LogTable {
    level: Option<LevelWord>,
    access: Option<Access>,
    summary_interval_s: Option<Spanned<u64>>,
    rotate_bytes: Option<Spanned<u64>>,
    rotate_keep: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum LevelWord {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct KvTable {
    synchronous: Option<Synchronous>,
    quota_bytes: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct EventsTable {
    keep_days: Option<Spanned<u64>>,
    keep_rows: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AuthTable {
    #[serde(deserialize_with = "path")]
    token_file: Option<PathBuf>,
    plugins_need_token: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct NotifyTable {
    command: Option<Spanned<Vec<String>>>,
}

/// `[plugins.ID]`: whatever the plugin wants to know, and beside it a table that steers the core.
#[derive(Default)]
struct PluginTable {
    process: ProcessTable,
    own: toml::Table,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ProcessTable {
    env: HashMap<Spanned<String>, Spanned<String>>,
    args: Vec<Spanned<String>>,
    cwd: Option<PathBuf>,
    nice: Option<Spanned<i32>>,
    memory_bytes_max: Option<Spanned<u64>>,
    open_files_max: Option<Spanned<u64>>,
}

// By hand instead of `flatten`, which would lose the line and column of a mistake in the inner table.
impl<'de> Deserialize<'de> for PluginTable {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = PluginTable;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a plugin's table")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<PluginTable, A::Error> {
                let mut table = PluginTable::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "process" {
                        table.process = map.next_value()?;
                    } else {
                        table.own.insert(key, map.next_value()?);
                    }
                }
                Ok(table)
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error<T>(&self, value: &Spanned<T>, message: &str) -> ConfigError {
        let before = &self.text[..value.span().start.min(self.text.len())];
        let (line, column) = line_and_column(before);
        ConfigError(format!("{}: line {line}, column {column}: {message}", self.path.display()))
    }

    /// A value within `bounds`, or the default.
    fn number<T: Copy + PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: &Option<Spanned<T>>,
        default: T,
        bounds: std::ops::RangeInclusive<T>,
    ) -> Result<T, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        if bounds.contains(value.as_ref()) {
            return Ok(*value.as_ref());
        }
        let message =
            format!("`{key}` is {}, but must be from {} to {}", value.as_ref(), bounds.start(), bounds.end());
        Err(self.error(value, &message))
    }

    fn millis(&self, key: &str, value: &Option<Spanned<u64>>, default: u64) -> Result<Duration, ConfigError> {
        self.number(key, value, default, 1..=DAY_MS).map(Duration::from_millis)
    }
}

impl File {
    fn resolve(
        self,
        overrides: &Overrides,
        places: &Places,
        source: &Source<'_>,
    ) -> Result<Config, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers =
            source.number("server.workers", &self.server.workers, (cores - 1).max(1), 1..=WORKERS_MAX)?;
        let workers = overrides.workers.unwrap_or(workers);
        if !(1..=WORKERS_MAX).contains(&workers) {
            return Err(ConfigError(format!("--workers is {workers}, but must be from 1 to {WORKERS_MAX}")));
        }
        let policy = self.supervisor.policy(source)?;
        let unanswered_pings =
            source.number("supervisor.unanswered_pings", &self.supervisor.unanswered_pings, 3, 1..=1000)?;
        let health_interval =
            source.millis("supervisor.health_interval_ms", &self.supervisor.health_interval_ms, 5000)?;
        let message_bytes_max = source.number(
            "protocol.message_bytes_max",
            &self.protocol.message_bytes_max,
            toru_plugin_api::frame::FRAME_BYTES_MAX_DEFAULT,
            1024..=FRAME_BYTES_MAX_LIMIT,
        )?;
        let data_dir = pick(&overrides.data_dir, self.paths.data).unwrap_or_else(|| places.data.clone());
        let (plugins, processes) = plugin_tables(self.plugins, source)?;
        let config = Config {
            listen: overrides
                .listen
                .or(self.server.listen.map(Spanned::into_inner))
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            workers,
            driver: overrides.driver.or(self.server.driver).unwrap_or(DriverChoice::Auto),
            pin: self.server.pin.unwrap_or(Pin::Auto),
            web_root: pick(&overrides.web_root, self.server.web_root),
            web_fallback: self.server.web_fallback.map(|page| fallback_page(page, source)).transpose()?,
            site: site(&self.server.hosts, &self.server.origins, source)?,
            plugins_dir: pick(&overrides.plugins_dir, self.paths.plugins).unwrap_or("plugins".into()),
            // A slash at its end would have a symbolic link taken for what it leads to.
            sockets_dir: pick(&overrides.socket_dir, self.paths.sockets)
                .map_or_else(|| SOCKETS_DIR.into(), |path| path.components().collect()),
            log_dir: pick(&overrides.log_dir, self.paths.logs).unwrap_or_else(|| places.log.clone()),
            control_socket: pick(&overrides.control_socket, self.paths.control_socket)
                .unwrap_or_else(|| places.control_socket.clone()),
            supervisor: SupervisorConfig { policy, health_interval, unanswered_pings },
            http: self.http.resolve(source, message_bytes_max)?,
            message_bytes_max,
            frame_timeout: source.millis(
                "protocol.frame_timeout_ms",
                &self.protocol.frame_timeout_ms,
                10_000,
            )?,
            legacy_connections: source.number(
                "protocol.legacy_connections",
                &self.protocol.legacy_connections,
                4,
                1..=1024,
            )?,
            log: self.log.resolve(source)?,
            store: store_config(&self.kv, &self.events, source, message_bytes_max)?,
            token_file: self.auth.token_file.unwrap_or_else(|| data_dir.join("token")),
            plugins_need_token: self.auth.plugins_need_token.unwrap_or(false),
            notify_command: self.notify.command.map(Spanned::into_inner).unwrap_or_default(),
            plugins,
            processes,
            data_dir,
        };
        if config.sockets_dir == config.data_dir {
            return Err(ConfigError(format!(
                "{} is both the folder of the sockets and that of the data; name two",
                config.data_dir.display()
            )));
        }
        let longest = config.sockets_dir.join("x.sock");
        for socket in [&config.control_socket, &longest] {
            if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
                return Err(ConfigError(format!(
                    "the socket path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes, which Linux does not allow; choose a shorter folder",
                    socket.display()
                )));
            }
        }
        Ok(config)
    }
}

/// A request id has two hexadecimal digits for its worker, and the control thread takes the last number.
pub const WORKERS_MAX: usize = 254;

fn site(
    hosts: &[Spanned<String>],
    origins: &[Spanned<String>],
    source: &Source<'_>,
) -> Result<Site, ConfigError> {
    for host in hosts {
        let name = host.as_ref();
        if name.is_empty() || name.contains(['/', ':', '*', ' ']) {
            let message =
                "`server.hosts` takes names without scheme, port and wildcard, such as \"panel.example.org\"";
            return Err(source.error(host, message));
        }
    }
    for origin in origins {
        let authority = origin.as_ref().split_once("://").map(|(_, authority)| authority);
        if authority.is_none_or(|authority| authority.is_empty() || authority.contains(['/', '*', ' '])) {
            let message =
                "`server.origins` takes scheme, host and port, such as \"https://panel.example.org\"";
            return Err(source.error(origin, message));
        }
    }
    let lower =
        |list: &[Spanned<String>]| list.iter().map(|text| text.as_ref().to_ascii_lowercase()).collect();
    Ok(Site { hosts: lower(hosts), origins: lower(origins) })
}

/// A path that stays under the web root.
fn fallback_page(page: Spanned<String>, source: &Source<'_>) -> Result<String, ConfigError> {
    let path = Path::new(page.as_ref());
    let inside = path.components().all(|step| matches!(step, std::path::Component::Normal(_)));
    if page.as_ref().is_empty() || page.as_ref().contains('\0') || !inside {
        let message = "`server.web_fallback` must be a path within the web root, such as \"index.html\"";
        return Err(source.error(&page, message));
    }
    Ok(page.into_inner())
}

fn pick(first: &Option<PathBuf>, second: Option<PathBuf>) -> Option<PathBuf> {
    first.clone().or(second)
}

impl SupervisorTable {
    fn policy(&self, source: &Source<'_>) -> Result<Policy, ConfigError> {
        let default = Policy::default();
        let backoff = match &self.backoff_ms {
            None => default.backoff,
            Some(steps)
                if steps.as_ref().is_empty()
                    || !steps.as_ref().iter().all(|step| (1..=DAY_MS).contains(step)) =>
            {
                let wanted = format!(
                    "`supervisor.backoff_ms` needs at least one step, each from 1 to {DAY_MS} (a day)"
                );
                return Err(source.error(steps, &wanted));
            }
            Some(steps) => steps.as_ref().iter().copied().map(Duration::from_millis).collect(),
        };
        Ok(Policy {
            backoff,
            restarts_max: self.max_restarts.unwrap_or(default.restarts_max),
            stable_after: source.millis("supervisor.stable_after_ms", &self.stable_after_ms, 60_000)?,
            ready_timeout: source.millis("supervisor.ready_timeout_ms", &self.ready_timeout_ms, 5000)?,
            stop_grace: source.millis("supervisor.stop_grace_ms", &self.stop_grace_ms, 5000)?,
            term_grace: source.millis("supervisor.term_grace_ms", &self.term_grace_ms, 2000)?,
        })
    }
}

impl HttpTable {
    fn resolve(&self, source: &Source<'_>, message_bytes_max: usize) -> Result<HttpConfig, ConfigError> {
        Ok(HttpConfig {
            head_timeout: source.millis("http.head_timeout_ms", &self.head_timeout_ms, 10_000)?,
            body_timeout: source.millis("http.body_timeout_ms", &self.body_timeout_ms, 60_000)?,
            idle_timeout: source.millis("http.idle_timeout_ms", &self.idle_timeout_ms, 75_000)?,
            write_timeout: source.millis("http.write_timeout_ms", &self.write_timeout_ms, 30_000)?,
            write_bytes_per_second_min: source.number(
                "http.write_bytes_per_second_min",
                &self.write_bytes_per_second_min,
                240,
                0..=1 << 30,
            )?,
            request_timeout: source.millis("http.request_timeout_ms", &self.request_timeout_ms, 30_000)?,
            half_close_timeout: source.millis(
                "http.half_close_timeout_ms",
                &self.half_close_timeout_ms,
                2000,
            )?,
            body_bytes_per_second_min: source.number(
                "http.body_bytes_per_second_min",
                &self.body_bytes_per_second_min,
                240,
                0..=1 << 30,
            )?,
            body_rate_after: source.millis("http.body_rate_after_ms", &self.body_rate_after_ms, 5000)?,
            head_bytes_max: source.number(
                "http.head_bytes_max",
                &self.head_bytes_max,
                16 * 1024,
                1024..=1024 * 1024,
            )?,
            // Nothing larger could be put into a frame.
            body_bytes_max: source.number(
                "http.body_bytes_max",
                &self.body_bytes_max,
                message_bytes_max as u64,
                0..=message_bytes_max as u64,
            )?,
            // More than an answer has use for; what clients take differs: Node 16 KiB, Python 100 fields, curl 300 KiB.
            answer_head_bytes_max: source.number(
                "http.answer_head_bytes_max",
                &self.answer_head_bytes_max,
                64 * 1024,
                1024..=1024 * 1024,
            )?,
            answer_fields_max: source.number(
                "http.answer_fields_max",
                &self.answer_fields_max,
                256,
                1..=10_000,
            )?,
            connections_max: source.number(
                "http.connections_max",
                &self.connections_max,
                16 * 1024,
                1..=1_000_000,
            )?,
            trusted_proxies: self
                .trusted_proxies
                .iter()
                .map(|text| {
                    let network = text.as_ref().parse::<Network>();
                    network.map_err(|why| source.error(text, &format!("`http.trusted_proxies`: {why}")))
                })
                .collect::<Result<_, _>>()?,
        })
    }
}

fn store_config(
    kv: &KvTable,
    events: &EventsTable,
    source: &Source<'_>,
    message_bytes_max: usize,
) -> Result<StoreConfig, ConfigError> {
    const DAY: Duration = Duration::from_secs(86_400);
    // The upper bounds keep sums of them far from any overflow, and are far beyond any use.
    let keep_days = source.number("events.keep_days", &events.keep_days, 90, 1..=36_500)?;
    Ok(StoreConfig {
        synchronous: kv.synchronous.unwrap_or(Synchronous::Full),
        quota_bytes: source.number("kv.quota_bytes", &kv.quota_bytes, 64 * 1024 * 1024, 0..=1 << 50)?,
        // A larger one could not be answered.
        value_bytes_max: message_bytes_max,
        events_kept: DAY * keep_days as u32,
        event_rows_max: source.number("events.keep_rows", &events.keep_rows, 100_000, 1..=100_000_000)?,
    })
}

/// The level that directives as of `RUST_LOG` ask for: of all, or of `toru`. What is for other programs is not for this one.
fn level_of(directives: &str) -> Option<Level> {
    let mut found = None;
    for directive in directives.split(',') {
        let (target, word) = directive.split_once('=').unwrap_or(("toru", directive));
        if target.trim() != "toru" && !target.trim().starts_with("toru_") {
            continue;
        }
        found = match word.trim().to_ascii_lowercase().as_str() {
            "trace" | "debug" => Some(Level::Debug),
            "info" => Some(Level::Info),
            "warn" => Some(Level::Warn),
            "error" | "off" => Some(Level::Error),
            _ => continue,
        };
    }
    found
}

impl LogTable {
    fn resolve(&self, source: &Source<'_>) -> Result<LogConfig, ConfigError> {
        // It wins over the file as the environment does everywhere.
        let asked_for = std::env::var("RUST_LOG").ok().and_then(|directives| level_of(&directives));
        let level = asked_for.unwrap_or(match &self.level {
            Some(LevelWord::Debug) => Level::Debug,
            Some(LevelWord::Info) | None => Level::Info,
            Some(LevelWord::Warn) => Level::Warn,
            Some(LevelWord::Error) => Level::Error,
        });
        Ok(LogConfig {
            level,
            echo: level,
            access: self.access.unwrap_or(Access::Errors),
            summary_interval: Duration::from_secs(source.number(
                "log.summary_interval_s",
                &self.summary_interval_s,
                60,
                1..=86_400,
            )?),
            rotate_bytes: source.number(
                "log.rotate_bytes",
                &self.rotate_bytes,
                16 * 1024 * 1024,
                4096..=u64::MAX,
            )?,
            rotate_keep: source.number("log.rotate_keep", &self.rotate_keep, 5, 0..=1000)?,
        })
    }
}

/// What plugins are told, and how their processes are made; by id.
type PluginTables = (HashMap<String, String>, HashMap<String, ProcessSettings>);

fn plugin_tables(
    tables: HashMap<Spanned<String>, PluginTable>,
    source: &Source<'_>,
) -> Result<PluginTables, ConfigError> {
    let (mut plugins, mut processes) = (HashMap::new(), HashMap::new());
    for (id, table) in tables {
        let legal = |id: &str| {
            (1..=64).contains(&id.len())
                && !id.starts_with('-')
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !legal(id.as_ref()) {
            let message = format!("`plugins.{}`: no plugin can have this id", id.as_ref());
            return Err(source.error(&id, &message));
        }
        let json = table_to_json(table.own)
            .map_err(|reason| source.error(&id, &format!("`plugins.{}`: {reason}", id.as_ref())))?;
        let json = serde_json::Value::Object(json).to_string();
        processes.insert(id.as_ref().clone(), table.process.resolve(id.as_ref(), source)?);
        plugins.insert(id.into_inner(), json);
    }
    Ok((plugins, processes))
}

/// As JSON, in which a date or a time is text.
///
/// Errors: a number that JSON has no word for, with its key.
fn table_to_json(table: toml::Table) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    table.into_iter().map(|(key, value)| Ok((key.clone(), to_json(&key, value)?))).collect()
}

fn to_json(key: &str, value: toml::Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        toml::Value::String(text) => text.into(),
        toml::Value::Integer(number) => number.into(),
        toml::Value::Float(number) if number.is_finite() => number.into(),
        toml::Value::Float(number) => return Err(format!("`{key}` is {number}, which JSON does not have")),
        toml::Value::Boolean(is_true) => is_true.into(),
        toml::Value::Datetime(moment) => moment.to_string().into(),
        toml::Value::Array(values) => {
            values.into_iter().map(|value| to_json(key, value)).collect::<Result<Vec<_>, _>>()?.into()
        }
        toml::Value::Table(table) => table_to_json(table)?.into(),
    })
}

impl ProcessTable {
    fn resolve(self, id: &str, source: &Source<'_>) -> Result<ProcessSettings, ConfigError> {
        let key = |name: &str| format!("plugins.{id}.process.{name}");
        let bounded = |name: &str, value: Option<Spanned<u64>>, bounds: std::ops::RangeInclusive<u64>| {
            value.map(|value| source.number(&key(name), &Some(value), 0, bounds)).transpose()
        };
        let mut env = vec![];
        for (name, value) in self.env {
            let why = match name.as_ref().as_str() {
                name if name.is_empty() || name.contains(['=', '\0']) => Some("is no name of a variable"),
                name if name.starts_with("TORU_") => Some("is set by toru itself"),
                _ if value.as_ref().contains('\0') => Some("has a NUL in its value"),
                _ => None,
            };
            if let Some(why) = why {
                return Err(source.error(&name, &format!("`{}`: {:?} {why}", key("env"), name.as_ref())));
            }
            env.push((name.into_inner(), value.into_inner()));
        }
        // In an order of its own, so that two readings of one file are equal.
        env.sort();
        if let Some(arg) = self.args.iter().find(|arg| arg.as_ref().contains('\0')) {
            return Err(source.error(arg, &format!("`{}`: an argument has a NUL", key("args"))));
        }
        Ok(ProcessSettings {
            env,
            args: self.args.into_iter().map(Spanned::into_inner).collect(),
            cwd: self.cwd,
            nice: self.nice.map(|nice| source.number(&key("nice"), &Some(nice), 0, -20..=19)).transpose()?,
            // With less, not even a shell starts.
            memory_bytes_max: bounded("memory_bytes_max", self.memory_bytes_max, 1 << 20..=i64::MAX as u64)?,
            open_files_max: bounded("open_files_max", self.open_files_max, 8..=1 << 30)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: impl AsRef<[u8]>) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("toru.toml");
        std::fs::write(&path, text).expect("write");
        Config::load(&Overrides { config: Some(path), ..Overrides::default() })
    }

    #[test]
    fn the_level_is_that_of_directives_for_all_or_for_this_program() {
        for (directives, expect) in [
            ("debug", Some(Level::Debug)),
            ("INFO", Some(Level::Info)),
            ("trace", Some(Level::Debug)),
            ("off", Some(Level::Error)),
            ("toru=warn", Some(Level::Warn)),
            ("info,toru=debug", Some(Level::Debug)),
            ("toru_runtime=debug, hyper=error", Some(Level::Debug)),
            ("hyper=debug", None),
            ("debug,bogus", Some(Level::Debug)),
            ("bogus", None),
            ("", None),
        ] {
            assert_eq!(level_of(directives), expect, "{directives:?}");
        }
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").expect("an empty file is fine");
        assert_eq!(config.listen.to_string(), "127.0.0.1:3000");
        assert_eq!(config.message_bytes_max, 1_048_576);
        assert_eq!(config.legacy_connections, 4);
        assert_eq!(config.http.request_timeout, Duration::from_secs(30));
        assert_eq!(config.supervisor.policy.backoff.len(), 5);
        assert!(config.workers >= 1);
    }

    #[test]
    fn mistakes_are_named_with_line_and_column() {
        for (text, expect) in [
            ("[server]\nlisten = \"127.0.0.1:1\"\ncolour = 1\n", "line 3, column 1"),
            ("[http]\n\nrequest_timeout_ms = 0\n", "line 3, column 22: `http.request_timeout_ms` is 0"),
            ("[supervisor]\nbackoff_ms = []\n", "line 2, column 14: `supervisor.backoff_ms`"),
            ("[supervisor]\nbackoff_ms = [1, 86400001]\n", "each from 1 to 86400000 (a day)"),
            ("[protocol]\nmessage_bytes_max = 99999999\n", "must be from 1024 to 16777216"),
            ("[server]\ndriver = \"kqueue\"\n", "line 2, column 10"),
            ("[server]\nweb_fallback = \"../index.html\"\n", "line 2, column 16: `server.web_fallback`"),
            ("[server]\nhosts = [\"a\", \"http://b\"]\n", "line 2, column 15: `server.hosts`"),
            ("[server]\norigins = [\"panel.example.org\"]\n", "line 2, column 12: `server.origins`"),
            ("[plugins.\"no id\"]\n", "no plugin can have this id"),
            (
                "[http]\ntrusted_proxies = [\"::1\", \"10.0.0.1/8\"]\n",
                "line 2, column 27: `http.trusted_proxies`: ",
            ),
            ("[kv]\nsynchronous = \"off\"\n", "line 2, column 15"),
            ("[events]\nkeep_days = 0\n", "line 2, column 13: `events.keep_days` is 0"),
            ("[server]\nhosts = [\"ü\", \"http://b\"]\n", "line 2, column 15: `server.hosts`"),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(expect), "{text:?} gave {error:?}");
        }
        // As an editor writes it that is set to Latin-1.
        let error = load(b"[server]\n# f\xfcr alle\nworkers = 1\n").expect_err("no UTF-8").to_string();
        assert!(error.contains("toru.toml: line 2, column 4: "), "{error}");
    }

    #[test]
    fn a_plugin_gets_its_table_without_the_process_part() {
        let config = load("[plugins.acme]\nlimit = 3\n[plugins.acme.process]\nnice = 5\n").expect("valid");
        assert_eq!(config.plugins["acme"], "{\"limit\":3}");
        assert_eq!(config.processes["acme"], ProcessSettings { nice: Some(5), ..ProcessSettings::default() });
    }

    #[test]
    fn a_process_table_is_read_whole() {
        let text = "[plugins.acme.process]\nenv = { LANG = \"C\" }\nargs = [\"-v\"]\ncwd = \"/srv\"\nnice = -5\n\
                    memory_bytes_max = 268435456\nopen_files_max = 256\n";
        let expect = ProcessSettings {
            env: vec![("LANG".into(), "C".into())],
            args: vec!["-v".into()],
            cwd: Some("/srv".into()),
            nice: Some(-5),
            memory_bytes_max: Some(268_435_456),
            open_files_max: Some(256),
        };
        assert_eq!(load(text).expect("valid").processes["acme"], expect);
        for (line, expect) in [
            ("colour = 1", "line 2, column 1"),
            ("nice = 20", "line 2, column 8: `plugins.acme.process.nice` is 20, but must be from -20 to 19"),
            ("nice = \"low\"", "line 2, column 8"),
            ("memory_bytes_max = 4096", "line 2, column 20"),
            ("open_files_max = 0", "line 2, column 18"),
            ("env = { TORU_PLUGIN_ID = \"x\" }", "line 2, column 9"),
            ("env = { \"A=B\" = \"x\" }", "is no name of a variable"),
            ("env = { A = \"\\u0000\" }", "has a NUL in its value"),
            ("args = [\"a\", \"\\u0000\"]", "line 2, column 14"),
        ] {
            let error = load(format!("[plugins.acme.process]\n{line}\n")).expect_err(line).to_string();
            assert!(error.contains(expect), "{line:?} gave {error:?}");
        }
    }

    #[test]
    fn a_plugin_gets_its_table_as_json() {
        let text =
            "[plugins.acme]\nday = 2026-01-31\nat = [07:32:00]\nx = { y = 2026-01-01T10:00:00Z, z = 1.5 }\n";
        let expect = serde_json::json!({
            "day": "2026-01-31", "at": ["07:32:00"], "x": { "y": "2026-01-01T10:00:00Z", "z": 1.5 },
        });
        assert_eq!(load(text).expect("valid").plugins["acme"], expect.to_string());
        for (text, expect) in [
            ("[plugins.acme]\nlimit = nan\n", "`plugins.acme`: `limit` is NaN"),
            ("[plugins.acme]\na = [{ b = -inf }]\n", "line 1, column 10: `plugins.acme`: `b` is -inf"),
        ] {
            let error = load(text).expect_err(text).to_string();
            assert!(error.contains(expect), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn sockets_and_data_have_folders_of_their_own() {
        let error = load("[paths]\nsockets = \"/run/x\"\ndata = \"/run/x\"\n").expect_err("one for both");
        assert!(error.to_string().contains("/run/x is both"), "{error}");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("toru.toml");
        std::fs::write(&path, "[server]\nlisten = \"127.0.0.1:1\"\n").expect("write");
        let overrides = Overrides {
            config: Some(path),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
            ..Overrides::default()
        };
        assert_eq!(Config::load(&overrides).expect("valid").listen.port(), 2);
    }
}
