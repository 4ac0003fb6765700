//! One inference request, from its body to the end of its answer.
//!
//! Called by `serve.rs`. The order of checks is Ollama's; the answer runs in the request's own task, with one timer,
//! and watches the client while it waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::ask::{self, By, Fail, Wanted};
use super::conn::{Body, Conn, Stop};
use super::fault::{Harm, Moment};
use super::host::{Core, Got, Stay};
use super::http::{self, Head, Reply};
use super::job::{Dialect, Family, Job};
use super::ledger::{Ending, Tokens};
use super::model::{self, Placed};
use super::sched::{Cancel, Grant, Refusal};
use super::text;
use super::voice::{Chunks, End, Voice, stream_marks};
use super::{ask_v1, codec, embed};

/// Chunks that leave in one write when a stream is not paced.
const BURST: u32 = 64;
/// What a stream says when its runner dies.
const RUNNER_DIED: &str = "an error was encountered while running the model: unexpected EOF";

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Keep,
    Close,
    /// It is never answered and never closed.
    Park,
}

/// A request being handled.
pub(super) struct Turn<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) conn: &'a mut Conn,
    pub(super) head: &'a Head,
    pub(super) stay: Stay,
    /// Its body was still open when it started.
    pub(super) open: bool,
    pub(super) slow: Option<Duration>,
    dies: Option<u32>,
}

impl<'a> Turn<'a> {
    pub(super) fn new(core: &'a Arc<Core>, conn: &'a mut Conn, head: &'a Head, route: &'static str) -> Self {
        Self { core, conn, head, stay: Stay::new(core, route), open: false, slow: None, dies: None }
    }

    /// Sends a whole answer and counts it.
    pub(super) async fn answer(&mut self, ending: Ending, tokens: Tokens, reply: Reply) -> Next {
        if self.open {
            self.open = false;
            let _ = self.conn.rest(self.head).await;
        }
        let close = reply.close;
        let bytes = reply.encode(self.head, self.core.unix());
        self.stay.end(ending, tokens);
        let sent = self.send(&bytes).await;
        if sent.is_ok() && close { Next::Close } else { self.after(sent) }
    }

    /// Sends bytes of the answer.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.stay.sending = true;
        let sent = self.conn.send(bytes).await;
        self.stay.sending = false;
        sent
    }

    /// What a send's end means for the count and the connection.
    pub(super) fn after(&mut self, sent: Result<(), Stop>) -> Next {
        match sent {
            Ok(()) => Next::Keep,
            Err(Stop::Client) => {
                self.stay.correct(Ending::ClientGone);
                Next::Close
            }
            Err(Stop::Fault) => {
                self.stay.correct(Ending::Broken);
                Next::Close
            }
        }
    }

    /// Refuses in the wire form that fits.
    pub(super) async fn refuse(&mut self, dialect: Dialect, stream: bool, fail: Fail) -> Next {
        let ending = match fail.status {
            503 => Ending::Busy,
            500..
                if fail.by != By::Cloud && !fail.text.starts_with("option ") && !fail.text.starts_with("invalid ") =>
            {
                Ending::Failed
            }
            _ => Ending::Refused,
        };
        let die = self.core.with(|s| s.faults.roll());
        self.answer(ending, Tokens::default(), fail_reply(dialect, stream, &fail, die)).await
    }

    /// The client went while the request waited or ran, with nothing sent.
    pub(super) fn gone(&mut self, cancel: Cancel) -> Next {
        match cancel {
            Cancel::Lost => {
                self.stay.end(Ending::Lost, Tokens::default());
                Next::Park
            }
            Cancel::Aborted => {
                self.stay.end(Ending::ClientGone, Tokens::default());
                Next::Close
            }
        }
    }

    /// Waits, unless the client goes.
    pub(super) async fn wait(&mut self, until: Instant) -> Result<(), Next> {
        if until <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.conn.gone() => {
                let cancel = self.core.in_window(&self.stay, Cancel::Aborted);
                Err(self.gone(cancel))
            }
            () = sleep_until(until) => Ok(()),
        }
    }

    /// Lets the harms of this request happen that end it or delay it.
    pub(super) async fn suffer(&mut self, harms: Vec<Harm>, dialect: Dialect, stream: bool) -> Option<Next> {
        let broken = |turn: &mut Self| {
            turn.stay.end(Ending::Broken, Tokens::default());
            Some(Next::Close)
        };
        for harm in harms {
            match harm {
                Harm::Hang => {
                    self.conn.gone().await;
                    return broken(self);
                }
                Harm::Reset => {
                    self.conn.reset();
                    return broken(self);
                }
                Harm::Close => return broken(self),
                Harm::Garbage => {
                    let _ = self.conn.push(b"\x16\x03\x01\0\xff garbage \0\r\n\r\n{\"]").await;
                    return broken(self);
                }
                Harm::Status(status, text) => {
                    return Some(self.refuse(dialect, stream, Fail::new(By::Handler, status, text)).await);
                }
                Harm::Busy => return Some(self.refuse(dialect, stream, busy()).await),
                Harm::Delay(time) => {
                    if let Err(next) = self.wait(Instant::now() + time).await {
                        return Some(next);
                    }
                }
                Harm::Slow(time) => self.slow = Some(time),
                Harm::Cut { at, reset } => self.conn.wire.cut = Some((at, reset)),
                Harm::HangAt(at) => self.conn.wire.hang = Some(at),
                Harm::RunnerDies(at) => self.dies = Some(at),
                Harm::Refuse | Harm::LoadFails(_) | Harm::LoadHangs | Harm::EmptyLists => {}
            }
        }
        None
    }
}

