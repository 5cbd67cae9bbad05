//! The server and its client against a director that is played by a thread.

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded, unbounded};
use serde_json::{Value, json};

use super::client::{Client, ClientError, encoded};
use super::directories::Directories;
use super::view::{Change, Counts, DirectorState, Listed, Shown, Status};
use super::*;
use crate::devices::HostMode;
use crate::item::{ItemName, JobDir, JobId, Outcome, ResultRecord};
use crate::root::Root;

/// A root with a server on it.
struct World {
    /// Dropped first: the server ends before its folder goes.
    server: Option<Server>,
    board: Board,
    /// What the director was asked.
    asked: Receiver<Command>,
    client: Client,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

fn view(number: u64, live: Vec<Listed>) -> View {
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: Some(1),
        root: "/r".to_owned(),
        mode: HostMode::Cpu,
        state: DirectorState::Running,
        uptime_s: Some(1.0),
        counts: Counts { ready: number, ..Counts::default() },
        devices: Vec::new(),
        running: Vec::new(),
        residents: Vec::new(),
        held: Vec::new(),
        health: Vec::new(),
        counters: Default::default(),
    };
    View { number, status, live, tallies: Default::default() }
}

fn id(n: u128) -> JobId {
    JobId(ulid::Ulid::from_parts(1_700_000_000_000 + n as u64, n))
}

/// Lays down an ended job as the spool leaves it.
fn ended(root: &Path, n: u128, name: &[u8], outcome: Outcome, finished_at: &str) -> JobDir {
    let name = ItemName::new(std::ffi::OsString::from_vec(name.to_vec()));
    let dir = JobDir::new(&name, id(n));
    let base = if outcome == Outcome::Done { "done" } else { "failed" };
    let path = root.join(base).join(&finished_at[..10]).join(dir.as_str());
    std::fs::create_dir_all(path.join("out")).expect("a job");
    std::fs::write(path.join("attempt-1.log"), b"said \xff").expect("a log");
    let result = ResultRecord {
        id: id(n),
        name: name.escaped(),
        name_b64: name.base64(),
        route: Some("r".to_owned()),
        outcome,
        reason: None,
        message: None,
        arrived_at: None,
        claimed_at: None,
        finished_at: finished_at.parse().expect("a time"),
        attempts: Vec::new(),
        outputs: Vec::new(),
        result: serde_json::value::to_raw_value(&json!({ "words": 3 })).ok(),
        counters: Default::default(),
    };
    std::fs::write(path.join("result.json"), serde_json::to_vec(&result).expect("JSON")).expect("a result");
    dir
}

fn world_at(depth: usize, listen: Option<&str>, token: Option<&str>) -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let root = (0..depth).fold(folder.path().to_owned(), |dir, _| dir.join("a-rather-long-name-of-a-folder"));
    let root = root.join("root");
    Root::init(&root).expect("a root");
    ended(&root, 1, b"a.wav", Outcome::Done, "2026-11-20T10:00:00Z");
    ended(&root, 2, b"b.wav", Outcome::Failed, "2026-11-21T10:00:00Z");
    ended(&root, 3, b"c \xff\n.wav", Outcome::Cancelled, "2026-11-22T10:00:00Z");
    for name in ["beyond.wav", "e.wav"] {
        std::fs::write(root.join("inbox").join(name), b"x").expect("an item");
    }
    let running = Listed {
        id: Some(id(4).to_string()),
        job: Some(format!("d~{}", id(4))),
        name: "d.wav".to_owned(),
        route: Some("r".to_owned()),
        state: "running".to_owned(),
        ..Listed::empty()
    };
    let waiting = Listed { name: "e.wav".to_owned(), state: "ready".to_owned(), ..Listed::empty() };
    let board = Board::new(view(1, vec![running, waiting]));

    let (requests, director) = bounded::<Request>(8);
    let (tell, asked) = unbounded();
    std::thread::spawn(move || {
        for request in director {
            let refused = matches!(&request.what, Command::Cordon { device } if device == "9");
            let refusal = || Refusal { code: "not-found".into(), message: "no device `9`".into(), help: String::new() };
            let answer = if refused { Err(refusal()) } else { Ok(serde_json::to_value(&request.what).expect("JSON")) };
            let _ = tell.send(request.what);
            let _ = request.reply.send(answer);
        }
    });
    let directories = Directories::new(&root, None);
    let server = serve(ServerSetup {
        directories: directories.clone(),
        board: board.clone(),
        requests,
        ended: Arc::new(directories),
        metrics: Arc::new(crate::metrics::Metrics::new(Default::default())),
        listen: listen.map(|listen| listen.parse().expect("an address")),
        token: token.map(str::to_owned),
    });
    let server = server.expect("a server");
    let client = Client::connect(&root).expect("a director");
    World { server: Some(server), board, asked, client, root, _folder: folder }
}

