//! A client of the director's socket, for the command line and for programs that use the library. It blocks.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::view::Change;
use super::{Refusal, SOCKET, socket};

/// Longer than the server lets anything take.
const PATIENCE: Duration = Duration::from_secs(90);
/// What is read from memory takes milliseconds.
const PATIENCE_TO_READ: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no director is running for {root}")]
    NoDirector { root: PathBuf },
    /// It holds the root's lock, and its socket is gone.
    #[error("a director{} runs for {root}, but its socket is gone", pid.map_or(String::new(), |pid| format!(" (pid {pid})")))]
    Unreachable { root: PathBuf, pid: Option<i32> },
    /// Asked and refused.
    #[error("{refusal}")]
    Refused { status: u16, refusal: Refusal },
    /// It took the connection, and says nothing.
    #[error("the director{} doesn't answer within {} s: it is stopped, or hangs in the kernel", pid.map_or(String::new(), |pid| format!(" (pid {pid})")), after.as_secs())]
    Silent { pid: Option<i32>, after: Duration },
    #[error("the director's answer is lost: {0}")]
    Lost(String),
}

/// A director that listens.
#[derive(Debug)]
pub struct Client {
    root: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// Finds out whether a director listens, and is ready to ask it.
    pub fn connect(root: &Path) -> Result<Client, ClientError> {
        let lost = |error: io::Error| ClientError::Lost(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost)?;
        let client = Client { root: root.to_owned(), runtime };
        client.stream().map(|_| client)
    }

    fn stream(&self) -> Result<std::os::unix::net::UnixStream, ClientError> {
        socket::connect(&self.root.join(SOCKET)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused => {
                match crate::root::holder(&self.root) {
                    Some(pid) => ClientError::Unreachable { root: self.root.clone(), pid },
                    None => ClientError::NoDirector { root: self.root.clone() },
                }
            }
            _ => ClientError::Lost(format!("{}: {error}", self.root.join(SOCKET).display())),
        })
    }

    /// Reads `path`, with its query.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Vec::new(), PATIENCE_TO_READ)
    }

    /// Waits until something newer than publication `after` is there, for so many seconds.
    pub fn changed(&self, after: u64, seconds: u64) -> Result<Change, ClientError> {
        self.ask(Method::GET, &format!("/v1/changes?after={after}&timeout={seconds}"), Vec::new(), PATIENCE)
    }

    /// Sends `body` to `path`.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Lost(error.to_string()))?;
        self.ask(Method::POST, path, body, PATIENCE)
    }

    /// Lets `span` pass: between questions that would else be asked in a tight loop.
    pub fn pause(&self, span: Duration) {
        // The timer is made inside the runtime: it needs one.
        self.runtime.block_on(async { tokio::time::sleep(span).await });
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<T, ClientError> {
        let stream = self.stream()?;
        let lost = |error: &dyn std::fmt::Display| ClientError::Lost(error.to_string());
        let exchange = async {
            stream.set_nonblocking(true).map_err(|error| lost(&error))?;
            let stream = UnixStream::from_std(stream).map_err(|error| lost(&error))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
            let driver = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "localhost")
                .header("content-type", "application/json")
                .header("connection", "close")
                .body(Full::new(Bytes::from(body)))
                .map_err(|error| lost(&error))?;
            let response = sender.send_request(request).await.map_err(|error| lost(&error))?;
            let status = response.status();
            let bytes = response.into_body().collect().await.map_err(|error| lost(&error))?.to_bytes();
            driver.abort();
            Ok((status, bytes))
        };
        let timed = self.runtime.block_on(async { tokio::time::timeout(patience, exchange).await });
        let silent = |_| ClientError::Silent { pid: crate::root::holder(&self.root).flatten(), after: patience };
        let (status, bytes): (StatusCode, Bytes) = timed.map_err(silent)??;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|error| lost(&error));
        }
        #[derive(serde::Deserialize)]
        struct Envelope {
            error: Refusal,
        }
        match serde_json::from_slice::<Envelope>(&bytes) {
            Ok(Envelope { error }) => Err(ClientError::Refused { status: status.as_u16(), refusal: error }),
            Err(_) => Err(lost(&format_args!("{status}"))),
        }
    }
}

/// Text as one segment of a path or one value of a query.
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            encoded.push(byte as char);
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
