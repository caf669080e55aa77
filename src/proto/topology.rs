//! The map of a network as text in Graphviz's DOT.
//!
//! A pure function of what it is given: the same network gives the same text, so that two maps can be compared line by
//! line. Direct paths are green lines between members; a relayed pair is an orange dashed line from each of the two to
//! the server, which names the other; every other member that is online hangs on the server by a dotted line; one that is
//! offline is grey.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::scaled::{Bytes, Millis};

/// A network at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// What is written on the server's node under its role, such as the network's addresses.
    pub server: String,
    pub members: Vec<Member>,
    /// Between members; the same pair may be reported by both of its ends.
    pub links: Vec<Link>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Unique in the network.
    pub name: String,
    pub address: String,
    pub online: bool,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// How two members, given by their names, reach each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub ends: [String; 2],
    pub kind: LinkKind,
    pub rtt: Option<Duration>,
}

/// The kinds, the better one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    Direct,
    Relay,
}

/// Writes the map. `snapshot` says when it was taken, in a comment.
///
/// Links to members that are unknown or offline are left out. Of two reports of a pair the direct one counts, then the
/// shorter round trip.
pub fn dot(topology: &Topology, snapshot: &str) -> String {
    let members: BTreeMap<&str, &Member> =
        topology.members.iter().map(|member| (member.name.as_str(), member)).collect();
    let pairs = pairs(&topology.links, &members);
    let mut text = String::new();
    write(&mut text, topology, &members, &pairs, snapshot).expect("a String takes all that is written");
    text
}

/// What is known of a pair; the order prefers what is drawn.
type Best = (LinkKind, Option<Duration>);

fn pairs<'a>(links: &'a [Link], members: &BTreeMap<&str, &Member>) -> BTreeMap<[&'a str; 2], Best> {
    let online = |name: &str| members.get(name).is_some_and(|member| member.online);
    let mut pairs: BTreeMap<[&str; 2], Best> = BTreeMap::new();
    for link in links {
        let mut ends = link.ends.each_ref().map(String::as_str);
        if ends[0] == ends[1] || !ends.iter().all(|name| online(name)) {
            continue;
        }
        ends.sort_unstable();
        // An unknown round trip is longer than any.
        let rank = |(kind, rtt): Best| (kind, rtt.unwrap_or(Duration::MAX));
        let found = (link.kind, link.rtt);
        let best = pairs.entry(ends).or_insert(found);
        if rank(found) < rank(*best) {
            *best = found;
        }
    }
    pairs
}

fn write(
    out: &mut String,
    topology: &Topology,
    members: &BTreeMap<&str, &Member>,
    pairs: &BTreeMap<[&str; 2], Best>,
    snapshot: &str,
) -> fmt::Result {
    writeln!(out, "// {}", snapshot.replace(char::is_control, " "))?;
    writeln!(out, "graph \"eps-actor\" {{")?;
    writeln!(out, "    layout=circo; overlap=false; splines=line;")?;
    writeln!(out, "    node [fontname=\"sans-serif\", fontsize=11, shape=ellipse, style=filled, fillcolor=white];")?;
    writeln!(out, "    edge [fontname=\"sans-serif\", fontsize=9];")?;
    writeln!(
        out,
        "    {SERVER} [label={}, shape=box, style=\"filled,bold\", fillcolor=lightblue];",
        label(&["server", &topology.server])
    )?;
    for member in members.values() {
        write_member(out, member)?;
    }
    let mut legs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ([a, b], (kind, rtt)) in pairs {
        let rtt = rtt.map(|rtt| Millis(rtt.as_secs_f64() * 1e3).to_string()).unwrap_or_default();
        match kind {
            LinkKind::Direct => {
                let (a, b, label) = (quoted(a), quoted(b), quoted(&rtt));
                writeln!(out, "    {a} -- {b} [color=green4, penwidth=2, label={label}];")?;
            }
            LinkKind::Relay => {
                legs.entry(a).or_default().push(format!("to {b} {rtt}"));
                legs.entry(b).or_default().push(format!("to {a} {rtt}"));
            }
        }
    }
    for (name, others) in &legs {
        let (shown, rest) = others.split_at(others.len().min(NAMES_ON_A_LEG));
        let more = if rest.is_empty() { String::new() } else { format!("and {} more", rest.len()) };
        let lines: Vec<&str> = shown.iter().map(|line| line.trim_end()).chain([more.as_str()]).collect();
        writeln!(out, "    {} -- {SERVER} [color=orange, style=dashed, label={}];", quoted(name), label(&lines))?;
    }
    for (name, member) in members {
        if member.online && !legs.contains_key(name) {
            writeln!(out, "    {} -- {SERVER} [color=gray50, style=dotted];", quoted(name))?;
        }
    }
    writeln!(out, "}}")
}

