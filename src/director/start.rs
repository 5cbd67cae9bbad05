//! Building a director: the root, the threads, recovery; and taking it down again.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tracing::{info, warn};

use super::{Director, News, Summary};
use crate::api;
use crate::api::view::{DirectorState, Status, View};
use crate::config::{self, Config};
use crate::devices::locks::Locks;
use crate::devices::pin::Cores;
use crate::devices::prober::{self, Prober};
use crate::devices::{HostMode, Snapshot, resolved};
use crate::health::{Check, What};
use crate::inbox;
use crate::ledger;
use crate::metrics::{self, Metrics};
use crate::notifier::Notifier;
use crate::root::{Root, RootError};
use crate::spool;
use crate::state::State;
use crate::sys::files;
use crate::units::{Clock, Moment};
use crate::worker;

/// What `gamdok run` was asked to do.
#[derive(Debug)]
pub struct Options {
    pub config: Config,
    pub warnings: Vec<config::Warning>,
    /// Where it was read from, to follow its changes; none when a program made it.
    pub source: Option<config::Source>,
    /// End when all that lay in the inbox at the start has ended.
    pub once: bool,
    /// Make the root if it isn't one.
    pub init: bool,
    /// Where signals arrive: one message each.
    pub stops: Receiver<()>,
    pub guest: Guest,
}

/// What a program that has a director in itself gives it; nothing when it is the service.
#[derive(Default)]
pub struct Guest {
    /// What routes without a command run, by their names.
    pub(crate) closures: HashMap<String, worker::Work>,
    pub(crate) news: News,
    /// Where the program asks.
    pub(crate) asks: Option<(Sender<api::Request>, Receiver<api::Request>)>,
    /// Told once it is ready.
    pub(crate) ready: Option<Sender<()>>,
}

impl Guest {
    pub(super) fn is_one(&self) -> bool {
        self.asks.is_some()
    }
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let closures: Vec<&String> = self.closures.keys().collect();
        f.debug_struct("Guest").field("closures", &closures).finish_non_exhaustive()
    }
}

/// Makes the intake folders of the routes; what can't be made is told by the scanner as long as it is missing.
pub(super) fn make_folders(root: &Root, config: &Config) {
    let (made, failed) = root.make_folders(config.routes.iter().map(|route| route.folder.as_str()));
    made.iter().for_each(|folder| info!(folder, "made a missing intake folder"));
    failed.iter().for_each(|error| warn!("{error}"));
}

/// Why a director couldn't run at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Root(#[from] RootError),
    /// The configuration names something that isn't as it should be.
    #[error("{0}")]
    Config(String),
    /// The limit on open files leaves too few to work with.
    #[error("too few files can be opened: a director needs {FILES} at its start\nhelp: {0}")]
    Files(String),
    #[error("cannot {what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
}

impl RunError {
    /// The contract's exit codes: 1 it failed, 2 configuration, 4 another director, 5 the root is unavailable.
    pub fn exit_code(&self) -> u8 {
        match self {
            RunError::Root(error) => error.exit_code(),
            RunError::Config(_) => 2,
            RunError::Files(_) | RunError::Io { .. } => 1,
        }
    }
}

/// An idle director has some 25 open, the intake tries for 8, and a worker takes 7.
const FILES: usize = 48;
/// How many worker events may wait: a progress message is at most ten a second and worker, a report is one a slot.
const REPORTS: usize = 4096;
/// How long a start waits for the devices before it goes on without them.
const FIRST_SNAPSHOT: std::time::Duration = std::time::Duration::from_secs(2);
/// How many requests may wait for the director.
pub(crate) const REQUESTS: usize = 256;

