//! Answers: the one body type that clients are sent, and the plain answers that no node gives.
//!
//! Built by proxy and front; hyper sends them. Must never decide what is answered.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};

use super::spares::Kept;
use super::stream::TailBody;
use crate::dialect::{self, ErrorBody};

/// Why a body could not be sent to its end; hyper then closes the connection.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What a client is sent.
pub enum OutBody {
    /// All of it at once; `None` once it was handed over (or for an empty body).
    Whole(Option<Bytes>),
    /// A node's answer, as it arrives.
    Stream(Kept<TailBody>),
    /// Anything else, in its own time (event streams).
    Other(Pin<Box<dyn Body<Data = Bytes, Error = BodyError>>>),
}

impl OutBody {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::Whole(None)
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(body) => body.poll_data(cx).map(|data| data.map(|data| data.map(Frame::data))),
            Self::Other(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Stream(body) => body.is_finished(),
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Stream(body) => body.remaining().map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Other(body) => body.size_hint(),
        }
    }
}

/// An answer with a body of a known type.
#[must_use]
pub fn whole(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<OutBody> {
    let body = body.into();
    let mut response = Response::new(OutBody::Whole((!body.is_empty()).then_some(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A status and nothing else.
#[must_use]
pub fn empty(status: StatusCode) -> Response<OutBody> {
    let mut response = Response::new(OutBody::empty());
    *response.status_mut() = status;
    response
}

/// An error in its dialect, with `Retry-After` in seconds where waiting helps.
#[must_use]
pub fn error(status: StatusCode, body: ErrorBody, retry_after_s: Option<u32>) -> Response<OutBody> {
    let mut response = whole(status, body.content_type, body.body);
    if let Some(seconds) = retry_after_s {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An error of a whole family (no route known).
#[must_use]
pub fn family_error(family: dialect::Family, status: StatusCode, text: &str) -> Response<OutBody> {
    error(status, dialect::error(family, status.as_u16(), text), None)
}

/// Unknown path.
#[must_use]
pub fn not_found() -> Response<OutBody> {
    whole(StatusCode::NOT_FOUND, "text/plain", "404 page not found")
}

/// Known path, wrong method.
#[must_use]
pub fn method_not_allowed(allow: &'static str) -> Response<OutBody> {
    let mut response = whole(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "405 method not allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// A redirect to a decoded path as Go words it: HTML for a GET, its type alone for a HEAD, nothing otherwise.
#[must_use]
pub fn redirect(method: &Method, status: u16, path: &str, query: Option<&str>) -> Response<OutBody> {
    const HTML: &str = "text/html; charset=utf-8";
    let path = escaped_path(path);
    let target = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::TEMPORARY_REDIRECT);
    let mut response = if *method == Method::GET {
        let escaped = target.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;");
        let reason = status.canonical_reason().unwrap_or_default();
        whole(status, HTML, format!("<a href=\"{escaped}\">{reason}</a>.\n\n"))
    } else if *method == Method::HEAD {
        whole(status, HTML, Bytes::new())
    } else {
        empty(status)
    };
    if let Ok(location) = HeaderValue::from_str(&target) {
        response.headers_mut().insert(LOCATION, location);
    }
    response
}

/// A decoded path as it stands in a URL. Source: Go, net/url, `EscapedPath`.
fn escaped_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What Go's own refusals lack: they are written before anything could date them.
#[derive(Clone, Copy, Debug)]
pub struct Undated;

/// Marks the answer as the connection's last.
pub fn close(response: &mut Response<OutBody>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// A HEAD: the headers of the GET, its length only where Go would know it (some body, of up to 2 KiB), no body.
#[must_use]
pub fn without_body(mut response: Response<OutBody>) -> Response<OutBody> {
    const GO_BUFFERS: usize = 2048;
    let length = match response.body() {
        OutBody::Whole(Some(bytes)) => Some(bytes.len()).filter(|length| *length <= GO_BUFFERS),
        _ => None,
    };
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = OutBody::empty();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_nowhere_else() {
        for (path, location) in [
            ("/api/tags", "/api/tags"),
            ("/api/blobs/sha256:a@b", "/api/blobs/sha256:a@b"),
            ("/\\evil.example/x", "/%5Cevil.example/x"),
            ("/a?b#c d\u{e9}\r\n", "/a%3Fb%23c%20d%C3%A9%0D%0A"),
        ] {
            let response = redirect(&Method::GET, 301, path, None);
            assert_eq!(response.headers().get(LOCATION).map(HeaderValue::as_bytes), Some(location.as_bytes()));
        }
        let response = redirect(&Method::POST, 307, "/a b", Some("c=d"));
        assert_eq!(response.headers().get(LOCATION).map(HeaderValue::as_bytes), Some(&b"/a%20b?c=d"[..]));
    }
}
