//! Items by upload: the body goes into a file below the root's own directory, is synced, and only then renamed into the
//! inbox, so that what is claimed is whole. An upload that breaks off leaves nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{CONTENT_LENGTH, EXPECT, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::answer::{Answer, Asked, Refused, blocking, drain, kind};
use super::{Context, Shared};
use crate::api::client::encoded;
use crate::api::incoming::{Incoming, Target, Wrong};
use crate::api::shapes::{ErrorBody, Uploaded};

/// Parts of a body that wait for the disk.
const AHEAD: usize = 4;

/// From the second minute on an upload has to be at least this fast, in bytes a second.
const SLOWEST: u64 = 1 << 10;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadQuery {
    /// The item's name in the inbox: a file name that a route takes.
    name: String,
    /// The intake folder; the inbox itself without it.
    #[serde(default)]
    folder: String,
}

/// Puts the body into the inbox as a file of this name. It replaces nothing.
#[utoipa::path(put, path = "/v1/items", params(UploadQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 201, body = Uploaded, headers(("location" = String))),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody, description = "no such intake folder"),
    (status = 408, body = ErrorBody), (status = 409, body = ErrorBody, description = "one of this name is there, or no route takes it"),
    (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 503, body = ErrorBody), (status = 507, body = ErrorBody),
))]
pub(super) async fn put(
    State(shared): Context,
    Asked(query): Asked<UploadQuery>,
    request: HttpRequest,
) -> Answer<Response> {
    upload(shared, query, request).await
}

/// The same.
#[utoipa::path(post, path = "/v1/items", params(UploadQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"), responses(
    (status = 201, body = Uploaded, headers(("location" = String))),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody, description = "no such intake folder"),
    (status = 408, body = ErrorBody), (status = 409, body = ErrorBody, description = "one of this name is there, or no route takes it"),
    (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 503, body = ErrorBody), (status = 507, body = ErrorBody),
))]
pub(super) async fn post(
    State(shared): Context,
    Asked(query): Asked<UploadQuery>,
    request: HttpRequest,
) -> Answer<Response> {
    upload(shared, query, request).await
}

async fn upload(shared: Arc<Shared>, query: UploadQuery, request: HttpRequest) -> Answer<Response> {
    let (parts, mut body) = request.into_parts();
    let done = take(&shared, query, &parts.headers, &mut body).await;
    // Beside the answer, which a client may be waiting for before it sends the rest.
    if done.is_err() && !parts.headers.contains_key(EXPECT) {
        tokio::spawn(drain(body));
    }
    let uploaded = done?;
    let path = match uploaded.folder.as_str() {
        "" => format!("./{}", uploaded.name),
        folder => format!("{folder}/{}", uploaded.name),
    };
    let location = [(LOCATION, format!("/v1/items/{}", encoded(&path)))];
    Ok((StatusCode::CREATED, location, axum::Json(uploaded)).into_response())
}

async fn take(shared: &Arc<Shared>, query: UploadQuery, headers: &HeaderMap, body: &mut Body) -> Answer<Uploaded> {
    // What a form on a foreign page can send without asking first.
    let form = |kind: &str| {
        kind.starts_with("multipart/") || kind == "application/x-www-form-urlencoded" || kind == "text/plain"
    };
    if kind(headers).is_some_and(|kind| form(&kind.to_ascii_lowercase())) {
        let help = "send the bytes as they are, with `Content-Type: application/octet-stream`";
        return Err(Refused::new(415, "unsupported-type", "an item isn't sent as a form", help));
    }
    let Ok(_place) = shared.uploads.try_acquire() else {
        return Err(Refused::new(503, "busy", "as many uploads as may be are under way", "ask again in a moment"));
    };
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let most = shared.max_upload;
    let known = shared.clone();
    let (target, incoming) = blocking(move || {
        let target = Target::new(&known.directories, &query.folder, &query.name).map_err(refused)?;
        if announced.is_some_and(|length| length > most) {
            return Err(refused(Wrong::TooLarge(most)));
        }
        let incoming = Incoming::begin(known.directories.root(), most, announced).map_err(refused)?;
        Ok((target, incoming))
    })
    .await?;
    let (send, parts) = mpsc::channel(AHEAD);
    let writes = tokio::task::spawn_blocking(move || incoming.write(parts).map(|whole| (whole, target)));
    let sent = pump(body, send, shared.patience.silence).await;
    // The end of the parts tells nothing of whether they are all: that is said here.
    let written = writes.await.map_err(|_| Refused::stopping())?;
    let (incoming, target) = match (sent, written) {
        (_, Err(wrong)) => return Err(refused(wrong)),
        (Err(refusal), Ok(_)) => {
            if refusal.status == StatusCode::REQUEST_TIMEOUT {
                shared.tally.dropped();
            }
            return Err(refusal);
        }
        (Ok(()), Ok(it)) => it,
    };
    blocking(move || incoming.place(target).map_err(refused)).await
}

/// Hands the body's parts on, until it ends or nobody takes them any more.
async fn pump(body: &mut Body, send: mpsc::Sender<Bytes>, silence: Duration) -> Answer<()> {
    let begun = tokio::time::Instant::now();
    let mut bytes = 0;
    loop {
        let late = || Refused::new(408, "timeout", "the upload is too slow, or has stopped", "send it again");
        let frame = tokio::time::timeout(silence, body.frame()).await.map_err(|_| late())?;
        let Some(frame) = frame else { return Ok(()) };
        let frame = frame.map_err(|wrong| Refused::bad(format!("the body broke off: {wrong}")))?;
        let Ok(part) = frame.into_data() else { continue };
        bytes += part.len() as u64;
        let seconds = begun.elapsed().as_secs();
        if seconds >= 60 && bytes / seconds < SLOWEST {
            return Err(late());
        }
        if send.send(part).await.is_err() {
            return Ok(());
        }
    }
}

fn refused(wrong: Wrong) -> Refused {
    let status = match wrong {
        Wrong::Name(_) => 400,
        Wrong::NoFolder(_) => 404,
        Wrong::NoRoute(_) | Wrong::Exists(_) => 409,
        Wrong::TooLarge(_) => 413,
        Wrong::NoRoot => 503,
        Wrong::NoRoom => 507,
        Wrong::Io(_) => 500,
    };
    Refused::new(status, wrong.code(), wrong.to_string(), wrong.help())
}
