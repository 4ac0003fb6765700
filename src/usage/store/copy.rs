//! The copy of a store that a migration makes first: a directory beside it that an older herdgate can be given.
//!
//! Called by [`super::LmdbStore`]. Must never overwrite a copy that is whole, and never leave half of one under its name.

use std::fs::File;
use std::io::Error;
use std::path::{Path, PathBuf};

use heed::{CompactionOption, Env, WithoutTls};

use super::StoreError;

/// What the migration itself may need beyond the copy: pages that are rewritten before old ones are free again.
const SPARE_BYTES: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// Copies the store in `dir` to a directory beside it, named after the schema and the transaction it is a copy of: the
/// same contents, the same name. Says where it is.
pub(super) fn aside(env: &Env<WithoutTls>, dir: &Path, schema: u32) -> Result<PathBuf, StoreError> {
    let base = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let copy = dir.with_file_name(format!("{base}.schema-{schema}.txn-{}", env.info().last_txn_id));
    if copy.join("data.mdb").is_file() {
        return Ok(copy);
    }
    let beside = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let needed = env.real_disk_size().map_err(|error| failed(&error))?.saturating_add(SPARE_BYTES);
    let free = free_bytes(beside).map_err(|error| failed(&error))?;
    if free < needed {
        let (needed, free) = (needed.div_ceil(MIB), free / MIB);
        let place = beside.display();
        return Err(failed(&format!("the copy needs {needed} MiB in {place}, where {free} MiB are free")));
    }
    let partial = dir.with_file_name(format!("{base}.copying"));
    let written = write(env, &partial).and_then(|()| put_in_place(&partial, &copy, beside));
    if let Err(error) = written {
        // What is there is of no use, and the disk may be full of it.
        let _ = std::fs::remove_file(&partial);
        return Err(failed(&error));
    }
    Ok(copy)
}

/// Writes all of it, down to the disk. What an attempt that was killed left is overwritten.
fn write(env: &Env<WithoutTls>, partial: &Path) -> Result<(), Error> {
    let file = env.copy_to_path(partial, CompactionOption::Disabled).map_err(Error::other)?;
    file.sync_all()
}

/// Gives it its name in one step.
fn put_in_place(partial: &Path, copy: &Path, beside: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(copy)?;
    std::fs::rename(partial, copy.join("data.mdb"))?;
    File::open(copy)?.sync_all()?;
    File::open(beside)?.sync_all()
}

fn free_bytes(place: &Path) -> Result<u64, Error> {
    let found = rustix::fs::statvfs(place)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn failed(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Failed(format!("a store is copied before it is migrated: {error}"))
}
