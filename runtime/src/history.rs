//! Ten minutes of each plugin and each worker in samples of a second, and the latencies of the last seconds: what the
//! console draws.
//!
//! Kept on the control thread. Samples are taken while plugins answer requests or somebody watches a stream; at rest
//! the thread is woken every [`REST`] instead of every second, and no worker ever is: their counters are read where
//! they lie. A second without a sample is one without requests.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use toru_plugin_api::status::{History as Told, PluginStatus, Sample as ToldSample};

use crate::histogram::{Counts, Recent};
use crate::status::{Usage, usage};
use crate::timers;
use crate::worker::{Message, Shared, Target, Worker};

/// How far back samples go.
const KEPT: Duration = Duration::from_secs(600);
/// One a second. At [`size_of::<Sample>()`](Sample) each, 36 bytes, a busy plugin has 21 600 bytes of them.
const SAMPLES_MAX: usize = 600;
/// Between samples of a plugin that answers requests, or is watched.
const PERIOD: Duration = Duration::from_secs(1);
/// A watcher's own second may be a little shorter.
const PERIOD_MIN: Duration = Duration::from_millis(900);
/// Between looks at the memory and the CPU time of plugins that do nothing and that nobody watches.
const REST: Duration = Duration::from_secs(15);
/// A snapshot's latencies are those of the last so many samples with requests, none of them older than this.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Set while the control thread sleeps over seconds; workers look at it with every answer.
///
/// On a cache line of its own, which nobody writes while there is traffic.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Resting(AtomicBool);

/// What happened to one plugin in the second before `at`.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Tenths of a second since the daemon started.
    at: u32,
    requests_per_s: f32,
    errors_per_s: f32,
    /// In microseconds; [`NOTHING`] where there were no requests.
    quantiles_us: [u32; 3],
    in_flight: u32,
    /// Of one core since the sample before; below 0 without a process.
    cpu_percent: f32,
    /// Resident memory; [`NOTHING`] without a process.
    rss_kib: u32,
}

const NOTHING: u32 = u32::MAX;

/// What the bound of a plugin's memory is reckoned with.
const _: () = assert!(size_of::<Sample>() == 36);

/// One plugin.
#[derive(Default)]
struct Track {
    samples: VecDeque<Sample>,
    /// Counters at the last sample.
    requests: u64,
    errors: u64,
    /// Made with the first request.
    latency: Option<Box<Counts>>,
    /// What was counted in each of the last seconds that had requests.
    window: VecDeque<(Instant, Recent)>,
    /// The process that was looked at last, when, its CPU time, and what that gave.
    process: Option<(u32, Instant, Usage)>,
    cpu_percent: f32,
}

/// One worker: its counter, and its seconds with answers, as the time of [`Sample::at`] and answers a second.
#[derive(Default)]
struct WorkerTrack {
    requests: u64,
    samples: VecDeque<(u32, f32)>,
}

