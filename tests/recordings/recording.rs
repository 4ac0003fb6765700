//! Reads recordings from `tests/fixtures/transcripts`, without any help of the proxy's code.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::support::client::{Answer, find};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/transcripts")
}

/// The names of all files there.
pub(crate) fn files() -> BTreeSet<String> {
    let files = std::fs::read_dir(folder()).unwrap();
    files.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

pub(crate) fn file(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// One exchange.
#[derive(Clone)]
pub(crate) struct Recording {
    pub(crate) name: String,
    /// All that the client sent.
    pub(crate) request: Vec<u8>,
    /// The last answer, interim ones skipped.
    pub(crate) answer: Answer,
    /// The answer as it came: its head, then the body, or each chunk in its frame with the terminator.
    pub(crate) pieces: Vec<Vec<u8>>,
}

impl Recording {
    pub(crate) fn load(name: &str) -> Self {
        let (answer, pieces) = answer(&file(&format!("{name}.resp")));
        Self { name: name.to_owned(), request: file(&format!("{name}.req")), answer, pieces }
    }

    pub(crate) fn is_chunked(&self) -> bool {
        self.answer.header("transfer-encoding") == Some("chunked")
    }

    /// The answer is cut short, or says that the connection ends with it.
    pub(crate) fn closes(&self) -> bool {
        !self.answer.whole || self.answer.header("connection") == Some("close")
    }

    pub(crate) fn sent(&self) -> Sent {
        Sent::read(&self.request).0
    }
}

fn answer(raw: &[u8]) -> (Answer, Vec<Vec<u8>>) {
    let mut at = 0;
    let (mut answer, mut end);
    loop {
        end = at + find(&raw[at..], b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&raw[at..end]).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        answer = Answer { status, headers, ..Answer::default() };
        if status != 100 {
            break;
        }
        at = end;
    }
    let mut pieces = vec![raw[at..end].to_vec()];
    if answer.header("transfer-encoding") == Some("chunked") {
        let (chunks, frames, whole) = chunks(&raw[end..]);
        answer.body = chunks.concat();
        (answer.chunks, answer.whole) = (chunks, whole);
        pieces.extend(frames);
    } else {
        answer.body = raw[end..].to_vec();
        answer.whole = true;
        pieces.push(raw[end..].to_vec());
    }
    (answer, pieces)
}

/// Payloads, whole frames (the terminator too), and whether the terminator was there.
fn chunks(raw: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, bool) {
    let (mut payloads, mut frames, mut at) = (Vec::new(), Vec::new(), 0);
    while let Some(line) = find(&raw[at..], b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&raw[at..at + line]).unwrap(), 16).unwrap();
        let data = at + line + 2;
        frames.push(raw[at..data + size + 2].to_vec());
        at = data + size + 2;
        if size == 0 {
            return (payloads, frames, true);
        }
        payloads.push(raw[data..data + size].to_vec());
    }
    (payloads, frames, false)
}

/// A request as it was sent, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names lower-cased, in order.
    pub(crate) headers: Vec<(String, String)>,
    /// Without the frames of chunks.
    pub(crate) body: Vec<u8>,
}

impl Sent {
    /// The first request of these bytes, and how many it takes.
    fn read(raw: &[u8]) -> (Self, usize) {
        let end = find(raw, b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&raw[..end]).into_owned();
        let mut lines = head.trim_end().split("\r\n");
        let mut words = lines.next().unwrap().split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let mut sent = Self { method, target, headers, body: Vec::new() };
        if sent.header("transfer-encoding") == Some("chunked") {
            let (payloads, frames, _) = chunks(&raw[end..]);
            sent.body = payloads.concat();
            return (sent, end + frames.concat().len());
        }
        let length = sent.header("content-length").map_or(0, |length| length.parse().unwrap());
        // The body that an early answer made superfluous was never sent.
        let whole = raw.len().min(end + length);
        sent.body = raw[end..whole].to_vec();
        (sent, whole)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    /// The model that the body names, as it is listed; none where the body cannot be read or names none.
    pub(crate) fn model(&self) -> Option<String> {
        let json: serde_json::Value = serde_json::Deserializer::from_slice(&self.body).into_iter().next()?.ok()?;
        let named = ["model", "name"].iter().filter_map(|key| json[*key].as_str()).find(|name| !name.is_empty())?;
        let last = named.rsplit('/').next()?;
        Some(if last.contains(':') { named.to_owned() } else { format!("{named}:latest") })
    }
}

/// The requests of one recorded client, one after another, each with its bytes.
pub(crate) fn requests(name: &str) -> Vec<(Sent, Vec<u8>)> {
    let raw = file(&format!("{name}.req"));
    let (mut out, mut at) = (Vec::new(), 0);
    while at < raw.len() {
        let (sent, length) = Sent::read(&raw[at..]);
        out.push((sent, raw[at..at + length].to_vec()));
        at += length;
    }
    out
}
