//! What is done to networks on the way: walls for UDP, routers that forget.

use std::process::{Command, Stdio};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::Netns;

use crate::stage::status;

/// Whether a program of a package is installed; says so if not.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(Into::into);
    let found = std::env::split_paths(&path).chain(more).any(|dir| dir.join(name).exists());
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}

/// Runs a program in a namespace, which must succeed.
pub fn run_in(ns: &Netns, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = ns.spawn(&mut command).unwrap_or_else(|error| panic!("{line}: {error}"));
    let output = child.wait_with_output().expect("waited");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

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
