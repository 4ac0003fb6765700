//! Where logs go, and how much of them: one subscriber for the process, whose level can be changed while it runs.
//!
//! Installed by `main`; the level is read and set by admin and by a reload. A line that is not wanted costs one relaxed
//! load, one that is wanted waits for no reader (`lines`). Must never hold what a request carries: callers log no bodies, keys or query strings.

mod lines;

use std::sync::OnceLock;

use arc_swap::ArcSwap;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

pub use self::lines::FLUSH_MAX;
use self::lines::Lines;
use crate::config::{LogConfig, LogFormat};
use crate::sync::Arc;

/// Levels, least first; what a filter for one module alone takes too.
pub const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Why the level was not changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level.
    #[error(
        "level must be one of off, error, warn, info, debug, trace, or a list such as info,herdgate::fleet=debug; not {0:?}"
    )]
    Level(String),
    /// This process writes no logs of ours (a test, a program that embeds the proxy).
    #[error("this process has no log of its own whose level could be changed")]
    Absent,
}

type Reload = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

struct Installed {
    reload: Reload,
    level: ArcSwap<String>,
}

/// Of the process, as its subscriber is.
static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Lines on their way to standard error.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Lines that were dropped because whoever reads standard error was too slow, or gone.
#[must_use]
pub fn dropped() -> u64 {
    LINES.get().map_or(0, Lines::dropped)
}

/// Waits until what was logged so far is written, for a second at most: before the process ends, or says something
/// itself.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_MAX);
    }
}

/// Says something that is no line of the log, behind all that was logged; waits for no reader longer than [`flush`] does.
pub fn say(text: &str) {
    use std::io::Write;
    match LINES.get() {
        Some(lines) => {
            let _ = lines.clone().write_all(format!("{text}\n").as_bytes());
            flush();
        }
        // A reader that has left is no reason to panic.
        None => drop(writeln!(std::io::stderr(), "{text}")),
    }
}

/// A panic is a line of the log: the standard library would write it itself, and wait for a reader that has stalled while
/// the panicking thread serves nobody.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let trace = std::backtrace::Backtrace::capture();
    let trace = (trace.status() == std::backtrace::BacktraceStatus::Captured).then(|| trace.to_string());
    let thread = std::thread::current();
    tracing::error!(
        thread = thread.name().unwrap_or_default(),
        place = info.location().map(tracing::field::display),
        message = info.payload_as_str().unwrap_or_default(),
        trace,
        "panicked"
    );
}

/// Where lines go: to the thread that writes them, or straight to standard error where there can be none.
fn writer() -> BoxMakeWriter {
    let say =
        |_: &Lines, dropped| tracing::warn!(lines = dropped, "standard error was read too slowly: lines are lost");
    match Lines::start(std::io::stderr(), say) {
        Ok(lines) => BoxMakeWriter::new(LINES.get_or_init(|| lines).clone()),
        Err(_) => BoxMakeWriter::new(std::io::stderr),
    }
}

/// Writes logs to standard error from now on, as the configuration says. Once a process; later calls change the level.
pub fn install(config: &LogConfig) {
    use std::io::IsTerminal;
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Human => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    };
    let filter = parsed(&config.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer());
    let (reload, started): (Reload, _) = if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).is_ok()), builder.try_init())
    } else {
        let builder = builder.with_target(false).with_filter_reloading();
        let handle = builder.reload_handle();
        (Box::new(move |filter| handle.reload(filter).is_ok()), builder.try_init())
    };
    let level = ArcSwap::from_pointee(config.level.clone());
    if started.is_err() || INSTALLED.set(Installed { reload, level }).is_err() {
        // Somebody else's subscriber, or ours of before: then only the level is new.
        let _ = set_level(&config.level);
        return;
    }
    std::panic::set_hook(Box::new(panicked));
}

/// The level in force; `None` where [`install`] was not called.
#[must_use]
pub fn level() -> Option<Arc<String>> {
    INSTALLED.get().map(|installed| installed.level.load_full())
}

/// Changes the level at once, on every thread.
///
/// # Errors
/// It is not a level, or there is no log of ours.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let filter = parsed(level)?;
    let installed = INSTALLED.get().ok_or(LogError::Absent)?;
    let before = installed.level.load_full();
    if *before == level {
        return Ok(());
    }
    // Said once, at whichever of the two levels shows it.
    let shown = tracing::enabled!(tracing::Level::INFO);
    let say = || tracing::info!(from = %before, to = level, "the log level is changed");
    if shown {
        say();
    }
    if !(installed.reload)(filter) {
        return Err(LogError::Absent);
    }
    installed.level.store(Arc::new(level.to_owned()));
    if !shown {
        say();
    }
    Ok(())
}

/// A level, or directives for modules: `info,herdgate::fleet=debug`. Names of modules alone would turn everything off.
fn parsed(level: &str) -> Result<EnvFilter, LogError> {
    let refused = || LogError::Level(level.chars().take(100).collect());
    let is_level = |text: &str| text.parse::<LevelFilter>().is_ok() && LEVELS.contains(&&*text.to_ascii_lowercase());
    let parts = || level.split(',').map(str::trim);
    let sound = parts().all(|part| is_level(part.rsplit('=').next().unwrap_or(part))) && parts().any(is_level);
    if !sound {
        return Err(refused());
    }
    EnvFilter::try_new(level.replace(' ', "")).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_taken_other_words_are_not() {
        for level in LEVELS.into_iter().chain(["INFO", "info,herdgate::fleet=debug", "warn, access=info"]) {
            assert!(parsed(level).is_ok(), "{level}");
        }
        for wrong in ["", "loud", "herdgate", "herdgate=debug", "5", "info,", "info,x=loud", "info;debug"] {
            assert_eq!(parsed(wrong).unwrap_err(), LogError::Level(wrong.to_owned()), "{wrong}");
        }
    }
}
