//! Reads the top level of a request body into a [`Scan`], member by member, as Go decodes it into the route's struct.
//!
//! Called by proxy through [`super`]. Must never stop at the first `model`: the last one in the body is the one that runs.

use std::ops::Range;

use super::json::{Cursor, Syntax, Text};
use super::{KeepAlive, RunnerOptions, Scan, Unparseable, text};
use crate::dialect::Route;

/// Reads a body, in one pass over its first JSON value; what follows that value does not matter.
#[must_use]
pub fn scan(body: &[u8], route: Route) -> Scan<'_> {
    let mut reader = Reader {
        cursor: Cursor::new(body),
        found: Scan::empty(route),
        model: None,
        name: None,
        given: 0,
        wrong_type: false,
    };
    match reader.body() {
        Ok(()) => reader.found,
        Err(error) => Scan { error: Some(error), ..Scan::empty(route) },
    }
}

impl From<Syntax> for Unparseable {
    fn from(_: Syntax) -> Self {
        Self::Syntax
    }
}

/// A member that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    Model,
    Name,
    Stream,
    StreamOptions,
    KeepAlive,
    Options,
    Shift,
    /// `prompt`: empty is the empty string.
    Prompt,
    /// `messages`: empty is no element.
    Messages,
    /// `input`: empty is the empty string or no element.
    Input,
}

const MODEL: (Field, &str) = (Field::Model, "model");
const NAME: (Field, &str) = (Field::Name, "name");
const STREAM: (Field, &str) = (Field::Stream, "stream");
const USAGE: (Field, &str) = (Field::StreamOptions, "stream_options");
const KEEP: (Field, &str) = (Field::KeepAlive, "keep_alive");
const OPTIONS: (Field, &str) = (Field::Options, "options");
const SHIFT: (Field, &str) = (Field::Shift, "shift");
const PROMPT: (Field, &str) = (Field::Prompt, "prompt");
const MESSAGES: (Field, &str) = (Field::Messages, "messages");
const INPUT: (Field, &str) = (Field::Input, "input");

/// The members a route's struct has, of those that are read.
const fn fields(route: Route) -> &'static [(Field, &'static str)] {
    match route {
        Route::Generate => &[MODEL, STREAM, PROMPT, OPTIONS, KEEP, SHIFT],
        Route::Chat => &[MODEL, STREAM, MESSAGES, OPTIONS, KEEP, SHIFT],
        Route::Embed => &[MODEL, INPUT, OPTIONS, KEEP],
        Route::Embeddings => &[MODEL, PROMPT, OPTIONS, KEEP],
        Route::Show => &[MODEL, NAME],
        Route::OtherApi => &[MODEL, NAME, STREAM],
        Route::V1Chat => &[MODEL, STREAM, MESSAGES, USAGE],
        Route::V1Completions => &[MODEL, STREAM, PROMPT, USAGE],
        Route::V1Embeddings => &[MODEL, INPUT],
        Route::V1Responses => &[MODEL, STREAM, INPUT],
        Route::V1Messages => &[MODEL, STREAM, MESSAGES],
        Route::V1Audio | Route::OtherV1 => &[MODEL],
    }
}

