//! What the comparisons share: a root with items, a running director, clocks and numbers. The directors are the built
//! release binary; nothing here links the library.

#![allow(dead_code, reason = "each comparison uses its own part")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

pub(crate) mod floor;

/// Cargo passes `--bench` when it is asked to measure; when it only tests the targets there is nothing to do.
pub(crate) fn asked_to_measure() -> bool {
    let asked = std::env::args().any(|word| word == "--bench");
    if !asked {
        println!("this is a comparison: run it with `cargo bench`");
    }
    asked
}

/// A number from the environment.
pub(crate) fn number(name: &str, otherwise: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Nanoseconds of the clock that all processes of this host share.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Waits without a reason to wake earlier.
pub(crate) fn pause(span: Duration) {
    let _ = crossbeam_channel::never::<()>().recv_timeout(span);
}

/// Looks every millisecond until something holds.
pub(crate) fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < limit, "{what} took more than {limit:?}");
        pause(Duration::from_millis(1));
    }
    started.elapsed()
}

/// The folder that everything is measured in: `GAMDOK_BENCH_DIR`, else below `target/`. Cleared at the end only: ext4 is
/// slow for a while after many deletes.
pub(crate) struct Bench {
    pub(crate) dir: PathBuf,
    keep: bool,
}

impl Bench {
    pub(crate) fn new(name: &str) -> Bench {
        let dir = base().join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("the folder to measure in can be made");
        describe(&dir);
        Bench { dir, keep: false }
    }

    /// A folder that the next run uses again.
    pub(crate) fn kept(name: &str) -> Bench {
        let dir = base().join(name);
        fs::create_dir_all(&dir).expect("the folder to measure in can be made");
        describe(&dir);
        Bench { dir, keep: true }
    }

