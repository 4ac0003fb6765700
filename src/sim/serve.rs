//! The life of one connection: heads in, handlers called, connection kept, closed or lost.
//!
//! Started by `node.rs` for every accepted socket. What a handler answers is elsewhere.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use super::conn::Conn;
use super::fault::Moment;
use super::host::{Core, Open};
use super::http::{Expect, Head, Length, Reply};
use super::infer::{self, Next, Turn};
use super::job::Dialect;
use super::ledger::{Ending, Tokens};
use super::paths::{self, Do, Way};
use super::spec::{Cloud, Engine};
use super::{control, lists, llama, pull, store, text};

/// Serves a connection to its end.
pub(super) async fn connection(core: Arc<Core>, stream: TcpStream) {
    let open = Open::new(&core);
    let mut conn = Conn::new(stream);
    let mut served = 0;
    let idle = (core.spec.engine == Engine::LlamaCpp).then_some(llama::IDLE);
    loop {
        let next = match idle {
            Some(idle) if served > 0 => match tokio::time::timeout(idle, conn.head()).await {
                Ok(next) => next,
                Err(_) => return,
            },
            _ => conn.head().await,
        };
        let head = match next {
            Ok(Ok(Some(head))) => head,
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(bad)) => {
                let _ = conn.push(&bad.answer()).await;
                return conn.close_gently().await;
            }
        };
        served += 1;
        let next = match core.spec.engine {
            _ if head.target.starts_with("/sim/") => control::on_node(&core, &mut conn, &head).await,
            Engine::Ollama => handle(&core, &mut conn, &head).await,
            Engine::LlamaCpp => llama::handle(&core, &mut conn, &head, served).await,
        };
        match next {
            Next::Keep if head.keep_alive => {}
            Next::Keep => return conn.close_gently().await,
            Next::Close => {
                if core.spec.engine == Engine::LlamaCpp || head.expect != Expect::Nothing {
                    conn.close_gently().await;
                }
                return;
            }
            Next::Park => {
                core.park(conn.into_stream(), open);
                return;
            }
        }
    }
}

/// Handles one request to an Ollama node.
async fn handle(core: &Arc<Core>, conn: &mut Conn, head: &Head) -> Next {
    let mut cors = Vec::new();
    if head.expect == Expect::Unknown {
        let mut turn = Turn::new(core, conn, head, "other");
        let mut reply = Reply::empty(417).with("Connection", "close");
        reply.close = false;
        turn.answer(Ending::Refused, Tokens::default(), reply).await;
        return Next::Close;
    }
    let (handler, route, rest) = match paths::route(head, &core.spec, &mut cors) {
        Way::To(handler, route, rest) => (handler, route, rest),
        Way::Reply(mut reply) => {
            reply.headers.append(&mut cors);
            let Ok(close) = conn.discard(head).await else { return Next::Close };
            reply.close = close;
            let mut turn = Turn::new(core, conn, head, "other");
            return turn.answer(Ending::Refused, Tokens::default(), reply).await;
        }
    };
    let mut turn = Turn::new(core, conn, head, route);
    if let Do::Infer(dialect) = handler {
        return infer::infer(&mut turn, dialect).await;
    }
    let harms = core.harms(Moment::Asked, route, false, None);
    if !harms.is_empty()
        && let Some(next) = turn.suffer(harms, Dialect::Generate, false).await
    {
        return next;
    }
    if handler == Do::Pull {
        return pull::pull(&mut turn, cors).await;
    }
    let reply = match handler {
        Do::BlobPost => store::blob_post(&mut turn, &rest).await,
        _ => plain(&mut turn, handler, &rest).await,
    };
    let Some(mut reply) = reply else { return turn.gone(super::sched::Cancel::Aborted) };
    reply.headers.append(&mut cors);
    let ending = if reply.status < 400 { Ending::Done } else { Ending::Refused };
    turn.answer(ending, Tokens::default(), reply).await
}

/// The answer of a handler that reads its whole body first; nothing when the client went meanwhile.
async fn plain(turn: &mut Turn<'_>, handler: Do, rest: &str) -> Option<Reply> {
    let core = turn.core;
    let body = match handler {
        _ if turn.head.length == Length::Sized(0) => super::conn::Body::default(),
        _ => turn.conn.body(turn.head).await.ok()?,
    };
    turn.open = body.open;
    let reply = match handler {
        Do::Root => Reply::new(200, "text/plain; charset=utf-8", "Ollama is running"),
        Do::Version => Reply::json(200, format!("{{\"version\":{}}}", text::quoted(&core.spec.version))),
        Do::Status => {
            let off = core.spec.cloud == Cloud::Disabled;
            let source = if off { "env" } else { "none" };
            Reply::json(200, format!("{{\"cloud\":{{\"disabled\":{off},\"source\":\"{source}\"}}}}"))
        }
        // A half-closed connection reads as a cancelled request, and this handler looks.
        Do::Tags if turn.conn.gone_now() => lists::error(500, "context canceled"),
        Do::Tags => lists::tags(core),
        Do::Ps => lists::ps(core),
        Do::Show => lists::show(core, turn.head, &body),
        Do::V1Models => lists::v1_models(core),
        Do::V1Model => lists::v1_model(core, rest),
        Do::Push => pull::push(core, &body),
        Do::Create => store::create(core, &body),
        Do::Copy => store::copy(core, &body),
        Do::Delete => store::delete(core, &body),
        Do::BlobHead => store::blob_head(core, rest),
        Do::Me => Reply::json(503, "{\"error\":\"account unavailable\"}"),
        Do::Signout => Reply::json(401, "{\"error\":\"you are not currently signed in\"}"),
        Do::Web(what) if core.spec.cloud == Cloud::Disabled => {
            Reply::json(403, format!("{{\"error\":\"ollama cloud is disabled: {what} is unavailable\"}}"))
        }
        Do::Web(_) => Reply::json(502, "{\"error\":\"dial tcp: lookup ollama.com: no such host\"}"),
        Do::Recommendations => Reply::json(200, "{\"recommendations\":[]}"),
        Do::Infer(_) | Do::BlobPost | Do::Pull => Reply::empty(500),
    };
    Some(reply)
}

/// Waits without watching anybody.
pub(super) async fn pause(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}
