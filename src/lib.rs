//! `eps-actor`: a layer-2 mesh VPN written as a system of actors.
//!
//! A server coordinates a network: it admits members, leases addresses, introduces clients to each other and relays for
//! those who cannot reach each other. A client brings up a TAP and exchanges Ethernet frames with every other client,
//! sealed end to end, over the best path there is.
//!
//! # Words
//!
//! * **node, peer, member**: this instance; another client we know; a key the server has admitted.
//! * **endpoint, candidate, path, route**: an underlay address; one nobody has answered from; one that is probed; how a
//!   datagram goes (straight, or by a relay channel).
//! * **handshake, session, rekey**: as in Noise and WireGuard; *initiator* and *responder*, never client and server.
//! * **frame, datagram, message**: an Ethernet frame; a UDP payload; our decoded unit, or what an actor receives.
//! * **station, learn, move, age, flood**: a MAC's host, and what a switch does with it.
//! * **seal, open**: authenticated encryption and its inverse.
//! * **view, handle, cast, call**: an immutable snapshot; a cheap clone that can act; a message without and with reply.
//!
//! # Reading order
//!
//! [`ids`], [`counters`], [`scaled`], [`wire`], [`proto`] (the cores: every decision, no clock and no socket), [`view`],
//! [`messages`], [`actors`] (begin with [`actors::system`] and [`actors::datapath`]), [`io`] (every system call),
//! [`logging`], [`report`], [`config`], [`cli`]. `ARCHITECTURE.md` is the map.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests begin somewhere in time"))]

#[allow(
    clippy::disallowed_methods,
    reason = "actors are where time comes from: they read the clock once and pass it on"
)]
pub mod actors;
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a program for people reads the clock and prints")]
pub mod cli;
pub mod config;
pub mod counters;
pub mod ids;
#[allow(unsafe_code, clippy::disallowed_methods, reason = "the one room that may speak to the kernel")]
pub mod io;
pub mod logging;
pub mod messages;
pub mod proto;
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "tells how long things take, and says how to join")]
pub mod report;
pub mod scaled;
pub mod view;
pub mod wire;
