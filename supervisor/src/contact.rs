//! Reaching a plugin and talking with it: from the first connect to its socket over `init` to the shutdown message.
//!
//! The bytes are `lifeline`'s; whether the plugin is well is `health`'s.

use std::fs;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use serde_json::json;
use toru_plugin_api::metadata::Protocol;

use crate::lifeline::{self, Lifeline, Said};
use crate::socket::{connect, is_our_want};
use crate::state::{Event, State};
use crate::{Command, Level, Source, Supervisor, Underway, object, unix_ms};

/// Between attempts to reach the socket of a starting plugin: from the first to the last of these.
pub(crate) const CONNECT_RETRY_MIN: Duration = Duration::from_millis(2);
const CONNECT_RETRY_MAX: Duration = Duration::from_millis(50);
/// Of the reason that a plugin gives for its failed `init`.
const FAILURE_BYTES_MAX: usize = 4096;

impl Supervisor {
    /// Tries to reach the socket of a starting plugin, and hands it its `init`; or renews a lost lifeline.
    pub(crate) fn reach(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        let Some((_, wait)) = plugin.connect_at.take() else { return };
        let starting = matches!(plugin.state, State::Starting { .. });
        if !starting && !matches!(plugin.state, State::Running { .. }) {
            return;
        }
        let stream = match connect(&plugin.socket) {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                let wait = (wait * 2).min(CONNECT_RETRY_MAX);
                plugin.connect_at = Some((now + wait, wait));
                if starting && is_our_want(&error) {
                    plugin.reason = Some(format!("not reached for want of descriptors or memory: {error}"));
                    self.drive(index, Event::ContactDeferred);
                }
                return;
            }
            Err(reason) => {
                plugin.reason = Some(reason);
                return self.drive(index, Event::Misbehaved);
            }
        };
        plugin.reason = None;
        let id = plugin.metadata.id.clone();
        let data_dir = self.settings.data_dir.join("plugins").join(&id);
        let init = lifeline::InitFacts {
            instance_id: &self.settings.instance_id,
            socket: &plugin.socket,
            log_path: &self.settings.plugin_logs_dir.join(format!("{id}.log")),
            data_dir: &data_dir,
            frame_bytes_max: self.settings.frame_bytes_max,
            config: self.settings.adjustable.plugin_config.get(&id).map(String::as_str),
        };
        let mut lifeline = Lifeline::new(stream, &plugin.metadata, self.settings.frame_bytes_max);
        if plugin.metadata.protocol == Protocol::V1_1 {
            // Plugins are told where they may keep files; making the folder spares each of them the same code.
            let _ = fs::create_dir_all(&data_dir);
        }
        if starting && let Err(error) = lifeline.send_init(&plugin.metadata, &init, unix_ms()) {
            plugin.reason = Some(format!("its [plugins.{id}] table does not fit into a message: {error}"));
            return self.drive(index, Event::Misbehaved);
        }
        if let Err(error) = lifeline.flush() {
            plugin.reason = Some(format!("closed the connection before init was sent: {error}"));
            plugin.connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
            return;
        }
        match plugin.metadata.protocol {
            // One connection for one exchange; an init has no answer, so taking it is all there is to wait for.
            Protocol::V1_0 => {
                drop(lifeline);
                self.drive(index, Event::Ready);
            }
            Protocol::V1_1 => {
                let generation = plugin.generation;
                match self.watch(
                    lifeline.as_fd(),
                    Source::Lifeline { index, generation },
                    epoll::EventFlags::IN,
                ) {
                    Ok(token) => {
                        lifeline.set_token(token);
                        let plugin = &mut self.plugins[index];
                        if !starting {
                            // It had its init. A ping shows it the new connection, so that it asks and logs over this
                            // one; it is no health check and is not counted as one.
                            let seq = plugin.ping.send(now, false);
                            lifeline.send_ping(seq, unix_ms());
                        }
                        plugin.lifeline = Some(lifeline);
                        self.flush_lifeline(index);
                    }
                    Err(error) => {
                        self.plugins[index].reason = Some(format!("cannot watch its connection: {error}"));
                        self.plugins[index].connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
                    }
                }
            }
        }
    }

    pub(crate) fn on_lifeline(&mut self, index: usize, generation: u64) {
        if self.plugins[index].generation != generation {
            return;
        }
        let Some(mut lifeline) = self.plugins[index].lifeline.take() else { return };
        let now = Instant::now();
        let (mut said, mut strays) = (vec![], 0);
        let outcome = lifeline.advance(now, &mut self.scratch, &mut self.reader, &mut said, &mut strays);
        self.plugins[index].lifeline = Some(lifeline);
        if strays > 0 {
            self.outlet.strays(index, strays);
        }
        self.flush_lifeline(index);
        for one in said {
            self.on_said(index, one, now);
        }
        match outcome {
            Ok(()) => {}
            Err(lifeline::Lost::Closed) => self.lose_lifeline(index, now),
            Err(lifeline::Lost::Broken(reason)) => {
                self.lose_lifeline(index, now);
                self.on_protocol_error(index, generation, reason, true);
            }
        }
    }

    /// Writes what waits, and asks to be told when the rest can go.
    pub(crate) fn flush_lifeline(&mut self, index: usize) {
        let Some(lifeline) = &mut self.plugins[index].lifeline else { return };
        match lifeline.flush() {
            Ok(waiting) => {
                if lifeline.waits_to_write() != waiting {
                    lifeline.set_waits_to_write(waiting);
                    let write = if waiting { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
                    let data = epoll::EventData::new_u64(lifeline.token());
                    let _ = epoll::modify(&self.epoll, lifeline.as_fd(), data, epoll::EventFlags::IN | write);
                }
            }
            Err(_) => {
                let overfull = lifeline.is_overfull();
                let generation = self.plugins[index].generation;
                self.lose_lifeline(index, Instant::now());
                if overfull {
                    let reason = "does not read its kv answers".into();
                    self.on_protocol_error(index, generation, reason, true);
                }
            }
        }
    }

    fn lose_lifeline(&mut self, index: usize, now: Instant) {
        let plugin = &mut self.plugins[index];
        if let Some(lifeline) = plugin.lifeline.take() {
            self.sources.remove(&lifeline.token());
        }
        // An exit usually follows at once and says more. A plugin that lives on is reached again, and counted at pings.
        if matches!(plugin.state, State::Starting { .. } | State::Running { .. }) {
            plugin.connect_at = Some((now + CONNECT_RETRY_MAX, CONNECT_RETRY_MAX));
        }
    }

    fn on_said(&mut self, index: usize, said: Said, now: Instant) {
        let plugin = &mut self.plugins[index];
        match said {
            Said::Ready => {
                if matches!(plugin.state, State::Starting { .. }) {
                    self.drive(index, Event::Ready);
                }
            }
            Said::Failed(error) => {
                if matches!(plugin.state, State::Starting { .. }) {
                    plugin.reason = Some(why_init_failed(&error));
                    self.drive(index, Event::Misbehaved);
                }
            }
            Said::Pong(seq) => {
                plugin.ping.answered(seq, now);
                let fields = object(json!({ "seq": seq }));
                self.outlet.log(Level::Debug, Some(&plugin.metadata.id), "Ping answered", fields);
            }
            Said::Log { level, message, fields } => {
                self.outlet.plugin_log(&plugin.metadata.id, level, &message, fields.as_deref());
            }
            Said::Kv { request_id, question } => {
                // What was asked is done, also where the connection has ended since and nobody hears of it.
                let asked_on = plugin.lifeline.as_ref().map(|lifeline| lifeline.answers_underway.clone());
                let (handle, underway) = (self.handle.clone(), asked_on.unwrap_or_default());
                let reply = Box::new(move |reply| {
                    let (reply, underway) = Underway::begin(underway, reply);
                    handle.send(Command::KvAnswer { index, request_id, reply, underway });
                });
                self.outlet.kv(&plugin.metadata.id, question, reply);
            }
        }
    }

    /// Sends the shutdown message; where it cannot be sent, SIGTERM follows at once.
    pub(crate) fn ask(&mut self, index: usize) {
        let grace = self.settings.adjustable.policy.stop_grace;
        let plugin = &mut self.plugins[index];
        plugin.connect_at = None;
        let metadata = plugin.metadata.clone();
        if plugin.lifeline.is_none()
            && let Ok(Ok(stream)) = connect(&plugin.socket)
        {
            plugin.lifeline = Some(Lifeline::new(stream, &metadata, self.settings.frame_bytes_max));
        }
        let sent = plugin.lifeline.as_mut().is_some_and(|lifeline| {
            lifeline.send_shutdown(grace, unix_ms());
            lifeline.flush().is_ok()
        });
        if metadata.protocol == Protocol::V1_0 {
            plugin.lifeline = None;
        }
        if !sent {
            self.drive(index, Event::TimerExpired);
        }
    }
}

/// In one short text: it stands in every status from then on.
fn why_init_failed(error: &str) -> String {
    let (why, rest) = error.split_at(error.floor_char_boundary(FAILURE_BYTES_MAX));
    let why = if why.trim().is_empty() { "it did not say why" } else { why };
    let more = if rest.is_empty() { "" } else { " …" };
    format!("init failed: {why}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        assert_eq!(why_init_failed(" "), "init failed: it did not say why");
        assert_eq!(why_init_failed("no licence"), "init failed: no licence");
        let long = why_init_failed(&"ü".repeat(FAILURE_BYTES_MAX));
        assert!(long.ends_with("ü …") && long.len() < FAILURE_BYTES_MAX + 30, "{}", long.len());
    }
}
