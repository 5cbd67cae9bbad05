//! What the output is called. Pure.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The longest name that Linux' file systems take.
const NAME_MAX: usize = 255;
const SUFFIX: &[u8] = b".gz";

/// The output's name for an item's: the same, with exactly one `.gz` at the end if it is compressed and none if not.
pub fn output_name(item: &OsStr, compressed: bool) -> OsString {
    let bytes = item.as_bytes();
    let split = bytes.len().saturating_sub(SUFFIX.len());
    let (stem, end) = bytes.split_at(split);
    // A name that is nothing but `.gz` has no other.
    let is_gz = !stem.is_empty() && end.eq_ignore_ascii_case(SUFFIX);
    let name = match (compressed, is_gz) {
        (true, true) | (false, false) => bytes.to_vec(),
        (false, true) => stem.to_vec(),
        (true, false) => [&bytes[..fitting(bytes)], SUFFIX].concat(),
    };
    OsString::from_vec(name)
}

/// How much of a name leaves room for the suffix, without cutting through a character.
fn fitting(name: &[u8]) -> usize {
    let most = NAME_MAX - SUFFIX.len();
    if name.len() <= most {
        return name.len();
    }
    let is_inside = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    (most - 3..=most).rev().find(|at| !is_inside(name[*at])).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_called_like_its_item() {
        let check = |item: &str, plain: &str, gzip: &str| {
            assert_eq!(output_name(item.as_ref(), false), plain);
            assert_eq!(output_name(item.as_ref(), true), gzip);
        };
        check("x.jsonl", "x.jsonl", "x.jsonl.gz");
        check("x.jsonl.gz", "x.jsonl", "x.jsonl.gz");
        check("X.JSONL.GZ", "X.JSONL", "X.JSONL.GZ");
        check("x", "x", "x.gz");
        check("gz", "gz", "gz.gz");
        check(".gz", ".gz", ".gz.gz");
        check("a.gz.gz", "a.gz", "a.gz.gz");
        check(&"n".repeat(252), &"n".repeat(252), &format!("{}.gz", "n".repeat(252)));
        check(&"n".repeat(255), &"n".repeat(255), &format!("{}.gz", "n".repeat(252)));
        check(&"é".repeat(127), &"é".repeat(127), &format!("{}.gz", "é".repeat(126)));
        check(&format!("a{}", "é".repeat(127)), &format!("a{}", "é".repeat(127)), &format!("a{}.gz", "é".repeat(125)));
    }

    #[test]
    fn names_that_are_not_utf_8_stay_as_they_are() {
        let odd = OsStr::from_bytes(b"\xff.txt");
        assert_eq!(output_name(odd, false), odd);
        assert_eq!(output_name(odd, true).as_bytes(), b"\xff.txt.gz");
        assert_eq!(output_name(OsStr::from_bytes(&[0x80; 255]), true).len(), 255);
    }
}
