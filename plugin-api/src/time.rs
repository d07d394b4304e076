//! Timestamps as the wire and the logs write them; arithmetic only, no clock.

/// `9999-12-31T23:59:59.999Z`, the last moment with a year of four digits.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// RFC 3339 in UTC with milliseconds: `2026-01-01T00:00:00.000Z`.
///
/// Bounds: `unix_ms` is in milliseconds since 1970 and is cut to the end of year 9999.
pub fn rfc3339_millis(unix_ms: u64) -> [u8; 24] {
    let unix_ms = unix_ms.min(UNIX_MS_MAX);
    let (days, ms_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil_from_days(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    write_digits(&mut text[0..4], year);
    write_digits(&mut text[5..7], month);
    write_digits(&mut text[8..10], day);
    write_digits(&mut text[11..13], ms_of_day / 3_600_000);
    write_digits(&mut text[14..16], ms_of_day / 60_000 % 60);
    write_digits(&mut text[17..19], ms_of_day / 1_000 % 60);
    write_digits(&mut text[20..23], ms_of_day % 1_000);
    text
}

/// The same bytes as text.
pub fn as_str(timestamp: &[u8; 24]) -> &str {
    std::str::from_utf8(timestamp).unwrap_or("")
}

fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Years are taken to begin in March, so that the leap day is the last day of a year and months
/// follow the 153-days-in-5-months pattern; 400 years are always 146 097 days.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let since_march_0000 = days + 719_468;
    let era = since_march_0000 / 146_097;
    let day_of_era = since_march_0000 % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        for (unix_ms, expect) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_767_225_600_000, "2026-01-01T00:00:00.000Z"),
            (4_107_542_399_001, "2100-02-28T23:59:59.001Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(as_str(&rfc3339_millis(unix_ms)), expect);
        }
    }

    #[test]
    fn each_day_follows_the_one_before() {
        let mut before = civil_from_days(0);
        for days in 1..300_000 {
            let (year, month, day) = civil_from_days(days);
            let next_day = (before.0, before.1, before.2 + 1);
            let next_month = (before.0, before.1 + 1, 1);
            let next_year = (before.0 + 1, 1, 1);
            let expect = match (month, day) {
                (1, 1) => next_year,
                (_, 1) => next_month,
                _ => next_day,
            };
            assert_eq!((year, month, day), expect);
            before = (year, month, day);
        }
    }
}
