//! What is claimed of each recording, scene by scene, in the order in which they are replayed.

/// What is claimed of a recording; `tests/ancestor.rs` says what each means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    Exact,
    Same,
    Differs(u16, &'static str),
    Elsewhere(&'static str),
}

use Claim::*;

type Claims = &'static [(&'static str, Claim)];

const BYTES: &str = "the node's bytes go through untouched; no keys are added, none are nulled";
const NO_MOE: &str = "a name that begins with moe- is a name like others";
const OLLAMA_ERRORS: &str = "errors on Ollama's routes are Ollama's, in its words and shape";
const OLLAMA_ROUTES: &str = "what is no route, or not with this method, is answered as Ollama's own router does";
const OPENAI_NATIVE: &str = "requests are not translated between dialects: 501 names the /v1 route";
const STREAMS: &str = "`stream` left out means a stream, as in Ollama; there it was an empty body";
const UNREACHED: &str =
    "a name is no longer 404 but 503 while a node that was never reached may have it; moe- is nothing special";
const NO_PAGE: &str = "there is no dashboard of our own, so no favicon and nothing below /static";
const NO_RERANK: &str = "no rerank of its own: a node that has the route is asked, and its answer goes through";

/// Two nodes, nothing served.
pub(crate) const IDLE: Claims = &[
    ("001-usage-idle", Exact),
    ("002-token-counts-idle", Exact),
    ("003-config", Same),
    ("004-health", Differs(200, "it also says how the ledger is")),
    ("005-ps-details", Same),
    ("006-ps", Same),
    ("007-tags", Differs(200, "entries are the node's, as Ollama lists them: no `id` is added")),
    ("008-version", Same),
    ("009-v1-models", Differs(200, "the list is OpenAI's (object, id, created, owned_by), as Ollama makes it")),
    ("010-stats-unknown-query", Exact),
    ("011-stats-unknown-body", Exact),
    ("012-stats-no-model", Exact),
    ("013-stats-empty-body", Same),
    ("014-stats-body-array", Differs(400, "a body that is no object is the client's mistake, not ours")),
    ("015-aggregate-empty", Exact),
    ("016-aggregate-body", Differs(200, "nothing is trimmed without a router key, and the answer says so")),
    ("017-aggregate-junk", Differs(400, "a body that cannot be read is refused, not guessed")),
    ("018-aggregate-negative", Differs(400, "`trim_old` is true or false, not any text")),
    ("019-cache-stats-off", Exact),
    ("020-cache-invalidate-off", Exact),
    ("021-root-head", Differs(200, "clients look for Ollama with HEAD /")),
    ("022-favicon", Differs(404, NO_PAGE)),
    ("023-path-unknown", Differs(404, OLLAMA_ROUTES)),
    ("024-method-post-usage", Differs(405, OLLAMA_ROUTES)),
    ("025-method-get-stats", Differs(405, OLLAMA_ROUTES)),
    ("026-method-head-usage", Exact),
    ("027-cors-preflight", Differs(204, "preflights are answered as Ollama answers them")),
    ("028-cors-preflight-put", Differs(204, "as Ollama: the headers say which methods are allowed, not the status")),
    ("029-cors-get", Exact),
    ("030-cors-get-cookie", Exact),
    ("031-options-plain", Differs(405, OLLAMA_ROUTES)),
];

