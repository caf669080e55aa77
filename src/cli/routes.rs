//! Routes beyond the network, in the words of `status` and `members`.

use std::io::{self, Write};

use super::reply::Routing;

/// The lines of a client's status; none where there is nothing to say.
pub fn print(routing: &Routing, out: &mut dyn Write) -> io::Result<()> {
    let Routing { published, not_allowed, accepted, refused, exit, trouble } = routing;
    for subnet in published {
        writeln!(out, "route {}: others reach it through this node", words(subnet))?;
    }
    for subnet in not_allowed {
        writeln!(out, "route {}: not published, the server does not allow it", words(subnet))?;
    }
    for route in accepted {
        let peer = route.peer.as_deref().unwrap_or("a member");
        writeln!(out, "route {}: through {peer} ({})", route.subnet, route.gateway)?;
    }
    for route in refused {
        writeln!(out, "route {}: not taken up: {}", route.subnet, route.reason)?;
    }
    if let Some(exit) = exit {
        let reason = exit.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let state = match exit.state.as_str() {
            "up" => "everything for the Internet goes there, IPv6 is closed",
            "closed" => "the Internet is closed until it is back",
            _ => "not there yet, the Internet is reached as without it",
        };
        writeln!(out, "exit {}: {state}{reason}", exit.peer)?;
    }
    match trouble {
        Some(trouble) => writeln!(out, "routes: {trouble}"),
        None => Ok(()),
    }
}

/// A subnet for people.
pub fn words(subnet: &str) -> &str {
    if subnet == "0.0.0.0/0" { "the Internet" } else { subnet }
}

/// The subnets of a member for a table; `None` for none.
pub fn cell(routes: &[String]) -> Option<String> {
    let words: Vec<&str> = routes.iter().map(|subnet| words(subnet)).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::reply::{AcceptedRoute, ExitState, RefusedRoute};
    use super::*;

    #[test]
    fn routes_are_told_in_words_and_none_is_no_line() {
        let routing = Routing {
            published: vec!["0.0.0.0/0".into()],
            not_allowed: vec!["10.9.0.0/16".into()],
            accepted: vec![AcceptedRoute {
                subnet: "10.1.0.0/16".into(),
                gateway: "192.168.43.9".into(),
                peer: Some("gate".into()),
            }],
            refused: vec![RefusedRoute { subnet: "10.2.0.0/16".into(), reason: "it overlaps".into() }],
            exit: Some(ExitState { peer: "gate".into(), state: "closed".into(), reason: Some("gone".into()) }),
            trouble: Some("no route".into()),
        };
        let mut out = Vec::new();
        print(&routing, &mut out).expect("written");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "\
route the Internet: others reach it through this node
route 10.9.0.0/16: not published, the server does not allow it
route 10.1.0.0/16: through gate (192.168.43.9)
route 10.2.0.0/16: not taken up: it overlaps
exit gate: the Internet is closed until it is back: gone
routes: no route
"
        );
        let mut out = Vec::new();
        print(&Routing::default(), &mut out).expect("written");
        assert!(out.is_empty());
    }
}
