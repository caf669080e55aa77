//! What was found out, for eyes and for scripts.

use std::io::{self, Write};
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::cli::table::Column::{Left, Right};
use crate::cli::table::Table;
use crate::proto::netcheck::{Facts, Family, Filtering, advice};
use crate::scaled::{Millis, Seconds};
use crate::wire::why::Mapping;

/// One JSON document. Unknown is null.
pub fn json(facts: &Facts) -> Value {
    let servers: Vec<Value> = facts
        .servers
        .iter()
        .map(|server| {
            json!({
                "name": server.name,
                "kind": if server.is_ours { "eps" } else { "stun" },
                "address": server.addr.map(|addr| addr.to_string()),
                "udp_ms": server.udp.map(|took| took.as_secs_f64() * 1e3),
                "tcp_ms": server.tcp.as_ref().and_then(|tcp| tcp.as_ref().ok()).map(|took| took.as_secs_f64() * 1e3),
                "tcp_error": server.tcp.as_ref().and_then(|tcp| tcp.as_ref().err()),
                "error": server.error,
            })
        })
        .collect();
    json!({
        "ipv4": family(&facts.four),
        "ipv6": family(&facts.six),
        "servers": servers,
        "gateway": facts.gateway.map(|gateway| gateway.to_string()),
        "gateway_protocols": facts.protocols,
        "gateway_outside": facts.gateway_outside.map(|outside| outside.to_string()),
        "clock_ahead_seconds": facts.clock_ahead,
        "advice": advice(facts),
    })
}

fn family(family: &Family) -> Value {
    let route = family.default_route.as_ref();
    let addresses: Vec<Value> = family
        .addresses
        .iter()
        .map(|(interface, addr)| json!({"interface": interface, "address": addr.to_string()}))
        .collect();
    json!({
        "addresses": addresses,
        "default_route": route.map(|(interface, gateway)| {
            json!({"interface": interface, "gateway": gateway.map(|gateway: IpAddr| gateway.to_string())})
        }),
        "udp": family.udp,
        "observed": family.observed.map(|addr| addr.to_string()),
        "mapping": (family.mapping != Mapping::Unknown).then(|| family.mapping.name()),
        "filtering": match family.filtering {
            Filtering::Unknown => Value::Null,
            Filtering::Open => "not-by-port".into(),
            Filtering::ByPort => "address-and-port".into(),
        },
        "hairpin": family.hairpin,
        "lifetime_at_least_seconds": family.lifetime.map(|(lived, _)| lived.as_secs_f64()),
        "lifetime_below_seconds": family.lifetime.and_then(|(_, gone)| gone).map(|gone| gone.as_secs_f64()),
        "packet_bytes": family.packet,
    })
}

/// A page for eyes, and the advice at its end.
pub fn text(facts: &Facts, out: &mut dyn Write) -> io::Result<()> {
    for (name, family) in [("IPv4", &facts.four), ("IPv6", &facts.six)] {
        print_family(name, family, out)?;
    }
    if !facts.servers.is_empty() {
        writeln!(out)?;
        let mut table = Table::new([Left("server"), Left("address"), Right("UDP"), Right("TCP")]);
        for server in &facts.servers {
            let failed = server.error.as_ref().map(|_| "does not resolve".to_owned());
            let time = |took: &std::time::Duration| Millis(took.as_secs_f64() * 1e3).to_string();
            let tcp = server.tcp.as_ref().map(|tcp| tcp.as_ref().map_or_else(|_| "no".to_owned(), time));
            table.row(vec![
                Some(server.name.clone()),
                server.addr.map(|addr| addr.to_string()).or(failed),
                server.addr.map(|_| server.udp.as_ref().map_or_else(|| "no".to_owned(), time)),
                tcp,
            ]);
        }
        table.write(out)?;
        writeln!(out)?;
    }
    if let Some(gateway) = facts.gateway {
        let spoken = match facts.protocols.as_slice() {
            [] => "answers neither PCP nor NAT-PMP nor UPnP".to_owned(),
            names => format!("maps ports by {}", names.join(", ")),
        };
        let outside = facts.gateway_outside.map(|outside| format!("; its outside address is {outside}"));
        writeln!(out, "gateway {gateway}: {spoken}{}", outside.unwrap_or_default())?;
    }
    if let Some(ahead) = facts.clock_ahead {
        match ahead {
            ahead if ahead.abs() < 2.0 => writeln!(out, "clock: that of the server")?,
            ahead if ahead > 0.0 => writeln!(out, "clock: {} ahead of the server's", Seconds(ahead))?,
            ahead => writeln!(out, "clock: {} behind the server's", Seconds(-ahead))?,
        }
    }
    let lines = advice(facts);
    if lines.is_empty() {
        return writeln!(out, "\nnothing to make better");
    }
    writeln!(out, "\nwhat would make it better:")?;
    lines.iter().try_for_each(|line| writeln!(out, "  * {line}"))
}

