//! The file to split, as a stream of uncompressed bytes that knows where it stands. Gzip is known by its first bytes; its
//! members, however many, are one stream.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::setup::Error;
use super::stop::StopFlag;

/// What is read at a time: large against the cost of a call, small against the caches.
const BLOCK: u64 = 256 << 10;
/// How a gzip file begins; 8 would be the only method there is.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    source: Source,
    /// Uncompressed bytes read so far.
    offset: u64,
    pub(super) identity: Identity,
}

/// What a journal knows an input by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) bytes: u64,
    pub(super) mtime_ns: i128,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Gzip(Box<Members>),
}

impl Input {
    pub(super) fn open(path: &Path) -> Result<Input, Error> {
        let failed = |error: io::Error| Error::Input {
            path: path.to_owned(),
            message: error.to_string(),
            damaged: error.kind() == io::ErrorKind::NotFound,
        };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            let message = "only a regular file can be split into lines".to_owned();
            return Err(Error::Input { path: path.to_owned(), message, damaged: true });
        }
        let mtime_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        let identity = Identity { bytes: meta.len(), mtime_ns };
        let mut head = [0; MAGIC.len()];
        let is_gzip = match file.read_exact_at(&mut head, 0) {
            Ok(()) => head == MAGIC,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(failed(error)),
        };
        let source = if is_gzip { Source::Gzip(Box::new(Members::new(file))) } else { Source::Plain(file) };
        Ok(Input { path: path.to_owned(), source, offset: 0, identity })
    }

    /// Appends the next block; 0 = that was all.
    pub(super) fn read_block(&mut self, into: &mut Vec<u8>) -> Result<usize, Error> {
        into.reserve(BLOCK as usize);
        let before = into.len();
        let read = match &mut self.source {
            Source::Plain(file) => file.take(BLOCK).read_to_end(into),
            Source::Gzip(members) => members.take(BLOCK).read_to_end(into),
        };
        // What was read before an error counts, for its words.
        self.offset += (into.len() - before) as u64;
        read.map_err(|error| self.failed(&error))
    }

    /// Goes on behind the first `bytes`, which another run has read.
    pub(super) fn skip(&mut self, bytes: u64, stop: &StopFlag) -> Result<(), Error> {
        const STEP: u64 = 4 << 20;
        while self.offset < bytes {
            // Unpacking what was done before takes as long as it did then.
            if stop.is_ordered() {
                return Err(Error::Stopped);
            }
            let step = STEP.min(bytes - self.offset);
            let skipped = match &mut self.source {
                Source::Plain(file) => file.seek(SeekFrom::Start(bytes)).map(|_| bytes - self.offset),
                Source::Gzip(members) => io::copy(&mut members.take(step), &mut io::sink()),
            };
            let skipped = skipped.map_err(|error| self.failed(&error))?;
            self.offset += skipped;
            if skipped == 0 {
                return Err(self.unfit(format!("it ends after {} bytes, an earlier run has read {bytes}", self.offset)));
            }
        }
        Ok(())
    }

    /// It is no file to work on, however often it is read.
    pub(super) fn unfit(&self, message: String) -> Error {
        Error::Input { path: self.path.clone(), message, damaged: true }
    }

    /// Uncompressed bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Where reading stands in the file as it lies on the disk.
    pub(super) fn position(&self) -> u64 {
        match &self.source {
            Source::Plain(_) => self.offset,
            Source::Gzip(members) => members.position(),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        let offset = self.offset;
        let (message, damaged) = match &self.source {
            Source::Plain(_) => (format!("{error} (at byte {offset})"), false),
            Source::Gzip(members) => {
                let (member, position) = (members.member_at, members.position());
                let place = format!("near its byte {position}, {offset} bytes uncompressed");
                match error.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        (format!("the gzip file breaks off in the member that begins at byte {member} ({place})"), true)
                    }
                    io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                        (format!("the gzip member that begins at byte {member} is damaged: {error} ({place})"), true)
                    }
                    _ => (format!("{error} ({place})"), false),
                }
            }
        };
        Error::Input { path: self.path.clone(), message, damaged }
    }
}

/// The members of a gzip file, one after another.
#[derive(Debug)]
struct Members {
    /// None only while one member gives way to the next.
    decoder: Option<GzDecoder<BufReader<Counted>>>,
    member_at: u64,
    ended: bool,
}

impl Members {
    fn new(file: File) -> Members {
        let reader = BufReader::with_capacity(BLOCK as usize, Counted { file, read: 0 });
        Members { decoder: Some(GzDecoder::new(reader)), member_at: 0, ended: false }
    }

    fn position(&self) -> u64 {
        self.decoder.as_ref().map_or(0, |decoder| position(decoder.get_ref()))
    }

