//! `eps-actor man-pages DIR`: a manual page for the program and one for each command, made from the same definitions as
//! the help. Packages carry them; nobody else needs the command.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::args::Arguments;

/// Writes `eps-actor.1` and `eps-actor-COMMAND.1` for every command that the help shows.
pub fn run(directory: &Path, out: &mut dyn Write) -> Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    for (name, page) in pages()? {
        let path = directory.join(name);
        std::fs::write(&path, page).with_context(|| format!("{} cannot be written", path.display()))?;
        writeln!(out, "{}", path.display())?;
    }
    Ok(())
}

/// File names and pages.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    // `help` is a command to the shell and no page.
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    let commands: Vec<_> = program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut first = page(program)?;
    first.extend(FILES.as_bytes());
    let mut pages = vec![("eps-actor.1".to_owned(), first)];
    for command in commands {
        pages.push((format!("eps-actor-{}.1", command.get_name()), page(command)?));
    }
    Ok(pages)
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .section("1")
        .source(concat!("eps-actor ", env!("CARGO_PKG_VERSION")))
        .render(&mut page)?;
    Ok(page)
}

/// What the help does not speak of.
const FILES: &str = "\
.SH FILES
.TP
/etc/eps\\-actor/server.ron, /etc/eps\\-actor/client.ron
Configuration of the systemd units; every key is there with what it is for. \\fBeps\\-actor check\\fR looks it over.
.TP
/etc/eps\\-actor/join
The join line of a client that has not been a member yet; readable by root only.
.TP
/var/lib/eps\\-actor
Keys, members and leases. Keep it: this machine is known by the keys in it.
.TP
/run/eps\\-actor
Control sockets.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_help_has_a_page_with_its_options_and_examples() {
        let pages = pages().expect("pages");
        for command in Arguments::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let name = format!("eps-actor-{}.1", command.get_name());
            let (_, page) = pages.iter().find(|(found, _)| *found == name).unwrap_or_else(|| panic!("no {name}"));
            let page = String::from_utf8_lossy(page).replace("\\-", "-");
            for option in
                command.get_arguments().filter(|option| !option.is_hide_set()).filter_map(|option| option.get_long())
            {
                assert!(page.contains(&format!("--{option}")), "{name} lacks --{option}");
            }
            assert!(page.contains("Example"), "{name}");
            assert!(page.contains(&format!("eps-actor {}", command.get_name())), "{name}: {page}");
        }
        assert!(!pages.iter().any(|(name, _)| name.contains("inject") || name.contains("man-pages")));
        let all = String::from_utf8_lossy(&pages[0].1).into_owned();
        assert!(
            all.contains("eps\\-actor\\-server(1)") && !all.contains("help(1)") && all.contains(".SH FILES"),
            "{all}"
        );
    }
}
