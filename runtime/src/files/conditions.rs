//! What a request for a file asks beside its path: preconditions, a range, and the codings that it takes. Pure.
//!
//! Sources: RFC 9110 section 13 (preconditions), section 14 (ranges), section 12.5.3 (codings).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use toru_http::Fields;

/// How a file's content is stored beside the file itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    Brotli,
    Gzip,
}

impl Coding {
    pub fn name(self) -> &'static str {
        match self {
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// What the name of the compressed file has more than that of the file.
    pub fn extension(self) -> &'static str {
        match self {
            Coding::Brotli => ".br",
            Coding::Gzip => ".gz",
        }
    }
}

/// Which codings a client prefers to the plain file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codings {
    #[default]
    Plain,
    Only(Coding),
    /// Both, the one that is named first.
    Both(Coding),
}

impl Codings {
    /// In order of preference.
    pub fn wanted(self) -> impl Iterator<Item = Coding> {
        let list = match self {
            Codings::Plain => [None, None],
            Codings::Only(coding) => [Some(coding), None],
            Codings::Both(Coding::Brotli) => [Some(Coding::Brotli), Some(Coding::Gzip)],
            Codings::Both(Coding::Gzip) => [Some(Coding::Gzip), Some(Coding::Brotli)],
        };
        list.into_iter().flatten()
    }

    /// Reads all `accept-encoding` fields. At equal weight Brotli wins, which is the smaller one.
    pub fn read(fields: &Fields<'_>) -> Self {
        let (mut brotli, mut gzip, mut plain, mut others) = (None, None, None, None);
        for value in fields.get_all("accept-encoding") {
            for element in value.split(|&byte| byte == b',') {
                let mut parts = element.split(|&byte| byte == b';');
                let name = parts.next().unwrap_or_default().trim_ascii();
                let Some(weight) = weight(parts) else { continue };
                let slot = match name {
                    name if name.eq_ignore_ascii_case(b"br") => &mut brotli,
                    name if name.eq_ignore_ascii_case(b"gzip") || name.eq_ignore_ascii_case(b"x-gzip") => {
                        &mut gzip
                    }
                    name if name.eq_ignore_ascii_case(b"identity") => &mut plain,
                    b"*" => &mut others,
                    _ => continue,
                };
                *slot = Some(weight);
            }
        }
        let brotli = brotli.or(others).unwrap_or(0);
        let gzip = gzip.or(others).unwrap_or(0);
        // Not to mention the plain file is to take it when there is nothing better.
        let plain = plain.unwrap_or(0);
        match (brotli > 0 && brotli >= plain, gzip > 0 && gzip >= plain) {
            (false, false) => Codings::Plain,
            (true, false) => Codings::Only(Coding::Brotli),
            (false, true) => Codings::Only(Coding::Gzip),
            (true, true) if gzip > brotli => Codings::Both(Coding::Gzip),
            (true, true) => Codings::Both(Coding::Brotli),
        }
    }
}

/// The weight of a list element in thousandths, 1000 where none is given; `None` when it is malformed.
fn weight<'a>(parameters: impl Iterator<Item = &'a [u8]>) -> Option<u32> {
    for parameter in parameters {
        let [b'q' | b'Q', b'=', digits @ ..] = parameter.trim_ascii() else { continue };
        return match digits {
            [b'1'] => Some(1000),
            [b'1', b'.', zeros @ ..] if zeros.len() <= 3 && zeros.iter().all(|&digit| digit == b'0') => {
                Some(1000)
            }
            [b'0'] => Some(0),
            [b'0', b'.', rest @ ..] if rest.len() <= 3 && rest.iter().all(u8::is_ascii_digit) => {
                let thousandths = rest.iter().chain([b'0'; 3].iter()).take(3);
                Some(thousandths.fold(0, |sum, digit| sum * 10 + u32::from(digit - b'0')))
            }
            _ => None,
        };
    }
    Some(1000)
}

/// The preconditions and the range of one request; each `None` where the client sent no such field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    if_match: Option<String>,
    if_none_match: Option<String>,
    if_modified_since: Option<SystemTime>,
    if_unmodified_since: Option<SystemTime>,
    if_range: Option<String>,
    range: Option<Range>,
}

/// One range of bytes, as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// From the first to the last byte, both included; the last is `u64::MAX` where none was named.
    Span(u64, u64),
    /// So many bytes at the end.
    Suffix(u64),
}

