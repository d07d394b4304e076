//! The content of a request: a known length, or chunks with their trailers.
//!
//! Takes what the connection has buffered and says how much of it is used up; keeps no bytes itself.

use std::ops::Range;

use crate::request::{
    find_line, is_value_bytes, is_white_space, parse_field_line, strip_carriage_return, token_end,
};
use crate::target::hex_digit;
use crate::{ErrorKind, Limits};

/// Content being read.
#[derive(Debug)]
pub(crate) enum Body {
    Length { remaining: u64 },
    Chunked(Chunked),
}

/// What one call of [`Body::decode`] came to.
///
/// INVARIANT: `consumed` is at most the input's length, and a content's range ends there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded {
    /// Bytes at the start of the input that are done with.
    pub consumed: usize,
    pub outcome: Outcome,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    NeedInput,
    /// A piece of content, not empty, within the input.
    Content(Range<usize>),
    End,
}

impl Body {
    /// Takes the next piece off `input`, which starts where the last call's `consumed` ended.
    pub fn decode(&mut self, input: &[u8], limits: &Limits) -> Result<Decoded, ErrorKind> {
        match self {
            Self::Length { remaining } => Ok(decode_length(remaining, input)),
            Self::Chunked(chunked) => chunked.decode(input, limits),
        }
    }
}

fn decode_length(remaining: &mut u64, input: &[u8]) -> Decoded {
    if *remaining == 0 {
        return Decoded { consumed: 0, outcome: Outcome::End };
    }
    let piece = take_at_most(*remaining, input);
    if piece == 0 {
        return Decoded { consumed: 0, outcome: Outcome::NeedInput };
    }
    *remaining -= piece as u64;
    Decoded { consumed: piece, outcome: Outcome::Content(0..piece) }
}

/// Chunked content being read. Source: RFC 9112 section 7.1.
#[derive(Debug)]
pub(crate) struct Chunked {
    step: Step,
    /// Bytes already searched for the end of the line that the input starts with, so that a drip-fed line costs O(n).
    scanned: usize,
    /// Content announced so far.
    content_bytes: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
    trailer_fields: usize,
}

#[derive(Debug)]
enum Step {
    Size,
    Data { remaining: u64 },
    DataEnd,
    Trailers,
    End,
}

impl Chunked {
    pub fn new() -> Self {
        Self {
            step: Step::Size,
            scanned: 0,
            content_bytes: 0,
            extension_bytes: 0,
            trailer_bytes: 0,
            trailer_fields: 0,
        }
    }

    fn decode(&mut self, input: &[u8], limits: &Limits) -> Result<Decoded, ErrorKind> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let need_input = Ok(Decoded { consumed, outcome: Outcome::NeedInput });
            match &mut self.step {
                Step::Size => {
                    let (scanned, too_long) = (&mut self.scanned, ErrorKind::ChunkLineTooLong);
                    let Some(end) = find_line(rest, scanned, limits.chunk_line_bytes_max, too_long)? else {
                        return need_input;
                    };
                    self.scanned = 0;
                    self.take_size(strip_carriage_return(&rest[..end])?, limits)?;
                    consumed += end + 1;
                }
                Step::Data { remaining } => {
                    let piece = take_at_most(*remaining, rest);
                    if piece == 0 {
                        return need_input;
                    }
                    *remaining -= piece as u64;
                    if *remaining == 0 {
                        self.step = Step::DataEnd;
                    }
                    let content = consumed..consumed + piece;
                    return Ok(Decoded { consumed: content.end, outcome: Outcome::Content(content) });
                }
                Step::DataEnd => match rest {
                    [] | [b'\r'] => return need_input,
                    [b'\r', b'\n', ..] => {
                        consumed += 2;
                        self.step = Step::Size;
                    }
                    _ => return Err(ErrorKind::BadChunkEnd),
                },
                Step::Trailers => {
                    let room = limits.trailer_bytes_max.saturating_sub(self.trailer_bytes);
                    let too_large = ErrorKind::TrailersTooLarge;
                    let Some(end) = find_line(rest, &mut self.scanned, room, too_large)? else {
                        return need_input;
                    };
                    self.scanned = 0;
                    self.take_trailer(strip_carriage_return(&rest[..end])?, limits)?;
                    self.trailer_bytes += end + 1;
                    consumed += end + 1;
                }
                Step::End => return Ok(Decoded { consumed, outcome: Outcome::End }),
            }
        }
    }

    fn take_size(&mut self, line: &[u8], limits: &Limits) -> Result<(), ErrorKind> {
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        // An empty line is no size: reading it as 0 would end the content early.
        let size = parse_hexadecimal(&line[..digits]).ok_or(ErrorKind::BadChunkSize)?;
        let extension = &line[digits..];
        if !extension.is_empty() {
            check_extension(extension)?;
            self.extension_bytes += extension.len();
            if self.extension_bytes > EXTENSION_BYTES_MAX {
                return Err(ErrorKind::ChunkExtensionsTooLarge);
            }
        }
        if size == 0 {
            self.step = Step::Trailers;
            return Ok(());
        }
        self.content_bytes = self.content_bytes.saturating_add(size);
        if self.content_bytes > limits.body_bytes_max {
            return Err(ErrorKind::ContentTooLarge);
        }
        self.step = Step::Data { remaining: size };
        Ok(())
    }

    fn take_trailer(&mut self, line: &[u8], limits: &Limits) -> Result<(), ErrorKind> {
        if line.is_empty() {
            self.step = Step::End;
            return Ok(());
        }
        parse_field_line(line)?;
        self.trailer_fields += 1;
        if self.trailer_fields > limits.fields_max {
            return Err(ErrorKind::TooManyFields);
        }
        Ok(())
    }
}

