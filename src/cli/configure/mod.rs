//! `eps-actor configure`: a few questions, a file that answers them, and the service if it is wanted.
//!
//! Each question is an option too. Where nobody can be asked, a missing answer is an error that names its option, and
//! `--yes` takes what would have been suggested. Nothing is written before the whole file has been judged.

mod old;

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};

use super::args::ConfigureArguments;
use super::install::{self, JOIN_FILE, Plan, name_of};
use crate::config::render::{self, Setting};
use crate::config::{ConfigError, DEVICE, NETWORK, PORT, Role, host_name};
use crate::io::netlink::Netlink;
use crate::wire::join::JoinLine;
use old::Old;

/// An answer is missing and nobody can be asked, or nobody answers.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    #[error("there is no terminal to ask on: give {0}, or --yes for what is suggested")]
    NoTerminal(String),
    #[error("give {0}: there is nothing to suggest")]
    NothingToSuggest(String),
    #[error("the input ended before {0} was answered; nothing was written")]
    Ended(&'static str),
    #[error("nothing was written")]
    Declined,
}

/// Asks, shows, writes, and installs.
pub fn run(arguments: &ConfigureArguments, out: &mut dyn Write) -> Result<()> {
    let input = io::stdin();
    let terminal = input.is_terminal();
    let mut talk = Talk { input: &mut input.lock(), out, terminal, yes: arguments.yes };
    configure(arguments, &mut talk)
}

/// Questions and answers.
struct Talk<'a> {
    input: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    /// Somebody is there to answer.
    terminal: bool,
    /// Suggestions are answers.
    yes: bool,
}

/// One thing to be known.
struct Question<'a> {
    /// What the option is called.
    option: &'static str,
    text: &'a str,
    suggestion: Option<String>,
}

impl Talk<'_> {
    /// The answer: what was given, else asked for, else suggested. `judge` says what is wrong with one.
    fn answer(
        &mut self,
        question: &Question<'_>,
        given: Option<String>,
        judge: impl Fn(&str) -> Result<(), String>,
    ) -> Result<String> {
        if let Some(given) = given {
            // What is wrong with it is told with everything else, as for any option.
            return Ok(given);
        }
        if self.yes || !self.terminal {
            let option = question.option.to_owned();
            return match (&question.suggestion, self.yes) {
                (Some(suggestion), true) => Ok(suggestion.clone()),
                (None, true) => Err(NoAnswer::NothingToSuggest(option).into()),
                (_, false) => Err(NoAnswer::NoTerminal(option).into()),
            };
        }
        loop {
            match &question.suggestion {
                Some(suggestion) if !suggestion.is_empty() => write!(self.out, "{} [{suggestion}]: ", question.text)?,
                Some(_) | None => write!(self.out, "{}: ", question.text)?,
            }
            let line = self.line(question.option)?;
            let answer = match (line.is_empty(), &question.suggestion) {
                (true, Some(suggestion)) => suggestion.clone(),
                (true, None) => continue,
                (false, _) => line,
            };
            match judge(&answer) {
                Ok(()) => return Ok(answer),
                Err(wrong) => writeln!(self.out, "  {wrong}")?,
            }
        }
    }

    /// Whether something is wanted; `default` where nobody can be asked.
    fn wants(&mut self, option: &'static str, text: &str, default: bool) -> Result<bool> {
        if self.yes || !self.terminal {
            return Ok(default);
        }
        loop {
            write!(self.out, "{text} [{}]: ", if default { "Y/n" } else { "y/N" })?;
            match self.line(option)?.to_ascii_lowercase().as_str() {
                "" => return Ok(default),
                "y" | "yes" => return Ok(true),
                "n" | "no" => return Ok(false),
                _ => writeln!(self.out, "  write y or n")?,
            }
        }
    }

    fn line(&mut self, option: &'static str) -> Result<String> {
        self.out.flush()?;
        let mut line = String::new();
        // A join line is the longest answer there is.
        let read = io::Read::take(&mut self.input, ANSWER_MAX).read_line(&mut line)?;
        if read == 0 {
            return Err(NoAnswer::Ended(option).into());
        }
        Ok(line.trim().to_owned())
    }
}

