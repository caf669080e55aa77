//! Bytes to values and back.
pub mod cert;
pub mod control;
pub mod ethernet;
pub mod handshake;
pub mod header;
pub mod join;
pub mod relay;
