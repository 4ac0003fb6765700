//! Names for the herd's nodes that the proxy alone can resolve, and a resolver that fails or hangs on demand.
//!
//! Used by [`super::Stage`]. The proxy runs with mounts of its own, where this run's files stand in the place of
//! /etc/hosts and /etc/resolv.conf; the latter names a server at an address of this machine that never answers. Where a
//! process may not have such mounts there are no names, and none of these faults. Must never touch the machine's files.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

/// Where the proxy's resolver asks: with nobody there it fails at once, with somebody who is silent it hangs.
const SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 77), 53);

/// The first two arguments take the places of the system's files; the rest is the command.
const MOUNTED: &str =
    "mount --bind \"$1\" /etc/hosts && mount --bind \"$2\" /etc/resolv.conf && shift 2 && exec \"$@\"";

/// The names of a run.
pub(crate) struct Names {
    hosts: PathBuf,
    resolver: PathBuf,
    text: String,
    /// The server that says nothing.
    silent: RefCell<Option<UdpSocket>>,
}

impl Names {
    /// Writes the files; `None` where a process cannot have them for its own.
    pub(crate) fn set_up(dir: &Path, nodes: usize) -> anyhow::Result<Option<Self>> {
        let names = Self {
            hosts: dir.join("hosts"),
            resolver: dir.join("resolv.conf"),
            text: (1..=nodes).map(|node| format!("127.0.0.1 {}\n", name(node))).collect(),
            silent: RefCell::default(),
        };
        std::fs::write(&names.resolver, format!("nameserver {}\noptions timeout:20 attempts:1\n", SERVER.0))?;
        names.heal()?;
        let probe = [OsStr::new("grep"), OsStr::new("-q"), OsStr::new("node-1"), OsStr::new("/etc/hosts")];
        let (program, arguments) = names.wrapped(&probe);
        let probe = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        Ok(probe.is_ok_and(|status| status.success()).then_some(names))
    }

    /// Where a node is, by its name.
    pub(crate) fn url(&self, node: usize, port: u16) -> String {
        format!("http://{}:{port}", name(node))
    }

    /// The command that runs this one where the names are known.
    pub(crate) fn wrapped<'c>(&'c self, command: &[&'c OsStr]) -> (PathBuf, Vec<&'c OsStr>) {
        let head = ["--mount", "sh", "-c", MOUNTED, "sh"].map(OsStr::new);
        let files = [self.hosts.as_os_str(), self.resolver.as_os_str()];
        (PathBuf::from("unshare"), head.into_iter().chain(files).chain(command.iter().copied()).collect())
    }

    /// Whether a server can be silent here.
    pub(crate) fn can_hang(&self) -> bool {
        UdpSocket::bind(SERVER).is_ok()
    }

    /// No name is known any more, and nobody can be asked.
    pub(crate) fn fail(&self) -> anyhow::Result<()> {
        // In its place, not anew: the mount is of this very file.
        std::fs::write(&self.hosts, "").context("the file of hosts")
    }

    /// No name is known any more, and whoever asks waits.
    pub(crate) fn hang(&self) -> anyhow::Result<()> {
        *self.silent.borrow_mut() = Some(UdpSocket::bind(SERVER).context("a silent name server")?);
        self.fail()
    }

    /// All is as it was.
    pub(crate) fn heal(&self) -> anyhow::Result<()> {
        *self.silent.borrow_mut() = None;
        std::fs::write(&self.hosts, &self.text).context("the file of hosts")
    }
}

/// Nodes on a loopback address take Host from a few names only; this is one of them.
fn name(node: usize) -> String {
    format!("node-{node}.internal")
}
