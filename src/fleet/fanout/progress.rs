//! Pull and create: two nodes at a time, one merged stream, one verdict at the end.
//!
//! A task per node under way tells of its lines over a bounded channel; this one merges them and talks to the client.
//! The head goes out with the first line of any node, as Ollama's does, so that what every node refuses alike keeps its
//! status. A client that leaves cancels all of it, as it cancels a pull on one Ollama (what came stays for a next one).
//! Must never say `success` before every target has ended and the gate knows what they have.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::{Millis, millis};
use crate::dialect::ollama::error_object;
use crate::fleet::Target;
use crate::fleet::fanout::ask::{Asked, Verb};
use crate::fleet::fanout::exchange::{Exchange, Fail};
use crate::fleet::fanout::keeper::Aside;
use crate::fleet::fanout::merge::{Line, Merge};
use crate::fleet::fanout::outcome::{Outcome, words};
use crate::fleet::fanout::pending::{Entry, Operation};
use crate::fleet::fanout::tally::Ended;
use crate::fleet::fanout::targets::{Goal, Goals};
use crate::fleet::fanout::{By, Desk, LINES_MAX, Order, Reply, STAY_MS, Task, Waiting, blobs, line};
use crate::ids::{NodeId, RequestId};
use crate::sync::Arc;

/// Nodes that work on one order at once: a fleet that pulls together starves its own registry's line.
const AT_ONCE: usize = 2;
/// Events on their way from the nodes' tasks.
const EVENTS_MAX: usize = 16;
/// What a stream of lines is called.
const NDJSON: &str = "application/x-ndjson";

/// What a node's task tells.
#[derive(Debug)]
pub(super) enum Event {
    /// A line that is neither an error nor success.
    Line(usize, Line),
    /// How it ended.
    End(usize, Result<(), Fail>),
}

/// One order under way.
struct Run {
    desk: Rc<Desk>,
    by: By,
    asked: Asked,
    body: Bytes,
    goals: Goals,
    /// What was kept for its name.
    aside: Aside,
    merge: Merge,
    /// By node, once it has ended.
    results: Vec<Option<Result<(), Fail>>>,
    waiting: VecDeque<usize>,
    tasks: Vec<Task>,
    events: (flume::Sender<Event>, flume::Receiver<Event>),
    /// Failures that are not told yet: while no node makes headway, they may all be one and the same error.
    untold: Vec<String>,
    /// Once the head is out.
    lines: Option<flume::Sender<Bytes>>,
    started: Millis,
}

/// Runs a pull or a create to its end.
pub(super) async fn run(desk: &Rc<Desk>, order: Order, asked: Asked, goals: Goals) -> Ended {
    let explicit = order.nodes.is_some();
    let aside = desk.aside(&asked, explicit, &goals).await;
    let Order { by, body, client, .. } = order;
    let Waiting { reply, mut present } = client;
    let nodes = goals.up.len();
    let mut run = Run {
        desk: Rc::clone(desk),
        by,
        asked,
        body,
        goals,
        aside,
        merge: Merge::new(nodes),
        results: (0..nodes).map(|_| None).collect(),
        waiting: (0..nodes).collect(),
        tasks: Vec::new(),
        events: flume::bounded(EVENTS_MAX),
        untold: Vec::new(),
        lines: None,
        started: desk.clock.now(),
    };
    let mut reply = Some(reply);
    let worked = async {
        if !explicit {
            run.leave_out_who_lacks_blobs().await;
        }
        run.work(&mut reply).await;
    };
    let left = tokio::select! {
        biased;
        () = worked => false,
        () = present.closed() => true,
    };
    if !left {
        return run.verdict(&mut reply).await;
    }
    tracing::info!(model = run.asked.model, operation = run.asked.verb.word(), "the client left: cancelled");
    run.cancelled().await;
    Ended::ClientGone
}

