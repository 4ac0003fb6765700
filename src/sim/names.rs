//! Model names as a node reads them: source suffix, defaults, display form.
//!
//! Called by every handler that names a model. Written for the simulation alone, so that it can contradict the proxy.

/// A fully qualified name; every part as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

/// What a suffix says about where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Any,
    Local,
    Cloud,
}

/// Why a text is not a model name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameError {
    Empty,
    Invalid,
    /// Both suffixes, with Ollama's text.
    Conflict(String),
}

impl Name {
    /// Reads a name after its source suffix was cut.
    pub(super) fn parse(text: &str) -> Result<Self, NameError> {
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(NameError::Empty);
        }
        let mut tag = "latest".to_owned();
        let slash = rest.rfind('/');
        if let Some(colon) = rest.rfind(':').filter(|colon| slash.is_none_or(|slash| *colon > slash)) {
            rest.get(colon + 1..).unwrap_or("").clone_into(&mut tag);
            rest = &rest[..colon];
        }
        if let Some((_, after)) = rest.split_once("://") {
            rest = after;
        }
        let mut parts: Vec<&str> = rest.rsplitn(3, '/').collect();
        parts.reverse();
        let model = parts.pop().unwrap_or("").to_owned();
        let namespace = parts.pop().unwrap_or("library").to_owned();
        let host = parts.pop().unwrap_or("registry.ollama.ai").to_owned();
        let valid =
            part(&model, 80, "._-") && part(&tag, 80, "._-") && part(&namespace, 80, "_-") && part(&host, 350, "._-:");
        if valid { Ok(Self { host, namespace, model, tag }) } else { Err(NameError::Invalid) }
    }

    /// The shortest form that still names it, tag always shown.
    pub(super) fn display(&self) -> String {
        if self.host != "registry.ollama.ai" {
            format!("{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
        } else if self.namespace != "library" {
            format!("{}/{}:{}", self.namespace, self.model, self.tag)
        } else {
            format!("{}:{}", self.model, self.tag)
        }
    }

    /// Every part, defaults included.
    pub(super) fn full(&self) -> String {
        format!("{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
    }

    /// The manifest's place below the model directory.
    pub(super) fn path(&self) -> String {
        format!("{}/{}/{}/{}", self.host, self.namespace, self.model, self.tag)
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What names are compared by: all parts, without case.
    pub(super) fn key(&self) -> String {
        self.full().to_ascii_lowercase()
    }
}

fn part(text: &str, longest: usize, also: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && text.len() <= longest && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

/// Cuts one source suffix off.
fn cut(text: &str) -> (&str, Source) {
    let Some((rest, last)) = text.rsplit_once(':') else { return (text, Source::Any) };
    let word = last.trim();
    if word.eq_ignore_ascii_case("cloud") {
        (rest, Source::Cloud)
    } else if word.eq_ignore_ascii_case("local") {
        (rest, Source::Local)
    } else if !word.contains('/') && word.len() > 6 && word.to_ascii_lowercase().ends_with("-cloud") {
        (&text[..rest.len() + 1 + last.trim_end().len() - 6], Source::Cloud)
    } else {
        (text, Source::Any)
    }
}

/// Reads a name as the inference, show, pull and delete routes do, with its source suffix.
pub(super) fn resolve(text: &str) -> Result<(Name, Source), NameError> {
    let trimmed = text.trim();
    if trimmed.is_empty() {
        return Err(NameError::Empty);
    }
    let (rest, source) = cut(trimmed);
    if source != Source::Any && cut(rest).1 != Source::Any {
        let quoted = super::text::quoted(trimmed);
        return Err(NameError::Conflict(format!("use either :local or :cloud, not both: {quoted}")));
    }
    Name::parse(rest).map(|name| (name, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        resolve(text).unwrap().0.display()
    }

    #[test]
    fn normalises() {
        assert_eq!(shown("llama3.2"), "llama3.2:latest");
        assert_eq!(shown("me/x:v1"), "me/x:v1");
        assert_eq!(shown("hf.co/a/b:q4_k_m"), "hf.co/a/b:q4_k_m");
        assert_eq!(shown("http://127.0.0.1:34767/a/m"), "127.0.0.1:34767/a/m:latest");
        assert_eq!(resolve("gpt-oss:120b-cloud").unwrap().1, Source::Cloud);
        assert_eq!(shown("gpt-oss:120b-cloud"), "gpt-oss:120b");
        assert_eq!(resolve("x-cloud").unwrap().1, Source::Any);
        assert_eq!(Name::parse("M").unwrap().key(), Name::parse("m:latest").unwrap().key());
    }

    #[test]
    fn refuses() {
        for bad in ["a b", "../x", "foo:", "/foo", "m@sha256:0", "-x"] {
            assert_eq!(resolve(bad), Err(NameError::Invalid), "{bad}");
        }
        assert!(matches!(resolve("a:local:cloud"), Err(NameError::Conflict(_))));
    }
}
