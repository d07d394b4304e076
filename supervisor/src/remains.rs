//! Whose the processes are that a plugin leaves behind.
//!
//! A plugin's children can leave its process group (`setsid`), lose their parent (a double fork) and drop their
//! environment (`env -i`), so none of these says for certain whose they are. Four things do, in this order:
//!
//! 1. Where they hang: what is below a plugin's process at a look is written down, and stays the plugin's.
//! 2. Their limit on file locks (RLIMIT_LOCKS), which every process is born with, keeps over an exec, and shows in
//!    `/proc/PID/limits`. The kernel has enforced nothing by it since Linux 2.4.25, so it can carry a number: that of
//!    the installation and the plugin.
//! 3. What they carry: the environment that the plugin was started with names this installation and the plugin, and is
//!    inherited. It is read from `/proc/PID/environ`, which shows what the last exec was given.
//! 4. Who could be the parent: the daemon adopts every orphan below it, so one that carries nothing is still somebody's
//!    here. It goes when nothing that was spawned here is left that is older than it: at the latest with the daemon.
//!
//! The limit of this: a process that double-forks between two looks, drops its environment *and* sets its limit on file
//! locks anew outlives its plugin as long as another plugin runs that could have made it. So does one without its
//! environment where the daemon may not set that limit: below a process that had it lowered, and without root's rights.
//! Cgroups would know better, and need rights that a user's daemon does not have.
//!
//! This file reads `/proc` and decides; it signals and reaps nobody.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// In the environment of a metadata call or notification: the socket folder of the daemon, by which a later one knows
/// what it left behind. Plugins have their socket instead.
pub(crate) const CALLED_FROM: &str = "TORU_CALLED_FROM";

/// One process for as long as the machine is up: pids come again, together with a start time they do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    pub pid: i32,
    /// Clock ticks since the machine started.
    pub started: u64,
}

impl ProcessId {
    /// Who has this pid now.
    pub fn read(pid: i32) -> Option<Self> {
        read_row(pid).map(|row| row.id)
    }
}

#[derive(Clone, Copy, Debug)]
struct Row {
    id: ProcessId,
    parent: i32,
    zombie: bool,
    /// A thread of the kernel's own: nobody's, and what it carries cannot be read.
    kernel: bool,
}

/// Every process, as it was when the table was read.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<i32, Row>,
    children: BTreeMap<i32, Vec<i32>>,
    /// Some ended between being listed and being read.
    torn: bool,
}

/// A process without its parent, and all that hang below it.
pub(crate) struct Orphan {
    pub id: ProcessId,
    /// It is a child of this process by now. One whose parent was gone before it was read may become one, and may be a
    /// stranger: it counts only if it carries a mark.
    pub adopted: bool,
    /// The orphan itself comes first.
    pub members: Vec<ProcessId>,
}

/// Whose process it is by what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A plugin of this daemon or an earlier run of it: by its index in that run, its id, or both.
    Plugin { index: Option<usize>, id: Option<OsString> },
    /// A metadata call or a notification of this daemon or an earlier run of it.
    Call,
    /// Another installation, or a copy of this one's data with sockets elsewhere.
    Foreign,
    /// It carries nothing, or what it carries cannot be read.
    Nothing,
    /// It is in the middle of an exec, and has neither environment nor arguments for a moment.
    Changing,
}

/// Processes of plugins of an earlier run, in the order in which they were killed.
#[derive(Default)]
pub(crate) struct Swept(Vec<SweptProcess>);

struct SweptProcess {
    pid: i32,
    /// Of its plugin in that run.
    index: Option<usize>,
    plugin: Option<String>,
}

impl Swept {
    /// As the process is marked: by the index of its plugin, its id, or both.
    pub fn add(&mut self, pid: i32, index: Option<usize>, plugin: Option<String>) {
        self.0.push(SweptProcess { pid, index, plugin });
    }

    /// The id of its plugin: one that dropped its environment carries an index alone, which another may carry with the id.
    fn plugin<'a>(&'a self, process: &'a SweptProcess) -> Option<&'a str> {
        let same = |other: &&SweptProcess| other.index == process.index && other.plugin.is_some();
        let other = || process.index.and_then(|_| self.0.iter().find(same)?.plugin.as_deref());
        process.plugin.as_deref().or_else(other)
    }

