//! The view of one item: where it stands, its attempts, and its log, which it follows until somebody scrolls up.

use unicode_width::UnicodeWidthChar as _;

use super::app::App;
use super::facts::{JobFacts, Log};
use super::head::Words;
use super::items;
use crate::api::view::{Listed, Shown};
use crate::item::Attempt;
use crate::text::{size, took};

/// Attempts that are listed: the last ones.
const ATTEMPTS: usize = 5;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct JobView {
    pub(super) name: String,
    pub(super) facts: Option<JobFacts>,
    /// The first line shown; none follows the end.
    top: Option<usize>,
}

impl JobView {
    pub(super) fn new(name: String) -> JobView {
        JobView { name, facts: None, top: None }
    }

    fn shown(&self) -> Option<&Shown> {
        Some(&self.facts.as_ref()?.shown.as_ref().ok()?.0)
    }

    pub(super) fn listed(&self) -> Option<&Listed> {
        Some(&self.shown()?.listed)
    }

    fn log(&self) -> Option<&Log> {
        self.facts.as_ref()?.log.as_ref()
    }

    pub(super) fn follows(&self) -> bool {
        self.top.is_none()
    }

    /// Scrolls. At the end it follows again.
    pub(super) fn step(&mut self, by: isize, width: usize, room: usize) {
        let last = self.wrapped(width).len().saturating_sub(room);
        let top = self.top.unwrap_or(last).saturating_add_signed(by).min(last);
        self.top = (top < last).then_some(top);
    }

    /// The lines of the log that are shown.
    pub(super) fn visible(&self, width: usize, room: usize) -> Vec<String> {
        let lines = self.wrapped(width);
        let last = lines.len().saturating_sub(room);
        let top = self.top.unwrap_or(last).min(last);
        lines.into_iter().skip(top).take(room).collect()
    }

    fn wrapped(&self, width: usize) -> Vec<String> {
        let lines = self.log().map(|log| log.lines.as_slice()).unwrap_or_default();
        lines.iter().flat_map(|line| wrapped(line, width)).collect()
    }

    /// The title over the log.
    pub(super) fn title(&self) -> String {
        match (self.log(), self.follows()) {
            (Some(log), true) => format!("LOG of attempt {}", log.attempt),
            (Some(log), false) => format!("LOG of attempt {}, scrolled: G follows again", log.attempt),
            (None, _) => "LOG: none yet".to_owned(),
        }
    }

    /// What is known of it, a line each.
    pub(super) fn lines(&self, app: &App, width: usize) -> Vec<Words> {
        let paint = app.paint;
        let shown = match self.facts.as_ref().map(|facts| &facts.shown) {
            None => return vec![vec![("reading …".to_owned(), paint.dim())]],
            Some(Err(why)) => return vec![vec![(why.clone(), paint.bad())]],
            Some(Ok(shown)) => &shown.0,
        };
        let row = &shown.listed;
        let mut lines: Vec<Words> = Vec::new();
        let mut line = |what: &str, value: &str, style| {
            if !value.is_empty() {
                lines.push(vec![(format!("{what:<9} "), paint.dim()), (value.to_owned(), style)]);
            }
        };
        let folder = if row.folder.is_empty() { String::new() } else { format!("{}/", row.folder) };
        line("name", &format!("{folder}{}", row.name), paint.strong());
        let why = row.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        let room = width.saturating_sub(10);
        for part in crate::text::wrap(&format!("{}{why}", row.state), "", room).lines().take(3) {
            line("state", part, paint.word(&row.state));
        }
        let message = shown.result.as_ref().and_then(|result| result.get("message")?.as_str());
        for part in crate::text::wrap(message.unwrap_or_default(), "", room).lines().take(3) {
            line("message", part, paint.plain());
        }
        let times = [("arrived", row.arrived_at), ("finished", row.finished_at)];
        let times: Vec<String> = times.iter().filter_map(|(what, at)| Some(format!("{what} {:.0}", (*at)?))).collect();
        let route = row.route.as_ref().map(|route| format!("{route} · ")).unwrap_or_default();
        line("route", &format!("{route}{}", times.join(" · ")), paint.plain());
        line("id", row.id.as_deref().unwrap_or_default(), paint.plain());
        let place = shown.paths.dir.as_deref().map(|dir| ("dir", dir));
        let place = place.or_else(|| Some(("item", shown.paths.item.as_deref()?)));
        if let Some((what, path)) = place {
            line(what, path, paint.plain());
        }
        let skipped = shown.history.len().saturating_sub(ATTEMPTS);
        for attempt in shown.history.iter().skip(skipped) {
            line(&format!("attempt {}", attempt.n), &told(app, attempt), paint.plain());
        }
        // The files tell of the first attempt only once it has ended.
        let mut live = app.facts.iter().flat_map(|facts| &facts.status.running);
        if let Some(now) = live.find(|now| row.job.as_ref() == Some(&now.job))
            && !shown.history.iter().any(|attempt| attempt.n == now.attempt)
        {
            let on = items::devices(app, &now.devices);
            let pid = now.pid.map(|pid| format!(" · pid {pid}")).unwrap_or_default();
            let took = took(now.started_at, Some(app.now));
            line(&format!("attempt {}", now.attempt), &format!("on {on}{pid} · {took} · running"), paint.plain());
        }
        lines
    }
}

