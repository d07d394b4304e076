//! HTTP/1.1, the server's side of one connection, as a value.
//!
//! Bytes from the client go into [`Connection::handle_input`], events come out of [`Connection::poll_event`];
//! a response goes in, bytes to write come out of [`Connection::take_output`].
//! The crate knows no sockets, clocks, files or routes: deadlines are chosen by the driver from [`Connection::phase`].
//!
//! It stands on an open port, so what is ambiguous is refused and never guessed, and everything that a client can make
//! grow has a bound in [`Limits`].
//! Sources: RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 3986 (targets).
//!
//! ```
//! use std::sync::Arc;
//! use toru_http::{Connection, Event, Limits, Response, ResponseHead};
//!
//! let mut connection = Connection::new(Arc::new(Limits::default()));
//! connection.handle_input(b"GET /hello HTTP/1.1\r\nhost: localhost\r\n\r\n");
//! let mut path = String::new();
//! loop {
//!     let (status, body) = match connection.poll_event() {
//!         Event::Head(head) => {
//!             path = head.target.path().to_owned();
//!             continue;
//!         }
//!         Event::Body(_) | Event::End => continue,
//!         Event::ResponseDue => (200, path.as_bytes()),
//!         Event::Failed(error) => (error.status(), &b""[..]),
//!         Event::NeedInput | Event::Closed => break,
//!     };
//!     let head = ResponseHead { status, fields: b"", date: "Thu, 01 Jan 2026 00:00:00 GMT" };
//!     connection.respond(&Response { head, body });
//! }
//! assert!(connection.output().ends_with(b"content-length: 6\r\n\r\n/hello"));
//! ```
//!
//! Deliberately absent: the client's side, HTTP/0.9 and HTTP/2, upgrades, transfer codings but `chunked`,
//! trailers as data (they are checked and dropped), and decoding of content.
#![forbid(unsafe_code)]

mod body;
mod connection;
mod request;
mod response;
mod target;

pub use body::fuzz_chunked;
pub use connection::{Connection, Event, Phase, fuzz_connection};
pub use request::{Field, Fields, RequestHead, Version};
pub use response::{
    FieldError, Length, Response, ResponseHead, encode_field, is_field_value, is_hop_by_hop,
    is_reserved_in_response, is_token, reason_phrase,
};
pub use target::{
    PathError, Target, TargetForm, fuzz_target, is_authority, normalize_path, percent_decode, split_target,
};

/// What one client may make a connection hold or read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the request line with its CRLF; past it 414.
    pub request_line_bytes_max: usize,
    /// Bytes of the whole head, request line and final empty line included; past it 431.
    pub head_bytes_max: usize,
    /// Field lines in a head, and again in trailers; past it 431.
    pub fields_max: usize,
    /// Bytes of content after chunked decoding; past it 413, for a declared length before any content is read.
    pub body_bytes_max: u64,
    /// Bytes of one chunk-size line with its extensions and CRLF; past it 400.
    pub chunk_line_bytes_max: usize,
    /// Bytes of the trailer section with its final empty line; past it 431.
    pub trailer_bytes_max: usize,
    /// Bytes of input kept while a response is due; from there on [`Connection::wants_input`] is false.
    pub pipelined_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // RFC 9112 section 3 recommends at least 8000.
            request_line_bytes_max: 8192,
            head_bytes_max: 16 * 1024,
            fields_max: 100,
            body_bytes_max: 1024 * 1024,
            chunk_line_bytes_max: 256,
            trailer_bytes_max: 8192,
            pipelined_bytes_max: 64 * 1024,
        }
    }
}

/// Why a connection can't go on reading requests.
///
/// Errors: final; answer with [`Error::status`] if [`Connection::can_respond`], then close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct Error {
    pub kind: ErrorKind,
}

impl Error {
    /// The status that this failure deserves, so that the driver needs no second table.
    pub fn status(&self) -> u16 {
        self.kind.status()
    }
}

