//! What the server answers: `/v1/…`, JSON in and out. Reads come from the published view and the directories, requests
//! go to the director; nothing here waits on anything but the answer it was asked for. Every route is described where it
//! is written, and `/v1/openapi.json` is made of that.

pub(super) mod answer;
mod control;
mod events;
mod items;
mod logs;
mod metrics;
mod past;
mod state;
mod upload;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request as HttpRequest, State};
use axum::http::header::{ALLOW, CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use crossbeam_channel::Sender;
use tokio::sync::{Semaphore, watch};
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::directories::Directories;
use super::ended::Ended;
use super::feed::Feed;
use super::guard::Guard;
use super::tally::Tally;
use super::{Board, Patience, Request, page};
use crate::metrics::Metrics;
use answer::Refused;

/// What the handlers share.
pub(super) struct Shared {
    pub(super) board: Board,
    pub(super) requests: Sender<Request>,
    pub(super) ended: Arc<dyn Ended>,
    pub(super) directories: Directories,
    pub(super) metrics: Arc<Metrics>,
    pub(super) started: Instant,
    pub(super) feed: Arc<Feed>,
    pub(super) tally: Arc<Tally>,
    /// The largest upload, and how many may be under way.
    pub(super) max_upload: u64,
    pub(super) uploads: Semaphore,
    pub(super) patience: Patience,
    /// Logs that are being followed.
    pub(super) followers: AtomicUsize,
    /// Becomes true when the server ends: polls are answered at once.
    pub(super) stop: watch::Receiver<bool>,
}

type Context = State<Arc<Shared>>;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "gamdok",
        description = "See and steer a gamdok director. Over the root's Unix socket `.gamdok/sock`, and over TCP where \
            `[api] listen` says so. Whatever isn't answered with 2xx carries `{\"error\":{\"code\",\"message\",\"help\"}}`.",
    ),
    components(schemas(super::told::Told))
)]
struct Description;

/// The described routes, and their description.
pub(super) fn described() -> (Router<Arc<Shared>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(state::status))
        .routes(routes!(state::devices))
        .routes(routes!(state::waiting))
        .routes(routes!(state::config))
        .routes(routes!(state::changes))
        .routes(routes!(events::events))
        .routes(routes!(items::list, upload::put, upload::post))
        .routes(routes!(items::show))
        .routes(routes!(logs::log))
        .routes(routes!(past::attempts))
        .routes(routes!(past::trend))
        .routes(routes!(control::pause))
        .routes(routes!(control::resume))
        .routes(routes!(control::drain))
        .routes(routes!(control::release))
        .routes(routes!(control::cordon))
        .routes(routes!(control::uncordon))
        .routes(routes!(control::cancel))
        .routes(routes!(control::retry))
        .split_for_parts()
}

/// All routes; `guard` stands before them where requests come over TCP. What isn't part of `/v1` (a page, metrics) is
/// merged here.
pub(super) fn router(shared: Arc<Shared>, guard: Option<Guard>) -> Router {
    let (router, description) = described();
    let description: Arc<str> = description.to_json().unwrap_or_default().into();
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    let tally = shared.tally.clone();
    let router = router
        .merge(page::routes())
        .route("/metrics", get(metrics::metrics))
        .route("/v1/openapi.json", get(async move || (json, description.to_string())))
        .fallback(async || Refused::new(404, "no-such-path", "there is nothing at this path", "see /v1/openapi.json"))
        .method_not_allowed_fallback(async || {
            Refused::new(
                405,
                "method-not-allowed",
                "this path has another method",
                "see its `Allow`, or /v1/openapi.json",
            )
        })
        .with_state(shared)
        .layer(middleware::from_fn(manners));
    match guard {
        None => router,
        Some(guard) => router.layer(middleware::from_fn(move |request: HttpRequest, next: Next| {
            let verdict = guard.check(request.method(), request.headers(), !page::has(request.uri().path()));
            let tally = tally.clone();
            async move {
                match verdict {
                    Ok(()) => next.run(request).await,
                    Err((status, refusal)) => {
                        tally.refused();
                        Refused { status, refusal }.into_response()
                    }
                }
            }
        })),
    }
}

/// What holds for every answer: `OPTIONS` tells the methods, and nothing is kept by caches or guessed at by browsers.
async fn manners(request: HttpRequest, next: Next) -> Response {
    let asks = request.method() == Method::OPTIONS;
    let mut answer = next.run(request).await;
    if asks && answer.status() == StatusCode::METHOD_NOT_ALLOWED {
        let allow = answer.headers().get(ALLOW).cloned();
        answer = StatusCode::NO_CONTENT.into_response();
        answer.headers_mut().extend(allow.map(|allow| (ALLOW, allow)));
    }
    let headers = answer.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}
