//! Monitoring routes: the ancestor's, health, metrics. Pure functions from the shared handles to an [`Answer`].
//!
//! What grows with the fleet is made on a thread of its own (`aside`). Called by `front` for its routes and by the control thread for the live stream's states. Reads counters, the
//! Snapshot and the ledger's answers; takes nothing, changes nothing but by [`monitor::aggregate`]. Must never wait for
//! a node: a dead one costs these routes nothing (I9).

mod aside;
mod decisions;
mod exposition;
mod flamegraph;
mod health;
mod ledger;
mod level;
mod metrics;
mod monitor;
mod reading;
mod status;

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde_json::json;

pub use decisions::decisions;
pub use flamegraph::flamegraph;
pub use health::{health, live, ready};
pub use ledger::ledger_usage;
pub use level::{log, set_log};
pub use metrics::metrics;
pub(crate) use monitor::parameter;
pub use monitor::{aggregate, config, import, ps_details, stats, token_counts, usage, usage_state, usage_stream};
pub(crate) use reading::pairs;
pub use status::status;

/// What a route answers, whole.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Value of `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

/// `Content-Type` of an event stream.
pub const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

impl Answer {
    /// A JSON answer with status 200.
    pub(crate) fn json(body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: body.into() }
    }

    /// A plain text answer.
    pub(crate) fn text(status: StatusCode, text: impl Into<Cow<'static, str>>) -> Self {
        let body = match text.into() {
            Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
            Cow::Owned(text) => Bytes::from(text),
        };
        Self { status, content_type: TEXT, body }
    }
}

/// An error in the ancestor's form: `{"detail": "…"}`.
#[must_use]
pub fn error(status: StatusCode, detail: &str) -> Answer {
    Answer { status, ..Answer::json(json!({ "detail": detail }).to_string()) }
}