fn write_member(out: &mut String, member: &Member) -> fmt::Result {
    let moved = match (member.rx_bytes, member.tx_bytes) {
        (0, 0) => String::new(),
        (rx, tx) => format!("in {}, out {}", Bytes(rx), Bytes(tx)),
    };
    let label = label(&[&member.name, &member.address, &moved]);
    let look = if member.online { "" } else { ", color=gray, fontcolor=gray50, fillcolor=gray95" };
    writeln!(out, "    {} [label={label}{look}];", quoted(&member.name))
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

/// More would hide the map behind its labels.
const NAMES_ON_A_LEG: usize = 4;

#[cfg(test)]
mod tests {
    use super::LinkKind::{Direct, Relay};
    use super::*;

    #[test]
    fn a_network_of_four() {
        let topology = Topology {
            server: "192.168.43.0/24".into(),
            members: vec![member("cleo", true), member("ada", true), member("bob", true), member("dan", false)],
            links: vec![
                link("bob", "ada", Direct, Some(420)),
                link("ada", "cleo", Relay, Some(3100)),
                link("ada", "dan", Direct, None),
                link("ada", "stranger", Direct, None),
            ],
        };
        assert_eq!(
            dot(&topology, "2026-11-21T02:38:00Z"),
            r#"// 2026-11-21T02:38:00Z
graph "eps-actor" {
    layout=circo; overlap=false; splines=line;
    node [fontname="sans-serif", fontsize=11, shape=ellipse, style=filled, fillcolor=white];
    edge [fontname="sans-serif", fontsize=9];
    "(server)" [label="server\n192.168.43.0/24", shape=box, style="filled,bold", fillcolor=lightblue];
    "ada" [label="ada\n10.0.0.1\nin 1.2 kB, out 5 B"];
    "bob" [label="bob\n10.0.0.1\nin 1.2 kB, out 5 B"];
    "cleo" [label="cleo\n10.0.0.1\nin 1.2 kB, out 5 B"];
    "dan" [label="dan\n10.0.0.1\nin 1.2 kB, out 5 B", color=gray, fontcolor=gray50, fillcolor=gray95];
    "ada" -- "bob" [color=green4, penwidth=2, label="0.4 ms"];
    "ada" -- "(server)" [color=orange, style=dashed, label="to cleo 3.1 ms"];
    "cleo" -- "(server)" [color=orange, style=dashed, label="to ada 3.1 ms"];
    "bob" -- "(server)" [color=gray50, style=dotted];
}
"#
        );
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
        let text = dot(&topology, "");
        topology.members.reverse();
        topology.links.reverse();
        assert_eq!(dot(&topology, ""), text);
        assert_eq!(text.matches("green4").count(), 1, "{text}");
        assert!(text.contains("\"a\" -- \"b\" [color=green4, penwidth=2, label=\"0.5 ms\"]"), "{text}");
        assert!(text.contains("\"c\" -- \"(server)\" [color=gray50, style=dotted]"), "{text}");
        assert!(!text.contains("orange"), "{text}");
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

    fn member(name: &str, online: bool) -> Member {
        Member { name: name.into(), address: "10.0.0.1".into(), online, rx_bytes: 1200, tx_bytes: 5 }
    }

    fn link(a: &str, b: &str, kind: LinkKind, rtt_us: Option<u64>) -> Link {
        Link { ends: [a.into(), b.into()], kind, rtt: rtt_us.map(Duration::from_micros) }
    }
}
