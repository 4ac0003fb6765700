//! Sixty-four bytes of text tested at once, every one of them told.
//!
//! Called by the scanner of bodies, whose text has an end of some kind in every other block. The test runs over a whole
//! block in vector instructions that the compiler makes of a plain loop, on any machine; a movemask, for which there is
//! no safe door, is eight multiplications here.

/// Bytes of a block.
pub(super) const BYTES: usize = 64;

/// Gathers the lowest bit of each byte of a word, first byte first, in its highest byte.
const GATHER: u64 = 0x0102_0408_1020_4080;

/// Marks the bytes for which `test` holds: bit n for byte n.
#[inline]
pub(super) fn marks(block: &[u8; BYTES], test: impl Fn(u8) -> bool) -> u64 {
    let mut flags = [0_u8; BYTES];
    for (flag, &byte) in flags.iter_mut().zip(block) {
        *flag = u8::from(test(byte));
    }
    let (words, _) = flags.as_chunks::<8>();
    let gathered = words.iter().rev().map(|word| u64::from_le_bytes(*word).wrapping_mul(GATHER) >> 56);
    gathered.fold(0, |marks, eight| marks << 8 | eight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_such_byte_is_marked_and_no_other(block in any::<[u8; BYTES]>(), below in any::<u8>()) {
            let marks = marks(&block, |byte| byte < below);
            for (at, &byte) in block.iter().enumerate() {
                prop_assert_eq!(marks >> at & 1 == 1, byte < below, "byte {}", at);
            }
        }
    }
}
