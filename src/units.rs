//! Units: sizes in bytes and moments on the director's own clock. Text such as `"8GiB"` or `"2s"` is read in `config`
//! and ends there.

use std::fmt;
use std::ops::Add;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    /// The difference, or nothing when `other` is larger.
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl Add for Bytes {
    type Output = Bytes;

    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(sizes: I) -> Bytes {
        sizes.fold(Bytes(0), Add::add)
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        text.parse::<bytesize::ByteSize>().map(|size| Bytes(size.as_u64()))
    }
}

/// Binary units with one decimal: `8.0 GiB`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", bytesize::ByteSize(self.0).display().iec())
    }
}

/// A moment on the director's own monotonic clock: the time since it started. The pure parts get it as data, so a
/// test can set it; a wall clock that jumps doesn't move it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub Duration);

impl Moment {
    /// The time that has passed since `earlier`; nothing when it lies ahead.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

/// The one clock of a running director, shared by its threads. Only the edges hold one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts at [`Moment::default`].
    pub fn start() -> Clock {
        Clock { started: Instant::now() }
    }

    pub fn now(&self) -> Moment {
        Moment(self.started.elapsed())
    }

    /// The instant that `moment` names, for waits; a far one, where no clock reaches as far as that.
    pub fn instant(&self, moment: Moment) -> Instant {
        self.started.checked_add(moment.0).unwrap_or_else(|| self.started + Clock::FAR)
    }

    /// 136 years.
    const FAR: Duration = Duration::from_secs(u32::MAX as u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown_in_binary_units() {
        let check = |text: &str, bytes: u64, shown: &str| {
            let size: Bytes = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        };
        check("8GiB", 8 << 30, "8.0 GiB");
        check("600MiB", 600 << 20, "600.0 MiB");
        check("1kB", 1000, "1000 B");
        check("17", 17, "17 B");
        assert!("8 cows".parse::<Bytes>().is_err());
    }

    #[test]
    fn a_wait_without_end_is_a_long_one() {
        let clock = Clock::start();
        for moment in [Moment(Duration::MAX), clock.now() + Duration::MAX] {
            assert!(clock.instant(moment) >= clock.instant(Moment(Duration::from_secs(1 << 30))));
        }
    }
}
