//! Which override applies to a model: name patterns, and the order of precedence of slots, a model's and a node's.
//!
//! Called when cells are built and by `check`; never on the path of a request.

use super::{Config, ModelConfig, NodeConfig, NodeSlots, SlotsConfig};

impl Config {
    /// Slots of one model on one node, and where they come from: `models`, `nodes`, `slots`,
    /// `max_concurrent_connections` or `default`.
    ///
    /// The model's override wins over the node's, the node's over the global value: a model knows what it costs.
    /// Of several matching patterns the first that sets slots counts.
    #[must_use]
    pub fn slots_for(&self, node: &NodeConfig, model_display_name: &str) -> (SlotsConfig, &'static str) {
        let by_model = self.overrides_of(model_display_name).find_map(|model| model.slots);
        match by_model {
            Some(slots) => (slots, "models"),
            None => self.slots_of(node),
        }
    }

    /// Slots of a model without an override on one node, and where they come from.
    pub(super) fn slots_of(&self, node: &NodeConfig) -> (SlotsConfig, &'static str) {
        match node.slots {
            Some(slots) => (slots, "nodes"),
            None => (self.slots, self.slots_origin),
        }
    }

    /// Slots of all models of one node together, and where they come from: `nodes`, `node_slots` or `default`.
    #[must_use]
    pub fn node_slots_of(&self, node: &NodeConfig) -> (NodeSlots, &'static str) {
        match (node.node_slots, self.node_slots) {
            (Some(slots), _) => (slots, "nodes"),
            (None, NodeSlots::Off) => (NodeSlots::Off, "default"),
            (None, slots) => (slots, "node_slots"),
        }
    }

    /// The overrides whose pattern matches, in the order of the file.
    pub fn overrides_of<'a>(&'a self, model_display_name: &'a str) -> impl Iterator<Item = &'a ModelConfig> {
        self.models.iter().filter(move |model| model.matches(model_display_name))
    }
}

impl ModelConfig {
    /// Whether the pattern matches a name: in any case, with or without `:latest`, as names are one there.
    #[must_use]
    pub fn matches(&self, model_display_name: &str) -> bool {
        let name = model_display_name.to_lowercase();
        let pattern = self.pattern.to_lowercase();
        glob(&pattern, &name) || name.strip_suffix(":latest").is_some_and(|short| glob(&pattern, short))
    }
}

/// Whether `text` matches `pattern`, in which `*` is any run of characters. Time at most |pattern| x |text|.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go back to: after the last star, and one character further in the text than that star has eaten.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == Some(&text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after_star, eaten)) = retry {
            retry = Some((after_star, eaten + 1));
            (p, t) = (after_star, eaten + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_is_any_run() {
        for (pattern, text) in [
            ("", ""),
            ("a", "a"),
            ("*", ""),
            ("*", "x/y:z"),
            ("a*c", "abbc"),
            ("a*b*c", "a-b-b-c"),
            ("*:70b", "l:70b"),
            ("**", ""),
        ] {
            assert!(glob(pattern, text), "{pattern} should match {text}");
        }
        for (pattern, text) in [("", "a"), ("a", ""), ("a*", "b"), ("a*c", "abcd"), ("a", "aa"), ("*b", "ba")] {
            assert!(!glob(pattern, text), "{pattern} should not match {text}");
        }
    }

    #[test]
    fn many_stars_stay_fast() {
        assert!(!glob(&"*a".repeat(200), &"a".repeat(150)));
    }
}
