//! The names of servers, what they stand for, and the look-ups under way.
//!
//! An answer that gets lost costs a round: a look-up that has ended counts as none, whatever became of its answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smol::Task;

use crate::io::names::LookupError;

/// How often names are looked up while the server is away.
const AGAIN: Duration = Duration::from_secs(15);

/// What is known of one name.
#[derive(Default)]
pub struct Lookup {
    /// As of the last look-up that succeeded.
    pub addresses: Vec<SocketAddr>,
    /// Why the last one failed, if it did.
    pub error: Option<LookupError>,
    under_way: Option<Task<()>>,
}

impl Lookup {
    pub fn is_under_way(&self) -> bool {
        self.under_way.as_ref().is_some_and(|task| !task.is_finished())
    }
}

/// Of every name, in the order of the configuration.
pub struct Lookups {
    list: Vec<Lookup>,
    again_at: Option<Instant>,
}

impl Lookups {
    pub fn new(names: usize) -> Self {
        Self { list: std::iter::repeat_with(Lookup::default).take(names).collect(), again_at: None }
    }

    /// Begins those that are not under way: `begin` is given their places.
    pub fn begin(&mut self, now: Instant, begin: impl Fn(usize) -> Task<()>) {
        for (place, lookup) in self.list.iter_mut().enumerate().filter(|(_, lookup)| !lookup.is_under_way()) {
            lookup.under_way = Some(begin(place));
        }
        self.put_off(now);
    }

    /// Takes an answer. Whether all have one.
    pub fn take(&mut self, place: usize, found: Result<Vec<SocketAddr>, LookupError>, now: Instant) -> bool {
        let Some(lookup) = self.list.get_mut(place) else { return false };
        lookup.under_way = None;
        match found {
            Ok(addresses) => (lookup.addresses, lookup.error) = (addresses, None),
            Err(error) => lookup.error = Some(error),
        }
        self.put_off(now);
        !self.list.iter().any(Lookup::is_under_way)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Lookup> {
        self.list.iter()
    }

    /// When they are to be looked up again, should the server be away then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.again_at
    }

    pub fn put_off(&mut self, now: Instant) {
        self.again_at = Some(now + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Waits until whatever `begin` was made to spawn has ended.
    fn ended(lookups: &Lookups) {
        let begun = Instant::now();
        while lookups.iter().any(Lookup::is_under_way) {
            assert!(begun.elapsed() < Duration::from_secs(10), "a look-up does not end");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_name_whose_answer_got_lost_is_looked_up_again() {
        let (mut lookups, start, begun) = (Lookups::new(2), Instant::now(), Cell::new(0));
        let forget = |_| {
            begun.set(begun.get() + 1);
            smol::spawn(async {})
        };
        assert_eq!(lookups.poll_timeout(), None, "nothing was asked for");
        lookups.begin(start, forget);
        ended(&lookups);
        let again = lookups.poll_timeout().expect("no answer came, and it is looked again");
        assert_eq!((again, begun.get()), (start + AGAIN, 2));
        lookups.begin(again, forget);
        assert_eq!(begun.get(), 4, "both");
        ended(&lookups);
        assert!(lookups.take(0, Ok(vec![([192, 0, 2, 1], 5).into()]), again), "the other has ended without a word");
    }

    #[test]
    fn a_look_up_that_takes_its_time_is_not_begun_twice() {
        let (mut lookups, start, begun) = (Lookups::new(1), Instant::now(), Cell::new(0));
        let wait = |_| {
            begun.set(begun.get() + 1);
            smol::spawn(std::future::pending())
        };
        lookups.begin(start, wait);
        lookups.begin(start + AGAIN, wait);
        assert_eq!((begun.get(), lookups.poll_timeout()), (1, Some(start + AGAIN * 2)));
        assert!(lookups.take(0, Err(LookupError::NoAddress), start));
        assert!(lookups.iter().all(|lookup| !lookup.is_under_way() && lookup.error.is_some()));
    }
}
