//! Simulated nodes: Ollama servers (and llama.cpp ones) without models, on which demo, tests and perf stand.
//!
//! A [`Node`] listens on loopback and answers as a real node does, byte for byte where that is known: the routes and
//! errors, the scheduler with its loads, evictions and slots, the sockets it loses. It counts what it did
//! ([`NodeLedger`]) and goes wrong on command ([`Fault`]). It shares no code with the proxy's own reading and writing
//! of HTTP and JSON, so that each can contradict the other.
//!
//! # What a request can ask of the simulation
//!
//! The answer's tokens are filler words. Their number is `num_predict`, `max_tokens` or `max_output_tokens` exactly,
//! or the spec's default. A top-level object `sim` in any inference body, which real servers ignore, sets more:
//! `{"sim":{"tokens":64,"prompt":100,"first_ms":5,"pace_ms":2.5,"burst":16}}` gives 64 tokens for a prompt of 100,
//! the first after 5 ms, 16 of them every 40 ms. Without any pace a stream leaves in writes of up to 64 chunks.
//!
//! # What is not played
//!
//! - The prompt cache: every prompt takes its full time. Truncation keeps a prompt's count at the context's size.
//! - MLX runners, adapters, GPU discovery, the stall of everything while a runner is unloaded, stepping down of contexts
//!   after an out-of-memory load, the stall time-out of a load.
//! - A busy runner that is to make room stays marked, also when a request brings a new keep-alive.
//! - The cloud: names with a cloud suffix are refused as by a node that is offline, or that has the cloud switched off.
//! - Pulls and pushes move nothing; a created model has the abilities of the one it came from.
//! - Log probabilities, vectors and token ids mean nothing, but are the same for the same input.

mod ask;
mod ask_v1;
mod audio;
mod cli;
mod codec;
mod conn;
mod control;
mod embed;
mod fault;
mod gojson;
mod host;
mod http;
mod infer;
mod job;
mod ledger;
mod lists;
mod llama;
mod model;
mod names;
mod node;
mod paths;
mod pull;
mod requests;
mod sched;
mod serve;
mod spec;
mod store;
mod text;
mod voice;

pub use cli::{KeepAlive, SimArgs, run_cli, specs};
pub use fault::{Fault, Harm, Only};
pub use ledger::{Ending, ModelLedger, NodeLedger, Tokens};
pub use node::{Herd, Node};
pub use spec::{Capability, Cloud, Engine, ModelSpec, NodeSpec, Remote};

