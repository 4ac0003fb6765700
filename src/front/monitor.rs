//! Monitoring routes on the wire: reads a body where one is asked for, and turns `admin`'s answers into ours.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use hyper::body::{Body, Frame};

use crate::admin::{self, Answer};
use crate::dialect::Route;
use crate::front::checks::Asking;
use crate::front::routes::AdminRoute;
use crate::ids::KeyId;
use crate::live::EventStream;
use crate::proxy::answer::BodyError;
use crate::proxy::answer::{self, OutBody};
use crate::proxy::asked::Asked;
use crate::proxy::body::{self, BodySource};
use crate::proxy::explain;
use crate::proxy::local::Client;
use crate::shared::Shared;

/// Answers a monitoring route; the key was checked before.
pub(super) async fn answer(
    client: &Rc<Client>,
    route: AdminRoute,
    asking: &Asking<'_>,
    source: &mut dyn BodySource,
    key: KeyId,
) -> Response<OutBody> {
    let shared = client.local.shared.clone();
    let query = asking.query;
    let answer = match route {
        AdminRoute::Usage => admin::usage(&shared).await,
        AdminRoute::UsageStream => match admin::usage_stream(&shared).await {
            Ok(events) => {
                let mut response = Response::new(OutBody::Other(Box::pin(Events(events))));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(admin::EVENT_STREAM));
                return response;
            }
            Err(refusal) => refusal,
        },
        AdminRoute::TokenCounts => admin::token_counts(&shared).await,
        AdminRoute::Import
            if !client.local.rules().config.administration.admits(shared.listen.ip().is_loopback(), key) =>
        {
            admin::error(StatusCode::FORBIDDEN, "an import needs a router key here (administration)")
        }
        AdminRoute::Stats | AdminRoute::Aggregate | AdminRoute::Import | AdminRoute::Explain | AdminRoute::SetLog => {
            let announced = asking.known.announced();
            let gathered = match route {
                // A request's whole body, and what another database counted.
                AdminRoute::Explain | AdminRoute::Import => body::gather(client, announced, source).await,
                _ => body::gather_few(client, announced, source).await,
            };
            let body = match gathered {
                Ok(gathered) => gathered.into_bytes(),
                Err(error) => {
                    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
                    let mut response = whole(admin::error(status, &error.to_string()));
                    answer::close(&mut response);
                    return response;
                }
            };
            match route {
                AdminRoute::Stats => admin::stats(&shared, query, &body).await,
                AdminRoute::Import => admin::import(&shared, body).await,
                AdminRoute::Explain => explain(client, asking, body).await,
                AdminRoute::SetLog => set_log(&shared, &body, key),
                _ => admin::aggregate(&shared, &body, key != KeyId::NONE).await,
            }
        }
        AdminRoute::CacheStats => Answer::json(r#"{"enabled":false}"#),
        AdminRoute::CacheInvalidate => Answer::json(r#"{"enabled":false,"cleared":false}"#),
        AdminRoute::Config => admin::config(&shared).await,
        AdminRoute::PsDetails => admin::ps_details(&shared).await,
        AdminRoute::Health => admin::health(&shared, query).await,
        AdminRoute::Metrics => admin::metrics(&shared).await,
        AdminRoute::Live => admin::live(&shared),
        AdminRoute::Status => admin::status(&shared).await,
        AdminRoute::Ready => admin::ready(&shared),
        AdminRoute::Decisions => admin::decisions(&shared, query).await,
        AdminRoute::LedgerUsage => admin::ledger_usage(&shared, query, asking.known.accept).await,
        AdminRoute::Log => admin::log(),
        AdminRoute::Flamegraph if !client.local.rules().config.debug.flamegraph => return answer::not_found(),
        AdminRoute::Flamegraph => admin::flamegraph(&shared, query).await,
    };
    whole(answer)
}

/// A dry run of the request in this body; `?route=` says on which route.
async fn explain(client: &Rc<Client>, asking: &Asking<'_>, body: Bytes) -> Answer {
    let path = asking.query.and_then(|query| admin::parameter(query, "route"));
    let Some(route) = explain::route(path.as_deref()) else {
        let paths: Vec<_> = Route::ALL.into_iter().filter_map(Route::path).collect();
        return admin::error(StatusCode::BAD_REQUEST, &format!("route must be one of {}", paths.join(", ")));
    };
    let asked = Asked::read(route, asking.inbound(client), body).await;
    Answer::json(explain::explained(client, &asked).to_string())
}

/// Only who may administer models decides how much is logged: `debug` costs, `off` hides.
fn set_log(shared: &Shared, body: &[u8], key: KeyId) -> Answer {
    if !shared.config.now().administration.admits(shared.listen.ip().is_loopback(), key) {
        return admin::error(StatusCode::FORBIDDEN, "changing the log level needs a router key here (administration)");
    }
    admin::set_log(body)
}

/// An event stream as an answer's body.
struct Events(EventStream);

impl Body for Events {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(|never: Infallible| match never {})))
    }
}

fn whole(answer: Answer) -> Response<OutBody> {
    answer::whole(answer.status, answer.content_type, answer.body)
}
