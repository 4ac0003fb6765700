//! What a request asks for, read once from its head and body.
//!
//! Owns what it keeps, so that the body can be sent while it lives. Must never refuse: what cannot be read is marked so.

use bytes::Bytes;
use http::Method;

use crate::dialect::Route;
use crate::fleet::Target;
use crate::http1::{Lines, RequestHead, encode_request};
use crate::proxy::headers::{self, Known};
use crate::proxy::inject::{self, Splice};
use crate::proxy::scan;
use crate::proxy::text::Text;
use crate::proxy::upstream::Outgoing;

/// A request's head as it came in from either front.
#[derive(Debug)]
pub struct Inbound<'h> {
    /// Its method.
    pub method: Method,
    /// Path and query for the node, our key cut out.
    pub target: Text,
    /// Header lines for the node.
    pub lines: Lines,
    /// What its header lines say to us.
    pub known: Known<'h>,
}

/// A request, ready to be planned and sent.
pub struct Asked {
    /// Its route.
    pub route: Route,
    /// Its method.
    pub method: Method,
    /// Path and query for the node, our key cut out.
    pub target: Text,
    /// Header lines for the node.
    pub lines: Lines,
    /// The body, as it came.
    pub body: Bytes,
    /// The model's name as sent, if there is one.
    pub model: Option<Text>,
    /// The body could be read as a node would read it.
    pub readable: bool,
    /// The answer is a stream of records.
    pub streams: bool,
    /// Prompt or messages are empty: a load or an unload.
    pub empty: bool,
    /// Frees the model's memory on every node.
    pub unload: bool,
    /// Every relevant key stands in its usual spelling.
    pub exact_case: bool,
    /// Where to ask for usage on behalf of a client that did not.
    pub splice: Option<Splice>,
    /// The client's own bound on waiting, milliseconds.
    pub max_wait_ms: Option<u64>,
}

impl Asked {
    /// Reads a request; what has to be unpacked for it lets other tasks run in between.
    pub async fn read(route: Route, inbound: Inbound<'_>, body: Bytes) -> Self {
        let Inbound { method, target, lines, known } = inbound;
        let mut asked = Self {
            route,
            method,
            target,
            lines,
            body,
            model: None,
            readable: true,
            streams: false,
            empty: false,
            unload: false,
            exact_case: true,
            splice: None,
            max_wait_ms: known.max_wait_ms(),
        };
        let body = asked.body.clone();
        if route == Route::V1Audio {
            let content_type = known.content_type.and_then(|value| std::str::from_utf8(value).ok());
            // Go asks the query first.
            let queried = scan::query_value(asked.target.as_str(), "model").map(Text::from);
            asked.model = queried.or_else(|| {
                let model = scan::multipart_model(&body, content_type?)?;
                Some(Text::part_of(&body, &model))
            });
        } else if is_zstd(route, &known) {
            // In a box: the unpacking's state is large, and other requests would carry it along.
            match Box::pin(scan::zstd_in_turns(&body)).await {
                Some(plain) => asked.take(&scan::scan(&plain, route)),
                None => asked.readable = false,
            }
            // Its bytes go on as they came: nothing can be spliced into them.
            asked.splice = None;
        } else {
            asked.take(&scan::scan(&body, route));
        }
        asked
    }

    fn take(&mut self, scan: &scan::Scan<'_>) {
        self.model = scan.model.as_deref().map(|model| Text::part_of(&self.body, model));
        self.readable = scan.error.is_none();
        self.streams = scan.streams();
        self.empty = scan.prompt_or_messages_empty;
        self.unload = scan.is_unload();
        self.exact_case = scan.exact_case;
        self.splice = inject::plan(scan);
    }

    /// The model as the client named it, for texts.
    #[must_use]
    pub fn model_name(&self) -> &str {
        self.model.as_ref().map_or("", Text::as_str)
    }

    /// The same for one node: its path, host and key, encoded into `head`, and `splice` made in the body.
    #[must_use]
    pub fn outgoing(&self, target: &Target, mut head: Vec<u8>, splice: Option<Splice>) -> Outgoing {
        let carries_body = self.method != Method::GET && self.method != Method::HEAD;
        // What no length announces would be the node's next request.
        let (body, splice) = if carries_body { (self.body.clone(), splice) } else { (Bytes::new(), None) };
        let length = body.len() + splice.map_or(0, |splice| splice.insert.len());
        encode_request(
            &mut head,
            &RequestHead {
                method: &self.method,
                target: self.target.as_str(),
                base_path: &target.base_path,
                host: &target.host,
                lines: &self.lines,
                bearer: target.api_key.as_ref().map(|key| key.0.as_str()),
                content_length: carries_body.then_some(length as u64),
            },
        );
        Outgoing::new(&self.method, head, body, splice)
    }

    /// Only a node that speaks Ollama's own API can serve it.
    #[must_use]
    pub fn native(&self) -> bool {
        self.route.native()
    }
}

/// Ollama decodes zstd on its `/v1` JSON routes, and compares the value case-sensitively.
fn is_zstd(route: Route, known: &Known<'_>) -> bool {
    !route.native() && known.content_encoding == Some(b"zstd")
}

/// The target without our key, if `whole` holds one.
#[must_use]
pub fn without_key(path: &str, query: Option<&str>) -> Option<Text> {
    let query = query.filter(|query| query.contains("api_key"))?;
    Some(match headers::without_key(query) {
        Some(query) => format!("{path}?{query}").into(),
        None => path.to_owned().into(),
    })
}
