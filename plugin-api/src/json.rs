//! Writing JSON straight into a buffer: what the encoders of both sides share.
//!
//! There is no tree and no formatter machinery in between; a message is a few constant pieces with
//! strings and numbers in their gaps. Reading JSON is not done here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_string_content(out, text);
    out.push(b'"');
}

/// Appends `text` escaped for the inside of a JSON string, without quotes.
pub fn write_string_content(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some(at) = next_to_escape(rest) {
        out.extend_from_slice(&rest[..at]);
        write_escape(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
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
pub(crate) fn next_to_escape(bytes: &[u8]) -> Option<usize> {
    let (words, tail) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // Eight bytes at once. A borrow can only disturb bytes above a true hit,
        // and the lowest hit is the one that is taken.
        let quotes = word ^ (ONES * b'"' as u64);
        let backslashes = word ^ (ONES * b'\\' as u64);
        let hits = ((word.wrapping_sub(ONES * 0x20) & !word)
            | (quotes.wrapping_sub(ONES) & !quotes)
            | (backslashes.wrapping_sub(ONES) & !backslashes))
            & HIGHS;
        if hits != 0 {
            return Some(index * 8 + (hits.trailing_zeros() / 8) as usize);
        }
    }
    tail.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\').map(|at| words.len() * 8 + at)
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
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
