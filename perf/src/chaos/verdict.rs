//! What a chaos run showed, as a table, and whether it holds. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::client::Seen;
use super::faults::Kind;

/// Memory may grow by this much over the second half of a run; what a proxy keeps by then it keeps.
const GROWTH_MAX: f64 = 4.0 * 1024.0 * 1024.0;
/// Errors that are shown.
const SHOWN: usize = 10;

/// What the clients saw.
#[derive(Clone, Default, Debug)]
pub(crate) struct Clients {
    pub(crate) asked: u64,
    pub(crate) whole: u64,
    pub(crate) lost: u64,
    pub(crate) left: u64,
    pub(crate) in_vain: u64,
    /// Told to come back, with 503 and `Retry-After`.
    pub(crate) come_back: u64,
    pub(crate) errors: u64,
    /// Arrivals that no client was free for at their time.
    pub(crate) late: u64,
    /// When, and what.
    pub(crate) samples: Vec<String>,
}

impl Clients {
    pub(crate) fn count(&mut self, at_s: f64, seen: Seen) {
        self.asked += 1;
        match seen {
            Seen::Whole => self.whole += 1,
            Seen::Lost => self.lost += 1,
            Seen::Left => self.left += 1,
            Seen::InVain => self.in_vain += 1,
            Seen::ComeBack => {
                self.come_back += 1;
                self.sample(format!("{at_s:.1} s: 503, come back"));
            }
            Seen::Error(why) => {
                self.errors += 1;
                self.sample(format!("{at_s:.1} s: {why}"));
            }
        }
    }

    fn sample(&mut self, what: String) {
        if self.samples.len() < SHOWN {
            self.samples.push(what);
        }
    }
}

/// Tokens of one node, as somebody counted them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Tokens {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// All that the run showed.
#[derive(Clone, Default, Debug)]
pub(crate) struct Shown {
    pub(crate) seed: u64,
    pub(crate) rate: f64,
    pub(crate) seconds: u64,
    pub(crate) clients: Clients,
    pub(crate) faults: BTreeMap<Kind, u64>,
    /// Kinds that this proxy knows nothing of.
    pub(crate) without: Vec<Kind>,
    /// By node: exact tokens as the proxy counted them, and as the node did.
    pub(crate) nodes: Vec<(String, Tokens, Tokens)>,
    /// Exact and estimated tokens of all nodes by the proxy's counters, and by its ledger after a restart.
    pub(crate) counted: Tokens,
    pub(crate) stored: Tokens,
    pub(crate) in_flight: u64,
    pub(crate) in_flight_nodes: u64,
    pub(crate) sockets_lost: u64,
    pub(crate) panics: u64,
    pub(crate) retries: u64,
    /// Retries that the budget did not allow.
    pub(crate) retries_refused: u64,
    /// Resident memory of the proxy, one sample a second, bytes.
    pub(crate) memory: Vec<u64>,
    pub(crate) files: (usize, usize),
}

impl Shown {
    fn in_vain_max(&self) -> u64 {
        self.faults.iter().map(|(kind, times)| kind.in_vain() * times).sum()
    }

    /// Bytes that memory grew by over the second half, by the line that fits its samples best.
    fn growth(&self) -> f64 {
        let half = &self.memory[self.memory.len() / 2..];
        slope(half) * half.len() as f64
    }

