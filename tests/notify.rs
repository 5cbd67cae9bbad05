//! Telling people, against the built binary: what goes to a webhook and to a program, and that neither is ever waited for.

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use support::World;

struct Received {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Received {
    fn header(&self, name: &str) -> &str {
        let found = self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("no {name} in {:?}", self.head))
    }

    fn message(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }
}

/// Answers each request with 200 and passes it on.
fn webhook() -> (String, mpsc::Receiver<Received>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook?token=precious", listener.local_addr().expect("its address"));
    let (sent, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("the same"));
            let lines = reader.by_ref().lines().map(|line| line.expect("a line"));
            let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let length = head.iter().find_map(|it| it.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.expect("a length")];
            reader.read_exact(&mut body).expect("the body");
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            if sent.send(Received { head, body }).is_err() {
                return;
            }
        }
    });
    (url, received)
}

fn next(received: &mpsc::Receiver<Received>) -> Received {
    received.recv_timeout(Duration::from_secs(120)).expect("a message")
}

const CPU: &str = "[devices]\nuse = \"cpu\"\ncpu_slots = 2\n";
const FAILS: &str = "[[route]]\nname = \"r\"\nretries = 0\ncommand = [\"sh\", \"-c\", \"echo the content; exit 3\"]\n";

#[test]
fn a_webhook_hears_of_failures_and_of_the_end_signed_and_without_contents() {
    let (url, received) = webhook();
    let world = World::new("");
    let secret = world.scratch("secret");
    fs::write(&secret, "hush\n").expect("written");
    world.configure(CPU, &format!("{FAILS}[[notify]]\nurl = \"{url}\"\nsecret_file = {secret:?}\n"));
    world.drop_file("a $'b'.wav", b"precious bytes");
    world.drop_file("c.wav", b"precious bytes");
    assert_eq!(world.once().status.code(), Some(1));

    let got = next(&received);
    let (id, timestamp) = (got.header("webhook-id"), got.header("webhook-timestamp"));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"hush").expect("any length");
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(&got.body);
    assert_eq!(got.header("webhook-signature"), format!("v1,{}", BASE64.encode(mac.finalize().into_bytes())));

    let mut events = Vec::new();
    let mut messages = vec![got.message()];
    loop {
        let last = messages.last().expect("one");
        events.extend(last["events"].as_array().expect("events").clone());
        if events.iter().any(|event| event["type"] == "queue-empty") {
            break;
        }
        messages.push(next(&received).message());
    }
    let mut failed: Vec<&Value> = events.iter().filter(|event| event["type"] == "item-failed").collect();
    failed.sort_by_key(|event| event["name"].to_string());
    assert_eq!(failed.len(), 2, "{events:?}");
    for (event, name) in failed.iter().zip(["a $'b'.wav", "c.wav"]) {
        let (_, result) = world.result(name);
        for key in ["id", "name", "route", "reason", "message"] {
            assert_eq!(event[key], result[key], "{key}");
        }
        assert_eq!(event["attempts"], 1);
    }
    let empty = events.iter().find(|event| event["type"] == "queue-empty").expect("the end");
    assert_eq!((&empty["done"], &empty["failed"]), (&Value::from(0), &Value::from(2)));
    for message in &messages {
        let text = message.to_string();
        assert!(!text.contains("precious") && !text.contains("the content"), "{text}");
    }
    let checked = String::from_utf8_lossy(&world.gamdok(&["check", "--json"]).stdout).into_owned();
    assert!(checked.contains("http://127.0.0.1") && !checked.contains("precious"), "{checked}");
}

#[test]
fn who_is_told_can_be_changed_while_it_runs_and_a_silent_one_holds_nobody_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its address");
    let route = "[[route]]\nname = \"r\"\ncommand = [\"true\"]\n";
    let world = World::new(&format!("{route}[[notify]]\nurl = \"http://{address}\"\ntimeout = \"10m\"\n"));
    let service = world.start();
    world.ok(&["cordon", "cpu"]);
    // It hangs on that one now.
    let (_connection, _) = silent.accept().expect("it tries");
    world.ok(&["uncordon", "cpu"]);
    for n in 0..20 {
        world.drop_file(n.to_string(), b"x");
    }
    world.until("everything is done", |status| status["counts"]["done"] == 20);

    let (url, received) = webhook();
    world.configure(CPU, &format!("{route}[[notify]]\nurl = \"{url}\"\nevents = [\"device-cordoned\"]\n"));
    world.until("it is in force", |_| service.log().contains("the changed configuration is in force"));
    world.ok(&["cordon", "cpu"]);
    let message = next(&received).message();
    assert_eq!(message["events"][0]["type"], "device-cordoned");
    assert_eq!(message["events"][0]["device"], "cpu");
    assert_eq!(service.stop(), 0);
}

#[test]
fn a_root_that_goes_and_comes_back_is_told_to_a_program() {
    let world = World::new("");
    let told = world.scratch("told");
    let script = support::script(&world.scratch(""), "tell.sh", &format!("cat >> '{}'; echo >> '{0}'", told.display()));
    let route = "[[route]]\nname = \"r\"\ncommand = [\"true\"]\n";
    world.configure(
        CPU,
        &format!("{route}[[notify]]\nevents = [\"root-unavailable\"]\ncommand = [\"sh\", {script:?}]\n"),
    );
    let service = world.start();
    let (inbox, away) = (world.inbox(), world.scratch("away"));
    let lines = || -> Vec<Value> {
        let text = fs::read_to_string(&told).unwrap_or_default();
        let whole = text.lines().filter(|line| !line.is_empty());
        whole.filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let types = || -> Vec<String> {
        let events = lines().into_iter().flat_map(|message| message["events"].as_array().cloned().unwrap_or_default());
        events.map(|event| format!("{} {}", event["type"], event["part"])).collect()
    };
    fs::rename(&inbox, &away).expect("moved away");
    world.until("it is told", |_| types() == [r#""root-unavailable" "inbox""#]);
    fs::rename(&away, &inbox).expect("moved back");
    world.until("the end is told", |_| types().len() == 2);
    assert_eq!(types()[1], r#""root-available" "inbox""#);
    assert!(world.status()["health"].as_array().is_some_and(|it| it.iter().any(|it| it["what"] == "notify")));
    drop(service);
}
