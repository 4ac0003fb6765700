//! Whether one JSON value has the shape of another: the same keys in the same order, values of the same types.
//!
//! Objects whose keys are nodes or models are maps: their values have one shape, whatever the keys. A null stands for any
//! type, since a figure may be unknown on one side. Entries of `models` are a node's own, in the node's order; only what
//! was added behind them has its place.

use serde_json::Value;

/// Keys of objects that are maps.
const MAPS: [&str; 4] = ["usage_counts", "token_usage_counts", "endpoint_distribution", "model_info"];

/// Holds `ours` to the shape of `recorded`.
pub(crate) fn covers(recorded: &Value, ours: &Value) -> Result<(), String> {
    at("", recorded, ours)
}

fn at(path: &str, recorded: &Value, ours: &Value) -> Result<(), String> {
    match (recorded, ours) {
        (Value::Null, _) | (_, Value::Null) => Ok(()),
        (Value::Object(theirs), Value::Object(here)) if is_map(path, recorded) => {
            let Some(example) = theirs.values().next() else { return Ok(()) };
            here.values().try_for_each(|value| at(&format!("{path}.*"), example, value))
        }
        (Value::Object(theirs), Value::Object(here)) => {
            let keys = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            let (mut recorded_keys, mut our_keys) = (keys(theirs), keys(here));
            if path.starts_with(".models[")
                && recorded_keys.last().is_none_or(|last| here.keys().next_back() == Some(last) || last != "endpoint")
            {
                recorded_keys.sort();
                our_keys.sort();
            }
            if recorded_keys != our_keys {
                return Err(format!("{path}: recorded keys {:?}, ours {:?}", keys(theirs), keys(here)));
            }
            theirs.iter().try_for_each(|(key, value)| at(&format!("{path}.{key}"), value, &here[key]))
        }
        (Value::Array(theirs), Value::Array(here)) => {
            let Some(example) = theirs.first() else { return Ok(()) };
            if here.is_empty() {
                return Err(format!("{path}: nothing to compare"));
            }
            // Of the recorded ones, one has our shape: a list may hold several kinds.
            here.iter().enumerate().try_for_each(|(place, value)| {
                let path = format!("{path}[{place}]");
                if theirs.iter().any(|theirs| at(&path, theirs, value).is_ok()) {
                    Ok(())
                } else {
                    at(&path, example, value)
                }
            })
        }
        _ if kind(recorded) == kind(ours) => Ok(()),
        _ => Err(format!("{path}: recorded {recorded}, ours {ours}")),
    }
}

fn is_map(path: &str, value: &Value) -> bool {
    let within = |name: &str| path == format!(".{name}") || path == format!(".{name}.*");
    MAPS.iter().any(|name| within(name)) || (path == ".endpoints" && value.is_object())
}

fn kind(value: &Value) -> u8 {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 1,
        Value::Number(_) => 2,
        Value::String(_) => 3,
        Value::Array(_) => 4,
        Value::Object(_) => 5,
    }
}

#[test]
fn a_shape_is_keys_order_and_types() {
    use serde_json::json;
    let recorded = json!({ "a": 1, "b": [{ "c": "x" }], "usage_counts": { "n": { "m": 1 } } });
    let ok = |ours: Value| covers(&recorded, &ours).is_ok();
    assert!(ok(
        json!({ "a": 7, "b": [{ "c": "y" }, { "c": null }], "usage_counts": { "other": {}, "n": { "x": 3 } } })
    ));
    assert!(!ok(json!({ "b": [{ "c": "y" }], "a": 7, "usage_counts": { "n": {} } })), "order");
    assert!(!ok(json!({ "a": "7", "b": [{ "c": "y" }], "usage_counts": { "n": {} } })), "type");
    assert!(!ok(json!({ "a": 7, "b": [], "usage_counts": { "n": {} } })), "an empty list shows nothing");
    assert!(!ok(json!({ "a": 7, "b": [{ "c": "y", "d": 1 }], "usage_counts": { "n": {} } })), "a further key");
    assert!(!ok(json!({ "a": 7, "b": [{ "c": "y" }], "usage_counts": { "n": { "m": "1" } } })), "type in a map");
}
