//! Simulated Ollama nodes as cheap as can be: many listening ports on one thread, every answer prepared as bytes.
//!
//! A process of its own (`herdgate-perf backend`), started by `run`. Tells its ports on its standard output and ends when
//! its standard input does, or when its time is over. Checks every request's body whole, and answers 400 when it is not
//! what the client sent: a proxy that bends a body fails its run.

mod conn;

use std::collections::{BinaryHeap, HashMap};
use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use self::conn::{Conn, Reading, push};
use crate::epoll::Epoll;
use crate::http::request_head;
use crate::node::{Pieces, Questions};
use crate::scenario::{Form, Scenario};
use crate::workload::Workload;

/// What to serve.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) nodes: usize,
    /// Models that each node lists beside the scenarios' own.
    pub(crate) models: usize,
    /// The end, whatever happens.
    pub(crate) seconds_max: u64,
}

/// What has been asked so far: `GET /perf/counts`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Connections accepted.
    pub(crate) connections: u64,
    /// Requests of clients.
    pub(crate) requests: u64,
    /// Questions of pollers.
    pub(crate) questions: u64,
    /// Requests that were not what the client sent.
    pub(crate) bent: u64,
}

/// A scenario's answer.
struct Answer {
    pieces: Pieces,
    /// Where the proxy asked for the usage and the client did not.
    with_usage: Pieces,
    every: Duration,
    endless: bool,
    expected: Vec<u8>,
    /// The proxy may have spliced in a question for the usage.
    splice: bool,
}

/// What a request turned out to be.
enum Asked {
    Known(usize),
    Question(Pieces),
}

/// When a connection sends its next piece; the earliest is the greatest.
#[derive(PartialEq, Eq)]
struct Due {
    at: Instant,
    conn: usize,
    born: u64,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.at, other.born).cmp(&(self.at, self.born))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The nodes.
pub(crate) struct Backend {
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    conns: Vec<Option<Conn>>,
    free: Vec<usize>,
    due: BinaryHeap<Due>,
    answers: Vec<Answer>,
    by_model: HashMap<Vec<u8>, usize>,
    questions: Questions,
    counts: Counts,
    born: u64,
    buffer: Vec<u8>,
    /// A body's first bytes hold the model's name within so many.
    start: usize,
}

impl Backend {
    pub(crate) fn new(job: &Job) -> anyhow::Result<Self> {
        let epoll = Epoll::new()?;
        let mut listeners = Vec::new();
        for key in 0..job.nodes {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("a port for a node")?;
            // The library's backlog of 128 drops connections when thousands come at once.
            rustix::net::listen(&listener, 4096).context("listen")?;
            listener.set_nonblocking(true)?;
            epoll.add_listener(&listener, key as u64)?;
            listeners.push(listener);
        }
        let (mut answers, mut by_model, mut names) = (Vec::new(), HashMap::new(), Vec::new());
        for scenario in &job.scenarios {
            let Some(model) = &scenario.request.model else { continue };
            // Scenarios that share a model ask and answer the same.
            if by_model.contains_key(model.as_bytes()) {
                continue;
            }
            by_model.insert(model.clone().into_bytes(), answers.len());
            names.push(model.clone());
            let work = Workload::of(scenario);
            let splice = scenario.answer.form == Form::Sse && !scenario.request.include_usage;
            answers.push(Answer {
                expected: work.body().to_vec(),
                with_usage: Rc::new(Workload::pieces_with_usage(scenario)),
                pieces: Rc::new(work.pieces),
                every: Duration::from_millis(work.every_ms),
                endless: scenario.load.hold,
                splice,
            });
        }
        let start = names.iter().map(|name| name.len() + 16).max().unwrap_or(16);
        let questions = Questions::new(&names, job.models);
        Ok(Self {
            epoll,
            listeners,
            conns: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            answers,
            by_model,
            questions,
            counts: Counts::default(),
            born: 0,
            buffer: vec![0; 256 * 1024],
            start,
        })
    }

    /// Where the nodes listen.
    pub(crate) fn ports(&self) -> anyhow::Result<Vec<u16>> {
        self.listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
    }

