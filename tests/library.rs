//! A director within a program: closures beside commands, by the same rules and under the same root as the service.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use gamdok::Director;
use gamdok::rules::{Backend, Rules, Sim};
use gamdok::service::{Builder, Ended, Error, Event, Failure, How, Outcome, Route};
use serde_json::{Value, json};

/// A generous limit: reached only when something hangs.
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World { dir: tempfile::Builder::new().prefix("gamdok-test-").tempdir().expect("a folder for the test") }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn builder(&self) -> Builder {
        Director::builder().root(self.root()).init().cpu_slots(2)
    }

    /// The command line, on this root.
    fn gamdok(&self, args: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gamdok"));
        let output = command.args(args).arg("--json").arg("--root").arg(self.root()).output().expect("run gamdok");
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
    }
}

fn result(ended: &Ended) -> Value {
    let text = fs::read(ended.dir.join("result.json")).expect("a result");
    serde_json::from_slice(&text).expect("JSON")
}

fn log(ended: &Ended, attempt: u32) -> String {
    fs::read_to_string(ended.dir.join(format!("attempt-{attempt}.log"))).expect("a log")
}

#[test]
fn a_closure_and_a_command_leave_the_same_behind() {
    let world = World::new();
    let count = Route::closure("count", |job| {
        use std::io::Write as _;
        let text = fs::read_to_string(job.item())?;
        writeln!(job.log(), "attempt {} at {}", job.attempt(), job.name().display())?;
        job.count("lines", text.lines().count() as f64);
        fs::write(job.out().join("text"), text.to_uppercase())?;
        Ok(Outcome::with(json!({ "bytes": text.len(), "on": job.device().name() })))
    });
    let copy = Route::command("copy", ["cp", "-v", "{item}", "{out}/text"]).outputs(["text"]);
    let director = world.builder().route(count.matching(["*.txt"]).cpu()).route(copy.cpu()).start().expect("it starts");
    let closure = director.submit_bytes("a.txt", b"one\ntwo\n").expect("submitted").wait().expect("an outcome");
    let command = director.submit_bytes("a.bin", b"one\n").expect("submitted").wait().expect("an outcome");

    assert_eq!((closure.outcome, closure.route.as_deref(), closure.attempts), (How::Done, Some("count"), 1));
    assert_eq!(closure.result, Some(json!({ "bytes": 8, "on": "cpu" })));
    assert_eq!(fs::read_to_string(closure.dir.join("out/text")).expect("an output"), "ONE\nTWO\n");
    assert_eq!(log(&closure, 1), "attempt 1 at a.txt\n");
    assert_eq!(result(&closure)["counters"], json!({ "lines": 2 }));
    assert!(command.is_done() && log(&command, 1).contains("text"));
    // Both as a service has them: the same fields, and no exit code where there was no process.
    let (ours, theirs) = (result(&closure), result(&command));
    let fields = |of: &Value| of["attempts"][0].as_object().expect("an attempt").keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&ours), fields(&theirs));
    // A closure runs in this very process.
    assert_eq!(ours["attempts"][0]["pid"], json!(std::process::id()));
    assert_eq!((&ours["attempts"][0]["exit_code"], &theirs["attempts"][0]["exit_code"]), (&Value::Null, &json!(0)));

    let (code, status) = world.gamdok(&["status"]);
    assert_eq!((code, &status["state"], &status["pid"]), (Some(0), &json!("running"), &json!(std::process::id())));
    let summary = director.join().expect("it ends");
    assert_eq!((summary.done, summary.failed, summary.interrupted), (2, 0, false));
    let (_, listed) = world.gamdok(&["list", "--state", "done"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");
}

#[test]
fn errors_and_panics_are_tried_again_and_stop_nothing() {
    let world = World::new();
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    let work = Route::closure("work", move |job| {
        match job.name().to_str() {
            Some("panics") => panic!("no luck"),
            Some("fails") => Err(std::io::Error::other("not today"))?,
            Some("hopeless") => return Err(Failure::for_good("never")),
            Some("second") if seen.fetch_add(1, Ordering::Relaxed) == 0 => return Err(Failure::new("once")),
            Some("deceives") => job.count("", 1.0),
            Some("infinite") => job.count("n", f64::INFINITY),
            // With its quotes.
            Some("long") => return Ok(Value::from("x".repeat((1 << 20) - 1))),
            Some("longest") => {
                job.progress(f64::NAN, &"x".repeat(2 << 20));
                fs::write(job.out().join("made"), "")?;
                return Ok(Value::from("x".repeat((1 << 20) - 2)));
            }
            Some("deep") => return Ok((0..101).fold(Value::Null, |inner, _| Value::from(vec![inner]))),
            Some("complains") => return Err(Failure::new("e".repeat(2 << 20))),
            Some("misses") => return Ok(Value::Null),
            _ => {}
        }
        fs::write(job.out().join("made"), "")?;
        Ok(Value::Null)
    });
    let work = work.cpu().retries(1).backoff(Duration::ZERO).outputs(["made"]);
    let director = world.builder().route(work).start().expect("it starts");
    let events = director.subscribe();
    let check = |name: &str, expected: (How, Option<&str>, usize), message: &str| {
        let ended = director.submit_bytes(name, b"").expect("submitted").wait().expect("an outcome");
        assert_eq!((ended.outcome, ended.reason, ended.attempts), expected, "{name}: {:?}", ended.message);
        let said = ended.message.as_deref().unwrap_or_default();
        assert!(said.contains(message), "{name}: {said}");
    };
    check("panics", (How::Failed, Some("reported"), 2), "panicked: no luck after attempt 2 of 2");
    check("fails", (How::Failed, Some("reported"), 2), "not today");
    check("hopeless", (How::Failed, Some("reported"), 1), "never");
    check("second", (How::Done, None, 2), "");
    check("deceives", (How::Failed, Some("reported"), 2), "its closure counted a counter's name has 1 to 200 bytes");
    check("infinite", (How::Failed, Some("reported"), 2), "its closure counted `n` by inf, which is no number");
    let longest = "its closure's result has 1048577 bytes as JSON, the longest may have 1048576: write it to a file";
    check("long", (How::Failed, Some("reported"), 2), longest);
    check("deep", (How::Failed, Some("reported"), 2), "a result that is nested deeper than 100 levels");
    check("longest", (How::Done, None, 1), "");
    check("complains", (How::Failed, Some("reported"), 2), "eeee");
    check("misses", (How::Failed, Some("missing-output"), 2), "no output matches made");
    check("well", (How::Done, None, 1), "");
    assert_eq!(director.join().expect("it ends").failed, 9);
    assert_eq!(events.filter(|event| word(event) == Some("retrying")).count(), 9);
}

#[test]
fn a_pause_holds_what_waits_and_a_join_lets_what_runs_end() {
    let world = World::new();
    let (began, begun) = unbounded();
    let (go, wait) = bounded::<()>(0);
    let slow = Route::closure("slow", move |job| {
        job.progress(0.5, "half way");
        began.send(job.name().to_owned()).map_err(|error| Failure::new(error.to_string()))?;
        let _ = wait.recv_timeout(LIMIT);
        Ok(())
    });
    let director = world.builder().route(slow.cpu()).start().expect("it starts");
    let events = director.subscribe();
    director.pause().expect("paused");
    let first = director.submit_bytes("first", b"").expect("submitted");
    assert_eq!(world.gamdok(&["status"]).1["state"], "paused");
    assert!(begun.try_recv().is_err());
    director.resume().expect("resumed");
    assert_eq!(begun.recv_timeout(LIMIT).expect("it begins"), "first");
    // One is on its way, so it isn't at rest.
    assert!(!director.wait_timeout(Duration::ZERO));
    director.drain().expect("draining");
    let left = director.submit_bytes("left", b"");
    go.send(()).expect("it waits");
    assert!(first.wait().expect("an outcome").is_done());
    assert_eq!(director.join().expect("it ends").done, 1);
    // What came too late lies there still, and hears that nobody looks at it any more.
    assert!(matches!(left.map(|left| left.wait()), Ok(Err(Error::Over)) | Err(Error::Over)));
    let told: Vec<&str> = events.filter_map(|event| word(&event)).collect();
    assert_eq!(told, ["paused", "resumed", "claimed", "started", "progress", "draining", "ended"]);
}

fn word(event: &Event) -> Option<&'static str> {
    Some(match event {
        Event::Claimed { .. } => "claimed",
        Event::Started { .. } => "started",
        Event::Ended(_) => "ended",
        Event::Progress { fraction: Some(0.5), message: Some(_), .. } => "progress",
        Event::Retrying { .. } => "retrying",
        Event::Paused => "paused",
        Event::Resumed => "resumed",
        Event::Draining => "draining",
        _ => return None,
    })
}

