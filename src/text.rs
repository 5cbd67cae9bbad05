//! Text for people: cut to a width, times and sizes in words, and bytes that a terminal can be shown.

use std::time::Duration;

use jiff::Timestamp;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use crate::logging::plain;
use crate::units::Bytes;

mod screen;

pub use screen::Screen;

/// At most `width` columns of `text`: its beginning, `…`, and its end.
pub fn cut_middle(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let tail: String = {
        let taken = take(text.chars().rev(), room / 2);
        taken.chars().rev().collect()
    };
    let head = take(text.chars(), room - tail.width());
    format!("{head}…{tail}")
}

/// At most `width` columns of `text`, with `…` where it goes on.
pub fn cut_end(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    format!("{}…", take(text.chars(), width.saturating_sub(1)))
}

/// `text` in lines of at most `width`, broken between words; each begins with `indent`.
pub fn wrap(text: &str, indent: &str, width: usize) -> String {
    let room = width.saturating_sub(indent.width()).max(20);
    let mut lines: Vec<String> = Vec::new();
    for word in plain(text).split(' ') {
        match lines.last_mut() {
            Some(line) if line.width() + 1 + word.width() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
}

fn take(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut used = 0;
    chars
        .take_while(|c| {
            used += c.width().unwrap_or(0);
            used <= width
        })
        .collect()
}

/// `45s`, `3m 20s`, `2h 5m`, `6d 3h`: the two largest units.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}

/// How long ago it was; nothing when it isn't known.
pub fn ago(now: Timestamp, at: Option<Timestamp>) -> String {
    at.map(|at| span(Duration::try_from(now - at).unwrap_or_default())).unwrap_or_default()
}

/// How long something took.
pub fn took(from: Option<Timestamp>, to: Option<Timestamp>) -> String {
    let (Some(from), Some(to)) = (from, to) else { return String::new() };
    let took: Duration = Duration::try_from(to - from).unwrap_or_default();
    if took < Duration::from_secs(10) { format!("{:.1}s", took.as_secs_f64()) } else { span(took) }
}

/// `1.5/80.0 GiB`; what isn't known is left out.
pub fn of_total(used: Option<u64>, total: Option<u64>) -> String {
    const GIB: f64 = (1_u64 << 30) as f64;
    match (used, total) {
        (Some(used), Some(total)) => format!("{:.1}/{:.1} GiB", used as f64 / GIB, total as f64 / GIB),
        (None, Some(total)) => format!("{:.1} GiB", total as f64 / GIB),
        (Some(used), None) => format!("{:.1} GiB used", used as f64 / GIB),
        (None, None) => String::new(),
    }
}

pub fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// `1 item`, `2 items`.
pub fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_middle_and_sentences_their_end() {
        let check = |text: &str, width: usize, middle: &str, end: &str| {
            assert_eq!((cut_middle(text, width).as_str(), cut_end(text, width).as_str()), (middle, end), "{text}");
        };
        check("recording-2026.wav", 18, "recording-2026.wav", "recording-2026.wav");
        check("recording-2026.wav", 11, "recor…6.wav", "recording-…");
        check("감독이름이길다.wav", 11, "감독이….wav", "감독이름이…");
        check("abc", 1, "…", "…");
    }

    #[test]
    fn times_and_sizes_are_short() {
        let check = |seconds: u64, expected: &str| assert_eq!(span(Duration::from_secs(seconds)), expected);
        check(0, "0s");
        check(59, "59s");
        check(200, "3m 20s");
        check(7_500, "2h 5m");
        check(530_000, "6d 3h");
        assert_eq!(of_total(Some(3 << 29), Some(80 << 30)), "1.5/80.0 GiB");
        assert_eq!(of_total(None, None), "");
        let at: Timestamp = "2026-11-22T10:00:00Z".parse().expect("a time");
        let later: Timestamp = "2026-11-22T10:00:01.5Z".parse().expect("a time");
        assert_eq!((took(Some(at), Some(later)).as_str(), ago(at, Some(later)).as_str()), ("1.5s", "0s"));
    }
}
