//! The core against the recorded sessions of the real program, and each rule by itself.
//!
//! What is compared is bytes: of lists the order of entries is free, Gets lose their mark, and the two messages that only
//! we send are set aside: an introduction is a list without its receiver in it, a keepalive a list of nobody.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::*;
use crate::counters::DropReason;
use crate::wire::ethernet::tests::hex;

const NODE: &str = "10.77.0.2:3210";

/// A node: the core, what it has published, its device and what it has sent.
struct Node {
    own: SocketAddr,
    token: Token,
    cloud: Cloud,
    view: CloudView,
    fdb: FdbView,
    now: Instant,
    tap_is_up: bool,
    tap: Vec<Vec<u8>>,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    events: Vec<Event>,
    lookups: Vec<usize>,
}

impl Node {
    fn new(own: &str, token: u64, peer_timeout: u64, mac_timeout: u64, connect: &[&str]) -> Self {
        let (now, own) = (Instant::now(), addr(own));
        let settings = Settings {
            token: Token::new(token).expect("small"),
            peer_timeout: Duration::from_secs(peer_timeout),
            mac_timeout: Duration::from_secs(mac_timeout),
            v4: true,
            v6: true,
            port: own.port(),
            connect: connect.len(),
        };
        let token = settings.token;
        let (view, fdb) = (CloudView::default(), FdbView::empty(now));
        let cloud = Cloud::new(settings, Epoch(now), &view, &fdb, [7; 32], now);
        let (sent, tap, events, lookups) = Default::default();
        let mut node = Self { own, token, cloud, view, fdb, now, tap_is_up: true, tap, sent, events, lookups };
        node.cloud.set_local(vec![own.ip()], Vec::new());
        for (number, name) in connect.iter().enumerate() {
            node.cloud.looked_up(number, vec![addr(name)]);
        }
        node.settle();
        node
    }

    /// What an owner does after each input.
    fn settle(&mut self) {
        if self.cloud.take_changed() {
            (self.view, self.fdb) = (self.cloud.view(), self.cloud.fdb_view());
        }
        while let Some(output) = self.cloud.poll_output() {
            match output {
                Output::Send { to, datagram } => self.sent.push((to.addr, datagram)),
                Output::LookUp(number) => self.lookups.push(number),
                Output::Event(event) => self.events.push(event),
            }
        }
    }

    /// As the receiving side of the data path does it.
    fn receives(&mut self, from: SocketAddr, datagram: &[u8]) -> Result<(), DropReason> {
        match Message::parse(self.token, datagram)? {
            Message::Frame(frame) => {
                if !self.tap_is_up {
                    return Err(DropReason::TapWrite);
                }
                self.tap.push(frame.to_vec());
                self.cloud.heard_frame(from, self.now);
                self.cloud.learn(ethcloud::vlan(frame), ethcloud::stations(frame).1, from, self.now);
            }
            message => self.cloud.heard(from, &message, self.now),
        }
        self.settle();
        Ok(())
    }

    /// As the sending side does it.
    fn reads(&mut self, frame: &[u8]) {
        let to: Vec<_> = match self.view.route(frame, &self.fdb) {
            To::One(peer) => vec![peer.clone()],
            To::All(peers) => peers.to_vec(),
        };
        for peer in to {
            self.sent.push((peer.endpoint.addr, [&self.token.frame_head()[..], frame].concat()));
        }
    }

    fn passes(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.cloud.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.cloud.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    /// What was sent since it was last asked, as it is compared.
    fn said(&mut self) -> Vec<(SocketAddr, String)> {
        let mut said: Vec<_> = std::mem::take(&mut self.sent)
            .into_iter()
            .filter_map(|(to, datagram)| Some((to, plain(self.token, to, self.own, &datagram)?)))
            .collect();
        said.sort();
        said
    }

    fn peers(&self) -> Vec<String> {
        self.view.peers.iter().map(|peer| peer.endpoint.addr.to_string()).collect()
    }

    fn gets(&mut self, to: &str) -> usize {
        let count = self.sent.iter().filter(|(addr, datagram)| addr.to_string() == to && datagram[7] == 2).count();
        self.sent.clear();
        count
    }
}

/// A datagram as it is compared, `None` for what only we send.
fn plain(token: Token, to: SocketAddr, own: SocketAddr, datagram: &[u8]) -> Option<String> {
    match Message::parse(token, datagram).unwrap_or_else(|reason| panic!("{reason:?}: {datagram:02x?}")) {
        Message::Frame(frame) => Some(format!("frame {}", text(frame))),
        Message::GetPeers(_) => Some("get".to_owned()),
        Message::Close => Some("close".to_owned()),
        Message::Peers(list) => {
            // The program becomes its own peer and says so.
            let named: BTreeSet<SocketAddr> = list.addresses().filter(|addr| *addr != own).collect();
            named.contains(&to).then(|| format!("list {named:?}"))
        }
    }
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|_| panic!("{text}"))
}

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ethcloud").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(file(name)).expect(name)).expect("JSON")
}

