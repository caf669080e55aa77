//! `eps-actor demo`: a whole network on this machine, in namespaces: acts on the stage that `scene` builds.
//!
//! Real programs, real TAPs, nothing outside the namespaces touched and nothing left behind. The first thing it does may
//! be to enter a user namespace, for which the process must have one thread: call [`run`] before anything starts threads.

pub mod scene;

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::reply::Status;
use super::status;
use crate::io::netns::{NetnsError, enter_user_namespace};
use crate::io::signals::StopSignals;
use crate::scaled::{BitRate, Bytes, Millis, Seconds};
use scene::{DEVICE, Directory, Interrupted, Node, Reached, Scene, check_interrupt, interrupt, transfer, wait_until};

/// Plays the demo. Returns the exit code: 0, or 130 where a signal ended it.
pub fn run(out: &mut dyn Write) -> Result<u8> {
    let mut show = Show { out, start: Instant::now() };
    if prepare()? {
        show.line("not root: continuing as root of a user namespace of its own")?;
    }
    let signals = StopSignals::new().context("cannot catch signals")?;
    let directory = Directory::new()?;
    end_on_signal(signals, directory.path().to_owned())?;
    // The file this process came from, even if somebody replaces it meanwhile.
    let scene = Scene::in_directory(directory, "/proc/self/exe").map_err(explain)?;
    match show.play(scene) {
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("eps-actor: interrupted; everything is stopped and removed");
            Ok(130)
        }
        result => result.map(|()| 0),
    }
}

/// Gets the rights to make namespaces; true if that took a user namespace. Checks for TAP devices, too.
pub(super) fn prepare() -> Result<bool> {
    let unprivileged = !has_capabilities()?;
    if unprivileged {
        enter_user_namespace().with_context(|| format!("cannot make a user namespace ({ADVICE})"))?;
    }
    let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    tun.map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("no permission to open /dev/net/tun: run it with sudo, or `chmod 0666 /dev/net/tun`")
        }
        _ => anyhow::anyhow!(
            "cannot open /dev/net/tun ({error}): load it with `modprobe tun`; a container must be given it"
        ),
    })?;
    Ok(unprivileged)
}

/// Whether this process may make and configure namespaces, and ping.
fn has_capabilities() -> Result<bool> {
    let text = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    Ok(set.context("/proc/self/status names no capabilities")? & CAPABILITIES == CAPABILITIES)
}

/// Some distributions let anybody make a user namespace, and then nothing in it.
pub(super) fn explain(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(NetnsError::NotPermitted(source)) => {
            anyhow::anyhow!("cannot make network namespaces: {source} ({ADVICE})")
        }
        Some(_) | None => error.context("cannot build the networks"),
    }
}