/// The most bytes of an answer.
const ANSWER_MAX: u64 = 8192;

fn configure(arguments: &ConfigureArguments, talk: &mut Talk<'_>) -> Result<()> {
    let mut old = match &arguments.from {
        Some(path) => {
            old::read(&std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?)
        }
        None => Old::default(),
    };
    let role = role(arguments, &old, talk)?;
    let mut settings = old.settings(role);
    for remark in &old.remarks {
        writeln!(talk.out, "{}: {remark}", arguments.from.as_deref().unwrap_or(Path::new("")).display())?;
    }
    let join = match role {
        Role::Server => {
            server(arguments, &mut settings, talk)?;
            None
        }
        Role::Client => client(arguments, &mut settings, talk)?,
    };
    let text = render::file(role, &settings);
    let standard = || Path::new(install::DIRECTORY).join(format!("{}.ron", name_of(role)));
    let config = install::absolute(&arguments.output.clone().unwrap_or_else(standard))?;
    let warnings = install::check(role, &config.display().to_string(), &text, join.as_deref())?;
    let text = match join {
        Some(_) => text.replace(
            "    join_file: None,",
            &format!("    join_file: {:?},", config.with_file_name(JOIN_FILE).display().to_string()),
        ),
        None => text,
    };

    writeln!(talk.out, "\n--- {}\n{text}---", config.display())?;
    for warning in warnings {
        writeln!(talk.out, "warning: {warning}")?;
    }
    if !talk.wants("--yes", &format!("Write it to {}?", config.display()), true)? {
        return Err(NoAnswer::Declined.into());
    }
    let root = arguments.root.as_deref().unwrap_or(Path::new("/"));
    // Asked for plainly, it is an error where it cannot be, and that is said before anything is written.
    if arguments.install {
        install::refuse_without_systemd(role, root, &config)?;
    }
    let plan = Plan { role, root, config: config.clone(), text: Some(text), join };
    install::write(&plan, talk.out)?;
    let offers = !arguments.install && install::has_systemd(root);
    if arguments.install
        || offers && talk.wants("--install", "Have systemd start it, now and with the machine?", false)?
    {
        return install::start(&plan, talk.out);
    }
    writeln!(talk.out, "start it with: sudo eps-actor {} --config {}", name_of(role), config.display())?;
    Ok(())
}

fn role(arguments: &ConfigureArguments, old: &Old, talk: &mut Talk<'_>) -> Result<Role> {
    if let Some(role) = arguments.role.or(old.role) {
        return Ok(role);
    }
    let question = Question {
        option: "--role server or --role client",
        text: "Is this machine the server of a network, or a client of one (server, client)",
        suggestion: None,
    };
    let known = |answer: &str| match answer {
        "server" | "client" => Ok(()),
        _ => Err("write server or client".to_owned()),
    };
    let answer = talk.answer(&question, None, known)?;
    Ok(if answer == "server" { Role::Server } else { Role::Client })
}

fn server(arguments: &ConfigureArguments, settings: &mut Vec<Setting>, talk: &mut Talk<'_>) -> Result<()> {
    let fit = |key: &'static str| move |answer: &str| fits(Role::Server, key, &[answer]);
    let port = Question {
        option: "--port",
        text: "Port to listen on, UDP and TCP",
        suggestion: Some(known(settings, "port", || PORT.to_string())),
    };
    let port = talk.answer(&port, arguments.port.clone(), fit("port"))?;
    let network = Question {
        option: "--network",
        text: "IPv4 network that members get their addresses from",
        suggestion: Some(known(settings, "network", || free_network(&taken()).to_string())),
    };
    let network = talk.answer(&network, arguments.network.clone(), fit("network"))?;
    let open = Question {
        option: "--open",
        text: "Admit anybody who reaches the port, without an invitation (true, false)",
        suggestion: Some("false".to_owned()),
    };
    let open = talk.answer(&open, arguments.open.clone(), fit("open"))?;
    for (key, value) in [("port", port), ("network", network), ("open", open)] {
        put(settings, key, vec![value]);
    }
    Ok(())
}

