//! Kinds of reasons for which an item is held: what can be counted, where the reason itself is words for people.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeldFor {
    /// No route matches it.
    NoRoute,
    /// Neither a file nor a directory.
    NotAnItem,
    Unreadable,
    /// Its producer may still be publishing it by a hard link.
    HardLinks,
    TooSmall,
    Marker,
    Manifest,
    Validator,
    /// A marker or a manifest without its item.
    Companion,
    /// It can't be moved into `claimed/`.
    Unclaimable,
    /// No device here can run it.
    NoDevice,
    /// More than are known one by one.
    Beyond,
}

impl HeldFor {
    pub const ALL: [HeldFor; 12] = [
        HeldFor::NoRoute,
        HeldFor::NotAnItem,
        HeldFor::Unreadable,
        HeldFor::HardLinks,
        HeldFor::TooSmall,
        HeldFor::Marker,
        HeldFor::Manifest,
        HeldFor::Validator,
        HeldFor::Companion,
        HeldFor::Unclaimable,
        HeldFor::NoDevice,
        HeldFor::Beyond,
    ];

    pub fn word(self) -> &'static str {
        match self {
            HeldFor::NoRoute => "no-route",
            HeldFor::NotAnItem => "not-an-item",
            HeldFor::Unreadable => "unreadable",
            HeldFor::HardLinks => "hard-links",
            HeldFor::TooSmall => "too-small",
            HeldFor::Marker => "marker",
            HeldFor::Manifest => "manifest",
            HeldFor::Validator => "validator",
            HeldFor::Companion => "companion",
            HeldFor::Unclaimable => "unclaimable",
            HeldFor::NoDevice => "no-device",
            HeldFor::Beyond => "beyond",
        }
    }

    /// Its place in [`ALL`](HeldFor::ALL).
    pub(super) fn place(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_place() {
        for (place, kind) in HeldFor::ALL.into_iter().enumerate() {
            assert_eq!(kind.place(), place, "{kind:?}");
        }
    }
}
