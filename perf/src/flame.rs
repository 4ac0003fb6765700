//! A flamegraph of one peer at one scenario: recorded by perf, folded and drawn here; without perf, by the proxy's own
//! profiler.
//!
//! Called by `main`. The clock is perf's `cpu-clock`: virtual machines often have no hardware counters.

use std::ffi::OsStr;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use inferno::collapse::Collapse;

use crate::fetch;
use crate::load::{self, Figures, Mode};
use crate::peers::{self, Peer, Programs};
use crate::process;
use crate::run::{self, Nodes};
use crate::scenario::Scenario;

/// Samples a second.
const FREQUENCY: &str = "1999";
/// The proxy's own profiler.
const ROUTE: &str = "/herdgate/debug/flamegraph?seconds=";

/// How stacks are walked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Stacks {
    /// From the unwind tables that every release binary has.
    Dwarf,
    /// From frame pointers: lighter, for binaries built with `-C force-frame-pointers=yes`.
    FramePointers,
    /// By the proxy itself.
    InProcess,
}

/// The picture, as SVG.
pub(crate) fn draw(
    programs: &Programs,
    name: &str,
    scenario: &Scenario,
    seconds: u64,
    stacks: Stacks,
) -> anyhow::Result<Vec<u8>> {
    ensure!(name != "direct", "without a proxy there is nothing to look at");
    let dir = process::folder()?;
    let nodes = Nodes::start(scenario, programs.other_seat())?;
    let mut peer = peers::start(programs, name, &nodes.ports, dir.path(), scenario)?;
    nodes.settle()?;
    let job = job(scenario, &peer, &nodes, seconds);
    let perf = process::find("perf").filter(|_| stacks != Stacks::InProcess);
    let (picture, figures) = match perf {
        Some(perf) => recorded(&perf, programs, &peer, &job, dir.path(), stacks, &title(name, scenario))?,
        None if name == "herdgate" => by_itself(programs, &peer, &job, seconds)?,
        None => bail!("perf is not installed (Debian's package is called linux-perf); only herdgate can do without"),
    };
    peer.check()?;
    if figures.errors > 0 {
        bail!("{} errors; the first: {}", figures.errors, figures.first_error.unwrap_or_default());
    }
    Ok(picture)
}

fn title(name: &str, scenario: &Scenario) -> String {
    format!("{name}: {}", scenario.name)
}

fn job(scenario: &Scenario, peer: &Peer, nodes: &Nodes, seconds: u64) -> load::Job {
    let connections = scenario.load.connections;
    load::Job {
        scenario: scenario.clone(),
        port: peer.port,
        mode: if scenario.load.hold { Mode::Hold { connections } } else { Mode::Closed { connections } },
        warm_ms: 500,
        window_ms: seconds * 1_000,
        watch: peer.pids(),
        backend: Some(nodes.id()),
    }
}

/// Records with perf while the load runs.
fn recorded(
    perf: &Path,
    programs: &Programs,
    peer: &Peer,
    job: &load::Job,
    dir: &Path,
    stacks: Stacks,
    title: &str,
) -> anyhow::Result<(Vec<u8>, Figures)> {
    let file = dir.join("perf.data");
    let list = peer.pids().iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let graph = if stacks == Stacks::FramePointers { "fp" } else { "dwarf,16384" };
    let arguments: Vec<&OsStr> =
        ["record", "-q", "-e", "cpu-clock", "-F", FREQUENCY, "--call-graph", graph, "-p", &list, "-o"]
            .into_iter()
            .map(OsStr::new)
            .chain([file.as_os_str()])
            .collect();
    let pipes = (Stdio::null(), Stdio::null(), Stdio::inherit());
    let mut recording = process::start(programs.other_seat(), perf.as_os_str(), &arguments, pipes)?;
    let figures = run::window(job, programs.other_seat())?;
    ensure!(recording.stop(Duration::from_secs(60)), "perf does not end");
    let folded = folded(perf, &file)?;
    Ok((drawn(&folded, title)?, figures))
}

/// One line a stack: frames with semicolons, a count.
fn folded(perf: &Path, file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut script = Command::new(perf)
        // Inlined frames would be looked up one by one, which takes minutes.
        .args(["script", "--no-inline", "-F", "comm,pid,tid,time,event,ip,sym,dso", "-i"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("perf script")?;
    let output = script.stdout.take().context("its output")?;
    let mut folded = Vec::new();
    let result = inferno::collapse::perf::Folder::default().collapse(BufReader::new(output), &mut folded);
    let status = script.wait()?;
    result.context("folding what perf recorded")?;
    ensure!(status.success() && !folded.is_empty(), "perf recorded nothing");
    Ok(folded)
}

fn drawn(folded: &[u8], title: &str) -> anyhow::Result<Vec<u8>> {
    let mut options = inferno::flamegraph::Options::default();
    options.title = title.to_owned();
    "samples".clone_into(&mut options.count_name);
    let mut picture = Vec::new();
    inferno::flamegraph::from_reader(&mut options, folded, &mut picture).context("drawing")?;
    Ok(picture)
}

/// Asks the proxy's own profiler while the load runs.
fn by_itself(programs: &Programs, peer: &Peer, job: &load::Job, seconds: u64) -> anyhow::Result<(Vec<u8>, Figures)> {
    std::thread::scope(|scope| {
        let load = scope.spawn(|| run::window(job, programs.other_seat()));
        // Within the window: it opens after the warm-up.
        std::thread::sleep(Duration::from_millis(job.warm_ms));
        let answer = fetch::get(peer.port, &format!("{ROUTE}{}", seconds.saturating_sub(1).max(1)));
        let figures = load.join().ok().context("the load generator panicked")??;
        let answer = answer?;
        ensure!(
            answer.status == 200,
            "the proxy's profiler answers {} (is it enabled in perf/peers/herdgate.yaml?): {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        Ok((answer.body, figures))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_perf_prints_becomes_a_picture() {
        let script = "worker-0 10/11 5.000001:          1 cpu-clock: \n\
                      \tffffffff81000000 tcp_sendmsg ([kernel.kallsyms])\n\
                      \t    55d0c0000000 herdgate::proxy::handle (/bin/herdgate)\n\n";
        let mut folded = Vec::new();
        inferno::collapse::perf::Folder::default().collapse(script.as_bytes(), &mut folded).unwrap();
        assert_eq!(String::from_utf8_lossy(&folded), "worker-0;herdgate::proxy::handle;tcp_sendmsg 1\n");
        let picture = String::from_utf8(drawn(&folded, "a title").unwrap()).unwrap();
        assert!(picture.contains("<svg") && picture.contains("tcp_sendmsg") && picture.contains("a title"));
    }
}
