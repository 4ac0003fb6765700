//! `GET /herdgate/debug/flamegraph`: where this process spends its CPU time, while it runs.
//!
//! `?seconds=` (10; 1 to 60) says how long it is watched, `?format=` whether the answer is an SVG to look at (`svg`) or
//! collapsed stacks for other tools (`folded`). One profile at a time; a second request is answered with 409.
//! Off unless `debug.flamegraph` is on, and then only for who has a router key: a profile costs CPU time and tells how
//! the process is built. Without keys it is answered on a loopback listener alone.
//!
//! Called by `front`. The worker that serves the request only waits: a thread of its own samples, looks the symbols up
//! and draws. A client that leaves, or the process when it drains, ends it.

mod draw;
mod sample;

use bytes::Bytes;
use http::StatusCode;

use super::monitor::parameter;
use super::{Answer, TEXT, error};
use crate::clock::Millis;
use crate::shared::{Phase, Shared};
use crate::sync::{Arc, spawn_thread};

/// Seconds watched where the request does not say.
const SECONDS_DEFAULT: u32 = 10;
const SECONDS_MAX: u32 = 60;

const SVG: &str = "image/svg+xml";

/// What the answer is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Format {
    Svg,
    Folded,
}

/// Profiles the process as `query` says.
pub async fn flamegraph(shared: &Arc<Shared>, query: Option<&str>) -> Answer {
    if shared.config.now().router_keys.is_empty() && !shared.listen.ip().is_loopback() {
        return error(StatusCode::FORBIDDEN, "a flamegraph needs a router key here (router_keys)");
    }
    let (seconds, format) = match asked(query) {
        Ok(asked) => asked,
        Err(why) => return error(StatusCode::BAD_REQUEST, why),
    };
    let (out, answer) = flume::bounded(1);
    let shared = shared.clone();
    let thread = spawn_thread("flamegraph", move || {
        let until = shared.clock.now() + Millis::from(seconds) * 1000;
        let goes_on = || shared.clock.now() < until && !out.is_disconnected() && shared.phase() < Phase::Draining;
        // Nobody waits any more: the client has left.
        let _ = out.send(taken(goes_on, format));
    });
    if thread.is_err() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "no thread could be had for it");
    }
    let failed = |_| error(StatusCode::INTERNAL_SERVER_ERROR, "the profiler panicked");
    answer.recv_async().await.unwrap_or_else(failed)
}

/// Takes a profile on this thread while `goes_on`.
fn taken(goes_on: impl Fn() -> bool, format: Format) -> Answer {
    match sample::stacks(goes_on) {
        Ok((stacks, seconds)) => {
            let (content_type, body) = match format {
                Format::Svg => (SVG, draw::svg(&stacks, seconds, sample::HERTZ)),
                Format::Folded => (TEXT, draw::folded(&stacks)),
            };
            Answer { status: StatusCode::OK, content_type, body: Bytes::from(body) }
        }
        Err(sample::Failure::Busy) => error(StatusCode::CONFLICT, "a profile is being taken; only one at a time"),
        Err(sample::Failure::Refused(why)) => error(StatusCode::SERVICE_UNAVAILABLE, &why),
    }
}

fn asked(query: Option<&str>) -> Result<(u32, Format), &'static str> {
    let given = |name| query.and_then(|query| parameter(query, name));
    let seconds = match given("seconds") {
        None => Some(SECONDS_DEFAULT),
        Some(text) => text.parse().ok().filter(|seconds| (1..=SECONDS_MAX).contains(seconds)),
    };
    let format = match given("format").as_deref() {
        None | Some("svg") => Format::Svg,
        Some("folded") => Format::Folded,
        Some(_) => return Err("format must be svg or folded"),
    };
    Ok((seconds.ok_or("seconds must be a whole number from 1 to 60")?, format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_has_defaults_and_bounds() {
        assert_eq!(asked(None), Ok((10, Format::Svg)));
        assert_eq!(asked(Some("api_key=x&seconds=60&format=folded")), Ok((60, Format::Folded)));
        for wrong in ["seconds=0", "seconds=61", "seconds=", "seconds=-1", "seconds=1.5", "format=png", "format="] {
            assert!(asked(Some(wrong)).is_err(), "{wrong}");
        }
    }
}
