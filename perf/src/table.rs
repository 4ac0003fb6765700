//! The table: medians over repeats, and herdgate's ratio to each peer within a repeat. Pure.
//!
//! Called by `main` after a run and for old files. Every figure in it can be calculated again from the file.

use std::fmt::Write as _;

use crate::results::{Pass, Results, Sample};
use crate::scenario::Scenario;
use crate::stats::Middle;

/// The whole table as text.
pub(crate) fn table(results: &Results) -> String {
    let mut out = String::new();
    let header = &results.header;
    let machine = &header.machine;
    let _ = writeln!(
        out,
        "{} commit {} {}\n{}, {} cores{}, {} MiB, Linux {}, {}; {} repeats of {} ms",
        header.taken,
        header.commit,
        header.label,
        machine.cpu,
        machine.cores,
        if machine.virtual_machine { " (virtual)" } else { "" },
        machine.memory_mib,
        machine.kernel,
        machine.congestion_control,
        header.repeats,
        header.window_ms
    );
    for (peer, version) in &header.peers {
        let _ = writeln!(out, "  {peer}: {version}");
    }
    for remark in &header.remarks {
        let _ = writeln!(out, "  note: {remark}");
    }
    for scenario in &header.scenarios {
        section(&mut out, results, scenario);
    }
    out
}

fn section(out: &mut String, results: &Results, scenario: &Scenario) {
    let peers = results.peers_of(&scenario.name);
    if peers.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{}: {}", scenario.name, scenario.isolates);
    if scenario.load.hold {
        held(out, results, scenario, &peers);
        return;
    }
    let gaps = scenario.answer.every_ms > 0;
    let latency = if gaps { "gap p50/p99/p99.9 us" } else { "p50/p99/p99.9 us" };
    let _ = writeln!(
        out,
        "  {:<9}{:>9} {:>17}  {:>24} {:>9}  {:>22}  {:>14}  {:>8} {:>7} {:>7}",
        "peer",
        "CPU us",
        "min..max",
        "herdgate/peer",
        "answers/s",
        latency,
        "1st byte 50/99",
        "RSS MiB",
        "vol/ans",
        "inv/s"
    );
    for peer in &peers {
        row(out, results, scenario, peer, gaps);
    }
    half(out, results, scenario, &peers);
    verdicts(out, results, scenario);
    syscalls(out, results, scenario, &peers);
}

fn middle(
    results: &Results,
    scenario: &str,
    peer: &str,
    pass: Pass,
    figure: impl Fn(&Sample) -> f64,
) -> Option<Middle> {
    Middle::of(results.of(scenario, peer, pass).map(figure))
}

fn row(out: &mut String, results: &Results, scenario: &Scenario, peer: &str, gaps: bool) {
    let name = &scenario.name;
    let median = |figure: &dyn Fn(&Sample) -> f64| {
        middle(results, name, peer, Pass::Closed, figure).map_or(0.0, |middle| middle.median)
    };
    let cpu = Middle::of(results.of(name, peer, Pass::Closed).filter_map(Sample::cpu_us));
    let ratio = Middle::of(results.ratios(name, Pass::Closed, peer, Sample::cpu_us));
    let spread = |s: &Sample| if gaps { s.figures.gaps } else { s.figures.latency };
    let us = |ns: f64| ns / 1e3;
    let latency = format!(
        "{:.0}/{:.0}/{:.0}",
        us(median(&|s| spread(s).p50 as f64)),
        us(median(&|s| spread(s).p99 as f64)),
        us(median(&|s| spread(s).p999 as f64))
    );
    let first = format!(
        "{:.0}/{:.0}",
        us(median(&|s| s.figures.first_byte.p50 as f64)),
        us(median(&|s| s.figures.first_byte.p99 as f64))
    );
    let _ = writeln!(
        out,
        "  {:<9}{:>9} {:>17}  {:>24} {:>9.0}  {:>22}  {:>14}  {:>8.1} {:>7.2} {:>7.0}",
        peer,
        cpu.map_or_else(|| "-".to_owned(), |c| format!("{:.1}", c.median)),
        cpu.map_or_else(String::new, |c| format!("{:.1}..{:.1}", c.min, c.max)),
        ratio.filter(|_| peer != "herdgate").map_or_else(String::new, shown),
        median(&Sample::rate),
        latency,
        first,
        median(&|s| s.figures.memory.rss as f64) / 1_048_576.0,
        median(&|s| s.figures.usage.voluntary_switches as f64 / s.figures.answers),
        median(&|s| s.figures.usage.involuntary_switches as f64 * 1e9 / s.figures.window_ns as f64),
    );
}

fn shown(middle: Middle) -> String {
    format!("{:.2} ({:.2}..{:.2})", middle.median, middle.min, middle.max)
}

