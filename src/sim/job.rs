//! What a request asks a node to generate, and the tokens that it will get for it.
//!
//! Made by `ask.rs` from a checked body, spoken by `voice.rs`. Plain data and pure arithmetic: what a request gets is
//! fixed before its first token.

use std::time::Duration;

use super::gojson::Value;
use super::text;

/// Which API a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Generate,
    Chat,
    Embed,
    Embeddings,
    V1Chat,
    V1Completions,
    V1Embeddings,
    Responses,
    Messages,
    Audio,
}

/// Whose error shapes a dialect has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Native,
    OpenAi,
    Anthropic,
}

impl Dialect {
    pub(super) fn family(self) -> Family {
        match self {
            Self::Generate | Self::Chat | Self::Embed | Self::Embeddings => Family::Native,
            Self::Messages => Family::Anthropic,
            _ => Family::OpenAi,
        }
    }

    pub(super) fn embeds(self) -> bool {
        matches!(self, Self::Embed | Self::Embeddings | Self::V1Embeddings)
    }
}

/// A call that a model makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) id: String,
    pub(super) name: String,
    /// A JSON object.
    pub(super) arguments: String,
}

/// One token of an answer, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Counted but not shown.
    Silent,
    Think(&'static str),
    Text(&'static str),
    /// The whole call.
    Tool,
}

/// All tokens of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Tokens evaluated.
    pub(super) total: u32,
    /// Tokens of thought, after a silent one that opens it; 0 is no thinking at all.
    pub(super) think: u32,
    /// Tokens after this many are counted but not shown (they completed a stop text).
    pub(super) shown: u32,
    pub(super) reason: &'static str,
    pub(super) tool: Option<Tool>,
    /// What is said, a token a character, where a `format` bound the answer.
    pub(super) json: Option<String>,
}

/// Tokens that a tool call takes.
const TOOL_TOKENS: u32 = 18;
/// Tokens that a model thinks at most.
const THINK_TOKENS: u32 = 8;

/// What bounds an answer.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds {
    /// The request's limit.
    pub(super) limit: Option<u32>,
    /// Tokens when nobody limits it.
    pub(super) usual: u32,
    pub(super) stops: Vec<String>,
    pub(super) thinks: bool,
    pub(super) tool: Option<Tool>,
    /// The JSON that a `format` asks for.
    pub(super) json: Option<String>,
}

impl Plan {
    pub(super) fn new(bounds: Bounds) -> Self {
        let json = bounds.json.filter(|json| bounds.tool.is_none() && json.is_ascii());
        let usual = match &json {
            _ if bounds.tool.is_some() => TOOL_TOKENS,
            Some(json) => {
                let thought = if bounds.thinks { THINK_TOKENS + 2 } else { 0 };
                u32::try_from(json.len()).unwrap_or(u32::MAX).saturating_add(thought)
            }
            None => bounds.usual,
        };
        // Nothing can follow what is complete.
        let most = if json.is_some() { usual } else { u32::MAX };
        let total = bounds.limit.unwrap_or(usual).min(most);
        let total = if bounds.tool.is_some() { total.min(TOOL_TOKENS) } else { total };
        let think = if bounds.thinks { THINK_TOKENS.min(total.saturating_sub(1)) } else { 0 };
        let cut = bounds.limit.is_some_and(|limit| limit <= total) && bounds.tool.is_none();
        let reason = if cut { "length" } else { "stop" };
        let mut plan = Self { total, think, shown: total, reason, tool: None, json };
        if bounds.tool.is_some() && total == TOOL_TOKENS {
            plan.tool = bounds.tool;
        } else if !bounds.stops.is_empty() {
            plan.stop(&bounds.stops);
        }
        plan
    }

    /// Ends the plan at the first stop text.
    fn stop(&mut self, stops: &[String]) {
        let mut said = String::new();
        let mut ends = Vec::new();
        for at in 0..self.total {
            if let Piece::Text(token) = self.piece(at) {
                said.push_str(token);
            }
            ends.push(said.len());
            let found = stops.iter().filter(|s| !s.is_empty()).filter_map(|s| said.find(s.as_str())).min();
            if let Some(start) = found {
                let shown = ends.iter().take_while(|end| **end <= start).count();
                self.shown = u32::try_from(shown).unwrap_or(at);
                self.total = at + 1;
                self.reason = "stop";
                return;
            }
        }
    }

