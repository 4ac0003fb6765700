//! A request ready for a node: its head, and its body as it came, with what is spliced into it.
//!
//! Made by `asked` for each attempt, sent by `wire` in as few writes as the kernel takes it. Must never copy a large body:
//! an insertion is a slice of its own between the two halves.

use std::io::IoSlice;

use bytes::Bytes;

use super::inject::Splice;

/// A body up to this size is copied behind its head: cheaper than a second slice in the write.
pub(super) const JOIN_BYTES_MAX: usize = 4096;
/// The head, and a body in two halves around an insertion.
pub(super) const SLICES_MAX: usize = 4;

/// Kept until the answer begins, for the free retry.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// With a small body behind it.
    head: Vec<u8>,
    body: Bytes,
    splice: Option<Splice>,
    pub(super) is_head: bool,
}

impl Outgoing {
    /// From the bytes that [`crate::http1::encode_request`] wrote (into
    /// [`Upstreams::buffer`](super::upstream::Upstreams::buffer)) and the body they announce, its insertion made.
    #[must_use]
    pub fn new(method: &http::Method, mut head: Vec<u8>, mut body: Bytes, mut splice: Option<Splice>) -> Self {
        if body.len() <= JOIN_BYTES_MAX {
            parts(&body, splice.take()).iter().for_each(|part| head.extend_from_slice(part));
            body = Bytes::new();
        }
        Self { head, body, splice, is_head: method == http::Method::HEAD }
    }

    /// All of its bytes.
    pub(super) fn len(&self) -> usize {
        self.head.len() + self.body.len() + self.splice.map_or(0, |splice| splice.insert.len())
    }

    /// What is left when `sent` bytes of it are: so many slices, none of them empty.
    pub(super) fn rest(&self, mut sent: usize) -> ([IoSlice<'_>; SLICES_MAX], usize) {
        let (mut slices, mut count) = ([IoSlice::new(&[]); SLICES_MAX], 0);
        let [before, insert, after] = parts(&self.body, self.splice);
        for part in [&self.head[..], before, insert, after] {
            let skipped = sent.min(part.len());
            sent -= skipped;
            if skipped < part.len() {
                slices[count] = IoSlice::new(&part[skipped..]);
                count += 1;
            }
        }
        (slices, count)
    }

    /// Nothing of it will be sent again: the body goes, and the head's buffer is somebody else's.
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        (self.body, self.splice) = (Bytes::new(), None);
        std::mem::take(&mut self.head)
    }
}

fn parts(body: &[u8], splice: Option<Splice>) -> [&[u8]; 3] {
    splice.map_or([body, &[], &[]], |splice| splice.parts(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPLICE: Splice = Splice { at: 5_999, insert: b",\"more\":1" };

    fn sent(request: &Outgoing, from: usize) -> Vec<u8> {
        let (slices, count) = request.rest(from);
        assert!(slices[..count].iter().all(|slice| !slice.is_empty()));
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn what_is_left_is_the_same_wherever_a_write_ended() {
        let mut body = vec![b'x'; 6_000];
        body[5_999] = b'}';
        let whole = [b"HEAD", &body[..5_999], SPLICE.insert, b"}"].concat();
        let request = Outgoing::new(&http::Method::POST, b"HEAD".to_vec(), body.into(), Some(SPLICE));
        assert_eq!(request.len(), whole.len());
        for from in (0..8).chain(5_995..=whole.len()) {
            assert_eq!(sent(&request, from), &whole[from..], "after {from}");
        }
        assert_eq!(request.rest(whole.len()).1, 0);
    }

    #[test]
    fn a_small_body_goes_with_its_head() {
        let splice = Splice { at: 1, insert: b"\"a\":1" };
        let request = Outgoing::new(&http::Method::POST, b"HEAD".to_vec(), Bytes::from_static(b"{}"), Some(splice));
        assert_eq!(sent(&request, 0), b"HEAD{\"a\":1}");
        assert_eq!(request.rest(0).1, 1);
    }
}
