//! Reads the configuration again when it changes. Events are hints: what counts is whether the checked configuration
//! differs from the one before, so a comment or a touched file is no news. Invariants: an error changes nothing and is
//! told once; a file that vanishes or is emptied is an error, never the defaults.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use notify::event::EventKindMask;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

use super::error::shown;
use super::{Config, ConfigError, Source, Warning};

/// Follows one configuration; dropping it ends its thread.
#[derive(Debug)]
pub struct Watcher {
    /// Each configuration that differs from the one before or follows an error, and each error that is news.
    pub changes: Receiver<Result<(Config, Vec<Warning>), ConfigError>>,
    /// Nothing is ever sent: its end is the message.
    _stop: Sender<()>,
}

impl Watcher {
    /// Of a configuration that lies in no file: no news ever come.
    pub(crate) fn of_none() -> Watcher {
        Watcher { changes: never(), _stop: bounded(0).0 }
    }
}

/// Begins to follow `source`, from which `current` was read. What changed in between is told first.
pub fn start(source: Source, current: &Config) -> std::io::Result<Watcher> {
    start_at(source, current, Pace::default())
}

/// How long what may take.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Editors write in several steps: quiet for this long means done …
    quiet: Duration,
    /// … but a folder that is never quiet delays no one longer than this.
    longest: Duration,
    /// Between looks at the file's stamp while events come: others' edits on network file systems send none.
    check: Duration,
    /// The same where there are no events at all.
    poll: Duration,
    events: bool,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            quiet: Duration::from_millis(200),
            longest: Duration::from_secs(2),
            check: Duration::from_secs(60),
            poll: Duration::from_secs(10),
            events: true,
        }
    }
}

fn start_at(source: Source, current: &Config, pace: Pace) -> std::io::Result<Watcher> {
    // One place: a director that is busy gets the latest news a little later, and this thread waits meanwhile.
    let (news, changes) = bounded(1);
    let (stop, stopped) = bounded(0);
    let (hint, hints) = bounded(1);
    let current = current.clone();
    let follower = Follower {
        source,
        current,
        told: None,
        stamp: None,
        watch: None,
        blind: false,
        hint,
        hints,
        stopped,
        news,
        pace,
    };
    std::thread::Builder::new().name("config".to_owned()).spawn(|| follower.run())?;
    Ok(Watcher { changes, _stop: stop })
}

/// The thread's side.
struct Follower {
    source: Source,
    current: Config,
    /// The error told last, until a valid file follows.
    told: Option<String>,
    stamp: Option<Stamp>,
    watch: Option<Watch>,
    /// The watch failed, and that was told.
    blind: bool,
    hint: Sender<()>,
    hints: Receiver<()>,
    stopped: Receiver<()>,
    news: Sender<Result<(Config, Vec<Warning>), ConfigError>>,
    pace: Pace,
}

/// A file that is written again and again is taken as it was read last; the end of a write is heard of.
const READS: usize = 5;

/// Whoever held the other end is gone.
struct Closed;

impl Follower {
    fn run(mut self) {
        while self.step().is_ok() {}
    }

    /// One round: watch, look, wait for a reason to look again.
    fn step(&mut self) -> Result<(), Closed> {
        // Watch first, then look: what changes in between is seen by one of the two.
        self.keep_watch();
        let stamp = Stamp::of(&self.source.file);
        self.look()?;
        self.stamp = stamp;
        // Swapped while the watch was set up: it lies where nothing will happen.
        if self.watch.as_ref().is_some_and(|watch| watch.folders != folders(&self.source.file)) {
            return Ok(());
        }
        self.wait()
    }

    fn look(&mut self) -> Result<(), Closed> {
        let Some(loaded) = self.read() else { return Ok(()) };
        match &loaded {
            Ok((config, _)) if self.told.is_none() && *config == self.current => return Ok(()),
            Ok((config, _)) => {
                self.told = None;
                self.current = config.clone();
            }
            Err(error) => {
                let summary = error.summary();
                if self.told.as_ref() == Some(&summary) {
                    return Ok(());
                }
                self.told = Some(summary);
            }
        }
        // A director that left no longer reads; one that is busy will.
        select! {
            send(self.news, loaded) -> sent => sent.map_err(|_| Closed),
            recv(self.stopped) -> _ => Err(Closed),
        }
    }

