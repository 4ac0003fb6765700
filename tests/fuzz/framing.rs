//! Request framing through the whole proxy: nobody can make the node see another request than the proxy saw.
//!
//! Streams of one to three requests with every kind of odd framing are sent as they are. What the node received is read
//! with the strict reader: each message is exactly one request with one length, and in order they are the requests that
//! the RFCs find in the client's stream, never more and never others; some bodies hold a request that only a wrong reading
//! of lengths brings out. Where the strict reader takes the client's whole stream, all of it is served.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::strict::{self, End, Reader, Request};
use crate::support::client::Client;
use crate::support::proxy::Proxy;
use crate::support::scripted::{self, Scripted};

/// Cases of a run; more by the environment.
pub(crate) static CASES: LazyLock<usize> =
    LazyLock::new(|| std::env::var("HERDGATE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400));

/// A run's own sequence: the same in each run, whatever the number of cases.
pub(crate) fn runner(seed: u8) -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
}

/// One request of a stream; `TAG` stands for the case, the request's place in it.
#[derive(Clone, Debug)]
struct Piece {
    line: &'static str,
    fields: Vec<&'static str>,
    framing: &'static str,
    /// What follows the head; `BODY` stands for a JSON body.
    body: &'static str,
    ends: &'static str,
}

const LINES: &[&str] = &[
    "POST /api/generate?TAG HTTP/1.1",
    "POST /api/generate?TAG HTTP/1.1",
    "POST /api/generate?TAG HTTP/1.1",
    "POST /api/generate?TAG HTTP/1.0",
    "POST  /api/generate?TAG HTTP/1.1",
    "POST /api/generate?TAG  HTTP/1.1",
    "POST /api/generate?TAG HTTP/1.1 ",
    "POST /api/generate?TAG HTTP/1.2",
    "POST /api/generate?TAG http/1.1",
    "POST /api/generate?TAG",
    "POST http://a.local/api/generate?TAG HTTP/1.1",
    "PO(ST /api/generate?TAG HTTP/1.1",
    "\r\nPOST /api/generate?TAG HTTP/1.1",
    "POST /api/generate?TAG\tHTTP/1.1",
    "GET /api/version HTTP/1.1",
];

const FIELDS: &[&str] = &[
    "X-A: b",
    "X-A:b",
    "X-A : b",
    " X-A: b",
    "X-A: b\u{1}",
    "X-A",
    ": b",
    "X A: b",
    "Connection: close",
    "Connection: content-length",
    "Connection: transfer-encoding, keep-alive",
    "Host: b",
    "Expect: 100-continue",
    "Upgrade: h2c",
    "TE: trailers",
    "Trailer: Content-Length",
    "X-A: 1\r\n\tfolded: 2",
    "X\u{e9}: b",
    "Content_Length: 3",
];

/// Lengths are `LEN`, one less and one more.
const FRAMINGS: &[&str] = &[
    "Content-Length: LEN",
    "Content-Length: LEN",
    "Content-Length: LESS",
    "Content-Length: MORE",
    "Content-Length: +LEN",
    "Content-Length:LEN",
    "Content-Length: 0LEN",
    "Content-Length: LEN,LEN",
    "Content-Length: LEN\r\nContent-Length: LEN",
    "Content-Length: LEN\r\nContent-Length: LESS",
    "content-length: LESS\r\nContent-Length: LEN",
    "Content-Length: LEN\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: LESS",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: Chunked",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Transfer-Encoding:\u{b}chunked",
    "Transfer-Encoding: \"chunked\"",
    "Transfer-Encoding:\r\n chunked",
    "Content-Length: 18446744073709551617",
    "",
];

/// `PLAIN` is the body as it is, the rest are chunks of it; `HEX` is its length. `INNER` is a whole request.
const BODIES: &[&str] = &[
    "PLAIN",
    "PLAIN",
    "HEX\r\nBODY\r\n0\r\n\r\n",
    "HEX\r\nBODY\r\n0\r\n\r\n",
    "HEX;a=b\r\nBODY\r\n0\r\n\r\n",
    "HEX ;a\r\nBODY\r\n0\r\nX: y\r\n\r\n",
    "0HEX\r\nBODY\r\n00\r\n\r\n",
    "0xHEX\r\nBODY\r\n0\r\n\r\n",
    "HEX\nBODY\n0\n\n",
    "HEX\r\nBODY0\r\n\r\n",
    "HEX\r\nBODY\r\n0\r\n",
    "HEX\r\nBODY\r\n0\r\nINNER",
    "HEX\r\nBODY\r\n0\r\n\r\nINNER",
    "HEX;\nBODY\r\n0\r\n\r\n",
    "HEX\r\r\nBODY\r\n0\r\n\r\n",
    "-HEX\r\nBODY\r\n0\r\n\r\n",
    "fffffffffffffffffHEX\r\nBODY\r\n0\r\n\r\n",
    "HEX\r\nBODY\r\n0\r\nContent-Length: 5\r\n\r\n",
    "0\r\n\r\nINNER",
];

const ENDS: &[&str] = &["\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r", "\r\n\r\n"];

fn pick(from: &'static [&'static str], plain: u32) -> impl Strategy<Value = &'static str> {
    prop_oneof![plain => Just(from[0]), 1 => prop::sample::select(from)]
}

