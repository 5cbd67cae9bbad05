//! The page at `/`: files of this binary, as they lie in `page/`. It asks `/v1` for everything it shows, so it needs no
//! token itself; it may load nothing from anywhere else, and nobody may frame it.

use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use axum::http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use axum::routing::get;

use super::routes::Shared;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// Path, type and contents.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("page/index.html")),
    ("/page/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/page/page.css", STYLE, include_str!("page/page.css")),
    ("/page/main.js", SCRIPT, include_str!("page/main.js")),
    ("/page/act.js", SCRIPT, include_str!("page/act.js")),
    ("/page/api.js", SCRIPT, include_str!("page/api.js")),
    ("/page/ask.js", SCRIPT, include_str!("page/ask.js")),
    ("/page/devices.js", SCRIPT, include_str!("page/devices.js")),
    ("/page/dom.js", SCRIPT, include_str!("page/dom.js")),
    ("/page/failures.js", SCRIPT, include_str!("page/failures.js")),
    ("/page/job.js", SCRIPT, include_str!("page/job.js")),
    ("/page/queue.js", SCRIPT, include_str!("page/queue.js")),
    ("/page/timeline.js", SCRIPT, include_str!("page/timeline.js")),
    ("/page/trend.js", SCRIPT, include_str!("page/trend.js")),
    ("/page/words.js", SCRIPT, include_str!("page/words.js")),
    ("/page/uplot.js", SCRIPT, include_str!("page/vendor/uplot.js")),
    ("/page/uplot.css", STYLE, include_str!("page/vendor/uplot.css")),
    ("/page/uplot-LICENSE", "text/plain; charset=utf-8", include_str!("page/vendor/uplot-LICENSE")),
];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Whether this path is one of the page's own files.
pub(super) fn has(path: &str) -> bool {
    FILES.iter().any(|(known, _, _)| *known == path)
}

pub(super) fn routes() -> Router<Arc<Shared>> {
    FILES.iter().fold(Router::new(), |router, (path, kind, contents)| {
        let headers: [(HeaderName, HeaderValue); 3] = [
            (CONTENT_TYPE, HeaderValue::from_static(kind)),
            (CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        router.route(path, get(async move || (headers.clone(), *contents)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_the_page_names_is_there_and_nothing_lies_elsewhere() {
        for (file, kind, contents) in FILES.iter().filter(|(path, ..)| !path.contains("uplot")) {
            for (at, _) in contents.match_indices("/page/") {
                let name = contents[at..].split(['"', '\'', ' ']).next().unwrap_or_default();
                assert!(has(name), "{file}: {name}");
            }
            for line in contents.lines().filter(|line| line.starts_with("import ") || line.starts_with("} from ")) {
                let name = line.split('"').nth(1).and_then(|name| name.strip_prefix("./")).unwrap_or_default();
                assert!(has(&format!("/page/{name}")), "{file}: {line}");
            }
            let elsewhere = contents.contains("https://") || contents.contains("http://") && *kind != "image/svg+xml";
            assert!(!elsewhere, "{file} names another address");
        }
    }
}