/// Has a signal end the demo in order, or by force where that takes too long.
pub(super) fn end_on_signal(mut signals: StopSignals, directory: PathBuf) -> Result<()> {
    let watch = move || {
        if smol::block_on(signals.next()).is_ok() {
            interrupt();
            std::thread::sleep(FORCE);
            // Whoever reads our output has stopped reading, most likely. The programs die with this process.
            let _ = fs::remove_dir_all(directory);
            std::process::exit(130);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

/// Where it is told, and since when.
struct Show<'a> {
    out: &'a mut dyn Write,
    start: Instant,
}

impl Show<'_> {
    fn play(&mut self, scene: Scene) -> Result<()> {
        let played = self.acts(&scene);
        if let Err(error) = &played
            && !error.is::<Interrupted>()
        {
            // The error itself is the news; a broken pipe may keep the rest from being shown.
            let _ = self.show_logs(&scene);
        }
        played?;
        self.curtain(scene)
    }

    fn acts(&mut self, scene: &Scene) -> Result<()> {
        self.introduce()?;
        self.admit(scene)?;
        let clients = addresses(scene)?;
        self.ping(&clients)?;
        self.transfer(&clients)?;
        self.show_status(&scene.ada)?;
        self.show_scorecard(&scene.ada)?;
        self.show_map(&scene.server)
    }

    fn introduce(&mut self) -> Result<()> {
        self.line("built, in namespaces of this process; nothing outside of them is touched:")?;
        self.text(UNDERLAY)
    }

    /// Starts the server and the clients, and tells the leases as they come.
    fn admit(&mut self, scene: &Scene) -> Result<()> {
        let join = scene.start_server(&[])?;
        self.line("the server runs; it made its keys, and its line to join with is")?;
        self.text(&format!("          eps-actor client --join '{join}'\n"))?;
        for client in scene.clients() {
            client.start(&["--join", &join])?;
        }
        let mut waiting: Vec<&Node> = scene.clients().into();
        wait_until(JOIN, "all clients to get an address", || {
            for at in (0..waiting.len()).rev() {
                if let Some(address) = waiting[at].address()? {
                    let client = waiting.remove(at);
                    self.line(&format!("{:<4} joined and has {address} on its {DEVICE}", client.name))?;
                }
            }
            Ok(waiting.is_empty().then_some(()))
        })
    }

    /// Each pair pings: by relay at first, then by the better path, where there is one.
    fn ping(&mut self, clients: &[Client]) -> Result<()> {
        self.heading("Each pair pings through its TAPs")?;
        let mut pairs = Vec::new();
        for (index, from) in clients.iter().enumerate() {
            for to in &clients[index + 1..] {
                pairs.push(Pair::begin(from, to)?);
            }
        }
        let start = Instant::now();
        while !pairs.is_empty() {
            check_interrupt()?;
            let mut searching = Vec::new();
            for mut pair in pairs {
                pair.look()?;
                if pair.direct.is_some() || start.elapsed() > UPGRADE {
                    let text = pair.finish()?;
                    self.line(&text)?;
                } else {
                    searching.push(pair);
                }
            }
            pairs = searching;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn transfer(&mut self, clients: &[Client]) -> Result<()> {
        let [ada, bob, cleo] = clients else { bail!("there are three clients") };
        self.heading("TCP through the TAPs")?;
        for (from, to) in [(ada, bob), (cleo, ada)] {
            let transfer = transfer(from.node, to.node, to.address, TRANSFER)?;
            let path = from.node.path_to(&to.node.name)?;
            self.line(&format!(
                "{} → {}  {} in {}: {}, {path}",
                from.node.name,
                to.node.name,
                Bytes(transfer.bytes),
                Seconds(transfer.took.as_secs_f64()),
                BitRate(transfer.bits_per_second()),
            ))?;
        }
        Ok(())
    }

    fn show_status(&mut self, node: &Node) -> Result<()> {
        self.heading(&format!("eps-actor status, at {}", node.name))?;
        let reply = node.control(&json!({"command": "status"}))?;
        status::print(&Status::read(&reply)?, self.out)?;
        Ok(())
    }

    fn show_scorecard(&mut self, node: &Node) -> Result<()> {
        self.heading(&format!("The scorecard of {}", node.name))?;
        let scorecard = node.control(&json!({"command": "scorecard"}))?;
        self.text(&lines_of(&scorecard))
    }

    fn show_map(&mut self, server: &Node) -> Result<()> {
        self.heading("eps-actor map, at the server; `dot -Tsvg` draws it")?;
        let reply = server.control(&json!({"command": "map"}))?;
        self.text(reply["dot"].as_str().context("the server's answer holds no map")?)
    }

    /// Stops everything, and looks whether it is gone.
    fn curtain(&mut self, scene: Scene) -> Result<()> {
        self.heading("The end")?;
        let stopped = scene.stop()?;
        let slowest = stopped.iter().map(|one| one.took).max().unwrap_or_default();
        if let Some(one) = stopped.iter().find(|one| !one.status.success()) {
            bail!("{} was asked to stop and ended with {}", one.name, one.status);
        }
        for client in scene.clients() {
            if client.has_device()? {
                bail!("{} left its {DEVICE} behind", client.name);
            }
        }
        let directory = scene.directory.path().to_owned();
        drop(scene);
        if directory.exists() {
            bail!("{} could not be removed", directory.display());
        }
        self.line(&format!(
            "{} programs stopped with exit code 0 within {}; no TAP, namespace or file is left",
            stopped.len(),
            Millis(slowest.as_secs_f64() * 1e3)
        ))
    }

    /// What the nodes that ended by themselves said last; all nodes where none did.
    fn show_logs(&mut self, scene: &Scene) -> Result<()> {
        let all = scene.nodes();
        let any_ended = all.iter().any(|node| node.ended().is_some());
        for node in all.into_iter().filter(|node| node.ended().is_some() == any_ended) {
            let tail = node.log_tail(LOG_LINES);
            if tail.is_empty() {
                continue;
            }
            self.heading(&format!("The last lines of {}", node.name))?;
            self.text(&(tail.join("\n") + "\n"))?;
        }
        Ok(())
    }

    /// A line with the time since the start.
    fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{:>6.1} s  {text}", self.start.elapsed().as_secs_f64())?;
        Ok(self.out.flush()?)
    }

    fn heading(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "\n--- {text}")?;
        Ok(self.out.flush()?)
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }
}

/// A client with its address in the network.
struct Client<'a> {
    node: &'a Node,
    address: IpAddr,
}

fn addresses(scene: &Scene) -> Result<Vec<Client<'_>>> {
    let clients = scene.clients().into_iter();
    clients.map(|node| Ok(Client { node, address: node.wait_for_address(JOIN)? })).collect()
}

/// Two clients, and how they found each other.
struct Pair<'a> {
    from: &'a Client<'a>,
    to: &'a Client<'a>,
    first: scene::Ping,
    answered: Instant,
    /// The direct path, and how long after the first answer it was seen.
    direct: Option<(String, Duration)>,
}

