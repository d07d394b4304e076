//! Timers of this thread's loop, all behind one timer descriptor that the loop waits for like for a socket.
//!
//! With timers of its own the loop would look at the clock before and after each time that it waits, and have the kernel
//! arm and cancel one for each: work for every request, though hardly any timer ever comes due. A descriptor is armed once
//! for the earliest of them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use monoio::net::UnixStream;
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// A wait that is longer is none that ends; and what the kernel takes has an end.
const WAIT_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

thread_local! {
    static CURRENT: RefCell<Option<Rc<Timers>>> = const { RefCell::new(None) };
}

struct Timers {
    /// As the loop knows it, which waits for nothing but its own types: all that is asked of this one is whether it is
    /// readable.
    descriptor: UnixStream,
    /// Who waits, by when; the number keeps apart those that wait until the same moment.
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    /// What the descriptor is armed for.
    armed: Cell<Option<Instant>>,
    next: Cell<u64>,
}

/// This thread's timers, until it is dropped.
pub struct Running(());

/// Starts the timers of this thread's loop; to be called on it, before the first wait.
///
/// Errors: no descriptor, or no memory for it.
pub fn start() -> io::Result<Running> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    let descriptor: OwnedFd = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    let timers = Rc::new(Timers {
        descriptor: UnixStream::from_std(StdUnixStream::from(descriptor))?,
        waiting: RefCell::default(),
        armed: Cell::new(None),
        next: Cell::new(0),
    });
    CURRENT.set(Some(timers.clone()));
    monoio::spawn(async move {
        loop {
            // It is this side's own, and only ever ends with the loop.
            let _ = timers.descriptor.readable(false).await;
            timers.fire();
        }
    });
    Ok(Running(()))
}

impl Drop for Running {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

impl Timers {
    fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `self.descriptor` is dropped, which the borrow of `self` forbids.
        unsafe { BorrowedFd::borrow_raw(self.descriptor.as_raw_fd()) }
    }

    /// Wakes all that are due.
    fn fire(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(self.descriptor(), &mut count);
        self.armed.set(None);
        let now = Instant::now();
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let Some(first) = waiting.first_entry() else { return };
            let (at, _) = *first.key();
            if at > now {
                drop(waiting);
                return self.arm(at, now);
            }
            let waker = first.remove();
            drop(waiting);
            waker.wake();
        }
    }

    /// Sees to it that `fire` is called at this time.
    fn arm(&self, at: Instant, now: Instant) {
        if self.armed.get().is_some_and(|armed| armed <= at) {
            return;
        }
        // Zero would disarm it.
        let left = at.saturating_duration_since(now).clamp(Duration::from_nanos(1), WAIT_MAX);
        let it_value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let outcome: Result<_, Errno> = timerfd_settime(self.descriptor(), TimerfdTimerFlags::empty(), &once);
        outcome.expect("a time that the kernel takes, for a descriptor that is open");
        self.armed.set(Some(at));
    }
}

/// Waits; see [`sleep_until`].
pub fn sleep(time: Duration) -> Sleep {
    sleep_until(Instant::now() + time.min(WAIT_MAX))
}

/// Waits until then, and no longer than the loop needs to get to it.
///
/// Panics when it is polled on a thread without timers.
pub fn sleep_until(at: Instant) -> Sleep {
    Sleep { at, armed: None }
}

