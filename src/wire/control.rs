//! Control messages: the plaintext of CTRL, a list of {kind u8, flags u8, length u16, body}; an empty list is a
//! keepalive.
//!
//! Messages carry state, not change: each makes sense when it is lost, repeated or late. A kind this version does not
//! know is skipped, so that newer nodes can say more; a known kind with a body that does not fit is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use super::cert::CERT_LEN;
use super::nat::NatMessage;
use super::why::Side;
use crate::counters::DropReason;
use crate::ids::{ChannelToken, NodeId, PublicKey};

/// Plaintext bytes a control datagram is filled to at the most: 1,280 (the least IPv6 MTU) less IPv6 and UDP headers,
/// a RELAY header and the seal's 32 bytes.
pub const CONTROL_LEN_MAX: usize = 1280 - 48 - 16 - 32;
/// Candidates one message may name.
pub const CANDIDATES_MAX: usize = 16;
/// Map entries put into one [`Control::PeerDelta`], so that it fits [`CONTROL_LEN_MAX`] with the longest names.
pub const DELTA_ENTRIES_MAX: usize = 4;
/// Peers one [`Control::Stats`] reports on.
pub const STATS_PEERS_MAX: usize = 40;

/// Subnets one member may offer.
pub const OFFER_MAX: usize = 16;
/// Routes in one part of a [`Control::RouteTable`], so that it fits [`CONTROL_LEN_MAX`] with IPv6 alone.
pub const TABLE_PART: usize = 40;
/// Parts of a table at the most.
pub const TABLE_PARTS_MAX: usize = 8;

/// A subnet behind a member, as the server allows it; `0.0.0.0/0` is the way to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublishedRoute {
    /// The first eight bytes of the member's node id, which tell members of one network apart.
    pub member: [u8; 8],
    /// Without host bits.
    pub subnet: IpNet,
}

/// Where an address of a candidate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum CandidateKind {
    /// An address of one of the host's interfaces.
    Host = 1,
    /// The address the server sees.
    Observed = 2,
    /// An address a gateway maps to us.
    Mapped = 3,
    /// A guess at what a NAT will use next.
    Predicted = 4,
}

impl CandidateKind {
    pub(super) fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Host,
            2 => Self::Observed,
            3 => Self::Mapped,
            4 => Self::Predicted,
            _ => return None,
        })
    }
}

/// An address a peer may be reached at; nobody has answered from it yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Candidate {
    pub kind: CandidateKind,
    pub addr: SocketAddr,
}

/// Why a lease was not granted; the text for people comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RefusalCode {
    PoolExhausted = 1,
    NameTaken = 2,
    InvalidName = 3,
    NotInvited = 4,
    Store = 5,
}

/// A member in the map. The certificate is what the receiver believes, after checking its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    pub name: String,
    pub certificate: [u8; CERT_LEN],
    /// Whether the member is connected to the server at this moment.
    pub online: bool,
}

/// One change of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MapChange {
    Put(MapEntry),
    Remove(PublicKey),
}