/// Latency added to that without a proxy, at the same arrivals. "Quiet": what a peer's p99 is at most in the best quarter
/// of its windows, less the same of `direct`; noise of the machine only ever adds, and mostly to the worst hundredth.
fn half(out: &mut String, results: &Results, scenario: &Scenario, peers: &[&str]) {
    let name = &scenario.name;
    let Some(offered) = results.of(name, "direct", Pass::Half).find_map(|s| s.offered) else { return };
    let _ = writeln!(out, "  at half load ({offered:.0}/s, from the intended start), added to direct, us:");
    for peer in peers {
        let added = |quantile: &dyn Fn(&Sample) -> u64| {
            let pairs = results.of(name, peer, Pass::Half).filter_map(|s| {
                let direct = results.of(name, "direct", Pass::Half).find(|d| d.repeat == s.repeat)?;
                Some((quantile(s) as f64 - quantile(direct) as f64) / 1e3)
            });
            Middle::of(pairs)
        };
        let p50 = added(&|s| s.figures.latency.p50);
        let p99 = added(&|s| s.figures.latency.p99);
        let first = added(&|s| s.figures.first_byte.p50);
        let cpu = Middle::of(results.of(name, peer, Pass::Half).filter_map(Sample::cpu_us));
        let (Some(p50), Some(p99), Some(first)) = (p50, p99, first) else { continue };
        if *peer == "direct" {
            let own = |q: &dyn Fn(&Sample) -> u64| {
                middle(results, name, peer, Pass::Half, |s| q(s) as f64 / 1e3).map_or(0.0, |m| m.median)
            };
            let _ = writeln!(
                out,
                "    {:<9} p50 {:>7.0}  p99 {:>7.0} (itself)",
                peer,
                own(&|s| s.figures.latency.p50),
                own(&|s| s.figures.latency.p99)
            );
            continue;
        }
        let quiet = |peer| middle(results, name, peer, Pass::Half, |s| s.figures.latency.p99 as f64 / 1e3);
        let quiet = quiet(peer).zip(quiet("direct")).map_or(f64::NAN, |(own, direct)| own.low - direct.low);
        let _ = writeln!(
            out,
            "    {:<9} p50 {:>7.0}  p99 {:>7.0} ({:.0}..{:.0}), quiet {:>6.0}  first byte {:>7.0}  CPU us {:>7.1}",
            peer,
            p50.median,
            p99.median,
            p99.min,
            p99.max,
            quiet,
            first.median,
            cpu.map_or(0.0, |c| c.median)
        );
    }
}

fn verdicts(out: &mut String, results: &Results, scenario: &Scenario) {
    let name = &scenario.name;
    let own = |peer| Middle::of(results.of(name, peer, Pass::Closed).filter_map(Sample::cpu_us));
    if let Some(better) = results.better(name, Sample::cpu_us)
        && let Some(ratio) = Middle::of(results.ratios(name, Pass::Closed, better, Sample::cpu_us))
        && let (Some(ours), Some(theirs)) = (own("herdgate"), own(better))
    {
        let (quiet, minima) = (ours.low / theirs.low, ours.min / theirs.min);
        let (median, low, high) = (ratio.median, ratio.low, ratio.high);
        let _ = writeln!(
            out,
            "  herdgate / {better} (the better one), CPU: {median:.2}, middle half {low:.2}..{high:.2}; \
             of the quiet quarters {quiet:.2}, of the minima {minima:.2}"
        );
    }
    let Some(base) = &scenario.relative_to else { return };
    for (what, figure) in
        [("all threads", &Sample::cpu_us as &dyn Fn(&Sample) -> Option<f64>), ("workers alone", &Sample::worker_cpu_us)]
    {
        let pairs = results.of(&scenario.name, "herdgate", Pass::Closed).filter_map(|s| {
            let other = results.of(base, "herdgate", Pass::Closed).find(|b| b.repeat == s.repeat)?;
            Some(figure(s)? / figure(other)?)
        });
        if let Some(ratio) = Middle::of(pairs) {
            let _ = writeln!(out, "  / {base}, CPU of {what}: {}", shown(ratio));
        }
    }
}

fn syscalls(out: &mut String, results: &Results, scenario: &Scenario, peers: &[&str]) {
    for peer in peers {
        for sample in results.of(&scenario.name, peer, Pass::Syscalls) {
            let mut calls: Vec<_> = sample.syscalls.iter().filter(|(_, n)| **n >= 0.005).collect();
            calls.sort_by(|a, b| b.1.total_cmp(a.1));
            let list: Vec<String> = calls.iter().map(|(name, n)| format!("{name} {n:.2}")).collect();
            let total: f64 = sample.syscalls.values().sum();
            let _ = writeln!(out, "  system calls per answer, {peer}: {total:.2} ({})", list.join(", "));
        }
    }
}

fn held(out: &mut String, results: &Results, scenario: &Scenario, peers: &[&str]) {
    let name = &scenario.name;
    let _ = writeln!(
        out,
        "  {:<9}{:>10} {:>12} {:>12} {:>14} {:>14} {:>22}",
        "peer", "streams", "RSS before", "RSS open", "KiB a stream", "CPU us/record", "gap p50/p99/p99.9 ms"
    );
    for peer in peers {
        let median =
            |figure: &dyn Fn(&Sample) -> f64| middle(results, name, peer, Pass::Hold, figure).map_or(0.0, |m| m.median);
        let streams = scenario.load.connections as f64;
        let mib = 1_048_576.0;
        let _ = writeln!(
            out,
            "  {:<9}{:>10} {:>8.1} MiB {:>8.1} MiB {:>14.1} {:>14.1} {:>22}",
            peer,
            scenario.load.connections,
            median(&|s| s.figures.memory_before.rss as f64) / mib,
            median(&|s| s.figures.memory.rss as f64) / mib,
            median(&|s| (s.figures.memory.rss as f64 - s.figures.memory_before.rss as f64) / 1024.0 / streams),
            median(&|s| s.figures.usage.total_ns() as f64 / 1e3 / s.figures.gaps.count.max(1) as f64),
            format!(
                "{:.0}/{:.0}/{:.0}",
                median(&|s| s.figures.gaps.p50 as f64 / 1e6),
                median(&|s| s.figures.gaps.p99 as f64 / 1e6),
                median(&|s| s.figures.gaps.p999 as f64 / 1e6)
            ),
        );
    }
}