    /// The processes of this plugin, or those of which nobody knows the plugin.
    pub fn of(&self, plugin: Option<&str>) -> Vec<i32> {
        let found = self.0.iter().filter(|process| self.plugin(process) == plugin);
        found.map(|process| process.pid).collect()
    }

    /// The plugins that are known.
    pub fn plugins(&self) -> BTreeSet<&str> {
        self.0.iter().filter_map(|process| self.plugin(process)).collect()
    }
}

impl Table {
    /// Errors: there is no `/proc`.
    pub fn read() -> io::Result<Self> {
        Self::read_with(|_, _| {})
    }

    /// Calls `meet` with each living process and its parent as soon as it is read: what lives for a moment only may be
    /// gone at the end.
    pub fn read_with(mut meet: impl FnMut(ProcessId, i32)) -> io::Result<Self> {
        let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
        let mut pids: Vec<i32> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
        // The newest first: all pids are listed at one moment, and who is read last has had the most time to be gone and
        // to have left another behind.
        let newest = newest_pid();
        pids.sort_unstable_by_key(|pid| age(*pid, newest));
        let mut rows = Vec::with_capacity(pids.len());
        let mut torn = false;
        for pid in pids {
            let Some(row) = read_row(pid) else {
                torn = true;
                continue;
            };
            if !row.zombie {
                meet(row.id, row.parent);
            }
            rows.push(row);
        }
        Ok(Self { torn, ..Self::from_rows(rows) })
    }

    fn from_rows(rows: Vec<Row>) -> Self {
        let mut table = Self::default();
        for row in rows {
            table.rows.insert(row.id.pid, row);
            table.children.entry(row.parent).or_default().push(row.id.pid);
        }
        table
    }

    pub fn holds(&self, id: ProcessId) -> bool {
        self.rows.get(&id.pid).is_some_and(|row| row.id == id)
    }

    pub fn find(&self, pid: i32) -> Option<ProcessId> {
        self.rows.get(&pid).map(|row| row.id)
    }

    /// All living processes below `pid`, without itself.
    pub fn below(&self, pid: i32) -> Vec<ProcessId> {
        let mut found = vec![];
        let mut seen = BTreeSet::from([pid]);
        let mut open = vec![pid];
        while let Some(parent) = open.pop() {
            for child in self.children.get(&parent).into_iter().flatten() {
                // The table is no snapshot: a pid that came again while it was read could close a circle.
                if !seen.insert(*child) {
                    continue;
                }
                open.push(*child);
                if let Some(row) = self.rows.get(child).filter(|row| !row.zombie) {
                    found.push(row.id);
                }
            }
        }
        found
    }

    /// Children of `parent` that ended and wait to be reaped.
    pub fn zombies(&self, parent: i32) -> impl Iterator<Item = i32> {
        let children = self.children.get(&parent).into_iter().flatten().copied();
        children.filter(|pid| self.rows.get(pid).is_some_and(|row| row.zombie))
    }

    /// Whether some may have ended while it was read, and left others behind that are not in it: one is gone, or is a zombie
    /// that is none of `known`, to which such are added.
    pub fn may_lack_some(&self, known: &mut HashSet<ProcessId>) -> bool {
        let zombies = self.rows.values().filter(|row| row.zombie);
        zombies.fold(self.torn, |torn, row| known.insert(row.id) || torn)
    }

    /// Living children of `parent` that it did not spawn, and what lost its parent while the table was read.
    pub fn orphans(&self, parent: i32, spawned: &BTreeSet<i32>) -> Vec<Orphan> {
        let lost = |row: &Row| row.parent != 0 && !self.rows.contains_key(&row.parent);
        let living = self.rows.values().filter(|row| !row.zombie && !spawned.contains(&row.id.pid));
        living
            .filter(|row| row.parent == parent || lost(row))
            .map(|row| {
                let mut members = vec![row.id];
                members.extend(self.below(row.id.pid));
                Orphan { id: row.id, adopted: row.parent == parent, members }
            })
            .collect()
    }

    /// Every living process but `pid`, those that it descends from, and the kernel's own.
    pub fn all_but_line_of(&self, pid: i32) -> Vec<ProcessId> {
        let mut line = BTreeSet::new();
        let mut next = Some(pid);
        while let Some(pid) = next.filter(|pid| line.insert(*pid)) {
            next = self.rows.get(&pid).map(|row| row.parent);
        }
        let others =
            self.rows.values().filter(|row| !row.zombie && !row.kernel && !line.contains(&row.id.pid));
        others.map(|row| row.id).collect()
    }
}

