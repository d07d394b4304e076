//! Reading JSON of a known shape by position, for the frames that nearly all frames are.
//!
//! Every method gives nothing where the text is not what is expected; the caller then leaves the frame to a general
//! reader. So whatever is given must be what a general reader would have said, and the rest may be anything.

use std::borrow::Cow;

use crate::json::{BLOCK, WINDOW, block_at, clear_bytes, put, to_escape};

/// What a backslash and one letter stand for; 0 where that is no escape, or not a whole one.
const UNESCAPED: [u8; 256] = {
    let known = [
        (b'"', b'"'),
        (b'\\', b'\\'),
        (b'/', b'/'),
        (b'b', 8),
        (b'f', 12),
        (b'n', b'\n'),
        (b'r', b'\r'),
        (b't', b'\t'),
    ];
    let mut meanings = [0; 256];
    let mut index = 0;
    while index < known.len() {
        meanings[known[index].0 as usize] = known[index].1;
        index += 1;
    }
    meanings
};

/// Bytes for which room is made at a time.
const UNESCAPED_AT_ONCE: usize = 256;
/// What one step from before these writes: two blocks, or one and the longest character.
const STEP: usize = 2 * BLOCK;

/// What is left of a frame.
pub(crate) struct Cursor<'a>(pub &'a str);

impl<'a> Cursor<'a> {
    /// Errors: the frame is not UTF-8.
    pub fn new(frame: &'a [u8]) -> Option<Self> {
        simdutf8::basic::from_utf8(frame).ok().map(Self)
    }

    // Known lengths are compared without a call.
    #[inline(always)]
    pub fn skip(&mut self, literal: &'static str) -> Option<()> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(())
    }

    /// The rest of a string whose opening quote was skipped, if nothing in it is escaped.
    #[inline]
    pub fn string(&mut self) -> Option<&'a str> {
        let end = clear_bytes(self.0.as_bytes());
        self.string_of(end)
    }

    /// The rest of a string if its quote is the byte at `end`.
    #[inline]
    fn string_of(&mut self, end: usize) -> Option<&'a str> {
        if self.0.as_bytes().get(end) != Some(&b'"') {
            return None;
        }
        let string = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..)?;
        Some(string)
    }

    /// The same, unescaped if need be; pairs of surrogates are left to the general reader.
    pub fn text(&mut self) -> Option<Cow<'a, str>> {
        let end = clear_bytes(self.0.as_bytes());
        if let Some(string) = self.string_of(end) {
            return Some(Cow::Borrowed(string));
        }
        let bytes = self.unescape(end, Vec::with_capacity(end + UNESCAPED_AT_ONCE + STEP))?;
        // Made of text and of whole characters.
        String::from_utf8(bytes).ok().map(Cow::Owned)
    }

    /// The same, appended unescaped to what `text` has, for a short one with few escapes: piece by piece, so that nothing
    /// need be looked at twice to be known for text.
    #[cfg(feature = "sdk")]
    pub fn append_text(&mut self, text: &mut String) -> Option<()> {
        loop {
            let end = clear_bytes(self.0.as_bytes());
            text.push_str(self.0.get(..end)?);
            let read = match *self.0.as_bytes().get(end..)? {
                [b'"', ..] => {
                    self.0 = self.0.get(end + 1..)?;
                    return Some(());
                }
                [b'\\', b'u', a, b, c, d, ..] => {
                    text.push(from_hex([a, b, c, d])?);
                    6
                }
                [b'\\', letter, ..] if UNESCAPED[usize::from(letter)] != 0 => {
                    text.push(char::from(UNESCAPED[usize::from(letter)]));
                    2
                }
                _ => return None,
            };
            self.0 = self.0.get(end + read..)?;
        }
    }

    /// The same for a content, which is most of its frame: what is allocated has room for all of it.
    pub fn content(&mut self) -> Option<Cow<'a, [u8]>> {
        let end = clear_bytes(self.0.as_bytes());
        if let Some(string) = self.string_of(end) {
            return Some(Cow::Borrowed(string.as_bytes()));
        }
        self.unescape(end, Vec::with_capacity(self.0.len() + STEP)).map(Cow::Owned)
    }

    /// Appends the rest of a string of which the first `clear` bytes have no escape.
    ///
    /// Where one is, more are: so each block is copied as it is, whatever is in it, and what is behind an escape is copied
    /// again to its place.
    fn unescape(&mut self, clear: usize, mut text: Vec<u8>) -> Option<Vec<u8>> {
        let bytes = self.0.as_bytes();
        text.extend_from_slice(bytes.get(..clear)?);
        let mut at = clear;
        loop {
            let mut to = text.len();
            // What is left never becomes longer, so this is at most what there is room for.
            let stop = to + (bytes.len() - at).clamp(1, UNESCAPED_AT_ONCE);
            text.resize(stop + STEP, 0);
            while to < stop {
                let place = text[to..].first_chunk_mut::<STEP>()?;
                let mut padded = [0; WINDOW];
                let window = match bytes[at..].first_chunk() {
                    Some(window) => window,
                    None => {
                        // A zero is none of a string's bytes, so that none of these is taken for one.
                        padded[..bytes.len() - at].copy_from_slice(&bytes[at..]);
                        &padded
                    }
                };
                put(place, 0, block_at(window, 0));
                let mut marks = to_escape(block_at(window, 0));
                let (mut from, mut written) = (0, 0);
                // Escapes of one letter; anything else, and the end of the string, is seen to below.
                let special = loop {
                    if marks == 0 {
                        break None;
                    }
                    let found = marks.trailing_zeros() as usize;
                    let meaning = UNESCAPED[usize::from(window[found + 1])];
                    if window[found] != b'\\' || meaning == 0 {
                        break Some(found);
                    }
                    // What is behind it may be a backslash or a quote, and is done with.
                    marks &= !(0b11 << found);
                    written += found - from;
                    place[written] = meaning;
                    written += 1;
                    from = found + 2;
                    if from > BLOCK {
                        break None;
                    }
                    put(place, written, block_at(window, from));
                };
                let read = special.unwrap_or(from.max(BLOCK));
                to += written + read - from;
                at += read;
                if special.is_none() {
                    continue;
                }
                match bytes[at..] {
                    [b'"', ..] => {
                        text.truncate(to);
                        self.0 = self.0.get(at + 1..)?;
                        return Some(text);
                    }
                    [b'\\', b'u', a, b, c, d, ..] => {
                        to += from_hex([a, b, c, d])?.encode_utf8(&mut text[to..]).len();
                        at += 6;
                    }
                    _ => return None,
                }
            }
            text.truncate(to);
        }
    }

    /// A decimal number without sign, fraction or exponent, of at most 19 digits.
    pub fn number(&mut self) -> Option<u64> {
        let (mut number, mut digits) = (0_u64, 0);
        // Any number of so many digits is one of 64 bits.
        for byte in self.0.as_bytes().iter().take(19) {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 {
                break;
            }
            number = number * 10 + u64::from(digit);
            digits += 1;
        }
        if self.0.as_bytes().get(digits).is_some_and(u8::is_ascii_digit) {
            return None;
        }
        if digits == 0 || (digits > 1 && self.0.starts_with('0')) {
            return None;
        }
        self.0 = self.0.get(digits..)?;
        Some(number)
    }
}

