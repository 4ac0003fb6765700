//! What is needed around the binary, printed by the binary: `herdgate package`, `completions`, `man`.
//!
//! Run by `main`, which hands in the definition of its command line: completions and man pages come from the same source
//! as `--help`. The files stand in `src/package/`, as they are printed. Must never touch the system: whoever wants a file
//! somewhere redirects it there.

use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::config::{Config, DEFAULT_FILE, ShutdownConfig};

/// Which file to print.
#[derive(Args, Debug)]
pub struct PackageArgs {
    /// What for
    #[arg(value_name = "WHAT")]
    pub what: What,
    /// With `systemd`: a configuration, whose shutdown.delay and shutdown.drain say how long a stop may take
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// A file that the binary carries.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub enum What {
    /// A unit for systemd, hardened, with reload
    Systemd,
    /// A socket for systemd beside the unit, optional: a restart then refuses nobody
    Socket,
    /// A Dockerfile: the static binary alone, as user 65532
    Dockerfile,
    /// Manifests for Kubernetes: probes, grace, volume, key
    Kubernetes,
    /// The configuration with every key at its default, commented
    Config,
}

impl What {
    /// Its text.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Systemd => include_str!("package/herdgate.service"),
            Self::Socket => include_str!("package/herdgate.socket"),
            Self::Dockerfile => include_str!("package/Dockerfile"),
            Self::Kubernetes => include_str!("package/kubernetes.yaml"),
            Self::Config => DEFAULT_FILE,
        }
    }
}

/// For which shell.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Which page.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// A command; without it, the page of herdgate itself
    #[arg(value_name = "COMMAND")]
    pub command: Option<String>,
}

/// Why nothing was printed.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// No such command (exit 64).
    #[error("there is no command {0:?}")]
    NoCommand(String),
    /// Standard output does not take it.
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

/// Prints a file. A unit gives a stop the time that this configuration may take.
///
/// # Errors
/// The output's.
pub fn print(what: What, shutdown: &ShutdownConfig, out: &mut dyn Write) -> Result<(), PackageError> {
    let text = match what {
        What::Systemd => {
            let line = |shutdown: &ShutdownConfig| format!("\nTimeoutStopSec={}s\n", shutdown.patience_s());
            Cow::Owned(what.text().replacen(&line(&Config::default().shutdown), &line(shutdown), 1))
        }
        _ => Cow::Borrowed(what.text()),
    };
    Ok(out.write_all(text.as_bytes())?)
}

/// Prints completions.
///
/// # Errors
/// The output's.
pub fn completions(args: &CompletionsArgs, mut command: Command, out: &mut dyn Write) -> Result<(), PackageError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "herdgate", &mut text);
    Ok(out.write_all(&text)?)
}

/// Prints a man page.
///
/// # Errors
/// There is no such command, or the output's.
pub fn man(args: &ManArgs, mut command: Command, out: &mut dyn Write) -> Result<(), PackageError> {
    // Propagates what subcommands inherit, as parsing does.
    command.build();
    let page = match &args.command {
        None => command,
        Some(name) => {
            let found = command.find_subcommand(name).ok_or_else(|| PackageError::NoCommand(name.clone()))?;
            let title: &'static str = Box::leak(format!("herdgate-{name}").into_boxed_str());
            found.clone().name(title)
        }
    };
    Ok(clap_mangen::Man::new(page).render(out)?)
}

#[cfg(test)]
mod tests;
