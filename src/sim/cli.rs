//! `herdgate sim`: simulated nodes for an operator's own trials and for shell tests.
//!
//! Called by `main.rs`. Prints addresses, obeys the control listener, ends on Ctrl-C or after `--for`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use super::conn::Conn;
use super::control::{self, Also};
use super::http::{Head, Reply};
use super::lists::error;
use super::node::{Herd, Node};
use super::spec::{Capability, ModelSpec, NodeSpec};
use super::text;
use crate::sync::spawn_local;

/// Run simulated nodes: servers that answer as Ollama does, without models or a GPU.
///
/// Each node has the models given, its own slots and memory, and loads, evicts and queues by Ollama's rules. Answers are
/// filler words of exactly the length asked for. A body may hold `"sim":{"tokens":N,"prompt":N,"first_ms":N,
/// "pace_ms":N,"burst":N}` to set one answer's size and speed.
///
/// Faults are given on the control listener, to one node (`/sim/0/fault`) or to all (`/sim/fault`):
///   curl -d '{"harm":"cut","at":700,"next":3}' http://127.0.0.1:PORT/sim/0/fault
/// Harms: refuse, hang, reset, close, garbage, busy, status (status, text), delay (ms), slow (ms), cut (at, reset),
/// hang_at (at), runner_dies (at), load_fails (text), load_hangs, empty_lists. Each takes path or only ("all"),
/// model, next (a number of requests) and chance (0 to 1). Other controls: POST /sim/0/clear, kill, stop, restart;
/// GET /sim/0/ledger; POST and DELETE /sim/0/model {"name":...}; GET /sim/nodes.
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct SimArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub nodes: u16,
    /// How many of them (the last ones) play a llama.cpp server with the first model.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub llama_cpp: u16,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    pub listen: IpAddr,
    /// Port of the first node; the others follow. 0 takes free ones.
    #[arg(long, default_value_t = 11_500)]
    pub port: u16,
    /// Port of the control listener; absent: the one after the last node's, or a free one with --port 0.
    #[arg(long, value_name = "PORT")]
    pub control: Option<u16>,
    /// A model, as NAME or NAME=CAPABILITY[+CAPABILITY...] (completion, tools, insert, vision, embedding, thinking,
    /// audio). Can be repeated. Without it: llama3.2:3b, qwen3:8b (thinks, calls tools), gemma3:4b and an embedding model.
    #[arg(long = "model", value_name = "MODEL")]
    pub models: Vec<String>,
    /// A model that a pull finds, written as for --model. Can be repeated.
    #[arg(long = "registry", value_name = "MODEL")]
    pub registry: Vec<String>,
    /// Time that a pull's download takes.
    #[arg(long, default_value = "2s", value_parser = time, value_name = "TIME")]
    pub pull_time: Duration,
    /// Put each model on so many nodes only, in turn. 0: on every node.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub copies: u16,
    /// Slots of each loaded model (OLLAMA_NUM_PARALLEL).
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub slots: u32,
    /// Models loaded at once (OLLAMA_MAX_LOADED_MODELS).
    #[arg(long, default_value_t = 3, value_name = "N")]
    pub max_loaded: usize,
    /// Requests that may wait for a load (OLLAMA_MAX_QUEUE).
    #[arg(long, default_value_t = 512, value_name = "N")]
    pub max_queue: usize,
    /// How long an idle model stays loaded (OLLAMA_KEEP_ALIVE); negative is for ever.
    #[arg(long, default_value = "5m", value_parser = keep_alive, value_name = "TIME", allow_hyphen_values = true)]
    pub keep_alive: KeepAlive,
    /// Time to load a model.
    #[arg(long, default_value = "2s", value_parser = time, value_name = "TIME")]
    pub load_time: Duration,
    /// Time of one token of a prompt.
    #[arg(long, default_value = "500us", value_parser = time, value_name = "TIME")]
    pub prompt_time: Duration,
    /// Time of one token of an answer; 0 sends the whole answer at once.
    #[arg(long, default_value = "20ms", value_parser = time, value_name = "TIME")]
    pub token_time: Duration,
    /// Tokens that come together.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub burst: u32,
    /// Tokens of an answer that nobody bounds.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub output_tokens: u32,
    /// Factor on all times: 0.1 is ten times as fast.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub scale: f64,
    /// What /api/version says.
    #[arg(long, default_value = "0.33.0", value_name = "X.Y.Z")]
    pub api_version: String,
    /// Seed of everything that looks random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// End after so many seconds; absent: on Ctrl-C.
    #[arg(long = "for", value_name = "SECONDS")]
    pub for_seconds: Option<f64>,
}

