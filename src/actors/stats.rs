//! Stats: takes one immutable snapshot a minute; the scorecard, the log's statistics and the map are made from it.
//!
//! A restart loses nothing: counters live with whoever counts, and the windows in the sampler.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smol::Task;
use xtra::Actor;

use super::ext::{Service, StopReason};
use crate::config::ScorecardFormat;
use crate::counters::add;
use crate::io::files::write_atomic;
use crate::report::snapshot::{INTERVAL, Sampler, Snapshot};
use crate::report::{map, scorecard, stats_text};

/// The first scorecard comes soon after the start, for whoever waits for it.
const FIRST: Duration = Duration::from_secs(1);
/// How often the map is written when nothing changes.
const MAP_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// How often a change of the map is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// Readable by everybody: monitoring has its own user, and there is no secret in any of it.
const MODE: u32 = 0o644;

/// What is written, where.
#[derive(Debug, Clone, Default)]
pub struct Outputs {
    /// Statistics go to the log.
    pub log: bool,
    pub scorecard: Option<(PathBuf, ScorecardFormat)>,
    pub map: Option<PathBuf>,
}

/// The actor.
pub struct Stats {
    sampler: Arc<Sampler>,
    outputs: Outputs,
    first_at: Option<Instant>,
    map: MapWriter,
    /// Files are written beside the actors; a disk that hangs must not hang the control plane.
    writing: [Option<Task<()>>; 2],
}

/// When the map is due.
#[derive(Debug, Default)]
struct MapWriter {
    look_at: Option<Instant>,
    /// When it was last written, and what it showed.
    written: Option<(Instant, u64)>,
}

impl MapWriter {
    /// Whether a map of this shape is written now.
    fn is_due(&mut self, shape: u64, now: Instant) -> bool {
        let due = match self.written {
            None => true,
            Some((at, last)) => {
                let age = now.saturating_duration_since(at);
                age >= MAP_INTERVAL || last != shape && age >= INTERVAL
            }
        };
        if due {
            self.written = Some((now, shape));
        }
        due
    }
}

/// Of the two files.
#[derive(Debug, Clone, Copy)]
enum File {
    Scorecard = 0,
    Map = 1,
}

impl Stats {
    pub fn new(sampler: Arc<Sampler>, outputs: Outputs) -> Self {
        let first = Instant::now() + FIRST;
        let map = MapWriter { look_at: outputs.map.as_ref().map(|_| first), written: None };
        Self { sampler, outputs, first_at: Some(first), map, writing: [None, None] }
    }

    fn minute(&mut self, now: Instant) {
        let snapshot = self.sampler.take_minute(now);
        if self.outputs.log {
            for entry in stats_text::entries(&snapshot) {
                log::info!("{entry}");
            }
        }
        self.write_scorecard(&snapshot);
    }

    fn write_scorecard(&mut self, snapshot: &Snapshot) {
        if let Some((path, format)) = self.outputs.scorecard.clone() {
            self.write(File::Scorecard, path, scorecard(snapshot, format));
        }
    }

    fn look_at_map(&mut self, now: Instant) {
        let Some(path) = self.outputs.map.clone() else { return };
        let snapshot = self.sampler.take(now);
        let Some(shape) = map::shape(&snapshot) else { return };
        if self.map.is_due(shape, now) {
            self.write(File::Map, path, map::dot(&snapshot));
        }
    }

    /// Replaces a file, or leaves the old one as it is: then that is counted, and told once for each time.
    fn write(&mut self, file: File, path: PathBuf, text: String) {
        let what = match file {
            File::Scorecard => "scorecard",
            File::Map => "map",
        };
        let sampler = self.sampler.clone();
        let place = &mut self.writing[file as usize];
        if place.as_ref().is_some_and(|task| !task.is_finished()) {
            add(&sampler.counters().output_failures, 1);
            log::warn!(
                "the {what} of the last time is still being written to {}; this one is left out",
                path.display()
            );
            return;
        }
        *place = Some(smol::unblock(move || {
            if let Err(error) = write_atomic(&path, text.as_bytes(), MODE) {
                add(&sampler.counters().output_failures, 1);
                log::warn!("the {what} cannot be written: {error}");
            }
        }));
    }
}

impl Actor for Stats {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(Stats);

impl Service for Stats {
    const NAME: &'static str = "stats";

    fn next_timeout(&self) -> Option<Instant> {
        [self.first_at, self.map.look_at, Some(self.sampler.minute_ends())].into_iter().flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        if self.first_at.take_if(|at| now >= *at).is_some() {
            let snapshot = self.sampler.take(now);
            self.write_scorecard(&snapshot);
        }
        if now >= self.sampler.minute_ends() {
            self.minute(now);
        }
        if self.map.look_at.is_some_and(|at| now >= at) {
            self.map.look_at = Some(now + LOOK_INTERVAL);
            self.look_at_map(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_written_at_once_each_5_minutes_and_on_change_once_a_minute_at_most() {
        let start = Instant::now();
        let mut map = MapWriter::default();
        let mut due_at = |seconds: u64, shape: u64| map.is_due(shape, start + Duration::from_secs(seconds));
        assert!(due_at(0, 1), "the first");
        assert!(!due_at(2, 2), "a change within the minute");
        assert!(!due_at(58, 2));
        assert!(due_at(60, 2), "then it is drawn");
        assert!(!due_at(200, 2), "no change");
        assert!(!due_at(359, 2));
        assert!(due_at(360, 2), "5 minutes");
        assert!(!due_at(361, 3));
        assert!(due_at(430, 4), "a change after a quiet minute at once");
    }
}
