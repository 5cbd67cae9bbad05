//! A root in an empty folder and the built binary, for the tests that drive it from outside. Nothing here sleeps: a
//! start is awaited through the service manager's socket, ends through the process, outcomes through `gamdok wait`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

/// A generous limit, reached only when something hangs:
/// longer than the slowest cadence. What no event told of shows in a scan, each minute.
pub const LIMIT: Duration = Duration::from_secs(150);

/// A root of its own, with its configuration.
pub struct World {
    pub dir: tempfile::TempDir,
    pub root: PathBuf,
    env: BTreeMap<OsString, OsString>,
}

impl World {
    /// Makes a root whose routes are `routes`, on two CPU slots.
    pub fn new(routes: &str) -> World {
        World::with("[devices]\nuse = \"cpu\"\ncpu_slots = 2\n", routes)
    }

    /// The same with other settings before the routes.
    pub fn with(settings: &str, routes: &str) -> World {
        let base = std::env::var_os("GAMDOK_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::Builder::new().prefix("gamdok-test-").tempdir_in(base).expect("a folder for the test");
        World::at(dir, settings, routes)
    }

    pub fn at(dir: tempfile::TempDir, settings: &str, routes: &str) -> World {
        let root = dir.path().join("root");
        let mut env = BTreeMap::new();
        env.insert("GAMDOK_LOCK_DIR".into(), dir.path().join("locks").into());
        fs::create_dir(dir.path().join("locks")).expect("the lock folder");
        let world = World { dir, root, env };
        world.ok(&["init"]);
        world.configure(settings, routes);
        world
    }

    pub fn configure(&self, settings: &str, routes: &str) {
        let fresh = self.root.join(".gamdok.toml.new");
        fs::write(&fresh, format!("{settings}\n{routes}")).expect("write the configuration");
        fs::rename(fresh, self.root.join("gamdok.toml")).expect("put it in place");
    }

    pub fn set(&mut self, key: &str, value: impl Into<OsString>) -> &mut World {
        self.env.insert(key.into(), value.into());
        self
    }

    pub fn unset(&mut self, key: &str) {
        self.env.remove(OsStr::new(key));
    }

    /// A file outside the inbox, on its file system.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn inbox(&self) -> PathBuf {
        self.root.join("inbox")
    }

    /// Puts a file into the inbox the right way: written elsewhere, renamed in.
    pub fn drop_file(&self, name: impl AsRef<OsStr>, content: &[u8]) {
        let outside = self.scratch(&format!("drop-{}", ulid::Ulid::generate()));
        fs::write(&outside, content).expect("write the item");
        fs::rename(&outside, self.inbox().join(name.as_ref())).expect("drop the item");
    }

    /// Puts a directory into the inbox.
    pub fn drop_dir(&self, name: impl AsRef<OsStr>, files: &[(&str, &[u8])]) {
        let outside = self.scratch(&format!("drop-{}", ulid::Ulid::generate()));
        fs::create_dir(&outside).expect("make the item");
        for (path, content) in files {
            let path = outside.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("make its folders");
            fs::write(path, content).expect("write its files");
        }
        fs::rename(&outside, self.inbox().join(name.as_ref())).expect("drop the item");
    }

