//! The schema as a whole: what a bad text is answered with, and what the texts that come with gamdok say.

use std::path::Path;
use std::time::Duration;

use miette::{GraphicalReportHandler, GraphicalTheme};

use super::*;

const DIR: &str = "/srv/gamdok";

fn parse(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    Config::parse(text, Some(Path::new("/srv/gamdok/gamdok.toml")), Path::new(DIR), &Overrides::default())
}

/// The one route of a text.
fn route(keys: &str) -> Route {
    let text = format!("[[route]]\nname = 'x'\ncommand = ['true']\n{keys}\n");
    let (config, _) = parse(&text).unwrap_or_else(|error| panic!("{keys}: {}", error.summary()));
    config.routes[0].as_ref().clone()
}

fn render(error: &ConfigError) -> String {
    let mut rendered = String::new();
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    handler.with_links(false).render_report(&mut rendered, error).expect("rendered");
    rendered.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A route's head, for the texts below.
const HEAD: &str = "[[route]]\nname = \"x\"\ncommand = [\"true\"]\n";

/// Texts that can't be used. A leading `+` stands for [`HEAD`].
const BAD: &[&str] = &[
    // TOML itself.
    "[inbox\nsettle = \"2s\"",
    "[inbox]\nsettle = 2s",
    "[inbox]\nsettle = \"2s\"\nsettle = \"3s\"",
    "root = \"unclosed",
    // Keys.
    "[inbox]\nsetle = \"2s\"",
    "[inbocks]\nsettle = \"2s\"",
    "slots = 2",
    "[devices]\ncolour = \"red\"",
    "[devices.idle]\nmax_memory = \"1GiB\"",
    "+cmd = [\"x\"]",
    "+settle = \"2s\"",
    "+ready = { markr = \".done\" }",
    "[[inbox]]\nsettle = \"2s\"",
    "[route]\nname = \"x\"",
    "inbox = 3",
    // Types, units, ranges.
    "[inbox]\nsettle = 2",
    "[inbox]\nsettle = \"2\"",
    "[inbox]\nsettle = \"2 fortnights\"",
    "[inbox]\nsettle = \"-2s\"",
    "[inbox]\npoll_interval = \"1ms\"",
    "[inbox]\nwatch = \"event\"",
    "[inbox]\nignore = \"*.bak *.old\"",
    "[inbox]\nignore = [\"*.bak\", 3]",
    "[devices]\nslots = 0",
    "[devices]\nslots = \"two\"",
    "[devices]\nslots = 1.5",
    "[devices]\ncpu_slots = \"all\"",
    "[devices]\npolicy = \"round_robin\"",
    "[devices]\naffinity = \"yes\"",
    "[devices]\ninclude = [0, \"gpu1\"]",
    "[devices]\nidle = { max_memory_used = \"600 cows\", max_utilization = 150 }",
    "[devices.sim]\nmemory = 80",
    "[history]\nkeep_done = \"always\"",
    "[history]\nkeep_failed = \"1ms\"\nmax_log = \"1B\"",
    "[api]\nlisten = \"localhost:7878\"",
    "[api]\nlisten = \":7878\"",
    "root = \"~/gamdok\"",
    "root = \"\"",
    "+gpu_memory = \"8\"",
    "+timeout = \"0s\"",
    "+backoff = \"1h\"",
    "+retries = 1000000",
    "+priority = \"high\"",
    "+env = { A = 1 }",
    // Contradictions.
    "[devices]\ninclude = [0, 1]\nexclude = [\"1\"]",
    "[api]\nlisten = \"0.0.0.0:7878\"",
    "[[route]]\nname = \"a\"\ncommand = [\"true\"]\n[[route]]\nname = \"a\"\ncommand = [\"true\"]",
    "+gpus = 0\ngpu_memory = \"8GiB\"",
    "+publish = \"inbox/out\"",
    "+publish = \".\"",
    "+env = { CUDA_VISIBLE_DEVICES = \"0\", GAMDOK_ITEM = \"x\" }",
    // Routes.
    "[[route]]\ncommand = [\"true\"]",
    "[[route]]\nname = \"a/b\"\ncommand = []",
    "[[route]]\nname = \"a\"\ncommand = \"python3 infer.py {item}\"",
    "[[route]]\nname = \"a\"\ncommand = [\"python3\", \"{itme}\", \"--to\", \"{out\"]",
    "[[route]]\nname = \"a\"\ncommand = [\"\"]",
    "[[route]]\nname = \"a\"",
    "+match = [\"*.wav\", \"[a-\"]",
    "+match = [\"audio/*.wav\"]",
    "+outputs = [\"../x\"]",
    "+folder = \"/audio\"",
    "+folder = \"../audio\"",
    "+folder = \"a/b\"",
    "+folder = \"audio/\"",
    "+folder = \".hidden\"",
    "+kind = \"folder\"",
    "+cwd = \"work/{room}\"",
    "+ready = { marker = \"\", validator = [\"\"] }",
    "+ready = { validator = [\"check\", \"{out}\"] }",
    // Resident workers.
    "+mode = \"residant\"",
    "+batch = { max_items = 8, max_wait = \"1s\" }",
    "+mode = \"resident\"\nbatch = { max_items = 513 }\nresident = { ready_timeout = \"0s\", idle = \"1m\" }",
    "[[route]]\nname = \"x\"\nmode = \"resident\"\ncommand = [\"serve\", \"--file={item}\"]\nenv = { A = \"{out}\" }",
    // Big line files.
    "+split = { lines = 0 }",
    "+split = { lines = 1_000_000_001, compress = \"gz\", level = 13 }",
    "+split = { compress = \"gzip\" }",
    "+split = { lines = 10, level = 3 }",
    "+split = { line = 10 }",
    "+split = 5000",
    "+kind = \"directory\"\nsplit = { lines = 10 }",
    "+mode = \"resident\"\nbatch = { max_items = 8 }\nsplit = { lines = 10 }",
    // Telling people.
    "[[notify]]\nurl = \"example.org/hook\"\nevent = [\"item-failed\"]",
    "[[notify]]\nurl = \"https://example.org\"\nevents = [\"failed\", \"queue-emty\"]\nretries = 101",
    "[[notify]]\nurl = \"https://example.org\"\ncommand = [\"mail\"]",
    "[[notify]]\ncommand = [\"mail\"]\nsecret_file = \"secret\"\ntimeout = \"0s\"",
    "[[notify]]\nurl = \"\"",
    "[notify]\nurl = \"https://example.org\"",
    "+[[notify]]\nurl = \"https://example.org\"\nroutes = [\"y\"]",
    // What comes later.
    "[[engine]]\nkind = \"slurm\"",
    // Several at once, and characters that would play tricks on a terminal.
    "roott = \"x\"\n[inbox]\nsettle = 2\n[devices]\nuse = \"nvidia\"",
    "[inbox]\nwatch = \"a\\u001b[31m\"\n\"k\\u202e\" = 1",
];

#[test]
fn a_bad_text_is_answered_with_its_line_what_was_found_and_what_is_expected() {
    let mut answers = String::new();
    for bad in BAD {
        let text = match bad.strip_prefix('+') {
            Some(keys) => format!("{HEAD}{keys}"),
            None => (*bad).to_owned(),
        };
        let error = parse(&text).err().unwrap_or_else(|| panic!("accepted: {text}"));
        answers.push_str(&format!("{}\n{}\n\n\n", error.summary(), render(&error)));
    }
    insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("bad_configurations", answers);
    });
}

