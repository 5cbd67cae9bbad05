//! Who answers a question: the director when one listens, the directories when none does.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use crate::api::client::{Client, ClientError, encoded};
use crate::api::cursor::Cursor;
use crate::api::directories::Directories;
use crate::api::ended::Query;
use crate::api::reference::{self, Unresolved};
use crate::api::results::Results;
use crate::api::shapes::Page;
use crate::api::unlisted;
use crate::api::view::{Counts, Listed, Shown, Status};
use crate::config::Config;
use crate::item::{Counters, escape};
use crate::ledger::{self, History, Reader};

use super::Global;
use super::trouble::Trouble;

/// Rows are asked for in pages of this size.
const PAGE: usize = 1000;

/// More than a director ever lists of what hasn't ended; the rest of the inbox is read there.
const LIVE: usize = 100_000;

pub(super) struct Source {
    /// None: no director runs.
    pub(super) client: Option<Client>,
    pub(super) directories: Directories,
    config: Option<Config>,
}

impl Source {
    pub(super) fn open(global: &Global) -> Result<Source, Trouble> {
        let root = global.root()?;
        let client = match Client::connect(&root) {
            Ok(client) => Some(client),
            Err(ClientError::NoDirector { .. }) => None,
            Err(wrong) => return Err(wrong.into()),
        };
        // A broken configuration keeps nobody from looking.
        let config = global.config().ok().map(|(config, _)| config);
        Ok(Source { client, directories: Directories::new(&root, config.as_ref()), config })
    }

    pub(super) fn status(&self) -> Result<Status, Trouble> {
        match &self.client {
            Some(client) => Ok(client.get("/v1/status")?),
            None => Ok(Status { counters: self.counters()?, ..self.directories.status(self.config.as_ref())? }),
        }
    }

    /// What all jobs counted, without a director: the ledger knows of those that ended, unless its writer was cut off.
    fn counters(&self) -> Result<Counters, Trouble> {
        let whole = |reader: &Reader| reader.is_whole().unwrap_or(false);
        let ledger = Reader::open(&ledger::file_of(self.directories.root())).ok().filter(whole);
        let mut counters = match ledger.and_then(|reader| reader.counters().ok()) {
            Some(counters) => counters,
            None => self.directories.counted_by_ended()?,
        };
        counters.add_all(&self.directories.counted_by_claimed()?);
        Ok(counters)
    }

    /// What was reported of the items that ended.
    pub(super) fn results(&self) -> Result<Results, Trouble> {
        self.catch_up()?;
        Ok(Results::open(self.directories.clone(), self.client.is_some()))
    }

    /// All that was, for those who look back.
    pub(super) fn past(&self) -> Result<History, Trouble> {
        self.catch_up()?;
        Ok(History::open(self.directories.root(), self.client.is_some())?)
    }

    /// Has the director's ledger brought up to date.
    fn catch_up(&self) -> Result<(), Trouble> {
        if let Some(client) = &self.client {
            // An answer about ended jobs comes once the ledger has all that the director told it.
            let ended = Query { states: vec!["done".to_owned()], limit: Some(1), ..Query::default() };
            let _page: Page = client.get(&path_of(&ended))?;
        }
        Ok(())
    }

