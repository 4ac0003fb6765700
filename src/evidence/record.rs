//! One decision as plain numbers, and its form as words that a ring can hold. Pure.

use super::Why;
use crate::ids::{KeyId, ModelId, NodeId, RequestId};
use crate::usage::Ending;

/// Candidates a record holds; of more, how many there were. The chosen one is always among them: they are those that
/// follow it in node order, the first ones after the last.
pub const CANDIDATES_MAX: usize = 16;

/// Words of a record.
pub(super) const WORDS: usize = WORDS_HEAD + CANDIDATES_MAX;
/// Words before the candidates.
const WORDS_HEAD: usize = 15;

/// Words that change when a request ends, from this one on; before them stands what its arrival fixed.
pub(super) const ENDING_FROM: usize = 8;
pub(super) const ENDING_UNTIL: usize = 14;

/// How a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Waiting, or being answered.
    Running,
    /// Over.
    Ended(Ending),
}

/// A candidate when the decision was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts, each shown under its own name")]
pub struct Standing {
    /// The node.
    pub node: NodeId,
    /// Slots taken there before this request; counts above 65,535 mean that.
    pub in_flight: u32,
    /// The limit in force, likewise.
    pub limit: u32,
    /// The limit is a preference.
    pub soft: bool,
    /// The model was loaded.
    pub loaded: bool,
    /// The model was being loaded.
    pub loading: bool,
    /// The node took new work.
    pub open: bool,
    /// The request can be served by its kind of node.
    pub fits: bool,
    /// It had failed this request before.
    pub tried: bool,
    /// Sick, and taken last for that (`routing.degrade`).
    pub last_choice: bool,
}

impl Standing {
    const NONE: Self = Self {
        node: NodeId::NONE,
        in_flight: 0,
        limit: 0,
        soft: false,
        loaded: false,
        loading: false,
        open: false,
        fits: false,
        tried: false,
        last_choice: false,
    };

    /// `node:24 | in_flight:16 | limit:16 | flags:8`
    fn to_word(self) -> u64 {
        let bounded = |value: u32| u64::from(value.min(0xffff));
        let flags = [self.soft, self.loaded, self.loading, self.open, self.fits, self.tried, self.last_choice];
        let flags = flags.iter().enumerate().fold(0, |sum, (place, flag)| sum | u64::from(*flag) << place);
        u64::from(self.node.0 & 0xff_ffff) << 40 | bounded(self.in_flight) << 24 | bounded(self.limit) << 8 | flags
    }

    fn of_word(word: u64) -> Self {
        let part = |shift: u32, bits: u32| u32::try_from(word >> shift & ((1 << bits) - 1)).unwrap_or(u32::MAX);
        let flag = |place: u32| word >> place & 1 == 1;
        let node = part(40, 24);
        Self {
            node: if node == 0xff_ffff { NodeId::NONE } else { NodeId(node) },
            in_flight: part(24, 16),
            limit: part(8, 16),
            soft: flag(0),
            loaded: flag(1),
            loading: flag(2),
            open: flag(3),
            fits: flag(4),
            tried: flag(5),
            last_choice: flag(6),
        }
    }
}

/// What is known when a request ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// The node that answered, or was tried last.
    pub node: NodeId,
    /// The model.
    pub model: ModelId,
    /// How it ended.
    pub ending: Ending,
    /// Status of the answer; 0 if the client left before one.
    pub status: u16,
    /// Nodes that failed it.
    pub retries: u8,
    /// Waited for slots, microseconds.
    pub queue_us: u64,
    /// Arrival to first byte, microseconds; 0 if none came.
    pub first_byte_us: u64,
    /// Arrival to end, microseconds.
    pub total_us: u64,
}

/// One decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// The request.
    pub id: RequestId,
    /// The route, as its place in [`crate::dialect::Route`].
    pub route: u8,
    /// Its key.
    pub key: KeyId,
    /// Its model.
    pub model: ModelId,
    /// The node; none yet, or none at all: [`NodeId::NONE`].
    pub node: NodeId,
    /// Why.
    pub why: Why,
    /// How it stands.
    pub fate: Fate,
    /// Status of the answer; 0 before one.
    pub status: u16,
    /// Nodes that failed it before.
    pub retries: u8,
    /// When it arrived, monotonic microseconds.
    pub arrived_us: u64,
    /// Waited for slots, microseconds.
    pub queue_us: u64,
    /// Arrival to first byte, microseconds; 0 before it.
    pub first_byte_us: u64,
    /// Arrival to end, microseconds; 0 before it.
    pub total_us: u64,
    /// Candidates there were.
    pub candidates: u16,
    /// How many of them stand in `standings`.
    pub shown: u8,
    /// The candidates, the chosen one first if there is one.
    pub standings: [Standing; CANDIDATES_MAX],
}

