//! `${VAR}` in the values of a file. Pure: the environment is an argument.
//!
//! Our files: anywhere in a value, `${VAR:-default}`, `$$` for a plain dollar before a brace; unset is a mistake. The
//! ancestor's file: only where the value is exactly `${VAR}`, unset is empty, without a word.

use super::load::Env;
use super::mistake::{Mistake, is_secret};
use super::tree::{Kind, Node, Scalar, Value};

/// Whose rule a file follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// Ours.
    Ours,
    /// The ancestor's.
    Ancestor,
}

/// Expands every value of the tree in place, keys excepted; a value that cannot be expanded is reported and made
/// [`Value::Bad`].
pub(super) fn expand(node: &mut Node, rule: Rule, env: &Env, key: &str, mistakes: &mut Vec<Mistake>) {
    match &mut node.value {
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, rule, env, &format!("{key}[{index}]"), mistakes);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let below = if key.is_empty() { entry.name.clone() } else { format!("{key}.{}", entry.name) };
                expand(&mut entry.node, rule, env, &below, mistakes);
            }
        }
        Value::Scalar(scalar) if scalar.kind == Kind::Text && scalar.text.contains("${") => {
            let expanded = match rule {
                Rule::Ours => ours(&scalar.text, env),
                Rule::Ancestor => Ok(ancestors(&scalar.text, env)),
            };
            match expanded {
                Ok(Some(text)) => *scalar = Scalar { text, kind: Kind::Loose, written: None },
                Ok(None) => {}
                Err(reason) => {
                    let (value, reason) = shown(key, &scalar.text, reason);
                    mistakes.push(Mistake { place: node.place.clone(), key: key.to_owned(), value, reason });
                    node.value = Value::Bad;
                }
            }
        }
        Value::Scalar(_) | Value::Null | Value::Bad => {}
    }
}

/// What a message may show: of a secret, the name of a variable that is all of it.
fn shown(key: &str, text: &str, reason: String) -> (Option<String>, String) {
    if !is_secret(key) {
        return (Some(text.to_owned()), reason);
    }
    let inner = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    if inner.is_some_and(is_name) {
        return (Some(text.to_owned()), reason);
    }
    (None, "holds a `${` that names no variable which is set; for a plain one write `$${`".to_owned())
}

fn ancestors(text: &str, env: &Env) -> Option<String> {
    let name = text.strip_prefix("${")?.strip_suffix('}')?;
    is_name(name).then(|| env.get(name).cloned().unwrap_or_default())
}

fn ours(text: &str, env: &Env) -> Result<Option<String>, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar..];
        if let Some(after) = rest.strip_prefix("$${") {
            out.push_str("${");
            rest = after;
        } else if let Some(after) = rest.strip_prefix("${") {
            let end = after.find('}').ok_or("`${` without its `}`; for a plain one write `$${`")?;
            out.push_str(&reference(&after[..end], env)?);
            rest = &after[end + 1..];
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn reference(inner: &str, env: &Env) -> Result<String, String> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    if !is_name(name) {
        return Err(format!("`${{{inner}}}` names no variable; right are ${{NAME}} and ${{NAME:-default}}"));
    }
    match (env.get(name), default) {
        (Some(value), None) => Ok(value.clone()),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value.clone()),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("`{name}` is not set in the environment; ${{{name}:-default}} would give a default"))
        }
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Env {
        Env::from([("A".to_owned(), "x".to_owned()), ("EMPTY".to_owned(), String::new())])
    }

    #[test]
    fn ours_anywhere_with_defaults() {
        for (text, expanded) in [
            ("${A}", "x"),
            ("http://${A}:1/${A}", "http://x:1/x"),
            ("${B:-y}", "y"),
            ("${EMPTY:-y}", "y"),
            ("${EMPTY}", ""),
            ("${A:-y}", "x"),
            ("${B:-}", ""),
            ("$A ${A} $", "$A x $"),
            ("$${A} ${A}", "${A} x"),
        ] {
            assert_eq!(ours(text, &env()), Ok(Some(expanded.to_owned())), "{text}");
        }
        for (text, word) in
            [("${B}", "`B` is not set"), ("${A", "without its `}`"), ("${}", "names no"), ("${1A}", "names no")]
        {
            let reason = ours(text, &env()).unwrap_err();
            assert!(reason.contains(word), "{text}: {reason}");
        }
    }

    #[test]
    fn the_ancestors_only_whole() {
        assert_eq!(ancestors("${A}", &env()).as_deref(), Some("x"));
        assert_eq!(ancestors("${B}", &env()).as_deref(), Some(""));
        for literal in ["x${A}", "${A}x", "$A", "${A:-d}", "${1A}", "${}"] {
            assert_eq!(ancestors(literal, &env()), None, "{literal}");
        }
    }
}
