//! The request's head: request line, field lines, and what they say about framing.
//!
//! Fed one line at a time by the connection, which finds the line ends; keeps offsets, never bytes.
//! Does not decide what a request means: that is the driver's business.

use std::ops::Range;

use memchr::memchr;
use wide::u8x16;

use crate::target::{Target, TargetForm, is_authority, parse_target};
use crate::{ErrorKind, Limits, is_hop_by_hop};

/// A request's head, borrowed from the connection's buffer until the next call.
#[derive(Clone, Debug)]
pub struct RequestHead<'a> {
    /// A token; case-sensitive (RFC 9110 section 9.1).
    pub method: &'a str,
    pub target: Target<'a>,
    pub version: Version,
    /// The field lines in the order sent.
    pub fields: Fields<'a>,
    /// `None` when absent, which without `chunked` means no content.
    pub content_length: Option<u64>,
    /// The content comes in chunks and its length is not known yet.
    pub chunked: bool,
    /// The client waits for `100 Continue` before it sends its content; see [`crate::Connection::send_continue`].
    pub expects_continue: bool,
    /// Host and port of the target, from an absolute-form target or else from `host`.
    ///
    /// Where the two differ the target wins, so whoever passes the request on passes this on in place of `host`.
    /// Bounds: valid and not empty; `None` only in HTTP/1.0. Source: RFC 9112 section 3.2.2.
    pub host: Option<&'a str>,
}

impl RequestHead<'_> {
    /// Whether any content can follow.
    pub fn has_content(&self) -> bool {
        self.chunked || self.content_length.is_some_and(|length| length > 0)
    }
}

/// The version a request is treated as; a minor above 1 counts as 1 (RFC 9110 section 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// A token, in the case it was sent.
    pub name: &'a str,
    /// HTAB, SP, visible ASCII and bytes above it; no white space at either end.
    pub value: &'a [u8],
}

/// The field lines of a head: iterates without allocating; a clone starts where the original stands.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    head: Head<'a>,
    spans: std::slice::Iter<'a, FieldSpan>,
    /// Whether a `connection` field names anything beside `close` and `keep-alive`.
    connection_names_fields: bool,
}

impl<'a> Fields<'a> {
    /// The value of the first field of this name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.get_all(name).next()
    }

    /// The values of all fields of this name, whatever its case, in the order sent.
    pub fn get_all<'n>(&self, name: &'n str) -> impl Iterator<Item = &'a [u8]> + use<'a, 'n> {
        let head = self.head.bytes;
        self.spans
            .clone()
            .filter(move |span| head[span.name()].eq_ignore_ascii_case(name.as_bytes()))
            .map(move |span| &head[span.value()])
    }

    /// The same fields again, for callers that want to loop more than once.
    pub fn iter(&self) -> Fields<'a> {
        self.clone()
    }

    /// Whether this field concerns the client's connection alone and must not be passed on.
    ///
    /// True for the names of [`is_hop_by_hop`] and for those that a `connection` field lists.
    /// Source: RFC 9110 section 7.6.1.
    pub fn is_hop_by_hop(&self, name: &str) -> bool {
        if is_hop_by_hop(name) {
            return true;
        }
        // Almost no request names others, so the second walk over the fields almost never happens.
        self.connection_names_fields
            && self
                .get_all("connection")
                .any(|value| list_elements(value).any(|option| option.eq_ignore_ascii_case(name.as_bytes())))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let span = self.spans.next()?;
        Some(Field { name: self.head.ascii(span.name()), value: &self.head.bytes[span.value()] })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.spans.size_hint()
    }
}

impl ExactSizeIterator for Fields<'_> {}

/// The bytes of a head; names and such, which the grammar has as ASCII, also as text.
#[derive(Clone, Copy, Debug)]
struct Head<'a> {
    bytes: &'a [u8],
    /// All of it, if it is text and short: to check it once costs less than to check piece by piece.
    text: Option<&'a str>,
}

impl<'a> Head<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let text = if bytes.len() <= HEAD_TEXT_BYTES_MAX { std::str::from_utf8(bytes).ok() } else { None };
        Self { bytes, text }
    }

    #[inline]
    fn ascii(&self, span: Range<usize>) -> &'a str {
        match self.text {
            Some(text) => &text[span],
            None => std::str::from_utf8(&self.bytes[span])
                .expect("the grammar of method, target, host and field name admits ASCII only"),
        }
    }
}

