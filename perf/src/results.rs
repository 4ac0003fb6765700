//! A file of results: every window as it was measured, and the machine it was measured on.
//!
//! Written by `run`, read by `table` and `compare`. Holds no host name and no path.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::load::Figures;
use crate::machine::Machine;
use crate::scenario::Scenario;
use crate::stats::Middle;

/// Of the file; other ones are refused.
pub(crate) const FORMAT: u32 = 1;

/// Everything but the samples.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) format: u32,
    /// When it began, UTC.
    pub(crate) taken: String,
    /// Of the working tree, with `+` where it held changes.
    pub(crate) commit: String,
    /// What somebody wanted to say about it.
    #[serde(default)]
    pub(crate) label: String,
    pub(crate) machine: Machine,
    /// Version by peer.
    pub(crate) peers: BTreeMap<String, String>,
    pub(crate) repeats: usize,
    pub(crate) window_ms: u64,
    pub(crate) warm_ms: u64,
    /// What has to be known when reading the figures (one core only, a peer that was missing).
    pub(crate) remarks: Vec<String>,
    pub(crate) scenarios: Vec<Scenario>,
}

/// One window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) scenario: String,
    pub(crate) peer: String,
    pub(crate) repeat: usize,
    pub(crate) pass: Pass,
    /// Requests a second that were offered, where that was fixed.
    pub(crate) offered: Option<f64>,
    pub(crate) figures: Figures,
    /// System calls of the proxy per answer, by name (`pass` is `syscalls`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) syscalls: BTreeMap<String, f64>,
}

/// What was done in a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pass {
    /// As fast as the connections go round.
    Closed,
    /// Arrivals at half of what the slowest peer managed.
    Half,
    /// Streams held open.
    Hold,
    /// Under strace, without any timing.
    Syscalls,
}

/// A whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    #[serde(flatten)]
    pub(crate) header: Header,
    pub(crate) samples: Vec<Sample>,
}

impl Sample {
    /// CPU time of the proxy per answer, microseconds; `None` without a proxy.
    pub(crate) fn cpu_us(&self) -> Option<f64> {
        let spent = self.figures.usage.total_ns();
        (spent > 0 && self.figures.answers > 0.0).then(|| spent as f64 / 1e3 / self.figures.answers)
    }

    /// The same of herdgate's workers alone: without polling, ledger and start.
    pub(crate) fn worker_cpu_us(&self) -> Option<f64> {
        let workers = self.figures.usage.cpu_ns.iter().filter(|(name, _)| name.starts_with("worker"));
        let spent: u64 = workers.map(|(_, ns)| ns).sum();
        (spent > 0 && self.figures.answers > 0.0).then(|| spent as f64 / 1e3 / self.figures.answers)
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.figures.answers * 1e9 / (self.figures.window_ns.max(1)) as f64
    }
}

impl Results {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
        let results: Self = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
        ensure!(results.header.format == FORMAT, "{}: format {}", path.display(), results.header.format);
        Ok(results)
    }

    /// One sample a line, so that files can be looked at and compared as text.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut out = serde_json::to_string(&self.header)?;
        ensure!(out.pop() == Some('}'), "the header is an object");
        out.push_str(",\n\"samples\":[\n");
        for (at, sample) in self.samples.iter().enumerate() {
            out.push_str(if at > 0 { ",\n" } else { "" });
            out.push_str(&serde_json::to_string(sample)?);
        }
        out.push_str("\n]}\n");
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = std::fs::File::create(path).with_context(|| format!("{}", path.display()))?;
        file.write_all(out.as_bytes())?;
        Ok(())
    }

    /// Samples of one cell of the table.
    pub(crate) fn of(&self, scenario: &str, peer: &str, pass: Pass) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |s| s.scenario == scenario && s.peer == peer && s.pass == pass)
    }

    /// Names of peers with samples of this scenario, in the order of the table.
    pub(crate) fn peers_of(&self, scenario: &str) -> Vec<&'static str> {
        let there = |peer: &&str| self.samples.iter().any(|s| s.scenario == scenario && s.peer == **peer);
        crate::peers::ALL.into_iter().filter(there).collect()
    }

    /// `figure` of herdgate over that of `peer`, repeat by repeat: what was measured within seconds of each other.
    pub(crate) fn ratios(
        &self,
        scenario: &str,
        pass: Pass,
        peer: &str,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Vec<f64> {
        let ours = self.of(scenario, "herdgate", pass);
        ours.filter_map(|our| {
            let their = self.of(scenario, peer, pass).find(|s| s.repeat == our.repeat)?;
            Some(figure(our)? / figure(their)?)
        })
        .collect()
    }

    /// The better of nginx and HAProxy by its median. Chosen once for all repeats: the lower of two noisy figures in each
    /// repeat would be lower than either of them is.
    pub(crate) fn better(&self, scenario: &str, figure: impl Fn(&Sample) -> Option<f64>) -> Option<&'static str> {
        let median = |peer| Some(Middle::of(self.of(scenario, peer, Pass::Closed).filter_map(&figure))?.median);
        let known = ["nginx", "haproxy"].into_iter().filter_map(|peer| Some((peer, median(peer)?)));
        known.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(peer, _)| peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(peer: &str, repeat: usize, cpu: u64) -> Sample {
        let mut figures = Figures { answers: 1.0, window_ns: 1, ..Figures::default() };
        figures.usage.cpu_ns.insert("worker-0".to_owned(), cpu * 1_000);
        Sample {
            scenario: "s".to_owned(),
            peer: peer.to_owned(),
            repeat,
            pass: Pass::Closed,
            offered: None,
            figures,
            syscalls: BTreeMap::new(),
        }
    }

    fn results(samples: Vec<Sample>) -> Results {
        let header = Header {
            format: FORMAT,
            taken: "2026-11-25T10:00:00Z".to_owned(),
            commit: "abc".to_owned(),
            label: String::new(),
            machine: Machine::default(),
            peers: BTreeMap::new(),
            repeats: 2,
            window_ms: 1,
            warm_ms: 1,
            remarks: Vec::new(),
            scenarios: Vec::new(),
        };
        Results { header, samples }
    }

    #[test]
    fn ratios_are_taken_within_a_repeat_and_the_better_peer_over_all() {
        let figures = [("herdgate", [10, 30]), ("nginx", [20, 10]), ("haproxy", [16, 15])];
        let samples = figures.iter().flat_map(|(peer, cpu)| (0..2).map(|n| sample(peer, n, cpu[n])));
        let results = results(samples.collect());
        assert_eq!(results.ratios("s", Pass::Closed, "nginx", Sample::cpu_us), [0.5, 3.0]);
        // Medians 15 and 15.5; the lower one of each repeat would have been 16 and 10.
        assert_eq!(results.better("s", Sample::cpu_us), Some("nginx"));
    }

    #[test]
    fn a_file_reads_as_it_was_written_and_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("below/results.json");
        let mut written = results(vec![sample("nginx", 0, 5), sample("herdgate", 0, 4)]);
        written.write(&path).unwrap();
        let read = Results::read(&path).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), serde_json::to_string(&written).unwrap());
        written.header.format += 1;
        written.write(&path).unwrap();
        assert!(Results::read(&path).is_err());
    }
}
