//! Answers of the proxy as text for a terminal. Pure. No name in them may command it.

use std::fmt::Write;

use serde_json::Value;

use crate::terminal::plain_answer;

/// What `status` prints.
pub(super) fn of(status: &Value) -> String {
    let status = &plain_answer(status);
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = head(&mut out, status);
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let rows: Vec<[String; 6]> = nodes.iter().map(row).collect();
    out + &columns(["NODE", "STATE", "FOR", "VERSION", "IN FLIGHT", "MODELS (in flight/limit)"], &rows)
}

fn head(out: &mut String, status: &Value) -> std::fmt::Result {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    writeln!(
        out,
        "herdgate {} at {}: {}, up {}, {} waiting, {} of {} connections",
        text("version"),
        text("listen"),
        text("phase"),
        span(number("uptime_ms")),
        number("waiting"),
        number("connections"),
        number("connections_max"),
    )?;
    let configuration = &status["configuration"];
    match configuration["detail"].as_str() {
        Some(detail) => writeln!(out, "configuration: {detail}")?,
        None => writeln!(out, "configuration: {}", configuration["status"].as_str().unwrap_or("?"))?,
    }
    if let Some(keys) = configuration["needs_restart"].as_array().filter(|keys| !keys.is_empty()) {
        writeln!(out, "needs a restart: {}", list(keys))?;
    }
    out.push('\n');
    Ok(())
}

fn row(node: &Value) -> [String; 6] {
    let text = |key: &str| node[key].as_str().unwrap_or("-").to_owned();
    let state = match (node["state"].as_str(), node["cause"].as_str()) {
        (Some(state @ ("down" | "suspect" | "draining, down")), Some(cause)) => format!("{state} ({cause})"),
        (state, _) => state.unwrap_or("?").to_owned(),
    };
    let models: Vec<String> = node["models"].as_array().into_iter().flatten().map(model).collect();
    let models = if models.is_empty() { "-".to_owned() } else { models.join(", ") };
    let number = |key: &str| node[key].as_u64().unwrap_or(0);
    // What does not count against the limit runs for names that are no known model's.
    let in_flight = match (number("in_flight"), node["node_slots"].as_u64()) {
        (all, None) => all.to_string(),
        (all, Some(limit)) => match all.saturating_sub(number("models_in_flight")) {
            0 => format!("{all}/{limit}"),
            others => format!("{}/{limit} + {others}", number("models_in_flight")),
        },
    };
    [text("name"), state, span(number("for_ms")), text("version"), in_flight, models]
}

fn model(model: &Value) -> String {
    let soft = if model["hard"] == true { "" } else { "soft " };
    let name = model["model"].as_str().unwrap_or("?");
    let state = match model["state"].as_str() {
        Some("loaded") | None => String::new(),
        Some(state) => format!(" {state}"),
    };
    format!("{name}{state} {}/{soft}{}", model["in_flight"], model["limit"])
}

fn columns<const N: usize>(titles: [&str; N], rows: &[[String; N]]) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).chain([titles[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut out = line(&mut titles.into_iter());
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
    }
    out
}

/// The largest unit and the next one.
fn span(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d {}h", s / 86_400, s % 86_400 / 3_600),
    }
}

fn list(values: &[Value]) -> String {
    let texts: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
    texts.join(", ")
}

/// What `reload` prints when it was applied.
pub(super) fn reloaded(answer: &Value) -> String {
    let answer = &plain_answer(answer);
    let mut out = String::new();
    let changed = answer["changed"].as_array().map(|keys| list(keys)).unwrap_or_default();
    // Writing to a String cannot fail.
    let _ = match changed.as_str() {
        "" => writeln!(out, "reloaded; nothing has changed"),
        changed => writeln!(out, "reloaded; changed: {changed}"),
    };
    for (key, word) in [("added", "added"), ("removed", "removed"), ("moved", "moved"), ("changed", "changed")] {
        if let Some(names) = answer["nodes"][key].as_array().filter(|names| !names.is_empty()) {
            let _ = writeln!(out, "nodes {word}: {}", list(names));
        }
    }
    for held in answer["needs_restart"].as_array().into_iter().flatten() {
        let _ = writeln!(
            out,
            "needs a restart: {} (running {}, configured {})",
            held["key"].as_str().unwrap_or("?"),
            held["running"].as_str().unwrap_or("?"),
            held["wanted"].as_str().unwrap_or("?"),
        );
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "warning: {}", mistake(warning));
    }
    out
}

