//! Lengths of time with their units: `25s`, `24h`, `1h30m`; and sizes: `10MiB`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How long an invitation holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// It is refused after this long: [`Expiry::SHORTEST`] to [`Expiry::LONGEST`].
    After(Duration),
    /// Until it is used up.
    Never,
}

/// The text was no length of time that an invitation may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write a length of time from 1m to 365d, like 24h, or never")]
pub struct ExpiryError;

impl Expiry {
    /// Shorter than this nobody can type the line in.
    pub const SHORTEST: Duration = Duration::from_secs(60);
    /// Longer than a year is better said as `never`.
    pub const LONGEST: Duration = Duration::from_secs(365 * 86_400);

    /// The length of time; `None` for never.
    pub fn duration(self) -> Option<Duration> {
        match self {
            Self::After(time) => Some(time),
            Self::Never => None,
        }
    }
}

impl FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let time = duration(text).ok_or(ExpiryError)?;
        if (Self::SHORTEST..=Self::LONGEST).contains(&time) { Ok(Self::After(time)) } else { Err(ExpiryError) }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::After(time) = self else { return f.write_str("never") };
        let mut left = time.as_millis();
        for (unit, length) in UNITS {
            if left >= length {
                write!(f, "{}{unit}", left / length)?;
                left %= length;
            }
        }
        Ok(())
    }
}

/// Reads a whole number of bytes with a unit, decimal (B, kB, MB, GB, TB) or binary (KiB, MiB, GiB, TiB). `None` if it
/// is no such text or more than a `u64` of bytes.
pub fn size(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let (_, length) = SIZES.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*length)
}

const SIZES: [(&str, u64); 9] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Reads whole numbers with units d, h, m, s and ms, largest unit first, each at most once. `None` if it is no such
/// text or longer than a `u64` of milliseconds.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let (number, behind) = rest.split_at(end);
        let unit_end = behind.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let (_, length) = units.find(|(name, _)| *name == unit)?;
        let length = u64::try_from(*length).ok()?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(length)?)?;
        rest = behind;
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

/// Units and their lengths in milliseconds, largest first.
const UNITS: [(&str, u128); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("1KiB", 1024), ("10MiB", 10 << 20), ("2kB", 2000), ("7B", 7)] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "5", "MiB", "1.5MiB", "-1B", "1 MiB", "1mib", "99999999999TiB", "1MiB2KiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_written_with_units() {
        for (text, seconds) in [("25s", 25), ("24h", 86_400), ("1h30m", 5_400), ("7d", 604_800), ("2000ms", 2)] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "24", "h", "24 h", "24H", "1m1h", "1h1h", "-1h", "1.5h", "99999999999999999999d", "é"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn an_expiry_prints_as_it_parses() {
        for text in ["never", "1m", "1d", "1d12h", "365d"] {
            assert_eq!(text.parse::<Expiry>().map(|expiry| expiry.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "59s", "366d", "Never"] {
            assert_eq!(text.parse::<Expiry>(), Err(ExpiryError), "{text}");
        }
    }
}
