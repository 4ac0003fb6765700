//! Events as the ledger's benches record them: of 50 models on 20 nodes, spread as if at random, the same in every run.

use herdgate::ids::{KeyId, ModelId, NodeId, UnixMinute};
use herdgate::usage::{Count, Ending, Outcome, Tokens};

/// Nodes and models that events are spread over.
pub(crate) const NODES: u32 = 20;
pub(crate) const MODELS: u32 = 50;

/// Node and model of the `n`-th event, both from zero.
pub(crate) fn place(n: u32) -> (u32, u32) {
    let spread = n.wrapping_mul(0x9E37_79B9);
    ((spread >> 8) % NODES, (spread >> 16) % MODELS)
}

/// The `n`-th event, in this minute.
pub(crate) fn outcome(minute: UnixMinute, n: u32) -> Outcome {
    let (node, model) = place(n);
    Outcome {
        minute,
        node: NodeId(node),
        model: ModelId(2 + model),
        key: KeyId::NONE,
        ending: Ending::Completed,
        status: 200,
        count: Count::Exact(Tokens { input: 100, cached: 0, output: 200 }),
        load_ns: 0,
        prompt_eval_ns: 1_000_000,
        eval_ns: 2_000_000,
        queue_us: 0,
        first_byte_us: 20_000,
        total_us: 900_000,
    }
}
