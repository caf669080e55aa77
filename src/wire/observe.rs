//! "Where do you see me?": a question that anybody may put to a server's UDP ports, and its answer. First byte EC.
//!
//! Nothing in it is secret or proven, and nothing is kept for it. The answer is never longer than the question, so
//! that nobody is flooded through us by more than what was spent. Fixed places, zeroes where nothing is said:
//!
//! ```text
//!  0        1        2        3        4              16             32                51           53          61
//! +--------+--------+--------+--------+--------------+--------------+-----------------+------------+-----------+---
//! | EC     | 1 ask  | flags  | 0      | number of    | pass         | an address      | other port | seconds   | 0
//! |        | 2 tell |        |        | the question |              |                 |            | since 1970|
//! +--------+--------+--------+--------+--------------+--------------+-----------------+------------+-----------+---
//! ```
//!
//! With a *pass* the answer goes to the address that the pass was made for, and that its owner has given away with the
//! pass: so one socket of a host can have another one tried, to see whether its mapping in a NAT still lives.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::counters::DropReason;

/// The first byte.
pub const OBSERVE: u8 = 0xec;
/// Bytes of an answer, and the least a question may have.
pub const OBSERVE_LEN: usize = 64;
/// Bytes of a question at the most: what an Ethernet carries over IPv4.
pub const ASK_LEN_MAX: usize = 1472;

const ASK: u8 = 1;
const TELL: u8 = 2;
/// In a question: answer from the other port. In an answer: it comes from there.
const OTHER_PORT: u8 = 1;
/// In a question: the pass and the address are set.
const PASS: u8 = 2;

/// Proves that whoever has an address was asked first.
pub type Pass = [u8; 16];
/// A number nobody can guess.
pub type Number = [u8; 12];

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub number: Number,
    /// Answer from the other port.
    pub from_other: bool,
    /// Answer to this address.
    pub pass: Option<(Pass, SocketAddr)>,
    /// Bytes of the whole question.
    pub length: usize,
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tell {
    pub number: Number,
    pub from_other: bool,
    /// For later questions about `observed`.
    pub pass: Pass,
    pub observed: SocketAddr,
    /// The server's other port; 0 for none.
    pub other_port: u16,
    /// The server's clock.
    pub unix: u64,
}

impl Ask {
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; self.length.clamp(OBSERVE_LEN, ASK_LEN_MAX)];
        let flags = if self.from_other { OTHER_PORT } else { 0 } | if self.pass.is_some() { PASS } else { 0 };
        bytes[..4].copy_from_slice(&[OBSERVE, ASK, flags, 0]);
        bytes[4..16].copy_from_slice(&self.number);
        if let Some((pass, addr)) = self.pass {
            bytes[16..32].copy_from_slice(&pass);
            put(&mut bytes[32..51], addr);
        }
        bytes
    }

    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        if !(OBSERVE_LEN..=ASK_LEN_MAX).contains(&datagram.len()) || datagram[..2] != [OBSERVE, ASK] {
            return Err(DropReason::Malformed);
        }
        let flags = datagram[2];
        if flags & !(OTHER_PORT | PASS) != 0 || datagram[3] != 0 {
            return Err(DropReason::Malformed);
        }
        let pass = if flags & PASS != 0 {
            let addr = get(&datagram[32..51]).ok_or(DropReason::Malformed)?;
            Some((field(datagram, 16), addr))
        } else {
            None
        };
        Ok(Self { number: field(datagram, 4), from_other: flags & OTHER_PORT != 0, pass, length: datagram.len() })
    }
}

impl Tell {
    pub fn to_bytes(self) -> [u8; OBSERVE_LEN] {
        let mut bytes = [0; OBSERVE_LEN];
        bytes[..4].copy_from_slice(&[OBSERVE, TELL, if self.from_other { OTHER_PORT } else { 0 }, 0]);
        bytes[4..16].copy_from_slice(&self.number);
        bytes[16..32].copy_from_slice(&self.pass);
        put(&mut bytes[32..51], self.observed);
        bytes[51..53].copy_from_slice(&self.other_port.to_le_bytes());
        bytes[53..61].copy_from_slice(&self.unix.to_le_bytes());
        bytes
    }

    /// `None` for anything else.
    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() != OBSERVE_LEN || datagram[..2] != [OBSERVE, TELL] {
            return None;
        }
        Some(Self {
            number: field(datagram, 4),
            from_other: datagram[2] & OTHER_PORT != 0,
            pass: field(datagram, 16),
            observed: get(&datagram[32..51])?,
            other_port: u16::from_le_bytes(field(datagram, 51)),
            unix: u64::from_le_bytes(field(datagram, 53)),
        })
    }
}

fn field<const N: usize>(datagram: &[u8], at: usize) -> [u8; N] {
    datagram[at..at + N].try_into().expect("the length was checked")
}

/// Family, port, address, in 19 bytes.
fn put(place: &mut [u8], addr: SocketAddr) {
    place[1..3].copy_from_slice(&addr.port().to_le_bytes());
    match addr.ip() {
        IpAddr::V4(ip) => {
            place[0] = 4;
            place[3..7].copy_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            place[0] = 6;
            place[3..19].copy_from_slice(&ip.octets());
        }
    }
}

fn get(place: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_le_bytes(place[1..3].try_into().ok()?);
    let ip = match place[0] {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&place[3..7]).ok()?)),
        6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&place[3..19]).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn questions_and_answers_read_back() {
        let v6: SocketAddr = "[2001:db8::1]:7".parse().expect("an address");
        let v4: SocketAddr = "192.0.2.1:65535".parse().expect("an address");
        for ask in [
            Ask { number: [1; 12], from_other: false, pass: None, length: OBSERVE_LEN },
            Ask { number: [2; 12], from_other: true, pass: Some(([3; 16], v6)), length: 1400 },
        ] {
            assert_eq!(Ask::parse(&ask.to_bytes()), Ok(ask));
        }
        let tell =
            Tell { number: [1; 12], from_other: true, pass: [2; 16], observed: v4, other_port: 43440, unix: 1 << 33 };
        assert_eq!(Tell::parse(&tell.to_bytes()), Some(tell));
        assert!(Ask::parse(&tell.to_bytes()).is_err(), "an answer is no question: two servers do not talk for ever");
    }

    #[test]
    fn s_19_a_question_shorter_than_its_answer_is_refused() {
        let ask = Ask { number: [1; 12], from_other: false, pass: None, length: OBSERVE_LEN };
        let bytes = ask.to_bytes();
        println!("S-19: {} bytes answer at least {} bytes", OBSERVE_LEN, bytes.len());
        assert_eq!(Ask::parse(&bytes[..OBSERVE_LEN - 1]), Err(DropReason::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Ask::parse(&bytes), Tell::parse(&bytes));
            if bytes.len() > 1 {
                bytes[..2].copy_from_slice(&[OBSERVE, ASK]);
                let _ = Ask::parse(&bytes);
                bytes[1] = TELL;
                let _ = Tell::parse(&bytes);
            }
        }
    }
}
