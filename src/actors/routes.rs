//! Routes: leads traffic for subnets behind other members, or for the Internet, into the network, and forwards what others
//! send to subnets behind this machine.
//!
//! What to do is decided by [`plan`]; this actor carries it out and puts it back. The traffic that goes by members has a
//! table of its own, which the underlay's sockets are kept out of ([`policy`]). Where the Internet is led through a member,
//! our table says that it is unreachable else: traffic that was meant to go that way does not leak when it cannot.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use xtra::{Actor, Context, Handler, Mailbox};

use super::changes::{ALL, Changes, Setting};
use super::client::ClientShared;
use super::desk::WriteDesk;
use super::ext::{Caster, Service, StopReason};
use crate::io::follow::Following;
use crate::io::netlink::{Netlink, NetlinkError, RouteEntry};
use crate::io::nft::{Forwarding, forward, forward_table, is_private};
use crate::io::policy::{self, Hop, Rule};
use crate::messages::routes::{Look, TableCame};
use crate::messages::server_link::Offer;
use crate::proto::peers::leased_networks;
use crate::proto::routes::{Assembly, EXIT, Existing, Exit, Facts, Plan, Publisher, RouteTable, plan};
use crate::wire::control::Control;

/// The last table of routes, for a start without the server.
pub const TABLE_FILE: &str = "route-table.json";
/// How often it is looked whether members have changed, where there is something to do.
const LOOK: Duration = Duration::from_secs(1);
/// How often everything is looked at, though nothing seems to have changed: others change routes and settings, too.
const CHECK: Duration = Duration::from_secs(30);
/// So long after the start an exit that is not there is nothing to speak of.
const PATIENCE: Duration = Duration::from_secs(5);
/// Changes of the machine's network are gathered for this long.
const SETTLE: Duration = Duration::from_millis(200);

/// What is published of routes, for the status and for whoever comes after a restart.
#[derive(Debug, Clone, Default)]
pub struct RoutesView {
    pub table: RouteTable,
    pub plan: Plan,
    /// Subnets of ours that others may use by now.
    pub published: Vec<IpNet>,
    /// The Internet is led through a member, or closed.
    pub is_exit_up: bool,
    /// Why something that should be done is not.
    pub trouble: Option<String>,
    /// What is in our table of routes, by subnet.
    applied: BTreeMap<IpNet, Hop>,
    changes: Changes,
}

/// What a look is made of; the same again needs none.
#[derive(PartialEq, Clone)]
struct Inputs {
    version: u64,
    publishers: Vec<Publisher>,
    ifindex: Option<u32>,
    own: Option<(std::net::Ipv4Addr, u8)>,
}

impl Inputs {
    fn name_of(&self, gateway: &IpAddr) -> String {
        let found = self.publishers.iter().find(|publisher| IpAddr::V4(publisher.ip) == *gateway);
        found.map_or_else(|| gateway.to_string(), |publisher| publisher.name.clone())
    }
}

/// The actor.
pub struct Routes {
    shared: Arc<ClientShared>,
    offer: Caster<Offer>,
    look: Caster<Look>,
    assembly: Assembly,
    state: RoutesView,
    last: Option<(Inputs, Instant)>,
    /// What was installed, so that it is not installed again each time.
    forwarding: Option<Forwarding>,
    /// The last that was said of the exit.
    said_exit: Exit,
    /// The last trouble of each kind that was told.
    told: BTreeMap<&'static str, String>,
    tasks: Vec<smol::Task<()>>,
    desk: WriteDesk,
    ending: bool,
}

impl Routes {
    pub fn new(shared: Arc<ClientShared>, offer: Caster<Offer>, look: Caster<Look>) -> Self {
        let mut state = RoutesView::clone(&shared.routes.load());
        if state.table.version == 0
            && let Some(network) = network(&shared)
            && let Ok(Some(bytes)) = shared.state.read(TABLE_FILE)
        {
            state.table = RouteTable::load(&bytes, network).unwrap_or_default();
        }
        Self {
            shared,
            offer,
            look,
            assembly: Assembly::default(),
            state,
            last: None,
            forwarding: None,
            said_exit: Exit::Off,
            told: BTreeMap::new(),
            tasks: Vec::new(),
            desk: WriteDesk::default(),
            ending: false,
        }
    }

