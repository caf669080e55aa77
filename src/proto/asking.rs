//! Questions that people have put to peers and that wait for an answer: pings, and accounts of why.
//!
//! A question waits until there is a session, leaves, and ends with its answer or in time. A ping leaves once, so that
//! what gets lost is seen; a question for an account is repeated, because only its answer matters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::ids::{PeerIdx, Route};
use crate::wire::control::Control;
use crate::wire::why::Side;

/// Questions that wait at the same time, of all people together.
pub const ASKED_MAX: usize = 64;
/// A question for an account is repeated after this.
const REPEAT: Duration = Duration::from_millis(400);
/// A peer's own questions are answered no more often than this, but for a burst of [`ANSWERS_MAX`].
const ANSWER_EVERY: Duration = Duration::from_millis(100);
/// The burst.
const ANSWERS_MAX: u32 = 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    Ping,
    Why,
}

/// How a question ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Pong {
        /// The way it came by.
        via: Route,
        round_trip: Duration,
        /// Where the peer saw the ping come from.
        observed: SocketAddr,
    },
    Why(Box<Side>),
    /// It left, and nothing came back in time.
    Silence,
    /// There was no session in time, so it never left.
    NoSession,
    /// The peer's version does not know the question.
    NotUnderstood,
    /// The peer was removed from the network, or its certificate does not hold.
    NotAMember,
    /// Too many questions wait already.
    TooMany,
}

#[derive(Debug)]
struct Waiting {
    peer: PeerIdx,
    question: Question,
    sent: Option<Instant>,
    repeat: Option<Instant>,
    end: Instant,
}

/// The questions.
#[derive(Debug, Default)]
pub struct Asking(BTreeMap<u64, Waiting>);

impl Asking {
    /// Takes up a question; `false` if there are too many, or one of this number.
    pub fn add(&mut self, id: u64, peer: PeerIdx, question: Question, end: Instant) -> bool {
        if self.0.len() >= ASKED_MAX || self.0.contains_key(&id) {
            return false;
        }
        self.0.insert(id, Waiting { peer, question, sent: None, repeat: None, end });
        true
    }

    /// The questions to a peer that have not left yet, or are to be repeated: there is a session for them.
    pub fn to_send(&mut self, peer: PeerIdx, now: Instant) -> Vec<Control> {
        let due = self.0.iter_mut().filter(|(_, waiting)| {
            waiting.peer == peer && (waiting.sent.is_none() || waiting.repeat.is_some_and(|at| now >= at))
        });
        due.map(|(id, waiting)| {
            waiting.sent = Some(now);
            match waiting.question {
                Question::Ping => Control::Ping { id: *id },
                Question::Why => {
                    waiting.repeat = Some(now + REPEAT);
                    Control::WhyAsk { nonce: *id }
                }
            }
        })
        .collect()
    }

    /// Peers that questions wait for which have to leave (again).
    pub fn waiting_for(&self, now: Instant) -> Vec<PeerIdx> {
        let due = self.0.values().filter(|waiting| waiting.repeat.is_some_and(|at| now >= at));
        due.map(|waiting| waiting.peer).collect()
    }

    /// A peer answers a ping.
    pub fn pong(&mut self, id: u64, from: PeerIdx, via: Route, observed: SocketAddr, now: Instant) -> Option<Answer> {
        let sent = self.ended(id, from, Question::Ping)?;
        Some(Answer::Pong { via, round_trip: now.saturating_duration_since(sent), observed })
    }

    /// A peer gives its account.
    pub fn account(&mut self, id: u64, from: PeerIdx, side: Box<Side>) -> Option<Answer> {
        self.ended(id, from, Question::Why).map(|_| Answer::Why(side))
    }

    fn ended(&mut self, id: u64, from: PeerIdx, question: Question) -> Option<Instant> {
        let waiting = self.0.get(&id).filter(|waiting| (waiting.peer, waiting.question) == (from, question))?;
        let sent = waiting.sent?;
        self.0.remove(&id);
        Some(sent)
    }

