//! Finds the model in a multipart form, wherever the file stands.
//!
//! Called by proxy for `/v1/audio/transcriptions`. Must never look into a file part.
//! Source: `ollama-api.md` §4.6, trap 27.

use std::borrow::Cow;

use memchr::memmem;

/// The form field `model` of a multipart body, or of as much of it as is at hand (`None`: not there, or not there yet).
#[must_use]
pub fn multipart_model<'a>(body: &'a [u8], content_type: &str) -> Option<Cow<'a, str>> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(parameters, "boundary").filter(|boundary| !boundary.is_empty())?;
    let delimiter = [b"\n--", boundary.as_bytes()].concat();
    let finder = memmem::Finder::new(&delimiter);
    // The first delimiter may be the body's first line.
    let mut rest = match body.strip_prefix(&delimiter[1..]) {
        Some(rest) => rest,
        None => body.get(finder.find(body)? + delimiter.len()..)?,
    };
    loop {
        let line_end = memchr::memchr(b'\n', rest)?;
        // `--` ends the form; anything but white space means that this was no delimiter.
        if !rest.get(..line_end)?.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let (headers, content) = split_head(rest.get(line_end + 1..)?)?;
        // A part without content has its delimiter right after the blank line, whose newline is then the delimiter's.
        let before = content.len() + 1;
        let content_and_newline = rest.get(rest.len().checked_sub(before)?..)?;
        let end = finder.find(content_and_newline)?;
        if disposition(headers).is_some_and(|disposition| is_field_model(&disposition)) {
            let value = content.get(..end.saturating_sub(1)).unwrap_or_default();
            return Some(String::from_utf8_lossy(value.strip_suffix(b"\r").unwrap_or(value)));
        }
        rest = content_and_newline.get(end + delimiter.len()..)?;
    }
}

/// The first value of this name in a target's query, as Go's `ParseQuery` reads it; `None`: there is none of that name.
///
/// A form is asked for its values by `FormValue`, which takes those of the query before a multipart body's.
/// Source: Go's `net/http/request.go` (`FormValue`), `net/url` (`ParseQuery`).
#[must_use]
pub fn query_value(target: &str, name: &str) -> Option<String> {
    let (_, query) = target.split_once('?')?;
    query.split('&').filter(|pair| !pair.contains(';')).find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unescaped(key)? == name).then(|| unescaped(value)).flatten()
    })
}

/// Without escapes, and `+` as a space; `None`: an escape is none.
fn unescaped(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// A part's header lines and what follows the blank line.
fn split_head(part: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        let line_end = at + memchr::memchr(b'\n', part.get(at..)?)?;
        if part.get(at..line_end)?.iter().all(|&byte| byte == b'\r') {
            return Some((part.get(..at)?, part.get(line_end + 1..)?));
        }
        at = line_end + 1;
    }
}

fn disposition(headers: &[u8]) -> Option<Cow<'_, str>> {
    headers.split(|&byte| byte == b'\n').find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let name = line.get(..colon)?.trim_ascii();
        name.eq_ignore_ascii_case(b"content-disposition").then(|| String::from_utf8_lossy(&line[colon + 1..]))
    })
}

fn is_field_model(disposition: &str) -> bool {
    let Some((kind, parameters)) = disposition.split_once(';') else { return false };
    kind.trim().eq_ignore_ascii_case("form-data")
        && parameter(parameters, "name").as_deref() == Some("model")
        && parameter(parameters, "filename").is_none_or(|name| name.is_empty())
}

/// The value of one `; name=value` parameter, quoted or not.
fn parameter(parameters: &str, wanted: &str) -> Option<String> {
    let mut rest = parameters;
    loop {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, remaining) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = remaining.trim_start().trim_start_matches(';');
    }
}

