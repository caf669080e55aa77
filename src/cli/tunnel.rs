//! `eps-actor tunnel`: the options of multi_tun, and what they mean.
//!
//! Its exit codes are multi_tun's as well: 255 for options that cannot be, 0 with one line when no socket can be had. With
//! `--native`, which that program has not, and for everything else they are those of all commands.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args};
use log::LevelFilter;

use crate::actors::supervisor;
use crate::actors::tunnel_system::run_tunnel;
use crate::config::outputs::MetricsAddress;
use crate::config::tunnel::{PAIRS_MAX, PathPair, TUNNEL_TIMEOUT_SECONDS, TunnelConfig};
use crate::config::{LogSettings, ScorecardFormat};
use crate::io::files::read_private;
use crate::logging;
use crate::messages::tunnel::SocketTrouble;
use crate::proto::tunnel::{End, Keys, SECRET_MIN};

/// The exit code of multi_tun for arguments it does not take.
pub const BAD_USAGE: u8 = 255;
/// More than any secret needs.
const SECRET_FILE_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
#[command(disable_help_flag = true, group = ArgGroup::new("end").required(true))]
pub struct TunnelArguments {
    /// Address of this machine in the tunnel, IPv4, a /24 of it goes through; with -6 also or instead IPv6, a /64
    #[arg(short = 'l', long = "tun_listen_addr", visible_alias = "tun-listen-addr", value_name = "ADDRESS[,ADDRESS]")]
    #[arg(required = true, value_delimiter = ',')]
    pub tun_listen_addr: Vec<IpAddr>,
    /// Be the server: address to listen on; with -6 an IPv6 one, or one of each
    #[arg(short = 's', long = "server_listen_addr", visible_alias = "server-listen-addr", group = "end")]
    #[arg(value_name = "ADDRESS[,ADDRESS]", value_delimiter = ',')]
    pub server_listen_addr: Vec<IpAddr>,
    /// UDP port of the server
    #[arg(short = 'p', long = "server_port", visible_alias = "server-port", value_name = "PORT")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    pub server_port: u16,
    /// Be the client: a path for each pair, from an address of this machine to the server; IPv6 as [BIND]:[SERVER]
    #[arg(short = 'c', long = "client_endpoints", visible_alias = "client-endpoints", group = "end")]
    #[arg(value_name = "BIND:SERVER,…", value_delimiter = ',', value_parser = PathPair::parse)]
    pub client_endpoints: Vec<PathPair>,
    /// Drop a packet that a full socket does not take, for that path; without it, it is waited for up to 100 ms
    #[arg(short = 'n', long, value_name = "BOOL", num_args = 0..=1, default_value_t = false)]
    #[arg(default_missing_value = "true", hide_default_value = true)]
    pub nonblocking: bool,
    /// Seconds after which a server forgets an endpoint that is silent
    #[arg(short = 't', long, value_name = "SECONDS", default_value_t = TUNNEL_TIMEOUT_SECONDS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
    /// Take IPv6 addresses, too, for the tunnel and outside of it
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// Speak our own protocol, sequenced and encrypted, so that no packet is taken for a copy and nobody else takes part
    #[arg(long, requires = "secret_file")]
    pub native: bool,
    /// File that holds the secret of both ends, of 32 bytes or more, readable by its owner only; for --native
    #[arg(long, value_name = "FILE", requires = "native")]
    pub secret_file: Option<PathBuf>,
    /// Socket that `eps-actor status` speaks to [default: /run/eps-actor/tunnel.sock, unless another tunnel has it]
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// File the statistics scorecard is written to every 60 s
    #[arg(long, value_name = "FILE")]
    pub scorecard: Option<PathBuf>,
    /// Format of the scorecard: json, prom or classic [default: prom for a file that ends in .prom, else json]
    #[arg(long, value_name = "FORMAT", value_parser = ScorecardFormat::from_str, requires = "scorecard")]
    pub scorecard_format: Option<ScorecardFormat>,
    /// Address to serve metrics on over HTTP, for Prometheus; a port alone is of 127.0.0.1
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = MetricsAddress::from_str)]
    pub metrics: Option<MetricsAddress>,
    /// File a Graphviz map of the paths is written to every 5 minutes, and when they change
    #[arg(long, value_name = "FILE")]
    pub graphviz: Option<PathBuf>,
    /// How much to log: error (the least), warn, info, debug or trace (everything)
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = super::args::level)]
    pub log_level: LevelFilter,
    /// Print help
    #[arg(short = 'h', visible_short_alias = '?', long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// An option that cannot be, which clap could not see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadUsage(String);

