//! The lines at the top: the director, the counts with what ended lately, and what isn't well.

use std::time::Duration;

use ratatui::style::Style;
use unicode_width::UnicodeWidthStr as _;

use super::app::App;
use crate::api::view::{Counts, DirectorState, Status};
use crate::devices::HostMode;
use crate::health::Condition;
use crate::logging::plain;
use crate::text::{ago, cut_end, cut_middle, span};

/// A line in pieces.
pub(super) type Words = Vec<(String, Style)>;

/// More than these aren't listed: `status` has them all.
const HEALTH: usize = 3;

/// See the module. As many lines as there is something to say.
pub(super) fn lines(app: &App, width: usize) -> Vec<Words> {
    let mut lines = Vec::new();
    let Some(facts) = &app.facts else {
        lines.push(vec![(format!("gamdok {}", env!("CARGO_PKG_VERSION")), app.paint.strong())]);
        lines.push(match &app.lost {
            Some((why, since)) => lost(app, why, *since),
            None => vec![("reading …".to_owned(), app.paint.dim())],
        });
        return lines;
    };
    lines.push(director(app, &facts.status, width));
    lines.push(counts(app, &facts.status.counts, width));
    if let Some((why, since)) = &app.lost {
        lines.push(lost(app, why, *since));
    } else if facts.status.state == DirectorState::Stopped {
        let text = "no director is running: shown is what the directories tell; waiting for one";
        lines.push(vec![(text.to_owned(), app.paint.warn())]);
    }
    let wrong: Vec<_> = facts.status.health.iter().filter(|check| check.state != Condition::Ok).collect();
    for check in wrong.iter().take(HEALTH) {
        let (word, style) = match check.state {
            Condition::Failed => ("FAILED", app.paint.bad()),
            _ => ("warning", app.paint.warn()),
        };
        lines.push(vec![
            (format!("{word}: {}: ", check.what.as_str()), style),
            (check.message.clone(), app.paint.plain()),
        ]);
    }
    if wrong.len() > HEALTH {
        let more = format!("and {} more: `gamdok status`", wrong.len() - HEALTH);
        lines.push(vec![(more, app.paint.warn())]);
    }
    lines
}

fn lost(app: &App, why: &str, since: jiff::Timestamp) -> Words {
    let text = format!("{why} · trying again for {}", ago(app.now, Some(since)));
    vec![(text, app.paint.bad())]
}

/// `gamdok 0.1.0 · running · GPU · up 2h 5m · pid 4711 · /data/root`; the root gives way.
fn director(app: &App, status: &Status, width: usize) -> Words {
    let paint = app.paint;
    let (state, style) = match status.state {
        DirectorState::Running => ("running", paint.word("running")),
        DirectorState::Paused => ("PAUSED", paint.word("paused")),
        DirectorState::Draining => ("DRAINING", paint.word("draining")),
        DirectorState::Stopped => ("stopped", paint.warn()),
    };
    let style = if app.lost.is_some() { paint.dim() } else { style };
    let mut words = vec![(format!("gamdok {} · ", status.version), paint.strong()), (state.to_owned(), style)];
    let mut rest = String::new();
    if status.state != DirectorState::Stopped {
        rest += match status.mode {
            HostMode::Gpu => " · GPU",
            HostMode::Cpu => " · CPU",
            HostMode::Sim => " · simulated GPUs",
        };
    }
    if let (Some(up), Some(facts)) = (status.uptime_s, &app.facts) {
        let since = Duration::try_from(app.now - facts.at).unwrap_or_default();
        let since = if app.lost.is_some() { Duration::ZERO } else { since };
        rest += &format!(" · up {}", span(Duration::try_from_secs_f64(up).unwrap_or_default() + since));
    }
    rest.extend(status.pid.map(|pid| format!(" · pid {pid}")));
    rest += " · ";
    words.push((rest, paint.plain()));
    let used: usize = words.iter().map(|(text, _)| text.width()).sum();
    words.push((cut_middle(&plain(&status.root), width.saturating_sub(used)), paint.plain()));
    words
}

/// In the order of an item's life; at the right, what ended over the last minutes.
fn counts(app: &App, counts: &Counts, width: usize) -> Words {
    let paint = app.paint;
    let all = [
        (counts.arriving, "arriving", paint.plain()),
        (counts.ready, "ready", paint.plain()),
        (counts.held, "held", paint.word("held")),
        (counts.ignored, "ignored", paint.plain()),
        (counts.claimed, "claimed", paint.plain()),
        (counts.running, "running", paint.word("running")),
        (counts.retrying, "retrying", paint.word("retrying")),
        (counts.done, "done", paint.plain()),
        (counts.failed, "failed", paint.word("failed")),
        (counts.cancelled, "cancelled", paint.plain()),
    ];
    let mut words: Words = Vec::new();
    for (n, word, style) in all.into_iter().filter(|(n, ..)| *n > 0) {
        if !words.is_empty() {
            words.push((" · ".to_owned(), paint.dim()));
        }
        words.push((format!("{n} {word}"), style));
    }
    if words.is_empty() {
        words.push(("nothing yet".to_owned(), paint.dim()));
    }
    let used: usize = words.iter().map(|(text, _)| text.width()).sum();
    let rate = format!(" {}{}/min", if width < 120 { "" } else { "ended " }, app.history.a_minute());
    let room = width.saturating_sub(used + 2 + rate.width()).min(if width < 120 { 16 } else { 60 });
    if room >= 4 && counts_ended(app) {
        let bars = app.history.ended(room);
        let gap = width.saturating_sub(used + room + rate.width());
        words.push((" ".repeat(gap), paint.plain()));
        words.push((bars, paint.good()));
        words.push((rate, paint.plain()));
    }
    words
}

/// Without a director nothing is known of what ends.
fn counts_ended(app: &App) -> bool {
    app.state() != DirectorState::Stopped
}

/// A sentence that fits.
pub(super) fn fitted(text: &str, width: usize) -> String {
    cut_end(&plain(text), width)
}