impl Run {
    /// Starts nodes, merges what they say, until all have ended.
    async fn work(&mut self, reply: &mut Option<tokio::sync::oneshot::Sender<Reply>>) {
        while self.results.iter().any(Option::is_none) {
            self.start_more();
            self.tell_what_is_due().await;
            let wait = Duration::from_millis(self.merge.next_due().saturating_sub(self.desk.clock.now()));
            let event = tokio::select! {
                event = self.events.1.recv_async() => event,
                () = tokio::time::sleep(wait), if self.lines.is_some() && self.merge.next_due() != Millis::MAX => continue,
            };
            match event {
                Ok(Event::Line(node, line)) => {
                    let headway = matches!(line, Line::Progress { .. });
                    self.merge.line(node, line);
                    self.begin(reply).await;
                    if headway {
                        self.tell_failures();
                    }
                }
                Ok(Event::End(node, result)) => self.ended(node, result),
                // Both ends are held here: it does not close.
                Err(flume::RecvError::Disconnected) => return,
            }
        }
    }

    fn start_more(&mut self) {
        self.tasks.retain(|task| !task.0.is_finished());
        while self.under_way() < AT_ONCE {
            let Some(node) = self.waiting.pop_front() else { return };
            let target = Arc::clone(&self.goals.up[node].target);
            let (id, verb, body, events) = (self.by.request, self.asked.verb, self.body.clone(), self.events.0.clone());
            // Without a stream a node is silent until it is done, however long that takes.
            let (desk, at, streams) = (Rc::clone(&self.desk), self.goals.up[node].node, self.asked.stream);
            let idle = if streams { self.desk.config.now().timeouts.stream_idle } else { Duration::MAX };
            self.tasks.push(Task::spawn(async move {
                let lines = events.clone();
                let mut followed = Task::spawn(async move {
                    let followed = follow(&target, id, verb, &body, idle, Some((node, &lines)));
                    if streams { followed.await } else { desk.bounded(at, false, followed).await }
                });
                // A mistake of ours on one node must not be waited for without end.
                let result = (&mut followed.0).await.unwrap_or_else(|error| Err(Fail::Lost(error.to_string())));
                let _ = events.send_async(Event::End(node, result)).await;
            }));
        }
    }

    fn under_way(&self) -> usize {
        let open = self.results.iter().filter(|result| result.is_none()).count();
        open - self.waiting.len()
    }

    fn ended(&mut self, node: usize, result: Result<(), Fail>) {
        match &result {
            Ok(()) => {
                self.merge.done(node);
                self.tell_failures();
            }
            Err(fail) => {
                self.merge.failed(node);
                let name = &self.goals.up[node].name;
                tracing::warn!(node = %name, model = self.asked.model, error = fail.text(), "a node failed");
                self.untold.push(format!("failed on {name}: {}", fail.text()));
                if self.has_headway() {
                    self.tell_failures();
                }
            }
        }
        self.results[node] = Some(result);
    }