/// All plugins and workers.
#[derive(Default)]
pub struct History {
    tracks: RefCell<HashMap<usize, Track>>,
    workers: RefCell<Vec<WorkerTrack>>,
    sampled: Cell<Option<Instant>>,
    /// When a request was last seen to have been answered.
    moved: Cell<Option<Instant>>,
    woken: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// Samples for ever, on the control thread.
pub async fn run(worker: Rc<Worker>) {
    let history = &worker.history;
    loop {
        history.refresh(&worker, false);
        let now = Instant::now();
        if history.moved.get().is_some_and(|moved| now.saturating_duration_since(moved) < WINDOW + PERIOD) {
            timers::sleep(PERIOD).await;
            continue;
        }
        worker.shared.resting.0.store(true, Relaxed);
        let woken = std::future::poll_fn(|cx| {
            if history.woken.take() {
                return Poll::Ready(());
            }
            history.waker.set(Some(cx.waker().clone()));
            Poll::Pending
        });
        // What was answered before the flag could be seen shows at the end of this pause at the latest.
        let traffic = timers::timeout(REST, woken).await.is_ok();
        worker.shared.resting.0.store(false, Relaxed);
        if traffic {
            // The rest of the second that the first request belongs to; nothing happened before it.
            history.sampled.set(Some(Instant::now()));
            timers::sleep(PERIOD).await;
        }
    }
}

/// A plugin's request was answered, on any worker.
pub fn note_traffic(shared: &Shared) {
    if shared.resting.0.load(Relaxed) && shared.resting.0.swap(false, Relaxed) {
        let _ = shared.control.unbounded_send(Message::Traffic);
    }
}

impl History {
    /// There is something to sample again.
    pub fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Takes the samples of this second, unless that was done. `watched`: also of what does nothing.
    pub fn refresh(&self, worker: &Worker, watched: bool) {
        let now = Instant::now();
        let passed = self.sampled.get().map(|at| now.saturating_duration_since(at));
        if passed.is_some_and(|passed| passed < PERIOD_MIN) {
            return;
        }
        self.sampled.set(Some(now));
        let at = (now.saturating_duration_since(worker.shared.started).as_millis() / 100) as u32;
        let seconds = passed.map_or(1.0, |passed| passed.as_secs_f32());
        let mut tracks = self.tracks.borrow_mut();
        for (index, target) in worker.targets() {
            if target.view.borrow().metadata.id.is_empty() {
                // It had to leave.
                tracks.remove(&index);
            } else if tracks.entry(index).or_default().sample(&target, now, at, seconds, watched) {
                self.moved.set(Some(now));
            }
        }
        let mut workers = self.workers.borrow_mut();
        workers.resize_with(worker.shared.workers.len(), WorkerTrack::default);
        for (track, stats) in workers.iter_mut().zip(&worker.shared.workers) {
            track.sample(stats.requests.load(Relaxed), at, seconds);
        }
    }

    /// What a process uses, as of the last sample, if that was just now.
    pub fn usage(&self, index: usize, pid: u32) -> Option<(f64, u64)> {
        let tracks = self.tracks.borrow();
        let track = tracks.get(&index)?;
        let (seen, at, usage) = track.process.as_ref()?;
        let fresh = *seen == pid && at.elapsed() < PERIOD * 2;
        fresh.then_some((rounded(track.cpu_percent), usage.rss_bytes))
    }

    /// Gives a plugin's status of this moment its last second and the latencies of the last [`WINDOW`].
    pub fn dress(&self, worker: &Worker, index: usize, status: &mut PluginStatus) {
        let tracks = self.tracks.borrow();
        let Some(track) = tracks.get(&index) else { return };
        let now = Instant::now();
        let mut sum = Counts::default();
        for (at, recent) in &track.window {
            if now.saturating_duration_since(*at) < WINDOW {
                recent.add_to(&mut sum);
            }
        }
        status.p50_us = sum.quantile_us(0.5);
        status.p95_us = sum.quantile_us(0.95);
        status.p99_us = sum.quantile_us(0.99);
        let last = track.samples.back().map(|sample| told(worker, sample));
        status.sample = last.map(|last| match self.sampled.get() {
            // It did nothing since, and so had no sample.
            Some(at) if last.unix_ms + 100 < unix_ms_of(worker, tenths(worker, at)) => ToldSample {
                unix_ms: unix_ms_of(worker, tenths(worker, at)),
                cpu_percent: status.cpu_percent,
                rss_bytes: status.rss_bytes,
                in_flight: status.in_flight,
                ..ToldSample::default()
            },
            _ => last,
        });
    }

