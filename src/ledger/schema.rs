//! The ledger's file: how it is opened, checked, made and, when it is broken, set aside. Whatever is wrong with it, the
//! answer is a usable file, maybe an empty one: it can be rebuilt.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _};

use super::samples;
use crate::item::Counters;

/// Another number means another schema: all but the samples is made anew.
pub(super) const VERSION: &str = "3";

const SCHEMA: &str = "
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    -- One row for each job directory. Times are nanoseconds since 1970; unknown is NULL, never 0.
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY,
        job TEXT NOT NULL,
        place TEXT NOT NULL,
        name BLOB NOT NULL,
        shown TEXT NOT NULL,
        folder TEXT NOT NULL,
        route TEXT,
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        devices TEXT NOT NULL,
        arrived_at INTEGER,
        claimed_at INTEGER,
        finished_at INTEGER,
        reason TEXT,
        message TEXT,
        -- What the route declares for each GPU.
        gpu_memory INTEGER
    ) WITHOUT ROWID;
    CREATE INDEX jobs_by_state ON jobs (state);
    CREATE INDEX jobs_by_place ON jobs (place);
    CREATE INDEX jobs_by_name ON jobs (name);
    CREATE INDEX jobs_by_end ON jobs (finished_at, id);
    -- What the workers of ended jobs said, as JSON; apart, since it may be large and `list` doesn't need it.
    CREATE TABLE reported (job TEXT PRIMARY KEY, result TEXT, counters TEXT) WITHOUT ROWID;
    -- The sums of these counters, and of how many jobs each.
    CREATE TABLE counters (name TEXT PRIMARY KEY, jobs INTEGER NOT NULL, sum REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE attempts (
        job TEXT NOT NULL,
        n INTEGER NOT NULL,
        devices TEXT NOT NULL,
        pid INTEGER,
        started_at INTEGER,
        ended_at INTEGER,
        exit_code INTEGER,
        signal INTEGER,
        reason TEXT,
        peak_gpu_memory INTEGER,
        energy_joules REAL,
        counted INTEGER NOT NULL,
        PRIMARY KEY (job, n)
    ) WITHOUT ROWID;
    -- One that was planned and never began has no time, and no place in the order.
    CREATE INDEX attempts_by_time ON attempts (coalesce(started_at, ended_at), job, n);
    -- What was given to attempts, and when last.
    CREATE TABLE devices (id TEXT PRIMARY KEY, last_used INTEGER) WITHOUT ROWID;
    -- Day directories as they were when they were read whole.
    CREATE TABLE days (place TEXT PRIMARY KEY, changed_at INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('complete', '0'), ('clean', '1');
";

/// An open file.
pub(super) struct Store {
    pub(super) connection: Connection,
    /// Device and inode, to notice that someone deleted or replaced the file.
    identity: (u64, u64),
    file: PathBuf,
    /// Day directories can be trusted to change their times when they change.
    pub(super) local: bool,
}

/// What opening found.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Closed in order.
    Whole,
    /// Its last writer was cut off: the last entries may be missing.
    CutOff,
    /// There was none.
    Absent,
    /// Written by another version of gamdok; the samples stay.
    OtherVersion,
    /// It was broken and lies aside under this name.
    Broken(PathBuf),
}

impl Store {
    /// Opens the file for its one writer.
    pub(super) fn open(file: &Path) -> rusqlite::Result<(Store, Found)> {
        let absent = !file.exists();
        match Store::open_existing(file) {
            Ok((store, Some(found))) => Ok((store, if absent { Found::Absent } else { found })),
            Ok((mut store, None)) => {
                if store.renew()? {
                    return Ok((store, Found::OtherVersion));
                }
                // Samples of another kind: a later version's, which may come back.
                drop(store);
                let aside = set_aside(file);
                tracing::warn!(aside = %aside.display(), "the ledger of another version lies aside, with its samples");
                Ok((Store::open_existing(file)?.0, Found::OtherVersion))
            }
            Err(error) if is_broken(&error) => {
                let aside = set_aside(file);
                Ok((Store::open_existing(file)?.0, Found::Broken(aside)))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens or makes the file; `None` when its schema is another.
    fn open_existing(file: &Path) -> rusqlite::Result<(Store, Option<Found>)> {
        if is_cut_short(file) {
            return Err(corrupt("the file is shorter than it says"));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(file, flags)?;
        let local = !on_network(file);
        prepare(&connection, local)?;
        let identity = identity(file).ok_or_else(|| corrupt("the file vanished while it was opened"))?;
        let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            let change = connection.transaction()?;
            change.execute_batch(SCHEMA)?;
            change.execute_batch(samples::SCHEMA)?;
            change.execute("INSERT INTO meta VALUES ('schema', ?1)", [VERSION])?;
            change.commit()?;
        }
        let schema = meta(&connection, "schema")?;
        let clean = meta(&connection, "clean")?.as_deref() == Some("1");
        let store = Store { connection, identity, file: file.to_owned(), local };
        if schema.as_deref() != Some(VERSION) {
            return Ok((store, None));
        }
        if !clean {
            // A write that was cut off is SQLite's to mend; a disk that lied about it shows here.
            let verdict: String = store.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            if verdict != "ok" {
                return Err(corrupt(&verdict));
            }
        }
        store.connection.execute("UPDATE meta SET value = '0' WHERE key = 'clean'", [])?;
        Ok((store, Some(if clean { Found::Whole } else { Found::CutOff })))
    }

    /// Makes the index anew in this schema, empty, and keeps the samples; at once or not at all. False, and nothing is
    /// changed, when they aren't of this kind.
    fn renew(&mut self) -> rusqlite::Result<bool> {
        let change = self.connection.transaction()?;
        let kind = meta(&change, "samples")?;
        if kind.as_deref().is_some_and(|kind| kind != samples::VERSION) {
            return Ok(false);
        }
        let mut query =
            change.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")?;
        let tables: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        drop(query);
        for table in tables.iter().filter(|table| kind.is_none() || !table.starts_with("sample_")) {
            change.execute_batch(&format!("DROP TABLE \"{}\"", table.replace('"', "\"\"")))?;
        }
        change.execute_batch(SCHEMA)?;
        match kind {
            Some(kind) => {
                change.execute("INSERT INTO meta VALUES ('samples', ?1)", [kind])?;
            }
            None => change.execute_batch(samples::SCHEMA)?,
        }
        change.execute("INSERT INTO meta VALUES ('schema', ?1)", [VERSION])?;
        change.execute("UPDATE meta SET value = '0' WHERE key = 'clean'", [])?;
        change.commit()?;
        Ok(true)
    }

    /// Whether the file under the ledger's name is still the one that is open.
    pub(super) fn is_in_place(&self) -> bool {
        identity(&self.file) == Some(self.identity)
    }

    /// Closes in order.
    pub(super) fn close(self) {
        let noted = self.connection.execute("UPDATE meta SET value = '1' WHERE key = 'clean'", []);
        if let Err(error) = noted.and_then(|_| self.connection.close().map_err(|(_, error)| error)) {
            tracing::warn!(%error, "the ledger could not be closed in order; the next start checks it");
        }
    }
}

/// Names the file out of the way, with what SQLite keeps beside it, and says under which name.
pub(super) fn set_aside(file: &Path) -> PathBuf {
    let numbered = |n: u32| beside(file, &format!(".broken.{n}"));
    // The ninth is replaced: whoever has nine broken ledgers has seen enough of them.
    let aside = (1..9).map(numbered).find(|name| !name.exists()).unwrap_or_else(|| numbered(9));
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let (from, to) = (beside(file, suffix), beside(&aside, suffix));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(file = %from.display(), %error, "the broken ledger could not be set aside");
            }
            _ => {}
        }
    }
    aside
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    PathBuf::from(name)
}

/// Settings of a writing connection.
fn prepare(connection: &Connection, local: bool) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    // A write-ahead log needs memory shared between its users, which a network file system doesn't give.
    let mode = if local { "wal" } else { "delete" };
    connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |_| Ok(()))?;
    // What a power cut takes from an index comes back from the directories.
    connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA cache_size = -2048;")?;
    connection.query_row("PRAGMA journal_size_limit = 16777216", [], |_| Ok(()))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get(0)).optional()
}

