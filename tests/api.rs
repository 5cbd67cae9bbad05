//! The HTTP interface of the built binary: its answers are what its description says, uploads become items, events tell of
//! them, and nothing that is sent to it hurts the director.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use serde_json::{Value, json};
use support::{LIMIT, World, text};

fn shell(body: &str, extra: &str) -> String {
    let command = json!(["sh", "-c", body, "sh", "{item}", "{out}"]);
    format!("[[route]]\nname = \"work\"\nbackoff = \"10ms\"\nretries = 0\ncommand = {command}\n{extra}")
}

fn connect(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.root.join(".gamdok/sock")).expect("the socket");
    stream.set_read_timeout(Some(LIMIT)).expect("its limit");
    stream
}

/// The status and the body of one request.
fn ask(world: &World, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = connect(world);
    let head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).expect("to ask");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let at = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap_or_else(|| panic!("{}", text(&answer)));
    let status = text(&answer[..at]).split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, answer.split_off(at + 4))
}

#[track_caller]
fn get(world: &World, path: &str) -> Value {
    let (status, body) = ask(world, "GET", path, b"");
    assert_eq!(status, 200, "{path}: {}", text(&body));
    serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{path}: {error} in {}", text(&body)))
}

/// An event stream.
struct Events(BufReader<UnixStream>);

impl Events {
    fn open(world: &World, last: Option<&str>) -> Events {
        let mut stream = connect(world);
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        stream.write_all(format!("GET /v1/events HTTP/1.0\r\n{last}\r\n").as_bytes()).expect("to ask");
        Events(BufReader::new(stream))
    }

    /// The next event's id, name and data; nothing at the end.
    fn next(&mut self) -> Option<(String, String, Value)> {
        let (mut id, mut name) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("a line") == 0 {
                return None;
            }
            match line.trim_end().split_once(": ") {
                Some(("id", it)) => it.clone_into(&mut id),
                Some(("event", it)) => it.clone_into(&mut name),
                Some(("data", it)) => return Some((id, name, serde_json::from_str(it).expect("JSON"))),
                _ => {}
            }
        }
    }

    /// Reads on until this one comes.
    #[track_caller]
    fn until(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> (String, Value) {
        loop {
            let (id, name, data) = self.next().expect("the stream goes on");
            if wanted(&name, &data) {
                return (id, data);
            }
        }
    }
}

/// The description, made strict: what it doesn't name isn't allowed.
struct Described(Value);

impl Described {
    fn of(world: &World) -> Described {
        let mut description = get(world, "/v1/openapi.json");
        let schemas = description["components"]["schemas"].as_object_mut().expect("schemas");
        for (name, schema) in schemas.iter_mut() {
            // A row of the list is part of what `show` answers.
            if schema.get("properties").is_some() && name != "Listed" {
                schema["unevaluatedProperties"] = json!(false);
            }
        }
        if let Some(shown) = schemas.get_mut("Shown") {
            shown["unevaluatedProperties"] = json!(false);
            for part in shown["allOf"].as_array_mut().into_iter().flatten() {
                part.as_object_mut().map(|part| part.remove("unevaluatedProperties"));
            }
        }
        Described(description)
    }

    #[track_caller]
    fn check(&self, method: &str, path: &str, status: &str, answer: &Value) {
        let schema = &self.0["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {path} {status} isn't described");
        self.is_valid(schema, answer, path);
    }

    #[track_caller]
    fn is_valid(&self, schema: &Value, answer: &Value, what: &str) {
        let mut schema = schema.clone();
        schema["components"] = self.0["components"].clone();
        let validator = jsonschema::validator_for(&schema).expect("a schema");
        let wrong: Vec<String> =
            validator.iter_errors(answer).map(|error| format!("{error} at {}", error.instance_path())).collect();
        assert!(wrong.is_empty(), "{what}: {wrong:#?}\n{answer:#}");
    }
}

