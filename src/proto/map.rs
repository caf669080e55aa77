//! A client's copy of the member map: applies deltas in order, notices gaps, keeps only entries whose certificates are
//! signed by the network, and writes itself down so that the client starts without the server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::crypto::Trust;
use crate::counters::DropReason;
use crate::ids::PublicKey;
use crate::wire::cert::{CERT_LEN, Certificate};
use crate::wire::control::{MapChange, MapEntry};

/// Members a client keeps at the most: a hostile server cannot fill its memory.
const MEMBERS_MAX: usize = 1 << 16;

/// A member as the client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub certificate: Certificate,
    /// The certificate as signed.
    pub signed: [u8; CERT_LEN],
    pub online: bool,
    /// Where it was last reached directly; a hint for the next start.
    pub last_direct: Option<SocketAddr>,
}

/// What a delta did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapEvent {
    Put(PublicKey),
    Removed(PublicKey),
}

/// A delta did not start where the map is: ask again from the version the map has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap;

/// The map.
#[derive(Debug, Default)]
pub struct MemberMap {
    version: u64,
    members: BTreeMap<PublicKey, Member>,
    /// During a reset: what has not been named again yet.
    unnamed: Option<BTreeSet<PublicKey>>,
}

impl MemberMap {
    /// The version the map has.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn get(&self, key: &PublicKey) -> Option<&Member> {
        self.members.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&PublicKey, &Member)> {
        self.members.iter()
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Notes where a member was reached directly.
    pub fn reached(&mut self, key: &PublicKey, addr: SocketAddr) {
        if let Some(member) = self.members.get_mut(key) {
            member.last_direct = Some(addr);
        }
    }

    /// Applies a piece of the log.
    ///
    /// # Errors
    ///
    /// [`Gap`] when a piece before this one is missing; nothing has changed then. A piece that was applied already is
    /// fine and says nothing new.
    pub fn apply(
        &mut self,
        (from, to, head, reset): (u64, u64, u64, bool),
        changes: &[MapChange],
        trust: &mut Trust,
    ) -> Result<Vec<MapEvent>, Gap> {
        if reset {
            // A first piece that comes again, late; a server that is behind us says so with its head.
            if to <= self.version && head >= self.version {
                return Ok(Vec::new());
            }
            self.unnamed = Some(self.members.keys().copied().collect());
        } else if to <= self.version {
            return Ok(Vec::new());
        } else if from != self.version {
            return Err(Gap);
        }
        let mut events: Vec<MapEvent> = changes.iter().filter_map(|change| self.change(change, trust)).collect();
        self.version = to;
        if to == head
            && let Some(unnamed) = self.unnamed.take()
        {
            events.extend(unnamed.into_iter().filter_map(|key| self.remove(&key)));
        }
        Ok(events)
    }

    /// Takes up one entry outside a delta (an introduction).
    pub fn put(&mut self, entry: &MapEntry, trust: &mut Trust) -> Result<MapEvent, DropReason> {
        let certificate = trust.check(&entry.certificate)?;
        let key = certificate.key;
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(&key) {
            return Err(DropReason::UnknownPeer);
        }
        let last_direct = self.members.get(&key).and_then(|member| member.last_direct);
        let name = entry.name.clone();
        self.members
            .insert(key, Member { name, certificate, signed: entry.certificate, online: entry.online, last_direct });
        Ok(MapEvent::Put(key))
    }

    fn change(&mut self, change: &MapChange, trust: &mut Trust) -> Option<MapEvent> {
        match change {
            MapChange::Put(entry) => {
                let event = self.put(entry, trust).ok()?;
                if let (Some(unnamed), MapEvent::Put(key)) = (&mut self.unnamed, event) {
                    unnamed.remove(&key);
                }
                Some(event)
            }
            MapChange::Remove(key) => self.remove(key),
        }
    }

    fn remove(&mut self, key: &PublicKey) -> Option<MapEvent> {
        self.members.remove(key).map(|_| MapEvent::Removed(*key))
    }

    /// Writes the map down.
    pub fn save(&self, trust: &Trust) -> Vec<u8> {
        let saved = Saved {
            format: 1,
            epoch: trust.epoch(),
            revocations: trust.revocations().map(hex).collect(),
            members: self
                .members
                .values()
                .map(|member| SavedMember {
                    name: member.name.clone(),
                    certificate: hex(&member.signed),
                    last_direct: member.last_direct,
                })
                .collect(),
        };
        serde_json::to_vec_pretty(&saved).expect("the saved form has only text keys")
    }

    /// Reads a map back. Every signature is checked; entries that fail are left out. The version is 0, so the server
    /// tells everything anew. `None` for a file that is not a map.
    pub fn load(bytes: &[u8], trust: &mut Trust) -> Option<Self> {
        let saved: Saved = serde_json::from_slice(bytes).ok().filter(|saved: &Saved| saved.format == 1)?;
        for object in &saved.revocations {
            // One that does not verify says nothing.
            let _ = trust.learn(&unhex(object)?);
        }
        let mut map = Self::default();
        for member in saved.members {
            let Some(signed) = unhex(&member.certificate).and_then(|bytes| bytes.try_into().ok()) else { continue };
            let entry = MapEntry { name: member.name, certificate: signed, online: false };
            if let (Ok(MapEvent::Put(key)), Some(addr)) = (map.put(&entry, trust), member.last_direct) {
                map.reached(&key, addr);
            }
        }
        Some(map)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    epoch: u64,
    revocations: Vec<String>,
    members: Vec<SavedMember>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedMember {
    name: String,
    certificate: String,
    last_direct: Option<SocketAddr>,
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of hexadecimal text.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use zeroize::Zeroizing;

    use super::super::changes::{Change, ChangeLog};
    use super::super::crypto::Signer;
    use super::*;
    use crate::ids::{MacAddr, NetworkId};

    fn signer() -> Signer {
        Signer::from_seed(&Zeroizing::new([1; 32]))
    }

    fn trust() -> Trust {
        Trust::new(NetworkId(1), signer().public(), 10)
    }

    fn entry(number: u8) -> MapEntry {
        let certificate = Certificate {
            rights: 0,
            groups: 0,
            network: NetworkId(1),
            key: PublicKey([number; 32]),
            mac: MacAddr([2, 0, 0, 0, 0, number]),
            ip4: Ipv4Addr::new(10, 0, 0, number),
            prefix4: 24,
            ip6: None,
            prefix6: 0,
            issued: 10,
            expires: 34,
            serial: u64::from(number),
        };
        MapEntry { name: format!("m{number}"), certificate: signer().certify(&certificate), online: true }
    }

    #[test]
    fn c_04_lost_reordered_and_repeated_deltas_lead_to_the_same_map_as_a_full_one() {
        use rand::rngs::StdRng;
        use rand::{RngExt, SeedableRng};
        let (mut gaps, mut rounds_max) = (0, 0);
        for seed in 0..200 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut log, mut trust, mut map) = (ChangeLog::new(1), trust(), MemberMap::default());
            let mut truth = BTreeSet::new();
            let mut rounds = 0;
            for step in 0..60 {
                let number = rng.random_range(1..30u8);
                if truth.contains(&number) && rng.random_bool(0.3) {
                    truth.remove(&number);
                    log.remove(PublicKey([number; 32]));
                } else {
                    truth.insert(number);
                    log.put(PublicKey([number; 32]));
                }
                let quiet = step == 59;
                while let Some(delta) = log.after(map.version(), 3) {
                    rounds += usize::from(quiet);
                    let lost = !quiet && rng.random_bool(0.5);
                    // A piece that starts later than the map is: one before it was lost.
                    let early = log.after(delta.to, 3).filter(|_| rng.random_bool(0.3));
                    for delta in early.into_iter().chain((!lost).then_some(delta)) {
                        let changes: Vec<_> = delta
                            .changes
                            .iter()
                            .map(|change| match change {
                                Change::Put(key) => MapChange::Put(entry(key.0[0])),
                                Change::Removed(key) => MapChange::Remove(*key),
                            })
                            .collect();
                        let bounds = (delta.from, delta.to, log.head(), delta.reset);
                        let before = map.version();
                        match map.apply(bounds, &changes, &mut trust) {
                            Err(Gap) => {
                                gaps += 1;
                                assert_eq!(map.version(), before, "a gap changes nothing");
                            }
                            Ok(_) => assert!(map.apply(bounds, &changes, &mut trust).is_ok(), "again does no harm"),
                        }
                    }
                    if lost {
                        break;
                    }
                }
                rounds_max = rounds_max.max(rounds);
            }
            let have: BTreeSet<u8> = map.iter().map(|(key, _)| key.0[0]).collect();
            assert_eq!(have, truth, "seed {seed}");
            assert_eq!(map.version(), log.head());
        }
        assert!(gaps > 0, "the test must see gaps");
        println!("C-04: 200 seeds, {gaps} gaps noticed, all maps equal; at most {rounds_max} pieces to catch up");
    }

    #[test]
    fn an_entry_that_the_network_did_not_sign_is_not_taken_up() {
        let (mut trust, mut map) = (trust(), MemberMap::default());
        let mut forged = entry(1);
        forged.certificate[51] ^= 1;
        let events = map.apply((0, 5, 5, true), &[MapChange::Put(forged), MapChange::Put(entry(2))], &mut trust);
        assert_eq!(events, Ok(vec![MapEvent::Put(PublicKey([2; 32]))]));
    }

    #[test]
    fn a_saved_map_comes_back_with_its_signatures_checked() {
        let (mut trust, mut map) = (trust(), MemberMap::default());
        for number in [1, 2] {
            map.put(&entry(number), &mut trust).expect("signed");
        }
        map.reached(&PublicKey([1; 32]), "192.0.2.1:5".parse().expect("an address"));
        let saved = map.save(&trust);
        let text = String::from_utf8(saved.clone()).expect("JSON is text");

        let loaded = MemberMap::load(&saved, &mut trust).expect("a map");
        assert_eq!(loaded.len(), 2);
        assert_eq!(loaded.version(), 0);
        assert!(loaded.get(&PublicKey([1; 32])).is_some_and(|member| member.last_direct.is_some() && !member.online));

        let at = text.find("01010101").expect("the key stands in the certificate");
        let mut altered = saved;
        altered[at] = b'f';
        assert_eq!(MemberMap::load(&altered, &mut trust).map(|map| map.len()), Some(1), "a forged entry is left out");
        assert!(MemberMap::load(b"not a map", &mut trust).is_none());
    }
}
