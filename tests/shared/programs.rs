//! Programs of other packages that tests use.
//!
//! Test binaries take it in by its path.

use std::process::{Command, Stdio};

use eps_actor::io::netns::Netns;

/// Whether a program of a package is installed; says so if not.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(Into::into);
    let found = std::env::split_paths(&path).chain(more).any(|dir| dir.join(name).exists());
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}

/// Runs a program in a namespace, which must succeed.
pub fn run_in(ns: &Netns, line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = ns.spawn(&mut command).unwrap_or_else(|error| panic!("{line}: {error}"));
    let output = child.wait_with_output().expect("waited");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}