/// Extension bytes in all chunks of one request: RFC 9112 section 7.1.1 asks for a bound on their sum, since one-byte
/// chunks with long extensions would make a small body cost a large one's bandwidth unseen.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;

/// `*( BWS ";" BWS name [ BWS "=" BWS ( token / quoted-string ) ] )`, RFC 9112 section 7.1.1.
fn check_extension(mut rest: &[u8]) -> Result<(), ErrorKind> {
    let bad = ErrorKind::BadChunkExtension;
    while !rest.is_empty() {
        rest = skip_white_space(rest).strip_prefix(b";").ok_or(bad)?;
        rest = take_token(skip_white_space(rest)).ok_or(bad)?;
        let Some(value) = skip_white_space(rest).strip_prefix(b"=") else { continue };
        let value = skip_white_space(value);
        rest = match value.strip_prefix(b"\"") {
            Some(quoted) => take_quoted(quoted).ok_or(bad)?,
            None => take_token(value).ok_or(bad)?,
        };
    }
    Ok(())
}

fn take_token(text: &[u8]) -> Option<&[u8]> {
    let end = token_end(text);
    (end > 0).then(|| &text[end..])
}

/// What follows a quoted string whose opening quote is already taken (RFC 9110 section 5.6.4).
fn take_quoted(text: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    loop {
        match *text.get(at)? {
            b'"' => return is_value_bytes(&text[..at]).then(|| &text[at + 1..]),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn skip_white_space(text: &[u8]) -> &[u8] {
    let end = text.iter().take_while(|&&byte| is_white_space(byte)).count();
    &text[end..]
}

/// At least one hexadecimal digit, nothing else, no overflow.
fn parse_hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, &byte| {
        let digit = hex_digit(byte)?;
        (number >> 60 == 0).then_some(number << 4 | u64::from(digit))
    })
}

fn take_at_most(remaining: u64, input: &[u8]) -> usize {
    usize::try_from(remaining).unwrap_or(usize::MAX).min(input.len())
}

/// Any bytes as chunked content: in one read or many the same content, the same end, the same error.
#[doc(hidden)]
pub fn fuzz_chunked(data: &[u8]) {
    let limits = Limits { body_bytes_max: 4096, trailer_bytes_max: 256, ..Limits::default() };
    let whole = decode_in_steps(data, data.len().max(1), &limits);
    for step in [1, 2, 7] {
        assert_eq!(whole, decode_in_steps(data, step, &limits), "in steps of {step}");
    }
    assert!(whole.0.len() as u64 <= limits.body_bytes_max);
}

/// Content, and the bytes it took or why it failed; `Ok(None)` when the input ends too early.
fn decode_in_steps(data: &[u8], step: usize, limits: &Limits) -> (Vec<u8>, Result<Option<usize>, ErrorKind>) {
    let mut body = Body::Chunked(Chunked::new());
    let mut content = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        match body.decode(&data[start..end], limits) {
            Err(kind) => return (content, Err(kind)),
            Ok(decoded) => {
                let input = &data[start..end];
                assert!(decoded.consumed <= input.len());
                start += decoded.consumed;
                match decoded.outcome {
                    Outcome::Content(piece) => {
                        assert!(!piece.is_empty() && piece.end == decoded.consumed);
                        content.extend_from_slice(&input[piece]);
                    }
                    Outcome::End => return (content, Ok(Some(start))),
                    Outcome::NeedInput if end == data.len() => return (content, Ok(None)),
                    Outcome::NeedInput => end = (end + step).min(data.len()),
                }
            }
        }
    }
}
