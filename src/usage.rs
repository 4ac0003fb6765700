//! Accounting: one [`Outcome`] per request, handed to the worker's [`recorder::Recorder`], which never waits.
//!
//! The recorder bumps the worker's own counters ([`counters`]) and pushes one event on the worker's ring; the ledger
//! thread ([`ledger`]) drains the rings each tick, folds events into rows by (minute, node, model, key) and hands
//! batches to the store thread, the only LMDB writer. Must never block a worker.

pub mod answers;
pub mod core;
pub mod counters;
mod dictionary;
pub mod fold;
pub mod imported;
pub mod ledger;
#[cfg(proxy_locked)]
pub mod locked;
pub mod lost;
pub mod memory;
pub mod meters;
mod migration;
pub mod names;
mod query;
pub mod recorder;
mod room;
pub mod series;
pub mod speed;
pub mod store;
mod sums;
pub mod writer;

use crate::ids::{KeyId, ModelId, NodeId, UnixMinute};

/// How a request ended. Exactly one per request (I2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ending {
    /// The node's answer, whatever its status, went through to its end.
    Completed,
    /// The client left first.
    ClientGone,
    /// Every attempt failed before a byte of answer reached the client.
    NodeErrorBefore,
    /// The node was lost after bytes had gone to the client.
    NodeErrorAfter,
    /// Never sent to a node, and why.
    Rejected(Rejection),
}

impl Ending {
    /// Kinds of ending, reasons of rejection aside.
    pub const COUNT: usize = 5;

    /// Their names, in the order of [`Ending::index`].
    pub const LABELS: [&str; Self::COUNT] =
        ["completed", "client_gone", "node_error_before", "node_error_after", "rejected"];

    /// Its place in arrays of one figure per ending. Part of the ledger's format: never renumbered.
    #[must_use]
    pub const fn index(self) -> usize {
        match self {
            Self::Completed => 0,
            Self::ClientGone => 1,
            Self::NodeErrorBefore => 2,
            Self::NodeErrorAfter => 3,
            Self::Rejected(_) => 4,
        }
    }
}

/// Why a request was never sent to a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Rejection {
    /// The head or body is not a request (framing, JSON, name).
    BadRequest,
    /// No node, up or down, has the model (404).
    UnknownModel,
    /// No or a wrong key, a foreign Host or Origin, administration not allowed (401, 403).
    Forbidden,
    /// A node that is down has the model, or none can serve (503).
    NoNode,
    /// `queue_length` waiters already (503).
    QueueFull,
    /// `queue_wait` passed (503).
    QueueTimeout,
    /// The body exceeds `max_body` (413).
    BodyTooLarge,
    /// `body_memory` was full for too long (503).
    BodyMemory,
    /// The process is draining (503).
    Draining,
    /// The client was too slow with its request (408).
    SlowClient,
    /// The only nodes with the model speak another dialect (501).
    NotImplemented,
    /// A handler panicked (500).
    Internal,
}

impl Rejection {
    /// Every reason, in the order of its metric label.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::UnknownModel,
        Self::Forbidden,
        Self::NoNode,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::BodyTooLarge,
        Self::BodyMemory,
        Self::Draining,
        Self::SlowClient,
        Self::NotImplemented,
        Self::Internal,
    ];

    /// Its name in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::UnknownModel => "unknown_model",
            Self::Forbidden => "forbidden",
            Self::NoNode => "no_node",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyMemory => "body_memory",
            Self::Draining => "draining",
            Self::SlowClient => "slow_client",
            Self::NotImplemented => "not_implemented",
            Self::Internal => "internal",
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, serde::Serialize, serde::Deserialize)]
pub struct Tokens {
    /// Prompt tokens, cached ones included.
    pub input: u64,
    /// Of those, taken from a cache; 0 where the node does not say.
    pub cached: u64,
    /// Generated tokens.
    pub output: u64,
}

impl Tokens {
    /// The sum of both, figure by figure.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            cached: self.cached.saturating_add(other.cached),
            output: self.output.saturating_add(other.output),
        }
    }

    /// Input plus output: what the ancestor calls total tokens.
    #[must_use]
    pub const fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// Token counts and how sure they are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Count {
    /// The node reported them, at the end of the body.
    Exact(Tokens),
    /// Worked out by us (no usage in the body, or cut short). A sum of its own, never mixed with exact ones.
    Estimated(Tokens),
    /// Nothing to count (an error answer, a load, an audio file, a rejection).
    #[default]
    Nothing,
}

/// Everything the ledger learns of one request; fixed size, no heap.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Outcome {
    /// UTC minute of the request's end, fixed here, before any queue (I4).
    pub minute: UnixMinute,
    /// The node that answered, or was tried last; [`NodeId::NONE`] if none.
    pub node: NodeId,
    /// The model asked for.
    pub model: ModelId,
    /// The router key it came with.
    pub key: KeyId,
    /// How it ended.
    pub ending: Ending,
    /// Status sent to the client; 0 if it left before one.
    pub status: u16,
    /// Tokens.
    pub count: Count,
    /// The node's own durations, nanoseconds; 0 where it does not say.
    pub load_ns: u64,
    /// Prompt evaluation, nanoseconds.
    pub prompt_eval_ns: u64,
    /// Generation, nanoseconds.
    pub eval_ns: u64,
    /// Time spent waiting for a slot, microseconds.
    pub queue_us: u64,
    /// From the request's arrival to the first byte of the answer, microseconds; 0 if none came.
    pub first_byte_us: u64,
    /// From the request's arrival to its end, microseconds.
    pub total_us: u64,
}

impl Outcome {
    /// A request that ended like this, and of which nothing more is known.
    #[must_use]
    pub fn bare(minute: UnixMinute, ending: Ending) -> Self {
        Self {
            minute,
            node: NodeId::NONE,
            model: ModelId::UNKNOWN,
            key: KeyId::NONE,
            ending,
            status: 0,
            count: Count::Nothing,
            load_ns: 0,
            prompt_eval_ns: 0,
            eval_ns: 0,
            queue_us: 0,
            first_byte_us: 0,
            total_us: 0,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A completed request with nothing to count; tests set what they mean.
    pub(crate) fn outcome() -> Outcome {
        let bare = Outcome::bare(UnixMinute(29_000_000), Ending::Completed);
        Outcome { node: NodeId(0), model: ModelId(2), status: 200, ..bare }
    }

    #[test]
    fn labels_follow_their_index() {
        assert_eq!(Ending::LABELS[Ending::Rejected(Rejection::Internal).index()], "rejected");
        for (place, why) in Rejection::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place);
        }
    }
}