/// A keep-alive: a time, or for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive(pub Option<Duration>);

/// A time as Go writes it, or a number of seconds; negative is for ever.
fn keep_alive(text: &str) -> Result<KeepAlive, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds < 0.0 => Ok(KeepAlive(None)),
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map(|t| KeepAlive(Some(t))).map_err(|e| e.to_string()),
        Err(_) => super::ask::go_duration(text).map(KeepAlive),
    }
}

fn time(text: &str) -> Result<Duration, String> {
    keep_alive(text)?.0.ok_or_else(|| "must not be negative".to_owned())
}

fn models(args: &SimArgs) -> Result<Vec<ModelSpec>, String> {
    if args.models.is_empty() {
        let thinks = [Capability::Completion, Capability::Tools, Capability::Thinking];
        return Ok(vec![
            ModelSpec::tools("llama3.2:3b").size(2_019_393_189),
            ModelSpec::new("qwen3:8b", &thinks).size(5_225_388_164),
            ModelSpec::new("gemma3:4b", &[Capability::Completion, Capability::Vision]).size(3_338_801_804),
            ModelSpec::embedding("nomic-embed-text").size(274_302_450),
        ]);
    }
    args.models.iter().map(|text| model(text)).collect()
}

fn model(text: &str) -> Result<ModelSpec, String> {
    let (name, words) = text.split_once('=').unwrap_or((text, "completion"));
    super::names::Name::parse(name).map_err(|_| format!("{name:?} is no model name"))?;
    let capabilities: Result<Vec<Capability>, String> = words
        .split('+')
        .map(|word| Capability::of(word).ok_or_else(|| format!("unknown capability {word:?} of {name}")))
        .collect();
    Ok(ModelSpec::new(name, &capabilities?))
}

/// The nodes that the arguments describe.
///
/// # Errors
/// What is wrong with them.
pub fn specs(args: &SimArgs) -> Result<Vec<NodeSpec>, String> {
    let models = models(args)?;
    let more: Result<Vec<ModelSpec>, String> = args.registry.iter().map(|text| model(text)).collect();
    let registry: Vec<ModelSpec> = models.iter().cloned().chain(more?).collect();
    let nodes = usize::from(args.nodes);
    let mut specs = Vec::new();
    for at in 0..nodes {
        let port = match args.port {
            0 => 0,
            first => u16::try_from(at).ok().and_then(|n| first.checked_add(n)).ok_or("ports end at 65535")?,
        };
        let here = |place: &usize| match usize::from(args.copies) {
            0 => true,
            copies => (at + nodes - place % nodes.max(1)) % nodes < copies,
        };
        let own: Vec<ModelSpec> =
            models.iter().enumerate().filter(|(place, _)| here(place)).map(|(_, m)| m.clone()).collect();
        let llama = at + usize::from(args.llama_cpp) >= nodes;
        let base = if llama { NodeSpec::llama_cpp(models[0].clone()) } else { NodeSpec::ollama(own) };
        specs.push(NodeSpec {
            listen: SocketAddr::new(args.listen, port),
            version: args.api_version.clone(),
            registry: registry.clone(),
            pull_time: args.pull_time,
            max_loaded: args.max_loaded,
            max_queue: args.max_queue,
            keep_alive: args.keep_alive.0,
            burst: args.burst,
            output_tokens: args.output_tokens,
            scale: args.scale,
            seed: args.seed.wrapping_add(at as u64),
            ..base.slots(args.slots).speed(args.load_time, args.prompt_time, args.token_time)
        });
    }
    Ok(specs)
}

/// Starts the nodes, prints where they are, and runs until Ctrl-C or the time is over.
///
/// # Errors
/// Wrong arguments (kind `InvalidInput`), or a port that cannot be had.
pub fn run_cli(args: &SimArgs) -> io::Result<()> {
    let specs = specs(args).map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
    let herd = Arc::new(Herd::start(specs)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let port = match (args.control, args.port) {
            (Some(port), _) => port,
            (None, 0) => 0,
            (None, first) => first.saturating_add(args.nodes),
        };
        let listener = TcpListener::bind(SocketAddr::new(args.listen, port)).await?;
        for (at, node) in herd.iter().enumerate() {
            announce(&format!("node {at} {}", node.url()));
        }
        announce(&format!("control http://{}", listener.local_addr()?));
        spawn_local(obey(listener, herd.clone()));
        match args.for_seconds {
            Some(seconds) => {
                let time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
                let _ = tokio::time::timeout(time, tokio::signal::ctrl_c()).await;
                Ok(())
            }
            None => tokio::signal::ctrl_c().await,
        }
    })
}

