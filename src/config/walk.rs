//! The walk over a tree: takes keys out of sections into checked values and collects every mistake and warning.
//!
//! [`super::ours`] and [`super::ancestor`] say which keys there are; a key that nobody asked for is unknown. A mistake
//! never stops the walk.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mistake::{Mistake, Place, is_secret};
use super::node_url;
use super::tree::{self, Entry, Kind, Node, Scalar, Value};
use super::units;

/// Characters of a value that a message shows.
const SHOWN_CHARS_MAX: usize = 80;

/// What to do with a key that stands twice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Duplicates {
    /// Our file: a mistake.
    Refuse,
    /// The ancestor's file, as its parser does: the last one counts.
    LastWins,
}

/// Words for an unknown key that no other key of its section is near to: (path of the section, name) to a hint.
pub(super) type Hint = Box<dyn Fn(&str, &str) -> Option<String>>;

/// What the walk has found so far.
pub(super) struct Walk {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) warnings: Vec<Mistake>,
    /// Unknown keys are warnings.
    lenient: bool,
    pub(super) duplicates: Duplicates,
    pub(super) hint: Hint,
    /// Where each key was set last, for checks across keys.
    places: BTreeMap<String, Place>,
    /// Paths of the configured nodes, as the nodes stand in the configuration.
    pub(super) node_keys: Vec<String>,
    /// Keys that were asked for and not there.
    #[cfg(test)]
    pub(super) absent: Vec<String>,
}

/// One mapping whose keys are being taken.
#[derive(Debug)]
pub(super) struct Section {
    key: String,
    pub(super) place: Place,
    entries: Vec<Entry>,
    asked: Vec<&'static str>,
}

impl Walk {
    pub(super) fn new(lenient: bool) -> Self {
        Self {
            mistakes: Vec::new(),
            warnings: Vec::new(),
            lenient,
            duplicates: Duplicates::Refuse,
            hint: Box::new(|_, _| None),
            places: BTreeMap::new(),
            node_keys: Vec::new(),
            #[cfg(test)]
            absent: Vec::new(),
        }
    }

    pub(super) fn mistake(&mut self, place: &Place, key: &str, value: Option<&str>, reason: impl Into<String>) {
        self.mistakes.push(note(place, key, value, reason.into()));
    }

    pub(super) fn warn(&mut self, place: &Place, key: &str, value: Option<&str>, reason: impl Into<String>) {
        self.warnings.push(note(place, key, value, reason.into()));
    }

    /// Where a key was set, for checks across keys.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.places.get(key).cloned().unwrap_or(Place::Default)
    }

    /// Remembers where a key was set.
    pub(super) fn set_place(&mut self, key: &str, place: &Place) {
        self.places.insert(key.to_owned(), place.clone());
    }

    /// Opens a mapping. Nothing at all (`timeouts:` with every key commented out) is an empty one.
    pub(super) fn section(&mut self, key: &str, node: Node) -> Option<Section> {
        let node = self.unpacked(key, node)?;
        let entries = match node.value {
            Value::Map(entries) => self.without_duplicates(key, entries),
            Value::Null => Vec::new(),
            other => {
                self.wrong_type(&node.place, key, &other, "a mapping of keys");
                return None;
            }
        };
        Some(Section { key: key.to_owned(), place: node.place, entries, asked: Vec::new() })
    }

    /// Opens a list.
    pub(super) fn list(&mut self, key: &str, node: Node) -> Option<Vec<Node>> {
        let node = self.unpacked(key, node)?;
        match node.value {
            Value::List(items) => Some(items),
            other => {
                self.wrong_type(&node.place, key, &other, "a list");
                None
            }
        }
    }

    /// Reads a scalar and shows it where it is wrong.
    pub(super) fn scalar<T>(
        &mut self,
        key: &str,
        node: &Node,
        read: impl FnOnce(&Scalar) -> Result<T, String>,
    ) -> Option<T> {
        self.read(key, node, read, Shown::Value)
    }

    /// Reads a secret: text that may stand in a header. Its value is shown nowhere.
    pub(super) fn secret(&mut self, key: &str, node: &Node) -> Option<String> {
        self.read(key, node, secret, Shown::Nothing)
    }

    fn read<T>(
        &mut self,
        key: &str,
        node: &Node,
        read: impl FnOnce(&Scalar) -> Result<T, String>,
        shown: Shown,
    ) -> Option<T> {
        match &node.value {
            Value::Scalar(scalar) => match read(scalar) {
                Ok(value) => Some(value),
                Err(reason) => {
                    let value = (shown == Shown::Value).then_some(scalar.text.as_str());
                    self.mistake(&node.place, key, value, reason);
                    None
                }
            },
            other => {
                self.wrong_type(&node.place, key, other, "one value");
                None
            }
        }
    }

    fn wrong_type(&mut self, place: &Place, key: &str, value: &Value, wanted: &str) {
        match value {
            Value::Bad => {}
            Value::Null => self.mistake(place, key, None, "has no value; leave the key out for its default"),
            Value::Scalar(scalar) if wanted != "one value" => {
                self.mistake(place, key, Some(&scalar.text), format!("wants {wanted}, not {}", value.describe()));
            }
            other => self.mistake(place, key, None, format!("wants {wanted}, not {}", other.describe())),
        }
    }

    /// Lists and mappings in an environment variable are JSON.
    fn unpacked(&mut self, key: &str, node: Node) -> Option<Node> {
        let Value::Scalar(Scalar { text, kind: Kind::Loose, .. }) = &node.value else { return Some(node) };
        if !matches!(node.place, Place::Variable(_)) {
            return Some(node);
        }
        match tree::parse_json(&node.place, text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                let reason = format!("a list or mapping in a variable is JSON, such as [\"a\", \"b\"]: {error}");
                self.mistake(&node.place, key, None, reason);
                None
            }
        }
    }

    fn without_duplicates(&mut self, section: &str, entries: Vec<Entry>) -> Vec<Entry> {
        let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            let first = entry.duplicate.then(|| kept.iter().position(|earlier| earlier.name == entry.name)).flatten();
            let Some(first) = first else {
                kept.push(entry);
                continue;
            };
            let line = match &kept[first].place {
                Place::File { line, .. } => format!("line {line}"),
                other => other.to_string(),
            };
            let key = join(section, &entry.name);
            match self.duplicates {
                Duplicates::Refuse => {
                    self.mistake(&entry.place, &key, None, format!("stands twice, first in {line}"));
                }
                Duplicates::LastWins => {
                    self.warn(&entry.place, &key, None, format!("stands twice, first in {line}; the last one counts"));
                    kept[first] = entry;
                }
            }
        }
        kept
    }
}

