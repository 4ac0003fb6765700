//! A strict reader of requests, written from RFC 9112 and RFC 9110 alone. Shares no code with the proxy.
//!
//! It takes a byte stream apart into requests, up to the first byte that the grammar does not allow. Where the RFCs let a
//! recipient mend a message in one defined way, [`Reader::Mending`] does that; [`Reader::Strict`] refuses it.

/// How much is mended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    /// Nothing.
    Strict,
    /// What RFC 9112 defines: blank lines before a request (2.2), chunks outrank a length and end the connection (6.3),
    /// the same length said twice (6.3); and a lone LF as the end of a line of the head (2.2).
    Mending,
}

/// One request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names lower-cased, values without the space around them.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// How a stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// With a whole request.
    Clean,
    /// In the middle of one.
    Cut,
    /// With something that is none.
    Refused,
}

/// The requests of a stream, in order.
pub(crate) fn read(reader: Reader, bytes: &[u8]) -> (Vec<Request>, End) {
    let mut input = Input { rest: bytes, reader };
    let mut requests = Vec::new();
    while !input.rest.is_empty() {
        match input.request() {
            Ok((request, closes)) => {
                requests.push(request);
                if closes {
                    return (requests, End::Clean);
                }
            }
            Err(end) => return (requests, end),
        }
    }
    (requests, End::Clean)
}

struct Input<'a> {
    rest: &'a [u8],
    reader: Reader,
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// VCHAR, obs-text, or the space between them.
fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || byte == b' ' || (byte > 0x20 && byte != 0x7f)
}

impl<'a> Input<'a> {
    fn mends(&self) -> bool {
        self.reader == Reader::Mending
    }

    /// A line without its end.
    fn line(&mut self) -> Result<&'a [u8], End> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or(End::Cut)?;
        let (line, rest) = self.rest.split_at(end);
        self.rest = &rest[1..];
        match line.strip_suffix(b"\r") {
            Some(line) => Ok(line),
            None if self.mends() => Ok(line),
            None => Err(End::Refused),
        }
    }

    fn request(&mut self) -> Result<(Request, bool), End> {
        let mut line = self.line()?;
        while line.is_empty() && self.mends() {
            line = self.line()?;
        }
        let line = std::str::from_utf8(line).map_err(|_| End::Refused)?;
        let words: Vec<&str> = line.split(' ').collect();
        let [method, target, version] = words[..] else { return Err(End::Refused) };
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte > 0x20 && byte < 0x7f);
        if !(plain(method) && method.bytes().all(is_token) && plain(target)) {
            return Err(End::Refused);
        }
        let old = match version {
            "HTTP/1.1" => false,
            "HTTP/1.0" => true,
            _ => return Err(End::Refused),
        };
        let fields = self.fields()?;
        let mut request = Request { method: method.to_owned(), target: target.to_owned(), fields, body: Vec::new() };
        let hosts = request.values("host").len();
        if hosts > 1 || (hosts == 0 && !old) {
            return Err(End::Refused);
        }
        let mut closes = old || request.values("connection").iter().any(|value| names(value, "close"));
        closes |= self.body(&mut request, old)?;
        Ok((request, closes))
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>, End> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(End::Refused)?;
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            if name.is_empty() || !name.iter().copied().all(is_token) || !value.iter().copied().all(is_field_byte) {
                return Err(End::Refused);
            }
            let value = String::from_utf8_lossy(value);
            let value = value.trim_matches([' ', '\t']).to_owned();
            fields.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value));
        }
    }

    /// Reads the body; whether it ends the connection.
    fn body(&mut self, request: &mut Request, old: bool) -> Result<bool, End> {
        let codings = request.values("transfer-encoding");
        let lengths = request.values("content-length");
        for length in &lengths {
            if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(End::Refused);
            }
        }
        let one_length = lengths.windows(2).all(|pair| pair[0] == pair[1]);
        if !codings.is_empty() {
            if codings.len() > 1 || !codings[0].eq_ignore_ascii_case("chunked") || old {
                return Err(End::Refused);
            }
            let both = !lengths.is_empty();
            let mended = self.mends() && one_length;
            if both && !mended {
                return Err(End::Refused);
            }
            request.body = self.chunks()?;
            return Ok(both);
        }
        if lengths.len() > 1 && !(self.mends() && one_length) {
            return Err(End::Refused);
        }
        let length = lengths.first().map_or(Ok(0), |length| length.parse::<usize>().map_err(|_| End::Refused))?;
        if length > self.rest.len() {
            return Err(End::Cut);
        }
        let (body, rest) = self.rest.split_at(length);
        self.rest = rest;
        request.body = body.to_vec();
        Ok(false)
    }

    /// A chunk's line and its end take no mending: there a lone LF has made two servers disagree.
    fn chunks(&mut self) -> Result<Vec<u8>, End> {
        let reader = std::mem::replace(&mut self.reader, Reader::Strict);
        let chunks = self.strict_chunks();
        self.reader = reader;
        chunks
    }

    fn strict_chunks(&mut self) -> Result<Vec<u8>, End> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let after = &line[digits..];
            // chunk-ext begins with a semicolon, and bad whitespace may stand before it.
            let blank = after.iter().take_while(|byte| b" \t".contains(byte)).count();
            let extension = &after[blank..];
            let good = extension.is_empty() || extension[0] == b';';
            if digits == 0 || digits > 15 || !good || !extension.iter().copied().all(is_field_byte) {
                return Err(End::Refused);
            }
            let size =
                usize::from_str_radix(&String::from_utf8_lossy(&line[..digits]), 16).map_err(|_| End::Refused)?;
            if size == 0 {
                self.fields()?;
                return Ok(body);
            }
            if self.rest.len() < size + 2 {
                // A wrong end may show before all is there.
                return Err(if self.rest.len() > size && self.rest[size] != b'\r' { End::Refused } else { End::Cut });
            }
            body.extend_from_slice(&self.rest[..size]);
            if &self.rest[size..size + 2] != b"\r\n" {
                return Err(End::Refused);
            }
            self.rest = &self.rest[size + 2..];
        }
    }
}

