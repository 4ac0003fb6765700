//! The command line: reads the configuration, starts the proxy, waits for a signal, drains.
//!
//! The only exit codes: 0 drained or done, 1 other, 64 flags or configuration, 69 port taken or nobody there, 75 store held,
//! 77 no right to.

use std::io::{ErrorKind, Write, stdout};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use herdgate::clock::Clock;
use herdgate::config::{self, Config, Flags, UsageInjection};
use herdgate::control::operator::LogLevel;
use herdgate::demo::{self, DemoArgs};
use herdgate::gate::{self, Start, StartError};
use herdgate::import::{self, ImportArgs, ImportError};
use herdgate::log;
use herdgate::manager::Manager;
use herdgate::operator::Origin;
use herdgate::package::{self, CompletionsArgs, ManArgs, PackageArgs, PackageError};
use herdgate::remote::{self, DrainArgs, ReloadArgs, RemoteError, StatusArgs};
use herdgate::serve::{self, Signals};
use herdgate::sim::{self, SimArgs};
use herdgate::sync::spawn_thread;
use herdgate::usage::ledger::LedgerError;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Flags or configuration cannot be used.
const EXIT_CONFIG: u8 = 64;
/// Somebody listens on the port.
const EXIT_PORT_TAKEN: u8 = 69;
/// Another live process holds the ledger.
const EXIT_HELD: u8 = 75;

/// The gate in front of a herd of Ollama nodes.
///
/// Clients talk to it exactly as to one Ollama (also on the OpenAI- and Anthropic-style routes); behind it stand many
/// nodes. It sends each request to a node that has the model, preferably loaded and with a free slot, and counts every
/// token.
#[derive(Parser)]
#[command(name = "herdgate", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    ///
    /// Without a configuration it listens on 127.0.0.1:12434, uses the node http://127.0.0.1:11434 and keeps its
    /// ledger in ./herdgate-data. SIGTERM or Ctrl-C drains it; a second one ends it at once. SIGHUP reads the
    /// configuration again.
    Serve(ServeArgs),
    /// Show it at work: a simulated herd, the proxy in front, a little traffic
    ///
    /// Needs no network and no GPU, takes free ports, keeps nothing.
    Demo(DemoArgs),
    /// Run simulated Ollama nodes alone, for tests and measurements
    Sim(SimArgs),
    /// Show what runs where, as a running proxy sees it
    Status(StatusArgs),
    /// Take a node out: it finishes what it has and gets nothing new, over restarts too
    ///
    /// For a rolling upgrade: drain --wait, restart the node, undrain --wait, the next one.
    Drain(DrainArgs),
    /// Take a node in again
    Undrain(DrainArgs),
    /// Let a running proxy read its configuration again, as SIGHUP does
    ///
    /// It is validated whole; on any mistake the old one stays in force and every mistake is printed (exit 64).
    Reload(ReloadArgs),
    /// Report every mistake in a configuration at once; exit 64 if there is any
    Check(CheckArgs),
    /// Take over what nomyo-router counted, from its token_counts.db; may be run again, and adds nothing twice
    Import(ImportArgs),
    /// Print what is needed around the binary: a systemd unit, a Dockerfile, Kubernetes manifests, a configuration
    Package(PackageArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print a man page
    Man(ManArgs),
}

#[derive(Args)]
struct ServeArgs {
    /// Configuration file (YAML); without it, herdgate.yaml in this folder if there is one. An ancestor's config.yaml
    /// works as it is
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:12434]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// A node's URL; may be given several times, and replaces the nodes of the file [default: http://127.0.0.1:11434]
    #[arg(long = "node", value_name = "URL")]
    nodes: Vec<String>,
    /// Directory of the ledger [default: ./herdgate-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Worker threads [default: one per core this process may run on]
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// Treat unknown configuration keys as warnings
    #[arg(long)]
    lenient: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// Configuration file to check
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Treat unknown configuration keys as warnings
    #[arg(long)]
    lenient: bool,
}

