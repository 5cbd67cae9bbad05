//! What comes in and goes out: checked queries, paths and bodies; refusals as JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::Shared;
use crate::api::Refusal;
use crate::api::reference::Unresolved;

/// A body larger than this is no request of ours.
const LARGEST_BODY: usize = 1 << 20;

/// What a refused client still sends is read away for so long.
const DRAIN_TIME: Duration = Duration::from_secs(2);

pub(super) type Answer<T> = Result<T, Refused>;

/// An answer that isn't what was asked for.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) refusal: Refusal,
}

impl Refused {
    pub(super) fn new(status: u16, code: &str, message: impl Into<String>, help: &str) -> Refused {
        Refused {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            refusal: Refusal { code: code.to_owned(), message: message.into(), help: help.to_owned() },
        }
    }

    pub(super) fn bad(message: impl Into<String>) -> Refused {
        Refused::new(400, "bad-request", message, "see /v1/openapi.json for the fields of this request")
    }

    pub(super) fn io(error: std::io::Error) -> Refused {
        Refused::new(500, "io", error.to_string(), "look at the root's directories and their permissions")
    }

    pub(super) fn stopping() -> Refused {
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

/// The query of the URL, or what is wrong with it.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Asked<T>> {
        // Read leniently another name would come out of it, and nobody would hear of that.
        if !is_utf8(parts.uri.query().unwrap_or_default()) {
            return Err(Refused::bad("the query isn't UTF-8: its parts are texts, percent-encoded"));
        }
        let parsed: Result<Query<T>, QueryRejection> = Query::from_request_parts(parts, state).await;
        parsed.map(|Query(query)| Asked(query)).map_err(|wrong| Refused::bad(wrong.body_text()))
    }
}

/// Whether what is percent-encoded there makes UTF-8.
fn is_utf8(query: &str) -> bool {
    let mut bytes = Vec::with_capacity(query.len());
    let mut rest = query.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        let code = std::str::from_utf8(behind.get(..2).unwrap_or_default()).ok();
        match code.filter(|_| byte == b'%').and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &behind[2..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    std::str::from_utf8(&bytes).is_ok()
}

/// The item named in the path, or what is wrong with it.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Answer<Named> {
        let parsed: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        parsed.map(|Path(item)| Named(item)).map_err(|wrong| Refused::bad(wrong.body_text()))
    }
}

/// A request's body as JSON; an empty one is `{}`.
pub(super) struct Sent<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Arc<Shared>> for Sent<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Answer<Sent<T>> {
        if kind(request.headers()).is_some_and(|kind| kind != "application/json") {
            let help = "send `Content-Type: application/json`";
            return Err(Refused::new(415, "unsupported-type", "the body must be JSON", help));
        }
        let read =
            tokio::time::timeout(shared.patience.body, axum::body::to_bytes(request.into_body(), LARGEST_BODY)).await;
        let bytes: Bytes = match read {
            Err(_) => {
                shared.tally.dropped();
                return Err(Refused::new(408, "timeout", "the body took too long", "send it at once"));
            }
            Ok(Err(wrong)) if is_too_large(&wrong) => {
                let message = format!("the body is larger than {LARGEST_BODY} bytes");
                return Err(Refused::new(413, "too-large", message, "name fewer items at a time"));
            }
            Ok(Err(wrong)) => return Err(Refused::bad(format!("the body can't be read: {wrong}"))),
            Ok(Ok(bytes)) => bytes,
        };
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        let parsed = serde_json::from_slice(text);
        parsed.map(Sent).map_err(|wrong| Refused::bad(format!("the body isn't what is expected: {wrong}")))
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>())
}

/// The media type that the headers name, without its parameters; `?` when it can't be read.
pub(super) fn kind(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().unwrap_or("?");
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// Runs what may block on a thread of its own kind, so that no other client waits for it.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Refused::stopping()))
}

/// Reads away what a refused client still sends, up to a bound: else the connection breaks before it reads why.
pub(super) async fn drain(body: Body) {
    use http_body_util::BodyExt as _;
    let mut body = std::pin::pin!(body);
    let mut left = 4 << 20;
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            left -= frame.data_ref().map_or(0, Bytes::len).min(left);
            if left == 0 {
                break;
            }
        }
    };
    let _late = tokio::time::timeout(DRAIN_TIME, read).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_percent_encoded_is_utf8_or_refused() {
        let check = |query: &str, expected: bool| assert_eq!(is_utf8(query), expected, "{query}");
        check("", true);
        check("name=a%20b&folder=x", true);
        check("name=%C3%A9", true);
        check("name=%ff.wav", false);
        check("name=%C3", false);
        check("name=100%", true);
        check("name=%zz%f", true);
    }
}
