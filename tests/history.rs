//! What was and what will be, against the built binary: history, stats, estimates, traces and reports; with and without
//! a director, after a kill, and over a broken ledger.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use rusqlite::Connection;
use serde_json::Value;
use support::{Service, World, hostile_names, text};

const SIM: &str = "[devices]\nuse = \"sim\"\nsim = { gpus = 2, memory = \"8GiB\" }\n";

fn route(name: &str, more: &str, script: &str) -> String {
    let script = script.replace('{', "{{").replace('}', "}}");
    format!("[[route]]\nname = \"{name}\"\n{more}\ncommand = [\"sh\", \"-euc\", '''{script}''']\n")
}

/// Two routes; of the first, items named `bad…` fail twice.
fn world() -> World {
    let script = r#"case "$GAMDOK_NAME" in bad*) exit 3;; esac"#;
    let first = route("gpu", "match = [\"*.wav\"]\nretries = 1\nbackoff = \"10ms\"\ngpu_memory = \"2GiB\"", script);
    World::with(SIM, &(first + &route("cpu", "gpus = 0", "true")))
}

fn ended(world: &World, items: u64) {
    let count = |status: &Value, what: &str| status["counts"][what].as_u64().unwrap_or(0);
    world.until("they have ended", |status| count(status, "done") + count(status, "failed") == items);
}

fn ledger(world: &World) -> std::path::PathBuf {
    world.root.join(".gamdok/ledger.sqlite")
}

/// `name outcome reason`, oldest first.
fn lines(world: &World, args: &[&str]) -> Vec<String> {
    let all = world.json(&[&["history"], args].concat());
    let line = |row: &Value| {
        let word = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        format!("{} {} {} {}", word("name"), row["attempt"], word("outcome"), word("reason"))
    };
    all.as_array().expect("an array").iter().rev().map(line).collect()
}

#[test]
fn attempts_and_statistics_are_the_same_whoever_tells_them() {
    let world = world();
    assert_eq!(world.ok(&["history"]), "nothing\n");
    assert_eq!(world.ok(&["stats"]), "nothing has ended\n");
    let service = world.start();
    for (n, name) in ["a.wav", "bad.wav", "b.txt"].iter().enumerate() {
        world.drop_file(name, b"x");
        ended(&world, n as u64 + 1);
    }
    let check = |when: &str| {
        let expected = ["a.wav 1 done -", "bad.wav 1 failed exit", "bad.wav 2 failed exit", "b.txt 1 done -"];
        assert_eq!(lines(&world, &[]), expected, "{when}");
        let only = |args: &[&str], expected: &[&str]| assert_eq!(lines(&world, args), expected, "{when} {args:?}");
        only(&["--route", "cpu"], &expected[3..]);
        only(&["--outcome", "failed"], &expected[1..3]);
        only(&["--state", "done,cut"], &[expected[0], expected[3]]);
        only(&["--device", "cpu"], &expected[3..]);
        only(&["--device", "SIM-"], &expected[..3]);
        only(&["--reason", "exit", "--limit", "1"], &expected[2..3]);
        only(&["--since", "1h"], &expected);
        only(&["--until", "1h"], &[]);
        only(&["--since", "2999-01-01"], &[]);
        let stats = world.json(&["stats", "--since", "24h"]);
        let gpu = stats["routes"].as_array().expect("routes").iter().find(|it| it["route"] == "gpu").expect("gpu");
        assert_eq!(
            (&gpu["jobs"]["done"], &gpu["jobs"]["failed"], &gpu["attempts"]["failed"]),
            (&1.into(), &1.into(), &2.into())
        );
        assert_eq!((&gpu["failures"]["exit"], &gpu["waiting"]["count"]), (&2.into(), &2.into()), "{when}");
        assert_eq!(
            (&gpu["running"]["count"], &gpu["declared_gpu_memory"]),
            (&1.into(), &(2_u64 << 30).into()),
            "{when}"
        );
        // What isn't known is null.
        assert_eq!((&gpu["energy_joules"], &gpu["peak_gpu_memory"]), (&Value::Null, &Value::Null));
        assert!(gpu["gpu_hours"].as_f64() > Some(0.0) && gpu["cpu_hours"].as_f64() == Some(0.0));
        assert_eq!(stats["total"]["jobs"]["done"], 2);
        let devices = stats["devices"].as_array().expect("devices");
        assert!(devices.iter().any(|it| it["device"] == "cpu" && it["attempts"]["done"] == 1), "{devices:?}");
        world.ok(&["stats"]);
        let csv = world.ok(&["history", "--csv"]);
        assert!(csv.starts_with("id,name,folder,route,attempt,outcome,devices,arrived_at,"), "{csv}");
        assert_eq!(csv.matches("\r\n").count(), 5);
        let output = world.command(&["history"]).env("COLUMNS", "80").output().expect("run gamdok");
        let table = text(&output.stdout);
        assert!(table.lines().all(|line| line.chars().count() <= 80) && table.contains("exit 3"), "{table}");
    };
    check("with a director");
    service.kill();
    check("its ledger was cut off");
    assert_eq!(world.start().stop(), 0);
    check("from the ledger");
    // Its number is known once it was sampled.
    assert_eq!(lines(&world, &["--device", "0"]).len() + lines(&world, &["--device", "1"]).len(), 3);
    fs::write(ledger(&world), b"not a database").expect("broken");
    check("over a broken ledger");
    fs::remove_file(ledger(&world)).expect("removed");
    check("without one");

    for wrong in [
        &["--since", "yesterday"][..],
        &["--outcome", "well"],
        &["--reason", "none"],
        &["--csv", "--json"],
        &["--force"],
    ] {
        world.code(&[&["history"], wrong].concat(), 2);
    }
    world.code(&["stats", "--root", "/nonexistent"], 5);
}