/// Time since the first, sender, receiver, payload.
type Recorded = (Duration, SocketAddr, SocketAddr, Vec<u8>);
/// Whom something was sent to, and what.
type Sent = (SocketAddr, String);

/// Datagrams of a recording. Fragments are joined.
fn pcap(name: &str) -> Vec<Recorded> {
    let bytes = std::fs::read(file(name)).expect(name);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
    let (mut at, mut datagrams): (usize, Vec<Recorded>) = (24, Vec::new());
    let mut first = None;
    while at < bytes.len() {
        let time = Duration::new(word(at).into(), word(at + 4) * 1000);
        let frame = &bytes[at + 16..at + 16 + word(at + 8) as usize];
        at += 16 + frame.len();
        let packet = &frame[14..];
        let (head, packet) = packet.split_at(usize::from(packet[0] & 15) * 4);
        let payload = &packet[..usize::from(u16::from_be_bytes([head[2], head[3]])) - head.len()];
        if u16::from_be_bytes([head[6], head[7]]) & 0x1fff != 0 {
            datagrams.last_mut().expect("a first fragment").3.extend(payload);
            continue;
        }
        let end = |ip: usize, port: usize| {
            let ip: [u8; 4] = head[ip..ip + 4].try_into().expect("four");
            SocketAddr::new(ip.into(), u16::from_be_bytes([payload[port], payload[port + 1]]))
        };
        let since = time - *first.get_or_insert(time);
        datagrams.push((since, end(12, 0), end(16, 2), payload[8..].to_vec()));
    }
    datagrams
}

const RECORDINGS: [(&str, u64); 7] = [
    ("hole_punch.pcap", 7),
    ("malformed.pcap", 4660),
    ("mesh4.pcap", 4660),
    ("switching.pcap", 4660),
    ("timeouts.pcap", 4660),
    ("two_nodes.pcap", 4660),
    ("two_nodes_self_on_lo.pcap", 4660),
];

#[test]
fn every_recorded_datagram_that_is_read_is_written_with_the_same_bytes() {
    let mut count = 0;
    for (name, number) in RECORDINGS {
        let token = Token::new(number).expect("small");
        for (_, _, _, datagram) in pcap(name) {
            let written = match Message::parse(token, &datagram) {
                Ok(Message::Frame(frame)) => [&token.frame_head()[..], frame].concat(),
                Ok(Message::Peers(list)) => ethcloud::peer_lists(token, list.addresses()).concat(),
                Ok(Message::GetPeers(sign)) => ethcloud::get_peers(token, &sign),
                Ok(Message::Close) => ethcloud::close(token).to_vec(),
                Err(_) => {
                    assert_eq!(name, "malformed.pcap", "only there is what cannot be read: {datagram:02x?}");
                    continue;
                }
            };
            // The hostile ones have bytes too few or too many, which are passed over.
            if name != "malformed.pcap" {
                assert_eq!(written, datagram, "{name}");
                count += 1;
            }
        }
    }
    println!("{count} recorded datagrams read and written alike");
    assert_eq!(count, 140);
}

#[test]
fn tokens_give_the_recorded_bytes_or_are_refused() {
    for case in json("tokens.json")["cases"].as_array().expect("cases") {
        let option = case["token_option"].as_str().expect("text");
        let token = option.parse::<Token>();
        assert_eq!(token.is_ok(), case["usable"].as_bool().expect("a truth value"), "{option}");
        if let Ok(token) = token {
            assert_eq!(text(&ethcloud::get_peers(token, &Sign::default())), case["getpeers_hex"], "{option}");
        }
    }
}

