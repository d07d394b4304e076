//! Latencies of one plugin on one worker, written by that worker alone and readable from any thread.
//!
//! Buckets of about 6 % width, as HdrHistogram lays them out. Own code, because its counters must be readable while the
//! worker goes on: an `hdrhistogram::Histogram` would have to be fetched from the worker or locked.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets for each power of two.
const SUB_BITS: u32 = 4;
const SUB: usize = 1 << SUB_BITS;
/// Powers of two of a microsecond: up to 2^30 µs, about 18 minutes; longer counts as that.
const POWERS: usize = 30;
const BUCKETS: usize = (POWERS - SUB_BITS as usize + 1) * SUB;

#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    /// Of all latencies, in nanoseconds; runs over after five hundred years.
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], sum: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one latency. Only the owning worker may call this: a plain add is all it takes then.
    pub fn record(&self, latency: Duration) {
        let count = &self.counts[bucket(latency.as_micros().try_into().unwrap_or(u64::MAX))];
        count.store(count.load(Relaxed) + 1, Relaxed);
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.sum.store(self.sum.load(Relaxed).wrapping_add(nanos), Relaxed);
    }

    /// All latencies together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum.load(Relaxed))
    }

    /// Adds these counts to `sum`.
    pub fn add_to(&self, sum: &mut Counts) {
        for (sum, count) in sum.0.iter_mut().zip(&self.counts) {
            *sum += count.load(Relaxed);
        }
    }
}

/// A sum over workers.
#[derive(Clone)]
pub struct Counts([u64; BUCKETS]);

/// A few counts: bucket and number, without the empty buckets.
///
/// Bounds: at most [`BUCKETS`] of 8 bytes; the latencies of a second usually fall into a few dozen.
pub struct Recent(Box<[(u16, u32)]>);

impl Recent {
    pub fn add_to(&self, sum: &mut Counts) {
        for &(bucket, count) in &self.0 {
            sum.0[usize::from(bucket)] += u64::from(count);
        }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self([0; BUCKETS])
    }
}

impl Counts {
    /// What was counted after `earlier`, which is an older state of the same sum.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let mut recent = Counts::default();
        for (recent, (now, before)) in recent.0.iter_mut().zip(self.0.iter().zip(&earlier.0)) {
            *recent = now.saturating_sub(*before);
        }
        recent
    }

    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many were shorter than `micros`, which must be a power of two.
    pub fn below(&self, micros: u64) -> u64 {
        debug_assert!(micros.is_power_of_two(), "elsewhere there is no edge");
        self.0[..bucket(micros)].iter().sum()
    }

    /// The same counts in little room.
    pub fn recent(&self) -> Recent {
        let filled = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        Recent(filled.map(|(bucket, &count)| (bucket as u16, count.try_into().unwrap_or(u32::MAX))).collect())
    }

    /// The latency, in µs, that `share` (0 to 1) of all requests did not exceed; `None` before the first.
    pub fn quantile_us(&self, share: f64) -> Option<u64> {
        let total = self.total();
        if total == 0 {
            return None;
        }
        let rank = ((total as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(upper_edge(index));
            }
        }
        None
    }
}

fn bucket(micros: u64) -> usize {
    let micros = micros.min((1 << POWERS) - 1);
    if micros < SUB as u64 {
        return micros as usize;
    }
    let power = 63 - micros.leading_zeros();
    let within = (micros >> (power - SUB_BITS)) as usize & (SUB - 1);
    (power - SUB_BITS + 1) as usize * SUB + within
}

/// The largest value that falls into the bucket.
fn upper_edge(bucket: usize) -> u64 {
    if bucket < SUB {
        return bucket as u64;
    }
    let shift = bucket / SUB - 1;
    ((((bucket % SUB) + SUB + 1) as u64) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_into_a_bucket_that_is_close_to_it() {
        let mut value = 0u64;
        while value < 1 << POWERS {
            let edge = upper_edge(bucket(value));
            assert!(edge >= value && edge - value <= value / SUB as u64 + 1, "{value} -> {edge}");
            assert_eq!(bucket(edge), bucket(value));
            value += 1 + value / 97;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_come_from_all_workers() {
        let (one, two) = (Histogram::default(), Histogram::default());
        for ms in 1..=99 {
            one.record(Duration::from_millis(ms));
        }
        two.record(Duration::from_secs(5));
        let mut sum = Counts::default();
        assert_eq!(sum.quantile_us(0.5), None);
        one.add_to(&mut sum);
        two.add_to(&mut sum);
        let near = |share, expect: f64| {
            let found = sum.quantile_us(share).expect("counted") as f64;
            assert!((found / expect - 1.0).abs() < 0.07, "{found} is not near {expect}");
        };
        near(0.5, 50_000.0);
        near(0.99, 99_000.0);
        near(1.0, 5_000_000.0);
        let mut later = Counts::default();
        two.record(Duration::from_millis(1));
        one.add_to(&mut later);
        two.add_to(&mut later);
        let recent = later.since(&sum).quantile_us(1.0).expect("counted") as f64;
        assert!((recent / 1000.0 - 1.0).abs() < 0.07, "{recent}");
        let mut again = Counts::default();
        later.since(&sum).recent().add_to(&mut again);
        assert_eq!(again.quantile_us(0.1), later.since(&sum).quantile_us(1.0), "the one that came later");
    }
}
