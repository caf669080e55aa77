//! What one end of a pair knows of why the two reach each other directly, or do not: a bounded list of facts that it
//! tells the other end inside their session.

use std::net::SocketAddr;

use super::control::{CANDIDATES_MAX, Candidate, CandidateKind, Reader, put_addr, put_candidates};

/// Addresses one account may name: with as many candidates and everything else it fits a control datagram.
pub const TRIES_MAX: usize = 16;

/// What the translators (NATs) between a host and the Internet do with the host's UDP ports (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Mapping {
    /// Nobody told, or too little was heard.
    #[default]
    Unknown = 0,
    /// The host has a public address itself.
    NoNat = 1,
    /// One outside port for all destinations: others can be told it.
    Independent = 2,
    /// Another outside port for each destination, next to the last one: it can be guessed.
    Predictable = 3,
    /// Another outside port for each destination, at random ("hard").
    Dependent = 4,
    /// UDP was asked, and nothing came back, though there is a way to the server by other means.
    Blocked = 5,
}

impl Mapping {
    fn of(byte: u8) -> Option<Self> {
        [Self::Unknown, Self::NoNat, Self::Independent, Self::Predictable, Self::Dependent, Self::Blocked]
            .into_iter()
            .find(|mapping| *mapping as u8 == byte)
    }

    /// In one word, for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NoNat => "none",
            Self::Independent => "endpoint-independent",
            Self::Predictable => "predictable",
            Self::Dependent => "endpoint-dependent",
            Self::Blocked => "udp-blocked",
        }
    }
}

/// One address of the other end, and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    pub addr: SocketAddr,
    /// `None` for an address that nobody announced and that a datagram came from.
    pub kind: Option<CandidateKind>,
    /// Probes and initiations that left for it.
    pub sent: u32,
    /// Replies to probes that came from it.
    pub answered: u32,
    /// Authentic datagrams of any kind that came from it.
    pub arrived: u32,
    /// The kernel's error number when the address is looked up in the routes; 0 for none.
    pub errno: u16,
}

/// One end's account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Side {
    /// Bits, see [`Side::has`].
    pub flags: u16,
    pub mapping: Mapping,
    /// Where a server sees the host, by a socket opened to ask.
    pub observed: Option<SocketAddr>,
    /// Where it says that it may be reached.
    pub own: Vec<Candidate>,
    /// What it tried towards the other end.
    pub tries: Vec<Try>,
}

impl Side {
    /// Direct paths are allowed by its configuration.
    pub const DIRECT: u16 = 1;
    /// It is connected to the server.
    pub const ATTACHED: u16 = 2;
    /// It has a route to IPv4 destinations of the Internet.
    pub const ROUTE4: u16 = 4;
    /// It has a route to IPv6 destinations of the Internet.
    pub const ROUTE6: u16 = 8;
    /// It speaks to the server by TCP, because UDP does not pass.
    pub const BY_TCP: u16 = 16;
    /// It tries many ports where one end's NAT is hard.
    pub const HARD_NAT: u16 = 32;
    /// Its network device is there.
    pub const DEVICE: u16 = 64;
    /// UDP to the server was answered when it was asked for this account.
    pub const UDP_ANSWERED: u16 = 128;

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub fn set(&mut self, flag: u16, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }

    /// Appends the account to a message.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.flags.to_le_bytes());
        out.push(self.mapping as u8);
        out.push(u8::from(self.observed.is_some()));
        if let Some(observed) = self.observed {
            put_addr(out, observed);
        }
        put_candidates(out, &self.own[..self.own.len().min(CANDIDATES_MAX)]);
        let tries = &self.tries[..self.tries.len().min(TRIES_MAX)];
        out.push(tries.len() as u8);
        for one in tries {
            put_addr(out, one.addr);
            out.push(one.kind.map_or(0, |kind| kind as u8));
            for count in [one.sent, one.answered, one.arrived] {
                out.extend(count.to_le_bytes());
            }
            out.extend(one.errno.to_le_bytes());
        }
    }

    /// Reads an account.
    pub(super) fn decode(body: &mut Reader<'_>) -> Option<Self> {
        let flags = u16::from_le_bytes(body.array()?);
        let mapping = Mapping::of(body.u8()?)?;
        let observed = if body.bool()? { Some(body.addr()?) } else { None };
        let own = body.candidates()?;
        let count = usize::from(body.u8()?);
        if count > TRIES_MAX {
            return None;
        }
        let tries = (0..count)
            .map(|_| {
                let addr = body.addr()?;
                let kind = match body.u8()? {
                    0 => None,
                    byte => Some(CandidateKind::of(byte)?),
                };
                let (sent, answered, arrived) = (body.u32()?, body.u32()?, body.u32()?);
                Some(Try { addr, kind, sent, answered, arrived, errno: u16::from_le_bytes(body.array()?) })
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { flags, mapping, observed, own, tries })
    }
}

#[cfg(test)]
mod tests {
    use super::super::control::{CONTROL_LEN_MAX, Control};
    use super::*;

    #[test]
    fn a_full_account_fits_one_datagram() {
        let addr: SocketAddr = "[2001:db8::1]:65535".parse().expect("an address");
        let one = Try { addr, kind: Some(CandidateKind::Mapped), sent: 1, answered: 2, arrived: 3, errno: 101 };
        let side = Side {
            flags: Side::DIRECT | Side::UDP_ANSWERED,
            mapping: Mapping::Dependent,
            observed: Some(addr),
            own: vec![Candidate { kind: CandidateKind::Host, addr }; CANDIDATES_MAX],
            tries: vec![one; TRIES_MAX],
        };
        let message = Control::WhySay { nonce: 1, side: Box::new(side) };
        let bytes = message.to_bytes();
        assert!(bytes.len() <= CONTROL_LEN_MAX, "{}", bytes.len());
        assert_eq!(Control::decode_list(&bytes), Ok(vec![message]));
    }

    #[test]
    fn a_kind_of_mapping_that_is_not_known_is_refused() {
        let mut bytes = Control::WhySay { nonce: 1, side: Box::default() }.to_bytes();
        assert!(Control::decode_list(&bytes).is_ok());
        bytes[4 + 8 + 2] = 99;
        assert!(Control::decode_list(&bytes).is_err());
    }
}
