//! Waiting for devices and sockets on the very thread that works with them.
//!
//! smol's reactor is shared: whichever thread sleeps in it hears of every descriptor and wakes the one concerned, so a
//! lone frame would cross two threads before anybody looks at it. Here a thread has an epoll of its own, and what it
//! watches wakes nobody else. Everything else about it (mailboxes, timers, other sockets) stays smol's: their wakers
//! reach [`block_on`] through an eventfd.
//!
//! Descriptors are registered once, edge-triggered (epoll(7)): a [`Watch`] stays ready until its owner has met
//! `WouldBlock` and says so with [`Watch::clear`], and then no system call was spent on waiting but the wait itself.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures_lite::future;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

/// Events taken from the kernel in one call.
const EVENTS_MAX: usize = 16;
/// How often the thread gives way to others before it sleeps. Whoever fills its queues is often waiting for just this
/// core; then there is more to do at once, and nobody pays for waking us. As often as that while it helps, fewer times
/// each time that nothing came of it.
const YIELDS: std::ops::RangeInclusive<u32> = 2..=16;
/// The eventfd's number among the watched; no watch gets as far.
const NOTIFIER: u64 = u64::MAX;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Poller>>> = const { RefCell::new(None) };
}

/// One thread's epoll.
struct Poller {
    epoll: OwnedFd,
    notifier: Arc<Notifier>,
    watched: Mutex<Vec<Option<Arc<Readiness>>>>,
    /// How often to give way before the next sleep.
    yields: AtomicU32,
}

/// Wakes the thread, wherever it is.
struct Notifier {
    event: OwnedFd,
    /// Something was woken since the thread last looked.
    notified: AtomicBool,
    /// The thread sleeps, or is about to, and must be shaken.
    asleep: AtomicBool,
}

#[derive(Default)]
struct Readiness {
    ready: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// Runs a future on this thread, with an epoll of its own for the [`Watch`]es made inside.
///
/// # Errors
/// When the kernel gives no epoll or eventfd (too many open files).
///
/// # Panics
/// When called inside itself.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let poller = Arc::new(Poller::new()?);
    CURRENT.with_borrow_mut(|current| {
        assert!(current.is_none(), "block_on does not nest");
        *current = Some(poller.clone());
    });
    let _reset = Reset;
    let waker = Waker::from(poller.notifier.clone());
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Ok(value);
        }
        poller.wait()?;
    }
}

struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| *current = None);
    }
}

/// Lets the thread's other tasks have a turn, and takes note of what has become readable meanwhile.
pub async fn turn() {
    if let Some(poller) = current() {
        // What is wrong with the epoll shows at the next wait.
        let _ = poller.collect(Some(0));
    }
    future::yield_now().await;
}

fn current() -> Option<Arc<Poller>> {
    CURRENT.with_borrow(Clone::clone)
}

impl Poller {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &event, EventData::new_u64(NOTIFIER), EventFlags::IN | EventFlags::ET)?;
        let notifier = Notifier { event, notified: AtomicBool::new(false), asleep: AtomicBool::new(false) };
        Ok(Self {
            epoll,
            notifier: Arc::new(notifier),
            watched: Mutex::default(),
            yields: AtomicU32::new(*YIELDS.end()),
        })
    }

    /// Sleeps until something happens, unless something already did.
    fn wait(&self) -> io::Result<()> {
        let Notifier { notified, asleep, .. } = &*self.notifier;
        let yields = self.yields.load(Ordering::Relaxed);
        for _ in 0..yields {
            if notified.swap(false, Ordering::SeqCst) {
                self.yields.store((2 * yields).min(*YIELDS.end()), Ordering::Relaxed);
                return self.collect(Some(0));
            }
            std::thread::yield_now();
            self.collect(Some(0))?;
        }
        self.yields.store((yields / 2).max(*YIELDS.start()), Ordering::Relaxed);
        // Sequentially consistent, as in `wake`: of the two flags, at least one side sees the other's.
        asleep.store(true, Ordering::SeqCst);
        let timeout = if notified.swap(false, Ordering::SeqCst) { Some(0) } else { None };
        let result = self.collect(timeout);
        notified.store(false, Ordering::SeqCst);
        result
    }

    /// Takes note of events, waiting for the first at most `timeout` milliseconds (`None`: as long as it takes).
    fn collect(&self, timeout: Option<i64>) -> io::Result<()> {
        let timeout = timeout.map(|ms| rustix::event::Timespec { tv_sec: ms / 1000, tv_nsec: ms % 1000 * 1_000_000 });
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_MAX];
        let result = epoll::wait(&self.epoll, &mut events, timeout.as_ref());
        // Whoever is woken below is woken by this thread.
        self.notifier.asleep.store(false, Ordering::SeqCst);
        let (events, _) = match result {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            result => result?,
        };
        for event in &*events {
            let number = event.data.u64();
            let readiness = usize::try_from(number).ok().and_then(|number| self.watched().get(number)?.clone());
            if let Some(readiness) = readiness {
                readiness.set();
            }
        }
        Ok(())
    }

    fn watched(&self) -> MutexGuard<'_, Vec<Option<Arc<Readiness>>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Notifier {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.notified.swap(true, Ordering::SeqCst) && self.asleep.load(Ordering::SeqCst) {
            // It can only fail after 2^64 - 2 calls: nobody reads the count, each call is an edge.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl Readiness {
    fn set(&self) {
        let mut waker = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        self.ready.store(true, Ordering::Release);
        if let Some(waker) = waker.take() {
            waker.wake();
        }
    }
}

