//! Listings, served from the current Snapshot alone: a dead or hanging node adds nothing (I9).

use http::{Response, StatusCode};

use crate::dialect::{self, Family, texts};
use crate::front::routes::Handler;
use crate::proxy::answer::{self, OutBody};
use crate::proxy::local::Client;

const JSON: &str = "application/json; charset=utf-8";

/// Answers `/`, version, tags, ps, status, models.
pub(super) fn answer(client: &Client, handler: Handler<'_>) -> Response<OutBody> {
    let snapshot = client.local.snapshot();
    let listing = &snapshot.listing;
    match handler {
        Handler::Root => answer::whole(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running"),
        Handler::Version => {
            let mut response = answer::whole(StatusCode::OK, JSON, listing.version.clone());
            if let Ok(instance) = http::HeaderValue::from_str(&client.local.shared.instance) {
                response.headers_mut().insert("x-herdgate-instance", instance);
            }
            response
        }
        Handler::Tags => answer::whole(StatusCode::OK, JSON, listing.tags.clone()),
        Handler::Ps => answer::whole(StatusCode::OK, JSON, listing.ps.clone()),
        Handler::Status => {
            let disabled = !snapshot.configured().any(|node| node.cloud);
            let source = if disabled { "config" } else { "none" };
            let body = format!("{{\"cloud\":{{\"disabled\":{disabled},\"source\":\"{source}\"}}}}");
            answer::whole(StatusCode::OK, JSON, body)
        }
        Handler::V1Models => answer::whole(StatusCode::OK, "application/json", listing.v1_models.clone()),
        Handler::V1Model(id) => one_model(client, id),
        _ => answer::not_found(),
    }
}

/// Answers ps once what was just loaded and unloaded through us is in it, as it is with one Ollama; late in bounds where
/// a node hangs.
pub(super) async fn fresh(client: &Client) -> Response<OutBody> {
    client.local.reports.shown().await;
    answer(client, Handler::Ps)
}

/// `/v1/models` as it was serialised for this Snapshot.
#[derive(Default, serde::Deserialize)]
struct V1List {
    data: Option<Vec<V1Entry>>,
}

/// One model of it; keys in the order of the wire.
#[derive(serde::Deserialize, serde::Serialize)]
struct V1Entry {
    id: String,
    object: String,
    created: i64,
    owned_by: String,
}

/// `/v1/models/:model`; the id echoes the path.
fn one_model(client: &Client, id: &str) -> Response<OutBody> {
    let snapshot = client.local.snapshot();
    let key = dialect::name::key(id);
    let listed: V1List = serde_json::from_slice(&snapshot.listing.v1_models).unwrap_or_default();
    let found = listed.data.unwrap_or_default().into_iter().find(|entry| dialect::name::key(&entry.id) == key);
    match found {
        Some(entry) => {
            let entry = V1Entry { id: id.to_owned(), ..entry };
            let body = serde_json::to_string(&entry).unwrap_or_default() + "\n";
            answer::whole(StatusCode::OK, "application/json", body)
        }
        None => {
            let status = StatusCode::NOT_FOUND;
            answer::error(status, texts::unknown_shown_model(id).body(Family::OpenAi), None)
        }
    }
}
