//! The opponents: how each is started from its template under `perf/peers/`, and where it comes from.
//!
//! Called by `run` and `flame`. Templates are data; `{{port}}`, `{{dir}}`, `{{node}}` and `{{nodes}}` are filled in here.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::accounting;
use crate::fetch;
use crate::process::{self, Running, Seat};
use crate::scenario::Scenario;
use crate::workload::Workload;

/// The core of the proxy under test; everything else runs on the next one.
pub(crate) const PROXY_CORE: usize = 0;
pub(crate) const OTHER_CORE: usize = 1;

/// Names, in the order of the table.
pub(crate) const ALL: [&str; 5] = ["direct", "nginx", "haproxy", "locked", "herdgate"];

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) herdgate: PathBuf,
    pub(crate) locked: Option<PathBuf>,
    /// `perf/peers`.
    pub(crate) templates: PathBuf,
    /// Everything measured runs in the real-time class.
    pub(crate) real_time: bool,
}

impl Programs {
    /// The proxy's seat.
    pub(crate) fn proxy_seat(&self) -> Seat {
        Seat { core: PROXY_CORE, real_time: self.real_time }
    }

    /// The seat of nodes and generator.
    pub(crate) fn other_seat(&self) -> Seat {
        Seat { core: OTHER_CORE, real_time: self.real_time }
    }

    /// Path and version of a peer, or what is missing.
    pub(crate) fn find(&self, peer: &str) -> Result<(PathBuf, String), String> {
        let installed = |name: &str| {
            process::find(name).ok_or_else(|| format!("{name} is not installed; Debian's package is called {name}"))
        };
        let built = |path: &Path, how: &str| {
            if path.is_file() { Ok(path.to_path_buf()) } else { Err(format!("{} is not there; {how}", path.display())) }
        };
        let (path, flag) = match peer {
            "direct" => return Ok((PathBuf::new(), "no proxy".to_owned())),
            "nginx" => (installed("nginx")?, "-v"),
            "haproxy" => (installed("haproxy")?, "-v"),
            "herdgate" => (built(&self.herdgate, "build it with cargo build --release --bin herdgate")?, "--version"),
            "locked" => match &self.locked {
                Some(path) => (built(path, "see perf/README.md, the locked baseline")?, "--version"),
                None => return Err("no binary of the locked baseline given (--locked PATH)".to_owned()),
            },
            other => return Err(format!("no such peer: {other} (there are {})", ALL.join(", "))),
        };
        let version = version(&path, flag).map_err(|error| format!("{peer}: {error:#}"))?;
        Ok((path, version))
    }
}

fn version(path: &Path, flag: &str) -> anyhow::Result<String> {
    let output = Command::new(path).arg(flag).stdin(Stdio::null()).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    // "nginx version: nginx/1.22.1", "HAProxy version 2.6.12-1 2026/10/17 - https://…"
    let line = said.lines().next().unwrap_or_default();
    let line = line.split(" - ").next().unwrap_or_default();
    Ok(line.trim_start_matches("nginx version: ").trim().to_owned())
}

/// A peer that is running; ends when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) port: u16,
    running: Option<Running>,
    log: PathBuf,
}

