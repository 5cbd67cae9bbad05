//! Attempts with real processes: `/bin/sh` scripts in a job's directory.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use rustix::fs::{FlockOperation, flock};
use ulid::Ulid;

use super::*;
use crate::proc::{ProcStat, boot_id};
use crate::units::Clock;

/// Long enough for the slowest machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

struct Job {
    root: tempfile::TempDir,
    launch: Option<Launch>,
}

impl Job {
    /// A job whose command is a shell script.
    fn sh(script: &str) -> Job {
        Job::new(&["/bin/sh", "-c", script], "item.txt")
    }

    fn new(argv: &[&str], item: impl AsRef<OsStr>) -> Job {
        adopt_orphans().unwrap();
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().to_owned();
        fs::create_dir(dir.join("item")).unwrap();
        fs::create_dir(dir.join("out")).unwrap();
        let item = PathBuf::from(item.as_ref());
        fs::write(dir.join("item").join(&item), "payload").unwrap();
        let job = JobId(Ulid::generate());
        let inherited = std::env::vars_os().filter(|(key, _)| key == "PATH");
        let own = [
            ("GAMDOK_ID", OsString::from(job.to_string())),
            ("GAMDOK_ITEM", dir.join("item").join(&item).into()),
            ("GAMDOK_OUT", dir.join("out").into()),
        ];
        let path = dir.join(".root");
        Root::init(&path).unwrap();
        let launch = Launch {
            job,
            attempt: 1,
            on: Vec::new(),
            root: Arc::new(Root::open(&path).unwrap()),
            argv: argv.iter().map(OsString::from).collect(),
            env: inherited.chain(own.map(|(key, value)| (key.into(), value))).collect(),
            cwd: dir.clone(),
            dir,
            item,
            signature: None,
            device_locks: Vec::new(),
            cpus: Vec::new(),
            timeout: None,
            kill_grace: PATIENCE,
            outputs: Vec::new(),
            max_log: Bytes(1 << 20),
            split: None,
        };
        Job { root, launch: Some(launch) }
    }

    fn with(mut self, change: impl FnOnce(&mut Launch)) -> Job {
        change(self.launch.as_mut().unwrap());
        self
    }

    fn start(&mut self) -> Running {
        let launch = self.launch.take().unwrap();
        let (events, heard) = bounded(4);
        Running { handle: start(launch, events, Clock::start()), heard, seen: Vec::new() }
    }

    /// From start to report.
    fn run(&mut self) -> (Report, Vec<Event>) {
        self.start().report()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("attempt-1.log")).unwrap()
    }

    /// A number that the script wrote into a file.
    fn number(&self, name: &str) -> i32 {
        fs::read_to_string(self.path(name)).unwrap().trim().parse().unwrap()
    }
}

struct Running {
    handle: Handle,
    heard: Receiver<Event>,
    seen: Vec<Event>,
}

impl Running {
    /// Waits for the progress with this message.
    fn await_progress(&mut self, wanted: &str) {
        loop {
            let event = self.heard.recv_timeout(PATIENCE).unwrap();
            let found = matches!(&event, Event::Progress { message: Some(message), .. } if message == wanted);
            assert!(!matches!(event, Event::Ended(_)), "{event:?}");
            self.seen.push(event);
            if found {
                return;
            }
        }
    }

    /// Waits for the report, and that it is the last.
    fn report(mut self) -> (Report, Vec<Event>) {
        loop {
            match self.heard.recv_timeout(PATIENCE).unwrap() {
                Event::Ended(report) => {
                    assert!(self.heard.recv_timeout(PATIENCE).is_err(), "the report is the last word");
                    return (*report, self.seen);
                }
                event => self.seen.push(event),
            }
        }
    }
}

fn is_alive(pid: i32) -> bool {
    ProcStat::read(pid).is_some_and(|stat| !stat.is_dead())
}

/// Waits for a lock to be free: a process that another test is just starting holds a copy of each descriptor until it runs
/// its program.
fn is_let_go(what: &str, free: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !free() {
        assert!(std::time::Instant::now() < deadline, "{what}: the lock stays held");
        std::thread::yield_now();
    }
}

/// Says something on fd 3; `ready` is how the tests know that a script has come to a place.
const SAY: &str = r#"say() { printf '{"type":"progress","message":"%s"}\n' "$1" >&3; }; "#;

