//! Counters of a node and the reasons a frame or datagram is dropped for.
//!
//! All are relaxed atomics that only grow while the process lives: whoever counts adds, Stats takes snapshots.
//! Code on the data path adds once per batch where it can.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why a frame or a datagram went no further. The documentation of each variant is the operator's manual.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[doc = $doc])+ $variant,)+ }

        impl DropReason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in scorecards and metrics; stable.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter or longer than its type allows, or with an unknown type or non-zero reserved bits.
    Malformed = "malformed",
    /// No session has this receiver index: the sender restarted, or guesses.
    UnknownSession = "unknown_session",
    /// The authentication tag does not fit: altered, or sealed with other keys.
    NotAuthentic = "not_authentic",
    /// The counter was seen before, or is older than the replay window.
    Replayed = "replayed",
    /// A fragment of a message of which another was lost.
    Incomplete = "incomplete",
    /// The session has reached its age or message limit.
    SessionExpired = "session_expired",
    /// MAC1 of a handshake does not fit: the sender does not know our key.
    BadMac1 = "bad_mac1",
    /// The handshake is for another network.
    OtherNetwork = "other_network",
    /// The handshake's freshness counter is not above the last one: an old handshake sent again.
    StaleHandshake = "stale_handshake",
    /// Handshakes come faster than the limit; a cookie was asked for or nothing was answered.
    HandshakeFlood = "handshake_flood",
    /// The certificate has a bad signature, another network or key, or has expired.
    BadCertificate = "bad_certificate",
    /// The certificate's serial has been revoked.
    Revoked = "revoked",
    /// No common cipher suite, or an all-zero shared secret.
    HandshakeRefused = "handshake_refused",
    /// The token is unknown, used up or expired.
    BadToken = "bad_token",
    /// The sender is not a member the receiver knows.
    UnknownPeer = "unknown_peer",
    /// RELAY with a token nobody has, or from another address than the token's owner.
    BadChannel = "bad_channel",
    /// An underlay address that lies inside the network itself.
    OverlayLoop = "overlay_loop",
    /// A frame shorter than an Ethernet header.
    Runt = "runt",
    /// A frame longer than the device's MTU allows.
    TooLong = "too_long",
    /// The source address is a group address, or one that the certificate of the sender does not name.
    SourceSpoofed = "source_spoofed",
    /// ARP or neighbour discovery that announces an address of somebody else.
    AddressSpoofed = "address_spoofed",
    /// A DHCP server's answer or a router advertisement from a peer without the right to send it.
    NoRight = "no_right",
    /// Bridge protocol and pause frames (01-80-C2-00-00-0x) do not cross a network.
    LinkLocalGroup = "link_local_group",
    /// The destination is no station we know, and no bridge is there that might.
    UnknownStation = "unknown_station",
    /// The destination is the sender's own station: split horizon.
    SplitHorizon = "split_horizon",
    /// A double VLAN tag, or a tag cut short.
    BadTag = "bad_tag",
    /// Broadcast or multicast above the peer's budget.
    Storm = "storm",
    /// No session and no room left to keep the frame until there is one; the oldest went.
    StagedOverflow = "staged_overflow",
    /// The peer could not be reached while the frame waited.
    Unreachable = "unreachable",
    /// The socket's send buffer was full.
    SocketFull = "socket_full",
    /// The kernel refused a datagram (no route, no buffer, too long for the path).
    SendFailed = "send_failed",
    /// The TAP refused a frame (device down, or the frame malformed).
    TapWrite = "tap_write",
    /// A mailbox was full; the message will be sent again or its content read later.
    MailboxFull = "mailbox_full",
    /// The actor that should act is being restarted.
    NoActor = "no_actor",
}

