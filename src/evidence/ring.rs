//! A worker's last decisions in fixed places: one writer, any readers, nobody waits.

use std::sync::OnceLock;

use super::record::{ENDING_FROM, ENDING_UNTIL, WORDS, ended_words};
use super::{Ended, Record};
use crate::sync::{AtomicU64, Ordering, fence};

/// Decisions each worker keeps.
pub const KEPT: usize = 1024;
/// Places that are made together, when the first of them is needed: an idle worker's ring holds nothing.
const SEGMENT: usize = 64;
/// A reader that meets the writer this often in one place passes it by.
const LOOKS: usize = 8;

/// Of a version: its words are being changed.
const CHANGING: u64 = 1;
/// Of a version, above that bit: how often the decision was written, modulo this plus one.
const WRITTEN_MAX: u64 = 0x7f;

/// One place: 256 bytes.
///
/// # Invariants
/// 1. `version` is `number + 1`, how often that decision was written (7 bits), and a bit that is set while its words are
///    being changed: no two states of a place have the same one.
/// 2. Written by its worker alone.
///
/// # Orderings
/// A seqlock. The writer makes the version odd (Relaxed), then a Release fence, so that whoever reads a new word and
/// then fences sees that version; it stores the words (Relaxed), then the even version (Release). A reader loads the
/// version (Acquire: pairs with that Release, so the words are at least as new), the words (Relaxed), then an Acquire
/// fence, and the version again (Relaxed): the same even one means that no word of another state was read.
///
/// # Progress
/// The writer is wait-free; a reader gives a place up after [`LOOKS`] looks.
///
/// Model: `evidence::ring::model`.
#[derive(Debug)]
struct Place<const N: usize> {
    version: AtomicU64,
    words: [AtomicU64; N],
}

