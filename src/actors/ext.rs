//! What we add to xtra: services with timers, casts that keep their order, calls with a deadline.
//!
//! xtra's mailbox is a heap over priorities that is not stable, so messages of equal priority come out in any
//! order. Every cast and call therefore takes a number lower than all before it: the heap becomes a queue, and
//! xtra's priorities are used up by that. Nothing here broadcasts, because broadcasts have a heap of their own.
//! Frames never pass through here; a message costs hundreds of times a function call.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use smol::{Timer, future};
use xtra::message_channel::MessageChannel;
use xtra::refcount::RefCounter;
use xtra::{Actor, Address, Handler, Mailbox};

use crate::counters::{Counters, DropReason};
use crate::messages::ping::Ping;

/// An actor that a [`Supervisor`](super::supervisor::Supervisor) can build, run and restart.
///
/// Most need only `NAME`, the core's `next_timeout` and `on_timeout`, and a `settle` that drains the core. The
/// edge actors, which read a device or a socket beside their mailbox, bring their own [`run`](Service::run).
pub trait Service: Actor<Stop = StopReason> + Handler<Ping, Return = ()> {
    /// The name in logs, in the status and in errors: lower case with underscores.
    const NAME: &'static str;

    /// How long it may leave its mailbox alone without counting as hung. No handler computes or waits for long; an
    /// actor that waits for something slower than us says more here.
    const SILENT_MAX: Duration = Duration::from_secs(3);

    /// When the core wants [`on_timeout`](Service::on_timeout) next, if ever.
    fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// The time of [`next_timeout`](Service::next_timeout) has come.
    fn on_timeout(&mut self, _now: Instant) {}

    /// Called after every message and every timeout: drain the core's outputs, publish what changed.
    fn settle(&mut self, _now: Instant) {}

    /// Called once before `stopped`, which is not told why: an actor that says goodbye only when it was asked to
    /// stop remembers the reason here.
    fn stopping(&mut self, _reason: &StopReason) {}

    /// Works until there is a reason to stop. The default handles messages and timeouts, in turn when both are due.
    ///
    /// One's own loop races the mailbox against a reading end and must **keep the receive future from turn to turn**:
    ///
    /// ```ignore
    /// let mut next = mailbox.next();
    /// loop {
    ///     let wake = future::or(
    ///         async { Wake::Control((&mut next).await) },
    ///         async { self.tap.read_batch().await.map_or_else(Wake::Closed, Wake::Frames) },
    ///     )
    ///     .await;
    ///     match wake {
    ///         Wake::Control(message) => {
    ///             next = mailbox.next();
    ///             if message.dispatch_to(self).await.is_break() { return StopReason::Requested }
    ///         }
    ///         // ...
    ///     }
    /// }
    /// ```
    ///
    /// A receive future that is dropped while it waits leaves its handle in the mailbox until the next message
    /// comes, so a new one per batch of frames is a leak; and a message that arrives during the drop is lost.
    fn run(&mut self, mailbox: &Mailbox<Self>) -> impl Future<Output = StopReason> + Send {
        async move {
            let mut next = mailbox.next();
            for turn in 1_u32.. {
                let message = match self.next_timeout() {
                    None => Some((&mut next).await),
                    Some(at) => future::or(async { Some((&mut next).await) }, async { sleep_until(at).await }).await,
                };
                let mut flow = std::ops::ControlFlow::Continue(());
                if let Some(message) = message {
                    flow = message.dispatch_to(self).await;
                    next = mailbox.next();
                }
                let now = Instant::now();
                if self.next_timeout().is_some_and(|at| at <= now) {
                    self.on_timeout(now);
                }
                self.settle(now);
                if flow.is_break() {
                    break;
                }
                // A full mailbox never waits, and neither does a core that asks for a time gone by.
                if turn.is_multiple_of(TURNS_BEFORE_A_YIELD) {
                    future::yield_now().await;
                }
            }
            StopReason::Requested
        }
    }
}

