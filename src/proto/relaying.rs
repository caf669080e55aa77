//! Relay channels at the server: which token belongs to whom, and what it becomes on the other leg.
//!
//! A relay holds no keys. It checks that a token comes from where its owner last spoke, writes the other leg's token in
//! its place and sends the datagram on.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use foldhash::quality::RandomState;

use crate::counters::DropReason;
use crate::ids::{ChannelToken, Endpoint, PeerIdx};
use crate::wire::relay;

/// Where a member is at this moment; shared by all its channels, so that a move costs the same however many it has.
type Place = Arc<ArcSwapOption<Endpoint>>;

/// One leg of a channel.
#[derive(Debug, Clone)]
struct Leg {
    owner: Place,
    other: Place,
    other_token: ChannelToken,
    members: (PeerIdx, PeerIdx),
}

/// The channels, as the sockets read them.
#[derive(Debug, Clone, Default)]
pub struct RelayView {
    legs: HashMap<ChannelToken, Leg, RandomState>,
}

impl RelayView {
    /// Makes a RELAY datagram ready for its other leg and says where that goes. Hot: no allocation.
    pub fn forward(&self, from: Endpoint, datagram: &mut [u8]) -> Result<Endpoint, DropReason> {
        let token = relay::parse(datagram)?;
        let leg = self.legs.get(&token).ok_or(DropReason::BadChannel)?;
        if leg.owner.load().as_deref() != Some(&from) {
            return Err(DropReason::BadChannel);
        }
        let to = leg.other.load().as_deref().copied().ok_or(DropReason::Unreachable)?;
        relay::rewrite(datagram, leg.other_token);
        Ok(to)
    }

    /// Makes a train of datagrams of `stride` bytes ready for their other leg and says where they go, if they are all
    /// of one channel and in order; else nothing is changed and each is a case of its own. Hot: no allocation.
    pub fn forward_train(&self, from: Endpoint, train: &mut [u8], stride: usize) -> Option<Endpoint> {
        let mut datagrams = train.chunks_mut(stride);
        let first = datagrams.next()?;
        let token = relay::parse(first).ok()?;
        if !datagrams.all(|datagram| relay::parse(datagram) == Ok(token)) {
            return None;
        }
        let leg = self.legs.get(&token)?;
        if leg.owner.load().as_deref() != Some(&from) {
            return None;
        }
        let to = leg.other.load().as_deref().copied()?;
        train.chunks_mut(stride).for_each(|datagram| relay::rewrite(datagram, leg.other_token));
        Some(to)
    }

    /// Channels, two legs each.
    pub fn channels(&self) -> usize {
        self.legs.len() / 2
    }
}

/// The table the view is made from.
#[derive(Debug, Default)]
pub struct RelayTable {
    view: RelayView,
    places: HashMap<PeerIdx, Place, RandomState>,
}

impl RelayTable {
    /// Takes a view up again (the actor was restarted); channels and places go on.
    pub fn from_view(view: &RelayView) -> Self {
        let places = view.legs.values().map(|leg| (leg.members.0, leg.owner.clone())).collect();
        Self { view: view.clone(), places }
    }

    /// The published form.
    pub fn view(&self) -> RelayView {
        self.view.clone()
    }

    /// A channel between two members. `true` if the view has changed.
    pub fn bind(&mut self, one: (PeerIdx, ChannelToken), other: (PeerIdx, ChannelToken)) -> bool {
        if self.view.legs.get(&one.1).is_some_and(|leg| leg.other_token == other.1) {
            return false;
        }
        let (place_one, place_other) = (self.place(one.0), self.place(other.0));
        let leg = |owner: &Place, far: &Place, other_token, members| Leg {
            owner: owner.clone(),
            other: far.clone(),
            other_token,
            members,
        };
        self.view.legs.insert(one.1, leg(&place_one, &place_other, other.1, (one.0, other.0)));
        self.view.legs.insert(other.1, leg(&place_other, &place_one, one.1, (other.0, one.0)));
        true
    }

    /// Where a member is; `None` while it is offline. Seen by all its channels at once.
    pub fn set_place(&mut self, member: PeerIdx, endpoint: Option<Endpoint>) {
        self.place(member).store(endpoint.map(Arc::new));
    }

    fn place(&mut self, member: PeerIdx) -> Place {
        self.places.entry(member).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> Endpoint {
        Endpoint::udp(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn a_token_works_from_its_owners_address_only() {
        let mut table = RelayTable::default();
        let (one, other) = ((PeerIdx(1), ChannelToken(11)), (PeerIdx(2), ChannelToken(22)));
        table.set_place(PeerIdx(1), Some(endpoint(1)));
        assert!(table.bind(one, other));
        assert!(!table.bind(one, other), "known");
        let view = table.view();
        let datagram = || [&relay::header(ChannelToken(11))[..], &[0xe0; 20]].concat();

        assert_eq!(view.forward(endpoint(1), &mut datagram()), Err(DropReason::Unreachable), "the other is offline");
        table.set_place(PeerIdx(2), Some(endpoint(2)));
        let mut forwarded = datagram();
        assert_eq!(view.forward(endpoint(1), &mut forwarded), Ok(endpoint(2)));
        assert_eq!(relay::parse(&forwarded), Ok(ChannelToken(22)));
        assert_eq!(view.forward(endpoint(3), &mut datagram()), Err(DropReason::BadChannel), "stolen");
        let length = datagram().len();
        let mut train = datagram().repeat(3);
        assert_eq!(view.forward_train(endpoint(3), &mut train, length), None, "stolen");
        assert_eq!(view.forward_train(endpoint(1), &mut train, length), Some(endpoint(2)));
        assert!(train.chunks(length).all(|datagram| relay::parse(datagram) == Ok(ChannelToken(22))));
        let mut mixed = [datagram(), relay::header(ChannelToken(22)).to_vec(), vec![0xe0; 20]].concat();
        assert_eq!(view.forward_train(endpoint(1), &mut mixed, length), None, "two channels");
        let mut guessed = [&relay::header(ChannelToken(12))[..], &[0xe0; 20]].concat();
        assert_eq!(view.forward(endpoint(1), &mut guessed), Err(DropReason::BadChannel));

        let again = RelayTable::from_view(&view);
        assert_eq!(again.view().forward(endpoint(1), &mut datagram()), Ok(endpoint(2)), "a restart loses nothing");
    }
}
