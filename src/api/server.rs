//! The server: one thread, one runtime, the root's Unix socket and, when configured, TCP. It wakes up for requests, and
//! now and then to see that its socket is still there.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::middleware;
use axum::response::Response;
use crossbeam_channel::Sender;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::directories::Directories;
use super::feed::Feed;
use super::guard::Guard;
use super::patient::Patient;
use super::routes::{self, Shared};
use super::tally::Tally;
use super::{Board, Ended, Request, SOCKET, incoming, socket};
use crate::metrics::{Clients, Cut, Metrics};

/// More clients than this wait until one leaves.
const CONNECTIONS: usize = 128;

/// What is read ahead of a client, and written ahead of one: headers larger than this are refused.
const BUFFER: usize = 64 << 10;

/// Uploads at a time. Each keeps a thread that may block, of which there are a few more.
const UPLOADS: usize = 4;
const BLOCKING: usize = 4 + UPLOADS;

/// How long answers under way may take once the server ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// After a failed accept (no descriptors left), so that it doesn't spin.
const BREATH: Duration = Duration::from_millis(200);

/// How often the socket is looked at: one that was removed is made again, or nobody could reach the director any more.
const SOCKET_LOOK: Duration = Duration::from_secs(10);

/// How long clients are waited for, before they are cut.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Headers must be there in this time, on a new connection and on one kept open.
    pub headers: Duration,
    /// A body, unless it is an item.
    pub body: Duration,
    /// Between two parts of an item.
    pub silence: Duration,
    /// Some of an answer must be read in this time.
    pub reading: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        let seconds = Duration::from_secs;
        Patience { headers: seconds(30), body: seconds(10), silence: seconds(30), reading: seconds(20) }
    }
}

/// Everything the server needs.
pub struct ServerSetup {
    /// Holds the root's lock while the server lives.
    pub directories: Directories,
    pub board: Board,
    pub requests: Sender<Request>,
    pub ended: Arc<dyn Ended>,
    pub metrics: Arc<Metrics>,
    /// TCP beside the socket.
    pub listen: Option<SocketAddr>,
    /// Required where `listen` isn't loopback; see [`read_token`].
    pub token: Option<String>,
    /// The largest item that is taken by upload, in bytes.
    pub max_upload: u64,
    pub patience: Patience,
}

/// The running server. Dropping it answers what was asked, stops the thread and removes the socket.
#[derive(Debug)]
pub struct Server {
    /// Where it listens over TCP, with the port the system gave.
    pub listening: Option<SocketAddr>,
    socket: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// The token in `file`: its text without the white space around it.
pub fn read_token(file: &Path) -> io::Result<String> {
    let token = std::fs::read_to_string(file)?.trim().to_owned();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a token is one line of visible ASCII"));
    }
    Ok(token)
}

/// Begins to serve. The sockets are bound when this returns.
pub fn serve(setup: ServerSetup) -> io::Result<Server> {
    let loopback = setup.listen.is_none_or(|listen| listen.ip().is_loopback());
    if !loopback && setup.token.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "api.listen beyond loopback needs api.token_file"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(BLOCKING).build()?;
    let tcp = setup.listen.map(std::net::TcpListener::bind).transpose()?;
    let listening = tcp.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    let socket = setup.directories.root().join(SOCKET);
    let unix = socket::listen(&socket)?;
    let unix_path = socket.clone();
    if let Some(tcp) = &tcp {
        tcp.set_nonblocking(true)?;
    }

    incoming::clean(setup.directories.root());
    let (stop, stopped) = watch::channel(false);
    let epoch = jiff::Timestamp::now().as_millisecond().unsigned_abs();
    let (feed, tally) = (Arc::new(Feed::new(epoch)), Arc::new(Tally::new(setup.metrics.clients.clone())));
    let feeding = (feed.clone(), setup.board.clone());
    let clients = setup.metrics.clients.clone();
    let shared = Arc::new(Shared {
        board: setup.board,
        requests: setup.requests,
        ended: setup.ended,
        directories: setup.directories,
        metrics: setup.metrics,
        started: Instant::now(),
        feed,
        tally: tally.clone(),
        max_upload: setup.max_upload,
        patience: setup.patience,
        uploads: Semaphore::new(UPLOADS),
        followers: AtomicUsize::new(0),
        stop: stopped.clone(),
    });
    let open = counted(routes::router(shared.clone(), None), &clients);
    let guarded = counted(routes::router(shared, Some(Guard { token: setup.token, loopback })), &clients);
    let work = async move {
        // Tokio takes them over inside the runtime only.
        let unix = Door::Unix(UnixDoor::new(UnixListener::from_std(unix)?, unix_path));
        let tcp = tcp.map(TcpListener::from_std).transpose()?;
        let (feed, board) = feeding;
        let feed_stop = stopped.clone();
        tokio::spawn(async move { feed.run(board, feed_stop).await });
        let patience = setup.patience;
        let unix_side = accept(unix, open, tally.clone(), clients.clone(), patience, stopped.clone());
        match tcp {
            None => unix_side.await,
            Some(tcp) => {
                tokio::join!(unix_side, accept(Door::Tcp(tcp), guarded, tally, clients, patience, stopped));
            }
        }
        io::Result::Ok(())
    };
    let thread = std::thread::Builder::new().name("api".to_owned()).spawn(move || {
        if let Err(error) = runtime.block_on(work) {
            tracing::error!(%error, "the api can't serve");
        }
        // A look-up that hangs on a disk is left behind.
        runtime.shutdown_background();
    })?;
    Ok(Server { listening, socket, stop, thread: Some(thread) })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Where clients come in.
enum Door {
    Unix(UnixDoor),
    Tcp(TcpListener),
}

/// The root's socket.
struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of what was bound.
    identity: Option<(u64, u64)>,
    /// It couldn't be made again, and that was said.
    told: bool,
}

