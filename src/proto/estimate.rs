//! What one path is like: round trip and its variation, loss, the rate it delivers; and what all that costs.
//!
//! [`PathMeter`] is written by the data path and by the other end's datagrams, a few additions a burst; [`Estimate`]
//! belongs to the path machine. Loss is measured by counts: the answer to a probe says how many datagrams had come by
//! this path when the probe did, and we know how many we had sent.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::ids::Route;

/// Datagrams between two looks at the counts, at the least: fewer say too little about loss.
const SAMPLE_MIN: u64 = 32;
/// What a percent of loss costs (protocol reference, section 2.2).
const COST_PER_PERCENT: f64 = 2_000.0;
/// In favour of addresses of one site, and of IPv6, which has no NAT on its way; in microseconds.
const BIAS_SITE: i64 = -5_000;
const BIAS_IPV6: i64 = -3_000;

/// What passed by one path. Datagrams of the session only, counted alike at both ends; bytes are UDP payload.
#[derive(Debug, Default)]
pub struct PathMeter {
    pub tx_datagrams: AtomicU64,
    pub tx_bytes: AtomicU64,
    pub rx_datagrams: AtomicU64,
    pub rx_bytes: AtomicU64,
    /// When something authentic last came: milliseconds since the node's epoch, plus one; 0 for never.
    heard: AtomicU64,
}

impl PathMeter {
    /// Counts datagrams that leave by the path.
    pub fn sent(&self, datagrams: u64, bytes: u64) {
        self.tx_datagrams.fetch_add(datagrams, Relaxed);
        self.tx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts datagrams that came by the path, copies of others among them.
    pub fn came(&self, datagrams: u64, bytes: u64) {
        self.rx_datagrams.fetch_add(datagrams, Relaxed);
        self.rx_bytes.fetch_add(bytes, Relaxed);
    }

    /// Notes that something authentic came.
    pub fn heard(&self, now_ms: u64) {
        self.heard.store(now_ms + 1, Relaxed);
    }

    /// When something authentic last came, in milliseconds since the epoch.
    pub fn heard_ms(&self) -> Option<u64> {
        self.heard.load(Relaxed).checked_sub(1)
    }
}

/// The measures of a path.
#[derive(Debug, Clone, Default)]
pub struct Estimate {
    srtt: Option<Duration>,
    rttvar: Duration,
    /// 0 to 1, once enough was sent.
    loss: Option<f64>,
    /// Bytes a second that came through at the other end.
    rate: Option<f64>,
    /// Sent and come when the sample began.
    base: Option<Counts>,
}

/// What had been sent by a path, and what of it had come, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub sent: u64,
    pub came: u64,
    pub came_bytes: u64,
    pub at: Instant,
}

impl Estimate {
    /// Takes in a round trip (RFC 6298, section 2).
    pub fn round_trip(&mut self, rtt: Duration) {
        match self.srtt {
            None => (self.srtt, self.rttvar) = (Some(rtt), rtt / 2),
            Some(srtt) => {
                self.rttvar = (self.rttvar * 3 + srtt.abs_diff(rtt)) / 4;
                self.srtt = Some((srtt * 7 + rtt) / 8);
            }
        }
    }

    /// Takes in what the other end has counted.
    pub fn counted(&mut self, counts: Counts) {
        // The other end began anew, or the counts are older than those we have.
        let base = self.base.filter(|base| counts.sent >= base.sent && counts.came >= base.came);
        let Some(base) = base else {
            self.base = Some(counts);
            return;
        };
        let sent = counts.sent - base.sent;
        if sent < SAMPLE_MIN {
            return;
        }
        let came = (counts.came - base.came).min(sent);
        let lost = 1.0 - came as f64 / sent as f64;
        self.loss = Some(self.loss.map_or(lost, |loss| (loss + lost) / 2.0));
        let took = counts.at.saturating_duration_since(base.at).as_secs_f64();
        if took > 0.0 {
            let rate = counts.came_bytes.saturating_sub(base.came_bytes) as f64 / took;
            self.rate = Some(self.rate.map_or(rate, |before| (before + rate) / 2.0));
        }
        self.base = Some(counts);
    }

    /// Smoothed round trip, once measured.
    pub fn srtt(&self) -> Option<Duration> {
        self.srtt
    }

    /// How much round trips vary: the mean deviation of RFC 6298. `None` until one was measured.
    pub fn jitter(&self) -> Option<Duration> {
        self.srtt.map(|_| self.rttvar)
    }

