//! Those who follow: the event stream, and logs as they grow.

use super::*;

/// An event stream, read by hand.
struct Stream(std::io::BufReader<std::os::unix::net::UnixStream>);

impl Stream {
    fn open(world: &World, last: Option<&str>) -> Stream {
        use std::io::Write as _;
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a limit");
        let last = last.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        // The older version, so that the body comes as it is.
        stream.write_all(format!("GET /v1/events HTTP/1.0\r\n{last}\r\n").as_bytes()).expect("to ask");
        Stream(std::io::BufReader::new(stream))
    }

    /// The next event's id, name and data; nothing at the end.
    fn next(&mut self) -> Option<(String, String, Value)> {
        use std::io::BufRead as _;
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

    #[track_caller]
    fn expect(&mut self, name: &str) -> (String, Value) {
        let (id, found, data) = self.next().expect("an event");
        assert_eq!(found, name, "{data}");
        (id, data)
    }
}

#[test]
fn who_follows_hears_of_every_change_and_who_comes_back_of_what_it_missed() {
    let world = world();
    let mut stream = Stream::open(&world, None);
    let (first, reset) = stream.expect("reset");
    assert_eq!(reset, json!({ "why": "new", "number": 1 }));
    world.board.publish(view(2, vec![]));
    let gone: Vec<(String, Value)> = vec![stream.expect("gone"), stream.expect("counts")];
    assert_eq!((&gone[0].1["name"], &gone[1].1["ready"]), (&json!("e.wav"), &json!(2)));
    // It came and went between two publications.
    let result = Listed { id: Some(id(9).to_string()), state: "done".to_owned(), ..Listed::empty() };
    world.board.ended(|| result.clone());
    world.board.publish(view(3, vec![]));
    let (last, item) = stream.expect("item");
    assert_eq!((&item["id"], &item["state"]), (&json!(id(9).to_string()), &json!("done")));
    stream.expect("counts");
    drop(stream);
    let mut again = Stream::open(&world, Some(&gone[1].0));
    assert_eq!(again.expect("item").0, last);
    again.expect("counts");
    world.board.publish(view(4, vec![]));
    again.expect("counts");
    let check = |last: &str, why: &str| {
        let (id, reset) = Stream::open(&world, Some(last)).expect("reset");
        assert_eq!(reset["why"], why, "{last}");
        assert_ne!(id, last);
    };
    check("1-1", "restarted");
    check("nonsense", "too-old");
    check(&first.replace('-', "-9999"), "too-old");
    let status: Status = world.client.get("/v1/status").expect("a status");
    assert!(status.api.is_some_and(|api| api.streams >= 1 && api.dropped_clients == 0), "{:?}", status.api);
}

#[test]
fn a_new_configuration_is_told_without_its_secrets() {
    let world = world();
    let mut stream = Stream::open(&world, None);
    stream.expect("reset");
    let config = Config::builtin(&world.root, &world.root);
    world.board.configure(&config);
    stream.expect("config");
    let told: Value = world.client.get("/v1/config").expect("a configuration");
    assert_eq!(told["api"]["max_upload"], json!(64_u64 << 30));
}

#[test]
fn a_client_that_falls_behind_is_cut_and_the_others_go_on() {
    let world = world();
    let (mut stalled, mut reads) = (Stream::open(&world, None), Stream::open(&world, None));
    stalled.expect("reset");
    reads.expect("reset");
    let large = |number: u64| {
        let row = |n: u128| Listed {
            id: Some(id(n).to_string()),
            state: "claimed".to_owned(),
            reason: Some(format!("{number}{}", "x".repeat(64 << 10))),
            ..Listed::empty()
        };
        view(number, (0..80).map(row).collect())
    };
    // More than is kept, several times over; one reads it all the while.
    for number in 2..12 {
        world.board.publish(large(number));
        while reads.next().expect("an event").1 != "counts" {}
    }
    while stalled.next().is_some() {}
    let status: Status = world.client.get("/v1/status").expect("a status");
    assert_eq!(status.api.map(|api| api.dropped_clients), Some(1));
    world.board.publish(view(99, vec![]));
    reads.expect("counts");
}

#[test]
fn streams_are_bounded() {
    let world = world();
    let mut open: Vec<Stream> = (0..64)
        .map(|_| {
            let mut stream = Stream::open(&world, None);
            stream.expect("reset");
            stream
        })
        .collect();
    // Of one that isn't refused the stream goes on: only its status is read.
    let refused = || {
        use std::io::{Read as _, Write as _};
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        stream.write_all(b"GET /v1/events HTTP/1.0\r\n\r\n").expect("to ask");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("a status");
        status.ends_with(b"503")
    };
    assert!(refused());
    open.pop();
    while refused() {}
    drop(open);
    let streams = || {
        let status: Status = world.client.get("/v1/status").expect("a status");
        status.api.map(|api| api.streams)
    };
    while streams() != Some(0) {}
}

#[test]
fn a_place_among_those_who_follow_logs_is_free_when_its_client_is_gone() {
    use std::io::{Read as _, Write as _};
    let world = world();
    let job = world.root.join("claimed").join(format!("d~{}", id(4)));
    std::fs::create_dir(&job).expect("a job");
    std::fs::write(job.join("attempt-1.log"), "x").expect("a log");
    // The first byte of the log, or the status that refuses.
    let follow = || {
        let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
        stream.write_all(b"GET /v1/items/d.wav/logs?follow=true HTTP/1.0\r\n\r\n").expect("to ask");
        let mut status = [0; 12];
        stream.read_exact(&mut status).expect("a status");
        (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
    };
    let mut all: Vec<_> = (0..32).map(|_| follow()).collect();
    assert!(all.iter().all(|(status, _)| status == "200"));
    assert_eq!(follow().0, "503");
    all.pop();
    while follow().0 != "200" {}
}
