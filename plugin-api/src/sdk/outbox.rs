//! Frames on their way to the core, in pieces.
//!
//! One buffer for all of them would grow to twice what waits, and give that back as one allocation of megabytes.
//! glibc then takes anything smaller from its heaps instead of mapping it, and leaves twice as much unused in each thread's
//! heap. Pieces are as large as a frame, bodies are, too, and those that were written are used again.

use std::collections::VecDeque;
use std::io::IoSlice;

/// A frame that would make a piece larger than this begins the next.
const PIECE_BYTES: usize = 64 * 1024;

/// Room that is kept for frames to come.
const KEPT_BYTES: usize = 1024 * 1024;

/// Pieces that are written with one system call.
const PIECES_A_WRITE: usize = 8;

/// What is to be written, and room for more.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Those before `last`, the first to be written in front; none is empty.
    full: VecDeque<Vec<u8>>,
    /// Takes the next frame.
    last: Vec<u8>,
    /// Of the first piece, which is `last` if there is no other.
    written: usize,
    unwritten: usize,
    /// Empty ones to be filled again.
    spare: Vec<Vec<u8>>,
    /// Sum of the capacities in `spare`.
    spare_bytes: usize,
}

impl Outbox {
    /// Bytes that wait to be written.
    pub fn unwritten(&self) -> usize {
        self.unwritten
    }

    /// Lets `encode` append a frame of about so many bytes to what it gets, or nothing.
    pub fn append<R>(&mut self, frame_bytes: usize, encode: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        if !self.last.is_empty() && self.last.len() + frame_bytes > PIECE_BYTES {
            self.begin_piece(frame_bytes);
        }
        let before = self.last.len();
        let result = encode(&mut self.last);
        self.unwritten += self.last.len() - before;
        result
    }

