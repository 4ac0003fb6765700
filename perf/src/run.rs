//! A run: starts nodes and peers for each scenario, lets every peer have its window in turn, repeat by repeat.
//!
//! Called by `main`. Peers take turns within a repeat, so that what changes on the machine meets all of them alike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::backend::{self, Counts};
use crate::fetch;
use crate::load::{self, Figures, Mode};
use crate::peers::{self, Peer, Programs};
use crate::process::{self, Running, Seat};
use crate::results::{Pass, Sample};
use crate::scenario::Scenario;
use crate::syscalls;

/// A scenario's nodes and peers may live so long.
const GROUP_SECONDS_MAX: u64 = 3_600;
/// Connections of the pass with fixed arrivals: enough that almost nobody waits for one.
const OPEN_CONNECTIONS: usize = 128;

/// How much to measure.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) programs: Programs,
    /// Peers that are there.
    pub(crate) peers: Vec<String>,
    pub(crate) repeats: usize,
    pub(crate) warm_ms: u64,
    pub(crate) window_ms: u64,
    /// Count system calls too.
    pub(crate) syscalls: bool,
}

/// The nodes of one scenario.
pub(crate) struct Nodes {
    running: Running,
    pub(crate) ports: Vec<u16>,
}

/// One peer at one scenario.
struct Contestant {
    scenario: usize,
    peer: Peer,
}

impl Nodes {
    pub(crate) fn start(scenario: &Scenario, seat: Seat) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let pipes = (Stdio::piped(), Stdio::piped(), Stdio::inherit());
        let mut running = process::start(seat, own.as_os_str(), &["backend".as_ref()], pipes)?;
        let job = backend::Job {
            scenarios: vec![scenario.clone()],
            nodes: scenario.fleet.nodes,
            models: scenario.fleet.models,
            seconds_max: GROUP_SECONDS_MAX,
        };
        let mut input = running.child().stdin.take().context("the nodes' standard input")?;
        writeln!(input, "{}", serde_json::to_string(&job)?)?;
        let output = running.child().stdout.take().context("the nodes' standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let ports = serde_json::from_str(&line).context("the nodes' ports")?;
        Ok(Self { running, ports })
    }

    pub(crate) fn id(&self) -> u32 {
        self.running.id()
    }

    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        let port = *self.ports.first().context("a node")?;
        Ok(serde_json::from_slice(&fetch::get(port, "/perf/counts")?.body)?)
    }

    /// Waits until pollers have asked what they ask once: then they ask at their own pace only.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        if self.ports.len() == 1 {
            std::thread::sleep(Duration::from_millis(500));
            return Ok(());
        }
        let until = Instant::now() + Duration::from_secs(180);
        let calm = self.ports.len() as u64 + 20;
        let mut before = self.counts()?.questions;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.counts()?.questions;
            if now - before <= calm {
                return Ok(());
            }
            before = now;
        }
        bail!("{} nodes are still being asked a lot after three minutes", self.ports.len())
    }
}

/// One window in a process of its own.
pub(crate) fn window(job: &load::Job, seat: Seat) -> anyhow::Result<Figures> {
    let own = std::env::current_exe()?;
    let pipes = (Stdio::piped(), Stdio::piped(), Stdio::inherit());
    let mut running = process::start(seat, own.as_os_str(), &["load".as_ref()], pipes)?;
    let mut input = running.child().stdin.take().context("the generator's standard input")?;
    input.write_all(&serde_json::to_vec(job)?)?;
    drop(input);
    let mut text = String::new();
    running.child().stdout.take().context("the generator's standard output")?.read_to_string(&mut text)?;
    running.wait(Duration::from_secs(5)).context("the load generator")?;
    serde_json::from_str(&text).context("the generator's figures")
}

/// Runs scenarios, those that are compared with each other together; every sample goes to `each`.
pub(crate) fn run(plan: &Plan, scenarios: &[Scenario], each: &mut dyn FnMut(Sample)) -> anyhow::Result<()> {
    let mut groups: BTreeMap<(u32, &str), Vec<&Scenario>> = BTreeMap::new();
    for scenario in scenarios {
        let base = scenario.relative_to.as_deref().unwrap_or(&scenario.name);
        let order = scenarios.iter().find(|s| s.name == base).map_or(scenario.order, |s| s.order);
        groups.entry((order, base)).or_default().push(scenario);
    }
    for ((_, name), group) in groups {
        Group::start(plan, &group)
            .and_then(|mut running| running.run(each))
            .with_context(|| format!("scenario {name}"))?;
    }
    Ok(())
}

/// Scenarios that run interleaved, with all that serves them.
struct Group<'a> {
    plan: &'a Plan,
    scenarios: &'a [&'a Scenario],
    // Before the nodes: peers end first.
    contestants: Vec<Contestant>,
    nodes: Vec<Nodes>,
    _dir: tempfile::TempDir,
}

