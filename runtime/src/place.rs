//! Who is in and before a plugin's gate, and who has gone to it, counted by worker: plain adds on a cache line that only
//! this worker writes.
//!
//! A request whose connection ends before its answer keeps its count until it is known whether the process ended with it:
//! the supervisor, which hears of an end at another time than the workers, finds what was taken along in that count.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::gate::Permit;
use crate::link::{Link, TORN_PATIENCE, VERDICT_PATIENCE};
use crate::timers;
use crate::worker::{Stats, Target, Worker};

/// A request's place with its plugin, as long as it is there.
pub struct Place {
    _permit: Permit,
    counted: Counted,
    way: Way,
}

/// How a request went to its plugin.
enum Way {
    /// Not yet.
    None,
    /// Over the connection of many, which may still have to be made.
    Link(Rc<Link>),
    /// Over a connection of its own, to the process of this generation.
    Own(u64),
}

/// A request that waits for a place.
pub struct Queued {
    _counted: Counted,
}

/// Requests that lost their connection to one process before they were answered.
#[derive(Clone, Copy, Default)]
pub struct Losses {
    generation: u64,
    /// Their count is kept, since the process may have ended, too.
    unjudged: u64,
    /// It lives, and nobody has heard of them.
    untold: u64,
    /// Somebody finds out.
    watched: bool,
}

impl Place {
    pub fn new(worker: &Worker, target: &Rc<Target>, permit: Permit) -> Self {
        let counted = Counted::new(worker, target, |stats| &stats.in_flight);
        Self { _permit: permit, counted, way: Way::None }
    }

    /// The request goes over `link`; it has gone once there is a connection.
    pub fn goes_over(&mut self, link: Rc<Link>) {
        if link.connected.get() {
            self.counted.change_unanswered(1);
        } else {
            link.unsent.set(link.unsent.get() + 1);
        }
        self.way = Way::Link(link);
    }

    /// The request goes over a connection of its own.
    pub fn goes_alone(&mut self, generation: u64) {
        self.counted.change_unanswered(1);
        self.way = Way::Own(generation);
    }

    /// Answers came behind the one that was waited for.
    pub fn note_strays(&self, count: u64) {
        self.counted.stats().strays.fetch_add(count, Relaxed);
    }

    /// The connection ended before the answer; `told` if the supervisor hears of that anyway.
    pub fn lost(mut self, worker: &Rc<Worker>, told: bool) {
        let generation = match &self.way {
            Way::Link(link) if link.connected.get() => link.generation,
            Way::Own(generation) => *generation,
            Way::None | Way::Link(_) => return,
        };
        self.way = Way::None;
        self.counted.target.note_loss(worker, generation, told);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        match &self.way {
            Way::None => {}
            Way::Link(link) if !link.connected.get() => link.unsent.set(link.unsent.get() - 1),
            Way::Link(_) | Way::Own(_) => self.counted.change_unanswered(-1),
        }
    }
}

impl Queued {
    pub fn new(worker: &Worker, target: &Rc<Target>) -> Self {
        Self { _counted: Counted::new(worker, target, |stats| &stats.queued) }
    }
}

impl Target {
    fn note_loss(self: &Rc<Self>, worker: &Rc<Worker>, generation: u64, told: bool) {
        if self.view.borrow().generation != Some(generation) {
            // It has ended, and took this along.
            return;
        }
        self.shared.suspect.store(generation, Relaxed);
        let mut losses = self.losses.get();
        if losses.generation != generation {
            losses = Losses { generation, ..Losses::default() };
        }
        losses.unjudged += 1;
        losses.untold += u64::from(!told);
        if !std::mem::replace(&mut losses.watched, true) {
            monoio::spawn(judge(worker.clone(), self.clone(), generation));
        }
        self.losses.set(losses);
    }

    /// Whether the process of `generation` has ended or is about to, as the kernel says: connections end before anybody
    /// hears of it.
    fn is_ending(&self, generation: u64) -> bool {
        let view = self.view.borrow();
        view.generation != Some(generation) || view.pid.is_none_or(crate::status::is_ending)
    }

    /// Waits for the news of an end that takes its requests along just now. Who waited in line has a place because of it,
    /// and would be taken along as well.
    pub async fn sit_out_an_end(&self) {
        let Some(generation) = self.view.borrow().generation else { return };
        if self.shared.suspect.load(Relaxed) == generation && self.is_ending(generation) {
            self.await_end(generation, TORN_PATIENCE).await;
        }
    }
}

/// Finds out whether requests that lost their connection were taken along by the end of the process; if not, they are
/// counted no more, and the supervisor is told of them: once for all within a second.
async fn judge(worker: Rc<Worker>, target: Rc<Target>, generation: u64) {
    // A process that ends by itself may close its connections a while before.
    for (patience, tells) in [(VERDICT_PATIENCE, false), (TORN_PATIENCE - VERDICT_PATIENCE, true)] {
        timers::sleep(patience).await;
        let mut losses = target.losses.get();
        if losses.generation != generation {
            return;
        }
        if target.is_ending(generation) {
            return target.losses.set(Losses::default());
        }
        let _ = target.shared.suspect.compare_exchange(generation, 0, Relaxed, Relaxed);
        change(&target.shared.stats[usize::from(worker.number)].unanswered, -(losses.unjudged as i64));
        losses.unjudged = 0;
        if !tells {
            target.losses.set(losses);
            continue;
        }
        target.losses.set(Losses::default());
        // One that is being stopped may close what it has.
        if losses.untold > 0 && target.refusal().is_none() {
            let reason = match losses.untold {
                1 => "closed the connection with a request unanswered".to_owned(),
                count => format!("closed connections with {count} requests unanswered"),
            };
            let index = target.view.borrow().index;
            worker.report_broken(index, generation, reason, false);
        }
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
        change((self.counter)(self.stats()), by);
    }

    fn change_unanswered(&self, by: i64) {
        change(&self.stats().unanswered, by);
    }

    fn stats(&self) -> &Stats {
        &self.target.shared.stats[self.worker]
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.change(-1);
    }
}

/// Of a counter that this thread alone writes.
pub fn change(counter: &AtomicU64, by: i64) {
    counter.store(counter.load(Relaxed).wrapping_add_signed(by), Relaxed);
}
