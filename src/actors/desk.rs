//! A desk: file work that an actor leaves to a thread that may wait for the disk, in order, and without a heap of it.

use std::sync::{Arc, Mutex, PoisonError};

use smol::Task;

type Work = Box<dyn FnOnce() + Send>;

/// Takes work that writes down a state. One piece is being done and one waits: what comes meanwhile takes its place,
/// since a later state makes an earlier one needless.
///
/// With its owner goes what has not been begun.
#[derive(Default)]
pub struct WriteDesk {
    waiting: Arc<Mutex<Option<Work>>>,
    task: Option<Task<()>>,
}

impl WriteDesk {
    pub fn put(&mut self, work: impl FnOnce() + Send + 'static) {
        let before = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).replace(Box::new(work));
        if before.is_some() {
            // Whoever was to do that does this.
            return;
        }
        let (before, waiting) = (self.task.take(), self.waiting.clone());
        self.task = Some(smol::spawn(async move {
            if let Some(before) = before {
                before.await;
            }
            smol::unblock(move || {
                let work = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(work) = work {
                    work();
                }
            })
            .await;
        }));
    }

    /// Whether all of it is done.
    pub fn is_clear(&self) -> bool {
        self.task.as_ref().is_none_or(Task::is_finished)
    }

    /// Ends when all of it is done. Nothing is to be put here any more.
    pub fn cleared(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let task = self.task.take();
        async move {
            if let Some(task) = task {
                task.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slow_disk_holds_nobody_up_and_gets_the_first_and_the_last_of_what_came() {
        let (mut desk, done) = (WriteDesk::default(), Arc::new(Mutex::new(Vec::new())));
        let (begun, has_begun) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        let noted = done.clone();
        desk.put(move || {
            begun.send(()).expect("somebody waits");
            wait.recv().expect("told to go on");
            noted.lock().expect("whole").push(0);
        });
        has_begun.recv_timeout(Duration::from_secs(10)).expect("begun, beside us");
        for number in 1..=1000 {
            let noted = done.clone();
            desk.put(move || noted.lock().expect("whole").push(number));
        }
        assert!(done.lock().expect("whole").is_empty() && !desk.is_clear(), "the first is still being done");
        go_on.send(()).expect("it waits");
        smol::block_on(desk.cleared());
        assert!(desk.is_clear());
        assert_eq!(*done.lock().expect("whole"), [0, 1000]);
    }
}
