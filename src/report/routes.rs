//! Routes beyond the network, as a client tells them.

use serde::Serialize;

use crate::actors::client::ClientShared;
use crate::actors::routes::own_offer;
use crate::proto::peers::PeerDescription;
use crate::proto::routes::Exit;

/// What a client does for subnets that are no members'.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Routing {
    /// Subnets behind this machine that others may reach through it by now.
    pub published: Vec<String>,
    /// Those that the server does not allow, so far.
    pub not_allowed: Vec<String>,
    /// Subnets that are reached through other members.
    pub accepted: Vec<Accepted>,
    /// Subnets that others publish and this machine does not take up, each with the reason.
    pub refused: Vec<Refused>,
    /// `None` where no exit is asked for.
    pub exit: Option<ExitState>,
    /// Why something that should be done is not.
    pub trouble: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Accepted {
    pub subnet: String,
    pub gateway: String,
    pub peer: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Refused {
    pub subnet: String,
    pub reason: String,
}

/// The way to the Internet.
#[derive(Debug, Clone, Serialize)]
pub struct ExitState {
    pub peer: String,
    /// `up`; `closed`: nothing reaches the Internet; `waiting`: it is reached as without an exit.
    pub state: &'static str,
    pub reason: Option<String>,
}

impl Routing {
    /// What a client does at this moment.
    pub fn of(shared: &ClientShared) -> Self {
        let view = shared.routes.load();
        let peers = shared.peers.load();
        let name = |gateway: &std::net::IpAddr| {
            let found = peers.iter().find(|peer| std::net::IpAddr::V4(peer.certificate.ip4) == *gateway);
            found.map(|peer| peer.name.clone())
        };
        let offered = own_offer(shared);
        let (state, reason) = match (&view.plan.exit, view.is_exit_up) {
            (Exit::By(_), _) => ("up", None),
            (Exit::Missing(why), true) => ("closed", Some(why.clone())),
            (Exit::Missing(why), false) => ("waiting", Some(why.clone())),
            (Exit::Off, _) => ("waiting", None),
        };
        Self {
            published: view.published.iter().map(ToString::to_string).collect(),
            not_allowed: offered
                .iter()
                .filter(|subnet| !view.published.contains(subnet))
                .map(ToString::to_string)
                .collect(),
            accepted: view
                .plan
                .routes
                .iter()
                .map(|(subnet, gateway)| Accepted {
                    subnet: subnet.to_string(),
                    gateway: gateway.to_string(),
                    peer: name(gateway),
                })
                .collect(),
            refused: view
                .plan
                .refused
                .iter()
                .map(|(subnet, reason)| Refused { subnet: subnet.to_string(), reason: reason.clone() })
                .collect(),
            exit: shared.config.routing.exit.clone().map(|peer| ExitState { peer, state, reason }),
            trouble: view.trouble.clone(),
        }
    }
}

/// What a peer publishes.
pub fn of_peer(shared: &ClientShared, peer: &PeerDescription) -> Vec<String> {
    let id = peer.key.node_id().0;
    let view = shared.routes.load();
    let routes = view.table.routes.iter().filter(|route| route.member == id[..8]);
    routes.map(|route| route.subnet.to_string()).collect()
}
