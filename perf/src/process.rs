//! Child processes: pinned, bounded, ended by their own ids however the run ends.
//!
//! Called by `peers`, `run` and `flame`. Must never signal a process that it did not start.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal};

/// Of everything that is measured, alike: before all ordinary work.
const PRECEDENCE: i32 = -19;

/// The core of a process that is bound to none.
const ANYWHERE: usize = usize::MAX;

/// How folders of runs are called, before the id of their process.
const FOLDER: &str = "herdgate-perf-";

/// A child that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Its id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// Waits for its end; ends it when that takes longer.
    pub(crate) fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() { Ok(()) } else { bail!("ended with {status}") };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("did not end within {time:?}")
    }
}

impl Running {
    /// Asks it to end and waits; true once it has.
    pub(crate) fn stop(&mut self, time: Duration) -> bool {
        if self.ended().is_some() {
            return true;
        }
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.wait(time);
        self.ended().is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.stop(Duration::from_secs(5)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Where and how a child runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seat {
    pub(crate) core: usize,
    /// Before everything that is not, by the scheduler's real-time class.
    pub(crate) real_time: bool,
}

/// Starts `program` in its seat; it dies with this process.
pub(crate) fn start(
    seat: Seat,
    program: &OsStr,
    arguments: &[&OsStr],
    pipes: (Stdio, Stdio, Stdio),
) -> anyhow::Result<Running> {
    let own = std::env::current_exe().context("this program's own path")?;
    let child = Command::new(own)
        .arg("exec")
        .args(seat.real_time.then_some("--real-time"))
        .arg(seat.core.to_string())
        .arg(program)
        .args(arguments)
        .stdin(pipes.0)
        .stdout(pipes.1)
        .stderr(pipes.2)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    Ok(Running { child })
}

/// Starts `program` as an ordinary process, on whatever core is free: where nothing is measured.
pub(crate) fn start_anywhere(program: &std::path::Path, arguments: &[&OsStr], log: Stdio) -> anyhow::Result<Running> {
    let pipes = (Stdio::null(), Stdio::null(), log);
    start(Seat { core: ANYWHERE, real_time: false }, program.as_os_str(), arguments, pipes)
}

/// `herdgate-perf exec CORE PROGRAM …`: becomes the program, pinned, with the parent's death as its own.
pub(crate) fn exec(seat: Seat, command: &[std::ffi::OsString]) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("death signal")?;
    if seat.core != ANYWHERE {
        pin(seat.core)?;
        take_precedence();
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).context("file limit")?;
    let (program, arguments) = command.split_first().context("a program to start")?;
    let mut next = Command::new(program);
    if seat.real_time {
        // No safe call for this exists; util-linux is everywhere.
        next = Command::new("chrt");
        next.args(["--rr", "1"]).arg(program);
    }
    let error = next.args(arguments).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Other work on the machine must not sit between a request and its answer. Where this is not permitted, it may: all
/// peers alike.
fn take_precedence() {
    // Kernels group processes by session and share cores among the groups first: a session of its own, then its weight.
    let _ = rustix::process::setsid();
    let _ = std::fs::write("/proc/self/autogroup", PRECEDENCE.to_string());
    let _ = rustix::process::setpriority_process(None, PRECEDENCE);
}

/// Takes the threads of `pid` out of the real-time class that its first thread stands before by their nice value: that
/// class knows no nice values, and what a program does behind its own work must stay there.
pub(crate) fn stand_back(pid: u32) -> anyhow::Result<()> {
    let tasks = format!("/proc/{pid}/task");
    let first = nice(format!("{tasks}/{pid}/stat")).context("its first thread")?;
    for task in std::fs::read_dir(&tasks)? {
        let task = task?;
        if nice(task.path().join("stat")).is_some_and(|nice| nice > first) {
            let thread = task.file_name();
            let done = Command::new("chrt").args(["--other", "--pid", "0"]).arg(&thread).status().context("chrt")?;
            // One that has ended meanwhile is none of this.
            anyhow::ensure!(done.success() || !task.path().exists(), "thread {} stays", thread.display());
        }
    }
    Ok(())
}

/// The nice value in a `stat` of a thread; `None` if it has ended.
fn nice(stat: impl AsRef<std::path::Path>) -> Option<i32> {
    let stat = std::fs::read_to_string(stat).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()
}

/// Pins this process to a core; cores that it may not use are replaced by the last one it may.
fn pin(cpu: usize) -> anyhow::Result<()> {
    let allowed = cores()?;
    let cpu = allowed.get(cpu).or(allowed.last()).copied().context("a core")?;
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).context("pinning")
}

/// Cores that this process may use.
pub(crate) fn cores() -> anyhow::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("affinity")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// A folder for the files of one run; goes when dropped.
pub(crate) fn folder() -> anyhow::Result<tempfile::TempDir> {
    sweep();
    let prefix = format!("{FOLDER}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().context("a folder for the run")
}

/// Removes what runs have left behind that were ended from outside.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(FOLDER)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Waits until no other run measures on this machine: two at once would measure each other. Holds until dropped.
pub(crate) fn alone() -> anyhow::Result<std::fs::File> {
    let path = std::env::temp_dir().join("herdgate-perf.lock");
    let file = std::fs::File::options().create(true).append(true).open(&path).context("the lock file")?;
    let until = Instant::now() + Duration::from_secs(3_600);
    let mut told = false;
    while file.try_lock().is_err() {
        if Instant::now() > until {
            bail!("another run has been measuring for an hour ({})", path.display());
        }
        if !std::mem::replace(&mut told, true) {
            eprintln!("waiting for another run on this machine to end");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(file)
}

/// The whole path of a program, if it is installed; where servers live is looked at too.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
