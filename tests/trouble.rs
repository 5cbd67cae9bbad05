//! A full disk, a read-only remount, two directors, a missing root: nothing is lost and it goes on by itself.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{World, names, text};

fn copying() -> String {
    let command = json!(["sh", "-c", "cat \"$1\" >\"$2/copy\"", "sh", "{item}", "{out}"]);
    format!("[[route]]\nname = \"copy\"\nbackoff = \"10ms\"\ncommand = {command}\n")
}

const CPU: &str = "[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";

/// A small file system of our own; none without the privilege to mount one.
struct Mount {
    at: PathBuf,
}

impl Mount {
    fn small(size: &str) -> Option<(Mount, tempfile::TempDir)> {
        let base = tempfile::tempdir().expect("a folder");
        let at = base.path().join("mount");
        fs::create_dir(&at).expect("the mount point");
        let options = format!("size={size},mode=0755");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: this user can't mount a file system");
            return None;
        }
        let dir = tempfile::tempdir_in(&at).expect("a folder in it");
        // The mount point's own folder goes with the mount.
        let _ = base.keep();
        Some((Mount { at }, dir))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        if let Some(base) = self.at.parent() {
            let _ = fs::remove_dir_all(base);
        }
    }
}

fn fill(dir: &Path) -> PathBuf {
    let path = dir.join("filler");
    let mut file = fs::File::create(&path).expect("the filler");
    let block = vec![0; 1 << 16];
    while std::io::Write::write_all(&mut file, &block).is_ok() {}
    for step in [4096, 512, 1] {
        let block = vec![0; step];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
    path
}

#[test]
fn a_full_disk_pauses_claims_and_loses_nothing() {
    let Some((mount, dir)) = Mount::small("96m") else { return };
    let world = World::at(dir, CPU, &copying());
    let service = world.start();
    world.drop_file("before", b"1");
    world.until("the first is done", |status| status["counts"]["done"] == 1);
    let during = ["during-1", "during-2", "during-3"];
    for name in during {
        fs::write(world.scratch(name), b"2").expect("write the item");
    }
    fill(&mount.at);
    for name in during {
        fs::rename(world.scratch(name), world.inbox().join(name)).expect("drop the item");
    }
    world.until("it says so", |status| {
        let checks = status["health"].as_array().expect("health");
        checks.iter().any(|it| it["what"] == "space" && it["state"] != "ok")
    });
    fs::remove_file(mount.at.join("filler")).expect("make room");
    world.until("all are done by themselves", |status| status["counts"]["done"] == 4);
    for name in ["before", "during-1", "during-2", "during-3"] {
        let (dir, result) = world.result(name);
        assert_eq!(result["outcome"], "done", "{result:#}");
        assert_eq!(fs::read(dir.join(format!("item/{name}"))).expect("the payload").len(), 1);
    }
    world.assert_empty();
    assert_eq!(service.stop(), 0);
}

/// A small disk with ext4, which the kernel makes read-only when something is wrong with it. A remount by hand is refused as
/// long as a file is open for writing, and the director has some.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// None without the privilege, or without ext4's tools.
    fn new(base: &Path) -> Option<Disk> {
        let disk = Disk { image: base.join("image"), at: base.join("mount") };
        fs::create_dir(&disk.at).expect("the mount point");
        fs::File::create(&disk.image).and_then(|file| file.set_len(96 << 20)).expect("the image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).output();
        if !made.is_ok_and(|output| output.status.success()) || !disk.mount() || !disk.error_switch().exists() {
            eprintln!("skipped: this user can't make a disk that fails");
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at);
        mount.output().is_ok_and(|output| output.status.success())
    }

    fn error_switch(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
        let at = self.at.to_str().expect("a plain path");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(at)).expect("its line");
        let device = line.split(' ').next().and_then(|device| device.rsplit('/').next()).expect("its device");
        Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error")
    }

    fn fail(&self) {
        fs::write(self.error_switch(), "a test\n").expect("an error");
    }

    /// Only a check makes it writable again.
    fn repair(&self) {
        let gone = Command::new("umount").arg(&self.at).output().expect("umount");
        assert!(gone.status.success(), "{}", text(&gone.stderr));
        let checked = Command::new("e2fsck").args(["-f", "-y"]).arg(&self.image).output().expect("e2fsck");
        // 1: errors were corrected.
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{}", text(&checked.stdout));
        assert!(self.mount());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[test]
fn a_disk_that_turns_read_only_loses_nothing() {
    let base = tempfile::tempdir().expect("a folder");
    let Some(disk) = Disk::new(base.path()) else { return };
    let dir = tempfile::tempdir_in(&disk.at).expect("a folder in it");
    let gate = base.path().join("gate");
    let gate_command = json!(["sh", "-c", "until [ -e \"$1\" ]; do sleep 0.05; done", "sh", gate]);
    let routes = format!("[[route]]\nname = \"gate\"\nmatch = [\"gate-*\"]\ncommand = {gate_command}\n{}", copying());
    let world = World::at(dir, CPU, &routes);
    let service = world.start();
    world.drop_file("before", b"1");
    world.drop_file("gate-1", b"2");
    world.until("one is done and one runs", |status| status["counts"]["done"] == 1 && status["counts"]["running"] == 1);
    // What waits in the inbox, and what ends while nothing can be written.
    world.ok(&["pause"]);
    world.drop_file("waiting", b"3");
    world.until("it waits", |status| status["counts"]["ready"] == 1);
    // Its producer saw to it that it is durable.
    assert!(Command::new("sync").arg("-f").arg(world.inbox()).status().is_ok_and(|status| status.success()));
    disk.fail();
    world.ok(&["resume"]);
    fs::write(&gate, "").expect("open the gate");
    world.until("it says so", |status| {
        let checks = status["health"].as_array().expect("health");
        checks.iter().any(|it| it["what"] == "spool" && it["state"] == "failed")
    });
    let said =
        |log: &str| log.lines().filter(|line| line.contains("claims pause") || line.contains("failed what")).count();
    world.until("it was tried several times", |status| status["uptime_s"].as_f64() > Some(3.0));
    assert!(said(&service.log()) <= 4, "said on a change, not each second: {}", service.log());
    service.kill();
    disk.repair();
    let service = world.start();
    world.until("all are done", |status| status["counts"]["done"] == 3);
    assert_eq!(world.outcomes().len(), 3, "{:?}", world.outcomes());
    for (name, content) in [("before", "1"), ("gate-1", "2"), ("waiting", "3")] {
        let (dir, _) = world.result(name);
        assert_eq!(fs::read_to_string(dir.join("item").join(name)).expect("the payload"), content);
    }
    world.assert_empty();
    assert_eq!(service.stop(), 0);
    drop(world);
}

#[test]
fn an_intake_folder_that_somebody_made_a_link_is_not_followed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a link somebody else's");
        return;
    }
    let routes = format!("{}folder = \"in\"\nkind = \"any\"\n", copying());
    let world = World::new(&routes);
    let (folder, private) = (world.inbox().join("in"), world.scratch("private"));
    fs::create_dir(&private).expect("a folder");
    fs::write(private.join("key"), "secret").expect("what isn't theirs");
    let service = world.start();
    fs::remove_dir(&folder).expect("the folder that it made");
    std::os::unix::fs::symlink(&private, &folder).expect("a link");
    std::os::unix::fs::lchown(&folder, Some(65534), Some(65534)).expect("somebody else's");
    world.until("it says so", |status| {
        let checks = status["health"].as_array().expect("health");
        checks.iter().any(|it| it["message"].as_str().is_some_and(|it| it.contains("a link that somebody else made")))
    });
    assert_eq!(names(&private), ["key"], "nothing was taken");
    // The service's own is followed: somebody put the folder on purpose elsewhere.
    std::os::unix::fs::lchown(&folder, Some(0), Some(0)).expect("ours");
    world.until("it is taken", |status| status["counts"]["done"] == 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_second_director_is_told_who_holds_the_root() {
    let world = World::new(&copying());
    let service = world.start();
    let output = world.code(&["run", "--once"], 4);
    assert!(text(&output.stderr).contains(&service.pid().to_string()), "{}", text(&output.stderr));
    world.drop_file("one", b"x");
    world.until("done", |status| status["counts"]["done"] == 1);
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_director_that_is_stopped_is_named_instead_of_waited_for() {
    let world = World::new(&copying());
    let service = world.start();
    service.signal(19);
    let output = world.code(&["status"], 1);
    let said = text(&output.stderr);
    assert!(said.contains(&format!("(pid {}) doesn't answer", service.pid())), "{said}");
    service.signal(18);
    world.until("it goes on", |status| status["state"] == "running");
    assert_eq!(service.stop(), 0);
}

#[test]
fn two_directors_started_at_once_do_everything_once() {
    let world = World::new(&copying());
    for n in 0..50 {
        world.drop_file(format!("item-{n}"), b"x");
    }
    let mut both: Vec<_> = (0..2).map(|_| world.command(&["run", "--once"]).spawn().expect("start gamdok")).collect();
    let mut codes: Vec<i32> = both.iter_mut().map(|child| support::code(child.wait().expect("its end"))).collect();
    codes.sort();
    assert!(codes == [0, 4] || codes == [0, 0], "{codes:?}");
    assert_eq!(world.results().len(), 50);
    world.assert_empty();
}

#[test]
fn without_its_sentinel_a_folder_is_no_root_and_stays_untouched() {
    let world = World::new(&copying());
    fs::remove_file(world.root.join(".gamdok/root.json")).expect("remove the sentinel");
    let before = names(&world.root);
    let output = world.code(&["run", "--once"], 5);
    assert!(text(&output.stderr).contains("init"), "{}", text(&output.stderr));
    assert_eq!(names(&world.root), before);
    let empty = world.scratch("empty");
    fs::create_dir(&empty).expect("an empty folder");
    world.code(&["run", "--once", "--root", empty.to_str().expect("text")], 5);
    assert_eq!(names(&empty).len(), 0);
}

#[test]
fn a_log_that_nobody_reads_ends_nothing() {
    let world = World::new(&copying());
    let mut child =
        world.command(&["run", "--once"]).stderr(std::process::Stdio::piped()).spawn().expect("start gamdok");
    // Each line of the log fails from here on, as it does on a full disk.
    drop(child.stderr.take());
    for n in 0..5 {
        world.drop_file(format!("item-{n}"), b"x");
    }
    assert_eq!(support::code(child.wait().expect("its end")), 0);
    world.once();
    assert_eq!(world.results().len(), 5);
    world.assert_empty();
}

#[test]
fn outcomes_go_where_done_is_now() {
    let world = World::with(&format!("[inbox]\nsettle = \"100ms\"\n{CPU}"), &copying());
    let service = world.start();
    world.drop_file("before", b"1");
    world.until("the first is done", |status| status["counts"]["done"] == 1);
    fs::rename(world.root.join("done"), world.scratch("archive")).expect("move done/ away");
    world.drop_file("after", b"2");
    world.until("the second is taken", |_| !world.outcomes().is_empty());
    assert_eq!(world.outcomes(), ["after done -"]);
    assert_eq!(service.stop(), 0);
}

#[test]
fn outputs_that_cannot_be_published_keep_nobody_and_follow_by_themselves() {
    let world = World::new("");
    let (bad, good) = (world.scratch("bad"), world.scratch("good"));
    fs::write(&bad, b"in the way").expect("a file in the way");
    let route = |name: &str, into: &Path| {
        let route = copying().replace("name = \"copy\"", &format!("name = \"{name}\"\nmatch = [\"{name}*\"]"));
        format!("{route}publish = {}\n", json!(into.to_str()))
    };
    world.configure(CPU, &format!("{}{}", route("bad", &bad), route("good", &good)));
    let service = world.start();
    for name in ["bad-1", "good-1"] {
        world.drop_file(name, b"x");
    }
    let status = world.until("both are done and one is told of", |status| {
        let told = |check: &Value| check["what"] == "spool" && check["state"] == "degraded";
        status["counts"]["done"] == 2 && status["health"].as_array().is_some_and(|it| it.iter().any(told))
    });
    let words = status["health"].to_string();
    assert!(words.contains("bad-1") && words.contains(bad.to_str().expect("a path")), "{words}");
    assert_eq!(names(&good), ["good-1"]);
    service.stop();
    // The next start goes on with it.
    let service = world.start();
    fs::remove_file(&bad).expect("out of the way");
    world.until("all is well", |status| {
        let is_well = |check: &Value| check["what"] == "spool" && check["state"] == "ok";
        status["health"].as_array().is_some_and(|it| it.iter().any(is_well)) && bad.join("bad-1").is_dir()
    });
    assert_eq!(names(&bad), ["bad-1"]);
    assert_eq!(fs::read(bad.join("bad-1/copy")).expect("its output"), b"x");
    service.stop();
}

fn limit_files(pid: i32, soft: Option<u64>) -> rustix::process::Rlimit {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let pid = Pid::from_raw(pid).expect("a process");
    let limit = fs::read_to_string(format!("/proc/{}/limits", pid.as_raw_pid())).expect("its limits");
    let line = limit.lines().find(|line| line.starts_with("Max open files")).expect("the one on files");
    let hard = line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok());
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: soft.or(hard), maximum: hard }).expect("set its limit")
}

