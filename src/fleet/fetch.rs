//! The poller's own small HTTP client: one exchange with one node, bounded in time and size.
//!
//! Separate from the proxy's client on purpose: polls must not compete with requests for pooled connections, and a
//! probe should be able to fail while streams go on. Called by the poller's tasks on the control thread. Must never
//! decide about health; it says what happened and the caller judges.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::fleet::Target;
use crate::http1::{DecodeError, Item, KeepAlive, Lines, RequestHead, ResponseDecoder, ResponseHead, encode_request};
use crate::sync::Arc;

/// The largest answer taken. 16 MiB hold the tags of some 30,000 models; a show with its tensors is about 1 MiB.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The largest head taken from a node.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Connections kept for one node: the probe's and one for everything slower.
pub const IDLE_MAX: usize = 2;

/// Idle connections are used for at most this long where the node says nothing of its own: longer than any interval
/// but that of the inventory, so a probe finds a warm one.
const IDLE_FOR: Duration = Duration::from_secs(20);

/// How often, and how many times, a question looks for an address that is not known yet.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOOKS: u32 = 50;

/// One thing to ask a node.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Path without the node's base path.
    pub path: &'static str,
    /// A JSON body makes it a POST.
    pub body: Option<Bytes>,
    /// Time for all of it, the connect included.
    pub timeout_ms: u64,
    /// Over a connection of its own, never a kept one.
    pub fresh: bool,
}

/// What a node answered.
#[derive(Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Its header lines.
    pub lines: Lines,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its name has not resolved yet.
    #[error("its name does not resolve")]
    Unresolved,
    /// The connection was refused by every address.
    #[error("connection refused")]
    Refused,
    /// No connection, for another reason.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// No whole answer in time.
    #[error("timed out after {0} ms")]
    TimedOut(u64),
    /// The connection broke.
    #[error("connection lost: {0}")]
    Lost(io::Error),
    /// It does not answer in HTTP, or closed early.
    #[error("bad answer: {0}")]
    Decode(DecodeError),
    /// Asking panicked, which is a defect of ours.
    #[error("asking it panicked: see the log")]
    Panicked,
    /// The answer is larger than [`BODY_BYTES_MAX`].
    #[error("answer larger than {BODY_BYTES_MAX} bytes")]
    TooLarge,
}

impl FetchError {
    /// It was never asked: this process, or this machine, has no file or no memory left. Says nothing of the node.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        use rustix::io::Errno;
        let Self::Connect(error) = self else { return false };
        Errno::from_io_error(error)
            .is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM))
    }
}

/// Asks one node. Clones share its kept connections.
#[derive(Clone, Debug)]
pub struct Client {
    target: Arc<Target>,
    keep: flume::Sender<Idle>,
    kept: flume::Receiver<Idle>,
}

/// A connection that has served its last answer whole.
#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    until: Instant,
}

impl Client {
    /// A client without connections yet.
    #[must_use]
    pub fn new(target: Arc<Target>) -> Self {
        let (keep, kept) = flume::bounded(IDLE_MAX);
        Self { target, keep, kept }
    }

    /// Whether it asks the node there.
    #[must_use]
    pub fn is_of(&self, target: &Arc<Target>) -> bool {
        Arc::ptr_eq(&self.target, target)
    }