/// Whether this process has a child that is none of `spawned`: one that it adopted, living or waiting to be reaped.
///
/// Costs a file for each thread, where a [`Table`] costs one for each process of the machine. A child can be left out
/// while others end, so nobody may rely on a `false` for longer than until the next table.
/// Where the kernel has no such lists it is always true. Source: proc_tid_children(5).
pub(crate) fn has_other_children(spawned: &BTreeSet<i32>) -> bool {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return true };
    for thread in threads.flatten() {
        match std::fs::read_to_string(thread.path().join("children")) {
            Ok(children) => {
                let mut pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
                if pids.any(|pid: i32| !spawned.contains(&pid)) {
                    return true;
                }
            }
            // A thread that has just ended has no children any more.
            Err(_) if !thread.path().exists() => {}
            Err(_) => return true,
        }
    }
    false
}

/// What the processes of a daemon and of its earlier runs are known by: its installation id, and its socket folder, which
/// one daemon at a time has locked.
pub(crate) struct Marks {
    instance_id: String,
    sockets_dir: PathBuf,
    /// The lowest of this daemon's limits on file locks, if it may set them.
    brand: Option<u64>,
}

/// In the lowest bits of a brand: 0 for a call, else a plugin's index and one.
const NUMBER_BITS: u32 = 16;

impl Marks {
    /// `may_brand` says whether children can be given any limit on file locks.
    pub fn new(instance_id: &str, sockets_dir: &Path, may_brand: bool) -> Self {
        // Between any limit that somebody would set and what stands for none.
        const HIGHEST_BIT: u64 = 1 << 62;
        let name = [instance_id.as_bytes(), sockets_dir.as_os_str().as_bytes()].join(&0);
        let hash = fnv_1a(&name) & (HIGHEST_BIT - 1) & !((1 << NUMBER_BITS) - 1);
        Self {
            instance_id: instance_id.to_owned(),
            sockets_dir: sockets_dir.to_owned(),
            brand: may_brand.then_some(HIGHEST_BIT | hash),
        }
    }

    /// The limit on file locks for the plugin of this index, or for a call.
    pub fn brand(&self, plugin: Option<usize>) -> Option<u64> {
        let number = plugin.map_or(0, |index| index as u64 + 1);
        self.brand.filter(|_| number < 1 << NUMBER_BITS).map(|brand| brand | number)
    }

    /// Reads what the process carries.
    pub fn read(&self, pid: i32) -> Mark {
        self.read_from(|name| std::fs::read(format!("/proc/{pid}/{name}")).ok())
    }

    /// `read` gives what is in one of the process's files now; nothing once it has ended, or where it is another user's.
    fn read_from(&self, mut read: impl FnMut(&str) -> Option<Vec<u8>>) -> Mark {
        let branded = read("limits").and_then(|limits| self.read_brand(parse_file_locks(&limits)?));
        if branded == Some(Mark::Call) {
            return Mark::Call;
        }
        let mut carried = Mark::Nothing;
        if let Some(environment) = read("environ") {
            carried = self.read_environment(&environment);
            if environment.is_empty() {
                carried = match read("cmdline") {
                    Some(arguments) if arguments.is_empty() => Mark::Changing,
                    Some(arguments) => {
                        // An exec makes arguments before the environment, and one may be over in between and the next
                        // begun. Who sleeps in none has none at all.
                        let sleeps = read("stat").is_some_and(|row| is_asleep(&row));
                        let environment = read("environ").unwrap_or_default();
                        if environment.is_empty() && !(sleeps && read("cmdline") == Some(arguments)) {
                            Mark::Changing
                        } else {
                            self.read_environment(&environment)
                        }
                    }
                    None => Mark::Nothing,
                };
            }
        }
        match (branded, carried) {
            (Some(Mark::Plugin { index, .. }), Mark::Plugin { id, .. }) => Mark::Plugin { index, id },
            (Some(branded), _) => branded,
            (None, carried) => carried,
        }
    }

