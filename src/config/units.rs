//! Durations and sizes as people write them, and the nearest word to a misspelt one. Pure.

use std::time::Duration;

const MILLIS_PER_UNIT: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const BYTES_PER_UNIT: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Parses `100ms`, `2s`, `5m`, `24h`, `30d`: a whole number and one unit.
///
/// # Errors
/// A reason that shows a right one.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = number_and_unit(text);
    let example = "a duration is a whole number and a unit: 100ms, 2s, 5m, 24h, 30d";
    if number.is_empty() {
        return Err(example.to_owned());
    }
    if unit.is_empty() {
        return Err(format!("has no unit, such as {number}s; {example}"));
    }
    let Some(&(_, factor)) = MILLIS_PER_UNIT.iter().find(|&&(name, _)| name == unit) else {
        return Err(example.to_owned());
    };
    let millis = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    millis.map(Duration::from_millis).ok_or_else(|| "is too long; the longest are of some years: 3650d".to_owned())
}

/// Parses `64KiB`, `128MiB`, `1GiB` or plain bytes.
///
/// # Errors
/// A reason that shows a right one.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = number_and_unit(text);
    let example = "a size is a whole number of bytes, or of KiB, MiB, GiB: 65536, 64KiB, 128MiB";
    if number.is_empty() {
        return Err(example.to_owned());
    }
    let factor = match BYTES_PER_UNIT.iter().find(|&&(name, _)| name == unit) {
        Some(&(_, factor)) => factor,
        None if unit.is_empty() => 1,
        None => {
            let near =
                BYTES_PER_UNIT.iter().find(|(name, _)| name[..1].eq_ignore_ascii_case(unit.get(..1).unwrap_or("")));
            let hint = near.map(|(name, _)| format!("; did you mean {number}{name}?")).unwrap_or_default();
            return Err(format!("{example}{hint}"));
        }
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(|| "is too large".to_owned())
}

fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// Writes a duration as [`duration`] reads it, in the largest unit that fits exactly.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fits = MILLIS_PER_UNIT.iter().rev().find(|&&(_, factor)| millis != 0 && millis.is_multiple_of(factor));
    fits.map_or_else(|| "0s".to_owned(), |&(unit, factor)| format!("{}{unit}", millis / factor))
}

/// Writes a size as [`size`] reads it, in the largest unit that fits exactly.
pub(super) fn show_size(bytes: u64) -> String {
    let fits = BYTES_PER_UNIT.iter().rev().find(|&&(_, factor)| bytes != 0 && bytes.is_multiple_of(factor));
    fits.map_or_else(|| bytes.to_string(), |&(unit, factor)| format!("{}{unit}", bytes / factor))
}

/// The candidate nearest to a misspelt word: at most one slip in three characters, or a prefix of it up to `_`
/// (`max_body_bytes`).
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    // Far beyond any key; bounds the work on hostile text.
    if word.chars().count() > 64 {
        return None;
    }
    let slips_max = (word.chars().count() / 3).clamp(1, 3);
    let score = |candidate: &str| {
        let prefixed = word.strip_prefix(candidate).is_some_and(|rest| rest.starts_with('_'));
        if prefixed { 1 } else { slips(&word, candidate) }
    };
    let scored = candidates.into_iter().map(|candidate| (score(candidate), candidate));
    scored.filter(|&(score, _)| score <= slips_max).min_by_key(|&(score, _)| score).map(|(_, candidate)| candidate)
}

/// Letters to insert, drop, change or swap with their neighbour to get from one word to the other.
fn slips(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=to.len()).collect()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let changed = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in
            [("100ms", 100), ("2s", 2000), ("5m", 300_000), ("24h", 86_400_000), ("30d", 2_592_000_000), ("0s", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "s",
            "5",
            "1.5s",
            "-1s",
            " 2s",
            "2 s",
            "2S",
            "2sec",
            "1m30s",
            "99999999999999999999s",
            "99999999999999999d",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("5").unwrap_err().contains("5s"));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("1000", 1000), ("64KiB", 65_536), ("128MiB", 128 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "KiB",
            "64KB",
            "64k",
            "64 KiB",
            "1.5MiB",
            "-1",
            "99999999999999999999",
            "18446744073709551615KiB",
            "1ü",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("64KB").unwrap_err().contains("did you mean 64KiB?"));
    }

    #[test]
    fn what_is_shown_reads_back() {
        for millis in [0, 1, 100, 1000, 1500, 60_000, 3_600_000, 86_400_000, 90_061_001] {
            let value = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(value)), Ok(value));
        }
        for bytes in [0, 1, 1024, 1536, 128 << 20, 5 << 40, u64::MAX] {
            assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn near_words() {
        let keys = ["timeouts", "limits", "nodes", "max_body", "log"];
        for (word, near) in [
            ("timeout", "timeouts"),
            ("node", "nodes"),
            ("limtis", "limits"),
            ("max-body", "max_body"),
            ("max_body_bytes", "max_body"),
        ] {
            assert_eq!(nearest(word, keys), Some(near), "{word}");
        }
        assert_eq!(nearest("endpoints", keys), None);
        assert_eq!(nearest(&"x".repeat(100_000), keys), None);
    }
}