/// How a client reaches a peer, as its statistics say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerReport {
    pub peer: NodeId,
    pub direct: bool,
    /// Microseconds; 0 while unknown.
    pub rtt_us: u32,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// One control message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// Is this path alive? `padding` zero bytes follow, to try larger datagrams.
    Probe {
        sequence: u32,
        challenge: u64,
        sent_us: u32,
        path: u8,
        padding: u16,
    },
    /// The same numbers, and where the probe was seen to come from.
    ProbeReply {
        sequence: u32,
        challenge: u64,
        sent_us: u32,
        path: u8,
        observed: SocketAddr,
    },
    /// Beside the reply to the probe `sequence`, by the same path: how many datagrams of the session had come by it when
    /// the probe did, and their bytes, copies of others among them.
    PathReport {
        sequence: u32,
        datagrams: u64,
        bytes: u64,
    },
    /// All addresses the sender may be reached at; a higher generation replaces a lower one.
    Candidates {
        generation: u32,
        list: Vec<Candidate>,
    },
    /// A signed revocation, passed on as it is.
    Revoke(Vec<u8>),
    /// A new certificate of the sender (from a peer) or of the receiver (from the server).
    Cert([u8; CERT_LEN]),
    /// The sender ends: sessions and paths to it are void.
    Goodbye {
        reason: u8,
    },
    /// So many messages of the receiver, sealed whole, came incomplete so far: too many for the moment.
    Broken {
        messages: u64,
    },
    /// "I am this key, called so; lease me addresses."
    LeaseRequest {
        name: String,
    },
    /// The lease, as a certificate; the key that signs in this network; the network's epoch.
    LeaseGrant {
        certificate: [u8; CERT_LEN],
        signer: [u8; 32],
        epoch: u64,
        name: String,
    },
    LeaseRefused {
        code: RefusalCode,
        text: String,
    },
    /// "Take the lease back"; answered by `LeaseReleased`.
    LeaseRelease,
    LeaseReleased,
    PeerLookup {
        key: PublicKey,
    },
    /// How to reach a peer: the relay channel's token of the receiver, and addresses to try. `introduced`: the other
    /// side asked, so try at once.
    PeerAnswer {
        entry: MapEntry,
        introduced: bool,
        token: ChannelToken,
        candidates: Vec<Candidate>,
    },
    /// Changes of the map above version `from` up to and including `to`, of `head`. `reset`: `from` is 0 and what is
    /// not named until `head` is gone.
    PeerDelta {
        from: u64,
        to: u64,
        head: u64,
        reset: bool,
        changes: Vec<MapChange>,
    },
    /// A client's keepalive to the server: the version of the map it has.
    MapHave {
        version: u64,
    },
    /// The answer to `MapHave`: how the server sees the client, and the newest version and epoch.
    Observed {
        addr: SocketAddr,
        head: u64,
        epoch: u64,
    },
    /// All subnets that a client would forward to (often none), and the version of the table of routes it has, 0 for
    /// none. Who says this understands `RouteTable`.
    RouteOffer {
        have: u64,
        list: Vec<IpNet>,
    },
    /// The table of all routes in the network: part `part` of `parts`; one without routes has one empty part.
    RouteTable {
        version: u64,
        part: u8,
        parts: u8,
        routes: Vec<PublishedRoute>,
    },
    /// A client's totals since its start, and its peers.
    Stats {
        rx_bytes: u64,
        tx_bytes: u64,
        peers: Vec<PeerReport>,
    },
    /// About NATs and ways through them.
    Nat(NatMessage),
    /// The sender's ways out have changed: paths to it that were proven before may be void. `number` tells one such
    /// change from another.
    Moved {
        number: u32,
    },
    /// Somebody at the sender's end wants to know how this peer is reached; answered by `Pong` the way it came.
    Ping {
        id: u64,
    },
    /// The same number, and where the ping was seen to come from.
    Pong {
        id: u64,
        observed: SocketAddr,
    },
    /// Why is this pair direct, or not? Answered by `WhySay` with the same number.
    WhyAsk {
        nonce: u64,
    },
    WhySay {
        nonce: u64,
        side: Box<Side>,
    },
}

