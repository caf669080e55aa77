//! Every key as an option of the command line.
//!
//! Values come as plain text, so that what is wrong with them is found and told by `check`, in the words it uses for
//! files. An option replaces what the file says for its key, lists included.
//!
//! Options whose value may be left out (`--scorecard`, `--log`) take it with `=` or behind a space; left out, they are
//! an empty text, for which `Check::optional_file` puts the path that the manual names. `=none` switches off what the
//! file switches on.

use clap::Args;

use super::raw::{ClientRaw, Node, ServerRaw, Value};

/// A server's keys as options; each one wins over the file.
#[derive(Debug, Clone, Default, Args)]
pub struct ServerOptions {
    /// Directory of keys and members [default: /var/lib/eps-actor/server]
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// Address to listen on; repeat or separate by commas [default: 0.0.0.0 and ::]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub listen: Vec<String>,
    /// Port to listen on, UDP and TCP [default: 43439]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub port: Option<String>,
    /// IPv4 network that members get addresses from, /8 to /30 [default: 192.168.43.0/24]
    #[arg(long, value_name = "ADDRESS/PREFIX")]
    pub network: Option<String>,
    /// IPv6 network in fd00::/8, /48 to /96; auto makes one, none goes without [default: auto]
    #[arg(long, value_name = "ADDRESS/PREFIX|auto|none")]
    pub network6: Option<String>,
    /// Lease addresses in order from the lowest [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sequential: Option<String>,
    /// Host the join line names, if not the addresses found; repeat or separate by commas [default: guessed]
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// Admit anybody without a token [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub open: Option<String>,
    /// Fixed address and rights of a member, like printer=192.168.43.10,bridge; repeat for more [default: none]
    #[arg(long, visible_alias = "member", value_name = "NAME[=ADDRESS][,RIGHT]…")]
    pub members: Vec<String>,
    /// Subnet a member may publish to the others, or exit for the way to the Internet, like gate=10.1.0.0/16; repeat or
    /// separate by commas [default: none]
    #[arg(long, value_name = "NAME=SUBNET|NAME=exit", value_delimiter = ',')]
    pub allow_routes: Vec<String>,
    /// Socket that `eps-actor status` and its like speak to [default: /run/eps-actor/server.sock]
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
    /// How long an invitation holds, or never [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub invite_expiry: Option<String>,
    /// File the statistics scorecard is written to every 60 s, /var/log/eps_server.stats if none is named [default:
    /// none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub scorecard: Option<String>,
    /// Format of the scorecard: json, prom or classic; auto is prom for a file that ends in .prom, else json
    /// [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub scorecard_format: Option<String>,
    /// Log statistics every 60 s [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub stats: Option<String>,
    /// Address to serve metrics on over HTTP, for Prometheus; a port alone is of 127.0.0.1 [default: none]
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub metrics: Option<String>,
    /// File a Graphviz map of the network is written to every 5 minutes, and when it changes, /var/log/eps.gv if none is
    /// named [default: none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub graphviz: Option<String>,
    /// How much to log: error (the least), warn, info, debug or trace (everything) [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// File to log to instead of standard error, /var/log/eps_server.log if none is named; it is rotated [default: none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub log: Option<String>,
    /// Lines of text for eyes, or of JSON for programs [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
    /// Size at which the log file is rotated, 1KiB to 1TiB [default: 10MiB]
    #[arg(long, value_name = "SIZE")]
    pub log_max_size: Option<String>,
    /// Age at which the log file is rotated, 1s to 365d, or never [default: 7d]
    #[arg(long, value_name = "TIME")]
    pub log_max_age: Option<String>,
    /// Old log files to keep, 0 to 999 [default: 5]
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub log_keep: Option<String>,
    /// Milliseconds to look for a gateway that maps the port by UPnP, NAT-PMP or PCP, at most 60000; 0 asks for no mapping
    /// [default: 1000]
    #[arg(long, value_name = "MS", allow_hyphen_values = true)]
    pub upnptimeout: Option<String>,
    /// UDP port that tells members from where it sees them, so that they find out about their routers; 0 listens on none
    /// [default: the port after --port]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub nat_port: Option<String>,
}

