//! JSON text as a plugin wrote it, for what a parsed message no longer has.
//!
//! simd-json rewrites the frame it reads, knows numbers as 64 bits, and stops at two things that are JSON by grammar
//! (RFC 8259 sections 6 and 8.2): half a surrogate pair in an escape, and a number beyond a double. Neither is a reason to
//! drop a connection with all that is under way on it. So [`mend`] puts stand-ins of the same length in their places, and
//! [`member`] and [`Numbers`] find what really stood there.
//! Only frames that are not as the SDKs write them come here.

use std::borrow::Cow;

use memchr::memchr2;

/// What [`mend`] has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mended {
    /// There was half a surrogate pair, which is U+FFFD now; else there were numbers only.
    pub text: bool,
}

/// Replaces what the reader would stop at and JSON's grammar allows; `None` if there is nothing of that kind.
///
/// What is no JSON stays as it is, for the reader to refuse.
pub(super) fn mend(json: &mut [u8]) -> Option<Mended> {
    /// A fraction, since nothing that takes integers takes one.
    const STAND_IN: &[u8] = b"0.5";
    let mut mended = None;
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'"' => {
                let end = string_end(json, at).unwrap_or(json.len());
                if mend_string(&mut json[at..end]) {
                    mended = Some(Mended { text: true });
                }
                at = end;
            }
            b'-' | b'0'..=b'9' => {
                let end = at + number_bytes(&json[at..]);
                let number = &mut json[at..end];
                if is_number(number) && is_beyond_double(number) {
                    number.fill(b' ');
                    // The shortest has five bytes: `1e309`.
                    number[..STAND_IN.len()].copy_from_slice(STAND_IN);
                    mended.get_or_insert(Mended { text: false });
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    mended
}

/// Whether there was half a surrogate pair.
fn mend_string(string: &mut [u8]) -> bool {
    let mut found = false;
    let mut at = 0;
    while let Some(backslash) = memchr::memchr(b'\\', &string[at..]) {
        at += backslash;
        let Some(code) = escaped_unit(&string[at..]) else {
            at = (at + 2).min(string.len());
            continue;
        };
        let pair = matches!(code, 0xd800..=0xdbff)
            && matches!(string.get(at + 6..).and_then(escaped_unit), Some(0xdc00..=0xdfff));
        if pair {
            at += 6;
        } else if matches!(code, 0xd800..=0xdfff) {
            string[at + 2..at + 6].copy_from_slice(b"fffd");
            found = true;
        }
        at += 6;
    }
    found
}

/// The UTF-16 unit of a `\uXXXX` that `text` starts with.
fn escaped_unit(text: &[u8]) -> Option<u32> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

/// The value of the last member with this name: the one that counts.
///
/// `None` if there is none, or `object` is no object. Its text is JSON, or is JSON once mended.
pub(super) fn member<'r>(object: &'r [u8], name: &str) -> Option<&'r [u8]> {
    let mut found = None;
    let mut at = skip_space(object, 0);
    if object.get(at) != Some(&b'{') {
        return None;
    }
    loop {
        at = skip_space(object, at + 1);
        // The end of an empty object, too.
        let Some(key_end) = string_end(object, at) else { return found };
        let key = &object[at..key_end];
        // Behind the colon.
        at = skip_space(object, skip_space(object, key_end) + 1);
        let end = value_end(object, at)?;
        if is_key(key, name) {
            found = Some(&object[at..end]);
        }
        at = skip_space(object, end);
        if object.get(at) != Some(&b',') {
            return found;
        }
    }
}

fn is_key(quoted: &[u8], name: &str) -> bool {
    let plain = &quoted[1..quoted.len() - 1];
    if !plain.contains(&b'\\') {
        return plain == name.as_bytes();
    }
    serde_json::from_slice::<Cow<'_, str>>(quoted).is_ok_and(|key| key == name)
}

/// The numbers of a JSON text as they were written, in order.
pub(super) struct Numbers<'r>(pub &'r [u8]);

impl<'r> Iterator for Numbers<'r> {
    type Item = &'r [u8];

    fn next(&mut self) -> Option<&'r [u8]> {
        loop {
            match self.0.first()? {
                b'"' => self.0 = &self.0[string_end(self.0, 0)?..],
                b'-' | b'0'..=b'9' => {
                    let (number, rest) = self.0.split_at(number_bytes(self.0));
                    self.0 = rest;
                    return Some(number);
                }
                _ => self.0 = &self.0[1..],
            }
        }
    }
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// Behind the closing quote of the string that starts at `at`; `None` where none starts or it has no end.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    if text.get(at) != Some(&b'"') {
        return None;
    }
    let mut at = at + 1;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

