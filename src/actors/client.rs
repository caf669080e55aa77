//! What the actors of a client share, and what they keep on disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::datapath::Views;
use super::tap_reader::LeaseCell;
use crate::config::ClientConfig;
use crate::ids::{NetworkId, PublicKey};
use crate::io::files::{FileError, StateDir};
use crate::io::tap_slot::TapSlot;
use crate::io::uplinks::Uplinks;
use crate::proto::crypto::{Secret32, Suites};
use crate::proto::link::{Node, no_psk};
use crate::proto::log_limit::LogLimit;
use crate::proto::map::{hex, unhex};
use crate::proto::multipath::Mode;
use crate::proto::nat::NatReport;
use crate::proto::noise::Identity;
use crate::proto::peers::PeerDescription;
use crate::proto::server_link::Pinned;
use crate::wire::cert::CERT_LEN;
use crate::wire::control::Candidate;
use crate::wire::join::HostPort;

/// Held by the wiring, lent to every actor of a client.
pub struct ClientShared {
    pub config: ClientConfig,
    pub state: StateDir,
    pub secret: Secret32,
    pub key: PublicKey,
    pub boot: u64,
    pub sequence: Arc<AtomicU32>,
    pub views: Views,
    pub uplinks: Uplinks,
    pub slot: TapSlot,
    pub lease: LeaseCell,
    /// The name the network knows us by.
    pub name: ArcSwap<String>,
    pub peers: ArcSwap<Vec<PeerDescription>>,
    pub pinned: ArcSwap<Option<Pinned>>,
    pub map_version: Arc<std::sync::atomic::AtomicU64>,
    pub events: EventLog,
    /// What was said while running of how several paths are used: for all, and for one.
    pub modes: ArcSwap<(Option<Mode>, BTreeMap<PublicKey, Mode>)>,
    /// Subnets beyond the network, ours and others'.
    pub routes: ArcSwap<super::routes::RoutesView>,
    /// What the gateway maps to us.
    pub gateway: super::upnp::GatewayCell,
    /// What the NAT in front of us does, and our addresses as peers are told: for whoever is restarted, and the status.
    pub nat: ArcSwap<NatReport>,
    pub candidates: ArcSwap<Vec<Candidate>>,
    pub started: Instant,
    /// Who waits for answers of peers.
    pub words: super::words::Words,
    /// Ends the node.
    pub end: smol::channel::Sender<Ending>,
    /// The ethcloud that this member bridges, where it does.
    pub cloud: std::sync::OnceLock<Arc<super::cloud::CloudShared>>,
}

/// Why a node ends by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Something only the user can mend: what, and what to do.
    Failed(String),
    /// The lease was given back on request.
    Left,
}

impl ClientShared {
    /// A node for a core: our key, and the freshness numbers all cores of this start share.
    pub fn node(&self, network: NetworkId) -> Node {
        let identity = Identity::from_secret(self.secret.clone());
        Node::new(identity, network, no_psk(), Suites::of_this_machine(), self.boot)
            .with_sequence(self.sequence.clone())
    }
}

/// What a client remembers of its network, in `network.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNetwork {
    format: u32,
    server: String,
    network: u64,
    signer: String,
    /// Host and port, as the join line or the options gave them.
    pub servers: Vec<String>,
    /// The name the lease is for.
    pub name: Option<String>,
    certificate: Option<String>,
    epoch: u64,
}

/// The file's name in the state directory.
pub const NETWORK_FILE: &str = "network.json";
/// The map's file.
pub const MAP_FILE: &str = "map.json";

impl SavedNetwork {
    pub fn new(pinned: &Pinned, servers: &[HostPort]) -> Self {
        Self {
            format: 1,
            server: hex(&pinned.server.0),
            network: pinned.network.0,
            signer: hex(&pinned.signer),
            servers: servers.iter().map(ToString::to_string).collect(),
            name: None,
            certificate: None,
            epoch: 0,
        }
    }

    /// The keys, if the file holds good ones.
    pub fn pinned(&self) -> Option<Pinned> {
        Some(Pinned {
            server: PublicKey(unhex(&self.server)?.try_into().ok()?),
            network: NetworkId(self.network),
            signer: unhex(&self.signer)?.try_into().ok()?,
        })
    }

    /// The last lease, and the epoch it was given in.
    pub fn lease(&self) -> Option<([u8; CERT_LEN], u64)> {
        Some((unhex(self.certificate.as_ref()?)?.try_into().ok()?, self.epoch))
    }

