//! The server and its client against a director that is played by a thread.

mod events;
mod uploads;

use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded, unbounded};
use serde_json::{Value, json};

use uploads::arrived;

use super::client::{Client, ClientError, encoded};
use super::cursor::Cursor;
use super::directories::Directories;
use super::shapes::Page;
use super::view::{Change, Counts, DirectorState, Listed, Shown, Status};
use super::*;
use crate::config::Config;
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

pub(super) fn view(number: u64, live: Vec<Listed>) -> View {
    let status = Status {
        version: "0.1.0".to_owned(),
        pid: Some(1),
        uptime_s: Some(1.0),
        counts: Counts { ready: number, ..Counts::default() },
        ..Status::empty("/r".to_owned(), HostMode::Cpu, DirectorState::Running)
    };
    View { number, status, live, tallies: Default::default() }
}

pub(super) fn id(n: u128) -> JobId {
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
    world_with(depth, listen, token, Patience::default())
}

fn world_with(depth: usize, listen: Option<&str>, token: Option<&str>, patience: Patience) -> World {
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
        max_upload: 1 << 20,
        patience,
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
        let Page { items: rows, .. } = world.client.get(&format!("/v1/items{query}")).expect(query);
        assert_eq!(names(&rows), expected, "{query}");
    };
    check("", &["d.wav", "e.wav", "c \\xff\\n.wav", "b.wav", "a.wav"]);
    check("?limit=3", &["d.wav", "e.wav", "c \\xff\\n.wav"]);
    check("?state=done", &["a.wav"]);
    check("?state=failed,running", &["d.wav", "b.wav"]);
    check("?state=cancelled", &["c \\xff\\n.wav"]);
    check("?route=none", &[]);
    check("?state=done,failed,cancelled&since=2026-11-21T10:00:00Z", &["c \\xff\\n.wav", "b.wav"]);
    check(&format!("?cursor={}&limit=1", Cursor::Ended(id(3))), &["b.wav"]);
    check(&format!("?cursor={}", Cursor::Ended(id(1))), &[]);
    check("?name=B.WAV", &["b.wav"]);
    check("?name=%5Cxff", &["c \\xff\\n.wav"]);
    check("?name=nobody", &[]);
    check("?until=2026-11-22T10:00:00Z", &["b.wav", "a.wav"]);
    check("?since=2026-11-21T10:00:00Z&until=2026-11-22T10:00:00Z&state=failed", &["b.wav"]);
}

/// All pages of so many rows, one after another; `between` comes after each.
fn paged(world: &World, limit: usize, mut between: impl FnMut(usize)) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    for round in 0.. {
        let page: Page = world.client.get(&format!("/v1/items?limit={limit}{cursor}")).expect("a page");
        assert!(page.items.len() <= limit, "{page:?}");
        all.extend(page.items.into_iter().map(|row| row.name));
        let Some(next) = page.next else { break };
        cursor = format!("&cursor={next}");
        between(round);
    }
    all
}

#[test]
fn pages_hold_each_row_once_whatever_changes_between_them() {
    let world = world();
    let row = |n: u128, state: &str| Listed {
        id: Some(id(n).to_string()),
        name: format!("job {n}"),
        state: state.to_owned(),
        ..Listed::empty()
    };
    let item = |name: &str| Listed { name: name.to_owned(), state: "ready".to_owned(), ..Listed::empty() };
    // Out of order, as the director may list them.
    let live = vec![row(8, "claimed"), item("n"), row(7, "running"), item("m")];
    world.board.publish(view(2, live.clone()));
    let expected = ["job 7", "job 8", "m", "n", "c \\xff\\n.wav", "b.wav", "a.wav"];
    for limit in 1..9 {
        assert_eq!(paged(&world, limit, |_| {}), expected, "{limit}");
    }
    // More jobs, an item that is taken back, and an ended job that is pruned where a page ended.
    let root = world.root.clone();
    let changed = paged(&world, 1, |round| match round {
        0 => world.board.publish(view(3, [live.clone(), vec![row(9, "claimed"), item("a first one")]].concat())),
        2 => world.board.publish(view(4, vec![row(8, "claimed"), item("n"), item("o")])),
        5 => std::fs::remove_dir_all(root.join("failed/2026-11-22")).expect("to prune"),
        _ => {}
    });
    assert_eq!(changed, ["job 7", "job 8", "job 9", "n", "o", "c \\xff\\n.wav", "b.wav", "a.wav"]);
}

