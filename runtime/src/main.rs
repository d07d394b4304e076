//! The command line of `toru`: arguments, configuration, exit codes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand};
use toru_runtime::authoring;
use toru_runtime::cli::{
    CliError, Daemon, EVENTS_SHOWN, Tone, WantedEvents, colours, kv_question, moment, values,
};
use toru_runtime::config::{Config, DriverChoice, Overrides, WORKERS_MAX};
use toru_runtime::kv::offline;
use toru_supervisor::{EVENT_KINDS, Skipped};

/// Exit codes; clap gives 2 for bad usage, too.
mod exit {
    pub const STOPPED: u8 = 0;
    pub const FAILURE: u8 = 1;
    pub const USAGE: u8 = 2;
    /// `EX_UNAVAILABLE` of sysexits.h: the daemon cannot be reached.
    pub const UNAVAILABLE: u8 = 69;
    /// `EX_CONFIG` of sysexits.h.
    pub const BAD_CONFIG: u8 = 78;
}

#[derive(Parser)]
#[command(
    name = "toru",
    version,
    about = "Extends a control panel by plugins that run as processes of their own"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Serve(Box<ServeArgs>),
    /// Build the example plugins and serve them from a temporary folder.
    Demo,
    /// Show one line for each plugin of the running daemon.
    Status {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// JSON for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show the audit trail: what happened to which plugin, and why.
    Events {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// Only this plugin.
        #[arg(long, value_name = "ID")]
        plugin: Option<String>,
        /// Only this type, such as crashed.
        #[arg(long = "type", value_name = "TYPE", value_parser = EVENT_KINDS)]
        event_type: Option<String>,
        /// Only from this time on: 15m, 2h or 3d ago, 2026-01-31, or 2026-01-31T12:00:00Z.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        since: Option<u64>,
        /// Only before this time.
        #[arg(long, value_name = "TIME", value_parser = moment)]
        until: Option<u64>,
        /// Go on as new events come.
        #[arg(short, long)]
        follow: bool,
        /// Events of the past.
        #[arg(short = 'n', long, default_value_t = EVENTS_SHOWN, value_parser = clap::value_parser!(u16).range(1..=1000))]
        lines: u16,
        /// JSON for programs, an event a line.
        #[arg(long)]
        json: bool,
    },
    /// Check the configuration, the token file and every plugin's metadata without starting anything.
    Check(Box<ServeArgs>),
    /// Look at plugins and steer them.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Read and change a plugin's stored values.
    Kv {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[command(subcommand)]
        command: KvCommand,
    },
    /// Back up, check or restore the database.
    Db {
        /// Configuration file of the daemon.
        #[arg(long, env = "TORU_CONFIG", value_name = "FILE", global = true)]
        config: Option<PathBuf>,
        /// Folder with the database [default: as the configuration says].
        #[arg(long, env = "TORU_DATA_DIR", value_name = "DIR", global = true)]
        data_dir: Option<PathBuf>,
        #[command(subcommand)]
        action: DbAction,
    },
}

#[derive(Subcommand)]
enum DbAction {
    /// Copy the database to FILE, also while the daemon writes, and check the copy.
    Backup { file: PathBuf },
    /// Look at every page of the database, also while the daemon uses it.
    Check,
    /// Put a copy of FILE in the database's place and keep the old one aside; the daemon must not run.
    Restore { file: PathBuf },
}

