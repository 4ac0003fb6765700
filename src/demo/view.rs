//! What the demo prints: where to try it, a line each second, the account at the end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;

use super::traffic::CHAT;
use crate::admin;
use crate::shared::Shared;
use crate::sim::Herd;
use crate::usage::Ending;

/// The header is printed anew after this many lines.
const PAGE: u64 = 15;

/// Width of a node's column.
const COLUMN: usize = 24;

/// Addresses, and lines to paste into another terminal.
pub(super) fn introduction(gate: SocketAddr, herd: &Herd) -> String {
    let mut text = format!("herdgate http://{gate} in front of\n");
    for (place, url) in herd.urls().iter().enumerate() {
        line_to(&mut text, format_args!("  node-{} {url}", place + 1));
    }
    line_to(
        &mut text,
        format_args!(
            "try:\n  curl http://{gate}/api/tags\n  \
             curl http://{gate}/api/chat -d '{{\"model\":\"{CHAT}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n  \
             curl http://{gate}/v1/chat/completions -d '{{\"model\":\"{CHAT}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"hello\"}}]}}'\n  \
             curl -N http://{gate}/api/usage-stream\n  \
             curl http://{gate}/health; curl http://{gate}/metrics"
        ),
    );
    text.push_str("Ctrl-C ends it.\n");
    text
}

/// Figures of one node, over its models.
#[derive(Clone, Copy, Default)]
struct Figures {
    running: u64,
    requests: u64,
    output: u64,
}

fn by_node(shared: &Shared) -> BTreeMap<String, Figures> {
    let mut nodes: BTreeMap<String, Figures> = BTreeMap::new();
    for pair in admin::pairs(shared) {
        let node = nodes.entry(pair.node.to_string()).or_default();
        node.running += pair.in_flight;
        node.requests += pair.requests;
        node.output += pair.exact.output + pair.estimated.output;
    }
    nodes
}

/// One second: what waits, and what each node does.
pub(super) fn line(second: u64, shared: &Shared) -> String {
    let snapshot = shared.fleet.load();
    let mut text = String::new();
    if second % PAGE == 1 {
        let _ = write!(text, "{:>5} {:>7}", "", "waiting");
        for node in snapshot.configured() {
            let _ = write!(text, "  {:<COLUMN$}", node.name);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    let waiting: u64 = snapshot.models.values().map(|model| u64::from(model.queue.len())).sum();
    let _ = write!(text, "{second:>4}s {waiting:>7}");
    let figures = by_node(shared);
    for node in snapshot.configured() {
        let seen = figures.get(&*node.name).copied().unwrap_or_default();
        let cell = if node.up {
            format!("{} now {:>4} done {:>6}t", seen.running, seen.requests, seen.output)
        } else {
            format!("down  {:>4} done {:>6}t", seen.requests, seen.output)
        };
        let _ = write!(text, "  {cell:<COLUMN$}");
    }
    text.trim_end().to_owned()
}

/// What it all came to, the proxy's account beside the nodes' own.
pub(super) fn account(shared: &Shared, herd: &Herd) -> String {
    let sums = shared.meters.sums();
    let mut text = String::from("\nrequests by ending:");
    for (ending, count) in Ending::LABELS.into_iter().zip(sums.endings) {
        let _ = write!(text, " {ending} {count}");
    }
    line_to(
        &mut text,
        format_args!(
            "\n\n{:<8} {:<26} {:>8} {:>10} {:>10}  {:>17}",
            "node", "model", "requests", "tokens in", "tokens out", "the node says"
        ),
    );
    let own: Vec<_> = herd.nodes().iter().map(|node| node.ledger().models).collect();
    for pair in admin::pairs(shared).iter().filter(|pair| pair.starts > 0) {
        let place = shared.names.find_node(&pair.node).and_then(|id| usize::try_from(id.0).ok());
        let node = place.and_then(|place| own.get(place)).and_then(|models| models.get(&*pair.model));
        let said = node.map_or_else(String::new, |model| format!("{} / {}", model.tokens.prompt, model.tokens.output));
        line_to(
            &mut text,
            format_args!(
                "{:<8} {:<26} {:>8} {:>10} {:>10}  {said:>17}",
                pair.node, pair.model, pair.requests, pair.exact.input, pair.exact.output
            ),
        );
    }
    let estimated = sums.estimated;
    let _ = write!(text, "estimated besides (streams cut short): {} in, {} out", estimated.input, estimated.output);
    text
}

fn line_to(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(line);
    text.push('\n');
}
