//! Administration of models over the fleet: pull, push, create, copy, delete, blobs. One order in, many nodes, one answer.
//!
//! A worker hands an [`Order`] over ([`Orders::place`]) and streams the [`Reply`] back; everything else runs on the
//! control thread, a task per order, connections apart from those of inference. What is pure stands in `ask` (bodies,
//! names), `targets` (which nodes), `merge` (progress), `outcome` (words) and `pending` (what nodes that are down missed).
//! Every queue here has a bound, and a client that takes nothing holds its own order up, as it would with one Ollama.
//! Must never be awaited by a request that names a model to run.

pub mod ask;
mod blobs;
mod catch_up;
pub mod exchange;
mod keeper;
pub mod merge;
pub mod outcome;
pub mod pending;
mod progress;
mod push;
mod short;
pub mod tally;
pub mod targets;

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::clock::{Clock, millis};
use crate::config::InForce;
use crate::dialect::texts::Refusal;
use crate::dialect::{Family, name};
use crate::fleet::Snapshot;
use crate::fleet::fanout::ask::{Asked, Read, Verb};
use crate::fleet::fanout::exchange::Fail;
use crate::fleet::fanout::keeper::{Aside, Keeper};
use crate::fleet::fanout::tally::{Ended, Kind, Tally};
use crate::fleet::fanout::targets::{Goal, Goals, NoGoal};
use crate::fleet::report::{Reports, Sought};
use crate::ids::{NodeId, RequestId};
use crate::sync::{Arc, spawn_local};

/// Orders under way at once, and waiting to be taken: administration is rare, what is beyond this is a mistake.
const ORDERS_MAX: usize = 64;
/// Lines of progress, or pieces of a relayed answer, on their way to a client.
const LINES_MAX: usize = 64;
/// Pieces of a blob on their way from a client.
pub const PIECES_MAX: usize = 4;
/// Between two looks at whether a node that says nothing is up.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A connection whose request a node has just read must not be closed: the node would lose it (I12).
const STAY_MS: u64 = 50;

/// What is ordered.
#[derive(Debug)]
pub enum Call {
    /// An operation on models by name; its body is [`Order::body`].
    Models(Verb),
    /// Whether every target has this blob.
    BlobHead(Box<str>),
    /// An upload.
    BlobPost {
        /// As in the path.
        digest: Box<str>,
        /// As announced; `None`: in chunks.
        length: Option<u64>,
        /// Told once some node wants the body; until then it stays with the client.
        wanted: oneshot::Sender<()>,
        /// The body, with [`Piece::End`] last if it came whole.
        pieces: flume::Receiver<Piece>,
    },
    /// What is kept for nodes that are down.
    Pending,
    /// Take one of them off the list.
    Cancel(u64),
}

impl Call {
    /// What it counts as; looking at what is kept, and changing it, are no operations on models.
    fn kind(&self) -> Option<Kind> {
        Some(match self {
            Self::Models(Verb::Pull) => Kind::Pull,
            Self::Models(Verb::Push) => Kind::Push,
            Self::Models(Verb::Create) => Kind::Create,
            Self::Models(Verb::Copy) => Kind::Copy,
            Self::Models(Verb::Delete) => Kind::Delete,
            Self::BlobHead(_) => Kind::BlobHead,
            Self::BlobPost { .. } => Kind::BlobPost,
            Self::Pending | Self::Cancel(_) => return None,
        })
    }
}

/// A piece of an upload.
#[derive(Debug)]
pub enum Piece {
    /// Bytes, never empty.
    Data(Bytes),
    /// That was all.
    End,
}

/// Who asked: what was done to a fleet's models must be found again under somebody's name.
#[derive(Clone, Debug)]
pub struct By {
    /// The router key's name.
    pub key: Box<str>,
    /// The request, as answers and access lines name it.
    pub request: RequestId,
}

/// One thing a client asks.
#[derive(Debug)]
pub struct Order {
    /// Who asks.
    pub by: By,
    /// What.
    pub call: Call,
    /// The value of `x-herdgate-nodes`.
    pub nodes: Option<Box<str>>,
    /// The body of an operation by name, as it came.
    pub body: Bytes,
    /// Where the answer goes.
    pub client: Waiting,
}

/// The client's end of an order: the answer's way, and the sign that it has left.
#[derive(Debug)]
pub struct Waiting {
    reply: oneshot::Sender<Reply>,
    /// Closed when the client leaves, also during the body.
    present: oneshot::Sender<()>,
}

/// What a worker holds of an order; dropping it says that the client has left.
#[derive(Debug)]
pub struct Placed {
    /// The answer.
    pub reply: oneshot::Receiver<Reply>,
    /// To be held until the answer's body has ended.
    pub present: oneshot::Receiver<()>,
}

/// Both ends of a client's wait.
#[must_use]
pub fn waiting() -> (Waiting, Placed) {
    let ((reply, replied), (present, stays)) = (oneshot::channel(), oneshot::channel());
    (Waiting { reply, present }, Placed { reply: replied, present: stays })
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    /// Status.
    pub status: u16,
    /// Type; `None` for no body.
    pub content_type: Option<Cow<'static, str>>,
    /// Seconds after which asking again may help.
    pub retry_after_s: Option<u32>,
    /// Body.
    pub body: Body,
}

