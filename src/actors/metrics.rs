//! Metrics: serves the node's counters over HTTP, for Prometheus.
//!
//! Each answer is made from a snapshot of that moment. A restart loses the connections of the moment; the socket is held
//! by the wiring.

use std::sync::Arc;
use std::time::Instant;

use futures_lite::future;
use xtra::{Actor, Mailbox};

use super::ext::{Service, StopReason, only_messages};
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

super::ext::answers_pings!(Metrics);

impl Service for Metrics {
    const NAME: &'static str = "metrics";

    /// Nobody sends it messages: it serves until the supervisor drops it.
    async fn run(&mut self, mailbox: &Mailbox<Self>) -> StopReason {
        let (listener, sampler) = (self.listener.clone(), self.sampler.clone());
        let serve = async {
            listener.serve(PATH, CONTENT_TYPE, || page(&sampler.take(Instant::now()))).await;
            StopReason::Failed("the metrics socket was closed".into())
        };
        future::or(serve, only_messages(self, mailbox)).await
    }
}
