//! `GET /herdgate/decisions`: the last decisions of all workers, newest first, each with what it was made of.

use http::StatusCode;
use serde_json::{Value, json};

use super::aside::aside;
use super::monitor::parameter;
use super::{Answer, error};
use crate::dialect::{Route, name};
use crate::evidence::{Fate, Record, Standing};
use crate::ids::NodeId;
use crate::shared::Shared;
use crate::sync::Arc;
use crate::usage::Ending;

/// Decisions in one answer, at most, and where the request does not say.
const LIMIT_MAX: usize = 1_000;
const LIMIT_DEFAULT: usize = 100;

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Filter {
    id: Option<String>,
    /// The routing key of a model.
    model: Option<Box<str>>,
    limit: usize,
}

/// `GET /herdgate/decisions`
pub async fn decisions(shared: &Arc<Shared>, query: Option<&str>) -> Answer {
    match Filter::read(query) {
        Ok(filter) => aside(shared, move |shared| Answer::json(shown(shared, &filter).to_string())).await,
        Err(why) => error(StatusCode::BAD_REQUEST, why),
    }
}

impl Filter {
    fn read(query: Option<&str>) -> Result<Self, &'static str> {
        const ALLOWED: &str = "allowed are id, model, and limit (a whole number from 1 to 1000, 100 if absent)";
        let known = ["id", "model", "limit", "api_key"];
        let names = query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty());
        if names.map(|pair| pair.split('=').next().unwrap_or(pair)).any(|name| !known.contains(&name)) {
            return Err(ALLOWED);
        }
        let given = |name| query.and_then(|query| parameter(query, name));
        let limit = match given("limit") {
            None => LIMIT_DEFAULT,
            Some(text) => text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or(ALLOWED)?,
        };
        Ok(Self { id: given("id"), model: given("model").map(|model| name::key(&model)), limit })
    }
}

fn shown(shared: &Shared, filter: &Filter) -> Value {
    let wanted = |record: &Record| filter.id.as_ref().is_none_or(|id| record.id.as_str() == id);
    let of_model = |record: &Record| {
        let Some(key) = &filter.model else { return true };
        let name = shared.names.model_name(record.model);
        name::key(&name) == *key
    };
    let all = shared.decisions.iter().flat_map(|worker| worker.newest_first());
    let mut records: Vec<Record> = all.filter(wanted).filter(of_model).collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.arrived_us));
    records.truncate(filter.limit);
    json!({ "decisions": records.iter().map(|record| decision(shared, record)).collect::<Vec<_>>() })
}

fn decision(shared: &Shared, record: &Record) -> Value {
    let route = Route::ALL.get(usize::from(record.route)).copied();
    let path = route.and_then(Route::path).unwrap_or("other");
    let node = |id: NodeId| if id == NodeId::NONE { Value::Null } else { shared.names.node_name(id).into() };
    let some = |value: u64| if value == 0 { Value::Null } else { value.into() };
    let outcome = match record.fate {
        Fate::Running => "running",
        Fate::Ended(ending) => Ending::LABELS[ending.index()],
    };
    let ended = record.fate != Fate::Running;
    let candidates = &record.standings[..usize::from(record.shown)];
    json!({
        "id": record.id.as_str(),
        "time": time(shared, record.arrived_us),
        "route": path,
        "model": &*shared.names.model_name(record.model),
        "key": shared.names.key_name(record.key),
        "node": node(record.node),
        "reason": record.why.label(),
        "because": record.why.because(),
        "outcome": outcome,
        "status": some(record.status.into()),
        "retries": record.retries,
        "waited_ms": ms(record.queue_us),
        "first_byte_ms": if record.first_byte_us == 0 { Value::Null } else { ms(record.first_byte_us) },
        "total_ms": if ended { ms(record.total_us) } else { Value::Null },
        "candidates_total": record.candidates,
        "candidates": candidates.iter().map(|one| candidate(one, node(one.node))).collect::<Vec<_>>(),
    })
}

fn candidate(one: &Standing, node: Value) -> Value {
    json!({
        "node": node,
        "in_flight": one.in_flight,
        "limit": one.limit,
        "limit_is": if one.soft { "soft" } else { "hard" },
        "model_is": if one.loaded { "loaded" } else if one.loading { "loading" } else { "on_disk" },
        "takes_work": one.open,
        "fits": one.fits,
        "tried": one.tried,
        "last_choice": one.last_choice,
    })
}

/// A monotonic time as Unix time in RFC 3339, milliseconds shown.
fn time(shared: &Shared, at_us: u64) -> Value {
    let ago = shared.clock.now().saturating_sub(at_us / 1000);
    let unix_ms = i64::try_from(shared.clock.unix_ms().saturating_sub(ago)).unwrap_or(i64::MAX);
    let stamp = jiff::Timestamp::from_millisecond(unix_ms);
    stamp.map_or(Value::Null, |stamp| format!("{stamp:.3}").into())
}

fn ms(us: u64) -> Value {
    // Microseconds below 2^53 are exact in a double.
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    let ms = us as f64 / 1000.0;
    ms.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_has_defaults_and_bounds() {
        let filter = |limit| Filter { id: None, model: None, limit };
        assert_eq!(Filter::read(None), Ok(filter(100)));
        assert_eq!(Filter::read(Some("limit=1000&api_key=k")), Ok(filter(1000)));
        let asked = Filter::read(Some("id=a%2Fb&model=Llama3")).unwrap();
        assert_eq!((asked.id.as_deref(), asked.model.as_deref()), (Some("a/b"), Some("llama3:latest")));
        for wrong in ["limit=0", "limit=1001", "limit=", "limit=x", "node=a", "limits=3"] {
            assert!(Filter::read(Some(wrong)).unwrap_err().contains("limit"), "{wrong}");
        }
    }
}