/// What we do better, by the notes of the recordings: the datagrams and device writes that take the place of the
/// recorded ones.
type Better = fn(&str, &str) -> Option<(Vec<(&'static str, &'static str)>, Vec<&'static str>)>;

fn replay(name: &str, better: Better) {
    let session = json(name);
    let option = |name: &str, default: u64| {
        let options = session["options"].as_array().expect("options");
        let at = options.iter().position(|one| one == name);
        at.map_or(default, |at| options[at + 1].as_str().expect("text").parse().expect("a number"))
    };
    let number = session["token"].as_u64().expect("a number");
    let mut node = Node::new(NODE, number, option("--peer-timeout", 1800), option("--mac-timeout", 300), &[]);
    let mut asked = BTreeSet::new();
    // It has run for a while.
    node.passes(Duration::from_millis(2500));
    for event in session["events"].as_array().expect("events") {
        let note = event["note"].as_str().unwrap_or_default();
        let (token, own) = (node.token, node.own);
        let expected = |key: &str| {
            let out = event[key].as_array().into_iter().flatten();
            let mut out: Vec<(SocketAddr, String)> = out
                .map(|sent| (addr(sent["to"].as_str().expect("text")), hex(sent["hex"].as_str().expect("text"))))
                .filter_map(|(to, datagram)| Some((to, plain(token, to, own, &datagram)?)))
                .collect();
            out.sort();
            out
        };
        let mut expected_out = expected("udp_out");
        let mut writes: Vec<String> = event["tap_write_hex"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|frame| frame.as_str().expect("text").to_owned())
            .collect();
        if let Some((out, tap)) = better(name, note) {
            expected_out = out.into_iter().map(|(to, frame)| (addr(to), format!("frame {frame}"))).collect();
            writes = tap.into_iter().map(str::to_owned).collect();
        }
        let mut passes = Duration::ZERO;
        if let Some(datagram) = event["udp_in_hex"].as_str() {
            let from = addr(event["udp_in_from"].as_str().expect("text"));
            let _ = node.receives(from, &hex(datagram));
            passes = Duration::from_millis(300);
        } else if let Some(frame) = event["tap_read_hex"].as_str() {
            node.reads(&hex(frame));
            passes = Duration::from_millis(360);
        } else if let Some(seconds) = event["wait_s"].as_f64() {
            node.passes(Duration::from_secs_f64(seconds));
            let (said, expected): (BTreeSet<_>, BTreeSet<_>) =
                (node.said().into_iter().collect(), expected("udp_out_during").into_iter().collect());
            assert_eq!(said, expected, "{name}: in {seconds} s");
            continue;
        } else if event["tap_link"] == "down" {
            node.tap_is_up = false;
            continue;
        }
        let mut said = node.said();
        node.passes(passes);
        said.extend(node.said());
        // Who was named in vain is asked again.
        said.retain(|(to, message)| message != "get" || asked.insert(*to));
        said.sort();
        // The first round has the bytes of the reply before it, and came when the program happened to wake.
        for list in [&mut said, &mut expected_out] {
            list.dedup_by(|one, other| one == other && one.1.starts_with("list"));
        }
        assert_eq!(said, expected_out, "{name}: {note}");
        let written: Vec<String> = std::mem::take(&mut node.tap).iter().map(|frame| text(frame)).collect();
        assert_eq!(written, writes, "{name}: {note}");
    }
}

#[test]
fn a_recorded_session_of_malformed_datagrams_is_answered_alike() {
    replay("malformed.json", |_, _| None);
}

#[test]
fn a_recorded_session_of_switching_is_answered_alike_or_better() {
    const BOTH: &str = "02aabbccdd0102aabbccdd77";
    replay("switching.json", |_, note| {
        let leaked: fn(&str) -> &'static str = |text| String::leak(text.to_owned());
        let frame = |rest: &str| leaked(&format!("{BOTH}{rest}"));
        Some(match note {
            // The key is the VLAN's number and not its priority.
            "VID 5 with PCP 3: the whole 16-bit TCI is the key, so unknown: to both" => {
                (vec![("10.77.0.4:4001", frame("8100600588b570637033"))], vec![])
            }
            "priority tag with PCP 3: tag kept, looked up as vlan 0x6000: to both" => {
                (vec![("10.77.0.4:4000", frame("8100600088b57072696f"))], vec![])
            }
            // Bytes are left as they are, in both directions.
            "priority tag, TCI 0: sent WITHOUT the tag, looked up as vlan 0" => {
                (vec![("10.77.0.4:4000", frame("8100000088b57072696f"))], vec![])
            }
            "priority tag TCI 0 from the wire: tag removed on tap; MAC moves to 4001 on vlan 0" => {
                (vec![], vec!["02aabbccdd0202aabbccdd018100000088b57072696f"])
            }
            // A peer takes its stations with it.
            "unicast still goes to the closed peer: MAC entries survive Close" => {
                (vec![("10.77.0.4:4000", frame("88b56c656674"))], vec![])
            }
            _ => return None,
        })
    });
}

#[test]
fn a_recorded_session_of_timeouts_is_answered_alike() {
    replay("timeouts.json", |_, _| None);
}

#[test]
fn lists_have_the_recorded_sizes_up_to_what_one_packet_holds() {
    for case in json("peer_list_sizes.json")["cases"].as_array().expect("cases") {
        let number = |key: &str| case[key].as_u64().expect("a number") as usize;
        let peers = number("peers");
        let mut node = Node::new(NODE, 4660, 1800, 300, &[]);
        for port in 0..peers as u16 {
            node.sent.clear();
            let get = ethcloud::get_peers(node.token, &Sign::default());
            node.receives(SocketAddr::new([10, 77, 0, 4].into(), 5000 + port), &get).expect("a Get");
        }
        let entries = |list: &[u8]| usize::from(list[8]);
        let reply: Vec<Vec<u8>> = std::mem::take(&mut node.sent).into_iter().map(|(_, list)| list).collect();
        assert!(reply.iter().all(|list| list.len() <= ethcloud::LIST_MAX));
        assert_eq!(reply.iter().map(|list| entries(list)).sum::<usize>(), peers, "everybody is named");
        if peers <= ethcloud::V4_MAX {
            assert_eq!(reply.iter().map(Vec::len).collect::<Vec<_>>(), [number("getpeers_reply_len")]);
        }
        node.passes(Duration::from_millis(40));
        let rounds: Vec<_> = std::mem::take(&mut node.sent);
        // The program tells everybody, so that it is not taken for gone; the manual, and we, a part.
        let receivers: BTreeSet<SocketAddr> = rounds.iter().map(|(to, _)| *to).collect();
        assert_eq!(receivers.len(), subset(number("periodic_receivers")), "{peers}");
        assert_eq!(rounds.len(), receivers.len(), "{peers}");
        let different: BTreeSet<&Vec<u8>> = rounds.iter().map(|(_, list)| list).collect();
        assert_eq!(different.len(), number("periodic_distinct_lists"));
        let list = different.first().expect("one");
        assert_eq!(list.len(), case["periodic_len"][0].as_u64().expect("a number") as usize, "{peers}");
        assert_eq!(entries(list), case["periodic_count_byte"][0].as_u64().expect("a number") as usize, "{peers}");
    }
}

/// Puts our node in the place of one of a recording: it gets what that one got, reads the frames that it sent, and must
/// say what it said.
fn stand_in(name: &str, number: u64, own: &str, peer_timeout: u64, connect: &[&str]) {
    let own_addr = addr(own);
    let recording = pcap(name);
    let start = recording.iter().find(|(_, from, to, _)| *from == own_addr || *to == own_addr).expect("it is there").0;
    let mut node = Node::new(own, number, peer_timeout, 300, connect);
    let (mut frames, mut said): (Vec<Sent>, BTreeSet<Sent>) = Default::default();
    let (mut recorded_frames, mut recorded): (Vec<Sent>, BTreeSet<Sent>) = Default::default();
    let mut read: Option<(Duration, Vec<u8>)> = None;
    let mut past = start;
    for (at, from, to, datagram) in recording {
        if from != own_addr && to != own_addr || from == to {
            continue;
        }
        node.passes(at - past);
        past = at;
        let second = Duration::from_secs(1);
        if to == own_addr
            && name == "hole_punch.pcap"
            && own.starts_with("198.51.100.10:")
            && from.ip().to_string().ends_with(".11")
            && at < 3 * second
        {
            // Recorded before a gate that did not let it through.
            continue;
        }
        if to == own_addr {
            let _ = node.receives(from, &datagram);
        } else {
            let Some(message) = plain(node.token, to, own_addr, &datagram) else { continue };
            if datagram[7] == 0 {
                recorded_frames.push((to, message));
                // One read of the device, however many it was sent to.
                let fresh = read
                    .as_ref()
                    .is_none_or(|(when, last)| at - *when > Duration::from_millis(2) || last[..] != datagram[8..]);
                if fresh {
                    node.reads(&datagram[8..]);
                    read = Some((at, datagram[8..].to_vec()));
                }
            } else {
                recorded.insert((to, message));
            }
        }
        for (to, message) in node.said() {
            if message.starts_with("frame") { frames.push((to, message)) } else { said.extend([(to, message)]) }
        }
    }
    frames.sort();
    recorded_frames.sort();
    assert_eq!(frames, recorded_frames, "{name} as {own}: frames");
    let missing: Vec<_> = recorded.difference(&said).collect();
    assert!(missing.is_empty(), "{name} as {own}: not said: {missing:#?}\nsaid: {said:#?}");
    println!(
        "{name} as {own}: {} frames, {} other messages, {} of them ours alone",
        frames.len(),
        said.len(),
        said.difference(&recorded).count()
    );
}

#[test]
fn in_the_place_of_a_recorded_node_ours_says_what_that_one_said() {
    for own in ["10.77.0.1:3210", "10.77.0.2:3210"] {
        stand_in("two_nodes.pcap", 4660, own, 1800, if own.starts_with("10.77.0.1") { &[NODE] } else { &[] });
    }
    for own in ["10.77.0.1:3210", "10.77.0.2:3210", "10.77.0.3:3210"] {
        stand_in("mesh4.pcap", 4660, own, 6, if own == NODE { &[] } else { &[NODE] });
    }
    let public = "198.51.100.1:3210";
    for own in ["198.51.100.10:3210", "198.51.100.11:3210", public] {
        let connect: &[&str] = if own == public { &[] } else { &[public] };
        stand_in("hole_punch.pcap", 7, own, 20, connect);
    }
    for name in ["malformed.pcap", "timeouts.pcap"] {
        stand_in(name, 4660, NODE, if name == "timeouts.pcap" { 6 } else { 600 }, &[]);
    }
}

#[test]
fn a_node_that_meets_its_own_mark_strikes_the_address_out_for_good() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &[]);
    let (peer, public) = (addr("10.77.0.4:4000"), addr("198.51.100.9:3210"));
    let list = ethcloud::peer_lists(node.token, [public]).concat();
    node.receives(peer, &list).expect("a list");
    let get = node.sent.iter().find(|(to, _)| *to == public).expect("it is asked").1.clone();
    for from in [public, addr("192.0.2.1:3211")] {
        node.receives(from, &get).expect("our own Get");
    }
    assert_eq!(node.peers(), [peer.to_string()]);
    assert!(node.events.contains(&Event::Myself(public)));
    node.sent.clear();
    node.receives(peer, &list).expect("a list");
    node.passes(Duration::from_secs(30));
    assert_eq!(node.gets(&public.to_string()), 0);
    // Nobody else's mark does that.
    node.receives(
        addr("10.77.0.5:1"),
        &ethcloud::get_peers(node.token, &Sign { mark: Some([9; 16]), ..Sign::default() }),
    )
    .expect("a Get");
    assert_eq!(node.peers().len(), 2);
}

