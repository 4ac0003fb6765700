//! Where the words of the copies of one model lie: side by side, so that a decision over a thousand nodes reads a hundred
//! lines of memory and not a thousand.
//!
//! Neighbours on a line are written by different threads. That costs less than it seems: every decision reads the words of
//! all copies anyway, so whoever decides fetches each line that somebody wrote, and eight words of a line are fetched at
//! once. The poller's list of cells places them; [`super::Cell`] is the only one that changes a word.

use crate::sync::{Arc, AtomicU64, Ordering};

/// Words in one allocation. Under loom each cell has its own: a model counts every atomic it makes.
const WORDS: usize = if cfg!(proxy_loom) { 1 } else { 64 };

/// On a line of its own, apart from the reference counts that lie before it.
#[derive(Debug)]
#[repr(align(64))]
struct Words([AtomicU64; WORDS]);

/// One word of a bank. Cloning it shares the word.
#[derive(Clone, Debug)]
pub struct Place {
    words: Arc<Words>,
    at: usize,
}

impl Place {
    /// The word.
    #[inline]
    pub(crate) fn word(&self) -> &AtomicU64 {
        &self.words.0[self.at % WORDS]
    }
}

/// Hands out the words of one model's copies, one after the other. A word whose cell is gone is not used again: it goes
/// with the last cell of its allocation.
#[derive(Debug, Default)]
pub struct Bank {
    words: Option<Arc<Words>>,
    taken: usize,
}

impl Bank {
    /// The next word.
    pub(crate) fn place(&mut self, value: u64) -> Place {
        if self.taken == WORDS {
            *self = Self::default();
        }
        let fresh = || Arc::new(Words(std::array::from_fn(|_| AtomicU64::new(0))));
        let words = Arc::clone(self.words.get_or_insert_with(fresh));
        let place = Place { words, at: self.taken };
        self.taken += 1;
        // Published with the cell.
        place.word().store(value, Ordering::Relaxed);
        place
    }

    /// No cell has a word of it any more.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.words.as_ref().is_none_or(|words| Arc::strong_count(words) == 1)
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    #[test]
    fn words_lie_side_by_side_and_are_their_own() {
        let mut bank = Bank::default();
        let places: Vec<_> = (0..2 * WORDS as u64 + 1).map(|value| bank.place(value)).collect();
        assert!((0u64..).zip(&places).all(|(value, place)| place.word().load(Ordering::Relaxed) == value));
        let address = |at: usize| std::ptr::from_ref(places[at].word()).addr();
        assert_eq!(address(1) - address(0), 8);
        assert_eq!(address(0) % 64, 0, "a line is not shared with anything else");
        assert_ne!(address(WORDS).abs_diff(address(0)), 8 * WORDS, "the next allocation");
    }

    #[test]
    fn is_unused_when_its_cells_are_gone() {
        let mut bank = Bank::default();
        assert!(bank.is_unused());
        let place = bank.place(1);
        let shared = place.clone();
        drop(place);
        assert!(!bank.is_unused());
        drop(shared);
        assert!(bank.is_unused());
    }
}
