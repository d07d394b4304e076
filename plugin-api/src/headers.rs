//! Header fields as a JSON object: one writer for requests and responses.

use std::cmp::Ordering;

#[cfg(any(feature = "core", feature = "sdk"))]
use wide::u8x16;

use crate::json::Writer;
#[cfg(any(feature = "core", feature = "sdk"))]
use crate::json::has_none;

/// Up to here repeats are looked for pairwise; beyond, by sorting. Browsers send 10 to 20 fields.
const PAIRWISE_MAX: usize = 32;

/// Bytes of room that [`EncodedHeaders`] keep for the next ones.
const ROOM_KEPT: usize = 4096;

/// What becomes of a field that occurs more than once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// An array of strings (1.1).
    Array,
    /// One string, joined as RFC 9110 allows (1.0): `, `, and `; ` for `cookie`.
    Joined,
}

/// Header fields as frames bear them, written once for many requests.
#[derive(Clone, Debug, Default)]
pub struct EncodedHeaders(Vec<u8>);

impl EncodedHeaders {
    /// Bounds: each name once, whatever its case.
    pub fn new<'f>(headers: impl Iterator<Item = (&'f str, &'f [u8])>) -> Self {
        let mut encoded = Self::default();
        encoded.replace(headers);
        encoded
    }

    /// Writes these in the place of those before. Up to 4 KiB of room are used again.
    pub fn replace<'f>(&mut self, headers: impl Iterator<Item = (&'f str, &'f [u8])>) {
        if self.0.capacity() > ROOM_KEPT {
            self.0 = Vec::new();
        }
        self.0.clear();
        let mut to = Writer::new(&mut self.0, 0);
        headers.for_each(|(name, value)| write_field(&mut to, name, value));
        to.finish();
    }
}

/// Appends `{"name":"value",…}`, names in lower case, each name once at its first place, and then what is `encoded` already.
pub(crate) fn write_headers<'f>(
    to: &mut Writer<'_>,
    repeats: Repeats,
    headers: impl Iterator<Item = (&'f str, &'f [u8])> + Clone,
    encoded: &EncodedHeaders,
) {
    to.literal("{\"");
    let open = to.len();
    // A name whose bit is not in there is none of those before; nearly all are found to be new by this.
    let mut seen = [0_u64; 4];
    for (index, (name, value)) in headers.clone().enumerate() {
        let (word, bit) = name_bit(name);
        let is_new = index < PAIRWISE_MAX
            && (seen[word] & bit == 0
                || !headers.clone().take(index).any(|(other, _)| other.eq_ignore_ascii_case(name)));
        if !is_new {
            to.cut_back(open);
            write_grouped(to, repeats, &headers.collect::<Vec<_>>());
            break;
        }
        seen[word] |= bit;
        write_field(to, name, value);
    }
    to.encoded(&encoded.0);
    // Without what was meant for one more.
    to.cut_back(if to.len() > open { to.len() - ",\"".len() } else { open - "\"".len() });
    to.literal("}");
}

/// Appends `name":"value","`: the quote before the name is there, and that of the next one is written.
fn write_field(to: &mut Writer<'_>, name: &str, value: &[u8]) {
    to.lower_case(name);
    to.literal("\":\"");
    to.value(value);
    to.literal("\",\"");
}

/// All fields, where some repeat or there are many.
#[cold]
fn write_grouped(to: &mut Writer<'_>, repeats: Repeats, fields: &[(&str, &[u8])]) {
    if fields.len() > PAIRWISE_MAX {
        return write_sorted(to, repeats, fields);
    }
    for (index, &(name, _)) in fields.iter().enumerate() {
        let is_same = |(other, _): &(&str, &[u8])| other.eq_ignore_ascii_case(name);
        if !fields[..index].iter().any(is_same) {
            let same = fields[index..].iter().filter(|field| is_same(field));
            write_repeated(to, repeats, name, same.map(|(_, value)| *value));
        }
    }
}

fn write_sorted(to: &mut Writer<'_>, repeats: Repeats, fields: &[(&str, &[u8])]) {
    let mut by_name: Vec<usize> = (0..fields.len()).collect();
    by_name.sort_by(|&a, &b| compare_names(fields[a].0, fields[b].0).then(a.cmp(&b)));
    let mut groups: Vec<&[usize]> =
        by_name.chunk_by(|&a, &b| fields[a].0.eq_ignore_ascii_case(fields[b].0)).collect();
    groups.sort_unstable_by_key(|group| group[0]);
    for group in groups {
        let values = group.iter().map(|&index| fields[index].1);
        write_repeated(to, repeats, fields[group[0]].0, values);
    }
}

