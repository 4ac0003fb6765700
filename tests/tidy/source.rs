//! Reads Rust sources the way tidy needs them: comments, strings and test code blanked, line numbers kept.
//!
//! Called by `tests/tidy.rs` alone. An approximation on purpose: it knows tokens, not grammar.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// One source file, in three readings that share their line numbers.
pub(crate) struct Source {
    /// Path below the project, with `/` between its parts.
    pub(crate) path: String,
    /// As it stands on disk.
    pub(crate) text: String,
    /// Comments and the insides of strings and characters are blanks.
    pub(crate) code: String,
    /// `code` without its test modules; all blank in a file that is one.
    pub(crate) shipped: String,
    /// Nothing of it ships: a test, or what only a loom model sees.
    pub(crate) is_test: bool,
}

impl Source {
    /// The room it belongs to: `src/proxy/pool.rs` is in `proxy`. Empty outside `src/`.
    pub(crate) fn room(&self) -> &str {
        let inner = self.path.strip_prefix("src/").unwrap_or("");
        inner.split('/').next().unwrap_or("").trim_end_matches(".rs")
    }

    /// Lines of code that ship: not blank, not a comment, not a test.
    pub(crate) fn code_lines(&self) -> usize {
        self.shipped.lines().filter(|line| !line.trim().is_empty()).count()
    }

    /// Functions that ship: name, first line (from 1), number of lines that hold code.
    pub(crate) fn functions(&self) -> Vec<(String, usize, usize)> {
        let mut found = Vec::new();
        for at in words(&self.shipped, "fn") {
            let rest = &self.shipped[at + 2..];
            let name: String = rest.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let Some(open) = body_start(rest) else { continue };
            if name.is_empty() {
                continue;
            }
            let start = at + 2 + open;
            let end = matching_brace(&self.shipped, start).unwrap_or(start);
            let code = self.shipped[start..end].lines().filter(|line| !line.trim().is_empty()).count();
            found.push((name, line_of(&self.shipped, at), code));
        }
        found
    }

    /// Every room named by a `crate::` path in shipped code, with its line.
    pub(crate) fn rooms_imported(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for (at, _) in self.shipped.match_indices("crate::") {
            if self.shipped[..at].ends_with(is_word) || self.shipped[..at].ends_with('$') {
                continue;
            }
            let rest = &self.shipped[at + "crate::".len()..];
            let line = line_of(&self.shipped, at);
            let names = if rest.starts_with('{') {
                let end = matching_brace(rest, 0).unwrap_or(rest.len());
                heads_of_group(&rest[1..end])
            } else {
                vec![first_word(rest)]
            };
            found.extend(names.into_iter().filter(|name| !name.is_empty()).map(|name| (name, line)));
        }
        found
    }
}

/// Where `word` stands alone in blanked code.
pub(crate) fn words(code: &str, word: &str) -> Vec<usize> {
    let bounded = |at: usize| !code[..at].ends_with(is_word) && !code[at + word.len()..].starts_with(is_word);
    code.match_indices(word).map(|(at, _)| at).filter(|&at| bounded(at)).collect()
}

/// The line, counted from 1, that holds this byte.
pub(crate) fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Every file of the project except what builds, git and runs leave behind; sorted.
pub(crate) fn files(root: &Path) -> Vec<PathBuf> {
    const SKIPPED: [&str; 4] = ["target", ".git", "herdgate-data", "node_modules"];
    let mut found = Vec::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(&directory).expect("a readable directory").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = entry.path();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    todo.push(path);
                }
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file of the project, read.
pub(crate) fn sources(root: &Path) -> Vec<Source> {
    let mut all: Vec<Source> = files(root)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| read(root, &path))
        .collect();
    let tests: BTreeSet<String> = all.iter().flat_map(test_files).collect();
    for source in &mut all {
        let below_a_test =
            tests.iter().any(|test| source.path.starts_with(&format!("{}/", test.trim_end_matches(".rs"))));
        if below_a_test || tests.contains(&source.path) || !source.path.starts_with("src/") {
            source.shipped = blank(&source.code, 0, source.code.len());
            source.is_test = true;
        }
    }
    all
}

