//! Questions to the ledger, answered from tables: pure reading over any [`Read`].
//!
//! Used by the store thread ([`super::writer`]). Must never write.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::Tokens;
use super::answers::{Bucket, ModelStats, NamedRow, SERIES_MAX, SeriesPoint, Span, TokenCount};
use super::dictionary::{Dictionary, Kind};
use super::imported::is_imported;
use super::series::{self, Row, StoredId, StoredParty};
use super::store::{Order, Read, StoreError, Table};
use crate::ids::{UnixDay, UnixMinute};
use crate::sync::Arc;

/// Smallest and greatest key of a table, whatever its length.
pub(super) const ALL: (&[u8], &[u8]) = (&[], &[0xff; 18]);

/// Decodes a row, or says that the store is damaged.
pub(super) fn decode(bytes: &[u8]) -> Result<Row, StoreError> {
    Row::decode(bytes)
        .ok_or_else(|| StoreError::Damaged(format!("a row of {} bytes is not of this version", bytes.len())))
}

/// Visits the rows of a table between two keys; `read` takes a key apart. Ends when `visit` says false.
pub(super) fn scan_rows<K>(
    view: &dyn Read,
    table: Table,
    (from, to): (&[u8], &[u8]),
    order: Order,
    read: impl Fn(&[u8]) -> Option<K>,
    mut visit: impl FnMut(K, Row) -> bool,
) -> Result<(), StoreError> {
    let mut damage = None;
    view.scan(table, from, to, order, &mut |key, value| {
        let parts = read(key).ok_or_else(|| StoreError::Damaged(format!("a key of {} bytes in {table:?}", key.len())));
        match parts.and_then(|parts| decode(value).map(|row| (parts, row))) {
            Ok((parts, row)) => visit(parts, row),
            Err(error) => {
                damage = Some(error);
                false
            }
        }
    })?;
    damage.map_or(Ok(()), Err)
}

/// Keys of minutes or days within inclusive times.
pub(super) fn times(from: u32, to: u32) -> ([u8; 17], [u8; 17]) {
    let [least, most] = StoredParty::EDGES;
    (series::by_time(from, least), series::by_time(to, most))
}

/// All-time tokens per (node, model) that ever had any, in order of first sight.
pub(super) fn token_counts(view: &dyn Read, names: &Dictionary) -> Result<Vec<TokenCount>, StoreError> {
    let mut sums: HashMap<(StoredId, StoredId), (Tokens, Tokens, Tokens)> = HashMap::new();
    scan_rows(view, Table::Totals, ALL, Order::Ascending, series::split_total, |party, row| {
        let (exact, estimated, imported) = sums.entry((party.node, party.model)).or_default();
        if is_imported(&names.name(Kind::Key, party.key)) {
            *imported = imported.plus(row.exact);
        } else {
            (*exact, *estimated) = (exact.plus(row.exact), estimated.plus(row.estimated));
        }
        true
    })?;
    let mut pairs = pairs(view)?;
    pairs.sort_unstable_by_key(|(_, place)| *place);
    let counts = pairs.into_iter().filter_map(|((node, model), _)| {
        let (exact, estimated, imported) = sums.get(&(node, model)).copied()?;
        let (node, model) = (names.name(Kind::Node, node), names.name(Kind::Model, model));
        Some(TokenCount { node, model, exact, estimated, imported })
    });
    Ok(counts.collect())
}

/// A (node, model) that had tokens and its place in the order of first sight.
pub(super) type PlacedPair = ((StoredId, StoredId), u32);

/// Every (node, model) that had tokens.
pub(super) fn pairs(view: &dyn Read) -> Result<Vec<PlacedPair>, StoreError> {
    let mut pairs = Vec::new();
    view.scan(Table::Pairs, ALL.0, ALL.1, Order::Ascending, &mut |key, value| {
        if let (Some([node, model]), Some([place])) = (series::split(key), series::split(value)) {
            pairs.push(((StoredId(node), StoredId(model)), place));
        }
        true
    })?;
    Ok(pairs)
}

