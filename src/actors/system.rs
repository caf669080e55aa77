//! The wiring: every mailbox, handle and actor of a node, bottom to top, and its end.
//!
//! Calls go down this list only; what goes up is a cast. Data-plane actors run on a thread of their own, so that a
//! handshake's arithmetic never delays a frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use futures_lite::future;
use smol::Executor;
use smol::channel::{Receiver, Sender};
use xtra::{Address, Mailbox};

use super::client::{ClientShared, Ending, EventLog, SavedNetwork, next_boot, node_key};
use super::cloud::{CloudShared, CloudViews};
use super::cloud_bridge::{BridgeState, CloudBridge, CloudPort};
use super::cloud_path::CloudEgress;
use super::cloud_system::{cloud_uplinks, wire_ends};
use super::control::Control;
use super::coordinator::{Coordinator, CoordinatorCasts, ServerShared, pool};
use super::datapath::{Egress, Ingress, IngressCasts, Views, hint_budget};
use super::ext::{Caster, cast};
use super::mac_learning::MacLearning;
use super::metrics::Metrics;
use super::names::Names;
use super::neighbours::{Neighbours, NeighboursCasts};
use super::observer::Observer;
use super::peer_table::{PeerTable, PeerTableCasts};
use super::relay::Relay;
use super::routes::Routes;
use super::server_link::{ServerLink, ServerLinkCasts, publish_lease};
use super::service_manager;
use super::stats::{Outputs, Stats};
use super::store::{Desk, Store};
use super::supervisor::{Policy, Supervisor};
use super::tap_reader::TapReader;
use super::tcp_dial::TcpDial;
use super::tcp_path::TcpPath;
use super::udp_path::{Reception, ServerIngress, UdpPath};
use super::uplink_keeper::{Held, UplinkKeeper};
use super::upnp::{GatewayCell, Upnp, UpnpCasts, UpnpShared};
use super::words::Words;
use crate::cli::reply::Status;
use crate::config::{CLIENT_LIVE, ClientConfig, ConfigError, SERVER_LIVE, ServerConfig};
use crate::counters::Counters;
use crate::ids::{NetworkId, UplinkId};
use crate::io::batch::SendBatch;
use crate::io::clock::unix_time;
use crate::io::control_socket::ControlListener;
use crate::io::files::{FileError, StateDir};
use crate::io::http::PageListener;
use crate::io::notify::{Notifier, Word};
use crate::io::poll;
use crate::io::signals::{Asked, NodeSignals};
use crate::io::store::SqliteStore;
use crate::io::tap::{Tap, TapConfig};
use crate::io::tap_slot::TapSlot;
use crate::io::tcp::{TcpListen, TcpTx};
pub(super) use crate::io::udp::SOCKET_BUFFER;
use crate::io::udp::{BindError, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::logging;
use crate::messages::coordinator::Reconfigure;
use crate::messages::mac_learning::Moved;
use crate::messages::peer_table::{Neighbour, Want};
use crate::messages::server_link::MappingChanged;
use crate::proto::crypto::{Trust, enrol_mac1_key, mac1_key};
use crate::proto::gateway::Wish;
use crate::proto::link::no_psk;
use crate::proto::noise::Identity;
use crate::proto::relaying::RelayView;
use crate::proto::session::Epoch;
use crate::report;
use crate::report::snapshot::{Sampler, Source};
use crate::view::FdbView;
use crate::wire::join::{HostPort, fingerprint};
use crate::wire::natpmp::Transport;

/// Messages a control actor's mailbox holds; above it, casts are refused and counted.
pub(super) const MAILBOX: usize = 1024;
/// Messages of an edge actor, which gets few.
pub(super) const EDGE_MAILBOX: usize = 64;
/// Of a socket that gets a question now and then.
const SMALL_BUFFER: usize = 256 << 10;
/// All goodbyes must be said within this, to end within a second.
const STOP_WITHIN: Duration = Duration::from_millis(700);

/// Runs a client until it is told to stop. `load` reads the configuration again.
///
/// # Errors
///
/// What keeps it from starting, or ended it: one line that says what to do.
pub fn run_client(
    config: ClientConfig,
    load: impl Fn() -> Result<ClientConfig, ConfigError> + Send + Sync + 'static,
) -> Result<()> {
    // Before anything is written or an invitation used: can this process have a TAP at all?
    drop(Tap::open(&tap_config(&config))?);
    let state = state_dir(&config.state)?;
    let _lock = state.lock()?;
    let control = Arc::new(ControlListener::bind(&config.control)?);
    let metrics = metrics_page(config.metrics)?;
    let (shared, ends) = client_shared(config, state)?;
    let threads = Threads::start()?;
    let supervisor = Supervisor::new();
    let sampler = wire_client(&shared, &supervisor, &threads, control, metrics);
    let mut current = shared.config.clone();
    let orders = Orders {
        status: Box::new(move || report::json::status(&sampler.take(Instant::now()))),
        load: Arc::new(load),
        take: Box::new(move |newer: ClientConfig| {
            let differing = current.differing(&newer);
            current.log_level = newer.log_level;
            logging::set_level(newer.log_level);
            say_taken(&differing, CLIENT_LIVE);
        }),
    };
    let lent = shared.clone();
    let ended = threads.run(&supervisor, &ends, orders, move || service_manager::client_line(&lent));
    shared.slot.set(None);
    ended
}

/// The device a client makes; its MAC is the lease's.
fn tap_config(config: &ClientConfig) -> TapConfig {
    let ClientConfig { device, mtu, offload, .. } = config;
    TapConfig { name: device.clone(), mac: None, mtu: *mtu, offload: *offload, multi_queue: false }
}

/// The state directory; without the right to make it, the advice is here, where its option is known.
fn state_dir(path: &std::path::Path) -> Result<StateDir> {
    StateDir::open_or_create(path).map_err(|error| match &error {
        FileError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{error}; run it as root (sudo), or name a directory of your own with --state")
        }
        _ => error.into(),
    })
}

