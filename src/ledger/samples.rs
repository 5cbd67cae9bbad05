//! Device samples: what each GPU was seen to do. One a second for ten minutes, and of each minute the least, the mean and
//! the most for thirty days. Invariants: what wasn't read is NULL and in no mean; the tables are bounded; they are the one
//! thing in the file that the directories don't tell, so they outlive a new schema and, where they can be read, a broken
//! file.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

/// Another number means other tables.
pub(super) const VERSION: &str = "1";

pub(super) const SCHEMA: &str = "
    CREATE TABLE sample_devices (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, number INTEGER, name TEXT NOT NULL, memory_total INTEGER
    );
    -- Times are seconds since 1970.
    CREATE TABLE sample_seconds (
        at INTEGER NOT NULL, device INTEGER NOT NULL, utilization INTEGER, memory INTEGER, temperature INTEGER,
        power REAL, verdict TEXT NOT NULL, leases INTEGER NOT NULL,
        PRIMARY KEY (at, device)
    ) WITHOUT ROWID;
    -- Sums and how many are in them, so that a minute can be told in parts; the verdict is its last, the leases its most.
    CREATE TABLE sample_minutes (
        at INTEGER NOT NULL, device INTEGER NOT NULL,
        utilization_n INTEGER NOT NULL, utilization_sum REAL, utilization_min INTEGER, utilization_max INTEGER,
        memory_n INTEGER NOT NULL, memory_sum REAL, memory_min INTEGER, memory_max INTEGER,
        temperature_n INTEGER NOT NULL, temperature_sum REAL, temperature_min INTEGER, temperature_max INTEGER,
        power_n INTEGER NOT NULL, power_sum REAL, power_min REAL, power_max REAL,
        verdict TEXT NOT NULL, leases INTEGER NOT NULL,
        PRIMARY KEY (at, device)
    ) WITHOUT ROWID;
    INSERT INTO meta VALUES ('samples', '1');
";

/// How long each second is kept.
pub(super) const SECONDS: i64 = 600;
/// How long each minute is kept.
pub(super) const MINUTES: i64 = 30 * 86_400;
/// The minutes of about twenty devices over thirty days: of more devices, fewer days. Some 100 bytes each.
const MOST_MINUTES: i64 = 900_000;
/// Devices that nobody has sampled for thirty days are forgotten; more than these are a broken driver's.
const MOST_DEVICES: i64 = 4096;

/// One device at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Seconds since 1970.
    pub at: i64,
    pub device: String,
    /// Percent.
    pub utilization: Option<u32>,
    /// Bytes in use.
    pub memory: Option<u64>,
    /// Degrees Celsius.
    pub temperature: Option<u32>,
    /// Watts.
    pub power: Option<f64>,
    pub verdict: &'static str,
    /// Slots given out.
    pub leases: u32,
}

/// What a sampled device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub id: String,
    pub index: Option<u32>,
    pub name: String,
    pub memory_total: Option<u64>,
}

/// Samples that go into the file together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub devices: Vec<Sampled>,
    pub samples: Vec<Sample>,
}

impl Batch {
    /// Adds later ones.
    pub fn add(&mut self, later: Batch) {
        for device in later.devices {
            match self.devices.iter_mut().find(|known| known.id == device.id) {
                Some(known) => *known = device,
                None => self.devices.push(device),
            }
        }
        self.samples.extend(later.samples);
    }
}

