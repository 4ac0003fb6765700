//! Reads JSON as Go's `encoding/json` does: first value only, keys in any case, last wins, and Go's own error texts.
//!
//! Called by every handler of a simulated node. Written for the simulation alone and never used by the proxy, whose
//! scan it has to be able to contradict.

use std::fmt::Write as _;

/// Nesting that is still read; deeper documents get Go's text for too deep ones.
const DEPTH: usize = 512;

/// A decoded value; objects keep every key in the document's order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// The literal, as written.
    Number(String),
    String(String),
    Array(Vec<Value>),
    Object(Vec<(String, Value)>),
}

/// The first value of a body and how many bytes it took.
pub(super) fn parse(input: &[u8]) -> Result<(Value, usize), String> {
    let mut reader = Reader { input, at: 0 };
    reader.space();
    if reader.peek().is_none() {
        return Err("EOF".to_owned());
    }
    let value = reader.value(0)?;
    Ok((value, reader.at))
}

impl Value {
    /// Go's word for this kind of value in a type error.
    fn kind(&self) -> String {
        match self {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(_) => "number".to_owned(),
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        }
    }

    /// The last field of this name, in any case, that is not null.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.fields().iter().rev().find(|(key, value)| *value != Value::Null && same_key(key, name)).map(|(_, v)| v)
    }

    /// The last field of this name in any case, for Go's pointers, which a later null resets.
    pub(super) fn get_pointer(&self, name: &str) -> Option<&Value> {
        let last = self.fields().iter().rev().find(|(key, _)| same_key(key, name)).map(|(_, v)| v);
        last.filter(|value| **value != Value::Null)
    }

    /// The fields of an object, none of anything else.
    pub(super) fn fields(&self) -> &[(String, Value)] {
        if let Value::Object(fields) = self { fields } else { &[] }
    }

    /// A string field, empty when absent.
    pub(super) fn str(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or("")
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Value::String(s) = self { Some(s) } else { None }
    }

    pub(super) fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    pub(super) fn as_f64(&self) -> Option<f64> {
        if let Value::Number(n) = self { n.parse().ok() } else { None }
    }

    /// A number cut to an integer, as Ollama does with its options.
    pub(super) fn as_i64(&self) -> Option<i64> {
        let Value::Number(n) = self else { return None };
        #[expect(clippy::cast_possible_truncation, reason = "Go's conversion truncates as well")]
        n.parse().ok().or_else(|| n.parse::<f64>().ok().map(|f| f as i64))
    }

    pub(super) fn as_array(&self) -> Option<&[Value]> {
        if let Value::Array(a) = self { Some(a) } else { None }
    }

    /// Writes the value again, keys in the document's order, or sorted as Go does with a map.
    pub(super) fn write(&self, out: &mut String, sorted: bool) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Number(n) => out.push_str(n),
            Value::String(s) => super::text::quote(out, s),
            Value::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    item.write(out, sorted);
                }
                out.push(']');
            }
            Value::Object(fields) => {
                let mut order: Vec<&(String, Value)> = fields.iter().collect();
                if sorted {
                    order.sort_by(|a, b| a.0.cmp(&b.0));
                }
                out.push('{');
                for (i, (key, value)) in order.into_iter().enumerate() {
                    out.push_str(if i > 0 { "," } else { "" });
                    super::text::quote(out, key);
                    out.push(':');
                    value.write(out, sorted);
                }
                out.push('}');
            }
        }
    }
}

/// Go's key comparison: simple case folding, which two non-ASCII letters share with ASCII ones.
fn same_key(key: &str, name: &str) -> bool {
    if key.is_ascii() {
        return key.eq_ignore_ascii_case(name);
    }
    let folded = key.chars().map(|c| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    });
    folded.eq(name.chars().map(|c| c.to_ascii_lowercase()))
}

/// What Go expects of a field.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    Str,
    Int,
    Float,
    /// A list, with Go's name of its type and what its elements are.
    List(&'static str, &'static Kind),
    /// A struct or a pointer to one, with Go's name of its type.
    Struct(&'static str, &'static [(&'static str, Kind)]),
    /// A map, with Go's name of its type.
    Map(&'static str),
    /// A map of strings to strings.
    Strings,
    /// Decoded by hand later.
    Any,
}

/// Checks a body against its struct; the error is the first that Go would report.
pub(super) fn check(value: &Value, name: &str, fields: &'static [(&'static str, Kind)]) -> Result<(), String> {
    match value {
        Value::Null => Ok(()),
        Value::Object(_) => check_fields(value, name, "", fields),
        other => Err(format!("json: cannot unmarshal {} into Go value of type api.{name}", other.kind())),
    }
}

fn check_fields(value: &Value, name: &str, path: &str, fields: &'static [(&'static str, Kind)]) -> Result<(), String> {
    for (key, field) in value.fields() {
        if let Some((field_name, kind)) = fields.iter().find(|(f, _)| same_key(key, f)) {
            let dot = if path.is_empty() { "" } else { "." };
            check_kind(field, kind, name, &format!("{path}{dot}{field_name}"))?;
        }
    }
    Ok(())
}

