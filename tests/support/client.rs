//! A small HTTP/1.1 client on raw bytes: it sees chunk boundaries, can stop anywhere, and trusts nothing.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// No answer of a test takes longer; a bound against hanging, not a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Headers of an answer that are the proxy's own: they name this one request, so that no node can have sent them and no
/// two answers share them. A comparison with what a node sent leaves them out, and nothing else.
pub const OURS: [&str; 3] = ["x-request-id", "x-herdgate-node", "x-herdgate-reason"];

/// A whole answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    /// Names lower-cased, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Payload of each HTTP chunk, for chunked answers.
    pub chunks: Vec<Vec<u8>>,
    /// The body came to the end its framing promised.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// The lines of an NDJSON body.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The JSON of the `data:` lines of an event stream, `[DONE]` left out.
    pub fn events(&self) -> Vec<serde_json::Value> {
        let text = self.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    /// Bytes read and not used.
    spare: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await.unwrap().unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, spare: Vec::new() }
    }

    /// Connects, if somebody listens.
    pub async fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, spare: Vec::new() })
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends bytes; whether the peer still took them.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Closes the sending side alone.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Closes with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Reads one answer; `None` if the peer closed before a head.
    pub async fn answer(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read(false, usize::MAX)).await.expect("the proxy answers in time")
    }

    /// Reads the answer of a HEAD.
    pub async fn head_answer(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read(true, usize::MAX)).await.expect("the proxy answers in time")
    }

    /// Reads until so many bytes of body have come, or the end.
    pub async fn answer_up_to(&mut self, body_bytes: usize) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.read(false, body_bytes)).await.expect("the proxy answers in time")
    }

    /// Reads the head of an answer alone; its body follows with [`Client::chunk`].
    pub async fn begin(&mut self) -> Option<Answer> {
        tokio::time::timeout(PATIENCE, self.head()).await.expect("the proxy answers in time")
    }

    /// The next chunk of an answer that has begun; `None` at its end, or where it breaks off.
    pub async fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut answer = Answer::default();
        let read = self.read_chunks(&mut answer, 1);
        tokio::time::timeout(PATIENCE, read).await.expect("the chunk comes in time");
        answer.chunks.pop()
    }

    /// The first line of the next head, an interim one included, which is taken.
    pub async fn interim(&mut self) -> String {
        let head = async { while find(&self.spare, b"\r\n\r\n").is_none() && self.more().await {} };
        tokio::time::timeout(PATIENCE, head).await.expect("the proxy answers in time");
        let end = find(&self.spare, b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&self.spare[..end]).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        if line.contains(" 100 ") {
            self.spare.drain(..end + 4);
        }
        line
    }

    /// Everything until the peer closes.
    pub async fn rest(&mut self) -> Vec<u8> {
        let all = async { while self.more().await {} };
        tokio::time::timeout(PATIENCE, all).await.expect("the proxy closes in time");
        std::mem::take(&mut self.spare)
    }

    /// Whether the peer has closed, waiting for it.
    pub async fn is_closed(&mut self) -> bool {
        let mut byte = [0; 1];
        matches!(tokio::time::timeout(PATIENCE, self.stream.read(&mut byte)).await, Ok(Ok(0) | Err(_)))
    }

    async fn more(&mut self) -> bool {
        self.spare.reserve(16 * 1024);
        matches!(self.stream.read_buf(&mut self.spare).await, Ok(1..))
    }

    async fn head(&mut self) -> Option<Answer> {
        loop {
            if let Some(end) = find(&self.spare, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&self.spare[..end]).into_owned();
                self.spare.drain(..end + 4);
                let mut lines = head.split("\r\n");
                let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
                if status == 100 {
                    continue;
                }
                let header = |line: &str| {
                    let (name, value) = line.split_once(':')?;
                    Some((name.to_ascii_lowercase(), value.trim().to_owned()))
                };
                return Some(Answer { status, headers: lines.filter_map(header).collect(), ..Answer::default() });
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn read(&mut self, head_only: bool, enough: usize) -> Option<Answer> {
        let mut answer = self.head().await?;
        if head_only || answer.status == 204 || answer.status == 304 {
            answer.whole = true;
            return Some(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            self.read_chunks(&mut answer, enough).await;
            return Some(answer);
        }
        let length = answer.header("content-length").and_then(|length| length.parse::<usize>().ok());
        let wanted = length.unwrap_or(usize::MAX).min(enough);
        while self.spare.len() < wanted && self.more().await {}
        let taken = self.spare.len().min(length.unwrap_or(usize::MAX));
        answer.body = self.spare.drain(..taken).collect();
        answer.whole = length.is_none_or(|length| answer.body.len() == length);
        Some(answer)
    }

    async fn read_chunks(&mut self, answer: &mut Answer, enough: usize) {
        while answer.body.len() < enough {
            let Some(end) = find(&self.spare, b"\r\n") else {
                if self.more().await {
                    continue;
                }
                return;
            };
            let Ok(size) = usize::from_str_radix(&String::from_utf8_lossy(&self.spare[..end]), 16) else {
                panic!("bad chunk size in {:?}", String::from_utf8_lossy(&self.spare));
            };
            while self.spare.len() < end + 2 + size + 2 {
                if !self.more().await {
                    return;
                }
            }
            let chunk: Vec<u8> = self.spare[end + 2..end + 2 + size].to_vec();
            assert_eq!(&self.spare[end + 2 + size..end + 4 + size], b"\r\n");
            self.spare.drain(..end + 4 + size);
            if size == 0 {
                answer.whole = true;
                return;
            }
            answer.body.extend_from_slice(&chunk);
            answer.chunks.push(chunk);
        }
    }
}

/// Where `needle` begins in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The bytes of a request with a JSON body and a length.
pub fn post(path: &str, body: &str) -> Vec<u8> {
    request("POST", path, &[("Content-Type", "application/json")], body.as_bytes())
}

/// The bytes of any request; `Content-Length` where there is a body or the method has one.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut out = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    for (name, value) in headers {
        out += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || method == "POST" || method == "DELETE" {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut bytes = (out + "\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One request on a connection of its own.
pub async fn once(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    client.answer().await.expect("an answer")
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    once(address, &request("GET", path, &[], b"")).await
}

pub async fn post_once(address: SocketAddr, path: &str, body: &str) -> Answer {
    once(address, &post(path, body)).await
}