    /// What the file says now; nothing when it is none that can be read twice, such as a pipe. All is decided by what was
    /// opened and read: asked of the name beforehand, a file that is swapped or emptied meanwhile would be taken for
    /// another.
    fn read(&self) -> Option<Result<(Config, Vec<Warning>), ConfigError>> {
        let mut last = None;
        for _ in 0..READS {
            // A pipe that nobody writes to would keep the thread in a plain `open`.
            let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.source.file);
            let kind = opened.as_ref().ok().and_then(|open| open.metadata().ok());
            if kind.as_ref().is_some_and(|meta| !meta.is_file() && !meta.is_dir()) {
                return None;
            }
            let may_be_absent = self.source.may_be_absent && self.current.file.is_none();
            let source = Source { may_be_absent, ..self.source.clone() };
            last = Some(source.load_from(opened, |text| self.accept(text)));
            // A text is read in pieces: of one that was emptied or written meanwhile, the pieces don't belong together.
            if kind.map(Stamp::new) == Stamp::of(&self.source.file) {
                break;
            }
        }
        last
    }

    /// An empty text is valid as such, and yet more likely a full disk's doing or a save half done than a wish for no
    /// routes.
    fn accept(&self, text: &str) -> Result<(), ConfigError> {
        if !text.is_empty() || self.current.routes.is_empty() || self.source.command.is_some() {
            return Ok(());
        }
        let message = format!("the configuration `{}` is empty now", shown(&self.source.file));
        Err(ConfigError::plain(message, "a full disk or an unfinished save may have emptied it"))
    }

    /// Returns when the file may have changed.
    fn wait(&mut self) -> Result<(), Closed> {
        loop {
            let tick = if self.watch.is_some() { self.pace.check } else { self.pace.poll };
            select! {
                recv(self.stopped) -> _ => return Err(Closed),
                recv(self.hints) -> _ => return self.settle(),
                default(tick) => {
                    self.keep_watch();
                    if Stamp::of(&self.source.file) != self.stamp {
                        return self.settle();
                    }
                }
            }
        }
    }

    /// Lets a change come to its end.
    fn settle(&self) -> Result<(), Closed> {
        let latest = Instant::now() + self.pace.longest;
        while Instant::now() < latest {
            select! {
                recv(self.stopped) -> _ => return Err(Closed),
                recv(self.hints) -> _ => {}
                default(self.pace.quiet) => return Ok(()),
            }
        }
        Ok(())
    }

    /// Watches the folders that the file lies in now; a folder that was replaced is watched anew.
    fn keep_watch(&mut self) {
        let folders = if self.pace.events { folders(&self.source.file) } else { return };
        if self.watch.as_ref().is_some_and(|watch| watch.folders == folders) {
            return;
        }
        self.watch = None;
        match Watch::on(folders, self.source.file.file_name().unwrap_or(OsStr::new("")), self.hint.clone()) {
            Ok(watch) => (self.watch, self.blind) = (Some(watch), false),
            Err(_) if self.blind => {}
            Err(error) => {
                self.blind = true;
                let every = humantime::format_duration(self.pace.poll);
                tracing::warn!(%error, "cannot watch the configuration for changes; looking every {every} instead");
            }
        }
    }
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq)]
struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Stamp {
    fn of(file: &Path) -> Option<Stamp> {
        std::fs::metadata(file).ok().map(Stamp::new)
    }

    fn new(meta: Metadata) -> Stamp {
        Stamp {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// A folder and which one it was: its device and inode.
type Folder = (PathBuf, Option<(u64, u64)>);

/// The folder of the file's name and, behind symbolic links, that of its content. Editors replace files by rename,
/// which only the folder sees; mounted configuration maps swap a link beside the file.
fn folders(file: &Path) -> Vec<Folder> {
    let identity = |meta: Metadata| (meta.dev(), meta.ino());
    let mut folders: Vec<Folder> = Vec::new();
    for path in [std::path::absolute(file).ok(), file.canonicalize().ok()].into_iter().flatten() {
        let Some(folder) = path.parent() else { continue };
        let found = std::fs::metadata(folder).ok().map(identity);
        if !folders.iter().any(|(_, known)| *known == found) {
            folders.push((folder.to_owned(), found));
        }
    }
    folders
}

struct Watch {
    folders: Vec<Folder>,
    /// Ends with this.
    _watcher: RecommendedWatcher,
}

impl Watch {
    fn on(folders: Vec<Folder>, name: &OsStr, hint: Sender<()>) -> notify::Result<Watch> {
        // Behind a link any name may be the one that was swapped.
        let name: Option<OsString> = (folders.len() == 1).then(|| name.to_owned());
        let roots: Vec<PathBuf> = folders.iter().map(|(folder, _)| folder.clone()).collect();
        let matters = move |path: &PathBuf| {
            name.as_ref().is_none_or(|name| path.file_name() == Some(name)) || roots.contains(path)
        };
        // Runs on notify's thread: it only leaves a hint, and a hint that is already there is enough.
        let handler = move |event: notify::Result<notify::Event>| {
            let about_others = |event: &notify::Event| {
                !event.need_rescan() && !event.paths.is_empty() && !event.paths.iter().any(&matters)
            };
            if !event.is_ok_and(|event| about_others(&event)) {
                let _ = hint.try_send(());
            }
        };
        // Without reads and opens: our own look must not be a reason to look again.
        let mask =
            EventKindMask::CREATE | EventKindMask::REMOVE | EventKindMask::MODIFY_NAME | EventKindMask::ACCESS_CLOSE;
        let mut watcher = RecommendedWatcher::new(handler, notify::Config::default().with_event_kinds(mask))?;
        for (folder, _) in &folders {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        Ok(Watch { folders, _watcher: watcher })
    }
}

impl Config {
    /// What differs in `new` and takes a restart to apply.
    pub fn needs_restart(&self, new: &Config) -> Vec<&'static str> {
        let changed = [
            ("root", self.root != new.root),
            ("devices.use", self.devices.backend != new.devices.backend),
            ("api", self.api != new.api),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;
    use crate::config::Overrides;

    const FIRST: &str = "[devices]\nslots = 1\n";
    const SECOND: &str = "[devices]\nslots = 2\n";
    const THIRD: &str = "[devices]\nslots = 3\n";
    const BROKEN: &str = "[devices]\nslots = 'two'\n";

    /// A followed file, and what it tells: the number of slots, or the error's label.
    struct Followed {
        folder: TempDir,
        file: PathBuf,
        watcher: Watcher,
    }

    fn source(file: &Path, may_be_absent: bool) -> Source {
        Source { file: file.to_owned(), may_be_absent, overrides: Overrides::default(), command: None }
    }

    fn follow(prepare: impl FnOnce(&Path) -> PathBuf, events: bool) -> Followed {
        let folder = TempDir::new().expect("a folder");
        let file = prepare(folder.path());
        let (current, _) = source(&file, true).load().expect("the first text");
        let far = Duration::from_secs(3600);
        let soon = Duration::from_millis(5);
        // While events come nothing else may tell. Without them (here by choice, and where the host's inotify instances
        // are used up by others) nothing but the clock does.
        let check = if events { far } else { soon };
        let pace = Pace { quiet: soon, check, poll: soon, events, ..Pace::default() };
        let watcher = start_at(source(&file, true), &current, pace).expect("a thread");
        Followed { folder, file, watcher }
    }

    fn plain(folder: &Path) -> PathBuf {
        let file = folder.join("gamdok.toml");
        fs::write(&file, FIRST).expect("the first text");
        file
    }

    impl Followed {
        fn replace(&self, text: &str) {
            let new = self.file.with_extension("new");
            fs::write(&new, text).expect("a text");
            fs::rename(&new, &self.file).expect("a rename");
        }

        /// What is told until it is `expected`; a change in steps may be seen at each of them.
        fn tells(&self, expected: &str) {
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut told = Vec::new();
            while told.last().is_none_or(|last| last != expected) {
                match self.watcher.changes.recv_deadline(deadline) {
                    Ok(Ok((config, _))) => told.push(config.devices.slots.to_string()),
                    Ok(Err(error)) => told.push(error.summary().rsplit(": ").next().unwrap_or_default().to_owned()),
                    Err(_) => panic!("wanted {expected}, got {told:?}"),
                }
            }
        }
    }

    #[test]
    fn a_file_replaced_or_written_in_place_is_told() {
        for events in [true, false] {
            let followed = follow(plain, events);
            followed.replace(SECOND);
            followed.tells("2");
            fs::write(&followed.file, THIRD).expect("a text");
            followed.tells("3");
            followed.replace(FIRST);
            followed.tells("1");
        }
    }

    #[test]
    fn a_mistake_is_told_and_so_is_its_end() {
        let followed = follow(plain, true);
        followed.replace(BROKEN);
        let told = followed.watcher.changes.recv_timeout(Duration::from_secs(60)).expect("news");
        let summary = told.expect_err("a mistake").summary();
        assert!(summary.contains("gamdok.toml:2:9: `slots` in [devices] must be"), "{summary}");
        // Back to what was in force: no change, and yet news.
        followed.replace(FIRST);
        followed.tells("1");
    }

    #[test]
    fn a_comment_is_no_news() {
        let followed = follow(plain, true);
        followed.replace(&format!("# a comment\n{FIRST}"));
        followed.replace(&format!("{FIRST}\n# another\n"));
        followed.replace(SECOND);
        let told = followed.watcher.changes.recv_timeout(Duration::from_secs(60)).expect("news");
        assert_eq!(told.expect("valid").0.devices.slots, 2);
    }

    #[test]
    fn a_swapped_link_is_told() {
        let mapped = |folder: &Path| {
            fs::create_dir(folder.join("v1")).expect("a folder");
            fs::create_dir(folder.join("v2")).expect("a folder");
            fs::write(folder.join("v1/gamdok.toml"), FIRST).expect("a text");
            fs::write(folder.join("v2/gamdok.toml"), SECOND).expect("a text");
            symlink("v1", folder.join("data")).expect("a link");
            symlink("data/gamdok.toml", folder.join("gamdok.toml")).expect("a link");
            folder.join("gamdok.toml")
        };
        let followed = follow(mapped, true);
        let folder = followed.folder.path();
        symlink("v2", folder.join("data.new")).expect("a link");
        fs::rename(folder.join("data.new"), folder.join("data")).expect("a swap");
        followed.tells("2");
        // The watch has moved on to where the content lies now.
        fs::write(folder.join("v2/gamdok.toml"), THIRD).expect("a text");
        followed.tells("3");
    }

    #[test]
    fn a_vanished_file_is_an_error_and_a_new_one_is_read() {
        let followed = follow(plain, true);
        fs::remove_file(&followed.file).expect("removed");
        let told = followed.watcher.changes.recv_timeout(Duration::from_secs(60)).expect("news");
        assert!(told.is_err(), "never the defaults");
        followed.replace(SECOND);
        followed.tells("2");

        let absent = follow(|folder| folder.join("gamdok.toml"), true);
        absent.replace(SECOND);
        absent.tells("2");
    }

    #[test]
    fn what_changed_before_the_watch_is_told() {
        let folder = TempDir::new().expect("a folder");
        let file = plain(folder.path());
        let (current, _) = source(&file, false).load().expect("the first text");
        fs::write(&file, SECOND).expect("a text");
        let watcher = start(source(&file, false), &current).expect("a thread");
        let followed = Followed { folder, file, watcher };
        followed.tells("2");
    }

    #[test]
    fn an_emptied_file_is_an_error_and_a_pipe_is_never_read_again() {
        let routed = format!("{FIRST}[[route]]\nname = 'a'\ncommand = ['true']\n");
        let with_route = |folder: &Path| {
            fs::write(folder.join("gamdok.toml"), &routed).expect("a text");
            folder.join("gamdok.toml")
        };
        let followed = follow(with_route, true);
        fs::write(&followed.file, "").expect("emptied");
        let told = followed.watcher.changes.recv_timeout(Duration::from_secs(60)).expect("news");
        assert!(told.expect_err("a mistake").message.ends_with("is empty now"));
        followed.replace(SECOND);
        followed.tells("2");

        // Reading a pipe that no one writes to would hang the thread; what replaces it is read.
        let followed = follow(plain, true);
        let pipe = followed.folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo runs");
        assert!(made.success());
        fs::rename(&pipe, &followed.file).expect("a rename");
        followed.replace(SECOND);
        followed.tells("2");
    }

    #[test]
    fn the_thread_ends_with_the_watcher() {
        let Followed { watcher, folder, .. } = follow(plain, true);
        let Watcher { changes, _stop } = watcher;
        drop(_stop);
        let ended = changes.recv_timeout(Duration::from_secs(60));
        assert_eq!(ended.err(), Some(crossbeam_channel::RecvTimeoutError::Disconnected));
        drop(folder);
    }

    #[test]
    fn some_changes_need_a_restart() {
        let check = |text: &str, expected: &[&str]| {
            let parse = |text| Config::parse(text, None, Path::new("/x"), &Overrides::default()).expect("valid").0;
            assert_eq!(parse("").needs_restart(&parse(text)), expected, "{text}");
        };
        check("", &[]);
        check("root = 'y'", &["root"]);
        check("[devices]\nuse = 'cpu'\nslots = 2", &["devices.use"]);
        check("root = 'y'\n[api]\nlisten = '127.0.0.1:1'", &["root", "api"]);
        check("[history]\nkeep_done = '7d'\n[[route]]\nname = 'a'\ncommand = ['true']", &[]);
    }
}