#[test]
fn every_way_a_process_ends_is_told() {
    let check = |script: &str, end: End| {
        let (report, events) = Job::sh(script).run();
        assert_eq!(report.end, end, "{script}");
        assert!(report.pid.is_some() && report.started_at.is_some() && report.started_at <= Some(report.ended_at));
        assert!(matches!(events[..], [Event::Started { pid, .. }] if pid == report.pid), "{events:?}");
    };
    check("exit 0", End::Exited(0));
    check("exit 65", End::Exited(65));
    check("kill -9 $$", End::Signalled(9));
    check("kill -11 $$", End::Signalled(11));
}

#[test]
fn the_log_holds_both_streams_and_stdin_is_empty() {
    let mut job = Job::sh("echo out; echo err >&2; cat; pwd");
    let (report, _) = job.run();
    assert_eq!(report.end, End::Exited(0));
    assert_eq!(job.log(), format!("out\nerr\n{}\n", job.root.path().display()));
    assert_eq!(fs::metadata(job.path("attempt-1.log")).unwrap().permissions().mode() & 0o007, 0);
}

#[test]
fn over_time_it_is_asked_then_killed() {
    let grace = |grace: Duration| {
        move |launch: &mut Launch| {
            launch.timeout = Some(Duration::from_millis(200));
            launch.kill_grace = grace;
        }
    };
    let (report, _) = Job::sh("exec sleep 1000").with(grace(PATIENCE)).run();
    assert_eq!(report.end, End::TimedOut { exit_code: None, signal: Some(15) });

    let (report, _) = Job::sh("trap 'exit 3' TERM; sleep 1000 & wait").with(grace(PATIENCE)).run();
    assert_eq!(report.end, End::TimedOut { exit_code: Some(3), signal: None });

    let deaf = "trap '' TERM; while :; do sleep 1000; done";
    let (report, _) = Job::sh(deaf).with(grace(Duration::from_millis(100))).run();
    assert_eq!(report.end, End::TimedOut { exit_code: None, signal: Some(9) });

    // One that was stopped can't hear that it should end.
    let (report, _) = Job::sh("kill -STOP $$").with(grace(PATIENCE)).run();
    assert_eq!(report.end, End::TimedOut { exit_code: None, signal: Some(15) });
}

#[test]
fn a_stop_ends_it_with_its_reason() {
    let mut job = Job::sh(&format!("{SAY} trap 'exit 0' TERM; say ready; sleep 1000 & wait"));
    let mut running = job.start();
    running.await_progress("ready");
    running.handle.stop(StopWhy::Shutdown);
    running.handle.stop(StopWhy::Cancelled);
    let (report, _) = running.report();
    let End::Stopped { why, exit_code: Some(0), signal: None } = report.end else { panic!("{:?}", report.end) };
    // The second one may find it gone already.
    assert!(matches!(why, StopWhy::Shutdown | StopWhy::Cancelled));
}

