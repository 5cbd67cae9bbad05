//! Two ways of talking to a worker, each ended by a sentinel: a pipe, which carries bytes between two ends, and a queue,
//! which carries values and may have many ends.
//!
//! `cargo run --example pipe_and_queue`

use std::error::Error;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::mpsc::channel;

use gamdok::Pool;

/// What is never a line of its own.
const END: &str = "--end--";

enum Message {
    Number(i64),
    /// The sentinel. The sender stays open: it is the message that ends the worker.
    End,
}

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(2).name("talk").build()?;

    let (reader, mut writer) = io::pipe()?;
    let upper = pool.submit(move || -> io::Result<Vec<String>> {
        let mut heard = Vec::new();
        for line in BufReader::new(reader).lines() {
            match line? {
                line if line == END => break,
                line => heard.push(line.to_uppercase()),
            }
        }
        Ok(heard)
    });
    for line in ["hello", "from the other end", END] {
        writeln!(writer, "{line}")?;
    }
    let heard = upper.wait()??;
    println!("pipe:  {heard:?}");
    assert_eq!(heard, ["HELLO", "FROM THE OTHER END"]);
    println!("ok: the pipe's worker ended at the sentinel, with its writer still open");
    drop(writer);

    let (queue, messages) = channel();
    let sum = pool.submit(move || {
        let numbers = messages.iter().map_while(|message| match message {
            Message::Number(number) => Some(number),
            Message::End => None,
        });
        numbers.sum::<i64>()
    });
    for number in [3, 4, 5] {
        queue.send(Message::Number(number))?;
    }
    queue.send(Message::End)?;
    let sum = sum.wait()?;
    println!("queue: 3 + 4 + 5 = {sum}");
    assert_eq!(sum, 12);
    println!("ok: the queue's worker ended at the sentinel, with its sender still open");
    drop(queue);
    Ok(())
}