/// An answer's body.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// In its own time; it ends when the sender is gone.
    Lines(flume::Receiver<Bytes>),
}

impl Reply {
    fn whole(status: u16, content_type: Option<Cow<'static, str>>, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, retry_after_s: None, body: Body::Whole(body.into()) }
    }

    fn empty(status: u16) -> Self {
        Self::whole(status, None, Bytes::new())
    }

    fn json(status: u16, value: &impl Serialize) -> Self {
        let mut body = line(value).to_vec();
        body.pop();
        Self::whole(status, Some("application/json".into()), body)
    }

    fn refusal(refusal: &Refusal) -> Self {
        let body = refusal.body(Family::Ollama);
        let retry_after_s = (refusal.status == 503).then_some(5);
        Self { retry_after_s, ..Self::whole(refusal.status, Some(body.content_type.into()), body.body) }
    }

    fn lines(status: u16, content_type: Option<Cow<'static, str>>, lines: flume::Receiver<Bytes>) -> Self {
        Self { status, content_type, retry_after_s: None, body: Body::Lines(lines) }
    }
}

impl Waiting {
    /// Answers; what its status says of the operation.
    fn answer(self, reply: Reply) -> Ended {
        let ended = Ended::of_status(reply.status);
        // A client that has left wants no answer.
        let _ = self.reply.send(reply);
        ended
    }
}

/// The workers' end.
#[derive(Clone, Debug)]
pub struct Orders {
    sender: flume::Sender<Order>,
    tally: Arc<Tally>,
}

/// The two ends of the orders' channel.
#[must_use]
pub fn channel() -> (Orders, flume::Receiver<Order>) {
    let (sender, receiver) = flume::bounded(ORDERS_MAX);
    (Orders { sender, tally: Arc::default() }, receiver)
}

impl Orders {
    /// Hands an order over; false: too many are under way, or the process ends.
    #[must_use]
    pub fn place(&self, order: Order) -> bool {
        self.sender.try_send(order).is_ok()
    }

    /// What came of them.
    #[must_use]
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}

/// What is said when too many orders are under way.
#[must_use]
pub fn too_many() -> Refusal {
    Refusal::of(503, "too many administrations of models at once")
}

/// What the orders' tasks share; lives on the control thread alone.
#[derive(Debug)]
pub struct Desk {
    config: InForce,
    snapshot: Arc<ArcSwap<Snapshot>>,
    clock: Clock,
    reports: Reports,
    keeper: Keeper,
    tally: Arc<Tally>,
    under_way: Cell<usize>,
}

impl Desk {
    /// Reads what an earlier process kept.
    #[must_use]
    pub fn new(
        config: &InForce,
        snapshot: &Arc<ArcSwap<Snapshot>>,
        clock: &Clock,
        reports: Reports,
        tally: &Arc<Tally>,
    ) -> Rc<Self> {
        Rc::new(Self {
            config: config.clone(),
            snapshot: Arc::clone(snapshot),
            clock: clock.clone(),
            reports,
            keeper: Keeper::load(config.now().data.join("pending.json"), Arc::clone(tally)),
            tally: Arc::clone(tally),
            under_way: Cell::new(0),
        })
    }

    /// Takes orders until nobody can place one any more, and catches nodes up that come back.
    pub async fn run(self: Rc<Self>, orders: flume::Receiver<Order>) {
        let _catching_up = Task::spawn(catch_up::run(Rc::clone(&self)));
        while let Ok(order) = orders.recv_async().await {
            if self.under_way.get() >= ORDERS_MAX {
                order.client.answer(Reply::refusal(&too_many()));
                continue;
            }
            self.under_way.set(self.under_way.get() + 1);
            let desk = Rc::clone(&self);
            spawn_local(async move {
                let _done = Done(&desk.under_way);
                desk.counted(order).await;
            });
        }
    }

    /// Carries an order out and counts what came of it.
    async fn counted(self: &Rc<Self>, order: Order) {
        let Some(kind) = order.call.kind() else {
            self.take(order).await;
            return;
        };
        let (under_way, by) = (self.tally.begin(kind), order.by.clone());
        let ended = self.take(order).await;
        under_way.ended(ended);
        if kind != Kind::BlobHead {
            let (operation, result) = (kind.label(), ended.label());
            tracing::info!(operation, result, key = %by.key, request_id = %by.request, "administration");
        }
    }

