//! From rows as the ancestor recorded them to sums under this gate's names, and what is to be said of the way.
//!
//! Fed by [`super::database`], row by row; pure. The traps of the ancestor's records are handled here, one function each:
//! names that changed over time, totals that do not add up, times that are off, daily rows that were counted twice. Must
//! never drop a token of `token_counts`: what cannot be placed in time still counts in the total.

use std::collections::{BTreeSet, HashMap, HashSet};

use jiff::civil::Date;

use super::Offset;
use crate::config::{Config, NodeConfig, NodeKind};
use crate::dialect::name::{self, Source};
use crate::ids::{UnixDay, UnixMinute};
use crate::usage::Tokens;
use crate::usage::imported::ImportPair;
use crate::usage::names::{NONE, UNKNOWN};

/// 2025-11-18 and 2025-11-21, 00:00 UTC: between them the ancestor wrote UTC wall clocks as if they were local ones.
const NOVEMBER: std::ops::Range<i64> = 1_763_424_000..1_763_683_200;
/// The farthest that an offset from UTC can move them.
const OFFSET_MAX: i64 = 14 * 3600;

/// From when to before when rows of that November may stand, moved or not.
pub(super) fn doubtful() -> (UnixMinute, UnixMinute) {
    let minute = |seconds: i64| UnixMinute(u32::try_from(seconds / 60).unwrap_or_default());
    (minute(NOVEMBER.start - OFFSET_MAX), minute(NOVEMBER.end + OFFSET_MAX))
}
/// How far ahead of this host's clock a row's minute may be.
const AHEAD_MAX: u32 = 60;

/// A row as it was recorded; `None` where there was no number, or no name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Recorded {
    pub(super) endpoint: Option<String>,
    pub(super) model: Option<String>,
    pub(super) input: Option<i64>,
    pub(super) output: Option<i64>,
}

/// What is to be said of an import.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Notes {
    /// Rows of each table.
    pub(super) counts: u64,
    pub(super) points: u64,
    pub(super) daily: u64,
    /// Recorded names that are another name here.
    pub(super) renamed: BTreeSet<(String, String)>,
    /// Endpoints that belong to no configured node.
    pub(super) unknown_nodes: BTreeSet<String>,
    /// Endpoints that are a node of another name here.
    pub(super) renamed_nodes: BTreeSet<(String, String)>,
    /// Rows whose total is not the sum of input and output.
    pub(super) wrong_totals: u64,
    /// Rows with a number that is none, or negative.
    pub(super) no_numbers: u64,
    /// Rows of the series without a time that can be, and their tokens.
    pub(super) timeless: (u64, u64),
    /// Rows of the days whose clock was off.
    pub(super) november: u64,
    /// What was added to them, if anything.
    pub(super) november_offset: Option<Offset>,
    /// Daily rows of dates that the series knows.
    pub(super) daily_known: u64,
    /// Series of pairs that have no total.
    pub(super) without_total: u64,
}

/// Sums by this gate's names, while rows come in.
pub(super) struct Gathered<'c> {
    config: &'c Config,
    cut: UnixMinute,
    now: UnixMinute,
    november_offset: Option<Offset>,
    nodes: HashMap<String, (String, Speaks)>,
    names: HashMap<(String, String), usize>,
    places: HashMap<(String, String), usize>,
    pairs: Vec<ImportPair>,
    /// Dates of recorded names that the series has rows of: daily rows of these count nothing.
    dated: HashSet<(usize, UnixDay)>,
    days: Vec<(usize, UnixDay, Tokens)>,
    notes: Notes,
}

/// What a node of the ancestor's spoke, which decided how it named models.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaks {
    Ollama,
    OpenAi,
    Llama,
}

impl<'c> Gathered<'c> {
    /// Nothing yet. Minutes before `cut` are summed into days.
    pub(super) fn new(config: &'c Config, cut: UnixMinute, now: UnixMinute, november_offset: Option<Offset>) -> Self {
        Self {
            config,
            cut,
            now,
            november_offset,
            nodes: HashMap::new(),
            names: HashMap::new(),
            places: HashMap::new(),
            pairs: Vec::new(),
            dated: HashSet::new(),
            days: Vec::new(),
            notes: Notes { november_offset, ..Notes::default() },
        }
    }

