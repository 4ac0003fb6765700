//! A node that follows a script, one closure per connection, and the client side of a test.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use herdgate::clock::{Clock, Millis};
use herdgate::fleet::Target;
use herdgate::http1::{Lines, RequestHead, ResponseHead, encode_request};
use herdgate::ids::NodeId;
use herdgate::proxy::lingering::Leave;
use herdgate::proxy::upstream::{AttemptError, BodyError, Detached, Exchange, Held, Outgoing, Settings, Upstreams};
use herdgate::sync::{Arc, spawn_thread};
use http::Method;

pub(crate) const NODE: NodeId = NodeId(0);
/// Longer than anything takes here; only a broken test meets it.
const STUCK: Duration = Duration::from_secs(20);

type Script = Box<dyn FnOnce(Peer) + Send>;

/// A listening node. Dropped, it waits until its script is done.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

impl Node {
    /// Accepts one connection after another, each for the next closure.
    pub(crate) fn start(scripts: Vec<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let thread = spawn_thread("node", move || {
            for script in scripts {
                let (stream, _) = listener.accept().expect("accept");
                stream.set_read_timeout(Some(STUCK)).expect("time-out");
                stream.set_nodelay(true).expect("nodelay");
                script(Peer { stream });
            }
        });
        Self { address, thread: Some(thread.expect("thread")) }
    }

    pub(crate) fn target(&self) -> Arc<Target> {
        target(vec![self.address], 5000)
    }

    /// Waits for the end of the script and passes its panic on.
    pub(crate) fn done(mut self) {
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

pub(crate) fn script(body: impl FnOnce(Peer) + Send + 'static) -> Script {
    Box::new(body)
}

/// The node's side of a connection.
pub(crate) struct Peer {
    pub(crate) stream: TcpStream,
}

impl Peer {
    /// One whole request: its head as text, and its body.
    pub(crate) fn request(&mut self) -> (String, Vec<u8>) {
        let head = self.head();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |value| value.parse::<usize>().expect("a length"));
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("body");
        (head, body)
    }

    /// The head of a request, byte by byte so that nothing behind it is taken.
    pub(crate) fn head(&mut self) -> String {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).expect("head");
            head.extend_from_slice(&byte);
        }
        String::from_utf8(head).expect("text")
    }

    pub(crate) fn answer(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("write");
    }

    /// Waits until the client closes. Panics if it sends more instead.
    pub(crate) fn await_close(&mut self) {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("expected a close, got {other:?}"),
        }
    }

    /// Closes with a reset instead of an orderly end.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

pub(crate) fn target(addresses: Vec<SocketAddr>, connect_ms: Millis) -> Arc<Target> {
    let host = addresses.first().map(ToString::to_string).unwrap_or_default().into_boxed_str();
    let addresses = ArcSwap::from_pointee(addresses);
    Arc::new(Target { addresses, host, base_path: "".into(), connect_ms, ..Target::default() })
}

/// An address where nobody listens.
pub(crate) fn deserted() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address")
}

/// An address whose machine does not answer: its queue of connections is full. The sockets keep it so.
pub(crate) fn unresponsive() -> (SocketAddr, Vec<socket2::Socket>) {
    let any: SocketAddr = "127.0.0.1:0".parse().expect("address");
    let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    let listener = new();
    listener.bind(&any.into()).expect("bind");
    listener.listen(0).expect("listen");
    let address = listener.local_addr().expect("address").as_socket().expect("address");
    let mut sockets = vec![listener];
    for _ in 0..4 {
        let socket = new();
        socket.set_nonblocking(true).expect("nonblocking");
        // Those that fit are connected, the rest go on trying.
        let _ = socket.connect(&address.into());
        sockets.push(socket);
    }
    (address, sockets)
}

pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Stands for the permit; the test sees through [`Watch`] what became of it.
#[derive(Debug)]
pub(crate) struct Permit(Watch);

#[derive(Clone, Debug, Default)]
pub(crate) struct Watch {
    pub(crate) loaded: Rc<Cell<bool>>,
    pub(crate) reports: Rc<RefCell<Vec<Detached>>>,
    pub(crate) dropped: Rc<Cell<usize>>,
}

impl Watch {
    pub(crate) fn permit(&self) -> Permit {
        Permit(self.clone())
    }
}

impl Held for Permit {
    fn is_loaded(&self) -> bool {
        self.0.loaded.get()
    }

    fn detached(&mut self, how: Detached, _now: Millis) {
        self.0.reports.borrow_mut().push(how);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
}

/// One worker's client.
pub(crate) struct Client {
    pub(crate) upstreams: Upstreams<Permit>,
    pub(crate) clock: Clock,
    pub(crate) watch: Watch,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default(), Clock::manual(0))
    }

    pub(crate) fn with(settings: Settings, clock: Clock) -> Self {
        Self { upstreams: Upstreams::new(settings, clock.clone()), clock, watch: Watch::default() }
    }

    pub(crate) fn begin(
        &self,
        target: &Arc<Target>,
        method: &Method,
        body: impl Into<Bytes>,
        leave: Leave,
    ) -> Exchange<Permit> {
        let body = body.into();
        let mut head = self.upstreams.buffer();
        encode_request(
            &mut head,
            &RequestHead {
                method,
                target: "/api/chat",
                base_path: "",
                host: &target.host,
                lines: &Lines::default(),
                bearer: None,
                content_length: Some(body.len() as u64),
            },
        );
        self.upstreams.begin(NODE, target, Outgoing::new(method, head, body, None), self.watch.permit(), leave)
    }

    pub(crate) fn post(&self, target: &Arc<Target>, body: &'static str) -> Exchange<Permit> {
        self.begin(target, &Method::POST, body, Leave::Close)
    }

    /// A whole exchange.
    pub(crate) async fn talk(
        &self,
        target: &Arc<Target>,
        body: &'static str,
    ) -> Result<(ResponseHead, String), AttemptError> {
        let mut exchange = self.post(target, body);
        let head = exchange.head().await?;
        let body = read(&mut exchange).await.expect("body").concat();
        assert!(exchange.is_end());
        Ok((head, String::from_utf8(body).expect("text")))
    }

    /// As `talk`, for its text alone.
    pub(crate) async fn text(&self, target: &Arc<Target>, body: &'static str) -> String {
        self.talk(target, body).await.expect("answer").1
    }
}

/// The next payload.
pub(crate) async fn next(exchange: &mut Exchange<Permit>) -> Option<Result<Bytes, BodyError>> {
    std::future::poll_fn(|cx| exchange.poll_data(cx)).await
}

/// All payloads up to the end.
pub(crate) async fn read(exchange: &mut Exchange<Permit>) -> Result<Vec<Bytes>, BodyError> {
    let mut frames = Vec::new();
    while let Some(frame) = next(exchange).await {
        frames.push(frame?);
    }
    Ok(frames)
}

/// Lets other tasks and the socket driver run until the condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    // Bounded by turns, not by time: each turn polls the driver once.
    for _ in 0..2_000_000 {
        if holds() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("never came: {what}");
}

/// A worker's runtime, the lingering task of `client` on it.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // The driver is looked at with each turn, so that `until` sees the sockets.
    let runtime = builder.enable_all().event_interval(1).build_local(tokio::runtime::LocalOptions::default());
    runtime.expect("runtime").block_on(async {
        assert!(tokio::time::timeout(STUCK, test).await.is_ok(), "stuck");
    });
}
