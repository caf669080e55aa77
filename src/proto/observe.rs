//! The server's answers to [`observe`](crate::wire::observe): where it sees whoever asks.
//!
//! Stateless but for a budget: each answer is as long as the shortest question, each network of origin gets
//! [`ANSWERS_PER_SECOND`], and an answer goes to another address than the asker's only with a pass that was given to
//! that address less than twenty minutes ago.

use std::net::{IpAddr, SocketAddr};

use super::crypto::{mac16, same_mac};
use super::source_budget::SourceBudget;
use crate::counters::DropReason;
use crate::wire::observe::{Ask, OBSERVE_LEN, Pass, Tell};

/// Answers one /24 (/64 of IPv6) gets in a second: somebody whose address is forged hears no more (S-20).
pub const ANSWERS_PER_SECOND: u32 = 20;
/// Networks that are counted in one second; from more nothing is answered.
const SOURCES_MAX: usize = 1024;
/// A pass holds in the period it was made in and the next, in seconds.
const PASS_PERIOD: u64 = 600;

/// The core.
#[derive(Debug, Clone)]
pub struct Responder {
    key: [u8; 32],
    /// The server's other port; 0 for none.
    other_port: u16,
    budget: SourceBudget,
}

/// An answer, and how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    pub to: SocketAddr,
    /// From the other port than the one asked.
    pub from_other: bool,
    pub bytes: [u8; OBSERVE_LEN],
}

impl Responder {
    /// `key` is secret and new at each start.
    pub fn new(key: [u8; 32], other_port: u16) -> Self {
        Self { key, other_port, budget: SourceBudget::new(ANSWERS_PER_SECOND, SOURCES_MAX) }
    }

    /// What is answered to a question. `unix`: the wall clock, in seconds.
    ///
    /// # Errors
    ///
    /// Why it is not; the caller counts it.
    pub fn answer(&mut self, from: SocketAddr, question: &[u8], unix: u64) -> Result<Reply, DropReason> {
        let ask = Ask::parse(question)?;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        let to = match ask.pass {
            None => from,
            Some((pass, to)) => {
                let holds = |period| same_mac(&self.pass(to, period), &pass);
                let period = unix / PASS_PERIOD;
                if !holds(period) && !holds(period.saturating_sub(1)) {
                    return Err(DropReason::BadToken);
                }
                to
            }
        };
        let mut take = |ip| self.budget.take(ip, unix);
        if !take(from.ip()) || (to.ip() != from.ip() && !take(to.ip())) {
            return Err(DropReason::HandshakeFlood);
        }
        let from_other = ask.from_other && self.other_port != 0;
        let tell = Tell {
            number: ask.number,
            from_other,
            pass: self.pass(to, unix / PASS_PERIOD),
            observed: to,
            other_port: self.other_port,
            unix,
        };
        Ok(Reply { to, from_other, bytes: tell.to_bytes() })
    }

    fn pass(&self, addr: SocketAddr, period: u64) -> Pass {
        let ip = match addr.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let bytes = [&ip[..], &addr.port().to_le_bytes(), &period.to_le_bytes()].concat();
        mac16(&self.key, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(pass: Option<(Pass, SocketAddr)>) -> Vec<u8> {
        Ask { number: [9; 12], from_other: true, pass, length: OBSERVE_LEN }.to_bytes()
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn whoever_asks_hears_its_own_address_and_from_the_other_port_where_there_is_one() {
        let mut responder = Responder::new([1; 32], 43440);
        let reply = responder.answer(addr("[::ffff:192.0.2.1]:5"), &ask(None), 7).expect("an answer");
        let tell = Tell::parse(&reply.bytes).expect("an answer");
        assert_eq!((reply.to, tell.observed), (addr("192.0.2.1:5"), addr("192.0.2.1:5")));
        assert!(reply.from_other && tell.from_other);
        assert_eq!((tell.number, tell.other_port, tell.unix), ([9; 12], 43440, 7));
        let reply = Responder::new([1; 32], 0).answer(addr("192.0.2.1:5"), &ask(None), 7).expect("an answer");
        assert!(!reply.from_other);
    }

    #[test]
    fn s_19_an_answer_goes_elsewhere_only_with_the_pass_of_that_address() {
        let mut responder = Responder::new([1; 32], 0);
        let (one, other) = (addr("192.0.2.1:5"), addr("198.51.100.1:6"));
        let reply = responder.answer(one, &ask(None), 1000).expect("an answer");
        let pass = Tell::parse(&reply.bytes).expect("an answer").pass;
        assert_eq!(responder.answer(other, &ask(Some((pass, one))), 1300).map(|reply| reply.to), Ok(one));
        assert_eq!(responder.answer(other, &ask(Some((pass, other))), 1301), Err(DropReason::BadToken));
        assert_eq!(responder.answer(other, &ask(Some(([0; 16], one))), 1302), Err(DropReason::BadToken));
        assert_eq!(responder.answer(other, &ask(Some((pass, one))), 1000 + 1200), Err(DropReason::BadToken), "too old");
        let strange = Responder::new([2; 32], 0).answer(other, &ask(Some((pass, one))), 1303);
        assert_eq!(strange, Err(DropReason::BadToken), "of another server");
    }

    #[test]
    fn s_20_a_forged_source_hears_twenty_answers_a_second_at_the_most() {
        let mut responder = Responder::new([1; 32], 0);
        let flood = |responder: &mut Responder, second| {
            let sources = (0..2000_u16).map(|port| addr(&format!("192.0.2.{}:{}", port % 250, port + 1)));
            sources.filter(|from| responder.answer(*from, &ask(None), second).is_ok()).count()
        };
        let answered = flood(&mut responder, 5);
        println!("S-20: 2,000 questions in the name of one /24 in a second: {answered} answers");
        assert_eq!(answered, ANSWERS_PER_SECOND as usize);
        assert!(responder.answer(addr("203.0.113.1:1"), &ask(None), 5).is_ok(), "others are answered");
        assert_eq!(flood(&mut responder, 6), ANSWERS_PER_SECOND as usize, "and so is the next second");
    }
}
