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
        self.pending.iter().filter(|pending| pending.attempt.is_none()).map(|pending| pending.at).min()
    }

    fn on_timeout(&mut self, now: Instant) {
        for place in 0..self.pending.len() {
            let uplink = self.pending[place].uplink;
            if self.pending[place].attempt.is_some() || now < self.pending[place].at {
                continue;
            }
            let socket = self.shared.sockets.load()[usize::from(uplink.0)].clone();
            if socket.is_some() && self.pending[place].last.is_none() && self.is_heard(uplink, now) {
                self.pending[place].at = now + LOOK_UP;
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
                attempted.cast(Attempted { uplink, result: result.map_err(|error| error.to_string()) });
            }));
        }
    }
}