    /// All samples of one plugin, oldest first; none when it has none.
    pub fn of(&self, worker: &Worker, index: usize, id: &str) -> Told {
        let mut history = Told { plugin: id.to_owned(), ..Told::default() };
        if let Some(track) = self.tracks.borrow().get(&index) {
            for sample in &track.samples {
                history.push(&told(worker, sample));
            }
        }
        history
    }
}

impl History {
    /// One worker's answers in each second up to the last sample, oldest first; from its first on, or the last ten
    /// minutes.
    pub fn of_worker(&self, worker: &Worker, number: usize) -> Vec<f64> {
        let Some(sampled) = self.sampled.get() else { return vec![] };
        let workers = self.workers.borrow();
        workers.get(number).map_or(vec![], |track| track.seconds(tenths(worker, sampled)))
    }
}

impl WorkerTrack {
    fn sample(&mut self, requests: u64, at: u32, seconds: f32) {
        let answered = requests.saturating_sub(self.requests);
        self.requests = requests;
        if answered > 0 {
            keep(&mut self.samples, (at, answered as f32 / seconds), |sample| sample.0);
        }
    }

    fn seconds(&self, now: u32) -> Vec<f64> {
        let ago = |at: u32| (now.saturating_sub(at) as usize + 5) / 10;
        let Some(first) = self.samples.iter().map(|(at, _)| ago(*at)).find(|ago| *ago < SAMPLES_MAX) else {
            return vec![];
        };
        let mut seconds = vec![0.0; first + 1];
        for &(at, rate) in self.samples.iter().filter(|(at, _)| ago(*at) <= first) {
            seconds[first - ago(at)] = rounded(rate);
        }
        seconds
    }
}

/// Adds a sample, and forgets what is too old or too much.
fn keep<T>(samples: &mut VecDeque<T>, sample: T, at: fn(&T) -> u32) {
    let oldest = at(&sample).saturating_sub(KEPT.as_millis() as u32 / 100);
    while samples.len() == SAMPLES_MAX || samples.front().is_some_and(|sample| at(sample) < oldest) {
        samples.pop_front();
    }
    // Not doubled past the bound, as it would be by itself.
    if samples.len() == samples.capacity() {
        samples.reserve_exact(samples.len().max(8).min(SAMPLES_MAX - samples.len()));
    }
    samples.push_back(sample);
}

impl Track {
    /// Whether requests were answered.
    fn sample(&mut self, target: &Target, now: Instant, at: u32, seconds: f32, watched: bool) -> bool {
        let stats = &target.shared.stats;
        let requests: u64 = stats.iter().map(|stats| stats.requests.load(Relaxed)).sum();
        let errors: u64 = stats.iter().map(|stats| stats.errors.load(Relaxed)).sum();
        let (answered, failed) = (requests - self.requests, errors - self.errors);
        (self.requests, self.errors) = (requests, errors);
        while self.window.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.window.pop_front();
        }
        let mut quantiles_us = [NOTHING; 3];
        if answered > 0 {
            let mut counts = Box::<Counts>::default();
            for stats in stats {
                stats.latency.add_to(&mut counts);
            }
            let second = match self.latency.replace(counts.clone()) {
                Some(before) => counts.since(&before),
                None => *counts,
            };
            for (quantile, share) in quantiles_us.iter_mut().zip([0.5, 0.95, 0.99]) {
                *quantile = second.quantile_us(share).map_or(NOTHING, |us| us.min(NOTHING as u64 - 1) as u32);
            }
            self.window.push_back((now, second.recent()));
        }
        let pid = target.view.borrow().pid;
        let in_flight = target.shared.gate.in_use() as u32;
        let rested = self.process.as_ref().is_none_or(|(seen, at, _)| {
            Some(*seen) != pid || now.saturating_duration_since(*at) >= REST - PERIOD_MIN
        });
        if watched || answered > 0 || rested {
            self.look(pid, now);
        }
        // A plugin that does nothing needs few points: its memory and that it is there.
        let since = self.samples.back().map_or(u32::MAX, |last| at.saturating_sub(last.at));
        if answered > 0 || in_flight > 0 || since >= (REST - PERIOD_MIN).as_millis() as u32 / 100 {
            let sample = Sample {
                at,
                requests_per_s: answered as f32 / seconds,
                errors_per_s: failed as f32 / seconds,
                quantiles_us,
                in_flight,
                cpu_percent: if self.process.is_some() { self.cpu_percent } else { -1.0 },
                rss_kib: self
                    .process
                    .as_ref()
                    .map_or(NOTHING, |(_, _, usage)| (usage.rss_bytes / 1024).min(NOTHING as u64 - 1) as u32),
            };
            keep(&mut self.samples, sample, |sample| sample.at);
        }
        answered > 0
    }