/// Browsers send 700 bytes; what makes a head longer is in values, and these need no check.
const HEAD_TEXT_BYTES_MAX: usize = 1024;

/// One head being read; kept by the connection and reused, so that a request costs no allocation.
///
/// INVARIANT: all offsets count from the first byte of the request line and lie within the lines already taken.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    spans: Vec<FieldSpan>,
    line: RequestLine,
    host: Option<Range<usize>>,
    content_length: Option<u64>,
    transfer_coding: TransferCoding,
    connection_close: bool,
    connection_keep_alive: bool,
    connection_names_fields: bool,
    connection_options: usize,
    expects_continue: bool,
    /// Which of the fields that may stand once have come, as `SEEN_…`.
    seen: u8,
}

/// What `connection` may list; clients list one or two.
const CONNECTION_OPTIONS_MAX: usize = 32;

/// How a request's content is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
}

impl HeadReader {
    /// Forgets the last request.
    pub fn clear(&mut self) {
        self.spans.clear();
        let spans = std::mem::take(&mut self.spans);
        *self = Self { spans, ..Self::default() };
    }

    /// Takes the request line, without its CRLF.
    pub fn take_request_line(&mut self, line: &[u8]) -> Result<(), ErrorKind> {
        self.line = RequestLine::parse(line)?;
        Ok(())
    }

    /// Takes what can be known of a request whose line is bad or not all there: an answer to HEAD has no content whatever
    /// the rest of the line would have been (RFC 9110 section 9.3.2).
    pub fn take_method_alone(&mut self, unread: &[u8]) {
        if unread.starts_with(b"HEAD ") {
            self.line.method = Method::Head;
        }
    }

    /// Takes the request line that `unread` starts with, if it is a [usual](RequestLine::usual) one; gives its bytes, CRLF
    /// included.
    pub fn take_usual_request_line(&mut self, unread: &[u8], limits: &Limits) -> Option<usize> {
        let (line, line_bytes) = RequestLine::usual(unread)?;
        if line_bytes > limits.request_line_bytes_max {
            return None;
        }
        self.line = line;
        Some(line_bytes)
    }

    /// Takes the field line at `start`, if it is a [usual](usual_field_line) one; gives the place behind its CRLF.
    pub fn take_usual_field_line(
        &mut self,
        head: &[u8],
        start: usize,
        limits: &Limits,
    ) -> Result<Option<usize>, ErrorKind> {
        let Some((name_bytes, value, line_bytes)) = usual_field_line(&head[start..]) else { return Ok(None) };
        if start + line_bytes > limits.head_bytes_max {
            return Ok(None);
        }
        self.take_field(head, start, name_bytes, value, limits)?;
        Ok(Some(start + line_bytes))
    }

    /// Takes the field line that is `head[line]`, without its CRLF.
    pub fn take_field_line(
        &mut self,
        head: &[u8],
        line: Range<usize>,
        limits: &Limits,
    ) -> Result<(), ErrorKind> {
        let start = line.start;
        let (name_bytes, value) = parse_field_line(&head[line])?;
        self.take_field(head, start, name_bytes, value, limits)
    }

    /// Takes a field whose line begins at `start`, from where `value` counts.
    fn take_field(
        &mut self,
        head: &[u8],
        start: usize,
        name_bytes: usize,
        value: Range<usize>,
        limits: &Limits,
    ) -> Result<(), ErrorKind> {
        if self.spans.len() >= limits.fields_max {
            return Err(ErrorKind::TooManyFields);
        }
        let span = FieldSpan {
            name_start: start,
            name_end: start + name_bytes,
            value_start: start + value.start,
            value_end: start + value.end,
        };
        self.spans.push(span);
        self.note_field(&head[span.name()], &head[span.value()], span.value())
    }

    /// Ends the head: what it says as a whole.
    pub fn finish(&mut self, limits: &Limits) -> Result<Framing, ErrorKind> {
        if self.host.is_none() && self.line.version == Version::Http11 {
            return Err(ErrorKind::MissingHost);
        }
        let framing = if self.transfer_coding.present {
            // Each of these is how requests are smuggled past a second parser; RFC 9112 section 6.1 and 6.3.
            if self.line.version == Version::Http10 {
                return Err(ErrorKind::TransferEncodingInHttp10);
            }
            if self.content_length.is_some() {
                return Err(ErrorKind::LengthAndTransferEncoding);
            }
            if !self.transfer_coding.chunked {
                return Err(ErrorKind::BadTransferEncoding);
            }
            if self.transfer_coding.other {
                return Err(ErrorKind::UnknownTransferCoding);
            }
            Framing::Chunked
        } else {
            Framing::Length(self.content_length.unwrap_or(0))
        };
        if matches!(framing, Framing::Length(length) if length > limits.body_bytes_max) {
            return Err(ErrorKind::ContentTooLarge);
        }
        // HTTP/1.0 knows no 100, and without content there is nothing to wait for (RFC 9110 section 10.1.1).
        self.expects_continue &= self.line.version == Version::Http11 && framing != Framing::Length(0);
        Ok(framing)
    }

