//! herdgate's performance lab: one command measures the proxy against its opponents and prints one table.
//!
//! `perf/README.md` says what is measured and how to read it. This file is the command line alone.

#![expect(clippy::disallowed_types, reason = "it measures: the clock of the machine is what it needs")]

mod accounting;
mod backend;
mod chaos;
mod compare;
mod epoll;
mod fetch;
mod flame;
mod http;
mod load;
mod machine;
mod node;
mod peers;
mod pgo;
mod process;
mod results;
mod run;
mod scenario;
mod stats;
mod syscalls;
mod table;
mod workload;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};

use crate::peers::Programs;
use crate::results::{Header, Results};

/// herdgate's performance lab.
#[derive(Parser)]
#[command(name = "herdgate-perf")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure and print the table
    Run(RunFlags),
    /// Print the table of a results file
    Table { file: PathBuf },
    /// Say what changed from one results file to another, beyond noise
    Compare { before: PathBuf, after: PathBuf },
    /// Let things go wrong behind the proxy, and see whether what it promises holds
    Chaos(chaos::Flags),
    /// Draw a flamegraph of a peer at a scenario
    Flame(FlameFlags),
    /// Build the proxy laid out by what the scenarios run of it (a quarter of an hour)
    Pgo(pgo::Flags),
    /// List scenarios and what each isolates
    List,
    #[command(hide = true)]
    Backend,
    #[command(hide = true)]
    Load,
    #[command(hide = true)]
    Exec {
        #[arg(long)]
        real_time: bool,
        core: usize,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

#[derive(clap::Args)]
struct RunFlags {
    /// Sets (quick, full) or scenarios; may be given several times, or several names with commas
    #[arg(long, value_delimiter = ',', default_value = "quick")]
    set: Vec<String>,
    /// Rounds in which every peer has one window
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=200))]
    repeats: u16,
    /// Length of a window, ms
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(50..=60_000))]
    window: u64,
    /// Before each window, ms
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    warm: u64,
    /// The proxy's binary
    #[arg(long, value_name = "PATH")]
    herdgate: Option<PathBuf>,
    /// The same, built with the locked state
    #[arg(long, value_name = "PATH")]
    locked: Option<PathBuf>,
    /// Peers, with commas; one that is named must be there
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Run all that is measured in the real-time class: latencies hold on a machine that does other work, which stands
    /// still meanwhile (needs root)
    #[arg(long)]
    real_time: bool,
    /// Count system calls too, in a pass of its own (needs strace)
    #[arg(long)]
    syscalls: bool,
    /// A word on this run, kept in the file
    #[arg(long, default_value = "")]
    label: String,
    /// Where results go
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct FlameFlags {
    scenario: String,
    #[arg(long, default_value = "herdgate")]
    peer: String,
    /// How long to look
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// How stacks are walked; `in-process` asks the proxy's own profiler, which is also what is left without perf
    #[arg(long, value_enum, default_value_t = flame::Stacks::Dwarf)]
    stacks: flame::Stacks,
    /// The proxy's binary
    #[arg(long, value_name = "PATH")]
    herdgate: Option<PathBuf>,
    /// The same, built with the locked state
    #[arg(long, value_name = "PATH")]
    locked: Option<PathBuf>,
    /// Where the picture goes
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The folder with scenarios, peers and results.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(flags) => measure(flags),
        Command::Table { file } => {
            print!("{}", table::table(&Results::read(&file)?));
            Ok(())
        }
        Command::Compare { before, after } => {
            print!("{}", compare::compare(&Results::read(&before)?, &Results::read(&after)?));
            Ok(())
        }
        Command::Chaos(flags) => chaos::run(&flags, built()),
        Command::Flame(flags) => flame(flags),
        Command::Pgo(flags) => pgo::build(&flags, root()),
        Command::List => {
            for scenario in scenario::load(&root().join("scenarios"))? {
                println!("{:<12} {:<12} {}", scenario.name, scenario.sets.join(","), scenario.isolates);
            }
            Ok(())
        }
        Command::Backend => backend::main(),
        Command::Load => load::main(),
        Command::Exec { real_time, core, command } => process::exec(process::Seat { core, real_time }, &command),
    }
}