/// Asks a client's questions; the join line is returned, since it does not go into the file.
fn client(arguments: &ConfigureArguments, settings: &mut Vec<Setting>, talk: &mut Talk<'_>) -> Result<Option<String>> {
    let given = match (&arguments.join, &arguments.join_file) {
        (Some(line), _) => Some(line.clone()),
        (None, Some(path)) => {
            Some(std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?)
        }
        (None, None) if !arguments.server.is_empty() => Some(String::new()),
        (None, None) => None,
    };
    let join = Question {
        option: "--join (or --join '' where this machine is a member already)",
        text: "Join line, as `eps-actor invite` prints it at the server (nothing if this machine is a member already)",
        // An empty line is an answer at a terminal, and no suggestion to one who cannot see the question.
        suggestion: talk.terminal.then(String::new).filter(|_| !talk.yes),
    };
    let is_line = |answer: &str| match answer {
        "" => Ok(()),
        _ => JoinLine::parse(answer, PORT).map(|_| ()).map_err(|wrong| format!("the join line {wrong}")),
    };
    let join = talk.answer(&join, given, is_line)?.trim().to_owned();
    let mut servers = arguments.server.clone();
    if servers.is_empty() && join.is_empty() && !talk.yes && talk.terminal {
        let text = "Server, as HOST or HOST:PORT (nothing for the one it knows)";
        let question = Question { option: "--server", text, suggestion: Some(known(settings, "server", String::new)) };
        let hosts = |answer: &str| fits(Role::Client, "server", &answer.split_whitespace().collect::<Vec<_>>());
        let answer = talk.answer(&question, None, hosts)?;
        servers = answer.split_whitespace().map(str::to_owned).collect();
    }
    let fit = |key: &'static str| move |answer: &str| fits(Role::Client, key, &[answer]);
    let name = Question { option: "--name", text: "Name of this member", suggestion: Some(host_name()) };
    let name = talk.answer(&name, arguments.name.clone(), fit("name"))?;
    let device = Question { option: "--device", text: "Network device to make", suggestion: Some(DEVICE.to_owned()) };
    let device = talk.answer(&device, arguments.device.clone(), fit("device"))?;
    if !servers.is_empty() {
        put(settings, "server", servers);
    }
    if let Some(port) = &arguments.port {
        put(settings, "port", vec![port.clone()]);
    }
    put(settings, "name", vec![name]);
    put(settings, "device", vec![device]);
    Ok(Some(join).filter(|join| !join.is_empty()))
}

/// What a key's value is known to be by now, in words.
fn known(settings: &[Setting], key: &str, otherwise: impl FnOnce() -> String) -> String {
    settings.iter().find(|(found, _)| found == key).map_or_else(otherwise, |(_, words)| words.join(" "))
}

fn put(settings: &mut Vec<Setting>, key: &str, words: Vec<String>) {
    settings.retain(|(found, _)| found != key);
    settings.push((key.to_owned(), words));
}

/// Whether a value is good for a key by itself.
fn fits(role: Role, key: &str, words: &[&str]) -> Result<(), String> {
    let words = words.iter().map(|word| (*word).to_owned()).collect();
    match render::check_text(role, "", &render::file(role, &[(key.to_owned(), words)])) {
        Ok(_) => Ok(()),
        Err(ConfigError::Problems(problems)) => {
            let problems: Vec<_> =
                problems.iter().map(|problem| format!("{}; {}", problem.found, problem.expected)).collect();
            Err(problems.join("\n  "))
        }
        Err(error @ ConfigError::Unreadable { .. }) => Err(error.to_string()),
    }
}

