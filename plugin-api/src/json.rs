//! Writing JSON straight into a buffer: what the encoders of both sides share.
//!
//! There is no tree and no formatter machinery in between; a message is a few constant pieces with
//! strings and numbers in their gaps. Reading JSON is not done here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wide::u8x16;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// How many bytes are looked at together.
pub(crate) const BLOCK: usize = 16;
/// `\u0000` and the like take six, and are written as eight.
const ESCAPE_ROOM: usize = 8;
/// Bytes for which room is made at a time.
const ESCAPED_AT_ONCE: usize = 1024;

/// What stands for each byte that is escaped, with how many bytes of it count.
const ESCAPES: [([u8; ESCAPE_ROOM], u8); 128] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut escapes = [([0; 8], 0); 128];
    let mut byte = 0;
    while byte < 0x20 {
        escapes[byte] = (*b"\\u0000  ", 6);
        escapes[byte].0[4] = HEX[byte >> 4];
        escapes[byte].0[5] = HEX[byte & 15];
        byte += 1;
    }
    let short = [(8, b'b'), (9, b't'), (10, b'n'), (12, b'f'), (13, b'r'), (b'"', b'"'), (b'\\', b'\\')];
    let mut index = 0;
    while index < short.len() {
        let (byte, letter) = short[index];
        escapes[byte as usize] = ([b'\\', letter, 0, 0, 0, 0, 0, 0], 2);
        index += 1;
    }
    escapes
};

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_string_content(out, text);
    out.push(b'"');
}

/// Appends `text` escaped for the inside of a JSON string, without quotes.
pub fn write_string_content(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    match next_to_escape(bytes) {
        None => out.extend_from_slice(bytes),
        Some(at) => {
            let (clear, mut rest) = bytes.split_at(at);
            out.reserve(bytes.len() + rest.len() / 8);
            out.extend_from_slice(clear);
            while !rest.is_empty() {
                rest = write_escaped(out, rest);
            }
        }
    }
}

/// Writes about [`ESCAPED_AT_ONCE`] bytes; gives what is left.
///
/// Where something is escaped, more is: content that is JSON itself has a quote every few bytes. So each block is copied
/// as it is, whatever is in it, and what is behind an escape is copied again to its place.
fn write_escaped<'a>(out: &mut Vec<u8>, mut rest: &'a [u8]) -> &'a [u8] {
    let mut to = out.len();
    let stop = to + rest.len().min(ESCAPED_AT_ONCE);
    // One step from before `stop`: a block, and an escape behind all of it but its last.
    out.resize(stop + BLOCK + ESCAPE_ROOM, 0);
    let room = out.as_mut_slice();
    while to < stop {
        let Some(block) = rest.first_chunk::<BLOCK>() else {
            let Some((&byte, behind)) = rest.split_first() else { break };
            if is_escaped(byte) {
                to = escape(room, to, byte);
            } else {
                room[to] = byte;
                to += 1;
            }
            rest = behind;
            continue;
        };
        put(room, to, block);
        match to_escape(block).trailing_zeros() as usize {
            at @ 0..BLOCK => {
                to = escape(room, to + at, block[at]);
                rest = &rest[at + 1..];
            }
            _ => {
                to += BLOCK;
                rest = &rest[BLOCK..];
            }
        }
    }
    out.truncate(to);
    rest
}

/// Writes an escape to its place; gives the place behind it.
fn escape(room: &mut [u8], to: usize, byte: u8) -> usize {
    let (escape, len) = &ESCAPES[usize::from(byte % ESCAPES.len() as u8)];
    put(room, to, escape);
    to + usize::from(*len)
}

/// Copies as one store what a slice of unknown length would be a call for.
#[inline]
pub(crate) fn put<const BYTES: usize>(room: &mut [u8], at: usize, bytes: &[u8; BYTES]) {
    *room[at..].first_chunk_mut().expect("room was made for it") = *bytes;
}

/// Appends bytes that are not UTF-8 as if they were Latin-1, escaped, without quotes.
///
/// Only header values come here: HTTP says nothing about their encoding beyond ASCII (RFC 9110, 5.5).
pub fn write_latin1_content(out: &mut Vec<u8>, bytes: &[u8]) {
    let mut utf8 = [0; 2];
    for &byte in bytes {
        write_string_content(out, char::from(byte).encode_utf8(&mut utf8));
    }
}