impl Record {
    /// A request that arrived, and nothing more.
    #[must_use]
    pub fn new(id: RequestId, route: u8, key: KeyId, arrived_us: u64) -> Self {
        Self {
            id,
            route,
            key,
            model: ModelId::UNKNOWN,
            node: NodeId::NONE,
            why: Why::Undecided,
            fate: Fate::Running,
            status: 0,
            retries: 0,
            arrived_us,
            queue_us: 0,
            first_byte_us: 0,
            total_us: 0,
            candidates: 0,
            shown: 0,
            standings: [Standing::NONE; CANDIDATES_MAX],
        }
    }

    /// Takes one more candidate in, while there is room.
    pub fn push(&mut self, standing: Standing) {
        if let Some(place) = self.standings.get_mut(usize::from(self.shown)) {
            *place = standing;
            self.shown += 1;
        }
    }

    /// Words that say something: those of candidates that are not there are left alone.
    pub(super) fn used(&self) -> usize {
        WORDS_HEAD + usize::from(self.shown)
    }

    pub(super) fn to_words(self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[..8].copy_from_slice(&self.id.to_words());
        words[8] = u64::from(self.node.0) << 32 | u64::from(self.model.0);
        words[9] = state(self.fate, self.status, self.retries);
        words[10] = u64::from(self.why.code()) << 32 | u64::from(self.key.0);
        words[11] = self.queue_us;
        words[12] = self.first_byte_us;
        words[13] = self.total_us;
        // 53 bits of microseconds are 285 years.
        words[14] = u64::from(self.route) << 58 | u64::from(self.shown) << 53 | self.arrived_us & ((1 << 53) - 1);
        for (word, standing) in words[WORDS_HEAD..].iter_mut().zip(&self.standings[..usize::from(self.shown)]) {
            *word = standing.to_word();
        }
        words[9] |= u64::from(self.candidates) << 48;
        words
    }

    pub(super) fn of_words(words: &[u64; WORDS]) -> Self {
        let low = |word: u64| u32::try_from(word & 0xffff_ffff).unwrap_or(0);
        let byte = |word: u64, shift: u32| u8::try_from(word >> shift & 0xff).unwrap_or(0);
        let mut id = [0; 8];
        id.copy_from_slice(&words[..8]);
        let shown = u8::try_from(words[14] >> 53 & 31).unwrap_or(0).min(CANDIDATES_MAX as u8);
        let mut standings = [Standing::NONE; CANDIDATES_MAX];
        for (standing, word) in standings.iter_mut().zip(&words[WORDS_HEAD..]).take(usize::from(shown)) {
            *standing = Standing::of_word(*word);
        }
        Self {
            id: RequestId::from_words(id),
            route: u8::try_from(words[14] >> 58).unwrap_or(0),
            key: KeyId(low(words[10])),
            model: ModelId(low(words[8])),
            node: NodeId(low(words[8] >> 32)),
            why: Why::of_code(byte(words[10], 32)),
            fate: fate(byte(words[9], 0)),
            status: u16::try_from(words[9] >> 16 & 0xffff).unwrap_or(0),
            retries: byte(words[9], 8),
            arrived_us: words[14] & ((1 << 53) - 1),
            queue_us: words[11],
            first_byte_us: words[12],
            total_us: words[13],
            candidates: u16::try_from(words[9] >> 48).unwrap_or(0),
            shown,
            standings,
        }
    }
}

