//! `gamdok doctor`: what could go wrong on this host, each with the remedy. Changes nothing but what it removes again.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::gpus::probe;
use super::table::{Column, Table, wrap};
use super::trouble::{Trouble, exit};
use super::{Global, output};
use crate::api::client::Client;
use crate::config::Config;
use crate::devices::HostMode;
use crate::root::{Root, shown};
use crate::sys::lease;
use crate::units::Bytes;

#[derive(Debug, Args)]
pub(super) struct Doctor {}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    message: String,
    remedy: String,
}

impl Finding {
    fn ok(what: &'static str, message: impl Into<String>) -> Finding {
        Finding { what, state: State::Ok, message: message.into(), remedy: String::new() }
    }

    fn warn(what: &'static str, message: impl Into<String>, remedy: &str) -> Finding {
        Finding { what, state: State::Warn, message: message.into(), remedy: remedy.to_owned() }
    }

    fn fail(what: &'static str, message: impl Into<String>, remedy: &str) -> Finding {
        Finding { what, state: State::Fail, message: message.into(), remedy: remedy.to_owned() }
    }
}

impl Doctor {
    pub(super) fn run(self, global: &Global) -> Result<u8, Trouble> {
        let place = global.place()?;
        let mut findings = vec![user(), files(), watches(&place)];
        let (config, finding) = config(global, &place);
        findings.push(finding);
        findings.extend(root(&place));
        findings.extend(lock_folder());
        findings.push(devices(&config));
        findings.extend(unit(&place));
        if global.json {
            output::json(&findings)?;
        } else {
            output::print(&render(&findings, output::width()))?;
        }
        let failed = findings.iter().any(|finding| finding.state == State::Fail);
        Ok(if failed { exit::FAILED } else { exit::OK })
    }
}

fn user() -> Finding {
    let uid = rustix::process::geteuid();
    if uid.is_root() {
        let message = "this is root: every command it runs is root too";
        return Finding::warn("user", message, "run the service as a user of its own; it needs no privilege");
    }
    Finding::ok("user", format!("uid {}, no privilege needed", uid.as_raw()))
}

/// Each worker holds a handful of descriptors. The service raises its own limit to the hard one.
fn files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.maximum {
        Some(soft) if soft < 1024 => Finding::warn(
            "open files",
            format!("at most {soft} at a time"),
            "raise it: `ulimit -Hn 65536`, or LimitNOFILE=65536 in the systemd unit",
        ),
        Some(soft) => Finding::ok("open files", format!("at most {soft} at a time")),
        None => Finding::ok("open files", "no limit"),
    }
}

fn watches(root: &Path) -> Finding {
    use rustix::fs::inotify;
    const WHAT: &str = "watches";
    let limit = |name: &str| fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name)).ok();
    let limits = ["max_user_instances", "max_user_watches", "max_queued_events"]
        .map(|name| limit(name).map_or_else(|| "?".to_owned(), |text| text.trim().to_owned()));
    let [instances, watches, _] = &limits;
    let inotify = match inotify::init(inotify::CreateFlags::CLOEXEC) {
        Ok(inotify) => inotify,
        Err(error) => {
            let remedy = "raise it: `sysctl fs.inotify.max_user_instances=1024`; until then the inbox is polled";
            return Finding::warn(
                WHAT,
                format!("no inotify instance to be had ({error}); the limit is {instances}"),
                remedy,
            );
        }
    };
    let inbox = root.join("inbox");
    let place = if inbox.is_dir() { inbox.as_path() } else { Path::new("/") };
    match inotify::add_watch(&inotify, place, inotify::WatchFlags::CREATE) {
        Ok(_) => Finding::ok(WHAT, format!("inotify works; {instances} instances and {watches} watches a user")),
        Err(error) => {
            let remedy = "raise it: `sysctl fs.inotify.max_user_watches=524288`; until then the inbox is polled";
            Finding::warn(WHAT, format!("no watch to be had ({error}); the limit is {watches}"), remedy)
        }
    }
}

fn config(global: &Global, place: &Path) -> (Config, Finding) {
    match global.config() {
        Ok((config, warnings)) => {
            let finding = match (&config.file, warnings.first()) {
                (_, Some(first)) => Finding::warn("config", first.clone(), "`gamdok check` shows all warnings"),
                (Some(file), None) => Finding::ok("config", shown(file)),
                (None, None) => {
                    let message = "there is no file: without routes everything is held";
                    Finding::warn("config", message, "`gamdok init` writes one, or name it with `--config FILE`")
                }
            };
            (config, finding)
        }
        Err(trouble) => {
            let finding = Finding::fail("config", trouble.message(), "`gamdok check` shows the place");
            (Config::builtin(place, place), finding)
        }
    }
}