    /// Memory and CPU time of the process, from `/proc`.
    fn look(&mut self, pid: Option<u32>, now: Instant) {
        let found = pid.and_then(|pid| Some((pid, usage(pid)?)));
        let before = self.process.take();
        self.cpu_percent = match (&before, &found) {
            (Some((seen, at, before)), Some((pid, usage))) if seen == pid && before.cpu <= usage.cpu => {
                let wall = now.saturating_duration_since(*at).as_secs_f32().max(0.001);
                (usage.cpu - before.cpu).as_secs_f32() / wall * 100.0
            }
            _ => 0.0,
        };
        self.process = found.map(|(pid, usage)| (pid, now, usage));
    }
}

fn tenths(worker: &Worker, at: Instant) -> u32 {
    (at.saturating_duration_since(worker.shared.started).as_millis() / 100) as u32
}

/// By the wall clock of now: a jump of it moves all samples alike.
fn unix_ms_of(worker: &Worker, tenths_since_start: u32) -> u64 {
    let start = worker.unix_ms().saturating_sub(worker.shared.started.elapsed().as_millis() as u64);
    start + u64::from(tenths_since_start) * 100
}

fn told(worker: &Worker, sample: &Sample) -> ToldSample {
    let some = |value: u32| (value != NOTHING).then_some(u64::from(value));
    let [p50_us, p95_us, p99_us] = sample.quantiles_us.map(some);
    ToldSample {
        unix_ms: unix_ms_of(worker, sample.at),
        requests_per_s: rounded(sample.requests_per_s),
        errors_per_s: rounded(sample.errors_per_s),
        p50_us,
        p95_us,
        p99_us,
        in_flight: sample.in_flight.into(),
        cpu_percent: (sample.cpu_percent >= 0.0).then(|| rounded(sample.cpu_percent)),
        rss_bytes: some(sample.rss_kib).map(|kib| kib * 1024),
    }
}

/// To tenths, which is all that anybody reads.
fn rounded(value: f32) -> f64 {
    (f64::from(value) * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at: u32) -> Sample {
        Sample {
            at,
            requests_per_s: 1.0,
            errors_per_s: 0.0,
            quantiles_us: [NOTHING; 3],
            in_flight: 0,
            cpu_percent: -1.0,
            rss_kib: NOTHING,
        }
    }

    #[test]
    fn a_plugin_s_past_has_its_bounds_in_time_and_in_memory() {
        let mut samples = VecDeque::new();
        let mut kept = |at| {
            keep(&mut samples, sample(at), |sample| sample.at);
            assert!(samples.len() <= SAMPLES_MAX && samples.capacity() <= SAMPLES_MAX);
            samples.len()
        };
        for second in 0..5000 {
            kept(second * 10);
        }
        assert_eq!(kept(50_000), SAMPLES_MAX);
        // Faster than once a second, as several watchers may make it.
        for tenth in 50_001..52_000 {
            assert_eq!(kept(tenth), SAMPLES_MAX);
        }
        assert_eq!(kept(57_990), 11, "the others are older than ten minutes");
    }

    #[test]
    fn a_worker_s_past_has_every_second() {
        let mut track = WorkerTrack::default();
        assert!(track.seconds(100).is_empty());
        track.sample(0, 10, 1.0);
        track.sample(5, 20, 1.0);
        track.sample(5, 30, 1.0);
        track.sample(8, 41, 1.5);
        assert_eq!(track.seconds(50), [5.0, 0.0, 2.0, 0.0]);
        assert_eq!(track.seconds(10_000), [0.0; 0], "older than ten minutes");
        // One that came late has the other's second.
        assert_eq!(track.seconds(6021).len(), 599, "what is older is left out");
    }
}
