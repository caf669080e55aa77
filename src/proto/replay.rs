//! The replay window: each counter of a session is accepted once, and none that lies too far back.
//!
//! The bitmap is used as a ring of 64-bit words after RFC 6479: moving forward clears whole words, so there is
//! no shifting, and one word is given up for it. A window of `words` words therefore tells the last
//! `(words - 1) * 64` counters apart: 8,128 with [`WORDS_ONE_PATH`], 65,472 with [`WORDS_MANY_PATHS`].
//!
//! On several paths the same window is the duplicate filter: copies of a frame share one counter.

/// Words of a session with one path; 1 KiB.
pub const WORDS_ONE_PATH: usize = 128;

/// Words of a session with more than one active path; 8 KiB. A window has to exceed packet rate times the
/// difference of the paths' delays: at 90,000 frames a second a path slower by 200 ms is 18,000 counters behind.
pub const WORDS_MANY_PATHS: usize = 1_024;

/// Counters from here on are refused: a session is replaced long before, and sums with counters cannot overflow.
pub const COUNTER_LIMIT: u64 = 1 << 60;

/// Which counters of a session have been seen.
#[derive(Debug, Clone)]
pub struct ReplayWindow {
    /// The ring; the bit of a counter is bit `counter % 64` of word `(counter / 64) % words`.
    ring: Box<[u64]>,
    /// One above the highest counter accepted; 0 before the first.
    next: u64,
}

impl ReplayWindow {
    /// Makes a window of `words` 64-bit words that tells the last `(words - 1) * 64` counters apart.
    ///
    /// # Panics
    /// If `words` is not a power of two of at least 2.
    pub fn new(words: usize) -> Self {
        assert!(words.is_power_of_two() && words >= 2, "a window has a power of two of words, and at least two");
        Self { ring: vec![0; words].into_boxed_slice(), next: 0 }
    }

    /// How many counters below and including the highest are told apart.
    pub fn usable(&self) -> u64 {
        (self.ring.len() as u64 - 1) * u64::from(u64::BITS)
    }

    /// Whether `counter` could still be accepted. Changes nothing: for datagrams that are not authenticated yet.
    pub fn is_fresh(&self, counter: u64) -> bool {
        if counter >= COUNTER_LIMIT {
            return false;
        }
        if counter >= self.next {
            return true;
        }
        self.next - counter <= self.usable() && self.ring[self.slot(counter / 64)] & bit(counter) == 0
    }

