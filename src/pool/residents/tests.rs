use serde_json::json;

use super::*;

/// A worker in Python with what every one of them begins with; `handle` is its body for one `task`.
fn worker(handle: &str) -> ResidentsBuilder {
    let script = format!(
        "import json, os, socket, sys, time\n\
         channel = socket.socket(fileno=3)\n\
         lines = channel.makefile('r')\n\
         def say(**message): channel.sendall((json.dumps(message) + '\\n').encode())\n\
         def handle(task, id):\n{}\n\
         if os.environ.get('LATE'): time.sleep(60)\n\
         say(type='ready')\n\
         for line in lines:\n    \
             message = json.loads(line)\n    \
             if message['type'] == 'stop': break\n    \
             for item in message['items']: handle(item['task'], item['id'])\n",
        handle.lines().map(|line| format!("    {line}\n")).collect::<String>()
    );
    Residents::builder(["python3".to_owned(), "-c".to_owned(), script])
}

const DOUBLE: &str = "say(type='done', id=id, result=task * 2)";

#[test]
fn tasks_are_answered_in_order_by_processes_that_stay() {
    let residents = worker("say(type='done', id=id, result=[task, os.getpid()])").slots(2).build().unwrap();
    let answers: Vec<Value> = residents.map(0..500).map(Result::unwrap).collect();
    let tasks: Vec<u64> = answers.iter().filter_map(|answer| answer[0].as_u64()).collect();
    assert_eq!(tasks, (0..500).collect::<Vec<_>>());
    let processes: std::collections::BTreeSet<u64> = answers.iter().filter_map(|answer| answer[1].as_u64()).collect();
    assert!((1..=2).contains(&processes.len()), "{processes:?}");
    residents.join();
}

#[test]
fn state_stays_from_task_to_task() {
    let least = "global least\nleast = min(task, globals().get('least', task))\nsay(type='done', id=id, result=least)";
    let residents = worker(least).slots(1).build().unwrap();
    let answers: Vec<Value> = residents.map([10, 4, 22, -1]).map(Result::unwrap).collect();
    assert_eq!(answers, [json!(10), json!(4), json!(4), json!(-1)]);
}

#[test]
fn each_way_to_fail_costs_one_task_and_says_why() {
    let check = |handle: &str, expected: Result<(), TaskError>| {
        let handle = format!("if task == 'bad':\n    {handle}\nelse: say(type='done', id=id, result=task)");
        let residents = worker(&handle).slots(1).timeout(Duration::from_secs(2)).build().unwrap();
        // Quick ones before it, so that others are in hand with it.
        let mut tasks: Vec<Value> = (0..50).map(Value::from).collect();
        tasks.insert(40, json!("bad"));
        let answers: Vec<_> = residents.map(&tasks).collect();
        for (task, answer) in tasks.iter().zip(answers) {
            let wanted = if task == "bad" { expected.clone().map(|()| Value::Null) } else { Ok(task.clone()) };
            assert_eq!(answer, wanted, "{handle}");
        }
    };
    let lost = |why: &str| Err(TaskError::Lost(why.to_owned()));
    check("say(type='done', id=id)", Ok(()));
    check("say(type='failed', id=id, error='no')", Err(TaskError::Failed("no".to_owned())));
    check("say(type='failed', id=id, error='never', retry=False)", Err(TaskError::Failed("never".to_owned())));
    check("os._exit(3)", lost("the worker ended with exit code 3"));
    check("os.kill(os.getpid(), 9)", lost("the worker was ended by signal 9"));
    check("time.sleep(60)", lost("over its time of 2s"));
    check("say(type='done')", lost("the worker broke the protocol: an answer without an `id`"));
    check("channel.sendall(b'nonsense\\n')", lost("the worker broke the protocol: not a JSON object: `nonsense`"));
    check(
        "say(type='done', id='01ARZ3NDEKTSV4RRFFQ69G5FAV')",
        lost(
            "the worker broke the protocol: an answer for `01ARZ3NDEKTSV4RRFFQ69G5FAV`, and the next in line is \
             `00000000000000000000000019`",
        ),
    );
    check("channel.sendall(b'x' * 2000000)", lost("the worker broke the protocol: a line of more than 1048576 bytes"));
}

#[test]
fn one_that_ends_between_two_tasks_costs_none() {
    let residents = worker("say(type='done', id=id, result=os.getpid())\nos._exit(0)").slots(1).build().unwrap();
    let first = residents.submit(0).wait().unwrap();
    // Its end is the only event there is, and nobody is told of it.
    let pid = i32::try_from(first.as_i64().unwrap()).unwrap();
    while crate::proc::ProcStat::read(pid).is_some_and(|stat| !stat.is_dead()) {
        thread::yield_now();
    }
    let second = residents.submit(0).wait().unwrap();
    assert_ne!(first, second);
}

#[test]
fn one_that_ends_with_its_next_message_unread_costs_none() {
    // Every few tasks it leaves of its own accord, whatever was sent meanwhile.
    let handle =
        "globals()['n'] = globals().get('n', 0) + 1\nsay(type='done', id=id, result=task)\nif n == 7: os._exit(0)";
    let residents = worker(handle).slots(2).build().unwrap();
    // One at a time in hand: a task that isn't answered was never read.
    let answers: Vec<_> = (0..60).map(|n| residents.submit(json!(n)).wait()).collect();
    let expected: Vec<_> = (0..60).map(|n| Ok(json!(n))).collect();
    assert_eq!(answers, expected);
}

