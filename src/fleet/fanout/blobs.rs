//! Blobs: who has one, and an upload to every node that lacks it, piece by piece at the pace of the slowest.
//!
//! An upload is never held: a few pieces are under way to each node, and the client is read no faster than they leave. A
//! node that fails, or takes nothing for a while, is dropped from the set and named. Must never answer 2xx when no node
//! has the blob.

use std::rc::Rc;
use std::time::Duration;

use crate::dialect::texts::Refusal;
use crate::fleet::fanout::ask::{bad_digest, is_digest};
use crate::fleet::fanout::exchange::{Exchange, Fail, Framing};
use crate::fleet::fanout::outcome::Outcome;
use crate::fleet::fanout::tally::Ended;
use crate::fleet::fanout::targets::{self, Goal};
use crate::fleet::fanout::{Call, Desk, Order, PIECES_MAX, Piece, Reply, Task, Waiting, progress};
use crate::ids::RequestId;
use crate::sync::{Arc, spawn_local};

/// Time to ask whether a blob is there.
const HEAD_WAIT: Duration = Duration::from_secs(10);
/// Blobs asked for at once on a node, and time to ask for all that a create needs.
const HEADS_AT_ONCE: usize = 8;
const HEADS_WAIT: Duration = Duration::from_secs(30);
/// A node takes no byte for so long: it is dropped.
const TAKE_WAIT: Duration = Duration::from_secs(60);
/// After the last byte a node has the digest to compare and a file to close.
const ANSWER_WAIT: Duration = Duration::from_secs(600);

/// `HEAD /api/blobs/:digest`: 200 if every target that is up has it.
pub(super) async fn head(desk: &Rc<Desk>, order: Order) -> Ended {
    let Call::BlobHead(digest) = &order.call else { return Ended::Failed };
    if !is_digest(digest) {
        return order.client.answer(Reply::refusal(&bad_digest()));
    }
    let goals = match targets::all(&desk.snapshot.load_full(), order.nodes.as_deref()) {
        Ok(goals) => goals,
        Err(none) => return order.client.answer(Reply::refusal(&none.refusal(None))),
    };
    let has = have(&goals.up, order.by.request, digest).await;
    let reply = if has.iter().all(|has| *has == Some(true)) {
        Reply::empty(200)
    } else {
        let digest = digest.replacen("sha256-", "sha256:", 1);
        Reply::refusal(&Refusal::of(404, format!("blob {digest:?} not found")))
    };
    order.client.answer(reply)
}

/// By node: whether it has the blob; `None`: it could not be asked.
pub(super) async fn have(goals: &[Goal], id: RequestId, digest: &str) -> Vec<Option<bool>> {
    let asked: Vec<_> = goals
        .iter()
        .map(|goal| {
            let (target, path) = (Arc::clone(&goal.target), path(digest));
            spawn_local(async move {
                let asked = Exchange::ask(&target, id, "HEAD", &path, b"");
                let (_, head) = tokio::time::timeout(HEAD_WAIT, asked).await.ok()?.ok()?;
                Some(head.status == 200)
            })
        })
        .collect();
    let mut has = Vec::with_capacity(asked.len());
    for asked in asked {
        has.push(asked.await.unwrap_or(None));
    }
    has
}

/// By node: the first of these blobs that it is known to lack. A node that does not answer is not asked on.
pub(super) async fn lacking(goals: &[Goal], id: RequestId, digests: &[String]) -> Vec<Option<String>> {
    let mut distinct: Vec<String> = Vec::new();
    for digest in digests {
        if !distinct.contains(digest) {
            distinct.push(digest.clone());
        }
    }
    let node = |goal: &Goal| {
        let (goal, digests) = ([goal.clone()], distinct.clone());
        Task::spawn(async move {
            for some in digests.chunks(HEADS_AT_ONCE) {
                let asked: Vec<_> = some
                    .iter()
                    .map(|digest| {
                        let (goal, digest) = (goal.clone(), digest.clone());
                        Task::spawn(async move { have(&goal, id, &digest).await.pop().flatten() })
                    })
                    .collect();
                for (mut asked, digest) in asked.into_iter().zip(some) {
                    match (&mut asked.0).await.unwrap_or(None) {
                        Some(true) => {}
                        Some(false) => return Some(digest.clone()),
                        None => return None,
                    }
                }
            }
            None
        })
    };
    let mut asked: Vec<_> = goals.iter().map(node).collect();
    let mut lacking = vec![None; goals.len()];
    let all = async {
        for (lacks, asked) in lacking.iter_mut().zip(&mut asked) {
            *lacks = (&mut asked.0).await.unwrap_or(None);
        }
    };
    // Whoever is not through by then finds out for itself.
    let _ = tokio::time::timeout(HEADS_WAIT, all).await;
    lacking
}

fn path(digest: &str) -> String {
    format!("/api/blobs/{digest}")
}

