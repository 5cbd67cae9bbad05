//! `gamdok top`: the live view in a terminal. Facts and keys come in through one channel, `app::App` decides what they
//! mean, `draw` shows it; both are pure. Threads at the edge read the director, the keys and a log, and ask for what a
//! person wants. Nothing here is drawn unless something changed or a second has passed.

mod app;
mod ask;
mod columns;
mod cursor;
mod devices;
mod draw;
mod facts;
mod foot;
mod head;
mod help;
mod history;
mod items;
mod job;
mod keys;
mod layout;
mod paint;
mod pane;
mod source;
mod tail;
mod terminal;
#[cfg(test)]
mod tests;
mod threads;

pub use paint::Paint;
pub use source::Source;
pub use terminal::{once, run};
