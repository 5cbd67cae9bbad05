//! From a route and the facts of one attempt to what is run: arguments, environment, folder. Pure.
//!
//! Invariant: what confines a worker to its devices comes last and wins over everything, then what identifies it, then
//! the route's own environment, then the director's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::config::Route;
use crate::config::template::{Placeholder, fill};
use crate::devices::DeviceId;
use crate::item::{ItemName, JobId};

/// What is known of an attempt before it starts.
#[derive(Clone, Debug)]
pub struct Facts {
    pub id: JobId,
    pub attempt: u32,
    pub name: ItemName,
    /// `claimed/<job>`, absolute.
    pub dir: PathBuf,
    pub on: DeviceWords,
    /// What confines the process to its devices.
    pub pinning: Vec<(String, String)>,
}

impl Facts {
    pub fn item(&self) -> PathBuf {
        self.dir.join("item").join(self.name.as_os_str())
    }

    pub fn out(&self) -> PathBuf {
        self.dir.join("out")
    }
}

/// How an attempt is told its devices; several are joined by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceWords {
    /// What a framework calls them inside, where only they are visible: `cuda:0,cuda:1`, or `cpu`.
    pub device: String,
    /// UUIDs, or `cpu`.
    pub id: String,
    /// The host's indexes; empty on the CPU.
    pub gpu: String,
    pub gpus: usize,
}

impl DeviceWords {
    pub fn cpu() -> DeviceWords {
        DeviceWords { device: "cpu".to_owned(), id: "cpu".to_owned(), gpu: String::new(), gpus: 0 }
    }

    /// In the order of the lease, which is the order in which the process sees them.
    pub fn gpus(given: &[(DeviceId, Option<u32>)]) -> DeviceWords {
        let join = |words: Vec<String>| words.join(",");
        DeviceWords {
            device: join((0..given.len()).map(|n| format!("cuda:{n}")).collect()),
            id: join(given.iter().map(|(id, _)| id.to_string()).collect()),
            gpu: join(given.iter().filter_map(|(_, index)| index.map(|index| index.to_string())).collect()),
            gpus: given.len(),
        }
    }
}

/// What is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expanded {
    pub argv: Vec<OsString>,
    /// Whole, each key once.
    pub env: Vec<(OsString, OsString)>,
    pub cwd: PathBuf,
}

/// Meant for the director alone; a worker that had them would speak to systemd in its name, or take fd 3 for a listener.
pub(crate) const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"];

/// What a resident worker's environment doesn't have: it is told of each item on fd 3.
pub const OF_ONE_ITEM: [&str; 4] = ["GAMDOK_ITEM", "GAMDOK_NAME", "GAMDOK_OUT", "GAMDOK_ATTEMPT"];

/// Fills in a route. `inherited` is the director's own environment.
pub fn expand(route: &Route, facts: &Facts, inherited: impl IntoIterator<Item = (OsString, OsString)>) -> Expanded {
    let value = |placeholder| value(placeholder, route, facts);
    let argv = route.command.iter().map(|word| fill(word, value)).collect();

    let mut env: BTreeMap<OsString, OsString> = inherited.into_iter().collect();
    for key in NOT_INHERITED {
        env.remove(OsStr::new(key));
    }
    for (key, text) in &route.env {
        env.insert(key.into(), fill(text, value));
    }
    env.extend(contract(route, facts).map(|(key, value)| (OsString::from(key), value)));
    env.extend(facts.pinning.iter().map(|(key, value)| (key.into(), value.into())));

    let cwd = match &route.cwd {
        None => route.dir.clone(),
        // A relative one starts where the configuration lies.
        Some(text) => route.dir.join(fill(text, value)),
    };
    Expanded { argv, env: env.into_iter().collect(), cwd }
}

fn value(placeholder: Placeholder, route: &Route, facts: &Facts) -> OsString {
    match placeholder {
        Placeholder::Item => facts.item().into(),
        Placeholder::Name => facts.name.as_os_str().to_owned(),
        Placeholder::Stem => facts.name.stem().to_owned(),
        Placeholder::Ext => facts.name.extension().to_owned(),
        Placeholder::Out => facts.out().into(),
        Placeholder::Id => facts.id.to_string().into(),
        Placeholder::Route => route.name.clone().into(),
        Placeholder::Attempt => facts.attempt.to_string().into(),
        Placeholder::Device => facts.on.device.clone().into(),
        Placeholder::DeviceId => facts.on.id.clone().into(),
        Placeholder::Gpu => facts.on.gpu.clone().into(),
    }
}

