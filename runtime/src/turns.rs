//! How many requests of one plugin a worker takes up before it looks at what has come for the others.
//!
//! A worker serves what is ready in the order in which it came. Whoever floods one plugin has hundreds of requests ready at
//! once, and everybody else would wait for all of them, with the request and once more with its answer. So each plugin has
//! a quantum for one turn of the loop; what is beyond it waits in a line of that plugin.
//! The loop does not say when a turn is over: a byte that the worker sends to itself does, since it comes back only when
//! the driver has been asked for all that is ready. That holds for a read that waits in the kernel already. One that finds
//! its byte is done as soon as it is submitted, and the loop, which submits whenever tasks have woken others, could go on
//! for as long as there is a line and neither look at sockets nor at timers. So two bells ring in turn: when one does,
//! the read of the other was submitted before.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::ptr;
use std::rc::Rc;
use std::task::{Poll, Waker};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

use crate::driver::{Driver, send_now};

/// Requests of one plugin in one turn, while other plugins have some too: what those wait for grows with it.
const QUANTUM_SHARED: u32 = 8;
/// The same while nobody else has any. Without a bound, several hundred clients push each other out of the processor's
/// caches; fewer than this share too little of a turn's system calls.
const QUANTUM_ALONE: u32 = 64;
/// For so many turns in which somebody waited a worker remembers that it serves several plugins.
const TURNS_REMEMBERED: u32 = 256;

/// The requests of one plugin that one worker has taken up in this turn, and those that wait for theirs.
#[derive(Default)]
pub struct Line {
    taken: Cell<u32>,
    /// How many have come out of the line, from the first on.
    admitted: Cell<u64>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Line {
    /// What was taken up is on its way: another turn begins, unless there is a line, which has turns of its own.
    pub fn note_sent(&self) {
        if self.waiting.borrow().is_empty() {
            self.taken.set(0);
        }
    }

    fn try_take(&self, quantum: u32) -> bool {
        let free = self.taken.get() < quantum && self.waiting.borrow().is_empty();
        if free {
            self.taken.set(self.taken.get() + 1);
        }
        free
    }

    /// Gives the place in the line.
    fn join(&self, waker: Waker) -> u64 {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push_back(waker);
        self.admitted.get() + waiting.len() as u64
    }

    /// Takes up those who wait longest, for a new turn. Whether more wait.
    fn admit(&self, quantum: u32) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let count = waiting.len().min(quantum as usize);
        self.taken.set(count as u32);
        self.admitted.set(self.admitted.get() + count as u64);
        waiting.drain(..count).for_each(Waker::wake);
        !waiting.is_empty()
    }
}

/// The turns of one worker's loop, counted only while somebody waits for one.
pub struct Turns {
    driver: Driver,
    /// The two ends of one connection: what is written to the one is heard at the other. Made for the first who has to
    /// wait: a descriptor is not for what may never be.
    bells: OnceCell<[RawFd; 2]>,
    /// Which of them is next.
    next_bell: Cell<usize>,
    rung: Cell<bool>,
    /// Somebody listens to one of them no more, and has closed it.
    is_deaf: Cell<bool>,
    /// Those in which somebody waits.
    lines: RefCell<Vec<Rc<Line>>>,
    /// Where the last request was taken up.
    last: Cell<*const Line>,
    /// For so many turns more the worker serves several plugins.
    shared: Cell<u32>,
}

impl Turns {
    pub fn new(driver: Driver) -> Rc<Self> {
        Rc::new(Self {
            driver,
            bells: OnceCell::new(),
            next_bell: Cell::default(),
            rung: Cell::new(false),
            is_deaf: Cell::new(false),
            lines: RefCell::default(),
            last: Cell::new(ptr::null()),
            shared: Cell::new(0),
        })
    }

    /// Takes a request up, once its plugin's quantum allows it.
    pub async fn take(self: &Rc<Self>, line: &Rc<Line>) {
        let this = Rc::as_ptr(line);
        let last = self.last.replace(this);
        if last != this && !last.is_null() {
            self.shared.set(TURNS_REMEMBERED);
        }
        if !line.try_take(self.quantum()) {
            self.wait(line).await;
        }
    }

    /// Has what a plugin sends wait for its turn, too, while the worker serves several.
    pub async fn pace(self: &Rc<Self>, line: &Rc<Line>) {
        if self.shared.get() > 0 && !line.try_take(self.quantum()) {
            self.wait(line).await;
        }
    }