    /// Serves until `end` says so (asked every 100 ms at most).
    pub(crate) fn run(&mut self, end: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut ready = Vec::new();
        while !end() {
            let wait = self.due.peek().map_or(Duration::from_millis(100), |due| {
                due.at.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))
            });
            self.epoll.wait(Some(wait), &mut ready)?;
            self.tick();
            for event in &ready {
                let Ok(key) = usize::try_from(event.key) else { continue };
                if key < self.listeners.len() {
                    self.accept(key);
                    continue;
                }
                let conn = key - self.listeners.len();
                if event.readable {
                    self.read(conn);
                } else if event.writable {
                    self.write(conn);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, listener: usize) {
        while let Ok((stream, _)) = self.listeners[listener].accept() {
            if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            self.counts.connections += 1;
            self.born += 1;
            let at = self.free.pop().unwrap_or(self.conns.len());
            if self.epoll.add(&stream, (at + self.listeners.len()) as u64).is_err() {
                self.free.push(at);
                continue;
            }
            let conn = Conn {
                stream,
                reading: Reading::Head,
                held: Vec::new(),
                sending: None,
                every: Duration::ZERO,
                endless: false,
                born: self.born,
            };
            if at == self.conns.len() {
                self.conns.push(Some(conn));
            } else {
                self.conns[at] = Some(conn);
            }
        }
    }

    fn close(&mut self, at: usize) {
        if self.conns.get_mut(at).is_some_and(|conn| conn.take().is_some()) {
            self.free.push(at);
        }
    }

    fn read(&mut self, at: usize) {
        let mut buffer = std::mem::take(&mut self.buffer);
        while let Some(conn) = self.conns.get_mut(at).and_then(Option::as_mut) {
            match conn.stream.read(&mut buffer) {
                Ok(0) => {
                    self.close(at);
                    break;
                }
                Ok(n) => {
                    if self.take(at, &buffer[..n]).is_err() {
                        self.close(at);
                        break;
                    }
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.close(at);
                    break;
                }
            }
        }
        self.buffer = buffer;
        // An edge for writing may have come with the one for reading.
        self.write(at);
    }

    /// Understands what came in; several requests may, one after another.
    fn take(&mut self, at: usize, input: &[u8]) -> Result<(), String> {
        let Some(mut conn) = self.conns.get_mut(at).and_then(Option::take) else { return Ok(()) };
        let result = self.advance(&mut conn, at, input);
        self.conns[at] = Some(conn);
        result
    }

    fn advance(&mut self, conn: &mut Conn, at: usize, input: &[u8]) -> Result<(), String> {
        let joined;
        let mut rest = input;
        if !conn.held.is_empty() {
            joined = [std::mem::take(&mut conn.held).as_slice(), input].concat();
            rest = &joined;
        }
        loop {
            match &mut conn.reading {
                Reading::Head => {
                    let Some(head) = request_head(rest)? else { break };
                    rest = &rest[head.bytes..];
                    if head.post {
                        conn.reading = Reading::Start { path: head.path, length: head.length };
                        continue;
                    }
                    let pieces = self.get(&head.path);
                    self.reply(conn, at, Asked::Question(pieces));
                }
                Reading::Start { path, length } => {
                    if rest.len() < (*length).min(self.start) {
                        break;
                    }
                    let answer =
                        if path == "/api/show" { None } else { self.answer_to(&rest[..self.start.min(*length)]) };
                    if let Some(answer) = answer.filter(|answer| !self.answers[*answer].splice) {
                        let bent = self.answers[answer].expected.len() != *length;
                        conn.reading = Reading::Body { answer, at: 0, length: *length, bent };
                        continue;
                    }
                    if rest.len() < *length {
                        break;
                    }
                    let body = &rest[..*length];
                    let asked = match answer {
                        Some(answer) => self.spliced(answer, body),
                        None if path == "/api/show" => {
                            self.counts.questions += 1;
                            Asked::Question(self.questions.show(body))
                        }
                        None => Asked::Question(self.questions.unknown()),
                    };
                    rest = &rest[*length..];
                    conn.reading = Reading::Head;
                    self.reply(conn, at, asked);
                }
                Reading::Body { answer, at: done, length, bent } => {
                    let take = rest.len().min(*length - *done);
                    *bent |= self.answers[*answer].expected.get(*done..*done + take) != Some(&rest[..take]);
                    *done += take;
                    rest = &rest[take..];
                    if *done < *length {
                        break;
                    }
                    let (answer, bent) = (*answer, *bent);
                    conn.reading = Reading::Head;
                    let asked = if bent { self.bent() } else { Asked::Known(answer) };
                    self.reply(conn, at, asked);
                }
            }
            if rest.is_empty() {
                break;
            }
        }
        conn.held.extend_from_slice(rest);
        Ok(())
    }

    fn get(&mut self, path: &str) -> Pieces {
        if path == "/perf/counts" {
            return Questions::json(&serde_json::to_vec(&self.counts).unwrap_or_default());
        }
        self.counts.questions += 1;
        self.questions.get(path)
    }

    fn answer_to(&self, start: &[u8]) -> Option<usize> {
        let name = start.strip_prefix(b"{\"model\":\"")?;
        let end = memchr::memchr(b'"', name)?;
        self.by_model.get(&name[..end]).copied()
    }

    /// A request that the proxy may have asked for the usage in.
    fn spliced(&mut self, answer: usize, body: &[u8]) -> Asked {
        let known = &self.answers[answer];
        if body == known.expected {
            return Asked::Known(answer);
        }
        let asks = memchr::memmem::find(body, b"\"stream_options\":{\"include_usage\":true}").is_some();
        let kept = body.starts_with(&known.expected[..known.expected.len() - 1]);
        if !asks || !kept {
            return self.bent();
        }
        self.counts.requests += 1;
        Asked::Question(Rc::clone(&known.with_usage))
    }

    fn bent(&mut self) -> Asked {
        self.counts.bent += 1;
        Asked::Question(Questions::error("the body is not what the client sent"))
    }

    fn reply(&mut self, conn: &mut Conn, at: usize, asked: Asked) {
        let pieces = match asked {
            Asked::Known(answer) => {
                self.counts.requests += 1;
                let answer = &self.answers[answer];
                (conn.every, conn.endless) = (answer.every, answer.endless);
                Rc::clone(&answer.pieces)
            }
            Asked::Question(pieces) => {
                (conn.every, conn.endless) = (Duration::ZERO, false);
                pieces
            }
        };
        conn.sending = Some((pieces, 0, 0));
        if !push(conn) {
            // Closed by the other side: the next read says so.
            conn.sending = None;
        }
        self.pace(conn, at);
    }

    /// Arms the timer when a piece has been sent and another one is to follow.
    fn pace(&mut self, conn: &mut Conn, at: usize) {
        if let Some((_, _, 0)) = conn.sending {
            self.due.push(Due { at: Instant::now() + conn.every, conn: at, born: conn.born });
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        while self.due.peek().is_some_and(|due| due.at <= now) {
            let Some(due) = self.due.pop() else { break };
            let Some(conn) = self.conns.get_mut(due.conn).and_then(Option::as_mut) else { continue };
            if conn.born != due.born || conn.sending.is_none() {
                continue;
            }
            let every = conn.every;
            if !push(conn) {
                self.close(due.conn);
                continue;
            }
            if let Some((_, _, 0)) = conn.sending {
                // From the intended time, so that lateness does not add up.
                self.due.push(Due { at: due.at + every, ..due });
            }
        }
    }

    fn write(&mut self, at: usize) {
        let Some(conn) = self.conns.get_mut(at).and_then(Option::as_mut) else { return };
        if let Some((_, _, offset)) = conn.sending
            && offset > 0
        {
            let (born, every) = (conn.born, conn.every);
            if !push(conn) {
                self.close(at);
            } else if let Some((_, _, 0)) = conn.sending {
                self.due.push(Due { at: Instant::now() + every, conn: at, born });
            }
        }
    }
}

/// `herdgate-perf backend`: the job on the first line of standard input, ports on standard output.
pub(crate) fn main() -> anyhow::Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let job: Job = serde_json::from_str(&line).context("the job on standard input")?;
    let mut backend = Backend::new(&job)?;
    println!("{}", serde_json::to_string(&backend.ports()?)?);
    let until = Instant::now() + Duration::from_secs(job.seconds_max);
    // Ends with its parent: the death signal is set by `exec`, this bound holds without it.
    backend.run(&|| Instant::now() >= until)
}
