//! The load generator: closed loop, open loop and held streams on one thread; every body checked whole.
//!
//! A process of its own (`herdgate-perf load`), started by `run`; the job comes on standard input, the figures leave on
//! standard output. Reads the proxy's accounting itself, at the very ends of its window. Must stay cheap: it shares a
//! core with the nodes, and a slow generator measures itself.

mod job;
mod offer;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::accounting::{Memory, Usage};
use crate::epoll::Epoll;
use crate::fetch;
use crate::http::Answers;
use crate::scenario::Form;
use crate::stats::Spread;
use crate::workload::Workload;

pub(crate) use self::job::{Figures, Job, Mode};

/// Connects at once while held streams are opened: the proxy's backlog takes them.
const OPENING_MAX: usize = 64;
/// Latencies kept, at most; one window has far fewer.
const SAMPLES_MAX: usize = 4_000_000;
/// What is under way when a window ends may take this long beyond one answer.
const DRAIN: Duration = Duration::from_secs(5);
/// After the last held stream has opened, before its window starts.
const SETTLE: Duration = Duration::from_secs(2);

struct Conn {
    stream: TcpStream,
    answers: Answers,
    /// Bytes of the request that are out.
    sent: usize,
    /// Bytes of the body that are in, and records.
    got: usize,
    records: usize,
    busy: bool,
    intended: Instant,
    last_record: Option<Instant>,
}

/// One run of the generator.
struct Load {
    epoll: Epoll,
    job: Job,
    work: Workload,
    conns: Vec<Option<Conn>>,
    /// Free connections, the one used last on top.
    idle: Vec<usize>,
    /// Intended starts without a connection.
    waiting: VecDeque<Instant>,
    /// Starts to come, for connections that begin one after another.
    agenda: VecDeque<(Instant, usize)>,
    starting: bool,
    measuring: bool,
    latency: Vec<u64>,
    first_byte: Vec<u64>,
    gaps: Vec<u64>,
    body_bytes: u64,
    opened: usize,
    under_way: usize,
    figures: Figures,
    buffer: Vec<u8>,
}

/// Measures one window.
pub(crate) fn measure(job: Job) -> anyhow::Result<Figures> {
    let mut load = Load::new(job)?;
    load.run()?;
    Ok(load.figures)
}

impl Load {
    fn new(job: Job) -> anyhow::Result<Self> {
        let mut work = Workload::of(&job.scenario);
        if job.scenario.answer.form == Form::Listing {
            // Every proxy has its own; the first one is what all others must be.
            work.expected = fetch::exchange(job.port, &work.request, Duration::from_secs(5))?.body;
        }
        ensure!(job.window_ms >= 1 && job.window_ms + job.warm_ms <= 300_000, "a window within 5 minutes");
        Ok(Self {
            epoll: Epoll::new()?,
            work,
            conns: Vec::new(),
            idle: Vec::new(),
            waiting: VecDeque::new(),
            agenda: VecDeque::new(),
            starting: true,
            measuring: false,
            latency: Vec::new(),
            first_byte: Vec::new(),
            gaps: Vec::new(),
            body_bytes: 0,
            opened: 0,
            under_way: 0,
            figures: Figures::default(),
            buffer: vec![0; 256 * 1024],
            job,
        })
    }

    /// Time that one answer takes of itself.
    fn answer_time(&self) -> Duration {
        Duration::from_millis(self.work.every_ms * self.work.pieces.len().saturating_sub(1) as u64)
    }

    fn run(&mut self) -> anyhow::Result<()> {
        self.figures.memory_before = Memory::of(&self.job.watch);
        let (warm, window) = (Duration::from_millis(self.job.warm_ms), Duration::from_millis(self.job.window_ms));
        let from = match self.job.mode.clone() {
            Mode::Closed { connections } => {
                let now = Instant::now();
                let spread = self.answer_time();
                for n in 0..connections {
                    let at = self.connect()?;
                    // Streams that begin together would end together: spread them over their own length.
                    let offset = spread.mul_f64(n as f64 / connections as f64);
                    self.agenda.push_back((now + offset, at));
                }
                Instant::now() + warm + spread
            }
            Mode::Open { connections, .. } => {
                for _ in 0..connections {
                    let at = self.connect()?;
                    self.idle.push(at);
                }
                Instant::now() + warm + self.answer_time()
            }
            Mode::Hold { connections } => {
                self.open_all(connections)?;
                Instant::now() + SETTLE
            }
        };
        self.until(from)?;
        let (usage, own) = (Usage::of(&self.job.watch), self.own());
        let start = Instant::now();
        self.measuring = true;
        self.until(start + window)?;
        self.measuring = false;
        let took = start.elapsed();
        self.close_window(took, &usage, own);
        self.starting = false;
        if !matches!(self.job.mode, Mode::Hold { .. }) {
            self.drain()?;
        }
        Ok(())
    }

