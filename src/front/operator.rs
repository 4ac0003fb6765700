//! An operator's orders on the wire: who may, which order, and the answer as the control thread gives it.
//!
//! The same people may give them who may administer models. Must never carry anything out itself.

use std::rc::Rc;
use std::task::Poll;

use http::{Response, StatusCode};

use crate::ids::KeyId;
use crate::operator::{Answer, Command};
use crate::proxy::answer::{self, OutBody};
use crate::proxy::body::{self, BodySource};
use crate::proxy::local::Client;
use crate::shared::Phase;

/// The order that a path means.
#[must_use]
pub(super) fn command(path: &str) -> Option<Command> {
    let rest = path.strip_prefix("/herdgate/")?;
    if rest == "reload" {
        return Some(Command::Reload);
    }
    // A node without a name goes by its URL, which has slashes of its own.
    let (node, verb) = rest.strip_prefix("nodes/")?.rsplit_once('/')?;
    let on = match verb {
        "drain" => true,
        "undrain" => false,
        _ => return None,
    };
    (!node.is_empty()).then(|| Command::Drain { node: node.to_owned(), on })
}

/// Answers an order; the key was checked before.
pub(super) async fn answer(
    client: &Rc<Client>,
    path: &str,
    announced: Option<u64>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    let shared = &client.local.shared;
    let administration = client.local.rules().config.administration;
    if !administration.admits(shared.listen.ip().is_loopback(), key) {
        return told(StatusCode::FORBIDDEN, r#"{"error":"this needs a router key here (administration)"}"#.to_owned());
    }
    let Some(command) = command(path) else { return answer::not_found() };
    // No order has a body; one that came is read so that the connection can go on.
    if let Err(error) = body::gather_few(client, announced, source).await {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = told(status, serde_json::json!({ "error": error.to_string() }).to_string());
        answer::close(&mut response);
        return response;
    }
    let Some(mut waiting) = shared.operator.order(command) else {
        return told(StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"too many orders at once"}"#.to_owned());
    };
    let answered = std::future::poll_fn(|cx| {
        if shared.phase() >= Phase::Ending {
            return Poll::Ready(None);
        }
        std::pin::Pin::new(&mut waiting).poll(cx).map(Result::ok)
    });
    match answered.await {
        Some(Answer { status, body }) => {
            told(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body.to_string())
        }
        None => told(StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"the gate is shutting down"}"#.to_owned()),
    }
}

fn told(status: StatusCode, body: String) -> Response<OutBody> {
    answer::whole(status, "application/json", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_orders() {
        let drain = |node: &str, on| Some(Command::Drain { node: node.to_owned(), on });
        assert_eq!(command("/herdgate/reload"), Some(Command::Reload));
        assert_eq!(command("/herdgate/nodes/gpu-a/drain"), drain("gpu-a", true));
        assert_eq!(command("/herdgate/nodes/http://10.0.0.7:11434/undrain"), drain("http://10.0.0.7:11434", false));
        for path in ["/herdgate/nodes//drain", "/herdgate/nodes/drain", "/herdgate/nodes/a/b", "/herdgate/nodes", "/x"]
        {
            assert_eq!(command(path), None, "{path}");
        }
    }
}
