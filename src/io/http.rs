//! One page over HTTP/1.1, for whoever scrapes metrics: hyper on smol's sockets.
//!
//! Connections are few and short: one request each, a bounded number at once, and a time after which they are closed
//! whatever they do. What is above the number waits in the kernel's queue.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_lite::{AsyncRead, AsyncWrite, future};
use futures_util::stream::{FuturesUnordered, StreamExt};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use smol::Timer;
use smol::net::{TcpListener, TcpStream};

/// Connections served at once. A scraper has one; eight let several come at the same time.
const CONNECTIONS_MAX: usize = 8;
/// How long one connection may last: Prometheus gives a scrape 10 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// Room for a request's head; hyper's least.
const HEAD_MAX: usize = 8192;
/// How long to wait when the process or the machine is out of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// A page that is served under one path.
#[derive(Debug)]
pub struct PageListener {
    listener: TcpListener,
    address: SocketAddr,
}

/// Why a page cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}: {source}; name another address with --metrics")]
pub struct PageError {
    address: SocketAddr,
    source: io::Error,
}

impl PageListener {
    /// Listens; the right to do so, and whether the port is free, show here.
    pub fn bind(address: SocketAddr) -> Result<Self, PageError> {
        let failed = |source| PageError { address, source };
        let listener = StdListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener: TcpListener::try_from(listener).map_err(failed)?, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `page` under `path`, made anew for each request, until this is dropped. Everything else is not there.
    pub async fn serve(&self, path: &'static str, content_type: &'static str, page: impl Fn() -> String) {
        let mut open = FuturesUnordered::new();
        loop {
            let full = open.len() >= CONNECTIONS_MAX;
            let taken =
                async { if full { future::pending().await } else { Wake::Taken(self.listener.accept().await) } };
            let ended = async {
                if open.next().await.is_none() {
                    // There is none that could end.
                    future::pending().await
                }
                Wake::Ended
            };
            match future::or(ended, taken).await {
                Wake::Taken(Ok((stream, _))) => open.push(connection(stream, path, content_type, &page)),
                Wake::Taken(Err(error)) => {
                    log::debug!("a connection for metrics could not be taken: {error}");
                    Timer::after(BREATH).await;
                }
                Wake::Ended => {}
            }
        }
    }
}

enum Wake {
    Taken(io::Result<(TcpStream, SocketAddr)>),
    Ended,
}

/// One request and its answer.
async fn connection(stream: TcpStream, path: &str, content_type: &'static str, page: &impl Fn() -> String) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, path, content_type, page);
        async { Ok::<_, Infallible>(answer) }
    });
    let served = async {
        let mut builder = http1::Builder::new();
        builder.keep_alive(false).half_close(true).max_buf_size(HEAD_MAX);
        if let Err(error) = builder.serve_connection(Socket(stream), service).await {
            log::debug!("a connection for metrics ended early: {error}");
        }
    };
    let late = async {
        Timer::after(PATIENCE).await;
    };
    future::or(served, late).await;
}

fn answer(
    request: &Request<Incoming>,
    path: &str,
    content_type: &'static str,
    page: impl Fn() -> String,
) -> Response<String> {
    let plain = |status, text: &str| {
        let mut response = Response::new(format!("{text}\n"));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != path {
        return plain(StatusCode::NOT_FOUND, &format!("here is nothing but {path}"));
    }
    // hyper sends no body in answer to HEAD.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "this can be read only");
    }
    let mut response = Response::new(page());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

/// A socket of smol's in hyper's words.
struct Socket(TcpStream);

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut room: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 1024];
        let length = bytes.len().min(room.remaining());
        let count = ready!(Pin::new(&mut self.0).poll_read(cx, &mut bytes[..length]))?;
        room.put_slice(&bytes[..count]);
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream as StdStream;

    use super::*;

    #[test]
    fn the_page_is_under_its_path_and_can_be_read_only() {
        let address = served();
        let ok = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(ok.starts_with("HTTP/1.1 200 OK\r\n"), "{ok}");
        assert!(ok.contains("content-type: text/plain; version=0.0.4\r\n"), "{ok}");
        assert!(ok.ends_with("\r\n\r\neps_up 1\n"), "{ok}");
        let head = ask(address, "HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.contains("content-length: 9\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask(address, "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(ask(address, "GET /metrics?x=1 HTTP/1.0\r\n\r\n").contains("200 OK"));
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_MAX));
        assert!(!ask(address, &long).contains("200 OK"), "a head too long");
    }

    #[test]
    fn who_says_nothing_keeps_nobody_out_for_ever() {
        let address = served();
        let silent: Vec<StdStream> =
            (0..CONNECTIONS_MAX + 3).map(|_| StdStream::connect(address).expect("connected")).collect();
        let start = std::time::Instant::now();
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(answer.contains("200 OK"), "{answer}");
        assert!(start.elapsed() >= PATIENCE / 2, "they were served before the bound was reached");
        drop(silent);
    }

    #[test]
    fn a_port_that_is_taken_is_told_with_what_to_do() {
        let first = PageListener::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let error = PageListener::bind(first.address()).expect_err("taken").to_string();
        assert!(error.starts_with(&format!("cannot serve metrics on {}: ", first.address())), "{error}");
        assert!(error.ends_with("name another address with --metrics"), "{error}");
    }

    /// A page on a thread that lives as long as the test process.
    fn served() -> SocketAddr {
        let listener = PageListener::bind(([127, 0, 0, 1], 0).into()).expect("a port");
        let address = listener.address();
        let page = || "eps_up 1\n".to_owned();
        std::thread::spawn(move || smol::block_on(listener.serve("/metrics", "text/plain; version=0.0.4", page)));
        address
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = StdStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE * 3)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        // A server that refuses early may reset the connection behind its answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}
