//! What counting costs on a stream's way through.
//!
//! - `push/token/…`: one chunk of one token, the rule; **the number that matters: a few nanoseconds**. Ollama's line is
//!   about 130 bytes, an OpenAI event about 210.
//! - `push/burst`: 64 OpenAI events in one payload of 13 KB (line by line, since one of them might be long).
//! - `push/value/…`: a payload of a single JSON value, read as it passes: text of 1 KB, 16 KB, 1 MB, and a megabyte of
//!   vectors.
//! - `finish/…`: reading the last lines, once a request.
//! - `filter/token`, `filter/burst`: taking the injected event out, on top of `push`, only where usage was injected.
//! - `baseline/…`: serde_json over the token's line, which is what this avoids.
//!
//! Allocations of a pushed token and of the end are printed.
#![expect(clippy::unwrap_used, reason = "a bench may panic")]

#[path = "support/counted.rs"]
mod counted;

use std::hint::black_box;

use bytes::Bytes;
use counted::print_allocations;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use herdgate::dialect::Route;
use herdgate::proxy::inject::Filter;
use herdgate::proxy::tail::{RequestFacts, Tail};

const LINE: &str = "{\"model\":\"smollm2:135m\",\"created_at\":\"2026-11-23T21:39:04.235078599Z\",\"message\":{\"role\":\"assistant\",\"content\":\" It\"},\"done\":false}\n";
const EVENT: &str = "data: {\"id\":\"chatcmpl-284\",\"object\":\"chat.completion.chunk\",\"created\":1795469852,\"model\":\"smollm2:135m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" so\"},\"finish_reason\":null}]}\n\n";
const DONE: &str = "{\"model\":\"smollm2:135m\",\"created_at\":\"2026-11-23T21:39:04.245723929Z\",\"message\":{\"role\":\"assistant\",\"content\":\"\"},\"done\":true,\"done_reason\":\"stop\",\"total_duration\":1093177870,\"load_duration\":584944755,\"prompt_eval_count\":60,\"prompt_eval_duration\":260860000,\"eval_count\":18,\"eval_duration\":237477000}\n";
const USAGE: &str = "data: {\"id\":\"chatcmpl-649\",\"object\":\"chat.completion.chunk\",\"created\":1795469853,\"model\":\"smollm2:135m\",\"system_fingerprint\":\"fp_ollama\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":8,\"total_tokens\":20}}\n\ndata: [DONE]\n\n";

fn pushing(c: &mut Criterion) {
    let mut group = c.benchmark_group("push");
    for (name, route, chunk) in [("token/ollama", Route::Chat, LINE), ("token/openai", Route::V1Chat, EVENT)] {
        print_allocations(&format!("push/{name}"), move || {
            let mut tail = Tail::new(route, true);
            move || tail.push(black_box(chunk.as_bytes()))
        });
        let mut tail = Tail::new(route, true);
        group.bench_function(name, |b| b.iter(|| tail.push(black_box(chunk.as_bytes()))));
    }
    let burst = EVENT.repeat(64);
    let mut tail = Tail::new(Route::V1Chat, true);
    group.throughput(Throughput::Bytes(burst.len() as u64));
    group.bench_function("burst", |b| b.iter(|| tail.push(black_box(burst.as_bytes()))));

    let text = |lines: usize| {
        format!(
            "{{\"message\":{{\"content\":\"{}\"}},\"eval_count\":3}}",
            "All work and no play makes a long line\\n".repeat(lines)
        )
    };
    let vector = "-0.012345678,".repeat(768);
    let vectors = format!("{{\"embeddings\":[[{}0]],\"prompt_eval_count\":3}}", vector.repeat(100));
    let values = [
        ("value/text/1KB", Route::Chat, text(25)),
        ("value/text/16KB", Route::Chat, text(410)),
        ("value/text/1MB", Route::Chat, text(26_215)),
        ("value/vectors", Route::Embed, vectors),
    ];
    for (name, route, value) in values {
        group.throughput(Throughput::Bytes(value.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut tail = Tail::new(route, false);
                tail.push(black_box(value.as_bytes()));
                tail
            });
        });
    }
    group.finish();
}

fn finishing(c: &mut Criterion) {
    let request = RequestFacts { status: 200, body_bytes: 400, empty: false };
    let mut group = c.benchmark_group("finish");
    for (name, route, line, last) in [("ollama", Route::Chat, LINE, DONE), ("openai", Route::V1Chat, EVENT, USAGE)] {
        let mut tail = Tail::new(route, true);
        for _ in 0..50 {
            tail.push(line.as_bytes());
        }
        tail.push(last.as_bytes());
        assert!(tail.finish(&request).complete);
        group.bench_function(name, |b| {
            b.iter(|| {
                // Only what came since the last look makes the window turn.
                tail.push(last.as_bytes());
                black_box(&mut tail).finish(black_box(&request))
            });
        });
        print_allocations(&format!("finish/{name}"), move || {
            move || {
                black_box(tail.finish(&request));
            }
        });
    }
    group.finish();
}

fn filtering(c: &mut Criterion) {
    let mut group = c.benchmark_group("filter");
    for (name, chunk) in [("token", Bytes::from(EVENT)), ("burst", Bytes::from(EVENT.repeat(64)))] {
        let mut filter = Filter::new();
        group.throughput(Throughput::Bytes(chunk.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                filter.push(black_box(&chunk), &mut |part| {
                    black_box(part);
                })
            })
        });
    }
    group.finish();
}

fn baseline(c: &mut Criterion) {
    c.bench_function("baseline/serde", |b| {
        b.iter(|| serde_json::from_str::<serde_json::Value>(black_box(LINE)).unwrap().is_object());
    });
}

criterion_group!(benches, pushing, finishing, filtering, baseline);
criterion_main!(benches);
