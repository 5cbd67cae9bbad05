//! Bytes on their way: in memory while they are few, in a file that has no name when they grow. It goes with the process,
//! however that ends.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};

/// More than this goes into a file.
const IN_MEMORY: usize = 256 << 10;

#[derive(Debug)]
pub(super) enum Kept {
    Memory(Vec<u8>),
    File {
        file: File,
        length: u64,
    },
    /// A piece of a file that holds others, too.
    Piece {
        file: Arc<File>,
        at: u64,
        length: u64,
    },
}

impl Default for Kept {
    fn default() -> Kept {
        Kept::Memory(Vec::new())
    }
}

impl Kept {
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Kept::Memory(held) if held.len() + bytes.len() <= IN_MEMORY => held.extend_from_slice(bytes),
            Kept::Memory(held) => {
                let mut file = unnamed()?;
                file.write_all(held)?;
                file.write_all(bytes)?;
                *self = Kept::File { file, length: (held.len() + bytes.len()) as u64 };
            }
            Kept::File { file, length } => {
                file.write_all(bytes)?;
                *length += bytes.len() as u64;
            }
            Kept::Piece { .. } => return Err(io::Error::other("a piece of a file doesn't grow")),
        }
        Ok(())
    }

    pub(super) fn len(&self) -> u64 {
        match self {
            Kept::Memory(held) => held.len() as u64,
            Kept::File { length, .. } | Kept::Piece { length, .. } => *length,
        }
    }

    /// From the beginning, each time.
    pub(super) fn reader(&self) -> Reader<'_> {
        match self {
            Kept::Memory(held) => Reader::Memory(held),
            Kept::File { file, length } => Reader::File { file, at: 0, end: *length },
            Kept::Piece { file, at, length } => Reader::File { file, at: *at, end: at + length },
        }
    }

    /// For a process to read, from the beginning.
    pub(super) fn as_stdin(&self) -> io::Result<File> {
        if let Kept::File { file, .. } = self {
            let mut file = file.try_clone()?;
            file.rewind()?;
            return Ok(file);
        }
        let mut file = File::from(memfd_create("lines", MemfdFlags::CLOEXEC)?);
        io::copy(&mut self.reader(), &mut file)?;
        file.rewind()?;
        Ok(file)
    }
}

/// A file without a name, in TMPDIR.
pub(super) fn unnamed() -> io::Result<File> {
    tempfile::tempfile().map_err(|error| {
        let dir = std::env::temp_dir();
        io::Error::new(error.kind(), format!("no file can be made in `{}` (TMPDIR): {error}", dir.display()))
    })
}

#[derive(Debug)]
pub(super) enum Reader<'a> {
    Memory(&'a [u8]),
    File { file: &'a File, at: u64, end: u64 },
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Reader::Memory(held) => held.read(buffer),
            Reader::File { file, at, end } => {
                let most = usize::try_from(*end - *at).unwrap_or(usize::MAX).min(buffer.len());
                let read = file.read_at(&mut buffer[..most], *at)?;
                *at += read as u64;
                Ok(read)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_however_much_it_is() {
        let check = |pieces: &[usize], in_memory: bool| {
            let mut kept = Kept::default();
            let mut all = Vec::new();
            for (n, length) in pieces.iter().enumerate() {
                let piece = vec![n as u8; *length];
                kept.append(&piece).unwrap();
                all.extend(piece);
            }
            assert_eq!((matches!(kept, Kept::Memory(_)), kept.len()), (in_memory, all.len() as u64));
            for _ in 0..2 {
                let (mut read, mut given) = (Vec::new(), Vec::new());
                kept.reader().read_to_end(&mut read).unwrap();
                kept.as_stdin().unwrap().read_to_end(&mut given).unwrap();
                assert!(read == all && given == all, "{pieces:?}");
            }
        };
        check(&[], true);
        check(&[10, 20], true);
        check(&[IN_MEMORY], true);
        check(&[IN_MEMORY, 1, 70_000], false);
        check(&[IN_MEMORY + 1], false);
    }
}