#[test]
fn a_slow_reader_loses_events_and_slows_nothing() {
    let world = World::new();
    let director = world.builder().route(Route::closure("x", |_| Ok(())).cpu()).start().expect("it starts");
    let (slow, all) = (director.subscribe_with(2), director.subscribe());
    for n in 0..10 {
        director.submit_bytes(&format!("{n}"), b"").expect("submitted");
    }
    director.wait().expect("at rest");
    assert_eq!(director.join().expect("it ends").done, 10);
    let dropped = slow.dropped();
    assert_eq!(slow.count(), 2);
    assert_eq!(all.count() as u64, dropped + 2);
}

#[test]
fn each_closure_has_its_device_to_itself() {
    let world = World::new();
    let (busy, most) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let seen = (busy.clone(), most.clone());
    let train = Route::closure("train", move |job| {
        let id = job.device().ids().join(",");
        {
            let mut busy = seen.0.lock().map_err(|error| Failure::for_good(error.to_string()))?;
            if busy.contains(&id) {
                return Err(Failure::for_good(format!("{id} is another one's too")));
            }
            busy.push(id.clone());
            seen.1.fetch_max(busy.len(), Ordering::Relaxed);
        }
        // A child process is confined to it, and has a log.
        let script = "echo $CUDA_VISIBLE_DEVICES $GAMDOK_DEVICE $GAMDOK_NAME $GAMDOK_FD. >&2";
        let mut child = Command::new("sh");
        child.args(["-c", script]).env_clear().envs(job.env()).stderr(Stdio::from(job.log().try_clone()?));
        let went = child.status()?.success();
        seen.0.lock().map_err(|error| Failure::for_good(error.to_string()))?.retain(|it| *it != id);
        if went { Ok(json!(id)) } else { Err(Failure::for_good("the child failed")) }
    });
    let rules = Rules { backend: Backend::Sim, sim: Sim { gpus: 2, ..Sim::default() }, ..Rules::default() };
    let director = Director::builder().root(world.root()).init().devices(rules).route(train.retries(0));
    let director = director.start().expect("it starts");
    let submitted: Vec<_> =
        (0..8).map(|n| director.submit_bytes(&format!("{n}.pt"), b"").expect("submitted")).collect();
    for submission in submitted {
        let ended = submission.wait().expect("an outcome");
        assert!(ended.is_done(), "{:?}", ended.message);
        let id = ended.result.as_ref().and_then(Value::as_str).expect("an id").to_owned();
        assert!(id.starts_with("SIM-"), "{id}");
        assert_eq!(log(&ended, 1), format!("{id} cuda:0 {} .\n", ended.name));
        assert_eq!(result(&ended)["attempts"][0]["devices"], json!([id]));
    }
    assert!(busy.lock().expect("whole").is_empty() && (1..=2).contains(&most.load(Ordering::Relaxed)));
}

