//! `herdgate-perf chaos`: the proxy before a simulated herd in which something always goes wrong, at a fixed rate of
//! arrivals, from a fixed seed; at the end a table, and whether what operations promise has held.
//!
//! Called by `main`. Starts `herdgate sim` and `herdgate serve` as processes of their own and ends them. What it promises
//! stands in [`verdict`]; faults are [`faults`]', clients [`client`]'s.

mod client;
mod faults;
mod names;
mod verdict;

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use self::client::{Errand, MODELS};
use self::faults::{Dice, Fault, Kind};
use self::names::Names;
use self::verdict::{Clients, Shown, Tokens};
use crate::accounting::Memory;
use crate::fetch;
use crate::process::{self, Running};

/// Clients that may be under way at once; a further arrival waits, and is counted as late.
const CLIENTS_MAX: usize = 256;
/// A client's thread needs little.
const STACK: usize = 256 * 1024;
/// Whatever is waited for takes no longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `herdgate-perf chaos`.
#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Of faults, arrivals and errands
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests a second, whatever becomes of them
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// How long, such as 20s or 10m
    #[arg(long = "for", default_value = "10m", value_parser = length, value_name = "TIME")]
    length: Duration,
    /// Simulated nodes
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(3..=64))]
    nodes: u16,
    /// The proxy's binary
    #[arg(long, value_name = "PATH")]
    herdgate: Option<PathBuf>,
    /// Say each fault as it comes
    #[arg(long)]
    verbose: bool,
}

fn length(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "a whole number and s or m".to_owned())?;
    let seconds = match unit {
        "s" => number,
        "m" => number * 60,
        _ => return Err("a whole number and s or m".to_owned()),
    };
    if (5..=86_400).contains(&seconds) { Ok(Duration::from_secs(seconds)) } else { Err("5 s to a day".to_owned()) }
}

/// The proxy and the herd behind it.
struct Stage {
    proxy: Running,
    port: u16,
    /// The herd's control listener, and its nodes.
    control: u16,
    nodes_at: Vec<u16>,
    _herd: Running,
    dir: tempfile::TempDir,
    /// Where the proxy can have names of its own.
    names: Option<Names>,
    program: PathBuf,
    nodes: usize,
}

/// Runs it; the error is that something does not hold.
pub(crate) fn run(flags: &Flags, built: PathBuf) -> anyhow::Result<()> {
    let program = flags.herdgate.clone().unwrap_or(built);
    ensure!(
        program.is_file(),
        "{} is not there; build it with cargo build --release --bin herdgate",
        program.display()
    );
    ensure!(flags.rate > 0.0 && flags.rate <= 10_000.0, "a rate up to 10,000 requests a second");
    let mut stage = Stage::start(&program, usize::from(flags.nodes), flags.length)?;
    let kinds = stage.kinds();
    let plan = faults::plan(flags.seed, stage.nodes, flags.length, &kinds);
    let mut shown = Shown {
        seed: flags.seed,
        rate: flags.rate,
        seconds: flags.length.as_secs(),
        without: Kind::ALL.into_iter().filter(|kind| !kinds.contains(kind)).collect(),
        ..Shown::default()
    };
    for fault in &plan {
        *shown.faults.entry(fault.kind).or_default() += 1;
    }
    shown.files.0 = stage.files();
    (shown.clients, shown.memory) = stage.perform(flags, &plan)?;
    stage.rest()?;
    shown.files.1 = stage.files();
    stage.account(&mut shown)?;
    print!("{}", shown.table());
    if shown.faults_found().is_empty() {
        return Ok(());
    }
    let kept = std::env::temp_dir().join(format!("herdgate-chaos-{}.log", flags.seed));
    std::fs::write(&kept, stage.log())?;
    bail!("it does not hold; the proxy's log is in {}", kept.display())
}

