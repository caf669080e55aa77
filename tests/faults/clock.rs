//! The clock is wrong, or jumps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use eps_actor::cli::demo::scene::Node;
use eps_actor::io::netns::can_make_networks;

use crate::load::Load;
use crate::stage::{PROGRAM, SOON, Stage, certificate, drops, is_long, reach, session_age, shared, status, until};

#[test]
fn f_18_a_clock_that_is_wrong_or_jumps_costs_nothing() {
    if !can_make_networks() {
        return;
    }
    let Some(library) = faketime() else {
        println!("F-18: skipped: needs faketime (apt-get install faketime)");
        return;
    };
    let _turn = shared();
    let stage = Stage::new().expect("a stage");
    let (ada, bob, cleo) = (&stage.scene.ada, &stage.scene.bob, &stage.scene.cleo);
    let granted = certificate(&ada.state_path());
    let clock = ada.dir.join("clock");

    for offset in ["-1h", "+1h", "+10y"] {
        ada.stop().expect("stopped");
        fs::write(&clock, offset).expect("written");
        start_with_clock(ada, &library, &clock);
        ada.wait_for_address(SOON).expect("an address");
        reach(ada, bob, stage.bob).expect("direct");
        reach(cleo, ada, stage.ada).expect("direct");
        let connected = || status(ada).filter(|status| status["server"]["connected"] == true);
        until(Instant::now(), SOON, "the server", connected);
        let there = Load::start((ada, stage.ada), (bob, stage.bob));
        let back = Load::start((cleo, stage.cleo), (ada, stage.ada));
        thread::sleep(Duration::from_secs(2));
        for flow in [there.stop(), back.stop()] {
            flow.assert_whole();
            println!("F-18: clock {offset}: {}: {} sent, 0 lost; certificate accepted", flow.name, flow.sent());
        }
        assert_eq!(certificate(&ada.state_path()), granted, "the same lease");
    }

    // Now it jumps under traffic.
    let there = Load::start((ada, stage.ada), (bob, stage.bob));
    let back = Load::start((cleo, stage.cleo), (ada, stage.ada));
    for offset in ["-1h", "+10y", "+0"] {
        // libfaketime reads the file once a second.
        fs::write(&clock, offset).expect("written");
        let said = || ada.log().contains(jump(offset)).then_some(());
        until(Instant::now(), SOON, "the log to state the jump", said);
        thread::sleep(Duration::from_secs(1));
    }
    if is_long() {
        let age = session_age(ada, "bob");
        fs::write(&clock, "-1h").expect("written");
        let rekeyed = || (session_age(ada, "bob") < age && session_age(ada, "cleo") < age).then_some(());
        let (_, took) = until(Instant::now(), Duration::from_secs(200), "rekeys", rekeyed);
        println!("F-18: rekeyed {took:?} later");
    }
    let flows = [there.stop(), back.stop()];
    for node in [ada, bob, cleo] {
        println!("F-18: dropped at {}: {}", node.name, drops(node));
    }
    for flow in flows {
        flow.assert_whole();
        println!("F-18: clock jumps by -10 y to +10 y: {}: {} sent, 0 lost; the log says so", flow.name, flow.sent());
    }
}

/// What the log says of the jump to this offset from the one before.
fn jump(offset: &str) -> &'static str {
    if offset == "+10y" { "the clock was set forward" } else { "the clock was set back" }
}

fn faketime() -> Option<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    places.iter().map(|place| Path::new(place).join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// As [`Node::start`], with a wall clock of its own. `CLOCK_MONOTONIC` stays true: it never jumps.
fn start_with_clock(node: &Node, library: &Path, clock: &Path) {
    let mut command = Command::new(PROGRAM);
    command.args(["client", "--device", "eps0", "--name", &node.name, "--log-level", "info"]);
    command.arg("--state").arg(node.state_path()).arg("--control").arg(node.control_path());
    command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", clock);
    command
        .env("FAKETIME_CACHE_DURATION", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    node.start_command(command).expect("started");
}
