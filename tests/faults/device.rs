//! The TAP goes down, or is deleted.

use std::net::{IpAddr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::{DEVICE, Node};
use eps_actor::io::netns::can_make_networks;

use crate::load::Load;
use crate::stage::{SOON, Stage, counter, ms, shared, status, until};

#[test]
fn f_14_a_device_that_was_down_or_deleted_comes_back() {
    if !can_make_networks() {
        return;
    }
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob) = (&stage.scene.ada, &stage.scene.bob);
    let known = status(bob).expect("a status")["node"].clone();
    let mac = device_mac(bob).expect("a MAC");
    assert_eq!(mac, known["mac"]);
    let addresses = device_addresses(bob);
    assert!(addresses.contains(&stage.bob), "{addresses:?}");

    // Down, under traffic in both directions.
    let to = Load::start((ada, stage.ada), (bob, stage.bob));
    let from = Load::start((bob, stage.bob), (ada, stage.ada));
    thread::sleep(Duration::from_millis(300));
    let before = counter(bob, "drop_tap_write");
    bob.ns.set_link(DEVICE, false).expect("down");
    let refused = || Some(counter(bob, "drop_tap_write") - before).filter(|count| *count >= 100);
    let (refused, _) = until(Instant::now(), SOON, "refused writes to be counted", refused);
    bob.ns.set_link(DEVICE, true).expect("up");
    let up = Instant::now();
    let same = || (device_addresses(bob) == addresses).then_some(());
    let ((), whole) = until(up, Duration::from_secs(1), "all addresses, IPv6 too", same);
    thread::sleep(Duration::from_secs(2));
    let (to, from) = (to.stop(), from.stop());
    for flow in [to, from] {
        let back = flow.back_after(up).expect("traffic again");
        assert!(back <= Duration::from_secs(1), "{}: {back:?}", flow.name);
        println!("F-14: down: {refused} writes refused and counted; {}: back {} after up", flow.name, ms(back));
    }
    println!("F-14: down: every address (IPv6 too) is there {} after up", ms(whole));

    // Deleted, under traffic to it.
    let to = Load::start((ada, stage.ada), (bob, stage.bob));
    thread::sleep(Duration::from_millis(300));
    let netlink = bob.ns.netlink().expect("netlink");
    smol::block_on(async {
        let index = netlink.link_index(DEVICE).await.expect("a device");
        netlink.delete_link(index).await.expect("deleted");
    });
    let deleted = Instant::now();
    let same = || (device_mac(bob)? == mac && device_addresses(bob) == addresses).then_some(());
    let ((), took) = until(deleted, Duration::from_secs(2), "the same device again", same);
    thread::sleep(Duration::from_secs(2));
    let back = to.stop().back_after(deleted).expect("traffic again");
    assert!(back <= Duration::from_secs(2), "{back:?}");
    assert!(ada.ping(stage.bob, SOON).is_some() && bob.ping(stage.ada, SOON).is_some());
    println!("F-14: deleted: same MAC and addresses {} later, traffic {} later", ms(took), ms(back));
}

/// The MAC that the kernel made the link-local address of (RFC 4291, appendix A).
fn device_mac(node: &Node) -> Option<String> {
    let entry = addresses(node).into_iter().find_map(|address| match address {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Some(ip),
        _ => None,
    })?;
    let bytes = Ipv6Addr::octets(&entry);
    let mac = [bytes[8] ^ 2, bytes[9], bytes[10], bytes[13], bytes[14], bytes[15]];
    Some(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

/// The device's addresses in the network.
fn device_addresses(node: &Node) -> Vec<IpAddr> {
    let mut list = addresses(node);
    list.retain(|address| !matches!(address, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    list.sort();
    list
}

fn addresses(node: &Node) -> Vec<IpAddr> {
    let netlink = node.ns.netlink().expect("netlink");
    let all = smol::block_on(netlink.addresses()).expect("addresses");
    all.into_iter().filter(|address| address.name == DEVICE).map(|address| address.addr).collect()
}
