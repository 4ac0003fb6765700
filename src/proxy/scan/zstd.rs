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

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn packed(text: &[u8]) -> Vec<u8> {
        compress_to_vec(text, CompressionLevel::Fastest)
    }

    #[test]
    fn a_recorded_body_is_read() {
        let path = format!("{}/tests/fixtures/transcripts/046-zstd-v1-chat.req", env!("CARGO_MANIFEST_DIR"));
        let request = std::fs::read(path).unwrap();
        let body = request.windows(4).position(|w| w == b"\r\n\r\n").map(|at| &request[at + 4..]).unwrap();
        let text = zstd(body).unwrap();
        let found = super::super::scan(&text, crate::dialect::Route::V1Chat);
        assert_eq!(found.model.as_deref(), Some("smollm2:135m"));
    }

    #[test]
    fn frames_follow_each_other() {
        // A frame that other programs may put in: its magic number, its length, bytes of no concern.
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let body = [&packed(b"{\"model\":")[..], skipped, &packed(b"\"m\"}")].concat();
        assert_eq!(zstd(&body).as_deref(), Some(&b"{\"model\":\"m\"}"[..]));
        assert_eq!(zstd(b"").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn what_the_node_refuses_is_left_to_it() {
        let whole = packed(&b"{\"model\":\"m\"}".repeat(1000));
        for cut in 0..whole.len() {
            assert!(cut == 0 || zstd(&whole[..cut]).is_none(), "cut at {cut}");
        }
        assert_eq!(zstd(b"{\"model\":\"m\"}"), None);
        assert_eq!(zstd(&[&whole[..], b"junk"].concat()), None);
        assert_eq!(zstd(b"\x50\x2a\x4d\x18\xff\xff\xff\xffabc"), None);
        // No single segment, window descriptor of 2^(10+14) bytes: one raw block of one byte.
        let wide = b"\x28\xb5\x2f\xfd\x00\x70\x09\x00\x00x";
        assert_eq!(zstd(wide), None);
        let narrow = b"\x28\xb5\x2f\xfd\x00\x68\x09\x00\x00x";
        assert_eq!(zstd(narrow).as_deref(), Some(&b"x"[..]), "8 MiB are allowed");
    }

    #[test]
    fn decoding_stops_at_the_bound() {
        // Blocks of one repeated byte: 128 KiB each from four bytes.
        let bomb = |blocks: usize| {
            let mut frame = b"\x28\xb5\x2f\xfd\x00\x68".to_vec();
            for at in 0..blocks {
                let header = (128 * 1024) << 3 | 1 << 1 | u32::from(at + 1 == blocks);
                frame.extend_from_slice(&header.to_le_bytes()[..3]);
                frame.push(b' ');
            }
            frame
        };
        assert_eq!(zstd(&bomb(160)).map(|text| text.len()), Some(DECODED_BYTES_MAX));
        assert_eq!(zstd(&bomb(161)), None);
        assert_eq!(zstd(&[bomb(160), bomb(1)].concat()), None);
        assert_eq!(zstd(&bomb(100_000)), None);
    }
}
