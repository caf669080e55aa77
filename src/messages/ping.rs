//! What every actor is told: a question that only a turn of its mailbox answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Say that you read your mailbox: write the number where the asker looks. A later number answers earlier ones too.
#[derive(Debug, Clone)]
pub struct Ping {
    pub number: u64,
    pub heard: Arc<AtomicU64>,
}

impl Ping {
    /// Answers.
    pub fn answer(self) {
        self.heard.fetch_max(self.number, Relaxed);
    }
}
