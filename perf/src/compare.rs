//! What changed from one results file to another, and what is noise. Pure.
//!
//! Called by `main`. The rule: machines and minutes differ, so no absolute time is compared. For each scenario and each
//! reference (nginx, HAProxy; direct for latency) the figure is herdgate's ratio to the reference within a repeat. It has
//! changed when the middle halves (25 % to 75 %) of both files do not touch and the medians are more than 3 % apart, for
//! every reference that both files have. Memory is compared itself, beyond 10 %.

use std::fmt::Write as _;

use crate::results::{Pass, Results, Sample};
use crate::stats::Middle;

/// Medians closer than this are the same, whatever their spread.
const LEAST_CHANGE: f64 = 0.03;
const LEAST_MEMORY_CHANGE: f64 = 0.10;

/// What two sets of figures say of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Same,
    Less,
    More,
}

fn verdict(before: Middle, after: Middle, least: f64) -> Verdict {
    let apart = (after.median / before.median - 1.0).abs() > least;
    if apart && after.high < before.low {
        Verdict::Less
    } else if apart && after.low > before.high {
        Verdict::More
    } else {
        Verdict::Same
    }
}

/// The comparison as text.
pub(crate) fn compare(before: &Results, after: &Results) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "before: {} commit {} {}\nafter:  {} commit {} {}",
        before.header.taken,
        before.header.commit,
        before.header.label,
        after.header.taken,
        after.header.commit,
        after.header.label
    );
    if before.header.machine != after.header.machine {
        let _ = writeln!(out, "the machines differ: only ratios within a file mean anything");
    }
    let mut changes = 0;
    for scenario in &after.header.scenarios {
        if !before.header.scenarios.iter().any(|s| s.name == scenario.name) {
            let _ = writeln!(out, "{}: only in the later file", scenario.name);
            continue;
        }
        changes += one(&mut out, before, after, &scenario.name);
    }
    let _ = writeln!(out, "{changes} changes beyond noise");
    out
}

/// What is compared: its name, where it was measured, the references, the figure.
type Compared<'a> = (&'a str, Pass, &'a [&'a str], &'a dyn Fn(&Sample) -> Option<f64>);

/// Lines of one scenario; how many changes they name.
fn one(out: &mut String, before: &Results, after: &Results, name: &str) -> usize {
    let p99 = |s: &Sample| Some(s.figures.latency.p99 as f64).filter(|p99| *p99 > 0.0);
    let gap = |s: &Sample| Some(s.figures.gaps.p99 as f64).filter(|p99| *p99 > 0.0);
    let figures: [Compared; 3] = [
        ("CPU per answer", Pass::Closed, &["nginx", "haproxy"], &Sample::cpu_us),
        ("p99 at half load", Pass::Half, &["nginx", "haproxy", "direct"], &p99),
        ("p99 of gaps", Pass::Closed, &["direct"], &gap),
    ];
    let mut changes = 0;
    for (what, pass, references, figure) in figures {
        let seen: Vec<(&str, Middle, Middle)> = references
            .iter()
            .filter_map(|peer| {
                let of = |results: &Results| Middle::of(results.ratios(name, pass, peer, figure));
                Some((*peer, of(before)?, of(after)?))
            })
            .collect();
        if seen.is_empty() {
            continue;
        }
        let verdicts: Vec<Verdict> = seen.iter().map(|(_, b, a)| verdict(*b, *a, LEAST_CHANGE)).collect();
        let all = |verdict| verdicts.iter().all(|v| *v == verdict);
        let word = if all(Verdict::Less) {
            "LESS"
        } else if all(Verdict::More) {
            "MORE"
        } else {
            "same"
        };
        changes += usize::from(word != "same");
        let list: Vec<String> =
            seen.iter().map(|(peer, b, a)| format!("/ {peer} {:.2} -> {:.2}", b.median, a.median)).collect();
        let _ = writeln!(out, "{name}: {what}: {word} ({})", list.join(", "));
    }
    changes + memory(out, before, after, name)
}

fn memory(out: &mut String, before: &Results, after: &Results, name: &str) -> usize {
    let of = |results: &Results, pass| {
        Middle::of(results.of(name, "herdgate", pass).map(|s| s.figures.memory.rss as f64 / 1_048_576.0))
    };
    for pass in [Pass::Closed, Pass::Hold] {
        let (Some(b), Some(a)) = (of(before, pass), of(after, pass)) else { continue };
        let verdict = verdict(b, a, LEAST_MEMORY_CHANGE);
        if verdict != Verdict::Same {
            let word = if verdict == Verdict::Less { "LESS" } else { "MORE" };
            let _ = writeln!(out, "{name}: memory: {word} ({:.1} -> {:.1} MiB)", b.median, a.median);
            return 1;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict_of(before: &[f64], after: &[f64]) -> Verdict {
        verdict(Middle::of(before.iter().copied()).unwrap(), Middle::of(after.iter().copied()).unwrap(), LEAST_CHANGE)
    }

    #[test]
    fn a_change_needs_middle_halves_apart_and_three_percent() {
        assert_eq!(verdict_of(&[1.0, 1.1, 1.2, 1.3, 1.4], &[0.7, 0.8, 0.9, 0.95, 1.0]), Verdict::Less);
        assert_eq!(verdict_of(&[1.0, 1.0, 1.0], &[1.2, 1.3, 1.2]), Verdict::More);
        // Apart, but by two percent.
        assert_eq!(verdict_of(&[1.0, 1.0, 1.0], &[1.02, 1.02, 1.02]), Verdict::Same);
        // Medians apart, middle halves not.
        assert_eq!(verdict_of(&[0.9, 1.0, 1.4, 1.5, 1.6], &[0.8, 0.9, 1.1, 1.5, 1.6]), Verdict::Same);
    }
}