/// A client's keys as options; each one wins over the file.
#[derive(Clone, Default, Args)]
pub struct ClientOptions {
    /// Directory of the key and the membership [default: /var/lib/eps-actor/client]
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// Join line from the server, needed for the first start only. Others on this machine can see an option; the
    /// environment variable and --join-file are safer [default: none]
    #[arg(long, value_name = "eps://…", env = "EPS_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    /// File that holds the join line, readable by its owner only [default: none]
    #[arg(long, value_name = "FILE")]
    pub join_file: Option<String>,
    /// Server to try instead of those in the join line; repeat, or separate several by spaces or commas: all are tried,
    /// the first that completes is kept [default: none]
    #[arg(long, value_name = "HOST[:PORT]…")]
    pub server: Vec<String>,
    /// Port of the server where none is written with its host [default: 43439]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub port: Option<String>,
    /// UDP port of this machine; 0 chooses one and keeps it [default: 0]
    #[arg(long, value_name = "PORT", allow_hyphen_values = true)]
    pub listen_port: Option<String>,
    /// Name of this member [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Network device to make [default: eps0]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// Largest packet of the device in bytes, 576 to 9000 [default: 1376]
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub mtu: Option<String>,
    /// Let the kernel hand over many segments as one frame; false takes single frames [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub offload: Option<String>,
    /// Make the segments of TCP connections fit the path to the other member [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub mss_clamp: Option<String>,
    /// Tell other members the addresses of this machine's interfaces [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub lan: Option<String>,
    /// Try direct paths; false relays everything [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub direct: Option<String>,
    /// Interface or source address that direct paths use; repeat for several [default: none, the system's routes]
    #[arg(long, visible_alias = "uplink", value_name = "INTERFACE|ADDRESS")]
    pub uplinks: Vec<String>,
    /// How several paths to one member are used: best, redundant-small, redundant or bonded [default: redundant-small]
    #[arg(long, value_name = "MODE")]
    pub multipath: Option<String>,
    /// Speak to the server over TCP, at the same port, where UDP gets no answer [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tcp: Option<String>,
    /// Keep the members' names in the hosts file, /etc/hosts or another [default: none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub hosts: Option<String>,
    /// IPv4 subnet behind this machine that the other members may reach through it, where the server allows it; repeat or
    /// separate by commas [default: none]
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    pub route: Vec<String>,
    /// Reach the subnets that other members publish [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub accept_routes: Option<String>,
    /// Send everything for the Internet through this member, which must be an exit node; none sends it as without us
    /// [default: none]
    #[arg(long, value_name = "NAME")]
    pub exit: Option<String>,
    /// Be the way to the Internet for members that ask for it, where the server allows it [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub exit_node: Option<String>,
    /// Give what members send through this machine its own address, so that nobody behind it needs a route back
    /// [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade: Option<String>,
    /// Socket that `eps-actor status` and its like speak to [default: /run/eps-actor/client.sock]
    #[arg(long, value_name = "PATH")]
    pub control: Option<String>,
    /// File the statistics scorecard is written to every 60 s, /var/log/eps_client.stats if none is named [default:
    /// none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub scorecard: Option<String>,
    /// Format of the scorecard: json, prom or classic; auto is prom for a file that ends in .prom, else json
    /// [default: auto]
    #[arg(long, value_name = "FORMAT")]
    pub scorecard_format: Option<String>,
    /// Log statistics every 60 s [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub stats: Option<String>,
    /// Address to serve metrics on over HTTP, for Prometheus; a port alone is of 127.0.0.1 [default: none]
    #[arg(long, value_name = "[ADDRESS:]PORT")]
    pub metrics: Option<String>,
    /// How much to log: error (the least), warn, info, debug or trace (everything) [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// File to log to instead of standard error, /var/log/eps_client.log if none is named; it is rotated [default: none]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub log: Option<String>,
    /// Lines of text for eyes, or of JSON for programs [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<String>,
    /// Size at which the log file is rotated, 1KiB to 1TiB [default: 10MiB]
    #[arg(long, value_name = "SIZE")]
    pub log_max_size: Option<String>,
    /// Age at which the log file is rotated, 1s to 365d, or never [default: 7d]
    #[arg(long, value_name = "TIME")]
    pub log_max_age: Option<String>,
    /// Old log files to keep, 0 to 999 [default: 5]
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pub log_keep: Option<String>,
    /// Milliseconds to look for a gateway that maps the port by UPnP, NAT-PMP or PCP, at most 60000; 0 asks for no mapping
    /// [default: 1000]
    #[arg(long, value_name = "MS", allow_hyphen_values = true)]
    pub upnptimeout: Option<String>,
    /// Try 1,024 ports of a member's router where nothing less gives a direct path [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub hard_nat: Option<String>,
    /// Announce this member in its LAN, and listen for others [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub lan_discovery: Option<String>,
    /// Address to listen on for peers of an ethcloud, which is then bridged into the network: its stations are this
    /// member's, which needs the right `bridge` at the server [default: none]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub cloud: Option<String>,
    /// Token of that ethcloud, a number from 0 to 72057594037927935, needed with --cloud [default: none]
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub cloud_token: Option<String>,
    /// Peer of that ethcloud to connect to; repeat, or separate several by spaces or commas [default: none]
    #[arg(long, value_name = "HOST[:PORT]…")]
    pub cloud_connect: Vec<String>,
    /// Seconds after which a silent peer of that ethcloud is none any more, 1 to 65535 [default: 1800]
    #[arg(long, value_name = "SECONDS")]
    pub cloud_peer_timeout: Option<String>,
    /// Seconds after which a silent station of that ethcloud is forgotten, 0 to 65535 [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub cloud_mac_timeout: Option<String>,
}

