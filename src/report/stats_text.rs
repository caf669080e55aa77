//! The statistics that EPS Conduits logged each minute, in its layout, units and order.
//!
//! Two entries: rates in one line, then a block of counters, of the minute and in total; a counter that is zero is left
//! out. Units are decimal, with two places, halves rounded up. `received` and `sent` are what passed between this node
//! and the others by way of the server; a client tells what went directly to peers, and what passed at its TAP, in
//! lines of their own, in the order of EPS's list of counters.

use std::fmt::Write;
use std::time::Duration;

use super::snapshot::{Role, Snapshot};
use crate::counters::Tally;

/// Packets and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    pub packets: u64,
    pub bytes: u64,
}

/// The counters EPS Conduits knew.
///
/// At a server, packets are datagrams: those it took, those it sent itself and those it forwarded for its clients. At a
/// client they are Ethernet frames, apart by whether they came and went by the server's relay or directly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    pub forwarded: Flow,
    pub received: Flow,
    pub sent: Flow,
    pub dropped_packets: u64,
    pub direct_received: Flow,
    pub direct_sent: Flow,
    pub tap_received: Flow,
    pub tap_sent: Flow,
    pub connections_established: u64,
    pub connections_dropped: u64,
}

impl Sums {
    /// The sums of totals, or of a window's growth.
    pub fn of(tally: &Tally, role: &Role) -> Self {
        match role {
            Role::Client(_) | Role::Cloud(_) => Self::of_client(tally),
            Role::Server(_) => Self::of_server(tally),
            Role::Tunnel(_) => Self::of_tunnel(tally),
        }
    }

    fn of_client(tally: &Tally) -> Self {
        Self {
            received: flow(tally.relay_rx_frames, tally.relay_rx_bytes),
            sent: flow(tally.relay_tx_frames, tally.relay_tx_bytes),
            direct_received: flow(tally.direct_rx_frames, tally.direct_rx_bytes),
            direct_sent: flow(tally.direct_tx_frames, tally.direct_tx_bytes),
            tap_received: flow(tally.tap_rx_frames, tally.tap_rx_bytes),
            tap_sent: flow(tally.tap_tx_frames, tally.tap_tx_bytes),
            ..Self::of_both(tally)
        }
    }

    /// All paths of a tunnel are direct; what it counts there are datagrams.
    fn of_tunnel(tally: &Tally) -> Self {
        Self {
            direct_received: flow(tally.udp_rx_datagrams, tally.udp_rx_bytes),
            direct_sent: flow(tally.udp_tx_datagrams, tally.udp_tx_bytes),
            tap_received: flow(tally.tap_rx_frames, tally.tap_rx_bytes),
            tap_sent: flow(tally.tap_tx_frames, tally.tap_tx_bytes),
            ..Self::of_both(tally)
        }
    }

    fn of_server(tally: &Tally) -> Self {
        let (packets, bytes) = (tally.relayed_datagrams, tally.relayed_bytes);
        Self {
            forwarded: flow(packets, bytes),
            received: flow(tally.udp_rx_datagrams, tally.udp_rx_bytes),
            // The total sent has both in it, read together.
            sent: flow(tally.udp_tx_datagrams.saturating_sub(packets), tally.udp_tx_bytes.saturating_sub(bytes)),
            ..Self::of_both(tally)
        }
    }

    fn of_both(tally: &Tally) -> Self {
        Self {
            dropped_packets: tally.drops_of_all(),
            connections_established: tally.connections_established,
            connections_dropped: tally.connections_dropped,
            ..Self::default()
        }
    }

    /// Bytes that came from others, by any way.
    pub fn in_bytes(&self) -> u64 {
        self.received.bytes + self.direct_received.bytes
    }

    /// Bytes that went to others, by any way, but for those forwarded.
    pub fn out_bytes(&self) -> u64 {
        self.sent.bytes + self.direct_sent.bytes
    }
}

fn flow(packets: u64, bytes: u64) -> Flow {
    Flow { packets, bytes }
}

/// The two entries for the log.
pub fn entries(snapshot: &Snapshot) -> [String; 2] {
    let window = Sums::of(&snapshot.window.grown, &snapshot.role);
    let total = Sums::of(&snapshot.totals, &snapshot.role);
    [rates(&window, snapshot.window.length), block(&window, &total, snapshot.window.length)]
}

/// `in: 3.81 MBps (30.50 Mbps), out: …, fwd: …`.
pub fn rates(grown: &Sums, window: Duration) -> String {
    let [rx, tx, forwarded] =
        [grown.in_bytes(), grown.out_bytes(), grown.forwarded.bytes].map(|bytes| Rate(bytes, window).text());
    format!("in: {rx}, out: {tx}, fwd: {forwarded}")
}

/// The counters of the window and in total.
pub fn block(grown: &Sums, total: &Sums, window: Duration) -> String {
    let mut text = format!("EPS statistics:\n{}-second stats:", window.as_secs_f64().round());
    lines(&mut text, grown);
    text.push_str("\ntotal stats:");
    lines(&mut text, total);
    text
}

fn lines(text: &mut String, sums: &Sums) {
    let mut line = |count: u64, what: &str| {
        if count > 0 {
            write!(text, "\n{count} {what}").expect("a String takes all that is written");
        }
    };
    let mut flow = |flow: Flow, kind: &str, verb: &str| {
        line(flow.packets, &format!("{kind}packets {verb}"));
        line(flow.bytes, &format!("{kind}bytes {verb} ({})", amount(flow.bytes)));
    };
    flow(sums.forwarded, "", "forwarded");
    flow(sums.received, "", "received");
    flow(sums.sent, "", "sent");
    line(sums.dropped_packets, "packets dropped");
    let mut flow = |flow: Flow, kind: &str, verb: &str| {
        line(flow.packets, &format!("{kind}packets {verb}"));
        line(flow.bytes, &format!("{kind}bytes {verb} ({})", amount(flow.bytes)));
    };
    flow(sums.direct_received, "direct ", "received");
    flow(sums.direct_sent, "direct ", "sent");
    flow(sums.tap_received, "tap ", "received");
    flow(sums.tap_sent, "tap ", "sent");
    line(sums.connections_established, "connections established");
    line(sums.connections_dropped, "connections dropped");
}

