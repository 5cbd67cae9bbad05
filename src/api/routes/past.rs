//! What was: attempts by time, and how much ended and waited. From the ledger alone; where that can't answer (it is being
//! made, or is broken) the answer says that it isn't whole.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Asked, Refused, blocking};
use super::{Context, Shared};
use crate::api::shapes::{AttemptView, Attempts, ErrorBody, Trend, TrendBucket};
use crate::estimate::quantile;
use crate::ledger::{Direction, Filter, History, HistoryError};

/// Attempts of one answer.
const MOST: usize = 10_000;
/// Without a limit of its own.
const USUAL: usize = 1000;
/// Parts of a trend.
const BUCKETS: std::ops::RangeInclusive<usize> = 1..=500;
/// Without a `since`.
const LOOK_BACK: SignedDuration = SignedDuration::from_hours(1);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AttemptsQuery {
    /// Those that ended at this time or later, or run still; an hour ago without it.
    since: Option<Timestamp>,
    /// Those that began before this time.
    until: Option<Timestamp>,
    /// The route's name.
    route: Option<String>,
    /// A device's id, or the beginning of one.
    device: Option<String>,
    /// At most so many; 1000 without it, 10000 at most.
    limit: Option<usize>,
}

/// Attempts, those that began last first.
#[utoipa::path(get, path = "/v1/attempts", params(AttemptsQuery), responses(
    (status = 200, body = Attempts), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody),
))]
pub(super) async fn attempts(State(shared): Context, Asked(query): Asked<AttemptsQuery>) -> Answer<Response> {
    let limit = query.limit.unwrap_or(USUAL).min(MOST);
    let filter = Filter {
        since: query.since.or_else(an_hour_ago),
        until: query.until,
        route: query.route,
        device: query.device,
        ..Filter::default()
    };
    let answer = blocking(move || {
        let Some(history) = history(&shared) else {
            return Ok(Attempts { attempts: Vec::new(), more: false, whole: false });
        };
        let mut attempts = Vec::new();
        let take = |it: crate::ledger::Try| {
            attempts.push(AttemptView::from(it));
            Ok::<(), HistoryError>(())
        };
        history.each(&filter, Direction::NewestFirst, Some(limit + 1), take).map_err(wrong)?;
        let more = attempts.len() > limit;
        attempts.truncate(limit);
        Ok(Attempts { attempts, more, whole: true })
    });
    Ok(Json(answer.await?).into_response())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct TrendQuery {
    /// An hour ago without it.
    since: Option<Timestamp>,
    /// Now without it.
    until: Option<Timestamp>,
    /// Into so many equal parts; 60 without it, 500 at most.
    buckets: Option<usize>,
}

/// How many items ended, and how long those had waited for their first start, in equal parts of the time.
#[utoipa::path(get, path = "/v1/trend", params(TrendQuery), responses(
    (status = 200, body = Trend), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody),
))]
pub(super) async fn trend(State(shared): Context, Asked(query): Asked<TrendQuery>) -> Answer<Response> {
    let until = query.until.unwrap_or_else(Timestamp::now);
    let since = query.since.or_else(|| until.checked_sub(LOOK_BACK).ok()).unwrap_or(until);
    let count = query.buckets.unwrap_or(60);
    if !BUCKETS.contains(&count) {
        return Err(Refused::bad(format!("`buckets` is from {} to {}", BUCKETS.start(), BUCKETS.end())));
    }
    let width = i64::try_from((until.as_nanosecond() - since.as_nanosecond()) / count as i128).unwrap_or(0);
    if width <= 0 {
        return Err(Refused::bad("`since` lies before `until`, and not three hundred years"));
    }
    let part = SignedDuration::from_nanos(width);
    let answer = blocking(move || {
        let mut edges = vec![since];
        for _ in 0..count {
            let last = *edges.last().unwrap_or(&since);
            edges.push(last.checked_add(part).unwrap_or(until).min(until));
        }
        let empty = |at: &Timestamp| TrendBucket { at: *at, ..TrendBucket::default() };
        let mut buckets: Vec<TrendBucket> = edges.iter().take(count).map(empty).collect();
        let Some(history) = history(&shared) else { return Ok(Trend { buckets, whole: false }) };
        for ended in history.ends(since, until, count).map_err(wrong)? {
            let Some(bucket) = buckets.get_mut(ended.at) else { continue };
            match ended.outcome.as_str() {
                "done" => bucket.done += ended.jobs,
                "failed" => bucket.failed += ended.jobs,
                _ => bucket.cancelled += ended.jobs,
            }
        }
        for (bucket, edge) in buckets.iter_mut().zip(edges.windows(2)) {
            if bucket.done + bucket.failed + bucket.cancelled == 0 {
                continue;
            }
            let mut waits = Vec::new();
            history.each_wait(edge[0], edge[1], |_, seconds| waits.push(seconds)).map_err(wrong)?;
            waits.sort_unstable_by(f64::total_cmp);
            bucket.waited_p50_s = quantile(&waits, 50);
            bucket.waited_p95_s = quantile(&waits, 95);
        }
        Ok(Trend { buckets, whole: true })
    });
    Ok(Json(answer.await?).into_response())
}

fn an_hour_ago() -> Option<Timestamp> {
    Timestamp::now().checked_sub(LOOK_BACK).ok()
}

fn history(shared: &Arc<Shared>) -> Option<History> {
    shared.ended.history()
}

fn wrong(error: HistoryError) -> Refused {
    Refused::new(500, "ledger", error.to_string(), "ask again; the ledger mends itself from the directories")
}