impl<'a> Pair<'a> {
    fn begin(from: &'a Client<'a>, to: &'a Client<'a>) -> Result<Self> {
        let first = from.node.ping_with_path(&to.node.name, to.address, ANSWER)?;
        let direct = match &first.path {
            Reached::Direct(path) => Some((path.clone(), Duration::ZERO)),
            Reached::Relay | Reached::Not(_) => None,
        };
        Ok(Self { from, to, first, answered: Instant::now(), direct })
    }

    /// Looks for a direct path, with a ping to show that one is wanted.
    fn look(&mut self) -> Result<()> {
        if self.direct.is_some() {
            return Ok(());
        }
        let _ = self.from.node.ping(self.to.address, Duration::from_millis(200));
        if let Reached::Direct(path) = self.from.node.path_to(&self.to.node.name)? {
            self.direct = Some((path, self.answered.elapsed()));
        }
        Ok(())
    }

    /// Pings once more both ways, and tells all of it in a line.
    fn finish(&self) -> Result<String> {
        let there = self.from.node.ping_with_path(&self.to.node.name, self.to.address, ANSWER)?;
        let back = self.to.node.ping_with_path(&self.from.node.name, self.from.address, ANSWER)?;
        let mut text = format!("{:<4} → {:<4}  first answer ", self.from.node.name, self.to.node.name);
        let first = Millis(self.first.round_trip.as_secs_f64() * 1e3);
        let now = [there.round_trip, back.round_trip].map(|time| Millis(time.as_secs_f64() * 1e3));
        match &self.direct {
            Some((path, Duration::ZERO)) => write!(text, "direct by {path} in {first}"),
            Some((path, since)) => {
                let since = Seconds(since.as_secs_f64());
                write!(text, "{} in {first}, direct by {path} after {since}", by(&self.first.path))
            }
            None => write!(text, "{} in {first}, and it stays so", by(&self.first.path)),
        }?;
        if self.first.lost > 0 {
            write!(text, ", {} before it unanswered", self.first.lost)?;
        }
        write!(text, "; {}, back {}", now[0], now[1])?;
        Ok(text)
    }
}

/// An answer on a path that is not known came by the relay before the status told so.
fn by(path: &Reached) -> String {
    match path {
        Reached::Direct(_) | Reached::Relay => path.to_string(),
        Reached::Not(state) => format!("by relay (path {state})"),
    }
}

/// JSON with a line for each field of the outermost object, and for each object in an array there.
fn lines_of(value: &Value) -> String {
    let Some(fields) = value.as_object() else { return format!("{value}\n") };
    let lines: Vec<String> = fields
        .iter()
        .map(|(key, value)| match value.as_array() {
            Some(items) if items.iter().any(Value::is_object) => {
                let items: Vec<String> = items.iter().map(|item| format!("    {item}")).collect();
                format!("  {}: [\n{}\n  ]", json!(key), items.join(",\n"))
            }
            Some(_) | None => format!("  {}: {value}", json!(key)),
        })
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// Whether an error is no more than a reader of our output who has gone.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe))
}

/// CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN, by their bits in linux/capability.h.
const CAPABILITIES: u64 = 1 << 12 | 1 << 13 | 1 << 21;

const ADVICE: &str = "run it with sudo, or allow unprivileged user namespaces: \
    `sysctl kernel.unprivileged_userns_clone=1` on Debian, \
    `sysctl kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu";

const UNDERLAY: &str = "
    internet 198.51.100.0/24 ─┬─ server  198.51.100.1
                              ├─ NAT A   198.51.100.11 ─ LAN A 192.168.1.0/24 ─┬─ ada  192.168.1.2
                              │                                                └─ bob  192.168.1.3
                              └─ NAT B   198.51.100.12 ─ LAN B 192.168.2.0/24 ─── cleo 192.168.2.2

";

/// For all clients to join: two seconds are promised for each.
const JOIN: Duration = Duration::from_secs(6);

/// For an answer to a ping, with repetitions.
const ANSWER: Duration = Duration::from_secs(4);

/// How long to look for direct paths, all pairs together; those through NATs may never come.
const UPGRADE: Duration = Duration::from_secs(3);

const TRANSFER: Duration = Duration::from_secs(2);

/// For an orderly end after a signal: programs are killed after three seconds.
const FORCE: Duration = Duration::from_secs(5);

const LOG_LINES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scorecard_is_shown_a_line_for_each_thing() {
        let value = json!({"schema": 1, "node": {"name": "ada"}, "peers": [{"a": 1}, {"b": "x"}], "list": [1, 2]});
        let text = lines_of(&value);
        assert_eq!(
            text,
            "{\n  \"list\": [1,2],\n  \"node\": {\"name\":\"ada\"},\n  \"peers\": [\n    {\"a\":1},\n    {\"b\":\"x\"}\n  ],\n  \
             \"schema\": 1\n}\n"
        );
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }

    #[test]
    fn capabilities_are_read() {
        assert!(has_capabilities().is_ok());
    }

    #[test]
    fn a_reader_who_has_gone_is_told_from_trouble() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("writing");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("trouble")));
    }
}