    /// The token at this place.
    pub(super) fn piece(&self, at: u32) -> Piece {
        if self.tool.is_some() {
            return if at + 1 == self.total { Piece::Tool } else { Piece::Silent };
        }
        if at >= self.shown {
            return Piece::Silent;
        }
        if self.think == 0 {
            return self.text(at);
        }
        match at {
            0 => Piece::Silent,
            at if at <= self.think => Piece::Think(text::token(at - 1)),
            at if at == self.think + 1 => Piece::Silent,
            at => self.text(at - self.think - 2),
        }
    }

    /// The token at this place of what is said.
    fn text(&self, at: u32) -> Piece {
        let Some(json) = &self.json else { return Piece::Text(text::token(at)) };
        json.as_bytes().get(at as usize).map_or(Piece::Silent, |byte| Piece::Text(text::character(*byte)))
    }
}

/// A generation.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) dialect: Dialect,
    /// The model's name as the request wrote it.
    pub(super) model: String,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) prompt: u32,
    pub(super) plan: Plan,
    /// Alternatives a token, when log probabilities were asked for.
    pub(super) logprobs: Option<u32>,
    /// `context` is left out.
    pub(super) raw: bool,
    /// Characters of the prompt, for Anthropic's first guess.
    pub(super) chars: usize,
    /// Anthropic's web search: the stream has the wrong type.
    pub(super) web_search: bool,
    /// A transcription as bare text.
    pub(super) text: bool,
    /// The body, for what a Responses answer echoes.
    pub(super) body: Value,
    pub(super) prefill: Duration,
    pub(super) pace: Duration,
    pub(super) burst: u32,
}

impl Job {
    /// When a token comes, counted from the end of the prompt.
    pub(super) fn due(&self, at: u32) -> Duration {
        let burst = self.burst.max(1);
        self.pace * ((at / burst + 1) * burst).min(self.plan.total.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(limit: Option<u32>) -> Bounds {
        Bounds { limit, usual: 32, ..Bounds::default() }
    }

    #[test]
    fn a_limit_is_kept_exactly() {
        for limit in [0, 1, 5, 32, 100] {
            let plan = Plan::new(bounds(Some(limit)));
            assert_eq!((plan.total, plan.reason), (limit, "length"));
        }
        assert_eq!(Plan::new(bounds(None)).reason, "stop");
    }

    #[test]
    fn a_stop_text_ends_it_unseen() {
        let plan = Plan::new(Bounds { stops: vec![".".to_owned()], ..bounds(Some(20)) });
        assert_eq!((plan.total, plan.shown, plan.reason), (8, 7, "stop"));
        assert_eq!(plan.piece(7), Piece::Silent);
    }

    #[test]
    fn a_format_is_kept_unless_cut() {
        let said = |bounds: Bounds| {
            let plan = Plan::new(bounds);
            let text = |at| if let Piece::Text(token) = plan.piece(at) { token } else { "" };
            ((0..plan.total).map(text).collect::<String>(), plan.reason)
        };
        let json = || Some("{\"a\":1}".to_owned());
        assert_eq!(said(Bounds { json: json(), ..bounds(None) }), ("{\"a\":1}".to_owned(), "stop"));
        assert_eq!(said(Bounds { json: json(), ..bounds(Some(100)) }), ("{\"a\":1}".to_owned(), "stop"));
        assert_eq!(said(Bounds { json: json(), ..bounds(Some(3)) }), ("{\"a".to_owned(), "length"));
        assert_eq!(said(Bounds { json: json(), thinks: true, ..bounds(None) }).0, "{\"a\":1}");
    }

    #[test]
    fn thoughts_come_first() {
        let plan = Plan::new(Bounds { thinks: true, ..bounds(Some(4)) });
        let pieces: Vec<_> = (0..4).map(|at| plan.piece(at)).collect();
        assert_eq!(pieces, [Piece::Silent, Piece::Think("I"), Piece::Think("'m"), Piece::Think(" so")]);
        let plan = Plan::new(Bounds { thinks: true, ..bounds(None) });
        assert_eq!(plan.piece(9), Piece::Silent);
        assert_eq!(plan.piece(10), Piece::Text("I"));
    }
}
