//! Exchanges whose client has left: each keeps its connection and what it holds until the node can bear the close.
//!
//! Filled by a dropped exchange, driven by one task per worker, asleep without a timer while there is none. Must never
//! close a connection by half, nor sooner than 50 ms after its request was sent whole. Source: Ollama leaks a socket for
//! good when a request is cancelled before its scheduler took it, and takes a half-close for a cancel.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, Sleep, sleep};

use super::upstream::{Detached, Held, Inner, count};
use super::wire::Wire;
use crate::ids::NodeId;

/// A node is not told of a cancel sooner than this after the request was sent whole (I12).
const LINGER_US: u64 = 50_000;
/// How long a complete answer may owe its terminator.
const DRAIN_US: u64 = 50_000;
/// Looks this often while something is near its deadline; 50 + 20 ms stay within the 100 ms of I12.
const SWEEP: Duration = Duration::from_millis(20);
/// Looks this often while only detached exchanges wait, for minutes.
const SWEEP_DETACHED: Duration = Duration::from_millis(100);

/// What becomes of an exchange that is dropped before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Leave {
    /// The node is told: closed 50 ms after the request was sent, at once if that has passed.
    #[default]
    Close,
    /// The answer is complete for its client, only its terminator is outstanding: read on to save the connection.
    Drain,
    /// A cold load before its first byte: kept until the model is up. Once the answer has begun, as [`Leave::Close`].
    Detach {
        /// The answer is a stream: its first byte means loaded. Otherwise [`Held::is_loaded`] is asked too.
        streamed: bool,
    },
}

/// Why an entry is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Linger,
    Drain { since_us: u64 },
    Detached { streamed: bool },
}

/// What a decision is made of.
#[derive(Clone, Copy, Debug)]
struct Facts {
    sent_at_us: u64,
    /// The answer came to its end.
    ended: bool,
    /// The connection broke.
    broken: bool,
    /// Status of the answer, once its head came.
    status: Option<StatusCode>,
    /// As the holder says.
    loaded: bool,
    grace_us: u64,
}

/// What to do with an entry now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Keep,
    /// Close it, or pool it where the answer ended.
    Release,
    /// The detached request came to this; the connection is closed as for a client that left.
    Report(Detached),
}

/// What an exchange that is left becomes; `None`: closed at once.
fn on_leave(leave: Leave, sent_at_us: Option<u64>, answering: bool, now_us: u64) -> Option<Mode> {
    // A request that was not sent whole is closed at once: the node has not begun with it.
    let sent_at_us = sent_at_us?;
    match leave {
        Leave::Drain => Some(Mode::Drain { since_us: now_us }),
        Leave::Detach { streamed } if !answering => Some(Mode::Detached { streamed }),
        Leave::Close | Leave::Detach { .. } => (now_us < sent_at_us + LINGER_US).then_some(Mode::Linger),
    }
}

/// What to do with an entry in its mode.
fn judge(mode: Mode, facts: &Facts, now_us: u64) -> Verdict {
    match mode {
        Mode::Detached { streamed } => match facts.status {
            Some(status) => Verdict::Report(Detached::Answered(status)),
            None if facts.broken || facts.ended => Verdict::Report(Detached::Failed),
            None if facts.loaded && !streamed => Verdict::Report(Detached::Loaded),
            None if now_us >= facts.sent_at_us + facts.grace_us => Verdict::Report(Detached::GaveUp),
            None => Verdict::Keep,
        },
        _ if facts.broken || facts.ended => Verdict::Release,
        Mode::Linger if now_us >= facts.sent_at_us + LINGER_US => Verdict::Release,
        Mode::Drain { since_us } if now_us >= since_us + DRAIN_US => Verdict::Release,
        Mode::Linger | Mode::Drain { .. } => Verdict::Keep,
    }
}

#[derive(Debug)]
struct Entry<P> {
    node: NodeId,
    wire: Box<Wire>,
    held: Option<P>,
    mode: Mode,
    sent_at_us: u64,
    broken: bool,
}

