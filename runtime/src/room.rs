//! Who may hold how many of the daemon's descriptors: clients get what plugins and the rest do not need.
//!
//! Without that, idle clients could take the last ones, and no plugin would be reached, started or logged until they left.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

/// Far more than operators, consoles and scrapers of one machine, and few enough that a script which leaks its
/// connections takes nothing from anybody else.
const CONTROL_MAX: usize = 128;
const CROWD_MAX: usize = 1024;
/// Clients are served even where plugins need everything: some descriptors are always free, since no process is started
/// with the last ones.
const CLIENTS_MIN: usize = 4;
/// For a spawn, SQLite and files that are read at the moment.
const SPARE: usize = 12;
/// Of a process: its pidfd, its two streams, the supervisor's connection and its log.
const BY_PLUGIN: usize = 5;
/// Of a thread's event loop; that of one that serves clients has one more, for their set.
const BY_LOOP: usize = 2;

/// Descriptors of the whole process, and whom they are for.
pub struct Descriptors {
    /// None where there is no limit.
    limit: Option<usize>,
    /// Of the daemon itself.
    own: usize,
    /// So many of those that were told that there is no room keep their descriptors for a moment, over all workers.
    pub crowd_max: usize,
    /// Clients of the control socket.
    pub control_max: usize,
    workers: usize,
    legacy_connections: usize,
    /// What the files of the plugins folder may come to, until they have said what they are.
    expected: AtomicUsize,
    clients: AtomicUsize,
    /// Files that are being sent, each for one of the clients.
    files: AtomicUsize,
}

/// The descriptor of a file that is being sent, for as long as this lives.
pub struct FilePlace(Arc<Descriptors>);

impl Drop for FilePlace {
    fn drop(&mut self) {
        self.0.files.fetch_sub(1, Relaxed);
    }
}

impl Descriptors {
    /// Counts what is open now; the threads that serve `workers` and the control socket are still to come.
    pub fn of_this_process(workers: usize, legacy_connections: u32, plugins_dir: &Path) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let open = fs::read_dir("/proc/self/fd").map_or(64, Iterator::count);
        let descriptors = Self::new(limit, open, workers, legacy_connections as usize);
        // A folder that is not there is the supervisor's to tell of.
        let names = fs::read_dir(plugins_dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let files = names.filter(|path| path.extension().is_some_and(|end| end == "binary")).count();
        descriptors.expected.store(files * (BY_PLUGIN + workers), Relaxed);
        descriptors.reserve(0);
        descriptors
    }

    fn new(limit: Option<usize>, open: usize, workers: usize, legacy_connections: usize) -> Self {
        let share = limit.map_or(usize::MAX, |limit| rest_of(limit) / 4);
        let descriptors = Self {
            limit,
            own: open + BY_LOOP * (workers + 2) + (workers + 1),
            // Fewer than operators: they only wait for having read that there is no room.
            crowd_max: (share / 4 * 3).min(CROWD_MAX),
            control_max: share.min(CONTROL_MAX),
            workers,
            legacy_connections,
            expected: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            files: AtomicUsize::new(0),
        };
        descriptors.reserve(0);
        descriptors
    }

    /// What one plugin takes: its process, and a connection for each worker or, with protocol 1.0, for each request.
    pub fn of_plugin(&self, legacy: bool) -> usize {
        BY_PLUGIN + if legacy { self.legacy_connections } else { self.workers }
    }

    /// How many clients and files that are sent to them there is room for.
    pub fn clients_max(&self) -> usize {
        self.clients.load(Relaxed)
    }

    /// Whether so many `clients` and the files that are sent to them leave room for no more.
    pub fn are_taken(&self, clients: usize) -> bool {
        clients.saturating_add(self.files.load(Relaxed).max(self.files_min())) >= self.clients_max()
    }

    /// Room for one more file beside so many `clients`, if there is any.
    pub fn take_file(self: &Arc<Self>, clients: usize) -> Option<FilePlace> {
        let files = self.files.fetch_add(1, Relaxed);
        let place = FilePlace(self.clone());
        (files < self.files_min() || clients.saturating_add(files) < self.clients_max()).then_some(place)
    }

    /// So many files find room however many clients there are.
    fn files_min(&self) -> usize {
        self.clients_max() / 8
    }

    /// Every file of the start has said what it is.
    pub fn expect_no_more(&self) {
        self.expected.store(0, Relaxed);
    }