impl<const N: usize> Place<N> {
    fn new() -> Self {
        Self { version: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Replaces some words; the decision is number `number` from now on. For the worker alone.
    fn write(&self, number: u64, from: usize, words: &[u64]) {
        let before = self.version.load(Ordering::Relaxed);
        let written = if number_of(before) == Some(number) { before >> 1 & WRITTEN_MAX } else { 0 };
        let version = (number + 1) << 8 | ((written + 1) & WRITTEN_MAX) << 1;
        self.version.store(version | CHANGING, Ordering::Relaxed);
        fence(Ordering::Release);
        for (place, word) in self.words[from..].iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
        self.version.store(version, Ordering::Release);
    }

    /// Decision `number`, if it stands here whole.
    fn read(&self, number: u64) -> Option<[u64; N]> {
        for _ in 0..LOOKS {
            let before = self.version.load(Ordering::Acquire);
            if number_of(before) != Some(number) {
                return None;
            }
            let words = std::array::from_fn(|at| self.words[at].load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before & CHANGING == 0 && self.version.load(Ordering::Relaxed) == before {
                return Some(words);
            }
        }
        None
    }
}

/// The decision of a version.
fn number_of(version: u64) -> Option<u64> {
    (version >> 8).checked_sub(1)
}

/// The last [`KEPT`] decisions of one worker.
///
/// A later decision about the same request (a retry, the end of a wait) replaces the earlier one in its place, and so does
/// its end; a request that outlives the next 1,024 of its worker is forgotten.
#[derive(Debug)]
pub struct Decisions {
    segments: [OnceLock<Box<[Place<WORDS>]>>; KEPT / SEGMENT],
    /// Decisions ever begun. Relaxed: a reader that sees an older number misses the newest, no more.
    begun: AtomicU64,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { segments: [const { OnceLock::new() }; KEPT / SEGMENT], begun: AtomicU64::new(0) }
    }
}

impl Decisions {
    /// Writes a decision: in the place of decision `number`, or as a new one; its number. For the worker alone.
    pub fn decide(&self, number: Option<u64>, record: &Record) -> u64 {
        let begun = self.begun.load(Ordering::Relaxed);
        let number = match number {
            Some(number) if begun - number <= KEPT as u64 => number,
            _ => {
                self.begun.store(begun + 1, Ordering::Relaxed);
                begun
            }
        };
        self.place(number).write(number, 0, &record.to_words()[..record.used()]);
        number
    }

    /// The request of decision `number` has ended; forgotten decisions stay so. For the worker alone.
    pub fn end(&self, number: u64, ended: &Ended) {
        if self.begun.load(Ordering::Relaxed) - number > KEPT as u64 {
            return;
        }
        let place = self.place(number);
        let before = std::array::from_fn(|at| place.words[ENDING_FROM + at].load(Ordering::Relaxed));
        let words: [u64; ENDING_UNTIL - ENDING_FROM] = ended_words(before, ended);
        place.write(number, ENDING_FROM, &words);
    }

    /// Every decision still here, newest first; one that is being replaced right now may be missing.
    pub fn newest_first(&self) -> impl Iterator<Item = Record> + '_ {
        let begun = self.begun.load(Ordering::Relaxed);
        let oldest = begun.saturating_sub(KEPT as u64);
        (oldest..begun).rev().filter_map(|number| {
            let at = (number % KEPT as u64) as usize;
            let place = &self.segments[at / SEGMENT].get()?[at % SEGMENT];
            place.read(number).map(|words| Record::of_words(&words))
        })
    }

    fn place(&self, number: u64) -> &Place<WORDS> {
        let at = (number % KEPT as u64) as usize;
        let segment = self.segments[at / SEGMENT].get_or_init(|| (0..SEGMENT).map(|_| Place::new()).collect());
        &segment[at % SEGMENT]
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::super::record::tests::record;
    use super::super::{Fate, Why};
    use super::*;
    use crate::ids::{ModelId, NodeId};
    use crate::usage::Ending;

    fn ended(total_us: u64) -> Ended {
        Ended {
            node: NodeId(1),
            model: ModelId(2),
            ending: Ending::Completed,
            status: 200,
            retries: 0,
            queue_us: total_us,
            first_byte_us: total_us,
            total_us,
        }
    }

    #[test]
    fn i8_the_last_ones_are_kept_and_no_more() {
        let decisions = Decisions::default();
        assert_eq!(decisions.newest_first().count(), 0);
        for number in 0..3000 {
            assert_eq!(decisions.decide(None, &record(&format!("r{number}"))), number);
        }
        let kept: Vec<_> = decisions.newest_first().map(|record| record.id.as_str().to_owned()).collect();
        assert_eq!((kept.len(), &*kept[0], &*kept[KEPT - 1]), (KEPT, "r2999", "r1976"));
    }

    #[test]
    fn a_later_decision_and_the_end_stand_in_the_same_place() {
        let decisions = Decisions::default();
        let first = decisions.decide(None, &record("a"));
        decisions.decide(None, &record("b"));
        let mut again = record("a");
        again.why = Why::Cold;
        assert_eq!(decisions.decide(Some(first), &again), first);
        decisions.end(first, &ended(9));
        let read: Vec<_> = decisions.newest_first().collect();
        assert_eq!(read.len(), 2);
        assert_eq!((read[1].why, read[1].fate), (Why::Cold, Fate::Ended(Ending::Completed)));
        assert_eq!((read[1].total_us, read[0].fate), (9, Fate::Running));
    }

    #[test]
    fn an_end_that_comes_too_late_touches_nobody_elses_place() {
        let decisions = Decisions::default();
        let first = decisions.decide(None, &record("old"));
        for _ in 0..KEPT {
            decisions.decide(None, &record("new"));
        }
        decisions.end(first, &ended(9));
        assert!(decisions.newest_first().all(|record| record.fate == Fate::Running));
        assert_eq!(decisions.decide(Some(first), &record("late")), KEPT as u64 + 1);
        assert_eq!(decisions.newest_first().next().unwrap().id.as_str(), "late");
    }

    #[test]
    fn a_reader_never_sees_half_of_a_decision() {
        let decisions = Decisions::default();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..20_000 {
                    let mut record = record("x");
                    (record.queue_us, record.first_byte_us, record.total_us) = (round, round, round);
                    let number = decisions.decide(None, &record);
                    decisions.end(number, &ended(round));
                }
            });
            while !writer.is_finished() {
                for record in decisions.newest_first().take(8) {
                    assert_eq!((record.queue_us, record.first_byte_us), (record.total_us, record.total_us));
                }
            }
        });
    }
}

#[cfg(all(test, proxy_loom))]
mod model {
    use loom::thread;

    use super::*;
    use crate::sync::Arc;

    /// A place that is written again and again while another thread reads: it sees one state of it, or nothing.
    #[test]
    fn i5_a_reader_never_sees_half_of_a_write() {
        loom::model(|| {
            let place = Arc::new(Place::<2>::new());
            place.write(0, 0, &[1, 1]);
            let writer = {
                let place = Arc::clone(&place);
                thread::spawn(move || {
                    place.write(0, 0, &[2, 2]);
                    place.write(1, 0, &[3, 3]);
                })
            };
            if let Some([one, two]) = place.read(0) {
                assert_eq!(one, two);
                assert_ne!(one, 3, "that is another decision");
            }
            writer.join().unwrap();
        });
    }
}
