//! Walks the tree and checks what neither the compiler nor clippy sees: sizes, headers, the direction between rooms,
//! where concurrency and unsafe code may stand, the README's map, words that must not appear, the dependency policy.
//!
//! Each message names the fix. A rule that is too narrow is widened here, with its reason, and nowhere else.

#[path = "tidy/dependencies.rs"]
mod dependencies;
#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use source::{Source, line_of, words};

const FILE_LINES_WARN: usize = 400;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Rooms that any room may import: they know nothing of the others.
const BASE: [&str; 6] = ["ids", "sync", "clock", "config", "mix", "pulse"];

/// Room, and the rooms it may import beside [`BASE`] and itself.
const DIRECTION: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("mix", &[]),
    ("sync", &[]),
    ("clock", &[]),
    ("config", &[]),
    ("pulse", &[]),
    ("http1", &[]),
    ("dialect", &[]),
    ("usage", &[]),
    ("live", &[]),
    ("log", &[]),
    ("manager", &[]),
    ("evidence", &["usage"]),
    ("error", &["dialect", "usage"]),
    ("slots", &["usage"]),
    ("fleet", &["slots", "usage", "http1", "dialect"]),
    ("routing", &["fleet", "slots", "usage"]),
    ("access", &["dialect", "usage"]),
    ("operator", &[]),
    ("shared", &["access", "evidence", "operator", "fleet", "slots", "usage", "live"]),
    ("admin", &["shared", "log", "evidence", "operator", "fleet", "slots", "usage", "live", "dialect"]),
    ("proxy", &["shared", "access", "evidence", "routing", "fleet", "slots", "usage", "http1", "dialect", "error"]),
    (
        "front",
        &[
            "operator", "proxy", "http1", "admin", "evidence", "live", "shared", "routing", "fleet", "slots", "usage",
            "dialect", "error",
        ],
    ),
    ("worker", &["front", "proxy", "shared", "routing", "fleet", "slots", "usage", "error"]),
    (
        "control",
        &[
            "shared", "operator", "access", "admin", "live", "routing", "fleet", "slots", "usage", "http1", "dialect",
            "error",
        ],
    ),
    (
        "gate",
        &["log", "worker", "control", "operator", "shared", "access", "fleet", "usage", "live", "routing", "slots"],
    ),
    ("serve", &["gate", "manager", "operator", "shared", "fleet"]),
    ("terminal", &[]),
    ("remote", &["http1", "terminal"]),
    ("import", &["usage", "dialect", "terminal"]),
    ("package", &[]),
    ("sim", &["http1", "dialect"]),
    ("demo", &["gate", "sim", "admin", "shared", "fleet", "usage", "http1"]),
];

/// Rooms on a request's way: no lock type may be named in them.
const DATA_PLANE: &[&str] = &[
    "clock", "dialect", "error", "evidence", "front", "http1", "ids", "proxy", "routing", "shared", "slots", "sync",
    "worker",
];

/// Data-plane files of rooms that are otherwise cold.
const DATA_PLANE_FILES: &[&str] = &[
    "src/access.rs",
    "src/fleet.rs",
    "src/fleet/progress.rs",
    "src/usage.rs",
    "src/usage/counters.rs",
    "src/usage/meters.rs",
    "src/usage/names.rs",
    "src/usage/recorder.rs",
];

const LOCKS: &[&str] = &["Mutex", "RwLock", "Condvar", "Semaphore", "Notify", "Barrier", "parking_lot"];

/// Channels that lock, by path: their names alone are everyday words.
const LOCKING_PATHS: &[&str] = &["sync::watch", "sync::broadcast", "sync::mpsc"];

/// What only `src/sync.rs` may name in shipped code.
const CONCURRENCY: &[&str] = &[
    "std::sync::atomic",
    "core::sync::atomic",
    "crossbeam::queue",
    "tokio::spawn",
    "tokio::task::spawn",
    "spawn_blocking",
    "thread::spawn",
    "thread::Builder",
    "thread::scope",
    "thread::park",
    "thread::sleep",
    "thread::yield_now",
    "static mut",
];

/// Exceptions: file, the word it may name, and why.
const CONCURRENCY_EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/sync.rs", "", "it is the door"),
    ("src/sync/real.rs", "", "it is the door"),
    ("src/worker/accept.rs", "crossbeam::queue", "bounded inboxes of sockets handed over at accept"),
    ("src/access.rs", "crossbeam::queue", "a bounded ring of lines; nobody waits on it"),
    ("src/usage/recorder.rs", "crossbeam::queue", "a bounded ring of events; nobody waits on it"),
    ("src/gate.rs", "thread::sleep", "the caller's own thread, while it waits for the end"),
    ("src/sim/node.rs", "thread::yield_now", "a test's own thread, while its command finds no place"),
    ("src/usage/ledger.rs", "thread::sleep", "its tick: a sleep costs no futex, a timed receive does"),
];

