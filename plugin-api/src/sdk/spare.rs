//! Buffers that one request leaves to the next on its thread.
//!
//! Most handlers are done with a request before the next is read, and to allocate and free buffers in between would be a
//! good part of what a short request costs. One of each kind is kept: who waits takes it along, and whoever comes next
//! makes another.

use std::borrow::Cow;
use std::cell::Cell;
use std::thread::LocalKey;

use super::http::Span;

/// Bytes of a text that are kept: the header fields of nearly all requests, and nothing that a process would notice.
const TEXT_BYTES_KEPT: usize = 4096;

/// Header fields that are kept room for.
const FIELDS_KEPT: usize = 64;

/// Of a content, which may end up as a short text that somebody keeps for long.
const SHORT_BYTES: std::ops::RangeInclusive<usize> = 8..=128;

type ResponseFields = Vec<(Cow<'static, str>, Cow<'static, str>)>;

thread_local! {
    static FIELDS: Cell<(String, Vec<Span>)> = const { Cell::new((String::new(), Vec::new())) };
    static RESPONSE_FIELDS: Cell<ResponseFields> = const { Cell::new(Vec::new()) };
    static SHORT: Cell<String> = const { Cell::new(String::new()) };
}

/// An empty text and empty places in it.
pub(super) fn fields() -> (String, Vec<Span>) {
    take(&FIELDS)
}

pub(super) fn keep_fields(mut text: String, mut spans: Vec<Span>) {
    if text.capacity() <= TEXT_BYTES_KEPT && spans.capacity() <= FIELDS_KEPT {
        text.clear();
        spans.clear();
        leave(&FIELDS, (text, spans));
    }
}

/// No fields yet.
pub(super) fn response_fields() -> ResponseFields {
    take(&RESPONSE_FIELDS)
}

pub(super) fn keep_response_fields(mut fields: ResponseFields) {
    if fields.capacity() <= FIELDS_KEPT {
        fields.clear();
        leave(&RESPONSE_FIELDS, fields);
    }
}

/// An empty text, for a short one.
pub(super) fn short() -> String {
    take(&SHORT)
}

/// Keeps the buffer of a content, if it is a short one.
pub(super) fn keep_short(mut content: Vec<u8>) {
    if SHORT_BYTES.contains(&content.capacity()) {
        content.clear();
        leave(&SHORT, String::from_utf8(content).unwrap_or_default());
    }
}

// At a thread's end these may be gone before what is to be left in them.
fn take<T: Default>(place: &'static LocalKey<Cell<T>>) -> T {
    place.try_with(Cell::take).unwrap_or_default()
}

fn leave<T>(place: &'static LocalKey<Cell<T>>, value: T) {
    let _ = place.try_with(|place| place.set(value));
}
