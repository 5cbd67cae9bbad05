//! The lines at the bottom: the selected row in full words, and a question, an answer, the filter, or the keys.

use ratatui::style::Style;

use super::app::{App, Row, called};
use super::head::Words;
use super::keys::Place;
use crate::api::view::Listed;
use crate::logging::plain;

/// The selected row, as one sentence.
pub(super) fn detail(app: &App) -> String {
    let Some(row) = app.selected_row() else { return String::new() };
    let text = match row {
        Row::Device(device) => {
            let name = if device.name == device.id { String::new() } else { format!(" {}", device.name) };
            let watts = device.power_w.map(|watts| format!(", {watts:.0} W")).unwrap_or_default();
            format!("{}{name}: {}: {}{watts} · {}", called(device), device.verdict, device.reason, device.id)
        }
        Row::Running(job) => {
            let message = job.progress.as_ref().and_then(|progress| progress.message.as_deref());
            let message = message.map(|message| format!(": {message}")).unwrap_or_default();
            format!("{}{message} · {}", job.name, job.id)
        }
        Row::Item(item) => sentence(item),
    };
    plain(&text).into_owned()
}

fn sentence(item: &Listed) -> String {
    let name = if item.folder.is_empty() { item.name.clone() } else { format!("{}/{}", item.folder, item.name) };
    let why = item.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let id = item.id.as_ref().map(|id| format!(" · {id}")).unwrap_or_default();
    format!("{name}: {}{why}{id}", item.state)
}

/// The last line.
pub(super) fn line(app: &App) -> Words {
    let paint = app.paint;
    if let Some(question) = &app.question {
        return vec![(question.text.clone(), paint.warn()), (" y/n ".to_owned(), paint.selected())];
    }
    if app.typing {
        let hint = "   Enter keeps it, Esc ends it".to_owned();
        return vec![(format!("/{}▏", app.filter), paint.strong()), (hint, paint.dim())];
    }
    if let Some(note) = &app.note {
        return vec![(note.text.clone(), if note.wrong { paint.bad() } else { paint.good() })];
    }
    let mut words = Vec::new();
    if !app.filter.is_empty() && app.place() == Place::Lists {
        words.push((format!("/{} ", app.filter), paint.warn()));
    }
    let keys: &[(&str, &str)] = match app.place() {
        Place::Help => &[("any key", "back")],
        Place::Job => {
            &[("q", "back"), ("j k", "scroll"), ("G", "follow"), ("r", "retry"), ("c", "cancel"), ("?", "help")]
        }
        _ => &[
            ("q", "leave"),
            ("?", "help"),
            ("/", "find"),
            ("l", "look"),
            ("r", "retry"),
            ("c", "cancel"),
            ("o", "cordon"),
            ("p", if app.state() == crate::api::view::DirectorState::Paused { "resume" } else { "pause" }),
            ("d", "drain"),
        ],
    };
    for (key, what) in keys {
        words.push(((*key).to_owned(), paint.strong()));
        words.push((format!(" {what}  "), Style::new()));
    }
    words
}
