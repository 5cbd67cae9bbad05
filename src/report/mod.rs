//! The past on one page that needs no other: no script, no outside address, dark or light as the reader has it. Numbers
//! come from the same questions as `gamdok stats`. Memory is bounded by what is drawn.

mod spread;
mod svg;
mod timeline;

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;

use crate::ledger::{
    Bucket, Direction, Filter, History, HistoryError, OfDevice, OfRoute, Outcomes, Sampled, Seen, Stats, Try, Window,
};
use crate::units::Bytes;
use spread::Spread;
use svg::{Drawing, Safe};
use timeline::{PARTS, Timeline};

#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("cannot write it: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Read(#[from] HistoryError),
}

/// Bars of the throughput.
const BARS: usize = 60;
/// Rows of the tables of single attempts.
const ROWS: usize = 25;
/// Routes and devices that are drawn; the tables have them all.
const DRAWN: usize = 24;

/// Writes the page. `since`: none from the beginning.
pub fn write(
    to: &mut impl Write,
    past: &History,
    root: &str,
    since: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), ReportError> {
    let from = since.or(past.beginning()?).unwrap_or(now).min(now);
    let stats = past.stats(&Window { since, until: now })?;
    let span = Span { from, to: now };
    head(to, root, span, &stats)?;
    if stats.total.jobs.total() + stats.total.attempts.total() == 0 {
        writeln!(to, "<p>Nothing has ended in this time.</p>")?;
    } else {
        throughput(to, &past.ends(from, now, BARS)?, span)?;
        let timeline = timeline(past, span)?;
        devices(to, past, &timeline, &stats, span)?;
        routes(to, past, &stats, span)?;
        failures(to, &stats)?;
        attempts(to, past, span)?;
    }
    writeln!(to, "</body></html>")?;
    Ok(to.flush()?)
}

/// The time that is shown.
#[derive(Clone, Copy)]
struct Span {
    from: Timestamp,
    to: Timestamp,
}

impl Span {
    fn length(self) -> Duration {
        Duration::try_from(self.to - self.from).unwrap_or_default()
    }

    /// The ends and the middle, under a drawing.
    fn axis(self) -> String {
        let middle = self.from.checked_add(self.length() / 2).unwrap_or(self.to);
        format!(
            "<div class=\"axis\"><span>{}</span><span>{}</span><span>{}</span></div>",
            self.mark(self.from),
            self.mark(middle),
            self.mark(self.to)
        )
    }

    /// A moment within it, as closely as its length asks for.
    fn mark(self, at: Timestamp) -> String {
        let format = match self.length().as_secs() {
            0..3_600 => "%H:%M:%S",
            3_600..259_200 => "%m-%d %H:%M",
            _ => "%F",
        };
        at.strftime(format).to_string()
    }
}

fn head(to: &mut impl Write, root: &str, span: Span, stats: &Stats) -> Result<(), ReportError> {
    let total = &stats.total;
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <link rel=\"icon\" href=\"data:,\"><title>gamdok: {root}</title>\n<style>\n{style}</style></head><body>\n\
         <h1>{root}</h1><p class=\"dim\">{from} to {until} (UTC), {length} · gamdok {version}</p>\n<div class=\"tiles\">",
        root = Safe(root),
        style = include_str!("style.css"),
        from = moment(span.from),
        until = moment(span.to),
        length = long(span.length().as_secs_f64()),
        version = env!("CARGO_PKG_VERSION"),
    )?;
    let mut tile = |what: &str, value: Option<String>| match value {
        Some(value) => write!(to, "<div><b>{}</b>{}</div>", Safe(&value), Safe(what)),
        None => Ok(()),
    };
    tile("items done", Some(total.jobs.done.to_string()))?;
    tile("failed", Some(total.jobs.failed.to_string()))?;
    tile("cancelled", Some(total.jobs.cancelled).filter(|n| *n > 0).map(|n| n.to_string()))?;
    tile("waited (median)", total.waiting.p50.map(long))?;
    tile("ran (median)", total.running.p50.map(long))?;
    tile("GPU-hours", Some(total.gpu_hours).filter(|hours| *hours > 0.0).map(hours))?;
    tile("CPU slot-hours", Some(total.cpu_hours).filter(|hours| *hours > 0.0).map(hours))?;
    tile("energy, as far as known", total.energy_joules.map(energy))?;
    writeln!(to, "</div>")?;
    Ok(())
}

