//! Words and numbers as the screen shows them, and what of foreign text may reach a terminal. Pure.

use toru_plugin_api::status::is_format;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Foreign text made harmless and put on one line.
///
/// Control characters would move the cursor, retitle the window or answer on the operator's behalf;
/// format characters (bidirectional overrides, zero widths) would make a line read as another.
/// Each becomes visible: `^[` for escape, `<U+202E>` for the others; a tab is a space.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' | '\n' | '\r' => out.push(' '),
            '\u{0}'..='\u{1f}' => {
                out.push('^');
                out.push(char::from(character as u8 + b'@'));
            }
            '\u{7f}' => out.push_str("^?"),
            _ if character.is_control() || is_format(character) => {
                out.push_str(&format!("<U+{:04X}>", u32::from(character)));
            }
            _ => out.push(character),
        }
    }
    out
}

/// Text for a terminal that shows ASCII alone: the rest are question marks, a few have a likeness.
pub fn to_ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{20}'..='\u{7e}' => out.push(character),
            'µ' => out.push('u'),
            '·' => out.push('.'),
            '…' => out.push('~'),
            '–' => out.push('-'),
            '▲' => out.push('^'),
            '▼' => out.push('v'),
            '↑' => out.push('^'),
            '↓' => out.push('v'),
            _ => out.push('?'),
        }
    }
    out
}

/// A span of time in at most six columns: `850ms`, `45s`, `12m05s`, `3h12m`, `12d04h`, `412d`.
pub fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms}ms"),
        1..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        86_400..8_640_000 => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
        _ => format!("{}d", s / 86_400),
    }
}

/// A latency in at most six columns: `850µs`, `1.2ms`, `123ms`, `12.3s`.
pub fn latency(us: u64) -> String {
    match us {
        0..1000 => format!("{us}µs"),
        1000..9950 => format!("{:.1}ms", us as f64 / 1e3),
        9950..999_500 => format!("{}ms", (us + 500) / 1000),
        999_500..99_950_000 => format!("{:.1}s", us as f64 / 1e6),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// Bytes in at most five columns, by 1024: `812B`, `1.2K`, `12M`, `1.5G`.
pub fn bytes(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["B", "K", "M", "G", "T", "P", "E"])
}

/// A rate in at most five columns: `0`, `0.4`, `12`, `1.2k`, `3.4M`.
pub fn rate(per_second: f64) -> String {
    if per_second < 0.05 {
        return "0".into();
    }
    if per_second < 9.95 {
        return format!("{per_second:.1}");
    }
    scaled(per_second, 1000.0, &["", "k", "M", "G", "T"])
}

/// A count in at most five columns.
pub fn count(count: u64) -> String {
    scaled(count as f64, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base - 0.5 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{value:.0}{}", units[0]),
        (_, ..9.95) => format!("{value:.1}{}", units[unit]),
        _ => format!("{value:.0}{}", units[unit]),
    }
}

/// The time of day in UTC, `03:12:45`. The console knows no time zones; neither do the logs.
pub fn clock(unix_ms: u64) -> String {
    let s = unix_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// Date and time of day in UTC, `2026-01-31 03:12:45.678`.
pub fn date_and_clock(unix_ms: u64) -> String {
    // Days of the civil calendar with years that begin in March, so that the leap day comes last.
    let days = unix_ms / 86_400_000 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {}.{:03}", clock(unix_ms), unix_ms % 1000)
}

/// Columns that a terminal needs for it: two for most of the signs of East Asia, none for marks over others.
pub fn columns(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// Text in rows of at most `width` columns, cut between words where one ends in the row's second half.
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut rows = Vec::new();
    let mut rest = text;
    while columns(rest) > width {
        let (mut end, mut used, mut space) = (0, 0, None);
        for (at, character) in rest.char_indices() {
            let more = character.width().unwrap_or(0);
            if used + more > width {
                break;
            }
            used += more;
            end = at + character.len_utf8();
            if character == ' ' && used * 2 > width {
                space = Some(end);
            }
        }
        // A sign that is wider than the row has one of its own.
        let end = space.unwrap_or(end).max(rest.chars().next().map_or(0, char::len_utf8));
        rows.push(rest[..end].trim_end().to_owned());
        rest = &rest[end..];
    }
    if !rest.is_empty() || rows.is_empty() {
        rows.push(rest.to_owned());
    }
    rows
}

/// The same in `most` rows at most; what is left out has `…` in its place.
pub fn wrapped_at_most(text: &str, width: usize, most: usize) -> Vec<String> {
    let mut rows = wrapped(text, width);
    if rows.len() > most {
        rows.truncate(most);
        if let Some(last) = rows.last_mut() {
            while columns(last) >= width.max(1) && last.pop().is_some() {}
            last.push('…');
        }
    }
    rows
}

/// Parts with ` · ` between them on as many rows of `width` columns as they need; one that is wider has a row of its
/// own.
pub fn flowed<T>(parts: Vec<T>, width: usize, columns: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut rows: Vec<Vec<T>> = vec![vec![]];
    let mut used = 0;
    for part in parts {
        let own = columns(&part);
        if used > 0 && used + 3 + own > width {
            rows.push(vec![]);
            used = 0;
        }
        used += own + if used > 0 { 3 } else { 0 };
        rows.last_mut().expect("never empty").push(part);
    }
    rows
}

/// Bytes of `512`, `64K`, `256M` or `2G`, by 1024.
///
/// Errors: anything else, in words.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(|letter: char| !letter.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let shift = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("a number with K, M, G or T, such as 256M".into()),
    };
    let number: u64 = digits.parse().map_err(|_| "a number with K, M, G or T, such as 256M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".into())
}