    /// Looks at what follows a member: another one, the end, or padding as tapes and block devices leave it.
    fn next_member(&mut self) -> io::Result<()> {
        let Some(decoder) = self.decoder.take() else { return Ok(()) };
        let mut reader = decoder.into_inner();
        let follows = skip_zeros(&mut reader);
        self.member_at = position(&reader);
        self.decoder = Some(GzDecoder::new(reader));
        match follows? {
            Follows::Nothing => self.ended = true,
            Follows::Member => {}
            Follows::Garbage => {
                let words = "what follows the member before it isn't gzip";
                return Err(io::Error::new(io::ErrorKind::InvalidData, words));
            }
        }
        Ok(())
    }
}

fn position(reader: &BufReader<Counted>) -> u64 {
    reader.get_ref().read - reader.buffer().len() as u64
}

impl Read for Members {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.ended && !into.is_empty() {
            let Some(decoder) = &mut self.decoder else { break };
            match decoder.read(into)? {
                0 => self.next_member()?,
                read => return Ok(read),
            }
        }
        Ok(0)
    }
}

enum Follows {
    Nothing,
    Member,
    Garbage,
}

fn skip_zeros(reader: &mut BufReader<Counted>) -> io::Result<Follows> {
    let mut padded = false;
    loop {
        let ahead = reader.fill_buf()?;
        let Some(first) = ahead.iter().position(|byte| *byte != 0) else {
            let zeros = ahead.len();
            if zeros == 0 {
                return Ok(Follows::Nothing);
            }
            padded = true;
            reader.consume(zeros);
            continue;
        };
        let is_member = ahead[first] == MAGIC[0] && first == 0 && !padded;
        reader.consume(first);
        return Ok(if is_member { Follows::Member } else { Follows::Garbage });
    }
}

/// Counts what is read.
#[derive(Debug)]
struct Counted {
    file: File,
    read: u64,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(into)?;
        self.read += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read_all(content: &[u8]) -> Result<Vec<u8>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let mut read = Vec::new();
        let mut input = Input::open(file.path()).map_err(|error| error.to_string())?;
        while input.read_block(&mut read).map_err(|error| error.to_string())? > 0 {}
        assert_eq!(input.position(), content.len() as u64);
        Ok(read)
    }

    #[test]
    fn plain_and_gzip_are_read_whole() {
        let noise: Vec<u8> = (0..700_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let check = |content: &[u8], expected: &[u8]| assert!(read_all(content).unwrap() == expected);
        for content in [&b""[..], b"\x1f", b"a\nb", &noise] {
            check(content, content);
            check(&gzip(content), content);
            check(
                &[gzip(content), gzip(b""), gzip(b"more\n"), gzip(content)].concat(),
                &[content, b"more\n", content].concat(),
            );
            check(&[gzip(content), vec![0; 1 << 20]].concat(), content);
        }
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let (one, two) = (gzip(b"one\ntwo\n"), gzip(&[b'x'; 100_000]));
        let check = |content: &[u8], words: &[&str]| {
            let error = read_all(content).unwrap_err();
            for word in words {
                assert!(error.contains(word), "`{error}` says nothing of `{word}`");
            }
        };
        check(b"\x1f\x8b", &["breaks off", "begins at byte 0"]);
        check(&one[..one.len() - 3], &["breaks off", "begins at byte 0", "8 bytes uncompressed"]);
        let member = format!("begins at byte {}", one.len());
        check(&[&one[..], &two[..two.len() / 2]].concat(), &["breaks off", &member]);
        check(&[&one[..], b"\x1f"].concat(), &["breaks off", &member]);
        check(&[&one[..], b"garbage"].concat(), &["damaged", &member, "isn't gzip"]);
        check(&[&one[..], &[0; 9][..], &one[..]].concat(), &["isn't gzip"]);
        let mut flipped = two.clone();
        let at = flipped.len() - 6;
        flipped[at] ^= 1;
        check(&flipped, &["damaged", "begins at byte 0", "100000 bytes uncompressed"]);
        check(b"\x1f\x8b\x07nothing that exists", &["damaged"]);
    }

    #[test]
    fn what_is_no_file_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let check = |path: &Path, words: &str| {
            let error = Input::open(path).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains(path.to_str().unwrap()), "{error}");
        };
        check(dir.path(), "only a regular file");
        check(&dir.path().join("absent"), "No such file");
    }

    #[test]
    fn what_was_read_before_is_skipped() {
        let check = |content: &[u8], skip: u64, expected: Option<&[u8]>| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), content).unwrap();
            let mut input = Input::open(file.path()).unwrap();
            let mut read = Vec::new();
            let skipped = input.skip(skip, &StopFlag::new().unwrap());
            if skipped.is_ok() {
                while input.read_block(&mut read).unwrap() > 0 {}
            }
            assert_eq!(skipped.is_ok().then_some(&read[..]), expected);
        };
        check(b"one\ntwo\n", 4, Some(b"two\n"));
        check(&[gzip(b"one\nt"), gzip(b"wo\n")].concat(), 4, Some(b"two\n"));
        check(&gzip(b"one\n"), 4, Some(b""));
        check(&gzip(b"one\n"), 5, None);
    }
}
