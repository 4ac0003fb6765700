//! Stores without a disk: one that keeps everything in memory (demo, tests), and a view that lays rows which are not
//! written yet over a store, so that answers include them.
//!
//! Used by the store thread. Must never be mistaken for a ledger that lasts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::store::{Found, Key, Order, Read, Store, StoreError, Table, Visit, Writes};

type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store in memory.
#[derive(Clone, Default, Debug)]
pub struct MemoryStore {
    tables: [Entries; Table::ALL.len()],
}

impl MemoryStore {
    fn range(&self, table: Table, from: &[u8], to: &[u8]) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        // A range whose start lies behind its end is empty here, where a BTreeMap panics.
        let span = (from <= to).then(|| self.tables[table as usize].range(from.to_vec()..=to.to_vec()));
        span.into_iter().flatten().map(|(key, value)| (&**key, &**value))
    }

    /// Applies writes; cannot fail.
    pub fn apply(&mut self, writes: &Writes) {
        for (table, key, value) in writes.iter() {
            let entries = &mut self.tables[table as usize];
            match value {
                Some(value) => entries.insert(key.to_vec(), value.to_vec()),
                None => entries.remove(key),
            };
        }
    }
}

impl Read for MemoryStore {
    fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError> {
        for (place, (table, key)) in wanted.iter().enumerate() {
            if let Some(value) = self.tables[*table as usize].get(key.as_bytes()) {
                found(place, value);
            }
        }
        Ok(())
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        let mut entries = self.range(table, from, to);
        while let Some((key, value)) = next(&mut entries, order) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

impl Store for MemoryStore {
    fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
        self.apply(writes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn entries(&self, table: Table) -> Result<u64, StoreError> {
        Ok(self.tables[table as usize].len() as u64)
    }

    fn copy_aside(&mut self, _schema: u32) -> Result<Option<PathBuf>, StoreError> {
        Ok(None)
    }
}

fn next<T>(entries: &mut impl DoubleEndedIterator<Item = T>, order: Order) -> Option<T> {
    match order {
        Order::Ascending => entries.next(),
        Order::Descending => entries.next_back(),
    }
}

/// A store with puts laid over it. Deletes in the upper layer are not modelled: what is not written yet only adds.
pub(super) struct Layered<'a> {
    pub(super) below: &'a dyn Read,
    pub(super) above: &'a MemoryStore,
}

impl Read for Layered<'_> {
    fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError> {
        self.below.get_many(wanted, found)?;
        // Told twice, the later wins.
        self.above.get_many(wanted, found)
    }

    fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
        let mut upper = self.above.range(table, from, to);
        let mut waiting = next(&mut upper, order);
        let mut more = true;
        let before = |a: &[u8], b: &[u8]| match order {
            Order::Ascending => a < b,
            Order::Descending => a > b,
        };
        self.below.scan(table, from, to, order, &mut |key, value| {
            while let Some((upper_key, upper_value)) = waiting.filter(|(upper_key, _)| before(upper_key, key)) {
                waiting = next(&mut upper, order);
                more = visit(upper_key, upper_value);
                if !more {
                    return false;
                }
            }
            match waiting.filter(|(upper_key, _)| *upper_key == key) {
                Some((_, upper_value)) => {
                    waiting = next(&mut upper, order);
                    more = visit(key, upper_value);
                }
                None => more = visit(key, value),
            }
            more
        })?;
        while let Some((key, value)) = waiting.filter(|_| more) {
            waiting = next(&mut upper, order);
            more = visit(key, value);
        }
        Ok(())
    }
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn store(entries: &[(u8, u8)]) -> MemoryStore {
        let mut writes = Writes::default();
        for (key, value) in entries {
            writes.put(Table::Totals, &[*key], &[*value]);
        }
        let mut store = MemoryStore::default();
        store.apply(&writes);
        store
    }

    fn read(store: &dyn Read, from: u8, to: u8, order: Order, most: usize) -> Vec<(u8, u8)> {
        let mut seen = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            seen.push((key[0], value[0]));
            seen.len() < most
        };
        store.scan(Table::Totals, &[from], &[to], order, visit).expect("memory reads");
        seen
    }

    proptest! {
        #[test]
        fn a_layered_view_reads_like_the_written_store(
            below in prop::collection::vec((0_u8..12, any::<u8>()), 0..10),
            above in prop::collection::vec((0_u8..12, any::<u8>()), 0..10),
            from in 0_u8..12, to in 0_u8..12, most in 1_usize..15, descending: bool,
        ) {
            let both: Vec<_> = below.iter().chain(&above).copied().collect();
            let (below, above, both) = (store(&below), store(&above), store(&both));
            let view = Layered { below: &below, above: &above };
            let order = if descending { Order::Descending } else { Order::Ascending };
            prop_assert_eq!(read(&view, from, to, order, most), read(&both, from, to, order, most));
        }
    }
}
