//! Frames: where one JSON message ends and the next begins.
//!
//! Two framings exist, length-prefixed and one object a line, and both sides use this file for either.
//! It handles bytes in memory and does no I/O; the core's links and the SDK's connections own the sockets.
//! It deliberately does not look inside a message: UTF-8 and JSON are the message decoders' business.
//! Source: PROTOCOL.md, "Framing".

use thiserror::Error;

/// Bytes of JSON that one frame may carry unless configured otherwise: 1 MiB.
pub const FRAME_BYTES_MAX_DEFAULT: usize = 1_048_576;

/// The largest limit that can be configured: 16 MiB.
///
/// A length prefix up to here starts with byte 0x00 or 0x01, never with `{`, which is what keeps the framings apart.
pub const FRAME_BYTES_MAX_LIMIT: usize = 16 * 1024 * 1024;

const PREFIX_BYTES: usize = 4;

/// A buffer that grew past this for a large frame is given back once [`CALM_ROUNDS`] reads needed less.
const BUFFER_BYTES_KEPT: usize = 256 * 1024;
const CALM_ROUNDS: u8 = 64;

/// How messages are told apart on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// `u32` big-endian length in bytes, then that many bytes of JSON. The default.
    Length,
    /// One JSON object a line, ended by `\n`; `\r\n` is tolerated.
    Lines,
}

/// A peer that broke the framing, or a frame of ours that would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A length of 0.
    #[error("zero-length frame")]
    Empty,
    /// A length above the limit, found before anything is allocated for it; or a frame of ours that came out longer.
    #[error("frame of {frame_bytes} bytes, the limit is {frame_bytes_max}")]
    TooLong {
        /// As announced, or as written.
        frame_bytes: u64,
        /// The limit, in bytes of JSON.
        frame_bytes_max: usize,
    },
    /// Line framing: the limit is passed and no end of the line is in sight.
    #[error("line of more than {frame_bytes_max} bytes")]
    LineTooLong {
        /// The limit, in bytes before the `\n`.
        frame_bytes_max: usize,
    },
    /// Line framing: nothing but white space.
    #[error("empty line")]
    EmptyLine,
    /// Line framing: what is on the line is no object.
    #[error("line starts with byte 0x{first:02x} instead of `{{`")]
    NotAnObject {
        /// The first byte that is no white space.
        first: u8,
    },
}

/// Cuts a stream of bytes into frames.
///
/// Feed it with [`feed`](Self::feed) (borrowed bytes) or with [`take_buffer`](Self::take_buffer) and
/// [`restore_buffer`](Self::restore_buffer) (I/O that owns its buffer), then call
/// [`next_frame`](Self::next_frame) until it gives `None`.
/// The cost is linear in the bytes received, however they are cut up.
#[derive(Debug)]
pub struct Decoder {
    framing: Option<Framing>,
    frame_bytes_max: usize,
    /// Everything received and not yet forgotten; `start..` is not consumed yet.
    buffer: Vec<u8>,
    /// INVARIANT: `start <= buffer.len()`.
    start: usize,
    /// Lines: no `\n` in `start..scanned`, so that a line that drips in is scanned once.
    /// INVARIANT: `scanned <= buffer.len()`; below `start` it means nothing.
    scanned: usize,
    /// Lines: the `{` of the current line has been seen.
    line_opened: bool,
    /// Unconsumed bytes in a buffer that is out on loan.
    lent: usize,
    calm_rounds: u8,
    failed: Option<FrameError>,
}

impl Decoder {
    /// A decoder for a connection whose framing is known.
    ///
    /// Bounds: `frame_bytes_max` is in bytes of JSON and is cut to [`FRAME_BYTES_MAX_LIMIT`].
    pub fn new(framing: Framing, frame_bytes_max: usize) -> Self {
        Self { framing: Some(framing), ..Self::detecting(frame_bytes_max) }
    }