    /// Sends the request and reads the whole answer, whatever its status.
    ///
    /// A kept connection that turns out to be dead before a byte came is replaced by a new one, once: everything the
    /// poller asks may be asked twice. Cancel safe: the connection is closed.
    ///
    /// # Errors
    /// There is no whole answer within the time.
    pub async fn fetch(&self, ask: &Ask) -> Result<Answer, FetchError> {
        let limit = Duration::from_millis(ask.timeout_ms);
        match tokio::time::timeout(limit, self.exchange(ask)).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::TimedOut(ask.timeout_ms)),
        }
    }

    async fn exchange(&self, ask: &Ask) -> Result<Answer, FetchError> {
        let request = self.encode(ask);
        let kept = if ask.fresh { None } else { self.take_idle() };
        if let Some(stream) = kept {
            match self.converse(stream, &request).await {
                Err(FetchError::Lost(_) | FetchError::Decode(DecodeError::ClosedEarly)) => {}
                other => return other,
            }
        }
        let stream = dial(&self.target).await?;
        self.converse(stream, &request).await
    }

    fn encode(&self, ask: &Ask) -> Vec<u8> {
        let mut lines = Lines::default();
        lines.push(b"accept", b"application/json");
        lines.push(b"user-agent", concat!("herdgate/", env!("CARGO_PKG_VERSION")).as_bytes());
        if ask.body.is_some() {
            lines.push(b"content-type", b"application/json");
        }
        let mut request = Vec::new();
        encode_request(
            &mut request,
            &RequestHead {
                method: if ask.body.is_some() { &Method::POST } else { &Method::GET },
                target: ask.path,
                base_path: &self.target.base_path,
                host: &self.target.host,
                lines: &lines,
                bearer: self.target.api_key.as_ref().map(|key| key.0.as_str()),
                content_length: ask.body.as_ref().map(|body| body.len() as u64),
            },
        );
        request.extend_from_slice(ask.body.as_deref().unwrap_or_default());
        request
    }

    /// A kept connection that still seems to live.
    fn take_idle(&self) -> Option<TcpStream> {
        while let Ok(idle) = self.kept.try_recv() {
            let silent = matches!(idle.stream.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            if silent && Instant::now() < idle.until {
                return Some(idle.stream);
            }
        }
        None
    }

    async fn converse(&self, mut stream: TcpStream, request: &[u8]) -> Result<Answer, FetchError> {
        stream.write_all(request).await.map_err(FetchError::Lost)?;
        let mut decoder = ResponseDecoder::new(false, HEAD_BYTES_MAX);
        let mut buffer = vec![0; 16 * 1024];
        let mut head: Option<ResponseHead> = None;
        let mut body = Vec::new();
        loop {
            let read = match stream.read(&mut buffer).await {
                Ok(read) => read,
                Err(error) if head.is_none() => return Err(FetchError::Lost(error)),
                Err(_) => return Err(FetchError::Decode(DecodeError::CutBody)),
            };
            let left = if read == 0 {
                decoder.eof().map_err(FetchError::Decode)?;
                Some(0)
            } else {
                collect(&mut decoder, &buffer[..read], &mut head, &mut body)?
            };
            let Some(left) = left else { continue };
            let Some(head) = head else { return Err(FetchError::Decode(DecodeError::CutHead)) };
            // Bytes beyond the answer mean that the connection is not where we think it is.
            if !head.close && left == 0 && read > 0 {
                self.put_idle(stream, head.keep_alive);
            }
            return Ok(Answer { status: head.status, lines: head.lines, body: body.into() });
        }
    }

    fn put_idle(&self, stream: TcpStream, keep_alive: KeepAlive) {
        if keep_alive.max.is_some_and(|max| max <= 1) {
            return;
        }
        // A second less than the node says, so that our next request and its close do not cross.
        let said = keep_alive.timeout_s.map(|s| Duration::from_secs(u64::from(s).saturating_sub(1)));
        let until = Instant::now() + said.unwrap_or(IDLE_FOR).min(IDLE_FOR);
        let _ = self.keep.try_send(Idle { stream, until });
    }
}

/// Where a node is; at the start of the process the first look-up may still be under way.
async fn addresses(target: &Target) -> Vec<SocketAddr> {
    for _ in 0..LOOKS {
        let known = target.addresses.load_full();
        if !known.is_empty() {
            return known.to_vec();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Vec::new()
}

/// Connects, trying the addresses in turn: each has the node's `connect`, the caller bounds all of it.
///
/// # Errors
/// No address took the connection.
pub(super) async fn dial(target: &Target) -> Result<TcpStream, FetchError> {
    let mut failure = FetchError::Unresolved;
    for address in addresses(target).await {
        let limit = Duration::from_millis(target.connect_ms);
        failure = match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Without it a POST's body could wait for an acknowledgement; failing to set it costs only that.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => match failure {
                // Refused counts only if every address refused.
                FetchError::Unresolved | FetchError::Refused => FetchError::Refused,
                other => other,
            },
            Ok(Err(error)) => FetchError::Connect(error),
            Err(_) => FetchError::TimedOut(target.connect_ms),
        };
    }
    Err(failure)
}