fn contract(route: &Route, facts: &Facts) -> [(&'static str, OsString); 10] {
    [
        ("GAMDOK_ITEM", facts.item().into()),
        ("GAMDOK_NAME", facts.name.as_os_str().to_owned()),
        ("GAMDOK_OUT", facts.out().into()),
        ("GAMDOK_ID", facts.id.to_string().into()),
        ("GAMDOK_ROUTE", route.name.clone().into()),
        ("GAMDOK_ATTEMPT", facts.attempt.to_string().into()),
        ("GAMDOK_DEVICE", facts.on.device.clone().into()),
        ("GAMDOK_DEVICE_ID", facts.on.id.clone().into()),
        ("GAMDOK_GPUS", facts.on.gpus.to_string().into()),
        ("GAMDOK_FD", super::CHANNEL_FD.to_string().into()),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

    use super::*;

    fn route(command: &[&str], env: &[(&str, &str)], cwd: Option<&str>) -> Route {
        let command = command.iter().map(|word| word.to_string()).collect();
        Route {
            env: env.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            cwd: cwd.map(str::to_owned),
            ..Route::new("transcribe", command, "/conf")
        }
    }

    fn facts() -> Facts {
        let gpu = |n: u32| (DeviceId(format!("GPU-{n}")), Some(n));
        Facts {
            id: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(),
            attempt: 2,
            name: ItemName::new(OsString::from_vec(b"-a b\n\xff.tar.gz".to_vec())),
            dir: "/root/claimed/a~01ARZ3NDEKTSV4RRFFQ69G5FAV".into(),
            on: DeviceWords::gpus(&[gpu(3), gpu(5)]),
            pinning: vec![("CUDA_VISIBLE_DEVICES".to_owned(), "GPU-3,GPU-5".to_owned())],
        }
    }

    fn pair(key: &str, value: &str) -> (OsString, OsString) {
        (key.into(), value.into())
    }

    fn get(expanded: &Expanded, key: &str) -> Option<Vec<u8>> {
        let found: Vec<_> = expanded.env.iter().filter(|(known, _)| known == key).collect();
        assert!(found.len() < 2, "{key} twice");
        found.first().map(|(_, value)| value.as_bytes().to_vec())
    }

    #[test]
    fn a_command_gets_absolute_paths_and_raw_names() {
        let dir = b"/root/claimed/a~01ARZ3NDEKTSV4RRFFQ69G5FAV".to_vec();
        let check = |word: &str, filled: &[u8]| {
            let expanded = expand(&route(&[word], &[], None), &facts(), []);
            assert_eq!(expanded.argv[0].as_bytes(), filled, "{word}");
        };
        check("{item}", &[&dir[..], b"/item/-a b\n\xff.tar.gz"].concat());
        check("--out={out}", &[b"--out=", &dir[..], b"/out"].concat());
        check("{name}|{stem}|{ext}", b"-a b\n\xff.tar.gz|-a b\n\xff.tar|gz");
        check("{id}.{attempt}@{route}", b"01ARZ3NDEKTSV4RRFFQ69G5FAV.2@transcribe");
        check("{device} {device_id} {gpu}", b"cuda:0,cuda:1 GPU-3,GPU-5 3,5");
    }

    #[test]
    fn pinning_beats_the_contract_beats_the_route_beats_the_director() {
        let env = [("A", "route {stem}"), ("GAMDOK_ID", "forged"), ("CUDA_VISIBLE_DEVICES", "0,1,2")];
        let inherited = [pair("A", "director"), pair("B", "director"), pair("CUDA_VISIBLE_DEVICES", "7")];
        let expanded = expand(&route(&["x"], &env, None), &facts(), inherited);
        assert_eq!(get(&expanded, "A").unwrap(), b"route -a b\n\xff.tar");
        assert_eq!(get(&expanded, "B").unwrap(), b"director");
        assert_eq!(get(&expanded, "CUDA_VISIBLE_DEVICES").unwrap(), b"GPU-3,GPU-5");
        assert_eq!(get(&expanded, "GAMDOK_ID").unwrap(), b"01ARZ3NDEKTSV4RRFFQ69G5FAV");
    }

    #[test]
    fn the_contract_environment_is_whole_and_the_directors_own_is_kept_from_it() {
        let inherited = [pair("NOTIFY_SOCKET", "/run/x"), pair("WATCHDOG_USEC", "5"), pair("LISTEN_FDS", "1")];
        let mut facts = facts();
        facts.on = DeviceWords::cpu();
        facts.pinning.clear();
        let expanded = expand(&route(&["x"], &[], None), &facts, inherited);
        let keys: Vec<&str> = expanded.env.iter().filter_map(|(key, _)| key.to_str()).collect();
        assert_eq!(
            keys.join(" "),
            "GAMDOK_ATTEMPT GAMDOK_DEVICE GAMDOK_DEVICE_ID GAMDOK_FD GAMDOK_GPUS GAMDOK_ID GAMDOK_ITEM GAMDOK_NAME \
             GAMDOK_OUT GAMDOK_ROUTE"
        );
        let check = |key: &str, value: &[u8]| assert_eq!(get(&expanded, key).unwrap(), value, "{key}");
        check("GAMDOK_DEVICE", b"cpu");
        check("GAMDOK_DEVICE_ID", b"cpu");
        check("GAMDOK_GPUS", b"0");
        check("GAMDOK_FD", b"3");
        check("GAMDOK_NAME", b"-a b\n\xff.tar.gz");
    }

    #[test]
    fn the_folder_is_the_configurations_unless_the_route_says_otherwise() {
        let check = |cwd: Option<&str>, expected: &str| {
            let expanded = expand(&route(&["x"], &[], cwd), &facts(), []);
            assert_eq!(expanded.cwd, PathBuf::from(expected));
        };
        check(None, "/conf");
        check(Some("/data"), "/data");
        check(Some("models/{route}"), "/conf/models/transcribe");
        check(Some("{out}"), "/root/claimed/a~01ARZ3NDEKTSV4RRFFQ69G5FAV/out");
    }
}
