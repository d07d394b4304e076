//! Writing JSON straight into a buffer: what the encoders of both sides share.
//!
//! There is no tree and no formatter machinery in between; a message is a few constant pieces with
//! strings and numbers in their gaps. Reading JSON is not done here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wide::u8x16;

/// How many bytes are looked at together.
pub(crate) const BLOCK: usize = 16;
/// `\u0000` and the like take six, and are written as eight.
const ESCAPE_ROOM: usize = 8;
/// A block, the letter of an escape that begins in it, and a block behind that.
pub(crate) const WINDOW: usize = 2 * BLOCK + 1;
/// A block of which every byte is escaped, and what is written behind it.
const ESCAPED_STEP: usize = BLOCK * 6 + BLOCK;
/// Bytes for which room is made at a time.
const ROOM_AT_ONCE: usize = 1024;
/// Up to here it costs more to look for the first escape than to write as if there were one.
const SHORT_CONTENT: usize = 8 * BLOCK;

/// What stands for each byte that is escaped, with how many bytes of it count.
const ESCAPES: [([u8; ESCAPE_ROOM], u8); 128] = {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut escapes = [([0; 8], 0); 128];
    let mut byte = 0;
    while byte < 0x20 {
        escapes[byte] = (*b"\\u0000  ", 6);
        escapes[byte].0[4] = HEX[byte >> 4];
        escapes[byte].0[5] = HEX[byte & 15];
        byte += 1;
    }
    let short = [(8, b'b'), (9, b't'), (10, b'n'), (12, b'f'), (13, b'r'), (b'"', b'"'), (b'\\', b'\\')];
    let mut index = 0;
    while index < short.len() {
        let (byte, letter) = short[index];
        escapes[byte as usize] = ([b'\\', letter, 0, 0, 0, 0, 0, 0], 2);
        index += 1;
    }
    escapes
};

/// Appends `text` as a JSON string, quotes included.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    write_string_content(out, text);
    out.push(b'"');
}

/// Appends `text` escaped for the inside of a JSON string, without quotes.
pub fn write_string_content(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let (clear, rest) = bytes.split_at(clear_bytes(bytes));
    if rest.is_empty() {
        return out.extend_from_slice(clear);
    }
    out.reserve(bytes.len() + rest.len() / 8);
    out.extend_from_slice(clear);
    Writer::new(out, rest.len()).escaped(rest);
}

/// Whether bytes are UTF-8.
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    // Most are ASCII, which is found out in half the time.
    let is_ascii = if bytes.len() > 4 * BLOCK { bytes.is_ascii() } else { has_none(bytes, beyond_ascii) };
    is_ascii || simdutf8::basic::from_utf8(bytes).is_ok()
}

/// Appends to a buffer by writing into room that was made before, so that a short piece is a store and no call.
///
/// INVARIANT: `at <= out.len()`; what stands behind `at` means nothing, and is cut off in the end.
pub(crate) struct Writer<'v> {
    out: &'v mut Vec<u8>,
    at: usize,
}

impl<'v> Writer<'v> {
    /// A writer with room for so many bytes and what one step more takes; where that is not enough, more is made.
    pub fn new(out: &'v mut Vec<u8>, room: usize) -> Self {
        let at = out.len();
        out.resize(at + room.min(ROOM_AT_ONCE) + ESCAPED_STEP, 0);
        Self { out, at }
    }

    /// Bytes in the buffer, those that were there before included.
    pub fn len(&self) -> usize {
        self.at
    }

    /// Takes back what was written behind the first so many bytes of the buffer.
    pub fn cut_back(&mut self, len: usize) {
        debug_assert!(len <= self.at);
        self.at = len;
    }

    /// Cuts the room off.
    pub fn finish(self) {}

    /// Appends bytes as they are; with a length known to the compiler that is a few stores.
    #[inline(always)]
    pub fn literal(&mut self, piece: &'static str) {
        self.known(piece.as_bytes());
    }

    /// The same for bytes that only their number is known of.
    #[inline(always)]
    fn known(&mut self, piece: &[u8]) {
        let end = self.at + piece.len();
        let room = match self.out.get_mut(self.at..end) {
            Some(room) => room,
            None => {
                self.make_room(piece.len());
                &mut self.out[self.at..end]
            }
        };
        room.copy_from_slice(piece);
        self.at = end;
    }

    /// Appends what was written by another.
    pub fn encoded(&mut self, piece: &[u8]) {
        if self.out.len() - self.at < piece.len() {
            self.out.resize(self.at + piece.len() + ESCAPED_STEP, 0);
        }
        self.known(piece);
    }

