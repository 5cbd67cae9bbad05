use super::*;

/// A root in a folder of its own.
pub(super) struct Place {
    pub(super) temp: tempfile::TempDir,
    pub(super) root: Arc<Root>,
}

impl Place {
    pub(super) fn new() -> Place {
        let temp = tempfile::tempdir().unwrap();
        Root::init(temp.path()).unwrap();
        let root = Arc::new(Root::open(temp.path()).unwrap());
        Place { temp, root }
    }

    pub(super) fn ground(&self) -> ground::Ground {
        ground::Ground::new(self.root.clone(), Faults::default()).unwrap()
    }
}
