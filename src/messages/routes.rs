//! What the routes are told.

use crate::wire::control::Control;

/// A part of the network's table of routes came from the server.
#[derive(Debug)]
pub struct TableCame(pub Control);

/// Something may have changed: look at it. With `changed` it was the machine's network.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub changed: bool,
}
