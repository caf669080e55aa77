//! Turns: a test that measures has the machine for itself, and a test that does not end is told by its name.
//!
//! Test binaries take it in by its path.

use std::fs;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

/// No test takes as long, even on a machine with much else to do: one that does will never end.
const LIMIT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(200);

static TURNS: RwLock<()> = RwLock::new(());

/// A test's time on the machine, until it is dropped.
pub struct Turn {
    ended: Arc<AtomicBool>,
    _kind: Kind,
}

#[allow(dead_code, reason = "held, never read")]
enum Kind {
    Alone(RwLockWriteGuard<'static, ()>),
    Beside(RwLockReadGuard<'static, ()>),
}

/// Held by a test that measures: no other one runs beside it.
pub fn alone() -> Turn {
    turn(Kind::Alone(TURNS.write().unwrap_or_else(PoisonError::into_inner)))
}

/// Held by every other test.
pub fn beside() -> Turn {
    turn(Kind::Beside(TURNS.read().unwrap_or_else(PoisonError::into_inner)))
}

/// `EPS_LONG=1` runs the tests at the lengths of their criteria.
pub fn is_long() -> bool {
    std::env::var_os("EPS_LONG").is_some_and(|value| value == "1")
}

fn turn(kind: Kind) -> Turn {
    let ended = Arc::new(AtomicBool::new(false));
    if !is_long() && std::env::var_os("EPS_SOAK_SECONDS").is_none() {
        let name = thread::current().name().unwrap_or("a test").to_owned();
        let (start, over) = (Instant::now(), Arc::clone(&ended));
        thread::spawn(move || {
            while !over.load(SeqCst) {
                if start.elapsed() > LIMIT {
                    give_up(&name);
                }
                thread::sleep(LOOK);
            }
        });
    }
    Turn { ended, _kind: kind }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
    }
}

/// Ends the whole run: a test that hangs cannot be stopped alone. The namespaces and programs end with the process.
fn give_up(name: &str) -> ! {
    println!("test {name} ... FAILED\n{name} did not end within {} s", LIMIT.as_secs());
    let me = process::id().to_string();
    println!("threads (name, waiting in):");
    for dir in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap_or_default();
        println!("  {} {}", read("comm").trim(), read("wchan").trim());
    }
    println!("programs it started:");
    for dir in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap_or_default();
        if read("status").lines().any(|line| line.strip_prefix("PPid:").is_some_and(|parent| parent.trim() == me)) {
            println!("  {} {}", read("wchan").trim(), read("cmdline").replace('\0', " "));
        }
    }
    process::exit(1)
}