/// Where the running daemon is.
#[derive(Args)]
struct DaemonArgs {
    /// Socket of the running daemon [default: as its configuration says].
    #[arg(long, env = "TORU_CONTROL_SOCKET", value_name = "PATH", global = true)]
    control_socket: Option<PathBuf>,
    /// Configuration file of the daemon.
    #[arg(long, env = "TORU_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum PluginCommand {
    /// Show one line for each plugin.
    List {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[arg(long)]
        json: bool,
    },
    /// Show everything about one plugin.
    Show {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Run it now; forgotten at the daemon's next start.
    Start(OrderArgs),
    /// Stop it now; forgotten at the daemon's next start.
    Stop(OrderArgs),
    /// Replace its process by a new one.
    Restart(OrderArgs),
    /// Run it, now and at every start of the daemon.
    Enable(OrderArgs),
    /// Stop it, and leave it stopped at every start of the daemon.
    Disable(OrderArgs),
    /// Forget its crashes; one that was given up is started again.
    ResetFailed(OrderArgs),
    /// Make a small project that is a plugin.
    New {
        /// The plugin's id, and the project's folder.
        name: String,
        #[arg(long, value_enum)]
        lang: authoring::new::Language,
        /// Where the folder is made.
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
    },
    /// Run one plugin in the foreground, under a core of its own.
    Run {
        /// The plugin's executable.
        path: PathBuf,
        /// Address to listen on; port 0 lets the kernel choose.
        #[arg(long, default_value = "127.0.0.1:3000", value_name = "ADDR:PORT")]
        listen: SocketAddr,
        /// Configuration whose `[plugins.ID]` the plugin gets.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Build and restart when something below this changes; may be given several times.
        #[arg(long, value_name = "DIR")]
        watch: Vec<PathBuf>,
        /// Shell command that builds the plugin, before the start and after each change.
        #[arg(long, value_name = "CMD")]
        build: Option<String>,
    },
    /// Ask any plugin, without a core, whether it keeps the protocol.
    Test {
        /// The plugin's executable.
        path: PathBuf,
        /// What the requests ask for.
        #[arg(long, default_value = "/", value_name = "PATH")]
        target: String,
        /// What takes longer to answer than the target: a request there must be overtaken.
        #[arg(long, value_name = "PATH")]
        slow: Option<String>,
        /// Only this case; may be given several times.
        #[arg(long = "case", value_name = "NAME")]
        only: Vec<String>,
        /// One report as JSON, for programs.
        #[arg(long)]
        json: bool,
        /// Arguments for the plugin.
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Show its log.
    Logs {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// Go on as new lines come.
        #[arg(short, long)]
        follow: bool,
        /// Lines of the past.
        #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
        lines: u16,
        /// Only this level and above.
        #[arg(long, value_parser = ["debug", "info", "warn", "error"])]
        level: Option<String>,
        /// The lines as they are in the log.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct OrderArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    id: String,
}

#[derive(Subcommand)]
enum KvCommand {
    /// Print a value.
    Get {
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        key: String,
    },
    /// Store a value.
    Set {
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        key: String,
        #[arg(allow_negative_numbers = true)]
        value: String,
    },
    /// Remove a value.
    Delete {
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        key: String,
    },
    /// Print keys, a line each, up to 1000.
    List {
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// Only keys that begin with it.
        prefix: Option<String>,
    },
    /// Write all values as they are at one moment, as JSON lines: {"key":"…","value":"…"}.
    Export {
        #[command(flatten)]
        offline: OfflineArgs,
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// Replaced once the export is whole [default: the standard output].
        file: Option<PathBuf>,
    },
    /// Store what JSON lines say, as `export` writes them; a value of null removes its key.
    Import {
        #[command(flatten)]
        offline: OfflineArgs,
        /// Remove all values that no line sets.
        #[arg(long)]
        replace: bool,
        /// The plugin.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
        /// [default: the standard input]
        file: Option<PathBuf>,
    },
}

/// Where the database is, for a daemon that does not run.
#[derive(Args)]
struct OfflineArgs {
    /// Use the data folder itself; an import then takes in all lines or none, and no daemon may run.
    #[arg(long)]
    offline: bool,
    /// Folder with the database, for --offline [default: as the configuration says].
    #[arg(long, env = "TORU_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Args)]
struct ServeArgs {
    /// Configuration file.
    #[arg(long, env = "TORU_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address to listen on; port 0 lets the kernel choose.
    #[arg(long, env = "TORU_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Folder with the plugins, `*.binary`.
    #[arg(long, env = "TORU_PLUGINS_DIR", value_name = "DIR")]
    plugins_dir: Option<PathBuf>,
    /// Folder for the plugins' sockets.
    #[arg(long, env = "TORU_SOCKET_DIR", value_name = "DIR")]
    socket_dir: Option<PathBuf>,
    /// Folder for the logs.
    #[arg(long, env = "TORU_LOG_DIR", value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Folder for the database and the token.
    #[arg(long, env = "TORU_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Socket for `toru` commands and the console.
    #[arg(long, env = "TORU_CONTROL_SOCKET", value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Folder with static files.
    #[arg(long, env = "TORU_WEB_ROOT", value_name = "DIR")]
    web_root: Option<PathBuf>,
    /// Worker threads [default: one fewer than cores, at least one].
    #[arg(
        long,
        env = "TORU_WORKERS",
        value_name = "N",
        value_parser = clap::value_parser!(u8).range(1..=WORKERS_MAX as i64)
    )]
    workers: Option<u8>,
    /// Event loop driver [default: auto].
    #[arg(long, env = "TORU_DRIVER", value_enum)]
    driver: Option<DriverChoice>,
}

impl From<ServeArgs> for Overrides {
    fn from(args: ServeArgs) -> Self {
        Overrides {
            config: args.config,
            listen: args.listen,
            plugins_dir: args.plugins_dir,
            socket_dir: args.socket_dir,
            log_dir: args.log_dir,
            data_dir: args.data_dir,
            control_socket: args.control_socket,
            web_root: args.web_root,
            workers: args.workers.map(usize::from),
            driver: args.driver,
        }
    }
}

fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Serve(args) => serve(*args),
        Command::Demo => match toru_runtime::demo::run() {
            Ok(()) => exit::STOPPED,
            Err(error) => complain(&error, exit::FAILURE),
        },
        Command::Status { daemon, json } => with_daemon(daemon, |daemon| daemon.status(json)),
        Command::Events { daemon, plugin, event_type, since, until, follow, lines, json } => {
            let wanted = WantedEvents { plugin, event_type, since_unix_ms: since, until_unix_ms: until };
            with_daemon(daemon, |daemon| daemon.events(&wanted, lines, follow, json))
        }
        Command::Check(args) => check(*args),
        Command::Plugin(command) => plugin(command),
        Command::Db { config, data_dir, action } => db(config, data_dir, action),
        Command::Kv { daemon, command } => kv(daemon, command),
    };
    ExitCode::from(code)
}

