//! Model names as Ollama reads them: source suffix, four parts, defaults, validity, display form, routing key.
//!
//! Called by routing's caller (the key of a request), fleet (the key of an inventory entry) and the ledger (the display
//! form). Must never allocate while parsing, nor look at what any node has. Source: `ollama-api.md` §8.2.

/// The registry a name without a host belongs to.
pub const DEFAULT_HOST: &str = "registry.ollama.ai";
/// The namespace of a name without one.
pub const DEFAULT_NAMESPACE: &str = "library";
/// The tag of a name without one.
pub const DEFAULT_TAG: &str = "latest";

/// Bytes allowed in namespace, model and tag.
const PART_BYTES_MAX: usize = 80;
/// Bytes allowed in a host.
const HOST_BYTES_MAX: usize = 350;
/// What marks a cloud name in its routing key. No display form holds two colons after its last slash, so no local key
/// can end like this.
const CLOUD_MARK: &str = ":cloud";

/// Where a name asks to be run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// No suffix: whatever the node has under that name, a remote stub too.
    Unspecified,
    /// `:local`: never a remote stub.
    Local,
    /// `:cloud` or a tag that ends in `-cloud`: run by ollama.com.
    Cloud,
}

/// Why a name cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NameError {
    /// Empty, or white space only.
    Missing,
    /// Two source suffixes (`x:local:cloud`).
    Conflict,
    /// A part that is empty where a separator promised one, too long, or of other characters.
    Invalid,
}

/// A valid name, its parts as sent; the absent ones filled in.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// Host, perhaps with a port.
    pub host: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Model.
    pub model: &'a str,
    /// Tag, without a `-cloud` ending.
    pub tag: &'a str,
    /// What the suffix said.
    pub source: Source,
}

/// Parses a name as the inference routes do, suffix included.
///
/// # Errors
/// [`NameError`], each with a text of its own on the wire (`dialect::texts`).
pub fn parse(sent: &str) -> Result<Name<'_>, NameError> {
    let trimmed = sent.trim();
    if trimmed.is_empty() {
        return Err(NameError::Missing);
    }
    let (reference, source) = cut_source(Reference { rest: trimmed, tag: None });
    if source != Source::Unspecified && cut_source(reference).1 != Source::Unspecified {
        return Err(NameError::Conflict);
    }
    split(reference, source).filter(Name::is_valid).ok_or(NameError::Invalid)
}

/// Whether a name is valid where source suffixes mean nothing: `x:cloud` is a model with the tag `cloud` to push, copy
/// and a create's own name.
///
/// # Errors
/// [`NameError::Missing`] or [`NameError::Invalid`].
pub fn parse_plain(sent: &str) -> Result<Name<'_>, NameError> {
    let trimmed = sent.trim();
    if trimmed.is_empty() {
        return Err(NameError::Missing);
    }
    let reference = Reference { rest: trimmed, tag: None };
    split(reference, Source::Unspecified).filter(Name::is_valid).ok_or(NameError::Invalid)
}

/// The routing key of a name: its display form in lower case, with a mark of its own for cloud names. What is not a
/// valid name (an OpenAI-compatible node may call its model anything) is its own key, trimmed and in lower case.
#[must_use]
pub fn key(sent: &str) -> Box<str> {
    Key::of(sent).as_str().into()
}

/// Longest key kept in place. Ollama's own names have up to 30 bytes, those of Hugging Face up to 90.
const KEY_BYTES_IN_PLACE: usize = 102;

/// A routing key (see [`key`]) that lies on the stack unless its name is unusually long.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Room);

#[derive(Clone, PartialEq, Eq)]
enum Room {
    InPlace { bytes: [u8; KEY_BYTES_IN_PLACE], length: u8 },
    Boxed(Box<str>),
}

