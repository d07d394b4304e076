//! From an event to its consequences: [`step`] decides, this file carries out and tells.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use serde_json::json;

use crate::contact::CONNECT_RETRY_MIN;
use crate::discovery::Fingerprint;
use crate::plugin::{Fault, Pipe, PutOff};
use crate::process::{Exit, Process, Spec};
use crate::remains::CALLED_FROM;
use crate::socket::{Renewal, vacate_socket};
use crate::state::{Action, Event, Happening, State, step};
use crate::{Kept, Level, Phase, PluginView, Source, Stream, Supervisor, object, unix_ms};

/// What a client is told to wait when no better time is known.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// What helps where a start was put off for want of something...
const WANT_REMEDY: &str = "raise the daemon's limits (LimitNOFILE=, TasksMax=) or free memory";
/// ...or of a place for the socket.
const SOCKETS_REMEDY: &str = "let the daemon's user make the socket folder, with nothing else in its place; it is tried again by itself";

impl Supervisor {
    pub(crate) fn drive(&mut self, index: usize, event: Event) {
        if matches!(self.plugins[index].state, State::Running { .. }) && event == Event::Misbehaved {
            self.count_in_flight(index);
        }
        let plugin = &mut self.plugins[index];
        let now = Instant::now();
        let (state, actions) = step(now, &self.settings.adjustable.policy, plugin.want, plugin.state, event);
        let before = std::mem::replace(&mut plugin.state, state);
        if event == Event::ResetFailed {
            plugin.fault = None;
        } else if let State::Failed { failures } = state
            && !matches!(before, State::Failed { .. })
        {
            let why = plugin.reason.as_ref().or(plugin.last_exit.as_ref());
            let why = why.cloned().unwrap_or_else(|| "it failed".into());
            let content = self.fingerprints.get(&plugin.file).and_then(Fingerprint::content);
            plugin.fault = Some(Fault { why, failures, content });
            self.given_up.insert(plugin.metadata.id.clone());
        }
        if state != before {
            plugin.next_start_unix_ms = match state {
                // What the daemon itself was short of is no matter for its next run.
                State::Crashed { until, deferrals: 0, .. } => {
                    Some(unix_ms() + until.saturating_duration_since(now).as_millis() as u64)
                }
                _ => None,
            };
        }
        for action in actions {
            self.act(index, action, before);
        }
        self.keep(index);
        self.settle(index);
        if self.plugins[index].removed
            && !self.plugins[index].state.has_process()
            && !self.admissible.is_empty()
        {
            self.admit_waiting();
        }
    }

    /// Writes down how many requests the plugin takes along.
    ///
    /// Workers see a broken connection when the supervisor sees the end, or before, or after: what was on it stays counted
    /// as unanswered, so that it does not matter when either looks.
    pub(crate) fn count_in_flight(&mut self, index: usize) {
        let plugin = &mut self.plugins[index];
        if plugin.in_flight.is_none() {
            plugin.in_flight = Some(self.outlet.unanswered(index).saturating_sub(plugin.unanswered_before));
        }
    }

    /// Has written down what the next run of the daemon is to know, where that changed.
    pub(crate) fn keep(&mut self, index: usize) {
        let plugin = &self.plugins[index];
        // Its name may be another's by now; and that everything stops with the daemon is nothing to be known of a plugin.
        if plugin.removed || self.stopping {
            return;
        }
        let kept = Kept {
            enabled: plugin.enabled,
            restarts: plugin.restarts,
            restarted_unix_ms: plugin.restarted_unix_ms,
            failures: plugin.failures(),
            next_start_unix_ms: plugin.next_start_unix_ms,
            last_exit: plugin.last_exit.clone(),
            failed: plugin.fault.as_ref().map(|fault| fault.why.clone()),
            failed_content: plugin.fault.as_ref().and_then(|fault| fault.content),
        };
        let id = &plugin.metadata.id;
        if *self.settings.kept.get(id).unwrap_or(&Kept::fresh()) != kept {
            self.outlet.keep(id, &kept);
            self.settings.kept.insert(id.clone(), kept);
        }
    }

