//! What fuzzing has found worth keeping, as it is and a little changed, without a fuzzer.
//!
//! A crash that a fuzzer finds becomes a file in the corpus, so that it runs here from then on.

use std::fs;
use std::path::Path;

/// Changed copies of each file; a file takes some ten microseconds.
const CHANGED: usize = 200;

/// Runs `entry` on every file of `corpus` and on changed copies, the same ones every time.
pub fn replay(corpus: &Path, entry: fn(&[u8])) {
    let mut paths: Vec<_> = fs::read_dir(corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|file| file.expect("readable").path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 5, "{} holds {} files", corpus.display(), paths.len());
    let files: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("readable")).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (path, file) in paths.iter().zip(&files) {
        run(path, entry, file);
        for _ in 0..CHANGED {
            let other = &files[random.below(files.len())];
            run(path, entry, &random.change(file, other));
        }
    }
}

/// A panic alone would not say on which bytes.
fn run(path: &Path, entry: fn(&[u8]), data: &[u8]) {
    if let Err(panic) = std::panic::catch_unwind(|| entry(data)) {
        eprintln!("{} or near it: {}", path.display(), data.escape_ascii());
        std::panic::resume_unwind(panic);
    }
}

/// Xorshift: the same numbers every time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    /// One to three of: a byte changed, bytes doubled, bytes left out, the end of another file.
    fn change(&mut self, data: &[u8], other: &[u8]) -> Vec<u8> {
        const WORDS: &[u8] = b"\r\n\t\0 :;,=\"\\0a\x7f\xff{}[]";
        let mut data = data.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(data.len() + 1);
            let end = (at + self.below(8)).min(data.len());
            match self.below(5) {
                0 if at < data.len() => data[at] = WORDS[self.below(WORDS.len())],
                0 | 1 => data.insert(at, WORDS[self.below(WORDS.len())]),
                2 => data.extend_from_within(at..end),
                3 => drop(data.drain(at..end)),
                _ => {
                    data.truncate(at);
                    data.extend_from_slice(&other[self.below(other.len() + 1)..]);
                }
            }
        }
        data
    }
}