    /// Run time of the generator and of the nodes.
    fn own(&self) -> (u64, u64) {
        let backend: Vec<u32> = self.job.backend.into_iter().collect();
        (Usage::of(&[std::process::id()]).total_ns(), Usage::of(&backend).total_ns())
    }

    fn close_window(&mut self, took: Duration, usage: &Usage, own: (u64, u64)) {
        let figures = &mut self.figures;
        figures.usage = Usage::of(&self.job.watch).since(usage);
        figures.memory = Memory::of(&self.job.watch);
        figures.window_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        figures.completed = self.latency.len() as u64;
        figures.answers = self.body_bytes as f64 / (self.work.expected.len().max(1)) as f64;
        figures.latency = Spread::of(&mut self.latency);
        figures.first_byte = Spread::of(&mut self.first_byte);
        figures.gaps = Spread::of(&mut self.gaps);
        let after = self.own();
        let figures = &mut self.figures;
        figures.generator_busy = after.0.saturating_sub(own.0) as f64 / figures.window_ns as f64;
        figures.backend_busy = after.1.saturating_sub(own.1) as f64 / figures.window_ns as f64;
    }

    /// Waits once, until `end` at most, and serves what is ready.
    fn turn(&mut self, end: Instant) -> anyhow::Result<()> {
        let now = Instant::now();
        while let Some((due, at)) = self.agenda.front().copied().filter(|(due, _)| *due <= now) {
            self.agenda.pop_front();
            self.start(at, due);
        }
        let end = self.agenda.front().map_or(end, |(due, _)| end.min(*due));
        let mut ready = Vec::with_capacity(256);
        self.epoll.wait(Some(end.saturating_duration_since(now)), &mut ready)?;
        for event in ready {
            let Ok(at) = usize::try_from(event.key) else { continue };
            if event.writable {
                self.send(at);
            }
            if event.readable {
                self.read(at);
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> anyhow::Result<usize> {
        let conn = self.dial(self.conns.len())?;
        self.conns.push(Some(conn));
        Ok(self.conns.len() - 1)
    }

    fn dial(&self, at: usize) -> anyhow::Result<Conn> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.job.port));
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        self.epoll.add(&stream, at as u64)?;
        Ok(Conn {
            stream,
            answers: Answers::new(),
            sent: 0,
            got: 0,
            records: 0,
            busy: false,
            intended: Instant::now(),
            last_record: None,
        })
    }

    fn start(&mut self, at: usize, intended: Instant) {
        let Some(conn) = self.conns[at].as_mut() else { return };
        (conn.sent, conn.got, conn.records, conn.busy) = (0, 0, 0, true);
        (conn.intended, conn.last_record) = (intended, None);
        self.under_way += 1;
        self.send(at);
    }

    fn send(&mut self, at: usize) {
        let Some(conn) = self.conns[at].as_mut() else { return };
        while conn.busy && conn.sent < self.work.request.len() {
            match conn.stream.write(&self.work.request[conn.sent..]) {
                Ok(n) => conn.sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return self.broken(at, &format!("sending: {error}")),
            }
        }
    }

