//! What herdgate reads of a request body: one pass over its top level, by Go's rules, so that the model routed by is
//! the model the node will run.
//!
//! Called by proxy once per request, after the body is whole. Must never refuse a body (what cannot be read goes to a
//! node unchanged, which words the error), recurse, allocate for anything but an escaped name, or change a byte.
//! Source: decisions 1 and 2; `ollama-api.md` §1.1, §3, §8.1, §9.2; Go's `encoding/json`.

mod json;
mod multipart;
mod read;
mod text;
mod zstd;

use std::borrow::Cow;
use std::ops::Range;

use crate::dialect::Route;

pub use multipart::{multipart_model, query_value};
pub use read::scan;
pub use zstd::{DECODED_BYTES_MAX, WINDOW_BYTES_MAX, zstd_in_turns};

/// Why a body tells us nothing. The node words the error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unparseable {
    /// No bytes, or white space only.
    Empty,
    /// Not one JSON value at its start.
    Syntax,
    /// JSON, but not an object, or `model` or `stream` of a type that no node accepts.
    Type,
}

/// What `keep_alive` asks for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum KeepAlive {
    /// Not there, or null: the node's own time.
    #[default]
    Absent,
    /// `0`, `"0"`, `"0s"`, any duration of zero: gone after this request; without a prompt, gone now.
    Zero,
    /// Anything else (a duration the node refuses too).
    Other,
}

/// Which load-time options the request names; they are part of what a loaded runner is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RunnerOptions(u8);

impl RunnerOptions {
    /// The option names, in the order of their bits.
    pub const NAMES: [&'static str; 7] =
        ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];

    /// Whether any is named.
    #[must_use]
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// Whether this one (a place in [`Self::NAMES`]) is named.
    #[must_use]
    pub const fn has(self, at: usize) -> bool {
        self.0 >> at & 1 == 1
    }

    fn set(&mut self, at: usize, named: bool) {
        self.0 = self.0 & !(1 << at) | u8::from(named) << at;
    }
}

/// What a body says, as far as routing and accounting ask. Everything is at its default when `error` is set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan<'a> {
    /// The route it was read for.
    pub route: Route,
    /// The model named; `None` when absent, null or empty.
    pub model: Option<Cow<'a, str>>,
    /// Where the value that named it stands, quotes included.
    pub model_span: Option<Range<usize>>,
    /// `stream` as sent; absent and null are `None`.
    pub stream: Option<bool>,
    /// `stream_options.include_usage`; `None` without a `stream_options` object.
    pub include_usage: Option<bool>,
    /// `keep_alive`.
    pub keep_alive: KeepAlive,
    /// Load-time options named with a value.
    pub runner_options: RunnerOptions,
    /// `shift`, a load-time attribute as well.
    pub shift: Option<bool>,
    /// No prompt, no messages or no input, whichever the route reads: on native routes a load or unload request.
    pub prompt_or_messages_empty: bool,
    /// Every member read here is spelled exactly, and a reader that knows neither Go's case folding nor its treatment
    /// of null sees the same: the body may go to a node that is no Ollama.
    pub exact_case: bool,
    /// Offset of the top-level object's closing brace; 0 when there is none (`null`).
    pub object_end: usize,
    /// The object has members (so that a further one needs a comma).
    pub has_members: bool,
    /// `stream_options` has a type that no node takes.
    pub(super) usage_odd: bool,
    /// Nothing could be read; forward as it is.
    pub error: Option<Unparseable>,
}

impl<'a> Scan<'a> {
    /// A scan that found nothing.
    #[must_use]
    pub fn empty(route: Route) -> Self {
        Self {
            route,
            model: None,
            model_span: None,
            stream: None,
            include_usage: None,
            keep_alive: KeepAlive::Absent,
            runner_options: RunnerOptions::default(),
            shift: None,
            prompt_or_messages_empty: true,
            exact_case: true,
            object_end: 0,
            has_members: false,
            usage_odd: false,
            error: None,
        }
    }

    /// Whether the answer will be a stream, defaults applied.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.error.is_none() && self.stream.unwrap_or(self.route.stream_default())
    }

    /// Whether this asks to unload the model (native routes: nothing to do, and `keep_alive` zero).
    #[must_use]
    pub fn is_unload(&self) -> bool {
        self.error.is_none()
            && matches!(self.route, Route::Generate | Route::Chat)
            && self.prompt_or_messages_empty
            && self.keep_alive == KeepAlive::Zero
    }
}
