//! Timestamps as the wire and the logs write them; arithmetic only, no clock.

/// `9999-12-31T23:59:59.999Z`, the last moment with a year of four digits.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// RFC 3339 in UTC with milliseconds: `2026-01-01T00:00:00.000Z`.
///
/// Bounds: `unix_ms` is in milliseconds since 1970 and is cut to the end of year 9999.
// Who keeps a timestamp for the rest of its millisecond must not have the arithmetic done before it is known to be needed.
#[inline(never)]
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

/// Milliseconds since 1970 of a moment: a day in UTC, `2026-01-01`, or RFC 3339, `2026-01-01T00:00:00.000Z` or
/// `2026-01-01T02:00:00+02:00`; of a fraction the first three digits count.
///
/// Bounds: years 0000 to 9999, where all before 1970 is 0; nothing for any other text, or a day or time that does not
/// exist.
pub fn unix_ms_of(text: &str) -> Option<u64> {
    let number = |text: &str, most: u64| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u64>().ok().filter(|number| digits && *number <= most)
    };
    if !text.is_ascii() {
        return None;
    }
    let (date, time) = text.split_once(['T', 't']).unwrap_or((text, "00:00:00Z"));
    let (time, offset_minutes) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0),
        None => {
            let (time, offset) = time.split_at_checked(time.len().checked_sub("+00:00".len())?)?;
            let minutes = number(&offset[1..3], 23)? * 60 + number(&offset[4..], 59)?;
            match (&offset[..1], &offset[3..4]) {
                ("+", ":") => (time, minutes as i64),
                ("-", ":") => (time, -(minutes as i64)),
                _ => return None,
            }
        }
    };
    if date.len() != 10 || &date[4..5] != "-" || &date[7..8] != "-" {
        return None;
    }
    let (year, month, day) = (number(&date[..4], 9999)?, number(&date[5..7], 12)?, number(&date[8..], 31)?);
    if month == 0 {
        return None;
    }
    // The calendar is the same every 400 years.
    let is_before_1970 = year < 1970;
    let year = if is_before_1970 { year + 2000 } else { year };
    let days = days_from_civil(year, month, day);
    if civil_from_days(days) != (year, month, day) {
        return None;
    }
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    if clock.len() != 8 || &clock[2..3] != ":" || &clock[5..6] != ":" || fraction.is_empty() {
        return None;
    }
    let (hour, minute, second) =
        (number(&clock[..2], 23)?, number(&clock[3..5], 59)?, number(&clock[6..], 59)?);
    let (fraction, finer) = fraction.split_at(fraction.len().min(3));
    if !finer.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms = number(fraction, 999)? * 10_u64.pow(3 - fraction.len() as u32);
    let unix_ms = days * 86_400_000 + hour * 3_600_000 + minute * 60_000 + second * 1_000 + ms;
    Some(if is_before_1970 { 0 } else { unix_ms.saturating_add_signed(-offset_minutes * 60_000) })
}

/// The inverse of [`civil_from_days`]; a day past the end of its month is one of the next.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let march_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * march_month + 2) / 5 + day;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    // One for the day that `day` counts from 1. 1970-01-01 is the smallest, so nothing goes below zero.
    (era * 146_097 + day_of_era).saturating_sub(719_469)
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
    fn every_day_and_moment_reads_back() {
        for day in (0..2_932_896).step_by(17).chain(0..1000) {
            let unix_ms = day * 86_400_000 + (day * 7919) % 86_400_000;
            assert_eq!(unix_ms_of(as_str(&rfc3339_millis(unix_ms))), Some(unix_ms));
            assert_eq!(unix_ms_of(&as_str(&rfc3339_millis(unix_ms))[..10]), Some(day * 86_400_000));
        }
        assert_eq!(unix_ms_of("2024-02-29T12:00:00Z"), Some(1_709_208_000_000));
        for same in [
            "2024-02-29T12:00:00.5Z",
            "2024-02-29t12:00:00.500000z",
            "2024-02-29T12:00:00.500999+00:00",
            "2024-02-29T14:30:00.5+02:30",
            "2024-02-28T12:01:00.5-23:59",
        ] {
            assert_eq!(unix_ms_of(same), Some(1_709_208_000_500), "{same}");
        }
        for early in ["1969-12-31", "0103-10-09", "0000-02-29", "1970-01-01T00:00:00+00:01"] {
            assert_eq!(unix_ms_of(early), Some(0), "{early}");
        }
        for bad in [
            "",
            "now",
            "2023-02-29",
            "2024-13-01",
            "2024-00-01",
            "2024-01-00",
            "1969-13-31",
            "1900-02-29",
            "2024-1-1",
            "2024-01-01T00:00:00",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00.Z",
            "2024-01-01T00:00:00.123xZ",
            "2024-01-01T00:00Z",
            "+024-01-01",
            "2024-01-01T00:00:00+0100",
            "2024-01-01T00:00:00+01:60",
            "2024-01-01T00:00:00 01:00",
            "2024-01-01T+01:00",
            "T",
            "2024-01-01TZ",
            "2024-01-0ü",
            "ü24-01-01",
        ] {
            assert_eq!(unix_ms_of(bad), None, "{bad}");
        }
    }

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
