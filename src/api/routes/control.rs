//! Requests to the director: what is asked is resolved to ids here, and decided there.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use crossbeam_channel::TrySendError;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::answer::{Answer, Refused, Sent, blocking};
use super::items::named;
use super::{Context, Shared};
use crate::api::ended::Query;
use crate::api::reference::{self, Unresolved};
use crate::api::shapes::{
    CancelAnswer, CordonAnswer, ErrorBody, ReleaseAnswer, RetryAnswer, StateAnswer, UncordonAnswer,
};
use crate::api::view::Listed;
use crate::api::{Command, DeviceBody, InboxRef, JobsBody, Refusal, Request};
use crate::item::JobId;

/// The director answers within milliseconds; one that doesn't in this time hangs in a system call.
const PATIENCE: Duration = Duration::from_secs(30);

async fn ask(shared: &Shared, what: Command) -> Answer<Response> {
    let (reply, answer) = oneshot::channel();
    shared.requests.try_send(Request { what, reply }).map_err(|refused| match refused {
        TrySendError::Full(_) => {
            Refused::new(503, "busy", "the director has too many requests waiting", "ask again in a moment")
        }
        TrySendError::Disconnected(_) => Refused::stopping(),
    })?;
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(Ok(value))) => Ok(axum::Json(value).into_response()),
        Ok(Ok(Err(refusal))) => Err(Refused { status: status_of(&refusal), refusal }),
        Ok(Err(_)) => Err(Refused::stopping()),
        Err(_) => {
            Err(Refused::new(504, "silent", "the director doesn't answer", "look at its log; it may hang on a disk"))
        }
    }
}

fn status_of(refusal: &Refusal) -> StatusCode {
    match refusal.code.as_str() {
        "bad-request" => StatusCode::BAD_REQUEST,
        "not-found" | "no-such-device" => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    }
}

/// A body that says nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

async fn plain(shared: &Shared, Sent(Nothing {}): Sent<Nothing>, what: Command) -> Answer<Response> {
    ask(shared, what).await
}