/// What identifies the content that would be sent.
#[derive(Clone, Copy, Debug)]
pub struct Validators<'a> {
    /// A strong entity tag, with its quotes.
    pub etag: &'a str,
    /// Whole seconds.
    pub modified: SystemTime,
    pub size: u64,
}

/// What has to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Whole,
    /// From the first to the last byte, both included and within the content.
    Part(u64, u64),
    NotModified,
    PreconditionFailed,
    /// No byte of the range exists.
    Unsatisfiable,
}

impl Conditions {
    /// `whole` requests, such as HEAD, have no range (RFC 9110 section 14.2).
    pub fn read(fields: &Fields<'_>, whole: bool) -> Self {
        let date = |name: &str| {
            let text = std::str::from_utf8(fields.get(name)?).ok()?;
            httpdate::parse_http_date(text.trim()).ok()
        };
        let range = if whole { None } else { fields.get("range").and_then(parse_range) };
        Self {
            if_match: joined(fields, "if-match"),
            if_none_match: joined(fields, "if-none-match"),
            if_modified_since: date("if-modified-since"),
            if_unmodified_since: date("if-unmodified-since"),
            if_range: range.and_then(|_| joined(fields, "if-range")),
            // Two fields are as much a list as two ranges in one.
            range: range.filter(|_| fields.get_all("range").count() == 1),
        }
    }

    /// Evaluates everything in the order of RFC 9110 section 13.2.2.
    pub fn judge(&self, of: &Validators<'_>, now: SystemTime) -> Verdict {
        if let Some(tags) = &self.if_match {
            if !matches_any(tags, of.etag, true) {
                return Verdict::PreconditionFailed;
            }
        } else if self.if_unmodified_since.is_some_and(|since| of.modified > since) {
            return Verdict::PreconditionFailed;
        }
        if let Some(tags) = &self.if_none_match {
            if matches_any(tags, of.etag, false) {
                return Verdict::NotModified;
            }
        } else if self.if_modified_since.is_some_and(|since| of.modified <= since) {
            return Verdict::NotModified;
        }
        let Some(range) = self.range else { return Verdict::Whole };
        if let Some(validator) = &self.if_range
            && !is_same(validator, of, now)
        {
            return Verdict::Whole;
        }
        match range {
            Range::Span(first, last) if first < of.size => Verdict::Part(first, last.min(of.size - 1)),
            Range::Span(..) | Range::Suffix(0) => Verdict::Unsatisfiable,
            // The end of nothing is all of it, and no `content-range` can say so.
            Range::Suffix(_) if of.size == 0 => Verdict::Whole,
            Range::Suffix(count) => Verdict::Part(of.size.saturating_sub(count), of.size - 1),
        }
    }
}

fn joined(fields: &Fields<'_>, name: &str) -> Option<String> {
    let mut values = fields.get_all(name).map(String::from_utf8_lossy);
    let mut all = values.next()?.into_owned();
    for value in values {
        all.push_str(", ");
        all.push_str(&value);
    }
    Some(all)
}

/// Whether a list of entity tags names `etag`, which is strong. A strong comparison takes no weak tag for equal.
fn matches_any(list: &str, etag: &str, strong: bool) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let mut rest = list;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let weak = rest.starts_with("W/");
        let tag = rest.strip_prefix("W/").unwrap_or(rest);
        // What is no entity tag names nothing; neither does what follows it.
        let Some(close) = tag.strip_prefix('"').and_then(|inner| inner.find('"')) else { return false };
        let (tag, after) = tag.split_at(close + 2);
        if tag == etag && !(weak && strong) {
            return true;
        }
        rest = after;
    }
}

/// RFC 9110 section 13.1.5: the same strong tag, or the same date if that is a strong validator.
fn is_same(validator: &str, of: &Validators<'_>, now: SystemTime) -> bool {
    let validator = validator.trim();
    if validator.starts_with(['"', 'W']) {
        return validator == of.etag;
    }
    // The content may have changed twice within the second that the date names (section 8.8.2.2).
    let settled = of.modified + Duration::from_secs(1) <= now;
    settled && httpdate::parse_http_date(validator).is_ok_and(|date| date == of.modified)
}

