//! Which sockets the configured uplinks need, as the machine's addresses are at the moment.
//!
//! An interface has a socket for each family it has an address of; a source address has one. What is down, or not
//! there, has none: its paths are gone, rather than left to fall silent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Uplink;
use crate::ids::UplinkId;

/// An address of this machine, on an interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub device: String,
    pub ifindex: u32,
    pub addr: IpAddr,
}

/// A socket that is wanted. Two that are equal are one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub id: UplinkId,
    /// Bound to, and the number it has today: an interface that was made anew has another.
    pub device: Option<(String, u32)>,
    pub addr: IpAddr,
}

/// The sockets for `uplinks`, in their order; each uplink keeps its numbers whether it is there or not.
pub fn wanted(uplinks: &[Uplink], places: &[Place]) -> Vec<Wanted> {
    let mut list = Vec::new();
    for (uplink, numbers) in uplinks.iter().zip(UplinkId::FURTHER.step_by(2)) {
        let id = |is_ipv4: bool| UplinkId(numbers + u8::from(!is_ipv4));
        match uplink {
            Uplink::Address(addr) => {
                let here = places.iter().any(|place| place.addr == *addr);
                list.extend(here.then_some(Wanted { id: id(addr.is_ipv4()), device: None, addr: *addr }));
            }
            Uplink::Device(device) => {
                for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                    let of_family = |place: &&Place| place.device == *device && place.addr.is_ipv4() == any.is_ipv4();
                    let place = places.iter().filter(|place| !is_link_local(place.addr)).find(of_family);
                    list.extend(place.map(|place| Wanted {
                        id: id(any.is_ipv4()),
                        device: Some((device.clone(), place.ifindex)),
                        addr: any,
                    }));
                }
            }
        }
    }
    list
}

fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(device: &str, ifindex: u32, addr: &str) -> Place {
        Place { device: device.into(), ifindex, addr: addr.parse().expect("an address") }
    }

    #[test]
    fn each_uplink_has_a_socket_for_each_family_it_is_there_for() {
        let uplinks = [
            Uplink::Device("eth0".into()),
            Uplink::Address("10.0.0.2".parse().expect("an address")),
            Uplink::Device("wlan0".into()),
        ];
        let eth = [place("eth0", 2, "192.0.2.1"), place("eth0", 2, "192.0.2.2"), place("eth0", 2, "fe80::1")];
        let numbers = |places: &[Place]| wanted(&uplinks, places).iter().map(|wanted| wanted.id.0).collect::<Vec<_>>();
        assert_eq!(numbers(&eth), [16]);
        let more = [&eth[..], &[place("eth0", 2, "2001:db8::1"), place("eth1", 3, "10.0.0.2")]].concat();
        assert_eq!(numbers(&more), [16, 17, 18]);
        assert_eq!(numbers(&[place("wlan0", 4, "192.0.2.9")]), [20], "numbers stay");
        assert_eq!(numbers(&[]), [0; 0]);
    }

    #[test]
    fn an_interface_that_was_made_anew_needs_a_new_socket() {
        let uplinks = [Uplink::Device("eth0".into())];
        let socket = |ifindex| wanted(&uplinks, &[place("eth0", ifindex, "192.0.2.1")]);
        assert_eq!(socket(2), socket(2));
        assert_ne!(socket(2), socket(7));
    }
}
