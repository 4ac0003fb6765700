//! Which nodes are believed: the panic when many fall silent at once, what each node's word says of it, and how long what
//! was told of its memory counts. Pure.
//!
//! Called by [`Facts`] at each change and each tick. Must never open a node before the Snapshot that shows it.

use super::Facts;
use crate::clock::{Millis, millis};
use crate::fleet::health::{Fall, Phase, Standing, panicking};
use crate::fleet::node::{Node, Now};
use crate::sync::Arc;

/// The longest panic after the newest fall; see [`panicking`].
const PANIC_HOLD_MS: Millis = 60_000;

impl Facts {
    /// Decides whether the fleet panics.
    pub(super) fn panic(&mut self, now: Now) {
        let rules = &self.config.health;
        // One that its operator took out falls silent because it is restarted.
        let counted = self.nodes.iter().filter(|node| !node.removed && !node.draining);
        let standings: Vec<Standing> = counted.map(|node| Standing::of(&node.health)).collect();
        // Two probes fell due within one interval, and each waited for its time-out.
        let window = millis(rules.probe) + millis(rules.probe_timeout);
        let percent = rules.panic_threshold_percent;
        let panics = panicking(self.panicking, &standings, now.ms, window, PANIC_HOLD_MS, percent);
        if panics != self.panicking {
            self.panicking = panics;
            self.dirty.models = true;
            self.dirty.now = true;
            if panics {
                tracing::error!(
                    "more than {percent} % of the nodes fell silent at once: keeping to them, it may be us"
                );
            } else {
                tracing::warn!("the panic is over");
            }
        }
    }

    /// Work may go to this node: it is up, or its silence is not believed.
    #[must_use]
    pub(in crate::fleet) fn is_routable(&self, node: &Node) -> bool {
        let health = &node.health;
        health.is_up()
            || (self.panicking && health.phase == Phase::Down && health.reached && health.fall == Fall::Silent)
    }

    /// Closes nodes that are not routable, at once; opening waits for the Snapshot.
    pub(super) fn close(&self) {
        for node in self.nodes.iter().filter(|node| !self.is_routable(node) || node.health.suspect) {
            node.word.set_suspect(node.health.suspect);
            node.word.set_up(self.is_routable(node));
        }
    }

    /// Sets every node's word as its health says, and gathers the cells of those that opened. A worker may have closed one
    /// whose report was lost, so this also runs without a change.
    pub(in crate::fleet) fn set_words(&mut self) {
        for (node, any) in self.nodes.iter().zip(&self.any) {
            let was_open = node.word.is_open();
            node.word.set_recovering(node.health.recovering_until != 0);
            node.word.set_suspect(node.health.suspect);
            node.word.set_draining(node.draining);
            node.word.set_up(self.is_routable(node));
            if !was_open && node.word.is_open() {
                self.opened.push(Arc::clone(&any.cell));
                self.opened.extend(self.cells.of_node(node.id).cloned());
            }
        }
    }

    /// Residency that is too old is unknown: what we have in flight, and had lately, decides.
    pub(super) fn age_residency(&mut self, now: Now) {
        let stale = millis(self.config.health.stale_residency);
        for node in self.nodes.iter_mut().filter(|node| node.is_ollama()) {
            if node.ps.at().is_none_or(|at| now.ms.saturating_sub(at) < stale) {
                continue;
            }
            if !node.loaded.is_empty() {
                node.loaded = Arc::default();
                self.dirty.soon = true;
                self.dirty.ps = true;
            }
            for cell in self.cells.of_node(node.id) {
                cell.mark_unloaded(now.ms.saturating_sub(stale));
            }
        }
    }
}
