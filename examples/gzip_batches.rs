//! A million lines, in batches of 5,000: each is compressed by itself, as many at a time as there are CPUs, and the 200
//! parts are put together in order as the members of one gzip file, which any `gunzip` reads as a whole. Memory is
//! bounded whatever the file's size, and a batch that fails is tried again by itself.
//!
//! `cargo run --release --example gzip_batches`

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

use crossbeam_channel::unbounded;
use flate2::bufread::GzDecoder;
use gamdok::Slots;
use gamdok::split::{Consumer, Identity, Setup, run};

const LINES: u64 = 1_000_000;
const BATCH: u64 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (input, out) = (folder.path().join("lines.txt"), folder.path().join("out"));
    let mut file = BufWriter::new(File::create(&input)?);
    for n in 0..LINES {
        writeln!(file, "{n}\tline")?;
    }
    file.into_inner()?.sync_all()?;

    // A slot for each CPU. `Identity` hands the lines on as they are; a closure, or a program that reads them from its
    // stdin (`ProcessConsumer`), could make something of them first.
    let (add, slots) = unbounded::<Box<dyn Consumer + Send>>();
    for _ in 0..Slots::cpu_count() {
        add.send(Box::new(Identity))?;
    }
    drop(add);
    let begun = Instant::now();
    let summary = run(Setup { lines: BATCH, compress: Some(6), ..Setup::new(&input, &out, "lines.txt", slots)? })?;
    println!("{} lines in {} batches: {:.2} s", summary.lines, summary.batches, begun.elapsed().as_secs_f64());
    println!("{} bytes became {}", summary.input_bytes, summary.output_bytes);

    let (members, lines) = read_back(&summary.output)?;
    assert_eq!((members, lines), (LINES / BATCH, LINES));
    println!("ok: {members} members of {BATCH} lines, {lines} lines in order");
    Ok(())
}

/// Member by member, as `gunzip` does. Answers how many there are, and how many lines, each of which is the next one.
fn read_back(output: &Path) -> Result<(u64, u64), Box<dyn Error>> {
    let mut file = BufReader::new(File::open(output)?);
    let (mut members, mut next) = (0, 0);
    while !file.fill_buf()?.is_empty() {
        let mut text = String::new();
        GzDecoder::new(&mut file).read_to_string(&mut text)?;
        for line in text.lines() {
            assert_eq!(line, format!("{next}\tline"));
            next += 1;
        }
        members += 1;
    }
    Ok((members, next))
}
