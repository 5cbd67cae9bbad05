//! The screens of a made-up host, as they are drawn, and what keys do to it.

use jiff::Timestamp;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::app::{App, Event};
use super::ask::{Ask, Effect};
use super::draw::draw;
use super::facts::{Facts, JobFacts, Log, ShownJob};
use super::paint::Paint;
use super::terminal::line;
use crate::api::view::{
    Counts, DeviceView, DirectorState, HeldView, Listed, Paths, ProgressView, RunningView, Shown, Status,
};
use crate::devices::{DeviceId, DeviceKind, HostMode};
use crate::health::{Check, What};
use crate::item::{Attempt, Reason};

fn at(time: &str) -> Timestamp {
    format!("2026-11-22T{time}Z").parse().expect("a time")
}

pub(super) fn listed(state: &str, name: &str) -> Listed {
    Listed {
        state: state.to_owned(),
        name: name.to_owned(),
        route: Some("transcribe".to_owned()),
        arrived_at: Some(at("11:58:00")),
        ..Listed::empty()
    }
}

fn gpu(index: u32, verdict: &str, reason: &str) -> DeviceView {
    DeviceView {
        id: format!("GPU-00000000-0000-0000-0000-{index:012}"),
        index: Some(index),
        kind: DeviceKind::Gpu,
        name: "NVIDIA H100 80GB HBM3".to_owned(),
        verdict: verdict.to_owned(),
        reason: reason.to_owned(),
        slots: 1,
        taken: u32::from(verdict == "leased"),
        leases: Vec::new(),
        memory_total: Some(80 << 30),
        memory_used: Some(u64::from(index) << 33),
        utilization: Some(index * 13 % 101),
        temperature: Some(41 + index),
        power_w: Some(80.0 + f64::from(index * 37)),
    }
}

fn running(n: u32, name: &str, on: u32) -> RunningView {
    RunningView {
        id: format!("01ARZ3NDEKTSV4RRFFQ69G5F{n:02}"),
        job: format!("job~01ARZ3NDEKTSV4RRFFQ69G5F{n:02}"),
        name: name.to_owned(),
        route: "transcribe".to_owned(),
        devices: vec![gpu(on, "", "").id],
        attempt: n,
        pid: Some(31_337),
        started_at: Some(at("11:56:40")),
        estimate: None,
        progress: Some(ProgressView { fraction: Some(0.425), message: Some("layer 3".to_owned()) }),
    }
}

fn failed(n: u32, name: &str, reason: &str) -> Listed {
    Listed {
        id: Some(format!("01BRZ3NDEKTSV4RRFFQ69G5F{n:02}")),
        job: Some(format!("job~01BRZ3NDEKTSV4RRFFQ69G5F{n:02}")),
        attempts: 3,
        finished_at: Some(at("11:00:00")),
        reason: Some(reason.to_owned()),
        ..listed("failed", name)
    }
}

/// A host with something of everything.
pub(super) fn facts() -> Facts {
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: Some(4711),
        root: "/data/root".to_owned(),
        mode: HostMode::Gpu,
        state: DirectorState::Running,
        uptime_s: Some(7_500.0),
        counts: Counts { ready: 2, retrying: 1, running: 2, held: 1, done: 1_000, failed: 2, ..Counts::default() },
        devices: vec![
            gpu(0, "free", "idle"),
            gpu(1, "leased", "1 of 1 slot taken"),
            gpu(2, "busy", "3.1 GiB held by pid 411 jupyter (bob), 0 % for 52 min"),
            DeviceView {
                utilization: None,
                temperature: None,
                power_w: None,
                memory_used: None,
                ..gpu(3, "unhealthy", "Xid 79: off the bus")
            },
        ],
        running: vec![running(1, "interview-2026-11-22-first-part.wav", 1), {
            let two = running(2, "b.wav", 1);
            RunningView { progress: None, pid: None, ..two }
        }],
        residents: Vec::new(),
        held: vec![HeldView {
            name: "x.pdf".to_owned(),
            reason: "no route matches it".to_owned(),
            since: at("10:00:00"),
        }],
        health: vec![
            Check::ok(What::Spool),
            Check::degraded(What::LeaseTest, "files of other users can't be tested: settle decides alone"),
        ],
        api: None,
        counters: Default::default(),
    };
    let again = Listed {
        id: Some("01CRZ3NDEKTSV4RRFFQ69G5F01".to_owned()),
        job: Some("d~01CRZ3NDEKTSV4RRFFQ69G5F01".to_owned()),
        attempts: 1,
        reason: Some("tried again in 40 s".to_owned()),
        ..listed("retrying", "d.wav")
    };
    let ready = |name: &str| Listed { reason: Some("no device is free".to_owned()), ..listed("ready", name) };
    Facts {
        at: at("12:00:00"),
        status,
        waiting: vec![again, ready("e.wav"), Listed { folder: "low".to_owned(), ..ready("감독.wav") }],
        held: vec![Listed { route: None, reason: Some("no route matches it".to_owned()), ..listed("held", "x.pdf") }],
        failed: vec![failed(1, "g.wav", "exit"), failed(2, "h.wav", "out-of-memory")],
    }
}

