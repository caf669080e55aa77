//! The wall clock, which may be wrong and may jump. What it may decide is in `ARCHITECTURE.md`, section 7.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the beginning of 1970; nothing before that.
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
