//! Items that come over HTTP.

use super::*;

/// The status, and the error's code, of an upload.
fn upload(world: &World, query: &str, headers: &str, body: &[u8]) -> String {
    let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
    let head = format!("PUT /v1/items{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    raw_bytes(&mut stream, &[head.as_bytes(), body].concat())
}

/// What lies in the inbox beside what the world began with, and what uploads left.
pub(super) fn arrived(world: &World) -> (Vec<String>, usize) {
    let names = |path: &str| {
        let entries = std::fs::read_dir(world.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !["beyond.wav", "e.wav"].contains(&name.as_str()));
        names.sort();
        names
    };
    (names("inbox"), names(".gamdok/uploads").len())
}

#[test]
fn an_upload_arrives_whole_or_not_at_all() {
    let world = world();
    let length = |n: usize| format!("Content-Length: {n}\r\n");
    assert_eq!(upload(&world, "?name=new.wav", &length(5), b"hello"), "201");
    assert_eq!(std::fs::read(world.root.join("inbox/new.wav")).expect("an item"), b"hello");
    let chunked = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(upload(&world, "?name=%ED%95%9C%20b", "Transfer-Encoding: chunked\r\n", chunked), "201");
    assert_eq!(std::fs::read(world.root.join("inbox/한 b")).expect("an item"), b"abcde");
    assert_eq!(upload(&world, "?name=empty", &length(0), b""), "201");
    let there = (vec!["empty".to_owned(), "new.wav".to_owned(), "한 b".to_owned()], 0);
    assert_eq!(arrived(&world), there);
    let check = |query: &str, headers: &str, body: &[u8], expected: &str| {
        assert_eq!(upload(&world, query, headers, body), expected, "{query}");
        assert_eq!(arrived(&world), there, "{query}");
    };
    check("?name=new.wav", &length(5), b"other", "409 exists");
    assert_eq!(std::fs::read(world.root.join("inbox/new.wav")).expect("an item"), b"hello");
    check("", &length(1), b"x", "400 bad-request");
    check("?name=a&what=b", &length(1), b"x", "400 bad-request");
    let names = ["", ".", "..", "..%2fx", "%2fetc%2fpasswd", "a%2fb", "a%00b", "a%0ab", ".hidden", "a.part", "a~"];
    for name in names {
        check(&format!("?name={name}"), &length(1), b"x", "400 bad-name");
    }
    check(&format!("?name={}", "x".repeat(256)), &length(1), b"x", "400 bad-name");
    for folder in ["..", "..%2f..", "nowhere", "%2f", "%00"] {
        check(&format!("?name=a&folder={folder}"), &length(1), b"x", "404 no-folder");
    }
    check("?name=a", &length(2 << 20), &vec![b'x'; 2 << 20], "413 too-large");
    let endless = [b"200000\r\n".as_slice(), &vec![b'x'; 0x20_0000], b"\r\n0\r\n\r\n"].concat();
    check("?name=a", "Transfer-Encoding: chunked\r\n", &endless, "413 too-large");
    for kind in ["multipart/form-data; boundary=x", "text/plain", "Application/X-WWW-Form-Urlencoded"] {
        check("?name=a", &format!("Content-Type: {kind}\r\n{}", length(1)), b"x", "415 unsupported-type");
    }
    check("?name=a", "Transfer-Encoding: chunked\r\n", b"zz\r\n", "400 bad-request");
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    use std::io::Write as _;
    let world = world();
    let mut stream = socket::connect(&world.root.join(SOCKET)).expect("the socket");
    let head = "PUT /v1/items?name=cut HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf of it";
    stream.write_all(head.as_bytes()).expect("to ask");
    let until = |left: usize| {
        while arrived(&world).1 != left {
            std::thread::yield_now()
        }
    };
    until(1);
    assert_eq!(arrived(&world).0, [""; 0]);
    drop(stream);
    until(0);
    assert_eq!(arrived(&world), (vec![], 0));
    assert_eq!(upload(&world, "?name=cut", "Content-Length: 1\r\n", b"x"), "201");
}
