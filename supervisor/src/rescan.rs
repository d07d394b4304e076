//! Which plugins there are: the first scan, rescans, metadata calls, and who gets an id that two claim.
//!
//! Nothing in here waits: files are read by a thread that answers with [`Command::Looked`], and a metadata call is a
//! [`Probe`] among the loop's other sources.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use serde_json::{Map, json};
use toru_plugin_api::metadata::Metadata;

use crate::discovery::{self, Fingerprint, Look, Probe};
use crate::plugin::{Fault, PingTally, Plugin};
use crate::state::{Event, State, Want};
use crate::{
    Adjustable, Command, FirstScan, Kept, Level, Looks, Rescanned, Skipped, Source, Supervisor, object,
    unix_ms,
};

/// Before trying again to run a file that is being written.
const BUSY_RETRY: Duration = Duration::from_millis(20);
/// Before a file is asked again that did not answer in time, or could not be asked for want of descriptors, processes
/// or memory; each further wait is twice as long...
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// ...up to this: each call of a file that hangs is a process for a while.
const ASK_AGAIN_AFTER_MAX: Duration = Duration::from_secs(64);

/// A file that was skipped, or not taken for changed, and is asked again by itself.
pub(crate) struct Postponed {
    file: PathBuf,
    /// As it is asked; `None` before that.
    print: Option<Fingerprint>,
    /// `None` while it is being asked.
    pub at: Option<Instant>,
    wait: Duration,
    /// It was asked, and did not answer.
    is_slow: bool,
}

/// A rescan on its way.
#[derive(Default)]
pub(crate) struct Rescan {
    pub report: Rescanned,
    /// Files whose metadata call has not ended, and what each is now.
    pub pending: HashMap<PathBuf, Option<Fingerprint>>,
    pub done: Vec<Box<dyn FnOnce(Rescanned) + Send>>,
}

impl Supervisor {
    /// Starts a metadata call for every `*.binary` in the plugins folder.
    pub(crate) fn scan(&mut self) {
        let found = match discovery::find(&self.settings.plugins_dir) {
            Ok(found) => found,
            Err(error) => {
                let message = format!(
                    "cannot read the plugins folder {}: {error}; no plugin is started",
                    self.settings.plugins_dir.display()
                );
                self.outlet.log(Level::Error, None, &message, Map::new());
                self.first_scan = FirstScan::Asking;
                return self.finish_scan();
            }
        };
        for (file, reason) in found.unfit {
            self.skip(&file, &reason);
        }
        let now = Instant::now();
        for file in found.files {
            if let Ok(print) = Fingerprint::of_stamp(&file) {
                self.fingerprints.insert(file.clone(), print);
            }
            self.probe(file, now, now + self.settings.metadata_timeout);
        }
        self.first_scan = FirstScan::Asking;
        self.finish_scan();
        self.look();
    }

    /// Says that the plugins of the start are known, once they are.
    fn finish_scan(&mut self) {
        if self.first_scan != FirstScan::Asking
            || self.stopping
            || !self.probes.is_empty()
            || !self.busy.is_empty()
        {
            return;
        }
        self.first_scan = FirstScan::Done;
        self.outlet.scanned();
        self.tell_of_lost_tables();
    }

    /// Tables of the configuration that no plugin gets: a misspelt id would else be noticed by nobody.
    fn tell_of_lost_tables(&self) {
        let tables = &self.settings.adjustable;
        let known = |id: &&String| !self.plugins.iter().any(|p| !p.removed && p.metadata.id == **id);
        let mut lost: Vec<&String> = tables.plugin_config.keys().chain(tables.process.keys()).collect();
        lost.retain(known);
        lost.sort_unstable();
        lost.dedup();
        if !lost.is_empty() {
            let fields = object(json!({ "ids": lost, "remedy": "correct the id, or remove the table" }));
            let message = "The configuration has tables for plugins that do not exist";
            self.outlet.log(Level::Warn, None, message, fields);
        }
    }

