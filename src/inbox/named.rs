//! One item by its name, whatever its state: for someone who wants it out of the inbox. Blocks as its mount does.

use std::io;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rustix::fs::{AtFlags, FileType};

use super::matching::Router;
use super::signature;
use super::{Candidate, CandidateKey};
use crate::config::Route;
use crate::item::{ItemKind, Signature};

/// Looks the item up in `inbox` (`ROOT/inbox`). Its tree isn't walked: it is not going to be read. An item that no route
/// matches gets `unmatched`.
pub fn find(inbox: &Path, key: &CandidateKey, routes: &[Arc<Route>], unmatched: Arc<Route>) -> io::Result<Candidate> {
    let path = inbox.join(&key.folder).join(key.name.as_os_str());
    let stat = rustix::fs::statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW)?;
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    let kind = if is_dir { ItemKind::Directory } else { ItemKind::File };
    let router = Router::new(&key.folder, routes);
    let route = router.find(key.name.as_os_str(), kind).map_or(unmatched, |at| router.route(at).clone());
    let signature = Signature::of_stat(&stat);
    Ok(Candidate {
        key: key.clone(),
        kind,
        signature,
        arrived_at: Timestamp::from_nanosecond(signature::ctime_ns(&stat)).map_err(io::Error::other)?,
        companions: Router::companions(&route, key.name.as_os_str()),
        route,
        lease_tested: false,
    })
}
