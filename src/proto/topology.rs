//! The map of a network as text in Graphviz's DOT.
//!
//! A pure function of what it is given: the same network gives the same text, so that two maps can be compared line by
//! line. Members have the colour of the best way anybody reaches them: green directly, orange by the relay, white not
//! tried yet, red gone. Direct paths are green lines between members, as wide as they are busy; a relayed pair is an
//! orange dashed line from each of the two to the server, which names the other; every other member that is online
//! hangs on the server by a thin line. Exact numbers are in the tooltips of an SVG.
//!
//! A large network would be a tangle: above [`PAIRS_MAX`] direct pairs only the busiest are drawn, and above
//! [`LABELLED_MAX`] members they show their names only. The title says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::scaled::{BitRate, Bytes, Millis};

/// Direct pairs that are drawn at the most: as many as twenty members have among them.
pub const PAIRS_MAX: usize = 190;
/// Members above which only names are written on them.
pub const LABELLED_MAX: usize = 60;

/// A network at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Topology {
    /// What is written on the server's node under its role, such as the network's addresses.
    pub server: String,
    pub members: Vec<Member>,
    /// Between members; the same pair may be reported by both of its ends.
    pub links: Vec<Link>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Unique in the network.
    pub name: String,
    pub address: String,
    pub online: bool,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    /// Bits per second of late; `None` while unknown.
    pub rx_rate: Option<f64>,
    pub tx_rate: Option<f64>,
}

/// How two members, given by their names, reach each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    pub ends: [String; 2],
    pub kind: LinkKind,
    pub rtt: Option<Duration>,
    /// Bits per second of late, both directions together; `None` while unknown.
    pub rate: Option<f64>,
}

/// The kinds, the better one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    Direct,
    Relay,
}

/// Writes the map. `snapshot` says when it was taken, in a comment and in the title.
///
/// Links to members that are unknown or offline are left out. Of two reports of a pair the direct one counts, then the
/// shorter round trip; of two rates the higher.
pub fn dot(topology: &Topology, snapshot: &str) -> String {
    let map = Map::new(topology);
    let mut text = String::new();
    map.write(&mut text, topology, snapshot).expect("a String takes all that is written");
    text
}

/// A number for what the map shows but for amounts and times: when it changes, the network has.
pub fn shape(topology: &Topology) -> u64 {
    let map = Map::new(topology);
    let mut hasher = DefaultHasher::new();
    for member in map.members.values() {
        (&member.name, &member.address, member.online).hash(&mut hasher);
    }
    for (ends, best) in &map.pairs {
        (ends, best.kind).hash(&mut hasher);
    }
    hasher.finish()
}

/// The network in order, each pair once.
struct Map<'a> {
    members: BTreeMap<&'a str, &'a Member>,
    pairs: BTreeMap<[&'a str; 2], Best>,
}

/// What is known of a pair.
#[derive(Debug, Clone, Copy)]
struct Best {
    kind: LinkKind,
    rtt: Option<Duration>,
    rate: Option<f64>,
}

impl<'a> Map<'a> {
    fn new(topology: &'a Topology) -> Self {
        let members: BTreeMap<&str, &Member> =
            topology.members.iter().map(|member| (member.name.as_str(), member)).collect();
        let online = |name: &str| members.get(name).is_some_and(|member| member.online);
        let mut pairs: BTreeMap<[&str; 2], Best> = BTreeMap::new();
        for link in &topology.links {
            let mut ends = link.ends.each_ref().map(String::as_str);
            if ends[0] == ends[1] || !ends.iter().all(|name| online(name)) {
                continue;
            }
            ends.sort_unstable();
            let found = Best { kind: link.kind, rtt: link.rtt, rate: link.rate };
            // An unknown round trip is longer than any.
            let rank = |best: Best| (best.kind, best.rtt.unwrap_or(Duration::MAX));
            let best = pairs.entry(ends).or_insert(found);
            let rate = best.rate.into_iter().chain(found.rate).reduce(f64::max);
            if rank(found) < rank(*best) {
                *best = found;
            }
            best.rate = rate;
        }
        Self { members, pairs }
    }

