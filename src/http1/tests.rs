//! Properties: the same bytes give the same message however they are split; no input panics or is taken twice; a
//! message ends where its framing says and nowhere else; what is encoded reads back.

use http::Method;
use proptest::prelude::*;

use super::*;

const MAX: usize = 4096;

/// All that a caller can learn of a response.
#[derive(Debug, PartialEq)]
struct Seen {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    framing: Framing,
    close: bool,
    keep_alive: KeepAlive,
    body: Vec<u8>,
    /// Bytes behind the end.
    rest: usize,
}

/// Feeds the pieces one after another, then the end of the stream if the message has not ended; the same with and without
/// runs of whole chunks.
fn read(pieces: &[&[u8]], to_head: bool) -> Result<Seen, DecodeError> {
    let (plain, with_runs) = (read_by(pieces, to_head, false), read_by(pieces, to_head, true));
    assert_eq!(plain, with_runs);
    plain
}

fn read_by(pieces: &[&[u8]], to_head: bool, runs: bool) -> Result<Seen, DecodeError> {
    let mut decoder = ResponseDecoder::new(to_head, MAX);
    let mut seen = None;
    let mut body = Vec::new();
    let mut rest = 0;
    for piece in pieces {
        let mut at = 0;
        loop {
            if runs {
                let run = decoder.run(&piece[at..]);
                at += run.as_bytes().len();
                run.payloads().for_each(|payload| body.extend_from_slice(payload));
            }
            let (used, item) = decoder.feed(&piece[at..])?;
            assert!(used <= piece.len() - at);
            at += used;
            match item {
                Item::More => {
                    assert_eq!(at, piece.len());
                    break;
                }
                Item::Head(head) => assert!(seen.replace(head).is_none(), "two heads"),
                Item::Data(data) => {
                    assert!(!data.is_empty());
                    assert_eq!(data, &piece[at - data.len()..at], "payload is the last that was consumed");
                    body.extend_from_slice(data);
                }
                Item::End => {
                    assert!(decoder.is_ended());
                    rest += piece.len() - at;
                    break;
                }
            }
        }
    }
    assert!(matches!(decoder.eof()?, Item::End));
    let head = seen.expect("an end has a head before it");
    Ok(Seen {
        status: head.status.as_u16(),
        headers: head.lines.iter().map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec())).collect(),
        framing: head.framing,
        close: head.close,
        keep_alive: head.keep_alive,
        body,
        rest,
    })
}

fn whole(bytes: &str) -> Result<Seen, DecodeError> {
    read(&[bytes.as_bytes()], false)
}

fn with_headers(lines: &str) -> Result<Seen, DecodeError> {
    whole(&format!("HTTP/1.1 200 OK\r\n{lines}\r\nabc"))
}

/// One of each kind that nodes send.
const CORPUS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1A; a=\"b\"\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3  \r\nabc\r\n000\r\nX-Sum: 1\r\nY: 2\r\n\r\nrest",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.0 200 OK\r\nServer: old\r\n\r\nuntil the end",
    "HTTP/1.1 204 No Content\r\nKeep-Alive: timeout=5, max=100\r\n\r\n",
    "HTTP/1.1 404\r\nConnection: close\r\nContent-Length: 3\r\nAccess-Control-Allow-Origin:\r\n\r\n404",
    "HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "HTTP/1.1 200 OK\r\nX-Bytes: \u{e9}\u{df}\r\nX-Bytes: two\r\nContent-Length: 1\r\n\r\nx",
];

