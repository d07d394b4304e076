//! Telling somebody outside: `notify.command`, run once for an event, with the event as JSON on its standard input.
//!
//! Driven by the supervisor's loop like a metadata call: a command that hangs, reads nothing or writes without end delays
//! nobody, and is killed when its time is up.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use rustix::event::epoll;
use serde_json::{Value, json};
use toru_plugin_api::time::{as_str, rfc3339_millis};

use crate::process::{Exit, Process, Spec};
use crate::{Level, Source, Supervisor, object, unix_ms};

/// What is kept of its standard error, to explain a failure.
const STDERR_BYTES_KEPT: usize = 1024;

/// One run of the command.
pub(crate) struct Notice {
    id: u64,
    process: Process,
    stdin: Option<OwnedFd>,
    outputs: [Option<OwnedFd>; 2],
    input: Vec<u8>,
    written: usize,
    complained: Vec<u8>,
    deadline: Instant,
}

impl Notice {
    /// `command` is the program and its arguments; a name without a slash is looked up in `PATH`.
    ///
    /// Errors: it cannot be run; in words.
    pub fn start(
        id: u64,
        command: &[String],
        env: &[(OsString, OsString)],
        brand: Option<u64>,
        input: Vec<u8>,
        deadline: Instant,
    ) -> Result<Self, String> {
        let Some((program, args)) = command.split_first() else { return Err("it is empty".into()) };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let spec = Spec { args: &args, brand, takes_input: true, ..Spec::new(Path::new(program), env) };
        let (process, pipes) = Process::spawn(&spec).map_err(|error| error.reason)?;
        Ok(Self {
            id,
            process,
            stdin: pipes.stdin,
            outputs: [Some(pipes.stdout), Some(pipes.stderr)],
            input,
            written: 0,
            complained: vec![],
            deadline,
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to watch for reading, and what for writing: each of them wants [`Notice::advance`].
    pub fn fds(&self) -> (impl Iterator<Item = BorrowedFd<'_>>, Option<BorrowedFd<'_>>) {
        let outputs = self.outputs.iter().flatten().map(AsFd::as_fd);
        (std::iter::once(self.process.as_fd()).chain(outputs), self.stdin.as_ref().map(AsFd::as_fd))
    }

    /// Writes and reads what it can. Gives how the command ended once it has: in words if it failed.
    pub fn advance(&mut self, scratch: &mut [u8]) -> Option<Result<(), String>> {
        while let Some(stdin) = &self.stdin {
            match rustix::io::write(stdin, &self.input[self.written..]) {
                Ok(count) => self.written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                // It need not read what it does not want to know.
                Err(_) => self.written = self.input.len(),
            }
            if self.written == self.input.len() {
                self.stdin = None;
            }
        }
        let exit = self.process.reap();
        for (index, output) in self.outputs.iter_mut().enumerate() {
            // Bounded: an endless writer is met again on the next turn of the loop.
            for _ in 0..4 {
                let Some(fd) = output else { break };
                match rustix::io::read(&*fd, &mut *scratch) {
                    Ok(0) => *output = None,
                    Ok(count) if index == 1 => {
                        let room = STDERR_BYTES_KEPT.saturating_sub(self.complained.len());
                        self.complained.extend_from_slice(&scratch[..count.min(room)]);
                    }
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(_) => break,
                }
            }
        }
        exit.map(|exit| match exit {
            Exit { code: Some(0), .. } => Ok(()),
            exit => {
                let complained = String::from_utf8_lossy(&self.complained);
                let wrote = match complained.trim() {
                    "" => String::new(),
                    said => format!("; it wrote: {said}"),
                };
                Err(format!("it ended with {exit}{wrote}"))
            }
        })
    }

    /// Ends a command that takes too long.
    pub fn abandon(self) {
        self.process.abandon();
    }
}

/// Notifications on their way at once; beyond it one is dropped, with a line in the log.
const NOTICES_MAX: usize = 16;

impl Supervisor {
    /// Runs the command that tells somebody outside of an event.
    pub(crate) fn notify(&mut self, plugin_id: &str, kind: &str, details: &Value) {
        if self.settings.adjustable.notify_command.is_empty() || self.stopping {
            return;
        }
        if self.notices.len() >= NOTICES_MAX {
            return self.tell_of_notice("too many are on their way");
        }
        let timestamp = rfc3339_millis(unix_ms());
        let event = json!({
            "timestamp": as_str(&timestamp), "plugin_id": plugin_id, "event_type": kind, "details": details,
        });
        let input = format!("{event}\n").into_bytes();
        let id = self.next_token;
        let command = &self.settings.adjustable.notify_command;
        let deadline = Instant::now() + self.settings.notify_timeout;
        let notice = match Notice::start(
            id,
            command,
            &self.environment(None),
            self.marks.brand(None),
            input,
            deadline,
        ) {
            Ok(notice) => notice,
            Err(why) => return self.tell_of_notice(&why),
        };
        let watched = {
            let (reading, writing) = notice.fds();
            let reading = reading.map(|fd| (fd, epoll::EventFlags::IN));
            let mut fds = reading.chain(writing.map(|fd| (fd, epoll::EventFlags::OUT)));
            fds.try_for_each(|(fd, flags)| self.watch(fd, Source::Notice { id }, flags).map(drop))
        };
        self.notices.push(notice);
        if let Err(error) = watched {
            let position = self.notices.len() - 1;
            self.end_notice(position, Err(format!("cannot watch it: {error}"))).abandon();
        }
    }

    pub(crate) fn on_notice(&mut self, id: u64) {
        let Some(position) = self.notices.iter().position(|notice| notice.id() == id) else { return };
        if let Some(outcome) = self.notices[position].advance(&mut self.scratch) {
            drop(self.end_notice(position, outcome));
        }
    }

    pub(crate) fn end_notice(&mut self, position: usize, outcome: Result<(), String>) -> Notice {
        let notice = self.notices.swap_remove(position);
        let id = notice.id();
        self.sources.retain(|_, source| !matches!(source, Source::Notice { id: other } if *other == id));
        if let Err(why) = outcome {
            self.tell_of_notice(&why);
        }
        // What it left behind is nobody's from now on.
        self.reap_at.get_or_insert(self.reap_again_at);
        notice
    }

    fn tell_of_notice(&self, why: &str) {
        let fields = object(json!({ "command": self.settings.adjustable.notify_command, "reason": why }));
        self.outlet.log(Level::Error, None, "Notification failed", fields);
    }
}