impl Key {
    /// The key of a name as sent.
    #[must_use]
    pub fn of(sent: &str) -> Self {
        if is_key(sent) {
            let mut bytes = [0; KEY_BYTES_IN_PLACE];
            bytes[..sent.len()].copy_from_slice(sent.as_bytes());
            return Self(Room::InPlace { bytes, length: u8::try_from(sent.len()).unwrap_or(0) });
        }
        match parse(sent) {
            Ok(name) if name.display_bytes() + CLOUD_MARK.len() <= KEY_BYTES_IN_PLACE => {
                let (mut bytes, mut length) = ([0; KEY_BYTES_IN_PLACE], 0);
                let parts = name.displayed().into_iter().flatten();
                for part in parts.chain((name.source == Source::Cloud).then_some(CLOUD_MARK)) {
                    bytes[length..length + part.len()].copy_from_slice(part.as_bytes());
                    length += part.len();
                }
                bytes.make_ascii_lowercase();
                Self(Room::InPlace { bytes, length: u8::try_from(length).unwrap_or(0) })
            }
            Ok(name) => Self(Room::Boxed(name.key().into_boxed_str())),
            Err(_) => Self(Room::Boxed(sent.trim().to_lowercase().into_boxed_str())),
        }
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // Copied from text, whole parts of it.
            Room::InPlace { bytes, length } => std::str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default(),
            Room::Boxed(key) => key,
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

impl Name<'_> {
    /// The shortest unambiguous form: host and namespace only where they are not the defaults, model and tag always.
    #[must_use]
    pub fn display(&self) -> String {
        let mut form = String::with_capacity(self.display_bytes());
        self.write_display(&mut form);
        form
    }

    /// The routing key (see [`key`]).
    #[must_use]
    pub fn key(&self) -> String {
        let mark = if self.source == Source::Cloud { CLOUD_MARK } else { "" };
        // Exact, so that the boxed form of [`key`] needs no second allocation.
        let mut form = String::with_capacity(self.display_bytes() + mark.len());
        self.write_display(&mut form);
        form.make_ascii_lowercase();
        form.push_str(mark);
        form
    }

    /// Host and namespace as far as they are shown.
    fn shown(&self) -> (Option<&str>, Option<&str>) {
        let host = Some(self.host).filter(|host| !host.eq_ignore_ascii_case(DEFAULT_HOST));
        let is_own = |namespace: &&str| host.is_some() || !namespace.eq_ignore_ascii_case(DEFAULT_NAMESPACE);
        (host, Some(self.namespace).filter(is_own))
    }

    fn display_bytes(&self) -> usize {
        let (host, namespace) = self.shown();
        let with_slash = |part: Option<&str>| part.map_or(0, |part| part.len() + 1);
        with_slash(host) + with_slash(namespace) + self.model.len() + 1 + self.tag.len()
    }

    fn write_display(&self, out: &mut String) {
        self.displayed().into_iter().flatten().for_each(|part| out.push_str(part));
    }

    /// The pieces of the display form.
    fn displayed(&self) -> [Option<&str>; 7] {
        let (host, namespace) = self.shown();
        let slash = |part: Option<&str>| part.map(|_| "/");
        [host, slash(host), namespace, slash(namespace), Some(self.model), Some(":"), Some(self.tag)]
    }

    fn is_valid(&self) -> bool {
        valid_part(self.host, HOST_BYTES_MAX, |b| b == b'.' || b == b':')
            && valid_part(self.namespace, PART_BYTES_MAX, |_| false)
            && valid_part(self.model, PART_BYTES_MAX, |b| b == b'.')
            && valid_part(self.tag, PART_BYTES_MAX, |b| b == b'.')
    }
}

/// A name whose tag may already be cut off, so that taking `-cloud` from a tag needs no new string.
#[derive(Clone, Copy)]
struct Reference<'a> {
    rest: &'a str,
    tag: Option<&'a str>,
}

/// Takes one source suffix off. Only what follows the last `:` is one; `x-cloud` is an ordinary local name.
fn cut_source(reference: Reference<'_>) -> (Reference<'_>, Source) {
    let (before, after) = match reference.tag {
        Some(tag) => (reference.rest, tag),
        None => match reference.rest.rsplit_once(':') {
            Some(parts) => parts,
            None => return (reference, Source::Unspecified),
        },
    };
    let suffix = after.trim();
    if suffix.eq_ignore_ascii_case("cloud") {
        return (Reference { rest: before, tag: None }, Source::Cloud);
    }
    if suffix.eq_ignore_ascii_case("local") {
        return (Reference { rest: before, tag: None }, Source::Local);
    }
    // `h:80/ns/x-cloud` has its last colon in the host: what follows is no tag.
    match strip_suffix_ignore_case(suffix, "-cloud") {
        Some(tag) if !suffix.contains('/') => (Reference { rest: before, tag: Some(tag) }, Source::Cloud),
        _ => (reference, Source::Unspecified),
    }
}