#[test]
fn every_split_in_two_and_byte_by_byte_reads_the_same() {
    for text in CORPUS {
        let bytes = text.as_bytes();
        let expected = read(&[bytes], false).expect(text);
        for at in 0..=bytes.len() {
            assert_eq!(read(&[&bytes[..at], &bytes[at..]], false).as_ref(), Ok(&expected), "{text} split at {at}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(read(&single, false).as_ref(), Ok(&expected), "{text} byte by byte");
    }
}

#[test]
fn every_proper_prefix_is_a_cut() {
    for text in CORPUS.iter().filter(|t| !t.starts_with("HTTP/1.0")) {
        let bytes = text.as_bytes();
        let end = bytes.len() - whole(text).expect(text).rest;
        for at in 0..end {
            let error = read(&[&bytes[..at]], false).expect_err("cut");
            let expected = [DecodeError::ClosedEarly, DecodeError::CutHead, DecodeError::CutBody];
            assert!(expected.contains(&error), "{text} cut at {at}: {error}");
        }
    }
    assert_eq!(whole(""), Err(DecodeError::ClosedEarly));
    assert_eq!(whole("HTTP/1.1 100 Continue\r\n\r\n"), Err(DecodeError::ClosedEarly));
}

#[test]
fn bodies_and_rests() {
    let bodies = ["hello", "helloabcdefghijklmnopqrstuvwxyz", "abc", "", "until the end", "", "404", "ok", "x"];
    for (text, body) in CORPUS.iter().zip(bodies) {
        let seen = whole(text).expect(text);
        assert_eq!(seen.body, body.as_bytes(), "{text}");
        assert_eq!(seen.rest, if text.ends_with("rest") { 4 } else { 0 });
    }
}

#[test]
fn framing_is_taken_literally_or_refused() {
    let framing = |lines: &str| with_headers(lines).map(|seen| (seen.framing, seen.close));
    assert_eq!(framing("Content-Length: 3\r\n"), Ok((Framing::Length(3), false)));
    assert_eq!(framing("Content-Length: 003\r\n"), Ok((Framing::Length(3), false)));
    assert_eq!(framing(""), Ok((Framing::UntilClose, true)));
    assert_eq!(framing("Transfer-Encoding: identity\r\nContent-Length: 3\r\n"), Ok((Framing::Length(3), false)));
    for bad in ["", "-1", "+3", "3a", "0x3", "3, 3", "3 3", "99999999999999999999"] {
        assert_eq!(framing(&format!("Content-Length: {bad}\r\n")), Err(DecodeError::Length), "{bad}");
    }
    assert_eq!(framing("Content-Length: 3\r\nContent-Length: 3\r\n"), Err(DecodeError::Length));
    assert_eq!(framing("Content-Length: 3\r\nContent-Length: 4\r\n"), Err(DecodeError::Length));
    for bad in ["gzip", "gzip, chunked", "chunked, gzip", "chunked, chunked", "xchunked"] {
        assert_eq!(framing(&format!("Transfer-Encoding: {bad}\r\n")), Err(DecodeError::TransferEncoding), "{bad}");
    }
}

#[test]
fn chunked_wins_over_a_length_and_closes() {
    let seen = whole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
    let seen = seen.expect("read");
    assert_eq!((seen.framing, seen.close, seen.body), (Framing::Chunked, true, b"a".to_vec()));
    let old = whole("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(old.map(|seen| seen.close), Ok(true));
}

#[test]
fn no_body_where_there_is_none() {
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n";
    let seen = read(&[head], true).expect("an answer to HEAD");
    assert_eq!((seen.framing, seen.body.len(), seen.close), (Framing::None, 0, false));
    let bare = read(&[b"HTTP/1.1 200 OK\r\n\r\n"], true).expect("Ollama's HEAD without framing");
    assert_eq!((bare.framing, bare.close), (Framing::None, false));
    for status in [204, 304] {
        let seen = whole(&format!("HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n")).expect("read");
        assert_eq!((seen.framing, seen.close), (Framing::None, false));
    }
}

#[test]
fn reuse_follows_version_and_connection() {
    let close = |version: &str, lines: &str| {
        whole(&format!("HTTP/{version} 200 OK\r\n{lines}Content-Length: 0\r\n\r\n")).map(|seen| seen.close)
    };
    assert_eq!(close("1.1", ""), Ok(false));
    assert_eq!(close("1.1", "Connection: keep-alive\r\n"), Ok(false));
    assert_eq!(close("1.1", "Connection: Close\r\n"), Ok(true));
    assert_eq!(close("1.1", "Connection: x, close\r\n"), Ok(true));
    assert_eq!(close("1.1", "Connection: x\r\nConnection: close\r\n"), Ok(true));
    assert_eq!(close("1.0", ""), Ok(true));
    assert_eq!(close("1.0", "Connection: Keep-Alive\r\n"), Ok(false));
    assert_eq!(close("1.0", "Connection: keep-alive, close\r\n"), Ok(true));
}

#[test]
fn keep_alive_is_read() {
    let said = |value: &str| {
        let lines = format!("Keep-Alive: {value}\r\nContent-Length: 3\r\n");
        with_headers(&lines).map(|seen| (seen.keep_alive.timeout_s, seen.keep_alive.max))
    };
    assert_eq!(said("timeout=5, max=100"), Ok((Some(5), Some(100))));
    assert_eq!(said("Timeout = 5;x"), Ok((None, None)));
    assert_eq!(said("max=\"7\",TIMEOUT=0"), Ok((Some(0), Some(7))));
    assert_eq!(said("timeout=-1, max=x, what"), Ok((None, None)));
}

#[test]
fn malformed_chunks_are_errors() {
    let chunked = |body: &str| whole(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
    for bad in [
        "\r\n",
        "g\r\n",
        "-1\r\n",
        "+1\r\na\r\n",
        "0x1\r\na\r\n",
        " 1\r\na\r\n",
        "1 1\r\n",
        "1\na\r\n",
        "1\r\nab\r\n",
        "1\r\na\n",
        "1\rx",
        "1;x\ny\r\n",
        "0\r\n\n",
        "0\r\nA: b\n\r\n",
        "0\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "0\r\n: b\r\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\nA: b\r\n c\r\n\r\n",
        "0\r\nA: b\u{1}\r\n\r\n",
        "11111111111111111\r\n",
        ";x\r\n",
    ] {
        assert!(matches!(chunked(bad), Err(DecodeError::Chunk(_))), "{bad:?}: {:?}", chunked(bad));
    }
    let long = format!("1;{}\r\na\r\n", "x".repeat(5000));
    assert!(matches!(chunked(&long), Err(DecodeError::Chunk(_))));
    let trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(2000));
    assert_eq!(chunked(&trailers), Err(DecodeError::HeadTooLarge { max: MAX }));
    // The largest size there is: the decoder waits for it and does not overflow.
    assert_eq!(chunked("ffffffffffffffff\r\nabc"), Err(DecodeError::CutBody));
}

#[test]
fn malformed_heads_are_errors() {
    for bad in [
        "hello",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.1 099 X\r\n\r\n",
        "HTTP/1.1 20 X\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: \u{0}\r\n\r\n",
        "HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA\r\n\r\n",
        "SSH-2.0-OpenSSH_9.6\r\n",
    ] {
        assert!(matches!(whole(bad), Err(DecodeError::Head(_))), "{bad:?}: {:?}", whole(bad));
    }
    assert_eq!(whole("HTTP/1.1 101 Switching Protocols\r\n\r\n"), Err(DecodeError::Upgrade));
    let endless = "HTTP/1.1 102 Processing\r\n\r\n".repeat(17);
    assert!(matches!(whole(&endless), Err(DecodeError::Head(_))));
    let many = with_headers(&"A: b\r\n".repeat(129));
    assert!(matches!(many, Err(DecodeError::Head(_))));
}

#[test]
fn the_head_is_bounded_at_any_split() {
    let of_length = |length: usize| {
        let rest = "HTTP/1.1 204 X\r\nA: \r\n\r\n".len();
        format!("HTTP/1.1 204 X\r\nA: {}\r\n\r\n", "v".repeat(length - rest)).into_bytes()
    };
    let (fits, over) = (of_length(MAX), of_length(MAX + 1));
    for step in [1, 2, 1000, 5000] {
        let pieces: Vec<&[u8]> = fits.chunks(step).collect();
        assert!(read(&pieces, false).is_ok(), "{step}");
        let pieces: Vec<&[u8]> = over.chunks(step).collect();
        assert_eq!(read(&pieces, false), Err(DecodeError::HeadTooLarge { max: MAX }), "{step}");
    }
}

#[test]
fn an_error_repeats() {
    let mut decoder = ResponseDecoder::new(false, MAX);
    assert!(decoder.feed(b"nonsense").is_err());
    assert!(decoder.feed(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    assert!(decoder.eof().is_err());
}

#[test]
fn a_request_is_one_head() {
    let mut lines = Lines::default();
    for (name, value) in [("content-type", "application/json"), ("X-A", "1"), ("x-a", "2")] {
        lines.push(name.as_bytes(), value.as_bytes());
    }
    let mut out = Vec::new();
    let mut head = RequestHead {
        method: &Method::POST,
        target: "/api/chat?x=1",
        base_path: "/base",
        host: "node:11434",
        lines: &lines,
        bearer: Some("se\r\ncret"),
        content_length: Some(u64::MAX),
    };
    encode_request(&mut out, &head);
    let expected = "POST /base/api/chat?x=1 HTTP/1.1\r\nhost: node:11434\r\ncontent-type: application/json\r\nX-A: 1\r\n\
                    x-a: 2\r\nauthorization: Bearer secret\r\ncontent-length: 18446744073709551615\r\n\r\n";
    assert_eq!(std::str::from_utf8(&out), Ok(expected));
    head = RequestHead { method: &Method::GET, bearer: None, content_length: None, ..head };
    out.clear();
    encode_request(&mut out, &head);
    let text = String::from_utf8(out).expect("text");
    assert!(!text.contains("authorization") && !text.contains("content-length"), "{text}");
}

/// Cuts `bytes` at the given places (taken modulo its length).
fn split_at<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

proptest! {
    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), cuts in proptest::collection::vec(any::<usize>(), 0..8)) {
        let _ = read(&split_at(&bytes, &cuts), false);
        let mut after_head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        after_head.extend_from_slice(&bytes);
        prop_assert_eq!(read(&[&after_head], false).ok(), read(&split_at(&after_head, &cuts), false).ok());
    }

    #[test]
    fn damaged_answers_read_the_same_at_any_split(
        which in 0..CORPUS.len(), at in any::<usize>(), byte in any::<u8>(), to_head in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = CORPUS[which].as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = byte;
        prop_assert_eq!(read(&[&bytes], to_head).ok(), read(&split_at(&bytes, &cuts), to_head).ok());
    }

    #[test]
    fn chunked_bodies_survive(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..80), 0..12),
        cuts in proptest::collection::vec(any::<usize>(), 0..12),
    ) {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for chunk in &chunks {
            bytes.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        let seen = read(&split_at(&bytes, &cuts), false).expect("well-formed");
        prop_assert_eq!(seen.body, chunks.concat());
    }
}

#[test]
fn a_run_is_split_before_the_chunk_that_holds_a_byte() {
    let chunks: Vec<String> = (1..=20).map(|n| "x".repeat(n)).collect();
    let wire: String = chunks.iter().map(|chunk| format!("{:x}\r\n{chunk}\r\n", chunk.len())).collect();
    let mut decoder = ResponseDecoder::new(false, MAX);
    decoder.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let run = decoder.run(wire.as_bytes());
    let mut remembered = 0;
    for at in 0..=wire.len() {
        let before = chunks.iter().scan(0, |end, chunk| {
            *end += chunk.len() + format!("{:x}", chunk.len()).len() + 4;
            Some(*end)
        });
        let before = before.take_while(|&end| end <= at).count();
        let Some((first, others)) = run.split_before(at) else {
            assert_eq!(remembered, 0, "what is nearer to the end is known too");
            continue;
        };
        remembered += 1;
        assert_eq!((first.count(), others.count()), (before, 20 - before), "at {at}");
        assert!(first.payloads().chain(others.payloads()).eq(run.payloads()));
        assert_eq!(first.payload_bytes() + others.payload_bytes(), run.payload_bytes());
        // The last of the first part are known as far as they were, and truly.
        for count in 1..=before {
            if let Some(last) = first.last(count) {
                assert!(last.map(<[u8]>::len).eq(before - count + 1..=before), "the last {count} before {at}");
            }
        }
    }
    assert!(remembered > 100, "the last chunks are at hand");
}