    /// Appends what goes between the quotes of a string.
    #[inline]
    pub fn text(&mut self, text: &str) {
        self.short(text.as_bytes());
    }

    fn short(&mut self, text: &[u8]) {
        if !self.plain(text, |block| block, to_escape) {
            self.escaped(text);
        }
    }

    /// The same, with ASCII's letters in lower case.
    pub fn lower_case(&mut self, text: &str) {
        if !self.plain(text.as_bytes(), lower_case, to_escape) {
            self.escaped(text.to_ascii_lowercase().as_bytes());
        }
    }

    /// The same of bytes that are Latin-1 where they are not UTF-8.
    ///
    /// Only header values come here: HTTP says nothing about their encoding beyond ASCII (RFC 9110, 5.5).
    pub fn value(&mut self, value: &[u8]) {
        if self.plain(value, |block| block, |block| to_escape(block) | beyond_ascii(block)) {
            return;
        }
        if is_text(value) {
            self.escaped(value);
        } else {
            self.text(&value.iter().copied().map(char::from).collect::<String>());
        }
    }

    /// Appends a number in decimal.
    pub fn number(&mut self, mut number: u64) {
        // A status, which every answer has.
        if let 100..1000 = number {
            let number = number as u32;
            return self
                .known(&[number / 100, number / 10 % 10, number % 10].map(|digit| b'0' + digit as u8));
        }
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        if self.out.len() - self.at < digits {
            self.make_room(digits);
        }
        for digit in self.out[self.at..][..digits].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        self.at += digits;
    }

    /// Appends bytes in base64 (RFC 4648 section 4, padded).
    pub fn base64(&mut self, bytes: &[u8]) {
        let end = self.at + bytes.len().div_ceil(3) * 4;
        self.out.resize(end, 0);
        let written = STANDARD
            .encode_slice(bytes, &mut self.out[self.at..])
            .expect("four characters for each three bytes begun");
        debug_assert_eq!(self.at + written, end);
        self.at = end;
    }

    /// Appends a short text, changed by `map`, if `marks` marks none of its bytes; else nothing, and false.
    ///
    /// Both get a block at a time, in which a byte may be more than once: loads and stores that overlap take the place of
    /// copies of unknown length, which would be calls.
    #[inline(always)]
    fn plain(
        &mut self,
        bytes: &[u8],
        map: impl Fn([u8; BLOCK]) -> [u8; BLOCK],
        marks: impl Fn(&[u8; BLOCK]) -> u32,
    ) -> bool {
        let end = self.at + bytes.len();
        let room = match self.out.get_mut(self.at..end) {
            Some(room) => room,
            None if bytes.len() > ROOM_AT_ONCE => return false,
            None => {
                self.make_room(bytes.len());
                &mut self.out[self.at..end]
            }
        };
        if let (Some(last), Some(last_place)) = (bytes.last_chunk(), room.last_chunk_mut()) {
            if marks(last) != 0 {
                return false;
            }
            *last_place = map(*last);
            for (block, place) in bytes.as_chunks().0.iter().zip(room.as_chunks_mut().0) {
                if marks(block) != 0 {
                    return false;
                }
                *place = map(*block);
            }
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            let block = joined(u64::from_le_bytes(*first), u64::from_le_bytes(*last));
            if marks(&block) != 0 {
                return false;
            }
            let (first, last) = halves(map(block));
            put(room, 0, &first.to_le_bytes());
            put(room, bytes.len() - 8, &last.to_le_bytes());
        } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
            let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
            let both = u64::from(first) | u64::from(last) << 32;
            let block = joined(both, both);
            if marks(&block) != 0 {
                return false;
            }
            let (both, _) = halves(map(block));
            put(room, 0, &(both as u32).to_le_bytes());
            put(room, bytes.len() - 4, &((both >> 32) as u32).to_le_bytes());
        } else if let Some((&first, behind)) = bytes.split_first() {
            let (middle, last) = (bytes.len() / 2, behind.len());
            let three = [first, bytes[middle], bytes[last]].map(u64::from);
            let three = three[0] | three[1] << 8 | (three[2] * 0x0101_0101_0101_0000);
            let block = joined(three, three);
            if marks(&block) != 0 {
                return false;
            }
            let (three, _) = halves(map(block));
            room[0] = three as u8;
            room[middle] = (three >> 8) as u8;
            room[last] = (three >> 16) as u8;
        }
        self.at = end;
        true
    }

    /// Appends what goes between the quotes of a string and may be long; `text` is UTF-8.
    pub fn content(&mut self, text: &[u8]) {
        if text.len() <= SHORT_CONTENT {
            return self.short(text);
        }
        let clear = clear_bytes(text);
        self.out.truncate(self.at);
        self.out.extend_from_slice(&text[..clear]);
        self.at = self.out.len();
        if clear < text.len() {
            self.escaped(&text[clear..]);
        }
    }

    /// Appends text, escaped.
    fn escaped(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            if self.out.len() - self.at < ESCAPED_STEP {
                self.make_room(rest.len());
            }
            (self.at, rest) = write_escaped(self.out, self.at, rest);
        }
    }

    #[cold]
    #[inline(never)]
    fn make_room(&mut self, bytes: usize) {
        self.out.resize(self.at + bytes.min(ROOM_AT_ONCE) + ESCAPED_STEP, 0);
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.out.truncate(self.at);
    }
}

