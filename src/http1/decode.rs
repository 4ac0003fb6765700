//! The response decoder: head, then body by its framing. One per response; called with whatever the socket gave.

use super::chunked::{Chunked, Chunks, Step};
use super::{DecodeError, Framing, Item, ResponseHead, head};

/// Interim answers before the final one. A node sends at most one `100 Continue`.
const INTERIM_MAX: u32 = 16;

/// Decodes one response from any split of its bytes.
///
/// ```
/// use herdgate::http1::{Item, ResponseDecoder};
/// let mut decoder = ResponseDecoder::new(false, 64 * 1024);
/// let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
/// let (used, item) = decoder.feed(bytes)?;
/// assert!(matches!(item, Item::Head(_)));
/// let (more, item) = decoder.feed(&bytes[used..])?;
/// assert!(matches!(item, Item::Data(b"hi")));
/// assert!(matches!(decoder.feed(&bytes[used + more..])?, (0, Item::End)));
/// # Ok::<(), herdgate::http1::DecodeError>(())
/// ```
#[derive(Debug)]
pub struct ResponseDecoder {
    state: State,
    /// Bytes of a head that came in pieces.
    partial: Vec<u8>,
    /// A buffer for the lines of the head.
    spare: Vec<u8>,
    to_head: bool,
    head_bytes_max: usize,
    interim: u32,
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Ended,
    /// An error was reported; nothing more comes of it.
    Failed(DecodeError),
}

impl ResponseDecoder {
    /// A decoder for one response. `method_is_head`: the request was a HEAD, so there is no body whatever the head
    /// says. `head_bytes_max` bounds the head, and the trailer section.
    #[must_use]
    pub fn new(method_is_head: bool, head_bytes_max: usize) -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            spare: Vec::new(),
            to_head: method_is_head,
            head_bytes_max,
            interim: 0,
        }
    }

    /// Begins with another response, whose head's lines go into the buffer `spare`.
    pub fn restart(&mut self, method_is_head: bool, spare: Vec<u8>) {
        self.state = State::Head;
        self.partial.clear();
        self.spare = spare;
        self.to_head = method_is_head;
        self.interim = 0;
    }

    /// Takes bytes up to the next item and says how many. [`Item::More`] means that all were taken; after
    /// [`Item::Head`] and [`Item::Data`] call again with the rest, even if that is empty; [`Item::End`] repeats.
    ///
    /// # Errors
    /// The bytes are not a response, or one we refuse; every later call repeats the error.
    pub fn feed<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Item<'a>), DecodeError> {
        let result = match &mut self.state {
            State::Head => self.feed_head(input),
            State::Length(left) => {
                let take = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::Ended;
                }
                Ok((take, if take == 0 { Item::More } else { Item::Data(&input[..take]) }))
            }
            State::Chunked(chunked) => match chunked.step(input) {
                Ok(Step::More) => Ok((input.len(), Item::More)),
                Ok(Step::Data { start, end }) => Ok((end, Item::Data(&input[start..end]))),
                Ok(Step::End(used)) => {
                    self.state = State::Ended;
                    Ok((used, Item::End))
                }
                Err(error) => Err(error),
            },
            State::UntilClose if input.is_empty() => Ok((0, Item::More)),
            State::UntilClose => Ok((input.len(), Item::Data(input))),
            State::Ended => Ok((0, Item::End)),
            State::Failed(error) => Err(error.clone()),
        };
        if let Err(error) = &result {
            self.state = State::Failed(error.clone());
        }
        result
    }

    /// Takes the whole plain chunks that `input` begins with, all at once; none where anything else is due. What follows
    /// them is for [`ResponseDecoder::feed`].
    pub fn run<'a>(&mut self, input: &'a [u8]) -> Chunks<'a> {
        match &mut self.state {
            State::Chunked(chunked) => chunked.run(input),
            _ => Chunks::none(input),
        }
    }

    /// The node closed its side: the end of a close-delimited body, else a cut.
    ///
    /// # Errors
    /// The message was not complete.
    pub fn eof(&mut self) -> Result<Item<'static>, DecodeError> {
        let error = match &self.state {
            State::Ended => return Ok(Item::End),
            State::UntilClose => {
                self.state = State::Ended;
                return Ok(Item::End);
            }
            State::Head if self.partial.is_empty() => DecodeError::ClosedEarly,
            State::Head => DecodeError::CutHead,
            State::Length(_) | State::Chunked(_) => DecodeError::CutBody,
            State::Failed(error) => error.clone(),
        };
        self.state = State::Failed(error.clone());
        Err(error)
    }

    /// The message is complete.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn feed_head<'a>(&mut self, input: &'a [u8]) -> Result<(usize, Item<'a>), DecodeError> {
        let mut used = 0;
        while used < input.len() {
            let Some((head, taken)) = self.take_head(&input[used..])? else { break };
            used += taken;
            if head.status == http::StatusCode::SWITCHING_PROTOCOLS {
                return Err(DecodeError::Upgrade);
            }
            if !head.status.is_informational() {
                self.state = match head.framing {
                    Framing::None | Framing::Length(0) => State::Ended,
                    Framing::Length(length) => State::Length(length),
                    Framing::Chunked => State::Chunked(Chunked::new(self.head_bytes_max)),
                    Framing::UntilClose => State::UntilClose,
                };
                return Ok((used, Item::Head(head)));
            }
            self.spare = head.lines.into_buffer();
            self.interim += 1;
            if self.interim > INTERIM_MAX {
                return Err(DecodeError::Head("too many interim responses"));
            }
        }
        Ok((input.len(), Item::More))
    }

    /// One head, whole in `input` (the usual case: no copy) or completed by it; the number is what it took of `input`.
    fn take_head(&mut self, input: &[u8]) -> Result<Option<(ResponseHead, usize)>, DecodeError> {
        let too_large = DecodeError::HeadTooLarge { max: self.head_bytes_max };
        if self.partial.is_empty() {
            // httparse would skip blank lines, and then its end and ours would differ.
            if matches!(input.first(), Some(b'\r' | b'\n')) {
                return Err(DecodeError::Head("status line"));
            }
            match head::parse(input, self.to_head, &mut self.spare)? {
                Some((_, length)) if length > self.head_bytes_max => return Err(too_large),
                Some(found) => return Ok(Some(found)),
                None if input.len() >= self.head_bytes_max => return Err(too_large),
                None => self.partial.extend_from_slice(input),
            }
            return Ok(None);
        }
        let before = self.partial.len();
        let room = self.head_bytes_max.saturating_sub(before).min(input.len());
        self.partial.extend_from_slice(&input[..room]);
        // Only the new bytes are searched (and three before them), so that a head in tiny pieces stays linear.
        let Some(end) = head_end(&self.partial, before.saturating_sub(3)) else {
            let full = self.partial.len() >= self.head_bytes_max;
            return if full { Err(too_large) } else { Ok(None) };
        };
        let parsed = head::parse(&self.partial[..end], self.to_head, &mut self.spare)?;
        self.partial.clear();
        match parsed {
            Some((head, length)) if length == end && end > before => Ok(Some((head, end - before))),
            _ => Err(DecodeError::Head("line end")),
        }
    }
}

/// One past the blank line, searching from `from`. Lines may end with a bare LF, as httparse allows.
#[must_use]
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    memchr::memchr_iter(b'\n', &bytes[from..]).map(|at| from + at).find_map(|at| match bytes.get(at + 1..) {
        Some([b'\n', ..]) => Some(at + 2),
        Some([b'\r', b'\n', ..]) => Some(at + 3),
        _ => None,
    })
}
