//! Sixty-four bytes of a JSON string tested at once: what ends plain text in them, and where the string ends.
//!
//! Called by the scanner of bodies, whose text has an escape in every other block, at a place that no processor foretells:
//! a branch for each costs more than all of the tests, so there is none.

use wide::u8x16;

/// Bytes of a block.
pub(super) const BYTES: usize = 64;

/// The last place of a block.
const LAST: u64 = 1 << (BYTES - 1);

/// Bytes that one instruction looks at.
const LANES: usize = 16;

/// Places 0, 2, 4 … of a block.
const EVEN: u64 = 0x5555_5555_5555_5555;

/// What the bytes of a block are: bit n for byte n.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Marks {
    /// `"`.
    quotes: u64,
    /// `\`.
    backslashes: u64,
    /// Below a blank.
    controls: u64,
    /// The letters of the usual escapes: `n`, `r`, `t`.
    letters: u64,
}

impl Marks {
    /// Looks at a block.
    #[inline]
    pub(super) fn of(block: &[u8; BYTES]) -> Self {
        let (parts, _) = block.as_chunks::<LANES>();
        let mut marks = Self { quotes: 0, backslashes: 0, controls: 0, letters: 0 };
        // From the last one: each pushes those before it up.
        for part in parts.iter().rev() {
            let part = u8x16::new(*part);
            let is = |byte| part.simd_eq(u8x16::splat(byte));
            let push = |marks: &mut u64, hits: u8x16| *marks = *marks << LANES | u64::from(hits.to_bitmask());
            push(&mut marks.quotes, is(b'"'));
            push(&mut marks.backslashes, is(b'\\'));
            // What the least of itself and the last of them does not change.
            push(&mut marks.controls, part.min(u8x16::splat(0x1f)).simd_eq(part));
            push(&mut marks.letters, is(b'n') | is(b'r') | is(b't'));
        }
        marks
    }

    /// What is not plain text.
    #[inline]
    pub(super) const fn ends(&self) -> u64 {
        self.quotes | self.backslashes | self.controls
    }

    /// Backslashes that begin an escape, if the block begins outside of one: every other one of a run, from its first.
    #[inline]
    const fn escapes(&self) -> u64 {
        let runs = self.backslashes;
        let even_starts = runs & !(runs << 1) & EVEN;
        // The carry clears a run that it enters. The idea of letting an addition walk through runs is that of Langdale
        // and Lemire, "Parsing gigabytes of JSON per second" (2019), section 3.1.1.
        let after = runs.wrapping_add(even_starts);
        (runs & !after & EVEN) | (runs & after & !EVEN)
    }

    /// What the block is from its first byte to the string's end, or to its own; `None` where more than text and usual
    /// escapes is in it, or an escape lies across its end: that has to be looked at byte by byte.
    #[inline]
    pub(super) const fn run(&self) -> Option<Run> {
        let escapes = self.escapes();
        let escaped = escapes << 1;
        let closing = self.quotes & !escaped;
        // Below the lowest one; all, if there is none.
        let text = closing.wrapping_sub(1) & !closing;
        let usual = self.quotes | self.backslashes | self.letters;
        if (self.controls | (escaped & !usual) | (escapes & LAST)) & text != 0 {
            return None;
        }
        let closing = if closing == 0 { None } else { Some(closing.trailing_zeros() as usize) };
        Some(Run { closing, escaped: escapes & text != 0 })
    }
}

/// A part of a string that is what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    /// Where the closing quote is; `None`: the whole block is the string's.
    pub(super) closing: Option<usize>,
    /// There was an escape.
    pub(super) escaped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes as they meet in strings, those that matter in every second place.
    fn blocks() -> impl Strategy<Value = [u8; BYTES]> {
        let byte = prop_oneof![
            6 => Just(b'a'),
            3 => Just(b'\\'),
            1 => Just(b'"'),
            2 => prop::sample::select(b"nrtu/bf".to_vec()),
            1 => any::<u8>(),
        ];
        prop::collection::vec(byte, BYTES).prop_map(|bytes| bytes.try_into().unwrap())
    }

    /// Byte by byte: the same as `run`.
    fn walked(block: &[u8; BYTES]) -> Option<Run> {
        let (mut at, mut escaped) = (0, false);
        while at < BYTES {
            match (block[at], block.get(at + 1)) {
                (b'"', _) => return Some(Run { closing: Some(at), escaped }),
                (b'\\', Some(b'"' | b'\\' | b'n' | b'r' | b't')) => (at, escaped) = (at + 2, true),
                (b'\\', _) | (..0x20, _) => return None,
                _ => at += 1,
            }
        }
        Some(Run { closing: None, escaped })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn every_such_byte_is_marked_and_no_other(block in any::<[u8; BYTES]>(), dense in blocks()) {
            for block in [block, dense] {
                let marks = Marks::of(&block);
                for (at, &byte) in block.iter().enumerate() {
                    let is = |marks: u64| marks >> at & 1 == 1;
                    prop_assert_eq!(is(marks.quotes), byte == b'"', "byte {}", at);
                    prop_assert_eq!(is(marks.backslashes), byte == b'\\', "byte {}", at);
                    prop_assert_eq!(is(marks.controls), byte < 0x20, "byte {}", at);
                    prop_assert_eq!(is(marks.letters), b"nrt".contains(&byte), "byte {}", at);
                }
            }
        }

        #[test]
        fn a_run_is_what_a_walk_finds(block in blocks()) {
            prop_assert_eq!(Marks::of(&block).run(), walked(&block));
        }
    }
}
