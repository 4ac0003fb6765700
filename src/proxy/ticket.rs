//! One Outcome per request (I2): a ticket is drawn when the request arrives and is always handed in.
//!
//! Whoever ends the request hands it in with [`Ticket::end`]; if nobody does, because hyper dropped the future or the
//! body when the client left, dropping it records `client gone`.

use std::rc::Rc;

use crate::clock::Millis;
use crate::dialect::Route;
use crate::evidence::{Chosen, Ended, Record, Why};
use crate::ids::{KeyId, ModelId, NodeId};
use crate::proxy::local::{Client, Local};
use crate::proxy::tail::{RequestFacts, Tail, TailReport};
use crate::proxy::watch::Expiry;
use crate::slots::Pair;
use crate::sync::Arc;
use crate::usage::meters::Timeout;
use crate::usage::{Ending, Outcome, Rejection};

/// What is known of a request until it ends.
pub struct Ticket {
    /// The connection it came on, which knows what the request is called.
    client: Rc<Client>,
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
    pub fn draw(client: &Rc<Client>, key: KeyId, route: Route) -> Self {
        Self {
            client: client.clone(),
            route,
            key,
            model: ModelId::UNKNOWN,
            node: NodeId::NONE,
            pair: None,
            status: 0,
            queue_us: 0,
            sent: None,
            stream_idle: client.local.rules().times.stream_idle,
            arrived_us: client.local.clock.now_us(),
            first_byte_us: 0,
            open: true,
        }
    }

    fn local(&self) -> &Local {
        &self.client.local
    }

    /// A record of what is being decided about it now.
    #[must_use]
    pub fn record(&self, why: Why, node: NodeId, retries: usize) -> Record {
        let mut record = Record::new(self.client.request_id.get(), self.route as u8, self.key, self.arrived_us);
        (record.model, record.node, record.why) = (self.model, node, why);
        (record.queue_us, record.retries) = (self.queue_us, u8::try_from(retries).unwrap_or(u8::MAX));
        record
    }

    /// It was decided; said in the answer and kept for whoever asks. A later decision takes the place of this one.
    pub fn decided(&self, record: &Record) {
        let Record { node, why, retries, .. } = *record;
        let number = self.local().decisions().decide(self.client.decision.get(), record);
        self.client.decision.set(Some(number));
        self.client.chosen.set(Chosen { node, why, retries, queue_us: self.queue_us });
    }

    /// What its answer says of where it went.
    pub fn tell(&self, node: NodeId, why: Why) {
        let retries = self.client.chosen.get().retries;
        self.client.chosen.set(Chosen { node, why, retries, queue_us: self.queue_us });
    }

    /// Microseconds since the request arrived.
    #[must_use]
    pub fn age_us(&self) -> u64 {
        self.local().clock.now_us().saturating_sub(self.arrived_us)
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
            minute: self.local().clock.minute(),
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
        self.local().recorder.record(&outcome, self.pair.as_ref().map(|pair| &*pair.counters));
        let mode = self.local().rules().config.log.access;
        let timeout = match ending {
            // Their deadline is put away by the time they are told.
            Ending::Rejected(Rejection::QueueTimeout) => Some(Timeout::QueueWait),
            Ending::Rejected(Rejection::BodyMemory) => Some(Timeout::BodyMemory),
            _ => self.client.watch.fired().map(Expiry::timeout),
        };
        self.local().shared.access.note(
            mode,
            &outcome,
            Some(self.route),
            (self.client.request_id.get(), timeout.map(Timeout::label)),
        );
        self.keep_end(&outcome);
    }

    /// How it ended, beside what was decided about it.
    fn keep_end(&self, outcome: &Outcome) {
        let Chosen { why, retries, .. } = self.client.chosen.get();
        let number = match self.client.decision.get() {
            Some(number) => number,
            None => self.local().decisions().decide(None, &self.record(why, self.node, 0)),
        };
        let ended = Ended {
            node: outcome.node,
            model: outcome.model,
            ending: outcome.ending,
            status: outcome.status,
            retries,
            queue_us: outcome.queue_us,
            first_byte_us: outcome.first_byte_us,
            total_us: outcome.total_us,
        };
        self.local().decisions().end(number, &ended);
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
