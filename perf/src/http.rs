//! Just enough HTTP/1.1 for both ends of a measurement: an incremental reader of answers and of request heads.
//!
//! Called by `load`, `backend` and `peers`. Cheap on purpose (it runs on the core that must not be the bottleneck) and
//! strict on purpose: what it does not expect is an error, never a guess.

use memchr::memmem;

const HEAD_BYTES_MAX: usize = 64 * 1024;

/// What follows in an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Head,
    Fixed(usize),
    Size { value: usize, digits: bool, extension: bool },
    Data(usize),
    DataEnd,
    Trailer { empty: bool },
    Done,
}

/// Reads one answer after another from a keep-alive connection.
#[derive(Debug)]
pub(crate) struct Answers {
    state: State,
    /// A head that came in pieces.
    head: Vec<u8>,
    status: u16,
    keep: bool,
}

impl Answers {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, head: Vec::new(), status: 0, keep: true }
    }

    /// Status of the answer that is being read, or was read last.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Whether the connection can carry another request.
    pub(crate) fn keeps(&self) -> bool {
        self.keep
    }

    /// Reads `input` up to the end of one answer; body bytes go to `body` in order. Says how much was taken and whether
    /// the answer is whole.
    pub(crate) fn feed(&mut self, input: &[u8], body: &mut dyn FnMut(&[u8])) -> Result<(usize, bool), String> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match self.state {
                State::Head => at += self.take_head(rest)?,
                State::Fixed(left) => {
                    let take = left.min(rest.len());
                    body(&rest[..take]);
                    at += take;
                    self.state = if take == left { State::Done } else { State::Fixed(left - take) };
                }
                State::Size { .. } => {
                    at += 1;
                    self.size(rest[0])?;
                }
                State::Data(left) => {
                    let take = left.min(rest.len());
                    body(&rest[..take]);
                    at += take;
                    self.state = if take == left { State::DataEnd } else { State::Data(left - take) };
                }
                State::DataEnd => {
                    at += 1;
                    match rest[0] {
                        b'\r' => {}
                        b'\n' => self.state = State::Size { value: 0, digits: false, extension: false },
                        other => return Err(format!("byte {other} after a chunk")),
                    }
                }
                State::Trailer { empty } => {
                    at += 1;
                    self.state = match rest[0] {
                        b'\r' => State::Trailer { empty },
                        b'\n' if empty => State::Done,
                        b'\n' => State::Trailer { empty: true },
                        _ => State::Trailer { empty: false },
                    };
                }
                State::Done => {}
            }
            if self.state == State::Done {
                self.state = State::Head;
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    fn take_head(&mut self, rest: &[u8]) -> Result<usize, String> {
        if self.head.is_empty()
            && let Some(end) = memmem::find(rest, b"\r\n\r\n")
        {
            self.parse(&rest[..end + 2])?;
            return Ok(end + 4);
        }
        let before = self.head.len();
        self.head.extend_from_slice(rest);
        let Some(end) = memmem::find(&self.head, b"\r\n\r\n") else {
            return if self.head.len() > HEAD_BYTES_MAX {
                Err("a head without end".to_owned())
            } else {
                Ok(rest.len())
            };
        };
        let head = std::mem::take(&mut self.head);
        self.parse(&head[..end + 2])?;
        Ok(end + 4 - before)
    }

    fn parse(&mut self, head: &[u8]) -> Result<(), String> {
        let status = head.get(9..12).and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
        let (true, Some(status)) = (head.starts_with(b"HTTP/1.1 "), status) else {
            return Err(format!("no HTTP/1.1 answer: {}", shown(head)));
        };
        self.status = status;
        self.keep = true;
        let mut state = None;
        each_header(head, |name, value| {
            if name.eq_ignore_ascii_case(b"content-length") {
                state = number(value).map(|length| if length == 0 { State::Done } else { State::Fixed(length) });
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                state = Some(State::Size { value: 0, digits: false, extension: false });
            } else if name.eq_ignore_ascii_case(b"connection") && value.eq_ignore_ascii_case(b"close") {
                self.keep = false;
            }
        });
        self.state = state.ok_or_else(|| format!("an answer without length: {}", shown(head)))?;
        Ok(())
    }

    fn size(&mut self, byte: u8) -> Result<(), String> {
        let State::Size { value, digits, extension } = self.state else { return Ok(()) };
        let hex = char::from(byte).to_digit(16).and_then(|digit| usize::try_from(digit).ok());
        self.state = match (byte, hex) {
            (b'\n', _) if digits && value == 0 => State::Trailer { empty: true },
            (b'\n', _) if digits => State::Data(value),
            (b'\r' | b' ', _) if digits => self.state,
            (b';', _) if digits => State::Size { value, digits, extension: true },
            _ if extension => self.state,
            (_, Some(digit)) if value < 1 << 40 => State::Size { value: value * 16 + digit, digits: true, extension },
            _ => return Err(format!("byte {byte} in the size of a chunk")),
        };
        Ok(())
    }
}