    /// Whether the options ask for anything.
    fn is_wanted(&self) -> bool {
        let routing = &self.shared.config.routing;
        routing.accept || routing.exit.is_some() || !own_offer(&self.shared).is_empty()
    }

    /// Looks again each second, and when the machine's network changes.
    fn watch(&mut self) {
        let look = self.look.clone();
        self.tasks.push(smol::spawn(async move {
            loop {
                smol::Timer::after(LOOK).await;
                look.cast(Look { changed: false });
            }
        }));
        let look = self.look.clone();
        let mut network = Following::begin(SETTLE);
        self.tasks.push(smol::spawn(async move {
            loop {
                network.changed().await;
                network.looked(Ok(look.cast(Look { changed: true })));
            }
        }));
    }

    fn inputs(&self) -> Inputs {
        let publishers = self.shared.peers.load();
        let publishers = publishers.iter().map(|peer| {
            let id = peer.key.node_id().0;
            Publisher {
                id: id[..8].try_into().expect("eight bytes"),
                name: peer.name.clone(),
                ip: peer.certificate.ip4,
                online: peer.online,
            }
        });
        Inputs {
            version: self.state.table.version,
            publishers: publishers.collect(),
            ifindex: self.shared.slot.get().map(|tap| tap.ifindex()),
            own: self.shared.lease.load().as_ref().map(|lease| (lease.ip4, lease.prefix4)),
        }
    }

    /// Brings the machine to what the table and the options say.
    async fn look(&mut self, changed: bool) {
        if self.ending || !self.is_wanted() {
            return;
        }
        let (inputs, now) = (self.inputs(), Instant::now());
        let same = self.last.as_ref().is_some_and(|(last, at)| *last == inputs && now < *at + CHECK);
        if same && !changed {
            return;
        }
        let done = self.apply(&inputs).await;
        self.tell("machine", done.as_ref().err().map(ToString::to_string));
        // What failed, or is not told yet, is looked at again next time.
        self.last = (done.is_ok() && self.said_exit == self.state.plan.exit).then_some((inputs, now));
        self.state.trouble =
            (!self.told.is_empty()).then(|| self.told.values().cloned().collect::<Vec<_>>().join("; "));
        self.publish();
    }

    async fn apply(&mut self, inputs: &Inputs) -> Result<(), NetlinkError> {
        let Some(lease) = self.shared.lease.load_full() else { return Ok(()) };
        let Some(ifindex) = inputs.ifindex else { return Ok(()) };
        let netlink = Netlink::open()?;
        let mains: Vec<RouteEntry> =
            netlink.routes().await?.into_iter().filter(|route| route.ifindex != ifindex).collect();
        let own = leased_networks(&lease);
        self.take(&netlink, inputs, &mains, &own, ifindex).await?;
        let network = Ipv4Net::new(lease.ip4, lease.prefix4).map(|net| net.trunc()).ok();
        self.forward_for_others(&mains, network).await;
        Ok(())
    }

