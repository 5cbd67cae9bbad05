//! `gamdok top` in a pseudo-terminal: what it draws, what its keys do to a director, and how it leaves the terminal.

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;
use support::{LIMIT, World, code, text};

/// Into the other screen and back, the cursor hidden and shown.
const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
const SHOW: &str = "\x1b[?25h";

/// A `gamdok top` and the terminal it runs in.
struct Top {
    child: Option<Child>,
    near: File,
    /// Kept open, so that the terminal outlives the program in it.
    far: OwnedFd,
    parts: Receiver<Vec<u8>>,
    screen: Screen,
    /// All that was written.
    raw: String,
}

impl Top {
    fn start(world: &World, args: &[&str], size: (u16, u16)) -> Top {
        let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&near).expect("grant it");
        unlockpt(&near).expect("unlock it");
        let name = ptsname(&near, Vec::new()).expect("its name");
        let name = name.to_str().expect("a name");
        let far: OwnedFd = File::options().read(true).write(true).open(name).expect("open it").into();
        // In a session of its own, under a shell that outlives it: as it ends, the kernel takes the terminal from all others.
        let script = r#""$@"; code=$?; printf '<end>'; read line; exit $code"#;
        let top = world.command(&[&["top"], args].concat());
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", "sh", "-c", script, "sh"]).arg(top.get_program()).args(top.get_args());
        command.current_dir(world.dir.path()).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        for (key, value) in top.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        let end = || Stdio::from(far.try_clone().expect("another handle"));
        resize(&far, size);
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("start top");
        let near = File::from(near);
        let mut reader = near.try_clone().expect("another handle");
        let (tell, parts) = channel();
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut part) {
                if tell.send(part[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = Screen::new(size);
        Top { child: Some(child), near, far, parts, screen, raw: String::new() }
    }

    fn press(&mut self, keys: &str) {
        self.near.write_all(keys.as_bytes()).expect("press a key");
    }

    fn take(&mut self, part: &[u8]) {
        self.raw += &text(part);
        self.screen.write(part);
    }

    /// Waits until the screen satisfies the condition.
    #[track_caller]
    fn until(&mut self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let shown = self.screen.text();
            if condition(&shown) {
                return shown;
            }
            match self.parts.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(part) => self.take(&part),
                Err(_) => panic!("never {what}:\n{shown}\n{:?}", self.raw),
            }
        }
    }

    #[track_caller]
    fn until_shows(&mut self, words: &str) -> String {
        self.until(words, |shown| shown.contains(words))
    }

    /// The shell's only child.
    fn pid(&self) -> i32 {
        let shell = self.child.as_ref().expect("it runs").id();
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).expect("its children");
        children.trim().parse().expect("one child")
    }

    fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_raw(self.pid()).expect("a pid");
        let signal = rustix::process::Signal::from_named_raw(signal).expect("a signal");
        rustix::process::kill_process(pid, signal).expect("send the signal");
    }

    /// Waits for the end, and checks that the terminal is as it was.
    #[track_caller]
    fn ended(mut self) -> (i32, String) {
        while !self.raw.ends_with("<end>") {
            let part = self.parts.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("it never ends: {:?}", self.raw));
            self.take(&part);
        }
        let last = |what: &str| self.raw.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {:?}", self.raw));
        assert!(last(ENTER) < last(LEAVE), "the other screen is left");
        assert!(last("\x1b[?25l") < last(SHOW), "the cursor is shown");
        let modes = tcgetattr(&self.far).expect("its modes").local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "lines and echo are back");
        self.press("\n");
        let status = self.child.take().expect("it runs").wait().expect("wait for the shell");
        (code(status), self.raw.clone())
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn resize(terminal: impl std::os::fd::AsFd, (width, height): (u16, u16)) {
    let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("set its size");
}

/// As much of a terminal as is needed: text, places, and clearing.
struct Screen {
    cells: Vec<Vec<char>>,
    at: (usize, usize),
    kept: Vec<u8>,
}

impl Screen {
    fn new((width, height): (u16, u16)) -> Screen {
        Screen { cells: vec![vec![' '; width.into()]; height.into()], at: (0, 0), kept: Vec::new() }
    }