    async fn take(self: &Rc<Self>, order: Order) -> Ended {
        let verb = match order.call {
            Call::Models(verb) => verb,
            Call::BlobHead(_) => return blobs::head(self, order).await,
            Call::BlobPost { .. } => return blobs::post(self, order).await,
            Call::Pending => return order.client.answer(Reply::json(200, &self.keeper.listed())),
            Call::Cancel(id) => return order.client.answer(self.cancel(id).await),
        };
        let asked = match ask::read(verb, &order.body) {
            Read::Asked(asked) => asked,
            Read::Refused(refusal) => return order.client.answer(Reply::refusal(&refusal)),
            Read::Unreadable => {
                return match targets::any(&self.snapshot.load_full(), order.nodes.as_deref()) {
                    Ok(goals) => self.unreadable(order, verb, &goals.up[0]).await,
                    Err(none) => order.client.answer(Reply::refusal(&none.refusal(None))),
                };
            }
        };
        if matches!(verb, Verb::Copy | Verb::Delete) {
            return short::run(self, order, &asked).await;
        }
        let goals = match self.goals(&asked, order.nodes.as_deref()).await {
            Ok(goals) => goals,
            Err(none) => return order.client.answer(Reply::refusal(&none.refusal(Some(&asked)))),
        };
        match verb {
            Verb::Push => push::relay(self, order, (verb, asked.stream), &goals.up[0]).await,
            _ => progress::run(self, order, asked, goals).await,
        }
    }

    /// The nodes of an operation; a model that no inventory has is looked for once more.
    async fn goals(&self, asked: &Asked, header: Option<&str>) -> Result<Goals, NoGoal> {
        let choose = || targets::choose(&self.snapshot.load_full(), &self.config.now(), asked, header);
        let chosen = choose();
        if !matches!(chosen, Err(NoGoal::NoModel | NoGoal::Unsure)) {
            return chosen;
        }
        let sought = self.reports.miss(&asked.key).await;
        match choose() {
            Err(NoGoal::NoModel) if sought == Sought::Unsure => Err(NoGoal::Unsure),
            chosen => chosen,
        }
    }

    async fn cancel(&self, id: u64) -> Reply {
        match self.keeper.cancel(id).await {
            Some(entry) => Reply::json(200, &serde_json::json!({ "cancelled": entry })),
            None => Reply::refusal(&Refusal::of(404, format!("there is no pending operation {id}"))),
        }
    }

    /// A body that only a node can word an error for. One that finds it good after all has done it alone, which must
    /// not stay unseen.
    async fn unreadable(self: &Rc<Self>, order: Order, verb: Verb, goal: &Goal) -> Ended {
        let id = order.by.request;
        let ended = push::relay(self, order, (verb, true), goal).await;
        if ended == Ended::Done {
            tracing::warn!(node = %goal.name, operation = verb.word(), request_id = %id, "done on one node alone: the gate cannot read its body");
            self.reports.changed(vec![goal.node]).await;
        }
        ended
    }

    /// What a node may be silent about for as long as it takes ends only once it has been down for as long as a stream
    /// may be silent; a stream that does not begin ends after that time too.
    async fn bounded<T>(
        &self,
        node: NodeId,
        streams: bool,
        exchange: impl Future<Output = Result<T, Fail>>,
    ) -> Result<T, Fail> {
        let idle = self.config.now().timeouts.stream_idle;
        let over = async {
            if streams {
                tokio::time::sleep(idle).await;
                return Fail::Lost(format!("silent for {} ms", millis(idle)));
            }
            let mut seen = self.clock.now();
            while self.clock.now().saturating_sub(seen) < millis(idle) {
                tokio::time::sleep(LOOK_EVERY).await;
                if self.snapshot.load().node(node).is_some_and(|node| node.up) {
                    seen = self.clock.now();
                }
            }
            Fail::Lost(format!("down for {} ms", millis(idle)))
        };
        tokio::select! {
            biased;
            result = exchange => result,
            fail = over => Err(fail),
        }
    }

    /// Before an operation begins: what an older one has left for its name must not meet what it makes. That is taken
    /// off the list of every node, but where only some are meant (a pull, nodes by header) of these alone.
    async fn aside(&self, asked: &Asked, explicit: bool, goals: &Goals) -> Aside {
        let some = explicit || asked.verb == Verb::Pull;
        let meant = |node: &str| goals.up.iter().chain(&goals.down).any(|goal| *goal.name == *node);
        let aside = self.keeper.aside(&Self::changed_key(asked), |node| !some || meant(node)).await;
        if !aside.ended.is_empty() {
            let snapshot = self.snapshot.load_full();
            let ended = snapshot.configured().filter(|node| aside.ended.iter().any(|name| **name == *node.name));
            self.reports.changed(ended.map(|node| node.id).collect()).await;
        }
        aside
    }

    /// The name that an operation changes, as a routing key.
    fn changed_key(asked: &Asked) -> Box<str> {
        if asked.verb == Verb::Copy { name::key(&asked.destination) } else { asked.key.clone() }
    }
}

/// Counts an order as done when it is dropped.
struct Done<'d>(&'d Cell<usize>);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A task that ends with its handle.
#[derive(Debug)]
struct Task<T = ()>(JoinHandle<T>);

impl<T: 'static> Task<T> {
    fn spawn(future: impl Future<Output = T> + 'static) -> Self {
        Self(spawn_local(future))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One line of NDJSON.
fn line(value: &impl Serialize) -> Bytes {
    // Of strings and numbers: it cannot fail.
    let mut out = serde_json::to_vec(value).unwrap_or_default();
    out.push(b'\n');
    out.into()
}

#[cfg(test)]
mod tests;
