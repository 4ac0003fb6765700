//! Administration of models on the wire: who may, what is asked, and the answer as the control thread gives it.
//!
//! The worker only carries bytes: a body that names a model whole, a blob's piece by piece. Everything else is
//! `fleet::fanout`'s. Must never wait for a node itself.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

use crate::dialect::{self, Family};
use crate::error::ProxyError;
use crate::fleet::fanout::ask::Verb;
use crate::fleet::fanout::{self, By, Call, Order, PIECES_MAX, Piece, Placed, Reply};
use crate::front::checks::{self, Asking};
use crate::front::routes;
use crate::ids::KeyId;
use crate::proxy::answer::{self, BodyError, OutBody};
use crate::proxy::body::{self, BodySource};
use crate::proxy::headers::Known;
use crate::proxy::local::Client;
use crate::shared::Phase;

/// What Go reads of a body that nobody wants before it answers; a longer one ends its connection.
const UNREAD_MAX: usize = 256 * 1024;

/// Answers a request for administration.
pub(super) async fn answer(
    client: &Rc<Client>,
    asking: &Asking<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    let shared = &client.local.shared;
    let known = &asking.known;
    let lists = asking.method == Method::GET;
    if !lists && !client.local.rules().config.administration.admits(shared.listen.ip().is_loopback(), key) {
        return checks::administration_closed();
    }
    let path = routes::decoded(asking.path);
    let nodes = known.nodes.map(|value| String::from_utf8_lossy(value).into());
    let (waiting, placed) = fanout::waiting();
    let by = By { key: shared.names.key_name(key).into(), request: client.request_id.get() };
    let order = |call, body| Order { by, call, nodes, body, client: waiting };
    if let Some(digest) = path.strip_prefix("/api/blobs/") {
        if asking.is_head() {
            return place(client, order(Call::BlobHead(digest.into()), Bytes::new()), placed).await;
        }
        let (pieces, arriving) = flume::bounded(PIECES_MAX);
        let (wanted, go_on) = oneshot::channel();
        let call = Call::BlobPost { digest: digest.into(), length: length(known), wanted, pieces: arriving };
        let expects = known.expect.is_some();
        let way = Way { expects, go_on, pieces };
        return upload(client, order(call, Bytes::new()), placed, source, way).await;
    }
    let call = match (verb(&path), path.strip_prefix("/herdgate/pending")) {
        (Some(verb), _) => Call::Models(verb),
        (None, Some("")) => Call::Pending,
        (None, Some(id)) => match id.trim_start_matches('/').parse() {
            Ok(id) => Call::Cancel(id),
            Err(_) => return answer::not_found(),
        },
        (None, None) => return answer::not_found(),
    };
    match body::gather(client, known.announced(), source).await {
        Ok(gathered) => place(client, order(call, gathered.into_bytes()), placed).await,
        Err(error) => refused(&error),
    }
}

fn verb(path: &str) -> Option<Verb> {
    [Verb::Pull, Verb::Push, Verb::Create, Verb::Copy, Verb::Delete].into_iter().find(|verb| verb.route().1 == path)
}

/// The announced length, unless the body comes in chunks (which win).
fn length(known: &Known<'_>) -> Option<u64> {
    if known.transfer_encoding.is_some() {
        return None;
    }
    known.content_length.map_or(Some(0), |_| known.announced())
}

fn refused(error: &ProxyError) -> Response<OutBody> {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut response = answer::family_error(Family::Ollama, status, &error.to_string());
    answer::close(&mut response);
    response
}

/// Too many orders are under way: this one is not taken.
fn too_many() -> Response<OutBody> {
    answer::error(StatusCode::SERVICE_UNAVAILABLE, fanout::too_many().body(Family::Ollama), Some(5))
}

async fn place(client: &Rc<Client>, order: Order, placed: Placed) -> Response<OutBody> {
    let Placed { mut reply, present } = placed;
    if !client.local.shared.orders.place(order) {
        return too_many();
    }
    wait(client, &mut reply).await.map_or_else(ended, |reply| answered(client, reply, present))
}

/// The reply; `None` when the process ends first.
async fn wait(client: &Client, reply: &mut oneshot::Receiver<Reply>) -> Option<Reply> {
    std::future::poll_fn(|cx| {
        if client.local.shared.phase() >= Phase::Ending {
            return Poll::Ready(None);
        }
        Pin::new(&mut *reply).poll(cx).map(Result::ok)
    })
    .await
}