/// Method and path of a request, and how long its body is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct RequestHead {
    pub(crate) post: bool,
    pub(crate) path: String,
    pub(crate) length: usize,
    /// Bytes of the head itself.
    pub(crate) bytes: usize,
}

/// The head at the start of `input`; `None` while it is not whole.
pub(crate) fn request_head(input: &[u8]) -> Result<Option<RequestHead>, String> {
    let Some(end) = memmem::find(input, b"\r\n\r\n") else {
        return if input.len() > HEAD_BYTES_MAX { Err("a head without end".to_owned()) } else { Ok(None) };
    };
    let head = &input[..end + 2];
    let line = head.split(|&b| b == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&b| b == b' ');
    let (Some(method), Some(path), Some(_)) = (words.next(), words.next(), words.next()) else {
        return Err(format!("no request: {}", shown(head)));
    };
    let (mut length, mut chunked) = (Some(0), false);
    each_header(head, |name, value| {
        if name.eq_ignore_ascii_case(b"content-length") {
            length = number(value);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            chunked = true;
        }
    });
    if chunked {
        return Err("a chunked request body; every client here sends a length".to_owned());
    }
    let length = length.ok_or("an unreadable length")?;
    let path = String::from_utf8_lossy(path).into_owned();
    Ok(Some(RequestHead { post: method == b"POST", path, length, bytes: end + 4 }))
}

/// Calls `each` with every header of a head that ends with a line break.
fn each_header(head: &[u8], mut each: impl FnMut(&[u8], &[u8])) {
    let mut lines = memmem::find_iter(head, b"\r\n");
    let Some(mut from) = lines.next() else { return };
    for end in lines {
        let line = &head[from + 2..end];
        from = end;
        if let Some(colon) = memchr::memchr(b':', line) {
            each(&line[..colon], line[colon + 1..].trim_ascii());
        }
    }
}

fn number(value: &[u8]) -> Option<usize> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1A;x=1\r\n, this is twenty-six bytes\r\n0\r\n\r\n";
    const FIXED: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length:  4\r\nConnection: close\r\n\r\nnope";

    fn read(input: &[u8], step: usize) -> (Vec<u8>, usize, Answers) {
        let (mut answers, mut body, mut whole) = (Answers::new(), Vec::new(), 0);
        for piece in input.chunks(step) {
            let mut at = 0;
            while at < piece.len() {
                let (taken, done) = answers.feed(&piece[at..], &mut |bytes| body.extend_from_slice(bytes)).unwrap();
                at += taken;
                whole += usize::from(done);
            }
        }
        (body, whole, answers)
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        let both = [CHUNKED, FIXED].concat();
        for step in 1..=both.len() {
            let (body, whole, answers) = read(&both, step);
            assert_eq!(body, b"hello, this is twenty-six bytesnope", "in pieces of {step}");
            assert_eq!((whole, answers.status(), answers.keeps()), (2, 404, false));
        }
    }

    #[test]
    fn an_answer_without_length_or_with_a_wrong_chunk_is_an_error() {
        let fails = |input: &[u8]| Answers::new().feed(input, &mut |_| {}).is_err();
        assert!(fails(b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n"));
        assert!(fails(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n"));
        assert!(fails(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"));
        assert!(fails(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab"));
    }

    #[test]
    fn an_empty_answer_ends_at_once() {
        let (body, whole, _) = read(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", 7);
        assert_eq!((body.len(), whole), (0, 1));
    }

    #[test]
    fn request_heads_tell_path_and_length() {
        let input = b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 12\r\n\r\nbody";
        let head = request_head(input).unwrap().unwrap();
        assert_eq!((head.post, head.path.as_str(), head.length, head.bytes), (true, "/api/chat", 12, input.len() - 4));
        assert_eq!(request_head(&input[..30]).unwrap(), None);
        assert!(request_head(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }
}