/// Starts nothing new; what runs goes on.
#[utoipa::path(post, path = "/v1/pause", responses(
    (status = 200, body = StateAnswer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn pause(State(shared): Context, sent: Sent<Nothing>) -> Answer<Response> {
    plain(&shared, sent, Command::Pause).await
}

/// Goes on after a pause or a release.
#[utoipa::path(post, path = "/v1/resume", responses(
    (status = 200, body = StateAnswer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn resume(State(shared): Context, sent: Sent<Nothing>) -> Answer<Response> {
    plain(&shared, sent, Command::Resume).await
}

/// As the first SIGTERM: no new work, what runs ends, and then the director does.
#[utoipa::path(post, path = "/v1/drain", responses(
    (status = 200, body = StateAnswer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn drain(State(shared): Context, sent: Sent<Nothing>) -> Answer<Response> {
    plain(&shared, sent, Command::Drain).await
}

/// Lets go of the driver, so that it may be unloaded; `resume` takes it again.
#[utoipa::path(post, path = "/v1/release", responses(
    (status = 200, body = ReleaseAnswer), (status = 400, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn release(State(shared): Context, sent: Sent<Nothing>) -> Answer<Response> {
    plain(&shared, sent, Command::Release).await
}

/// Takes a device out until `uncordon`.
#[utoipa::path(post, path = "/v1/cordon", request_body = DeviceBody, responses(
    (status = 200, body = CordonAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn cordon(State(shared): Context, Sent(DeviceBody { device }): Sent<DeviceBody>) -> Answer<Response> {
    ask(&shared, Command::Cordon { device }).await
}

/// Takes a device in again, whoever took it out.
#[utoipa::path(post, path = "/v1/uncordon", request_body = DeviceBody, responses(
    (status = 200, body = UncordonAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 415, body = ErrorBody), (status = 503, body = ErrorBody),
))]
pub(super) async fn uncordon(
    State(shared): Context,
    Sent(DeviceBody { device }): Sent<DeviceBody>,
) -> Answer<Response> {
    ask(&shared, Command::Uncordon { device }).await
}

fn id_of(row: &Listed) -> Option<JobId> {
    row.id.as_ref()?.parse().ok()
}

fn nothing_named() -> Refused {
    Refused::bad("`jobs` names nothing")
}

/// Cancels what hasn't ended: jobs, and items in the inbox. One bad name refuses the whole.
#[utoipa::path(post, path = "/v1/cancel", request_body = JobsBody, responses(
    (status = 200, body = CancelAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn cancel(State(shared): Context, Sent(asked): Sent<JobsBody>) -> Answer<Response> {
    if asked.failed || asked.route.is_some() {
        return Err(Refused::bad("cancel takes `jobs` only"));
    }
    let (mut jobs, mut inbox) = (Vec::new(), Vec::new());
    for row in named(&shared, asked.jobs).await? {
        if Query::ENDED.contains(&row.state.as_str()) {
            let message = format!("{} has ended: {}", reference::label(&row), row.state);
            return Err(Refused::new(409, "ended", message, "only what hasn't ended can be cancelled"));
        }
        match id_of(&row) {
            Some(id) => jobs.push(id),
            None if row.state == "ignored" => {
                let message = format!("{} has a temporary name: it is no item, and is never taken", row.name);
                let help = "there is nothing to cancel: remove it by hand, or let its producer rename it";
                return Err(Refused::new(409, "ignored", message, help));
            }
            None => {
                let name = || Some(crate::item::ItemName::new(bytes_of(&row.name)?).base64());
                let name_b64 = row.name_b64.clone().or_else(name);
                let name_b64 = name_b64.ok_or_else(|| Refused::from(Unresolved::Unknown(row.name.clone())))?;
                inbox.push(InboxRef { folder: row.folder, name_b64 });
            }
        }
    }
    if jobs.is_empty() && inbox.is_empty() {
        return Err(nothing_named());
    }
    ask(&shared, Command::Cancel { jobs, inbox }).await
}

fn bytes_of(escaped: &str) -> Option<std::ffi::OsString> {
    use std::os::unix::ffi::OsStringExt as _;
    reference::unescape(escaped).map(std::ffi::OsString::from_vec)
}

/// Tries ended jobs again, under their ids: those named, or all that failed. One bad name refuses the whole.
#[utoipa::path(post, path = "/v1/retry", request_body = JobsBody, responses(
    (status = 200, body = RetryAnswer), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 413, body = ErrorBody), (status = 415, body = ErrorBody),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn retry(State(shared): Context, Sent(asked): Sent<JobsBody>) -> Answer<Response> {
    let mut rows = named(&shared, asked.jobs).await?;
    if asked.failed {
        let query = Query { states: vec!["failed".to_owned()], route: asked.route, ..Query::default() };
        let shared = shared.clone();
        rows.extend(blocking(move || shared.ended.list(&query).map_err(Refused::io)).await?);
    } else if asked.route.is_some() {
        return Err(Refused::bad("`route` goes with `failed`"));
    } else if rows.is_empty() {
        return Err(nothing_named());
    }
    if let Some(row) = rows.iter().find(|row| !Query::ENDED.contains(&row.state.as_str())) {
        let message = format!("{} hasn't ended: {}", reference::label(row), row.state);
        return Err(Refused::new(409, "not-ended", message, "only what has ended can be retried"));
    }
    let mut jobs: Vec<JobId> = rows.iter().filter_map(id_of).collect();
    jobs.sort_unstable();
    jobs.dedup();
    if jobs.is_empty() {
        return Ok(axum::Json::<Value>(json!({ "retried": [], "refused": [] })).into_response());
    }
    ask(&shared, Command::Retry { jobs }).await
}
