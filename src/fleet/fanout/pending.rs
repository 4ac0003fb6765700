//! What nodes that are down have missed: operations kept for their return. Pure; `keeper` stores it.
//!
//! An entry is a desired state of one name on one node, so a newer order for the same name there takes its place. It
//! expires after a day. Must never let it meet a model other than the one seen when it was ordered: an entry
//! carries the digests of that moment, and [`Entry::still_holds`] compares them with what the node has on its return.

use serde::{Deserialize, Serialize};

use crate::dialect::name;
use crate::fleet::fanout::ask::{Asked, Verb};
use crate::fleet::fanout::targets::Goal;
use crate::fleet::inventory;

/// How long an operation is kept, milliseconds.
pub const KEPT_MS: u64 = 24 * 3_600_000;
/// Entries at once; what is beyond them is reported as missed.
pub const ENTRIES_MAX: usize = 4_096;
/// Between two attempts that failed, at first and at most.
const RETRY_MS: u64 = 1_000;
const RETRY_MS_MAX: u64 = 600_000;
/// The longest text of a failure that is kept.
const ERROR_BYTES_MAX: usize = 512;

/// A desired state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// The model is there, as the registry has it.
    Pull,
    /// The model is gone.
    Delete,
    /// The destination is the source as it was.
    Copy,
}

impl Operation {
    /// Of those verbs that state one.
    #[must_use]
    pub fn of(verb: Verb) -> Option<Self> {
        match verb {
            Verb::Pull => Some(Self::Pull),
            Verb::Delete => Some(Self::Delete),
            Verb::Copy => Some(Self::Copy),
            // What a create or a push makes of the same order a day later may be something else.
            Verb::Create | Verb::Push => None,
        }
    }
}

/// One operation, kept for one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, for cancelling.
    pub id: u64,
    /// The node's name.
    pub node: String,
    /// What.
    pub operation: Operation,
    /// The model as the client wrote it (a copy's source).
    pub model: String,
    /// Routing key of the name that it changes.
    pub key: Box<str>,
    /// A copy's destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// A pull over plain HTTP is allowed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Digest that the node had under the model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest that it had under a copy's destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there: Option<String>,
    /// UTC milliseconds.
    pub ordered_unix_ms: u64,
    /// UTC milliseconds.
    pub expires_unix_ms: u64,
    /// Attempts that failed.
    #[serde(default)]
    pub attempts: u32,
    /// What the last of them said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// UTC milliseconds before which it is not tried again.
    #[serde(skip)]
    pub not_before_unix_ms: u64,
}

impl Entry {
    /// An operation as it was ordered, for a node that missed it. The list gives it its number.
    #[must_use]
    pub fn new(operation: Operation, asked: &Asked, goal: &Goal, unix_ms: u64) -> Self {
        Self {
            id: 0,
            node: goal.name.to_string(),
            operation,
            model: asked.model.clone(),
            key: super::Desk::changed_key(asked),
            destination: (operation == Operation::Copy).then(|| asked.destination.clone()),
            insecure: asked.insecure,
            digest: goal.digest.as_deref().map(str::to_owned),
            there: goal.there.as_deref().map(str::to_owned),
            ordered_unix_ms: unix_ms,
            expires_unix_ms: unix_ms + KEPT_MS,
            attempts: 0,
            error: None,
            not_before_unix_ms: 0,
        }
    }

    /// Whether the node, with this inventory, is as it was when this was ordered: only then may it be carried out.
    #[must_use]
    pub fn still_holds(&self, has: &[inventory::Entry]) -> bool {
        let digest = |sent: &str| {
            let key = name::key(sent);
            has.iter().find(|entry| *entry.key == *key).map(|entry| &*entry.digest)
        };
        match self.operation {
            Operation::Pull => digest(&self.model) == self.digest.as_deref(),
            Operation::Delete => self.digest.is_some() && digest(&self.model) == self.digest.as_deref(),
            Operation::Copy => {
                let destination = self.destination.as_deref().unwrap_or_default();
                self.digest.is_some()
                    && digest(&self.model) == self.digest.as_deref()
                    && digest(destination) == self.there.as_deref()
            }
        }
    }
}

/// All that is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pending {
    next: u64,
    entries: Vec<Entry>,
}

impl Pending {
    /// In the order in which they were ordered.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Keeps one; false: there are too many.
    pub fn add(&mut self, entry: Entry) -> bool {
        self.forget(&entry.node, &entry.key);
        if self.entries.len() >= ENTRIES_MAX {
            return false;
        }
        self.next += 1;
        self.entries.push(Entry { id: self.next, ..entry });
        true
    }

