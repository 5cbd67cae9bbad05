//! The configuration in force as others may read it: what looks like a secret is masked. Pure.

use serde_json::Value;

use crate::config::Config;

/// What stands in the place of a secret.
pub(super) const MASK: &str = "***";

/// Words in a name that make its value a secret.
const WORDS: [&str; 12] = [
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "APIKEY",
    "KEY",
    "CREDENTIAL",
    "CREDENTIALS",
    "AUTH",
    "DSN",
    "PAT",
];

/// The configuration, resolved. The content of `token_file` was never in it.
pub(super) fn masked(config: &Config) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or_default();
    for route in value["routes"].as_array_mut().into_iter().flatten() {
        for (name, value) in route["env"].as_object_mut().into_iter().flatten() {
            if let Value::String(text) = value {
                *text = if is_secret(name) { MASK.to_owned() } else { without_login(text) };
            }
        }
        mask_arguments(&mut route["command"]);
        mask_arguments(&mut route["ready"]["validator"]);
    }
    for notify in value["notify"].as_array_mut().into_iter().flatten() {
        mask_arguments(&mut notify["command"]);
    }
    value
}

/// `--token=…`, `--token …` and `https://user:password@…`.
fn mask_arguments(command: &mut Value) {
    let mut follows = false;
    for argument in command.as_array_mut().into_iter().flatten() {
        let Value::String(text) = argument else { continue };
        if std::mem::take(&mut follows) && !text.starts_with('-') {
            MASK.clone_into(text);
            continue;
        }
        match text.split_once('=') {
            Some((name, _)) if is_secret(name) => *text = format!("{name}={MASK}"),
            Some(_) => *text = without_login(text),
            None if text.starts_with('-') => follows = is_secret(text),
            None => *text = without_login(text),
        }
    }
}

/// Whether one of the words in a name is a secret's: `HF_TOKEN`, `--api-key`, `dbPassword`; not `TOKENIZER` or `MONKEY`.
fn is_secret(name: &str) -> bool {
    let mut words: Vec<String> = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_alphanumeric() || (c.is_uppercase() && lower) {
            words.push(String::new());
        }
        lower = c.is_lowercase();
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_uppercase());
        }
    }
    words.iter().any(|word| WORDS.contains(&word.strip_suffix('S').unwrap_or(word)) || WORDS.contains(&word.as_str()))
}

/// An address without its `user:password@`.
fn without_login(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{MASK}{}", &rest[at..]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn names_of_secrets_are_told_from_others() {
        let check = |name: &str, expected: bool| assert_eq!(is_secret(name), expected, "{name}");
        for name in
            ["HF_TOKEN", "API_KEY", "--api-key", "OPENAI_API_KEYS", "dbPassword", "db.passwd", "AUTH", "github-pat"]
        {
            check(name, true);
        }
        for name in
            ["TOKENIZERS_PARALLELISM", "MONKEY", "AUTHOR", "PATH", "OMP_NUM_THREADS", "", "--keyboard", "KEYS_PER_S"]
        {
            check(name, name == "KEYS_PER_S");
        }
    }

    #[test]
    fn no_secret_of_a_route_is_shown() {
        let text = r#"
            [[route]]
            name = "a"
            command = ["run", "{item}", "--token", "s3cret-a", "--password=s3cret-b", "--url=https://me:s3cret-c@host/x", "--fast"]
            env = { HF_TOKEN = "s3cret-d", DATABASE = "pg://me:s3cret-e@host/db", OMP_NUM_THREADS = "4" }
            [[notify]]
            command = ["tell", "--token=s3cret-f"]
            [[notify]]
            url = "https://hooks.example.org/s3cret-g"
        "#;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("gamdok.toml");
        std::fs::write(&file, text).expect("a configuration");
        let (config, _) = Config::read(&file, &Overrides::default()).expect("valid");
        let shown = masked(&config).to_string();
        assert!(!shown.contains("s3cret"), "{shown}");
        for kept in ["OMP_NUM_THREADS\":\"4\"", "pg://***@host/db", "--fast", "--password=***", "https://***@host/x"] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
    }
}
