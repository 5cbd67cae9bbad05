//! How things stand: status, devices, what waits and why, the configuration in force; and a poll for changes.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Context;
use super::answer::{Answer, Asked, Refused};
use crate::api::server;
use crate::api::shapes::{ErrorBody, WaitingView};
use crate::api::view::{Change, DeviceView, Status, View};

/// The longest poll for changes.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// What `gamdok status --json` prints.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(shared): Context) -> Response {
    let view = shared.board.read();
    // Published when something changes; these change all the time.
    let uptime_s = view.status.uptime_s.map(|_| (shared.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0);
    Json(Status { uptime_s, api: Some(shared.tally.read()), ..view.status.clone() }).into_response()
}

/// Every device with its verdict and the reason.
#[utoipa::path(get, path = "/v1/devices", responses((status = 200, body = Vec<DeviceView>)))]
pub(super) async fn devices(State(shared): Context) -> Response {
    Json(&shared.board.read().status.devices).into_response()
}

/// Why items wait, by route, state and reason, as far as the director lists them; most items first.
#[utoipa::path(get, path = "/v1/waiting", responses((status = 200, body = Vec<WaitingView>)))]
pub(super) async fn waiting(State(shared): Context) -> Response {
    Json(why(&shared.board.read())).into_response()
}

fn why(view: &View) -> Vec<WaitingView> {
    let mut groups: HashMap<_, (u64, Option<Timestamp>)> = HashMap::new();
    for row in view.live.iter().filter(|row| matches!(&*row.state, "claimed" | "ready" | "retrying" | "held")) {
        let group = groups.entry((row.route.as_deref(), &row.state, row.reason.as_deref())).or_default();
        group.0 += 1;
        group.1 = [group.1, row.arrived_at].into_iter().flatten().min();
    }
    let told = groups.into_iter().map(|((route, state, reason), (items, since))| WaitingView {
        route: route.map(str::to_owned),
        state: state.to_owned(),
        reason: reason.map(str::to_owned),
        items,
        since,
    });
    let mut told: Vec<WaitingView> = told.collect();
    told.sort_by(|a, b| {
        b.items.cmp(&a.items).then_with(|| (&a.route, &a.state, &a.reason).cmp(&(&b.route, &b.state, &b.reason)))
    });
    told
}

/// The configuration in force, resolved: what `gamdok check --json` has under `config`. Secrets are masked.
#[utoipa::path(get, path = "/v1/config", responses(
    (status = 200, body = serde_json::Value, description = "as gamdok.toml has it, with every default filled in"),
    (status = 503, body = ErrorBody),
))]
pub(super) async fn config(State(shared): Context) -> Answer<Response> {
    match shared.board.config() {
        Some(config) => Ok(Json(&*config).into_response()),
        None => Err(Refused::new(503, "starting", "the director isn't ready yet", "ask again in a moment")),
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ChangesQuery {
    /// Answer once the number is higher than this.
    #[serde(default)]
    after: u64,
    /// Seconds, at most 60; the default.
    timeout: Option<f64>,
}

/// Answers once something newer than `after` is published, or when the time is up.
#[utoipa::path(get, path = "/v1/changes", params(ChangesQuery), responses(
    (status = 200, body = Change), (status = 400, body = ErrorBody),
))]
pub(super) async fn changes(State(shared): Context, Asked(query): Asked<ChangesQuery>) -> Answer<Response> {
    let limit = match query.timeout {
        None => LONGEST_POLL,
        Some(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| Refused::bad("timeout is a number of seconds"))?
            .min(LONGEST_POLL),
    };
    let mut views = shared.board.subscribe();
    let mut stop = shared.stop.clone();
    tokio::select! {
        _ = async { views.wait_for(|view| view.number > query.after).await.is_ok() } => {}
        () = server::ended(&mut stop) => {}
        () = tokio::time::sleep(limit) => {}
    }
    let view = shared.board.read();
    let change = Change { number: view.number, state: view.status.state, counts: view.status.counts };
    Ok(Json(change).into_response())
}