    /// The head as the driver sees it; `head` is the bytes that the lines were taken from.
    pub fn view<'a>(&'a self, head: &'a [u8]) -> RequestHead<'a> {
        let head = Head::new(head);
        let host = self.line.authority.as_ref().or(self.host.as_ref()).map(|span| head.ascii(span.clone()));
        RequestHead {
            method: head.ascii(0..self.line.method_end),
            target: Target { raw: head.ascii(self.line.target.clone()), form: self.line.form },
            version: self.line.version,
            fields: Fields {
                head,
                spans: self.spans.iter(),
                connection_names_fields: self.connection_names_fields,
            },
            content_length: self.content_length,
            chunked: self.transfer_coding.chunked,
            expects_continue: self.expects_continue,
            host,
        }
    }

    pub fn version(&self) -> Version {
        self.line.version
    }

    pub fn method(&self) -> Method {
        self.line.method
    }

    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client wants another request on this connection (RFC 9112 section 9.3).
    pub fn wants_keep_alive(&self) -> bool {
        !self.connection_close
            && match self.line.version {
                Version::Http11 => true,
                Version::Http10 => self.connection_keep_alive,
            }
    }

    fn note_field(&mut self, name: &[u8], value: &[u8], span: Range<usize>) -> Result<(), ErrorKind> {
        // By length first: most fields are none of these and cost one comparison.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                if self.host.is_some() {
                    return Err(ErrorKind::RepeatedHost);
                }
                if !is_authority(value) {
                    return Err(ErrorKind::BadHost);
                }
                self.host = Some(span);
            }
            6 if name.eq_ignore_ascii_case(b"origin") => self.note_single(SEEN_ORIGIN)?,
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(ErrorKind::UnknownExpectation);
                }
                self.expects_continue = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in list_elements(value) {
                    // Each field is looked for among them.
                    self.connection_options += 1;
                    if self.connection_options > CONNECTION_OPTIONS_MAX {
                        return Err(ErrorKind::TooManyConnectionOptions);
                    }
                    if option.eq_ignore_ascii_case(b"close") {
                        self.connection_close = true;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        self.connection_keep_alive = true;
                    } else {
                        self.connection_names_fields = true;
                    }
                }
            }
            12 if name.eq_ignore_ascii_case(b"content-type") => self.note_single(SEEN_CONTENT_TYPE)?,
            13 if name.eq_ignore_ascii_case(b"authorization") => self.note_single(SEEN_AUTHORIZATION)?,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                // RFC 9110 section 8.6 lets equal repeats pass; a sender that repeats it is broken or hostile.
                if self.content_length.is_some() {
                    return Err(ErrorKind::RepeatedContentLength);
                }
                self.content_length = Some(parse_decimal(value).ok_or(ErrorKind::BadContentLength)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_coding.note(value)?,
            _ => {}
        }
        Ok(())
    }

    /// Fields that decide who may do what, or what the content is: two of them are two answers (RFC 9110 section 5.3).
    fn note_single(&mut self, field: u8) -> Result<(), ErrorKind> {
        if self.seen & field != 0 {
            return Err(ErrorKind::RepeatedField);
        }
        self.seen |= field;
        Ok(())
    }
}

const SEEN_ORIGIN: u8 = 1;
const SEEN_CONTENT_TYPE: u8 = 2;
const SEEN_AUTHORIZATION: u8 = 4;

/// Bytes of a method; of those registered the longest has 17, and applications make up their own.
const METHOD_BYTES_MAX: usize = 64;

/// The methods that change how a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    Connect,
    Other,
}

#[derive(Debug)]
struct RequestLine {
    method: Method,
    method_end: usize,
    target: Range<usize>,
    form: TargetForm,
    authority: Option<Range<usize>>,
    version: Version,
}

impl Default for RequestLine {
    fn default() -> Self {
        Self {
            method: Method::Other,
            method_end: 0,
            target: 0..0,
            form: TargetForm::Origin,
            authority: None,
            version: Version::Http11,
        }
    }
}