    /// The direct pairs that are drawn, in the order of their names.
    fn drawn(&self) -> Vec<([&'a str; 2], Best)> {
        let direct = self.pairs.iter().filter(|(_, best)| best.kind == LinkKind::Direct);
        let mut direct: Vec<_> = direct.map(|(ends, best)| (*ends, *best)).collect();
        if direct.len() > PAIRS_MAX {
            let busy = |best: &Best| best.rate.unwrap_or(0.0);
            // A stable sort: equally busy ones stay in the order of their names.
            direct.sort_by(|(_, one), (_, other)| busy(other).total_cmp(&busy(one)));
            direct.truncate(PAIRS_MAX);
            direct.sort_by_key(|(ends, _)| *ends);
        }
        direct
    }

    fn write(&self, out: &mut String, topology: &Topology, snapshot: &str) -> fmt::Result {
        let (drawn, legs) = (self.drawn(), self.legs());
        let direct = self.pairs.values().filter(|best| best.kind == LinkKind::Direct).count();
        let snapshot = snapshot.replace(char::is_control, " ");
        writeln!(out, "// {snapshot}")?;
        writeln!(out, "graph \"eps-actor\" {{")?;
        self.write_head(out, (drawn.len(), direct), &snapshot)?;
        let server = label(&["server", &topology.server]);
        writeln!(
            out,
            "    {SERVER} [label={server}, shape=box, style=filled, fillcolor=\"{SERVER_FILL}\", color=\"{SERVER_LINE}\", fontcolor=white, penwidth=0];"
        )?;
        self.write_members(out)?;
        let labelled = drawn.len() <= LABELS_MAX && self.is_small();
        for (ends, best) in &drawn {
            write_direct(out, *ends, *best, labelled)?;
        }
        for (name, others) in &legs {
            let (shown, rest) = others.split_at(others.len().min(NAMES_ON_A_LEG));
            let more = if rest.is_empty() { String::new() } else { format!("and {} more", rest.len()) };
            let lines: Vec<&str> = shown.iter().map(|line| line.trim_end()).chain([more.as_str()]).collect();
            let name = quoted(name);
            writeln!(
                out,
                "    {name} -- {SERVER} [color=\"{RELAYED_LINE}\", fontcolor=\"{RELAYED_TEXT}\", style=dashed, penwidth=1.6, label={}];",
                label(&lines)
            )?;
        }
        for (name, member) in &self.members {
            if member.online && !legs.contains_key(name) {
                writeln!(out, "    {} -- {SERVER} [color=\"{IDLE_LINE}\", penwidth=0.6];", quoted(name))?;
            }
        }
        writeln!(out, "}}")
    }

    /// The layout, by size: a ring while every name can be read on one, springs beyond.
    fn write_head(&self, out: &mut String, (drawn, direct): (usize, usize), snapshot: &str) -> fmt::Result {
        let online = self.members.values().filter(|member| member.online).count();
        let mut title = format!("{online} of {} members online", self.members.len());
        if drawn < direct {
            write!(title, ", the {drawn} busiest of {direct} direct pairs")?;
        }
        let title = label(&[&title, snapshot]);
        let small = self.is_small();
        let layout = match self.members.len() {
            // Two or three would stand in each other's way, and removing overlaps draws them together until the labels of
            // edges touch them.
            0..6 => "layout=circo, mindist=2.4, overlap=true",
            _ if small => "layout=circo, mindist=1.1, overlap=prism",
            _ => "layout=sfdp, K=1, repulsiveforce=1.6, overlap=prism",
        };
        writeln!(
            out,
            "    graph [{layout}, outputorder=edgesfirst, bgcolor=white, pad=0.3, label={title}, labelloc=b, fontname=\"Helvetica\", fontsize=12, fontcolor=\"{QUIET_TEXT}\"];"
        )?;
        let size = if small {
            "fontsize=11, margin=\"0.14,0.07\""
        } else {
            "fontsize=9, margin=\"0.05,0.02\", height=0.2, width=0.2"
        };
        writeln!(out, "    node [fontname=\"Helvetica\", shape=box, style=\"rounded,filled\", penwidth=1.2, {size}];")?;
        writeln!(out, "    edge [fontname=\"Helvetica\", fontsize=9];")
    }

    fn write_members(&self, out: &mut String) -> fmt::Result {
        let with = |kind: LinkKind| -> BTreeSet<&str> {
            self.pairs.iter().filter(|(_, best)| best.kind == kind).flat_map(|(ends, _)| *ends).collect()
        };
        let (direct, relayed) = (with(LinkKind::Direct), with(LinkKind::Relay));
        for (name, member) in &self.members {
            let (fill, line, text) = match member.online {
                false => ("#fdecea", "#d93025", "#a50e0e"),
                true if direct.contains(name) => ("#e6f4ea", "#1e8e3e", "#0d652d"),
                true if relayed.contains(name) => ("#fef0e0", RELAYED_LINE, RELAYED_TEXT),
                true => ("white", "#3c4043", "#202124"),
            };
            let way = |word: &str, bytes: u64, rate: Option<f64>| {
                let rate = rate.filter(|rate| *rate > 0.0).map(|rate| format!(", {}", BitRate(rate)));
                if bytes > 0 { format!("{word} {}{}", Bytes(bytes), rate.unwrap_or_default()) } else { String::new() }
            };
            let rx = way("in", member.rx_bytes, member.rx_rate);
            let tx = way("out", member.tx_bytes, member.tx_rate);
            let written = if self.is_small() { label(&[name, &member.address, &rx, &tx]) } else { label(&[name]) };
            let tooltip = quoted(&format!(
                "{name} {}: in {} bytes, out {} bytes",
                member.address, member.rx_bytes, member.tx_bytes
            ));
            let name = quoted(name);
            writeln!(
                out,
                "    {name} [label={written}, tooltip={tooltip}, fillcolor=\"{fill}\", color=\"{line}\", fontcolor=\"{text}\"];"
            )?;
        }
        Ok(())
    }

    fn is_small(&self) -> bool {
        self.members.len() <= LABELLED_MAX
    }

    /// Of each member that is relayed, whom to, with the round trip.
    fn legs(&self) -> BTreeMap<&'a str, Vec<String>> {
        let mut legs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for ([a, b], best) in self.pairs.iter().filter(|(_, best)| best.kind == LinkKind::Relay) {
            let figures = figures(*best);
            legs.entry(a).or_default().push(format!("to {b} {figures}"));
            legs.entry(b).or_default().push(format!("to {a} {figures}"));
        }
        legs
    }
}

