//! What reading a request body costs, cache-hot.
//!
//! - `scan/text/SIZE/first|last`: a chat body whose messages are text with an escape every 30 characters or so, at places
//!   that cannot be foretold, `model` first or last in it. The whole top level is read in either case (the last `model`
//!   wins), so the two should not differ. **The number that matters is 1 KB and 16 KB**; what limits it is how often an
//!   escape is where the processor did not expect one.
//! - `scan/base64/SIZE/first|last`: one image of base64, no escapes: the search at its best.
//! - `scan/numbers/1MB`: a long `context`, which must be checked number by number: the worst that is likely.
//! - `baseline/serde/…`: serde_json into a struct of the same two members, the rest ignored.
//! - `baseline/memcpy/…`: copying the body, which the network has cost already.
//!
//! Allocations are printed: the model's name is the one thing that is copied out of a body.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;

use std::hint::black_box;

use counted::print_allocations;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use herdgate::dialect::Route;
use herdgate::proxy::scan::scan;

#[derive(serde::Deserialize)]
struct Peek<'a> {
    #[serde(borrow)]
    model: std::borrow::Cow<'a, str>,
    stream: bool,
}

fn with_model(rest: &str, first: bool) -> Vec<u8> {
    let model = r#""model":"llama3.2:latest","stream":true"#;
    if first { format!("{{{model},{rest}}}") } else { format!("{{{rest},{model}}}") }.into_bytes()
}

fn text(bytes: usize) -> String {
    const WORDS: [&str; 16] = [
        "all",
        "work",
        "and",
        "no",
        "play",
        "makes",
        "a",
        "body",
        "that",
        "is",
        "\\\"long\\\"",
        "enough",
        "to",
        "be",
        "worth\\n",
        "measuring",
    ];
    let mut random = 1_u32;
    let words = std::iter::repeat_with(|| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        WORDS[(random >> 28) as usize]
    });
    let mut text = String::new();
    for word in words {
        if text.len() >= bytes {
            break;
        }
        text.push_str(word);
        text.push(' ');
    }
    format!(r#""messages":[{{"role":"user","content":"{text}"}}]"#)
}

fn image(bytes: usize) -> String {
    let base64 = "QUJDREVG".repeat(bytes / 8);
    format!(r#""messages":[{{"role":"user","content":"?","images":["{base64}"]}}]"#)
}

fn bodies() -> Vec<(String, Route, Vec<u8>)> {
    let mut bodies = Vec::new();
    for (size, name) in [(1 << 10, "1KB"), (16 << 10, "16KB"), (1 << 20, "1MB")] {
        for (first, place) in [(true, "first"), (false, "last")] {
            bodies.push((format!("text/{name}/{place}"), Route::Chat, with_model(&text(size), first)));
            bodies.push((format!("base64/{name}/{place}"), Route::Chat, with_model(&image(size), first)));
        }
    }
    let context = format!(r#""prompt":"x","context":[{}1]"#, "12345,".repeat((1 << 20) / 6));
    bodies.push(("numbers/1MB".into(), Route::Generate, with_model(&context, false)));
    bodies
}

fn scanning(c: &mut Criterion) {
    for (name, route, body) in bodies() {
        assert_eq!(scan(&body, route).model.as_deref(), Some("llama3.2:latest"));
        let counted = body.clone();
        print_allocations(&format!("scan/{name}"), move || {
            move || {
                black_box(scan(&counted, route).streams());
            }
        });
        let mut group = c.benchmark_group("scan");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(&name, |b| b.iter(|| scan(black_box(&body), route).streams()));
        group.finish();
        let mut group = c.benchmark_group("baseline");
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(BenchmarkId::new("serde", &name), |b| {
            b.iter(|| {
                let peek: Peek<'_> = serde_json::from_slice(black_box(&body)).unwrap();
                peek.stream && peek.model.is_empty()
            });
        });
        let mut copy = vec![0; body.len()];
        group.bench_function(BenchmarkId::new("memcpy", &name), |b| {
            b.iter(|| {
                copy.copy_from_slice(black_box(&body));
                copy.first().copied()
            });
        });
        group.finish();
    }
}

criterion_group!(benches, scanning);
criterion_main!(benches);
