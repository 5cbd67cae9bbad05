//! How a configuration stands in JSON (`job.json`, `check --json`): durations as people write them, paths as text.
//! Invariant: what is written is read back the same, paths that aren't UTF-8 included, since a job keeps its route
//! across restarts.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `"1h 30m"`.
#[derive(Deserialize)]
struct Span(#[serde(with = "duration")] Duration);

#[derive(Serialize)]
struct SpanRef<'a>(#[serde(with = "duration")] &'a Duration);

pub(super) mod duration {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(span: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&humantime::format_duration(*span))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

pub(super) mod optional_duration {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(span: &Option<Duration>, out: S) -> Result<S::Ok, S::Error> {
        span.as_ref().map(SpanRef).serialize(out)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Option::<Span>::deserialize(from).map(|span| span.map(|Span(span)| span))
    }
}

/// Text, or the raw bytes in base64 where they aren't UTF-8.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum StoredPath {
    Text(String),
    Raw { b64: String },
}

impl From<&PathBuf> for StoredPath {
    fn from(path: &PathBuf) -> StoredPath {
        match path.to_str() {
            Some(text) => StoredPath::Text(text.to_owned()),
            None => {
                let b64 = BASE64.encode(path.as_os_str().as_bytes());
                StoredPath::Raw { b64 }
            }
        }
    }
}

impl StoredPath {
    fn path<E: serde::de::Error>(self) -> Result<PathBuf, E> {
        match self {
            StoredPath::Text(text) => Ok(text.into()),
            StoredPath::Raw { b64 } => {
                let bytes = BASE64.decode(b64).map_err(E::custom)?;
                Ok(OsString::from_vec(bytes).into())
            }
        }
    }
}

pub(super) mod path {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(path: &PathBuf, out: S) -> Result<S::Ok, S::Error> {
        StoredPath::from(path).serialize(out)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        StoredPath::deserialize(from)?.path()
    }
}

pub(super) mod optional_path {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(path: &Option<PathBuf>, out: S) -> Result<S::Ok, S::Error> {
        path.as_ref().map(StoredPath::from).serialize(out)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        Option::<StoredPath>::deserialize(from)?.map(StoredPath::path).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Route};

    #[test]
    fn a_route_is_read_back_as_it_was() {
        let raw = PathBuf::from(OsString::from_vec(b"/srv/\xff".to_vec()));
        let mut route = Route::new("x", vec!["true".to_owned()], raw.clone());
        route.timeout = Some(Duration::from_millis(5_400_001));
        route.publish = Some(raw.clone());
        route.ready.settle = Some(Duration::ZERO);
        for route in [Route::new("x", vec!["true".to_owned()], "/srv/é"), route] {
            let text = serde_json::to_string(&route).expect("JSON");
            assert_eq!(serde_json::from_str::<Route>(&text).expect(&text), route);
        }
        let config = serde_json::to_string(&Config::builtin(&raw, &raw)).expect("JSON");
        assert!(
            config.contains(r#""root":{"b64":"L3Nydi//"}"#) && config.contains(r#""poll_interval":"5s""#),
            "{config}"
        );
    }
}
