//! Items: the list in pages, and one of them with its attempts and its result.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answer::{Answer, Asked, Named, Refused, blocking};
use super::{Context, Shared};
use crate::api::cursor::{self, Cursor};
use crate::api::ended::Query;
use crate::api::reference::{self, Unresolved, fit};
use crate::api::shapes::{ErrorBody, Page};
use crate::api::unlisted;
use crate::api::view::{Listed, Shown};

/// A page without a limit of its own.
const PAGE: usize = 100;

/// No page is longer.
const LONGEST_PAGE: usize = 100_000;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ItemsQuery {
    /// Any of arriving, ready, held, ignored, claimed, running, retrying, done, failed, cancelled; separated by commas.
    #[serde(default)]
    state: String,
    /// The route's name.
    route: Option<String>,
    /// Part of the item's name; ASCII letters in either case.
    name: Option<String>,
    /// Of ended items those that ended at this time or later.
    since: Option<Timestamp>,
    /// Only what ended before this time.
    until: Option<Timestamp>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// At most so many; 100 without it, 100000 at most.
    limit: Option<usize>,
}

impl ItemsQuery {
    fn checked(self) -> Answer<(Query, Option<Cursor>)> {
        let states: Vec<String> = self.state.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        if let Some(word) = states.iter().find(|word| !Query::STATES.contains(&word.as_str())) {
            let word = crate::item::escape(word.as_bytes());
            return Err(Refused::bad(format!("no state `{word}`; there are {}", Query::STATES.join(", "))));
        }
        let wrong = || Refused::bad("`cursor` isn't one: give the `next` of a page, with the same filters");
        let cursor = self.cursor.map(|text| Cursor::parse(&text).ok_or_else(wrong)).transpose()?;
        let after = match cursor {
            Some(Cursor::Ended(id)) => Some(id),
            _ => None,
        };
        let limit = self.limit.unwrap_or(PAGE).min(LONGEST_PAGE);
        let Self { route, name, since, until, .. } = self;
        Ok((Query { states, route, name, since, until, after, limit: Some(limit) }, cursor))
    }
}

/// Items, in pages: jobs that haven't ended by their age, what lies in the inbox by its arrival, then what has ended,
/// newest first. An item that changes its state while pages are read may come again, in its later state.
#[utoipa::path(get, path = "/v1/items", params(ItemsQuery), responses(
    (status = 200, body = Page), (status = 400, body = ErrorBody), (status = 500, body = ErrorBody),
))]
pub(super) async fn list(State(shared): Context, Asked(query): Asked<ItemsQuery>) -> Answer<Response> {
    let (query, cursor) = query.checked()?;
    let limit = query.limit.unwrap_or(PAGE);
    let view = shared.board.read();
    let mut rows: Vec<Listed> = Vec::new();
    if query.wants_live() {
        let behind = |row: &&Listed| cursor.as_ref().is_none_or(|cursor| cursor.admits(row));
        let mut live: Vec<&Listed> = view.live.iter().filter(|row| query.admits(row)).filter(behind).collect();
        live.sort_by(|a, b| cursor::order(a, b));
        rows.extend(live.into_iter().take(limit + 1).cloned());
    }
    // One more than the page holds tells whether there is another.
    if query.wants_ended() && rows.len() <= limit {
        let rest = Query { limit: Some(limit + 1 - rows.len()), ..query };
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
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).and_then(Cursor::behind).map(|cursor| cursor.to_string());
    Ok(Json(Page { items: rows, next }).into_response())
}

/// One item with its paths, its attempts (`history`) and its `result.json`. It is named as on the command line: the job, its
/// id, a unique beginning of either, the item's name, or `FOLDER/NAME` in the inbox.
#[utoipa::path(get, path = "/v1/items/{item}", params(("item" = String, Path)), responses(
    (status = 200, body = Shown), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
    (status = 409, body = ErrorBody, description = "it could be several"),
))]
pub(super) async fn show(State(shared): Context, Named(item): Named) -> Answer<Response> {
    let shown = blocking(move || {
        let row = lookup(&shared, &item)?;
        Ok(shared.directories.show(row))
    });
    Ok(Json(shown.await?).into_response())
}

/// The one row that `text` means, among all that is known anywhere. Blocks.
pub(super) fn lookup(shared: &Shared, text: &str) -> Answer<Listed> {
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

/// More are asked for in several requests: each costs a look at the directories.
const MOST_NAMED: usize = 10_000;

/// All rows that were named, each once; one bad name refuses the whole.
pub(super) async fn named(shared: &Arc<Shared>, names: Vec<String>) -> Answer<Vec<Listed>> {
    if names.len() > MOST_NAMED {
        let message = format!("{} names at once; at most {MOST_NAMED} are taken", names.len());
        return Err(Refused::new(413, "too-many", message, "name fewer at a time"));
    }
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
