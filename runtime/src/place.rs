//! Who is in and before a plugin's gate, counted by worker: plain adds on a cache line that only this worker writes.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gate::Permit;
use crate::worker::{Stats, Target, Worker};

/// A request's place with its plugin, as long as it is there.
pub struct Place {
    _permit: Permit,
    counted: Counted,
}

/// A request that waits for a place.
pub struct Queued {
    _counted: Counted,
}

impl Place {
    pub fn new(worker: &Worker, target: &Rc<Target>, permit: Permit) -> Self {
        Self { _permit: permit, counted: Counted::new(worker, target, |stats| &stats.in_flight) }
    }
}

impl Place {
    /// The plugin went away with the request: counted, so that the supervisor can tell of it however late it looks.
    pub fn lost(self) {
        let lost = &self.counted.target.shared.stats[self.counted.worker].lost;
        lost.store(lost.load(Relaxed).wrapping_add(1), Relaxed);
    }
}

impl Queued {
    pub fn new(worker: &Worker, target: &Rc<Target>) -> Self {
        Self { _counted: Counted::new(worker, target, |stats| &stats.queued) }
    }
}

/// One more while it lives. Only the worker that made it may drop it, as everything of a worker's tasks is.
pub struct Counted {
    target: Rc<Target>,
    worker: usize,
    counter: fn(&Stats) -> &AtomicU64,
}

impl Counted {
    pub fn new(worker: &Worker, target: &Rc<Target>, counter: fn(&Stats) -> &AtomicU64) -> Self {
        let counted = Self { target: target.clone(), worker: worker.number.into(), counter };
        counted.change(1);
        counted
    }

    fn change(&self, by: i64) {
        let counter = (self.counter)(&self.target.shared.stats[self.worker]);
        counter.store(counter.load(Relaxed).wrapping_add_signed(by), Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.change(-1);
    }
}
