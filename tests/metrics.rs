//! `/metrics` against the built binary: scrapes before, during and after work, read strictly; that they agree with
//! `status`; that nothing of an item is told; and that what the dashboard, the alerts and the README name is there.

mod exposition;
mod standin;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use exposition::Exposition;
use serde_json::Value;
use standin::{Driver, Gpu, Host, StandIn, State};
use support::{LIMIT, Service, World, script};

/// One request on this connection; the code, the headers in lower case, the body.
fn ask(mut stream: impl Write + std::io::Read, request: &str) -> (u16, String, String) {
    stream.write_all(request.as_bytes()).expect("to ask");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, head.to_lowercase(), body.to_owned())
}

fn unix(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.root.join(".gamdok/sock")).expect("the socket");
    stream.set_read_timeout(Some(LIMIT)).expect("its limit");
    stream
}

fn page(world: &World) -> String {
    let (code, head, body) = ask(unix(world), "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(code, 200, "{head}\n{body}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    body
}

#[track_caller]
fn scrape(world: &World) -> Exposition {
    let page = page(world);
    Exposition::parse(&page).unwrap_or_else(|wrong| panic!("{wrong}\n{page}"))
}

/// Scrapes until the condition holds.
#[track_caller]
fn scrape_until(world: &World, what: &str, mut holds: impl FnMut(&Exposition) -> bool) -> Exposition {
    let deadline = std::time::SystemTime::now() + LIMIT;
    loop {
        let now = scrape(world);
        if holds(&now) {
            return now;
        }
        assert!(std::time::SystemTime::now() < deadline, "never {what}: {now:#?}");
        world.pause();
    }
}

/// What both tell is the same, once the director has come to rest between the two.
#[track_caller]
fn assert_agrees(world: &World) {
    let deadline = std::time::SystemTime::now() + LIMIT;
    loop {
        let (before, now, status) = (world.status(), scrape(world), world.status());
        let told = |it: &Value| (it["counts"].clone(), it["devices"].clone(), it["health"].clone());
        if told(&before) == told(&status) {
            return compare(&now, &status);
        }
        assert!(std::time::SystemTime::now() < deadline, "it never came to rest");
    }
}

#[track_caller]
fn compare(now: &Exposition, status: &Value) {
    let counts = status["counts"].as_object().expect("counts");
    for (state, count) in counts {
        let told = match state.as_str() {
            "done" | "failed" | "cancelled" => now.sum("gamdok_jobs_kept", &[("outcome", state)]),
            state => now.sum("gamdok_items", &[("state", state)]),
        };
        assert_eq!(Some(told), count.as_f64(), "{state} {now:#?}");
    }
    assert_eq!(now.sum("gamdok_items_held", &[]), counts["held"].as_f64().expect("a count"));
    for device in status["devices"].as_array().expect("devices") {
        let id = device["id"].as_str().expect("an id");
        let verdict = device["verdict"].as_str().expect("a verdict");
        assert_eq!(now.get("gamdok_device_verdict", &[("device", id), ("verdict", verdict)]), Some(1.0));
        assert_eq!(now.sum("gamdok_device_verdict", &[("device", id)]), 1.0);
        let same = |metric: &str, key: &str, times: f64| {
            let told = now.get(metric, &[("device", id)]);
            assert_eq!(told, device[key].as_f64().map(|value| value * times), "{metric} of {id}");
        };
        same("gamdok_device_slots", "slots", 1.0);
        same("gamdok_device_slots_taken", "taken", 1.0);
        same("gamdok_device_memory_size_bytes", "memory_total", 1.0);
        same("gamdok_device_memory_used_bytes", "memory_used", 1.0);
        same("gamdok_device_utilization_ratio", "utilization", 0.01);
        same("gamdok_device_temperature_celsius", "temperature", 1.0);
        same("gamdok_device_power_watts", "power_w", 1.0);
    }
    for check in status["health"].as_array().expect("health") {
        let (part, state) = (check["what"].as_str().expect("a part"), check["state"].as_str().expect("a state"));
        assert_eq!(now.get("gamdok_health", &[("part", part), ("state", state)]), Some(1.0), "{part}");
        assert_eq!(now.sum("gamdok_health", &[("part", part)]), 1.0, "{part}");
    }
    assert_eq!(now.get("gamdok_director_state", &[("state", status["state"].as_str().expect("a state"))]), Some(1.0));
}

/// A route whose items wait for a file beside the root: `gate-NAME`, with the code to end with.
fn gated(world: &World, more: &str) -> String {
    let gates = world.dir.path().display();
    let wait =
        format!("while [ ! -e {gates}/gate-$GAMDOK_NAME ]; do sleep 0.02; done; exit $(cat {gates}/gate-$GAMDOK_NAME)");
    let path = script(world.dir.path(), "wait.sh", &wait);
    format!("[[route]]\nname = \"r\"\ncommand = [\"sh\", {path:?}, \"{{item}}\"]\nbackoff = \"10ms\"\n{more}\n")
}

const CPU: &str = "[devices]\nuse = \"cpu\"\ncpu_slots = 1\n";

#[test]
fn work_is_told_before_while_and_after_it_is_done() {
    let world = World::new("");
    world.configure(CPU, &gated(&world, "retries = 1\nmatch = [\"*.wav\"]"));
    let open =
        |name: &str, code: u8| fs::write(world.scratch(&format!("gate-{name}")), code.to_string()).expect("a gate");
    let service = world.start();
    let before = scrape_until(&world, "the inbox is read", |now| {
        !now.0["gamdok_scan_seconds"].samples.is_empty()
            && now.get("gamdok_items", &[("route", "r"), ("state", "ready")]).is_some()
    });
    let of_r = |now: &Exposition, name: &str| now.get(name, &[("route", "r")]).expect("a route's");
    let ended = |now: &Exposition, labels: &[(&str, &str)]| {
        now.get("gamdok_items_ended_total", &[&[("route", "r")], labels].concat())
    };
    assert_eq!(of_r(&before, "gamdok_attempts_started_total"), 0.0);
    assert_eq!(ended(&before, &[("outcome", "done")]), Some(0.0));
    assert_eq!(ended(&before, &[("outcome", "failed"), ("reason", "timeout")]), Some(0.0));
    assert_eq!(of_r(&before, "gamdok_item_waiting_seconds_count"), 0.0);
    assert_eq!(before.get("gamdok_dispatch_gap_seconds_count", &[]), Some(0.0));
    assert_agrees(&world);

    world.drop_file("confidential-1.wav", b"x");
    world.until("it runs", |status| status["counts"]["running"] == 1);
    world.drop_file("confidential-2.wav", b"x");
    world.drop_file("confidential-3.txt", b"x");
    world.until("the others are seen", |status| status["counts"]["held"] == 1 && status["counts"]["claimed"] == 1);
    let during = scrape(&world);
    assert_eq!(during.get("gamdok_items", &[("route", "r"), ("state", "running")]), Some(1.0));
    assert_eq!(during.get("gamdok_items", &[("route", "r"), ("state", "claimed")]), Some(1.0));
    assert_eq!(during.get("gamdok_items_held", &[("reason", "no-route")]), Some(1.0));
    assert_eq!(during.get("gamdok_items", &[("state", "held")]), Some(1.0));
    assert_eq!(during.get("gamdok_device_verdict", &[("device", "cpu"), ("verdict", "leased")]), Some(1.0));
    assert_eq!(of_r(&during, "gamdok_attempts_started_total"), 1.0);
    assert_eq!(during.fell_since(&before), Vec::<String>::new());
    assert!(!page(&world).contains("confidential"));
    assert_agrees(&world);

    open("confidential-1.wav", 3);
    open("confidential-2.wav", 0);
    world.wait();
    let after = scrape(&world);
    assert_eq!(ended(&after, &[("outcome", "done")]), Some(1.0));
    assert_eq!(ended(&after, &[("outcome", "failed"), ("reason", "exit")]), Some(1.0));
    assert_eq!(after.get("gamdok_retries_total", &[("route", "r"), ("reason", "exit")]), Some(1.0));
    assert_eq!(of_r(&after, "gamdok_items_claimed_total"), 2.0);
    assert_eq!(of_r(&after, "gamdok_attempts_started_total"), 3.0);
    assert_eq!(of_r(&after, "gamdok_attempt_running_seconds_count"), 3.0);
    assert_eq!(of_r(&after, "gamdok_item_waiting_seconds_count"), 2.0, "of items, not of attempts");
    // After the first end the second item waited; whether one still waits after the second depends on the backoff.
    let gaps = after.get("gamdok_dispatch_gap_seconds_count", &[]).expect("the gaps");
    assert!((1.0..=2.0).contains(&gaps), "{gaps}");
    let rounds = after.get("gamdok_spool_round_seconds_count", &[]).expect("the rounds");
    assert!(rounds > 0.0 && after.sum("gamdok_spool_sync_seconds_count", &[]) > 0.0);
    let (free, size) = (after.get("gamdok_space_free_bytes", &[]), after.get("gamdok_space_size_bytes", &[]));
    assert!(free.is_some() && free <= size, "{free:?} {size:?}");
    assert_eq!(after.fell_since(&during), Vec::<String>::new());
    scrape_until(&world, "the ledger has all", |now| now.get("gamdok_ledger_behind_entries", &[]) == Some(0.0));
    assert_agrees(&world);

    // What is retried by hand ends once more, and is a directory once.
    world.ok(&["retry", "confidential-1.wav"]);
    world.wait();
    let again = scrape(&world);
    assert_eq!(ended(&again, &[("outcome", "failed"), ("reason", "exit")]), Some(2.0));
    assert_eq!(again.get("gamdok_jobs_kept", &[("outcome", "failed")]), Some(1.0));
    assert_eq!(again.fell_since(&after), Vec::<String>::new());
    service.stop();
}

#[test]
fn routes_are_labels_whatever_they_are_called() {
    let names = [r#"a "b" {c="d"} 1"#, "# EOF", "한국어", "le=+Inf", "NaN", "{}", ",", "x y"];
    let route =
        |(at, name): (usize, &&str)| format!("[[route]]\nname = '{name}'\nmatch = [\"{at}\"]\ncommand = [\"true\"]\n");
    let routes: String = names.iter().enumerate().map(route).collect();
    let world = World::new(&routes);
    let service = world.start();
    (0..names.len()).for_each(|at| world.drop_file(at.to_string(), b"x"));
    world.until("all are done", |status| status["counts"]["done"] == names.len());
    let now = scrape(&world);
    for name in names {
        assert_eq!(now.get("gamdok_items_ended_total", &[("route", name), ("outcome", "done")]), Some(1.0), "{name}");
        assert_eq!(now.get("gamdok_items", &[("route", name), ("state", "ready")]), Some(0.0), "{name}");
    }
    let told: BTreeSet<&String> =
        now.0.values().flat_map(|it| it.samples.keys()).filter_map(|(_, labels)| labels.get("route")).collect();
    assert_eq!(told, names.map(str::to_owned).iter().collect());
    service.stop();
}

#[test]
fn a_configuration_of_many_routes_stays_a_bounded_page() {
    let route = |n: usize| format!("[[route]]\nname = \"r{n}\"\nmatch = [\"{n}\"]\ncommand = [\"true\"]\n");
    let world = World::new(&(0..130).map(route).collect::<String>());
    let service = world.start();
    [1, 128, 129].iter().for_each(|n| world.drop_file(n.to_string(), b"x"));
    world.until("all are done", |status| status["counts"]["done"] == 3);
    let now = scrape(&world);
    let done = |route| now.get("gamdok_items_ended_total", &[("route", route), ("outcome", "done")]);
    assert_eq!((done("r1"), done("/others"), done("r129")), (Some(1.0), Some(2.0), None));
    assert_eq!(now.0["gamdok_attempts_started"].samples.len(), 101);
    assert_agrees(&world);
    service.stop();
}

#[test]
fn why_items_are_held_is_told_by_kinds() {
    let route = "[[route]]\nname = \"small\"\nmatch = [\"*.s\"]\ncommand = [\"true\"]\nready = { min_bytes = 10 }\n\
                 [[route]]\nname = \"marked\"\nmatch = [\"*.m\"]\ncommand = [\"true\"]\nready = { marker = \".ok\" }\n\
                 [[route]]\nname = \"gpu\"\nmatch = [\"*.g\"]\ncommand = [\"true\"]\ncpu_fallback = false\n";
    let world = World::new(route);
    let service = world.start();
    ["1.s", "2.s", "1.m", "1.g", "1.x"].iter().for_each(|name| world.drop_file(name, b"x"));
    std::os::unix::fs::symlink("/etc/hosts", world.inbox().join("link")).expect("a link");
    world.until("all are held", |status| status["counts"]["held"] == 6);
    let now = scrape(&world);
    let check = |reason: &str, expected: f64| {
        assert_eq!(now.get("gamdok_items_held", &[("reason", reason)]), Some(expected), "{reason}");
    };
    check("too-small", 2.0);
    check("marker", 1.0);
    check("no-device", 1.0);
    check("no-route", 1.0);
    check("not-an-item", 1.0);
    check("unreadable", 0.0);
    assert_eq!(now.get("gamdok_items", &[("route", "small"), ("state", "held")]), Some(2.0));
    assert_eq!(now.get("gamdok_items", &[("state", "held")]), Some(2.0));
    assert_agrees(&world);
    service.stop();
}

/// A director with two GPUs of the stand-in driver, of which one runs an item.
fn with_gpus() -> (World, Service) {
    let mut world = World::new("");
    let dir = world.dir.path().to_owned();
    let (host, standin) = (Host::at(&dir.join("host")), StandIn::at(&dir));
    host.gpu();
    standin.set(&State { gpus: vec![Gpu::idle(1), Gpu { util: 3, ..Gpu::idle(2) }], ..State::default() });
    world.set("GAMDOK_SYSFS", host.env().1);
    for (key, value) in standin.env(Driver::Current) {
        world.set(key, value);
    }
    let notify = "[[notify]]\ncommand = [\"true\"]\n";
    world.configure("", &format!("{}{notify}", gated(&world, "")));
    let service = world.start();
    world.drop_file("a", b"x");
    world.until("it runs", |status| status["counts"]["running"] == 1);
    scrape_until(&world, "the energy is read", |now| now.sum("gamdok_device_energy_joules_total", &[]) > 0.0);
    (world, service)
}

#[test]
fn gpus_are_told_with_all_that_the_driver_tells() {
    let (world, service) = with_gpus();
    let one = "GPU-10000000-0000-0000-0000-000000000000";
    let now = scrape(&world);
    let of = |name: &str| now.get(name, &[("device", one)]);
    assert_eq!(of("gamdok_device_memory_size_bytes"), Some((80_u64 << 30) as f64));
    assert_eq!(of("gamdok_device_temperature_celsius"), Some(40.0));
    assert_eq!(of("gamdok_device_power_watts"), Some(50.0));
    assert_eq!(of("gamdok_device_slots"), Some(1.0));
    let info = [("device", one), ("index", "0"), ("kind", "gpu"), ("name", "Stand-in GPU")];
    assert_eq!(now.get("gamdok_device_info", &info), Some(1.0));
    let cordoned = |now: &Exposition, by: &str| now.sum("gamdok_device_cordoned", &[("by", by)]);
    assert_eq!(cordoned(&now, "hand"), 0.0);
    world.ok(&["cordon", "1"]);
    let now = scrape(&world);
    assert_eq!((cordoned(&now, "hand"), cordoned(&now, "failures")), (1.0, 0.0));
    assert_eq!(now.sum("gamdok_device_verdict", &[("verdict", "unhealthy")]), 1.0);
    assert_agrees(&world);
    // The pool of CPU slots has neither memory nor power, and nothing says that it had none.
    assert_eq!(now.get("gamdok_device_slots_taken", &[("device", "cpu")]), Some(0.0));
    for name in ["memory_size_bytes", "memory_used_bytes", "power_watts", "temperature_celsius", "energy_joules_total"]
    {
        assert_eq!(now.get(&format!("gamdok_device_{name}"), &[("device", "cpu")]), None, "{name}");
    }
    fs::write(world.scratch("gate-a"), "0").expect("a gate");
    world.wait();
    service.stop();
}

#[test]
fn over_tcp_the_guard_stands_before_it() {
    let world = World::new("");
    let token = world.scratch("token");
    fs::write(&token, "s3cret\n").expect("a token");
    let route = "[[route]]\nname = \"r\"\ncommand = [\"true\"]\n";
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port();
    world.configure(&format!("{CPU}[api]\nlisten = \"127.0.0.1:{port}\"\ntoken_file = {token:?}\n"), route);
    let service = world.start();
    let check = |headers: &str, code: u16, has: &str| {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{headers}Connection: close\r\n\r\n");
        let (got, head, body) = ask(stream, &request);
        assert_eq!(got, code, "{headers}");
        assert!(head.contains(has) || body.contains(has), "{headers}{head}\n{body}");
    };
    check("", 401, "error");
    check("Authorization: Bearer s3cre\r\n", 401, "error");
    check("Authorization: Bearer s3cret\r\n", 200, "application/openmetrics-text");
    check("Authorization: Bearer s3cret\r\n", 200, "gamdok_items_ended_total");
    check("Authorization: Bearer s3cret\r\nAccept: text/plain\r\n", 200, "text/plain; version=0.0.4");
    check("Authorization: Bearer s3cret\r\nOrigin: https://evil.example\r\n", 403, "error");

    // What isn't HTTP is cut, and counted like the refusals above.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    stream.write_all(b"\x16\x03\x01 no HTTP at all\r\n\r\n").expect("to send");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    let now = scrape_until(&world, "it is cut", |now| {
        now.get("gamdok_api_clients_cut_total", &[("reason", "malformed")]) == Some(1.0)
    });
    assert!(now.sum("gamdok_api_responses_total", &[("class", "4xx")]) >= 3.0);
    assert!(now.get("gamdok_api_clients", &[]) >= Some(1.0), "the one that asks is a client");
    service.stop();
}

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// Every word of a text that is one of our metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("gamdok_") && *word != "gamdok_").map(str::to_owned).collect()
}

