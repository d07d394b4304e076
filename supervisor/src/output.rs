//! What plugins write to their standard streams: cut into lines, handed on, the last ones kept for a crash.

use std::sync::Arc;

use crate::plugin::Pipe;
use crate::{Stream, Supervisor};

/// A longer line of a plugin's output is cut into lines of this size.
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
            if !pipe.partial.is_empty() {
                self.on_output_line(index, pipe.stream, &pipe.partial);
            }
        }
    }

    /// Reads once; whether more may be there.
    fn read_output(&mut self, index: usize, pipe: usize) -> bool {
        let Some(Pipe { fd, token, stream, partial }) = &mut self.plugins[index].pipes[pipe] else {
            return false;
        };
        let (token, stream) = (*token, *stream);
        let count = match rustix::io::read(&*fd, &mut self.scratch[..]) {
            Ok(0) => {
                // Closed by the plugin: nothing more will come, and a readable end of file would spin.
                let closed = self.plugins[index].pipes[pipe].take();
                self.sources.remove(&token);
                if let Some(closed) = closed.filter(|closed| !closed.partial.is_empty()) {
                    self.on_output_line(index, stream, &closed.partial);
                }
                return false;
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return true,
            Err(_) => return false,
        };
        let mut lines = std::mem::take(partial);
        lines.extend_from_slice(&self.scratch[..count]);
        let mut rest = &lines[..];
        while let Some(end) = rest.iter().take(OUTPUT_LINE_BYTES_MAX).position(|&byte| byte == b'\n') {
            self.on_output_line(index, stream, &rest[..end]);
            rest = &rest[end + 1..];
        }
        while rest.len() >= OUTPUT_LINE_BYTES_MAX {
            let (line, more) = rest.split_at(OUTPUT_LINE_BYTES_MAX);
            self.on_output_line(index, stream, line);
            rest = more;
        }
        let rest = rest.to_vec();
        if let Some(pipe) = &mut self.plugins[index].pipes[pipe] {
            pipe.partial = rest;
        }
        true
    }

    fn on_output_line(&mut self, index: usize, stream: Stream, line: &[u8]) {
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
        self.outlet.plugin_output(&plugin.metadata.id, stream, line);
    }
}