fn client_shared(mut config: ClientConfig, state: StateDir) -> Result<(Arc<ClientShared>, Receiver<Ending>)> {
    let saved = SavedNetwork::load(&state)?;
    if config.join.is_none() && saved.is_none() {
        bail!(
            "this machine is in no network yet: start it once with a join line, `eps-actor client --join 'eps://…'` \
             (the server prints one at its first start, and `eps-actor invite` there makes more)"
        );
    }
    if config.servers.is_empty() {
        let known = saved.iter().flat_map(|saved| &saved.servers);
        config.servers = known.filter_map(|text| HostPort::parse(text, config.port).ok()).collect();
    }
    if config.servers.is_empty() {
        bail!("no server is known: give one with --server HOST, or join again with --join");
    }
    let secret = node_key(&state, "node.key")?;
    let key = Identity::from_secret(secret.clone()).public;
    let boot = next_boot(&state, unix_time().as_secs());
    let counters = Arc::new(Counters::default());
    let uplinks = client_uplinks(&config, &state, &counters)?;
    let now = Instant::now();
    let views = Views {
        epoch: Epoch(now),
        peers: Arc::default(),
        fdb: Arc::new(ArcSwap::from_pointee(FdbView::empty(now))),
        own: Arc::default(),
        server: Arc::default(),
        counters,
    };
    let (end, ends) = smol::channel::bounded(4);
    let pinned = saved.as_ref().and_then(SavedNetwork::pinned);
    let joins_anew =
        config.join.as_ref().zip(pinned).is_some_and(|(line, p)| fingerprint(&p.server) != line.fingerprint);
    if joins_anew {
        // Another network: what is known of the old one is kept aside, and so is its key's lease.
        let aside = state.set_aside(super::client::NETWORK_FILE)?;
        log::info!("joining another network; what was known of the old one is kept as {}", aside.display());
        let _ = state.set_aside(super::client::MAP_FILE);
    }
    let pinned = pinned.filter(|_| !joins_anew);
    let shared = Arc::new(ClientShared {
        name: ArcSwap::from_pointee(config.name.clone()),
        config,
        state,
        secret,
        key,
        boot,
        sequence: Arc::default(),
        views,
        uplinks,
        slot: TapSlot::default(),
        lease: Arc::new(ArcSwapOption::empty()),
        peers: ArcSwap::default(),
        pinned: ArcSwap::from_pointee(pinned),
        map_version: Arc::new(AtomicU64::new(0)),
        events: EventLog::default(),
        modes: ArcSwap::default(),
        routes: ArcSwap::default(),
        gateway: GatewayCell::default(),
        nat: ArcSwap::default(),
        candidates: ArcSwap::default(),
        started: now,
        words: Words::default(),
        end,
        cloud: std::sync::OnceLock::new(),
    });
    if let Some(listen) = shared.config.cloud {
        let _ = shared.cloud.set(client_cloud(&shared, listen)?);
    }
    // The lease of the last time brings the device up at once: the server need not be there.
    if let (Some(pinned), Some((certificate, epoch))) = (pinned, saved.as_ref().and_then(SavedNetwork::lease))
        && let Ok(lease) = Trust::new(pinned.network, pinned.signer, epoch).check(&certificate)
    {
        publish_lease(&shared, &lease);
    }
    Ok((shared, ends))
}

/// The end of an ethcloud that a client bridges.
fn client_cloud(shared: &Arc<ClientShared>, listen: SocketAddr) -> Result<Arc<CloudShared>> {
    let counters = &shared.views.counters;
    let uplinks = cloud_uplinks(listen, counters)?;
    let views = CloudViews::new(shared.config.cloud_token, shared.started, counters.clone(), true);
    let state = BridgeState::new(shared.key, shared.views.own.clone(), shared.started);
    let told = Arc::downgrade(shared);
    Ok(Arc::new(CloudShared {
        views,
        uplinks,
        slot: shared.slot.clone(),
        connect: shared.config.cloud_connect.clone(),
        peer_timeout: shared.config.cloud_peer_timeout,
        mac_timeout: shared.config.cloud_mac_timeout,
        bridge: Some(Arc::new(state)),
        say: Arc::new(move |kind, text, now| {
            if let Some(shared) = told.upgrade() {
                shared.events.say_limited(kind, text, now);
            }
        }),
    }))
}

