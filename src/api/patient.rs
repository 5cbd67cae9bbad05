//! A client's stream, with an end to patience: a client that doesn't read what it asked for is cut. And hyper answers what is
//! no HTTP by itself, without a word of why: such an answer is given a body here, as every refusal has one.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::tally::Tally;

pub(super) struct Patient<S> {
    inner: S,
    tally: Arc<Tally>,
    patience: Duration,
    /// Runs while a write waits for the client.
    waits: Option<Pin<Box<Sleep>>>,
    /// Something came since the last answer: a request may be under way.
    begun: Arc<AtomicBool>,
    /// Our words in place of hyper's, and how much of them is written.
    own: Option<(Vec<u8>, usize)>,
}

impl<S> Patient<S> {
    pub(super) fn new(inner: S, tally: Arc<Tally>, patience: Duration) -> Patient<S> {
        Patient { inner, tally, patience, waits: None, begun: Arc::default(), own: None }
    }

    /// Tells whether something came since the last answer: a client that says nothing more is no slow one.
    pub(super) fn begun(&self) -> Arc<AtomicBool> {
        self.begun.clone()
    }

    /// What a write, or a flush, came to; an error once the client's time is up.
    fn timed<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.waits = None;
            return done;
        }
        let patience = self.patience;
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(waits.as_mut().poll(cx));
        self.waits = None;
        self.tally.dropped();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.begun.store(true, Ordering::Relaxed);
        }
        done
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.begun.store(false, Ordering::Relaxed);
        if this.own.is_none() {
            this.own = in_our_words(buf).map(|words| (words, 0));
        }
        while let Some((words, written)) = &mut this.own {
            if *written == words.len() {
                this.own = None;
                return Poll::Ready(Ok(buf.len()));
            }
            let done = Pin::new(&mut this.inner).poll_write(cx, &words[*written..]);
            if let Poll::Ready(Ok(more)) = &done {
                *written += more;
            }
            ready!(this.timed(cx, done))?;
        }
        let done = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.timed(cx, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(cx);
        self.timed(cx, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What to say instead, if this is a refusal of hyper's own: one of its three, whole, and without a body. Ours have one.
fn in_our_words(answer: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(answer).ok()?;
    let head = text.strip_suffix("\r\n\r\n").filter(|head| !head.contains("\r\n\r\n"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?;
    let (code, message, help) = match status.get(..3)? {
        "400" => ("bad-request", "this is no HTTP/1.1 request", "see /v1/openapi.json for what may be asked"),
        "414" => ("uri-too-long", "the path and its query are too long", "send what is long in a body"),
        "431" => ("headers-too-large", "the headers are too large", "send fewer of them"),
        _ => return None,
    };
    let is_empty = |line: &str| line.eq_ignore_ascii_case("content-length: 0");
    if !lines.any(is_empty) {
        return None;
    }
    let body = serde_json::json!({ "error": { "code": code, "message": message, "help": help } }).to_string();
    let length = body.len();
    Some(
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
        .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn only_what_hyper_says_by_itself_is_said_in_our_words() {
        let check = |answer: &str, expected: bool| {
            assert_eq!(in_our_words(answer.as_bytes()).is_some(), expected, "{answer:?}");
        };
        check("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n", true);
        check("HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n", true);
        check("HTTP/1.1 400 Bad Request\r\ncontent-length: 7\r\n\r\n{\"a\":1}", false);
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false);
        check("HTTP/1.1 204 No Content\r\n\r\n", false);
        check("a log that says HTTP/1.1 400\r\ncontent-length: 0\r\n\r\n", false);
        check("", false);
    }

    #[test]
    fn who_does_not_read_is_cut_and_counted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(64);
            let tally = Arc::new(Tally::default());
            let mut patient = Patient::new(server, tally.clone(), Duration::from_millis(20));
            let error = patient.write_all(&[b'x'; 1000]).await.expect_err("nobody reads");
            assert_eq!((error.kind(), tally.read().dropped_clients), (io::ErrorKind::TimedOut, 1));
            // One that reads may take as long as it likes.
            let reads = async { client.read_exact(&mut [0; 64]).await.map(drop) };
            let (written, read) = tokio::join!(patient.write_all(&[b'y'; 10]), reads);
            assert!(written.is_ok() && read.is_ok() && tally.read().dropped_clients == 1);
        });
    }
}