    /// Writes with `write`, which says how much it took, until nothing is left or it fails.
    pub fn write<E>(&mut self, mut write: impl FnMut(&[IoSlice<'_>]) -> Result<usize, E>) -> Result<(), E> {
        while self.unwritten > 0 {
            let taken = if self.full.is_empty() {
                write(&[IoSlice::new(&self.last[self.written..])])?
            } else {
                let mut slices = [IoSlice::new(&[]); PIECES_A_WRITE];
                let pieces = self.full.iter().chain([&self.last]);
                let mut count = 0;
                for (slice, piece) in slices.iter_mut().zip(pieces) {
                    *slice = IoSlice::new(if count == 0 { &piece[self.written..] } else { piece });
                    count += 1;
                }
                write(&slices[..count])?
            };
            self.advance(taken);
        }
        Ok(())
    }

    fn advance(&mut self, taken: usize) {
        debug_assert!(taken <= self.unwritten, "more than there was");
        self.unwritten -= taken;
        self.written += taken;
        while let Some(first) = self.full.front()
            && self.written >= first.len()
        {
            self.written -= first.len();
            if let Some(piece) = self.full.pop_front() {
                self.keep(piece);
            }
        }
        if self.unwritten == 0 {
            self.written = 0;
            self.last.clear();
            if self.last.capacity() > KEPT_BYTES {
                self.last = Vec::new();
            }
        }
    }

    fn begin_piece(&mut self, frame_bytes: usize) {
        // The first that is large enough, or else any, which then grows.
        let fits = self.spare.iter().position(|piece| piece.capacity() >= frame_bytes);
        let next = match fits.or(self.spare.len().checked_sub(1)) {
            Some(index) => self.spare.swap_remove(index),
            // A large frame makes room for itself, and no more.
            None if frame_bytes > PIECE_BYTES => Vec::new(),
            None => Vec::with_capacity(PIECE_BYTES),
        };
        self.spare_bytes = self.spare.iter().map(Vec::capacity).sum();
        let full = std::mem::replace(&mut self.last, next);
        self.full.push_back(full);
    }

    fn keep(&mut self, mut piece: Vec<u8>) {
        if self.spare_bytes + self.last.capacity() + piece.capacity() <= KEPT_BYTES {
            piece.clear();
            self.spare_bytes += piece.capacity();
            self.spare.push(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes with a socket that takes `room` bytes at a time and then no more for once.
    fn write_some(outbox: &mut Outbox, room: usize, out: &mut Vec<u8>) {
        let mut is_full = false;
        let _ = outbox.write(|slices| {
            if std::mem::replace(&mut is_full, true) {
                return Err(());
            }
            let mut taken = 0;
            for slice in slices {
                let count = slice.len().min(room - taken);
                out.extend_from_slice(&slice[..count]);
                taken += count;
            }
            Ok(taken)
        });
    }

    fn append(outbox: &mut Outbox, frame: &[u8]) {
        outbox.append(frame.len(), |out| out.extend_from_slice(frame));
    }

    #[test]
    fn what_was_appended_is_written_in_order() {
        for room in [1, 100, 65_536, 300_000, usize::MAX] {
            let (mut outbox, mut expect, mut out) = (Outbox::default(), Vec::new(), Vec::new());
            for round in 0..40_usize {
                let bytes = [30, 1_000, 70_000, 0, 300_000, 65_536, 65_535][round % 7]
                    / if room == 1 { 100 } else { 1 };
                let frame = vec![round as u8; bytes];
                expect.extend_from_slice(&frame);
                append(&mut outbox, &frame);
                // What cannot be encoded leaves nothing behind.
                let refused = outbox.append(bytes, |out| {
                    let before = out.len();
                    out.resize(before + bytes, b'!');
                    out.truncate(before);
                    Err::<(), _>(())
                });
                assert_eq!(refused, Err(()));
                write_some(&mut outbox, room, &mut out);
                assert_eq!(outbox.unwritten(), expect.len() - out.len());
            }
            while outbox.unwritten() > 0 {
                write_some(&mut outbox, room, &mut out);
            }
            assert!(out == expect, "{room}");
        }
    }

    #[test]
    fn no_piece_is_larger_than_it_must_be_and_little_is_kept() {
        let (mut outbox, frame, mut out) = (Outbox::default(), vec![b'x'; 256 * 1024], Vec::new());
        let all = |outbox: &Outbox| -> Vec<usize> {
            outbox.full.iter().chain(&outbox.spare).chain([&outbox.last]).map(Vec::capacity).collect()
        };
        // At no moment is all of it written, as under load.
        for round in 0..2_000 {
            append(&mut outbox, if round % 10 == 0 { &frame } else { &frame[..3_000] });
            if outbox.unwritten() > 4 * 1024 * 1024 {
                out.clear();
                let room = outbox.unwritten() - 10;
                write_some(&mut outbox, room, &mut out);
            }
            let pieces = all(&outbox);
            assert!(pieces.iter().all(|&capacity| capacity <= frame.len()), "{pieces:?}");
            assert!(pieces.iter().sum::<usize>() < 2 * 4 * 1024 * 1024, "{pieces:?}");
        }
        write_some(&mut outbox, usize::MAX, &mut out);
        while outbox.unwritten() > 0 {
            write_some(&mut outbox, usize::MAX, &mut out);
        }
        assert!(all(&outbox).iter().sum::<usize>() <= KEPT_BYTES, "{:?}", all(&outbox));
    }

    #[test]
    fn small_answers_use_one_piece_for_ever() {
        let (mut outbox, mut out) = (Outbox::default(), Vec::new());
        for _ in 0..1_000 {
            for _ in 0..64 {
                append(&mut outbox, &[b'x'; 150]);
            }
            write_some(&mut outbox, usize::MAX, &mut out);
            assert_eq!(outbox.unwritten(), 0);
        }
        assert!(outbox.full.is_empty() && outbox.spare.is_empty() && outbox.last.capacity() <= PIECE_BYTES);
    }
}
