//! Header lines as they stand on the wire, in one buffer that can be used again: what a head carries from one side to
//! the other. Pure. Must never hold a line that would end early or begin another.

use super::is_name;

/// Header lines in order, each `name: value` and CRLF. Names keep their spelling; look-ups ignore case.
///
/// Cheaper than a map where lines are passed on and few are asked for: appending copies, nothing is hashed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Lines {
    bytes: Vec<u8>,
}

impl Lines {
    /// No lines, in a buffer that may have been used before.
    #[must_use]
    pub fn in_buffer(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes }
    }

    /// Lines that were written elsewhere, each clean and with its end.
    #[must_use]
    pub(crate) fn holding(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Appends a line. Bytes that would end it (CR, LF, NUL) are left out, as is a colon in the name.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.reserve(name.len() + value.len() + 4);
        self.bytes.extend(name.iter().filter(|byte| !matches!(byte, b':' | b'\r' | b'\n' | 0)));
        self.bytes.extend_from_slice(b": ");
        push_clean(&mut self.bytes, value);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Appends a line of a head that was parsed: name and value are known to be clean.
    pub(crate) fn push_parsed(&mut self, name: &[u8], value: &[u8]) {
        self.bytes.reserve(name.len() + value.len() + 4);
        push_line(&mut self.bytes, name, value);
    }

    /// Name and value of each line.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            let end = memchr::memchr(b'\n', rest)?;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            rest = &rest[end + 1..];
            let colon = memchr::memchr(b':', line)?;
            let value = &line[colon + 1..];
            Some((&line[..colon], value.strip_prefix(b" ").unwrap_or(value)))
        })
    }

    /// The first value of this name, which is in small letters.
    #[must_use]
    pub fn get(&self, name: &'static str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| is_name(found, name)).map(|(_, value)| value)
    }

    /// The lines without the blank one that ends a head.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The buffer, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.bytes))
    }
}

/// Appends a header line whose name and value are known to be clean.
#[inline]
pub(crate) fn push_line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends text without the bytes that would end its line.
pub(super) fn push_clean(out: &mut Vec<u8>, text: &[u8]) {
    if memchr::memchr3(b'\r', b'\n', 0, text).is_none() {
        out.extend_from_slice(text);
    } else {
        out.extend(text.iter().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
    }
}

/// A plain decimal number: digits and nothing else, of at most 64 bits.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    let digit = |sum: u64, byte: &u8| {
        byte.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(u64::from(byte - b'0'))).flatten()
    };
    if text.is_empty() { None } else { text.iter().try_fold(0, digit) }
}

/// Appends a number in decimal, without an allocation.
pub fn push_decimal(out: &mut Vec<u8>, mut value: u64) {
    // u64::MAX has 20 digits.
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_read_back_in_order_and_by_any_case() {
        let mut lines = Lines::in_buffer(b"old".to_vec());
        lines.push(b"Content-Type", b"text/plain; a=\"b:c\"");
        lines.push(b"X-Empty", b"");
        lines.push(b"x-two", b"1");
        lines.push(b"X-Two", b"2");
        let all: Vec<_> = lines.iter().collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0], (&b"Content-Type"[..], &b"text/plain; a=\"b:c\""[..]));
        assert_eq!(lines.get("x-empty"), Some(&b""[..]));
        assert_eq!(lines.get("x-two"), Some(&b"1"[..]));
        assert_eq!(lines.get("x-three"), None);
    }

    #[test]
    fn a_number_is_digits_alone() {
        for text in ["0", "7", "0042", "18446744073709551615"] {
            assert_eq!(decimal(text.as_bytes()), text.parse().ok(), "{text}");
        }
        for text in ["", "+1", "-1", " 1", "1 ", "1a", "0x1", "18446744073709551616", "99999999999999999999"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn nothing_can_end_a_line_early() {
        let mut lines = Lines::default();
        lines.push(b"x\r\n:y", b"1\r\nevil: 2\0");
        assert_eq!(lines.as_bytes(), b"xy: 1evil: 2\r\n");
        assert_eq!(lines.iter().count(), 1);
    }
}