#[test]
fn one_that_never_gets_ready_is_told() {
    let residents = worker(DOUBLE).env("LATE", "1").slots(1).ready_timeout(Duration::from_millis(300)).build().unwrap();
    let why = "the worker didn't say within 300ms that it is ready".to_owned();
    assert_eq!(residents.submit(1).wait(), Err(TaskError::Lost(why)));
}

#[test]
fn what_cannot_be_a_task_is_told_at_once() {
    let residents = worker(DOUBLE).slots(1).build().unwrap();
    let long = residents.submit("x".repeat(LONGEST)).wait();
    assert!(matches!(&long, Err(TaskError::Failed(why)) if why.contains("1048578 bytes")), "{long:?}");
    assert_eq!(residents.submit(21).wait(), Ok(json!(42)));
    assert!(matches!(Residents::builder(["no-such-program"]).build(), Err(PoolError::Command(_))));
    assert!(matches!(Residents::builder::<String>([]).build(), Err(PoolError::Command(_))));
    assert!(matches!(worker(DOUBLE).slots(0).build(), Err(PoolError::NoSlots)));
}

#[test]
fn dropping_it_lets_what_runs_end_and_cancels_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let gate = dir.path().join("gate");
    let handle =
        "open(task[0], 'w')\nwhile not os.path.exists(task[1]): time.sleep(0.01)\nsay(type='done', id=id, result=1)";
    let residents = worker(handle).slots(1).build().unwrap();
    let begun = dir.path().join("begun");
    let first = residents.submit([&begun, &gate]);
    while !begun.exists() {
        thread::yield_now();
    }
    let second = residents.submit([&begun, &gate]);
    residents.shutdown();
    std::fs::write(&gate, "").unwrap();
    drop(residents);
    assert_eq!((first.wait(), second.wait()), (Ok(json!(1)), Err(TaskError::Cancelled)));
}

#[test]
fn simulated_gpus_are_lent_to_them() {
    let rules = crate::rules::Rules {
        backend: crate::rules::Backend::Sim,
        sim: crate::rules::Sim { gpus: 2, ..Default::default() },
        ..Default::default()
    };
    let handle = "time.sleep(0.02)\nsay(type='done', id=id, result=os.environ['CUDA_VISIBLE_DEVICES'])";
    let residents = worker(handle).devices(Devices::gpus(1).rules(rules)).build().unwrap();
    assert_eq!(residents.slots(), 2);
    let used: std::collections::BTreeSet<String> =
        residents.map(0..20).filter_map(|answer| answer.ok()?.as_str().map(str::to_owned)).collect();
    assert!(!used.is_empty() && used.iter().all(|id| id.starts_with("SIM-")), "{used:?}");
}

#[test]
fn what_no_process_can_be_made_of_is_told_at_once() {
    let check = |change: &dyn Fn(ResidentsBuilder) -> ResidentsBuilder, words: &str| {
        let wrong = change(Residents::builder(["true"])).build().map(drop).unwrap_err().to_string();
        assert!(wrong.contains(words), "{wrong}, not {words}");
    };
    check(&|it| it.name("\0"), "the name `\\u{0}` has a NUL byte");
    check(&|it| it.slots(usize::MAX), "18446744073709551615 slots are a thread each");
    check(&|it| it.timeout(Duration::ZERO), "`timeout` is zero");
    check(&|it| it.ready_timeout(Duration::ZERO), "`ready_timeout` is zero");
    check(&|it| it.env("A=B", "x"), "no variable can be called `A=B`");
    check(&|it| it.env("", "x"), "no variable can be called ``");
    check(&|it| it.env("A", "x\0"), "the variable `A` has a NUL byte");
    check(&|it| it.cwd("/nonexistent"), "its folder `/nonexistent` isn't there");
    let check = |command: &[&str], words: &str| {
        let wrong = Residents::builder(command).build().map(drop).unwrap_err().to_string();
        assert!(wrong.contains(words), "{wrong}, not {words}");
    };
    check(&["true", "a\0b"], "`a\\u{0}b` has a NUL byte");
    check(&["./no/such"], "cannot start `./no/such`: No such file");
    check(&["/usr"], "cannot start `/usr`: it is a directory");
    check(&[], "the command is empty");
    // Times without end are as good as none.
    let endless = worker(DOUBLE).slots(1).queue(usize::MAX).timeout(Duration::MAX);
    let endless = endless.ready_timeout(Duration::MAX).idle_timeout(Duration::MAX).build().unwrap();
    assert_eq!(endless.submit(21).wait(), Ok(json!(42)));
}

#[test]
fn what_left_its_group_is_ended_with_it() {
    let lives = |pid: i32| crate::proc::ProcStat::read(pid).is_some_and(|stat| !stat.is_dead());
    let check = |end: &str, more: &str| {
        let left = format!(
            "import subprocess\nleft = subprocess.Popen(['sleep', '1000'], start_new_session=True)\n\
             say(type='done', id=id, result=left.pid)\n{end}"
        );
        // Of two pools, each ends its own alone.
        let (ours, theirs) = (worker(&left).slots(1).build().unwrap(), worker(&left).slots(1).build().unwrap());
        let pid = |of: &Residents| i32::try_from(of.submit(1).wait().unwrap().as_i64().unwrap()).unwrap();
        let (first, second) = (pid(&ours), pid(&theirs));
        ours.join();
        assert!(!lives(first), "{more}");
        assert!(!end.is_empty() || lives(second), "{more}");
        theirs.join();
        assert!(!lives(second), "{more}");
    };
    check("", "one that is told to stop");
    check("os._exit(3)", "one that ends by itself");
}
