//! Filler text, JSON strings as Go writes them, and times as Go prints them.
//!
//! Called by everything in the simulation that writes an answer. Pure; never reads a clock.

use std::fmt::Write as _;
use std::time::Duration;

/// The sentences that every model speaks, token by token, over and over.
const TOKENS: [&str; 32] = [
    "I", "'m", " so", " glad", " you", "'re", " here", ".", " The", " herd", " is", " calm", ",", " the", " gate",
    " is", " open", " and", " every", " node", " takes", " its", " turn", ".", " Nothing", " waits", " longer",
    " than", " it", " must", " today", ".",
];

/// The text of the token at this place in an answer.
pub(super) fn token(at: u32) -> &'static str {
    TOKENS[at as usize % TOKENS.len()]
}

/// ASCII from the space on.
const PRINTABLE: &str =
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~";

/// A token of one character.
pub(super) fn character(byte: u8) -> &'static str {
    let at = usize::from(byte).saturating_sub(usize::from(b' '));
    PRINTABLE.get(at..=at).unwrap_or("?")
}

/// A made-up but fixed token id, for `context`.
pub(super) fn token_id(at: u32) -> u32 {
    (at.wrapping_mul(2_654_435_761) >> 16) % 49_152
}

/// How many tokens a text counts for: one a word.
pub(super) fn words(text: &str) -> u32 {
    u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX)
}

/// Appends a JSON string, escaped as Go escapes (also `<`, `>` and `&`).
pub(super) fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' | '\0'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A JSON string of its own.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    quote(&mut out, text);
    out
}

/// Year, month and day of a day count since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// Appends an RFC 3339 time in UTC, trailing zeros of the fraction trimmed.
pub(super) fn rfc3339(out: &mut String, since_epoch: Duration) {
    let secs = since_epoch.as_secs();
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    let _ = write!(out, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    let nanos = since_epoch.subsec_nanos();
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        out.push('.');
        out.push_str(fraction.trim_end_matches('0'));
    }
    out.push('Z');
}

/// The value of a `Date` header.
pub(super) fn http_date(since_epoch: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let secs = since_epoch.as_secs();
    let days = secs / 86_400;
    let (year, month, day) = civil(days);
    let weekday = DAYS[usize::try_from(days % 7).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{weekday}, {day:02} {month} {year} {hour:02}:{minute:02}:{second:02} GMT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_times_as_recorded() {
        let at = Duration::new(1_795_469_844, 904_378_100);
        assert_eq!(http_date(at), "Mon, 23 Nov 2026 21:37:24 GMT");
        let mut out = String::new();
        rfc3339(&mut out, at);
        assert_eq!(out, "2026-11-23T21:37:24.9043781Z");
    }

    #[test]
    fn escapes_as_go_does() {
        assert_eq!(quoted("<a & \"b\">\u{1}"), r#""\u003ca \u0026 \"b\"\u003e\u0001""#);
    }
}
