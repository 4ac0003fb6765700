//! What one node's answers tell: reads each, updates the [`Node`], says what changed. Pure.
//!
//! Called by [`Node::answered`] alone.

use std::hash::Hasher;

use http::StatusCode;
use serde_json::value::RawValue;

use super::{CHANGE_MS, Change, INSTANCE_HEADER, INVENTORY_RETRY_MS, Node, Now, Pulse, SHOW_RETRY_MS, Weights};
use crate::clock::{Millis, millis};
use crate::config::HealthConfig;
use crate::fleet::NodePs;
use crate::fleet::fetch::{Answer, FetchError};
use crate::fleet::health::Event;
use crate::fleet::inventory::{self, Entry};
use crate::sync::Arc;

impl Node {
    pub(super) fn probed(
        &mut self,
        asked_at: Millis,
        result: Result<Answer, FetchError>,
        now: Now,
        rules: &HealthConfig,
        jitter: u32,
    ) -> Change {
        let refused = matches!(result, Err(FetchError::Refused));
        let answer = match result {
            Ok(answer) => answer,
            Err(error) if error.is_ours() => {
                return self.event(Event::Unasked { asked_at, cause: error.to_string().into() }, now, rules, jitter);
            }
            Err(error) => {
                let mut change = Change::default();
                if refused {
                    change = self.event(Event::Refused, now, rules, jitter);
                }
                let failed = Event::ProbeFailed { asked_at, cause: error.to_string().into() };
                let failed = self.event(failed, now, rules, jitter);
                return if change.health.changed { change } else { failed };
            }
        };
        let ours = answer.lines.get(INSTANCE_HEADER).is_some_and(|id| id == self.instance.as_bytes());
        if ours {
            return self.event(Event::Ourselves { asked_at }, now, rules, jitter);
        }
        if !self.is_ollama() && self.pulse == Pulse::Health && lacks_path(answer.status) {
            // Not every server has /health. This answer says nothing; ask the other path at once.
            self.pulse = Pulse::Models;
            self.health.probe_at = now.ms;
            return Change::default();
        }
        match self.read_pulse(&answer) {
            Ok(version) => {
                let mut change = self.event(Event::ProbeOk { asked_at }, now, rules, jitter);
                if version.is_some() && version != self.version {
                    // Another program answers now; it may have another inventory.
                    self.inventory_timer.due = now.ms;
                    self.version = version;
                    change.listing = true;
                }
                change
            }
            Err(cause) => self.event(Event::ProbeFailed { asked_at, cause: cause.into() }, now, rules, jitter),
        }
    }

    /// The version an answer to a probe tells, if the answer is one.
    fn read_pulse(&self, answer: &Answer) -> Result<Option<Arc<str>>, String> {
        let status = answer.status;
        if self.is_ollama() {
            if status != StatusCode::OK {
                return Err(format!("/api/version answers {status}"));
            }
            return inventory::version(&answer.body).map(Some);
        }
        if status == StatusCode::OK {
            return Ok(None);
        }
        let loading =
            status == StatusCode::SERVICE_UNAVAILABLE && memchr::memmem::find(&answer.body, b"oading").is_some();
        let path = if self.pulse == Pulse::Health { "/health" } else { "/v1/models" };
        Err(if loading { "loads its model".to_owned() } else { format!("{path} answers {status}") })
    }

    pub(super) fn take_inventory(
        &mut self,
        result: &Result<Answer, FetchError>,
        now: Now,
        rules: &HealthConfig,
    ) -> Change {
        self.inventory_timer.busy = false;
        self.round_done = true;
        let residency_asked = !self.is_ollama();
        let unchanged = Change { inventory_asked: true, residency_asked, ..Change::default() };
        let told = body(result, "the inventory");
        let hash = told.as_ref().ok().map(|body| hashed(body));
        if hash.is_some() && hash == self.inventory_hash {
            self.told = true;
            let known = Arc::clone(&self.inventory);
            self.note_lost(&known, now, rules);
            if !self.is_ollama() && self.ps.at().is_some() {
                self.ps.told_again(now.ms);
            }
            // (A node that went down lost its residency: then it is read anew, below.)
            if self.is_ollama() || self.ps.at().is_some() {
                return Change { residency: !self.is_ollama(), ..unchanged };
            }
        }
        let entries = match told.and_then(if self.is_ollama() { inventory::tags } else { inventory::served }) {
            Ok(entries) => entries,
            Err(why) => {
                tracing::debug!(node = %self.name, why, "no inventory");
                self.inventory_timer.due = self.inventory_timer.due.min(now.ms + INVENTORY_RETRY_MS);
                return unchanged;
            }
        };
        let shrank = self.note_lost(&entries, now, rules);
        let residency = !self.is_ollama();
        let same = same_entries(&self.inventory, &entries);
        if residency {
            if same && self.ps.at().is_some() {
                self.ps.told_again(now.ms);
            } else {
                let loaded = entries.iter().filter(|entry| entry.loaded).map(|entry| &entry.fields);
                self.ps = Arc::new(NodePs::new(now.ms, raw(loaded)));
            }
        }
        self.inventory_hash = hash;
        self.told = true;
        if !same {
            self.gained += u64::from(entries.iter().any(|entry| !is_in(&self.inventory, &entry.key)));
            self.inventory = Arc::new(entries);
            self.weights_at = now.ms;
            self.trim_weights();
        }
        Change { models: !same || shrank, listing: !same, residency, ..unchanged }
    }

