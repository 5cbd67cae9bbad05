//! What a person may ask of the director here, and which of it hurts.

/// See the module. Jobs are named so that one can be meant only; devices by their ids.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ask {
    Pause,
    Resume,
    Drain,
    Retry(String),
    Cancel(String),
    Cordon(String),
    Uncordon(String),
}

/// What the view wants done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    Ask(Ask),
    /// Read this job and its log from now on, or none.
    Follow(Option<String>),
    Leave,
}
