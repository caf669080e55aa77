//! The options of `eps-actor cloud`, with the names and defaults of ethcloud's manual, and what they come to.
//!
//! There is no file: all of it fits a line, and clap finds what is wrong in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use log::LevelFilter;

use super::{MetricsAddress, ScorecardFormat};
use crate::wire::ethcloud::Token;
use crate::wire::join::{HostPort, HostPortError};

/// The port where a `-c` names none; the manual's.
pub const CLOUD_PORT: u16 = 3210;
/// The control socket of the only cloud on a machine, or of the first.
pub const CLOUD_CONTROL: &str = "/run/eps-actor/cloud.sock";
/// Where a cloud's scorecard goes if no path is named.
pub const CLOUD_SCORECARD: &str = "/var/log/eps_cloud.stats";
/// Where the map goes if no path is named.
pub const CLOUD_MAP: &str = "/var/log/eps_cloud.gv";
/// The manual's timeouts.
pub const PEER_TIMEOUT_SECONDS: u16 = 1800;
pub const MAC_TIMEOUT_SECONDS: u16 = 300;
/// Seconds; a year is as good as for ever.
const TIMEOUT_MAX: u64 = 365 * 86_400;

/// The options.
#[derive(Debug, Clone, Args)]
pub struct CloudOptions {
    /// Name of the tap device; %d becomes the first free number
    #[arg(short, long, value_name = "DEVICE", default_value = "ethcloud%d")]
    pub device: String,
    /// Address to listen on; [::]:PORT listens on IPv4 and IPv6
    #[arg(short, long, value_name = "HOST:PORT", default_value = "0.0.0.0:3210", value_parser = listen)]
    pub listen: SocketAddr,
    /// Token that identifies the network, a number from 0 to 72057594037927935
    #[arg(short, long, value_name = "TOKEN", default_value = "0", hide_env_values = true)]
    pub token: Token,
    /// Peer (addr:port) to connect to; repeat or separate by commas
    #[arg(short, long, value_name = "HOST[:PORT]", value_delimiter = ',', value_parser = target)]
    pub connect: Vec<HostPort>,
    /// Peer timeout in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = PEER_TIMEOUT_SECONDS.into(), value_parser = clap::value_parser!(u64).range(1..=TIMEOUT_MAX))]
    pub peer_timeout: u64,
    /// Mac table entry timeout in seconds; 0 forgets at the next second
    #[arg(long, value_name = "SECONDS", default_value_t = MAC_TIMEOUT_SECONDS.into(), value_parser = clap::value_parser!(u64).range(..=TIMEOUT_MAX))]
    pub mac_timeout: u64,
    /// Log verbosely
    #[arg(short, long, conflicts_with_all = ["quiet", "log_level"])]
    pub verbose: bool,
    /// Only print error messages
    #[arg(short, long, conflicts_with = "log_level")]
    pub quiet: bool,
    /// How much to log: error (the least), warn, info, debug or trace (everything) [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<LevelFilter>,
    /// Control socket [default: /run/eps-actor/cloud.sock, or cloud-DEVICE.sock where another cloud has that]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// Write the scorecard every 60 s [default path: /var/log/eps_cloud.stats]
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = CLOUD_SCORECARD)]
    pub scorecard: Option<PathBuf>,
    /// Format of the scorecard: json, prom or classic [default: prom for a file that ends in .prom, else json]
    #[arg(long, value_name = "FORMAT", value_parser = ScorecardFormat::from_str)]
    pub scorecard_format: Option<ScorecardFormat>,
    /// Write the map in DOT every 5 minutes and on change [default path: /var/log/eps_cloud.gv]
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = CLOUD_MAP)]
    pub graphviz: Option<PathBuf>,
    /// Serve metrics for Prometheus over HTTP; a port alone is of 127.0.0.1
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = MetricsAddress::from_str)]
    pub metrics: Option<MetricsAddress>,
    /// Log statistics every 60 s
    #[arg(long)]
    pub stats: bool,
}

impl CloudOptions {
    pub fn level(&self) -> LevelFilter {
        match (self.verbose, self.quiet) {
            (true, _) => LevelFilter::Debug,
            (_, true) => LevelFilter::Error,
            (false, false) => self.log_level.unwrap_or(LevelFilter::Info),
        }
    }

    /// The scorecard's place and format.
    pub fn card(&self) -> Option<(PathBuf, ScorecardFormat)> {
        let path = self.scorecard.clone()?;
        let format = self.scorecard_format.unwrap_or(ScorecardFormat::by_name(&path));
        Some((path, format))
    }

    pub fn timeouts(&self) -> (Duration, Duration) {
        (Duration::from_secs(self.peer_timeout), Duration::from_secs(self.mac_timeout))
    }
}

/// The addresses that sockets are bound to: the unspecified IPv6 address stands for both families.
pub fn sockets(listen: SocketAddr) -> Vec<SocketAddr> {
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
    match listen.ip().to_canonical() {
        IpAddr::V6(ip) if ip.is_unspecified() => vec![v4, listen],
        ip => vec![SocketAddr::new(ip, listen.port())],
    }
}

