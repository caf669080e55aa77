//! What people ask of peers (`ping`, `why`), and what peers ask of us in their name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Output, Peer, Peers};
use crate::counters::DropReason;
use crate::ids::{PeerIdx, Route};
use crate::proto::asking::{Answer, Question};
use crate::proto::session::Session;
use crate::wire::control::Control;
use crate::wire::why::Side;

/// A peer's questions make us try its addresses again at most this often.
const TRY_AGAIN: Duration = Duration::from_secs(3);

impl Peer {
    /// What is in use is measured, and what was given up on is tried again, so that an account is about this moment.
    fn try_again(&mut self, now: Instant) {
        self.paths.wake(now);
        self.paths.begin_rounds(now);
        self.probing = true;
    }
}

impl Peers {
    /// Puts a question to a peer, with whom a session is made if there is none. `id` is the asker's, at random; the
    /// answer comes with it, at `end` at the latest.
    pub fn ask(&mut self, idx: PeerIdx, question: Question, id: u64, end: Instant, now: Instant) {
        let member = self.peers.get(&idx).and_then(|peer| self.map.get(&peer.key));
        if !member.is_some_and(|member| self.trust.holds(&member.certificate)) {
            self.answered(id, Answer::NotAMember);
            return;
        }
        if !self.asking.add(id, idx, question, end) {
            self.answered(id, Answer::TooMany);
            return;
        }
        if let Some(peer) = self.peers.get_mut(&idx)
            && peer.link.session().is_some()
        {
            peer.probing = true;
            match question {
                Question::Ping => peer.paths.wake(now),
                Question::Why => peer.try_again(now),
            }
            self.reschedule(idx);
        }
        self.want(idx, now);
        self.send_questions(idx, now);
    }

    /// What is known here of the ways to a peer; what only the machine knows is for the owner to add.
    pub fn account(&self, idx: PeerIdx) -> Option<Side> {
        let peer = self.peers.get(&idx)?;
        let mut side = Side { own: self.candidates.1.clone(), ..Side::default() };
        side.tries = peer.tried.list(&peer.candidates);
        side.set(Side::DIRECT, self.direct);
        Some(side)
    }

    /// Whether there is an address of a peer to try without the server.
    pub fn is_cached(&self, idx: PeerIdx) -> bool {
        let peer = self.peers.get(&idx);
        let last = peer.and_then(|peer| self.map.get(&peer.key)).and_then(|member| member.last_direct);
        self.direct && (last.is_some() || peer.is_some_and(|peer| !peer.candidates.is_empty()))
    }

    /// Gives a peer that asked our account.
    pub fn tell_account(&mut self, idx: PeerIdx, nonce: u64, side: Side) {
        // By the way our own frames take, wherever the question came from: it is longer than that.
        self.say(idx, &Control::WhySay { nonce, side: Box::new(side) });
    }

    /// Sends what waits for a session with this peer, if there is one.
    pub(super) fn send_questions(&mut self, idx: PeerIdx, now: Instant) {
        let Some(peer) = self.peers.get(&idx) else { return };
        let (Some(session), Some(_)) = (peer.link.session(), peer.paths.active()) else { return };
        if !session.capabilities.has_words() {
            for id in self.asking.end_all(idx) {
                self.answered(id, Answer::NotUnderstood);
            }
            return;
        }
        for question in self.asking.to_send(idx, now) {
            self.say(idx, &question);
        }
    }

    /// All questions to a peer end: it cannot be reached, or is no member any more.
    pub(super) fn end_questions(&mut self, idx: PeerIdx, answer: &Answer) {
        for id in self.asking.end_all(idx) {
            self.answered(id, answer.clone());
        }
    }

    pub(super) fn run_questions(&mut self, now: Instant) {
        for (id, answer) in self.asking.expire(now) {
            self.answered(id, answer);
        }
        for idx in self.asking.waiting_for(now) {
            self.send_questions(idx, now);
        }
    }

    /// A message of the kinds above, authentic.
    pub(super) fn handle_words(
        &mut self,
        idx: PeerIdx,
        session: &Arc<Session>,
        via: Route,
        message: Control,
        now: Instant,
    ) {
        match message {
            Control::Ping { id } => {
                let pong = Control::Pong { id, observed: via.endpoint.addr };
                if self.may_answer(idx, now)
                    && let Ok(datagram) = session.seal_control(&pong.to_bytes())
                {
                    self.send(via, datagram);
                }
            }
            Control::Pong { id, observed } => {
                if let Some(answer) = self.asking.pong(id, idx, via, observed, now) {
                    self.answered(id, answer);
                }
            }
            Control::WhyAsk { nonce } if self.may_answer(idx, now) => {
                // The question is repeated until it is answered.
                if let Some(peer) = self.peers.get_mut(&idx)
                    && peer.tried_again.is_none_or(|at| now.saturating_duration_since(at) >= TRY_AGAIN)
                {
                    peer.tried_again = Some(now);
                    peer.try_again(now);
                    self.reschedule(idx);
                }
                self.outputs.push_back(Output::Asked { peer: idx, nonce });
            }
            Control::WhySay { nonce, side } => {
                if let Some(answer) = self.asking.account(nonce, idx, side) {
                    self.answered(nonce, answer);
                }
            }
            _ => {}
        }
    }

    fn may_answer(&mut self, idx: PeerIdx, now: Instant) -> bool {
        let may = self.peers.get_mut(&idx).is_some_and(|peer| peer.answers.take(now));
        if !may {
            self.outputs.push_back(Output::Dropped(DropReason::QuestionFlood));
        }
        may
    }

    fn answered(&mut self, id: u64, answer: Answer) {
        self.outputs.push_back(Output::Answered { id, answer });
    }
}
