//! Which nodes are taken out, over restarts: one JSON file in the data directory.
//!
//! Read at the start, written with each order. A name stays on the list until it is taken off, whether it is configured
//! or not: a node that comes back under its name comes back taken out. Must never be written on a worker.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::fleet::file;

/// The form of the file; another number is not read.
const FORM: u32 = 1;
/// The largest file read.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct File {
    form: u32,
    nodes: BTreeSet<String>,
}

/// The list, and where it is kept.
#[derive(Debug)]
pub struct Drained {
    path: PathBuf,
    /// Names of nodes.
    pub nodes: BTreeSet<String>,
}

impl Drained {
    /// Reads what an earlier process kept; a file that cannot be read is logged and nothing is drained.
    #[must_use]
    pub fn load(data: &Path) -> Self {
        let path = data.join("drained.json");
        let nodes = match file::read::<File>(&path, FILE_BYTES_MAX) {
            Ok(file) if file.form == FORM => file.nodes,
            Ok(file) => {
                tracing::warn!(path = %path.display(), form = file.form, "drained nodes of another form are not read");
                BTreeSet::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the list of drained nodes cannot be read");
                BTreeSet::new()
            }
        };
        Self { path, nodes }
    }

    /// Puts a name on the list or takes it off, and writes the list if that changed it.
    ///
    /// # Errors
    /// The file system's; the change holds for this process all the same.
    pub fn set(&mut self, node: &str, on: bool) -> io::Result<()> {
        let changed = if on { self.nodes.insert(node.to_owned()) } else { self.nodes.remove(node) };
        if changed { self.store() } else { Ok(()) }
    }

    fn store(&self) -> io::Result<()> {
        let list = File { form: FORM, nodes: self.nodes.clone() };
        file::replace(&self.path, |file| serde_json::to_writer(file, &list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_kept_and_rubbish_is_none() {
        let data = tempfile::tempdir().unwrap();
        let mut drained = Drained::load(data.path());
        drained.set("a", true).unwrap();
        drained.set("http://b:1", true).unwrap();
        drained.set("a", false).unwrap();
        assert_eq!(Drained::load(data.path()).nodes, BTreeSet::from(["http://b:1".to_owned()]));
        std::fs::write(data.path().join("drained.json"), "{").unwrap();
        assert!(Drained::load(data.path()).nodes.is_empty());
        let mut nowhere = Drained::load(&data.path().join("absent"));
        assert!(nowhere.set("a", true).is_err() && nowhere.nodes.contains("a"));
    }
}