impl Control {
    /// Appends the message to a list.
    pub fn encode(&self, list: &mut Vec<u8>) {
        let start = list.len();
        list.extend([self.kind(), 0, 0, 0]);
        self.encode_body(list);
        let length = u16::try_from(list.len() - start - 4).expect("control messages are far below 64 KiB");
        list[start + 2..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    /// The plaintext of a datagram that holds just this message.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut list = Vec::with_capacity(64);
        self.encode(&mut list);
        list
    }

    /// Reads a whole list. Kinds unknown to this version are left out.
    pub fn decode_list(mut list: &[u8]) -> Result<Vec<Self>, DropReason> {
        let mut messages = Vec::new();
        while !list.is_empty() {
            let [kind, _flags, low, high, rest @ ..] = list else { return Err(DropReason::Malformed) };
            let length = usize::from(u16::from_le_bytes([*low, *high]));
            let (body, rest) = rest.split_at_checked(length).ok_or(DropReason::Malformed)?;
            let mut reader = Reader(body);
            if let Some(message) = Self::decode_body(*kind, &mut reader).ok_or(DropReason::Malformed)? {
                messages.push(message);
            }
            list = rest;
        }
        Ok(messages)
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Nat(message) => message.kind(),
            Self::Probe { .. } => 1,
            Self::ProbeReply { .. } => 2,
            Self::PathReport { .. } => 3,
            Self::Candidates { .. } => 4,
            Self::Revoke(_) => 6,
            Self::Cert(_) => 7,
            Self::Goodbye { .. } => 9,
            Self::Broken { .. } => 10,
            Self::LeaseRequest { .. } => 16,
            Self::LeaseGrant { .. } => 17,
            Self::LeaseRefused { .. } => 18,
            Self::LeaseRelease => 19,
            Self::PeerLookup { .. } => 20,
            Self::PeerAnswer { .. } => 21,
            Self::PeerDelta { .. } => 22,
            Self::MapHave { .. } => 23,
            Self::Observed { .. } => 24,
            Self::LeaseReleased => 25,
            Self::Stats { .. } => 27,
            Self::Moved { .. } => 50,
            Self::RouteOffer { .. } => 52,
            Self::RouteTable { .. } => 53,
            Self::Ping { .. } => 46,
            Self::Pong { .. } => 47,
            Self::WhyAsk { .. } => 48,
            Self::WhySay { .. } => 49,
        }
    }

    fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::Probe { sequence, challenge, sent_us, path, padding } => {
                put_probe(out, *sequence, *challenge, *sent_us, *path);
                out.resize(out.len() + usize::from(*padding), 0);
            }
            Self::ProbeReply { sequence, challenge, sent_us, path, observed } => {
                put_probe(out, *sequence, *challenge, *sent_us, *path);
                put_addr(out, *observed);
            }
            Self::PathReport { sequence, datagrams, bytes } => {
                out.extend(sequence.to_le_bytes());
                out.extend(datagrams.to_le_bytes());
                out.extend(bytes.to_le_bytes());
            }
            Self::Candidates { generation, list } => {
                out.extend(generation.to_le_bytes());
                put_candidates(out, list);
            }
            Self::Revoke(object) => out.extend(object),
            Self::Cert(certificate) => out.extend(certificate),
            Self::Goodbye { reason } => out.push(*reason),
            Self::Broken { messages } => out.extend(messages.to_le_bytes()),
            Self::LeaseRequest { name } => put_text(out, name),
            Self::LeaseGrant { certificate, signer, epoch, name } => {
                out.extend(certificate);
                out.extend(signer);
                out.extend(epoch.to_le_bytes());
                put_text(out, name);
            }
            Self::LeaseRefused { code, text } => {
                out.push(*code as u8);
                put_text(out, text);
            }
            Self::LeaseRelease | Self::LeaseReleased => {}
            Self::Nat(message) => message.encode_body(out),
            Self::Moved { number } => out.extend(number.to_le_bytes()),
            Self::PeerLookup { key } => out.extend(key.0),
            Self::PeerAnswer { entry, introduced, token, candidates } => {
                out.push(u8::from(*introduced));
                out.extend(token.0.to_le_bytes());
                put_entry(out, entry);
                put_candidates(out, candidates);
            }
            Self::PeerDelta { from, to, head, reset, changes } => {
                out.push(u8::from(*reset));
                for version in [from, to, head] {
                    out.extend(version.to_le_bytes());
                }
                out.push(changes.len() as u8);
                for change in changes {
                    match change {
                        MapChange::Put(entry) => {
                            out.push(1);
                            put_entry(out, entry);
                        }
                        MapChange::Remove(key) => {
                            out.push(0);
                            out.extend(key.0);
                        }
                    }
                }
            }
            Self::MapHave { version } => out.extend(version.to_le_bytes()),
            Self::Observed { addr, head, epoch } => {
                put_addr(out, *addr);
                out.extend(head.to_le_bytes());
                out.extend(epoch.to_le_bytes());
            }
            Self::RouteOffer { have, list } => {
                out.extend(have.to_le_bytes());
                let list = &list[..list.len().min(OFFER_MAX)];
                out.push(list.len() as u8);
                list.iter().for_each(|subnet| put_subnet(out, *subnet));
            }
            Self::RouteTable { version, part, parts, routes } => {
                out.extend(version.to_le_bytes());
                let routes = &routes[..routes.len().min(TABLE_PART)];
                out.extend([*part, *parts, routes.len() as u8]);
                for route in routes {
                    out.extend(route.member);
                    put_subnet(out, route.subnet);
                }
            }
            Self::Stats { rx_bytes, tx_bytes, peers } => {
                out.extend(rx_bytes.to_le_bytes());
                out.extend(tx_bytes.to_le_bytes());
                let peers = &peers[..peers.len().min(STATS_PEERS_MAX)];
                out.push(peers.len() as u8);
                for report in peers {
                    // Eight bytes of the node id tell members of one network apart.
                    out.extend(&report.peer.0[..8]);
                    out.push(u8::from(report.direct));
                    out.extend(report.rtt_us.to_le_bytes());
                    out.extend(report.rx_bytes.to_le_bytes());
                    out.extend(report.tx_bytes.to_le_bytes());
                }
            }
            Self::Ping { id } => {
                out.extend(id.to_le_bytes());
                // As long as its answer.
                out.extend([0; PING_PADDING]);
            }
            Self::Pong { id, observed } => {
                out.extend(id.to_le_bytes());
                put_addr(out, *observed);
            }
            Self::WhyAsk { nonce } => out.extend(nonce.to_le_bytes()),
            Self::WhySay { nonce, side } => {
                out.extend(nonce.to_le_bytes());
                side.encode(out);
            }
        }
    }

    /// `None` for a body that does not fit its kind, `Some(None)` for a kind that is not known.
    fn decode_body(kind: u8, body: &mut Reader<'_>) -> Option<Option<Self>> {
        let message = match kind {
            1 => {
                let (sequence, challenge, sent_us, path) = body.probe()?;
                let padding = u16::try_from(body.0.len()).ok()?;
                body.0 = &[];
                Self::Probe { sequence, challenge, sent_us, path, padding }
            }
            2 => {
                let (sequence, challenge, sent_us, path) = body.probe()?;
                Self::ProbeReply { sequence, challenge, sent_us, path, observed: body.addr()? }
            }
            3 => Self::PathReport { sequence: body.u32()?, datagrams: body.u64()?, bytes: body.u64()? },
            4 => Self::Candidates { generation: body.u32()?, list: body.candidates()? },
            6 => Self::Revoke(std::mem::take(&mut body.0).to_vec()),
            7 => Self::Cert(body.array()?),
            9 => Self::Goodbye { reason: body.u8()? },
            10 => Self::Broken { messages: body.u64()? },
            16 => Self::LeaseRequest { name: body.text()? },
            17 => Self::LeaseGrant {
                certificate: body.array()?,
                signer: body.array()?,
                epoch: body.u64()?,
                name: body.text()?,
            },
            18 => Self::LeaseRefused { code: body.refusal_code()?, text: body.text()? },
            19 => Self::LeaseRelease,
            20 => Self::PeerLookup { key: PublicKey(body.array()?) },
            21 => Self::PeerAnswer {
                introduced: body.bool()?,
                token: ChannelToken(body.u64()?),
                entry: body.entry()?,
                candidates: body.candidates()?,
            },
            22 => Self::PeerDelta {
                reset: body.bool()?,
                from: body.u64()?,
                to: body.u64()?,
                head: body.u64()?,
                changes: body.changes()?,
            },
            23 => Self::MapHave { version: body.u64()? },
            24 => Self::Observed { addr: body.addr()?, head: body.u64()?, epoch: body.u64()? },
            25 => Self::LeaseReleased,
            27 => Self::Stats { rx_bytes: body.u64()?, tx_bytes: body.u64()?, peers: body.reports()? },
            46 => {
                let id = body.u64()?;
                body.array::<PING_PADDING>()?;
                Self::Ping { id }
            }
            47 => Self::Pong { id: body.u64()?, observed: body.addr()? },
            48 => Self::WhyAsk { nonce: body.u64()? },
            49 => Self::WhySay { nonce: body.u64()?, side: Box::new(Side::decode(body)?) },
            50 => Self::Moved { number: body.u32()? },
            52 => Self::RouteOffer { have: body.u64()?, list: body.subnets()? },
            53 => {
                let (version, part, parts) = (body.u64()?, body.u8()?, body.u8()?);
                if part >= parts || usize::from(parts) > TABLE_PARTS_MAX {
                    return None;
                }
                Self::RouteTable { version, part, parts, routes: body.routes()? }
            }
            _ => match NatMessage::decode_body(kind, body)? {
                Some(message) => Self::Nat(message),
                None => return Some(None),
            },
        };
        body.0.is_empty().then_some(Some(message))
    }
}

