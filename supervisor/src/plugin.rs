//! One plugin as the supervisor holds it: what is wanted, what is, and everything that hangs on its process.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use toru_plugin_api::metadata::Metadata;

use crate::lifeline::Lifeline;
use crate::process::{Exit, Process};
use crate::remains::ProcessId;
use crate::socket::FolderId;
use crate::state::{Rung, State, Want};
use crate::{Kept, Order, OrderError, PluginStatus, Stream, unix_ms};

pub(crate) struct Plugin {
    pub index: usize,
    pub file: PathBuf,
    pub metadata: Arc<Metadata>,
    /// What a changed file says of itself; counts from the next process on.
    pub next_metadata: Option<Metadata>,
    pub socket: PathBuf,
    pub want: Want,
    pub enabled: bool,
    /// What was kept under its id when it came.
    pub found: Kept,
    /// Leaves the table when stopped: its file is gone or is another plugin now, or an earlier file has its id or route.
    pub removed: bool,
    pub state: State,
    pub generation: u64,
    pub process: Option<Process>,
    /// The process has ended, and what it left behind is on its way out; nobody has heard of it yet.
    pub ending: Option<Ending>,
    pub pipes: [Option<Pipe>; 2],
    pub lifeline: Option<Lifeline>,
    /// Next attempt to reach the plugin's socket, and the wait after that.
    pub connect_at: Option<(Instant, Duration)>,
    pub spawned_at: Option<Instant>,
    /// This daemon started it, or failed to.
    pub tried: bool,
    pub restarts: u64,
    /// When the last of them was, in milliseconds since 1970.
    pub restarted_unix_ms: Option<u64>,
    pub last_exit: Option<String>,
    /// What a start that was put off waits for; counts while it does.
    pub put_off: Option<PutOff>,
    /// The folder that its socket was to be made in.
    pub sockets_dir: Option<FolderId>,
    /// When the back-off of its last crash ends, in milliseconds since 1970.
    pub next_start_unix_ms: Option<u64>,
    /// How the newest process ended.
    pub exit: Option<Exit>,
    /// Requests that were with the plugin when its run came to an end, if it did.
    pub in_flight: Option<u64>,
    /// What [`crate::Outlet::unanswered`] gave before its newest process: what earlier ones took along.
    pub unanswered_before: u64,
    /// Why the last transition happened, where the state machine's event does not say it.
    pub reason: Option<String>,
    /// Why it was given up, until it starts again or is forgiven: an operator's stop does neither.
    pub fault: Option<Fault>,
    /// It was given up before it came, and whether it still holds is not known before its file has been read.
    pub unjudged: bool,
    /// Why somebody wants its process gone, until it is.
    pub stop_cause: Option<String>,
    pub ping: PingTally,
    /// Shared with whoever was shown it; a line more makes another of it then.
    pub stderr_tail: Arc<VecDeque<String>>,
    pub protocol_errors: VecDeque<Instant>,
    pub timeouts_unrecorded: u64,
    pub timeout_recorded_at: Option<Instant>,
    pub waiting: Vec<Waiting>,
}

/// Why a plugin was given up.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub why: String,
    /// Crashes in a row until then.
    pub failures: u32,
    /// A hash of what its file held then, once that is known.
    pub content: Option<u64>,
}

/// Why a start was put off, for no fault of the plugin's.
#[derive(Clone, Debug)]
pub(crate) struct PutOff {
    pub why: String,
    /// What somebody can do about it.
    pub remedy: &'static str,
}

/// Between the end of a plugin's process and the end of the last process that it left behind.
pub(crate) struct Ending {
    pub exit: Exit,
    /// Killed and not gone yet, with the token that tells of it.
    pub victims: HashMap<u64, OwnedFd>,
    /// Not to be killed by this user.
    pub spared: Vec<ProcessId>,
    /// Not every look so far was a quiet one.
    pub found_some: bool,
    /// Looks in a row that found nothing.
    pub quiet_looks: u32,
    pub look_at: Option<Instant>,
    pub give_up_at: Instant,
}

#[derive(Default)]
pub(crate) struct PingTally {
    /// Of the newest ping.
    pub seq: u64,
    /// Oldest first; those of a 1.1 plugin alone, as nothing else answers.
    sent: VecDeque<Ping>,
    /// Health checks whose ping was not answered, nor a later one.
    pub unanswered: u32,
    /// Checks in a row in which nothing listened at the socket.
    pub unreachable: u32,
    pub round_trip: Option<Duration>,
    /// To a 1.0 plugin, until it closes it.
    pub connection: Option<UnixStream>,
}

/// A ping whose answer may still come.
struct Ping {
    seq: u64,
    at: Instant,
    /// Whether it is a health check.
    counts: bool,
}

impl PingTally {
    /// Numbers go on, so that no answer can be taken for that of another process.
    pub fn of_next_process(&self) -> Self {
        Self { seq: self.seq, ..Self::default() }
    }

    /// Notes a ping that is about to be sent; gives its number. One that `counts` not is no health check.
    pub fn send(&mut self, now: Instant, counts: bool) -> u64 {
        self.seq += 1;
        if !counts {
            // However often a connection is renewed, one of these is kept.
            self.sent.retain(|ping| ping.counts);
        }
        self.sent.push_back(Ping { seq: self.seq, at: now, counts });
        self.unanswered += u32::from(counts);
        self.seq
    }