fn write_direct(out: &mut String, [a, b]: [&str; 2], best: Best, labelled: bool) -> fmt::Result {
    let figures = figures(best);
    let tooltip = quoted(format!("{a} and {b}, directly {figures}").trim_end());
    let text =
        if labelled { format!(", fontcolor=\"{DIRECT_TEXT}\", label={}", quoted(&figures)) } else { String::new() };
    let (a, b, width) = (quoted(a), quoted(b), width(best.rate));
    writeln!(out, "    {a} -- {b} [color=\"{DIRECT_LINE}\", penwidth={width:.1}{text}, tooltip={tooltip}];")
}

/// `0.4 ms, 3.1 Mbit/s`, as far as they are known.
fn figures(best: Best) -> String {
    let rtt = best.rtt.map(|rtt| Millis(rtt.as_secs_f64() * 1e3).to_string());
    let rate = best.rate.filter(|rate| *rate > 0.0).map(|rate| BitRate(rate).to_string());
    rtt.into_iter().chain(rate).collect::<Vec<_>>().join(", ")
}

/// A line's width in points by its rate: half a point more for each factor of ten above 10 kbit/s.
fn width(rate: Option<f64>) -> f64 {
    0.8 + (rate.unwrap_or(0.0) / 1e4).max(1.0).log10().min(6.0) / 2.0
}

/// A quoted string whose value is this text. In labels a backslash would begin an escape, so it is doubled.
fn quoted(text: &str) -> String {
    label(&[text])
}

/// A quoted label of these lines, empty ones left out.
fn label(lines: &[&str]) -> String {
    let mut label = String::from("\"");
    let full = lines.iter().filter(|line| !line.is_empty());
    for (index, line) in full.enumerate() {
        if index > 0 {
            label.push_str("\\n");
        }
        for letter in line.chars() {
            match letter {
                '"' => label.push_str("\\\""),
                '\\' => label.push_str("\\\\"),
                letter if letter.is_control() => label.push(' '),
                letter => label.push(letter),
            }
        }
    }
    label.push('"');
    label
}

/// No member can be called this: names have no parentheses.
const SERVER: &str = "\"(server)\"";

/// Direct pairs above which figures are in the tooltips only: as many as twelve members have among them.
const LABELS_MAX: usize = 66;
/// More would hide the map behind its labels.
const NAMES_ON_A_LEG: usize = 4;

const SERVER_FILL: &str = "#1a73e8";
const SERVER_LINE: &str = "#1a73e8";
const DIRECT_LINE: &str = "#34a853";
const DIRECT_TEXT: &str = "#137333";
const RELAYED_LINE: &str = "#f29900";
const RELAYED_TEXT: &str = "#b06000";
const IDLE_LINE: &str = "#bdc1c6";
const QUIET_TEXT: &str = "#5f6368";

#[cfg(test)]
mod tests {
    use super::LinkKind::{Direct, Relay};
    use super::*;

