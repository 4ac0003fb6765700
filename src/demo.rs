//! `herdgate demo`: a simulated herd, the real proxy in front of it, light traffic, and what each node did.
//!
//! Called by `main`. Takes free ports on the loopback interface, needs no network and no GPU, keeps nothing.
//! The proxy is the one that `serve` runs, started the same way; nothing here may be used by it.

mod client;
mod traffic;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::Clock;
use crate::config::{self, Config, Sources};
use crate::gate::{Gate, StartError};
use crate::sim::{Herd, ModelSpec, NodeSpec};

/// Nodes of a herd that nobody sized.
const NODES: u8 = 3;

/// After this many seconds of each round one node is killed …
const KILLED_AT: u64 = 8;

/// … and comes back.
const BACK_AT: u64 = 12;

/// Length of a round, seconds.
const ROUND: u64 = 20;

/// Flags of `herdgate demo`.
#[derive(clap::Args, Clone, Debug)]
pub struct DemoArgs {
    /// End after this many seconds [default: at Ctrl-C]
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
    /// Simulated nodes; from three on, the last one is a llama.cpp server
    #[arg(long, value_name = "N", default_value_t = NODES, value_parser = clap::value_parser!(u8).range(1..=16))]
    nodes: u8,
}

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The proxy did not start, or its last flush failed.
    #[error(transparent)]
    Gate(#[from] StartError),
    /// No port, thread, signal or folder.
    #[error("{what}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The operating system's words.
        cause: io::Error,
    },
    /// The demo's own configuration was refused.
    #[error("the demo's configuration: {0}")]
    Config(String),
}

fn system(what: &'static str) -> impl Fn(io::Error) -> DemoError {
    move |cause| DemoError::System { what, cause }
}

/// Runs the demo until its time is over or a signal comes.
///
/// # Errors
/// Something could not be started.
pub fn run(args: &DemoArgs) -> Result<(), DemoError> {
    let herd = Herd::start(specs(args.nodes)).map_err(system("start the simulated nodes"))?;
    let scratch = Scratch::new().map_err(system("make a temporary folder"))?;
    let gate = Gate::start(configuration(&herd, &scratch.path)?, Clock::system())?;
    let _ = say(&view::introduction(gate.address(), &herd));
    let shared = gate.shared.clone();
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = runtime.map_err(system("start a runtime"))?;
    let shown = runtime.block_on(show(&gate, &herd, args.seconds));
    // Drops the clients: what they still have open ends as "client gone".
    drop(runtime);
    gate.stop()?;
    let _ = say(&view::account(&shared, &herd));
    shown
}

async fn show(gate: &Gate, herd: &Herd, seconds: Option<u64>) -> Result<(), DemoError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("listen for Ctrl-C"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("listen for SIGTERM"))?;
    while !gate.shared.fleet.load().ready {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    traffic::start(gate.address(), &served(herd));
    let mut second = tokio::time::interval(Duration::from_secs(1));
    second.tick().await;
    let mut now = 0;
    while seconds.is_none_or(|seconds| now < seconds) {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = second.tick() => {}
        }
        now += 1;
        // Whoever looked on has gone (`herdgate demo | head`).
        if say(&view::line(now, &gate.shared)).is_err() {
            break;
        }
        incident(now, herd);
    }
    Ok(())
}

fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

/// One node goes and comes back, so that the others can be seen taking over.
fn incident(now: u64, herd: &Herd) {
    let [_, node, ..] = herd.nodes() else { return };
    if now % ROUND == KILLED_AT {
        let _ =
            say("      node-2 is killed: its streams end with an error in their own dialect, the rest goes elsewhere");
        node.kill();
    }
    if now % ROUND == BACK_AT {
        let _ = say("      node-2 is back, with nothing loaded");
        node.restart();
    }
}

/// The herd: chat models everywhere, an embedding model here and there, a llama.cpp server at the end.
fn specs(nodes: u8) -> Vec<NodeSpec> {
    let slow = |spec: NodeSpec| {
        spec.slots(2).speed(Duration::from_millis(1500), Duration::from_millis(2), Duration::from_millis(20))
    };
    (1..=nodes)
        .map(|number| {
            if number == nodes && nodes >= 3 {
                return slow(NodeSpec::llama_cpp(ModelSpec::chat(traffic::LLAMA)));
            }
            let mut models = vec![ModelSpec::chat(traffic::CHAT)];
            if number % 2 == 1 {
                models.push(ModelSpec::embedding(traffic::EMBED));
            }
            if number % 3 != 0 {
                models.push(ModelSpec::chat(traffic::OTHER));
            }
            slow(NodeSpec::ollama(models))
        })
        .collect()
}

/// Names of the models that some node of this herd has.
fn served(herd: &Herd) -> Vec<&'static str> {
    let llama = herd.nodes().len() >= 3;
    let all = [traffic::CHAT, traffic::OTHER, traffic::EMBED];
    all.into_iter().chain(llama.then_some(traffic::LLAMA)).collect()
}

/// The configuration that anybody could have written for this herd.
fn configuration(herd: &Herd, data: &Path) -> Result<Config, DemoError> {
    let mut text = format!("listen: 127.0.0.1:0\ndata: {}\nslots: 2\nnodes:\n", quoted(&data.to_string_lossy()));
    for (place, url) in herd.urls().iter().enumerate() {
        let kind = if place >= 2 && place + 1 == herd.nodes().len() { "openai" } else { "ollama" };
        text += &format!("  - {{ url: {}, name: node-{}, kind: {kind} }}\n", quoted(url), place + 1);
    }
    let file = Some((PathBuf::from("demo.yaml"), text));
    match config::load(&Sources { file, ..Sources::default() }) {
        Ok(loaded) => Ok(loaded.config),
        Err(mistakes) => {
            Err(DemoError::Config(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")))
        }
    }
}

/// A JSON string, which is a YAML string too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A folder that goes when this does.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new() -> io::Result<Self> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let name = format!("herdgate-demo-{}-{}", std::process::id(), since.as_nanos());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(cause) = std::fs::remove_dir_all(&self.path) {
            eprintln!("herdgate: {} could not be removed: {cause}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scratch_folder_goes_with_all_that_is_in_it() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path.clone();
        std::fs::write(path.join("data.mdb"), b"x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn the_configuration_is_valid_for_every_size() {
        for nodes in [1, 2, 3, 5, 16] {
            let herd = Herd::start(specs(nodes)).unwrap();
            let config = configuration(&herd, Path::new("/a \"quoted\" folder")).unwrap();
            assert_eq!(config.nodes.len(), usize::from(nodes));
            assert_eq!(config.nodes[0].name, "node-1");
            assert_eq!(config.data, Path::new("/a \"quoted\" folder"));
        }
    }
}
