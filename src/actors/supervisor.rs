//! The supervisor builds actors, runs them, catches what they throw and builds them again.
//!
//! It owns the mailboxes, so addresses and queued messages outlive a panic: only the message in hand is lost, and
//! whoever called with it is told `Restarting`. The first restarts come at once; an actor that keeps falling is
//! restarted at growing intervals, and only here does anything wait before it tries again. Every actor has a row in
//! the registry, which `status` prints. Tasks are never detached: they end with the last handle to the supervisor.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use rand::Rng;
use serde::{Deserialize, Serialize};
use smol::channel::{self, Receiver, Sender};
use smol::{Executor, Task, Timer, future};
use xtra::Mailbox;

use super::ext::{Service, StopReason, cast};
use crate::io::clock::unix_time;
use crate::messages::ping::Ping;
use crate::proto::backoff::Backoff;

/// Runs the actors of a node. Clones are handles to the same supervisor.
#[derive(Clone, Default)]
pub struct Supervisor(Arc<Shared>);

#[derive(Default)]
struct Shared {
    children: Mutex<Vec<Child>>,
}

/// The supervisor's side of one actor.
struct Child {
    record: Arc<Record>,
    mailbox: Box<dyn Fn() -> MailboxStatus + Send + Sync>,
    /// Closing it asks the actor to stop.
    stop: Sender<()>,
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    fault: Sender<Fault>,
    task: Option<Task<()>>,
    pulse: Pulse,
}

/// What is done to an actor on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(any(debug_assertions, feature = "fault-injection")), allow(dead_code, reason = "nobody injects any"))]
pub enum Fault {
    Panic,
    /// It does nothing more and does not end, as if it waited for something that never comes.
    Hang,
}

/// Whether an actor turns its mailbox, by the pings it has answered.
struct Pulse {
    ask: Box<dyn Fn(Ping) + Send + Sync>,
    heard: Arc<AtomicU64>,
    asked: u64,
    /// The oldest ping without an answer, and when it was sent.
    unanswered: Option<(u64, Instant)>,
    /// As its service has it.
    silent_max: Duration,
}

/// What the registry knows about one actor; written by its task.
struct Record {
    name: String,
    policy: Policy,
    life: Mutex<Life>,
}

struct Life {
    state: ActorState,
    restarts: u64,
    last_stop: Option<LastStop>,
    /// It waits for its next start, and the supervisor knows why.
    backs_off: bool,
}

/// What becomes of an actor that stopped, and how often it may be restarted at once.
#[derive(Clone, Copy)]
pub struct Policy {
    text: &'static str,
    table: fn(&StopReason) -> Action,
    restarts: u32,
    window: Duration,
}

/// What the supervisor does about a stop. A requested stop is always obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Build it again.
    Restart,
    /// Leave it stopped; the node goes on without.
    Stop,
}

/// One actor as `status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActorStatus {
    pub name: String,
    pub state: ActorState,
    pub restarts: u64,
    pub last_stop: Option<LastStop>,
    pub mailbox: MailboxStatus,
    /// The policy in words.
    pub policy: String,
}

/// Where an actor is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorState {
    /// Being built for the first time.
    Starting,
    Running,
    /// Between a stop and the next start, perhaps waiting out a back-off.
    Restarting,
    Stopped,
}

/// Why and when an actor stopped last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastStop {
    pub reason: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// How full a mailbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MailboxStatus {
    pub queued: usize,
    /// `None` for a mailbox without a bound.
    pub capacity: Option<usize>,
}

/// The supervisor runs no actor of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no running actor is called {0}; `eps-actor status` lists them")]
pub struct UnknownActor(pub String);

impl Policy {
    /// Restarts after every stop that was not requested.
    pub const RESTART: Self = Self::table("restart", |_| Action::Restart);

    /// A policy by a table from reason to action, and that table in words. Three restarts in ten seconds come at
    /// once, the next after a back-off.
    pub const fn table(text: &'static str, table: fn(&StopReason) -> Action) -> Self {
        Self { text, table, restarts: 3, window: Duration::from_secs(10) }
    }

    /// Allows `restarts` at once in every `window` before the back-off begins.
    pub const fn intensity(self, restarts: u32, window: Duration) -> Self {
        Self { restarts, window, ..self }
    }

