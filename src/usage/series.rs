//! What a row holds, and how rows and their keys look in bytes. Pure: no store, no clock, no names.
//!
//! Keys are big-endian, so that byte order is time order and a range scan is a time span:
//!
//! | table | key | bytes |
//! |---|---|---|
//! | minutes by time | minute, node, model, key, ended | 17 |
//! | minutes by model | model, minute, node, key, ended | 17 |
//! | days by time | day, node, model, key, ended | 17 |
//! | days by model | model, day, node, key, ended | 17 |
//! | totals | node, model, key, ended | 13 |
//! | pairs | node, model | 8 |
//! | dictionary | kind, id | 5 |
//!
//! Every part is a u32 (the kind and [`Ended`] a u8). Ids are the ledger's own ([`StoredId`]), never the process' dense
//! ids. A value is a version byte, a flags byte, a u32 whose bit `i` says that figure `i` of [`Row::FIGURES`] is not
//! zero, and those that are not as big-endian u64; both tables of a bucket hold it whole.

use super::answers::Bucket;
use super::{Count, Ending, Outcome, Tokens};
use crate::ids::{UnixDay, UnixMinute};

/// Version byte of an encoded row.
const ROW_VERSION: u8 = 2;

/// Sums over the requests of one (bucket, node, model, key), of one ending in the store and of all in most answers.
///
/// All sums saturate: a node that reports absurd numbers cannot wrap them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Row {
    /// Requests by ending, in the order of [`Ending::LABELS`].
    pub requests: [u64; Ending::COUNT],
    /// Tokens that nodes reported.
    pub exact: Tokens,
    /// Tokens that we worked out.
    pub estimated: Tokens,
    /// Load time that nodes reported, nanoseconds.
    pub load_ns: u64,
    /// Prompt evaluation that nodes reported, nanoseconds.
    pub prompt_eval_ns: u64,
    /// Generation that nodes reported, nanoseconds.
    pub eval_ns: u64,
    /// Time spent waiting for slots, microseconds.
    pub queue_us: u64,
    /// Times to first byte, summed, microseconds.
    pub first_byte_us: u64,
    /// Requests that got a first byte: what `first_byte_us` is divided by.
    pub first_bytes: u64,
    /// A minute more than an hour away from the newest one before it (a clock step, or the first after a quiet hour).
    pub far: bool,
}

impl Row {
    /// u64 figures in an encoded row.
    pub const FIGURES: usize = Ending::COUNT + 12;
    /// Length of an encoded row without figures; each that is not zero adds eight.
    pub const HEAD_BYTES: usize = 6;

