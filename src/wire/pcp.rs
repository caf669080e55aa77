//! PCP (RFC 6887), as far as mappings of IPv4 go: what is asked of a gateway on UDP port 5351, and what it answers.
//! Numbers are big-endian, addresses 16 bytes (IPv4 ones mapped into IPv6).
//!
//! ```text
//! request  2 | operation | reserved 2 | lifetime 4 | our own address 16
//! answer   2 | 128 + operation | 0 | result | lifetime 4 | epoch 4 | reserved 12
//! MAP (1)  nonce 12 | protocol | reserved 3 | inside port 2 | outside port 2 | outside address 16
//! ```
//!
//! ANNOUNCE (0) has nothing after the header; it asks whether there is a server, and gateways send its answer unasked
//! to 224.0.0.1 port 5350 when they have lost their table (section 14.1).

use std::net::{Ipv4Addr, Ipv6Addr};

use super::natpmp::{Transport, array};

const VERSION: u8 = 2;
const ANSWER: u8 = 0x80;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
const HEADER: usize = 24;
/// The longest message there may be (section 7).
const LONGEST: usize = 1100;

/// Chosen by who asks first; whoever does not know it cannot change the mapping.
pub type Nonce = [u8; 12];

/// What a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// 0 for done, or a code of section 7.4.
    pub result: u8,
    /// Of the mapping, or how long the error will last; seconds.
    pub lifetime: u32,
    /// Seconds since the gateway began to keep its table.
    pub epoch: u32,
    /// `None` for an answer to ANNOUNCE.
    pub mapping: Option<Mapping>,
}

/// The part of an answer that is about a mapping. In a refusal it repeats the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    pub nonce: Nonce,
    pub protocol: u8,
    pub inside: u16,
    pub outside: u16,
    /// `None` for an address that is not IPv4.
    pub address: Option<Ipv4Addr>,
}

/// Asks whether there is a server; `own` is the address the request comes from.
pub fn ask_announce(own: Ipv4Addr) -> Vec<u8> {
    header(ANNOUNCE, 0, own)
}

/// Asks for a mapping for `lifetime` seconds; 0 deletes it. `outside` and `address` are wishes, 0 and 0.0.0.0 for none.
pub fn ask_mapping(
    (own, nonce): (Ipv4Addr, Nonce),
    transport: Transport,
    inside: u16,
    (address, outside): (Ipv4Addr, u16),
    lifetime: u32,
) -> Vec<u8> {
    let mut request = header(MAP, lifetime, own);
    request.extend(nonce);
    request.extend([transport.protocol(), 0, 0, 0]);
    request.extend(inside.to_be_bytes());
    request.extend(outside.to_be_bytes());
    request.extend(address.to_ipv6_mapped().octets());
    request
}

fn header(operation: u8, lifetime: u32, own: Ipv4Addr) -> Vec<u8> {
    let mut request = vec![VERSION, operation, 0, 0];
    request.extend(lifetime.to_be_bytes());
    request.extend(own.to_ipv6_mapped().octets());
    request
}

/// Whether this says that the gateway speaks NAT-PMP only: its answer to a request of a version it does not know
/// (RFC 6886, section 3.5).
pub fn is_unknown_version(bytes: &[u8]) -> bool {
    matches!(bytes, [0, operation, 0, 1, ..] if *operation >= ANSWER && bytes.len() >= 8)
}

/// Reads an answer; `None` if it is none, or none of this version.
pub fn parse(bytes: &[u8]) -> Option<Answer> {
    if bytes.len() < HEADER || bytes.len() > LONGEST || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let [VERSION, operation, _, result, ..] = *bytes else { return None };
    let mapping = match operation.checked_sub(ANSWER)? {
        ANNOUNCE => None,
        MAP => Some(Mapping {
            nonce: array(bytes, HEADER)?,
            protocol: *bytes.get(HEADER + 12)?,
            inside: u16::from_be_bytes(array(bytes, HEADER + 16)?),
            outside: u16::from_be_bytes(array(bytes, HEADER + 18)?),
            address: Ipv6Addr::from(array::<16>(bytes, HEADER + 20)?).to_ipv4_mapped(),
        }),
        _ => return None,
    };
    let number = |at| array(bytes, at).map(u32::from_be_bytes);
    Some(Answer { result, lifetime: number(4)?, epoch: number(8)?, mapping })
}