fn root(place: &Path) -> Vec<Finding> {
    if Client::connect(place).is_ok() {
        // It holds the root; a probe beside it would only disturb.
        let mut findings = vec![Finding::ok("root", format!("{}: a director is running there", shown(place)))];
        findings.extend(space(place));
        findings.push(lease_test(place));
        return findings;
    }
    let root = match Root::open(place) {
        Ok(root) => root,
        Err(wrong) => {
            return vec![Finding { remedy: wrong.help().to_owned(), ..Finding::fail("root", wrong.message(), "") }];
        }
    };
    let mut findings = Vec::new();
    if root.is_network() {
        let message = format!("{} lies on a network file system", shown(place));
        findings.push(Finding::warn("root", message, "a local disk is faster, and sees every drop at once"));
    }
    // The probe moves files about: only while nobody else does.
    let probed = root.lock().and_then(|_guard| root.probe().map(|_| ()));
    findings.push(match probed {
        Ok(()) => Finding::ok("root", format!("{}: items can move through it", shown(place))),
        Err(wrong) => Finding { remedy: wrong.help().to_owned(), ..Finding::fail("root", wrong.message(), "") },
    });
    findings.extend(space(place));
    findings.push(lease_test(place));
    findings
}

/// Below this a disk is nearly full.
const LOW: Bytes = Bytes(2 << 30);

fn space(place: &Path) -> Vec<Finding> {
    let stat = match rustix::fs::statvfs(place) {
        Ok(stat) => stat,
        Err(error) => return vec![Finding::fail("space", format!("can't be told: {error}"), "look at the mount")],
    };
    let free = Bytes(stat.f_bavail.saturating_mul(stat.f_frsize));
    let space = if free < LOW {
        Finding::warn("space", format!("{free} free"), "make room: a full disk pauses claiming until there is some")
    } else {
        Finding::ok("space", format!("{free} free"))
    };
    // Some file systems (btrfs, network ones) count no inodes.
    let inodes = (stat.f_files > 0).then(|| {
        let message = format!("{} of {} free", stat.f_favail, stat.f_files);
        if stat.f_favail < stat.f_files / 50 {
            Finding::warn("inodes", message, "remove small files: each job needs about ten inodes")
        } else {
            Finding::ok("inodes", message)
        }
    });
    [Some(space), inodes].into_iter().flatten().collect()
}

/// Whether open writers can be told on the root's file system.
fn lease_test(place: &Path) -> Finding {
    const WHAT: &str = "lease test";
    const REMEDY: &str = "a file is then ready when it hasn't changed for `settle`: choose that with care";
    let path = place.join(".gamdok").join(format!("doctor.{}.tmp", std::process::id()));
    let tested = fs::write(&path, b"").and_then(|()| {
        let file = fs::File::open(&path)?;
        lease::take(file).map(|taken| !matches!(taken, lease::Taken::NotAllowed))
    });
    let _ = fs::remove_file(&path);
    match tested {
        Ok(true) if rustix::process::geteuid().is_root() => Finding::ok(WHAT, "open writers are seen"),
        Ok(true) => Finding::ok(WHAT, "open writers are seen in this user's own files; others' files settle"),
        Ok(false) => Finding::warn(WHAT, "open writers can't be seen on this file system", REMEDY),
        Err(error) => Finding::warn(WHAT, format!("open writers can't be seen: {error}"), REMEDY),
    }
}

/// The folders where the directors of one host agree on who has which device.
fn lock_folder() -> Vec<Finding> {
    const WHAT: &str = "device locks";
    let folders: Vec<PathBuf> = match std::env::var_os("GAMDOK_LOCK_DIR") {
        Some(folder) => vec![folder.into()],
        None => ["/run/lock/gamdok", "/tmp/gamdok-lock"].map(PathBuf::from).to_vec(),
    };
    let usable = |folder: &&PathBuf| {
        // One that isn't there yet is made by the first director, if it may.
        let place = if folder.is_dir() { folder.as_path() } else { folder.parent().unwrap_or(folder) };
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        rustix::fs::access(place, access).is_ok()
    };
    let good: Vec<String> = folders.iter().filter(usable).map(|folder| shown(folder)).collect();
    if good.is_empty() {
        let all = folders.iter().map(|folder| shown(folder)).collect::<Vec<_>>().join(", ");
        let remedy = "make one of them with mode 1777, or set GAMDOK_LOCK_DIR to a folder that all directors share";
        return vec![Finding::fail(WHAT, format!("none of {all} can be written"), remedy)];
    }
    vec![Finding::ok(WHAT, good.join(", "))]
}

