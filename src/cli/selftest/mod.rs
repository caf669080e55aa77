//! `eps-actor selftest nat`: does this program, on this kernel, find the ways it should through every kind of router?
//!
//! Builds the [`zoo`] in namespaces of its own, runs a real server and two real clients of each kind, lets every pair
//! meet and prints the grid. Nothing outside the namespaces is touched, and nothing is left behind however it ends.

pub mod zoo;

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::args::SelftestNatArguments;
use super::demo::scene::{Directory, Interrupted, Reached, wait_until};
use super::demo::{end_on_signal, explain, prepare};
use super::table::{Column, Table};
use crate::io::signals::StopSignals;
use crate::scaled::Millis;
use zoo::{Expected, House, Kind, Outcome, Zoo, expected, meet};

/// How long a pair may take: a hard pair has its round, and its thousand probes.
const LIMIT: Duration = Duration::from_secs(12);
/// How long a client may take to join.
const JOINED: Duration = Duration::from_secs(20);
/// Where UDP is blocked, a way over TCP shows within this; if none does, the grid is to say so.
const JOINED_BLOCKED: Duration = Duration::from_secs(6);
/// Until every client knows what router it is behind.
const KNOWN: Duration = Duration::from_secs(6);

/// A pair, and how it fared.
struct Meeting {
    one: Kind,
    other: Kind,
    expected: Expected,
    /// `None` where one of the two could not join.
    outcome: Option<Outcome>,
}

impl Meeting {
    fn is_good(&self) -> bool {
        match (&self.outcome, self.expected) {
            (None | Some(Outcome { answered: None, .. }), _) => false,
            (Some(outcome), Expected::Direct) => outcome.direct.is_some(),
            (Some(outcome), Expected::Relay) => outcome.reached == Reached::Relay,
            (Some(outcome), Expected::Either) => !matches!(outcome.reached, Reached::Not(_)),
        }
    }

    fn word(&self) -> &'static str {
        match self.outcome.as_ref().map(|outcome| &outcome.reached) {
            Some(Reached::Direct(_)) => "direct",
            Some(Reached::Relay) => "relay",
            Some(Reached::Not(_)) => "nothing",
            None => "-",
        }
    }

    fn to_json(&self) -> Value {
        let ms = |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e3).round());
        let outcome = self.outcome.as_ref();
        json!({
            "one": self.one.word(),
            "other": self.other.word(),
            "expected": self.expected.word(),
            "path": outcome.map(|_| self.word()),
            "first_answer_ms": ms(outcome.and_then(|outcome| outcome.answered)),
            "direct_ms": ms(outcome.and_then(|outcome| outcome.direct)),
            "good": self.is_good(),
        })
    }
}

/// Runs the self-test. The exit code: 0 if all is as expected, 1 if not, 130 where a signal ended it.
///
/// # Errors
/// What keeps it from being run.
pub fn nat(arguments: &SelftestNatArguments, out: &mut dyn Write) -> Result<u8> {
    let kinds = kinds(&arguments.kinds)?;
    prepare()?;
    let signals = StopSignals::new().context("cannot catch signals")?;
    let directory = Directory::new()?;
    end_on_signal(signals, directory.path().to_owned())?;
    // The file this process came from, even if somebody replaces it meanwhile.
    let zoo = Zoo::new(directory, "/proc/self/exe").map_err(explain)?;
    let meetings = match run(zoo, &kinds, !arguments.json, out) {
        Err(error) if error.is::<Interrupted>() => {
            writeln!(io::stderr(), "eps-actor: interrupted; everything is stopped and removed")?;
            return Ok(130);
        }
        meetings => meetings?,
    };
    let good = meetings.iter().all(Meeting::is_good);
    if arguments.json {
        let pairs: Vec<Value> = meetings.iter().map(Meeting::to_json).collect();
        writeln!(out, "{}", json!({ "good": good, "pairs": pairs }))?;
    } else {
        print(&kinds, &meetings, out)?;
    }
    Ok(u8::from(!good))
}