    /// Keeps as many for plugins. Gives the limit where so few are left for clients that somebody should raise it, as soon
    /// as all plugins of the start are known.
    pub fn reserve(&self, plugins: usize) -> Option<usize> {
        let Some(limit) = self.limit else {
            self.clients.store(usize::MAX, Relaxed);
            return None;
        };
        let left = |plugins: usize| {
            let refused = self.crowd_max + (self.control_max / 4).max(1);
            let needed = plugins + self.control_max + refused + SPARE;
            limit.saturating_sub(self.own + rest_of(limit).max(needed))
        };
        let expected = self.expected.load(Relaxed);
        self.clients.store(left(expected.max(plugins)).max(CLIENTS_MIN), Relaxed);
        (expected == 0 && left(plugins) < CLIENTS_MIN).then_some(limit)
    }
}

/// The share that no client of the public address gets, however few plugins there are.
fn rest_of(limit: usize) -> usize {
    (limit / 4).clamp(16, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_plugins_and_the_rest_leave() {
        for (limit, plugins, enough) in [
            (64, 1, true),
            (64, 4, false),
            (256, 20, true),
            (1024, 100, true),
            (1024, 200, false),
            (20_000, 100, true),
        ] {
            let descriptors = Descriptors::new(Some(limit), 12, 2, 4);
            let needed = plugins * descriptors.of_plugin(false);
            let short = descriptors.reserve(needed);
            assert_eq!(short.is_none(), enough, "{plugins} plugins of {limit}");
            let clients = descriptors.clients_max();
            assert!(clients >= CLIENTS_MIN, "{plugins} plugins of {limit}");
            if enough {
                let all = descriptors.own
                    + needed
                    + clients
                    + descriptors.crowd_max
                    + descriptors.control_max
                    + (descriptors.control_max / 4).max(1)
                    + SPARE;
                assert!(all <= limit, "{plugins} plugins of {limit}: {all}");
            }
        }
    }

    #[test]
    fn a_file_that_is_sent_takes_the_room_of_a_client() {
        let descriptors = Arc::new(Descriptors::new(Some(256), 12, 2, 4));
        let all = descriptors.clients_max();
        let most = all - all / 8;
        assert!(!descriptors.are_taken(most - 1) && descriptors.are_taken(most));
        let files: Vec<_> = (0..).map_while(|_| descriptors.take_file(all / 2)).collect();
        assert_eq!(files.len(), all - all / 2);
        assert!(descriptors.are_taken(all / 2) && !descriptors.are_taken(all / 2 - 1));
        drop(files);
        assert!(!descriptors.are_taken(most - 1));
        let files: Vec<_> = (0..).map_while(|_| descriptors.take_file(most)).collect();
        assert_eq!(files.len(), all / 8, "some find room beside any crowd");
        drop(files);
        assert!(!descriptors.are_taken(most - 1));
    }

    #[test]
    fn the_room_follows_the_plugins() {
        let descriptors = Descriptors::new(Some(256), 12, 2, 4);
        let without = descriptors.clients_max();
        descriptors.reserve(20 * descriptors.of_plugin(false));
        let with = descriptors.clients_max();
        assert!(with + 100 < without, "{with} and {without}");
        descriptors.reserve(0);
        assert_eq!(descriptors.clients_max(), without);
    }

    #[test]
    fn files_count_before_they_have_said_what_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = Descriptors::of_this_process(2, 4, folder.path());
        for number in 0..4000 {
            fs::write(folder.path().join(format!("{number}.binary")), "").expect("a file");
        }
        let full = Descriptors::of_this_process(2, 4, folder.path());
        if full.limit.is_some_and(|limit| limit < 100_000) {
            assert!(full.clients_max() < empty.clients_max());
        }
        full.expect_no_more();
        full.reserve(0);
        // Other tests open and close files meanwhile.
        assert!(full.clients_max().abs_diff(empty.clients_max()) < 1000);
    }

    #[test]
    fn without_a_limit_there_is_room_for_all() {
        let descriptors = Descriptors::new(None, 12, 2, 4);
        assert_eq!((descriptors.reserve(1_000_000), descriptors.clients_max()), (None, usize::MAX));
        assert_eq!((descriptors.crowd_max, descriptors.control_max), (CROWD_MAX, CONTROL_MAX));
    }
}