/// Bytes within a time, as a rate.
#[derive(Debug, Clone, Copy)]
pub struct Rate(pub u64, pub Duration);

impl Rate {
    /// `3.81 MBps (30.50 Mbps)`.
    pub fn text(self) -> String {
        let Self(bytes, window) = self;
        let millis = window.as_millis().max(1);
        let bytes = u128::from(bytes) * 1000;
        let units = |bit: char| ["", "K", "M", "G", "T"].map(|scale| format!("{scale}{bit}ps"));
        format!("{} ({})", scaled(bytes, millis, &units('B')), scaled(bytes * 8, millis, &units('b')))
    }
}

/// `228.76 MBytes`; there is no smaller unit than KBytes.
fn amount(bytes: u64) -> String {
    scaled(u128::from(bytes), 1000, &["KBytes", "MBytes", "GBytes", "TBytes", "PBytes", "EBytes"].map(String::from))
}

/// The fraction with two places in the first of the units, each a thousand of the one before, that keeps it below a
/// thousand. In whole numbers, since half a hundredth, as of 615 bytes, is no number of a double.
fn scaled(value: u128, mut unit: u128, names: &[String]) -> String {
    let mut names = names.iter();
    let mut name = names.next().map_or("", String::as_str);
    loop {
        let hundredths = (value * 100 + unit / 2) / unit;
        match names.next() {
            Some(next) if hundredths >= 100_000 => (name, unit) = (next, unit * 1000),
            Some(_) | None => return format!("{}.{:02} {name}", hundredths / 100, hundredths % 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the example in the manual of EPS Conduits, and what it prints of them.
    #[test]
    fn the_manuals_example_comes_out_word_for_word() {
        let window = Duration::from_secs(60);
        let flowed = flow(269_119, 228_757_979);
        let grown = Sums { forwarded: flowed, received: flowed, ..Sums::default() };
        let total = Sums {
            forwarded: flow(1_690_156, 1_436_434_521),
            received: flow(1_690_102, 1_436_426_256),
            sent: flow(12, 615),
            connections_established: 3,
            ..Sums::default()
        };
        assert_eq!(
            rates(&grown, window),
            "in: 3.81 MBps (30.50 Mbps), out: 0.00 Bps (0.00 bps), fwd: 3.81 MBps (30.50 Mbps)"
        );
        assert_eq!(
            block(&grown, &total, window),
            "EPS statistics:\n\
             60-second stats:\n\
             269119 packets forwarded\n\
             228757979 bytes forwarded (228.76 MBytes)\n\
             269119 packets received\n\
             228757979 bytes received (228.76 MBytes)\n\
             total stats:\n\
             1690156 packets forwarded\n\
             1436434521 bytes forwarded (1.44 GBytes)\n\
             1690102 packets received\n\
             1436426256 bytes received (1.44 GBytes)\n\
             12 packets sent\n\
             615 bytes sent (0.62 KBytes)\n\
             3 connections established"
        );
    }

    #[test]
    fn a_client_tells_by_server_directly_and_at_the_tap() {
        let tally = Tally {
            relay_rx_frames: 1,
            relay_rx_bytes: 100,
            direct_tx_frames: 2,
            direct_tx_bytes: 3000,
            tap_rx_frames: 2,
            tap_rx_bytes: 3000,
            connections_dropped: 1,
            ..Tally::default()
        };
        let sums = Sums::of_client(&tally);
        assert_eq!(
            block(&Sums::default(), &sums, Duration::from_millis(60_400)),
            "EPS statistics:\n60-second stats:\ntotal stats:\n1 packets received\n100 bytes received (0.10 KBytes)\n\
             2 direct packets sent\n3000 bytes sent (3.00 KBytes)\n2 tap packets received\n\
             3000 tap bytes received (3.00 KBytes)\n1 connections dropped"
                .replace("3000 bytes sent", "3000 direct bytes sent")
        );
        assert_eq!((sums.in_bytes(), sums.out_bytes()), (100, 3000));
    }

    #[test]
    fn what_a_server_sent_itself_is_apart_from_what_it_forwarded() {
        let tally = Tally {
            udp_tx_datagrams: 112,
            udp_tx_bytes: 100_615,
            relayed_datagrams: 100,
            relayed_bytes: 100_000,
            ..Tally::default()
        };
        let sums = Sums::of_server(&tally);
        assert_eq!((sums.sent, sums.forwarded), (flow(12, 615), flow(100, 100_000)));
    }

    #[test]
    fn units_change_where_the_rounded_number_has_four_digits() {
        for (bytes, text) in [
            (0, "0.00 KBytes"),
            (4, "0.00 KBytes"),
            (5, "0.01 KBytes"),
            (999_994, "999.99 KBytes"),
            (999_995, "1.00 MBytes"),
            (u64::MAX, "18.45 EBytes"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        assert_eq!(Rate(999, Duration::from_secs(1)).text(), "999.00 Bps (7.99 Kbps)");
        assert_eq!(Rate(5, Duration::ZERO).text(), "5.00 KBps (40.00 Kbps)", "a window is not empty");
        assert_eq!(Rate(u64::MAX, Duration::from_secs(1)).text(), "18446744.07 TBps (147573952.59 Tbps)");
    }
}