    /// Goes by new settings from now on.
    pub(crate) fn configure(&mut self, new: Adjustable) {
        let old = std::mem::replace(&mut self.settings.adjustable, new);
        let new = &self.settings.adjustable;
        self.health_at = self.health_at.min(Instant::now() + new.health_interval);
        let changed = |plugin: &&Plugin| {
            let id = &plugin.metadata.id;
            !plugin.removed
                && (old.plugin_config.get(id) != new.plugin_config.get(id)
                    || old.process.get(id) != new.process.get(id))
        };
        let changed: Vec<usize> = self.plugins.iter().filter(changed).map(|plugin| plugin.index).collect();
        for index in changed {
            let plugin = &self.plugins[index];
            self.outlet.log(
                Level::Info,
                Some(&plugin.metadata.id),
                "Plugin configuration changed",
                Map::new(),
            );
            if matches!(plugin.state, State::Starting { .. } | State::Running { .. }) {
                self.plugins[index].stop_cause = Some("its configuration changed".into());
            }
            // One that crashed or was given up may have done so for what was in its table.
            self.drive(index, Event::RestartAsked);
        }
    }

    /// Lets a thread read the files, which may be large and on a slow disk; it answers with [`Command::Looked`].
    fn look(&mut self) {
        let (handle, folder) = (self.handle.clone(), self.settings.plugins_dir.clone());
        let known = self.fingerprints.clone();
        let look = move || handle.send(Command::Looked(Looks(discovery::look(&folder, &known))));
        match std::thread::Builder::new().name("toru-rescan".into()).spawn(look) {
            Ok(_) => self.looking = true,
            Err(error) => {
                let message = format!("cannot look for changed plugins: {error}");
                self.outlet.log(Level::Error, None, &message, Map::new());
                self.finish_rescan();
            }
        }
    }

    pub(crate) fn on_rescan(&mut self, done: Box<dyn FnOnce(Rescanned) + Send>) {
        if self.looking || self.rescan.is_some() {
            // The look on its way may already have passed what this one is about.
            return self.rescan_next.push(done);
        }
        self.begin_rescan(vec![done]);
    }

    pub(crate) fn on_looked(&mut self, found: io::Result<Look>) {
        match found {
            Ok(found) => {
                // A change is known once the file has said what it is now: until then the next rescan finds it again.
                let known = std::mem::take(&mut self.fingerprints);
                let prints = found.files.iter().filter_map(|one| {
                    let print = if one.changed { known.get(&one.file).copied() } else { one.fingerprint };
                    Some((one.file.clone(), print?))
                });
                self.fingerprints = prints.collect();
                if self.rescan.is_some() && !self.stopping {
                    self.apply(&found);
                }
            }
            Err(error) => {
                let folder = self.settings.plugins_dir.clone();
                self.skip(&folder, &format!("cannot read the plugins folder: {error}; nothing changes"));
            }
        }
        // Not before: a file that cannot even be asked must not end a rescan that has others to ask.
        self.looking = false;
        for index in 0..self.plugins.len() {
            self.judge_given_up(index);
        }
        self.finish_rescan();
    }

    /// Takes a plugin that was given up before it came for given up still, or starts it where its file holds something
    /// else than it did then; as soon as that is known.
    fn judge_given_up(&mut self, index: usize) {
        let plugin = &mut self.plugins[index];
        let content = self.fingerprints.get(&plugin.file).and_then(Fingerprint::content);
        let Some(fault) = &mut plugin.fault else { return };
        if plugin.removed || (content.is_none() && self.looking) {
            return;
        }
        let before = fault.content;
        if before.is_none() {
            // Given up before the file had been read.
            fault.content = content;
        }
        let why = fault.why.clone();
        let unjudged = std::mem::replace(&mut plugin.unjudged, false);
        self.keep(index);
        let plugin = &self.plugins[index];
        if !unjudged || !matches!(plugin.state, State::Failed { .. }) {
            return;
        }
        let id = plugin.metadata.id.clone();
        if content.is_some() && before.is_some() && content != before {
            let details = json!({
                "file": plugin.file.display().to_string(), "version": plugin.metadata.version, "given_up": why,
            });
            self.outlet.record(&id, "binary_changed", details.clone());
            let message = "Plugin was given up with another file, and is started with this one";
            self.outlet.log(Level::Info, Some(&id), message, object(details));
            return self.drive(index, Event::RestartAsked);
        }
        let fields = object(json!({
            "reason": why, "remedy": format!("mend it, then: toru plugin reset-failed {id}"),
        }));
        let message = if self.given_up.contains(&id) {
            "Plugin not started: it was given up with the same file before"
        } else {
            "Plugin not started: it was given up in an earlier run"
        };
        self.outlet.log(Level::Warn, Some(&id), message, fields);
    }