/// Writes samples, and lets go of what is too old by the newest of them.
pub(super) fn put(to: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    for device in &batch.devices {
        to.prepare_cached(
            "INSERT INTO sample_devices (id, number, name, memory_total) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET number = ?2, name = ?3, memory_total = coalesce(?4, memory_total)",
        )?
        .execute(params![device.id, device.index, device.name, device.memory_total.map(signed)])?;
    }
    for sample in &batch.samples {
        let values = params![
            sample.at,
            sample.device,
            sample.utilization,
            sample.memory.map(signed),
            sample.temperature,
            sample.power,
            sample.verdict,
            sample.leases,
        ];
        let before = to
            .prepare_cached(
                "INSERT OR IGNORE INTO sample_seconds
                 SELECT ?1, n, ?3, ?4, ?5, ?6, ?7, ?8 FROM sample_devices WHERE id = ?2",
            )?
            .execute(values)?;
        if before == 0 {
            // This second is told, or nobody said what the device is.
            continue;
        }
        to.prepare_cached(
            "INSERT INTO sample_minutes
             SELECT ?1 / 60 * 60, n, ?3 IS NOT NULL, ?3, ?3, ?3, ?4 IS NOT NULL, ?4, ?4, ?4,
                 ?5 IS NOT NULL, ?5, ?5, ?5, ?6 IS NOT NULL, ?6, ?6, ?6, ?7, ?8
             FROM sample_devices WHERE id = ?2
             ON CONFLICT (at, device) DO UPDATE SET
                 utilization_n = utilization_n + excluded.utilization_n,
                 utilization_sum = coalesce(utilization_sum + excluded.utilization_sum, utilization_sum, excluded.utilization_sum),
                 utilization_min = coalesce(min(utilization_min, excluded.utilization_min), utilization_min, excluded.utilization_min),
                 utilization_max = coalesce(max(utilization_max, excluded.utilization_max), utilization_max, excluded.utilization_max),
                 memory_n = memory_n + excluded.memory_n,
                 memory_sum = coalesce(memory_sum + excluded.memory_sum, memory_sum, excluded.memory_sum),
                 memory_min = coalesce(min(memory_min, excluded.memory_min), memory_min, excluded.memory_min),
                 memory_max = coalesce(max(memory_max, excluded.memory_max), memory_max, excluded.memory_max),
                 temperature_n = temperature_n + excluded.temperature_n,
                 temperature_sum = coalesce(temperature_sum + excluded.temperature_sum, temperature_sum, excluded.temperature_sum),
                 temperature_min = coalesce(min(temperature_min, excluded.temperature_min), temperature_min, excluded.temperature_min),
                 temperature_max = coalesce(max(temperature_max, excluded.temperature_max), temperature_max, excluded.temperature_max),
                 power_n = power_n + excluded.power_n,
                 power_sum = coalesce(power_sum + excluded.power_sum, power_sum, excluded.power_sum),
                 power_min = coalesce(min(power_min, excluded.power_min), power_min, excluded.power_min),
                 power_max = coalesce(max(power_max, excluded.power_max), power_max, excluded.power_max),
                 verdict = excluded.verdict,
                 leases = max(leases, excluded.leases)",
        )?
        .execute(values)?;
    }
    match batch.samples.iter().map(|sample| sample.at).max() {
        Some(newest) => prune(to, newest, MOST_MINUTES),
        None => Ok(()),
    }
}

/// Lets go of what is too old at `now`, and of the oldest minutes beyond `most`.
fn prune(to: &Connection, now: i64, most: i64) -> rusqlite::Result<()> {
    to.prepare_cached("DELETE FROM sample_seconds WHERE at <= ?1")?.execute([now - SECONDS])?;
    let gone = to.prepare_cached("DELETE FROM sample_minutes WHERE at <= ?1")?.execute([now - MINUTES])?;
    // Counting takes a while, so it is done now and then.
    if gone == 0 && now / 60 % 60 != 0 {
        return Ok(());
    }
    to.prepare_cached(
        "DELETE FROM sample_minutes WHERE at <= (SELECT at FROM sample_minutes ORDER BY at DESC LIMIT 1 OFFSET ?1)",
    )?
    .execute([most])?;
    to.prepare_cached(
        "DELETE FROM sample_devices WHERE n NOT IN (SELECT device FROM sample_minutes)
             OR n <= (SELECT n FROM sample_devices ORDER BY n DESC LIMIT 1 OFFSET ?1)",
    )?
    .execute([MOST_DEVICES])?;
    Ok(())
}

/// What could be taken over from another file.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Salvage {
    pub(super) minutes: u64,
    /// Some of it couldn't be read.
    pub(super) lost: bool,
}