#[test]
fn a_cancelled_closure_is_told_and_its_children_end() {
    let world = World::new();
    let (began, begun) = unbounded();
    let endless = Route::closure("endless", move |job| {
        let mut child = Command::new("sleep");
        let child = child.arg("600").env_clear().envs(job.env()).spawn()?;
        let _ = began.send((job.id().to_owned(), child.id()));
        let (_keep, never) = bounded::<()>(0);
        while !job.is_stopping() {
            let _ = never.recv_timeout(Duration::from_millis(5));
        }
        Ok(())
    });
    let director = world.builder().route(endless.cpu()).start().expect("it starts");
    let submission = director.submit_bytes("a", b"").expect("submitted");
    let (id, child) = begun.recv_timeout(LIMIT).expect("it begins");
    assert_eq!(world.gamdok(&["cancel", &id]).0, Some(0));
    let ended = submission.wait().expect("an outcome");
    assert_eq!((ended.outcome, ended.reason), (How::Cancelled, Some("cancelled")));
    let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
}

#[test]
fn what_cannot_be_submitted_is_told() {
    let world = World::new();
    let route = Route::closure("x", |_| Ok(())).cpu().matching(["*.txt"]);
    let trees = Route::closure("trees", |job| Ok(json!(fs::read_dir(job.item())?.count()))).cpu().directories();
    let director = world.builder().route(route).route(trees.folder("trees")).start().expect("it starts");
    let check = |name: &str, words: &str| {
        let error = director.submit_bytes(name, b"").expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    };
    check("a.bin", "no route takes a file of this name");
    check(".a.txt", "temporary files");
    check("a/b.txt", "a name has no `/` in it");
    let tree = world.dir.path().join("tree");
    fs::create_dir(&tree).expect("made");
    fs::write(tree.join("leaf"), "").expect("written");
    let refused = director.submit(&tree).expect_err("refused").to_string();
    assert!(refused.contains("`submit_moved` takes those"), "{refused}");
    let absent = director.submit(tree.join("no")).expect_err("refused").to_string();
    assert!(absent.contains("No such file"), "{absent}");
    // Its route has a folder of its own, and that is where it goes.
    let moved = director.submit_moved(&tree).expect("submitted").wait().expect("an outcome");
    assert_eq!((moved.is_done(), moved.result.clone(), tree.exists()), (true, Some(json!(1)), false));

    director.pause().expect("paused");
    let _first = director.submit_bytes("a.txt", b"").expect("submitted");
    check("a.txt", "another one of this name waits");
    fs::write(world.root().join("inbox/b.txt"), "").expect("written");
    check("b.txt", "one of this name lies in the inbox already");
    let hidden = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with('.');
    let left = fs::read_dir(world.root().join("inbox")).expect("read").flatten().filter(hidden);
    assert_eq!(left.count(), 0, "what can't be put in place is removed");
}