fn throughput(to: &mut impl Write, ends: &[Bucket], span: Span) -> Result<(), ReportError> {
    const HEIGHT: usize = 140;
    let mut bars = vec![Outcomes::default(); BARS];
    for bucket in ends {
        let Some(bar) = bars.get_mut(bucket.at) else { continue };
        match bucket.outcome.as_str() {
            "done" => bar.done += bucket.jobs,
            "failed" => bar.failed += bucket.jobs,
            _ => bar.cancelled += bucket.jobs,
        }
    }
    let most = bars.iter().map(Outcomes::total).max().unwrap_or(0).max(1);
    let each = span.length() / BARS as u32;
    let mut drawing = Drawing::new(BARS * 10, HEIGHT, "items that ended, over time");
    for (n, bar) in bars.iter().enumerate() {
        let at = span.from.checked_add(each * n as u32).unwrap_or(span.to);
        let said = format!("{}: {} done, {} failed, {} cancelled", span.mark(at), bar.done, bar.failed, bar.cancelled);
        let mut top = HEIGHT as f64;
        for (count, class) in [(bar.done, "done"), (bar.cancelled, "cancelled"), (bar.failed, "failed")] {
            // A single failure among thousands is seen.
            let least = if class == "failed" && count > 0 { 3.0 } else { 0.0 };
            let height = (count as f64 / most as f64 * (HEIGHT - 6) as f64).max(least);
            top -= height;
            drawing.bar(n as f64 * 10.0 + 0.5, top.max(0.0), 9.0, height, class, &said);
        }
    }
    let key = "<div class=\"key\"><span><i style=\"background:var(--done)\"></i>done</span>\
               <span><i style=\"background:var(--failed)\"></i>failed</span>\
               <span><i style=\"background:var(--cancelled)\"></i>cancelled</span>";
    writeln!(
        to,
        "<h2>Items that ended</h2>{key}<span>the highest bar: {most} in {}</span></div>{}{}",
        long(each.as_secs_f64()),
        drawing.finish(),
        span.axis()
    )?;
    Ok(())
}

fn timeline(past: &History, span: Span) -> Result<Timeline, ReportError> {
    let mut timeline = Timeline::new(span.from, span.to);
    let filter = Filter { since: Some(span.from), until: Some(span.to), ..Filter::default() };
    past.each(&filter, Direction::OldestFirst, None, |row| {
        timeline.note(&row);
        Ok::<(), ReportError>(())
    })?;
    Ok(timeline)
}

fn devices(
    to: &mut impl Write,
    past: &History,
    timeline: &Timeline,
    stats: &Stats,
    span: Span,
) -> Result<(), ReportError> {
    let sampled: BTreeMap<String, Sampled> =
        past.sampled_devices()?.into_iter().map(|it| (it.id.clone(), it)).collect();
    let seen = past.seen(span.from, span.to, PARTS)?;
    let of = |id: &str| seen.iter().filter(|it| it.device == id).collect::<Vec<&Seen>>();
    writeln!(
        to,
        "<h2>Devices</h2><div class=\"key\"><span><i style=\"background:var(--done)\"></i>something ran</span>\
         <span><i style=\"background:var(--failed)\"></i>attempts failed, as high as their share</span>\
         <span><i style=\"background:var(--seen)\"></i>utilisation (line), where it was sampled</span></div>"
    )?;
    let mut ids: Vec<&String> = timeline.lines.keys().collect();
    ids.sort_by_key(|id| (sampled.get(*id).and_then(|it| it.index).unwrap_or(u32::MAX), *id));
    for id in ids.iter().take(DRAWN) {
        let line = &timeline.lines[*id];
        let name = called(id, sampled.get(*id));
        let seen = of(id);
        write!(
            to,
            "<div class=\"row\"><h3>{} <span class=\"dim\">something ran {:.0} % of the time{}</span></h3>{}",
            Safe(&name),
            timeline.share(line) * 100.0,
            mean(&seen).map(|mean| format!(", utilisation {mean:.0} %")).unwrap_or_default(),
            line.draw(&format!("when something ran on {name}")),
        )?;
        if seen.iter().any(|it| it.utilization.is_some()) {
            write!(to, "{}", utilisation(&seen, &name))?;
        }
        writeln!(to, "</div>")?;
    }
    write!(to, "{}", span.axis())?;
    if ids.len() > DRAWN {
        writeln!(to, "<p class=\"dim\">and {} more devices</p>", ids.len() - DRAWN)?;
    }
    let heads = [
        Head::text("device"),
        Head::number("done"),
        Head::number("failed"),
        Head::number("cut short"),
        Head::number("hours"),
        Head::number("something ran"),
        Head::number("utilisation"),
        Head::number("ran: median"),
        Head::number("95 %"),
        Head::number("energy"),
        Head::number("most memory"),
    ];
    let row = |it: &OfDevice| {
        let share = timeline.lines.get(&it.device).map(|line| format!("{:.0} %", timeline.share(line) * 100.0));
        [
            called(&it.device, sampled.get(&it.device)),
            count(it.attempts.done),
            count(it.attempts.failed),
            count(it.attempts.cut),
            hours(it.hours),
            share.unwrap_or_default(),
            mean(&of(&it.device)).map(|mean| format!("{mean:.0} %")).unwrap_or_default(),
            it.running.p50.map(long).unwrap_or_default(),
            it.running.p95.map(long).unwrap_or_default(),
            it.energy_joules.map(energy).unwrap_or_default(),
            it.peak_gpu_memory.map(size).unwrap_or_default(),
        ]
    };
    table(to, &heads, stats.devices.iter().map(row))
}

