//! Store: the only actor that touches the database.
//!
//! Writes that wait together become one transaction. What waits, for the disk or for the coordinator, outlives a restart
//! in the [`Desk`]: nobody asks again for a write that was taken. Every write is a whole row, so doing one twice does no
//! harm.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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

/// What the actor has taken and not yet given back; as much as the coordinator has under way.
#[derive(Clone, Default)]
pub struct Desk(Arc<Mutex<Papers>>);

/// Both in order.
#[derive(Default)]
struct Papers {
    waiting: VecDeque<Apply>,
    answers: VecDeque<Stored>,
}

impl Desk {
    fn papers(&self) -> MutexGuard<'_, Papers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The actor.
pub struct Store {
    store: Arc<dyn io::store::Store>,
    stored: Caster<Stored>,
    desk: Desk,
}

impl Store {
    /// `desk` is the one its predecessor had.
    pub fn new(store: Arc<dyn io::store::Store>, stored: Caster<Stored>, desk: Desk) -> Self {
        Self { store, stored, desk }
    }

    /// Writes what waits. It leaves the desk when it is written, and not before.
    async fn write(&mut self) {
        loop {
            let batch: Vec<Apply> = self.desk.papers().waiting.iter().take(BATCH_MAX).cloned().collect();
            if batch.is_empty() {
                break;
            }
            let ops = batch.iter().flat_map(|apply| apply.ops.clone()).collect();
            if self.store.apply(ops).await.is_ok() {
                batch.iter().for_each(|apply| self.done(apply.id, Ok(())));
                continue;
            }
            // One of them is at fault: each for itself, so that the others are not lost with it.
            for Apply { id, ops } in batch {
                let result = self.store.apply(ops).await.map_err(|error| error.to_string());
                self.done(id, result);
            }
        }
        self.answer();
    }

    /// The first that waits is written, or cannot be.
    fn done(&self, id: u64, result: Result<(), String>) {
        let mut papers = self.desk.papers();
        papers.waiting.pop_front();
        papers.answers.push_back(Stored { id, result });
    }

    /// Gives the coordinator as many answers as it has room for.
    fn answer(&self) {
        let mut papers = self.desk.papers();
        while let Some(answer) = papers.answers.front() {
            if !self.stored.cast(answer.clone()) {
                return;
            }
            papers.answers.pop_front();
        }
    }

    fn has_answers(&self) -> bool {
        !self.desk.papers().answers.is_empty()
    }

    fn waiting(&self) -> usize {
        self.desk.papers().waiting.len()
    }
}

impl Actor for Store {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(Store);

impl Service for Store {
    const NAME: &'static str = "store";

    /// It waits for the disk, and a busy or failing one makes others wait for minutes; being killed would not help it.
    const SILENT_MAX: Duration = Duration::from_secs(120);

    /// The one actor whose work is waiting for a disk: it takes what has come meanwhile and writes it together.
    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let address = mailbox.address();
        let mut next = mailbox.next();
        // What a predecessor left.
        self.write().await;
        loop {
            let again = async {
                if !self.has_answers() {
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
            if self.waiting() > 0 && (address.is_empty() || self.waiting() >= BATCH_MAX) {
                self.write().await;
            }
        }
    }

    fn settle(&mut self, _now: Instant) {}
}

impl Handler<Apply> for Store {
    type Return = ();

    async fn handle(&mut self, apply: Apply, _: &mut Context<Self>) {
        self.desk.papers().waiting.push_back(apply);
    }
}

impl Handler<Load> for Store {
    type Return = Result<StoredState, String>;

    async fn handle(&mut self, Load: Load, _: &mut Context<Self>) -> Self::Return {
        self.write().await;
        // Who loads begins anew and numbers its writes anew.
        self.desk.papers().answers.clear();
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
            let mut store =
                Store::new(Arc::new(database), Caster::new(clerk.clone(), Arc::<Counters>::default()), Desk::default());
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

    #[test]
    fn what_a_predecessor_took_is_written_and_answered_by_its_successor() {
        let (clerk, answers) = Mailbox::<Clerk>::bounded(8);
        let (address, mailbox) = Mailbox::<Store>::bounded(8);
        let (memory, desk) = (Arc::new(io::store::MemoryStore::new()), Desk::default());
        let new = || Store::new(memory.clone(), Caster::new(clerk.clone(), Arc::<Counters>::default()), desk.clone());
        let answered = smol::block_on(async {
            // The first takes two writes and is gone before it writes them.
            let mut first = new();
            for id in 0..2 {
                assert!(super::super::ext::cast(&address, Apply { id, ops: Vec::new() }));
                let _ = mailbox.next().await.dispatch_to(&mut first).await;
            }
            drop(first);
            let mut second = new();
            let mut reader = Clerk::default();
            let read = async {
                while reader.0.len() < 2 {
                    let _ = answers.next().await.dispatch_to(&mut reader).await;
                }
            };
            let stopped = async {
                second.run(&mailbox).await;
            };
            future::or(read, stopped).await;
            reader.0
        });
        assert_eq!(answered, [0, 1]);
    }
}
