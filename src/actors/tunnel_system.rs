//! The wiring of a tunnel: what its actors share, and how it starts and ends.
//!
//! Bottom to top: tunnel_paths (a client's), tunnel (data thread), stats, metrics, control; the same supervisor, threads
//! and outputs as for a server or a client.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Result;
use arc_swap::{ArcSwap, ArcSwapOption};
use smol::channel::{Receiver, Sender};
use xtra::Mailbox;

use super::client::{Ending, EventLog};
use super::control::Control;
use super::ext::Caster;
use super::stats::{Outputs, Stats};
use super::supervisor::{Policy, Supervisor};
use super::system::{EDGE_MAILBOX, Orders, SOCKET_BUFFER, Threads, metrics_page, wire_metrics};
use super::tunnel::Tunnel;
use super::tunnel_paths::TunnelPaths;
use crate::config::tunnel::{PathPair, TUNNEL_CONTROL, TunnelConfig};
use crate::counters::Counters;
use crate::ids::UplinkId;
use crate::io::clock::unix_time;
use crate::io::control_socket::ControlListener;
use crate::io::names::look_up;
use crate::io::netlink::{Netlink, NetlinkError, keep_addresses};
use crate::io::tap::TapError;
use crate::io::tun::Tun;
use crate::io::udp::UdpUplink;
use crate::messages::tunnel::{PathOpened, SocketTrouble};
use crate::proto::session::Session;
use crate::proto::tunnel::{End, Native, PathDescription, Tunnel as Core};
use crate::report;
use crate::report::snapshot::{Sampler, Source};

/// The device's name: the first that is free, as multi_tun has it.
const DEVICE: &str = "tun%d";

/// Held by the wiring, lent to every actor of a tunnel.
pub struct TunnelShared {
    pub config: TunnelConfig,
    /// Locked by the tunnel only, whose restart it outlives.
    pub core: Mutex<Core>,
    /// By the numbers of their uplinks; the tunnel writes them.
    pub sockets: ArcSwap<Vec<Option<Arc<UdpUplink>>>>,
    pub tun: ArcSwapOption<Tun>,
    pub view: ArcSwap<TunnelView>,
    pub counters: Arc<Counters>,
    pub events: EventLog,
    pub started: Instant,
    /// Ends the node.
    pub end: Sender<Ending>,
}

/// The paths as the tunnel last published them.
#[derive(Default)]
pub struct TunnelView {
    pub paths: Vec<PathDescription>,
    /// Of our own protocol.
    pub session: Option<Arc<Session>>,
}

/// The device cannot be made or set up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceTrouble {
    #[error(transparent)]
    Tun(#[from] TapError),
    #[error("the device {name} cannot be set up: {source}")]
    Netlink { name: String, source: NetlinkError },
}

/// Makes the device and gives it its addresses.
///
/// # Errors
/// When the kernel refuses either.
pub async fn open_device(config: &TunnelConfig) -> Result<Tun, DeviceTrouble> {
    let tun = Tun::open(DEVICE, config.mtu())?;
    let failed = |source| DeviceTrouble::Netlink { name: tun.name().to_owned(), source };
    let netlink = Netlink::open().map_err(failed)?;
    if config.addresses.iter().any(|(address, _)| address.is_ipv6())
        && let Err(error) = keep_addresses(tun.name())
    {
        log::debug!("{}: its IPv6 address will not outlive the device being down: {error}", tun.name());
    }
    for (address, prefix) in &config.addresses {
        netlink.add_address(tun.ifindex(), *address, *prefix).await.map_err(failed)?;
    }
    netlink.set_up(tun.ifindex()).await.map_err(failed)?;
    Ok(tun)
}

/// The server's address for a pair; waits for the resolver.
///
/// # Errors
/// When the name is not known, or only by addresses of the other family.
pub fn resolve(pair: &PathPair, port: u16) -> Result<SocketAddr, SocketTrouble> {
    let name = &pair.server;
    let unknown = |source| SocketTrouble::Unknown { name: name.clone(), source };
    let found = look_up(name, port).map_err(unknown)?;
    found.into_iter().find(|addr| addr.is_ipv4() == pair.bind.is_ipv4()).ok_or_else(|| {
        let (name, bind) = (name.clone(), pair.bind);
        SocketTrouble::OtherFamily { name, bind }
    })
}

/// Opens a client's path; waits for the resolver. The port is any, so that two paths of one address differ.
///
/// # Errors
/// When the server's name is not known, or the address not (or not yet) one of this machine.
pub fn open_path(uplink: UplinkId, pair: &PathPair, port: u16) -> Result<PathOpened, SocketTrouble> {
    let remote = resolve(pair, port)?;
    let socket = Arc::new(UdpUplink::bind(uplink, SocketAddr::new(pair.bind, 0), SOCKET_BUFFER)?);
    Ok(PathOpened { uplink, socket, remote })
}

/// Runs a tunnel until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or ended it: one line that says what to do. [`SocketTrouble`] if it is that.
pub fn run_tunnel(config: TunnelConfig) -> Result<()> {
    let control = control(&config)?.map(Arc::new);
    let metrics = metrics_page(config.metrics)?;
    let (shared, ends) = shared(config)?;
    let threads = Threads::start()?;
    let supervisor = Supervisor::new();
    let sampler = Arc::new(Sampler::new(Source::Tunnel(shared.clone()), supervisor.clone(), shared.started));
    wire(&shared, &supervisor, &threads, &sampler, control);
    if let Some(page) = metrics {
        wire_metrics(&supervisor, &threads, page, sampler.clone());
    }
    let orders = Orders {
        status: Box::new(move || report::json::status(&sampler.take(Instant::now()))),
        load: Arc::new(|| Ok(())),
        take: Box::new(|()| log::info!("SIGHUP: a tunnel has no configuration file")),
    };
    let lent = shared.clone();
    let ended = threads.run(&supervisor, &ends, orders, move || line(&lent));
    shared.tun.store(None);
    ended
}

