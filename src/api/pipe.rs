//! A body that is written while it is read. Who writes waits for who reads, and hears when nobody does any more.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

struct Pipe(mpsc::Receiver<Bytes>);

impl HttpBody for Pipe {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

/// One part waits to be read at most.
pub(super) fn pipe() -> (mpsc::Sender<Bytes>, Body) {
    let (write, read) = mpsc::channel(1);
    (write, Body::new(Pipe(read)))
}
