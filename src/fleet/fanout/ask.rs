//! What a request for model administration asks: its body read as Go reads it, its names checked as Ollama checks them.
//!
//! Called for every such request before any node is chosen. Pure. Must never refuse what cannot be read: such a body goes
//! to one node unchanged, which words the error. Source: the wire contract, "JSON decoding rules", "Model names".

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::dialect::name::{self, NameError};
use crate::dialect::texts::{self, Refusal};
use crate::fleet::inventory::Fields;

/// An operation on models by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// `POST /api/pull`
    Pull,
    /// `POST /api/push`
    Push,
    /// `POST /api/create`
    Create,
    /// `POST /api/copy`
    Copy,
    /// `DELETE /api/delete`
    Delete,
}

impl Verb {
    /// Method and path.
    #[must_use]
    pub fn route(self) -> (&'static str, &'static str) {
        match self {
            Self::Pull => ("POST", "/api/pull"),
            Self::Push => ("POST", "/api/push"),
            Self::Create => ("POST", "/api/create"),
            Self::Copy => ("POST", "/api/copy"),
            Self::Delete => ("DELETE", "/api/delete"),
        }
    }

    /// For people.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.route().1.trim_start_matches("/api/")
    }
}

/// What a body asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// The operation.
    pub verb: Verb,
    /// The model as sent (a copy's source).
    pub model: String,
    /// Its routing key.
    pub key: Box<str>,
    /// A copy's destination as sent; empty for all else.
    pub destination: String,
    /// The model that a create begins with, as sent; empty for none.
    pub from: String,
    /// The answer is a stream.
    pub stream: bool,
    /// A pull over plain HTTP is allowed.
    pub insecure: bool,
    /// Digests (`sha256:` and 64 hex) of blobs that a create needs on its node.
    pub blobs: Vec<String>,
}

/// What came of reading a body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// It asks this.
    Asked(Asked),
    /// Ollama refuses it in these words, whatever node is asked.
    Refused(Refusal),
    /// It cannot be read: a node words the error.
    Unreadable,
}

/// Reads a body.
#[must_use]
pub fn read(verb: Verb, body: &[u8]) -> Read {
    if body.trim_ascii().is_empty() {
        return Read::Refused(Refusal::of(400, "missing request body"));
    }
    // Go decodes what is no UTF-8 as a replacement character.
    let text = String::from_utf8_lossy(body);
    match members(verb, &text) {
        Some(members) => checked(verb, members),
        None => Read::Unreadable,
    }
}

/// The members that matter, the last of each; `None`: no node takes this body.
#[derive(Default)]
struct Members {
    model: String,
    name: String,
    source: String,
    destination: String,
    from: String,
    stream: Option<bool>,
    insecure: bool,
    blobs: Vec<String>,
}

fn members(verb: Verb, text: &str) -> Option<Members> {
    // The first value alone: what follows it is ignored.
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let first = values.next()?.ok()?.get();
    let mut found = Members::default();
    if first == "null" {
        return Some(found);
    }
    let fields: Fields = serde_json::from_str(first).ok()?;
    let (create, copy) = (verb == Verb::Create, verb == Verb::Copy);
    for (key, raw) in fields.iter() {
        // What an operation does not know may be of any type.
        match &*folded(key) {
            "model" if !copy => string(raw, &mut found.model)?,
            "name" if !copy => string(raw, &mut found.name)?,
            "source" if copy => string(raw, &mut found.source)?,
            "destination" if copy => string(raw, &mut found.destination)?,
            "from" if create => string(raw, &mut found.from)?,
            "insecure" if matches!(verb, Verb::Pull | Verb::Push) => {
                found.insecure = serde_json::from_str::<Option<bool>>(raw).ok()?.unwrap_or(found.insecure)
            }
            // A pointer: null resets it.
            "stream" if !copy && verb != Verb::Delete => found.stream = serde_json::from_str(raw).ok()?,
            "files" | "adapters" | "draft_files" if create => {
                let map: Option<Fields> = serde_json::from_str(raw).ok()?;
                for (_, digest) in map.iter().flat_map(Fields::iter) {
                    found.blobs.push(serde_json::from_str(digest).ok()?);
                }
            }
            _ => {}
        }
    }
    Some(found)
}