#[test]
fn addresses_of_this_machine_and_of_nobody_are_never_asked() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &[]);
    node.cloud.set_local(vec!["192.0.2.1".parse().expect("an address")], vec!["10.9.0.0/16".parse().expect("a net")]);
    let names = [
        "192.0.2.1:3210",
        "0.0.0.0:1",
        "224.0.0.1:5",
        "255.255.255.255:5",
        "198.51.100.1:0",
        "127.0.0.1:9",
        "10.9.1.1:3210",
        "[ff02::1]:7",
        "[::]:8",
    ];
    let list = ethcloud::peer_lists(node.token, names.map(addr)).concat();
    node.receives(addr("10.77.0.4:4000"), &list).expect("a list");
    assert_eq!(node.sent, []);
    // Another port of this machine is another node.
    let list = ethcloud::peer_lists(node.token, [addr("192.0.2.1:3211"), addr("[2001:db8::1]:3210")]).concat();
    node.receives(addr("10.77.0.4:4000"), &list).expect("a list");
    assert_eq!((node.sent.len(), node.sent[1].0), (2, addr("[2001:db8::1]:3210")));
}

#[test]
fn listed_addresses_are_asked_each_second_for_a_while_and_then_left() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &[]);
    let list = ethcloud::peer_lists(node.token, [addr("198.51.100.9:3210")]).concat();
    node.receives(addr("10.77.0.4:4000"), &list).expect("a list");
    node.passes(Duration::from_secs(60));
    assert_eq!(node.gets("198.51.100.9:3210"), TRIES as usize);
    node.receives(addr("10.77.0.4:4000"), &list).expect("a list");
    node.passes(Duration::from_secs(60));
    assert_eq!(node.gets("198.51.100.9:3210"), 1, "named again, asked again, once");
}