    /// Accepts `counter` if it is fresh, and never again. Only for counters of authenticated datagrams.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_fresh(counter) {
            return false;
        }
        if counter >= self.next {
            self.advance(counter);
        }
        let slot = self.slot(counter / 64);
        self.ring[slot] |= bit(counter);
        true
    }

    /// Makes the window larger and keeps what it knows; counters older than the old window stay refused. Does
    /// nothing if the window has `words` words or more.
    ///
    /// # Panics
    /// If `words` is not a power of two of at least 2.
    pub fn grow(&mut self, words: usize) {
        if words <= self.ring.len() {
            return;
        }
        let mut larger = Self::new(words);
        larger.next = self.next;
        let top = self.next.saturating_sub(1) / 64;
        let oldest_known = top.saturating_sub(self.ring.len() as u64 - 1);
        for word in top.saturating_sub(words as u64 - 1)..=top {
            let slot = larger.slot(word);
            larger.ring[slot] = if word < oldest_known { u64::MAX } else { self.ring[self.slot(word)] };
        }
        *self = larger;
    }

    /// Clears the words between the highest counter so far and `counter`, the new highest.
    fn advance(&mut self, counter: u64) {
        let top = self.next.saturating_sub(1) / 64;
        let steps = (counter / 64 - top).min(self.ring.len() as u64);
        for word in top + 1..=top + steps {
            let slot = self.slot(word);
            self.ring[slot] = 0;
        }
        self.next = counter + 1;
    }

    fn slot(&self, word: u64) -> usize {
        (word % self.ring.len() as u64) as usize
    }
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn s_04_the_window_answers_as_a_set_does() {
        const STEPS: u64 = 1_000_000;
        for (words, seed) in [(WORDS_ONE_PATH, 4), (WORDS_MANY_PATHS, 40)] {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut window = ReplayWindow::new(words);
            let mut model = Model::new(words);
            let mut accepted = 0u64;
            for step in 0..STEPS {
                // Two starts a run: the first half from zero, the second just below the limit.
                if step == STEPS / 2 {
                    window = ReplayWindow::new(words);
                    model = Model::new(words);
                    let start = COUNTER_LIMIT - 200_000;
                    assert_eq!(window.accept(start), model.accept(start));
                }
                let counter = choose(&mut rng, model.next, window.usable());
                assert_eq!(window.is_fresh(counter), model.is_fresh(counter), "step {step}, counter {counter}");
                if rng.random_bool(0.9) {
                    let answer = window.accept(counter);
                    accepted += u64::from(answer);
                    assert_eq!(answer, model.accept(counter), "step {step}, counter {counter}");
                    assert!(!window.is_fresh(counter));
                }
            }
            println!("S-04: {words} words, seed {seed}: {STEPS} operations, {accepted} accepted, answers identical");
            assert!(accepted > STEPS / 10);
        }
    }

    #[test]
    fn a_whole_window_is_accepted_once_forwards_and_backwards() {
        for words in [2, WORDS_ONE_PATH, WORDS_MANY_PATHS] {
            let usable = ReplayWindow::new(words).usable();
            for base in [0, 1, 63, 64, 1_000_003, COUNTER_LIMIT - usable] {
                let mut forwards = ReplayWindow::new(words);
                assert!((base..base + usable).all(|counter| forwards.accept(counter)));
                assert!((base..base + usable).all(|counter| !forwards.is_fresh(counter) && !forwards.accept(counter)));
                let mut backwards = ReplayWindow::new(words);
                assert!((base..base + usable).rev().all(|counter| backwards.accept(counter)));
                assert!((base..base + usable).rev().all(|counter| !backwards.accept(counter)));
                assert!(base == 0 || !backwards.is_fresh(base - 1));
            }
        }
    }

    #[test]
    fn the_window_of_128_words_tells_8_128_counters_apart() {
        let mut window = ReplayWindow::new(WORDS_ONE_PATH);
        assert_eq!(window.usable(), 8_128);
        assert_eq!(ReplayWindow::new(WORDS_MANY_PATHS).usable(), 65_472);
        assert!(window.accept(8_127));
        assert!(window.is_fresh(0));
        assert!(window.accept(8_128));
        assert!(!window.is_fresh(0));
        assert!(window.is_fresh(1));
    }

    #[test]
    fn counters_at_the_limit_are_refused() {
        let mut window = ReplayWindow::new(WORDS_ONE_PATH);
        for counter in [COUNTER_LIMIT, COUNTER_LIMIT + 1, u64::MAX - 1, u64::MAX] {
            assert!(!window.is_fresh(counter) && !window.accept(counter));
        }
        assert!(window.accept(0));
        assert!(window.accept(COUNTER_LIMIT - 1));
        assert!(!window.accept(COUNTER_LIMIT - 1));
        assert!(!window.accept(1));
    }

    #[test]
    fn checking_alone_marks_nothing() {
        let mut window = ReplayWindow::new(2);
        assert!(window.is_fresh(1_000));
        assert!(window.is_fresh(5));
        assert!(window.accept(5));
    }

    #[test]
    fn a_window_that_grew_accepts_nothing_twice_and_nothing_it_cannot_know() {
        let mut rng = StdRng::seed_from_u64(9);
        for _ in 0..200 {
            let mut window = ReplayWindow::new(4);
            let mut seen = BTreeSet::new();
            let top = rng.random_range(0..2_000);
            for _ in 0..400 {
                let counter = rng.random_range(0..=top);
                if window.accept(counter) {
                    assert!(seen.insert(counter));
                }
            }
            let before: Vec<_> = (0..=top).filter(|counter| window.is_fresh(*counter)).collect();
            window.grow(16);
            for counter in &before {
                assert!(window.is_fresh(*counter), "a counter was lost by growing");
            }
            assert!((0..=top).filter(|counter| window.accept(*counter)).all(|counter| seen.insert(counter)));
            assert!(window.accept(top + 900));
            assert!(window.accept(top + 1));
            assert!(!window.is_fresh(top));
        }
    }

    /// All counters ever accepted, and the rule of the window in words.
    struct Model {
        seen: BTreeSet<u64>,
        next: u64,
        usable: u64,
    }

    impl Model {
        fn new(words: usize) -> Self {
            Self { seen: BTreeSet::new(), next: 0, usable: (words as u64 - 1) * 64 }
        }

        fn is_fresh(&self, counter: u64) -> bool {
            counter < COUNTER_LIMIT && counter + self.usable >= self.next && !self.seen.contains(&counter)
        }

        fn accept(&mut self, counter: u64) -> bool {
            let fresh = self.is_fresh(counter);
            if fresh {
                self.seen.insert(counter);
                self.next = self.next.max(counter + 1);
            }
            fresh
        }
    }

    /// Mostly near the newest and near both edges of the window, sometimes far away or past the limit.
    fn choose(rng: &mut StdRng, next: u64, usable: u64) -> u64 {
        match rng.random_range(0..100) {
            0..40 => next.saturating_add(rng.random_range(0..3)),
            40..70 => next.saturating_sub(rng.random_range(0..200)),
            70..80 => next.saturating_sub(rng.random_range(0..=usable)),
            80..90 => next.saturating_sub(usable).saturating_sub(2).saturating_add(rng.random_range(0..4)),
            90..95 => next.saturating_sub(rng.random_range(0..3 * usable)),
            95..97 => next.saturating_add(rng.random_range(0..200)),
            97..98 => rng.random_range(COUNTER_LIMIT..=u64::MAX),
            98..99 => [0, 1, COUNTER_LIMIT, u64::MAX][rng.random_range(0..4)],
            _ => rng.random_range(0..next.max(1)),
        }
    }
}