    /// Carries out what a rescan found.
    fn apply(&mut self, look: &Look) {
        let found = &look.files;
        // What is still to be skipped is so anew; what is not there any more is forgotten.
        self.skipped.retain(|file, _| found.iter().any(|one| one.file == *file));
        for (file, reason) in &look.unfit {
            self.skip(file, reason);
        }
        // All that are in no plugin's place are asked again.
        self.outranked.clear();
        let gone = |plugin: &&Plugin| !plugin.removed && !found.iter().any(|one| one.file == plugin.file);
        let gone: Vec<usize> = self.plugins.iter().filter(gone).map(|plugin| plugin.index).collect();
        for index in gone {
            if let Some(rescan) = &mut self.rescan {
                rescan.report.removed.push(self.plugins[index].metadata.id.clone());
            }
            self.leave(index, "its file is gone");
        }
        let now = Instant::now();
        for one in found {
            let known = self.plugins.iter().any(|plugin| !plugin.removed && plugin.file == one.file);
            if self.is_on_its_way(&one.file) {
                continue;
            }
            self.postponed.retain(|postponed| postponed.file != one.file);
            // A file that was skipped may be good now, though it did not change: its rival may be gone.
            if known && !one.changed {
                // Also one that was another for a while, and is what runs again.
                self.skipped.remove(&one.file);
                continue;
            }
            if let Some(rescan) = &mut self.rescan {
                rescan.pending.insert(one.file.clone(), one.fingerprint);
            }
            self.probe(one.file.clone(), now, now + self.settings.metadata_timeout);
        }
    }

    fn is_on_its_way(&self, file: &Path) -> bool {
        self.probes.iter().any(|probe| probe.file() == file)
            || self.busy.iter().any(|(busy, ..)| busy == file)
            || self.admissible.iter().any(|(waiting, _)| waiting == file)
    }

    /// Skips a file for now, which may be good for all that is known. Told once, however often it is asked.
    ///
    /// A plugin of which it is the file runs on as it is.
    fn postpone(&mut self, file: &Path, is_slow: bool, reason: &str) {
        let before = self.postponed.iter().position(|postponed| postponed.file == file);
        let before = before.map(|position| self.postponed.swap_remove(position));
        let wait = before.as_ref().map_or(ASK_AGAIN_AFTER, |before| ASK_AGAIN_AFTER_MAX.min(2 * before.wait));
        if before.is_none_or(|before| before.is_slow != is_slow) {
            let reason = format!("{reason}; it is asked again by itself, next in {} s", wait.as_secs());
            self.refuse(file, &reason);
        }
        let at = Some(Instant::now() + wait);
        self.postponed.push(Postponed { file: file.to_owned(), print: None, at, wait, is_slow });
    }

    pub(crate) fn ask_postponed(&mut self, now: Instant) {
        for position in (0..self.postponed.len()).rev() {
            if self.postponed[position].at.is_none_or(|at| at > now) {
                continue;
            }
            let file = self.postponed[position].file.clone();
            if self.is_on_its_way(&file) || !file.exists() {
                self.postponed.swap_remove(position);
                self.skipped.remove(&file);
                continue;
            }
            let postponed = &mut self.postponed[position];
            postponed.at = None;
            // As it is before it answers, so that the next rescan finds it unchanged once it has.
            postponed.print = Fingerprint::of_stamp(&file).ok();
            self.probe(file, now, now + self.settings.metadata_timeout);
        }
    }

