//! Gathers a request's body, whole, within its bounds: `max_body`, `body_memory`, `request_body_idle`.
//!
//! A body is kept until the head of the answer has come, for a retry on another node. Nothing here knows JSON.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Incoming};

use crate::error::ProxyError;
use crate::proxy::local::Client;
use crate::proxy::watch::Expiry;
use crate::shared::{Phase, Shared};
use crate::sync::{Arc, Ordering};
use crate::usage::meters::Tally;

/// How long a body may wait in its socket for room in `body_memory`, milliseconds.
const MEMORY_WAIT_MS: u64 = 30_000;

/// What is reserved ahead of the bytes for a body of unknown length.
const FIRST_RESERVE: u64 = 64 * 1024;

/// What is reserved on an announcement; more only as it comes, as much again each time.
const TRUSTED_RESERVE: u64 = 1024 * 1024;

/// The body of a question to ourselves, at most: a model's name or a level, with room to spare.
pub const FEW_BYTES_MAX: u64 = 64 * 1024;

/// Where a request's body comes from.
pub trait BodySource {
    /// There is none, or all of it was taken.
    fn is_end(&self) -> bool;

    /// All of it is wanted, in one piece if the source can: a piece of its own is then no copy.
    fn want_whole(&mut self) {}

    /// The next piece, as large as the source cares to make it; `None` at the end. Trailers are dropped.
    ///
    /// # Errors
    /// The framing broke, or the client left inside the body; in words.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>>;
}

impl BodySource for Incoming {
    fn is_end(&self) -> bool {
        self.is_end_stream()
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        loop {
            match ready!(Pin::new(&mut *self).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.to_string()))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }
}

/// A body and its share of `body_memory`.
#[derive(Debug)]
pub struct Gathered {
    /// All of it.
    pub bytes: Bytes,
    _share: Share,
}

impl Gathered {
    /// The bytes alone, with the share in them: it is given back with their last copy, on whatever thread that is.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        if self.bytes.is_empty() { Bytes::new() } else { Bytes::from_owner(self) }
    }
}

impl AsRef<[u8]> for Gathered {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes counted against `body_memory`; given back on drop.
#[derive(Debug)]
struct Share {
    shared: Arc<Shared>,
    /// `limits.body_memory`, as it was when the body began.
    limit: u64,
    bytes: u64,
}

impl Share {
    /// Takes `more` bytes if they fit. A single body always fits into an empty account (`max_body` bounds it).
    fn try_grow(&mut self, more: u64) -> bool {
        let limit = self.limit;
        let taken = self.shared.body_bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| {
            (held == self.bytes || held + more <= limit).then_some(held + more)
        });
        if taken.is_ok() {
            self.bytes += more;
        }
        taken.is_ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shared.body_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Reads the whole body.
///
/// # Errors
/// Too large, too slow, broken, or no memory for it. Cancel safe: dropping gives the memory back.
pub async fn gather(
    client: &Rc<Client>,
    announced: Option<u64>,
    source: &mut dyn BodySource,
) -> Result<Gathered, ProxyError> {
    let limit_bytes = client.local.rules().config.limits.max_body_bytes;
    within(client, announced, source, limit_bytes, ProxyError::BodyTooLarge { limit_bytes }).await
}

/// The same for a question to ourselves, which is a few words: read on a worker, where a long one would hold up streams.
///
/// # Errors
/// As there.
pub async fn gather_few(
    client: &Rc<Client>,
    announced: Option<u64>,
    source: &mut dyn BodySource,
) -> Result<Gathered, ProxyError> {
    let most = FEW_BYTES_MAX.min(client.local.rules().config.limits.max_body_bytes);
    within(client, announced, source, most, ProxyError::QuestionTooLarge { limit_bytes: most }).await
}

async fn within(
    client: &Rc<Client>,
    announced: Option<u64>,
    source: &mut dyn BodySource,
    limit_bytes: u64,
    too_large: ProxyError,
) -> Result<Gathered, ProxyError> {
    let shared = client.local.shared.clone();
    let rules = client.local.rules();
    if announced.is_some_and(|length| length > limit_bytes) {
        return Err(too_large);
    }
    let mut share = Share { shared, limit: rules.config.limits.body_memory_bytes, bytes: 0 };
    if source.is_end() {
        return Ok(Gathered { bytes: Bytes::new(), _share: share });
    }
    source.want_whole();
    // Not for an announcement alone: four connections that send nothing could hold all of the memory.
    room(client, &mut share, announced.map_or(FIRST_RESERVE, |length| length.min(TRUSTED_RESERVE))).await?;
    arm_idle(client);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(data) = next(client, source).await? {
        let length = (first.len() + all.len() + data.len()) as u64;
        if length > limit_bytes {
            return Err(too_large);
        }
        if length > share.bytes {
            let ahead = announced.map_or(FIRST_RESERVE, |announced| announced.saturating_sub(length).min(length));
            let more = length - share.bytes + ahead;
            room(client, &mut share, more).await?;
        }
        arm_idle(client);
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            // Trust the announced length only as far as bytes have been paid for by the client.
            let expected = announced.unwrap_or(0).min(length.saturating_mul(2)).max(length);
            all.reserve(usize::try_from(expected).unwrap_or(0));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    client.watch.disarm();
    let length = (first.len() + all.len()) as u64;
    client.local.recorder.meters().add(Tally::RequestBytes, length);
    let bytes = if all.is_empty() { first } else { all.freeze() };
    Ok(Gathered { bytes, _share: share })
}

/// From now on the next piece is awaited.
pub fn arm_idle(client: &Client) {
    client.watch.arm(Expiry::RequestBody, client.local.clock.now() + client.local.rules().times.request_body_idle);
}

/// The next piece of the body; `None` at its end.
///
/// # Errors
/// It is too slow, or broke off.
pub async fn next(client: &Client, source: &mut dyn BodySource) -> Result<Option<Bytes>, ProxyError> {
    std::future::poll_fn(|cx| {
        if client.watch.fired() == Some(Expiry::RequestBody) {
            return Poll::Ready(Err(ProxyError::BodySlow));
        }
        // The end of the process wakes every connection: who has not sent it all by now is told.
        if client.local.shared.phase() >= Phase::Ending {
            return Poll::Ready(Err(ProxyError::Draining));
        }
        let piece = ready!(source.poll_piece(cx)).transpose();
        Poll::Ready(piece.map_err(|cause| ProxyError::BodyBroken { cause }))
    })
    .await
}

/// Waits for room in `body_memory`; meanwhile the body stays unread in its socket.
async fn room(client: &Rc<Client>, share: &mut Share, more: u64) -> Result<(), ProxyError> {
    if share.try_grow(more) {
        return Ok(());
    }
    client.local.tally(Tally::BodyMemoryWaits);
    client.watch.arm(Expiry::BodyMemory, client.local.clock.now() + MEMORY_WAIT_MS);
    std::future::poll_fn(|_: &mut Context<'_>| {
        if share.try_grow(more) {
            return Poll::Ready(Ok(()));
        }
        if client.watch.fired() == Some(Expiry::BodyMemory) {
            return Poll::Ready(Err(ProxyError::BodyMemoryFull));
        }
        // The tick wakes whoever stands in this list.
        client.local.memory_waiters.borrow_mut().push(Rc::downgrade(&client.watch));
        Poll::Pending
    })
    .await
}