/// Peers that take part, with their versions, and what to remark about those that do not.
fn present(programs: &Programs, named: &[String]) -> anyhow::Result<(BTreeMap<String, String>, Vec<String>)> {
    let (mut found, mut remarks) = (BTreeMap::new(), Vec::new());
    let wanted: Vec<&str> =
        if named.is_empty() { peers::ALL.to_vec() } else { named.iter().map(String::as_str).collect() };
    for peer in wanted {
        match programs.find(peer) {
            Ok((_, version)) => {
                found.insert(peer.to_owned(), version);
            }
            Err(why) if !named.is_empty() => bail!("{why}"),
            // Not said of the one that has to be asked for.
            Err(_) if peer == "locked" => {}
            Err(why) => remarks.push(format!("without {peer}: {why}")),
        }
    }
    ensure!(!found.is_empty(), "no peer at all");
    Ok((found, remarks))
}

/// Where cargo puts the proxy's release binary.
fn built() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("../target"), PathBuf::from);
    target.join("release/herdgate")
}

fn flame(flags: FlameFlags) -> anyhow::Result<()> {
    let scenario =
        scenario::choose(&scenario::load(&root().join("scenarios"))?, std::slice::from_ref(&flags.scenario))?
            .into_iter()
            .find(|scenario| scenario.name == flags.scenario)
            .context("one scenario, not a set")?;
    let programs = Programs {
        herdgate: flags.herdgate.unwrap_or_else(built),
        locked: flags.locked,
        templates: root().join("peers"),
        real_time: false,
    };
    programs.find(&flags.peer).map_err(anyhow::Error::msg)?;
    let _alone = process::alone()?;
    let picture = flame::draw(&programs, &flags.peer, &scenario, flags.seconds, flags.stacks)?;
    let out = flags.out.unwrap_or_else(|| PathBuf::from(format!("flame-{}-{}.svg", scenario.name, flags.peer)));
    std::fs::write(&out, picture).with_context(|| format!("{}", out.display()))?;
    println!("written to {}", out.display());
    Ok(())
}

fn measure(flags: RunFlags) -> anyhow::Result<()> {
    let scenarios = scenario::choose(&scenario::load(&root().join("scenarios"))?, &flags.set)?;
    let programs = Programs {
        herdgate: flags.herdgate.unwrap_or_else(built),
        locked: flags.locked,
        templates: root().join("peers"),
        real_time: flags.real_time,
    };
    let (found, mut remarks) = present(&programs, &flags.peers)?;
    if process::cores()?.len() < 2 {
        remarks
            .push("one core only: the proxy shares it with nodes and generator, nothing here is comparable".to_owned());
    }
    if flags.real_time {
        remarks.push("all that is measured ran in the real-time class".to_owned());
    }
    for remark in &remarks {
        eprintln!("{remark}");
    }
    let repeats = usize::from(flags.repeats);
    let plan = run::Plan {
        peers: peers::ALL.into_iter().filter(|peer| found.contains_key(*peer)).map(str::to_owned).collect(),
        programs,
        repeats,
        warm_ms: flags.warm,
        window_ms: flags.window,
        syscalls: flags.syscalls,
    };
    let taken = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let header = Header {
        format: results::FORMAT,
        commit: machine::commit(root()),
        label: flags.label,
        machine: machine::Machine::card(),
        peers: found,
        repeats,
        window_ms: flags.window,
        warm_ms: flags.warm,
        remarks,
        scenarios: scenarios.clone(),
        taken,
    };
    let out = flags.out.unwrap_or_else(|| run::default_out(root(), &header.taken, &header.commit));
    let mut results = Results { header, samples: Vec::new() };
    // Without a proxy there is nothing that another run could spoil.
    let proxied = plan.peers.iter().any(|peer| peer != "direct");
    let _alone = proxied.then(process::alone).transpose()?;
    let ended = run::run(&plan, &scenarios, &mut |sample| {
        eprintln!(
            "{:<12} {:<9} {} {:?}: {:.0} answers/s, CPU {:.1} us each; generator {:.0} %, nodes {:.0} % of their core",
            sample.scenario,
            sample.peer,
            sample.repeat,
            sample.pass,
            sample.rate(),
            sample.cpu_us().unwrap_or(0.0),
            sample.figures.generator_busy * 100.0,
            sample.figures.backend_busy * 100.0,
        );
        results.samples.push(sample);
    });
    // What was measured before an error is kept.
    if !results.samples.is_empty() {
        results.write(&out)?;
        println!("{}", table::table(&results));
        println!("written to {}", out.display());
    }
    ended
}
