//! `invite`, `kick`, `leave`, `map` and `inject-panic`: one question to one node each, and its answer.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::{Value, json};

#[cfg(any(debug_assertions, feature = "fault-injection"))]
use super::args::InjectPanicArguments;
use super::args::{Asked, InviteArguments, KickArguments, LeaveArguments, MapArguments};
use super::ask::{NobodyAnswers, ask_role};
use crate::config::Role;
use crate::io::clock::unix_time;
use crate::io::files::write_atomic;
use crate::scaled::Seconds;

/// Has the server make an invitation, and prints the command that uses it.
pub fn invite(arguments: &InviteArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let expires = arguments.expires.map(|expiry| expiry.to_string());
    let question = json!({"command": "invite", "reusable": arguments.reusable, "expires": expires});
    let reply = ask_role(Role::Server, Some(&arguments.socket), &question)?;
    if arguments.json {
        writeln!(out, "{reply}")?;
        return Ok(());
    }
    writeln!(out, "eps-actor client --join '{}'", text(&reply, "join")?)?;
    let whom = if reply["reusable"] == json!(true) { "any number of members" } else { "one member" };
    match reply["expires_unix"].as_u64() {
        Some(end) => {
            let left = end.saturating_sub(unix_time().as_secs()) as f64;
            writeln!(out, "for {whom}, within {}; whoever has the line can join", Seconds(left))?;
        }
        None => writeln!(out, "for {whom}, without an end; whoever has the line can join")?,
    }
    Ok(())
}

/// Has the server remove a member for good.
pub fn kick(arguments: &KickArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let question = json!({"command": "kick", "name": arguments.name});
    let reply = ask_role(Role::Server, Some(&arguments.socket), &question)?;
    writeln!(out, "{} is no member of the network any more", text(&reply, "removed")?)?;
    Ok(())
}

/// Has the client give back its membership.
pub fn leave(arguments: &LeaveArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    ask_role(Role::Client, Some(&arguments.socket), &json!({"command": "leave"}))?;
    writeln!(out, "this machine has left the network; to come back it needs a new join line")?;
    Ok(())
}

/// Prints the map of the network in DOT, or draws it.
pub fn map(arguments: &MapArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let question = json!({"command": "map"});
    let reply = match arguments.role {
        Some(role) => ask_role(role, Some(&arguments.socket), &question)?,
        // A cloud, then a tunnel, where no server runs.
        None => ask_role(Role::Server, Some(&arguments.socket), &question).or_else(|error| {
            let no_server = matches!(error.downcast_ref(), Some(NobodyAnswers::NoServer));
            let others = [Asked::Cloud, Asked::Tunnel].into_iter().filter(|_| no_server);
            others.filter_map(|role| ask_role(role, None, &question).ok()).next().ok_or(error)
        })?,
    };
    let map = text(&reply, "dot")?.trim_end();
    match &arguments.svg {
        None => writeln!(out, "{map}")?,
        Some(file) => {
            let svg = draw(map)?;
            write_atomic(file, &svg, 0o644)?;
            writeln!(out, "the map is in {}", file.display())?;
        }
    }
    Ok(())
}

/// Has Graphviz draw a map.
fn draw(map: &str) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new("dot");
    command.arg("-Tsvg").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut dot = match command.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "Graphviz's program dot is not installed (package graphviz), and the picture is drawn by it; without --svg \
             the map is printed as text, which `dot -Tsvg` draws on any machine"
        ),
        started => started.context("dot cannot be started")?,
    };
    // It reads all before it writes anything, so that neither waits for the other.
    let written = dot.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(map.as_bytes()));
    let output = dot.wait_with_output().context("dot did not end well")?;
    if !output.status.success() {
        bail!("dot could not draw the map: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    written.context("dot did not read the map")?;
    Ok(output.stdout)
}

/// Makes an actor panic. The name may be written as `status` shows it, or with hyphens.
#[cfg(any(debug_assertions, feature = "fault-injection"))]
pub fn inject_panic(arguments: &InjectPanicArguments, out: &mut dyn Write) -> anyhow::Result<()> {
    let (hang, word) = (arguments.hang, if arguments.hang { "hang" } else { "panic" });
    let question = json!({"command": "inject_panic", "actor": arguments.actor.replace('-', "_"), "hang": hang});
    for reply in super::ask::ask(&arguments.target, &question)? {
        writeln!(out, "{} will {word}", text(&reply, "injected")?)?;
    }
    Ok(())
}

fn text<'a>(reply: &'a Value, field: &str) -> anyhow::Result<&'a str> {
    reply[field]
        .as_str()
        .with_context(|| format!("the answer has no {field:?}; are this program and the node of one version?"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::super::ask::tests::stand_in;
    use super::*;

    #[test]
    fn an_invitation_is_a_command_to_type() {
        let reply = json!({"join": "eps://h/a/b", "expires_unix": unix_time().as_secs() + 86_400, "reusable": false});
        let text = run("invite", reply).expect("done");
        assert!(text.starts_with("eps-actor client --join 'eps://h/a/b'\nfor one member, within "), "{text}");
        let reply = json!({"join": "eps://h/a/b", "expires_unix": null, "reusable": true});
        let text = run("invite --reusable --expires never", reply).expect("done");
        assert!(text.contains("for any number of members, without an end"), "{text}");
    }

    #[test]
    fn the_server_hears_what_was_asked_for() {
        let reply = json!({"join": "x", "expires_unix": null, "reusable": true});
        let text = run("invite --reusable --expires 90m --json", reply).expect("done");
        let reply: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(reply["asked"], json!({"command": "invite", "reusable": true, "expires": "1h30m"}));
    }

    #[test]
    fn short_answers() {
        assert!(run("kick nas", json!({"removed": "nas"})).expect("done").starts_with("nas is no member"));
        assert!(run("leave", json!({"left": true})).expect("done").contains("has left"));
        assert_eq!(run("map", json!({"dot": "graph {}\n"})).expect("done"), "graph {}\n");
    }

    #[test]
    fn an_answer_without_its_field_is_an_error() {
        let error = run("map", json!({"svg": ""})).expect_err("no DOT").to_string();
        assert!(error.starts_with("the answer has no \"dot\""), "{error}");
    }

    #[test]
    fn actors_are_called_by_either_spelling() {
        for written in ["peer-table", "peer_table"] {
            let text = run(&format!("inject-panic {written} --hang"), json!({"injected": "peer_table"})).expect("done");
            assert_eq!(text, "peer_table will hang\n");
        }
    }

    fn run(line: &str, reply: Value) -> anyhow::Result<String> {
        let place = tempfile::tempdir().expect("a directory");
        let socket = place.path().join("s");
        stand_in(&socket, reply);
        let socket = socket.display().to_string();
        let words = std::iter::once("eps-actor").chain(line.split(' ')).chain(["--control", &socket]);
        let mut out = Vec::new();
        match Arguments::try_parse_from(words).expect("good usage").command {
            Command::Invite(arguments) => invite(&arguments, &mut out)?,
            Command::Kick(arguments) => kick(&arguments, &mut out)?,
            Command::Leave(arguments) => leave(&arguments, &mut out)?,
            Command::Map(arguments) => map(&arguments, &mut out)?,
            Command::InjectPanic(arguments) => inject_panic(&arguments, &mut out)?,
            other => panic!("{other:?}"),
        }
        Ok(String::from_utf8(out).expect("text"))
    }
}