/// The expressions of a dashboard: every `expr`, and the queries of its variables.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "expr" || (key == "query" && text.contains("gamdok_")) => {
                        found.push(text.clone())
                    }
                    value => expressions(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

#[test]
fn the_readme_the_dashboard_and_the_alerts_name_what_is_told() {
    let (world, service) = with_gpus();
    let now = scrape(&world);
    let told = now.names();

    let readme = read("README.md");
    let table = readme.lines().filter(|line| line.starts_with("| `gamdok_"));
    let documented: BTreeSet<String> = table
        .filter_map(|line| line.split('`').nth(1))
        .map(|name| name.split('{').next().unwrap_or(name).to_owned())
        .collect();
    // A histogram is documented by its family's name.
    let mut families: BTreeSet<String> = now
        .0
        .values()
        .flat_map(|family| match family.kind.as_str() {
            "histogram" => vec![family.name.clone()],
            _ => family.samples.keys().map(|(name, _)| name.clone()).collect(),
        })
        .collect();
    // There are none of these here.
    families.insert("gamdok_resident_workers".to_owned());
    assert_eq!(documented, families);

    let dashboard: Value = serde_json::from_str(&read("config/grafana/gamdok.json")).expect("JSON");
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    assert!(asked.len() > 20, "{}", asked.len());
    for text in asked.iter().chain([&read("config/prometheus/alerts.yml")]) {
        let unknown: Vec<String> = metrics_in(text)
            .into_iter()
            .filter(|name| !told.contains(name) && name != "gamdok_resident_workers")
            .collect();
        assert_eq!(unknown, Vec::<String>::new(), "{text}");
    }

    // What Grafana needs of a dashboard that is imported: panels that lie beside each other, each with its own number.
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len());
    let mut taken = BTreeSet::new();
    for panel in panels {
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap_or_else(|| panic!("{key} of {panel}"));
        let title = panel["title"].as_str().expect("a title");
        assert!(!title.is_empty() && number("x") + number("w") <= 24, "{title}");
        let cells = (0..number("h")).flat_map(|y| (0..number("w")).map(move |x| (x, y)));
        for (x, y) in cells {
            assert!(taken.insert((number("x") + x, number("y") + y)), "{title} lies on another panel");
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
            assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{title}");
        }
    }
    for key in ["title", "uid", "schemaVersion", "templating", "time", "refresh"] {
        assert!(!dashboard[key].is_null(), "{key}");
    }
    fs::write(world.scratch("gate-a"), "0").expect("a gate");
    world.wait();
    service.stop();
}