/// The client's sockets. The port of the last time is taken again if it is free, so that peers find us where we were.
fn client_uplinks(config: &ClientConfig, state: &StateDir, counters: &Arc<Counters>) -> Result<Uplinks> {
    const PORT_FILE: &str = "port";
    let kept = state.read(PORT_FILE).ok().flatten();
    let kept = kept.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse::<u16>().ok()).unwrap_or(0);
    let wanted = if config.listen_port != 0 { config.listen_port } else { kept };
    let any4 = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let udp4 = match UdpUplink::bind(UplinkId::UDP4, any4(wanted), SOCKET_BUFFER) {
        Err(BindError::PortInUse { .. }) if config.listen_port == 0 => {
            UdpUplink::bind(UplinkId::UDP4, any4(0), SOCKET_BUFFER)
        }
        bound => bound,
    }?;
    let port = udp4.local_addr().port();
    let any6 = |port| SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let udp6 = UdpUplink::bind(UplinkId::UDP6, any6(port), SOCKET_BUFFER)
        .or_else(|_| UdpUplink::bind(UplinkId::UDP6, any6(0), SOCKET_BUFFER));
    let udp6 = udp6.inspect_err(|error| log::debug!("no IPv6 underlay: {error}")).ok();
    if port != kept
        && let Err(error) = state.write_atomic(PORT_FILE, format!("{port}\n").as_bytes())
    {
        log::debug!("the port is not kept for the next start: {error}");
    }
    let tcp = config.tcp.then(TcpTx::default);
    Ok(Uplinks::new(Some(Arc::new(udp4)), udp6.map(Arc::new), tcp, counters.clone()))
}

