//! What a simulated node is made of: its models, slots, speeds and limits.
//!
//! Built by tests, `demo`, `perf` and the command line; read by the node when it starts. Plain data.

use std::time::Duration;

use super::codec::digest;

/// Which server a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// An Ollama server.
    Ollama,
    /// A llama.cpp server with one model.
    LlamaCpp,
}

/// What an Ollama node says of cloud models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Enabled, but the cloud cannot be reached: 502.
    Unreachable,
    /// Switched off: 403.
    Disabled,
}

/// What a model can do, with Ollama's words for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Generates text.
    Completion,
    /// Calls tools.
    Tools,
    /// Fills in the middle.
    Insert,
    /// Sees images.
    Vision,
    /// Embeds.
    Embedding,
    /// Thinks before it answers.
    Thinking,
    /// Hears.
    Audio,
}

impl Capability {
    /// The word in listings.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Completion => "completion",
            Self::Tools => "tools",
            Self::Insert => "insert",
            Self::Vision => "vision",
            Self::Embedding => "embedding",
            Self::Thinking => "thinking",
            Self::Audio => "audio",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        [Self::Completion, Self::Tools, Self::Insert, Self::Vision, Self::Embedding, Self::Thinking, Self::Audio]
            .into_iter()
            .find(|c| c.word() == word)
    }
}

/// A stored model that another server runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The model's name there.
    pub model: String,
    /// The server's address.
    pub host: String,
    /// The error status it answers with, or nothing when it works.
    pub fails: Option<u16>,
}

/// A model on a node's disk.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Name, with or without tag.
    pub name: String,
    /// What it can do.
    pub capabilities: Vec<Capability>,
    /// Bytes of its layers.
    pub size: u64,
    /// Digest of the manifest: 64 hexadecimal digits.
    pub digest: String,
    /// Digest of the weights: names that share it share a runner.
    pub weights: String,
    /// Architecture, as `details.family` says it.
    pub family: String,
    /// `details.parent_model`.
    pub parent: String,
    /// The longest context it was trained for.
    pub context: u32,
    /// Length of its vectors.
    pub dimensions: u32,
    /// Tokens that its template adds to a prompt.
    pub template_tokens: u32,
    /// Its prompts are rendered by the GGUF's own template: one that exceeds the context is refused, never cut.
    pub native: bool,
    /// Tokens of an answer when nobody bounds it.
    pub output_tokens: Option<u32>,
    /// Time to load it, when it differs from the node's.
    pub load_time: Option<Duration>,
    /// Run by another server.
    pub remote: Option<Remote>,
    /// Modification time since 1970; absent: the node's start.
    pub modified: Option<Duration>,
}

impl ModelSpec {
    /// A model of this name that can do these things.
    #[must_use]
    pub fn new(name: &str, capabilities: &[Capability]) -> Self {
        let tagged = super::names::Name::parse(name).map_or_else(|_| name.to_owned(), |n| n.display());
        Self {
            digest: digest(&format!("manifest {tagged}")),
            weights: digest(&format!("weights {tagged}")),
            name: tagged,
            capabilities: capabilities.to_vec(),
            size: 1 << 30,
            family: "llama".to_owned(),
            parent: String::new(),
            context: 8192,
            dimensions: 576,
            template_tokens: 10,
            native: false,
            output_tokens: None,
            load_time: None,
            remote: None,
            modified: None,
        }
    }

    /// A chat model.
    #[must_use]
    pub fn chat(name: &str) -> Self {
        Self::new(name, &[Capability::Completion])
    }

    /// An embedding model.
    #[must_use]
    pub fn embedding(name: &str) -> Self {
        Self { template_tokens: 0, ..Self::new(name, &[Capability::Embedding]) }
    }

    /// A chat model that thinks first.
    #[must_use]
    pub fn thinking(name: &str) -> Self {
        Self::new(name, &[Capability::Completion, Capability::Thinking])
    }

    /// A chat model that calls tools.
    #[must_use]
    pub fn tools(name: &str) -> Self {
        Self::new(name, &[Capability::Completion, Capability::Tools])
    }

    /// A stub that another server runs.
    #[must_use]
    pub fn stub(name: &str, remote: Remote) -> Self {
        Self { remote: Some(remote), size: 400, ..Self::new(name, &[Capability::Completion]) }
    }

    /// Sets the bytes of its layers.
    #[must_use]
    pub fn size(mut self, bytes: u64) -> Self {
        self.size = bytes;
        self
    }

    /// Sets both digests from one text: nodes that share it hold the same copy.
    #[must_use]
    pub fn copy_of(mut self, text: &str) -> Self {
        self.digest = digest(&format!("manifest {text}"));
        self.weights = digest(&format!("weights {text}"));
        self
    }