/// Go's simple case folding, as far as the names above go.
fn folded(key: &str) -> String {
    let fold = |c| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).collect()
}

/// A string; null leaves what there was.
fn string(raw: &str, into: &mut String) -> Option<()> {
    if let Some(text) = Option::<String>::deserialize(&mut serde_json::Deserializer::from_str(raw)).ok()? {
        *into = text;
    }
    Some(())
}

fn checked(verb: Verb, members: Members) -> Read {
    let Members { model, name, source, destination, from, stream, insecure, blobs } = members;
    let model = match verb {
        Verb::Copy => source,
        _ if model.is_empty() => name,
        _ => model,
    };
    if let Some(refusal) = bad_names(verb, &model, &destination) {
        return Read::Refused(refusal);
    }
    let key = name::key(&model);
    let streams = matches!(verb, Verb::Pull | Verb::Push | Verb::Create) && stream.unwrap_or(true);
    let destination = if verb == Verb::Copy { destination } else { String::new() };
    Read::Asked(Asked { verb, model, key, destination, from, stream: streams, insecure, blobs })
}

/// The refusal of a name that Ollama would not take.
fn bad_names(verb: Verb, model: &str, destination: &str) -> Option<Refusal> {
    let refused = |text: String| Some(Refusal::of(400, text));
    let parsed = match verb {
        Verb::Pull | Verb::Delete => name::parse(model),
        Verb::Push | Verb::Create | Verb::Copy => name::parse_plain(model),
    };
    match (verb, parsed.err()) {
        (Verb::Copy, None) if name::parse_plain(destination).is_err() => {
            refused(format!("destination {} is invalid", texts::go_quoted(destination)))
        }
        (_, None) => None,
        (Verb::Copy, Some(_)) => refused(format!("source {} is invalid", texts::go_quoted(model))),
        (Verb::Pull | Verb::Delete, Some(NameError::Conflict)) => Some(texts::name_conflict(model)),
        (Verb::Push | Verb::Delete, Some(NameError::Missing)) => refused("model is required".to_owned()),
        (Verb::Delete, Some(_)) => refused(format!("name {} is invalid", texts::go_quoted(model))),
        (Verb::Pull | Verb::Push | Verb::Create, Some(_)) => Some(texts::invalid_model_name()),
    }
}

/// Whether a path's last segment is a digest as Ollama takes it: `sha256`, a colon or a dash, 64 hex.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("sha256-"));
    hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// What Ollama says to a digest that is none.