    fn text(&self) -> String {
        self.cells.iter().map(|line| line.iter().collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    fn write(&mut self, part: &[u8]) {
        self.kept.extend_from_slice(part);
        let bytes = std::mem::take(&mut self.kept);
        let whole = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(wrong) => std::str::from_utf8(&bytes[..wrong.valid_up_to()]).expect("checked"),
        };
        let mut rest = whole;
        while let Some(c) = rest.chars().next() {
            if c != '\x1b' {
                self.put(c);
                rest = &rest[c.len_utf8()..];
                continue;
            }
            let Some(end) = rest.get(2..).and_then(|rest| rest.find(|c: char| c.is_ascii_alphabetic())) else { break };
            let (arguments, what) = (&rest[2..2 + end], &rest[2 + end..=2 + end]);
            self.obey(arguments, what);
            rest = &rest[3 + end..];
        }
        self.kept = bytes[whole.len() - rest.len()..].to_vec();
    }

    fn put(&mut self, c: char) {
        let (x, y) = self.at;
        match c {
            '\r' => self.at.0 = 0,
            '\n' => self.at.1 += 1,
            c => {
                if let Some(cell) = self.cells.get_mut(y).and_then(|line| line.get_mut(x)) {
                    *cell = c;
                }
                self.at.0 += 1;
            }
        }
    }

    fn obey(&mut self, arguments: &str, what: &str) {
        let number = |n: usize| arguments.split(';').nth(n).and_then(|it| it.parse::<usize>().ok()).unwrap_or(1);
        match what {
            "H" => self.at = (number(1) - 1, number(0) - 1),
            "J" => self.cells.iter_mut().for_each(|line| line.fill(' ')),
            _ => {}
        }
    }
}

/// A route whose items say something and run until a file appears beside the world.
fn lasting(world_dir: &std::path::Path) -> String {
    let body = format!(
        "echo began $2; until [ -e {}/go-$2 ]; do sleep 0.05; done; echo goes on; case $2 in bad*) exit 7;; esac",
        world_dir.display()
    );
    let command = json!(["sh", "-c", body, "sh", "{item}", "{name}"]);
    format!("[[route]]\nname = \"work\"\nretries = 0\ncommand = {command}\n")
}

fn world(settings: &str) -> World {
    let world = World::with(settings, "");
    world.configure(settings, &lasting(world.dir.path()));
    world
}

const SIMULATED: &str = "[devices]\nuse = \"sim\"\nsim = { gpus = 2, memory = \"80GiB\" }\n";

fn go(world: &World, name: &str) {
    std::fs::write(world.scratch(&format!("go-{name}")), "").expect("let it go on");
}

#[test]
fn it_shows_what_runs_and_leaves_the_terminal_as_it_was() {
    let world = world(SIMULATED);
    let service = world.start();
    for name in ["one.wav", "two.wav", "three.wav"] {
        world.drop_file(name, b"x");
    }
    let mut top = Top::start(&world, &[], (100, 30));
    let shown = top.until("all three are listed", |shown| {
        shown.contains("RUNNING 2") && shown.contains("WAITING 1") && shown.contains("simulated GPUs")
    });
    assert!(shown.contains("DEVICES 3") && shown.contains("leased"), "{shown}");
    assert!(shown.contains("one.wav") && shown.contains("three.wav"), "{shown}");
    // Of the two that run the first, and its log as it grows.
    top.press("l");
    let name = top.until_shows("began ");
    let name = name.lines().find_map(|line| line.strip_prefix("began ")).expect("its name").to_owned();
    assert!(!name.is_empty());
    go(&world, &name);
    top.until_shows("goes on");
    top.until_shows("done");
    top.press("q");
    top.until("the third runs", |shown| shown.contains("RUNNING 2") && shown.contains("WAITING 0"));
    top.press("q");
    let (code, raw) = top.ended();
    assert_eq!(code, 0);
    assert!(raw.contains("\x1b[38;5;"), "there were colours");
    for name in ["one.wav", "two.wav", "three.wav"] {
        go(&world, name);
    }
    world.wait();
    assert_eq!(service.stop(), 0);
}

#[test]
fn keys_act_on_the_director_after_a_yes() {
    let world = world(SIMULATED);
    let mut service = world.start();
    world.drop_file("bad.wav", b"x");
    let mut top = Top::start(&world, &["--no-color"], (100, 30));
    top.until_shows("RUNNING 1");
    top.press("p");
    top.until_shows("Pause?");
    assert_eq!(world.status()["state"], "running", "not without a yes");
    top.press("y");
    top.until_shows("PAUSED");
    assert_eq!(world.status()["state"], "paused");
    top.press("p");
    top.until("it goes on", |shown| !shown.contains("PAUSED") && shown.contains("running again"));
    assert_eq!(world.status()["state"], "running");
    // The first device, out and in again.
    top.press("ho");
    top.until_shows("Cordon GPU 0?");
    top.press("y");
    top.until_shows("cordoned by hand");
    top.press("o");
    top.until_shows("takes work again");
    // What failed, again.
    go(&world, "bad.wav");
    top.until("it failed", |shown| shown.contains("FAILED 1") && shown.contains("RUNNING 0"));
    std::fs::remove_file(world.scratch("go-bad.wav")).expect("let it wait again");
    top.press("\tr");
    top.until("it runs again", |shown| shown.contains("RUNNING 1") && !shown.contains("FAILED 1"));
    // What runs, no more.
    top.press("c");
    top.until_shows("Cancel bad.wav?");
    top.press("y");
    top.until("it is cancelled", |shown| shown.contains("1 cancelled") && shown.contains("RUNNING 0"));
    top.press("d");
    top.until_shows("Drain?");
    top.press("y");
    top.until_shows("no director is running");
    assert_eq!(service.wait(), 0);
    // It waits for the next one.
    let service = world.start();
    top.until("it sees the new one", |shown| shown.contains("· running ·") && !shown.contains("no director"));
    top.press("\x03");
    let (code, raw) = top.ended();
    assert_eq!(code, 0);
    assert!(!raw.contains("8;5;"), "no colours: {raw:?}");
    service.stop();
}

#[test]
fn signals_and_other_sizes_do_it_no_harm() {
    let world = world(SIMULATED);
    let service = world.start();
    for signal in [15, 1, 2] {
        let mut top = Top::start(&world, &[], (100, 30));
        top.until_shows("nothing runs");
        top.signal(signal);
        assert_eq!(top.ended().0, 0, "signal {signal}");
    }
    let mut top = Top::start(&world, &[], (100, 30));
    top.until_shows("nothing runs");
    for (size, expected) in [((40, 10), "needs 60×16, has 40×10"), ((160, 45), "nothing waits"), ((80, 24), "d drain")]
    {
        top.screen = Screen::new(size);
        resize(&top.far, size);
        top.until_shows(expected);
    }
    service.kill();
    top.until_shows("no director is running");
    top.press("\x1b");
    assert_eq!(top.ended().0, 0);
}

#[test]
fn without_a_terminal_there_is_one_frame_or_a_clear_error() {
    let world = world(SIMULATED);
    let output = world.code(&["top"], 2);
    assert!(text(&output.stderr).contains("`top` needs a terminal"), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("--once"), "{}", text(&output.stderr));
    world.code(&["top", "--json"], 2);
    world.code(&["top", "--root", "nowhere"], 5);
    let frame = world.ok(&["top", "--once"]);
    assert!(frame.contains("no director is running") && frame.contains("RUNNING 0"), "{frame}");
    let service = world.start();
    world.drop_file("one.wav", b"x");
    world.until("it runs", |status| status["counts"]["running"] == 1);
    let frame = world.ok(&["top", "--once"]);
    assert!(frame.contains("RUNNING 1") && frame.contains("one.wav") && frame.contains("DEVICES 3"), "{frame}");
    assert!(!frame.contains('\x1b'), "{frame:?}");
    go(&world, "one.wav");
    world.wait();
    service.stop();
}
