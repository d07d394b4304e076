//! Looking for plugins: which files there are, and what each says of itself.
//!
//! A [`Probe`] is one `PLUGIN --metadata` call on its way: bounded in time and output, and driven by the supervisor's
//! loop like everything else, so that a file that hangs delays no other.
//! [`look`] reads whole files to tell whether they changed, and therefore runs on a thread of its own.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use toru_plugin_api::metadata::Metadata;

use crate::process::{Exit, Process, SpawnError, Spec};

/// Standard output of a plugin's metadata call, at most.
const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Room in `sockaddr_un`, less the NUL at the end.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Read at once of a file that may have changed.
const CHUNK_BYTES: u64 = 256 * 1024;
/// What is kept of a failed call's standard error, to explain it.
const STDERR_BYTES_KEPT: usize = 1024;

/// What bears the name of a plugin, each in name order.
#[derive(Default)]
pub(crate) struct Found {
    pub files: Vec<PathBuf>,
    /// What is no file, and what it is instead.
    pub unfit: Vec<(PathBuf, String)>,
}

/// All that is called `*.binary` in `folder`.
///
/// Errors: the folder cannot be read; a missing one is empty, since a fresh machine has none.
pub(crate) fn find(folder: &Path) -> io::Result<Found> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::default()),
        Err(error) => return Err(error),
    };
    // A relative path would be looked up in PATH, or change its meaning with the working directory.
    let folder = std::path::absolute(folder)?;
    let mut found = Found::default();
    for entry in entries {
        let name = entry?.file_name();
        let path = folder.join(&name);
        if path.extension().is_none_or(|extension| extension != "binary") {
            continue;
        }
        match what_else(&path) {
            None => found.files.push(path),
            Some(reason) => found.unfit.push((path, reason)),
        }
    }
    found.files.sort();
    found.unfit.sort();
    Ok(found)
}

/// What `path` is, if it leads to no file. Opens nothing: a pipe would wait for whoever writes to it.
fn what_else(path: &Path) -> Option<String> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => None,
        Ok(found) if found.is_dir() => Some("it is a folder and no program".into()),
        Ok(_) => Some("it is a pipe, a socket or a device and no program".into()),
        Err(error) if path.is_symlink() => Some(format!("its symbolic link leads to nothing: {error}")),
        Err(error) => Some(format!("it cannot be looked at: {error}")),
    }
}

/// What a file is, so that a later look can tell whether it is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// While this is the same, nothing has been written, and the file need not be read again.
    stamp: Stamp,
    /// Of the whole content. `None` for a file that may be run but not read: its stamp alone counts.
    ///
    /// SipHash from std, 64 bits: what has to be told apart are builds of one program, by accident the same in one of
    /// 2^64 cases. Nobody who may write here has to be kept from making two files that look alike.
    content: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of the last write, and of the last change of any kind, which cannot be set back.
    times: [i64; 4],
}

impl Stamp {
    /// What differs once a file has been written or replaced.
    fn writing(&self) -> (u64, u64, u64, [i64; 2]) {
        (self.device, self.inode, self.size, [self.times[0], self.times[1]])
    }
}

/// A file as a look found it.
#[derive(Debug)]
pub(crate) struct Looked {
    pub file: PathBuf,
    /// `None` if it went away meanwhile.
    pub fingerprint: Option<Fingerprint>,
    /// Its content is not what it was at the last look; true for a file that was not there.
    pub changed: bool,
}

/// What a look at the folder found.
#[derive(Debug)]
pub(crate) struct Look {
    pub files: Vec<Looked>,
    /// As [`Found::unfit`].
    pub unfit: Vec<(PathBuf, String)>,
}

/// The `*.binary` files in `folder`, and which of them changed since they were `known`. Reads every file that may have.
///
/// Errors: the folder cannot be read, or is gone.
pub(crate) fn look(folder: &Path, known: &HashMap<PathBuf, Fingerprint>) -> io::Result<Look> {
    // A folder that vanished is a mistake to be told, and no order to stop everything.
    std::fs::metadata(folder)?;
    let Found { files, unfit } = find(folder)?;
    let files = files
        .into_iter()
        .map(|file| {
            let before = known.get(&file);
            let fingerprint = fingerprint(&file, before).ok();
            let changed = match (&fingerprint, before) {
                (Some(now), Some(before)) => {
                    let same_content = match before.content {
                        Some(content) => now.content == Some(content),
                        // Not read before, which is so for the moment between the start and the first look: a new
                        // name or mode is no new content.
                        None => now.stamp.writing() == before.stamp.writing(),
                    };
                    now.stamp != before.stamp && !same_content
                }
                (now, before) => now.as_ref() != before,
            };
            Looked { file, fingerprint, changed }
        })
        .collect();
    Ok(Look { files, unfit })
}

