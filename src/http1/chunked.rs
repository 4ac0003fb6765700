//! The chunked transfer coding, one byte class at a time. Source: RFC 9112 §7.1. Called by the decoder only.
//!
//! Lines end with CRLF and nothing else; extensions and trailers are read past, within bounds. A trailer is a field line
//! all the same: what is none (the head of another request, say) is not taken for one.

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
    TrailerName,
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

    /// The whole plain chunks that `input` begins with, where a chunk is due: no extension, none empty. They count as
    /// taken.
    pub(super) fn run<'a>(&mut self, input: &'a [u8]) -> Chunks<'a> {
        let mut run = Chunks::none(input);
        if !matches!(self.at, At::Size) || self.digits > 0 {
            return run;
        }
        while let Some((payload, taken)) = plain_chunk(&input[run.to..]) {
            run.note(payload, taken);
        }
        run
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
            (At::TrailerName, b':') => self.in_trailer(At::Trailer)?,
            (At::TrailerStart | At::TrailerName, _) if is_token(byte) => self.in_trailer(At::TrailerName)?,
            (At::TrailerStart | At::TrailerName, _) => return Err(DecodeError::Chunk("trailer")),
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Trailer, b'\t') => self.in_trailer(At::Trailer)?,
            (At::Trailer, ..b' ' | 0x7f) => return Err(DecodeError::Chunk("trailer")),
            (At::Trailer, _) => self.in_trailer(At::Trailer)?,
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

    fn in_trailer(&mut self, next: At) -> Result<At, DecodeError> {
        self.line += 1;
        if self.line > self.trailer_max {
            return Err(DecodeError::HeadTooLarge { max: self.trailer_max });
        }
        Ok(next)
    }

    fn size_read(&mut self) -> At {
        self.digits = 0;
        self.line = 0;
        if self.left == 0 { At::TrailerStart } else { At::Data }
    }
}

/// A byte of a field's name.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
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

/// Chunks at the end of a run whose places are remembered; a power of two.
const LAST_CHUNKS: usize = 8;

/// Whole plain chunks, as they stand on the wire, and what was seen of them when they were found: nobody who only needs
/// the sums or the last ones goes through them again.
#[derive(Clone, Copy, Debug)]
pub struct Chunks<'a> {
    input: &'a [u8],
    /// They lie in `input[from..to]`.
    from: usize,
    to: usize,
    count: usize,
    payload_bytes: usize,
    /// Of the chunks seen so far; never less than the longest that is left.
    longest: usize,
    all_end_lines: bool,
    /// Where the last ones begin: that of chunk `n` is at `n % LAST_CHUNKS`, of so many at the end.
    starts: [usize; LAST_CHUNKS],
    seen: usize,
    remembered: usize,
}

impl<'a> Chunks<'a> {
    /// None, at the start of `input`.
    #[must_use]
    pub fn none(input: &'a [u8]) -> Self {
        Self {
            input,
            from: 0,
            to: 0,
            count: 0,
            payload_bytes: 0,
            longest: 0,
            all_end_lines: true,
            starts: [0; LAST_CHUNKS],
            seen: 0,
            remembered: 0,
        }
    }

    fn note(&mut self, payload: &[u8], taken: usize) {
        self.starts[self.seen % LAST_CHUNKS] = self.to;
        self.seen += 1;
        self.remembered = LAST_CHUNKS.min(self.remembered + 1);
        self.count += 1;
        self.to += taken;
        self.payload_bytes += payload.len();
        self.longest = self.longest.max(payload.len());
        self.all_end_lines &= payload.last() == Some(&b'\n');
    }

    /// The bytes, framing included.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        &self.input[self.from..self.to]
    }

    /// How many they are.
    #[must_use]
    pub fn count(self) -> usize {
        self.count
    }

    /// Bytes of payload in all of them.
    #[must_use]
    pub fn payload_bytes(self) -> usize {
        self.payload_bytes
    }

    /// Each ends with a line feed, and none has more than `bytes` bytes of payload.
    #[must_use]
    pub fn are_lines_within(self, bytes: usize) -> bool {
        self.all_end_lines && self.longest <= bytes
    }

    /// The payload of the first, and the others.
    #[must_use]
    pub fn split_first(self) -> Option<(&'a [u8], Self)> {
        let (payload, taken) = plain_chunk(self.as_bytes())?;
        let (from, count, payload_bytes) = (self.from + taken, self.count - 1, self.payload_bytes - payload.len());
        Some((payload, Self { from, count, payload_bytes, ..self }))
    }

    /// The payload of each.
    pub fn payloads(self) -> impl Iterator<Item = &'a [u8]> {
        payloads(self.as_bytes())
    }

    /// The payloads of the last `count` of them, first to last; `None` where that many are not at hand.
    pub fn last(self, count: usize) -> Option<impl Iterator<Item = &'a [u8]>> {
        let first = self.start_of_last(count)?;
        Some(payloads(&self.input[first..self.to]))
    }

    /// Those before the chunk that holds the byte at `at` of [`Self::as_bytes`], all if that is its end, and the others;
    /// `None` where that chunk is not one of the last.
    #[must_use]
    pub fn split_before(self, at: usize) -> Option<(Self, Self)> {
        if at >= self.as_bytes().len() {
            return Some((self, Self::none(&self.input[self.to..])));
        }
        let holds = |&(_, start): &(usize, usize)| start <= self.from + at;
        let places = (1..=self.remembered).map_while(|count| Some((count, self.start_of_last(count)?)));
        let (count, start) = { places }.find(holds)?;
        let payload_bytes = payloads(&self.input[start..self.to]).map(<[u8]>::len).sum();
        let before = Self {
            to: start,
            count: self.count - count,
            payload_bytes: self.payload_bytes - payload_bytes,
            seen: self.seen - count,
            remembered: self.remembered - count,
            ..self
        };
        Some((before, Self { from: start, count, payload_bytes, remembered: count, ..self }))
    }

    /// Where the last `count` chunks begin, where that many are here and remembered.
    fn start_of_last(&self, count: usize) -> Option<usize> {
        let is_known = count > 0 && count <= self.count.min(self.remembered);
        is_known.then(|| self.starts[(self.seen - count) % LAST_CHUNKS])
    }
}

fn payloads(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (payload, taken) = plain_chunk(rest)?;
        rest = &rest[taken..];
        Some(payload)
    })
}