fn announce(line: &str) {
    use io::Write as _;
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// The control listener.
async fn obey(listener: TcpListener, herd: Arc<Herd>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                spawn_local(session(Conn::new(stream), herd.clone()));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn session(mut conn: Conn, herd: Arc<Herd>) {
    while let Ok(Ok(Some(head))) = conn.head().await {
        let Ok(body) = conn.body(&head).await else { return };
        let reply = command(&herd, &head, &body.bytes);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        if conn.send(&reply.encode(&head, now)).await.is_err() || !head.keep_alive {
            return;
        }
    }
}

fn command(herd: &Herd, head: &Head, body: &[u8]) -> Reply {
    let (path, _) = head.path();
    let rest = path.strip_prefix("/sim/").unwrap_or("");
    if rest == "nodes" {
        let urls: Vec<String> = herd.urls().iter().map(|url| text::quoted(url)).collect();
        return Reply::json(200, format!("[{}]", urls.join(",")));
    }
    if let Some((index, what)) = rest.split_once('/')
        && let Ok(index) = index.parse::<usize>()
    {
        return match herd.get(index) {
            Some(node) => one(node, &head.method, what, body),
            None => error(404, "no such node"),
        };
    }
    if rest == "ledger" {
        let ledgers: Vec<String> = herd.iter().map(|node| node.ledger().to_json()).collect();
        return Reply::json(200, format!("[{}]", ledgers.join(",")));
    }
    herd.iter()
        .map(|node| one(node, &head.method, rest, body))
        .fold(Reply::json(200, "{}"), |worst, reply| if reply.status > worst.status { reply } else { worst })
}

fn one(node: &Node, method: &str, what: &str, body: &[u8]) -> Reply {
    let (reply, also) = control::act(node.core(), method, &format!("/sim/{what}"), body);
    match also {
        Also::Nothing => {}
        Also::Port => node.look_at_port(),
        Also::Down => node.kill(),
        Also::Up => node.restart(),
    }
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SimArgs,
    }

    fn args(line: &str) -> SimArgs {
        Line::parse_from(std::iter::once("sim").chain(line.split_whitespace())).args
    }

    #[test]
    fn describes_nodes() {
        let specs =
            specs(&args("--nodes 3 --copies 2 --port 9000 --model a --model b=embedding --keep-alive -1")).unwrap();
        assert_eq!(specs.len(), 3);
        assert_eq!(specs[2].listen.port(), 9002);
        assert_eq!(specs[0].keep_alive, None);
        let on: Vec<Vec<&str>> = specs.iter().map(|s| s.models.iter().map(|m| m.name.as_str()).collect()).collect();
        assert_eq!(on, [vec!["a:latest"], vec!["a:latest", "b:latest"], vec!["b:latest"]]);
    }

    #[test]
    fn steers_one_node_or_all() {
        let spec = || NodeSpec::ollama(vec![ModelSpec::chat("m")]);
        let herd = Herd::start(vec![spec(), spec()]).unwrap();
        let ask = |method: &str, path: &str, body: &str| {
            let (head, _) = super::super::http::head(format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())
                .unwrap()
                .unwrap();
            let reply = command(&herd, &head, body.as_bytes());
            (reply.status, String::from_utf8(reply.body).unwrap())
        };
        let reachable = |at: usize| std::net::TcpStream::connect(herd[at].address()).is_ok();
        assert!(ask("GET", "/sim/nodes", "").1.contains(&herd[1].url()));
        assert_eq!(ask("POST", "/sim/1/kill", "").0, 200);
        assert_eq!((reachable(0), reachable(1)), (true, false));
        assert_eq!(ask("POST", "/sim/1/restart", "").0, 200);
        assert_eq!(ask("POST", "/sim/fault", r#"{"harm":"refuse"}"#).0, 200);
        assert_eq!((reachable(0), reachable(1)), (false, false));
        ask("POST", "/sim/clear", "");
        assert_eq!((reachable(0), reachable(1)), (true, true));
        assert_eq!(ask("POST", "/sim/7/kill", "").0, 404);
        assert_eq!(ask("POST", "/sim/0/fault", r#"{"harm":"flood"}"#).0, 400);
        assert!(ask("GET", "/sim/ledger", "").1.starts_with("[{\"connections\":"));
    }

    #[test]
    fn refuses_nonsense() {
        assert!(specs(&args("--model a=flies")).unwrap_err().contains("flies"));
        assert!(specs(&args("--port 65535")).unwrap_err().contains("65535"));
        assert!(time("-1s").is_err());
    }
}
