//! Whether a plugin is well: pings, its socket, broken frames, answers that did not come.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::json;
use toru_plugin_api::metadata::Protocol;

use crate::lifeline::{self, Lifeline};
use crate::socket::{FolderId, connect, has_socket, is_listened_at, may_listen};
use crate::state::{Event, State};
use crate::{Level, Supervisor, object, unix_ms};

/// So many protocol errors within [`PROTOCOL_ERROR_WINDOW`] count as a crash.
const PROTOCOL_ERRORS_MAX: usize = 3;
const PROTOCOL_ERROR_WINDOW: Duration = Duration::from_secs(60);

/// Whether the other side has neither closed the connection nor gone away.
fn is_open(stream: &UnixStream) -> bool {
    let mut poll = [PollFd::new(stream, PollFlags::RDHUP)];
    let _ = rustix::event::poll(&mut poll, Some(&Timespec::default()));
    !poll[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP)
}

/// Whether a signal has stopped the process.
fn is_stopped(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, which may hold anything, ends at the last parenthesis.
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T'))
}

impl Supervisor {
    /// Whether nobody can reach a plugin any more, through no fault of its own: the folder of its socket, which is now
    /// `sockets_dir`, was another one when it was started, and its socket is not in this one.
    pub(crate) fn lost_its_socket(&self, index: usize, sockets_dir: Option<FolderId>) -> bool {
        let plugin = &self.plugins[index];
        matches!(plugin.state, State::Starting { .. } | State::Running { .. })
            && plugin.ending.is_none()
            && plugin.sockets_dir != sockets_dir
            && !has_socket(&plugin.socket)
    }

    /// Gives a plugin whose socket lost its name a fresh process, and so a new socket. It is no crash.
    pub(crate) fn replace_unreachable(&mut self, index: usize) {
        let folder = self.settings.sockets_dir.display();
        let cause = format!("the socket folder {folder} was removed or replaced, and its socket with it");
        let plugin = &mut self.plugins[index];
        let fields = object(json!({ "reason": cause, "counts_as_crash": false }));
        let message = "Plugin restarted, as nobody can reach it any more";
        self.outlet.log(Level::Warn, Some(&plugin.metadata.id), message, fields);
        plugin.stop_cause = Some(cause);
        self.drive(index, Event::RestartAsked);
    }

    pub(crate) fn check_health(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        if plugin.ending.is_some() {
            return;
        }
        self.record_timeouts(index, now);
        let plugin = &mut self.plugins[index];
        self.outlet.account_output(&plugin.metadata.id, false);
        if plugin.ping.unanswered >= self.settings.adjustable.unanswered_pings {
            plugin.reason = Some(format!("{} pings in a row were not answered", plugin.ping.unanswered));
            return self.drive(index, Event::Misbehaved);
        }
        // A plugin may answer pings on the connection that it has, and take no new ones from the workers.
        if plugin.metadata.protocol == Protocol::V1_1 {
            let listening = has_socket(&plugin.socket)
                && match lifeline::connect(&plugin.socket) {
                    Ok(_) => true,
                    Err(error) => may_listen(&error),
                };
            plugin.ping.unreachable = if listening { 0 } else { plugin.ping.unreachable + 1 };
            if plugin.ping.unreachable >= self.settings.adjustable.unanswered_pings {
                let checks = plugin.ping.unreachable;
                plugin.reason = Some(format!("nothing listened at its socket in {checks} checks in a row"));
                return self.drive(index, Event::Misbehaved);
            }
        }
        // A 1.0 plugin takes one connection after the other: a ping that waits behind requests says nothing yet, and more
        // of them would fill its backlog. If its listener goes, so does the connection.
        if plugin.ping.connection.as_ref().is_some_and(is_open) {
            if plugin.metadata.protocol == Protocol::V1_0 {
                self.check_busy(index);
            }
            return;
        }
        plugin.ping.connection = None;
        match plugin.metadata.protocol {
            Protocol::V1_1 => {
                let seq = plugin.ping.send(now, true);
                if let Some(lifeline) = &mut plugin.lifeline {
                    lifeline.send_ping(seq, unix_ms());
                    self.flush_lifeline(index);
                }
            }
            // No answer comes: a connection and a written ping are all that health can mean.
            Protocol::V1_0 => {
                plugin.ping.seq += 1;
                plugin.ping.unanswered += 1;
                let metadata = plugin.metadata.clone();
                match connect(&plugin.socket) {
                    Ok(Ok(stream)) => {
                        let kept = stream.try_clone().ok();
                        let mut lifeline = Lifeline::new(stream, &metadata, self.settings.frame_bytes_max);
                        lifeline.send_ping(plugin.ping.seq, unix_ms());
                        if lifeline.flush().is_ok() {
                            plugin.ping.unanswered = 0;
                            plugin.ping.round_trip = Some(now.elapsed());
                            // One that reads to the end finds it, and the other direction tells when it has closed.
                            plugin.ping.connection =
                                kept.filter(|stream| stream.shutdown(Shutdown::Write).is_ok());
                        }
                    }
                    Ok(Err(error)) if may_listen(&error) => plugin.ping.unanswered = 0,
                    Ok(Err(_)) | Err(_) => {}
                }
            }
        }
    }

