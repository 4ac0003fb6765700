//! The ledger's own ids of names, and what maps the process' ids to them.
//!
//! Used by the store thread. Stored ids outlive the configuration: a node that is renumbered, removed or renamed never
//! takes over another's rows. Must never give one id to two names.

use std::collections::HashMap;

use super::fold::RowId;
use super::names::{NONE, Names, OTHER, UNKNOWN};
use super::series::{StoredId, StoredParty};
use super::store::{Order, Read, StoreError, Table, Writes};
use crate::ids::{KeyId, ModelId, NodeId};
use crate::sync::Arc;

/// What a name is a name of; the first byte of its key in the dictionary.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    Node = 1,
    Model = 2,
    Key = 3,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Node, Self::Model, Self::Key];

    /// The name of a shared id.
    const fn shared_name(self, id: StoredId) -> &'static str {
        match (self, id) {
            (Self::Model, StoredId::NONE) => UNKNOWN,
            (_, StoredId::NONE) => NONE,
            _ => OTHER,
        }
    }
}

/// Names by stored id, in both directions, as the store has them plus those not written yet.
#[derive(Clone, Default, Debug)]
pub(super) struct Dictionary {
    ids: HashMap<(Kind, Arc<str>), StoredId>,
    names: HashMap<(Kind, StoredId), Arc<str>>,
    /// First id never given out, per kind.
    next: [u32; 3],
    /// Ids to be written with the next commit.
    unsaved: Vec<(Kind, StoredId)>,
    nodes: HashMap<NodeId, StoredId>,
    models: HashMap<ModelId, StoredId>,
    keys: HashMap<KeyId, StoredId>,
}

impl Dictionary {
    /// Reads the dictionary of a store.
    pub(super) fn load(view: &dyn Read) -> Result<Self, StoreError> {
        let mut dictionary = Self::default();
        let mut damage = None;
        view.scan(Table::Dictionary, &[], &[0xff; 16], Order::Ascending, &mut |key, name| {
            match entry(key, name) {
                Some((kind, id, name)) => dictionary.insert(kind, id, name),
                None => damage = Some(StoreError::Damaged("an entry of the dictionary cannot be read".into())),
            }
            damage.is_none()
        })?;
        damage.map_or(Ok(dictionary), Err)
    }

    /// The stored ids of a row's process ids, given out now where there are none.
    pub(super) fn party(&mut self, names: &Names, id: RowId) -> StoredParty {
        let RowId { node, model, key, ended, .. } = id;
        let (node, model, key) = (self.node(names, node), self.model(names, model), self.key(names, key));
        StoredParty { node, model, key, ended }
    }

    fn node(&mut self, names: &Names, id: NodeId) -> StoredId {
        if id == NodeId::NONE {
            return StoredId::NONE;
        }
        if let Some(stored) = self.nodes.get(&id) {
            return *stored;
        }
        let stored = self.intern(Kind::Node, names.node_name(id));
        self.nodes.insert(id, stored);
        stored
    }

    fn model(&mut self, names: &Names, id: ModelId) -> StoredId {
        match id {
            ModelId::UNKNOWN => return StoredId::NONE,
            ModelId::OTHER => return StoredId::OTHER,
            _ => {}
        }
        if let Some(stored) = self.models.get(&id) {
            return *stored;
        }
        let stored = self.intern(Kind::Model, &names.model_name(id));
        self.models.insert(id, stored);
        stored
    }

    fn key(&mut self, names: &Names, id: KeyId) -> StoredId {
        if id == KeyId::NONE {
            return StoredId::NONE;
        }
        if let Some(stored) = self.keys.get(&id) {
            return *stored;
        }
        let stored = self.intern(Kind::Key, names.key_name(id));
        self.keys.insert(id, stored);
        stored
    }

    /// The id of a name, given out now if it has none.
    pub(super) fn intern(&mut self, kind: Kind, name: &str) -> StoredId {
        if let Some(id) = self.ids.get(&(kind, Arc::from(name))) {
            return *id;
        }
        let id = StoredId(self.next[kind as usize - 1].max(StoredId::FIRST.0));
        self.insert(kind, id, name.into());
        self.unsaved.push((kind, id));
        id
    }

    fn insert(&mut self, kind: Kind, id: StoredId, name: Arc<str>) {
        let next = &mut self.next[kind as usize - 1];
        *next = (*next).max(id.0.saturating_add(1));
        self.ids.insert((kind, name.clone()), id);
        self.names.insert((kind, id), name);
    }

    /// The id of a name. Shared names (`_none`, ...) are found unless a real one is called so.
    pub(super) fn find(&self, kind: Kind, name: &str) -> Option<StoredId> {
        let shared = [StoredId::NONE, StoredId::OTHER].into_iter().find(|id| kind.shared_name(*id) == name);
        self.ids.get(&(kind, Arc::from(name))).copied().or(shared)
    }

    /// The name of an id.
    pub(super) fn name(&self, kind: Kind, id: StoredId) -> Arc<str> {
        self.names.get(&(kind, id)).cloned().unwrap_or_else(|| kind.shared_name(id).into())
    }

    /// Adds the names that the store lacks.
    pub(super) fn write_unsaved(&self, writes: &mut Writes) {
        for (kind, id) in &self.unsaved {
            let mut key = [*kind as u8, 0, 0, 0, 0];
            key[1..].copy_from_slice(&id.0.to_be_bytes());
            writes.put(Table::Dictionary, &key, self.name(*kind, *id).as_bytes());
        }
    }

    /// The store has them now.
    pub(super) fn saved(&mut self) {
        self.unsaved.clear();
    }
}

/// Takes an entry of the dictionary apart.
fn entry(key: &[u8], name: &[u8]) -> Option<(Kind, StoredId, Arc<str>)> {
    let (kind, id) = key.split_first()?;
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
    let id = u32::from_be_bytes(id.try_into().ok()?);
    Some((kind, StoredId(id), std::str::from_utf8(name).ok()?.into()))
}
