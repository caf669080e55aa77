//! The real program in network namespaces: attacks, Ethernet, NAT, leases and bad input.
//!
//! Every test makes its own namespaces and directories, prints the figure of its criterion, and leaves nothing behind
//! however it ends. They run beside each other; those that measure times or rates take turns (`lab::alone`).

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "attacks have a pace, and figures are printed")]

mod bad_input;
mod cloud;
mod cloud_bridge;
mod commands;
#[path = "../shared/crowd.rs"]
mod crowd;
mod delay;
mod ethernet;
mod flood;
mod flow;
mod join;
mod lab;
mod leases;
mod members;
mod memory;
mod mtu;
mod names;
mod nat;
mod notify;
mod offload;
mod options;
mod outputs;
#[path = "../shared/paced.rs"]
mod paced;
mod package;
mod paths;
#[path = "../shared/programs.rs"]
mod programs;
mod punching;
mod readme;
mod routes;
mod secrecy;
mod setup;
mod tunnel;
#[path = "../shared/turn.rs"]
mod turn;
mod upnp;
mod words;