/// Whether a comma list holds a token.
fn names(list: &str, token: &str) -> bool {
    list.split(',').any(|item| item.trim().eq_ignore_ascii_case(token))
}

#[test]
fn the_grammar_and_what_may_be_mended() {
    use End::{Clean, Cut, Refused};
    use Reader::{Mending, Strict};
    let host = "POST /a HTTP/1.1\r\nHost: a\r\n";
    type Seen = (usize, End);
    let cases: &[(&str, Seen, Seen)] = &[
        ("\r\n", (1, Clean), (1, Clean)),
        ("Content-Length: 2\r\n\r\nab", (1, Clean), (1, Clean)),
        ("Content-Length: 3\r\n\r\nab", (0, Cut), (0, Cut)),
        ("Content-Length: +2\r\n\r\nab", (0, Refused), (0, Refused)),
        ("Content-Length : 2\r\n\r\nab", (0, Refused), (0, Refused)),
        ("Content-Length: 2\r\nContent-Length: 2\r\n\r\nab", (0, Refused), (1, Clean)),
        ("Content-Length: 2\r\nContent-Length: 1\r\n\r\nab", (0, Refused), (0, Refused)),
        ("Transfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n", (1, Clean), (1, Clean)),
        ("Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", (0, Refused), (0, Refused)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", (0, Refused), (1, Clean)),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", (0, Refused), (0, Refused)),
        ("X: a\n\r\n", (0, Refused), (1, Clean)),
        ("X: a\r\n b\r\n\r\n", (0, Refused), (0, Refused)),
        ("Host: b\r\n\r\n", (0, Refused), (0, Refused)),
        ("\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n", (2, Clean), (2, Clean)),
    ];
    for (text, strict, mended) in cases {
        let bytes = format!("{host}{text}");
        for (reader, expected) in [(Strict, strict), (Mending, mended)] {
            let (requests, end) = read(reader, bytes.as_bytes());
            assert_eq!((requests.len(), end), *expected, "{reader:?}: {bytes:?}");
        }
    }
}
