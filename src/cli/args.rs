//! The command line: every subcommand with its options and help.
//!
//! Only shapes are decided here. What a configuration's values may be is `config`'s business, so that a bad option and
//! a bad line of a file are told alike. Clap ends the process with 2 on bad usage, as the program does itself.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use log::LevelFilter;

use crate::config::cloud::CloudOptions;
use crate::config::{ClientOptions, Expiry, Role, ServerOptions};
use crate::proto::multipath::Mode;

/// A layer-2 mesh VPN: computers in different places on one Ethernet.
#[derive(Debug, Parser)]
#[command(
    name = "eps-actor",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  server$ sudo eps-actor server            prints the line to type at the others
  laptop$ sudo eps-actor client --join 'eps://…'

Exit codes: 0 done, 1 trouble while running, 2 bad usage or configuration"
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one of them in a process")]
pub enum Command {
    /// Run the server of a network: admits members, introduces them to each other, relays for them
    #[command(after_help = "\
Example: sudo eps-actor server --network 10.20.0.0/24 --advertise vpn.example.org")]
    Server(ServerArguments),
    /// Join a network, or come back to it, and bring up its device
    #[command(after_help = "\
Examples:
  sudo eps-actor client --join-file invitation.txt
  sudo eps-actor client                    once this machine is a member")]
    Client(ClientArguments),
    /// Be one end of an ethcloud: a layer-2 network of peers that know one token, unencrypted
    #[command(after_help = "\
Examples:
  sudo eps-actor cloud -t 134 -l 0.0.0.0:3210
  sudo eps-actor cloud -t 134 -c cloud.example.org:3210,192.0.2.7:3210
The device comes up with: ip address add 10.8.0.1/24 dev ethcloud0; ip link set ethcloud0 up")]
    Cloud(CloudOptions),
    /// Show a server and three clients behind two NATs on this machine, in namespaces, and clean up
    #[command(after_help = "Example: sudo eps-actor demo")]
    Demo(DemoArguments),
    /// Try on this machine what the network does elsewhere, in namespaces, and clean up
    #[command(subcommand, after_help = "Example: sudo eps-actor selftest nat")]
    Selftest(SelftestCommand),
    /// Show what the servers, clients, clouds and tunnels that run here are doing
    #[command(after_help = "Example: sudo eps-actor status --json")]
    Status(StatusArguments),
    /// List the members of the network
    #[command(after_help = "Example: sudo eps-actor members --json")]
    Members(MembersArguments),
    /// Show the paths to other members, or change how several of them are used; at the client
    #[command(after_help = "\
Examples:
  sudo eps-actor paths
  sudo eps-actor paths laptop --mode redundant")]
    Paths(PathsArguments),
    /// Print a new join line; at the server
    #[command(after_help = "\
Examples:
  sudo eps-actor invite                    for one member, within 24 hours
  sudo eps-actor invite --reusable --expires never")]
    Invite(InviteArguments),
    /// Ask another member for signs of life, and show the path of each answer; at a client
    #[command(after_help = "\
Examples:
  sudo eps-actor ping nas
  sudo eps-actor ping 10.20.0.7 -c 3 -i 0.2

Exit codes: 0 an answer came, 1 none did, 2 bad usage")]
    Ping(PingArguments),
    /// Say why another member is, or is not, reached directly, and what would change it; at a client
    #[command(after_help = "\
Example: sudo eps-actor why nas

Exit codes: 0 nothing is wrong, 1 something is, 2 bad usage")]
    Why(WhyArguments),
    /// Find out what this machine's network and its NATs let pass; needs no membership and no root
    #[command(after_help = "\
Examples:
  eps-actor netcheck --server vpn.example.org
  eps-actor netcheck --stun stun.example.org --stun stun.example.net:3478 --json
  eps-actor netcheck --server vpn.example.org --long

Exit codes: 0 UDP was answered, 1 it was not, 2 bad usage")]
    Netcheck(NetcheckArguments),
    /// Take a member out of the network for good; at the server
    #[command(after_help = "Example: sudo eps-actor kick laptop")]
    Kick(KickArguments),
    /// Give this member's address back and leave the network; at the client
    #[command(after_help = "Example: sudo eps-actor leave")]
    Leave(LeaveArguments),
    /// Look for everything that is wrong with a configuration file
    #[command(after_help = "Example: eps-actor check --config /etc/eps-actor/server.ron")]
    Check(CheckArguments),
    /// Print the map of the network in Graphviz's DOT; at the server, or at one end of a cloud or a tunnel
    #[command(after_help = "\
Examples:
  sudo eps-actor map --svg map.svg
  sudo eps-actor map | circo -Tpng > map.png")]
    Map(MapArguments),
    /// Ask a few questions, write a configuration file, and offer the service
    #[command(after_help = "\
Examples:
  sudo eps-actor configure
  sudo eps-actor configure --from /etc/eps.conf
  sudo eps-actor configure --role server --port 43439 --network 10.20.0.0/24 --open=false --install")]
    Configure(ConfigureArguments),
    /// Carry IP packets to one other machine by several paths at once, as multi_tun does
    #[command(after_help = "\
Examples:
  server$ sudo eps-actor tunnel -l 10.42.42.1 -s 0.0.0.0 -p 5678
  client$ sudo eps-actor tunnel -l 10.42.42.2 -c 192.168.123.2:192.168.123.1,10.0.0.2:10.0.0.1 -p 5678

multi_tun's protocol is neither encrypted nor authenticated: whoever reaches the port takes part. --native is.
Exit codes: 0 done, or no socket to be had (as multi_tun has it), 1 other trouble, 255 bad usage")]
    Tunnel(Box<super::tunnel::TunnelArguments>),
    /// Write the manual pages into a directory
    #[command(hide = true, after_help = "Example: eps-actor man-pages /usr/local/share/man/man1")]
    ManPages(ManPagesArguments),
    /// Print a script that completes commands in a shell
    #[command(after_help = "\
Example: eps-actor completions bash > /etc/bash_completion.d/eps-actor")]
    Completions(CompletionsArguments),
    /// Make an actor panic, to see that its supervisor restarts it
    #[cfg(any(debug_assertions, feature = "fault-injection"))]
    #[command(hide = true, after_help = "Example: sudo eps-actor inject-panic peer-table --role client")]
    InjectPanic(InjectPanicArguments),
}