fn check_kind(value: &Value, kind: &'static Kind, name: &str, path: &str) -> Result<(), String> {
    let wrong = |go: &str| {
        let what = value.kind();
        Err(format!("json: cannot unmarshal {what} into Go struct field {name}.{path} of type {go}"))
    };
    match (kind, value) {
        (_, Value::Null)
        | (Kind::Any, _)
        | (Kind::Bool, Value::Bool(_))
        | (Kind::Str, Value::String(_))
        | (Kind::Float, Value::Number(_))
        | (Kind::Map(_), Value::Object(_)) => Ok(()),
        (Kind::Int, Value::Number(n)) => {
            if n.parse::<i64>().is_ok() {
                Ok(())
            } else {
                Err(format!("json: cannot unmarshal number {n} into Go struct field {name}.{path} of type int"))
            }
        }
        (Kind::List(_, inner), Value::Array(items)) => {
            items.iter().try_for_each(|item| check_kind(item, inner, name, path))
        }
        (Kind::Strings, Value::Object(entries)) => {
            entries.iter().try_for_each(|(_, entry)| check_kind(entry, &Kind::Str, name, path))
        }
        (Kind::Strings, _) => wrong("map[string]string"),
        (Kind::Struct(_, fields), Value::Object(_)) => check_fields(value, name, path, fields),
        (Kind::Bool, _) => wrong("bool"),
        (Kind::Str, _) => wrong("string"),
        (Kind::Int, _) => wrong("int"),
        (Kind::Float, _) => wrong("float64"),
        (Kind::List(go, _) | Kind::Struct(go, _) | Kind::Map(go), _) => wrong(go),
    }
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// Go's error for the byte at hand, or for the end of the input.
    fn fail<T>(&self, where_: &str) -> Result<T, String> {
        match self.peek() {
            None => Err("unexpected EOF".to_owned()),
            Some(byte) => Err(format!("invalid character {} {where_}", quote_char(byte))),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err("exceeded max depth".to_owned());
        }
        self.space();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.fail("looking for beginning of value"),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut fields = Vec::new();
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(fields));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return self.fail("looking for beginning of object key string");
            }
            let key = self.string()?;
            self.space();
            if self.peek() != Some(b':') {
                return self.fail("after object key");
            }
            self.at += 1;
            let value = self.value(depth + 1)?;
            fields.push((key, value));
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(fields));
                }
                _ => return self.fail("after object key:value pair"),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return self.fail("after array element"),
            }
        }
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, String> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return self.fail(&format!("in literal {word} (expecting '{}')", char::from(expected)));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return self.fail("in numeric literal"),
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return self.fail("after decimal point in numeric literal");
            }
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if !matches!(self.peek(), Some(b'0'..=b'9')) {
                return self.fail("in exponent of numeric literal");
            }
            self.digits();
        }
        Ok(Value::Number(String::from_utf8_lossy(&self.input[start..self.at]).into_owned()))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(match String::from_utf8(bytes) {
                        Ok(text) => text,
                        Err(broken) => String::from_utf8_lossy(broken.as_bytes()).into_owned(),
                    });
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape(&mut bytes)?;
                }
                Some(0..=0x1f) | None => return self.fail("in string literal"),
                Some(byte) => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let byte = match self.peek() {
            Some(b'b') => 8,
            Some(b'f') => 12,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(byte @ (b'"' | b'\\' | b'/')) => byte,
            Some(b'u') => {
                self.at += 1;
                let mut code = self.hex4()?;
                if (0xd800..0xdc00).contains(&code) && self.input[self.at..].starts_with(b"\\u") {
                    let back = self.at;
                    self.at += 2;
                    let low = self.hex4()?;
                    if (0xdc00..0xe000).contains(&low) {
                        code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    } else {
                        self.at = back;
                    }
                }
                let c = char::from_u32(code).unwrap_or('\u{fffd}');
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return self.fail("in string escape code"),
        };
        bytes.push(byte);
        self.at += 1;
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(16)) else {
                return self.fail("in \\u hexadecimal character escape");
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

/// A byte in Go's quotes: read as Latin-1, control characters escaped.
fn quote_char(byte: u8) -> String {
    match byte {
        b'\'' => "'\\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => "'\\\\'".to_owned(),
        b'\n' => "'\\n'".to_owned(),
        b'\r' => "'\\r'".to_owned(),
        b'\t' => "'\\t'".to_owned(),
        0x07 => "'\\a'".to_owned(),
        0x08 => "'\\b'".to_owned(),
        0x0b => "'\\v'".to_owned(),
        0x0c => "'\\f'".to_owned(),
        0x20..=0x7e | 0xa1..=0xac | 0xae..=0xff => format!("'{}'", char::from(byte)),
        0x80..=0xa0 | 0xad => {
            let mut out = String::new();
            let _ = write!(out, "'\\u{byte:04x}'");
            out
        }
        _ => format!("'\\x{byte:02x}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(input: &str) -> String {
        parse(input.as_bytes()).unwrap_err()
    }

    #[test]
    fn words_errors_as_go_does() {
        assert_eq!(error(""), "EOF");
        assert_eq!(error("{\"model\":"), "unexpected EOF");
        assert_eq!(error("not json"), "invalid character 'o' in literal null (expecting 'u')");
        assert_eq!(error("{\"a\":}"), "invalid character '}' looking for beginning of value");
        assert_eq!(error("{,"), "invalid character ',' looking for beginning of object key string");
        assert_eq!(error("\u{feff}{}"), "invalid character 'ï' looking for beginning of value");
    }

    #[test]
    fn last_key_wins_in_any_case_and_null_changes_nothing() {
        let (value, _) = parse(br#"{"model":"a","MODEL":"b","Model":null,"\u017ftream":true} junk"#).unwrap();
        assert_eq!(value.str("model"), "b");
        assert_eq!(value.get("stream").and_then(Value::as_bool), Some(true));
        assert_eq!(value.get_pointer("model"), None);
    }
}
