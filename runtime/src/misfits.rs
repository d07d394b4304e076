//! Answers of a plugin that could not be passed on: each is told, and a flood of them is a few lines.
//!
//! Pure: whoever keeps a [`Misfits`] says what time it is, and waits.

use std::time::{Duration, Instant};

/// Between two times that something is told.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// Reasons quote the plugin, so there may be any number of them: so many are kept apart, the rest is one.
const KINDS_MAX: usize = 8;
const OTHERS: &str = "other answers that cannot be passed on";

/// Of one plugin, as one worker sees it.
#[derive(Default)]
pub struct Misfits {
    told: Option<Instant>,
    untold: Vec<Misfit>,
}

struct Misfit {
    generation: u64,
    reason: String,
    count: u64,
}

/// What to do about one.
#[derive(Debug, PartialEq, Eq)]
pub enum Advice {
    /// Tell of it now.
    Tell,
    /// Call [`Misfits::take_due`] then.
    WaitUntil(Instant),
    /// Somebody waits already.
    Nothing,
}

impl Misfits {
    /// One came from the process of `generation`.
    pub fn note(&mut self, now: Instant, generation: u64, reason: &str) -> Advice {
        let next = self.told.map_or(now, |told| told + TELL_EVERY);
        if self.untold.is_empty() && next <= now {
            self.told = Some(now);
            return Advice::Tell;
        }
        let advice = if self.untold.is_empty() { Advice::WaitUntil(next) } else { Advice::Nothing };
        let known =
            |kind: &&mut Misfit| kind.generation == generation && [reason, OTHERS].contains(&&*kind.reason);
        // What is known by its own name is found first: the others come last.
        match self.untold.iter_mut().find(known) {
            Some(kind) => kind.count += 1,
            None => {
                let reason = if self.untold.len() < KINDS_MAX { reason } else { OTHERS };
                self.untold.push(Misfit { generation, reason: reason.to_owned(), count: 1 });
            }
        }
        advice
    }

    /// What has not been told, each kind with its count: generation and reason.
    pub fn take_due(&mut self, now: Instant) -> Vec<(u64, String)> {
        self.told = Some(now);
        let told = |Misfit { generation, reason, count }| match count {
            1 => (generation, reason),
            _ => (generation, format!("{reason} ({count} times within a second)")),
        };
        self.untold.drain(..).map(told).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_within_a_second() {
        let mut misfits = Misfits::default();
        let start = Instant::now();
        let next = start + TELL_EVERY;
        assert_eq!(misfits.note(start, 1, "status"), Advice::Tell);
        assert_eq!(misfits.note(start, 1, "NUL"), Advice::WaitUntil(next));
        for reason in ["status", "NUL"] {
            assert_eq!(misfits.note(start, 1, reason), Advice::Nothing);
        }
        let due = misfits.take_due(next);
        assert_eq!(due, [(1, "NUL (2 times within a second)".into()), (1, "status".into())]);
        assert_eq!(misfits.note(next, 1, "NUL"), Advice::WaitUntil(next + TELL_EVERY), "no sooner");
        assert_eq!(misfits.take_due(next + TELL_EVERY), [(1, "NUL".into())]);
        assert_eq!(misfits.note(next + 3 * TELL_EVERY, 1, "NUL"), Advice::Tell);
    }

    #[test]
    fn reasons_without_end_are_a_few_lines() {
        let mut misfits = Misfits::default();
        let start = Instant::now();
        assert_eq!(misfits.note(start, 1, "first"), Advice::Tell);
        for number in 0..1000 {
            let generation = 1 + number / 500;
            misfits.note(start, generation, &format!("status {number}"));
        }
        let due = misfits.take_due(start + TELL_EVERY);
        assert_eq!(due.len(), KINDS_MAX + 2, "{due:?}");
        assert_eq!(due[KINDS_MAX], (1, format!("{OTHERS} ({} times within a second)", 500 - KINDS_MAX)));
        assert_eq!(due[KINDS_MAX + 1], (2, format!("{OTHERS} (500 times within a second)")));
    }
}
