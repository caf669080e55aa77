//! The system's public vocabulary: plain structs, one file for each actor that receives them.
//!
//! Commands are imperative, notices past tense. Each carries state and not change, so that it may be lost, repeated or
//! late. Nothing here is proportional to frames.

pub mod cloud;
pub mod coordinator;
pub mod mac_learning;
pub mod neighbours;
pub mod peer_table;
pub mod ping;
pub mod relay;
pub mod routes;
pub mod server_link;
pub mod store;
pub mod tap_reader;
pub mod tcp_dial;
pub mod tunnel;
pub mod uplink_keeper;
pub mod upnp;