    async fn wait(self: &Rc<Self>, line: &Rc<Line>) {
        let mut place = None;
        poll_fn(|cx| {
            let place = *place.get_or_insert_with(|| self.join(line, cx.waker().clone()));
            if place <= line.admitted.get() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn quantum(&self) -> u32 {
        if self.shared.get() > 0 { QUANTUM_SHARED } else { QUANTUM_ALONE }
    }

    fn join(self: &Rc<Self>, line: &Rc<Line>, waker: Waker) -> u64 {
        let first = line.waiting.borrow().is_empty();
        let place = line.join(waker);
        if first {
            self.lines.borrow_mut().push(line.clone());
            self.ring();
        }
        place
    }

    fn ring(self: &Rc<Self>) {
        if !self.rung.replace(true) && self.sound().is_err() {
            self.admit_all();
        }
    }

    /// Without memory or descriptors for turns: all at once, rather than never.
    fn admit_all(&self) {
        self.rung.set(false);
        for line in self.lines.take() {
            line.admit(u32::MAX);
        }
    }

    /// Has a turn begin when the driver has been asked for what is ready.
    fn sound(self: &Rc<Self>) -> io::Result<()> {
        let bells = match self.bells.get() {
            Some(bells) => bells,
            None => {
                let bells = self.cast_bells()?;
                self.bells.get_or_init(|| bells)
            }
        };
        let bell = bells[self.next_bell.replace(1 - self.next_bell.get())];
        // One that is closed is not rung: its descriptor may be somebody else's.
        if self.is_deaf.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // SAFETY: whoever closes a bell says so in `is_deaf`.
        let bell = unsafe { BorrowedFd::borrow_raw(bell) };
        let rung = send_now(bell, b".")?;
        if rung == 1 { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn cast_bells(self: &Rc<Self>) -> io::Result<[RawFd; 2]> {
        let (one, other) = StdUnixStream::pair()?;
        let bells = [one.as_raw_fd(), other.as_raw_fd()];
        let heard = |bell: StdUnixStream| {
            // The ring wants blocking sockets (a non-blocking one fails instead of waiting), epoll the opposite.
            bell.set_nonblocking(self.driver == Driver::Epoll)?;
            UnixStream::from_std(bell)
        };
        // Both or none: who hears the end of a bell takes all for closed.
        for heard in [heard(one)?, heard(other)?] {
            monoio::spawn(listen(self.clone(), heard));
        }
        Ok(bells)
    }

    fn begin_turn(self: &Rc<Self>) {
        self.rung.set(false);
        let quantum = self.quantum();
        self.shared.set(self.shared.get().saturating_sub(1));
        self.lines.borrow_mut().retain(|line| line.admit(quantum));
        if !self.lines.borrow().is_empty() {
            self.ring();
        }
    }
}

/// Lets those in line have their turns; for as long as the loop lives.
async fn listen(turns: Rc<Turns>, mut heard: UnixStream) {
    let mut buffer = Vec::with_capacity(1);
    loop {
        let outcome;
        (outcome, buffer) = heard.read(buffer).await;
        match outcome {
            Ok(1..) => turns.begin_turn(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The other end is in a task like this, which ends with the loop.
            Ok(0) | Err(_) => {
                turns.is_deaf.set(true);
                return turns.admit_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::on_each;
    use crate::timers;

    type Taken = Rc<RefCell<String>>;

    /// Runs `life` on each driver that there is, with turns that are being had.
    fn on_each_driver(life: impl AsyncFn(Rc<Turns>, Driver)) {
        on_each(async |driver| life(Turns::new(driver), driver).await);
    }

    async fn request(turns: Rc<Turns>, line: Rc<Line>, name: char, taken: Taken) {
        turns.take(&line).await;
        taken.borrow_mut().push(name);
    }

    #[test]
    fn who_comes_behind_a_flood_of_another_plugin_waits_for_a_few_of_it() {
        on_each_driver(async |turns, driver| {
            let (flooded, other, taken) = (Rc::<Line>::default(), Rc::<Line>::default(), Taken::default());
            request(turns.clone(), other.clone(), 'o', taken.clone()).await;
            let flood = (0..500)
                .map(|_| monoio::spawn(request(turns.clone(), flooded.clone(), 'f', taken.clone())))
                .collect::<Vec<_>>();
            // The loop hears of its client in a later turn.
            let (bell, heard) = StdUnixStream::pair().expect("descriptors");
            heard.set_nonblocking(driver == Driver::Epoll).expect("a socket");
            let mut heard = UnixStream::from_std(heard).expect("a socket");
            send_now(&bell, b".").expect("a byte");
            assert_eq!(heard.read(vec![0; 1]).await.0.expect("a byte"), 1);
            request(turns.clone(), other.clone(), 'o', taken.clone()).await;
            let before = taken.borrow().len();
            assert!(before <= 4 * QUANTUM_SHARED as usize, "behind {before} others");
            for request in flood {
                request.await;
            }
            assert_eq!(taken.borrow().len(), 502, "nobody is forgotten");
        });
    }

    #[test]
    fn between_turns_the_driver_is_asked_for_what_others_wait_for() {
        on_each_driver(async |turns, driver| {
            let (flooded, other, taken) = (Rc::<Line>::default(), Rc::<Line>::default(), Taken::default());
            request(turns.clone(), other.clone(), 'o', taken.clone()).await;
            let (bell, heard) = StdUnixStream::pair().expect("descriptors");
            heard.set_nonblocking(driver == Driver::Epoll).expect("a socket");
            let mut heard = UnixStream::from_std(heard).expect("a socket");
            let seen = taken.clone();
            let reading = monoio::spawn(async move {
                assert_eq!(heard.read(vec![0; 1]).await.0.expect("a byte"), 1);
                seen.borrow().len()
            });
            // The read waits in the kernel before there is anything to read.
            timers::sleep(std::time::Duration::from_millis(5)).await;
            let flood = (0..500)
                .map(|number| {
                    let request = request(turns.clone(), flooded.clone(), 'f', taken.clone());
                    let bell = (number == 100).then(|| bell.try_clone().expect("a descriptor"));
                    monoio::spawn(async {
                        request.await;
                        if let Some(bell) = bell {
                            send_now(&bell, b".").expect("a byte");
                        }
                        // Others have something to do because of it, as the writer to the plugin has.
                        for _ in 0..3 {
                            monoio::spawn(async {}).await;
                        }
                    })
                })
                .collect::<Vec<_>>();
            let before = reading.await;
            assert!(before <= 100 + 8 * QUANTUM_SHARED as usize, "behind {before} others");
            for request in flood {
                request.await;
            }
        });
    }

    #[test]
    fn what_a_plugin_sends_has_turns_where_it_is_not_alone() {
        on_each_driver(async |turns, _| {
            let (sent, other) = (Rc::<Line>::default(), Rc::<Line>::default());
            for _ in 0..10 * QUANTUM_ALONE {
                turns.pace(&sent).await;
            }
            assert!(turns.bells.get().is_none(), "alone, nobody waits");
            for line in [&sent, &other] {
                turns.take(line).await;
            }
            for _ in 0..10 * QUANTUM_SHARED {
                turns.pace(&sent).await;
            }
            assert!(turns.bells.get().is_some());
            assert!(sent.admitted.get() >= 9, "{} turns", sent.admitted.get());
        });
    }

    #[test]
    fn nobody_in_line_is_passed() {
        on_each_driver(async |turns, _| {
            let (line, taken) = (Rc::<Line>::default(), Taken::default());
            let letters = ('a'..='z').cycle().take(300).collect::<String>();
            let requests = letters
                .chars()
                .map(|name| monoio::spawn(request(turns.clone(), line.clone(), name, taken.clone())))
                .collect::<Vec<_>>();
            // As after each write to the plugin.
            while taken.borrow().len() < QUANTUM_ALONE as usize {
                timers::sleep(std::time::Duration::from_millis(1)).await;
            }
            line.note_sent();
            for request in requests {
                request.await;
            }
            assert_eq!(*taken.borrow(), letters);
        });
    }

    #[test]
    fn what_is_sent_counts_no_more() {
        on_each_driver(async |turns, _| {
            let line = Rc::<Line>::default();
            for _ in 0..10 {
                for _ in 0..QUANTUM_ALONE {
                    assert!(line.try_take(turns.quantum()));
                }
                assert!(!line.try_take(turns.quantum()));
                line.note_sent();
            }
        });
    }
}