/// What was wrong with a request; the message names the thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    #[error("line ends with a bare LF")]
    BareLf,
    #[error("CR without LF")]
    BareCr,
    #[error("too many empty lines before the request line")]
    TooManyEmptyLines,
    #[error("method is no token")]
    BadMethod,
    #[error("method is longer than any")]
    MethodTooLong,
    #[error("request line is not `method SP target SP version`")]
    BadRequestLine,
    #[error("HTTP version is malformed")]
    BadVersion,
    #[error("HTTP major version is not 1")]
    UnsupportedVersion,
    #[error("request target has a forbidden character")]
    BadTargetCharacter,
    #[error("request target's form does not fit the method")]
    BadTargetForm,
    #[error("request target's authority is invalid")]
    BadAuthority,
    #[error("request line is too long")]
    RequestLineTooLong,
    #[error("head is too large")]
    HeadTooLarge,
    #[error("too many fields")]
    TooManyFields,
    #[error("`connection` lists too much")]
    TooManyConnectionOptions,
    #[error("field line starts with white space")]
    LineFolding,
    #[error("field line has no colon")]
    MissingColon,
    #[error("field name is empty")]
    EmptyFieldName,
    #[error("white space between field name and colon")]
    SpaceBeforeColon,
    #[error("field name is no token")]
    BadFieldName,
    #[error("field value has a forbidden character")]
    BadFieldValue,
    #[error("`host` is missing")]
    MissingHost,
    #[error("`host` is repeated")]
    RepeatedHost,
    #[error("`host` is invalid")]
    BadHost,
    #[error("a field that may stand once is repeated")]
    RepeatedField,
    #[error("`content-length` is no number")]
    BadContentLength,
    #[error("`content-length` is repeated")]
    RepeatedContentLength,
    #[error("`content-length` together with `transfer-encoding`")]
    LengthAndTransferEncoding,
    #[error("`transfer-encoding` in HTTP/1.0")]
    TransferEncodingInHttp10,
    #[error("`transfer-encoding` is not `chunked` alone")]
    BadTransferEncoding,
    #[error("transfer coding is unknown")]
    UnknownTransferCoding,
    #[error("expectation is unknown")]
    UnknownExpectation,
    #[error("content is too large")]
    ContentTooLarge,
    #[error("chunk size is malformed")]
    BadChunkSize,
    #[error("chunk extension is malformed")]
    BadChunkExtension,
    #[error("chunk extensions are too large")]
    ChunkExtensionsTooLarge,
    #[error("chunk-size line is too long")]
    ChunkLineTooLong,
    #[error("chunk data is not followed by CRLF")]
    BadChunkEnd,
    #[error("trailers are too large")]
    TrailersTooLarge,
    #[error("input ends within a request")]
    Incomplete,
    #[error("the rest of a request did not come in time")]
    TooSlow,
}

impl ErrorKind {
    /// The status that this failure deserves.
    pub fn status(self) -> u16 {
        match self {
            Self::TooSlow => 408,
            Self::ContentTooLarge => 413,
            Self::RequestLineTooLong => 414,
            Self::UnknownExpectation => 417,
            Self::HeadTooLarge
            | Self::TooManyFields
            | Self::TooManyConnectionOptions
            | Self::TrailersTooLarge => 431,
            Self::MethodTooLong | Self::UnknownTransferCoding => 501,
            Self::UnsupportedVersion => 505,
            Self::BareLf
            | Self::BareCr
            | Self::TooManyEmptyLines
            | Self::BadMethod
            | Self::BadRequestLine
            | Self::BadVersion
            | Self::BadTargetCharacter
            | Self::BadTargetForm
            | Self::BadAuthority
            | Self::LineFolding
            | Self::MissingColon
            | Self::EmptyFieldName
            | Self::SpaceBeforeColon
            | Self::BadFieldName
            | Self::BadFieldValue
            | Self::MissingHost
            | Self::RepeatedHost
            | Self::BadHost
            | Self::RepeatedField
            | Self::BadContentLength
            | Self::RepeatedContentLength
            | Self::LengthAndTransferEncoding
            | Self::TransferEncodingInHttp10
            | Self::BadTransferEncoding
            | Self::BadChunkSize
            | Self::BadChunkExtension
            | Self::ChunkExtensionsTooLarge
            | Self::ChunkLineTooLong
            | Self::BadChunkEnd
            | Self::Incomplete => 400,
        }
    }
}