/// `POST /api/blobs/:digest`: to every target that lacks it.
pub(super) async fn post(desk: &Rc<Desk>, order: Order) -> Ended {
    let Order { by, call, nodes, client, .. } = order;
    let id = by.request;
    let Call::BlobPost { digest, length, wanted, pieces } = call else { return Ended::Failed };
    if !is_digest(&digest) {
        return client.answer(Reply::refusal(&bad_digest()));
    }
    let goals = match targets::all(&desk.snapshot.load_full(), nodes.as_deref()) {
        Ok(goals) => goals,
        Err(none) => return client.answer(Reply::refusal(&none.refusal(None))),
    };
    let Waiting { reply, mut present } = client;
    let uploaded = async {
        let has = have(&goals.up, id, &digest).await;
        let (had, lacks): (Vec<_>, Vec<_>) = goals.up.iter().zip(has).partition(|(_, has)| *has == Some(true));
        let lacks: Vec<&Goal> = lacks.into_iter().map(|(goal, _)| goal).collect();
        if !lacks.is_empty() {
            let _ = wanted.send(());
        }
        let results = upload(&lacks, id, &digest, length, &pieces).await?;
        let mut outcome =
            Outcome { done: had.iter().map(|(goal, _)| (&*goal.name).into()).collect(), ..Outcome::default() };
        outcome.missed = goals.down.iter().map(|goal| (&*goal.name).into()).collect();
        Some(verdict(outcome, &lacks, results))
    };
    tokio::select! {
        biased;
        answer = uploaded => match answer {
            Some((answer, ended)) => {
                let _ = reply.send(answer);
                ended
            }
            None => Ended::ClientGone,
        },
        // Whatever is under way to a node ends with its pieces.
        () = present.closed() => Ended::ClientGone,
    }
}

fn verdict(mut outcome: Outcome, lacks: &[&Goal], results: Vec<Result<u16, Fail>>) -> (Reply, Ended) {
    let mut status = 200;
    let mut failures = Vec::new();
    for (goal, result) in lacks.iter().zip(results) {
        match result {
            Ok(answer) => {
                status = status.max(answer);
                outcome.done.push((&*goal.name).into());
            }
            Err(fail) => {
                tracing::warn!(node = %goal.name, error = fail.text(), "a node did not take a blob");
                outcome.failed.insert((&*goal.name).into(), fail.text());
                failures.push((Arc::clone(&goal.name), fail));
            }
        }
    }
    if outcome.done.is_empty() {
        let reply = progress::refusal(&failures);
        let ended = Ended::of_status(reply.status);
        return (reply, ended);
    }
    if outcome.is_full() {
        (Reply::empty(status), Ended::Done)
    } else {
        (Reply::json(status, &outcome.success()), Ended::Partial)
    }
}

/// Sends the pieces to all of them; by node, the status or what failed. `None`: the client did not send it all.
async fn upload(
    goals: &[&Goal],
    id: RequestId,
    digest: &str,
    length: Option<u64>,
    pieces: &flume::Receiver<Piece>,
) -> Option<Vec<Result<u16, Fail>>> {
    let framing = length.map_or(Framing::Chunked, Framing::Length);
    let (mut ways, mut under_way) = (Vec::new(), Vec::new());
    for goal in goals {
        let (way, arriving) = flume::bounded(PIECES_MAX);
        let (target, path) = (Arc::clone(&goal.target), path(digest));
        ways.push(way);
        under_way.push(spawn_local(async move {
            let mut exchange = Exchange::begin(&target, id, "POST", &path, framing).await?;
            pass(&mut exchange, arriving).await
        }));
    }
    while !ways.is_empty() {
        match pieces.recv_async().await.ok()? {
            Piece::Data(data) => {
                let mut open = Vec::with_capacity(ways.len());
                for way in ways {
                    // One that has ended, well or not, takes no more.
                    if way.send_async(Piece::Data(data.clone())).await.is_ok() {
                        open.push(way);
                    }
                }
                ways = open;
            }
            Piece::End => {
                for way in std::mem::take(&mut ways) {
                    let _ = way.send_async(Piece::End).await;
                }
            }
        }
    }
    let mut results = Vec::with_capacity(under_way.len());
    for task in under_way {
        results.push(task.await.unwrap_or_else(|error| Err(Fail::Lost(error.to_string()))));
    }
    Some(results)
}

/// One node's part: its pieces, then its answer. It may answer before they end.
pub(super) async fn pass(exchange: &mut Exchange, pieces: flume::Receiver<Piece>) -> Result<u16, Fail> {
    loop {
        match pieces.recv_async().await {
            Ok(Piece::Data(data)) => {
                if exchange.send(&data, TAKE_WAIT).await? {
                    break;
                }
            }
            Ok(Piece::End) => {
                exchange.finish(TAKE_WAIT).await?;
                break;
            }
            Err(flume::RecvError::Disconnected) => return Err(Fail::Lost("the client left".to_owned())),
        }
    }
    drop(pieces);
    let head = match tokio::time::timeout(ANSWER_WAIT, exchange.head()).await {
        Ok(head) => head?,
        Err(_) => return Err(Fail::Lost(format!("no answer for {} s", ANSWER_WAIT.as_secs()))),
    };
    if matches!(head.status, 200 | 201) { Ok(head.status) } else { Err(exchange.refused(head).await) }
}