impl Fingerprint {
    /// Without reading the file: it counts as unchanged until it is written or replaced.
    pub fn of_stamp(path: &Path) -> io::Result<Self> {
        let found = std::fs::metadata(path)?;
        let times = [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()];
        let stamp = Stamp { device: found.dev(), inode: found.ino(), size: found.size(), times };
        Ok(Self { stamp, content: None })
    }

    /// A hash of the whole content, if it has been read.
    pub fn content(&self) -> Option<u64> {
        self.content
    }
}

fn fingerprint(path: &Path, before: Option<&Fingerprint>) -> io::Result<Fingerprint> {
    // Before the content: what is written meanwhile is found at the next look.
    let Fingerprint { stamp, .. } = Fingerprint::of_stamp(path)?;
    if let Some(before) = before.filter(|before| before.stamp == stamp && before.content.is_some()) {
        return Ok(*before);
    }
    // With the keys that std fixes for this hasher, two looks give the same, also of two runs of one toru. A later std may
    // hash otherwise: then all that was given up is tried once more.
    let mut hasher = std::hash::DefaultHasher::new();
    let mut read_all = || -> io::Result<u64> {
        let mut file = File::open(path)?;
        let mut chunk = vec![];
        while (&mut file).take(CHUNK_BYTES).read_to_end(&mut chunk)? > 0 {
            hasher.write(&chunk);
            chunk.clear();
        }
        Ok(hasher.finish())
    };
    Ok(Fingerprint { stamp, content: read_all().ok() })
}

/// One metadata call.
pub(crate) struct Probe {
    id: u64,
    file: PathBuf,
    /// Until it has ended, or was given up.
    process: Option<Process>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    said: Vec<u8>,
    complained: Vec<u8>,
    /// There was more before it.
    is_cut: bool,
    deadline: Instant,
    /// How long it has from the start to the deadline.
    patience: Duration,
    outcome: Option<Outcome>,
}

enum Outcome {
    Exited(Exit),
    TooMuch,
    TooSlow,
}

