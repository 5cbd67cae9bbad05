//! The lists of items: what runs, what waits and why, what failed and why, what is held and why.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::app::App;
use super::columns::{Cells, Cut, bar};
use super::devices::percent;
use super::pane::Pane;
use crate::api::view::{Listed, RunningView};
use crate::text::ago;

/// The widths of the columns; 0 for those that have no room.
struct Widths {
    name: u16,
    route: u16,
    devices: u16,
    pid: u16,
    bar: u16,
}

const TRY: u16 = 3;
const FOR: u16 = 7;
const STATE: u16 = 8;
const PERCENT: u16 = 4;

impl Widths {
    fn of(width: u16) -> Widths {
        let name = (width / 3).clamp(16, 48);
        match width {
            ..84 => Widths { name, route: 10, devices: 7, pid: 0, bar: 4 },
            84..110 => Widths { name, route: 12, devices: 7, pid: 7, bar: 6 },
            _ => Widths { name, route: 16, devices: 9, pid: 7, bar: 10 },
        }
    }
}

/// The titles of the columns behind that of the pane.
pub(super) fn titles(app: &App, buffer: &mut Buffer, line: Rect, pane: Pane, title: &str, style: Style) {
    let (it, dim) = (Widths::of(line.width), app.paint.dim());
    let mut cells = Cells::new(buffer, line);
    cells.put(title, it.name, Cut::End, style).put("ROUTE", it.route, Cut::End, dim);
    match pane {
        Pane::Running => {
            cells.put("TRY", TRY, Cut::Right, dim).put("ON", it.devices, Cut::End, dim);
            if it.pid > 0 {
                cells.put("PID", it.pid, Cut::Right, dim);
            }
            cells.put("FOR", FOR, Cut::End, dim).rest("PROGRESS", Cut::End, dim);
        }
        Pane::Failed => {
            cells.put("TRY", TRY, Cut::Right, dim).put("AGO", FOR, Cut::End, dim).rest("WHY", Cut::End, dim);
        }
        _ => cells.put("STATE", STATE, Cut::End, dim).put("FOR", FOR, Cut::End, dim).rest("WHY", Cut::End, dim),
    }
}

pub(super) fn running(app: &App, buffer: &mut Buffer, line: Rect, job: &RunningView) {
    let (it, plain) = (Widths::of(line.width), app.paint.plain());
    let mut cells = Cells::new(buffer, line);
    cells.put(&job.name, it.name, Cut::Middle, plain).put(&job.route, it.route, Cut::Middle, plain);
    cells.put(&job.attempt.to_string(), TRY, Cut::Right, plain);
    cells.put(&devices(app, &job.devices), it.devices, Cut::End, plain);
    if it.pid > 0 {
        cells.put(&job.pid.map(|pid| pid.to_string()).unwrap_or_default(), it.pid, Cut::Right, plain);
    }
    cells.put(&ago(app.now, job.started_at), FOR, Cut::End, plain);
    let Some(progress) = &job.progress else { return };
    if let (Some(fraction), Some(percent)) = (progress.fraction, percent(Some(progress))) {
        cells.put(&bar(fraction, it.bar.into()), it.bar, Cut::End, app.paint.busy());
        cells.put(&percent, PERCENT, Cut::Right, plain);
    }
    cells.rest(progress.message.as_deref().unwrap_or_default(), Cut::End, app.paint.dim());
}

/// What waits, failed or is held.
pub(super) fn item(app: &App, buffer: &mut Buffer, line: Rect, pane: Pane, item: &Listed) {
    let (it, paint) = (Widths::of(line.width), app.paint);
    let plain = paint.plain();
    let mut cells = Cells::new(buffer, line);
    let name = if item.folder.is_empty() { item.name.clone() } else { format!("{}/{}", item.folder, item.name) };
    cells.put(&name, it.name, Cut::Middle, plain);
    cells.put(item.route.as_deref().unwrap_or_default(), it.route, Cut::Middle, plain);
    if pane == Pane::Failed {
        cells.put(&item.attempts.to_string(), TRY, Cut::Right, plain);
    } else {
        cells.put(&item.state, STATE, Cut::End, paint.word(&item.state));
    }
    cells.put(&ago(app.now, item.finished_at.or(item.arrived_at)), FOR, Cut::End, plain);
    let why = item.reason.as_deref().unwrap_or_default();
    cells.rest(why, Cut::End, if pane == Pane::Failed { paint.word("failed") } else { plain });
}

/// As the list of devices calls them.
pub(super) fn devices(app: &App, ids: &[String]) -> String {
    let devices = app.facts.iter().flat_map(|facts| &facts.status.devices);
    let known: Vec<_> = devices.collect();
    let called = |id: &String| {
        let index = known.iter().find(|device| device.id == *id).and_then(|device| device.index);
        index.map_or_else(|| id.clone(), |index| index.to_string())
    };
    ids.iter().map(called).collect::<Vec<_>>().join(",")
}
