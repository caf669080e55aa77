//! The wiring of `eps-actor cloud`: its device, its sockets and their actors, bottom to top, and its end.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use xtra::Mailbox;

use super::client::EventLog;
use super::cloud::{Cloud, CloudCasts, CloudShared, CloudViews};
use super::cloud_bridge::{CloudBridge, CloudPortCasts};
use super::cloud_path::{CloudEgress, CloudIngress, CloudIngressCasts};
use super::cloud_tap::CloudTap;
use super::control::{Answer, Control};
use super::ext::Caster;
use super::stats::{Outputs, Stats};
use super::supervisor::{Policy, Supervisor};
use super::system::{EDGE_MAILBOX, MAILBOX, Orders, SOCKET_BUFFER, Threads, metrics_page, wire_metrics};
use super::udp_path::{Reception, UdpPath};
use crate::config::MetricsAddress;
use crate::config::cloud::{CLOUD_CONTROL, CloudOptions, sockets};
use crate::counters::Counters;
use crate::ids::UplinkId;
use crate::io::control_socket::{ControlError, ControlListener};
use crate::io::http::PageListener;
use crate::io::tap::{Tap, TapConfig};
use crate::io::tap_slot::TapSlot;
use crate::io::udp::{BindError, UdpUplink};
use crate::io::uplinks::Uplinks;
use crate::report;
use crate::report::snapshot::{Sampler, Source};

/// What the device's MTU is and stays, as the program leaves it.
const MTU: u16 = 1500;

/// A node that is nothing but one end of a cloud.
pub struct CloudNode {
    pub shared: Arc<CloudShared>,
    pub events: Arc<EventLog>,
    pub started: Instant,
}

/// Runs one end of an ethcloud until it is told to stop.
///
/// # Errors
///
/// What keeps it from starting, or ended it: one line that says what to do.
pub fn run_cloud(options: CloudOptions) -> Result<()> {
    let counters = Arc::new(Counters::default());
    let uplinks = cloud_uplinks(options.listen, &counters)?;
    let device = TapConfig { name: options.device.clone(), mac: None, mtu: MTU, offload: true, multi_queue: false };
    let tap = Tap::open(&device)?;
    log::info!("opened the device {}; it is down and has no address yet", tap.name());
    // Made anew, it is to have the name it has now.
    let device = TapConfig { name: tap.name().to_owned(), ..device };
    let control = Arc::new(control_socket(options.control.clone(), tap.name())?);
    if let Some(warning) = options.metrics.and_then(MetricsAddress::warning) {
        log::warn!("{warning}");
    }
    let metrics = metrics_page(options.metrics.map(|MetricsAddress(address)| address))?;
    let slot = TapSlot::default();
    slot.set(Some(Arc::new(tap)));
    let (peer_timeout, mac_timeout) = options.timeouts();
    let (now, events) = (Instant::now(), Arc::new(EventLog::default()));
    let told = events.clone();
    let shared = Arc::new(CloudShared {
        views: CloudViews::new(options.token, now, counters, false),
        uplinks,
        slot,
        connect: options.connect.clone(),
        peer_timeout,
        mac_timeout,
        bridge: None,
        say: Arc::new(move |kind, text, now| told.say_limited(kind, text, now)),
    });
    let node = Arc::new(CloudNode { shared: shared.clone(), events, started: now });
    let threads = Threads::start()?;
    let supervisor = Supervisor::new();
    let sampler = wire(&node, &supervisor, &threads, &options, device, control, metrics);
    let orders = Orders {
        status: Box::new(move || report::json::status(&sampler.take(Instant::now()))),
        load: Arc::new(|| Ok(())),
        take: Box::new(|()| log::info!("SIGHUP: a cloud has no configuration but its options")),
    };
    // Nothing ends it but a signal.
    let (_end, ends) = smol::channel::bounded(1);
    let lent = shared.clone();
    let line = move || format!("{} peers", lent.views.peers.load().peers.len());
    let ended = threads.run(&supervisor, &ends, orders, line);
    shared.slot.set(None);
    ended
}

/// The sockets of one end of a cloud. Without IPv6 on the machine, IPv4 alone will do.
pub fn cloud_uplinks(listen: SocketAddr, counters: &Arc<Counters>) -> Result<Uplinks, BindError> {
    let (mut udp4, mut udp6) = (None, None);
    for addr in sockets(listen) {
        if addr.is_ipv4() {
            udp4 = Some(Arc::new(UdpUplink::bind(UplinkId::UDP4, addr, SOCKET_BUFFER)?));
        } else {
            match UdpUplink::bind(UplinkId::UDP6, addr, SOCKET_BUFFER) {
                Err(BindError::NoFamily { .. }) if udp4.is_some() => {
                    log::warn!("this machine has no IPv6; listening on IPv4 only");
                }
                bound => udp6 = Some(Arc::new(bound?)),
            }
        }
    }
    Ok(Uplinks::new(udp4, udp6, None, counters.clone()))
}