impl RequestLine {
    /// The line that `unread` starts with, and its bytes with CRLF, if it is all there, in order, of HTTP/1.1, and its
    /// target a path: read in one pass, where [`RequestLine::parse`] looks for each thing by itself.
    ///
    /// `None` leaves the line, and what may be wrong with it, to `parse`.
    fn usual(unread: &[u8]) -> Option<(Self, usize)> {
        let method_end = token_end(unread);
        let [b' ', b'/', ..] = unread[method_end..] else { return None };
        if method_end == 0 || method_end > METHOD_BYTES_MAX {
            return None;
        }
        let target = method_end + 1..method_end + 1 + target_end(&unread[method_end + 1..]);
        if !unread[target.end..].starts_with(b" HTTP/1.1\r\n") {
            return None;
        }
        let method = match &unread[..method_end] {
            b"HEAD" => Method::Head,
            b"CONNECT" => return None,
            _ => Method::Other,
        };
        let line_bytes = target.end + b" HTTP/1.1\r\n".len();
        let (form, version) = (TargetForm::Origin, Version::Http11);
        Some((Self { method, method_end, target, form, authority: None, version }, line_bytes))
    }

    /// `method SP request-target SP HTTP-version`, one space each (RFC 9112 section 3).
    fn parse(line: &[u8]) -> Result<Self, ErrorKind> {
        let method_end = token_end(line);
        if method_end == 0 {
            return Err(ErrorKind::BadMethod);
        }
        match line.get(method_end) {
            Some(b' ') => {}
            None => return Err(ErrorKind::BadRequestLine),
            Some(_) => return Err(ErrorKind::BadMethod),
        }
        if method_end > METHOD_BYTES_MAX {
            return Err(ErrorKind::MethodTooLong);
        }
        let target_start = method_end + 1;
        let target_bytes = memchr(b' ', &line[target_start..]).ok_or(ErrorKind::BadRequestLine)?;
        if target_bytes == 0 {
            return Err(ErrorKind::BadRequestLine);
        }
        let target = target_start..target_start + target_bytes;
        let version = match line[target.end + 1..] {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'] => Version::Http10,
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1'..=b'9'] => Version::Http11,
            [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'] => {
                return Err(ErrorKind::UnsupportedVersion);
            }
            _ => return Err(ErrorKind::BadVersion),
        };
        let method = &line[..method_end];
        let (form, authority) = parse_target(method, &line[target.clone()])?;
        let authority = authority.map(|part| target_start + part.start..target_start + part.end);
        let method = match method {
            b"HEAD" => Method::Head,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        };
        Ok(Self { method, method_end, target, form, authority, version })
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldSpan {
    name_start: usize,
    name_end: usize,
    value_start: usize,
    value_end: usize,
}

impl FieldSpan {
    fn name(&self) -> Range<usize> {
        self.name_start..self.name_end
    }

    fn value(&self) -> Range<usize> {
        self.value_start..self.value_end
    }
}

/// What all `transfer-encoding` lines of a head said together.
#[derive(Debug, Default)]
struct TransferCoding {
    present: bool,
    chunked: bool,
    other: bool,
}

impl TransferCoding {
    fn note(&mut self, value: &[u8]) -> Result<(), ErrorKind> {
        self.present = true;
        for coding in value.split(|&byte| byte == b',') {
            let coding = trim_white_space(coding);
            // Nothing may follow `chunked`, not even `chunked` (RFC 9112 section 6.1).
            if self.chunked {
                return Err(ErrorKind::BadTransferEncoding);
            }
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.chunked = true;
            } else if is_token_bytes(coding) {
                self.other = true;
            } else {
                return Err(ErrorKind::BadTransferEncoding);
            }
        }
        Ok(())
    }
}

/// Where the LF that ends the line at hand stands in `unread`, or `None` until more comes.
///
/// `scanned` is how far `unread` was searched before, so that a drip-fed line costs O(n); it moves on when nothing is
/// found.
/// Bounds: the LF is one of the first `bytes_max` bytes of `unread`, else `too_long`.
pub(crate) fn find_line(
    unread: &[u8],
    scanned: &mut usize,
    bytes_max: usize,
    too_long: ErrorKind,
) -> Result<Option<usize>, ErrorKind> {
    let found = memchr(b'\n', &unread[*scanned..]).map(|at| *scanned + at);
    // A line that is not over yet fails once its LF could only come too late: the same verdict in one read or many.
    if found.unwrap_or(unread.len()) >= bytes_max {
        return Err(too_long);
    }
    if found.is_none() {
        *scanned = unread.len();
    }
    Ok(found)
}

/// A line without its CR; `line` ends where its LF stood.
pub(crate) fn strip_carriage_return(line: &[u8]) -> Result<&[u8], ErrorKind> {
    line.strip_suffix(b"\r").ok_or(ErrorKind::BareLf)
}

/// Length of the name and place of the trimmed value in one field line without its CRLF.
///
/// Used for heads and trailers alike. Source: RFC 9112 section 5.
pub(crate) fn parse_field_line(line: &[u8]) -> Result<(usize, Range<usize>), ErrorKind> {
    let name_end = token_end(line);
    if line.get(name_end) != Some(&b':') || name_end == 0 {
        return Err(match line.get(name_end) {
            Some(b' ' | b'\t') if name_end == 0 => ErrorKind::LineFolding,
            Some(b':') => ErrorKind::EmptyFieldName,
            Some(b'\r') => ErrorKind::BareCr,
            Some(b' ' | b'\t') if trim_white_space(&line[name_end..]).first() == Some(&b':') => {
                ErrorKind::SpaceBeforeColon
            }
            None => ErrorKind::MissingColon,
            Some(_) if memchr(b':', line).is_none() => ErrorKind::MissingColon,
            Some(_) => ErrorKind::BadFieldName,
        });
    }
    let raw = &line[name_end + 1..];
    if !is_value_bytes(raw) {
        return Err(ErrorKind::BadFieldValue);
    }
    let leading = raw.iter().take_while(|&&byte| is_white_space(byte)).count();
    let value_start = name_end + 1 + leading;
    let value_bytes = trim_white_space(&raw[leading..]).len();
    Ok((name_end, value_start..value_start + value_bytes))
}

/// Length of the name, place of the value, and bytes with CRLF of the field line that `unread` starts with, if all of it is
/// there, in order, and the value has at most one space around it: read in one pass.
///
/// `None` leaves the line, and what may be wrong with it, to [`find_line`] and [`parse_field_line`].
fn usual_field_line(unread: &[u8]) -> Option<(usize, Range<usize>, usize)> {
    let name_end = token_end(unread);
    let (b':', behind) = unread[name_end..].split_first()? else { return None };
    let start = name_end + 1 + usize::from(behind.first() == Some(&b' '));
    let value = start..start + value_end(&unread[start..]);
    let is_spaced = |byte: Option<&u8>| byte.is_some_and(|&byte| is_white_space(byte));
    let [b'\r', b'\n', ..] = unread[value.end..] else { return None };
    let text = &unread[value.clone()];
    if name_end == 0 || is_spaced(text.first()) || is_spaced(text.last()) {
        return None;
    }
    let line_bytes = value.end + 2;
    Some((name_end, value, line_bytes))
}

/// `token` of RFC 9110 section 5.6.2.
pub(crate) fn is_token_bytes(text: &[u8]) -> bool {
    !text.is_empty() && token_end(text) == text.len()
}

pub(crate) fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// How many bytes at the start of `text` may stand in a token.
pub(crate) fn token_end(text: &[u8]) -> usize {
    // Letters, digits and `-` are nearly all that tokens are made of; others are looked up.
    let mut at = first_marked(text, |bytes| {
        let within = |bytes: u8x16, first: u8, last: u8| {
            let from_first = bytes - u8x16::splat(first);
            from_first.min(u8x16::splat(last - first)).simd_eq(from_first)
        };
        let letters = within(bytes | u8x16::splat(0x20), b'a', b'z');
        !(letters | within(bytes, b'0', b'9') | bytes.simd_eq(u8x16::splat(b'-')))
    });
    while at < text.len() && is_token_byte(text[at]) {
        at += 1;
    }
    at
}

/// How many bytes at the start of `text` may stand in a target: visible ASCII but `#`.
fn target_end(text: &[u8]) -> usize {
    first_marked(text, |bytes| {
        let below = bytes.min(u8x16::splat(b' ')).simd_eq(bytes);
        let beyond = bytes.max(u8x16::splat(0x7f)).simd_eq(bytes);
        below | beyond | bytes.simd_eq(u8x16::splat(b'#'))
    })
}

/// How many bytes at the start of `text` may stand in a value.
fn value_end(text: &[u8]) -> usize {
    first_marked(text, |bytes| {
        let controls = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes) & !bytes.simd_eq(u8x16::splat(b'\t'));
        controls | bytes.simd_eq(u8x16::splat(0x7f))
    })
}

