//! Buffers of one worker's client connections, lent only while bytes are under way: ten thousand idle streams hold none.

use std::cell::RefCell;

use bytes::BytesMut;

/// Room for what a client sends at once: a 16 KiB prompt and its head come in one read.
const INPUT_BYTES: usize = 32 * 1024;
/// Room for what one read of a node gives, framed.
const OUTPUT_BYTES: usize = 20 * 1024;
/// Larger buffers are not kept, and not more than so many.
const KEPT_BYTES_MAX: usize = 64 * 1024;
const KEPT_MAX: usize = 64;

/// Spare buffers; empty ones.
#[derive(Debug, Default)]
pub struct Buffers {
    inputs: RefCell<Vec<BytesMut>>,
    outputs: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// A buffer to read into.
    #[must_use]
    pub fn input(&self) -> BytesMut {
        self.inputs.borrow_mut().pop().unwrap_or_else(|| BytesMut::with_capacity(INPUT_BYTES))
    }

    /// Takes one back. Where somebody still holds a part of it, it goes when they are done.
    pub fn reclaim_input(&self, mut input: BytesMut) {
        let mut inputs = self.inputs.borrow_mut();
        if inputs.len() < KEPT_MAX && input.try_reclaim(INPUT_BYTES) && input.capacity() <= KEPT_BYTES_MAX {
            input.clear();
            inputs.push(input);
        }
    }

    /// A buffer to write from.
    #[must_use]
    pub fn output(&self) -> Vec<u8> {
        self.outputs.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(OUTPUT_BYTES))
    }

    /// Takes one back.
    pub fn reclaim_output(&self, mut output: Vec<u8>) {
        let mut outputs = self.outputs.borrow_mut();
        if outputs.len() < KEPT_MAX && (1..=KEPT_BYTES_MAX).contains(&output.capacity()) {
            output.clear();
            outputs.push(output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_unless_it_grew_or_is_shared() {
        let buffers = Buffers::default();
        let mut input = buffers.input();
        input.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
        let head = input.split_to(18).freeze();
        buffers.reclaim_input(input);
        assert_eq!(buffers.inputs.borrow().len(), 0, "its head is held");
        drop(head);
        buffers.reclaim_input(buffers.input());
        assert_eq!(buffers.inputs.borrow().len(), 1);
        assert!(buffers.input().capacity() >= INPUT_BYTES);
        let mut input = buffers.input();
        let place = input.as_ptr();
        input.extend_from_slice(b"GET / HTTP/1.1\r\n\r\nbody");
        let (head, body) = (input.split_to(18).freeze(), input.split_to(4).freeze());
        drop((head, body));
        buffers.reclaim_input(input);
        assert_eq!(buffers.input().as_ptr(), place, "used again when its parts are gone");
        buffers.reclaim_output(Vec::with_capacity(KEPT_BYTES_MAX + 1));
        assert_eq!(buffers.outputs.borrow().len(), 0);
    }
}
