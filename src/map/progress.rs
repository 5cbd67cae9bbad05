//! The bar on stderr, for people at a terminal: how many have run, failed, and are left.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the time in it goes on while nothing ends.
const TICK: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    total_known: bool,
}

impl Bar {
    pub(super) fn new(wanted: bool, total: Option<u64>) -> Bar {
        let bar = wanted.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total.unwrap_or(0)), ProgressDrawTarget::stderr());
            bar.set_style(style(total.is_some()));
            bar.enable_steady_tick(TICK);
            bar
        });
        Bar { bar, total_known: total.is_some() }
    }

    /// So many were handed out.
    pub(super) fn taken(&self, taken: u64) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !self.total_known) {
            bar.set_length(taken);
        }
    }

    /// No more will come.
    pub(super) fn all_taken(&mut self, taken: u64) {
        if let Some(bar) = self.bar.as_ref().filter(|_| !self.total_known) {
            bar.set_length(taken);
            bar.set_style(style(true));
        }
        self.total_known = true;
    }

    pub(super) fn ended(&self, runs: u64, failed: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(runs);
            if failed > 0 {
                bar.set_message(format!(" · {failed} failed"));
            }
        }
    }

    /// Prints something else meanwhile, which may go to the same terminal.
    pub(super) fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(total_known: bool) -> ProgressStyle {
    let template = if total_known {
        "{bar:30} {human_pos}/{human_len}{msg} · {elapsed} · {eta} left"
    } else {
        "{spinner} {human_pos} of {human_len} so far{msg} · {elapsed}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_are_sound() {
        for template in ["{bar:30} {human_pos}/{human_len}{msg} · {elapsed} · {eta} left", "{spinner}"] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
    }
}
