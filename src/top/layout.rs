//! What stands where. A pane gets what it needs; where there is too little room, all get some, the upper ones more, and
//! on a wide screen the lists stand in two columns.

use ratatui::layout::Rect;

use super::app::App;
use super::head;
use super::pane::Pane;

/// Below this nothing can be read.
pub(super) const LEAST: (u16, u16) = (60, 16);
/// From here on there are two columns.
const WIDE: u16 = 160;
/// From here on the selected row is told in two lines.
const TALL: u16 = 24;

/// See the module. What has no place has no height.
#[derive(Clone, Debug, Default)]
pub(super) struct Placed {
    pub(super) head: Rect,
    pub(super) panes: [Rect; Pane::ALL.len()],
    /// The selected row in full.
    pub(super) detail: Rect,
    pub(super) foot: Rect,
    /// In a job's view: all that is known of it, and its log.
    pub(super) job: Rect,
    pub(super) log: Rect,
}

pub(super) fn is_enough(area: Rect) -> bool {
    LEAST.0 <= area.width && LEAST.1 <= area.height
}

pub(super) fn place(app: &App, area: Rect) -> Placed {
    if !is_enough(area) {
        return Placed::default();
    }
    let row = |y: u16, height: u16| Rect::new(area.x, area.y + y, area.width, height);
    let head = row(0, head::lines(app, area.width.into()).len() as u16);
    let foot = row(area.height - 1, 1);
    let details = if area.height < TALL { 1 } else { 2 };
    let detail = row(area.height - 1 - details, details);
    let body = row(head.height, area.height - 1 - details - head.height);
    let mut placed = Placed { head, detail, foot, ..Placed::default() };
    // The log gets at least half of the screen.
    let below = row(head.height, area.height - 1 - head.height);
    let facts =
        app.job.as_ref().map_or(0, |job| job.lines(app, area.width.into()).len()).min(below.height as usize / 2);
    placed.job = Rect { height: facts as u16, ..below };
    placed.log = Rect { y: below.y + facts as u16 + 1, height: below.height.saturating_sub(facts as u16 + 1), ..below };
    let columns: Vec<(Rect, &[Pane])> = if area.width < WIDE {
        vec![(body, &Pane::ALL)]
    } else {
        let left = body.width * 11 / 20;
        let right = Rect { x: body.x + left + 2, width: body.width - left - 2, ..body };
        vec![(Rect { width: left, ..body }, &Pane::ALL[..2]), (right, &Pane::ALL[2..])]
    };
    for (column, panes) in columns {
        let wants: Vec<(u16, u16)> = panes.iter().map(|pane| wants(app, *pane)).collect();
        let mut y = column.y;
        for (pane, height) in panes.iter().zip(shares(&wants, column.height)) {
            placed.panes[*pane as usize] = Rect { y, height, ..column };
            y += height;
        }
    }
    placed
}

/// The lines a pane could use, its title among them, and its weight where there are too few.
fn wants(app: &App, pane: Pane) -> (u16, u16) {
    let rows = app.rows(pane).len();
    let weight = match pane {
        Pane::Devices => 3,
        Pane::Running => 2,
        Pane::Waiting | Pane::Failed | Pane::Held => 1,
    };
    let empty = if pane.goes_when_empty() { 0 } else { 2 };
    (if rows == 0 { empty } else { u16::try_from(rows + 1).unwrap_or(u16::MAX) }, weight)
}

/// Deals out `room` lines. What is left over stays free below the panes.
fn shares(wants: &[(u16, u16)], room: u16) -> Vec<u16> {
    // A title and two rows for everyone who has them.
    let mut shares: Vec<u16> = wants.iter().map(|(want, _)| (*want).min(3)).collect();
    while shares.iter().sum::<u16>() > room {
        match shares.iter_mut().max_by_key(|share| **share) {
            Some(share) if *share > 0 => *share -= 1,
            _ => break,
        }
    }
    let mut left = room.saturating_sub(shares.iter().sum());
    while left > 0 {
        let before = left;
        for (share, (want, weight)) in shares.iter_mut().zip(wants) {
            let more = (*weight).min(left).min(want.saturating_sub(*share));
            *share += more;
            left -= more;
        }
        if left == before {
            break;
        }
    }
    for share in shares.iter_mut().filter(|share| **share > 0).take(left.into()) {
        *share += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_dealt_out_fairly_and_never_beyond_what_there_is() {
        let check = |wants: &[u16], room: u16, expected: &[u16]| {
            let weights = [3, 2, 1, 1, 1];
            let wants: Vec<(u16, u16)> = wants.iter().copied().zip(weights).collect();
            let shares = shares(&wants, room);
            assert!(shares.iter().sum::<u16>() <= room);
            assert_eq!(shares, expected, "{wants:?} in {room}");
        };
        check(&[6, 4, 2, 0, 0], 12, &[6, 4, 2, 0, 0]);
        check(&[6, 4, 2, 0, 0], 14, &[7, 5, 2, 0, 0]);
        check(&[6, 4, 2, 0, 0], 20, &[7, 5, 3, 0, 0]);
        check(&[18, 18, 1000, 1000, 1000], 20, &[6, 5, 3, 3, 3]);
        check(&[3, 3, 1000, 0, 0], 20, &[3, 3, 14, 0, 0]);
        check(&[1000, 2, 2, 0, 0], 20, &[16, 2, 2, 0, 0]);
        check(&[9, 9, 9, 9, 9], 10, &[2, 2, 2, 2, 2]);
        check(&[9, 9, 9, 9, 9], 3, &[1, 1, 1, 0, 0]);
    }
}
