//! `eps-actor ping PEER`: signs of life of another member, inside the session with it, and by which path each came.
//!
//! No ICMP and no device is needed: the client asks the other client itself, and wakes the session if there is none.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::args::PingArguments;
use super::ask::ask_role;
use crate::config::Role;
use crate::scaled::Millis;

/// An answer may take so long; the first one longer, since a session may have to be made.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_FIRST: Duration = Duration::from_secs(4);
/// The longest that the node is asked at once whether the path has changed.
const WATCH: Duration = Duration::from_secs(1);

/// Pings; 0 if any was answered.
pub fn run(arguments: &PingArguments, out: &mut dyn Write) -> anyhow::Result<u8> {
    let mut run = Run { arguments, start: Instant::now(), sent: 0, times: Vec::new(), known: Value::Null };
    loop {
        let began = Instant::now();
        run.once(out)?;
        if arguments.count != 0 && run.sent >= arguments.count {
            break;
        }
        run.watch(began + arguments.interval, out)?;
    }
    run.sum_up(out)?;
    Ok(u8::from(run.times.is_empty()))
}

struct Run<'a> {
    arguments: &'a PingArguments,
    start: Instant,
    sent: u32,
    times: Vec<f64>,
    /// The path that was last told.
    known: Value,
}

impl Run<'_> {
    fn once(&mut self, out: &mut dyn Write) -> anyhow::Result<()> {
        self.sent += 1;
        let patience = if self.times.is_empty() { PATIENCE_FIRST } else { PATIENCE };
        let timeout = patience.as_millis() as u64;
        let question = json!({"command": "ping", "peer": self.arguments.peer, "timeout_ms": timeout});
        let reply = ask_role(Role::Client, Some(&self.arguments.socket), &question)?;
        if self.sent == 1 && !self.arguments.json {
            let (peer, address) = (text(&reply["peer"]), text(&reply["address"]));
            writeln!(out, "pinging {peer} ({address}) inside the network's own session")?;
        }
        let answered = reply["answer"] == "pong";
        if answered {
            self.times.extend(reply["rtt_ms"].as_f64());
        }
        if self.arguments.json {
            let mut line = reply.clone();
            line["event"] = "ping".into();
            line["sequence"] = self.sent.into();
            writeln!(out, "{line}")?;
        } else if answered {
            let took = Millis(reply["rtt_ms"].as_f64().unwrap_or_default());
            let seen = reply["seen_as"].as_str().map(|addr| format!(", seen there as {addr}")).unwrap_or_default();
            writeln!(out, "{}: answer from {} {}, {took}{seen}", self.sent, text(&reply["peer"]), path(&reply["via"]))?;
        } else {
            writeln!(out, "{}: no answer: {}", self.sent, text(&reply["reason"]))?;
        }
        out.flush()?;
        // A change while this one was on its way is told before the next.
        self.tell_path(&reply["via"], &reply["route"], out)
    }

    /// Waits for the next ping, and tells every change of the path meanwhile.
    fn watch(&mut self, until: Instant, out: &mut dyn Write) -> anyhow::Result<()> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            if self.known.is_null() {
                // There is no path whose change could be told.
                thread::sleep(left);
                return Ok(());
            }
            let timeout = left.min(WATCH).as_millis() as u64;
            let question = json!({
                "command": "path", "peer": self.arguments.peer, "known": self.known, "timeout_ms": timeout,
            });
            let reply = ask_role(Role::Client, Some(&self.arguments.socket), &question)?;
            if reply["changed"] == true {
                let known = self.known.clone();
                self.tell_path(&known, &reply["route"], out)?;
            }
        }
    }

    fn tell_path(&mut self, before: &Value, after: &Value, out: &mut dyn Write) -> anyhow::Result<()> {
        let changed = !before.is_null() && !after.is_null() && before != after;
        if !after.is_null() {
            self.known = after.clone();
        }
        if !changed {
            return Ok(());
        }
        let seconds = self.start.elapsed().as_secs_f64();
        if self.arguments.json {
            writeln!(out, "{}", json!({"event": "path", "seconds": seconds, "from": before, "route": after}))?;
        } else {
            let word = match (before["kind"] == "relay", after["kind"] == "direct") {
                (true, true) => "upgraded",
                (false, false) => "fell back",
                (true, false) | (false, true) => "changed",
            };
            let peer = &self.arguments.peer;
            writeln!(out, "   path to {peer} {word} after {seconds:.2} s: now {}", path(after))?;
        }
        Ok(out.flush()?)
    }

    fn sum_up(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let answered = self.times.len();
        let lost = 100.0 * f64::from(self.sent - answered as u32) / f64::from(self.sent.max(1));
        let min = self.times.iter().copied().reduce(f64::min);
        let max = self.times.iter().copied().reduce(f64::max);
        let mean = (answered > 0).then(|| self.times.iter().sum::<f64>() / answered as f64);
        if self.arguments.json {
            let sum = json!({
                "event": "summary", "peer": self.arguments.peer, "sent": self.sent, "answered": answered,
                "lost_percent": lost, "min_ms": min, "avg_ms": mean, "max_ms": max, "route": self.known,
            });
            writeln!(out, "{sum}")?;
            return Ok(());
        }
        writeln!(out, "{} sent, {answered} answered, {lost:.0} % lost", self.sent)?;
        if let (Some(min), Some(mean), Some(max)) = (min, mean, max) {
            writeln!(
                out,
                "round trip min {}, avg {}, max {}; {}",
                Millis(min),
                Millis(mean),
                Millis(max),
                path(&self.known)
            )?;
        }
        Ok(())
    }
}

