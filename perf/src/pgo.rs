//! A release build that knows its work: an instrumented proxy serves the lab's scenarios, and the compiler lays out the
//! final one by what it saw.
//!
//! Called by `main`. A request runs through some 1,800 cache lines of code, more than the first level holds beside the
//! kernel's own: what counts is how close together that lies which is run, and no compiler knows it by itself.
//!
//! `RUSTFLAGS` of the environment hold for both builds (a static binary: `-C target-feature=+crt-static`). Needs
//! llvm-profdata of the toolchain's own LLVM, which rustup brings with the component `llvm-tools`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::peers::Programs;
use crate::run::{self, Plan};
use crate::scenario;

/// What the instrumented proxy serves: each way that bytes take through it, none for longer than another.
const TRAINING: [&str; 12] = [
    "short",
    "prompt16k",
    "prompt1m",
    "image1m",
    "paced",
    "burst64",
    "chunks64",
    "sse",
    "sse_plain",
    "embed",
    "conns1",
    "conns512",
];
/// For how long each, ms.
const WINDOW_MS: u64 = 1_500;

/// How to build.
#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Where everything goes, the result as `herdgate` [default: target/pgo]
    #[arg(long, value_name = "DIRECTORY")]
    target_dir: Option<PathBuf>,
}

/// Builds, trains, builds again, and says where the result is.
pub(crate) fn build(flags: &Flags, perf: &Path) -> anyhow::Result<()> {
    let dir = flags.target_dir.clone().unwrap_or_else(|| perf.join("../target/pgo"));
    std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let toolchain = Toolchain::find()?;
    let seen = dir.join("seen");
    if seen.exists() {
        std::fs::remove_dir_all(&seen).context("what an earlier training left")?;
    }
    let cargo = |target: &Path, flag: String| toolchain.cargo(perf, target, &flag);
    let instrumented = cargo(&dir.join("instrumented"), format!("-Cprofile-generate={}", seen.display()))?;
    train(&instrumented, perf)?;
    let profile = dir.join("herdgate.profdata");
    toolchain.merge(&seen, &profile)?;
    let binary = cargo(&dir, format!("-Cprofile-use={}", profile.display()))?;
    let result = dir.join("herdgate");
    std::fs::copy(&binary, &result).with_context(|| format!("{}", result.display()))?;
    println!("{}", result.display());
    Ok(())
}

/// Lets the instrumented proxy serve every scenario once; it writes down what it ran when it ends.
fn train(binary: &Path, perf: &Path) -> anyhow::Result<()> {
    let scenarios = scenario::choose(&scenario::load(&perf.join("scenarios"))?, &TRAINING.map(str::to_owned))?;
    let programs = Programs { herdgate: binary.into(), locked: None, templates: perf.join("peers"), real_time: false };
    let plan = Plan {
        programs,
        peers: vec!["herdgate".to_owned()],
        repeats: 1,
        warm_ms: 0,
        window_ms: WINDOW_MS,
        syscalls: false,
    };
    let _alone = crate::process::alone()?;
    run::run(&plan, &scenarios, &mut |sample| eprintln!("trained {} {:?}", sample.scenario, sample.pass))
}

/// The compiler's parts that cargo does not call by itself.
struct Toolchain {
    host: String,
    profdata: PathBuf,
}

impl Toolchain {
    fn find() -> anyhow::Result<Self> {
        let said = |arguments: &[&str]| -> anyhow::Result<String> {
            let output = Command::new("rustc").args(arguments).output().context("rustc")?;
            ensure!(output.status.success(), "rustc {}: {}", arguments.join(" "), output.status);
            Ok(String::from_utf8(output.stdout)?)
        };
        let version = said(&["-vV"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names its host")?;
        let libraries = PathBuf::from(said(&["--print", "target-libdir"])?.trim());
        let profdata = libraries.with_file_name("bin").join("llvm-profdata");
        ensure!(profdata.is_file(), "{} is not there; rustup component add llvm-tools", profdata.display());
        Ok(Self { host: host.to_owned(), profdata })
    }

    /// Builds the proxy with one more flag and gives its path. With `--target`, so that what runs during the build
    /// (macros, build scripts) is neither instrumented nor laid out by it.
    fn cargo(&self, perf: &Path, target: &Path, flag: &str) -> anyhow::Result<PathBuf> {
        let flags = std::env::var("RUSTFLAGS").map_or_else(|_| flag.to_owned(), |flags| format!("{flags} {flag}"));
        let done = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(perf.join(".."))
            .args(["build", "--release", "--locked", "--bin", "herdgate", "--target", &self.host, "--target-dir"])
            .arg(target)
            .env("RUSTFLAGS", flags)
            .stdin(Stdio::null())
            .status()
            .context("cargo")?;
        ensure!(done.success(), "cargo build: {done}");
        Ok(target.join(&self.host).join("release/herdgate"))
    }

    fn merge(&self, seen: &Path, profile: &Path) -> anyhow::Result<()> {
        let done = Command::new(&self.profdata).args(["merge", "-o"]).arg(profile).arg(seen).status();
        let done = done.with_context(|| format!("{}", self.profdata.display()))?;
        ensure!(done.success(), "llvm-profdata merge: {done}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_training_is_made_of_scenarios_that_there_are() {
        let all = scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        let chosen = scenario::choose(&all, &TRAINING.map(str::to_owned)).unwrap();
        assert_eq!(chosen.len(), TRAINING.len());
        assert!(chosen.iter().all(|scenario| scenario.includes("herdgate")));
    }
}
