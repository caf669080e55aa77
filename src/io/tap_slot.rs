//! The TAP as the actors share it: one holder of the device, one who reads it, anybody who writes.
//!
//! The slot outlives the actor that reads the device, so a restarted reader finds it as it was; when the device is
//! deleted under us, the reader empties the slot and opens a new one.

use std::io::IoSlice;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::tap::{Offloads, Tap};
use crate::counters::DropReason;
use crate::wire::vnet::VnetHeader;

/// Parts of one frame that are written together at the most.
pub const PARTS_MAX: usize = 64;

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
    /// What the device takes; nothing if there is none, or none with virtio-net headers.
    pub fn offloads(&self) -> Offloads {
        self.0.0.load().as_deref().and_then(Tap::offloads).unwrap_or_default()
    }

    /// Writes one frame. A device that is down or gone drops it.
    pub fn write(&self, frame: &[u8]) -> Result<(), DropReason> {
        self.write_parts(&VnetHeader::PLAIN, std::iter::once(frame))
    }

    /// Writes one frame that lies in up to [`PARTS_MAX`] parts. Hot. The header says nothing to a device without
    /// virtio-net headers, so only a plain one may be given then.
    pub fn write_parts<'a>(
        &self,
        header: &VnetHeader,
        parts: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), DropReason> {
        let tap = self.0.0.load();
        let tap = tap.as_deref().ok_or(DropReason::TapWrite)?;
        let header = header.to_bytes();
        let mut slices = [IoSlice::new(&[]); PARTS_MAX + 1];
        let mut count = 0;
        if tap.offloads().is_some() {
            slices[0] = IoSlice::new(&header);
            count = 1;
        }
        for part in parts {
            *slices.get_mut(count).ok_or(DropReason::TooLong)? = IoSlice::new(part);
            count += 1;
        }
        tap.try_write(&slices[..count]).map(drop).map_err(|_| DropReason::TapWrite)
    }
}