#[test]
fn a_director_that_cannot_be_is_told() {
    let world = World::new();
    let check = |builder: Builder, expected: fn(&Error) -> bool, words: &str| {
        let error = builder.start().expect_err("refused");
        assert!(expected(&error) && error.to_string().contains(words), "{error:?}");
    };
    let route = || Route::closure("x", |_| Ok(()));
    let is_route: fn(&Error) -> bool = |error| matches!(error, Error::Route { .. });
    let is_setting: fn(&Error) -> bool = |error| matches!(error, Error::Settings(_));
    check(Director::builder().route(route()), is_setting, "needs a root");
    check(world.builder().cpu_slots(0), is_setting, "`cpu_slots` is 0: it must be from 1 to 1024");
    check(world.builder().route(route()).route(route()), is_route, "another route has this name");
    check(world.builder().route(route().timeout(LIMIT)), is_route, "a timeout can't end a closure");
    let unmade = Director::builder().root(world.root()).route(route());
    check(unmade.clone(), |error| matches!(error, Error::Unavailable(_)), "cannot open the root");
    let director = unmade.clone().init().start().expect("it starts");
    check(unmade.clone(), |error| matches!(error, Error::Held(_)), "another");
    drop(director);
    unmade.start().expect("the root is free again");
}

/// The other half of the test below: a program that dies while its closure runs.
#[test]
#[ignore = "run by another test, in a process of its own"]
fn a_program_that_dies() {
    let root = std::env::var_os("GAMDOK_TEST_DIES_IN").expect("the other test says where");
    let dies = Route::closure("work", |job| {
        fs::write(job.out().join("half"), "")?;
        std::process::abort();
        #[expect(unreachable_code, reason = "it tells what the closure answers")]
        Ok(())
    });
    let director = Director::builder().root(root).init().route(dies.cpu().retries(0)).start().expect("it starts");
    let _ = director.submit_bytes("a", b"").expect("submitted").wait();
    unreachable!("it died");
}

/// A root in which a program died, and the item that it had in hand.
fn after_a_crash() -> World {
    let world = World::new();
    let mut dies = Command::new(std::env::current_exe().expect("this test has a path"));
    dies.args(["--exact", "--ignored", "a_program_that_dies"]).env("GAMDOK_TEST_DIES_IN", world.root());
    let died = dies.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it starts");
    assert!(!died.success() && fs::read_dir(world.root().join("claimed")).expect("read").count() == 1);
    world
}

#[test]
fn what_a_crash_cuts_off_is_gone_on_with_by_the_closure_of_that_name() {
    let world = after_a_crash();
    let work = Route::closure("work", |job| Ok(json!(job.attempt()))).cpu();
    let director = world.builder().route(work).start().expect("it starts");
    director.wait().expect("at rest");
    director.join().expect("it ends");
    let (result, dir) = only(&world, "done");
    let attempts: Vec<(&Value, &Value)> =
        result["attempts"].as_array().expect("a list").iter().map(|it| (&it["reason"], &it["counted"])).collect();
    assert_eq!(attempts, [(&json!("orphaned"), &json!(false)), (&Value::Null, &json!(true))]);
    assert_eq!(result["result"], 2);
    assert!(dir.join("out.aborted.1/half").is_file() && !dir.join("out/half").exists());
}

