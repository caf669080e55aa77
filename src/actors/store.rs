//! Store: the only actor that touches the database.
//!
//! Writes that wait together become one transaction. A restart loses the answer to one batch; the coordinator's clients
//! ask again, and every write is a whole row, so doing it twice does no harm.

use std::sync::Arc;
use std::time::Instant;

use xtra::{Actor, Context, Handler, Mailbox};

use super::ext::{Caster, Service, StopReason};
use crate::io;
use crate::messages::coordinator::Stored;
use crate::messages::store::{Apply, Load};
use crate::proto::records::StoredState;

/// Writes put into one transaction at the most.
const BATCH_MAX: usize = 256;

/// The actor.
pub struct Store {
    store: Arc<dyn io::store::Store>,
    stored: Caster<Stored>,
    waiting: Vec<Apply>,
}

impl Store {
    pub fn new(store: Arc<dyn io::store::Store>, stored: Caster<Stored>) -> Self {
        Self { store, stored, waiting: Vec::new() }
    }

    async fn write(&mut self) {
        let batch: Vec<Apply> = self.waiting.drain(..).collect();
        let ops = batch.iter().flat_map(|apply| apply.ops.clone()).collect();
        if self.store.apply(ops).await.is_ok() {
            for apply in batch {
                self.stored.cast(Stored { id: apply.id, result: Ok(()) });
            }
            return;
        }
        // One of them is at fault: each for itself, so that the others are not lost with it.
        for Apply { id, ops } in batch {
            let result = self.store.apply(ops).await.map_err(|error| error.to_string());
            self.stored.cast(Stored { id, result });
        }
    }
}

impl Actor for Store {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Service for Store {
    const NAME: &'static str = "store";

    /// The one actor whose work is waiting for a disk: it takes what has come meanwhile and writes it together.
    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let address = mailbox.address();
        let mut next = mailbox.next();
        loop {
            let message = (&mut next).await;
            next = mailbox.next();
            if message.dispatch_to(self).await.is_break() {
                self.write().await;
                return StopReason::Requested;
            }
            if !self.waiting.is_empty() && (address.is_empty() || self.waiting.len() >= BATCH_MAX) {
                self.write().await;
            }
        }
    }

    fn settle(&mut self, _now: Instant) {}
}

impl Handler<Apply> for Store {
    type Return = ();

    async fn handle(&mut self, apply: Apply, _: &mut Context<Self>) {
        self.waiting.push(apply);
    }
}

impl Handler<Load> for Store {
    type Return = Result<StoredState, String>;

    async fn handle(&mut self, Load: Load, _: &mut Context<Self>) -> Self::Return {
        self.write().await;
        self.store.load().await.map_err(|error| error.to_string())
    }
}
