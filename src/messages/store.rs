//! What the store is told.

use crate::proto::records::StoreOp;

/// Make these durable together, and say so to the coordinator with the same number.
#[derive(Debug, Clone)]
pub struct Apply {
    pub id: u64,
    pub ops: Vec<StoreOp>,
}

/// Read everything.
#[derive(Debug, Clone, Copy)]
pub struct Load;