    /// Takes one off.
    pub fn remove(&mut self, id: u64) -> Option<Entry> {
        let at = self.entries.iter().position(|entry| entry.id == id)?;
        Some(self.entries.remove(at))
    }

    /// A newer order has settled this name on this node: takes off what was kept for it, and says their numbers.
    pub fn forget(&mut self, node: &str, key: &str) -> Vec<u64> {
        self.take(|entry| *entry.key == *key && entry.node == node)
    }

    /// A newer order for this name begins on these nodes: takes off what was kept for it, and hands it over.
    ///
    /// It is in no file meanwhile. A process that is killed in the middle forgets it, which is the safe side: how much of
    /// the newer order was done then is not known, and an old deletion must not undo a pull, nor an old pull a deletion.
    pub fn aside(&mut self, key: &str, on: impl Fn(&str) -> bool) -> Vec<Entry> {
        let (taken, left) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| *entry.key == *key && on(&entry.node));
        self.entries = left;
        taken
    }

    /// That order has done nothing: what it took off is kept again, unless another order has come meanwhile.
    pub fn put_back(&mut self, entry: Entry) {
        let newer = self.entries.iter().any(|other| other.node == entry.node && other.key == entry.key);
        if !newer && self.entries.len() < ENTRIES_MAX {
            let at = self.entries.partition_point(|other| other.id < entry.id);
            self.entries.insert(at, entry);
        }
    }

    /// Takes off what is older than a day; their numbers.
    pub fn expire(&mut self, unix_ms: u64) -> Vec<u64> {
        self.take(|entry| entry.expires_unix_ms <= unix_ms)
    }

    fn take(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<u64> {
        let gone = self.entries.iter().filter(|entry| which(entry)).map(|entry| entry.id).collect();
        self.entries.retain(|entry| !which(entry));
        gone
    }

    /// An attempt failed: tried again later, each time twice as late.
    pub fn failed(&mut self, id: u64, text: &str, unix_ms: u64) {
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.id == id) else { return };
        let wait = RETRY_MS.saturating_mul(1 << entry.attempts.min(20)).min(RETRY_MS_MAX);
        entry.attempts = entry.attempts.saturating_add(1);
        entry.not_before_unix_ms = unix_ms + wait;
        let end = text.floor_char_boundary(ERROR_BYTES_MAX.min(text.len()));
        entry.error = Some(text[..end].to_owned());
    }

    /// What can be tried now: the oldest of each node that `is_up` and not `busy`.
    #[must_use]
    pub fn due(&self, unix_ms: u64, is_up: impl Fn(&str) -> bool, busy: impl Fn(&str) -> bool) -> Vec<Entry> {
        let mut due: Vec<Entry> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.not_before_unix_ms <= unix_ms) {
            let taken = due.iter().any(|other| other.node == entry.node);
            if !taken && is_up(&entry.node) && !busy(&entry.node) {
                due.push(entry.clone());
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: &str, operation: Operation, model: &str) -> Entry {
        Entry {
            id: 0,
            node: node.to_owned(),
            operation,
            model: model.to_owned(),
            key: name::key(model),
            destination: None,
            insecure: false,
            digest: Some("d1".to_owned()),
            there: None,
            ordered_unix_ms: 0,
            expires_unix_ms: KEPT_MS,
            attempts: 0,
            error: None,
            not_before_unix_ms: 0,
        }
    }

    fn has(models: &[(&str, &str)]) -> Vec<inventory::Entry> {
        let list = models.iter().map(|(name, digest)| serde_json::json!({ "name": name, "digest": digest }));
        let body = serde_json::json!({ "models": list.collect::<Vec<_>>() }).to_string();
        inventory::tags(body.as_bytes()).unwrap()
    }

    #[test]
    fn a_newer_order_for_the_name_takes_the_place_of_an_older() {
        let mut pending = Pending::default();
        assert!(pending.add(entry("a", Operation::Pull, "m")));
        assert!(pending.add(entry("b", Operation::Pull, "m")));
        assert!(pending.add(entry("a", Operation::Delete, "M:latest")));
        let kept: Vec<_> = pending.entries().iter().map(|e| (e.id, &*e.node, e.operation)).collect();
        assert_eq!(kept, [(2, "b", Operation::Pull), (3, "a", Operation::Delete)]);
        assert_eq!(pending.forget("a", "m:latest"), [3]);
        assert_eq!(pending.remove(2).unwrap().node, "b");
        assert_eq!(pending.remove(2), None);
        assert!(pending.add(entry("a", Operation::Pull, "m")));
        assert_eq!(pending.entries()[0].id, 4, "a number is not given twice");
    }

    #[test]
    fn what_was_taken_aside_comes_back_unless_a_newer_order_came() {
        let mut pending = Pending::default();
        for (node, model) in [("a", "m"), ("b", "m"), ("a", "n")] {
            assert!(pending.add(entry(node, Operation::Pull, model)));
        }
        let before = pending.entries().to_vec();
        let aside = pending.aside("m:latest", |_| true);
        assert_eq!((aside.len(), pending.entries().len()), (2, 1));
        for entry in aside {
            pending.put_back(entry);
        }
        assert_eq!(pending.entries(), before);
        let aside = pending.aside("m:latest", |node| node == "a");
        assert!(pending.add(entry("a", Operation::Delete, "m")));
        assert_eq!(aside.len(), 1);
        for entry in aside {
            pending.put_back(entry);
        }
        let kept: Vec<_> = pending.entries().iter().map(|e| (e.id, e.operation)).collect();
        assert_eq!(kept, [(2, Operation::Pull), (3, Operation::Pull), (4, Operation::Delete)]);
    }

    #[test]
    fn nothing_is_deleted_but_what_was_seen() {
        let delete = entry("a", Operation::Delete, "m");
        assert!(delete.still_holds(&has(&[("m:latest", "d1"), ("x:latest", "d2")])));
        assert!(!delete.still_holds(&has(&[("m:latest", "d2")])), "pulled anew meanwhile");
        assert!(!delete.still_holds(&has(&[])));
        let unseen = Entry { digest: None, ..delete };
        assert!(!unseen.still_holds(&has(&[])) && !unseen.still_holds(&has(&[("m:latest", "d1")])));
    }

    #[test]
    fn a_pull_overwrites_only_what_was_seen() {
        let newer = entry("a", Operation::Pull, "m");
        assert!(newer.still_holds(&has(&[("m:latest", "d1")])));
        assert!(!newer.still_holds(&has(&[("m:latest", "d2")])), "made there meanwhile");
        let first = Entry { digest: None, ..newer };
        assert!(first.still_holds(&has(&[("x:latest", "d1")])));
        assert!(!first.still_holds(&has(&[("m:latest", "d1")])));
    }

    #[test]
    fn a_copy_overwrites_only_what_was_seen() {
        let copy = Entry { destination: Some("c".to_owned()), ..entry("a", Operation::Copy, "m") };
        assert!(copy.still_holds(&has(&[("m:latest", "d1")])));
        assert!(!copy.still_holds(&has(&[("m:latest", "d1"), ("c:latest", "d9")])));
        let over = Entry { there: Some("d9".to_owned()), ..copy };
        assert!(over.still_holds(&has(&[("m:latest", "d1"), ("c:latest", "d9")])));
        assert!(!over.still_holds(&has(&[("m:latest", "d2"), ("c:latest", "d9")])));
    }

    #[test]
    fn it_expires_after_a_day() {
        let mut pending = Pending::default();
        assert!(pending.add(entry("a", Operation::Pull, "m")));
        assert_eq!(pending.expire(KEPT_MS - 1), [0; 0]);
        assert_eq!(pending.expire(KEPT_MS), [1]);
        assert!(pending.entries().is_empty());
    }

    #[test]
    fn a_node_is_asked_one_thing_at_a_time_and_later_after_a_failure() {
        let mut pending = Pending::default();
        for (node, model) in [("a", "m"), ("a", "n"), ("b", "m"), ("down", "m")] {
            assert!(pending.add(entry(node, Operation::Pull, model)));
        }
        let due = |pending: &Pending, now, busy: &str| -> Vec<u64> {
            pending.due(now, |node| node != "down", |node| node == busy).iter().map(|e| e.id).collect()
        };
        assert_eq!(due(&pending, 0, ""), [1, 3]);
        assert_eq!(due(&pending, 0, "a"), [3]);
        pending.failed(1, "no space left", 0);
        assert_eq!(due(&pending, 999, ""), [2, 3], "one that fails does not hold up the others");
        assert_eq!(due(&pending, 1_000, ""), [1, 3]);
        pending.failed(1, &"é".repeat(1_000), 1_000);
        assert_eq!(due(&pending, 2_999, ""), [2, 3]);
        assert!(pending.entries()[0].error.as_ref().unwrap().len() <= ERROR_BYTES_MAX);
        for _ in 0..100 {
            pending.failed(1, "x", 0);
        }
        assert_eq!(pending.entries()[0].not_before_unix_ms, RETRY_MS_MAX);
    }

    #[test]
    fn the_list_is_bounded() {
        let mut pending = Pending::default();
        for n in 0..ENTRIES_MAX {
            assert!(pending.add(entry("a", Operation::Pull, &format!("m{n}"))));
        }
        assert!(!pending.add(entry("a", Operation::Pull, "one-more")));
        assert!(pending.add(entry("a", Operation::Delete, "m7")), "it takes the place of another");
    }
}
