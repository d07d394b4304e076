//! What a plugin's process should do next: the whole restart and stop policy, as one pure function.
//!
//! [`step`] takes what is wanted, what is, and what happened; it returns what is now and what to do.
//! It makes no system call, reads no clock and logs nothing, so that any history can be replayed from a list of events.
//! [`crate::Supervisor`] is its only caller: it turns pidfds, sockets and timers into [`Event`]s and carries out the [`Action`]s.
//!
//! What is wanted ([`Want`]) and what is ([`State`]) stay apart.
//! "Restart" is therefore no state: it is a stop whose plugin is still wanted up.
//! News of a process that has been replaced never reaches [`step`]: each spawn has a generation, and the caller drops older ones.

use std::time::{Duration, Instant};

/// How patient the supervisor is; every field comes from `[supervisor]` in the configuration.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Wait before the n-th restart in a row; the last entry repeats.
    pub backoff: Vec<Duration>,
    /// Crashes in a row after which the plugin is given up.
    pub restarts_max: u32,
    /// A run this long makes the next crash the first in a row again.
    pub stable_after: Duration,
    /// From spawn to ready.
    pub ready_timeout: Duration,
    /// From the shutdown message to SIGTERM.
    pub stop_grace: Duration,
    /// From SIGTERM to SIGKILL, and between repeated SIGKILLs.
    pub term_grace: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            backoff: [1, 2, 4, 8, 16].map(Duration::from_secs).to_vec(),
            restarts_max: 10,
            stable_after: Duration::from_secs(60),
            ready_timeout: Duration::from_secs(5),
            stop_grace: Duration::from_secs(5),
            term_grace: Duration::from_secs(2),
        }
    }
}

/// What the operator wants of a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    Up,
    Down,
}

/// What a plugin is. Each variant carries what exists only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process, and none is due.
    Stopped,
    /// A process exists and has not said that it is ready.
    Starting { ready_by: Instant, failures: u32 },
    /// The process is ready and its routes are served.
    Running { since: Instant, failures: u32 },
    /// No process; the next start waits for its back-off. `failures` is at least one.
    Crashed { until: Instant, failures: u32 },
    /// The process is on its way out.
    Stopping { rung: Rung, next_at: Instant, then: Then, failures: u32 },
    /// No process, and none until an operator says so.
    Failed,
}

/// How far up the ladder a stop has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// The shutdown message was sent.
    Asked,
    /// SIGTERM was sent.
    Terminated,
    /// SIGKILL was sent.
    Killed,
}

/// What the exit of a stopping process means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It was asked to go.
    Stop,
    /// It was killed because it misbehaved, which counts as a crash.
    Crash,
}

/// What happened to a plugin. All of it concerns the newest generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The want changed, or should be looked at for the first time.
    Wanted,
    /// An operator asks for a fresh process.
    RestartAsked,
    /// The process could not be made; `permanent` when trying again cannot help.
    SpawnFailed { permanent: bool },
    /// The plugin said that it is ready (1.0: took its init message).
    Ready,
    /// The process ended; `permanent` when starting it again cannot help (126, 127).
    Exited { permanent: bool },
    /// The plugin reported a failed init, hangs, or broke the protocol once too often.
    Misbehaved,
    /// The time that [`State::deadline`] gave has come.
    TimerExpired,
    /// An operator forgives what happened so far.
    ResetFailed,
}

/// What the caller must do now, in order.
#[must_use = "an action that is not carried out leaves the plugin in a state it is not in"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a process, with the next generation.
    Spawn,
    /// Let the workers send requests.
    Serve,
    /// Take the routes away from the workers, and fail what is in flight.
    Withdraw,
    /// Send the shutdown message.
    Ask,
    /// Send SIGTERM.
    Terminate,
    /// Send SIGKILL to the process group.
    Kill,
    /// Write it down in the audit trail.
    Record(Happening),
}

