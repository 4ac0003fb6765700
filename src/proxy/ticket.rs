//! One Outcome per request (I2): a ticket is drawn when the request arrives and is always handed in.
//!
//! Whoever ends the request hands it in with [`Ticket::end`]; if nobody does, because hyper dropped the future or the
//! body when the client left, dropping it records `client gone`.

use std::rc::Rc;

use crate::clock::Millis;
use crate::dialect::Route;
use crate::ids::{KeyId, ModelId, NodeId};
use crate::proxy::local::Local;
use crate::proxy::tail::{RequestFacts, Tail, TailReport};
use crate::slots::Pair;
use crate::sync::Arc;
use crate::usage::{Ending, Outcome, Rejection};

/// What is known of a request until it ends.
pub struct Ticket {
    /// The worker that serves it.
    pub local: Rc<Local>,
    /// Its route.
    pub route: Route,
    /// The router key it came with.
    pub key: KeyId,
    /// The model it asked for, as far as known.
    pub model: ModelId,
    /// The node tried last.
    pub node: NodeId,
    /// Counters of (node, model) to which its tokens go.
    pub pair: Option<Arc<Pair>>,
    /// Status of the answer, once there is one.
    pub status: u16,
    /// Waited for slots so far, microseconds.
    pub queue_us: u64,
    /// What a node was sent, while no answer has come: if the client leaves now, the node has worked on it for nothing.
    pub sent: Option<RequestFacts>,
    /// How long its node may be silent in mid-answer.
    pub stream_idle: Millis,
    arrived_us: u64,
    first_byte_us: u64,
    open: bool,
}

impl Ticket {
    /// Draws a ticket.
    #[must_use]
    pub fn draw(local: &Rc<Local>, key: KeyId, route: Route) -> Self {
        Self {
            local: local.clone(),
            route,
            key,
            model: ModelId::UNKNOWN,
            node: NodeId::NONE,
            pair: None,
            status: 0,
            queue_us: 0,
            sent: None,
            stream_idle: local.rules().times.stream_idle,
            arrived_us: local.clock.now_us(),
            first_byte_us: 0,
            open: true,
        }
    }

    /// Microseconds since the request arrived.
    #[must_use]
    pub fn age_us(&self) -> u64 {
        self.local.clock.now_us().saturating_sub(self.arrived_us)
    }

    /// The first byte of the node's answer is here.
    pub fn first_byte(&mut self) {
        if self.first_byte_us == 0 {
            self.first_byte_us = self.age_us().max(1);
        }
    }

    /// Whether a byte of the answer came.
    #[must_use]
    pub fn has_first_byte(&self) -> bool {
        self.first_byte_us != 0
    }

    /// Takes it back unused: the request turned out not to be one for a node.
    pub fn withdraw(mut self) {
        self.open = false;
    }

    /// Hands it in; later calls change nothing.
    pub fn end(&mut self, ending: Ending, report: &TailReport) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let outcome = Outcome {
            minute: self.local.clock.minute(),
            node: self.node,
            model: self.model,
            key: self.key,
            ending,
            status: self.status,
            count: report.count,
            load_ns: report.load_ns,
            prompt_eval_ns: report.prompt_eval_ns,
            eval_ns: report.eval_ns,
            queue_us: self.queue_us,
            first_byte_us: self.first_byte_us,
            total_us: self.age_us(),
        };
        self.local.recorder.record(&outcome, self.pair.as_ref().map(|pair| &*pair.counters));
        let mode = self.local.rules().config.log.access;
        self.local.shared.access.note(mode, &outcome, self.route);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return self.end(Ending::Rejected(Rejection::Internal), &TailReport::default());
        }
        // Never zero for unknown (I3): what was sent to a node counts as an estimate.
        let report = self.sent.filter(|_| self.open).map(|sent| Tail::new(self.route, false).finish(&sent));
        self.end(Ending::ClientGone, &report.unwrap_or_default());
    }
}
