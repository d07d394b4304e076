//! Every system call on a process: spawn, signal, wait.
//!
//! Nothing else in Toru spawns, signals or reaps: two reapers would lose exit codes.
//! A process is held by its pidfd, and reaped only through it, so that no signal can reach a recycled pid.
//! Called from the supervisor's thread alone: the parent-death signal follows the *thread* that spawned (prctl(2)).

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{SigSet, Signal as SignalName};
use rustix::fs::Mode;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process_group, pidfd_open,
    pidfd_send_signal, set_parent_process_death_signal, umask, waitid,
};

/// What to run.
pub(crate) struct Spec<'a> {
    pub program: &'a Path,
    pub args: &'a [&'a str],
    /// The whole environment; nothing is inherited beyond it.
    pub env: &'a [(OsString, OsString)],
}

/// A child that has not been reaped.
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

/// The ends of a child's pipes that the supervisor reads; non-blocking.
pub(crate) struct Pipes {
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
}

impl Process {
    /// Starts `spec` in a process group of its own.
    ///
    /// Errors: the file cannot be executed (permanent), or the system is out of something (not permanent).
    pub fn spawn(spec: &Spec<'_>) -> Result<(Process, Pipes), SpawnError> {
        check_format(spec.program)?;
        let supervisor = getpid();
        let mut command = Command::new(spec.program);
        command
            .args(spec.args)
            .env_clear()
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // JUSTIFICATION: std has no safe call for the parent-death signal or the umask of a child.
        // SAFETY: the closure runs between fork and exec and makes four system calls (prctl, getppid, umask,
        // rt_sigprocmask) through rustix and nix; it allocates nothing, takes no lock and touches no memory shared with another thread.
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
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|error| SpawnError::from_io(spec.program, &error))?;
        let pid = Pid::from_child(&child);
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            unreachable!("both pipes were asked for above");
        };
        let pipes = Pipes { stdout: stdout.into(), stderr: stderr.into() };
        let ready = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
            rustix::io::ioctl_fionbio(&pipes.stdout, true)?;
            rustix::io::ioctl_fionbio(&pipes.stderr, true)?;
            Ok(pidfd)
        });
        match ready {
            Ok(pidfd) => Ok((Process { pid, pidfd }, pipes)),
            Err(error) => {
                // Out of descriptors: without a pidfd the child cannot be watched, so it must not stay.
                let _ = child.kill();
                let _ = child.wait();
                Err(SpawnError { reason: format!("cannot watch the new process: {error}"), permanent: false })
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

    /// Kills the process and waits for its end, which SIGKILL makes prompt.
    pub fn end(&self) {
        self.kill();
        let _ = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
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
        Some(Exit {
            code: status.exit_status(),
            signal: status.terminating_signal(),
            core_dumped: status.dumped(),
        })
    }
}

impl AsFd for Process {
    /// Readable when the process has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
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
    // What cannot be read may still be run, and what is not there is told by the spawn.
    let Ok(found) = header(program) else { return Ok(()) };
    if found.starts_with(b"#!") {
        return Ok(());
    }
    let refuse =
        |why: &str| Err(SpawnError { reason: format!("{} {why}", program.display()), permanent: true });
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
    fn from_io(program: &Path, error: &io::Error) -> Self {
        use nix::libc::{EACCES, ELOOP, ENOENT, ENOEXEC, ENOTDIR, EPERM};
        let (reason, permanent) = match error.raw_os_error() {
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
            Some(ENOENT | ENOTDIR | ELOOP) => ("is gone".into(), true),
            _ => (format!("could not be started: {error}"), false),
        };
        Self { reason: format!("{} {reason}", program.display()), permanent }
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
    use rustix::event::{PollFd, PollFlags, poll};

    fn env() -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())]
    }

    fn run(args: &[&str]) -> Exit {
        let env = env();
        let (process, _pipes) =
            Process::spawn(&Spec { program: Path::new("/bin/sh"), args, env: &env }).expect("sh runs");
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
                let refused = Process::spawn(&Spec { program: path, args: &[], env: &env });
                let error = refused.err().expect("cannot run");
                // Another test's fork may hold the file open for writing until its exec.
                if !error.reason.contains("busy") {
                    return error;
                }
            }
        };
        assert!(spawn(&path).reason.ends_with("is gone"));
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
    fn the_group_goes_with_its_leader() {
        let env = env();
        let args = ["-c", "sleep 1000 & echo $!; exit 0"];
        let (process, pipes) =
            Process::spawn(&Spec { program: Path::new("/bin/sh"), args: &args, env: &env }).expect("sh runs");
        wait(&process);
        // End of file means that the last holder of the pipe, the orphan, is gone.
        rustix::io::ioctl_fionbio(&pipes.stdout, false).expect("ioctl");
        let mut said = String::new();
        io::Read::read_to_string(&mut std::fs::File::from(pipes.stdout), &mut said).expect("read");
        assert!(said.trim().parse::<u32>().is_ok(), "{said:?}");
    }
}
