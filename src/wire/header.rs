//! The 16 bytes every datagram begins with, and their form in DATA and CTRL.

use crate::counters::DropReason;
use crate::ids::SessionIndex;

/// Bytes of the common header.
pub const HEADER_LEN: usize = 16;
/// Bytes of an authentication tag of either suite.
pub const TAG_LEN: usize = 16;
/// What sealing adds to a frame, padding apart.
pub const OVERHEAD: usize = HEADER_LEN + TAG_LEN;
/// The protocol version in handshakes.
pub const VERSION: u8 = 1;

/// What a datagram is, by its first byte. EC is [`observe`](super::observe)'s, ED
/// [`lan`](super::lan)'s; E2, EE and EF are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Data = 0xe0,
    Ctrl = 0xe1,
    Agg = 0xe2,
    Frag = 0xe3,
    Init = 0xe4,
    Resp = 0xe5,
    Cookie = 0xe6,
    Hint = 0xe7,
    Relay = 0xe8,
    Enrol1 = 0xe9,
    Enrol2 = 0xea,
    Enrol3 = 0xeb,
}

impl Kind {
    /// The kind of a datagram; `None` for an empty one and for bytes of other protocols.
    pub fn of(datagram: &[u8]) -> Option<Self> {
        Some(match datagram.first()? {
            0xe0 => Self::Data,
            0xe1 => Self::Ctrl,
            0xe2 => Self::Agg,
            0xe3 => Self::Frag,
            0xe4 => Self::Init,
            0xe5 => Self::Resp,
            0xe6 => Self::Cookie,
            0xe7 => Self::Hint,
            0xe8 => Self::Relay,
            0xe9 => Self::Enrol1,
            0xea => Self::Enrol2,
            0xeb => Self::Enrol3,
            _ => return None,
        })
    }
}

/// The header of a sealed datagram (DATA or CTRL).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedHeader {
    pub kind: Kind,
    /// Zero bytes after the plaintext, 0 to 15.
    pub padding: u8,
    /// DATA only: the TCP or UDP checksum of the frame is the pseudo header's sum, and the sender vouches for the rest.
    pub partial: bool,
    pub receiver: SessionIndex,
    pub counter: u64,
}

/// The header of one fragment (FRAG) of a message that was sealed whole. Layout: kind 1, zero 1, index 1, count 1,
/// receiver 4, counter 8; with an index of 0 it is the associated data of the seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragHeader {
    pub receiver: SessionIndex,
    /// Of the message; all its fragments have the same.
    pub counter: u64,
    /// Which fragment it is, below `count`.
    pub index: u8,
    /// How many there are, 2 to [`FRAGMENTS_MAX`].
    pub count: u8,
}

/// Fragments of one message at the most: as many as one segmented send may hold everywhere.
pub const FRAGMENTS_MAX: usize = 64;

impl FragHeader {
    /// Reads the header of a FRAG datagram that holds something.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let &[kind, 0, index, count, ..] = datagram else { return Err(DropReason::Malformed) };
        let fits = (2..=FRAGMENTS_MAX).contains(&usize::from(count)) && index < count;
        if kind != Kind::Frag as u8 || !fits || datagram.len() <= HEADER_LEN {
            return Err(DropReason::Malformed);
        }
        Ok(Self { receiver: SessionIndex(u32_at(datagram, 4)), counter: u64_at(datagram, 8), index, count })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        (bytes[0], bytes[2], bytes[3]) = (Kind::Frag as u8, self.index, self.count);
        bytes[4..8].copy_from_slice(&self.receiver.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}

/// The bit of byte 1 that [`SealedHeader::partial`] is; the three above it are zero.
const PARTIAL: u8 = 0x10;

impl SealedHeader {
    /// Reads the header of a DATA or CTRL datagram that is long enough to hold a tag.
    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let kind = match Kind::of(datagram) {
            Some(kind @ (Kind::Data | Kind::Ctrl)) => kind,
            _ => return Err(DropReason::Malformed),
        };
        let sealed = datagram.len().checked_sub(OVERHEAD).ok_or(DropReason::Malformed)?;
        let (padding, flags) = (datagram[1] & 0x0f, datagram[1] & 0xf0);
        let partial = flags == PARTIAL && kind == Kind::Data;
        if flags != 0 && !partial || datagram[2] != 0 || datagram[3] != 0 || usize::from(padding) > sealed {
            return Err(DropReason::Malformed);
        }
        Ok(Self { kind, padding, partial, receiver: SessionIndex(u32_at(datagram, 4)), counter: u64_at(datagram, 8) })
    }

    /// The header's bytes, which are also the associated data of the seal.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind as u8;
        bytes[1] = self.padding | if self.partial { PARTIAL } else { 0 };
        bytes[4..8].copy_from_slice(&self.receiver.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}

/// The little-endian number at `offset`; the caller has checked the length.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes were sliced"))
}

/// The little-endian number at `offset`; the caller has checked the length.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes were sliced"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_written() {
        let header = SealedHeader {
            kind: Kind::Data,
            padding: 5,
            partial: true,
            receiver: SessionIndex(0x0102_0304),
            counter: 0x1122,
        };
        let mut datagram = header.to_bytes().to_vec();
        assert_eq!(&datagram[..], &[0xe0, 0x15, 0, 0, 4, 3, 2, 1, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        datagram.resize(OVERHEAD + 16, 0);
        assert_eq!(SealedHeader::parse(&datagram), Ok(header));
    }

    #[test]
    fn a_fragment_reads_back_as_written_and_impossible_ones_are_refused() {
        let header = FragHeader { receiver: SessionIndex(0x0102_0304), counter: 0x1122, index: 3, count: 64 };
        let mut datagram = header.to_bytes().to_vec();
        assert_eq!(&datagram[..], &[0xe3, 0, 3, 64, 4, 3, 2, 1, 0x22, 0x11, 0, 0, 0, 0, 0, 0]);
        assert_eq!(FragHeader::parse(&datagram), Err(DropReason::Malformed), "it is empty");
        datagram.push(1);
        assert_eq!(FragHeader::parse(&datagram), Ok(header));
        for (offset, value) in [(0, 0xe0), (1, 1), (2, 64), (3, 65), (3, 3), (3, 0)] {
            let mut bad = datagram.clone();
            bad[offset] = value;
            assert_eq!(FragHeader::parse(&bad), Err(DropReason::Malformed), "byte {offset} = {value:#x}");
        }
        assert_eq!(FragHeader::parse(&[]), Err(DropReason::Malformed));
    }

    #[test]
    fn reserved_bits_and_impossible_lengths_are_refused() {
        let good = {
            let mut bytes = vec![0; OVERHEAD];
            bytes[0] = 0xe1;
            bytes
        };
        assert!(SealedHeader::parse(&good).is_ok(), "an empty CTRL is a keepalive");
        for (offset, value) in [(0, 0xe4), (0, 0x45), (1, 0x10), (1, 1), (2, 1), (3, 1)] {
            let mut bad = good.clone();
            bad[offset] = value;
            assert_eq!(SealedHeader::parse(&bad), Err(DropReason::Malformed), "byte {offset} = {value:#x}");
        }
        assert_eq!(SealedHeader::parse(&good[..31]), Err(DropReason::Malformed));
        assert_eq!(SealedHeader::parse(&[]), Err(DropReason::Malformed));
    }
}
