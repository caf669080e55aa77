//! Stats: takes one immutable snapshot a minute and on demand; the scorecard is made from it.
//!
//! A restart loses nothing but the last snapshot: counters live with whoever counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use xtra::{Actor, Context, Handler};

use super::ext::{Service, StopReason};
use crate::messages::stats::TakeSnapshot;

/// How often the scorecard is written.
const INTERVAL: Duration = Duration::from_secs(60);

/// Makes a snapshot of the node, of either role.
pub type Snapshot = Arc<dyn Fn() -> Value + Send + Sync>;

/// The actor.
pub struct Stats {
    snapshot: Snapshot,
    file: Option<PathBuf>,
    at: Instant,
    /// Counters of the last snapshot, for what the window adds up to.
    last: Option<(Instant, Value)>,
}

impl Stats {
    /// `file` is rewritten each minute, and once at the start.
    pub fn new(snapshot: Snapshot, file: Option<PathBuf>) -> Self {
        Self { snapshot, file, at: Instant::now() + Duration::from_secs(1), last: None }
    }

    /// A snapshot with the differences to the last one.
    fn take(&mut self, now: Instant) -> Value {
        let mut card = (self.snapshot)();
        let totals = card["totals"].clone();
        if let Some((then, before)) = &self.last {
            card["window_seconds"] = now.saturating_duration_since(*then).as_secs_f64().into();
            card["window"] = difference(&totals, before);
        }
        self.last = Some((now, totals));
        card
    }
}

fn difference(totals: &Value, before: &Value) -> Value {
    let Some(totals) = totals.as_object() else { return Value::Null };
    let of = |name: &String| before[name].as_u64().unwrap_or(0);
    totals
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), Value::from(value.as_u64()?.saturating_sub(of(name))))))
        .collect::<serde_json::Map<_, _>>()
        .into()
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
        self.file.as_ref().map(|_| self.at)
    }

    fn on_timeout(&mut self, now: Instant) {
        self.at = now + INTERVAL;
        let card = self.take(now);
        let Some(file) = &self.file else { return };
        let mut text = serde_json::to_vec_pretty(&card).expect("a scorecard has only text keys");
        text.push(b'\n');
        if let Err(error) = crate::io::files::write_atomic(file, &text, 0o644) {
            log::warn!("the scorecard cannot be written: {error}");
        }
    }
}

impl Handler<TakeSnapshot> for Stats {
    type Return = Value;

    async fn handle(&mut self, TakeSnapshot: TakeSnapshot, _: &mut Context<Self>) -> Value {
        // A question in between does not move the window of the file.
        let last = self.last.clone();
        let card = self.take(Instant::now());
        if last.is_some() {
            self.last = last;
        }
        card
    }
}
