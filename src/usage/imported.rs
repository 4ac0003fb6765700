//! Sums of an earlier accounting, kept beside what this gate counted itself: what they are, and how they join the store.
//!
//! Made by `import` from the ancestor's database; written by the store thread ([`super::writer`]). Must never add
//! anything twice, never change a row that the gate counted itself, and never lose what an earlier import brought.
//!
//! # How they are stored
//! As rows of a router key of their own ([`IMPORTED`], or `_imported:SOURCE`): node, model and time as everywhere, the
//! tokens in the place of exact ones, no requests, among what completed (it counted nothing else). So they add up wherever sums over keys are shown, stand apart
//! wherever keys are, and the format of the store is what it was. Nobody else writes rows of such a key.
//!
//! # How an import joins what an earlier one brought
//! 1. Totals are the authority, and only grow: a file in which one shrank or is missing is another file, and refused
//!    unless it is to replace the earlier one.
//! 2. Minutes before the cut (what is folded anyway) are summed into days on both sides first. Then each minute and each
//!    day holds the greater of what is stored and what the file has: a file that was trimmed since takes nothing away.
//!    Where times are doubtful ([`Import::doubtful`]) and either has more somewhere, the rows were dated otherwise before:
//!    the file's own are right, or the same tokens would stand at two times.
//! 3. The ancestor's daily rows count only where nothing else is known of the day, and only if they fit into the total.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Tokens;
use super::answers::{Bucket, TokenCount};
use super::dictionary::{Dictionary, Kind};
use super::names::{NONE, UNKNOWN};
use super::query::{self, ALL};
use super::series::{self, Ended, Row, StoredId, StoredParty};
use super::store::{Order, Read, StoreError, Table, Writes};
use crate::ids::{UnixDay, UnixMinute};

/// The router key of imported rows; with a colon and a name behind it, of a further source.
pub const IMPORTED: &str = "_imported";

/// Whether rows of this router key were imported.
#[must_use]
pub fn is_imported(key: &str) -> bool {
    key.strip_prefix(IMPORTED).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// What is to be imported.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Import {
    /// The source: empty, or its name.
    pub source: String,
    /// Minutes before this one are in `days`.
    pub cut: UnixMinute,
    /// Whether to take the place of what this source brought before, where it is no earlier state of this.
    pub replace: bool,
    /// Whether only to say what would be done.
    pub dry_run: bool,
    /// The data directory that it is meant for; `None`: that of whoever is asked.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// From when to before when rows may be dated otherwise than at an earlier import.
    #[serde(default)]
    pub doubtful: Option<(UnixMinute, UnixMinute)>,
    /// Each (node, model) once, in the order in which they are to appear.
    pub pairs: Vec<ImportPair>,
}

/// What is to be imported of one (node, model).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ImportPair {
    /// The node's id.
    pub node: String,
    /// The model's display name.
    pub model: String,
    /// All time.
    pub total: Tokens,
    /// Minutes from the cut on.
    pub minutes: BTreeMap<UnixMinute, Tokens>,
    /// Sums of the minutes before the cut.
    pub days: BTreeMap<UnixDay, Tokens>,
    /// Days of which only a sum is left, and that one uncertain.
    pub daily: BTreeMap<UnixDay, Tokens>,
}

/// What an import did, or would do.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Imported {
    /// Each (node, model), in the order given.
    pub pairs: Vec<ImportedPair>,
    /// What is stored of this source and cannot be an earlier state of what was given: node, model, what is stored, and
    /// what was given instead, if anything. Not empty: nothing was written.
    pub conflicts: Vec<Conflict>,
    /// Whether anything was written (or would be).
    pub changed: bool,
    /// Whether it was.
    pub written: bool,
}

impl Imported {
    /// All-time tokens with what this import changed: those of new pairs behind the others.
    pub(super) fn added_to(&self, base: &[TokenCount]) -> Vec<TokenCount> {
        let mut counts = base.to_vec();
        for pair in &self.pairs {
            let found = counts.iter().position(|count| *count.node == *pair.node && *count.model == *pair.model);
            let place = found.unwrap_or_else(|| {
                let (node, model) = (pair.node.as_str().into(), pair.model.as_str().into());
                let none = Tokens::default();
                counts.push(TokenCount { node, model, exact: none, estimated: none, imported: none });
                counts.len() - 1
            });
            let sum = &mut counts[place].imported;
            sum.input = (sum.input + pair.after.input).saturating_sub(pair.before.input);
            sum.output = (sum.output + pair.after.output).saturating_sub(pair.before.output);
        }
        counts
    }
}

/// What an import did to one (node, model).
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ImportedPair {
    /// The node's id.
    pub node: String,
    /// The model's name in the ledger.
    pub model: String,
    /// What was there of this source.
    pub before: Tokens,
    /// What is there now.
    pub after: Tokens,
    /// Of that, in minutes and days; the rest has no date.
    pub dated: Tokens,
    /// Minutes.
    pub minutes: usize,
    /// Days.
    pub days: usize,
    /// Daily rows that were left out, because they exceed the total.
    pub daily_refused: usize,
}

