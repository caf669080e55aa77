//! Configuration: from a file and options to one complete, immutable value.
//!
//! `raw` is the file as written, `options` the same keys on the command line, `check` judges both together and finds
//! all that is wrong at once. Whoever holds a [`ServerConfig`] or a [`ClientConfig`] need check nothing again.
//!
//! Nothing here changes the machine; it reads the file, the join file and the host name.

pub mod check;
pub mod cloud;
pub mod options;
pub mod outputs;
pub mod raw;
pub mod render;
pub mod tunnel;
pub mod units;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use log::LevelFilter;

use crate::io::files::{FileError, read_private};
use crate::proto::multipath::Mode;
use crate::proto::routes::Approval;
use crate::wire::join::{HostPort, JoinLine};
use check::Problem;
pub use options::{ClientOptions, ServerOptions};
pub use outputs::{MetricsAddress, ScorecardFormat};
use raw::{ClientRaw, Keyed, Place, ServerRaw};
pub use units::{Expiry, ExpiryError};

/// Where a server keeps its keys and members.
pub const SERVER_STATE: &str = "/var/lib/eps-actor/server";
/// Where a client keeps its key and membership.
pub const CLIENT_STATE: &str = "/var/lib/eps-actor/client";
/// The server's control socket.
pub const SERVER_CONTROL: &str = "/run/eps-actor/server.sock";
/// The client's control socket.
pub const CLIENT_CONTROL: &str = "/run/eps-actor/client.sock";
/// The server's file of options, read where it is and none is named.
pub const SERVER_FILE: &str = "/etc/eps-actor/server.ron";
/// The client's file of options, read where it is and none is named.
pub const CLIENT_FILE: &str = "/etc/eps-actor/client.ron";
/// Where a server's scorecard goes if no path is named; EPS Conduits used the same.
pub const SERVER_SCORECARD: &str = "/var/log/eps_server.stats";
/// Where a client's scorecard goes if no path is named; EPS Conduits used the same.
pub const CLIENT_SCORECARD: &str = "/var/log/eps_client.stats";
/// Where a server's log goes if a file is wanted and none is named; EPS Conduits used the same.
pub const SERVER_LOG: &str = "/var/log/eps_server.log";
/// Where a client's log goes if a file is wanted and none is named; EPS Conduits used the same.
pub const CLIENT_LOG: &str = "/var/log/eps_client.log";
/// Size at which a log file is rotated, in bytes: a day of a busy server at `info`, and nothing for any disk.
pub const LOG_MAX_SIZE: u64 = 10 << 20;
/// Age at which a log file is rotated: who looks for last week looks in one file.
pub const LOG_MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
/// Old log files that are kept, so that a log takes no more than six times its size.
pub const LOG_KEEP: u16 = 5;
/// The server's port, UDP and TCP; EPS Conduits used the same.
pub const PORT: u16 = crate::wire::join::DEFAULT_PORT;
/// All addresses of the machine, both families.
pub const LISTEN: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
/// The pool of leases; EPS Conduits used the same.
pub const NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 43, 0), 24);
/// How long an invitation holds: long enough to reach somebody by mail, short enough to forget about it.
pub const INVITE_EXPIRY: Expiry = Expiry::After(Duration::from_secs(86_400));
/// The file that programs look names up in.
pub const HOSTS: &str = "/etc/hosts";
/// The map's file where `graphviz` names none, as in EPS Conduits.
pub const GRAPHVIZ: &str = "/var/log/eps.gv";
/// The client's network device.
pub const DEVICE: &str = "eps0";
/// The device's MTU in bytes: 1,492 of PPPoE less 40 of IPv6, 8 of UDP, 32 of a data header and its tag, 16 of a
/// relay's header, 14 of Ethernet and 4 of a VLAN tag leave 1,378, rounded down to a multiple of 16.
pub const MTU: u16 = 1376;
/// What is logged.
pub const LOG_LEVEL: LevelFilter = LevelFilter::Info;
/// How long a gateway is looked for, in milliseconds; EPS Conduits used the same.
pub const UPNP_TIMEOUT_MS: u16 = 1000;

/// The rights a member can have, by name, with their bits in the certificate. `relay` is reserved: nobody asks for it.
pub const RIGHTS: [(&str, u8); 5] = [("bridge", 1), ("dhcp", 2), ("router", 4), ("relay", 8), ("no-flood", 16)];

/// What a process is in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    Server,
    Client,
}