/// What stands before the closing quote, and what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &text[at + 1..])),
            (_, '\\') => value.push(chars.next()?.1),
            (_, c) => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=X";

    #[test]
    fn the_query_is_read_as_go_reads_it() {
        let model = |target: &str| query_value(target, "model");
        assert_eq!(model("/v1/audio/transcriptions?a=1&model=m%3Av1&model=x").as_deref(), Some("m:v1"));
        assert_eq!(model("/t?mod%65l=a+b").as_deref(), Some("a b"));
        assert_eq!(model("/t?model").as_deref(), Some(""));
        assert_eq!(model("/t?model=%zz&model=m").as_deref(), Some("m"), "what is no escape is left out");
        assert_eq!(model("/t?model=a;b&x=1"), None);
        assert_eq!(model("/t"), None);
    }

    fn form(parts: &[(&str, &str)]) -> String {
        let parts: String = parts
            .iter()
            .map(|(head, content)| format!("--X\r\nContent-Disposition: {head}\r\n\r\n{content}\r\n"))
            .collect();
        format!("{parts}--X--\r\n")
    }

    fn model(body: &str, content_type: &str) -> Option<String> {
        multipart_model(body.as_bytes(), content_type).map(Cow::into_owned)
    }

    const MODEL: (&str, &str) = ("form-data; name=\"model\"", "whisper");
    const FILE: (&str, &str) =
        ("form-data; name=\"file\"; filename=\"a.wav\"", "RIFF\r\n--Y\r\n\r\n--\r\nname=\"model\"\r\n\r\nz");

    #[test]
    fn the_field_is_found_wherever_it_stands() {
        let name = Some("whisper".to_owned());
        assert_eq!(model(&form(&[MODEL, FILE]), TYPE), name);
        assert_eq!(model(&form(&[FILE, MODEL]), TYPE), name);
        assert_eq!(model(&form(&[("form-data; name=\"language\"", ""), FILE, MODEL]), TYPE), name);
        assert_eq!(model(&form(&[("FORM-DATA ; filename=\"\"; NAME=model", "whisper")]), TYPE), name);
        assert_eq!(model(&form(&[MODEL, ("form-data; name=\"model\"", "second")]), TYPE), name, "the first counts");
        assert_eq!(model(&form(&[("form-data; name=\"model\"", "")]), TYPE).as_deref(), Some(""));
        let preamble = format!("ignored\r\n{}", form(&[MODEL]));
        assert_eq!(model(&preamble, TYPE), name);
        let newlines_only = form(&[FILE, MODEL]).replace("\r\n", "\n");
        assert_eq!(model(&newlines_only, TYPE), name);
        let headers =
            "--X\r\nContent-Type: text/plain\r\ncontent-disposition:form-data;name=\"model\"\r\n\r\nm\r\n--X--";
        assert_eq!(model(headers, TYPE).as_deref(), Some("m"));
    }

    #[test]
    fn boundaries_come_quoted_too() {
        let body = form(&[FILE, MODEL]).replace("--X", "--a b\"c");
        assert!(model(&body, r#"Multipart/Form-Data; charset=utf-8; BOUNDARY="a b\"c""#).is_some());
        assert!(model(&form(&[MODEL]), "multipart/form-data;boundary=X;charset=utf-8").is_some());
        for other in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "application/json; boundary=X",
            "",
            "multipart/form-data; boundary=\"X",
        ] {
            assert_eq!(model(&form(&[MODEL]), other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        assert_eq!(model(&form(&[FILE]), TYPE), None);
        assert_eq!(model(&form(&[("form-data; name=\"model\"; filename=\"m\"", "file")]), TYPE), None);
        assert_eq!(model(&form(&[("attachment; name=\"model\"", "m")]), TYPE), None);
        assert_eq!(model(&form(&[("form-data; name=\"models\"", "m")]), TYPE), None);
    }

    #[test]
    fn a_field_that_is_not_whole_is_not_trusted() {
        let body = form(&[FILE, MODEL]);
        let end = body.find("whisper").unwrap() + "whisper\r\n--X".len();
        for cut in 0..body.len() {
            let found = multipart_model(&body.as_bytes()[..cut], TYPE);
            assert_eq!(found.is_some(), cut >= end, "cut at {cut}");
            assert!(found.is_none_or(|name| name == "whisper"));
        }
    }
}