/// Where `unsafe` may stand.
const UNSAFE: &[(&str, &str)] = &[
    ("src/usage/store/lmdb.rs", "opening LMDB: flags, open, resize"),
    ("tests/support/allocations.rs", "a counting allocator is an unsafe trait"),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    source::sources(&root())
}

fn in_src() -> Vec<Source> {
    sources().into_iter().filter(|source| source.path.starts_with("src/")).collect()
}

fn verdict(problems: &[String]) {
    assert!(problems.is_empty(), "\n{} to mend:\n  {}\n", problems.len(), problems.join("\n  "));
}

#[test]
fn files_and_functions_fit_a_reader() {
    let mut problems = Vec::new();
    for source in in_src() {
        let lines = source.code_lines();
        if lines > FILE_LINES_MAX {
            problems.push(format!(
                "{}: {lines} lines of code, {FILE_LINES_MAX} at most; move a part to a file below its room",
                source.path
            ));
        } else if lines > FILE_LINES_WARN {
            println!(
                "warning: {}: {lines} lines of code; think of a second file beyond {FILE_LINES_WARN}",
                source.path
            );
        }
        for (name, line, lines) in source.functions() {
            if lines > FUNCTION_LINES_MAX {
                problems.push(format!(
                    "{}:{line}: fn {name} has {lines} lines, {FUNCTION_LINES_MAX} at most; keep the branches, move the straight work to helpers",
                    source.path
                ));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn every_file_says_what_it_is_for() {
    let unopened = |source: &Source| !source.text.starts_with("//! ");
    let problems: Vec<String> = sources()
        .iter()
        .filter(|source| !source.path.contains("/fixtures/"))
        .filter(|source| unopened(source))
        .map(|source| format!("{}: open it with //! (purpose, who calls it, what it must never do)", source.path))
        .chain(
            files_named("mod.rs")
                .into_iter()
                .filter(|path| path.starts_with("src/"))
                .map(|path| format!("{path}: no mod.rs; name the file after its room, beside the folder")),
        )
        .collect();
    verdict(&problems);
}

#[test]
fn rooms_import_only_what_lies_below_them() {
    let mut problems = Vec::new();
    for source in in_src() {
        let room = source.room();
        if matches!(room, "lib" | "main") {
            continue;
        }
        let Some((_, below)) = DIRECTION.iter().find(|(name, _)| *name == room) else {
            problems.push(format!(
                "{}: room {room} is not in DIRECTION of tests/tidy.rs; add it and what it may import",
                source.path
            ));
            continue;
        };
        for (imported, line) in source.rooms_imported() {
            let known = DIRECTION.iter().any(|(name, _)| *name == imported);
            if known && imported != room && !BASE.contains(&imported.as_str()) && !below.contains(&imported.as_str()) {
                problems.push(format!(
                    "{}:{line}: {room} may not import {imported}; pass it in as an argument, or move the code to the room that owns it",
                    source.path
                ));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn base_rooms_import_nothing_above_them() {
    let order = ["ids", "sync", "clock", "config"];
    let mut problems = Vec::new();
    for source in in_src() {
        let Some(place) = order.iter().position(|room| *room == source.room()) else { continue };
        for (imported, line) in source.rooms_imported() {
            if order.iter().position(|room| *room == imported).is_some_and(|other| other > place) {
                problems.push(format!(
                    "{}:{line}: {} imports {imported}, which lies above it; turn the need round",
                    source.path,
                    source.room()
                ));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn concurrency_comes_through_one_door() {
    let mut problems = Vec::new();
    for source in in_src() {
        for word in CONCURRENCY {
            let excepted =
                |(file, what, _): &&(&str, &str, &str)| *file == source.path && (what.is_empty() || what == word);
            if CONCURRENCY_EXCEPTIONS.iter().any(|entry| excepted(&entry)) {
                continue;
            }
            for (at, _) in source.shipped.match_indices(word) {
                problems.push(format!(
                    "{}:{}: {word} stands only in src/sync.rs; use or add a helper there",
                    source.path,
                    line_of(&source.shipped, at)
                ));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn no_lock_type_on_a_requests_way() {
    let mut problems = Vec::new();
    let sources = in_src();
    for room in DATA_PLANE.iter().filter(|room| !sources.iter().any(|source| source.room() == **room)) {
        problems.push(format!("{room} is no room any more; take it off DATA_PLANE in tests/tidy.rs"));
    }
    for file in DATA_PLANE_FILES.iter().filter(|file| !sources.iter().any(|source| source.path == **file)) {
        problems.push(format!("{file} is gone; name its successor in DATA_PLANE_FILES of tests/tidy.rs"));
    }
    for source in sources {
        if !DATA_PLANE.contains(&source.room()) && !DATA_PLANE_FILES.contains(&source.path.as_str()) {
            continue;
        }
        let named = LOCKS.iter().map(|lock| (lock, words(&source.shipped, lock)));
        let by_path = |path: &str| source.shipped.match_indices(path).map(|(at, _)| at).collect::<Vec<_>>();
        for (lock, places) in named.chain(LOCKING_PATHS.iter().map(|path| (path, by_path(path)))) {
            for at in places {
                problems.push(format!(
                    "{}:{}: {lock} on a request's way; an atomic word, an ArcSwap or a ring instead",
                    source.path,
                    line_of(&source.shipped, at)
                ));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn unsafe_stands_only_where_it_is_listed() {
    let mut problems = Vec::new();
    for source in sources() {
        let listed = UNSAFE.iter().any(|(file, _)| *file == source.path);
        for at in words(&source.code, "unsafe") {
            if !listed {
                problems.push(format!(
                    "{}:{}: unsafe outside the places listed in tests/tidy.rs; find the safe door",
                    source.path,
                    line_of(&source.code, at)
                ));
            }
        }
        for (at, _) in source.code.match_indices("#[allow(").chain(source.code.match_indices("#![allow(")) {
            problems.push(format!(
                "{}:{}: #[allow]; say #[expect(…, reason = \"…\")]",
                source.path,
                line_of(&source.code, at)
            ));
        }
    }
    verdict(&problems);
}

#[test]
fn the_readmes_map_is_the_tree() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let mapped = mapped(&readme);
    let tree: BTreeSet<String> =
        in_src().iter().filter(|source| !source.is_test).map(|source| source.path.clone()).collect();
    let missing = tree.difference(&mapped).map(|path| format!("{path}: add its line to the map in README.md"));
    let gone = mapped
        .difference(&tree)
        .map(|path| format!("{path}: is in the map of README.md but not in the tree; take its line out"));
    verdict(&missing.chain(gone).collect::<Vec<_>>());
}

/// Files that the README's map names: `src/room.rs` on a line of its own, and the files of a room after `room/`, on as
/// many lines as they need.
fn mapped(readme: &str) -> BTreeSet<String> {
    let fence = readme.split("```text\n").find(|block| block.starts_with("src/main.rs")).unwrap_or_default();
    let mut found = BTreeSet::new();
    let mut folder = String::new();
    for line in fence.lines().take_while(|line| !line.starts_with("```")) {
        let mut names = line.split_whitespace();
        if line.starts_with("src/") {
            found.extend(names.next().map(str::to_owned));
            continue;
        }
        if let Some(name) = line.trim_start().split(' ').next().filter(|name| name.ends_with('/')) {
            folder = format!("src/{name}");
            names.next();
        }
        found.extend(names.map(|name| format!("{folder}{name}.rs")));
    }
    found
}

#[test]
fn readme_and_ci_use_the_same_test_command() {
    let read = |name: &str| std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let readme = read("README.md");
    let command = readme.lines().map(str::trim).find(|line| *line == "cargo test");
    assert!(command.is_some(), "README.md: give the test command, `cargo test`, on a line of its own");
    assert!(
        read(".ci/run").contains("cargo test\n"),
        ".ci/run: run README's own test command, `cargo test`, as it stands"
    );
}

#[test]
fn no_word_of_the_builders_place() {
    let forbidden = [
        (concat!("/wo", "rk/"), "a path of a builder's machine"),
        (concat!("/tmp/", "t/"), "a path of a builder's machine"),
        (concat!("/ro", "ot/"), "a path of a builder's machine"),
        (concat!("../sha", "red"), "a page outside the project; say it here"),
        (concat!("crates", ".io"), "a registry's host; name the package only"),
        (concat!("pypi", ".org"), "a registry's host; name the package only"),
        (concat!("pythonhosted", ".org"), "a registry's host; name the package only"),
        (concat!("npmjs", ".org"), "a registry's host; name the package only"),
        (concat!("debian", ".org"), "a registry's host; name the package only"),
    ];
    let mut problems = Vec::new();
    for (path, text) in texts() {
        let lower = text.to_lowercase();
        for (word, what) in forbidden {
            for (at, _) in lower.match_indices(word) {
                problems.push(format!("{path}:{}: {word} is {what}", line_of(&lower, at)));
            }
        }
        for (number, line) in lower.lines().enumerate() {
            if names_an_issue(line) {
                problems.push(format!("{path}:{}: an issue's number; say what is meant", number + 1));
            }
        }
    }
    verdict(&problems);
}

#[test]
fn dependencies_keep_the_policy() {
    assert!(root().join("Cargo.lock").is_file(), "Cargo.lock is missing; commit it");
    verdict(&dependencies::problems(&root()));
}

/// `issue N`, `issue #N`, `(#N)`: numbers of somebody's tracker.
fn names_an_issue(line: &str) -> bool {
    let digits = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let spelled =
        line.match_indices("issue ").any(|(at, word)| digits(line[at + word.len()..].trim_start_matches('#')));
    let hashed = line
        .match_indices('#')
        .any(|(at, _)| digits(&line[at + 1..]) && line[..at].ends_with([' ', '(', ',']) && !line[..at].ends_with("r "));
    spelled || hashed
}

/// Every text of the project that people wrote: no lockfile, no recorded bytes, no licence texts.
fn texts() -> Vec<(String, String)> {
    let root = root();
    let written = |path: &str| {
        path != "Cargo.lock"
            && !path.starts_with("LICENSE")
            && !path.contains("fixtures/")
            && !path.contains("corpus/")
            && !path.contains("proptest-regressions")
    };
    let relative = |path: &Path| source::relative(&root, path);
    source::files(&root)
        .iter()
        .filter(|path| written(&relative(path)))
        .filter_map(|path| std::fs::read_to_string(path).ok().map(|text| (relative(path), text)))
        .collect()
}

fn files_named(name: &str) -> Vec<String> {
    let root = root();
    let all = source::files(&root);
    all.iter()
        .filter(|path| path.file_name().is_some_and(|n| n == name))
        .map(|path| source::relative(&root, path))
        .collect()
}

/// The rules are only as good as the reader below them.
mod reader {
    use super::{dependencies, mapped, names_an_issue, source};

    #[test]
    fn maps_list_rooms_and_what_is_below_them() {
        let map = "# x\n```text\nsrc/main.rs  starts\nsrc/a.rs  the room\n  a/  b c/d\n      e\n```\nsrc/no.rs\n";
        let found: Vec<String> = mapped(map).into_iter().collect();
        assert_eq!(found, ["src/a.rs", "src/a/b.rs", "src/a/c/d.rs", "src/a/e.rs", "src/main.rs"]);
    }

    #[test]
    fn comments_strings_and_characters_are_blanked() {
        let code = source::strip(
            "let a = \"// {\"; // }\nlet b = 'x'; let c: &'static str = r#\"{\"#; /* { /* } */ */ '\\'';",
        );
        assert_eq!(code.matches('{').count() + code.matches('}').count(), 0, "{code}");
        assert!(code.contains("let b"), "{code}");
        assert!(code.contains("&'static str"), "{code}");
        assert_eq!(code.matches('\n').count(), 1);
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(source::words("Mutex RawMutex MutexGuard Mutex", "Mutex"), [0, 26]);
    }

    #[test]
    fn groups_and_paths_name_their_rooms() {
        let text = "use crate::{fleet::{Snapshot, poll}, ids};\nfn f() { crate::slots::x() }\n";
        let source = source::Source {
            path: "src/a.rs".into(),
            text: text.into(),
            code: text.into(),
            shipped: text.into(),
            is_test: false,
        };
        let rooms: Vec<String> = source.rooms_imported().into_iter().map(|(room, _)| room).collect();
        assert_eq!(rooms, ["fleet", "ids", "slots"]);
        assert_eq!(source.functions(), [("f".to_owned(), 2, 1)]);
    }

    #[test]
    fn licences_are_read_as_expressions() {
        assert!(dependencies::allowed("MIT OR GPL-3.0"));
        assert!(dependencies::allowed("MIT/Apache-2.0"));
        assert!(dependencies::allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(!dependencies::allowed("GPL-3.0"));
        assert!(!dependencies::allowed("MIT AND GPL-3.0"));
        assert!(!dependencies::allowed(""));
    }

    #[test]
    fn issue_numbers_are_seen_and_colours_are_not() {
        assert!(names_an_issue(concat!("as iss", "ue 7 says")));
        assert!(names_an_issue(concat!("fixed (", "#12)")));
        assert!(!names_an_issue("an issue of 3 parts; r#\"…\"#; node#3"));
    }
}