/// Copies as one store what a slice of unknown length would be a call for.
#[inline]
pub(crate) fn put<const BYTES: usize>(room: &mut [u8], at: usize, bytes: &[u8; BYTES]) {
    *room[at..].first_chunk_mut().expect("room was made for it") = *bytes;
}

/// Writes escaped text from `at` on as long as there is room for a step; gives the place behind it, and what is left.
fn write_escaped<'a>(room: &mut [u8], mut at: usize, mut rest: &'a [u8]) -> (usize, &'a [u8]) {
    while let (Some(window), Some(place)) = (rest.first_chunk(), room[at..].first_chunk_mut()) {
        at += escape_block(place, window, BLOCK);
        rest = &rest[BLOCK..];
    }
    if rest.len() < WINDOW {
        // The last two blocks, as if more came behind them.
        let mut padded = [0; BLOCK + WINDOW];
        match (rest.first_chunk::<BLOCK>(), rest.last_chunk::<BLOCK>()) {
            (Some(first), Some(last)) => {
                put(&mut padded, 0, first);
                put(&mut padded, rest.len() - BLOCK, last);
            }
            _ => put(&mut padded, 0, &short_block(rest)),
        }
        let mut padded = &padded[..];
        while !rest.is_empty()
            && let (Some(window), Some(place)) = (padded.first_chunk(), room[at..].first_chunk_mut())
        {
            let len = rest.len().min(BLOCK);
            at += escape_block(place, window, len);
            rest = &rest[len..];
            padded = &padded[BLOCK..];
        }
    }
    (at, rest)
}

/// Writes the first `len` bytes of a window, at most a block, escaped; gives how many bytes they became.
///
/// Where something is escaped, more is: content that is JSON itself has a quote every few bytes. So a block is copied as
/// it is, whatever is in it, and what is behind an escape is copied again to its place.
#[inline(always)]
fn escape_block(place: &mut [u8; ESCAPED_STEP], window: &[u8; WINDOW], len: usize) -> usize {
    put(place, 0, block_at(window, 0));
    let mut marks = to_escape(block_at(window, 0)) & ((1 << len) - 1);
    let (mut from, mut to) = (0, 0);
    while marks != 0 {
        let found = marks.trailing_zeros() as usize;
        marks &= marks - 1;
        let (escape, len) = &ESCAPES[usize::from(window[found] % ESCAPES.len() as u8)];
        to += found - from;
        put(place, to, escape);
        to += usize::from(*len);
        from = found + 1;
        put(place, to, block_at(window, from));
    }
    to + len - from
}

#[inline]
pub(crate) fn block_at(window: &[u8; WINDOW], at: usize) -> &[u8; BLOCK] {
    window[at..].first_chunk().expect("within the window")
}

/// Less than a block, filled up with zeros.
#[inline]
fn short_block(bytes: &[u8]) -> [u8; BLOCK] {
    // Two loads that may overlap, where a copy of unknown length would be a call.
    let two = |first: u64, last: u64, last_at: usize| u128::from(first) | u128::from(last) << (last_at * 8);
    let len = bytes.len();
    let block = if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        two(u64::from_le_bytes(*first), u64::from_le_bytes(*last), len - 8)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        two(u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)), len - 4)
    } else if let [first, .., last] = bytes {
        two(u64::from(*first) | u64::from(bytes[1]) << 8, u64::from(*last), len - 1)
    } else {
        u128::from(bytes.first().copied().unwrap_or(0))
    };
    block.to_le_bytes()
}

