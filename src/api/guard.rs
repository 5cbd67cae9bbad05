//! Who may speak over TCP: with a token those who know it; without one only this host's own programs, and no web page
//! that a browser on this host happens to show (DNS rebinding, cross-site requests). Pure.

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode};
use sha2::{Digest as _, Sha256};

use super::Refusal;

/// What a form can send.
const FORMS: [&str; 2] = ["application/x-www-form-urlencoded", "text/plain"];

/// What a TCP request must bring.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub(super) token: Option<String>,
    pub(super) loopback: bool,
}

impl Guard {
    /// `secret`: whether what is asked for is for those who know the token.
    pub(super) fn check(
        &self,
        method: &Method,
        headers: &HeaderMap,
        secret: bool,
    ) -> Result<(), (StatusCode, Refusal)> {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
        // Two of them, and nobody knows which one others go by.
        if headers.get_all(HOST).iter().count() > 1 {
            let what = refusal("bad-request", "there are several Host headers", "send one");
            return Err((StatusCode::BAD_REQUEST, what));
        }
        let host = text(HOST).unwrap_or_default();
        if self.loopback && !is_loopback(host) {
            return Err(forbidden("the Host header names another host", "speak to 127.0.0.1, [::1] or localhost"));
        }
        if let Some(origin) = text(ORIGIN) {
            let ours = origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host));
            if !ours {
                return Err(forbidden("the request comes from another site", "only this server's own page may ask"));
            }
        }
        // A browser says so of every request that another site's page makes; following a link to the page itself is fine.
        let crosses = text(HeaderName::from_static("sec-fetch-site"))
            .is_some_and(|site| matches!(site, "cross-site" | "same-site"));
        let follows = method == Method::GET && text(HeaderName::from_static("sec-fetch-mode")) == Some("navigate");
        if crosses && !follows {
            return Err(forbidden("the request comes from another site", "only this server's own page may ask"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| secret) {
            let given = text(AUTHORIZATION).and_then(|value| {
                let (scheme, given) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then(|| given.trim())
            });
            if !given.is_some_and(|given| same(given.as_bytes(), token.as_bytes())) {
                let help = "send `Authorization: Bearer …` with the text of api.token_file";
                return Err((StatusCode::UNAUTHORIZED, refusal("unauthorized", "a token is needed here", help)));
            }
        }
        // A form on a foreign page can post, but none of these types.
        let named = |kind: &str| {
            let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            kind.contains('/') && !kind.starts_with("multipart/") && !FORMS.contains(&kind.as_str())
        };
        if method == Method::POST && !text(CONTENT_TYPE).is_some_and(named) {
            let help = "send `Content-Type: application/json`; for an upload `application/octet-stream`";
            let what = refusal("unsupported-type", "the body must be of a type that is named, and no form", help);
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, what));
        }
        Ok(())
    }
}

fn refusal(code: &str, message: &str, help: &str) -> Refusal {
    Refusal { code: code.to_owned(), message: message.to_owned(), help: help.to_owned() }
}

fn forbidden(message: &str, help: &str) -> (StatusCode, Refusal) {
    (StatusCode::FORBIDDEN, refusal("forbidden", message, help))
}

/// `localhost`, `127.x.x.x` or `[::1]`, with or without a port.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.eq_ignore_ascii_case("localhost")
        || name == "[::1]"
        || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// Compares in a time that tells nothing of the token, nor of its length: what is compared are digests.
fn same(given: &[u8], token: &[u8]) -> bool {
    let (given, token) = (Sha256::digest(given), Sha256::digest(token));
    let difference = given.iter().zip(&token).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: &str, loopback: bool, request: &str, expected: u16) {
        let guard = Guard { token: (!token.is_empty()).then(|| token.to_owned()), loopback };
        let mut lines = request.split('|').map(str::trim);
        let method: Method = lines.next().and_then(|method| method.parse().ok()).expect("a method");
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a header");
            let name: axum::http::HeaderName = name.parse().expect("a name");
            headers.insert(name, value.parse().expect("a value"));
        }
        let status = guard.check(&method, &headers, true).map_or_else(|(status, _)| status.as_u16(), |()| 200);
        assert_eq!(status, expected, "{request}");
    }

    #[test]
    fn loopback_serves_this_host_only() {
        let check = |request, expected| check("", true, request, expected);
        check("GET | Host: 127.0.0.1:7878", 200);
        check("GET | Host: localhost:7878", 200);
        check("GET | Host: [::1]:7878", 200);
        check("GET | Host: localhost", 200);
        check("GET", 403);
        check("GET | Host: evil.example:7878", 403);
        check("GET | Host: 127.0.0.1.evil.example", 403);
        check("GET | Host: localhost:7878 | Origin: http://localhost:7878", 200);
        check("GET | Host: localhost:7878 | Origin: https://evil.example", 403);
        check("GET | Host: localhost:7878 | Origin: null", 403);
        check("POST | Host: localhost:7878 | Content-Type: application/json; charset=utf-8", 200);
        check("POST | Host: localhost:7878 | Content-Type: text/plain", 415);
        check("POST | Host: localhost:7878", 415);
        check("POST | Host: localhost:7878 | Content-Type: Text/Plain; charset=utf-8", 415);
        check("POST | Host: localhost:7878 | Content-Type: multipart/form-data; boundary=x", 415);
        check("POST | Host: localhost:7878 | Content-Type: application/x-www-form-urlencoded", 415);
        check("POST | Host: localhost:7878 | Content-Type: application/octet-stream", 200);
        check("GET | Host: localhost:7878 | Sec-Fetch-Site: same-origin", 200);
        check("GET | Host: localhost:7878 | Sec-Fetch-Site: cross-site", 403);
        check("GET | Host: localhost:7878 | Sec-Fetch-Site: same-site", 403);
        check("GET | Host: localhost:7878 | Sec-Fetch-Site: cross-site | Sec-Fetch-Mode: navigate", 200);
        check("PUT | Host: localhost:7878 | Sec-Fetch-Site: cross-site | Sec-Fetch-Mode: navigate", 403);
    }

    #[test]
    fn a_token_is_asked_for_where_there_is_one() {
        let check = |request, expected| check("s3cret", false, request, expected);
        check("GET | Host: gpu7:7878 | Authorization: Bearer s3cret", 200);
        check("GET | Host: gpu7:7878 | Authorization: bearer s3cret", 200);
        check("GET | Host: gpu7:7878 | Authorization: Bearer s3cre", 401);
        check("GET | Host: gpu7:7878 | Authorization: Bearer s3cret2", 401);
        check("GET | Host: gpu7:7878 | Authorization: Basic s3cret", 401);
        check("GET | Host: gpu7:7878", 401);
    }
}