#[test]
fn what_runs_is_shown_as_running_and_what_a_kill_cut_is_not() {
    let world = World::new(&route("r", "", "until [ -e gate ]; do sleep 0.02; done"));
    world.drop_file("a", b"x");
    let service = world.start();
    world.until("it runs", |status| status["running"][0]["started_at"].is_string());
    assert_eq!(lines(&world, &[]), ["a 1 running -"]);
    assert_eq!(world.json(&["history"])[0]["ended_at"], Value::Null);
    service.kill();
    assert!(lines(&world, &["--outcome", "running"]).is_empty());
    fs::write(world.root.join("gate"), b"").expect("the gate");
    let service = world.start();
    ended(&world, 1);
    assert_eq!(lines(&world, &["--outcome", "done"]).len(), 1);
    assert_eq!(service.stop(), 0);
    assert_eq!(world.json(&["stats"])["total"]["jobs"]["done"], 1);
}

/// Five items of the first route end at once; what follows waits for the gate, as does the other route.
fn gated() -> (World, Service) {
    let script = r#"case "$GAMDOK_NAME" in wait*) until [ -e gate ]; do sleep 0.02; done;; *) sleep 0.3;; esac"#;
    let world = World::with(
        "[devices]\nuse = \"cpu\"\ncpu_slots = 1\n",
        &(route("known", "match = [\"*k\"]", script) + &route("new", "", script)),
    );
    for n in 0..5 {
        world.drop_file(format!("{n}k"), b"x");
    }
    let service = world.start();
    ended(&world, 5);
    (world, service)
}

#[test]
fn what_waits_has_an_estimate_once_enough_is_known() {
    let (world, service) = gated();
    let row = |name: &str| {
        let rows = world.json(&["list"]);
        rows.as_array().expect("rows").iter().find(|row| row["name"] == name).cloned().unwrap_or_default()
    };
    // Of its route nothing is known, so nothing is known of what waits behind it.
    world.drop_file("wait-new", b"x");
    world.until("it runs", |status| status["counts"]["running"] == 1);
    world.drop_file("1st.k", b"x");
    world.until("it waits", |status| status["counts"]["claimed"] == 1);
    assert_eq!((&row("wait-new")["estimate"], &row("1st.k")["estimate"]), (&Value::Null, &Value::Null));
    fs::write(world.root.join("gate"), b"").expect("the gate");
    ended(&world, 7);
    fs::remove_file(world.root.join("gate")).expect("the gate");
    // The same after a restart: the ledger tells.
    assert_eq!(service.stop(), 0);
    let service = world.start();
    world.ok(&["pause"]);
    world.drop_file("a.k", b"x");
    world.drop_file("b.k", b"x");
    world.until("they wait", |status| status["counts"]["ready"] == 2);
    assert_eq!(row("b.k")["estimate"], Value::Null, "nobody knows when it goes on");
    world.ok(&["resume"]);
    let mut seen = BTreeMap::new();
    world.until("both have ended", |status| {
        for name in ["a.k", "b.k"] {
            let row = row(name);
            if row["estimate"].is_object() {
                seen.insert(format!("{name} {}", row["state"].as_str().unwrap_or("?")), row["estimate"].clone());
            }
        }
        status["counts"]["done"] == 9
    });
    let waited = seen.iter().find(|(key, _)| key.starts_with("b.k") && !key.ends_with("running")).map(|(_, it)| it);
    let waited = waited.unwrap_or_else(|| panic!("{seen:?}"));
    let at = |place: &str, key: &str| waited[place][key].as_str().expect("a time").to_owned();
    assert!(at("start", "from") <= at("start", "to") && at("end", "from") <= at("end", "to"), "{waited}");
    assert!(at("start", "from") <= at("end", "from"), "{waited}");
    let running = seen.get("a.k running").unwrap_or_else(|| panic!("{seen:?}"));
    assert!(running["start"].is_null() && running["end"]["to"].is_string(), "{running}");
    assert_eq!(service.stop(), 0);
}