#[test]
fn a_newcomer_is_introduced_within_a_second_unless_a_list_has_it() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &[]);
    let (old, new) = (addr("198.51.100.10:3210"), addr("198.51.100.11:3210"));
    let get = ethcloud::get_peers(node.token, &Sign::default());
    node.receives(old, &get).expect("a Get");
    node.passes(Duration::from_secs(5));
    node.sent.clear();
    node.receives(new, &get).expect("a Get");
    node.passes(Duration::from_secs(1));
    let introduction = (old, ethcloud::peer_lists(node.token, [new]).concat());
    assert!(node.sent.contains(&introduction), "{:02x?}", node.sent);

    let newer = addr("198.51.100.12:3210");
    node.sent.clear();
    node.receives(newer, &get).expect("a Get");
    node.receives(old, &ethcloud::peer_lists(node.token, [newer]).concat()).expect("a list");
    node.sent.clear();
    node.passes(Duration::from_secs(2));
    assert_eq!(node.sent, []);
}

#[test]
fn a_target_is_asked_each_second_until_it_is_a_peer_and_again_after_it_left() {
    let peer = "10.77.0.9:3210";
    let mut node = Node::new("192.0.2.1:3210", 1, 8, 300, &[peer]);
    node.passes(Duration::from_millis(3500));
    // The first at once, and one at each look but that at the same moment.
    assert_eq!(node.gets(peer), 4);
    node.receives(addr(peer), &ethcloud::peer_lists(node.token, []).concat()).expect("a list");
    node.passes(Duration::from_millis(7000));
    assert_eq!(node.gets(peer), 0);
    node.passes(Duration::from_millis(3000));
    assert!(node.events.contains(&Event::Silent(addr(peer))));
    assert!((1..=3).contains(&node.gets(peer)));
    node.receives(addr(peer), &ethcloud::close(node.token)).expect("a Close");
    assert!(node.lookups.len() > 1, "looked up again while nobody answers");
}