    /// The client has left: ends what is under way. Nodes that have it already have it all the same.
    async fn cancelled(mut self) {
        let begun = (0..self.goals.up.len()).filter(|node| !self.waiting.contains(node));
        let begun: Vec<NodeId> = begun.map(|node| self.goals.up[node].node).collect();
        // Whoever ends while its request is still being read counts too.
        let heard = async {
            while let Ok(event) = self.events.1.recv_async().await {
                if let Event::End(node, result) = event {
                    self.results[node] = Some(result);
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(STAY_MS), heard).await;
        self.tasks.clear();
        let nodes = self.goals.up.iter().zip(&self.results);
        let done: Vec<&str> = nodes.filter(|(_, r)| matches!(r, Some(Ok(())))).map(|(goal, _)| &*goal.name).collect();
        self.desk.keeper.put_back(self.aside, |entry| !done.contains(&&*entry.node)).await;
        self.desk.reports.changed(begun).await;
    }

    /// Some node has it, or a part of it.
    fn has_headway(&self) -> bool {
        self.merge.has_layers() || self.results.iter().any(|result| matches!(result, Some(Ok(()))))
    }

    fn tell_failures(&mut self) {
        for text in std::mem::take(&mut self.untold) {
            self.merge.note(&text);
        }
    }

    /// The first line of any node is there: the head goes out, and with it who is down.
    async fn begin(&mut self, reply: &mut Option<tokio::sync::oneshot::Sender<Reply>>) {
        if !self.asked.stream || self.lines.is_some() {
            return;
        }
        let Some(reply) = reply.take() else { return };
        let (sender, receiver) = flume::bounded(LINES_MAX);
        let _ = reply.send(Reply::lines(200, Some(NDJSON.into()), receiver));
        self.lines = Some(sender);
        self.tell_what_is_due().await;
        for goal in &self.goals.down {
            self.merge.note(&format!("{} is down", goal.name));
        }
        for goal in &self.goals.without {
            self.merge.note(&format!("{} does not have {}", goal.name, self.asked.from));
        }
    }

    async fn tell_what_is_due(&mut self) {
        let Some(lines) = &self.lines else { return };
        while let Some(line) = self.merge.take(self.desk.clock.now()) {
            // One that has left is noticed by its absence.
            let _ = lines.send_async(line).await;
        }
    }

    /// All have ended: what came of it, what is kept, the last line.
    async fn verdict(&mut self, reply: &mut Option<tokio::sync::oneshot::Sender<Reply>>) -> Ended {
        let (outcome, failures) = self.settle().await;
        tracing::info!(
            request_id = %self.by.request,
            model = self.asked.model,
            operation = self.asked.verb.word(),
            done = outcome.done.len(),
            failed = failures.len(),
            pending = outcome.pending.len(),
            ms = self.desk.clock.now() - self.started,
            "models administered"
        );
        let succeeded = !outcome.done.is_empty();
        let ended = match succeeded {
            true if outcome.is_full() => Ended::Done,
            true => Ended::Partial,
            false => Ended::of_status(refusal(&failures).status),
        };
        let said = failures.iter().any(|(_, fail)| matches!(fail, Fail::Said(_)));
        if self.asked.stream && (succeeded || said) {
            self.begin(reply).await;
        }
        if let Some(lines) = &self.lines {
            self.merge.flush();
            for name in &outcome.pending {
                self.merge.note(&format!("kept for the return of {name}"));
            }
            while let Some(line) = self.merge.take(self.desk.clock.now()) {
                let _ = lines.send_async(line).await;
            }
            let last = if succeeded { line(&outcome.success()) } else { error_line(&failures) };
            let _ = lines.send_async(last).await;
            return ended;
        }
        if let Some(reply) = reply.take() {
            let _ = reply.send(if succeeded { Reply::json(200, &outcome.success()) } else { refusal(&failures) });
        }
        ended
    }

    /// Keeps what nodes have missed, and waits until the gate knows what those have that did not.
    async fn settle(&mut self) -> (Outcome, Vec<(Arc<str>, Fail)>) {
        let mut outcome = Outcome::default();
        let mut failures = Vec::new();
        let mut missing: Vec<&Goal> = self.goals.down.iter().collect();
        for (goal, result) in self.goals.up.iter().zip(&mut self.results) {
            match result.take() {
                Some(Ok(())) => outcome.done.push((&*goal.name).into()),
                Some(Err(fail)) => {
                    if fail.is_lost() {
                        missing.push(goal);
                    }
                    failures.push((Arc::clone(&goal.name), fail));
                }
                None => {}
            }
        }
        let aside = std::mem::take(&mut self.aside);
        if outcome.done.is_empty() {
            self.desk.keeper.put_back(aside, |_| true).await;
        } else {
            keep(&self.desk, &self.asked, &missing, &aside, &mut outcome).await;
            outcome.missed.extend(self.goals.without.iter().map(|goal| Box::from(&*goal.name)));
        }
        for (name, fail) in &failures {
            if !outcome.pending.iter().any(|kept| **kept == **name) {
                outcome.failed.insert((&**name).into(), fail.text());
            }
        }
        let touched: Vec<NodeId> = self.goals.up.iter().map(|goal| goal.node).collect();
        self.desk.reports.changed(touched).await;
        (outcome, failures)
    }

    /// A create needs its blobs on its node: those that lack one are told apart before anything is begun.
    async fn leave_out_who_lacks_blobs(&mut self) {
        if self.asked.blobs.is_empty() || !self.asked.blobs.iter().all(|digest| super::ask::is_digest(digest)) {
            return;
        }
        let lacking = blobs::lacking(&self.goals.up, self.by.request, &self.asked.blobs).await;
        if lacking.iter().all(Option::is_some) {
            // Nobody has them: a node says it in its own words.
            return;
        }
        for (node, digest) in lacking.into_iter().enumerate() {
            let Some(digest) = digest else { continue };
            self.waiting.retain(|waiting| *waiting != node);
            self.ended(node, Err(Fail::Said(format!("it lacks the blob {digest}"))));
        }
    }
}

/// Keeps an operation for those who missed it, as far as it is a desired state.
pub(super) async fn keep(desk: &Desk, asked: &Asked, missing: &[&Goal], aside: &Aside, outcome: &mut Outcome) {
    let now = desk.clock.unix_ms();
    let mut kept = Vec::new();
    if let Some(operation) = Operation::of(asked.verb) {
        // What a node is not known to have cannot be told from what it gets meanwhile.
        let known = |goal: &&&Goal| operation == Operation::Pull || goal.digest.is_some();
        let entries = missing.iter().filter(known).map(|goal| {
            let entry = Entry::new(operation, asked, goal, now);
            // A model whose deletion was kept is remembered by that alone.
            let digest = entry.digest.or_else(|| aside.digest_on(&entry.node, &entry.model));
            Entry { digest, ..entry }
        });
        kept = desk.keeper.add(entries.collect()).await;
        if operation == Operation::Delete {
            let gone = missing.iter().filter(|goal| kept.iter().any(|name| **name == *goal.name));
            desk.reports.gone(gone.map(|goal| goal.node).collect(), &asked.key);
        }
    }
    for goal in missing {
        let list =
            if kept.iter().any(|name| **name == *goal.name) { &mut outcome.pending } else { &mut outcome.missed };
        list.push((&*goal.name).into());
    }
}

fn texts(failures: &[(Arc<str>, Fail)]) -> Vec<(Arc<str>, String)> {
    failures.iter().map(|(name, fail)| (Arc::clone(name), fail.text())).collect()
}

fn error_line(failures: &[(Arc<str>, Fail)]) -> Bytes {
    let mut out = error_object(&words(&texts(failures)));
    out.push(b'\n');
    out.into()
}

/// Nobody has it, and the head is not out: a node's own refusal where they agree, else their words.
pub(super) fn refusal(failures: &[(Arc<str>, Fail)]) -> Reply {
    let texts = texts(failures);
    let refused = failures.iter().find_map(|(_, fail)| match fail {
        Fail::Refused(refused) => Some(refused),
        _ => None,
    });
    let agree = texts.iter().all(|(_, text)| *text == texts[0].1);
    match refused {
        Some(refused) if agree => {
            let content_type = refused.content_type.as_deref().map(|value| value.to_owned().into());
            Reply::whole(refused.status, content_type, refused.body.clone())
        }
        Some(refused) => Reply::whole(refused.status, Some("application/json".into()), error_object(&words(&texts))),
        None if failures.iter().all(|(_, fail)| fail.is_lost()) => {
            Reply::refusal(&crate::dialect::texts::Refusal::of(503, words(&texts)))
        }
        None => Reply::whole(500, Some("application/json".into()), error_object(&words(&texts))),
    }
}

/// Asks one node and follows its stream to the end, telling every line that is neither error nor success.
///
/// # Errors
/// It refused, failed, or went away.
pub(super) async fn follow(
    target: &Target,
    id: RequestId,
    verb: Verb,
    body: &[u8],
    idle: Duration,
    tell: Option<(usize, &flume::Sender<Event>)>,
) -> Result<(), Fail> {
    let (method, path) = verb.route();
    let silent = || Fail::Lost(format!("silent for {} ms", millis(idle)));
    let asked = tokio::time::timeout(idle, Exchange::ask(target, id, method, path, body));
    let (mut exchange, head) = asked.await.unwrap_or_else(|_| Err(silent()))?;
    if head.status != 200 {
        return Err(exchange.refused(head).await);
    }
    let mut succeeded = false;
    loop {
        let line = match tokio::time::timeout(idle, exchange.line()).await {
            Ok(line) => line?,
            Err(_) => return Err(silent()),
        };
        match line.as_deref().map(Line::read) {
            None if succeeded => return Ok(()),
            None => return Err(Fail::Lost("its answer ended before it was done".to_owned())),
            Some(None) => return Err(Fail::Lost("its answer is not Ollama's".to_owned())),
            Some(Some(Line::Error(text))) => return Err(Fail::Said(text)),
            Some(Some(Line::Success)) => succeeded = true,
            Some(Some(line)) => {
                if let Some((node, events)) = tell {
                    let _ = events.send_async(Event::Line(node, line)).await;
                }
            }
        }
    }
}
