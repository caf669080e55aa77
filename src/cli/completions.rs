//! `eps-actor completions SHELL`: a script that completes commands and options.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Arguments;

/// Writes the script. It is made in memory first, since the generator panics where the reader of a pipe has gone.
pub fn run(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    out.write_all(&script)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_the_commands() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            run(shell, &mut script).expect("written");
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("invite") && script.contains("join-file"), "{shell}");
        }
    }
}
