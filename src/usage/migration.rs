//! From schema 1 to 2: a store of the former format is copied, then its rows are rewritten in place, a slice a transaction.
//!
//! Driven by the store thread's opening ([`super::writer`]), a few slices at a time, so that the ledger thread goes on in
//! memory, questions are answered from there, and a start waits for nothing. Must never write before the copy is whole,
//! and never leave a store that a restart cannot take up.
//!
//! # Steps
//! Each is one commit: a process that is killed finds the store as it was before a step, or after it.
//! 1. The store is copied beside itself ([`Store::copy_aside`]). Nobody deletes that copy but an operator.
//! 2. `schema` becomes 2 and `migration` says where to begin. From here on an older herdgate refuses the store.
//! 3. Table by table, rows under a key of the former length are taken away and put under the new one; `migration` says
//!    how far. Telling them by their length makes a slice that was done already harmless.
//! 4. `migration` is taken away. Until then nobody reads a row.
//!
//! # What becomes of a row
//! Schema 1 had one row for all endings of a (time, node, model, key). One that saw a single ending becomes that ending's
//! row. One that saw several keeps what it has under [`Ended::MIXED`]: its requests are known by ending, its tokens and
//! times are not, and are not guessed.

use super::series::{Ended, Row};
use super::store::{Key, Order, Read, SCHEMA, SCHEMA_KEY, Store, StoreError, Table, Writes};

/// Key in [`Table::Meta`] of how far a migration has come: the table's place in [`TABLES`], and the last key done there.
const MIGRATION_KEY: &[u8] = b"migration";
/// The tables that hold rows, and the length of their keys in schema 1.
const TABLES: [(Table, usize); 5] = [
    (Table::Totals, 12),
    (Table::DaysByTime, 16),
    (Table::DaysByModel, 16),
    (Table::MinutesByTime, 16),
    (Table::MinutesByModel, 16),
];
/// Rows rewritten in one transaction: some 30 ms.
const SLICE: u64 = 16_384;
/// Transactions in one go, between which the store thread looks for questions.
const SLICES: usize = 8;

/// A store that is being migrated.
pub(super) struct Migration {
    store: Box<dyn Store>,
    /// Rows rewritten by this process, and rows to be rewritten as far as is known.
    done: u64,
    of: u64,
    told: u64,
}

/// What becomes of a store.
pub(super) enum Next {
    /// It can be used.
    Ready(Box<dyn Store>),
    /// There is more to do.
    More(Migration),
}

/// How far a step came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// This many rows were rewritten, and there is more to do.
    Rewrote(u64),
    /// The store has the schema of today.
    Done,
}

impl Migration {
    /// Looks whether a store has to be migrated before it can be used.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn of(store: Box<dyn Store>) -> Result<Next, StoreError> {
        if state(&*store)?.is_none() {
            return Ok(Next::Ready(store));
        }
        let mut of = 0;
        for (table, _) in TABLES {
            of += store.entries(table)?;
        }
        Ok(Next::More(Self { store, done: 0, of, told: 0 }))
    }

    /// Rows rewritten, and rows there are.
    pub(super) fn progress(&self) -> (u64, u64) {
        (self.done.min(self.of), self.of)
    }

    /// Does the next few steps.
    ///
    /// # Errors
    /// The store's: it is to be opened anew, and its migration taken up where it was.
    pub(super) fn go_on(mut self) -> Result<Next, StoreError> {
        for _ in 0..SLICES {
            match step(&mut *self.store, SLICE)? {
                Step::Rewrote(rows) => self.done += rows,
                Step::Done => {
                    tracing::info!(rows = self.done, schema = SCHEMA, "the ledger has been migrated");
                    return Ok(Next::Ready(self.store));
                }
            }
        }
        let tenth = 10 * self.done / self.of.max(1);
        if tenth > self.told {
            tracing::info!(rows = self.done, of = self.of, "the ledger's migration goes on");
            self.told = tenth;
        }
        Ok(Next::More(self))
    }
}

/// The schema of a store that has to be migrated, and how far it has come.
type State = (u32, Option<Vec<u8>>);

/// How far a store that has to be migrated has come; `None` if it is of today or empty.
fn state(view: &dyn Read) -> Result<Option<State>, StoreError> {
    let (mut schema, mut place) = (SCHEMA, None);
    let wanted = [SCHEMA_KEY, MIGRATION_KEY].map(|key| (Table::Meta, Key::new(key)));
    view.get_many(&wanted, &mut |which, value| match which {
        0 => schema = value.try_into().map_or(schema, u32::from_be_bytes),
        _ => place = Some(value.to_vec()),
    })?;
    Ok((schema < SCHEMA || place.is_some()).then_some((schema, place)))
}