/// The character of an escape with four digits; none for a surrogate.
fn from_hex(digits: [u8; 4]) -> Option<char> {
    let mut code = 0;
    for digit in digits {
        code = code << 4 | char::from(digit).to_digit(16)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::for_random_bytes;

    #[test]
    fn text_is_what_serde_json_says() {
        let alphabet = br#"ab"\\\\/nrtbfu0041dD8cC"#;
        let mut read = 0;
        for_random_bytes(20_000, |bytes| {
            let content: String = bytes
                .iter()
                .take(12)
                .map(|&byte| char::from(alphabet[usize::from(byte) % alphabet.len()]))
                .collect();
            let json = format!("{content}\u{e9}\"");
            let mut at = Cursor(&json);
            let text = at.text();
            let mut appended = "before".to_owned();
            let mut also_at = Cursor(&json);
            let also = also_at.append_text(&mut appended).map(|()| appended.strip_prefix("before"));
            assert_eq!(also.flatten(), text.as_deref(), "{json}");
            let Some(text) = text else { return };
            assert_eq!(also_at.0, at.0, "{json}");
            read += 1;
            let whole = &json[..json.len() - at.0.len()];
            assert_eq!(
                serde_json::from_str::<String>(&format!("\"{whole}")).ok().as_deref(),
                Some(&*text),
                "{json}"
            );
        });
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn what_is_not_text_is_left_alone() {
        for json in [
            "a",
            "a\\",
            "a\\\"",
            "\\u12",
            "\\u+123\"",
            "\\x\"",
            "a\nb\"",
            "\\\\a\u{1}\"",
            "\\ud83d\\ude00\"",
            "\\é\"",
            "\\u00é0\"",
        ] {
            assert_eq!(Cursor(json).text(), None, "{json}");
            assert_eq!(Cursor(json).append_text(&mut String::new()), None, "{json}");
        }
        assert_eq!(Cursor("\\u00e9\\\"\\/\" rest").text().as_deref(), Some("é\"/"));
    }

    #[test]
    fn numbers_have_one_spelling() {
        assert_eq!(Cursor("30000,").number(), Some(30_000));
        assert_eq!(Cursor("9999999999999999999").number(), Some(9_999_999_999_999_999_999));
        for json in ["", "-1", "030", "99999999999999999999"] {
            assert_eq!(Cursor(json).number(), None, "{json}");
        }
    }
}
