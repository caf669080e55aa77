//! The .deb: made of the program under test, installed, run, removed and purged, on a view of this machine that is thrown
//! away.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use eps_actor::io::netns::can_make_networks;

use crate::lab::{BIN, beside, ends_within, finish, has_program, text};

/// dpkg and the demo take 20 s where nobody else wants the processor.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
fn the_deb_is_installed_run_removed_and_purged() {
    let tools = ["dpkg-deb", "dpkg", "strip", "gzip", "unshare", "chroot"];
    if !can_make_networks() || !tools.iter().all(|tool| has_program(tool)) {
        return;
    }
    if Path::new("/usr/bin/eps-actor").exists() {
        println!("skipped: this machine has the package installed");
        return;
    }
    let _turn = beside();
    // A container may not let root mount a view of its own root.
    let overlay = "mount -t tmpfs x /mnt && mkdir /mnt/u /mnt/w /mnt/r && \
                   mount -t overlay x -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r";
    let mounted = finish(Command::new("unshare").args(["--mount", "sh", "-c", overlay]));
    if !mounted.status.success() {
        println!("skipped: no overlay of / here: {}", text(&mounted.stderr));
        return;
    }
    let start = Instant::now();
    let place = tempfile::tempdir().expect("a directory");
    let deb = place.path().join("eps-actor.deb");
    run(Command::new("sh").arg("tools/assemble-deb").arg(BIN).arg(&deb));
    let said = run(Command::new("sh").args(["tools/test-package", "--in-chroot"]).arg(&deb));
    for part in ["the demo ran", "installed, run, removed; a purge leaves the state and nothing else"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    println!("deb: made, installed, run, removed and purged in {:.0} s", start.elapsed().as_secs_f64());
}

fn run(command: &mut Command) -> String {
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ends_within(LIMIT, command.spawn().expect("started"));
    let output = output.unwrap_or_else(|said| panic!("{command:?} does not end: {}", text(&said)));
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}
