//! One node's answer passed on as it comes: a push, and bodies that only a node can word an error for.
//!
//! Must never act on a second node: what is asked here is done once.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::dialect::ollama::error_object;
use crate::fleet::fanout::ask::Verb;
use crate::fleet::fanout::exchange::{Exchange, Fail, Head};
use crate::fleet::fanout::merge::Line;
use crate::fleet::fanout::tally::Ended;
use crate::fleet::fanout::targets::Goal;
use crate::fleet::fanout::{Body, Desk, LINES_MAX, Order, Reply, STAY_MS, Waiting, progress};
use crate::sync::Arc;

/// Passes one node's answer on; the client's leaving ends it there too.
pub(super) async fn relay(desk: &Rc<Desk>, order: Order, (verb, streams): (Verb, bool), goal: &Goal) -> Ended {
    let Waiting { reply, mut present } = order.client;
    let mut reply = Some(reply);
    let mut answer = |answer: Reply| {
        let ended = Ended::of_status(answer.status);
        if let Some(reply) = reply.take() {
            let _ = reply.send(answer);
        }
        ended
    };
    let (method, path) = verb.route();
    let idle = desk.config.now().timeouts.stream_idle;
    let relayed = async {
        let asked = Exchange::ask(&goal.target, order.by.request, method, path, &order.body);
        match desk.bounded(goal.node, streams, asked).await {
            Ok((exchange, head)) => pass(exchange, head, idle, &mut answer).await,
            Err(fail) => answer(progress::refusal(&[(Arc::clone(&goal.name), fail)])),
        }
    };
    tokio::select! {
        biased;
        ended = relayed => {
            tracing::info!(node = %goal.name, operation = verb.word(), "passed on to one node");
            ended
        }
        () = async { present.closed().await; tokio::time::sleep(Duration::from_millis(STAY_MS)).await } => Ended::ClientGone,
    }
}

async fn pass(mut exchange: Exchange, head: Head, idle: Duration, answer: &mut impl FnMut(Reply) -> Ended) -> Ended {
    let content_type: Option<Cow<'static, str>> = head.content_type.as_deref().map(|value| value.to_owned().into());
    let streams = content_type.as_deref().is_some_and(|value| value.contains("ndjson"));
    if !streams {
        let late = || Err(Fail::Lost("the node fell silent".to_owned()));
        return match tokio::time::timeout(idle, exchange.whole()).await.unwrap_or_else(|_| late()) {
            Ok(body) => {
                answer(Reply { body: Body::Whole(body), ..Reply::whole(head.status, content_type, Bytes::new()) })
            }
            Err(fail) => answer(Reply::refusal(&crate::dialect::texts::Refusal::of(503, fail.text()))),
        };
    }
    let (sender, receiver) = flume::bounded(LINES_MAX);
    let mut ended = answer(Reply::lines(head.status, content_type, receiver));
    loop {
        let line = match tokio::time::timeout(idle, exchange.line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return ended,
            Ok(Err(fail)) => {
                let _ = sender.send_async(broken(&fail)).await;
                return Ended::Failed;
            }
            Err(_) => {
                let _ = sender.send_async(broken(&Fail::Lost("the node fell silent".to_owned()))).await;
                return Ended::Failed;
            }
        };
        if matches!(Line::read(&line), Some(Line::Error(_))) {
            ended = Ended::Failed;
        }
        let mut line = Vec::from(line);
        line.push(b'\n');
        if sender.send_async(line.into()).await.is_err() {
            return Ended::ClientGone;
        }
    }
}

fn broken(fail: &Fail) -> Bytes {
    let mut out = error_object(&fail.text());
    out.push(b'\n');
    out.into()
}
