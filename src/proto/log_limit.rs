//! How many lines of one kind the log takes in a minute, where somebody else decides how often there is one to say.
//!
//! A kind is a place in the code, so there are few; each has a budget for each minute. What goes beyond it is counted,
//! and summed up in one line when the minute is over. Counters of the node count all of it anyway.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// The lines of a kind that are said in a window: enough to see what goes on and from where, too few to fill a disk
/// (20 lines a minute of 200 bytes are 6 MB a day).
pub const BUDGET: u32 = 20;
/// The window: the minute that statistics have, too.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The core. Owners ask [`admits`](Self::admits) before each line, and [`poll_summary`](Self::poll_summary) before that
/// and now and then.
#[derive(Debug, Default)]
pub struct LogLimit {
    kinds: BTreeMap<&'static str, Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    said: u32,
    held_back: u64,
}

/// Lines that were not said, of a window that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub kind: &'static str,
    pub held_back: u64,
}

impl LogLimit {
    pub const fn new() -> Self {
        Self { kinds: BTreeMap::new() }
    }

    /// Whether a line of this kind may be said; if not, it is counted.
    pub fn admits(&mut self, kind: &'static str, now: Instant) -> bool {
        let window = self.kinds.entry(kind).or_insert(Window { since: now, said: 0, held_back: 0 });
        if window.is_over(now) && window.held_back == 0 {
            *window = Window { since: now, said: 0, held_back: 0 };
        }
        // A window whose summary nobody has asked for goes on: nothing is left uncounted.
        let admitted = window.said < BUDGET;
        if admitted {
            window.said += 1;
        } else {
            window.held_back += 1;
        }
        admitted
    }

    /// What was held back in windows that are over, one kind after the other.
    pub fn poll_summary(&mut self, now: Instant) -> Option<Summary> {
        let (kind, window) = self.kinds.iter_mut().find(|(_, window)| window.is_over(now) && window.held_back > 0)?;
        let summary = Summary { kind, held_back: window.held_back };
        *window = Window { since: now, said: 0, held_back: 0 };
        Some(summary)
    }
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} more like this in the last minute", self.kind, self.held_back)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_its_budget_each_minute_and_what_is_beyond_is_summed_up_once() {
        let (mut limit, start) = (LogLimit::default(), Instant::now());
        let said = (0..1000).filter(|n| limit.admits("refused", start + Duration::from_millis(*n))).count();
        assert_eq!(said, BUDGET as usize);
        assert_eq!(limit.poll_summary(start + WINDOW - Duration::from_millis(1)), None);
        let summary = limit.poll_summary(start + WINDOW).expect("a summary");
        assert_eq!(summary.to_string(), "refused: 980 more like this in the last minute");
        assert_eq!(limit.poll_summary(start + WINDOW), None);
        assert!(limit.admits("refused", start + WINDOW));
    }

    #[test]
    fn kinds_do_not_take_from_each_other() {
        let (mut limit, now) = (LogLimit::default(), Instant::now());
        assert_eq!((0..BUDGET).filter(|_| limit.admits("one", now)).count(), BUDGET as usize);
        assert!(!limit.admits("one", now));
        assert!(limit.admits("other", now));
    }

    #[test]
    fn few_lines_are_all_said_and_never_summed_up() {
        let (mut limit, start) = (LogLimit::default(), Instant::now());
        for second in (0..3600).step_by(4) {
            let now = start + Duration::from_secs(second);
            assert_eq!(limit.poll_summary(now), None);
            assert!(limit.admits("moved", now), "after {second} s");
        }
    }
}