/// One attempt in words.
fn told(app: &App, attempt: &Attempt) -> String {
    let ids: Vec<String> = attempt.devices.iter().map(|device| device.0.clone()).collect();
    let on = items::devices(app, &ids);
    let end = match (attempt.exit_code, attempt.signal) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => String::new(),
    };
    let running = attempt.started_at.is_some() && attempt.ended_at.is_none();
    let now = running.then_some(app.now);
    let parts = [
        if on.is_empty() { String::new() } else { format!("on {on}") },
        attempt.started_at.map(|at| format!("{at:.0}")).unwrap_or_default(),
        took(attempt.started_at, attempt.ended_at.or(now)),
        if running { "running".to_owned() } else { end },
        attempt.reason.map(|reason| reason.to_string()).unwrap_or_default(),
        if attempt.ended_at.is_some() && !attempt.counted { "not counted".to_owned() } else { String::new() },
        attempt.peak_gpu_memory.map(|peak| format!("peak {}", size(peak))).unwrap_or_default(),
    ];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ")
}

/// A line in pieces of at most `width` columns.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut pieces = vec![String::new()];
    let mut used = 0;
    for c in line.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > width.max(2) {
            pieces.push(String::new());
            used = 0;
        }
        used += wide;
        if let Some(piece) = pieces.last_mut() {
            piece.push(c);
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::super::tests::listed;
    use super::*;
    use crate::api::view::Paths;

    fn view(lines: &[&str]) -> JobView {
        let shown =
            Shown { listed: listed("running", "a"), paths: Paths::default(), result: None, history: Vec::new() };
        let log = Log { attempt: 1, lines: lines.iter().map(|line| (*line).to_owned()).collect() };
        let shown = Ok(Box::new(super::super::facts::ShownJob(shown)));
        JobView {
            facts: Some(JobFacts { name: "a".to_owned(), shown, log: Some(log) }),
            ..JobView::new("a".to_owned())
        }
    }

    #[test]
    fn a_log_is_followed_until_somebody_scrolls() {
        let mut view = view(&["1", "2", "3", "4", "5"]);
        let mut check = |by: isize, expected: &str, follows: bool| {
            view.step(by, 10, 2);
            assert_eq!((view.visible(10, 2).join(" ").as_str(), view.follows()), (expected, follows), "{by}");
        };
        check(0, "4 5", true);
        check(1, "4 5", true);
        check(-1, "3 4", false);
        check(-9, "1 2", false);
        check(2, "3 4", false);
        check(9, "4 5", true);
    }

    #[test]
    fn long_lines_are_wrapped_by_their_width() {
        let check = |line: &str, expected: &[&str]| assert_eq!(wrapped(line, 4), expected, "{line}");
        check("", &[""]);
        check("abcd", &["abcd"]);
        check("abcdefghi", &["abcd", "efgh", "i"]);
        check("감독이", &["감독", "이"]);
        check("a감독", &["a감", "독"]);
    }
}
