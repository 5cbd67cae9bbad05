//! An attempt's log. The process writes it itself; this bounds it: beyond `max_log` the middle is cut, its first and
//! its last half stay. While the process runs, holes punched into the middle bound the space it takes.

use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;

use crate::symptoms::speaks_of_memory;
use crate::units::Bytes;

/// How much of the end is read for what it tells of a failure.
const TAIL: u64 = 8 << 10;

/// The log of one attempt, open as long as its worker lives.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) path: PathBuf,
    file: File,
    limit: u64,
    pace: Pace,
    /// Where the next hole begins, once one was punched.
    punched_to: Option<u64>,
    /// The file system can't punch holes.
    unbounded: bool,
}

impl Log {
    /// Opens `attempt-<n>.log`. Appending: the process and what it starts write where the end is, whoever wrote last.
    pub(super) fn open(dir: &Path, attempt: u32, max_log: Bytes, now: Instant) -> io::Result<Log> {
        let path = dir.join(format!("attempt-{attempt}.log"));
        let file = open(&path)?;
        Ok(Log { path, file, limit: max_log.0, pace: Pace::new(now), punched_to: None, unbounded: false })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// When [`Log::bound`] should be called next. A worker of less than a second isn't looked at while it runs.
    pub(super) fn look_at(&self) -> Instant {
        self.pace.next
    }

    /// Punches the middle out of a log that grew too large while its process runs.
    pub(super) fn bound(&mut self, now: Instant) {
        let Ok(size) = self.file.metadata().map(|meta| meta.len()) else { return };
        self.pace.saw(size, self.limit, now);
        let Some((from, to)) = hole(size, self.limit, self.punched_to) else { return };
        if self.unbounded {
            return;
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, from, to - from) {
            Ok(()) => self.punched_to = Some(to),
            Err(error) => {
                self.unbounded = true;
                tracing::warn!(log = %crate::item::escape(self.path.as_os_str().as_encoded_bytes()), %error,
                    "a log over max_log can't be cut while its worker runs; it will be cut at the end");
            }
        }
    }

    /// Cuts the middle out of a log that is too large; nobody writes it any more.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if size <= self.limit {
            return Ok(());
        }
        let (head, tail) = (self.limit / 2, self.limit - self.limit / 2);
        let head_end = if self.ends_a_line(head)? { "" } else { "\n" };
        let note = format!(
            "{head_end}[gamdok: {} bytes of this log were cut out here: it was longer than max_log, {}]\n",
            size - head - tail,
            Bytes(self.limit)
        );
        // Beside it and renamed over it: a kill in between leaves the log as it was.
        let shorter = self.path.with_extension("log.tmp");
        // Made anew: what stands there is a worker's, or a killed director's.
        let _absent = fs::remove_file(&shorter);
        let mut file = File::options().write(true).create_new(true).mode(0o640).open(&shorter)?;
        self.file.seek(SeekFrom::Start(0))?;
        io::copy(&mut (&self.file).take(head), &mut file)?;
        file.write_all(note.as_bytes())?;
        self.file.seek(SeekFrom::Start(size - tail))?;
        io::copy(&mut (&self.file).take(tail), &mut file)?;
        fs::rename(&shorter, &self.path)?;
        self.file = File::options().read(true).append(true).open(&self.path)?;
        Ok(())
    }

    fn ends_a_line(&self, head: u64) -> io::Result<bool> {
        let mut last = [0];
        if head == 0 {
            return Ok(true);
        }
        self.file.read_exact_at(&mut last, head - 1)?;
        Ok(last == *b"\n")
    }

    /// Its length in bytes; 0 where that can't be told.
    pub(super) fn len(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len())
    }

    /// Throws away what is in it. The process appends, so it goes on at the start.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.punched_to = None;
        Ok(())
    }

    /// Appends what was written from `start` on to an attempt's own log. Nothing is made for nothing.
    pub(super) fn copy_from(&mut self, start: u64, dir: &Path, attempt: u32) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if size <= start {
            return Ok(());
        }
        let mut own = Log {
            path: dir.join(format!("attempt-{attempt}.log")),
            file: open(&dir.join(format!("attempt-{attempt}.log")))?,
            limit: self.limit,
            pace: Pace::new(Instant::now()),
            punched_to: None,
            unbounded: false,
        };
        self.file.seek(SeekFrom::Start(start))?;
        io::copy(&mut (&self.file).take(size - start), &mut &own.file)?;
        own.settle()
    }

    /// The last few lines, fit to be shown.
    pub(super) fn last_lines(&self) -> String {
        let tail = tail(&self.file).unwrap_or_default();
        let lines: Vec<&[u8]> = tail.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let last = lines.iter().rev().take(3).rev().map(|line| crate::item::escape(line));
        last.collect::<Vec<_>>().join(" | ")
    }

    /// Whether its end says that memory ran out; asked only after a failure.
    pub(super) fn speaks_of_memory(&self) -> bool {
        tail(&self.file).is_ok_and(|tail| speaks_of_memory(&tail))
    }
}