impl UnixDoor {
    fn new(listener: UnixListener, path: PathBuf) -> UnixDoor {
        UnixDoor { identity: identity(&path), listener, path, told: false }
    }

    /// Makes the socket again where it is gone. Those who came in by the old one stay.
    fn look(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            return;
        }
        match socket::listen(&self.path).and_then(UnixListener::from_std) {
            Ok(listener) => {
                tracing::warn!("the root's socket was gone; it was made again");
                *self = UnixDoor::new(listener, std::mem::take(&mut self.path));
            }
            Err(error) if !std::mem::replace(&mut self.told, true) => {
                tracing::error!(%error, "the root's socket is gone and can't be made again: no command reaches this director");
            }
            Err(_) => {}
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

impl Door {
    fn look(&mut self) {
        if let Door::Unix(door) = self {
            door.look();
        }
    }

    async fn next(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Door::Unix(door) => Box::new(door.listener.accept().await?.0),
            Door::Tcp(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Serves every client of one door until the server stops.
async fn accept(
    mut door: Door,
    router: Router,
    tally: Arc<Tally>,
    clients: Arc<Clients>,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut served = JoinSet::new();
    let mut look = tokio::time::interval(SOCKET_LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await;
            (door.next().await, place)
        };
        tokio::select! {
            () = ended(&mut stop) => break,
            _ = look.tick() => door.look(),
            // Ended tasks are let go as they end.
            Some(_) = served.join_next() => {}
            (stream, place) = next => match stream {
                Ok(stream) => {
                    let client = serve_one(stream, router.clone(), tally.clone(), clients.clone(), patience, stop.clone());
                    let tally = tally.clone();
                    served.spawn(async move {
                        let _present = tally.client();
                        client.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a client can't be accepted");
                    clients.count_refused();
                    tokio::time::sleep(BREATH).await;
                }
            },
        }
    }
    drop(door);
    let _ = tokio::time::timeout(LAST_WORDS, async { while served.join_next().await.is_some() {} }).await;
}

/// Every answer is counted, those of the guard too.
fn counted(router: Router, clients: &Arc<Clients>) -> Router {
    let clients = clients.clone();
    router.layer(middleware::map_response(move |response: Response| {
        clients.count_response(response.status().as_u16());
        async move { response }
    }))
}

async fn serve_one(
    stream: Box<dyn Stream>,
    router: Router,
    tally: Arc<Tally>,
    clients: Arc<Clients>,
    patience: Patience,
    mut stop: watch::Receiver<bool>,
) {
    let _connected = clients.come_in();
    let service = TowerToHyperService::new(router);
    let stream = Patient::new(stream, tally.clone(), patience.reading);
    let begun = stream.begun();
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience.headers)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended(&mut stop) => {
            // What was asked is still answered.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        // Others went away by themselves, or had nothing more to ask.
        if error.is_timeout() && begun.load(Ordering::Relaxed) {
            tally.dropped();
        } else if error.is_parse() {
            clients.count_cut(Cut::Malformed);
        }
        tracing::debug!(%error, "a client's connection broke");
    }
}

/// Comes back when the server ends.
pub(super) async fn ended(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await.is_ok();
}