    /// Tells those who wait for the rescan, once nothing of it is on its way.
    fn finish_rescan(&mut self) {
        if self.looking || self.rescan.as_ref().is_some_and(|rescan| !rescan.pending.is_empty()) {
            return;
        }
        if let Some(Rescan { report, done, .. }) = self.rescan.take() {
            let fields = json!({
                "added": report.added, "changed": report.changed, "removed": report.removed,
                "skipped": report.skipped,
            });
            self.outlet.log(Level::Info, None, "Plugins rescanned", object(fields));
            self.outlet.rescanning(false);
            self.tell_of_lost_tables();
            for done in done {
                done(report.clone());
            }
        }
        let waiting = std::mem::take(&mut self.rescan_next);
        if self.stopping {
            waiting.into_iter().for_each(|done| done(Rescanned::default()));
        } else if !waiting.is_empty() {
            self.begin_rescan(waiting);
        }
    }

    fn begin_rescan(&mut self, done: Vec<Box<dyn FnOnce(Rescanned) + Send>>) {
        self.rescan = Some(Rescan { done, ..Rescan::default() });
        self.outlet.rescanning(true);
        self.look();
    }

    /// Stops a plugin and takes it out of the table.
    fn leave(&mut self, index: usize, why: &str) {
        let plugin = &mut self.plugins[index];
        plugin.removed = true;
        plugin.want = Want::Down;
        plugin.stop_cause = Some(why.to_owned());
        let fields = object(json!({ "file": plugin.file.display().to_string(), "reason": why }));
        self.outlet.log(Level::Info, Some(&plugin.metadata.id), "Plugin removed", fields);
        self.publish(index);
        self.drive(index, Event::Wanted);
    }

    /// The file of a plugin in the table has another content, and said this of itself.
    fn change(&mut self, index: usize, file: PathBuf, metadata: Metadata) {
        self.skipped.remove(&file);
        let plugin = &mut self.plugins[index];
        let old = plugin.metadata.clone();
        if let Some(rescan) = &mut self.rescan {
            rescan.report.changed.push(metadata.id.clone());
        }
        let details = json!({
            "file": file.display().to_string(), "version": metadata.version, "old_version": old.version,
        });
        self.outlet.record(&old.id, "binary_changed", details.clone());
        self.outlet.log(Level::Info, Some(&old.id), "Plugin binary changed", object(details));
        let same_place = old.id == metadata.id
            && old.route == metadata.route
            && old.protocol == metadata.protocol
            && old.max_in_flight == metadata.max_in_flight;
        if !same_place {
            if old.id != metadata.id
                && let Some(rescan) = &mut self.rescan
            {
                rescan.report.removed.push(old.id.clone());
            }
            // What the workers keep for a plugin is made once, so it comes back as another one.
            self.admissible.push((file, metadata));
            return self.leave(index, "its file is another plugin now");
        }
        plugin.next_metadata = Some(metadata);
        plugin.stop_cause = Some("its file changed".into());
        self.drive(index, Event::RestartAsked);
    }

    /// Skips a file that cannot be run, or says nothing good of itself. Where it is that of a plugin in the table, its content
    /// has changed: what runs of it runs on; the next start, whenever that is, will be of the new content, and whoever looks
    /// for its reason finds it here.
    fn refuse(&mut self, file: &Path, reason: &str) {
        self.skip(file, reason);
        let known = self.plugins.iter().find(|plugin| !plugin.removed && plugin.file == file);
        let Some(plugin) = known else { return };
        let details = json!({
            "file": file.display().to_string(), "refused": reason,
            "pid": plugin.process.as_ref().map(crate::process::Process::pid),
        });
        self.outlet.record(&plugin.metadata.id, "binary_changed", details.clone());
        let message = "Plugin binary changed and cannot be used as it is; what runs, runs on";
        self.outlet.log(Level::Error, Some(&plugin.metadata.id), message, object(details));
    }

