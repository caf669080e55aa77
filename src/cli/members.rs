//! `eps-actor members`: who is in the network. The server knows all of it; a client, what its map says.

use std::io::{self, Write};

use serde_json::json;

use super::args::MembersArguments;
use super::ask::ask;
use super::reply::{ClientStatus, Lease, ServerStatus, Status};
use super::routes::cell;
use super::status::print_cloud_peers;
use super::table::Column::Left;
use super::table::Table;
use crate::io::clock::unix_time;
use crate::scaled::Seconds;

/// Asks whichever nodes are meant, and prints their members: a JSON array a line, or for eyes.
pub fn run(arguments: &MembersArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let replies = ask(&arguments.target, &json!({"command": "status"}))?;
    // A server on this machine has the better answer than the client beside it.
    let Some(reply) = replies.first() else { return Ok(()) };
    let status = Status::read(reply)?;
    if arguments.json {
        let field = match status {
            Status::Server(_) => "leases",
            Status::Tunnel(_) => anyhow::bail!(NO_MEMBERS),
            Status::Client(_) | Status::Cloud(_) => "peers",
        };
        writeln!(out, "{}", reply.get(field).unwrap_or(&json!([])))?;
        return Ok(());
    }
    match status {
        Status::Server(status) => print_of_server(&status, unix_time().as_secs(), out)?,
        Status::Client(status) => print_of_client(&status, out)?,
        Status::Tunnel(_) => anyhow::bail!(NO_MEMBERS),
        Status::Cloud(status) => print_cloud_peers(&status.peers, out)?,
    }
    Ok(())
}

const NO_MEMBERS: &str = "what answers is a tunnel, which has no members; `eps-actor status` shows its paths";

fn print_of_server(status: &ServerStatus, now_unix: u64, out: &mut dyn Write) -> io::Result<()> {
    if status.leases.is_empty() {
        return writeln!(out, "no member yet: `eps-actor invite` prints a line to join with");
    }
    let is_routed = status.leases.iter().any(|lease| !lease.routes.is_empty());
    let mut columns = ["member", "address", "address6", "MAC", "state", "joined", "rights", "id"].map(Left).to_vec();
    columns.extend(is_routed.then_some(Left("routes")));
    let mut table = Table::new(columns);
    for lease in &status.leases {
        let mut row = vec![
            Some(lease.name.clone()),
            lease.address.clone(),
            lease.address6.clone(),
            Some(lease.mac.clone()),
            Some(state(lease)),
            lease.joined_unix.map(|joined| format!("{} ago", Seconds(now_unix.saturating_sub(joined) as f64))),
            (!lease.rights.is_empty()).then(|| lease.rights.join(", ")),
            Some(lease.id.clone()),
        ];
        if is_routed {
            row.push(cell(&lease.routes));
        }
        table.row(row);
    }
    table.write(out)
}

fn state(lease: &Lease) -> String {
    match (lease.online, lease.last_heard_seconds) {
        (true, _) => "online".to_owned(),
        (false, Some(seconds)) => format!("offline for {}", Seconds(seconds)),
        (false, None) => "offline".to_owned(),
    }
}

fn print_of_client(status: &ClientStatus, out: &mut dyn Write) -> io::Result<()> {
    let (published, peers) = (&status.routing.published, &status.peers);
    let is_routed = !published.is_empty() || peers.iter().any(|peer| !peer.routes.is_empty());
    let mut columns = ["member", "address", "address6", "MAC", "state", "id"].map(Left).to_vec();
    columns.extend(is_routed.then_some(Left("routes")));
    let mut table = Table::new(columns);
    let with_routes = |mut row: Vec<Option<String>>, routes: &[String]| {
        if is_routed {
            row.push(cell(routes));
        }
        row
    };
    let node = &status.node;
    let without_prefix = |address: &Option<String>| address.as_ref().map(|text| text.split('/').take(1).collect());
    let row = vec![
        Some(node.name.clone()),
        without_prefix(&node.address),
        without_prefix(&node.address6),
        node.mac.clone(),
        Some("this node".to_owned()),
        Some(node.id.clone()),
    ];
    table.row(with_routes(row, published));
    for peer in peers {
        let row = vec![
            Some(peer.name.clone()),
            peer.address.clone(),
            peer.address6.clone(),
            Some(peer.mac.clone()),
            Some(if peer.online { "online" } else { "offline" }.to_owned()),
            Some(peer.id.clone()),
        ];
        table.row(with_routes(row, &peer.routes));
    }
    table.write(out)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::super::args::{Arguments, Command};
    use super::super::ask::tests::stand_in;
    use super::*;

    #[test]
    fn members_at_the_server() {
        let status = ServerStatus {
            leases: vec![
                Lease {
                    name: "nas".into(),
                    address: Some("192.168.43.9".into()),
                    mac: "02:00:00:00:00:09".into(),
                    id: "2b".into(),
                    online: true,
                    joined_unix: Some(1000),
                    rights: vec!["bridge".into(), "relay".into()],
                    ..Lease::default()
                },
                Lease { name: "old".into(), last_heard_seconds: Some(90.0), ..Lease::default() },
            ],
            ..ServerStatus::default()
        };
        let mut out = Vec::new();
        print_of_server(&status, 4600, &mut out).expect("written");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "\
member  address       address6  MAC                state             joined      rights         id
nas     192.168.43.9  -         02:00:00:00:00:09  online            60 min ago  bridge, relay  2b
old     -             -                            offline for 90 s  -           -
"
        );
    }

    #[test]
    fn members_at_a_client_begin_with_itself() {
        let reply = json!({"role": "client", "node": {"name": "laptop", "address": "10.0.0.7/24"},
            "peers": [{"name": "nas", "address": "10.0.0.9", "online": true}]});
        let text = run_against(reply.clone(), &[]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..3], ["laptop", "10.0.0.7", "-"], "{text}");
        assert_eq!(lines[2][..2], ["nas", "10.0.0.9"], "{text}");
        assert_eq!(run_against(reply, &["--json"]), "[{\"address\":\"10.0.0.9\",\"name\":\"nas\",\"online\":true}]\n");
    }

    fn run_against(reply: Value, more: &[&str]) -> String {
        let place = tempfile::tempdir().expect("a directory");
        let socket = place.path().join("s");
        stand_in(&socket, reply);
        let socket = socket.display().to_string();
        let words = ["eps-actor", "members", "--control", &socket].into_iter().chain(more.iter().copied());
        let Command::Members(arguments) = Arguments::try_parse_from(words).expect("good usage").command else {
            panic!("another command")
        };
        let mut out = Vec::new();
        run(&arguments, &mut out).expect("done");
        String::from_utf8(out).expect("text")
    }
}
