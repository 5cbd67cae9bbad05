//! `[[notify]]` tables -> [`Notify`]s: who is told of what happens.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};
use toml::de::DeTable;
use ureq::http::Uri;

use super::parse::{optional_path, value};
use super::stored;
use super::text::{Fault, Table};
use crate::item::escape;

/// Somebody who is told, and of what.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notify {
    /// Of what; all there is where none is named.
    pub events: Vec<Topic>,
    #[serde(flatten)]
    pub to: Target,
    /// Items of these routes; empty = of all.
    pub routes: Vec<String>,
    /// Of one try.
    #[serde(with = "stored::duration")]
    pub timeout: Duration,
    /// Tries after the first.
    pub retries: u32,
}

impl Notify {
    pub fn wants(&self, topic: Topic) -> bool {
        self.events.contains(&topic)
    }
}

/// What there is to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topic {
    /// An item is in `failed/` for good.
    ItemFailed,
    /// A device takes no more work, after faults or by hand.
    DeviceCordoned,
    /// Nothing can be taken or written: the root, its inbox or its disk's space. Also its end.
    RootUnavailable,
    /// All work is done.
    QueueEmpty,
}

const TOPICS: &[(&str, Topic)] = &[
    ("item-failed", Topic::ItemFailed),
    ("device-cordoned", Topic::DeviceCordoned),
    ("root-unavailable", Topic::RootUnavailable),
    ("queue-empty", Topic::QueueEmpty),
];

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Target {
    /// A POST with the message as its body.
    Webhook {
        url: Address,
        /// Its text signs the message.
        #[serde(with = "stored::optional_path")]
        secret_file: Option<PathBuf>,
    },
    /// A program that gets the message on its stdin.
    Command {
        command: Vec<String>,
        #[serde(with = "stored::path")]
        dir: PathBuf,
    },
}

/// The address of a webhook. Whoever knows it whole may often write there: it is shown without what follows the host.
#[derive(Clone, PartialEq)]
pub struct Address {
    whole: String,
    shown: String,
}

impl Address {
    fn parse(text: &str) -> Result<Address, Fault> {
        let help = "write it whole: https://host/path";
        let uri: Uri = text.parse().map_err(|_| Fault::new("found no address").help(help))?;
        let (Some(scheme @ ("http" | "https")), Some(host)) =
            (uri.scheme_str(), uri.host().filter(|it| !it.is_empty()))
        else {
            return Err(Fault::new("found another kind of address").help(help));
        };
        let port = uri.port().map_or_else(String::new, |port| format!(":{port}"));
        let rest = if uri.path_and_query().is_none_or(|rest| rest == "/") { "" } else { "/…" };
        Ok(Address { whole: text.to_owned(), shown: format!("{scheme}://{host}{port}{rest}") })
    }

    /// All of it, to go there.
    pub fn whole(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// All of the document. `routes` are the names there are.
pub(super) fn all(top: &Table<'_>, dir: &Path, routes: &[String]) -> Vec<Notify> {
    top.tables("notify", called).iter().filter_map(|table| notify(table, dir, routes)).collect()
}

fn called(place: usize, _: &DeTable<'_>) -> String {
    format!("notify {}", place + 1)
}

fn notify(table: &Table<'_>, dir: &Path, known: &[String]) -> Option<Notify> {
    let listed: Vec<&str> = TOPICS.iter().map(|(word, _)| *word).collect();
    let must = format!("a list out of \"{}\"", listed.join("\", \""));
    let mut events = Vec::new();
    for text in table.texts_from("events", &must, super::text::string).into_iter().flat_map(|it| it.into_inner()) {
        match TOPICS.iter().find(|(word, _)| word == text.get_ref()) {
            Some((_, topic)) => events.push(*topic),
            None => {
                let fault = Fault::new(format!("found \"{}\"", escape(text.get_ref().as_bytes())));
                let near = super::error::nearest(text.get_ref(), listed.iter().copied());
                let fault = match near {
                    Some(word) => fault.help(format!("did you mean \"{word}\"?")),
                    None => fault,
                };
                table.refuse("events", &text, &must, fault);
            }
        }
    }
    if events.is_empty() {
        events.extend(TOPICS.iter().map(|(_, topic)| *topic));
    }
    let routes = table.texts("routes").map(|it| it.into_inner()).unwrap_or_default();
    for name in routes.iter().filter(|name| !known.contains(name.get_ref())) {
        let near = super::error::nearest(name.get_ref(), known.iter().map(String::as_str));
        let fault = Fault::new("no route is called so");
        let fault = match near {
            Some(near) => fault.help(format!("did you mean \"{}\"?", escape(near.as_bytes()))),
            None => fault.help("`name` of a [[route]] is meant; leave `routes` out for all"),
        };
        table.refuse("routes", name, "a list of names of routes", fault);
    }
    Some(Notify {
        events,
        routes: routes.into_iter().map(|name| name.into_inner()).collect(),
        timeout: value(
            table.duration("timeout", Duration::from_millis(100)..=Duration::from_secs(600)),
            Duration::from_secs(10),
        ),
        retries: value(table.integer("retries", 0..=100), 5),
        to: target(table, dir)?,
    })
}

fn target(table: &Table<'_>, dir: &Path) -> Option<Target> {
    let secret_file = optional_path(table, "secret_file", dir);
    let url = table.text("url").filter(|url| !url.get_ref().is_empty());
    let command = table.texts("command").filter(|command| !command.get_ref().is_empty());
    match (url, command) {
        (Some(url), Some(command)) => {
            let message = format!("{} and {} contradict each other", table.called("url"), table.called("command"));
            let fault = Fault::new("and a program here").help("write a [[notify]] for each");
            table.contradiction(command.span(), (url.span(), "a webhook here"), message, fault);
            None
        }
        (Some(url), None) => match Address::parse(url.get_ref()) {
            Ok(address) => Some(Target::Webhook { url: address, secret_file: secret_file.map(|it| it.into_inner()) }),
            Err(fault) => {
                table.refuse("url", &url, "the address of a webhook, http:// or https://", fault);
                None
            }
        },
        (None, Some(command)) => {
            if let Some(secret) = secret_file {
                let message = format!("{} signs what goes to a `url`", table.called("secret_file"));
                table.problem(secret.span(), message, Fault::new("a program needs no signature").help("leave it out"));
            }
            let words = command.into_inner();
            if words.first().is_some_and(|program| program.get_ref().is_empty()) {
                table.refuse("command", &words[0], "a program and its arguments", Fault::new("found no program"));
            }
            let command = words.into_iter().map(|word| word.into_inner()).collect();
            Some(Target::Command { command, dir: dir.to_owned() })
        }
        // Either was read and was wrong, or there is neither.
        (None, None) => {
            let written = table.is_filled("url") || table.is_filled("command");
            if !written {
                let help = "write `url = \"https://…\"`, or `command = [\"…\"]`";
                let fault = Fault::new("this one tells nobody").help(help);
                table.problem(table.span.clone(), format!("{} is missing", table.called("url")), fault);
            }
            None
        }
    }
}