/// All a server needs to know before it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// Directory of the keys and the member store.
    pub state: PathBuf,
    /// Addresses to bind; at least one, none covered by another.
    pub listen: Vec<IpAddr>,
    /// UDP and TCP; 1 to 65535.
    pub port: u16,
    /// The pool of leases: /8 to /30, host bits zero.
    pub network: Ipv4Net,
    pub network6: Network6,
    /// Leases are given in order from the lowest address.
    pub sequential: bool,
    /// What join lines name; empty: what the server finds out itself. At most [`crate::wire::join::MAX_HOSTS`].
    pub advertise: Vec<HostPort>,
    /// Anybody is admitted without a token.
    pub open: bool,
    /// Names, and pinned addresses, are unique; the addresses are hosts of `network`.
    pub members: Vec<MemberPin>,
    /// Which subnets members may publish.
    pub allow_routes: Vec<Approval>,
    /// The control socket; at most 107 bytes.
    pub control: PathBuf,
    /// For invitations that do not say otherwise.
    pub invite_expiry: Expiry,
    /// Written every 60 s where given.
    pub scorecard: Option<PathBuf>,
    /// What is written there.
    pub scorecard_format: ScorecardFormat,
    /// Statistics are logged every 60 s.
    pub stats: bool,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    /// The map is written here as DOT, every 5 minutes and on change.
    pub graphviz: Option<PathBuf>,
    pub log_level: LevelFilter,
    pub log: LogSettings,
    /// How long a gateway that maps ports is looked for before the search counts as vain; zero asks for no mapping.
    pub upnptimeout: Duration,
    /// UDP port that only says from where members are seen; 0 for none.
    pub nat_port: u16,
    /// What is allowed and yet worth a line in the log at the start.
    pub warnings: Vec<String>,
}

/// What a client does for routes beyond its network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// Subnets behind this machine, of IPv4, none overlapping another.
    pub publish: Vec<IpNet>,
    /// Subnets of others are taken up.
    pub accept: bool,
    /// The member that is the way to the Internet.
    pub exit: Option<String>,
    /// This machine is a way to the Internet for others.
    pub exit_node: bool,
    /// What is forwarded leaves with this machine's own address.
    pub masquerade: bool,
}

impl Default for Routing {
    fn default() -> Self {
        Self { publish: Vec::new(), accept: false, exit: None, exit_node: false, masquerade: true }
    }
}

/// Where the log goes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Standard error where none is given.
    pub file: Option<PathBuf>,
    pub format: LogFormat,
    /// Bytes at which the file is rotated.
    pub max_size: u64,
    /// Age at which the file is rotated; `None`: only its size decides.
    pub max_age: Option<Duration>,
    /// Old files that are kept; the oldest go first.
    pub keep: u16,
}

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object in each line.
    Json,
}

impl Default for LogSettings {
    /// Text on standard error.
    fn default() -> Self {
        let (max_size, max_age) = (LOG_MAX_SIZE, Some(LOG_MAX_AGE));
        Self { file: None, format: LogFormat::Text, max_size, max_age, keep: LOG_KEEP }
    }
}

/// Compares two configurations key by key; `keys` are those compared.
macro_rules! compared {
    ($config:ident { $($key:literal: $($field:ident).+,)* }) => {
        impl $config {
            /// The keys whose values are others in `other`, in the order of the file. A join line is for one start only
            /// and is not compared.
            pub fn differing(&self, other: &Self) -> Vec<&'static str> {
                let mut keys = Vec::new();
                $(if self.$($field).+ != other.$($field).+ {
                    keys.push($key);
                })*
                keys
            }

            #[cfg(test)]
            const COMPARED: &'static [&'static str] = &[$($key),*];
        }
    };
}

compared! {
    ServerConfig {
        "state": state,
        "listen": listen,
        "port": port,
        "network": network,
        "network6": network6,
        "sequential": sequential,
        "advertise": advertise,
        "open": open,
        "members": members,
        "allow_routes": allow_routes,
        "control": control,
        "invite_expiry": invite_expiry,
        "scorecard": scorecard,
        "scorecard_format": scorecard_format,
        "stats": stats,
        "metrics": metrics,
        "graphviz": graphviz,
        "log_level": log_level,
        "log": log.file,
        "log_format": log.format,
        "log_max_size": log.max_size,
        "log_max_age": log.max_age,
        "log_keep": log.keep,
        "upnptimeout": upnptimeout,
        "nat_port": nat_port,
    }
}

