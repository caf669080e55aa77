//! What statistics are told.

/// Take a snapshot now. Answered with the scorecard.
#[derive(Debug, Clone, Copy)]
pub struct TakeSnapshot;
