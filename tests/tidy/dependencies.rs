//! The dependency policy, read from `cargo metadata`: licences, duplicates, bans, and how many there are.
//!
//! Called by `tests/tidy.rs` alone. Reads the graph of this machine's platform, so that nothing has to be downloaded
//! that a build did not need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Direct dependencies that ship, at most. Those beyond 26, and why none of them is a few lines of ours:
/// pprof (a profile of a running process needs a signal handler and an unwinder, unsafe code that is not ours to write),
/// rusqlite (`herdgate import` reads the ancestor's SQLite file), clap_complete and clap_mangen (completions and the man
/// page from the same source as `--help`), wide (vector instructions are unsafe to call but through such a crate; the scan
/// of a large prompt takes half as long).
pub(crate) const DIRECT_MAX: usize = 31;

/// Licences that may ship without a further word; an expression passes when one of its `OR` arms is made of them.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "OpenLDAP-2.8",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that may not ship: name, reason, replacement.
const BANNED: &[(&str, &str, &str)] = &[
    ("parking_lot", "brings locks that the lints cannot see", "crate::sync"),
    ("dashmap", "a lock per shard", "papaya"),
    ("openssl", "a C library of its own", "a rustls build, once TLS is wanted"),
    ("native-tls", "a C library of its own", "a rustls build, once TLS is wanted"),
    ("reqwest", "a second HTTP client", "src/http1.rs and src/proxy/upstream.rs"),
    ("axum", "a second front", "src/front.rs on hyper"),
    ("async-std", "a second runtime", "tokio"),
    ("smol", "a second runtime", "tokio"),
    ("chrono", "time with a libc call on the way", "jiff"),
    ("time", "a second calendar", "jiff"),
    ("serde_yaml", "stops at the first mistake and has no positions; unmaintained", "saphyr"),
    ("sled", "unmaintained", "heed"),
];

/// Names that may be there in more than one version: name, reason.
const DUPLICATES: &[(&str, &str)] = &[
    ("bitflags", "pprof's nix is an old one"),
    ("gimli", "pprof unwinds with framehop and names with backtrace, each with its own"),
    ("memmap2", "as gimli"),
    ("object", "as gimli"),
    ("spin", "flume's and pprof's differ"),
    ("syn", "macros of pprof's aligned-vec: built, not shipped"),
];

/// Everything the graph breaks, one message each.
pub(crate) fn problems(root: &Path) -> Vec<String> {
    let metadata = metadata(root);
    let packages: BTreeMap<&str, &Value> =
        list(&metadata["packages"]).iter().map(|package| (text(&package["id"]), package)).collect();
    let graph = shipped(&metadata);
    let mut problems = Vec::new();
    for id in &graph {
        let package = packages[id.as_str()];
        licence(package, &mut problems);
        banned(package, &mut problems);
    }
    duplicates(&graph, &packages, &mut problems);
    direct(&metadata, &packages, &mut problems);
    problems
}

fn metadata(root: &Path) -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let host = host();
    let ask = |more: &[&str]| {
        Command::new(&cargo)
            .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &host])
            .args(more)
            .current_dir(root)
            .output()
            .expect("cargo runs, since it runs this test")
    };
    let mut output = ask(&["--offline"]);
    if !output.status.success() {
        // The graph is the workspace's: the lab's own crates may not be here yet.
        output = ask(&[]);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo metadata failed; is Cargo.lock up to date? (cargo metadata --locked)\n{said}"
    );
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn host() -> String {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let output = Command::new(rustc).arg("-vV").output().expect("rustc runs, since it built this test");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc -vV names its host").to_owned()
}

/// Ids of all packages that the binary is made of: normal edges from the root, the root left out.
fn shipped(metadata: &Value) -> BTreeSet<String> {
    let edges: BTreeMap<&str, Vec<&str>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let normal =
                list(&node["deps"]).iter().filter(|dep| list(&dep["dep_kinds"]).iter().any(|k| k["kind"].is_null()));
            (text(&node["id"]), normal.map(|dep| text(&dep["pkg"])).collect())
        })
        .collect();
    let root = text(&metadata["resolve"]["root"]);
    let mut found = BTreeSet::new();
    let mut todo = vec![root];
    while let Some(id) = todo.pop() {
        for next in edges.get(id).into_iter().flatten() {
            if found.insert((*next).to_owned()) {
                todo.push(next);
            }
        }
    }
    found
}

fn licence(package: &Value, problems: &mut Vec<String>) {
    let expression = package["license"].as_str().unwrap_or("");
    if !allowed(expression) {
        problems.push(format!(
            "{} {}: licence \"{expression}\" is not on the list in tests/tidy/dependencies.rs; replace the crate, or add the licence with the project's consent",
            text(&package["name"]),
            text(&package["version"]),
        ));
    }
}

/// An SPDX expression, read as `A OR (B AND C)`; `/` is the old way to write `OR`.
pub(crate) fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
    let known = |name: &str| LICENCES.contains(&name.split_whitespace().collect::<Vec<_>>().join(" ").as_str());
    expression.split(" AND ").all(|part| part.split(" OR ").any(known))
        || expression.split(" OR ").any(|arm| arm.split(" AND ").all(known))
}

fn banned(package: &Value, problems: &mut Vec<String>) {
    let name = text(&package["name"]);
    for (_, reason, replacement) in BANNED.iter().filter(|(banned, ..)| *banned == name) {
        problems
            .push(format!("{name} is banned ({reason}); use {replacement}, or turn off the feature that brings it"));
    }
}

fn duplicates(graph: &BTreeSet<String>, packages: &BTreeMap<&str, &Value>, problems: &mut Vec<String>) {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for id in graph {
        versions.entry(text(&packages[id.as_str()]["name"])).or_default().push(text(&packages[id.as_str()]["version"]));
    }
    for (name, found) in versions.iter().filter(|(_, found)| found.len() > 1) {
        if !DUPLICATES.iter().any(|(listed, _)| listed == name) {
            problems.push(format!(
                "{name} ships in versions {}; align them, or list it with its reason in DUPLICATES",
                found.join(", ")
            ));
        }
    }
    for (name, reason) in DUPLICATES {
        if versions.get(name).is_none_or(|found| found.len() < 2) {
            problems
                .push(format!("{name} is listed in DUPLICATES ({reason}) but is no duplicate any more; take it off"));
        }
    }
}

fn direct(metadata: &Value, packages: &BTreeMap<&str, &Value>, problems: &mut Vec<String>) {
    let root = packages[text(&metadata["resolve"]["root"])];
    // All but those of builds that never ship: models, and the locked baseline.
    let ships = |dep: &Value| dep["target"].as_str().is_none_or(|target| target.starts_with("cfg(not(proxy_"));
    let normal: Vec<&Value> =
        list(&root["dependencies"]).iter().filter(|dep| dep["kind"].is_null() && ships(dep)).collect();
    if normal.len() > DIRECT_MAX {
        problems.push(format!(
            "{} direct dependencies, {DIRECT_MAX} at most; drop one, or write the few lines it is used for",
            normal.len()
        ));
    }
    for dep in normal.iter().filter(|dep| text(&dep["req"]) == "*") {
        problems.push(format!("{}: version \"*\"; name the version", text(&dep["name"])));
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