#[test]
fn the_answers_of_a_director_are_what_is_described() {
    let body = "case $1 in *bad) exit 3;; *slow) sleep 1000;; esac";
    let world =
        World::new(&shell(body, "match = [\"*.good\", \"*.bad\", \"*.slow\"]\nenv = { API_KEY = \"s3cret\" }\n"));
    let service = world.start();
    let mut events = Events::open(&world, None);
    for name in ["1.good", "1.bad", "1.slow", "2.slow", "3.slow", "a.pdf"] {
        world.drop_file(name, b"x");
    }
    world.until("all are where they stay", |status| {
        let counts = &status["counts"];
        counts["done"] == 1 && counts["failed"] == 1 && counts["held"] == 1 && counts["running"] == 2
    });
    let described = Described::of(&world);
    for path in ["/v1/status", "/v1/devices", "/v1/waiting", "/v1/config", "/v1/changes", "/v1/items"] {
        described.check("get", path, "200", &get(&world, path));
    }
    assert!(!get(&world, "/v1/config").to_string().contains("s3cret"));
    let waiting = get(&world, "/v1/waiting");
    let held =
        waiting.as_array().and_then(|all| all.iter().find(|it| it["state"] == "held")).expect("one that is held");
    assert_eq!((&held["items"], &held["reason"]), (&json!(1), &json!(world.status()["held"][0]["reason"])));
    for name in ["1.good", "1.bad", "1.slow", "a.pdf"] {
        described.check("get", "/v1/items/{item}", "200", &get(&world, &format!("/v1/items/{name}")));
    }
    let post = |path: &str, body: Value, status: u16| {
        let (found, answer) = ask(&world, "POST", path, body.to_string().as_bytes());
        assert_eq!(found, status, "{path}: {}", text(&answer));
        described.check("post", path, &status.to_string(), &serde_json::from_slice(&answer).expect("JSON"));
    };
    for path in ["/v1/pause", "/v1/resume"] {
        post(path, json!({}), 200);
        post(path, json!({ "no": 1 }), 400);
    }
    for path in ["/v1/cordon", "/v1/uncordon"] {
        post(path, json!({ "device": "cpu" }), 200);
        post(path, json!({ "device": "nobody" }), 404);
        post(path, json!({}), 400);
    }
    post("/v1/retry", json!({ "jobs": ["1.bad"] }), 200);
    post("/v1/retry", json!({ "jobs": ["1.slow"] }), 409);
    post("/v1/cancel", json!({ "jobs": ["1.slow"] }), 200);
    post("/v1/cancel", json!({ "jobs": ["1.slow", "nobody"] }), 404);
    let (status, answer) = ask(&world, "PUT", "/v1/items?name=up.good", b"sent");
    assert_eq!(status, 201);
    described.check("put", "/v1/items", "201", &serde_json::from_slice(&answer).expect("JSON"));
    let (status, answer) = ask(&world, "PUT", "/v1/items?name=up.pdf", b"sent");
    assert_eq!(status, 409);
    described.check("put", "/v1/items", "409", &serde_json::from_slice(&answer).expect("JSON"));
    post("/v1/drain", json!({}), 200);
    post("/v1/cancel", json!({ "jobs": ["2.slow"] }), 200);
    post("/v1/retry", json!({ "jobs": ["1.bad"] }), 409);
    // What was told meanwhile, to the director's end.
    let told = &described.0["components"]["schemas"]["Told"];
    let mut names = std::collections::BTreeSet::new();
    let _ended = world.gamdok(&["cancel", "3.slow"]);
    while let Some((_, name, data)) = events.next() {
        described.is_valid(told, &json!({ "event": name, "data": data }), &name);
        names.insert(name);
    }
    let mut service = service;
    assert_eq!(service.wait(), 0);
    // Not `gone`: what is claimed within a round was never told to lie in the inbox.
    for name in ["counts", "device", "director", "item", "reset", "running"] {
        assert!(names.contains(name), "no {name} in {names:?}");
    }
}

#[test]
fn an_uploaded_item_is_worked_on_and_its_way_is_told() {
    let world = World::new(&shell("cat \"$1\" > $2/copy; echo said", ""));
    let service = world.start();
    let mut events = Events::open(&world, None);
    assert_eq!(events.next().map(|(_, name, _)| name).as_deref(), Some("reset"));
    let body = "x".repeat(3 << 20);
    let (status, answer) = ask(&world, "POST", "/v1/items?name=big%20one.txt", body.as_bytes());
    assert_eq!(status, 201, "{}", text(&answer));
    let is_done = |name: &str, data: &Value| name == "item" && data["name"] == "big one.txt" && data["state"] == "done";
    let (last, item) = events.until(is_done);
    let dir = world.root.join(get(&world, "/v1/items/big%20one.txt")["paths"]["dir"].as_str().expect("a directory"));
    assert_eq!(fs::read(dir.join("out/copy")).expect("its copy").len(), body.len());
    let (status, log) =
        ask(&world, "GET", &format!("/v1/items/{}/logs?follow=1", item["id"].as_str().expect("an id")), b"");
    assert_eq!(status, 400, "{}", text(&log));
    let path = format!("/v1/items/{}/logs?follow=true", item["id"].as_str().expect("an id"));
    assert_eq!(ask(&world, "GET", &path, b""), (200, b"said\n".to_vec()));
    // Who comes back hears what it missed; of a later director everything is new.
    drop(events);
    ask(&world, "POST", "/v1/items?name=two.txt", b"");
    let mut events = Events::open(&world, Some(&last));
    let (last, _) = events.until(|name, data| {
        assert_ne!(name, "reset");
        name == "item" && data["name"] == "two.txt" && data["state"] == "done"
    });
    service.kill();
    while events.next().is_some() {}
    let service = world.start();
    let (_, name, data) = Events::open(&world, Some(&last)).next().expect("an event");
    assert_eq!((name.as_str(), &data["why"]), ("reset", &json!("restarted")));
    assert_eq!(service.stop(), 0);
    world.assert_empty();
}