/// Runs the service until it is told to stop, or with `once` until its work is done.
pub fn run(options: Options) -> Result<Summary, RunError> {
    let Options { config, warnings, source, once, init, stops, guest } = options;
    // Told once and plainly, not by whatever is the first to find none.
    files::are_free(FILES).map_err(RunError::Files)?;
    for warning in &warnings {
        warn!(warning, "configuration");
    }
    if init {
        Root::init(&config.root)?;
    }
    let root = Arc::new(Root::open(&config.root)?);
    let _guard = root.lock()?;
    root.ensure_dirs()?;
    make_folders(&root, &config);
    root.probe()?;

    let clock = Clock::start();
    let rules = resolved(&config.devices);
    // The devices are asked first: a driver takes its time, and recovery can go on meanwhile.
    let prober = prober::start(Arc::new(rules.clone()), clock);
    let recovered = spool::recover(&root, clock)?;
    let io = |what| move |source| RunError::Io { what, source };
    let ledger = ledger::start(ledger::Setup::of_root(root.path())).map_err(io("start the ledger"))?;
    let spool = spool::start(root.clone(), clock, recovered.backlog).map_err(|error| {
        RootError::unavailable(format!("cannot work in the root: {error}"), "look at its permissions")
    })?;
    // A driver that wakes its GPUs takes seconds; CPU slots needn't wait for it.
    let first = prober
        .snapshots
        .recv_timeout(FIRST_SNAPSHOT)
        .unwrap_or_else(|_| Prober::unheard(clock.now(), "the driver hasn't answered yet"));
    let scanner = inbox::start(inbox::Setup {
        inbox: root.inbox(),
        sentinel: root.state().join("root.json"),
        rules: Arc::new(config.inbox.clone()),
        routes: config.routes.clone(),
        once,
        clock,
    })
    .map_err(io("start the scanner of the inbox"))?;
    guest.news.tell_of_submissions(scanner.answers.clone());
    let configured = match source {
        Some(source) => config::watch::start(source, &config).map_err(io("watch the configuration"))?,
        None => config::watch::Watcher::of_none(),
    };
    let notifier = Notifier::new(root.path(), &config.notify);
    let metrics = Arc::new(Metrics::new(metrics::Sources {
        scans: scanner.scans.clone(),
        spool: spool.pace.clone(),
        ledger: ledger.entries.lag.clone(),
        notifier: notifier.sent(),
        events_dropped: guest.news.dropped(),
    }));
    let board = api::Board::new(first_view(&root, first.mode));
    board.configure(&config);
    let (ask, requests) = guest.asks.clone().unwrap_or_else(|| bounded(REQUESTS));
    let token = config.api.token_file.as_deref().map(token).transpose()?;
    let directories = api::directories::Directories::new(root.path(), Some(&config));
    let server = api::serve(api::ServerSetup {
        directories: directories.clone(),
        board: board.clone(),
        requests: ask,
        ended: Arc::new(api::Indexed::new(directories.clone(), ledger.entries.clone())),
        metrics: metrics.clone(),
        listen: config.api.listen,
        token,
        max_upload: config.api.max_upload.0,
        patience: api::Patience::default(),
    })
    .map_err(io("open the interface (the socket in the root, and `listen` in [api] where that is set)"))?;
    let (events, reports) = bounded(REPORTS);
    let (inspections, inspected) = unbounded();
    let watchdog = sd_notify::watchdog_enabled().filter(|_| !guest.is_one()).map(|period| period / 2);

    let mut director = Director {
        clock,
        root: root.clone(),
        once,
        state: State::new(rules),
        snapshot: no_devices(),
        counts: inbox::Counts::default(),
        health: all_well(),
        running: HashMap::new(),
        residents: HashMap::new(),
        forming: Vec::new(),
        locks: Locks::open(),
        held_locks: HashMap::new(),
        slot_locks: Default::default(),
        cores: Cores::default(),
        ids: ulid::Generator::new(),
        attended: (Vec::new(), false),
        taken: Vec::new(),
        unheard: VecDeque::new(),
        heard: 0,
        filed: 0,
        cancelling: HashSet::new(),
        retries: Vec::new(),
        claims_resume: None,
        claims_paused: None,
        signals: 0,
        summary: Summary::default(),
        counting: Default::default(),
        estimates: Default::default(),
        sampler: Default::default(),
        gaps: Default::default(),
        metrics,
        dirty: true,
        published_at: Moment::default(),
        number: 0,
        watchdog,
        watchdog_at: Moment::default(),
        heard_at: clock.now(),
        met_others_at: Moment::default(),
        prober_hangs: false,
        unjudged: Vec::new(),
        cordoning: VecDeque::new(),
        releasing: Vec::new(),
        guest,
        events,
        inspections,
        board,
        directories,
        stops,
        reports,
        inspected,
        requests,
        configured,
        scanner,
        prober,
        spool,
        ledger,
        notifier,
        config,
    };
    director.state.now = clock.now();
    director.state.set_routes(director.config.routes.clone());
    for device in spool::cordons::read(&root.state())? {
        warn!(%device, "still cordoned by hand");
        director.cordon_by_hand(&device);
    }
    director.on_snapshot(first);
    info!(
        root = %crate::item::escape(root.path().as_os_str().as_encoded_bytes()),
        mode = ?director.snapshot.mode,
        routes = director.config.routes.len(),
        recovered = recovered.jobs.len(),
        once,
        "running"
    );
    for job in recovered.jobs {
        director.adopt(job);
    }
    director.summary.left = recovered.left;
    director.keep_history();
    director.notify_as_configured();
    director.publish();
    director.tell_manager(sd_notify::NotifyState::Ready);
    if let Some(ready) = director.guest.ready.take() {
        let _ = ready.send(());
    }

    director.run();
    Ok(director.end(server))
}

