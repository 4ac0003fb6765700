//! A view of an SQLite file that nobody changes and that changes nothing.
//!
//! Called by [`super::run`]. SQLite in WAL mode writes beside a file that it merely reads, so it is let near the
//! original only where it can be told that the file never changes; else it gets a copy, log and all. Must never open the
//! original for writing, and never leave a copy behind.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{ImportError, PAUSE};
use crate::sync;

/// How often a file that changes is tried.
const ATTEMPTS: u32 = 6;
/// Directories tried in one place.
const DIRECTORIES_MAX: u32 = 100;
/// What every SQLite file begins with.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// What may lie beside a file and belongs to what it holds: the write-ahead log, and the journal of a crash.
const COMPANIONS: [&str; 2] = ["-wal", "-journal"];

/// What SQLite is to open.
#[derive(Debug)]
pub(super) enum Stable {
    /// The file itself, which holds everything: never to be written, nor anything beside it.
    Original(PathBuf),
    /// A copy, which SQLite may mend from its log.
    Copy(PathBuf),
}

/// Calls `read` with a view of the file, again if the file changed meanwhile.
pub(super) fn with_stable(
    path: &Path,
    places: &[PathBuf],
    mut read: impl FnMut(&Stable) -> Result<(), String>,
) -> Result<(), ImportError> {
    let unreadable = |reason: String| ImportError::Unreadable { path: path.to_owned(), reason };
    // The log lies beside the file, not beside a link to it.
    let file = fs::canonicalize(path).map_err(|error| unreadable(error.to_string()))?;
    check_magic(&file).map_err(unreadable)?;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sync::sleep(PAUSE);
        }
        let before = stamps(&file).map_err(|error| unreadable(error.to_string()))?;
        let done = if before.iter().skip(1).any(|stamp| stamp.is_some_and(|stamp| stamp.bytes > 0)) {
            let copy = Copied::make(&file, places).map_err(unreadable)?;
            if stamps(&file).is_ok_and(|after| after != before) {
                continue;
            }
            read(&Stable::Copy(copy.file.clone()))
        } else {
            read(&Stable::Original(file.clone()))
        };
        if stamps(&file).is_ok_and(|after| after == before) {
            return done.map_err(unreadable);
        }
    }
    Err(ImportError::Busy { path: path.to_owned() })
}

fn check_magic(file: &Path) -> Result<(), String> {
    let metadata = fs::metadata(file).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    let mut start = [0; MAGIC.len()];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut start));
    match read {
        Ok(()) if start == MAGIC => Ok(()),
        Err(error) if error.kind() != std::io::ErrorKind::UnexpectedEof => Err(error.to_string()),
        _ => Err("is not an SQLite database".to_owned()),
    }
}

/// What tells a file from its earlier state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    bytes: u64,
    modified: (i64, i64),
    inode: u64,
}

/// Stamps of the file and of its companions, where there are any.
fn stamps(file: &Path) -> std::io::Result<Vec<Option<Stamp>>> {
    let stamp = |metadata: Metadata| Stamp {
        bytes: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
    };
    let mut stamps = vec![Some(stamp(fs::metadata(file)?))];
    for ending in COMPANIONS {
        match fs::metadata(beside(file, ending)) {
            Ok(metadata) => stamps.push(Some(stamp(metadata))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => stamps.push(None),
            Err(error) => return Err(error),
        }
    }
    Ok(stamps)
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// A copy in a directory of its own, which ends with it.
struct Copied {
    directory: PathBuf,
    file: PathBuf,
}

impl Copied {
    /// Copies the file and what belongs to it to the first place that takes it.
    fn make(file: &Path, places: &[PathBuf]) -> Result<Self, String> {
        let mut refusals = Vec::new();
        for place in places {
            match Self::make_in(file, place) {
                Ok(copied) => return Ok(copied),
                Err(error) => refusals.push(format!("{}: {error}", place.display())),
            }
        }
        Err(format!("has a log beside it and must be copied to be read, but cannot be ({})", refusals.join(", ")))
    }

    /// A new directory. In a container every process has the same id: one that was left behind is passed over.
    fn directory(place: &Path) -> std::io::Result<PathBuf> {
        let mut number = 0;
        loop {
            let directory = place.join(format!("herdgate-import-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && number < DIRECTORIES_MAX => {
                    number += 1
                }
                done => return done.map(|()| directory),
            }
        }
    }

    fn make_in(file: &Path, place: &Path) -> std::io::Result<Self> {
        let directory = Self::directory(place)?;
        let copied = Self { file: directory.join("copy.db"), directory };
        // The log first: pages that move from it into the file meanwhile are then in both.
        for ending in COMPANIONS {
            match fs::copy(beside(file, ending), beside(&copied.file, ending)) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        fs::copy(file, &copied.file)?;
        Ok(copied)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        // Nothing more can be done about a copy that cannot be taken away; it lies in a place for such things.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file that begins as a database does, and its log.
    fn file_with_log(directory: &Path) -> PathBuf {
        let file = directory.join("token_counts.db");
        fs::write(&file, [MAGIC, b"the rest"].concat()).unwrap();
        fs::write(beside(&file, "-wal"), b"log").unwrap();
        file
    }

    fn grow(file: &Path) {
        File::options().append(true).open(file).unwrap().write_all(b"more").unwrap();
    }

    #[test]
    fn what_changes_each_time_is_busy_and_leaves_no_copy() {
        let (directory, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = file_with_log(directory.path());
        let mut reads = 0;
        let done = with_stable(&file, &[place.path().to_owned()], |_| {
            reads += 1;
            grow(&beside(&file, "-wal"));
            Err("half of it".to_owned())
        });
        assert!(matches!(done, Err(ImportError::Busy { .. })), "{done:?}");
        assert_eq!((reads, fs::read_dir(place.path()).unwrap().count()), (ATTEMPTS, 0));
    }

    #[test]
    fn what_changed_once_is_read_again_whole() {
        let (directory, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = file_with_log(directory.path());
        // Left behind by another one of this number.
        fs::create_dir(place.path().join(format!("herdgate-import-{}-0", std::process::id()))).unwrap();
        let mut seen = Vec::new();
        let places = [directory.path().join("absent"), place.path().to_owned()];
        with_stable(&file, &places, |stable| {
            let Stable::Copy(copy) = stable else { return Err("it has a log".to_owned()) };
            seen.push((fs::read(copy).unwrap().len(), fs::read(beside(copy, "-wal")).unwrap().len()));
            if seen.len() == 1 {
                grow(&file);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(24, 3), (28, 3)]);
    }
}