/// The answer to a full queue.
pub(super) fn busy() -> Fail {
    Fail::new(By::Handler, 503, "server busy, please try again.  maximum pending requests exceeded")
}

/// An error in the shape of its family and the form of its finder.
pub(super) fn fail_reply(dialect: Dialect, stream: bool, fail: &Fail, die: u64) -> Reply {
    let (status, text) = (fail.status, text::quoted(&fail.text));
    let family = if fail.by == By::Cloud { Family::Native } else { dialect.family() };
    let mut body = match family {
        Family::Native => format!("{{\"error\":{text}}}"),
        Family::OpenAi => {
            let kind = match status {
                400 => "invalid_request_error",
                404 => "not_found_error",
                _ => "api_error",
            };
            format!("{{\"error\":{{\"message\":{text},\"type\":\"{kind}\",\"param\":null,\"code\":null}}}}")
        }
        Family::Anthropic => {
            let kind = match status {
                400 => "invalid_request_error",
                401 => "authentication_error",
                403 => "permission_error",
                404 => "not_found_error",
                429 => "rate_limit_error",
                503 | 529 => "overloaded_error",
                _ => "api_error",
            };
            let id = format!("{die:016x}{:08x}", die.wrapping_mul(31) >> 32);
            format!(
                "{{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":{text}}},\"request_id\":\"req_{id}\"}}"
            )
        }
    };
    match (family, fail.by) {
        (Family::Native, By::Stream) if stream => {
            let mut reply = Reply::new(status, "application/json", body);
            reply.flushed = true;
            reply
        }
        (Family::Native, _) | (_, By::Front) => Reply::json(status, body),
        _ => {
            body.push('\n');
            let mut reply = Reply::new(status, "application/json", body);
            reply.headers.extend(stream_marks(dialect, stream));
            reply
        }
    }
}

/// Handles a request for generation or embedding.
pub(super) async fn infer(turn: &mut Turn<'_>, dialect: Dialect) -> Next {
    let Ok(mut body) = turn.conn.body(turn.head).await else { return turn.gone(Cancel::Aborted) };
    turn.stay.read_at = turn.core.now();
    turn.open = body.open;
    if dialect == Dialect::Audio {
        return super::audio::transcribe(turn, &body).await;
    }
    let zstd = dialect.family() != Family::Native && turn.head.header("content-encoding") == Some("zstd");
    if zstd {
        match codec::unzstd(&body.bytes) {
            Ok(plain) => body.bytes = plain,
            Err(text) => return turn.refuse(dialect, false, Fail::new(By::Cloud, 400, text)).await,
        }
    }
    match read(dialect, &body) {
        Ok(wanted) => serve(turn, wanted).await,
        Err(fail) => turn.refuse(dialect, false, fail).await,
    }
}

fn read(dialect: Dialect, body: &Body) -> Result<Wanted, Fail> {
    let value = ask::decode(dialect, &body.bytes, body.broken)?;
    match dialect.family() {
        Family::Native => ask::native(dialect, value),
        _ => ask_v1::read(dialect, value),
    }
}