    /// Takes an answer. It may come after later pings were sent: whoever answers one of them lives, however slowly. One
    /// that no ping waits for says nothing.
    pub fn answered(&mut self, seq: u64, now: Instant) {
        let Some(position) = self.sent.iter().position(|ping| ping.seq == seq) else { return };
        self.round_trip = Some(now.saturating_duration_since(self.sent[position].at));
        // Pongs come in the order of their pings: what was passed over is answered, too.
        self.sent.drain(..=position);
        self.unanswered = self.sent.iter().filter(|ping| ping.counts).count() as u32;
    }
}

pub(crate) struct Pipe {
    pub fd: OwnedFd,
    pub token: u64,
    pub stream: Stream,
    pub partial: Vec<u8>,
    /// Of the line that `partial` belongs to, those that were handed on.
    pub parts: u64,
}

/// An operator waits for an order to be done.
pub(crate) struct Waiting {
    pub order: Order,
    /// Only a newer process counts as restarted.
    pub after_generation: u64,
    /// Nobody waits longer; a process in uninterruptible sleep may never end.
    pub until: Instant,
    pub done: Box<dyn FnOnce(Result<(), OrderError>) + Send>,
}

impl Plugin {
    /// Why an order is not done, for whoever gave it.
    pub fn waits_for(&self, now: Instant) -> String {
        let why = || self.reason.clone().or(self.last_exit.clone()).unwrap_or_else(|| "it failed".into());
        let pid = self.process.as_ref().map_or(0, Process::pid);
        match self.state {
            State::Failed { .. } => format!("it was given up: {}", why()),
            State::Crashed { until, deferrals, .. } => {
                let next = until.saturating_duration_since(now).as_millis();
                let what = if deferrals > 0 { "its start was put off" } else { "it crashed" };
                format!("{what}: {}; the next start is in {next} ms", why())
            }
            State::Starting { .. } => format!("it is starting: process {pid} has not said that it is ready"),
            State::Stopping { rung, .. } => {
                let sent = match rung {
                    Rung::Asked => "the shutdown message",
                    Rung::Terminated => "SIGTERM",
                    Rung::Killed => "SIGKILL",
                };
                format!("it is stopping: process {pid} was sent {sent} and has not ended")
            }
            State::Running { .. } => "it is running".into(),
            State::Stopped => "it is stopped".into(),
        }
    }

    /// Starts, or fails to: every time but the first is a restart. One that was only put off so far has not started.
    pub fn count_start(&mut self) {
        if std::mem::replace(&mut self.tried, true) {
            self.restarts += 1;
            self.restarted_unix_ms = Some(unix_ms());
        }
    }

    /// Crashes in a row so far; a stop of one that was given up forgives none.
    pub fn failures(&self) -> u32 {
        self.fault.as_ref().map_or(self.state.failures(), |fault| fault.failures)
    }

    pub fn status(&self, now: Instant) -> PluginStatus {
        PluginStatus {
            index: self.index,
            metadata: self.metadata.clone(),
            state: self.state.word(),
            enabled: self.enabled,
            pid: self.process.as_ref().map(Process::pid),
            socket: self.socket.clone(),
            uptime: self
                .process
                .as_ref()
                .and(self.spawned_at)
                .map(|spawned| now.saturating_duration_since(spawned)),
            restarts: self.restarts,
            restarted_unix_ms: self.restarted_unix_ms,
            failures: self.failures(),
            last_exit: match self.state {
                State::Crashed { deferrals: 1.., .. } => {
                    self.put_off.as_ref().map(|put_off| format!("start put off: {}", put_off.why))
                }
                _ => self.last_exit.clone(),
            },
            next_start: match self.state {
                State::Crashed { until, .. } => Some(until.saturating_duration_since(now)),
                _ => None,
            },
            ping: self.ping.round_trip,
            unanswered_pings: self.ping.unanswered,
            stderr: self.stderr_tail.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_late_is_an_answer_to_its_own_ping() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut tally = PingTally::default();
        // Each answer comes six seconds after its ping, and a ping each five.
        for second in [0, 5, 10, 15] {
            let seq = tally.send(at(second), true);
            assert!(tally.unanswered <= 2, "{}", tally.unanswered);
            if seq > 1 {
                tally.answered(seq - 1, at(second + 1));
                assert_eq!((tally.unanswered, tally.round_trip), (1, Some(Duration::from_secs(6))));
            }
        }
        // An answer counts once, and one that nobody asked for never.
        tally.answered(3, at(30));
        tally.answered(99, at(30));
        assert_eq!((tally.unanswered, tally.round_trip), (1, Some(Duration::from_secs(6))));
        // What comes with a new connection is no health check, and its answer stands for what was asked before.
        for second in 16..100 {
            tally.send(at(second), false);
        }
        assert_eq!((tally.unanswered, tally.sent.len()), (1, 2));
        tally.answered(tally.seq, at(100));
        assert_eq!((tally.unanswered, tally.sent.len()), (0, 0));
        for unanswered in 1..=3 {
            tally.send(at(200), true);
            assert_eq!(tally.unanswered, unanswered);
        }
    }
}
