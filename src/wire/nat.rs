//! What nodes say to each other about the NATs they are behind: control kinds 5 and 40 to 42.

use super::control::{Candidate, Reader, put_addr, put_candidates};
use crate::ids::PublicKey;
use std::net::SocketAddr;

/// What the NAT in front of a node does to a socket that speaks to several others (RFC 4787, 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NatKind {
    /// Not found out (yet): the server does not listen on a second port, or does not answer.
    #[default]
    Unknown,
    /// The server sees an address of one of our own interfaces.
    None,
    /// One outside port for all destinations: whom the server shows that port can send to it.
    Easy,
    /// Another outside port for each destination, each so much above the last one.
    Predictable(i16),
    /// Another outside port for each destination, nobody can say which.
    Hard,
}

impl NatKind {
    /// The word of the status.
    pub fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::None => "none",
            Self::Easy => "easy",
            Self::Predictable(_) => "predictable",
            Self::Hard => "hard",
        }
    }

    /// Whether the port that the server sees is not the one a peer would see.
    pub fn is_hard(self) -> bool {
        matches!(self, Self::Hard | Self::Predictable(_))
    }

    fn encode(self, out: &mut Vec<u8>) {
        let (kind, step) = match self {
            Self::Unknown => (0, 0),
            Self::None => (1, 0),
            Self::Easy => (2, 0),
            Self::Predictable(step) => (3, step),
            Self::Hard => (4, 0),
        };
        out.push(kind);
        out.extend(step.to_le_bytes());
    }

    fn decode(body: &mut Reader<'_>) -> Option<Self> {
        let (kind, step) = (body.u8()?, i16::from_le_bytes(body.array()?));
        Some(match kind {
            1 => Self::None,
            2 => Self::Easy,
            3 => Self::Predictable(step),
            4 => Self::Hard,
            _ => Self::Unknown,
        })
    }
}

/// Why somebody says [`NatMessage::PunchAt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// From the peer itself: my probes leave half a round trip from now, let yours leave when this comes.
    Meet = 0,
    /// To a go-between: tell `about` where I am, and that I want to meet.
    PassOn = 1,
    /// The same, but I was told by you where `about` is: it need not answer.
    PassBack = 2,
    /// From a go-between: `about` is there, wants to meet, and does not know where we are.
    Passed = 3,
    /// From a go-between: `about` is there, and knows where we are.
    PassedBack = 4,
    /// From the peer itself, behind a hard NAT: many sockets of mine have just sent to you, try many ports of mine.
    Spray = 5,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatMessage {
    /// Probe now, or in `delay_ms`. `about` is the peer that is meant; of [`Purpose::Meet`] and [`Purpose::Spray`] the
    /// sender. The candidates are those of the sender, or of `about` when a go-between says it.
    PunchAt { round: u32, delay_ms: u16, purpose: Purpose, about: PublicKey, candidates: Vec<Candidate> },
    /// "Where do you see me?"
    Reflect { nonce: u64 },
    /// "There; I listen on this port as well" (0 for none).
    Reflected { nonce: u64, addr: SocketAddr, port: u16 },
    /// The NAT in front of the sender.
    NatIs(NatKind),
}

impl NatMessage {
    /// The number before the body.
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::PunchAt { .. } => 5,
            Self::Reflect { .. } => 40,
            Self::Reflected { .. } => 41,
            Self::NatIs(_) => 42,
        }
    }

    pub(super) fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Self::PunchAt { round, delay_ms, purpose, about, candidates } => {
                out.extend(round.to_le_bytes());
                out.extend(delay_ms.to_le_bytes());
                out.push(*purpose as u8);
                out.extend(about.0);
                put_candidates(out, candidates);
            }
            Self::Reflect { nonce } => out.extend(nonce.to_le_bytes()),
            Self::Reflected { nonce, addr, port } => {
                out.extend(nonce.to_le_bytes());
                put_addr(out, *addr);
                out.extend(port.to_le_bytes());
            }
            Self::NatIs(kind) => kind.encode(out),
        }
    }

    /// As of [`Control`](super::control::Control): `None` for a body that does not fit, `Some(None)` for another kind.
    pub(super) fn decode_body(kind: u8, body: &mut Reader<'_>) -> Option<Option<Self>> {
        Some(Some(match kind {
            5 => Self::PunchAt {
                round: body.u32()?,
                delay_ms: u16::from_le_bytes(body.array()?),
                purpose: match body.u8()? {
                    0 => Purpose::Meet,
                    1 => Purpose::PassOn,
                    2 => Purpose::PassBack,
                    3 => Purpose::Passed,
                    4 => Purpose::PassedBack,
                    5 => Purpose::Spray,
                    _ => return None,
                },
                about: PublicKey(body.array()?),
                candidates: body.candidates()?,
            },
            40 => Self::Reflect { nonce: body.u64()? },
            41 => Self::Reflected { nonce: body.u64()?, addr: body.addr()?, port: u16::from_le_bytes(body.array()?) },
            42 => Self::NatIs(NatKind::decode(body)?),
            _ => return Some(None),
        }))
    }
}
