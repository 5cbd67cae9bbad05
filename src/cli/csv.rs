//! Lines of RFC 4180. A terminal is shown nothing that it would obey.

use std::borrow::Cow;
use std::io;

use crate::logging::plain;

pub(super) struct Lines<W: io::Write> {
    writer: csv::Writer<W>,
    on_terminal: bool,
}

impl<W: io::Write> Lines<W> {
    pub(super) fn new(to: W, on_terminal: bool) -> Lines<W> {
        let writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(to);
        Lines { writer, on_terminal }
    }

    pub(super) fn line<'a>(&mut self, cells: impl Iterator<Item = Cow<'a, str>>) -> io::Result<()> {
        for cell in cells {
            let shown = if self.on_terminal { plain(&cell) } else { cell };
            self.writer.write_field(shown.as_bytes()).map_err(io_error)?;
        }
        self.writer.write_record(None::<&[u8]>).map_err(io_error)
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A reader that left must be known as one.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}
