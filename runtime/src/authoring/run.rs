//! `toru plugin run`: one plugin in the foreground, under a core of its own in a temporary folder.
//!
//! Its log comes to the terminal. With sources to watch and a command that builds it, a change becomes a restart.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use toru_plugin_api::metadata::Metadata;
use toru_supervisor::{Command as SupervisorCommand, Handle, Helper, Order, OrderError, Rescanned};

use super::subject::{Program, metadata};
use crate::cli::human_line;
use crate::demo::{DemoError, private_config};

/// Between looks at the log and at the sources: soon for a person, and little work.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Between looks at a build that runs.
const BUILD_LOOK_INTERVAL: Duration = Duration::from_millis(20);
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
/// Errors: a folder to watch is not there, the first build fails, the program is no plugin, or the core cannot start.
pub fn run(wanted: Wanted) -> Result<(), DemoError> {
    let stage = |what: &str, error: io::Error| DemoError::Stage(format!("cannot {what}: {error}"));
    let found = |folder: &PathBuf| {
        fs::canonicalize(folder).map_err(|error| stage(&format!("watch {}", folder.display()), error))
    };
    let watch = wanted.watch.iter().map(found).collect::<Result<Vec<_>, _>>()?;
    // Before the first build, which may take minutes: what is written meanwhile is a change.
    let sources = Sources { seen: fingerprints(&watch), folders: watch };
    // Ctrl-C ends it with us, as long as there is no core.
    if let Some(build) = &wanted.build
        && !shell(build).status().is_ok_and(|status| status.success())
    {
        return Err(DemoError::Stage(format!("`{build}` failed, so there is nothing to run")));
    }
    let staged = tempfile::Builder::new().prefix("toru-run-").tempdir();
    let staged = staged.map_err(|error| stage("make a temporary folder", error))?;
    let plugin = std::path::absolute(&wanted.path).map_err(|error| stage("find the plugin", error))?;
    let mut entry = Entry { staged: staged.path().to_owned(), plugin, builds: 0 };
    let found = entry.ask().map_err(DemoError::Stage)?;
    entry.write().map_err(|error| stage("write a file", error))?;

    let config = private_config(staged.path(), wanted.config, wanted.listen)?;
    let logs = staged.path().join("log/plugins");
    let build = wanted.build;
    let building = Building::default();
    let held = building.clone();
    crate::run(config, None, move |address, supervisor| {
        announce(address, &found);
        let _ = thread::Builder::new().name("toru-run-log".into()).spawn(move || show_logs(&logs));
        if !sources.folders.is_empty() {
            let mut id = found.id;
            let restart = move || {
                let now = change(&supervisor, &mut entry)?;
                let moved = (now != id).then(|| format!("; it is at http://{address}/api/plugins/{now}/"));
                id = now;
                Ok(moved.unwrap_or_default())
            };
            let builds = move || build.as_deref().map_or(Some(true), |build| builds(build, &held));
            let _ = thread::Builder::new()
                .name("toru-run-watch".into())
                .spawn(move || look_after(sources, builds, restart));
        }
    })?;
    drop(lock(&building).take());
    Ok(())
}

/// What the core finds in its plugins folder. The plugin itself stays where it is: scripts look for what lies beside them.
struct Entry {
    staged: PathBuf,
    plugin: PathBuf,
    builds: u32,
}

impl Entry {
    /// What the plugin says of itself. Errors: for its author.
    fn ask(&self) -> Result<Metadata, String> {
        let folder = tempfile::tempdir_in(&self.staged).map_err(|error| error.to_string())?;
        let path = self.plugin.clone();
        let program = Program { path, args: vec![], target: String::new(), slow: None, folder };
        metadata(&program).map_err(|fault| format!("{}: {fault}", self.plugin.display()))
    }

    /// Anew, with other content than before: by that the core sees that the plugin is another one.
    fn write(&mut self) -> io::Result<()> {
        self.builds += 1;
        let text = format!("#!/bin/sh\n# {}\nexec {} \"$@\"\n", self.builds, quoted(&self.plugin));
        // In one step: the core may be starting the one that is there.
        let folder = self.staged.join("plugins");
        fs::create_dir_all(&folder)?;
        let unfinished = folder.join("unfinished");
        fs::write(&unfinished, text)?;
        fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o755))?;
        fs::rename(unfinished, folder.join("plugin.binary"))
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

