//! What a worker wrote: one part of a log as it is, or all that comes until the attempt or the item ends.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse as _, Response};
use notify::{EventKindMask, RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use utoipa::IntoParams;

use super::answer::{Answer, Asked, Named, Refused, blocking};
use super::items::lookup;
use super::{Context, Shared};
use crate::api::pipe::pipe;
use crate::api::shapes::ErrorBody;
use crate::api::view::Listed;
use crate::api::{directories, server};

/// A log is read in parts of this size.
const PART: u64 = 1 << 20;

/// The same of one that is followed.
const FOLLOWED_PART: u64 = 64 << 10;

/// Logs that are followed at a time: each takes a watch.
const FOLLOWERS: usize = 32;

/// Between two looks at a log that grows all the time.
const BREATH: Duration = Duration::from_millis(50);

/// Between two looks where the directory can't be watched.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// The attempt's number; without it the last one, and with `follow` those that come after it, too.
    attempt: Option<u32>,
    /// Bytes to pass over.
    offset: Option<u64>,
    /// The last so many bytes instead.
    tail: Option<u64>,
    /// Go on with what comes, until the attempt ends, or the item does.
    #[serde(default)]
    follow: bool,
}

/// A log's bytes as they are. Without `follow` at most 1 MiB from `offset`; the header `gamdok-attempt` tells which attempt's
/// it is, `gamdok-size` how long the whole is now, `gamdok-offset` where this part begins.
#[utoipa::path(get, path = "/v1/items/{item}/logs", params(("item" = String, Path), LogQuery), responses(
    (status = 200, content_type = "application/octet-stream", body = Vec<u8>, headers(
        ("gamdok-attempt" = u32), ("gamdok-size" = u64), ("gamdok-offset" = u64),
    )),
    (status = 400, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
    (status = 503, body = ErrorBody, description = "too many logs are followed"),
))]
pub(super) async fn log(State(shared): Context, Named(item): Named, Asked(query): Asked<LogQuery>) -> Answer<Response> {
    if query.offset.is_some() && query.tail.is_some() {
        return Err(Refused::bad("`offset` and `tail` exclude each other"));
    }
    let place = query.follow.then(|| Place::take(&shared)).transpose()?;
    let follows = query.follow;
    let known = shared.clone();
    let part = blocking(move || {
        let row = lookup(&known, &item)?;
        let dir = known.directories.dir(&row);
        let Some((attempt, path)) = dir.and_then(|dir| directories::log(&dir, query.attempt)) else {
            let help = "an attempt has a log once its process runs; one that never ran has none";
            return Err(Refused::new(404, "no-log", "there is no such log", help));
        };
        let read = || {
            let mut file = File::open(&path)?;
            let size = file.metadata()?.len();
            let from = query.tail.map_or(query.offset.unwrap_or(0).min(size), |tail| size.saturating_sub(tail));
            file.seek(SeekFrom::Start(from))?;
            let bytes = if follows { Vec::new() } else { some(&file, PART)? };
            Ok((attempt, size, from, bytes, file))
        };
        let found = read().map_err(Refused::io)?;
        Ok((found, row, query.attempt.is_some()))
    });
    let ((attempt, size, from, bytes, file), row, only) = part.await?;
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (HeaderName::from_static("gamdok-attempt"), attempt.to_string()),
        (HeaderName::from_static("gamdok-size"), size.to_string()),
        (HeaderName::from_static("gamdok-offset"), from.to_string()),
    ];
    let Some(place) = place else { return Ok((headers, bytes).into_response()) };
    let (out, body) = pipe();
    let tail = Tail { shared, row, attempt, only, file };
    tokio::spawn(async move {
        follow(tail, out).await;
        drop(place);
    });
    Ok((headers, body).into_response())
}

fn some(file: &File, most: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One of the logs that are followed.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Answer<Place> {
        let taken: &AtomicUsize = &shared.followers;
        if taken.fetch_add(1, Ordering::Relaxed) >= FOLLOWERS {
            taken.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{FOLLOWERS} logs are followed already");
            return Err(Refused::new(503, "busy", message, "close one, or read it in parts by `offset`"));
        }
        Ok(Place(shared.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A log that grows, and those of later attempts.
struct Tail {
    shared: Arc<Shared>,
    row: Listed,
    attempt: u32,
    /// No later attempt's.
    only: bool,
    file: File,
}

/// What a look at a log finds.
struct Look {
    bytes: Vec<u8>,
    /// Nothing more will come.
    is_over: bool,
    dir: Option<PathBuf>,
}

impl Tail {
    fn look(&mut self) -> Answer<Look> {
        let dir = self.shared.directories.dir(&self.row);
        // First, so that what is written before the end is read before it.
        let ended = dir.as_ref().is_none_or(|dir| dir.join("result.json").exists());
        let logs = dir.as_deref().map(directories::logs).unwrap_or_default();
        let later = logs.into_iter().find(|(n, _)| *n > self.attempt);
        let mut bytes = some(&self.file, FOLLOWED_PART).map_err(Refused::io)?;
        let mut is_over = bytes.is_empty() && (ended || later.is_some());
        if let (true, false, Some((n, path))) = (is_over, self.only, later) {
            (self.attempt, self.file) = (n, File::open(path).map_err(Refused::io)?);
            bytes = some(&self.file, FOLLOWED_PART).map_err(Refused::io)?;
            is_over = false;
        }
        Ok(Look { bytes, is_over, dir })
    }
}

async fn follow(mut tail: Tail, out: mpsc::Sender<Bytes>) {
    let mut stop = tail.shared.stop.clone();
    let mut views = tail.shared.board.subscribe();
    let changed = Arc::new(Notify::new());
    let mut watched: Option<Option<notify::RecommendedWatcher>> = None;
    loop {
        let looked = blocking(move || tail.look().map(|look| (look, tail))).await;
        let Ok((look, same)) = looked else { return };
        tail = same;
        let more = !look.bytes.is_empty();
        if more {
            let sent = out.send(Bytes::from(look.bytes));
            tokio::select! {
                () = server::ended(&mut stop) => return,
                sent = sent => if sent.is_err() { return },
            }
        }
        if look.is_over {
            return;
        }
        // The watch stays with the directory when that moves. It is made before the next look, so that nothing is missed.
        if let (None, Some(dir)) = (&watched, &look.dir) {
            watched = Some(watch(dir, changed.clone()));
            continue;
        }
        if more {
            tokio::task::yield_now().await;
            continue;
        }
        let limit = if matches!(watched, Some(Some(_))) { Duration::MAX } else { LOOK };
        tokio::select! {
            () = server::ended(&mut stop) => return,
            () = out.closed() => return,
            () = changed.notified() => tokio::time::sleep(BREATH).await,
            // It may have ended, or begun another attempt.
            Ok(()) = views.changed() => tokio::time::sleep(BREATH).await,
            () = tokio::time::sleep(limit) => {}
        }
    }
}

fn watch(dir: &Path, changed: Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let config = notify::Config::default().with_event_kinds(EventKindMask::CORE);
    let mut watcher = notify::RecommendedWatcher::new(move |_| changed.notify_one(), config).ok()?;
    watcher.watch(dir, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