    fn act(&mut self, index: usize, action: Action, before: State) {
        match action {
            Action::Spawn => self.spawn(index),
            Action::Serve | Action::Withdraw => self.publish(index),
            Action::Ask => {
                self.note_children();
                self.ask(index);
            }
            Action::Terminate => {
                self.note_children();
                if let Some(process) = &self.plugins[index].process {
                    process.terminate();
                }
            }
            Action::Kill => {
                self.note_children();
                if let Some(process) = &self.plugins[index].process {
                    process.kill();
                }
            }
            Action::Record(happening) => self.record(index, happening, before),
        }
    }

    fn spawn(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        plugin.generation += 1;
        plugin.reason = None;
        plugin.fault = None;
        plugin.stop_cause = None;
        plugin.exit = None;
        plugin.in_flight = None;
        plugin.unanswered_before = self.outlet.unanswered(index);
        plugin.spawned_at = None;
        if let Some(metadata) = plugin.next_metadata.take() {
            plugin.metadata = Arc::new(metadata);
        }
        plugin.ping = plugin.ping.of_next_process();
        plugin.stderr_tail = Arc::default();
        if let Err(why) = self.renew_sockets_dir() {
            return self.defer_spawn(index, why, SOCKETS_REMEDY);
        }
        let plugin = &mut self.plugins[index];
        plugin.sockets_dir = self.sockets_dir.id();
        if let Err(reason) = vacate_socket(&plugin.socket) {
            return self.fail_spawn(index, reason, false);
        }
        let env = self.environment(Some(index));
        // Once it is ready, each takes one for the supervisor and one for each worker. Without a thought for those, plugins
        // that start together would leave none for clients.
        let starting =
            self.plugins.iter().filter(|plugin| matches!(plugin.state, State::Starting { .. })).count();
        let promised = starting * (1 + self.settings.workers);
        let plugin = &self.plugins[index];
        let settings = self.settings.adjustable.process.get(&plugin.metadata.id);
        let args: Vec<&str> = settings.iter().flat_map(|own| &own.args).map(String::as_str).collect();
        let spec = Spec {
            args: &args,
            cwd: settings.and_then(|own| own.cwd.as_deref()),
            nice: settings.and_then(|own| own.nice),
            memory_bytes_max: settings.and_then(|own| own.memory_bytes_max),
            open_files_max: settings.and_then(|own| own.open_files_max),
            promised,
            brand: self.marks.brand(Some(index)),
            ..Spec::new(&plugin.file, &env)
        };
        let (process, pipes) = match Process::spawn(&spec) {
            Ok(spawned) => spawned,
            Err(error) if error.starved => return self.defer_spawn(index, error.reason, WANT_REMEDY),
            Err(error) => return self.fail_spawn(index, error.reason, error.permanent),
        };
        let generation = plugin.generation;
        let watched =
            self.watch(&process, Source::Exit { index, generation }, epoll::EventFlags::IN).and_then(|_| {
                let stdout =
                    self.watch(&pipes.stdout, Source::Output { index, pipe: 0 }, epoll::EventFlags::IN)?;
                let stderr =
                    self.watch(&pipes.stderr, Source::Output { index, pipe: 1 }, epoll::EventFlags::IN)?;
                Ok([(pipes.stdout, stdout, Stream::Stdout), (pipes.stderr, stderr, Stream::Stderr)])
            });
        let plugin = &mut self.plugins[index];
        match watched {
            Ok(pipes) => {
                for (slot, (fd, token, stream)) in plugin.pipes.iter_mut().zip(pipes) {
                    *slot = Some(Pipe { fd, token, stream, partial: vec![], parts: 0 });
                }
            }
            Err(error) => {
                // An unwatched process cannot stay; the state machine hears of a spawn that was put off.
                process.abandon();
                let why = format!("cannot watch the new process: {error}");
                return self.defer_spawn(index, why, WANT_REMEDY);
            }
        }
        plugin.spawned_at = Some(now);
        plugin.connect_at = Some((now + CONNECT_RETRY_MIN, CONNECT_RETRY_MIN));
        plugin.count_start();
        let pid = process.pid();
        plugin.process = Some(process);
        let id = &plugin.metadata.id;
        self.outlet.record(id, "started", json!({ "pid": pid, "generation": generation }));
        let fields = object(json!({ "pid": pid, "generation": generation }));
        self.outlet.log(Level::Info, Some(id), "Plugin started", fields);
    }

