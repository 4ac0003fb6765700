//! Is it alive, is it ready, which nodes can serve: for load balancers, orchestrators and people.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::aside::{For, aside_for};
use super::monitor::parameter;
use super::reading::{self, NodeReading};
use super::{Answer, JSON};
use crate::clock::Millis;
use crate::shared::{Phase, Shared, Thread};
use crate::sync::Arc;
use crate::usage::answers::{Health, StoreState};

/// `GET /herdgate/live`: the process runs, and no thread of it is stuck. Nothing that a restart would not mend makes it
/// fail: no node, no disk, no configuration.
#[must_use]
pub fn live(shared: &Shared) -> Answer {
    match stuck(shared.stuck()) {
        None => Answer::text(StatusCode::OK, "live\n"),
        Some(detail) => Answer::text(StatusCode::SERVICE_UNAVAILABLE, format!("{detail}\n")),
    }
}

/// Threads that are stuck, in words.
fn stuck(threads: impl Iterator<Item = (Thread, Millis)>) -> Option<String> {
    let named: Vec<String> = threads.map(|(thread, late)| format!("{thread} ({} s)", late / 1000)).collect();
    (!named.is_empty()).then(|| format!("stuck, only a restart helps: {}", named.join(", ")))
}

/// `GET /herdgate/ready`: the first poll is done, and the process is not leaving.
#[must_use]
pub fn ready(shared: &Shared) -> Answer {
    readiness(shared.phase(), shared.fleet.snapshot.load().ready)
}