/// What the audit trail keeps; the words of `plugin_events.event_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    Ready,
    Stopped,
    Crashed,
    Restarting,
    Unresponsive,
    DisabledAfterCrashes,
}

impl State {
    /// When [`Event::TimerExpired`] is due, if nothing else happens before.
    pub fn deadline(&self, policy: &Policy) -> Option<Instant> {
        match *self {
            State::Stopped | State::Failed => None,
            State::Starting { ready_by, .. } => Some(ready_by),
            // Only a run that has something to forgive needs a timer.
            State::Running { since, failures } => (failures > 0).then(|| since + policy.stable_after),
            State::Crashed { until, .. } => Some(until),
            State::Stopping { next_at, .. } => Some(next_at),
        }
    }

    /// Whether a process exists in this state.
    pub fn has_process(&self) -> bool {
        match self {
            State::Starting { .. } | State::Running { .. } | State::Stopping { .. } => true,
            State::Stopped | State::Crashed { .. } | State::Failed => false,
        }
    }

    /// The word that status, console and logs use.
    pub fn word(&self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Starting { .. } => "starting",
            State::Running { .. } => "running",
            State::Crashed { .. } => "crashed",
            State::Stopping { .. } => "stopping",
            State::Failed => "failed",
        }
    }

    /// Crashes in a row so far.
    pub fn failures(&self) -> u32 {
        match *self {
            State::Stopped | State::Failed => 0,
            State::Starting { failures, .. }
            | State::Running { failures, .. }
            | State::Crashed { failures, .. }
            | State::Stopping { failures, .. } => failures,
        }
    }
}

