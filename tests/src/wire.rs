//! Frames as bytes, for the fixtures.
//!
//! Written again here on purpose: a fixture that borrowed the codec of the core would share its
//! mistakes. Used by the plugins in `bin/`; knows nothing of HTTP.

use std::io::{self, BufRead};

/// How one connection is framed; its first byte decides (a length under 16 MiB starts with zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length,
    Lines,
}

/// Framing of the connection whose first byte waits in `reader`, or `None` at its end.
pub fn detect(reader: &mut impl BufRead) -> io::Result<Option<Framing>> {
    Ok(reader.fill_buf()?.first().map(|byte| match byte {
        b'{' => Framing::Lines,
        _ => Framing::Length,
    }))
}

/// Next frame's JSON text, or `None` at a clean end.
///
/// Errors: `UnexpectedEof` when the stream ends inside a frame, `InvalidData` for a length over `bytes_max`.
pub fn read_frame(
    reader: &mut impl BufRead,
    framing: Framing,
    bytes_max: usize,
) -> io::Result<Option<Vec<u8>>> {
    match framing {
        Framing::Lines => {
            let mut line = Vec::new();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(None);
            }
            Ok(Some(line))
        }
        Framing::Length => {
            if reader.fill_buf()?.is_empty() {
                return Ok(None);
            }
            let mut prefix = [0; 4];
            reader.read_exact(&mut prefix)?;
            let length = u32::from_be_bytes(prefix) as usize;
            if length > bytes_max {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            Ok(Some(body))
        }
    }
}

/// `json` as one frame.
pub fn frame(json: &[u8], framing: Framing) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(json.len() + 4);
    match framing {
        Framing::Length => {
            let length = u32::try_from(json.len()).expect("fixtures write frames under 4 GiB");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(json);
        }
        Framing::Lines => {
            bytes.extend_from_slice(json);
            bytes.push(b'\n');
        }
    }
    bytes
}