compared! {
    ClientConfig {
        "state": state,
        "server": servers,
        "port": port,
        "listen_port": listen_port,
        "name": name,
        "device": device,
        "mtu": mtu,
        "offload": offload,
        "mss_clamp": mss_clamp,
        "lan": lan,
        "direct": direct,
        "uplinks": uplinks,
        "multipath": multipath,
        "tcp": tcp,
        "hosts": hosts,
        "route": routing.publish,
        "accept_routes": routing.accept,
        "exit": routing.exit,
        "exit_node": routing.exit_node,
        "masquerade": routing.masquerade,
        "control": control,
        "scorecard": scorecard,
        "scorecard_format": scorecard_format,
        "stats": stats,
        "metrics": metrics,
        "log_level": log_level,
        "log": log.file,
        "log_format": log.format,
        "log_max_size": log.max_size,
        "log_max_age": log.max_age,
        "log_keep": log.keep,
        "upnptimeout": upnptimeout,
        "hard_nat": hard_nat,
        "lan_discovery": lan_discovery,
        "cloud": cloud,
        "cloud_token": cloud_token,
        "cloud_connect": cloud_connect,
        "cloud_peer_timeout": cloud_peer_timeout,
        "cloud_mac_timeout": cloud_mac_timeout,
    }
}

/// Keys of a server that are taken while it runs; the others need a restart.
pub const SERVER_LIVE: &[&str] = &["advertise", "open", "members", "allow_routes", "invite_expiry", "log_level"];
/// Keys of a client that are taken while it runs.
pub const CLIENT_LIVE: &[&str] = &["log_level"];

impl ServerConfig {
    /// This configuration with what can be taken of `newer` while a server runs: [`SERVER_LIVE`].
    pub fn taking(&self, newer: &Self) -> Self {
        let newer = newer.clone();
        Self {
            advertise: newer.advertise,
            open: newer.open,
            members: newer.members,
            allow_routes: newer.allow_routes,
            invite_expiry: newer.invite_expiry,
            log_level: newer.log_level,
            ..self.clone()
        }
    }
}

/// Whether and from where members get IPv6 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network6 {
    /// The server derives a prefix from the network's id.
    Auto,
    None,
    /// In fd00::/8, /48 to /96, host bits zero.
    Prefix(Ipv6Net),
}

/// What the configuration says of one member, known by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPin {
    /// As [`is_name`] allows.
    pub name: String,
    /// Leased to this member only; `None` leases from the pool.
    pub address: Option<Ipv4Addr>,
    /// Rights bits of the certificate, as in [`RIGHTS`].
    pub rights: u8,
}

/// Something that direct paths leave by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// An interface, which may come and go.
    Device(String),
    /// An address of this machine, likewise.
    Address(IpAddr),
}

/// Uplinks there may be: each has a socket for either family.
pub const UPLINKS_MAX: usize = 8;

/// All a client needs to know before it starts.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Directory of the key and the membership.
    pub state: PathBuf,
    /// From `join` or the file `join_file`; a client that is a member already needs none.
    pub join: Option<JoinLine>,
    /// The servers to try in turn: the key `server`, else the hosts of the join line, else none (the membership in
    /// `state` names them).
    pub servers: Vec<HostPort>,
    /// Port of a server where none is written; it is applied to `servers` already.
    pub port: u16,
    /// UDP port to bind; 0 chooses one, which is kept over restarts.
    pub listen_port: u16,
    /// As [`is_name`] allows; the host name where none is given.
    pub name: String,
    /// 1 to 15 bytes, fit for the kernel.
    pub device: String,
    /// Bytes; 576 to 9000.
    pub mtu: u16,
    /// The device hands over and takes super-frames, as far as the kernel has them.
    pub offload: bool,
    /// The segments of TCP connections are made to fit the path to the other member.
    pub mss_clamp: bool,
    /// The addresses of own interfaces are offered as candidates.
    pub lan: bool,
    /// Direct paths are tried; otherwise everything is relayed.
    pub direct: bool,
    /// What direct paths leave by; where none is named, the system's routes decide. At most [`UPLINKS_MAX`].
    pub uplinks: Vec<Uplink>,
    /// How several paths to one member are used, where nothing else was said for it.
    pub multipath: Mode,
    /// The server is spoken to over TCP where UDP gets no answer.
    pub tcp: bool,
    /// The file that members' names are kept in, where given.
    pub hosts: Option<PathBuf>,
    /// What others may reach through this machine.
    pub routing: Routing,
    /// The control socket; at most 107 bytes.
    pub control: PathBuf,
    /// Written every 60 s where given.
    pub scorecard: Option<PathBuf>,
    /// What is written there.
    pub scorecard_format: ScorecardFormat,
    /// Statistics are logged every 60 s.
    pub stats: bool,
    /// Where metrics are served over HTTP.
    pub metrics: Option<SocketAddr>,
    pub log_level: LevelFilter,
    pub log: LogSettings,
    /// How long a gateway that maps ports is looked for before the search counts as vain; zero asks for no mapping.
    pub upnptimeout: Duration,
    /// Many ports are tried where one side's NAT uses another one for each destination.
    pub hard_nat: bool,
    /// Members in one LAN are told and looked for by multicast.
    pub lan_discovery: bool,
    /// Where the ethcloud is listened for that this member bridges into the network, where it does.
    pub cloud: Option<SocketAddr>,
    pub cloud_token: crate::wire::ethcloud::Token,
    /// Peers of that cloud to connect to.
    pub cloud_connect: Vec<HostPort>,
    /// As those of [`cloud::CloudOptions`].
    pub cloud_peer_timeout: Duration,
    pub cloud_mac_timeout: Duration,
    /// What is allowed and yet worth a line in the log at the start.
    pub warnings: Vec<String>,
}