pub struct Sleep {
    at: Instant,
    /// Where it waits, and under which number.
    armed: Option<(Rc<Timers>, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((timers, number)) = &self.armed {
            let key = (self.at, *number);
            let mut waiting = timers.waiting.borrow_mut();
            let Some(waker) = waiting.get_mut(&key) else { return Poll::Ready(()) };
            let before = (!waker.will_wake(cx.waker())).then(|| mem::replace(waker, cx.waker().clone()));
            drop(waiting);
            // A task may end with the last that would wake it, and what it waited for with it.
            drop(before);
            return Poll::Pending;
        }
        let now = Instant::now();
        if self.at <= now {
            return Poll::Ready(());
        }
        let timers = CURRENT.with_borrow(|current| current.clone()).expect("this thread has timers");
        let number = timers.next.replace(timers.next.get() + 1);
        timers.waiting.borrow_mut().insert((self.at, number), cx.waker().clone());
        timers.arm(self.at, now);
        self.armed = Some((timers, number));
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        // The descriptor stays armed: once for nothing costs less than a system call for each that did not come due.
        if let Some((timers, number)) = self.armed.take() {
            let waker = timers.waiting.borrow_mut().remove(&(self.at, number));
            drop(waker);
        }
    }
}

/// The time was up first.
#[derive(Debug, PartialEq, Eq)]
pub struct Elapsed;

/// Waits for `future`, and no longer than this time.
///
/// Errors: the time was up.
pub async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut limit = pin!(sleep(time));
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => limit.as_mut().poll(cx).map(|()| Err(Elapsed)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::on_each;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(60);

    fn waiting() -> usize {
        CURRENT.with_borrow(|timers| timers.as_ref().expect("timers").waiting.borrow().len())
    }

    /// Polls once.
    async fn is_over(future: &mut (impl Future + Unpin)) -> bool {
        std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
    }

    #[test]
    fn all_are_woken_when_their_time_has_come_and_in_that_order() {
        on_each(async |_| {
            let began = Instant::now();
            let over = Rc::new(RefCell::new(Vec::new()));
            let tasks: Vec<_> = [3, 1, 2, 1]
                .map(|times| {
                    let (over, at) = (over.clone(), began + times * SHORT);
                    monoio::spawn(async move {
                        sleep_until(at).await;
                        assert!(Instant::now() >= at);
                        over.borrow_mut().push(times);
                    })
                })
                .into();
            for task in tasks {
                task.await;
            }
            assert_eq!(*over.borrow(), [1, 1, 2, 3]);
            assert_eq!(waiting(), 0);
        });
    }

    #[test]
    fn an_earlier_one_does_not_wait_for_a_later_one_nor_for_one_that_was_given_up() {
        on_each(async |_| {
            let mut later = sleep(LONG);
            assert!(!is_over(&mut later).await);
            let mut given_up = sleep(SHORT);
            assert!(!is_over(&mut given_up).await);
            assert_eq!(waiting(), 2);
            drop(given_up);
            assert_eq!(waiting(), 1);
            sleep(2 * SHORT).await;
            assert!(!is_over(&mut later).await);
            // The descriptor has come due for nothing but these.
            sleep(SHORT).await;
            assert_eq!(waiting(), 1);
        });
    }

    #[test]
    fn what_is_past_or_over_is_over_at_once() {
        on_each(async |_| {
            let now = Instant::now();
            assert!(is_over(&mut sleep_until(now)).await);
            let mut short = sleep(SHORT);
            assert!(!is_over(&mut short).await);
            std::thread::sleep(SHORT);
            while !is_over(&mut short).await {
                sleep(SHORT).await;
            }
            // More than the kernel takes.
            assert!(!is_over(&mut sleep(Duration::MAX)).await);
            assert_eq!(waiting(), 0);
        });
    }

    #[test]
    fn a_timeout_gives_what_comes_first() {
        on_each(async |_| {
            assert_eq!(timeout(LONG, async { 7 }).await, Ok(7));
            assert_eq!(timeout(LONG, sleep(SHORT)).await, Ok(()));
            assert_eq!(timeout(SHORT, sleep(LONG)).await, Err(Elapsed));
            assert_eq!(waiting(), 0);
        });
    }

    #[test]
    fn whoever_polls_it_last_is_woken() {
        on_each(async |_| {
            let mut moved = Box::pin(sleep(2 * SHORT));
            assert!(!is_over(&mut moved).await);
            monoio::spawn(timeout(LONG, moved)).await.expect("woken in another task");
        });
    }
}
