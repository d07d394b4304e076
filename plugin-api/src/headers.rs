//! Header fields as a JSON object: one writer for requests and responses.

use std::cmp::Ordering;

use crate::json::{is_plain, write_latin1_content, write_string_content};

/// Up to here repeats are looked for pairwise; beyond, by sorting. Browsers send 10 to 20 fields.
const PAIRWISE_MAX: usize = 32;

/// So many take less room to be taken down.
const FEW: usize = 4;

/// What becomes of a field that occurs more than once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// An array of strings (1.1).
    Array,
    /// One string, joined as RFC 9110 allows (1.0): `, `, and `; ` for `cookie`.
    Joined,
}

/// Appends `{"name":"value",…}`, names in lower case, each name once at its first place.
pub(crate) fn write_headers<'f>(
    out: &mut Vec<u8>,
    repeats: Repeats,
    headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
) {
    // An answer has one or two, and need not prepare for more.
    if headers.size_hint().1.is_some_and(|most| most <= FEW) {
        write_up_to::<FEW>(out, repeats, headers);
    } else {
        write_up_to::<PAIRWISE_MAX>(out, repeats, headers);
    }
}

fn write_up_to<'f, const MOST: usize>(
    out: &mut Vec<u8>,
    repeats: Repeats,
    headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
) {
    // Taken down once: to find out which fields there are can cost more than to look at them.
    let mut few = [("", &[][..]); MOST];
    let mut count = 0;
    let mut rest = headers.clone();
    for (place, field) in few.iter_mut().zip(&mut rest) {
        *place = field;
        count += 1;
    }
    out.push(b'{');
    let open = out.len();
    if rest.next().is_some() {
        write_sorted(out, repeats, headers.collect());
    } else {
        write_few(out, repeats, &few[..count]);
    }
    if out.len() > open {
        out.pop();
    }
    out.push(b'}');
}

fn write_few(out: &mut Vec<u8>, repeats: Repeats, fields: &[(&str, &[u8])]) {
    // A field whose bit is not in `twice` has no equal; the usual request is done after this pass.
    let (mut seen, mut twice) = (0_u64, 0_u64);
    for (name, _) in fields {
        let bit = name_bit(name);
        twice |= seen & bit;
        seen |= bit;
    }
    for (index, &(name, value)) in fields.iter().enumerate() {
        if twice & name_bit(name) == 0 {
            write_field(out, repeats, name, std::iter::once(value));
            continue;
        }
        let same = |(other, _): &&(&str, &[u8])| other.eq_ignore_ascii_case(name);
        if !fields[..index].iter().any(|field| same(&field)) {
            let values = fields[index..].iter().filter(same).map(|(_, value)| *value);
            write_field(out, repeats, name, values);
        }
    }
}

fn write_sorted(out: &mut Vec<u8>, repeats: Repeats, fields: Vec<(&str, &[u8])>) {
    let mut by_name: Vec<usize> = (0..fields.len()).collect();
    by_name.sort_by(|&a, &b| compare_names(fields[a].0, fields[b].0).then(a.cmp(&b)));
    let mut groups: Vec<&[usize]> =
        by_name.chunk_by(|&a, &b| fields[a].0.eq_ignore_ascii_case(fields[b].0)).collect();
    groups.sort_unstable_by_key(|group| group[0]);
    for group in groups {
        let values = group.iter().map(|&index| fields[index].1);
        write_field(out, repeats, fields[group[0]].0, values);
    }
}

/// Appends `"name":value,`.
fn write_field<'f>(out: &mut Vec<u8>, repeats: Repeats, name: &str, values: impl Iterator<Item = &'f [u8]>) {
    out.push(b'"');
    let name_at = out.len();
    write_string_content(out, name);
    out[name_at..].make_ascii_lowercase();
    out.extend_from_slice(b"\":");
    let separator: &[u8] = match repeats {
        Repeats::Array => b"\",\"",
        Repeats::Joined if name.eq_ignore_ascii_case("cookie") => b"; ",
        Repeats::Joined => b", ",
    };
    let value_at = out.len();
    out.push(b'"');
    let mut count = 0;
    for value in values {
        if count > 0 {
            out.extend_from_slice(separator);
        }
        count += 1;
        if is_plain(value) {
            out.extend_from_slice(value);
        } else if let Ok(text) = std::str::from_utf8(value) {
            write_string_content(out, text);
        } else {
            write_latin1_content(out, value);
        }
    }
    out.push(b'"');
    if repeats == Repeats::Array && count > 1 {
        out.insert(value_at, b'[');
        out.push(b']');
    }
    out.push(b',');
}

