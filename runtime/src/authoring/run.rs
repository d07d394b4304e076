//! `toru plugin run`: one plugin in the foreground, under a core of its own in a temporary folder.
//!
//! Its log comes to the terminal. With sources to watch and a command that builds it, a change becomes a restart.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use toru_plugin_api::metadata::Metadata;
use toru_supervisor::{Command as SupervisorCommand, Handle, Order, OrderError, Rescanned};

use super::subject::{Program, metadata};
use crate::cli::human_line;
use crate::demo::{DemoError, private_config};

/// Between looks at the log and at the sources: soon for a person, and little work.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How long a plugin that has become another one may take to make room for itself.
const CHANGE_PATIENCE: Duration = Duration::from_secs(30);
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
    let mut entry = Entry { folder: place("plugins"), plugin: path, builds: 0 };
    entry.write().map_err(|error| stage("write a file", error))?;
    let config = private_config(staged.path(), wanted.config, wanted.listen)?;
    let logs = place("log/plugins");
    let (watch, build) = (wanted.watch, wanted.build);
    crate::run(config, None, move |address, supervisor| {
        announce(address, &found);
        let _ = thread::Builder::new().name("toru-run-log".into()).spawn(move || show_logs(&logs));
        if !watch.is_empty() {
            let mut id = found.id;
            let restart = move || {
                let now = change(&supervisor, &mut entry)?;
                let moved = (now != id).then(|| format!("; it is at http://{address}/api/plugins/{now}/"));
                id = now;
                Ok(moved.unwrap_or_default())
            };
            let _ = thread::Builder::new()
                .name("toru-run-watch".into())
                .spawn(move || look_after(&watch, build.as_deref(), restart));
        }
    })?;
    Ok(())
}

/// What the core finds in its plugins folder. The plugin itself stays where it is: scripts look for what lies beside them.
struct Entry {
    folder: PathBuf,
    plugin: PathBuf,
    builds: u32,
}

impl Entry {
    /// Anew, with other content than before: by that the core sees that the plugin is another one.
    fn write(&mut self) -> io::Result<()> {
        self.builds += 1;
        let text = format!("#!/bin/sh\n# {}\nexec {} \"$@\"\n", self.builds, quoted(&self.plugin));
        // In one step: the core may be starting the one that is there.
        let unfinished = self.folder.join("unfinished");
        fs::write(&unfinished, text)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        fs::rename(unfinished, self.folder.join("plugin.binary"))
    }
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

/// Prints what comes into the plugin's log, for ever; of a log that was rotated the new one. A plugin that has changed its
/// id has another log.
fn show_logs(folder: &Path) {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut read: HashMap<PathBuf, u64> = HashMap::new();
    loop {
        let logs = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in logs.filter(|path| path.extension() == Some(OsStr::new("log"))) {
            if let Ok(file) = fs::File::open(&path) {
                show_rest(file, read.entry(path).or_default(), colours);
            }
        }
        thread::sleep(LOOK_INTERVAL);
    }
}

fn show_rest(mut file: fs::File, read: &mut u64, colours: bool) {
    if file.metadata().is_ok_and(|now| now.len() < *read) {
        *read = 0;
    }
    let _ = file.seek(SeekFrom::Start(*read));
    let mut lines = BufReader::new(file);
    let mut line = String::new();
    // A line without its end is read again when it is whole.
    while lines.by_ref().read_line(&mut line).is_ok() && line.ends_with('\n') {
        *read += line.len() as u64;
        let _ = writeln!(io::stdout(), "{}", coloured(line.trim_end(), colours));
        line.clear();
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

/// Builds and restarts at each change, for ever; `restart` gives what there is to add. A build that fails leaves the plugin
/// as it is.
fn look_after(folders: &[PathBuf], build: Option<&str>, mut restart: impl FnMut() -> Result<String, String>) {
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
            Ok(more) => say(&format!("restarted{more}")),
            Err(reason) => say(&format!("not restarted: {reason}")),
        }
    }
}

/// Has the core ask the plugin again what it is, and waits until that runs. Gives its id.
///
/// Errors: it says nothing good of itself, or does not start; in words.
fn change(supervisor: &Handle, entry: &mut Entry) -> Result<String, String> {
    const STOPPING: &str = "the core is stopping";
    entry.write().map_err(|error| format!("cannot write a file: {error}"))?;
    let (tell, told) = channel();
    let done = Box::new(move |found: Rescanned| {
        let _ = tell.send(found);
    });
    supervisor.send(SupervisorCommand::Rescan { done });
    let found = told.recv().map_err(|_| STOPPING)?;
    if let Some(reason) = found.skipped.into_iter().next() {
        return Err(reason);
    }
    let id = found.changed.into_iter().chain(found.added).next().ok_or(STOPPING)?;
    let began = Instant::now();
    loop {
        let (tell, told) = channel();
        let done = Box::new(move |outcome| {
            let _ = tell.send(outcome);
        });
        supervisor.send(SupervisorCommand::Order { id: id.clone(), order: Order::Start, done });
        match told.recv().map_err(|_| STOPPING)? {
            Ok(()) => return Ok(id),
            // With another id or route it comes once what it was has stopped.
            Err(OrderError::Unknown(_)) if began.elapsed() < CHANGE_PATIENCE => {
                thread::sleep(LOOK_INTERVAL);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
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
