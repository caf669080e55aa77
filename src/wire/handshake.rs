//! Handshake datagrams: their fixed forms, and the payload inside them.

use super::cert::CERT_LEN;
use super::header::{HEADER_LEN, Kind, VERSION, u32_at, u64_at};
use crate::counters::DropReason;
use crate::ids::SessionIndex;

/// Bytes of MAC1 and of MAC2.
pub const MAC_LEN: usize = 16;
/// Bytes of a handshake payload before it is sealed.
pub const PAYLOAD_LEN: usize = 192;
/// Noise message 1 of IKpsk2 with our payload: ephemeral 32, static 48, payload 208.
pub const INIT_NOISE_LEN: usize = 288;
/// Noise message 2 of IKpsk2: ephemeral 32, payload 208.
pub const RESP_NOISE_LEN: usize = 240;
/// A whole initiation.
pub const INIT_LEN: usize = HEADER_LEN + INIT_NOISE_LEN + 2 * MAC_LEN;
/// A whole response; smaller than what it answers, so that nobody amplifies through us.
pub const RESP_LEN: usize = HEADER_LEN + RESP_NOISE_LEN + 2 * MAC_LEN;
/// A whole cookie reply.
pub const COOKIE_LEN: usize = 72;
/// Payload of the second enrolment message: network id 8, signing key 32, suite 1, sender index 4, zero 19.
pub const WELCOME_LEN: usize = 64;
/// Noise message 1 of XXpsk3: ephemeral 32, then zeroes to the length of an initiation.
pub const ENROL1_NOISE_LEN: usize = INIT_NOISE_LEN;
/// Noise message 2 of XXpsk3: ephemeral 32, static 48, payload 80.
pub const ENROL2_NOISE_LEN: usize = 32 + 48 + WELCOME_LEN + 16;
/// Noise message 3 of XXpsk3: static 48, payload 208.
pub const ENROL3_NOISE_LEN: usize = 48 + PAYLOAD_LEN + 16;

/// The header of a handshake datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandshakeHeader {
    pub kind: Kind,
    /// Suites offered (a bit each) in messages of the initiator, the suite chosen in those of the responder.
    pub suites: u8,
    /// The sender's index for the session.
    pub sender: SessionIndex,
    /// Network tag in INIT, token id in ENROL1, the receiver's index (and four zero bytes) in RESP, ENROL2, ENROL3.
    pub detail: u64,
}

impl HandshakeHeader {
    /// The receiver's index, in the messages that carry one.
    pub fn receiver(&self) -> SessionIndex {
        SessionIndex(self.detail as u32)
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..3].copy_from_slice(&[self.kind as u8, VERSION, self.suites]);
        bytes[4..8].copy_from_slice(&self.sender.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.detail.to_le_bytes());
        bytes
    }
}

/// A handshake datagram taken apart. The slices have the lengths of their kind.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeView<'a> {
    pub header: HandshakeHeader,
    /// The header as it stood on the wire; the Noise prologue.
    pub header_bytes: &'a [u8; HEADER_LEN],
    pub noise: &'a [u8],
    pub mac1: [u8; MAC_LEN],
    pub mac2: [u8; MAC_LEN],
    /// What MAC1 covers: all before it.
    pub before_mac1: &'a [u8],
    /// What MAC2 covers: all before it.
    pub before_mac2: &'a [u8],
}

impl<'a> HandshakeView<'a> {
    /// Takes an INIT, RESP or ENROL datagram apart.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, DropReason> {
        let kind = Kind::of(datagram).ok_or(DropReason::Malformed)?;
        let noise_len = match kind {
            Kind::Init => INIT_NOISE_LEN,
            Kind::Resp => RESP_NOISE_LEN,
            Kind::Enrol1 => ENROL1_NOISE_LEN,
            Kind::Enrol2 => ENROL2_NOISE_LEN,
            Kind::Enrol3 => ENROL3_NOISE_LEN,
            Kind::Data | Kind::Ctrl | Kind::Agg | Kind::Frag | Kind::Cookie | Kind::Hint | Kind::Relay => {
                return Err(DropReason::Malformed);
            }
        };
        let mac1_at = HEADER_LEN + noise_len;
        let mac2_at = mac1_at + MAC_LEN;
        if datagram.len() != mac2_at + MAC_LEN || datagram[1] != VERSION || datagram[3] != 0 {
            return Err(DropReason::Malformed);
        }
        let detail = u64_at(datagram, 8);
        if matches!(kind, Kind::Resp | Kind::Enrol2 | Kind::Enrol3) && detail >> 32 != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            header: HandshakeHeader { kind, suites: datagram[2], sender: SessionIndex(u32_at(datagram, 4)), detail },
            header_bytes: datagram[..HEADER_LEN].try_into().expect("the length was checked"),
            noise: &datagram[HEADER_LEN..mac1_at],
            mac1: datagram[mac1_at..mac2_at].try_into().expect("the length was checked"),
            mac2: datagram[mac2_at..].try_into().expect("the length was checked"),
            before_mac1: &datagram[..mac1_at],
            before_mac2: &datagram[..mac2_at],
        })
    }
}