/// Why there is no configuration. It prints one line for each problem.
#[derive(Debug)]
pub enum ConfigError {
    /// The file could not be read.
    Unreadable { path: PathBuf, source: io::Error },
    /// All that is wrong, at least one: the file from top to bottom, then the options by name.
    Problems(Vec<Problem>),
}

/// The file to read: the one named, unless it is named `none`; else the role's own in /etc, where there is one.
pub fn file_for(named: Option<&Path>, role: Role) -> Option<PathBuf> {
    let own = Path::new(match role {
        Role::Server => SERVER_FILE,
        Role::Client => CLIENT_FILE,
    });
    match named {
        Some(named) => (named != Path::new("none")).then(|| named.to_owned()),
        // One that is there and cannot be read is told when it is read.
        None => own.symlink_metadata().is_ok().then(|| own.to_owned()),
    }
}

/// A server's configuration from a file, if there is one, with the options over it.
pub fn load_server(file: Option<&Path>, options: ServerOptions) -> Result<ServerConfig, ConfigError> {
    let (mut raw, mut problems) = load::<ServerRaw>(file, Role::Server)?;
    options.lay_over(&mut raw);
    let config = check::server(&raw, &mut problems);
    finish(config, problems)
}

/// A client's configuration from a file, if there is one, with the options over it.
pub fn load_client(file: Option<&Path>, options: ClientOptions) -> Result<ClientConfig, ConfigError> {
    let (mut raw, mut problems) = load::<ClientRaw>(file, Role::Client)?;
    let joins = options.join.as_ref().is_some_and(|line| !line.is_empty()) || options.join_file.is_some();
    options.lay_over(&mut raw);
    if let Some(credential) = credential("join").filter(|_| !joins) {
        // The file is closed to the service's user; what is handed over stands in for it, even if it is no line.
        raw.join_file = None;
        if credential.trim_start().starts_with("eps:") {
            raw.join = Some(raw::Node::option("credential join", credential.to_string()));
        }
    }
    let config = check::client(&raw, &host_name(), &mut problems);
    finish(config, problems)
}

/// Whose configuration a file is, judged by its keys. A file of keys that both have counts as a server's.
pub fn role_of(file: &Path) -> Result<Role, ConfigError> {
    let text = read_file(file)?;
    let root =
        raw::read(&file.display().to_string(), &text).map_err(|problem| ConfigError::Problems(vec![*problem]))?;
    Ok(check::role_of(&root))
}

/// Whether a member can have this name: 1 to 63 of ASCII letters, digits, `-`, `_` and `.`, a letter or digit first.
pub fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// The names of rights bits, in the order of [`RIGHTS`].
pub fn right_names(rights: u8) -> Vec<&'static str> {
    RIGHTS.iter().filter(|(_, bit)| rights & bit != 0).map(|(name, _)| *name).collect()
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable { path, source } => write!(f, "{}: cannot be read: {source}", path.display()),
            Self::Problems(problems) => {
                for (index, problem) in problems.iter().enumerate() {
                    let newline = if index == 0 { "" } else { "\n" };
                    write!(f, "{newline}{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unreadable { source, .. } => Some(source),
            Self::Problems(_) => None,
        }
    }
}

