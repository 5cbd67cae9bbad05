//! How things look. Without colours what matters is bold, reversed or said in words.

use ratatui::style::{Color, Modifier, Style};

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    pub colour: bool,
}

impl Paint {
    fn of(self, colour: Color, else_: Modifier) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new().add_modifier(else_) }
    }

    pub(super) fn plain(self) -> Style {
        Style::new()
    }

    pub(super) fn good(self) -> Style {
        self.of(Color::Green, Modifier::empty())
    }

    pub(super) fn warn(self) -> Style {
        self.of(Color::Yellow, Modifier::BOLD)
    }

    pub(super) fn bad(self) -> Style {
        self.of(Color::Red, Modifier::BOLD).add_modifier(Modifier::BOLD)
    }

    pub(super) fn busy(self) -> Style {
        self.of(Color::Cyan, Modifier::empty())
    }

    /// Of less weight. Not the colour "bright black", which some schemes make invisible.
    pub(super) fn dim(self) -> Style {
        if self.colour { Style::new().add_modifier(Modifier::DIM) } else { Style::new() }
    }

    pub(super) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn title(self, focused: bool) -> Style {
        let style = Style::new().add_modifier(Modifier::BOLD);
        match (focused, self.colour) {
            (true, true) => style.fg(Color::Black).bg(Color::Cyan),
            (true, false) => style.add_modifier(Modifier::REVERSED),
            (false, _) => style.add_modifier(Modifier::UNDERLINED),
        }
    }

    pub(super) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Of the word for a device, or for where a job stands.
    pub(super) fn word(self, word: &str) -> Style {
        match word {
            "free" | "done" | "running" => self.good(),
            "leased" | "claimed" => self.busy(),
            "busy" | "unknown" | "retrying" | "paused" | "draining" | "held" => self.warn(),
            "unhealthy" | "failed" => self.bad(),
            "excluded" | "cancelled" | "ignored" => self.dim(),
            _ => self.plain(),
        }
    }
}