/// Zeroes in a ping: the longest address, which its answer names.
const PING_PADDING: usize = 19;

fn put_probe(out: &mut Vec<u8>, sequence: u32, challenge: u64, sent_us: u32, path: u8) {
    out.extend(sequence.to_le_bytes());
    out.extend(challenge.to_le_bytes());
    out.extend(sent_us.to_le_bytes());
    out.push(path);
}

/// Family 4 or 6, port, address.
pub(super) fn put_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    match addr.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend(addr.port().to_le_bytes());
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend(addr.port().to_le_bytes());
            out.extend(ip.octets());
        }
    }
}

pub(super) fn put_candidates(out: &mut Vec<u8>, list: &[Candidate]) {
    let list = &list[..list.len().min(CANDIDATES_MAX)];
    out.push(list.len() as u8);
    for candidate in list {
        out.push(candidate.kind as u8);
        put_addr(out, candidate.addr);
    }
}

/// Family 4 or 6, prefix length, address.
fn put_subnet(out: &mut Vec<u8>, subnet: IpNet) {
    match subnet {
        IpNet::V4(net) => {
            out.extend([4, net.prefix_len()]);
            out.extend(net.network().octets());
        }
        IpNet::V6(net) => {
            out.extend([6, net.prefix_len()]);
            out.extend(net.network().octets());
        }
    }
}

/// Length in one byte, then the text, cut at a character's edge when it is longer than that allows.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(255);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.push(end as u8);
    out.extend(&text.as_bytes()[..end]);
}

fn put_entry(out: &mut Vec<u8>, entry: &MapEntry) {
    out.push(u8::from(entry.online));
    out.extend(entry.certificate);
    put_text(out, &entry.name);
}

