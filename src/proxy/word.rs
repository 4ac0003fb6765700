//! Eight bytes of text tested at once.
//!
//! Called by the scanner of bodies and the reader of answers, whose runs of plain text are too short for a call to a
//! search routine. Must never be asked for more than the lowest hit: above it, a carry may have left a false one.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = ONES << 7;

/// Eight bytes, the first lowest.
pub(super) fn of(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// Marks bytes equal to this one.
pub(super) const fn equal(word: u64, byte: u8) -> u64 {
    let zero = word ^ (ONES * byte as u64);
    zero.wrapping_sub(ONES) & !zero & HIGHS
}

/// Marks control characters.
pub(super) const fn control(word: u64) -> u64 {
    word.wrapping_sub(ONES * 0x20) & !word & HIGHS
}

/// Marks what is no decimal digit; every mark is true.
pub(super) const fn no_digit(word: u64) -> u64 {
    // From 0 to 9 for digits, and the rest of seven bits above; 0x76 more carries those into the highest.
    ((((word ^ (ONES * b'0' as u64)) & !HIGHS) + ONES * 0x76) | word) & HIGHS
}

/// The word with brackets made braces and capitals made small (bit 5 set in every byte).
pub(super) const fn folded(word: u64) -> u64 {
    word | (ONES * 0x20)
}

/// Which byte is the first that is marked.
pub(super) const fn first(marks: u64) -> Option<usize> {
    if marks == 0 { None } else { Some(marks.trailing_zeros() as usize / 8) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_mark_is_the_first_such_byte(bytes in any::<[u8; 8]>(), wanted in any::<u8>(), fill in 0..3_u8) {
            let mut bytes = bytes;
            if fill == 0 {
                // Neighbours of the one wanted, where a carry would show.
                bytes.iter_mut().for_each(|byte| *byte = wanted.wrapping_add(*byte & 1));
            }
            let word = of(&bytes).unwrap();
            prop_assert_eq!(first(equal(word, wanted)), bytes.iter().position(|&byte| byte == wanted));
            prop_assert_eq!(first(control(word)), bytes.iter().position(|&byte| byte < 0x20));
            prop_assert_eq!(first(no_digit(word)), bytes.iter().position(|byte| !byte.is_ascii_digit()));
            let braces = equal(folded(word), b'{') | equal(folded(word), b'}') | equal(word, b'"');
            prop_assert_eq!(first(braces), bytes.iter().position(|byte| b"{}[]\"".contains(byte)));
        }
    }
}
