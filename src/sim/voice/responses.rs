//! OpenAI's responses: named events with rising sequence numbers, keys of streamed events sorted, one a chunk.

use std::fmt::Write as _;

use super::{Chunks, Open, Voice};
use crate::sim::gojson::Value;
use crate::sim::job::Piece;
use crate::sim::text;

impl Voice<'_> {
    fn item_id(&self, offset: u64) -> u64 {
        (self.die >> 20).wrapping_add(offset.wrapping_mul(7919)) % 999_999
    }

    fn responses_id(&self) -> String {
        format!("resp_{}", self.die % 999_999)
    }

    fn message_id(&self) -> String {
        format!("msg_{}", self.item_id(0))
    }

    /// Sends one event; `inside` are its keys up to `sequence_number`, those after it are in `after`.
    fn event(&mut self, out: &mut Chunks, kind: &str, inside: &str, after: &str) {
        let sequence = self.sequence;
        self.sequence += 1;
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: {kind}\ndata: {{{inside},\"sequence_number\":{sequence}{after},\"type\":\"{kind}\"}}\n\n"
            );
        });
    }

    /// The echoed parameters, sorted, around the changing ones.
    fn response_sorted(&self, status: &str, usage: &str) -> String {
        let body = &self.job.body;
        let number = |name: &str, default: &str| match body.get(name) {
            Some(Value::Number(n)) => n.clone(),
            _ => default.to_owned(),
        };
        let done = if status == "completed" { self.now.as_secs().to_string() } else { "null".to_owned() };
        let instructions = or_null(body, "instructions");
        let reasoning = or_null(body, "reasoning");
        format!(
            "{{\"background\":{},\"completed_at\":{done},\"created_at\":{},\"error\":null,\"frequency_penalty\":{},\
             \"id\":\"{}\",\"incomplete_details\":null,\"instructions\":{instructions},\"max_output_tokens\":{},\
             \"max_tool_calls\":null,\"metadata\":{{}},\"model\":{},\"object\":\"response\",\"output\":[{}],\
             \"parallel_tool_calls\":true,\"presence_penalty\":{},\"previous_response_id\":null,\
             \"prompt_cache_key\":null,\"reasoning\":{reasoning},\"safety_identifier\":null,\
             \"service_tier\":\"default\",\"status\":\"{status}\",\"store\":false,\"temperature\":{},\"text\":{},\
             \"tool_choice\":\"auto\",\"tools\":{},\"top_logprobs\":0,\"top_p\":{},\"truncation\":{},\"usage\":{usage}}}",
            background(body),
            self.created,
            number("frequency_penalty", "0"),
            self.responses_id(),
            number("max_output_tokens", "null"),
            text::quoted(&self.job.model),
            if status == "completed" { self.items.join(",") } else { String::new() },
            number("presence_penalty", "0"),
            number("temperature", "1"),
            text_format(body, true),
            tools(body),
            number("top_p", "1"),
            truncation(body),
        )
    }

    fn responses_begin(&mut self, out: &mut Chunks) {
        if self.sequence > 0 {
            return;
        }
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response_sorted("in_progress", "null");
            self.event(out, kind, &format!("\"response\":{response}"), "");
        }
    }

    fn message_begin(&mut self, out: &mut Chunks) {
        if self.open == Open::Text {
            return;
        }
        self.reasoning_end(out);
        let (at, id) = (self.items.len(), self.message_id());
        let item = format!(
            "\"item\":{{\"content\":[],\"id\":\"{id}\",\"role\":\"assistant\",\"status\":\"in_progress\",\
             \"type\":\"message\"}},\"output_index\":{at}"
        );
        self.event(out, "response.output_item.added", &item, "");
        let part = format!(
            "\"content_index\":0,\"item_id\":\"{id}\",\"output_index\":{at},\
             \"part\":{{\"annotations\":[],\"logprobs\":[],\"text\":\"\",\"type\":\"output_text\"}}"
        );
        self.event(out, "response.content_part.added", &part, "");
        self.open = Open::Text;
    }

    fn reasoning_begin(&mut self, out: &mut Chunks) {
        if self.open == Open::Think {
            return;
        }
        let (at, id) = (self.items.len(), self.item_id(1));
        let item =
            format!("\"item\":{{\"id\":\"rs_{id}\",\"summary\":[],\"type\":\"reasoning\"}},\"output_index\":{at}");
        self.event(out, "response.output_item.added", &item, "");
        self.open = Open::Think;
    }

    fn reasoning_end(&mut self, out: &mut Chunks) {
        if self.open != Open::Think {
            return;
        }
        let (at, id, thought) = (self.items.len(), self.item_id(1), text::quoted(&self.thought));
        let inside = format!("\"item_id\":\"rs_{id}\",\"output_index\":{at}");
        let after = format!(",\"summary_index\":0,\"text\":{thought}");
        self.event(out, "response.reasoning_summary_text.done", &inside, &after);
        let item = format!(
            "{{\"encrypted_content\":{thought},\"id\":\"rs_{id}\",\
             \"summary\":[{{\"text\":{thought},\"type\":\"summary_text\"}}],\"type\":\"reasoning\"}}"
        );
        self.event(out, "response.output_item.done", &format!("\"item\":{item},\"output_index\":{at}"), "");
        self.items.push(item);
        self.open = Open::Nothing;
    }

    pub(super) fn responses_piece(&mut self, piece: Piece, out: &mut Chunks) {
        self.responses_begin(out);
        self.keep(piece);
        match piece {
            Piece::Text(token) => {
                self.message_begin(out);
                let (at, id, token) = (self.items.len(), self.message_id(), text::quoted(token));
                let inside = format!(
                    "\"content_index\":0,\"delta\":{token},\"item_id\":\"{id}\",\"logprobs\":[],\"output_index\":{at}"
                );
                self.event(out, "response.output_text.delta", &inside, "");
            }
            Piece::Think(token) => {
                self.reasoning_begin(out);
                let (at, id, token) = (self.items.len(), self.item_id(1), text::quoted(token));
                let inside = format!("\"delta\":{token},\"item_id\":\"rs_{id}\",\"output_index\":{at}");
                self.event(out, "response.reasoning_summary_text.delta", &inside, ",\"summary_index\":0");
            }
            Piece::Tool => self.responses_tool(out),
            Piece::Silent => {}
        }
    }

    fn responses_tool(&mut self, out: &mut Chunks) {
        self.reasoning_end(out);
        let Some(tool) = &self.job.plan.tool else { return };
        let (at, id) = (self.items.len(), format!("fc_{}_0", self.item_id(2)));
        let (name, arguments) = (text::quoted(&tool.name), text::quoted(&tool.arguments));
        let call = tool.id.clone();
        let item = |arguments: &str, status: &str| {
            format!(
                "{{\"arguments\":{arguments},\"call_id\":\"{call}\",\"id\":\"{id}\",\"name\":{name},\
                 \"status\":\"{status}\",\"type\":\"function_call\"}}"
            )
        };
        let added = format!("\"item\":{},\"output_index\":{at}", item("\"\"", "in_progress"));
        self.event(out, "response.output_item.added", &added, "");
        let inside = format!("\"delta\":{arguments},\"item_id\":\"{id}\",\"output_index\":{at}");
        self.event(out, "response.function_call_arguments.delta", &inside, "");
        let inside = format!("\"arguments\":{arguments},\"item_id\":\"{id}\",\"output_index\":{at}");
        self.event(out, "response.function_call_arguments.done", &inside, "");
        let done = item(&arguments, "completed");
        self.event(out, "response.output_item.done", &format!("\"item\":{done},\"output_index\":{at}"), "");
        self.items.push(done);
    }

    fn usage_sorted(&self) -> String {
        let (prompt, output) = self.counts();
        format!(
            "{{\"input_tokens\":{prompt},\"input_tokens_details\":{{\"cached_tokens\":0}},\"output_tokens\":{output},\
             \"output_tokens_details\":{{\"reasoning_tokens\":0}},\"total_tokens\":{}}}",
            prompt + output
        )
    }

    pub(super) fn responses_close(&mut self, out: &mut Chunks) {
        self.responses_begin(out);
        self.reasoning_end(out);
        if self.job.plan.tool.is_none() {
            self.message_begin(out);
            let (at, id, said) = (self.items.len(), self.message_id(), text::quoted(&self.said));
            let inside = format!("\"content_index\":0,\"item_id\":\"{id}\",\"logprobs\":[],\"output_index\":{at}");
            self.event(out, "response.output_text.done", &inside, &format!(",\"text\":{said}"));
            let part = format!("{{\"annotations\":[],\"logprobs\":[],\"text\":{said},\"type\":\"output_text\"}}");
            let inside = format!("\"content_index\":0,\"item_id\":\"{id}\",\"output_index\":{at},\"part\":{part}");
            self.event(out, "response.content_part.done", &inside, "");
            let item = format!(
                "{{\"content\":[{part}],\"id\":\"{id}\",\"role\":\"assistant\",\"status\":\"completed\",\
                 \"type\":\"message\"}}"
            );
            self.event(out, "response.output_item.done", &format!("\"item\":{item},\"output_index\":{at}"), "");
            self.items.push(item);
        }
        let response = self.response_sorted("completed", &self.usage_sorted());
        self.event(out, "response.completed", &format!("\"response\":{response}"), "");
    }

    pub(super) fn responses_whole(&mut self) -> String {
        let body = &self.job.body;
        let number = |name: &str, default: &str| match body.get(name) {
            Some(Value::Number(n)) => n.clone(),
            _ => default.to_owned(),
        };
        let mut items = Vec::new();
        if !self.thought.is_empty() {
            let (id, thought) = (self.item_id(1), text::quoted(&self.thought));
            items.push(format!(
                "{{\"id\":\"rs_{id}\",\"type\":\"reasoning\",\
                 \"summary\":[{{\"type\":\"summary_text\",\"text\":{thought}}}],\"encrypted_content\":{thought}}}"
            ));
        }
        match &self.job.plan.tool {
            Some(tool) => items.push(format!(
                "{{\"id\":\"fc_{}_0\",\"type\":\"function_call\",\"status\":\"completed\",\"call_id\":\"{}\",\
                 \"name\":{},\"arguments\":{}}}",
                self.item_id(2),
                tool.id,
                text::quoted(&tool.name),
                text::quoted(&tool.arguments)
            )),
            None => items.push(format!(
                "{{\"id\":\"{}\",\"type\":\"message\",\"status\":\"completed\",\"role\":\"assistant\",\
                 \"content\":[{{\"type\":\"output_text\",\"text\":{},\"annotations\":[],\"logprobs\":[]}}]}}",
                self.message_id(),
                text::quoted(&self.said)
            )),
        }
        let (prompt, output) = self.counts();
        let total = prompt + output;
        format!(
            "{{\"id\":\"{}\",\"object\":\"response\",\"created_at\":{},\"completed_at\":{},\"status\":\"completed\",\
             \"incomplete_details\":null,\"model\":{},\"previous_response_id\":null,\"instructions\":{},\
             \"output\":[{}],\"error\":null,\"tools\":{},\"tool_choice\":\"auto\",\"truncation\":{},\
             \"parallel_tool_calls\":true,\"text\":{},\"top_p\":{},\"presence_penalty\":{},\"frequency_penalty\":{},\
             \"top_logprobs\":0,\"temperature\":{},\"reasoning\":{},\"usage\":{{\"input_tokens\":{prompt},\
             \"output_tokens\":{output},\"total_tokens\":{total},\"input_tokens_details\":{{\"cached_tokens\":0}},\
             \"output_tokens_details\":{{\"reasoning_tokens\":0}}}},\"max_output_tokens\":{},\"max_tool_calls\":null,\
             \"store\":false,\"background\":{},\"service_tier\":\"default\",\"metadata\":{{}},\
             \"safety_identifier\":null,\"prompt_cache_key\":null}}\n",
            self.responses_id(),
            self.created,
            self.now.as_secs(),
            text::quoted(&self.job.model),
            or_null(body, "instructions"),
            items.join(","),
            tools(body),
            truncation(body),
            text_format(body, false),
            number("top_p", "1"),
            number("presence_penalty", "0"),
            number("frequency_penalty", "0"),
            number("temperature", "1"),
            or_null(body, "reasoning"),
            number("max_output_tokens", "null"),
            background(body),
        )
    }
}