/// Says of each plugin what it is, or why it would be skipped.
fn check(args: ServeArgs) -> u8 {
    let config = match Config::load(&args.into()) {
        Ok(config) => config,
        Err(error) => return complain(&error, exit::BAD_CONFIG),
    };
    let token = toru_runtime::check_token_file(&config);
    // As a start would have it: a relative path is shorter than what plugins are given.
    let sockets_dir = std::path::absolute(&config.sockets_dir).unwrap_or(config.sockets_dir);
    let found = toru_supervisor::check(&config.plugins_dir, &sockets_dir, toru_runtime::METADATA_TIMEOUT);
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let folder = config.plugins_dir.display();
            let _ = writeln!(io::stderr(), "toru: cannot read the plugins folder {folder}: {error}");
            return exit::BAD_CONFIG;
        }
    };
    let mut code = exit::STOPPED;
    let paint = |on: bool, tone: Tone, word: &str| if on { tone.paint(word) } else { word.to_owned() };
    let (ok, error) =
        (paint(colours(&io::stdout()), Tone::Good, "ok"), paint(colours(&io::stderr()), Tone::Bad, "error"));
    let warn = paint(colours(&io::stderr()), Tone::Doubtful, "warn");
    let known: Vec<&str> =
        found.iter().filter_map(|(_, outcome)| Some(&*outcome.as_ref().ok()?.id)).collect();
    let mut lost: Vec<&String> = config.plugins.keys().filter(|id| !known.contains(&id.as_str())).collect();
    lost.sort_unstable();
    for id in lost {
        // The plugin may come later, so it is no error.
        let _ = writeln!(io::stderr(), "{warn}  [plugins.{id}] in the configuration: no plugin has this id");
    }
    if found.is_empty() {
        let _ = writeln!(io::stdout(), "no plugins in {}", config.plugins_dir.display());
    }
    if let Err(reason) = toru_supervisor::check_sockets_dir(&sockets_dir) {
        code = exit::BAD_CONFIG;
        let _ = writeln!(io::stderr(), "{error} {reason}");
    }
    if let Err(reason) = token {
        code = exit::BAD_CONFIG;
        let _ = writeln!(io::stderr(), "{error} {reason}");
    }
    for (file, outcome) in &found {
        let _ = match outcome {
            Ok(metadata) => writeln!(
                io::stdout(),
                "{ok}    {}: {} {}, protocol {}, route {}",
                file.display(),
                metadata.id,
                metadata.version,
                metadata.protocol.as_str(),
                metadata.route
            ),
            Err(reason) => {
                code = exit::BAD_CONFIG;
                let skipped = Skipped { file: file.clone(), reason: reason.clone() };
                writeln!(io::stderr(), "{error} {skipped}")
            }
        };
    }
    code
}