impl ServerOptions {
    /// Lays the options over what a file says.
    pub(super) fn lay_over(self, raw: &mut ServerRaw) {
        one(&mut raw.state, "--state", self.state);
        many(&mut raw.listen, "--listen", self.listen);
        one(&mut raw.port, "--port", self.port);
        one(&mut raw.network, "--network", self.network);
        one(&mut raw.network6, "--network6", self.network6);
        one(&mut raw.sequential, "--sequential", self.sequential);
        many(&mut raw.advertise, "--advertise", self.advertise);
        one(&mut raw.open, "--open", self.open);
        many(&mut raw.members, "--members", self.members);
        many(&mut raw.allow_routes, "--allow-routes", self.allow_routes);
        one(&mut raw.control, "--control", self.control);
        one(&mut raw.invite_expiry, "--invite-expiry", self.invite_expiry);
        one(&mut raw.scorecard, "--scorecard", self.scorecard);
        one(&mut raw.scorecard_format, "--scorecard-format", self.scorecard_format);
        one(&mut raw.stats, "--stats", self.stats);
        one(&mut raw.metrics, "--metrics", self.metrics);
        one(&mut raw.graphviz, "--graphviz", self.graphviz);
        one(&mut raw.log_level, "--log-level", self.log_level);
        one(&mut raw.log, "--log", self.log);
        one(&mut raw.log_format, "--log-format", self.log_format);
        one(&mut raw.log_max_size, "--log-max-size", self.log_max_size);
        one(&mut raw.log_max_age, "--log-max-age", self.log_max_age);
        one(&mut raw.log_keep, "--log-keep", self.log_keep);
        one(&mut raw.upnptimeout, "--upnptimeout", self.upnptimeout);
        one(&mut raw.nat_port, "--nat-port", self.nat_port);
    }
}

