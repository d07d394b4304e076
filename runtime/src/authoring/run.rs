//! `toru plugin run`: one plugin in the foreground, under a core of its own in a temporary folder.
//!
//! Its log comes to the terminal. With sources to watch and a command that builds it, a change becomes a restart.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use toru_plugin_api::metadata::Metadata;
use toru_supervisor::{Handle, Order};

use super::subject::{Program, metadata};
use crate::cli::human_line;
use crate::demo::{DemoError, private_config};

/// Between looks at the log and at the sources: soon for a person, and little work.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Folders that hold what is made, not what is written by hand.
const NOT_SOURCES: [&str; 4] = ["target", "node_modules", "__pycache__", "plugins"];

/// What the command line says.
#[derive(Debug)]
pub struct Wanted {
    /// The plugin's executable.
    pub path: PathBuf,
    /// Where the core listens.
    pub listen: SocketAddr,
    /// The configuration whose `[plugins.ID]` the plugin gets; an empty one without.
    pub config: Option<PathBuf>,
    /// Folders whose changes build and restart.
    pub watch: Vec<PathBuf>,
    /// For `sh -c`, before the start and after each change.
    pub build: Option<String>,
}

/// Runs until Ctrl-C.
///
/// Errors: the first build fails, the program is no plugin, or the core cannot start.
pub fn run(wanted: Wanted) -> Result<(), DemoError> {
    let stage = |what: &str, error: io::Error| DemoError::Stage(format!("cannot {what}: {error}"));
    if let Some(build) = &wanted.build
        && !builds(build)
    {
        return Err(DemoError::Stage(format!("`{build}` failed, so there is nothing to run")));
    }
    let temporary = || tempfile::Builder::new().prefix("toru-run-").tempdir();
    let staged = temporary().map_err(|error| stage("make a temporary folder", error))?;
    let path = std::path::absolute(&wanted.path).map_err(|error| stage("find the plugin", error))?;
    let folder = temporary().map_err(|error| stage("make a temporary folder", error))?;
    let program = Program { path: path.clone(), args: vec![], target: String::new(), slow: None, folder };
    let found =
        metadata(&program).map_err(|fault| DemoError::Stage(format!("{}: {fault}", path.display())))?;

    let place = |name: &str| staged.path().join(name);
    fs::create_dir(place("plugins")).map_err(|error| stage("make a folder", error))?;
    // The plugin stays where it is: scripts look for what lies beside them.
    let entry = place("plugins/plugin.binary");
    fs::write(&entry, format!("#!/bin/sh\nexec {} \"$@\"\n", quoted(&path)))
        .map_err(|error| stage("write a file", error))?;
    fs::set_permissions(&entry, fs::Permissions::from_mode(0o755))
        .map_err(|error| stage("make a file executable", error))?;
    let config = private_config(staged.path(), wanted.config, wanted.listen)?;
    let log = place("log").join(format!("plugins/{}.log", found.id));
    let (watch, build) = (wanted.watch, wanted.build);
    crate::run(config, None, move |address, supervisor| {
        announce(address, &found);
        let _ = thread::Builder::new().name("toru-run-log".into()).spawn(move || show_log(&log));
        if !watch.is_empty() {
            let restart = move || restart(&supervisor, &found.id);
            let _ = thread::Builder::new()
                .name("toru-run-watch".into())
                .spawn(move || look_after(&watch, build.as_deref(), restart));
        }
    })?;
    Ok(())
}

fn announce(address: SocketAddr, metadata: &Metadata) {
    let mut out = io::stdout();
    let _ = writeln!(
        out,
        "listening on http://{address}\n{} {} is at http://{address}/api/plugins/{}/",
        metadata.name, metadata.version, metadata.id
    )
    .and_then(|()| out.flush());
}

/// For `sh`: a path may hold anything but a NUL.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}

fn say(text: &str) {
    let _ = writeln!(io::stderr(), "toru: {text}");
}

fn builds(command: &str) -> bool {
    // Its words go to the terminal; stdout is kept for ours.
    let shell =
        Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::null()).stdout(io::stderr()).status();
    shell.is_ok_and(|status| status.success())
}

/// Prints what comes into the plugin's log, for ever; of a log that was rotated the new one.
fn show_log(path: &Path) {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut read = 0;
    loop {
        if let Ok(mut file) = fs::File::open(path) {
            if file.metadata().is_ok_and(|now| now.len() < read) {
                read = 0;
            }
            let _ = file.seek(SeekFrom::Start(read));
            let mut lines = BufReader::new(file);
            let mut line = String::new();
            // A line without its end is read again when it is whole.
            while lines.by_ref().read_line(&mut line).is_ok() && line.ends_with('\n') {
                read += line.len() as u64;
                let _ = writeln!(io::stdout(), "{}", coloured(line.trim_end(), colours));
                line.clear();
            }
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn coloured(line: &str, colours: bool) -> String {
    let Ok(fields) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let text = human_line(&fields);
    let colour = match fields["level"].as_str() {
        Some("error") => "31",
        Some("warn") => "33",
        Some("debug") => "2",
        _ => return text,
    };
    if colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text }
}

/// Builds and restarts at each change, for ever. A build that fails leaves the plugin as it is.
fn look_after(folders: &[PathBuf], build: Option<&str>, restart: impl Fn() -> Result<(), String>) {
    let newest = || folders.iter().filter_map(|folder| newest_change(folder)).max();
    let mut seen = newest();
    loop {
        thread::sleep(LOOK_INTERVAL);
        let now = newest();
        if now == seen {
            continue;
        }
        say("a source has changed");
        // What is written while it builds is a further change.
        seen = now;
        if build.is_some_and(|build| !builds(build)) {
            say("the build failed; the plugin runs on as it was");
            continue;
        }
        match restart() {
            Ok(()) => say("restarted"),
            Err(reason) => say(&format!("not restarted: {reason}")),
        }
    }
}

fn restart(supervisor: &Handle, id: &str) -> Result<(), String> {
    let (tell, told) = channel();
    let done = Box::new(move |outcome: Result<(), toru_supervisor::OrderError>| {
        let _ = tell.send(outcome.map_err(|error| error.to_string()));
    });
    supervisor.send(toru_supervisor::Command::Order { id: id.to_owned(), order: Order::Restart, done });
    told.recv().unwrap_or_else(|_| Err("the core is stopping".into()))
}

/// The time of the last write below `folder`, which may be a file; a new or removed file changes its folder's.
fn newest_change(folder: &Path) -> Option<SystemTime> {
    let found = fs::symlink_metadata(folder).ok()?;
    let mut newest = found.modified().ok();
    if found.is_dir() {
        for entry in fs::read_dir(folder).ok()?.flatten() {
            let name = entry.file_name();
            let is_hidden = name.to_string_lossy().starts_with('.');
            if !is_hidden && !NOT_SOURCES.iter().any(|other| name == OsStr::new(other)) {
                newest = newest.max(newest_change(&entry.path()));
            }
        }
    }
    newest
}