/// One step of the policy.
///
/// Errors: none. A pair that cannot happen is a mistake of the caller: it asserts in debug builds and changes nothing in release builds,
/// since a supervisor that ends takes every healthy plugin with it.
pub fn step(now: Instant, policy: &Policy, want: Want, state: State, event: Event) -> (State, Vec<Action>) {
    use Action::*;
    match (state, event) {
        (State::Stopped, Event::Wanted | Event::RestartAsked | Event::ResetFailed) => match want {
            Want::Up => start(now, policy, 0, vec![]),
            Want::Down => (state, vec![]),
        },
        (
            State::Stopped,
            Event::SpawnFailed { .. }
            | Event::Ready
            | Event::Exited { .. }
            | Event::Misbehaved
            | Event::TimerExpired,
        ) => impossible(state, event),

        (State::Starting { failures, .. }, Event::Wanted) => match want {
            Want::Up => (state, vec![]),
            // Not ready: nobody is there to read a shutdown message.
            Want::Down => {
                (stopping(now + policy.term_grace, Rung::Terminated, Then::Stop, failures), vec![Terminate])
            }
        },
        (State::Starting { failures, .. }, Event::RestartAsked) => {
            (stopping(now + policy.term_grace, Rung::Terminated, Then::Stop, failures), vec![Terminate])
        }
        (
            State::Starting { failures, .. },
            Event::SpawnFailed { permanent } | Event::Exited { permanent },
        ) => crash(now, policy, want, failures, permanent, vec![]),
        (State::Starting { failures, .. }, Event::Ready) => {
            (State::Running { since: now, failures }, vec![Serve, Record(Happening::Ready)])
        }
        (State::Starting { failures, .. }, Event::Misbehaved | Event::TimerExpired) => (
            stopping(now + policy.term_grace, Rung::Killed, Then::Crash, failures),
            vec![Record(Happening::Unresponsive), Kill],
        ),
        (State::Starting { ready_by, .. }, Event::ResetFailed) => {
            (State::Starting { ready_by, failures: 0 }, vec![])
        }

        (State::Running { failures, .. }, Event::Wanted) => match want {
            Want::Up => (state, vec![]),
            Want::Down => {
                (stopping(now + policy.stop_grace, Rung::Asked, Then::Stop, failures), vec![Withdraw, Ask])
            }
        },
        (State::Running { failures, .. }, Event::RestartAsked) => {
            (stopping(now + policy.stop_grace, Rung::Asked, Then::Stop, failures), vec![Withdraw, Ask])
        }
        (State::Running { since, failures }, Event::Exited { permanent }) => {
            crash(now, policy, want, forgiven(now, policy, since, failures), permanent, vec![Withdraw])
        }
        (State::Running { since, failures }, Event::Misbehaved) => (
            stopping(
                now + policy.term_grace,
                Rung::Killed,
                Then::Crash,
                forgiven(now, policy, since, failures),
            ),
            vec![Withdraw, Record(Happening::Unresponsive), Kill],
        ),
        (State::Running { since, failures }, Event::TimerExpired) => {
            (State::Running { since, failures: forgiven(now, policy, since, failures) }, vec![])
        }
        (State::Running { since, .. }, Event::ResetFailed) => (State::Running { since, failures: 0 }, vec![]),
        (State::Running { .. }, Event::SpawnFailed { .. } | Event::Ready) => impossible(state, event),

        (State::Crashed { .. }, Event::Wanted) => match want {
            Want::Up => (state, vec![]),
            Want::Down => (State::Stopped, vec![Withdraw, Record(Happening::Stopped)]),
        },
        (State::Crashed { failures, .. }, Event::RestartAsked | Event::TimerExpired) => match want {
            Want::Up => start(now, policy, failures, vec![Record(Happening::Restarting)]),
            Want::Down => (State::Stopped, vec![Withdraw, Record(Happening::Stopped)]),
        },
        // The wait stays, so that forgiving is no way around the spawn rate; the next crash waits the first step again.
        (State::Crashed { until, .. }, Event::ResetFailed) => (State::Crashed { until, failures: 0 }, vec![]),
        (
            State::Crashed { .. },
            Event::SpawnFailed { .. } | Event::Ready | Event::Exited { .. } | Event::Misbehaved,
        ) => impossible(state, event),

        (State::Stopping { then: Then::Crash, failures, .. }, Event::Exited { permanent }) => {
            crash(now, policy, want, failures, permanent, vec![])
        }
        (State::Stopping { then: Then::Stop, failures, .. }, Event::Exited { .. }) => match want {
            Want::Up => start(now, policy, failures, vec![Record(Happening::Stopped)]),
            Want::Down => (State::Stopped, vec![Withdraw, Record(Happening::Stopped)]),
        },
        (State::Stopping { rung, then, failures, .. }, Event::TimerExpired) => match rung {
            Rung::Asked => {
                (stopping(now + policy.term_grace, Rung::Terminated, then, failures), vec![Terminate])
            }
            // A process in uninterruptible sleep survives SIGKILL for a while; ask again rather than forget it.
            Rung::Terminated | Rung::Killed => {
                (stopping(now + policy.term_grace, Rung::Killed, then, failures), vec![Kill])
            }
        },
        // The exit decides, by the want at that time.
        (State::Stopping { .. }, Event::Wanted | Event::RestartAsked | Event::Ready | Event::Misbehaved) => {
            (state, vec![])
        }
        (State::Stopping { rung, next_at, then, .. }, Event::ResetFailed) => {
            (State::Stopping { rung, next_at, then, failures: 0 }, vec![])
        }
        (State::Stopping { .. }, Event::SpawnFailed { .. }) => impossible(state, event),

        (State::Failed, Event::Wanted) => match want {
            Want::Up => (state, vec![]),
            Want::Down => (State::Stopped, vec![Record(Happening::Stopped)]),
        },
        (State::Failed, Event::RestartAsked | Event::ResetFailed) => match want {
            Want::Up => start(now, policy, 0, vec![]),
            Want::Down => (State::Stopped, vec![]),
        },
        (
            State::Failed,
            Event::SpawnFailed { .. }
            | Event::Ready
            | Event::Exited { .. }
            | Event::Misbehaved
            | Event::TimerExpired,
        ) => impossible(state, event),
    }
}

