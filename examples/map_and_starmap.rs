//! A function over many inputs: `map` with one argument, the same with several (elsewhere called starmap: here a tuple
//! is one item), in order and as they come, and one bad input among good ones.
//!
//! `cargo run --example map_and_starmap`

use std::error::Error;

use gamdok::Pool;

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::builder().slots(4).name("map").build()?;

    let squares: Vec<u64> = pool.map(1..=10, |n: u64| n * n).collect::<Result<_, _>>()?;
    println!("map:      {squares:?}");
    assert_eq!(squares, [1, 4, 9, 16, 25, 36, 49, 64, 81, 100]);

    let pairs = [(2_u64, 5_u32), (3, 2), (10, 3)];
    let powers: Vec<u64> = pool.map(pairs, |(base, exponent)| base.pow(exponent)).collect::<Result<_, _>>()?;
    println!("starmap:  {powers:?}");
    assert_eq!(powers, [32, 9, 1000]);

    // An endless iterator: only so much of it is pulled as is being worked on.
    let first: Vec<u64> = pool.map(0.., |n| n * 7).take(5).collect::<Result<_, _>>()?;
    println!("endless:  {first:?}");
    assert_eq!(first, [0, 7, 14, 21, 28]);

    let sum: u64 = pool.map_unordered(1..=1_000, |n: u64| n).flatten().sum();
    println!("as they come, summed up: {sum}");
    assert_eq!(sum, 500_500);

    let checked = pool.map([6_i32, 0, 3], |n| 12_i32.checked_div(n).ok_or("division by zero"));
    let checked: Vec<_> = checked.collect::<Result<_, _>>()?;
    println!("one bad:  {checked:?}");
    assert_eq!(checked, [Ok(2), Err("division by zero"), Ok(4)]);
    println!("ok: every result in the place of its input");
    Ok(())
}
