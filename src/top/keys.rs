//! Which key means what, and where.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Where keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Lists,
    Job,
    Help,
    /// A line that waits for y or n.
    Question,
    /// The name filter is being typed.
    Filter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// At once, from everywhere.
    Leave,
    /// Out of where one is.
    Back,
    Pane(isize),
    Rows(isize),
    Pages(isize),
    First,
    Last,
    Open,
    Filter,
    Help,
    Pause,
    Drain,
    Retry,
    Cancel,
    Cordon,
    Yes,
    No,
    Type(char),
    Erase,
    EraseAll,
    Accept,
}

/// What `key` means in `place`; nothing for most.
pub(super) fn action(place: Place, key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let held = key.modifiers & (KeyModifiers::CONTROL | KeyModifiers::ALT | KeyModifiers::SUPER);
    if held == KeyModifiers::CONTROL {
        return match (key.code, place) {
            (KeyCode::Char('c'), _) => Some(Action::Leave),
            (KeyCode::Char('u'), Place::Filter) => Some(Action::EraseAll),
            (KeyCode::Char('d' | 'f'), Place::Lists | Place::Job) => Some(Action::Pages(1)),
            (KeyCode::Char('u' | 'b'), Place::Lists | Place::Job) => Some(Action::Pages(-1)),
            _ => None,
        };
    }
    if !held.is_empty() {
        return None;
    }
    match place {
        Place::Lists => in_lists(key.code),
        Place::Job => in_job(key.code),
        Place::Help => Some(Action::Back),
        Place::Question => match key.code {
            KeyCode::Char('y' | 'Y') => Some(Action::Yes),
            // Whatever else is pressed can't be meant as a yes.
            _ => Some(Action::No),
        },
        Place::Filter => match key.code {
            KeyCode::Enter | KeyCode::Down | KeyCode::Up | KeyCode::Tab => Some(Action::Accept),
            KeyCode::Esc => Some(Action::Back),
            KeyCode::Backspace => Some(Action::Erase),
            KeyCode::Char(c) => Some(Action::Type(c)),
            _ => None,
        },
    }
}

fn moving(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Down | KeyCode::Char('j') => Action::Rows(1),
        KeyCode::Up | KeyCode::Char('k') => Action::Rows(-1),
        KeyCode::PageDown | KeyCode::Char(' ') => Action::Pages(1),
        KeyCode::PageUp => Action::Pages(-1),
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        KeyCode::Char('?') => Action::Help,
        KeyCode::Char('r') => Action::Retry,
        KeyCode::Char('c') => Action::Cancel,
        KeyCode::Char('q') | KeyCode::Esc => Action::Back,
        _ => return None,
    })
}

fn in_lists(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Tab | KeyCode::Right => Action::Pane(1),
        KeyCode::BackTab | KeyCode::Left | KeyCode::Char('h') => Action::Pane(-1),
        KeyCode::Enter | KeyCode::Char('l') => Action::Open,
        KeyCode::Char('/') => Action::Filter,
        KeyCode::Char('p') => Action::Pause,
        KeyCode::Char('d') => Action::Drain,
        KeyCode::Char('o') => Action::Cordon,
        code => return moving(code),
    })
}

fn in_job(code: KeyCode) -> Option<Action> {
    match code {
        KeyCode::Left | KeyCode::Backspace | KeyCode::Char('h') => Some(Action::Back),
        code => moving(code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ctrl-c`, `esc`, `x`.
    fn key(text: &str) -> KeyEvent {
        let (held, name) = match text.strip_prefix("ctrl-") {
            Some(name) => (KeyModifiers::CONTROL, name),
            None => match text.strip_prefix("alt-") {
                Some(name) => (KeyModifiers::ALT, name),
                None => (KeyModifiers::NONE, text),
            },
        };
        let code = match name {
            "esc" => KeyCode::Esc,
            "enter" => KeyCode::Enter,
            "tab" => KeyCode::Tab,
            "backtab" => KeyCode::BackTab,
            "left" => KeyCode::Left,
            "right" => KeyCode::Right,
            "up" => KeyCode::Up,
            "down" => KeyCode::Down,
            "pgup" => KeyCode::PageUp,
            "pgdn" => KeyCode::PageDown,
            "home" => KeyCode::Home,
            "end" => KeyCode::End,
            "erase" => KeyCode::Backspace,
            name => KeyCode::Char(name.chars().next().expect("a key")),
        };
        let held = if matches!(code, KeyCode::Char(c) if c.is_uppercase()) { KeyModifiers::SHIFT } else { held };
        KeyEvent::new(code, held)
    }

    #[test]
    fn keys_mean_what_the_help_says() {
        use Action::*;
        let check = |place: Place, keys: &str, expected: Option<Action>| {
            for name in keys.split(' ') {
                assert_eq!(action(place, key(name)), expected, "{name} in {place:?}");
            }
        };
        for place in [Place::Lists, Place::Job, Place::Help, Place::Question, Place::Filter] {
            check(place, "ctrl-c", Some(Leave));
            check(place, "alt-c alt-y ctrl-y ctrl-p", None);
        }
        check(Place::Lists, "q esc", Some(Back));
        check(Place::Lists, "tab right", Some(Pane(1)));
        check(Place::Lists, "backtab left h", Some(Pane(-1)));
        check(Place::Lists, "down j", Some(Rows(1)));
        check(Place::Lists, "up k", Some(Rows(-1)));
        check(Place::Lists, "pgdn ctrl-d ctrl-f", Some(Pages(1)));
        check(Place::Lists, "pgup ctrl-u ctrl-b", Some(Pages(-1)));
        check(Place::Lists, "home g", Some(First));
        check(Place::Lists, "end G", Some(Last));
        check(Place::Lists, "enter l", Some(Open));
        check(Place::Lists, "/", Some(Filter));
        check(Place::Lists, "?", Some(Help));
        check(Place::Lists, "p", Some(Pause));
        check(Place::Lists, "d", Some(Drain));
        check(Place::Lists, "r", Some(Retry));
        check(Place::Lists, "c", Some(Cancel));
        check(Place::Lists, "o", Some(Cordon));
        check(Place::Lists, "y n x P D", None);
        check(Place::Job, "q esc left h erase", Some(Back));
        check(Place::Job, "r", Some(Retry));
        check(Place::Job, "c", Some(Cancel));
        check(Place::Job, "p d o / tab enter", None);
        check(Place::Help, "q esc x ? enter", Some(Back));
        check(Place::Question, "y Y", Some(Yes));
        check(Place::Question, "n N esc enter q d c", Some(No));
        check(Place::Filter, "q", Some(Type('q')));
        check(Place::Filter, "G", Some(Type('G')));
        check(Place::Filter, "감", Some(Type('감')));
        check(Place::Filter, "erase", Some(Erase));
        check(Place::Filter, "ctrl-u", Some(EraseAll));
        check(Place::Filter, "enter down", Some(Accept));
        check(Place::Filter, "esc", Some(Back));
    }

    #[test]
    fn letting_a_key_go_means_nothing() {
        let gone = KeyEvent { kind: KeyEventKind::Release, ..key("d") };
        assert_eq!(action(Place::Lists, gone), None);
    }
}