impl<'a> Group<'a> {
    fn start(plan: &'a Plan, scenarios: &'a [&'a Scenario]) -> anyhow::Result<Self> {
        let dir = process::folder()?;
        let (mut nodes, mut contestants) = (Vec::new(), Vec::new());
        for (at, scenario) in scenarios.iter().enumerate() {
            let running = Nodes::start(scenario, plan.programs.other_seat())?;
            for name in plan.peers.iter().filter(|name| scenario.includes(name)) {
                let place = dir.path().join(&scenario.name);
                std::fs::create_dir_all(&place)?;
                let peer = peers::start(&plan.programs, name, &running.ports, &place, scenario)
                    .with_context(|| format!("peer {name}"))?;
                contestants.push(Contestant { scenario: at, peer });
            }
            running.settle()?;
            nodes.push(running);
        }
        ensure!(!contestants.is_empty(), "no peer for it");
        Ok(Self { plan, scenarios, contestants, nodes, _dir: dir })
    }

    fn repeats(&self) -> usize {
        let most = self.scenarios.iter().filter_map(|s| s.load.repeats_max).min();
        self.plan.repeats.min(most.unwrap_or(usize::MAX))
    }

    fn run(&mut self, each: &mut dyn FnMut(Sample)) -> anyhow::Result<()> {
        let count = self.contestants.len();
        // The lowest rate of a proxy so far, by scenario.
        let mut slowest: Vec<Option<f64>> = vec![None; self.scenarios.len()];
        for repeat in 0..self.repeats() {
            // Another one begins each time.
            let order: Vec<usize> = (0..count).map(|n| (n + repeat) % count).collect();
            let mut lowest: Vec<Option<f64>> = vec![None; self.scenarios.len()];
            for &at in &order {
                let hold = self.scenario(at).load.hold;
                let connections = self.scenario(at).load.connections;
                let (pass, mode) = if hold {
                    (Pass::Hold, Mode::Hold { connections })
                } else {
                    (Pass::Closed, Mode::Closed { connections })
                };
                let sample = self.sample(at, repeat, pass, mode, None)?;
                let low = &mut lowest[self.contestants[at].scenario];
                if sample.peer != "direct" {
                    *low = Some(low.unwrap_or(f64::MAX).min(sample.rate()));
                }
                each(sample);
            }
            for (known, new) in slowest.iter_mut().zip(&lowest) {
                // Fixed by the first repeat, so that all repeats offer the same.
                *known = known.or(*new);
            }
            for &at in &order {
                if !self.scenario(at).load.half_load {
                    continue;
                }
                let Some(rate) = slowest[self.contestants[at].scenario].map(|rate| rate / 2.0) else { continue };
                let connections = OPEN_CONNECTIONS.max(self.scenario(at).load.connections * 2);
                let mode = Mode::Open { per_second: rate, connections, seed: 1 + repeat as u64 };
                each(self.sample(at, repeat, Pass::Half, mode, Some(rate))?);
            }
        }
        if self.plan.syscalls {
            self.syscalls(each)?;
        }
        Ok(())
    }

    fn scenario(&self, contestant: usize) -> &Scenario {
        self.scenarios[self.contestants[contestant].scenario]
    }

    fn job(&self, contestant: usize, mode: Mode) -> load::Job {
        let scenario = self.scenario(contestant);
        load::Job {
            scenario: scenario.clone(),
            port: self.contestants[contestant].peer.port,
            mode,
            warm_ms: self.plan.warm_ms,
            window_ms: scenario.load.window_ms.unwrap_or(0).max(self.plan.window_ms),
            watch: self.contestants[contestant].peer.pids(),
            backend: Some(self.nodes[self.contestants[contestant].scenario].id()),
        }
    }

    fn sample(
        &mut self,
        contestant: usize,
        repeat: usize,
        pass: Pass,
        mode: Mode,
        offered: Option<f64>,
    ) -> anyhow::Result<Sample> {
        let (scenario, peer) = (self.scenario(contestant).name.clone(), self.contestants[contestant].peer.name.clone());
        self.contestants[contestant].peer.check()?;
        let figures = window(&self.job(contestant, mode), self.plan.programs.other_seat())
            .with_context(|| format!("peer {peer}"))?;
        if figures.errors > 0 {
            let first = figures.first_error.as_deref().unwrap_or("");
            bail!("{peer}: {} errors in a window of {} answers; the first: {first}", figures.errors, figures.completed);
        }
        ensure!(figures.answers > 0.0, "{peer}: no answer in a whole window");
        Ok(Sample { scenario, peer, repeat, pass, offered, figures, syscalls: BTreeMap::new() })
    }

    fn syscalls(&mut self, each: &mut dyn FnMut(Sample)) -> anyhow::Result<()> {
        for at in 0..self.contestants.len() {
            let pids = self.contestants[at].peer.pids();
            if pids.is_empty() || self.scenario(at).load.hold {
                continue;
            }
            let connections = self.scenario(at).load.connections;
            let trace = syscalls::Trace::start(&pids, self.plan.programs.other_seat())?;
            let mut sample = self.sample(at, 0, Pass::Syscalls, Mode::Closed { connections }, None)?;
            sample.syscalls = trace.stop(sample.figures.completed_in_all)?;
            each(sample);
        }
        Ok(())
    }
}

/// Where a run's file goes unless somebody says otherwise.
pub(crate) fn default_out(root: &Path, taken: &str, commit: &str) -> std::path::PathBuf {
    let date: String = taken.chars().filter(|c| c.is_ascii_digit() || *c == 'T').take(13).collect();
    root.join("results").join(format!("{date}-{}.json", commit.trim_end_matches('+')))
}