#[test]
fn a_director_out_of_open_files_says_so_and_goes_on_when_it_has_some() {
    let world = World::with(CPU, &copying());
    let service = world.start();
    world.drop_file("first", b"x");
    world.wait();
    let open = || fs::read_dir(format!("/proc/{}/fd", service.pid())).expect("its files").count() as u64;
    let mut least = open();
    let before = limit_files(service.pid(), Some(least + 5));
    let told = world.until("out of files", |status| {
        // Some of them were open for a moment only.
        if open() < least {
            least = open();
            limit_files(service.pid(), Some(least + 5));
        }
        let inbox = |it: &Value| it["what"] == "inbox" && it["state"] == "failed";
        status["health"].as_array().is_some_and(|all| all.iter().any(inbox))
    });
    assert!(told["health"].to_string().contains("too many open files"), "{told:#}");
    world.drop_file("second", b"y");
    assert_eq!(world.status()["counts"]["held"], 0);
    limit_files(service.pid(), before.current);
    world.until("done", |status| status["counts"]["done"] == 2);
    let well = |status: &Value| status["health"].as_array().is_some_and(|all| all.iter().all(|it| it["state"] == "ok"));
    world.until("well", |status| well(status) || !status["health"].to_string().contains("open files"));
    assert_eq!(service.stop(), 0);
}

