//! What the kernel says of a process: run time of its threads, switches, memory. Linux' `/proc`, nothing else.
//!
//! Called by `load` at both ends of a window, so that figures and completed requests belong to the same moment.

use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

/// Sums over the threads of some processes since they started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Run time by name of thread, ns, from the scheduler's accounting (schedstat): exact, no sampling.
    pub(crate) cpu_ns: BTreeMap<String, u64>,
    pub(crate) voluntary_switches: u64,
    pub(crate) involuntary_switches: u64,
}

impl Usage {
    /// Now. Processes that are gone count as nothing.
    pub(crate) fn of(pids: &[u32]) -> Self {
        let mut usage = Self::default();
        for pid in pids {
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.flatten() {
                usage.add(&task.path());
            }
        }
        usage
    }

    fn add(&mut self, task: &std::path::Path) {
        let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
        let ran = read("schedstat").split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
        *self.cpu_ns.entry(read("comm").trim().to_owned()).or_default() += ran;
        let status = read("status");
        self.voluntary_switches += field(&status, "voluntary_ctxt_switches");
        self.involuntary_switches += field(&status, "nonvoluntary_ctxt_switches");
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let spent = |(name, now): (&String, &u64)| {
            (name.clone(), now.saturating_sub(before.cpu_ns.get(name).copied().unwrap_or(0)))
        };
        Self {
            cpu_ns: self.cpu_ns.iter().map(spent).collect(),
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(before.involuntary_switches),
        }
    }

    /// Run time of all threads.
    pub(crate) fn total_ns(&self) -> u64 {
        self.cpu_ns.values().sum()
    }
}

/// Memory of some processes, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    pub(crate) peak: u64,
}

impl Memory {
    /// Now.
    pub(crate) fn of(pids: &[u32]) -> Self {
        let mut memory = Self::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            memory.rss += field(&status, "VmRSS") * 1024;
            memory.peak += field(&status, "VmHWM") * 1024;
        }
        memory
    }
}

/// A number of a `status` file.
fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// A process and the children it has now.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name in brackets: state, parent.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        if parent == Some(pid) {
            found.push(child);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Name:\tx\nVmRSS:\t  1200 kB\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "VmRSS"), 1200);
        assert_eq!(field(status, "voluntary_ctxt_switches"), 5);
        assert_eq!(field(status, "nonvoluntary_ctxt_switches"), 7);
        assert_eq!(field(status, "VmHWM"), 0);
    }

    #[test]
    fn what_was_used_is_a_difference_thread_by_thread() {
        let usage = |a: u64, b: u64| Usage {
            cpu_ns: [("a".to_owned(), a), ("b".to_owned(), b)].into(),
            voluntary_switches: a,
            involuntary_switches: b,
        };
        assert_eq!(usage(9, 5).since(&usage(4, 5)), usage(5, 0));
        assert_eq!(usage(9, 5).total_ns(), 14);
    }

    #[test]
    fn this_process_has_run_and_is_in_its_family() {
        let me = std::process::id();
        assert!(Usage::of(&[me]).total_ns() > 0);
        assert!(Memory::of(&[me]).rss > 0);
        assert_eq!(family(me)[0], me);
    }
}