    fn action(&self, reason: &StopReason) -> Action {
        match reason {
            StopReason::Requested => Action::Stop,
            StopReason::DeviceGone(_) | StopReason::Failed(_) | StopReason::Panicked(_) => (self.table)(reason),
        }
    }
}

impl Supervisor {
    /// A supervisor without actors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs the actor that `factory` builds on `executor`, until it is asked to stop or nobody holds its address.
    ///
    /// The caller keeps the address and must not keep a clone of the mailbox. The second actor of one kind is
    /// registered as `NAME#2`, and so on.
    pub fn supervise<A: Service>(
        &self,
        executor: &Arc<Executor<'static>>,
        mailbox: Mailbox<A>,
        factory: impl FnMut() -> A + Send + 'static,
        policy: Policy,
    ) {
        self.start(executor, mailbox, factory, policy);
    }

    fn start<A: Service>(
        &self,
        executor: &Arc<Executor<'static>>,
        mailbox: Mailbox<A>,
        factory: impl FnMut() -> A + Send + 'static,
        policy: Policy,
    ) -> Arc<Record> {
        let address = mailbox.address();
        let (stop, stopped) = channel::bounded(1);
        let (fault, faults) = channel::bounded(1);
        let mut children = self.0.children();
        let life = Mutex::new(Life { state: ActorState::Starting, restarts: 0, last_stop: None, backs_off: false });
        let record = Arc::new(Record { name: free_name(&children, A::NAME), policy, life });
        let cradle = Cradle {
            mailbox,
            factory,
            record: Arc::clone(&record),
            stop: stopped,
            faults,
            #[cfg(not(any(debug_assertions, feature = "fault-injection")))]
            _fault: fault,
        };
        let task = executor.spawn(cradle.supervise());
        let mailbox = address.clone();
        let pulse = Pulse {
            // One that a full mailbox refuses stays unanswered, as it should.
            ask: Box::new(move |ping| _ = cast(&mailbox, ping)),
            heard: Arc::default(),
            asked: 0,
            unanswered: None,
            silent_max: A::SILENT_MAX,
        };
        children.push(Child {
            record: Arc::clone(&record),
            pulse,
            mailbox: Box::new(move || MailboxStatus { queued: address.len(), capacity: address.capacity() }),
            stop,
            #[cfg(any(debug_assertions, feature = "fault-injection"))]
            fault,
            task: Some(task),
        });
        record
    }

    /// As [`supervise`](Self::supervise), for an actor that comes and goes while the node runs: it ends, and leaves
    /// the registry, when what this gives is dropped. It gets no time for goodbyes then.
    #[must_use = "the actor ends when this is dropped"]
    pub fn supervise_while<A: Service>(
        &self,
        executor: &Arc<Executor<'static>>,
        mailbox: Mailbox<A>,
        factory: impl FnMut() -> A + Send + 'static,
        policy: Policy,
    ) -> Tenancy {
        let record = self.start(executor, mailbox, factory, policy);
        Tenancy { shared: Arc::downgrade(&self.0), record }
    }

    /// Every actor in the order they were started.
    pub fn status(&self) -> Vec<ActorStatus> {
        self.0.children().iter().map(Child::status).collect()
    }

    /// Which actors have not turned their mailboxes since the last time this was asked, and for longer than they may.
    /// Asks them all again.
    ///
    /// Actors that were stopped, and those that wait out a back-off, are known to do nothing and are not among them.
    pub fn silent(&self, now: Instant) -> Vec<String> {
        let mut children = self.0.children();
        children.iter_mut().filter_map(|child| child.is_silent(now).then(|| child.record.name.clone())).collect()
    }

    /// Whether every actor runs and has answered what [`silent`](Self::silent) asked it.
    pub fn all_answered(&self) -> bool {
        let children = self.0.children();
        let well = |child: &Child| {
            let state = child.record.life().state;
            state == ActorState::Stopped || state == ActorState::Running && child.pulse.has_answered()
        };
        children.iter().all(well)
    }

    /// Stops all actors, the last started first, each when the one before has said its goodbyes.
    ///
    /// Those still at it when their share of the deadline is over are dropped; their names are returned.
    pub async fn stop_all(&self, deadline: Duration) -> Vec<String> {
        let end = Instant::now() + deadline;
        let mut running: Vec<_> = (self.0.children().iter_mut())
            .filter_map(|child| Some((Arc::clone(&child.record), child.stop.clone(), child.task.take()?)))
            .collect();
        let mut dropped = Vec::new();
        while let Some((record, stop, task)) = running.pop() {
            stop.close();
            let share = end.saturating_duration_since(Instant::now()) / (running.len() as u32 + 1);
            let task = async {
                task.await;
                true
            };
            let stopped = future::or(task, async {
                Timer::after(share).await;
                false
            })
            .await;
            if !stopped {
                log::warn!("{} did not stop in time", record.name);
                record.life().state = ActorState::Stopped;
                dropped.push(record.name.clone());
            }
        }
        dropped
    }

