//! One state for those who watch: put together under the locks of the counts, handed out under the subscribers' lock.
//!
//! Called at every change while the usage lock is held. Must never be called without it.

use bytes::Bytes;

use crate::name::{Map, Name};
use crate::subscribers::Subscribers;
use crate::usage::Counts;
use crate::{Locked, Publishing};

impl<R> Locked<R> {
    /// Publishes what `usage`, whose lock the caller holds, and the tokens' counts say.
    pub(crate) async fn publish(&self, usage: &Counts) {
        let tokens = self.token_usage.lock().await;
        if self.publishing == Publishing::WhenRead {
            return self.hand_out(&*self.subscribers.lock().await, usage, &tokens);
        }
        let state = state(usage, &tokens);
        drop(tokens);
        give(&*self.subscribers.lock().await, &state);
    }

    /// The same for a caller who holds the tokens' lock too.
    pub(crate) async fn publish_with(&self, usage: &Counts, tokens: &Counts) {
        if self.publishing == Publishing::WhenRead {
            return self.hand_out(&*self.subscribers.lock().await, usage, tokens);
        }
        let state = state(usage, tokens);
        give(&*self.subscribers.lock().await, &state);
    }

    /// The same for a caller who holds all three locks.
    pub(crate) fn hand_out(&self, subscribers: &Subscribers, usage: &Counts, tokens: &Counts) {
        if self.publishing == Publishing::WhenRead && subscribers.is_empty() {
            return;
        }
        give(subscribers, &state(usage, tokens));
    }

    /// The state now, as a reader would get it.
    pub async fn state(&self) -> Bytes {
        let usage = self.lock_usage().await;
        state(&usage, &*self.token_usage.lock().await)
    }
}

fn give(subscribers: &Subscribers, state: &Bytes) {
    for queue in subscribers {
        queue.push(state.clone());
    }
}

/// `{"token_usage_counts":{node:{model:n}},"usage_counts":…}`, keys sorted at every level.
fn state(usage: &Counts, tokens: &Counts) -> Bytes {
    let mut out = String::with_capacity(64 + 64 * (usage.len() + tokens.len()));
    out.push_str("{\"token_usage_counts\":");
    object(&mut out, tokens, |out, models| object(out, models, |out, count| push_number(out, *count)));
    out.push_str(",\"usage_counts\":");
    object(&mut out, usage, |out, models| object(out, models, |out, count| push_number(out, *count)));
    out.push('}');
    Bytes::from(out)
}

fn object<V>(out: &mut String, map: &Map<V>, value: impl Fn(&mut String, &V)) {
    let mut entries: Vec<(&Name, &V)> = map.iter().collect();
    entries.sort_unstable_by(|a, b| a.0.text().cmp(b.0.text()));
    out.push('{');
    for (place, (name, inner)) in entries.into_iter().enumerate() {
        if place > 0 {
            out.push(',');
        }
        out.push_str(name.quoted());
        out.push(':');
        value(out, inner);
    }
    out.push('}');
}

/// Decimal digits, without the formatting machinery.
fn push_number(out: &mut String, number: u64) {
    let mut digits = [0_u8; 20];
    let (mut at, mut left) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(left % 10).unwrap_or(0);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    out.extend(digits[at..].iter().map(|digit| char::from(*digit)));
}
