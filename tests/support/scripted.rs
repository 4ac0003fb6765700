//! A node that follows a test's script and keeps every byte it was sent: what the simulated node is too polite for.
//!
//! It answers the gate's own polls by itself (its models are on disk and loaded), so that a script sees clients only.

use std::net::SocketAddr;
use std::rc::Rc;
use std::thread::JoinHandle;
use std::time::Duration;

use herdgate::sync::{Arc, AtomicU64, Ordering, spawn_local, spawn_thread};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::client::find;

/// Requests and steps that a test leaves unread.
const BACKLOG: usize = 4096;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// All bytes of the head, the empty line included.
    pub head: String,
    pub body: Vec<u8>,
    /// Connections are numbered in the order of their opening.
    pub connection: u64,
}

impl Asked {
    pub fn method(&self) -> &str {
        self.head.split(' ').next().unwrap()
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |line: &'_ str| line.split_once(':').is_some_and(|(key, _)| key.eq_ignore_ascii_case(name));
        let line = self.head.split("\r\n").skip(1).find(|line| named(line))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// One of the gate's own polls, rather than something a client asked for.
    pub fn is_of_the_gate(&self) -> bool {
        let polls = [("GET", "/api/version"), ("GET", "/api/tags"), ("GET", "/api/ps"), ("POST", "/api/show")];
        let own = self.header("user-agent").is_some_and(|agent| agent.starts_with("herdgate/"));
        own && polls.contains(&(self.method(), self.target()))
    }
}

/// What becomes of the connection after the bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Keep,
    Close,
    Reset,
    /// Nothing more, until the client closes.
    Hang,
}

/// An answer.
pub enum Act {
    Bytes(Vec<u8>, After),
    /// Piece by piece, as the test hands them over; kept when the sender is dropped.
    Paced(flume::Receiver<Step>),
}

/// A piece of a paced answer.
pub enum Step {
    Send(Vec<u8>),
    After(After),
}

/// The test's end of a paced answer.
pub type Pace = flume::Sender<Step>;

/// A paced answer and the end that drives it.
pub fn paced() -> (Pace, Act) {
    let (sender, receiver) = flume::bounded(BACKLOG);
    (sender, Act::Paced(receiver))
}

/// A node with `m` whose answers wait for their pace; the paces come in the order of the requests.
pub fn held() -> (Scripted, flume::Receiver<Pace>) {
    let (paces_in, paces) = flume::bounded(BACKLOG);
    let node = Scripted::start(&["m:latest"], move |_| {
        let (pace, act) = paced();
        paces_in.send(pace).unwrap();
        act
    });
    (node, paces)
}

/// Ends a paced answer, whole.
pub fn finish(pace: &Pace) {
    let Act::Bytes(bytes, _) = answer("200 OK", "application/json", b"{}") else { unreachable!() };
    pace.send(Step::Send(bytes)).unwrap();
}

/// A whole answer with a length.
pub fn answer(status: &str, content_type: &str, body: &[u8]) -> Act {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
    Act::Bytes([head.as_bytes(), body].concat(), After::Keep)
}

/// The head of a chunked answer.
pub fn chunked_head(content_type: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes()
}

/// One chunk.
pub fn chunk(payload: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", payload.len()).as_bytes(), payload, b"\r\n"].concat()
}

/// A whole chunked answer in these chunks.
pub fn chunked(content_type: &str, chunks: &[&[u8]]) -> Act {
    let mut bytes = chunked_head(content_type);
    for payload in chunks {
        bytes.extend(chunk(payload));
    }
    bytes.extend(b"0\r\n\r\n");
    Act::Bytes(bytes, After::Keep)
}

type Script = Box<dyn FnMut(&Asked) -> Act + Send>;

struct Inner {
    /// What the gate's own polls are told of; `None` leaves them to the script.
    models: Option<Vec<String>>,
    script: std::cell::RefCell<Script>,
    asked: flume::Sender<Asked>,
    gone: Arc<AtomicU64>,
}