fn print_family(name: &str, family: &Family, out: &mut dyn Write) -> io::Result<()> {
    if family.addresses.is_empty() {
        return writeln!(out, "{name}: no address");
    }
    let addresses: Vec<String> =
        family.addresses.iter().map(|(interface, addr)| format!("{addr} ({interface})")).collect();
    let route = match &family.default_route {
        Some((interface, Some(gateway))) => format!("default route by {gateway} ({interface})"),
        Some((interface, None)) => format!("default route by {interface}"),
        None => "no default route".to_owned(),
    };
    writeln!(out, "{name}: {}; {route}", addresses.join(", "))?;
    let mut line = |what: &str, text: String| writeln!(out, "  {what}: {text}");
    match (family.udp, family.observed) {
        (Some(true), Some(observed)) => line("UDP", format!("answered; seen at {observed}"))?,
        (Some(_), _) => line("UDP", "nobody answered".into())?,
        (None, _) => {}
    }
    let nat = match family.mapping {
        Mapping::NoNat => Some("none"),
        Mapping::Independent => Some("one outside port for all destinations: others can be told it"),
        Mapping::Predictable => Some("another outside port for each destination, in steps that can be guessed"),
        Mapping::Dependent => Some("another outside port for each destination, at random"),
        Mapping::Unknown if family.observed.is_some() => Some("there is one; one answer alone does not tell its kind"),
        Mapping::Unknown | Mapping::Blocked => None,
    };
    if let Some(nat) = nat {
        line("NAT", nat.into())?;
    }
    match family.filtering {
        Filtering::Unknown => {}
        Filtering::Open => line("filtering", "not by port: the server's other port came through unasked".into())?,
        Filtering::ByPort => line("filtering", "by address and port: only who was sent to may answer".into())?,
    }
    if let Some(hairpin) = family.hairpin.filter(|_| family.mapping != Mapping::NoNat) {
        line("hairpin", if hairpin { "yes" } else { "no: the outside address does not lead back in" }.into())?;
    }
    match family.lifetime {
        Some((lived, Some(gone))) => {
            let [lived, gone] = [lived, gone].map(|time| Seconds(time.as_secs_f64()).to_string());
            line("mappings without traffic", format!("live at least {lived}, and less than {gone}"))?;
        }
        Some((lived, None)) => {
            line("mappings without traffic", format!("live {} and longer", Seconds(lived.as_secs_f64())))?;
        }
        None => {}
    }
    match family.packet {
        Some(packet) => line("packets", format!("{packet} bytes arrive whole")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_anything_is_told_what_to_do() {
        let mut page = Vec::new();
        text(&Facts::default(), &mut page).expect("printed");
        let page = String::from_utf8(page).expect("text");
        assert!(page.starts_with("IPv4: no address\nIPv6: no address\n"), "{page}");
        assert!(page.contains("  * there is no default route"), "{page}");
    }

    #[test]
    fn what_is_not_known_is_null() {
        let document = json(&Facts::default());
        for name in ["observed", "mapping", "filtering", "hairpin", "packet_bytes", "udp"] {
            assert!(document["ipv4"][name].is_null(), "{name}");
        }
    }
}