#[test]
fn a_name_whose_addresses_change_is_asked_at_the_new_ones() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &["10.77.0.9:3210"]);
    node.passes(Duration::from_secs(2));
    node.sent.clear();
    node.cloud.looked_up(0, vec![addr("10.77.0.10:3210"), addr("[2001:db8::10]:3210")]);
    node.cloud.looked_up(0, Vec::new());
    node.passes(Duration::from_secs(6));
    let asked: BTreeSet<SocketAddr> = node.sent.iter().map(|(to, _)| *to).collect();
    assert_eq!(asked, [addr("10.77.0.10:3210"), addr("[2001:db8::10]:3210")].into());
}

#[test]
fn an_idle_peer_gets_an_empty_list_every_20_to_25_seconds() {
    let mut node = Node::new("192.0.2.1:3210", 1, 1800, 300, &[]);
    for port in 4000..4020 {
        let from = SocketAddr::new([10, 77, 0, 4].into(), port);
        node.receives(from, &ethcloud::peer_lists(node.token, []).concat()).expect("a list");
    }
    node.passes(Duration::from_secs(2));
    node.sent.clear();
    node.passes(Duration::from_secs(19) - Duration::from_millis(1200));
    assert_eq!(node.sent, []);
    node.passes(Duration::from_millis(6200));
    assert_eq!(node.sent.len(), 20);
    let empty = ethcloud::peer_lists(node.token, []).concat();
    assert!(node.sent.iter().all(|(_, datagram)| *datagram == empty));
}

#[test]
fn groups_are_never_learned_and_broadcasts_go_on_to_all() {
    let mut node = Node::new(NODE, 4660, 1800, 300, &[]);
    for port in [4000, 4001] {
        let from = SocketAddr::new([10, 77, 0, 4].into(), port);
        node.receives(from, &ethcloud::get_peers(node.token, &Sign::default())).expect("a Get");
    }
    let frame = hex("ffffffffffff ffffffffffff 88b5 00");
    let _ = node.receives(addr("10.77.0.4:4000"), &[&node.token.frame_head()[..], &frame].concat());
    node.sent.clear();
    node.reads(&hex("ffffffffffff 02aabbccdd77 88b5 00"));
    assert_eq!((node.sent.len(), node.fdb.len()), (2, 0));
}

#[test]
fn rounds_of_a_large_cloud_name_everybody_in_turn() {
    let mut node = Node::new(NODE, 4660, 20, 300, &[]);
    let hundred: Vec<SocketAddr> = (0..100).map(|port| SocketAddr::new([10, 77, 0, 4].into(), 5000 + port)).collect();
    let mut named = BTreeSet::new();
    for _ in 0..10 {
        for addr in &hundred {
            node.receives(*addr, &ethcloud::peer_lists(node.token, []).concat()).expect("a list");
        }
        node.sent.clear();
        node.passes(Duration::from_secs(10));
        let rounds = node.sent.iter().filter(|(_, list)| list[8] == 10);
        for (_, list) in rounds {
            let Ok(Message::Peers(list)) = Message::parse(node.token, list) else { panic!("a list") };
            named.extend(list.addresses());
        }
    }
    assert_eq!(named.len(), 100);
}

