//! What is sent: one JSON object for all that happened, with a line for people.

use std::path::Path;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::What;
use super::outbox::Parcel;

/// What somebody said is told up to here: it may be a whole traceback, or data.
const SAID: usize = 300;
/// So many happenings are told in words.
const IN_WORDS: usize = 5;

/// Who tells.
#[derive(Debug)]
pub(super) struct Origin {
    host: String,
    root: String,
}

impl Origin {
    pub(super) fn new(root: &Path) -> Origin {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Origin { host, root: crate::item::escape(root.as_os_str().as_encoded_bytes()) }
    }

    /// `{"id","sent_at","version","host","root","text","events":[…],"dropped"}`.
    pub(super) fn message(&self, parcel: &Parcel, sent_at: Timestamp) -> Vec<u8> {
        let events: Vec<Value> = parcel.happenings.iter().map(|it| json!(&**it)).collect();
        let message = json!({
            "id": parcel.id,
            "sent_at": sent_at,
            "version": env!("CARGO_PKG_VERSION"),
            "host": self.host,
            "root": self.root,
            "text": self.text(parcel),
            "events": events,
            "dropped": parcel.dropped,
        });
        message.to_string().into_bytes()
    }

    /// What a chat shows of it, or a mail's subject.
    fn text(&self, parcel: &Parcel) -> String {
        let told = parcel.happenings.iter().take(IN_WORDS).map(|it| words(&it.what));
        let mut lines: Vec<String> = told.collect();
        let more = parcel.happenings.len().saturating_sub(IN_WORDS);
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        if parcel.dropped > 0 {
            lines.push(format!("{} earlier ones could not be told", parcel.dropped));
        }
        format!("gamdok on {}, {}: {}", self.host, self.root, lines.join("\n"))
    }
}

fn words(what: &What) -> String {
    match what {
        What::ItemFailed { name, route, reason, message, .. } => {
            let route = route.as_ref().map_or_else(String::new, |route| format!(" (route {route})"));
            let why = message.as_deref().or(*reason).unwrap_or("the reason is unknown");
            format!("{name}{route} failed: {why}")
        }
        What::DeviceCordoned { device, reason } => format!("device {device} takes no more work: {reason}"),
        What::RootUnavailable { part, message } => format!("no work is taken ({part}): {message}"),
        What::RootAvailable { part } => format!("work goes on ({part} is well again)"),
        What::QueueEmpty { done, failed, cancelled } => {
            let cancelled = if *cancelled > 0 { format!(", {cancelled} cancelled") } else { String::new() };
            format!("all work is done: {done} done, {failed} failed{cancelled}")
        }
    }
}

/// The beginning of what somebody said, in one line.
pub(super) fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SAID) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Happening;
    use super::*;

    #[test]
    fn a_message_tells_people_the_first_few_and_programs_all() {
        let origin = Origin { host: "node7".to_owned(), root: "/srv/spool".to_owned() };
        let failed = |n: usize| What::ItemFailed {
            id: n.to_string(),
            job: format!("{n}~{n}"),
            name: format!("{n}.wav"),
            route: Some("transcribe".to_owned()),
            reason: Some("exit"),
            message: Some("exit code 3".to_owned()),
            attempts: 3,
        };
        let parcel = |whats: Vec<What>, dropped| {
            let happening = |what| Arc::new(Happening { at: Timestamp::UNIX_EPOCH, what });
            Parcel { id: "m1".to_owned(), happenings: whats.into_iter().map(happening).collect(), dropped }
        };
        let check = |parcel: Parcel, expected: &str| {
            let message = origin.message(&parcel, Timestamp::UNIX_EPOCH);
            let message: Value = serde_json::from_slice(&message).unwrap();
            assert_eq!(message["text"], format!("gamdok on node7, /srv/spool: {expected}"));
            assert_eq!(message["events"].as_array().map(Vec::len), Some(parcel.happenings.len()));
            assert_eq!((&message["id"], &message["dropped"]), (&json!("m1"), &json!(parcel.dropped)));
        };
        check(parcel(vec![failed(1)], 0), "1.wav (route transcribe) failed: exit code 3");
        let many = "0.wav (route transcribe) failed: exit code 3\n1.wav (route transcribe) failed: exit code 3\n\
                    2.wav (route transcribe) failed: exit code 3\n3.wav (route transcribe) failed: exit code 3\n\
                    4.wav (route transcribe) failed: exit code 3\nand 2 more\n3 earlier ones could not be told";
        check(parcel((0..7).map(failed).collect(), 3), many);
        let cordoned = What::DeviceCordoned { device: "GPU-1".to_owned(), reason: "3 items failed fast".to_owned() };
        check(parcel(vec![cordoned], 0), "device GPU-1 takes no more work: 3 items failed fast");
        let empty = What::QueueEmpty { done: 5, failed: 1, cancelled: 0 };
        check(parcel(vec![empty], 0), "all work is done: 5 done, 1 failed");
        let event = serde_json::to_value(Happening { at: Timestamp::UNIX_EPOCH, what: failed(1) }).unwrap();
        let expected = json!({
            "at": "1970-01-01T00:00:00Z", "type": "item-failed", "id": "1", "job": "1~1", "name": "1.wav",
            "route": "transcribe", "reason": "exit", "message": "exit code 3", "attempts": 3,
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn what_somebody_said_is_told_in_a_line_and_not_whole() {
        let check = |text: &str, expected: &str| assert_eq!(shortened(text), expected);
        check("a\n  b\tc", "a b c");
        check("", "");
        check(&"é".repeat(SAID), &"é".repeat(SAID));
        check(&"é".repeat(SAID + 1), &format!("{}…", "é".repeat(SAID)));
    }
}
