//! A resident: a worker that stays and keeps its state from one message to the next. Send it a value, and it answers with
//! the least of all so far.
//!
//! `cargo run --example running_minimum`

use std::error::Error;
use std::sync::mpsc::{Sender, channel};

use gamdok::Pool;

/// A value, and where the answer goes.
type Message = (i64, Sender<i64>);

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(1).name("resident").build()?;
    let (messages, inbox) = channel::<Message>();
    let resident = pool.submit(move || {
        let (mut least, mut served) = (i64::MAX, 0);
        for (value, reply) in inbox {
            least = least.min(value);
            served += 1;
            // Whoever asked may have left.
            let _ = reply.send(least);
        }
        served
    });

    let mut answers = Vec::new();
    for value in [10, 4, 22, -1] {
        let (reply, answer) = channel();
        messages.send((value, reply))?;
        let least = answer.recv()?;
        println!("sent {value:>2}: the least so far is {least}");
        answers.push(least);
    }
    drop(messages);
    assert_eq!(answers, [10, 4, 4, -1]);
    println!("ok: one worker, {} messages, {answers:?}", resident.wait()?);
    Ok(())
}