    /// All questions to a peer end with this answer.
    pub fn end_all(&mut self, peer: PeerIdx) -> Vec<u64> {
        let ids: Vec<u64> = self.0.iter().filter(|(_, waiting)| waiting.peer == peer).map(|(id, _)| *id).collect();
        self.0.retain(|_, waiting| waiting.peer != peer);
        ids
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().flat_map(|waiting| [Some(waiting.end), waiting.repeat]).flatten().min()
    }

    /// The questions whose time is over.
    pub fn expire(&mut self, now: Instant) -> Vec<(u64, Answer)> {
        let over: Vec<(u64, Answer)> = self
            .0
            .iter()
            .filter(|(_, waiting)| now >= waiting.end)
            .map(|(id, waiting)| (*id, if waiting.sent.is_some() { Answer::Silence } else { Answer::NoSession }))
            .collect();
        self.0.retain(|_, waiting| now < waiting.end);
        over
    }
}

/// How many questions of one peer are still answered.
#[derive(Debug, Clone, Copy)]
pub struct AnswerBudget {
    left: u32,
    since: Instant,
}

impl AnswerBudget {
    pub fn new(now: Instant) -> Self {
        Self { left: ANSWERS_MAX, since: now }
    }

    /// Whether one more is.
    pub fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_millis() / ANSWER_EVERY.as_millis();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            (self.left, self.since) = (self.left.saturating_add(earned).min(ANSWERS_MAX), now);
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Endpoint;

    const PEER: PeerIdx = PeerIdx(1);

    fn way() -> (Route, SocketAddr) {
        let addr: SocketAddr = ([192, 0, 2, 1], 5).into();
        (Route::direct(Endpoint::udp(addr)), addr)
    }

    #[test]
    fn a_ping_leaves_once_and_its_answer_has_the_round_trip() {
        let (mut asking, start) = (Asking::default(), Instant::now());
        assert!(asking.add(7, PEER, Question::Ping, start + Duration::from_secs(1)));
        assert_eq!(asking.to_send(PEER, start), [Control::Ping { id: 7 }]);
        let later = start + Duration::from_millis(30);
        assert_eq!(asking.to_send(PEER, later), []);
        let (via, observed) = way();
        assert_eq!(asking.pong(7, PeerIdx(2), via, observed, later), None, "somebody else");
        assert_eq!(asking.pong(8, PEER, via, observed, later), None, "never asked");
        let answer = Answer::Pong { via, round_trip: Duration::from_millis(30), observed };
        assert_eq!(asking.pong(7, PEER, via, observed, later), Some(answer));
        assert_eq!(asking.pong(7, PEER, via, observed, later), None, "once");
        assert_eq!(asking.poll_timeout(), None);
    }

    #[test]
    fn a_question_for_an_account_is_repeated_and_one_that_never_left_says_so() {
        let (mut asking, start) = (Asking::default(), Instant::now());
        let end = start + Duration::from_secs(1);
        assert!(asking.add(1, PEER, Question::Why, end) && asking.add(2, PeerIdx(9), Question::Why, end));
        assert_eq!(asking.to_send(PEER, start), [Control::WhyAsk { nonce: 1 }]);
        let again = asking.poll_timeout().expect("to be repeated");
        assert_eq!(asking.waiting_for(again), [PEER]);
        assert_eq!(asking.to_send(PEER, again), [Control::WhyAsk { nonce: 1 }]);
        assert_eq!(asking.expire(end), [(1, Answer::Silence), (2, Answer::NoSession)]);
    }

    #[test]
    fn questions_are_bounded_and_so_are_answers_to_a_peer_that_asks_without_end() {
        let (mut asking, start) = (Asking::default(), Instant::now());
        let taken = (0..1000).filter(|id| asking.add(*id, PEER, Question::Ping, start)).count();
        assert_eq!(taken, ASKED_MAX);
        assert_eq!(asking.end_all(PEER).len(), ASKED_MAX);
        let mut budget = AnswerBudget::new(start);
        let answered = (0..10_000).filter(|ms| budget.take(start + Duration::from_millis(*ms))).count();
        println!("a peer that asks 1,000 times a second is answered {answered} times in 10 s");
        assert!((110..=130).contains(&answered), "{answered}");
    }
}
