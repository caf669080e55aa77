//! Runs a node of either role until it is stopped.

use crate::config::{ClientConfig, ServerConfig};

/// Runs a server.
pub fn run_server(_config: ServerConfig) -> anyhow::Result<()> {
    anyhow::bail!("the server is not built yet")
}

/// Runs a client.
pub fn run_client(_config: ClientConfig) -> anyhow::Result<()> {
    anyhow::bail!("the client is not built yet")
}