#[test]
fn a_job_is_shown_by_any_of_its_names() {
    let world = world();
    let check = |name: &str, state: &str| {
        let shown: Shown = world.client.get(&format!("/v1/items/{}", encoded(name))).expect(name);
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
    let shown: Shown = world.client.get("/v1/items/e.wav").expect("one");
    assert_eq!(shown.listed.id, Some(id(9).to_string()));
    std::fs::write(item.join("e.wav"), "moved").expect("an item");
    let two = world.client.get::<Shown>("/v1/items/e.wav").expect_err("two");
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
    raw_bytes(stream, request.as_bytes())
}

fn raw_bytes(stream: &mut (impl std::io::Read + std::io::Write), request: &[u8]) -> String {
    // Who is refused before all is sent is cut while sending; the answer lies there all the same.
    let _cut = stream.write_all(request);
    let mut answer = Vec::new();
    // A client that is cut has read what there was.
    let _broken = stream.read_to_end(&mut answer);
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
    check("DELETE /v1/items/a.wav", "", "405 method-not-allowed");
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
    check("GET /v1/items?state=odd", "", "400 bad-request");
    check("GET /v1/items?limit=-1", "", "400 bad-request");
    check("GET /v1/items?limit=99999999999999999999", "", "400 bad-request");
    check("GET /v1/items?limit=1&limit=2", "", "400 bad-request");
    check("GET /v1/items?since=yesterday", "", "400 bad-request");
    check("GET /v1/items?until=-999999-01-01T00:00:00Z", "", "400 bad-request");
    check("GET /v1/items?since=-009999-01-03T00:00:00Z", "", "200");
    check("GET /v1/items?cursor=x", "", "400 bad-request");
    check("GET /v1/items?name=%00", "", "200");
    check("GET /v1/items?name=%ff", "", "400 bad-request");
    check("GET /v1/items/%00", "", "404 not-found");
    check("GET /v1/items/a%00.wav", "", "404 not-found");
    check("GET /v1/items/", "", "404 no-such-path");
    check(&format!("GET /v1/items/{}", "9".repeat(20_000)), "", "404 not-found");
    check(&format!("GET /v1/items/{}", "%5c".repeat(9_000)), "", "404 not-found");
    check("GET /v1/items/a.wav/logs?attempt=99999999999", "", "400 bad-request");
    check("GET /v1/items/a.wav/logs?offset=18446744073709551615", "", "200");
    check("GET /v1/items/a.wav/logs?tail=18446744073709551615", "", "200");
    check("GET /v1/items/a.wav/logs?tail=1&offset=1", "", "400 bad-request");
    check("GET /v1/items/a.wav/logs?follow=perhaps", "", "400 bad-request");
    check("GET /v1/items/e.wav/logs?follow=true", "", "404 no-log");
    check("OPTIONS /v1/items", "", "204");
    check("OPTIONS /nowhere", "", "404 no-such-path");
    check("OPTIONS *", "", "404 no-such-path");
    check("HEAD /v1/status", "", "200");
    check("HEAD /nowhere", "", "404");
    check("BREW /v1/status", "", "405 method-not-allowed");
    check("PUT /v1/status", "", "405 method-not-allowed");
    check("CONNECT a:1", "", "404 no-such-path");
    check("PUT /v1/items", "", "400 bad-request");
    check(&format!("POST /v1/cancel?x={}", "x".repeat(30_000)), "{\"jobs\":[\"nobody\"]}", "404 not-found");
    check("POST /v1/cancel", &format!("{{\"jobs\":[{}\"x\"]}}", "\"x\",".repeat(20_000)), "413 too-many");
    check("POST /v1/cancel", &"[".repeat(100_000), "400 bad-request");
    check("GET /v1/items?what=1", "", "400 bad-request");
    check("GET /v1/items/%ff", "", "400 bad-request");
    check("GET /v1/items/nobody", "", "404 not-found");
    check("GET /v1/items/..%2f..%2fetc", "", "404 not-found");
    check("GET /v1/items/a.wav/logs", "", "200");
    check("GET /v1/items/a.wav/logs?attempt=7", "", "404 no-log");
    check("GET /v1/changes?timeout=NaN", "", "400 bad-request");
    check("POST /v1/pause", &" ".repeat((1 << 20) + 1), "413 too-large");
}

#[test]
fn what_is_no_request_is_refused_and_nothing_else_happens() {
    let world = world();
    let check = |bytes: &[u8], expected: &str| {
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        let said = raw_bytes(&mut stream, bytes);
        assert_eq!(said, expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        assert!(world.asked.is_empty());
        world.client.get::<Status>("/v1/status").expect("the server goes on");
    };
    let close = "Connection: close\r\n";
    check(b"\0\0\0\0\r\n\r\n", "400 bad-request");
    check(b"hello\r\n\r\n", "400 bad-request");
    check(b"GET\r\n\r\n", "400 bad-request");
    check(b"GET / HTTP/9.9\r\n\r\n", "400 bad-request");
    check(b"GET /\x01 HTTP/1.1\r\n\r\n", "400 bad-request");
    check(b"GET /v1/status HTTP/1.1\r\nHost: x\0\r\n\r\n", "400 bad-request");
    check(b"GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n", "400 bad-request");
    check(b"GET /v1/status HTTP/1.1\r\n: x\r\n\r\n", "400 bad-request");
    check(b"POST /v1/pause HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "400 bad-request");
    check(b"POST /v1/pause HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", "400 bad-request");
    check(b"POST /v1/pause HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", "400 bad-request");
    check(b"POST /v1/pause HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", "400 bad-request");
    check(
        format!("POST /v1/pause HTTP/1.1\r\n{close}Transfer-Encoding: chunked\r\n\r\nzz\r\n").as_bytes(),
        "400 bad-request",
    );
    check(
        format!("POST /v1/pause HTTP/1.1\r\n{close}Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        "415 unsupported-type",
    );
    check(format!("GET /v1/status HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(300_000)).as_bytes(), "431 headers-too-large");
    check(format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200)).as_bytes(), "431 headers-too-large");
    check(format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(300_000)).as_bytes(), "431 headers-too-large");
    let world = world_at(0, Some("127.0.0.1:0"), Some("t0ken"));
    let address = world.server.as_ref().and_then(|server| server.listening).expect("a port");
    let mut stream = std::net::TcpStream::connect(address).expect("the port");
    assert_eq!(raw_bytes(&mut stream, b"\x16\x03\x01\x02\0\x01\0\r\n\r\n"), "400 bad-request");
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
        max_upload: 1 << 20,
        patience: Patience::default(),
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
        let shown: Shown = world.client.get("/v1/items/d.wav").expect("a job");
        let Page { items: rows, .. } = world.client.get("/v1/items").expect("rows");
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

#[test]
fn a_log_is_read_in_parts_and_followed_to_its_end() {
    use std::io::{Read as _, Write as _};
    let world = world();
    let ask = |query: &str| {
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        let head = format!("GET /v1/items/{query} HTTP/1.0\r\n\r\n");
        stream.write_all(head.as_bytes()).expect("to ask");
        stream
    };
    let whole = |query: &str| {
        let mut answer = Vec::new();
        ask(query).read_to_end(&mut answer).expect("an answer");
        let at = answer.windows(4).position(|it| it == b"\r\n\r\n").expect("a head");
        String::from_utf8_lossy(&answer[at + 4..]).into_owned()
    };
    let check = |query: &str, expected: &str| assert_eq!(whole(query), expected, "{query}");
    check("a.wav/logs", "said \u{fffd}");
    check("a.wav/logs?offset=2&attempt=1", "id \u{fffd}");
    check("a.wav/logs?tail=3", "d \u{fffd}");
    check("a.wav/logs?offset=100", "");
    check("a.wav/logs?follow=true", "said \u{fffd}");
    // One that runs.
    let job = world.root.join("claimed").join(format!("d~{}", id(4)));
    std::fs::create_dir(&job).expect("a job");
    std::fs::write(job.join("attempt-1.log"), "one ").expect("a log");
    let mut stream = ask("d.wav/logs?follow=true");
    let mut said = Vec::new();
    let mut hears = |text: &str| {
        while !String::from_utf8_lossy(&said).ends_with(text) {
            let mut part = [0; 4096];
            let n = stream.read(&mut part).expect("a part");
            assert_ne!(n, 0, "the end before {text}");
            said.extend_from_slice(&part[..n]);
        }
    };
    hears("one ");
    let mut log = std::fs::File::options().append(true).open(job.join("attempt-1.log")).expect("the log");
    log.write_all(b"two ").expect("to say");
    hears("two ");
    // Another attempt, and the end.
    std::fs::write(job.join("attempt-2.log"), "three ").expect("a log");
    hears("three ");
    std::fs::write(job.join("attempt-2.log"), "three four").expect("a log");
    hears("four");
    std::fs::write(job.join("result.json"), "{}").expect("a result");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("the end");
    assert_eq!(rest, b"");
}

#[test]
fn every_path_is_described_and_answers() {
    let world = world();
    let description: Value = world.client.get("/v1/openapi.json").expect("a description");
    assert_eq!(description["openapi"], "3.1.0");
    let paths = description["paths"].as_object().expect("paths");
    let mut described: Vec<String> = Vec::new();
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            described.push(format!("{method} {path}"));
            let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
            let path = path.replace("{item}", "a.wav");
            let method = method.to_uppercase();
            let said = match path.as_str() {
                "/v1/events" => "200".to_owned(),
                "/v1/changes" => raw(&mut stream, &format!("{method} {path}?timeout=0 HTTP/1.0\r\n\r\n")),
                _ => raw(&mut stream, &format!("{method} {path} HTTP/1.0\r\n\r\n")),
            };
            assert!(!said.contains("no-such-path") && !said.contains("method-not-allowed"), "{method} {path}: {said}");
        }
    }
    described.sort();
    insta::assert_snapshot!(described.join("\n"));
}

#[test]
fn slow_clients_are_cut_and_counted_and_the_others_served() {
    use std::io::{Read as _, Write as _};
    let short = std::time::Duration::from_millis(50);
    let world = world_with(0, None, None, Patience { headers: short, body: short, silence: short, reading: short });
    let dropped = || {
        let status: Status = world.client.get("/v1/status").expect("a status");
        status.api.map(|api| api.dropped_clients)
    };
    let begin = |text: &str| {
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        stream.write_all(text.as_bytes()).expect("to begin");
        stream
    };
    let end = |mut stream: std::os::unix::net::UnixStream| {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the end");
        String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned()
    };
    // One that says nothing isn't slow, it is only let go.
    assert_eq!((end(begin("")), dropped()), (String::new(), Some(0)));
    assert_eq!((end(begin("GET /v1/status HT")), dropped()), (String::new(), Some(1)));
    let head = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{";
    assert_eq!((end(begin(&format!("POST /v1/pause {head}"))), dropped()), ("408".to_owned(), Some(2)));
    assert_eq!((end(begin(&format!("PUT /v1/items?name=slow {head}"))), dropped()), ("408".to_owned(), Some(3)));
    assert_eq!(arrived(&world), (vec![], 0));
    // One that reads nothing of what it asked for.
    let dir = world.root.join("done/2026-11-20").join(format!("a~{}", id(1)));
    std::fs::write(dir.join("attempt-1.log"), vec![b'x'; 8 << 20]).expect("a log");
    let stalled = begin("GET /v1/items/a.wav/logs?follow=true HTTP/1.0\r\n\r\n");
    while dropped() != Some(4) {
        std::thread::yield_now();
    }
    drop(stalled);
    assert!(world.asked.is_empty());
}