    /// The share of our datagrams that do not come, 0 to 1.
    pub fn loss(&self) -> Option<f64> {
        self.loss
    }

    /// Bytes a second that lately came through.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Round trip and variation together: `srtts` times the one and `vars` times the other.
    pub fn patience(&self, srtts: u32, vars: u32) -> Duration {
        self.srtt.map_or(Duration::ZERO, |srtt| srtt * srtts + self.rttvar * vars)
    }

    /// What a path costs, in microseconds; the cheapest of a tier is used. Unmeasured is dearest.
    pub fn cost(&self, route: &Route) -> i64 {
        let Some(srtt) = self.srtt else { return i64::MAX };
        let time = srtt + self.rttvar * 2;
        let loss = self.loss.unwrap_or(0.0) * 100.0 * COST_PER_PERCENT;
        i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 2) + loss as i64 + bias(route)
    }
}

fn bias(route: &Route) -> i64 {
    match route.endpoint.addr.ip().to_canonical() {
        // An address of a private range that answers is on our own site, or as near.
        IpAddr::V4(ip) if ip.is_private() || ip.is_link_local() => BIAS_SITE,
        IpAddr::V6(ip) if ip.is_unique_local() || ip.is_unicast_link_local() => BIAS_SITE + BIAS_IPV6,
        IpAddr::V6(_) => BIAS_IPV6,
        IpAddr::V4(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Endpoint;

    fn route(addr: &str) -> Route {
        Route::direct(Endpoint::udp(addr.parse().expect("an address")))
    }

    fn steady(rtt: Duration) -> Estimate {
        let mut estimate = Estimate::default();
        (0..50).for_each(|_| estimate.round_trip(rtt));
        estimate
    }

    #[test]
    fn round_trips_are_smoothed_as_rfc_6298_says() {
        let mut estimate = Estimate::default();
        estimate.round_trip(Duration::from_millis(100));
        assert_eq!(
            (estimate.srtt(), estimate.jitter()),
            (Some(Duration::from_millis(100)), Some(Duration::from_millis(50)))
        );
        estimate.round_trip(Duration::from_millis(180));
        assert_eq!(estimate.srtt(), Some(Duration::from_millis(110)));
        assert_eq!(estimate.jitter(), Some(Duration::from_micros(57_500)));
    }

    #[test]
    fn loss_is_what_was_sent_and_did_not_come() {
        let (start, mut estimate) = (Instant::now(), Estimate::default());
        let mut counts = |sent, came, seconds| {
            let at = start + Duration::from_secs(seconds);
            estimate.counted(Counts { sent, came, came_bytes: came * 1000, at });
            (estimate.loss(), estimate.rate())
        };
        assert_eq!(counts(1000, 400, 0), (None, None), "what was before nobody knows");
        assert_eq!(counts(1010, 410, 1), (None, None), "too few");
        let near = |(loss, rate): (Option<f64>, Option<f64>)| {
            ((loss.unwrap_or(9.0) * 1000.0).round(), rate.unwrap_or(9.0).round())
        };
        assert_eq!(near(counts(1100, 490, 1)), (100.0, 90_000.0));
        assert_eq!(near(counts(1200, 590, 2)), (50.0, 95_000.0));
        assert_eq!(near(counts(1300, 2, 3)), (50.0, 95_000.0), "the other end began anew");
        assert_eq!(near(counts(1400, 110, 4)).0, 25.0, "more than was sent is no gain");
    }

    #[test]
    fn a_percent_of_loss_costs_two_milliseconds_and_a_near_address_five_less() {
        let ms = Duration::from_millis;
        let mut lossy = steady(ms(10));
        let cost = lossy.cost(&route("192.0.2.1:1"));
        assert!((10_000..10_100).contains(&cost), "{cost}");
        let start = Instant::now();
        lossy.counted(Counts { sent: 0, came: 0, came_bytes: 0, at: start });
        lossy.counted(Counts { sent: 100, came: 97, came_bytes: 0, at: start });
        assert_eq!(lossy.cost(&route("192.0.2.1:1")) - cost, 6_000);
        assert_eq!(steady(ms(10)).cost(&route("10.0.0.1:1")) - cost, -5_000);
        assert_eq!(steady(ms(10)).cost(&route("[2001:db8::1]:1")) - cost, -3_000);
        assert_eq!(Estimate::default().cost(&route("10.0.0.1:1")), i64::MAX);
    }
}