impl ClientOptions {
    /// Lays the options over what a file says. The join line and the file that holds one are two ways to say the
    /// same thing, so either as an option replaces both in the file.
    /// An empty `EPS_JOIN` counts as none.
    pub(super) fn lay_over(mut self, raw: &mut ClientRaw) {
        self.join = self.join.filter(|line| !line.is_empty());
        if self.join.is_some() || self.join_file.is_some() {
            raw.join = None;
            raw.join_file = None;
        }
        one(&mut raw.state, "--state", self.state);
        one(&mut raw.join, "--join", self.join);
        one(&mut raw.join_file, "--join-file", self.join_file);
        many(&mut raw.server, "--server", words(&self.server));
        one(&mut raw.port, "--port", self.port);
        one(&mut raw.listen_port, "--listen-port", self.listen_port);
        one(&mut raw.name, "--name", self.name);
        one(&mut raw.device, "--device", self.device);
        one(&mut raw.mtu, "--mtu", self.mtu);
        one(&mut raw.offload, "--offload", self.offload);
        one(&mut raw.mss_clamp, "--mss-clamp", self.mss_clamp);
        one(&mut raw.lan, "--lan", self.lan);
        one(&mut raw.direct, "--direct", self.direct);
        many(&mut raw.uplinks, "--uplinks", words(&self.uplinks));
        one(&mut raw.multipath, "--multipath", self.multipath);
        one(&mut raw.tcp, "--tcp", self.tcp);
        one(&mut raw.hosts, "--hosts", self.hosts);
        many(&mut raw.route, "--route", self.route);
        one(&mut raw.accept_routes, "--accept-routes", self.accept_routes);
        one(&mut raw.exit, "--exit", self.exit);
        one(&mut raw.exit_node, "--exit-node", self.exit_node);
        one(&mut raw.masquerade, "--masquerade", self.masquerade);
        one(&mut raw.control, "--control", self.control);
        one(&mut raw.scorecard, "--scorecard", self.scorecard);
        one(&mut raw.scorecard_format, "--scorecard-format", self.scorecard_format);
        one(&mut raw.stats, "--stats", self.stats);
        one(&mut raw.metrics, "--metrics", self.metrics);
        one(&mut raw.log_level, "--log-level", self.log_level);
        one(&mut raw.log, "--log", self.log);
        one(&mut raw.log_format, "--log-format", self.log_format);
        one(&mut raw.log_max_size, "--log-max-size", self.log_max_size);
        one(&mut raw.log_max_age, "--log-max-age", self.log_max_age);
        one(&mut raw.log_keep, "--log-keep", self.log_keep);
        one(&mut raw.upnptimeout, "--upnptimeout", self.upnptimeout);
        one(&mut raw.hard_nat, "--hard-nat", self.hard_nat);
        one(&mut raw.lan_discovery, "--lan-discovery", self.lan_discovery);
        one(&mut raw.cloud, "--cloud", self.cloud);
        one(&mut raw.cloud_token, "--cloud-token", self.cloud_token);
        many(&mut raw.cloud_connect, "--cloud-connect", words(&self.cloud_connect));
        one(&mut raw.cloud_peer_timeout, "--cloud-peer-timeout", self.cloud_peer_timeout);
        one(&mut raw.cloud_mac_timeout, "--cloud-mac-timeout", self.cloud_mac_timeout);
    }
}

/// The join line may be among the options, so none is shown.
impl std::fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientOptions").finish_non_exhaustive()
    }
}

fn one(slot: &mut Option<Node>, option: &'static str, text: Option<String>) {
    if let Some(text) = text {
        *slot = Some(Node::option(option, text));
    }
}

/// The words of texts that may hold several each: `"192.168.1.42 eps.example.com,test.example.com"`.
fn words(texts: &[String]) -> Vec<String> {
    let split = |text: &String| text.split([' ', '\t', '\n', ',']).map(str::to_owned).collect::<Vec<_>>();
    let mut words: Vec<String> = texts.iter().flat_map(split).collect();
    if words.iter().any(|word| !word.is_empty()) {
        words.retain(|word| !word.is_empty());
    }
    words
}

