//! Store: the only actor that touches the database.
//!
//! Writes that wait together become one transaction. A restart loses the answer to one batch; the coordinator's clients
//! ask again, and every write is a whole row, so doing it twice does no harm.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_lite::future;
use smol::Timer;
use xtra::{Actor, Context, Handler, Mailbox};

use super::ext::{Caster, Service, StopReason};
use crate::io;
use crate::messages::coordinator::Stored;
use crate::messages::store::{Apply, Load};
use crate::proto::records::StoredState;

/// Writes put into one transaction at the most.
const BATCH_MAX: usize = 256;

/// Answers that the coordinator had no room for are offered again after this long.
const ANSWER_RETRY: Duration = Duration::from_millis(10);

/// The actor.
pub struct Store {
    store: Arc<dyn io::store::Store>,
    stored: Caster<Stored>,
    waiting: Vec<Apply>,
    /// In order. Nobody asks again for what was written, so an answer must not be lost to a full mailbox. As many as
    /// the coordinator has writes under way.
    answers: VecDeque<Stored>,
}

impl Store {
    pub fn new(store: Arc<dyn io::store::Store>, stored: Caster<Stored>) -> Self {
        Self { store, stored, waiting: Vec::new(), answers: VecDeque::new() }
    }

    async fn write(&mut self) {
        let batch: Vec<Apply> = self.waiting.drain(..).collect();
        let ops = batch.iter().flat_map(|apply| apply.ops.clone()).collect();
        if self.store.apply(ops).await.is_ok() {
            self.answers.extend(batch.into_iter().map(|apply| Stored { id: apply.id, result: Ok(()) }));
            self.answer();
            return;
        }
        // One of them is at fault: each for itself, so that the others are not lost with it.
        for Apply { id, ops } in batch {
            let result = self.store.apply(ops).await.map_err(|error| error.to_string());
            self.answers.push_back(Stored { id, result });
        }
        self.answer();
    }

    /// Gives the coordinator as many answers as it has room for.
    fn answer(&mut self) {
        while let Some(answer) = self.answers.front() {
            if !self.stored.cast(answer.clone()) {
                return;
            }
            self.answers.pop_front();
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
            let again = async {
                if self.answers.is_empty() {
                    future::pending::<()>().await;
                }
                Timer::after(ANSWER_RETRY).await;
                None
            };
            let Some(message) = future::or(async { Some((&mut next).await) }, again).await else {
                self.answer();
                continue;
            };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;

    /// Notes which writes it was told of.
    #[derive(Default)]
    struct Clerk(Vec<u64>);

    impl Actor for Clerk {
        type Stop = ();

        async fn stopped(self) {}
    }

    impl Handler<Stored> for Clerk {
        type Return = ();

        async fn handle(&mut self, Stored { id, result }: Stored, _: &mut Context<Self>) {
            assert_eq!(result, Ok(()));
            self.0.push(id);
        }
    }

    #[test]
    fn every_write_is_answered_though_the_mailbox_of_who_asked_is_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let answered = smol::block_on(async {
            let database = io::store::SqliteStore::open(&directory.path().join("db")).await.expect("a store");
            let (clerk, answers) = Mailbox::<Clerk>::bounded(1);
            let (address, mailbox) = Mailbox::<Store>::bounded(64);
            let mut store = Store::new(Arc::new(database), Caster::new(clerk.clone(), Arc::<Counters>::default()));
            for id in 0..10 {
                assert!(super::super::ext::cast(&address, Apply { id, ops: Vec::new() }));
            }
            let mut reader = Clerk::default();
            let read = async {
                // It is busy until all is written and its mailbox is full.
                while !address.is_empty() || clerk.is_empty() {
                    future::yield_now().await;
                }
                while reader.0.len() < 10 {
                    let _ = answers.next().await.dispatch_to(&mut reader).await;
                }
            };
            let stopped = async {
                store.run(&mailbox).await;
            };
            let late = async {
                Timer::after(Duration::from_secs(10)).await;
            };
            future::or(read, future::or(stopped, late)).await;
            reader.0
        });
        assert_eq!(answered, (0..10).collect::<Vec<_>>());
    }
}
