//! A simulated node's pulls and pushes: the lines of Ollama's, at a pace, and what a client that leaves leaves behind.
//!
//! Called by `serve.rs`. What a pull finds is the spec's `registry`; nothing is really moved.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::codec::digest;
use super::conn::Body;
use super::gojson::Value;
use super::http::{self, Length, Reply};
use super::infer::{Next, Turn};
use super::ledger::{Ending, Tokens};
use super::lists::error;
use super::names::{self, Name, NameError};
use super::requests::Request;
use super::sched::Cancel;
use super::spec::ModelSpec;
use super::store::{named, outcome, progress, read, status, streams};

/// Between two lines of a layer, as Ollama sends them.
const PACE: Duration = Duration::from_millis(60);

/// POST `/api/pull`.
pub(super) async fn pull(turn: &mut Turn<'_>, mut headers: Vec<(&'static str, String)>) -> Next {
    let core = turn.core;
    let body = match turn.head.length {
        Length::Sized(0) => Body::default(),
        _ => match turn.conn.body(turn.head).await {
            Ok(body) => body,
            Err(_) => return turn.gone(Cancel::Aborted),
        },
    };
    turn.open = body.open;
    let (stream, name) = match wanted(&body) {
        Ok(wanted) => wanted,
        Err(mut reply) => {
            reply.headers.append(&mut headers);
            return turn.answer(Ending::Refused, Tokens::default(), reply).await;
        }
    };
    let installed = core.with(|s| s.find(&name).cloned()).as_deref().cloned();
    let is_it = |m: &&ModelSpec| Name::parse(&m.name).is_ok_and(|n| n.key() == name.key());
    let offered = core.spec.registry.iter().find(is_it).cloned();
    let time = core.spec.real(core.spec.pull_time);
    let mut lines = vec![status("pulling manifest")];
    let (reply, model) = match (installed, offered) {
        // The registry's copy is another one by now.
        (Some(model), offered) if offered.as_ref().is_none_or(|offered| offered.digest == model.digest) => {
            lines.push(progress(&model.weights, model.size, model.size));
            lines.push(progress(&digest(&format!("template {}", model.digest)), 210, 210));
            (end(stream, lines), None)
        }
        (_, None) => (outcome(stream, lines, Some("pull model manifest: file does not exist")), None),
        (_, Some(model)) if time.is_zero() => {
            for tenth in [4, 6, 7, 8, 9] {
                lines.push(progress(&model.weights, model.size, model.size / 10 * tenth));
            }
            (end(stream, lines), Some(model))
        }
        (_, Some(model)) => return paced(turn, headers, &model, stream, time).await,
    };
    let ending = if reply.status < 400 { Ending::Done } else { Ending::Refused };
    if let Some(model) = model {
        core.add_model(model);
    }
    turn.answer(ending, Tokens::default(), reply).await
}

fn wanted(body: &Body) -> Result<(bool, Name), Reply> {
    let value: Value = read(body, Request::Pull)?;
    match names::resolve(named(&value)) {
        Ok((name, _)) => Ok((streams(&value), name)),
        Err(NameError::Conflict(text)) => Err(error(400, &text)),
        Err(_) => Err(error(400, "invalid model name")),
    }
}

fn end(stream: bool, mut lines: Vec<String>) -> Reply {
    lines.extend(CLOSING.map(status));
    outcome(stream, lines, None)
}

const CLOSING: [&str; 3] = ["verifying sha256 digest", "writing manifest", "success"];

/// A download that takes its time. What a client that leaves has paid for is there for the next.
async fn paced(
    turn: &mut Turn<'_>,
    mut headers: Vec<(&'static str, String)>,
    model: &ModelSpec,
    stream: bool,
    time: Duration,
) -> Next {
    let core = turn.core;
    let start = Instant::now();
    let had = core.with(|s| s.partial.get(&model.weights).copied().unwrap_or(0));
    let steps = u32::try_from(time.as_millis() / PACE.as_millis()).unwrap_or(u32::MAX).max(4);
    let framed = turn.head.modern;
    let mut out = Vec::new();
    if stream {
        headers.push(("Content-Type", "application/x-ndjson".to_owned()));
        out = http::stream_head(&mut headers, turn.head, core.unix());
        http::chunk(&mut out, (status("pulling manifest") + "\n").as_bytes(), framed);
    }
    let mut there = had;
    for step in 1..=steps {
        if let Err(stop) = turn.conn.send(&out).await {
            return turn.after(Err(stop));
        }
        out.clear();
        tokio::select! {
            biased;
            () = turn.conn.gone() => {
                core.with(|s| s.partial.insert(model.weights.clone(), there));
                return turn.gone(Cancel::Aborted);
            }
            () = sleep_until(start + time * step / steps) => {}
        }
        there = had + (model.size - had) / u64::from(steps) * u64::from(step);
        if stream {
            http::chunk(&mut out, (progress(&model.weights, model.size, there) + "\n").as_bytes(), framed);
        }
    }
    core.with(|s| s.partial.remove(&model.weights));
    core.add_model(model.clone());
    if !stream {
        return turn.answer(Ending::Done, Tokens::default(), outcome(false, Vec::new(), None)).await;
    }
    for line in CLOSING {
        http::chunk(&mut out, (status(line) + "\n").as_bytes(), framed);
    }
    if framed {
        out.extend_from_slice(b"0\r\n\r\n");
    }
    turn.stay.end(Ending::Done, Tokens::default());
    let sent = turn.conn.send(&out).await;
    turn.after(sent)
}

/// POST `/api/push`: to a registry that takes what a node with an account sends.
pub(super) fn push(core: &super::host::Core, body: &Body) -> Reply {
    let value = match read(body, Request::Push) {
        Ok(value) => value,
        Err(reply) => return reply,
    };
    let name = match Name::parse(named(&value)) {
        Ok(name) => name,
        Err(NameError::Empty) => return error(400, "model is required"),
        Err(_) => return error(400, "invalid model name"),
    };
    let mut lines = vec![status("retrieving manifest")];
    let Some(model) = core.with(|s| s.find(&name).cloned()) else {
        lines.push(status("couldn't retrieve manifest"));
        let text = format!("open {}/manifests/{}: no such file or directory", core.spec.models_dir, name.path());
        return outcome(streams(&value), lines, Some(&text));
    };
    if !core.spec.signed_in {
        let text = "you must be signed in to push, please run `ollama signin`";
        return outcome(streams(&value), lines, Some(text));
    }
    for half in [1, 2] {
        lines.push(progress(&model.weights, model.size, model.size / 2 * half).replacen("pulling", "pushing", 1));
    }
    lines.extend(["pushing manifest", "success"].map(status));
    outcome(streams(&value), lines, None)
}
