//! Decodes a compressed body, to read it; the node gets the compressed bytes.
//!
//! Called by proxy for `Content-Encoding: zstd` on the `/v1` JSON routes. Must never decode more than Ollama would.
//! Source: `ollama-api.md` §1.2.

use std::io::Read;

use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

/// Ollama's bound on a decoded body.
pub const DECODED_BYTES_MAX: usize = 20 << 20;
/// Ollama's bound on a frame's window.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// A decoded copy of the body. `None` when it is not zstd, is cut short, or exceeds Ollama's limits: the node refuses it
/// in its own words. Costs milliseconds for megabytes.
#[must_use]
pub fn zstd(body: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = body;
    // A body may be several frames in a row, and frames of other data between them.
    while !rest.is_empty() {
        let mut decoder = match StreamingDecoder::new_with_max_window_size(&mut rest, WINDOW_BYTES_MAX) {
            Ok(decoder) => decoder,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                rest = rest.get(usize::try_from(length).ok()?..)?;
                continue;
            }
            Err(_) => return None,
        };
        let room = DECODED_BYTES_MAX + 1 - out.len();
        decoder.by_ref().take(room as u64).read_to_end(&mut out).ok()?;
        if out.len() > DECODED_BYTES_MAX {
            return None;
        }
    }
    Some(out)
}