impl Stage {
    fn start(program: &Path, nodes: usize, length: Duration) -> anyhow::Result<Self> {
        let dir = process::folder()?;
        let (control, port) = (free_port()?, free_port()?);
        let text = |value: usize| value.to_string();
        // Bounded, should this process be killed.
        let most = text(usize::try_from(length.as_secs()).unwrap_or(usize::MAX).saturating_add(300));
        let (count, control_text) = (text(nodes), text(usize::from(control)));
        let mut arguments = vec!["sim", "--nodes", &count, "--port", "0", "--control", &control_text, "--for", &most];
        arguments.extend(["--slots", "8", "--load-time", "300ms", "--prompt-time", "20us", "--keep-alive", "-1s"]);
        MODELS.iter().for_each(|model| arguments.extend(["--model", model]));
        let arguments: Vec<&OsStr> = arguments.into_iter().map(OsStr::new).collect();
        let herd = process::start_anywhere(program, &arguments, log(&dir.path().join("herd.log"))?)?;
        let urls = wait("the herd", || {
            let answer = fetch::get(control, "/sim/nodes")?;
            Ok(serde_json::from_slice::<Vec<String>>(&answer.body)?)
        })?;
        let names = Names::set_up(dir.path(), nodes)?;
        let nodes_at = urls.iter().map(|url| url.rsplit(':').next().unwrap_or_default().parse());
        let nodes_at = nodes_at.collect::<Result<Vec<u16>, _>>().context("ports of the nodes")?;
        let named = |names: &Names| nodes_at.iter().enumerate().map(|(at, port)| names.url(at + 1, *port)).collect();
        let urls: Vec<String> = names.as_ref().map_or(urls, named);
        std::fs::write(dir.path().join("herdgate.yaml"), configuration(port, &urls, dir.path()))?;
        let proxy = serve(program, dir.path(), names.as_ref())?;
        let program = program.to_path_buf();
        let stage = Self { proxy, port, control, nodes_at, _herd: herd, dir, names, program, nodes };
        stage.until_ready()?;
        (0..nodes).try_for_each(|node| stage.warm(node))?;
        Ok(stage)
    }

    /// Loads every model on a node, as somebody might who does not come through the proxy: the load spreads over all.
    fn warm(&self, node: usize) -> anyhow::Result<()> {
        for model in MODELS {
            let status = post(self.nodes_at[node], "/api/generate", &format!(r#"{{"model":"{model}"}}"#))?;
            expect_ok(status, "a load")?;
        }
        Ok(())
    }

    /// Every node is up and has its models.
    fn until_ready(&self) -> anyhow::Result<()> {
        wait("the proxy", || {
            let health = self.json("/health?strict")?;
            ensure!(health["status"] == "ok", "{health}");
            Ok(())
        })
    }

    fn json(&self, path: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&fetch::get(self.port, path)?.body)?)
    }

    /// What can be done to this proxy and its herd.
    fn kinds(&self) -> Vec<Kind> {
        let has = |path: &str| post(self.port, path, "").is_ok_and(|status| status / 100 == 2);
        let drains = has("/herdgate/nodes/node-1/drain") && has("/herdgate/nodes/node-1/undrain");
        let reloads = has("/herdgate/reload");
        let there = |kind: &Kind| match kind {
            Kind::Drained => drains,
            Kind::Reload => reloads,
            Kind::Unresolved => self.names.is_some(),
            Kind::ResolverHangs => self.names.as_ref().is_some_and(Names::can_hang),
            _ => true,
        };
        Kind::ALL.into_iter().filter(there).collect()
    }

