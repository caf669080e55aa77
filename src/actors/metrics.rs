//! Metrics: serves the node's counters over HTTP, for Prometheus.
//!
//! Each answer is made from a snapshot of that moment. A restart loses the connections of the moment; the socket is held
//! by the wiring.

use std::sync::Arc;
use std::time::Instant;

use xtra::{Actor, Mailbox};

use super::ext::{Service, StopReason};
use crate::io::http::PageListener;
use crate::report::prometheus::{CONTENT_TYPE, page};
use crate::report::snapshot::Sampler;

/// Where Prometheus looks if nobody says otherwise.
const PATH: &str = "/metrics";

/// The actor.
pub struct Metrics {
    listener: Arc<PageListener>,
    sampler: Arc<Sampler>,
}

impl Metrics {
    pub fn new(listener: Arc<PageListener>, sampler: Arc<Sampler>) -> Self {
        Self { listener, sampler }
    }
}

impl Actor for Metrics {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

impl Service for Metrics {
    const NAME: &'static str = "metrics";

    /// Nobody sends it messages: it serves until the supervisor drops it.
    async fn run(&mut self, _: &Mailbox<Self>) -> StopReason {
        self.listener.serve(PATH, CONTENT_TYPE, || page(&self.sampler.take(Instant::now()))).await;
        StopReason::Failed("the metrics socket was closed".into())
    }
}
