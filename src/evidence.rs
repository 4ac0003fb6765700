//! What was decided for a request, kept for whoever asks why: the last [`KEPT`] decisions of each worker.
//!
//! Written by the proxy on the worker's own thread, read by admin on any. Must never wait, allocate for a decision (but
//! for a ring's first rounds), or hold a name that comes from a request: nodes, models and keys stand here as ids.

mod record;
mod ring;

pub use record::{CANDIDATES_MAX, Ended, Fate, Record, Standing};
pub use ring::{Decisions, KEPT};

use crate::ids::NodeId;
use crate::usage::Rejection;

/// Why a request went where it went, or nowhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Why {
    /// Nothing was decided (yet).
    #[default]
    Undecided,
    /// The model was loaded there, below its limit, with the least relative load.
    Loaded,
    /// The model was being loaded there.
    Loading,
    /// The request loads the model there: it was loaded nowhere that had room.
    Cold,
    /// Every loaded copy was at its soft limit; this one had the least relative load.
    OverLimit,
    /// The body names no model that is known: any node that is up.
    AnyNode,
    /// The model runs in the cloud: a node that may talk to it.
    Cloud,
    /// A question about the model: the first node that has it, without a slot.
    Details,
    /// Sent to every node that has the model loaded.
    Everywhere,
    /// No slot was free: it waits.
    Waiting,
    /// Every attempt failed before the first byte.
    Unanswered,
    /// Never sent to a node.
    Refused(Rejection),
}

impl Why {
    const PLAIN: [Self; 11] = [
        Self::Undecided,
        Self::Loaded,
        Self::Loading,
        Self::Cold,
        Self::OverLimit,
        Self::AnyNode,
        Self::Cloud,
        Self::Details,
        Self::Everywhere,
        Self::Waiting,
        Self::Unanswered,
    ];

    /// Its name in headers, logs and decisions.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Loaded => "loaded",
            Self::Loading => "loading",
            Self::Cold => "cold",
            Self::OverLimit => "over_limit",
            Self::AnyNode => "any_node",
            Self::Cloud => "cloud",
            Self::Details => "details",
            Self::Everywhere => "everywhere",
            Self::Waiting => "waiting",
            Self::Unanswered => "unanswered",
            Self::Refused(why) => why.label(),
        }
    }

    /// The same in words.
    #[must_use]
    pub const fn because(self) -> &'static str {
        match self {
            Self::Undecided => "nothing has been decided",
            Self::Loaded => "the model is loaded there, below its limit, with the least relative load",
            Self::Loading => "the model is being loaded there, and no loaded copy was below its limit",
            Self::Cold => "it loads the model there: no copy had room, and this node had the least work",
            Self::OverLimit => "every loaded copy was at its soft limit; this one had the least relative load",
            Self::AnyNode => "the body names no model that is known here: a node that is up words the error",
            Self::Cloud => "the model runs in the cloud: a node that may talk to it",
            Self::Details => "a question about the model: the first node that has it, without a slot",
            Self::Everywhere => "an unload goes to every node that has the model loaded",
            Self::Waiting => "no slot was free: it waits in the model's queue",
            Self::Unanswered => "every attempt failed before the first byte",
            Self::Refused(Rejection::UnknownModel) => "no node has the model, and its client was told so",
            Self::Refused(_) => "it was refused and never sent to a node",
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Undecided => 0,
            Self::Loaded => 1,
            Self::Loading => 2,
            Self::Cold => 3,
            Self::OverLimit => 4,
            Self::AnyNode => 5,
            Self::Cloud => 6,
            Self::Details => 7,
            Self::Everywhere => 8,
            Self::Waiting => 9,
            Self::Unanswered => 10,
            Self::Refused(why) => 64 + why as u8,
        }
    }

    fn of_code(code: u8) -> Self {
        let refused = code.checked_sub(64).and_then(|why| Rejection::ALL.get(usize::from(why)));
        refused
            .map_or_else(|| Self::PLAIN.get(usize::from(code)).copied().unwrap_or_default(), |why| Self::Refused(*why))
    }
}

/// Where a request went and why, as its answer says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// The node; [`NodeId::NONE`] if there is none.
    pub node: NodeId,
    /// Why.
    pub why: Why,
    /// Nodes that failed it before.
    pub retries: u8,
    /// Waited for slots, microseconds.
    pub queue_us: u64,
}

impl Chosen {
    /// Nothing was decided.
    pub const NOTHING: Self = Self { node: NodeId::NONE, why: Why::Undecided, retries: 0, queue_us: 0 };

    /// Never sent to a node, or answered by none.
    #[must_use]
    pub const fn refused(why: Why) -> Self {
        Self { why, ..Self::NOTHING }
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_its_code() {
        let refused = Rejection::ALL.map(Why::Refused);
        for why in Why::PLAIN.into_iter().chain(refused) {
            assert_eq!(Why::of_code(why.code()), why);
            assert!(why.label().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        }
        assert_eq!(Why::of_code(63), Why::Undecided);
        assert_eq!(Why::of_code(255), Why::Undecided);
    }
}
