//! The demo's own client: one request on a connection of its own, read as it arrives, or left in the middle.

use std::io;
use std::net::SocketAddr;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http1::{Item, Lines, RequestHead, ResponseDecoder, encode_request};

/// Heads larger than this are none of ours.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A request of the demo.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ask {
    pub(super) path: &'static str,
    pub(super) body: String,
    /// Leave after this many pieces of the answer.
    pub(super) leave_after: Option<u32>,
}

/// How it went, as a client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seen {
    /// An answer to its end, with this status.
    Answered(u16),
    /// We left.
    Left,
}

/// Sends the request and reads until the end, or until it is time to leave.
///
/// # Errors
/// The connection was lost.
pub(super) async fn ask(address: SocketAddr, ask: &Ask) -> io::Result<Seen> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&encoded(address, ask)).await?;
    let mut decoder = ResponseDecoder::new(false, HEAD_BYTES_MAX);
    let mut buffer = vec![0; 16 * 1024];
    let (mut status, mut pieces) = (0, 0);
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            decoder.eof().map_err(io::Error::other)?;
            return Ok(Seen::Answered(status));
        }
        let mut rest = &buffer[..read];
        // Until it asks for more: the end may come without a byte of its own.
        loop {
            let (taken, item) = decoder.feed(rest).map_err(io::Error::other)?;
            rest = &rest[taken..];
            match item {
                Item::Head(head) => status = head.status.as_u16(),
                Item::Data(_) => pieces += 1,
                Item::End => return Ok(Seen::Answered(status)),
                Item::More => break,
            }
        }
        if ask.leave_after.is_some_and(|limit| pieces >= limit) {
            return Ok(Seen::Left);
        }
    }
}

fn encoded(address: SocketAddr, ask: &Ask) -> Vec<u8> {
    let mut lines = Lines::default();
    lines.push(b"content-type", b"application/json");
    let mut request = Vec::new();
    let head = RequestHead {
        method: &Method::POST,
        target: ask.path,
        base_path: "",
        host: &address.to_string(),
        lines: &lines,
        bearer: None,
        content_length: Some(ask.body.len() as u64),
    };
    encode_request(&mut request, &head);
    request.extend_from_slice(ask.body.as_bytes());
    request
}
