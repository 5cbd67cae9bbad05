//! Which route takes a name. The first one of the configuration whose folder, patterns and kind fit; patterns see the raw
//! bytes of the name. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::Arc;

use globset::GlobSet;

use super::names::glob_set;
use crate::config::Route;
use crate::item::{ItemKind, ItemName};

/// What a manifest's name ends with.
pub(super) const MANIFEST: &str = ".manifest.json";

/// The routes of one intake folder, in the configuration's order.
#[derive(Debug)]
pub(super) struct Router {
    lanes: Vec<Lane>,
    /// Some route waits for markers or manifests: only then names are looked at as such.
    has_companions: bool,
}

#[derive(Debug)]
struct Lane {
    route: Arc<Route>,
    /// None: every name.
    names: Option<GlobSet>,
}

impl Router {
    pub(super) fn new(folder: &str, routes: &[Arc<Route>]) -> Router {
        let lanes: Vec<Lane> = routes
            .iter()
            .filter(|route| route.folder == folder)
            .map(|route| {
                let every = route.patterns.is_empty() || route.patterns.iter().any(|pattern| pattern == "*");
                let names = (!every).then(|| glob_set(&route.patterns, &route.name));
                Lane { route: route.clone(), names }
            })
            .collect();
        let has_companions = lanes.iter().any(|lane| lane.route.ready.marker.is_some() || lane.route.ready.manifest);
        Router { lanes, has_companions }
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn route(&self, at: usize) -> &Arc<Route> {
        &self.lanes[at].route
    }

    /// The first route that takes the name, by its place.
    pub(super) fn find(&self, name: &OsStr, kind: ItemKind) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.route.kind.takes(kind) && lane.takes(name))
    }

    /// The item that `name` is a marker or a manifest of, if it is one: such names are never items.
    pub(super) fn owner(&self, name: &OsStr) -> Option<OsString> {
        if !self.has_companions {
            return None;
        }
        self.lanes.iter().find_map(|lane| {
            let marker = lane.route.ready.marker.as_deref();
            let manifest = lane.route.ready.manifest.then_some(MANIFEST);
            marker.into_iter().chain(manifest).find_map(|end| {
                let base = name.as_bytes().strip_suffix(end.as_bytes()).filter(|base| !base.is_empty())?;
                let base = OsStr::from_bytes(base);
                lane.takes(base).then(|| base.to_owned())
            })
        })
    }

    /// The names that belong to an item of the route: its marker and its manifest.
    pub(super) fn companions(route: &Route, name: &OsStr) -> Vec<ItemName> {
        let marker = route.ready.marker.as_deref();
        let manifest = route.ready.manifest.then_some(MANIFEST);
        marker.into_iter().chain(manifest).map(|end| ItemName::new(companion(name, end))).collect()
    }
}

impl Lane {
    fn takes(&self, name: &OsStr) -> bool {
        self.names.as_ref().is_none_or(|names| names.is_match(name))
    }
}

/// `<name><end>`.
pub(super) fn companion(name: &OsStr, end: &str) -> OsString {
    OsString::from_vec([name.as_bytes(), end.as_bytes()].concat())
}

/// A route for tests: everything at its default.
#[cfg(test)]
pub(super) fn plain_route(name: &str) -> Route {
    use crate::config::RouteKind;
    Route { kind: RouteKind::Any, gpus: 0, ..Route::new(name, vec!["true".to_owned()], "/") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteKind;

    fn route(name: &str, folder: &str, patterns: &[&str], kind: RouteKind) -> Route {
        let patterns = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        Route { folder: folder.to_owned(), patterns, kind, ..plain_route(name) }
    }

    #[test]
    fn the_first_route_that_fits_wins() {
        let routes: Vec<Arc<Route>> = [
            route("sound", "", &["*.wav", "*.mp3"], RouteKind::File),
            route("albums", "", &["album-*"], RouteKind::Directory),
            route("bytes", "", &["?odd"], RouteKind::Any),
            route("late", "", &["*.wav"], RouteKind::Any),
            route("side", "side", &[], RouteKind::Any),
        ]
        .map(Arc::new)
        .into();
        let check = |folder: &str, name: &[u8], kind: ItemKind, expected: Option<&str>| {
            let router = Router::new(folder, &routes);
            let found = router.find(OsStr::from_bytes(name), kind).map(|at| router.route(at).name.clone());
            assert_eq!(found.as_deref(), expected, "{folder}/{}", crate::item::escape(name));
        };
        use ItemKind::{Directory, File};
        check("", b"a.wav", File, Some("sound"));
        check("", b"a.WAV", File, None);
        check("", b"a.wav", Directory, Some("late"));
        check("", b"album-1", Directory, Some("albums"));
        check("", b"album-1", File, None);
        check("", b"new\nline.mp3", File, Some("sound"));
        check("", b"\xff\xfe.mp3", File, Some("sound"));
        check("", b"\xffodd", File, Some("bytes"));
        check("", b"-rf.wav", File, Some("sound"));
        check("side", b"anything", File, Some("side"));
        check("elsewhere", b"a.wav", File, None);
    }

    #[test]
    fn markers_and_manifests_belong_to_items_that_a_route_would_take() {
        let mut marked = route("marked", "", &["*.wav"], RouteKind::Any);
        marked.ready.marker = Some(".done".to_owned());
        let mut listed = route("listed", "", &["*.bin"], RouteKind::Any);
        listed.ready.manifest = true;
        let router = Router::new("", &[Arc::new(marked), Arc::new(listed)]);
        let check = |name: &str, owner: Option<&str>| {
            assert_eq!(router.owner(OsStr::new(name)), owner.map(OsString::from), "{name}");
        };
        check("a.wav.done", Some("a.wav"));
        check("a.bin.manifest.json", Some("a.bin"));
        check("a.bin.done", None);
        check("a.wav.manifest.json", None);
        check(".done", None);
        check("a.wav", None);
        let names = Router::companions(router.route(0), OsStr::new("a.wav"));
        assert_eq!(names, [ItemName::new("a.wav.done")]);
    }
}