impl Command {
    /// The options that all commands have but those that run a node, which have their own.
    pub fn common(&self) -> Option<&Common> {
        match self {
            Self::Server(_) | Self::Client(_) | Self::Cloud(_) | Self::Tunnel(_) => None,
            Self::Demo(arguments) => Some(&arguments.common),
            Self::Selftest(SelftestCommand::Nat(arguments)) => Some(&arguments.common),
            Self::Status(arguments) => Some(&arguments.common),
            Self::Members(arguments) => Some(&arguments.common),
            Self::Paths(arguments) => Some(&arguments.common),
            Self::Invite(arguments) => Some(&arguments.common),
            Self::Ping(arguments) => Some(&arguments.common),
            Self::Netcheck(arguments) => Some(&arguments.common),
            Self::Why(arguments) => Some(&arguments.common),
            Self::Kick(arguments) => Some(&arguments.common),
            Self::Leave(arguments) => Some(&arguments.common),
            Self::Check(arguments) => Some(&arguments.common),
            Self::Map(arguments) => Some(&arguments.common),
            Self::Completions(arguments) => Some(&arguments.common),
            Self::Configure(arguments) => Some(&arguments.common),
            Self::ManPages(arguments) => Some(&arguments.common),
            #[cfg(any(debug_assertions, feature = "fault-injection"))]
            Self::InjectPanic(arguments) => Some(&arguments.common),
        }
    }
}