    pub fn set_lease(&mut self, certificate: &[u8; CERT_LEN], epoch: u64, name: &str) {
        self.certificate = Some(hex(certificate));
        self.epoch = epoch;
        self.name = Some(name.to_owned());
    }

    /// Reads the file; a broken one is set aside and said so.
    pub fn load(state: &StateDir) -> Result<Option<Self>, FileError> {
        let Some(bytes) = state.read(NETWORK_FILE)? else { return Ok(None) };
        match serde_json::from_slice::<Self>(&bytes).ok().filter(|saved| saved.format == 1 && saved.pinned().is_some())
        {
            Some(saved) => Ok(Some(saved)),
            None => {
                let aside = state.set_aside(NETWORK_FILE)?;
                log::warn!("{NETWORK_FILE} is broken; it is kept as {}", aside.display());
                Ok(None)
            }
        }
    }

    pub fn save(&self, state: &StateDir) -> Result<(), FileError> {
        state.write_atomic(NETWORK_FILE, &serde_json::to_vec_pretty(self).expect("the form has only text keys"))
    }
}

/// The last things that happened, for `status`; each is logged as well.
#[derive(Default)]
pub struct EventLog(Mutex<Events>);

#[derive(Default)]
struct Events {
    last: VecDeque<String>,
    limit: LogLimit,
}

impl EventLog {
    const KEPT: usize = 32;

    pub fn say(&self, text: String) {
        // Not under the lock: who asks for the status does not wait for the log.
        log::info!("{text}");
        self.events().keep(text);
    }

    /// Says something of a kind that others decide the number of; what is too much is summed up by [`summarize`].
    ///
    /// [`summarize`]: Self::summarize
    pub fn say_limited(&self, kind: &'static str, text: String, now: Instant) {
        self.summarize(now);
        let admitted = self.events().limit.admits(kind, now);
        if admitted {
            self.say(text);
        }
    }

    /// Says how much was held back in minutes that are over.
    pub fn summarize(&self, now: Instant) {
        loop {
            let Some(summary) = self.events().limit.poll_summary(now) else { return };
            self.say(summary.to_string());
        }
    }

    pub fn list(&self) -> Vec<String> {
        self.events().last.iter().cloned().collect()
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    fn keep(&mut self, text: String) {
        if self.last.len() == EventLog::KEPT {
            self.last.pop_front();
        }
        self.last.push_back(text);
    }
}

/// The raised boot counter, written down before anything is sent. Where it cannot be written, Unix seconds serve, which
/// are above it.
pub fn next_boot(state: &StateDir, unix: u64) -> u64 {
    const FILE: &str = "boots";
    let last = state
        .read(FILE)
        .ok()
        .flatten()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .and_then(|text| text.trim().parse::<u64>().ok());
    let boot = last.unwrap_or(0) + 1;
    match state.write_atomic(FILE, format!("{boot}\n").as_bytes()) {
        Ok(()) => boot,
        Err(error) => {
            log::warn!("the start counter cannot be written ({error}); the clock serves in its place");
            boot.max(unix)
        }
    }
}

/// The node's key, made at the first start.
pub fn node_key(state: &StateDir, name: &str) -> Result<Secret32, FileError> {
    if let Some(secret) = state.read_secret(name)? {
        return Ok(secret);
    }
    let mut secret = Secret32::default();
    aws_lc_rs::rand::fill(&mut secret[..]).expect("the system has randomness");
    state.write_secret_new(name, &secret)?;
    Ok(secret)
}

/// A seed for a core's randomness, from the system's.
pub fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed).expect("the system has randomness");
    seed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::log_limit::{BUDGET, WINDOW};

    #[test]
    fn a_thousand_silent_members_are_a_few_lines_and_a_sum() {
        let (events, start) = (EventLog::default(), Instant::now());
        events.say("before".into());
        for member in 0..1000 {
            events.say_limited("unreachable members", format!("m{member} cannot be reached"), start);
        }
        assert_eq!(events.list().len(), 1 + BUDGET as usize);
        assert_eq!(events.list()[0], "before", "what else happened is still there to be seen");
        events.summarize(start + WINDOW);
        let last = events.list().pop().expect("a line");
        assert_eq!(last, "unreachable members: 980 more like this in the last minute");
    }
}
