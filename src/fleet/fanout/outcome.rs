//! What came of an operation on several nodes, in words. Pure.
//!
//! Full success reads as one Ollama's, byte for byte. Where some node missed it, the last line (or the body) carries
//! `nodes` beside what Ollama says: who has it, who failed and why, for whom it is kept, who is left without. Must never
//! hide a node's failure, nor say `success` where no node has it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::sync::Arc;

/// Nodes named in one error text.
const NAMED_MAX: usize = 8;

/// What came of it, by node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Outcome {
    /// Carried out.
    pub done: Vec<Box<str>>,
    /// Failed, with the node's own words or ours.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<Box<str>, String>,
    /// Not reached; it is kept for their return.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Box<str>>,
    /// Down, and not caught up.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<Box<str>>,
}

/// The object that stands for success.
#[derive(Serialize)]
struct Success<'o> {
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<&'o Outcome>,
}

impl Outcome {
    /// Every node has it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.failed.is_empty() && self.pending.is_empty() && self.missed.is_empty()
    }

    /// The object that says that it is done: Ollama's own, and where somebody misses it, who.
    #[must_use]
    pub fn success(&self) -> impl Serialize + '_ {
        Success { status: "success", nodes: (!self.is_full()).then_some(self) }
    }
}

/// One text for several nodes' failures: their own words where they agree, else each with its node.
#[must_use]
pub fn words(failures: &[(Arc<str>, String)]) -> String {
    match failures {
        [] => "no node was asked".to_owned(),
        [(_, first), rest @ ..] if rest.iter().all(|(_, text)| text == first) => first.clone(),
        all => {
            let mut parts: Vec<String> =
                all.iter().take(NAMED_MAX).map(|(node, text)| format!("{text} ({node})")).collect();
            if all.len() > NAMED_MAX {
                parts.push(format!("and {} more", all.len() - NAMED_MAX));
            }
            parts.join("; ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(outcome: &Outcome) -> String {
        serde_json::to_string(&outcome.success()).unwrap()
    }

    #[test]
    fn full_success_is_ollamas_own() {
        assert_eq!(text(&Outcome { done: vec!["a".into()], ..Outcome::default() }), r#"{"status":"success"}"#);
    }

    #[test]
    fn whoever_misses_it_is_named() {
        let outcome = Outcome {
            done: vec!["a".into()],
            failed: BTreeMap::from([("b".into(), "no space left on device".to_owned())]),
            pending: vec!["c".into()],
            missed: Vec::new(),
        };
        let expected =
            r#"{"status":"success","nodes":{"done":["a"],"failed":{"b":"no space left on device"},"pending":["c"]}}"#;
        assert_eq!(text(&outcome), expected);
    }

    #[test]
    fn one_text_stays_as_it_was_said() {
        let failed = |texts: &[&str]| -> Vec<(Arc<str>, String)> {
            texts.iter().enumerate().map(|(n, text)| (format!("n{n}").into(), (*text).to_owned())).collect()
        };
        assert_eq!(words(&failed(&["x", "x"])), "x");
        assert_eq!(words(&failed(&["x", "y"])), "x (n0); y (n1)");
        let many: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(words(&failed(&many)).ends_with("7 (n7); and 12 more"));
    }
}