/// `direct by 192.0.2.1:43439`, `by the relay at …`.
fn path(route: &Value) -> String {
    let address = text(&route["address"]);
    if route["kind"] == "direct" { format!("direct by {address}") } else { format!("by the relay at {address}") }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::super::ask::tests::stand_in;
    use super::*;

    fn run_on(line: &str, reply: Value) -> (String, u8) {
        let place = tempfile::tempdir().expect("a directory");
        let socket = place.path().join("s");
        stand_in(&socket, reply);
        let socket = socket.display().to_string();
        let words = std::iter::once("eps-actor").chain(line.split(' ')).chain(["--control", &socket]);
        let Command::Ping(arguments) = Arguments::try_parse_from(words).expect("good usage").command else {
            panic!("another command")
        };
        let mut out = Vec::new();
        let code = run(&arguments, &mut out).expect("done");
        (String::from_utf8(out).expect("text"), code)
    }

    #[test]
    fn answers_changes_of_path_and_the_sum_are_told() {
        let relay = json!({"kind": "relay", "address": "198.51.100.1:43439"});
        let direct = json!({"kind": "direct", "address": "198.51.100.3:40000"});
        let reply = json!({
            "peer": "bob", "address": "10.20.0.3", "answer": "pong", "rtt_ms": 1.25, "via": relay, "route": direct,
            "seen_as": null, "changed": false,
        });
        let (text, code) = run_on("ping bob -c 2 -i 0.1", reply);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(code, 0);
        assert_eq!(lines[1], "1: answer from bob by the relay at 198.51.100.1:43439, 1.2 ms", "{text}");
        assert!(lines[2].starts_with("   path to bob upgraded after 0."), "{text}");
        assert!(lines[2].ends_with("now direct by 198.51.100.3:40000"), "{text}");
        assert!(text.contains("2 sent, 2 answered, 0 % lost"), "{text}");
    }

    #[test]
    fn nobody_answers_is_1_and_says_why() {
        let reply = json!({"peer": "bob", "address": "10.20.0.3", "answer": "offline", "reason": "bob is away"});
        let (text, code) = run_on("ping bob -c 1", reply.clone());
        assert_eq!(code, 1);
        assert!(text.contains("1: no answer: bob is away") && text.contains("100 % lost"), "{text}");
        let (text, code) = run_on("ping bob -c 1 --json", reply);
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!((code, &last["answered"], &last["min_ms"]), (1, &json!(0), &Value::Null));
    }
}
