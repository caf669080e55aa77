//! Waiting times between attempts: a fixed list of steps, the last of which repeats, each with jitter.
//!
//! Jitter keeps a thousand clients that lost one server from coming back in one millisecond. The steps are data
//! of the caller; the only state here is how many have been taken.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Steps of waiting. A fresh one starts at the first step.
#[derive(Debug, Clone)]
pub struct Backoff {
    steps: &'static [Duration],
    attempts: u32,
}

impl Backoff {
    /// Makes a back-off over `steps`, of which there is at least one.
    ///
    /// # Panics
    /// If `steps` is empty.
    pub fn new(steps: &'static [Duration]) -> Self {
        assert!(!steps.is_empty(), "a back-off has at least one step");
        Self { steps, attempts: 0 }
    }

    /// Takes the next step: how long to wait before the next attempt, 80 to 120 % of the step. The last repeats.
    pub fn next(&mut self, rng: &mut (impl Rng + ?Sized)) -> Duration {
        let at = (self.attempts as usize).min(self.steps.len() - 1);
        self.attempts = self.attempts.saturating_add(1);
        self.steps[at].mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
    }

    /// Starts again at the first step.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How many steps were taken since the start or the last reset.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

/// The part of a step that randomness may add or take away.
const JITTER: f64 = 0.2;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const STEPS: &[Duration] = &[
        Duration::from_millis(250),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(4),
        Duration::from_secs(5),
    ];

    #[test]
    fn steps_come_in_order_within_their_jitter_and_the_last_repeats() {
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut backoff = Backoff::new(STEPS);
            for attempt in 0..20 {
                assert_eq!(backoff.attempts(), attempt);
                let step = STEPS[(attempt as usize).min(STEPS.len() - 1)];
                let wait = backoff.next(&mut rng);
                assert!(wait >= step.mul_f64(0.799) && wait <= step.mul_f64(1.201), "seed {seed}: {wait:?}");
            }
        }
    }

    #[test]
    fn a_reset_starts_at_the_first_step() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(STEPS);
        for _ in 0..4 {
            backoff.next(&mut rng);
        }
        backoff.reset();
        assert_eq!(backoff.attempts(), 0);
        assert!(backoff.next(&mut rng) <= Duration::from_millis(301));
    }

    #[test]
    fn waits_differ_between_nodes() {
        let waits: std::collections::BTreeSet<_> =
            (0..32).map(|seed| Backoff::new(STEPS).next(&mut StdRng::seed_from_u64(seed))).collect();
        assert!(waits.len() > 24, "only {} different waits", waits.len());
    }
}