impl Director {
    /// Lets everything go in order: no new requests, what is written is written whole, then the lock.
    fn end(mut self, server: api::Server) -> Summary {
        self.state.now = self.clock.now();
        self.publish();
        self.spool.stop();
        // What it answered last: endings that recovery found, above all.
        while let Ok(answer) = self.spool.answers.try_recv() {
            self.on_spool(answer);
        }
        drop(server);
        self.tell_of_rest();
        self.hand_over_samples();
        self.ledger.stop();
        self.notifier.stop();
        self.summary.held = self.counts.held_total;
        if self.once && self.summary.held > 0 {
            let why = self.counts.held.first().map(|it| crate::item::shown(&it.reason));
            warn!(held = self.summary.held, why, "held items stay in the inbox: `gamdok list --state held` tells why");
        }
        info!(done = self.summary.done, failed = self.summary.failed, cancelled = self.summary.cancelled, "ended");
        self.summary
    }
}

fn token(file: &std::path::Path) -> Result<String, RunError> {
    api::server::read_token(file).map_err(|error| {
        let file = crate::root::shown(file);
        RunError::Config(format!(
            "cannot read `token_file` in [api], `{file}`: {error}\nhelp: write a secret into it, one line that this user can read"
        ))
    })
}

fn no_devices() -> Snapshot {
    Snapshot { taken_at: Moment::default(), number: 0, mode: HostMode::Cpu, devices: Vec::new(), trouble: None }
}

fn all_well() -> BTreeMap<What, Check> {
    let parts = [
        What::Inbox,
        What::Watch,
        What::Spool,
        What::Space,
        What::Devices,
        What::Ledger,
        What::Config,
        What::LeaseTest,
    ];
    parts.into_iter().map(|what| (what, Check::ok(what))).collect()
}

fn first_view(root: &Root, mode: HostMode) -> View {
    let shown = crate::item::escape(root.path().as_os_str().as_encoded_bytes());
    View {
        number: 0,
        status: Status {
            pid: Some(std::process::id()),
            uptime_s: Some(0.0),
            ..Status::empty(shown, mode, DirectorState::Running)
        },
        live: Vec::new(),
        tallies: Default::default(),
    }
}
