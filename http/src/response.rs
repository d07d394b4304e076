//! The response: status line, fields, and how its content is framed.
//!
//! Writes bytes into the connection's output; when what may be written is the connection's business.

use crate::request::{is_token_bytes, is_value_bytes, trim_white_space};

/// A whole response.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    pub head: ResponseHead<'a>,
    pub body: &'a [u8],
}

/// Status and fields of a response.
///
/// The connection itself adds `date`, `server`, `content-length` or `transfer-encoding`, and `connection`.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// Bounds: 200..=999. Interim responses are the connection's business.
    pub status: u16,
    /// Encoded lines `name: value CRLF`, each made by [`encode_field`], none [reserved](is_reserved_in_response).
    pub fields: &'a [u8],
    /// IMF-fixdate (RFC 9110 section 5.6.7); the driver makes it once a second.
    pub date: &'a str,
}

/// How long a streamed response's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// In bytes.
    Known(u64),
    /// Not known beforehand: chunked, or up to the close of the connection for an HTTP/1.0 client.
    Chunked,
}

/// Why a field can't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("field name is no token")]
    BadName,
    #[error("field value has a forbidden character")]
    BadValue,
}

/// Appends `name: value CRLF`; white space around the value is left out.
///
/// Errors: nothing is appended. A field with CR, LF or NUL would let its author write fields and responses of his own.
pub fn encode_field(out: &mut Vec<u8>, name: &str, value: impl AsRef<[u8]>) -> Result<(), FieldError> {
    let value = value.as_ref();
    if !is_token(name) {
        return Err(FieldError::BadName);
    }
    if !is_field_value(value) {
        return Err(FieldError::BadValue);
    }
    push_field(out, name, trim_white_space(value));
    Ok(())
}

/// Whether `text` is a token, as methods and field names are (RFC 9110 section 5.6.2).
pub fn is_token(text: &str) -> bool {
    is_token_bytes(text.as_bytes())
}

/// Whether `value` has only HTAB, SP, visible ASCII and bytes above it (RFC 9110 section 5.5).
pub fn is_field_value(value: &[u8]) -> bool {
    is_value_bytes(value)
}

/// Whether a field of this name, whatever its case, concerns one connection alone (RFC 9110 section 7.6.1).
///
/// `trailer` is among them since trailers are dropped, and `proxy-authenticate`, `proxy-authorization` since they speak
/// to the next proxy only.
pub fn is_hop_by_hop(name: &str) -> bool {
    let candidate = match name.len() {
        2 => "te",
        7 => return name.eq_ignore_ascii_case("upgrade") || name.eq_ignore_ascii_case("trailer"),
        10 => return name.eq_ignore_ascii_case("connection") || name.eq_ignore_ascii_case("keep-alive"),
        16 => "proxy-connection",
        17 => "transfer-encoding",
        18 => "proxy-authenticate",
        19 => "proxy-authorization",
        _ => return false,
    };
    name.eq_ignore_ascii_case(candidate)
}

/// Whether the connection writes this field of a response itself, so that a plugin's own must be dropped.
///
/// The names of [`is_hop_by_hop`], `content-length`, `date` and `server`.
pub fn is_reserved_in_response(name: &str) -> bool {
    let candidate = match name.len() {
        4 => "date",
        6 => "server",
        14 => "content-length",
        _ => return is_hop_by_hop(name),
    };
    name.eq_ignore_ascii_case(candidate)
}

/// The words behind a status code; empty for codes that no RFC names, which the grammar allows.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        207 => "Multi-Status",
        208 => "Already Reported",
        226 => "IM Used",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        305 => "Use Proxy",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        418 => "I'm a teapot",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        423 => "Locked",
        424 => "Failed Dependency",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        506 => "Variant Also Negotiates",
        507 => "Insufficient Storage",
        508 => "Loop Detected",
        510 => "Not Extended",
        511 => "Network Authentication Required",
        _ => "",
    }
}

/// The fields about framing that a head gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FramingFields {
    pub content_length: Option<u64>,
    pub chunked: bool,
    pub connection: Option<&'static str>,
}

/// Bytes that a head takes beside the caller's fields, date included; a little more than the worst case.
pub(crate) const HEAD_BYTES_SPARE: usize = 256;

pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Appends status line, fields and the empty line.
pub(crate) fn write_head(out: &mut Vec<u8>, head: &ResponseHead<'_>, framing: FramingFields) {
    let digit = |of: u16| b'0' + (head.status / of % 10) as u8;
    let [hundreds, tens, ones] = [digit(100), digit(10), digit(1)];
    // The space stays even where the reason is empty (RFC 9112 section 4).
    out.extend_from_slice(&[
        b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', hundreds, tens, ones, b' ',
    ]);
    out.extend_from_slice(reason_phrase(head.status).as_bytes());
    out.extend_from_slice(b"\r\ndate: ");
    out.extend_from_slice(head.date.as_bytes());
    out.extend_from_slice(b"\r\nserver: toru\r\n");
    out.extend_from_slice(head.fields);
    if let Some(length) = framing.content_length {
        out.extend_from_slice(b"content-length: ");
        push_decimal(out, length);
        out.extend_from_slice(b"\r\n");
    }
    if framing.chunked {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    if let Some(option) = framing.connection {
        push_field(out, "connection", option.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one chunk; an empty one would end the content, so nothing is written for it.
pub(crate) fn write_chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let digits = (usize::BITS - bytes.len().leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[bytes.len() >> (digit * 4) & 15]);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

pub(crate) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}
