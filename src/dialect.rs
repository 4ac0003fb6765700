//! What the three dialects (Ollama, OpenAI, Anthropic) say on the wire: routes, error bodies, stream endings, model names.
//!
//! Pure text; called by front, proxy, fleet. Must never do I/O or know of nodes.

pub mod name;

/// An inference or pass-through route of the contract.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Route {
    /// `POST /api/generate`
    Generate,
    /// `POST /api/chat`
    Chat,
    /// `POST /api/embed`
    Embed,
    /// `POST /api/embeddings`
    Embeddings,
    /// `POST /api/show`
    Show,
    /// `POST /v1/chat/completions`
    V1Chat,
    /// `POST /v1/completions`
    V1Completions,
    /// `POST /v1/embeddings`
    V1Embeddings,
    /// `POST /v1/responses`
    V1Responses,
    /// `POST /v1/messages`
    V1Messages,
    /// `POST /v1/audio/transcriptions`
    V1Audio,
    /// Any other POST under `/api/` whose body names a model.
    OtherApi,
    /// Any other POST under `/v1/` whose body names a model.
    OtherV1,
}

/// Whose shapes errors take.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Family {
    /// `{"error":"…"}`
    Ollama,
    /// `{"error":{"message",…}}`
    OpenAi,
    /// `{"type":"error","error":{…}}`
    Anthropic,
}