fn main() -> ExitCode {
    spare_huge_pages();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_CONFIG) } else { ExitCode::SUCCESS };
        }
    };
    let done = match cli.command {
        Command::Serve(args) => serve_until_drained(args),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS).context("the demo failed"),
        Command::Sim(args) => {
            sim::run_cli(&args).map(|()| ExitCode::SUCCESS).context("the simulated nodes could not run")
        }
        Command::Check(args) => check(&args),
        Command::Status(args) => told(remote::status(&args)),
        Command::Drain(args) => told(remote::drain(&args)),
        Command::Undrain(args) => told(remote::undrain(&args)),
        Command::Reload(args) => told(remote::reload(&args)),
        Command::Import(args) => import(&args),
        Command::Package(args) => package(&args),
        Command::Completions(args) => printed(package::completions(&args, Cli::command(), &mut stdout())),
        Command::Man(args) => printed(package::man(&args, Cli::command(), &mut stdout())),
    };
    match done {
        Ok(code) => {
            log::flush();
            code
        }
        Err(error) => {
            log::say(&format!("herdgate: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// What a running proxy said, or why it could not be asked.
fn told(said: Result<String, RemoteError>) -> anyhow::Result<ExitCode> {
    match said {
        Ok(text) => say(&text),
        Err(error) => {
            eprintln!("herdgate: {error}");
            Ok(ExitCode::from(error.code()))
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`herdgate status | head`) is no failure.
fn say(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The allocator asks for huge pages of 2 MiB, and each thread touches several of them for a few kilobytes: 14 MB of an
/// idle proxy's 21. Where the system does not know the request, nothing is lost.
fn spare_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Reads the configuration; mistakes and warnings go to stderr, all of them.
fn configuration(origin: &mut Origin) -> Option<Config> {
    let sources = match origin.found() {
        Ok(sources) => sources,
        Err(mistake) => {
            eprintln!("{mistake}");
            return None;
        }
    };
    match config::load(&sources) {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            Some(loaded.config)
        }
        Err(mistakes) => {
            for mistake in &mistakes {
                eprintln!("{mistake}");
            }
            eprintln!("{} mistake(s) in the configuration", mistakes.len());
            None
        }
    }
}

/// Where this process' configuration comes from.
fn origin(named: Option<PathBuf>, flags: Flags) -> Origin {
    Origin { named, directory: std::env::current_dir().unwrap_or_default(), flags, env: config::process_env() }
}

fn check(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let flags = Flags { lenient: args.lenient, ..Flags::default() };
    match configuration(&mut origin(Some(args.config.clone()), flags)) {
        Some(config) => say(&config::describe(&config)),
        None => Ok(ExitCode::from(EXIT_CONFIG)),
    }
}

/// As [`say`], where the text is made while it is written.
fn printed(done: Result<(), PackageError>) -> anyhow::Result<ExitCode> {
    match done {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(PackageError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error @ PackageError::NoCommand(_)) => {
            eprintln!("herdgate: {error}");
            Ok(ExitCode::from(EXIT_CONFIG))
        }
        Err(error) => Err(error.into()),
    }
}

fn package(args: &PackageArgs) -> anyhow::Result<ExitCode> {
    let shutdown = match &args.config {
        None => Config::default().shutdown,
        Some(file) => match configuration(&mut origin(Some(file.clone()), Flags::default())) {
            Some(config) => config.shutdown,
            None => return Ok(ExitCode::from(EXIT_CONFIG)),
        },
    };
    printed(package::print(args.what, &shutdown, &mut stdout()))
}

fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let (listen, data) = (args.listen.clone(), args.data.clone());
    let flags = Flags { listen, data, lenient: args.lenient, ..Flags::default() };
    let Some(config) = configuration(&mut origin(args.config.clone(), flags)) else {
        return Ok(ExitCode::from(EXIT_CONFIG));
    };
    let done = import::run(args, &config, &Clock::system()).and_then(|outcome| {
        let said = say(&outcome.summary);
        outcome.error.map_or(Ok(said), Err)
    });
    match done {
        Ok(said) => said,
        Err(error @ (ImportError::Busy { .. } | ImportError::Ledger(LedgerError::Held { .. }))) => {
            eprintln!("herdgate: {error}");
            if matches!(error, ImportError::Ledger(_)) {
                eprintln!(
                    "herdgate: nobody listens where the configuration says; --listen says where the proxy which holds it does, --key how it \
                     is asked"
                );
            }
            Ok(ExitCode::from(EXIT_HELD))
        }
        Err(error) => Err(error.into()),
    }
}

fn serve_until_drained(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let flags =
        Flags { listen: args.listen, nodes: args.nodes, data: args.data, workers: args.workers, lenient: args.lenient };
    let mut origin = origin(args.config, flags);
    let Some(config) = configuration(&mut origin) else { return Ok(ExitCode::from(EXIT_CONFIG)) };
    log::install(&config.log);
    // What cannot be a level was a mistake in the configuration, which is not taken then.
    let log_level: LogLevel = Box::new(|level| drop(log::set_level(level)));
    let files = gate::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    // From here on a signal of that kind does not end the process.
    let mut signals = runtime.block_on(async { Signals::listen() }).context("no signals")?;
    for line in config::describe(&config).lines() {
        tracing::info!("{line}");
    }
    if config.ledger.usage_injection == UsageInjection::Auto {
        tracing::info!(
            "usage_injection is auto: Ollama nodes are asked for the usage of /v1/chat/completions streams whose client \
             did not ask, and the event that answers it is taken out again"
        );
    }
    let (configured, keyless) = (config.listen, config.router_keys.is_empty());
    let listener = match gate::listen::handed_over(&origin.env) {
        Ok(listener) => listener,
        Err(error) => return start_failed(error),
    };
    let handed_over = listener.is_some();
    let start =
        Start { origin: Some(origin), log_level: Some(log_level), listener, ..Start::fixed(config, Clock::system()) };
    let manager = Manager::of_environment();
    let gate = match runtime.block_on(serve::begin(start, &mut signals)) {
        Ok(Some(gate)) => gate,
        Ok(None) => {
            tracing::info!("signalled before it had started: ending");
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return start_failed(error),
    };
    tracing::info!(address = %gate.address(), workers = gate.shared.gauges.len(), files,
        connections = gate.shared.connection_bound(), "serving");
    if handed_over {
        tracing::info!(%configured, "the service manager's socket is used, not what `listen` says");
    }
    if keyless && !gate.address().ip().is_loopback() {
        tracing::warn!(
            "LISTENING BEYOND LOOPBACK WITHOUT A ROUTER KEY: everybody who reaches this port can use every model"
        );
    }
    let broken = runtime.block_on(serve::until_drained(&gate, &mut signals, &manager));
    // The end is bounded; whoever cannot wait for it need not.
    let at_once = move || {
        runtime.block_on(signals.another());
        tracing::warn!("signalled while ending: what is not written yet is lost");
        log::flush();
        std::process::exit(1);
    };
    if let Err(error) = spawn_thread("signals", at_once) {
        tracing::warn!(%error, "no thread for signals: the end takes its time");
    }
    tracing::info!("ending: the last flush");
    gate.end().context("the last flush of the ledger")?;
    if let Some(broken) = broken {
        anyhow::bail!("{broken} ended by itself, which is a defect of herdgate: see the log");
    }
    tracing::info!("drained");
    Ok(ExitCode::SUCCESS)
}

fn start_failed(error: StartError) -> anyhow::Result<ExitCode> {
    let code = match &error {
        StartError::Nodes(_) => EXIT_CONFIG,
        StartError::PortTaken { .. } => EXIT_PORT_TAKEN,
        StartError::Ledger(LedgerError::Held { .. }) => EXIT_HELD,
        _ => return Err(error.into()),
    };
    log::say(&format!("herdgate: {error}"));
    Ok(ExitCode::from(code))
}
