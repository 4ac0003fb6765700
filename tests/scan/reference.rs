//! A decoder that does to a body what Go's `encoding/json` does with Ollama's request structs, as plainly as can be.
//!
//! Used by `tests/scan.rs` alone. Must share no code with the scanner.

use herdgate::dialect::Route;

/// What a handler of the route would find in its struct.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    pub model: String,
    /// Defaults applied.
    pub stream: bool,
    pub include_usage: Option<bool>,
    /// `None` without a `keep_alive`; whether it is zero.
    pub keep_alive_zero: Option<bool>,
    pub runner_options: Vec<bool>,
    pub shift: Option<bool>,
    pub empty: bool,
}

/// Why it finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    Empty,
    Syntax,
    Type,
}

enum Tree {
    Null,
    Bool(bool),
    Number(String),
    String(String),
    List(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

const OPTIONS: [&str; 7] =
    ["num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"];

/// Go's struct fields of a route.
fn has(route: Route, field: &str) -> bool {
    use Route::*;
    match field {
        "model" => true,
        "name" => matches!(route, Show | OtherApi),
        "stream" => !matches!(route, Embed | Embeddings | Show | V1Embeddings),
        "stream_options" => matches!(route, V1Chat | V1Completions),
        "keep_alive" | "options" => matches!(route, Generate | Chat | Embed | Embeddings),
        "shift" => matches!(route, Generate | Chat),
        "prompt" => matches!(route, Generate | Embeddings | V1Completions),
        "messages" => matches!(route, Chat | V1Chat | V1Messages),
        "input" => matches!(route, Embed | V1Embeddings | V1Responses),
        _ => false,
    }
}

/// The field a key names: any key that folds to it.
fn field_of(route: Route, key: &str) -> Option<&'static str> {
    let folded: String = key
        .chars()
        .map(|c| {
            if c == 'ſ' {
                's'
            } else if c == '\u{212a}' {
                'k'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    ["model", "name", "stream", "stream_options", "keep_alive", "options", "shift", "prompt", "messages", "input"]
        .into_iter()
        .find(|field| *field == folded && has(route, field))
}

pub fn decode(route: Route, body: &[u8]) -> Result<Decoded, Refused> {
    let tree = Parser { rest: body }.document()?;
    let members = match tree {
        Tree::Object(members) => members,
        Tree::Null => Vec::new(),
        _ => return Err(Refused::Type),
    };
    let pointer = !matches!(route, Route::V1Chat | Route::V1Completions | Route::V1Messages);
    let (mut model, mut name, mut wrong) = (String::new(), String::new(), false);
    let (mut stream, mut shift, mut keep_alive, mut usage) = (None, None, None, None);
    let (mut options, mut empty) = ([false; 7], true);
    for (key, value) in &members {
        match (field_of(route, key), value) {
            (Some("model"), Tree::String(text)) => model.clone_from(text),
            (Some("name"), Tree::String(text)) => name.clone_from(text),
            (Some("model" | "name" | "prompt"), Tree::Null) => {}
            (Some("model" | "name"), _) => wrong = true,
            (Some("stream"), Tree::Bool(flag)) => stream = Some(*flag),
            (Some("stream"), Tree::Null) => stream = if pointer { None } else { stream },
            (Some("stream"), _) => wrong = true,
            (Some("shift"), Tree::Bool(flag)) => shift = Some(*flag),
            (Some("shift"), _) => shift = None,
            (Some("keep_alive"), Tree::Null) => keep_alive = None,
            (Some("keep_alive"), value) => keep_alive = Some(is_zero(value)),
            (Some("options"), Tree::Null) => options = [false; 7],
            (Some("options"), Tree::Object(members)) => {
                for (key, value) in members {
                    if let Some(at) = OPTIONS.iter().position(|name| name == key) {
                        options[at] = !matches!(value, Tree::Null);
                    }
                }
            }
            (Some("stream_options"), Tree::Null) => usage = None,
            (Some("stream_options"), Tree::Object(members)) => {
                let mut include = usage.unwrap_or(false);
                for (key, value) in members {
                    if let (true, Tree::Bool(flag)) = (key.to_lowercase().replace('ſ', "s") == "include_usage", value)
                    {
                        include = *flag;
                    }
                }
                usage = Some(include);
            }
            (Some("prompt"), value) => empty = matches!(value, Tree::String(text) if text.is_empty()),
            (Some("messages"), value) => empty = is_null_or_empty_list(value),
            (Some("input"), value) => {
                empty = is_null_or_empty_list(value) || matches!(value, Tree::String(text) if text.is_empty());
            }
            _ => {}
        }
    }
    if wrong {
        return Err(Refused::Type);
    }
    Ok(Decoded {
        model: if model.is_empty() { name } else { model },
        stream: stream.unwrap_or(matches!(route, Route::Generate | Route::Chat)),
        include_usage: usage,
        keep_alive_zero: keep_alive,
        runner_options: options.to_vec(),
        shift,
        empty,
    })
}

fn is_null_or_empty_list(value: &Tree) -> bool {
    matches!(value, Tree::Null) || matches!(value, Tree::List(items) if items.is_empty())
}

/// Ollama's `Duration.UnmarshalJSON`, as far as zero goes.
fn is_zero(value: &Tree) -> bool {
    match value {
        Tree::Number(text) => {
            let seconds: f64 = text.parse().unwrap();
            seconds >= 0.0 && (seconds * 1e9).trunc() == 0.0
        }
        Tree::String(text) => nanoseconds(text) == Some(0),
        _ => false,
    }
}

/// Go's `time.ParseDuration`, without its sign.
fn nanoseconds(text: &str) -> Option<u64> {
    let mut chars: Vec<char> = text.chars().collect();
    if matches!(chars.first(), Some('-' | '+')) {
        chars.remove(0);
    }
    if chars == ['0'] {
        return Some(0);
    }
    if chars.is_empty() {
        return None;
    }
    let (mut total, mut at) = (0_u64, 0);
    while at < chars.len() {
        let start = at;
        let (mut whole, mut digits) = (0_u64, 0);
        while at < chars.len() && chars[at].is_ascii_digit() {
            whole = whole.checked_mul(10)?.checked_add(u64::from(chars[at].to_digit(10)?))?;
            (at, digits) = (at + 1, digits + 1);
        }
        let (mut fraction, mut scale, mut full) = (0_u64, 1.0_f64, false);
        if at < chars.len() && chars[at] == '.' {
            at += 1;
            while at < chars.len() && chars[at].is_ascii_digit() {
                full |= fraction > (u64::MAX >> 1) / 10;
                if !full {
                    fraction = fraction * 10 + u64::from(chars[at].to_digit(10)?);
                    scale *= 10.0;
                }
                (at, digits) = (at + 1, digits + 1);
            }
        }
        if digits == 0 {
            return None;
        }
        let unit_start = at;
        while at < chars.len() && chars[at] != '.' && !chars[at].is_ascii_digit() {
            at += 1;
        }
        let unit: u64 = match chars[unit_start..at].iter().collect::<String>().as_str() {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        total = total.checked_add((fraction as f64 * (unit as f64 / scale)) as u64)?;
        assert!(at > start);
    }
    Some(total)
}

struct Parser<'a> {
    rest: &'a [u8],
}

impl Parser<'_> {
    fn document(&mut self) -> Result<Tree, Refused> {
        self.space();
        if self.rest.is_empty() {
            return Err(Refused::Empty);
        }
        // Only the first value counts; what follows it is not even looked at.
        self.value(0).ok_or(Refused::Syntax)
    }

    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\r' | b'\n', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn take(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn expect(&mut self, text: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?;
        Some(())
    }

    fn value(&mut self, depth: usize) -> Option<Tree> {
        self.space();
        match self.rest.first()? {
            b'n' => self.expect(b"null").map(|()| Tree::Null),
            b't' => self.expect(b"true").map(|()| Tree::Bool(true)),
            b'f' => self.expect(b"false").map(|()| Tree::Bool(false)),
            b'"' => self.string().map(Tree::String),
            b'[' | b'{' if depth == 10_000 => None,
            b'[' => {
                self.take();
                let mut items = Vec::new();
                self.space();
                if self.expect(b"]").is_some() {
                    return Some(Tree::List(items));
                }
                loop {
                    items.push(self.value(depth + 1)?);
                    self.space();
                    match self.take()? {
                        b',' => {}
                        b']' => return Some(Tree::List(items)),
                        _ => return None,
                    }
                }
            }
            b'{' => {
                self.take();
                let mut members = Vec::new();
                self.space();
                if self.expect(b"}").is_some() {
                    return Some(Tree::Object(members));
                }
                loop {
                    self.space();
                    let key = self.string()?;
                    self.space();
                    self.expect(b":")?;
                    members.push((key, self.value(depth + 1)?));
                    self.space();
                    match self.take()? {
                        b',' => {}
                        b'}' => return Some(Tree::Object(members)),
                        _ => return None,
                    }
                }
            }
            _ => self.number().map(Tree::Number),
        }
    }

    fn number(&mut self) -> Option<String> {
        let mut text = String::new();
        let digits = |parser: &mut Self, text: &mut String| {
            let before = text.len();
            while let Some(digit @ b'0'..=b'9') = parser.rest.first().copied() {
                text.push(char::from(digit));
                parser.take();
            }
            (text.len() > before).then_some(())
        };
        if self.expect(b"-").is_some() {
            text.push('-');
        }
        if self.expect(b"0").is_some() {
            text.push('0');
        } else {
            digits(self, &mut text)?;
        }
        if self.expect(b".").is_some() {
            text.push('.');
            digits(self, &mut text)?;
        }
        if self.expect(b"e").is_some() || self.expect(b"E").is_some() {
            text.push('e');
            if self.expect(b"-").is_some() {
                text.push('-');
            } else {
                let _ = self.expect(b"+");
            }
            digits(self, &mut text)?;
        }
        Some(text)
    }

    fn string(&mut self) -> Option<String> {
        self.expect(b"\"")?;
        let mut units: Vec<u16> = Vec::new();
        let mut text = String::new();
        loop {
            let byte = self.take()?;
            if byte == b'\\' && self.rest.first() == Some(&b'u') {
                self.take();
                let digits = self.rest.get(..4)?;
                if !digits.iter().all(u8::is_ascii_hexdigit) {
                    return None;
                }
                units.push(u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                self.rest = &self.rest[4..];
                continue;
            }
            // Surrogates pair only with an escape right behind them.
            text.push_str(&String::from_utf16_lossy(&units));
            units.clear();
            match byte {
                b'"' => return Some(text),
                0..0x20 => return None,
                b'\\' => text.push(match self.take()? {
                    b'b' => '\u{8}',
                    b'f' => '\u{c}',
                    b'n' => '\n',
                    b'r' => '\r',
                    b't' => '\t',
                    same @ (b'"' | b'\\' | b'/') => char::from(same),
                    _ => return None,
                }),
                0x20..0x80 => text.push(char::from(byte)),
                _ => {
                    let mut bytes = vec![byte];
                    bytes.extend(self.rest.iter().take(3));
                    let valid = (2..=bytes.len()).find_map(|n| std::str::from_utf8(&bytes[..n]).ok());
                    match valid {
                        Some(one) => {
                            text.push_str(one);
                            self.rest = &self.rest[one.len() - 1..];
                        }
                        None => text.push('\u{fffd}'),
                    }
                }
            }
        }
    }
}