fn start(now: Instant, policy: &Policy, failures: u32, mut actions: Vec<Action>) -> (State, Vec<Action>) {
    actions.extend([Action::Withdraw, Action::Spawn]);
    (State::Starting { ready_by: now + policy.ready_timeout, failures }, actions)
}

fn stopping(next_at: Instant, rung: Rung, then: Then, failures: u32) -> State {
    State::Stopping { rung, next_at, then, failures }
}

fn crash(
    now: Instant,
    policy: &Policy,
    want: Want,
    failures: u32,
    permanent: bool,
    mut actions: Vec<Action>,
) -> (State, Vec<Action>) {
    let failures = failures + 1;
    let state = if want == Want::Down {
        State::Stopped
    } else if permanent || failures > policy.restarts_max {
        State::Failed
    } else {
        State::Crashed { until: now + backoff(policy, failures), failures }
    };
    actions.push(Action::Record(Happening::Crashed));
    if state == State::Failed {
        actions.push(Action::Record(Happening::DisabledAfterCrashes));
    }
    // Withdraw again: the answer to clients changes with the state (503 while waiting, 404 when given up).
    actions.push(Action::Withdraw);
    (state, actions)
}

fn forgiven(now: Instant, policy: &Policy, since: Instant, failures: u32) -> u32 {
    if now.saturating_duration_since(since) >= policy.stable_after { 0 } else { failures }
}

fn backoff(policy: &Policy, failures: u32) -> Duration {
    let step = (failures.max(1) - 1) as usize;
    policy.backoff.get(step).or(policy.backoff.last()).copied().unwrap_or(Duration::from_secs(1))
}

