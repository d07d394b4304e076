//! The request target: its four forms, its path and its percent-encoding.
//!
//! Pure functions over strings; what a path means is the caller's business.
//! The connection uses the grammar, the core uses [`normalize_path`] before it routes.

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::ops::Range;

use memchr::{memchr, memchr2, memmem};

use crate::ErrorKind;

/// The request target as the client sent it, and what kind it is.
///
/// Source: RFC 9112 section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// As sent: visible ASCII without `#`.
    pub raw: &'a str,
    pub form: TargetForm,
}

/// Source: RFC 9112 section 3.2.1 to 3.2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`
    Origin,
    /// `http://host/path?query`
    Absolute,
    /// `host:port`, of CONNECT and only of it.
    Authority,
    /// `*`, of OPTIONS and only of it; also `http://host`, which is `*` as a client sends it to a proxy (section 3.2.4).
    Asterisk,
}

impl<'a> Target<'a> {
    /// The path, still encoded: starts with `/`, but is `*` in asterisk form and empty in authority form.
    pub fn path(&self) -> &'a str {
        match self.form {
            TargetForm::Authority => "",
            TargetForm::Asterisk => "*",
            TargetForm::Origin | TargetForm::Absolute => {
                let path = split_target(self.path_and_query()).0;
                // `http://host` and `http://host?x` mean the root (RFC 9110 section 4.2.3).
                if path.is_empty() { "/" } else { path }
            }
        }
    }

    /// What stands behind the first `?`, still encoded; `None` where there is no `?`.
    pub fn query(&self) -> Option<&'a str> {
        match self.form {
            TargetForm::Authority | TargetForm::Asterisk => None,
            TargetForm::Origin | TargetForm::Absolute => split_target(self.path_and_query()).1,
        }
    }

    fn path_and_query(&self) -> &'a str {
        match self.form {
            TargetForm::Absolute => match absolute_authority(self.raw.as_bytes()) {
                Some(authority) => &self.raw[authority.end..],
                None => "",
            },
            TargetForm::Origin | TargetForm::Authority | TargetForm::Asterisk => self.raw,
        }
    }
}

/// Path and query of an origin-form target, split at the first `?`; neither is decoded.
pub fn split_target(raw: &str) -> (&str, Option<&str>) {
    match memchr(b'?', raw.as_bytes()) {
        Some(at) => (&raw[..at], Some(&raw[at + 1..])),
        None => (raw, None),
    }
}

/// Why a path can't be used; the client gets 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("path does not start with `/`")]
    NotAbsolute,
    #[error("path climbs above the root")]
    AboveRoot,
    #[error("`%` without two hexadecimal digits")]
    BadEscape,
    #[error("path contains NUL")]
    Nul,
}

/// The path without `.` and `..` segments, written plainly or as `%2e`; all else stays as the client wrote it.
///
/// Empty segments, encoded slashes and the case of escapes are kept, since only the plugin knows what they mean to it.
/// So whoever maps the result to a file must decode it and look for `/` and `..` once more.
/// Borrowed when nothing had to change.
/// Errors: the client's fault, 400. Source: RFC 3986 section 5.2.4, but climbing above the root is refused.
pub fn normalize_path(path: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    // Most paths have neither; this is the hot path.
    if memchr2(b'%', b'.', bytes).is_none() {
        return if memchr(0, bytes).is_some() { Err(PathError::Nul) } else { Ok(Cow::Borrowed(path)) };
    }
    check_escapes(bytes)?;
    if path[1..].split('/').all(|segment| matches!(dots(segment), Dots::None)) {
        return Ok(Cow::Borrowed(path));
    }

    let mut out = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            Dots::None => {
                out.push('/');
                out.push_str(segment);
                continue;
            }
            Dots::One => {}
            Dots::Two => match out.rfind('/') {
                Some(at) => out.truncate(at),
                None => return Err(PathError::AboveRoot),
            },
        }
        if last {
            out.push('/');
        }
    }
    Ok(Cow::Owned(out))
}