/// All counters of a node.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames and bytes read from the TAP, and the reads they took: a super-frame is one read of many frames.
    pub tap_rx_frames: AtomicU64,
    pub tap_rx_bytes: AtomicU64,
    pub tap_rx_calls: AtomicU64,
    /// Frames and bytes for the TAP, and the writes they took.
    pub tap_tx_frames: AtomicU64,
    pub tap_tx_bytes: AtomicU64,
    pub tap_tx_calls: AtomicU64,
    /// Super-frames that were sealed whole, and that were opened whole; those of which a fragment was lost.
    pub whole_sealed: AtomicU64,
    pub whole_opened: AtomicU64,
    pub whole_broken: AtomicU64,
    /// Datagrams and bytes (UDP payload) received, and the receive calls they took.
    pub udp_rx_datagrams: AtomicU64,
    pub udp_rx_bytes: AtomicU64,
    pub udp_rx_calls: AtomicU64,
    /// Datagrams and bytes sent, and the send calls they took.
    pub udp_tx_datagrams: AtomicU64,
    pub udp_tx_bytes: AtomicU64,
    pub udp_tx_calls: AtomicU64,
    /// Datagrams and bytes forwarded for others.
    pub relayed_datagrams: AtomicU64,
    pub relayed_bytes: AtomicU64,
    /// Frames sent to several peers, counted once.
    pub flooded_frames: AtomicU64,
    /// ARP and neighbour requests answered at the TAP from the map.
    pub proxied: AtomicU64,
    /// Handshakes begun, answered and completed; sessions replaced by newer ones.
    pub handshakes_sent: AtomicU64,
    pub handshakes_answered: AtomicU64,
    pub handshakes_done: AtomicU64,
    /// HINT datagrams sent, and those believed (each led to one handshake at the most).
    pub hints_sent: AtomicU64,
    pub hints_believed: AtomicU64,
    /// Paths proven, and paths lost.
    pub paths_validated: AtomicU64,
    pub paths_lost: AtomicU64,
    drops: Drops,
}

#[derive(Debug)]
struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; DropReason::ALL.len()])
    }
}

impl Counters {
    /// Counts one frame or datagram dropped.
    pub fn dropped(&self, reason: DropReason) {
        self.dropped_many(reason, 1);
    }

    /// Counts `count` frames or datagrams dropped for one reason.
    pub fn dropped_many(&self, reason: DropReason, count: u64) {
        self.drops.0[reason as usize].fetch_add(count, Relaxed);
    }

    /// How many were dropped for `reason` so far.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops.0[reason as usize].load(Relaxed)
    }

    /// Every counter by its stable name, drops as `drop_REASON`, in a fixed order.
    pub fn list(&self) -> Vec<(String, u64)> {
        let plain: [(&str, &AtomicU64); 27] = [
            ("tap_rx_frames", &self.tap_rx_frames),
            ("tap_rx_bytes", &self.tap_rx_bytes),
            ("tap_rx_calls", &self.tap_rx_calls),
            ("tap_tx_frames", &self.tap_tx_frames),
            ("tap_tx_bytes", &self.tap_tx_bytes),
            ("tap_tx_calls", &self.tap_tx_calls),
            ("whole_sealed", &self.whole_sealed),
            ("whole_opened", &self.whole_opened),
            ("whole_broken", &self.whole_broken),
            ("udp_rx_datagrams", &self.udp_rx_datagrams),
            ("udp_rx_bytes", &self.udp_rx_bytes),
            ("udp_rx_calls", &self.udp_rx_calls),
            ("udp_tx_datagrams", &self.udp_tx_datagrams),
            ("udp_tx_bytes", &self.udp_tx_bytes),
            ("udp_tx_calls", &self.udp_tx_calls),
            ("relayed_datagrams", &self.relayed_datagrams),
            ("relayed_bytes", &self.relayed_bytes),
            ("flooded_frames", &self.flooded_frames),
            ("proxied", &self.proxied),
            ("handshakes_sent", &self.handshakes_sent),
            ("handshakes_answered", &self.handshakes_answered),
            ("handshakes_done", &self.handshakes_done),
            ("hints_sent", &self.hints_sent),
            ("hints_believed", &self.hints_believed),
            ("paths_validated", &self.paths_validated),
            ("paths_lost", &self.paths_lost),
            ("drops", &AtomicU64::new(DropReason::ALL.iter().map(|reason| self.drops(*reason)).sum())),
        ];
        let mut list: Vec<_> = plain.iter().map(|(name, value)| ((*name).to_owned(), value.load(Relaxed))).collect();
        list.extend(DropReason::ALL.iter().map(|reason| (format!("drop_{}", reason.name()), self.drops(*reason))));
        list
    }
}

/// Adds to a counter; the shorthand of the data path.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}
