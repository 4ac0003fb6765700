//! Our own HTTP/1.1 server side: one connection's requests, one after another, bytes relayed as they come.
//!
//! Called by front for every connection. A request is a head, admitted or answered by `checks`, and an answer; while the
//! handler waits, so does the client's departure. Nothing is allocated for a request once the worker is warm: head and
//! body lie in a buffer lent by the worker, the answer is framed into another. Must never serve what it cannot frame
//! beyond doubt: HTTP/1.0 and absolute targets go to hyper, the rest is refused and the connection closed.
//!
//! Source of what is answered to malformed requests: Go's `net/http/server.go`, as recorded from Ollama.

mod input;
mod output;

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::CONNECTION;
use http::{Method, Response, StatusCode};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use self::input::{Body, Incoming, Next};
use self::output::Framing;
use crate::front::checks::{self, Admitted, Asking, Door, HeadLines, Work};
use crate::front::perform;
use crate::http1::{BodyFraming, InboundHead, Lines, Refused, line_room, parse_request};
use crate::proxy::answer::{BodyError, OutBody, Undated};
use crate::proxy::behind::Behind;
use crate::proxy::headers::{self, Known};
use crate::proxy::local::Client;
use crate::proxy::spares::Kept;
use crate::proxy::stream::TailBody;
use crate::proxy::upstream::Payload;
use crate::proxy::watch::Expiry;
use crate::shared::Phase;

/// An answer up to this size is copied behind its head: cheaper than a second write.
const JOIN_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a request that was not read to its end which are read and forgotten before closing, and for how long: closing
/// on unread bytes would reset the connection, and the client might lose the answer.
const FORGOTTEN_BYTES_MAX: usize = 1024 * 1024;
const FORGETTING_MS: u64 = 1_000;

/// What a body gave in one turn.
type Turn = Poll<Option<Result<(), BodyError>>>;

/// The client has left, or must be left.
#[derive(Debug)]
struct Gone;

/// One client connection.
struct Connection {
    client: Rc<Client>,
    stream: RefCell<TcpStream>,
    /// Read and not taken.
    input: RefCell<BytesMut>,
    /// The body of the request being served.
    body: RefCell<Incoming>,
    /// Framed and not sent yet, from `sent` on.
    output: RefCell<Vec<u8>>,
    sent: Cell<usize>,
    /// Its first request, or the end of a head, is waited for only a moment longer.
    hurried: Cell<bool>,
}

/// Serves a connection until either side closes it. What hyper should serve comes back with the bytes that were read.
pub(super) async fn serve(client: &Rc<Client>, stream: TcpStream) -> Option<(TcpStream, BytesMut)> {
    let connection = Connection {
        client: client.clone(),
        stream: RefCell::new(stream),
        input: RefCell::default(),
        body: RefCell::new(Incoming::new(BodyFraming::Length(0), 0, false)),
        output: RefCell::default(),
        sent: Cell::new(0),
        hurried: Cell::new(false),
    };
    let for_hyper = connection.requests().await;
    connection.give_back();
    for_hyper.map(|read| (connection.stream.into_inner(), read))
}

/// What became of a request.
enum Served {
    /// Answered; the connection goes on.
    Next,
    /// Answered, the last one of its connection.
    Last,
    /// The client left.
    Gone,
    /// Not ours to serve; its head.
    ForHyper(Bytes),
}

/// A request that may be answered: what was made of its head.
struct Ready<'h> {
    asking: Asking<'h>,
    door: Door,
    close: bool,
}

impl Connection {
    /// Serves one request after another; `Some`: the next one, and what was read behind it, is for hyper.
    async fn requests(&self) -> Option<BytesMut> {
        loop {
            let head = match self.next().await {
                Next::Head(head) => head,
                Next::Refused(why) => {
                    self.refuse(why).await;
                    return None;
                }
                Next::Late => {
                    self.answer_and_close(StatusCode::REQUEST_TIMEOUT, None).await;
                    return None;
                }
                Next::Closed => return None,
            };
            match self.request(head).await {
                // Idle from now on, however long the client took to read its answer.
                Served::Next => self.client.idle(),
                Served::Last => {
                    self.close().await;
                    return None;
                }
                Served::Gone => return None,
                Served::ForHyper(head) => {
                    let mut read = BytesMut::from(&*head);
                    read.extend_from_slice(&self.input.take());
                    return Some(read);
                }
            }
        }
    }