/// Takes values off the front of a body; every method is `None` at its end.
pub(super) struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::from(self.u8()?);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).ok()
    }

    fn probe(&mut self) -> Option<(u32, u64, u32, u8)> {
        Some((self.u32()?, self.u64()?, self.u32()?, self.u8()?))
    }

    pub(super) fn addr(&mut self) -> Option<SocketAddr> {
        let family = self.u8()?;
        let port = u16::from_le_bytes(self.array()?);
        let ip = match family {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    }

    pub(super) fn candidates(&mut self) -> Option<Vec<Candidate>> {
        let count = usize::from(self.u8()?);
        if count > CANDIDATES_MAX {
            return None;
        }
        (0..count)
            .map(|_| {
                let kind = CandidateKind::of(self.u8()?)?;
                Some(Candidate { kind, addr: self.addr()? })
            })
            .collect()
    }

    fn entry(&mut self) -> Option<MapEntry> {
        Some(MapEntry { online: self.bool()?, certificate: self.array()?, name: self.text()? })
    }

    fn changes(&mut self) -> Option<Vec<MapChange>> {
        let count = self.u8()?;
        (0..count)
            .map(|_| match self.u8()? {
                1 => Some(MapChange::Put(self.entry()?)),
                0 => Some(MapChange::Remove(PublicKey(self.array()?))),
                _ => None,
            })
            .collect()
    }

    fn refusal_code(&mut self) -> Option<RefusalCode> {
        Some(match self.u8()? {
            1 => RefusalCode::PoolExhausted,
            2 => RefusalCode::NameTaken,
            3 => RefusalCode::InvalidName,
            4 => RefusalCode::NotInvited,
            5 => RefusalCode::Store,
            _ => return None,
        })
    }

    fn subnet(&mut self) -> Option<IpNet> {
        let (family, prefix) = (self.u8()?, self.u8()?);
        let ip = match family {
            4 => IpAddr::V4(Ipv4Addr::from(self.array::<4>()?)),
            6 => IpAddr::V6(Ipv6Addr::from(self.array::<16>()?)),
            _ => return None,
        };
        IpNet::new(ip, prefix).ok().filter(|net| net.addr() == net.network())
    }

    fn subnets(&mut self) -> Option<Vec<IpNet>> {
        let count = usize::from(self.u8()?);
        if count > OFFER_MAX {
            return None;
        }
        (0..count).map(|_| self.subnet()).collect()
    }

    fn routes(&mut self) -> Option<Vec<PublishedRoute>> {
        let count = usize::from(self.u8()?);
        if count > TABLE_PART {
            return None;
        }
        (0..count).map(|_| Some(PublishedRoute { member: self.array()?, subnet: self.subnet()? })).collect()
    }

    fn reports(&mut self) -> Option<Vec<PeerReport>> {
        let count = usize::from(self.u8()?);
        if count > STATS_PEERS_MAX {
            return None;
        }
        (0..count)
            .map(|_| {
                let mut id = [0; 16];
                id[..8].copy_from_slice(&self.array::<8>()?);
                Some(PeerReport {
                    peer: NodeId(id),
                    direct: self.bool()?,
                    rtt_us: self.u32()?,
                    rx_bytes: self.u64()?,
                    tx_bytes: self.u64()?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::nat::{NatKind, Purpose};
    use super::super::why::Try;
    use super::*;
    use proptest::prelude::*;

    fn entry() -> MapEntry {
        MapEntry { name: "n".repeat(63), certificate: [7; CERT_LEN], online: true }
    }

    fn subnet(text: &str) -> IpNet {
        text.parse().expect("a subnet")
    }

    fn one_of_each() -> Vec<Control> {
        let v4: SocketAddr = "192.0.2.1:43439".parse().expect("an address");
        let v6: SocketAddr = "[2001:db8::1]:1".parse().expect("an address");
        let candidates = vec![
            Candidate { kind: CandidateKind::Host, addr: v4 },
            Candidate { kind: CandidateKind::Observed, addr: v6 },
        ];
        vec![
            Control::Probe { sequence: 1, challenge: 2, sent_us: 3, path: 4, padding: 100 },
            Control::ProbeReply { sequence: 1, challenge: 2, sent_us: 3, path: 4, observed: v6 },
            Control::PathReport { sequence: 7, datagrams: 1 << 40, bytes: 1 << 50 },
            Control::Candidates { generation: 9, list: candidates.clone() },
            Control::Revoke(vec![1, 2, 3]),
            Control::Cert([8; CERT_LEN]),
            Control::Goodbye { reason: 1 },
            Control::Broken { messages: 1 << 40 },
            Control::LeaseRequest { name: "laptop".into() },
            Control::LeaseGrant { certificate: [1; CERT_LEN], signer: [2; 32], epoch: 3, name: "laptop".into() },
            Control::LeaseRefused { code: RefusalCode::NameTaken, text: "why".into() },
            Control::LeaseRelease,
            Control::LeaseReleased,
            Control::PeerLookup { key: PublicKey([4; 32]) },
            Control::PeerAnswer { entry: entry(), introduced: true, token: ChannelToken(5), candidates },
            Control::PeerDelta {
                from: 1,
                to: 3,
                head: 9,
                reset: false,
                changes: vec![MapChange::Put(entry()), MapChange::Remove(PublicKey([6; 32]))],
            },
            Control::MapHave { version: 7 },
            Control::Observed { addr: v4, head: 8, epoch: 2 },
            Control::RouteOffer { have: 5, list: vec![subnet("10.1.0.0/16"), subnet("fd00:1::/48")] },
            Control::RouteTable {
                version: 6,
                part: 0,
                parts: 1,
                routes: vec![PublishedRoute { member: [3; 8], subnet: subnet("0.0.0.0/0") }],
            },
            Control::Stats {
                rx_bytes: 1,
                tx_bytes: 2,
                peers: vec![PeerReport { peer: NodeId([0; 16]), direct: true, rtt_us: 9, rx_bytes: 5, tx_bytes: 6 }],
            },
            Control::Nat(NatMessage::PunchAt {
                round: 3,
                delay_ms: 40,
                purpose: Purpose::Passed,
                about: PublicKey([4; 32]),
                candidates: vec![Candidate { kind: CandidateKind::Predicted, addr: v4 }],
            }),
            Control::Nat(NatMessage::Reflect { nonce: 7 }),
            Control::Nat(NatMessage::Reflected { nonce: 7, addr: v6, port: 43440 }),
            Control::Nat(NatMessage::NatIs(NatKind::Predictable(-3))),
            Control::Moved { number: 1 << 30 },
            Control::Ping { id: 10 },
            Control::Pong { id: 10, observed: v6 },
            Control::WhyAsk { nonce: 11 },
            Control::WhySay {
                nonce: 11,
                side: Box::new(Side {
                    flags: 3,
                    observed: Some(v4),
                    own: vec![Candidate { kind: CandidateKind::Mapped, addr: v4 }],
                    tries: vec![Try { addr: v6, kind: None, sent: 1, answered: 2, arrived: 3, errno: 4 }],
                    ..Side::default()
                }),
            },
        ]
    }

    #[test]
    fn a_list_of_one_of_each_message_reads_back() {
        let messages = one_of_each();
        let mut list = Vec::new();
        messages.iter().for_each(|message| message.encode(&mut list));
        assert_eq!(Control::decode_list(&list), Ok(messages));
    }

    #[test]
    fn a_kind_of_a_newer_version_is_skipped_and_the_rest_is_read() {
        let mut list = vec![200, 0, 2, 0, 1, 2];
        Control::MapHave { version: 1 }.encode(&mut list);
        assert_eq!(Control::decode_list(&list), Ok(vec![Control::MapHave { version: 1 }]));
    }

    #[test]
    fn every_message_cut_short_or_too_long_is_refused() {
        for message in one_of_each() {
            if matches!(message, Control::Revoke(_) | Control::Probe { .. }) {
                continue;
            }
            let whole = message.to_bytes();
            for cut in 1..whole.len() {
                assert!(Control::decode_list(&whole[..cut]).is_err(), "{message:?} cut to {cut}");
            }
            let mut longer = whole.clone();
            longer.push(0);
            let length = (longer.len() - 4) as u16;
            longer[2..4].copy_from_slice(&length.to_le_bytes());
            assert!(Control::decode_list(&longer).is_err(), "{message:?} with a byte more");
        }
    }

    #[test]
    fn a_full_delta_and_full_statistics_fit_one_datagram() {
        let changes = vec![MapChange::Put(entry()); DELTA_ENTRIES_MAX];
        let delta = Control::PeerDelta { from: 0, to: 1, head: 1, reset: true, changes };
        assert!(delta.to_bytes().len() <= CONTROL_LEN_MAX, "{}", delta.to_bytes().len());
        let report = PeerReport { peer: NodeId([1; 16]), direct: true, rtt_us: 1, rx_bytes: 1, tx_bytes: 1 };
        let stats = Control::Stats { rx_bytes: 1, tx_bytes: 1, peers: vec![report; STATS_PEERS_MAX] };
        assert!(stats.to_bytes().len() <= CONTROL_LEN_MAX, "{}", stats.to_bytes().len());
        let routes = vec![PublishedRoute { member: [1; 8], subnet: subnet("fd00::/64") }; TABLE_PART];
        let table = Control::RouteTable { version: 1, part: 0, parts: 8, routes };
        assert!(table.to_bytes().len() <= CONTROL_LEN_MAX, "{}", table.to_bytes().len());
    }

    #[test]
    fn a_subnet_with_host_bits_or_a_prefix_too_long_is_refused() {
        let whole = Control::RouteOffer { have: 0, list: vec![subnet("10.1.0.0/16")] }.to_bytes();
        for (at, byte) in [(14, 33), (14, 8), (13, 5)] {
            let mut bad = whole.clone();
            bad[at] = byte;
            assert!(Control::decode_list(&bad).is_err(), "byte {at} = {byte}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Control::decode_list(&bytes);
        }
    }
}
