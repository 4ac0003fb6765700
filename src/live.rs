//! Whole states to many readers: the newest on connecting, each change after that, none waited for.
//!
//! The control thread publishes (at most 20 times a second); `front` serves an [`EventStream`] body to each reader, on
//! whatever worker its connection lives. A publication costs the same whether readers are quick, slow or stuck (I10):
//! the states on their way are shared, and a reader that falls more than [`BACKLOG`] of them behind is told so and goes
//! on with the newest. Must never be called by a worker on a request's way: its channel locks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::broadcast::{self, Receiver, Sender, error::RecvError};

use crate::sync::Arc;

/// States kept for readers that are behind: a little under a second at the highest rate.
pub const BACKLOG: usize = 16;

/// The least time between two publications, milliseconds: 20 a second.
pub const INTERVAL_MS: u64 = 50;

/// A silent stream gets a comment after this long, milliseconds: proxies in between close silent connections after 60 s.
pub const HEARTBEAT_MS: u64 = 15_000;

/// The place where whole states are published and read.
///
/// Invariants: 1. frames are complete events, made once and shared by all readers; 2. after [`Live::close`] no stream
/// yields anything new, and each ends once its reader has what was published before.
pub struct Live {
    /// `None` once closed.
    sender: ArcSwapOption<Sender<Bytes>>,
    /// The last published event, framed.
    newest: ArcSwapOption<Bytes>,
}

impl Live {
    /// A place without a state and without readers.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "cold: the one broadcast, sent from the control thread only")]
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(BACKLOG);
        Self { sender: ArcSwapOption::from_pointee(sender), newest: ArcSwapOption::empty() }
    }

    /// Publishes one whole state: a line of JSON. Does nothing when it is the one published last.
    ///
    /// For the control thread, at most once per [`INTERVAL_MS`].
    pub fn publish(&self, state: &[u8]) {
        let event = framed(state);
        if self.newest.load().as_deref().is_some_and(|newest| *newest == event) {
            return;
        }
        self.newest.store(Some(Arc::new(event.clone())));
        self.send(event);
    }

    /// Sends a comment that readers ignore, so that nothing in between takes a silent stream for a dead one.
    pub fn heartbeat(&self) {
        self.send(Bytes::from_static(b":\n\n"));
    }

    /// Whether anybody reads; while nobody does, no state need be made.
    #[must_use]
    pub fn wanted(&self) -> bool {
        self.sender.load().as_deref().is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// Ends every stream, now and in future: the process is draining.
    pub fn close(&self) {
        self.sender.store(None);
    }

    /// A new reader; its first event is the newest published, if there is one.
    #[must_use]
    pub fn subscribe(&self) -> EventStream {
        self.reader(|| self.newest.load().as_deref().cloned())
    }

    /// A new reader whose first event is `state`, taken now by whoever subscribes.
    #[must_use]
    pub fn subscribe_from(&self, state: &[u8]) -> EventStream {
        let mut stream = self.join();
        stream.begin(state);
        stream
    }

    /// A new reader without a first event: it is given one by [`EventStream::begin`], once that is made.
    #[must_use]
    pub fn join(&self) -> EventStream {
        self.reader(|| None)
    }

    /// Joins first and looks after: what is published between the two is seen twice rather than missed.
    fn reader(&self, first: impl FnOnce() -> Option<Bytes>) -> EventStream {
        let receiver = self.sender.load().as_deref().map(Sender::subscribe);
        let open = receiver.is_some();
        EventStream {
            next: receiver.map(receive),
            ready: if open { first().into_iter().collect() } else { VecDeque::new() },
            last: Bytes::new(),
        }
    }

    fn send(&self, frame: Bytes) {
        if let Some(sender) = self.sender.load().as_deref() {
            // Fails only when nobody reads.
            let _ = sender.send(frame);
        }
    }
}

impl Default for Live {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("wanted", &self.wanted()).finish_non_exhaustive()
    }
}