    /// Names that were there before it went down, or shrank, and are not any more are remembered; those that are back are
    /// not lost. True if whether it has shrunk is news.
    ///
    /// A node restarts in less than two probes, and a disk that was not mounted leaves it up and empty: so two models or
    /// more that go at once, and are more than half, count as lost though nobody saw it down. (One alone is a person's
    /// `ollama rm`.) What was changed through us is never lost.
    fn note_lost(&mut self, entries: &[Entry], now: Now, rules: &HealthConfig) -> bool {
        let (had, has) = (self.inventory.len(), entries.len());
        let kept = self.inventory.iter().filter(|old| is_in(entries, &old.key)).count();
        let ordered = self.changed_at.is_some_and(|at| now.ms.saturating_sub(at) < CHANGE_MS);
        let shrunk = 2 * kept < had && !ordered;
        let returned = std::mem::take(&mut self.returned);
        if returned || shrunk && had - kept >= 2 {
            let until = now.unix_ms + millis(rules.forget_models_after);
            for entry in self.inventory.iter() {
                self.lost.insert(Arc::clone(&entry.key), (Arc::clone(&entry.name), until));
            }
        }
        for entry in entries {
            self.lost.remove(&entry.key);
        }
        let before = self.shrunk;
        match self.shrunk {
            None if shrunk && (returned || had - kept >= 2) => {
                self.shrunk = Some((had, has));
                tracing::warn!(
                    node = %self.name, had, has,
                    "inventory_shrunk: what is missing is answered with 503, not 404, until it is back or forgotten"
                );
            }
            Some((had, _)) if 2 * has >= had => self.shrunk = None,
            Some((had, _)) => self.shrunk = Some((had, has)),
            None => {}
        }
        self.shrunk != before
    }

    pub(super) fn take_residency(&mut self, result: &Result<Answer, FetchError>, asked_at: Millis, now: Now) -> Change {
        self.residency_timer.busy = false;
        let loaded = match body(result, "residency").and_then(inventory::ps) {
            Ok(loaded) => loaded,
            Err(why) => {
                tracing::debug!(node = %self.name, why, "no residency");
                return Change::default();
            }
        };
        self.residency_asked = Some(asked_at);
        let same =
            self.loaded.len() == loaded.len() && self.loaded.iter().zip(&loaded).all(|(a, b)| a.fields == b.fields);
        if same && self.ps.entries.len() == loaded.len() {
            self.ps.told_again(now.ms);
        } else {
            self.ps = Arc::new(NodePs::new(now.ms, raw(loaded.iter().map(|entry| &entry.fields))));
        }
        if !same {
            self.loaded = Arc::new(loaded);
        }
        Change { ps: !same, residency: true, ..Change::default() }
    }

    pub(super) fn take_slots(&mut self, result: &Result<Answer, FetchError>) -> Change {
        self.slots_timer.busy = false;
        let Some(slots) = body(result, "slots").ok().and_then(inventory::total_slots) else { return Change::default() };
        let changed = self.total_slots.replace(slots) != Some(slots);
        Change { models: changed, ..Change::default() }
    }

    pub(super) fn take_weights(&mut self, digest: &Arc<str>, result: &Result<Answer, FetchError>, now: Now) -> Change {
        self.weights_busy = false;
        self.weights_at = now.ms;
        let (weights, is_known) = match body(result, "weights").and_then(inventory::weights) {
            Ok(blob) => (Weights::Known(blob.map(Arc::from)), true),
            Err(why) => {
                tracing::debug!(node = %self.name, why, "no weights");
                (Weights::Retry(now.ms + SHOW_RETRY_MS), false)
            }
        };
        self.weights.insert(Arc::clone(digest), weights);
        Change { weights: is_known, ..Change::default() }
    }

    /// Digests that left the inventory stay known while ps may still show them, but not without bound.
    fn trim_weights(&mut self) {
        if self.weights.len() > 2 * self.inventory.len() + 256 {
            let kept: std::collections::HashSet<_> = self.inventory.iter().map(|entry| &entry.digest).collect();
            self.weights.retain(|digest, _| kept.contains(digest));
        }
    }
}

/// The body of a 200, or why there is none.
fn body<'a>(result: &'a Result<Answer, FetchError>, what: &str) -> Result<&'a [u8], String> {
    match result {
        Ok(answer) if answer.status == StatusCode::OK => Ok(&answer.body),
        Ok(answer) => Err(format!("{what}: answered {}", answer.status)),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

/// Of a whole body. A node that found two bodies of one hash would keep its own news from us, no more.
fn hashed(body: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(body);
    hasher.finish()
}

fn lacks_path(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

fn raw<'a>(fields: impl Iterator<Item = &'a inventory::Fields>) -> Vec<Box<RawValue>> {
    fields.filter_map(inventory::Fields::to_raw).collect()
}

/// Entries are in order of their keys for Ollama, in the node's own for others.
fn is_in(entries: &[Entry], key: &str) -> bool {
    entries.binary_search_by(|entry| (*entry.key).cmp(key)).is_ok() || entries.iter().any(|entry| *entry.key == *key)
}

fn same_entries(old: &[Entry], new: &[Entry]) -> bool {
    old.len() == new.len() && old.iter().zip(new).all(|(a, b)| a.key == b.key && a.fields == b.fields)
}
