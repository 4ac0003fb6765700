//! Which keys of a body Ollama decodes on the routes of administration and show, and into what: a key that a route's type
//! does not have may hold anything there.
//!
//! Called by `store.rs`, `pull.rs` and `lists.rs`. Source: the types of Ollama v0.33's API.

use super::ask::MESSAGE;
use super::gojson::{Kind, Value, check};

const MOVE: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("insecure", Kind::Bool),
    ("username", Kind::Str),
    ("password", Kind::Str),
    ("stream", Kind::Bool),
    ("name", Kind::Str),
];

const CREATE: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("stream", Kind::Bool),
    ("quantize", Kind::Str),
    ("draft_quantize", Kind::Str),
    ("from", Kind::Str),
    ("remote_host", Kind::Str),
    ("files", Kind::Strings),
    ("draft_files", Kind::Strings),
    ("adapters", Kind::Strings),
    ("template", Kind::Str),
    ("license", Kind::Any),
    ("system", Kind::Str),
    ("parameters", Kind::Map("map[string]interface {}")),
    ("messages", Kind::List("[]api.Message", &Kind::Struct("api.Message", MESSAGE))),
    ("renderer", Kind::Str),
    ("parser", Kind::Str),
    ("requires", Kind::Str),
    ("info", Kind::Map("map[string]interface {}")),
    ("name", Kind::Str),
    ("quantization", Kind::Str),
];

const COPY: &[(&str, Kind)] = &[("source", Kind::Str), ("destination", Kind::Str)];

const DELETE: &[(&str, Kind)] = &[("model", Kind::Str), ("name", Kind::Str)];

const SHOW: &[(&str, Kind)] = &[
    ("model", Kind::Str),
    ("system", Kind::Str),
    ("template", Kind::Str),
    ("verbose", Kind::Bool),
    ("options", Kind::Map("map[string]interface {}")),
    ("name", Kind::Str),
];

/// What a request decodes into.
#[derive(Clone, Copy, Debug)]
pub(super) enum Request {
    Pull,
    Push,
    Create,
    Copy,
    Delete,
    Show,
}

impl Request {
    /// Holds a body against its type; the error is Go's.
    pub(super) fn check(self, value: &Value) -> Result<(), String> {
        let (name, fields) = match self {
            Self::Pull => ("PullRequest", MOVE),
            Self::Push => ("PushRequest", MOVE),
            Self::Create => ("CreateRequest", CREATE),
            Self::Copy => ("CopyRequest", COPY),
            Self::Delete => ("DeleteRequest", DELETE),
            Self::Show => ("ShowRequest", SHOW),
        };
        check(value, name, fields)
    }
}

#[cfg(test)]
mod tests {
    use super::super::gojson::parse;
    use super::*;

    #[test]
    fn a_route_checks_its_own_keys_alone() {
        let check = |request: Request, body: &str| request.check(&parse(body.as_bytes()).unwrap().0);
        for (request, body) in [
            (Request::Delete, r#"{"model":"m","stream":"false","insecure":1,"from":2,"files":3}"#),
            (Request::Copy, r#"{"source":"a","destination":"b","model":1,"name":2,"stream":"no"}"#),
            (Request::Pull, r#"{"model":"m","from":1,"files":2,"source":3,"parameters":4}"#),
            (Request::Create, r#"{"model":"m","license":["a"],"insecure":"x","files":null,"info":{"a":1}}"#),
            (Request::Show, r#"{"model":"m","stream":"x","from":1,"options":{"a":"b"}}"#),
        ] {
            assert_eq!(check(request, body), Ok(()), "{body}");
        }
        for (request, body, field, go) in [
            (Request::Delete, r#"{"model":1}"#, "number into Go struct field DeleteRequest.model", "string"),
            (Request::Pull, r#"{"password":1}"#, "number into Go struct field PullRequest.password", "string"),
            (Request::Push, r#"{"insecure":"x"}"#, "string into Go struct field PushRequest.insecure", "bool"),
            (Request::Create, r#"{"files":{"a":1}}"#, "number into Go struct field CreateRequest.files", "string"),
            (
                Request::Create,
                r#"{"adapters":1}"#,
                "number into Go struct field CreateRequest.adapters",
                "map[string]string",
            ),
            (Request::Copy, r#"{"source":[]}"#, "array into Go struct field CopyRequest.source", "string"),
            (Request::Show, r#"{"verbose":0}"#, "number into Go struct field ShowRequest.verbose", "bool"),
        ] {
            assert_eq!(check(request, body), Err(format!("json: cannot unmarshal {field} of type {go}")), "{body}");
        }
    }
}