/// One event: `data: `, the line, an empty line.
fn framed(state: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(state.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(state);
    event.extend_from_slice(b"\n\n");
    Bytes::from(event)
}

type Receiving = Pin<Box<dyn Future<Output = (Result<Bytes, RecvError>, Receiver<Bytes>)> + Send>>;

fn receive(mut receiver: Receiver<Bytes>) -> Receiving {
    Box::pin(async move { (receiver.recv().await, receiver) })
}

/// One reader's stream of server-sent events, as a response body: one frame per event.
///
/// Dropping it (the client left) is all it takes to leave.
pub struct EventStream {
    /// The next event's arrival; `None` once the place is closed.
    next: Option<Receiving>,
    /// EventStream that go out before any other.
    ready: VecDeque<Bytes>,
    /// The state sent last, which is not sent again.
    last: Bytes,
}

impl EventStream {
    /// Its first event is `state`, whatever was published since it joined.
    pub fn begin(&mut self, state: &[u8]) {
        if self.next.is_some() {
            self.ready.push_front(framed(state));
        }
    }

    /// The next frame, `None` at the end.
    ///
    /// Cancel safe: what was not returned is returned next time.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            while let Some(event) = self.ready.pop_front() {
                if event != self.last {
                    if event.starts_with(b"data: ") {
                        self.last = event.clone();
                    }
                    return Poll::Ready(Some(event));
                }
            }
            let Some(next) = &mut self.next else { return Poll::Ready(None) };
            let (received, mut receiver) = ready!(next.as_mut().poll(cx));
            match received {
                Ok(event) => self.ready.push_back(event),
                Err(RecvError::Lagged(lost)) => self.skip(lost, &mut receiver),
                Err(RecvError::Closed) => {
                    self.next = None;
                    continue;
                }
            }
            self.next = Some(receive(receiver));
        }
    }

    /// Goes on with the newest state, and says how many were left out.
    fn skip(&mut self, lost: u64, receiver: &mut Receiver<Bytes>) {
        let mut left_out = lost;
        let mut newest = None;
        while let Ok(event) = receiver.try_recv() {
            left_out += u64::from(newest.is_some());
            newest = Some(event);
        }
        self.ready.push_back(Bytes::from(format!(": lagged {left_out}\n\n")));
        self.ready.extend(newest);
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let event = ready!(self.get_mut().poll_next(cx));
        Poll::Ready(event.map(|event| Ok(Frame::data(event))))
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventStream").field("ready", &self.ready.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Everything that can be read now; the flag says that the stream has ended.
    fn drain(events: &mut EventStream) -> (Vec<String>, bool) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = Vec::new();
        loop {
            match events.poll_next(&mut cx) {
                Poll::Ready(Some(event)) => seen.push(String::from_utf8(event.to_vec()).unwrap()),
                Poll::Ready(None) => return (seen, true),
                Poll::Pending => return (seen, false),
            }
        }
    }

    fn numbered(live: &Live, numbers: std::ops::Range<usize>) {
        for number in numbers {
            live.publish(format!("{{\"n\":{number}}}").as_bytes());
        }
    }

    #[test]
    fn a_reader_gets_the_newest_state_and_each_change() {
        let live = Live::new();
        numbered(&live, 0..3);
        let mut reader = live.subscribe();
        assert_eq!(drain(&mut reader), (vec!["data: {\"n\":2}\n\n".to_owned()], false));
        numbered(&live, 3..5);
        live.publish(b"{\"n\":4}");
        let expected = vec!["data: {\"n\":3}\n\n".to_owned(), "data: {\"n\":4}\n\n".to_owned()];
        assert_eq!(drain(&mut reader), (expected, false));
    }

    #[test]
    fn a_state_taken_at_subscription_is_not_repeated() {
        let live = Live::new();
        assert!(!live.wanted());
        let mut reader = live.subscribe_from(b"{}");
        assert!(live.wanted());
        live.publish(b"{}");
        assert_eq!(drain(&mut reader), (vec!["data: {}\n\n".to_owned()], false));
        drop(reader);
        assert!(!live.wanted());
    }

    #[test]
    fn what_is_published_between_joining_and_the_first_state_is_not_missed() {
        let live = Live::new();
        let mut reader = live.join();
        live.publish(b"1");
        reader.begin(b"0");
        assert_eq!(drain(&mut reader), (vec!["data: 0\n\n".to_owned(), "data: 1\n\n".to_owned()], false));
        let mut late = live.join();
        live.close();
        let _ = drain(&mut late);
        late.begin(b"0");
        assert_eq!(drain(&mut late), (Vec::new(), true));
    }

    #[test]
    fn i10_a_slow_reader_is_told_and_gets_the_newest_and_the_others_lose_nothing() {
        let live = Live::new();
        let mut slow = live.subscribe();
        let mut quick = live.subscribe();
        let mut seen = Vec::new();
        for number in 0..1000 {
            numbered(&live, number..number + 1);
            seen.extend(drain(&mut quick).0);
        }
        assert_eq!(seen.len(), 1000);
        let expected = vec![": lagged 999\n\n".to_owned(), "data: {\"n\":999}\n\n".to_owned()];
        assert_eq!(drain(&mut slow), (expected, false));
        numbered(&live, 1000..1001);
        assert_eq!(drain(&mut slow), (vec!["data: {\"n\":1000}\n\n".to_owned()], false));
    }

    #[test]
    fn a_reader_within_the_backlog_sees_every_state() {
        let live = Live::new();
        let mut reader = live.subscribe();
        numbered(&live, 0..BACKLOG);
        assert_eq!(drain(&mut reader).0.len(), BACKLOG);
    }

    #[test]
    fn closing_ends_streams_after_what_was_published() {
        let live = Live::new();
        let mut reader = live.subscribe();
        live.publish(b"1");
        live.close();
        live.publish(b"2");
        assert_eq!(drain(&mut reader), (vec!["data: 1\n\n".to_owned()], true));
        assert_eq!(drain(&mut live.subscribe()), (Vec::new(), true));
        assert_eq!(drain(&mut live.subscribe_from(b"3")), (Vec::new(), true));
    }

    #[test]
    fn heartbeats_are_comments_and_always_sent() {
        let live = Live::new();
        let mut reader = live.subscribe();
        live.heartbeat();
        live.heartbeat();
        assert_eq!(drain(&mut reader).0, [":\n\n", ":\n\n"]);
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let live = Live::new();
        let mut reader = live.subscribe();
        let read = std::future::poll_fn(|cx| reader.poll_next(cx));
        let publish = async { live.publish(b"{}") };
        let (event, ()) = tokio::join!(read, publish);
        assert_eq!(event.unwrap(), "data: {}\n\n");
    }
}
