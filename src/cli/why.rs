//! `eps-actor why PEER`: the verdict first, then the one change that would help, then what both ends saw.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::args::WhyArguments;
use super::ask::ask_role;
use super::table::Column::{Left, Right};
use super::table::Table;
use crate::config::Role;

/// Asks and prints; 0 if nothing is wrong.
pub fn run(arguments: &WhyArguments, out: &mut dyn Write) -> anyhow::Result<u8> {
    let question = json!({"command": "why", "peer": arguments.peer});
    let reply = ask_role(Role::Client, Some(&arguments.socket), &question)?;
    if arguments.json {
        writeln!(out, "{reply}")?;
    } else {
        print(&reply, out)?;
    }
    Ok(u8::from(reply["fine"] != true))
}

fn print(reply: &Value, out: &mut dyn Write) -> io::Result<()> {
    let peer = text(&reply["peer"]);
    writeln!(out, "{}", text(&reply["text"]))?;
    if let Some(fix) = reply["fix"].as_str() {
        writeln!(out, "what would help: {fix}")?;
    }
    if reply["ours"].is_object() {
        writeln!(out)?;
        print_side("this machine", &reply["ours"], out)?;
        match text(&reply["account"]) {
            "told" => {
                print_side(peer, &reply["theirs"], out)?;
            }
            "silent" => writeln!(out, "{peer}: was asked and did not answer; what follows is this end's view alone")?,
            "not-understood" => writeln!(out, "{peer}: runs a version that cannot be asked")?,
            _ => writeln!(out, "{peer}: was not asked, there is no session")?,
        }
        print_tries(&format!("from here to {peer}"), &reply["ours"], out)?;
        print_tries(&format!("from {peer} to here"), &reply["theirs"], out)?;
    }
    Ok(())
}

/// One end in one line.
fn print_side(name: &str, side: &Value, out: &mut dyn Write) -> io::Result<()> {
    let nat = match text(&side["nat"]) {
        "none" => "no NAT",
        "endpoint-independent" => "NAT with one port for all destinations",
        "predictable" => "NAT with a new port for each destination, in steps",
        "endpoint-dependent" => "NAT with a new random port for each destination",
        "udp-blocked" => "UDP does not pass",
        _ => "NAT not known",
    };
    let mut parts = vec![nat.to_owned()];
    if let Some(observed) = side["observed"].as_str() {
        parts.push(format!("a server sees it at {observed}"));
    }
    let families = match (side["ipv4"] == true, side["ipv6"] == true) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4 only",
        (false, true) => "IPv6 only",
        (false, false) => "no route",
    };
    parts.push(families.to_owned());
    let silent = side["udp_answered"] != true && side["by_tcp"] != true;
    let server = match (side["connected"] == true, silent) {
        (true, false) => "connected to the server",
        (true, true) => "connected to the server, which does not answer at this moment",
        (false, _) => "not connected to the server",
    };
    parts.push(server.to_owned());
    if side["by_tcp"] == true {
        parts.push("by TCP".into());
    }
    if side["direct"] != true {
        parts.push("direct: false".into());
    }
    writeln!(out, "{name}: {}", parts.join(", "))
}

fn print_tries(title: &str, side: &Value, out: &mut dyn Write) -> io::Result<()> {
    let Some(tries) = side["tries"].as_array().filter(|tries| !tries.is_empty()) else { return Ok(()) };
    writeln!(out, "\ntried {title}:")?;
    let mut table =
        Table::new([Left("address"), Left("kind"), Right("sent"), Right("answered"), Right("came from it"), Left("")]);
    for one in tries {
        let count = |name: &str| one[name].as_u64().map(|count| count.to_string());
        table.row(vec![
            one["address"].as_str().map(ToOwned::to_owned),
            one["kind"].as_str().map(ToOwned::to_owned),
            count("sent"),
            count("answered"),
            count("arrived"),
            Some(text(&one["error"]).to_owned()),
        ]);
    }
    table.write(out)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verdict_comes_first_then_what_helps_then_both_ends() {
        let side = |nat: &str| {
            json!({
                "nat": nat, "observed": "203.0.113.1:7", "ipv4": true, "ipv6": false, "connected": true, "by_tcp": false,
                "udp_answered": true, "direct": true,
                "tries": [{"address": "192.0.2.1:5", "kind": "observed", "sent": 7, "answered": 0, "arrived": 1,
                           "error": "Network is unreachable (os error 101)"}],
            })
        };
        let reply = json!({
            "peer": "bob", "text": "both are hard", "fix": "map a port", "fine": false, "account": "told",
            "ours": side("endpoint-dependent"), "theirs": side("none"),
        });
        let mut out = Vec::new();
        print(&reply, &mut out).expect("printed");
        let text = String::from_utf8(out).expect("text");
        assert!(text.starts_with("both are hard\nwhat would help: map a port\n\nthis machine: NAT with a new random"));
        assert!(text.contains("\nbob: no NAT, a server sees it at 203.0.113.1:7, IPv4 only"), "{text}");
        assert!(text.contains("tried from here to bob:\n") && text.contains("tried from bob to here:\n"), "{text}");
        assert!(text.contains("Network is unreachable"), "{text}");
    }

    #[test]
    fn without_a_peer_there_is_only_the_verdict() {
        let reply = json!({"peer": "zoe", "text": "no member is called zoe", "fix": "use a name", "fine": false});
        let mut out = Vec::new();
        print(&reply, &mut out).expect("printed");
        assert_eq!(String::from_utf8(out).expect("text"), "no member is called zoe\nwhat would help: use a name\n");
    }
}