/// The networks that this machine has already.
fn taken() -> Vec<IpNet> {
    let Ok(netlink) = Netlink::open() else { return Vec::new() };
    smol::block_on(async {
        let addresses = netlink.addresses().await.unwrap_or_default().into_iter();
        let routes = netlink.routes().await.unwrap_or_default().into_iter();
        let own = addresses.filter_map(|address| IpNet::new(address.addr, address.prefix).ok());
        own.chain(routes.map(|route| route.dst)).filter(|net| net.prefix_len() > 0).collect()
    })
}

/// The default network, or the first of some others that does not overlap with what is taken.
fn free_network(taken: &[IpNet]) -> Ipv4Net {
    let other = |third| Ipv4Net::new_assert([10, 43, third, 0].into(), 24);
    let is_free = |network: &Ipv4Net| {
        let network = IpNet::V4(*network);
        let holds = |one: &IpNet, address: IpAddr| one.contains(&address);
        !taken.iter().any(|net| holds(net, network.network()) || holds(&network, net.network()))
    };
    std::iter::once(NETWORK).chain((0..=255).map(other)).find(is_free).unwrap_or(NETWORK)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::*;

    const JOIN: &str = "eps://192.0.2.1:5000/aaaqeayeaudaocajbifqydiob4/77777777777777777777777774l52";

    #[test]
    fn a_person_is_asked_and_the_file_is_shown_and_written() {
        let place = Place::new();
        let file = place.path("server.ron");
        let said =
            place.talk(&["--output", &file], "server\n99999\n5000\n10.1.2.3\n10.77.0.0/24\n\ny\n").expect("done");
        for part in [
            "Is this machine the server",
            "[43439]: ",
            "write a whole number from 1 to 65535",
            "(true, false) [false]: ",
            "    port: 5000,",
            "Write it to ",
            "start it with: sudo eps-actor server --config ",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        let config = crate::config::load_server(Some(Path::new(&file)), Default::default()).expect("good");
        assert_eq!((config.port, config.network.to_string().as_str(), config.open), (5000, "10.77.0.0/24", false));
    }

    #[test]
    fn nothing_is_written_when_the_answer_is_no_or_the_input_ends() {
        let place = Place::new();
        let file = place.path("server.ron");
        let answers = "server\n\n10.77.0.0/24\n\n";
        for (input, word) in
            [(format!("{answers}n\n"), "nothing was written"), (answers.to_owned(), "--yes"), ("".to_owned(), "--role")]
        {
            let error = place.talk(&["--output", &file], &input).expect_err("no file").to_string();
            assert!(error.contains(word), "{error}");
            assert!(!Path::new(&file).exists());
        }
    }

    #[test]
    fn a_client_s_join_line_goes_to_a_file_that_only_its_owner_reads() {
        use std::os::unix::fs::PermissionsExt;
        let place = Place::new();
        let file = place.path("client.ron");
        let input = format!("eps://short\n{JOIN}\nada\n\n\n");
        let said = place.talk(&["--role", "client", "--output", &file], &input).expect("done");
        assert!(said.contains("the join line ") && !said.contains(&JOIN[JOIN.len() - 12..]), "{said}");
        let mode = |name: &str| std::fs::metadata(place.path(name)).expect("a file").permissions().mode() & 0o777;
        assert_eq!((mode("client.ron"), mode("join")), (0o644, 0o600));
        let config = crate::config::load_client(Some(Path::new(&file)), Default::default()).expect("good");
        assert_eq!((config.name.as_str(), config.join.map(|line| line.to_string()).as_deref()), ("ada", Some(JOIN)));
    }

    #[test]
    fn what_was_there_is_kept() {
        let place = Place::new();
        let file = place.path("server.ron");
        std::fs::write(&file, "(port: 7)").expect("written");
        place.script(&["--role", "server", "--output", &file, "--yes"]).expect("done");
        assert_eq!(std::fs::read_to_string(place.path("server.ron.old")).expect("kept"), "(port: 7)");
    }

    #[test]
    fn a_script_gives_answers_as_options_and_a_missing_one_is_named() {
        let place = Place::new();
        let file = place.path("x.ron");
        for (line, named) in [
            ("", "--role server or --role client"),
            ("--role server", "--port"),
            ("--role server --port 7", "--network"),
            ("--role server --port 7 --network 10.0.0.0/24", "--open"),
            ("--role client", "--join"),
            ("--role client --yes", "--join"),
            ("--role client --server a", "--name"),
            ("--role client --join= --name a", "--device"),
        ] {
            let words: Vec<_> = line.split_whitespace().chain(["--output", &file]).collect();
            let error = place.script(&words).expect_err(line).to_string();
            assert!(error.contains(&format!("give {named}")), "{line}: {error}");
            assert!(!Path::new(&file).exists(), "{line}");
        }
        for line in [
            "--role server --port 7 --network 10.0.0.0/24 --open",
            "--role server --yes",
            "--role client --join= --yes",
            "--role client --server a --name b --device c",
        ] {
            let words: Vec<_> = line.split_whitespace().chain(["--output", &file]).collect();
            place.script(&words).unwrap_or_else(|error| panic!("{line}: {error:#}"));
        }
    }

    #[test]
    fn a_bad_answer_in_an_option_is_told_by_its_key_and_nothing_is_written() {
        let place = Place::new();
        let file = place.path("x.ron");
        let error =
            place.script(&["--role", "server", "--port", "0", "--network", "x", "--open=maybe", "--output", &file]);
        let error = error.expect_err("bad");
        assert!(error.is::<ConfigError>());
        assert_eq!(error.to_string().lines().count(), 3, "{error}");
        assert!(!Path::new(&file).exists());
    }

    #[test]
    fn an_old_file_answers_what_it_can() {
        let place = Place::new();
        let (old, file) = (place.path("eps.conf"), place.path("server.ron"));
        std::fs::write(&old, "network=10.99.0.0/24\nport=12545\nsequential=1\ncipher_key=aa\n").expect("written");
        let said = place.script(&["--from", &old, "--output", &file, "--yes"]).expect("done");
        assert!(said.contains("eps.conf: line 4: cipher_key is not used any more"), "{said}");
        let config = crate::config::load_server(Some(Path::new(&file)), Default::default()).expect("good");
        assert_eq!(
            (config.port, config.network.to_string().as_str(), config.sequential),
            (12545, "10.99.0.0/24", true)
        );
    }

    #[test]
    fn a_network_is_suggested_that_this_machine_does_not_have() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        assert_eq!(free_network(&[]), NETWORK);
        assert_eq!(free_network(&[net("192.168.0.0/16")]).to_string(), "10.43.0.0/24");
        assert_eq!(free_network(&[net("192.168.43.7/32"), net("10.43.0.0/23")]).to_string(), "10.43.2.0/24");
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn path(&self, name: &str) -> String {
            self.0.path().join(name).display().to_string()
        }

        fn talk(&self, words: &[&str], input: &str) -> Result<String> {
            self.run(words, input, true)
        }

        fn script(&self, words: &[&str]) -> Result<String> {
            self.run(words, "", false)
        }

        /// Without a systemd: the root is this place.
        fn run(&self, words: &[&str], input: &str, terminal: bool) -> Result<String> {
            // A systemd of this machine is none of the test's.
            let root = self.path("");
            let words = ["eps-actor", "configure", "--root", &root].into_iter().chain(words.iter().copied());
            let Command::Configure(arguments) = Arguments::try_parse_from(words).expect("good usage").command else {
                panic!("another command")
            };
            let mut out = Vec::new();
            let (input, yes): (&mut dyn BufRead, _) = (&mut input.as_bytes(), arguments.yes);
            let ended = configure(&arguments, &mut Talk { input, out: &mut out, terminal, yes });
            ended.map(|()| String::from_utf8(out).expect("text"))
        }
    }
}