    /// Leads our own traffic by members.
    async fn take(
        &mut self,
        netlink: &Netlink,
        inputs: &Inputs,
        mains: &[RouteEntry],
        own: &[IpNet],
        ifindex: u32,
    ) -> Result<(), NetlinkError> {
        let routing = &self.shared.config.routing;
        let existing = existing(netlink, mains, ifindex).await?;
        let planned = plan(&Facts {
            table: &self.state.table,
            publishers: &inputs.publishers,
            existing: &existing,
            own,
            published: &routing.publish,
            accept: routing.accept,
            exit: routing.exit.as_deref(),
        });
        self.say_plan(&planned, inputs);
        let (priority, table) = numbers(&self.shared.config.device);
        let mut wanted: BTreeMap<IpNet, Hop> =
            planned.routes.iter().map(|(net, gateway)| (*net, Hop::Via { gateway: *gateway, ifindex })).collect();
        if let Exit::By(gateway) = planned.exit {
            wanted.insert(EXIT, Hop::Via { gateway, ifindex });
            self.state.is_exit_up = true;
        }
        self.state.plan = planned;
        self.say_exit(|gateway| inputs.name_of(gateway));
        let is_closed = self.state.is_exit_up;
        let families: &[bool] = match (is_closed, wanted.is_empty()) {
            (true, _) => &[false, true],
            (false, false) => &[false],
            (false, true) => &[],
        };
        let rules: Vec<Rule> = families
            .iter()
            .flat_map(|six| [Rule::main_first(*six, priority), Rule::unmarked(*six, priority + 1, table)])
            .collect();

        let mut noted = self.state.changes.clone();
        noted.rules.extend(rules.iter().filter(|rule| !self.state.changes.rules.contains(rule)));
        noted.closed = noted.closed.or(is_closed.then_some(table));
        let loosened = if is_closed { too_strict(mains) } else { Vec::new() };
        noted_too(&mut noted.loosened, &loosened);
        self.note(noted).await?;

        let loosened: Result<Vec<()>, String> = loosened.iter().map(set).collect();
        self.tell("loosen", loosened.err());
        if is_closed {
            netlink.keep_route(table, ALL[0], Hop::Unreachable).await?;
            without_family(netlink.keep_route(table, ALL[1], Hop::Unreachable).await)?;
        }
        for (net, hop) in self.state.applied.clone() {
            if !wanted.contains_key(&net) {
                netlink.drop_route(table, net, hop).await?;
                self.state.applied.remove(&net);
            }
        }
        for (net, hop) in &wanted {
            match self.state.applied.get(net) {
                Some(known) if known == hop => netlink.keep_route(table, *net, *hop).await?,
                Some(_) | None => netlink.put_route(table, *net, *hop).await?,
            }
            self.state.applied.insert(*net, *hop);
        }
        for rule in &rules {
            let added = netlink.add_rule(rule).await;
            if rule.six { without_family(added) } else { added }?;
        }
        let gone: Vec<Rule> = self.state.changes.rules.iter().filter(|rule| !rules.contains(rule)).copied().collect();
        for rule in &gone {
            netlink.del_rule(rule).await?;
        }
        if !gone.is_empty() {
            let mut noted = self.state.changes.clone();
            noted.rules.retain(|rule| !gone.contains(rule));
            self.note(noted).await?;
        }
        Ok(())
    }

    /// Forwards for other members what the server allows of our offer.
    async fn forward_for_others(&mut self, mains: &[RouteEntry], network: Option<Ipv4Net>) {
        let offered = own_offer(&self.shared);
        let id = self.shared.key.node_id().0;
        let allowed = |subnet: &&IpNet| {
            let routes = &self.state.table.routes;
            routes.iter().any(|route| route.member == id[..8] && route.subnet == **subnet)
        };
        let published: Vec<IpNet> = offered.iter().filter(allowed).copied().collect();
        for subnet in offered.iter().filter(|subnet| !self.state.published.contains(subnet)) {
            if published.contains(subnet) {
                self.shared.events.say(format!("{} can be reached through this machine", words(subnet)));
            }
        }
        self.state.published.clone_from(&published);
        let Some(network) = network.filter(|_| !published.is_empty()) else {
            if self.state.changes.firewall.is_some() {
                let mut changes = self.state.changes.clone();
                changes.undo_forwarding();
                self.forwarding = None;
                let noted = self.note(changes).await.err().map(|error| error.to_string());
                self.tell("forward", noted);
            }
            return;
        };
        let config = &self.shared.config;
        let wanted = Forwarding {
            device: config.device.clone(),
            network,
            subnets: published.iter().filter(|subnet| **subnet != EXIT).filter_map(four).collect(),
            exit: published.contains(&EXIT),
            masquerade: config.routing.masquerade,
        };
        let trouble = self.open(wanted, mains, &published).await.err();
        self.tell("forward", trouble);
    }

