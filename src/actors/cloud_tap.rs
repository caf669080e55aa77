//! CloudTap: the reading end of an ethcloud's device.
//!
//! The device is made here and is nobody's business else: it stays as the kernel makes it, down and without an address. A
//! restart loses the frames of one burst at the most: a slot holds the device.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;
use xtra::{Actor, Mailbox};

use super::cloud_path::{CloudEgress, CloudEgressScope};
use super::ext::{Service, StopReason};
use crate::counters::{Counters, DropReason, add};
use crate::io::poll::{self, Watch};
use crate::io::tap::{Tap, TapConfig};
use crate::io::tap_slot::TapSlot;
use crate::proto::segment::{self, Checksums, Segmenter};
use crate::wire::vnet::{Gso, VnetHeader};

/// Reads in one burst.
const BURST_READS: usize = 64;
/// Bytes read in one burst; the sockets of this thread want their turn.
const BURST_BYTES: usize = 64 * 1024;
/// The most a TAP delivers in one read: a super-frame of 64 KiB with its headers.
const READ_MAX: usize = 65_536 + 18 + VnetHeader::LEN;

/// The actor.
pub struct CloudTap {
    slot: TapSlot,
    device: TapConfig,
    egress: CloudEgress,
    counters: Arc<Counters>,
    buffer: Box<[u8]>,
    /// One frame of a super-frame.
    frame: Vec<u8>,
}

impl CloudTap {
    /// `device` is made anew when it was deleted.
    pub fn new(slot: TapSlot, device: TapConfig, egress: CloudEgress, counters: Arc<Counters>) -> Self {
        Self { slot, device, egress, counters, buffer: vec![0; READ_MAX].into(), frame: Vec::new() }
    }

    fn tap(&self) -> Result<Arc<Tap>, StopReason> {
        if let Some(tap) = self.slot.get() {
            return Ok(tap);
        }
        let tap = Arc::new(Tap::open(&self.device).map_err(|error| StopReason::Failed(error.to_string()))?);
        log::info!("the device {} was made anew", tap.name());
        self.slot.set(Some(tap.clone()));
        Ok(tap)
    }

    /// Reads until there is nothing left, or enough.
    fn read_burst(&mut self, tap: &Tap) -> io::Result<()> {
        let mut length = tap.try_read(&mut self.buffer)?;
        let mut scope = self.egress.scope(Instant::now());
        let (mut reads, mut frames, mut bytes) = (0, 0, 0);
        let result = loop {
            (reads, bytes) = (reads + 1, bytes + length);
            frames += self.load(length, tap.offloads().is_some(), &mut scope);
            if reads == BURST_READS || bytes >= BURST_BYTES {
                break Ok(());
            }
            match tap.try_read(&mut self.buffer) {
                Ok(read) => length = read,
                Err(error) => break Err(error),
            }
        };
        self.egress.finish(&scope);
        add(&self.counters.tap_rx_calls, reads as u64);
        add(&self.counters.tap_rx_frames, frames);
        add(&self.counters.tap_rx_bytes, bytes as u64);
        result
    }

    /// What one read brought, frame by frame and with whole checksums: the other end may be any program. How many frames
    /// it was.
    fn load(&mut self, length: usize, offloaded: bool, scope: &mut CloudEgressScope) -> u64 {
        let Self { buffer, frame, egress, counters, .. } = self;
        let read = &mut buffer[..length];
        let mut send = |frame: &[u8]| {
            if let Err(reason) = egress.frame(frame, scope) {
                counters.dropped(reason);
            }
        };
        if !offloaded {
            send(read);
            return 1;
        }
        let done = VnetHeader::parse(read).map(|(header, _)| header).and_then(|header| {
            let bytes = &mut read[VnetHeader::LEN..];
            if header.gso == Gso::None {
                segment::complete(&header, bytes)?;
                send(bytes);
                return Ok(1);
            }
            let segments = Segmenter::new(&header, bytes)?;
            for number in 0..segments.count() {
                frame.resize(segments.segment_len(number), 0);
                segments.write(number, Checksums::Complete, frame);
                send(frame);
            }
            Ok(segments.count() as u64)
        });
        done.unwrap_or_else(|reason| {
            counters.dropped(reason);
            1
        })
    }
}

impl Actor for CloudTap {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

enum Wake<M> {
    Control(M),
    Readable,
}

super::ext::answers_pings!(CloudTap);

impl Service for CloudTap {
    const NAME: &'static str = "cloud_tap";

    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let mut next = mailbox.next();
        let tap = match self.tap() {
            Ok(tap) => tap,
            Err(reason) => return reason,
        };
        let watch = match Watch::new(tap.clone()) {
            Ok(watch) => watch,
            Err(error) => return StopReason::Failed(format!("watching {}: {error}", tap.name())),
        };
        loop {
            let readable = async {
                watch.readable().await;
                Wake::Readable
            };
            // Control first, so that a busy device cannot starve it.
            match future::or(async { Wake::Control((&mut next).await) }, readable).await {
                Wake::Control(message) => {
                    next = mailbox.next();
                    if message.dispatch_to(self).await.is_break() {
                        return StopReason::Requested;
                    }
                }
                Wake::Readable => match self.read_burst(&tap) {
                    Ok(()) => poll::turn().await,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => watch.clear(),
                    Err(error) if Tap::is_gone(&error) => {
                        self.slot.set(None);
                        return StopReason::DeviceGone(format!("{}: {error}", tap.name()));
                    }
                    Err(_) => {
                        self.counters.dropped(DropReason::TapWrite);
                        poll::turn().await;
                    }
                },
            }
        }
    }
}
