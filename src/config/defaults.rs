//! The defaults, as values and as the embedded, commented file. A test holds the two together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{
    AccessLog, Administration, Config, DebugConfig, Degrade, HealthConfig, LedgerConfig, Limits, LogConfig, LogFormat,
    NodeConfig, NodeKind, NodeSlots, RoutingConfig, ShutdownConfig, SlotsConfig, TimeoutOverrides, Timeouts,
    UsageInjection,
};

/// The default file: every key with its unit and default.
pub const DEFAULT_FILE: &str = include_str!("default.yaml");

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl SlotsConfig {
    /// What `soft` without a number means.
    pub const SOFT_DEFAULT: Self = Self::Soft(4);
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 12434)),
            data: PathBuf::from("./herdgate-data"),
            workers: None,
            nodes: vec![NodeConfig {
                name: "http://127.0.0.1:11434".to_owned(),
                url: "http://127.0.0.1:11434".to_owned(),
                host: "127.0.0.1".to_owned(),
                port: 11434,
                base_path: String::new(),
                kind: NodeKind::Ollama,
                slots: None,
                node_slots: None,
                api_key: None,
                expand: false,
                cloud: false,
                connect_timeout: None,
                timeouts: TimeoutOverrides::default(),
                llama: false,
            }],
            slots: SlotsConfig::SOFT_DEFAULT,
            slots_origin: "default",
            node_slots: NodeSlots::Off,
            models: Vec::new(),
            router_keys: Vec::new(),
            administration: Administration::Auto,
            allowed_hosts: Vec::new(),
            origins: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            health: HealthConfig::default(),
            routing: RoutingConfig::default(),
            ledger: LedgerConfig::default(),
            shutdown: ShutdownConfig::default(),
            log: LogConfig::default(),
            debug: DebugConfig::default(),
            headers: true,
            ancestor: false,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: secs(2),
            request_head: secs(30),
            request_body_idle: secs(60),
            client_idle: secs(300),
            pool_idle: secs(60),
            stream_idle: secs(600),
            client_stall: secs(120),
            queue_wait: secs(270),
            suspect_after: secs(120),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 128 * MIB,
            body_memory_bytes: 512 * MIB,
            unsent_bytes: 256 * 1024,
            usage_rows: 10_000,
            head_bytes: 64 * 1024,
            queue_length: 1024,
            names: 65_536,
            ring: 65_536,
            connections: None,
        }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            probe: secs(2),
            probe_timeout: secs(2),
            backoff_max: secs(15),
            ps: secs(5),
            tags: secs(60),
            stale_residency: secs(30),
            panic_threshold_percent: 50,
            forget_models_after: secs(24 * 3600),
            resolve: secs(10),
        }
    }
}

impl Default for RoutingConfig {
    fn default() -> Self {
        Self {
            cold_spill_after: secs(10),
            cold_load_grace: secs(300),
            retry_share_percent: 20,
            retry_floor: 10,
            degrade: Degrade::Warn,
        }
    }
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            required: true,
            usage_injection: UsageInjection::Auto,
            fold_after: secs(30 * 24 * 3600),
        }
    }
}

impl Default for ShutdownConfig {
    fn default() -> Self {
        Self { delay: secs(0), drain: secs(25) }
    }
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto, access: AccessLog::Errors }
    }
}