/// A request in order, of either framing.
fn orderly() -> impl Strategy<Value = Piece> {
    let chunked = ("Transfer-Encoding: chunked", "HEX;a=b\r\nBODY\r\n0\r\nX: y\r\n\r\n");
    let framings = prop_oneof![Just(("Content-Length: LEN", "PLAIN")), Just(chunked)];
    let fields = prop::collection::vec(prop::sample::select(&["X-A: b", "X-A:b", "TE: trailers"][..]), 0..2);
    let line = LINES[0];
    (fields, framings).prop_map(move |(fields, (framing, body))| Piece { line, fields, framing, body, ends: "\r\n" })
}

/// Any mixture.
fn odd() -> impl Strategy<Value = Piece> {
    let fields = prop::collection::vec(prop::sample::select(FIELDS), 0..2);
    (pick(LINES, 4), fields, prop::sample::select(FRAMINGS), prop::sample::select(BODIES), pick(ENDS, 6))
        .prop_map(|(line, fields, framing, body, ends)| Piece { line, fields, framing, body, ends })
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![1 => orderly(), 1 => odd()]
}

impl Piece {
    fn bytes(&self, tag: &str) -> Vec<u8> {
        let body = format!(r#"{{"model":"m","prompt":"{tag}","stream":false}}"#);
        let inner = format!("POST /api/generate?inside-{tag} HTTP/1.1\r\nHost: a.local\r\nContent-Length: 0\r\n\r\n");
        let (length, hex) = (body.len(), format!("{:x}", body.len()));
        let mut head = format!("{}\r\nHost: a.local\r\n", self.line.replace("TAG", tag));
        for field in &self.fields {
            head += &format!("{field}\r\n");
        }
        let framing = self.framing.replace("LEN", &length.to_string());
        let framing = framing.replace("LESS", &(length - 1).to_string()).replace("MORE", &(length + 1).to_string());
        if !framing.is_empty() {
            head += &format!("{framing}\r\n");
        }
        head += "\r\n";
        let head = head.replace("\r\n", self.ends);
        let said = self.body.replace("PLAIN", &body).replace("BODY", &body).replace("HEX", &hex);
        // Non-ASCII letters stand for single bytes.
        (head + &said.replace("INNER", &inner)).chars().map(|c| c as u32 as u8).collect()
    }
}

/// The last of every stream: the proxy answers it alone, and closes.
const LAST: &[u8] = b"GET /api/version HTTP/1.1\r\nHost: a.local\r\nConnection: close\r\n\r\n";

/// A request as the node must have seen it.
fn shown(request: &Request) -> (String, String, String) {
    let target = request.target.trim_start_matches("http://a.local").to_owned();
    (request.method.clone(), target, String::from_utf8_lossy(&request.body).into_owned())
}

/// What must hold of one stream and what of it the node was asked.
fn judge(stream: &[u8], asked: &[Request], answer: &[u8]) -> Result<bool, String> {
    let for_nodes = |requests: Vec<Request>| -> Vec<_> {
        // Other methods, which a wrong length makes of this one, are refused without a node.
        let posts = requests.iter().filter(|request| request.method == "POST");
        posts.filter(|request| request.target.contains("/api/generate?")).map(shown).collect()
    };
    let (strict, end) = strict::read(Reader::Strict, stream);
    let (strict, mended) = (for_nodes(strict), for_nodes(strict::read(Reader::Mending, stream).0));
    let asked: Vec<_> = asked.iter().map(shown).collect();
    if !mended.starts_with(&asked) {
        return Err(format!("the node was asked {asked:#?}, the stream holds {mended:#?}"));
    }
    if end == End::Clean && asked.len() < strict.len() {
        return Err(format!("of {strict:#?} the node was asked {asked:#?}"));
    }
    let answered = answer.windows(4).filter(|window| window == b"n0de").count();
    if answered > asked.len() {
        return Err(format!("{answered} answers of the node to {} requests", asked.len()));
    }
    Ok(end == End::Clean && !strict.is_empty())
}

/// All that came back until the proxy closed; `None` if it never does.
async fn exchange(address: std::net::SocketAddr, stream: Vec<u8>) -> Option<Vec<u8>> {
    let mut client = Client::connect(address).await;
    // A proxy that refuses and closes need not take all of it.
    let _ = client.try_send(&stream).await;
    // Thirty times what the proxy waits for the rest of a request here.
    tokio::time::timeout(Duration::from_secs(10), client.rest()).await.ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_framing_smuggles_a_request_to_a_node() {
    let node = Scripted::start(&["m:latest"], |_| scripted::answer("200 OK", "application/json", b"{\"n0de\":1}"));
    let times = "timeouts: { request_head: 300ms, request_body_idle: 300ms }";
    let proxy = Proxy::start(&[node.url()], times).await;
    proxy.until_listed("m:latest").await;
    let mut runner = runner(9);
    let pieces = prop::collection::vec(piece(), 1..4);
    let streams: Vec<Vec<u8>> = (0..*CASES)
        .map(|case| {
            let pieces = pieces.new_tree(&mut runner).unwrap().current();
            let pieces = pieces.iter().enumerate();
            let mut stream =
                pieces.map(|(at, piece)| piece.bytes(&format!("c{case}r{at}"))).collect::<Vec<_>>().concat();
            stream.extend_from_slice(LAST);
            stream
        })
        .collect();
    let (mut served, mut wrong) = (0, Vec::new());
    for (batch, streams) in streams.chunks(50).enumerate() {
        let talks = streams.iter().map(|stream| tokio::spawn(exchange(proxy.address, stream.clone())));
        let mut answers = Vec::new();
        for talk in talks.collect::<Vec<_>>() {
            answers.push(talk.await.unwrap());
        }
        // What reached the node, strictly one request a message, by case.
        let mut asked: BTreeMap<usize, Vec<Request>> = BTreeMap::new();
        while node.untaken() > 0 {
            let message = node.next().await;
            let bytes = [message.head.as_bytes(), &message.body].concat();
            let (requests, end) = strict::read(Reader::Strict, &bytes);
            let [request] = &requests[..] else { panic!("{} requests ({end:?}) in {message:?}", requests.len()) };
            assert_eq!((end, request.values("transfer-encoding").len()), (End::Clean, 0), "{message:?}");
            assert_eq!(request.values("content-length"), [message.body.len().to_string()], "{message:?}");
            // Of the case it was sent in, or of a request that some body there held.
            let tag = request.target.split(['c', '-']).find_map(|part| part.split_once('r')?.0.parse::<usize>().ok());
            asked.entry(tag.unwrap()).or_default().push(request.clone());
        }
        for (at, (stream, answer)) in streams.iter().zip(&answers).enumerate() {
            let asked = asked.remove(&(batch * 50 + at)).unwrap_or_default();
            let judged = match answer {
                Some(answer) => judge(stream, &asked, answer),
                None => Err("the connection was never closed".to_owned()),
            };
            match judged {
                Ok(whole) => served += usize::from(whole),
                Err(why) => wrong.push(format!("{:?}\n{why}", String::from_utf8_lossy(stream))),
            }
        }
        assert!(asked.is_empty(), "asked for no case: {asked:?}");
    }
    assert!(wrong.is_empty(), "{} streams\n{}", wrong.len(), wrong.join("\n"));
    assert!(served * 20 > *CASES, "only {served} streams were in order: the cases prove too little");
}
