//! Room on the disk for what LMDB writes through its map, before it does.
//!
//! Called by [`super::store`] at each opening, for a store that is ours. LMDB makes its table of readers as a file with
//! holes and writes into the map of it: where a full disk has no block for a hole, the system ends the process (SIGBUS)
//! instead of telling an error. A new store gets its first pages in one write as well, which a full disk would cut in two.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// LMDB's table of readers, as it is made for 126 of them.
const LOCK_BYTES: u64 = 8_192;
/// What a new store takes before it has a row, and more.
const FIRST_BYTES: usize = 128 * 1024;

/// Makes sure that there is room to open the store in this directory.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    fill_holes(&dir.join("lock.mdb"), LOCK_BYTES)?;
    if std::fs::metadata(dir.join("data.mdb")).is_ok_and(|data| data.len() > 0) {
        return Ok(());
    }
    let trial = dir.join("room.new");
    let written =
        File::create(&trial).and_then(|mut file| file.write_all(&[1; FIRST_BYTES]).and_then(|()| file.sync_all()));
    let removed = std::fs::remove_file(&trial);
    written.and(removed)
}

/// A file of at least so many bytes, each of which has its block; what it holds stays.
fn fill_holes(path: &Path, bytes_min: u64) -> io::Result<()> {
    // As LMDB makes it.
    let file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
    let found = file.metadata()?;
    // The system counts in blocks of 512 bytes, whatever those of the disk are.
    if found.len() >= bytes_min && found.blocks() * 512 >= found.len() {
        return Ok(());
    }
    let mut bytes = vec![0; usize::try_from(found.len()).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    bytes.resize(bytes.len().max(usize::try_from(bytes_min).unwrap_or(0)), 0);
    file.write_all_at(&bytes, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_what_is_there_stays() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("lock.mdb");
        for grown in [0, 5_000, 50_000] {
            if grown > 0 {
                let file = File::options().write(true).open(&path).unwrap();
                file.write_all_at(b"kept", 100).unwrap();
                file.set_len(grown).unwrap();
            }
            fill_holes(&path, LOCK_BYTES).unwrap();
            let found = std::fs::metadata(&path).unwrap();
            assert!(found.len() == grown.max(LOCK_BYTES) && found.blocks() * 512 >= found.len(), "{grown}");
            let bytes = std::fs::read(&path).unwrap();
            assert!(grown == 0 || &bytes[100..104] == b"kept");
        }
    }

    #[test]
    fn a_store_that_is_there_is_not_tried_for_and_a_trial_leaves_nothing() {
        let place = tempfile::tempdir().unwrap();
        make(place.path()).unwrap();
        let left = |name: &str| place.path().join(name).exists();
        assert!(left("lock.mdb") && !left("room.new") && !left("data.mdb"));
        std::fs::write(place.path().join("data.mdb"), "a store").unwrap();
        make(place.path()).unwrap();
        assert_eq!(std::fs::read(place.path().join("data.mdb")).unwrap(), b"a store");
        assert!(make(&place.path().join("absent")).is_err());
    }
}