    /// Clients and faults, each at its time.
    fn perform(&mut self, flags: &Flags, plan: &[Fault]) -> anyhow::Result<(Clients, Vec<u64>)> {
        let crowd = Crowd::start(self.port)?;
        let began = Instant::now();
        let mut dice = Dice::new(flags.seed ^ 0xc1a0_5000);
        let (mut arrival, mut sample) = (Duration::ZERO, Duration::ZERO);
        let mut memory = Vec::new();
        let mut turns: Vec<(Duration, Fault, bool)> =
            plan.iter().flat_map(|fault| [(fault.from, *fault, true), (fault.to, *fault, false)]).collect();
        turns.reverse();
        loop {
            let now = began.elapsed();
            if now >= flags.length {
                break;
            }
            while arrival <= now {
                crowd.send(Errand::draw(&mut dice));
                arrival += Duration::from_secs_f64(-dice.unit().ln() / flags.rate);
            }
            if let Some((_, fault, begins)) = turns.pop_if(|(at, ..)| *at <= now) {
                if flags.verbose {
                    let what = if begins { "begins" } else { "ends" };
                    eprintln!("{:7.1} s  node-{} {} {what}", now.as_secs_f64(), fault.node + 1, fault.kind.label());
                }
                self.act(fault, begins).with_context(|| format!("{fault:?}"))?;
            }
            if sample <= now {
                sample += Duration::from_secs(1);
                memory.push(Memory::of(&[self.proxy.id()]).rss);
                if let Some(status) = self.proxy.ended() {
                    bail!("the proxy ended with {status}:\n{}", self.log());
                }
            }
            let next = turns.last().map_or(flags.length, |(at, ..)| *at).min(arrival).min(sample).min(flags.length);
            std::thread::sleep(next.saturating_sub(began.elapsed()));
        }
        Ok((crowd.finish()?, memory))
    }

    /// Makes a fault begin, or end.
    fn act(&self, fault: Fault, begins: bool) -> anyhow::Result<()> {
        let at = fault.node;
        let sim = |what: &str, body: &str| expect_ok(post(self.control, &format!("/sim/{at}/{what}"), body)?, what);
        let own = |verb: &str| {
            let path = format!("/herdgate/nodes/node-{}/{verb}", at + 1);
            expect_ok(post(self.port, &path, "")?, verb)
        };
        let names = self.names.as_ref().context("names");
        match (fault.kind, begins) {
            (Kind::Unresolved, true) => names?.fail(),
            (Kind::ResolverHangs, true) => names?.hang(),
            (Kind::Unresolved | Kind::ResolverHangs, false) => names?.heal(),
            (Kind::Killed, true) => sim("kill", ""),
            (Kind::Killed, false) => {
                sim("restart", "")?;
                self.warm(at)
            }
            (Kind::Drained, true) => own("drain"),
            (Kind::Drained, false) => own("undrain"),
            (Kind::Reload, _) => {
                let pid = i32::try_from(self.proxy.id()).ok().and_then(Pid::from_raw).context("a process id")?;
                Ok(rustix::process::kill_process(pid, Signal::HUP)?)
            }
            (Kind::EmptyTags, true) => {
                // It restarts, and its disk is not there.
                sim("fault", Kind::EmptyTags.fault().unwrap_or_default())?;
                sim("kill", "")?;
                sim("restart", "")
            }
            (kind, true) => sim("fault", kind.fault().unwrap_or_default()),
            (Kind::EmptyTags, false) => {
                sim("clear", "")?;
                self.warm(at)
            }
            (_, false) => sim("clear", ""),
        }
    }

    /// Until nothing is under way any more, or a minute has passed: what is left then is told.
    fn rest(&self) -> anyhow::Result<()> {
        for at in 0..self.nodes {
            post(self.control, &format!("/sim/{at}/clear"), "")?;
        }
        let quiet = wait("rest", || {
            let metrics = Metrics::of(self.port)?;
            ensure!(metrics.sum("herdgate_in_flight", &[]) == 0, "in flight");
            ensure!(metrics.sum("herdgate_ledger_rows_unwritten", &[]) == 0, "unwritten rows");
            ensure!(self.ledgers()?.iter().all(|node| node["in_flight"] == 0), "in flight on nodes");
            Ok(())
        });
        if let Err(why) = quiet {
            eprintln!("{why:#}");
        }
        Ok(())
    }