/// The next step: one commit, of so many rows at most.
fn step(store: &mut dyn Store, rows_max: u64) -> Result<Step, StoreError> {
    let Some((schema, place)) = state(store)? else { return Ok(Step::Done) };
    let mut writes = Writes::default();
    let Some(place) = place else {
        if let Some(copy) = store.copy_aside(schema)? {
            tracing::info!(copy = %copy.display(), "the ledger as it was is kept there until somebody deletes it");
        }
        writes.put(Table::Meta, SCHEMA_KEY, &SCHEMA.to_be_bytes());
        writes.put(Table::Meta, MIGRATION_KEY, &[0]);
        store.commit(&writes)?;
        return Ok(Step::Rewrote(0));
    };
    let (at, last) = place.split_first().ok_or_else(|| StoreError::Damaged("its migration has no place".into()))?;
    let Some((table, length)) = TABLES.get(usize::from(*at)).copied() else {
        writes.delete(Table::Meta, MIGRATION_KEY);
        store.commit(&writes)?;
        return Ok(Step::Done);
    };
    let rows = rewrite(store, table, (length, last), rows_max, &mut writes)?;
    let next = match rows.last {
        Some(key) if rows.count == rows_max => [&[*at], key.as_bytes()].concat(),
        _ => vec![at + 1],
    };
    writes.put(Table::Meta, MIGRATION_KEY, &next);
    store.commit(&writes)?;
    Ok(Step::Rewrote(rows.count))
}

/// What a slice found.
#[derive(Default)]
struct Slice {
    count: u64,
    last: Option<Key>,
}

/// Rewrites the rows of a table behind the last key that was done.
fn rewrite(
    view: &dyn Read,
    table: Table,
    (length, last): (usize, &[u8]),
    rows_max: u64,
    writes: &mut Writes,
) -> Result<Slice, StoreError> {
    let (mut slice, mut damage) = (Slice::default(), None);
    view.scan(table, last, &[0xff; 18], Order::Ascending, &mut |key, value| {
        // Rewritten already.
        if key.len() == length + 1 {
            return true;
        }
        let Some(row) = former_row(value).filter(|_| key.len() == length) else {
            let (key, value) = (key.len(), value.len());
            damage = Some(StoreError::Damaged(format!(
                "a row of {value} bytes under {key} in {table:?} is not of schema 1"
            )));
            return false;
        };
        let mut new = [0; 17];
        new[..length].copy_from_slice(key);
        new[length] = ended(&row).0;
        writes.delete(table, key);
        writes.put(table, &new[..=length], &row.encode());
        (slice.count, slice.last) = (slice.count + 1, Some(Key::new(key)));
        slice.count < rows_max
    })?;
    damage.map_or(Ok(slice), Err)
}

/// Under which ending a row of all endings goes.
fn ended(row: &Row) -> Ended {
    let mut seen = (0_u8..).zip(row.requests).filter(|(_, requests)| *requests > 0).map(|(ending, _)| Ended(ending));
    match (seen.next(), seen.next()) {
        // Imported: without requests.
        (None, _) => Ended::COMPLETED,
        (Some(only), None) => only,
        (Some(_), Some(_)) => Ended::MIXED,
    }
}

/// Reads a row of schema 1: a version byte, a flags byte, and every figure.
fn former_row(bytes: &[u8]) -> Option<Row> {
    let (&[1, flags], rest) = bytes.split_first_chunk()? else { return None };
    let (words, over) = rest.as_chunks::<8>();
    let figures: [[u8; 8]; Row::FIGURES] = words.try_into().ok().filter(|_| over.is_empty())?;
    Some(Row::of_figures(figures.map(u64::from_be_bytes), flags & 1 == 1))
}

#[cfg(all(test, not(proxy_loom)))]
mod tests {
    use std::path::PathBuf;

    use super::super::memory::MemoryStore;
    use super::super::store::{Found, Visit};
    use super::*;

    /// A store that dies with or without storing its last commit.
    #[derive(Clone, Default)]
    struct Dying {
        contents: MemoryStore,
        commits_left: usize,
        stores_the_last: bool,
        copies: Vec<MemoryStore>,
    }

    impl Read for Dying {
        fn get_many(&self, wanted: &[(Table, Key)], found: Found<'_>) -> Result<(), StoreError> {
            self.contents.get_many(wanted, found)
        }

        fn scan(&self, table: Table, from: &[u8], to: &[u8], order: Order, visit: Visit<'_>) -> Result<(), StoreError> {
            self.contents.scan(table, from, to, order, visit)
        }
    }

    impl Store for Dying {
        fn commit(&mut self, writes: &Writes) -> Result<(), StoreError> {
            let alive = self.commits_left > 0;
            self.commits_left = self.commits_left.saturating_sub(1);
            if alive || self.stores_the_last {
                self.contents.apply(writes);
            }
            if alive { Ok(()) } else { Err(StoreError::Failed("killed".into())) }
        }

        fn sync(&mut self) -> Result<(), StoreError> {
            Ok(())
        }

        fn entries(&self, table: Table) -> Result<u64, StoreError> {
            self.contents.entries(table)
        }

        fn copy_aside(&mut self, schema: u32) -> Result<Option<PathBuf>, StoreError> {
            assert_eq!(schema, 1);
            self.copies.push(self.contents.clone());
            Ok(None)
        }
    }

    fn encode_former(row: &Row, figures: [u64; 17]) -> Vec<u8> {
        let figures = figures.into_iter().flat_map(u64::to_be_bytes);
        [1, u8::from(row.far)].into_iter().chain(figures).collect()
    }