    /// Sets the time that it takes to load.
    #[must_use]
    pub fn load_time(mut self, time: Duration) -> Self {
        self.load_time = Some(time);
        self
    }

    /// Whether it can do this.
    #[must_use]
    pub fn can(&self, what: Capability) -> bool {
        self.capabilities.contains(&what)
    }

    /// Whether it embeds and does nothing else (then it has one slot).
    #[must_use]
    pub fn only_embeds(&self) -> bool {
        self.can(Capability::Embedding) && !self.can(Capability::Completion)
    }
}

/// A node. Every duration is multiplied by [`NodeSpec::scale`], the loss window excepted.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// Which server it plays.
    pub engine: Engine,
    /// The address to listen on; port 0 picks one.
    pub listen: std::net::SocketAddr,
    /// What `/api/version` says.
    pub version: String,
    /// Models on its disk; the llama.cpp server has the first of them loaded.
    pub models: Vec<ModelSpec>,
    /// Models that a pull finds.
    pub registry: Vec<ModelSpec>,
    /// Time that the download of one takes; zero gives all its lines at once.
    pub pull_time: Duration,
    /// It has an account: a push works.
    pub signed_in: bool,
    /// `OLLAMA_NUM_PARALLEL`: slots of each loaded model.
    pub num_parallel: u32,
    /// `OLLAMA_MAX_LOADED_MODELS`.
    pub max_loaded: usize,
    /// `OLLAMA_MAX_QUEUE`: requests that may wait for a load beside the one being served.
    pub max_queue: usize,
    /// `OLLAMA_KEEP_ALIVE`; `None` is for ever.
    pub keep_alive: Option<Duration>,
    /// Bytes that loaded models may take together; 0 is no limit.
    pub memory: u64,
    /// The part of each loaded model that its GPU's memory holds, percent.
    pub vram_percent: u64,
    /// Context of a model for which nobody asks another one.
    pub context: u32,
    /// Time to load a model.
    pub load_time: Duration,
    /// Time to unload one.
    pub unload_time: Duration,
    /// Time of one prompt token.
    pub prompt_time: Duration,
    /// Time of one answer token; zero gives the whole answer at once.
    pub token_time: Duration,
    /// Answer tokens that come together, `burst` times [`NodeSpec::token_time`] apart.
    pub burst: u32,
    /// Tokens of an answer that nobody bounds.
    pub output_tokens: u32,
    /// Factor on all durations.
    pub scale: f64,
    /// A request whose client goes within this time of being read is lost with its socket.
    pub loss_window: Duration,
    /// What it says of cloud models.
    pub cloud: Cloud,
    /// `OLLAMA_ORIGINS`, beside the built-in ones.
    pub origins: Vec<String>,
    /// The model directory that shows in some texts.
    pub models_dir: String,
    /// Seed of everything that looks random.
    pub seed: u64,
}

impl NodeSpec {
    /// An Ollama node with these models, and no waiting anywhere.
    #[must_use]
    pub fn ollama(models: Vec<ModelSpec>) -> Self {
        Self {
            engine: Engine::Ollama,
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            version: "0.33.0".to_owned(),
            models,
            registry: Vec::new(),
            pull_time: Duration::ZERO,
            signed_in: false,
            num_parallel: 1,
            max_loaded: 3,
            max_queue: 512,
            keep_alive: Some(Duration::from_secs(300)),
            memory: 0,
            vram_percent: 100,
            context: 4096,
            load_time: Duration::ZERO,
            unload_time: Duration::ZERO,
            prompt_time: Duration::ZERO,
            token_time: Duration::ZERO,
            burst: 1,
            output_tokens: 32,
            scale: 1.0,
            loss_window: Duration::from_millis(20),
            cloud: Cloud::Unreachable,
            origins: Vec::new(),
            models_dir: "/srv/ollama/models".to_owned(),
            seed: 1,
        }
    }

    /// A llama.cpp server with this model.
    #[must_use]
    pub fn llama_cpp(model: ModelSpec) -> Self {
        Self { engine: Engine::LlamaCpp, ..Self::ollama(vec![model]) }
    }

    /// Sets `OLLAMA_NUM_PARALLEL`.
    #[must_use]
    pub fn slots(mut self, slots: u32) -> Self {
        self.num_parallel = slots;
        self
    }

    /// Sets the times of load, prompt token and answer token.
    #[must_use]
    pub fn speed(mut self, load: Duration, prompt_token: Duration, token: Duration) -> Self {
        (self.load_time, self.prompt_time, self.token_time) = (load, prompt_token, token);
        self
    }

    /// A duration of this spec in real time.
    pub(super) fn real(&self, time: Duration) -> Duration {
        time.mul_f64(self.scale.max(0.0))
    }
}