    fn fail_spawn(&mut self, index: usize, reason: String, permanent: bool) {
        let plugin = &mut self.plugins[index];
        plugin.count_start();
        // The one before is no news any more.
        plugin.last_exit = Some(format!("not started: {reason}"));
        plugin.reason = Some(reason);
        self.drive(index, Event::SpawnFailed { permanent });
    }

    fn defer_spawn(&mut self, index: usize, why: String, remedy: &'static str) {
        let plugin = &mut self.plugins[index];
        plugin.put_off = Some(PutOff { why: why.clone(), remedy });
        plugin.reason = Some(why);
        self.drive(index, Event::SpawnDeferred);
    }

    /// Looks whether plugins may still be given sockets where they are to be, and makes the folder where it is gone: a
    /// cleaner of temporary files may have taken it, and whoever may write beside it may have put something in its place.
    ///
    /// Errors: they may not; in words, with what to do.
    fn renew_sockets_dir(&mut self) -> Result<(), String> {
        let path = &self.settings.sockets_dir;
        let (renewal, prepared) = self.sockets_dir.renew(path)?;
        let fields = || object(json!({ "folder": path.display().to_string() }));
        match renewal {
            Renewal::Same => {}
            Renewal::Made => {
                self.outlet.log(Level::Warn, None, "Socket folder was gone, made anew", fields())
            }
            Renewal::Another => {
                let message = "Socket folder is another one than before, used from now on";
                self.outlet.log(Level::Warn, None, message, fields());
            }
        }
        if let Some(mode) = prepared.mode_before {
            let mut fields = fields();
            fields.insert("mode".into(), format!("{mode:04o}").into());
            self.outlet.log(Level::Warn, None, "Socket folder was open to others, now closed", fields);
        }
        Ok(())
    }

    pub(crate) fn publish(&mut self, index: usize) {
        let now = Instant::now();
        let plugin = &self.plugins[index];
        let ended = plugin.ending.is_some();
        let phase = match plugin.state {
            State::Running { .. } if ended => Phase::Waiting { retry_after: RETRY_AFTER_MIN },
            State::Running { .. } => Phase::Serving,
            State::Starting { .. } => Phase::Waiting { retry_after: RETRY_AFTER_MIN },
            State::Crashed { until, .. } => {
                Phase::Waiting { retry_after: until.saturating_duration_since(now).max(RETRY_AFTER_MIN) }
            }
            State::Stopping { next_at, .. } => {
                Phase::Waiting { retry_after: next_at.saturating_duration_since(now).max(RETRY_AFTER_MIN) }
            }
            // It can be started at any time; clients of one that is disabled need not come back.
            State::Stopped if plugin.enabled && !plugin.removed => {
                Phase::Waiting { retry_after: RETRY_AFTER_MIN }
            }
            State::Stopped => Phase::Absent,
            State::Failed { .. } => Phase::GivenUp,
        };
        let generation = (plugin.state.has_process() && !ended).then_some(plugin.generation);
        let mut metadata = plugin.metadata.clone();
        if plugin.removed && !plugin.state.has_process() {
            // It gives up its names: nobody has this id or route any more.
            let of_nobody = Arc::make_mut(&mut metadata);
            of_nobody.id.clear();
            of_nobody.route.clear();
        }
        self.outlet.publish(Arc::new(PluginView {
            index,
            metadata,
            socket: plugin.socket.clone(),
            phase,
            generation,
            pid: generation.and(plugin.process.as_ref()).map(Process::pid),
        }));
    }