impl Peer {
    /// Its processes; none for `direct`.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.running.as_ref().map_or_else(Vec::new, |running| accounting::family(running.id()))
    }

    /// An error if it has ended by itself.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.running.as_mut().and_then(Running::ended) {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            bail!("{} ended with {status}:\n{log}", self.name);
        }
        Ok(())
    }

    /// Waits until it answers the scenario's own request.
    fn wait_ready(&mut self, scenario: &Scenario) -> anyhow::Result<()> {
        let work = Workload::of(scenario);
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            self.check()?;
            let seen = if scenario.load.hold {
                // A stream without end is no question to be answered.
                fetch::get(self.port, "/api/tags")
            } else {
                fetch::exchange(self.port, &work.request, Duration::from_secs(10))
            };
            let seen = match seen {
                Ok(answer) if answer.status == 200 => return Ok(()),
                Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > until {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                bail!("{} is not ready after a minute: {seen}\n{log}", self.name);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Starts a peer in front of the nodes at `nodes`, with its files in `dir`, and waits until it works.
pub(crate) fn start(
    programs: &Programs,
    name: &str,
    nodes: &[u16],
    dir: &Path,
    scenario: &Scenario,
) -> anyhow::Result<Peer> {
    let first = *nodes.first().context("a node")?;
    let log = dir.join(format!("{name}.log"));
    ensure!(scenario.includes(name), "{name} takes no part in {}", scenario.name);
    if name == "direct" {
        return Ok(Peer { name: name.to_owned(), port: first, running: None, log });
    }
    let (program, _) = programs.find(name).map_err(|why| anyhow::anyhow!(why))?;
    let port = free_port()?;
    let dir = dir.join(name);
    fs::create_dir_all(&dir)?;
    let template = match name {
        "nginx" => "nginx.conf",
        "haproxy" => "haproxy.cfg",
        _ => "herdgate.yaml",
    };
    let text = fs::read_to_string(programs.templates.join(template)).with_context(|| format!("template {template}"))?;
    let config = dir.join(template);
    fs::write(&config, filled(&text, port, nodes, &dir)?)?;
    let (config, dir) = (config.as_os_str(), dir.as_os_str());
    let arguments: Vec<&OsStr> = match name {
        "nginx" => vec![OsStr::new("-p"), dir, OsStr::new("-e"), OsStr::new("stderr"), OsStr::new("-c"), config],
        "haproxy" => vec![OsStr::new("-db"), OsStr::new("-f"), config],
        _ => vec![OsStr::new("serve"), OsStr::new("--config"), config],
    };
    let file = File::create(&log)?;
    let pipes = (Stdio::null(), Stdio::from(file.try_clone()?), Stdio::from(file));
    let running = process::start(programs.proxy_seat(), program.as_os_str(), &arguments, pipes)?;
    let pid = running.id();
    let mut peer = Peer { name: name.to_owned(), port, running: Some(running), log };
    peer.wait_ready(scenario)?;
    if programs.real_time {
        process::stand_back(pid)?;
    }
    Ok(peer)
}

/// The template with its places filled; an unknown place is an error.
fn filled(template: &str, port: u16, nodes: &[u16], dir: &Path) -> anyhow::Result<String> {
    let list: String = nodes.iter().map(|port| format!("\n  - http://127.0.0.1:{port}")).collect();
    let first = nodes.first().context("a node")?;
    let text = template
        .replace("{{port}}", &port.to_string())
        .replace("{{node}}", &format!("127.0.0.1:{first}"))
        .replace("{{nodes}}", &list)
        .replace("{{dir}}", &dir.to_string_lossy());
    ensure!(!text.contains("{{"), "a place in the template that nobody fills");
    Ok(text)
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shipped_templates_are_filled_whole() {
        for name in ["nginx.conf", "haproxy.cfg", "herdgate.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name);
            let text = filled(&fs::read_to_string(path).unwrap(), 7, &[8, 9], Path::new("/d")).unwrap();
            assert!(text.contains("127.0.0.1:7") && text.contains("127.0.0.1:8"), "{text}");
        }
        assert!(filled("{{what}}", 1, &[2], Path::new("/d")).is_err());
    }

    #[test]
    fn a_missing_peer_says_where_it_comes_from() {
        let programs =
            Programs { herdgate: "/nowhere".into(), locked: None, templates: "/nowhere".into(), real_time: false };
        assert!(programs.find("herdgate").unwrap_err().contains("cargo build --release"));
        assert!(programs.find("locked").unwrap_err().contains("--locked"));
        assert!(programs.find("squid").is_err());
        assert!(programs.find("direct").is_ok());
    }
}