/// Whether a message may show the value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Value,
    Nothing,
}

impl Section {
    /// Path of a key below this section.
    pub(super) fn path(&self, name: &str) -> String {
        join(&self.key, name)
    }

    /// Takes a key's value out; from then on the key is a known one.
    pub(super) fn take(&mut self, walk: &mut Walk, name: &'static str) -> Option<Node> {
        self.asked.push(name);
        let key = self.path(name);
        let Some(index) = self.entries.iter().position(|entry| entry.name == name) else {
            #[cfg(test)]
            walk.absent.push(key);
            return None;
        };
        let entry = self.entries.remove(index);
        walk.set_place(&key, &entry.node.place);
        Some(entry.node)
    }

    /// Reads a key's scalar into `into`, if it is there and right.
    pub(super) fn set<T>(
        &mut self,
        walk: &mut Walk,
        name: &'static str,
        into: &mut T,
        read: impl FnOnce(&Scalar) -> Result<T, String>,
    ) {
        if let Some(node) = self.take(walk, name)
            && let Some(value) = walk.scalar(&self.path(name), &node, read)
        {
            *into = value;
        }
    }

    /// Reads a key's scalar into an option, if it is there and right.
    pub(super) fn set_some<T>(
        &mut self,
        walk: &mut Walk,
        name: &'static str,
        into: &mut Option<T>,
        read: impl FnOnce(&Scalar) -> Result<T, String>,
    ) {
        self.set(walk, name, into, |scalar| read(scalar).map(Some));
    }

    /// Opens the mapping below a key, if it is there.
    pub(super) fn section(&mut self, walk: &mut Walk, name: &'static str) -> Option<Section> {
        let node = self.take(walk, name)?;
        walk.section(&self.path(name), node)
    }

    /// Opens the list below a key, if it is there.
    pub(super) fn list(&mut self, walk: &mut Walk, name: &'static str) -> Option<Vec<Node>> {
        let node = self.take(walk, name)?;
        walk.list(&self.path(name), node)
    }

