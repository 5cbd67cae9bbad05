//! The devices: verdict, memory, load, heat, power, slots, and what goes on there: the job with its time and progress, or
//! the reason why there is none.

use jiff::Timestamp;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::app::{App, kept_out};
use super::columns::{Cells, Cut, bar};
use crate::api::view::{DeviceView, ProgressView, RunningView};
use crate::text::{ago, of_total};

/// The widths of the columns; 0 for those that have no room.
struct Widths {
    index: u16,
    bar: u16,
    load: u16,
    power: u16,
}

const VERDICT: u16 = 9;
const MEMORY: u16 = 13;
const NUMBER: u16 = 4;
const SLOTS: u16 = 5;

impl Widths {
    fn of(app: &App, width: u16) -> Widths {
        let devices = app.facts.iter().flat_map(|facts| &facts.status.devices);
        let index = devices.map(|device| index(device).len() as u16).max().unwrap_or(0).clamp(2, 12);
        match width {
            ..84 => Widths { index, bar: 4, load: 0, power: 0 },
            84..110 => Widths { index, bar: 8, load: 8, power: 0 },
            110..150 => Widths { index, bar: 8, load: 12, power: 5 },
            _ => Widths { index, bar: 12, load: 24, power: 5 },
        }
    }
}

fn index(device: &DeviceView) -> String {
    device.index.map_or_else(|| device.id.clone(), |index| index.to_string())
}

/// The titles of the columns behind that of the pane.
pub(super) fn titles(app: &App, buffer: &mut Buffer, line: Rect, title: &str, style: Style) {
    let it = Widths::of(app, line.width);
    let dim = app.paint.dim();
    let mut cells = Cells::new(buffer, line);
    cells.put(title, it.index + 1 + VERDICT, Cut::End, style);
    cells.put("MEMORY", it.bar + 1 + MEMORY, Cut::End, dim);
    cells.put("LOAD", NUMBER + if it.load > 0 { 1 + it.load } else { 0 }, Cut::End, dim);
    cells.put("TEMP", NUMBER, Cut::End, dim);
    if it.power > 0 {
        cells.put("POWER", it.power, Cut::End, dim);
    }
    cells.put("SLOTS", SLOTS, Cut::End, dim).rest("NOW", Cut::End, dim);
}

pub(super) fn row(app: &App, buffer: &mut Buffer, line: Rect, device: &DeviceView) {
    let (it, paint) = (Widths::of(app, line.width), app.paint);
    let plain = paint.plain();
    let mut cells = Cells::new(buffer, line);
    cells.put(&index(device), it.index, if device.index.is_some() { Cut::Right } else { Cut::End }, paint.strong());
    cells.put(&device.verdict, VERDICT, Cut::End, paint.word(&device.verdict));
    let memory = device.memory_total.filter(|total| *total > 0).map(|total| {
        let part = device.memory_used.map(|used| used as f64 / total as f64);
        part.map_or_else(String::new, |part| bar(part, it.bar.into()))
    });
    cells.put(&memory.unwrap_or_default(), it.bar, Cut::End, paint.busy());
    cells.put(&memory_text(device), MEMORY, Cut::End, plain);
    cells.put(&known(device.utilization, "%"), NUMBER, Cut::Right, plain);
    if it.load > 0 {
        cells.put(&app.history.load(&device.id, it.load.into()), it.load, Cut::End, paint.good());
    }
    cells.put(&known(device.temperature, "°"), NUMBER, Cut::Right, plain);
    if it.power > 0 {
        cells.put(
            &device.power_w.map(|watts| format!("{watts:.0} W")).unwrap_or_default(),
            it.power,
            Cut::Right,
            plain,
        );
    }
    cells.put(&format!("{}/{}", device.taken, device.slots), SLOTS, Cut::End, plain);
    match now(app, device, usize::from(cells.left())) {
        Some(text) => cells.rest(&text, Cut::End, plain),
        None => cells.rest(&device.reason, Cut::End, paint.dim()),
    }
}

/// From 100 GiB on the fractions have no room, and don't matter.
fn memory_text(device: &DeviceView) -> String {
    const GIB: f64 = (1_u64 << 30) as f64;
    match (device.memory_used, device.memory_total) {
        (Some(used), Some(total)) if total >= 100 << 30 => {
            format!("{:.0}/{:.0} GiB", used as f64 / GIB, total as f64 / GIB)
        }
        (used, total) => of_total(used, total),
    }
}

fn known(value: Option<u32>, unit: &str) -> String {
    value.map(|value| format!("{value}{unit}")).unwrap_or_default()
}

/// The jobs that run there, the first with its time and progress; nothing where there is none.
fn now(app: &App, device: &DeviceView, room: usize) -> Option<String> {
    let facts = app.facts.as_ref()?;
    let mut jobs = facts.status.running.iter().filter(|job| job.devices.contains(&device.id));
    let first = jobs.next()?;
    let more = match jobs.count() {
        0 => String::new(),
        n => format!(" +{n}"),
    };
    let rest = format!(" {}{more}", for_and_progress(first, app.now));
    let why = kept_out(device).map(|why| format!(" · {why}")).unwrap_or_default();
    let rest = rest.trim_end().to_owned();
    let left = room.saturating_sub(unicode_width::UnicodeWidthStr::width(rest.as_str()));
    Some(crate::text::cut_middle(&crate::logging::plain(&first.name), left.max(8)) + &rest + &why)
}

fn for_and_progress(job: &RunningView, now: Timestamp) -> String {
    let parts = [ago(now, job.started_at), percent(job.progress.as_ref()).unwrap_or_default()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

pub(super) fn percent(progress: Option<&ProgressView>) -> Option<String> {
    progress.and_then(|progress| progress.fraction).map(|fraction| format!("{:.0}%", fraction * 100.0))
}
