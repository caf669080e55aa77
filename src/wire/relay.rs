//! RELAY: a channel token, then one whole inner datagram that the relay cannot read.

use super::header::{HEADER_LEN, Kind, u64_at};
use crate::counters::DropReason;
use crate::ids::ChannelToken;

/// The header that sends a datagram through a relay channel.
pub fn header(token: ChannelToken) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[0] = Kind::Relay as u8;
    bytes[8..16].copy_from_slice(&token.0.to_le_bytes());
    bytes
}

/// The token of a RELAY datagram, after checking that the inner datagram may be relayed (E0 to E7 only, so that
/// relays do not nest and nobody enrols through one).
pub fn parse(datagram: &[u8]) -> Result<ChannelToken, DropReason> {
    if datagram.len() <= HEADER_LEN || datagram[0] != Kind::Relay as u8 || datagram[1..8].iter().any(|byte| *byte != 0)
    {
        return Err(DropReason::Malformed);
    }
    if !(0xe0..=0xe7).contains(&datagram[HEADER_LEN]) {
        return Err(DropReason::Malformed);
    }
    Ok(ChannelToken(u64_at(datagram, 8)))
}

/// Puts another leg's token into a RELAY datagram: the only bytes a relay changes.
pub fn rewrite(datagram: &mut [u8], token: ChannelToken) {
    datagram[8..16].copy_from_slice(&token.0.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_changes_eight_bytes_and_no_other() {
        let mut datagram = header(ChannelToken(1)).to_vec();
        datagram.extend([0xe0, 7, 7, 7]);
        let before = datagram.clone();
        rewrite(&mut datagram, ChannelToken(u64::MAX));
        assert_eq!(parse(&datagram), Ok(ChannelToken(u64::MAX)));
        let changed = before.iter().zip(&datagram).filter(|(old, new)| old != new).count();
        assert_eq!(changed, 8);
    }

    #[test]
    fn relays_do_not_nest_and_carry_no_enrolment() {
        for inner in [0xe8, 0xe9, 0xeb, 0x00, 0x45] {
            let mut datagram = header(ChannelToken(1)).to_vec();
            datagram.push(inner);
            assert_eq!(parse(&datagram), Err(DropReason::Malformed));
        }
        assert_eq!(parse(&header(ChannelToken(1))), Err(DropReason::Malformed), "nothing inside");
    }
}
