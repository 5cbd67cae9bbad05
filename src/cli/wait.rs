//! `gamdok wait [JOB…]`: returns when these have ended, or all that isn't held; fails if one of them failed.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use super::source::{self, Source};
use super::trouble::{Trouble, exit};
use super::{Global, list, output};
use crate::api::client::{Client, ClientError, encoded};
use crate::api::ended::Query;
use crate::api::reference::{label, written};
use crate::api::shapes::Page;
use crate::api::view::{Change, Listed, Shown};

/// Between two questions about a busy director.
const BREATH: Duration = Duration::from_millis(100);

/// What lies in the inbox and the director hasn't listed is waited for so long: it looks there at least every 5 s.
const UNSEEN: Duration = Duration::from_secs(8);

/// More held names than this aren't all listed.
const HELD_LISTED: u64 = 1000;

/// Failures that are printed.
const ROWS: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Wait {
    /// Jobs, ids, unique beginnings of either, or items' names [default: all that isn't held]
    #[arg(value_name = "JOB")]
    jobs: Vec<OsString>,
}

impl Wait {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let source = Source::open(global)?;
        let names: Vec<String> = self.jobs.iter().map(|job| source::named(job)).collect::<Result<_, _>>()?;
        let rows = if names.is_empty() { all(&source)? } else { these(&source, &names)? };
        let wrong: Vec<Listed> = rows.iter().filter(|row| row.state != "done").cloned().collect();
        if global.json {
            output::json(&rows)?;
        } else {
            let mut text = format!("{}\n", summary(&rows));
            if !wrong.is_empty() {
                text += &list::render(&wrong[..wrong.len().min(ROWS)], Timestamp::now(), output::width());
            }
            output::print(&text)?;
        }
        Ok(if wrong.is_empty() { exit::OK } else { exit::FAILED })
    }
}

/// How many ended how.
fn summary(rows: &[Listed]) -> String {
    let count = |state: &&str| rows.iter().filter(|row| row.state == *state).count();
    let some: Vec<String> =
        Query::ENDED.iter().filter(|state| count(state) > 0).map(|state| format!("{} {state}", count(state))).collect();
    if some.is_empty() { "nothing to wait for".to_owned() } else { some.join(" · ") }
}

/// Everything that isn't held and hasn't ended. What it waited for is what ended meanwhile.
fn all(source: &Source) -> Result<Vec<Listed>, Trouble> {
    let since = Timestamp::now();
    let begun = Instant::now();
    let client = director(source)?;
    // What runs now may have ended already, when the view was published before.
    let open = ["claimed", "running", "retrying"].join(",");
    let Page { items: begun_with, .. } = client.get(&format!("/v1/items?state={}&limit=100000", encoded(&open)))?;
    let bar = Bar::new();
    let mut after = 0;
    loop {
        let change: Change = match client.changed(after, patience(begun)) {
            Ok(change) => change,
            Err(wrong) => return Err(left(wrong)),
        };
        after = change.number;
        let counts = change.counts;
        let open = counts.arriving + counts.ready + counts.claimed + counts.running + counts.retrying;
        bar.set(None, open);
        if open == 0 && !(begun.elapsed() < UNSEEN && counts.held <= HELD_LISTED && unseen(source, client)?) {
            break;
        }
        client.pause(BREATH);
    }
    let states = Query::ENDED.map(str::to_owned).to_vec();
    let mut rows = source.rows(&Query { states, since: Some(since), ..Query::default() })?;
    let known: HashSet<Option<String>> = rows.iter().map(|row| row.id.clone()).collect();
    for id in begun_with.into_iter().filter(|row| !known.contains(&row.id)).filter_map(|row| row.id) {
        rows.push(source.show(&id)?.listed);
    }
    Ok(rows)
}

/// Whether something lies in the inbox that the director hasn't listed yet, or was just claimed and isn't published.
fn unseen(source: &Source, client: &Client) -> Result<bool, Trouble> {
    let states = ["held", "ignored", "ready", "arriving"].join(",");
    let Page { items: listed, .. } = client.get(&format!("/v1/items?state={}&limit=100000", encoded(&states)))?;
    let wanted = Query { states: vec!["arriving".to_owned()], ..Query::default() };
    let present = source.directories.waiting(&wanted, HELD_LISTED as usize + 1)?;
    // Told since the count that was looked at.
    if listed.iter().any(|row| matches!(row.state.as_str(), "ready" | "arriving")) {
        return Ok(true);
    }
    let known = |row: &Listed| listed.iter().any(|it| (&it.folder, &it.name) == (&row.folder, &row.name));
    // In this order: an item moves from the inbox to `claimed/`.
    Ok(!present.iter().all(known) || !source.directories.claimed()?.is_empty())
}