/// Every mistake, a line each.
pub(super) fn mistakes(answer: &Value) -> String {
    let answer = &plain_answer(answer);
    let lines: Vec<String> = answer["mistakes"].as_array().into_iter().flatten().map(mistake).collect();
    let error = answer["error"].as_str().unwrap_or("refused");
    format!("{error}\n{}", lines.join("\n"))
}

/// As `check` prints it.
fn mistake(told: &Value) -> String {
    let mut out = told["file"].as_str().unwrap_or_default().to_owned();
    // Writing to a String cannot fail.
    let _ = match (told["line"].as_u64(), told["column"].as_u64()) {
        (Some(line), Some(column)) => write!(out, ":{line}:{column}: "),
        _ => write!(out, ": "),
    };
    if let Some(key) = told["key"].as_str().filter(|key| !key.is_empty()) {
        let _ = write!(out, "{key}: ");
    }
    if let Some(value) = told["value"].as_str() {
        let _ = write!(out, "value `{value}`: ");
    }
    out + told["reason"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_that_reads_itself() {
        let status = json!({
            "version": "0.1.0", "listen": "127.0.0.1:1", "phase": "ready", "uptime_ms": 90_061_000, "waiting": 2,
            "connections": 3, "connections_max": 100,
            "configuration": { "status": "ok", "needs_restart": ["listen"] },
            "nodes": [
                { "name": "gpu-a", "state": "up", "cause": "answers probes", "for_ms": 59_000, "version": "0.12.0", "in_flight": 3, "models_in_flight": 3, "node_slots": 4,
                  "models": [{ "model": "m:latest", "state": "loaded", "in_flight": 2, "limit": 4, "hard": true },
                             { "model": "n:7b", "state": "loading", "in_flight": 1, "limit": 4, "hard": false }] },
                { "name": "b", "state": "down", "cause": "connection refused", "for_ms": 61_000, "version": null, "in_flight": 0, "models": [] },
            ],
        });
        let expected = "\
herdgate 0.1.0 at 127.0.0.1:1: ready, up 1d 1h, 2 waiting, 3 of 100 connections
configuration: ok
needs a restart: listen

NODE   STATE                      FOR    VERSION  IN FLIGHT  MODELS (in flight/limit)
gpu-a  up                         59s    0.12.0   3/4        m:latest 2/4, n:7b loading 1/soft 4
b      down (connection refused)  1m 1s  -        0          -
";
        assert_eq!(of(&status), expected);
    }

    #[test]
    fn no_name_commands_the_terminal() {
        let evil = "m\u{1b}]0;owned\u{7}\u{9b}2J\nNODE up";
        let status = json!({ "version": evil, "listen": evil, "phase": evil, "configuration": { "detail": evil },
            "nodes": [{ "name": evil, "state": "down", "cause": evil, "version": evil,
                        "models": [{ "model": evil, "state": evil, "in_flight": 1, "limit": 1 }] }] });
        let reload =
            json!({ "changed": [evil], "nodes": { "added": [evil] }, "warnings": [{ "file": evil, "reason": evil }] });
        let refused =
            json!({ "error": evil, "mistakes": [{ "file": evil, "key": evil, "value": evil, "reason": evil }] });
        for (text, lines) in [(of(&status), 5), (reloaded(&reload), 3), (mistakes(&refused), 2)] {
            assert_eq!(text.lines().count(), lines, "{text}");
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        }
    }

    #[test]
    fn what_a_reload_came_to() {
        let applied = json!({ "changed": ["nodes"], "nodes": { "added": ["c"], "removed": [] },
            "needs_restart": [{ "key": "workers", "running": "None", "wanted": "Some(2)" }], "warnings": [] });
        let text = reloaded(&applied);
        assert_eq!(
            text,
            "reloaded; changed: nodes\nnodes added: c\nneeds a restart: workers (running None, configured Some(2))\n"
        );
        let refused = json!({ "error": "no", "mistakes": [
            { "file": "h.yaml", "line": 3, "column": 1, "key": "slots", "value": "many", "reason": "is no number" },
            { "file": "--listen", "line": null, "column": null, "key": "", "value": null, "reason": "is empty" }] });
        assert_eq!(mistakes(&refused), "no\nh.yaml:3:1: slots: value `many`: is no number\n--listen: is empty");
    }
}
