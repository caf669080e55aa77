//! MacLearning: owns the forwarding database and publishes it.
//!
//! A restart loses nothing: the core is seeded from the view that is still published, and forwarding never stopped.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use log::Level;
use xtra::{Actor, Context, Handler};

use super::ext::{Service, StopReason};
use crate::logging;
use crate::messages::mac_learning::{Learn, Members, Moved};
use crate::proto::fdb::Fdb;
use crate::view::FdbView;

/// The actor.
pub struct MacLearning {
    fdb: Fdb,
    view: Arc<ArcSwap<FdbView>>,
    changed: bool,
}

impl MacLearning {
    pub fn new(view: Arc<ArcSwap<FdbView>>) -> Self {
        let fdb = Fdb::from_view(&view.load(), Instant::now());
        Self { fdb, view, changed: false }
    }
}

impl Actor for MacLearning {
    type Stop = StopReason;

    async fn stopped(self) -> StopReason {
        StopReason::Requested
    }
}

super::ext::answers_pings!(MacLearning);

impl Service for MacLearning {
    const NAME: &'static str = "mac_learning";

    fn next_timeout(&self) -> Option<Instant> {
        self.fdb.poll_timeout()
    }

    fn on_timeout(&mut self, now: Instant) {
        self.fdb.handle_timeout(now);
    }

    fn settle(&mut self, now: Instant) {
        while let Some(event) = self.fdb.poll_event() {
            logging::limited(now, Level::Debug, "stations", format_args!("forwarding database: {event:?}"));
            self.changed = true;
        }
        if std::mem::take(&mut self.changed) {
            self.view.store(Arc::new(self.fdb.view()));
        }
    }
}

impl Handler<Learn> for MacLearning {
    type Return = ();

    async fn handle(&mut self, Learn(sightings): Learn, _: &mut Context<Self>) {
        let now = Instant::now();
        for sighting in sightings {
            self.fdb.learn(sighting, now);
        }
    }
}

impl Handler<Moved> for MacLearning {
    type Return = ();

    async fn handle(&mut self, Moved(stations): Moved, _: &mut Context<Self>) {
        stations.into_iter().for_each(|(vlan, mac)| self.fdb.forget(vlan, mac));
    }
}

impl Handler<Members> for MacLearning {
    type Return = ();

    async fn handle(&mut self, members: Members, _: &mut Context<Self>) {
        if let Some(own) = members.own {
            self.fdb.set_own(own);
        }
        members.gone.into_iter().for_each(|peer| self.fdb.forget_peer(peer));
        self.fdb.set_members(members.stations.into_iter());
        self.changed = true;
    }
}