    pub(crate) fn probe(&mut self, file: PathBuf, now: Instant, give_up_at: Instant) {
        let id = self.next_token;
        let deadline = now + self.settings.metadata_timeout;
        let probe =
            match Probe::start(id, file.clone(), &self.environment(None), self.marks.brand(None), deadline) {
                Ok(probe) => probe,
                Err(error) if (error.busy || error.starved) && now < give_up_at => {
                    return self.busy.push((file, now + BUSY_RETRY, give_up_at));
                }
                Err(error) if error.starved => {
                    // No fault of the file's, so nobody should have to ask for a rescan.
                    self.postpone(&file, false, &error.reason);
                    return self.end_probe(&file);
                }
                Err(error) => {
                    self.postponed.retain(|postponed| postponed.file != file);
                    self.refuse(&file, &error.reason);
                    return self.end_probe(&file);
                }
            };
        let mut tokens = vec![];
        for fd in probe.fds() {
            tokens.push(self.watch(fd, Source::Probe { id }, epoll::EventFlags::IN));
        }
        self.probes.push(probe);
        if let Some(Err(error)) = tokens.into_iter().find(Result::is_err) {
            // What cannot be watched is ended by its deadline, which need not be waited for.
            if let Some(mut probe) = self.probes.pop() {
                probe.expire();
            }
            self.sources.retain(|_, source| !matches!(source, Source::Probe { id: other } if *other == id));
            self.skip(&file, &format!("cannot watch it: {error}"));
            self.end_probe(&file);
        }
    }

    pub(crate) fn on_probe(&mut self, id: u64) {
        let Some(position) = self.probes.iter().position(|probe| probe.id() == id) else { return };
        if self.probes[position].advance(&mut self.scratch) {
            self.finish_probe(position);
        }
    }

    pub(crate) fn finish_probe(&mut self, position: usize) {
        let probe = self.probes.swap_remove(position);
        let id = probe.id();
        self.sources.retain(|_, source| !matches!(source, Source::Probe { id: other } if *other == id));
        let file = probe.file().to_owned();
        let is_slow = probe.is_too_slow();
        let position = self.plugins.iter().position(|plugin| !plugin.removed && plugin.file == file);
        let outcome = probe.finish();
        let asked = self.rescan.as_ref().and_then(|rescan| *rescan.pending.get(&file)?);
        let asked_again = self.postponed.iter().find(|postponed| postponed.file == file);
        let asked = asked.or_else(|| asked_again?.print);
        if !is_slow {
            self.postponed.retain(|postponed| postponed.file != file);
        }
        match outcome {
            _ if self.stopping => {}
            Ok(metadata) => {
                if let Some(print) = asked {
                    self.fingerprints.insert(file.clone(), print);
                }
                match position {
                    Some(index) => self.change(index, file.clone(), metadata),
                    None => {
                        let id = metadata.id.clone();
                        if self.admit(file.clone(), metadata)
                            && let Some(rescan) = &mut self.rescan
                            && !rescan.report.added.contains(&id)
                        {
                            rescan.report.added.push(id);
                        }
                    }
                }
            }
            // A machine that has just started is busy: what was too slow then need not be so later.
            Err(reason) if is_slow => self.postpone(&file, true, &reason),
            Err(reason) => self.refuse(&file, &reason),
        }
        self.end_probe(&file);
    }

    /// A metadata call is over, however it ended.
    fn end_probe(&mut self, file: &Path) {
        if let Some(rescan) = &mut self.rescan {
            rescan.pending.remove(file);
        }
        if self.probes.is_empty() {
            // What metadata calls left behind is nobody's from now on.
            self.reap_at.get_or_insert(self.reap_again_at);
        }
        self.finish_scan();
        self.finish_rescan();
    }

    fn skip(&mut self, file: &Path, reason: &str) {
        let fields = object(json!({ "file": file.display().to_string(), "reason": reason }));
        self.outlet.log(Level::Error, None, "Plugin skipped", fields);
        self.skipped.insert(file.to_owned(), reason.to_owned());
        if let Some(rescan) = &mut self.rescan {
            let skipped = Skipped { file: file.to_owned(), reason: reason.to_owned() };
            rescan.report.skipped.push(skipped.to_string());
        }
    }

