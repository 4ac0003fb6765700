//! Why an attempt at a node failed, in the terms that routing, health and the log need. No decision is made here.

use std::io;

use crate::http1::DecodeError;

/// How far an attempt came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// No connection was had: the node knows nothing of the request.
    Connect,
    /// The request was not sent whole: a node acts only on whole requests.
    Send,
    /// The request was sent whole and no answer's head came.
    Answer,
}

/// What ended an attempt.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The node's name has not resolved.
    #[error("no address known")]
    NoAddress,
    /// Nobody listens on any of its addresses.
    #[error("connection refused")]
    Refused,
    /// `timeouts.connect` went by.
    #[error("connect timed out")]
    TimedOut,
    /// The node closed without a byte.
    #[error("closed without an answer")]
    Closed,
    /// Reset, unreachable and the like.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// What came is not an answer, or broke off inside its head.
    #[error("{0}")]
    Malformed(#[from] DecodeError),
}

impl Cause {
    /// We are out of files, ports or memory.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Io(error) if is_exhaustion(error))
    }
}

/// A failed attempt, with all that routing needs to know. Its text is for the log: clients must not see it.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct AttemptError {
    /// How far it came.
    pub stage: Stage,
    /// What ended it.
    #[source]
    pub cause: Cause,
    /// The connection had served an earlier request.
    pub reused: bool,
    /// Bytes of an answer came (never a whole head).
    pub heard: bool,
}

impl AttemptError {
    /// The whole request had been handed over: the node may have worked on it.
    #[must_use]
    pub fn sent_whole(&self) -> bool {
        self.stage == Stage::Answer
    }

    /// The node cannot have acted on the request: another attempt repeats nothing.
    #[must_use]
    pub fn retry_safe(&self) -> bool {
        !self.sent_whole() && !self.heard
    }

    /// Nobody listens there: the node is down now.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.cause, Cause::Refused)
    }

    /// There was no connection in time (`connect`).
    #[must_use]
    pub fn is_late(&self) -> bool {
        self.stage == Stage::Connect && matches!(self.cause, Cause::TimedOut)
    }

    /// We are out of files, ports or memory: it says nothing of the node.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.cause.is_ours()
    }
}

/// A body that broke off. Its text is for the log.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The framing is wrong, or the node closed inside the body.
    #[error("{0}")]
    Malformed(#[from] DecodeError),
}

fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| exhausted.iter().any(|errno| errno.raw_os_error() == code))
}
