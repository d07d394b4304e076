//! Every system call on a process: spawn, signal, wait.
//!
//! Nothing else in Toru spawns, signals or reaps: two reapers would lose exit codes.
//! A process is held by its pidfd, and reaped only through it, so that no signal can reach a recycled pid.
//! Called from the supervisor's thread alone: the parent-death signal follows the *thread* that spawned (prctl(2)).
//! Whoever else runs a program in this process does it by a [`Helper`].
//!
//! The daemon is the subreaper of what its plugins leave behind: whoever loses its parent becomes a child of the daemon.
//! [`CHILDREN`] tells those from what was spawned here; whose they are is decided in `remains`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as SignalName};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpid, getppid, getrlimit,
    kill_process_group, pidfd_open, pidfd_send_signal, set_child_subreaper, set_parent_process_death_signal,
    setpriority_process, setrlimit, umask, waitid,
};

use crate::remains::ProcessId;

/// Every child that was spawned here and is not reaped. Whoever else has this process as its parent is an orphan that
/// was adopted.
///
/// One thread uses it, and who waits for a [`Helper`], so the lock is nearly always free; tests run several supervisors in
/// one process.
/// It is held over a whole spawn: a child that is not listed yet must not pass for an orphan.
static CHILDREN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The limit on open files that the daemon was started with, where it raised its own.
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// What std carries from a child that could not become the program is an errno and nothing else.
/// These steps therefore fail with one of their own, which execve(2) never gives.
const NICE_FAILED: Errno = Errno::DOM;
const LIMIT_FAILED: Errno = Errno::RANGE;

/// Prepares the whole process for children: SIGCHLD waits for the supervisor, descriptors that the daemon was started
/// with end with it, and it may open as many files as its hard limit allows, while its plugins get the soft limit that it
/// was started with.
///
/// Call it once, before the first thread: a signal mask reaches only threads that come later, and descriptors must not
/// come and go meanwhile.
/// Errors: the system refuses the signal mask. Without the call orphans are reaped at the next health check instead of
/// at once.
pub fn prepare() -> io::Result<()> {
    let mut child = SigSet::empty();
    child.add(SignalName::SIGCHLD);
    child.thread_block()?;
    keep_from_children();
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, maximum: found.maximum };
    if OPEN_FILES.set(found).is_ok() {
        // A kernel may refuse an infinite one; then the limit stays as it was.
        let _ = setrlimit(Resource::Nofile, raised);
    }
    Ok(())
}

/// Closes on exec what the daemon inherited beyond its standard streams; std opens nothing else that a child would get.
fn keep_from_children() {
    // Without /proc no plugin could be looked after either, and the supervisor says so.
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    for number in open.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        if number <= 2 {
            continue;
        }
        // JUSTIFICATION: nothing in this process owns these, so there is no safe handle to ask through.
        // SAFETY: the descriptor is open: the kernel just listed it, and no other thread is there to close it.
        let inherited = unsafe { BorrowedFd::borrow_raw(number) };
        let _ = rustix::io::fcntl_setfd(inherited, rustix::io::FdFlags::CLOEXEC);
    }
}