    /// Forgets everything: the database is read again.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.config, self.cut, self.now, self.november_offset);
    }

    /// A row of `token_counts`: the authority for totals. Its own total is input plus output, whatever it says.
    pub(super) fn count(&mut self, row: &Recorded, total: Option<i64>) {
        self.notes.counts += 1;
        let place = self.place(row);
        let tokens = self.tokens(row);
        if total.is_none_or(|total| u64::try_from(total) != Ok(tokens.total())) {
            self.notes.wrong_totals += 1;
        }
        let sum = &mut self.pairs[place].total;
        *sum = sum.plus(tokens);
    }

    /// A row of `token_time_series`; `time` in Unix seconds.
    pub(super) fn point(&mut self, row: &Recorded, time: Option<i64>) {
        self.notes.points += 1;
        let place = self.place(row);
        let tokens = self.tokens(row);
        let Some(minute) = self.minute(time) else {
            self.notes.timeless.0 += 1;
            self.notes.timeless.1 += tokens.total();
            return;
        };
        self.dated.insert((place, minute.day()));
        let pair = &mut self.pairs[place];
        let sum = if minute < self.cut {
            pair.days.entry(minute.day()).or_default()
        } else {
            pair.minutes.entry(minute).or_default()
        };
        *sum = sum.plus(tokens);
    }

    /// A row of `token_time_series_daily`: kept aside until it is known which dates the series has.
    pub(super) fn day(&mut self, row: &Recorded, date: &str) {
        self.notes.daily += 1;
        let place = self.place(row);
        let tokens = self.tokens(row);
        match day_of(date).filter(|day| day.0 <= self.now.day().0) {
            Some(day) => self.days.push((place, day, tokens)),
            None => self.notes.timeless.0 += 1,
        }
    }

    /// The sums, in the order in which the ancestor's totals had them, and the notes.
    pub(super) fn finish(mut self) -> (Vec<ImportPair>, Notes) {
        for (place, day, tokens) in std::mem::take(&mut self.days) {
            if self.dated.contains(&(place, day)) {
                self.notes.daily_known += 1;
            } else {
                let sum = self.pairs[place].daily.entry(day).or_default();
                *sum = sum.plus(tokens);
            }
        }
        let without_total =
            |pair: &ImportPair| pair.total.total() == 0 && !(pair.minutes.is_empty() && pair.days.is_empty());
        self.notes.without_total = self.pairs.iter().filter(|pair| without_total(pair)).count() as u64;
        // A pair that only the series knows (a flush that came half way): its total is what its series sums to.
        for pair in self.pairs.iter_mut().filter(|pair| without_total(pair)) {
            let series = pair.minutes.values().chain(pair.days.values());
            pair.total = series.fold(Tokens::default(), |sum, tokens| sum.plus(*tokens));
        }
        self.pairs.retain(|pair| pair.total.total() > 0);
        (self.pairs, self.notes)
    }

    /// Tokens of a row. Input plus output is the total; a number that is none counts as zero.
    fn tokens(&mut self, row: &Recorded) -> Tokens {
        let mut figure = |number: Option<i64>| {
            let figure = number.and_then(|number| u64::try_from(number).ok());
            self.notes.no_numbers += u64::from(figure.is_none());
            figure.unwrap_or(0)
        };
        Tokens { input: figure(row.input), cached: 0, output: figure(row.output) }
    }

    /// The minute of a row, moved where the ancestor's clock was off; `None` for what can be no time of a row.
    fn minute(&mut self, time: Option<i64>) -> Option<UnixMinute> {
        let mut time = time?;
        let offset = self.november_offset.map_or(0, |offset| offset.0 * 60);
        let window = NOVEMBER.start - OFFSET_MAX..NOVEMBER.end;
        if window.contains(&time) && NOVEMBER.contains(&(time + offset)) {
            self.notes.november += 1;
            time += offset;
        }
        let minute = u32::try_from(time.div_euclid(60)).ok().filter(|minute| *minute > 0)?;
        (minute <= self.now.0.saturating_add(AHEAD_MAX)).then_some(UnixMinute(minute))
    }

    /// Where the sums of a row's (node, model) are.
    fn place(&mut self, row: &Recorded) -> usize {
        let recorded = (row.endpoint.clone().unwrap_or_default(), row.model.clone().unwrap_or_default());
        if let Some(place) = self.names.get(&recorded) {
            return *place;
        }
        let (node, speaks) = self.node(&recorded.0);
        let model = if recorded.1.is_empty() { UNKNOWN.to_owned() } else { model_name(&recorded.1, speaks) };
        if model != recorded.1 {
            self.notes.renamed.insert((recorded.1.clone(), model.clone()));
        }
        let next = self.pairs.len();
        let place = *self.places.entry((node.clone(), model.clone())).or_insert(next);
        if place == next {
            self.pairs.push(ImportPair { node, model, ..ImportPair::default() });
        }
        self.names.insert(recorded, place);
        place
    }

    /// The node of a recorded endpoint, and what it spoke: as configured, else as the ancestor guessed from the URL.
    fn node(&mut self, endpoint: &str) -> (String, Speaks) {
        if endpoint.is_empty() {
            return (NONE.to_owned(), Speaks::Ollama);
        }
        if let Some(known) = self.nodes.get(endpoint) {
            return known.clone();
        }
        let exact = self.config.nodes.iter().find(|node| node.url == endpoint);
        let found = exact.or_else(|| {
            let parsed = NodeConfig::from_url(endpoint).ok()?;
            self.config.nodes.iter().find(|node| same_place(node, &parsed))
        });
        let node = match found {
            Some(node) => {
                if node.name != endpoint {
                    self.notes.renamed_nodes.insert((endpoint.to_owned(), node.name.clone()));
                }
                let speaks = match (node.kind, node.llama) {
                    (NodeKind::Ollama, _) => Speaks::Ollama,
                    (NodeKind::OpenAi, false) => Speaks::OpenAi,
                    (NodeKind::OpenAi, true) => Speaks::Llama,
                };
                (node.name.clone(), speaks)
            }
            None => {
                self.notes.unknown_nodes.insert(endpoint.to_owned());
                let speaks = if endpoint.contains("/v1") { Speaks::OpenAi } else { Speaks::Ollama };
                (endpoint.to_owned(), speaks)
            }
        };
        self.nodes.insert(endpoint.to_owned(), node.clone());
        node
    }
}

