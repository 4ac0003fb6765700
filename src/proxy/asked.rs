//! What a request asks for, read once from its head and body.
//!
//! Owns what it keeps, so that the body can be sent while it lives. Must never refuse: what cannot be read is marked so.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};

use crate::dialect::Route;
use crate::fleet::Target;
use crate::http1::{RequestHead, encode_request};
use crate::proxy::inject::{self, Splice};
use crate::proxy::upstream::Outgoing;
use crate::proxy::{headers, scan};

/// A request, ready to be planned and sent.
pub struct Asked {
    /// Its route.
    pub route: Route,
    /// Its method.
    pub method: Method,
    /// Path and query for the node, our key cut out.
    pub target: PathAndQuery,
    /// Headers for the node.
    pub headers: HeaderMap,
    /// The body, as it came.
    pub body: Bytes,
    /// The model's name as sent, if there is one.
    pub model: Option<Box<str>>,
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
    /// Reads a request.
    #[must_use]
    pub fn read(route: Route, head: &http::request::Parts, body: Bytes) -> Self {
        let mut asked = Self {
            route,
            method: head.method.clone(),
            target: target(&head.uri),
            headers: headers::to_node(&head.headers),
            body: Bytes::new(),
            model: None,
            readable: true,
            streams: false,
            empty: false,
            unload: false,
            exact_case: true,
            splice: None,
            max_wait_ms: headers::max_wait_ms(&head.headers),
        };
        if route == Route::V1Audio {
            let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let model = content_type.and_then(|content_type| scan::multipart_model(&body, content_type));
            asked.model = model.map(|model| model.as_ref().into());
        } else if is_zstd(route, &head.headers) {
            match scan::zstd(&body) {
                Some(plain) => asked.take(&scan::scan(&plain, route)),
                None => asked.readable = false,
            }
            // Its bytes go on as they came: nothing can be spliced into them.
            asked.splice = None;
        } else {
            asked.take(&scan::scan(&body, route));
        }
        asked.body = body;
        asked
    }

    fn take(&mut self, scan: &scan::Scan<'_>) {
        self.model = scan.model.as_deref().map(Into::into);
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
        self.model.as_deref().unwrap_or_default()
    }

    /// The same for one node: its path, host and key around this body, encoded into `head`.
    #[must_use]
    pub fn outgoing(&self, target: &Target, mut head: Vec<u8>, body: Bytes) -> Outgoing {
        let path: Cow<'_, str> = if target.base_path.is_empty() {
            self.target.as_str().into()
        } else {
            format!("{}{}", target.base_path, self.target).into()
        };
        let carries_body = self.method != Method::GET && self.method != Method::HEAD;
        encode_request(
            &mut head,
            &RequestHead {
                method: &self.method,
                target: &path,
                host: &target.host,
                headers: &self.headers,
                bearer: target.api_key.as_ref().map(|key| key.0.as_str()),
                content_length: carries_body.then_some(body.len() as u64),
            },
        );
        Outgoing::new(&self.method, head, body)
    }

    /// Only a node that speaks Ollama's own API can serve it.
    #[must_use]
    pub fn native(&self) -> bool {
        self.route.native()
    }
}

/// Ollama decodes zstd on its `/v1` JSON routes, and compares the value case-sensitively.
fn is_zstd(route: Route, headers: &HeaderMap) -> bool {
    !route.native() && headers.get(CONTENT_ENCODING).is_some_and(|value| value.as_bytes() == b"zstd")
}

/// Path and query without our key; shares hyper's bytes where there is nothing to cut.
fn target(uri: &http::Uri) -> PathAndQuery {
    let whole = || uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let Some(query) = uri.query().filter(|query| query.contains("api_key")) else { return whole() };
    let cut = match headers::without_key(query) {
        Some(query) => format!("{}?{query}", uri.path()),
        None => uri.path().to_owned(),
    };
    cut.try_into().unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
