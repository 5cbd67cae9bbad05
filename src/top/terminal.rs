//! The loop of the view, and the terminal under it, which is put back as it was however the view ends.

use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded, unbounded};
use jiff::Timestamp;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::terminal::is_raw_mode_enabled;
use ratatui::layout::Rect;

use super::app::{App, Event};
use super::ask::{Ask, Effect};
use super::draw::{draw, screen};
use super::layout;
use super::paint::Paint;
use super::source::Source;
use super::threads;
use crate::api::client::ClientError;

/// Elapsed times go on this often.
const TICK: Duration = Duration::from_secs(1);

/// Room for keys and facts while a screen is being drawn; who finds it full waits for that.
const QUEUE: usize = 256;

/// Shows the view until somebody leaves it.
pub fn run(source: &Source, paint: Paint) -> io::Result<()> {
    let (tell, events) = bounded(QUEUE);
    let stopped = tell.clone();
    ctrlc::set_handler(move || drop(stopped.send(Event::Stop)))
        .map_err(|error| io::Error::other(format!("cannot listen for signals: {error}")))?;
    // Its panic hook puts the terminal back before the panic is told.
    let mut screen = Screen::take()?;
    let threads = Threads::start(source, &tell)?;
    let size = screen.terminal.size()?;
    let mut app = App::new((size.width, size.height), paint, Timestamp::now());
    let mut tick = Instant::now() + TICK;
    loop {
        screen.terminal.draw(|frame| draw(&app, frame))?;
        let mut next = match events.recv_deadline(tick) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        // All that came meanwhile is one change of the screen.
        while let Some(event) = next {
            let broken = if let Event::Broken(why) = &event { Some(io::Error::other(why.clone())) } else { None };
            match app.take_in(event, Timestamp::now()) {
                None => {}
                Some(Effect::Leave) => return broken.map_or(Ok(()), Err),
                Some(Effect::Ask(ask)) => drop(threads.asks.send(ask)),
                Some(Effect::Follow(job)) => drop(threads.jobs.send(job)),
            }
            next = events.try_recv().ok();
        }
        if Instant::now() >= tick {
            app.tick(Timestamp::now());
            tick = Instant::now() + TICK;
        }
    }
}

/// One frame as text: what there is to see, without keys.
pub fn once(source: &Source, size: (u16, u16)) -> Result<String, ClientError> {
    let lost = |error: io::Error| ClientError::Lost(error.to_string());
    let facts = match source.connect() {
        Ok(client) => source.look(&client, None)?,
        Err(ClientError::NoDirector { .. }) => source.without().map_err(lost)?,
        Err(wrong) => return Err(wrong),
    };
    let now = Timestamp::now();
    let size = (size.0.max(layout::LEAST.0), size.1.max(layout::LEAST.1));
    let mut app = App::new(size, Paint::default(), now);
    app.take_in(Event::Facts(Box::new(facts)), now);
    let area = Rect::new(0, 0, size.0, size.1);
    let mut buffer = Buffer::empty(area);
    screen(&app, area, &mut buffer);
    let rows = layout::place(&app, area).detail.y;
    let lines: Vec<String> = (0..rows).map(|y| line(&buffer, y)).collect();
    Ok(format!("{}\n", lines.join("\n").trim_end()))
}

/// A line of the buffer. A wide character takes two cells, of which the second is nobody's.
pub(super) fn line(buffer: &Buffer, y: u16) -> String {
    let mut line = String::new();
    let mut x = buffer.area.left();
    while x < buffer.area.right() {
        let symbol = buffer[(x, y)].symbol();
        line.push_str(symbol);
        x += u16::try_from(unicode_width::UnicodeWidthStr::width(symbol)).unwrap_or(1).max(1);
    }
    line.trim_end().to_owned()
}

/// What the threads are told. Dropped, they end.
struct Threads {
    asks: Sender<Ask>,
    jobs: Sender<Option<String>>,
    _stop: Sender<()>,
}

impl Threads {
    fn start(source: &Source, tell: &Sender<Event>) -> io::Result<Threads> {
        // A person's presses: few, and each is to be heard without making the view wait.
        let (asks, asked) = unbounded();
        let (jobs, wanted) = unbounded();
        let (stop, stopped) = bounded(0);
        let of = || source.clone();
        threads::spawn("keys", tell.clone(), threads::keys)?;
        let it = of();
        threads::spawn("facts", tell.clone(), move |events| threads::facts(&it, &stopped, events))?;
        let it = of();
        threads::spawn("hand", tell.clone(), move |events| threads::hand(&it, &asked, events))?;
        let it = of();
        threads::spawn("job", tell.clone(), move |events| threads::job(&it, &wanted, events))?;
        Ok(Threads { asks, jobs, _stop: stop })
    }
}

/// The terminal while it is ours. Dropped, also by a panic, it is as it was.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    fn take() -> io::Result<Screen> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(wrong) => {
                let _ = ratatui::try_restore();
                Err(wrong)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        // After a panic its hook did it already; once more would write over what the panic said.
        if is_raw_mode_enabled().unwrap_or(true) {
            let _ = ratatui::try_restore();
        }
    }
}