    /// What the nodes counted.
    fn ledgers(&self) -> anyhow::Result<Vec<Value>> {
        let answer = fetch::get(self.control, "/sim/ledger")?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    /// Whose tokens are whose; ends the proxy and starts it again to see what was stored.
    fn account(&mut self, shown: &mut Shown) -> anyhow::Result<()> {
        let (metrics, ledgers) = (Metrics::of(self.port)?, self.ledgers()?);
        let tokens = |family: &str, node: &str| {
            let sum = |kind: &str| metrics.sum(family, &[("node", node), ("kind", kind)]);
            Tokens { input: sum("input"), output: sum("output") }
        };
        for (at, own) in ledgers.iter().enumerate() {
            let name = format!("node-{}", at + 1);
            let exact = tokens("herdgate_tokens_total", &name);
            let guessed = tokens("herdgate_tokens_estimated_total", &name);
            shown.counted.input += exact.input + guessed.input;
            shown.counted.output += exact.output + guessed.output;
            let figure = |key: &str| own[key].as_u64().unwrap_or(0);
            let own = Tokens { input: figure("prompt_tokens"), output: figure("output_tokens") };
            shown.in_flight_nodes += figure("in_flight");
            shown.sockets_lost += figure("sockets_lost");
            shown.nodes.push((name, exact, own));
        }
        shown.in_flight = metrics.sum("herdgate_in_flight", &[]);
        shown.panics = metrics.sum("herdgate_handler_panics_total", &[]);
        shown.retries = metrics.sum("herdgate_retries_total", &[]);
        shown.retries_refused = metrics.sum("herdgate_retries_refused_total", &[]);
        ensure!(self.proxy.stop(PATIENCE), "the proxy does not end:\n{}", self.log());
        self.proxy = serve(&self.program, self.dir.path(), self.names.as_ref())?;
        self.until_ready()?;
        // (Asked after the restart: these come from the store alone.)
        let counts = self.json("/api/token_counts")?;
        for node in counts["breakdown"].as_array().context("no breakdown")? {
            let figure = |key: &str| node[key].as_u64().unwrap_or(0);
            shown.stored.input += figure("input_tokens");
            shown.stored.output += figure("output_tokens");
        }
        Ok(())
    }

    fn files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.proxy.id())).map_or(0, Iterator::count)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("proxy.log")).unwrap_or_default()
    }
}

/// The clients' threads.
struct Crowd {
    errands: mpsc::SyncSender<(Instant, Errand)>,
    threads: Vec<std::thread::JoinHandle<()>>,
    seen: Arc<Mutex<Clients>>,
}

impl Crowd {
    #[expect(clippy::disallowed_methods, reason = "clients are threads of the lab's own, with small stacks")]
    fn start(port: u16) -> anyhow::Result<Self> {
        let (errands, taken) = mpsc::sync_channel::<(Instant, Errand)>(1 << 16);
        let (taken, seen) = (Arc::new(Mutex::new(taken)), Arc::new(Mutex::new(Clients::default())));
        let began = Instant::now();
        let mut threads = Vec::new();
        for _ in 0..CLIENTS_MAX {
            let (taken, seen) = (Arc::clone(&taken), Arc::clone(&seen));
            let work = move || loop {
                let Ok(Ok((due, errand))) = taken.lock().map(|taken| taken.recv()) else { return };
                let late = due.elapsed() > Duration::from_millis(200);
                let at_s = began.elapsed().as_secs_f64();
                let saw = errand.run(port);
                let Ok(mut seen) = seen.lock() else { return };
                seen.late += u64::from(late);
                seen.count(at_s, saw);
            };
            threads.push(std::thread::Builder::new().stack_size(STACK).spawn(work).context("a client's thread")?);
        }
        Ok(Self { errands, threads, seen })
    }

