//! A hash in two multiplications and one for each eight bytes, where SipHash costs hundreds of instructions: for rows' ids
//! (it was a third of what folding an event cost) and for the names of models (two look-ups a request).
//!
//! Must never fill a table with what a client sends: it does not stand up to someone who chooses the keys. Looking up
//! what a client sends is harmless.

use std::hash::Hasher;

/// Odd and without pattern: the golden ratio's fraction, and a second one of the same kind.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const END: u64 = 0xD6E8_FEB8_6659_FD93;

/// Mixes numbers one after the other.
#[derive(Default, Debug)]
pub struct Mix(u64);

impl Hasher for Mix {
    /// Eight bytes at a time. What is left over is told apart by what follows it: a text ends with a byte of its own.
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(last) ^ (rest.len() as u64) << 60);
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        // Both halves of the product, or the high bits of one number could cancel those of the next.
        let product = u128::from(self.0 ^ number) * u128::from(STEP);
        self.0 = ((product >> 64) as u64 ^ product as u64).wrapping_add(END);
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
    use std::hash::Hash;

    #[test]
    fn neighbouring_ids_spread() {
        let of = |numbers: [u32; 4]| {
            let mut mix = Mix::default();
            numbers.into_iter().for_each(|number| mix.write_u32(number));
            mix.finish()
        };
        spread(&(0..65_536).map(|n| of([29_000_000, n / 256, n % 256, 0])).collect::<Vec<_>>());
    }

    #[test]
    fn similar_names_spread() {
        let of = |name: String| {
            let mut mix = Mix::default();
            name.hash(&mut mix);
            mix.finish()
        };
        spread(&(0..65_536).map(|n| of(format!("llama3.{}:{}b", n / 256, n % 256))).collect::<Vec<_>>());
        spread(&(0..65_536).map(|n| of(format!("{n:04x}/qwen3-coder-instruct:latest"))).collect::<Vec<_>>());
        let zeros = |count: usize| of("\0".repeat(count));
        assert_eq!((0..64).map(zeros).collect::<HashSet<_>>().len(), 64, "length counts");
    }

    fn spread(all: &[u64]) {
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len(), "no two are equal");
        for (bits, shift) in [(12, 0), (7, 57)] {
            let mut places = vec![0_usize; 1 << bits];
            all.iter().for_each(|hash| places[(hash >> shift) as usize & ((1 << bits) - 1)] += 1);
            let (mean, most) = (all.len() >> bits, places.iter().max().copied().unwrap_or(0));
            assert!(most < 3 * mean, "{most} of {mean} expected in one of {} places", places.len());
        }
    }
}