#[test]
fn no_answer_carries_a_control_character() {
    for bad in ["a = \"\u{1b}[2J\"", "[inbox]\nwatch = \"\\u001b\"", "\"\\u0007\" = 1", "# \u{202e}\nx = 1"] {
        let error = parse(bad).expect_err(bad);
        let shown = format!("{}{}", error.summary(), render(&error));
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{shown:?}");
    }
}

#[test]
fn an_empty_text_is_the_defaults() {
    let (config, warnings) = parse("").expect("valid");
    let builtin = Config::builtin(Path::new(DIR), Path::new("."));
    assert_eq!(config, Config { file: config.file.clone(), ..builtin });
    assert_eq!(config.root, Path::new(DIR));
    assert!(warnings.is_empty());
    assert_eq!(route(""), Route::new("x", vec!["true".to_owned()], DIR));
}

#[test]
fn values_mean_what_they_say() {
    let check = |keys: &str, expected: &dyn Fn(&mut Route)| {
        let mut wanted = Route::new("x", vec!["true".to_owned()], DIR);
        expected(&mut wanted);
        assert_eq!(route(keys), wanted, "{keys}");
    };
    check("gpu_memory = '8GiB'", &|route| route.gpu_memory = Some(Bytes(8 << 30)));
    check("gpu_memory = '1.5 GiB'", &|route| route.gpu_memory = Some(Bytes(3 << 29)));
    check("timeout = '1h 30m'", &|route| route.timeout = Some(Duration::from_secs(5400)));
    check("max_running = 0", &|route| route.max_running = None);
    check("max_running = 3", &|route| route.max_running = Some(3));
    check("priority = -5", &|route| route.priority = -5);
    check("kill_grace = '0s'", &|route| route.kill_grace = Duration::ZERO);
    check("backoff = '10m'", &|route| route.backoff = Route::MAX_BACKOFF);
    check("publish = ''", &|route| route.publish = None);
    check("publish = '../out'", &|route| route.publish = Some("/srv/out".into()));
    check("cwd = '.'", &|route| route.cwd = Some("/srv/gamdok".to_owned()));
    check("cwd = '{out}/x'", &|route| route.cwd = Some("{out}/x".to_owned()));
    check("cwd = 'w/{stem}'", &|route| route.cwd = Some("/srv/gamdok/w/{stem}".to_owned()));
    check("cwd = '/w/{{a}}'", &|route| route.cwd = Some("/w/{{a}}".to_owned()));
    check("cwd = '{{a}}'", &|route| route.cwd = Some("/srv/gamdok/{{a}}".to_owned()));
    check("ready = { min_bytes = 10 }", &|route| route.ready.min_bytes = Bytes(10));
    check("ready = { min_bytes = '1KiB' }", &|route| route.ready.min_bytes = Bytes(1024));
    check("batch = { max_items = 1 }\nresident = { max_items = 0 }\nmode = 'oneshot'", &|_| {});
    check("mode = 'resident'\nbatch = { max_items = 16, max_wait = '2s' }", &|route| {
        route.mode = Mode::Resident;
        route.batch = Batch { max_items: 16, max_wait: Duration::from_secs(2) };
    });
    check("mode = 'resident'\nresident = { idle_timeout = '0s', max_items = 9, ready_timeout = '1m' }", &|route| {
        route.mode = Mode::Resident;
        route.resident =
            Resident { idle_timeout: Duration::ZERO, max_items: Some(9), ready_timeout: Duration::from_secs(60) };
    });
    check("mode = 'resident'\ncwd = '{route}'\nenv = { D = '{device}' }", &|route| {
        route.mode = Mode::Resident;
        route.cwd = Some("/srv/gamdok/{route}".to_owned());
        route.env.insert("D".to_owned(), "{device}".to_owned());
    });
    let split = |lines, compress, level| Some(Split { lines, compress, level });
    check("split = { lines = 1 }", &|route| route.split = split(1, Compress::None, 6));
    check("split = { lines = 1_000_000_000, compress = 'gzip' }", &|route| {
        route.split = split(1_000_000_000, Compress::Gzip, 6);
    });
    check("split = { lines = 9, compress = 'gzip', level = 0 }\nkind = 'any'", &|route| {
        (route.split, route.kind) = (split(9, Compress::Gzip, 0), RouteKind::Any);
    });
    check("split = { lines = 9, compress = 'none', level = 1 }", &|route| route.split = split(9, Compress::None, 1));
    check("split = { lines = 9 }\nmode = 'resident'\nbatch = { max_items = 1 }", &|route| {
        (route.split, route.mode) = (split(9, Compress::None, 6), Mode::Resident);
    });
    check("visible = 'index'", &|route| route.visible = Some(Visible::Index));

    let devices = |text: &str| parse(text).expect(text).0.devices;
    assert_eq!(devices("[devices]\ninclude = [0, '1', 'GPU-1a']").include, ["0", "1", "GPU-1a"]);
    assert_eq!(devices("[devices]\ncpu_slots = 'auto'").cpu_slots, None);
    assert_eq!(devices("[devices]\ncpu_slots = 3").cpu_slots, Some(3));
    assert_eq!(devices("devices.idle.max_utilization = 0").idle.max_utilization, 0);
    let api = parse("[api]\nlisten = '0.0.0.0:80'\ntoken_file = 'secret'").expect("valid").0.api;
    assert_eq!(api.token_file.as_deref(), Some(Path::new("/srv/gamdok/secret")));
    assert_eq!(
        parse("\u{feff}[history]\r\nkeep_done = '7d'\r\n").expect("valid").0.history.keep_done,
        Some(Duration::from_secs(7 * 86_400))
    );
}

