//! Answers are made on a thread of their own: a worker has streams to move meanwhile.
//!
//! Called by every route whose answer grows with the fleet or with its request; only what is a handful of bytes is made
//! on the worker. A few at a time; more wait for a moment, and are then told to come back. `/health` and `/metrics` have
//! places of their own: whoever watches the process must not be turned away because others look at it.

use std::time::Duration;

use http::StatusCode;

use super::{Answer, error};
use crate::shared::Shared;
use crate::sync::{Arc, AtomicU32, Ordering, spawn_background};

/// Whose places an answer takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum For {
    /// `/health`.
    Health,
    /// `/metrics`.
    Metrics,
    /// Everything else.
    Others,
}

/// Answers being made at once, for each of [`For`].
const MOST: [u32; 3] = [2, 2, 4];

/// How often, and how many times, a request looks for a place: a second together.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const LOOKS: u32 = 200;

/// Whether there was a place among those taken.
fn take(taken: &[AtomicU32; 3], whose: For) -> bool {
    let taken = &taken[whose as usize];
    let fits = taken.fetch_add(1, Ordering::AcqRel) < MOST[whose as usize];
    if !fits {
        taken.fetch_sub(1, Ordering::AcqRel);
    }
    fits
}

/// A place taken.
struct Place(Arc<Shared>, For);

impl Place {
    async fn take(shared: &Arc<Shared>, whose: For) -> Option<Self> {
        for _ in 0..LOOKS {
            if take(&shared.aside, whose) {
                return Some(Self(shared.clone(), whose));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        None
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.aside[self.1 as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// What `make` comes to, made elsewhere.
pub(super) async fn aside(shared: &Arc<Shared>, make: impl FnOnce(&Shared) -> Answer + Send + 'static) -> Answer {
    aside_for(For::Others, shared, make).await
}

/// The same in the places of one route.
pub(super) async fn aside_for(
    whose: For,
    shared: &Arc<Shared>,
    make: impl FnOnce(&Shared) -> Answer + Send + 'static,
) -> Answer {
    made(whose, shared, make).await.unwrap_or_else(|refusal| refusal)
}

/// The same for what is no answer yet; `Err`: what to answer instead.
pub(super) async fn made<T: Send + 'static>(
    whose: For,
    shared: &Arc<Shared>,
    make: impl FnOnce(&Shared) -> T + Send + 'static,
) -> Result<T, Answer> {
    let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "as many answers as may be are being made already: come back");
    let place = Place::take(shared, whose).await.ok_or_else(busy)?;
    let (out, answer) = flume::bounded(1);
    let thread = spawn_background("aside", move || {
        let made = make(&place.0);
        drop(place);
        // Nobody waits any more: the client has left.
        let _ = out.send(made);
    });
    if thread.is_err() {
        return Err(busy());
    }
    let failed = |_| error(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made");
    answer.recv_async().await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_leave_health_and_metrics_their_places() {
        let places = Default::default();
        let others = std::iter::from_fn(|| take(&places, For::Others).then_some(())).take(100).count();
        assert_eq!(others, 4);
        assert!(!take(&places, For::Others));
        for whose in [For::Health, For::Metrics] {
            assert!(take(&places, whose) && take(&places, whose) && !take(&places, whose), "{whose:?}");
        }
    }
}
