//! What the keeper of TCP connections is told.

use std::net::SocketAddr;

/// Have connections to these servers, and no others.
#[derive(Debug, Clone)]
pub struct Connect(pub Vec<SocketAddr>);

/// The machine's addresses or routes have changed: look whether the connections are still good.
#[derive(Debug, Clone, Copy)]
pub struct Redial;
