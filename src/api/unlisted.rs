//! What the director counts in the inbox and doesn't list: its lists are bounded, its counts aren't. Pure.

use super::directories::Unjudged;
use super::view::{Counts, Listed};

/// How many of the rows stand in each state of the inbox.
fn tally<'a>(rows: impl IntoIterator<Item = &'a Listed>) -> [u64; 4] {
    let mut tally = [0; 4];
    for row in rows.into_iter().filter(|row| row.id.is_none()) {
        if let Some(at) = STATES.iter().position(|state| *state == row.state) {
            tally[at] += 1;
        }
    }
    tally
}

/// The states of what lies in the inbox.
pub const STATES: [&str; 4] = ["arriving", "ready", "held", "ignored"];

/// What is to be said of an item that isn't among these rows, as far as the counts tell: nothing when they list all.
pub fn unlisted<'a>(counts: &Counts, rows: impl IntoIterator<Item = &'a Listed>) -> Option<Unjudged> {
    let counted = [counts.arriving, counts.ready, counts.held, counts.ignored];
    let beyond: Vec<(&'static str, u64)> = STATES
        .into_iter()
        .zip(counted.into_iter().zip(tally(rows)))
        .filter_map(|(state, (counted, listed))| Some((state, counted.checked_sub(listed).filter(|it| *it > 0)?)))
        .collect();
    // A temporary name is known for one.
    let open: Vec<&(&'static str, u64)> = beyond.iter().filter(|(state, _)| *state != "ignored").collect();
    match open.as_slice() {
        [] if beyond.is_empty() => None,
        [] => Some(arrived()),
        [("held", more)] => {
            let reason = Some(format!("one of {more} more held items, whose reasons the director doesn't list"));
            Some(Unjudged { state: "held", reason })
        }
        [(state, _)] => Some(Unjudged { state, reason: None }),
        _ => {
            let all: Vec<String> = open.iter().map(|(state, more)| format!("{more} {state}")).collect();
            let reason = Some(format!("one of {}: the director doesn't list which", all.join(" and ")));
            Some(Unjudged { state: "arriving", reason })
        }
    }
}

/// An item that the director knows nothing of yet.
pub fn arrived() -> Unjudged {
    Unjudged { state: "arriving", reason: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_the_lists_is_what_the_counts_leave() {
        let check = |counts: [u64; 4], listed: [usize; 4], expected: &str| {
            let [arriving, ready, held, ignored] = counts;
            let counts = Counts { arriving, ready, held, ignored, running: 7, ..Counts::default() };
            let row = |state: &str| Listed { state: state.to_owned(), ..Listed::empty() };
            let rows: Vec<Listed> =
                STATES.iter().zip(listed).flat_map(|(state, n)| std::iter::repeat_n(row(state), n)).collect();
            let told = unlisted(&counts, &rows);
            let told = told.map_or("all are listed".to_owned(), |it| {
                format!("{}: {}", it.state, it.reason.as_deref().unwrap_or("-"))
            });
            assert_eq!(told, expected, "{counts:?} {listed:?}");
        };
        check([0, 0, 0, 0], [0, 0, 0, 0], "all are listed");
        check([1, 2, 3, 4], [1, 2, 3, 4], "all are listed");
        check([0, 1, 0, 0], [1, 1, 0, 0], "all are listed");
        check([1, 9, 3, 4], [1, 2, 3, 4], "ready: -");
        check([9, 2, 3, 4], [1, 2, 3, 4], "arriving: -");
        check([1, 2, 9, 4], [1, 2, 3, 4], "held: one of 6 more held items, whose reasons the director doesn't list");
        check([1, 2, 3, 9], [1, 2, 3, 4], "arriving: -");
        check([1, 9, 9, 4], [1, 2, 3, 4], "arriving: one of 7 ready and 6 held: the director doesn't list which");
    }
}