fn world() -> World {
    world_at(0, None, None)
}

fn names(rows: &[Listed]) -> Vec<&str> {
    rows.iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn what_is_published_and_what_has_ended_is_told() {
    let world = world();
    let status: Status = world.client.get("/v1/status").expect("a status");
    assert_eq!((status.pid, status.state), (Some(1), DirectorState::Running));
    let check = |query: &str, expected: &[&str]| {
        let rows: Vec<Listed> = world.client.get(&format!("/v1/jobs{query}")).expect(query);
        assert_eq!(names(&rows), expected, "{query}");
    };
    check("", &["d.wav", "e.wav", "c \\xff\\n.wav", "b.wav", "a.wav"]);
    check("?limit=3", &["d.wav", "e.wav", "c \\xff\\n.wav"]);
    check("?state=done", &["a.wav"]);
    check("?state=failed,running", &["d.wav", "b.wav"]);
    check("?state=cancelled", &["c \\xff\\n.wav"]);
    check("?route=none", &[]);
    check("?state=done,failed,cancelled&since=2026-11-21T10:00:00Z", &["c \\xff\\n.wav", "b.wav"]);
    check(&format!("?after={}&limit=1", id(3)), &["b.wav"]);
    check(&format!("?after={}", id(1)), &[]);
}

#[test]
fn a_job_is_shown_by_any_of_its_names() {
    let world = world();
    let check = |name: &str, state: &str| {
        let shown: Shown = world.client.get(&format!("/v1/jobs/{}", encoded(name))).expect(name);
        assert_eq!(shown.listed.state, state, "{name}");
        shown
    };
    check(&id(2).to_string(), "failed");
    check("b.wav", "failed");
    check("c \\xff\\n.wav", "cancelled");
    check("d.wav", "running");
    check("e.wav", "ready");
    // Not in the published view: it has just come, unless more are counted than listed.
    assert!(check("beyond.wav", "arriving").paths.item.is_some_and(|item| item.ends_with("/inbox/beyond.wav")));
    let waiting = Listed { name: "e.wav".to_owned(), state: "ready".to_owned(), ..Listed::empty() };
    world.board.publish(view(2, vec![waiting]));
    check("beyond.wav", "ready");
    check("e.wav", "ready");
    let shown = check("a.wav", "done");
    assert_eq!(shown.result.expect("a result")["result"], json!({ "words": 3 }));
    assert!(shown.paths.dir.is_some_and(|dir| dir.contains("/done/2026-11-20/a~")));
    assert_eq!((shown.paths.logs.len(), shown.paths.out.is_some()), (1, true));
}

#[test]
fn an_item_that_is_just_being_claimed_is_one_and_a_second_of_its_name_another() {
    let world = world();
    let dir = JobDir::new(&ItemName::new("e.wav"), id(9));
    let claimed = Listed {
        id: Some(id(9).to_string()),
        job: Some(dir.to_string()),
        name: "e.wav".to_owned(),
        state: "claimed".to_owned(),
        ..Listed::empty()
    };
    world.board.publish(view(2, vec![claimed]));
    let item = world.root.join("claimed").join(dir.as_str()).join("item");
    std::fs::create_dir_all(&item).expect("a job's directory");
    let shown: Shown = world.client.get("/v1/jobs/e.wav").expect("one");
    assert_eq!(shown.listed.id, Some(id(9).to_string()));
    std::fs::write(item.join("e.wav"), "moved").expect("an item");
    let two = world.client.get::<Shown>("/v1/jobs/e.wav").expect_err("two");
    assert!(two.to_string().contains("could be any of these"), "{two}");
}

#[test]
fn requests_reach_the_director_with_ids() {
    let world = world();
    let check = |path: &str, body: Value, expected: Value| {
        let answer: Value = world.client.post(path, &body).expect(path);
        let asked = world.asked.recv().expect("a request");
        assert_eq!(serde_json::to_value(asked).expect("JSON"), expected, "{path}");
        assert_eq!(answer, expected);
    };
    check("/v1/pause", json!({}), json!({ "command": "pause" }));
    check("/v1/drain", json!({}), json!({ "command": "drain" }));
    check("/v1/cordon", json!({ "device": "0" }), json!({ "command": "cordon", "device": "0" }));
    check(
        "/v1/cancel",
        json!({ "jobs": ["d.wav", "e.wav", "d~", "beyond.wav"] }),
        json!({ "command": "cancel", "jobs": [id(4).to_string()], "inbox": [
            { "folder": "", "name_b64": "ZS53YXY=" }, { "folder": "", "name_b64": "YmV5b25kLndhdg==" },
        ] }),
    );
    check(
        "/v1/retry",
        json!({ "jobs": ["b.wav", "c \\xff\\n.wav"] }),
        json!({ "command": "retry", "jobs": [id(2).to_string(), id(3).to_string()] }),
    );
    check("/v1/retry", json!({ "failed": true }), json!({ "command": "retry", "jobs": [id(2).to_string()] }));
}

/// The status and the error's code of a request written by hand.
fn raw(stream: &mut (impl std::io::Read + std::io::Write), request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("to ask");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or("?").to_owned();
    let body: Value =
        answer.split_once("\r\n\r\n").and_then(|(_, it)| serde_json::from_str(it).ok()).unwrap_or_default();
    match body["error"]["code"].as_str() {
        Some(code) => format!("{status} {code}"),
        None => status,
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let world = world();
    let check = |first: &str, body: &str, expected: &str| {
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        let length = body.len();
        let head =
            format!("{first} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
        assert_eq!(raw(&mut stream, &head), expected, "{first} {body}");
    };
    check("GET /v1/status", "", "200");
    check("POST /v1/pause", "", "200");
    check("GET /nowhere", "", "404 no-such-path");
    check("GET /v1/pause", "", "405 method-not-allowed");
    check("DELETE /v1/jobs/a.wav", "", "405 method-not-allowed");
    check("POST /v1/pause", "{", "400 bad-request");
    check("POST /v1/pause", "[1]", "400 bad-request");
    check("POST /v1/pause", "{\"now\":true}", "400 bad-request");
    check("POST /v1/cordon", "{}", "400 bad-request");
    check("POST /v1/cordon", "{\"device\":\"9\"}", "404 not-found");
    check("POST /v1/cancel", "{}", "400 bad-request");
    check("POST /v1/cancel", "{\"jobs\":[\"nobody\"]}", "404 not-found");
    check("POST /v1/cancel", "{\"jobs\":[\"a.wav\"]}", "409 ended");
    check("POST /v1/cancel", "{\"jobs\":[\"0\"]}", "409 ambiguous");
    check("POST /v1/retry", "{\"jobs\":[\"d.wav\"]}", "409 not-ended");
    check("POST /v1/retry", "{\"route\":\"r\"}", "400 bad-request");
    check("GET /v1/jobs?state=odd", "", "400 bad-request");
    check("GET /v1/jobs?limit=-1", "", "400 bad-request");
    check("GET /v1/jobs?what=1", "", "400 bad-request");
    check("GET /v1/jobs/%ff", "", "400 bad-request");
    check("GET /v1/jobs/nobody", "", "404 not-found");
    check("GET /v1/jobs/..%2f..%2fetc", "", "404 not-found");
    check("GET /v1/jobs/a.wav/logs", "", "200");
    check("GET /v1/jobs/a.wav/logs?attempt=7", "", "404 no-log");
    check("GET /v1/changes?timeout=NaN", "", "400 bad-request");
    check("POST /v1/pause", &" ".repeat((1 << 20) + 1), "413 too-large");
}

#[test]
fn tcp_asks_for_host_origin_and_token() {
    let check = |token: Option<&str>, first: &str, headers: &str, expected: &str| {
        let world = world_at(0, Some("127.0.0.1:0"), token);
        let address = world.server.as_ref().and_then(|server| server.listening).expect("a port");
        let mut stream = std::net::TcpStream::connect(address).expect("the port");
        let head = format!("{first} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(raw(&mut stream, &head), expected, "{first} {headers}");
    };
    check(None, "GET /v1/status", "Host: localhost\r\n", "200");
    check(None, "GET /v1/status", "Host: evil.example\r\n", "403 forbidden");
    check(None, "POST /v1/pause", "Host: localhost\r\n", "415 unsupported-type");
    check(Some("t0ken"), "GET /v1/status", "Host: localhost\r\n", "401 unauthorized");
    check(Some("t0ken"), "GET /v1/status", "Host: localhost\r\nAuthorization: Bearer t0ken\r\n", "200");
}

#[test]
fn beyond_loopback_a_token_is_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    let directories = Directories::new(folder.path(), None);
    let (requests, _director) = bounded(1);
    let refused = serve(ServerSetup {
        directories: directories.clone(),
        board: Board::new(view(1, Vec::new())),
        requests,
        ended: Arc::new(directories),
        metrics: Arc::new(crate::metrics::Metrics::new(Default::default())),
        listen: Some("0.0.0.0:0".parse().expect("an address")),
        token: None,
    });
    assert_eq!(refused.err().map(|error| error.kind()), Some(std::io::ErrorKind::InvalidInput));
}

#[test]
fn a_poll_answers_when_something_is_published() {
    let world = world();
    let change: Change = world.client.get("/v1/changes").expect("a change");
    assert_eq!(change.number, 1);
    let root = world.root.clone();
    let (tell, told) = bounded(1);
    let poll = std::thread::spawn(move || {
        let client = Client::connect(&root).expect("a director");
        let _ = tell.send(());
        client.get::<Change>("/v1/changes?after=1").map(|change| change.counts.ready).ok()
    });
    told.recv().expect("the poll");
    world.board.publish(view(2, Vec::new()));
    assert_eq!(poll.join().expect("the poll"), Some(2));
    world.client.pause(std::time::Duration::ZERO);
    let nothing: Change = world.client.get("/v1/changes?after=2&timeout=0").expect("a change");
    assert_eq!(nothing.number, 2);
}

#[test]
fn the_end_of_the_server_leaves_nothing_behind() {
    let mut world = world();
    world.server.take();
    assert!(!world.root.join(SOCKET).exists());
    let gone = |error: ClientError| matches!(error, ClientError::NoDirector { .. });
    assert!(world.client.get::<Status>("/v1/status").is_err_and(gone));
    assert!(Client::connect(&world.root).is_err_and(gone));
}

#[test]
fn a_root_with_a_long_path_is_served() {
    let world = world_at(8, None, None);
    assert!(world.root.as_os_str().len() > 108);
    world.client.get::<Status>("/v1/status").expect("a status");
}

#[test]
fn the_directories_tell_the_same_without_a_director() {
    let world = world();
    let directories = Directories::new(&world.root, None);
    let counts = directories.counts().expect("counts");
    let expected = Counts { arriving: 2, done: 1, failed: 1, cancelled: 1, ..Counts::default() };
    assert_eq!(counts, expected);
    std::fs::write(world.root.join("inbox/f.wav.part"), b"x").expect("a temporary name");
    let rows = directories.rows(&Query::default()).expect("rows");
    let mut waiting: Vec<&str> = names(&rows).into_iter().take(3).collect();
    waiting.sort_unstable();
    assert_eq!(waiting, ["beyond.wav", "e.wav", "f.wav.part"]);
    assert_eq!(names(&rows[3..]), ["c \\xff\\n.wav", "b.wav", "a.wav"]);
    let ignored = Query { states: vec!["ignored".to_owned()], ..Query::default() };
    assert_eq!(names(&directories.rows(&ignored).expect("rows")), ["f.wav.part"]);
    // Nobody knows whether these are ready.
    assert!(
        rows[..2]
            .iter()
            .filter(|row| row.state != "ignored")
            .all(|row| row.state == "arriving" && row.reason.is_some())
    );
    std::os::unix::fs::symlink("e.wav", world.root.join("inbox/link")).expect("a link");
    let status = directories.status(None).expect("a status");
    assert_eq!((status.state, status.counts.held, status.counts.arriving), (DirectorState::Stopped, 1, 2));
    assert!(status.held[0].name == "link" && status.held[0].reason.contains("symbolic link"), "{:?}", status.held);
}

#[test]
fn a_revived_job_lives_whatever_an_index_still_says() {
    let world = world();
    let dir = ended(&world.root, 4, b"d.wav", Outcome::Failed, "2026-11-22T11:00:00Z");
    let check = |state: &str| {
        let shown: Shown = world.client.get("/v1/jobs/d.wav").expect("a job");
        let rows: Vec<Listed> = world.client.get("/v1/jobs").expect("rows");
        let listed: Vec<&str> = rows.iter().filter(|row| row.name == "d.wav").map(|row| row.state.as_str()).collect();
        assert_eq!((shown.listed.state.as_str(), listed.as_slice()), (state, [state].as_slice()));
    };
    // It ended since the view was published.
    check("failed");
    std::fs::create_dir(world.root.join("claimed").join(dir.as_str())).expect("a claimed job");
    check("running");
}

#[test]
fn the_ledger_answers_as_the_directories_do() {
    let world = world();
    let directories = Directories::new(&world.root, None);
    let ledger = crate::ledger::start(crate::ledger::Setup::of_root(&world.root)).expect("a ledger");
    // Each answer follows one more step of its survey.
    let complete = || {
        let reader = crate::ledger::Reader::open(&crate::ledger::file_of(&world.root));
        reader.is_ok_and(|reader| reader.is_complete().is_ok_and(|complete| complete))
    };
    let limit = std::time::Duration::from_secs(60);
    assert!((0..1000).any(|_| ledger.entries.flush(limit) && complete()), "else the directories would answer for it");
    let indexed = Indexed::new(directories.clone(), ledger.entries.clone());
    let check = |query: Query| {
        let shown = |rows: Vec<Listed>| rows.into_iter().map(|row| (row.id, row.name, row.state)).collect::<Vec<_>>();
        let told = shown(indexed.list(&query).expect("rows"));
        assert_eq!(told, shown(Ended::list(&directories, &query).expect("rows")), "{query:?}");
    };
    check(Query::default());
    check(Query { limit: Some(2), ..Query::default() });
    check(Query { states: vec!["failed".to_owned(), "done".to_owned()], ..Query::default() });
    check(Query { after: Some(id(3)), limit: Some(1), ..Query::default() });
    check(Query { since: "2026-11-21T10:00:00Z".parse().ok(), limit: Some(1), ..Query::default() });
    check(Query { route: Some("none".to_owned()), ..Query::default() });
    for name in ["a.wav", "b~", "c \\xff\\n.wav", "nobody"] {
        let ids = |rows: Vec<Listed>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
        assert_eq!(ids(indexed.find(name).expect("rows")), ids(directories.find(name).expect("rows")), "{name}");
    }
    ledger.stop();
}
