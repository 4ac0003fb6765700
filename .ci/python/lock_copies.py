"""Makes a copy of the project whose dependencies count their locks: 40-locks.sh builds tests/locks.rs in it.

lock_copies.py OUT: copies the locked versions of the crates whose locks a worker may take out of cargo's sources, puts
the types of .ci/lockcount under them, and writes a copy of the project that uses them into OUT/project.

Every edit says what it expects to find, and how often; a crate that changed makes this fail, as does a lock in any
other place of these crates, or in a crate that is on neither list. Standard library alone.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

LOCK = re.compile(r"\bsync::(?:Mutex|RwLock)\b|\bsync::\{[^}]*\b(?:Mutex|RwLock)\b")
"""A file that names a lock of std (or of loom's imitation, which is std's in a build like this)."""

INLINE = "    #[inline]\n    pub(crate) fn "
TRACKED = "    #[track_caller]\n    #[inline]\n    pub(crate) fn "

EDITS = {
    "tokio": [
        # (file, expected, how often, replacement)
        ("src/loom/std/mutex.rs", "use std::sync::{self, MutexGuard, TryLockError};", 1, "use lockcount as sync;\nuse std::sync::{MutexGuard, TryLockError};"),
        # The place that counts is tokio's own line, not its wrapper.
        ("src/loom/std/mutex.rs", f"{INLINE}lock(", 1, f"{TRACKED}lock("),
        ("src/loom/std/mutex.rs", f"{INLINE}try_lock(", 1, f"{TRACKED}try_lock("),
        ("src/loom/std/rwlock.rs", "use std::sync::{self, RwLockReadGuard, RwLockWriteGuard, TryLockError};", 1, "use lockcount as sync;\nuse std::sync::{RwLockReadGuard, RwLockWriteGuard, TryLockError};"),
        ("src/loom/std/rwlock.rs", f"{INLINE}read(", 1, f"{TRACKED}read("),
        ("src/loom/std/rwlock.rs", f"{INLINE}write(", 1, f"{TRACKED}write("),
        ("src/io/split.rs", "use std::sync::Mutex;", 1, "use lockcount::Mutex;"),
        ("src/util/rand/rt.rs", "use std::sync::Mutex;", 1, "use lockcount::Mutex;"),
        ("src/runtime/metrics/worker.rs", "use std::sync::Mutex;", 1, "use lockcount::Mutex;"),
    ],
    "hyper": [
        ("src/body/chan.rs", "use std::sync::{Arc, Mutex};", 1, "use lockcount::Mutex;\nuse std::sync::Arc;"),
        ("src/upgrade.rs", "use std::sync::{Arc, Mutex};", 1, "use lockcount::Mutex;\nuse std::sync::Arc;"),
    ],
    "flume": [
        ("src/lib.rs", "use std::sync::{Mutex, MutexGuard};", 1, "use lockcount::Mutex;\nuse std::sync::MutexGuard;"),
        ("src/lib.rs", "#[inline]\nfn wait_lock<'a, T>(lock: &'a Mutex<T>)", 1, "#[track_caller]\n#[inline]\nfn wait_lock<'a, T>(lock: &'a Mutex<T>)"),
    ],
    "seize": [
        ("src/raw/collector.rs", "use std::sync::Mutex;", 1, "use lockcount::Mutex;"),
        ("src/raw/tls/thread_id.rs", "use std::sync::{Mutex, OnceLock};", 1, "use lockcount::Mutex;\nuse std::sync::OnceLock;"),
    ],
    "papaya": [
        ("src/raw/mod.rs", "use std::sync::{Arc, Mutex};", 1, "use lockcount::Mutex;\nuse std::sync::Arc;"),
        ("src/raw/utils/parker.rs", "use std::sync::Mutex;", 1, "use lockcount::Mutex;"),
    ],
}

OWN = {"tokio": ["crate::loom::sync::", "crate::sync::"]}
"""Paths of a crate's own locks, which are made of those in the files that are edited."""