fn ended() -> Response<OutBody> {
    let text = "the gate is shutting down";
    answer::error(StatusCode::SERVICE_UNAVAILABLE, dialect::error(Family::Ollama, 503, text), Some(5))
}

/// How a blob's body leaves the worker.
struct Way {
    /// Comes once some node wants it: a client that waits for `100 Continue` is not made to send what is there already.
    go_on: oneshot::Receiver<()>,
    /// The client waits for `100 Continue`, which reading its body sends.
    expects: bool,
    pieces: flume::Sender<Piece>,
}

/// Sends a blob's body on while it comes, until its answer is there.
async fn upload(
    client: &Rc<Client>,
    order: Order,
    placed: Placed,
    source: &mut dyn BodySource,
    way: Way,
) -> Response<OutBody> {
    let Placed { mut reply, present } = placed;
    let expects = way.expects;
    if !client.local.shared.orders.place(order) {
        return too_many();
    }
    let sent = tokio::select! {
        biased;
        early = wait(client, &mut reply) => Some(early),
        sent = pump(client, source, way) => match sent {
            Ok(()) => None,
            Err(error) => return refused(&error),
        },
    };
    let reply = match sent {
        Some(early) => early,
        None => wait(client, &mut reply).await,
    };
    client.watch.disarm();
    let whole = source.is_end() || (!expects && skip(client, source).await);
    let mut response = reply.map_or_else(ended, |reply| answered(client, reply, present));
    if !whole {
        answer::close(&mut response);
    }
    response
}

/// Every piece into the channel; it is bounded, so the client is read no faster than the slowest node takes it.
async fn pump(client: &Client, source: &mut dyn BodySource, way: Way) -> Result<(), ProxyError> {
    if way.go_on.await.is_err() {
        return Ok(());
    }
    loop {
        body::arm_idle(client);
        let data = body::next(client, source).await?;
        // What the nodes need for it is no fault of the client.
        client.watch.disarm();
        let end = data.is_none();
        let piece = data.map_or(Piece::End, Piece::Data);
        // An order that has ended takes no more: its answer is there.
        if way.pieces.send_async(piece).await.is_err() || end {
            return Ok(());
        }
    }
}

/// Reads what Go would of a body that nobody wants; whether that was all.
async fn skip(client: &Client, source: &mut dyn BodySource) -> bool {
    let mut left = UNREAD_MAX;
    body::arm_idle(client);
    while let Ok(data) = body::next(client, source).await {
        let Some(data) = data else { return true };
        let Some(rest) = left.checked_sub(data.len()) else { return false };
        left = rest;
    }
    false
}

fn answered(client: &Rc<Client>, reply: Reply, present: oneshot::Receiver<()>) -> Response<OutBody> {
    let mut response = match reply.body {
        fanout::Body::Whole(bytes) => Response::new(OutBody::Whole((!bytes.is_empty()).then_some(bytes))),
        fanout::Body::Lines(lines) => Response::new(OutBody::Other(Box::pin(Lines {
            client: client.clone(),
            next: Some(lines.clone().into_recv_async()),
            lines,
            _present: present,
        }))),
    };
    *response.status_mut() = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let content_type = reply.content_type.and_then(|value| HeaderValue::from_str(&value).ok());
    if let Some(value) = content_type {
        response.headers_mut().insert(CONTENT_TYPE, value);
    }
    if let Some(seconds) = reply.retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Lines as the control thread sends them.
struct Lines {
    client: Rc<Client>,
    lines: flume::Receiver<Bytes>,
    /// `None` once it has ended.
    next: Option<flume::r#async::RecvFut<'static, Bytes>>,
    /// Its drop tells the control thread that the client has left.
    _present: oneshot::Receiver<()>,
}

impl Body for Lines {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(next) = &mut this.next else { return Poll::Ready(None) };
        if this.client.local.shared.phase() >= Phase::Ending {
            this.next = None;
            let mut last = dialect::ollama::error_object("the gate is shutting down");
            last.push(b'\n');
            return Poll::Ready(Some(Ok(Frame::data(last.into()))));
        }
        match ready!(Pin::new(next).poll(cx)) {
            Ok(line) => {
                this.next = Some(this.lines.clone().into_recv_async());
                Poll::Ready(Some(Ok(Frame::data(line))))
            }
            Err(flume::RecvError::Disconnected) => {
                this.next = None;
                this.client.idle();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
