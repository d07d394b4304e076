//! The end of a process, and of everything that it leaves behind.
//!
//! Nobody hears that a plugin has ended before its last process is gone, so the next one never meets them.
//! Whose a process is, is decided in `remains`; every signal goes through `process`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use serde_json::{Map, json};

use crate::plugin::Ending;
use crate::process::{self, Process};
use crate::remains::{Mark, ProcessId, Swept, Table, has_other_children};
use crate::socket::{clear_sockets, vacate_socket};
use crate::state::{Event, Rung, State, Then};
use crate::{Level, Source, Supervisor, object, own_pid};

/// How long what a plugin left behind may take to be gone after SIGKILL, until its end is told nevertheless: a process
/// in uninterruptible sleep must not hold up the restart.
pub(crate) const REMAINS_PATIENCE: Duration = Duration::from_secs(2);
/// Before looking again at a process that is just being replaced by an exec, or could not be opened.
const REMAINS_LOOK: Duration = Duration::from_millis(10);
/// So often one orphan is found in the middle of an exec until it is taken for one that hides its arguments.
const REMAINS_LOOKS_MAX: u32 = 100;
/// Looks that find nothing until whoever holds a plugin's output is taken for somebody that it gave it to.
const QUIET_LOOKS_MAX: u32 = 20;
/// Between two looks for orphans to reap; or ten times what the last look took, if that is more.
const REAP_INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Supervisor {
    pub(crate) fn on_exit(&mut self, index: usize, generation: u64) {
        if self.plugins[index].generation != generation {
            return;
        }
        let Some(exit) = self.plugins[index].process.as_ref().and_then(Process::reap) else { return };
        let now = Instant::now();
        self.count_in_flight(index);
        let plugin = &mut self.plugins[index];
        plugin.process = None;
        plugin.lifeline = None;
        plugin.ping.connection = None;
        plugin.connect_at = None;
        plugin.ending = Some(Ending {
            exit,
            victims: HashMap::new(),
            spared: vec![],
            found_some: false,
            quiet_looks: 0,
            look_at: None,
            give_up_at: now + REMAINS_PATIENCE,
        });
        self.sources.retain(|_, source| match source {
            Source::Exit { index: i, .. } | Source::Lifeline { index: i, .. } => *i != index,
            Source::Output { .. }
            | Source::Inbox
            | Source::Probe { .. }
            | Source::Children
            | Source::Victim { .. }
            | Source::Notice { .. } => true,
        });
        // What it left behind may take a while to go; the workers must not send it requests meanwhile.
        self.publish(index);
        self.clear_remains(index, now);
    }

    /// The process has ended and left nothing behind: only now anybody hears of it.
    fn finish_exit(&mut self, index: usize) {
        let Some(Ending { exit, victims, .. }) = self.plugins[index].ending.take() else { return };
        for token in victims.keys() {
            self.sources.remove(token);
        }
        // What it wrote last explains why it ended: read it before the pipes go.
        for pipe in 0..2 {
            self.drain(index, pipe);
        }
        self.record_timeouts(index, Instant::now());
        self.outlet.account_output(&self.plugins[index].metadata.id, true);
        let plugin = &mut self.plugins[index];
        let settings = self.settings.adjustable.process.get(&plugin.metadata.id);
        let permanent = exit.permanent().map(|why| match settings.and_then(|own| own.memory_bytes_max) {
            // The loader of a program that finds no room for it gives the same code.
            Some(most) if exit.code == Some(127) => {
                format!("{why}, or its memory_bytes_max of {most} is too little to load it")
            }
            _ => why.to_owned(),
        });
        // A signal alone reads as if it came from somewhere else: the kernel, for want of memory, above all.
        let by_us = exit.signal == Some(nix::libc::SIGKILL);
        plugin.last_exit = Some(match (&permanent, plugin.state, &plugin.reason) {
            (Some(why), ..) => why.clone(),
            (None, State::Stopping { then: Then::Crash, .. }, Some(why)) if by_us => {
                format!("killed by the core: {why}")
            }
            (None, State::Stopping { then: Then::Stop, rung: Rung::Killed, .. }, _) if by_us => {
                "killed by the core: it did not stop in time".into()
            }
            _ => exit.to_string(),
        });
        plugin.exit = Some(exit);
        if plugin.reason.is_none() {
            plugin.reason = permanent;
        }
        let socket = plugin.socket.clone();
        let _ = vacate_socket(&socket);
        self.drive(index, Event::Exited { permanent: exit.permanent().is_some() });
    }

    /// Reads the process table and reaps what ended in it.
    fn survey(&mut self) -> Option<Table> {
        Some(self.take_in(Table::read().ok()?))
    }

    /// A survey that kills adopted processes with the mark of a plugin where it meets them: of `only` this one, whose
    /// process has ended, or of every one.
    ///
    /// What forks without end has moved on by the time that a whole table is read.
    fn strike(&mut self, only: Option<usize>) -> Option<(Table, Vec<OwnedFd>)> {
        let own = own_pid();
        let mut killed = vec![];
        let table = Table::read_with(|id, parent| {
            if parent != own {
                return;
            }
            let mark = self.marks.read(id.pid);
            if matches!(mark, Mark::Plugin { .. })
                && only.is_none_or(|index| self.owner(&mark) == Some(index))
            {
                killed.extend(process::kill_exactly(id).ok().flatten());
            }
        });
        Some((self.take_in(table.ok()?), killed))
    }

    fn take_in(&mut self, table: Table) -> Table {
        process::reap_orphans(table.zombies(own_pid()));
        self.seen.retain(|id, _| table.holds(*id));
        self.changing.retain(|id, _| table.holds(*id));
        table
    }

    /// Writes down what hangs below each plugin's process: when that ends, its children lose the only sign of whose they
    /// are that they cannot drop.
    pub(crate) fn note_children(&mut self) {
        // Where many are stopped at once one look does for all.
        const FRESH: Duration = Duration::from_millis(20);
        if self.noted_at.is_some_and(|at| at.elapsed() < FRESH) {
            return;
        }
        self.noted_at = Some(Instant::now());
        if let Some(table) = self.survey() {
            self.note_below(&table);
        }
    }

    fn note_below(&mut self, table: &Table) {
        for plugin in &self.plugins {
            let below = plugin.process.iter().flat_map(|process| table.below(process.pid() as i32));
            self.seen.extend(below.map(|id| (id, plugin.index)));
        }
    }

    /// The plugin of the table that a mark names.
    fn owner(&self, mark: &Mark) -> Option<usize> {
        let Mark::Plugin { index, id } = mark else { return None };
        let named = |id: &OsString| self.plugins.iter().rposition(|plugin| *plugin.metadata.id == **id);
        index.filter(|index| *index < self.plugins.len()).or_else(|| id.as_ref().and_then(named))
    }

    /// Orphans by the plugin whose they are, and whether one has to be looked at again.
    ///
    /// `None` stands for those that belong to no plugin of the table: leftovers of calls that are over, and what nobody
    /// who still lives can have made. Others' are left out.
    fn orphans(&mut self, table: &Table) -> (Vec<(Option<usize>, ProcessId)>, bool) {
        let mut found = vec![];
        let mut undecided = false;
        let spawned = process::spawned_here();
        for orphan in table.orphans(own_pid(), &spawned) {
            let seen = orphan.members.iter().find_map(|id| self.seen.get(id).copied());
            let owner = match seen {
                Some(index) => Some(index),
                None => match self.marks.read(orphan.id.pid) {
                    mark @ Mark::Plugin { .. } => self.owner(&mark),
                    _ if !orphan.adopted => continue,
                    Mark::Call if self.probes.is_empty() && self.notices.is_empty() => None,
                    Mark::Call | Mark::Foreign => continue,
                    mark @ (Mark::Nothing | Mark::Changing) => {
                        if mark == Mark::Changing {
                            let looks = self.changing.entry(orphan.id).or_default();
                            *looks += 1;
                            undecided |= *looks <= REMAINS_LOOKS_MAX;
                        }
                        let mut parents = spawned.iter().filter_map(|pid| table.find(*pid));
                        if parents.any(|parent| parent.started <= orphan.id.started) {
                            continue;
                        }
                        None
                    }
                },
            };
            if let Some(index) = owner {
                self.seen.extend(orphan.members.iter().map(|id| (*id, index)));
            }
            found.extend(orphan.members.into_iter().map(|id| (owner, id)));
        }
        (found, undecided)
    }

    /// Kills what a plugin whose process has ended left behind, until there is nothing more.
    pub(crate) fn clear_remains(&mut self, index: usize, now: Instant) {
        let Some((table, killed)) = self.strike(Some(index)) else { return self.finish_exit(index) };
        let (orphans, undecided) = self.orphans(&table);
        let Some(mut ending) = self.plugins[index].ending.take() else { return };
        ending.look_at = None;
        let mut quiet = killed.is_empty() && !undecided;
        for pidfd in killed {
            match self.watch(&pidfd, Source::Victim { index }, epoll::EventFlags::IN) {
                Ok(token) => drop(ending.victims.insert(token, pidfd)),
                Err(_) => quiet = false,
            }
        }
        for (owner, id) in orphans {
            if owner.is_some_and(|owner| owner != index) || ending.spared.contains(&id) {
                continue;
            }
            match process::kill_exactly(id) {
                Ok(Some(pidfd)) => {
                    quiet = false;
                    if let Ok(token) = self.watch(&pidfd, Source::Victim { index }, epoll::EventFlags::IN) {
                        ending.victims.insert(token, pidfd);
                    }
                }
                Err(rustix::io::Errno::PERM) => ending.spared.push(id),
                // Gone since the table was read, and perhaps it had children; or it cannot be opened now.
                Ok(None) | Err(_) => quiet = false,
            }
        }
        ending.found_some |= !quiet;
        ending.quiet_looks = if quiet { ending.quiet_looks + 1 } else { 0 };
        // What forks while the table is read can be missed in it. Most of what a plugin leaves behind holds on to its
        // output, whose pipes say so.
        let enough = match (self.output_is_held(index), ending.found_some) {
            (true, _) => QUIET_LOOKS_MAX,
            (false, true) => 2,
            (false, false) => 1,
        };
        let done = ending.quiet_looks >= enough;
        if ending.victims.is_empty() && !done {
            ending.look_at = Some(now + REMAINS_LOOK);
        }
        let spared = if done { ending.spared.clone() } else { vec![] };
        self.plugins[index].ending = Some(ending);
        if done {
            if !spared.is_empty() {
                self.tell_of_remains(index, spared.iter().map(|id| id.pid), "belong to another user");
            }
            self.finish_exit(index);
        }
    }

    /// Whether anybody can still write to the pipes of a plugin.
    fn output_is_held(&self, index: usize) -> bool {
        self.plugins[index].pipes.iter().flatten().any(|pipe| {
            let mut poll = [PollFd::new(&pipe.fd, PollFlags::IN)];
            let _ = rustix::event::poll(&mut poll, Some(&Timespec::default()));
            !poll[0].revents().contains(PollFlags::HUP)
        })
    }

    pub(crate) fn on_victim(&mut self, index: usize, token: u64) {
        self.sources.remove(&token);
        let Some(ending) = &mut self.plugins[index].ending else { return };
        ending.victims.remove(&token);
        if ending.victims.is_empty() {
            // Whoever was below it is an orphan by now, and may have made another meanwhile.
            self.clear_remains(index, Instant::now());
        }
    }

    pub(crate) fn give_up_on_remains(&mut self, index: usize) {
        let left = self.survey().map(|table| self.orphans(&table).0).unwrap_or_default();
        let pids = left.into_iter().filter(|(owner, _)| *owner == Some(index)).map(|(_, id)| id.pid);
        self.tell_of_remains(index, pids, "did not end after SIGKILL");
        self.finish_exit(index);
    }

    fn tell_of_remains(&self, index: usize, pids: impl Iterator<Item = i32>, why: &str) {
        let pids: Vec<i32> = pids.collect();
        let fields = object(json!({ "pids": pids, "reason": why }));
        let id = &self.plugins[index].metadata.id;
        self.outlet.log(Level::Error, Some(id), "Plugin left processes behind", fields);
    }

    /// Says once that what plugins leave behind is harder to find here; see `remains`.
    pub(crate) fn tell_of_missing_brand(&self) {
        if self.marks.brand(None).is_none() {
            let message = "the limit on file locks (RLIMIT_LOCKS) was lowered and may not be raised, so a process that a \
                           plugin leaves behind without its environment may outlive it; start the daemon without that limit";
            self.outlet.log(Level::Warn, None, message, Map::new());
        }
    }

    /// Looks after orphans if there is one: most children that end were spawned here, and a whole look reads every
    /// process of the machine.
    pub(crate) fn look_for_orphans(&mut self, now: Instant) {
        if has_other_children(&process::spawned_here()) {
            return self.look_after_orphans(now);
        }
        self.reap_at = None;
        self.reap_again_at = Instant::now() + REAP_INTERVAL_MIN;
    }

    /// Reaps orphans that ended, kills those whose plugin or call is over, and writes down what hangs below each plugin:
    /// it may be an orphan by the time that the plugin has ended.
    pub(crate) fn look_after_orphans(&mut self, now: Instant) {
        self.reap_at = None;
        if let Some(table) = self.survey() {
            self.note_below(&table);
            for (owner, id) in self.orphans(&table).0 {
                let over = owner.is_none_or(|index| {
                    let plugin = &self.plugins[index];
                    plugin.process.is_none() && plugin.ending.is_none()
                });
                if over {
                    let _ = process::kill_exactly(id);
                }
            }
        }
        self.reap_again_at = Instant::now() + REAP_INTERVAL_MIN.max(now.elapsed() * 10);
    }

    /// Kills every orphan, and waits for it: the last thing that a supervisor does.
    pub(crate) fn end_orphans(&mut self) {
        let give_up_at = Instant::now() + REMAINS_PATIENCE;
        let mut quiet_looks = 0;
        while let Some((table, mut killed)) = self.strike(None) {
            let (orphans, undecided) = self.orphans(&table);
            killed.extend(orphans.iter().filter_map(|(_, id)| process::kill_exactly(*id).ok().flatten()));
            quiet_looks = if killed.is_empty() { quiet_looks + 1 } else { 0 };
            // What forks while the table is read can be missed in it: nothing found counts only the second time.
            if (quiet_looks >= 2 && !undecided) || Instant::now() >= give_up_at {
                return;
            }
            process::wait_for_ends(&killed, REMAINS_LOOK);
            if killed.is_empty() {
                std::thread::sleep(REMAINS_LOOK);
            }
        }
    }

    /// Kills what plugins of an earlier run left behind, which ended too suddenly to do it itself, and removes their sockets.
    ///
    /// A process is one of those if it carries this installation's id and a socket in this daemon's socket folder, or the
    /// limit that stands for both: the folder is locked, so nobody else alive can have given it these. It is read before the first spawn, so whatever carries them
    /// is older than every process of this run. The daemon itself and those that it descends from are left alone, as it
    /// may have been started from within a plugin.
    ///
    /// Gives the processes of plugins that were killed.
    pub(crate) fn sweep_former_run(&mut self) -> Swept {
        // So often one is found in the middle of an exec until it is taken for one that hides its arguments.
        const CHANGES_MAX: u32 = 20;
        // What forks while the table is read can be missed in it, and who forked just before it was killed has a child
        // that only the next look finds. Who lives a moment only can be missed again, where others come and go.
        const QUIET_LOOKS: u32 = 2;
        const QUIET_LOOKS_WHERE_SOME_END: u32 = 8;
        let give_up_at = Instant::now() + REMAINS_PATIENCE;
        let mut ended = vec![];
        let mut killed = vec![];
        let mut swept = Swept::default();
        let mut strangers = HashSet::new();
        let mut changing: HashMap<ProcessId, u32> = HashMap::new();
        let mut zombies = HashSet::new();
        let (mut quiet_looks, mut looks_wanted) = (0, QUIET_LOOKS);
        while quiet_looks < looks_wanted && Instant::now() < give_up_at {
            let table = match Table::read() {
                Ok(table) => table,
                Err(error) => {
                    let message =
                        format!("cannot read /proc ({error}); what plugins leave behind will stay behind");
                    self.outlet.log(Level::Warn, None, &message, Map::new());
                    return swept;
                }
            };
            let known = ended.len();
            let mut undecided = false;
            for id in table.all_but_line_of(own_pid()) {
                if ended.contains(&id.pid) || strangers.contains(&id) {
                    continue;
                }
                match self.marks.read(id.pid) {
                    mark @ (Mark::Plugin { .. } | Mark::Call) => {
                        if let Ok(Some(pidfd)) = process::kill_exactly(id) {
                            ended.push(id.pid);
                            killed.push(pidfd);
                            if let Mark::Plugin { index, id: plugin } = mark {
                                let plugin = plugin.map(|plugin| plugin.to_string_lossy().into_owned());
                                swept.add(id.pid, index, plugin);
                            }
                        }
                    }
                    Mark::Changing => {
                        let looks = changing.entry(id).or_default();
                        *looks += 1;
                        undecided |= *looks < CHANGES_MAX;
                    }
                    Mark::Foreign | Mark::Nothing => {
                        strangers.insert(id);
                    }
                }
            }
            if table.may_lack_some(&mut zombies) {
                looks_wanted = QUIET_LOOKS_WHERE_SOME_END;
            }
            quiet_looks = if ended.len() == known && !undecided { quiet_looks + 1 } else { 0 };
            if undecided {
                std::thread::sleep(REMAINS_LOOK);
            }
        }
        if !ended.is_empty() {
            let plugins = swept.plugins();
            let fields = object(json!({ "pids": ended, "plugins": plugins }));
            self.outlet.log(Level::Warn, None, "Processes of an earlier run ended", fields);
        }
        // Their sockets must be nobody's. On a machine with other things to do, who was killed takes a while to be gone.
        process::wait_for_ends(&killed, REMAINS_PATIENCE);
        let sockets = clear_sockets(&self.settings.sockets_dir);
        if sockets > 0 {
            let fields = object(json!({ "count": sockets }));
            self.outlet.log(Level::Info, None, "Sockets of an earlier run removed", fields);
        }
        swept
    }

    /// Writes into the audit trail that plugins of an earlier run have ended of which it tells a start alone, with who
    /// was `swept` of them: their core ended too suddenly to write it. Those that may be any plugin's stand with each.
    pub(crate) fn tell_of_lost_ends(&mut self, swept: &Swept) {
        let mut lost: Vec<(String, String)> =
            std::mem::take(&mut self.settings.unended).into_iter().collect();
        lost.sort_unstable();
        let unassigned = swept.of(None);
        for (id, started) in &lost {
            let mut details = json!({
                "reason": "the daemon ended without stopping it: it was killed, it crashed, or the machine went down",
                "started": started, "swept_pids": swept.of(Some(id)),
            });
            if !unassigned.is_empty() {
                details["swept_pids_unassigned"] = json!(unassigned);
            }
            self.outlet.record(id, "stopped", details);
        }
        if !lost.is_empty() {
            let ids: Vec<&String> = lost.iter().map(|(id, _)| id).collect();
            let message = "The daemon ended suddenly in an earlier run, and its plugins with it";
            self.outlet.log(Level::Warn, None, message, object(json!({ "plugins": ids })));
        }
    }
}
