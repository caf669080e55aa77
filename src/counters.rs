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
    /// A peer's probe or initiation that came directly, where our configuration has `direct: false`.
    DirectOff = "direct_off",
    /// A frame shorter than an Ethernet header.
    Runt = "runt",
    /// A frame longer than the device's MTU allows.
    TooLong = "too_long",
    /// The source address is a group address, or one that the certificate of the sender does not name.
    SourceSpoofed = "source_spoofed",
    /// ARP or neighbour discovery that announces an address of somebody else.
    AddressSpoofed = "address_spoofed",
    /// A DHCP server's answer or a router advertisement from a peer without the right to send it; at a member with an
    /// ethcloud but without the right to bridge, what would cross between that and the network.
    NoRight = "no_right",
    /// Bridge protocol and pause frames (01-80-C2-00-00-0x) do not cross a network.
    LinkLocalGroup = "link_local_group",
    /// Between the network and an ethcloud that another member bridges as well, or might: it would be a loop.
    SecondBridge = "second_bridge",
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
    /// The socket it should have left by is gone, with its interface or address.
    NoUplink = "no_uplink",
    /// A tunnel's copy of a packet that came by another path before. Every path but one has them: that is no loss.
    Duplicate = "duplicate",
    /// A packet for the other end of a tunnel, which has not been heard of, or is silent.
    NoEndpoint = "no_endpoint",
    /// Somebody who speaks to a tunnel is not made an endpoint: there are enough.
    EndpointsFull = "endpoints_full",
    /// A datagram of ours for an address that nobody has answered from, above what may go there.
    UnprovenBudget = "unproven_budget",
    /// An address that a peer was only seen at, above what of those is tried.
    SightingFlood = "sighting_flood",
    /// A peer wants to be introduced to another through us, above what is passed on in a second.
    IntroductionFlood = "introduction_flood",
    /// A peer's question (a ping, or for our account of the pair), above what is answered.
    QuestionFlood = "question_flood",
    /// An announcement in the LAN, above what is heard in a second.
    AnnouncementFlood = "announcement_flood",
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// All counters of a node.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: AtomicU64,)+
            drops: Drops,
        }

        /// What the counters were at one moment, or by how much they grew between two.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct Tally {
            $($(#[doc = $doc])+ pub $name: u64,)+
            /// In the order of [`DropReason::ALL`].
            pub drops: [u64; DropReason::ALL.len()],
        }

        impl Default for Tally {
            fn default() -> Self {
                Self { $($name: 0,)+ drops: [0; DropReason::ALL.len()] }
            }
        }

        impl Counters {
            /// Reads every counter. Those that are counted together may be one batch apart.
            pub fn tally(&self) -> Tally {
                let drops = self.drops.0.each_ref().map(|count| count.load(Relaxed));
                let mut tally = Tally { $($name: self.$name.load(Relaxed),)+ drops };
                // Counted apart so that neither ever shrinks; shown as one total.
                tally.udp_tx_datagrams += tally.relayed_datagrams;
                tally.udp_tx_bytes += tally.relayed_bytes;
                tally
            }
        }

        impl Tally {
            /// How much everything grew since `before`.
            pub fn since(&self, before: &Self) -> Self {
                let mut grown = self.clone();
                $(grown.$name = self.$name.saturating_sub(before.$name);)+
                grown.drops.iter_mut().zip(&before.drops).for_each(|(drops, before)| *drops -= (*before).min(*drops));
                grown
            }

            /// Every counter but the drops: stable name, what it counts in words, value; in a fixed order.
            pub fn plain(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+).trim(), self.$name),)+]
            }
        }
    };
}