fn same_place(one: &NodeConfig, other: &NodeConfig) -> bool {
    (one.host.to_lowercase(), one.port, &one.base_path, one.kind)
        == (other.host.to_lowercase(), other.port, &other.base_path, other.kind)
}

/// This gate's name for a recorded one.
///
/// Ollama: the display form, with its tag; the ancestor recorded names as asked until February 2026. A llama server: what
/// follows the last slash, up to the first colon, as the ancestor recorded it later. An OpenAI-compatible server: without
/// the `:latest` that the ancestor added on the native routes. Cloud names, and what is no name, stay.
fn model_name(recorded: &str, speaks: Speaks) -> String {
    match speaks {
        Speaks::Ollama => match name::parse(recorded) {
            Ok(name) if name.source == Source::Unspecified => name.display(),
            _ => recorded.to_owned(),
        },
        Speaks::OpenAi => recorded.strip_suffix(":latest").unwrap_or(recorded).to_owned(),
        Speaks::Llama => {
            let last = recorded.rsplit('/').next().unwrap_or(recorded);
            let short = last.split(':').next().unwrap_or(last);
            if short.is_empty() { recorded.to_owned() } else { short.to_owned() }
        }
    }
}

/// A UTC date as the ancestor wrote it.
fn day_of(date: &str) -> Option<UnixDay> {
    let date: Date = date.trim().parse().ok()?;
    let epoch = jiff::civil::date(1970, 1, 1);
    let days = (date - epoch).get_days();
    u32::try_from(days).ok().filter(|day| *day > 0).map(UnixDay)
}

/// Reads `+HH:MM` or `-HH:MM`.
pub(super) fn offset(text: &str) -> Result<Offset, String> {
    let wrong = || "must be an offset from UTC, as +01:00 or -05:30".to_owned();
    let sign = match text.as_bytes().first() {
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return Err(wrong()),
    };
    let (hours, minutes) = text[1..].split_once(':').unwrap_or((&text[1..], "0"));
    let number = |text: &str, most: i64| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|number: &i64| digits && *number <= most).ok_or_else(wrong)
    };
    Ok(Offset(sign * (number(hours, 14)? * 60 + number(minutes, 59)?)))
}