/// What a node can take beside the plain protocol, as bits. Unknown ones are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(pub u32);

impl Capabilities {
    /// Frames whose TCP or UDP checksum is only the pseudo header's sum, marked in their DATA header.
    pub const PARTIAL_CHECKSUMS: u32 = 1;
    /// Super-frames sealed whole, in fragments.
    pub const WHOLE: u32 = 2;
    /// Single frames in fragments, where they are too long for the path.
    pub const CUT: u32 = 4;
    /// Answers `Ping` and `WhyAsk`.
    pub const WORDS: u32 = 32;
    /// All that this program can.
    pub const OURS: Self = Self(Self::PARTIAL_CHECKSUMS | Self::WHOLE | Self::CUT | Self::WORDS);
    pub const NONE: Self = Self(0);

    pub fn takes_partial_checksums(self) -> bool {
        self.0 & Self::PARTIAL_CHECKSUMS != 0
    }

    pub fn has_words(self) -> bool {
        self.0 & Self::WORDS != 0
    }

    pub fn takes_whole(self) -> bool {
        self.0 & Self::WHOLE != 0
    }

    pub fn takes_cut(self) -> bool {
        self.0 & Self::CUT != 0
    }
}

/// The sealed part of INIT, RESP and ENROL3. Layout: boot counter 8, sequence 4, capabilities 4, largest UDP payload
/// 2, receive modes 1, suites 1 and sender index 4 (as in the header, so that the transcript binds them in both
/// directions), zero 8, certificate 160 (all zero in ENROL3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandshakePayload {
    /// Freshness: (boot counter, sequence) must grow from one initiation of a node to the next.
    pub boot: u64,
    pub sequence: u32,
    pub capabilities: Capabilities,
    /// Largest UDP payload accepted, in bytes.
    pub max_payload: u16,
    pub receive_modes: u8,
    pub suites: u8,
    pub sender: SessionIndex,
    pub certificate: [u8; CERT_LEN],
}

impl HandshakePayload {
    /// The payload's bytes.
    pub fn to_bytes(&self) -> [u8; PAYLOAD_LEN] {
        let mut bytes = [0; PAYLOAD_LEN];
        bytes[..8].copy_from_slice(&self.boot.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.capabilities.0.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.max_payload.to_le_bytes());
        bytes[18] = self.receive_modes;
        bytes[19] = self.suites;
        bytes[20..24].copy_from_slice(&self.sender.0.to_le_bytes());
        bytes[32..].copy_from_slice(&self.certificate);
        bytes
    }

    /// Reads a payload and checks that it repeats what its header said.
    pub fn parse(bytes: &[u8; PAYLOAD_LEN], header: &HandshakeHeader) -> Result<Self, DropReason> {
        let payload = Self {
            boot: u64_at(bytes, 0),
            sequence: u32_at(bytes, 8),
            capabilities: Capabilities(u32_at(bytes, 12)),
            max_payload: u16::from_le_bytes([bytes[16], bytes[17]]),
            receive_modes: bytes[18],
            suites: bytes[19],
            sender: SessionIndex(u32_at(bytes, 20)),
            certificate: bytes[32..].try_into().expect("160 bytes are left"),
        };
        if payload.suites != header.suites || payload.sender != header.sender {
            return Err(DropReason::Malformed);
        }
        Ok(payload)
    }
}

/// What COOKIE carries: the sealed cookie and whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CookieReply {
    /// The index of the initiation it answers.
    pub receiver: SessionIndex,
    pub nonce: [u8; 24],
    /// 16 bytes of cookie and a tag.
    pub sealed: [u8; 32],
}

