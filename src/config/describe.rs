//! What `herdgate check` prints when all is well.

use std::fmt::Write;

use super::{Config, NodeConfig, NodeKind, SlotsConfig, units};

/// Describes a configuration for a person: where it listens, its nodes with their limits and where each limit comes
/// from, its overrides and keys (their names only).
#[must_use]
pub fn describe(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_all(&mut out, config);
    out
}

fn write_all(out: &mut String, config: &Config) -> std::fmt::Result {
    writeln!(out, "listen   {}", config.listen)?;
    writeln!(out, "data     {}", config.data.display())?;
    match config.workers {
        Some(workers) => writeln!(out, "workers  {workers}")?,
        None => writeln!(out, "workers  auto (one per core it may run on)")?,
    }
    if config.router_keys.is_empty() {
        writeln!(out, "keys     none: the router is open")?;
    } else {
        let names: Vec<&str> = config.router_keys.iter().map(|key| key.name.as_str()).collect();
        writeln!(out, "keys     {}", names.join(", "))?;
    }
    writeln!(out, "nodes    {}", config.nodes.len())?;
    for node in &config.nodes {
        write_node(out, config, node)?;
    }
    if !config.models.is_empty() {
        writeln!(out, "models   {} (overrides, the first that matches counts)", config.models.len())?;
    }
    for model in &config.models {
        write!(out, "  {}", model.pattern)?;
        match model.slots {
            Some(slots) => write!(out, "  {} per node (models)", show_slots(slots))?,
            None => write!(out, "  slots as the node's")?,
        }
        let times = [
            ("queue_wait", model.timeouts.queue_wait),
            ("stream_idle", model.timeouts.stream_idle),
            ("client_stall", model.timeouts.client_stall),
            ("suspect_after", model.timeouts.suspect_after),
        ];
        write_times(out, &times)?;
        if !model.pull_targets.is_empty() {
            write!(out, "  pulled to {}", model.pull_targets.join(", "))?;
        }
        out.push('\n');
    }
    if config.ancestor {
        writeln!(out, "file     the ancestor's: origins *, its slots are per node and model")?;
    }
    Ok(())
}

fn write_node(out: &mut String, config: &Config, node: &NodeConfig) -> std::fmt::Result {
    let kind = match (node.kind, node.llama) {
        (NodeKind::Ollama, _) => "ollama",
        (NodeKind::OpenAi, false) => "openai",
        (NodeKind::OpenAi, true) => "openai (llama server)",
    };
    write!(out, "  {}", node.name)?;
    if node.name != node.url {
        write!(out, "  {}", node.url)?;
    }
    let (slots, origin) = config.slots_of(node);
    write!(out, "  {kind}  {} per model ({origin})", show_slots(slots))?;
    let (node_slots, origin) = config.node_slots_of(node);
    if let Some(count) = node_slots.limit() {
        write!(out, "  hard {count} for all models together ({origin})")?;
    }
    if node.api_key.is_some() {
        write!(out, "  with a key")?;
    }
    if node.expand {
        write!(out, "  expanded by address")?;
    }
    if node.cloud {
        write!(out, "  cloud models allowed")?;
    }
    let times = [
        ("connect", node.connect_timeout),
        ("pool_idle", node.timeouts.pool_idle),
        ("stream_idle", node.timeouts.stream_idle),
        ("client_stall", node.timeouts.client_stall),
        ("suspect_after", node.timeouts.suspect_after),
    ];
    write_times(out, &times)?;
    out.push('\n');
    Ok(())
}

fn write_times(out: &mut String, times: &[(&str, Option<std::time::Duration>)]) -> std::fmt::Result {
    for (name, time) in times {
        if let Some(time) = time {
            write!(out, "  {name} {}", units::show_duration(*time))?;
        }
    }
    Ok(())
}

fn show_slots(slots: SlotsConfig) -> String {
    match slots {
        SlotsConfig::Soft(count) => format!("soft {count}"),
        SlotsConfig::Hard(count) => format!("hard {count}"),
    }
}
