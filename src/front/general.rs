//! hyper's side of the front: HTTP/1.0, targets in absolute form, and whatever else our own leaves to it.
//!
//! Called once per connection that needs it, with the bytes that were read and not served. Must never be on the way of an
//! ordinary request.

use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use bytes::BytesMut;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::net::TcpStream;

use crate::front::checks::{self, Asking, Door, HeadLines};
use crate::front::io::ClientIo;
use crate::front::perform;
use crate::http1::Lines;
use crate::proxy::answer::OutBody;
use crate::proxy::headers::{self, Known};
use crate::proxy::local::Client;
use crate::shared::Phase;

/// Serves the rest of a connection; `read` was read from it and not served.
pub(super) async fn serve(client: Rc<Client>, stream: TcpStream, read: BytesMut) {
    let local = client.local.clone();
    let rules = local.rules();
    let io = ClientIo::new(stream, read, client.watch.clone(), local.clock.clone(), rules.times.request_head);
    let limits = &rules.config.limits;
    let service = service_fn(move |request| {
        let client = client.clone();
        async move { Ok::<_, Infallible>(answer(client, request).await) }
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .writev(false)
        .title_case_headers(true)
        .header_read_timeout(None)
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.unsent_bytes.max(limits.head_bytes))
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut leaving = false;
    let served = std::future::poll_fn(|cx| {
        if !leaving && local.shared.phase() >= Phase::Draining {
            leaving = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(cx)
    });
    if let Err(error) = served.await {
        tracing::debug!(%error, "client connection ended");
    }
}

async fn answer(client: Rc<Client>, request: Request<Incoming>) -> Response<OutBody> {
    let (head, mut incoming) = request.into_parts();
    let asking = Asking {
        method: head.method,
        target: head.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        path: head.uri.path(),
        query: head.uri.query(),
        // An absolute target needs one too: RFC 9112 says so, and Go refuses it.
        needs_host: head.version == Version::HTTP_11,
        known: Known::read(headers::of_map(&head.headers)),
        lines: HeadLines::Map(&head.headers),
    };
    client.begin(asking.known.request_id);
    client.watch.disarm();
    let mut response = match checks::admit(&client, &asking) {
        Door::Continue(admitted) => perform(&client, &admitted, &asking, &mut incoming).await,
        Door::Break(response) => response,
    };
    if let OutBody::Stream(body) = response.body_mut() {
        let lines = headers::to_map(body.lines());
        body.head_sent();
        // Ours (of an allowed origin) stand beside the node's.
        let ours = std::mem::replace(response.headers_mut(), lines);
        response.headers_mut().extend(ours);
    }
    let mut told = Vec::new();
    client.tell(&mut told);
    headers::append(response.headers_mut(), Lines::holding(told).iter());
    response
}