    /// The row of a single request.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Self {
        let mut row = Self {
            load_ns: outcome.load_ns,
            prompt_eval_ns: outcome.prompt_eval_ns,
            eval_ns: outcome.eval_ns,
            queue_us: outcome.queue_us,
            first_byte_us: outcome.first_byte_us,
            first_bytes: u64::from(outcome.first_byte_us > 0),
            ..Self::default()
        };
        row.requests[outcome.ending.index()] = 1;
        match outcome.count {
            Count::Exact(tokens) => row.exact = tokens,
            Count::Estimated(tokens) => row.estimated = tokens,
            Count::Nothing => {}
        }
        row
    }

    /// Adds another row's sums.
    pub fn merge(&mut self, other: &Self) {
        for (sum, more) in self.requests.iter_mut().zip(other.requests) {
            *sum = sum.saturating_add(more);
        }
        self.exact = self.exact.plus(other.exact);
        self.estimated = self.estimated.plus(other.estimated);
        for (sum, more) in [
            (&mut self.load_ns, other.load_ns),
            (&mut self.prompt_eval_ns, other.prompt_eval_ns),
            (&mut self.eval_ns, other.eval_ns),
            (&mut self.queue_us, other.queue_us),
            (&mut self.first_byte_us, other.first_byte_us),
            (&mut self.first_bytes, other.first_bytes),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.far |= other.far;
    }

    /// Exact plus estimated tokens: what the ancestor's routes show.
    #[must_use]
    pub fn tokens(&self) -> Tokens {
        self.exact.plus(self.estimated)
    }

    /// All requests, whatever their ending.
    #[must_use]
    pub fn requests_total(&self) -> u64 {
        self.requests.iter().fold(0, |sum: u64, requests| sum.saturating_add(*requests))
    }

    /// The figures in the order of the format.
    fn figures(&self) -> [u64; Self::FIGURES] {
        let [completed, client_gone, error_before, error_after, rejected] = self.requests;
        [
            completed,
            client_gone,
            error_before,
            error_after,
            rejected,
            self.exact.input,
            self.exact.cached,
            self.exact.output,
            self.estimated.input,
            self.estimated.cached,
            self.estimated.output,
            self.load_ns,
            self.prompt_eval_ns,
            self.eval_ns,
            self.queue_us,
            self.first_byte_us,
            self.first_bytes,
        ]
    }

    /// Its bytes in the store.
    #[must_use]
    pub fn encode(&self) -> EncodedRow {
        let mut row = EncodedRow { bytes: [0; _], len: Self::HEAD_BYTES };
        let mut mask = 0_u32;
        for (place, figure) in self.figures().into_iter().enumerate().filter(|(_, figure)| *figure != 0) {
            mask |= 1 << place;
            row.bytes[row.len..row.len + 8].copy_from_slice(&figure.to_be_bytes());
            row.len += 8;
        }
        (row.bytes[0], row.bytes[1]) = (ROW_VERSION, u8::from(self.far));
        row.bytes[2..Self::HEAD_BYTES].copy_from_slice(&mask.to_be_bytes());
        row
    }

    /// Reads its bytes back; `None` if they are not a row of this version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_at_checked(Self::HEAD_BYTES)?;
        let mask = u32::from_be_bytes(head[2..].try_into().ok()?);
        if head[0] != ROW_VERSION || mask >> Self::FIGURES != 0 || rest.len() != 8 * mask.count_ones() as usize {
            return None;
        }
        let mut figures = [0_u64; Self::FIGURES];
        for figure in
            figures.iter_mut().enumerate().filter(|(place, _)| mask >> place & 1 == 1).map(|(_, figure)| figure)
        {
            let (first, more) = rest.split_first_chunk()?;
            (*figure, rest) = (u64::from_be_bytes(*first), more);
        }
        Some(Self::of_figures(figures, head[1] & 1 == 1))
    }

    /// A row of these figures in the order of the format.
    pub(super) fn of_figures(figures: [u64; Self::FIGURES], far: bool) -> Self {
        let [r0, r1, r2, r3, r4, ei, ec, eo, si, sc, so, load_ns, prompt_eval_ns, eval_ns, queue_us, first, firsts] =
            figures;
        Self {
            requests: [r0, r1, r2, r3, r4],
            exact: Tokens { input: ei, cached: ec, output: eo },
            estimated: Tokens { input: si, cached: sc, output: so },
            load_ns,
            prompt_eval_ns,
            eval_ns,
            queue_us,
            first_byte_us: first,
            first_bytes: firsts,
            far,
        }
    }
}

/// The bytes of a row, as many as it needs.
#[derive(Clone, Copy, Debug)]
pub struct EncodedRow {
    bytes: [u8; Row::HEAD_BYTES + 8 * Row::FIGURES],
    len: usize,
}

impl std::ops::Deref for EncodedRow {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// How the requests of a stored row ended: the last part of its key, so that what was spent on each ending adds up apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Ended(pub u8);

impl Ended {
    /// What completed, and what an earlier accounting brought: it counted nothing else.
    pub const COMPLETED: Self = Self::of(Ending::Completed);
    /// Requests of several endings that schema 1 had added up: nobody can tell any more what was spent on which.
    pub const MIXED: Self = Self(u8::MAX);

    /// Of one request.
    #[must_use]
    pub const fn of(ending: Ending) -> Self {
        Self(ending.index() as u8)
    }

    /// Its name in answers.
    #[must_use]
    pub fn label(self) -> &'static str {
        Ending::LABELS.get(usize::from(self.0)).unwrap_or(&"_mixed")
    }
}

/// An id in the store's dictionary: given out by the ledger, never reused, the same for ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StoredId(pub u32);

impl StoredId {
    /// No node, no key, an unknown model: the shared row of each kind.
    pub const NONE: Self = Self(0);
    /// Models beyond the bound on names.
    pub const OTHER: Self = Self(1);
    /// The first id of a real name; those below are kept for shared rows to come.
    pub const FIRST: Self = Self(16);
}

/// Whose row it is, in stored ids, and of which ending.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StoredParty {
    /// Node.
    pub node: StoredId,
    /// Model.
    pub model: StoredId,
    /// Router key.
    pub key: StoredId,
    /// How its requests ended.
    pub ended: Ended,
}

impl StoredParty {
    /// The smallest and the greatest there can be.
    pub(super) const EDGES: [Self; 2] = [Self::edge(0), Self::edge(u8::MAX)];

