//! Sans-IO state machines.
pub mod backoff;
pub mod cookie;
pub mod coordinator;
pub mod crypto;
pub mod fdb;
pub mod forward;
pub mod guard;
pub mod lease;
pub mod link;
pub mod map;
pub mod noise;
pub mod path;
pub mod peers;
pub mod records;
pub mod replay;
pub mod server_link;
pub mod session;
