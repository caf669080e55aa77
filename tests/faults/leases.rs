//! The server dies while it gives leases: two hundred clients' cores over plain sockets, without devices.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{Directory, Node};
use eps_actor::config::Role;
use eps_actor::io::netns::{Netns, can_make_networks};
use eps_actor::io::store::{SqliteStore, Store};
use eps_actor::proto::records::MemberRecord;
use eps_actor::wire::join::JoinLine;

use crate::crowd::{Guest, holders, run};
use crate::stage::{PROGRAM, SOON, is_long, ms, shared, status, until};

const CLIENTS: usize = 200;
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1)), 43439);
/// The server is killed this often in each round of new clients.
const KILLS: usize = 2;

#[test]
fn f_03_a_server_killed_while_it_gives_leases_forgets_none() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let rounds = if is_long() { 10 } else { 3 };
    let (mut leases, mut seen, mut slowest) = (0, Vec::new(), Duration::ZERO);
    for _ in 0..rounds {
        let (stored, at_kills, took) = round();
        leases += stored;
        seen.extend(at_kills);
        slowest = slowest.max(took);
    }
    println!(
        "F-03: {} kills during {CLIENTS} grants each; leases held at the kills: {seen:?}; {leases} leases in the end, \
         none twice, every one in the store; all attached within {} of the last restart",
        rounds * KILLS,
        ms(slowest)
    );
}

/// New clients, a new server, [`KILLS`] kills. Returns the leases, how many were held at each kill, and how long it
/// took after the last restart until all were there again.
fn round() -> (usize, Vec<usize>, Duration) {
    let directory = Directory::new().expect("a directory");
    let ns = Arc::new(Netns::new().expect("a namespace"));
    let server = Node::new(PROGRAM.as_ref(), "server", Role::Server, ns.clone(), directory.path()).expect("a node");
    start(&server);
    let line = server.log().split([' ', '\n', '\'']).find(|word| word.starts_with("eps://")).map(str::to_owned);
    let line = JoinLine::parse(&line.expect("a line"), 43439).expect("a join line");
    let now = Instant::now();
    let mut crowd: Vec<_> = (0..CLIENTS).map(|number| Guest::new(number, &ns, SERVER, &line, now)).collect();

    let mut held = Vec::new();
    for _ in 0..KILLS {
        // All may hold one before the last kill.
        let (begun, enough) = (Instant::now(), rand::random_range(holders(&crowd).min(CLIENTS - 1)..CLIENTS));
        while holders(&crowd) <= enough && begun.elapsed() < SOON {
            run(&mut crowd);
        }
        server.kill().expect("killed");
        // What the server had sent is still in the sockets.
        for _ in 0..5 {
            run(&mut crowd);
        }
        held.push(holders(&crowd));
        check(&crowd, &read_copy(&server, &directory));
        start(&server);
    }
    let begun = Instant::now();
    loop {
        for _ in 0..20 {
            run(&mut crowd);
        }
        let leases = status(&server).expect("a status")["leases"].as_array().expect("leases").clone();
        let online = leases.iter().filter(|lease| lease["online"] == true).count();
        if holders(&crowd) == CLIENTS && online == CLIENTS {
            assert_eq!(leases.len(), CLIENTS);
            break;
        }
        let (held, log) = (holders(&crowd), server.log_tail(30).join("\n"));
        assert!(begun.elapsed() < Duration::from_secs(60), "{held} leases, {online} online\n{log}");
    }
    let took = begun.elapsed();
    let stopped = server.stop().expect("stopped").expect("it ran");
    assert!(stopped.status.success(), "{stopped:?}");
    let members = read(&server.state_path().join("network.db"));
    check(&crowd, &members);
    assert_eq!(members.len(), CLIENTS);
    (members.len(), held, took)
}

fn start(server: &Node) {
    server.start(&["--open", "--listen", "127.0.0.1", "--network", "10.77.0.0/16"]).expect("started");
    until(Instant::now(), SOON, "the server to listen", || status(server));
    until(Instant::now(), SOON, "a join line", || server.log().contains("eps://").then_some(()));
}

/// What a store holds that was left by a crash. A copy is read, so that the server finds it as it was.
fn read_copy(server: &Node, directory: &Directory) -> Vec<MemberRecord> {
    let aside = directory.path().join("copy");
    fs::create_dir_all(&aside).expect("a directory");
    for name in ["network.db", "network.db-wal", "network.db-shm"] {
        let from = server.state_path().join(name);
        if from.exists() {
            fs::copy(&from, aside.join(name)).expect("copied");
        }
    }
    let members = read(&aside.join("network.db"));
    fs::remove_dir_all(&aside).expect("removed");
    members
}

fn read(path: &Path) -> Vec<MemberRecord> {
    smol::block_on(async {
        let store = SqliteStore::open(path).await.expect("the store opens");
        store.load().await.expect("the store is whole").members
    })
}

/// No address twice, and every lease that a client holds is there as it was given.
fn check(crowd: &[Guest], members: &[MemberRecord]) {
    let distinct = |count: usize, what: &str| assert_eq!(count, members.len(), "a {what} was given twice");
    distinct(members.iter().map(|member| member.ip4).collect::<BTreeSet<_>>().len(), "IPv4 address");
    distinct(members.iter().map(|member| member.ip6).collect::<BTreeSet<_>>().len(), "IPv6 address");
    distinct(members.iter().map(|member| member.mac).collect::<BTreeSet<_>>().len(), "MAC");
    for guest in crowd {
        let Some(lease) = &guest.lease else { continue };
        let found = members.iter().find(|member| member.key == guest.key);
        let found = found.unwrap_or_else(|| panic!("{} holds a lease that is not in the store", guest.name));
        assert_eq!((found.ip4, found.ip6, found.mac), (lease.ip4, lease.ip6, lease.mac), "{}", guest.name);
    }
}
