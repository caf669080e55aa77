//! The way of a frame, both directions: direct calls on views, sessions and batches, no mailbox.
//!
//! [`Egress`] belongs to the TAP's reader, [`Ingress`] to the reader of a socket. Both load each view once per batch.
//! Every decision is a core's (`proto::forward`, `proto::guard`, `proto::session`); here they are put in a row, and
//! what was dropped is counted by its reason.

mod egress;
mod ingress;
mod seal;

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::counters::{Counters, add};
use crate::proto::session::Epoch;
use crate::view::{FdbView, PeerView, SelfView, ServerView};
use crate::wire::header::Kind;

pub use self::egress::{Egress, EgressScope, send_staged};
pub use self::ingress::{Ingress, IngressCasts, IngressScope, hint_budget};
pub use self::seal::FRAME_MAX;

/// Everything published, shared by all who read it.
#[derive(Clone)]
pub struct Views {
    pub epoch: Epoch,
    pub peers: Arc<ArcSwap<PeerView>>,
    pub fdb: Arc<ArcSwap<FdbView>>,
    pub own: Arc<ArcSwap<SelfView>>,
    pub server: Arc<ArcSwap<ServerView>>,
    pub counters: Arc<Counters>,
}

/// Counts a handshake datagram that is about to be sent.
pub fn count_handshake(counters: &Counters, datagram: &[u8]) {
    match Kind::of(datagram) {
        Some(Kind::Init | Kind::Enrol1) => add(&counters.handshakes_sent, 1),
        Some(Kind::Resp | Kind::Enrol2) => add(&counters.handshakes_answered, 1),
        Some(
            Kind::Data | Kind::Ctrl | Kind::Agg | Kind::Frag | Kind::Cookie | Kind::Hint | Kind::Relay | Kind::Enrol3,
        )
        | None => {}
    }
}
