//! JSON files in the data directory, beside the ledger: read within a bound, replaced whole or not at all.
//!
//! Called by what is kept over restarts ([`super::memory`], pending operations, the nodes that are taken out), never on a
//! worker: a disk may stall. Each of them says by itself which form of its file it reads.

use std::fs::File;
use std::io::{self, BufWriter, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

/// Reads at most so many bytes.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> io::Result<T> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Lets `write` fill a file of a second name, flushes it and gives it the first.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> serde_json::Result<()>,
) -> io::Result<()> {
    let fresh = path.with_extension("json.new");
    let mut file = BufWriter::new(File::create(&fresh)?);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    // The name is the directory's: before that is flushed, a loss of power may bring the old file back.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
