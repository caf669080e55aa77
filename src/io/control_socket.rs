//! The control socket: one JSON request per line, one JSON reply per line, over a Unix stream socket.
//!
//! The file's mode (0600) is the whole access control, so the socket is made under another name and takes its
//! place only when the mode is set. Everything is bounded: lines, connections, waiting. What the requests mean is
//! the handler's business.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};
use smol::io::{AsyncReadExt, AsyncWriteExt};
use smol::stream::StreamExt;
use smol::{Async, Timer, future};
use socket2::{Domain, SockAddr, Socket, Type};

/// The listening end. The file goes when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    socket: Async<UnixListener>,
    path: PathBuf,
    /// Device and inode of our socket; whoever replaced the file keeps theirs.
    file: (u64, u64),
}

/// A request could not be asked or answered. Each says what to do about it, in one line.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("nothing answers on {}: start it with `eps-actor client` or `eps-actor server`", path.display())]
    NotRunning { path: PathBuf },
    #[error("no permission to use {}: run this as root, for instance with sudo", path.display())]
    Permission { path: PathBuf },
    #[error(
        "another eps-actor server/client is already running with this control socket ({}): stop it, or give this \
         one another path",
        path.display()
    )]
    AlreadyRunning { path: PathBuf },
    #[error("{} exists and is not a socket: remove it, or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error("cannot listen on {}: {source}; check that its directory can be written to", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("the conversation over {} broke off: {source}; try again", path.display())]
    Broken { path: PathBuf, source: io::Error },
    #[error("no answer over {} in time: the process is busy or stuck, look into its log", path.display())]
    TimedOut { path: PathBuf },
    #[error("the answer is not JSON ({0}): are both ends of the same version?")]
    BadReply(serde_json::Error),
    /// The other end understood the request and says no.
    #[error("{0}")]
    Refused(String),
}