    /// Takes a plugin into the table and starts it, unless an earlier file has its id or route.
    ///
    /// Metadata calls end in any order, but of two files with the same id or route the first in name order wins:
    /// a later file that was quicker has to leave again.
    ///
    /// Gives whether it was taken, if only as soon as another one has left.
    fn admit(&mut self, file: PathBuf, metadata: Metadata) -> bool {
        // One that waits for a name has its claim already.
        let same = |other: &Metadata| other.id == metadata.id || other.route == metadata.route;
        if let Some(position) = self.admissible.iter().position(|(_, waiting)| same(waiting)) {
            let what = if self.admissible[position].1.id == metadata.id { "id" } else { "route" };
            let taken = |by: &Path| format!("its field `{what}` is already taken by {}", by.display());
            if self.admissible[position].0 <= file {
                let reason = taken(&self.admissible[position].0);
                self.outrank(file, metadata, &reason);
                return false;
            }
            let (late, of_late) = self.admissible.remove(position);
            self.outrank(late, of_late, &taken(&file));
        }
        let mut must_leave = vec![];
        let mut skipped = vec![];
        for plugin in
            self.plugins.iter().filter(|p| p.metadata.id == metadata.id || p.metadata.route == metadata.route)
        {
            if plugin.removed {
                must_leave.push(plugin.index);
                continue;
            }
            let (what, value) = if plugin.metadata.id == metadata.id {
                ("id", &metadata.id)
            } else {
                ("route", &metadata.route)
            };
            let taken = |by: &Path| format!("field `{what}`: {value:?} is already taken by {}", by.display());
            if plugin.file <= file {
                let reason = taken(&plugin.file);
                self.outrank(file, metadata, &reason);
                return false;
            }
            must_leave.push(plugin.index);
            let theirs = plugin.next_metadata.clone().unwrap_or_else(|| (*plugin.metadata).clone());
            skipped.push((plugin.file.clone(), theirs, plugin.found.clone(), taken(&file)));
        }
        for (file, theirs, found, reason) in skipped {
            // The crashes were another file's.
            if theirs.id == metadata.id
                && let Some(kept) = self.settings.kept.get_mut(&theirs.id)
            {
                let enabled = kept.enabled;
                *kept = Kept { enabled, ..found };
                self.outlet.keep(&theirs.id, kept);
            }
            self.outrank(file, theirs, &reason);
        }
        if !must_leave.is_empty() {
            self.admissible.push((file, metadata));
            for index in must_leave {
                self.plugins[index].removed = true;
                self.plugins[index].stop_cause = Some("another file has its id or route".into());
                self.plugins[index].want = Want::Down;
                self.drive(index, Event::Wanted);
            }
            self.admit_waiting();
            return true;
        }

        let socket = match discovery::socket_path(&self.settings.sockets_dir, &metadata.id) {
            Ok(socket) => socket,
            Err(reason) => {
                self.skip(&file, &reason);
                return false;
            }
        };
        let kept = self.settings.kept.get(&metadata.id).cloned().unwrap_or_else(Kept::fresh);
        let enabled = kept.enabled;
        let found = kept.clone();
        let failures = kept.failures;
        let given_up = kept.failed.clone().filter(|_| enabled);
        let content = kept.failed_content;
        let fault = kept.failed.map(|why| Fault { why, failures, content });
        let left = Duration::from_millis(
            kept.next_start_unix_ms.map_or(0, |next_start| next_start.saturating_sub(unix_ms())),
        );
        let index = self.plugins.len();
        let details = json!({
            "file": file.display().to_string(), "version": metadata.version, "route": metadata.route,
            "protocol": metadata.protocol.as_str(), "enabled": enabled,
        });
        self.outlet.record(&metadata.id, "discovered", details.clone());
        self.outlet.log(Level::Info, Some(&metadata.id), "Plugin discovered", object(details));
        self.skipped.remove(&file);
        self.plugins.push(Plugin {
            index,
            file,
            metadata: Arc::new(metadata),
            next_metadata: None,
            socket,
            want: if enabled { Want::Up } else { Want::Down },
            enabled,
            found,
            removed: false,
            state: if given_up.is_some() { State::Failed { failures } } else { State::Stopped },
            generation: 0,
            process: None,
            ending: None,
            pipes: [None, None],
            lifeline: None,
            connect_at: None,
            spawned_at: None,
            // One that waits goes on with what an earlier run began.
            tried: !left.is_zero(),
            restarts: kept.restarts,
            restarted_unix_ms: kept.restarted_unix_ms,
            last_exit: kept.last_exit,
            put_off: None,
            sockets_dir: None,
            next_start_unix_ms: None,
            exit: None,
            in_flight: None,
            unanswered_before: 0,
            reason: given_up.clone(),
            fault,
            unjudged: given_up.is_some(),
            stop_cause: None,
            ping: PingTally::default(),
            stderr_tail: Arc::default(),
            protocol_errors: VecDeque::new(),
            timeouts_unrecorded: 0,
            timeout_recorded_at: None,
            waiting: vec![],
        });
        self.publish(index);
        if given_up.is_some() {
            self.drive(index, Event::Wanted);
            self.judge_given_up(index);
        } else {
            self.drive(index, Event::Resumed { failures, left });
            let plugin = &self.plugins[index];
            if let State::Crashed { until, .. } = plugin.state {
                let next_start_ms = until.saturating_duration_since(Instant::now()).as_millis() as u64;
                let fields = object(json!({
                    "failures": failures, "next_start_ms": next_start_ms, "last_exit": plugin.last_exit,
                }));
                let message = "Plugin not started yet: its back-off goes on";
                self.outlet.log(Level::Warn, Some(&plugin.metadata.id), message, fields);
            }
        }
        true
    }