/// The most bytes of a configuration that are read: room for ten thousand pinned members.
const MAX_FILE: u64 = 1 << 20;

/// The most bytes of a join file; the longest line with [`crate::wire::join::MAX_HOSTS`] names fits.
const MAX_JOIN_FILE: u64 = 8192;

fn load<K: Keyed>(file: Option<&Path>, role: Role) -> Result<(K, Vec<Problem>), ConfigError> {
    let mut problems = Vec::new();
    let Some(path) = file else { return Ok((K::default(), problems)) };
    let text = read_file(path)?;
    let raw = match raw::read(&path.display().to_string(), &text) {
        Ok(root) => check::keys(root, role, &mut problems),
        Err(problem) => {
            problems.push(*problem);
            K::default()
        }
    };
    Ok((raw, problems))
}

fn finish<C>(config: Option<C>, mut problems: Vec<Problem>) -> Result<C, ConfigError> {
    problems.sort_by(|one, other| one.place.cmp(&other.place));
    match config {
        Some(config) if problems.is_empty() => Ok(config),
        Some(_) | None => {
            debug_assert!(!problems.is_empty(), "what is missing has been told");
            Err(ConfigError::Problems(problems))
        }
    }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(io::Error::other("it is larger than 1 MiB")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let before = String::from_utf8_lossy(before);
        let (line, start) = (before.matches('\n').count(), before.rfind('\n').map_or(0, |newline| newline + 1));
        let column = before[start..].chars().count();
        ConfigError::Problems(vec![Problem {
            place: Place::File {
                path: path.display().to_string().into(),
                line: line as u32 + 1,
                column: column as u32 + 1,
            },
            key: String::new(),
            found: "found a byte that is not UTF-8".to_owned(),
            expected: "save the file as UTF-8".to_owned(),
        }])
    })
}

/// A join line in a file of its own cannot be read.
#[derive(Debug, thiserror::Error)]
enum JoinFileError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it is not text")]
    NotText,
}

/// The join line in a file of its own: the line admits whoever holds it.
fn read_join_file(path: &Path) -> Result<zeroize::Zeroizing<String>, JoinFileError> {
    let bytes = read_private(path, MAX_JOIN_FILE)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| JoinFileError::NotText)?;
    Ok(zeroize::Zeroizing::new(text.to_owned()))
}