/// Runs a tunnel until it is told to stop; its exit code.
///
/// # Errors
/// What keeps it from starting, or ended it.
pub fn run(arguments: TunnelArguments) -> anyhow::Result<u8> {
    logging::start(arguments.log_level, &LogSettings::default())?;
    supervisor::install_panic_log();
    let config = match check(&arguments) {
        Ok(config) => config,
        Err(BadUsage(why)) => return Ok(say(&why, BAD_USAGE)),
    };
    log::info!("{}", told(&arguments));
    if let Some(warning) = arguments.metrics.and_then(MetricsAddress::warning) {
        log::warn!("{warning}");
    }
    let plain = config.keys.is_none();
    match run_tunnel(config) {
        // So does multi_tun, and whoever starts it may count on that.
        Err(error) if plain && error.is::<SocketTrouble>() => Ok(say(&error.to_string(), 0)),
        ended => ended.map(|()| 0),
    }
}

/// Tells in one line why it ends, and gives the exit code.
fn say(why: &str, code: u8) -> u8 {
    use std::io::Write;
    // Nobody may be left to read it.
    let _ = writeln!(std::io::stderr(), "eps-actor: {why}");
    code
}

/// The options in one line, for the log.
fn told(arguments: &TunnelArguments) -> String {
    let list = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let own = list(&arguments.tun_listen_addr);
    let port = arguments.server_port;
    let protocol = if arguments.native { ", native protocol" } else { "" };
    if arguments.client_endpoints.is_empty() {
        let bound = list(&arguments.server_listen_addr);
        return format!("tunnel {own}: acting as server, bound to {bound}, port {port}{protocol}");
    }
    let pairs: Vec<_> =
        arguments.client_endpoints.iter().map(|pair| format!("{} to {}", pair.bind, pair.server)).collect();
    format!("tunnel {own}: connecting to port {port} by {}{protocol}", pairs.join(", "))
}

fn check(arguments: &TunnelArguments) -> Result<TunnelConfig, BadUsage> {
    let bad = |why: String| Err(BadUsage(why));
    let TunnelArguments { tun_listen_addr: own, server_listen_addr: listen, client_endpoints: pairs, .. } = arguments;
    let binds = pairs.iter().map(|pair| &pair.bind);
    if let Some(ip) = own.iter().chain(listen).chain(binds).find(|ip| ip.is_ipv6() && !arguments.ipv6) {
        return bad(format!("{ip} is an IPv6 address: add -6 to take those"));
    }
    for (option, addresses) in [("-l", own), ("-s", listen)] {
        if addresses.iter().filter(|ip| ip.is_ipv4()).count() > 1
            || addresses.iter().filter(|ip| ip.is_ipv6()).count() > 1
        {
            return bad(format!("{option} takes one IPv4 address and one IPv6 address at the most"));
        }
    }
    if let Some(ip) = own.iter().find(|ip| ip.is_unspecified() || ip.is_multicast()) {
        return bad(format!("-l {ip}: a device needs an address of its own"));
    }
    if pairs.len() > PAIRS_MAX {
        return bad(format!("-c takes {PAIRS_MAX} pairs at the most"));
    }
    Ok(TunnelConfig {
        end: if pairs.is_empty() { End::Server } else { End::Client },
        addresses: own.iter().map(|ip| (*ip, if ip.is_ipv4() { 24 } else { 64 })).collect(),
        listen: listen.clone(),
        pairs: pairs.clone(),
        port: arguments.server_port,
        waits: !arguments.nonblocking,
        timeout: Duration::from_secs(arguments.timeout.into()),
        keys: arguments.secret_file.as_deref().map(secret).transpose()?,
        control: arguments.control.clone(),
        scorecard: arguments.scorecard.clone().map(|path| {
            let by_name = ScorecardFormat::by_name(&path);
            (path, arguments.scorecard_format.unwrap_or(by_name))
        }),
        metrics: arguments.metrics.map(|MetricsAddress(address)| address),
        graphviz: arguments.graphviz.clone(),
    })
}