    /// Admits what waited for an id or a route that is free by now.
    pub(crate) fn admit_waiting(&mut self) {
        let (ready, waiting) = std::mem::take(&mut self.admissible).into_iter().partition(|(_, metadata)| {
            !self.plugins.iter().any(|p| {
                (p.metadata.id == metadata.id || p.metadata.route == metadata.route) && p.state.has_process()
            })
        });
        self.admissible = waiting;
        let ready: Vec<_> = ready;
        for (file, metadata) in ready {
            // The entries that left keep their index for ever; only their names are given up.
            for index in 0..self.plugins.len() {
                let plugin = &mut self.plugins[index];
                if plugin.removed
                    && (plugin.metadata.id == metadata.id || plugin.metadata.route == metadata.route)
                {
                    let mut vacated = (*plugin.metadata).clone();
                    vacated.id.clear();
                    vacated.route.clear();
                    plugin.metadata = Arc::new(vacated);
                    self.publish(index);
                }
            }
            self.admit(file, metadata);
        }
        if self.admissible.is_empty() {
            self.admit_outranked();
        }
    }

    /// Skips a plugin for one whose name comes first.
    fn outrank(&mut self, file: PathBuf, metadata: Metadata, reason: &str) {
        self.skip(&file, reason);
        self.outranked.push((file, metadata));
    }

    /// Admits those that were skipped for a plugin which had to give way itself: who is there must not depend on who
    /// described itself first.
    fn admit_outranked(&mut self) {
        let mut outranked = std::mem::take(&mut self.outranked);
        outranked.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (file, metadata) in outranked {
            let taken = self.plugins.iter().any(|plugin| {
                !plugin.removed
                    && (plugin.metadata.id == metadata.id || plugin.metadata.route == metadata.route)
            });
            if taken {
                self.outranked.push((file, metadata));
                continue;
            }
            let shown = format!("{}: ", file.display());
            if let Some(rescan) = &mut self.rescan {
                rescan.report.skipped.retain(|skipped| !skipped.starts_with(&shown));
                rescan.report.added.push(metadata.id.clone());
            }
            self.admit(file, metadata);
        }
    }
}
