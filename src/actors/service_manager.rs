//! What the service manager hears: that the node is up, how it is, and that every actor still turns its mailbox.
//!
//! Not an actor: it must go on when actors do not. It runs on the control thread, so a control thread that stands still
//! feeds no watchdog either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::Timer;

use super::client::ClientShared;
use super::coordinator::ServerShared;
use super::supervisor::Supervisor;
use crate::io::notify::{Notifier, Word};

/// How often a manager without a watchdog hears how we are.
const STATUS_EVERY: Duration = Duration::from_secs(10);
/// How often the start is looked at: who waits for a unit to be up waits no longer than this too long.
const START_LOOK: Duration = Duration::from_millis(20);

/// Tells the service manager of the node for as long as it runs; `line` says how it is.
///
/// The node is up when every actor has started and read its mailbox once. From then on the watchdog is fed at half of
/// its time, if all have answered what they were asked the time before.
pub async fn attend(notifier: Arc<Notifier>, supervisor: Supervisor, line: impl Fn() -> String + Send) {
    // The first question has no answer yet to look for.
    let _ = supervisor.silent(Instant::now());
    while !supervisor.all_answered() {
        Timer::after(START_LOOK).await;
        if !supervisor.all_answered() {
            let _ = supervisor.silent(Instant::now());
        }
    }
    notifier.say(&[Word::Ready, Word::Status(&line())]);
    let every = notifier.watchdog().map_or(STATUS_EVERY, |watchdog| watchdog / 2);
    let mut at = Instant::now();
    loop {
        at += every;
        Timer::at(at).await;
        // After the machine was suspended the rounds it has missed are not made up for.
        let now = Instant::now();
        at = at.max(now - every);
        let silent = supervisor.silent(now);
        if silent.is_empty() {
            match notifier.watchdog() {
                Some(_) => notifier.say(&[Word::Alive, Word::Status(&line())]),
                None => notifier.say(&[Word::Status(&line())]),
            }
        } else {
            let names = silent.join(", ");
            log::error!("{names} hung: the watchdog is not fed");
            notifier.say(&[Word::Status(&format!("hung: {names}"))]);
        }
    }
}

/// A client in a few words.
pub fn client_line(shared: &ClientShared) -> String {
    let lease = shared.lease.load();
    let server = shared.views.server.load();
    let peers = shared.peers.load();
    let online = peers.iter().filter(|peer| peer.online).count();
    match (lease.as_ref(), server.attached) {
        (None, _) => "joining".to_owned(),
        (Some(lease), true) => {
            let device = &shared.config.device;
            format!("connected: {}/{} on {device}, {online} of {} peers online", lease.ip4, lease.prefix4, peers.len())
        }
        (Some(lease), false) => {
            format!("server not reached: {}/{} on {}", lease.ip4, lease.prefix4, shared.config.device)
        }
    }
}

/// A server in a few words.
pub fn server_line(shared: &ServerShared) -> String {
    let config = &shared.config;
    let description = shared.description.load();
    let members = description.as_ref().as_ref().map(|description| &description.members);
    let (all, online) = members.map_or((0, 0), |members| (members.len(), members.iter().filter(|m| m.online).count()));
    format!("{} on port {}: {online} of {all} members online", config.network, config.port)
}