/// Opens it for appending. What an earlier attempt's worker put under the name, and isn't a file, is set aside.
fn open(path: &Path) -> io::Result<File> {
    let open = || {
        let mut options = File::options();
        options.read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        options.open(path)
    };
    let foreign = match open() {
        Ok(file) if file.metadata()?.is_file() => return Ok(file),
        Ok(_) => true,
        Err(error) => matches!(error.raw_os_error(), Some(libc::ELOOP | libc::EISDIR | libc::ENXIO)),
    };
    if foreign {
        fs::rename(path, path.with_extension("log.worker.tmp"))?;
    }
    open()
}

fn tail(file: &File) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL);
    let mut bytes = vec![0; (size - from) as usize];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], from + read as u64)? {
            0 => break,
            n => read += n,
        }
    }
    bytes.truncate(read);
    Ok(bytes)
}

/// The part to punch out, in whole blocks: all but the first and the last half of the limit. Nothing unless it frees a
/// good part of the limit, so that a growing log is punched now and then instead of always.
fn hole(size: u64, limit: u64, punched_to: Option<u64>) -> Option<(u64, u64)> {
    const BLOCK: u64 = 4096;
    let from = punched_to.unwrap_or((limit / 2).next_multiple_of(BLOCK));
    let to = size.saturating_sub(limit - limit / 2) / BLOCK * BLOCK;
    let worth = (limit / 8).max(BLOCK);
    (size > limit && from + worth <= to).then_some((from, to))
}

/// How often a running log is looked at: soon when it may grow too large before the next look, else ever more seldom.
#[derive(Debug)]
struct Pace {
    next: Instant,
    seen_at: Instant,
    seen: u64,
    interval: Duration,
}

impl Pace {
    const FIRST: Duration = Duration::from_secs(1);
    const LAST: Duration = Duration::from_secs(60);

    fn new(now: Instant) -> Pace {
        Pace { next: now + Self::FIRST, seen_at: now, seen: 0, interval: Self::FIRST }
    }

