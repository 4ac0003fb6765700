//! Long answers are made on a thread of their own: a worker has streams to move meanwhile.
//!
//! Called by the routes whose answer takes milliseconds. A few at a time; more are told to come back.

use http::StatusCode;

use super::{Answer, error};
use crate::shared::Shared;
use crate::sync::{Arc, Ordering, spawn_thread};

/// Answers being made at once.
const ASIDE_MAX: u32 = 4;

/// What `make` comes to, made elsewhere.
pub(super) async fn aside(shared: &Arc<Shared>, make: impl FnOnce(&Shared) -> Answer + Send + 'static) -> Answer {
    struct Place(Arc<Shared>);
    impl Drop for Place {
        fn drop(&mut self) {
            self.0.aside.fetch_sub(1, Ordering::AcqRel);
        }
    }
    let taken = shared.aside.fetch_add(1, Ordering::AcqRel);
    let place = Place(shared.clone());
    let busy = || error(StatusCode::SERVICE_UNAVAILABLE, "four answers of this kind are being made already: come back");
    if taken >= ASIDE_MAX {
        return busy();
    }
    let (out, answer) = flume::bounded(1);
    let thread = spawn_thread("aside", move || {
        let made = make(&place.0);
        drop(place);
        // Nobody waits any more: the client has left.
        let _ = out.send(made);
    });
    if thread.is_err() {
        return busy();
    }
    let failed = |_| error(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made");
    answer.recv_async().await.unwrap_or_else(failed)
}