/// Becomes the parent of every orphan below this process, and tells of every child that ends.
pub(crate) fn adopt_orphans() -> io::Result<SignalFd> {
    set_child_subreaper(Some(getpid()))?;
    let mut child = SigSet::empty();
    child.add(SignalName::SIGCHLD);
    Ok(SignalFd::with_flags(&child, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// Whether children can be given any limit on file locks: not if this process was given one, and may not raise it.
pub(crate) fn may_brand() -> bool {
    let without = Rlimit { current: None, maximum: None };
    getrlimit(Resource::Locks).maximum.is_none() || setrlimit(Resource::Locks, without).is_ok()
}

/// What to run.
#[derive(Clone, Copy)]
pub(crate) struct Spec<'a> {
    pub program: &'a Path,
    pub args: &'a [&'a str],
    /// The whole environment; nothing is inherited beyond it.
    pub env: &'a [(OsString, OsString)],
    /// The daemon's own if there is none.
    pub cwd: Option<&'a Path>,
    /// From -20 (first) to 19 (last).
    pub nice: Option<i32>,
    /// Address space.
    pub memory_bytes_max: Option<u64>,
    pub open_files_max: Option<u64>,
    /// The limit on file locks, by which `remains` knows the process and all that descends from it.
    pub brand: Option<u64>,
    /// Whether its standard input is a pipe to be written to, instead of nothing.
    pub takes_input: bool,
    /// Descriptors of ours that others were promised and do not have yet.
    pub promised: usize,
}

impl<'a> Spec<'a> {
    /// Without arguments and without any limit of its own.
    pub fn new(program: &'a Path, env: &'a [(OsString, OsString)]) -> Self {
        Self {
            program,
            args: &[],
            env,
            cwd: None,
            nice: None,
            memory_bytes_max: None,
            open_files_max: None,
            brand: None,
            takes_input: false,
            promised: 0,
        }
    }
}

/// A child that has not been reaped.
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// The supervisor's ends of a child's pipes; non-blocking.
pub(crate) struct Pipes {
    pub stdin: Option<OwnedFd>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A process that could not be made.
#[derive(Debug)]
pub(crate) struct SpawnError {
    /// In words an operator can act on.
    pub reason: String,
    /// Trying again cannot help until somebody changes the file.
    pub permanent: bool,
    /// Somebody is still writing the file; in a moment it may run.
    pub busy: bool,
    /// The daemon or the system is out of something: no fault of the file's.
    pub starved: bool,
}

impl Process {
    /// Starts `spec` in a process group of its own.
    ///
    /// Errors: the file cannot be executed or what was set for it cannot be had (permanent), or the system is out of
    /// something (not permanent).
    pub fn spawn(spec: &Spec<'_>) -> Result<(Process, Pipes), SpawnError> {
        check_descriptors(spec.promised)?;
        check_format(spec.program)?;
        if let Some(cwd) = spec.cwd {
            check_cwd(cwd)?;
        }
        let supervisor = getpid();
        let nice = spec.nice;
        let memory = spec.memory_bytes_max.map(fixed);
        let brand = spec.brand.map(fixed);
        let open_files = spec.open_files_max.map(fixed).or_else(|| OPEN_FILES.get().copied());
        let mut command = Command::new(spec.program);
        command
            .args(spec.args)
            .env_clear()
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(if spec.takes_input { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        if let Some(cwd) = spec.cwd {
            command.current_dir(cwd);
        }
        // JUSTIFICATION: std has no safe call for the parent-death signal, the umask, the limits or the niceness of a
        // child.
        // SAFETY: the closure runs between fork and exec and makes system calls alone (prctl, getppid, umask,
        // rt_sigprocmask, setpriority, setrlimit) through rustix and nix, on numbers that it owns; it allocates
        // nothing, takes no lock and touches no memory shared with another thread.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // The parent may have died before the line above; nobody would tell this child.
                if getppid() != Some(supervisor) {
                    return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
                }
                // A 1.0 plugin binds its socket with the modes that the umask leaves; others never get access.
                umask(Mode::RWXG | Mode::RWXO);
                // The daemon blocks the signals that it waits for, and a mask outlives exec: a plugin that inherited
                // it would be deaf to SIGTERM.
                SigSet::empty().thread_set_mask()?;
                if let Some(nice) = nice {
                    setpriority_process(None, nice).map_err(|_| NICE_FAILED)?;
                }
                if let Some(limit) = open_files {
                    setrlimit(Resource::Nofile, limit).map_err(|_| LIMIT_FAILED)?;
                }
                if let Some(limit) = brand {
                    // Where it cannot be had the environment still tells.
                    let _ = setrlimit(Resource::Locks, limit);
                }
                if let Some(limit) = memory {
                    setrlimit(Resource::As, limit).map_err(|_| LIMIT_FAILED)?;
                }
                Ok(())
            });
        }
        let mut children = children();
        let mut child = command.spawn().map_err(|error| SpawnError::from_io(spec, &error))?;
        let pid = Pid::from_child(&child);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both pipes were asked for above");
        };
        let pipes = Pipes {
            stdin: child.stdin.take().map(OwnedFd::from),
            stdout: stdout.into(),
            stderr: stderr.into(),
        };
        let ready = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
            for pipe in [Some(&pipes.stdout), Some(&pipes.stderr), pipes.stdin.as_ref()].into_iter().flatten()
            {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            Ok(pidfd)
        });
        match ready {
            Ok(pidfd) => {
                children.insert(raw(pid));
                Ok((Process { pid, pidfd }, pipes))
            }
            Err(error) => {
                // Out of descriptors: without a pidfd the child cannot be watched, so it must not stay.
                let _ = child.kill();
                let _ = child.wait();
                let reason = format!("cannot watch the new process: {error}");
                Err(SpawnError { reason, permanent: false, busy: false, starved: true })
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// SIGTERM to the whole process group: a shell hears its signals only once the program that it runs has ended.
    pub fn terminate(&self) {
        // ESRCH: it exited meanwhile; its pidfd says so next.
        let _ = kill_process_group(self.pid, Signal::TERM);
    }

    /// SIGKILL to the whole process group. The pid is not reaped yet, so the group is still this plugin's.
    pub fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Kills the process and lets go of it: its end is reaped with the orphans', whenever that is.
    pub fn abandon(self) {
        self.kill();
        children().remove(&raw(self.pid));
    }

    /// Takes the exit status if the process has ended, and what is left of its group with it.
    ///
    /// Call until it gives `Some`, then drop the process.
    pub fn reap(&self) -> Option<Exit> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended = waitid(WaitId::PidFd(self.pidfd.as_fd()), peek).ok().flatten().is_some();
        if !ended {
            return None;
        }
        // The leader is a zombie and holds its pid, so the group id cannot belong to a stranger yet.
        let _ = kill_process_group(self.pid, Signal::KILL);
        let status = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
            .ok()??;
        children().remove(&raw(self.pid));
        Some(Exit {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            core_dumped: status.dumped(),
        })
    }
}

/// A program that runs beside a supervisor in its process and is none of its plugins: it is not taken for what a plugin
/// has left behind. It has a process group of its own, and ends with its handle.
#[derive(Debug)]
pub struct Helper {
    /// Its standard streams are there as the command asked for them.
    pub child: Child,
    is_reaped: bool,
}

impl Helper {
    /// Errors: as [`Command::spawn`].
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut children = children();
        let child = command.process_group(0).spawn()?;
        children.insert(raw(Pid::from_child(&child)));
        Ok(Self { child, is_reaped: false })
    }

    /// Its exit status once it has ended. Errors: as [`Child::try_wait`].
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let mut children = children();
        let found = self.child.try_wait()?;
        if found.is_some() && !self.is_reaped {
            children.remove(&raw(Pid::from_child(&self.child)));
            self.is_reaped = true;
        }
        Ok(found)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if !self.is_reaped {
            // It holds its pid, and so its group, until it is reaped.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let mut children = children();
            let _ = self.child.wait();
            children.remove(&raw(Pid::from_child(&self.child)));
        }
    }
}

