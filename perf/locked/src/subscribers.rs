//! Who reads the live state: a set of bounded queues under its lock; a slow reader loses the oldest states.
//!
//! Filled at every change by `publish`. Must never make the publisher wait for a reader.

use std::sync::Arc;

use bytes::Bytes;
use crossbeam::queue::ArrayQueue;
use tokio::sync::Notify;

use crate::Locked;

/// States that a reader may be behind.
pub const BACKLOG: usize = 10;

pub(crate) type Subscribers = Vec<Arc<Queue>>;

#[derive(Debug)]
pub(crate) struct Queue {
    states: ArrayQueue<Bytes>,
    filled: Notify,
}

impl Queue {
    pub(crate) fn push(&self, state: Bytes) {
        drop(self.states.force_push(state));
        self.filled.notify_one();
    }
}

/// A reader's place. It stays in the set until [`Locked::unsubscribe`].
#[derive(Debug)]
pub struct Subscription(Arc<Queue>);

impl Subscription {
    /// The next state.
    pub async fn next(&self) -> Bytes {
        loop {
            if let Some(state) = self.0.states.pop() {
                return state;
            }
            self.0.filled.notified().await;
        }
    }

    /// The next state, if there is one.
    #[must_use]
    pub fn try_next(&self) -> Option<Bytes> {
        self.0.states.pop()
    }
}

impl<R> Locked<R> {
    /// A new reader.
    pub async fn subscribe(&self) -> Subscription {
        let queue = Arc::new(Queue { states: ArrayQueue::new(BACKLOG), filled: Notify::new() });
        self.subscribers.lock().await.push(Arc::clone(&queue));
        Subscription(queue)
    }

    /// The reader is gone.
    pub async fn unsubscribe(&self, reader: &Subscription) {
        self.subscribers.lock().await.retain(|queue| !Arc::ptr_eq(queue, &reader.0));
    }
}
