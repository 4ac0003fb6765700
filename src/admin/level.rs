//! `/herdgate/log`: how much is logged, read and changed while the process runs.

use http::StatusCode;
use serde_json::{Value, json};

use super::{Answer, error};
use crate::log::{self, LEVELS, LogError};

/// `GET /herdgate/log`
#[must_use]
pub fn log() -> Answer {
    let level = log::level();
    Answer::json(json!({ "level": level.map(|level| (*level).clone()), "levels": LEVELS }).to_string())
}

/// `POST /herdgate/log` with `{"level": "debug"}`
#[must_use]
pub fn set_log(body: &[u8]) -> Answer {
    const SHAPE: &str = r#"the body must be {"level": "…"}: off, error, warn, info, debug or trace, or a list such as info,herdgate::fleet=debug"#;
    let asked = serde_json::from_slice::<Value>(body).ok();
    let Some(level) = asked.as_ref().and_then(|asked| asked.get("level")?.as_str()) else {
        return error(StatusCode::BAD_REQUEST, SHAPE);
    };
    match log::set_level(level) {
        Ok(()) => self::log(),
        Err(why @ LogError::Level(_)) => error(StatusCode::BAD_REQUEST, &why.to_string()),
        Err(why @ LogError::Absent) => error(StatusCode::CONFLICT, &why.to_string()),
    }
}
