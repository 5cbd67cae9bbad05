//! The lists of the screen, in the order they stand there.

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Devices,
    Running,
    Waiting,
    Failed,
    Held,
}

impl Pane {
    pub(super) const ALL: [Pane; 5] = [Pane::Devices, Pane::Running, Pane::Waiting, Pane::Failed, Pane::Held];

    pub(super) fn title(self) -> &'static str {
        match self {
            Pane::Devices => "DEVICES",
            Pane::Running => "RUNNING",
            Pane::Waiting => "WAITING",
            Pane::Failed => "FAILED",
            Pane::Held => "HELD",
        }
    }

    /// What stands there while it has no rows.
    pub(super) fn nothing(self) -> &'static str {
        match self {
            Pane::Devices => "no device is known yet",
            Pane::Running => "nothing runs",
            Pane::Waiting => "nothing waits",
            Pane::Failed => "nothing failed",
            Pane::Held => "nothing is held",
        }
    }

    /// Whether it has no place while it has no rows.
    pub(super) fn goes_when_empty(self) -> bool {
        matches!(self, Pane::Failed | Pane::Held)
    }

    /// The next of these, around the corner.
    pub(super) fn step(self, by: isize, among: &[Pane]) -> Pane {
        let Some(at) = among.iter().position(|pane| *pane == self) else {
            return among.first().copied().unwrap_or(self);
        };
        let n = among.len() as isize;
        among[(at as isize + by).rem_euclid(n) as usize]
    }
}
