//! Words of others on an operator's terminal: names of nodes and models come from outside, and must not command it.
//!
//! Used by the commands that print a table ([`crate::remote`], [`crate::import`]). Pure.

use serde_json::Value;

/// Text without characters that move a cursor, colour, rename a window or turn the direction of writing: each shows as
/// its code instead, a line break too.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().flat_map(|c| if commands(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}

/// Every text in an answer, made [`plain`].
#[must_use]
pub fn plain_answer(answer: &Value) -> Value {
    match answer {
        Value::String(text) => plain(text).into(),
        Value::Array(items) => items.iter().map(plain_answer).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (plain(name), plain_answer(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// JSON with the same contents: what JSON itself leaves as it is becomes an escape of JSON's.
#[must_use]
pub fn plain_json(json: &Value) -> String {
    let escape = |c: char| c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect();
    json.to_string().chars().map(|c| if commands(c) { escape(c) } else { c.to_string() }).collect()
}

/// Controls of C0 and C1, and those that embed, override or isolate a direction.
const fn commands(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_commands_a_terminal_shows_as_its_code() {
        for (text, shown) in [
            ("llama3.2:latest", "llama3.2:latest"),
            ("Modell-ä 模型 🦙", "Modell-ä 模型 🦙"),
            ("\x1b[2Jgone", "\\u{1b}[2Jgone"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("two\r\nlines\t", "two\\u{d}\\u{a}lines\\u{9}"),
            ("a\u{202e}txt.exe", "a\\u{202e}txt.exe"),
        ] {
            assert_eq!(plain(text), shown);
        }
    }

    #[test]
    fn answers_are_plain_down_to_their_leaves_and_json_says_the_same() {
        let answer = json!({ "nodes": [{ "name": "a\x1b[31m", "models": ["\u{9b}m"], "n": 1 }], "k\x07": null });
        let shown = plain_answer(&answer);
        assert_eq!(shown["nodes"][0]["name"], "a\\u{1b}[31m");
        assert_eq!((&shown["nodes"][0]["models"][0], &shown["nodes"][0]["n"]), (&json!("\\u{9b}m"), &json!(1)));
        assert!(shown.get("k\\u{7}").is_some());
        let text = plain_json(&answer);
        assert!(!text.chars().any(commands), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), answer);
    }
}
