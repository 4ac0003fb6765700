//! Administration counted: operations by what they were and what came of them, those under way, those kept for nodes that
//! are down and what came of these.
//!
//! Written on the control thread, read by whoever asks for metrics. Display counters, each on its own: nothing is decided
//! by them.

use crate::sync::{Arc, AtomicU64, Ordering};

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "each is the route of its name")]
pub enum Kind {
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    BlobHead,
    BlobPost,
}

impl Kind {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 7] =
        [Self::Pull, Self::Push, Self::Create, Self::Copy, Self::Delete, Self::BlobHead, Self::BlobPost];

    /// Its label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Create => "create",
            Self::Copy => "copy",
            Self::Delete => "delete",
            Self::BlobHead => "blob_head",
            Self::BlobPost => "blob_post",
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Every target did it.
    Done,
    /// Some did.
    Partial,
    /// Refused for what was asked (4xx).
    Refused,
    /// No node could.
    Failed,
    /// The client left before the end.
    ClientGone,
}

impl Ended {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::Done, Self::Partial, Self::Refused, Self::Failed, Self::ClientGone];

    /// Its label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::ClientGone => "client_gone",
        }
    }

    /// What an answer of this status says.
    #[must_use]
    pub const fn of_status(status: u16) -> Self {
        match status {
            0..400 => Self::Done,
            400..500 => Self::Refused,
            500.. => Self::Failed,
        }
    }
}

/// What came of one attempt to catch a node up, or of what was kept for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CaughtUp {
    /// Carried out.
    Done,
    /// The node's models were not as they had been: left alone.
    Void,
    /// Failed; tried again later.
    Failed,
    /// The node did not return in time.
    Expired,
}

impl CaughtUp {
    /// All, in the order of their declaration.
    pub const ALL: [Self; 4] = [Self::Done, Self::Void, Self::Failed, Self::Expired];

    /// Its label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Void => "void",
            Self::Failed => "failed",
            Self::Expired => "expired",
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub struct Tally {
    ended: [[AtomicU64; Ended::ALL.len()]; Kind::ALL.len()],
    under_way: AtomicU64,
    kept: AtomicU64,
    caught_up: [AtomicU64; CaughtUp::ALL.len()],
}

/// The counters at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TallySums {
    /// Operations by kind and what came of them.
    pub ended: Vec<(Kind, Ended, u64)>,
    /// Operations under way.
    pub under_way: u64,
    /// Operations kept for nodes that are down.
    pub kept: u64,
    /// What came of those.
    pub caught_up: Vec<(CaughtUp, u64)>,
}

impl Tally {
    /// Counts an operation as under way until what is returned is told its end, or dropped (then its client has left).
    #[must_use]
    pub fn begin(self: &Arc<Self>, kind: Kind) -> UnderWay {
        self.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay { tally: Arc::clone(self), kind, ended: Ended::ClientGone }
    }

    /// So many are kept now.
    pub fn keep(&self, count: usize) {
        self.kept.store(count as u64, Ordering::Relaxed);
    }

    /// This came of what was kept.
    pub fn caught_up(&self, how: CaughtUp, count: usize) {
        self.caught_up[how as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    /// All figures.
    #[must_use]
    pub fn sums(&self) -> TallySums {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let cells = Kind::ALL.into_iter().flat_map(|kind| Ended::ALL.map(|ended| (kind, ended)));
        TallySums {
            ended: cells.map(|(kind, ended)| (kind, ended, of(&self.ended[kind as usize][ended as usize]))).collect(),
            under_way: of(&self.under_way),
            kept: of(&self.kept),
            caught_up: CaughtUp::ALL.map(|how| (how, of(&self.caught_up[how as usize]))).to_vec(),
        }
    }
}

/// One operation under way.
#[derive(Debug)]
pub struct UnderWay {
    tally: Arc<Tally>,
    kind: Kind,
    ended: Ended,
}

impl UnderWay {
    /// It has ended so.
    pub fn ended(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.tally.under_way.fetch_sub(1, Ordering::Relaxed);
        self.tally.ended[self.kind as usize][self.ended as usize].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_under_way_and_then_counted_once() {
        let tally = Arc::new(Tally::default());
        let (pull, delete) = (tally.begin(Kind::Pull), tally.begin(Kind::Delete));
        assert_eq!(tally.sums().under_way, 2);
        pull.ended(Ended::Partial);
        drop(delete);
        let sums = tally.sums();
        assert_eq!(sums.under_way, 0);
        let counted: Vec<_> = sums.ended.into_iter().filter(|(.., count)| *count > 0).collect();
        assert_eq!(counted, [(Kind::Pull, Ended::Partial, 1), (Kind::Delete, Ended::ClientGone, 1)]);
        assert_eq!(
            [200, 301, 404, 503].map(Ended::of_status),
            [Ended::Done, Ended::Done, Ended::Refused, Ended::Failed]
        );
    }
}
