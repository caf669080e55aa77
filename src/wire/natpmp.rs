//! NAT-PMP (RFC 6886): what is asked of a gateway on UDP port 5351, and what it answers. Numbers are big-endian.
//!
//! ```text
//! request  0 | 0 (address), 1 (map UDP) or 2 (map TCP) | reserved 2 | inside port 2 | outside port 2 | lifetime 4
//! answer   0 | 128 + operation | result 2 | epoch 4 | address 4
//!                                                   | inside port 2 | outside port 2 | lifetime 4
//! ```
//!
//! A request for the address ends after its second byte. Gateways also send that answer unasked, to 224.0.0.1 port
//! 5350, when they have started or have another address (section 3.2.1).

use std::net::Ipv4Addr;

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    /// As people and UPnP write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Tcp => "TCP",
        }
    }

    /// The number in IP headers, which PCP uses.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Udp => 17,
            Self::Tcp => 6,
        }
    }
}

/// What a gateway answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Seconds since the gateway began to keep its table.
    pub epoch: u32,
    /// What was done, or the result code of section 3.5.
    pub result: Result<Done, u16>,
    pub operation: Operation,
}

/// What an answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Address,
    Map(Transport),
}

/// What a gateway did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Address(Ipv4Addr),
    Mapped {
        inside: u16,
        outside: u16,
        /// Seconds; 0 where the mapping was deleted.
        lifetime: u32,
    },
}

/// Asks for the gateway's outside address.
pub fn ask_address() -> Vec<u8> {
    vec![0, 0]
}

/// Asks for a mapping for `lifetime` seconds; 0 deletes it, and the outside port is 0 then (section 3.4).
pub fn ask_mapping(transport: Transport, inside: u16, outside: u16, lifetime: u32) -> Vec<u8> {
    let operation = match transport {
        Transport::Udp => 1,
        Transport::Tcp => 2,
    };
    let mut request = vec![0, operation, 0, 0];
    request.extend(inside.to_be_bytes());
    request.extend(outside.to_be_bytes());
    request.extend(lifetime.to_be_bytes());
    request
}

/// Reads an answer; `None` if it is none, or none of this version.
pub fn parse(bytes: &[u8]) -> Option<Answer> {
    let [0, operation @ 128..=130, ..] = bytes else { return None };
    let operation = match operation {
        128 => Operation::Address,
        129 => Operation::Map(Transport::Udp),
        _ => Operation::Map(Transport::Tcp),
    };
    let code = u16::from_be_bytes(array(bytes, 2)?);
    let epoch = u32::from_be_bytes(array(bytes, 4)?);
    let result = match (code, operation) {
        (1.., _) => Err(code),
        (0, Operation::Address) => Ok(Done::Address(array::<4>(bytes, 8)?.into())),
        (0, Operation::Map(_)) => Ok(Done::Mapped {
            inside: u16::from_be_bytes(array(bytes, 8)?),
            outside: u16::from_be_bytes(array(bytes, 10)?),
            lifetime: u32::from_be_bytes(array(bytes, 12)?),
        }),
    };
    Some(Answer { epoch, result, operation })
}

/// A result code in words.
pub fn refusal(code: u16) -> &'static str {
    match code {
        1 => "it speaks another version",
        2 => "it is not allowed to map ports",
        3 => "it has no address outside itself",
        4 => "it has no room for another mapping",
        5 => "it does not know how",
        _ => "for a reason it has no word for",
    }
}

/// `N` bytes at a place, if they are there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_laid_out_as_the_rfc_draws_them() {
        assert_eq!(ask_address(), [0, 0]);
        let request = ask_mapping(Transport::Tcp, 0xa9af, 0xa9b0, 7200);
        assert_eq!(request, [0, 2, 0, 0, 0xa9, 0xaf, 0xa9, 0xb0, 0, 0, 0x1c, 0x20]);
    }

    #[test]
    fn answers_are_read_as_the_rfc_draws_them() {
        let address = parse(&[0, 128, 0, 0, 0, 0, 1, 2, 198, 51, 100, 7]).expect("an answer");
        let expected =
            Answer { epoch: 258, result: Ok(Done::Address([198, 51, 100, 7].into())), operation: Operation::Address };
        assert_eq!(address, expected);
        let mapped = parse(&[0, 129, 0, 0, 0, 0, 0, 9, 0, 1, 0, 2, 0, 0, 0, 3]).expect("an answer");
        assert_eq!(mapped.result, Ok(Done::Mapped { inside: 1, outside: 2, lifetime: 3 }));
        assert_eq!(mapped.operation, Operation::Map(Transport::Udp));
        // A refusal may end early.
        assert_eq!(parse(&[0, 130, 0, 2, 0, 0, 0, 9]).expect("an answer").result, Err(2));
    }

    #[test]
    fn what_is_cut_short_or_no_answer_is_none() {
        let whole = [0, 129, 0, 0, 0, 0, 0, 9, 0, 1, 0, 2, 0, 0, 0, 3];
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), None, "{length}");
        }
        for other in [[2, 129], [0, 1], [0, 131]] {
            assert_eq!(parse(&[&other[..], &whole[2..]].concat()), None);
        }
    }

    proptest! {
        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), operation in 128_u8..132) {
            let _ = parse(&bytes);
            let _ = parse(&[&[0, operation][..], &bytes].concat());
        }

        #[test]
        fn answers_carry_their_numbers(epoch: u32, inside: u16, outside: u16, lifetime: u32) {
            let mut bytes = ask_mapping(Transport::Udp, inside, outside, lifetime);
            bytes[1] = 129;
            bytes.splice(4..4, epoch.to_be_bytes());
            let answer = parse(&bytes).expect("an answer");
            prop_assert_eq!(answer.epoch, epoch);
            prop_assert_eq!(answer.result, Ok(Done::Mapped { inside, outside, lifetime }));
        }
    }
}