/// Appends `number` in decimal.
pub fn write_u64(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a JSON string that holds `bytes` in base64 (RFC 4648 section 4, padded).
pub fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let at = out.len();
    out.resize(at + bytes.len().div_ceil(3) * 4, 0);
    let written =
        STANDARD.encode_slice(bytes, &mut out[at..]).expect("four characters for each three bytes begun");
    debug_assert_eq!(at + written, out.len());
    out.push(b'"');
}

/// Index of the first byte that JSON wants escaped: `"`, `\` and everything below 0x20.
#[inline]
pub(crate) fn next_to_escape(bytes: &[u8]) -> Option<usize> {
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate() {
        let found = to_escape(block);
        if found != 0 {
            return Some(index * BLOCK + found.trailing_zeros() as usize);
        }
    }
    if none_of_tail(tail, hits) {
        return None;
    }
    tail.iter().position(|&byte| is_escaped(byte)).map(|at| blocks.len() * BLOCK + at)
}

/// Whether all is ASCII that stands in a JSON string as it is.
#[inline]
pub(crate) fn is_plain(bytes: &[u8]) -> bool {
    let marks = |word| hits(word) | word & HIGHS;
    let (blocks, tail) = bytes.as_chunks::<BLOCK>();
    blocks.iter().all(|block| {
        let (low, high) = halves(block);
        marks(low) | marks(high) == 0
    }) && none_of_tail(tail, marks)
}

/// Whether `marks` marks nothing of what is less than a block; it is asked for eight bytes at a time, some of them twice.
#[inline]
fn none_of_tail(tail: &[u8], marks: impl Fn(u64) -> u64) -> bool {
    if let (Some(first), Some(last)) = (tail.first_chunk(), tail.last_chunk()) {
        return marks(u64::from_le_bytes(*first)) | marks(u64::from_le_bytes(*last)) == 0;
    }
    if let (Some(first), Some(last)) = (tail.first_chunk(), tail.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        return marks(u64::from(first) | u64::from(last) << 32) == 0;
    }
    let [first, .., last] = *tail else {
        return tail.first().is_none_or(|&byte| marks(ONES * u64::from(byte)) == 0);
    };
    let word = u64::from_le_bytes([first, tail[1], last, last, last, last, last, last]);
    marks(word) == 0
}