/// The first cloud of a machine has the default socket, others one of their own.
fn control_socket(path: Option<PathBuf>, device: &str) -> Result<ControlListener, ControlError> {
    let default = path.is_none();
    let path = path.unwrap_or_else(|| CLOUD_CONTROL.into());
    match ControlListener::bind(&path) {
        Err(ControlError::AlreadyRunning { .. }) if default => {
            let own = path.with_file_name(format!("cloud-{device}.sock"));
            log::info!("another cloud runs here; the control socket of this one is {}", own.display());
            ControlListener::bind(own)
        }
        bound => bound,
    }
}

/// Wires the conversation and the sockets of one end of a cloud.
///
/// `bridge` makes the way on, where the end is a port of a member's switch; its other ports tell the casts.
pub fn wire_ends(
    shared: &Arc<CloudShared>,
    supervisor: &Supervisor,
    threads: &Threads,
    bridge: impl Fn() -> Option<CloudBridge> + Clone + Send + 'static,
) -> CloudPortCasts {
    let counters = shared.views.counters.clone();
    let (cloud, mailbox) = Mailbox::<Cloud>::bounded(MAILBOX);
    let casts = CloudCasts {
        looked_up: Caster::new(cloud.clone(), counters.clone()),
        local: Caster::new(cloud.clone(), counters.clone()),
    };
    let lent = shared.clone();
    supervisor.supervise(&threads.control, mailbox, move || Cloud::new(lent.clone(), casts.clone()), Policy::RESTART);
    let casts = CloudIngressCasts {
        heard: Caster::new(cloud.clone(), counters.clone()),
        seen: Caster::new(cloud.clone(), counters.clone()),
    };
    for uplink in shared.uplinks.readers() {
        let (address, mailbox) = Mailbox::<UdpPath>::bounded(EDGE_MAILBOX);
        threads.keep(address);
        let (lent, casts, counters, bridge) = (shared.clone(), casts.clone(), counters.clone(), bridge.clone());
        let factory = move || {
            let ingress = CloudIngress::new(lent.views.clone(), casts.clone(), lent.slot.tx(), bridge());
            UdpPath::new(uplink.clone(), counters.clone(), Reception::Cloud(Box::new(ingress)))
        };
        supervisor.supervise(&threads.data, mailbox, factory, Policy::RESTART);
    }
    let casts = CloudPortCasts {
        moved: Caster::new(cloud.clone(), counters.clone()),
        hello: Caster::new(cloud.clone(), counters.clone()),
    };
    threads.keep(cloud);
    casts
}

fn wire(
    node: &Arc<CloudNode>,
    supervisor: &Supervisor,
    threads: &Threads,
    options: &CloudOptions,
    device: TapConfig,
    control: Arc<ControlListener>,
    metrics: Option<Arc<PageListener>>,
) -> Arc<Sampler> {
    let (tap, tap_mailbox) = Mailbox::<CloudTap>::bounded(EDGE_MAILBOX);
    let (stats, stats_mailbox) = Mailbox::<Stats>::bounded(EDGE_MAILBOX);
    let (control_address, control_mailbox) = Mailbox::<Control>::bounded(EDGE_MAILBOX);
    wire_ends(&node.shared, supervisor, threads, || None);

    let lent = node.shared.clone();
    let factory = move || {
        let egress = CloudEgress::new(lent.views.clone(), lent.uplinks.clone());
        CloudTap::new(lent.slot.clone(), device.clone(), egress, lent.views.counters.clone())
    };
    supervisor.supervise(&threads.data, tap_mailbox, factory, Policy::RESTART);

    let sampler = Arc::new(Sampler::new(Source::Cloud(node.clone()), supervisor.clone(), node.started));
    let outputs = Outputs { log: options.stats, scorecard: options.card(), map: options.graphviz.clone() };
    let lent = sampler.clone();
    let factory = move || Stats::new(lent.clone(), outputs.clone());
    supervisor.supervise(&threads.control, stats_mailbox, factory, Policy::RESTART);
    if let Some(page) = metrics {
        wire_metrics(supervisor, threads, page, sampler.clone());
    }

    let (asked, guard) = (sampler.clone(), supervisor.clone());
    let answer: Answer = Arc::new(move |request| {
        let answer = answer(&request, &asked, &guard);
        Box::pin(async move { answer })
    });
    let factory = move || Control::new(control.clone(), answer.clone());
    supervisor.supervise(&threads.control, control_mailbox, factory, Policy::RESTART);
    threads.keep(tap);
    threads.keep(stats);
    threads.keep(control_address);
    sampler
}

fn answer(request: &Value, sampler: &Sampler, supervisor: &Supervisor) -> Result<Value, String> {
    match request["command"].as_str() {
        Some("status") => Ok(report::json::status(&sampler.take(Instant::now()))),
        Some("scorecard") => report::outputs(request, sampler),
        Some("map") => Ok(json!({ "dot": report::map::dot(&sampler.take(Instant::now())) })),
        Some("inject_panic") => report::inject(request, supervisor),
        other => Err(report::unknown(other, "cloud")),
    }
}
