//! `eps-actor`: a layer-2 mesh VPN written as a system of actors.
pub mod actors;
pub mod cli;
pub mod config;
pub mod counters;
pub mod ids;
pub mod io;
pub mod messages;
pub mod proto;
pub mod report;
pub mod scaled;
pub mod view;
pub mod wire;
