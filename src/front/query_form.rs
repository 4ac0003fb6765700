//! The ancestor's way to name a model for administration: in the query, without a body. Its dashboard page does so.
//!
//! Called by [`super::handled`] before a route reads its body: the query becomes the body that the route takes anyway. A
//! request with a body is left alone. Must never look at any other route.

use std::task::{Context, Poll};

use bytes::Bytes;
use serde_json::json;

use crate::admin::parameter;
use crate::proxy::body::BodySource;

/// A body that came as a query.
#[derive(Debug)]
pub(super) struct QueryForm(Option<Bytes>);

impl QueryForm {
    /// What the query asks of this path, if it does.
    pub(super) fn of(path: &str, query: Option<&str>) -> Option<Self> {
        let query = query?;
        let given = |name| parameter(query, name).filter(|value| !value.is_empty());
        let body = match path {
            "/api/show" | "/api/delete" => json!({ "model": given("model")? }),
            // One object at the end, never a stream: so it was there.
            "/api/pull" => json!({ "model": given("model")?, "stream": false }),
            "/api/copy" => json!({ "source": given("source")?, "destination": given("destination")? }),
            _ => return None,
        };
        Some(Self(Some(Bytes::from(body.to_string()))))
    }
}

impl BodySource for QueryForm {
    fn is_end(&self) -> bool {
        self.0.is_none()
    }

    fn poll_piece(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, String>>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use super::*;

    fn body(path: &str, query: Option<&str>) -> Option<String> {
        QueryForm::of(path, query).map(|form| String::from_utf8_lossy(&form.0.unwrap_or_default()).into_owned())
    }

    #[test]
    fn the_four_forms_and_no_other() {
        let asked = |path, query| body(path, Some(query)).unwrap_or_default();
        assert_eq!(asked("/api/show", "model=llama3%3Alatest"), r#"{"model":"llama3:latest"}"#);
        assert_eq!(asked("/api/delete", "api_key=k&model=a+b"), r#"{"model":"a b"}"#);
        assert_eq!(asked("/api/pull", "model=m"), r#"{"model":"m","stream":false}"#);
        assert_eq!(asked("/api/copy", "source=m&destination=n"), r#"{"source":"m","destination":"n"}"#);
        for (path, query) in [
            ("/api/copy", Some("source=m")),
            ("/api/pull", Some("model=")),
            ("/api/pull", Some("name=m")),
            ("/api/pull", None),
            ("/api/generate", Some("model=m")),
        ] {
            assert_eq!(body(path, query), None, "{path} {query:?}");
        }
    }
}
