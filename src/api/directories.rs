//! What the directories tell by themselves: jobs, outcomes, counts, where things lie. They are the truth; this is how
//! everyone answers when no director runs, and what the ledger is checked against. Only reads.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rustix::fs::FileType;
use serde::Deserialize;

use super::ended::{Ended, FOUND, Query};
use super::reference::{fit, split, unescape};
use super::results::{Mark, Reported, Wanted};
use super::view::{Counts, DirectorState, HeldView, Listed, Paths, Shown, Status, path_text};
use crate::config::{Backend, Config};
use crate::devices::HostMode;
use crate::inbox;
use crate::item::{Attempt, Counters, ItemName, JobDir, JobId, JobRecord, Outcome, ResultRecord, escape};

/// No record that gamdok writes comes near it.
const LARGEST: u64 = 64 << 20;

/// A root, read from outside.
#[derive(Clone, Debug)]
pub struct Directories {
    root: PathBuf,
    /// Shared with all copies: a changed configuration sorts anew.
    sorting: Arc<RwLock<Arc<inbox::Sorting>>>,
    unjudged: Unjudged,
}

/// What is said of an item in the inbox of which its name tells no more than that it is one.
#[derive(Clone, Debug, PartialEq)]
pub struct Unjudged {
    pub state: &'static str,
    pub reason: Option<String>,
}

fn sorting(config: Option<&Config>) -> inbox::Sorting {
    inbox::Sorting::new(config.map(|config| (&config.inbox, &config.routes[..])))
}

/// Something in the inbox, and what is said of it.
struct Waiting<'a> {
    folder: &'a str,
    name: ItemName,
    state: &'static str,
    reason: Option<String>,
    route: Option<String>,
}

/// Where an ended job lies.
struct Place {
    id: JobId,
    job: JobDir,
    base: &'static str,
    dir: PathBuf,
}

impl Directories {
    /// With what the configuration says of intake folders and temporary names; none when it can't be read.
    pub fn new(root: &Path, config: Option<&Config>) -> Directories {
        let sorting = RwLock::new(Arc::new(sorting(config)));
        let reason = Some("not judged: no director runs".to_owned());
        Directories {
            root: root.to_owned(),
            sorting: Arc::new(sorting),
            unjudged: Unjudged { state: "arriving", reason },
        }
    }

    /// Goes by another configuration from here on, as all copies do.
    pub fn reconfigure(&self, config: &Config) {
        *self.sorting.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(sorting(Some(config)));
    }

