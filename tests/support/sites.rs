//! Call stacks of allocations as a person reads them: the line that allocates, then the lines that led there.
//!
//! Called by `tests/counting.rs`. Reads what `Backtrace` prints, since its frames cannot be had otherwise.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::allocations::Taken;

/// How many lines of a stack are shown.
const DEPTH: usize = 6;

/// Frames of these files decide nothing: the standard library allocates because it is told to, the runtime polls.
const PLUMBING: [&str; 3] = ["/rustc/", "tests/", "tokio-"];

/// Above it every stack is the same.
const TOP: &str = "src/worker";

/// A frame of a stack.
struct Frame {
    function: String,
    /// File and line.
    place: String,
}

/// A table: how often per unit, how many bytes at a time, where; in the order in which they occurred first.
pub(crate) fn table(taken: &[Taken], units: u64) -> String {
    let mut order: Vec<String> = Vec::new();
    let mut stacks: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for one in taken {
        let stack = told(&frames(&one.stack.to_string()));
        let (count, bytes) = stacks.entry(stack.clone()).or_insert_with(|| {
            order.push(stack);
            (0, 0)
        });
        *count += 1;
        *bytes += one.bytes;
    }
    let mut out = String::new();
    for stack in order {
        let (count, bytes) = stacks[&stack];
        let each = bytes as u64 / count;
        let _ = writeln!(out, "{}.{:02} x {each:>6} B  {stack}", count / units, count * 100 / units % 100);
    }
    out
}

fn told(frames: &[Frame]) -> String {
    let ours = frames.iter().filter(|frame| !PLUMBING.iter().any(|prefix| frame.place.starts_with(prefix)));
    let mut lines: Vec<String> = Vec::new();
    let mut last = "";
    for frame in ours.take_while(|frame| !frame.place.starts_with(TOP)) {
        if frame.place != last {
            lines.push(format!("{}  {}", frame.place, frame.function));
            last = &frame.place;
        }
    }
    lines.truncate(DEPTH);
    lines.join("\n                       ")
}

/// The frames of a printed backtrace, innermost first: `  12: function` and `             at file:line:column`.
fn frames(printed: &str) -> Vec<Frame> {
    let mut frames: Vec<Frame> = Vec::new();
    for line in printed.lines().map(str::trim) {
        if let Some(place) = line.strip_prefix("at ") {
            if let Some(frame) = frames.last_mut() {
                frame.place = short(place);
            }
        } else if let Some((_, function)) = line.split_once(": ") {
            let end = function.find('<').filter(|at| *at > 0).unwrap_or(function.len());
            frames.push(Frame { function: function[..end].to_owned(), place: "/rustc/".to_owned() });
        }
    }
    frames
}

/// Crate, file and line, without the folders before them.
fn short(place: &str) -> String {
    let place = place.rsplit_once(':').map_or(place, |(line, _)| line).trim_start_matches("./");
    match place.split_once("/registry/src/") {
        Some((_, inner)) => inner.split_once('/').map_or(inner, |(_, file)| file).to_owned(),
        None => place.to_owned(),
    }
}
