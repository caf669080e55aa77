//! TunnelPaths: opens a client's paths that could not be opened at the start, and follows names that move.
//!
//! A name may not be resolved yet, and an address may come to this machine later, or again. What waits for either does so
//! on a thread of its own, beside the actors. A restart begins the attempts anew; nothing else is lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use smol::Task;
use xtra::{Actor, Context, Handler};

use super::ext::{Caster, Service, StopReason};
use super::tunnel_system::{TunnelShared, open_path};
use crate::ids::UplinkId;
use crate::messages::tunnel::{Attempted, PathOpened};
use crate::proto::backoff::Backoff;

/// Waits between attempts to open a path.
const RETRY: &[Duration] =
    &[Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// How often a name is looked up again while its path is silent.
const LOOK_UP: Duration = Duration::from_secs(60);

/// The actor.
pub struct TunnelPaths {
    shared: Arc<TunnelShared>,
    opened: Caster<PathOpened>,
    attempted: Caster<Attempted>,
    pending: Vec<Pending>,
    rng: StdRng,
}

/// A path that has to be opened, or whose name to be looked up again.
struct Pending {
    uplink: UplinkId,
    /// When to try. An attempt that ends without a word, because its answer got lost, is followed by another, too.
    at: Instant,
    backoff: Backoff,
    attempt: Option<Task<()>>,
    told: bool,
    last: Option<PathOpened>,
}

impl TunnelPaths {
    pub fn new(shared: Arc<TunnelShared>, opened: Caster<PathOpened>, attempted: Caster<Attempted>) -> Self {
        let now = Instant::now();
        let pending = (0..shared.config.pairs.len() as u8).map(UplinkId).filter_map(|uplink| {
            let place = usize::from(uplink.0);
            let is_open = shared.sockets.load()[place].is_some();
            let is_name = shared.config.pairs[place].server.parse::<std::net::IpAddr>().is_err();
            let at = if is_open { now + LOOK_UP } else { now + RETRY[0] };
            let pending = Pending { uplink, at, backoff: Backoff::new(RETRY), attempt: None, told: false, last: None };
            (!is_open || is_name).then_some(pending)
        });
        let pending = pending.collect();
        let rng = StdRng::from_rng(&mut rand::rng());
        Self { shared, opened, attempted, pending, rng }
    }

    /// Whether something came by a path of late.
    fn is_heard(&self, uplink: UplinkId, now: Instant) -> bool {
        let view = self.shared.view.load();
        let heard = view.paths.iter().find(|path| path.uplink == uplink).and_then(|path| path.meter.heard_ms());
        heard.is_some_and(|ms| now < self.shared.started + Duration::from_millis(ms) + LOOK_UP)
    }
}

impl Actor for TunnelPaths {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Handler<Attempted> for TunnelPaths {
    type Return = ();

    async fn handle(&mut self, Attempted { uplink, result }: Attempted, _: &mut Context<Self>) {
        let now = Instant::now();
        let Some(place) = self.pending.iter().position(|pending| pending.uplink == uplink) else { return };
        let is_name = self.shared.config.pairs[usize::from(uplink.0)].server.parse::<std::net::IpAddr>().is_err();
        let pending = &mut self.pending[place];
        pending.attempt = None;
        match result {
            Ok(opened) => {
                // Refused by a full mailbox it is told again at the next turn.
                pending.last = (!self.opened.cast(opened.clone())).then_some(opened);
                pending.backoff.reset();
                pending.at = now + if pending.last.is_some() { RETRY[0] } else { LOOK_UP };
                if pending.last.is_none() && !is_name {
                    self.pending.remove(place);
                }
            }
            Err(why) => {
                if !std::mem::replace(&mut pending.told, true) {
                    self.shared.events.say(format!("{why}; it is tried again"));
                }
                pending.at = now + pending.backoff.next(&mut self.rng);
            }
        }
    }
}

super::ext::answers_pings!(TunnelPaths);

impl Service for TunnelPaths {
    const NAME: &'static str = "tunnel_paths";

    fn next_timeout(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.at).min()
    }

    fn on_timeout(&mut self, now: Instant) {
        for place in 0..self.pending.len() {
            let uplink = self.pending[place].uplink;
            if now < self.pending[place].at {
                continue;
            }
            self.pending[place].at = now + LOOK_UP;
            if self.pending[place].attempt.as_ref().is_some_and(|attempt| !attempt.is_finished()) {
                continue;
            }
            let socket = self.shared.sockets.load()[usize::from(uplink.0)].clone();
            if socket.is_some() && self.pending[place].last.is_none() && self.is_heard(uplink, now) {
                continue;
            }
            let (pair, port) = (self.shared.config.pairs[usize::from(uplink.0)].clone(), self.shared.config.port);
            let attempted = self.attempted.clone();
            // Looking up a name may take as long as it likes.
            self.pending[place].attempt = Some(smol::unblock(move || {
                let result =
                    match socket {
                        Some(socket) => super::tunnel_system::resolve(&pair, port)
                            .map(|remote: SocketAddr| PathOpened { uplink, socket, remote }),
                        None => open_path(uplink, &pair, port),
                    };
                attempted.cast(Attempted { uplink, result });
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::{ArcSwap, ArcSwapOption};
    use xtra::Mailbox;

    use super::*;
    use crate::config::tunnel::{PathPair, TunnelConfig};
    use crate::proto::tunnel::{End, Tunnel as Core};

    fn shared() -> Arc<TunnelShared> {
        let started = Instant::now();
        // An address that this machine does not have (RFC 5737): every attempt fails.
        let pair = PathPair { bind: [192, 0, 2, 1].into(), server: "127.0.0.1".into() };
        let config = TunnelConfig {
            end: End::Client,
            addresses: Vec::new(),
            listen: Vec::new(),
            pairs: vec![pair],
            port: 9,
            waits: false,
            timeout: LOOK_UP,
            keys: None,
            control: None,
            scorecard: None,
            metrics: None,
            graphviz: None,
        };
        Arc::new(TunnelShared {
            core: std::sync::Mutex::new(Core::plain(End::Client, config.timeout, started)),
            config,
            sockets: ArcSwap::from_pointee(vec![None]),
            tun: ArcSwapOption::empty(),
            view: ArcSwap::default(),
            counters: Arc::default(),
            events: super::super::client::EventLog::default(),
            started,
            end: smol::channel::bounded(1).0,
        })
    }

    #[test]
    fn a_path_is_tried_again_though_the_answer_of_an_attempt_got_lost() {
        let shared = shared();
        // Nobody will ever read what is told.
        let (address, mailbox) = Mailbox::<TunnelPaths>::bounded(1);
        drop(mailbox);
        let (tunnel, mailbox) = Mailbox::<super::super::tunnel::Tunnel>::bounded(1);
        drop(mailbox);
        let lost = Caster::new(address, shared.counters.clone());
        let mut paths = TunnelPaths::new(shared.clone(), Caster::new(tunnel, shared.counters.clone()), lost);
        for attempt in 1..=3 {
            let due = paths.next_timeout().expect("a time for the next attempt");
            paths.on_timeout(due);
            let begun = Instant::now();
            while shared.counters.drops(crate::counters::DropReason::NoActor) < attempt
                || !paths.pending[0].attempt.as_ref().is_some_and(Task::is_finished)
            {
                assert!(begun.elapsed() < Duration::from_secs(10), "attempt {attempt} was not made");
                std::thread::yield_now();
            }
            let next = paths.next_timeout().expect("another");
            assert!(next > due && next <= due + LOOK_UP, "{:?} after attempt {attempt}", next - due);
        }
    }
}