    fn read(&mut self, at: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(conn) = self.conns[at].as_mut() {
            match conn.stream.read(&mut buffer) {
                Ok(0) if conn.busy => {
                    self.broken(at, "closed in the middle of an answer");
                    break;
                }
                Ok(0) => {
                    self.reopen(at);
                    break;
                }
                Ok(n) => {
                    if let Err(why) = self.take(at, &buffer[..n]) {
                        self.broken(at, &why);
                        break;
                    }
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.broken(at, &format!("reading: {error}"));
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    fn take(&mut self, at: usize, input: &[u8]) -> Result<(), String> {
        let now = Instant::now();
        let Some(conn) = self.conns[at].as_mut() else { return Ok(()) };
        if !conn.busy {
            return Err(format!("{} bytes that nobody asked for", input.len()));
        }
        let before = conn.got;
        let (work, job) = (&self.work, &self.job);
        let looped = matches!(job.mode, Mode::Hold { .. });
        let (mut got, mut same) = (before, true);
        let (taken, whole) = conn.answers.feed(input, &mut |bytes| {
            same &= if looped {
                is_looped(work, got, bytes)
            } else {
                work.expected.get(got..got + bytes.len()) == Some(bytes)
            };
            got += bytes.len();
        })?;
        conn.got = got;
        if conn.answers.status() != 200 && (got > before || whole) {
            return Err(format!(
                "status {}: {}",
                conn.answers.status(),
                String::from_utf8_lossy(&input[..input.len().min(600)])
            ));
        }
        if !same {
            return Err(format!(
                "a wrong body at byte {before}: {}",
                String::from_utf8_lossy(&input[..input.len().min(600)])
            ));
        }
        if whole && got != work.expected.len() && !looped {
            return Err(format!("a body of {got} bytes instead of {}", work.expected.len()));
        }
        if whole && taken < input.len() {
            return Err("bytes after the answer".to_owned());
        }
        self.arrived(at, before, now, whole);
        Ok(())
    }

    /// Body bytes are in: what they mean for the figures.
    fn arrived(&mut self, at: usize, before: usize, now: Instant, whole: bool) {
        let looped = matches!(self.job.mode, Mode::Hold { .. });
        let Some(conn) = self.conns[at].as_mut() else { return };
        let room = self.latency.len() < SAMPLES_MAX && self.gaps.len() < SAMPLES_MAX;
        let measuring = self.measuring && room;
        if measuring {
            self.body_bytes += (conn.got - before) as u64;
            if before == 0 && conn.got > 0 {
                self.first_byte.push(nanos(conn.intended, now));
            }
        }
        if before == 0 && conn.got > 0 && self.job.scenario.load.hold {
            self.opened += 1;
        }
        if self.work.ends.len() > 1 {
            while end_of(&self.work, conn.records, looped).is_some_and(|end| end <= conn.got) {
                conn.records += 1;
                if measuring && let Some(last) = conn.last_record {
                    self.gaps.push(nanos(last, now));
                }
                conn.last_record = Some(now);
            }
        }
        if !whole {
            return;
        }
        if measuring {
            self.latency.push(nanos(conn.intended, now));
        }
        conn.busy = false;
        self.under_way -= 1;
        self.figures.completed_in_all += 1;
        self.opened += usize::from(!self.job.scenario.load.hold);
        if !conn.answers.keeps() {
            return self.reopen(at);
        }
        self.next(at, now);
    }

    /// The connection is free.
    fn next(&mut self, at: usize, now: Instant) {
        if !self.starting {
            return;
        }
        match self.job.mode {
            Mode::Closed { .. } => self.start(at, now),
            Mode::Hold { .. } => {}
            Mode::Open { .. } => match self.waiting.pop_front() {
                Some(intended) => self.start(at, intended),
                None => self.idle.push(at),
            },
        }
    }

    fn broken(&mut self, at: usize, why: &str) {
        self.wrong(why);
        if self.conns[at].as_mut().is_some_and(|conn| std::mem::take(&mut conn.busy)) {
            self.under_way -= 1;
        }
        // A run with errors is void; going on for a while shows how many there are.
        if self.figures.errors < 1_000 && self.starting {
            self.reopen(at);
        } else {
            self.conns[at] = None;
            self.idle.retain(|idle| *idle != at);
        }
    }

    /// A connection that was closed between two answers is replaced: proxies may do that.
    fn reopen(&mut self, at: usize) {
        let was_idle = self.idle.iter().position(|idle| *idle == at);
        self.conns[at] = None;
        if let Some(place) = was_idle {
            self.idle.swap_remove(place);
        }
        if self.job.scenario.load.hold {
            return;
        }
        match self.dial(at) {
            Ok(conn) => {
                self.conns[at] = Some(conn);
                self.next(at, Instant::now());
            }
            Err(error) => self.wrong(&format!("connecting again: {error}")),
        }
    }

    fn wrong(&mut self, why: &str) {
        self.figures.errors += 1;
        self.figures.first_error.get_or_insert_with(|| why.to_owned());
    }
}

/// Whether `bytes` at `at` are those of a stream whose last record but one comes again and again.
fn is_looped(work: &Workload, at: usize, bytes: &[u8]) -> bool {
    let records = work.ends.len();
    let (from, to) = (work.ends[records - 3], work.ends[records - 2]);
    let place = |n: usize| if n < to { n } else { from + (n - from) % (to - from) };
    bytes.iter().enumerate().all(|(n, byte)| work.expected[place(at + n)] == *byte)
}

/// Where a record ends in the body; in held streams the last but one comes again and again.
fn end_of(work: &Workload, record: usize, looped: bool) -> Option<usize> {
    let last = work.ends.len() - 2;
    if !looped || record <= last {
        return work.ends.get(record).copied();
    }
    let (from, to) = (work.ends[last - 1], work.ends[last]);
    Some(to + (record - last) * (to - from))
}

fn nanos(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

/// `herdgate-perf load`: the job on standard input, the figures on standard output.
pub(crate) fn main() -> anyhow::Result<()> {
    let job: Job = serde_json::from_reader(std::io::stdin()).context("the job on standard input")?;
    println!("{}", serde_json::to_string(&measure(job)?)?);
    Ok(())
}

#[cfg(test)]
mod tests;