fn wire_client(
    shared: &Arc<ClientShared>,
    supervisor: &Supervisor,
    threads: &Threads,
    control: Arc<ControlListener>,
    metrics: Option<Arc<PageListener>>,
) -> Arc<Sampler> {
    let counters = shared.views.counters.clone();
    let (fdb, fdb_mailbox) = Mailbox::<MacLearning>::bounded(MAILBOX);
    let (peers, peers_mailbox) = Mailbox::<PeerTable>::bounded(MAILBOX);
    let (server, server_mailbox) = Mailbox::<ServerLink>::bounded(MAILBOX);
    let (tap, tap_mailbox) = Mailbox::<TapReader>::bounded(EDGE_MAILBOX);
    let (dial, dial_mailbox) = Mailbox::<TcpDial>::bounded(EDGE_MAILBOX);
    let (stats, stats_mailbox) = Mailbox::<Stats>::bounded(EDGE_MAILBOX);
    let (control_address, control_mailbox) = Mailbox::<Control>::bounded(EDGE_MAILBOX);
    let (routes, routes_mailbox) = Mailbox::<Routes>::bounded(EDGE_MAILBOX);

    // The first to start is the last to stop: the gateway is asked to delete what it maps when all else is done.
    if let Some(lent) = client_upnp(shared) {
        let changed = Some(Caster::new(server.clone(), counters.clone()));
        wire_upnp(lent, changed, supervisor, threads, &counters);
    }

    let view = shared.views.fdb.clone();
    supervisor.supervise(&threads.control, fdb_mailbox, move || MacLearning::new(view.clone()), Policy::RESTART);

    let peer_casts = PeerTableCasts {
        say: Caster::new(server.clone(), counters.clone()),
        map_at: Caster::new(server.clone(), counters.clone()),
        stats: Caster::new(server.clone(), counters.clone()),
        members: Caster::new(fdb.clone(), counters.clone()),
        punched: Caster::new(peers.clone(), counters.clone()),
        woken: Caster::new(server.clone(), counters.clone()),
        looked: Caster::new(peers.clone(), counters.clone()),
    };
    let lent = shared.clone();
    let factory = move || PeerTable::new(lent.clone(), peer_casts.clone());
    supervisor.supervise(&threads.control, peers_mailbox, factory, Policy::RESTART);

    let link_casts = ServerLinkCasts {
        joined: Caster::new(peers.clone(), counters.clone()),
        from_server: Caster::new(peers.clone(), counters.clone()),
        place: Caster::new(peers.clone(), counters.clone()),
        candidates: Caster::new(peers.clone(), counters.clone()),
        nat: Caster::new(peers.clone(), counters.clone()),
        configure: Caster::new(tap.clone(), counters.clone()),
        uplinks: Caster::new(peers.clone(), counters.clone()),
        connect: shared
            .uplinks
            .tcp()
            .map(|_| (Caster::new(dial.clone(), counters.clone()), Caster::new(dial.clone(), counters.clone()))),
        table: Caster::new(routes.clone(), counters.clone()),
        own: (
            Caster::new(server.clone(), counters.clone()),
            Caster::new(server.clone(), counters.clone()),
            Caster::new(server.clone(), counters.clone()),
        ),
    };
    let lent = shared.clone();
    let factory = move || ServerLink::new(lent.clone(), link_casts.clone());
    supervisor.supervise(&threads.control, server_mailbox, factory, Policy::RESTART);

    if shared.config.direct && shared.config.lan_discovery {
        wire_neighbours(shared, Caster::new(peers.clone(), counters.clone()), supervisor, threads);
    }

    let want = Caster::new(peers.clone(), counters.clone());
    let moved = Caster::new(fdb.clone(), counters.clone());
    let port = wire_bridge(shared, supervisor, threads, &want, moved);
    let (lent, to_cloud) = (shared.clone(), port.clone());
    let factory = move || {
        let egress =
            Egress::new(lent.views.clone(), lent.uplinks.clone(), want.clone(), lent.slot.tx()).with_cloud(to_cloud());
        let device = tap_config(&lent.config);
        let (counters, map) = (lent.views.counters.clone(), lent.map_version.clone());
        TapReader::new(lent.slot.clone(), lent.lease.clone(), map, device, egress, counters, lent.end.clone())
    };
    supervisor.supervise(&threads.data, tap_mailbox, factory, Policy::RESTART);

    if !shared.config.uplinks.is_empty() {
        let (keeper, mailbox) = Mailbox::<UplinkKeeper>::bounded(EDGE_MAILBOX);
        let changed = Caster::new(peers.clone(), counters.clone());
        let (lent, own) = (shared.clone(), Caster::new(keeper.clone(), counters.clone()));
        let held = Held::default();
        let factory = move || UplinkKeeper::new(lent.clone(), held.clone(), changed.clone(), own.clone());
        supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
        threads.keep(keeper);
    }

    let table = peers.clone();
    let casts = IngressCasts {
        inbound: Caster::new(peers.clone(), counters.clone()),
        control: Caster::new(peers.clone(), counters.clone()),
        confirmed: Caster::new(peers.clone(), counters.clone()),
        seen: Caster::new(peers, counters.clone()),
        server_inbound: Caster::new(server.clone(), counters.clone()),
        server_control: Caster::new(server.clone(), counters.clone()),
        learn: Caster::new(fdb, counters.clone()),
    };
    let key = mac1_key(&shared.key, &no_psk());
    // Whichever socket a frame comes by, it may go on to the cloud.
    let ingress = move |lent: &ClientShared| {
        Ingress::new(lent.views.clone(), lent.uplinks.clone(), casts.clone(), lent.slot.tx(), key).with_cloud(port())
    };
    if let Some(tcp) = shared.uplinks.tcp() {
        let (lent, ingress, connected) =
            (shared.clone(), ingress.clone(), Caster::new(server.clone(), counters.clone()));
        let factory = move || {
            let ingress = ingress(&lent);
            TcpDial::new(tcp.clone(), Box::new(ingress), lent.views.counters.clone(), connected.clone())
        };
        supervisor.supervise(&threads.data, dial_mailbox, factory, Policy::RESTART);
        threads.keep(dial);
    }
    let (lent, supervised, data) = (Arc::downgrade(shared), supervisor.clone(), threads.data.clone());
    shared.uplinks.read_with(Box::new(move |uplink| {
        // The sockets hold their readers, so the readers' maker must not hold the sockets.
        let (Some(lent), (address, mailbox)) = (lent.upgrade(), Mailbox::<UdpPath>::bounded(EDGE_MAILBOX)) else {
            return Box::new(());
        };
        let (ingress, counters) = (ingress.clone(), lent.views.counters.clone());
        let factory =
            move || UdpPath::new(uplink.clone(), counters.clone(), Reception::Client(Box::new(ingress(&lent))));
        Box::new((supervised.supervise_while(&data, mailbox, factory, Policy::RESTART), address))
    }));

    let (names, names_mailbox) = Mailbox::<Names>::bounded(EDGE_MAILBOX);
    let lent = shared.clone();
    supervisor.supervise(&threads.control, names_mailbox, move || Names::new(lent.clone()), Policy::RESTART);

    let offer = Caster::new(server.clone(), counters.clone());
    let (lent, look) = (shared.clone(), Caster::new(routes.clone(), counters.clone()));
    let factory = move || Routes::new(lent.clone(), offer.clone(), look.clone());
    supervisor.supervise(&threads.control, routes_mailbox, factory, Policy::RESTART);

    let sampler = Arc::new(Sampler::new(Source::Client(shared.clone()), supervisor.clone(), shared.started));
    let config = &shared.config;
    let outputs = Outputs {
        log: config.stats,
        scorecard: config.scorecard.clone().map(|path| (path, config.scorecard_format)),
        map: None,
    };
    let lent = sampler.clone();
    let factory = move || Stats::new(lent.clone(), outputs.clone());
    supervisor.supervise(&threads.control, stats_mailbox, factory, Policy::RESTART);
    if let Some(page) = metrics {
        wire_metrics(supervisor, threads, page, sampler.clone());
    }

    let (lent, guard) = (shared.clone(), supervisor.clone());
    let (asked, to) = (sampler.clone(), (server.clone(), table.clone()));
    let answer: super::control::Answer =
        Arc::new(move |request| report::answer_client(request, lent.clone(), guard.clone(), asked.clone(), to.clone()));
    let factory = move || Control::new(control.clone(), answer.clone());
    supervisor.supervise(&threads.control, control_mailbox, factory, Policy::RESTART);
    threads.keep(tap);
    threads.keep(names);
    threads.keep(routes);
    threads.keep(server);
    threads.keep(stats);
    threads.keep(control_address);
    sampler
}