fn plugin(command: PluginCommand) -> u8 {
    let (args, order) = match command {
        PluginCommand::List { daemon, json } => return with_daemon(daemon, |daemon| daemon.status(json)),
        PluginCommand::Show { daemon, id, json } => {
            return with_daemon(daemon, |daemon| daemon.show(&id, json));
        }
        PluginCommand::Logs { daemon, id, follow, lines, level, json } => {
            return with_daemon(daemon, |daemon| {
                daemon.logs(&id, lines.into(), level.as_deref(), follow, json)
            });
        }
        PluginCommand::New { name, lang, dir } => {
            return match authoring::new::run(&name, lang, &dir) {
                Ok(()) => exit::STOPPED,
                Err(error @ authoring::new::NewError::Name { .. }) => complain(&error, exit::USAGE),
                Err(error) => complain(&error, exit::FAILURE),
            };
        }
        PluginCommand::Run { path, listen, config, watch, build } => {
            let wanted = authoring::run::Wanted { path, listen, config, watch, build };
            return match authoring::run::run(wanted) {
                Ok(()) => exit::STOPPED,
                Err(error) => complain(&error, exit::FAILURE),
            };
        }
        PluginCommand::Test { path, target, slow, only, json, args } => {
            return match authoring::kit::run(&path, args, target, slow, &only, json) {
                Ok(true) => exit::STOPPED,
                Ok(false) => exit::FAILURE,
                Err(error) => complain(&error, exit::FAILURE),
            };
        }
        PluginCommand::Start(args) => (args, "start"),
        PluginCommand::Stop(args) => (args, "stop"),
        PluginCommand::Restart(args) => (args, "restart"),
        PluginCommand::Enable(args) => (args, "enable"),
        PluginCommand::Disable(args) => (args, "disable"),
        PluginCommand::ResetFailed(args) => (args, "reset-failed"),
    };
    with_daemon(args.daemon, |daemon| daemon.order(&args.id, order))
}

