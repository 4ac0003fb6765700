#!/usr/bin/env bash
# worker threads under steady load: no lock that two threads take, and few of their own (counted in copies of tokio, hyper, flume, seize, papaya)
# shellcheck source=../lib.sh
source .ci/lib.sh

need python3 python3
target="${CARGO_TARGET_DIR:-$PWD/target}"
cargo fetch --locked
PYTHONDONTWRITEBYTECODE=1 python3 .ci/python/lock_copies.py "$target/locks"
# The same target directory: what does not depend on the counted crates is there already.
cd "$target/locks/project"
timeout -k 10 1200 cargo test --offline --test locks -- --nocapture