/// The same two nodes at work.
pub(crate) const WORK: Claims = &[
    ("040-usage-stream", Elsewhere("stream::events_are_framed_as_recorded")),
    ("041-generate", Differs(200, BYTES)),
    ("042-usage-after-1", Same),
    ("043-token-counts-before-flush", Differs(200, "what was counted is there at once, not after ten seconds")),
    ("044-generate-parallel", Differs(200, BYTES)),
    ("045-generate-parallel", Differs(200, BYTES)),
    ("046-generate-parallel", Differs(200, BYTES)),
    ("047-usage-in-flight", Same),
    ("048-usage-after", Same),
    ("049-token-counts", Same),
    ("050-stats-query", Same),
    ("051-stats-body", Same),
    ("052-stats-without-latest", Exact),
    ("060-generate-stream", Differs(200, BYTES)),
    ("061-usage-in-flight", Same),
    ("062-generate-no-stream-key", Differs(200, STREAMS)),
    ("063-chat-stream", Differs(200, "the last record is there; there a fault swallowed it")),
    ("064-chat", Differs(200, BYTES)),
    ("065-chat-no-stream-key", Differs(200, STREAMS)),
    ("066-chat-moe", Differs(404, NO_MOE)),
    ("067-usage-after-moe", Same),
    ("068-chat-moe-stream", Differs(404, NO_MOE)),
    ("069-generate-unknown-model", Differs(404, "an unknown model is 404, in Ollama's words")),
    ("070-generate-no-model", Differs(404, OLLAMA_ERRORS)),
    ("071-generate-no-prompt", Differs(200, "without a prompt the model is loaded, as in Ollama")),
    ("072-generate-bad-json", Differs(400, OLLAMA_ERRORS)),
    ("073-generate-nomyo-null", Differs(200, "unknown keys go to the node, which passes over them")),
    ("074-generate-nomyo-cache", Differs(200, BYTES)),
    ("075-v1-chat", Differs(200, BYTES)),
    ("076-v1-chat-stream", Differs(200, "no usage event reaches a client that did not ask for one")),
    ("077-v1-completions", Differs(200, BYTES)),
    ("078-embed", Differs(501, "the node says what this model of it cannot do")),
    ("079-embeddings", Differs(500, "the node says what this model of it cannot do")),
    ("080-v1-embeddings", Differs(501, "the node says what this model of it cannot do")),
    ("081-show-query", Differs(200, BYTES)),
    ("082-rerank-ollama", Differs(404, NO_RERANK)),
    ("083-rerank-unknown", Differs(404, "no rerank outside /v1")),
    ("084-usage", Same),
    ("090-usage-stream-shutdown", Elsewhere("monitoring: the stream ends with the process, which waits for nobody")),
];

/// Two nodes behind a key.
pub(crate) const KEY: Claims = &[
    ("100-auth-none-usage", Exact),
    ("101-auth-none-v1-models", Differs(401, "refusals on /v1 are OpenAI's, in its shape")),
    ("102-auth-none-health", Exact),
    ("103-auth-none-stream", Exact),
    ("104-auth-wrong", Exact),
    ("105-auth-bearer", Same),
    ("106-auth-lowercase-scheme", Same),
    ("107-auth-query", Same),
    ("108-auth-wrong-header-good-query", Exact),
    ("109-auth-basic-good-query", Same),
    ("110-auth-x-api-key", Differs(200, "x-api-key is read: clients in Anthropic's dialect send nothing else")),
    ("111-auth-options", Differs(204, "preflights are answered as Ollama answers them")),
    ("112-auth-favicon", Differs(401, NO_PAGE)),
    ("113-auth-path-unknown", Differs(401, OLLAMA_ERRORS)),
    ("114-auth-docs", Differs(401, OLLAMA_ERRORS)),
    ("115-auth-config", Same),
    ("116-auth-stream-query", Elsewhere("stream::the_key_may_come_as_a_query")),
    ("117-auth-static-prefix", Differs(401, NO_PAGE)),
    ("118-auth-unicode", Differs(403, "a wrong key is a wrong key, whatever its letters")),
];

/// An Ollama, an OpenAI-compatible and a llama server, and one that is down.
pub(crate) const MIXED: Claims = &[
    ("120-mixed-tags", Differs(200, "lists what the native routes can serve, as Ollama lists it")),
    ("121-mixed-v1-models", Differs(200, "the list is OpenAI's, as Ollama makes it")),
    ("122-mixed-ps", Differs(200, "lists what the native routes can serve, as Ollama lists it")),
    ("123-mixed-ps-details", Differs(200, "a llama model is shown under its whole id, and nothing is unloaded")),
    ("124-mixed-config", Same),
    ("125-mixed-generate-openai", Differs(501, OPENAI_NATIVE)),
    ("126-mixed-generate-openai-stream", Differs(501, OPENAI_NATIVE)),
    ("127-mixed-chat-openai-stream", Differs(501, OPENAI_NATIVE)),
    ("128-mixed-v1-chat-llama", Differs(200, BYTES)),
    ("129-mixed-v1-chat-llama-stream", Differs(200, BYTES)),
    ("130-mixed-chat-llama", Differs(501, OPENAI_NATIVE)),
    ("131-mixed-embed-openai", Differs(501, OPENAI_NATIVE)),
    ("132-mixed-rerank", Differs(404, NO_RERANK)),
    ("133-mixed-moe-openai", Differs(503, UNREACHED)),
    ("134-mixed-usage", Same),
    ("135-mixed-health", Differs(200, "a node that is down reads so, and every node is listed")),
    ("136-mixed-tags-after-health", Differs(200, "lists what the native routes can serve, as Ollama lists it")),
    ("137-mixed-v1-models-after-health", Differs(200, "the list is OpenAI's, as Ollama makes it")),
    ("138-mixed-show-openai", Differs(501, OPENAI_NATIVE)),
];