/// Makes an actor answer the supervisor's pings, by its mailbox like anything else it is told.
macro_rules! answers_pings {
    ($actor:ty) => {
        impl xtra::Handler<$crate::messages::ping::Ping> for $actor {
            type Return = ();

            async fn handle(&mut self, ping: $crate::messages::ping::Ping, _: &mut xtra::Context<Self>) {
                ping.answer();
            }
        }
    };
}
pub(crate) use answers_pings;

/// Handles messages for an actor whose work goes on beside them; one of those that nobody but the supervisor writes to.
pub async fn only_messages<A: Service>(actor: &mut A, mailbox: &Mailbox<A>) -> StopReason {
    while mailbox.next().await.dispatch_to(actor).await.is_continue() {}
    StopReason::Requested
}

/// Why an actor stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// It was asked to, or nobody holds its address any more.
    Requested,
    /// What it reads from is gone: the TAP was removed, the socket's interface went away.
    DeviceGone(String),
    /// It could not begin or go on.
    Failed(String),
    /// A bug.
    Panicked(String),
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested => f.write_str("stopped on request"),
            Self::DeviceGone(what) => write!(f, "device gone: {what}"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::Panicked(text) => write!(f, "panicked: {text}"),
        }
    }
}

/// Sends a message without waiting; false if the mailbox is full or nobody reads it.
///
/// What is refused is dropped (in a race of nanoseconds with a mailbox that just made room it may arrive all the
/// same). The casts of one task to one mailbox are handled in their order.
pub fn cast<A, M, Rc>(address: &Address<A, Rc>, message: M) -> bool
where
    A: Handler<M>,
    M: Send + 'static,
    Rc: RefCounter,
{
    // Asked beforehand because a refused send leaves a handle behind until the mailbox is next read.
    if address.capacity().is_some_and(|capacity| address.len() >= capacity) {
        return false;
    }
    matches!(address.send(message).priority(next_priority()).detach().now_or_never(), Some(Ok(_)))
}

/// Sends a message and waits for its answer, `deadline` at the most.
///
/// Calls take their place among casts. An actor may call only actors started before it; upward it casts.
pub async fn call<A, M, Rc>(
    address: &Address<A, Rc>,
    message: M,
    deadline: Duration,
) -> Result<<A as Handler<M>>::Return, CallError>
where
    A: Service + Handler<M>,
    M: Send + 'static,
    Rc: RefCounter,
{
    let actor = A::NAME;
    let answer = async {
        address.send(message).priority(next_priority()).await.map_err(|error| match error {
            xtra::Error::Interrupted => CallError::Restarting { actor },
            xtra::Error::Disconnected => CallError::Gone { actor },
        })
    };
    let too_late = async {
        Timer::after(deadline).await;
        Err(CallError::TimedOut { actor })
    };
    future::or(answer, too_late).await
}

/// No answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The actor is busy, or waits out a back-off.
    #[error("{actor} did not answer in time")]
    TimedOut { actor: &'static str },
    /// The actor stopped while it handled this call; the next call finds its successor.
    #[error("{actor} is restarting")]
    Restarting { actor: &'static str },
    /// The actor was stopped for good.
    #[error("{actor} has stopped")]
    Gone { actor: &'static str },
}

/// A place to send messages of one kind; which actor reads them the holder does not know.
///
/// Refused casts are counted: the message will be sent again, or its content read later.
pub struct Caster<M> {
    channel: MessageChannel<M, ()>,
    counters: Arc<Counters>,
}

impl<M: Send + 'static> Caster<M> {
    /// Makes a sink into the mailbox of an actor that handles `M`.
    pub fn new<A: Handler<M, Return = ()>>(address: Address<A>, counters: Arc<Counters>) -> Self {
        Self { channel: MessageChannel::new(address), counters }
    }

    /// Sends without waiting, as [`cast`] does; a refusal is counted as `MailboxFull`, or as `NoActor` when nobody
    /// will ever read it.
    pub fn cast(&self, message: M) -> bool {
        let full = self.channel.capacity().is_some_and(|capacity| self.channel.len() >= capacity);
        if full && self.channel.is_connected() {
            self.counters.dropped(DropReason::MailboxFull);
            return false;
        }
        match self.channel.send(message).priority(next_priority()).detach().now_or_never() {
            Some(Ok(_)) => return true,
            Some(Err(_)) => self.counters.dropped(DropReason::NoActor),
            None => self.counters.dropped(DropReason::MailboxFull),
        }
        false
    }
}

impl<M> Clone for Caster<M> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), counters: Arc::clone(&self.counters) }
    }
}

