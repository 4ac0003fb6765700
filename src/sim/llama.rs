//! A simulated llama.cpp server: one model, loaded from the start, OpenAI's routes and its own habits.
//!
//! Called by `serve.rs`. The habits are what a proxy trips over: `Keep-Alive` limits that are really meant, errors
//! that close the connection, `timings` unasked, the request's `model` ignored.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::ask::{self, By, Fail, Wanted};
use super::ask_v1;
use super::conn::Conn;
use super::fault::{Harm, Moment};
use super::gojson::Value;
use super::host::{Core, Got};
use super::http::{self, Head, Length, Reply};
use super::infer::{Next, Turn};
use super::job::{Bounds, Dialect, Job, Piece, Plan};
use super::ledger::{Ending, Tokens};
use super::sched::{Ask, Cancel, Launch, Refusal};
use super::spec::{Capability, ModelSpec};
use super::text;
use super::voice::Chunks;

/// An idle connection is closed after this time.
pub(super) const IDLE: Duration = Duration::from_secs(5);
/// Requests that one connection serves.
const MOST: u32 = 100;

/// Handles one request.
pub(super) async fn handle(core: &Arc<Core>, conn: &mut Conn, head: &Head, served: u32) -> Next {
    let (path, _) = head.path();
    let route = ROUTES.iter().find(|(_, r)| *r == path).copied();
    let mut turn = Turn::new(core, conn, head, route.map_or("other", |(_, r)| r));
    let body = match head.length {
        Length::Sized(0) => super::conn::Body::default(),
        _ => match turn.conn.body(head).await {
            Ok(body) => body,
            Err(_) => return turn.gone(Cancel::Aborted),
        },
    };
    turn.stay.read_at = core.now();
    let Some(model) = core.with(|s| s.models.values().next().cloned()) else {
        return error(&mut turn, served, 503, "Loading model", "unavailable_error").await;
    };
    let inference = matches!(route, Some(("POST", _)));
    let harms = core.harms(Moment::Asked, turn.stay.route, inference, Some(&model.name));
    for harm in harms {
        match harm {
            Harm::Status(status, text) => return error(&mut turn, served, status, &text, "server_error").await,
            Harm::Busy => return error(&mut turn, served, 503, "Loading model", "unavailable_error").await,
            other => {
                if let Some(next) = turn.suffer(vec![other], Dialect::V1Chat, false).await {
                    return next;
                }
            }
        }
    }
    let dialect = match (head.method.as_str(), path.as_str()) {
        ("GET", "/health" | "/v1/health") => {
            return json(&mut turn, served, 200, "{\"status\":\"ok\"}".to_owned()).await;
        }
        ("GET", "/v1/models" | "/models") => return json(&mut turn, served, 200, models(core, &model)).await,
        ("GET", "/props") => return json(&mut turn, served, 200, props(core, &model)).await,
        ("POST", "/v1/chat/completions" | "/chat/completions") => Dialect::V1Chat,
        ("POST", "/v1/completions") => Dialect::V1Completions,
        ("POST", "/v1/embeddings") => Dialect::V1Embeddings,
        ("HEAD", _) => {
            let mut reply = marked(Reply::new(415, "", vec![0; 79]), served);
            reply.close = true;
            return turn.answer(Ending::Refused, Tokens::default(), reply).await;
        }
        _ => return error(&mut turn, served, 404, "File Not Found", "not_found_error").await,
    };
    let wanted = match ask::decode(Dialect::V1Chat, &body.bytes, body.broken).and_then(|v| ask_v1::read(dialect, v)) {
        Ok(wanted) => wanted,
        Err(fail) => return error(&mut turn, served, 400, &fail.text, "invalid_request_error").await,
    };
    serve(&mut turn, served, &wanted, &model).await
}