    /// Gives the buffers back, whatever they hold.
    fn give_back(&self) {
        let buffers = &self.client.local.buffers;
        buffers.reclaim_output(self.output.take());
        let mut input = self.input.take();
        input.clear();
        buffers.reclaim_input(input);
    }

    /// Serves one request.
    async fn request(&self, head: Bytes) -> Served {
        let (response, is_head, close) = {
            let ready = match self.prepare(&head) {
                Ok(Some(ready)) => ready,
                Ok(None) => return Served::ForHyper(head),
                Err(why) => {
                    self.refuse(why).await;
                    return Served::Gone;
                }
            };
            let Ready { asking, door, close } = ready;
            let response = match door {
                Door::Break(response) => response,
                Door::Continue(admitted) => {
                    let mut source = Body(self);
                    // Pinned where it is made: moving it about would copy all of its state.
                    let work = pin!(perform(&self.client, &admitted, &asking, &mut source));
                    // What is made here alone is soon done, and a probe that closes its half at once still reads.
                    let may_leave = !matches!(admitted.work, Work::Admin(_) | Work::Operator);
                    match self.attended(work, may_leave).await {
                        Some(response) => response,
                        None => return Served::Gone,
                    }
                }
            };
            (response, asking.is_head(), close)
        };
        // Nothing of the request is needed any more: its buffer is free for the next one.
        drop(head);
        self.answer(response, is_head, close).await
    }

