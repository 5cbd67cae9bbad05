//! What the server answers: `/v1/…`, JSON in and out. Reads come from the published view and the directories, requests
//! go to the director; nothing here waits on anything but the answer it was asked for.

use std::collections::HashSet;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query as UrlQuery, Request as HttpRequest, State};
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderName, X_CONTENT_TYPE_OPTIONS};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use crossbeam_channel::{Sender, TrySendError};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{oneshot, watch};

use super::directories::{self, Directories};
use super::ended::{Ended, Query};
use super::guard::Guard;
use super::reference::{self, Unresolved, fit};
use super::unlisted;
use super::view::{Change, Listed, Status};
use super::{Board, Command, DeviceBody, InboxRef, JobsBody, Refusal, Request, server};
use crate::item::JobId;
use crate::metrics::{self, Format, Metrics};

/// A body larger than this is no request of ours.
const LARGEST_BODY: usize = 1 << 20;

/// A client that takes longer to send its body is cut off.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The director answers within milliseconds; one that doesn't in this time hangs in a system call.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest poll for changes.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// A log is read in parts of this size.
const LOG_PART: u64 = 1 << 20;

/// What the handlers share.
pub(super) struct Shared {
    pub(super) board: Board,
    pub(super) requests: Sender<Request>,
    pub(super) ended: Arc<dyn Ended>,
    pub(super) directories: Directories,
    pub(super) metrics: Arc<Metrics>,
    pub(super) started: Instant,
    /// Becomes true when the server ends: polls are answered at once.
    pub(super) stop: watch::Receiver<bool>,
}

type Context = State<Arc<Shared>>;

/// All routes; `guard` stands before them where requests come over TCP.
pub(super) fn router(shared: Arc<Shared>, guard: Option<Guard>) -> Router {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/devices", get(devices))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{job}", get(show))
        .route("/v1/jobs/{job}/logs", get(log))
        .route("/v1/changes", get(changes))
        .route("/metrics", get(metrics))
        .route("/v1/pause", post(pause))
        .route("/v1/resume", post(resume))
        .route("/v1/drain", post(drain))
        .route("/v1/release", post(release))
        .route("/v1/cordon", post(cordon))
        .route("/v1/uncordon", post(uncordon))
        .route("/v1/cancel", post(cancel))
        .route("/v1/retry", post(retry))
        .fallback(async || Refused::new(404, "no-such-path", "there is nothing at this path", "the paths are /v1/…"))
        .method_not_allowed_fallback(async || {
            Refused::new(405, "method-not-allowed", "this path has another method", "reads are GET, requests POST")
        })
        .with_state(shared);
    match guard {
        None => router,
        Some(guard) => router.layer(middleware::from_fn(move |request: HttpRequest, next: Next| {
            let verdict = guard.check(request.method(), request.headers());
            async move {
                match verdict {
                    Ok(()) => next.run(request).await,
                    Err((status, refusal)) => Refused { status, refusal }.into_response(),
                }
            }
        })),
    }
}

/// An answer that isn't what was asked for.
#[derive(Debug)]
struct Refused {
    status: StatusCode,
    refusal: Refusal,
}

impl Refused {
    fn new(status: u16, code: &str, message: impl Into<String>, help: &str) -> Refused {
        Refused {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            refusal: Refusal { code: code.to_owned(), message: message.into(), help: help.to_owned() },
        }
    }

    fn bad(message: impl Into<String>) -> Refused {
        Refused::new(400, "bad-request", message, "see the API's description for the fields of this request")
    }

    fn io(error: std::io::Error) -> Refused {
        Refused::new(500, "io", error.to_string(), "look at the root's directories and their permissions")
    }

    fn stopping() -> Refused {
        Refused::new(503, "stopping", "the director is ending", "ask again once it runs")
    }
}

impl From<Unresolved> for Refused {
    fn from(wrong: Unresolved) -> Refused {
        let status = match wrong {
            Unresolved::Empty => 400,
            Unresolved::Unknown(_) => 404,
            Unresolved::Ambiguous { .. } => 409,
        };
        Refused::new(status, wrong.code(), wrong.to_string(), wrong.help())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.status, axum::Json(json!({ "error": self.refusal }))).into_response()
    }
}

type Answer<T> = Result<T, Refused>;

/// The query of the URL, or what is wrong with it.
struct Asked<T>(T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Answer<Asked<T>> {
        let parsed: Result<UrlQuery<T>, QueryRejection> = UrlQuery::from_request_parts(parts, state).await;
        parsed.map(|UrlQuery(query)| Asked(query)).map_err(|wrong| Refused::bad(wrong.body_text()))
    }
}

/// The job named in the path, or what is wrong with it.
struct Named(String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, state: &S) -> Answer<Named> {
        let parsed: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        parsed.map(|Path(job)| Named(job)).map_err(|wrong| Refused::bad(wrong.body_text()))
    }
}