impl CookieReply {
    pub fn to_bytes(&self) -> [u8; COOKIE_LEN] {
        let mut bytes = [0; COOKIE_LEN];
        bytes[0] = Kind::Cookie as u8;
        bytes[4..8].copy_from_slice(&self.receiver.0.to_le_bytes());
        bytes[16..40].copy_from_slice(&self.nonce);
        bytes[40..].copy_from_slice(&self.sealed);
        bytes
    }

    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        let zero = |range: std::ops::Range<usize>| datagram[range].iter().all(|byte| *byte == 0);
        if datagram.len() != COOKIE_LEN || datagram[0] != Kind::Cookie as u8 || !zero(1..4) || !zero(8..16) {
            return Err(DropReason::Malformed);
        }
        Ok(Self {
            receiver: SessionIndex(u32_at(datagram, 4)),
            nonce: datagram[16..40].try_into().expect("the length was checked"),
            sealed: datagram[40..].try_into().expect("the length was checked"),
        })
    }
}

/// Why a HINT is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HintReason {
    /// "I have no session with this index."
    NoSession = 1,
    /// "Your enrolment failed": token unknown, used up or expired. Believed only after repeated tries.
    EnrolRefused = 2,
    /// "I do not know your key; enrol again."
    NotAMember = 3,
}

/// An unauthenticated nudge. It repeats what it answers, and may cause no more than a new handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    pub reason: HintReason,
    /// The index in the datagram that could not be used (for an enrolment: the sender's own).
    pub index: SessionIndex,
    pub counter: u64,
}

impl Hint {
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..2].copy_from_slice(&[Kind::Hint as u8, self.reason as u8]);
        bytes[4..8].copy_from_slice(&self.index.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    pub fn parse(datagram: &[u8]) -> Result<Self, DropReason> {
        if datagram.len() != HEADER_LEN || datagram[0] != Kind::Hint as u8 || datagram[2] != 0 || datagram[3] != 0 {
            return Err(DropReason::Malformed);
        }
        let reason = match datagram[1] {
            1 => HintReason::NoSession,
            2 => HintReason::EnrolRefused,
            3 => HintReason::NotAMember,
            _ => return Err(DropReason::Malformed),
        };
        Ok(Self { reason, index: SessionIndex(u32_at(datagram, 4)), counter: u64_at(datagram, 8) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshake_datagrams_have_the_sizes_of_the_specification() {
        assert_eq!((INIT_LEN, RESP_LEN, COOKIE_LEN, HEADER_LEN), (336, 288, 72, 16));
        let (asked, answered) = (ENROL1_NOISE_LEN, ENROL2_NOISE_LEN);
        assert!(answered <= asked, "nobody amplifies through an enrolment");
    }

    #[test]
    fn a_payload_must_repeat_its_header() {
        let header = HandshakeHeader { kind: Kind::Init, suites: 0b1010, sender: SessionIndex(7), detail: 1 };
        let payload = HandshakePayload {
            boot: 3,
            sequence: 4,
            capabilities: Capabilities::OURS,
            max_payload: 1472,
            receive_modes: 0,
            suites: 0b1010,
            sender: SessionIndex(7),
            certificate: [5; CERT_LEN],
        };
        let bytes = payload.to_bytes();
        assert_eq!(HandshakePayload::parse(&bytes, &header), Ok(payload));
        let downgraded = HandshakeHeader { suites: 0b0010, ..header };
        assert_eq!(HandshakePayload::parse(&bytes, &downgraded), Err(DropReason::Malformed));
    }

    #[test]
    fn hints_and_cookies_read_back_and_refuse_other_lengths() {
        let hint = Hint { reason: HintReason::NoSession, index: SessionIndex(1), counter: 2 };
        assert_eq!(Hint::parse(&hint.to_bytes()), Ok(hint));
        assert!(Hint::parse(&hint.to_bytes()[..15]).is_err());
        let cookie = CookieReply { receiver: SessionIndex(1), nonce: [2; 24], sealed: [3; 32] };
        assert_eq!(CookieReply::parse(&cookie.to_bytes()), Ok(cookie));
        let mut bad = cookie.to_bytes();
        bad[9] = 1;
        assert!(CookieReply::parse(&bad).is_err());
    }
}