/// Holds a trace against the Trace Event Format (JSON object form), as far as its slices, instants and names go.
fn checked_trace(bytes: &[u8]) -> Vec<Value> {
    let trace: Value = serde_json::from_slice(bytes).expect("JSON");
    let events = trace["traceEvents"].as_array().expect("traceEvents").clone();
    let mut named = Vec::new();
    let mut tracks: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    for event in &events {
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("{key} of {event}"));
        let track = (number("pid"), number("tid"));
        let name = event["name"].as_str().expect("a name");
        match event["ph"].as_str().expect("a phase") {
            "M" => {
                assert!(["process_name", "thread_name"].contains(&name), "{event}");
                assert!(event["args"]["name"].is_string(), "{event}");
                named.push((name.to_owned(), track));
            }
            "X" => {
                let (ts, dur) = (event["ts"].as_f64().expect("ts"), event["dur"].as_f64().expect("dur"));
                assert!(ts > 0.0 && dur >= 0.0 && event["cat"].is_string() && event["args"].is_object(), "{event}");
                tracks.entry(track).or_default().push((ts, ts + dur));
            }
            "i" => assert!(event["ts"].is_number() && event["s"] == "t", "{event}"),
            other => panic!("no phase {other}: {event}"),
        }
    }
    for ((pid, tid), slices) in &mut tracks {
        assert!(named.contains(&("process_name".to_owned(), (*pid, 0))), "process {pid} has a name");
        assert!(named.contains(&("thread_name".to_owned(), (*pid, *tid))), "track {pid}.{tid} has a name");
        slices.sort_by(f64_pair);
        // Microseconds since 1970 are held to a quarter of one.
        assert!(
            slices.windows(2).all(|pair| pair[0].1 <= pair[1].0 + 0.5),
            "slices overlap on {pid}.{tid}: {slices:?}"
        );
    }
    events
}

fn f64_pair(a: &(f64, f64), b: &(f64, f64)) -> std::cmp::Ordering {
    a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
}