#[test]
fn a_kill_in_the_middle_of_an_upload_leaves_nothing_after_the_next_start() {
    let world = World::new(&shell(":", ""));
    let service = world.start();
    let mut stream = connect(&world);
    stream
        .write_all(b"PUT /v1/items?name=cut HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf")
        .expect("to send");
    let uploads = world.root.join(".gamdok/uploads");
    world.until("it is being written", |_| support::names(&uploads).len() == 1);
    service.kill();
    assert_eq!(support::names(&uploads).len(), 1);
    let service = world.start();
    assert_eq!(support::names(&uploads).len(), 0);
    assert_eq!(service.stop(), 0);
    world.assert_empty();
}

#[test]
fn whatever_is_sent_is_refused_with_a_reason_and_the_director_goes_on() {
    let world = World::new(&shell(":", ""));
    let service = world.start();
    let check = |bytes: &[u8]| {
        let mut stream = connect(&world);
        // The server may have had enough before it was all said.
        let _cut = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _cut = stream.read_to_end(&mut answer);
        let shown = format!("{} -> {}", text(&bytes[..bytes.len().min(60)]), text(&answer));
        let status = text(&answer).split(' ').nth(1).and_then(|status| status.parse::<u16>().ok());
        assert!(status.is_some_and(|status| (400..500).contains(&status)), "{shown}");
        let at = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
        let body: Value = serde_json::from_slice(&answer[at + 4..]).unwrap_or_else(|error| panic!("{error}: {shown}"));
        for key in ["code", "message", "help"] {
            assert!(body["error"][key].as_str().is_some_and(|text| !text.is_empty()), "{shown}");
        }
    };
    for line in [
        "\0\r\n",
        "GET\r\n",
        "GET / HTTP/9.9\r\n",
        "\u{16}\u{3}\u{1}\r\n",
        "get /v1/status\r\n",
        "GET /v1/\u{e9} HTTP/1.0\r\n",
    ] {
        check(format!("{line}\r\n").as_bytes());
    }
    let heads = [
        "GET /v1/status HTTP/1.0\r\nContent-Length: x",
        "GET /v1/status HTTP/1.0\r\nX\0: y",
        "GET /../../etc/passwd HTTP/1.0",
        "GET //v1/status HTTP/1.0",
        "GET /v1/items/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.0",
        "GET /v1/items/%00 HTTP/1.0",
        "GET /v1/items/%zz HTTP/1.0",
        "GET /v1/items?limit=1e9 HTTP/1.0",
        "GET /v1/items?cursor=AAAAAAAA HTTP/1.0",
        "GET /v1/changes?timeout=-1 HTTP/1.0",
        "GET /v1/changes?timeout=1e999 HTTP/1.0",
        "DELETE /v1/items HTTP/1.0",
        "PATCH /v1/items/a HTTP/1.0",
        "TRACE /v1/status HTTP/1.0",
        "PUT /v1/items?name=..%2fescaped HTTP/1.0\r\nContent-Length: 0",
        "PUT /v1/items?name=a&folder=..%2f.. HTTP/1.0\r\nContent-Length: 0",
        "PUT /v1/items?name=a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 99999999999999",
        "POST /v1/pause HTTP/1.0\r\nContent-Type: text/xml",
    ];
    heads.iter().for_each(|head| check(format!("{head}\r\n\r\n").as_bytes()));
    check(&[b"GET /".as_slice(), &vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat());
    for body in [
        "nul",
        "[]",
        "{\"jobs\":7}",
        "{\"jobs\":[\"\\u0000\"]}",
        "{\"jobs\":[\"\"]}",
        "{\"jobs\":[\"..\"]}",
        "\u{feff}{}",
        "{\"jobs\":[\"\\ud800\"]}",
    ] {
        check(format!("POST /v1/cancel HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
    }
    let deep = format!("{{\"jobs\":{}", "[".repeat(200_000));
    check(format!("POST /v1/retry HTTP/1.0\r\nContent-Length: {}\r\n\r\n{deep}", deep.len()).as_bytes());
    // Nothing else happened: it runs, isn't paused, and has taken nothing.
    let status = world.status();
    assert_eq!((&status["state"], &status["pid"]), (&json!("running"), &json!(service.pid())));
    assert_eq!(support::names(&world.root.join(".gamdok/uploads")).len(), 0);
    world.drop_file("after", b"x");
    world.wait();
    assert_eq!(world.outcomes(), ["after done -"]);
    assert_eq!(service.stop(), 0);
    world.assert_empty();
}