/// Wires the ethcloud that a client bridges, if it does; what makes the way there, for whoever has frames.
fn wire_bridge(
    shared: &Arc<ClientShared>,
    supervisor: &Supervisor,
    threads: &Threads,
    want: &Caster<Want>,
    moved: Caster<Moved>,
) -> impl Fn() -> Option<CloudPort> + Clone + Send + Sync + 'static {
    let wired = shared.cloud.get().and_then(|cloud| Some((cloud.clone(), cloud.bridge.clone()?)));
    let wired = wired.map(|(cloud, state)| {
        let (lent, want) = (shared.clone(), want.clone());
        let mesh = move || Egress::new(lent.views.clone(), lent.uplinks.clone(), want.clone(), lent.slot.tx());
        state.tell_with(mesh());
        let (views, held) = (shared.views.clone(), state.clone());
        let casts = wire_ends(&cloud, supervisor, threads, move || {
            Some(CloudBridge::new(held.clone(), views.clone(), mesh(), moved.clone()))
        });
        (cloud, state, casts)
    });
    move || {
        let (cloud, state, casts) = wired.as_ref()?;
        let egress = CloudEgress::new(cloud.views.clone(), cloud.uplinks.clone());
        Some(CloudPort::new(state.clone(), egress, casts.clone()))
    }
}

/// The page that Prometheus reads, where one is wanted.
pub(super) fn metrics_page(address: Option<SocketAddr>) -> Result<Option<Arc<PageListener>>> {
    Ok(address.map(PageListener::bind).transpose()?.map(Arc::new))
}

pub(super) fn wire_metrics(supervisor: &Supervisor, threads: &Threads, page: Arc<PageListener>, sampler: Arc<Sampler>) {
    let (address, mailbox) = Mailbox::<Metrics>::bounded(EDGE_MAILBOX);
    threads.keep(address);
    let factory = move || Metrics::new(page.clone(), sampler.clone());
    supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
}

/// Runs a server until it is told to stop. `load` reads the configuration again.
///
/// # Errors
///
/// What keeps it from starting, or ended it: one line that says what to do.
pub fn run_server(
    config: ServerConfig,
    load: impl Fn() -> Result<ServerConfig, ConfigError> + Send + Sync + 'static,
) -> Result<()> {
    // Everything that can be refused is tried before anything is written: the pool, then the ports.
    pool(&config, NetworkId(0))?;
    let counters = Arc::new(Counters::default());
    let (uplinks, listen) = server_uplinks(&config, &counters)?;
    let state = state_dir(&config.state)?;
    let _lock = state.lock()?;
    let control = Arc::new(ControlListener::bind(&config.control)?);
    let metrics = metrics_page(config.metrics)?;
    let secrets = (node_key(&state, "node.key")?, node_key(&state, "signing.key")?);
    let database = state.file("network.db");
    let store = Arc::new(smol::block_on(SqliteStore::open(&database))?);
    let (end, ends) = smol::channel::bounded(4);
    let shared = Arc::new(ServerShared {
        live: ArcSwap::from_pointee(config.clone()),
        config,
        secrets,
        members: Arc::default(),
        uplinks,
        counters,
        description: ArcSwap::from_pointee(None),
        events: EventLog::default(),
        gateway: GatewayCell::default(),
        started: Instant::now(),
        end,
    });
    let threads = Threads::start()?;
    let supervisor = Supervisor::new();
    let (coordinator, sampler) =
        wire_server(&shared, &supervisor, &threads, (control, metrics), store.clone(), Arc::new(listen));
    threads.spawn(report::welcome(shared.clone(), coordinator.clone()));
    let to = shared.clone();
    let orders = Orders {
        status: Box::new(move || report::json::status(&sampler.take(Instant::now()))),
        load: Arc::new(load),
        take: Box::new(move |newer: ServerConfig| {
            let current = to.live.load_full();
            let differing = current.differing(&newer);
            logging::set_level(newer.log_level);
            to.live.store(Arc::new(current.taking(&newer)));
            cast(&coordinator, Reconfigure);
            say_taken(&differing, SERVER_LIVE);
        }),
    };
    let ended = threads.run(&supervisor, &ends, orders, move || service_manager::server_line(&shared));
    if let Err(error) = smol::block_on(store.settle()) {
        log::warn!("{error}");
    }
    ended
}