/// The words `ENDING_FROM..ENDING_UNTIL` of a record whose request has ended; `before` are those that stand there.
pub(super) fn ended_words(
    before: [u64; ENDING_UNTIL - ENDING_FROM],
    ended: &Ended,
) -> [u64; ENDING_UNTIL - ENDING_FROM] {
    let [_, counts, why, ..] = before;
    let why_now = match ended.ending {
        Ending::Rejected(rejection) => Why::Refused(rejection),
        Ending::NodeErrorBefore => Why::Unanswered,
        _ => Why::Undecided,
    };
    let why = if why_now == Why::Undecided { why } else { u64::from(why_now.code()) << 32 | why & 0xffff_ffff };
    [
        u64::from(ended.node.0) << 32 | u64::from(ended.model.0),
        state(Fate::Ended(ended.ending), ended.status, ended.retries) | counts & 0xffff << 48,
        why,
        ended.queue_us,
        ended.first_byte_us,
        ended.total_us,
    ]
}

fn state(fate: Fate, status: u16, retries: u8) -> u64 {
    let fate = match fate {
        Fate::Running => 0,
        Fate::Ended(Ending::Rejected(why)) => 64 + why as u64,
        Fate::Ended(ending) => 1 + ending.index() as u64,
    };
    u64::from(status) << 16 | u64::from(retries) << 8 | fate
}

fn fate(code: u8) -> Fate {
    match code {
        1 => Fate::Ended(Ending::Completed),
        2 => Fate::Ended(Ending::ClientGone),
        3 => Fate::Ended(Ending::NodeErrorBefore),
        4 => Fate::Ended(Ending::NodeErrorAfter),
        code => match Why::of_code(code) {
            Why::Refused(why) => Fate::Ended(Ending::Rejected(why)),
            _ => Fate::Running,
        },
    }
}

#[cfg(all(test, not(proxy_loom)))]
pub(super) mod tests {
    use super::*;
    use crate::usage::Rejection;

    pub(crate) fn record(text: &str) -> Record {
        let id = RequestId::of_client(text.as_bytes()).expect("a sane id");
        let mut record = Record::new(id, 12, KeyId(3), 1_000_000_000_001);
        record.model = ModelId(7);
        record.node = NodeId(5);
        record.why = Why::OverLimit;
        record.retries = 2;
        record.queue_us = 17;
        record.candidates = 40;
        for node in 0..20 {
            record.push(Standing {
                node: NodeId(node),
                in_flight: node * 7000,
                limit: 4,
                soft: node % 2 == 0,
                loaded: true,
                loading: false,
                open: node % 3 == 0,
                fits: true,
                tried: node == 4,
                last_choice: node == 6,
            });
        }
        record
    }

    #[test]
    fn words_hold_all_of_a_record() {
        let record = record("request-1");
        assert_eq!(usize::from(record.shown), CANDIDATES_MAX);
        let mut expected = record;
        expected.standings.iter_mut().for_each(|standing| standing.in_flight = standing.in_flight.min(65_535));
        assert_eq!(Record::of_words(&record.to_words()), expected);
        let empty = Record::new(RequestId::NONE, 0, KeyId::NONE, 0);
        assert_eq!(Record::of_words(&empty.to_words()), empty);
    }

    #[test]
    fn an_end_changes_what_an_end_tells() {
        let record = record("request-1");
        let endings = [Ending::Completed, Ending::ClientGone, Ending::NodeErrorBefore, Ending::NodeErrorAfter];
        let rejected = Rejection::ALL.map(Ending::Rejected);
        for ending in endings.into_iter().chain(rejected) {
            let mut words = record.to_words();
            let ended = Ended {
                node: NodeId(9),
                model: ModelId(8),
                ending,
                status: 503,
                retries: 1,
                queue_us: 2,
                first_byte_us: 3,
                total_us: 4,
            };
            let mut before = [0; ENDING_UNTIL - ENDING_FROM];
            before.copy_from_slice(&words[ENDING_FROM..ENDING_UNTIL]);
            words[ENDING_FROM..ENDING_UNTIL].copy_from_slice(&ended_words(before, &ended));
            let read = Record::of_words(&words);
            assert_eq!((read.fate, read.status, read.retries), (Fate::Ended(ending), 503, 1));
            assert_eq!((read.node, read.model, read.total_us), (NodeId(9), ModelId(8), 4));
            assert_eq!((read.id, read.candidates, read.key), (record.id, 40, KeyId(3)));
            let why = match ending {
                Ending::Rejected(why) => Why::Refused(why),
                Ending::NodeErrorBefore => Why::Unanswered,
                _ => Why::OverLimit,
            };
            assert_eq!(read.why, why);
        }
    }
}
