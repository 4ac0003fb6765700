//! Samples the call stacks of whatever runs, by a signal that CPU time triggers.
//!
//! Called by the flamegraph's own thread. The signal interrupts the thread that is running; the handler is pprof's, with
//! framehop as unwinder: it neither allocates nor locks, and checks each address before it reads it, where the unwinder
//! of the C library can crash a process whose stack is half built. Looking symbols up comes after the last signal.

use std::collections::BTreeMap;
use std::time::Duration;

use pprof::{Error, Frames, ProfilerGuard};
use rustix::process::{Signal, getpid, kill_process};

use crate::sync::sleep;

/// Samples per second of CPU time. A prime, so that no tick of ours runs in step with it; more than the kernel's own
/// ticks (250) would not come.
pub(super) const HERTZ: i32 = 199;

/// How often it is asked whether to go on.
const STEP: Duration = Duration::from_millis(50);

/// Looks at whether the first sample is there.
const FIRST_LOOKS: usize = 100;
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Why there is no profile.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another one is being taken.
    Busy,
    /// The system's or the profiler's words.
    Refused(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Running => Self::Busy,
            error => Self::Refused(format!("the profiler could not start: {error}")),
        }
    }
}

/// Stacks, from the thread's name to the innermost function, and how often each was seen.
pub(super) type Stacks = BTreeMap<Vec<String>, u64>;

/// Samples while `goes_on`; the stacks, and how many seconds were watched.
pub(super) fn stacks(goes_on: impl Fn() -> bool) -> Result<(Stacks, u64), Failure> {
    prepare()?;
    let profiler = ProfilerGuard::new(HERTZ)?;
    while goes_on() {
        sleep(STEP);
    }
    let report = profiler.report().build_unresolved()?;
    drop(profiler);
    let seconds = (report.timing.duration.as_secs_f64().round()) as u64;
    let mut stacks = Stacks::new();
    for (stack, count) in report.data {
        *stacks.entry(named(&Frames::from(stack))).or_default() += u64::try_from(count).unwrap_or(0);
    }
    Ok((stacks, seconds))
}

/// Makes the unwinder read what it needs of the binary and its libraries, once in the life of the process.
///
/// It does so in the handler of the first signal, where reading files and allocating is no good: so that signal is sent
/// before any other can come, and to the process, which means to its main thread: that one sleeps.
fn prepare() -> Result<(), Failure> {
    // One sample per second of CPU time: none comes by itself meanwhile.
    let profiler = ProfilerGuard::new(1)?;
    for _ in 0..FIRST_LOOKS {
        kill_process(getpid(), Signal::PROF).map_err(|error| Failure::Refused(error.to_string()))?;
        sleep(FIRST_PAUSE);
        if !profiler.report().build_unresolved()?.data.is_empty() {
            return Ok(());
        }
    }
    Err(Failure::Refused("the profiler gets no signals".to_owned()))
}

/// The thread, then its functions from the outermost to the innermost, inlined ones included.
fn named(frames: &Frames) -> Vec<String> {
    let mut stack = vec![frames.thread_name_or_id()];
    for frame in frames.frames.iter().rev() {
        stack.extend(frame.iter().rev().map(|symbol| told(&plain(&symbol.name()), &symbol.filename())));
    }
    stack
}

/// A function's name without its hash, and without the characters that separate in collapsed stacks.
fn plain(name: &str) -> String {
    let is_hash =
        |tail: &str| tail.len() == 17 && tail.starts_with('h') && tail[1..].bytes().all(|b| b.is_ascii_hexdigit());
    let name = match name.rsplit_once("::") {
        Some((name, tail)) if is_hash(tail) => name,
        _ => name,
    };
    name.replace([';', '\n'], ",")
}

/// A name alone says little of a closure or of an inlined function: such a name is followed by its file.
fn told(name: &str, file: &str) -> String {
    let path = name.split('<').next().unwrap_or(name);
    match file.rsplit_once("/src/") {
        Some((_, file)) if !path.contains("::") && !path.is_empty() => format!("{name} ({file})"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_hashes_alone() {
        assert_eq!(plain("herdgate::worker::run::h0123456789abcdef"), "herdgate::worker::run");
        assert_eq!(plain("a::hello"), "a::hello");
        assert_eq!(plain("main"), "main");
        assert_eq!(plain("f<[u8; 4]>"), "f<[u8, 4]>");
    }

    #[test]
    fn names_without_a_path_are_followed_by_their_file() {
        assert_eq!(told("{async_fn#0}", "/a/src/front.rs"), "{async_fn#0} (front.rs)");
        assert_eq!(told("poll<a::B>", "/x/hyper-1/src/proto/h1/io.rs"), "poll<a::B> (proto/h1/io.rs)");
        assert_eq!(told("a::b<C>", "/a/src/front.rs"), "a::b<C>");
        assert_eq!(told("<a::B as C>::d", "/a/src/front.rs"), "<a::B as C>::d");
        assert_eq!(told("clone3", "Unknown"), "clone3");
    }
}