#[test]
fn the_service_may_open_more_files_than_it_was_started_with_and_workers_may_not() {
    // It gets its limit just after its start.
    let script = "until test $(ulimit -Sn) = 24; do :; done; ulimit -Hn >$GAMDOK_OUT/hard";
    let command = json!(["sh", "-c", script]);
    let route = format!("[[route]]\nname = \"limit\"\ntimeout = \"60s\"\nretries = 0\ncommand = {command}\n");
    let world = World::with(CPU, &route);
    world.drop_file("item", b"x");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -Sn 24 && exec \"$0\" run --once", env!("CARGO_BIN_EXE_gamdok")]);
    command.env("GAMDOK_ROOT", &world.root);
    let output = command.output().expect("run gamdok");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let (dir, result) = world.result("item");
    assert_eq!(result["outcome"], "done", "{result}");
    let hard = fs::read_to_string(dir.join("out/hard")).expect("what the worker saw");
    assert_ne!(hard.trim(), "24", "it may raise it itself");
}

#[test]
fn a_claimed_directory_taken_away_under_a_running_job_stops_nothing() {
    let gated = json!(["sh", "-c", "case $GAMDOK_NAME in first) echo x >\"$GATE\"; read -r _ <\"$GATE\";; esac"]);
    let mut world = World::with(CPU, &format!("[[route]]\nname = \"gated\"\ncommand = {gated}\n"));
    let gate = world.scratch("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
    world.set("GATE", &gate);
    let service = world.start();
    world.drop_file("first", b"1");
    assert_eq!(fs::read(&gate).expect("it runs"), b"x\n");
    fs::remove_dir_all(world.root.join("claimed")).expect("take claimed/ away");
    world.drop_file("second", b"2");
    world.until("the next item goes through", |status| status["counts"]["done"] == 1);
    fs::write(&gate, "go\n").expect("let the first end");
    let ended = world.until("the first has ended", |status| status["counts"]["running"] == 0);
    assert!(ended["health"].as_array().is_some_and(|all| all.iter().all(|it| it["state"] != "failed")), "{ended:#}");
    world.wait();
    world.result("first");
    world.assert_empty();
    let log = service.log();
    assert_eq!(log.matches("claimed/ was removed or replaced").count(), 1, "{log}");
    assert!(log.contains("directory is gone from claimed/"), "{log}");
    assert_eq!(service.stop(), 0);
}

#[test]
fn what_was_claimed_waits_for_a_root_that_was_renamed() {
    // One slot: the second is claimed and waits. It would run by a path where another folder lies by then.
    let gated = json!([
        "sh",
        "-c",
        "case $GAMDOK_NAME in first) echo x >\"$GATE\"; read -r _ <\"$GATE\";; esac; cp \"$1\" \"$2\"",
        "sh",
        "{item}",
        "{out}"
    ]);
    let route = format!("[[route]]\nname = \"gated\"\nbackoff = \"10ms\"\noutputs = [\"*\"]\ncommand = {gated}\n");
    let mut world = World::with("[devices]\nuse = \"cpu\"\ncpu_slots = 1\n", &route);
    let gate = world.scratch("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
    world.set("GATE", &gate);
    let mut service = world.start();
    world.drop_file("first", b"1");
    assert_eq!(fs::read(&gate).expect("it runs"), b"x\n");
    world.drop_file("second", b"2");
    world.until("the second is claimed", |status| status["counts"]["claimed"] == 1);
    let away = world.root.with_extension("away");
    fs::rename(&world.root, &away).expect("rename the root");
    fs::create_dir(&world.root).expect("something else in its place");
    fs::write(&gate, "go\n").expect("let the first end");
    let told = |log: &str| log.contains("is not the one that was opened");
    while !told(&service.log()) {
        world.pause();
    }
    assert_eq!(names(&world.root), Vec::<std::ffi::OsString>::new(), "nothing is written there");
    for shelf in ["done", "failed"] {
        assert_eq!(names(&away.join(shelf)), Vec::<std::ffi::OsString>::new(), "nothing has ended");
    }
    fs::remove_dir(&world.root).expect("take it away");
    fs::rename(&away, &world.root).expect("put the root back");
    assert_eq!(fs::read(&gate).expect("the first runs again"), b"x\n");
    fs::write(&gate, "go\n").expect("let it end");
    world.until("both are done", |status| status["counts"]["done"] == 2);
    world.assert_empty();
    service.signal(15);
    assert_eq!(service.wait(), 0, "{}", service.log());
}
