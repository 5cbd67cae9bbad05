//! From published views to events: what changed is told to everyone who follows, at most so often, and kept for a while for
//! those who come back. While nobody follows nothing is compared. Runs on the server's thread; a client that reads slowly
//! holds up nobody, since all read from one bounded ring.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::ring::{Behind, Ring};
use super::told::{Empty, Reset, Told, Why};
use super::{Board, diff, server};

/// The least time between two rounds: what changes back and forth in between isn't told.
const ROUND: Duration = Duration::from_millis(100);

/// The same after a round in which more changed than is told one by one.
const STORM: Duration = Duration::from_millis(500);

/// How long changes are kept on being noted after the last client left, for it to come back.
const LINGER: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Feed {
    ring: Mutex<Ring>,
    /// The newest event's number; none while nothing is noted.
    newest: watch::Sender<Option<u64>>,
    followers: watch::Sender<usize>,
    /// The server ends, and nothing more is noted.
    over: watch::Sender<bool>,
}

/// Somebody who follows, as long as it is there.
#[derive(Debug)]
pub(super) struct Follower {
    feed: Arc<Feed>,
    news: watch::Receiver<Option<u64>>,
    /// The last event it was given.
    at: u64,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.feed.followers.send_modify(|followers| *followers -= 1);
    }
}

impl Feed {
    pub(super) fn new(epoch: u64) -> Feed {
        let (newest, followers) = (watch::Sender::new(None), watch::Sender::new(0));
        Feed { ring: Mutex::new(Ring::new(epoch)), newest, followers, over: watch::Sender::new(false) }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows from behind the event of this id; or anew, with the event that says so as the first bytes.
    pub(super) async fn follow(self: &Arc<Feed>, last: Option<&str>, board: &Board) -> (Follower, Option<String>) {
        self.followers.send_modify(|followers| *followers += 1);
        let mut follower = Follower { feed: self.clone(), news: self.newest.subscribe(), at: 0 };
        // The feed lives as long as the server does.
        let _ = follower.news.wait_for(Option::is_some).await.is_ok();
        let ring = self.ring();
        let resumed = match last.map(|id| ring.parse(id)) {
            Some(Ok(number)) if ring.behind(number) != Behind::TooMuch => Ok(number),
            Some(Err(true)) => Err(Why::Restarted),
            Some(_) => Err(Why::TooOld),
            None => Err(Why::New),
        };
        follower.at = resumed.unwrap_or(ring.newest());
        let first = resumed.err().map(|why| {
            let (name, data) = Told::Reset(Reset { why, number: board.read().number }).frame();
            format!("id: {}\nevent: {name}\ndata: {data}\n\n", ring.id(follower.at))
        });
        drop(ring);
        (follower, first)
    }

    /// Notes what changes until the server ends.
    pub(super) async fn run(&self, board: Board, mut stop: watch::Receiver<bool>) {
        let mut followers = self.followers.subscribe();
        loop {
            tokio::select! {
                () = server::ended(&mut stop) => break,
                _ = followers.wait_for(|followers| *followers > 0) => {}
            }
            board.journal.open(true);
            let over = self.note(&board, &mut followers, &mut stop).await;
            board.journal.open(false);
            if over {
                break;
            }
            self.newest.send_replace(None);
        }
        self.over.send_replace(true);
    }

    /// Notes what changes as long as somebody follows, and a while longer. Whether that is because the server ends.
    async fn note(
        &self,
        board: &Board,
        followers: &mut watch::Receiver<usize>,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        let mut views = board.subscribe();
        let mut configs = board.config.subscribe();
        let mut known = views.borrow_and_update().clone();
        {
            let mut ring = self.ring();
            ring.skip();
            self.newest.send_replace(Some(ring.newest()));
        }
        let mut alone_until = None;
        loop {
            alone_until = match *followers.borrow_and_update() {
                0 => alone_until.or(Some(Instant::now() + LINGER)),
                _ => None,
            };
            let alone = async {
                match alone_until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let mut last = false;
            tokio::select! {
                () = server::ended(stop) => last = true,
                () = alone => return false,
                Ok(()) = followers.changed() => continue,
                Ok(()) = views.changed() => {}
                Ok(()) = configs.changed() => self.tell([Told::Config(Empty {})]),
                else => return true,
            }
            let view = views.borrow_and_update().clone();
            // After the view: what ended since it was published is told as ended already.
            let ended = board.journal.take();
            let changes = diff::changes(&known, &view, ended);
            let storm = changes.iter().any(|told| matches!(told, Told::Items(_)));
            self.tell(changes);
            known = view;
            if last {
                return true;
            }
            tokio::select! {
                () = server::ended(stop) => {}
                () = tokio::time::sleep(if storm { STORM } else { ROUND }) => {}
            }
        }
    }

    fn tell(&self, told: impl IntoIterator<Item = Told>) {
        let mut ring = self.ring();
        for told in told {
            let (name, data) = told.frame();
            ring.push(&name, &data);
        }
        let newest = ring.newest();
        drop(ring);
        self.newest.send_if_modified(|known| known.replace(newest) != Some(newest));
    }
}

impl Follower {
    /// What it hasn't been given yet; nothing when that is more than is kept.
    pub(super) fn next(&mut self) -> Option<axum::body::Bytes> {
        match self.feed.ring().behind(self.at) {
            Behind::TooMuch => None,
            Behind::Nothing => Some(axum::body::Bytes::new()),
            Behind::Batch(batch, last) => {
                self.at = last;
                Some(batch)
            }
        }
    }

    /// Comes back when there may be more; false when there won't be.
    pub(super) async fn changed(&mut self) -> bool {
        let mut over = self.feed.over.subscribe();
        tokio::select! {
            biased;
            Ok(()) = self.news.changed() => true,
            _ = over.wait_for(|over| *over) => false,
        }
    }
}
