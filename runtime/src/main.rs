//! The command line of `toru`: arguments, configuration, exit codes.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use toru_runtime::config::{Config, DriverChoice, Overrides};

/// Exit codes, beside 2 for bad usage, which clap gives.
mod exit {
    pub const STOPPED: u8 = 0;
    pub const FAILURE: u8 = 1;
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
    #[arg(long, env = "TORU_WORKERS", value_name = "N")]
    workers: Option<usize>,
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
            workers: args.workers,
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
    };
    ExitCode::from(code)
}

fn serve(args: ServeArgs) -> u8 {
    let config = match Config::load(&args.into()) {
        Ok(config) => config,
        Err(error) => return complain(&error, exit::BAD_CONFIG),
    };
    let announce = |address: SocketAddr, _| {
        let mut out = io::stdout();
        // A script that started us and went away is no reason to stop.
        let _ = writeln!(out, "listening on http://{address}").and_then(|()| out.flush());
    };
    match toru_runtime::run(config, announce) {
        Ok(()) => exit::STOPPED,
        Err(error) => complain(&error, exit::FAILURE),
    }
}

fn complain(error: &dyn std::error::Error, code: u8) -> u8 {
    let _ = writeln!(io::stderr(), "toru: {error}");
    code
}