/// As [`write_field`], of one value or more.
fn write_repeated<'f>(
    to: &mut Writer<'_>,
    repeats: Repeats,
    name: &str,
    mut values: impl Iterator<Item = &'f [u8]> + Clone,
) {
    let is_array = repeats == Repeats::Array && values.clone().nth(1).is_some();
    to.lower_case(name);
    to.literal(if is_array { "\":[\"" } else { "\":\"" });
    to.value(values.next().unwrap_or_default());
    for value in values {
        match repeats {
            Repeats::Array => to.literal("\",\""),
            Repeats::Joined if name.eq_ignore_ascii_case("cookie") => to.literal("; "),
            Repeats::Joined => to.literal(", "),
        }
        to.value(value);
    }
    to.literal(if is_array { "\"],\"" } else { "\",\"" });
}

/// RFC 9110, 5.6.2: what a header name may be.
#[cfg(any(feature = "core", feature = "sdk"))]
pub(crate) fn is_token(name: &str) -> bool {
    // Nearly every answer has this one.
    name == "content-type" || !name.is_empty() && name.bytes().all(|byte| TOKEN[usize::from(byte)])
}

/// RFC 9110, 5.5: what a header value may be. CR, LF and NUL would end the field; no other control character means
/// anything in one.
#[cfg(any(feature = "core", feature = "sdk"))]
pub(crate) fn is_field_value(value: &str) -> bool {
    has_none(value.as_bytes(), |block| {
        let bytes = u8x16::new(*block);
        let controls = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes) & !bytes.simd_eq(u8x16::splat(b'\t'));
        (controls | bytes.simd_eq(u8x16::splat(0x7f))).to_bitmask()
    })
}

#[cfg(any(feature = "core", feature = "sdk"))]
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let signs = b"!#$%&'*+-.^_`|~";
    let mut index = 0;
    while index < signs.len() {
        table[signs[index] as usize] = true;
        index += 1;
    }
    let mut byte = 0;
    while byte < table.len() {
        table[byte] |= (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    table
};

/// Which of 256 bits stands for a name, as the place of a word and a bit of it.
fn name_bit(name: &str) -> (usize, u64) {
    let bytes = name.as_bytes();
    let (first, last) = (bytes.first().unwrap_or(&0), bytes.last().unwrap_or(&0));
    // Letters differ from their other case in bit 0x20 only.
    let mixed = bytes.len() * 31 + usize::from(first | 0x20) * 7 + usize::from(last | 0x20) * 3;
    (mixed / 64 % 4, 1 << (mixed % 64))
}

fn compare_names(a: &str, b: &str) -> Ordering {
    a.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(repeats: Repeats, fields: &[(&str, &[u8])]) -> String {
        let mut out = Vec::new();
        let mut to = Writer::new(&mut out, 0);
        write_headers(&mut to, repeats, fields.iter().copied(), &EncodedHeaders::default());
        to.finish();
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
    fn what_is_encoded_already_follows_as_if_it_were_written_now() {
        let fields: &[(&str, &[u8])] =
            &[("Host", b"a"), ("host", b"b"), ("X-Mine", b"caf\xe9 \"1\""), ("x-last", b"")];
        let long = vec![b'"'; 5000];
        let more: &[(&str, &[u8])] = &[("x-long", &long), ("X-Mine", b"2"), ("x-last", b"\xff")];
        for repeats in [Repeats::Array, Repeats::Joined] {
            let mut encoded = EncodedHeaders::default();
            for (count, behind) in
                [(4, &fields[4..]), (2, &fields[2..]), (0, &fields[1..]), (2, more), (0, &[])]
            {
                let mut out = Vec::new();
                let mut to = Writer::new(&mut out, 0);
                encoded.replace(behind.iter().copied());
                write_headers(&mut to, repeats, fields[..count].iter().copied(), &encoded);
                to.finish();
                assert_eq!(out, written(repeats, &[&fields[..count], behind].concat()).as_bytes());
            }
        }
    }

    #[test]
    fn no_control_character_but_tab_is_in_a_value() {
        for length in 0..40 {
            for place in 0..length {
                for byte in 0..=0x7f_u8 {
                    let mut value = vec![b'v'; length];
                    value[place] = byte;
                    let value = String::from_utf8(value).expect("ASCII");
                    assert_eq!(
                        is_field_value(&value),
                        byte == b'\t' || !byte.is_ascii_control(),
                        "{value:?}"
                    );
                }
            }
        }
        assert!(is_field_value("") && is_field_value("a value of more than one block: é"));
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
                let mut sorted = b"{\"".to_vec();
                write_sorted(&mut Writer::new(&mut sorted, 0), repeats, &fields);
                sorted.truncate(sorted.len() - 2);
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
