//! The native dialect: one JSON object a line, the last one with the counts.

use std::fmt::Write as _;

use super::{Chunks, End, Voice, logprob};
use crate::sim::job::{Dialect, Piece};
use crate::sim::text;

impl Voice<'_> {
    fn ollama_begin(&self, line: &mut String) {
        line.push_str("{\"model\":");
        text::quote(line, &self.job.model);
        line.push_str(",\"created_at\":\"");
        text::rfc3339(line, self.now);
        line.push('"');
    }

    fn ollama_message(&self, line: &mut String, said: &str, thought: &str, tool: bool) {
        if self.job.dialect == Dialect::Generate {
            line.push_str(",\"response\":");
            text::quote(line, said);
            if !thought.is_empty() {
                line.push_str(",\"thinking\":");
                text::quote(line, thought);
            }
            return;
        }
        line.push_str(",\"message\":{\"role\":\"assistant\",\"content\":");
        text::quote(line, said);
        if !thought.is_empty() {
            line.push_str(",\"thinking\":");
            text::quote(line, thought);
        }
        if let Some(tool) = self.job.plan.tool.as_ref().filter(|_| tool) {
            let _ = write!(line, ",\"tool_calls\":[{{\"id\":\"{}\",\"function\":{{\"index\":0,\"name\":", tool.id);
            text::quote(line, &tool.name);
            let _ = write!(line, ",\"arguments\":{}}}}}]", tool.arguments);
        }
        line.push('}');
    }

    pub(super) fn ollama_piece(&mut self, piece: Piece, out: &mut Chunks) {
        out.chunk(|line| {
            self.ollama_begin(line);
            let (said, thought) = match piece {
                Piece::Text(token) => (token, ""),
                Piece::Think(token) => ("", token),
                Piece::Silent | Piece::Tool => ("", ""),
            };
            self.ollama_message(line, said, thought, piece == Piece::Tool);
            line.push_str(",\"done\":false");
            if let (Some(top), Piece::Text(token) | Piece::Think(token)) = (self.job.logprobs, piece) {
                line.push_str(",\"logprobs\":[");
                logprob(line, token, top);
                line.push(']');
            }
            line.push_str("}\n");
        });
    }

    pub(super) fn ollama_close(&mut self, end: &End, out: &mut Chunks) {
        out.chunk(|line| {
            self.ollama_begin(line);
            self.ollama_message(line, "", "", false);
            self.ollama_end(line, end);
            line.push_str("}\n");
        });
    }

    pub(super) fn ollama_whole(&self, end: &End) -> String {
        let mut line = String::new();
        self.ollama_begin(&mut line);
        self.ollama_message(&mut line, &self.said, &self.thought, true);
        self.ollama_end(&mut line, end);
        line.push('}');
        line
    }

    fn ollama_end(&self, line: &mut String, end: &End) {
        let (prompt, output) = self.counts();
        let _ = write!(line, ",\"done\":true,\"done_reason\":\"{}\"", self.job.plan.reason);
        let chat = self.job.dialect == Dialect::Chat;
        if chat {
            self.ollama_logprobs(line);
        }
        if !chat && !self.job.raw {
            line.push_str(",\"context\":[1");
            for at in 1..prompt + output {
                let _ = write!(line, ",{}", text::token_id(at));
            }
            line.push(']');
        }
        let mut count = |name: &str, value: u128| {
            if value > 0 {
                let _ = write!(line, ",\"{name}\":{value}");
            }
        };
        count("total_duration", end.total.as_nanos());
        count("load_duration", end.load.as_nanos());
        count("prompt_eval_count", u128::from(prompt));
        count("prompt_eval_duration", end.prefill.as_micros() * 1000);
        count("eval_count", u128::from(output));
        count("eval_duration", end.eval.as_micros() * 1000);
        if !chat {
            self.ollama_logprobs(line);
        }
    }

    /// Log probabilities of a whole answer.
    fn ollama_logprobs(&self, line: &mut String) {
        let Some(top) = self.job.logprobs.filter(|_| !self.job.stream) else { return };
        line.push_str(",\"logprobs\":[");
        self.all_logprobs(line, top);
        line.push(']');
    }

    /// Log probabilities of every shown token, with commas.
    pub(super) fn all_logprobs(&self, line: &mut String, top: u32) {
        let mut comma = "";
        for at in 0..self.job.plan.total {
            if let Piece::Text(token) | Piece::Think(token) = self.job.plan.piece(at) {
                line.push_str(comma);
                logprob(line, token, top);
                comma = ",";
            }
        }
    }
}