fn kv(args: DaemonArgs, command: KvCommand) -> u8 {
    let (id, question) = match command {
        KvCommand::Get { id, key } => (id, kv_question("get", Some(&key), None)),
        KvCommand::Set { id, key, value } => (id, kv_question("set", Some(&key), Some(&value))),
        KvCommand::Delete { id, key } => (id, kv_question("delete", Some(&key), None)),
        KvCommand::List { id, prefix } => (id, kv_question("list", prefix.as_deref(), None)),
        KvCommand::Export { offline, id, file } if offline.offline => {
            return with_config(args, offline.data_dir, |config| {
                values::export_offline(&config.data_dir, &id, file.as_deref())
            });
        }
        KvCommand::Export { id, file, .. } => {
            return with_daemon(args, |daemon| daemon.export(&id, file.as_deref()));
        }
        KvCommand::Import { offline, replace, id, file } if offline.offline => {
            return with_config(args, offline.data_dir, |config| {
                values::import_offline(&config.data_dir, &config.store, &id, file.as_deref(), replace)
            });
        }
        KvCommand::Import { replace, id, file, .. } => {
            return with_daemon(args, |daemon| daemon.import(&id, file.as_deref(), replace));
        }
    };
    with_daemon(args, |daemon| daemon.kv(&id, &question))
}

fn with_daemon(args: DaemonArgs, ask: impl FnOnce(&Daemon) -> Result<(), CliError>) -> u8 {
    match args.control_socket {
        // Whoever names it needs no configuration, which may be what is being mended.
        Some(control_socket) => outcome(ask(&Daemon::new(control_socket))),
        None => with_config(args, None, |config| ask(&Daemon::new(config.control_socket))),
    }
}

fn with_config(
    args: DaemonArgs,
    data_dir: Option<PathBuf>,
    act: impl FnOnce(Config) -> Result<(), CliError>,
) -> u8 {
    let overrides = Overrides {
        config: args.config,
        control_socket: args.control_socket,
        data_dir,
        ..Overrides::default()
    };
    let config = match Config::load(&overrides) {
        Ok(config) => config,
        Err(error) => return complain(&error, exit::BAD_CONFIG),
    };
    outcome(act(config))
}

fn outcome(done: Result<(), CliError>) -> u8 {
    match done {
        Ok(()) => exit::STOPPED,
        Err(
            error @ (CliError::Unreachable { .. }
            | CliError::Silent { .. }
            | CliError::Ended { .. }
            | CliError::Crowded
            | CliError::Stopping),
        ) => complain(&error, exit::UNAVAILABLE),
        Err(error) => complain(&error, exit::FAILURE),
    }
}

fn serve(args: ServeArgs) -> u8 {
    let overrides = args.into();
    let config = match Config::load(&overrides) {
        Ok(config) => config,
        Err(error) => return complain(&error, exit::BAD_CONFIG),
    };
    let announce = |address: SocketAddr, _| {
        let mut out = io::stdout();
        // A script that started us and went away is no reason to stop.
        let _ = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
    };
    match toru_runtime::run(config, Some(overrides), announce) {
        Ok(()) => exit::STOPPED,
        Err(error) => complain(&error, exit::FAILURE),
    }
}

fn db(config: Option<PathBuf>, data_dir: Option<PathBuf>, action: DbAction) -> u8 {
    let overrides = Overrides { config, data_dir, ..Overrides::default() };
    let data_dir = match Config::load(&overrides) {
        Ok(config) => config.data_dir,
        Err(error) => return complain(&error, exit::BAD_CONFIG),
    };
    let done = match &action {
        DbAction::Backup { file } => {
            offline::backup(&data_dir, file).map(|content| format!("{}: {content}", file.display()))
        }
        DbAction::Check => offline::check(&data_dir)
            .map(|content| format!("{}: {content}", data_dir.join("toru.db").display())),
        DbAction::Restore { file } => offline::restore(&data_dir, file).map(|(content, kept)| {
            let kept = kept.map(|kept| format!("\nthe one before is kept as {}", kept.display()));
            format!("{}: {content}{}", data_dir.join("toru.db").display(), kept.unwrap_or_default())
        }),
    };
    match done {
        Ok(said) => {
            let _ = writeln!(io::stdout(), "{said}");
            exit::STOPPED
        }
        Err(error) => complain(&error, exit::FAILURE),
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> u8 {
    let _ = writeln!(io::stderr(), "toru: {error}");
    code
}
