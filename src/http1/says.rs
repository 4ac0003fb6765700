//! What the lines of one head say about framing and reuse of the connection, read in one pass. Pure.
//!
//! Called for heads of both directions. It reports what was said, contradictions included; what they mean is decided by
//! the reader of each direction, who has a rule of its own for them.

use super::lines::decimal;
use super::{KeepAlive, is_name};

/// What `Content-Length` said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Length {
    /// Nothing.
    #[default]
    Absent,
    /// One plain decimal number, once.
    Once(u64),
    /// The same number in several lines.
    Repeated(u64),
    /// Anything else.
    Bad,
}

/// What `Transfer-Encoding` said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Coding {
    /// Nothing, or `identity`.
    #[default]
    Plain,
    /// `chunked`, once.
    Chunked,
    /// What would need decoding, or ends we cannot see.
    Unsupported,
}

/// What the lines of one head say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Says {
    pub(crate) length: Length,
    pub(crate) coding: Coding,
    /// `Transfer-Encoding` said something else than the one word `chunked`, if only `identity` or nothing.
    pub(crate) coding_is_odd: bool,
    /// `Connection: close`.
    pub(crate) close: bool,
    /// `Connection: keep-alive`.
    pub(crate) keep: bool,
    /// `Connection` names other headers, which are then about this hop only.
    pub(crate) names_headers: bool,
    pub(crate) keep_alive: KeepAlive,
}

impl Says {
    /// Takes note of one line.
    pub(crate) fn note(&mut self, name: &[u8], value: &[u8]) {
        match name.len() {
            14 if is_name(name, "content-length") => self.note_length(value),
            17 if is_name(name, "transfer-encoding") => self.note_coding(value),
            10 if is_name(name, "connection") => self.note_connection(value),
            10 if is_name(name, "keep-alive") => self.note_keep_alive(value),
            _ => {}
        }
    }

    fn note_length(&mut self, value: &[u8]) {
        self.length = match (self.length, decimal(value)) {
            (Length::Absent, Some(number)) => Length::Once(number),
            (Length::Once(before) | Length::Repeated(before), Some(number)) if before == number => {
                Length::Repeated(number)
            }
            _ => Length::Bad,
        };
    }

    fn note_coding(&mut self, value: &[u8]) {
        self.coding_is_odd |= !value.eq_ignore_ascii_case(b"chunked");
        for coding in tokens(value) {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            self.coding = match self.coding {
                Coding::Plain if chunked => Coding::Chunked,
                Coding::Plain if coding.eq_ignore_ascii_case(b"identity") => Coding::Plain,
                _ => Coding::Unsupported,
            };
        }
    }

    fn note_connection(&mut self, value: &[u8]) {
        for token in tokens(value) {
            match token {
                token if token.eq_ignore_ascii_case(b"close") => self.close = true,
                token if token.eq_ignore_ascii_case(b"keep-alive") => self.keep = true,
                _ => self.names_headers = true,
            }
        }
    }

    fn note_keep_alive(&mut self, value: &[u8]) {
        for token in tokens(value) {
            let Some((name, value)) = std::str::from_utf8(token).ok().and_then(|t| t.split_once('=')) else { continue };
            let value = value.trim().trim_matches('"').parse().ok();
            match name.trim() {
                name if name.eq_ignore_ascii_case("timeout") => self.keep_alive.timeout_s = value,
                name if name.eq_ignore_ascii_case("max") => self.keep_alive.max = value,
                _ => {}
            }
        }
    }
}

/// The comma-separated elements of a value, trimmed, empty ones left out.
pub(crate) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}