    /// The rules first: what is not published must never pass.
    async fn open(&mut self, wanted: Forwarding, mains: &[RouteEntry], published: &[IpNet]) -> Result<(), String> {
        let mut noted = self.state.changes.clone();
        noted.firewall = Some(forward_table(&wanted.device));
        self.note(noted.clone()).await.map_err(|error| error.to_string())?;
        if self.forwarding.as_ref() != Some(&wanted) {
            forward(&wanted).map_err(|error| format!("nothing is forwarded for other members: {error}"))?;
            self.forwarding = Some(wanted.clone());
        }
        let mut interfaces = vec![wanted.device.clone()];
        let mut missing = Vec::new();
        for subnet in published {
            match way_to(mains, subnet) {
                ways if ways.is_empty() => missing.push(words(subnet)),
                ways => interfaces.extend(ways),
            }
        }
        interfaces.sort();
        interfaces.dedup();
        let settings: Vec<Setting> =
            interfaces.iter().filter_map(|name| other(format!("ipv4/conf/{name}/forwarding"), "1")).collect();
        noted_too(&mut noted.forwarding, &settings);
        self.note(noted).await.map_err(|error| error.to_string())?;
        settings.iter().try_for_each(set)?;
        match missing.as_slice() {
            [] => Ok(()),
            missing => Err(format!("this machine has no route of its own to {}", missing.join(", "))),
        }
    }

    /// Writes down what is about to be changed, which waits for that; others do not wait for the disk.
    async fn note(&mut self, noted: Changes) -> Result<(), NetlinkError> {
        if noted == self.state.changes {
            return Ok(());
        }
        let (changes, shared) = (noted.clone(), self.shared.clone());
        smol::unblock(move || changes.save(&shared.state)).await.map_err(|error| NetlinkError::Refused {
            operation: "write down what is changed for routes",
            source: std::io::Error::other(error),
        })?;
        self.state.changes = noted;
        // Whoever comes after a panic finds what there is to put back.
        self.publish();
        Ok(())
    }

    fn keep_table(&mut self) {
        let Some(network) = network(&self.shared) else { return };
        let (bytes, shared) = (self.state.table.save(network), self.shared.clone());
        self.desk.put(move || {
            if let Err(error) = shared.state.write_atomic(TABLE_FILE, &bytes) {
                log::debug!("the table of routes is not kept for the next start: {error}");
            }
        });
    }

    fn publish(&self) {
        self.shared.routes.store(Arc::new(self.state.clone()));
    }

    /// Says what becomes other than it was.
    fn say_plan(&self, new: &Plan, inputs: &Inputs) {
        let (old, say) = (&self.state.plan, |text: String| self.shared.events.say(text));
        for (subnet, gateway) in &new.routes {
            if old.routes.get(subnet) != Some(gateway) {
                say(format!("{subnet} is reached through {}", inputs.name_of(gateway)));
            }
        }
        for subnet in old.routes.keys().filter(|subnet| !new.routes.contains_key(subnet)) {
            say(format!("{subnet} is not reached through the network any more"));
        }
        for (subnet, why) in &new.refused {
            if old.refused.get(subnet) != Some(why) {
                say(format!("{subnet} is not taken up: {why}"));
            }
        }
    }

    fn say_exit(&mut self, named: impl Fn(&IpAddr) -> String) {
        let exit = self.state.plan.exit.clone();
        // At a start the table of routes takes a moment to come.
        let is_early = matches!(exit, Exit::Missing(_)) && self.shared.started.elapsed() < PATIENCE;
        if exit == self.said_exit || is_early {
            return;
        }
        let say = |text: String| self.shared.events.say(text);
        match &exit {
            Exit::Off => {}
            Exit::By(gateway) => say(format!(
                "the Internet is reached through {}, over IPv4; IPv6 to the Internet is closed meanwhile",
                named(gateway)
            )),
            Exit::Missing(why) if self.state.is_exit_up => {
                say(format!("the way to the Internet is closed until the exit is back: {why}"));
            }
            Exit::Missing(why) => say(format!("the Internet is reached as without an exit so far: {why}")),
        }
        self.said_exit = exit;
    }