/// The jobs that were named. An item that still waits is followed to the job it becomes.
fn these(source: &Source, names: &[String]) -> Result<Vec<Listed>, Trouble> {
    let begun = Instant::now();
    // By what they were named; each once.
    let mut open: Vec<Listed> = Vec::new();
    let mut ended: BTreeMap<Option<String>, Listed> = BTreeMap::new();
    for name in names {
        let Shown { listed, .. } = source.show(name)?;
        if is_ended(&listed) {
            ended.insert(listed.id.clone(), listed);
        } else if !open.iter().any(|it| (&it.id, &it.folder, &it.name) == (&listed.id, &listed.folder, &listed.name)) {
            open.push(listed);
        }
    }
    if open.is_empty() {
        return Ok(ended.into_values().collect());
    }
    let client = director(source)?;
    let bar = Bar::new();
    let total = open.len() as u64;
    let mut after = 0;
    while !open.is_empty() {
        let change: Change = client.changed(after, patience(begun)).map_err(left)?;
        after = change.number;
        let mut still = Vec::new();
        for row in open {
            match look_again(client, &row)? {
                Some(now) if is_ended(&now) => {
                    ended.insert(now.id.clone(), now);
                }
                Some(now) => still.push(now),
                None => {
                    let help = "its producer took it back, or removed it";
                    let message = format!("{} is gone from the inbox", label(&row));
                    return Err(Trouble::new(exit::FAILED, "gone", message, help));
                }
            }
        }
        open = still;
        bar.set(Some(total), open.len() as u64);
        if !open.is_empty() {
            client.pause(BREATH);
        }
    }
    Ok(ended.into_values().collect())
}

/// The same item now; nothing when it is nowhere.
fn look_again(client: &Client, row: &Listed) -> Result<Option<Listed>, Trouble> {
    let name = row.id.clone().unwrap_or_else(|| written(row));
    match client.get::<Shown>(&format!("/v1/items/{}", encoded(&name))) {
        Ok(shown) => Ok(Some(shown.listed)),
        Err(ClientError::Refused { status: 404, .. }) => Ok(None),
        // Older jobs had the same name: the newest is ours, ids grow with time.
        Err(ClientError::Refused { status: 409, .. }) => {
            let Page { items: rows, .. } = client.get("/v1/items?limit=100000")?;
            let ours = rows.into_iter().filter(|it| it.name == row.name && (it.folder == row.folder || is_ended(it)));
            Ok(ours.max_by(|a, b| a.id.cmp(&b.id)))
        }
        Err(wrong) => Err(left(wrong)),
    }
}

fn is_ended(row: &Listed) -> bool {
    Query::ENDED.contains(&row.state.as_str())
}

/// Without a director nothing ends.
fn director(source: &Source) -> Result<&Client, Trouble> {
    let root = source.directories.root();
    source.client.as_ref().ok_or_else(|| ClientError::NoDirector { root: root.to_owned() }.into())
}

/// A director that ends while it is waited for takes no more questions.
fn left(wrong: ClientError) -> Trouble {
    match wrong {
        ClientError::Lost(_) => {
            let help = "what isn't done stays where it is: start it again and wait again";
            Trouble::new(exit::NO_DIRECTOR, "no-director", "the director ended", help)
        }
        wrong => wrong.into(),
    }
}

/// The first questions are answered soon, since unseen items may keep no director busy.
fn patience(begun: Instant) -> u64 {
    if begun.elapsed() < UNSEEN { 1 } else { 60 }
}

/// A bar on a terminal; nothing elsewhere.
struct Bar {
    bar: ProgressBar,
    most: std::cell::Cell<u64>,
}

impl Bar {
    fn new() -> Bar {
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} ended, {elapsed} {msg}") {
            bar.set_style(style);
        }
        Bar { bar, most: std::cell::Cell::new(0) }
    }

    /// Of `total`, or of the most that was open at a time.
    fn set(&self, total: Option<u64>, open: u64) {
        self.most.set(total.unwrap_or(self.most.get().max(open)));
        self.bar.set_length(self.most.get());
        self.bar.set_position(self.most.get() - open);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
