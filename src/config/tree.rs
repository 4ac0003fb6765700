//! A tree of values with positions, from YAML text or from JSON in an environment variable.
//!
//! The walker consumes it. Duplicate keys are kept and marked, so that one run reports them all. Nothing here knows a
//! key by name, and nothing here may panic or recurse deeper than [`INDENT_MAX`] and [`INDICATORS_MAX`] allow.

use saphyr::{LoadableYamlNode, MarkedYaml, Marker, Scalar as YamlScalar, YamlData};

use super::mistake::{Mistake, Place};
use crate::sync::Arc;

/// A larger file is no configuration. Bounds the work of the parser.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Columns of indentation and stand-alone indicators (`- - -`) in one line. Each level of nesting in block style takes
/// one of either, and the parser recurses once a level: 256 + 64 levels fit any thread's stack.
const INDENT_MAX: usize = 256;
const INDICATORS_MAX: usize = 64;
/// Reported duplicates; each costs a parse.
const DUPLICATES_MAX: usize = 100;
/// Stands for the first character of a duplicate key while the rest of the file is parsed.
const PRIVATE_USE: u32 = 0xF_0000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// `null`, `~` or nothing at all.
    Null,
    /// Text, number or truth value.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the file.
    Map(Vec<Entry>),
    /// Something that was reported already.
    Bad,
}

/// A scalar: its text, and what YAML takes it for.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// As it stands in a file, where it stands without quotes: for who reads it by other rules than YAML 1.2.
    pub(super) written: Option<String>,
}

/// What a scalar was written as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Text,
    Integer,
    Float,
    Bool,
    /// From the environment, where everything is text: taken for whatever is wanted.
    Loose,
}

/// One key of a mapping with its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// What the key was written as: `1234:` is a number.
    pub(super) kind: Kind,
    pub(super) place: Place,
    /// The same key stands above already.
    pub(super) duplicate: bool,
    pub(super) node: Node,
}

impl Value {
    /// What a person calls it.
    pub(super) fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Scalar(scalar) => match scalar.kind {
                Kind::Text | Kind::Loose => "text",
                Kind::Integer => "a whole number",
                Kind::Float => "a number",
                Kind::Bool => "true or false",
            },
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Bad => "a mistake",
        }
    }
}

/// Parses one YAML document.
///
/// # Errors
/// Text that is no YAML (with the parser's position), more than one document, a file too large or nested too deeply.
pub(super) fn parse(path: &Arc<str>, text: &str) -> Result<Node, Vec<Mistake>> {
    let at = |line, column| Place::File { path: Arc::clone(path), line, column };
    let whole = |line, reason: String| Mistake { place: at(line, 1), key: String::new(), value: None, reason };
    if text.len() > FILE_BYTES_MAX {
        return Err(vec![whole(0, format!("the file has {} bytes; at most {FILE_BYTES_MAX} are read", text.len()))]);
    }
    if let Some(line) = nested_too_deeply(text) {
        return Err(vec![whole(line, format!("is nested too deeply: at most {INDENT_MAX} columns"))]);
    }
    let mut chars: Vec<char> = text.chars().collect();
    let mut renamed: Vec<(usize, char)> = Vec::new();
    loop {
        let source: String = chars.iter().collect();
        let error = match MarkedYaml::load_from_str(&source) {
            Ok(documents) => return convert(documents, (&chars, &renamed), &at),
            Err(error) => error,
        };
        let mark = *error.marker();
        let first = key_start(&chars, mark);
        let again = renamed.iter().any(|&(index, _)| index == first);
        let is_duplicate = error.info().contains("duplicated key");
        if !is_duplicate || again || renamed.len() >= DUPLICATES_MAX || first >= chars.len() {
            let place = at(mark.line(), mark.col() + 1);
            let reason = if is_duplicate { "the same key stands above" } else { error.info() };
            return Err(vec![Mistake { place, key: String::new(), value: None, reason: format!("no YAML: {reason}") }]);
        }
        let stand_in = u32::try_from(renamed.len()).ok().and_then(|n| char::from_u32(PRIVATE_USE + n));
        renamed.push((first, chars[first]));
        chars[first] = stand_in.unwrap_or(char::REPLACEMENT_CHARACTER);
    }
}

/// Index of the first character of a key's name, behind its quote.
fn key_start(chars: &[char], mark: Marker) -> usize {
    let start = mark.index();
    start + usize::from(matches!(chars.get(start), Some('"' | '\'')))
}

/// The first line that nests deeper than the parser may go, if any.
fn nested_too_deeply(text: &str) -> Option<usize> {
    let too_deep = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let indicators = line.split_whitespace().filter(|word| matches!(*word, "-" | "?" | ":")).count();
        !line.trim_start().starts_with('#') && (indent > INDENT_MAX || indicators > INDICATORS_MAX)
    };
    // YAML breaks lines at a lone carriage return as well.
    text.split(['\n', '\r']).position(too_deep).map(|index| text.split(['\n', '\r']).take(index).count() + 1)
}