/// The bytes that a percent-encoded text stands for; borrowed when it has no `%`.
///
/// `+` is left alone: it means a space in forms only.
/// Errors: `BadEscape`, the client's fault.
pub fn percent_decode(text: &str) -> Result<Cow<'_, [u8]>, PathError> {
    let mut rest = text.as_bytes();
    let Some(mut at) = memchr(b'%', rest) else { return Ok(Cow::Borrowed(rest)) };
    let mut out = Vec::with_capacity(rest.len());
    loop {
        out.extend_from_slice(&rest[..at]);
        out.push(escaped_byte(&rest[at..])?);
        rest = &rest[at + 3..];
        match memchr(b'%', rest) {
            Some(next) => at = next,
            None => break,
        }
    }
    out.extend_from_slice(rest);
    Ok(Cow::Owned(out))
}

/// Form of a target, and where its authority stands if it has one.
///
/// Forbidden are what RFC 9112 has no place for and parsers disagree about: controls, space, bytes above ASCII, `#`.
pub(crate) fn parse_target(
    method: &[u8],
    raw: &[u8],
) -> Result<(TargetForm, Option<Range<usize>>), ErrorKind> {
    // One fold without an early exit, so that the compiler can use wide registers.
    if !raw.iter().fold(true, |good, &byte| good & is_target_byte(byte)) {
        return Err(ErrorKind::BadTargetCharacter);
    }
    if method == b"CONNECT" {
        let with_port = matches!(host_and_port(raw), Some(Some(port)) if !port.is_empty());
        return if with_port {
            Ok((TargetForm::Authority, Some(0..raw.len())))
        } else {
            Err(ErrorKind::BadTargetForm)
        };
    }
    if raw.first() == Some(&b'/') {
        return Ok((TargetForm::Origin, None));
    }
    if raw == b"*" && method == b"OPTIONS" {
        return Ok((TargetForm::Asterisk, None));
    }
    let Some(authority) = absolute_authority(raw) else { return Err(ErrorKind::BadTargetForm) };
    if !is_authority(&raw[authority.clone()]) {
        return Err(ErrorKind::BadAuthority);
    }
    let whole_server = method == b"OPTIONS" && authority.end == raw.len();
    Ok((if whole_server { TargetForm::Asterisk } else { TargetForm::Absolute }, Some(authority)))
}

/// Visible ASCII but `#`.
pub(crate) fn is_target_byte(byte: u8) -> bool {
    byte > b' ' && byte < 0x7f && byte != b'#'
}

/// `uri-host [ ":" port ]` with a host that is not empty (RFC 9110 section 4.2.1) and without user information.
pub fn is_authority(text: &[u8]) -> bool {
    host_and_port(text).is_some()
}

/// The port's digits, `Some(None)` without a colon, `None` when `text` is no host and port.
fn host_and_port(text: &[u8]) -> Option<Option<&[u8]>> {
    let host_end = if text.first() == Some(&b'[') {
        let close = memchr(b']', text)?;
        let address = std::str::from_utf8(&text[1..close]).ok()?;
        address.parse::<Ipv6Addr>().ok()?;
        close + 1
    } else {
        registered_name_end(text)?
    };
    match text[host_end..].split_first() {
        None => Some(None),
        // `host:` is valid and means the default port (RFC 3986 section 3.2.3).
        Some((b':', port)) => is_port(port).then_some(Some(port)),
        Some(_) => None,
    }
}

/// Digits, none or any number of them, of at most 65535.
fn is_port(digits: &[u8]) -> bool {
    let mut port = 0_u32;
    digits.iter().all(|byte| {
        port = port * 10 + u32::from(byte.wrapping_sub(b'0'));
        byte.is_ascii_digit() && port <= u32::from(u16::MAX)
    })
}

/// Where the host at the start of `text` ends, which is a `reg-name` (RFC 3986 section 3.2.2) that takes in IPv4 addresses.
///
/// `None` where there is none, or an escape in it is broken.
fn registered_name_end(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < text.len() {
        if REGISTERED_NAME[usize::from(text[at])] {
            at += 1;
        } else if text[at] == b'%' {
            escaped_byte(&text[at..]).ok()?;
            at += 3;
        } else {
            break;
        }
    }
    (at > 0).then_some(at)
}

/// `unreserved` and `sub-delims` of RFC 3986.
const REGISTERED_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let signs = b"-._~!$&'()*+,;=";
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