/// Takes over what can still be read of the samples in a broken file: from its beginning to where it breaks, and from its
/// end. What is there already stands.
pub(super) fn salvage(to: &Connection, broken: &Path) -> rusqlite::Result<Salvage> {
    let mut found = Salvage::default();
    // A file that was cut within a page is still read page by page.
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(from) = Connection::open_with_flags(broken, flags) else { return Ok(Salvage { lost: true, ..found }) };
    let copy = |table: &str, columns: usize| -> rusqlite::Result<(u64, bool)> {
        let marks = vec!["?"; columns].join(", ");
        let (mut copied, mut lost) = (0, false);
        for order in ["ASC", "DESC"] {
            let Ok(mut query) = from.prepare(&format!("SELECT * FROM {table} ORDER BY 1 {order}, 2 {order}")) else {
                return Ok((copied, true));
            };
            if query.column_count() != columns {
                return Ok((copied, true));
            }
            let mut insert = to.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES ({marks})"))?;
            let Ok(mut rows) = query.query([]) else { return Ok((copied, true)) };
            let whole = loop {
                match rows.next() {
                    Ok(Some(row)) => {
                        let values: Result<Vec<rusqlite::types::Value>, _> =
                            (0..columns).map(|at| row.get(at)).collect();
                        match values {
                            // A row that the tables don't take is no sample.
                            Ok(values) => match insert.execute(rusqlite::params_from_iter(values)) {
                                Ok(new) => copied += new as u64,
                                Err(error)
                                    if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation) =>
                                {
                                    lost = true;
                                }
                                Err(error) => return Err(error),
                            },
                            Err(_) => lost = true,
                        }
                    }
                    Ok(None) => break true,
                    Err(_) => break false,
                }
            };
            if whole {
                return Ok((copied, lost));
            }
            lost = true;
        }
        Ok((copied, lost))
    };
    let (_, devices_lost) = copy("sample_devices", 5)?;
    let (minutes, minutes_lost) = copy("sample_minutes", 20)?;
    let (_, seconds_lost) = copy("sample_seconds", 8)?;
    found.minutes = minutes;
    found.lost = devices_lost || minutes_lost || seconds_lost;
    Ok(found)
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> Connection {
        let connection = Connection::open_in_memory().expect("a database");
        connection.execute_batch("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)").expect("meta");
        connection.execute_batch(SCHEMA).expect("tables");
        connection
    }

    fn batch(samples: &[(i64, &str, Option<u32>)]) -> Batch {
        let device = |id: &&str| Sampled { id: (*id).to_owned(), index: None, name: "G".into(), memory_total: None };
        let sample = |&(at, device, utilization): &(i64, &str, Option<u32>)| Sample {
            at,
            device: device.to_owned(),
            utilization,
            memory: utilization.map(|percent| u64::from(percent) << 20),
            temperature: None,
            power: utilization.map(f64::from),
            verdict: "free",
            leases: 1,
        };
        Batch { devices: ["a", "b"].iter().map(device).collect(), samples: samples.iter().map(sample).collect() }
    }

    fn minutes(of: &Connection) -> Vec<String> {
        let mut query = of
            .prepare(
                "SELECT at, device, utilization_n, utilization_sum, utilization_min, utilization_max, temperature_n,
                     temperature_sum, power_min, power_max FROM sample_minutes ORDER BY device, at",
            )
            .expect("a query");
        let line = |row: &rusqlite::Row<'_>| {
            let cell = |at: usize| match row.get_ref(at)? {
                rusqlite::types::ValueRef::Null => Ok("-".to_owned()),
                rusqlite::types::ValueRef::Integer(n) => Ok(n.to_string()),
                rusqlite::types::ValueRef::Real(n) => Ok(n.to_string()),
                _ => Ok("?".to_owned()),
            };
            (0..10).map(cell).collect::<rusqlite::Result<Vec<String>>>().map(|cells| cells.join(" "))
        };
        query.query_map([], line).expect("rows").collect::<Result<_, _>>().expect("rows")
    }

    fn count(of: &Connection, table: &str) -> i64 {
        of.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a number")
    }

    #[test]
    fn a_minute_holds_what_was_read_and_no_zero_for_what_was_not() {
        let check = |batches: &[&[(i64, &str, Option<u32>)]], expected: &[&str]| {
            let tables = tables();
            batches.iter().for_each(|samples| put(&tables, &batch(samples)).expect("written"));
            assert_eq!(minutes(&tables), expected, "{batches:?}");
        };
        check(
            &[&[(60, "a", Some(10)), (61, "a", Some(30)), (120, "a", Some(5))]],
            &["60 1 2 40 10 30 0 - 10 30", "120 1 1 5 5 5 0 - 5 5"],
        );
        // In parts, one of them unread; a second that is told twice counts once.
        check(
            &[&[(60, "a", None)], &[(61, "a", Some(8)), (61, "a", Some(90))], &[(62, "a", None), (63, "a", Some(4))]],
            &["60 1 2 12 4 8 0 - 4 8"],
        );
        check(&[&[(60, "a", None)]], &["60 1 0 - - - 0 - - -"]);
        check(&[&[(60, "b", Some(1)), (60, "a", Some(2))]], &["60 1 1 2 2 2 0 - 2 2", "60 2 1 1 1 1 0 - 1 1"]);
        // Of a device that nobody described nothing is kept.
        check(&[&[(60, "z", Some(1))]], &[]);
    }

    #[test]
    fn what_is_old_goes() {
        let tables = tables();
        let start = 1_000_000 * 60;
        let many: Vec<(i64, &str, Option<u32>)> = (0..2000).map(|n| (start + n, "a", Some(1))).collect();
        put(&tables, &batch(&many)).expect("written");
        assert_eq!((count(&tables, "sample_seconds"), count(&tables, "sample_minutes")), (SECONDS, 34));
        put(&tables, &batch(&[(start + MINUTES + 600, "b", Some(1))])).expect("written");
        // Minutes 11 to 33 of the first, and the new one.
        assert_eq!((count(&tables, "sample_seconds"), count(&tables, "sample_minutes")), (1, 24));
        prune(&tables, (start + MINUTES + 600) / 3600 * 3600, 10).expect("pruned");
        assert_eq!(count(&tables, "sample_minutes"), 10);
        put(&tables, &batch(&[(start + 3 * MINUTES, "b", Some(1))])).expect("written");
        assert_eq!((count(&tables, "sample_minutes"), count(&tables, "sample_devices")), (1, 1));
    }

    #[test]
    fn a_clock_that_jumps_back_leaves_what_it_finds() {
        let tables = tables();
        put(&tables, &batch(&[(90_000, "a", Some(1))])).expect("written");
        put(&tables, &batch(&[(60, "a", Some(1))])).expect("written");
        assert_eq!((count(&tables, "sample_seconds"), count(&tables, "sample_minutes")), (2, 2));
    }
}
