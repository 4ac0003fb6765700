//! OpenAI's chat and text completions: data events, the last of them in one chunk together.

use std::fmt::Write as _;

use super::{Chunks, Voice, logprob};
use crate::sim::job::{Piece, Tool};
use crate::sim::text;

fn usage(line: &mut String, prompt: u32, output: u32) {
    let total = prompt + output;
    let _ = write!(
        line,
        "\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":{output},\"total_tokens\":{total}}}"
    );
}

fn tool_calls(line: &mut String, tool: &Tool) {
    let _ = write!(line, ",\"tool_calls\":[{{\"id\":\"{}\",\"index\":0,\"type\":\"function\",\"function\":{{", tool.id);
    line.push_str("\"name\":");
    text::quote(line, &tool.name);
    line.push_str(",\"arguments\":");
    text::quote(line, &tool.arguments);
    line.push_str("}}]");
}

impl Voice<'_> {
    fn v1_begin(&self, line: &mut String, object: &str, model: &str) {
        let _ = write!(line, "{{\"id\":\"chatcmpl-{}\",\"object\":\"{object}\"", self.die % 999);
        let _ = write!(line, ",\"created\":{},\"model\":", self.created);
        text::quote(line, model);
        line.push_str(",\"system_fingerprint\":\"fp_ollama\",\"choices\":[");
    }

    pub(super) fn v1_chat_piece(&mut self, piece: Piece, out: &mut Chunks) {
        out.chunk(|line| {
            line.push_str("data: ");
            self.v1_begin(line, "chat.completion.chunk", &self.job.model);
            line.push_str("{\"index\":0,\"delta\":{");
            line.push_str(if self.first { "\"role\":\"assistant\",\"content\":" } else { "\"content\":" });
            match piece {
                Piece::Text(token) => text::quote(line, token),
                Piece::Think(token) => {
                    line.push_str("\"\",\"reasoning\":");
                    text::quote(line, token);
                }
                Piece::Silent | Piece::Tool => line.push_str("\"\""),
            }
            if let Some(tool) = self.job.plan.tool.as_ref().filter(|_| piece == Piece::Tool) {
                tool_calls(line, tool);
            }
            line.push_str("},\"finish_reason\":null");
            if let (Some(top), Piece::Text(token) | Piece::Think(token)) = (self.job.logprobs, piece) {
                line.push_str(",\"logprobs\":{\"content\":[");
                logprob(line, token, top);
                line.push_str("]}");
            }
            line.push_str("}]}\n\n");
        });
    }

    pub(super) fn v1_chat_close(&mut self, out: &mut Chunks) {
        let (prompt, output) = self.counts();
        out.chunk(|line| {
            line.push_str("data: ");
            self.v1_begin(line, "chat.completion.chunk", &self.job.model);
            let reason = self.finish_reason();
            let _ = write!(line, "{{\"index\":0,\"delta\":{{}},\"finish_reason\":\"{reason}\"}}]}}\n\n");
            if self.job.include_usage {
                line.push_str("data: ");
                self.v1_begin(line, "chat.completion.chunk", &self.job.model);
                line.push_str("],");
                usage(line, prompt, output);
                line.push_str("}\n\n");
            }
            line.push_str("data: [DONE]\n\n");
        });
    }

    pub(super) fn v1_chat_fail(&mut self, out: &mut Chunks) {
        out.chunk(|line| {
            line.push_str("data: ");
            self.v1_begin(line, "chat.completion.chunk", "");
            line.push_str("{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":null}]}\n\n");
        });
    }

    pub(super) fn v1_chat_whole(&self) -> String {
        let (prompt, output) = self.counts();
        let mut line = String::new();
        self.v1_begin(&mut line, "chat.completion", &self.job.model);
        line.push_str("{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":");
        text::quote(&mut line, &self.said);
        if !self.thought.is_empty() {
            line.push_str(",\"reasoning\":");
            text::quote(&mut line, &self.thought);
        }
        if let Some(tool) = &self.job.plan.tool {
            tool_calls(&mut line, tool);
        }
        let _ = write!(line, "}},\"finish_reason\":\"{}\"", self.finish_reason());
        if let Some(top) = self.job.logprobs {
            line.push_str(",\"logprobs\":{\"content\":[");
            self.all_logprobs(&mut line, top);
            line.push_str("]}");
        }
        line.push_str("}],");
        usage(&mut line, prompt, output);
        line.push_str("}\n");
        line
    }

    fn v1_completion_event(&self, line: &mut String, choice: Option<(&str, Option<&str>)>, model: &str) {
        let _ = write!(line, "data: {{\"id\":\"cmpl-{}\",\"object\":\"text_completion\"", self.die % 999);
        let _ = write!(line, ",\"created\":{},\"choices\":[", self.now.as_secs());
        if let Some((said, reason)) = choice {
            line.push_str("{\"text\":");
            text::quote(line, said);
            line.push_str(",\"index\":0,\"finish_reason\":");
            match reason {
                Some(reason) => text::quote(line, reason),
                None => line.push_str("null"),
            }
            line.push('}');
        }
        line.push_str("],\"model\":");
        text::quote(line, model);
        line.push_str(",\"system_fingerprint\":\"fp_ollama\"");
        if self.job.include_usage {
            let (prompt, output) = if choice.is_some() { (0, 0) } else { self.counts() };
            line.push(',');
            usage(line, prompt, output);
        }
        line.push_str("}\n\n");
    }

    pub(super) fn v1_completion_piece(&mut self, piece: Piece, out: &mut Chunks) {
        let said = if let Piece::Text(token) = piece { token } else { "" };
        out.chunk(|line| self.v1_completion_event(line, Some((said, None)), &self.job.model));
    }

    pub(super) fn v1_completion_close(&mut self, out: &mut Chunks) {
        out.chunk(|line| {
            self.v1_completion_event(line, Some(("", Some(self.job.plan.reason))), &self.job.model);
            if self.job.include_usage {
                self.v1_completion_event(line, None, &self.job.model);
            }
            line.push_str("data: [DONE]\n\n");
        });
    }

    pub(super) fn v1_completion_fail(&mut self, out: &mut Chunks) {
        out.chunk(|line| self.v1_completion_event(line, Some(("", None)), ""));
    }

    pub(super) fn v1_completion_whole(&self) -> String {
        let (prompt, output) = self.counts();
        let mut line = String::new();
        let _ = write!(line, "{{\"id\":\"cmpl-{}\",\"object\":\"text_completion\"", self.die % 999);
        let _ = write!(line, ",\"created\":{},\"model\":", self.created);
        text::quote(&mut line, &self.job.model);
        line.push_str(",\"system_fingerprint\":\"fp_ollama\",\"choices\":[{\"text\":");
        text::quote(&mut line, &self.said);
        let _ = write!(line, ",\"index\":0,\"finish_reason\":\"{}\"}}],", self.job.plan.reason);
        usage(&mut line, prompt, output);
        line.push_str("}\n");
        line
    }
}
