//! The configuration: checked types, parsed once. Values here are valid; every mistake was reported before.
//!
//! Precedence (decided per key): flag, then `HERDGATE_CFG_*`, then file, then `NOMYO_ROUTER_*`, then default.
//! `main.rs` calls [`find`] and [`load`]; everybody else only reads a [`Config`]. [`Config::default`] is the embedded
//! default file ([`DEFAULT_FILE`]), a test holds the two together.
//! Imports no room; reads no environment variable and no file except in [`find`] and [`process_env`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::ids::KeyId;

mod ancestor;
mod check;
mod defaults;
mod describe;
mod expand;
mod in_force;
mod load;
mod mistake;
mod models;
mod node_url;
mod ours;
mod restart;
mod shutdown;
#[cfg(test)]
mod tests;
mod tree;
mod units;
mod walk;

pub use defaults::DEFAULT_FILE;
pub use describe::describe;
pub use in_force::{InForce, Reader};
pub use load::{Env, Flags, Loaded, Sources, find, load, process_env, read_anyway};
pub use mistake::{Mistake, Place};
pub use restart::{NeedsRestart, changed_keys, hold_back, renamed_keys};
pub use shutdown::END_MAX;

/// The whole configuration.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Address of the one listener.
    pub listen: SocketAddr,
    /// Directory of the ledger and of what is kept beside it.
    pub data: PathBuf,
    /// Worker threads; `None` is one per core of the affinity mask.
    pub workers: Option<usize>,
    /// The nodes, in order.
    pub nodes: Vec<NodeConfig>,
    /// Slots per (node, model) where neither node nor model says otherwise.
    pub slots: SlotsConfig,
    /// The key that `slots` comes from: `slots`, `max_concurrent_connections` or `default`.
    pub slots_origin: &'static str,
    /// Slots of all models of a node together, where the node does not say otherwise.
    pub node_slots: NodeSlots,
    /// Overrides by model name or glob, first match wins.
    pub models: Vec<ModelConfig>,
    /// Keys that open the router; empty: no key is asked for.
    pub router_keys: Vec<RouterKey>,
    /// Who may administer models and nodes.
    pub administration: Administration,
    /// Further values of `Host` accepted on a loopback listener.
    pub allowed_hosts: Vec<String>,
    /// Origins accepted beside Ollama's defaults, one `*` wildcard each; a lone `*` accepts all.
    pub origins: Vec<String>,
    /// Time-outs.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// Health and polling.
    pub health: HealthConfig,
    /// Routing.
    pub routing: RoutingConfig,
    /// The ledger.
    pub ledger: LedgerConfig,
    /// Shutdown.
    pub shutdown: ShutdownConfig,
    /// Logs.
    pub log: LogConfig,
    /// Looking into the running process.
    pub debug: DebugConfig,
    /// Whether answers carry `x-herdgate-*` headers.
    pub headers: bool,
    /// The file was the ancestor's (it has `endpoints`).
    pub ancestor: bool,
}

/// What a node speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeKind {
    /// Ollama's API, native and `/v1`.
    Ollama,
    /// Only `/v1` (llama.cpp's server, vLLM).
    OpenAi,
}

/// One node.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeConfig {
    /// Its id everywhere: `name`, else the URL exactly as configured.
    pub name: String,
    /// URL exactly as configured.
    pub url: String,
    /// Host name, IPv4 or IPv6 address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Path before every route, without a trailing slash and without `/v1`; usually empty.
    pub base_path: String,
    /// What it speaks.
    pub kind: NodeKind,
    /// Its own slots, if configured.
    pub slots: Option<SlotsConfig>,
    /// Its own slots of all models together, if configured.
    pub node_slots: Option<NodeSlots>,
    /// Sent as `Authorization: Bearer …` to this node.
    pub api_key: Option<Secret>,
    /// A name with several addresses becomes several nodes.
    pub expand: bool,
    /// Cloud models may be sent here (they leave the house).
    pub cloud: bool,
    /// Override of [`Timeouts::connect`].
    pub connect_timeout: Option<Duration>,
    /// Overrides of the other global time-outs.
    pub timeouts: TimeoutOverrides,
    /// It stood in the ancestor's `llama_server_endpoints` (listed there again in `/api/config`).
    pub llama: bool,
}

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Slots per (node, model).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotsConfig {
    /// A preference (default 4).
    Soft(u32),
    /// A hard limit.
    Hard(u32),
}

/// Slots of all models of a node together.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum NodeSlots {
    /// As many as its models have.
    #[default]
    Off,
    /// A hard limit.
    Hard(u32),
}

impl NodeSlots {
    /// The limit, if there is one.
    #[must_use]
    pub fn limit(self) -> Option<u32> {
        match self {
            Self::Off => None,
            Self::Hard(slots) => Some(slots),
        }
    }
}