NOT_BUILT = {
    "tokio": ["src/loom/mocked.rs", "src/loom/std/atomic_u64_as_mutex.rs", "src/loom/std/barrier.rs", "src/loom/std/parking_lot.rs", "src/runtime/tests", "src/runtime/io/driver/uring.rs", "src/sync/tests", "src/process"],
    "hyper": ["src/mock.rs", "src/proto/h2/ping.rs", "src/ffi"],
}
"""Files that name a lock and are not part of a build without HTTP/2, tests or tokio_unstable (or only word them)."""

NOT_ON_A_WORKER = {
    "arc-swap": "a strategy that is not used",
    "backtrace": "names of a flamegraph, on its own thread",
    "clap_builder": "the command line",
    "crossbeam-channel": "not used: its queues are",
    "crossbeam-utils": "parker, wait group and sharded lock are not used",
    "findshlibs": "as backtrace",
    "heed": "the ledger's store thread alone",
    "hyper-util": "its clients are not used: TokioIo alone is",
    "jiff": "time zones by name are not used: offsets are",
    "mio": "other systems' selectors",
    "regex-automata": "the log's filter, when a level is read",
    "rusqlite": "the ancestor's database: `herdgate import` alone, or the thread of its import",
    "sharded-slab": "spans of the log: there are none on a request's way",
    "signal-hook-registry": "signals of the process",
    "synchronoise": "heed's event for closing a store",
    "thread_local": "the log's, once a thread",
    "tracing-core": "once a place that logs",
    "tracing-log": "a bridge that is not set up",
    "tracing-subscriber": "the log: nothing is logged for a request that succeeds",
    "uuid": "as backtrace",
    "zlib-rs": "as backtrace",
    "serde": "serialises locks, has none",
    "serde_core": "serialises locks, has none",
}


def fail(text):
    sys.exit(f"lock_copies.py: {text}")


def shipped():
    """Packages that the binary is made of, by name."""
    command = ["cargo", "metadata", "--offline", "--locked", "--format-version", "1", "--filter-platform", host()]
    graph = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in graph["packages"]}
    nodes = {node["id"]: node for node in graph["resolve"]["nodes"]}
    found, todo = set(), [graph["resolve"]["root"]]
    while todo:
        for dep in nodes[todo.pop()]["deps"]:
            # Under a cfg of our own: a model or the opponent of a measurement.
            ships = lambda kind: kind["kind"] is None and not (kind["target"] or "").startswith("cfg(proxy_")
            if dep["pkg"] not in found and any(ships(kind) for kind in dep["dep_kinds"]):
                found.add(dep["pkg"])
                todo.append(dep["pkg"])
    is_macro = lambda package: any("proc-macro" in target["kind"] for target in package["targets"])
    return [packages[id] for id in found if not is_macro(packages[id])]


