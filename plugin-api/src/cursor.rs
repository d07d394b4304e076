//! Reading JSON of a known shape by position, for the frames that nearly all frames are.
//!
//! Every method gives nothing where the text is not what is expected; the caller then leaves the frame to a general
//! reader. So whatever is given must be what a general reader would have said, and the rest may be anything.

use std::borrow::Cow;

use crate::json::next_to_escape;

/// What is left of a frame.
pub(crate) struct Cursor<'a>(pub &'a str);

impl<'a> Cursor<'a> {
    /// Errors: the frame is not UTF-8.
    pub fn new(frame: &'a [u8]) -> Option<Self> {
        std::str::from_utf8(frame).ok().map(Self)
    }

    pub fn skip(&mut self, literal: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(literal)?;
        Some(())
    }

    /// The rest of a string whose opening quote was skipped, if nothing in it is escaped.
    pub fn string(&mut self) -> Option<&'a str> {
        let end = next_to_escape(self.0.as_bytes())?;
        let (string, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.strip_prefix('"')?;
        Some(string)
    }

    /// The same, unescaped if need be; pairs of surrogates are left to the general reader.
    pub fn text(&mut self) -> Option<Cow<'a, str>> {
        self.unescape(128)
    }

    /// The same for a content, which is most of its frame: what is allocated has room for all of it.
    pub fn content(&mut self) -> Option<Cow<'a, str>> {
        self.unescape(self.0.len())
    }

    fn unescape(&mut self, room: usize) -> Option<Cow<'a, str>> {
        let mut end = next_to_escape(self.0.as_bytes())?;
        if self.0.as_bytes()[end] == b'"' {
            return self.string().map(Cow::Borrowed);
        }
        let mut text = String::with_capacity(room);
        loop {
            let (run, rest) = self.0.split_at_checked(end)?;
            text.push_str(run);
            let (escape, rest) = match rest.as_bytes() {
                [b'"', ..] => {
                    self.0 = &rest[1..];
                    return Some(Cow::Owned(text));
                }
                [b'\\', escape, ..] => (*escape, rest.get(2..)?),
                _ => return None,
            };
            self.0 = rest;
            text.push(match escape {
                b'"' | b'\\' | b'/' => char::from(escape),
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'u' => {
                    let (digits, rest) = self.0.split_at_checked(4)?;
                    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                    let code = u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
                    self.0 = rest;
                    char::from_u32(code)?
                }
                _ => return None,
            });
            end = next_to_escape(self.0.as_bytes())?;
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