impl<M> fmt::Debug for Caster<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.channel.fmt(f)
    }
}

async fn sleep_until<T>(at: Instant) -> Option<T> {
    Timer::at(at).await;
    None
}

/// A priority lower than every one given out before.
///
/// It wraps after 4 thousand million messages (fifty days at a thousand a second). The messages queued at that
/// moment, at most one mailbox of them each, then wait until their mailbox has been empty once: messages carry state
/// and not change, so the later ones lose nothing by it.
fn next_priority() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(u32::MAX);
    NEXT.fetch_sub(1, Relaxed)
}

/// An actor that never has to wait lets the other tasks of its thread run this often.
const TURNS_BEFORE_A_YIELD: u32 = 64;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use xtra::Context;

    use super::*;

    /// Notes the numbers it is sent and the times it is woken.
    #[derive(Default)]
    struct Clerk {
        numbers: Vec<u32>,
        settled: usize,
        due: Option<Instant>,
        timeouts: usize,
    }

    impl Actor for Clerk {
        type Stop = StopReason;

        async fn stopped(self) -> StopReason {
            StopReason::Requested
        }
    }

    impl Service for Clerk {
        const NAME: &'static str = "clerk";

        fn next_timeout(&self) -> Option<Instant> {
            self.due
        }

        fn on_timeout(&mut self, _: Instant) {
            self.timeouts += 1;
            self.due = (self.timeouts < 3).then(|| Instant::now() + Duration::from_millis(5));
        }

        fn settle(&mut self, _: Instant) {
            self.settled += 1;
        }
    }

    struct Note(u32);
    struct Read;
    struct WakeIn(Duration);
    struct Sleep(Duration);

    impl Handler<Note> for Clerk {
        type Return = ();
        async fn handle(&mut self, Note(number): Note, _: &mut Context<Self>) {
            self.numbers.push(number);
        }
    }

    impl Handler<Read> for Clerk {
        type Return = (Vec<u32>, usize, usize);
        async fn handle(&mut self, _: Read, _: &mut Context<Self>) -> Self::Return {
            (self.numbers.clone(), self.settled, self.timeouts)
        }
    }

    impl Handler<WakeIn> for Clerk {
        type Return = ();
        async fn handle(&mut self, WakeIn(after): WakeIn, _: &mut Context<Self>) {
            self.due = Some(Instant::now() + after);
        }
    }

    impl Handler<Sleep> for Clerk {
        type Return = ();
        async fn handle(&mut self, Sleep(time): Sleep, _: &mut Context<Self>) {
            Timer::after(time).await;
        }
    }

    answers_pings!(Clerk);

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn casts_keep_their_order_through_a_mailbox_of_64() {
        let (address, mailbox) = Mailbox::<Clerk>::bounded(64);
        let mut clerk = Clerk::default();
        let asking = async {
            for burst in 0..20 {
                for number in 0..50 {
                    assert!(cast(&address, Note(burst * 50 + number)), "a burst of 50 fits into 64");
                }
                // Answered behind the burst: calls take their place among casts.
                let (numbers, ..) = call(&address, Read, SOON).await.unwrap();
                assert_eq!(numbers.len() as u32, (burst + 1) * 50);
            }
            call(&address, Read, SOON).await.unwrap().0
        };
        let numbers = smol::block_on(future::or(asking, async {
            clerk.run(&mailbox).await;
            unreachable!("nobody asked the clerk to stop")
        }));
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    }

    #[test]
    fn casts_keep_their_order_while_another_thread_reads_them() {
        let (address, mailbox) = Mailbox::<Clerk>::bounded(64);
        let reader = std::thread::spawn(move || {
            let mut clerk = Clerk::default();
            smol::block_on(clerk.run(&mailbox));
            clerk.numbers
        });
        let mut sent = Vec::new();
        let end = Instant::now() + SOON;
        for number in 0..1000 {
            while !cast(&address, Note(number)) {
                assert!(Instant::now() < end, "the mailbox stays full");
                std::thread::yield_now();
            }
            sent.push(number);
        }
        drop(address);
        assert_eq!(reader.join().unwrap(), sent);
    }

    #[test]
    fn a_full_mailbox_refuses_casts_and_counts_them() {
        let counters = Arc::new(Counters::default());
        let (address, mailbox) = Mailbox::<Clerk>::bounded(4);
        let caster = Caster::new(address.clone(), Arc::clone(&counters));
        assert_eq!((0..10).filter(|number| caster.clone().cast(Note(*number))).count(), 4);
        assert_eq!(counters.drops(DropReason::MailboxFull), 6);
        assert!(!cast(&address, Note(99)));
        drop(mailbox);
        assert!(!caster.cast(Note(1)));
        assert_eq!(counters.drops(DropReason::NoActor), 1);
    }

    #[test]
    fn an_actor_is_woken_at_its_timeouts_and_settles_after_each() {
        let (address, mailbox) = Mailbox::<Clerk>::bounded(8);
        let asking = async {
            call(&address, WakeIn(Duration::from_millis(5)), SOON).await.unwrap();
            let end = Instant::now() + SOON;
            loop {
                let (_, settled, timeouts) = call(&address, Read, SOON).await.unwrap();
                if timeouts == 3 {
                    assert!(settled >= 4, "{settled}");
                    return;
                }
                assert!(Instant::now() < end, "only {timeouts} timeouts");
                Timer::after(Duration::from_millis(1)).await;
            }
        };
        let mut clerk = Clerk::default();
        smol::block_on(future::or(asking, async {
            clerk.run(&mailbox).await;
        }));
    }

    #[test]
    fn a_timeout_comes_though_messages_never_cease() {
        static HANDLED: AtomicUsize = AtomicUsize::new(0);
        struct Again;
        impl Handler<Again> for Clerk {
            type Return = ();
            async fn handle(&mut self, _: Again, context: &mut Context<Self>) {
                HANDLED.fetch_add(1, SeqCst);
                if self.timeouts == 3 {
                    context.stop_self();
                }
                cast(&context.mailbox().address(), Again);
            }
        }
        let (address, mailbox) = Mailbox::<Clerk>::bounded(8);
        let mut clerk = Clerk { due: Some(Instant::now()), ..Clerk::default() };
        cast(&address, Again);
        assert_eq!(smol::block_on(clerk.run(&mailbox)), StopReason::Requested);
        assert!(HANDLED.load(SeqCst) > 3);
    }

    #[test]
    fn a_call_to_a_busy_actor_ends_at_its_deadline() {
        let (address, mailbox) = Mailbox::<Clerk>::bounded(8);
        let mut clerk = Clerk::default();
        smol::block_on(future::or(
            async {
                assert!(cast(&address, Sleep(Duration::from_secs(60))));
                let begun = Instant::now();
                let answer = call(&address, Read, Duration::from_millis(30)).await;
                assert_eq!(answer, Err(CallError::TimedOut { actor: "clerk" }));
                assert!(begun.elapsed() < SOON);
            },
            async {
                clerk.run(&mailbox).await;
            },
        ));
    }

    #[test]
    fn a_call_to_a_stopped_actor_says_so() {
        let (address, mailbox) = Mailbox::<Clerk>::bounded(8);
        drop(mailbox);
        assert_eq!(smol::block_on(call(&address, Read, SOON)), Err(CallError::Gone { actor: "clerk" }));
    }
}
