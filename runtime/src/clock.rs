//! What a worker knows of the time of day: one look at the clock serves all that is written of a moment.

use std::cell::{Cell, Ref, RefCell};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use toru_plugin_api::time::{as_str, rfc3339_millis};

/// For so long the time of day is reckoned from that of the last look: so soon a clock that was set is noticed.
const RECKONED_MAX: Duration = Duration::from_millis(100);

/// The time of day, as texts that are made only once.
#[derive(Default)]
pub struct Clock {
    /// What time of day it was at a moment, since 1970.
    seen: Cell<Option<(Instant, Duration)>>,
    /// As text: looking through the bytes for each request costs more than to copy them.
    timestamp: RefCell<(u64, String)>,
    date: RefCell<(u64, String)>,
}

impl Clock {
    /// The time of day at `now`, which is not long ago; since 1970.
    fn unix(&self, now: Instant) -> Duration {
        if let Some((at, unix)) = self.seen.get()
            && let Some(since) = now.checked_duration_since(at)
            && since < RECKONED_MAX
        {
            return unix + since;
        }
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.seen.set(Some((Instant::now(), unix)));
        unix
    }

    /// As frames bear it.
    pub fn timestamp(&self, now: Instant) -> Ref<'_, str> {
        let unix_ms = self.unix(now).as_millis() as u64;
        if self.timestamp.borrow().0 != unix_ms {
            as_str(&rfc3339_millis(unix_ms)).clone_into(&mut self.timestamp.borrow_mut().1);
            self.timestamp.borrow_mut().0 = unix_ms;
        }
        Ref::map(self.timestamp.borrow(), |(_, text)| text.as_str())
    }

    /// As answers bear it in `date`.
    pub fn with_date<R>(&self, now: Instant, use_date: impl FnOnce(&str) -> R) -> R {
        let unix = self.unix(now);
        let mut date = self.date.borrow_mut();
        if date.0 != unix.as_secs() {
            *date = (unix.as_secs(), httpdate::fmt_http_date(UNIX_EPOCH + unix));
        }
        use_date(&date.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use toru_plugin_api::time::unix_ms_of;

    #[test]
    fn both_texts_tell_the_time_of_day() {
        let clock = Clock::default();
        for _ in 0..3 {
            let before = SystemTime::now() - Duration::from_millis(1);
            let now = Instant::now();
            let stamp = clock.timestamp(now).to_owned();
            let date = clock.with_date(now, |date| httpdate::parse_http_date(date).expect("a date"));
            let stamp = UNIX_EPOCH + Duration::from_millis(unix_ms_of(&stamp).expect("a time"));
            let after = SystemTime::now() + Duration::from_millis(1);
            assert!(before <= stamp + Duration::from_millis(1) && stamp <= after, "{before:?} {stamp:?}");
            assert!(
                date <= after && after.duration_since(date).is_ok_and(|age| age < Duration::from_secs(60))
            );
            std::thread::sleep(Duration::from_millis(60));
        }
    }

    #[test]
    fn a_moment_is_told_from_the_next_without_another_look() {
        let clock = Clock::default();
        let now = Instant::now();
        clock.timestamp(now);
        let text = |at| clock.timestamp(at).to_owned();
        let (first, later) = (text(now + Duration::from_millis(20)), text(now + Duration::from_millis(50)));
        let apart = unix_ms_of(&later).expect("a time") - unix_ms_of(&first).expect("a time");
        assert!(first < later && apart <= 31, "{first} {later}");
    }
}
