//! Scenarios: data under `perf/scenarios/`, one file each, checked when they are read.
//!
//! Called by `main` and `run`; handed whole to the node server and the load generator, which build the same bytes from
//! it. Must never hold anything that depends on the machine.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

/// One kind of work, and how it is offered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// As the file is called.
    pub(crate) name: String,
    /// What a difference in this figure is about.
    pub(crate) isolates: String,
    /// Sets that it belongs to.
    #[serde(default)]
    pub(crate) sets: Vec<String>,
    /// Place in the table.
    pub(crate) order: u32,
    pub(crate) request: RequestSpec,
    pub(crate) answer: AnswerSpec,
    pub(crate) load: LoadSpec,
    /// Opponents it makes sense for; all, unless named.
    #[serde(default)]
    pub(crate) peers: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) fleet: FleetSpec,
    /// The scenario whose figure this one is divided by in the table, where the opponents say nothing.
    #[serde(default)]
    pub(crate) relative_to: Option<String>,
}

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RequestSpec {
    /// Path; a GET where there is no model.
    pub(crate) path: String,
    /// The model's name, by which the node knows which answer is meant.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// Bytes of text in the prompt.
    #[serde(default)]
    pub(crate) prompt_bytes: usize,
    /// Bytes of base64 in an image; none unless set.
    #[serde(default)]
    pub(crate) image_bytes: usize,
    #[serde(default)]
    pub(crate) stream: bool,
    /// On `/v1`: whether the client asks for the usage itself.
    #[serde(default)]
    pub(crate) include_usage: bool,
}

/// What the node answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AnswerSpec {
    pub(crate) form: Form,
    /// Records of a stream (or numbers of an embedding).
    #[serde(default)]
    pub(crate) records: usize,
    /// Between two records; all at once unless set.
    #[serde(default)]
    pub(crate) every_ms: u64,
    /// A write to each record, one right after the other, as a node that flushes every token does.
    #[serde(default)]
    pub(crate) write_each: bool,
}

/// Shapes of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Form {
    /// One JSON object with a length.
    Json,
    /// Ollama's stream, a record in each chunk.
    Ndjson,
    /// OpenAI's stream, an event in each chunk.
    Sse,
    /// One embedding in one chunk.
    Embedding,
    /// Whatever the peer's own listing is: the first answer is what all others must be.
    Listing,
}

/// How the work is offered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadSpec {
    /// Connections, each with one request at a time.
    pub(crate) connections: usize,
    /// A second pass with arrivals at half of what the slowest peer managed, for the latency added.
    #[serde(default)]
    pub(crate) half_load: bool,
    /// Streams are opened, held and counted instead of being finished.
    #[serde(default)]
    pub(crate) hold: bool,
    /// Length of a measurement, where the run's own is too short for this one.
    #[serde(default)]
    pub(crate) window_ms: Option<u64>,
    /// At most so many repeats.
    #[serde(default)]
    pub(crate) repeats_max: Option<usize>,
}

/// The nodes behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FleetSpec {
    pub(crate) nodes: usize,
    /// Models that each node lists, beside those of the scenarios.
    pub(crate) models: usize,
}

impl Default for FleetSpec {
    fn default() -> Self {
        Self { nodes: 1, models: 10 }
    }
}

impl Scenario {
    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.load.connections >= 1 && self.load.connections <= 20_000, "connections: 1 to 20000");
        ensure!(self.fleet.nodes >= 1 && self.fleet.nodes <= 4_000, "nodes: 1 to 4000");
        ensure!(self.fleet.models <= 10_000, "models: at most 10000");
        ensure!(self.request.prompt_bytes.max(self.request.image_bytes) <= 64 << 20, "at most 64 MiB");
        let listing = self.answer.form == Form::Listing;
        ensure!(listing == self.request.model.is_none(), "a listing has no model, everything else has one");
        let stream = matches!(self.answer.form, Form::Ndjson | Form::Sse);
        ensure!(stream == self.request.stream, "stream: as the form of the answer says");
        ensure!(!stream || self.answer.records >= 2, "records: a stream has 2 at least");
        ensure!(!self.load.hold || self.answer.every_ms > 0, "hold: streams that are held have a pace");
        Ok(())
    }

    /// Whether this peer takes part.
    pub(crate) fn includes(&self, peer: &str) -> bool {
        self.peers.as_ref().is_none_or(|peers| peers.iter().any(|name| name == peer))
    }
}

/// Every scenario of a folder, in the order of the table.
pub(crate) fn load(folder: &Path) -> anyhow::Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let scenario: Scenario = serde_json::from_str(&text).with_context(|| format!("scenario {}", path.display()))?;
        scenario.check().with_context(|| format!("scenario {}", path.display()))?;
        ensure!(path.file_stem().is_some_and(|stem| *stem == *scenario.name), "{}: named otherwise", path.display());
        found.push(scenario);
    }
    found.sort_by_key(|scenario| scenario.order);
    ensure!(!found.is_empty(), "{}: no scenario", folder.display());
    Ok(found)
}

/// Those that are meant by names of sets or scenarios.
pub(crate) fn choose(all: &[Scenario], names: &[String]) -> anyhow::Result<Vec<Scenario>> {
    for name in names {
        if !all.iter().any(|s| s.name == *name || s.sets.contains(name)) {
            let known: Vec<&str> = all.iter().map(|s| s.name.as_str()).collect();
            bail!("{name} is neither a set (quick, full) nor a scenario ({})", known.join(", "));
        }
    }
    let mut chosen: Vec<Scenario> =
        all.iter().filter(|s| names.iter().any(|n| s.name == *n || s.sets.contains(n))).cloned().collect();
    // What a scenario is divided by has to be there too.
    for needed in chosen.clone().iter().filter_map(|s| s.relative_to.clone()) {
        if !chosen.iter().any(|s| s.name == needed) {
            let base = all.iter().find(|s| s.name == needed);
            chosen.push(base.with_context(|| format!("relative_to: no scenario {needed}"))?.clone());
        }
    }
    chosen.sort_by_key(|scenario| scenario.order);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped() -> Vec<Scenario> {
        load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap()
    }

    #[test]
    fn shipped_scenarios_are_valid_and_their_order_is_theirs_alone() {
        let all = shipped();
        let mut orders: Vec<u32> = all.iter().map(|s| s.order).collect();
        orders.dedup();
        assert_eq!(orders.len(), all.len());
        let quick: Vec<String> = choose(&all, &["quick".to_owned()]).unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(quick, ["short", "prompt16k", "paced", "burst64", "chunks64"]);
        assert!(all.iter().all(|s| s.sets.contains(&"full".to_owned())));
    }

    #[test]
    fn names_choose_sets_scenarios_and_what_they_are_divided_by() {
        let all = shipped();
        let chosen: Vec<String> = choose(&all, &["fleet64".to_owned()]).unwrap().into_iter().map(|s| s.name).collect();
        assert_eq!(chosen, ["fleet1", "fleet64"]);
        assert!(choose(&all, &["nothing".to_owned()]).is_err());
    }

    #[test]
    fn a_scenario_that_contradicts_itself_is_refused() {
        let mut scenario = shipped().remove(0);
        assert!(scenario.check().is_ok());
        scenario.request.stream = !scenario.request.stream;
        assert!(scenario.check().is_err());
    }
}
