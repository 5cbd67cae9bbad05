//! The stand-in for `libnvidia-ml.so.1`: builds it, writes the state it answers from, and reads what was called. A process
//! that is started with [`StandIn::env`] loads it as it would load the real one.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

pub const GIB: u64 = 1 << 30;

/// NVML's error numbers.
pub const NOT_SUPPORTED: i32 = 3;
pub const NO_PERMISSION: i32 = 4;
pub const DRIVER_NOT_LOADED: i32 = 9;
pub const LOST: i32 = 15;
pub const VERSION_MISMATCH: i32 = 18;
pub const UNKNOWN: i32 = 999;

/// NVML's event types.
pub const XID: u64 = 8;
pub const MIG_CHANGE: u64 = 256;

/// Which driver the library pretends to be of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Driver {
    Current,
    /// Before R510: older memory and process queries only.
    Old,
}

/// Everything the library answers from.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// What `nvmlInit` returns.
    pub init: i32,
    /// Every call hangs while this is set.
    pub hang: bool,
    /// A driver that was reloaded has another; whoever opened the library before must open it again.
    pub generation: u32,
    pub gpus: Vec<Gpu>,
}

#[derive(Clone, Debug)]
pub struct Gpu {
    pub uuid: String,
    pub name: String,
    pub pci: String,
    pub total: u64,
    pub used: u64,
    pub util: u32,
    /// 0 default, 1 exclusive thread, 2 prohibited, 3 exclusive process.
    pub mode: u32,
    pub temperature: u32,
    pub power_mw: u32,
    pub energy_mj: u64,
    pub throttle: u64,
    pub recovery: u32,
    pub ecc: u64,
    pub row_remap_failed: bool,
    /// `compute`, `mps` or `graphics`; PID; memory.
    pub processes: Vec<(&'static str, u32, u64)>,
    /// A query and the number it fails with: `memory`, `compute`, `handle`, … or `all`.
    pub errors: Vec<(&'static str, i32)>,
    /// Sequence number, type, data.
    pub events: Vec<(u64, u64, u64)>,
    /// None: MIG mode is off.
    pub instances: Option<Vec<Gpu>>,
}

impl Gpu {
    /// An idle GPU of 80 GiB: `GPU-<n> repeated`.
    pub fn idle(n: u8) -> Gpu {
        Gpu {
            uuid: format!("GPU-{n}0000000-0000-0000-0000-000000000000"),
            name: "Stand-in GPU".to_owned(),
            pci: format!("00000000:0{n}:00.0"),
            total: 80 * GIB,
            used: 4 << 20,
            util: 0,
            mode: 0,
            temperature: 40,
            power_mw: 50_000,
            energy_mj: 1,
            throttle: 0,
            recovery: 0,
            ecc: 0,
            row_remap_failed: false,
            processes: Vec::new(),
            errors: Vec::new(),
            events: Vec::new(),
            instances: None,
        }
    }

    pub fn instance(n: u8) -> Gpu {
        Gpu {
            uuid: format!("MIG-{n}0000000-0000-0000-0000-000000000000"),
            name: "Stand-in GPU MIG 1g.10gb".to_owned(),
            total: 10 * GIB,
            ..Gpu::idle(n)
        }
    }

    fn write(&self, kind: &str, text: &mut String) {
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let _ = writeln!(text, "{key} {value}");
        };
        line(kind, &self.uuid);
        line("name", &self.name);
        line("pci", &self.pci);
        line("total", &self.total);
        line("used", &self.used);
        line("util", &self.util);
        line("mode", &self.mode);
        line("temperature", &self.temperature);
        line("power", &self.power_mw);
        line("energy", &self.energy_mj);
        line("throttle", &self.throttle);
        line("recovery", &self.recovery);
        line("ecc", &self.ecc);
        line("rows", &format_args!("0 {}", u8::from(self.row_remap_failed)));
        line("mig", &u8::from(self.instances.is_some()));
        for (kind, pid, memory) in &self.processes {
            line("process", &format_args!("{kind} {pid} {memory}"));
        }
        for (what, code) in &self.errors {
            line("error", &format_args!("{what} {code}"));
        }
        for (sequence, kind, data) in &self.events {
            line("event", &format_args!("{sequence} {kind} {data}"));
        }
        for instance in self.instances.iter().flatten() {
            instance.write("instance", text);
        }
    }
}

/// A library with its state, in a folder of the test's own.
pub struct StandIn {
    dir: PathBuf,
}

impl StandIn {
    /// Uses the folder; its files need not exist yet.
    pub fn at(dir: &Path) -> StandIn {
        StandIn { dir: dir.to_owned() }
    }