/// The control socket. Several tunnels may run on a machine: the first has the default one, if no other is named.
fn control(config: &TunnelConfig) -> Result<Option<ControlListener>> {
    if let Some(path) = &config.control {
        return Ok(Some(ControlListener::bind(path)?));
    }
    let bound = ControlListener::bind(TUNNEL_CONTROL).inspect_err(|error| {
        log::warn!("this tunnel answers no `eps-actor status`, since no --control is given: {error}");
    });
    Ok(bound.ok())
}

fn shared(config: TunnelConfig) -> Result<(Arc<TunnelShared>, Receiver<Ending>)> {
    let now = Instant::now();
    let mut core = core(&config, now);
    // The sockets first: whoever has none leaves no device behind.
    let mut sockets = Vec::new();
    let events = EventLog::default();
    for (number, ip) in config.listen.iter().enumerate() {
        let uplink = UplinkId(number as u8);
        let bound = UdpUplink::bind(uplink, SocketAddr::new(*ip, config.port), SOCKET_BUFFER);
        sockets.push(Some(Arc::new(bound.map_err(SocketTrouble::from)?)));
    }
    let mut trouble = None;
    for (number, pair) in config.pairs.iter().enumerate() {
        let uplink = UplinkId(number as u8);
        let opened = open_path(uplink, pair, config.port);
        core.add_path(uplink, opened.as_ref().ok().map(|opened| opened.remote), now);
        match opened {
            Ok(opened) => sockets.push(Some(opened.socket)),
            Err(error) => {
                events.say(format!("the path from {} to {} waits: {error}", pair.bind, pair.server));
                sockets.push(None);
                trouble = trouble.or(Some(error));
            }
        }
    }
    if let Some(trouble) = trouble.filter(|_| sockets.iter().all(Option::is_none)) {
        return Err(trouble.into());
    }
    let tun = smol::block_on(open_device(&config))?;
    let (end, ends) = smol::channel::bounded(4);
    let view = TunnelView { paths: core.poll_changed().unwrap_or_default(), session: None };
    let shared = TunnelShared {
        config,
        core: Mutex::new(core),
        sockets: ArcSwap::from_pointee(sockets),
        tun: ArcSwapOption::from_pointee(tun),
        view: ArcSwap::from_pointee(view),
        counters: Arc::default(),
        events,
        started: now,
        end,
    };
    Ok((Arc::new(shared), ends))
}

fn core(config: &TunnelConfig, now: Instant) -> Core {
    let Some(keys) = &config.keys else { return Core::plain(config.end, config.timeout, now) };
    // Above that of every earlier start, as long as the clock goes forward; nothing is kept on disk.
    let boot = unix_time().as_micros();
    let boot = u64::try_from(boot).unwrap_or(u64::MAX);
    let native = Native::new(config.end, keys, boot, usize::from(config.mtu()), rand::random(), now);
    Core::native(native, config.timeout, now)
}

fn wire(
    shared: &Arc<TunnelShared>,
    supervisor: &Supervisor,
    threads: &Threads,
    sampler: &Arc<Sampler>,
    control: Option<Arc<ControlListener>>,
) {
    let counters = &shared.counters;
    let (tunnel, tunnel_mailbox) = Mailbox::<Tunnel>::bounded(EDGE_MAILBOX.max(shared.config.pairs.len() * 2));
    if shared.config.end == End::Client {
        let (paths, mailbox) = Mailbox::<TunnelPaths>::bounded(EDGE_MAILBOX.max(shared.config.pairs.len() * 2));
        let opened = Caster::new(tunnel.clone(), counters.clone());
        let attempted = Caster::new(paths.clone(), counters.clone());
        let lent = shared.clone();
        let factory = move || TunnelPaths::new(lent.clone(), opened.clone(), attempted.clone());
        supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
        threads.keep(paths);
    }
    let lent = shared.clone();
    supervisor.supervise(&threads.data, tunnel_mailbox, move || Tunnel::new(lent.clone()), Policy::RESTART);
    threads.keep(tunnel);

    let (stats, mailbox) = Mailbox::<Stats>::bounded(EDGE_MAILBOX);
    let (scorecard, map) = (shared.config.scorecard.clone(), shared.config.graphviz.clone());
    let outputs = Outputs { log: false, scorecard, map };
    let lent = sampler.clone();
    let factory = move || Stats::new(lent.clone(), outputs.clone());
    supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
    threads.keep(stats);

    let Some(control) = control else { return };
    let (address, mailbox) = Mailbox::<Control>::bounded(EDGE_MAILBOX);
    let (asked, guard) = (sampler.clone(), supervisor.clone());
    let answer: super::control::Answer =
        Arc::new(move |request| report::tunnel::answer(request, guard.clone(), asked.clone()));
    let factory = move || Control::new(control.clone(), answer.clone());
    supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
    threads.keep(address);
}

/// A tunnel in a few words.
fn line(shared: &TunnelShared) -> String {
    let view = shared.view.load();
    let failing = view.paths.iter().filter(|path| path.failure.is_some() || path.remote.is_none()).count();
    let device = shared.tun.load().as_ref().map_or_else(|| "no device".to_owned(), |tun| tun.name().to_owned());
    format!("{device}: {} paths, {failing} of them fail", view.paths.len())
}
