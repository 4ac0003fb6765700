//! Lets a write wait for the reads of everybody who is ready now: once, within the same turn of the runtime.
//!
//! Called where a request goes to a node and where an answer goes to a client. A write wakes whoever reads at the other
//! end; writes that follow one another closely find him awake. Measured with 32 busy connections over loopback: of an
//! answer of 64 chunks 6 % of the CPU went into wake-ups that HAProxy, which reads first and writes after, did not pay.

use std::task::{Context, Poll};

/// The wait before one write. Costs one more poll of the task, no system call and no timer.
#[derive(Debug, Default)]
pub struct Behind {
    waited: bool,
}

impl Behind {
    /// `Pending` once: the task goes to the end of the queue of those that are ready. Ready from then on.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.waited {
            return Poll::Ready(());
        }
        self.waited = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Before another write.
    pub fn again(&mut self) {
        self.waited = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::future::poll_fn;

    #[tokio::test]
    async fn writes_come_after_the_reads_of_all_that_are_ready() {
        let order = RefCell::new(Vec::new());
        let one = |name: &'static str| {
            let (order, mut behind, mut has_read) = (&order, Behind::default(), false);
            poll_fn(move |cx| {
                if !has_read {
                    has_read = true;
                    order.borrow_mut().push(("read", name));
                }
                std::task::ready!(behind.poll(cx));
                order.borrow_mut().push(("write", name));
                Poll::Ready(())
            })
        };
        tokio::join!(one("a"), one("b"));
        let steps: Vec<&str> = order.borrow().iter().map(|&(step, _)| step).collect();
        assert_eq!(steps, ["read", "read", "write", "write"]);
    }
}
