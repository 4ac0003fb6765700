//! `usage_injection`: asks Ollama for usage in a chat stream whose client did not, and takes the extra event out again.
//!
//! Called by proxy for `/v1/chat/completions` to Ollama nodes, uncompressed bodies only. Must never touch another byte
//! of either direction, nor hold back an event that cannot be the extra one. Source: decision 3; `ollama-api.md` §4.1.

use bytes::Bytes;

use super::scan::Scan;

/// One insertion into a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Splice {
    /// Where.
    pub at: usize,
    /// What.
    pub insert: &'static [u8],
}

/// Where and what to insert, if this body wants it: a chat stream that does not ask for usage already.
#[must_use]
pub fn plan(scan: &Scan<'_>) -> Option<Splice> {
    let _ = scan;
    None
}

/// The body with the insertion made.
#[must_use]
pub fn splice(body: &[u8], scan: &Scan<'_>) -> Option<Vec<u8>> {
    let Splice { at, insert } = plan(scan)?;
    let mut out = Vec::with_capacity(body.len() + insert.len());
    out.extend_from_slice(body.get(..at)?);
    out.extend_from_slice(insert);
    out.extend_from_slice(body.get(at..)?);
    Some(out)
}

/// Takes the injected event out of a stream. Give the [`Tail`](super::tail::Tail) the bytes *before* they come here.
#[derive(Debug, Default)]
pub struct Filter {}

impl Filter {
    /// A filter at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The part of the stream the client may have now. An ordinary payload comes back as it is, uncopied.
    #[must_use]
    pub fn push(&mut self, payload: Bytes) -> Bytes {
        payload
    }

    /// What was held back when the stream ends, unless it is the injected event.
    #[must_use]
    pub fn finish(&mut self) -> Bytes {
        Bytes::new()
    }
}