fn convert(
    documents: Vec<MarkedYaml<'_>>,
    (chars, renamed): (&[char], &[(usize, char)]),
    at: &dyn Fn(usize, usize) -> Place,
) -> Result<Node, Vec<Mistake>> {
    if let Some(second) = documents.get(1) {
        let place = at(second.span.start.line(), second.span.start.col() + 1);
        let reason = "a second document; a configuration is one".to_owned();
        return Err(vec![Mistake { place, key: String::new(), value: None, reason }]);
    }
    let mut mistakes = Vec::new();
    let root = match documents.into_iter().next() {
        Some(document) => Converter { chars, renamed, at, mistakes: &mut mistakes }.node(document),
        None => Node { place: at(1, 1), value: Value::Null },
    };
    if mistakes.is_empty() { Ok(root) } else { Err(mistakes) }
}

/// Carries what the conversion of every node needs.
struct Converter<'a> {
    chars: &'a [char],
    renamed: &'a [(usize, char)],
    at: &'a dyn Fn(usize, usize) -> Place,
    mistakes: &'a mut Vec<Mistake>,
}

impl Converter<'_> {
    fn place(&self, mark: Marker) -> Place {
        (self.at)(mark.line().max(1), mark.col() + 1)
    }

    fn refuse(&mut self, mark: Marker, reason: &str) -> Value {
        let place = self.place(mark);
        self.mistakes.push(Mistake { place, key: String::new(), value: None, reason: reason.to_owned() });
        Value::Bad
    }

    /// A scalar as it stands in the file, unless in quotes or as a block.
    fn written(&self, start: Marker, end: Marker) -> Option<String> {
        let text: String = self.chars.get(start.index()..end.index())?.iter().collect();
        let text = text.trim();
        (!text.starts_with(['"', '\'', '|', '>'])).then(|| text.to_owned())
    }

    fn node(&mut self, yaml: MarkedYaml<'_>) -> Node {
        let start = yaml.span.start;
        let end = yaml.span.end;
        let value = match yaml.data {
            YamlData::Value(scalar) => match scalar_value(scalar) {
                Value::Scalar(scalar) => Value::Scalar(Scalar { written: self.written(start, end), ..scalar }),
                other => other,
            },
            YamlData::Sequence(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            YamlData::Mapping(entries) => {
                Value::Map(entries.into_iter().filter_map(|(key, value)| self.entry(key, value)).collect())
            }
            YamlData::Tagged(tag, _) => self.refuse(start, &format!("the tag `{tag}` means nothing here")),
            YamlData::Representation(..) | YamlData::Alias(_) | YamlData::BadValue => {
                self.refuse(start, "a value that does not fit its tag, or an alias to nothing")
            }
        };
        Node { place: self.place(start), value }
    }

    fn entry(&mut self, key: MarkedYaml<'_>, value: MarkedYaml<'_>) -> Option<Entry> {
        let start = key.span.start;
        let (mut name, kind) = match key.data {
            YamlData::Value(scalar) => match scalar_value(scalar) {
                Value::Scalar(scalar) => (scalar.text, scalar.kind),
                _ => ("null".to_owned(), Kind::Float),
            },
            _ => {
                self.refuse(start, "a key must be a word");
                return None;
            }
        };
        let original = self.renamed.iter().find(|&&(index, _)| index == start.index() || index == start.index() + 1);
        let duplicate = match (original, name.chars().next()) {
            (Some(&(_, original)), Some(first)) if u32::from(first) >= PRIVATE_USE => {
                name.replace_range(..first.len_utf8(), original.encode_utf8(&mut [0; 4]));
                true
            }
            _ => false,
        };
        let node = self.node(value);
        Some(Entry { name, kind, place: self.place(start), duplicate, node })
    }
}

fn scalar_value(scalar: YamlScalar<'_>) -> Value {
    let (text, kind) = match scalar {
        YamlScalar::Null => return Value::Null,
        YamlScalar::Boolean(truth) => (truth.to_string(), Kind::Bool),
        YamlScalar::Integer(number) => (number.to_string(), Kind::Integer),
        YamlScalar::FloatingPoint(number) => (number.to_string(), Kind::Float),
        YamlScalar::String(text) => (text.into_owned(), Kind::Text),
    };
    Value::Scalar(Scalar { text, kind, written: None })
}

/// Parses JSON from an environment variable; every part of it stands at `place`.
///
/// # Errors
/// The JSON parser's words.
pub(super) fn parse_json(place: &Place, text: &str) -> Result<Node, String> {
    serde_json::from_str(text).map(|json| from_json(place, json)).map_err(|error| error.to_string())
}

/// Depth is bounded by serde_json, at 128.
fn from_json(place: &Place, json: serde_json::Value) -> Node {
    let value = match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(truth) => {
            Value::Scalar(Scalar { text: truth.to_string(), kind: Kind::Bool, written: None })
        }
        serde_json::Value::Number(number) => {
            let kind = if number.is_f64() { Kind::Float } else { Kind::Integer };
            Value::Scalar(Scalar { text: number.to_string(), kind, written: None })
        }
        serde_json::Value::String(text) => Value::Scalar(Scalar { text, kind: Kind::Text, written: None }),
        serde_json::Value::Array(items) => Value::List(items.into_iter().map(|item| from_json(place, item)).collect()),
        serde_json::Value::Object(members) => Value::Map(
            members
                .into_iter()
                .map(|(name, json)| Entry {
                    name,
                    kind: Kind::Text,
                    place: place.clone(),
                    duplicate: false,
                    node: from_json(place, json),
                })
                .collect(),
        ),
    };
    Node { place: place.clone(), value }
}
