//! Numbers for eyes: bytes, rates and lengths of time with the unit that makes them short.
//!
//! Units are decimal. Scripts get the plain numbers elsewhere.

use std::fmt;

/// An amount of data: `340 B`, `1.2 kB`, `15.0 MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// A rate in bits per second: `94.2 Mbit/s`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct BitRate(pub f64);

/// A length of time in seconds, coarse: `0.3 s`, `45 s`, `12 min`, `5 h 3 min`, `3 d 4 h`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Seconds(pub f64);

/// A round trip in milliseconds: `0.04 ms`, `8.1 ms`, `230 ms`, `1.2 s`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Millis(pub f64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 1000 {
            return f.pad(&format!("{} B", self.0));
        }
        f.pad(&scale(self.0 as f64 / 1e3, &["kB", "MB", "GB", "TB", "PB", "EB"]))
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&scale(self.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 9.95 {
            return f.pad(&format!("{:.1} s", self.0.max(0.0)));
        }
        let whole = self.0.round() as u64;
        f.pad(&match whole {
            0..120 => format!("{whole} s"),
            120..7200 => format!("{} min", whole / 60),
            7200..172_800 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
            _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
        })
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.max(0.0);
        f.pad(&match millis {
            ..0.095 => format!("{millis:.2} ms"),
            ..99.95 => format!("{millis:.1} ms"),
            ..999.5 => format!("{millis:.0} ms"),
            _ => Seconds(millis / 1e3).to_string(),
        })
    }
}

/// One decimal below a hundred, and never 1000 of a unit that has a next one.
fn scale(mut value: f64, units: &[&str]) -> String {
    let mut left = units;
    while let [_, rest @ ..] = left
        && !rest.is_empty()
        && value >= 999.5
    {
        value /= 1e3;
        left = rest;
    }
    let unit = left.first().copied().unwrap_or_default();
    if value < 99.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

fn two(large: u64, large_unit: &str, small: u64, small_unit: &str) -> String {
    match small {
        0 => format!("{large} {large_unit}"),
        _ => format!("{large} {large_unit} {small} {small_unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_940, "99.9 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.0 MB"),
            (12_345_678_901, "12.3 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn rates() {
        for (rate, text) in
            [(0.0, "0.0 bit/s"), (94.21e6, "94.2 Mbit/s"), (2.5e9, "2.5 Gbit/s"), (1e16, "10000 Tbit/s")]
        {
            assert_eq!(BitRate(rate).to_string(), text);
        }
    }

    #[test]
    fn lengths_of_time() {
        for (seconds, text) in [
            (-1.0, "0.0 s"),
            (0.26, "0.3 s"),
            (9.96, "10 s"),
            (119.0, "119 s"),
            (120.0, "2 min"),
            (7199.0, "119 min"),
            (7200.0, "2 h"),
            (18_180.0, "5 h 3 min"),
            (172_800.0, "2 d"),
            (273_600.0, "3 d 4 h"),
        ] {
            assert_eq!(Seconds(seconds).to_string(), text);
        }
    }

    #[test]
    fn round_trips() {
        for (millis, text) in
            [(0.04, "0.04 ms"), (0.4, "0.4 ms"), (8.06, "8.1 ms"), (230.4, "230 ms"), (1234.0, "1.2 s")]
        {
            assert_eq!(Millis(millis).to_string(), text);
        }
    }

    #[test]
    fn widths_are_kept() {
        assert_eq!(format!("[{:>7}]", Bytes(5)), "[    5 B]");
    }
}
