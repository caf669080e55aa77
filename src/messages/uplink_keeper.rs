//! What the keeper of uplinks is told.

use crate::proto::uplink_choice::Place;

/// The machine has these addresses, all of them.
#[derive(Debug, Clone)]
pub struct AddressesSeen(pub Vec<Place>);