fn server_uplinks(config: &ServerConfig, counters: &Arc<Counters>) -> Result<(Uplinks, TcpListen)> {
    let of = |four: bool| config.listen.iter().filter(|ip| ip.is_ipv4() == four).collect::<Vec<_>>();
    if of(true).len() > 1 || of(false).len() > 1 {
        bail!("listen: at most one IPv4 and one IPv6 address; 0.0.0.0 and :: stand for all of a family");
    }
    let bind = |id, ip: &IpAddr| UdpUplink::bind(id, SocketAddr::new(*ip, config.port), SOCKET_BUFFER);
    let udp4 = of(true).first().map(|ip| bind(UplinkId::UDP4, ip)).transpose()?;
    let udp6 = match of(false).first().map(|ip| bind(UplinkId::UDP6, ip)) {
        Some(Err(BindError::NoFamily { .. })) if udp4.is_some() => {
            log::warn!("this machine has no IPv6; listening on IPv4 only");
            None
        }
        bound => bound.transpose()?,
    };
    let mut listen: Vec<IpAddr> = Vec::new();
    listen.extend(udp4.iter().map(|uplink| uplink.local_addr().ip()));
    listen.extend(udp6.iter().map(|uplink| uplink.local_addr().ip()));
    let tcp = TcpListen::bind(&listen, config.port)?;
    let uplinks = Uplinks::new(udp4.map(Arc::new), udp6.map(Arc::new), Some(tcp.tx()), counters.clone());
    for ip in listen.iter().filter(|_| config.nat_port != 0) {
        let id = if ip.is_ipv4() { UplinkId::OBSERVER4 } else { UplinkId::OBSERVER6 };
        let bound = UdpUplink::bind(id, SocketAddr::new(*ip, config.nat_port), SMALL_BUFFER);
        match bound.map(|uplink| uplinks.add(uplink)) {
            Ok(added) => drop(added.expect("nobody else has its number")),
            // Members do without: they take their routers for easy ones, as most are.
            Err(error) => log::warn!("members cannot find out about their routers: {error} (nat_port)"),
        }
    }
    Ok((uplinks, tcp))
}

fn wire_server(
    shared: &Arc<ServerShared>,
    supervisor: &Supervisor,
    threads: &Threads,
    (control, metrics): (Arc<ControlListener>, Option<Arc<PageListener>>),
    store: Arc<dyn crate::io::store::Store>,
    listen: Arc<TcpListen>,
) -> (Address<Coordinator>, Arc<Sampler>) {
    let counters = shared.counters.clone();
    let relay_view: Arc<ArcSwap<RelayView>> = Arc::default();
    let (store_address, store_mailbox) = Mailbox::<Store>::bounded(MAILBOX);
    let (relay, relay_mailbox) = Mailbox::<Relay>::bounded(MAILBOX);
    let (coordinator, coordinator_mailbox) = Mailbox::<Coordinator>::bounded(MAILBOX);
    let (stats, stats_mailbox) = Mailbox::<Stats>::bounded(EDGE_MAILBOX);
    let (control_address, control_mailbox) = Mailbox::<Control>::bounded(EDGE_MAILBOX);

    if let Some(lent) = server_upnp(shared) {
        wire_upnp(lent, None, supervisor, threads, &counters);
    }

    let stored = Caster::new(coordinator.clone(), counters.clone());
    let desk = Desk::default();
    let factory = move || Store::new(store.clone(), stored.clone(), desk.clone());
    supervisor.supervise(&threads.control, store_mailbox, factory, Policy::RESTART);

    let view = relay_view.clone();
    let published = Caster::new(coordinator.clone(), counters.clone());
    let factory = move || Relay::new(view.clone(), published.clone());
    supervisor.supervise(&threads.control, relay_mailbox, factory, Policy::RESTART);

    let casts = CoordinatorCasts {
        store: store_address.clone(),
        apply: Caster::new(store_address, counters.clone()),
        bind: Caster::new(relay.clone(), counters.clone()),
        place: Caster::new(relay, counters.clone()),
    };
    let lent = shared.clone();
    let factory = move || Coordinator::new(lent.clone(), casts.clone());
    supervisor.supervise(&threads.control, coordinator_mailbox, factory, Policy::RESTART);

    let public = Identity::from_secret(shared.secrets.0.clone()).public;
    let mac1_keys = (mac1_key(&public, &no_psk()), enrol_mac1_key(&fingerprint(&public)));
    let epoch = Epoch(shared.started);
    let key = super::client::seed();
    let (lent, to) = (shared.clone(), coordinator.clone());
    let ingress = move || ServerIngress {
        epoch,
        members: lent.members.clone(),
        relay: relay_view.clone(),
        uplinks: lent.uplinks.clone(),
        counters: lent.counters.clone(),
        inbound: Caster::new(to.clone(), lent.counters.clone()),
        control: Caster::new(to.clone(), lent.counters.clone()),
        mac1_keys,
        tcp: lent.uplinks.tcp(),
        hints: hint_budget(),
        batch: SendBatch::new(lent.uplinks.max_segments()),
        observer: Observer::new(key, lent.uplinks.clone()),
    };
    for uplink in shared.uplinks.readers() {
        let (address, mailbox) = Mailbox::<UdpPath>::bounded(EDGE_MAILBOX);
        threads.keep(address);
        let (ingress, counters) = (ingress.clone(), counters.clone());
        let factory = move || UdpPath::new(uplink.clone(), counters.clone(), Reception::Server(Box::new(ingress())));
        supervisor.supervise(&threads.data, mailbox, factory, Policy::RESTART);
    }
    let (tcp, tcp_mailbox) = Mailbox::<TcpPath>::bounded(EDGE_MAILBOX);
    let factory = move || TcpPath::new(listen.clone(), ingress());
    supervisor.supervise(&threads.data, tcp_mailbox, factory, Policy::RESTART);

    let sampler = Arc::new(Sampler::new(Source::Server(shared.clone()), supervisor.clone(), shared.started));
    let config = &shared.config;
    let outputs = Outputs {
        log: config.stats,
        scorecard: config.scorecard.clone().map(|path| (path, config.scorecard_format)),
        map: config.graphviz.clone(),
    };
    let lent = sampler.clone();
    let factory = move || Stats::new(lent.clone(), outputs.clone());
    supervisor.supervise(&threads.control, stats_mailbox, factory, Policy::RESTART);
    if let Some(page) = metrics {
        wire_metrics(supervisor, threads, page, sampler.clone());
    }

    let (lent, guard) = (shared.clone(), supervisor.clone());
    let (asked, to) = (sampler.clone(), coordinator.clone());
    let answer: super::control::Answer =
        Arc::new(move |request| report::answer_server(request, lent.clone(), guard.clone(), asked.clone(), to.clone()));
    let factory = move || Control::new(control.clone(), answer.clone());
    supervisor.supervise(&threads.control, control_mailbox, factory, Policy::RESTART);
    threads.keep(tcp);
    threads.keep(stats);
    threads.keep(control_address);
    (coordinator, sampler)
}