const ROUTES: [(&str, &str); 9] = [
    ("GET", "/health"),
    ("GET", "/v1/health"),
    ("GET", "/v1/models"),
    ("GET", "/models"),
    ("GET", "/props"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
];

/// Adds what the server says of every answer.
fn marked(mut reply: Reply, served: u32) -> Reply {
    reply.headers.push(("Access-Control-Allow-Origin", String::new()));
    reply.headers.push(("Server", "llama.cpp".to_owned()));
    if served >= MOST {
        reply.close = true;
    } else {
        reply.headers.push(("Keep-Alive", format!("timeout={}, max={MOST}", IDLE.as_secs())));
    }
    reply
}

async fn json(turn: &mut Turn<'_>, served: u32, status: u16, body: String) -> Next {
    let reply = marked(Reply::new(status, "application/json; charset=utf-8", body), served);
    turn.answer(Ending::Done, Tokens::default(), reply).await
}

async fn error(turn: &mut Turn<'_>, served: u32, status: u16, message: &str, kind: &str) -> Next {
    let message = text::quoted(message);
    let body = format!("{{\"error\":{{\"code\":{status},\"message\":{message},\"type\":\"{kind}\"}}}}");
    let mut reply = marked(Reply::new(status, "application/json; charset=utf-8", body), served);
    reply.headers.retain(|(name, _)| *name != "Keep-Alive");
    reply.close = true;
    let ending = if status == 503 { Ending::Busy } else { Ending::Refused };
    let ending = if status == 500 { Ending::Failed } else { ending };
    turn.answer(ending, Tokens::default(), reply).await
}

fn models(core: &Core, model: &ModelSpec) -> String {
    let id = text::quoted(&model.name);
    let (context, size) = (core.spec.context, model.size);
    let meta = format!(
        "{{\"vocab_type\":2,\"n_vocab\":49152,\"n_ctx\":{context},\"n_ctx_train\":{},\"n_embd\":{},\
         \"n_params\":134515008,\"size\":{size}}}",
        model.context, model.dimensions
    );
    let word = if model.only_embeds() { "embedding" } else { "completion" };
    format!(
        "{{\"models\":[{{\"name\":{id},\"model\":{id},\"modified_at\":\"\",\"size\":\"\",\"digest\":\"\",\
         \"type\":\"model\",\"description\":\"\",\"tags\":[\"\"],\"capabilities\":[\"{word}\"],\"parameters\":\"\",\
         \"details\":{{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":\"\",\"families\":[\"\"],\
         \"parameter_size\":\"\",\"quantization_level\":\"\"}}}}],\"object\":\"list\",\
         \"data\":[{{\"id\":{id},\"aliases\":[{id}],\"tags\":[],\"object\":\"model\",\"created\":{},\
         \"owned_by\":\"llamacpp\",\"meta\":{meta}}}]}}",
        core.unix().as_secs()
    )
}

fn props(core: &Core, model: &ModelSpec) -> String {
    format!(
        "{{\"default_generation_settings\":{{\"id\":0,\"id_task\":-1,\"n_ctx\":{},\"is_processing\":false}},\
         \"total_slots\":{},\"model_alias\":{},\"model_path\":{},\"modalities\":{{\"vision\":false,\"audio\":false}},\
         \"chat_template\":\"\",\"bos_token\":\"\",\"eos_token\":\"\",\"build_info\":\"b10488-sim\",\"is_sleeping\":false}}",
        core.spec.context,
        core.spec.num_parallel,
        text::quoted(&model.name),
        text::quoted(&format!("{}/{}.gguf", core.spec.models_dir, model.name))
    )
}

async fn serve(turn: &mut Turn<'_>, served: u32, wanted: &Wanted, model: &ModelSpec) -> Next {
    turn.stay.enter(&model.name);
    if wanted.dialect == Dialect::V1Embeddings && !model.can(Capability::Embedding) {
        let text = "This server does not support embeddings. Start it with `--embeddings`";
        return error(turn, served, 501, text, "not_supported_error").await;
    }
    let ask = Ask {
        weights: model.weights.as_str().into(),
        name: model.name.as_str().into(),
        digest: model.digest.as_str().into(),
        size: model.size,
        slots: turn.core.spec.num_parallel,
        launch: Launch::automatic(turn.core.spec.context),
        keep_alive: Some(None),
        load_time: Duration::ZERO,
        load_fails: None,
        wants_slot: true,
    };
    match turn.core.runner(turn.conn, &mut turn.stay, ask).await {
        Got::Runner(_) => {}
        // This server loses no sockets: a client that goes is only gone.
        Got::Gone(_) => return turn.gone(Cancel::Aborted),
        Got::Busy | Got::Refused(Refusal::RunnerGone | Refusal::LoadFailed(_)) => {
            return error(turn, served, 503, "Loading model", "unavailable_error").await;
        }
    }
    if wanted.dialect == Dialect::V1Embeddings {
        return embed(turn, served, wanted, model).await;
    }
    let job = match job(turn.core, wanted, model) {
        Ok(job) => match turn.slow {
            Some(pace) => Job { pace, burst: 1, ..job },
            None => job,
        },
        Err(fail) => return error(turn, served, fail.status, &fail.text, "exceed_context_size_error").await,
    };
    let die = turn.core.with(|s| s.faults.roll());
    let speech = Speech { job: &job, alias: &model.name, die, created: turn.core.unix().as_secs() };
    if job.stream { stream(turn, served, &speech).await } else { whole(turn, served, &speech).await }
}

fn job(core: &Core, wanted: &Wanted, model: &ModelSpec) -> Result<Job, Fail> {
    let spec = &core.spec;
    let sim = wanted.body.get("sim").cloned().unwrap_or(Value::Null);
    let knob = |name: &str| sim.get(name).and_then(Value::as_i64).and_then(|n| u32::try_from(n).ok());
    let pause =
        |name: &str| sim.get(name).and_then(Value::as_f64).map(|ms| Duration::from_secs_f64(ms.max(0.0) / 1000.0));
    let prompt = knob("prompt").unwrap_or(wanted.prompt() + model.template_tokens);
    if prompt > spec.context {
        let text = format!(
            "request ({prompt} tokens) exceeds the available context size ({} tokens), try increasing it",
            spec.context
        );
        return Err(Fail::new(By::Handler, 400, text));
    }
    let asked = wanted.body.get("max_completion_tokens").and_then(Value::as_i64).or(wanted.limit);
    let plan = Plan::new(Bounds {
        limit: knob("tokens").or(asked.and_then(|n| u32::try_from(n).ok())),
        usual: model.output_tokens.unwrap_or(spec.output_tokens),
        stops: wanted.stops.clone(),
        ..Bounds::default()
    });
    Ok(Job {
        dialect: wanted.dialect,
        model: model.name.clone(),
        stream: wanted.stream,
        include_usage: wanted.include_usage,
        prompt,
        plan,
        logprobs: None,
        raw: false,
        chars: wanted.chars,
        web_search: false,
        text: false,
        body: Value::Null,
        prefill: pause("first_ms").unwrap_or_else(|| spec.real(spec.prompt_time * prompt)),
        pace: pause("pace_ms").unwrap_or_else(|| spec.real(spec.token_time)),
        burst: knob("burst").unwrap_or(spec.burst),
    })
}

/// One answer in this server's words: keys sorted, as its JSON library writes them.
struct Speech<'a> {
    job: &'a Job,
    alias: &'a str,
    die: u64,
    created: u64,
}

