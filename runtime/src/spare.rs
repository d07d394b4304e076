//! Small buffers of requests and answers, used again: with many requests in one turn of the loop, an allocator's own quick
//! lists are too short for them.

use std::cell::RefCell;

/// What most texts and heads take.
const BYTES: usize = 256;
/// Larger ones are not kept.
pub const BYTES_KEPT_MAX: usize = 1024;
/// So many are, which is 128 KiB at most.
const KEPT_MAX: usize = 128;

#[derive(Default)]
pub struct Spare {
    buffers: RefCell<Vec<Vec<u8>>>,
}

impl Spare {
    /// An empty buffer with some room.
    pub fn take(&self) -> Vec<u8> {
        self.buffers.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BYTES))
    }

    /// An empty text with some room.
    pub fn take_text(&self) -> String {
        String::from_utf8(self.take()).unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn keep(&self, mut buffer: Vec<u8>) {
        let mut buffers = self.buffers.borrow_mut();
        if (BYTES..=BYTES_KEPT_MAX).contains(&buffer.capacity()) && buffers.len() < KEPT_MAX {
            buffer.clear();
            buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_empty_and_bounded() {
        let spare = Spare::default();
        for size in [0, BYTES - 1, BYTES_KEPT_MAX + 1] {
            spare.keep(vec![b'x'; size]);
        }
        assert!(spare.buffers.borrow().is_empty());
        for _ in 0..2 * KEPT_MAX {
            spare.keep(vec![b'x'; BYTES]);
        }
        assert_eq!(spare.buffers.borrow().len(), KEPT_MAX);
        assert!(spare.take().is_empty() && spare.take_text().is_empty());
    }
}
