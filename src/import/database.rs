//! The ancestor's three tables, row by row.
//!
//! Called by [`super::run`] with a file that nobody changes. Reads whatever types the columns hold: SQLite does not
//! insist on theirs. Must never write.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use super::file::Stable;
use super::names::{Gathered, Recorded};

/// Reads everything into `gathered`.
///
/// # Errors
/// In words: it is no database of the ancestor's, or it is damaged.
pub(super) fn read(file: &Stable, gathered: &mut Gathered<'_>) -> Result<(), String> {
    let connection = open(file).map_err(|error| format!("cannot be opened: {error}"))?;
    let failed = |error: rusqlite::Error| format!("cannot be read: {error}");
    let said: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if said != "ok" {
        return Err(format!("is damaged: {said}"));
    }
    if !has_table(&connection, "token_counts").map_err(failed)? {
        return Err("has no table token_counts: it is not the ancestor's database".to_owned());
    }
    each(
        &connection,
        "SELECT endpoint, model, input_tokens, output_tokens, total_tokens FROM token_counts ORDER BY rowid",
        |row| {
            gathered.count(&recorded(row)?, whole(row.get_ref(4)?));
            Ok(())
        },
    )
    .map_err(failed)?;
    if has_table(&connection, "token_time_series").map_err(failed)? {
        each(
            &connection,
            "SELECT endpoint, model, input_tokens, output_tokens, timestamp FROM token_time_series",
            |row| {
                gathered.point(&recorded(row)?, whole(row.get_ref(4)?));
                Ok(())
            },
        )
        .map_err(failed)?;
    }
    if has_table(&connection, "token_time_series_daily").map_err(failed)? {
        each(
            &connection,
            "SELECT endpoint, model, input_tokens, output_tokens, date FROM token_time_series_daily",
            |row| {
                gathered.day(&recorded(row)?, &text(row.get_ref(4)?).unwrap_or_default());
                Ok(())
            },
        )
        .map_err(failed)?;
    }
    Ok(())
}

fn open(file: &Stable) -> rusqlite::Result<Connection> {
    match file {
        Stable::Original(path) => {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(format!("file:{}?immutable=1", escaped(&path.to_string_lossy())), flags)
        }
        Stable::Copy(path) => {
            Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        }
    }
}

/// A path as part of a URI.
fn escaped(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = ?1";
    connection.query_row(sql, [name], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

fn each(
    connection: &Connection,
    sql: &str,
    mut visit: impl FnMut(&Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        visit(row)?;
    }
    Ok(())
}

fn recorded(row: &Row<'_>) -> rusqlite::Result<Recorded> {
    Ok(Recorded {
        endpoint: text(row.get_ref(0)?),
        model: text(row.get_ref(1)?),
        input: whole(row.get_ref(2)?),
        output: whole(row.get_ref(3)?),
    })
}

fn text(value: ValueRef<'_>) -> Option<String> {
    match value {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Integer(number) => Some(number.to_string()),
        ValueRef::Real(number) => Some(number.to_string()),
        ValueRef::Null => None,
    }
}

/// A whole number, however it is stored; `None` for what is none.
fn whole(value: ValueRef<'_>) -> Option<i64> {
    match value {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Real(number) if number.is_finite() => Some(number as i64),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).ok()?.trim().parse().ok(),
        _ => None,
    }
}