/// One empty text empties the list: `--advertise ''`.
fn many(slot: &mut Option<Node>, option: &'static str, texts: Vec<String>) {
    if texts.iter().any(|text| !text.is_empty()) {
        *slot = Some(Node::options(option, texts));
    } else if !texts.is_empty() {
        *slot = Some(Node { value: Value::List(Vec::new()), ..Node::option(option, String::new()) });
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::super::raw::{self, Keyed, Struct};
    use super::*;

    #[test]
    fn every_key_is_an_option_and_every_option_a_key() {
        agree::<ServerOptions>(ServerRaw::KEYS);
        agree::<ClientOptions>(ClientRaw::KEYS);
    }

    #[test]
    fn the_help_names_the_defaults_of_the_shipped_files() {
        defaults::<ServerOptions>(include_str!("../../config/server.ron"));
        defaults::<ClientOptions>(include_str!("../../config/client.ron"));
    }

    #[test]
    fn every_option_reaches_its_key() {
        let line = "x --state=1 --listen=2 --port=3 --network=4 --network6=5 --sequential=6 --advertise=7 --open=8 \
                    --members=9 --allow-routes=10 --control=11 --invite-expiry=12 --scorecard=13 \
                    --scorecard-format=14 --stats=15 --metrics=16 --graphviz=17 --log-level=18 --log=19 \
                    --log-format=20 --log-max-size=21 --log-max-age=22 --log-keep=23 --upnptimeout=24 --nat-port=25";
        let mut raw = ServerRaw::default();
        parse::<ServerOptions>(line).lay_over(&mut raw);
        reached(ServerRaw::KEYS, |key| raw.slot(key).expect("a key").clone());

        let line = "x --state=1 --join=2 --join-file=3 --server=4 --port=5 --listen-port=6 --name=7 --device=8 \
                    --mtu=9 --offload=10 --mss-clamp=11 --lan=12 --direct=13 --uplinks=14 --multipath=15 --tcp=16 \
                    --hosts=17 --route=18 --accept-routes=19 --exit=20 --exit-node=21 --masquerade=22 --control=23 \
                    --scorecard=24 --scorecard-format=25 --stats=26 --metrics=27 --log-level=28 --log=29 \
                    --log-format=30 --log-max-size=31 --log-max-age=32 --log-keep=33 --upnptimeout=34 --hard-nat=35 \
                    --lan-discovery=36 --cloud=37 --cloud-token=38 --cloud-connect=39 --cloud-peer-timeout=40 \
                    --cloud-mac-timeout=41";
        let mut raw = ClientRaw::default();
        parse::<ClientOptions>(line).lay_over(&mut raw);
        reached(ClientRaw::KEYS, |key| raw.slot(key).expect("a key").clone());
    }

    #[test]
    fn a_value_that_may_be_left_out_is_taken_with_an_equals_sign_a_space_or_not_at_all() {
        for (line, expected) in [
            ("x", None),
            ("x --scorecard", Some("")),
            ("x --scorecard --port 1", Some("")),
            ("x --scorecard= --port 1", Some("")),
            ("x --scorecard=/a --port 1", Some("/a")),
            ("x --scorecard /a --port 1", Some("/a")),
            ("x --port 1 --scorecard /a", Some("/a")),
        ] {
            assert_eq!(parse::<ServerOptions>(line).scorecard.as_deref(), expected, "{line}");
            let log = line.replace("--scorecard", "--log");
            assert_eq!(parse::<ClientOptions>(&log).log.as_deref(), expected, "{log}");
        }
    }

    #[test]
    fn one_text_may_name_several_servers() {
        let words = |texts: &[&str]| words(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["192.168.1.42 eps.example.com,  test.example.com "]).len(), 3);
        assert_eq!(words(&["a,b", "c"]), ["a", "b", "c"]);
        assert_eq!(words(&[]), Vec::<String>::new());
        let mut raw = ClientRaw::default();
        ClientOptions { server: vec![String::new()], ..ClientOptions::default() }.lay_over(&mut raw);
        assert!(matches!(raw.server.expect("a list").value, Value::List(list) if list.is_empty()));
    }

    fn parse<A: Args>(line: &str) -> A {
        let matches =
            A::augment_args(Command::new("x")).try_get_matches_from(line.split_whitespace()).expect("good options");
        A::from_arg_matches(&matches).expect("good options")
    }

    fn reached(keys: &[&str], mut slot: impl FnMut(&str) -> Option<Node>) {
        for (index, key) in keys.iter().enumerate() {
            let mut node = slot(key).unwrap_or_else(|| panic!("--{key} is lost"));
            assert_eq!(node.place.to_string(), format!("--{}", key.replace('_', "-")));
            if let Value::List(list) = node.value {
                node = list.into_iter().next().expect("one entry");
            }
            assert_eq!(node.written, format!("\"{}\"", index + 1), "{key}");
        }
    }

    fn agree<A: Args>(keys: &[&str]) {
        let command = A::augment_args(Command::new("x"));
        let options: Vec<_> = command.get_arguments().filter_map(Arg::get_long).map(|o| o.replace('-', "_")).collect();
        assert_eq!(options, keys);
    }

    fn defaults<A: Args>(shipped: &str) {
        let command = A::augment_args(Command::new("x"));
        let Value::Struct(Struct { fields, .. }) = raw::read("shipped", shipped).expect("good syntax").value else {
            panic!("no struct")
        };
        for field in fields {
            let option = field.key.replace('_', "-");
            let argument = command.get_arguments().find(|argument| argument.get_long() == Some(&option));
            let help = argument.and_then(Arg::get_help).map(ToString::to_string).unwrap_or_default();
            let default = match field.node.value {
                Value::Text(text) => text,
                Value::None if field.key == "name" => "the host name".to_owned(),
                Value::None if field.key == "nat_port" => "the port after --port".to_owned(),
                Value::None => "none".to_owned(),
                Value::List(_) => continue,
                _ => field.node.written,
            };
            assert!(help.contains(&format!("[default: {default}]")), "{option}: {help}");
        }
    }
}