#[test]
fn the_root_comes_from_the_nearest_that_says_it() {
    let check = |text: &str, over: Option<&str>, expected: &str| {
        let overrides = Overrides { root: over.map(Into::into) };
        let (config, _) = Config::parse(text, None, Path::new("/etc/gamdok"), &overrides).expect("valid");
        assert_eq!(config.root, Path::new(expected), "{text} {over:?}");
    };
    check("", None, "/etc/gamdok");
    check("root = '.'", None, "/etc/gamdok");
    check("root = '../data'", None, "/etc/data");
    check("root = '/srv/x/'", None, "/srv/x");
    check("root = '/srv/x'", Some("/srv/y/./z"), "/srv/y/z");
}

#[test]
fn what_is_valid_and_unlikely_is_warned_of() {
    let check = |text: &str, expected: &[&str]| {
        let (_, warnings) = parse(text).unwrap_or_else(|error| panic!("{text}: {}", error.summary()));
        assert_eq!(warnings.len(), expected.len(), "{text}: {warnings:?}");
        for (warning, part) in warnings.iter().zip(expected) {
            assert!(warning.contains(part), "{text}: {warning}");
        }
    };
    let two = |first: &str, second: &str| {
        format!("[[route]]\nname='a'\ncommand=['true']\n{first}\n[[route]]\nname='b'\ncommand=['true']\n{second}\n")
    };
    let never = "route `b`: never matches, since route `a` above";
    check(&two("", "match=['*.wav']"), &[never]);
    check(&two("match=['*.wav','*']", ""), &[never]);
    check(&two("match=['*.a','*.b']", "match=['*.b']"), &[never]);
    check(&two("match=['*.wav']", ""), &[]);
    check(&two("folder='f'", ""), &[]);
    check(&two("", "kind='directory'"), &[]);
    check(&two("kind='any'", "kind='directory'"), &[never]);
    check(
        "[[route]]\nname='a'\ncommand=['no-such-program-anywhere']",
        &["there is no program `no-such-program-anywhere` in PATH"],
    );
    check("[[route]]\nname='a'\ncommand=['./no-such']", &["`./no-such` isn't there"]);
    check("[[route]]\nname='a'\ncommand=['{item}']", &[]);
    check("[[route]]\nname='a'\ncommand=['true']\ncwd='/no/such'", &["there is no folder `/no/such`"]);
    check("[[route]]\nname='a'\ncommand=['true']\nenv={PATH='/no/such'}", &["there is no program `true` in PATH"]);
    check("[[route]]\nname='a'\ncommand=['true']\nready={validator=['true']}", &["add \"{item}\""]);
    check("[history]\nkeep_done='7d'", &["`keep_done = \"7days\"`"]);
    check("[inbox]\nsettle='0s'", &["`settle` in [inbox] is zero"]);
    check("[devices]\nuse='sim'", &["made up"]);
    check(
        "[devices]\nuse='cpu'\n[[route]]\nname='a'\ncommand=['true']\ncpu_fallback=false",
        &["never runs: it needs a GPU"],
    );
    check("[api]\ntoken_file='/no/such'", &["cannot read `/no/such`"]);
}