fn kinds(words: &[String]) -> Result<Vec<Kind>> {
    if words.is_empty() {
        return Ok(Kind::ALL.to_vec());
    }
    let mut kinds = Vec::new();
    for word in words {
        let Some(kind) = Kind::named(word) else {
            let known: Vec<_> = Kind::ALL.iter().map(|kind| kind.word()).collect();
            bail!("{word:?} is no kind of router; write some of {}", known.join(", "));
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.sort();
    Ok(kinds)
}

fn run(mut zoo: Zoo, kinds: &[Kind], told: bool, out: &mut dyn Write) -> Result<Vec<Meeting>> {
    let line = zoo.start_server(&[])?;
    let mut houses: Vec<[House; 2]> = Vec::new();
    for kind in kinds {
        let [one, other] = ["a", "b"].map(|letter| zoo.house(*kind, &format!("{}-{letter}", kind.word())));
        houses.push([one.map_err(explain)?, other.map_err(explain)?]);
    }
    let all = || houses.iter().flatten();
    for house in all() {
        house.node.start(&["--join", &line, "--upnptimeout", "0"])?;
    }
    let mut joined = Vec::new();
    // Those that take longest come last, so that nobody waits for them.
    for house in all() {
        let limit = if house.kind == Kind::Blocked { JOINED_BLOCKED } else { JOINED };
        match house.node.wait_for_address(limit) {
            Ok(_) => joined.push(house.node.name.clone()),
            Err(error) if house.kind == Kind::Blocked && !error.is::<Interrupted>() => {}
            Err(error) => return Err(error),
        }
    }
    let known = wait_until(KNOWN, "clients to know their routers", || {
        for house in all().filter(|house| house.kind != Kind::Blocked) {
            if house.node.client_status()?.nat.kind == "unknown" {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    // Without it hard pairs will not try all they could, and the grid will say so.
    known.or_else(|error| if error.is::<Interrupted>() { Err(error) } else { Ok(()) })?;
    let mut meetings = Vec::new();
    for (at, [one, _]) in houses.iter().enumerate() {
        for [_, other] in &houses[at..] {
            let expected = expected(one.kind, other.kind);
            let both = [&one.node, &other.node].iter().all(|node| joined.contains(&node.name));
            let outcome = both.then(|| meet(&one.node, &other.node, expected, LIMIT)).transpose()?;
            let meeting = Meeting { one: one.kind, other: other.kind, expected, outcome };
            if told {
                tell(&meeting, out)?;
            }
            meetings.push(meeting);
        }
    }
    // The clients first, while there is a server to say goodbye to.
    for house in all() {
        house.node.terminate()?;
    }
    for house in all() {
        house.node.stop()?;
    }
    zoo.server.stop()?;
    Ok(meetings)
}

fn tell(meeting: &Meeting, out: &mut dyn Write) -> io::Result<()> {
    let pair = format!("{} and {}", meeting.one.word(), meeting.other.word());
    let times = meeting.outcome.as_ref().map_or_else(String::new, |outcome| {
        let answered = outcome.answered.map(|time| format!(", first answer after {}", ms(time)));
        let direct = outcome.direct.map(|time| format!(", direct after {}", ms(time)));
        answered.into_iter().chain(direct).collect()
    });
    let verdict = if meeting.is_good() { "" } else { "  <- not as expected" };
    writeln!(out, "{pair:<20}{}{times}{verdict}", meeting.word())?;
    out.flush()
}

fn print(kinds: &[Kind], meetings: &[Meeting], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out)?;
    let headings = kinds.iter().map(|kind| Column::Left(kind.word()));
    let mut table = Table::new([Column::Left("")].into_iter().chain(headings).collect::<Vec<_>>());
    for one in kinds {
        let cell = |other: &Kind| {
            let (low, high) = (*one.min(other), *one.max(other));
            meetings.iter().find(|meeting| (meeting.one, meeting.other) == (low, high)).map(|m| m.word().to_owned())
        };
        table.row([Some(one.word().to_owned())].into_iter().chain(kinds.iter().map(cell)).collect());
    }
    table.write(out)?;
    let of = |wanted: fn(&Meeting) -> bool| meetings.iter().filter(|meeting| wanted(meeting)).count();
    writeln!(
        out,
        "\n{} of {} pairs as expected, {} direct",
        of(Meeting::is_good),
        meetings.len(),
        of(|meeting| meeting.word() == "direct")
    )
}

fn ms(time: Duration) -> String {
    Millis(time.as_secs_f64() * 1e3).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expected_grid_is_the_same_from_both_sides() {
        for one in Kind::ALL {
            for other in Kind::ALL {
                assert_eq!(expected(one, other), expected(other, one));
            }
        }
        let direct = |one, other| expected(one, other) == Expected::Direct;
        assert!(direct(Kind::Port, Kind::Port) && direct(Kind::Hard, Kind::Addr) && direct(Kind::Double, Kind::Double));
        assert_eq!(expected(Kind::Hard, Kind::Hard), Expected::Relay);
        assert_eq!(expected(Kind::Double, Kind::Hard), Expected::Either);
        assert_eq!(expected(Kind::None, Kind::Blocked), Expected::Relay);
    }

    #[test]
    fn kinds_are_named_in_words_and_a_wrong_one_is_told() {
        let words = |words: &[&str]| kinds(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&[]).expect("all").len(), 7);
        assert_eq!(words(&["hard", "none", "hard"]).expect("two"), [Kind::None, Kind::Hard]);
        assert!(words(&["soft"]).expect_err("no kind").to_string().contains("double"));
    }

    #[test]
    fn a_meeting_is_judged_by_what_was_expected() {
        let outcome = |reached, direct| Some(Outcome { reached, answered: Some(Duration::from_millis(5)), direct });
        let meeting = |outcome, expected| Meeting { one: Kind::Port, other: Kind::Hard, expected, outcome };
        let direct = || outcome(Reached::Direct("192.0.2.1:1".into()), Some(Duration::from_secs(1)));
        assert!(meeting(direct(), Expected::Direct).is_good() && meeting(direct(), Expected::Either).is_good());
        assert!(!meeting(direct(), Expected::Relay).is_good());
        let relay = || outcome(Reached::Relay, None);
        assert!(meeting(relay(), Expected::Relay).is_good() && meeting(relay(), Expected::Either).is_good());
        assert!(!meeting(relay(), Expected::Direct).is_good());
        let silent = Some(Outcome { reached: Reached::Relay, answered: None, direct: None });
        assert!(!meeting(silent, Expected::Relay).is_good());
        assert!(!meeting(None, Expected::Direct).is_good());
        let walled = Meeting { one: Kind::Blocked, other: Kind::Blocked, expected: Expected::Relay, outcome: None };
        assert!(!walled.is_good(), "over TCP it would have joined");
    }
}