    /// The command, with this world's root and environment.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gamdok"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        for key in ["GAMDOK_LOG", "GAMDOK_FAULT", "GAMDOK_FAULT_ERR", "CUDA_VISIBLE_DEVICES", "NOTIFY_SOCKET"] {
            command.env_remove(key);
        }
        command.env("GAMDOK_ROOT", &self.root).envs(&self.env);
        command
    }

    pub fn gamdok<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).output().expect("run gamdok")
    }

    /// Runs it and expects success.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.gamdok(args);
        assert!(output.status.success(), "gamdok {args:?}: {}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs it and expects this exit code.
    #[track_caller]
    pub fn code(&self, args: &[&str], code: i32) -> Output {
        let output = self.gamdok(args);
        let said = format!("{}\n{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "gamdok {args:?}: {said}");
        output
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let printed = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("gamdok {args:?}: {error} in {printed}"))
    }

    #[track_caller]
    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Runs until all that lies in the inbox has ended.
    #[track_caller]
    pub fn once(&self) -> Output {
        let output = self.gamdok(&["run", "--once"]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {}", output.status, text(&output.stderr));
        output
    }

    /// Starts the service and waits until it is ready.
    #[track_caller]
    pub fn start(&self) -> Service {
        self.start_with(&["run"])
    }

    #[track_caller]
    pub fn start_with(&self, args: &[&str]) -> Service {
        let path = self.scratch(&format!("ready-{}", ulid::Ulid::generate()));
        let socket = UnixDatagram::bind(&path).expect("bind the readiness socket");
        socket.set_read_timeout(Some(LIMIT)).expect("set its limit");
        let log = fs::File::options().create(true).append(true).open(self.scratch("log")).expect("open the log");
        let child = self
            .command(args)
            .env("NOTIFY_SOCKET", &path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start gamdok");
        let service = Service { child: Some(child), log: self.scratch("log") };
        let mut buffer = [0; 256];
        loop {
            let read = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("not ready: {error}\n{}", service.log()));
            if buffer[..read].starts_with(b"READY=1") {
                return service;
            }
        }
    }

    /// Waits until everything that isn't held has ended.
    #[track_caller]
    pub fn wait(&self) {
        let output = self.gamdok(&["wait"]);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {}", output.status, text(&output.stderr));
    }

    /// Waits until `status` satisfies the condition, by the director's own announcements.
    #[track_caller]
    pub fn until(&self, what: &str, mut condition: impl FnMut(&Value) -> bool) -> Value {
        let deadline = std::time::SystemTime::now() + LIMIT;
        loop {
            let status = self.status();
            if condition(&status) {
                return status;
            }
            assert!(std::time::SystemTime::now() < deadline, "never {what}: {status:#}");
            self.pause();
        }
    }

    /// A moment's wait for another process, without a sleep in this one.
    pub fn pause(&self) {
        let (_keep, never) = UnixDatagram::pair().expect("a pair of sockets");
        never.set_read_timeout(Some(Duration::from_millis(20))).expect("set its limit");
        let _ = never.recv(&mut [0]);
    }

    /// Every ended item's result.json, by its directory.
    pub fn results(&self) -> Vec<(PathBuf, Value)> {
        let mut found = Vec::new();
        for state in ["done", "failed"] {
            for job in subdirs(&self.root.join(state)).iter().flat_map(|day| subdirs(day)) {
                let result =
                    fs::read(job.join("result.json")).unwrap_or_else(|error| panic!("{}: {error}", job.display()));
                found.push((job, serde_json::from_slice(&result).expect("result.json is JSON")));
            }
        }
        found
    }

    /// The one result of the item of this name.
    #[track_caller]
    pub fn result(&self, name: &str) -> (PathBuf, Value) {
        let mut of_name: Vec<_> = self.results().into_iter().filter(|(_, result)| result["name"] == name).collect();
        assert_eq!(of_name.len(), 1, "outcomes of {name}: {:?}", self.results());
        of_name.remove(0)
    }

    /// Outcomes by name: `name outcome reason`.
    pub fn outcomes(&self) -> Vec<String> {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let line = |(_, result): &(PathBuf, Value)| {
            format!("{} {} {}", word(&result["name"]), word(&result["outcome"]), word(&result["reason"]))
        };
        let mut lines: Vec<String> = self.results().iter().map(line).collect();
        lines.sort();
        lines
    }

    /// Nothing is left on the way.
    #[track_caller]
    pub fn assert_empty(&self) {
        assert_eq!(names(&self.root.join("claimed")), Vec::<OsString>::new(), "left in claimed/");
        assert_eq!(names(&self.inbox()), Vec::<OsString>::new(), "left in inbox/");
    }
}

/// A running director. Dropped, it is killed.
pub struct Service {
    child: Option<Child>,
    log: PathBuf,
}

impl Service {
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("it runs").id() as i32
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a pid");
        let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal");
        rustix::process::kill_process(pid, signal).expect("send the signal");
    }

    /// Waits for its end; the exit code, or 128 + signal.
    pub fn wait(&mut self) -> i32 {
        let status = self.child.as_mut().expect("it runs").wait().expect("wait for gamdok");
        self.child = None;
        code(status)
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(mut self) -> i32 {
        self.signal(15);
        self.wait()
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.signal(9);
        self.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                eprintln!("--- the director's log\n{}", self.log());
            }
        }
    }
}

pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn names(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<OsString> =
        fs::read_dir(dir).map(|entries| entries.flatten().map(|entry| entry.file_name()).collect()).unwrap_or_default();
    names.sort();
    names
}

pub fn subdirs(dir: &Path) -> Vec<PathBuf> {
    names(dir).into_iter().map(|name| dir.join(name)).filter(|path| path.is_dir()).collect()
}

/// Names that have broken such tools before, each valid on Linux.
pub fn hostile_names() -> Vec<&'static OsStr> {
    let long: &'static [u8] = Box::leak(vec![b'x'; 255].into_boxed_slice());
    [
        b"plain.txt".as_slice(),
        b"with space.txt",
        b"-rf",
        b"--help",
        b"$(touch pwned).txt",
        b"`id`;rm *.txt",
        b"quote'\"quote.txt",
        b"new\nline.txt",
        b"tab\tand\x1b[31mred.txt",
        b"bad\xff\xfeutf8.txt",
        "b\u{202e}idi.txt".as_bytes(),
        "한국어 음성.wav".as_bytes(),
        b"{item}.txt",
        b"%s%n.txt",
        b"*",
        b"?",
        b"a~01ARZ3NDEKTSV4RRFFQ69G5FAV",
        b"result.json",
        b"back\\slash",
        long,
    ]
    .into_iter()
    .map(OsStr::from_bytes)
    .collect()
}

/// Where the Python helper lies that people are given.
pub const HELPER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python");

/// A resident worker in Python that speaks on fd 3 without the helper, with words and a `take` of its own.
pub fn bare_worker(own: &str) -> String {
    format!("{}\n{own}\nserve(take)\n", include_str!("bare.py"))
}

/// The numbers of the processes of such workers.
pub fn processes(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.scratch("processes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Cancels the item in the middle of its work: its process, whose number is in `pid`, ends, and nothing is left.
#[track_caller]
pub fn cancel_at_work(world: &World, name: &str) {
    let service = world.start();
    world.until("it is at work", |_| world.scratch("pid").exists());
    world.ok(&["cancel", name]);
    world.wait();
    assert_eq!(world.outcomes(), [format!("{name} cancelled cancelled")]);
    assert!(is_gone(world), "its process lives");
    assert_eq!(service.stop(), 0);
    world.assert_empty();
}

/// Whether the process whose number is in `pid` is dead, though nobody may have waited for it.
pub fn is_gone(world: &World) -> bool {
    let pid: i32 = fs::read_to_string(world.scratch("pid")).expect("its number").trim().parse().expect("a number");
    fs::read_to_string(format!("/proc/{pid}/stat")).ok().is_none_or(|stat| stat.contains(") Z "))
}

/// Writes a shell script into the world's folder and gives its path for a route's command.
pub fn script(world_dir: &Path, name: &str, body: &str) -> PathBuf {
    let path = world_dir.join(name);
    let mut file = fs::File::create(&path).expect("make the script");
    file.write_all(b"set -eu\n").expect("write it");
    file.write_all(body.as_bytes()).expect("write it");
    path
}
