//! What the keys do.

pub(super) const LINES: &[&str] = &[
    "Tab  ←  →  h          from list to list",
    "↑  ↓  j  k            from row to row; PgUp PgDn, Home End, g G farther",
    "Enter  l              look at the item: its attempts and its log, live",
    "/                     show only names with …; Esc ends that",
    "r                     retry the failed item",
    "c                     cancel the item",
    "o                     cordon the device, or put it back into service",
    "p                     pause: nothing new starts; again to go on",
    "d                     drain: what runs ends, then the director does",
    "?                     this",
    "q  Esc                back; in the lists: leave",
    "Ctrl-C                leave",
    "",
    "In an item's view the log follows what is written until you scroll up.",
    "What hurts asks for a y first. Nothing stops when this view is left.",
];
