//! Whether two answers are the same to a client: status, header lines, chunks, bodies; what two runs of one server would
//! not agree on (times, durations, made-up ids) is masked where it stands, and nothing else.
//!
//! Three things are each connection's own by the contract: `Connection: keep-alive`, which says what HTTP/1.1 means
//! anyway; how a body that comes in one piece is framed (one chunk, or a length); and that a chunk too long for one read
//! is passed on in the pieces in which it comes.

use crate::support::client::{Answer, OURS};

/// Keys whose value is a time or a duration.
const TIMED: [&str; 10] = [
    "created_at",
    "completed_at",
    "modified_at",
    "expires_at",
    "created",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
    "request_id",
];

/// What made-up ids begin with; the rest of such a word is masked. Names of models and digests are no such words.
const IDS: [&str; 9] =
    ["chatcmpl-", "cmpl-", "resp_", "msg_", "call_", "fc_", "rs_", "toolu_", "https://ollama.com:443/"];

/// The text with what may differ masked.
pub(crate) fn masked(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(quote) = rest.find('"') {
        let (before, from) = rest.split_at(quote);
        out.push_str(before);
        let Some(end) = closing(from) else {
            rest = from;
            break;
        };
        let word = &from[1..end - 1];
        rest = &from[end..];
        out.push('"');
        match IDS.iter().find(|prefix| word.starts_with(**prefix)) {
            Some(prefix) => {
                out.push_str(prefix);
                out.push('*');
            }
            None => out.push_str(word),
        }
        out.push('"');
        if TIMED.contains(&word)
            && let Some(value) = rest.strip_prefix(':')
        {
            let length =
                if value.starts_with('"') { closing(value) } else { value.find([',', '}']) }.unwrap_or(value.len());
            // Null says that there is none: that is no time.
            out.push_str(if value.starts_with("null") { ":null" } else { ":*" });
            rest = &value[length..];
        }
    }
    out + rest
}

/// Where the string that begins with a quote ends, closing quote included.
fn closing(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// What a client can tell two answers apart by.
pub(crate) fn essence(answer: &Answer) -> Vec<(String, String)> {
    let mut found = vec![("status".to_owned(), answer.status.to_string())];
    let one_piece = answer.chunks.len() < 2;
    let mut lines: Vec<(String, String)> = answer
        .headers
        .iter()
        .filter(|(name, value)| {
            let framing = matches!(name.as_str(), "content-length" | "transfer-encoding") && !answer.body.is_empty();
            let kept_alive = name == "connection" && value == "keep-alive";
            // They name this one request: no two answers share them.
            let ours = name.starts_with("x-herdgate-") || OURS.contains(&name.as_str());
            !(ours || framing && one_piece || kept_alive)
        })
        .map(|(name, value)| {
            let masked = match name.as_str() {
                "date" => "*",
                _ => value,
            };
            (name.clone(), masked.to_owned())
        })
        .collect();
    lines.sort();
    found.extend(lines);
    if one_piece {
        found.push(("body".to_owned(), masked(&answer.text())));
    }
    for (at, chunk) in answer.chunks.iter().enumerate().filter(|_| !one_piece) {
        found.push((format!("chunk {at}"), masked(&String::from_utf8_lossy(chunk))));
    }
    found.push(("whole".to_owned(), answer.whole.to_string()));
    found
}

/// A chunk may take several reads from this length on.
const LONG: usize = 4 * 1024;

/// The gate's chunks with the pieces of each long chunk of the node's put together.
fn rejoined(direct: &Answer, through: &Answer) -> Vec<Vec<u8>> {
    let mut rest = through.chunks.iter();
    let mut out = Vec::new();
    for (at, chunk) in direct.chunks.iter().enumerate() {
        let is_last = at + 1 == direct.chunks.len();
        let Some(mut whole) = rest.next().cloned() else { break };
        while chunk.len() > LONG && !whole.ends_with(b"\n") {
            match rest.next() {
                Some(more) => whole.extend_from_slice(more),
                None => break,
            }
        }
        out.push(whole);
        if is_last {
            out.extend(rest.by_ref().cloned());
        }
    }
    out
}

/// What differs between the answers of a node and of the gate.
pub(crate) fn differences(direct: &Answer, through: &Answer) -> Vec<String> {
    let mut joined = through.clone();
    if !direct.chunks.is_empty() {
        joined.chunks = rejoined(direct, through);
    }
    let (direct, through) = (essence(direct), essence(&joined));
    let only = |of: &[(String, String)], other: &[(String, String)], whose: &str| {
        let missing = of.iter().filter(|entry| !other.contains(entry));
        missing.map(|(what, value)| format!("{whose} {what}: {value}")).collect::<Vec<_>>()
    };
    let mut found = only(&direct, &through, "the node's");
    found.extend(only(&through, &direct, "the gate's"));
    found
}

#[test]
fn only_times_and_ids_are_masked() {
    let text = r#"{"id":"chatcmpl-12","created":5,"model":"m","x":"created","total_duration":7,"created_at":"a\"b"}"#;
    let mask = r#"{"id":"chatcmpl-*","created":*,"model":"m","x":"created","total_duration":*,"created_at":*}"#;
    assert_eq!(masked(text), mask);
    assert_eq!(masked(r#"{"completed_at":null,"id":"m:latest"}"#), r#"{"completed_at":null,"id":"m:latest"}"#);
    assert_eq!(masked("no quote, \"open"), "no quote, \"open");
}

#[test]
fn what_differs_is_seen() {
    let answer = Answer {
        status: 200,
        headers: vec![("content-type".into(), "a".into()), ("date".into(), "x".into())],
        body: b"{\"created\":1,\"model\":\"m\"}".to_vec(),
        chunks: Vec::new(),
        whole: true,
    };
    let later = Answer { body: b"{\"created\":23,\"model\":\"m\"}".to_vec(), ..answer.clone() };
    assert!(differences(&answer, &later).is_empty());
    let spoilt = [
        Answer { status: 201, ..answer.clone() },
        Answer { whole: false, ..answer.clone() },
        Answer { headers: vec![("content-type".into(), "b".into()), ("date".into(), "x".into())], ..answer.clone() },
        Answer { headers: vec![("content-type".into(), "a".into())], ..answer.clone() },
        Answer { body: b"{\"model\":\"m\",\"created\":1}".to_vec(), ..answer.clone() },
        Answer { chunks: vec![answer.body[..3].to_vec(), answer.body[3..].to_vec()], ..answer.clone() },
        Answer { body: Vec::new(), ..answer.clone() },
    ];
    for spoilt in spoilt {
        assert!(!differences(&answer, &spoilt).is_empty(), "{spoilt:?}");
    }
}
