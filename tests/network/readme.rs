//! What README tells people to type: every command is one that the program takes, and the first network comes about as it
//! is told there.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use clap::Parser;
use clap::error::ErrorKind;
use eps_actor::cli::args::Arguments;
use eps_actor::cli::demo::scene::Directory;
use eps_actor::io::netns::{Netns, can_make_networks};

use crate::lab::{BIN, World, beside, finish_in, has_program, text, until};

const README: &str = include_str!("../../README.md");

#[test]
fn every_command_in_readme_is_one_that_there_is() {
    let commands = commands(README);
    assert!(commands.len() > 10, "{commands:?}");
    for command in &commands {
        judge(command).unwrap_or_else(|wrong| panic!("`{}`: {wrong}", command.line));
    }
    println!("readme: {} commands are good usage", commands.len());
}

#[test]
fn the_first_network_comes_about_as_readme_tells() {
    if !can_make_networks() || !has_program("unshare") || !has_program("nsenter") {
        return;
    }
    let _turn = beside();
    let mut world = World::new();
    let laptop = world.host();
    let directory = Directory::new().expect("a directory");
    let machines = [("server", world.server.ns.clone()), ("laptop", laptop)];
    let [server, laptop] = machines.map(|(name, ns)| Machine::new(name, ns, &directory));

    let section = README.split("\n## ").find(|section| section.starts_with("Your first network")).expect("the section");
    let (mut line, mut run): (Option<String>, _) = (None, 0);
    let mut running = Vec::new();
    for command in commands(section).into_iter().filter(|command| !command.inline) {
        let mut words = command.line.clone();
        if let Some(line) = &line {
            words = words.replace(placeholder(&words), line);
        }
        words = words.replace(" NAME", &format!(" {}", host_name()));
        run += 1;
        match command.words.get(1).map(String::as_str) {
            Some("server") => {
                running.push(server.start(&words));
                until("the server's join line", || server.log().contains("eps://"));
                let log = server.log();
                line = log.split([' ', '\n', '\'']).find(|word| word.starts_with("eps://")).map(str::to_owned);
            }
            Some("client") => {
                running.push(laptop.start(&words));
                until("the laptop's address", || {
                    let status = laptop.finish("eps-actor status");
                    status.is_ok_and(|said| said.contains("192.168.43.") && said.contains("connected"))
                });
            }
            _ => {
                let places = match command.prompt.as_str() {
                    "server" => vec![&server],
                    "laptop" => vec![&laptop],
                    _ => vec![&server, &laptop],
                };
                for machine in places {
                    let said =
                        machine.finish(&words).unwrap_or_else(|wrong| panic!("{}: `{words}`: {wrong}", machine.name));
                    assert!(!said.is_empty(), "{}: `{words}` says nothing", machine.name);
                }
            }
        }
    }
    assert!(run >= 6, "only {run} commands");
    println!("readme: {run} commands of the first network were run as printed");
    drop(running);
}

/// One command of README.
#[derive(Debug)]
struct Readme {
    /// Whose prompt was before it; empty where there was none or a bare `$`.
    prompt: String,
    /// Without prompt, sudo and remark, as a shell would be given it.
    line: String,
    words: Vec<String>,
    /// In the middle of a sentence: an example to read rather than to run as it is.
    inline: bool,
}

/// The commands in fenced and in indented blocks, and those named in the text.
fn commands(text: &str) -> Vec<Readme> {
    let mut found = Vec::new();
    let mut fence = None;
    for line in text.lines() {
        if let Some(language) = line.strip_prefix("```") {
            fence = if fence.is_some() { None } else { Some(language.trim().to_owned()) };
            continue;
        }
        match (&fence, line.strip_prefix("    ")) {
            (Some(language), _) if matches!(language.as_str(), "sh" | "console") => found.extend(command(line, false)),
            (Some(_), _) => {}
            (None, Some(code)) => found.extend(command(code, false)),
            (None, None) => {
                let spans = line.split('`').skip(1).step_by(2);
                found.extend(spans.filter(|span| span.contains("eps-actor ")).filter_map(|span| command(span, true)));
            }
        }
    }
    found
}

fn command(line: &str, inline: bool) -> Option<Readme> {
    let (prompt, line) = match line.split_once("$ ") {
        Some((prompt, rest)) if prompt.chars().all(|letter| letter.is_ascii_alphanumeric()) => (prompt, rest),
        _ => ("", line),
    };
    let line = line.trim().trim_start_matches("sudo ");
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (line, words) = split(line);
    Some(Readme { prompt: prompt.to_owned(), line, words, inline })
}

