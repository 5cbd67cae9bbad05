//! Server-sent events: every change, with resume.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::mpsc;

use super::answer::{Answer, Refused};
use super::{Context, Shared};
use crate::api::feed::Follower;
use crate::api::pipe::pipe;
use crate::api::shapes::ErrorBody;

/// Event streams at a time.
const STREAMS: u64 = 64;

/// Something is said at least this often, so that both sides find out when the other is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How long a client should wait before it comes back.
const RETRY: &str = "retry: 1000\n\n";

/// Every change as a server-sent event: `Told` lists the names and what each carries. The first is `reset` (read
/// `/v1/status` and `/v1/items`, then go on with the events), unless `Last-Event-ID` names an event that is still kept. A
/// client that falls too far behind, or doesn't read at all, is cut off.
#[utoipa::path(get, path = "/v1/events",
    params(("Last-Event-ID" = Option<String>, Header, description = "the id of the last event that was taken in")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 503, body = ErrorBody, description = "too many streams"),
    ))]
pub(super) async fn events(State(shared): Context, headers: HeaderMap) -> Answer<Response> {
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?"));
    let (out, body) = pipe();
    let (follower, first) = {
        // Counted by the task that writes; looked at here, to refuse in time.
        if shared.tally.read().streams >= STREAMS {
            let message = format!("{STREAMS} event streams are open already");
            return Err(Refused::new(503, "busy", message, "close one, or ask again later"));
        }
        shared.feed.follow(last, &shared.board).await
    };
    tokio::spawn(stream(shared, follower, format!("{RETRY}{}", first.unwrap_or_default()), out));
    Ok(([(CONTENT_TYPE, "text/event-stream")], body).into_response())
}

async fn stream(shared: Arc<Shared>, mut follower: Follower, first: String, out: mpsc::Sender<Bytes>) {
    let Some(_present) = shared.tally.stream(STREAMS) else { return };
    let mut next = Bytes::from(first);
    loop {
        if out.send(next).await.is_err() {
            return;
        }
        next = loop {
            match follower.next() {
                Some(batch) if !batch.is_empty() => break batch,
                Some(_) => {}
                None => {
                    tracing::warn!("a client that follows the events is too far behind, and is cut off");
                    return shared.tally.dropped();
                }
            }
            tokio::select! {
                () = out.closed() => return,
                more = follower.changed() => if !more { return },
                () = tokio::time::sleep(KEEP_ALIVE) => break Bytes::from_static(b": still here\n\n"),
            }
        };
    }
}