    pub(super) fn sorting(&self) -> Arc<inbox::Sorting> {
        self.sorting.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same, where somebody knows more of what lies there unjudged.
    pub fn saying(&self, unjudged: Unjudged) -> Directories {
        Directories { unjudged, ..self.clone() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    // Ended jobs.

    /// The days that have a directory, newest first.
    fn days(&self) -> io::Result<Vec<String>> {
        let mut days = BTreeSet::new();
        for base in ["done", "failed"] {
            for entry in entries(&self.root.join(base))? {
                if let Some(day) = entry.file_name().to_str().filter(|day| day.parse::<jiff::civil::Date>().is_ok()) {
                    days.insert(day.to_owned());
                }
            }
        }
        Ok(days.into_iter().rev().collect())
    }

    /// The ended jobs of one day, newest id first.
    fn places(&self, day: &str) -> io::Result<Vec<Place>> {
        let mut places = Vec::new();
        for base in ["done", "failed"] {
            for entry in entries(&self.root.join(base).join(day))? {
                if let Some((job, id)) = JobDir::parse(&entry.file_name()) {
                    places.push(Place { id, job, base, dir: entry.path() });
                }
            }
        }
        places.sort_unstable_by_key(|place| std::cmp::Reverse(place.id));
        Ok(places)
    }

    /// Looks at the ended jobs from the newest day back, until `look` has enough.
    fn each_ended(&self, mut look: impl FnMut(&str, &Place) -> Look) -> io::Result<()> {
        for day in self.days()? {
            for place in self.places(&day)? {
                if look(&day, &place) == Look::Enough {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn ended_row(&self, place: &Place) -> Listed {
        match read_result(&place.dir) {
            Ok(result) => {
                let folder = read_record(&place.dir).map(|record| record.folder).unwrap_or_default();
                Listed { folder, ..Listed::ended(&result, place.job.as_str()) }
            }
            Err(error) => {
                let (stem, _) = place.job.as_str().rsplit_once('~').unwrap_or((place.job.as_str(), ""));
                Listed {
                    id: Some(place.id.to_string()),
                    job: Some(place.job.to_string()),
                    name: stem.to_owned(),
                    state: place.base.to_owned(),
                    reason: Some(format!("its result.json can't be read: {error}")),
                    ..Listed::empty()
                }
            }
        }
    }

    /// Every result that is wanted, the newest last. Of a day the ends are read first, then one result after another.
    pub fn each_reported<E: From<io::Error>>(
        &self,
        wanted: &Wanted,
        mut take: impl FnMut(Reported) -> Result<(), E>,
    ) -> Result<(), E> {
        let earliest = wanted.since.map(|since| since.to_zoned(TimeZone::UTC).date().to_string());
        let mut days = self.days()?;
        days.retain(|day| earliest.as_deref().is_none_or(|it| it <= day.as_str()));
        for day in days.iter().rev() {
            let mut places: Vec<(Mark, Place)> = Vec::new();
            for place in self.places(day)? {
                places.push((Mark { finished_at: finished_at(&place.dir), id: place.id }, place));
            }
            places.sort_unstable_by_key(|(mark, _)| *mark);
            for (_, place) in places {
                let row = reported(&place);
                if wanted.admits(&row) {
                    take(row)?;
                }
            }
        }
        Ok(())
    }

    // What hasn't ended.

    /// Jobs in `claimed/`, oldest first. One that has its result and wasn't filed yet is listed by its outcome.
    pub fn claimed(&self) -> io::Result<Vec<Listed>> {
        let mut rows = Vec::new();
        for entry in entries(&self.root.join("claimed"))? {
            let Some((job, id)) = JobDir::parse(&entry.file_name()) else { continue };
            rows.push(match (read_result(&entry.path()), read_record(&entry.path())) {
                (Ok(result), _) => Listed::ended(&result, job.as_str()),
                (_, Ok(record)) => Listed { job: Some(job.to_string()), ..Listed::live(&record, "claimed", None) },
                (_, Err(error)) => Listed {
                    id: Some(id.to_string()),
                    job: Some(job.to_string()),
                    name: job.as_str().rsplit_once('~').map(|(stem, _)| stem).unwrap_or_default().to_owned(),
                    state: "claimed".to_owned(),
                    reason: Some(format!("its job.json can't be read: {error}")),
                    ..Listed::empty()
                },
            });
        }
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(rows)
    }

    /// What lies in the inbox, sorted by the names: nobody looks any closer now.
    fn each_waiting(&self, mut look: impl FnMut(Waiting<'_>) -> Look) -> io::Result<()> {
        let sorting = self.sorting();
        for folder in sorting.folders() {
            for entry in entries(&self.root.join("inbox").join(folder))? {
                // What can't be told is gone, or shows when it is looked at.
                let kind = entry.file_type().map_or(FileType::RegularFile, kind_of);
                let waiting = self.sorted(&sorting, folder, ItemName::new(entry.file_name()), kind);
                if let Some(waiting) = waiting
                    && look(waiting) == Look::Enough
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What is known of a name in a folder; nothing when it is no item of its own.
    fn sorted<'a>(
        &self,
        sorting: &inbox::Sorting,
        folder: &'a str,
        name: ItemName,
        kind: FileType,
    ) -> Option<Waiting<'a>> {
        if folder.is_empty() && sorting.is_folder(name.as_os_str()) {
            return None;
        }
        let unjudged = |route| (self.unjudged.state, self.unjudged.reason.clone(), route);
        let (state, reason, route) = match sorting.sort(folder, name.as_os_str(), kind) {
            inbox::Sort::Ignored => ("ignored", None, None),
            inbox::Sort::Held(reason) => ("held", Some(reason.to_owned()), None),
            inbox::Sort::Companion(owner) if self.path(folder, &owner).symlink_metadata().is_ok() => return None,
            inbox::Sort::Companion(_) => unjudged(None),
            inbox::Sort::Open { route } => unjudged(route),
        };
        Some(Waiting { folder, name, state, reason, route })
    }

    /// Where an item lies in the inbox.
    fn path(&self, folder: &str, name: &OsStr) -> PathBuf {
        self.root.join("inbox").join(folder).join(name)
    }

    /// At most `limit` items of the inbox that `query` wants.
    pub fn waiting(&self, query: &Query, limit: usize) -> io::Result<Vec<Listed>> {
        let mut rows = Vec::new();
        if limit > 0 {
            self.each_unclaimed(query, |row| {
                rows.push(row);
                rows.len() < limit
            })?;
        }
        Ok(rows)
    }

    /// Every item of the inbox that `query` wants, its limit apart, as long as `take` wants more.
    pub fn each_unclaimed(&self, query: &Query, mut take: impl FnMut(Listed) -> bool) -> io::Result<()> {
        self.each_waiting(|waiting| {
            let row = self.waiting_row(waiting);
            if !query.admits(&row) || take(row) { Look::On } else { Look::Enough }
        })
    }

    fn waiting_row(&self, waiting: Waiting<'_>) -> Listed {
        let Waiting { folder, name, state, reason, route } = waiting;
        let meta = self.path(folder, name.as_os_str()).symlink_metadata();
        Listed {
            name: name.escaped(),
            state: state.to_owned(),
            reason,
            route,
            arrived_at: meta.ok().and_then(|meta| changed_at(&meta)),
            folder: folder.to_owned(),
            name_b64: Some(name.base64()),
            ..Listed::empty()
        }
    }

    /// The items in the inbox that `text` could mean, as it is or unescaped: one in each intake folder at most.
    pub fn find_waiting(&self, text: &str) -> Vec<Listed> {
        let (wanted, text) = split(text).map_or((None, text), |(folder, name)| (Some(folder), name));
        let is_wanted = |folder: &&str| wanted.is_none_or(|it| it == *folder || escape(folder.as_bytes()) == it);
        let sorting = self.sorting();
        let mut names: Vec<Vec<u8>> = vec![text.as_bytes().to_vec()];
        names.extend(unescape(text).filter(|bytes| bytes != text.as_bytes()));
        let mut rows = Vec::new();
        for name in names {
            let hostile =
                name.is_empty() || name == b"." || name == b".." || name.iter().any(|b| matches!(b, b'/' | 0));
            if hostile {
                continue;
            }
            let name = ItemName::new(std::ffi::OsString::from_vec(name));
            for folder in sorting.folders().filter(is_wanted) {
                let Ok(meta) = self.path(folder, name.as_os_str()).symlink_metadata() else { continue };
                let waiting = self.sorted(&sorting, folder, name.clone(), kind_of(meta.file_type()));
                rows.extend(waiting.map(|waiting| self.waiting_row(waiting)));
            }
        }
        rows
    }

    // Answers about the whole.

    /// `list`: what hasn't ended, then what has, newest first.
    pub fn rows(&self, query: &Query) -> io::Result<Vec<Listed>> {
        let mut rows: Vec<Listed> = self.claimed()?.into_iter().filter(|row| query.admits(row)).collect();
        let room = |rows: &Vec<Listed>| query.limit.map_or(usize::MAX, |limit| limit.saturating_sub(rows.len()));
        if query.wants_live() && query.after.is_none() {
            rows.extend(self.waiting(query, room(&rows))?);
        }
        if query.wants_ended() {
            rows.extend(Ended::list(self, &Query { limit: query.limit.map(|_| room(&rows)), ..query.clone() })?);
        }
        rows.truncate(query.limit.unwrap_or(usize::MAX));
        Ok(rows)
    }

    /// Everything that `text` could mean.
    pub fn candidates(&self, text: &str) -> io::Result<Vec<Listed>> {
        let mut rows: Vec<Listed> = self.claimed()?.into_iter().filter(|row| fit(text, row).is_some()).collect();
        rows.extend(self.find_waiting(text));
        rows.extend(self.find(text)?);
        Ok(rows)
    }

    /// Directories present, by state, and what lies in the inbox, as far as its names tell.
    pub fn counts(&self) -> io::Result<Counts> {
        let mut counts = Counts::default();
        for row in self.claimed()? {
            match row.state.as_str() {
                "done" => counts.done += 1,
                "failed" => counts.failed += 1,
                "cancelled" => counts.cancelled += 1,
                _ => counts.claimed += 1,
            }
        }
        self.each_waiting(|waiting| {
            match waiting.state {
                "ignored" => counts.ignored += 1,
                "held" => counts.held += 1,
                _ => counts.arriving += 1,
            }
            Look::On
        })?;
        self.each_ended(|_, place| {
            match place.base {
                "done" => counts.done += 1,
                _ if is_cancelled(&place.dir) => counts.cancelled += 1,
                _ => counts.failed += 1,
            }
            Look::On
        })?;
        Ok(counts)
    }

    /// What the jobs in `done/` and `failed/` counted.
    pub fn counted_by_ended(&self) -> io::Result<Counters> {
        let mut counters = Counters::default();
        self.each_ended(|_, place| {
            if let Ok(Head { counters: of_it, .. }) = read_json(&place.dir.join("result.json")) {
                counters.add_all(&of_it);
            }
            Look::On
        })?;
        Ok(counters)
    }

    /// What the jobs in `claimed/` have counted, as far as it is written down.
    pub fn counted_by_claimed(&self) -> io::Result<Counters> {
        let mut counters = Counters::default();
        for entry in entries(&self.root.join("claimed"))? {
            let head = |name: &str| read_json::<Head>(&entry.path().join(name));
            // The outcome, where it is written and only the move is missing.
            if let Ok(Head { counters: of_it, .. }) = head("result.json").or_else(|_| head("job.json")) {
                counters.add_all(&of_it);
            }
        }
        Ok(counters)
    }

    /// `status` without a director.
    pub fn status(&self, config: Option<&Config>) -> io::Result<Status> {
        let mode = host_mode(config.map_or(Backend::Auto, |config| config.devices.backend));
        let (counts, held) = (self.counts()?, self.held()?);
        Ok(Status { counts, held, ..Status::empty(path_text(&self.root), mode, DirectorState::Stopped) })
    }

    /// As many of what can't be taken as a director lists.
    fn held(&self) -> io::Result<Vec<HeldView>> {
        let query = Query { states: vec!["held".to_owned()], ..Query::default() };
        let rows = self.waiting(&query, inbox::HELD_LISTED)?;
        let view = |row: Listed| Some(HeldView { name: row.name, reason: row.reason?, since: row.arrived_at? });
        Ok(rows.into_iter().filter_map(view).collect())
    }

    // One job.

    /// Where a listed job's directory lies now.
    pub fn dir(&self, row: &Listed) -> Option<PathBuf> {
        let job = row.job.as_ref()?;
        let day = row.finished_at.map(|at| at.to_zoned(TimeZone::UTC).date().to_string());
        let likely = day.into_iter().flat_map(|day| ["done", "failed"].map(|base| self.root.join(base).join(&day)));
        let known = likely.chain([self.root.join("claimed")]).map(|dir| dir.join(job)).find(|dir| dir.is_dir());
        known.or_else(|| {
            // It ended since the row was made, or someone moved it to another day.
            let days = self.days().ok()?.into_iter();
            let all = days.flat_map(|day| ["done", "failed"].map(|base| self.root.join(base).join(&day)));
            all.map(|dir| dir.join(job)).find(|dir| dir.is_dir())
        })
    }

    /// Whether a job lives: it lies in `claimed/` without a result, whatever an older row says of its outcome.
    pub fn is_live(&self, row: &Listed) -> bool {
        let dir = row.job.as_ref().map(|job| self.root.join("claimed").join(job));
        dir.is_some_and(|dir| dir.is_dir() && !dir.join("result.json").exists())
    }

    /// Whether anything lies in the place of a claimed job's item.
    pub fn has_item(&self, row: &Listed) -> bool {
        let dir = row.job.as_ref().map(|job| self.root.join("claimed").join(job).join("item"));
        dir.and_then(|dir| dir.read_dir().ok()).is_some_and(|mut entries| entries.next().is_some())
    }

    /// An ended job as it stands now; nothing when it lives again or is gone.
    pub fn now(&self, row: &Listed) -> Option<Listed> {
        if self.is_live(row) {
            return None;
        }
        let result = read_result(&self.dir(row)?).ok();
        let fresh = result.map(|result| Listed::ended(&result, row.job.as_deref().unwrap_or_default()));
        Some(fresh.map_or_else(|| row.clone(), |fresh| Listed { folder: row.folder.clone(), ..fresh }))
    }

    /// `show`: a listed row with its paths, its attempts and its result.
    pub fn show(&self, listed: Listed) -> Shown {
        let Some(dir) = self.dir(&listed) else {
            let name = listed.name_b64.as_deref().and_then(ItemName::from_base64);
            let path = name.map(|name| self.root.join("inbox").join(&listed.folder).join(name.as_os_str()));
            let item = path.filter(|path| listed.job.is_none() && fs::symlink_metadata(path).is_ok());
            let paths = Paths { item: item.as_deref().map(path_text), ..Paths::default() };
            return Shown { listed, paths, result: None, history: Vec::new() };
        };
        let result = read_result(&dir).ok();
        let history = match &result {
            Some(result) => result.attempts.clone(),
            None => read_record(&dir).map(|record| record.attempts).unwrap_or_default(),
        };
        // Attempt 1 stands in job.json from the claim on, before anything started.
        let history = history.into_iter().filter(|attempt| result.is_some() || attempt.started_at.is_some()).collect();
        Shown {
            listed,
            paths: paths(&dir),
            result: result.and_then(|result| serde_json::to_value(result).ok()),
            history,
        }
    }
}

impl Ended for Directories {
    fn list(&self, query: &Query) -> io::Result<Vec<Listed>> {
        let mut rows = Vec::new();
        // The place of one that is gone, or lives again, is told by its id.
        let found = |id: JobId| {
            let mut found = false;
            self.each_ended(|_, place| {
                found = place.id == id;
                if found { Look::Enough } else { Look::On }
            })
            .map(|()| found)
        };
        let lost = query.after.filter(|id| found(*id).is_ok_and(|found| !found));
        let mut behind = query.after.is_none() || lost.is_some();
        let earliest = query.since.map(|since| since.to_zoned(TimeZone::UTC).date().to_string());
        self.each_ended(|day, place| {
            if query.limit.is_some_and(|limit| rows.len() >= limit) || earliest.as_deref().is_some_and(|it| day < it) {
                return Look::Enough;
            }
            if !behind {
                behind = query.after == Some(place.id);
                return Look::On;
            }
            if lost.is_some_and(|last| last <= place.id) {
                return Look::On;
            }
            let possible = match place.base {
                "done" => query.wants_state("done"),
                _ => query.wants_state("failed") || query.wants_state("cancelled"),
            };
            if possible {
                let row = self.ended_row(place);
                if query.admits(&row) {
                    rows.push(row);
                }
            }
            Look::On
        })?;
        Ok(rows)
    }

    fn find(&self, text: &str) -> io::Result<Vec<Listed>> {
        // A directory's name begins with what is safe of the item's: only those that agree are read.
        let stem = |name: &ItemName| {
            let dir = JobDir::new(name, JobId(ulid::Ulid::nil()));
            dir.as_str().rsplit_once('~').map(|(stem, _)| stem.to_owned()).unwrap_or_default()
        };
        let name = split(text).map_or(text, |(_, name)| name);
        let mut stems = vec![stem(&ItemName::new(name))];
        stems.extend(unescape(name).map(|bytes| stem(&ItemName::new(std::ffi::OsString::from_vec(bytes)))));
        let mut rows = Vec::new();
        self.each_ended(|_, place| {
            let bare = Listed { id: Some(place.id.to_string()), job: Some(place.job.to_string()), ..Listed::empty() };
            let named = place.job.as_str().rsplit_once('~').is_some_and(|(stem, _)| stems.iter().any(|it| it == stem));
            if named || fit(text, &bare).is_some() {
                let row = self.ended_row(place);
                if fit(text, &row).is_some() {
                    rows.push(row);
                }
            }
            if rows.len() >= FOUND { Look::Enough } else { Look::On }
        })?;
        Ok(rows)
    }
}

#[derive(PartialEq)]
enum Look {
    On,
    Enough,
}

fn reported(place: &Place) -> Reported {
    match read_result(&place.dir) {
        Ok(result) => Reported {
            id: place.id,
            name: result.name,
            route: result.route,
            outcome: result.outcome.as_str().to_owned(),
            finished_at: Some(result.finished_at),
            result: result.result,
            counters: result.counters,
        },
        // As the ledger tells it.
        Err(_) => {
            let stem = || place.job.as_str().rsplit_once('~').map_or("", |(stem, _)| stem).to_owned();
            let record = read_record(&place.dir).ok();
            Reported {
                id: place.id,
                name: record.as_ref().map_or_else(stem, |record| record.name.clone()),
                route: record.map(|record| record.route.name.clone()),
                outcome: place.base.to_owned(),
                finished_at: None,
                result: None,
                counters: Counters::default(),
            }
        }
    }
}

fn finished_at(dir: &Path) -> Option<Timestamp> {
    read_json::<Head>(&dir.join("result.json")).ok()?.finished_at
}

fn kind_of(kind: fs::FileType) -> FileType {
    use std::os::unix::fs::FileTypeExt as _;
    match kind {
        it if it.is_dir() => FileType::Directory,
        it if it.is_symlink() => FileType::Symlink,
        it if it.is_fifo() => FileType::Fifo,
        it if it.is_socket() => FileType::Socket,
        it if it.is_block_device() => FileType::BlockDevice,
        it if it.is_char_device() => FileType::CharacterDevice,
        _ => FileType::RegularFile,
    }
}

/// A directory's entries; none when it isn't there. Entries that vanish while they are read are no error.
fn entries(dir: &Path) -> io::Result<impl Iterator<Item = fs::DirEntry> + use<>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => Some(listing),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => None,
        Err(error) => {
            return Err(io::Error::new(error.kind(), format!("cannot read {}: {error}", path_text(dir))));
        }
    };
    Ok(listing.into_iter().flatten().filter_map(Result::ok))
}

/// A worker can put anything under these names: links aren't followed, and a FIFO's other end isn't waited for.
fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let file = fs::File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(io::Error::other("it is no record of gamdok's"));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(LARGEST).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map_err(io::Error::other)
}

/// `result.json` of a job's directory.
pub fn read_result(dir: &Path) -> io::Result<ResultRecord> {
    read_json(&dir.join("result.json"))
}

/// `job.json` of a job's directory.
pub fn read_record(dir: &Path) -> io::Result<JobRecord> {
    read_json(&dir.join("job.json"))
}

/// The attempts that have a log, in their order.
pub fn logs(dir: &Path) -> Vec<(u32, PathBuf)> {
    let number = |name: &OsStr| name.to_str()?.strip_prefix("attempt-")?.strip_suffix(".log")?.parse::<u32>().ok();
    // Files only: a link that a worker planted would show what is elsewhere, and a FIFO never ends.
    let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
    let found = entries(dir).into_iter().flatten().filter(is_file);
    let mut logs: Vec<_> = found.filter_map(|entry| Some((number(&entry.file_name())?, entry.path()))).collect();
    logs.sort_unstable();
    logs
}

fn paths(dir: &Path) -> Paths {
    let item = entries(&dir.join("item")).into_iter().flatten().next().map(|entry| entry.path());
    let out = dir.join("out");
    Paths {
        dir: Some(path_text(dir)),
        item: item.as_deref().map(path_text),
        out: out.is_dir().then(|| path_text(&out)),
        logs: logs(dir).iter().map(|(_, path)| path_text(path)).collect(),
    }
}

/// No more of a record than is asked for.
#[derive(Deserialize)]
struct Head {
    /// Of a result.
    outcome: Option<Outcome>,
    finished_at: Option<Timestamp>,
    #[serde(default)]
    counters: Counters,
}

fn is_cancelled(dir: &Path) -> bool {
    read_json::<Head>(&dir.join("result.json")).is_ok_and(|head| head.outcome == Some(Outcome::Cancelled))
}

fn changed_at(meta: &fs::Metadata) -> Option<Timestamp> {
    use std::os::unix::fs::MetadataExt as _;
    Timestamp::new(meta.ctime(), meta.ctime_nsec() as i32).ok()
}

/// The mode a director would have, as far as can be told without asking a driver.
fn host_mode(backend: Backend) -> HostMode {
    let driver = || entries(Path::new("/proc/driver/nvidia/gpus")).is_ok_and(|mut gpus| gpus.next().is_some());
    match backend {
        Backend::Cpu => HostMode::Cpu,
        Backend::Sim => HostMode::Sim,
        Backend::Gpu => HostMode::Gpu,
        Backend::Auto if driver() => HostMode::Gpu,
        Backend::Auto => HostMode::Cpu,
    }
}

/// The log of one attempt, or of the last one.
pub fn log(dir: &Path, attempt: Option<u32>) -> Option<(u32, PathBuf)> {
    let mut all = logs(dir);
    match attempt {
        Some(wanted) => all.into_iter().find(|(n, _)| *n == wanted),
        None => all.pop(),
    }
}

/// The attempts of a job, from its result or its record.
pub fn attempts(dir: &Path) -> Vec<Attempt> {
    match read_result(dir) {
        Ok(result) => result.attempts,
        Err(_) => read_record(dir).map(|record| record.attempts).unwrap_or_default(),
    }
}