/// A result code in words.
pub fn refusal(code: u8) -> &'static str {
    match code {
        1 => "it speaks another version",
        2 => "it does not allow it, or somebody else has the mapping",
        3 | 6 => "it could not read the request",
        4 | 5 => "it does not know how",
        7 => "it has trouble with its network",
        8 | 10 => "it has no room for another mapping",
        9 => "it does not map this protocol",
        11 => "it cannot give that outside port",
        12 => "there is another NAT on the way to it",
        13 => "it was asked for too many peers",
        _ => "for a reason it has no word for",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const NONCE: Nonce = *b"twelve bytes";

    fn granted() -> Vec<u8> {
        let mut bytes = vec![2, 129, 0, 0, 0, 0, 0x1c, 0x20, 0, 0, 1, 0];
        bytes.extend([0; 12]);
        bytes.extend(NONCE);
        bytes.extend([17, 0, 0, 0, 0xa9, 0xaf, 0xa9, 0xb0]);
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7]);
        bytes
    }

    #[test]
    fn requests_are_laid_out_as_the_rfc_draws_them() {
        let own = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2];
        assert_eq!(ask_announce(OWN), [&[2, 0, 0, 0, 0, 0, 0, 0][..], &own].concat());
        let wish = (Ipv4Addr::new(198, 51, 100, 7), 0xa9b0);
        let request = ask_mapping((OWN, NONCE), Transport::Udp, 0xa9af, wish, 7200);
        let head = [&[2, 1, 0, 0, 0, 0, 0x1c, 0x20][..], &own].concat();
        assert_eq!(request[..24], head);
        // After the header an answer repeats the request.
        assert_eq!(request[24..], granted()[24..]);
        assert_eq!(request.len(), 60);
    }

    #[test]
    fn answers_are_read_as_the_rfc_draws_them() {
        let answer = parse(&granted()).expect("an answer");
        assert_eq!((answer.result, answer.lifetime, answer.epoch), (0, 7200, 256));
        let mapping = answer.mapping.expect("a mapping");
        assert_eq!((mapping.nonce, mapping.protocol), (NONCE, 17));
        assert_eq!((mapping.inside, mapping.outside), (0xa9af, 0xa9b0));
        assert_eq!(mapping.address, Some(Ipv4Addr::new(198, 51, 100, 7)));
        let mut announced = granted()[..24].to_vec();
        announced[1] = 128;
        assert_eq!(parse(&announced).expect("an answer").mapping, None);
    }

    #[test]
    fn a_gateway_of_nat_pmp_only_is_told() {
        assert!(is_unknown_version(&[0, 128, 0, 1, 0, 0, 0, 9]));
        assert!(!is_unknown_version(&[0, 128, 0, 0, 0, 0, 0, 9]));
        assert!(!is_unknown_version(&[0, 128, 0, 1]));
        assert_eq!(parse(&[0, 128, 0, 1, 0, 0, 0, 9]), None);
    }

    #[test]
    fn what_is_cut_short_or_no_answer_is_none() {
        let whole = granted();
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        assert_eq!(parse(&ask_announce(OWN)), None, "a request");
        assert_eq!(parse(&[&whole[..], &[0; 1100]].concat()), None, "too long");
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..120), operation in 0_u8..=255) {
            let _ = (parse(&bytes), is_unknown_version(&bytes));
            let _ = parse(&[&[2, operation][..], &bytes].concat());
        }
    }
}