/// A request's body as JSON; an empty one is `{}`.
async fn body<T: DeserializeOwned>(body: Body) -> Answer<T> {
    let read = tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, LARGEST_BODY)).await;
    let bytes: Bytes = match read {
        Err(_) => return Err(Refused::new(408, "timeout", "the body took too long", "send it at once")),
        Ok(Err(_)) => {
            let message = format!("the body can't be read, or is larger than {LARGEST_BODY} bytes");
            return Err(Refused::new(413, "too-large", message, "name fewer jobs at a time"));
        }
        Ok(Ok(bytes)) => bytes,
    };
    let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|wrong| Refused::bad(format!("the body isn't what is expected: {wrong}")))
}

/// Runs what may block on a thread of its own kind, so that no other client waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Refused::stopping()))
}

// Reads.

async fn status(State(shared): Context) -> Response {
    let view = shared.board.read();
    // Published when something changes; this changes all the time.
    let uptime_s = view.status.uptime_s.map(|_| (shared.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0);
    axum::Json(Status { uptime_s, ..view.status.clone() }).into_response()
}

async fn devices(State(shared): Context) -> Response {
    axum::Json(&shared.board.read().status.devices).into_response()
}

/// For Prometheus.
async fn metrics(State(shared): Context, headers: HeaderMap) -> Answer<Response> {
    let format = Format::accepted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    let page = metrics::scrape(&shared.metrics, &shared.board.read(), shared.started.elapsed(), format);
    let page =
        page.map_err(|error| Refused::new(500, "io", error.to_string(), "tell of it: it is a mistake in gamdok"))?;
    Ok(([(CONTENT_TYPE, format.content_type())], page).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsQuery {
    /// Words of `list`, separated by commas.
    #[serde(default)]
    state: String,
    route: Option<String>,
    since: Option<Timestamp>,
    after: Option<JobId>,
    limit: Option<usize>,
}

impl JobsQuery {
    fn checked(self) -> Answer<Query> {
        let states: Vec<String> = self.state.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        match states.iter().find(|word| !Query::STATES.contains(&word.as_str())) {
            Some(word) => Err(Refused::bad(format!("no state `{word}`; there are {}", Query::STATES.join(", ")))),
            None => Ok(Query {
                states,
                route: self.route,
                since: self.since,
                after: self.after,
                limit: Some(self.limit.unwrap_or(100).min(100_000)),
            }),
        }
    }
}

/// What hasn't ended, then what has, newest first. With `after` only the latter: the next page.
async fn jobs(State(shared): Context, Asked(query): Asked<JobsQuery>) -> Answer<Response> {
    let query = query.checked()?;
    let view = shared.board.read();
    let limit = query.limit.unwrap_or(usize::MAX);
    let first = query.after.is_none() && query.wants_live();
    let live = view.live.iter().filter(|row| first && query.admits(row)).take(limit);
    let mut rows: Vec<Listed> = live.cloned().collect();
    if query.wants_ended() && rows.len() < limit {
        let rest = Query { limit: Some(limit - rows.len()), ..query };
        let known: HashSet<String> = rows.iter().filter_map(|row| row.id.clone()).collect();
        let ended = blocking(move || {
            let mut ended = shared.ended.list(&rest).map_err(Refused::io)?;
            // One that was revived a moment ago lives, whatever the index still says.
            let revived =
                |row: &Listed| row.id.as_ref().is_some_and(|id| known.contains(id)) && shared.directories.is_live(row);
            ended.retain(|row| !revived(row));
            Ok(ended)
        });
        let ended = ended.await?;
        // A job that ended between the two looks is listed once, by its outcome.
        rows.retain(|row| row.id.is_none() || !ended.iter().any(|it| it.id == row.id));
        rows.extend(ended);
    }
    Ok(axum::Json(rows).into_response())
}

/// The one row that `text` means, among all that is known anywhere. Blocks.
fn lookup(shared: &Shared, text: &str) -> Answer<Listed> {
    let view = shared.board.read();
    let live = view.live.iter().filter(|row| fit(text, row).is_some());
    // Of the inbox the file system knows best: names beyond the view's window are there too, claimed ones no longer.
    let unjudged = unlisted::unlisted(&view.status.counts, &view.live).unwrap_or_else(unlisted::arrived);
    let directories = shared.directories.saying(unjudged);
    // A job whose item still lies in the inbox is just being claimed: both are one. Asked for in this order, an item that
    // moves meanwhile isn't taken for a second one of its name.
    let moving: Vec<(String, String)> = live
        .clone()
        .filter(|row| row.state == "claimed" && !directories.has_item(row))
        .map(|row| (row.folder.clone(), row.name.clone()))
        .collect();
    let mut waiting = directories.find_waiting(text);
    waiting.retain(|row| !moving.contains(&(row.folder.clone(), row.name.clone())));
    let there =
        |row: &&Listed| row.id.is_some() || waiting.iter().any(|it| (&it.folder, &it.name) == (&row.folder, &row.name));
    let live: Vec<Listed> = live.filter(there).cloned().collect();
    let mut ended = shared.ended.find(text).map_err(Refused::io)?;
    // The later row stands: the outcome of a job that ended since the view was published, but not an outcome that a
    // retry took back.
    ended.retain(|row| !shared.directories.is_live(row));
    let found = reference::resolve(text, waiting.into_iter().chain(live).chain(ended));
    match found {
        // Between its last publication and its index, or not indexed yet: the directories know.
        Err(Unresolved::Unknown(_)) => {
            Ok(reference::resolve(text, directories.candidates(text).map_err(Refused::io)?)?)
        }
        found => Ok(found?),
    }
}

async fn show(State(shared): Context, Named(job): Named) -> Answer<Response> {
    let shown = blocking(move || {
        let row = lookup(&shared, &job)?;
        Ok(shared.directories.show(row))
    });
    Ok(axum::Json(shown.await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogQuery {
    attempt: Option<u32>,
    #[serde(default)]
    offset: u64,
}

/// One part of a log, as it is. The headers tell which attempt's, and how long the whole is now.
async fn log(State(shared): Context, Named(job): Named, Asked(query): Asked<LogQuery>) -> Answer<Response> {
    let part = blocking(move || {
        let row = lookup(&shared, &job)?;
        let dir = shared.directories.dir(&row);
        let found = dir.and_then(|dir| directories::log(&dir, query.attempt));
        let Some((attempt, path)) = found else {
            return Err(Refused::new(404, "no-log", "there is no such log", "an attempt that never ran has none"));
        };
        let read = || {
            let mut file = std::fs::File::open(&path)?;
            let size = file.metadata()?.len();
            file.seek(SeekFrom::Start(query.offset.min(size)))?;
            let mut bytes = Vec::new();
            file.take(LOG_PART).read_to_end(&mut bytes)?;
            Ok((attempt, size, bytes))
        };
        read().map_err(Refused::io)
    });
    let (attempt, size, bytes) = part.await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("gamdok-attempt"), attempt.to_string()),
        (HeaderName::from_static("gamdok-size"), size.to_string()),
    ];
    Ok((headers, bytes).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangesQuery {
    #[serde(default)]
    after: u64,
    /// Seconds.
    timeout: Option<f64>,
}

/// Answers once something newer than `after` is published, or when the time is up.
async fn changes(State(shared): Context, Asked(query): Asked<ChangesQuery>) -> Answer<Response> {
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
    Ok(axum::Json(change).into_response())
}

// Requests to the director.

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
        "not-found" => StatusCode::NOT_FOUND,
        _ => StatusCode::CONFLICT,
    }
}

/// A body that says nothing.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn plain(shared: Arc<Shared>, sent: Body, what: Command) -> Answer<Response> {
    let Nothing {} = body(sent).await?;
    ask(&shared, what).await
}

async fn pause(State(shared): Context, sent: Body) -> Answer<Response> {
    plain(shared, sent, Command::Pause).await
}

async fn resume(State(shared): Context, sent: Body) -> Answer<Response> {
    plain(shared, sent, Command::Resume).await
}

async fn drain(State(shared): Context, sent: Body) -> Answer<Response> {
    plain(shared, sent, Command::Drain).await
}

async fn release(State(shared): Context, sent: Body) -> Answer<Response> {
    plain(shared, sent, Command::Release).await
}

async fn cordon(State(shared): Context, sent: Body) -> Answer<Response> {
    let DeviceBody { device } = body(sent).await?;
    ask(&shared, Command::Cordon { device }).await
}

async fn uncordon(State(shared): Context, sent: Body) -> Answer<Response> {
    let DeviceBody { device } = body(sent).await?;
    ask(&shared, Command::Uncordon { device }).await
}

/// All rows that were named, each once; one bad name refuses the whole.
async fn named(shared: &Arc<Shared>, names: Vec<String>) -> Answer<Vec<Listed>> {
    let shared = shared.clone();
    blocking(move || {
        let mut rows: Vec<Listed> = Vec::new();
        for name in names {
            let row = lookup(&shared, &name)?;
            if !rows.iter().any(|it| (&it.id, &it.folder, &it.name) == (&row.id, &row.folder, &row.name)) {
                rows.push(row);
            }
        }
        Ok(rows)
    })
    .await
}

fn id_of(row: &Listed) -> Option<JobId> {
    row.id.as_ref()?.parse().ok()
}

fn nothing_named() -> Refused {
    Refused::bad("`jobs` names nothing")
}

async fn cancel(State(shared): Context, sent: Body) -> Answer<Response> {
    let asked: JobsBody = body(sent).await?;
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

async fn retry(State(shared): Context, sent: Body) -> Answer<Response> {
    let asked: JobsBody = body(sent).await?;
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
