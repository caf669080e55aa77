//! What a service manager is told: datagrams to the socket it names in `NOTIFY_SOCKET`, as sd_notify(3) has them.
//!
//! Where there is no such socket, nobody wants to know. Nothing here waits, and nothing a manager does to us (a full
//! queue, a socket that went away) is worth more than a line in the log.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// A manager that expects [`Word::Alive`] at least this often.
    watchdog: Option<Duration>,
}

/// One thing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// We are up.
    Ready,
    /// All is well; said again and again where there is a watchdog.
    Alive,
    /// We are ending.
    Stopping,
    /// A line for people.
    Status(&'a str),
}

impl Notifier {
    /// To the manager that started this process, if one did and listens.
    pub fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
        let watchdog = watchdog(number("WATCHDOG_USEC"), number("WATCHDOG_PID"), std::process::id());
        Self::to(&name, watchdog)
            .inspect_err(|error| log::warn!("the service manager cannot be told anything: {error}"))
            .ok()
    }

    /// To a socket: a path, or `@NAME` in the abstract namespace.
    pub fn to(name: &OsStr, watchdog: Option<Duration>) -> io::Result<Self> {
        let manager = match name.as_bytes() {
            [b'@', abstracted @ ..] => SocketAddr::from_abstract_name(abstracted)?,
            [b'/', ..] => SocketAddr::from_pathname(name)?,
            _ => return Err(io::Error::other("NOTIFY_SOCKET is neither a path nor an abstract name")),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, manager, watchdog })
    }

    /// How often the manager wants to hear that we are alive, at the least.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Says all of this in one datagram.
    pub fn say(&self, words: &[Word<'_>]) {
        if let Err(error) = self.socket.send_to_addr(assignments(words).as_bytes(), &self.manager) {
            log::debug!("the service manager was not told {words:?}: {error}");
        }
    }
}

fn assignments(words: &[Word<'_>]) -> String {
    let line = |word: &Word<'_>| match word {
        Word::Ready => "READY=1\n".to_owned(),
        Word::Alive => "WATCHDOG=1\n".to_owned(),
        Word::Stopping => "STOPPING=1\n".to_owned(),
        // A line break would begin another assignment.
        Word::Status(text) => format!("STATUS={}\n", text.replace(['\n', '\r'], " ")),
    };
    words.iter().map(line).collect()
}

/// The interval of a watchdog that is meant for the process `ours`, as sd_watchdog_enabled(3) decides it.
fn watchdog(microseconds: Option<u64>, pid: Option<u64>, ours: u32) -> Option<Duration> {
    let interval = microseconds.filter(|interval| *interval > 0).map(Duration::from_micros)?;
    pid.is_none_or(|pid| pid == u64::from(ours)).then_some(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_one_datagram_by_path_and_by_abstract_name() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("notify");
        let listening = UnixDatagram::bind(&path).expect("a socket");
        Notifier::to(path.as_os_str(), None).expect("a way").say(&[Word::Ready, Word::Status("up\nREADY=0")]);
        assert_eq!(heard(&listening), "READY=1\nSTATUS=up READY=0\n");

        let name = format!("eps-actor-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let listening = UnixDatagram::bind_addr(&address).expect("a socket");
        Notifier::to(OsStr::new(&format!("@{name}")), None).expect("a way").say(&[Word::Alive]);
        assert_eq!(heard(&listening), "WATCHDOG=1\n");
    }

    #[test]
    fn a_manager_that_has_gone_or_does_not_read_holds_nobody_up() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("notify");
        let listening = UnixDatagram::bind(&path).expect("a socket");
        let notifier = Notifier::to(path.as_os_str(), None).expect("a way");
        for _ in 0..10_000 {
            notifier.say(&[Word::Alive]);
        }
        drop(listening);
        notifier.say(&[Word::Stopping]);
        assert!(Notifier::to(OsStr::new("notify"), None).is_err());
    }

    #[test]
    fn a_watchdog_for_another_process_is_not_ours() {
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(Some(10_000_000), None, 7), ten);
        assert_eq!(watchdog(Some(10_000_000), Some(7), 7), ten);
        assert_eq!(watchdog(Some(10_000_000), Some(8), 7), None);
        assert_eq!(watchdog(Some(0), None, 7), None);
        assert_eq!(watchdog(None, Some(7), 7), None);
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a datagram");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }
}