impl ControlListener {
    /// Listens at `path`, in place of a socket that nobody answers on.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, ControlError> {
        let path = path.into();
        make_parent(&path).map_err(|source| bind_error(&path, source))?;
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => return Err(ControlError::NotASocket { path }),
            Ok(_) => refuse_if_answered(&path)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(bind_error(&path, source)),
        }
        Self::replace(&path).map_err(|source| bind_error(&path, source))
    }

    fn replace(path: &Path) -> io::Result<Self> {
        let mut draft = path.as_os_str().to_owned();
        draft.push("~");
        let draft = PathBuf::from(draft);
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixListener::bind(&draft)?;
        let placed = fs::set_permissions(&draft, Permissions::from_mode(0o600)).and_then(|()| {
            let found = fs::symlink_metadata(&draft)?;
            fs::rename(&draft, path)?;
            Ok((found.dev(), found.ino()))
        });
        let file = placed.inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })?;
        Ok(Self { socket: Async::new(socket)?, path: path.to_owned(), file })
    }

    /// Answers requests with `handler` for as long as it is polled; dropping it closes every connection.
    ///
    /// `Ok` of the handler is the reply as it is, `Err` becomes `{"error": ...}`. Handlers bound their own time.
    pub async fn accept_loop<H>(&self, handler: H)
    where
        H: Fn(Value) -> BoxFuture<'static, Result<Value, String>> + Send + Sync,
    {
        enum Wake {
            Accepted(io::Result<UnixStream>),
            Ended,
        }
        let mut connections = FuturesUnordered::new();
        loop {
            let open = connections.len();
            let ended = async {
                match open {
                    0 => future::pending().await,
                    _ => connections.next().await,
                };
                Wake::Ended
            };
            let accepted = async { Wake::Accepted(self.accept().await) };
            match future::or(accepted, ended).await {
                Wake::Ended => {}
                Wake::Accepted(Ok(stream)) if open >= MAX_CONNECTIONS => refuse(stream),
                Wake::Accepted(Ok(stream)) => match Async::new(stream) {
                    Ok(stream) => connections.push(converse(stream, &handler)),
                    Err(error) => log::warn!("control socket: {error}"),
                },
                Wake::Accepted(Err(error)) => {
                    log::warn!("control socket: {error}");
                    // Out of descriptors, most likely: an accept repeated at once would spin.
                    Timer::after(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn accept(&self) -> io::Result<UnixStream> {
        self.socket.read_with(|socket| Ok(socket.accept()?.0)).await
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Asks one question and waits for its answer, blocking, `timeout` at the most.
pub fn request(path: impl AsRef<Path>, question: &Value, timeout: Duration) -> Result<Value, ControlError> {
    let path = path.as_ref();
    let end = Instant::now() + timeout;
    let mut stream = connect(path, timeout).map_err(|error| client_error(path, error))?;
    let line = ask(&mut stream, question, end).map_err(|error| client_error(path, error))?;
    let reply: Value = serde_json::from_slice(&line).map_err(ControlError::BadReply)?;
    match reply.as_object() {
        Some(fields) if fields.len() == 1 => match fields.get("error").and_then(Value::as_str) {
            Some(text) => Err(ControlError::Refused(text.to_owned())),
            None => Ok(reply),
        },
        Some(_) | None => Ok(reply),
    }
}

fn ask(stream: &mut UnixStream, question: &Value, end: Instant) -> io::Result<Vec<u8>> {
    stream.set_write_timeout(Some(left_until(end)?))?;
    match stream.write_all(format!("{question}\n").as_bytes()) {
        // A server that refuses the connection closes it, but not without saying why.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    let mut line = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        stream.set_read_timeout(Some(left_until(end)?))?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        line.extend_from_slice(&chunk[..count]);
        if line.len() > MAX_REPLY {
            return Err(io::Error::new(ErrorKind::InvalidData, "the answer is longer than 16 MiB"));
        }
        // Nothing follows the one reply.
        if chunk[..count].contains(&b'\n') {
            return Ok(line);
        }
    }
}

/// Connects within `timeout`: a Unix socket whose backlog is full would block for good.
fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

fn left_until(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn client_error(path: &Path, source: io::Error) -> ControlError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => ControlError::NotRunning { path },
        ErrorKind::PermissionDenied => ControlError::Permission { path },
        ErrorKind::WouldBlock | ErrorKind::TimedOut => ControlError::TimedOut { path },
        _ => ControlError::Broken { path, source },
    }
}

fn bind_error(path: &Path, source: io::Error) -> ControlError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::PermissionDenied => ControlError::Permission { path },
        _ => ControlError::Bind { path, source },
    }
}

/// Fails unless the socket at `path` is a leftover. One that does not answer because it is busy is not.
fn refuse_if_answered(path: &Path) -> Result<(), ControlError> {
    match connect(path, Duration::from_secs(1)) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(ControlError::Permission { path: path.to_owned() })
        }
        Ok(_) | Err(_) => Err(ControlError::AlreadyRunning { path: path.to_owned() }),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
            // The creation mode is cut by the umask.
            fs::set_permissions(parent, Permissions::from_mode(0o755))
        }
        Some(_) | None => Ok(()),
    }
}

fn refuse(mut stream: UnixStream) {
    let reply = json!({"error": format!("more than {MAX_CONNECTIONS} connections to the control socket")});
    // A fresh socket buffer takes one line without waiting.
    if stream.set_nonblocking(true).is_ok() {
        let _ = stream.write_all(format!("{reply}\n").as_bytes());
    }
}