    /// A decoder that takes the framing from the first byte: `{` means lines, anything else a length.
    pub fn detecting(frame_bytes_max: usize) -> Self {
        Self {
            framing: None,
            frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX_LIMIT),
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            line_opened: false,
            lent: 0,
            calm_rounds: 0,
            failed: None,
        }
    }

    /// Changes the limit, for a side that learns it only from the first message.
    #[cfg(feature = "sdk")]
    pub(crate) fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max.min(FRAME_BYTES_MAX_LIMIT);
    }

    /// The framing, as given or as seen; `None` while detecting and nothing has been read yet.
    pub fn framing(&self) -> Option<Framing> {
        self.framing.or_else(|| {
            self.buffer.get(self.start).map(|first| match first {
                b'{' => Framing::Lines,
                _ => Framing::Length,
            })
        })
    }

    /// Appends received bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        // Moving the rest down only when it is no longer than what was consumed pays for each move
        // with bytes already gone, so the total stays linear.
        if self.buffer.len() - self.start <= self.start {
            self.compact();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Lends the buffer to an operation that appends to it, such as a read that owns its buffer.
    ///
    /// The `Vec` holds the unconsumed bytes and has room for at least `spare_min` more.
    /// Call it after `next_frame` gave `None`: then what is moved is less than one frame, and is moved once.
    pub fn take_buffer(&mut self, spare_min: usize) -> Vec<u8> {
        self.compact();
        let mut buffer = std::mem::take(&mut self.buffer);
        if buffer.capacity() <= BUFFER_BYTES_KEPT || buffer.len() >= BUFFER_BYTES_KEPT / 2 {
            self.calm_rounds = 0;
        } else {
            self.calm_rounds += 1;
            if self.calm_rounds == CALM_ROUNDS {
                self.calm_rounds = 0;
                buffer.shrink_to(buffer.len() + spare_min);
            }
        }
        buffer.reserve(spare_min);
        self.lent = buffer.len();
        buffer
    }

    /// Takes the buffer back, with what was read appended behind what it held.
    pub fn restore_buffer(&mut self, buffer: Vec<u8>) {
        debug_assert!(buffer.len() >= self.lent, "a read must not remove what was buffered");
        self.lent = 0;
        self.buffer = buffer;
        self.start = 0;
        self.scanned = self.scanned.min(self.buffer.len());
    }

    /// Next frame, or `None` until more bytes arrive.
    ///
    /// Shape: the JSON bytes without prefix or line end; mutable because simd-json decodes in place.
    /// Bounds: 1..=`frame_bytes_max` bytes, checked as soon as the length is known and before anything is
    /// allocated for it; memory follows the bytes received, never the length announced.
    /// Errors: final, each further call gives the same; close the connection.
    /// Source: PROTOCOL.md, "Framing".
    pub fn next_frame(&mut self) -> Result<Option<&mut [u8]>, FrameError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let Some(framing) = self.framing() else {
            return Ok(None);
        };
        self.framing = Some(framing);
        let found = match framing {
            Framing::Length => self.next_by_length(),
            Framing::Lines => self.next_line(),
        };
        match found {
            Ok(Some((from, to))) => Ok(Some(&mut self.buffer[from..to])),
            Ok(None) => Ok(None),
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// Whether part of a frame is buffered, so that a deadline belongs on the rest of it.
    ///
    /// Meaningful once `next_frame` has given `None`, also while the buffer is lent.
    pub fn is_mid_frame(&self) -> bool {
        self.lent > 0 || self.start < self.buffer.len()
    }

    fn next_by_length(&mut self) -> Result<Option<(usize, usize)>, FrameError> {
        let pending = &self.buffer[self.start..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let announced = u32::from_be_bytes(*prefix);
        if announced == 0 {
            return Err(FrameError::Empty);
        }
        let frame_bytes = announced as usize;
        if frame_bytes > self.frame_bytes_max {
            return Err(FrameError::TooLong {
                frame_bytes: u64::from(announced),
                frame_bytes_max: self.frame_bytes_max,
            });
        }
        if rest.len() < frame_bytes {
            return Ok(None);
        }
        let from = self.start + PREFIX_BYTES;
        let to = from + frame_bytes;
        self.start = to;
        Ok(Some((from, to)))
    }

    fn next_line(&mut self) -> Result<Option<(usize, usize)>, FrameError> {
        let from = self.start;
        let fresh_from = self.scanned.max(from);
        let fresh = &self.buffer[fresh_from..];
        let line_end = memchr::memchr(b'\n', fresh).map(|at| fresh_from + at);
        if !self.line_opened {
            // Checked at once and not at the line's end: garbage may never bring one.
            let line = &self.buffer[fresh_from..line_end.unwrap_or(self.buffer.len())];
            match line.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\r')) {
                // In smaller pieces the blanks alone would have been too long.
                Some(at) if fresh_from + at - from > self.frame_bytes_max => {
                    return Err(FrameError::LineTooLong { frame_bytes_max: self.frame_bytes_max });
                }
                Some(at) if line[at] == b'{' => self.line_opened = true,
                Some(at) => return Err(FrameError::NotAnObject { first: line[at] }),
                None => {}
            }
        }
        let Some(line_end) = line_end else {
            self.scanned = self.buffer.len();
            if self.buffer.len() - from > self.frame_bytes_max {
                return Err(FrameError::LineTooLong { frame_bytes_max: self.frame_bytes_max });
            }
            return Ok(None);
        };
        // A `\r` counts: otherwise a line at the limit would be refused or not depending on
        // whether its `\n` came in the same read.
        if line_end - from > self.frame_bytes_max {
            return Err(FrameError::LineTooLong { frame_bytes_max: self.frame_bytes_max });
        }
        if !self.line_opened {
            return Err(FrameError::EmptyLine);
        }
        let to = line_end - usize::from(self.buffer[from..line_end].ends_with(b"\r"));
        self.start = line_end + 1;
        self.scanned = self.start;
        self.line_opened = false;
        Ok(Some((from, to)))
    }

    fn compact(&mut self) {
        if self.start == 0 {
            return;
        }
        self.buffer.drain(..self.start);
        self.scanned = self.scanned.saturating_sub(self.start);
        self.start = 0;
    }
}

/// Where a frame under construction began; given back to [`end_frame`].
#[derive(Debug)]
#[must_use]
pub struct FrameMark {
    at: usize,
    framing: Framing,
}

impl FrameMark {
    /// Bytes of JSON written behind the mark so far.
    pub(crate) fn json_bytes(&self, out: &[u8]) -> usize {
        let prefix = match self.framing {
            Framing::Length => PREFIX_BYTES,
            Framing::Lines => 0,
        };
        out.len() - self.at - prefix
    }

    /// Takes back everything since the mark.
    pub(crate) fn abandon(self, out: &mut Vec<u8>) {
        out.truncate(self.at);
    }
}

/// Opens a frame at the end of `out`; append the JSON, then call [`end_frame`].
pub fn begin_frame(out: &mut Vec<u8>, framing: Framing) -> FrameMark {
    let at = out.len();
    if framing == Framing::Length {
        out.extend_from_slice(&[0; PREFIX_BYTES]);
    }
    FrameMark { at, framing }
}

/// Closes the frame opened at `mark`.
///
/// Bounds: the JSON must be 1..=`frame_bytes_max` bytes.
/// Errors: `out` is cut back to the mark, so frames before it can still be sent.
pub fn end_frame(out: &mut Vec<u8>, mark: FrameMark, frame_bytes_max: usize) -> Result<(), FrameError> {
    let frame_bytes_max = frame_bytes_max.min(FRAME_BYTES_MAX_LIMIT);
    let json_bytes = mark.json_bytes(out);
    if json_bytes == 0 || json_bytes > frame_bytes_max {
        mark.abandon(out);
        return Err(match json_bytes {
            0 => FrameError::Empty,
            _ => FrameError::TooLong { frame_bytes: json_bytes as u64, frame_bytes_max },
        });
    }
    match mark.framing {
        Framing::Length => {
            let prefix = u32::try_from(json_bytes).expect("the limit is 16 MiB");
            out[mark.at..mark.at + PREFIX_BYTES].copy_from_slice(&prefix.to_be_bytes());
        }
        Framing::Lines => {
            // Inside strings our writers escape line ends, so one found here is white space of
            // JSON that somebody else formatted, such as a plugin's configuration.
            for byte in &mut out[mark.at..] {
                if matches!(byte, b'\n' | b'\r') {
                    *byte = b' ';
                }
            }
            out.push(b'\n');
        }
    }
    Ok(())
}

/// The decoder's property: any cutting of the bytes gives what one piece gives.
#[doc(hidden)]
pub fn fuzz_decoder(data: &[u8]) {
    let Some((&choice, bytes)) = data.split_first() else {
        return;
    };
    let make = || match choice & 3 {
        0 => Decoder::new(Framing::Length, 64),
        1 => Decoder::new(Framing::Lines, 64),
        _ => Decoder::detecting(64),
    };
    fn drain(decoder: &mut Decoder, frames: &mut Vec<Vec<u8>>) -> Option<FrameError> {
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => return None,
                Err(error) => return Some(error),
            }
        }
    }
    let mut whole = make();
    let mut whole_frames = Vec::new();
    whole.feed(bytes);
    let whole_error = drain(&mut whole, &mut whole_frames);
    let frame_total: usize = whole_frames.iter().map(Vec::len).sum();
    assert!(frame_total <= bytes.len());
    assert!(whole_frames.iter().all(|frame| (1..=64).contains(&frame.len())));

    let mut pieces = make();
    let mut piece_frames = Vec::new();
    let mut piece_error = None;
    let mut rest = bytes;
    let mut step = usize::from(choice >> 2);
    while !rest.is_empty() && piece_error.is_none() {
        step = step.wrapping_mul(5).wrapping_add(3);
        let (piece, behind) = rest.split_at((step % 7 + 1).min(rest.len()));
        rest = behind;
        if step & 8 == 0 {
            pieces.feed(piece);
        } else {
            let mut buffer = pieces.take_buffer(piece.len());
            buffer.extend_from_slice(piece);
            pieces.restore_buffer(buffer);
        }
        piece_error = drain(&mut pieces, &mut piece_frames);
    }
    assert_eq!(piece_frames, whole_frames);
    assert_eq!(piece_error, whole_error);
    assert_eq!(pieces.framing(), whole.framing());
    if piece_error.is_none() {
        assert_eq!(pieces.is_mid_frame(), whole.is_mid_frame());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<String>, FrameError> {
        decoder.feed(bytes);
        let mut found = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            found.push(String::from_utf8(frame.to_vec()).expect("test frames are UTF-8"));
        }
        Ok(found)
    }

    #[test]
    fn limits_at_their_edges() {
        let check = |framing, bytes: &[u8], expect: Result<&[&str], FrameError>| {
            let got = frames(&mut Decoder::new(framing, 4), bytes);
            let expect = expect.map(|list| list.iter().map(ToString::to_string).collect());
            assert_eq!(got, expect, "{framing:?} {bytes:?}");
        };
        let too_long = |frame_bytes| FrameError::TooLong { frame_bytes, frame_bytes_max: 4 };
        let line_too_long = FrameError::LineTooLong { frame_bytes_max: 4 };
        check(Framing::Length, b"\0\0\0\x04{  }", Ok(&["{  }"]));
        check(Framing::Length, b"\0\0\0\x02{}\0\0\0\x02{}\0", Ok(&["{}", "{}"]));
        check(Framing::Length, b"\0\0\0\x05", Err(too_long(5)));
        check(Framing::Length, b"\xff\xff\xff\xff", Err(too_long(0xffff_ffff)));
        check(Framing::Length, b"\0\0\0\0", Err(FrameError::Empty));
        check(Framing::Length, b"\0\0\0\x04{ ", Ok(&[]));
        check(Framing::Lines, b"{  }\n{}\r\n{", Ok(&["{  }", "{}"]));
        check(Framing::Lines, b"{ }\r\n", Ok(&["{ }"]));
        check(Framing::Lines, b"{ }\r", Ok(&[]));
        check(Framing::Lines, b"{  }\r", Err(line_too_long));
        check(Framing::Lines, b"{   }", Err(line_too_long));
        check(Framing::Lines, b"{   }\n", Err(line_too_long));
        check(Framing::Lines, b" {}\n", Ok(&[" {}"]));
        check(Framing::Lines, b"\n", Err(FrameError::EmptyLine));
        check(Framing::Lines, b"{}\n \r\n", Err(FrameError::EmptyLine));
        check(Framing::Lines, b"[", Err(FrameError::NotAnObject { first: b'[' }));
        check(Framing::Lines, b"\0", Err(FrameError::NotAnObject { first: 0 }));
    }

    #[test]
    fn errors_stick() {
        let mut decoder = Decoder::new(Framing::Length, 4);
        decoder.feed(b"\0\0\0\0\0\0\0\x02{}");
        assert_eq!(decoder.next_frame(), Err(FrameError::Empty));
        decoder.feed(b"\0\0\0\x02{}");
        assert_eq!(decoder.next_frame(), Err(FrameError::Empty));
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut decoder = Decoder::new(Framing::Length, FRAME_BYTES_MAX_LIMIT);
        decoder.feed(&0x00ff_ffff_u32.to_be_bytes());
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.take_buffer(64).capacity() < 1024);
    }

    #[test]
    fn a_large_frame_does_not_keep_its_memory_for_ever() {
        let mut decoder = Decoder::new(Framing::Length, FRAME_BYTES_MAX_DEFAULT);
        let mut frame = Vec::new();
        let mark = begin_frame(&mut frame, Framing::Length);
        frame.resize(PREFIX_BYTES + FRAME_BYTES_MAX_DEFAULT, b' ');
        end_frame(&mut frame, mark, FRAME_BYTES_MAX_DEFAULT).expect("exactly the limit");
        decoder.feed(&frame);
        assert!(decoder.next_frame().expect("well framed").is_some());
        let mut capacity = usize::MAX;
        for _ in 0..=CALM_ROUNDS {
            let buffer = decoder.take_buffer(4096);
            capacity = buffer.capacity();
            decoder.restore_buffer(buffer);
        }
        assert!(capacity <= BUFFER_BYTES_KEPT, "{capacity}");
    }

    #[test]
    fn mid_frame_is_known_while_the_buffer_is_lent() {
        let mut decoder = Decoder::detecting(64);
        assert!(!decoder.is_mid_frame());
        let mut buffer = decoder.take_buffer(8);
        buffer.extend_from_slice(b"{}\n{");
        decoder.restore_buffer(buffer);
        assert_eq!(decoder.next_frame().expect("a line"), Some(&mut b"{}"[..].to_vec()[..]));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.framing(), Some(Framing::Lines));
        let buffer = decoder.take_buffer(8);
        assert_eq!(buffer, b"{");
        assert!(decoder.is_mid_frame());
    }

    #[test]
    fn a_frame_that_cannot_be_sent_leaves_those_before_it() {
        for framing in [Framing::Length, Framing::Lines] {
            let mut out = Vec::new();
            let mark = begin_frame(&mut out, framing);
            out.extend_from_slice(b"{\n}");
            end_frame(&mut out, mark, 3).expect("exactly the limit");
            let before = out.clone();
            let mark = begin_frame(&mut out, framing);
            out.extend_from_slice(b"{  }");
            assert!(end_frame(&mut out, mark, 3).is_err());
            assert_eq!(out, before);
            assert_eq!(frames(&mut Decoder::new(framing, 3), &out).expect("ours").len(), 1);
        }
    }

    #[test]
    fn fuzz_bounded() {
        crate::json::tests::for_random_bytes(20_000, fuzz_decoder);
        crate::json::tests::for_random_bytes(20_000, |bytes| {
            // Mostly well-formed streams, which random bytes hardly ever are.
            let alphabet = b"{}\n\r \0\0\0\x01\x02\x03\x04";
            let stream: Vec<u8> =
                bytes.iter().map(|byte| alphabet[usize::from(*byte) % alphabet.len()]).collect();
            fuzz_decoder(&stream);
        });
    }
}