/// What a node does on a signal, besides ending.
pub(super) struct Orders<C> {
    /// The status, as the control socket tells it.
    pub(super) status: Box<dyn Fn() -> serde_json::Value + Send>,
    pub(super) load: Arc<dyn Fn() -> Result<C, ConfigError> + Send + Sync>,
    /// Takes of a good configuration what can be taken, and says what.
    pub(super) take: Box<dyn FnMut(C) + Send>,
}

impl<C: Send + 'static> Orders<C> {
    /// Writes the status to the log, as `eps-actor status` prints it.
    fn say_status(&self) {
        let mut text = Vec::new();
        let printed = Status::read(&(self.status)())
            .and_then(|status| Ok(crate::cli::status::print(&status, &mut text)?))
            .map(|()| String::from_utf8_lossy(&text));
        match printed {
            Ok(text) => log::info!("SIGUSR1: status\n{}", text.trim_end()),
            Err(error) => log::warn!("SIGUSR1: no status: {error}"),
        }
    }

    /// Opens the log anew and reads the configuration again; a bad one changes nothing.
    async fn reload(&mut self) {
        logging::reopen();
        let load = self.load.clone();
        match smol::unblock(move || load()).await {
            Ok(config) => (self.take)(config),
            Err(problems) => log::error!("SIGHUP: the configuration is not taken; it goes on as before:\n{problems}"),
        }
    }
}

/// Says which keys of a new configuration hold from here on.
fn say_taken(differing: &[&str], live: &[&str]) {
    let (taken, waiting): (Vec<&str>, Vec<&str>) = differing.iter().partition(|key| live.contains(key));
    let restart =
        if waiting.is_empty() { String::new() } else { format!("; a restart is needed for {}", waiting.join(", ")) };
    match taken.join(", ") {
        none if none.is_empty() => log::info!("SIGHUP: nothing to take from the configuration{restart}"),
        keys => log::info!("SIGHUP: taken from the configuration: {keys}{restart}"),
    }
}

/// What a client asks the gateway for; `None` where it does not.
fn client_upnp(shared: &Arc<ClientShared>) -> Option<UpnpShared> {
    let config = &shared.config;
    if config.upnptimeout.is_zero() || !config.direct {
        return None;
    }
    let (device, told) = (shared.clone(), shared.clone());
    Some(UpnpShared {
        wishes: vec![Wish { transport: Transport::Udp, port: shared.uplinks.port() }],
        timeout: config.upnptimeout,
        secret: shared.secret.clone(),
        own: None,
        cell: shared.gateway.clone(),
        device: Arc::new(move || device.slot.get().map(|tap| tap.ifindex())),
        say: Arc::new(move |text| told.events.say(text)),
    })
}