/// Serves one connection until it ends, falls silent or sends too long a line.
async fn converse<H>(mut stream: Async<UnixStream>, handler: &H)
where
    H: Fn(Value) -> BoxFuture<'static, Result<Value, String>>,
{
    let mut lines = Lines::default();
    loop {
        let line = match within(IDLE, lines.next(&mut stream)).await {
            Some(Ok(Line::Whole(line))) => line,
            Some(Ok(Line::TooLong)) => {
                let text = format!("a request is {MAX_REQUEST} bytes at the most");
                let _ = within(IDLE, reply(&mut stream, Err(text))).await;
                return;
            }
            Some(Ok(Line::End) | Err(_)) | None => return,
        };
        let answer = match serde_json::from_slice(&line) {
            Ok(question) => handler(question).await,
            Err(error) => Err(format!("the request is not one line of JSON: {error}")),
        };
        if !matches!(within(IDLE, reply(&mut stream, answer)).await, Some(Ok(()))) {
            return;
        }
    }
}

async fn reply(stream: &mut Async<UnixStream>, answer: Result<Value, String>) -> io::Result<()> {
    let reply = answer.unwrap_or_else(|text| json!({ "error": text }));
    stream.write_all(format!("{reply}\n").as_bytes()).await
}

async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
    future::or(async { Some(work.await) }, async {
        Timer::after(time).await;
        None
    })
    .await
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