/// Whether `stream` is a pointer in the route's struct, which a later null resets, or a plain flag, which it leaves.
const fn stream_is_pointer(route: Route) -> bool {
    !matches!(route, Route::V1Chat | Route::V1Completions | Route::V1Messages)
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    found: Scan<'a>,
    /// The last string of `model`, and where it stands.
    model: Option<(Text<'a>, Range<usize>)>,
    name: Option<(Text<'a>, Range<usize>)>,
    /// Fields that have had a value other than null.
    given: u16,
    /// `model` or `stream` is of a type that no node takes. The rest is read all the same: a syntax error comes first.
    wrong_type: bool,
}

impl<'a> Reader<'a> {
    fn body(&mut self) -> Result<(), Unparseable> {
        match self.cursor.peek() {
            None => return Err(Unparseable::Empty),
            Some(b'{') => {}
            // Null is an empty object to Go.
            Some(b'n') => return Ok(self.cursor.word(b"null")?),
            Some(_) => {
                self.cursor.skip()?;
                return Err(Unparseable::Type);
            }
        }
        let mut more = self.cursor.open_object()?;
        self.found.has_members = more;
        while more {
            let key = self.cursor.key()?;
            match self.field(key) {
                Some(field) => self.member(field)?,
                None => {
                    self.cursor.skip()?;
                }
            }
            more = self.cursor.next_member()?;
        }
        self.found.object_end = self.cursor.at - 1;
        if self.wrong_type {
            return Err(Unparseable::Type);
        }
        let named = [self.model.take(), self.name.take()].into_iter().flatten().find(|(text, _)| !text.raw.is_empty());
        if let Some((name, span)) = named {
            self.found.model = Some(text::decoded(name));
            self.found.model_span = Some(span);
        }
        Ok(())
    }

    fn field(&mut self, key: Text<'_>) -> Option<Field> {
        let fields = fields(self.found.route);
        // As nearly every client writes it.
        if let Some(&(field, _)) = fields.iter().find(|(_, spelling)| text::is(key, spelling)) {
            return Some(field);
        }
        let &(field, _) = fields.iter().find(|(_, spelling)| text::names(key, spelling))?;
        self.found.exact_case = false;
        Some(field)
    }

    fn member(&mut self, field: Field) -> Result<(), Syntax> {
        let bit = 1 << field as u16;
        if self.cursor.peek() == Some(b'n') {
            self.cursor.word(b"null")?;
            // A reader without Go's rules takes the null for the value.
            self.found.exact_case &= self.given & bit == 0;
            self.null(field);
            return Ok(());
        }
        self.given |= bit;
        match field {
            Field::Model => self.model = self.string()?.or(self.model.take()),
            Field::Name => self.name = self.string()?.or(self.name.take()),
            Field::Stream => match self.flag()? {
                Some(flag) => self.found.stream = Some(flag),
                None => self.wrong_type = true,
            },
            Field::Shift => self.found.shift = self.flag()?,
            Field::StreamOptions => self.stream_options()?,
            Field::Options => self.options()?,
            Field::KeepAlive => self.found.keep_alive = self.keep_alive()?,
            Field::Prompt | Field::Messages | Field::Input => {
                let value = self.cursor.skip()?;
                let string = value == b"\"\"" && field != Field::Messages;
                let array = value.first() == Some(&b'[') && field != Field::Prompt && is_empty_array(value);
                self.found.prompt_or_messages_empty = string || array;
            }
        }
        Ok(())
    }

    /// What null does: pointers, slices, maps and interfaces are reset; strings and plain flags stay.
    fn null(&mut self, field: Field) {
        match field {
            Field::Model | Field::Name | Field::Prompt => {}
            Field::Stream if !stream_is_pointer(self.found.route) => {}
            Field::Stream => self.found.stream = None,
            Field::Shift => self.found.shift = None,
            Field::StreamOptions => self.found.include_usage = None,
            Field::Options => self.found.runner_options = RunnerOptions::default(),
            Field::KeepAlive => self.found.keep_alive = KeepAlive::Absent,
            Field::Messages | Field::Input => self.found.prompt_or_messages_empty = true,
        }
    }

    /// A string that names the model; any other value is of the wrong type.
    fn string(&mut self) -> Result<Option<(Text<'a>, Range<usize>)>, Syntax> {
        if self.cursor.peek() != Some(b'"') {
            self.wrong_type = true;
            self.cursor.skip()?;
            return Ok(None);
        }
        let start = self.cursor.at;
        let text = self.cursor.string()?;
        Ok(Some((text, start..self.cursor.at)))
    }

    /// A flag; `None` is a value of another type.
    fn flag(&mut self) -> Result<Option<bool>, Syntax> {
        Ok(match self.cursor.skip()? {
            b"true" => Some(true),
            b"false" => Some(false),
            _ => None,
        })
    }

    /// Decodes into the struct that an earlier `stream_options` may have left there.
    fn stream_options(&mut self) -> Result<(), Syntax> {
        if self.cursor.peek() != Some(b'{') {
            self.found.usage_odd = true;
            self.cursor.skip()?;
            return Ok(());
        }
        let include = self.found.include_usage.get_or_insert(false);
        let mut more = self.cursor.open_object()?;
        while more {
            let key = self.cursor.key()?;
            let ours = text::names(key, "include_usage");
            self.found.exact_case &= !ours || text::is(key, "include_usage");
            match self.cursor.skip()? {
                _ if !ours => {}
                b"true" => *include = true,
                b"false" => *include = false,
                b"null" => self.found.exact_case &= !*include,
                _ => self.found.usage_odd = true,
            }
            more = self.cursor.next_member()?;
        }
        Ok(())
    }

    /// A map: names in it are compared exactly, and a further object adds to the earlier one.
    fn options(&mut self) -> Result<(), Syntax> {
        if self.cursor.peek() != Some(b'{') {
            self.cursor.skip()?;
            return Ok(());
        }
        let mut more = self.cursor.open_object()?;
        while more {
            let key = self.cursor.key()?;
            let named = RunnerOptions::NAMES.iter().position(|name| text::is(key, name));
            let value = self.cursor.skip()?;
            if let Some(at) = named {
                self.found.runner_options.set(at, value != b"null");
            }
            more = self.cursor.next_member()?;
        }
        Ok(())
    }

    fn keep_alive(&mut self) -> Result<KeepAlive, Syntax> {
        let zero = match self.cursor.peek() {
            Some(b'"') => text::zero_duration(&text::decoded(self.cursor.string()?)),
            Some(b'-' | b'0'..=b'9') => text::zero_seconds(self.cursor.skip()?),
            _ => {
                self.cursor.skip()?;
                false
            }
        };
        Ok(if zero { KeepAlive::Zero } else { KeepAlive::Other })
    }
}

/// Of a valid array: whether nothing is in it.
fn is_empty_array(array: &[u8]) -> bool {
    array.iter().skip(1).find(|byte| !byte.is_ascii_whitespace()) == Some(&b']')
}