/// Handles a request that was read.
pub(super) async fn serve(turn: &mut Turn<'_>, wanted: Wanted) -> Next {
    let (dialect, stream) = (wanted.dialect, wanted.stream);
    if !turn.core.with(|s| s.faults.none()) {
        let shown = super::names::resolve(&wanted.model).ok().map(|(name, _)| name.display());
        let harms = turn.core.harms(Moment::Asked, turn.stay.route, true, shown.as_deref());
        // A request that a fault ends is still one for its model.
        if let Some(name) = shown.filter(|_| !harms.is_empty()) {
            turn.stay.enter(&name);
        }
        if let Some(next) = turn.suffer(harms, dialect, stream).await {
            return next;
        }
    }
    let placed = match model::place(turn.core, &wanted) {
        Ok(placed) => placed,
        Err(model::Elsewhere::Fail(fail)) => return turn.refuse(dialect, stream, fail).await,
        Err(model::Elsewhere::Reply(ending, reply)) => return turn.answer(ending, Tokens::default(), reply).await,
    };
    if turn.core.with(|s| s.ledger.at_peak(&placed.model.name)) {
        // A client that has closed one connection before it used another is seen in that order.
        tokio::task::yield_now().await;
    }
    turn.stay.enter(&placed.model.name);
    if placed.unload {
        turn.core.schedule(|s, now| s.sched.unload(now, &placed.model.weights));
        let reply = model::short_reply(turn.core, &wanted, "unload");
        return turn.answer(Ending::Done, Tokens::default(), reply).await;
    }
    let fails = turn.core.with(|s| {
        let cold = s.sched.is_cold(&placed.model.weights);
        if cold { s.faults.meet(Moment::Load, turn.stay.route, true, Some(&placed.model.name)) } else { Vec::new() }
    });
    let mut ask = placed.ask(turn.core, &wanted);
    for harm in fails {
        match harm {
            Harm::LoadFails(text) => ask.load_fails = Some(text),
            _ => ask.load_time = Duration::from_secs(10 * 365 * 86_400),
        }
    }
    let grant = match turn.core.runner(turn.conn, &mut turn.stay, ask).await {
        Got::Runner(grant) => grant,
        Got::Busy => return turn.refuse(dialect, stream, busy()).await,
        Got::Gone(cancel) => return turn.gone(cancel),
        Got::Refused(refusal) => {
            let text = match refusal {
                Refusal::LoadFailed(text) => text,
                Refusal::RunnerGone => RUNNER_DIED.to_owned(),
            };
            return turn.refuse(dialect, stream, Fail::new(By::Handler, 500, text)).await;
        }
    };
    run(turn, &wanted, &placed, &grant).await
}

async fn run(turn: &mut Turn<'_>, wanted: &Wanted, placed: &Placed, grant: &Grant) -> Next {
    let (dialect, stream) = (wanted.dialect, wanted.stream);
    let load = turn.core.now().saturating_sub(turn.stay.read_at);
    if dialect.embeds() {
        return embed::embed(turn, wanted, placed, grant, load).await;
    }
    if wanted.empty {
        let reply = model::short_reply(turn.core, wanted, "load");
        return turn.answer(Ending::Done, Tokens::default(), reply).await;
    }
    if wanted.debug {
        let reply = model::debug_reply(turn.core, wanted);
        return turn.answer(Ending::Done, Tokens::default(), reply).await;
    }
    let mut job = match placed.job(turn.core, wanted, grant.context) {
        Ok(job) => job,
        Err(fail) => return turn.refuse(dialect, stream, fail).await,
    };
    if let Some(slow) = turn.slow {
        (job.pace, job.burst) = (slow, 1);
    }
    if stream { speak(turn, &job, grant, load).await } else { say_whole(turn, &job, grant, load).await }
}

fn tokens_of(job: &Job) -> Tokens {
    Tokens { prompt: u64::from(job.prompt), output: u64::from(job.plan.total) }
}