    /// What a process needs in its environment to find the library and its state.
    pub fn env(&self, driver: Driver) -> Vec<(&'static str, OsString)> {
        vec![
            ("LD_LIBRARY_PATH", library(driver).into()),
            ("NVML_STANDIN_STATE", self.dir.join("state").into()),
            ("NVML_STANDIN_LOG", self.dir.join("calls").into()),
        ]
    }

    /// The whole state at once: no reader sees half of it.
    pub fn set(&self, state: &State) {
        let mut text = format!("init {}\nhang {}\ngeneration {}\n", state.init, u8::from(state.hang), state.generation);
        for gpu in &state.gpus {
            gpu.write("gpu", &mut text);
        }
        let new = self.dir.join("state.new");
        fs::write(&new, text).expect("the state can be written");
        fs::rename(new, self.dir.join("state")).expect("the state can be replaced");
    }

    /// The names of all functions called so far.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.join("calls")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// gamdok only ever reads.
    #[track_caller]
    pub fn assert_no_setter(&self) {
        let changes = |name: &&String| name.starts_with("SETTER") || name.contains("Set") && !name.contains("EventSet");
        let calls = self.calls();
        let setters: Vec<&String> = calls.iter().filter(changes).collect();
        assert!(setters.is_empty(), "setters were called: {setters:?}");
    }
}

/// A host's `/sys` and `/proc` as far as gamdok reads them; debug builds take its folder from `GAMDOK_SYSFS`.
pub struct Host {
    dir: PathBuf,
}

impl Host {
    /// Without any GPU, in the host's own PID namespace.
    pub fn at(dir: &Path) -> Host {
        let host = Host { dir: dir.to_owned() };
        host.write("proc/sys/kernel/osrelease", "6.8.0-generic\n");
        host.write("proc/meminfo", "MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n");
        // Its processes are the test's own user's, whoever that is.
        let uid = rustix::process::geteuid().as_raw();
        host.write("etc/passwd", &format!("tester:x:{uid}:{uid}::/:/bin/sh\n"));
        host.pid_namespace(4_026_531_836);
        host
    }

    pub fn env(&self) -> (&'static str, OsString) {
        ("GAMDOK_SYSFS", self.dir.clone().into())
    }

    pub fn pid_namespace(&self, inode: u64) {
        let link = self.dir.join("proc/self/ns/pid");
        fs::create_dir_all(link.parent().expect("it has one")).expect("a folder");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(format!("pid:[{inode}]"), link).expect("a link");
    }

    /// PCI lists a GPU.
    pub fn gpu(&self) {
        self.write("sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n");
        self.write("sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n");
    }

    /// A process that `/proc` knows.
    pub fn process(&self, pid: u32, name: &str) {
        self.write(
            &format!("proc/{pid}/stat"),
            &format!("{pid} ({name}) S 1 {pid} {pid} 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 12345\n"),
        );
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
}

/// The folder with the built library, the same for all tests of one version of its source.
pub fn library(driver: Driver) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/standin/nvml.c");
    let mut hash = DefaultHasher::new();
    include_str!("nvml.c").hash(&mut hash);
    let name = format!("standin-{driver:?}-{:016x}", hash.finish());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let built = folder.join("libnvidia-ml.so.1");
    if built.exists() {
        return folder;
    }
    fs::create_dir_all(&folder).expect("a folder for the library");
    // Other tests may be building it, too, also in this process: whoever is last replaces the same with the same.
    static BUILDS: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let build = BUILDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let own = folder.join(format!("{}-{build}.so", std::process::id()));
    let mut compiler = Command::new("cc");
    compiler.args(["-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-Wno-format-truncation"]);
    if driver == Driver::Old {
        compiler.arg("-DOLD_DRIVER");
    }
    let status = compiler.arg("-o").arg(&own).arg(source).status().expect("a C compiler (`cc`) can be started");
    assert!(status.success(), "the stand-in library can't be built");
    fs::rename(own, built).expect("the library can be put in its place");
    folder
}