    fn send(&self, errand: Errand) {
        // Full after minutes of standing still; what is dropped then was never asked.
        let _ = self.errands.try_send((Instant::now(), errand));
    }

    /// Until the last one is back.
    fn finish(self) -> anyhow::Result<Clients> {
        drop(self.errands);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
        }
        self.seen.lock().map(|seen| seen.clone()).map_err(|_| anyhow::anyhow!("a client panicked"))
    }
}

/// A page of `/metrics`.
struct Metrics(String);

impl Metrics {
    fn of(port: u16) -> anyhow::Result<Self> {
        Ok(Self(String::from_utf8(fetch::get(port, "/metrics")?.body)?))
    }

    /// The sum of a family's samples that have all these labels.
    fn sum(&self, family: &str, labels: &[(&str, &str)]) -> u64 {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            let rest = name.strip_prefix(family).filter(|rest| rest.is_empty() || rest.starts_with('{'))?;
            labels.iter().all(|label| rest.contains(label)).then(|| value.parse::<f64>().ok())?
        };
        // Counts far below 2^53.
        self.0.lines().filter_map(value).sum::<f64>() as u64
    }
}

fn configuration(port: u16, urls: &[String], dir: &Path) -> String {
    let nodes: String =
        urls.iter().enumerate().map(|(at, url)| format!("  - {{ url: {url}, name: node-{} }}\n", at + 1)).collect();
    format!(
        "listen: 127.0.0.1:{port}\ndata: {}\nworkers: 2\nnodes:\n{nodes}\
         health: {{ probe: 300ms, probe_timeout: 5s, backoff_max: 600ms, ps: 500ms, tags: 500ms, resolve: 1s }}\n\
         timeouts: {{ stream_idle: 3s, suspect_after: 4s }}\nlog: {{ level: info, access: errors }}\n",
        serde_json::json!(dir.join("data"))
    )
}

fn serve(program: &Path, dir: &Path, names: Option<&Names>) -> anyhow::Result<Running> {
    let config = dir.join("herdgate.yaml");
    let command = [program.as_os_str(), OsStr::new("serve"), OsStr::new("--config"), config.as_os_str()];
    let log = log(&dir.join("proxy.log"))?;
    match names.map(|names| names.wrapped(&command)) {
        Some((program, arguments)) => process::start_anywhere(&program, &arguments, log),
        None => process::start_anywhere(program, &command[1..], log),
    }
}

fn log(path: &Path) -> anyhow::Result<Stdio> {
    Ok(Stdio::from(File::options().create(true).append(true).open(path)?))
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn post(port: u16, path: &str, body: &str) -> anyhow::Result<u16> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    Ok(fetch::exchange(port, request.as_bytes(), Duration::from_secs(10))?.status)
}

fn expect_ok(status: u16, what: &str) -> anyhow::Result<()> {
    ensure!(status / 100 == 2, "{what}: {status}");
    Ok(())
}

/// Until it works, a minute at most.
fn wait<T>(what: &str, mut works: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let until = Instant::now() + PATIENCE;
    loop {
        match works() {
            Ok(done) => return Ok(done),
            Err(why) if Instant::now() > until => return Err(why.context(format!("{what}, after a minute"))),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_labels() {
        let metrics = Metrics("# HELP a\na{node=\"x\",kind=\"input\"} 3\na{node=\"x\",kind=\"output\"} 4\nab 9\na{node=\"y\",kind=\"input\"} 5\n".to_owned());
        assert_eq!(metrics.sum("a", &[("kind", "input")]), 8);
        assert_eq!(metrics.sum("a", &[("node", "x")]), 7);
        assert_eq!((metrics.sum("ab", &[]), metrics.sum("b", &[])), (9, 0));
    }

    #[test]
    fn lengths_have_a_unit() {
        assert_eq!(length("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(length("20s"), Ok(Duration::from_secs(20)));
        assert!(length("20").is_err() && length("1s").is_err() && length("m").is_err());
    }
}
