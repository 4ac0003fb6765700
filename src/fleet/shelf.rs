//! What many nodes show alike, kept once: names, digests and entries of inventories. Pure.
//!
//! Used by [`crate::fleet::facts`] on each inventory that changed. A thousand nodes with the same two hundred models would
//! hold some 300 MB of equal text otherwise. Must never change what an entry says.

use std::collections::HashMap;

use crate::fleet::inventory::Entry;
use crate::sync::Arc;

/// Different entries of one name that are kept to share; nodes with yet others keep their own.
const KINDS_MAX: usize = 8;

/// Entries to share, by key.
#[derive(Debug, Default)]
pub struct Shelf {
    entries: HashMap<Arc<str>, Vec<Entry>>,
    /// Something came since the last sweep, so something may have gone.
    moved: bool,
}

impl Shelf {
    /// Lets the entry share what an earlier one has, or the next one what it has.
    pub fn put(&mut self, entry: &mut Entry) {
        self.moved = true;
        let kinds = self.entries.entry(Arc::clone(&entry.key)).or_default();
        for kind in &*kinds {
            if kind.digest == entry.digest && kind.name == entry.name && entry.fields.share(&kind.fields, "modified_at")
            {
                entry.key = Arc::clone(&kind.key);
                entry.name = Arc::clone(&kind.name);
                entry.digest = Arc::clone(&kind.digest);
                return;
            }
        }
        if kinds.len() < KINDS_MAX {
            kinds.push(entry.clone());
        }
    }

    /// Lets go of what no node shows any more.
    pub fn sweep(&mut self) {
        if !std::mem::take(&mut self.moved) {
            return;
        }
        self.entries.retain(|_, kinds| {
            kinds.retain(|kind| kind.fields.sharers() > 1);
            !kinds.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::inventory::tags;

    fn entry(digest: &str, date: &str) -> Entry {
        let body = format!(
            r#"{{"models":[{{"name":"m","modified_at":"{date}","size":1,"digest":"{digest}","details":{{"a":"b"}}}}]}}"#
        );
        tags(body.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn nodes_share_what_they_show_alike_and_let_go_of_it() {
        let mut shelf = Shelf::default();
        let dates = ["2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z", "2026-11-22T10:00:00Z"];
        let mut entries: Vec<_> = dates.iter().map(|date| entry("d1", date)).collect();
        entries.push(entry("d2", dates[0]));
        let (told, dated): (Vec<_>, Vec<_>) = entries.iter().map(|e| (e.fields.clone(), e.modified)).unzip();
        entries.iter_mut().for_each(|entry| shelf.put(entry));
        assert!(entries.iter().zip(&told).all(|(entry, told)| entry.fields == *told), "each says what it said");
        assert!(entries.iter().map(|entry| entry.modified).eq(dated));
        assert!(entries[..3].iter().all(|entry| Arc::ptr_eq(&entry.digest, &entries[0].digest)));
        assert_eq!(
            entries.iter().map(|entry| entry.fields.sharers()).collect::<Vec<_>>(),
            [5, 5, 5, 3],
            "told counts too"
        );
        drop(told);
        entries.truncate(3);
        shelf.sweep();
        assert_eq!(shelf.entries.values().map(Vec::len).sum::<usize>(), 1);
        entries.clear();
        shelf.sweep();
        assert!(!shelf.entries.is_empty(), "nothing came");
        shelf.put(&mut entry("d3", dates[0]));
        shelf.sweep();
        assert!(shelf.entries.is_empty());
    }

    #[test]
    fn kinds_are_bounded() {
        let mut shelf = Shelf::default();
        for n in 0..20 {
            shelf.put(&mut entry(&format!("d{n}"), "2026-11-20T10:00:00Z"));
        }
        assert_eq!(shelf.entries.values().map(Vec::len).sum::<usize>(), KINDS_MAX);
    }
}
