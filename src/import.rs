//! `herdgate import`: takes over what the ancestor counted, from its `token_counts.db` into the ledger.
//!
//! Run by `main`. Reads a copy of the database or the database itself, read-only (`file`), its three tables
//! (`database`), under the names that this gate has for nodes and models (`names`), and hands the sums to the store
//! ([`crate::usage::imported`]), or to the proxy that holds it (`proxy`); nothing is added twice. Must never write the
//! ancestor's file or anything beside it, and never guess silently: what could not be taken as it stands is said in the summary (`table`).

mod database;
mod file;
mod names;
mod proxy;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use crate::clock::Clock;
use crate::config::Config;
use crate::ids::UnixMinute;
use crate::sync::Arc;
use crate::usage::imported::{Import, Imported};
use crate::usage::ledger::{LedgerError, opener};
use crate::usage::names::Names;
use crate::usage::series;
use crate::usage::writer::Writer;

/// What to import, and how.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The ancestor's database, usually token_counts.db; it is only read, with what its -wal file holds
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Configuration file, as for `serve`: names and kinds of the nodes, and where the ledger is
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of the ledger [default: as configured]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address and port of a running proxy that holds the ledger: it imports, then [default: as configured]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Its router key; HERDGATE_KEY in the environment does not show in the list of processes [default: the first one
    /// configured]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
    /// Treat unknown configuration keys as warnings
    #[arg(long)]
    pub lenient: bool,
    /// Say what would be done, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Name of this database, where there are several: each is kept, and imported again, on its own
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub source: String,
    /// Take the place of what was imported before, where this database is no later state of it
    #[arg(long)]
    pub replace: bool,
    /// The ancestor's clock in November 2025, whose rows of the 18th to the 20th are off by its host's UTC offset: what
    /// to add to them, as +HH:MM or -HH:MM
    #[arg(long, value_name = "OFFSET", allow_hyphen_values = true, value_parser = names::offset)]
    pub november_offset: Option<Offset>,
}

/// An offset from UTC, in minutes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offset(pub i64);

/// Why an import came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// What was given is not the ancestor's database, or cannot be read.
    #[error("{}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database changed while it was read, each time (exit 75).
    #[error("{} changes while it is read: import it when the ancestor is idle or has ended", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The ledger cannot be had (exit 75 when a live process holds it).
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The proxy that holds the ledger did not do it.
    #[error("the proxy on {address} holds the ledger, and says {reason}")]
    Refused {
        /// Where it listens.
        address: std::net::SocketAddr,
        /// Its words.
        reason: String,
    },
    /// The database is no later state of what was imported before.
    #[error("nothing was imported: {} of what was imported before is not in {}, or greater than there", .count, path.display())]
    Conflict {
        /// The file.
        path: PathBuf,
        /// How many sums do not fit.
        count: usize,
    },
}

/// What an import did, in words, and how it ended.
pub struct Outcome {
    /// The summary, for stdout.
    pub summary: String,
    /// Why nothing was imported, if so.
    pub error: Option<ImportError>,
}

/// Reads the database and joins it with the ledger.
///
/// # Errors
/// [`ImportError`]; the ledger is then as it was.
pub fn run(args: &ImportArgs, config: &Config, clock: &Clock) -> Result<Outcome, ImportError> {
    let (mut import, notes) = read(args, config, clock)?;
    let data = args.data.as_ref().unwrap_or(&config.data);
    let imported = match store(&import, data) {
        // A running proxy has it: it does the same for us.
        Err(ImportError::Ledger(LedgerError::Held { path })) => {
            // Where the configuration (or the default) says, another one may listen.
            import.data = std::fs::canonicalize(data).ok().filter(|_| args.listen.is_none());
            proxy::hand_over(&import, config, key(args, config).as_deref())
                .unwrap_or(Err(ImportError::Ledger(LedgerError::Held { path })))
        }
        done => done,
    }?;
    let summary = table::summary(args, data, &imported, &notes);
    let count = imported.conflicts.len();
    let error = (count > 0).then(|| ImportError::Conflict { path: args.file.clone(), count });
    Ok(Outcome { summary, error })
}

/// What the proxy that holds the ledger is shown.
fn key(args: &ImportArgs, config: &Config) -> Option<String> {
    let variable = || std::env::var("HERDGATE_KEY").ok().filter(|key| !key.is_empty());
    let first = || config.router_keys.first().map(|key| key.secret.0.clone());
    args.key.clone().or_else(variable).or_else(first)
}

/// What the database holds, ready for the ledger, and what is to be said of it.
fn read(args: &ImportArgs, config: &Config, clock: &Clock) -> Result<(Import, names::Notes), ImportError> {
    let keep_ms = u64::try_from(config.ledger.fold_after.as_millis()).unwrap_or(u64::MAX);
    let cut =
        if config.ledger.fold_after.is_zero() { UnixMinute(0) } else { series::first_kept(clock.unix_ms(), keep_ms) };
    let places = [std::env::temp_dir(), args.data.as_ref().unwrap_or(&config.data).clone()];
    let mut gathered = names::Gathered::new(config, cut, clock.minute(), args.november_offset);
    file::with_stable(&args.file, &places, |file| {
        gathered.clear();
        database::read(file, &mut gathered)
    })?;
    let (pairs, notes) = gathered.finish();
    let (replace, dry_run) = (args.replace, args.dry_run);
    let doubtful = (notes.november > 0).then(names::doubtful);
    Ok((Import { source: args.source.clone(), cut, replace, dry_run, data: None, doubtful, pairs }, notes))
}

/// Joins an import with the store in this data directory.
fn store(import: &Import, data: &Path) -> Result<Imported, ImportError> {
    // A dry run on a directory that is not there yet makes none.
    let data = Some(data.to_owned()).filter(|data| !import.dry_run || data.join("ledger").is_dir());
    let mut writer = Writer::new(Arc::new(Names::new::<&str>(&[], &[], 0)), opener(data));
    while let Err(error) = writer.open() {
        match error {
            LedgerError::Migrating { .. } if import.dry_run => {
                let reason = "it is of an older version, and a dry run migrates nothing: start herdgate on it first";
                return Err(LedgerError::Unavailable { reason: reason.into() }.into());
            }
            LedgerError::Migrating { .. } => {}
            error => return Err(error.into()),
        }
    }
    let imported = writer.import(import)?;
    if imported.changed && !import.dry_run {
        writer.sync()?;
    }
    Ok(imported)
}

/// How long to wait before a database that changed is read again; the ancestor writes every ten seconds.
const PAUSE: Duration = Duration::from_millis(300);