    /// Makes a running actor panic or hang.
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    pub fn inject(&self, name: &str, fault: Fault) -> Result<(), UnknownActor> {
        let children = self.0.children();
        let child = children.iter().find(|child| child.record.name == name && !child.fault.is_closed());
        let child = child.ok_or_else(|| UnknownActor(name.to_owned()))?;
        // Full: one is on its way already.
        let _ = child.fault.try_send(fault);
        Ok(())
    }
}

/// An actor's right to run; see [`Supervisor::supervise_while`].
pub struct Tenancy {
    shared: Weak<Shared>,
    record: Arc<Record>,
}

impl Drop for Tenancy {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut children = shared.children();
        let place = children.iter().position(|child| Arc::ptr_eq(&child.record, &self.record));
        let ended = place.map(|place| children.remove(place));
        drop(children);
        // With its task the actor goes, the next time its executor turns.
        drop(ended);
    }
}

/// Logs panics through `log`, one line each, instead of printing them.
pub fn install_panic_log() {
    std::panic::set_hook(Box::new(|info| {
        let text = panic_text(info.payload());
        match info.location() {
            Some(at) => log::error!("panic at {}:{}: {text}", at.file(), at.line()),
            None => log::error!("panic: {text}"),
        }
    }));
}

impl Shared {
    fn children(&self) -> MutexGuard<'_, Vec<Child>> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    fn status(&self) -> ActorStatus {
        let life = self.record.life();
        ActorStatus {
            name: self.record.name.clone(),
            state: life.state,
            restarts: life.restarts,
            last_stop: life.last_stop.clone(),
            mailbox: (self.mailbox)(),
            policy: self.record.policy.to_string(),
        }
    }
}

impl Child {
    fn is_silent(&mut self, now: Instant) -> bool {
        let excused = {
            let life = self.record.life();
            life.backs_off || life.state == ActorState::Stopped
        };
        if excused {
            self.pulse.unanswered = None;
            return false;
        }
        self.pulse.is_silent(now)
    }
}

impl Pulse {
    fn has_answered(&self) -> bool {
        self.unanswered.is_none_or(|(number, _)| self.heard.load(Relaxed) >= number)
    }

    fn is_silent(&mut self, now: Instant) -> bool {
        self.unanswered = self.unanswered.filter(|(number, _)| self.heard.load(Relaxed) < *number);
        let silent = self.unanswered.is_some_and(|(_, since)| now.saturating_duration_since(since) >= self.silent_max);
        self.asked += 1;
        self.unanswered.get_or_insert((self.asked, now));
        (self.ask)(Ping { number: self.asked, heard: Arc::clone(&self.heard) });
        silent
    }
}

impl Record {
    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self, reason: &StopReason, action: Action) {
        let mut life = self.life();
        life.last_stop = Some(LastStop { reason: reason.to_string(), at: unix_time().as_secs() });
        match action {
            Action::Restart => {
                life.state = ActorState::Restarting;
                life.restarts += 1;
            }
            Action::Stop => life.state = ActorState::Stopped,
        }
    }
}

/// The task's side of one actor: everything a life needs that outlives it.
struct Cradle<A, F> {
    mailbox: Mailbox<A>,
    factory: F,
    record: Arc<Record>,
    stop: Receiver<()>,
    faults: Receiver<Fault>,
    /// Kept so that `faults` stays silent where nothing can send into it.
    #[cfg(not(any(debug_assertions, feature = "fault-injection")))]
    _fault: Sender<Fault>,
}

