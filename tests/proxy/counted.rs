//! What is counted of an answer does not depend on how its bytes came: whole chunks at once, or piece by piece.

use herdgate::dialect::Route;
use herdgate::http1::{Item, ResponseDecoder};
use herdgate::proxy::tail::{RequestFacts, Tail, TailReport};
use herdgate::proxy::upstream::Payload;
use proptest::prelude::*;

use crate::support::scripted::{chunk, chunked_head};

const FACTS: RequestFacts = RequestFacts { status: 200, body_bytes: 100, empty: false };

/// As the proxy reads an answer: a head, then runs of whole chunks, and pieces where a chunk is cut.
fn by_chunks(route: Route, reads: &[&[u8]]) -> (TailReport, u64) {
    let (mut tail, mut bytes) = (Tail::new(route, true), 0);
    let mut decoder = ResponseDecoder::new(false, 64 * 1024);
    for mut input in reads.iter().copied() {
        loop {
            let run = decoder.run(input);
            let length = run.as_bytes().len();
            if length > 0 {
                bytes += tail.push_payload(Payload::Chunks(run));
                input = &input[length..];
            }
            let (used, item) = decoder.feed(input).unwrap();
            input = &input[used..];
            match item {
                Item::Data(data) => bytes += tail.push_payload(Payload::Piece(data)),
                Item::Head(_) => {}
                Item::More | Item::End => break,
            }
        }
    }
    (tail.finish(&FACTS), bytes)
}

fn byte_by_byte(route: Route, payload: &[u8]) -> (TailReport, u64) {
    let mut tail = Tail::new(route, true);
    payload.chunks(1).for_each(|byte| tail.push(byte));
    (tail.finish(&FACTS), payload.len() as u64)
}

/// Lines of an answer, those that count among them, and longer ones than the window keeps.
fn line(events: bool) -> impl Strategy<Value = String> {
    let long = "x".repeat(1500);
    let lines = if events {
        vec![
            "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_owned(),
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3,\"total_tokens\":10}}\n\n"
                .to_owned(),
            "data: [DONE]\n\n".to_owned(),
            ": ping\n\n".to_owned(),
            "data: {\"err".to_owned(),
            "or\":{\"message\":\"x\"}}\n\n".to_owned(),
            format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{long}\"}}}}]}}\r\n\r\n"),
            "\n".to_owned(),
        ]
    } else {
        vec![
            "{\"response\":\"a\",\"done\":false}\n".to_owned(),
            "{\"response\":\"a\",\"done\":false}\n{\"response\":\"b\",\"done\":false}\n".to_owned(),
            "{\"response\":\"\",\"done\":true,\"prompt_eval_count\":7,\"eval_count\":3,\"load_duration\":5}\n"
                .to_owned(),
            format!("{{\"context\":[{}1],\"done\":true,\"eval_count\":9}}\n", "1,".repeat(800)),
            "{\"response\":\"half".to_owned(),
            " a line\",\"done\":false}\n".to_owned(),
            "{\"error\":\"x\"}\n".to_owned(),
            "\n".to_owned(),
            format!("{{\"response\":\"{long}\",\"done\":false}}\n"),
        ]
    };
    proptest::sample::select(lines)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunks_at_once_count_as_their_bytes_do(
        (events, lines) in any::<bool>().prop_flat_map(|events| (Just(events), proptest::collection::vec(line(events), 1..40))),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let route = if events { Route::V1Chat } else { Route::Generate };
        let payload = lines.concat();
        let mut wire = chunked_head("text/plain");
        lines.iter().for_each(|line| wire.extend(chunk(line.as_bytes())));
        wire.extend(b"0\r\n\r\n");
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        cuts.sort_unstable();
        let mut reads = Vec::new();
        let mut from = 0;
        for cut in cuts {
            reads.push(&wire[from..cut]);
            from = cut;
        }
        reads.push(&wire[from..]);
        prop_assert_eq!(by_chunks(route, &reads), byte_by_byte(route, payload.as_bytes()));
    }
}