/// A command of the author's, whose words go to the terminal; stdout is kept for our own.
fn shell(command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(io::stderr());
    shell
}

/// The build that runs beside the core, if one does: whoever takes it ends it.
type Building = Arc<Mutex<Option<Helper>>>;

fn lock(building: &Building) -> MutexGuard<'_, Option<Helper>> {
    building.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether `command` runs to a good end; `None` if it was taken away before.
fn builds(command: &str, building: &Building) -> Option<bool> {
    let mut held = lock(building);
    match Helper::spawn(&mut shell(command)) {
        Ok(build) => *held = Some(build),
        Err(error) => {
            say(&format!("cannot run `{command}`: {error}"));
            return Some(false);
        }
    }
    drop(held);
    loop {
        thread::sleep(BUILD_LOOK_INTERVAL);
        let mut held = lock(building);
        match held.as_mut()?.try_wait() {
            Ok(None) => {}
            ended => {
                *held = None;
                return Some(ended.is_ok_and(|status| status.is_some_and(|status| status.success())));
            }
        }
    }
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

/// What is watched, and as it was when it was last built from.
struct Sources {
    folders: Vec<PathBuf>,
    seen: Vec<u64>,
}

fn fingerprints(folders: &[PathBuf]) -> Vec<u64> {
    folders.iter().map(|folder| fingerprint(folder)).collect()
}

/// Builds and restarts at each change, for ever; `restart` gives what there is to add. A build that fails leaves the plugin
/// as it is.
fn look_after(
    mut sources: Sources,
    builds: impl Fn() -> Option<bool>,
    mut restart: impl FnMut() -> Result<String, String>,
) {
    loop {
        thread::sleep(LOOK_INTERVAL);
        let now = fingerprints(&sources.folders);
        if now == sources.seen {
            continue;
        }
        say("a source has changed");
        // What is written while it builds is a further change.
        sources.seen = now;
        match builds() {
            Some(true) => {}
            Some(false) => {
                say("the build failed; the plugin runs on as it was");
                continue;
            }
            // The command ends.
            None => return,
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
    // Here, where its author reads it; the core would say it for a log.
    entry.ask()?;
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

/// Of the sources below `folder`, which may be a file: another one once a file is written, new, gone, or has another name.
///
/// What is hidden or made does not count, nor that it comes and goes beside them: editors and tests leave such things.
fn fingerprint(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Ok(found) = fs::symlink_metadata(folder) else { return 0 };
    folder.hash(&mut hasher);
    if !found.is_dir() {
        (found.len(), found.ino(), found.mtime(), found.mtime_nsec()).hash(&mut hasher);
        return hasher.finish();
    }
    let is_source = |name: &OsStr| {
        !name.as_encoded_bytes().starts_with(b".") && !NOT_SOURCES.iter().any(|other| name == *other)
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sources = entries.filter(|entry| is_source(&entry.file_name()));
    // In whatever order they are read.
    sources.fold(hasher.finish(), |sum, entry| sum.wrapping_add(fingerprint(&entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_a_change_of_the_sources() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            fs::write(path, text).expect("write");
        };
        write("src/a.py", "1");
        write("src/b.py", "1");
        let mut seen = vec![fingerprint(folder.path())];
        let mut look = |what: &str, is_change: bool| {
            let now = fingerprint(folder.path());
            assert_eq!(!seen.contains(&now), is_change, "{what}");
            seen.push(now);
        };
        look("nothing", false);
        write("src/.a.py.swp", "1");
        write("src/__pycache__/a.pyc", "1");
        write("target/debug/a", "1");
        write(".git/index", "1");
        look("what is no source", false);
        write("src/a.py", "12");
        look("a file that was written", true);
        write("src/c.py", "1");
        look("a new file", true);
        let moved = fs::rename(folder.path().join("src/b.py"), folder.path().join("src/a.py"));
        moved.expect("rename");
        look("an older file in the place of a newer one", true);
        fs::remove_dir_all(folder.path().join("src")).expect("remove");
        look("a folder that is gone", true);
    }
}
