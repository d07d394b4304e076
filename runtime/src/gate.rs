//! How many requests one plugin has at once, over all workers; the rest queue, first in first out.
//!
//! Entering a gate that has room is one atomic operation: a request takes a lock only when it must wait anyway.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

/// Requests that may wait for one plugin; beyond it a client is told to come back.
pub const QUEUE_MAX: usize = 1024;

#[derive(Debug)]
pub struct Gate {
    capacity: usize,
    in_use: AtomicUsize,
    /// Length of `queue`, readable without the lock. While it is not zero, nobody enters past the queue.
    queued: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Ticket>>>,
}

#[derive(Debug)]
struct Ticket {
    state: Mutex<TicketState>,
}

#[derive(Debug)]
enum TicketState {
    Waiting(Option<Waker>),
    /// The permit is this ticket's; whoever drops the ticket gives it back.
    Granted,
    Taken,
}

/// The right to have one request with the plugin; given back on drop.
#[derive(Debug)]
pub struct Permit(Arc<Gate>);

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl Gate {
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self {
            capacity: capacity.max(1),
            in_use: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            queue: Mutex::new(VecDeque::new()),
        })
    }

    /// A permit at once, if there is room and nobody waits.
    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        if self.queued.load(SeqCst) > 0 { None } else { self.take() }
    }

    /// A permit when it is this caller's turn.
    ///
    /// Errors: [`QUEUE_MAX`] wait already.
    pub fn enter(self: &Arc<Self>) -> Result<Entering, Full> {
        let mut queue = lock(&self.queue);
        if queue.len() >= QUEUE_MAX {
            return Err(Full);
        }
        let ticket = Arc::new(Ticket { state: Mutex::new(TicketState::Waiting(None)) });
        queue.push_back(ticket.clone());
        self.queued.store(queue.len(), SeqCst);
        drop(queue);
        // A permit given back before the line above saw nobody waiting; look once more.
        self.admit();
        Ok(Entering { gate: self.clone(), ticket })
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    pub fn in_use(&self) -> usize {
        self.in_use.load(SeqCst)
    }

    pub fn queued(&self) -> usize {
        self.queued.load(SeqCst)
    }

    fn take(self: &Arc<Self>) -> Option<Permit> {
        self.in_use
            .fetch_update(SeqCst, SeqCst, |in_use| (in_use < self.capacity).then_some(in_use + 1))
            .ok()
            .map(|_| Permit(self.clone()))
    }

    /// Hands free permits to those who wait longest.
    fn admit(self: &Arc<Self>) {
        while self.queued.load(SeqCst) > 0 {
            let Some(permit) = self.take() else { return };
            let ticket = {
                let mut queue = lock(&self.queue);
                let ticket = queue.pop_front();
                self.queued.store(queue.len(), SeqCst);
                ticket
            };
            // Somebody else was quicker: the permit goes back and the loop looks again.
            let Some(ticket) = ticket else { continue };
            let mut state = lock(&ticket.state);
            if let TicketState::Waiting(waker) = std::mem::replace(&mut *state, TicketState::Granted) {
                std::mem::forget(permit);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, SeqCst);
        self.0.admit();
    }
}

/// Waits for a permit; dropping it leaves the queue.
pub struct Entering {
    gate: Arc<Gate>,
    ticket: Arc<Ticket>,
}

impl Future for Entering {
    type Output = Permit;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let mut state = lock(&self.ticket.state);
        match &mut *state {
            TicketState::Waiting(waker) => {
                if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            TicketState::Granted => {
                *state = TicketState::Taken;
                Poll::Ready(Permit(self.gate.clone()))
            }
            TicketState::Taken => unreachable!("polled after it was ready"),
        }
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        let before = std::mem::replace(&mut *lock(&self.ticket.state), TicketState::Taken);
        match before {
            TicketState::Taken => {}
            TicketState::Granted => drop(Permit(self.gate.clone())),
            TicketState::Waiting(_) => {
                let mut queue = lock(&self.gate.queue);
                queue.retain(|ticket| !Arc::ptr_eq(ticket, &self.ticket));
                self.gate.queued.store(queue.len(), SeqCst);
                drop(queue);
                // While this one was first in line, nobody could pass.
                self.gate.admit();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks; if something did, the data would still be whole.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll(entering: &mut Entering) -> Poll<Permit> {
        Pin::new(entering).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn permits_come_back_first_in_first_out() {
        let gate = Gate::new(1);
        let first = gate.try_enter().expect("room");
        assert!(gate.try_enter().is_none());
        let mut second = gate.enter().expect("queue");
        let mut third = gate.enter().expect("queue");
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        drop(first);
        assert!(poll(&mut third).is_pending(), "the third must not pass the second");
        let Poll::Ready(permit) = poll(&mut second) else { panic!("the second is next") };
        assert!(gate.try_enter().is_none(), "nobody enters past the queue");
        drop(permit);
        assert!(poll(&mut third).is_ready());
    }

    #[test]
    fn who_leaves_the_queue_blocks_nobody_and_loses_nothing() {
        let gate = Gate::new(1);
        let first = gate.try_enter().expect("room");
        let second = gate.enter().expect("queue");
        let mut third = gate.enter().expect("queue");
        drop(second);
        drop(first);
        let Poll::Ready(permit) = poll(&mut third) else { panic!("the third is next") };
        drop(permit);
        // Granted and never polled: the permit goes back.
        let first = gate.try_enter().expect("room");
        let second = gate.enter().expect("queue");
        drop(first);
        drop(second);
        assert_eq!((gate.in_use(), gate.queued()), (0, 0));
    }

    #[test]
    fn the_queue_is_bounded() {
        let gate = Gate::new(1);
        let _first = gate.try_enter().expect("room");
        let waiting: Vec<_> = (0..QUEUE_MAX).map(|_| gate.enter().expect("queue")).collect();
        assert_eq!(gate.enter().err(), Some(Full));
        drop(waiting);
        assert_eq!(gate.queued(), 0);
    }

    /// Many threads enter, leave and give up; no permit may be lost or made, and nobody may be forgotten.
    #[test]
    fn threads_never_exceed_the_capacity_nor_lose_a_wake_up() {
        let gate = Gate::new(3);
        let peak = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for worker in 0..4 {
                let (gate, peak) = (gate.clone(), peak.clone());
                scope.spawn(move || {
                    struct Unpark(std::thread::Thread);
                    impl std::task::Wake for Unpark {
                        fn wake(self: Arc<Self>) {
                            self.0.unpark();
                        }
                    }
                    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                    for round in 0..5000 {
                        let mut entering = gate.enter().expect("queue");
                        if round % 7 == worker {
                            continue;
                        }
                        let permit = loop {
                            match Pin::new(&mut entering).poll(&mut Context::from_waker(&waker)) {
                                Poll::Ready(permit) => break permit,
                                Poll::Pending => std::thread::park(),
                            }
                        };
                        peak.fetch_max(gate.in_use(), SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(peak.load(SeqCst) <= 3);
        assert_eq!((gate.in_use(), gate.queued()), (0, 0));
    }
}
