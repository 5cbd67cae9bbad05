//! Real processes: shells that read, print, fail, linger.

use std::io::Read as _;
use std::io::Seek as _;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn sh(script: &str) -> Program {
    let words = ["sh", "-c", script];
    Program {
        program: "/bin/sh".into(),
        argv: words.map(OsString::from).into(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        cwd: "/".into(),
        log: None,
        descriptors: vec![],
        timeout: None,
        kill_grace: HOUR,
        max_output: 64 << 20,
    }
}

fn batch(bytes: &[u8]) -> Batch {
    Batch {
        index: 17,
        bytes: bytes.to_vec(),
        lines: 1,
        first_line: 1,
        offset: 0,
        attempt: 1,
        file_bytes: 0,
        file_end: 0,
    }
}

fn consume(program: Program, bytes: &[u8]) -> Result<Vec<u8>, BatchError> {
    let mut out = Vec::new();
    let mut consumer = ProcessConsumer::new(program, StopFlag::new().unwrap());
    consumer.consume(&batch(bytes), &mut out).map(|()| out)
}

#[test]
fn lines_go_in_and_what_stands_for_them_comes_out() {
    let check = |script: &str, bytes: &[u8], expected: &[u8]| {
        assert!(consume(sh(script), bytes).unwrap() == expected, "{script}");
    };
    check("cat", b"a\r\n\xff\0\n", b"a\r\n\xff\0\n");
    check("cat", b"", b"");
    check("tr a-z A-Z", b"abc\n", b"ABC\n");
    // Much more than a pipe holds, both ways at the same time.
    let much: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
    check("cat", &much, &much);
    // It reads all before it prints, prints all before it reads, or reads little.
    check("x=$(cat | wc -c); echo $x", &much, b"12000000\n");
    check("head -c 5000000 /dev/zero | tr '\\0' x; cat >/dev/null", &much, &[b'x'; 5_000_000]);
    // It writes and reads line by line, each with a call of its own.
    let lines: Vec<u8> = (0..20_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    check("while read -r line; do echo \"$line\"; done", &lines, &lines);
    check("head -n 1", b"one\ntwo\n", b"one\n");
    check("exec <&-; echo done", &much, b"done\n");
    check("exec >&-; cat >/dev/null", &much, b"");
}

#[test]
fn failures_say_what_happened_and_its_last_words() {
    let check = |script: &str, kind: Kind, message: &str| {
        assert_eq!(consume(sh(script), b"a\n"), Err(BatchError::new(kind, message)));
    };
    check("exit 3", Kind::Failed, "exit code 3");
    check("echo first >&2; echo 'odd \u{1b}[0m' >&2; exit 3", Kind::Failed, "exit code 3: first | odd \\u{1b}[0m");
    check("seq 100 >&2; exit 1", Kind::Failed, "exit code 1: 96 | 97 | 98 | 99 | 100");
    check("exit 65", Kind::Final, "exit code 65");
    check("exit 75", Kind::Later, "exit code 75");
    check("kill -9 $$", Kind::Failed, "ended by signal 9");
    let limited = Program { max_output: 1000, ..sh("yes") };
    let error = consume(limited, b"").unwrap_err();
    assert_eq!(error.kind, Kind::Final);
    assert!(error.message.contains("more than 1000 B"), "{error}");
    let not_started = |program: Program, message: &str| {
        let error = BatchError::new(Kind::NotStarted { host: false }, message);
        assert_eq!(consume(program, b""), Err(error));
    };
    let absent = Program { program: "/nonexistent/program".into(), ..sh("") };
    not_started(absent, "cannot start `/nonexistent/program`: No such file or directory (os error 2)");
    let nowhere = Program { cwd: "/nonexistent".into(), ..sh("") };
    not_started(nowhere, "cannot start `/bin/sh`: its folder `/nonexistent` isn't there (see `cwd`)");
}

#[test]
fn one_that_takes_too_long_is_ended_whatever_it_ignores() {
    let timeout = Some(Duration::from_millis(50));
    let check = |script: &str, kill_grace: Duration, words: &str| {
        let program = Program { timeout, kill_grace, max_output: u64::MAX, ..sh(script) };
        let error = consume(program, b"a\n").unwrap_err();
        assert_eq!(error.kind, Kind::Failed);
        assert!(error.message.contains("timeout") && error.message.contains(words), "{error}");
    };
    check("echo begun >&2; sleep 1000", HOUR, "begun");
    check("trap 'echo asked >&2; exit 0' TERM; while :; do sleep 0.01; done", HOUR, "asked");
    check("trap '' TERM; while :; do sleep 0.01; done", Duration::from_millis(50), "");
    // It prints without end meanwhile.
    check("trap '' TERM; yes", Duration::from_millis(50), "");
}

#[test]
fn output_that_may_be_incomplete_is_no_success() {
    let grace = Program { kill_grace: Duration::from_millis(50), ..sh("sleep 1000 & echo part") };
    let error = consume(grace, b"").unwrap_err();
    assert!(error.message.contains("holds its stdout open"), "{error}");
    // One that only prints the rest late is waited for.
    assert_eq!(consume(sh("(sleep 0.1; echo rest) & echo part"), b""), Ok(b"part\nrest\n".to_vec()));
}

#[test]
fn nothing_of_its_group_survives() {
    let out = consume(sh("sleep 1000 >/dev/null 2>&1 & echo $!"), b"").unwrap();
    let pid: i32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    // Killed already, but a kill takes its time.
    let Ok(handle) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else { return };
    let limit = Timespec::try_from(Duration::from_secs(60)).unwrap();
    assert_eq!(poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit)), Ok(1));
}

#[test]
fn a_stop_ends_it() {
    let stop = StopFlag::new().unwrap();
    let mut consumer = ProcessConsumer::new(sh("sleep 1000"), stop.clone());
    std::thread::scope(|scope| {
        let running = scope.spawn(|| consumer.consume(&batch(b"a\n"), &mut Vec::new()));
        stop.order();
        assert_eq!(running.join().unwrap().unwrap_err().kind, Kind::Stopped);
    });
    assert!(!consumer.wants_more());
}

#[test]
fn its_stderr_is_in_the_log_in_whole_lines() {
    let mut log = tempfile::tempfile().unwrap();
    let shared = Arc::new(log.try_clone().unwrap());
    let program =
        Program { log: Some(shared), ..sh("printf 'half '; printf 'half ' >&2; echo line >&2; printf end >&2") };
    assert_eq!(consume(program, b"").unwrap(), b"half ");
    log.rewind().unwrap();
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "half line\nend\n");
}

#[test]
fn it_inherits_what_it_shall() {
    let mut file = tempfile::tempfile().unwrap();
    let given = Arc::new(OwnedFd::from(file.try_clone().unwrap()));
    let program = Program { descriptors: vec![given], ..sh("echo here >&3; ls /proc/self/fd | wc -l") };
    // Four, and the folder that `ls` reads.
    assert_eq!(consume(program, b"").unwrap(), b"5\n");
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "here\n");
}