fn app_with(size: (u16, u16), facts: Facts) -> App {
    let mut app = App::new(size, Paint { colour: true }, at("11:59:00"));
    // A minute of a busy host.
    for second in 0..60 {
        let now = at("11:59:00") + jiff::SignedDuration::from_secs(second);
        let mut then = facts.clone();
        then.status.counts.done = facts.status.counts.done.saturating_sub(60 - second as u64);
        then.at = now;
        for (n, device) in then.status.devices.iter_mut().enumerate() {
            device.utilization = device.utilization.map(|_| (second as u32 * 3 + n as u32 * 20) % 101);
        }
        app.take_in(Event::Facts(Box::new(then)), now);
        app.tick(now);
    }
    app.take_in(Event::Facts(Box::new(facts)), at("12:00:00"));
    app.tick(at("12:00:00"));
    app
}

fn shown(app: &App) -> String {
    let mut terminal = Terminal::new(TestBackend::new(app.size.0, app.size.1)).expect("a terminal");
    terminal.draw(|frame| draw(app, frame)).expect("draw");
    let buffer = terminal.backend().buffer();
    (0..app.size.1).map(|y| line(buffer, y) + "\n").collect()
}

/// Every cell's colours.
fn colours(app: &App) -> Vec<Color> {
    let mut terminal = Terminal::new(TestBackend::new(app.size.0, app.size.1)).expect("a terminal");
    terminal.draw(|frame| draw(app, frame)).expect("draw");
    terminal.backend().buffer().content().iter().flat_map(|cell| [cell.fg, cell.bg]).collect()
}

fn press(app: &mut App, keys: &str) -> Option<Effect> {
    let mut last = None;
    for key in keys.split(' ') {
        let code = match key {
            "esc" => KeyCode::Esc,
            "enter" => KeyCode::Enter,
            "tab" => KeyCode::Tab,
            "down" => KeyCode::Down,
            "pgdn" => KeyCode::PageDown,
            "end" => KeyCode::End,
            "erase" => KeyCode::Backspace,
            key => KeyCode::Char(key.chars().next().expect("a key")),
        };
        last = app.take_in(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)), at("12:00:00"));
    }
    last
}

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (200, 50)];

#[test]
fn a_busy_host_fits_its_screen() {
    for (width, height) in SIZES {
        let text = shown(&app_with((width, height), facts()));
        insta::assert_snapshot!(format!("busy_{width}x{height}"), text);
    }
}

#[test]
fn many_devices_and_ten_thousand_that_wait_fit_their_screen() {
    let mut many = facts();
    many.status.devices = (0..16).map(|index| gpu(index, "leased", "1 of 1 slot taken")).collect();
    many.status.running = (0..16).map(|n| running(n, &format!("recording-{n:04}.wav"), n)).collect();
    many.status.counts = Counts { ready: 10_000, running: 16, failed: 300, ..Counts::default() };
    let row =
        |n: u32| Listed { reason: Some("no device is free".to_owned()), ..listed("ready", &format!("{n:05}.wav")) };
    many.waiting = (0..1000).map(row).collect();
    many.failed = (0..99).map(|n| failed(n, &format!("bad-{n}.wav"), "exit")).collect();
    many.held = Vec::new();
    for (width, height) in SIZES {
        let text = shown(&app_with((width, height), many.clone()));
        insta::assert_snapshot!(format!("many_{width}x{height}"), text);
    }
    let mut app = app_with((80, 24), many);
    press(&mut app, "tab end");
    let text = shown(&app);
    assert!(text.contains("00999.wav"), "{text}");
    assert!(text.contains("/10000, the rest: `gamdok list`"), "{text}");
}