impl<A: Service, F: FnMut() -> A + Send> Cradle<A, F> {
    async fn supervise(mut self) {
        let record = Arc::clone(&self.record);
        let mut pace = Pace::new(&record.policy);
        loop {
            let born = Instant::now();
            let reason = self.live_caught().await;
            let action = record.policy.action(&reason);
            record.stopped(&reason, action);
            match action {
                Action::Restart => {
                    let wait = pace.wait(born.elapsed(), Instant::now(), &mut rand::rng());
                    log::warn!("{} {reason}; restarting{}", record.name, In(wait));
                    record.life().backs_off = true;
                    let asked = asked_within(&self.stop, wait).await;
                    record.life().backs_off = false;
                    if asked {
                        record.life().state = ActorState::Stopped;
                        return;
                    }
                }
                Action::Stop => {
                    log::debug!("{} {reason}", record.name);
                    return;
                }
            }
        }
    }

    /// One life, with panics as stop reasons; those of the factory, of destructors and injected ones too.
    async fn live_caught(&mut self) -> StopReason {
        let faults = self.faults.clone();
        let hung = AtomicBool::new(false);
        let fault = async {
            match faults.recv().await {
                Ok(Fault::Panic) => panic!("injected fault"),
                Ok(Fault::Hang) => hung.store(true, Relaxed),
                Err(_) => {}
            }
            future::pending().await
        };
        let mut live = Box::pin(self.live());
        // What hangs is kept, and not looked at again.
        let looked_at = &hung;
        let live = future::poll_fn(move |context| match looked_at.load(Relaxed) {
            true => Poll::Pending,
            false => live.as_mut().poll(context),
        });
        let mut life = Box::pin(AssertUnwindSafe(future::or(fault, live)).catch_unwind());
        let ended = life.as_mut().await;
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(life)));
        match ended.and_then(|reason| dropped.map(|()| reason)) {
            Ok(reason) => reason,
            Err(payload) => StopReason::Panicked(panic_text(&*payload).to_owned()),
        }
    }

    async fn live(&mut self) -> StopReason {
        let mut actor = (self.factory)();
        let begun = async { actor.started(&self.mailbox).await.err() };
        if let Some(reason) = future::or(asked(&self.stop), begun).await {
            return reason;
        }
        self.record.life().state = ActorState::Running;
        let asked = async { asked(&self.stop).await.unwrap_or(StopReason::Requested) };
        let reason = future::or(asked, actor.run(&self.mailbox)).await;
        actor.stopping(&reason);
        let parting = actor.stopped().await;
        // An actor that stopped itself through its context says why in `stopped`.
        if reason == StopReason::Requested && !self.stop.is_closed() { parting } else { reason }
    }
}

/// Ends when the supervisor asks for a stop.
async fn asked(stop: &Receiver<()>) -> Option<StopReason> {
    // Nothing is ever sent; closing is the signal.
    let _ = stop.recv().await;
    Some(StopReason::Requested)
}

/// Waits before a restart; true if a stop was asked for meanwhile.
async fn asked_within(stop: &Receiver<()>, wait: Duration) -> bool {
    if wait.is_zero() {
        future::yield_now().await;
        return stop.is_closed();
    }
    future::or(async { asked(stop).await.is_some() }, async {
        Timer::after(wait).await;
        false
    })
    .await
}

/// Decides how long to wait before a restart.
struct Pace {
    restarts: usize,
    window: Duration,
    recent: VecDeque<Instant>,
    backoff: Backoff,
}

impl Pace {
    fn new(policy: &Policy) -> Self {
        let backoff = Backoff::new(BACKOFF);
        Self { restarts: policy.restarts as usize, window: policy.window, recent: VecDeque::new(), backoff }
    }

    /// Zero while there were few stops lately; then the back-off, until the actor has lived through one window.
    fn wait(&mut self, lived: Duration, now: Instant, rng: &mut impl Rng) -> Duration {
        if lived >= self.window {
            self.recent.clear();
            self.backoff.reset();
        }
        self.recent.retain(|at| now.saturating_duration_since(*at) < self.window);
        self.recent.push_back(now);
        if self.backoff.attempts() == 0 && self.recent.len() <= self.restarts {
            return Duration::ZERO;
        }
        self.recent.clear();
        self.backoff.next(rng)
    }
}

/// Waits between the restarts of an actor that keeps falling; the last repeats. Short at first, because most of
/// what an actor falls over passes; five seconds at the most, because an operator mends the rest and looks.
const BACKOFF: &[Duration] = &[
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_millis(3200),
    Duration::from_secs(5),
];

