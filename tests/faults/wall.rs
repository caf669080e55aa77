//! What is done to networks on the way: walls for UDP, routers that forget.

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::Netns;

pub use crate::programs::{has_program, run_in};
use crate::stage::status;

/// A router that forwards no UDP, both ways, and says nothing of it.
pub fn block_udp(router: &Netns) {
    run_in(router, "iptables -I FORWARD -p udp -j DROP");
}

pub fn unblock_udp(router: &Netns) {
    run_in(router, "iptables -D FORWARD -p udp -j DROP");
}

/// Where the server speaks to a member.
pub fn at_server(server: &Node, name: &str) -> String {
    let status = status(server).expect("the server's status");
    let rows = status["leases"].as_array().expect("leases");
    let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name} in {rows:?}"));
    row["endpoint"].as_str().unwrap_or_default().to_owned()
}

/// The process of a node that runs: its state directory's lock says it.
pub fn pid(node: &Node) -> u32 {
    let lock = node.state_path().join("lock");
    std::fs::read_to_string(lock).expect("a lock").trim().parse().expect("a number")
}

/// The memory that a node's process holds, in KiB.
pub fn resident_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid(node))).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.split_whitespace().next().expect("a number").parse().expect("a number")
}
