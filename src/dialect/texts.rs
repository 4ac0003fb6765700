//! The literal texts with which Ollama refuses, by route: clients match on some of them (`ollama run` pulls on a 404).
//!
//! Called by front and proxy when no node can be asked. Must never word what a node that is up would word itself.
//! Source: `ollama-api.md` §7.3.

use std::borrow::Cow;

use super::{ErrorBody, Family, Route, converter_error, error, name};

/// A refusal: status, text, and the shape it takes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The answer's status.
    pub status: u16,
    /// What it says.
    pub text: Cow<'static, str>,
    shape: Shape,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// The family's, as the handler behind the converter words it.
    Handler,
    /// The family's, as the converter itself words it.
    Converter,
    /// The native shape, whatever the route: what is decided before any converter.
    Native,
}

impl Refusal {
    fn new(status: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into(), shape: Shape::Handler }
    }

    /// A handler's refusal in words that belong to no other route.
    #[must_use]
    pub fn of(status: u16, text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, text)
    }

    /// Type and body of the answer.
    #[must_use]
    pub fn body(&self, family: impl Into<Family>) -> ErrorBody {
        match self.shape {
            Shape::Handler => error(family, self.status, &self.text),
            Shape::Converter => converter_error(family, self.status, &self.text),
            Shape::Native => error(Family::Ollama, self.status, &self.text),
        }
    }
}

/// No node, up or down, has the model. `sent` is the name as the client wrote it.
#[must_use]
pub fn unknown_model(route: Route, sent: &str) -> Refusal {
    match route {
        Route::Embed | Route::Embeddings | Route::V1Embeddings => {
            Refusal::new(404, format!("model {} not found, try pulling it first", go_quoted(sent)))
        }
        Route::Show => unknown_shown_model(sent),
        _ => Refusal::new(404, format!("model '{sent}' not found")),
    }
}

/// `/api/show` and `/v1/models/NAME` name the normalised form.
#[must_use]
pub fn unknown_shown_model(sent: &str) -> Refusal {
    let shown = name::parse(sent).map_or_else(|_| sent.to_owned(), |name| name.display());
    Refusal::new(404, format!("model '{shown}' not found"))
}

/// The request names no model (absent, empty or white space, as `sent`).
#[must_use]
pub fn missing_model(route: Route, sent: &str) -> Refusal {
    match route {
        Route::Generate | Route::Embed | Route::V1Completions | Route::V1Embeddings => {
            Refusal::new(404, format!("model '{sent}' not found"))
        }
        Route::V1Audio => Refusal { shape: Shape::Converter, ..Refusal::new(400, "model is required") },
        _ => Refusal::new(400, "model is required"),
    }
}

/// The name has characters or parts no name has.
#[must_use]
pub fn invalid_model_name() -> Refusal {
    Refusal::new(400, "invalid model name")
}

/// The name has two source suffixes.
#[must_use]
pub fn name_conflict(sent: &str) -> Refusal {
    Refusal::new(400, format!("use either :local or :cloud, not both: {}", go_quoted(sent.trim())))
}

/// The refusal that goes with a name that does not parse.
#[must_use]
pub fn bad_name(route: Route, sent: &str, why: name::NameError) -> Refusal {
    match why {
        name::NameError::Missing => missing_model(route, sent),
        name::NameError::Conflict => name_conflict(sent),
        name::NameError::Invalid => invalid_model_name(),
    }
}

/// More wait for the model than may (two spaces, as Ollama has them).
#[must_use]
pub fn busy() -> Refusal {
    Refusal::new(503, "server busy, please try again.  maximum pending requests exceeded")
}

/// A cloud name, and no node may send a prompt out of the house.
#[must_use]
pub fn cloud_disabled(route: Route) -> Refusal {
    let what = if route == Route::Show { "remote model details are" } else { "remote model is" };
    Refusal { shape: Shape::Native, ..Refusal::new(403, format!("ollama cloud is disabled: {what} unavailable")) }
}

/// A request for the fleet's account, and no node may leave the house: nobody is signed in then, and nothing is searched.
#[must_use]
pub fn no_account(path: &str) -> Refusal {
    match path.split('?').next().unwrap_or_default() {
        "/api/experimental/web_search" => Refusal::new(403, "ollama cloud is disabled: web search is unavailable"),
        "/api/experimental/web_fetch" => Refusal::new(403, "ollama cloud is disabled: web fetch is unavailable"),
        "/api/me" => Refusal::new(503, "account unavailable"),
        _ => Refusal::new(401, "you are not currently signed in"),
    }
}

/// A body of no bytes.
#[must_use]
pub fn empty_body(route: Route) -> Refusal {
    if route.native() {
        Refusal::new(400, "missing request body")
    } else {
        Refusal { shape: Shape::Converter, ..Refusal::new(400, "EOF") }
    }
}

/// As Go's `%q` quotes what can stand in a name; other characters are left as they are.
#[must_use]
pub fn go_quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
