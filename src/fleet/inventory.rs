//! What nodes say, parsed: tags, ps, served models, show, props, version. Pure.
//!
//! Entries keep every key and value as received ([`Fields`]), so that a listing shows what the node showed, unknown keys
//! included. Called by the poller with whole bodies. Must never trust a body: what cannot be read is an error in words,
//! an entry without a name is left out.

use std::fmt;

use jiff::Timestamp;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::dialect::name;
use crate::sync::Arc;

/// One JSON object: keys and values in order, values as received.
///
/// A thousand nodes show the same object but for one value, their own date: the list is shared, that value lies beside it
/// ([`Fields::share`]).
#[derive(Clone, Debug, Default)]
pub struct Fields {
    list: Arc<[Field]>,
    own: Option<Box<(usize, Box<RawValue>)>>,
}

type Field = (Box<str>, Box<RawValue>);

impl Fields {
    /// The raw JSON of a value; the last one wins, as everywhere.
    #[must_use]
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.place(key).map(|at| self.at(at).1.get())
    }

    fn place(&self, key: &str) -> Option<usize> {
        self.list.iter().rposition(|(k, _)| &**k == key)
    }

    fn at(&self, at: usize) -> (&str, &RawValue) {
        let (key, value) = &self.list[at];
        let own = self.own.as_deref().filter(|(place, _)| *place == at);
        (key, own.map_or(value, |(_, own)| own))
    }

    /// Keys and raw values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.list.len()).map(|at| self.at(at)).map(|(key, value)| (key, value.get()))
    }

    /// Takes over the list of `other`, if that is the same but for the value of `key`; says whether it did.
    pub fn share(&mut self, other: &Self, key: &str) -> bool {
        let Some(place) = other.place(key).filter(|_| self.list.len() == other.list.len()) else { return false };
        let same =
            self.iter().zip(other.iter()).enumerate().all(|(at, (a, b))| a.0 == b.0 && (at == place || a.1 == b.1));
        if same {
            let (value, theirs) = (self.at(place).1.get(), other.list[place].1.get());
            let own = (value != theirs).then(|| RawValue::from_string(value.to_owned()).ok()).flatten();
            *self = Self { own: own.map(|own| Box::new((place, own))), list: Arc::clone(&other.list) };
        }
        same
    }

    /// How many objects share the list.
    #[must_use]
    pub fn sharers(&self) -> usize {
        Arc::strong_count(&self.list)
    }

    /// A value of this type; `None` if it is absent, null or of another type.
    #[must_use]
    pub fn value<'a, T: Deserialize<'a>>(&'a self, key: &str) -> Option<T> {
        self.raw(key).and_then(|raw| serde_json::from_str::<Option<T>>(raw).ok()).flatten()
    }

    /// Replaces a value in its place; a key that is absent stays absent (older nodes lack some).
    pub fn replace(&mut self, key: &str, raw: &str) {
        let (Some(at), Ok(new)) = (self.place(key), RawValue::from_string(raw.to_owned())) else { return };
        if let Some(own) = self.own.take_if(|own| own.0 != at) {
            let mut list = self.list.to_vec();
            list[own.0].1 = own.1;
            self.list = list.into();
        }
        self.own = Some(Box::new((at, new)));
    }

    /// The object as one raw value.
    #[must_use]
    pub fn to_raw(&self) -> Option<Box<RawValue>> {
        let mut out = Vec::new();
        self.write(&mut out);
        RawValue::from_string(String::from_utf8(out).ok()?).ok()
    }

    /// Appends the object to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        for (at, (key, value)) in self.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_text(out, key);
            out.push(b':');
            out.extend_from_slice(value.as_bytes());
        }
        out.push(b'}');
    }
}

impl PartialEq for Fields {
    /// Byte for byte: what was received again is the same, whatever it means.
    fn eq(&self, other: &Self) -> bool {
        self.list.len() == other.list.len() && self.iter().eq(other.iter())
    }
}