/// What the service manager hands over under this name (systemd.exec(5), LoadCredential).
fn credential(name: &str) -> Option<zeroize::Zeroizing<String>> {
    let path = PathBuf::from(std::env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    let mut text = zeroize::Zeroizing::new(String::with_capacity(MAX_JOIN_FILE as usize));
    File::open(path).ok()?.take(MAX_JOIN_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The machine's name, made fit for a member's; "node" if nothing of it is.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let fit: String = name.trim().chars().filter(|letter| letter.is_ascii()).take(63).collect();
    if is_name(&fit) { fit } else { "node".to_owned() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

    use super::check::tests::JOIN;
    use super::*;

    #[test]
    fn no_file_and_no_options_give_the_defaults() {
        let server = load_server(None, ServerOptions::default()).expect("defaults");
        assert_eq!((server.port, server.network, server.network6), (43439, NETWORK, Network6::Auto));
        assert!(server.warnings.is_empty());
        let client = load_client(None, ClientOptions::default()).expect("defaults");
        assert_eq!((client.device.as_str(), client.mtu), ("eps0", 1376));
        assert!(is_name(&client.name), "{}", client.name);
    }

    #[test]
    fn the_shipped_files_say_the_defaults() {
        let server = load_server(Some(&shipped("server.ron")), ServerOptions::default()).expect("a good file");
        assert_eq!(server, load_server(None, ServerOptions::default()).expect("defaults"));
        let client = load_client(Some(&shipped("client.ron")), ClientOptions::default()).expect("a good file");
        let defaults = load_client(None, ClientOptions::default()).expect("defaults");
        assert_eq!(format!("{client:#?}"), format!("{defaults:#?}"));
    }

    #[test]
    fn the_shipped_files_hold_every_key_with_a_comment_before_it() {
        complete::<ServerRaw>("server.ron");
        complete::<ClientRaw>("client.ron");
    }

    #[test]
    fn the_ron_crate_reads_the_shipped_files_too() {
        let options = ron::Options::default().with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
        let text = |name| std::fs::read_to_string(shipped(name)).expect("a file");
        options.from_str::<raw::ServerTyped>(&text("server.ron")).expect("RON");
        options.from_str::<raw::ClientTyped>(&text("client.ron")).expect("RON");
        let members = text("server.ron")
            .replace("members: []", r#"members: [(name: "printer", address: "192.168.43.10", rights: ["bridge"])]"#);
        options.from_str::<raw::ServerTyped>(&members).expect("RON");
    }

    #[test]
    fn every_key_is_compared_when_a_file_is_read_again() {
        assert_eq!(ServerConfig::COMPARED, ServerRaw::KEYS);
        let client: Vec<_> = ClientRaw::KEYS.iter().copied().filter(|key| !key.starts_with("join")).collect();
        assert_eq!(ClientConfig::COMPARED, client);
    }

    #[test]
    fn what_is_taken_from_a_newer_file_is_what_the_list_says() {
        let text = r#"(port: 1, network: "10.0.0.0/24", advertise: ["a"], open: true, members: [(name: "b")],
            allow_routes: ["b=exit"], invite_expiry: "1h", log_level: "debug", log: "", log_keep: 1)"#;
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("x.ron");
        std::fs::write(&path, text).expect("written");
        let old = load_server(None, ServerOptions::default()).expect("defaults");
        let new = load_server(Some(&path), ServerOptions::default()).expect("a good file");
        // The second port is the one after the first.
        let needs_a_restart = ["port", "network", "log", "log_keep", "nat_port"];
        let mut all: Vec<_> = needs_a_restart.into_iter().chain(SERVER_LIVE.iter().copied()).collect();
        all.sort_unstable();
        let mut differing = old.differing(&new);
        differing.sort_unstable();
        assert_eq!(differing, all);
        assert_eq!(old.differing(&old.taking(&new)), SERVER_LIVE);
        assert_eq!(old.taking(&new).differing(&new), needs_a_restart);
    }

    #[test]
    fn a_file_is_the_one_named_or_none_or_that_of_the_role() {
        assert_eq!(file_for(Some(Path::new("/x")), Role::Server), Some(PathBuf::from("/x")));
        assert_eq!(file_for(Some(Path::new("none")), Role::Server), None);
        let own = Path::new(CLIENT_FILE);
        assert_eq!(file_for(None, Role::Client), own.exists().then(|| own.to_owned()));
    }

    #[test]
    fn a_file_tells_its_role() {
        assert_eq!(role_of(&shipped("server.ron")).expect("a role"), Role::Server);
        assert_eq!(role_of(&shipped("client.ron")).expect("a role"), Role::Client);
    }

    #[test]
    fn a_missing_file_and_a_file_that_is_no_text_are_told() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("x.ron");
        let missing = load_server(Some(&path), ServerOptions::default()).expect_err("no file");
        assert!(missing.to_string().contains("x.ron: cannot be read: No such file"), "{missing}");
        std::fs::write(&path, b"(\n  a\xff").expect("written");
        let binary = load_server(Some(&path), ServerOptions::default()).expect_err("no text");
        assert!(binary.to_string().ends_with("x.ron:2:4: found a byte that is not UTF-8; save the file as UTF-8"));
    }

    #[test]
    fn a_join_file_is_read_unless_others_can_read_it() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("join");
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("a file");
        io::Write::write_all(&mut file, format!("{JOIN}\n").as_bytes()).expect("written");
        let options = ClientOptions { join_file: Some(path.display().to_string()), ..ClientOptions::default() };
        let client = load_client(None, options.clone()).expect("a config");
        assert_eq!(client.join.map(|line| line.to_string()).as_deref(), Some(JOIN));
        assert_eq!(client.servers.len(), 1);
        file.set_permissions(std::fs::Permissions::from_mode(0o644)).expect("rights");
        let refused = load_client(None, options).expect_err("refused").to_string();
        assert!(refused.starts_with("--join-file: ") && refused.contains("chmod 600"), "{refused}");
    }

    fn complete<K: Keyed>(name: &str) {
        let text = std::fs::read_to_string(shipped(name)).expect("a file");
        let raw::Value::Struct(written) = raw::read(name, &text).expect("good syntax").value else {
            panic!("no struct")
        };
        let keys: Vec<_> = written.fields.iter().map(|field| field.key.as_str()).collect();
        assert_eq!(keys, K::KEYS);
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for key in K::KEYS {
            let line = lines.iter().position(|line| line.starts_with(&format!("{key}:"))).expect("a line of its own");
            assert!(lines[line - 1].starts_with("// "), "{key} has no comment");
        }
    }

    fn shipped(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
    }
}
