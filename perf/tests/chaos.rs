//! The chaos run, short: twenty seconds of faults before the proxy's own binary, and what it promises holds.

use std::path::Path;
use std::process::Command;

#[test]
fn twenty_seconds_of_chaos_hold() {
    let lab = Path::new(env!("CARGO_BIN_EXE_herdgate-perf"));
    // `cargo test` builds it beside the lab; `.ci/run` does that first.
    let proxy = lab.with_file_name("herdgate");
    assert!(proxy.is_file(), "{} is not there: run cargo build --bin herdgate", proxy.display());
    let run = Command::new(lab)
        .args(["chaos", "--seed", "7", "--rate", "40", "--for", "20s", "--nodes", "6", "--verbose", "--herdgate"])
        .arg(&proxy)
        .output()
        .unwrap();
    let (table, said) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{table}\n{said}");
    assert!(table.contains("verdict     holds"), "{table}");
}

#[test]
fn a_proxy_that_is_not_there_is_said() {
    let lab = Path::new(env!("CARGO_BIN_EXE_herdgate-perf"));
    let run = Command::new(lab).args(["chaos", "--for", "5s", "--herdgate", "/nowhere"]).output().unwrap();
    assert!(!run.status.success());
    assert!(String::from_utf8_lossy(&run.stderr).contains("cargo build"));
}