#[test]
fn a_file_that_cannot_be_read_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let check = |name: &str, bytes: Option<&[u8]>, expected: &str| {
        let file = folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&file, bytes).expect("written");
        }
        let error = Config::read(&file, &Overrides::default()).expect_err(name);
        assert!(error.message.contains(expected) && error.help.is_some(), "{error:?}");
    };
    check("absent", None, "No such file");
    check("latin1", Some(b"root = 'x'\n# caf\xe9\n"), "isn't UTF-8: line 2");
    check("large", Some(&vec![b' '; (4 << 20) + 1]), "too large");
    check(".", None, "Is a directory");
}

#[test]
fn the_annotated_file_is_the_defaults() {
    let (config, warnings) = parse(ANNOTATED).unwrap_or_else(|error| panic!("{}", render(&error)));
    let [example] = config.routes.as_slice() else { panic!("one route") };
    let command = vec!["sha256sum".to_owned(), "{item}".to_owned()];
    assert_eq!(**example, Route::new("example", command, DIR));
    let builtin = Config::builtin(Path::new(DIR), Path::new("."));
    assert_eq!(config, Config { file: config.file.clone(), routes: config.routes.clone(), ..builtin });
    assert_eq!(warnings, Vec::<String>::new());
}

#[test]
fn the_annotated_file_names_every_key_and_its_suggestions_are_valid() {
    // "#key" is a suggestion, "# Word" an explanation.
    let suggestion = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).map(str::to_owned);
    let lines: Vec<String> =
        ANNOTATED.lines().map(|line| suggestion(line).unwrap_or_else(|| line.to_owned())).collect();
    let (all, _) = parse(&lines.join("\n")).unwrap_or_else(|error| panic!("{}", render(&error)));
    assert_eq!(all.routes[0].gpu_memory, Some(Bytes(8 << 30)));

    let document: toml::Table = lines.join("\n").parse().expect("TOML");
    for (path, keys) in schema::TABLES {
        let mut table = &document;
        for step in path.split('.').filter(|step| !step.is_empty()) {
            let inner = table.get(step).unwrap_or_else(|| panic!("[{path}] is missing"));
            let first = inner.as_array().and_then(|list| list.first()).unwrap_or(inner);
            table = first.as_table().expect("a table");
        }
        for key in *keys {
            assert!(table.contains_key(*key), "`{key}` of [{path}] is missing");
        }
    }
}

