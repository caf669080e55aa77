//! Signals: those that ask this process for something, and those that ask one that it started to stop.

use std::io;
use std::process::Child;

use async_signal::{Signal, Signals};
use futures_util::StreamExt;

/// SIGINT and SIGTERM, caught from [`StopSignals::new`] on.
#[derive(Debug)]
pub struct StopSignals(Signals);

impl StopSignals {
    /// Starts to catch the signals; until then they end the process.
    pub fn new() -> io::Result<Self> {
        Signals::new([Signal::Int, Signal::Term]).map(Self)
    }

    /// Waits for the next one and returns its name. Safe to drop.
    pub async fn next(&mut self) -> io::Result<&'static str> {
        match self.0.next().await {
            Some(Ok(Signal::Int)) => Ok("SIGINT"),
            Some(Ok(_)) => Ok("SIGTERM"),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What a node is asked for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// SIGINT, SIGTERM or SIGQUIT, by name.
    Stop(&'static str),
    /// SIGHUP: read the configuration again, open the log anew.
    Reload,
    /// SIGUSR1: say how things are.
    Status,
}

/// All signals that a node obeys, caught from [`NodeSignals::new`] on.
#[derive(Debug)]
pub struct NodeSignals(Signals);

impl NodeSignals {
    /// Starts to catch the signals; until then they end the process.
    pub fn new() -> io::Result<Self> {
        Signals::new([Signal::Int, Signal::Term, Signal::Quit, Signal::Hup, Signal::Usr1]).map(Self)
    }

    /// Waits for the next one. Safe to drop.
    pub async fn next(&mut self) -> io::Result<Asked> {
        match self.0.next().await {
            Some(Ok(Signal::Int)) => Ok(Asked::Stop("SIGINT")),
            Some(Ok(Signal::Quit)) => Ok(Asked::Stop("SIGQUIT")),
            Some(Ok(Signal::Hup)) => Ok(Asked::Reload),
            Some(Ok(Signal::Usr1)) => Ok(Asked::Status),
            Some(Ok(_)) => Ok(Asked::Stop("SIGTERM")),
            Some(Err(error)) => Err(error),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Sends SIGTERM to a child process, unless it has ended.
pub fn terminate(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGTERM)
}

/// Sends SIGINT to a child process, unless it has ended.
pub fn interrupt(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGINT)
}

/// Sends SIGHUP to a child process, unless it has ended.
pub fn hang_up(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGHUP)
}

/// Sends SIGUSR1 to a child process, unless it has ended.
pub fn ask_status(child: &mut Child) -> io::Result<()> {
    send(child, libc::SIGUSR1)
}

fn send(child: &mut Child, signal: libc::c_int) -> io::Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    let id = child.id().cast_signed();
    // SAFETY: no pointers; the id is that of our child, since nobody has waited for it yet.
    match unsafe { libc::kill(id, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_is_terminated_once() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("a child");
        terminate(&mut child).expect("sent");
        assert_eq!(child.wait().expect("a status").signal(), Some(libc::SIGTERM));
        terminate(&mut child).expect("nothing to do");
    }

    #[test]
    fn a_node_hears_what_it_is_asked() {
        let mut signals = NodeSignals::new().expect("caught");
        for (number, asked) in [(libc::SIGHUP, Asked::Reload), (libc::SIGUSR1, Asked::Status)] {
            // SAFETY: no pointers; the signal is caught by now.
            assert_eq!(unsafe { libc::raise(number) }, 0);
            assert_eq!(smol::block_on(signals.next()).expect("a signal"), asked);
        }
    }

    #[test]
    fn a_stop_signal_is_delivered_instead_of_ending_the_process() {
        let mut signals = StopSignals::new().expect("caught");
        for (number, name) in [(libc::SIGTERM, "SIGTERM"), (libc::SIGINT, "SIGINT")] {
            // SAFETY: no pointers; the signal is caught by now.
            assert_eq!(unsafe { libc::raise(number) }, 0);
            assert_eq!(smol::block_on(signals.next()).expect("a signal"), name);
        }
    }
}