fn or_null(body: &Value, name: &str) -> String {
    let mut out = String::new();
    body.get(name).unwrap_or(&Value::Null).write(&mut out, true);
    out
}

fn background(body: &Value) -> bool {
    body.get("background").and_then(Value::as_bool).unwrap_or(false)
}

fn truncation(body: &Value) -> String {
    match body.str("truncation") {
        "" => "\"disabled\"".to_owned(),
        other => text::quoted(other),
    }
}

/// The text format; its schema keeps the order it came in.
fn text_format(body: &Value, sorted: bool) -> String {
    let Some(format) = body.get("text").and_then(|t| t.get("format")) else {
        return "{\"format\":{\"type\":\"text\"}}".to_owned();
    };
    let mut fields: Vec<&(String, Value)> = format.fields().iter().collect();
    if sorted {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
    }
    let mut out = "{\"format\":{".to_owned();
    for (i, (name, value)) in fields.into_iter().enumerate() {
        out.push_str(if i > 0 { "," } else { "" });
        text::quote(&mut out, name);
        out.push(':');
        value.write(&mut out, false);
    }
    out.push_str("}}");
    out
}

/// The tools, each a struct in Go: keys sorted in events, `strict` always there.
fn tools(body: &Value) -> String {
    let list = body.get("tools").and_then(Value::as_array).unwrap_or_default();
    let mut out = "[".to_owned();
    for (i, tool) in list.iter().enumerate() {
        out.push_str(if i > 0 { "," } else { "" });
        let mut tool = tool.clone();
        if let Value::Object(fields) = &mut tool
            && !fields.iter().any(|(name, _)| name == "strict")
        {
            fields.push(("strict".to_owned(), Value::Null));
        }
        tool.write(&mut out, true);
    }
    out.push(']');
    out
}
