//! The TAP as the actors share it: one holder of the device, one who reads it, anybody who writes.
//!
//! The slot outlives the actor that reads the device, so a restarted reader finds it as it was; when the device is
//! deleted under us, the reader empties the slot and opens a new one.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::tap::Tap;
use crate::counters::DropReason;

/// Holds the device between one reader and the next.
#[derive(Clone, Default)]
pub struct TapSlot(Arc<ArcSwapOption<Tap>>);

/// Writes frames to whatever device there is.
#[derive(Clone)]
pub struct TapTx(TapSlot);

impl TapSlot {
    /// The device, if there is one.
    pub fn get(&self) -> Option<Arc<Tap>> {
        self.0.load_full()
    }

    pub fn set(&self, tap: Option<Arc<Tap>>) {
        self.0.store(tap);
    }

    /// A writing end.
    pub fn tx(&self) -> TapTx {
        TapTx(self.clone())
    }
}

impl TapTx {
    /// Writes one frame. Hot. A device that is down or gone drops it.
    pub fn write(&self, frame: &[u8]) -> Result<(), DropReason> {
        let tap = self.0.0.load();
        match tap.as_deref() {
            Some(tap) => tap.try_write(frame).map(drop).map_err(|_| DropReason::TapWrite),
            None => Err(DropReason::TapWrite),
        }
    }
}