/// Takes from the kernel every orphan of `zombies` that was adopted by this process.
pub(crate) fn reap_orphans(zombies: impl Iterator<Item = i32>) {
    let children = children();
    for pid in zombies.filter(|pid| !children.contains(pid)) {
        // An adopted zombie keeps its pid until this line, so it cannot be somebody else's.
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

/// The pids of the children that were spawned here, reaped ones left out.
pub(crate) fn spawned_here() -> BTreeSet<i32> {
    children().clone()
}

/// Sends SIGKILL to the process that `id` names, and never to another that got its pid meanwhile.
///
/// Gives a descriptor that is readable once it has ended, or `None` if it is gone already.
/// Errors: it belongs to a user whom this one may not signal, or there are no descriptors left.
pub(crate) fn kill_exactly(id: ProcessId) -> rustix::io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(id.pid) else { return Ok(None) };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The pid may have been given to a stranger before it was opened; from here on the descriptor holds on to it.
    if ProcessId::read(id.pid) != Some(id) {
        return Ok(None);
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) => Ok(Some(pidfd)),
        Err(Errno::SRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until all of `pidfds` have ended, `patience` at most.
pub(crate) fn wait_for_ends(pidfds: &[OwnedFd], patience: Duration) {
    let until = Instant::now() + patience;
    for pidfd in pidfds {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let _ = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&left));
    }
}

fn children() -> MutexGuard<'static, BTreeSet<i32>> {
    CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn raw(pid: Pid) -> i32 {
    pid.as_raw_nonzero().get()
}

/// A limit that the process cannot raise again.
fn fixed(limit: u64) -> Rlimit {
    Rlimit { current: Some(limit), maximum: Some(limit) }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// Refuses to take the last descriptors for one more process: health checks, logs and the store need some, too.
fn check_descriptors(promised: usize) -> Result<(), SpawnError> {
    // A spawn takes seven for a moment and three for good; the rest is what everything else may need meanwhile.
    const KEPT: u64 = 14;
    let kept = KEPT + promised as u64;
    let Some(limit) = getrlimit(Resource::Nofile).current else { return Ok(()) };
    // Numbers are given from the lowest up, so a free one near the limit has free ones above it. Only where it is taken
    // somebody has to count.
    let near = limit.saturating_sub(kept).try_into().unwrap_or(i32::MAX);
    let probe = io::stderr();
    if rustix::io::fcntl_dupfd_cloexec(probe, near).is_ok_and(|free| free.as_raw_fd() == near) {
        return Ok(());
    }
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
    if open.saturating_add(kept) < limit {
        return Ok(());
    }
    let reason = format!("the daemon has {open} of its {limit} descriptors in use, and keeps the rest");
    Err(SpawnError { reason, permanent: false, busy: false, starved: true })
}

/// Refuses a working directory that cannot be entered: std gives the same error for that as for the program itself.
fn check_cwd(cwd: &Path) -> Result<(), SpawnError> {
    let entered = match std::fs::metadata(cwd) {
        Ok(found) if !found.is_dir() => Err(Errno::NOTDIR.into()),
        Ok(_) => rustix::fs::access(cwd, rustix::fs::Access::EXEC_OK).map_err(io::Error::from),
        Err(error) => Err(error),
    };
    entered.map_err(|error| SpawnError {
        reason: format!("its working directory {} cannot be entered: {error}", cwd.display()),
        permanent: true,
        busy: false,
        starved: false,
    })
}

/// Refuses what the kernel would refuse.
///
/// The C library hides that refusal: it hands the file to `/bin/sh` instead, which runs a text file line by line, and
/// makes of a program for another machine a shell's complaint about its first bytes.
fn check_format(program: &Path) -> Result<(), SpawnError> {
    // Of the ELF header: magic, class and byte order, and at 18 the machine.
    const MACHINE: std::ops::Range<usize> = 18..20;
    let header = |path: &Path| -> io::Result<[u8; 20]> {
        let mut bytes = [0; 20];
        let mut file = std::fs::File::open(path)?;
        let mut filled = 0;
        while filled < bytes.len() {
            match io::Read::read(&mut file, &mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(bytes)
    };
    // A bare name is looked up in PATH, and a file of that name here is another one.
    if program.components().count() == 1 && program.is_relative() {
        return Ok(());
    }
    // What cannot be read may still be run, and what is not there is told by the spawn.
    let Ok(found) = header(program) else { return Ok(()) };
    if found.starts_with(b"#!") {
        return Ok(());
    }
    let refuse = |why: &str| {
        Err(SpawnError {
            reason: format!("{} {why}", program.display()),
            permanent: true,
            busy: false,
            starved: false,
        })
    };
    if !found.starts_with(b"\x7fELF") {
        return refuse("is neither a program for this machine nor a script that starts with #!");
    }
    let Ok(own) = header(Path::new("/proc/self/exe")) else { return Ok(()) };
    // 64-bit kernels run the 32-bit programs of their own family: i386 on x86-64, Arm on AArch64.
    let kin = matches!((own[18], found[18]), (62, 3) | (183, 40));
    if found[MACHINE] != own[MACHINE] && !kin {
        return refuse("is a program for another processor; build it for this machine");
    }
    Ok(())
}

impl SpawnError {
    fn from_io(spec: &Spec<'_>, error: &io::Error) -> Self {
        use nix::libc::{
            E2BIG, EACCES, EAGAIN, ELOOP, EMFILE, ENFILE, ENOENT, ENOEXEC, ENOMEM, ENOTDIR, EPERM, ETXTBSY,
        };
        let program = spec.program;
        let code = error.raw_os_error();
        let nice = spec.nice.unwrap_or_default();
        let (reason, permanent) = match code {
            Some(_) if code == Some(NICE_FAILED.raw_os_error()) => {
                (format!("cannot run with `nice` {nice}: only root may go below the daemon's own"), true)
            }
            Some(_) if code == Some(LIMIT_FAILED.raw_os_error()) => (
                "cannot run with its limits: only root may set one above the daemon's own (ulimit -H)".into(),
                true,
            ),
            Some(E2BIG) => ("gets more arguments and environment than the system allows".into(), true),
            Some(EACCES | EPERM) => (
                "is not executable; set the run bit with chmod +x (or its file system is mounted noexec)"
                    .into(),
                true,
            ),
            Some(ENOEXEC) => {
                ("is neither a program for this machine nor a script that starts with #!".into(), true)
            }
            Some(ENOENT | ENOTDIR | ELOOP) if program.exists() => {
                ("names an interpreter that does not exist; look at its first line".into(), true)
            }
            Some(ENOENT | ENOTDIR | ELOOP) => ("is not there".into(), true),
            Some(EAGAIN | EMFILE | ENFILE | ENOMEM) => {
                (format!("not started for want of descriptors, processes or memory: {error}"), false)
            }
            _ => (format!("could not be started: {error}"), false),
        };
        Self {
            reason: format!("{} {reason}", program.display()),
            permanent,
            busy: code == Some(ETXTBSY),
            starved: matches!(code, Some(EAGAIN | EMFILE | ENFILE | ENOMEM)),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub core_dumped: bool,
}

impl Exit {
    /// Why another start cannot help, if that is what the exit code says.
    pub fn permanent(&self) -> Option<&'static str> {
        match self.code {
            Some(126) => Some("exit code 126: what it should run is not executable"),
            Some(127) => Some("exit code 127: what it should run was not found"),
            _ => None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "exit code {code}")?,
            (None, Some(signal)) => match SignalName::try_from(signal) {
                Ok(name) => write!(f, "killed by {name}")?,
                Err(_) => write!(f, "killed by signal {signal}")?,
            },
            (None, None) => write!(f, "ended in an unknown way")?,
        }
        if self.core_dumped { write!(f, ", core dumped") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())]
    }

    fn run(args: &[&str]) -> Exit {
        let env = env();
        let spec = Spec { args, ..Spec::new(Path::new("/bin/sh"), &env) };
        let (process, _pipes) = Process::spawn(&spec).expect("sh runs");
        wait(&process)
    }

    fn wait(process: &Process) -> Exit {
        poll(&mut [PollFd::new(process, PollFlags::IN)], None).expect("poll");
        process.reap().expect("a readable pidfd has an exit status")
    }

    #[test]
    fn exits_are_told_in_words() {
        assert_eq!(run(&["-c", "exit 3"]).to_string(), "exit code 3");
        assert_eq!(run(&["-c", "kill -TERM $$"]).to_string(), "killed by SIGTERM");
        assert!(run(&["-c", "exit 127"]).permanent().is_some());
        assert!(run(&["-c", "exit 1"]).permanent().is_none());
    }

    #[test]
    fn a_child_hears_the_signals_that_its_parent_blocks() {
        let mut blocked = SigSet::empty();
        blocked.add(SignalName::SIGTERM);
        blocked.thread_block().expect("block");
        let exit = run(&["-c", "kill -TERM $$; exit 7"]);
        blocked.thread_unblock().expect("unblock");
        assert_eq!(exit.to_string(), "killed by SIGTERM");
    }

    #[test]
    fn what_cannot_run_says_why() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("x.binary");
        let spawn = |path: &Path| {
            let env = env();
            loop {
                let refused = Process::spawn(&Spec::new(path, &env));
                let error = refused.err().expect("cannot run");
                // Another test's fork may hold the file open for writing until its exec.
                if !error.busy {
                    return error;
                }
            }
        };
        assert!(spawn(&path).reason.ends_with("is not there"));
        std::fs::write(&path, "#!/bin/sh\n").expect("write");
        let error = spawn(&path);
        assert!(error.permanent && error.reason.contains("chmod +x"), "{error:?}");
        std::fs::write(&path, "no program").expect("write");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("chmod");
        let error = spawn(&path);
        assert!(error.permanent && error.reason.contains("#!"), "{error:?}");
        std::fs::write(&path, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0 for RISC-V")
            .expect("write");
        let error = spawn(&path);
        assert!(error.permanent && error.reason.contains("processor"), "{error:?}");
        std::fs::write(&path, "#!/no/such/interpreter\n").expect("write");
        let error = spawn(&path);
        assert!(error.permanent && error.reason.contains("interpreter"), "{error:?}");
    }

    #[test]
    fn a_working_directory_that_cannot_be_entered_is_told_as_that() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let env = env();
        let refused = |cwd: &Path| {
            let spec = Spec { cwd: Some(cwd), ..Spec::new(Path::new("/bin/sh"), &env) };
            let error = Process::spawn(&spec).err().expect("cannot be entered");
            assert!(error.permanent && error.reason.contains(&*cwd.to_string_lossy()), "{error:?}");
            error.reason
        };
        assert!(
            refused(&dir.path().join("gone"))
                .ends_with("cannot be entered: No such file or directory (os error 2)")
        );
        let (file, closed) = (dir.path().join("file"), dir.path().join("closed"));
        std::fs::write(&file, "").expect("write");
        assert!(refused(&file).ends_with("cannot be entered: Not a directory (os error 20)"));
        std::fs::create_dir(&closed).expect("folder");
        std::fs::set_permissions(&closed, std::os::unix::fs::PermissionsExt::from_mode(0o000))
            .expect("chmod");
        // Nothing is closed to root.
        if !rustix::process::geteuid().is_root() {
            assert!(refused(&closed).ends_with("cannot be entered: Permission denied (os error 13)"));
        }
    }

    #[test]
    fn the_group_goes_with_its_leader() {
        let env = env();
        let args = ["-c", "sleep 1000 & echo $!; exit 0"];
        let spec = Spec { args: &args, ..Spec::new(Path::new("/bin/sh"), &env) };
        let (process, pipes) = Process::spawn(&spec).expect("sh runs");
        wait(&process);
        // End of file means that the last holder of the pipe, the orphan, is gone.
        rustix::io::ioctl_fionbio(&pipes.stdout, false).expect("ioctl");
        let mut said = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(pipes.stdout), &mut said).expect("read");
        assert!(said.trim().parse::<u32>().is_ok(), "{said:?}");
    }
}
