//! The threads that read and write: one leads, the next watches it, the rest wait for that post.
//!
//! The leader waits for whatever connection has something, and gives it a turn: bytes in, handlers polled, answers out,
//! all without another thread. A handler that blocks holds its thread up, and only then is a second one needed: the
//! watcher, who looks now and then while there is traffic and sleeps while there is none, takes the lead.
//! The thread that was held up comes back as a follower.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::serve::{Connection, Driver, lock, panic_text};

/// A turn that takes longer than this, and at most twice this, holds nobody else up. Each look is a wake-up of each busy
/// plugin, of which there may be hundreds.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The key of the event that ends a leader's wait; connections count from 1.
const POKE: u64 = 0;

/// A connection as the threads share it.
struct Seat {
    driver: Mutex<Driver>,
    connection: Arc<Connection>,
    /// There is something for it to do, also for a thread that is with it now.
    is_due: AtomicBool,
    /// Bytes have come.
    is_readable: AtomicBool,
    /// The other side has closed, which no later event says again.
    has_closed: AtomicBool,
}

/// All connections, and who serves them.
pub(super) struct Lead {
    epoll: OwnedFd,
    poke: OwnedFd,
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    /// Connections to be given a turn, without an event of theirs.
    poked: Mutex<VecDeque<u64>>,
    /// Counts up. Odd: the leader is in a turn; even: it waits. Whoever counts a turn on leads.
    turn: AtomicU64,
    /// The watcher sleeps until it is woken.
    is_unwatched: AtomicBool,
    post: Mutex<()>,
    woken: Mutex<()>,
    wake: Condvar,
    is_over: AtomicBool,
}

impl std::fmt::Debug for Lead {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Lead").finish_non_exhaustive()
    }
}