/// Feeds what was read. `Some(n)`: the answer is complete, n bytes were left over.
fn collect(
    decoder: &mut ResponseDecoder,
    mut input: &[u8],
    head: &mut Option<ResponseHead>,
    body: &mut Vec<u8>,
) -> Result<Option<usize>, FetchError> {
    loop {
        let (used, item) = decoder.feed(input).map_err(FetchError::Decode)?;
        input = &input[used..];
        match item {
            Item::More => return Ok(None),
            Item::Head(found) => *head = Some(found),
            Item::Data(data) if body.len() + data.len() > BODY_BYTES_MAX => return Err(FetchError::TooLarge),
            Item::Data(data) => body.extend_from_slice(data),
            Item::End => return Ok(Some(input.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use arc_swap::ArcSwap;
    use tokio::net::TcpListener;

    async fn node() -> (TcpListener, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(listener.local_addr().unwrap(), "");
        (listener, client)
    }

    fn client(address: SocketAddr, base_path: &str) -> Client {
        Client::new(Arc::new(Target {
            addresses: ArcSwap::from_pointee(vec![address]),
            host: "gpu:11434".into(),
            base_path: base_path.into(),
            api_key: Some(Secret("k".into())),
            connect_ms: 2_000,
            ..Target::default()
        }))
    }

    fn get(path: &'static str) -> Ask {
        Ask { path, body: None, timeout_ms: 20_000, fresh: false }
    }

    /// Reads one request's head (and as much body as its length says) and answers it.
    async fn serve(stream: &mut TcpStream, answer: &str) -> String {
        let mut request = Vec::new();
        loop {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).await.unwrap(), 1, "the client closed early");
            request.push(byte[0]);
            let text = String::from_utf8_lossy(&request);
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |l| l.parse().unwrap()) {
                break;
            }
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[tokio::test]
    async fn one_connection_serves_many_questions() {
        let (listener, client) = node().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let first = serve(&mut stream, OK).await;
            let second = serve(&mut stream, OK).await;
            (first, second)
        };
        let asks = async {
            let answer = client.fetch(&get("/api/version")).await.unwrap();
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"ok"[..]));
            let body = Some(Bytes::from_static(b"{\"model\":\"m\"}"));
            client.fetch(&Ask { body, ..get("/api/show") }).await.unwrap();
        };
        let ((first, second), ()) = tokio::join!(server, asks);
        assert!(first.starts_with("GET /api/version HTTP/1.1\r\nhost: gpu:11434\r\n"), "{first}");
        assert!(first.contains("authorization: Bearer k\r\n"), "{first}");
        assert!(second.starts_with("POST /api/show HTTP/1.1\r\n"), "{second}");
        assert!(second.ends_with("\r\n\r\n{\"model\":\"m\"}"), "{second}");
    }

    #[tokio::test]
    async fn a_kept_connection_that_died_is_replaced() {
        let (listener, client) = node().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            serve(&mut stream, OK).await;
            // Takes the next request and closes without a byte: the race that try_read cannot see.
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            serve(&mut stream, OK).await;
        };
        let asks = async {
            client.fetch(&get("/a")).await.unwrap();
            client.fetch(&get("/b")).await.unwrap();
        };
        tokio::join!(server, asks);
    }

    #[tokio::test]
    async fn a_connection_that_says_close_is_not_kept() {
        let (listener, client) = node().await;
        let server = async {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.unwrap();
                serve(&mut stream, "HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
            }
        };
        let asks = async {
            for _ in 0..2 {
                assert_eq!(client.fetch(&get("/a")).await.unwrap().status.as_u16(), 503);
            }
        };
        tokio::join!(server, asks);
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_from_a_silent_node() {
        let (listener, client) = node().await;
        let hasty = Ask { timeout_ms: 1, ..get("/a") };
        assert!(matches!(client.fetch(&hasty).await, Err(FetchError::TimedOut(1))));
        drop(listener);
        assert!(matches!(client.fetch(&get("/a")).await, Err(FetchError::Refused)));
    }

    #[test]
    fn what_we_lack_is_told_from_what_the_node_lacks() {
        let of = |errno: rustix::io::Errno| FetchError::Connect(errno.into()).is_ours();
        assert!(of(rustix::io::Errno::MFILE) && of(rustix::io::Errno::NFILE));
        assert!(!of(rustix::io::Errno::HOSTUNREACH) && !of(rustix::io::Errno::ADDRNOTAVAIL));
        assert!(!FetchError::Refused.is_ours() && !FetchError::TimedOut(1).is_ours());
    }

    #[tokio::test]
    async fn a_fresh_question_takes_no_kept_connection() {
        let (listener, client) = node().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            serve(&mut stream, OK).await;
            stream
        };
        let ask = get("/a");
        let (answer, _stream) = tokio::join!(client.fetch(&ask), server);
        answer.unwrap();
        drop(listener);
        // What was kept is still open on both sides.
        let fresh = Ask { fresh: true, ..get("/a") };
        assert!(matches!(client.fetch(&fresh).await, Err(FetchError::Refused)));
    }

    #[tokio::test]
    async fn a_body_without_end_is_cut_off() {
        let (listener, client) = node().await;
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            serve(&mut stream, "HTTP/1.1 200 OK\r\n\r\n").await;
            let block = vec![b'x'; 1024 * 1024];
            while stream.write_all(&block).await.is_ok() {}
        };
        let ask = get("/a");
        let (result, ()) = tokio::join!(client.fetch(&ask), server);
        assert!(matches!(result, Err(FetchError::TooLarge)));
    }

    #[tokio::test]
    async fn a_cut_answer_is_an_error_and_base_paths_count() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(listener.local_addr().unwrap(), "/ollama");
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            serve(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok").await
        };
        let ask = get("/api/tags");
        let (result, request) = tokio::join!(client.fetch(&ask), server);
        assert!(matches!(result, Err(FetchError::Decode(DecodeError::CutBody))));
        assert!(request.starts_with("GET /ollama/api/tags HTTP/1.1\r\n"), "{request}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_waited_for_and_one_that_never_resolves_says_so() {
        let (_listener, client) = node().await;
        let known = client.target.addresses.swap(Arc::new(Vec::new()));
        assert!(matches!(client.fetch(&get("/a")).await, Err(FetchError::Unresolved)));
        let resolved = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            client.target.addresses.store(known);
        };
        let (addresses, ()) = tokio::join!(addresses(&client.target), resolved);
        assert_eq!(addresses.len(), 1);
    }
}