impl Lines {
    /// The next line without its end; the last may lack one.
    async fn next(&mut self, stream: &mut Async<UnixStream>) -> io::Result<Line> {
        let mut searched = 0;
        let mut chunk = [0; 4096];
        loop {
            if let Some(at) = self.bytes[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.bytes.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.pop();
                return Ok(if line.len() > MAX_REQUEST { Line::TooLong } else { Line::Whole(line) });
            }
            searched = self.bytes.len();
            if searched > MAX_REQUEST {
                return Ok(Line::TooLong);
            }
            match stream.read(&mut chunk).await? {
                0 if self.bytes.is_empty() => return Ok(Line::End),
                0 => return Ok(Line::Whole(std::mem::take(&mut self.bytes))),
                count => self.bytes.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// The longest request; the longest real one is a few hundred bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// The longest reply a client reads: the status of a thousand peers is about one megabyte.
const MAX_REPLY: usize = 16 * 1024 * 1024;

/// Connections open at once; operators have few hands, and scripts that leak connections should notice.
const MAX_CONNECTIONS: usize = 32;

/// For how long a connection may wait for a whole request, or for its reader.
const IDLE: Duration = Duration::from_secs(10);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::Arc;
    use std::thread::JoinHandle;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_request_gets_its_reply() {
        let server = Server::start();
        for number in 0..3 {
            let reply = request(&server.path, &json!({"echo": number}), SOON).unwrap();
            assert_eq!(reply, json!({"you said": {"echo": number}}));
        }
    }

    #[test]
    fn a_refusal_of_the_handler_is_an_error_of_the_client() {
        let server = Server::start();
        let error = request(&server.path, &json!("no"), SOON).unwrap_err();
        assert!(matches!(&error, ControlError::Refused(text) if text == "as you wish"), "{error}");
    }

    #[test]
    fn garbage_is_answered_with_an_error_and_the_connection_goes_on() {
        let server = Server::start();
        let mut stream = server.connect();
        stream.write_all(b"status please\n\n[1,\n{\"echo\"").unwrap();
        stream.write_all(b": 1}\n\"half a line").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let replies: Vec<Value> =
            BufReader::new(stream).lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        assert_eq!(replies.len(), 5);
        for index in [0, 1, 2, 4] {
            assert!(replies[index]["error"].as_str().unwrap().contains("not one line of JSON"), "{replies:?}");
        }
        assert_eq!(replies[3], json!({"you said": {"echo": 1}}));
    }

    #[test]
    fn a_request_may_have_64_kib_and_not_one_byte_more() {
        let server = Server::start();
        let longest = Value::String("x".repeat(MAX_REQUEST - 2));
        assert_eq!(request(&server.path, &longest, SOON).unwrap(), json!({ "you said": longest }));

        let mut stream = server.connect();
        stream.write_all(&vec![b'x'; MAX_REQUEST + 1]).unwrap();
        let mut reply = String::new();
        BufReader::new(stream).read_to_string(&mut reply).unwrap();
        assert!(reply.contains("at the most") && reply.ends_with('\n'), "{reply}");
    }

    #[test]
    fn the_33rd_connection_is_refused_until_another_ends() {
        let server = Server::start();
        let mut held: Vec<_> = (0..MAX_CONNECTIONS).map(|_| server.connect()).collect();
        // A reply shows that the server has seen them all.
        let last = held.last_mut().unwrap();
        last.write_all(b"1\n").unwrap();
        BufReader::new(last).read_line(&mut String::new()).unwrap();
        let mut refused = String::new();
        BufReader::new(server.connect()).read_line(&mut refused).unwrap();
        assert!(refused.contains("more than 32 connections"), "{refused}");
        let error = request(&server.path, &json!(1), SOON).unwrap_err();
        assert!(matches!(error, ControlError::Refused(_)), "{error}");
        held.pop();
        let end = Instant::now() + SOON;
        while request(&server.path, &json!(1), SOON).is_err() {
            assert!(Instant::now() < end, "the place of the one that left stays taken");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_slow_handler_does_not_hold_up_other_connections_and_its_client_times_out() {
        let server = Server::start();
        let begun = Instant::now();
        let mut slow = server.connect();
        slow.write_all(b"\"sleep\"\n").unwrap();
        request(&server.path, &json!(1), SOON).unwrap();
        let error = request(&server.path, &json!("sleep"), Duration::from_millis(30)).unwrap_err();
        assert!(matches!(error, ControlError::TimedOut { .. }), "{error}");
        assert!(begun.elapsed() < SOON);
    }

    #[test]
    fn a_missing_directory_is_made_and_the_socket_is_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/eps/control.sock");
        let listener = ControlListener::bind(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(path.parent().unwrap()), 0o755);
        assert_eq!(mode(listener.path()), 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_leftover_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let live = ControlListener::bind(&path).unwrap();
        let error = ControlListener::bind(&path).unwrap_err();
        assert!(error.to_string().starts_with("another eps-actor server/client is already running"), "{error}");
        assert!(path.exists());
        drop(live);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlListener::bind(&path), Err(ControlError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_listener_that_was_replaced_does_not_remove_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let old = ControlListener::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let new = ControlListener::bind(&path).unwrap();
        drop(old);
        assert!(path.exists());
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn without_a_server_the_client_says_how_to_start_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let error = request(&path, &json!(1), SOON).unwrap_err().to_string();
        assert!(error.contains("start it with `eps-actor client`") && !error.contains('\n'), "{error}");
        drop(UnixListener::bind(&path).unwrap());
        assert!(matches!(request(&path, &json!(1), SOON), Err(ControlError::NotRunning { .. })));
    }

    const SOON: Duration = Duration::from_secs(8);

    /// A server that says what it was told, on its own thread.
    struct Server {
        path: PathBuf,
        end: Option<smol::channel::Sender<()>>,
        thread: Option<JoinHandle<()>>,
        _directory: tempfile::TempDir,
    }

    impl Server {
        fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("control.sock");
            let listener = Arc::new(ControlListener::bind(&path).unwrap());
            let (end, ended) = smol::channel::bounded::<()>(1);
            let thread = std::thread::spawn(move || {
                smol::block_on(future::or(listener.accept_loop(answer), async {
                    let _ = ended.recv().await;
                }));
            });
            Self { path, end: Some(end), thread: Some(thread), _directory: directory }
        }

        fn connect(&self) -> UnixStream {
            let stream = UnixStream::connect(&self.path).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            self.end.take();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn answer(question: Value) -> BoxFuture<'static, Result<Value, String>> {
        async move {
            match question.as_str() {
                Some("no") => Err("as you wish".to_owned()),
                Some("sleep") => future::pending().await,
                Some(_) | None => Ok(json!({ "you said": question })),
            }
        }
        .boxed()
    }
}
