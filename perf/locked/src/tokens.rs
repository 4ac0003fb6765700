//! Tokens: a queue, one worker that takes the time once per event, two buffers under one lock, counts under another.
//!
//! Requests call [`Locked::spend`] and never wait; [`Locked::work`] runs as one task; somebody calls
//! [`Locked::take_buffers`] periodically and at the end, and writes what it got after the lock is gone.

use crate::Locked;
use crate::name::{Map, Name};
use crate::usage::add;

/// Seconds in a minute.
const MINUTE: u64 = 60;

/// What one request spent.
#[derive(Clone, Debug)]
pub struct Event<R> {
    /// Where.
    pub node: Name,
    /// On which model.
    pub model: Name,
    /// Prompt tokens.
    pub input: u64,
    /// Generated tokens.
    pub output: u64,
    /// Whatever the caller wants to find in the row.
    pub detail: R,
}

/// One row of the time series: an event and its minute.
#[derive(Clone, Debug)]
pub struct Row<R> {
    /// The event.
    pub event: Event<R>,
    /// Unix seconds, floored to the UTC minute.
    pub timestamp: u64,
}

/// What waits to be written.
#[derive(Debug)]
pub struct Buffers<R> {
    /// Tokens in and out since the last flush, by node and model.
    pub tokens: Map<Map<(u64, u64)>>,
    /// One row per event since the last flush.
    pub series: Vec<Row<R>>,
}

impl<R> Default for Buffers<R> {
    fn default() -> Self {
        Self { tokens: Map::default(), series: Vec::new() }
    }
}

impl<R> Locked<R> {
    /// Puts an event on the token queue.
    pub fn spend(&self, event: Event<R>) {
        // Fails only when the receiver is gone, which lives as long as this does.
        let _ = self.token_queue.send(event);
    }

    /// The token worker: runs until it is dropped; what is on the queue then stays there for [`Locked::work_off`].
    pub async fn work(&self, unix_seconds: impl Fn() -> u64) {
        let mut queue = self.token_worker.lock().await;
        while let Some(event) = queue.recv().await {
            self.account(event, unix_seconds()).await;
        }
    }

    /// Takes what is on the queue, once the worker has ended.
    pub async fn work_off(&self, unix_seconds: impl Fn() -> u64) {
        let mut queue = self.token_worker.lock().await;
        while let Ok(event) = queue.try_recv() {
            self.account(event, unix_seconds()).await;
        }
    }

    /// What the worker does with one event: the time is taken before any lock.
    pub async fn account(&self, event: Event<R>, unix_seconds: u64) {
        let timestamp = unix_seconds - unix_seconds % MINUTE;
        let Event { node, model, input, output, .. } = &event;
        let (node, model, input, output) = (node.clone(), model.clone(), *input, *output);
        {
            let mut buffers = self.buffers.lock().await;
            let sums = buffers.tokens.entry(node.clone()).or_default().entry(model.clone()).or_default();
            *sums = (sums.0 + input, sums.1 + output);
            buffers.series.push(Row { event, timestamp });
        }
        let usage = self.lock_usage().await;
        let mut tokens = self.token_usage.lock().await;
        add(&mut tokens, &node, &model, input + output);
        self.publish_with(&usage, &tokens).await;
    }

    /// Takes the buffers out under their lock; the caller writes them afterwards.
    pub async fn take_buffers(&self) -> Buffers<R> {
        std::mem::take(&mut *self.buffers.lock().await)
    }

    /// All tokens counted on this node for this model.
    pub async fn tokens(&self, node: &Name, model: &Name) -> u64 {
        let tokens = self.token_usage.lock().await;
        tokens.get(node).and_then(|models| models.get(model)).copied().unwrap_or(0)
    }
}