#[test]
fn traces_and_reports_hold_whatever_items_are_called() {
    let script = r#"case "$GAMDOK_NAME" in *red*|*img*) exit 3;; esac"#;
    let odd = route("<img src=x onerror=alert(1)>", "retries = 0", script);
    let world = World::with("[devices]\nuse = \"sim\"\nslots = 3\nsim = { gpus = 2, memory = \"8GiB\" }\n", &odd);
    let mut names = hostile_names();
    // No file is called so for long; `&`, `<` and quotes are what a page could take for more than words.
    names.push(OsStr::from_bytes(b"<script>alert(1)<"));
    names.push(OsStr::from_bytes(b"<img onerror='x' src=\"y\">&amp;"));
    names.iter().for_each(|name| world.drop_file(name, b"x"));
    let service = world.start();
    world.wait();
    let (trace, page) = (world.scratch("trace.json"), world.scratch("page.html"));
    let (trace_name, page_name) = (trace.to_str().expect("text"), page.to_str().expect("text"));
    world.ok(&["history", "--chrome-trace", trace_name]);
    world.ok(&["report", "--html", page_name]);
    assert_eq!(service.stop(), 0);

    let ended = world.results().len();
    let check = |events: &[Value]| {
        let of = |phase: &str| events.iter().filter(|event| event["ph"] == phase).count();
        assert_eq!((of("X"), of("i")), (ended, ended));
        let failed: Vec<&Value> = events.iter().filter(|event| event["cname"] == "terrible").collect();
        assert!(
            failed.len() >= 2
                && failed.iter().all(|event| event["name"]
                    .as_str()
                    .is_some_and(|it| it.starts_with('✗') && it.ends_with("(exit)")))
        );
    };
    check(&checked_trace(&fs::read(&trace).expect("the trace")));
    let html = fs::read_to_string(&page).expect("the page");
    for wrong in ["<script", "<img", "http:", "https:", "src=", "\u{1b}", "\u{202e}", "url("] {
        let found = html.match_indices(wrong).map(|(at, _)| &html[at.saturating_sub(40)..]).next();
        let quoted = wrong == "src=" && found.is_some_and(|it| it.contains("&lt;img"));
        assert!(
            found.is_none() || quoted,
            "{wrong} in the page: {:?}",
            found.map(|it| it.chars().take(120).collect::<String>())
        );
    }
    assert!(html.contains("&lt;img onerror=&#39;x&#39; src=&quot;y&quot;&gt;&amp;amp;"));
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;"));
    assert!(html.matches("<svg").count() >= 5 && html.ends_with("</body></html>\n"));
    // Nothing opens that isn't closed.
    for tag in ["div", "table", "tr", "td", "th", "svg", "rect", "h1", "h2", "h3", "p", "span", "title", "style"] {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }

    // What is there is never written over, unless that is asked for.
    fs::write(&page, "mine").expect("written");
    fs::write(&trace, "mine").expect("written");
    for args in [&["report", "--html", page_name][..], &["history", "--chrome-trace", trace_name]] {
        let said = text(&world.code(args, 1).stderr);
        assert!(said.contains("exists already") && said.contains("--force"), "{said}");
    }
    assert_eq!((fs::read(&page).expect("it"), fs::read(&trace).expect("it")), (b"mine".to_vec(), b"mine".to_vec()));
    world.ok(&["report", "--html", page_name, "--force", "--since", "2999-01-01"]);
    assert!(fs::read_to_string(&page).expect("it").contains("Nothing has ended in this time"));
    // Without a director and without a ledger it is the same.
    fs::remove_file(ledger(&world)).expect("removed");
    world.ok(&["history", "--chrome-trace", trace_name, "--force"]);
    check(&checked_trace(&fs::read(&trace).expect("the trace")));
    let left = support::names(world.dir.path());
    assert!(!left.iter().any(|name| name.to_string_lossy().contains(".part")), "{left:?}");
    world.code(&["report", "--html", "/nonexistent/page.html"], 1);
    world.code(&["report"], 2);
}

fn samples(world: &World) -> (i64, i64) {
    let ledger = Connection::open(ledger(world)).expect("the ledger");
    let count = |table: &str| {
        ledger.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("a number")
    };
    (count("sample_seconds"), count("sample_minutes"))
}

#[test]
fn samples_of_the_devices_are_kept_over_restarts_and_changes_of_the_ledger() {
    let world = world();
    let service = world.start();
    world.drop_file("a.wav", b"x");
    ended(&world, 1);
    assert_eq!(service.stop(), 0);
    let (seconds, minutes) = samples(&world);
    assert!(seconds >= 2 && minutes >= 2, "{seconds} {minutes}");
    // Another version's file, whose rows are made anew.
    let change = Connection::open(ledger(&world)).expect("the ledger");
    change.execute_batch("UPDATE meta SET value = '2' WHERE key = 'schema'").expect("changed");
    drop(change);
    assert_eq!(lines(&world, &[]), ["a.wav 1 done -"]);
    assert_eq!(world.start().stop(), 0);
    let later = samples(&world);
    assert!(later.0 >= seconds && later.1 >= minutes, "{later:?} after {seconds} {minutes}");
    assert_eq!(lines(&world, &[]), ["a.wav 1 done -"]);
    // Gone with the file, and said so; nothing else is.
    fs::write(ledger(&world), b"not a database".repeat(1000)).expect("broken");
    let service = world.start();
    world.until("it is said", |_| service.log().contains("the device samples in it are lost"));
    assert_eq!(service.stop(), 0);
    assert_eq!(lines(&world, &[]), ["a.wav 1 done -"]);
    let page = world.scratch("page.html");
    world.ok(&["report", "--html", page.to_str().expect("text")]);
}

#[test]
fn a_ledger_that_can_not_be_written_stops_nothing() {
    let world = world();
    // What SQLite can neither use nor remove.
    fs::create_dir(world.root.join(".gamdok/ledger.sqlite-wal")).expect("something else lies there");
    let service = world.start();
    world.drop_file("a.wav", b"x");
    ended(&world, 1);
    let health = |status: &Value| {
        let all = status["health"].as_array().expect("health").clone();
        all.into_iter().find(|it| it["what"] == "ledger").expect("the ledger's")
    };
    world.until("it is said", |status| health(status)["state"] == "degraded");
    assert_eq!(lines(&world, &[]), ["a.wav 1 done -"]);
    assert_eq!(world.json(&["stats"])["total"]["jobs"]["done"], 1);
    assert_eq!(service.stop(), 0);
}