/// The same, as it went there without a key for the OpenAI-compatible node.
pub(crate) const WITHOUT_KEY: Claims = &[
    ("150-nokey-tags", Differs(200, "a node without a key fails no listing")),
    ("151-generate-openai", Differs(501, OPENAI_NATIVE)),
    ("152-usage", Same),
    ("153-generate-openai-stream", Differs(501, OPENAI_NATIVE)),
    ("154-usage", Same),
    ("155-chat-openai", Differs(501, OPENAI_NATIVE)),
    ("156-usage", Same),
    ("157-chat-openai-stream", Differs(501, OPENAI_NATIVE)),
    ("158-usage", Same),
    ("159-embed-openai", Differs(501, OPENAI_NATIVE)),
    ("160-moe-openai", Differs(503, UNREACHED)),
    ("161-show-openai", Differs(501, OPENAI_NATIVE)),
    ("162-v1-chat-openai-stream", Differs(200, BYTES)),
    ("163-usage", Same),
    ("164-llama-without-v1-config", Differs(200, "a llama server is probed as what it is")),
    ("165-llama-without-v1-ps", Differs(200, "what is loaded on a llama server is listed too")),
    ("166-pull", Differs(200, "a pull that a node can serve is served, and says for which node it waits")),
    ("167-copy", Differs(200, "what the node can do is done")),
    ("168-delete", Differs(200, "the copy is there and is deleted")),
    ("169-chat-bad-options", Differs(500, OLLAMA_ERRORS)),
    ("170-chat-tool-less", Differs(400, OLLAMA_ERRORS)),
];

/// After faults of requests, there.
pub(crate) const LEAKS: Claims = &[
    ("210-chat-bad-image-openai", Differs(501, OPENAI_NATIVE)),
    ("211-usage-leaked", Same),
    ("212-v1-chat-moe", Differs(503, UNREACHED)),
    ("213-v1-chat-svg", Differs(400, "images are the node's: it says what it makes of them")),
    ("214-unload", Differs(200, "an empty prompt with keep_alive 0 unloads, as in Ollama")),
    ("215-usage-client-left", Same),
    ("216-usage-client-left-later", Same),
];

/// One node, and what the ancestor had counted, imported.
pub(crate) const IMPORTED: Claims = &[
    ("180-usage-after-restart", Same),
    ("181-aggregate-groups", Same),
    ("182-aggregate-again", Same),
    ("183-stats-before-trim", Same),
    ("184-aggregate-trim", Same),
    ("185-stats-after-trim", Same),
    ("186-token-counts", Same),
    ("187-version-rc", Differs(200, "versions are compared as versions, letters and all")),
    ("188-pull-ok", Differs(200, "the last line of the progress, as Ollama writes it: no nulls")),
    ("189-copy-ok", Exact),
    ("190-delete-ok", Exact),
    ("191-create-ok", Differs(200, "progress is a stream; what 190 deleted is not there to make a model from")),
];

/// The node answers 500.
pub(crate) const NODE_500: Claims =
    &[("192-generate-node-500", Differs(500, "a node's error is an error, not an empty answer"))];

/// The node answers 404.
pub(crate) const NODE_404: Claims = &[
    ("193-chat-node-404", Differs(404, "a node's error is an error, not an empty answer")),
    ("194-chat-node-404-stream", Differs(404, "a node's error is an error, not an empty answer")),
];

/// The node answers 400.
pub(crate) const NODE_400: Claims = &[("195-v1-chat-node-400", Differs(400, "a node's error keeps its status"))];

/// After that.
pub(crate) const AFTER_ERRORS: Claims = &[("196-usage-after-errors", Same)];

/// No node is up.
pub(crate) const ALL_DOWN: Claims = &[
    ("197-version-all-down", Differs(200, "what a node said last is told while it is down")),
    ("198-health-all-down", Differs(503, "no node can serve: that is an error, and says which")),
    ("199-generate-node-down", Differs(503, "no node can serve: that is an error, not an empty answer")),
];

/// Beside a node that never answers; there each took a minute.
pub(crate) const HANGING: Claims = &[
    ("220-generate-hanging-peer", Differs(200, BYTES)),
    ("221-config-hanging-node", Same),
    ("222-health-hanging-node", Differs(200, "the node reads as what it is")),
    ("223-tags-hanging-node", Differs(200, "entries are the node's, as Ollama lists them: no `id` is added")),
];

/// All of them.
pub(crate) const ALL: &[Claims] = &[
    IDLE,
    WORK,
    KEY,
    MIXED,
    WITHOUT_KEY,
    LEAKS,
    IMPORTED,
    NODE_500,
    NODE_404,
    NODE_400,
    AFTER_ERRORS,
    ALL_DOWN,
    HANGING,
];
