//! What an import did, as a table and remarks, for a person.
//!
//! Called by [`super::run`]. Pure.

use std::fmt::Write;
use std::path::Path;

use super::ImportArgs;
use super::names::Notes;
use crate::terminal::plain;
use crate::usage::Tokens;
use crate::usage::imported::{Imported, ImportedPair};

/// Names that a remark lists before it says how many more there are.
const LISTED_MAX: usize = 5;

/// The whole summary.
pub(super) fn summary(args: &ImportArgs, data: &Path, imported: &Imported, notes: &Notes) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, args, data, imported, notes);
    out
}

fn write_all(out: &mut String, args: &ImportArgs, data: &Path, imported: &Imported, notes: &Notes) -> std::fmt::Result {
    writeln!(
        out,
        "{}: {} totals, {} rows of minutes, {} of days",
        args.file.display(),
        notes.counts,
        notes.points,
        notes.daily
    )?;
    writeln!(out)?;
    let header = ["node", "model", "input", "output", "new", "minutes", "days", "undated"].map(str::to_owned);
    let mut lines = vec![header];
    lines.extend(imported.pairs.iter().map(line));
    let sum = |figure: fn(&ImportedPair) -> u64| imported.pairs.iter().map(figure).sum::<u64>().to_string();
    lines.push([
        "all".to_owned(),
        String::new(),
        sum(|pair| pair.after.input),
        sum(|pair| pair.after.output),
        sum(added),
        sum(|pair| pair.minutes as u64),
        sum(|pair| pair.days as u64),
        sum(undated),
    ]);
    write_table(out, &lines)?;
    writeln!(out)?;
    remarks(out, imported, notes)?;
    for conflict in &imported.conflicts {
        let Tokens { input, output, .. } = conflict.stored;
        let (node, model) = (plain(&conflict.node), plain(&conflict.model));
        write!(out, "does not fit: {node} {model}: imported before {input} in, {output} out; ")?;
        match conflict.given {
            Some(given) => writeln!(out, "in this file {} in, {} out", given.input, given.output)?,
            None => writeln!(out, "not in this file")?,
        }
    }
    let place = data.display();
    match (imported.conflicts.is_empty(), args.dry_run, imported.changed) {
        (false, ..) => writeln!(
            out,
            "nothing was written: this is no later state of what was imported before. --source NAME adds it beside \
             that, --replace takes its place"
        ),
        (true, true, true) => writeln!(out, "dry run: nothing was written to {place}"),
        (true, false, true) => writeln!(out, "written to {place}"),
        (true, _, false) => writeln!(out, "nothing to write: {place} has it all"),
    }
}

fn added(pair: &ImportedPair) -> u64 {
    pair.after.total().saturating_sub(pair.before.total())
}

fn undated(pair: &ImportedPair) -> u64 {
    pair.after.total().saturating_sub(pair.dated.total())
}

fn line(pair: &ImportedPair) -> [String; 8] {
    [
        plain(&pair.node),
        plain(&pair.model),
        pair.after.input.to_string(),
        pair.after.output.to_string(),
        added(pair).to_string(),
        pair.minutes.to_string(),
        pair.days.to_string(),
        undated(pair).to_string(),
    ]
}

/// Names to the left, numbers to the right.
fn write_table(out: &mut String, lines: &[[String; 8]]) -> std::fmt::Result {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 8] = std::array::from_fn(width);
    for line in lines {
        let mut row = String::new();
        for (column, (text, width)) in line.iter().zip(widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            if column < 2 {
                write!(row, "{gap}{text:<width$}")?;
            } else {
                write!(row, "{gap}{text:>width$}")?;
            }
        }
        writeln!(out, "{}", row.trim_end())?;
    }
    Ok(())
}

/// What was not taken as it stood.
fn remarks(out: &mut String, imported: &Imported, notes: &Notes) -> std::fmt::Result {
    let arrows = |names: &std::collections::BTreeSet<(String, String)>| {
        listed(&names.iter().map(|(from, to)| format!("{from} -> {to}")).collect::<Vec<_>>())
    };
    if !notes.renamed.is_empty() {
        writeln!(out, "models under the names that they have here: {}", arrows(&notes.renamed))?;
    }
    if !notes.renamed_nodes.is_empty() {
        writeln!(out, "nodes under the names that they have here: {}", arrows(&notes.renamed_nodes))?;
    }
    if !notes.unknown_nodes.is_empty() {
        let names: Vec<_> = notes.unknown_nodes.iter().cloned().collect();
        writeln!(out, "nodes that are not configured (kept under their URLs): {}", listed(&names))?;
    }
    if notes.wrong_totals > 0 {
        writeln!(out, "{} totals are not the sum of input and output: taken as the sum", notes.wrong_totals)?;
    }
    if notes.no_numbers > 0 {
        writeln!(out, "{} figures are negative or no numbers: taken as 0", notes.no_numbers)?;
    }
    if notes.timeless.0 > 0 {
        let (rows, tokens) = notes.timeless;
        writeln!(out, "{rows} rows have no time that can be ({tokens} tokens): in the totals only")?;
    }
    if notes.november > 0 {
        let what = match notes.november_offset {
            Some(_) => "moved by the offset given",
            None => "off by that host's UTC offset, kept as they are; --november-offset moves them",
        };
        writeln!(out, "{} rows of 18 to 20 November 2025: {what}", notes.november)?;
    }
    if notes.daily_known > 0 {
        writeln!(out, "{} daily rows left out: the minutes of these days are there", notes.daily_known)?;
    }
    let refused: usize = imported.pairs.iter().map(|pair| pair.daily_refused).sum();
    if refused > 0 {
        writeln!(out, "{refused} daily rows left out: they exceed the totals (aggregating twice doubles them)")?;
    }
    if notes.without_total > 0 {
        writeln!(
            out,
            "{} (node, model) have minutes and no total: taken as the sum of their minutes",
            notes.without_total
        )?;
    }
    let undated: u64 = imported.pairs.iter().map(undated).sum();
    if undated > 0 {
        writeln!(out, "{undated} tokens have no date (their minutes were deleted): in the totals only")?;
    }
    let over = imported.pairs.iter().filter(|pair| pair.dated.total() > pair.after.total()).count();
    if over > 0 {
        writeln!(out, "{over} (node, model) have more in minutes and days than in total: the totals count")?;
    }
    Ok(())
}

/// The first few of a list.
fn listed(names: &[String]) -> String {
    let first = names.iter().take(LISTED_MAX).map(|name| plain(name)).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}