/// More names than these are a mistake that would fill everybody's screen.
const MAX_SUMS: i64 = 10_000;

/// What all ended jobs counted.
pub(super) fn counters(connection: &Connection) -> rusqlite::Result<Counters> {
    let mut query = connection.prepare_cached("SELECT name, sum FROM counters ORDER BY name LIMIT ?1")?;
    query.query_map([MAX_SUMS], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Whether an error speaks of the file's contents and not of the circumstances. Missing tables and columns of other
/// types count: nothing but gamdok writes this file.
pub(super) fn is_broken(error: &rusqlite::Error) -> bool {
    use ErrorCode::*;
    !matches!(
        error.sqlite_error_code(),
        Some(
            DatabaseBusy
                | DatabaseLocked
                | DiskFull
                | SystemIoFailure
                | CannotOpen
                | ReadOnly
                | PermissionDenied
                | OutOfMemory
                | OperationInterrupted
                | FileLockingProtocolFailed
        )
    )
}

fn corrupt(why: &str) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(why.to_owned()))
}

fn identity(file: &Path) -> Option<(u64, u64)> {
    fs::metadata(file).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Whether the file is shorter than its header says (file format, bytes 16 and 28): SQLite finds that out only when it
/// needs the missing pages. With a write-ahead log beside it, the header may rightly be ahead or behind.
fn is_cut_short(file: &Path) -> bool {
    if beside(file, "-wal").metadata().is_ok_and(|wal| wal.len() > 0) {
        return false;
    }
    let mut header = [0; 100];
    let Ok(mut opened) = File::open(file) else { return false };
    let Ok(length) = opened.metadata().map(|meta| meta.len()) else { return false };
    if length == 0 || opened.read_exact(&mut header).is_err() {
        return length != 0;
    }
    let page = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u64::from(u32::from_be_bytes([header[28], header[29], header[30], header[31]]));
    length < page * pages
}

/// Whether a file lies on a file system of another host, or on one that may pass its calls to one.
fn on_network(file: &Path) -> bool {
    const NETWORK: [u32; 10] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x6573_5546, // FUSE
        0x0102_1997, // 9P
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x0bd0_0bd0, // Lustre
        0x4750_4653, // GPFS
    ];
    rustix::fs::statfs(file).is_ok_and(|found| NETWORK.contains(&(found.f_type as u32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_shorter_than_its_header_says_is_found_out() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ledger.sqlite");
        let (store, found) = Store::open(&file).expect("made");
        assert_eq!(found, Found::Absent);
        store.close();
        let whole = fs::read(&file).expect("the file");
        let check = |length: usize, short: bool| {
            fs::write(&file, &whole[..length]).expect("written");
            assert_eq!(is_cut_short(&file), short, "{length} of {}", whole.len());
        };
        check(whole.len(), false);
        check(whole.len() - 1, true);
        check(4096, true);
        check(50, true);
        check(0, false);
    }

    #[test]
    fn broken_files_are_set_aside_under_the_next_number() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ledger.sqlite");
        for n in 1..=11_u32 {
            fs::write(&file, "this is not a database, not even nearly a database at all").expect("written");
            let (store, found) = Store::open(&file).expect("opened");
            store.close();
            let aside = dir.path().join(format!("ledger.sqlite.broken.{}", n.min(9)));
            assert_eq!(found, Found::Broken(aside.clone()));
            assert!(aside.exists());
        }
    }

    #[test]
    fn another_schema_is_made_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("ledger.sqlite");
        let (store, _) = Store::open(&file).expect("made");
        store.connection.execute("UPDATE meta SET value = '0' WHERE key = 'schema'", []).expect("changed");
        store.close();
        let (store, found) = Store::open(&file).expect("opened");
        assert_eq!(found, Found::OtherVersion);
        assert_eq!(meta(&store.connection, "schema").expect("read").as_deref(), Some(VERSION));
    }
}