/// The list of one worker.
#[derive(Debug)]
pub(super) struct Lingering<P> {
    entries: RefCell<Vec<Entry<P>>>,
    detached: Cell<usize>,
    /// Of the task, while it sleeps.
    waker: RefCell<Option<Waker>>,
}

impl<P> Lingering<P> {
    pub(super) fn new() -> Self {
        Self { entries: RefCell::new(Vec::new()), detached: Cell::new(0), waker: RefCell::new(None) }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.borrow().len()
    }
}

impl<P: Held> Lingering<P> {
    /// Takes over what a dropped exchange leaves.
    pub(super) fn leave(&self, inner: &Inner<P>, node: NodeId, wire: Box<Wire>, held: Option<P>, leave: Leave) {
        let leave = match leave {
            Leave::Detach { .. } if self.detached.get() >= inner.settings.get().detached_max => Leave::Close,
            other => other,
        };
        let now_us = inner.clock.now_us();
        let mode = on_leave(leave, wire.sent_at_us, wire.status.is_some(), now_us);
        match mode {
            None | Some(Mode::Linger) => count(&inner.counts.lingered),
            Some(Mode::Detached { .. }) => count(&inner.counts.detached),
            Some(Mode::Drain { .. }) => {}
        }
        let Some(mode) = mode else { return };
        let sent_at_us = wire.sent_at_us.unwrap_or(now_us);
        if matches!(mode, Mode::Detached { .. }) {
            self.detached.set(self.detached.get() + 1);
        }
        self.entries.borrow_mut().push(Entry { node, wire, held, mode, sent_at_us, broken: false });
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Drives the entries for as long as the worker lives.
    pub(super) async fn run(&self, inner: &Inner<P>) {
        let mut timer = pin!(sleep(SWEEP));
        let mut due = None;
        poll_fn(|cx| -> Poll<()> {
            loop {
                self.turn(inner, cx);
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                let Some(pause) = self.pause() else {
                    due = None;
                    return Poll::Pending;
                };
                // A timer that is set stays, unless something more urgent has joined.
                let next = Instant::now() + pause;
                if due.is_none_or(|due| due > next) {
                    due = Some(next);
                    timer.as_mut().reset(next);
                }
                if Sleep::poll(timer.as_mut(), cx).is_pending() {
                    return Poll::Pending;
                }
                due = None;
            }
        })
        .await;
    }

    /// Until the next look; `None` while there is nothing to look at.
    fn pause(&self) -> Option<Duration> {
        let entries = self.entries.borrow().len();
        (entries > 0).then_some(if entries > self.detached.get() { SWEEP } else { SWEEP_DETACHED })
    }

    /// Reads what has come and decides about each entry.
    fn turn(&self, inner: &Inner<P>, cx: &mut Context<'_>) {
        // The list is out of its cell meanwhile: whatever a dropped permit sets off may leave another exchange here.
        let mut entries = self.entries.take();
        let mut at = 0;
        while at < entries.len() {
            if self.settle(inner, &mut entries[at], cx) {
                at += 1;
                continue;
            }
            let gone = entries.swap_remove(at);
            if gone.wire.is_ended() {
                inner.recycle(gone.node, gone.wire);
            }
        }
        entries.append(&mut self.entries.borrow_mut());
        *self.entries.borrow_mut() = entries;
    }

    /// True while the entry stays.
    fn settle(&self, inner: &Inner<P>, entry: &mut Entry<P>, cx: &mut Context<'_>) -> bool {
        if !entry.broken && !entry.wire.is_ended() {
            let read = entry.wire.poll_discard(cx, &mut inner.scratch.borrow_mut());
            entry.broken = matches!(read, Poll::Ready(Err(_)));
        }
        let now_us = inner.clock.now_us();
        loop {
            let facts = Facts {
                sent_at_us: entry.sent_at_us,
                ended: entry.wire.is_ended(),
                broken: entry.broken,
                status: entry.wire.status,
                loaded: matches!(entry.mode, Mode::Detached { .. }) && entry.held.as_ref().is_some_and(Held::is_loaded),
                grace_us: inner.settings.get().cold_load_grace_ms * 1000,
            };
            match judge(entry.mode, &facts, now_us) {
                Verdict::Keep => return true,
                Verdict::Release => return false,
                Verdict::Report(how) => {
                    self.detached.set(self.detached.get() - 1);
                    entry.mode = Mode::Linger;
                    if let Some(held) = &mut entry.held {
                        held.detached(how, inner.clock.now());
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: u64 = 1_000_000;
    const GRACE: u64 = 300_000_000;

    fn quiet() -> Facts {
        Facts { sent_at_us: SENT, ended: false, broken: false, status: None, loaded: false, grace_us: GRACE }
    }

    #[test]
    fn i12_a_cancel_waits_until_50_ms_after_the_request() {
        assert_eq!(on_leave(Leave::Close, Some(SENT), false, SENT), Some(Mode::Linger));
        assert_eq!(on_leave(Leave::Close, Some(SENT), true, SENT + 49_999), Some(Mode::Linger));
        assert_eq!(on_leave(Leave::Close, Some(SENT), true, SENT + 50_000), None);
        assert_eq!(judge(Mode::Linger, &quiet(), SENT + 49_999), Verdict::Keep);
        assert_eq!(judge(Mode::Linger, &quiet(), SENT + 50_000), Verdict::Release);
    }

    #[test]
    fn what_was_not_sent_whole_is_closed_at_once() {
        for leave in [Leave::Close, Leave::Drain, Leave::Detach { streamed: true }] {
            assert_eq!(on_leave(leave, None, false, SENT), None);
        }
    }

    #[test]
    fn an_ended_or_broken_answer_is_released_at_once() {
        for mode in [Mode::Linger, Mode::Drain { since_us: SENT }] {
            assert_eq!(judge(mode, &Facts { ended: true, ..quiet() }, SENT), Verdict::Release);
            assert_eq!(judge(mode, &Facts { broken: true, ..quiet() }, SENT), Verdict::Release);
        }
    }

    #[test]
    fn a_drain_has_50_ms_from_the_leave() {
        let left = SENT + 9_000_000;
        let mode = on_leave(Leave::Drain, Some(SENT), true, left);
        assert_eq!(mode, Some(Mode::Drain { since_us: left }));
        let mode = mode.expect("drain");
        assert_eq!(judge(mode, &quiet(), left + 49_999), Verdict::Keep);
        assert_eq!(judge(mode, &quiet(), left + 50_000), Verdict::Release);
    }

    #[test]
    fn only_a_load_without_an_answer_is_detached() {
        let leave = Leave::Detach { streamed: true };
        assert_eq!(on_leave(leave, Some(SENT), false, SENT + 60_000_000), Some(Mode::Detached { streamed: true }));
        assert_eq!(on_leave(leave, Some(SENT), true, SENT + 60_000_000), None);
        assert_eq!(on_leave(leave, Some(SENT), true, SENT), Some(Mode::Linger));
    }

    #[test]
    fn a_detached_load_ends_by_answer_model_breakage_or_time() {
        let judge = |streamed, facts: Facts, now| judge(Mode::Detached { streamed }, &facts, now);
        for streamed in [true, false] {
            assert_eq!(judge(streamed, quiet(), SENT + GRACE - 1), Verdict::Keep);
            assert_eq!(judge(streamed, quiet(), SENT + GRACE), Verdict::Report(Detached::GaveUp));
            let broken = Facts { broken: true, ..quiet() };
            assert_eq!(judge(streamed, broken, SENT), Verdict::Report(Detached::Failed));
            let answered = Facts { status: Some(StatusCode::OK), ended: true, loaded: true, ..quiet() };
            assert_eq!(judge(streamed, answered, SENT), Verdict::Report(Detached::Answered(StatusCode::OK)));
        }
        let loaded = Facts { loaded: true, ..quiet() };
        assert_eq!(judge(false, loaded, SENT), Verdict::Report(Detached::Loaded));
        assert_eq!(judge(true, loaded, SENT), Verdict::Keep, "its first byte follows");
    }
}
