//! The configuration in force as one worker uses it: time-outs in milliseconds, keys with their ids.
//!
//! Made anew by [`crate::proxy::local::Local::rules`] when a reload put another configuration in force; a request that
//! holds on to it sees one configuration to its end. Belongs to one thread. Must never be changed in part.

use crate::clock::{Millis, millis};
use crate::config::Config;
use crate::fleet::OwnTimes;
use crate::proxy::keyring::{Key, KeyRing};
use crate::proxy::upstream::Settings;
use crate::sync::Arc;
use crate::usage::names::Names;

/// The time-outs a worker uses, in milliseconds.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the configuration key of the same name")]
pub struct Times {
    pub request_head: Millis,
    pub request_body_idle: Millis,
    pub client_idle: Millis,
    pub stream_idle: Millis,
    pub client_stall: Millis,
    pub queue_wait: Millis,
    pub cold_spill_after: Millis,
}

/// One configuration, ready for use.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The configuration.
    pub config: Arc<Config>,
    /// Time-outs in milliseconds.
    pub times: Times,
    /// The keys that open the router; empty: no key is asked for.
    pub keys: KeyRing,
}

impl Rules {
    /// What follows from a configuration.
    #[must_use]
    pub fn of(config: &Arc<Config>, names: &Names) -> Self {
        let timeouts = &config.timeouts;
        let times = Times {
            request_head: millis(timeouts.request_head),
            request_body_idle: millis(timeouts.request_body_idle),
            client_idle: millis(timeouts.client_idle),
            stream_idle: millis(timeouts.stream_idle),
            client_stall: millis(timeouts.client_stall),
            queue_wait: millis(timeouts.queue_wait),
            cold_spill_after: millis(config.routing.cold_spill_after),
        };
        let key = |key: &crate::config::RouterKey| Key { id: names.find_key(&key.name), secret: key.secret.clone() };
        Self { config: Arc::clone(config), times, keys: KeyRing::of(config.router_keys.iter().map(key)) }
    }

    /// What the client towards the nodes takes from it.
    #[must_use]
    pub fn upstream(&self) -> Settings {
        Settings {
            pool_idle_ms: millis(self.config.timeouts.pool_idle),
            head_bytes_max: self.config.limits.head_bytes,
            cold_load_grace_ms: millis(self.config.routing.cold_load_grace),
            ..Settings::default()
        }
    }
}

/// The time-outs of one answer, by its model, its node or the configuration.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// `stream_idle`.
    pub stream_idle: Millis,
    /// `client_stall`.
    pub client_stall: Millis,
    /// The model's own `suspect_after`.
    pub suspect_after: Option<Millis>,
}

impl Patience {
    /// What the configuration says, where neither node nor model says otherwise.
    #[must_use]
    pub fn of(times: &Times, node: OwnTimes, model: OwnTimes) -> Self {
        let own = model.or(node);
        Self {
            stream_idle: own.stream_idle.unwrap_or(times.stream_idle),
            client_stall: own.client_stall.unwrap_or(times.client_stall),
            suspect_after: model.suspect_after,
        }
    }
}