#[inline]
fn joined(first: u64, last: u64) -> [u8; BLOCK] {
    (u128::from(first) | u128::from(last) << 64).to_le_bytes()
}

#[inline]
fn halves(block: [u8; BLOCK]) -> (u64, u64) {
    let block = u128::from_le_bytes(block);
    (block as u64, (block >> 64) as u64)
}

#[inline]
fn lower_case(block: [u8; BLOCK]) -> [u8; BLOCK] {
    let bytes = u8x16::new(block);
    let from_a = bytes - u8x16::splat(b'A');
    let is_upper = from_a.min(u8x16::splat(b'Z' - b'A')).simd_eq(from_a);
    (bytes | (is_upper & u8x16::splat(0x20))).to_array()
}

/// Appends `number` in decimal.
pub fn write_u64(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// How many bytes there are before the first that JSON wants escaped: `"`, `\` and everything below 0x20.
#[inline]
pub(crate) fn clear_bytes(bytes: &[u8]) -> usize {
    // Most strings are short, and what is behind them is not.
    let Some(two) = bytes.first_chunk::<{ 2 * BLOCK }>() else { return clear_bytes_behind(bytes, 0) };
    for (index, block) in two.as_chunks().0.iter().enumerate() {
        let found = to_escape(block);
        if found != 0 {
            return index * BLOCK + found.trailing_zeros() as usize;
        }
    }
    clear_bytes_behind(bytes, 2 * BLOCK)
}

/// The same where the first `at` bytes are clear.
#[inline(never)]
fn clear_bytes_behind(bytes: &[u8], mut at: usize) -> usize {
    while let Some(block) = bytes[at..].first_chunk() {
        let found = to_escape(block);
        if found != 0 {
            return at + found.trailing_zeros() as usize;
        }
        at += BLOCK;
    }
    let tail = &bytes[at..];
    at + (to_escape(&short_block(tail)) | 1 << tail.len()).trailing_zeros() as usize
}

/// Whether `marks` marks none of the bytes; it gets a block at a time, in which a byte may be for the second time.
#[inline(always)]
pub(crate) fn has_none(bytes: &[u8], marks: impl Fn(&[u8; BLOCK]) -> u32) -> bool {
    match bytes.last_chunk() {
        Some(last) => marks(last) == 0 && bytes.as_chunks().0.iter().all(|block| marks(block) == 0),
        None => marks(&short_block(bytes)) & ((1 << bytes.len()) - 1) == 0,
    }
}

/// Which bytes of a block are no ASCII.
#[inline]
fn beyond_ascii(block: &[u8; BLOCK]) -> u32 {
    u8x16::new(*block).to_bitmask()
}

/// Which bytes of a block are escaped, the first in the lowest bit.
#[inline]
pub(crate) fn to_escape(block: &[u8; BLOCK]) -> u32 {
    let bytes = u8x16::new(*block);
    let control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    let quotes = bytes.simd_eq(u8x16::splat(b'"')) | bytes.simd_eq(u8x16::splat(b'\\'));
    (control | quotes).to_bitmask()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs `check` on `rounds` short random inputs; the generator is seeded, so a failure repeats.
    pub(crate) fn for_random_bytes(rounds: u32, mut check: impl FnMut(&[u8])) {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32
        };
        let mut bytes = Vec::new();
        for _ in 0..rounds {
            bytes.clear();
            let length = next() % 200;
            bytes.extend((0..length).map(|_| next() as u8));
            check(&bytes);
        }
    }

    /// Runs `check` on `rounds` variants of a message, each with one byte changed, removed or put in, or cut off there;
    /// gives how often `check` gave true.
    pub(crate) fn count_variants(original: &[u8], rounds: u32, check: impl Fn(&[u8]) -> bool) -> u32 {
        let mut count = 0;
        for_random_bytes(rounds, |bytes| {
            let [place, what, ..] = *bytes else { return };
            let (place, mut variant) = (usize::from(place) * 7 % original.len(), original.to_vec());
            match what % 4 {
                0 => variant[place] = what,
                1 => drop(variant.remove(place)),
                2 => variant.insert(place, what),
                _ => variant.truncate(place),
            }
            count += u32::from(check(&variant));
        });
        count
    }

    /// Asserts that `is_usual` holds for a message, and no more once a piece of it is another.
    #[track_caller]
    pub(crate) fn assert_leaves_alone(
        usual: &[u8],
        changes: &[(&str, &str)],
        is_usual: impl Fn(&[u8]) -> bool,
    ) {
        assert!(is_usual(usual));
        let usual = std::str::from_utf8(usual).expect("JSON");
        for (from, to) in changes {
            let changed = usual.replace(from, to);
            assert_ne!(changed, usual, "{from}");
            assert!(!is_usual(changed.as_bytes()), "{changed}");
        }
    }

    #[test]
    fn every_byte_at_every_place_reads_back() {
        for byte in 0..=0x7f_u8 {
            for place in 0..20 {
                let mut text = "é".repeat(10).into_bytes();
                text.splice(place / 2 * 2..place / 2 * 2, std::iter::repeat_n(byte, place % 2 + 1));
                let text = String::from_utf8(text).expect("spliced between characters");
                let mut out = Vec::new();
                write_string(&mut out, &text);
                assert!(out[1..out.len() - 1].iter().all(|&byte| byte >= 0x20));
                let back: String = serde_json::from_slice(&out).expect("valid JSON");
                assert_eq!(back, text);
            }
        }
    }

    #[test]
    fn random_text_reads_back() {
        for_random_bytes(5_000, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let mut out = Vec::new();
            write_string(&mut out, &text);
            assert_eq!(out, serde_json::to_vec(&text).expect("a string"));
        });
    }

    #[test]
    fn text_of_any_length_reads_back() {
        // Around the ends of what is looked at, and of what room is made for, together.
        let lengths = (0..70).chain(1000..1060).chain(2030..2070);
        for length in lengths {
            for piece in ["a", "\"", "\u{1}", "key\":\u{e9}\n", "\u{1f600}\\ plain text between"] {
                let text: String = piece.chars().cycle().take(length).collect();
                let mut out = Vec::new();
                write_string(&mut out, &text);
                assert_eq!(out, serde_json::to_vec(&text).expect("a string"), "{length} of {piece:?}");
                let json = std::str::from_utf8(&out[1..]).expect("JSON is text");
                let mut at = crate::cursor::Cursor(json);
                assert_eq!(at.content().as_deref(), Some(text.as_bytes()), "{length} of {piece:?}");
                assert_eq!(at.0, "");
            }
        }
    }

    #[test]
    fn pieces_are_what_serde_json_and_the_standard_library_say() {
        let escaped = |text: &str| {
            let json = serde_json::to_string(text).expect("a string");
            json[1..json.len() - 1].to_owned()
        };
        for_random_bytes(20_000, |bytes| {
            let Some((&room, bytes)) = bytes.split_first() else { return };
            // Of all lengths around a block's, and hardly ever anything else than what stands between `"` and `\\`.
            let of = |&byte: &u8| if byte % 31 == 0 { byte } else { b'#' + byte % 50 };
            let bytes: Vec<u8> = bytes.iter().take(usize::from(room % 41)).map(of).collect();
            let text = String::from_utf8_lossy(&bytes);
            let mut out = b"before".to_vec();
            let mut to = Writer::new(&mut out, usize::from(room));
            to.text(&text);
            to.literal("|");
            to.lower_case(&text);
            to.literal("|");
            to.value(&bytes);
            to.literal("|");
            to.content(text.as_bytes());
            to.number(u64::from(room));
            to.finish();
            let value = match std::str::from_utf8(&bytes) {
                Ok(text) => text.to_owned(),
                Err(_) => bytes.iter().copied().map(char::from).collect(),
            };
            let expect = [&text, &*text.to_ascii_lowercase(), &value, &text].map(escaped).join("|");
            assert_eq!(
                String::from_utf8_lossy(&out),
                format!("before{expect}{room}"),
                "{}",
                bytes.escape_ascii()
            );
        });
    }

    #[test]
    fn what_is_cut_back_and_what_room_is_left_does_not_show() {
        let mut out = Vec::new();
        let mut to = Writer::new(&mut out, 0);
        to.text("kept");
        let len = to.len();
        to.text(&"gone".repeat(1_000));
        to.cut_back(len);
        to.base64(b"f");
        to.literal("!");
        to.finish();
        assert_eq!(out, b"keptZg==!");
    }

    #[test]
    fn numbers_and_base64() {
        for number in [0, 7, 10, 1_048_576, u64::MAX] {
            let mut out = Vec::new();
            write_u64(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
        }
        for (bytes, expect) in [("", ""), ("f", "Zg=="), ("foobar", "Zm9vYmFy")] {
            let mut out = Vec::new();
            Writer::new(&mut out, 0).base64(bytes.as_bytes());
            assert_eq!(out, expect.as_bytes());
        }
    }
}
