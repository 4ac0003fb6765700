//! Decodes a compressed body, to read it; the node gets the compressed bytes.
//!
//! Called by proxy for `Content-Encoding: zstd` on the `/v1` JSON routes. Must never decode more than Ollama would.
//! Source: `ollama-api.md` §1.2.

use std::io::Read;

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Ollama's bound on a decoded body.
pub const DECODED_BYTES_MAX: usize = 20 << 20;
/// Ollama's bound on a frame's window.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// Bytes copied out in one turn: as many as the largest block has, so that a turn is one of the two.
const TURN_BYTES: usize = 128 << 10;
/// Magic number and length of a frame of other data.
const SKIPPED_HEAD: usize = 8;

/// A decoded copy of the body, made in turns: the thread's other tasks run after each block of at most 128 KiB. `None` when
/// it is not zstd, is cut short, or exceeds Ollama's limits: the node refuses it in its own words. Cancel safe: nothing is
/// kept.
pub async fn zstd_in_turns(body: &[u8]) -> Option<Vec<u8>> {
    let mut unpacking = Unpacking::new(body);
    while unpacking.turn()? {
        tokio::task::yield_now().await;
    }
    Some(unpacking.out)
}

/// A body on its way out of its frames.
struct Unpacking<'b> {
    rest: &'b [u8],
    frame: Option<FrameDecoder>,
    out: Vec<u8>,
}

impl<'b> Unpacking<'b> {
    fn new(body: &'b [u8]) -> Self {
        Self { rest: body, frame: None, out: Vec::new() }
    }

    /// Reads a frame's head, decodes one block, or copies out what one block may hold; false when all is done, `None` when
    /// the node would refuse it.
    fn turn(&mut self) -> Option<bool> {
        let Some(frame) = &mut self.frame else {
            // A body may be several frames in a row, and frames of other data between them.
            return if self.rest.is_empty() { Some(false) } else { self.begin_frame() };
        };
        if frame.can_collect() > 0 {
            let from = self.out.len();
            self.out.resize(from + TURN_BYTES, 0);
            let read = frame.read(&mut self.out[from..]).ok()?;
            self.out.truncate(from + read);
            if self.out.len() > DECODED_BYTES_MAX {
                return None;
            }
        } else if frame.is_finished() {
            self.frame = None;
        } else {
            frame.decode_blocks(&mut self.rest, BlockDecodingStrategy::UptoBlocks(1)).ok()?;
        }
        Some(true)
    }

    fn begin_frame(&mut self) -> Option<bool> {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(WINDOW_BYTES_MAX);
        let mut rest = self.rest;
        match frame.init(&mut rest) {
            Ok(()) => (self.rest, self.frame) = (rest, Some(frame)),
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                self.rest = self.rest.get(SKIPPED_HEAD.checked_add(usize::try_from(length).ok()?)?..)?;
            }
            Err(_) => return None,
        }
        Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same in one go.
    fn zstd(body: &[u8]) -> Option<Vec<u8>> {
        let mut unpacking = Unpacking::new(body);
        while unpacking.turn()? {}
        Some(unpacking.out)
    }
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

    #[tokio::test]
    async fn a_turn_decodes_one_block_and_others_run_in_between() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n.wrapping_mul(0x9E37_79B9) >> 20).to_le_bytes()).collect();
        let body = [packed(&text[..500_000]), packed(&text[500_000..])].concat();
        let mut unpacking = Unpacking::new(&body);
        let (mut turns, mut before) = (0, (0, 0));
        while unpacking.turn().unwrap() {
            turns += 1;
            let frame = unpacking.frame.as_ref();
            let now = (unpacking.out.len(), frame.map_or(0, FrameDecoder::blocks_decoded));
            assert!(now.0 - before.0 <= TURN_BYTES, "{} bytes copied in one turn", now.0 - before.0);
            assert!(now.1 <= before.1 + 1 || frame.is_none(), "{} blocks in one turn", now.1 - before.1);
            before = now;
        }
        assert!(turns > 2 * text.len() / TURN_BYTES);
        assert!(unpacking.out == text);
        let (ran, done) = (std::cell::Cell::new(0), std::cell::Cell::new(false));
        let decode = async {
            let decoded = zstd_in_turns(&body).await;
            done.set(true);
            decoded
        };
        let other = async {
            while !done.get() {
                ran.set(ran.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        let (decoded, ()) = tokio::join!(decode, other);
        assert!(ran.get() >= turns, "{} runs in {turns} turns", ran.get());
        assert!(decoded.as_deref() == Some(&text[..]));
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
