//! What every role writes and serves alike, and how its options are read: the scorecard, and the page of metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

/// The formats of the scorecard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScorecardFormat {
    /// One document, with a schema number.
    Json,
    /// Prometheus's text format, for the textfile collector.
    Prometheus,
    /// Lines of a name and a value, as EPS Conduits has them.
    Classic,
}

impl ScorecardFormat {
    /// That of a file, where nobody says which.
    pub fn by_name(path: &Path) -> Self {
        if path.as_os_str().as_encoded_bytes().ends_with(b".prom") { Self::Prometheus } else { Self::Json }
    }
}

impl FromStr for ScorecardFormat {
    type Err = NotAFormat;

    fn from_str(text: &str) -> Result<Self, NotAFormat> {
        match text {
            "json" => Ok(Self::Json),
            "prom" => Ok(Self::Prometheus),
            "classic" => Ok(Self::Classic),
            _ => Err(NotAFormat),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write json, prom or classic")]
pub struct NotAFormat;

/// Where metrics are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetricsAddress(pub SocketAddr);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write ADDRESS:PORT or PORT, like 127.0.0.1:9469")]
pub struct NotAnAddress;

impl FromStr for MetricsAddress {
    type Err = NotAnAddress;

    /// `ADDRESS:PORT`, or a port of 127.0.0.1; no port is 0.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let address = match text.parse::<u16>() {
            Ok(port) => Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            Err(_) => text.parse::<SocketAddr>(),
        };
        address.ok().filter(|address| address.port() != 0).map(Self).ok_or(NotAnAddress)
    }
}

impl MetricsAddress {
    /// Metrics name members and addresses; who listens beyond loopback should have meant to.
    pub fn warning(self) -> Option<String> {
        let Self(address) = self;
        (!address.ip().is_loopback())
            .then(|| format!("metrics: whoever reaches {address} can read the names, addresses and traffic of members"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_port_is_of_this_machine_and_an_open_page_is_warned_of() {
        let read = |text: &str| text.parse().map(|MetricsAddress(address)| address.to_string());
        assert_eq!(read("9469"), Ok("127.0.0.1:9469".to_owned()));
        assert_eq!(read("[::1]:1"), Ok("[::1]:1".to_owned()));
        for bad in ["", "0", "127.0.0.1:0", "127.0.0.1", "host:1", "70000"] {
            assert_eq!(read(bad), Err(NotAnAddress), "{bad:?}");
        }
        let warns = |text: &str| text.parse::<MetricsAddress>().expect("an address").warning().is_some();
        assert!(warns("0.0.0.0:1") && warns("192.0.2.1:1") && !warns("1") && !warns("[::1]:1"));
    }

    #[test]
    fn the_name_of_a_scorecard_tells_its_format_where_nobody_else_does() {
        for (name, format) in [
            ("/x/a.prom", ScorecardFormat::Prometheus),
            (".prom", ScorecardFormat::Prometheus),
            ("/x.prom/a", ScorecardFormat::Json),
            ("a", ScorecardFormat::Json),
        ] {
            assert_eq!(ScorecardFormat::by_name(Path::new(name)), format, "{name}");
        }
        assert_eq!(
            ("classic".parse(), "auto".parse::<ScorecardFormat>()),
            (Ok(ScorecardFormat::Classic), Err(NotAFormat))
        );
    }
}
