//! Which row of a pane is selected. It stays with its row when others come and go.

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Cursor {
    key: Option<String>,
    at: usize,
}

impl Cursor {
    /// Where the selected row is now; the one that took its place when it is gone.
    pub(super) fn settle(&mut self, keys: &[String]) {
        match self.key.as_ref().and_then(|key| keys.iter().position(|it| it == key)) {
            Some(at) => self.at = at,
            // The first row of all is a place, not a row, until somebody moves.
            None => self.go(self.at, keys),
        }
    }

    pub(super) fn go(&mut self, at: usize, keys: &[String]) {
        self.at = at.min(keys.len().saturating_sub(1));
        self.key = if self.at == 0 { None } else { keys.get(self.at).cloned() };
    }

    pub(super) fn step(&mut self, by: isize, keys: &[String]) {
        self.go(self.at.saturating_add_signed(by), keys);
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }
}

/// The first of the rows that are shown when there is room for `room` of `all`: the selected one is among them.
pub(super) fn first_shown(selected: usize, all: usize, room: usize) -> usize {
    selected.saturating_sub(room / 2).min(all.saturating_sub(room))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_stays_with_its_row() {
        let keys = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut cursor = Cursor::default();
        let mut check = |step: isize, before: &str, after: &str, expected: &str| {
            cursor.step(step, &keys(before));
            cursor.settle(&keys(after));
            assert_eq!(keys(after).get(cursor.at()).map(String::as_str), Some(expected), "{step} {before} -> {after}");
        };
        check(0, "a b c", "x a b c", "x"); // nobody chose one: the top stays the top
        check(1, "x a b c", "y x a b c", "a");
        check(0, "y x a b c", "a b", "a");
        check(0, "a b", "b", "b"); // it left, and what took its place is selected
        check(9, "b", "b c", "b");
        check(1, "b c d", "b d", "d");
        check(-9, "b d", "a b d", "a");
    }

    #[test]
    fn the_selected_row_is_always_shown() {
        for all in 0..20 {
            for room in 1..25 {
                for selected in 0..all {
                    let first = first_shown(selected, all, room);
                    assert!((first..first + room).contains(&selected), "{selected} of {all} in {room}");
                    assert!(first == 0 || first + room <= all, "no gap: {selected} of {all} in {room}");
                }
            }
        }
    }
}
