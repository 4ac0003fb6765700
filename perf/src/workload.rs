//! The bytes of a scenario: what the client sends, what the node answers, what must arrive. Pure and the same in every
//! process, so that both ends can check all of it.
//!
//! Called by `backend`, `load` and `peers`. Must never depend on time or on a random source without a fixed seed.

use std::fmt::Write as _;

use crate::scenario::{Form, Scenario};

/// Everything that goes over the wire for one scenario.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    /// The client's request, head and body.
    pub(crate) request: Vec<u8>,
    /// Where its body starts.
    pub(crate) body_at: usize,
    /// The node's answer in pieces that are sent one by one, the first with the head.
    pub(crate) pieces: Vec<Vec<u8>>,
    /// Between two pieces.
    pub(crate) every_ms: u64,
    /// The body that must arrive; empty where the first answer says what it is.
    pub(crate) expected: Vec<u8>,
    /// Where each record ends in it.
    pub(crate) ends: Vec<usize>,
}

impl Workload {
    pub(crate) fn of(scenario: &Scenario) -> Self {
        let body = request_body(scenario);
        let mut request = request_head(&scenario.request.path, (!body.is_empty()).then_some(body.len())).into_bytes();
        let body_at = request.len();
        request.extend_from_slice(&body);
        let records = records(scenario, scenario.request.include_usage);
        let expected = records.concat();
        let ends = records.iter().scan(0, |at, r| {
            *at += r.len();
            Some(*at)
        });
        let ends = ends.collect();
        Self {
            request,
            body_at,
            pieces: pieces(scenario, &records),
            every_ms: scenario.answer.every_ms,
            expected,
            ends,
        }
    }

    /// The request's body.
    pub(crate) fn body(&self) -> &[u8] {
        &self.request[self.body_at..]
    }

    /// Pieces of the same answer where somebody on the way asked for the usage, which the client did not.
    pub(crate) fn pieces_with_usage(scenario: &Scenario) -> Vec<Vec<u8>> {
        pieces(scenario, &records(scenario, true))
    }
}

fn request_head(path: &str, length: Option<usize>) -> String {
    let method = if length.is_some() { "POST" } else { "GET" };
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:11434\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n\
         Connection: keep-alive\r\nUser-Agent: ollama-python/0.6.1 (x86_64 linux) Python/3.12.3\r\n"
    );
    if let Some(length) = length {
        let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {length}\r\n");
    }
    head.push_str("\r\n");
    head
}

fn request_body(scenario: &Scenario) -> Vec<u8> {
    let request = &scenario.request;
    let Some(model) = &request.model else { return Vec::new() };
    let prompt = text(request.prompt_bytes);
    let mut body = format!("{{\"model\":\"{model}\",");
    if scenario.answer.form == Form::Embedding {
        let _ = write!(body, "\"input\":\"{prompt}\"}}");
        return body.into_bytes();
    }
    let _ = write!(body, "\"messages\":[{{\"role\":\"user\",\"content\":\"{prompt}\"");
    if request.image_bytes > 0 {
        let _ = write!(body, ",\"images\":[\"{}\"]", base64(request.image_bytes));
    }
    let _ = write!(body, "}}],\"stream\":{}", request.stream);
    if request.include_usage {
        body.push_str(",\"stream_options\":{\"include_usage\":true}");
    } else if !request.path.starts_with("/v1/") {
        body.push_str(",\"options\":{\"temperature\":0.7,\"num_ctx\":4096}");
    }
    body.push('}');
    body.into_bytes()
}

/// Text as prompts are: words, line breaks, quotes and letters beyond ASCII, escaped for JSON, of exactly `bytes`.
fn text(bytes: usize) -> String {
    const WORDS: [&str; 16] = [
        "the", "llama", "walks", "through", "a", "gate", "and", "counts", "every", "token", "\\\"so", "far\\\"",
        "über", "grün\\n", "then", "stops.",
    ];
    let mut random = Random(bytes as u64 + 1);
    let mut text = String::with_capacity(bytes + 8);
    while text.len() < bytes {
        let word = WORDS[usize::try_from(random.next() % 16).unwrap_or(0)];
        if text.len() + word.len() + 1 > bytes {
            break;
        }
        text.push_str(word);
        text.push(' ');
    }
    text.extend(std::iter::repeat_n('.', bytes - text.len()));
    text
}

fn base64(bytes: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = Random(7);
    (0..bytes).map(|_| char::from(ALPHABET[usize::try_from(random.next() % 64).unwrap_or(0)])).collect()
}

/// The records of an answer's body.
fn records(scenario: &Scenario, usage: bool) -> Vec<Vec<u8>> {
    let model = scenario.request.model.as_deref().unwrap_or("");
    let count = scenario.answer.records;
    match scenario.answer.form {
        Form::Listing => Vec::new(),
        Form::Json if scenario.request.path.starts_with("/v1/") => vec![v1_whole(model)],
        Form::Json => vec![ollama_last(model, "Through the gate, one by one, and each is counted.", 12)],
        Form::Ndjson => {
            let last = count - 1;
            (0..count)
                .map(|n| if n == last { with_break(ollama_last(model, "", last)) } else { token(model, n) })
                .collect()
        }
        Form::Sse => sse(model, count, usage),
        Form::Embedding => vec![embedding(model, count)],
    }
}

const CREATED: &str = "2026-11-25T10:00:00.123456789Z";

fn token(model: &str, n: usize) -> Vec<u8> {
    format!(
        "{{\"model\":\"{model}\",\"created_at\":\"{CREATED}\",\"message\":{{\"role\":\"assistant\",\"content\":\" token{n}\"}},\"done\":false}}\n"
    )
    .into_bytes()
}