/// Recorded exchanges with a real Ollama that a node, set up as the recorded one was, answers with the recorded status,
/// headers, chunk boundaries and body shapes. `tests/sim.rs` holds every one of them.
pub const RECORDINGS: &[&str] = &[
    "001-root-get",
    "002-root-head",
    "003-version-get",
    "004-status",
    "005-tags-empty",
    "006-v1-models-empty",
    "007-tags",
    "008-tags-head",
    "009-tags-head-long",
    "010-ps-empty",
    "011-show",
    "012-show-unknown",
    "013-v1-models",
    "014-v1-model",
    "015-v1-model-unknown",
    "016-v1-model-encoded-slash",
    "017-path-unknown",
    "018-path-count-tokens",
    "019-method-get-generate",
    "020-method-post-tags",
    "021-method-head-ps",
    "022-slash-get",
    "023-slash-post",
    "024-slash-double",
    "025-slash-double-post",
    "026-options-no-origin",
    "027-cors-preflight",
    "028-cors-get",
    "029-cors-get-evil",
    "030-origins-star",
    "031-host-foreign",
    "032-host-missing",
    "033-body-none-generate",
    "034-body-empty-v1-chat",
    "035-body-empty-v1-messages",
    "036-body-cut",
    "037-body-bom",
    "038-body-null",
    "039-body-wrong-type-stream",
    "040-body-content-array",
    "041-body-case-keys",
    "042-body-duplicate-case",
    "043-body-trailing-junk",
    "044-body-chunked",
    "045-body-gzip",
    "046-zstd-v1-chat",
    "047-zstd-native",
    "048-zstd-bad",
    "049-nomodel-generate",
    "050-nomodel-chat",
    "051-nomodel-v1-chat",
    "052-unknown-generate",
    "053-unknown-embed",
    "054-unknown-copy",
    "055-unknown-delete",
    "056-unknown-push",
    "057-unknown-v1-chat",
    "058-unknown-v1-chat-stream",
    "059-unknown-v1-embeddings",
    "060-unknown-v1-responses-stream",
    "061-name-bad-space",
    "062-name-conflict-v1",
    "063-cloud-off-chat",
    "064-cloud-off-v1-chat",
    "065-cloud-unreachable-v1-messages",
    "066-valid-keep-alive",
    "067-valid-option-type",
    "068-valid-think-unsupported",
    "069-valid-tools-unsupported",
    "070-valid-format",
    "071-valid-image-no-vision",
    "072-valid-v1-chat-no-messages",
    "073-valid-v1-messages-max-tokens",
    "074-valid-create-nothing",
    "075-valid-create-unknown-blob",
    "076-too-long-noshift",
    "077-embed-too-long",
    "078-audio-unknown-model",
    "079-load-generate",
    "080-ps-loaded",
    "081-load-chat",
    "082-ps-forever",
    "083-second-name-generate",
    "084-ps-second-name",
    "085-unload-generate",
    "086-ps-after-unload",
    "087-unload-chat",
    "088-generate-stream",
    "089-generate",
    "090-generate-logprobs",
    "091-generate-debug-render",
    "092-chat-stream",
    "093-chat-stream-stop",
    "094-chat",
    "095-chat-debug-render",
    "096-native-chat-stream",
    "097-embed-string",
    "098-embed-list",
    "099-embed-empty-list",
    "100-embed-chat-model",
    "101-embeddings",
    "102-chat-embed-model",
    "103-thinks-chat-stream",
    "104-tools-chat-stream",
    "105-stub-ok-chat",
    "106-stub-404-chat",
    "107-v1-chat",
    "108-v1-chat-stream",
    "109-v1-chat-stream-usage",
    "110-v1-chat-logprobs",
    "111-v1-chat-max-completion-tokens",
    "112-v1-completions-stream-usage",
    "113-v1-completions-empty",
    "114-v1-embeddings-base64",
    "115-v1-responses",
    "116-v1-responses-stream",
    "117-tools-v1",
    "118-tools-v1-stream",
    "119-tools-v1-responses-stream",
    "120-thinks-v1-stream",
    "121-v1-messages",
    "122-v1-messages-stream",
    "123-thinks-v1-messages-stream",
    "124-v1-messages-web-search-stream",
    "125-copy",
    "126-delete",
    "127-delete-again",
    "128-delete-chunked",
    "129-create-from",
    "130-create-from-blob",
    "131-pull",
    "132-pull-installed",
    "133-pull-unknown",
    "134-pull-unknown-nostream",
    "135-blob-head-unknown",
    "136-blob-head",
    "137-blob-post",
    "138-blob-post-again",
    "139-blob-existing-expect",
    "140-blob-post-mismatch",
    "141-queue-full-chat",
    "142-queue-full-v1-chat",
    "143-queue-full-v1-messages",
    "144-runner-killed-chat",
    "145-runner-killed-v1-chat",
    "146-runner-killed-v1-completions",
    "147-runner-killed-v1-responses",
    "148-runner-killed-v1-messages",
    "149-runner-killed-chat-nostream",
    "150-node-kill-chat",
    "151-node-term-chat",
    "152-http10",
    "153-http10-stream",
    "154-expect-continue",
    "155-expect-other",
    "156-te-and-length",
    "157-length-twice",
];

/// Recordings that are not claimed, each with its reason.
pub const NOT_CLAIMED: &[(&str, &str)] = &[];
