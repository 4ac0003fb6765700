//! `GET /herdgate/usage`: what requests came to, by range, step and group, as JSON or CSV.
//!
//! Exact sums and estimates stand apart. What cannot be read is 400 with what is allowed. Names come from outside: a cell
//! of CSV must never begin as a formula does.

use std::fmt::Write;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::aside::aside;
use super::monitor::parameter;
use super::{Answer, error};
use crate::shared::Shared;
use crate::sync::Arc;
use crate::usage::answers::{Group, Step, UsageAnswer, UsageQuery, UsageSum};
use crate::usage::ledger::LedgerError;
use crate::usage::series::Row;
use crate::usage::{Ending, Tokens};

const CSV: &str = "text/csv; charset=utf-8";
const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;

/// What may be asked, for whoever asked otherwise.
const ALLOWED: &str = "allowed are from and to (RFC 3339 as 2026-11-25T10:00:00Z, Unix seconds, a time ago as -24h with \
    s, m, h, d or w, or now; from -24h to now if absent), step (minute, hour, day or all; all if absent), group (any of \
    key, model, node, outcome, joined by commas; key,model if absent), format (json or csv; as Accept says if absent)";

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Asked {
    query: UsageQuery,
    csv: bool,
}

/// `GET /herdgate/usage`
pub async fn ledger_usage(shared: &Arc<Shared>, query: Option<&str>, accept: Option<&[u8]>) -> Answer {
    let now = shared.clock.unix_ms() / 1000;
    let asked = match Asked::read(query.unwrap_or_default(), accept, now, shared.config.now().limits.usage_rows) {
        Ok(asked) => asked,
        Err(why) => return error(StatusCode::BAD_REQUEST, &format!("{why}; {ALLOWED}")),
    };
    match shared.ledger.usage(asked.query).await {
        Ok(answer) => aside(shared, move |_| told(&asked, &answer)).await,
        Err(why @ LedgerError::TooMuch { .. }) => error(StatusCode::BAD_REQUEST, &why.to_string()),
        Err(why) => error(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
}

impl Asked {
    fn read(query: &str, accept: Option<&[u8]>, now: u64, rows_max: usize) -> Result<Self, String> {
        const KNOWN: [&str; 6] = ["from", "to", "step", "group", "format", "api_key"];
        let names = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split('=').next().unwrap_or(pair));
        if let Some(unknown) = names.into_iter().find(|name| !KNOWN.contains(name)) {
            return Err(format!("{unknown:?} is no parameter"));
        }
        let given = |name| parameter(query, name);
        let step = match given("step").as_deref() {
            None | Some("all") => Step::All,
            Some("minute") => Step::Minute,
            Some("hour") => Step::Hour,
            Some("day") => Step::Day,
            Some(other) => return Err(format!("step cannot be {other:?}")),
        };
        let group = group(given("group").as_deref().unwrap_or("key,model"))?;
        let csv = match given("format").as_deref() {
            None => accept.is_some_and(|accept| accept.to_ascii_lowercase().windows(8).any(|part| part == b"text/csv")),
            Some("json") => false,
            Some("csv") => true,
            Some(other) => return Err(format!("format cannot be {other:?}")),
        };
        let time = |name, default| match parameter(query, name) {
            None => Ok(default),
            Some(text) => time(&text, now).ok_or_else(|| format!("{name} cannot be {text:?}")),
        };
        let unit = match step {
            Step::Minute | Step::All => 60,
            Step::Hour => HOUR,
            Step::Day => DAY,
        };
        let from = time("from", now.saturating_sub(DAY))?;
        // Exclusive, but what ends in this very second is meant.
        let to = time("to", now)?;
        let to = if to == now { now + 1 } else { to };
        if to < from {
            return Err("to lies before from".into());
        }
        // Whole steps: half an hour of an hour would look like a quiet hour.
        let (from, to) = (from - from % unit, to.div_ceil(unit).saturating_mul(unit));
        Ok(Self { query: UsageQuery { from, to, step, group, rows_max }, csv })
    }
}

fn group(text: &str) -> Result<Group, String> {
    let mut group = Group { node: false, model: false, key: false, outcome: false };
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part {
            "node" => group.node = true,
            "model" => group.model = true,
            "key" => group.key = true,
            "outcome" => group.outcome = true,
            other => return Err(format!("group cannot be {other:?}")),
        }
    }
    Ok(group)
}

/// A point in time as Unix seconds.
fn time(text: &str, now: u64) -> Option<u64> {
    if text == "now" {
        return Some(now);
    }
    if let Some(ago) = text.strip_prefix('-') {
        let digits = ago.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &ago[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => HOUR,
            "d" => DAY,
            "w" => 7 * DAY,
            _ => return None,
        };
        return Some(now.saturating_sub(digits.parse::<u64>().ok()?.checked_mul(unit)?));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Beyond the minutes that the ledger can count there is nothing.
        return text.parse().ok().filter(|seconds| seconds / 60 <= u64::from(u32::MAX));
    }
    // A plus sign of an offset arrives as a blank where it was not escaped.
    let stamp: jiff::Timestamp = text.replace(' ', "+").parse().ok()?;
    u64::try_from(stamp.as_second()).ok()
}

