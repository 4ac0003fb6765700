//! The name of a header line against one that we know, a word at a time and without regard to case. Pure.
//!
//! Called for every line of every head, several times. Must only be asked about names that a parser let pass.

/// The bit that a small letter has and its capital has not; hyphens and digits have it.
const SMALL: u64 = 0x2020_2020_2020_2020;

/// Whether a line's name is this one. `wanted` is of small letters, digits and hyphens: among the bytes that a name may
/// hold, nothing but the letter's capital turns into one of these by setting that bit.
#[inline]
#[must_use]
pub fn is_name(name: &[u8], wanted: &'static str) -> bool {
    let wanted = wanted.as_bytes();
    let length = wanted.len();
    if name.len() != length {
        return false;
    }
    if length < 8 {
        return name.iter().zip(wanted).all(|(byte, wanted)| byte | 0x20 == *wanted);
    }
    // The last word overlaps the one before it.
    let last = length - 8;
    (0..last).step_by(8).chain([last]).all(|at| word(name, at) == word(wanted, at))
}

/// Whether a line's name begins so; `wanted` as for [`is_name`].
#[inline]
#[must_use]
pub fn name_begins(name: &[u8], wanted: &'static str) -> bool {
    name.get(..wanted.len()).is_some_and(|start| is_name(start, wanted))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(<[u8]>::first_chunk);
    chunk.map_or(0, |chunk| u64::from_le_bytes(*chunk)) | SMALL
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: [&str; 9] = [
        "te",
        "host",
        "x-api-key",
        "connection",
        "content-length",
        "proxy-connection",
        "transfer-encoding",
        "x-herdgate-max-wait",
        "access-control-request-",
    ];

    proptest! {
        /// Any name that a parser lets pass: one byte changed to another, in any case.
        #[test]
        fn is_what_ignoring_case_says(
            known in 0..KNOWN.len(), place in 0..64_usize, other in "[!#$%&'*+.^_`|~0-9a-zA-Z-]", capitals in any::<u32>(),
        ) {
            for wanted in KNOWN {
                let mut name = KNOWN[known].as_bytes().to_vec();
                if let Some(byte) = name.get_mut(place) {
                    *byte = other.as_bytes()[0];
                }
                let chosen = name.iter_mut().enumerate().filter(|(at, _)| capitals >> (at % 32) & 1 == 1);
                chosen.for_each(|(_, byte)| byte.make_ascii_uppercase());
                prop_assert_eq!(is_name(&name, wanted), name.eq_ignore_ascii_case(wanted.as_bytes()));
                let begins = name.get(..wanted.len()).is_some_and(|s| s.eq_ignore_ascii_case(wanted.as_bytes()));
                prop_assert_eq!(name_begins(&name, wanted), begins);
            }
        }
    }

    #[test]
    fn every_byte_of_a_name_counts() {
        for wanted in KNOWN {
            for at in 0..wanted.len() {
                let mut name = wanted.as_bytes().to_vec();
                name[at] = b'~';
                assert!(!is_name(&name, wanted), "{wanted} at {at}");
            }
            assert!(is_name(wanted.to_uppercase().as_bytes(), wanted));
        }
    }
}
