//! What this machine was changed to for the sake of routes, so that all of it can be put back: at the end, and after a
//! crash at the next start, whatever the options are by then.
//!
//! The file is written before the change is made: a crash in between leaves a note about nothing, never a change that
//! nobody knows of. Routes by our device go with the device and are not in it.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::io::files::{FileError, StateDir};
use crate::io::netlink::Netlink;
use crate::io::nft;
use crate::io::policy::{self, Hop, Rule};

/// The file's name in the state directory.
const NOTE: &str = "routes";

/// Where everything goes by default, of each family.
pub const ALL: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::UNSPECIFIED, 0)),
];

/// A setting of the kernel that was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Below `/proc/sys/net`.
    pub path: String,
    pub before: String,
    pub ours: String,
}

/// All that was changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    pub rules: Vec<Rule>,
    /// The table that has unreachable defaults.
    pub closed: Option<u32>,
    /// Interfaces that forward now.
    pub forwarding: Vec<Setting>,
    /// Interfaces whose filter of sources was loosened.
    pub loosened: Vec<Setting>,
    /// The table of firewall rules.
    pub firewall: Option<String>,
}

impl Changes {
    /// What an earlier run left, if it did.
    pub fn load(state: &StateDir) -> Self {
        let read = state.read(NOTE).ok().flatten();
        read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub fn save(&self, state: &StateDir) -> Result<(), FileError> {
        if *self == Self::default() {
            return state.remove(NOTE);
        }
        state.write_atomic(NOTE, &serde_json::to_vec_pretty(self).expect("plain values"))
    }

    /// Puts everything back. What cannot be stays in it, and is told.
    pub async fn undo(&mut self, netlink: &Netlink) {
        self.undo_forwarding();
        self.undo_ways(netlink).await;
    }

    /// What was changed for others.
    pub fn undo_forwarding(&mut self) {
        // The rules last: for a moment nothing is forwarded, rather than anything.
        restore(&mut self.forwarding);
        if let Some(table) = self.firewall.take()
            && let Err(error) = nft::remove_table(&table)
        {
            log::warn!("the firewall's table {table} is still there: {error}");
            self.firewall = Some(table);
        }
    }

    /// What was changed for our own traffic.
    pub async fn undo_ways(&mut self, netlink: &Netlink) {
        let mut left = Vec::new();
        for rule in std::mem::take(&mut self.rules) {
            if let Err(error) = netlink.del_rule(&rule).await {
                log::warn!("a routing rule of priority {} is still there: {error}", rule.priority);
                left.push(rule);
            }
        }
        self.rules = left;
        if let Some(table) = self.closed.take() {
            for all in ALL {
                if let Err(error) = netlink.drop_route(table, all, Hop::Unreachable).await {
                    log::debug!("table {table}: {error}");
                }
            }
        }
        restore(&mut self.loosened);
    }
}

/// Puts settings back that are still as we left them; one that somebody changed since is theirs.
fn restore(settings: &mut Vec<Setting>) {
    settings.retain(|Setting { path, before, ours }| match policy::setting(path) {
        Ok(value) if value == *ours => match policy::set(path, before) {
            Ok(()) => false,
            Err(error) => {
                log::warn!("net.{} is still {ours}, it was {before}: {error}", path.replace('/', "."));
                true
            }
        },
        // The interface has gone, or it is no longer ours to judge.
        Ok(_) | Err(_) => false,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_reads_back_and_nothing_changed_is_no_note() {
        let place = tempfile::tempdir().expect("a directory");
        let state = StateDir::open_or_create(place.path().join("state")).expect("a state");
        let changes = Changes {
            rules: vec![Rule::main_first(false, 5000), Rule::unmarked(true, 5001, 52000)],
            closed: Some(52000),
            forwarding: vec![Setting {
                path: "ipv4/conf/eth0/forwarding".into(),
                before: "0".into(),
                ours: "1".into(),
            }],
            loosened: Vec::new(),
            firewall: Some("eps-actor-eps0".into()),
        };
        changes.save(&state).expect("saved");
        assert_eq!(Changes::load(&state), changes);
        Changes::default().save(&state).expect("saved");
        assert!(!state.file(NOTE).exists());
        assert_eq!(Changes::load(&state), Changes::default());
    }
}
