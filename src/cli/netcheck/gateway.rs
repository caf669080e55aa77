//! Which protocols for port mappings the gateway speaks: asked, and nothing mapped.

use std::net::{IpAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use futures_lite::future;
use smol::Timer;

use crate::io::gateway::GatewaySocket;
use crate::proto::gateway::{Gateway, Output, PMP_PORT, Place};
use crate::wire::igd;

/// The protocols by name, the best first, and the gateway's own outside address where it tells that unasked.
pub async fn ask(place: Option<Place>, patience: Duration) -> (Vec<&'static str>, Option<IpAddr>) {
    let nothing = (Vec::new(), None);
    let Some(place) = place else { return nothing };
    let Ok(socket) = GatewaySocket::open(place.own) else { return nothing };
    let start = Instant::now();
    // Without a wish it is asked whether it is there, and for nothing else.
    let mut core = Gateway::new(&[], patience, &[0; 32], rand::random());
    core.set_place(Some(place), start);
    while start.elapsed() < patience {
        while let Some(output) = core.poll_output() {
            // Lost like any datagram; it is sent again.
            let _ = match output {
                Output::Ask(bytes) => socket.send(SocketAddrV4::new(place.gateway, PMP_PORT), &bytes),
                Output::Search(bytes) => {
                    let _ = socket.send(igd::SSDP, &bytes);
                    socket.send(SocketAddrV4::new(place.gateway, igd::SSDP.port()), &bytes)
                }
                Output::Fetch { .. } | Output::Changed => Ok(()),
            };
        }
        let end = core.poll_timeout().map_or(start + patience, |at| at.min(start + patience));
        let datagram = async { socket.receive().await.ok() };
        let late = async {
            Timer::at(end).await;
            None
        };
        match future::or(datagram, late).await {
            Some((from, bytes)) => core.handle_datagram(from, &bytes, Instant::now()),
            None => core.handle_timeout(Instant::now()),
        }
    }
    let names = core.answering().map(|protocol| protocol.name()).collect();
    (names, core.outside().filter(|ip| !ip.is_unspecified()).map(IpAddr::V4))
}