    /// Figures of a row of schema 1: requests by ending, then something of everything else.
    fn figures(requests: [u64; 5], seed: u64) -> [u64; 17] {
        std::array::from_fn(|place| requests.get(place).copied().unwrap_or(seed * 100 + place as u64))
    }

    const ENDINGS: [[u64; 5]; 4] = [[3, 0, 0, 0, 0], [0, 2, 0, 0, 0], [4, 0, 0, 1, 0], [0; 5]];

    /// A store of schema 1 with rows of every kind in every table.
    fn former() -> MemoryStore {
        let mut writes = Writes::default();
        writes.put(Table::Meta, SCHEMA_KEY, &1_u32.to_be_bytes());
        writes.put(Table::Meta, b"folded_before", &7_u32.to_be_bytes());
        writes.put(Table::Pairs, &[0; 8], &[0; 4]);
        for (table, length) in TABLES {
            for row in 0..10_u64 {
                let key = [vec![1; length - 4], (row as u32).to_be_bytes().to_vec()].concat();
                let far = Row { far: row == 3, ..Row::default() };
                writes.put(table, &key, &encode_former(&far, figures(ENDINGS[row as usize % 4], row + 1)));
            }
        }
        let mut store = MemoryStore::default();
        store.apply(&writes);
        store
    }

    fn dump(store: &dyn Read) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        for table in Table::ALL {
            let visit = &mut |key: &[u8], value: &[u8]| {
                all.push((table, key.to_vec(), value.to_vec()));
                true
            };
            store.scan(table, &[], &[0xff; 18], Order::Ascending, visit).expect("memory reads");
        }
        all
    }

    fn run(store: &mut dyn Store) -> Result<usize, StoreError> {
        let mut steps = 0;
        while step(store, 3)? != Step::Done {
            steps += 1;
        }
        Ok(steps)
    }

    #[test]
    fn every_row_stands_under_its_ending_with_all_it_had() {
        let mut store = former();
        run(&mut store).unwrap();
        assert_eq!(state(&store).unwrap(), None);
        for (table, length) in TABLES {
            let mut seen = 0_u64;
            let visit = &mut |key: &[u8], value: &[u8]| {
                let expected = figures(ENDINGS[seen as usize % 4], seen + 1);
                assert_eq!(key.len(), length + 1);
                assert_eq!(key[length], [0, 1, u8::MAX, 0][seen as usize % 4], "row {seen}");
                assert_eq!(Row::decode(value), Some(Row::of_figures(expected, seen == 3)));
                seen += 1;
                true
            };
            store.scan(table, &[], &[0xff; 18], Order::Ascending, visit).unwrap();
            assert_eq!(seen, 10);
        }
        let kept = dump(&store).into_iter().filter(|(table, ..)| matches!(table, Table::Meta | Table::Pairs));
        assert_eq!(kept.count(), 3, "folded_before, schema, and the pair");
    }

    #[test]
    fn killed_between_any_two_steps_it_is_taken_up_and_ends_the_same() {
        let mut whole = former();
        let steps = run(&mut whole).unwrap();
        assert!(steps > 20, "{steps}");
        for killed_after in 0..=steps {
            for stores_the_last in [false, true] {
                let mut store =
                    Dying { contents: former(), commits_left: killed_after, stores_the_last, copies: Vec::new() };
                run(&mut store).unwrap_err();
                let first = store.copies.first().expect("nothing is written before there is a copy");
                assert_eq!(dump(first), dump(&former()));
                let begun = killed_after > 0 || stores_the_last;
                let mut schema = Vec::new();
                let wanted = [(Table::Meta, Key::new(SCHEMA_KEY))];
                store.get_many(&wanted, &mut |_, value| schema = value.to_vec()).unwrap();
                assert_eq!(schema, (1 + u32::from(begun)).to_be_bytes(), "an older herdgate refuses what was begun");
                store.commits_left = usize::MAX;
                run(&mut store).unwrap();
                assert_eq!(dump(&store), dump(&whole), "killed after {killed_after}, stored: {stores_the_last}");
                assert_eq!(store.copies.len(), if begun { 1 } else { 2 }, "what was begun is not copied");
            }
        }
    }

    #[test]
    fn what_is_no_row_of_schema_1_stops_it_and_is_named() {
        for (key, value) in [(&[1; 12][..], &[1; 137][..]), (&[1; 12], &[2; 138]), (&[1; 11], &[1; 138])] {
            let mut writes = Writes::default();
            writes.put(Table::Totals, key, value);
            let mut store = former();
            store.apply(&writes);
            let error = run(&mut store).unwrap_err();
            assert!(matches!(&error, StoreError::Damaged(why) if why.contains("Totals")), "{error}");
        }
    }

    #[test]
    fn a_store_of_today_and_an_empty_one_are_left_alone() {
        let mut store = former();
        run(&mut store).unwrap();
        for store in [store, MemoryStore::default()] {
            let before = dump(&store);
            let Next::Ready(after) = Migration::of(Box::new(store)).unwrap() else { panic!("not migrated") };
            assert_eq!(dump(&*after), before);
        }
    }
}
