//! The screen of a moment. Pure: what it shows is in the view, whatever its size.

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::app::{App, Row};
use super::columns::words;
use super::cursor::first_shown;
use super::keys::Place;
use super::layout::{self, LEAST, Placed};
use super::pane::Pane;
use super::{devices, foot, head, help, items};
use crate::text::wrap;

pub(super) fn draw(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    screen(app, area, frame.buffer_mut());
}

/// The same into a buffer.
pub(super) fn screen(app: &App, area: Rect, buffer: &mut Buffer) {
    if !layout::is_enough(area) {
        let text = format!("needs {}×{}, has {}×{} · q leaves", LEAST.0, LEAST.1, area.width, area.height);
        return words(buffer, row(area, 0), &[(text, app.paint.warn())]);
    }
    let placed = layout::place(app, area);
    for (n, line) in head::lines(app, area.width.into()).iter().enumerate() {
        words(buffer, row(placed.head, n as u16), line);
    }
    words(buffer, placed.foot, &foot::line(app));
    match (app.help, &app.job) {
        (true, _) => show_help(app, Rect { height: placed.foot.y - placed.head.bottom(), ..placed.job }, buffer),
        (false, Some(_)) => job(app, &placed, buffer),
        (false, None) => lists(app, &placed, buffer),
    }
}

/// The nth line of an area; none beyond its end.
fn row(area: Rect, n: u16) -> Rect {
    Rect { y: area.y.saturating_add(n), height: u16::from(n < area.height), ..area }
}

fn lists(app: &App, placed: &Placed, buffer: &mut Buffer) {
    for pane in Pane::ALL {
        let area = placed.panes[pane as usize];
        if area.height > 0 {
            list(app, pane, area, buffer);
        }
    }
    let detail = wrap(&foot::detail(app), "", placed.detail.width.into());
    let room = usize::from(placed.detail.height);
    for (n, line) in detail.lines().take(room).enumerate() {
        // What doesn't fit is told by its end.
        let whole = detail.lines().skip(n).collect::<Vec<_>>().join(" ");
        let line = if n + 1 == room { head::fitted(&whole, placed.detail.width.into()) } else { line.to_owned() };
        words(buffer, row(placed.detail, n as u16), &[(line, app.paint.dim())]);
    }
}

fn list(app: &App, pane: Pane, area: Rect, buffer: &mut Buffer) {
    let rows = app.rows(pane);
    let room = usize::from(area.height - 1);
    let first = first_shown(app.selected(pane), rows.len(), room);
    let focused = app.focus == pane && app.place() != Place::Filter;
    title(app, pane, row(area, 0), rows.len(), first, room, buffer);
    if rows.is_empty() {
        let text = if app.filter.is_empty() || app.total(pane) == 0 { pane.nothing() } else { "no such name" };
        return words(buffer, indented(row(area, 1)), &[(text.to_owned(), app.paint.dim())]);
    }
    for (n, it) in rows.iter().enumerate().skip(first).take(room) {
        let whole = row(area, (n - first) as u16 + 1);
        let line = indented(whole);
        match it {
            Row::Device(device) => devices::row(app, buffer, line, device),
            Row::Running(job) => items::running(app, buffer, line, job),
            Row::Item(item) => items::item(app, buffer, line, pane, item),
        }
        if focused && n == app.selected(pane) {
            buffer.set_style(whole, app.paint.selected());
        }
    }
}

/// Behind the mark.
fn indented(line: Rect) -> Rect {
    Rect { x: line.x + 1, width: line.width - 1, ..line }
}

/// The pane's name with how many there are, the titles of its columns, and which rows are shown where not all are.
fn title(app: &App, pane: Pane, line: Rect, listed: usize, first: usize, room: usize, buffer: &mut Buffer) {
    let total = app.total(pane);
    let filtered = !app.filter.is_empty() && pane != Pane::Devices;
    let count = if filtered { format!("{listed} of {total}") } else { total.to_string() };
    let title = format!("{} {count}", pane.title());
    let style = app.paint.title(app.focus == pane);
    if app.focus == pane {
        words(buffer, line, &[("▸".to_owned(), app.paint.strong())]);
    }
    match pane {
        Pane::Devices => devices::titles(app, buffer, indented(line), &title, style),
        _ => items::titles(app, buffer, indented(line), pane, &title, style),
    }
    if listed > room {
        let last = (first + room).min(listed);
        let all = if filtered { listed as u64 } else { total };
        let end = last == listed && (listed as u64) < all;
        let more = if end { ", the rest: `gamdok list`" } else { "" };
        let text = format!(" {}-{last}/{all}{more}", first + 1);
        let width = (text.len() as u16).min(line.width);
        let place = Rect { x: line.right() - width, width, ..line };
        words(buffer, place, &[(text, app.paint.dim())]);
    }
}

fn job(app: &App, placed: &Placed, buffer: &mut Buffer) {
    let Some(job) = &app.job else { return };
    for (n, line) in job.lines(app, placed.job.width.into()).iter().take(placed.job.height.into()).enumerate() {
        words(buffer, row(placed.job, n as u16), line);
    }
    let title = Rect { y: placed.job.bottom(), height: 1, ..placed.job };
    words(buffer, title, &[(job.title(), app.paint.title(job.follows()))]);
    for (n, line) in job.visible(placed.log.width.into(), placed.log.height.into()).into_iter().enumerate() {
        words(buffer, row(placed.log, n as u16), &[(line, app.paint.plain())]);
    }
}

fn show_help(app: &App, area: Rect, buffer: &mut Buffer) {
    words(buffer, row(area, 0), &[("KEYS".to_owned(), app.paint.title(true))]);
    for (n, line) in help::LINES.iter().enumerate() {
        words(buffer, row(area, n as u16 + 1), &[((*line).to_owned(), app.paint.plain())]);
    }
}