/// Place of the first byte that `marks` marks, or the end.
#[inline(always)]
fn first_marked(text: &[u8], marks: impl Fn(u8x16) -> u8x16) -> usize {
    let (blocks, rest) = text.as_chunks();
    for (index, block) in blocks.iter().enumerate() {
        let found = marks(u8x16::new(*block)).to_bitmask();
        if found != 0 {
            return index * 16 + found.trailing_zeros() as usize;
        }
    }
    let mut block = [0; 16];
    block[..rest.len()].copy_from_slice(rest);
    let found = marks(u8x16::new(block)).to_bitmask() | 1 << rest.len();
    text.len() - rest.len() + found.trailing_zeros() as usize
}

fn is_value_byte(byte: u8) -> bool {
    (byte >= b' ' || byte == b'\t') && byte != 0x7f
}

/// HTAB, SP, visible ASCII and bytes above it (RFC 9110 section 5.5).
pub(crate) fn is_value_bytes(value: &[u8]) -> bool {
    // One fold without an early exit, so that the compiler can use wide registers.
    value.iter().fold(true, |good, &byte| good & is_value_byte(byte))
}

pub(crate) fn trim_white_space(mut text: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = text
        && is_white_space(*first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && is_white_space(*last)
    {
        text = rest;
    }
    text
}

/// SP or HTAB; `is_ascii_whitespace` would take in CR, LF and form feed.
pub(crate) fn is_white_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The elements of a comma-separated list, without empty ones (RFC 9110 section 5.6.1.2).
fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim_white_space).filter(|element| !element.is_empty())
}

