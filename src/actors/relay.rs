//! Relay: owns the channels at the server and publishes them; the sockets' readers do the forwarding.
//!
//! A restart loses nothing: the table is taken up again from the view that is still published.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use xtra::{Actor, Context, Handler};

use super::ext::{Caster, Service, StopReason};
use crate::messages::coordinator::Published;
use crate::messages::relay::{Bind, Place};
use crate::proto::relaying::{RelayTable, RelayView};

/// The actor.
pub struct Relay {
    table: RelayTable,
    view: Arc<ArcSwap<RelayView>>,
    published: Caster<Published>,
    changed: bool,
    bound: Option<u64>,
}

impl Relay {
    pub fn new(view: Arc<ArcSwap<RelayView>>, published: Caster<Published>) -> Self {
        let table = RelayTable::from_view(&view.load());
        Self { table, view, published, changed: false, bound: None }
    }
}

impl Actor for Relay {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(Relay);

impl Service for Relay {
    const NAME: &'static str = "relay";

    fn settle(&mut self, _now: Instant) {
        if std::mem::take(&mut self.changed) {
            self.view.store(Arc::new(self.table.view()));
        }
        if let Some(number) = self.bound.take() {
            self.published.cast(Published(number));
        }
    }
}

impl Handler<Bind> for Relay {
    type Return = ();

    async fn handle(&mut self, Bind { number, one, other }: Bind, _: &mut Context<Self>) {
        self.bound = Some(number);
        self.changed |= self.table.bind(one, other);
    }
}

impl Handler<Place> for Relay {
    type Return = ();

    async fn handle(&mut self, Place { member, endpoint }: Place, _: &mut Context<Self>) {
        self.table.set_place(member, endpoint);
    }
}