counters! {
    /// Frames read from the TAP.
    tap_rx_frames,
    /// Bytes of frames read from the TAP.
    tap_rx_bytes,
    /// Reads of the TAP: a super-frame is one read of many frames.
    tap_rx_calls,
    /// Frames for the TAP.
    tap_tx_frames,
    /// Bytes of frames for the TAP.
    tap_tx_bytes,
    /// Writes to the TAP.
    tap_tx_calls,
    /// Frames that came from peers by a direct path.
    direct_rx_frames,
    /// Bytes of frames that came from peers by a direct path.
    direct_rx_bytes,
    /// Frames sent to peers by a direct path.
    direct_tx_frames,
    /// Bytes of frames sent to peers by a direct path.
    direct_tx_bytes,
    /// Frames that came from peers by the relay of the server.
    relay_rx_frames,
    /// Bytes of frames that came from peers by the relay of the server.
    relay_rx_bytes,
    /// Frames sent to peers by the relay of the server.
    relay_tx_frames,
    /// Bytes of frames sent to peers by the relay of the server.
    relay_tx_bytes,
    /// Super-frames that were sealed whole.
    whole_sealed,
    /// Super-frames that were opened whole.
    whole_opened,
    /// Super-frames sealed whole of which a fragment was lost.
    whole_broken,
    /// Datagrams received (at a server also over TCP).
    udp_rx_datagrams,
    /// Bytes of datagrams received, as payload.
    udp_rx_bytes,
    /// Receive calls that datagrams took.
    udp_rx_calls,
    /// Datagrams sent (at a server also over TCP); those forwarded for others are added when it is read.
    udp_tx_datagrams,
    /// Bytes of datagrams sent, as payload; those forwarded for others are added when it is read.
    udp_tx_bytes,
    /// Send calls that datagrams took.
    udp_tx_calls,
    /// Datagrams forwarded for others.
    relayed_datagrams,
    /// Bytes of datagrams forwarded for others.
    relayed_bytes,
    /// Frames sent to several peers, counted once.
    flooded_frames,
    /// ARP and neighbour requests answered at the TAP from the map.
    proxied,
    /// Handshakes begun.
    handshakes_sent,
    /// Handshakes answered.
    handshakes_answered,
    /// Handshakes completed; sessions replaced by newer ones are among them.
    handshakes_done,
    /// HINT datagrams sent.
    hints_sent,
    /// HINT datagrams believed; each led to one handshake at the most.
    hints_believed,
    /// Paths proven.
    paths_validated,
    /// Paths lost.
    paths_lost,
    /// Connections that came about: of members at a server; with the server, and sessions with peers, at a client.
    connections_established,
    /// Connections that ended, however they did.
    connections_dropped,
    /// Scorecards and maps that could not be written.
    output_failures,
    /// Datagrams sent by a further path, as copies of others.
    copies_sent,
    /// Bytes of datagrams sent by a further path, as copies of others.
    copies_sent_bytes,
    /// Copies that came by a further path after the first; no frames are lost by them.
    copies_received,
    /// Frames sent in fragments of our own, because they are too long for the path.
    cut_frames,
    /// Frames that came in fragments and were put together.
    joined_frames,
    /// Frames that came from peers of the ethcloud that is bridged.
    cloud_rx_frames,
    /// Bytes of frames that came from peers of the ethcloud that is bridged.
    cloud_rx_bytes,
    /// Frames sent to peers of the ethcloud that is bridged, once for each.
    cloud_tx_frames,
    /// Bytes of frames sent to peers of the ethcloud that is bridged.
    cloud_tx_bytes,
    /// "Packet too big" told to hosts at the TAP.
    too_big_told,
    /// TCP connections whose segments were made to fit the path.
    mss_clamped,
    /// Looks at this machine's addresses and routes: when they change, and each minute.
    network_looks,
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

    /// Every counter by its stable name, as [`Tally::list`].
    pub fn list(&self) -> Vec<(String, u64)> {
        self.tally().list()
    }
}

impl Tally {
    /// How many were dropped for `reason`.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// How many were dropped for any reason.
    pub fn drops_of_all(&self) -> u64 {
        self.drops.iter().sum()
    }

    /// Every counter by its stable name, then the sum of `drops`, then drops as `drop_REASON`, in a fixed order.
    pub fn list(&self) -> Vec<(String, u64)> {
        let mut list: Vec<_> = self.plain().into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect();
        list.push(("drops".to_owned(), self.drops_of_all()));
        list.extend(DropReason::ALL.iter().map(|reason| (format!("drop_{}", reason.name()), self.drops(*reason))));
        list
    }
}

/// Adds to a counter; the shorthand of the data path.
pub fn add(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forwarded_is_in_what_was_sent_and_apart() {
        let counters = Counters::default();
        add(&counters.udp_tx_bytes, 615);
        add(&counters.relayed_bytes, 1000);
        let tally = counters.tally();
        assert_eq!((tally.udp_tx_bytes, tally.relayed_bytes), (1615, 1000));
    }

    #[test]
    fn growth_is_the_difference_of_every_counter_and_drop() {
        let counters = Counters::default();
        add(&counters.tap_rx_frames, 3);
        counters.dropped_many(DropReason::Runt, 2);
        let before = counters.tally();
        add(&counters.tap_rx_frames, 4);
        counters.dropped(DropReason::Runt);
        counters.dropped(DropReason::Storm);
        let grown = counters.tally().since(&before);
        assert_eq!((grown.tap_rx_frames, grown.drops(DropReason::Runt), grown.drops_of_all()), (4, 1, 2));
        let named = grown.list().into_iter().filter(|(_, value)| *value > 0).collect::<Vec<_>>();
        let expected = [("tap_rx_frames", 4), ("drops", 2), ("drop_runt", 1), ("drop_storm", 1)];
        assert_eq!(named, expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
