//! Which route takes a name. The first one of the configuration whose folder, patterns and kind fit; patterns see the raw
//! bytes of the name. Pure.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::sync::Arc;

use globset::{Candidate, Glob, GlobSet, GlobSetBuilder};

use super::names;
use crate::config::Route;
use crate::item::{ItemKind, ItemName};

/// What a manifest's name ends with.
pub(super) const MANIFEST: &str = ".manifest.json";

/// The routes of one intake folder, in the configuration's order.
#[derive(Debug)]
pub(super) struct Router {
    routes: Vec<Arc<Route>>,
    /// Those that take every name, in order.
    every: Vec<usize>,
    /// The patterns of all others together: a name costs one look-up, however many routes there are.
    sets: Vec<Set>,
    /// What the names of markers and manifests end with: only then names are looked at as such.
    ends: BTreeSet<String>,
}

/// Patterns of several routes as one.
#[derive(Debug)]
struct Set {
    globs: GlobSet,
    /// Whose each of them is.
    routes: Vec<usize>,
}

impl Router {
    pub(super) fn new(folder: &str, routes: &[Arc<Route>]) -> Router {
        let routes: Vec<Arc<Route>> = routes.iter().filter(|route| route.folder == folder).cloned().collect();
        let takes_every = |route: &Route| route.patterns.is_empty() || route.patterns.iter().any(|it| it == "*");
        let (every, choosy): (Vec<usize>, Vec<usize>) = (0..routes.len()).partition(|&at| takes_every(&routes[at]));
        let patterns = |at: usize| {
            let route = &routes[at];
            route.patterns.iter().filter_map(move |pattern| Some((names::glob(pattern, &route.name)?, at)))
        };
        let patterns: Vec<(Glob, usize)> = choosy.into_iter().flat_map(patterns).collect();
        let mut sets = Vec::new();
        join(&patterns, &routes, &mut sets);
        let ends = routes.iter().flat_map(|route| ends_of(route)).map(str::to_owned).collect();
        Router { routes, every, sets, ends }
    }

    pub(super) fn len(&self) -> usize {
        self.routes.len()
    }

    pub(super) fn route(&self, at: usize) -> &Arc<Route> {
        &self.routes[at]
    }

    /// The first route that takes the name, by its place.
    pub(super) fn find(&self, name: &OsStr, kind: ItemKind) -> Option<usize> {
        self.first(name, |route| route.kind.takes(kind))
    }

    /// The first route whose patterns fit the name and that is `wanted`, by its place.
    fn first(&self, name: &OsStr, wanted: impl Fn(&Route) -> bool) -> Option<usize> {
        let wanted = |at: &usize| wanted(&self.routes[*at]);
        let of_every = self.every.iter().copied().find(|at| wanted(at));
        if self.sets.is_empty() {
            return of_every;
        }
        let name = Candidate::new(name);
        let of_set = |set: &Set| {
            let fitting = set.globs.matches_candidate(&name).into_iter().map(|glob| set.routes[glob]);
            fitting.filter(wanted).min()
        };
        self.sets.iter().filter_map(of_set).chain(of_every).min()
    }

    /// The item that `name` is a marker or a manifest of, if it is one: such names are never items.
    pub(super) fn owner(&self, name: &OsStr) -> Option<OsString> {
        let owned = |end: &String| {
            let base = name.as_bytes().strip_suffix(end.as_bytes()).filter(|base| !base.is_empty())?;
            let base = OsStr::from_bytes(base);
            let at = self.first(base, |route| ends_of(route).any(|it| it == end))?;
            Some((at, ends_of(&self.routes[at]).position(|it| it == end), base))
        };
        self.ends.iter().filter_map(owned).min().map(|(.., base)| base.to_owned())
    }

    /// The names that belong to an item of the route: its marker and its manifest.
    pub(super) fn companions(route: &Route, name: &OsStr) -> Vec<ItemName> {
        ends_of(route).map(|end| ItemName::new(companion(name, end))).collect()
    }
}

/// What the names of a route's marker and manifest end with.
fn ends_of(route: &Route) -> impl Iterator<Item = &str> {
    let manifest = route.ready.manifest.then_some(MANIFEST);
    route.ready.marker.as_deref().into_iter().chain(manifest)
}

/// Makes as few sets of the patterns as their size allows.
fn join(patterns: &[(Glob, usize)], routes: &[Arc<Route>], sets: &mut Vec<Set>) {
    if patterns.is_empty() {
        return;
    }
    let mut builder = GlobSetBuilder::new();
    for (glob, _) in patterns {
        builder.add(glob.clone());
    }
    match builder.build() {
        Ok(globs) => sets.push(Set { globs, routes: patterns.iter().map(|(_, at)| *at).collect() }),
        Err(error) => match patterns {
            [(glob, at)] => {
                let (pattern, whose) = (glob.glob(), &routes[*at].name);
                tracing::error!(pattern, whose, %error, "a pattern can't be used and matches nothing");
            }
            // Too large together.
            _ => {
                let (some, others) = patterns.split_at(patterns.len() / 2);
                join(some, routes, sets);
                join(others, routes, sets);
            }
        },
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

/// The first of all routes that takes an item of this name, in whatever folder: the one that it goes to when it is
/// dropped into that route's own.
pub(crate) fn first_of_all(routes: &[Arc<Route>], name: &OsStr, kind: ItemKind) -> Option<Arc<Route>> {
    let mut seen = BTreeSet::new();
    let folders = routes.iter().map(|route| route.folder.as_str()).filter(|folder| seen.insert(*folder));
    let routers = folders.map(|folder| Router::new(folder, routes));
    let taking = routers.filter_map(|router| Some(router.route(router.find(name, kind)?).clone()));
    taking.min_by_key(|route| routes.iter().position(|it| Arc::ptr_eq(it, route)))
}

/// Whether a name is one of those that are no items, whatever the routes.
pub(crate) fn is_never_an_item(name: &OsStr, kind: ItemKind, ignore: &[String]) -> bool {
    let kind = match kind {
        ItemKind::File => rustix::fs::FileType::RegularFile,
        ItemKind::Directory => rustix::fs::FileType::Directory,
    };
    names::Ignore::new(ignore).matches(name, kind)
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
    fn ten_thousand_routes_are_asked_as_one() {
        // Also of the kind that is looked up by a regular expression, too many for one of them.
        let plain = |at: usize| route(&format!("p{at}"), "", &[&format!("*.x{at}")], RouteKind::File);
        let odd = |at: usize| route(&format!("o{at}"), "", &[&format!("[ab]?{{c,d}}-{at}-*")], RouteKind::File);
        let any = route("rest", "", &[], RouteKind::File);
        let routes: Vec<Arc<Route>> =
            (0..10_000).map(plain).chain((0..2_000).map(odd)).chain([any]).map(Arc::new).collect();
        let router = Router::new("", &routes);
        assert!(router.sets.len() < 100, "{}", router.sets.len());
        let check = |name: &str, expected: &str| {
            let found = router.find(OsStr::new(name), ItemKind::File).map(|at| router.route(at).name.clone());
            assert_eq!(found.as_deref(), Some(expected), "{name}");
        };
        check("a.x0", "p0");
        check("a.x9999", "p9999");
        check("a.x10000", "rest");
        check("bxd-1999-.y", "o1999");
        check("bxd-1999-.x77", "p77");
        assert_eq!(router.find(OsStr::new("a.x0"), ItemKind::Directory), None);
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