fn free_name(children: &[Child], name: &str) -> String {
    let kin = |child: &&Child| child.record.name.split('#').next() == Some(name);
    match children.iter().filter(kin).count() {
        0 => name.to_owned(),
        count => format!("{name}#{}", count + 1),
    }
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

struct In(Duration);

impl fmt::Display for In {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() { Ok(()) } else { write!(f, " in {} ms", self.0.as_millis()) }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; at once {} times in {} s, then backing off", self.text, self.restarts, self.window.as_secs())
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use std::thread::JoinHandle;

    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use xtra::{Actor, Address, Context, Handler};

    use super::*;
    use crate::actors::ext::{CallError, call, cast};

    #[test]
    fn messages_behind_a_panic_are_answered_after_the_restart_by_the_same_address() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART);
        smol::block_on(async {
            assert!(cast(&address, Sleep(Duration::from_millis(20))));
            let mut fallen = Box::pin(call(&address, Fall, SOON));
            assert_eq!(futures_util::poll!(&mut fallen), std::task::Poll::Pending);
            let queued: Vec<_> = (0..5).map(|number| Box::pin(call(&address, Double(number), SOON))).collect();
            let answers = futures_util::future::join_all(queued).await;
            assert_eq!(answers, (0..5).map(|number| Ok(number * 2)).collect::<Vec<_>>());
            assert_eq!(fallen.await, Err(CallError::Restarting { actor: "worker" }));
        });
        let status = lab.supervisor.status().remove(0);
        assert_eq!((status.restarts, status.state), (1, ActorState::Running));
        assert_eq!(status.last_stop.unwrap().reason, "panicked: as told");
    }

    #[test]
    fn f_21_a_hundred_injected_panics_are_each_restarted_within_50_ms() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART.intensity(1000, Duration::from_secs(10)));
        smol::block_on(call(&address, Double(1), SOON)).unwrap();
        let mut times = Vec::new();
        for round in 1..=100 {
            let begun = Instant::now();
            lab.supervisor.inject("worker", Fault::Panic).unwrap();
            until("the restart", || {
                let status = lab.supervisor.status().remove(0);
                status.restarts == round && status.state == ActorState::Running
            });
            assert_eq!(smol::block_on(call(&address, Double(round as u32), SOON)), Ok(round as u32 * 2));
            times.push(begun.elapsed());
        }
        times.sort_unstable();
        println!("F-21: a hundred restarts, half of them within {:?}, all within {:?}", times[50], times[99]);
        // A machine with other work to do may hold up a few.
        assert!(times[90] <= Duration::from_millis(50), "{times:?}");
    }

    #[test]
    fn a_fourth_panic_in_ten_seconds_is_backed_off_from_and_the_process_stays() {
        let lab = Lab::new();
        let (address, births) = lab.start(Policy::RESTART);
        for round in 1..=4 {
            until("a running actor", || lab.state("worker") == ActorState::Running);
            lab.supervisor.inject("worker", Fault::Panic).unwrap();
            until("the panic", || lab.supervisor.status()[0].restarts == round);
        }
        let fourth = Instant::now();
        assert_eq!(lab.state("worker"), ActorState::Restarting);
        assert_eq!(smol::block_on(call(&address, Double(4), SOON)), Ok(8), "asked meanwhile, answered afterwards");
        let waited = fourth.elapsed();
        assert!((Duration::from_millis(60)..SOON).contains(&waited), "waited {waited:?}");
        assert_eq!(births.load(SeqCst), 5);
    }

    #[test]
    fn an_actor_for_a_while_ends_and_leaves_the_registry_with_its_tenancy() {
        let lab = Lab::new();
        let (_first, _) = lab.start(Policy::RESTART);
        let (address, mailbox) = Mailbox::<Worker>::bounded(8);
        let worker = lab.worker();
        let tenancy = lab.supervisor.supervise_while(&lab.executor, mailbox, move || worker.clone(), Policy::RESTART);
        assert_eq!(smol::block_on(call(&address, Double(4), SOON)), Ok(8));
        assert_eq!(lab.supervisor.status().len(), 2);
        drop(tenancy);
        assert_eq!(lab.supervisor.status().len(), 1);
        until("its end", || !address.is_connected());
    }

    #[test]
    fn stop_all_lets_actors_say_goodbye_in_reverse_order() {
        let lab = Lab::new();
        let (_first, _) = lab.start(Policy::RESTART);
        let (_second, _) = lab.start(Policy::RESTART);
        until("running actors", || lab.supervisor.status().iter().all(|row| row.state == ActorState::Running));
        assert_eq!(smol::block_on(lab.supervisor.stop_all(SOON)), [""; 0]);
        assert_eq!(*lab.goodbyes.lock().unwrap(), ["1 stopped on request", "0 stopped on request"]);
        let status = lab.supervisor.status();
        let seen: Vec<_> = status.iter().map(|row| (row.name.as_str(), row.state)).collect();
        assert_eq!(seen, [("worker", ActorState::Stopped), ("worker#2", ActorState::Stopped)]);
        assert_eq!(lab.supervisor.inject("worker", Fault::Panic), Err(UnknownActor("worker".to_owned())));
    }

    #[test]
    fn stop_all_drops_an_actor_that_does_not_stop_and_still_stops_the_others() {
        let lab = Lab::new();
        let (_first, _) = lab.start(Policy::RESTART);
        let (second, _) = lab.start(Policy::RESTART);
        smol::block_on(call(&second, HangAtTheEnd, SOON)).unwrap();
        let begun = Instant::now();
        assert_eq!(smol::block_on(lab.supervisor.stop_all(Duration::from_millis(200))), ["worker#2"]);
        assert!(begun.elapsed() < SOON);
        assert_eq!(*lab.goodbyes.lock().unwrap(), ["0 stopped on request"]);
        until("the mailbox to close", || !second.is_connected());
    }

    #[test]
    fn a_stop_ends_the_wait_of_a_back_off() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART.intensity(0, Duration::from_secs(10)));
        let _ = smol::block_on(call(&address, Fall, SOON));
        let begun = Instant::now();
        assert_eq!(smol::block_on(lab.supervisor.stop_all(SOON)), [""; 0]);
        assert!(begun.elapsed() < SOON / 2);
        assert_eq!(lab.state("worker"), ActorState::Stopped);
    }

    #[test]
    fn a_factory_that_panics_is_tried_again() {
        let lab = Lab::new();
        let (address, mailbox) = Mailbox::bounded(8);
        let mut attempts = 0;
        let worker = lab.worker();
        let factory = move || {
            attempts += 1;
            assert!(attempts > 2, "the factory is not ready");
            worker.clone()
        };
        lab.supervisor.supervise(&lab.executor, mailbox, factory, Policy::RESTART);
        assert_eq!(smol::block_on(call(&address, Double(4), SOON)), Ok(8));
        let status = lab.supervisor.status().remove(0);
        assert_eq!(status.restarts, 2);
        assert_eq!(status.last_stop.unwrap().reason, "panicked: the factory is not ready");
    }

    #[test]
    fn a_destructor_that_panics_does_not_end_the_supervision() {
        let lab = Lab::new();
        let (address, births) = lab.start(Policy::RESTART);
        smol::block_on(call(&address, FallAtTheEnd, SOON)).unwrap();
        lab.supervisor.inject("worker", Fault::Panic).unwrap();
        until("a second life", || births.load(SeqCst) == 2);
        assert_eq!(smol::block_on(call(&address, Double(4), SOON)), Ok(8));
    }

    #[test]
    fn an_actor_without_its_device_is_restarted_where_its_policy_does_not_say_else() {
        let lab = Lab::new();
        let (plain, births) = lab.start(Policy::RESTART);
        smol::block_on(call(&plain, LoseDevice, SOON)).unwrap();
        until("a second life", || births.load(SeqCst) == 2);

        let (stopping, _) = lab.start(Policy::table("stop", |_| Action::Stop));
        smol::block_on(call(&stopping, LoseDevice, SOON)).unwrap();
        until("the actor to stop", || lab.state("worker#2") == ActorState::Stopped);
        assert_eq!(smol::block_on(call(&stopping, Double(1), SOON)), Err(CallError::Gone { actor: "worker" }));
    }

    #[test]
    fn an_actor_nobody_can_reach_stops() {
        let lab = Lab::new();
        let (address, births) = lab.start(Policy::RESTART);
        drop(address);
        until("the actor to stop", || lab.state("worker") == ActorState::Stopped);
        assert_eq!(births.load(SeqCst), 1);
    }

    #[test]
    fn the_status_of_an_actor_survives_json() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART);
        let _ = smol::block_on(call(&address, Fall, SOON));
        let mut status = Vec::new();
        until("the restart", || {
            status = lab.supervisor.status();
            status[0].restarts == 1 && status[0].state == ActorState::Running
        });
        assert_eq!(status[0].mailbox, MailboxStatus { queued: 0, capacity: Some(8) });
        let text = serde_json::to_string(&status).unwrap();
        assert!(text.contains(r#""state":"running""#), "{text}");
        assert_eq!(serde_json::from_str::<Vec<ActorStatus>>(&text).unwrap(), status);
    }

    #[test]
    fn the_back_off_lasts_until_an_actor_lives_through_a_window() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pace = Pace::new(&Policy::RESTART);
        let mut now = Instant::now();
        let mut fall = |lived: Duration| {
            now += lived;
            let wait = pace.wait(lived, now, &mut rng);
            now += wait;
            wait.as_millis()
        };
        for _ in 0..3 {
            assert_eq!(fall(Duration::from_millis(1)), 0);
        }
        for step in BACKOFF.iter().chain([&BACKOFF[6]; 5]).map(Duration::as_millis) {
            let wait = fall(Duration::from_millis(1));
            assert!((step * 8 / 10..=step * 12 / 10).contains(&wait), "{wait} for {step}");
        }
        assert_eq!(fall(Duration::from_secs(10)), 0);
    }

    #[test]
    fn stops_far_apart_are_restarted_at_once() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut pace = Pace::new(&Policy::RESTART);
        let mut now = Instant::now();
        for _ in 0..50 {
            now += Duration::from_secs(4);
            assert_eq!(pace.wait(Duration::from_secs(4), now, &mut rng), Duration::ZERO);
        }
    }

    #[test]
    fn an_actor_that_hangs_is_silent_and_the_others_are_not() {
        let lab = Lab::new();
        let (_first, _) = lab.start(Policy::RESTART);
        let (_second, _) = lab.start(Policy::RESTART);
        let start = Instant::now();
        assert_eq!(lab.supervisor.silent(start), [""; 0], "nobody has been asked yet");
        until("answers", || lab.supervisor.all_answered());
        lab.supervisor.inject("worker#2", Fault::Hang).unwrap();
        until("silence", || {
            let _ = lab.supervisor.silent(start);
            std::thread::sleep(Duration::from_millis(10));
            !lab.supervisor.all_answered()
        });
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(lab.supervisor.silent(after(2)), [""; 0], "it may take that long");
        assert_eq!(lab.supervisor.silent(after(3)), ["worker#2"]);
        until("the other's answer", || lab.supervisor.0.children()[0].pulse.has_answered());
        assert_eq!(lab.supervisor.silent(after(8)), ["worker#2"], "asking again does not excuse it");
    }

    #[test]
    fn an_actor_that_is_slow_and_answers_at_last_is_not_silent() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART);
        let start = Instant::now();
        assert!(cast(&address, Sleep(Duration::from_millis(30))));
        assert_eq!(lab.supervisor.silent(start), [""; 0]);
        assert_eq!(lab.supervisor.silent(start + Duration::from_secs(3)), ["worker"]);
        until("the answer", || lab.supervisor.all_answered());
        assert_eq!(lab.supervisor.silent(start + Duration::from_secs(60)), [""; 0]);
    }

    #[test]
    fn an_actor_that_waits_for_its_next_start_is_no_hung_one() {
        let lab = Lab::new();
        let (address, _) = lab.start(Policy::RESTART.intensity(0, Duration::from_secs(10)));
        let _ = smol::block_on(call(&address, Fall, SOON));
        until("a back-off", || lab.supervisor.0.children()[0].record.life().backs_off);
        let start = Instant::now();
        assert_eq!(lab.supervisor.silent(start), [""; 0]);
        assert!(!lab.supervisor.all_answered());
        assert_eq!(lab.supervisor.silent(start + Duration::from_secs(3)), [""; 0]);
    }

    const SOON: Duration = Duration::from_secs(10);

    /// A supervisor, an executor on two threads, and workers that do as they are told.
    struct Lab {
        supervisor: Supervisor,
        executor: Arc<Executor<'static>>,
        workers: AtomicU32,
        goodbyes: Arc<Mutex<Vec<String>>>,
        end: Option<Sender<()>>,
        threads: Vec<JoinHandle<()>>,
    }

    impl Lab {
        fn new() -> Self {
            let executor = Arc::new(Executor::new());
            let (end, ended) = channel::bounded::<()>(1);
            let threads = (0..2)
                .map(|_| {
                    let (executor, ended) = (Arc::clone(&executor), ended.clone());
                    std::thread::spawn(move || {
                        let _ = smol::block_on(executor.run(ended.recv()));
                    })
                })
                .collect();
            Self {
                supervisor: Supervisor::new(),
                executor,
                workers: AtomicU32::new(0),
                goodbyes: Arc::default(),
                end: Some(end),
                threads,
            }
        }

        fn worker(&self) -> Worker {
            Worker {
                number: self.workers.fetch_add(1, SeqCst),
                goodbyes: Arc::clone(&self.goodbyes),
                at_the_end: AtTheEnd::SayGoodbye,
                reason: StopReason::Requested,
                fragile: Arc::default(),
            }
        }

        /// A supervised worker's address, and how often it was built.
        fn start(&self, policy: Policy) -> (Address<Worker>, Arc<AtomicU64>) {
            let (address, mailbox) = Mailbox::bounded(8);
            let births = Arc::new(AtomicU64::new(0));
            let (worker, count) = (self.worker(), Arc::clone(&births));
            let factory = move || {
                count.fetch_add(1, SeqCst);
                Worker { fragile: Arc::default(), ..worker.clone() }
            };
            self.supervisor.supervise(&self.executor, mailbox, factory, policy);
            (address, births)
        }

        fn state(&self, name: &str) -> ActorState {
            self.supervisor.status().into_iter().find(|row| row.name == name).expect("a registered actor").state
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            self.end.take();
            for thread in self.threads.drain(..) {
                thread.join().unwrap();
            }
        }
    }

    #[derive(Clone)]
    struct Worker {
        number: u32,
        goodbyes: Arc<Mutex<Vec<String>>>,
        at_the_end: AtTheEnd,
        reason: StopReason,
        fragile: Arc<Fragile>,
    }

    #[derive(Clone, Copy)]
    enum AtTheEnd {
        SayGoodbye,
        Hang,
    }

    #[derive(Default)]
    struct Fragile(AtomicBool);

    impl Drop for Fragile {
        fn drop(&mut self) {
            assert!(!self.0.load(SeqCst), "fragile");
        }
    }

    impl Actor for Worker {
        type Stop = StopReason;

        async fn stopped(self) -> StopReason {
            match self.at_the_end {
                AtTheEnd::Hang => future::pending().await,
                AtTheEnd::SayGoodbye => self.reason,
            }
        }
    }

    crate::actors::ext::answers_pings!(Worker);

    impl Service for Worker {
        const NAME: &'static str = "worker";

        fn stopping(&mut self, reason: &StopReason) {
            if let AtTheEnd::SayGoodbye = self.at_the_end {
                self.goodbyes.lock().unwrap().push(format!("{} {reason}", self.number));
            }
        }
    }

    struct Double(u32);
    struct Fall;
    struct FallAtTheEnd;
    struct HangAtTheEnd;
    struct LoseDevice;
    struct Sleep(Duration);

    impl Handler<Double> for Worker {
        type Return = u32;
        async fn handle(&mut self, Double(number): Double, _: &mut Context<Self>) -> u32 {
            number * 2
        }
    }

    impl Handler<Fall> for Worker {
        type Return = ();
        async fn handle(&mut self, _: Fall, _: &mut Context<Self>) {
            panic!("as told");
        }
    }

    impl Handler<FallAtTheEnd> for Worker {
        type Return = ();
        async fn handle(&mut self, _: FallAtTheEnd, _: &mut Context<Self>) {
            self.fragile.0.store(true, SeqCst);
        }
    }

    impl Handler<HangAtTheEnd> for Worker {
        type Return = ();
        async fn handle(&mut self, _: HangAtTheEnd, _: &mut Context<Self>) {
            self.at_the_end = AtTheEnd::Hang;
        }
    }

    impl Handler<LoseDevice> for Worker {
        type Return = ();
        async fn handle(&mut self, _: LoseDevice, context: &mut Context<Self>) {
            self.reason = StopReason::DeviceGone("eps0".to_owned());
            context.stop_self();
        }
    }

    impl Handler<Sleep> for Worker {
        type Return = ();
        async fn handle(&mut self, Sleep(time): Sleep, _: &mut Context<Self>) {
            Timer::after(time).await;
        }
    }

    fn until(what: &str, mut condition: impl FnMut() -> bool) {
        let end = Instant::now() + SOON;
        while !condition() {
            assert!(Instant::now() < end, "waited in vain for {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