impl Speech<'_> {
    fn tail(&self, out: &mut String, object: &str) {
        let chat = if self.job.dialect == Dialect::V1Chat { "chatcmpl" } else { "cmpl" };
        let (created, alias) = (self.created, text::quoted(self.alias));
        let _ = write!(
            out,
            ",\"created\":{created},\"model\":{alias},\"system_fingerprint\":\"b10488-sim\",\"object\":\"{object}\""
        );
        self.usage_before_id(out);
        let _ = write!(out, ",\"id\":\"{chat}-{:016x}{:016x}\"", self.die, self.die.rotate_left(17));
    }

    fn usage_before_id(&self, out: &mut String) {
        if !self.job.stream {
            out.push(',');
            self.usage(out);
        }
    }

    /// Half of every prompt counts as cached, so that nobody takes `prompt_n` for the whole.
    fn cached(&self) -> u32 {
        self.job.prompt / 2
    }

    fn usage(&self, out: &mut String) {
        let (prompt, output) = (self.job.prompt, self.job.plan.total);
        let _ = write!(
            out,
            "\"usage\":{{\"completion_tokens\":{output},\"prompt_tokens\":{prompt},\"total_tokens\":{},\
             \"prompt_tokens_details\":{{\"cached_tokens\":{}}}}}",
            prompt + output,
            self.cached()
        );
    }

    fn timings(&self, out: &mut String) {
        let (cached, output) = (self.cached(), self.job.plan.total);
        let fresh = self.job.prompt - cached;
        let _ = write!(
            out,
            ",\"timings\":{{\"cache_n\":{cached},\"prompt_n\":{fresh},\"prompt_ms\":10.5,\
             \"prompt_per_token_ms\":1.5,\"prompt_per_second\":95.2,\"predicted_n\":{output},\"predicted_ms\":20.5,\
             \"predicted_per_token_ms\":2.5,\"predicted_per_second\":48.7}}"
        );
    }

    fn event(&self, line: &mut String, choices: &str, usage: bool, timings: bool) {
        let chat = self.job.dialect == Dialect::V1Chat;
        let _ = write!(line, "data: {{\"choices\":[{choices}]");
        self.tail(line, if chat { "chat.completion.chunk" } else { "text_completion" });
        if usage {
            line.push(',');
            self.usage(line);
        }
        if timings {
            self.timings(line);
        }
        line.push_str("}\n\n");
    }

    fn piece(&self, token: &str) -> String {
        let token = text::quoted(token);
        match self.job.dialect {
            Dialect::V1Chat => format!("{{\"finish_reason\":null,\"index\":0,\"delta\":{{\"content\":{token}}}}}"),
            _ => format!("{{\"text\":{token},\"index\":0,\"logprobs\":null,\"finish_reason\":null}}"),
        }
    }

    fn close(&self, out: &mut Chunks) {
        let reason = self.job.plan.reason;
        let choice = match self.job.dialect {
            Dialect::V1Chat => format!("{{\"finish_reason\":\"{reason}\",\"index\":0,\"delta\":{{}}}}"),
            _ => format!("{{\"text\":\"\",\"index\":0,\"logprobs\":null,\"finish_reason\":\"{reason}\"}}"),
        };
        out.chunk(|line| self.event(line, &choice, false, !self.job.include_usage));
        if self.job.include_usage {
            out.chunk(|line| self.event(line, "", true, true));
        }
        out.chunk(|line| line.push_str("data: [DONE]\n\n"));
    }

    fn whole(&self) -> String {
        let said: String = (0..self.job.plan.total)
            .filter_map(|at| if let Piece::Text(token) = self.job.plan.piece(at) { Some(token) } else { None })
            .collect();
        let (said, reason) = (text::quoted(&said), self.job.plan.reason);
        let chat = self.job.dialect == Dialect::V1Chat;
        let mut out = if chat {
            format!(
                "{{\"choices\":[{{\"finish_reason\":\"{reason}\",\"index\":0,\
                 \"message\":{{\"role\":\"assistant\",\"content\":{said}}}}}]"
            )
        } else {
            format!("{{\"choices\":[{{\"text\":{said},\"index\":0,\"logprobs\":null,\"finish_reason\":\"{reason}\"}}]")
        };
        self.tail(&mut out, if chat { "chat.completion" } else { "text_completion" });
        self.timings(&mut out);
        out.push('}');
        out
    }
}