/// Milliseconds since 1970 of `2026-01-01T00:00:00.000Z`; `None` for anything else.
///
/// Bounds: years 1970 to 9999; a fraction of a second may be absent.
pub fn parse_time(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if !(1970..10_000).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // Days of the civil calendar with years that begin in March, so that the leap day comes last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + ms)
}

/// An id in so many characters: cut in the middle, because ids of a family differ at their ends.
pub fn shortened_id(id: &str, width: usize) -> String {
    let count = id.chars().count();
    if count <= width || width == 0 {
        return id.to_owned();
    }
    let end = (width - 1).div_ceil(2);
    let begin: String = id.chars().take(width - 1 - end).collect();
    begin + "…" + &id.chars().skip(count - end).collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        assert_eq!(clean("a\x1b]0;gotcha\x07b"), "a^[]0;gotcha^Gb");
        assert_eq!(clean("one\ttwo\r\nthree"), "one two  three");
        assert_eq!(clean("\u{9b}31m \u{7f}"), "<U+009B>31m ^?");
        assert_eq!(clean("evil\u{202e}txt.exe\u{200b}"), "evil<U+202E>txt.exe<U+200B>");
        assert_eq!(clean("Grüße 🐍"), "Grüße 🐍");
        for code in 0..=0x20_000 {
            let Some(character) = char::from_u32(code) else { continue };
            assert!(!clean(&character.to_string()).contains(char::is_control), "{code:x}");
            assert!(to_ascii(&character.to_string()).bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        }
    }

    #[test]
    fn numbers_keep_to_their_columns() {
        for (ms, expected) in [
            (0, "0ms"),
            (999, "999ms"),
            (1000, "1s"),
            (59_999, "59s"),
            (725_000, "12m05s"),
            (11_520_000, "3h12m"),
            (1_051_200_000, "12d04h"),
            (35_596_800_000, "412d"),
        ] {
            assert_eq!(span(ms), expected);
        }
        for (us, expected) in [
            (7, "7µs"),
            (1234, "1.2ms"),
            (9960, "10ms"),
            (123_456, "123ms"),
            (999_600, "1.0s"),
            (120_000_000, "120s"),
        ] {
            assert_eq!(latency(us), expected);
        }
        for (value, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (12 << 20, "12M"),
            (3 << 29, "1.5G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(bytes(value), expected);
        }
        for (value, expected) in
            [(0.0, "0"), (0.4, "0.4"), (12.3, "12"), (999.6, "1.0k"), (123_456.0, "123k")]
        {
            assert_eq!(rate(value), expected);
        }
        for us in (0..40).map(|bit| 1u64 << bit) {
            assert!(latency(us).chars().count() <= 8 && bytes(us).len() <= 5 && span(us).len() <= 6, "{us}");
        }
    }

    #[test]
    fn times_are_read_as_the_daemon_writes_them() {
        assert_eq!(parse_time("1970-01-01T00:00:00.000Z"), Some(0));
        assert_eq!(parse_time("2026-01-01T00:00:00.000Z"), Some(1_767_225_600_000));
        assert_eq!(parse_time("2024-02-29T23:59:59.987Z"), Some(1_709_251_199_987));
        assert_eq!(parse_time("2024-02-29T23:59:59Z"), Some(1_709_251_199_000));
        assert_eq!(clock(1_709_251_199_987), "23:59:59");
        for (unix_ms, expected) in [
            (0, "1970-01-01 00:00:00.000"),
            (1_709_251_199_987, "2024-02-29 23:59:59.987"),
            (1_735_689_599_999, "2024-12-31 23:59:59.999"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(date_and_clock(unix_ms), expected);
            assert_eq!(parse_time(&(expected.replace(' ', "T") + "Z")), Some(unix_ms));
        }
        for bad in [
            "",
            "now",
            "2024-13-01T00:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T25:00:00Z",
            "2024-01-01T00:00:00.xZ",
        ] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn rows_are_cut_between_words_and_never_too_wide() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("abc def", 7), ["abc def"]);
        assert_eq!(wrapped("abc def", 6), ["abc", "def"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("日本語テキスト", 5), ["日本", "語テ", "キス", "ト"]);
        assert_eq!(wrapped("日本", 1), ["日", "本"], "one that is wider than the row");
        for width in 1..30 {
            let text = "a long line with 日本語 and e\u{301}accents, and aVeryLongWordInIt ".repeat(3);
            for row in wrapped(&text, width.max(2)) {
                assert!(columns(&row) <= width.max(2), "{width}: {row:?}");
            }
        }
    }

    #[test]
    fn what_is_left_out_has_a_sign() {
        assert_eq!(wrapped_at_most("abc def", 6, 2), ["abc", "def"]);
        assert_eq!(wrapped_at_most("abc def", 6, 1), ["abc…"]);
        assert_eq!(wrapped_at_most("abcdefgh", 4, 1), ["abc…"]);
        assert_eq!(wrapped_at_most("日本語", 4, 1), ["日…"]);
    }

    #[test]
    fn parts_flow_onto_rows() {
        let flow = |width| flowed(vec!["one", "two", "a longer one"], width, |part| columns(part));
        assert_eq!(flow(40), [vec!["one", "two", "a longer one"]]);
        assert_eq!(flow(9), [vec!["one", "two"], vec!["a longer one"]]);
        assert_eq!(flow(8), [vec!["one"], vec!["two"], vec!["a longer one"]]);
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, expected) in
            [("0", 0), ("512", 512), ("64k", 64 << 10), ("256M", 256 << 20), ("2G", 2 << 30)]
        {
            assert_eq!(parse_bytes(text), Ok(expected));
        }
        for bad in ["", "M", "-1", "1.5G", "1 G", "1X", "99999999999T"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_of_a_family_stay_apart() {
        assert_eq!(shortened_id("tenant-database-eu-1", 20), "tenant-database-eu-1");
        assert_eq!(shortened_id("tenant-database-eu-1", 10), "tena…-eu-1");
        assert_eq!(shortened_id("tenant-database-eu-2", 10), "tena…-eu-2");
        for width in 1..12 {
            assert_eq!(shortened_id("tenant-database-eu-1", width).chars().count(), width);
        }
    }
}