    /// A fresh root with its configuration; the inbox is there already, so that items can wait in it.
    pub(crate) fn root(&self, name: &str, config: &str) -> Root {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).expect("made");
        let config_file = self.dir.join(format!("{name}.toml"));
        fs::write(&config_file, config).expect("written");
        let init = gamdok().arg("init").arg(&dir).stdout(Stdio::null()).status();
        assert!(init.expect("gamdok starts").success(), "gamdok init {}", dir.display());
        let staging = self.dir.join(format!("{name}.staging"));
        fs::create_dir_all(&staging).expect("made");
        Root { dir, config_file, staging }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // After a failure there is something to look at.
        if !self.keep && !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// The built binary, or another one to compare with.
pub(crate) fn gamdok() -> Command {
    let other = std::env::var_os("GAMDOK_BENCH_BINARY");
    Command::new(other.unwrap_or_else(|| env!("CARGO_BIN_EXE_gamdok").into()))
}

fn base() -> PathBuf {
    std::env::var_os("GAMDOK_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from)
}

/// The machine, in the words that belong beside the numbers.
fn describe(dir: &Path) {
    let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_dir = fields.filter(|line| line.len() > 2 && dir.starts_with(line[1]));
    let file_system = of_dir.max_by_key(|line| line[1].len()).map_or("?".to_owned(), |line| line[2].to_owned());
    println!("{cores} cores, kernel {}, {file_system} at {}", kernel.trim(), dir.display());
}

/// A root directory of gamdok.
pub(crate) struct Root {
    pub(crate) dir: PathBuf,
    pub(crate) config_file: PathBuf,
    pub(crate) staging: PathBuf,
}

impl Root {
    pub(crate) fn inbox(&self) -> PathBuf {
        self.dir.join("inbox")
    }

    /// Makes items outside the inbox.
    pub(crate) fn stage(&self, count: usize) -> Vec<PathBuf> {
        stage(&self.staging, count)
    }

    /// Renames an item into the inbox.
    pub(crate) fn drop_in(&self, item: &Path) {
        drop_into(&self.inbox(), item);
    }

    /// How many jobs lie in `done/`.
    pub(crate) fn done(&self) -> u64 {
        let Ok(days) = fs::read_dir(self.dir.join("done")) else { return 0 };
        days.flatten().map(|day| directories(&day.path())).sum()
    }

    pub(crate) fn claimed(&self) -> u64 {
        directories(&self.dir.join("claimed"))
    }

    pub(crate) fn start(&self) -> Director {
        Director::start(self, &[])
    }

    /// With these in its environment.
    pub(crate) fn start_with(&self, env: &[(&str, OsString)]) -> Director {
        Director::start(self, env)
    }

    /// What the command made of a finished item whose name begins like this.
    pub(crate) fn outputs(&self, item: &str) -> Vec<PathBuf> {
        let days = fs::read_dir(self.dir.join("done")).expect("read").flatten();
        let jobs = days.flat_map(|day| fs::read_dir(day.path()).expect("read").flatten());
        let of_item = jobs.filter(|job| job.file_name().to_string_lossy().starts_with(&format!("{item}~")));
        of_item
            .flat_map(|job| fs::read_dir(job.path().join("out")).expect("read").flatten())
            .map(|it| it.path())
            .collect()
    }

    /// What became of each item that succeeded.
    pub(crate) fn results(&self) -> Vec<Outcome> {
        let days = fs::read_dir(self.dir.join("done")).expect("read").flatten();
        let jobs = days.flat_map(|day| fs::read_dir(day.path()).expect("read").flatten());
        jobs.map(|job| Outcome::read(&job.path().join("result.json"))).collect()
    }
}

/// When an item arrived, started and ended, by its result.
pub(crate) struct Outcome {
    pub(crate) arrived: Timestamp,
    pub(crate) started: Timestamp,
    pub(crate) finished: Timestamp,
}

impl Outcome {
    fn read(file: &Path) -> Outcome {
        let text = fs::read(file).expect("a result");
        let result: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let time = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse().ok()).expect("a time");
        Outcome {
            arrived: time(&result["arrived_at"]),
            started: time(&result["attempts"][0]["started_at"]),
            finished: time(&result["finished_at"]),
        }
    }
}

pub(crate) fn stage(dir: &Path, count: usize) -> Vec<PathBuf> {
    fs::create_dir_all(dir).expect("made");
    let item = |n: usize| {
        let path = dir.join(format!("item-{n:07}"));
        fs::write(&path, b"x").expect("written");
        path
    };
    (0..count).map(item).collect()
}

pub(crate) fn drop_into(inbox: &Path, item: &Path) {
    fs::rename(item, inbox.join(item.file_name().expect("a name"))).expect("dropped");
}

/// The directories in a directory: by its link count where the file system keeps one, which costs one `stat`.
fn directories(dir: &Path) -> u64 {
    match fs::metadata(dir) {
        Ok(meta) if meta.nlink() >= 2 => meta.nlink() - 2,
        Ok(_) => fs::read_dir(dir).map_or(0, |entries| entries.count() as u64),
        Err(_) => 0,
    }
}

/// A running `gamdok run`.
pub(crate) struct Director {
    child: Child,
    /// From its start to its `READY=1`.
    pub(crate) ready_in: Duration,
}

impl Director {
    fn start(root: &Root, env: &[(&str, OsString)]) -> Director {
        let sockets = tempfile::tempdir().expect("a folder");
        let path = sockets.path().join("notify");
        let notify = UnixDatagram::bind(&path).expect("a socket");
        notify.set_read_timeout(Some(Duration::from_secs(120))).expect("set");
        let log = File::create(root.config_file.with_extension("log")).expect("a log file");
        let started = Instant::now();
        let child = gamdok()
            .args(["run", "-q", "--root"])
            .arg(&root.dir)
            .arg("--config")
            .arg(&root.config_file)
            .envs(env.iter().cloned())
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("shared"))
            .stderr(log)
            .spawn()
            .expect("gamdok starts");
        let mut text = [0; 4096];
        loop {
            let length = notify.recv(&mut text).unwrap_or_else(|error| {
                let log = root.config_file.with_extension("log");
                panic!("the director isn't ready after 120 s: {error}; its log is {}", log.display());
            });
            if text[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                break;
            }
        }
        Director { child, ready_in: started.elapsed() }
    }