/// Digits only: no sign, no list, no white space, no overflow.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, &byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let character = byte as u8;
        table[byte] = character.is_ascii_alphanumeric()
            || matches!(
                character,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::target::is_target_byte;

    /// Bytes of which most may stand anywhere, in lengths around a block's.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            40 => prop::sample::select(&b"abyzABYZ0189-"[..]),
            1 => prop::sample::select(&b"\r\n\t :#/%_~{@[`"[..]),
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, 0..50)
    }

    fn line() -> impl Strategy<Value = Vec<u8>> {
        let start =
            prop::sample::select(vec!["", "GET /", "HEAD /", "CONNECT /", "host: ", "x:", "GET http://"]);
        let end =
            prop::sample::select(vec!["", "\r", "\n", "\r\n", " \r\n", " HTTP/1.1\r\n", " HTTP/1.0\r\n"]);
        (start, bytes(), end, bytes()).prop_map(|(start, middle, end, behind)| {
            [start.as_bytes(), &middle, end.as_bytes(), &behind].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn blocks_end_where_bytes_do(text in bytes()) {
            let end = |is_allowed: fn(u8) -> bool| text.iter().take_while(|&&byte| is_allowed(byte)).count();
            prop_assert_eq!(token_end(&text), end(is_token_byte));
            prop_assert_eq!(target_end(&text), end(is_target_byte));
            prop_assert_eq!(value_end(&text), end(is_value_byte));
        }

        #[test]
        fn usual_lines_are_what_the_others_are(unread in line()) {
            let line_of = |line_bytes: usize| {
                let end = find_line(&unread, &mut 0, usize::MAX, ErrorKind::HeadTooLarge);
                assert_eq!(end, Ok(Some(line_bytes - 1)));
                strip_carriage_return(&unread[..line_bytes - 1]).expect("CRLF")
            };
            if let Some((name_bytes, value, line_bytes)) = usual_field_line(&unread) {
                prop_assert_eq!(parse_field_line(line_of(line_bytes)), Ok((name_bytes, value)));
            }
            if let Some((line, line_bytes)) = RequestLine::usual(&unread) {
                let parsed = RequestLine::parse(line_of(line_bytes)).expect("a request line");
                prop_assert_eq!(format!("{line:?}"), format!("{parsed:?}"));
            }
        }
    }

    #[test]
    fn usual_lines_are_found() {
        assert!(RequestLine::usual(b"GET /a?b HTTP/1.1\r\n").is_some());
        for field in [&b"host: a\r\n"[..], b"Sec-Fetch-Mode:cors\r\n", b"x_y:\r\n", b"a: \xff b\tc\r\n"] {
            assert!(usual_field_line(field).is_some(), "{}", field.escape_ascii());
        }
    }
}