    /// Looks at a 1.0 plugin that has not taken its last ping, or keeps the connection that it came on. That may be long
    /// work, unless the process is stopped or nothing listens any more.
    fn check_busy(&mut self, index: usize) {
        let plugin = &mut self.plugins[index];
        if plugin.process.as_ref().is_some_and(|process| is_stopped(process.pid())) {
            plugin.ping.unanswered += 1;
        }
        let checks_max = self.settings.adjustable.unanswered_pings;
        let listens = has_socket(&plugin.socket) && is_listened_at(&plugin.socket);
        plugin.ping.unreachable = if listens { 0 } else { plugin.ping.unreachable + 1 };
        if plugin.ping.unreachable >= checks_max {
            plugin.reason =
                Some("nothing listened at its socket, and it kept the connection of a ping".to_owned());
            self.drive(index, Event::Misbehaved);
        }
    }

    pub(crate) fn on_protocol_error(&mut self, index: usize, generation: u64, reason: String, fatal: bool) {
        let now = Instant::now();
        let plugin = &mut self.plugins[index];
        let id = plugin.metadata.id.clone();
        let details = json!({ "reason": reason, "generation": generation });
        self.outlet.record(&id, "protocol_error", details.clone());
        self.outlet.log(Level::Error, Some(&id), "Plugin broke the protocol", object(details));
        if !fatal
            || plugin.generation != generation
            || !matches!(plugin.state, State::Starting { .. } | State::Running { .. })
        {
            return;
        }
        plugin.protocol_errors.retain(|&at| now.saturating_duration_since(at) < PROTOCOL_ERROR_WINDOW);
        plugin.protocol_errors.push_back(now);
        if plugin.protocol_errors.len() >= PROTOCOL_ERRORS_MAX {
            plugin.protocol_errors.clear();
            plugin.reason =
                Some(format!("broke the protocol {PROTOCOL_ERRORS_MAX} times within a minute: {reason}"));
            self.drive(index, Event::Misbehaved);
        }
    }

    /// One event a second at most, with the count: a plugin that hangs under load must not flood the audit trail.
    pub(crate) fn record_timeouts(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        // Nobody looks again at one that has no process.
        let recently = |at: Instant| now.saturating_duration_since(at) < Duration::from_secs(1);
        if plugin.timeouts_unrecorded == 0
            || (plugin.process.is_some() && plugin.timeout_recorded_at.is_some_and(recently))
        {
            return;
        }
        plugin.timeout_recorded_at = Some(now);
        let count = std::mem::take(&mut plugin.timeouts_unrecorded);
        let details = json!({ "count": count });
        self.outlet.record(&plugin.metadata.id, "request_timeout", details.clone());
        self.outlet.log(Level::Warn, Some(&plugin.metadata.id), "Request timed out", object(details));
    }
}
