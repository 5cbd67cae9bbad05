//! The log: one line an event to stderr, as text or JSON. Invariant: no raw control character leaves through it, so a
//! hostile name can neither forge a line nor speak to a terminal.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;

use jiff::Timestamp;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// How lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// The variable that holds a filter such as `gamdok::inbox=debug,warn`; it outranks `-v` and `-q`.
pub const FILTER: &str = "GAMDOK_LOG";

/// Begins to log. `verbosity` is the number of `-v` less that of `-q`. A second call changes nothing.
pub fn start(format: Format, verbosity: i8) {
    let level = match verbosity {
        ..=-2 => "error",
        -1 => "warn",
        0 => "info",
        1 => "debug",
        2.. => "trace",
    };
    // Other crates speak when something is wrong, or when everything is asked for.
    let others = if verbosity > 2 { "trace" } else { "warn" };
    // A certificate that can't be trusted is told by who asked for it.
    let usual = || EnvFilter::new(format!("{others},rustls_platform_verifier=off,gamdok={level}"));
    let filter = match std::env::var(FILTER) {
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(&text).unwrap_or_else(|_| usual()),
        _ => usual(),
    };
    // A line that can't be written (a full disk, a closed pipe) is lost; telling stderr of that would panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let _ = match format {
        Format::Text => builder.event_format(Lines { colour: colours() }).try_init(),
        // Serde escapes what is below a space; the rest of what is invisible can't do harm inside a JSON string.
        Format::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
}

/// Whether stderr is a terminal whose owner wants colours.
fn colours() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text that a terminal takes for nothing else: control and reordering characters are escaped, all else stays.
pub fn plain(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{061c}' | '\u{feff}')
    };
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if hidden(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", c as u32);
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// `2026-11-22T18:04:05.123Z  INFO director: claimed name=a.wav`
struct Lines {
    colour: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut line: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let meta = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        let part = meta.target().strip_prefix("gamdok::").unwrap_or(meta.target());
        let (on, off) = if self.colour { (colour(*meta.level()), "\x1b[0m") } else { ("", "") };
        let Text { message, fields } = text;
        let separator = if message.is_empty() || fields.is_empty() { "" } else { " " };
        let fields = fields.strip_prefix(' ').unwrap_or(&fields);
        writeln!(line, "{:.3} {on}{:>5}{off} {part}: {message}{separator}{fields}", Timestamp::now(), meta.level())
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m",
        Level::WARN => "\x1b[33m",
        Level::INFO => "\x1b[32m",
        _ => "\x1b[2m",
    }
}

/// An event's message and fields, escaped.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn add(&mut self, field: &Field, value: &str) {
        let value = plain(value);
        if field.name() == "message" {
            self.message.push_str(&value);
        } else if value.is_empty() || value.contains([' ', '"', '=']) {
            let _ = write!(self.fields, " {}={:?}", field.name(), value);
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.add(field, &value.to_string());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("the text").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_it_carries() {
        let kept = Kept::default();
        let writer = kept.clone();
        let lines = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines { colour: false })
            .finish();
        tracing::subscriber::with_default(lines, || {
            let name = "a\n2026 ERROR forged\x1b[2J\u{202e}";
            tracing::info!(name, attempt = 2, "claimed {name}");
        });
        let text = String::from_utf8(kept.0.lock().expect("the text").clone()).expect("UTF-8");
        let (_, said) = text.split_once("INFO ").expect("a level");
        let name = "a\\n2026 ERROR forged\\u{1b}[2J\\u{202e}";
        assert_eq!(said, format!("logging::tests: claimed {name} name={name:?} attempt=2\n"));
    }
}