    /// The rows that `query` wants, in pages; without a limit every one of them.
    pub(super) fn each_page(
        &self,
        query: &Query,
        mut take: impl FnMut(Vec<Listed>) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let Some(client) = &self.client else { return take(self.directories.rows(query)?) };
        let mut rest = query.limit.unwrap_or(usize::MAX);
        let words = |ended: bool| {
            let of_kind = |word: &&&str| Query::ENDED.contains(*word) == ended && query.wants_state(word);
            Query::STATES.iter().filter(of_kind).map(|word| (*word).to_owned()).collect()
        };
        // What hasn't ended is bounded and comes whole.
        let mut seen = HashSet::new();
        if query.wants_live() {
            let live = Query { states: words(false), limit: Some(rest.min(LIVE)), ..query.clone() };
            let Page { items: rows, .. } = client.get(&path_of(&live))?;
            rest -= rows.len().min(rest);
            seen.extend(rows.iter().filter_map(|row| row.id.clone()));
            take(rows)?;
            self.each_unlisted(client, query, &mut rest, &mut take)?;
        }
        let mut ended = Query { states: words(true), ..query.clone() };
        while query.wants_ended() && rest > 0 {
            let page = rest.min(PAGE);
            ended.limit = Some(page);
            let Page { items: mut rows, .. } = client.get(&path_of(&ended))?;
            let full = rows.len() >= page;
            rest -= rows.len().min(rest);
            ended.after = rows.last().and_then(|row| row.id.as_ref()?.parse().ok());
            // It ended since the first look.
            rows.retain(|row| row.id.as_ref().is_none_or(|id| !seen.contains(id)));
            take(rows)?;
            if !full || ended.after.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// What lies in the inbox beyond the lists of the director, which are bounded: read from there, and said of it what the
    /// counts tell.
    fn each_unlisted(
        &self,
        client: &Client,
        query: &Query,
        rest: &mut usize,
        take: &mut impl FnMut(Vec<Listed>) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        if *rest == 0 || !unlisted::STATES.iter().any(|state| query.wants_state(state)) {
            return Ok(());
        }
        let Status { counts, .. } = client.get("/v1/status")?;
        let states = unlisted::STATES.map(str::to_owned).to_vec();
        let every = Query { states, limit: Some(LIVE), ..Query::default() };
        let Page { items: listed, .. } = client.get(&path_of(&every))?;
        let known: HashSet<(&str, &str)> = listed.iter().map(|row| (&*row.folder, &*row.name)).collect();
        let is_known = |row: &Listed| known.contains(&(&*row.folder, &*row.name));
        let Some(mut unjudged) = unlisted::unlisted(&counts, &listed) else { return Ok(()) };
        if unjudged.reason.is_some() {
            // Many are held for their names alone: then the rest may be one thing only.
            let (mut by_name, held) = (0, Query { states: vec!["held".to_owned()], ..Query::default() });
            self.directories.each_unclaimed(&held, |row| {
                by_name += u64::from(!is_known(&row));
                true
            })?;
            let counts = Counts { held: counts.held.saturating_sub(by_name), ..counts };
            unjudged = unlisted::unlisted(&counts, &listed).unwrap_or_else(unlisted::arrived);
        }
        let mut page = Vec::new();
        let mut taken = Ok(());
        self.directories.saying(unjudged).each_unclaimed(query, |row| {
            if is_known(&row) {
                return true;
            }
            page.push(row);
            *rest -= 1;
            if page.len() == PAGE || *rest == 0 {
                taken = take(std::mem::take(&mut page));
            }
            taken.is_ok() && *rest > 0
        })?;
        taken?;
        if page.is_empty() { Ok(()) } else { take(page) }
    }

    pub(super) fn rows(&self, query: &Query) -> Result<Vec<Listed>, Trouble> {
        let mut all = Vec::new();
        self.each_page(query, |rows| {
            all.extend(rows);
            Ok(())
        })?;
        Ok(all)
    }

    /// One job or waiting item, as people name it.
    pub(super) fn show(&self, text: &str) -> Result<Shown, Trouble> {
        match &self.client {
            Some(client) => Ok(client.get(&format!("/v1/items/{}", encoded(text)))?),
            None => {
                let row = reference::resolve(text, self.directories.candidates(text)?)?;
                Ok(self.directories.show(row))
            }
        }
    }
}

fn path_of(query: &Query) -> String {
    let mut path = format!("/v1/items?limit={}", query.limit.unwrap_or(PAGE));
    if !query.states.is_empty() {
        path += &format!("&state={}", encoded(&query.states.join(",")));
    }
    if let Some(route) = &query.route {
        path += &format!("&route={}", encoded(route));
    }
    if let Some(since) = query.since {
        path += &format!("&since={}", encoded(&since.to_string()));
    }
    if let Some(after) = query.after {
        path += &format!("&cursor={}", Cursor::Ended(after));
    }
    path
}

/// A job's name from the command line: as it is, or escaped as `list` shows it when it isn't UTF-8.
pub(super) fn named(job: &OsStr) -> Result<String, Trouble> {
    if job.is_empty() {
        return Err(Unresolved::Empty.into());
    }
    Ok(job.to_str().map(str::to_owned).unwrap_or_else(|| escape(job.as_bytes())))
}
