//! What people read is true: the configurations in the README and the annotated one are understood, the README's list of
//! commands is the real one, and its map shows every module there is.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::World;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}

/// The fenced blocks of a kind.
fn blocks(text: &str, kind: &str) -> Vec<String> {
    let fence = format!("```{kind}\n");
    let ends = text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    ends.map(str::to_owned).collect()
}

/// The section under a heading or a bold word.
fn section<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).expect(from);
    rest.split_once(to).expect(to).0
}

#[test]
fn every_configuration_in_the_readme_is_understood() {
    let world = World::new("");
    let blocks = blocks(&read("README.md"), "toml");
    assert!(blocks.len() > 5, "{}", blocks.len());
    for block in blocks {
        world.configure("", &block);
        let output = world.gamdok(&["check"]);
        assert!(output.status.success(), "{block}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn what_the_annotated_configuration_offers_can_be_switched_on() {
    let world = World::new("");
    let text = read("config/gamdok.toml");
    let is_key = |line: &str| {
        let key = line.strip_prefix('#').and_then(|line| line.split_once(" = ")).map(|(key, _)| key);
        key.is_some_and(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    // What can be switched on by itself: a key, or a table with all of its keys.
    let (mut units, mut in_table): (Vec<Vec<usize>>, bool) = (Vec::new(), false);
    for (at, line) in text.lines().enumerate() {
        match line {
            "" => in_table = false,
            line if line.starts_with("#[[") => {
                in_table = true;
                units.push(vec![at]);
            }
            line if is_key(line) && in_table => units.last_mut().expect("the table's").push(at),
            line if is_key(line) => units.push(vec![at]),
            _ => {}
        }
    }
    assert!(units.len() > 5, "{units:?}");
    let all = units.concat();
    for on in units.iter().chain([&all]) {
        let switch = |(at, line)| if on.contains(&at) { &(line as &str)[1..] } else { line };
        let switched: Vec<&str> = text.lines().enumerate().map(switch).collect();
        world.configure("", &switched.join("\n"));
        let output = world.gamdok(&["check"]);
        assert!(output.status.success(), "{on:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_commands_in_the_readme_are_the_real_ones() {
    let world = World::new("");
    let help = world.ok(&["--help"]);
    let commands = section(&help, "Commands:\n", "\n\n").lines().filter_map(|line| {
        let command = line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?;
        command.split_whitespace().next().filter(|command| *command != "help")
    });
    let real: BTreeSet<String> = commands.map(str::to_owned).collect();
    let readme = read("README.md");
    let block = blocks(section(&readme, "## Command line", "## ARCHITECTURE"), "text").remove(0);
    let lines = block.lines().flat_map(|line| line.trim_start_matches("gamdok ").split(" · ").collect::<Vec<_>>());
    let told: BTreeSet<String> = lines.filter_map(|words| words.split_whitespace().next()).map(str::to_owned).collect();
    assert_eq!(told, real);
}

#[test]
fn the_map_shows_every_module() {
    let readme = read("README.md");
    let map = blocks(section(&readme, "**The map**", "**Invariants.**"), "text").remove(0);
    let heads = map.lines().filter_map(|line| line.get(..20));
    let told: BTreeSet<String> =
        heads.flat_map(|head| head.split([',', ' '])).filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("src");
    let stem = |name: std::ffi::OsString| name.to_string_lossy().trim_end_matches(".rs").to_owned();
    let real: BTreeSet<String> = entries.flatten().map(|entry| stem(entry.file_name())).collect();
    assert_eq!(told, real);
}