#[test]
fn names_may_hold_anything() {
    let mut hostile = facts();
    let names = [
        "a\u{1b}[2J\u{1b}]0;owned\u{7}.wav",
        "b\u{202e}gpj.exe",
        "new\nline\ttab.wav",
        "감독이름이아주길다감독이름이아주길다감독이름이아주길다.wav",
        "e\u{301}\u{301}\u{301}combining.wav",
        "👩‍👩‍👧‍👦👍🏽.wav",
        "",
    ];
    hostile.waiting =
        names.iter().map(|name| Listed { reason: Some((*name).to_owned()), ..listed("ready", name) }).collect();
    hostile.held = names.iter().map(|name| listed("held", name)).collect();
    hostile.failed = names.iter().map(|name| failed(1, name, name)).collect();
    hostile.status.running =
        names.iter().map(|name| RunningView { route: (*name).to_owned(), ..running(1, name, 1) }).collect();
    hostile.status.devices[0].name = names[0].to_owned();
    hostile.status.devices[2].reason = names[1].to_owned();
    hostile.status.root = format!("/data/{}", names[2]);
    hostile.status.health = vec![Check::failed(What::Inbox, names[0])];
    for size in [(60, 16), (80, 24), (120, 40), (200, 50), (61, 17)] {
        let mut app = app_with(size, hostile.clone());
        for keys in ["j", "tab", "tab", "tab", "tab", "c", "n", "/"] {
            press(&mut app, keys);
            let text = shown(&app);
            let harmless = |c: char| {
                c == '\n' || !(c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'))
            };
            assert!(text.chars().all(harmless), "{size:?} {keys}: {text:?}");
            let widest = text.lines().map(unicode_width::UnicodeWidthStr::width).max();
            assert!(widest <= Some(size.0.into()), "{size:?}: {text}");
        }
    }
    insta::assert_snapshot!("hostile_120x40", shown(&app_with((120, 40), hostile)));
}

#[test]
fn every_size_can_be_drawn() {
    for width in (0..=210).step_by(7) {
        for height in (0..=52).step_by(3) {
            let mut app = app_with((0, 0), facts());
            app.take_in(Event::Resized(width, height), at("12:00:00"));
            let text = shown(&app);
            if width >= 60 && height >= 16 {
                assert!(text.contains("RUNNING 2"), "{width}×{height}: {text}");
            }
            for keys in ["?", "l", "/"] {
                press(&mut app, keys);
                shown(&app);
                press(&mut app, "esc");
            }
        }
    }
    let mut app = app_with((0, 0), facts());
    app.take_in(Event::Resized(40, 10), at("12:00:00"));
    assert_eq!(shown(&app).lines().next(), Some("needs 60×16, has 40×10 · q leaves"));
}

#[test]
fn without_colours_there_are_none() {
    let mut hostile = facts();
    hostile.status.health.push(Check::failed(What::Space, "the disk is full"));
    let mut app = app_with((120, 40), hostile);
    assert!(colours(&app).iter().any(|colour| *colour != Color::Reset));
    app.paint = Paint { colour: false };
    for keys in ["j", "tab", "c", "n", "p", "y", "?", "esc", "l", "esc", "/", "esc"] {
        press(&mut app, keys);
        assert!(colours(&app).iter().all(|colour| *colour == Color::Reset), "{keys}");
    }
}

#[test]
fn a_director_that_is_gone_is_said_to_be() {
    let mut app = App::new((80, 24), Paint::default(), at("12:00:00"));
    assert!(shown(&app).contains("reading …"));
    app.take_in(Event::Lost("no answer".to_owned()), at("12:00:00"));
    assert!(shown(&app).contains("no answer · trying again for 0s"));
    app.take_in(Event::Facts(Box::new(facts())), at("12:00:00"));
    assert!(!shown(&app).contains("no answer"));
    app.take_in(Event::Lost("no answer".to_owned()), at("12:00:01"));
    app.take_in(Event::Lost("no answer".to_owned()), at("12:00:09"));
    assert!(shown(&app).contains("no answer · trying again for 8s"), "{}", shown(&app));
    assert!(shown(&app).contains("interview"), "what was known stays");
    let mut stopped = facts();
    stopped.status = Status {
        state: DirectorState::Stopped,
        pid: None,
        uptime_s: None,
        devices: Vec::new(),
        running: Vec::new(),
        health: Vec::new(),
        ..stopped.status
    };
    app.take_in(Event::Facts(Box::new(stopped)), at("12:00:10"));
    insta::assert_snapshot!("stopped_80x24", shown(&app));
    for key in ["p", "d"] {
        assert_eq!(press(&mut app, key), None);
        assert!(shown(&app).contains("start one with `gamdok run`"), "{key}");
    }
}

#[test]
fn what_hurts_asks_first() {
    let check = |keys: &str, question: &str, expected: Option<Ask>| {
        let mut app = app_with((120, 40), facts());
        let effect = press(&mut app, keys);
        let said = shown(&app);
        assert!(said.contains(question), "{keys}: {said}");
        if question.is_empty() {
            return assert_eq!(effect, expected.map(Effect::Ask), "{keys}");
        }
        assert_eq!(effect, None, "{keys}");
        assert_eq!(press(&mut app, "x"), None, "{keys}");
        assert_eq!(press(&mut app, "y"), None, "{keys}: the question is over");
        let mut app = app_with((120, 40), facts());
        press(&mut app, keys);
        assert_eq!(press(&mut app, "y"), expected.map(Effect::Ask), "{keys}");
    };
    let (job, gone) = ("job~01ARZ3NDEKTSV4RRFFQ69G5F01".to_owned(), "job~01BRZ3NDEKTSV4RRFFQ69G5F01".to_owned());
    check("p", "Pause? Nothing new starts until p again. y/n", Some(Ask::Pause));
    check("d", "Drain? What runs ends, nothing new is taken, then the director ends. y/n", Some(Ask::Drain));
    check("c", "Cancel interview-2026-11-22-first-part.wav? What it did so far is lost. y/n", Some(Ask::Cancel(job)));
    check("tab down c", "Cancel e.wav? y/n", Some(Ask::Cancel("./e.wav".to_owned())));
    check("tab end c", "Cancel 감독.wav? y/n", Some(Ask::Cancel("low/감독.wav".to_owned())));
    check("h o", "Cordon GPU 0? It takes no more work until o again. y/n", Some(Ask::Cordon(gpu(0, "", "").id)));
    check("tab tab r", "", Some(Ask::Retry(gone)));
}

#[test]
fn what_makes_no_sense_says_so() {
    let check = |keys: &str, expected: &str| {
        let mut app = app_with((120, 40), facts());
        assert_eq!(press(&mut app, keys), None, "{keys}");
        let said = shown(&app);
        assert!(said.contains(expected), "{keys}: {said}");
        assert_eq!(press(&mut app, "y"), None, "{keys}");
    };
    check("r", "interview-2026-11-22-first-part.wav is running: only what has ended can be retried");
    check("tab tab c", "g.wav has ended: failed");
    check("o", "select a device first");
    check("h c", "select an item first");
    check("h r", "select an item that failed first");
    check("h l", "nothing of this director runs on it");
}

#[test]
fn what_is_undone_by_the_same_key_needs_no_question() {
    let mut paused = facts();
    paused.status.state = DirectorState::Paused;
    paused.status.devices[0] = gpu(0, "unhealthy", "cordoned by hand");
    let mut app = app_with((120, 40), paused.clone());
    assert!(shown(&app).contains("p resume"));
    assert_eq!(press(&mut app, "p"), Some(Effect::Ask(Ask::Resume)));
    assert_eq!(press(&mut app, "h o"), Some(Effect::Ask(Ask::Uncordon(gpu(0, "", "").id))));
    paused.status.state = DirectorState::Draining;
    let mut app = app_with((120, 40), paused);
    assert_eq!(press(&mut app, "p"), None);
    assert!(shown(&app).contains("it is draining: it ends once nothing runs"));
}

#[test]
fn answers_are_shown_for_a_while() {
    let mut app = app_with((120, 40), facts());
    app.take_in(Event::Answered(Err("there is no such job".to_owned())), at("12:00:00"));
    app.tick(at("12:00:07"));
    assert!(shown(&app).contains("there is no such job"));
    app.tick(at("12:00:08"));
    assert!(!shown(&app).contains("there is no such job"));
}

#[test]
fn names_can_be_looked_for() {
    let mut app = app_with((80, 24), facts());
    press(&mut app, "/ E . W");
    let text = shown(&app);
    assert!(text.contains("WAITING 1 of 3") && text.contains("/E.W▏"), "{text}");
    assert!(text.contains("e.wav") && !text.contains("g.wav") && !text.contains("d.wav"), "{text}");
    assert!(text.contains("no such name"), "{text}");
    press(&mut app, "enter");
    // The pane with rows has the selection, and letters are keys again.
    press(&mut app, "c");
    assert_eq!(press(&mut app, "y"), Some(Effect::Ask(Ask::Cancel("./e.wav".to_owned()))));
    assert_eq!(press(&mut app, "esc"), None, "the first Esc ends the filter");
    assert!(shown(&app).contains("g.wav"));
    assert_eq!(press(&mut app, "esc"), Some(Effect::Leave));
}

#[test]
fn a_selection_stays_with_its_item_while_others_come_and_go() {
    let mut app = app_with((80, 24), facts());
    press(&mut app, "tab down");
    let mut later = facts();
    later.waiting.insert(0, listed("ready", "new.wav"));
    later.waiting.remove(1);
    later.waiting.insert(0, listed("ready", "newer.wav"));
    app.take_in(Event::Facts(Box::new(later)), at("12:00:01"));
    press(&mut app, "c");
    assert_eq!(press(&mut app, "y"), Some(Effect::Ask(Ask::Cancel("./e.wav".to_owned()))));
}

#[test]
fn an_item_is_looked_at_with_its_attempts_and_its_log() {
    let first = Attempt {
        devices: vec![DeviceId(gpu(1, "", "").id)],
        started_at: Some(at("11:50:00")),
        ended_at: Some(at("11:50:03")),
        exit_code: Some(7),
        reason: Some(Reason::Exit),
        counted: true,
        peak_gpu_memory: Some(3 << 30),
        ..Attempt::planned(1)
    };
    let second = Attempt {
        started_at: Some(at("11:56:40")),
        ended_at: None,
        exit_code: None,
        reason: None,
        peak_gpu_memory: None,
        ..Attempt { n: 2, ..first.clone() }
    };
    let job = "job~01ARZ3NDEKTSV4RRFFQ69G5F01";
    let listed =
        Listed { id: Some(job[4..].to_owned()), job: Some(job.to_owned()), ..listed("running", "interview.wav") };
    let paths = Paths { dir: Some(format!("/data/root/claimed/{job}")), ..Paths::default() };
    let shown_job = Shown { listed, paths, result: None, history: vec![first, second] };
    let lines: Vec<String> = (0..100).map(|n| format!("line {n}: {}", "x".repeat(n))).collect();
    let told = |name: &str| {
        Event::Job(Box::new(JobFacts {
            name: name.to_owned(),
            shown: Ok(Box::new(ShownJob(shown_job.clone()))),
            log: Some(Log { attempt: 2, lines: lines.clone() }),
        }))
    };
    let mut app = app_with((80, 24), facts());
    assert_eq!(press(&mut app, "l"), Some(Effect::Follow(Some(job.to_owned()))));
    assert!(shown(&app).contains("reading …"));
    app.take_in(told("another"), at("12:00:00"));
    assert!(shown(&app).contains("reading …"), "what comes late of another job isn't shown");
    app.take_in(told(job), at("12:00:00"));
    insta::assert_snapshot!("job_80x24", shown(&app));
    press(&mut app, "k");
    assert!(shown(&app).contains("scrolled: G follows again"));
    press(&mut app, "g");
    assert!(shown(&app).contains("line 0:"));
    press(&mut app, "G");
    assert!(shown(&app).contains("LOG of attempt 2\n"), "{}", shown(&app));
    press(&mut app, "c");
    assert_eq!(press(&mut app, "y"), Some(Effect::Ask(Ask::Cancel(job.to_owned()))));
    assert_eq!(press(&mut app, "q"), Some(Effect::Follow(None)));
    assert!(shown(&app).contains("RUNNING 2"));
    assert_eq!(press(&mut app, "q"), Some(Effect::Leave));
}

#[test]
fn help_is_on_one_screen() {
    let mut app = app_with((80, 24), facts());
    press(&mut app, "?");
    insta::assert_snapshot!("help_80x24", shown(&app));
    assert_eq!(press(&mut app, "q"), None, "any key leads back");
    assert!(shown(&app).contains("RUNNING 2"));
}