/// One model by its display name.
pub(super) fn stats(view: &dyn Read, names: &Dictionary, model: &str) -> Result<ModelStats, StoreError> {
    let mut stats = ModelStats::default();
    let Some(model) = names.find(Kind::Model, model) else { return Ok(stats) };
    let mut totals = Tokens::default();
    scan_rows(view, Table::Totals, ALL, Order::Ascending, series::split_total, |party, row| {
        if party.model == model {
            totals = totals.plus(row.tokens());
        }
        true
    })?;
    stats.totals = (totals != Tokens::default()).then_some(totals);
    let mut points: Vec<(u32, StoredId, Tokens)> = Vec::new();
    let mut shares: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    let mut share: HashMap<StoredId, u64> = HashMap::new();
    let [least, most] = StoredParty::EDGES.map(|edge| StoredParty { model, ..edge });
    let span: (&[u8], &[u8]) = (&series::by_model(0, least), &series::by_model(u32::MAX, most));
    scan_rows(view, Table::MinutesByModel, span, Order::Descending, series::split_by_model, |(minute, party), row| {
        let tokens = row.tokens();
        if tokens.total() == 0 {
            return true;
        }
        let sum = share.entry(party.node).or_default();
        *sum = sum.saturating_add(tokens.total());
        // Rows of one (minute, node) are neighbours: they differ in the key and the ending alone.
        let full = points.len() == SERIES_MAX;
        match points.last_mut() {
            Some((last_minute, node, sum)) if (*last_minute, *node) == (minute, party.node) => *sum = sum.plus(tokens),
            _ if full => {}
            _ => points.push((minute, party.node, tokens)),
        }
        true
    })?;
    for (node, tokens) in share {
        let sum = shares.entry(names.name(Kind::Node, node)).or_default();
        *sum = sum.saturating_add(tokens);
    }
    stats.distribution = shares.into_iter().collect();
    stats.series = points
        .into_iter()
        .map(|(minute, node, tokens)| SeriesPoint {
            minute: UnixMinute(minute),
            node: names.name(Kind::Node, node),
            tokens,
        })
        .collect();
    Ok(stats)
}

/// Rows of a span, whatever their ending.
pub(super) fn rows(view: &dyn Read, names: &Dictionary, span: Span) -> Result<Vec<NamedRow>, StoreError> {
    let mut rows: Vec<NamedRow> = Vec::new();
    let mut before = None;
    let mut push = |bucket, party: StoredParty, row: Row| {
        // Endings of one row are neighbours.
        let own = Some((bucket, party.node, party.model, party.key));
        if std::mem::replace(&mut before, own) == own
            && let Some(last) = rows.last_mut()
        {
            last.row.merge(&row);
            return true;
        }
        if rows.len() == SERIES_MAX {
            return false;
        }
        rows.push(NamedRow {
            bucket,
            node: names.name(Kind::Node, party.node),
            model: names.name(Kind::Model, party.model),
            key: names.name(Kind::Key, party.key),
            row,
        });
        true
    };
    let ascending = Order::Ascending;
    match span {
        Span::Minutes(from, to) => {
            let (from, to) = times(from.0, to.0);
            scan_rows(
                view,
                Table::MinutesByTime,
                (&from, &to),
                ascending,
                series::split_by_time,
                |(time, party), row| push(Bucket::Minute(UnixMinute(time)), party, row),
            )?;
        }
        Span::Days(from, to) => {
            let (from, to) = times(from.0, to.0);
            scan_rows(
                view,
                Table::DaysByTime,
                (&from, &to),
                ascending,
                series::split_by_time,
                |(time, party), row| push(Bucket::Day(UnixDay(time)), party, row),
            )?;
        }
        Span::Totals => {
            scan_rows(view, Table::Totals, ALL, ascending, series::split_total, |party, row| {
                push(Bucket::Total, party, row)
            })?;
        }
    }
    Ok(rows)
}

/// The newest minute that has a row.
pub(super) fn newest_minute(view: &dyn Read) -> Result<Option<UnixMinute>, StoreError> {
    let mut newest = None;
    view.scan(Table::MinutesByTime, ALL.0, ALL.1, Order::Descending, &mut |key, _| {
        newest = series::split_by_time(key).map(|(minute, _)| UnixMinute(minute));
        false
    })?;
    Ok(newest)
}

/// Distinct (node, model, UTC day) groups that have a minute with tokens before `first_kept`: the ancestor's figure,
/// which knows no rows without tokens.
pub(super) fn groups_before(view: &dyn Read, first_kept: UnixMinute) -> Result<u64, StoreError> {
    let Some(last) = first_kept.0.checked_sub(1) else { return Ok(0) };
    let mut groups = HashSet::new();
    let (from, to) = times(0, last);
    scan_rows(
        view,
        Table::MinutesByTime,
        (&from, &to),
        Order::Ascending,
        series::split_by_time,
        |(minute, party), row| {
            if row.tokens().total() > 0 {
                groups.insert((party.node, party.model, series::day_number(minute)));
            }
            true
        },
    )?;
    Ok(groups.len() as u64)
}
