//! What neighbours in one LAN shout: "a member of this network is here, at this port".
//!
//! Not sealed, since nobody has a session yet, so it is a hint of whom to dial and nothing more. Who listens learns a
//! hash of the network and, by trying the members it knows, which of them speaks; strangers learn that somebody does.
//!
//! ```text
//! 0     1        2      4           8                16               24
//! | ED  | kind 1 | port | 0         | network tag    | node hash      |
//! ```

use crate::counters::DropReason;

/// Bytes of an announcement.
pub const ANNOUNCEMENT_LEN: usize = 24;
/// The first byte; no datagram of the native protocol has it.
const TYPE: u8 = 0xed;

/// One announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// It answers one, and wants no answer itself.
    pub is_answer: bool,
    /// UDP port of the member, at the address this comes from.
    pub port: u16,
    /// The network, as in handshakes.
    pub tag: u64,
    /// Who, for those who know its id.
    pub node: [u8; 8],
}

impl Announcement {
    pub fn to_bytes(self) -> [u8; ANNOUNCEMENT_LEN] {
        let mut bytes = [0; ANNOUNCEMENT_LEN];
        (bytes[0], bytes[1]) = (TYPE, if self.is_answer { 2 } else { 1 });
        bytes[2..4].copy_from_slice(&self.port.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..].copy_from_slice(&self.node);
        bytes
    }

    /// # Errors
    /// If it is not one.
    pub fn parse(bytes: &[u8]) -> Result<Self, DropReason> {
        let bytes: &[u8; ANNOUNCEMENT_LEN] = bytes.try_into().map_err(|_| DropReason::Malformed)?;
        let is_answer = match bytes[..2] {
            [TYPE, 1] => false,
            [TYPE, 2] => true,
            _ => return Err(DropReason::Malformed),
        };
        let port = u16::from_le_bytes([bytes[2], bytes[3]]);
        if port == 0 || bytes[4..8] != [0; 4] {
            return Err(DropReason::Malformed);
        }
        let eight = |at: usize| -> [u8; 8] { bytes[at..at + 8].try_into().expect("eight bytes") };
        Ok(Self { is_answer, port, tag: u64::from_le_bytes(eight(8)), node: eight(16) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_reads_back_and_nothing_else_is_taken_for_one() {
        let said = Announcement { is_answer: false, port: 4000, tag: 9, node: [3; 8] };
        let bytes = said.to_bytes();
        assert_eq!(Announcement::parse(&bytes), Ok(said));
        for length in 0..ANNOUNCEMENT_LEN {
            assert!(Announcement::parse(&bytes[..length]).is_err(), "{length}");
        }
        for (at, value) in [(0, 0xe1), (1, 3), (4, 1)] {
            let mut other = bytes;
            other[at] = value;
            assert!(Announcement::parse(&other).is_err(), "{at}");
        }
    }
}
