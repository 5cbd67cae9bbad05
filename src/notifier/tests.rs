use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

use serde_json::Value;

use super::*;
use crate::config::{Config, Overrides};
use crate::health::Condition;

/// A webhook that answers with these, one for each request, and then no more; what it was sent.
fn webhook(answers: &'static [&'static str]) -> (String, mpsc::Receiver<(Vec<String>, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/secret-path", listener.local_addr().unwrap());
    let (sent, received) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                match line.trim_end() {
                    "" => break,
                    line => head.push(line.to_lowercase()),
                }
            }
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = sent.send((head, serde_json::from_slice(&body).unwrap()));
            stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes()).unwrap();
        }
    });
    (url, received)
}

fn wanted(text: &str) -> Vec<Notify> {
    Config::parse(text, None, Path::new("/"), &Overrides::default()).unwrap().0.notify
}

fn cordoned(device: &str) -> What {
    What::DeviceCordoned { device: device.to_owned(), reason: "3 items failed fast".to_owned() }
}

/// What a courier says next.
fn next_health(notifier: &mut Notifier) -> (Condition, String) {
    let said = notifier.heard().recv_timeout(Duration::from_secs(60)).expect("it says how it is");
    let check = notifier.on_said(said);
    (check.state, check.message)
}

#[test]
fn a_message_that_is_refused_for_now_comes_again_and_health_says_so_meanwhile() {
    let (url, received) = webhook(&["503 Later", "204 No Content"]);
    let mut notifier = Notifier::new(Path::new("/srv/spool"), &wanted(&format!("[[notify]]\nurl = \"{url}\"")));
    notifier.tell(cordoned("GPU-1"));
    notifier.tell(cordoned("GPU-2"));
    let (head, first) = received.recv().unwrap();
    let (state, words) = next_health(&mut notifier);
    assert_eq!(state, Condition::Degraded);
    assert!(words.contains("answered 503") && !words.contains("secret-path"), "{words}");
    let (again, second) = received.recv().unwrap();
    assert_eq!(next_health(&mut notifier), (Condition::Ok, String::new()));
    assert_eq!((&first["id"], &first["events"]), (&second["id"], &second["events"]));
    assert_eq!(first["events"].as_array().map(Vec::len), Some(2));
    let id = |head: &[String]| head.iter().find(|line| line.starts_with("webhook-id: ")).cloned();
    assert!(id(&head).is_some() && id(&head) == id(&again));
    assert!(!head.iter().any(|line| line.starts_with("webhook-signature")), "nothing to sign it with");
}

#[test]
fn only_those_are_told_who_want_to_know() {
    let (url, received) = webhook(&["200 OK"]);
    let text = format!(
        "[[route]]\nname = \"a\"\ncommand = [\"true\"]\n[[notify]]\nurl = \"{url}\"\nevents = [\"item-failed\", \
         \"queue-empty\"]\nroutes = [\"a\"]"
    );
    let mut notifier = Notifier::new(Path::new("/"), &wanted(&text));
    let failed = |route: &str| What::ItemFailed {
        id: String::new(),
        job: String::new(),
        name: String::new(),
        route: Some(route.to_owned()),
        reason: None,
        message: None,
        attempts: 1,
    };
    notifier.at_rest(true, Tally::default());
    notifier.tell(cordoned("GPU-1"));
    notifier.tell(failed("b"));
    notifier.at_rest(false, Tally::default());
    notifier.tell(failed("a"));
    notifier.at_rest(true, Tally { done: 3, failed: 2, cancelled: 0 });
    notifier.stop();
    let (_, message) = received.recv().unwrap();
    let events = message["events"].as_array().unwrap();
    let types: Vec<&str> = events.iter().filter_map(|it| it["type"].as_str()).collect();
    assert_eq!(types, ["item-failed", "queue-empty"]);
    assert_eq!((&events[0]["route"], &events[1]["done"]), (&Value::from("a"), &Value::from(3)));
    assert!(received.recv().is_err(), "the director found an empty queue at its start, and tells nobody");
}

#[test]
fn nobody_waits_for_one_who_does_not_answer() {
    // Accepts, and says nothing ever.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, received) = webhook(&["200 OK"]);
    let text = format!(
        "[[notify]]\nurl = \"http://{}\"\ntimeout = \"600s\"\n[[notify]]\nurl = \"{url}\"\n",
        silent.local_addr().unwrap()
    );
    let mut notifier = Notifier::new(Path::new("/"), &wanted(&text));
    for n in 0..3 * WAITING {
        notifier.tell(cordoned(&n.to_string()));
    }
    let (_, message) = received.recv().unwrap();
    assert_eq!(message["events"].as_array().map(Vec::len), Some(outbox::MOST));
    let began = Instant::now();
    notifier.reconfigure(&[]);
    notifier.stop();
    assert!(began.elapsed() < Duration::from_secs(60), "those that are no longer wanted aren't waited for");
}

/// Messages sent, tries failed, happenings lost.
fn counted(notifier: &Notifier) -> [u64; 3] {
    let Sent { sent, failed, lost } = &*notifier.sent();
    [sent, failed, lost].map(|count| count.load(Ordering::Relaxed))
}

#[test]
fn a_program_is_told_on_its_stdin_and_what_it_last_said_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let text = format!("[[notify]]\ncommand = [\"sh\", \"-c\", \"cat > {}\"]\n", told.display());
    let mut notifier = Notifier::new(Path::new("/"), &wanted(&text));
    notifier.tell(cordoned("GPU-1"));
    notifier.stop();
    let message: Value = serde_json::from_slice(&std::fs::read(&told).unwrap()).unwrap();
    assert_eq!(message["events"][0]["device"], "GPU-1");
    assert_eq!(counted(&notifier), [1, 0, 0]);

    let bad = wanted("[[notify]]\ncommand = [\"sh\", \"-c\", \"echo no mail >&2; exit 3\"]\nretries = 0\n");
    let mut notifier = Notifier::new(Path::new("/"), &bad);
    notifier.tell(cordoned("GPU-1"));
    assert_eq!(next_health(&mut notifier), (Condition::Degraded, "`sh`: exit code 3: no mail".to_owned()));
    assert_eq!(counted(&notifier), [0, 1, 1]);
}