fn tokens_of(job: &Job) -> Tokens {
    Tokens { prompt: u64::from(job.prompt), output: u64::from(job.plan.total) }
}

async fn whole(turn: &mut Turn<'_>, served: u32, speech: &Speech<'_>) -> Next {
    let job = speech.job;
    let spoken = if job.plan.total == 0 { Duration::ZERO } else { job.due(job.plan.total - 1) };
    if turn.wait(Instant::now() + job.prefill + spoken).await.is_err() {
        return turn.gone(Cancel::Aborted);
    }
    let reply = marked(Reply::new(200, "application/json; charset=utf-8", speech.whole()), served);
    turn.answer(Ending::Done, tokens_of(job), reply).await
}

async fn stream(turn: &mut Turn<'_>, served: u32, speech: &Speech<'_>) -> Next {
    let job = speech.job;
    let start = Instant::now() + job.prefill;
    if turn.wait(start).await.is_err() {
        return turn.gone(Cancel::Aborted);
    }
    let mut headers = marked(Reply::new(200, "text/event-stream", Vec::new()), served).headers;
    headers.push(("X-Accel-Buffering", "no".to_owned()));
    if served >= MOST {
        headers.push(("Connection", "close".to_owned()));
    }
    let mut out = Chunks::new(true);
    out.buf = http::stream_head(&mut headers, turn.head, turn.core.unix());
    if job.dialect == Dialect::V1Chat {
        let first = "{\"finish_reason\":null,\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}";
        out.chunk(|line| speech.event(line, first, false, false));
    }
    let mut at = 0;
    loop {
        let until = super::infer::due(job, at, start);
        if until == at && at < job.plan.total {
            let timer = sleep_until(start + job.due(at));
            tokio::select! {
                biased;
                () = turn.conn.gone() => return turn.gone(Cancel::Aborted),
                () = timer => continue,
            }
        }
        for place in at..until {
            if let Piece::Text(token) = job.plan.piece(place) {
                let choice = speech.piece(token);
                out.chunk(|line| speech.event(line, &choice, false, false));
            }
        }
        at = until;
        let last = at == job.plan.total;
        if last {
            speech.close(&mut out);
            out.finish();
            turn.stay.end(Ending::Done, tokens_of(job));
        }
        let sent = turn.send(&out.buf).await;
        if sent.is_err() || last {
            let next = turn.after(sent);
            return if next == Next::Keep && served >= MOST { Next::Close } else { next };
        }
        out.buf.clear();
    }
}

async fn embed(turn: &mut Turn<'_>, served: u32, wanted: &Wanted, model: &ModelSpec) -> Next {
    let prompt: u32 = wanted.words.iter().sum();
    let reply = super::embed::openai_reply(wanted, model, prompt);
    let reply = marked(reply, served);
    turn.answer(Ending::Done, Tokens { prompt: u64::from(prompt), output: 0 }, reply).await
}