/// Where the authority of `http://…` or `https://…` stands.
///
/// `https` is taken too: a proxy that ends TLS may forward the target as it came.
fn absolute_authority(raw: &[u8]) -> Option<Range<usize>> {
    let colon = memmem::find(raw, b"://")?;
    let scheme = &raw[..colon];
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let start = colon + 3;
    let end = memchr2(b'/', b'?', &raw[start..]).map_or(raw.len(), |at| start + at);
    Some(start..end)
}

enum Dots {
    None,
    One,
    Two,
}

/// Whether a segment means `.` or `..` once its escapes are decoded.
fn dots(segment: &str) -> Dots {
    let mut rest = segment.as_bytes();
    let mut count = 0;
    while !rest.is_empty() {
        let dot = match rest {
            [b'.', ..] => 1,
            [b'%', b'2', b'e' | b'E', ..] => 3,
            _ => return Dots::None,
        };
        count += 1;
        if count > 2 {
            return Dots::None;
        }
        rest = &rest[dot..];
    }
    match count {
        1 => Dots::One,
        2 => Dots::Two,
        _ => Dots::None,
    }
}

fn check_escapes(path: &[u8]) -> Result<(), PathError> {
    if memchr(0, path).is_some() {
        return Err(PathError::Nul);
    }
    for at in memchr::memchr_iter(b'%', path) {
        if escaped_byte(&path[at..])? == 0 {
            return Err(PathError::Nul);
        }
    }
    Ok(())
}

/// The byte that the escape at the start of `text` stands for.
fn escaped_byte(text: &[u8]) -> Result<u8, PathError> {
    let [b'%', high, low, ..] = *text else { return Err(PathError::BadEscape) };
    match (hex_digit(high), hex_digit(low)) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(PathError::BadEscape),
    }
}

pub(crate) fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Any text as a path: the result is a fixed point, has no dot segment left, and still starts with `/`.
#[doc(hidden)]
pub fn fuzz_target(data: &[u8]) {
    for method in [&b"GET"[..], b"OPTIONS", b"CONNECT"] {
        if let Ok((form, authority)) = parse_target(method, data) {
            let raw = std::str::from_utf8(data).expect("an accepted target is ASCII");
            let target = Target { raw, form };
            let path = target.path();
            assert_eq!(path.is_empty(), form == TargetForm::Authority);
            if matches!(form, TargetForm::Origin | TargetForm::Absolute) {
                assert!(path.starts_with('/'), "{path:?}");
            }
            if let Some(authority) = authority {
                assert!(!data[authority].contains(&b'@'));
            }
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(path) = normalize_path(text) {
        assert!(path.starts_with('/'));
        assert!(path.len() <= text.len());
        assert_eq!(normalize_path(&path).as_deref(), Ok(&*path), "normal form is final");
        assert!(path.split('/').all(|segment| !matches!(&*percent_decode(segment).unwrap(), b"." | b"..")));
        assert!(!percent_decode(&path).expect("escapes were checked").contains(&0));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The grammar of a host that is no address and a port, said without tables.
    fn is_plain_authority(text: &str) -> bool {
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        let is_sign = |character: char| "-._~!$&'()*+,;=".contains(character);
        let is_name_character = |character: char| character.is_ascii_alphanumeric() || is_sign(character);
        let mut pieces = name.split('%');
        !name.is_empty()
            && pieces.next().is_some_and(|first| first.chars().all(is_name_character))
            && pieces.all(|piece| {
                piece.len() >= 2
                    && piece.chars().all(is_name_character)
                    && piece.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
            })
            && port.chars().all(|character| character.is_ascii_digit())
            && (port.is_empty() || port.parse::<u16>().is_ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn authorities_are_those_of_the_grammar(text in "[a-c2F.%_~-]{0,9}(:[0-9]{0,6})?[:@ /é]?") {
            prop_assert_eq!(is_authority(text.as_bytes()), is_plain_authority(&text), "{}", text);
        }
    }

    #[test]
    fn ports_have_sixteen_bits() {
        for (text, expect) in [
            ("a:", true),
            ("a:65535", true),
            ("a:65536", false),
            ("a:0000080", true),
            ("a:+80", false),
            (":80", false),
        ] {
            assert_eq!(is_authority(text.as_bytes()), expect, "{text}");
            assert_eq!(is_plain_authority(text), expect, "{text}");
        }
    }
}
