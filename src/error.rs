//! What went wrong with a request, and what follows from it: who is at fault, what the client and the log are told.
//!
//! One function turns it into an answer (`proxy::refuse`). Imports no room but the dialects' texts.

use crate::dialect::texts::Refusal;

/// A request that gets no answer from a node.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProxyError {
    /// The body exceeds `max_body`.
    #[error("the request body exceeds {limit_bytes} bytes (limits.max_body)")]
    BodyTooLarge {
        /// The bound.
        limit_bytes: u64,
    },
    /// The body of a question to ourselves exceeds what such a question may need.
    #[error("the request body exceeds {limit_bytes} bytes, more than this route reads")]
    QuestionTooLarge {
        /// The bound.
        limit_bytes: u64,
    },
    /// The body stopped coming.
    #[error("the request body did not arrive in time (timeouts.request_body_idle)")]
    BodySlow,
    /// The body's framing broke, or the client left inside it.
    #[error("the request body is broken: {cause}")]
    BodyBroken {
        /// What hyper said.
        cause: String,
    },
    /// No room for the body for 30 s.
    #[error("the gate holds too many request bodies (limits.body_memory)")]
    BodyMemoryFull,
    /// What Ollama itself would refuse, in its words (unknown model, bad name, cloud).
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// A node that is not Ollama reads keys case-sensitively: this body means two things.
    #[error("this model's node needs every key in its usual spelling")]
    OddKeys,
    /// Only nodes that are down have the model, or none serves at all.
    #[error("no node that has {model} is up")]
    NodesDown {
        /// As the client named it.
        model: String,
    },
    /// `queue_length` requests wait already.
    #[error("server busy, please try again.  maximum pending requests exceeded")]
    QueueFull {
        /// Until the queue has drained, milliseconds.
        drain_ms: u64,
    },
    /// `queue_wait` passed.
    #[error("server busy, please try again.  no slot became free in time")]
    QueueTimeout,
    /// The process is going down.
    #[error("the gate is shutting down")]
    Draining,
    /// Every attempt failed before the first byte.
    #[error("no node could answer for {model}, please try again")]
    Unanswered {
        /// As the client named it.
        model: String,
    },
    /// Only OpenAI-compatible nodes have the model, and this is a native route.
    #[error("{model} is served by an OpenAI-compatible node: use {instead}")]
    OnlyOpenAi {
        /// As the client named it.
        model: String,
        /// The route that works.
        instead: &'static str,
    },
    /// Administration is not open to this request.
    #[error("model administration needs a router key here (administration)")]
    AdministrationClosed,
}

/// Whose fault it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The client's.
    Client,
    /// The nodes'.
    Node,
    /// Ours, or our operator's bounds.
    Gate,
}

impl ProxyError {
    /// The status for the client.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::BodyTooLarge { .. } | Self::QuestionTooLarge { .. } => 413,
            Self::BodySlow => 408,
            Self::BodyBroken { .. } | Self::OddKeys => 400,
            Self::Refused(refusal) => refusal.status,
            Self::OnlyOpenAi { .. } => 501,
            Self::AdministrationClosed => 403,
            Self::BodyMemoryFull
            | Self::NodesDown { .. }
            | Self::QueueFull { .. }
            | Self::QueueTimeout
            | Self::Draining
            | Self::Unanswered { .. } => 503,
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NodesDown { .. } | Self::Unanswered { .. } | Self::OnlyOpenAi { .. } => Fault::Node,
            Self::BodyMemoryFull | Self::QueueFull { .. } | Self::QueueTimeout | Self::Draining => Fault::Gate,
            _ => Fault::Client,
        }
    }

    /// Milliseconds after which the client may try again with hope; `None` where waiting does not help.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::QueueFull { drain_ms } => Some(*drain_ms),
            Self::NodesDown { .. } | Self::Draining => Some(5_000),
            Self::BodyMemoryFull | Self::QueueTimeout => Some(10_000),
            Self::Unanswered { .. } => Some(2_000),
            _ => None,
        }
    }

    /// The connection cannot be used again: part of the request was never read.
    #[must_use]
    pub fn closes(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::QuestionTooLarge { .. }
                | Self::BodySlow
                | Self::BodyBroken { .. }
                | Self::BodyMemoryFull
                | Self::Draining
        )
    }
}