def host():
    said = subprocess.run(["rustc", "-vV"], check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.search(r"^host: (.*)$", said, re.M).group(1)


def locks(folder, name):
    """Files of a crate that name a lock of std's."""
    for path in sorted((folder / "src").rglob("*.rs")):
        code = re.sub(r"//[^\n]*", "", path.read_text(errors="replace"))
        for own in OWN.get(name, []):
            code = code.replace(own, "")
        if LOCK.search(code):
            yield path.relative_to(folder).as_posix()


def write(path, data):
    """Writes what changed alone: an unchanged file keeps its time, and is not built again."""
    data = data.encode() if isinstance(data, str) else data
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def mirror(source, target, edited=None):
    """Makes the folder `target` equal to `source`, but for the files of `edited`: path and text."""
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    for path in [path for path in target.rglob("*") if path.is_file()]:
        if path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    for path in wanted:
        write(target / path, (edited or {}).get(path) or (source / path).read_bytes())


def counted(package, out, lockcount):
    """A copy of a crate with its locks counted."""
    name, source = package["name"], Path(package["manifest_path"]).parent
    folder = out / f"{name}-{package['version']}"
    edited = {}
    for file, expected, times, replacement in EDITS[name]:
        text = edited.get(file) or (source / file).read_text()
        if text.count(expected) != times:
            fail(f"{name} {package['version']} {file}: {expected!r} stands there {text.count(expected)} times, not {times}: look how it locks now")
        edited[file] = text.replace(expected, replacement)
    left = set(locks(source, name)) - set(edited)
    left = [file for file in left if not any(file == no or file.startswith(f"{no}/") for no in NOT_BUILT.get(name, []))]
    if left:
        fail(f"{name} {package['version']}: locks in files that nobody counts: {sorted(left)}")
    edited["Cargo.toml"] = manifest((source / "Cargo.toml").read_text(), lockcount)
    mirror(source, folder, edited)
    return folder


def manifest(text, lockcount):
    """A crate's manifest with our types, and without what its own tests need."""
    sections = re.split(r"^(?=\[)", text, flags=re.M)
    kept = [section for section in sections if not section.startswith(("[[test]]", "[[bench]]", "[[example]]", "[dev-dependencies", "[lints"))]
    return "".join(kept) + f'\n[dependencies.lockcount]\npath = "{lockcount}"\n\n[lints.rust]\nwarnings = "allow"\n'


def project(out, crates, lockcount):
    """A copy of the project that is built with the counted crates, and knows that it is."""
    folder = out / "project"
    # What the manifests name has to be there, though the tests alone are built.
    for part in ("src", "tests", "benches", "perf/src", "perf/locked"):
        mirror(ROOT / part, folder / part)
    write(folder / "perf/Cargo.toml", (ROOT / "perf/Cargo.toml").read_bytes())
    # No binary: nothing here runs it.
    (folder / "src/main.rs").unlink()
    text = (ROOT / "Cargo.toml").read_text()
    edits = [("[dev-dependencies]\n", f'[dev-dependencies]\nlockcount = {{ path = "{lockcount}" }}\n')]
    # tokio's clock for tests is behind a lock that does not ship.
    edits += [('"test-util", ', "")]
    for expected, replacement in edits:
        if text.count(expected) != 1:
            fail(f"Cargo.toml: {expected!r} does not stand there once")
        text = text.replace(expected, replacement)
    text += "\n[patch.crates-io]\n" + "".join(f'{name} = {{ path = "{path}" }}\n' for name, path in sorted(crates.items()))
    write(folder / "Cargo.toml", text)
    # A build script sets the cfg for this package alone: through RUSTFLAGS every dependency would be built again.
    write(folder / "build.rs", '//! Sets the cfg of the copy.\nfn main() {\n    println!("cargo:rustc-cfg=proxy_lock_count");\n}\n')
    shutil.copyfile(ROOT / "Cargo.lock", folder / "Cargo.lock")
    write(folder / "README.md", (ROOT / "README.md").read_text())


def main():
    out = Path(sys.argv[1]).resolve()
    packages = shipped()
    unknown = sorted(p["name"] for p in packages if p["name"] not in EDITS and p["name"] not in NOT_ON_A_WORKER and any(locks(Path(p["manifest_path"]).parent, p["name"])))
    if unknown:
        fail(f"these crates have locks, and stand on no list: {unknown}")
    lockcount = out / "lockcount"
    mirror(ROOT / ".ci/lockcount", lockcount)
    crates = {package["name"]: counted(package, out, lockcount) for package in packages if package["name"] in EDITS}
    missing = sorted(set(EDITS) - set(crates))
    if missing:
        fail(f"no longer a dependency: {missing}; take it off the list")
    project(out, crates, lockcount)
    print(f"counted: {', '.join(sorted(path.name for path in crates.values()))}")


main()
