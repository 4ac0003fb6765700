//! Raw exchanges: sends bytes, reads one answer, takes it apart.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longer than any answer takes; only a hang meets it.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn connect(node: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(node).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends a request and reads its whole answer.
pub(crate) fn exchange(node: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = connect(node);
    stream.write_all(request).unwrap();
    read_answer(&mut stream, request.starts_with(b"HEAD "))
}

/// A request with a JSON body.
pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1:11434\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Reads until the answer is complete or the connection ends.
pub(crate) fn read_answer(stream: &mut TcpStream, head_only: bool) -> Vec<u8> {
    let mut got = Vec::new();
    let mut buffer = [0; 16 << 10];
    while !complete(&got, head_only) {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(e) => panic!("{e} after {:?}", String::from_utf8_lossy(&got)),
        }
    }
    got
}

fn complete(got: &[u8], head_only: bool) -> bool {
    let Some(answer) = Answer::read(got) else { return false };
    if head_only || matches!(answer.status(), 204 | 304) {
        return true;
    }
    match (answer.header("Transfer-Encoding"), answer.header("Content-Length")) {
        (Some(_), _) => answer.body.ends_with(b"0\r\n\r\n"),
        (_, Some(length)) => answer.body.len() >= length.parse::<usize>().unwrap(),
        _ => false,
    }
}

/// An answer, taken apart.
pub(crate) struct Answer<'a> {
    /// Interim answers before it.
    pub(crate) interim: &'a [u8],
    pub(crate) status_line: &'a str,
    pub(crate) headers: Vec<(&'a str, &'a str)>,
    pub(crate) body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Takes apart what has arrived; nothing while the head is incomplete.
    pub(crate) fn read(bytes: &'a [u8]) -> Option<Self> {
        let end_of = |bytes: &[u8]| bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
        let mut start = 0;
        let mut end = end_of(bytes)?;
        while bytes[start..].starts_with(b"HTTP/1.1 100 ") {
            start = end;
            end = start + end_of(&bytes[start..])?;
        }
        let head = std::str::from_utf8(&bytes[start..end - 4]).unwrap();
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap();
        let headers = lines.map(|line| line.split_once(':').map(|(n, v)| (n, v.trim())).unwrap()).collect();
        Some(Self { interim: &bytes[..start], status_line, headers, body: &bytes[end..] })
    }

    pub(crate) fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| *v)
    }

    /// The body's chunks; the whole body as one where it is not chunked.
    pub(crate) fn chunks(&self) -> Vec<&'a [u8]> {
        if self.header("Transfer-Encoding").is_none() {
            return if self.body.is_empty() { Vec::new() } else { vec![self.body] };
        }
        let mut rest = self.body;
        let mut chunks = Vec::new();
        while let Some(line) = rest.windows(2).position(|w| w == b"\r\n") {
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            if size == 0 || rest.len() < line + 2 + size {
                break;
            }
            chunks.push(&rest[line + 2..line + 2 + size]);
            rest = &rest[(line + 4 + size).min(rest.len())..];
        }
        chunks
    }

    /// The body without its framing.
    pub(crate) fn payload(&self) -> Vec<u8> {
        self.chunks().concat()
    }
}
