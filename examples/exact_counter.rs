//! Five workers count to 100,000 each, on one counter. Counted exactly it is 500,000, always. The contrast is what goes
//! wrong elsewhere: read, add one, write back as three steps, which loses whatever another worker did in between. Safe
//! Rust has no data race for that, so it is shown with an atomic that is read and written apart.
//!
//! `cargo run --example exact_counter`

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use gamdok::Pool;

const WORKERS: u64 = 5;
const EACH: u64 = 100_000;

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(WORKERS as usize).name("counter").build()?;
    let (locked, atomic, lossy) = (Mutex::new(0_u64), AtomicU64::new(0), AtomicU64::new(0));
    count(&pool, || *locked.lock().unwrap_or_else(PoisonError::into_inner) += 1);
    count(&pool, || {
        atomic.fetch_add(1, Ordering::Relaxed);
    });
    count(&pool, || {
        let read = lossy.load(Ordering::Relaxed);
        lossy.store(read + 1, Ordering::Relaxed);
    });
    let (locked, atomic, lossy) = (locked.into_inner()?, atomic.into_inner(), lossy.into_inner());
    println!("under a lock:         {locked}");
    println!("one indivisible step: {atomic}");
    println!("in three steps:       {lossy} ({} lost)", WORKERS * EACH - lossy);
    assert_eq!((locked, atomic), (WORKERS * EACH, WORKERS * EACH));
    assert!(lossy <= WORKERS * EACH);
    println!("ok: {WORKERS} workers x {EACH} increments = {locked}");
    Ok(())
}

/// Each worker does the step so often.
fn count(pool: &Pool, step: impl Fn() + Sync) {
    let step = &step;
    pool.scope(|scope| {
        for _ in 0..WORKERS {
            scope.submit(move || (0..EACH).for_each(|_| step()));
        }
    });
}
