//! Notices that the wall clock was set, or that the machine slept.
//!
//! Nothing in the protocol asks the wall clock: timers run on the monotonic one, and certificates expire by epochs.
//! An operator who reads the log's times should know all the same why they jump.

use std::fmt;
use std::time::{Duration, Instant};

/// Smaller steps are what time servers do all day.
const NOTICED: Duration = Duration::from_secs(5);

/// Compares the wall clock with the monotonic one, from look to look.
#[derive(Debug, Clone, Copy, Default)]
pub struct ClockWatch(Option<(Instant, Duration)>);

/// How far the wall clock moved beyond the time that passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    Forward(Duration),
    Back(Duration),
}

impl ClockWatch {
    /// `unix` is the wall clock's time since 1970.
    pub fn look(&mut self, now: Instant, unix: Duration) -> Option<Jump> {
        let (then, before) = self.0.replace((now, unix))?;
        let expected = before + now.saturating_duration_since(then);
        let jump = if unix > expected { Jump::Forward(unix - expected) } else { Jump::Back(expected - unix) };
        (jump.by() >= NOTICED).then_some(jump)
    }
}

impl Jump {
    fn by(self) -> Duration {
        match self {
            Self::Forward(by) | Self::Back(by) => by,
        }
    }
}

impl fmt::Display for Jump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.by().as_secs();
        match self {
            Self::Forward(_) => write!(f, "the clock was set forward by {seconds} s, or this machine slept")?,
            Self::Back(_) => write!(f, "the clock was set back by {seconds} s")?,
        }
        f.write_str("; the network does not go by it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_moved_by_seconds_is_told() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut watch = ClockWatch::default();
        let table = [
            (0, 1_000_000, None),
            (1, 1_000_001, None),
            (2, 1_000_006, None),
            (3, 1_003_607, Some(Jump::Forward(seconds(3600)))),
            (4, 1_003_608, None),
            (14, 1_000_000, Some(Jump::Back(seconds(3618)))),
            (15, 0, Some(Jump::Back(seconds(1_000_001)))),
        ];
        for (passed, unix, told) in table {
            assert_eq!(watch.look(start + seconds(passed), seconds(unix)), told, "after {passed} s");
        }
        let text = Jump::Back(seconds(3600)).to_string();
        assert_eq!(text, "the clock was set back by 3600 s; the network does not go by it");
    }
}