fn readiness(phase: Phase, polled: bool) -> Answer {
    if phase > Phase::Running {
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if polled {
        Answer::text(StatusCode::OK, "ready\n")
    } else {
        Answer::text(StatusCode::SERVICE_UNAVAILABLE, "first poll\n")
    }
}

/// `GET /health`: 200 while at least one node can serve; with `?strict` only while every node can.
///
/// In the form that the ancestor documents, with the ledger's state added.
pub async fn health(shared: &Arc<Shared>, query: Option<&str>) -> Answer {
    let strict = query.and_then(|query| parameter(query, "strict")).is_some_and(|value| !is_no(&value));
    let make = move |shared: &Shared| {
        let configuration = super::status::configuration(shared);
        let stuck: Vec<_> = shared.stuck().collect();
        report(&reading::nodes(shared), &shared.ledger.health(), &configuration, &stuck, shared.clock.now(), strict)
    };
    aside_for(For::Health, shared, make).await
}

/// `?strict`, `?strict=1`, `?strict=true` say yes.
fn is_no(value: &str) -> bool {
    matches!(value, "0" | "false" | "no" | "off")
}

fn report(
    nodes: &[NodeReading],
    ledger: &Health,
    configuration: &Value,
    late: &[(Thread, Millis)],
    now: u64,
    strict: bool,
) -> Answer {
    let able = nodes.iter().filter(|node| node.trouble().is_none()).count();
    // What its operator took out is not missed.
    let wanted = nodes.iter().filter(|node| !node.draining || node.trouble().is_none()).count();
    let served = if strict { able == wanted && able > 0 } else { able > 0 };
    // What is known of the nodes is no longer true while nobody asks them; the ledger only counts.
    let well = served && late.iter().all(|(thread, _)| *thread == Thread::Ledger);
    let endpoints: Map<String, Value> = nodes.iter().map(|node| (node.name.to_string(), node_state(node))).collect();
    let mut body = json!({
        "status": if well { "ok" } else { "error" },
        "endpoints": endpoints,
        "ledger": ledger_state(ledger, now),
    });
    if configuration["status"] != "ok" || configuration.get("needs_restart").is_some() {
        body["configuration"] = configuration.clone();
    }
    if let Some(detail) = stuck(late.iter().copied()) {
        body["threads"] = json!({ "status": "error", "detail": detail });
    }
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer { status, content_type: JSON, body: body.to_string().into() }
}

fn node_state(node: &NodeReading) -> Value {
    match node.trouble() {
        None => with_sick(json!({ "status": "ok", "version": node.version() }), node),
        Some(_) if node.draining && node.up => {
            with_sick(json!({ "status": "draining", "version": node.version() }), node)
        }
        Some(trouble) => with_sick(json!({ "status": "error", "detail": trouble }), node),
    }
}

/// Adds what is wrong with a node though it serves, in words; nothing where nothing is.
pub(super) fn with_sick(mut state: Value, node: &NodeReading) -> Value {
    if !node.sick.is_empty() {
        state["sick"] = node.sick.iter().map(|(_, words)| words.as_str()).collect();
    }
    state
}

/// A ledger in memory serves on, so it never makes the whole unwell: it is for whoever reads the report.
fn ledger_state(ledger: &Health, now: u64) -> Value {
    let detail = match ledger.store {
        StoreState::Open => return json!({ "status": "ok" }),
        StoreState::Absent => "in memory: the store cannot be had",
        StoreState::Migrating => "in memory: the store is of an older version",
        StoreState::Failing => "in memory: the store cannot be written",
        StoreState::Stalled => "in memory: the disk does not answer",
    };
    let detail = match &ledger.last_error {
        // What went wrong before has healed since.
        Some(why) if ledger.store != StoreState::Stalled => format!("{detail}: {why}"),
        _ => detail.to_owned(),
    };
    json!({ "status": "error", "detail": detail, "unwritten_ms": ledger.unwritten_age(now) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::reading::tests::node;

    fn parsed(answer: &Answer) -> Value {
        serde_json::from_slice(&answer.body).unwrap()
    }

    fn fine() -> Value {
        json!({ "status": "ok" })
    }

    #[test]
    fn a_refused_reload_and_a_drained_node_are_told() {
        let mut drained = node("b", true);
        (drained.open, drained.draining) = (false, true);
        let refused = json!({ "status": "error", "detail": "1 mistake" });
        let answer = report(&[node("a", true), drained], &open_store(), &refused, &[], 0, true);
        assert_eq!(answer.status, StatusCode::OK, "what was taken out on purpose is not missed");
        let told = parsed(&answer);
        assert_eq!(told["configuration"]["detail"], "1 mistake");
        assert_eq!(told["endpoints"]["b"]["status"], "draining");
    }

    fn open_store() -> Health {
        Health { store: StoreState::Open, ..Health::default() }
    }

    #[test]
    fn healthy_while_one_node_can_serve() {
        let nodes = [node("a", true), node("b", false)];
        let answer = report(&nodes, &open_store(), &fine(), &[], 0, false);
        assert_eq!(answer.status, StatusCode::OK);
        let text = r#"{"status":"ok","endpoints":{"a":{"status":"ok","version":"0.12.0"},"b":{"status":"error","detail":"connection refused"}},"ledger":{"status":"ok"}}"#;
        assert_eq!(answer.body, text);
    }

    #[test]
    fn a_sick_node_is_named_and_serves() {
        let mut slow = node("a", true);
        slow.sick = vec![("slow", "m: slow: 1.0 tokens/s where the fleet's median is 9.0".to_owned())];
        let answer = report(&[slow], &open_store(), &fine(), &[], 0, true);
        assert_eq!(answer.status, StatusCode::OK);
        let sick = &parsed(&answer)["endpoints"]["a"]["sick"];
        assert_eq!(*sick, json!(["m: slow: 1.0 tokens/s where the fleet's median is 9.0"]));
    }

    #[test]
    fn a_stuck_thread_is_told_and_one_that_serves_makes_the_whole_unwell() {
        for (thread, status) in [(Thread::Polls, 503), (Thread::Worker(1), 503), (Thread::Ledger, 200)] {
            let answer = report(&[node("a", true)], &open_store(), &fine(), &[(thread, 45_300)], 0, false);
            assert_eq!(answer.status.as_u16(), status, "{thread}");
            let told = &parsed(&answer)["threads"]["detail"];
            assert_eq!(*told, json!(format!("stuck, only a restart helps: {thread} (45 s)")));
        }
    }

    #[test]
    fn strict_wants_every_node() {
        let nodes = [node("a", true), node("b", false)];
        let answer = report(&nodes, &open_store(), &fine(), &[], 0, true);
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(parsed(&answer)["status"], "error");
        assert_eq!(report(&nodes[..1], &open_store(), &fine(), &[], 0, true).status, StatusCode::OK);
    }

    #[test]
    fn unhealthy_when_no_node_can_serve() {
        let mut suspect = node("a", true);
        suspect.open = false;
        suspect.cause = "no byte for 120 s".into();
        let answer = report(&[suspect, node("b", false)], &open_store(), &fine(), &[], 0, false);
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(parsed(&answer)["endpoints"]["a"]["detail"], "no byte for 120 s");
        assert_eq!(report(&[], &open_store(), &fine(), &[], 0, false).status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn the_ledgers_state_is_told_and_does_not_decide() {
        let ledger = Health {
            store: StoreState::Failing,
            oldest_unwritten: Some(100),
            last_error: Some("no space left on device".into()),
            ..Health::default()
        };
        let answer = report(&[node("a", true)], &ledger, &fine(), &[], 1600, false);
        assert_eq!(answer.status, StatusCode::OK);
        let ledger = &parsed(&answer)["ledger"];
        assert_eq!(ledger["unwritten_ms"], 1500);
        assert_eq!(ledger["detail"], "in memory: the store cannot be written: no space left on device");
    }

    #[test]
    fn ready_between_the_first_poll_and_the_signal() {
        assert_eq!(readiness(Phase::Running, false).status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(readiness(Phase::Running, true).status, StatusCode::OK);
        for phase in [Phase::Leaving, Phase::Draining, Phase::Ending] {
            assert_eq!(readiness(phase, true).status, StatusCode::SERVICE_UNAVAILABLE);
        }
    }

    #[test]
    fn strict_is_a_flag() {
        for (query, strict) in [("strict", true), ("strict=1", true), ("a=b&strict=true", true), ("strict=0", false)] {
            let value = parameter(query, "strict").unwrap();
            assert_eq!(!is_no(&value), strict, "{query}");
        }
        assert_eq!(parameter("restrict=1", "strict"), None);
    }
}
