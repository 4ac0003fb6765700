//! A hash for rows' ids: small numbers that we gave out ourselves. Two multiplications instead of SipHash, which was a
//! third of what folding an event cost.
//!
//! Must never hash what a client or a node sends: it does not stand up to someone who chooses the keys.

use std::hash::Hasher;

/// Odd and without pattern: the golden ratio's fraction, and a second one of the same kind.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const END: u64 = 0xD6E8_FEB8_6659_FD93;

/// Mixes numbers one after the other.
#[derive(Default, Debug)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(26) ^ number).wrapping_mul(STEP);
    }

    /// Tables look at the low bits and at the topmost: both must depend on all.
    fn finish(&self) -> u64 {
        let folded = (self.0 ^ self.0 >> 32).wrapping_mul(END);
        folded ^ folded >> 29
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn neighbouring_ids_spread() {
        let of = |numbers: [u32; 4]| {
            let mut mix = Mix::default();
            numbers.into_iter().for_each(|number| mix.write_u32(number));
            mix.finish()
        };
        let all: Vec<u64> = (0..65_536).map(|n| of([29_000_000, n / 256, n % 256, 0])).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "no two are equal");
        for (bits, shift) in [(12, 0), (7, 57)] {
            let mut places = vec![0_usize; 1 << bits];
            all.iter().for_each(|hash| places[(hash >> shift) as usize & ((1 << bits) - 1)] += 1);
            let (mean, most) = (all.len() >> bits, places.iter().max().copied().unwrap_or(0));
            assert!(most < 3 * mean, "{most} of {mean} expected in one of {} places", places.len());
        }
    }
}
