//! What a name and its kind alone tell of what lies in the inbox: for whoever answers without the scanner. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;

use super::folder::{NO_ROUTE, item_kind};
use super::inspect::special;
use super::matching::Router;
use super::names::Ignore;
use crate::config::{Inbox, Route};

/// The intake folders with what they take.
#[derive(Debug)]
pub struct Sorting {
    ignore: Ignore,
    /// By their names; the inbox itself is one of them. Without a configuration nobody knows what it takes.
    folders: BTreeMap<String, Option<Router>>,
}

#[derive(Debug, PartialEq)]
pub enum Sort {
    /// A temporary name.
    Ignored,
    /// It can't be taken, for this reason.
    Held(&'static str),
    /// The marker or the manifest of this item.
    Companion(OsString),
    /// More than its name decides; this route would take it.
    Open { route: Option<String> },
}

impl Sorting {
    /// None when the configuration can't be read.
    pub fn new(config: Option<(&Inbox, &[Arc<Route>])>) -> Sorting {
        let (extra, routes) = config.map_or((&[][..], &[][..]), |(rules, routes)| (&rules.ignore[..], routes));
        let names: BTreeSet<&str> = std::iter::once("").chain(routes.iter().map(|route| &*route.folder)).collect();
        let router = |name: &str| config.map(|_| Router::new(name, routes));
        let folders = names.into_iter().map(|name| (name.to_owned(), router(name))).collect();
        Sorting { ignore: Ignore::new(extra), folders }
    }

    /// The inbox itself first, by its empty name.
    pub fn folders(&self) -> impl Iterator<Item = &str> {
        self.folders.keys().map(String::as_str)
    }

    /// Whether what lies in the inbox under this name is an intake folder.
    pub fn is_folder(&self, name: &OsStr) -> bool {
        self.folders().any(|folder| Path::new(folder).iter().next() == Some(name))
    }

    pub fn sort(&self, folder: &str, name: &OsStr, kind: FileType) -> Sort {
        if self.ignore.matches(name, kind) {
            return Sort::Ignored;
        }
        let router = self.folders.get(folder).and_then(Option::as_ref);
        if let Some(owner) = router.and_then(|router| router.owner(name)) {
            return Sort::Companion(owner);
        }
        let Some(item) = item_kind(kind) else { return Sort::Held(special(kind)) };
        match router.map(|router| router.find(name, item).map(|at| router.route(at).name.clone())) {
            Some(None) => Sort::Held(NO_ROUTE),
            Some(route) => Sort::Open { route },
            None => Sort::Open { route: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::matching::plain_route;
    use super::*;
    use crate::config::{RouteKind, Watch};

    #[test]
    fn a_name_tells_what_it_can() {
        let rules = Inbox {
            settle: None,
            ignore: vec!["*.bak".to_owned()],
            watch: Watch::Auto,
            poll_interval: std::time::Duration::from_secs(5),
        };
        let mut sound = plain_route("sound");
        sound.patterns = vec!["*.wav".to_owned()];
        sound.kind = RouteKind::File;
        sound.ready.marker = Some(".done".to_owned());
        let side = Route { folder: "side".to_owned(), ..plain_route("side") };
        let routes = [Arc::new(sound), Arc::new(side)];
        let known = Sorting::new(Some((&rules, &routes)));
        let unknown = Sorting::new(None);
        let check = |sorting: &Sorting, folder: &str, name: &str, kind: FileType, expected: &str| {
            let told = match sorting.sort(folder, OsStr::new(name), kind) {
                Sort::Ignored => "ignored".to_owned(),
                Sort::Held(reason) => format!("held: {}", reason.split([',', ';', ':']).next().unwrap_or_default()),
                Sort::Companion(owner) => format!("of {}", owner.display()),
                Sort::Open { route } => format!("open {route:?}"),
            };
            assert_eq!(told, expected, "{folder}/{name}");
        };
        use FileType::{Directory, Fifo, RegularFile, Symlink};
        check(&known, "", "a.wav", RegularFile, "open Some(\"sound\")");
        check(&known, "", "a.wav", Directory, "held: no route matches it");
        check(&known, "", "a.wav", Fifo, "held: a FIFO");
        check(&known, "", "a.wav", Symlink, "held: a symbolic link");
        check(&known, "", "a.wav.part", RegularFile, "ignored");
        check(&known, "", "a.bak", RegularFile, "ignored");
        check(&known, "", "a.wav.done", RegularFile, "of a.wav");
        check(&known, "", "a.pdf", RegularFile, "held: no route matches it");
        check(&known, "side", "a.pdf", RegularFile, "open Some(\"side\")");
        check(&unknown, "", "a.pdf", RegularFile, "open None");
        check(&unknown, "", "a.pdf", Fifo, "held: a FIFO");
        check(&unknown, "", "a.tmp", RegularFile, "ignored");
        assert_eq!(known.folders().collect::<Vec<_>>(), ["", "side"]);
        assert!(known.is_folder(OsStr::new("side")) && !known.is_folder(OsStr::new("a.wav")));
    }
}