fn rfc3339(seconds: u64) -> String {
    let stamp = i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    stamp.map(|stamp| stamp.to_string()).unwrap_or_default()
}

const fn word(step: Step) -> &'static str {
    match step {
        Step::Minute => "minute",
        Step::Hour => "hour",
        Step::Day => "day",
        Step::All => "all",
    }
}

fn told(asked: &Asked, answer: &UsageAnswer) -> Answer {
    if asked.csv {
        return Answer { content_type: CSV, ..Answer::json(csv(asked, answer)) };
    }
    let query = &asked.query;
    let groups = groups(query.group).into_iter().filter(|(_, on)| *on).map(|(name, _)| name);
    let rows = answer.rows.iter().map(shown);
    let body = json!({
        "from": rfc3339(query.from),
        "to": rfc3339(query.to),
        "step": word(query.step),
        "group": groups.collect::<Vec<_>>(),
        "folded_before": rfc3339(answer.folded_before.unix_seconds()),
        "rows": rows.collect::<Vec<_>>(),
    });
    Answer::json(body.to_string())
}

/// What a group may consist of, in the order of columns.
const fn groups(group: Group) -> [(&'static str, bool); 4] {
    [("key", group.key), ("model", group.model), ("node", group.node), ("outcome", group.outcome)]
}

/// The requests of one outcome need not be told apart once more.
fn outcomes(sum: &UsageSum) -> Option<[(&'static str, u64); Ending::COUNT]> {
    let each = std::array::from_fn(|place| (Ending::LABELS[place], sum.row.requests[place]));
    sum.outcome.is_none().then_some(each)
}

fn shown(sum: &UsageSum) -> Value {
    let mut head = Map::new();
    head.insert("time".into(), rfc3339(sum.start).into());
    head.insert("step".into(), word(sum.step).into());
    for (name, value) in [("key", &sum.key), ("model", &sum.model), ("node", &sum.node)] {
        if let Some(value) = value {
            head.insert(name.into(), (**value).into());
        }
    }
    if let Some(outcome) = sum.outcome {
        head.insert("outcome".into(), outcome.label().into());
    }
    let row = &sum.row;
    let tokens = |tokens: Tokens| json!({ "input": tokens.input, "cached": tokens.cached, "output": tokens.output });
    head.insert("requests".into(), row.requests_total().into());
    if let Some(outcomes) = outcomes(sum) {
        let outcomes: Map<String, Value> =
            outcomes.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect();
        head.insert("outcomes".into(), outcomes.into());
    }
    head.insert("tokens_exact".into(), tokens(row.exact));
    head.insert("tokens_estimated".into(), tokens(row.estimated));
    for (name, seconds) in seconds(row) {
        head.insert(name.into(), seconds.into());
    }
    head.insert("first_bytes".into(), row.first_bytes.into());
    Value::Object(head)
}

/// Durations of a row. A GPU worked while the model was loaded, the prompt read and the answer written, as nodes say.
#[expect(clippy::cast_precision_loss, reason = "for display: seconds of a century are exact to a microsecond")]
fn seconds(row: &Row) -> [(&'static str, f64); 6] {
    let of_ns = |ns: u64| ns as f64 / 1e9;
    let of_us = |us: u64| us as f64 / 1e6;
    let gpu = row.load_ns.saturating_add(row.prompt_eval_ns).saturating_add(row.eval_ns);
    [
        ("gpu_seconds", of_ns(gpu)),
        ("load_seconds", of_ns(row.load_ns)),
        ("prompt_eval_seconds", of_ns(row.prompt_eval_ns)),
        ("eval_seconds", of_ns(row.eval_ns)),
        ("queue_seconds", of_us(row.queue_us)),
        ("first_byte_seconds", of_us(row.first_byte_us)),
    ]
}

fn csv(asked: &Asked, answer: &UsageAnswer) -> String {
    let group = asked.query.group;
    let outcomes = Ending::LABELS.into_iter().filter(|_| !group.outcome).map(str::to_owned);
    let tokens = |sure: &'static str| ["input", "cached", "output"].map(|kind| format!("tokens_{sure}_{kind}"));
    let columns: Vec<String> = ["time".to_owned(), "step".to_owned()]
        .into_iter()
        .chain(groups(group).into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()))
        .chain(std::iter::once("requests".to_owned()))
        .chain(outcomes)
        .chain(["exact", "estimated"].into_iter().flat_map(tokens))
        .chain(seconds(&Row::default()).map(|(name, _)| name.to_owned()))
        .chain(std::iter::once("first_bytes".to_owned()))
        .collect();
    let mut out = columns.join(",");
    out.push_str("\r\n");
    for sum in &answer.rows {
        csv_row(sum, &mut out);
    }
    out
}

fn csv_row(sum: &UsageSum, out: &mut String) {
    let row = &sum.row;
    // Writing to a String cannot fail.
    let _ = write!(out, "{},{}", rfc3339(sum.start), word(sum.step));
    for value in [&sum.key, &sum.model, &sum.node].into_iter().flatten() {
        out.push(',');
        push_field(out, value);
    }
    if let Some(outcome) = sum.outcome {
        let _ = write!(out, ",{}", outcome.label());
    }
    let _ = write!(out, ",{}", row.requests_total());
    let tokens = [row.exact, row.estimated].into_iter().flat_map(|sure| [sure.input, sure.cached, sure.output]);
    for figure in outcomes(sum).into_iter().flatten().map(|(_, requests)| requests).chain(tokens) {
        let _ = write!(out, ",{figure}");
    }
    for (_, seconds) in seconds(row) {
        let _ = write!(out, ",{seconds}");
    }
    let _ = write!(out, ",{}\r\n", row.first_bytes);
}

/// A name as a cell: quoted where RFC 4180 says so, and where a spreadsheet would read a formula, with an apostrophe
/// before it and quoted. Source: OWASP, "CSV Injection".
fn push_field(out: &mut String, value: &str) {
    let is_formula = value.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']);
    if !is_formula && !value.contains([',', ';', '\t', '"', '\n', '\r']) {
        return out.push_str(value);
    }
    out.push_str(if is_formula { "\"'" } else { "\"" });
    out.push_str(&value.replace('"', "\"\""));
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::UnixMinute;
    use crate::usage::series::Ended;

    /// 2026-11-25T10:30:20Z
    const NOW: u64 = 1_795_602_620;

    fn read(query: &str) -> Result<Asked, String> {
        Asked::read(query, None, NOW, 10)
    }

    #[test]
    fn times_in_every_form() {
        for (text, seconds) in [
            ("now", NOW),
            ("-24h", NOW - DAY),
            ("-90s", NOW - 90),
            ("-2w", NOW - 14 * DAY),
            ("1795602620", NOW),
            ("2026-11-25T10:30:20Z", NOW),
            ("2026-11-25T12:30:20+02:00", NOW),
            ("2026-11-25T12:30:20 02:00", NOW),
            ("-99999999999d", 0),
        ] {
            assert_eq!(time(text, NOW), Some(seconds), "{text}");
        }
        for wrong in ["", "-", "-h", "-1", "-1y", "yesterday", "2026-11-25", "99999999999999", "1.5", "+1h"] {
            assert_eq!(time(wrong, NOW), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_asked_has_defaults_and_whole_steps() {
        let asked = read("").unwrap();
        assert_eq!((asked.query.step, asked.csv), (Step::All, false));
        assert_eq!(asked.query.group, Group { key: true, model: true, node: false, outcome: false });
        assert_eq!((asked.query.from, asked.query.to), (NOW - 20 - DAY, NOW + 40));
        let on_the_minute = Asked::read("", None, NOW - 20, 10).unwrap();
        assert_eq!(on_the_minute.query.to, NOW + 40, "the minute that has just begun counts");
        let asked = read("from=-1h&step=hour&group=node,outcome&format=csv&api_key=k").unwrap();
        assert_eq!(
            (asked.query.from % HOUR, asked.query.to % HOUR, asked.query.to - asked.query.from),
            (0, 0, 2 * HOUR)
        );
        assert!(asked.query.group.outcome && asked.csv && asked.query.group.node && !asked.query.group.key);
        assert!(Asked::read("", Some(b"text/html, Text/CSV;q=0.9"), NOW, 10).unwrap().csv);
        assert!(!Asked::read("format=json", Some(b"text/csv"), NOW, 10).unwrap().csv);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (wrong, word) in [
            ("from=yesterday", "from"),
            ("to=x", "to"),
            ("step=week", "step"),
            ("group=user", "group"),
            ("format=xml", "format"),
            ("since=-1h", "since"),
            ("from=now&to=-1h", "before"),
        ] {
            let why = read(wrong).unwrap_err();
            assert!(why.contains(word), "{wrong}: {why}");
        }
    }

    fn answer() -> UsageAnswer {
        let row = Row {
            requests: [3, 1, 0, 0, 2],
            exact: Tokens { input: 10, cached: 4, output: 20 },
            estimated: Tokens { input: 1, cached: 0, output: 2 },
            load_ns: 500_000_000,
            prompt_eval_ns: 250_000_000,
            eval_ns: 1_250_000_000,
            queue_us: 1_500_000,
            first_byte_us: 400_000,
            first_bytes: 4,
            far: false,
        };
        let sum = UsageSum {
            start: 1_795_602_600,
            step: Step::Minute,
            node: None,
            model: Some("m,\"x\"".into()),
            key: Some("ops".into()),
            outcome: None,
            row,
        };
        UsageAnswer { rows: vec![sum], folded_before: UnixMinute(0) }
    }

    #[test]
    fn json_keeps_exact_and_estimated_apart_and_adds_gpu_time() {
        let asked = read("step=minute").unwrap();
        let body: Value = serde_json::from_slice(&told(&asked, &answer()).body).unwrap();
        let row = &body["rows"][0];
        assert_eq!(
            (&row["time"], &row["key"], &row["model"]),
            (&json!("2026-11-25T10:30:00Z"), &json!("ops"), &json!("m,\"x\""))
        );
        assert_eq!((&row["requests"], &row["outcomes"]["rejected"]), (&json!(6), &json!(2)));
        assert_eq!(row["tokens_exact"], json!({ "input": 10, "cached": 4, "output": 20 }));
        assert_eq!(row["tokens_estimated"], json!({ "input": 1, "cached": 0, "output": 2 }));
        assert_eq!((&row["gpu_seconds"], &row["queue_seconds"]), (&json!(2.0), &json!(1.5)));
        assert_eq!(row.get("node"), None);
    }

    #[test]
    fn csv_has_a_header_for_every_column_and_quotes_what_it_must() {
        let asked = read("format=csv").unwrap();
        let told = told(&asked, &answer());
        assert_eq!(told.content_type, CSV);
        let text = String::from_utf8(told.body.to_vec()).unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("time,step,key,model,requests,completed,"), "{}", lines[0]);
        assert_eq!(
            lines[1],
            "2026-11-25T10:30:00Z,minute,ops,\"m,\"\"x\"\"\",6,3,1,0,0,2,10,4,20,1,0,2,2,0.5,0.25,1.25,1.5,0.4,4"
        );
        assert_eq!(lines[0].split(',').count(), lines[1].split(',').count() - 1, "the model has a comma");
    }

    #[test]
    fn outcomes_have_rows_of_their_own() {
        let mut answer = answer();
        answer.rows[0].row.requests = [0, 4, 0, 0, 0];
        answer.rows[0].outcome = Some(Ended::of(Ending::ClientGone));
        let text = String::from_utf8(told(&read("group=outcome,key,model&format=csv").unwrap(), &answer).body.to_vec())
            .unwrap();
        let lines: Vec<&str> = text.split("\r\n").collect();
        assert!(lines[0].starts_with("time,step,key,model,outcome,requests,tokens_exact_input,"), "{text}");
        assert_eq!(
            lines[1],
            "2026-11-25T10:30:00Z,minute,ops,\"m,\"\"x\"\"\",client_gone,4,10,4,20,1,0,2,2,0.5,0.25,1.25,1.5,0.4,4"
        );
        let body: Value = serde_json::from_slice(&told(&read("group=outcome").unwrap(), &answer).body).unwrap();
        let row = &body["rows"][0];
        assert_eq!((&row["outcome"], &row["requests"]), (&json!("client_gone"), &json!(4)));
        assert_eq!((&row["tokens_exact"]["output"], &row["gpu_seconds"]), (&json!(20), &json!(2.0)));
        assert_eq!(row.get("outcomes"), None, "said once");
        answer.rows[0].outcome = Some(Ended::MIXED);
        let body: Value = serde_json::from_slice(&told(&read("group=outcome").unwrap(), &answer).body).unwrap();
        assert_eq!(body["rows"][0]["outcome"], "_mixed");
    }

    #[test]
    fn no_cell_of_a_name_begins_a_formula() {
        for (name, cell) in [
            ("=HYPERLINK(\"http://x\")", "\"'=HYPERLINK(\"\"http://x\"\")\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("\r=1", "\"'\r=1\""),
            ("＝1", "\"'＝1\""),
            ("a;=1", "\"a;=1\""),
            ("llama3.2:latest", "llama3.2:latest"),
            ("hf.co/a-b/c=d", "hf.co/a-b/c=d"),
        ] {
            let mut out = String::new();
            push_field(&mut out, name);
            assert_eq!(out, cell);
        }
        let mut answer = answer();
        answer.rows[0].key = Some("=cmd".into());
        let text = String::from_utf8(told(&read("format=csv").unwrap(), &answer).body.to_vec()).unwrap();
        assert!(text.contains("minute,\"'=cmd\",\"m,"), "{text}");
        assert!(text.ends_with(",2,0.5,0.25,1.25,1.5,0.4,4\r\n"), "figures stay figures: {text}");
    }
}