#[test]
fn a_service_without_the_closure_fails_the_item_with_words() {
    let world = after_a_crash();
    assert_eq!(world.gamdok(&["run", "--once"]).0, Some(1));
    let (result, _) = only(&world, "failed");
    let message = result["message"].as_str().unwrap_or_default();
    assert!(result["reason"] == "spawn" && message.contains("a closure of the program that claimed it"), "{message}");
}

/// The only ended item, and its directory.
fn only(world: &World, state: &str) -> (Value, PathBuf) {
    let days = fs::read_dir(world.root().join(state)).expect("read").flatten();
    let mut jobs: Vec<PathBuf> =
        days.flat_map(|day| fs::read_dir(day.path()).expect("read").flatten()).map(|job| job.path()).collect();
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    let dir = jobs.remove(0);
    (serde_json::from_slice(&fs::read(dir.join("result.json")).expect("a result")).expect("JSON"), dir)
}

#[test]
fn a_submission_that_is_taken_out_of_the_inbox_is_told_of() {
    let world = World::new();
    let route = Route::closure("any", |_| Ok(())).cpu();
    let director = world.builder().route(route).start().expect("it starts");
    let lies = |name: &str| world.root().join("inbox").join(name);
    let end = |submission: gamdok::service::Submission| match submission.wait_timeout(LIMIT) {
        Ok(ended) => ended.map(|ended| ended.outcome),
        Err(_) => panic!("nobody was told"),
    };
    // Before anybody looked, or at the very moment of the claim: it is the one or the other.
    for n in 0..50 {
        let name = format!("early-{n}");
        let submission = director.submit_bytes(&name, b"").expect("submitted");
        let removed = fs::remove_file(lies(&name)).is_ok();
        assert_eq!(end(submission), if removed { Err(Error::Withdrawn) } else { Ok(How::Done) });
    }
    // While it waits to be claimed; and another one takes its place.
    director.pause().expect("paused");
    let gone = director.submit_bytes("gone", b"").expect("submitted");
    let replaced = director.submit_bytes("replaced", b"ours").expect("submitted");
    fs::remove_file(lies("gone")).expect("removed");
    let theirs = world.dir.path().join("theirs");
    fs::write(&theirs, "theirs").expect("another file");
    fs::rename(&theirs, lies("replaced")).expect("replaced");
    assert_eq!((end(gone), end(replaced)), (Err(Error::Withdrawn), Err(Error::Withdrawn)));
    // Its name is free again.
    let again = director.submit_bytes("gone", b"").expect("submitted");
    director.resume().expect("resumed");
    assert_eq!(end(again), Ok(How::Done));
    assert!(director.wait_timeout(LIMIT), "nothing is left to wait for");
}

#[test]
fn what_would_never_be_taken_is_not_submitted() {
    let world = World::new();
    let route = Route::closure("large", |_| Ok(())).cpu().min_bytes(gamdok::rules::Bytes(4));
    let director = world.builder().ignore(["*.bak"]).route(route).start().expect("it starts");
    let check = |name: &str, content: &str, words: &str| {
        let refused = director.submit_bytes(name, content.as_bytes()).expect_err("refused").to_string();
        assert!(refused.contains(words), "{refused}");
    };
    check("a.bak", "long enough", "are temporary files to the inbox, or ignored");
    check("a.part", "long enough", "are temporary files to the inbox, or ignored");
    check("small", "abc", "route `large` takes items of at least 4 B");
    check("a/b", "long enough", "a name has no `/` in it");
    check("..", "long enough", "this path ends in no name");
    check("", "long enough", "this path ends in no name");
    check("nul\0", "long enough", "a path has no NUL byte in it");
    check(&"n".repeat(256), "long enough", "File name too long");
    assert!(director.submit_bytes("a", b"abcd").expect("submitted").wait().expect("an outcome").is_done());
    assert!(director.subscribe_with(usize::MAX).dropped() == 0 && director.wait_timeout(Duration::MAX));
}
