//! SIGKILL at every step, at random moments, with workers that live on: each item still ends exactly once, whole.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use gamdok::spool::FAULT_POINTS;
use serde_json::{Value, json};
use support::{World, code, hostile_names, names};

/// What lies there at a start is taken at once.
const AT_ONCE: &str = "[inbox]\nsettle = \"0s\"\n[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";

fn copying() -> String {
    let command = json!(["sh", "-c", "cat \"$1\" >\"$2/copy\"", "sh", "{item}", "{out}"]);
    format!("[[route]]\nname = \"copy\"\nkind = \"any\"\nbackoff = \"10ms\"\ncommand = {command}\n")
}

/// Each of `items` has one outcome, done, its payload and its output are whole, and nothing is left on the way.
#[track_caller]
fn assert_each_once(world: &World, items: &[(&str, String)], context: &str) {
    let results = world.results();
    assert_eq!(results.len(), items.len(), "{context}: {:?}", world.outcomes());
    for (name, content) in items {
        let (dir, result) = world.result(name);
        assert_eq!(result["outcome"], "done", "{context}: {result:#}");
        for part in [format!("item/{name}"), "out/copy".to_owned()] {
            assert_eq!(
                fs::read_to_string(dir.join(&part)).unwrap_or_default(),
                *content,
                "{context}: {part} of {name}"
            );
        }
    }
    world.assert_empty();
}

fn numbered(count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("item-{n}"), format!("content of {n}"))).collect()
}

fn borrowed(items: &[(String, String)]) -> Vec<(&str, String)> {
    items.iter().map(|(name, content)| (name.as_str(), content.clone())).collect()
}

#[test]
fn killed_at_each_named_point_every_item_still_ends_once() {
    let mut reached = 0;
    for point in FAULT_POINTS {
        for nth in 1..=2 {
            let mut world = World::with(AT_ONCE, &copying());
            let items = numbered(3);
            for (name, content) in &items {
                world.drop_file(name, content.as_bytes());
            }
            // Points of recovery are reached by a start that has something to recover.
            if point.starts_with("recover") {
                world.set("GAMDOK_FAULT", "claim.synced");
                world.gamdok(&["run", "--once"]);
            }
            world.set("GAMDOK_FAULT", format!("{point}:{nth}"));
            let ended = world.gamdok(&["run", "--once"]);
            let killed = code(ended.status) == 128 + 9;
            reached += usize::from(killed);
            world.unset("GAMDOK_FAULT");
            world.once();
            assert_each_once(&world, &borrowed(&items), &format!("{point}:{nth} (killed: {killed})"));
        }
    }
    // Those of publishing, of retries by hand and of torn records have items of their own, beside the spool.
    assert!(reached >= 20, "only {reached} of {} points were reached", FAULT_POINTS.len());
}