/// Behind the value that starts at `at`.
fn value_end(text: &[u8], at: usize) -> Option<usize> {
    let (mut at, mut depth) = (at, 0_usize);
    loop {
        match text.get(at)? {
            b'"' => at = string_end(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            // A number or a word, whose end is where none of their bytes follows.
            _ => {
                let rest = &text[at..];
                let bytes =
                    rest.iter().position(|byte| !byte.is_ascii_alphanumeric() && !b"+-.".contains(byte));
                at += bytes.unwrap_or(rest.len()).max(1);
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// Bytes at the start that may stand in a number.
fn number_bytes(text: &[u8]) -> usize {
    let end = text.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
    end.unwrap_or(text.len())
}

/// `[ minus ] int [ frac ] [ exp ]`, RFC 8259 section 6.
fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> Option<&[u8]> {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then(|| &text[count..])
    }
    let parse = || {
        let text = text.strip_prefix(b"-").unwrap_or(text);
        let mut rest = match text {
            [b'0', rest @ ..] => rest,
            _ => digits(text)?,
        };
        if let Some(fraction) = rest.strip_prefix(b".") {
            rest = digits(fraction)?;
        }
        if let [b'e' | b'E', exponent @ ..] = rest {
            rest = digits(exponent.strip_prefix(b"+").or(exponent.strip_prefix(b"-")).unwrap_or(exponent))?;
        }
        rest.is_empty().then_some(())
    };
    parse().is_some()
}

fn is_beyond_double(number: &[u8]) -> bool {
    let parsed = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    parsed.is_some_and(f64::is_infinite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::tests::for_random_bytes;

    fn mended(json: &str) -> (String, Option<Mended>) {
        let mut bytes = json.as_bytes().to_vec();
        let mended = mend(&mut bytes);
        (String::from_utf8(bytes).expect("as long as it was"), mended)
    }

    #[test]
    fn stand_ins_take_the_place_of_what_cannot_be_read() {
        let (text, number) = (Some(Mended { text: true }), Some(Mended { text: false }));
        for (json, expect, what) in [
            (r#"["\ud83d"]"#, r#"["\ufffd"]"#, text),
            (r#"["\uDE00x"]"#, r#"["\ufffdx"]"#, text),
            (r#"["\ud83d\ud83d\ude00"]"#, r#"["\ufffd\ud83d\ude00"]"#, text),
            (r#"["\ud83d\n"]"#, r#"["\ufffd\n"]"#, text),
            (r#"["\ud83d\ude00\\ud83d", 1e308]"#, r#"["\ud83d\ude00\\ud83d", 1e308]"#, None),
            ("[1e400,-1e309]", "[0.5  ,0.5   ]", number),
            (r#"{"a":1e400,"b":"\udfff"}"#, r#"{"a":0.5  ,"b":"\ufffd"}"#, text),
            (r#"{"1e400":1}"#, r#"{"1e400":1}"#, None),
            // What is no JSON is not made any.
            ("[01e400]", "[01e400]", None),
            ("[1e400.]", "[1e400.]", None),
            ("[+1e400]", "[+0.5  ]", number),
            (r#"["\ud83"]"#, r#"["\ud83"]"#, None),
            (r#"["\ud83d"#, r#"["\ufffd"#, text),
            (r#"["\"#, r#"["\"#, None),
        ] {
            assert_eq!(mended(json), (expect.to_owned(), what), "{json}");
        }
    }

    #[test]
    fn members_are_found_where_a_parser_finds_them() {
        let json = br#" { "a\u0062" : [1, {"x": "]}"}, "\\\""] ,"e":{}, "n":-1.5e+3,"t":true ,"ab":null, "s":"\"","n":7}"#;
        let find = |name| member(json, name).map(|found| std::str::from_utf8(found).expect("UTF-8"));
        assert_eq!(find("ab"), Some("null"));
        assert_eq!(find("e"), Some("{}"));
        assert_eq!(find("n"), Some("7"));
        assert_eq!(find("t"), Some("true"));
        assert_eq!(find("s"), Some(r#""\"""#));
        assert_eq!(find("x"), None);
        assert_eq!(member(b"{}", "a"), None);
        assert_eq!(member(b"[1]", "a"), None);
        assert_eq!(member(br#"{"a\u0062":[1,2]}"#, "ab"), Some(&b"[1,2]"[..]));
    }

    #[test]
    fn numbers_are_those_of_the_text() {
        let json = br#"{"a1":[1,-0,"2,3\"4",5.50],"b":{"c":1e400},"d":true,"e":12345678901234567890123}"#;
        let numbers: Vec<_> =
            Numbers(json).map(|number| std::str::from_utf8(number).expect("ASCII")).collect();
        assert_eq!(numbers, ["1", "-0", "5.50", "1e400", "12345678901234567890123"]);
    }

    #[test]
    fn no_bytes_are_too_odd() {
        let alphabet = br#"{}[]",:\u d8cefE0123-+."#;
        for_random_bytes(20_000, |bytes| {
            let mut json: Vec<u8> =
                bytes.iter().map(|&byte| alphabet[usize::from(byte) % alphabet.len()]).collect();
            let before = json.len();
            member(&json, "d");
            Numbers(&json).count();
            mend(&mut json);
            assert_eq!(json.len(), before);
        });
    }
}