    /// A number of kilobytes from `/proc/<pid>/status`.
    pub(crate) fn kilobytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the director runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }

    /// What each of its threads used so far.
    pub(crate) fn used(&self) -> Vec<Used> {
        let task = |task: fs::DirEntry| {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let status = read("status");
            let switches = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            Used {
                thread: read("comm").trim().to_owned(),
                cpu_ns: read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0),
                wakes: switches.and_then(|count| count.trim().parse().ok()).unwrap_or(0),
            }
        };
        fs::read_dir(self.proc("task")).expect("the director runs").flatten().map(task).collect()
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }

    /// Lets running items end, and waits for the end of it.
    pub(crate) fn stop(mut self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("signalled");
        let status = self.child.wait().expect("waited for");
        assert!(status.success(), "the director ended with {status}");
    }
}

/// One thread's use of the machine.
pub(crate) struct Used {
    pub(crate) thread: String,
    pub(crate) cpu_ns: u64,
    /// Times it went to sleep of its own will.
    pub(crate) wakes: u64,
}

/// Where workers of this comparison say when they began and ended: the comparison's own executable, started with
/// `--worker SOCKET`.
pub(crate) struct Clockings {
    socket: UnixDatagram,
    pub(crate) path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Clockings {
    pub(crate) fn new() -> Clockings {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("clock");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
        Clockings { socket, path, _dir: dir }
    }

    /// When the next worker began and ended.
    pub(crate) fn next(&self) -> io::Result<(u64, u64)> {
        let mut moments = [0; 16];
        // A wait with a limit isn't taken up again after an interruption (a stopped and continued process).
        while let Err(error) = self.socket.recv(&mut moments) {
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let (began, ended) = moments.split_at(8);
        let read = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or(0);
        Ok((read(began), read(ended)))
    }

    /// The words of such a worker.
    pub(crate) fn words(&self) -> [String; 3] {
        [least_worker().display().to_string(), "--worker".to_owned(), self.path.display().to_string()]
    }

    /// The same as TOML.
    pub(crate) fn command(&self) -> String {
        format!("{:?}", self.words())
    }
}

/// The smallest program that says when it began: built from C once; where that fails, this executable itself, whose
/// loading is then part of every figure.
fn least_worker() -> &'static Path {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    BUILT.get_or_init(|| {
        let to = base().join("least-worker");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/common/worker.c");
        fs::create_dir_all(base()).expect("the folder to measure in can be made");
        let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&to).arg(source).status();
        match built {
            Ok(status) if status.success() => to,
            _ => {
                println!("no C compiler that links statically: the workers are this executable, and load longer");
                std::env::current_exe().expect("this executable has a path")
            }
        }
    })
}

/// The worker's side, to be the first call in `main`: answers whether this process was one.
pub(crate) fn was_worker() -> bool {
    let began = now_ns();
    let mut words = std::env::args_os().skip(1);
    if words.next().is_none_or(|word| word != "--worker") {
        return false;
    }
    let (Some(path), Ok(socket)) = (words.next(), UnixDatagram::unbound()) else { return true };
    let mut moments = [0; 16];
    moments[..8].copy_from_slice(&began.to_le_bytes());
    // The end, as near to it as a process can say.
    moments[8..].copy_from_slice(&now_ns().to_le_bytes());
    let _ = socket.send_to(&moments, path);
    true
}

/// The value that a share of the samples doesn't exceed.
pub(crate) fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len().saturating_sub(1);
    samples.get((last as f64 * percent / 100.0).round() as usize).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(samples: &mut [f64]) -> f64 {
    percentile(samples, 50.0)
}

/// A line of two medians or percentiles and their ratio.
pub(crate) fn compare(what: &str, unit: &str, ours: f64, floor: f64) {
    println!("{what:<34} gamdok {ours:>9.3} {unit}   floor {floor:>9.3} {unit}   ratio {:>6.2}", ours / floor);
}