#[must_use]
pub fn bad_digest() -> Refusal {
    Refusal::of(400, "invalid digest format")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::Family;

    fn asked(verb: Verb, body: &str) -> Asked {
        match read(verb, body.as_bytes()) {
            Read::Asked(asked) => asked,
            other => panic!("{body}: {other:?}"),
        }
    }

    fn refused(verb: Verb, body: &str) -> (u16, String) {
        match read(verb, body.as_bytes()) {
            Read::Refused(refusal) => {
                (refusal.status, String::from_utf8(refusal.body(Family::Ollama).body.to_vec()).unwrap())
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_name_counts_where_the_model_is_empty() {
        assert_eq!(asked(Verb::Pull, r#"{"name":"m"}"#).model, "m");
        assert_eq!(asked(Verb::Pull, r#"{"model":"","username":"","name":"h:9/a/m"}"#).model, "h:9/a/m");
        assert_eq!(asked(Verb::Delete, r#"{"model":"m","name":"x"}"#).model, "m");
        assert_eq!(&*asked(Verb::Delete, r#"{"model":"M"}"#).key, "m:latest");
        assert_eq!(asked(Verb::Copy, r#"{"source":"a","destination":"b","model":"x"}"#).destination, "b");
    }

    #[test]
    fn bodies_are_read_as_go_reads_them() {
        assert_eq!(asked(Verb::Pull, r#"{"MODEL":"a","Model":"b"} junk"#).model, "b");
        assert_eq!(asked(Verb::Pull, r#"{"model":"a","model":null}"#).model, "a");
        assert!(asked(Verb::Pull, r#"{"model":"a","stream":false,"stream":null}"#).stream);
        assert!(!asked(Verb::Pull, r#"{"model":"a","ſtream":false}"#).stream);
        assert!(!asked(Verb::Delete, r#"{"model":"a"}"#).stream);
        assert!(asked(Verb::Pull, r#"{"model":"a","insecure":true,"insecure":null}"#).insecure);
        let create = asked(Verb::Create, r#"{"model":"a","files":{"m.gguf":"sha256:1"},"adapters":{"l":"sha256:2"}}"#);
        assert_eq!(create.blobs, ["sha256:1", "sha256:2"]);
        assert_eq!(read(Verb::Pull, b"{\"model\":\"a\",\"x\":\"\xff\"}"), read(Verb::Pull, br#"{"model":"a"}"#));
    }

    #[test]
    fn what_an_operation_does_not_know_may_be_of_any_type() {
        let body = r#"{"model":"m","stream":"false","insecure":1,"from":1,"files":1,"source":1}"#;
        assert_eq!(asked(Verb::Delete, body).model, "m");
        assert_eq!(asked(Verb::Copy, r#"{"source":"m","destination":"x","model":1,"stream":"no"}"#).model, "m");
        assert_eq!(asked(Verb::Pull, r#"{"model":"m","from":1,"files":1,"destination":1}"#).model, "m");
        assert_eq!(asked(Verb::Create, r#"{"model":"m","from":"x","source":1}"#).from, "x");
        assert_eq!(read(Verb::Create, br#"{"model":"m","files":1}"#), Read::Unreadable);
    }

    #[test]
    fn what_cannot_be_read_is_left_to_a_node() {
        for body in
            [r#"{"model":"#, "not json", r#"{"model":1}"#, r#"{"model":"a","stream":"yes"}"#, "[]", "\u{feff}{}"]
        {
            assert_eq!(read(Verb::Pull, body.as_bytes()), Read::Unreadable, "{body}");
        }
    }

    #[test]
    fn names_are_refused_in_ollamas_words() {
        for (verb, body, text) in [
            (Verb::Pull, "", "missing request body"),
            (Verb::Pull, "null", "invalid model name"),
            (Verb::Pull, "{}", "invalid model name"),
            (Verb::Create, "{}", "invalid model name"),
            (Verb::Push, "{}", "model is required"),
            (Verb::Push, r#"{"model":"a b"}"#, "invalid model name"),
            (Verb::Delete, "{}", "model is required"),
            (Verb::Delete, r#"{"model":"a b"}"#, r#"name \"a b\" is invalid"#),
            (
                Verb::Delete,
                r#"{"model":"x:local:cloud"}"#,
                r#"use either :local or :cloud, not both: \"x:local:cloud\""#,
            ),
            (Verb::Copy, "{}", r#"source \"\" is invalid"#),
            (Verb::Copy, r#"{"source":"a"}"#, r#"destination \"\" is invalid"#),
        ] {
            assert_eq!(refused(verb, body), (400, format!("{{\"error\":\"{text}\"}}")), "{verb:?} {body}");
        }
    }

    #[test]
    fn digests_have_two_forms() {
        let hex = "0a".repeat(32);
        assert!(is_digest(&format!("sha256:{hex}")) && is_digest(&format!("sha256-{}", hex.to_uppercase())));
        for bad in ["sha256:xyz", "", &hex, &format!("sha256:{hex}0"), &format!("sha512:{hex}")] {
            assert!(!is_digest(bad), "{bad}");
        }
    }
}