/// What a server asks the gateway for; `None` where it does not.
fn server_upnp(shared: &Arc<ServerShared>) -> Option<UpnpShared> {
    let config = &shared.config;
    let listen = config.listen.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    })?;
    if config.upnptimeout.is_zero() || listen.is_loopback() {
        return None;
    }
    let told = shared.clone();
    Some(UpnpShared {
        wishes: [Transport::Udp, Transport::Tcp].map(|transport| Wish { transport, port: config.port }).to_vec(),
        timeout: config.upnptimeout,
        secret: shared.secrets.0.clone(),
        own: Some(listen).filter(|ip| !ip.is_unspecified()),
        cell: shared.gateway.clone(),
        device: Arc::new(|| None),
        say: Arc::new(move |text| told.events.say(text)),
    })
}

fn wire_neighbours(shared: &Arc<ClientShared>, found: Caster<Neighbour>, supervisor: &Supervisor, threads: &Threads) {
    let counters = &shared.views.counters;
    let (neighbours, mailbox) = Mailbox::<Neighbours>::bounded(EDGE_MAILBOX);
    let own = (Caster::new(neighbours.clone(), counters.clone()), Caster::new(neighbours.clone(), counters.clone()));
    let casts = NeighboursCasts { found, own };
    let lent = shared.clone();
    let factory = move || Neighbours::new(lent.clone(), casts.clone());
    supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
    threads.keep(neighbours);
}

fn wire_upnp(
    lent: UpnpShared,
    changed: Option<Caster<MappingChanged>>,
    supervisor: &Supervisor,
    threads: &Threads,
    counters: &Arc<Counters>,
) {
    let (upnp, mailbox) = Mailbox::<Upnp>::bounded(EDGE_MAILBOX);
    let casts = UpnpCasts {
        changed,
        place: Caster::new(upnp.clone(), counters.clone()),
        heard: Caster::new(upnp.clone(), counters.clone()),
        fetched: Caster::new(upnp.clone(), counters.clone()),
    };
    let factory = move || Upnp::new(lent.clone(), casts.clone());
    supervisor.supervise(&threads.control, mailbox, factory, Policy::RESTART);
    threads.keep(upnp);
}

/// The node's threads: the caller's runs the control plane, one of its own the data plane.
pub struct Threads {
    pub(super) control: Arc<Executor<'static>>,
    pub(super) data: Arc<Executor<'static>>,
    stop: Sender<()>,
    worker: std::thread::JoinHandle<()>,
    /// Caught from the start on: until then they would end the process.
    signals: NodeSignals,
    /// Addresses that nobody else holds: an actor without any would end.
    kept: std::sync::Mutex<Vec<Box<dyn std::any::Any + Send>>>,
}

impl Threads {
    pub(super) fn start() -> Result<Self> {
        let signals = NodeSignals::new().context("signals cannot be watched")?;
        let data = Arc::new(Executor::new());
        let (stop, stopped) = smol::channel::bounded::<()>(1);
        let runs = data.clone();
        let worker = std::thread::Builder::new()
            .name("data".into())
            .spawn(move || {
                // It ends when it is told to, or when nobody could tell it any more.
                if let Err(error) = poll::block_on(runs.run(stopped.recv())) {
                    log::error!("the data plane ended: {error}");
                }
            })
            .context("the data-plane thread cannot be started")?;
        Ok(Self { control: Arc::new(Executor::new()), data, stop, worker, signals, kept: std::sync::Mutex::default() })
    }

    pub(super) fn keep(&self, address: impl std::any::Any + Send) {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Box::new(address));
    }

    /// Runs something beside the actors until the node ends.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.keep(self.control.spawn(work));
    }

    /// Runs the node until a signal, an [`Ending`] or the supervisor ends it; then stops every actor.
    ///
    /// `line` says in a few words how it is, for the service manager.
    pub(super) fn run<C: Send + 'static>(
        mut self,
        supervisor: &Supervisor,
        ends: &Receiver<Ending>,
        mut orders: Orders<C>,
        line: impl Fn() -> String + Send + 'static,
    ) -> Result<()> {
        let notifier = Notifier::from_environment().map(Arc::new);
        if let Some(notifier) = &notifier {
            self.spawn(service_manager::attend(notifier.clone(), supervisor.clone(), line));
        }
        let signals = &mut self.signals;
        let ended = smol::block_on(self.control.run(async {
            let signal = async {
                loop {
                    match signals.next().await.unwrap_or(Asked::Stop("a signal")) {
                        Asked::Stop(name) => {
                            log::info!("{name}: ending");
                            return None;
                        }
                        Asked::Status => orders.say_status(),
                        Asked::Reload => orders.reload().await,
                    }
                }
            };
            let by_itself = async {
                match ends.recv().await {
                    Ok(Ending::Failed(why)) => Some(why),
                    Ok(Ending::Left) | Err(_) => None,
                }
            };
            let ended = future::or(signal, by_itself).await;
            if let Some(notifier) = &notifier {
                notifier.say(&[Word::Stopping]);
            }
            for name in supervisor.stop_all(STOP_WITHIN).await {
                log::warn!("{name} did not end in time and was dropped");
            }
            ended
        }));
        // The worker hears of it or is gone already.
        let _ = self.stop.try_send(());
        let _ = self.worker.join();
        match ended {
            None => Ok(()),
            Some(why) => bail!(why),
        }
    }
}
