//! Bodies through the whole proxy: the node that is asked has the model that a Go decoder finds, and gets the bytes.
//!
//! The decoder is the one that the scanner is held against (`tests/scan/reference.rs`); here its verdict is held against
//! what two nodes with one model each received. The one change there is, the splice that asks for usage, must leave a body
//! that decodes to the same request with that one wish more.

use herdgate::dialect::Route;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::framing::{CASES, runner};
use crate::reference::{Decoded, Refused, decode};
use crate::support::client::{Client, post};
use crate::support::proxy::Proxy;
use crate::support::scripted::{self, Scripted};

const ROUTES: [(&str, Route); 6] = [
    ("/api/generate", Route::Generate),
    ("/api/chat", Route::Chat),
    ("/api/embed", Route::Embed),
    ("/v1/chat/completions", Route::V1Chat),
    ("/v1/completions", Route::V1Completions),
    ("/v1/messages", Route::V1Messages),
];

const KEYS: &[&str] =
    &["\"model\"", "\"model\"", "\"MODEL\"", "\"mod\\u0065l\"", "\"Model\"", "\"model \"", "\"name\""];
const NAMES: &[&str] = &[
    "\"a\"",
    "\"b\"",
    "\"A\"",
    "\"b:latest\"",
    "\"\\u0061\"",
    "null",
    "\"\"",
    "\"library/a\"",
    "\"nope\"",
    "\"registry.ollama.ai/library/b:latest\"",
];
const OTHERS: &[&str] = &[
    r#""stream":true"#,
    r#""stream":false"#,
    r#""stream":null"#,
    "\"\u{17f}tream\":true",
    r#""STREAM":false"#,
    r#""stream_options":{"include_usage":true}"#,
    r#""stream_options":{"include_usage":false}"#,
    r#""stream_options":null"#,
    r#""options":{"model":"b","num_ctx":5}"#,
    r#""metadata":{"model":"a","stream":true}"#,
    r#""tools":[{"model":"b"}]"#,
    r#""temperature":1e-3"#,
    r#""x":"\"model\":\"b\"""#,
    r#""model":7"#,
    r#""x":[[[[{}]]]]"#,
    "\"x\":\"\u{fffd}\\ud800\"",
];
const AFTER: &[&str] = &["", "", "", "", " ", "\n", "junk", "}", "{\"model\":\"b\"}", "\u{0}"];

/// A body, and perhaps a byte of it spoilt.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let named =
        (prop::sample::select(KEYS), prop::sample::select(NAMES)).prop_map(|(key, name)| format!("{key}:{name}"));
    let other = prop::sample::select(OTHERS).prop_map(str::to_owned);
    let members = prop::collection::vec(prop_oneof![2 => named, 3 => other], 1..6);
    let spoilt = prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (members, prop::sample::select(AFTER), spoilt).prop_map(|(members, after, spoilt)| {
        // Never an empty request: that would be a load or an unload.
        let work = r#""prompt":"x","messages":[{"role":"user","content":"x"}],"input":"x","max_tokens":3"#;
        let mut bytes = format!("{{{work},{}}}{after}", members.join(" , ")).into_bytes();
        if let Some((at, byte)) = spoilt {
            let at = at.index(bytes.len() - 1);
            bytes[at] = byte;
        }
        bytes
    })
}

/// Which node must be asked: 0, 1, either, or none (a model that nobody has).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Where {
    Node(usize),
    Either,
    Nowhere,
}

fn place(decoded: &Result<Decoded, Refused>) -> Where {
    let Ok(decoded) = decoded else { return Where::Either };
    let name = decoded.model.to_lowercase();
    let name = name.trim_start_matches("registry.ollama.ai/").trim_start_matches("library/");
    match name.trim_end_matches(":latest") {
        "a" => Where::Node(0),
        "b" => Where::Node(1),
        "" => Where::Either,
        _ => Where::Nowhere,
    }
}

const SPLICE: &str = r#","stream_options":{"include_usage":true}"#;

/// What the node got is what was sent, or differs by the splice alone, which changes one wish and nothing else.
fn same(route: Route, sent: &[u8], got: &[u8]) -> bool {
    if sent == got {
        return true;
    }
    let at = sent.iter().zip(got).take_while(|(one, other)| one == other).count();
    // The seam may lie before the first difference, where the rest of the body begins like the splice.
    let seam =
        (0..=at).rev().find(|at| got[*at..].starts_with(SPLICE.as_bytes()) && got[at + SPLICE.len()..] == sent[*at..]);
    let (Ok(before), Ok(after)) = (decode(route, sent), decode(route, got)) else { return false };
    let wish = Decoded { include_usage: Some(true), ..before.clone() };
    seam.is_some() && route == Route::V1Chat && before.stream && before.include_usage != Some(true) && after == wish
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_asked_has_the_model_that_go_finds_in_the_body() {
    let node =
        |model| Scripted::start(&[model], |_| scripted::answer("200 OK", "application/json", b"{\"done\":true}"));
    let nodes = [node("a:latest"), node("b:latest")];
    let proxy = Proxy::start(&nodes.each_ref().map(Scripted::url), "").await;
    proxy.until_listed("a:latest").await;
    proxy.until_listed("b:latest").await;
    let mut runner = runner(10);
    let cases = (body(), prop::sample::select(&ROUTES[..]));
    let mut client = Client::connect(proxy.address).await;
    let (mut wrong, mut seen) = (Vec::new(), [0; 3]);
    for _ in 0..*CASES {
        let (sent, (path, route)) = cases.new_tree(&mut runner).unwrap().current();
        let head = post(path, "");
        let head =
            String::from_utf8(head).unwrap().replace("Content-Length: 0", &format!("Content-Length: {}", sent.len()));
        client.send(&[head.as_bytes(), &sent].concat()).await;
        let answer = client.answer().await.expect("an answer");
        let expected = place(&decode(route, &sent));
        let mut asked = Vec::new();
        for (at, node) in nodes.iter().enumerate() {
            while node.untaken() > 0 {
                asked.push((at, node.next().await));
            }
        }
        let places: Vec<usize> = asked.iter().map(|(at, _)| *at).collect();
        let right = match (expected, &places[..]) {
            (Where::Node(wanted), [at]) => wanted == *at,
            (Where::Either, [_]) => true,
            (Where::Nowhere, []) => answer.status == 404,
            // What nobody has is for any node to refuse in its words.
            (Where::Nowhere, [_]) => true,
            (Where::Either, []) => answer.status >= 400,
            _ => false,
        };
        seen[match expected {
            Where::Node(_) => 0,
            Where::Either => 1,
            Where::Nowhere => 2,
        }] += 1;
        let unchanged = asked.iter().all(|(_, message)| same(route, &sent, &message.body));
        if !right || !unchanged {
            let text = String::from_utf8_lossy(&sent);
            let got: Vec<_> = asked.iter().map(|(at, message)| (*at, message.text())).collect();
            wrong.push(format!("{path} {text:?}: {expected:?}, asked {got:?}, {} {}", answer.status, answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{} bodies\n{}", wrong.len(), wrong.join("\n"));
    assert!(seen.iter().all(|count| count * 50 > *CASES), "named, unreadable, unknown: {seen:?}");
}