/// One range of bytes; `None` for what must be ignored: other units, several ranges, nonsense.
fn parse_range(value: &[u8]) -> Option<Range> {
    let text = std::str::from_utf8(value).ok()?.trim();
    let (unit, set) = text.split_once('=')?;
    if !unit.trim_end().eq_ignore_ascii_case("bytes") {
        return None;
    }
    // Empty list elements count for nothing (RFC 9110 section 5.6.1).
    let mut specs = set.split(',').map(str::trim).filter(|spec| !spec.is_empty());
    let spec = specs.next()?;
    if specs.next().is_some() {
        return None;
    }
    let (first, last) = spec.split_once('-')?;
    let (first, last) = (position(first)?, position(last)?);
    match (first, last) {
        (None, None) => None,
        (None, Some(count)) => Some(Range::Suffix(count)),
        (Some(first), None) => Some(Range::Span(first, u64::MAX)),
        (Some(first), Some(last)) => (first <= last).then_some(Range::Span(first, last)),
    }
}

/// Digits alone; `Some(None)` for an empty text. What no file is long enough for counts as the largest number.
fn position(text: &str) -> Option<Option<u64>> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((!text.is_empty()).then(|| text.parse().unwrap_or(u64::MAX)))
}

/// The moment in whole seconds, which is what HTTP dates can say.
pub fn whole_seconds(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;
    use toru_http::{Connection, Event, Limits};

    /// Reads something of a request with these fields.
    fn with_fields<R>(fields: &[(&str, &str)], read: impl FnOnce(&Fields<'_>) -> R) -> R {
        let mut request = String::from("GET / HTTP/1.1\r\nhost: a\r\n");
        for (name, value) in fields {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let mut connection = Connection::new(Arc::new(Limits::default()));
        connection.handle_input(request.as_bytes());
        match connection.poll_event() {
            Event::Head(head) => read(&head.fields),
            other => panic!("{other:?}"),
        }
    }

    const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn judge(fields: &[(&str, &str)], size: u64) -> Verdict {
        let modified = httpdate::parse_http_date(MODIFIED).expect("a date");
        let of = Validators { etag: "\"now\"", modified, size };
        with_fields(fields, |fields| Conditions::read(fields, false)).judge(&of, SystemTime::now())
    }

    #[test]
    fn preconditions_are_judged_in_their_order() {
        let range = ("range", "bytes=0-0");
        for (fields, expect) in [
            (vec![], Verdict::Whole),
            (vec![("if-none-match", "\"now\"")], Verdict::NotModified),
            (vec![("if-none-match", "W/\"now\"")], Verdict::NotModified),
            (vec![("if-none-match", "\"a,b\", \"x\" ,W/\"now\"")], Verdict::NotModified),
            (vec![("if-none-match", "\"old\""), ("if-none-match", "\"now\"")], Verdict::NotModified),
            (vec![("if-none-match", "*")], Verdict::NotModified),
            (vec![("if-none-match", "now")], Verdict::Whole),
            (vec![("if-none-match", "\"now")], Verdict::Whole),
            (vec![("if-none-match", "\"Now\"")], Verdict::Whole),
            (vec![("if-modified-since", MODIFIED)], Verdict::NotModified),
            (vec![("if-modified-since", AFTER)], Verdict::NotModified),
            (vec![("if-modified-since", BEFORE)], Verdict::Whole),
            (vec![("if-modified-since", "yesterday")], Verdict::Whole),
            // A tag wins over a date.
            (vec![("if-none-match", "\"old\""), ("if-modified-since", AFTER)], Verdict::Whole),
            (vec![("if-match", "\"now\"")], Verdict::Whole),
            (vec![("if-match", "*")], Verdict::Whole),
            (vec![("if-match", "W/\"now\"")], Verdict::PreconditionFailed),
            (vec![("if-match", "\"old\"")], Verdict::PreconditionFailed),
            (vec![("if-match", "\"now\""), ("if-unmodified-since", BEFORE)], Verdict::Whole),
            (vec![("if-unmodified-since", MODIFIED)], Verdict::Whole),
            (vec![("if-unmodified-since", BEFORE)], Verdict::PreconditionFailed),
            (vec![("if-match", "\"now\""), ("if-none-match", "\"now\"")], Verdict::NotModified),
            (vec![("if-match", "\"old\""), range], Verdict::PreconditionFailed),
            (vec![("if-none-match", "\"now\""), range], Verdict::NotModified),
            (vec![("if-range", "\"now\""), range], Verdict::Part(0, 0)),
            (vec![("if-range", "W/\"now\""), range], Verdict::Whole),
            (vec![("if-range", "\"old\""), range], Verdict::Whole),
            (vec![("if-range", MODIFIED), range], Verdict::Part(0, 0)),
            (vec![("if-range", AFTER), range], Verdict::Whole),
            (vec![("if-range", "\"now\"")], Verdict::Whole),
        ] {
            assert_eq!(judge(&fields, 10), expect, "{fields:?}");
        }
    }

    #[test]
    fn one_range_is_served_and_all_else_is_ignored() {
        for (range, expect) in [
            ("bytes=0-3", Verdict::Part(0, 3)),
            ("bytes=0-", Verdict::Part(0, 9)),
            ("bytes=9-", Verdict::Part(9, 9)),
            ("bytes=4-99999999999999999999999", Verdict::Part(4, 9)),
            ("bytes=-3", Verdict::Part(7, 9)),
            ("bytes=-30", Verdict::Part(0, 9)),
            ("Bytes=1-1", Verdict::Part(1, 1)),
            ("bytes=,1-1 ,", Verdict::Part(1, 1)),
            ("bytes=10-", Verdict::Unsatisfiable),
            ("bytes=99999999999999999999999-", Verdict::Unsatisfiable),
            ("bytes=-0", Verdict::Unsatisfiable),
            ("bytes=0-1,3-4", Verdict::Whole),
            ("bytes=3-1", Verdict::Whole),
            ("bytes=-", Verdict::Whole),
            ("bytes=", Verdict::Whole),
            ("bytes=a-b", Verdict::Whole),
            ("bytes=+1-2", Verdict::Whole),
            ("bytes=0x1-2", Verdict::Whole),
            ("bytes", Verdict::Whole),
            ("lines=0-3", Verdict::Whole),
        ] {
            assert_eq!(judge(&[("range", range)], 10), expect, "{range}");
        }
        assert_eq!(judge(&[("range", "bytes=0-")], 0), Verdict::Unsatisfiable);
        assert_eq!(judge(&[("range", "bytes=-5")], 0), Verdict::Whole);
        assert_eq!(judge(&[("range", "bytes=0-1"), ("range", "bytes=3-4")], 10), Verdict::Whole);
    }

    #[test]
    fn a_date_of_this_second_is_no_strong_validator() {
        let now = SystemTime::now();
        let modified = whole_seconds(now);
        let date = httpdate::fmt_http_date(modified);
        let of = Validators { etag: "\"now\"", modified, size: 10 };
        let fields = [("range", "bytes=0-0"), ("if-range", date.as_str())];
        let conditions = with_fields(&fields, |fields| Conditions::read(fields, false));
        assert_eq!(conditions.judge(&of, now), Verdict::Whole);
        assert_eq!(conditions.judge(&of, now + Duration::from_secs(2)), Verdict::Part(0, 0));
    }

    #[test]
    fn the_weights_choose_the_coding() {
        use Coding::{Brotli, Gzip};
        for (accept, expect) in [
            ("", Codings::Plain),
            ("gzip", Codings::Only(Gzip)),
            ("GZIP;q=0.001", Codings::Only(Gzip)),
            ("gzip, deflate, br", Codings::Both(Brotli)),
            ("br;q=0.5, gzip;q=0.8", Codings::Both(Gzip)),
            ("br;q=0, gzip", Codings::Only(Gzip)),
            ("br ; q=0.0 , gzip ; q=0", Codings::Plain),
            ("identity, br;q=0.5", Codings::Plain),
            ("identity;q=0.5, br;q=0.6", Codings::Only(Brotli)),
            ("identity;q=0, *;q=0.1", Codings::Both(Brotli)),
            ("*", Codings::Both(Brotli)),
            ("*;q=0", Codings::Plain),
            ("gzip;q=2", Codings::Plain),
            ("gzip;q=1.001", Codings::Plain),
            ("brotli", Codings::Plain),
        ] {
            let found = with_fields(&[("accept-encoding", accept)], Codings::read);
            assert_eq!(found, expect, "{accept}");
        }
        let two = [("accept-encoding", "br"), ("accept-encoding", "gzip")];
        assert_eq!(with_fields(&two, Codings::read), Codings::Both(Brotli));
        assert_eq!(with_fields(&[], Codings::read), Codings::Plain);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_content(range in "bytes=[0-9]{0,20}-[0-9]{0,20}", size in 0u64..40) {
            match judge(&[("range", &range)], size) {
                Verdict::Part(first, last) => prop_assert!(first <= last && last < size),
                verdict => prop_assert!(matches!(verdict, Verdict::Whole | Verdict::Unsatisfiable)),
            }
        }

        #[test]
        fn no_list_of_tags_panics(list in "[W/\"a, *]{0,20}", strong: bool) {
            let _ = matches_any(&list, "\"a\"", strong);
        }
    }
}