    const fn edge(byte: u8) -> Self {
        let id = StoredId(u32::from_be_bytes([byte; 4]));
        Self { node: id, model: id, key: id, ended: Ended(byte) }
    }
}

/// Joins u32 parts, big-endian; a byte that is left over is 0.
fn join<const PARTS: usize, const BYTES: usize>(parts: [u32; PARTS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (place, part) in bytes.chunks_exact_mut(4).zip(parts) {
        place.copy_from_slice(&part.to_be_bytes());
    }
    bytes
}

/// Joins u32 parts and the ending behind them.
fn join_row<const PARTS: usize, const BYTES: usize>(parts: [u32; PARTS], ended: Ended) -> [u8; BYTES] {
    let mut bytes = join(parts);
    bytes[PARTS * 4] = ended.0;
    bytes
}

/// Splits the key of a row into its u32 parts and the ending; `None` if it has another length.
fn split_row<const PARTS: usize>(key: &[u8]) -> Option<([u32; PARTS], Ended)> {
    let (ended, parts) = key.split_last()?;
    Some((split(parts)?, Ended(*ended)))
}

/// Splits a key into its u32 parts; `None` if it has another length.
#[must_use]
pub fn split<const PARTS: usize>(key: &[u8]) -> Option<[u32; PARTS]> {
    let mut parts = [0; PARTS];
    if key.len() != PARTS * 4 {
        return None;
    }
    for (part, place) in parts.iter_mut().zip(key.chunks_exact(4)) {
        *part = u32::from_be_bytes(place.try_into().ok()?);
    }
    Some(parts)
}

/// Key by time: of minutes and of days.
#[must_use]
pub fn by_time(time: u32, party: StoredParty) -> [u8; 17] {
    join_row([time, party.node.0, party.model.0, party.key.0], party.ended)
}

/// Reads a key by time.
#[must_use]
pub fn split_by_time(key: &[u8]) -> Option<(u32, StoredParty)> {
    let ([time, node, model, key], ended) = split_row(key)?;
    Some((time, StoredParty { node: StoredId(node), model: StoredId(model), key: StoredId(key), ended }))
}

/// Key by model: of minutes and of days.
#[must_use]
pub fn by_model(time: u32, party: StoredParty) -> [u8; 17] {
    join_row([party.model.0, time, party.node.0, party.key.0], party.ended)
}

/// Reads a key by model.
#[must_use]
pub fn split_by_model(key: &[u8]) -> Option<(u32, StoredParty)> {
    let ([model, time, node, key], ended) = split_row(key)?;
    Some((time, StoredParty { node: StoredId(node), model: StoredId(model), key: StoredId(key), ended }))
}

/// Key of a total.
#[must_use]
pub fn total(party: StoredParty) -> [u8; 13] {
    join_row([party.node.0, party.model.0, party.key.0], party.ended)
}

/// Reads the key of a total.
#[must_use]
pub fn split_total(key: &[u8]) -> Option<StoredParty> {
    let ([node, model, key], ended) = split_row(key)?;
    Some(StoredParty { node: StoredId(node), model: StoredId(model), key: StoredId(key), ended })
}

/// Key of a pair's place in the order of first sight.
#[must_use]
pub fn pair(node: StoredId, model: StoredId) -> [u8; 8] {
    join([node.0, model.0])
}

/// The first minute that a fold of everything older than `days` before `now_unix_ms` keeps.
///
/// A minute is folded if its first second lies before the cut; a cut within a minute folds that minute.
#[must_use]
pub fn first_kept(now_unix_ms: u64, keep_ms: u64) -> UnixMinute {
    let cut_ms = now_unix_ms.saturating_sub(keep_ms);
    UnixMinute(u32::try_from(cut_ms.div_ceil(60_000)).unwrap_or(u32::MAX))
}

/// Whether a minute lies more than an hour from the newest one before it.
#[must_use]
pub fn is_far(minute: UnixMinute, newest: Option<UnixMinute>) -> bool {
    newest.is_some_and(|newest| minute.0.abs_diff(newest.0) > 60)
}

/// The day bucket that a minute folds into.
#[must_use]
pub fn day_of(minute: UnixMinute) -> Bucket {
    Bucket::Day(minute.day())
}

/// Days in [`UnixDay`] of a minute number: how the fold groups what it counts.
#[must_use]
pub fn day_number(minute: u32) -> UnixDay {
    UnixMinute(minute).day()
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::usage::tests::outcome;

    fn tokens(input: u64, cached: u64, output: u64) -> Tokens {
        Tokens { input, cached, output }
    }

    #[test]
    fn bytes_of_a_row_are_the_format() {
        let row =
            Row { requests: [1, 2, 3, 4, 5], exact: tokens(6, 7, 8), far: true, first_bytes: 9, ..Row::default() };
        let bytes = row.encode();
        assert_eq!((bytes.len(), bytes[0], bytes[1]), (6 + 9 * 8, 2, 1));
        assert_eq!(bytes[2..6], 0b1_0000_0000_1111_1111_u32.to_be_bytes());
        assert_eq!(bytes[6..14], 1_u64.to_be_bytes());
        assert_eq!(bytes[6 + 5 * 8..6 + 6 * 8], 6_u64.to_be_bytes());
        assert_eq!(bytes[6 + 8 * 8..], 9_u64.to_be_bytes());
        assert_eq!(Row::decode(&bytes), Some(row));
        assert_eq!(Row::default().encode()[..], [2, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn foreign_bytes_are_no_row() {
        let bytes = Row { eval_ns: 1, ..Row::default() }.encode().to_vec();
        assert!(Row::decode(&bytes).is_some());
        for cut in 0..bytes.len() {
            assert_eq!(Row::decode(&bytes[..cut]), None);
        }
        for (place, wrong) in [(0, 1), (0, 3), (2, 0x80), (3, 2), (5, 1)] {
            let mut bytes = bytes.clone();
            bytes[place] ^= wrong;
            assert_eq!(Row::decode(&bytes), None, "byte {place}");
        }
        assert_eq!(Row::decode(&[bytes, vec![0; 8]].concat()), None);
    }

    #[test]
    fn a_row_of_a_request_holds_what_it_came_to() {
        let row = Row::of(&Outcome {
            ending: Ending::ClientGone,
            count: Count::Estimated(tokens(1, 0, 2)),
            first_byte_us: 40,
            eval_ns: 7,
            ..outcome()
        });
        assert_eq!(row.requests, [0, 1, 0, 0, 0]);
        assert_eq!((row.exact, row.estimated), (tokens(0, 0, 0), tokens(1, 0, 2)));
        assert_eq!((row.first_byte_us, row.first_bytes, row.eval_ns), (40, 1, 7));
    }

    #[test]
    fn sums_saturate() {
        let mut row = Row { exact: tokens(u64::MAX, 0, u64::MAX), load_ns: u64::MAX, ..Row::default() };
        row.merge(&row.clone());
        assert_eq!((row.exact.input, row.load_ns, row.tokens().total()), (u64::MAX, u64::MAX, u64::MAX));
    }

    #[test]
    fn keys_sort_by_time_first() {
        let party = |node, model| StoredParty {
            node: StoredId(node),
            model: StoredId(model),
            key: StoredId(0),
            ended: Ended(4),
        };
        assert!(by_time(255, party(9, 9)) < by_time(256, party(0, 0)));
        assert!(by_model(256, party(9, 1)) < by_model(0, party(0, 2)));
        assert_eq!(split_by_time(&by_time(7, party(1, 2))), Some((7, party(1, 2))));
        assert_eq!(split_by_model(&by_model(7, party(1, 2))), Some((7, party(1, 2))));
        assert_eq!(split_total(&total(party(1, 2))), Some(party(1, 2)));
        assert_eq!(split_by_time(&[0; 16]), None);
    }

    #[test]
    fn the_cut_folds_whole_minutes() {
        let day = 86_400_000;
        assert_eq!(first_kept(31 * day, 30 * day), UnixMinute(1440));
        assert_eq!(first_kept(31 * day + 1, 30 * day), UnixMinute(1441), "the minute of the cut began before it");
        assert_eq!(first_kept(day, 30 * day), UnixMinute(0), "nothing is older than the epoch");
    }

    #[test]
    fn far_is_more_than_an_hour_either_way() {
        let at = |minute| is_far(UnixMinute(minute), Some(UnixMinute(1000)));
        assert_eq!([939, 940, 1000, 1060, 1061].map(at), [true, false, false, false, true]);
        assert!(!is_far(UnixMinute(5), None));
    }

    proptest! {
        #[test]
        fn rows_survive_their_encoding(figures in any::<[u64; 17]>(), far: bool) {
            let row = Row::of_figures(figures.map(|figure| if figure % 3 == 0 { 0 } else { figure }), far);
            prop_assert_eq!(Row::decode(&row.encode()), Some(row));
        }
    }
}
