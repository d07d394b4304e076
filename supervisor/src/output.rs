//! What plugins write to their standard streams: cut into lines, handed on, the last ones kept for a crash.

use std::sync::Arc;

use crate::plugin::Pipe;
use crate::{Stream, Supervisor};

/// A longer line of a plugin's output is cut into parts of this size.
const OUTPUT_LINE_BYTES_MAX: usize = 16 * 1024;
/// Lines of standard error kept for the event that tells of a crash.
const STDERR_LINES_KEPT: usize = 20;

impl Supervisor {
    pub(crate) fn on_output(&mut self, index: usize, pipe: usize) {
        // One read for each turn of the loop: a flood on one pipe must not starve the others.
        self.read_output(index, pipe);
    }

    pub(crate) fn drain(&mut self, index: usize, pipe: usize) {
        // A pipe holds 64 KiB by default, 1 MiB at most; a stranger that still writes must not keep us here.
        for _ in 0..32 {
            if !self.read_output(index, pipe) {
                break;
            }
        }
        if let Some(pipe) = self.plugins[index].pipes[pipe].take() {
            self.sources.remove(&pipe.token);
            self.on_rest(index, &pipe);
        }
    }

    /// Reads once; whether more may be there.
    fn read_output(&mut self, index: usize, pipe: usize) -> bool {
        let Some(Pipe { fd, token, stream, partial, parts }) = &mut self.plugins[index].pipes[pipe] else {
            return false;
        };
        let (token, stream, mut parts) = (*token, *stream, *parts);
        let count = match rustix::io::read(&*fd, &mut self.scratch[..]) {
            Ok(0) => {
                // Closed by the plugin: nothing more will come, and a readable end of file would spin.
                let closed = self.plugins[index].pipes[pipe].take();
                self.sources.remove(&token);
                if let Some(closed) = closed {
                    self.on_rest(index, &closed);
                }
                return false;
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        let mut lines = std::mem::take(partial);
        lines.extend_from_slice(&self.scratch[..count]);
        let on_line = |line: &[u8], part| self.on_output_line(index, stream, line, part);
        let rest = cut(&lines, &mut parts, on_line).to_vec();
        if let Some(pipe) = &mut self.plugins[index].pipes[pipe] {
            pipe.partial = rest;
            pipe.parts = parts;
        }
        true
    }

    /// What stands in a pipe that has closed without a newline.
    fn on_rest(&mut self, index: usize, pipe: &Pipe) {
        if !pipe.partial.is_empty() {
            self.on_output_line(index, pipe.stream, &pipe.partial, last_part(pipe.parts));
        }
    }

    fn on_output_line(&mut self, index: usize, stream: Stream, line: &[u8], part: Option<u64>) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let plugin = &mut self.plugins[index];
        if stream == Stream::Stderr {
            let tail = Arc::make_mut(&mut plugin.stderr_tail);
            if tail.len() == STDERR_LINES_KEPT {
                tail.pop_front();
            }
            let kept = &line[..line.len().min(500)];
            tail.push_back(String::from_utf8_lossy(kept).into_owned());
        }
        self.outlet.plugin_output(&plugin.metadata.id, stream, line, part);
    }
}

/// Hands on every line of `bytes` without its newline, and gives the rest, which is no whole line yet.
///
/// A longer line comes in parts, which end where they do however the bytes were read: the rest has no newline and is no
/// longer than a part, so that it stands before the next bytes as if nothing had been cut. `parts` counts those that were
/// handed on of the line that the rest belongs to; they are numbered from 1, and a line that is whole has no number.
fn cut<'a>(bytes: &'a [u8], parts: &mut u64, mut on_line: impl FnMut(&'a [u8], Option<u64>)) -> &'a [u8] {
    let mut rest = bytes;
    loop {
        // The newline after a line of exactly this size is its own, not that of an empty line.
        if let Some(end) = rest.iter().take(OUTPUT_LINE_BYTES_MAX + 1).position(|&byte| byte == b'\n') {
            on_line(&rest[..end], last_part(*parts));
            *parts = 0;
            rest = &rest[end + 1..];
        } else if rest.len() > OUTPUT_LINE_BYTES_MAX {
            let (part, more) = rest.split_at(OUTPUT_LINE_BYTES_MAX);
            *parts += 1;
            on_line(part, Some(*parts));
            rest = more;
        } else {
            return rest;
        }
    }
}

/// The number of what ends a line of which so many parts were handed on.
fn last_part(parts: u64) -> Option<u64> {
    (parts > 0).then_some(parts + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of bytes that come in `chunks`, and of the rest when the pipe closes.
    fn lines<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<(Option<u64>, Vec<u8>)> {
        let (mut lines, mut partial, mut parts) = (vec![], vec![], 0);
        for chunk in chunks {
            partial.extend_from_slice(chunk);
            partial = cut(&partial, &mut parts, |line, part| lines.push((part, line.to_vec()))).to_vec();
        }
        if !partial.is_empty() {
            lines.push((last_part(parts), partial));
        }
        lines
    }

    #[test]
    fn lines_after_a_long_one_are_lines() {
        let long = vec![b'x'; OUTPUT_LINE_BYTES_MAX];
        for more in [0, 1, 17, OUTPUT_LINE_BYTES_MAX] {
            let bytes = [&long[..], &long[..more], b"\n{\"level\":\"error\"}\n\nthe cause\n"].concat();
            let mut wanted = vec![((more > 0).then_some(1), long.clone())];
            wanted.extend((more > 0).then(|| (Some(2), long[..more].to_vec())));
            wanted
                .extend([&b"{\"level\":\"error\"}"[..], b"", b"the cause"].map(|line| (None, line.to_vec())));
            assert_eq!(lines([&bytes[..]]), wanted, "a line {more} bytes too long");
        }
    }

    proptest! {
        /// Where a read ends is chance: it changes no line.
        #[test]
        fn reads_change_no_line(
            runs in proptest::collection::vec((0..3 * OUTPUT_LINE_BYTES_MAX, any::<u8>(), any::<bool>()), 0..6),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut bytes = vec![];
            for (size, byte, ends) in runs {
                // Sizes next to the limit are the ones that matter.
                let size = if size % 3 == 0 { OUTPUT_LINE_BYTES_MAX - 2 + size % 5 } else { size };
                bytes.resize(bytes.len() + size, byte);
                bytes.extend(ends.then_some(b'\n'));
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let whole = lines([&bytes[..]]);
            prop_assert_eq!(&lines(cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]])), &whole);
            prop_assert!(whole.iter().all(|(_, line)| line.len() <= OUTPUT_LINE_BYTES_MAX && !line.contains(&b'\n')));
        }
    }
}