    #[test]
    fn a_network_of_four() {
        let mut busy = link("bob", "ada", Direct, Some(420));
        busy.rate = Some(3.1e6);
        let mut ada = member("ada", true);
        (ada.rx_rate, ada.tx_rate) = (Some(94.2e6), Some(0.0));
        let topology = Topology {
            server: "192.168.43.0/24".into(),
            members: vec![member("cleo", true), ada, member("bob", true), member("dan", false), member("eve", true)],
            links: vec![
                busy,
                link("ada", "cleo", Relay, Some(3100)),
                link("ada", "dan", Direct, None),
                link("ada", "stranger", Direct, None),
            ],
        };
        let text = dot(&topology, "2026-11-21T02:38:00Z");
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[..2], ["// 2026-11-21T02:38:00Z", "graph \"eps-actor\" {"]);
        assert!(lines[2].contains("label=\"4 of 5 members online\\n2026-11-21T02:38:00Z\""), "{}", lines[2]);
        let begins = [
            "\"(server)\" [label=\"server\\n192.168.43.0/24\", ",
            "\"ada\" [label=\"ada\\n10.0.0.1\\nin 1.2 kB, 94.2 Mbit/s\\nout 5 B\", \
             tooltip=\"ada 10.0.0.1: in 1200 bytes, out 5 bytes\", fillcolor=\"#e6f4ea\", ",
            "\"bob\" [label=\"bob\\n10.0.0.1\\nin 1.2 kB\\nout 5 B\", ",
            "\"cleo\" [",
            "\"dan\" [",
            "\"eve\" [",
            "\"ada\" -- \"bob\" [color=\"#34a853\", penwidth=2.0, fontcolor=\"#137333\", label=\"0.4 ms, 3.1 Mbit/s\", ",
            "\"ada\" -- \"(server)\" [color=\"#f29900\", fontcolor=\"#b06000\", style=dashed, penwidth=1.6, \
             label=\"to cleo 3.1 ms\"];",
            "\"cleo\" -- \"(server)\" [color=\"#f29900\", fontcolor=\"#b06000\", style=dashed, penwidth=1.6, \
             label=\"to ada 3.1 ms\"];",
            "\"bob\" -- \"(server)\" [color=\"#bdc1c6\", ",
            "\"eve\" -- \"(server)\" [color=\"#bdc1c6\", ",
            "}",
        ];
        assert_eq!(lines.len(), 5 + begins.len(), "{text}");
        for (line, begin) in lines[5..].iter().zip(begins) {
            assert!(line.starts_with(begin), "{line}\nis not\n{begin}");
        }
        for (name, colour) in [("bob", "#1e8e3e"), ("cleo", "#f29900"), ("dan", "#d93025"), ("eve", "#3c4043")] {
            let line = lines.iter().find(|line| line.starts_with(&format!("\"{name}\" ["))).expect("a node");
            assert!(line.contains(&format!(" color=\"{colour}\"")), "{line}");
        }
    }

    #[test]
    fn the_order_of_what_is_given_does_not_matter() {
        let mut topology = Topology {
            server: String::new(),
            members: vec![member("a", true), member("b", true), member("c", true)],
            links: vec![
                link("a", "b", Relay, Some(900)),
                link("b", "a", Direct, None),
                link("a", "b", Direct, Some(500)),
                link("c", "c", Direct, None),
            ],
        };
        let (text, form) = (dot(&topology, ""), shape(&topology));
        topology.members.reverse();
        topology.links.reverse();
        assert_eq!((dot(&topology, ""), shape(&topology)), (text.clone(), form));
        assert_eq!(text.matches(DIRECT_LINE).count(), 1, "{text}");
        assert!(text.contains("label=\"0.5 ms\""), "{text}");
        assert!(text.contains("\"c\" -- \"(server)\" [color=\"#bdc1c6\""), "{text}");
        assert!(!text.contains("dashed"), "{text}");
    }

    #[test]
    fn amounts_and_times_do_not_change_the_shape_and_ways_do() {
        let mut topology = network(3);
        let before = shape(&topology);
        topology.members[0].rx_bytes += 1;
        topology.links[0].rtt = Some(Duration::from_secs(1));
        topology.links[0].rate = Some(1.0);
        assert_eq!(shape(&topology), before);
        topology.links[0].kind = Relay;
        let relayed = shape(&topology);
        assert_ne!(relayed, before);
        topology.members[2].online = false;
        assert_ne!(shape(&topology), relayed);
    }

    #[test]
    fn no_text_breaks_out_of_its_quotes_or_the_comment() {
        let name = "a\"]; x\\\n";
        let topology = Topology { server: String::new(), members: vec![member(name, true)], links: Vec::new() };
        let text = dot(&topology, "now\n} x");
        assert!(text.starts_with("// now } x\ngraph"), "{text}");
        assert!(text.contains(r#"    "a\"]; x\\ " [label="#), "{text}");
    }

    #[test]
    fn a_member_relayed_to_many_names_a_few() {
        let names: Vec<String> = (0..10).map(|number| format!("m{number}")).collect();
        let topology = Topology {
            server: String::new(),
            members: names.iter().map(|name| member(name, true)).collect(),
            links: names[1..].iter().map(|name| link("m0", name, Relay, None)).collect(),
        };
        let text = dot(&topology, "");
        assert!(text.contains(r#"label="to m1\nto m2\nto m3\nto m4\nand 5 more""#), "{text}");
    }

    #[test]
    fn of_too_many_pairs_the_relayed_and_the_busiest_are_drawn() {
        let mut topology = network(40);
        topology.links[700].rate = Some(1e9);
        let [a, b] = topology.links[700].ends.clone();
        topology.links[701].kind = Relay;
        let text = dot(&topology, "");
        assert_eq!(text.matches(DIRECT_LINE).count(), PAIRS_MAX);
        assert!(text.contains(&format!("\"{a}\" -- \"{b}\"")), "the busiest");
        assert_eq!(text.matches("dashed").count(), 2, "both legs of the relayed pair");
        assert!(text.contains("the 190 busiest of 665 direct pairs"), "{text}");
    }

    /// With `EPS_MAPS` as a directory, the pictures stay there to be looked at.
    #[test]
    fn dot_and_circo_draw_1_2_100_and_1000_members_in_sane_time() {
        let place = tempfile::tempdir().expect("a directory");
        let place = std::env::var_os("EPS_MAPS").map_or_else(|| place.path().to_owned(), Into::into);
        for members in [1, 2, 12, 100, 1000] {
            let file = place.join(format!("map-{members}.gv"));
            std::fs::write(&file, dot(&network(members), "2026-11-21T02:38:00Z")).expect("written");
            for program in ["dot", "circo"] {
                let picture = place.join(format!("map-{members}-{program}.svg"));
                let start = std::time::Instant::now();
                let drawn =
                    std::process::Command::new(program).arg("-Tsvg").arg(&file).arg("-o").arg(&picture).output();
                let drawn = match drawn {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        println!("skipped: {program} is not installed");
                        continue;
                    }
                    drawn => drawn.expect("started"),
                };
                let complaints = String::from_utf8_lossy(&drawn.stderr).into_owned();
                assert!(drawn.status.success() && complaints.is_empty(), "{program} of {members}: {complaints}");
                let svg = std::fs::read_to_string(&picture).expect("a picture");
                assert_eq!(svg.matches("class=\"node\"").count(), members + 1, "{program} of {members}");
                let took = start.elapsed();
                println!("{program}: {members} members drawn in {took:.1?}");
                assert!(took < Duration::from_secs(60), "{program} took {took:?} for {members}");
            }
        }
    }

    /// All pairs but for some; every seventh member is relayed to a few, every eleventh is gone.
    fn network(count: usize) -> Topology {
        let names: Vec<String> = (1..=count).map(|number| format!("node{number}")).collect();
        let members = names.iter().enumerate().map(|(index, name)| {
            let mut member = member(name, index % 11 != 10);
            member.address = format!("10.0.{}.{}", index / 250, index % 250 + 1);
            (member.rx_bytes, member.tx_bytes) = (index as u64 * 7_300_000, index as u64 * 900_000);
            (member.rx_rate, member.tx_rate) = (Some(index as f64 * 1e5), Some(index as f64 * 3e4));
            member
        });
        let mut links = Vec::new();
        for a in 0..count {
            for b in a + 1..count {
                let relayed = b % 7 == 6 && count < 40;
                if relayed && a > 1 || count > 200 && (a * b) % 50 != 0 {
                    continue;
                }
                let mut link =
                    link(&names[a], &names[b], if relayed { Relay } else { Direct }, Some(300 + a as u64 * 50));
                link.rate = Some((a * b % 97) as f64 * 1e5);
                links.push(link);
            }
        }
        Topology { server: "10.0.0.0/16".into(), members: members.collect(), links }
    }

    fn member(name: &str, online: bool) -> Member {
        let (rx_bytes, tx_bytes) = (1200, 5);
        Member {
            name: name.into(),
            address: "10.0.0.1".into(),
            online,
            rx_bytes,
            tx_bytes,
            rx_rate: None,
            tx_rate: None,
        }
    }

    fn link(a: &str, b: &str, kind: LinkKind, rtt_us: Option<u64>) -> Link {
        Link { ends: [a.into(), b.into()], kind, rtt: rtt_us.map(Duration::from_micros), rate: None }
    }
}
