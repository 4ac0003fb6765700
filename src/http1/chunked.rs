//! The chunked transfer coding, one byte class at a time. Source: RFC 9112 §7.1. Called by the decoder only.
//!
//! Lines end with CRLF and nothing else; extensions and trailers are read past, within bounds.

use super::DecodeError;

/// Longest size line, extensions included.
const SIZE_LINE_MAX: usize = 4096;

/// Where in a chunk the decoder stands.
#[derive(Clone, Copy, Debug)]
enum At {
    Size,
    /// Blanks after the size, as some servers pad it.
    Pad,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// What a call found; positions are relative to its input.
pub(super) enum Step {
    /// All input was taken.
    More,
    /// Payload `input[start..end]`, never empty; `end` bytes were taken.
    Data {
        /// First byte of the payload.
        start: usize,
        /// One past its last byte.
        end: usize,
    },
    /// The message ended after this many bytes.
    End(usize),
}

/// State between two calls.
#[derive(Debug)]
pub(super) struct Chunked {
    at: At,
    /// The size being read, then the payload bytes still to come.
    left: u64,
    digits: u32,
    /// Bytes of the current size line, or of the trailer section.
    line: usize,
    trailer_max: usize,
}

impl Chunked {
    pub(super) fn new(trailer_max: usize) -> Self {
        Self { at: At::Size, left: 0, digits: 0, line: 0, trailer_max }
    }

    pub(super) fn step(&mut self, input: &[u8]) -> Result<Step, DecodeError> {
        let mut pos = 0;
        while pos < input.len() {
            if matches!(self.at, At::Data) {
                let rest = input.len() - pos;
                let take = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.left -= take as u64;
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Step::Data { start: pos, end: pos + take });
            }
            let byte = input[pos];
            pos += 1;
            if self.advance(byte)? {
                return Ok(Step::End(pos));
            }
        }
        Ok(Step::More)
    }

    /// Length of the whole plain chunks that `input` begins with, where a chunk is due: no extension, none empty. They
    /// count as taken.
    pub(super) fn run(&mut self, input: &[u8]) -> usize {
        if !matches!(self.at, At::Size) || self.digits > 0 {
            return 0;
        }
        let mut at = 0;
        while let Some((_, taken)) = plain_chunk(&input[at..]) {
            at += taken;
        }
        at
    }

    /// Takes one framing byte; true after the last one of the message.
    fn advance(&mut self, byte: u8) -> Result<bool, DecodeError> {
        self.at = match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() => {
                self.add_digit(byte)?;
                At::Size
            }
            (At::Size, _) if self.digits == 0 => return Err(DecodeError::Chunk("size")),
            (At::Size | At::Pad, b' ' | b'\t') => self.in_line(At::Pad)?,
            (At::Size | At::Pad, b';') => At::Extension,
            (At::Size | At::Pad | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, b'\n') => return Err(DecodeError::Chunk("bare line feed")),
            (At::Extension, _) => self.in_line(At::Extension)?,
            (At::SizeLf, b'\n') => self.size_read(),
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::TrailerStart | At::Trailer, b'\n') => return Err(DecodeError::Chunk("bare line feed")),
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerStart | At::Trailer, _) => self.in_trailer()?,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::EndLf, b'\n') => return Ok(true),
            (At::Size | At::Pad, _) => return Err(DecodeError::Chunk("size")),
            _ => return Err(DecodeError::Chunk("line end")),
        };
        Ok(false)
    }

    fn add_digit(&mut self, byte: u8) -> Result<(), DecodeError> {
        let digit = char::from(byte).to_digit(16).ok_or(DecodeError::Chunk("size"))?;
        // Sixteen digits fill a u64; leading zeros count, so that the line is bounded.
        if self.digits == 16 {
            return Err(DecodeError::Chunk("size too large"));
        }
        self.digits += 1;
        self.left = (self.left << 4) | u64::from(digit);
        Ok(())
    }

    fn in_line(&mut self, next: At) -> Result<At, DecodeError> {
        self.line += 1;
        if self.line > SIZE_LINE_MAX {
            return Err(DecodeError::Chunk("size line too long"));
        }
        Ok(next)
    }

    fn in_trailer(&mut self) -> Result<At, DecodeError> {
        self.line += 1;
        if self.line > self.trailer_max {
            return Err(DecodeError::HeadTooLarge { max: self.trailer_max });
        }
        Ok(At::Trailer)
    }

    fn size_read(&mut self) -> At {
        self.digits = 0;
        self.line = 0;
        if self.left == 0 { At::TrailerStart } else { At::Data }
    }
}

/// Digits of a plain chunk's size; more are read the slow way.
const PLAIN_DIGITS_MAX: usize = 6;

/// The payload of the whole chunk at the start of `input` if it is plain, and all of its bytes.
#[inline]
fn plain_chunk(input: &[u8]) -> Option<(&[u8], usize)> {
    let (mut size, mut digits) = (0, 0);
    loop {
        let digit = match *input.get(digits)? {
            byte @ b'0'..=b'9' => byte - b'0',
            byte @ b'a'..=b'f' => byte - b'a' + 10,
            byte @ b'A'..=b'F' => byte - b'A' + 10,
            _ => break,
        };
        digits += 1;
        if digits > PLAIN_DIGITS_MAX {
            return None;
        }
        size = size << 4 | usize::from(digit);
    }
    let payload = input.get(digits + 2..digits + 2 + size)?;
    let end = input.get(digits + 2 + size..digits + 4 + size)?;
    (size > 0 && input[digits..].starts_with(b"\r\n") && end == b"\r\n").then_some((payload, digits + 4 + size))
}

/// Whole plain chunks, as they stand on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Chunks<'a>(pub(super) &'a [u8]);

impl<'a> Chunks<'a> {
    /// The bytes, framing included.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The payload of the first, and the others.
    #[must_use]
    pub fn split_first(self) -> Option<(&'a [u8], Self)> {
        let (payload, taken) = plain_chunk(self.0)?;
        Some((payload, Self(&self.0[taken..])))
    }

    /// The payload of each.
    pub fn payloads(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (payload, taken) = plain_chunk(rest)?;
            rest = &rest[taken..];
            Some(payload)
        })
    }
}