/// The running node; dropping it ends it.
pub struct Scripted {
    pub address: SocketAddr,
    asked: flume::Receiver<Asked>,
    gone: Arc<AtomicU64>,
    stop: Option<flume::Sender<()>>,
    refuse: flume::Sender<flume::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scripted {
    /// Starts it; `script` is asked for each request of a client.
    pub fn start(models: &[&str], script: impl FnMut(&Asked) -> Act + Send + 'static) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), models, script)
    }

    /// The same at a given address.
    pub fn start_at(address: SocketAddr, models: &[&str], script: impl FnMut(&Asked) -> Act + Send + 'static) -> Self {
        Self::run(address, Some(models.iter().map(|model| (*model).to_owned()).collect()), Box::new(script))
    }

    /// Starts it without models of its own; `script` is asked for everything, the gate's own polls too.
    pub fn bare(script: impl FnMut(&Asked) -> Act + Send + 'static) -> Self {
        Self::run("127.0.0.1:0".parse().unwrap(), None, Box::new(script))
    }

    fn run(address: SocketAddr, models: Option<Vec<String>>, script: Script) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (asked_in, asked) = flume::bounded(BACKLOG);
        let (stop, stopped) = flume::bounded::<()>(1);
        let (refuse, refused) = flume::bounded::<flume::Sender<()>>(1);
        let gone = Arc::new(AtomicU64::new(0));
        let gone_inside = gone.clone();
        let thread = spawn_thread("scripted", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let inner = Rc::new(Inner { models, script: script.into(), asked: asked_in, gone: gone_inside });
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let listener = TcpListener::from_std(listener).unwrap();
                let serve = async {
                    for connection in 0.. {
                        let accepted = tokio::select! {
                            accepted = listener.accept() => accepted,
                            done = refused.recv_async() => {
                                drop(listener);
                                drop(done);
                                break;
                            }
                        };
                        spawn_local(serve(inner.clone(), accepted.unwrap().0, connection));
                    }
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = serve => {}
                    _ = stopped.recv_async() => {}
                }
            });
        });
        Self { address, asked, gone, stop: Some(stop), refuse, thread: Some(thread.unwrap()) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From here on new connections are refused; those it has go on.
    pub fn refuse(&self) {
        let (done, closed) = flume::bounded(1);
        self.refuse.send(done).unwrap();
        let _ = closed.recv();
    }

    /// The next request of a client; fails after a minute.
    pub async fn next(&self) -> Asked {
        let next = tokio::time::timeout(Duration::from_secs(60), self.asked.recv_async());
        next.await.expect("a request reaches the node").unwrap()
    }

    /// Requests of clients that nobody took with [`Scripted::next`].
    pub fn untaken(&self) -> usize {
        self.asked.len()
    }

    /// How often a client closed an answer that was not over.
    pub fn gone(&self) -> u64 {
        self.gone.load(Ordering::Acquire)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection.
async fn serve(inner: Rc<Inner>, mut stream: TcpStream, connection: u64) {
    let _ = stream.set_nodelay(true);
    let mut inbox = Vec::new();
    while let Some((head, body)) = request(&mut stream, &mut inbox).await {
        let asked = Asked { head, body, connection };
        let act = match own(&inner, &asked) {
            Some(act) => act,
            None => {
                let act = (inner.script.borrow_mut())(&asked);
                if !asked.is_of_the_gate() {
                    inner.asked.try_send(asked).expect("the test takes its requests");
                }
                act
            }
        };
        let after = match act {
            Act::Bytes(bytes, after) => match stream.write_all(&bytes).await {
                Ok(()) => after,
                Err(_) => After::Close,
            },
            Act::Paced(steps) => follow(&inner, &mut stream, &mut inbox, &steps).await,
        };
        match after {
            After::Keep => {}
            After::Close => return,
            After::Reset => {
                let _ = stream.set_zero_linger();
                return;
            }
            After::Hang => {
                until_gone(&mut stream, &mut inbox).await;
                inner.gone.fetch_add(1, Ordering::AcqRel);
                return;
            }
        }
    }
}

/// Sends what the test hands over; notices a client that leaves meanwhile.
async fn follow(inner: &Inner, stream: &mut TcpStream, inbox: &mut Vec<u8>, steps: &flume::Receiver<Step>) -> After {
    loop {
        let step = tokio::select! {
            biased;
            step = steps.recv_async() => step,
            () = until_gone(stream, inbox) => {
                inner.gone.fetch_add(1, Ordering::AcqRel);
                return After::Close;
            }
        };
        match step {
            Ok(Step::Send(bytes)) => {
                if stream.write_all(&bytes).await.is_err() {
                    inner.gone.fetch_add(1, Ordering::AcqRel);
                    return After::Close;
                }
            }
            Ok(Step::After(after)) => return after,
            Err(_) => return After::Keep,
        }
    }
}

async fn until_gone(stream: &mut TcpStream, inbox: &mut Vec<u8>) {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => inbox.extend_from_slice(&buffer[..count]),
        }
    }
}

/// One request, its body by `Content-Length`; anything else would break I12, so it is not understood.
async fn request(stream: &mut TcpStream, inbox: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        if let Some(end) = find(inbox, b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&inbox[..end + 4]).into_owned();
            let length = head.to_ascii_lowercase().split("\r\n").find_map(|line| {
                line.strip_prefix("content-length:").map(|length| length.trim().parse::<usize>().unwrap())
            });
            let whole = end + 4 + length.unwrap_or(0);
            if inbox.len() >= whole {
                let body = inbox[end + 4..whole].to_vec();
                inbox.drain(..whole);
                return Some((head, body));
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => inbox.extend_from_slice(&buffer[..count]),
        }
    }
}

/// What the gate asks for itself; `None` for a client's request.
fn own(inner: &Inner, asked: &Asked) -> Option<Act> {
    let models = inner.models.as_ref()?;
    let json = |body: String| Some(answer("200 OK", "application/json; charset=utf-8", body.as_bytes()));
    let details = r#""details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"1B","quantization_level":"Q4_0"}"#;
    let digest = |text: &[u8]| text.iter().cycle().take(32).map(|byte| format!("{byte:02x}")).collect::<String>();
    let entry = |name: &String, rest: &str| {
        let digest = digest(name.as_bytes());
        format!(r#"{{"name":"{name}","model":"{name}",{rest},"size":1000,"digest":"{digest}",{details}}}"#)
    };
    let list = |rest: &str| {
        let entries: Vec<String> = models.iter().map(|name| entry(name, rest)).collect();
        format!(r#"{{"models":[{}]}}"#, entries.join(","))
    };
    match (asked.method(), asked.target()) {
        ("GET", "/api/version") => json(r#"{"version":"0.33.0"}"#.to_owned()),
        ("GET", "/api/tags") => json(list(r#""modified_at":"2026-11-25T12:00:00Z""#)),
        ("GET", "/api/ps") => {
            json(list(r#""expires_at":"2036-11-25T12:00:00Z","size_vram":1000,"context_length":4096"#))
        }
        ("POST", "/api/show") if asked.is_of_the_gate() => json(format!(
            r#"{{"modelfile":"FROM /blobs/sha256-{}","capabilities":["completion"],{details},"model_info":{{}}}}"#,
            digest(&asked.body)
        )),
        _ => None,
    }
}
