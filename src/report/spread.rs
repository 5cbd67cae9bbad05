//! How spans of time are spread: a bar for each doubling. Pure; its size is fixed.

use super::long;
use super::svg::Drawing;

/// The first bar is for all up to an eighth of a second, the last for all above twelve days.
const FIRST: f64 = 0.125;
const BARS: usize = 24;

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Spread {
    counts: [u64; BARS],
}

impl Spread {
    pub(super) fn note(&mut self, seconds: f64) {
        self.counts[place(seconds)] += 1;
    }

    /// The bars from the first that has anything to the last, and what they are for.
    pub(super) fn draw(&self, about: &str) -> String {
        const HEIGHT: usize = 60;
        let known = |count: &u64| *count > 0;
        let (Some(first), Some(last)) = (self.counts.iter().position(known), self.counts.iter().rposition(known))
        else {
            return String::new();
        };
        // A single bar as wide as the page says nothing.
        let (first, last) = (first.saturating_sub(1), (last + 1).min(BARS - 1));
        let bars = &self.counts[first..=last];
        let most = bars.iter().copied().max().unwrap_or(1).max(1);
        let mut drawing = Drawing::new(bars.len() * 20, HEIGHT, about);
        for (n, count) in bars.iter().enumerate() {
            let height = *count as f64 / most as f64 * (HEIGHT - 4) as f64;
            let height = if *count > 0 { height.max(1.5) } else { 0.0 };
            let said = format!("{}: {count}", range(first + n));
            drawing.bar(n as f64 * 20.0 + 1.0, HEIGHT as f64 - height, 18.0, height, "done", &said);
        }
        let begins = if first == 0 { 0.0 } else { bound(first - 1) };
        let ends = if last == BARS - 1 { format!("over {}", long(bound(last - 1))) } else { long(bound(last)) };
        format!("{}<div class=\"axis\"><span>{}</span><span>{ends}</span></div>", drawing.finish(), long(begins))
    }
}

/// The bar for a span.
fn place(seconds: f64) -> usize {
    (0..BARS - 1).find(|&n| seconds <= bound(n)).unwrap_or(BARS - 1)
}

/// The most that belongs to a bar.
fn bound(bar: usize) -> f64 {
    FIRST * (1_u64 << bar) as f64
}

fn range(bar: usize) -> String {
    match bar {
        0 => format!("up to {}", long(bound(0))),
        bar if bar == BARS - 1 => format!("over {}", long(bound(bar - 1))),
        bar => format!("{} to {}", long(bound(bar - 1)), long(bound(bar))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_span_has_its_bar() {
        let check = |seconds: f64, bar: usize| assert_eq!(place(seconds), bar, "{seconds}");
        check(0.0, 0);
        check(0.125, 0);
        check(0.126, 1);
        check(1.0, 3);
        check(1.1, 4);
        check(1e6, BARS - 1);
        check(f64::MAX, BARS - 1);
        let mut spread = Spread::default();
        assert_eq!(spread.draw("x"), "");
        [0.6, 0.7, 0.9, 3.0].into_iter().for_each(|it| spread.note(it));
        let drawn = spread.draw("x");
        assert_eq!(drawn.matches("<rect").count(), 2);
        assert!(
            drawn.contains("0.5 s to 1.0 s: 3") && drawn.contains("<span>0.2 s</span><span>8.0 s</span>"),
            "{drawn}"
        );
    }
}