/// The mean over the parts of the time that were sampled.
fn mean(seen: &[&Seen]) -> Option<f64> {
    let known: Vec<f64> = seen.iter().filter_map(|it| it.utilization).collect();
    (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
}

fn utilisation(seen: &[&Seen], name: &str) -> String {
    const HEIGHT: usize = 34;
    let mut drawing = Drawing::new(PARTS, HEIGHT, &format!("utilisation of {name}, from 0 to 100 %"));
    let mut known = vec![None; PARTS];
    for it in seen {
        if let Some(place) = known.get_mut(it.at) {
            *place = it.utilization;
        }
    }
    let y = |percent: f64| 2.0 + (1.0 - percent.clamp(0.0, 100.0) / 100.0) * (HEIGHT - 4) as f64;
    let points = known.iter().enumerate().map(|(n, percent)| percent.map(|percent| (n as f64 + 0.25, y(percent))));
    drawing.line(points, "seen");
    format!("<div style=\"margin-top:3px\">{}</div>", drawing.finish())
}

fn called(id: &str, sampled: Option<&Sampled>) -> String {
    match sampled {
        Some(Sampled { index: Some(index), name, .. }) => format!("GPU {index} {name} ({id})"),
        Some(Sampled { name, .. }) if !name.is_empty() => format!("{name} ({id})"),
        _ => id.to_owned(),
    }
}

fn routes(to: &mut impl Write, past: &History, stats: &Stats, span: Span) -> Result<(), ReportError> {
    let mut waits: BTreeMap<Option<String>, Spread> = BTreeMap::new();
    let mut runs: BTreeMap<Option<String>, Spread> = BTreeMap::new();
    past.each_wait(span.from, span.to, |route, seconds| waits.entry(route).or_default().note(seconds))?;
    past.each_run(span.from, span.to, |route, seconds| runs.entry(route).or_default().note(seconds))?;
    writeln!(to, "<h2>Routes: how long items waited and ran</h2><div class=\"routes\">")?;
    let mut most: Vec<&OfRoute> = stats.routes.iter().collect();
    most.sort_by_key(|it| std::cmp::Reverse(it.jobs.total()));
    for it in most.iter().take(DRAWN) {
        writeln!(
            to,
            "<div><h3>{}</h3><p class=\"dim\">waited{}</p>{}<p class=\"dim\">ran{}</p>{}</div>",
            Safe(&route(it)),
            of_all(&it.waiting),
            waits.get(&it.route).map(|it| it.draw("waiting times")).unwrap_or_default(),
            of_all(&it.running),
            runs.get(&it.route).map(|it| it.draw("running times")).unwrap_or_default(),
        )?;
    }
    writeln!(to, "</div>")?;
    let heads = [
        Head::text("route"),
        Head::number("done"),
        Head::number("failed"),
        Head::number("cancelled"),
        Head::number("waited: median"),
        Head::number("95 %"),
        Head::number("ran: median"),
        Head::number("95 %"),
        Head::number("GPU-hours"),
        Head::number("CPU slot-hours"),
        Head::number("energy"),
        Head::number("most memory"),
        Head::number("declared, each GPU"),
        Head::number("used more"),
    ];
    let row = |it: &OfRoute| {
        let time = |seconds: Option<f64>| seconds.map(long).unwrap_or_default();
        [
            route(it),
            count(it.jobs.done),
            count(it.jobs.failed),
            count(it.jobs.cancelled),
            time(it.waiting.p50),
            time(it.waiting.p95),
            time(it.running.p50),
            time(it.running.p95),
            hours(it.gpu_hours),
            hours(it.cpu_hours),
            it.energy_joules.map(energy).unwrap_or_default(),
            it.peak_gpu_memory.map(size).unwrap_or_default(),
            it.declared_gpu_memory.map(size).unwrap_or_default(),
            count(it.over_declared),
        ]
    };
    table(to, &heads, stats.routes.iter().map(row))
}

fn of_all(spread: &crate::ledger::Spread) -> String {
    match (spread.p50, spread.p95) {
        (Some(half), Some(most)) => format!(": half up to {}, 95 % up to {}", long(half), long(most)),
        _ => String::new(),
    }
}

fn failures(to: &mut impl Write, stats: &Stats) -> Result<(), ReportError> {
    let mut reasons: Vec<(&String, u64)> = stats.total.failures.iter().map(|(reason, n)| (reason, *n)).collect();
    reasons.sort_by_key(|(reason, n)| (std::cmp::Reverse(*n), *reason));
    let Some(&(_, most)) = reasons.first() else { return Ok(()) };
    writeln!(to, "<h2>Attempts that failed, by reason</h2><div class=\"bars\">")?;
    for (reason, n) in reasons {
        let mut drawing = Drawing::new(1000, 14, &format!("{n} for {reason}"));
        drawing.bar(0.0, 0.0, n as f64 / most as f64 * 1000.0, 14.0, "failed", "");
        writeln!(to, "<span>{}</span>{}<span>{n}</span>", Safe(reason), drawing.finish())?;
    }
    writeln!(to, "</div>")?;
    Ok(())
}

fn attempts(to: &mut impl Write, past: &History, span: Span) -> Result<(), ReportError> {
    let window = Filter { since: Some(span.from), until: Some(span.to), ..Filter::default() };
    let done = Filter { outcomes: vec!["done".to_owned()], ..window.clone() };
    let failed = Filter { outcomes: vec!["failed".to_owned()], ..window };
    let heads = [
        Head::text("item"),
        Head::text("route"),
        Head::number("attempt"),
        Head::text("began (UTC)"),
        Head::number("ran"),
        Head::text("device"),
        Head::text("why"),
    ];
    let row = |it: Try| {
        let why = match (it.reason, it.exit_code, it.signal) {
            (Some(reason), Some(code), _) if reason == "exit" => format!("exit code {code}"),
            (Some(reason), _, Some(signal)) if reason == "signal" => format!("signal {signal}"),
            (reason, ..) => reason.unwrap_or_default(),
        };
        [
            if it.folder.is_empty() { it.name } else { format!("{}/{}", it.folder, it.name) },
            it.route.unwrap_or_default(),
            it.attempt.to_string(),
            it.started_at.or(it.ended_at).map(|at| at.strftime("%F %T").to_string()).unwrap_or_default(),
            it.seconds.map(long).unwrap_or_default(),
            it.devices.join(", "),
            why,
        ]
    };
    let mut latest = Vec::new();
    past.each(&failed, Direction::NewestFirst, Some(ROWS), |it| {
        latest.push(row(it));
        Ok::<(), ReportError>(())
    })?;
    if !latest.is_empty() {
        writeln!(to, "<h2>The latest attempts that failed</h2>")?;
        table(to, &heads, latest.into_iter())?;
    }
    let longest = past.longest(&done, ROWS)?;
    if !longest.is_empty() {
        writeln!(to, "<h2>The longest that were done</h2>")?;
        table(to, &heads, longest.into_iter().map(row))?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Head {
    words: &'static str,
    number: bool,
}

impl Head {
    const fn text(words: &'static str) -> Head {
        Head { words, number: false }
    }

    const fn number(words: &'static str) -> Head {
        Head { words, number: true }
    }
}

/// Columns in which nothing stands aren't shown.
fn table<const N: usize>(
    to: &mut impl Write,
    heads: &[Head; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), ReportError> {
    let rows: Vec<[String; N]> = rows.collect();
    let used: Vec<usize> = (0..N).filter(|&at| rows.iter().any(|row| !row[at].is_empty())).collect();
    let mut text = "<div class=\"wide\"><table><thead><tr>".to_owned();
    let class = |at: usize| match heads[at].number {
        true => " class=\"n\"",
        false if at == 0 => " class=\"name\"",
        false => "",
    };
    for &at in &used {
        let _ = write!(text, "<th{}>{}</th>", class(at), heads[at].words);
    }
    text.push_str("</tr></thead><tbody>\n");
    for row in &rows {
        text.push_str("<tr>");
        for &at in &used {
            let _ = write!(text, "<td{}>{}</td>", class(at), Safe(&row[at]));
        }
        text.push_str("</tr>\n");
    }
    text.push_str("</tbody></table></div>\n");
    Ok(to.write_all(text.as_bytes())?)
}

fn route(of: &OfRoute) -> String {
    of.route.clone().unwrap_or_else(|| "(unknown)".to_owned())
}

fn count(n: u64) -> String {
    if n == 0 { String::new() } else { n.to_string() }
}

fn hours(hours: f64) -> String {
    if hours == 0.0 { String::new() } else { format!("{hours:.2}") }
}

fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

fn energy(joules: f64) -> String {
    if joules < 3.6e5 { format!("{:.1} kJ", joules / 1e3) } else { format!("{:.2} kWh", joules / 3.6e6) }
}

fn moment(at: Timestamp) -> impl Display {
    at.strftime("%F %H:%M").to_string()
}

/// `0.3 s`, `45 s`, `3 min 20 s`, `2 h 5 min`, `6 d 3 h`.
fn long(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3_600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 10.0 => format!("{seconds:.1} s"),
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", whole % 60),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}