/// A descriptor that this thread is told about when it becomes readable, fails or is gone.
pub struct Watch<F: AsFd> {
    of: F,
    number: usize,
    readiness: Arc<Readiness>,
    poller: Arc<Poller>,
}

impl<F: AsFd> Watch<F> {
    /// Begins to watch a non-blocking descriptor, in the thread's [`block_on`]. It counts as readable at first.
    ///
    /// # Errors
    /// When the kernel cannot watch it, or when called outside of `block_on`.
    pub fn new(of: F) -> io::Result<Self> {
        let poller = current().ok_or_else(|| io::Error::other("no poller runs on this thread"))?;
        let readiness = Arc::new(Readiness { ready: AtomicBool::new(true), waker: Mutex::default() });
        let number = {
            let mut watched = poller.watched();
            let free = watched.iter().position(Option::is_none);
            let number = free.unwrap_or(watched.len());
            if free.is_none() {
                watched.push(None);
            }
            watched[number] = Some(readiness.clone());
            number
        };
        let watch = Self { of, number, readiness, poller };
        let data = EventData::new_u64(watch.number as u64);
        epoll::add(&watch.poller.epoll, &watch.of, data, EventFlags::IN | EventFlags::RDHUP | EventFlags::ET)?;
        Ok(watch)
    }

    /// What is watched.
    pub fn of(&self) -> &F {
        &self.of
    }

    /// Waits until reading may give something. Safe to drop.
    pub async fn readable(&self) {
        poll_fn(|context| {
            let mut waker = self.readiness.waker.lock().unwrap_or_else(PoisonError::into_inner);
            if self.readiness.ready.load(Ordering::Acquire) {
                return Poll::Ready(());
            }
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Reading gave `WouldBlock`: wait for the next edge.
    ///
    /// Only this thread takes note of edges, so none can fall between that read and this call.
    pub fn clear(&self) {
        self.readiness.ready.store(false, Ordering::Release);
    }
}

impl<F: AsFd> Drop for Watch<F> {
    fn drop(&mut self) {
        // A device deleted under us has left the epoll by itself.
        let _ = epoll::delete(&self.poller.epoll, &self.of);
        self.poller.watched()[self.number] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (a, b) = UnixDatagram::pair().expect("a pair of sockets");
        b.set_nonblocking(true).expect("non-blocking");
        (a, b)
    }

    /// Reads all there is, as the actors do.
    fn drain(watch: &Watch<&UnixDatagram>) -> usize {
        let mut count = 0;
        while watch.of.recv(&mut [0; 8]).is_ok() {
            count += 1;
        }
        watch.clear();
        count
    }

    #[test]
    fn what_was_there_before_and_what_comes_later_is_noticed() {
        let (a, b) = pair();
        a.send(b"1").expect("sent");
        let seen = block_on(async {
            let watch = Watch::new(&b).expect("watched");
            watch.readable().await;
            assert_eq!(drain(&watch), 1);
            let mut seen = Vec::new();
            let sender = std::thread::spawn(move || {
                for _ in 0..2 {
                    a.send(b"2").expect("sent");
                    std::thread::sleep(Duration::from_millis(10));
                }
                a
            });
            while seen.iter().sum::<usize>() < 2 {
                watch.readable().await;
                seen.push(drain(&watch));
            }
            drop(sender.join().expect("no panic"));
            seen
        });
        assert_eq!(seen.expect("an epoll").iter().sum::<usize>(), 2);
    }

    #[test]
    fn a_waker_of_another_thread_ends_the_sleep() {
        let (tx, rx) = smol::channel::bounded(1);
        let sender = std::thread::spawn(move || {
            for number in 0..1000 {
                smol::block_on(tx.send(number)).expect("somebody listens");
            }
        });
        let sum = block_on(async {
            let mut sum = 0;
            while let Ok(number) = rx.recv().await {
                sum += number;
            }
            sum
        });
        sender.join().expect("no panic");
        assert_eq!(sum.expect("an epoll"), 499_500);
    }

    #[test]
    fn timers_of_smol_work_here_too() {
        block_on(async {
            smol::Timer::after(Duration::from_millis(5)).await;
        })
        .expect("an epoll");
    }

    #[test]
    fn a_busy_task_does_not_starve_the_one_whose_socket_has_something() {
        let (a, b) = pair();
        let rounds = block_on(async {
            let watch = Watch::new(&b).expect("watched");
            drain(&watch);
            a.send(b"x").expect("sent");
            let mut rounds = 0u64;
            let busy = async {
                loop {
                    rounds += 1;
                    turn().await;
                }
            };
            future::or(async { watch.readable().await }, busy).await;
            rounds
        });
        assert!(rounds.expect("an epoll") < 100);
    }

    #[test]
    fn outside_of_a_poller_watching_is_an_error() {
        let (_a, b) = pair();
        assert!(Watch::new(&b).is_err());
    }

    #[test]
    fn a_watch_that_ended_leaves_its_place_to_the_next() {
        let (a, b) = pair();
        let (c, d) = pair();
        block_on(async {
            let first = Watch::new(&b).expect("watched");
            drain(&first);
            drop(first);
            let second = Watch::new(&d).expect("watched");
            drain(&second);
            a.send(b"for nobody").expect("sent");
            c.send(b"x").expect("sent");
            second.readable().await;
            assert_eq!(drain(&second), 1);
            assert_eq!(second.poller.watched().len(), 1);
        })
        .expect("an epoll");
    }
}