/// What is stored of a source and is not in what was given.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conflict {
    /// The node's id.
    pub node: String,
    /// The model's name in the ledger.
    pub model: String,
    /// What is stored.
    pub stored: Tokens,
    /// What was given, if anything.
    pub given: Option<Tokens>,
}

impl Import {
    fn key(&self) -> String {
        if self.source.is_empty() { IMPORTED.to_owned() } else { format!("{IMPORTED}:{}", self.source) }
    }
}

type Pair = (StoredId, StoredId);

/// What is stored, or to be stored, of one pair of this source.
#[derive(Clone, PartialEq, Default, Debug)]
struct Sums {
    total: Tokens,
    minutes: BTreeMap<u32, Tokens>,
    days: BTreeMap<u32, Tokens>,
}

impl Sums {
    /// Sums minutes before the cut into their days.
    fn cut(&mut self, cut: UnixMinute) {
        let kept = self.minutes.split_off(&cut.0);
        for (minute, tokens) in std::mem::replace(&mut self.minutes, kept) {
            let day = self.days.entry(series::day_number(minute).0).or_default();
            *day = day.plus(tokens);
        }
    }

    /// Forgets what lies between these times if it and `new` each have more somewhere there.
    fn yield_where_dated_otherwise(&mut self, new: &Self, from: UnixMinute, to: UnixMinute) {
        let (minutes, days) = (from.0..to.0, from.day().0..to.day().0 + 1);
        let more = |some: &Self, than: &Self| {
            let exceeds = |some: &BTreeMap<u32, Tokens>, than: &BTreeMap<u32, Tokens>, times: &Range<u32>| {
                let other = |time| than.get(time).copied().unwrap_or_default();
                some.range(times.clone()).any(|(time, tokens)| shrank(*tokens, other(time)))
            };
            exceeds(&some.minutes, &than.minutes, &minutes) || exceeds(&some.days, &than.days, &days)
        };
        if more(self, new) && more(new, self) {
            self.minutes.retain(|time, _| !minutes.contains(time));
            self.days.retain(|time, _| !days.contains(time));
        }
    }

    fn dated(&self) -> Tokens {
        self.minutes.values().chain(self.days.values()).fold(Tokens::default(), |sum, tokens| sum.plus(*tokens))
    }
}

/// What an import comes to: the writes, and what to say of them.
pub(super) struct Plan {
    pub(super) writes: Writes,
    pub(super) said: Imported,
    /// Pairs with tokens, in order: those without a place get one.
    pub(super) with_tokens: Vec<StoredParty>,
}

/// Works out an import. Gives out ids in `dictionary`: a dry run hands in a copy.
pub(super) fn plan(
    import: &Import,
    view: &dyn Read,
    dictionary: &mut Dictionary,
    folded_before: UnixMinute,
) -> Result<Plan, StoreError> {
    let key = dictionary.intern(Kind::Key, &import.key());
    let cut = import.cut.max(folded_before);
    let stored = stored(view, key)?;
    let (mut plan, mut seen) =
        (Plan { writes: Writes::default(), said: Imported::default(), with_tokens: Vec::new() }, HashMap::new());
    for given in &import.pairs {
        let pair = (id_of(dictionary, Kind::Node, &given.node), id_of(dictionary, Kind::Model, &given.model));
        let party = StoredParty { node: pair.0, model: pair.1, key, ended: Ended::COMPLETED };
        let old = stored.get(&pair).cloned().unwrap_or_default();
        seen.insert(pair, ());
        let names = (given.node.clone(), given.model.clone());
        if !import.replace && shrank(old.total, given.total) {
            let (node, model) = names;
            plan.said.conflicts.push(Conflict { node, model, stored: old.total, given: Some(given.total) });
            continue;
        }
        let known = if import.replace { Sums::default() } else { old.clone() };
        let (new, daily_refused) = join(known, given, cut, import.doubtful);
        write(&mut plan.writes, party, &old, &new);
        plan.with_tokens.push(party);
        plan.said.pairs.push(ImportedPair {
            node: names.0,
            model: names.1,
            before: old.total,
            after: new.total,
            dated: new.dated(),
            minutes: new.minutes.len(),
            days: new.days.len(),
            daily_refused,
        });
    }
    for (pair, old) in stored.iter().filter(|(pair, old)| !seen.contains_key(*pair) && **old != Sums::default()) {
        let party = StoredParty { node: pair.0, model: pair.1, key, ended: Ended::COMPLETED };
        let (node, model) = (dictionary.name(Kind::Node, pair.0), dictionary.name(Kind::Model, pair.1));
        let (node, model) = (node.to_string(), model.to_string());
        if import.replace {
            write(&mut plan.writes, party, old, &Sums::default());
            plan.said.pairs.push(ImportedPair { node, model, before: old.total, ..ImportedPair::default() });
            continue;
        }
        plan.said.conflicts.push(Conflict { node, model, stored: old.total, given: None });
    }
    plan.said.changed = !plan.writes.is_empty();
    Ok(plan)
}

