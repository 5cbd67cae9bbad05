//! `/metrics`, for Prometheus: counted at the edges, written when somebody asks. Its format is Prometheus' own, so it is no
//! part of the description of `/v1`.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse as _, Response};

use super::Context;
use super::answer::{Answer, Refused};
use crate::metrics::{self, Format};

pub(super) async fn metrics(State(shared): Context, headers: HeaderMap) -> Answer<Response> {
    let format = Format::accepted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    let page = metrics::scrape(&shared.metrics, &shared.board.read(), shared.started.elapsed(), format);
    let page =
        page.map_err(|error| Refused::new(500, "io", error.to_string(), "tell of it: it is a mistake in gamdok"))?;
    Ok(([(CONTENT_TYPE, format.content_type())], page).into_response())
}