    /// The entries themselves, for mappings whose keys are free.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.entries
    }

    /// Reports every key that nobody asked for.
    pub(super) fn finish(self, walk: &mut Walk) {
        for entry in &self.entries {
            let key = self.path(&entry.name);
            let reason = match (walk.hint)(&self.key, &entry.name) {
                Some(hint) => format!("unknown key; {hint}"),
                None => match units::nearest(&entry.name, self.asked.iter().copied()) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => format!("unknown key; known here: {}", self.asked.join(", ")),
                },
            };
            if walk.lenient {
                walk.warn(&entry.place, &key, None, reason);
            } else {
                walk.mistake(&entry.place, &key, None, reason);
            }
        }
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// A message whose value is short, on one line, without a password and no secret.
fn note(place: &Place, key: &str, value: Option<&str>, reason: String) -> Mistake {
    let one_line = |text: &str| {
        let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(escape_control).collect();
        if text.chars().nth(SHOWN_CHARS_MAX).is_some() {
            shown.push('…');
        }
        shown
    };
    Mistake {
        place: place.clone(),
        key: one_line(key),
        value: value.filter(|_| !is_secret(key)).map(|value| one_line(&node_url::masked(value))),
        reason: reason.chars().flat_map(escape_control).collect(),
    }
}

fn escape_control(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// Reads text. Numbers and truth values are not: YAML has changed them already (`0123`, `1.10`).
pub(super) fn text(scalar: &Scalar) -> Result<String, String> {
    match scalar.kind {
        Kind::Text | Kind::Loose => Ok(scalar.text.clone()),
        _ => Err(format!("wants text; put it in quotes: \"{}\"", scalar.text)),
    }
}

/// Reads text that is not empty and shows on one line.
pub(super) fn line(scalar: &Scalar) -> Result<String, String> {
    let text = text(scalar)?;
    if text.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("holds a control character".to_owned());
    }
    Ok(text)
}

/// Reads a secret: what an HTTP header can carry.
fn secret(scalar: &Scalar) -> Result<String, String> {
    if !matches!(scalar.kind, Kind::Text | Kind::Loose) {
        return Err("wants text; put it in quotes".to_owned());
    }
    let text = &scalar.text;
    if text.is_empty() {
        return Err("is empty; an empty key never means \"no key\": leave it out instead".to_owned());
    }
    if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) || text.trim() != text {
        return Err("holds characters that no header carries: letters, digits and signs of ASCII only".to_owned());
    }
    Ok(text.clone())
}

/// Reads a duration between two bounds.
pub(super) fn duration(least: Duration, most: Duration) -> impl Fn(&Scalar) -> Result<Duration, String> {
    move |scalar| {
        let value = units::duration(&scalar.text)?;
        if (least..=most).contains(&value) {
            return Ok(value);
        }
        Err(format!("must be from {} to {}", units::show_duration(least), units::show_duration(most)))
    }
}

/// Reads a size in bytes between two bounds.
pub(super) fn size<T: TryFrom<u64>>(least: u64, most: u64) -> impl Fn(&Scalar) -> Result<T, String> {
    move |scalar| {
        let bytes = units::size(&scalar.text)?;
        let fits = (least..=most).contains(&bytes).then(|| T::try_from(bytes).ok()).flatten();
        fits.ok_or_else(|| format!("must be from {} to {}", units::show_size(least), units::show_size(most)))
    }
}

/// Reads a whole number between two bounds.
pub(super) fn number<T: TryFrom<u64>>(least: u64, most: u64) -> impl Fn(&Scalar) -> Result<T, String> {
    move |scalar| {
        let digits = !scalar.text.is_empty() && scalar.text.bytes().all(|byte| byte.is_ascii_digit());
        let wanted = format!("must be a whole number from {least} to {most}");
        if !digits || !matches!(scalar.kind, Kind::Integer | Kind::Loose) {
            let quoted = if digits { ", without quotes" } else { "" };
            return Err(format!("{wanted}{quoted}"));
        }
        let value = scalar.text.parse::<u64>().ok().filter(|value| (least..=most).contains(value));
        value.and_then(|value| T::try_from(value).ok()).ok_or(wanted)
    }
}

/// Reads `auto` as `None`, anything else as `read` does.
pub(super) fn auto_or<T>(read: impl Fn(&Scalar) -> Result<T, String>) -> impl Fn(&Scalar) -> Result<Option<T>, String> {
    move |scalar| match scalar.text.as_str() {
        "auto" => Ok(None),
        _ => read(scalar).map(Some).map_err(|reason| format!("{reason}, or auto")),
    }
}

/// Reads one of a few words.
pub(super) fn one_of<T: Copy>(words: &[(&'static str, T)]) -> impl Fn(&Scalar) -> Result<T, String> {
    move |scalar| {
        if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == scalar.text) {
            return Ok(value);
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let near = units::nearest(&scalar.text, names.iter().copied());
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        Err(format!("must be one of {}{hint}", names.join(", ")))
    }
}

/// Reads a truth value: `true`, `false`, `on`, `off`.
pub(super) fn toggle(scalar: &Scalar) -> Result<bool, String> {
    one_of(&[("true", true), ("false", false), ("on", true), ("off", false)])(scalar)
}