/// Whether a figure became less, which a sum over all time never does.
fn shrank(stored: Tokens, given: Tokens) -> bool {
    given.input < stored.input || given.output < stored.output
}

/// The id of a name; the shared names keep their shared ids.
fn id_of(dictionary: &mut Dictionary, kind: Kind, name: &str) -> StoredId {
    let is_shared = name
        == match kind {
            Kind::Model => UNKNOWN,
            Kind::Node | Kind::Key => NONE,
        };
    if is_shared { StoredId::NONE } else { dictionary.intern(kind, name) }
}

/// Everything stored of a source.
fn stored(view: &dyn Read, key: StoredId) -> Result<HashMap<Pair, Sums>, StoreError> {
    let mut found: HashMap<Pair, Sums> = HashMap::new();
    query::scan_rows(view, Table::Totals, ALL, Order::Ascending, series::split_total, |party, row| {
        if party.key == key {
            found.entry((party.node, party.model)).or_default().total = row.exact;
        }
        true
    })?;
    if found.is_empty() {
        return Ok(found);
    }
    for (table, is_day) in [(Table::MinutesByTime, false), (Table::DaysByTime, true)] {
        query::scan_rows(view, table, ALL, Order::Ascending, series::split_by_time, |(time, party), row| {
            if party.key == key {
                let sums = found.entry((party.node, party.model)).or_default();
                let places = if is_day { &mut sums.days } else { &mut sums.minutes };
                places.insert(time, row.exact);
            }
            true
        })?;
    }
    Ok(found)
}

/// What is there after what was given joins what is known, and how many daily rows were refused.
fn join(
    mut known: Sums,
    given: &ImportPair,
    cut: UnixMinute,
    doubtful: Option<(UnixMinute, UnixMinute)>,
) -> (Sums, usize) {
    let mut new = Sums {
        total: given.total,
        minutes: given.minutes.iter().map(|(minute, tokens)| (minute.0, *tokens)).collect(),
        days: given.days.iter().map(|(day, tokens)| (day.0, *tokens)).collect(),
    };
    known.cut(cut);
    new.cut(cut);
    if let Some((from, to)) = doubtful {
        known.yield_where_dated_otherwise(&new, from, to);
    }
    for (old, new) in [(known.minutes, &mut new.minutes), (known.days, &mut new.days)] {
        for (time, tokens) in old {
            let place = new.entry(time).or_default();
            place.input = place.input.max(tokens.input);
            place.output = place.output.max(tokens.output);
        }
    }
    let has_minutes = |day: u32| {
        let first = day.saturating_mul(24 * 60);
        new.minutes.range(first..first.saturating_add(24 * 60)).next().is_some()
    };
    let further: Vec<(u32, Tokens)> = given
        .daily
        .iter()
        .filter(|(day, _)| !new.days.contains_key(&day.0) && !has_minutes(day.0))
        .map(|(day, tokens)| (day.0, *tokens))
        .collect();
    let sum = further.iter().fold(new.dated(), |sum, (_, tokens)| sum.plus(*tokens));
    if shrank(sum, new.total) {
        return (new, further.len());
    }
    new.days.extend(further);
    (new, 0)
}

/// Writes what differs.
fn write(writes: &mut Writes, party: StoredParty, old: &Sums, new: &Sums) {
    let minute = |time| Bucket::Minute(UnixMinute(time));
    let day = |time| Bucket::Day(UnixDay(time));
    write_places(writes, party, minute, (&old.minutes, &new.minutes));
    write_places(writes, party, day, (&old.days, &new.days));
    if new.total == Tokens::default() && *new == Sums::default() && *old != Sums::default() {
        writes.delete(Table::Totals, &series::total(party));
    } else if new.total != old.total {
        writes.put(Table::Totals, &series::total(party), &row(new.total).encode());
    }
}

/// The row of imported tokens.
fn row(tokens: Tokens) -> Row {
    Row { exact: tokens, ..Row::default() }
}

/// Writes minutes, or days, that differ.
fn write_places(
    writes: &mut Writes,
    party: StoredParty,
    bucket: impl Fn(u32) -> Bucket,
    (old, new): (&BTreeMap<u32, Tokens>, &BTreeMap<u32, Tokens>),
) {
    for (time, _) in old.iter().filter(|(time, _)| !new.contains_key(*time)) {
        delete(writes, bucket(*time), party);
    }
    for (time, tokens) in new.iter().filter(|(time, tokens)| old.get(*time) != Some(*tokens)) {
        super::writer::put_row(writes, bucket(*time), party, &row(*tokens));
    }
}

fn delete(writes: &mut Writes, bucket: Bucket, party: StoredParty) {
    let (by_time, by_model, time) = match bucket {
        Bucket::Minute(minute) => (Table::MinutesByTime, Table::MinutesByModel, minute.0),
        Bucket::Day(day) => (Table::DaysByTime, Table::DaysByModel, day.0),
        Bucket::Total => return,
    };
    writes.delete(by_time, &series::by_time(time, party));
    writes.delete(by_model, &series::by_model(time, party));
}