/// RFC 9110, 5.6.2: what a header name may be.
#[cfg(any(feature = "core", feature = "sdk"))]
pub(crate) fn is_token(name: &str) -> bool {
    const IN_TOKENS: [bool; 256] = {
        let mut bytes = [false; 256];
        let mut byte = 0;
        while byte < 128_u8 {
            bytes[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        let others = b"!#$%&'*+-.^_`|~";
        let mut index = 0;
        while index < others.len() {
            bytes[others[index] as usize] = true;
            index += 1;
        }
        bytes
    };
    !name.is_empty() && name.bytes().all(|byte| IN_TOKENS[usize::from(byte)])
}

/// RFC 9110, 5.5: what a header value may be. CR, LF and NUL would end the field; no other control character means
/// anything in one.
#[cfg(any(feature = "core", feature = "sdk"))]
pub(crate) fn is_field_value(value: &str) -> bool {
    // All are looked at, which goes many at a time.
    !value.bytes().fold(false, |found, byte| found | (byte < b' ' && byte != b'\t') | (byte == 0x7f))
}

fn name_bit(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let (first, last) = (bytes.first().unwrap_or(&0), bytes.last().unwrap_or(&0));
    // Letters differ from their other case in bit 0x20 only.
    let mixed = bytes.len() * 31 + usize::from(first | 0x20) * 7 + usize::from(last | 0x20) * 3;
    1 << (mixed % 64)
}

fn compare_names(a: &str, b: &str) -> Ordering {
    a.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(repeats: Repeats, fields: &[(&str, &[u8])]) -> String {
        let mut out = Vec::new();
        write_headers(&mut out, repeats, fields.iter().copied());
        String::from_utf8(out).expect("JSON is text")
    }

    #[test]
    fn shapes() {
        let fields: &[(&str, &[u8])] = &[
            ("Host", b"a"),
            ("Cookie", b"a=1"),
            ("x-é", b"1"),
            ("X-Latin", b"caf\xe9"),
            ("accept", b"x\"y"),
            ("COOKIE", b"b=2"),
            ("Accept", b"z"),
        ];
        assert_eq!(written(Repeats::Array, &[]), "{}");
        assert_eq!(
            written(Repeats::Array, fields),
            r#"{"host":"a","cookie":["a=1","b=2"],"x-é":"1","x-latin":"café","accept":["x\"y","z"]}"#
        );
        assert_eq!(
            written(Repeats::Joined, fields),
            r#"{"host":"a","cookie":"a=1; b=2","x-é":"1","x-latin":"café","accept":"x\"y, z"}"#
        );
    }

    #[test]
    fn sorting_says_what_pairs_say() {
        let names = ["a", "B", "b", "A", "cookie", "c", "Cookie"];
        for count in [1, 31, 32, 33, 500] {
            let values: Vec<String> = (0..count).map(|index| index.to_string()).collect();
            let fields: Vec<(&str, &[u8])> = values
                .iter()
                .enumerate()
                .map(|(index, value)| (names[index % names.len()], value.as_bytes()))
                .collect();
            for repeats in [Repeats::Array, Repeats::Joined] {
                let mut sorted = vec![b'{'];
                write_sorted(&mut sorted, repeats, fields.clone());
                sorted.pop();
                sorted.push(b'}');
                assert_eq!(written(repeats, &fields).as_bytes(), sorted);
            }
        }
    }

    #[test]
    fn ten_thousand_fields_keep_their_names() {
        let names: Vec<String> = (0..10_000).map(|index| format!("x-{index}")).collect();
        let fields: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"v"[..])).collect();
        let text = written(Repeats::Array, &fields);
        let read: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).expect("valid");
        assert_eq!(read.len(), 10_000);
    }
}