/// The keys from a file that nobody else may read.
fn secret(path: &Path) -> Result<Keys, BadUsage> {
    let bytes = read_private(path, SECRET_FILE_MAX).map_err(|error| BadUsage(format!("--secret-file: {error}")))?;
    Keys::derive(&bytes).ok_or_else(|| {
        BadUsage(format!(
            "--secret-file {}: a secret has {SECRET_MIN} bytes or more; make one with `head -c 32 /dev/urandom | \
             base64`, for both ends",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::*;

    fn parse(line: &str) -> Result<TunnelArguments, clap::Error> {
        let words = ["eps-actor", "tunnel"].into_iter().chain(line.split_whitespace());
        Arguments::try_parse_from(words).map(|arguments| match arguments.command {
            Command::Tunnel(arguments) => *arguments,
            other => panic!("{other:?}"),
        })
    }

    fn checked(line: &str) -> Result<TunnelConfig, String> {
        check(&parse(line).map_err(|error| error.to_string())?).map_err(|error| error.to_string())
    }

    #[test]
    fn the_examples_of_the_seed_mean_what_they_say() {
        let server = checked("-l 10.42.42.1 -s 0.0.0.0 -p 5678").expect("a server");
        assert_eq!(
            (server.end, server.port, server.listen),
            (End::Server, 5678, vec!["0.0.0.0".parse().expect("an ip")])
        );
        assert_eq!(server.addresses, [("10.42.42.1".parse().expect("an ip"), 24)]);
        assert_eq!((server.timeout, server.waits), (Duration::from_secs(20), true));
        let client =
            checked("-l 10.42.42.2 -c 192.168.123.2:192.168.123.1,10.0.0.2:10.0.0.1 -p 5678").expect("a client");
        assert_eq!((client.end, client.pairs.len(), client.pairs[1].server.as_str()), (End::Client, 2, "10.0.0.1"));
    }

    #[test]
    fn long_names_and_the_switch_with_and_without_a_value_are_taken() {
        let long = "--tun_listen_addr 10.42.42.1 --server_listen_addr 0.0.0.0 --server_port 1 --timeout 3";
        assert_eq!(checked(long).expect("a server").timeout, Duration::from_secs(3));
        for (switch, waits) in
            [("-n", false), ("-n true", false), ("-n false", true), ("--nonblocking", false), ("", true)]
        {
            for line in
                [format!("{switch} -l 10.42.42.1 -s 0.0.0.0 -p 1"), format!("-l 10.42.42.1 -s 0.0.0.0 -p 1 {switch}")]
            {
                assert_eq!(checked(&line).expect(&line).waits, waits, "{line}");
            }
        }
        let six = checked("-6 -l fd42::1,10.42.42.1 -s :: -p 1").expect("IPv6");
        assert_eq!(six.addresses.iter().map(|(_, prefix)| *prefix).collect::<Vec<_>>(), [64, 24]);
        assert_eq!(checked("-6 -l fd42::2 -c [fd00::2]:[fd00::1] -p 1").expect("IPv6").pairs.len(), 1);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for line in [
            "",
            "-l 10.42.42.1 -p 1",
            "-l 10.42.42.1 -s 0.0.0.0",
            "-s 0.0.0.0 -p 1",
            "-l 10.42.42.1 -s 0.0.0.0 -c 10.0.0.2:10.0.0.1 -p 1",
            "-l 10.42.42.1/24 -s 0.0.0.0 -p 1",
            "-l 10.42.42.1 -s 0.0.0.0 -p 0",
            "-l 10.42.42.1 -s 0.0.0.0 -p 1 -t 0",
            "-l 10.42.42.1 -s :: -p 1",
            "-l fd42::1 -s 0.0.0.0 -p 1",
            "-l 10.42.42.1,10.42.42.2 -s 0.0.0.0 -p 1",
            "-l 10.42.42.1 -c 10.0.0.2 -p 1",
            "-l 0.0.0.0 -s 0.0.0.0 -p 1",
            "-l 10.42.42.1 -s 0.0.0.0 -p 1 --native",
            "-l 10.42.42.1 -s 0.0.0.0 -p 1 --secret-file x",
            "-l 10.42.42.1 -s 0.0.0.0 -p 1 --native --secret-file /none/such",
            "-l 10.42.42.1 -s 0.0.0.0 -p 1 -n maybe",
        ] {
            assert!(checked(line).is_err(), "{line:?}");
        }
        for help in ["--help", "-h", "-?"] {
            assert_eq!(parse(help).expect_err("help").exit_code(), 0);
        }
    }

    #[test]
    fn a_secret_that_others_may_read_or_that_is_short_is_refused() {
        use std::fs;
        use std::os::unix::fs::PermissionsExt;

        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secret");
        let with = |mode: u32, bytes: &[u8]| {
            fs::write(&path, bytes).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
            secret(&path).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(with(0o600, &[b'x'; 44]), Ok(()));
        assert!(with(0o640, &[b'x'; 44]).is_err_and(|why| why.contains("chmod 600")));
        assert!(with(0o600, b"a word\n").is_err_and(|why| why.contains("32 bytes")));
        assert!(secret(directory.path()).is_err());
    }
}