fn strip_suffix_ignore_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    let (head, tail) = text.split_at_checked(at)?;
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

/// Splits from the right. `None` when a separator promises a part that is not there.
fn split(reference: Reference<'_>, source: Source) -> Option<Name<'_>> {
    let (rest, tag) = match reference.tag {
        Some(tag) => (reference.rest, tag),
        None => match reference.rest.rsplit_once(':') {
            Some((rest, tag)) if !tag.contains('/') => (rest, tag),
            _ => (reference.rest, DEFAULT_TAG),
        },
    };
    if rest.is_empty() || tag.is_empty() {
        return None;
    }
    let name = |host, namespace, model| Some(Name { host, namespace, model, tag, source });
    let Some((rest, model)) = rest.rsplit_once('/') else { return name(DEFAULT_HOST, DEFAULT_NAMESPACE, rest) };
    if rest.is_empty() || model.is_empty() {
        return None;
    }
    let Some((rest, namespace)) = rest.rsplit_once('/') else { return name(DEFAULT_HOST, rest, model) };
    if rest.is_empty() || namespace.is_empty() {
        return None;
    }
    // The scheme decides how a node pulls, not which model this is.
    let host = rest.split_once("://").map_or(rest, |(_, host)| host);
    name(if host.is_empty() { DEFAULT_HOST } else { host }, namespace, model)
}

/// Whether a name as sent is its own key: `model:tag` in small letters, the usual case, seen in one look. What may end
/// in a source suffix is left to the parser.
fn is_key(sent: &str) -> bool {
    let bytes = sent.as_bytes();
    let Some(colon) = memchr::memchr(b':', bytes) else { return false };
    let (model, tag) = (&bytes[..colon], &bytes[colon + 1..]);
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let valid = |part: &[u8]| {
        part.first().is_some_and(|&first| word(first)) && part.iter().all(|&b| word(b) || b == b'-' || b == b'.')
    };
    let has_source = tag == b"local" || tag.ends_with(b"cloud");
    bytes.len() <= PART_BYTES_MAX && valid(model) && valid(tag) && !has_source
}

fn valid_part(part: &str, bytes_max: usize, also: impl Fn(u8) -> bool) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let (Some(first), true) = (part.bytes().next(), part.len() <= bytes_max) else { return false };
    word(first) && part.bytes().skip(1).all(|b| word(b) || b == b'-' || also(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn display(sent: &str) -> Result<String, NameError> {
        parse(sent).map(|name| name.display())
    }

    #[test]
    fn parts_are_filled_in_and_defaults_hidden() {
        for (sent, shown) in [
            ("llama3.2", "llama3.2:latest"),
            ("  llama3.2 \n", "llama3.2:latest"),
            ("Llama3.2:1B", "Llama3.2:1B"),
            ("library/x", "x:latest"),
            ("Library/x", "x:latest"),
            ("me/x:v1", "me/x:v1"),
            ("registry.ollama.ai/library/x:v1", "x:v1"),
            ("REGISTRY.ollama.ai/me/x:v1", "me/x:v1"),
            ("hf.co/a/b:q4_k_m", "hf.co/a/b:q4_k_m"),
            ("hf.co/library/b", "hf.co/library/b:latest"),
            ("http://localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
            ("https:///a/b", "a/b:latest"),
            ("_x", "_x:latest"),
        ] {
            assert_eq!(display(sent), Ok(shown.to_owned()), "{sent}");
        }
    }

    #[test]
    fn the_source_suffix_is_taken_off_once() {
        for (sent, shown, source) in [
            ("x:cloud", "x:latest", Source::Cloud),
            ("x: CLOUD ", "x:latest", Source::Cloud),
            ("x:local", "x:latest", Source::Local),
            ("x:1b:local", "x:1b", Source::Local),
            ("gpt-oss:120b-cloud", "gpt-oss:120b", Source::Cloud),
            ("gpt-oss: 120b-Cloud", "gpt-oss:120b", Source::Cloud),
            ("me/gpt-oss:120b:cloud", "me/gpt-oss:120b", Source::Cloud),
            ("x-cloud", "x-cloud:latest", Source::Unspecified),
            ("h:80/a/x-cloud", "h:80/a/x-cloud:latest", Source::Unspecified),
            ("x:clouds", "x:clouds", Source::Unspecified),
        ] {
            let name = parse(sent).unwrap_or_else(|e| panic!("{sent}: {e:?}"));
            assert_eq!((name.display().as_str(), name.source), (shown, source), "{sent}");
        }
    }

    #[test]
    fn a_plain_name_has_no_source_suffix() {
        let plain = |sent| parse_plain(sent).map(|name| (name.display(), name.source));
        assert_eq!(plain("x:cloud"), Ok(("x:cloud".to_owned(), Source::Unspecified)));
        assert_eq!(plain(" x "), Ok(("x:latest".to_owned(), Source::Unspecified)));
        assert_eq!(plain("x:1b:local").err(), Some(NameError::Invalid));
        assert_eq!(plain(" ").err(), Some(NameError::Missing));
    }

    #[test]
    fn bad_names_say_why() {
        for sent in ["x:local:cloud", "x:cloud:cloud", "x:a-cloud:local", "x:a-cloud-cloud", "a:local:b-cloud"] {
            let said = parse(sent).err();
            let nested = sent != "a:local:b-cloud";
            // There the rest is `a:local:b`, whose suffix is `b`: no conflict, but a colon in the model part.
            assert_eq!(said, Some(if nested { NameError::Conflict } else { NameError::Invalid }), "{sent}");
        }
        for sent in ["", " ", "\t\n"] {
            assert_eq!(parse(sent).err(), Some(NameError::Missing));
        }
        let long = "x".repeat(81);
        for sent in [
            "a b",
            "../x",
            "foo:",
            "/foo",
            "a//b",
            "/a/b",
            ":b",
            ":cloud",
            "x:-cloud",
            "-x",
            ".x",
            "n.s/x",
            "x@sha256:1",
            "é",
            "x:é",
            "a:b:c",
            "a/b/c/d",
            &long,
        ] {
            assert_eq!(parse(sent).err(), Some(NameError::Invalid), "{sent}");
        }
        assert!(parse(&"x".repeat(80)).is_ok());
        assert!(parse(&format!("{}/a/b", "h".repeat(350))).is_ok());
        assert!(parse(&format!("{}/a/b", "h".repeat(351))).is_err());
    }

    #[test]
    fn keys_agree_exactly_when_names_are_one() {
        assert_eq!(&*key("M"), "m:latest");
        assert_eq!(key("registry.ollama.ai/Library/M:Latest"), key("m"));
        assert_eq!(key("m:local"), key("m"));
        assert_eq!(key("gpt-oss:120b-cloud"), key("GPT-OSS:120b:cloud"));
        assert_ne!(key("gpt-oss:120b-cloud"), key("gpt-oss:120b"));
        assert_eq!(&*key("/models/Qwen2.gguf"), "/models/qwen2.gguf");
        assert_eq!(&*key("A B"), "a b");
        let long = format!("hf.co/{}/{}:q4", "a".repeat(70), "B".repeat(70));
        for name in ["M", "gpt-oss:120b-cloud", "/models/Q.gguf", "A B", "", &long] {
            assert_eq!(Key::of(name).as_str(), &*key(name), "{name}");
        }
        assert_eq!(Key::of(&long).as_str(), long.to_lowercase());
    }

    proptest::proptest! {
        #[test]
        fn a_name_that_is_its_own_key_is_seen_at_a_glance(name in "[a-zA-Z0-9_.:/-]{0,12}", suffix in "(:cloud|-cloud|:local|cloud|:latest|)") {
            let sent = format!("{name}{suffix}");
            let slow = match parse(&sent) {
                Ok(name) => name.key(),
                Err(_) => sent.trim().to_lowercase(),
            };
            let quick = Key::of(&sent);
            proptest::prop_assert_eq!(quick.as_str(), slow);
        }
    }
}