/// A line up to its remark, and the words of its first command, as a shell sees them.
fn split(line: &str) -> (String, Vec<String>) {
    let (mut words, mut word, mut quote, mut in_word) = (Vec::new(), String::new(), None, false);
    let (mut end, mut first_ended) = (line.len(), false);
    for (at, letter) in line.char_indices() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '\'' | '"') => (quote, in_word) = (Some(letter), true),
            (None, '#') if !in_word => {
                end = at;
                break;
            }
            (None, ' ' | '|' | '>' | ';') => {
                if std::mem::take(&mut in_word) && !first_ended {
                    words.push(std::mem::take(&mut word));
                }
                first_ended |= letter != ' ';
            }
            _ => {
                in_word = true;
                if !first_ended {
                    word.push(letter);
                }
            }
        }
    }
    if in_word && !first_ended {
        words.push(word);
    }
    (line[..end].trim().to_owned(), words)
}

fn judge(command: &Readme) -> Result<(), String> {
    // Variables before a command are the shell's.
    let variables =
        command.words.iter().take_while(|word| word.split_once('=').is_some_and(|(name, _)| is_variable(name)));
    let words = &command.words[variables.count()..];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = |path: &str| match fs::metadata(root.join(path)) {
        Ok(about) if about.permissions().mode() & 0o111 != 0 || !path.starts_with("tools/") => Ok(()),
        Ok(_) => Err(format!("{path} cannot be run")),
        Err(error) => Err(format!("{path}: {error}")),
    };
    match words.first().map(String::as_str) {
        Some("eps-actor") => parses(&words[1..]),
        Some("cargo") => match words.iter().position(|word| word == "--") {
            Some(at) => parses(&words[at + 1..]),
            None => Ok(()),
        },
        Some(script) if script.starts_with("tools/") => file(script),
        Some("python3") => file(words.get(1).map_or("", String::as_str)),
        // Other people's programs.
        Some("apt" | "cat" | "circo" | "curl" | "dnf" | "dot" | "dpkg" | "ip" | "journalctl" | "kill" | "promtool") => {
            Ok(())
        }
        Some("rpm" | "systemctl" | "tail") => Ok(()),
        first => Err(format!("this test does not know {first:?}")),
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
}

fn parses(words: &[String]) -> Result<(), String> {
    // What stands for something else in a sentence.
    let words = words.iter().map(|word| if word == "COMMAND" { "server" } else { word.as_str() });
    match Arguments::try_parse_from(std::iter::once("eps-actor").chain(words)) {
        Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            Err(error.to_string())
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// The join line that README shows in place of a real one.
fn placeholder(line: &str) -> &str {
    match line.find("eps://") {
        Some(from) => {
            let rest = &line[from..];
            &rest[..rest.find(['\'', ' ']).unwrap_or(rest.len())]
        }
        None => "no join line",
    }
}

/// The name that a client takes where none is given.
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").expect("a name").trim().to_owned()
}

/// A machine with a network, a `/run` and a `/var/lib` of its own, and the program in its path.
struct Machine {
    name: &'static str,
    ns: Arc<Netns>,
    holder: Child,
    log: std::path::PathBuf,
    path: String,
}

impl Machine {
    fn new(name: &'static str, ns: Arc<Netns>, directory: &Directory) -> Self {
        let bin = directory.path().join(format!("{name}.bin"));
        fs::create_dir(&bin).expect("a directory");
        let program = Path::new(BIN).parent().expect("a directory").display().to_string();
        let path = format!("{program}:{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let mut holder = Command::new("unshare");
        holder.args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && echo ready && exec sleep 600",
        ]);
        let mut holder = ns.spawn(holder.stdout(Stdio::piped())).expect("started");
        let mut ready = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().expect("a pipe")), &mut ready)
            .expect("read");
        assert_eq!(ready, "ready\n", "no tmpfs for {name}");
        Self { name, ns, holder, log: directory.path().join(format!("{name}.log")), path }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--mount").arg(format!("--target={}", self.holder.id()));
        command.args(["sh", "-c", &format!("exec {line}")]).env("PATH", &self.path).env_remove("EPS_JOIN");
        command
    }

    /// Runs a command to its end; what it prints, or complains of.
    fn finish(&self, line: &str) -> Result<String, String> {
        let ended = finish_in(&self.ns, &mut self.command(line));
        if ended.status.success() { Ok(text(&ended.stdout)) } else { Err(text(&ended.stderr)) }
    }

    /// Starts a command that runs until it is dropped; its output goes to the log.
    fn start(&self, line: &str) -> Running {
        let log = File::create(&self.log).expect("a log");
        let mut command = self.command(line);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        Running(self.ns.spawn(&mut command).expect("started"))
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