    /// Parses a whole head and lets it in, or not; `None`: hyper's.
    fn prepare<'h>(&self, head: &'h Bytes) -> Result<Option<Ready<'h>>, Refused> {
        let mut room = line_room();
        let found = parse_request(head, self.head_bytes_max(), &mut room)?;
        let Some(found) = found.filter(|found| found.length == head.len()) else {
            return Err(Refused::Malformed("line end"));
        };
        let is_ours = found.is_http11 && (found.target.starts_with('/') || found.target == "*");
        let (true, Ok(method)) = (is_ours, Method::from_bytes(found.method.as_bytes())) else { return Ok(None) };
        let lines = || found.lines.iter().map(|line| (line.name.as_bytes(), line.value));
        let known = Known { names_headers: found.names_headers, ..Known::read(lines()) };
        let asking = asking(method, &found, known, head);
        let id = self.client.begin(asking.known.request_id);
        self.client.watch.disarm();
        let door = checks::admit(&self.client, &asking);
        if let (Door::Continue(Admitted { work, .. }), HeadLines::Own(own, _)) = (&door, &asking.lines)
            && matches!(work, Work::Proxy(_) | Work::Identity | Work::AnyNode)
        {
            let mut picked = Lines::in_buffer(self.client.local.upstreams.buffer());
            headers::to_node(&mut picked, lines, found.names_headers);
            picked.push_parsed(headers::REQUEST_ID.as_bytes(), id.as_bytes());
            own.set(picked);
        }
        *self.body.borrow_mut() = Incoming::new(found.framing, self.head_bytes_max(), asking.known.expect.is_some());
        Ok(Some(Ready { asking, door, close: found.close }))
    }

    /// What a handler comes to; `None` if the client leaves first, where it `may_leave`. While the body is being read,
    /// reading tells.
    async fn attended<F>(&self, mut work: Pin<&mut F>, may_leave: bool) -> Option<Response<OutBody>>
    where
        F: Future<Output = Response<OutBody>>,
    {
        std::future::poll_fn(|cx| {
            self.client.watch.listen(cx);
            if let Poll::Ready(response) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            if !may_leave || !self.body.borrow().is_ended() {
                return Poll::Pending;
            }
            self.poll_gone(cx).map(|()| None)
        })
        .await
    }

    /// Sends an answer.
    async fn answer(&self, mut response: Response<OutBody>, is_head: bool, close: bool) -> Served {
        let draining = self.client.local.shared.phase() >= Phase::Draining;
        let close = close || draining || response.headers().contains_key(CONNECTION);
        let unread = !self.body.borrow().is_ended();
        let close = close || (unread && !self.skip_body().await);
        let framing = framing(&response, is_head);
        self.write_head(&mut response, framing, close);
        let sent = match response.into_body() {
            OutBody::Whole(None) => self.flush().await,
            OutBody::Whole(Some(_)) if framing == Framing::None => self.flush().await,
            OutBody::Whole(Some(bytes)) => self.send_whole(&bytes).await,
            OutBody::Stream(body) => self.relay(body, framing).await,
            OutBody::Other(body) => self.send_frames(body, framing).await,
        };
        match sent {
            Ok(()) if close => Served::Last,
            Ok(()) => Served::Next,
            Err(Gone) => Served::Gone,
        }
    }

    fn write_head(&self, response: &mut Response<OutBody>, framing: Framing, close: bool) {
        let local = &self.client.local;
        let mut output = self.output.borrow_mut();
        if output.capacity() == 0 {
            *output = local.buffers.output();
        }
        let node = match response.body() {
            OutBody::Stream(body) => Some(body.lines()),
            _ => None,
        };
        let dated = response.extensions().get::<Undated>().is_none();
        let head = output::Head { status: response.status(), ours: response.headers(), node, framing, close, dated };
        let date = |out: &mut Vec<u8>| local.date(|date| out.extend_from_slice(date.as_bytes()));
        output::head(&mut output, &head, |out| self.client.tell(out), date);
        if let OutBody::Stream(body) = response.body_mut() {
            body.head_sent();
        }
    }

    /// Sends a node's answer as it arrives: one read, one write; no further read before that is out.
    async fn relay(&self, mut body: Kept<TailBody>, framing: Framing) -> Result<(), Gone> {
        self.pump(framing, |cx, take| {
            let polled = body.poll_payload(cx, take);
            (polled, body.is_finished())
        })
        .await
    }

    /// Sends frames in their own time (event streams).
    async fn send_frames(
        &self,
        mut body: Pin<Box<dyn hyper::body::Body<Data = Bytes, Error = BodyError>>>,
        framing: Framing,
    ) -> Result<(), Gone> {
        self.pump(framing, |cx, take| {
            let polled = body.as_mut().poll_frame(cx).map(|frame| {
                frame.map(|frame| {
                    frame.map(|frame| frame.data_ref().into_iter().for_each(|data| take(Payload::Piece(data))))
                })
            });
            (polled, false)
        })
        .await
    }

    /// Moves a body's bytes from `next` to the client. `next` hands out what one turn gives, and says whether that was
    /// the last; the head that waits in the output goes with the first of them.
    async fn pump(
        &self,
        framing: Framing,
        mut next: impl FnMut(&mut Context<'_>, &mut dyn FnMut(Payload<'_>)) -> (Turn, bool),
    ) -> Result<(), Gone> {
        let (mut blocked, mut ended, mut behind) = (false, false, Behind::default());
        // Of an announced length, what is still owed to the client.
        let mut owed = framing.length();
        std::future::poll_fn(|cx| {
            self.client.watch.listen(cx);
            loop {
                if ended || blocked {
                    ready!(behind.poll(cx));
                }
                if ended {
                    let flushed = ready!(self.poll_flush(cx));
                    // Too little: the connection's end says so, or the client would take the next answer for the rest.
                    return Poll::Ready(if owed > 0 { Err(Gone) } else { flushed });
                }
                if blocked && self.poll_flush(cx)?.is_pending() {
                    return self.poll_gone(cx).map(|()| Err(Gone));
                }
                // What the next read brings waits anew; a wake-up that finds nothing to write goes straight to it.
                blocked = false;
                behind.again();
                let mut output = self.lent_output();
                let (turn, last) = next(cx, &mut |payload| match framing {
                    Framing::Length(_) => payload.each(|part| output::owed(&mut output, &mut owed, part)),
                    framing => output::payload(&mut output, framing, payload),
                });
                match turn {
                    Poll::Ready(Some(Ok(()))) if !last => blocked = true,
                    Poll::Ready(Some(Ok(())) | None) => {
                        output::end(&mut output, framing);
                        ended = true;
                    }
                    Poll::Ready(Some(Err(_))) => {
                        drop(output);
                        return self.poll_broken(cx);
                    }
                    Poll::Pending => {
                        drop(output);
                        return self.poll_idle(cx);
                    }
                }
            }
        })
        .await
    }

    /// Nothing to send for now: what is framed goes out, and the buffer back.
    fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        if self.poll_flush(cx)?.is_ready() {
            self.client.local.buffers.reclaim_output(self.output.take());
            let mut input = self.input.borrow_mut();
            if input.is_empty() && input.capacity() > 0 {
                self.client.local.buffers.reclaim_input(std::mem::take(&mut *input));
            }
        }
        self.poll_gone(cx).map(|()| Err(Gone))
    }

    /// The body broke off and the client must see it: what came goes out, and the connection ends without an end of the
    /// body.
    fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let _ = self.poll_flush(cx)?;
        Poll::Ready(Err(Gone))
    }

    async fn send_whole(&self, bytes: &Bytes) -> Result<(), Gone> {
        if bytes.len() <= JOIN_BYTES_MAX {
            self.output.borrow_mut().extend_from_slice(bytes);
            return self.flush().await;
        }
        self.flush().await?;
        let mut sent = 0;
        std::future::poll_fn(|cx| {
            self.client.watch.listen(cx);
            while sent < bytes.len() {
                sent += ready!(self.poll_write(cx, &bytes[sent..]))?;
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    async fn flush(&self) -> Result<(), Gone> {
        std::future::poll_fn(|cx| {
            self.client.watch.listen(cx);
            self.poll_flush(cx)
        })
        .await
    }

    /// Hands over what is framed.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let mut output = self.output.borrow_mut();
        while self.sent.get() < output.len() {
            let count = ready!(self.poll_write(cx, &output[self.sent.get()..]))?;
            self.sent.set(self.sent.get() + count);
        }
        self.sent.set(0);
        output.clear();
        Poll::Ready(Ok(()))
    }

    fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Gone>> {
        let watch = &self.client.watch;
        if watch.fired() == Some(Expiry::ClientStall) {
            return Poll::Ready(Err(Gone));
        }
        match Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, bytes) {
            Poll::Pending => {
                watch.write_blocked(self.client.local.clock.now());
                Poll::Pending
            }
            Poll::Ready(Ok(count)) if count > 0 => {
                watch.write_flows();
                Poll::Ready(Ok(count))
            }
            Poll::Ready(_) => Poll::Ready(Err(Gone)),
        }
    }

    /// The buffer to frame into.
    fn lent_output(&self) -> std::cell::RefMut<'_, Vec<u8>> {
        let mut output = self.output.borrow_mut();
        if output.capacity() == 0 {
            *output = self.client.local.buffers.output();
        }
        output
    }

    /// Answers what can never be served, and closes.
    async fn refuse(&self, why: Refused) {
        tracing::debug!(%why, "refused a request");
        let (status, text) = match why {
            Refused::Malformed(_) => (StatusCode::BAD_REQUEST, None),
            Refused::TooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, None),
            Refused::Coding => (StatusCode::NOT_IMPLEMENTED, Some("Unsupported transfer encoding")),
        };
        self.answer_and_close(status, text).await;
    }

    async fn answer_and_close(&self, status: StatusCode, text: Option<&str>) {
        output::refusal(&mut self.lent_output(), status, text);
        if self.flush().await.is_ok() {
            self.close().await;
        }
    }

    /// Closes so that the last answer arrives: our side first, then what the client still sends is read and forgotten.
    async fn close(&self) {
        let client = &self.client;
        client.watch.arm(Expiry::ClientIdle, client.local.clock.now() + FORGETTING_MS);
        let mut forgotten = 0;
        std::future::poll_fn(|cx| {
            client.watch.listen(cx);
            if ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            while client.watch.fired().is_none() {
                if forgotten >= FORGOTTEN_BYTES_MAX {
                    // The rest stays in the socket: the client has its answer for as long as we wait.
                    return Poll::Pending;
                }
                match ready!(self.poll_fill(cx)) {
                    Ok(count) if count > 0 => forgotten += count,
                    _ => break,
                }
                self.input.borrow_mut().clear();
            }
            Poll::Ready(())
        })
        .await;
    }

    fn head_bytes_max(&self) -> usize {
        self.client.local.rules().config.limits.head_bytes
    }
}

fn asking<'h>(method: Method, found: &InboundHead<'_, 'h>, known: Known<'h>, head: &'h Bytes) -> Asking<'h> {
    let (path, query) = match found.target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (found.target, None),
    };
    let lines = HeadLines::Own(Cell::default(), head);
    Asking { method, target: found.target, path, query, needs_host: true, known, lines }
}

/// How the end of an answer's body is told.
fn framing(response: &Response<OutBody>, is_head: bool) -> Framing {
    let status = response.status();
    if is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    match response.body() {
        OutBody::Whole(bytes) => Framing::Length(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        OutBody::Stream(body) => match body.remaining() {
            Some(length) => Framing::Length(length),
            None if body.is_finished() => Framing::Length(0),
            None => Framing::Chunked,
        },
        OutBody::Other(_) => Framing::Chunked,
    }
}
