//! What a resident worker is told on fd 3, as lines of JSON. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::resident::Task;
use crate::item::JobId;
use crate::split::Batch;

/// The worker is to end.
pub(crate) const STOP: &[u8] = b"{\"type\":\"stop\"}\n";

/// Appends the message that hands over these items.
pub(super) fn items<'t>(tasks: impl Iterator<Item = &'t Task>, line: &mut Vec<u8>) {
    line.extend_from_slice(b"{\"type\":\"items\",\"items\":[");
    for (at, task) in tasks.enumerate() {
        if at > 0 {
            line.push(b',');
        }
        line.extend_from_slice(format!("{{\"id\":\"{}\",\"item\":", task.job).as_bytes());
        text(task.dir.join("item").join(&task.name).as_os_str().as_bytes(), line);
        line.extend_from_slice(b",\"name\":");
        text(task.name.as_os_str().as_bytes(), line);
        line.extend_from_slice(b",\"out\":");
        text(task.dir.join("out").as_os_str().as_bytes(), line);
        line.extend_from_slice(format!(",\"attempt\":{}}}", task.attempt).as_bytes());
    }
    line.extend_from_slice(b"]}\n");
}

/// The message that hands over a batch of a big line file, as an item of its own: the file with its lines, and the folder
/// for what stands for them.
pub(super) fn lines(id: JobId, lines: &Path, name: &OsStr, out: &Path, batch: &Batch) -> Vec<u8> {
    let mut line = format!("{{\"type\":\"items\",\"items\":[{{\"id\":\"{id}\",\"item\":").into_bytes();
    text(lines.as_os_str().as_bytes(), &mut line);
    line.extend_from_slice(b",\"name\":");
    text(name.as_bytes(), &mut line);
    line.extend_from_slice(b",\"out\":");
    text(out.as_os_str().as_bytes(), &mut line);
    let Batch { attempt, first_line, lines, .. } = batch;
    let end = format!(",\"attempt\":{attempt},\"first_line\":{first_line},\"lines\":{lines}}}]}}\n");
    line.extend_from_slice(end.as_bytes());
    line
}

/// A path as a JSON text. A byte that isn't UTF-8 becomes the lone surrogate U+DC80 to U+DCFF (PEP 383): Python's
/// `json` and `os` give the same bytes back from it, and it stands for no other name.
fn text(bytes: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' | '\\' => line.extend_from_slice(&[b'\\', c as u8]),
                c if (c as u32) < 0x20 || c == '\u{7f}' => {
                    line.extend_from_slice(format!("\\u{:04x}", c as u32).as_bytes())
                }
                c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        for byte in chunk.invalid() {
            line.extend_from_slice(format!("\\udc{byte:02x}").as_bytes());
        }
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_is_a_json_text() {
        let check = |bytes: &[u8], expected: &str| {
            let mut line = Vec::new();
            text(bytes, &mut line);
            assert_eq!(String::from_utf8_lossy(&line), expected);
        };
        check(b"a b.wav", r#""a b.wav""#);
        check(b"-\"\\\n\t\x7f", r#""-\"\\\u000a\u0009\u007f""#);
        check("né".as_bytes(), "\"né\"");
        check(b"\xff\x80x", r#""\udcff\udc80x""#);
    }

    #[test]
    fn a_message_is_one_line_with_all_its_items() {
        let task = |name: &str, attempt| Task {
            job: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            attempt,
            dir: "/r/claimed/j".into(),
            name: name.into(),
            signature: None,
            outputs: Vec::new(),
        };
        let mut line = Vec::new();
        items([task("a", 1), task("b\n", 2)].iter(), &mut line);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        let expected = serde_json::json!({"type": "items", "items": [
            {"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "item": "/r/claimed/j/item/a", "name": "a", "out": "/r/claimed/j/out", "attempt": 1},
            {"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "item": "/r/claimed/j/item/b\n", "name": "b\n", "out": "/r/claimed/j/out", "attempt": 2},
        ]});
        assert_eq!(value, expected);
    }
}