    fn read_brand(&self, limit: u64) -> Option<Mark> {
        let number = (limit ^ self.brand?) as usize;
        match number {
            0 => Some(Mark::Call),
            _ if number < 1 << NUMBER_BITS => Some(Mark::Plugin { index: Some(number - 1), id: None }),
            _ => None,
        }
    }

    /// `environment` is `NAME=value` texts, each ended by NUL.
    fn read_environment(&self, environment: &[u8]) -> Mark {
        let value = |name: &str| {
            let mut entries = environment.split(|&byte| byte == 0);
            entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        };
        let path = |name: &str| value(name).map(|path| Path::new(OsStr::from_bytes(path)));
        match value("TORU_INSTANCE_ID") {
            None => Mark::Nothing,
            Some(found) if found != self.instance_id.as_bytes() => Mark::Foreign,
            Some(_) => match (value("TORU_PLUGIN_ID"), path("TORU_PLUGIN_SOCKET"), path(CALLED_FROM)) {
                (Some(id), Some(socket), _) if socket.parent() == Some(&self.sockets_dir) => {
                    Mark::Plugin { index: None, id: Some(OsString::from_vec(id.to_vec())) }
                }
                (_, None, Some(sockets)) if sockets == self.sockets_dir => Mark::Call,
                (_, None, None) => Mark::Nothing,
                _ => Mark::Foreign,
            },
        }
    }
}