fn end_of(turn: &Turn<'_>, job: &Job, load: Duration) -> End {
    let total = turn.core.now().saturating_sub(turn.stay.read_at);
    let spent = total.saturating_sub(load);
    let prefill = job.prefill.min(spent).max(Duration::from_micros(u64::from(job.prompt)));
    let eval = spent.saturating_sub(job.prefill).max(Duration::from_micros(u64::from(job.plan.total)));
    let load = load.max(Duration::from_micros(1));
    End { total: total.max(load + prefill + eval), load, prefill, eval }
}

/// The answer as one object.
async fn say_whole(turn: &mut Turn<'_>, job: &Job, grant: &Grant, load: Duration) -> Next {
    let said = turn.dies.unwrap_or(job.plan.total).min(job.plan.total);
    let spoken = if said == 0 { Duration::ZERO } else { job.due(said - 1) };
    if let Err(next) = turn.wait(Instant::now() + job.prefill + spoken).await {
        return next;
    }
    if turn.dies.is_some() || !turn.core.with(|s| s.sched.lives(grant.runner)) {
        turn.core.schedule(|s, now| s.sched.kill(now, grant.runner));
        return turn.refuse(job.dialect, false, Fail::new(By::Handler, 500, RUNNER_DIED)).await;
    }
    let end = end_of(turn, job, load);
    let die = turn.core.with(|s| s.faults.roll());
    let (kind, body) = Voice::new(job, die, turn.core.unix()).whole(&end);
    // A transcription's head is out before its text: the type is wrong, the body chunked.
    let flushed = job.dialect == Dialect::Audio;
    turn.answer(Ending::Done, tokens_of(job), Reply { flushed, ..Reply::new(200, kind, body) }).await
}

/// The answer as a stream, token by token or in bursts, on one timer.
async fn speak(turn: &mut Turn<'_>, job: &Job, grant: &Grant, load: Duration) -> Next {
    let start = Instant::now() + job.prefill;
    if let Err(next) = turn.wait(start).await {
        return next;
    }
    if turn.dies == Some(0) {
        turn.core.schedule(|s, now| s.sched.kill(now, grant.runner));
        return turn.refuse(job.dialect, true, Fail::new(By::Stream, 500, RUNNER_DIED)).await;
    }
    if turn.open {
        turn.open = false;
        let _ = turn.conn.rest(turn.head).await;
    }
    let die = turn.core.with(|s| s.faults.roll());
    let mut voice = Voice::new(job, die, turn.core.unix());
    let mut out = Chunks::new(turn.head.modern);
    out.buf = http::stream_head(&mut voice.stream_headers(), turn.head, turn.core.unix());
    let mut begun = false;
    let mut at = 0;
    loop {
        let until = due(job, at, start);
        if until == at && at < job.plan.total {
            let timer = sleep_until(start + job.due(at));
            tokio::select! {
                biased;
                () = turn.conn.gone() => return if begun {
                    turn.gone(Cancel::Aborted)
                } else {
                    let cancel = turn.core.in_window(&turn.stay, Cancel::Aborted);
                    turn.gone(cancel)
                },
                () = timer => continue,
            }
        }
        voice.now = turn.core.unix();
        let until = turn.dies.map_or(until, |dies| dies.min(until));
        for place in at..until {
            voice.piece(job.plan.piece(place), &mut out);
        }
        at = until;
        let dead = turn.dies.is_some_and(|dies| at >= dies) || !turn.core.with(|s| s.sched.lives(grant.runner));
        if dead {
            voice.fail(RUNNER_DIED, &mut out);
            out.finish();
            turn.core.schedule(|s, now| s.sched.kill(now, grant.runner));
            turn.stay.end(Ending::Failed, Tokens::default());
        } else if at == job.plan.total {
            let end = end_of(turn, job, load);
            voice.close(&end, &mut out);
            out.finish();
            turn.stay.end(Ending::Done, tokens_of(job));
        }
        let sent = turn.send(&out.buf).await;
        begun = true;
        if sent.is_err() || dead || at == job.plan.total {
            return turn.after(sent);
        }
        out.buf.clear();
    }
}

/// How far a stream may have come by now.
pub(super) fn due(job: &Job, at: u32, start: Instant) -> u32 {
    if job.pace.is_zero() {
        return at.saturating_add(BURST.max(job.burst)).min(job.plan.total);
    }
    let now = Instant::now();
    let mut until = at;
    while until < job.plan.total && start + job.due(until) <= now {
        until += 1;
    }
    until
}
