//! What a JSON string means to Go: escapes, stray surrogates, invalid UTF-8, keys that match without regard to case,
//! and durations of zero.
//!
//! Called by [`super::scan`] on single short values. Must never allocate, except in [`decoded`].

use std::borrow::Cow;

use super::json::Text;

/// The string's value, borrowed where it stands there as it is.
pub(super) fn decoded(text: Text<'_>) -> Cow<'_, str> {
    match std::str::from_utf8(text.raw) {
        Ok(plain) if !text.escaped => Cow::Borrowed(plain),
        _ => Cow::Owned(Chars::of(text).collect()),
    }
}

/// Whether the string is exactly this one.
pub(super) fn is(text: Text<'_>, name: &str) -> bool {
    if text.escaped { Chars::of(text).eq(name.chars()) } else { text.raw == name.as_bytes() }
}

/// Whether a key names this (lower-case ASCII) field by Go's rule: equal under simple Unicode folding. Beyond ASCII that
/// concerns two characters: the long s and the Kelvin sign.
pub(super) fn names(key: Text<'_>, field: &str) -> bool {
    // What lies beyond ASCII is longer than the letter it stands for.
    if !key.escaped && (key.raw.len() <= field.len() || key.raw.is_ascii()) {
        return key.raw.len() == field.len() && key.raw.eq_ignore_ascii_case(field.as_bytes());
    }
    let folded = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    Chars::of(key).map(folded).eq(field.chars())
}

/// The characters of a string, decoded as Go decodes them: what is no UTF-8 becomes U+FFFD byte by byte, a surrogate
/// without its partner too.
struct Chars<'a> {
    rest: &'a [u8],
}

impl<'a> Chars<'a> {
    fn of(text: Text<'a>) -> Self {
        Self { rest: text.raw }
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default();
    }

    /// The unit of a `\uXXXX` at the front.
    fn unit(&self) -> Option<u32> {
        let digits = self.rest.strip_prefix(b"\\u")?.get(..4)?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    fn escape(&mut self) -> char {
        if let Some(unit) = self.unit() {
            self.advance(6);
            if let (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) = (unit, self.unit()) {
                self.advance(6);
                return char::from_u32(0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00)).unwrap_or('\u{fffd}');
            }
            return char::from_u32(unit).unwrap_or('\u{fffd}');
        }
        let kind = self.rest.get(1).copied();
        self.advance(2);
        match kind {
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(other) => char::from(other),
            None => '\u{fffd}',
        }
    }

    fn beyond_ascii(&mut self) -> char {
        for bytes in 2..=4 {
            let Some(Ok(text)) = self.rest.get(..bytes).map(std::str::from_utf8) else { continue };
            if let Some(c) = text.chars().next() {
                self.advance(bytes);
                return c;
            }
        }
        self.advance(1);
        '\u{fffd}'
    }
}

impl Iterator for Chars<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        Some(match *self.rest.first()? {
            b'\\' => self.escape(),
            byte @ 0..0x80 => {
                self.advance(1);
                char::from(byte)
            }
            _ => self.beyond_ascii(),
        })
    }
}

/// Whether a JSON number of seconds is a duration of zero: less than a nanosecond, and not negative (that means forever).
pub(super) fn zero_seconds(number: &[u8]) -> bool {
    let seconds = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f64>().ok());
    seconds.is_some_and(|seconds| (0.0..1.0).contains(&(seconds * 1e9)))
}

/// Whether a Go duration string (`0`, `0s`, `0h0m`, `.1ns`) is valid and zero.
pub(super) fn zero_duration(text: &str) -> bool {
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return true;
    }
    let mut terms = 0;
    while !rest.is_empty() {
        let Some(after) = zero_term(rest) else { return false };
        rest = after;
        terms += 1;
    }
    terms > 0
}

/// One number and its unit, if they are less than a nanosecond; gives what follows.
fn zero_term(text: &str) -> Option<&str> {
    let number_bytes = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(number_bytes);
    let unit_bytes = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_bytes);
    let unit_ns: f64 = match unit {
        "ns" => 1.0,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        "m" => 60e9,
        "h" => 3600e9,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) || whole.bytes().any(|digit| digit != b'0') {
        return None;
    }
    let (value, scale) = fraction_parts(fraction);
    // In Go's order of operations, so that rounding agrees.
    (value * (unit_ns / scale) < 1.0).then_some(rest)
}

/// The digits after the point and their power of ten. What a 63-bit integer cannot hold does not count, as in Go.
fn fraction_parts(digits: &str) -> (f64, f64) {
    let (mut value, mut scale) = (0_u64, 1.0_f64);
    for digit in digits.bytes() {
        if value > (i64::MAX as u64) / 10 {
            break;
        }
        value = value * 10 + u64::from(digit - b'0');
        scale *= 10.0;
    }
    (value as f64, scale)
}