    /// Tells a trouble once; `None` says that it is over.
    fn tell(&mut self, kind: &'static str, trouble: Option<String>) {
        match trouble {
            Some(trouble) => {
                if self.told.get(kind) != Some(&trouble) {
                    log::warn!("routes: {trouble}");
                    self.told.insert(kind, trouble);
                }
            }
            None => drop(self.told.remove(kind)),
        }
    }

    fn say_offer(&self) {
        let list = own_offer(&self.shared);
        self.offer.cast(Offer(Control::RouteOffer { have: self.state.table.version, list }));
    }
}

/// The id of the network we are in.
fn network(shared: &ClientShared) -> Option<u64> {
    let pinned = **shared.pinned.load();
    pinned.map(|pinned| pinned.network.0)
}

/// What this machine would forward to.
pub fn own_offer(shared: &ClientShared) -> Vec<IpNet> {
    let routing = &shared.config.routing;
    let exit = routing.exit_node.then_some(EXIT);
    routing.publish.iter().copied().chain(exit).collect()
}

/// A subnet for people.
pub fn words(subnet: &IpNet) -> String {
    if *subnet == EXIT { "the Internet".into() } else { subnet.to_string() }
}

/// Priority of the first of two rules, and our table: another device of ours in this namespace has others.
fn numbers(device: &str) -> (u32, u32) {
    let sum = device.bytes().fold(0_u32, |sum, byte| (sum * 31 + u32::from(byte)) % 128);
    (5000 + 2 * sum, 52_000 + sum)
}

/// What this machine has of its own.
async fn existing(netlink: &Netlink, mains: &[RouteEntry], ifindex: u32) -> Result<Vec<Existing>, NetlinkError> {
    let addresses = netlink.addresses().await?.into_iter().filter(|address| address.ifindex != ifindex);
    let addresses = addresses.filter_map(|address| {
        let net = IpNet::new(address.addr, address.prefix).ok()?.trunc();
        Some(Existing { net, interface: address.name })
    });
    let routes = mains.iter().filter(|route| route.dst.prefix_len() > 0);
    let routes = routes.map(|route| Existing { net: route.dst, interface: route.name.clone() });
    Ok(addresses.chain(routes).collect())
}

/// The interfaces of the default routes, of IPv4.
fn defaults(mains: &[RouteEntry]) -> Vec<String> {
    let routes = mains.iter().filter(|route| route.dst == EXIT && !route.name.is_empty());
    routes.map(|route| route.name.clone()).collect()
}

/// The interfaces by which this machine reaches a subnet: of the narrowest route that covers it, or of those inside it.
fn way_to(mains: &[RouteEntry], subnet: &IpNet) -> Vec<String> {
    let named = || mains.iter().filter(|route| !route.name.is_empty());
    if *subnet == EXIT {
        // The default route, and what else of the Internet is nearer.
        let beyond = named().filter(|route| route.dst.addr().is_ipv4() && !is_private(&route.dst));
        return beyond.map(|route| route.name.clone()).collect();
    }
    let inside = named().filter(|route| subnet.contains(&route.dst)).map(|route| route.name.clone());
    let around = named().filter(|route| route.dst.contains(subnet));
    let narrowest = around.max_by_key(|route| (route.dst.prefix_len(), std::cmp::Reverse(route.priority)));
    inside.chain(narrowest.map(|route| route.name.clone())).collect()
}

fn four(subnet: &IpNet) -> Option<Ipv4Net> {
    match subnet {
        IpNet::V4(net) => Some(*net),
        IpNet::V6(_) => None,
    }
}

/// A machine without IPv6 leaks nothing by it.
fn without_family(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => Ok(()),
        other => other,
    }
}

/// The setting to be changed, where it is another.
fn other(path: String, ours: &str) -> Option<Setting> {
    let before = policy::setting(&path).ok().filter(|before| before != ours)?;
    Some(Setting { path, before, ours: ours.to_owned() })
}