impl Probe {
    /// Errors: the file cannot be run.
    pub fn start(
        id: u64,
        file: PathBuf,
        env: &[(OsString, OsString)],
        brand: Option<u64>,
        deadline: Instant,
    ) -> Result<Self, SpawnError> {
        let spec = Spec { args: &["--metadata"], brand, ..Spec::new(&file, env) };
        let (process, pipes) = Process::spawn(&spec)?;
        Ok(Self {
            id,
            file,
            process: Some(process),
            stdout: Some(pipes.stdout),
            stderr: Some(pipes.stderr),
            said: vec![],
            complained: vec![],
            is_cut: false,
            deadline,
            patience: deadline.saturating_duration_since(Instant::now()),
            outcome: None,
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to watch: whichever of these is readable wants [`Probe::advance`].
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pipes = [&self.stdout, &self.stderr].into_iter().flatten().map(|fd| fd.as_fd());
        self.process.iter().map(|process| process.as_fd()).chain(pipes)
    }

    /// Reads what is there; whether the call is over.
    pub fn advance(&mut self, scratch: &mut [u8]) -> bool {
        if self.outcome.is_some() {
            return true;
        }
        let exit = self.process.as_ref().and_then(Process::reap);
        // After the exit nothing new comes, so one more round takes all that is left in the pipes.
        read_all(&mut self.stdout, scratch, &mut self.said, METADATA_BYTES_MAX + 1);
        read_all(&mut self.stderr, scratch, &mut self.complained, usize::MAX);
        // The last of it: a traceback ends with what it is about.
        let excess = self.complained.len().saturating_sub(STDERR_BYTES_KEPT);
        self.complained.drain(..excess);
        self.is_cut |= excess > 0;
        if self.said.len() > METADATA_BYTES_MAX {
            if exit.is_none() {
                self.give_up();
            }
            self.outcome = Some(Outcome::TooMuch);
        } else if let Some(exit) = exit {
            self.outcome = Some(Outcome::Exited(exit));
        }
        self.outcome.is_some()
    }

    /// Ends the call, which was too slow.
    pub fn expire(&mut self) {
        if self.outcome.is_none() {
            self.give_up();
            self.outcome = Some(Outcome::TooSlow);
        }
    }

    fn give_up(&mut self) {
        if let Some(process) = self.process.take() {
            process.abandon();
        }
    }

    /// Whether its time was up. Call after the call is over.
    pub fn is_too_slow(&self) -> bool {
        matches!(self.outcome, Some(Outcome::TooSlow) | None)
    }

    /// What the file says of itself. Call after [`Probe::advance`] gave true, or after [`Probe::expire`].
    ///
    /// Errors: in words, naming the field where there is one.
    pub fn finish(self) -> Result<Metadata, String> {
        let complained = String::from_utf8_lossy(&self.complained);
        // From the beginning of a line, if there is one.
        let whole_lines =
            complained.split_once('\n').filter(|(_, rest)| self.is_cut && !rest.trim().is_empty());
        let complained = match whole_lines.map_or(&*complained, |(_, rest)| rest).trim() {
            "" => String::new(),
            said if self.is_cut => format!("; it wrote, in the end: {said}"),
            said => format!("; it wrote: {said}"),
        };
        match self.outcome {
            Some(Outcome::Exited(Exit { code: Some(0), .. })) if self.said.trim_ascii().is_empty() => {
                Err(format!("--metadata printed nothing{complained}"))
            }
            Some(Outcome::Exited(Exit { code: Some(0), .. })) => {
                Metadata::parse(&self.said).map_err(|error| format!("--metadata: {error}{complained}"))
            }
            Some(Outcome::Exited(exit @ Exit { code: Some(_), .. })) => {
                Err(format!("--metadata ended with {exit}{complained}"))
            }
            Some(Outcome::Exited(exit)) => Err(format!("--metadata was {exit}{complained}")),
            Some(Outcome::TooMuch) => Err(format!("--metadata printed more than {METADATA_BYTES_MAX} bytes")),
            Some(Outcome::TooSlow) | None => {
                // Rounded, since the start itself took a little of it.
                let within = self.patience.as_millis().div_ceil(100) as f64 / 10.0;
                Err(format!("--metadata did not end in time, which is {within} s{complained}"))
            }
        }
    }
}

/// Asks every plugin in `folder` for its metadata, all at once, and judges the answers as a start with sockets in
/// `sockets_dir` would.
///
/// In name order, each file with its metadata, or with why it would be skipped: in words.
/// Errors: the folder is not there or cannot be read.
pub fn check(
    folder: &Path,
    sockets_dir: &Path,
    timeout: Duration,
) -> io::Result<Vec<(PathBuf, Result<Metadata, String>)>> {
    // Whoever asks about a folder expects one; a start would find no plugin and go on.
    std::fs::metadata(folder)?;
    let env: Vec<_> = std::env::vars_os().collect();
    let deadline = Instant::now() + timeout;
    let mut running = vec![];
    let mut judged: BTreeMap<PathBuf, Result<Metadata, String>> = BTreeMap::new();
    let Found { files, unfit } = find(folder)?;
    judged.extend(unfit.into_iter().map(|(file, reason)| (file, Err(reason))));
    for file in files {
        match Probe::start(0, file.clone(), &env, None, deadline) {
            Ok(probe) => running.push(probe),
            Err(error) => drop(judged.insert(file, Err(error.reason))),
        }
    }
    let mut scratch = vec![0; METADATA_BYTES_MAX];
    while !running.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds: Vec<PollFd<'_>> = running
            .iter()
            .flat_map(Probe::fds)
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let wait = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut fds, Some(&wait));
        drop(fds);
        for position in (0..running.len()).rev() {
            if Instant::now() >= deadline {
                running[position].expire();
            }
            if running[position].advance(&mut scratch) {
                let probe = running.swap_remove(position);
                judged.insert(probe.file().to_owned(), probe.finish());
            }
        }
    }
    let mut taken: Vec<(PathBuf, String, String)> = vec![];
    for (file, outcome) in &mut judged {
        let Ok(metadata) = &*outcome else { continue };
        if let Err(reason) = socket_path(sockets_dir, &metadata.id) {
            *outcome = Err(reason);
            continue;
        }
        let holder = taken.iter().find(|(_, id, route)| *id == metadata.id || *route == metadata.route);
        if let Some((holder, id, _)) = holder {
            let what = if *id == metadata.id { "id" } else { "route" };
            *outcome = Err(format!("field `{what}`: already taken by {}", holder.display()));
        } else {
            taken.push((file.clone(), metadata.id.clone(), metadata.route.clone()));
        }
    }
    Ok(judged.into_iter().collect())
}

/// The socket of the plugin `id`.
///
/// Errors: no socket can have so long a path, in words.
pub(crate) fn socket_path(sockets_dir: &Path, id: &str) -> Result<PathBuf, String> {
    let socket = sockets_dir.join(format!("{id}.sock"));
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let shown = socket.display();
        return Err(format!("its socket path {shown} is longer than {SOCKET_PATH_BYTES_MAX} bytes"));
    }
    Ok(socket)
}

/// Appends what the pipe holds, keeping at most `max` bytes; closes the pipe at its end.
fn read_all(pipe: &mut Option<OwnedFd>, scratch: &mut [u8], into: &mut Vec<u8>, max: usize) {
    // Bounded by rounds as well: an endless writer is met again on the next turn of the loop.
    for _ in 0..4 {
        let Some(fd) = pipe else { return };
        match rustix::io::read(fd, &mut *scratch) {
            Ok(0) => *pipe = None,
            Ok(count) => {
                let room = max.saturating_sub(into.len());
                into.extend_from_slice(&scratch[..count.min(room)]);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