#[test]
fn strangers_with_the_token_fill_the_table_and_no_more() {
    let mut node = Node::new(NODE, 4660, 1800, 300, &[]);
    for number in 0..PEERS_MAX as u32 + 100 {
        let from = SocketAddr::new((0x0b00_0000 + number).to_be_bytes().into(), 5);
        node.receives(from, &ethcloud::peer_lists(node.token, []).concat()).expect("a list");
    }
    assert_eq!(node.view.peers.len(), PEERS_MAX);
    let many = (0..10_000_u32).map(|number| SocketAddr::new((0x0c00_0000 + number).to_be_bytes().into(), 5));
    for list in ethcloud::peer_lists(node.token, many) {
        node.receives(node.view.peers[0].endpoint.addr, &list).expect("a list");
    }
    assert!(node.cloud.tried.len() <= TRIED_MAX + 255, "{}", node.cloud.tried.len());
}

#[test]
fn a_restarted_core_goes_on_with_the_published_views() {
    let mut node = Node::new(NODE, 4660, 1800, 300, &[]);
    let frame = hex("0000000000123400 02aabbccdd02 02aabbccdd01 88b5 00");
    node.receives(addr("10.77.0.4:4000"), &frame).expect("a frame");
    let settings = node.cloud.settings.clone();
    node.cloud = Cloud::new(settings, node.cloud.epoch, &node.view, &node.fdb, [8; 32], node.now);
    assert_eq!(node.cloud.view().peers.len(), 1);
    assert_eq!(node.cloud.fdb_view().len(), 1);
    node.receives(addr("10.77.0.4:4001"), &frame).expect("a frame");
    assert_eq!(node.view.by_idx.len(), 2, "numbers are not used twice");
    node.cloud.close();
    node.settle();
    assert_eq!(node.sent.iter().filter(|(_, datagram)| datagram[7] == 3).count(), 2);
}

/// Machines with an address of each family.
struct Dual {
    nodes: Vec<Node>,
    homes: Vec<[SocketAddr; 2]>,
    /// One of so many datagrams is lost.
    lossy: usize,
    sent: usize,
}

impl Dual {
    fn new(connect: &[&[&str]], lossy: usize) -> Self {
        let home = |number: usize| {
            [addr(&format!("192.0.2.{}:3210", number + 1)), addr(&format!("[2001:db8::{}]:3210", number + 1))]
        };
        let homes: Vec<_> = (0..connect.len()).map(home).collect();
        let nodes = homes.iter().zip(connect).map(|(home, connect)| {
            let mut node = Node::new(&home[0].to_string(), 4660, 1800, 300, connect);
            node.cloud.set_local(home.iter().map(SocketAddr::ip).collect(), Vec::new());
            node
        });
        let mut nodes: Vec<_> = nodes.collect();
        for (number, node) in nodes.iter_mut().enumerate() {
            // All draw other numbers.
            let settings = node.cloud.settings.clone();
            node.cloud = Cloud::new(settings, Epoch(node.now), &node.view, &node.fdb, [number as u8 + 1; 32], node.now);
            node.cloud.set_local(homes[number].iter().map(SocketAddr::ip).collect(), Vec::new());
            node.sent.clear();
            for (name, at) in connect[number].iter().enumerate() {
                node.cloud.looked_up(name, vec![addr(at)]);
            }
            node.settle();
        }
        Self { nodes, homes, lossy, sent: 0 }
    }

    /// Delivers what was said, and what is said to that, for a while.
    fn run(&mut self, time: Duration) {
        let step = Duration::from_millis(50);
        for _ in 0..time.as_millis() / step.as_millis() {
            for from in 0..self.nodes.len() {
                for (to, datagram) in std::mem::take(&mut self.nodes[from].sent) {
                    self.sent += 1;
                    let source = self.homes[from][usize::from(to.is_ipv6())];
                    let at = self.homes.iter().position(|home| home.contains(&to));
                    if let Some(at) = at.filter(|_| self.lossy == 0 || !self.sent.is_multiple_of(self.lossy)) {
                        self.nodes[at].receives(source, &datagram).expect("it can be read");
                    }
                }
            }
            self.nodes.iter_mut().for_each(|node| node.passes(step));
        }
    }

