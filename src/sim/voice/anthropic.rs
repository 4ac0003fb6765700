//! Anthropic's messages: named events, one a chunk.

use std::fmt::Write as _;

use super::{Chunks, Open, Voice};
use crate::sim::job::Piece;
use crate::sim::text;

impl Voice<'_> {
    fn messages_id(&self) -> String {
        format!("msg_{:016x}{:08x}", self.die, self.die.wrapping_mul(31) >> 32)
    }

    fn messages_block(&mut self, open: Open, out: &mut Chunks) {
        if self.open == open {
            return;
        }
        self.messages_stop_block(out);
        let index = self.items.len();
        out.chunk(|line| {
            let block = match open {
                Open::Think => "{\"type\":\"thinking\",\"thinking\":\"\"}",
                Open::Text | Open::Nothing => "{\"type\":\"text\",\"text\":\"\"}",
            };
            let _ = write!(
                line,
                "event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":{index},\
                 \"content_block\":{block}}}\n\n"
            );
        });
        self.open = open;
    }

    fn messages_stop_block(&mut self, out: &mut Chunks) {
        if self.open == Open::Nothing {
            return;
        }
        let index = self.items.len();
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":{index}}}\n\n"
            );
        });
        self.items.push(String::new());
        self.open = Open::Nothing;
    }

    fn messages_start(&mut self, out: &mut Chunks) {
        let id = self.messages_id();
        let guess = self.job.chars.div_ceil(4);
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"{id}\",\
                 \"type\":\"message\",\"role\":\"assistant\",\"model\":"
            );
            text::quote(line, &self.job.model);
            let _ = write!(line, ",\"content\":[],\"usage\":{{\"input_tokens\":{guess},\"output_tokens\":0}}}}}}\n\n");
        });
    }

    pub(super) fn messages_piece(&mut self, piece: Piece, out: &mut Chunks) {
        if self.first {
            self.messages_start(out);
        }
        let (open, delta, key, token) = match piece {
            Piece::Think(token) => (Open::Think, "thinking_delta", "thinking", token),
            Piece::Text(token) => (Open::Text, "text_delta", "text", token),
            Piece::Tool => return self.messages_tool(out),
            Piece::Silent => return,
        };
        self.messages_block(open, out);
        let index = self.items.len();
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{index},\
                 \"delta\":{{\"type\":\"{delta}\",\"{key}\":"
            );
            text::quote(line, token);
            line.push_str("}}\n\n");
        });
    }

    fn messages_tool(&mut self, out: &mut Chunks) {
        self.messages_stop_block(out);
        let Some(tool) = &self.job.plan.tool else { return };
        let index = self.items.len();
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":{index},\
                 \"content_block\":{{\"type\":\"tool_use\",\"id\":\"{}\",\"name\":",
                tool.id
            );
            text::quote(line, &tool.name);
            line.push_str(",\"input\":{}}}\n\n");
        });
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":{index},\
                 \"delta\":{{\"type\":\"input_json_delta\",\"partial_json\":"
            );
            text::quote(line, &tool.arguments);
            line.push_str("}}\n\n");
        });
        self.open = Open::Text;
        self.messages_stop_block(out);
    }

    fn stop_reason(&self) -> &'static str {
        match self.job.plan.reason {
            _ if self.job.plan.tool.is_some() => "tool_use",
            "length" => "max_tokens",
            _ => "end_turn",
        }
    }

    pub(super) fn messages_close(&mut self, out: &mut Chunks) {
        if self.first {
            self.messages_start(out);
        }
        self.messages_stop_block(out);
        let (prompt, output) = self.counts();
        let reason = self.stop_reason();
        out.chunk(|line| {
            let _ = write!(
                line,
                "event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"{reason}\"}},\
                 \"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":{output}}}}}\n\n"
            );
        });
        out.chunk(|line| line.push_str("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    }

    pub(super) fn messages_whole(&self) -> String {
        let mut line = String::new();
        let _ = write!(line, "{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\"", self.messages_id());
        line.push_str(",\"model\":");
        text::quote(&mut line, &self.job.model);
        let mut blocks = Vec::new();
        if !self.thought.is_empty() {
            blocks.push(format!("{{\"type\":\"thinking\",\"thinking\":{}}}", text::quoted(&self.thought)));
        }
        if !self.said.is_empty() {
            blocks.push(format!("{{\"type\":\"text\",\"text\":{}}}", text::quoted(&self.said)));
        }
        if let Some(tool) = &self.job.plan.tool {
            let name = text::quoted(&tool.name);
            blocks.push(format!(
                "{{\"type\":\"tool_use\",\"id\":\"{}\",\"name\":{name},\"input\":{}}}",
                tool.id, tool.arguments
            ));
        }
        let content = if blocks.is_empty() { "null".to_owned() } else { format!("[{}]", blocks.join(",")) };
        let (prompt, output) = self.counts();
        let reason = self.stop_reason();
        let _ = writeln!(
            line,
            ",\"content\":{content},\"stop_reason\":\"{reason}\",\
             \"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":{output}}}}}"
        );
        line
    }
}
