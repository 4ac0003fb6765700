//! The last bytes of a stream, and nothing else of it. Filled and read by the tail.

/// Bytes kept of the end of a stream.
pub const WINDOW_BYTES: usize = 2048;

/// The last bytes of what was pushed, in a ring that is allocated at the first one.
///
/// Invariant: they end before `pushed % WINDOW_BYTES`, and `pushed` of them are there, at most the ring's length.
#[derive(Debug, Default)]
pub(super) struct Window {
    ring: Option<Box<[u8; WINDOW_BYTES]>>,
    /// Bytes pushed since it was empty.
    pushed: usize,
}

/// A window's content from oldest to newest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept<'a> {
    pub(super) bytes: &'a [u8],
    /// Something came before it.
    pub(super) cut: bool,
}

impl Kept<'_> {
    /// Of it, the last so many bytes.
    pub(super) fn last(self, bytes: usize) -> Self {
        match self.bytes.len().checked_sub(bytes).filter(|&from| from > 0) {
            Some(from) => Self { bytes: &self.bytes[from..], cut: true },
            None => self,
        }
    }
}

impl Window {
    pub(super) fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// Forgets all of it; what is pushed next begins a line.
    pub(super) fn clear(&mut self) {
        self.pushed = 0;
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let ring = self.ring.get_or_insert_with(|| Box::new([0; WINDOW_BYTES]));
        let at = self.pushed % WINDOW_BYTES;
        if let Some(room) = ring.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
            self.pushed += bytes.len();
            return;
        }
        // Of more than a window only the end would stay.
        let skipped = bytes.len().saturating_sub(WINDOW_BYTES);
        self.pushed += skipped;
        let bytes = bytes.get(skipped..).unwrap_or_default();
        let at = self.pushed % WINDOW_BYTES;
        let (first, second) = bytes.split_at(bytes.len().min(WINDOW_BYTES - at));
        if let Some(room) = ring.get_mut(at..at + first.len()) {
            room.copy_from_slice(first);
        }
        if let Some(room) = ring.get_mut(..second.len()) {
            room.copy_from_slice(second);
        }
        self.pushed += bytes.len();
    }

    /// The content in one piece: what had wrapped is turned in its place.
    pub(super) fn in_order(&mut self) -> Kept<'_> {
        let Some(ring) = &mut self.ring else { return Kept { bytes: &[], cut: false } };
        let cut = self.pushed > WINDOW_BYTES;
        if cut {
            ring.rotate_left(self.pushed % WINDOW_BYTES);
            // Full, and its end at the ring's; one window more says that something came before.
            self.pushed = 2 * WINDOW_BYTES;
        }
        Kept { bytes: &ring[..self.pushed.min(WINDOW_BYTES)], cut }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_the_end_of_what_was_pushed(lengths in prop::collection::vec(0..3000_usize, 1..20), looks in any::<u32>()) {
            let (mut window, mut all) = (Window::default(), Vec::new());
            for (turn, length) in lengths.into_iter().enumerate() {
                let from = all.len();
                all.extend((from..from + length).map(|n| (n % 251) as u8));
                window.push(&all[from..]);
                // A look turns the ring; what is pushed afterwards must not notice.
                if looks >> (turn % 32) & 1 == 1 {
                    let kept = window.in_order();
                    prop_assert_eq!(kept.bytes, &all[all.len().saturating_sub(WINDOW_BYTES)..]);
                    prop_assert_eq!(kept.cut, all.len() > WINDOW_BYTES);
                }
            }
        }
    }
}