/// Appends a JSON string.
pub fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing to a Vec cannot fail, and a str is always a JSON string.
    let _ = serde_json::to_writer(out, text);
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((0..self.list.len()).map(|at| self.at(at)))
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::with_capacity(12);
                while let Some((key, value)) = map.next_entry::<Box<str>, Box<RawValue>>()? {
                    fields.push((key, value));
                }
                Ok(Fields { list: fields.into(), own: None })
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// One model that a node has on disk, or serves.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Routing key.
    pub key: Arc<str>,
    /// Display name: normalised, or as sent where it is a cloud name or an OpenAI-compatible node's id.
    pub name: Arc<str>,
    /// Digest of the manifest; empty for OpenAI-compatible nodes.
    pub digest: Arc<str>,
    /// A stub that runs elsewhere.
    pub remote: bool,
    /// When it was changed on that node.
    pub modified: Option<Timestamp>,
    /// Served and in memory (OpenAI-compatible nodes); always false for tags, where only ps tells.
    pub loaded: bool,
    /// As received.
    pub fields: Fields,
}

/// One model in a node's memory.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Routing key of the name that loaded it.
    pub key: Arc<str>,
    /// Digest of that name's manifest.
    pub digest: Arc<str>,
    /// When it is unloaded if nobody asks for it.
    pub expires: Option<Timestamp>,
    /// As received.
    pub fields: Fields,
}

/// The objects of one list in a body. A list that is null is empty (Go writes both); one that is absent is no answer.
fn list(body: &[u8], key: &str, path: &str) -> Result<Vec<Fields>, String> {
    let unreadable = |error: serde_json::Error| format!("unreadable {path}: {error}");
    let object: Fields = serde_json::from_slice(body).map_err(unreadable)?;
    let raw = object.raw(key).ok_or_else(|| format!("unreadable {path}: no {key}"))?;
    Ok(serde_json::from_str::<Option<Vec<Fields>>>(raw).map_err(unreadable)?.unwrap_or_default())
}

/// Parses `/api/tags`, in order of keys: the node's own order is random among equal dates, which is no change.
///
/// # Errors
/// The body is not such an object, in words.
pub fn tags(body: &[u8]) -> Result<Vec<Entry>, String> {
    let mut entries = unique(list(body, "models", "/api/tags")?.into_iter().filter_map(tag));
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(entries)
}

/// One entry of `/api/tags`; also what the memory file holds.
#[must_use]
pub fn tag(fields: Fields) -> Option<Entry> {
    let sent = sent_name(&fields)?;
    Some(Entry {
        key: name::key(&sent).into(),
        name: display(&sent),
        digest: fields.value::<Box<str>>("digest").unwrap_or_default().into(),
        remote: fields.value::<Box<str>>("remote_host").is_some_and(|host| !host.is_empty()),
        modified: time(&fields, "modified_at"),
        loaded: false,
        fields,
    })
}

/// Parses `/api/ps`.
///
/// # Errors
/// The body is not such an object, in words.
pub fn ps(body: &[u8]) -> Result<Vec<Loaded>, String> {
    let entry = |fields: Fields| {
        Some(Loaded {
            key: name::key(&sent_name(&fields)?).into(),
            digest: fields.value::<Box<str>>("digest").unwrap_or_default().into(),
            expires: time(&fields, "expires_at"),
            fields,
        })
    };
    Ok(list(body, "models", "/api/ps")?.into_iter().filter_map(entry).collect())
}

/// Parses `/v1/models` of an OpenAI-compatible node.
///
/// # Errors
/// The body is not such an object, in words.
pub fn served(body: &[u8]) -> Result<Vec<Entry>, String> {
    Ok(unique(list(body, "data", "/v1/models")?.into_iter().filter_map(serve)))
}

/// One entry of `/v1/models`; also what the memory file holds.
#[must_use]
pub fn serve(fields: Fields) -> Option<Entry> {
    let id = fields.value::<Box<str>>("id").filter(|id| !id.is_empty())?;
    Some(Entry {
        key: name::key(&id).into(),
        name: id.into(),
        digest: "".into(),
        remote: false,
        modified: None,
        loaded: is_in_memory(&fields),
        fields,
    })
}

/// llama.cpp's router mode says for each model whether it is loaded; all others load before they listen.
fn is_in_memory(fields: &Fields) -> bool {
    #[derive(Deserialize)]
    struct Status {
        value: Box<str>,
    }
    let said = fields.value::<Box<str>>("status").or_else(|| fields.value::<Status>("status").map(|s| s.value));
    said.is_none_or(|status| &*status == "loaded")
}