/// Answers to the underlay's datagrams come by an interface that unmarked ones would not leave by, which a strict filter of
/// sources (RFC 3704) takes for a forgery. The stricter of an interface's own word and the word for all holds.
fn too_strict(mains: &[RouteEntry]) -> Vec<Setting> {
    let strictness = |name: &str| -> u8 {
        policy::setting(&format!("ipv4/conf/{name}/rp_filter")).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    let all = strictness("all");
    let strict = defaults(mains).into_iter().filter(|name| all.max(strictness(name)) == 1);
    strict.filter_map(|name| other(format!("ipv4/conf/{name}/rp_filter"), "2")).collect()
}

/// Adds what is to be changed to what was; the first value before us is the one to go back to.
fn noted_too(noted: &mut Vec<Setting>, more: &[Setting]) {
    for setting in more {
        if !noted.iter().any(|known| known.path == setting.path) {
            noted.push(setting.clone());
        }
    }
}

fn set(setting: &Setting) -> Result<(), String> {
    let Setting { path, ours, .. } = setting;
    let name = path.replace('/', ".");
    policy::set(path, ours).map_err(|error| {
        // A unit that may not write settings finds this one made for new devices, too.
        let advice = match name.ends_with(".forwarding") {
            true => "write net.ipv4.ip_forward=1 into a file in /etc/sysctl.d".to_owned(),
            false => format!("run `sysctl -w net.{name}={ours}`"),
        };
        format!("net.{name} cannot be set ({error}); {advice}, as root")
    })
}

impl Actor for Routes {
    type Stop = StopReason;

    async fn started(&mut self, _: &Mailbox<Self>) -> Result<(), StopReason> {
        // After a panic the changes are ours, and stay; at a start they are leftovers of a run that was killed.
        if self.state.changes == Changes::default() {
            let mut left = Changes::load(&self.shared.state);
            if left != Changes::default() {
                match Netlink::open() {
                    Ok(netlink) => left.undo(&netlink).await,
                    Err(error) => log::warn!("what an earlier run changed for routes is still so: {error}"),
                }
                self.state.changes = left.clone();
                if let Err(error) = left.save(&self.shared.state) {
                    log::warn!("what is changed for routes cannot be written down: {error}");
                }
            }
        }
        if self.is_wanted() {
            self.watch();
        }
        self.publish();
        self.say_offer();
        Ok(())
    }

    async fn stopped(mut self) -> StopReason {
        if self.ending {
            let mut changes = std::mem::take(&mut self.state.changes);
            match Netlink::open() {
                Ok(netlink) => {
                    changes.undo(&netlink).await;
                    let (_, table) = numbers(&self.shared.config.device);
                    for (net, hop) in std::mem::take(&mut self.state.applied) {
                        if let Err(error) = netlink.drop_route(table, net, hop).await {
                            log::debug!("{net}: {error}");
                        }
                    }
                }
                Err(error) => log::warn!("what was changed for routes is still so: {error}"),
            }
            if let Err(error) = changes.save(&self.shared.state) {
                log::warn!("what is changed for routes cannot be written down: {error}");
            }
        }
        self.desk.cleared().await;
        StopReason::Requested
    }
}

super::ext::answers_pings!(Routes);

impl Service for Routes {
    const NAME: &'static str = "routes";

    fn stopping(&mut self, reason: &StopReason) {
        self.ending = matches!(reason, StopReason::Requested);
    }
}

impl Handler<TableCame> for Routes {
    type Return = ();

    async fn handle(&mut self, TableCame(part): TableCame, _: &mut Context<Self>) {
        let Control::RouteTable { version, part, parts, routes } = part else { return };
        if let Some(table) = self.assembly.take(version, part, parts, routes) {
            self.state.table = table;
            self.keep_table();
            self.publish();
            self.say_offer();
            self.look(false).await;
        }
    }
}

impl Handler<Look> for Routes {
    type Return = ();

    async fn handle(&mut self, Look { changed }: Look, _: &mut Context<Self>) {
        self.look(changed).await;
    }
}