/// Overrides for models whose name matches.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelConfig {
    /// Name or glob (`*` matches any run of characters).
    pub pattern: String,
    /// Slots per node.
    pub slots: Option<SlotsConfig>,
    /// Overrides of the global time-outs.
    pub timeouts: TimeoutOverrides,
    /// Names of the nodes that a pull of this model goes to; empty: no preference.
    pub pull_targets: Vec<String>,
}

/// Overrides of [`Timeouts`], per node or per model; `None` keeps the global value.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[expect(missing_docs, reason = "each overrides the field of the same name in Timeouts")]
pub struct TimeoutOverrides {
    /// Per node only: an idle connection belongs to no model.
    pub pool_idle: Option<Duration>,
    pub stream_idle: Option<Duration>,
    pub client_stall: Option<Duration>,
    /// Per model only: a waiting request has no node yet.
    pub queue_wait: Option<Duration>,
    pub suspect_after: Option<Duration>,
}

/// A key that opens the router.
#[derive(Clone, PartialEq, Debug)]
pub struct RouterKey {
    /// Its name in ledger, metrics and logs: as configured, else `key1`, `key2`, …
    pub name: String,
    /// The key.
    pub secret: Secret,
}

/// Who may administer models and nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Administration {
    /// Open on a loopback listener without keys, else with a router key.
    Auto,
    /// Nobody.
    Off,
    /// With a router key.
    Key,
    /// Everybody.
    Open,
}

impl Administration {
    /// Whether a request with this key (or none) may administer, on a listener that is loopback or not.
    #[must_use]
    pub fn admits(self, loopback: bool, key: KeyId) -> bool {
        match self {
            Self::Open => true,
            Self::Off => false,
            Self::Key => key != KeyId::NONE,
            Self::Auto => loopback || key != KeyId::NONE,
        }
    }
}

/// Time-outs; operations.md of the design, "Time-outs".
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct Timeouts {
    pub connect: Duration,
    pub request_head: Duration,
    pub request_body_idle: Duration,
    pub client_idle: Duration,
    pub pool_idle: Duration,
    pub stream_idle: Duration,
    pub client_stall: Duration,
    pub queue_wait: Duration,
    pub suspect_after: Duration,
}

/// Bounds, in bytes or pieces.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct Limits {
    pub max_body_bytes: u64,
    pub body_memory_bytes: u64,
    pub unsent_bytes: usize,
    pub head_bytes: usize,
    pub queue_length: u32,
    pub names: u32,
    pub ring: usize,
    /// `None`: from the file limit.
    pub connections: Option<u32>,
    pub usage_rows: usize,
}

/// Health and polling.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct HealthConfig {
    pub probe: Duration,
    pub probe_timeout: Duration,
    pub backoff_max: Duration,
    pub ps: Duration,
    pub tags: Duration,
    pub stale_residency: Duration,
    pub panic_threshold_percent: u32,
    pub forget_models_after: Duration,
    pub resolve: Duration,
}

/// Routing.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct RoutingConfig {
    pub cold_spill_after: Duration,
    pub cold_load_grace: Duration,
    pub retry_share_percent: u32,
    pub retry_floor: u32,
    pub degrade: Degrade,
}

/// What a sick copy of a model means for routing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Degrade {
    /// It is named in log, metric and status, no more.
    Warn,
    /// It is the last choice as well.
    Demote,
}

/// Whether OpenAI streams are made exact by asking for their usage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UsageInjection {
    /// Ask Ollama nodes, and take the event out again.
    Auto,
    /// Leave the request alone; estimate.
    Off,
}

/// The ledger.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct LedgerConfig {
    pub tick: Duration,
    pub required: bool,
    pub usage_injection: UsageInjection,
    pub fold_after: Duration,
}

/// Shutdown.
#[derive(Clone, PartialEq, Debug)]
#[expect(missing_docs, reason = "each is the key of the same name in default.yaml, described there")]
pub struct ShutdownConfig {
    pub delay: Duration,
    pub drain: Duration,
}

/// Looking into the running process.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct DebugConfig {
    /// Whether `GET /herdgate/debug/flamegraph` profiles the process.
    pub flamegraph: bool,
}

/// Which requests get an access line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessLog {
    /// Every request.
    All,
    /// Outcomes other than completed, waits over 1 s, requests over 10 s.
    Errors,
    /// None.
    Off,
}

/// The form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// Human on a terminal, else JSON.
    Auto,
    /// One JSON object a line.
    Json,
    /// For eyes.
    Human,
}

/// Logs.
#[derive(Clone, PartialEq, Debug)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The form of the lines.
    pub format: LogFormat,
    /// Which requests get a line.
    pub access: AccessLog,
}