impl Lead {
    pub fn new() -> io::Result<Arc<Self>> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &poke, epoll::EventData::new_u64(POKE), flags)?;
        Ok(Arc::new(Self {
            epoll,
            poke,
            seats: Mutex::default(),
            poked: Mutex::default(),
            turn: AtomicU64::new(1),
            is_unwatched: AtomicBool::new(false),
            post: Mutex::new(()),
            woken: Mutex::new(()),
            wake: Condvar::new(),
            is_over: AtomicBool::new(false),
        }))
    }

    /// Starts the threads, in which `tokio`'s functions work as they do in its own.
    ///
    /// They end after [`stop`](Self::stop), one in a handler once that has returned.
    pub fn start(self: &Arc<Self>, threads: usize, runtime: &tokio::runtime::Handle) -> io::Result<()> {
        for number in 0..threads {
            let (lead, runtime) = (Arc::clone(self), runtime.clone());
            std::thread::Builder::new().name(format!("toru-{number}")).spawn(move || {
                let _within = runtime.enter();
                // The first to come takes the first turn, which is nobody's.
                while let Some(turn) = lead.follow() {
                    lead.lead(turn);
                }
            })?;
        }
        Ok(())
    }

    /// Lets the threads end.
    pub fn stop(&self) {
        self.is_over.store(true, SeqCst);
        self.end_wait();
        self.wake_watcher();
    }

    /// Gives a connection its turns from now on.
    pub fn add(&self, id: u64, driver: Driver) -> io::Result<()> {
        let connection = driver.connection();
        let seat = Arc::new(Seat {
            driver: Mutex::new(driver),
            connection: Arc::clone(&connection),
            is_due: AtomicBool::new(false),
            is_readable: AtomicBool::new(false),
            has_closed: AtomicBool::new(false),
        });
        lock(&self.seats).insert(id, Arc::clone(&seat));
        let event = epoll::EventData::new_u64(id);
        epoll::add(&self.epoll, connection.stream(), event, interest(&connection, false)).map_err(|error| {
            lock(&self.seats).remove(&id);
            lock(&seat.driver).close();
            error.into()
        })
    }

    /// Whether a connection is told when there is room to write.
    ///
    /// Only while it needs to be: the event comes with every answer that the other side takes.
    pub fn watch_room(&self, id: u64, connection: &Connection, is_wanted: bool) {
        let event = epoll::EventData::new_u64(id);
        // Fails where the connection is closed already.
        let _ = epoll::modify(&self.epoll, connection.stream(), event, interest(connection, is_wanted));
    }

    /// Gives a connection a turn soon.
    pub fn poke(&self, id: u64) {
        lock(&self.poked).push_back(id);
        self.end_wait();
    }

    /// Gives all connections a turn soon.
    pub fn poke_all(&self) {
        let ids: Vec<u64> = lock(&self.seats).keys().copied().collect();
        lock(&self.poked).extend(ids);
        self.end_wait();
    }

    /// Gives a connection another turn, from within its turn: the thread that is with it sees to that.
    pub fn again(&self, id: u64) {
        lock(&self.poked).push_back(id);
    }

    /// From now on, a turn that takes long is noticed.
    ///
    /// Costs a load while the watcher is awake.
    pub fn be_watched(&self) {
        if self.is_unwatched.load(SeqCst) {
            self.wake_watcher();
        }
    }

    fn wake_watcher(&self) {
        let _woken = lock(&self.woken);
        self.is_unwatched.store(false, SeqCst);
        self.wake.notify_all();
    }

    fn end_wait(&self) {
        // It fails only where 2^64 others have come before it.
        let _ = rustix::io::write(&self.poke, &1_u64.to_ne_bytes());
    }

    /// Waits until the lead is to be had; gives the turn that it begins with, or `None` when it is over.
    fn follow(&self) -> Option<u64> {
        let _post = lock(&self.post);
        let mut seen = None;
        loop {
            let turn = self.turn.load(SeqCst);
            if self.is_over.load(SeqCst) {
                return None;
            }
            let is_waiting = turn.is_multiple_of(2);
            if !is_waiting && (seen == Some(turn) || turn == 1) {
                // Still odd, and no longer the turn of whoever had it.
                if self.turn.compare_exchange(turn, turn + 2, SeqCst, SeqCst).is_ok() {
                    return Some(turn + 2);
                }
            }
            let mut woken = lock(&self.woken);
            if is_waiting && seen == Some(turn) {
                self.is_unwatched.store(true, SeqCst);
                // A leader that began a turn before it could see this shows here.
                if self.turn.load(SeqCst) != turn {
                    self.is_unwatched.store(false, SeqCst);
                }
                while self.is_unwatched.load(SeqCst) {
                    woken = self.wake.wait(woken).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                seen = None;
            } else {
                seen = Some(turn);
                drop(woken);
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }

    /// Gives turns until the lead is lost.
    fn lead(&self, mut turn: u64) {
        let mut events = Vec::with_capacity(1);
        loop {
            // Not those that come meanwhile: events have their turn, too.
            // And one at a time, since whoever takes the lead from a thread that is held up gives the rest theirs.
            let count = lock(&self.poked).len();
            for _ in 0..count {
                if self.turn.load(SeqCst) != turn {
                    break;
                }
                let Some(id) = lock(&self.poked).pop_front() else { break };
                self.give_turn(id, epoll::EventFlags::empty());
            }
            if self.turn.compare_exchange(turn, turn + 1, SeqCst, SeqCst).is_err() {
                // Whoever leads now may have begun to wait before the turn here asked for another.
                if !lock(&self.poked).is_empty() {
                    self.end_wait();
                }
                return;
            }
            turn += 1;
            // Pokes from elsewhere are events; those from turns are not.
            let timeout = (!lock(&self.poked).is_empty()).then(rustix::event::Timespec::default);
            // One, for the reason given above.
            let outcome =
                epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref());
            turn += 1;
            self.turn.store(turn, SeqCst);
            if self.is_over.load(SeqCst) {
                return;
            }
            match outcome {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    eprintln!("failed to wait for connections: {error}");
                    std::thread::sleep(LOOK_EVERY);
                }
            }
            for event in events.drain(..) {
                if event.data.u64() != POKE {
                    self.give_turn(event.data.u64(), event.flags);
                }
            }
        }
    }

    /// Gives a connection a turn, unless another thread is with it, which then gives it one more.
    fn give_turn(&self, id: u64, flags: epoll::EventFlags) {
        let Some(seat) = lock(&self.seats).get(&id).map(Arc::clone) else {
            return;
        };
        if flags.intersects(epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            seat.has_closed.store(true, SeqCst);
        }
        if !flags.difference(epoll::EventFlags::OUT).is_empty() {
            seat.is_readable.store(true, SeqCst);
        }
        seat.is_due.store(true, SeqCst);
        while seat.is_due.load(SeqCst) {
            // Poisoned it cannot be: a panic is caught below.
            let Ok(mut driver) = seat.driver.try_lock() else {
                return;
            };
            while seat.is_due.swap(false, SeqCst) {
                let is_readable = seat.is_readable.swap(false, SeqCst);
                let has_closed = seat.has_closed.load(SeqCst);
                let took = catch_unwind(AssertUnwindSafe(|| driver.take_turn(is_readable, has_closed)));
                let goes_on = took.unwrap_or_else(|panic| {
                    // A handler's panic is caught before: this is a mistake of the SDK.
                    eprintln!("a connection to the core failed: {}", panic_text(&*panic));
                    false
                });
                if !goes_on {
                    lock(&self.seats).remove(&id);
                    let _ = epoll::delete(&self.epoll, seat.connection.stream());
                    driver.close();
                    return;
                }
            }
        }
    }
}

fn interest(connection: &Connection, in_room: bool) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::ET;
    flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, !connection.is_read_elsewhere());
    flags.set(epoll::EventFlags::OUT, in_room);
    flags
}