    fn saw(&mut self, size: u64, limit: u64, now: Instant) {
        let grown = size.saturating_sub(self.seen);
        let span = now.duration_since(self.seen_at).max(Duration::from_millis(1));
        // Half of what it may still grow, at the rate it last grew.
        let room = limit.saturating_sub(size).max(limit / 4) / 2;
        let fills_in = match grown {
            0 => Self::LAST,
            grown => Duration::try_from_secs_f64(span.as_secs_f64() * room as f64 / grown as f64).unwrap_or(Self::LAST),
        };
        self.interval = (self.interval * 2).min(fills_in).clamp(Self::FIRST, Self::LAST);
        (self.seen, self.seen_at, self.next) = (size, now, now + self.interval);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn log(limit: u64, content: &[u8]) -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), 1, Bytes(limit), Instant::now()).unwrap();
        log.file().write_all(content).unwrap();
        (dir, log)
    }

    #[test]
    fn a_log_within_its_bound_is_left_alone() {
        let (_dir, mut log) = log(10, b"0123456789");
        log.settle().unwrap();
        assert_eq!(fs::read(&log.path).unwrap(), b"0123456789");
    }

    #[test]
    fn the_middle_of_a_long_one_is_cut_with_a_note() {
        let check = |content: &str, expected: &str| {
            let (dir, mut log) = log(8, content.as_bytes());
            log.settle().unwrap();
            assert_eq!(fs::read_to_string(&log.path).unwrap(), expected);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else stays");
        };
        let note =
            |n: u64| format!("[gamdok: {n} bytes of this log were cut out here: it was longer than max_log, 8 B]\n");
        check("abcdefghijk", &format!("abcd\n{}hijk", note(3)));
        check("abc\nxxxefg\n", &format!("abc\n{}efg\n", note(3)));
    }

    #[test]
    fn holes_bound_a_growing_log_and_keep_both_ends() {
        let (_dir, mut log) = log(64 << 10, b"");
        let file = File::options().append(true).open(&log.path).unwrap();
        let mut largest = 0;
        for line in 0..20_000 {
            (&file).write_all(format!("line {line:0>8}\n").as_bytes()).unwrap();
            if line % 500 == 0 {
                log.bound(Instant::now());
                largest = largest.max(log.file.metadata().unwrap().blocks() * 512);
            }
        }
        assert!(log.unbounded || largest < 160 << 10, "{largest} bytes taken");
        log.settle().unwrap();
        let text = fs::read_to_string(&log.path).unwrap();
        assert!(text.starts_with("line 00000000\n") && text.ends_with("line 00019999\n"));
        assert!(text.len() < (64 << 10) + 200 && !text.contains('\0'), "{}", text.len());
    }

    #[test]
    fn holes_are_whole_blocks_and_worth_it() {
        let check = |size: u64, limit: u64, punched: Option<u64>, expected: Option<(u64, u64)>| {
            assert_eq!(hole(size, limit, punched), expected, "{size} {limit}");
        };
        check(64 << 10, 64 << 10, None, None);
        check(65 << 10, 64 << 10, None, None);
        check(80 << 10, 64 << 10, None, Some((32 << 10, 48 << 10)));
        check(100_000, 65_536, None, Some((32_768, 65_536)));
        check(100_000, 65_536, Some(65_536), None);
        check(1 << 40, 0, None, Some((0, 1 << 40)));
    }

    #[test]
    fn quiet_logs_are_looked_at_seldom_and_fast_ones_often() {
        let start = Instant::now();
        let check = |sizes: &[u64], expected: u64| {
            let mut pace = Pace::new(start);
            for size in sizes {
                let now = pace.next;
                pace.saw(*size, 1000, now);
            }
            assert_eq!(pace.interval.as_secs(), expected, "{sizes:?}");
        };
        check(&[10], 2);
        check(&[10, 10, 10], 8);
        check(&[0; 10], 60);
        check(&[0, 0, 0, 0, 0, 900], 4);
        check(&[500, 2000, 9000], 1);
    }

    #[test]
    fn words_about_memory_are_found_at_the_end_only() {
        let check = |content: Vec<u8>, found: bool| {
            let (_dir, log) = log(u64::MAX, &content);
            assert_eq!(log.speaks_of_memory(), found);
        };
        check(b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n".to_vec(), true);
        check(b"fork: Cannot allocate memory\n".to_vec(), true);
        check(b"all is well\n".to_vec(), false);
        check(vec![], false);
        check([b"CUDA out of memory".to_vec(), vec![b'.'; 9000]].concat(), false);
        check([vec![0xff; 9000], b"MemoryError".to_vec()].concat(), true);
    }
}
