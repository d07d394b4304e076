//! Reading JSON of a known shape by position, for the frames that nearly all frames are.
//!
//! Every method gives nothing where the text is not what is expected; the caller then leaves the frame to a general
//! reader. So whatever is given must be what a general reader would have said, and the rest may be anything.

use std::borrow::Cow;

use crate::json::{BLOCK, next_to_escape, put, to_escape};

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

/// What is left of a frame.
pub(crate) struct Cursor<'a>(pub &'a str);

impl<'a> Cursor<'a> {
    /// Errors: the frame is not UTF-8.
    pub fn new(frame: &'a [u8]) -> Option<Self> {
        std::str::from_utf8(frame).ok().map(Self)
    }

    // Known lengths are compared without a call.
    #[inline(always)]
    pub fn skip(&mut self, literal: &'static str) -> Option<()> {
        let (start, rest) = self.0.split_at_checked(literal.len())?;
        if start != literal {
            return None;
        }
        self.0 = rest;
        Some(())
    }

    /// The rest of a string whose opening quote was skipped, if nothing in it is escaped.
    #[inline]
    pub fn string(&mut self) -> Option<&'a str> {
        let end = next_to_escape(self.0.as_bytes())?;
        if self.0.as_bytes()[end] != b'"' {
            return None;
        }
        let string = self.0.get(..end)?;
        self.0 = self.0.get(end + 1..)?;
        Some(string)
    }

    /// The same, unescaped if need be; pairs of surrogates are left to the general reader.
    pub fn text(&mut self) -> Option<Cow<'a, str>> {
        let end = next_to_escape(self.0.as_bytes())?;
        if self.0.as_bytes()[end] == b'"' {
            return self.string().map(Cow::Borrowed);
        }
        let bytes = self.unescape(end, Vec::with_capacity(128))?;
        // Made of text and of whole characters.
        String::from_utf8(bytes).ok().map(Cow::Owned)
    }

    /// The same, unescaped into `room` if need be, whatever that held.
    #[cfg(feature = "sdk")]
    pub fn text_in<'t>(&mut self, room: &'t mut Vec<u8>) -> Option<&'t str>
    where
        'a: 't,
    {
        let end = next_to_escape(self.0.as_bytes())?;
        if self.0.as_bytes()[end] == b'"' {
            return self.string();
        }
        room.clear();
        *room = self.unescape(end, std::mem::take(room))?;
        std::str::from_utf8(room).ok()
    }

    /// The same for a content, which is most of its frame: what is allocated has room for all of it.
    pub fn content(&mut self) -> Option<Cow<'a, [u8]>> {
        let end = next_to_escape(self.0.as_bytes())?;
        if self.0.as_bytes()[end] == b'"' {
            return self.string().map(|text| Cow::Borrowed(text.as_bytes()));
        }
        self.unescape(end, Vec::with_capacity(self.0.len())).map(Cow::Owned)
    }

    /// Appends the rest of a string of which the first `clear` bytes have no escape.
    ///
    /// Where one is, more are: so each block is copied as it is, whatever is in it, and what is behind an escape is copied
    /// again to its place.
    fn unescape(&mut self, clear: usize, mut text: Vec<u8>) -> Option<Vec<u8>> {
        /// Bytes for which room is made at a time.
        const AT_ONCE: usize = 256;
        let (clear, mut rest) = self.0.as_bytes().split_at_checked(clear)?;
        text.extend_from_slice(clear);
        loop {
            let mut to = text.len();
            let stop = to + AT_ONCE;
            // The last block, and the longest character.
            text.resize(stop + BLOCK + 4, 0);
            while to < stop {
                let at = match rest.first_chunk::<BLOCK>() {
                    Some(block) => {
                        put(&mut text, to, block);
                        match to_escape(block).trailing_zeros() as usize {
                            at @ 0..BLOCK => at,
                            _ => {
                                to += BLOCK;
                                rest = &rest[BLOCK..];
                                continue;
                            }
                        }
                    }
                    None => {
                        let at = next_to_escape(rest)?;
                        text[to..to + at].copy_from_slice(&rest[..at]);
                        at
                    }
                };
                to += at;
                let escape = match rest[at..] {
                    [b'"', ..] => {
                        text.truncate(to);
                        // Behind a quote there is a character's beginning.
                        self.0 = self.0.get(self.0.len() - rest.len() + at + 1..)?;
                        return Some(text);
                    }
                    [b'\\', escape, ..] => escape,
                    _ => return None,
                };
                rest = &rest[at + 2..];
                let meaning = UNESCAPED[usize::from(escape)];
                if meaning != 0 {
                    text[to] = meaning;
                    to += 1;
                    continue;
                }
                if escape != b'u' {
                    return None;
                }
                let (digits, behind) = rest.split_first_chunk::<4>()?;
                let mut code = 0;
                for digit in digits {
                    code = code << 4 | char::from(*digit).to_digit(16)?;
                }
                rest = behind;
                to += char::from_u32(code)?.encode_utf8(&mut text[to..]).len();
            }
            text.truncate(to);
        }
    }

    /// A decimal number without sign, fraction or exponent.
    pub fn number(&mut self) -> Option<u64> {
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = self.0.split_at_checked(digits)?;
        if number.len() > 1 && number.starts_with('0') {
            return None;
        }
        self.0 = rest;
        number.parse().ok()
    }
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
            let Some(text) = at.text() else { return };
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
        }
        assert_eq!(Cursor("\\u00e9\\\"\\/\" rest").text().as_deref(), Some("é\"/"));
    }

    #[test]
    fn numbers_have_one_spelling() {
        assert_eq!(Cursor("30000,").number(), Some(30_000));
        for json in ["", "-1", "030", "99999999999999999999"] {
            assert_eq!(Cursor(json).number(), None, "{json}");
        }
    }
}