    /// How many datagrams a broadcast of this node is, and to how many machines.
    fn shout(&mut self, node: usize) -> (usize, usize) {
        self.nodes[node].sent.clear();
        self.nodes[node].reads(&hex("ffffffffffff 02aabbccdd77 88b5 00"));
        let to = std::mem::take(&mut self.nodes[node].sent);
        let machines: BTreeSet<_> =
            to.iter().map(|(to, _)| self.homes.iter().position(|home| home.contains(to)).expect("a machine")).collect();
        (to.len(), machines.len())
    }
}

#[test]
fn nodes_with_addresses_of_both_families_get_each_broadcast_once() {
    for lossy in [0, 3] {
        let mut cloud = Dual::new(&[&[], &["192.0.2.1:3210"], &["[2001:db8::1]:3210"]], lossy);
        cloud.run(Duration::from_secs(40));
        for node in 0..3 {
            assert_eq!(cloud.shout(node), (2, 2), "node {node}, losing one in {lossy}");
        }
        if lossy == 0 {
            assert_eq!(cloud.nodes.iter().map(|node| node.view.peers.len()).collect::<Vec<_>>(), [4, 4, 4]);
        }
        // Another core goes on with that.
        let node = &mut cloud.nodes[0];
        let settings = node.cloud.settings.clone();
        node.cloud = Cloud::new(settings, node.cloud.epoch, &node.view, &node.fdb, [99; 32], node.now);
        assert_eq!(node.cloud.view().flooded.len(), 2);
    }
}

#[test]
fn the_other_address_of_a_node_has_its_floods_when_the_first_has_left_or_is_silent() {
    let mut cloud = Dual::new(&[&[], &["192.0.2.1:3210"]], 0);
    let six = cloud.homes[1][1];
    cloud.run(Duration::from_secs(1));
    let from_there = ethcloud::peer_lists(cloud.nodes[0].token, [six]).concat();
    let list = ethcloud::peer_lists(cloud.nodes[0].token, [cloud.homes[0][1]]).concat();
    cloud.nodes[1].receives(cloud.homes[0][0], &list).expect("a list");
    cloud.run(Duration::from_secs(5));
    let flooded = |node: &Node| node.view.flooded.iter().map(|peer| peer.endpoint.addr).collect::<Vec<_>>();
    assert_eq!((flooded(&cloud.nodes[0]), cloud.nodes[0].view.peers.len()), (vec![cloud.homes[1][0]], 2));
    let node = &mut cloud.nodes[0];
    for _ in 0..7 {
        node.receives(six, &from_there).expect("a list");
        node.passes(Duration::from_secs(10));
    }
    assert_eq!(flooded(node), [six], "the other one has said nothing for a minute");
    node.receives(six, &ethcloud::close(node.token)).expect("a Close");
    assert_eq!(flooded(node), [cloud.homes[1][0]]);
}

#[test]
fn who_copies_an_id_takes_nothing_from_its_owner() {
    let (owner, thief) = (addr("10.77.0.4:4000"), addr("10.77.0.5:4000"));
    let get = |mark: u8, proof: Option<Mark>| {
        let sign = Sign { mark: Some([mark; 16]), id: Some([1; 16]), proof };
        ethcloud::get_peers(Token::new(4660).expect("small"), &sign)
    };
    for order in [[owner, thief], [thief, owner]] {
        let mut node = Node::new(NODE, 4660, 1800, 300, &[]);
        for (mark, from) in (2..).zip(order) {
            node.receives(from, &get(mark, None)).expect("a Get");
            node.receives(from, &get(mark, Some([9; 16]))).expect("a Get");
        }
        node.passes(Duration::from_secs(10));
        assert_eq!(node.view.flooded.len(), 2, "{order:?}");
    }
}

#[test]
fn every_peer_of_a_large_cloud_is_told_of_every_other_in_the_end() {
    let mut node = Node::new(NODE, 4660, 20, 300, &[]);
    let forty: Vec<SocketAddr> = (0..40).map(|port| SocketAddr::new([10, 77, 0, 4].into(), 5000 + port)).collect();
    let mut pairs = BTreeSet::new();
    for _ in 0..16 {
        for addr in &forty {
            node.receives(*addr, &ethcloud::peer_lists(node.token, []).concat()).expect("a list");
        }
        node.sent.clear();
        node.passes(Duration::from_secs(10));
        let lists: Vec<_> = node.sent.iter().filter(|(_, list)| list[8] == 10).collect();
        assert_eq!(lists.len() % 10, 0, "ten are told of ten");
        for (to, list) in lists {
            let Ok(Message::Peers(list)) = Message::parse(node.token, list) else { panic!("a list") };
            pairs.extend(list.addresses().map(|named| (*to, named)));
        }
    }
    assert_eq!(pairs.len(), 40 * 40);
}