/// The digest of the weights blob (64 hex) in a `/api/show` answer: the first `FROM` line of its modelfile, the only
/// place where the API shows it. `None` if there is none (a remote stub, an engine with other storage).
///
/// # Errors
/// The body is not an object.
pub fn weights(body: &[u8]) -> Result<Option<Box<str>>, String> {
    #[derive(Deserialize)]
    struct Show {
        #[serde(default)]
        modelfile: Option<Box<str>>,
    }
    let show: Show = serde_json::from_slice(body).map_err(|error| format!("unreadable /api/show: {error}"))?;
    let modelfile = show.modelfile.unwrap_or_default();
    // The first one: those that follow name projectors.
    let from = modelfile.lines().find_map(|line| line.strip_prefix("FROM "));
    Ok(from.and_then(|path| path.rsplit_once("sha256-")).and_then(|(_, digest)| {
        let digest = digest.trim_end_matches(['"', ' ', '\r']);
        let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest.then(|| digest.to_ascii_lowercase().into())
    }))
}

/// The version in a `/api/version` answer.
///
/// # Errors
/// The body is not Ollama's.
pub fn version(body: &[u8]) -> Result<Arc<str>, String> {
    #[derive(Deserialize)]
    struct Version {
        version: Box<str>,
    }
    let answer: Version = serde_json::from_slice(body).map_err(|_| "answers, but not as Ollama does".to_owned())?;
    Ok(answer.version.into())
}

/// `total_slots` of a `/props` answer, where it says so.
#[must_use]
pub fn total_slots(body: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Props {
        total_slots: u32,
    }
    serde_json::from_slice::<Props>(body).ok().map(|props| props.total_slots).filter(|&slots| slots > 0)
}

/// The name an entry goes by; `model` is its twin.
fn sent_name(fields: &Fields) -> Option<Box<str>> {
    let named = |key| fields.value::<Box<str>>(key).filter(|name| !name.is_empty());
    named("name").or_else(|| named("model"))
}

/// The normalised form; cloud names and what is no valid name stay as sent.
fn display(sent: &str) -> Arc<str> {
    match name::parse(sent) {
        Ok(parsed) if parsed.source == name::Source::Unspecified => parsed.display().into(),
        _ => sent.into(),
    }
}

fn time(fields: &Fields, key: &str) -> Option<Timestamp> {
    fields.value::<Box<str>>(key)?.parse().ok()
}

