//! Thin actors: each owns a core, a mailbox and perhaps a reading end, and decides nothing.

pub mod client;
pub mod control;
pub mod coordinator;
pub mod datapath;
pub mod ext;
pub mod mac_learning;
pub mod metrics;
pub mod names;
pub mod peer_table;
pub mod relay;
pub mod server_link;
pub mod service_manager;
pub mod stats;
pub mod store;
pub mod supervisor;
pub mod system;
pub mod tap_reader;
pub mod tcp_path;
pub mod tunnel;
pub mod tunnel_paths;
pub mod tunnel_system;
pub mod udp_path;
pub mod upnp;