    /// What does not hold.
    pub(crate) fn faults_found(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                found.push(what);
            }
        };
        let clients = &self.clients;
        check(clients.asked > 0, "nobody asked".to_owned());
        check(clients.errors == 0, format!("{} client errors", clients.errors));
        let (back, spent) = (clients.come_back, self.retries_refused);
        check(back <= spent, format!("{back} told to come back, though the budget of retries was spent {spent} times"));
        let most = self.in_vain_max();
        check(clients.in_vain <= most, format!("{} waited in vain, {most} at most", clients.in_vain));
        for (node, proxy, own) in &self.nodes {
            check(proxy == own, format!("{node}: the proxy counted {proxy:?}, the node {own:?}"));
        }
        check(self.counted == self.stored, format!("counted {:?}, stored {:?}", self.counted, self.stored));
        check(self.in_flight == 0, format!("{} in flight at rest", self.in_flight));
        check(self.in_flight_nodes == 0, format!("{} in flight on nodes at rest", self.in_flight_nodes));
        check(self.sockets_lost == 0, format!("{} sockets lost on nodes", self.sockets_lost));
        check(self.panics == 0, format!("{} panics", self.panics));
        check(self.growth() < GROWTH_MAX, format!("memory grew by {:.1} MiB in the second half", mib(self.growth())));
        found
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let mut row = |name: &str, text: String| {
            let _ = writeln!(out, "{name:<11} {text}");
        };
        let c = &self.clients;
        row(
            "chaos",
            format!(
                "seed {}, {:.0} requests/s for {} s, {} nodes",
                self.seed,
                self.rate,
                self.seconds,
                self.nodes.len()
            ),
        );
        row(
            "clients",
            format!(
                "{} asked: {} whole, {} lost after the first byte and told, {} left, {} waited in vain for a node that hangs \
                 (at most {}), {} told to come back, {} errors; {} began late",
                c.asked,
                c.whole,
                c.lost,
                c.left,
                c.in_vain,
                self.in_vain_max(),
                c.come_back,
                c.errors,
                c.late
            ),
        );
        for sample in &c.samples {
            row("", sample.clone());
        }
        let faults: Vec<String> = self.faults.iter().map(|(kind, times)| format!("{} {times}", kind.label())).collect();
        row("faults", format!("{}: {}", self.faults.values().sum::<u64>(), faults.join(", ")));
        if !self.without.is_empty() {
            let names: Vec<&str> = self.without.iter().map(|kind| kind.label()).collect();
            row(
                "without",
                format!("{} (this proxy has no such route, or this machine no such means)", names.join(", ")),
            );
        }
        row("retries", format!("{}; {} not made because the budget was spent", self.retries, self.retries_refused));
        for (node, proxy, own) in &self.nodes {
            let same = if proxy == own { "=" } else { "is NOT" };
            row(
                "ledger",
                format!("{node}: {} + {} tokens {same} {} + {}", proxy.input, proxy.output, own.input, own.output),
            );
        }
        let same = if self.counted == self.stored { "=" } else { "is NOT" };
        row(
            "store",
            format!(
                "{} + {} tokens counted (exact and estimated) {same} {} + {} after a restart",
                self.counted.input, self.counted.output, self.stored.input, self.stored.output
            ),
        );
        row(
            "at rest",
            format!(
                "{} in flight, {} on nodes, {} sockets lost, {} panics",
                self.in_flight, self.in_flight_nodes, self.sockets_lost, self.panics
            ),
        );
        let (first, last) = (self.memory.first().copied().unwrap_or(0), self.memory.last().copied().unwrap_or(0));
        let most = self.memory.iter().copied().max().unwrap_or(0);
        row(
            "memory",
            format!(
                "{:.1} MiB at first, {:.1} at most, {:.1} at last; second half {:+.2} MiB; files {} then {}",
                mib(first as f64),
                mib(most as f64),
                mib(last as f64),
                mib(self.growth()),
                self.files.0,
                self.files.1
            ),
        );
        let found = self.faults_found();
        row(
            "verdict",
            if found.is_empty() { "holds".to_owned() } else { format!("DOES NOT HOLD: {}", found.join("; ")) },
        );
        out
    }
}

fn mib(bytes: f64) -> f64 {
    bytes / 1_048_576.0
}

/// Of the line that fits best, per sample; 0 for fewer than two.
fn slope(samples: &[u64]) -> f64 {
    if samples.len() < 2 {
        return 0.0;
    }
    let n = samples.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let mean = samples.iter().map(|sample| *sample as f64).sum::<f64>() / n;
    let (mut above, mut below) = (0.0, 0.0);
    for (at, sample) in samples.iter().enumerate() {
        let x = at as f64 - middle;
        above += x * (*sample as f64 - mean);
        below += x * x;
    }
    above / below
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Shown {
        let tokens = Tokens { input: 5, output: 7 };
        let mut shown = Shown {
            nodes: vec![("node-1".to_owned(), tokens, tokens)],
            memory: vec![20 << 20; 60],
            faults: BTreeMap::from([(Kind::Hangs, 1)]),
            ..Shown::default()
        };
        shown.clients.count(0.0, Seen::Whole);
        shown
    }

    #[test]
    fn a_run_without_fault_holds() {
        let mut shown = well();
        shown.clients.count(1.0, Seen::InVain);
        shown.clients.count(1.0, Seen::Lost);
        assert_eq!(shown.faults_found(), [] as [String; 0]);
        assert!(shown.table().contains("verdict     holds"), "{}", shown.table());
    }

    #[test]
    fn each_fault_is_found() {
        let spoil: [fn(&mut Shown); 10] = [
            |s| s.clients.count(1.0, Seen::ComeBack),
            |s| s.clients.count(1.0, Seen::Error("x".to_owned())),
            |s| (0..3).for_each(|_| s.clients.count(1.0, Seen::InVain)),
            |s| s.nodes[0].1.output += 1,
            |s| s.stored.input += 1,
            |s| s.in_flight = 1,
            |s| s.in_flight_nodes = 1,
            |s| s.sockets_lost = 1,
            |s| s.panics = 1,
            |s| s.memory.iter_mut().enumerate().for_each(|(at, m)| *m += (at as u64) << 18),
        ];
        for (at, spoil) in spoil.into_iter().enumerate() {
            let mut shown = well();
            spoil(&mut shown);
            assert_eq!(shown.faults_found().len(), 1, "{at}: {}", shown.table());
            assert!(shown.table().contains("DOES NOT HOLD"));
        }
    }

    #[test]
    fn a_slope_is_that_of_the_best_line() {
        assert!((slope(&[10, 12, 14, 16]) - 2.0).abs() < 1e-9);
        assert!(slope(&[5, 5, 5]).abs() < 1e-9);
        assert!(slope(&[1]).abs() < 1e-9);
    }
}