/// The hash FNV-1a, the same in every build: a later version of the daemon has to find what this one left behind.
/// Source: draft-eastlake-fnv, section 5.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The hard limit, if there is one. Shape: `Max file locks  soft  hard  locks`. Source: proc_pid_limits(5).
fn parse_file_locks(limits: &[u8]) -> Option<u64> {
    let line =
        std::str::from_utf8(limits).ok()?.lines().find_map(|line| line.strip_prefix("Max file locks "))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The pid that was given last, or the largest if nobody says so. Source: proc_loadavg(5), fifth field.
fn newest_pid() -> i32 {
    let line = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    line.split_ascii_whitespace().nth(4).and_then(|pid| pid.parse().ok()).unwrap_or(i32::MAX)
}

/// How many pids ago this one was given: they are counted up, and begin anew at the limit.
fn age(pid: i32, newest: i32) -> i64 {
    // Not the limit itself, which may be lower: enough to put those above the newest after those below it.
    const PIDS_MAX: i64 = 1 << 32;
    (i64::from(newest) - i64::from(pid)).rem_euclid(PIDS_MAX)
}

fn read_row(pid: i32) -> Option<Row> {
    parse_row(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether a process waits for something: it neither runs nor waits for the disk, as within an exec. See [`parse_row`].
fn is_asleep(line: &[u8]) -> bool {
    let close = line.iter().rposition(|&byte| byte == b')');
    close.and_then(|close| line.get(close + 2)) == Some(&b'S')
}

/// Shape: `pid (command) state parent …`, the start time as the 22nd field. A command may hold any byte, `)` too.
/// Source: proc_pid_stat(5).
fn parse_row(line: &[u8]) -> Option<Row> {
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let pid = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?.parse().ok()?;
    let mut fields = std::str::from_utf8(line.get(close + 2..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    // The flags are the ninth field; PF_KTHREAD of the kernel's linux/sched.h.
    let kernel = fields.nth(4)?.parse::<u64>().ok()? & 0x0020_0000 != 0;
    let threads: u32 = fields.nth(10)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    // One whose first thread has ended lives on in the others.
    let zombie = matches!(state, "Z" | "X") && threads <= 1;
    Some(Row { id: ProcessId { pid, started }, parent, zombie, kernel })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, parent: i32, zombie: bool) -> Row {
        Row { id: ProcessId { pid, started: pid as u64 * 10 }, parent, zombie, kernel: false }
    }

    #[test]
    fn a_command_cannot_forge_its_row() {
        let rest = "S 7 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 18446744073709551615";
        for command in ["sh", "a b", ") Z 1 1 1", "(((", "\n"] {
            let line = format!("31 ({command}) {rest}\n");
            let row = parse_row(line.as_bytes()).expect(command);
            assert_eq!((row.id, row.parent, row.zombie), (ProcessId { pid: 31, started: 4242 }, 7, false));
        }
        for cut in ["", "31", "31 (sh", "31 (sh)", "31 (sh) S 7 1"] {
            assert!(parse_row(cut.as_bytes()).is_none(), "{cut:?}");
        }
        let own = std::process::id() as i32;
        assert_eq!(ProcessId::read(own).expect("this process exists").pid, own);
    }

    #[test]
    fn the_environment_tells_whose_a_process_is() {
        let plugin = |id: &str| Mark::Plugin { index: None, id: Some(id.into()) };
        let marks = Marks::new("i", Path::new("/s"), false);
        for (environment, expect) in [
            ("", Mark::Nothing),
            ("PATH=/bin\0", Mark::Nothing),
            ("XTORU_INSTANCE_ID=i\0TORU_INSTANCE_IDX=i\0", Mark::Nothing),
            ("TORU_INSTANCE_ID=other\0TORU_PLUGIN_ID=a\0", Mark::Foreign),
            ("TORU_INSTANCE_ID=i\0", Mark::Nothing),
            ("TORU_INSTANCE_ID=i\0TORU_CALLED_FROM=/s\0", Mark::Call),
            ("TORU_INSTANCE_ID=i\0TORU_CALLED_FROM=/t\0", Mark::Foreign),
            ("A=1\0TORU_PLUGIN_ID=a\0TORU_INSTANCE_ID=i\0TORU_PLUGIN_SOCKET=/s/a.sock\0", plugin("a")),
            ("TORU_PLUGIN_ID=a\0TORU_INSTANCE_ID=i\0TORU_PLUGIN_SOCKET=/t/a.sock\0", Mark::Foreign),
            ("TORU_INSTANCE_ID=ii\0TORU_PLUGIN_ID=a\0TORU_PLUGIN_SOCKET=/s/a.sock\0", Mark::Foreign),
        ] {
            assert_eq!(marks.read_environment(environment.as_bytes()), expect, "{environment:?}");
        }
    }

    #[test]
    fn who_is_in_the_middle_of_an_exec_is_not_taken_for_one_without_an_environment() {
        let marks = Marks::new("i", Path::new("/s"), false);
        let mine = "TORU_PLUGIN_ID=a\0TORU_INSTANCE_ID=i\0TORU_PLUGIN_SOCKET=/s/a.sock\0";
        let plugin = Mark::Plugin { index: None, id: Some("a".into()) };
        let (runs, reads, sleeps) = ("7 (sh) R 1", "7 (sh) D 1", "7 (S) S) S 1");
        for (files, expect) in [
            (vec![("environ", mine)], plugin.clone()),
            (vec![("environ", ""), ("cmdline", "")], Mark::Changing),
            // Over by the second look.
            (vec![("environ", ""), ("cmdline", "sh"), ("stat", runs), ("environ", mine)], plugin.clone()),
            (vec![("environ", ""), ("cmdline", "sh"), ("stat", sleeps), ("environ", mine)], plugin),
            // Its arguments are made, and its environment is not.
            (vec![("environ", ""), ("cmdline", "sh"), ("stat", runs), ("environ", "")], Mark::Changing),
            (vec![("environ", ""), ("cmdline", "sh"), ("stat", reads), ("environ", "")], Mark::Changing),
            // The next exec has begun.
            (
                vec![("environ", ""), ("cmdline", "a"), ("stat", sleeps), ("environ", ""), ("cmdline", "b")],
                Mark::Changing,
            ),
            (
                vec![("environ", ""), ("cmdline", "a"), ("stat", sleeps), ("environ", ""), ("cmdline", "a")],
                Mark::Nothing,
            ),
            // It has ended.
            (vec![("environ", "")], Mark::Nothing),
            (vec![], Mark::Nothing),
        ] {
            let mut left = files.clone().into_iter().peekable();
            let found = marks.read_from(|name| {
                let (_, content) = left.next_if(|(next, _)| *next == name)?;
                Some(content.into())
            });
            assert_eq!((found, left.next()), (expect, None), "{files:?}");
        }
    }

    #[test]
    fn the_limit_on_file_locks_tells_whose_a_process_is() {
        let marks = Marks::new("i", Path::new("/s"), true);
        let plugin = |index: usize| Mark::Plugin { index: Some(index), id: None };
        for (of, expect) in [(None, Mark::Call), (Some(0), plugin(0)), (Some(65_534), plugin(65_534))] {
            let limit = marks.brand(of).expect("it can be told by a number");
            assert!(limit < 1 << 63, "the kernel's largest");
            let text = format!(
                "Limit                     Soft Limit           Hard Limit           Units     \n\
                 Max address space         unlimited            unlimited            bytes     \n\
                 Max file locks            12                   {limit}  locks     \n"
            );
            let found = parse_file_locks(text.as_bytes()).expect("there is a line for it");
            assert_eq!(marks.read_brand(found), Some(expect), "{of:?}");
            for other in [Marks::new("j", Path::new("/s"), true), Marks::new("i", Path::new("/t"), true)] {
                assert_eq!(other.read_brand(found), None);
            }
            assert_eq!(Marks::new("i", Path::new("/s"), false).read_brand(found), None);
        }
        assert_eq!(marks.brand(Some(65_535)), None, "its bits would be the installation's");
        for limit in [0, 1, 4096, u64::MAX] {
            assert_eq!(marks.read_brand(limit), None, "{limit}");
        }
        let none = b"Max file locks            unlimited            unlimited            locks     \n";
        assert_eq!(parse_file_locks(none), None);
        assert_eq!(fnv_1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(b"foobar"), 0x8594_4171_f739_67e8, "a vector of the draft");
    }

    #[test]
    fn who_was_swept_is_the_plugins_whose_index_it_has() {
        let mut swept = Swept::default();
        for (pid, index, plugin) in [
            (10, Some(1), None),
            (11, Some(1), Some("b")),
            (12, Some(0), Some("a")),
            // Of a daemon that may not set limits.
            (13, None, Some("b")),
            (14, Some(2), None),
        ] {
            swept.add(pid, index, plugin.map(str::to_owned));
        }
        assert_eq!(swept.of(Some("a")), [12]);
        assert_eq!(swept.of(Some("b")), [10, 11, 13]);
        assert_eq!(swept.of(None), [14], "nobody else has its index");
        assert!(swept.of(Some("c")).is_empty());
        assert_eq!(swept.plugins(), BTreeSet::from(["a", "b"]));
    }

    #[test]
    fn orphans_are_the_children_that_were_not_spawned() {
        // 1 ── 10 (daemon) ─┬─ 20 (plugin) ── 21
        //                   ├─ 30 (orphan) ─┬─ 31 ── 32
        //                   │               └─ 33 (zombie)
        //                   └─ 40 (orphan, zombie)      50 (its parent was gone when it was read)
        let table = Table::from_rows(vec![
            row(1, 0, false),
            row(10, 1, false),
            row(20, 10, false),
            row(21, 20, false),
            row(30, 10, false),
            row(31, 30, false),
            row(32, 31, false),
            row(33, 30, true),
            row(40, 10, true),
            row(50, 49, false),
        ]);
        let pids = |ids: &[ProcessId]| ids.iter().map(|id| id.pid).collect::<BTreeSet<_>>();
        let orphans = table.orphans(10, &BTreeSet::from([20]));
        assert_eq!(
            orphans.iter().map(|orphan| (orphan.id.pid, orphan.adopted)).collect::<Vec<_>>(),
            [(30, true), (50, false)]
        );
        assert_eq!(pids(&orphans[0].members), BTreeSet::from([30, 31, 32]));
        assert_eq!(table.zombies(10).collect::<Vec<_>>(), [40]);
        assert_eq!(pids(&table.below(20)), BTreeSet::from([21]));
        assert_eq!(pids(&table.all_but_line_of(20)), BTreeSet::from([21, 30, 31, 32, 50]));
    }

    #[test]
    fn pids_are_ordered_by_when_they_were_given() {
        let mut pids = vec![1, 299, 300, 301, 30_000, 32_767];
        pids.sort_unstable_by_key(|pid| age(*pid, 300));
        assert_eq!(pids, [300, 299, 1, 32_767, 30_000, 301]);
        let own = std::process::id() as i32;
        assert!(age(own, newest_pid()) >= 0 && newest_pid() < i32::MAX);
    }

    #[test]
    fn a_circle_in_a_torn_table_ends() {
        let table = Table::from_rows(vec![row(5, 6, false), row(6, 5, false)]);
        assert_eq!(table.below(5).len(), 1);
        assert!(table.all_but_line_of(5).is_empty());
    }
}