fn ollama_last(model: &str, content: &str, tokens: usize) -> Vec<u8> {
    format!(
        "{{\"model\":\"{model}\",\"created_at\":\"{CREATED}\",\"message\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},\
         \"done\":true,\"done_reason\":\"stop\",\"total_duration\":734512345,\"load_duration\":31234567,\"prompt_eval_count\":26,\
         \"prompt_eval_duration\":92345678,\"eval_count\":{tokens},\"eval_duration\":610932100}}"
    )
    .into_bytes()
}

fn with_break(mut record: Vec<u8>) -> Vec<u8> {
    record.push(b'\n');
    record
}

fn v1_whole(model: &str) -> Vec<u8> {
    format!(
        "{{\"id\":\"chatcmpl-417\",\"object\":\"chat.completion\",\"created\":1795600800,\"model\":\"{model}\",\"system_fingerprint\":\"fp_ollama\",\
         \"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"Through the gate.\"}},\"finish_reason\":\"stop\"}}],\
         \"usage\":{{\"prompt_tokens\":26,\"completion_tokens\":12,\"total_tokens\":38}}}}\n"
    )
    .into_bytes()
}

fn sse(model: &str, count: usize, usage: bool) -> Vec<Vec<u8>> {
    let event = |choices: &str, rest: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-417\",\"object\":\"chat.completion.chunk\",\"created\":1795600800,\"model\":\"{model}\",\
             \"system_fingerprint\":\"fp_ollama\",\"choices\":[{choices}]{rest}}}\n\n"
        )
        .into_bytes()
    };
    let choice = |content: &str, reason: &str| {
        format!(
            "{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"{content}\"}},\"finish_reason\":{reason}}}"
        )
    };
    let mut events: Vec<Vec<u8>> = (0..count - 1).map(|n| event(&choice(&format!(" token{n}"), "null"), "")).collect();
    events.push(event(&choice("", "\"stop\""), ""));
    if usage {
        let total = count + 26;
        let counts =
            format!(",\"usage\":{{\"prompt_tokens\":26,\"completion_tokens\":{count},\"total_tokens\":{total}}}");
        events.push(event("", &counts));
    }
    events.push(b"data: [DONE]\n\n".to_vec());
    events
}

fn embedding(model: &str, numbers: usize) -> Vec<u8> {
    let mut random = Random(11);
    let mut body = format!("{{\"model\":\"{model}\",\"embeddings\":[[");
    for n in 0..numbers {
        let value = random.next() % 100_000_000;
        let _ = write!(
            body,
            "{}{}0.0{value:08}",
            if n > 0 { "," } else { "" },
            if value.is_multiple_of(2) { "-" } else { "" }
        );
    }
    body.push_str("]],\"total_duration\":14143917,\"load_duration\":1019500,\"prompt_eval_count\":8}");
    body.into_bytes()
}

/// The answer as it is sent: with a length, or one chunk to a record.
fn pieces(scenario: &Scenario, records: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let content_type = match scenario.answer.form {
        Form::Ndjson => "application/x-ndjson",
        Form::Sse => "text/event-stream",
        Form::Json | Form::Embedding | Form::Listing => "application/json; charset=utf-8",
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n");
    if scenario.answer.form == Form::Json {
        let body = records.concat();
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        return vec![[head.into_bytes(), body].concat()];
    }
    let mut pieces: Vec<Vec<u8>> =
        records.iter().map(|record| [format!("{:x}\r\n", record.len()).as_bytes(), record, b"\r\n"].concat()).collect();
    let Some(first) = pieces.first_mut() else { return Vec::new() };
    *first = [format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes(), first].concat();
    if let Some(last) = pieces.last_mut() {
        last.extend_from_slice(b"0\r\n\r\n");
    }
    if scenario.answer.every_ms == 0 && !scenario.answer.write_each { vec![pieces.concat()] } else { pieces }
}

/// Numbers that look random and are the same everywhere (xorshift).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform in (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        let bits = u32::try_from(self.next() >> 32).unwrap_or(u32::MAX);
        (f64::from(bits) + 1.0) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::http::Answers;

    fn shipped() -> Vec<Scenario> {
        crate::scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap()
    }

    #[test]
    fn every_body_is_what_it_claims_to_be() {
        for scenario in shipped().iter().filter(|s| s.answer.form != Form::Listing) {
            let work = Workload::of(scenario);
            let body: serde_json::Value = serde_json::from_slice(work.body()).unwrap();
            assert_eq!(body["model"], scenario.request.model.as_deref().unwrap(), "{}", scenario.name);
            assert!(work.body().len() >= scenario.request.prompt_bytes + scenario.request.image_bytes);
            let (mut answers, mut got) = (Answers::new(), Vec::new());
            let wire = work.pieces.concat();
            let (taken, whole) = answers.feed(&wire, &mut |bytes| got.extend_from_slice(bytes)).unwrap();
            assert_eq!((taken, whole), (wire.len(), true), "{}", scenario.name);
            assert!(got == work.expected && work.ends.last() == Some(&got.len()), "{}", scenario.name);
        }
    }

    #[test]
    fn records_of_streams_are_json() {
        for scenario in shipped().iter().filter(|s| s.request.stream) {
            for record in records(scenario, true) {
                let text = String::from_utf8(record).unwrap();
                let json = text.strip_prefix("data: ").unwrap_or(&text).trim();
                assert!(json == "[DONE]" || serde_json::from_str::<serde_json::Value>(json).is_ok(), "{json}");
            }
        }
    }

    #[test]
    fn text_has_its_size_exactly() {
        for bytes in [0, 1, 5, 200, 16_384] {
            assert_eq!(text(bytes).len(), bytes);
            assert!(serde_json::from_str::<String>(&format!("\"{}\"", text(bytes))).is_ok());
        }
    }
}
