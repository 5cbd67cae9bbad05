//! A resident: a worker process that stays and keeps its state from one item to the next. Send it a value, and it answers
//! with the least of all so far. What a model that takes a minute to load is for real work, the least value is here.
//!
//! `cargo run --example running_minimum`

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::FromRawFd as _;
use std::os::unix::net::UnixStream;

use gamdok::Director;
use gamdok::service::Route;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    // What the resident process is: this program, started with a word.
    if std::env::args().nth(1).as_deref() == Some("resident") {
        return resident();
    }
    let folder = tempfile::tempdir()?;
    let program = std::env::current_exe()?.into_os_string().into_string().map_err(|_| "its path isn't UTF-8")?;
    let minimum = Route::command("minimum", [program.as_str(), "resident"]).resident().cpu();
    let root = folder.path().join("root");
    // One slot: one process has them all.
    let director = Director::builder().root(&root).init().cpu_slots(1).route(minimum).start()?;

    let mut answers = Vec::new();
    for (n, value) in [10, 4, 22, -1].into_iter().enumerate() {
        let ended = director.submit_bytes(&format!("value-{n}"), value.to_string().as_bytes())?.wait()?;
        let least = ended.result.as_ref().and_then(Value::as_i64).ok_or("no answer")?;
        println!("sent {value:>2}: the least so far is {least}");
        answers.push(least);
    }
    let summary = director.join()?;
    assert_eq!(answers, [10, 4, 4, -1]);
    println!("ok: one worker, {} items, {answers:?}", summary.done);
    Ok(())
}

/// Takes items on file descriptor 3, a JSON object a line, until it is told to stop.
fn resident() -> Result<(), Box<dyn Error>> {
    #[expect(unsafe_code, reason = "descriptor 3 is the report channel, and nothing else in here has it")]
    let channel = unsafe { UnixStream::from_raw_fd(3) };
    let mut say = channel.try_clone()?;
    writeln!(say, "{}", json!({ "type": "ready" }))?;
    let mut least = i64::MAX;
    for line in BufReader::new(channel).lines() {
        let message: Value = serde_json::from_str(&line?)?;
        if message["type"] == "stop" {
            break;
        }
        for item in message["items"].as_array().into_iter().flatten() {
            let value: i64 =
                std::fs::read_to_string(item["item"].as_str().ok_or("an item without a path")?)?.parse()?;
            least = least.min(value);
            writeln!(say, "{}", json!({ "type": "done", "id": item["id"], "result": least }))?;
        }
    }
    Ok(())
}