#[test]
fn a_stop_before_the_start_starts_nothing() {
    let job = Job::sh("touch ran");
    // The lock is held, so the attempt waits for it, and the stop surely comes first.
    let lock = File::create(job.path("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let mut job = job;
    let running = job.start();
    running.handle.stop(StopWhy::DeviceLost);
    let (report, events) = running.report();
    assert_eq!(report.end, End::Stopped { why: StopWhy::DeviceLost, exit_code: None, signal: None });
    assert!(events.is_empty() && report.pid.is_none() && !job.path("ran").exists());
}

#[test]
fn a_lock_that_something_holds_keeps_a_second_process_away() {
    let mut job = Job::sh("touch ran");
    let lock = File::create(job.path("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let (report, _) = job.run();
    assert!(matches!(&report.end, End::Io(why) if why.contains("is held")), "{:?}", report.end);
    assert!(!job.path("ran").exists());
}

#[test]
fn what_cannot_start_says_why_and_whose_fault_it_is() {
    let check = |argv: &[&str], change: fn(&mut Launch), words: &str| {
        let (report, events) = Job::new(argv, "item").with(change).run();
        let End::NotStarted { error, host: false } = &report.end else { panic!("{:?}", report.end) };
        assert!(error.contains(words), "{error}");
        assert!(events.is_empty() && report.pid.is_none());
    };
    let same = |_: &mut Launch| {};
    check(&["surely-no-such-program"], same, "none of the folders of PATH");
    check(&["/nonexistent/program"], same, "cannot start `/nonexistent/program`: No such file");
    check(&["/etc/passwd"], same, "Permission denied");
    check(&["/bin/true"], |launch| launch.cwd = "/nonexistent".into(), "`/nonexistent` isn't there");
    check(&[], same, "a closure of the program that claimed it");
    let script = |head: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, head).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path.into_os_string().into_string().unwrap())
    };
    let (_dir, path) = script("echo no first line\n");
    check(&[&path], same, "#!");
    let (_dir, path) = script("#!/nonexistent/interpreter\n");
    check(&[&path], same, "interpreter");
}

#[test]
fn an_item_that_changed_or_went_starts_nothing() {
    let check = |change: fn(&mut Launch), expected: End| {
        let mut job = Job::sh("touch ran").with(change);
        let (report, _) = job.run();
        assert_eq!(report.end, expected);
        assert!(!job.path("ran").exists());
    };
    let remove = |launch: &mut Launch| fs::remove_file(launch.dir.join("item").join(&launch.item)).unwrap();
    check(remove, End::ItemMissing);
    let rewrite = |launch: &mut Launch| {
        let path = launch.dir.join("item").join(&launch.item);
        launch.signature = crate::inbox::signature::of_path(&path).ok();
        fs::write(path, "something else").unwrap();
    };
    check(rewrite, End::ItemChanged);
}

#[test]
fn background_children_and_daemons_end_with_it() {
    let check = |name: &str, script: &str| {
        let mut job = Job::sh(&format!("{SAY} {script}\nuntil [ -s pid ]; do sleep 0.01; done"));
        job = job.with(|launch| launch.kill_grace = Duration::from_millis(200));
        let (report, _) = job.run();
        assert_eq!(report.end, End::Exited(0), "{name}: {}", job.log());
        assert!(!is_alive(job.number("pid")), "{name} lives");
        is_let_go(name, || !is_held(job.root.path()));
    };
    check("a background child", "sh -c 'echo $$ >pid; exec sleep 1000' &");
    check("a deaf one", "sh -c 'trap \"\" TERM; echo $$ >pid; while :; do sleep 1000; done' &");
    check("a daemon", "(setsid sh -c 'echo $$ >pid; exec sleep 1000' &)");
    let closed = "3>&- 4>&- </dev/null >/dev/null 2>&1";
    check("a daemon that closed all", &format!("(setsid sh -c 'echo $$ >pid; exec sleep 1000' {closed} &)"));
    let wiped = "(env -i setsid /bin/sh -c 'echo $$ >pid; exec /bin/sleep 1000' 4>&- &)";
    check("a daemon with children", "(setsid sh -c 'sleep 1000 & echo $! >pid; wait' &)");
    // Told from other jobs' only when no other runs, so it may have to wait for its end.
    let mut job = Job::sh(&format!("{wiped}; until [ -s pid ]; do sleep 0.01; done"));
    job.run();
    let pid = job.number("pid");
    for _ in 0..1000 {
        if !is_alive(pid) {
            return;
        }
        Job::sh("sleep 0.01").run();
    }
    panic!("a daemon with a wiped environment lives");
}

#[test]
fn others_processes_are_left_alone() {
    let mut other = Job::sh(&format!("{SAY} (setsid sleep 1000 & echo $! >pid); say ready; sleep 1000"));
    let mut other_running = other.start();
    other_running.await_progress("ready");
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();

    Job::sh("(setsid sleep 1000 &)").run();
    assert!(is_alive(other.number("pid")), "another job's daemon");
    assert!(child.try_wait().unwrap().is_none(), "a child that others started");

    other_running.handle.stop(StopWhy::Cancelled);
    other_running.report();
    assert!(!is_alive(other.number("pid")));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_it_says_on_fd_3_is_heard() {
    let check = |script: &str, end: End, said: &str| {
        let (report, _) = Job::sh(script).run();
        assert_eq!(report.end, end, "{script}");
        let word = match report.said {
            None => String::new(),
            Some(Said::Done { result }) => {
                format!("done {}", result.map_or("-".into(), |result| result.get().to_owned()))
            }
            Some(Said::Failed { error, retry }) => format!("failed {error} {retry}"),
        };
        assert_eq!(word, said, "{script}");
    };
    check(r#"echo '{"type":"done","result":{"b": 1.0,"a":2}}' >&3"#, End::Exited(0), r#"done {"b": 1.0,"a":2}"#);
    check(r#"printf '{"type":"done","id":"%s"}' $GAMDOK_ID >&$(echo 3)"#, End::Exited(0), "done -");
    check(r#"echo '{"type":"failed","error":"bad","retry":false}' >&3"#, End::Exited(0), "failed bad false");
    check(
        r#"echo '{"type":"failed","error":"bad"}
{"type":"done"}' >&3; exit 4"#,
        End::Exited(4),
        "failed bad true",
    );
    check(r#"exec 3>&-; exit 0"#, End::Exited(0), "");
    check(r#"echo '{"type":"whatever","id":9}' >&3"#, End::Exited(0), "");
    // Cut off by its own death.
    check(r#"printf '{"type":"done"' >&3; kill -9 $$"#, End::Signalled(9), "");
}

#[test]
fn nonsense_on_fd_3_fails_the_attempt() {
    let check = |script: &str, words: &str| {
        let (report, _) = Job::sh(script).with(|launch| launch.kill_grace = Duration::ZERO).run();
        assert!(matches!(&report.end, End::Protocol(what) if what.contains(words)), "{:?}", report.end);
    };
    check("echo hello >&3; exec sleep 1000", "not a JSON object");
    check("echo hello >&3", "not a JSON object");
    check(r#"printf '{"type":"done"' >&3"#, "EOF");
    check(r#"echo '{"type":"done","id":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}' >&3; exec sleep 1000"#, "wasn't given");
    check("exec tr '\\0' x </dev/zero >&3", "more than 1048576 bytes");
}

#[test]
fn a_daemon_that_keeps_fd_3_and_talks_on_holds_nobody_up() {
    let chatter = r#"while :; do echo '{"type":"heartbeat"}' >&3; done"#;
    let script =
        format!(r#"(setsid sh -c '{}' &); echo '{{"type":"done","result":1}}' >&3"#, chatter.replace('\'', "'\\''"));
    let (report, _) = Job::sh(&script).run();
    assert_eq!(report.end, End::Exited(0));
    assert!(matches!(report.said, Some(Said::Done { result: Some(_) })), "{:?}", report.said);
}

#[test]
fn counters_are_summed_exactly_however_fast_they_come() {
    let script = r#"i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo '{"type":"count","name":"pages","by":7}
{"type":"count","name":"errors","by":1}
{"type":"progress","fraction":0.5,"message":"'$i'"}'; done >&3"#;
    let (report, events) = Job::sh(script).run();
    assert_eq!(report.end, End::Exited(0));
    let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
    for event in &events {
        if let Event::Count { name, by, .. } = event {
            *sums.entry(name).or_default() += by;
        }
    }
    assert_eq!(sums, BTreeMap::from([("errors", 3000.0), ("pages", 21000.0)]));
    let last = events.iter().rev().find_map(|event| match event {
        Event::Progress { message, .. } => message.clone(),
        _ => None,
    });
    assert_eq!(last.as_deref(), Some("3000"), "the last progress is never lost");
    assert!(events.len() < 1000, "{} events", events.len());
}

#[test]
fn it_inherits_its_locks_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let device = |name: &str| Arc::new(OwnedFd::from(File::create(root.path().join(name)).unwrap()));
    let locks = vec![device("one"), device("two")];
    let kept = locks.clone();
    for lock in &locks {
        flock(lock, FlockOperation::LockExclusive).unwrap();
    }
    let script =
        format!("{SAY} ls -l /proc/self/fd | sed -n 's/.* \\([0-9]*\\) -> /\\1 /p' >fds; say ready; sleep 1000");
    let mut job = Job::sh(&script).with(|launch| launch.device_locks = locks);
    let mut running = job.start();
    running.await_progress("ready");
    let dir = job.root.path().display();
    let fds = fs::read_to_string(job.path("fds")).unwrap();
    let mut lines: Vec<String> = fds.lines().map(str::to_owned).collect();
    // The listing's own folder and its output.
    lines.retain(|line| !line.contains("/proc/") && !line.contains("/fds") && !line.contains("pipe:"));
    let devices = root.path().display();
    let expected = [
        "0 /dev/null".to_owned(),
        format!("2 {dir}/attempt-1.log"),
        "3 socket:".to_owned(),
        format!("4 {dir}/lock"),
        format!("5 {devices}/one"),
        format!("6 {devices}/two"),
    ];
    let shorter: Vec<&str> = lines.iter().map(|line| line.split_inclusive("socket:").next().unwrap()).collect();
    assert_eq!(shorter, expected);

    // The director's own copies are gone or go; the worker holds on.
    drop(kept);
    assert!(is_held(job.root.path()));
    let record = LockRecord::read(job.root.path()).unwrap().unwrap();
    assert_eq!((record.attempt, record.boot_id.as_str()), (1, boot_id()));
    assert_eq!(ProcStat::read(record.pid).unwrap().start_ticks, record.start_ticks);
    running.handle.stop(StopWhy::Cancelled);
    running.report();
    for name in ["one", "two"] {
        let file = File::open(root.path().join(name)).unwrap();
        is_let_go(name, || flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}

#[test]
fn hostile_names_arrive_byte_for_byte() {
    for name in [&b"-rf *"[..], b"a\nb\t'\"$(touch ran)`", b"\xff\xfe.wav", "\u{202e}gpj.exe".as_bytes(), &[b'x'; 255]]
    {
        let name = OsStr::from_bytes(name);
        let mut job = Job::new(&["/bin/sh", "-c", "cat \"$1\" && printf %s \"$1\" >seen", "sh"], name);
        let path = job.path("item").join(name);
        job = job.with(|launch| launch.argv.push(path.clone().into()));
        let (report, _) = job.run();
        assert_eq!(report.end, End::Exited(0));
        assert_eq!(fs::read(job.path("seen")).unwrap(), path.as_os_str().as_bytes());
        assert_eq!(job.log(), "payload");
        assert!(!job.path("ran").exists());
    }
}

#[test]
fn a_huge_log_keeps_its_start_and_its_end() {
    let mut job = Job::sh("echo first; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo last");
    job = job.with(|launch| launch.max_log = Bytes(100_000));
    let (report, _) = job.run();
    assert_eq!(report.end, End::Exited(0));
    let log = job.log();
    assert!(log.starts_with("first\nxxx") && log.ends_with("xxx\nlast\n"));
    assert!(log.contains("bytes of this log were cut out here") && log.len() < 100_200, "{}", log.len());
}

#[test]
fn declared_outputs_count_only_after_a_success() {
    let check = |script: &str, missing: &[&str]| {
        let outputs = |launch: &mut Launch| launch.outputs = vec!["*.txt".to_owned(), "model/*".to_owned()];
        let (report, _) = Job::sh(script).with(outputs).run();
        assert_eq!(report.missing_outputs, missing, "{script}");
    };
    check("cd \"$GAMDOK_OUT\"; mkdir model; echo x | tee a.txt >model/b", &[]);
    check("echo x >\"$GAMDOK_OUT/a.txt\"", &["model/*"]);
    check("exit 1", &[]);
    check(r#"echo '{"type":"failed","error":"x"}' >&3"#, &[]);
}

#[test]
fn a_failure_whose_log_speaks_of_memory_says_so() {
    let check = |script: &str, expected: bool| {
        let (report, _) = Job::sh(script).run();
        assert_eq!(report.out_of_memory, expected, "{script}");
    };
    check("echo 'RuntimeError: CUDA out of memory.' >&2; exit 1", true);
    check("echo 'RuntimeError: CUDA out of memory.' >&2; exit 0", false);
    check("echo 'RuntimeError: CUDA error' >&2; exit 1", false);
}

#[test]
fn it_stays_on_the_cores_it_is_given() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let last = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut job = Job::sh("sed -n 's/Cpus_allowed_list:.//p' /proc/self/status");
    job = job.with(|launch| launch.cpus = vec![last, 1_000_000]);
    job.run();
    assert_eq!(job.log().trim(), last.to_string());
}

#[test]
fn a_job_without_its_directory_is_an_error_and_not_a_panic() {
    let mut job = Job::sh("exit 0").with(|launch| {
        launch.dir = Path::new("/nonexistent").to_owned();
        launch.item = "/etc/passwd".into();
    });
    let (report, _) = job.run();
    assert!(matches!(&report.end, End::Io(why) if why.contains("/nonexistent")), "{:?}", report.end);
}
