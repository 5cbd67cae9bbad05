//! One table that all workers write and the caller reads: while they work, and as a whole when they have ended. The
//! compiler holds that none of them outlives the table or writes without its lock.
//!
//! `cargo run --example shared_results`

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{PoisonError, RwLock};

use gamdok::Pool;

const TEXT: &str = "the quick brown fox jumps over the lazy dog while the other dog sleeps";

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(4).name("table").build()?;
    let table: RwLock<BTreeMap<&str, usize>> = RwLock::default();
    pool.scope(|scope| {
        for word in TEXT.split(' ') {
            let table = &table;
            scope.submit(move || {
                *table.write().unwrap_or_else(PoisonError::into_inner).entry(word).or_default() += 1;
            });
        }
        let now = table.read().unwrap_or_else(PoisonError::into_inner).values().sum::<usize>();
        println!("{now} words are in the table while the workers write");
    });
    let table = table.into_inner()?;
    for (word, times) in table.iter().filter(|(_, times)| **times > 1) {
        println!("{word}: {times}");
    }
    let words = table.values().sum::<usize>();
    assert_eq!((table["the"], table["dog"], words), (3, 2, TEXT.split(' ').count()));
    println!("ok: {words} words by {} workers, none lost", pool.slots());
    Ok(())
}
