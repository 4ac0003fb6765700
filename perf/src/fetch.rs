//! One request and its answer, the slow and simple way.
//!
//! Called by `peers` and `run` to see whether somebody is there, and by `load` for what a listing is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};

use crate::http::Answers;

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Sends `request` to a port of this machine and reads one answer, within `time`.
pub(crate) fn exchange(port: u16, request: &[u8], time: Duration) -> anyhow::Result<Answer> {
    let until = Instant::now() + time;
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), time)?;
    stream.set_write_timeout(Some(time))?;
    stream.write_all(request).context("sending")?;
    let (mut answers, mut body, mut buffer) = (Answers::new(), Vec::new(), vec![0; 64 * 1024]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no whole answer within {time:?}");
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut buffer).context("reading")?;
        ensure!(n > 0, "closed in the middle of an answer");
        let (_, whole) =
            answers.feed(&buffer[..n], &mut |bytes| body.extend_from_slice(bytes)).map_err(|why| anyhow!(why))?;
        if whole {
            return Ok(Answer { status: answers.status(), body });
        }
    }
}

/// A GET.
pub(crate) fn get(port: u16, path: &str) -> anyhow::Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    exchange(port, request.as_bytes(), Duration::from_secs(60))
}