fn read(root: &Path, path: &Path) -> Source {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let code = strip(&text);
    let shipped = without_tests(&code);
    Source { path: relative(root, path), text, code, shipped, is_test: false }
}

/// `path` below `root`, with `/` between its parts.
pub(crate) fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    below.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Blanks comments and the insides of strings and character literals; newlines stay.
pub(crate) fn strip(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        match end {
            Some((from, to)) => {
                out[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
                at = to.max(at + 1);
            }
            None => at += 1,
        }
    }
    String::from_utf8(out).expect("blanking replaces whole characters")
}

/// If a comment or literal starts at `at`: the range to blank.
fn token_end(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        let length = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
        return Some((at, at + length));
    }
    if rest.starts_with(b"/*") {
        return Some((at, at + block_comment(rest)));
    }
    let fresh = at == 0 || !(bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if fresh && let Some(length) = raw_string(rest) {
        return Some((at, at + length));
    }
    match rest[0] {
        b'"' => Some((at + 1, at + quoted(rest, b'"'))),
        b'\'' if is_char_literal(rest) => Some((at + 1, at + quoted(rest, b'\''))),
        _ => None,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// Length of `r"…"`, `r#"…"#`, `br"…"`, if one starts here.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let prefix = if rest.starts_with(b"br") || rest.starts_with(b"cr") { 2 } else { 1 };
    if rest[prefix - 1] != b'r' {
        return None;
    }
    let hashes = rest[prefix..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(prefix + hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = prefix + hashes + 1;
    let length = rest[body..].windows(close.len()).position(|window| window == close);
    Some(length.map_or(rest.len(), |length| body + length + close.len()))
}

/// Offset of the closing quote of the literal that starts here.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at.min(rest.len()) + usize::from(at < rest.len())
}

/// Tells `'a'` and `'\n'` from a lifetime.
fn is_char_literal(rest: &[u8]) -> bool {
    if rest.get(1) == Some(&b'\\') {
        return true;
    }
    let Ok(text) = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]))
    else {
        return false;
    };
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c != '\'') && chars.next() == Some('\'')
}

/// How an item that does not ship is marked.
const UNSHIPPED: [&str; 3] = ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(proxy_loom)]"];

/// Blanks every item behind such a mark.
fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for marker in UNSHIPPED {
        while let Some(at) = out.find(marker) {
            let item = at + marker.len();
            let end = match out[item..].find(['{', ';']) {
                Some(found) if out[item + found..].starts_with('{') => {
                    matching_brace(&out, item + found).map_or(out.len(), |end| end + 1)
                }
                Some(found) => item + found + 1,
                None => out.len(),
            };
            out = blank(&out, at, end);
        }
    }
    out
}

/// Files that a marked `mod name;` of this one brings in.
fn test_files(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let directory = match source.path.as_str() {
        "src/lib.rs" | "src/main.rs" => "src".to_owned(),
        path => path.trim_end_matches(".rs").to_owned(),
    };
    for marker in UNSHIPPED {
        for (at, _) in source.code.match_indices(marker) {
            // The item is the first line after the mark that is no attribute.
            let item = source.code[at..].lines().skip(1).find(|line| !line.trim().starts_with("#["));
            let Some(item) = item.filter(|line| line.trim_start().starts_with("mod ")) else { continue };
            if let Some(name) = item.trim().strip_suffix(';').and_then(|item| item.split_whitespace().last()) {
                found.push(format!("{directory}/{name}.rs"));
            }
        }
    }
    found
}

fn blank(text: &str, from: usize, to: usize) -> String {
    let middle: String = text[from..to].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
    format!("{}{middle}{}", &text[..from], &text[to..])
}

/// Byte of the brace that closes the one at `open`.
fn matching_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Where the body of the function whose signature starts here opens; `None` for a declaration.
fn body_start(signature: &str) -> Option<usize> {
    let mut depth = 0_i32;
    for (at, c) in signature.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return None,
            '{' if depth == 0 => return Some(at),
            _ => {}
        }
        if depth < 0 {
            return None;
        }
    }
    None
}

fn heads_of_group(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0_i32, Vec::new(), 0);
    for (at, c) in group.char_indices().chain([(group.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                heads.push(first_word(group[start..at].trim()));
                start = at + 1;
            }
            _ => {}
        }
    }
    heads
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| is_word(*c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