    fn record(&mut self, index: usize, happening: Happening, before: State) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        let id = plugin.metadata.id.clone();
        let uptime_ms = plugin.spawned_at.map(|at| now.saturating_duration_since(at).as_millis() as u64);
        let (failures, next_start_ms) = match plugin.state {
            State::Crashed { until, failures, .. } => {
                (failures, Some(until.saturating_duration_since(now).as_millis() as u64))
            }
            State::Failed { failures } => (failures, None),
            _ => (before.failures() + 1, None),
        };
        let exit = plugin.exit.as_ref().map(Exit::to_string);
        let pid = plugin.process.as_ref().map(Process::pid);
        let (kind, level, message, details) = match happening {
            Happening::Ready => {
                ("ready", Level::Info, "Plugin ready", json!({ "pid": pid, "startup_ms": uptime_ms }))
            }
            // One that waited for its next start, or for none, ends no run.
            Happening::Stopped if !before.has_process() => {
                ("stopped", Level::Info, "Plugin stopped", json!({ "reason": plugin.stop_cause.take() }))
            }
            Happening::Stopped => (
                "stopped",
                Level::Info,
                "Plugin stopped",
                json!({
                    "reason": plugin.stop_cause.take(), "exit": exit, "uptime_ms": uptime_ms,
                }),
            ),
            Happening::Crashed => (
                "crashed",
                Level::Error,
                "Plugin crashed",
                json!({
                    "exit": exit, "exit_code": plugin.exit.and_then(|exit| exit.code),
                    "signal": plugin.exit.and_then(|exit| exit.signal),
                    "core_dumped": plugin.exit.is_some_and(|exit| exit.core_dumped),
                    "reason": plugin.reason, "uptime_ms": uptime_ms, "in_flight": plugin.in_flight.unwrap_or(0),
                    "failures": failures, "next_start_ms": next_start_ms, "stderr": *plugin.stderr_tail,
                }),
            ),
            Happening::StartDeferred => (
                "start_deferred",
                Level::Error,
                "Plugin start deferred",
                json!({
                    "reason": plugin.reason, "next_start_ms": next_start_ms, "counts_as_crash": false,
                    "remedy": plugin.put_off.as_ref().map(|put_off| put_off.remedy),
                }),
            ),
            Happening::Restarting => (
                "restarting",
                Level::Info,
                "Plugin restarting",
                json!({ "failures": before.failures(), "restarts": plugin.restarts + 1 }),
            ),
            Happening::Unresponsive => (
                "unresponsive",
                Level::Warn,
                "Plugin unresponsive",
                json!({ "pid": pid, "reason": plugin.reason, "uptime_ms": uptime_ms }),
            ),
            Happening::DisabledAfterCrashes => (
                "disabled_after_crashes",
                Level::Error,
                "Plugin disabled after crashes",
                json!({
                    "exit": exit, "reason": plugin.reason, "failures": failures,
                    "stderr": *plugin.stderr_tail,
                    "remedy": "mend the plugin, then enable or restart it",
                }),
            ),
        };
        self.outlet.record(&id, kind, details.clone());
        if happening == Happening::DisabledAfterCrashes {
            self.notify(&id, kind, &details);
        }
        self.outlet.log(level, Some(&id), message, object(details));
    }

    pub(crate) fn environment(&self, plugin: Option<usize>) -> Vec<(OsString, OsString)> {
        // What steers the core, or lets somebody speak in its name, is not the plugins' business.
        const PRIVATE: [&str; 7] = [
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "WATCHDOG_PID",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_FDNAMES",
            "CREDENTIALS_DIRECTORY",
        ];
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(key, _)| {
                let key = key.to_string_lossy();
                !key.starts_with("TORU_") && !PRIVATE.contains(&&*key)
            })
            .collect();
        if let Some(index) = plugin
            && let Some(own) = self.settings.adjustable.process.get(&self.plugins[index].metadata.id)
        {
            // A later entry wins.
            env.extend(own.env.iter().map(|(key, value)| (key.into(), value.into())));
        }
        env.push(("TORU_INSTANCE_ID".into(), (&self.settings.instance_id).into()));
        if let Some(index) = plugin {
            let plugin = &self.plugins[index];
            env.push(("TORU_PLUGIN_SOCKET".into(), plugin.socket.as_os_str().to_owned()));
            env.push(("TORU_PLUGIN_ID".into(), (&plugin.metadata.id).into()));
        } else {
            env.push((CALLED_FROM.into(), self.settings.sockets_dir.as_os_str().to_owned()));
        }
        env
    }
}
