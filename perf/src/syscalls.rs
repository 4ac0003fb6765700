//! System calls per answer, counted by strace in a pass of its own: being traced costs more than the work.
//!
//! Called by `run`. Counts only; nothing that is timed may run meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::process::{self, Running, Seat};

/// A tracer at work.
pub(crate) struct Trace {
    running: Running,
    file: tempfile::NamedTempFile,
}

impl Trace {
    /// Attaches to all threads of these processes.
    pub(crate) fn start(pids: &[u32], seat: Seat) -> anyhow::Result<Self> {
        let strace = process::find("strace").context("strace is not installed; Debian's package is called strace")?;
        let file = tempfile::NamedTempFile::new()?;
        let list = pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let arguments: [&OsStr; 6] =
            ["-f".as_ref(), "-c".as_ref(), "-o".as_ref(), file.path().as_ref(), "-p".as_ref(), list.as_ref()];
        let pipes = (Stdio::null(), Stdio::null(), Stdio::null());
        let mut running = process::start(seat, strace.as_os_str(), &arguments, pipes)?;
        std::thread::sleep(Duration::from_millis(500));
        ensure!(running.ended().is_none(), "strace could not attach");
        Ok(Self { running, file })
    }

    /// Detaches; calls per answer by name.
    pub(crate) fn stop(self, answers: u64) -> anyhow::Result<BTreeMap<String, f64>> {
        drop(self.running);
        let text = std::fs::read_to_string(self.file.path())?;
        let counts = summary(&text);
        ensure!(!counts.is_empty(), "strace counted nothing:\n{text}");
        Ok(counts.into_iter().map(|(name, count)| (name, count as f64 / answers.max(1) as f64)).collect())
    }
}

/// The table that `strace -c` prints: time, seconds, per call, calls, sometimes errors, name.
fn summary(text: &str) -> BTreeMap<String, u64> {
    let row = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.first()?.parse::<f64>().ok()?;
        let name = columns.last().filter(|name| **name != "total")?;
        Some(((*name).to_owned(), columns.get(3)?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_with_and_without_errors() {
        let text = "% time     seconds  usecs/call     calls    errors syscall\n\
                    ------ ----------- ----------- --------- --------- ----------------\n \
                    61.54    0.000008           0        40           sendto\n \
                    38.46    0.000005           0        44         4 recvfrom\n\
                    ------ ----------- ----------- --------- --------- ----------------\n\
                    100.00    0.000013           0        84         4 total\n";
        assert_eq!(summary(text), [("recvfrom".to_owned(), 44), ("sendto".to_owned(), 40)].into());
    }
}