/// The first entry of each key, in the node's order: a node on a case-sensitive disk may list `M` and `m`.
fn unique(entries: impl Iterator<Item = Entry>) -> Vec<Entry> {
    let mut seen = std::collections::HashSet::new();
    entries.filter(|entry| seen.insert(Arc::clone(&entry.key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fields: &Fields) -> String {
        let mut out = Vec::new();
        fields.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    const TAGS: &str = r#"{"models":[{"name":"Me/X","model":"Me/X:latest","modified_at":"2026-11-23T22:20:24.9+01:00","size":98362809,"digest":"9a5f","details":{"families":null,"x":1.50},"later":"\u003c"},{"size":1},{"name":"me/x:latest"}]}"#;

    #[test]
    fn tags_keep_what_they_do_not_know() {
        let entries = tags(TAGS.as_bytes()).unwrap();
        assert_eq!(entries.len(), 1, "one has no name, one is the same name again");
        let entry = &entries[0];
        assert_eq!(
            (&*entry.key, &*entry.name, &*entry.digest, entry.remote),
            ("me/x:latest", "Me/X:latest", "9a5f", false)
        );
        assert_eq!(entry.modified.unwrap().as_second(), 1_795_468_824);
        assert!(TAGS.contains(&written(&entry.fields)));
    }

    #[test]
    fn a_value_is_replaced_in_its_place() {
        let mut fields: Fields = serde_json::from_str(r#"{"a":1,"b":{"c":[1, 2]},"d":null}"#).unwrap();
        fields.replace("a", "7");
        fields.replace("absent", "1");
        assert_eq!(written(&fields), r#"{"a":7,"b":{"c":[1, 2]},"d":null}"#);
        assert_eq!(fields.value::<u64>("a"), Some(7));
        assert_eq!(fields.value::<u64>("d"), None);
    }

    #[test]
    fn objects_that_differ_in_one_value_share_the_rest() {
        let read = |text: &str| serde_json::from_str::<Fields>(text).unwrap();
        let texts = [r#"{"name":"m","modified_at":"a","size":1}"#, r#"{"name":"m","modified_at":"b","size":1}"#];
        let base = read(texts[0]);
        let (mut same, mut other) = (read(texts[0]), read(texts[1]));
        assert!(same.share(&base, "modified_at") && other.share(&base, "modified_at"));
        assert_eq!(base.sharers(), 3);
        assert_eq!([written(&same), written(&other)], texts);
        assert!(other == read(texts[1]) && other != base);
        other.replace("size", "9");
        other.replace("modified_at", "\"c\"");
        assert_eq!(written(&other), r#"{"name":"m","modified_at":"c","size":9}"#);
        assert_eq!(written(&base), texts[0], "what others share stays");
        for foreign in [r#"{"name":"m","modified_at":"a","size":2}"#, r#"{"name":"m","modified_at":"a"}"#, "{}"] {
            assert!(!read(foreign).share(&base, "modified_at"), "{foreign}");
        }
    }

    #[test]
    fn empty_lists_are_lists_and_rubbish_is_an_error() {
        for empty in [r#"{"models":[]}"#, r#"{"models":null}"#] {
            assert!(tags(empty.as_bytes()).unwrap().is_empty());
            assert!(ps(empty.as_bytes()).unwrap().is_empty());
        }
        for rubbish in
            ["", "[]", r#"{"error":"x"}"#, "404 page not found", r#"{"models":[1]}"#, r#"{"models":[{"name":"a"}]"#]
        {
            assert!(tags(rubbish.as_bytes()).is_err(), "{rubbish}");
            assert!(ps(rubbish.as_bytes()).is_err(), "{rubbish}");
        }
    }

    #[test]
    fn a_remote_stub_is_known_by_its_host_and_keeps_its_name() {
        let body = br#"{"models":[{"name":"gpt-oss:120b-cloud","remote_model":"gpt-oss:120b","remote_host":"https://ollama.com:443","digest":"aa"}]}"#;
        let entries = tags(body).unwrap();
        assert!(entries[0].remote);
        assert_eq!(&*entries[0].name, "gpt-oss:120b-cloud");
    }

    #[test]
    fn served_models_count_as_loaded_unless_they_say_otherwise() {
        let body = br#"{"models":[{"name":"x"}],"object":"list","data":[{"id":"Org/Model.gguf","owned_by":"llamacpp"},
            {"id":"b","status":{"value":"unloaded"}},{"id":"c","status":{"value":"loaded"}},{"id":"d","status":"loading"}]}"#;
        let entries = served(body).unwrap();
        let loaded: Vec<_> = entries.iter().map(|e| (&*e.name, e.loaded)).collect();
        assert_eq!(loaded, [("Org/Model.gguf", true), ("b", false), ("c", true), ("d", false)]);
        assert!(served(br#"{"models":[]}"#).is_err());
    }

    #[test]
    fn weights_come_from_the_first_from_line() {
        let blob = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        let show = format!(
            r##"{{"modelfile":"# FROM smollm2:135m\n\nFROM /srv/models/blobs/sha256-{blob}\nFROM /srv/models/blobs/sha256-{}\nTEMPLATE x"}}"##,
            "0".repeat(64)
        );
        assert_eq!(weights(show.as_bytes()).unwrap().as_deref(), Some(blob));
        for none in [r#"{"modelfile":"FROM gpt-oss:120b"}"#, r#"{"modelfile":"FROM /x/sha256-12"}"#, "{}"] {
            assert_eq!(weights(none.as_bytes()).unwrap(), None, "{none}");
        }
        assert!(weights(b"nope").is_err());
    }

    #[test]
    fn props_and_versions() {
        assert_eq!(total_slots(br#"{"total_slots":2,"model_path":"x"}"#), Some(2));
        assert_eq!(total_slots(br#"{"total_slots":0}"#), None);
        assert_eq!(total_slots(b"404"), None);
        assert_eq!(&*version(br#"{"version":"0.33.0-rc2"}"#).unwrap(), "0.33.0-rc2");
        assert!(version(br#"{"error":"not found"}"#).is_err());
    }
}