/// One of a list of peers to connect to.
///
/// # Errors
/// What would be a host.
pub fn target(text: &str) -> Result<HostPort, String> {
    let target = HostPort::parse(text.trim(), CLOUD_PORT).map_err(|error| match error {
        HostPortError::Brackets => {
            format!("an IPv6 address with a port needs brackets, like [2001:db8::1]:{CLOUD_PORT}")
        }
        error => error.to_string(),
    })?;
    match target.ip() {
        Some(IpAddr::V6(ip)) if ip.is_unicast_link_local() => Err(format!(
            "{ip} is a link-local address, which means nothing without its link; use another address of that machine"
        )),
        Some(_) | None => Ok(target),
    }
}

/// Where to listen: an address, or a name, whose first address it is, as that program has it.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let found = match text.parse() {
        Ok(address) => Ok(Some(address)),
        Err(_) => text.to_socket_addrs().map(|mut found| found.next()),
    };
    match found {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err("the name has no address".to_owned()),
        Err(error) => Err(format!("neither an address and port nor a name and port ({error})")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: CloudOptions,
    }

    fn parse(line: &str) -> Result<CloudOptions, String> {
        let words = std::iter::once("ethcloud").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.options).map_err(|error| error.to_string())
    }

    #[test]
    fn the_manuals_defaults_hold() {
        let options = parse("").expect("no options");
        assert_eq!((options.device.as_str(), options.listen.to_string().as_str()), ("ethcloud%d", "0.0.0.0:3210"));
        assert_eq!((options.token, options.connect.len()), (Token::new(0).expect("small"), 0));
        assert_eq!(options.timeouts(), (Duration::from_secs(1800), Duration::from_secs(300)));
        assert_eq!(options.level(), LevelFilter::Info);
    }

    #[test]
    fn the_manuals_options_are_read_in_either_form() {
        for line in [
            "-d tap7 -l 0.0.0.0:5000 -t 134 -c a.example:1,192.0.2.1:2 -c [2001:db8::1]:3 --peer-timeout 60 --mac-timeout 20 -v",
            "--device=tap7 --listen=0.0.0.0:5000 --token=134 --connect=a.example:1 --connect 192.0.2.1:2 \
             --connect=[2001:db8::1]:3 --peer-timeout=60 --mac-timeout=20 --verbose",
        ] {
            let options = parse(line).expect(line);
            assert_eq!((options.device.as_str(), options.listen.port()), ("tap7", 5000));
            assert_eq!(options.token, Token::new(134).expect("small"));
            let connect: Vec<_> = options.connect.iter().map(|one| (one.host.as_str(), one.port)).collect();
            assert_eq!(connect, [("a.example", 1), ("192.0.2.1", 2), ("2001:db8::1", 3)]);
            assert_eq!(options.timeouts(), (Duration::from_secs(60), Duration::from_secs(20)));
            assert_eq!(options.level(), LevelFilter::Debug);
        }
        assert_eq!(parse("-c example.org").expect("a name").connect[0].port, CLOUD_PORT);
        assert_eq!(parse("-l localhost:3299 --mac-timeout 0").expect("a name").listen.port(), 3299);
        assert_eq!(parse("--metrics 9469").expect("a port").metrics, "127.0.0.1:9469".parse().ok());
        for (line, format) in [
            ("--scorecard x.prom", ScorecardFormat::Prometheus),
            ("--scorecard x", ScorecardFormat::Json),
            ("--scorecard x.prom --scorecard-format classic", ScorecardFormat::Classic),
        ] {
            assert_eq!(parse(line).expect(line).card(), Some((line.split(' ').nth(1).expect("a path").into(), format)));
        }
        assert_eq!(parse("-q").expect("quiet").level(), LevelFilter::Error);
    }

    #[test]
    fn what_the_program_took_and_could_not_do_is_refused() {
        for (line, word) in [
            ("-v -q", "cannot be used"),
            ("-t 72057594037927936", "7 bytes"),
            ("-t 0x12", "number"),
            ("-t abc", "number"),
            ("-l nonsense", "neither an address"),
            ("-c [fe80::1]:3210", "link-local"),
            ("-c a:b:c", "[2001:db8::1]:3210"),
            ("-c :5", "invalid value"),
            ("--peer-timeout 0", "not in"),
            ("--metrics x", "ADDRESS:PORT or PORT"),
            ("--mac-timeout x", "invalid digit"),
            ("--frob", "unexpected argument"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn the_unspecified_ipv6_address_stands_for_both_families() {
        let texts =
            |listen: &str| sockets(listen.parse().expect(listen)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts("[::]:5"), ["0.0.0.0:5", "[::]:5"]);
        assert_eq!(texts("0.0.0.0:5"), ["0.0.0.0:5"]);
        assert_eq!(texts("[2001:db8::1]:5"), ["[2001:db8::1]:5"]);
        assert_eq!(texts("[::ffff:192.0.2.1]:5"), ["192.0.2.1:5"]);
    }

    #[test]
    fn the_token_is_not_shown() {
        assert!(!format!("{:?}", parse("-t 31337").expect("a token")).contains("31337"));
    }
}