fn devices(config: &Config) -> Finding {
    const WHAT: &str = "devices";
    let probed = match probe(config) {
        Ok(probed) => probed,
        Err(trouble) => return Finding::fail(WHAT, trouble.message(), "see whether `nvidia-smi` answers"),
    };
    let gpus = probed.devices.iter().filter(|device| device.kind.is_gpu()).count();
    let sick: Vec<String> = probed
        .devices
        .iter()
        .filter(|device| matches!(device.verdict.as_str(), "unhealthy" | "unknown"))
        .map(|device| format!("{}: {}", device.id, device.reason))
        .collect();
    match (probed.mode, probed.trouble) {
        (_, Some(trouble)) => {
            Finding::fail(WHAT, trouble, "install the driver that fits the GPU (libnvidia-ml.so.1 comes with it)")
        }
        (HostMode::Gpu, None) if !sick.is_empty() => {
            Finding::warn(WHAT, sick.join("; "), "`gamdok gpus` tells more; work goes to the others")
        }
        (HostMode::Gpu, None) => Finding::ok(WHAT, format!("NVML answers for {}", output::count(gpus, "device"))),
        (HostMode::Cpu, None) => Finding::ok(WHAT, "no GPU here: CPU slots"),
        (HostMode::Sim, None) => {
            Finding::warn(WHAT, "the GPUs are simulated", "set `use = \"auto\"` in [devices] to use real ones")
        }
    }
}

/// Lines of a systemd unit that break something; nothing when there is none.
fn unit(root: &Path) -> Vec<Finding> {
    let places = ["/etc/systemd/system/gamdok.service", "/usr/lib/systemd/system/gamdok.service"];
    let found = places.iter().find_map(|place| Some((place, fs::read_to_string(place).ok()?)));
    found.map(|(_, text)| judge_unit(&text, root)).unwrap_or_default()
}

fn judge_unit(text: &str, root: &Path) -> Vec<Finding> {
    const WHAT: &str = "systemd unit";
    let value = |key: &str| {
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        lines
            .filter_map(|line| line.split_once('='))
            .filter(|(name, _)| name.trim() == key)
            .map(|(_, v)| v.trim())
            .next_back()
    };
    let on = |key: &str| value(key).is_some_and(|it| matches!(it, "yes" | "true" | "on" | "1"));
    let mut findings = Vec::new();
    let mut warn = |message: &str, remedy: &str| findings.push(Finding::warn(WHAT, message, remedy));
    if value("KillMode") != Some("mixed") {
        warn("workers are signalled with the director", "set KillMode=mixed, so that they can end their items");
    }
    if !matches!(value("TimeoutStopSec"), Some("infinity" | "0")) {
        warn("running items are cut off at a stop", "set TimeoutStopSec=infinity, or as long as your longest item");
    }
    if on("PrivateTmp") {
        warn("PrivateTmp hides the device locks in /tmp", "set PrivateTmp=no");
    }
    if on("PrivateDevices") {
        warn("PrivateDevices hides the GPUs", "set PrivateDevices=no");
    }
    let strict = matches!(value("ProtectSystem"), Some("strict"));
    let writable = value("ReadWritePaths").is_some_and(|it| it.split_whitespace().any(|path| root.starts_with(path)));
    if strict && !writable {
        warn("the unit can't write to this root", "add it to ReadWritePaths");
    }
    if findings.is_empty() {
        findings.push(Finding::ok(WHAT, "gamdok.service is sound"));
    }
    findings
}

fn render(findings: &[Finding], width: usize) -> String {
    let mut table = Table::new(&[Column::fixed(""), Column::fixed("WHAT"), Column::text("FOUND", 20)]);
    for finding in findings {
        let word = match finding.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "FAIL",
        };
        table.row([word.to_owned(), finding.what.to_owned(), finding.message.clone()]);
    }
    let mut text = table.render(width);
    for finding in findings.iter().filter(|finding| finding.state != State::Ok) {
        text.push('\n');
        text += &wrap(&format!("{}: {}", finding.what, finding.message), "", width);
        text += &wrap(&format!("help: {}", finding.remedy), "  ", width);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_judged_by_its_lines() {
        let check = |text: &str, expected: &[&str]| {
            let findings = judge_unit(text, Path::new("/data/root"));
            let said: Vec<&str> = findings.iter().map(|finding| finding.message.as_str()).collect();
            assert_eq!(said, expected, "{text}");
        };
        let sound = "[Service]\nKillMode=mixed\nTimeoutStopSec=infinity\n";
        check(sound, &["gamdok.service is sound"]);
        check("KillMode=mixed\n", &["running items are cut off at a stop"]);
        check(&format!("{sound}PrivateTmp=yes\n"), &["PrivateTmp hides the device locks in /tmp"]);
        check(&format!("{sound}#PrivateTmp=yes\nPrivateDevices=true"), &["PrivateDevices hides the GPUs"]);
        check(&format!("{sound}ProtectSystem=strict\n"), &["the unit can't write to this root"]);
        check(&format!("{sound}ProtectSystem=strict\nReadWritePaths=/data"), &["gamdok.service is sound"]);
    }

    #[test]
    fn findings_come_with_their_remedies() {
        let findings = [
            Finding::ok("user", "uid 1000"),
            Finding::fail("root", "`/x` isn't a root", "`gamdok init /x` makes it one"),
        ];
        let expected = "      WHAT  FOUND\nok    user  uid 1000\nFAIL  root  `/x` isn't a root\n\
                        \nroot: `/x` isn't a root\n  help: `gamdok init /x` makes it one\n";
        assert_eq!(render(&findings, 80), expected);
    }
}