#[test]
fn the_quick_start_is_valid_and_its_script_lies_where_it_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/quickstart.toml");
    let (config, warnings) = Config::read(&file, &Overrides::default()).unwrap_or_else(|e| panic!("{}", render(&e)));
    assert_eq!(warnings, Vec::<String>::new());
    let clone = file.parent().and_then(Path::parent).expect("the clone");
    assert_eq!(config.root, clone.join("quickstart"));
    let [route] = config.routes.as_slice() else { panic!("one route") };
    let cwd = template::fill(route.cwd.as_deref().expect("a folder"), |_| std::ffi::OsStr::new(""));
    assert!(Path::new(&cwd).join(&route.command[1]).is_file());
    let ignored = std::fs::read_to_string(clone.join(".gitignore")).expect(".gitignore");
    assert!(ignored.lines().any(|line| line == "/quickstart"), "what the quick start makes is no part of the source");
}

#[test]
fn a_route_of_an_earlier_version_splits_nothing() {
    let mut stored = serde_json::to_value(route("split = { lines = 9, compress = 'gzip' }")).expect("JSON");
    let whole: Route = serde_json::from_value(stored.clone()).expect("as it was");
    assert_eq!(whole.split.and_then(|split| split.gzip()), Some(6));
    stored["split"] = serde_json::json!({ "lines": 9 });
    let short: Route = serde_json::from_value(stored.clone()).expect("by default");
    assert_eq!(short.split.map(|split| (split.lines, split.gzip())), Some((9, None)));
    stored.as_object_mut().expect("a table").remove("split");
    assert_eq!(serde_json::from_value::<Route>(stored).expect("an older one").split, None);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever an editor, a crash or a joke leaves in the file, the answer is a configuration or an error that can be
    /// shown.
    #[test]
    fn no_text_is_too_odd_for_an_answer(
        at in 0..ANNOTATED.len(),
        cut in 0..40usize,
        odd in "([\\[\\]{}\"'=.,#\\\\ \\n\\r\\ta-z0-9-]|é|\u{202e}|\u{0}|\u{1b}|🦀|\\[\\[route\\]\\]|\"2 µs\"){0,12}",
    ) {
        let start = (0..=at).rev().find(|at| ANNOTATED.is_char_boundary(*at)).unwrap_or(0);
        let end = (start + cut..=ANNOTATED.len()).find(|at| ANNOTATED.is_char_boundary(*at)).unwrap_or(ANNOTATED.len());
        let text = format!("{}{odd}{}", &ANNOTATED[..start], &ANNOTATED[end..]);
        if let Err(error) = parse(&text) {
            let shown = format!("{}{}", error.summary(), render(&error));
            proptest::prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{:?}", shown);
        }
    }
}