/// What is tried.
#[derive(Debug, Subcommand)]
pub enum SelftestCommand {
    /// Let machines behind every kind of router meet, two by two, and print the grid
    #[command(after_help = "\
Examples:
  sudo eps-actor selftest nat
  sudo eps-actor selftest nat --kinds port,hard --json")]
    Nat(SelftestNatArguments),
}

#[derive(Debug, Args)]
pub struct SelftestNatArguments {
    /// Kinds of routers: none, full, addr, port, hard, double, blocked [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub kinds: Vec<String>,
    /// Print one object of JSON, in the end
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct ServerArguments {
    /// Configuration file, or none; options win over it [default: /etc/eps-actor/server.ron, where it is]
    #[arg(long, visible_alias = "conf", value_name = "FILE.ron")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub service: ServiceArguments,
    #[command(flatten)]
    pub options: ServerOptions,
}

#[derive(Debug, Args)]
pub struct ClientArguments {
    /// Configuration file, or none; options win over it [default: /etc/eps-actor/client.ron, where it is]
    #[arg(long, visible_alias = "conf", value_name = "FILE.ron")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub service: ServiceArguments,
    #[command(flatten)]
    pub options: ClientOptions,
}

/// To be installed instead of run.
#[derive(Debug, Args)]
pub struct ServiceArguments {
    /// Do not run: write configuration and systemd unit to their places, and start the unit
    #[arg(long)]
    pub install: bool,
    /// Where / is, for tests of --install
    #[arg(long, hide = true, value_name = "DIR", default_value = "/", hide_default_value = true)]
    pub root: PathBuf,
}

#[derive(Args)]
pub struct ConfigureArguments {
    /// Is this machine the server of a network, or a client of one
    #[arg(long)]
    pub role: Option<Role>,
    /// A file of EPS Conduits (eps.conf) to take answers from
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// The file to write [default: /etc/eps-actor/server.ron or client.ron]
    #[arg(long, value_name = "FILE.ron")]
    pub output: Option<PathBuf>,
    /// Server: port to listen on; client: port of the server
    #[arg(long, value_name = "PORT")]
    pub port: Option<String>,
    /// Server: IPv4 network that members get addresses from
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    pub network: Option<String>,
    /// Server: admit anybody without an invitation
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub open: Option<String>,
    /// Client: join line from the server; nothing on a machine that is a member already
    #[arg(long, value_name = "eps://…", env = "EPS_JOIN", hide_env_values = true, conflicts_with = "join_file")]
    pub join: Option<String>,
    /// Client: file that holds the join line
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<PathBuf>,
    /// Client: server to try instead of those in the join line; repeat or separate by commas
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub server: Vec<String>,
    /// Client: name of this member
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Client: network device to make
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Take what is suggested for everything not given, and write without asking
    #[arg(long)]
    pub yes: bool,
    /// Have systemd start it, now and with the machine
    #[arg(long)]
    pub install: bool,
    /// Where / is, for tests of --install
    #[arg(long, hide = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    #[command(flatten)]
    pub common: Common,
}

/// The join line may be among them, so none is shown.
impl std::fmt::Debug for ConfigureArguments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigureArguments").finish_non_exhaustive()
    }
}

