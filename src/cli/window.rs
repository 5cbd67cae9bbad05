//! A time as people name it on the command line: how long ago, a date, or a moment.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum When {
    Ago(Duration),
    At(Timestamp),
}

/// `2h`, `7d`, `2026-11-22` or `2026-11-22T10:00Z`.
pub(super) fn when(text: &str) -> Result<When, String> {
    if let Ok(at) = text.parse() {
        return Ok(When::At(at));
    }
    if let Ok(at) = text.parse::<jiff::civil::DateTime>() {
        return at.to_zoned(TimeZone::UTC).map(|at| When::At(at.timestamp())).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text)
        .map(When::Ago)
        .map_err(|_| "expected a span (`2h`, `7d`), a date (`2026-11-22`) or a time (`2026-11-22T10:00Z`)".to_owned())
}

impl When {
    pub(super) fn moment(self, now: Timestamp) -> Timestamp {
        match self {
            When::At(at) => at,
            // Longer ago than there was time: all.
            When::Ago(span) => now.checked_sub(span).unwrap_or(Timestamp::MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_dates_and_times_are_moments() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a time");
        let check = |text: &str, expected: &str| {
            assert_eq!(when(text).expect(text).moment(now).to_string(), expected, "{text}");
        };
        check("2h", "2026-11-22T10:00:00Z");
        check("1day 30m", "2026-11-21T11:30:00Z");
        check("2026-11-20", "2026-11-20T00:00:00Z");
        check("2026-11-20T08:30", "2026-11-20T08:30:00Z");
        check("2026-11-20T08:30:00+09:00", "2026-11-19T23:30:00Z");
        check("9999999999y", "-009999-01-02T01:59:59Z");
        assert_eq!(When::Ago(Duration::MAX).moment(now), Timestamp::MIN);
        for wrong in ["", "yesterday", "-2h", "7", "2026-13-01"] {
            assert!(when(wrong).is_err(), "{wrong}");
        }
    }
}