#[test]
fn killed_at_random_moments_every_item_still_ends_once() {
    let seed = std::env::var("GAMDOK_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::process::id() as u64);
    println!("seed {seed}");
    let mut random = seed;
    let mut next = move |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let world = World::new(&copying());
    let items = numbered(60);
    for (name, content) in &items {
        world.drop_file(name, content.as_bytes());
    }
    for _ in 0..12 {
        // A random number of log lines is a random moment without a stopwatch.
        let lines = next(40) as usize;
        let mut child =
            world.command(&["run"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start gamdok");
        let log = BufReader::new(child.stderr.take().expect("its log"));
        let mut seen = 0;
        for line in log.lines() {
            let line = line.expect("a line of the log");
            seen += 1;
            if seen >= lines && !line.contains("ERROR") {
                break;
            }
            if world.root.join("claimed").read_dir().is_ok_and(|mut it| it.next().is_none())
                && names(&world.inbox()).is_empty()
            {
                break;
            }
        }
        child.kill().expect("kill it");
        child.wait().expect("reap it");
    }
    world.once();
    assert_each_once(&world, &borrowed(&items), &format!("seed {seed}"));
    let uncounted = |result: &Value| {
        result["attempts"].as_array().expect("attempts").iter().all(|it| it["counted"] == (it["reason"] != "orphaned"))
    };
    for (_, result) in world.results() {
        assert!(uncounted(&result), "an attempt cut by our death is not the item's: {result:#}");
    }
}

#[test]
fn a_worker_that_outlives_the_director_is_ended_before_its_item_runs_again() {
    // The first attempt never ends, and its process survives the director, in a session of its own, without its lock.
    let body = "if [ \"$GAMDOK_ATTEMPT\" = 1 ]; then
            setsid sh -c 'exec 3>&- 4>&- 5>&- 6>&- 7>&-; echo $$ >\"$1/stray\"; while :; do echo alive >>\"$1/../beats\"; sleep 0.05; done' sh \"$2\" &
            while ! test -s \"$2/stray\"; do sleep 0.01; done; cp \"$2/stray\" \"$2/../stray.pid\"; exec sleep 1000
        fi; echo second >\"$2/copy\"";
    let command = json!(["sh", "-c", body, "sh", "{item}", "{out}"]);
    let world = World::new(&format!("[[route]]\nname = \"long\"\nkill_grace = \"100ms\"\ncommand = {command}\n"));
    world.drop_file("one", b"x");
    let service = world.start();
    let status = world.until("running with its stray", |status| {
        let job = status["running"][0]["job"].as_str().unwrap_or_default().to_owned();
        let told = !job.is_empty() && status["running"][0]["pid"].is_number();
        told && world.root.join("claimed").join(job).join("stray.pid").exists()
    });
    let worker = status["running"][0]["pid"].as_i64().expect("a pid");
    let job = world.root.join("claimed").join(status["running"][0]["job"].as_str().expect("a job"));
    let stray: i64 = fs::read_to_string(job.join("stray.pid")).expect("the stray").trim().parse().expect("a pid");
    service.kill();
    assert!(alive(worker) && alive(stray), "they survive the director");

    world.once();
    assert!(!alive(worker) && !alive(stray), "nothing of the first attempt lives on");
    let (_, result) = world.result("one");
    assert_eq!(result["outcome"], "done");
    let attempts: Vec<(&Value, &Value)> =
        result["attempts"].as_array().expect("attempts").iter().map(|it| (&it["counted"], &it["reason"])).collect();
    assert_eq!(attempts, [(&json!(false), &json!("orphaned")), (&json!(true), &Value::Null)]);
    // What the director that was killed knew of it isn't lost with it.
    let cut = &result["attempts"][0];
    assert_eq!(cut["devices"], json!(["cpu"]), "{cut}");
    assert!(cut["started_at"].is_string(), "{cut}");
}

fn alive(pid: i64) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim().chars().next();
    !matches!(state, None | Some('Z' | 'X'))
}

#[test]
fn an_item_that_kills_the_director_each_time_is_poison_in_the_end() {
    let command = json!(["sh", "-c", "kill -9 $PPID; sleep 1000"]);
    let world = World::new(&format!("[[route]]\nname = \"assassin\"\nkill_grace = \"10ms\"\ncommand = {command}\n"));
    world.drop_file("poison", b"x");
    let mut starts = 0;
    while world.results().is_empty() {
        starts += 1;
        assert!(starts < 20, "it goes on for ever");
        world.gamdok(&["run", "--once"]);
    }
    assert_eq!(world.outcomes(), ["poison failed poison"]);
    world.assert_empty();
}

#[test]
fn the_second_signal_stops_running_items_and_the_next_start_runs_them_again() {
    let body = "test \"$GAMDOK_ATTEMPT\" = 1 && exec sleep 1000; echo again >\"$2/copy\"";
    let command = json!(["sh", "-c", body, "sh", "{item}", "{out}"]);
    let world = World::new(&format!("[[route]]\nname = \"long\"\ncommand = {command}\n"));
    world.drop_file("one", b"x");
    let mut service = world.start();
    world.until("running", |status| status["running"][0]["pid"].is_number());
    service.signal(15);
    world.until("draining", |status| status["state"] == "draining");
    service.signal(15);
    assert_eq!(service.wait(), 130);
    assert_eq!(names(&world.root.join("claimed")).len(), 1);
    world.once();
    let (_, result) = world.result("one");
    assert_eq!((&result["outcome"], &result["attempts"][0]["counted"]), (&json!("done"), &json!(false)));
}

#[test]
fn the_first_signal_lets_running_items_finish_and_takes_no_more() {
    let command = json!(["sh", "-c", "while ! test -e \"$1\"; do sleep 0.01; done", "sh", "{stem}.go"]);
    let mut world = World::new(&format!("[[route]]\nname = \"gate\"\ncommand = {command}\n"));
    world.set("GAMDOK_TEST", "1");
    world.drop_file("one", b"x");
    let mut service = world.start();
    world.until("running", |status| status["running"][0]["pid"].is_number());
    service.signal(2);
    world.until("draining", |status| status["state"] == "draining");
    world.drop_file("two", b"x");
    fs::write(world.root.join("one.go"), b"").expect("open the gate");
    assert_eq!(service.wait(), 0);
    assert_eq!(world.outcomes(), ["one done -"]);
    assert_eq!(names(&world.inbox()), ["two"]);
}

#[test]
fn a_lost_ledger_and_torn_records_lose_no_item() {
    let mut world = World::with(AT_ONCE, &copying());
    for name in hostile_names() {
        world.drop_file(name, b"x");
    }
    world.set("GAMDOK_FAULT", "claim.synced");
    world.gamdok(&["run", "--once"]);
    world.unset("GAMDOK_FAULT");
    let claimed = names(&world.root.join("claimed"));
    assert!(!claimed.is_empty());
    // One record is torn, one is gone; the ledger is nonsense.
    for (job, content) in claimed.iter().zip([Some(&b"{\"id\":"[..]), None]) {
        let path = world.root.join("claimed").join(job).join("job.json");
        match content {
            Some(torn) => fs::write(path, torn).expect("tear it"),
            None => fs::remove_file(path).expect("remove it"),
        }
    }
    fs::write(world.root.join(".gamdok/ledger.sqlite"), b"not a database").expect("break the ledger");
    world.once();
    world.assert_empty();
    assert_eq!(world.results().len(), hostile_names().len());
    let total = world.json(&["list"]).as_array().map_or(0, Vec::len);
    assert_eq!(total, hostile_names().len());
}

#[test]
fn a_committed_item_that_is_still_to_be_published_is_filed_by_the_next_start() {
    for fault in ["finish.committed", "publish.staged", "publish.named", "finish.published"] {
        let mut world = World::new("");
        let into = world.scratch("results");
        world.configure(AT_ONCE, &format!("{}publish = {}\n", copying(), json!(into.to_str())));
        world.drop_file("one", b"x");
        world.set("GAMDOK_FAULT", fault);
        assert_eq!(code(world.gamdok(&["run", "--once"]).status), 128 + 9, "{fault}");
        world.unset("GAMDOK_FAULT");
        world.once();
        assert_each_once(&world, &[("one", "x".to_owned())], fault);
        assert_eq!(names(&into), ["one"], "{fault}");
    }
}

#[test]
fn an_error_at_each_named_point_loses_and_repeats_nothing() {
    for point in FAULT_POINTS.iter().filter(|point| !point.starts_with("rec") && !point.starts_with("rev")) {
        let mut world = World::new("");
        let into = world.scratch("results");
        world.configure(AT_ONCE, &format!("{}publish = {}\n", copying(), json!(into.to_str())));
        let items = numbered(3);
        for (name, content) in &items {
            world.drop_file(name, content.as_bytes());
        }
        world.set("GAMDOK_FAULT_ERR", format!("{point}:5:2"));
        world.once();
        let outcomes = world.outcomes();
        // A disk that refuses while outputs are made durable may have lost them: only then it is the item's end.
        assert!(outcomes.iter().all(|line| line.ends_with(" done -") || line.ends_with(" failed io")), "{outcomes:?}");
        assert_eq!(outcomes.len(), items.len(), "{point}");
        world.assert_empty();
        for (name, content) in &items {
            let (dir, _) = world.result(name);
            assert_eq!(fs::read_to_string(dir.join("item").join(name)).unwrap_or_default(), *content, "{point}");
        }
    }
}

#[test]
fn once_fails_when_a_start_files_a_job_as_failed_or_cannot_take_it_up() {
    let mut world = World::with(AT_ONCE, &copying());
    world.drop_file("one", b"x");
    world.set("GAMDOK_FAULT", "claim.synced");
    world.gamdok(&["run", "--once"]);
    world.unset("GAMDOK_FAULT");
    for fault in ["recover.job:13:1+", "recover.looked:5:1+"] {
        world.set("GAMDOK_FAULT_ERR", fault);
        let said: Value = serde_json::from_slice(&world.code(&["run", "--once", "--json"], 1).stdout).expect("JSON");
        assert_eq!(said, json!({ "done": 0, "failed": 0, "cancelled": 0, "left": 1, "held": 0 }), "{fault}");
        world.unset("GAMDOK_FAULT_ERR");
    }
    let job = world.root.join("claimed").read_dir().expect("claimed/").next().expect("a job").expect("its entry");
    fs::write(job.path().join("job.json"), b"{\"id\":").expect("tear it");
    let said: Value = serde_json::from_slice(&world.code(&["run", "--once", "--json"], 1).stdout).expect("JSON");
    assert_eq!(said, json!({ "done": 0, "failed": 1, "cancelled": 0, "left": 0, "held": 0 }));
    assert_eq!(world.outcomes(), ["one failed unrecognised"]);
    world.code(&["run", "--once"], 0);
}

#[test]
fn a_job_whose_orphan_cannot_be_ended_runs_as_soon_as_that_is_gone() {
    let mut world = World::with(AT_ONCE, &copying());
    world.drop_file("one", b"x");
    world.set("GAMDOK_FAULT", "claim.synced");
    world.gamdok(&["run", "--once"]);
    world.unset("GAMDOK_FAULT");
    // The start's look finds it, the next one doesn't.
    world.set("GAMDOK_FAULT_ERR", "recover.looked:5:1");
    let service = world.start();
    world.until("the job is done", |status| status["counts"]["done"] == 1);
    let log = service.log();
    assert!(log.contains("process 1 of an earlier director can't be ended"), "{log}");
    let is_well = |check: &Value| check["what"] == "spool" && check["state"] == "ok";
    world.until("all is well", |status| status["health"].as_array().is_some_and(|it| it.iter().any(is_well)));
    service.stop();
    assert_each_once(&world, &[("one", "x".to_owned())], "an orphan");
}

#[test]
fn what_gamdok_didnt_write_in_claimed_is_filed_or_told_of_and_hurts_nobody() {
    let world = World::with(AT_ONCE, &copying());
    let claimed = world.root.join("claimed");
    let id = |n: usize| format!("01ARZ3NDEKTSV4RRFFQ69G5F{n:02}");
    let job = |n: usize| {
        let dir = claimed.join(format!("job~{}", id(n)));
        fs::create_dir_all(dir.join("item")).expect("a job");
        fs::create_dir(dir.join("out")).expect("its out/");
        fs::write(dir.join(format!("item/payload-{n}")), format!("{n}")).expect("its payload");
        dir
    };
    let fifo = |path: std::path::PathBuf| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("a FIFO");
    };
    // No record; torn; another's; a directory, a FIFO, a link, a monster in its place.
    job(1);
    fs::write(job(2).join("job.json"), b"{\"id\":").expect("torn");
    fs::write(job(3).join("job.json"), format!("{{\"id\":\"{}\"}}", id(4))).expect("another's");
    fs::create_dir(job(4).join("job.json")).expect("a directory");
    let dir = job(5);
    for name in ["job.json", "result.json", "lock"] {
        fifo(dir.join(name));
    }
    std::os::unix::fs::symlink("/etc/passwd", job(6).join("job.json")).expect("a link");
    fs::File::create(job(7).join("job.json")).and_then(|file| file.set_len(65 << 20)).expect("a monster");
    fs::write(job(8).join("job.json"), "[".repeat(200_000)).expect("a deep one");
    // Blank, with a folder that leads out of the root.
    let dir = job(9);
    fs::write(dir.join("job.json"), b"").expect("blank");
    std::os::unix::fs::symlink("../../..", dir.join("folder.tmp")).expect("a way out");
    // No jobs at all.
    fs::write(claimed.join("file"), b"x").expect("a file");
    std::os::unix::fs::symlink("/etc", claimed.join(format!("link~{}", id(10)))).expect("a link");
    let strangers = 2;
    world.drop_file("one", b"x");
    world.once();
    let outcomes = world.outcomes();
    let unrecognised = (1..=9).map(|n| format!("payload-{n} failed unrecognised"));
    let expected: Vec<String> = std::iter::once("one done -".to_owned()).chain(unrecognised).collect();
    assert_eq!(outcomes, expected);
    for n in 1..=9 {
        let (dir, _) = world.result(&format!("payload-{n}"));
        assert_eq!(fs::read_to_string(dir.join(format!("item/payload-{n}"))).unwrap_or_default(), n.to_string());
    }
    assert_eq!(names(&claimed).len(), strangers);
    world.ok(&["list"]);
    world.ok(&["status"]);
}