fn impossible(state: State, event: Event) -> (State, Vec<Action>) {
    debug_assert!(false, "{event:?} cannot happen in {state:?}");
    (state, vec![])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy() -> Policy {
        Policy::default()
    }

    #[test]
    fn a_monthly_crash_always_waits_the_first_step() {
        let policy = policy();
        let mut now = Instant::now();
        let mut state = State::Running { since: now, failures: 0 };
        for _ in 0..40 {
            now += Duration::from_secs(30 * 24 * 3600);
            (state, _) = step(now, &policy, Want::Up, state, Event::Exited { permanent: false });
            assert_eq!(state, State::Crashed { until: now + Duration::from_secs(1), failures: 1 });
            now += Duration::from_secs(1);
            (state, _) = step(now, &policy, Want::Up, state, Event::TimerExpired);
            (state, _) = step(now, &policy, Want::Up, state, Event::Ready);
        }
    }

    #[test]
    fn crashes_in_a_row_wait_longer_and_then_give_up() {
        let policy = policy();
        let mut now = Instant::now();
        let (mut state, _) = step(now, &policy, Want::Up, State::Stopped, Event::Wanted);
        let mut waits = vec![];
        loop {
            let (next, actions) = step(now, &policy, Want::Up, state, Event::Exited { permanent: false });
            match next {
                State::Crashed { until, .. } => {
                    waits.push((until - now).as_secs());
                    now = until;
                    (state, _) = step(now, &policy, Want::Up, next, Event::TimerExpired);
                }
                State::Failed => {
                    assert!(actions.contains(&Action::Record(Happening::DisabledAfterCrashes)));
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 16, 16, 16, 16, 16]);
    }

    #[test]
    fn the_stop_ladder_goes_up_one_rung_at_a_time() {
        let policy = policy();
        let t0 = Instant::now();
        let running = State::Running { since: t0, failures: 0 };
        let (state, actions) = step(t0, &policy, Want::Down, running, Event::Wanted);
        assert_eq!(actions, [Action::Withdraw, Action::Ask]);
        let t1 = state.deadline(&policy).expect("a stop has a timer");
        assert_eq!(t1 - t0, policy.stop_grace);
        let (state, actions) = step(t1, &policy, Want::Down, state, Event::TimerExpired);
        assert_eq!(actions, [Action::Terminate]);
        let t2 = state.deadline(&policy).expect("a stop has a timer");
        assert_eq!(t2 - t1, policy.term_grace);
        let (state, actions) = step(t2, &policy, Want::Down, state, Event::TimerExpired);
        assert_eq!(actions, [Action::Kill]);
        let (state, _) = step(t2 + MS, &policy, Want::Down, state, Event::Exited { permanent: false });
        assert_eq!(state, State::Stopped);
    }

    #[test]
    fn a_binary_that_cannot_run_is_given_up_at_once() {
        let policy = policy();
        let now = Instant::now();
        let (state, _) = step(now, &policy, Want::Up, State::Stopped, Event::Wanted);
        for event in [Event::SpawnFailed { permanent: true }, Event::Exited { permanent: true }] {
            assert_eq!(step(now, &policy, Want::Up, state, event).0, State::Failed);
        }
    }

    /// What the process table would say, driven by the actions alone.
    #[derive(Default)]
    struct World {
        process: bool,
        serving: bool,
    }

    #[derive(Clone, Debug)]
    enum Move {
        Want(bool),
        Restart,
        Reset,
        Exit(bool),
        Ready,
        Misbehave,
        Wait(u32),
    }

    fn moves() -> impl Strategy<Value = Vec<Move>> {
        let one = prop_oneof![
            any::<bool>().prop_map(Move::Want),
            Just(Move::Restart),
            Just(Move::Reset),
            any::<bool>().prop_map(Move::Exit),
            Just(Move::Ready),
            Just(Move::Misbehave),
            (0..20_000u32).prop_map(Move::Wait),
        ];
        proptest::collection::vec(one, 1..200)
    }

    proptest! {
        /// Any history: one process at most, a timer wherever one is needed, nothing served by a plugin that does not run.
        #[test]
        fn what_must_always_hold(history in moves()) {
            let policy = policy();
            let (mut now, mut want, mut state) = (Instant::now(), Want::Down, State::Stopped);
            let mut world = World::default();
            for one in history {
                let event = match one {
                    Move::Want(up) => { want = if up { Want::Up } else { Want::Down }; Event::Wanted }
                    Move::Restart => Event::RestartAsked,
                    Move::Reset => Event::ResetFailed,
                    Move::Exit(_) if !world.process => continue,
                    Move::Exit(permanent) => { world.process = false; Event::Exited { permanent } }
                    Move::Ready if matches!(state, State::Starting { .. } | State::Stopping { .. }) => Event::Ready,
                    Move::Ready => continue,
                    Move::Misbehave if world.process => Event::Misbehaved,
                    Move::Misbehave => continue,
                    Move::Wait(ms) => {
                        now += MS * ms;
                        match state.deadline(&policy) { Some(at) if at <= now => Event::TimerExpired, _ => continue }
                    }
                };
                let (next, actions) = step(now, &policy, want, state, event);
                for action in actions {
                    match action {
                        Action::Spawn => { prop_assert!(!world.process, "two processes"); world.process = true; }
                        Action::Serve => world.serving = true,
                        Action::Withdraw => world.serving = false,
                        Action::Terminate | Action::Kill | Action::Ask => prop_assert!(world.process, "signal to nobody"),
                        Action::Record(_) => {}
                    }
                }
                state = next;
                prop_assert_eq!(world.process, state.has_process());
                prop_assert_eq!(world.serving, matches!(state, State::Running { .. }));
                if matches!(state, State::Crashed { .. } | State::Starting { .. } | State::Stopping { .. }) {
                    prop_assert!(state.deadline(&policy).is_some());
                }
            }
        }
    }
}