#[derive(Debug, Args)]
pub struct ManPagesArguments {
    /// The directory; it is made if it is not there
    pub directory: PathBuf,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct DemoArguments {
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct StatusArguments {
    #[command(flatten)]
    pub target: Target,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct MembersArguments {
    #[command(flatten)]
    pub target: Target,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct InviteArguments {
    /// Admit any number of members with this line, not one
    #[arg(long)]
    pub reusable: bool,
    /// How long the line holds, like 24h, or never [default: the server's invite_expiry]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<Expiry>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct PingArguments {
    /// The member: its name, its address in the network, or its id, as `eps-actor status` shows them
    pub peer: String,
    /// How many to send; 0 for no end
    #[arg(short = 'c', long, value_name = "N", default_value = "10")]
    pub count: u32,
    /// Seconds between them, from 0.1 to 3600
    #[arg(short = 'i', long, value_name = "SECONDS", default_value = "1", value_parser = ping_interval)]
    pub interval: std::time::Duration,
    /// Print JSON: a line for each event, and one that sums up
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

/// A peer answers ten a second and not more.
fn ping_interval(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write seconds, like 1 or 0.2".to_owned())?;
    if (0.1..=3600.0).contains(&seconds) {
        Ok(std::time::Duration::from_secs_f64(seconds))
    } else {
        Err("write seconds from 0.1 to 3600".to_owned())
    }
}

#[derive(Debug, Args)]
pub struct WhyArguments {
    /// The member: its name, its address in the network, or its id, as `eps-actor status` shows them
    pub peer: String,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct NetcheckArguments {
    /// A server of ours to ask; repeat or separate by commas [default: that of the client on this machine]
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub server: Vec<String>,
    /// A public server of STUN (RFC 8489) to ask; repeat or separate by commas. Two tell the kind of the NAT
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub stun: Vec<String>,
    /// Try how long a mapping lives without traffic, up to this time [default when given alone: 5m]
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "5m", value_parser = long_time)]
    pub long: Option<std::time::Duration>,
    /// Print JSON, for scripts
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

/// Servers take up a question about an address again for ten minutes.
fn long_time(text: &str) -> Result<std::time::Duration, String> {
    let time = crate::config::units::duration(text).filter(|time| (2..=600).contains(&time.as_secs()));
    time.ok_or_else(|| "write a time from 2s to 10m".to_owned())
}

#[derive(Debug, Args)]
pub struct KickArguments {
    /// The member, as `eps-actor members` shows it
    pub name: String,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct PathsArguments {
    /// The member: its name, its address in the network, or its id [default: all]
    pub peer: Option<String>,
    /// Use several paths so until the client ends: best, redundant-small, redundant or bonded; without a member, for all
    /// that were not named
    #[arg(long, value_name = "MODE")]
    pub mode: Option<Mode>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct LeaveArguments {
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct CheckArguments {
    /// The file to look at
    #[arg(long, visible_alias = "conf", value_name = "FILE.ron")]
    pub config: PathBuf,
    /// Whose file it is [default: told by its keys]
    #[arg(long)]
    pub role: Option<Role>,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct MapArguments {
    /// Draw the map to this file as SVG, with Graphviz's program dot, which has to be installed
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Ask the server, the cloud or the tunnel, where several run [default: the first of these that runs]
    #[arg(long, value_parser = PossibleValuesParser::new(["server", "cloud", "tunnel"]).try_map(|word| Asked::from_str(&word, false)))]
    pub role: Option<Asked>,
    #[command(flatten)]
    pub socket: Socket,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell
    pub shell: clap_complete::Shell,
    #[command(flatten)]
    pub common: Common,
}

/// Arguments of the hidden command that tests supervision.
#[derive(Debug, Args)]
pub struct InjectPanicArguments {
    /// The actor, as `eps-actor status` shows it
    pub actor: String,
    /// Make it hang instead, to see that the watchdog notices
    #[arg(long)]
    pub hang: bool,
    #[command(flatten)]
    pub target: Target,
    #[command(flatten)]
    pub common: Common,
}

/// Which of the processes on this machine to speak to.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Ask the server, the client, the cloud or the tunnel, where several run [default: whichever run]
    #[arg(long)]
    pub role: Option<Asked>,
    #[command(flatten)]
    pub socket: Socket,
}

/// Whom to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Asked {
    Server,
    Client,
    Cloud,
    Tunnel,
}

impl From<Role> for Asked {
    fn from(role: Role) -> Self {
        match role {
            Role::Server => Self::Server,
            Role::Client => Self::Client,
        }
    }
}

/// The socket to speak to, where it is not the role's default.
#[derive(Debug, Clone, Args)]
pub struct Socket {
    /// Control socket, if the configuration names another than the default
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
}

/// What every command has. `server` and `client` have their own `--log-level`, which is a key of the file too.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// How much to log: error (the least), warn, info, debug or trace (everything)
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = level, hide_default_value = false)]
    pub log_level: LevelFilter,
}

pub(super) fn level(text: &str) -> Result<LevelFilter, String> {
    match text {
        "error" | "warn" | "info" | "debug" | "trace" => text.parse().map_err(|_| "not a level".to_owned()),
        _ => Err("write error, warn, info, debug or trace".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_an_example_and_a_log_level() {
        for command in Arguments::command().get_subcommands() {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            assert!(command.get_after_help().is_some_and(|help| help.to_string().contains("Example")), "{name}");
            let own = command.get_subcommands().next().unwrap_or(command);
            assert!(own.get_arguments().any(|argument| argument.get_long() == Some("log-level")), "{name}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {}", argument.get_id());
            }
        }
    }

    #[test]
    fn commands_parse() {
        for line in [
            "server",
            "server --config x.ron --open --sequential=false --member a=10.0.0.1,bridge --listen 0.0.0.0,::",
            "client --join eps://a/b/c --direct=false --mtu 1280",
            "server --conf x.ron --scorecard --log --sequential --port 1",
            "server --log=/x --scorecard /var/log/eps_server.stats --port 12545 --network 192.168.99.0/24",
            "client --conf x.ron --scorecard /var/log/eps_client.stats --port 12345 --server 10.0.1.1",
            "cloud",
            "cloud -d ethcloud%d -l 0.0.0.0:3210 -t 0 -c a:1,b:2 -c c --peer-timeout 1800 --mac-timeout 300 -v",
            "status --role cloud",
            "status --role tunnel",
            "map --role cloud",
            "demo",
            "selftest nat --kinds port,hard --json",
            "status --json --role client",
            "members --json",
            "invite --reusable --expires never --json",
            "invite --expires 24h --control /tmp/x",
            "ping nas -c 3 -i 0.2 --json --control /tmp/x",
            "why nas --json",
            "netcheck",
            "netcheck --server a --server b:5 --stun c --long --json",
            "netcheck --long=8s",
            "kick laptop",
            "leave",
            "check --config x.ron --role server",
            "map",
            "map --svg map.svg",
            "completions fish",
            "server --install --port 5000",
            "client --install --join-file x",
            "configure --role client --from /etc/eps.conf --join= --yes",
            "configure --role server --open --output x.ron --install",
            "man-pages out",
            "tunnel -l 10.42.42.1 -s 0.0.0.0 -p 5678",
            "tunnel -l 10.42.42.2 -c 192.168.123.2:192.168.123.1,10.0.0.2:10.0.0.1 -p 5678",
            "inject-panic peer-table --role client",
        ] {
            let words = std::iter::once("eps-actor").chain(line.split_whitespace());
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
    }

    #[test]
    fn bad_usage_ends_with_2() {
        for line in ["ping", "why", "netcheck --long=1h", "ping nas -i 0", "ping nas -c -1"] {
            let words = std::iter::once("eps-actor").chain(line.split_whitespace());
            assert_eq!(Arguments::try_parse_from(words).expect_err("bad usage").exit_code(), 2, "{line}");
        }
        for line in ["", "frob", "server --frob", "kick", "check", "invite --expires 5", "status --log-level loud"] {
            let words = std::iter::once("eps-actor").chain(line.split_whitespace());
            assert_eq!(Arguments::try_parse_from(words).expect_err("bad usage").exit_code(), 2, "{line}");
        }
        let help = Arguments::try_parse_from(["eps-actor", "--version"]).expect_err("a version");
        assert_eq!(help.exit_code(), 0);
    }

    #[test]
    fn arguments_do_not_show_the_join_line() {
        for command in ["client", "configure"] {
            let arguments = Arguments::try_parse_from(["eps-actor", command, "--join", "eps://a/b/secret"]);
            assert!(!format!("{:?}", arguments.expect("good usage")).contains("secret"), "{command}");
        }
    }
}