fn is_escaped(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

fn halves(block: &[u8; BLOCK]) -> (u64, u64) {
    let block = u128::from_le_bytes(*block);
    (block as u64, (block >> 64) as u64)
}

/// Which bytes of a block are escaped, the first in the lowest bit.
#[inline]
pub(crate) fn to_escape(block: &[u8; BLOCK]) -> u32 {
    let bytes = u8x16::new(*block);
    let control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    let quotes = bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\'));
    (control | quotes).to_bitmask()
}

/// The high bits of those of eight bytes that are escaped. A borrow may set one above the lowest, and only there.
fn hits(word: u64) -> u64 {
    let quotes = word ^ (ONES * b'"' as u64);
    let backslashes = word ^ (ONES * b'\\' as u64);
    ((word.wrapping_sub(ONES * 0x20) & !word)
        | (quotes.wrapping_sub(ONES) & !quotes)
        | (backslashes.wrapping_sub(ONES) & !backslashes))
        & HIGHS
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `check` on `rounds` short random inputs; the generator is seeded, so a failure repeats.
    pub(crate) fn for_random_bytes(rounds: u32, mut check: impl FnMut(&[u8])) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
        };
        let mut bytes = Vec::new();
        for _ in 0..rounds {
            bytes.clear();
            let length = next() % 200;
            bytes.extend((0..length).map(|_| next() as u8));
            check(&bytes);
        }
    }

    /// Runs `check` on `rounds` variants of a message, each with one byte changed, removed or put in, or cut off there;
    /// gives how often `check` gave true.
    pub(crate) fn count_variants(original: &[u8], rounds: u32, check: impl Fn(&[u8]) -> bool) -> u32 {
        let mut count = 0;
        for_random_bytes(rounds, |bytes| {
            let [place, what, ..] = *bytes else { return };
            let (place, mut variant) = (usize::from(place) * 7 % original.len(), original.to_vec());
            match what % 4 {
                0 => variant[place] = what,
                1 => drop(variant.remove(place)),
                2 => variant.insert(place, what),
                _ => variant.truncate(place),
            }
            count += u32::from(check(&variant));
        });
        count
    }

    /// Asserts that `is_usual` holds for a message, and no more once a piece of it is another.
    #[track_caller]
    pub(crate) fn assert_leaves_alone(
        usual: &[u8],
        changes: &[(&str, &str)],
        is_usual: impl Fn(&[u8]) -> bool,
    ) {
        assert!(is_usual(usual));
        let usual = std::str::from_utf8(usual).expect("JSON");
        for (from, to) in changes {
            let changed = usual.replace(from, to);
            assert_ne!(changed, usual, "{from}");
            assert!(!is_usual(changed.as_bytes()), "{changed}");
        }
    }

    #[test]
    fn every_byte_at_every_place_reads_back() {
        for byte in 0..=0x7f_u8 {
            for place in 0..20 {
                let mut text = "é".repeat(10).into_bytes();
                text.splice(place / 2 * 2..place / 2 * 2, std::iter::repeat_n(byte, place % 2 + 1));
                let text = String::from_utf8(text).expect("spliced between characters");
                let mut out = Vec::new();
                write_string(&mut out, &text);
                assert!(out[1..out.len() - 1].iter().all(|&byte| byte >= 0x20));
                let back: String = serde_json::from_slice(&out).expect("valid JSON");
                assert_eq!(back, text);
            }
        }
    }

    #[test]
    fn random_text_reads_back() {
        for_random_bytes(5_000, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mut out = Vec::new();
            write_string(&mut out, &text);
            assert_eq!(out, serde_json::to_vec(&text).expect("a string"));
        });
    }

    #[test]
    fn text_of_any_length_reads_back() {
        // Around the ends of what is looked at, and of what room is made for, together.
        let lengths = (0..70).chain(1000..1060).chain(2030..2070);
        for length in lengths {
            for piece in ["a", "\"", "\u{1}", "key\":\u{e9}\n", "\u{1f600}\\ plain text between"] {
                let text: String = piece.chars().cycle().take(length).collect();
                let mut out = Vec::new();
                write_string(&mut out, &text);
                assert_eq!(out, serde_json::to_vec(&text).expect("a string"), "{length} of {piece:?}");
                let json = std::str::from_utf8(&out[1..]).expect("JSON is text");
                let mut at = crate::cursor::Cursor(json);
                assert_eq!(at.content().as_deref(), Some(text.as_bytes()), "{length} of {piece:?}");
                assert_eq!(at.0, "");
            }
        }
    }

    #[test]
    fn plain_is_what_serde_json_leaves_as_it_is() {
        for_random_bytes(20_000, |bytes| {
            // Hardly ever anything else than what stands between `"` and `\\`.
            let of = |&byte: &u8| if byte % 31 == 0 { byte & 0x7f } else { b'#' + byte % 50 };
            let bytes: Vec<u8> = bytes.iter().take(40).map(of).collect();
            let text = String::from_utf8_lossy(&bytes);
            let as_it_is = serde_json::to_vec(&text).expect("a string")[1..].starts_with(text.as_bytes());
            assert_eq!(is_plain(text.as_bytes()), text.is_ascii() && as_it_is, "{text:?}");
        });
        assert!(is_plain(b"") && is_plain(&[b'~'; 40]) && !is_plain("\u{e9}".as_bytes()));
    }

    #[test]
    fn numbers_and_base64() {
        for number in [0, 7, 10, 1_048_576, u64::MAX] {
            let mut out = Vec::new();
            write_u64(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
        for (bytes, expect) in [("", "\"\""), ("f", "\"Zg==\""), ("foobar", "\"Zm9vYmFy\"")] {
            let mut out = Vec::new();
            write_base64(&mut out, bytes.as_bytes());
            assert_eq!(out, expect.as_bytes());
        }
    }
}
