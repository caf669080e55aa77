//! `eps-actor`: reads its arguments, sets up the log, does what is asked, and turns the outcome into an exit code.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use eps_actor::actors::{cloud_system, supervisor, system};
use eps_actor::cli::args::{Arguments, ClientArguments, Command, SelftestCommand, ServerArguments};
use eps_actor::cli::demo::{self, is_broken_pipe};
use eps_actor::cli::{
    check, completions, configure, install, man, members, netcheck, orders, paths, ping, selftest, status, tunnel, why,
};
use eps_actor::config::{self, ConfigError};
use eps_actor::config::{LogSettings, Role};
use eps_actor::logging;
use log::LevelFilter;

fn main() -> ExitCode {
    let words = words();
    let [is_tunnel, is_cloud] = ["tunnel", "cloud"].map(|name| words.get(1).is_some_and(|word| word == name));
    let arguments = match Arguments::try_parse_from(words) {
        Ok(arguments) => arguments,
        // As multi_tun says it; see `cli::tunnel`.
        Err(error) if error.use_stderr() && is_tunnel => {
            let _ = error.print();
            return ExitCode::from(tunnel::BAD_USAGE);
        }
        // As ethcloud has it; `error.exit` would say 2.
        Err(error) if error.use_stderr() && is_cloud => {
            let _ = error.print();
            return ExitCode::FAILURE;
        }
        Err(error) => error.exit(),
    };
    // Not locked: other threads of a node print, too.
    let mut out = io::stdout();
    let ended = run(arguments.command, &mut out).and_then(|code| Ok(out.flush().map(|()| code)?));
    if let Err(error) = &ended
        && logging::is_in_file()
        && !is_broken_pipe(error)
    {
        log::error!("{}", in_one_line(error));
    }
    logging::flush();
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be left to read this either.
            let _ = complain(&error);
            ExitCode::from(if error.is::<ConfigError>() { 2 } else { 1 })
        }
    }
}

/// The command line. Called by the name of the program whose part it plays, it needs no word for that.
fn words() -> Vec<OsString> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    let name = words.first().and_then(|name| Path::new(name).file_name()?.to_str());
    let command = match name {
        Some("ethcloud") => "cloud",
        Some("multi_tun") => "tunnel",
        Some(_) | None => return words,
    };
    words.insert(1, command.into());
    words
}

fn run(command: Command, out: &mut dyn Write) -> Result<u8> {
    if let Some(common) = command.common() {
        logging::start(common.log_level, &LogSettings::default())?;
    }
    match command {
        Command::Server(ServerArguments { service, config, options }) if service.install => {
            install::run(Role::Server, &service.root, config.as_deref(), options.settings(), out)?;
        }
        Command::Client(ClientArguments { service, config, options }) if service.install => {
            install::run(Role::Client, &service.root, config.as_deref(), options.settings(), out)?;
        }
        Command::Server(arguments) => {
            let file = config::file_for(arguments.config.as_deref(), Role::Server);
            let load = move || config::load_server(file.as_deref(), arguments.options.clone());
            let config = load()?;
            start_node(config.log_level, &config.log, &config.warnings)?;
            system::run_server(config, load)?;
        }
        Command::Client(arguments) => {
            let file = config::file_for(arguments.config.as_deref(), Role::Client);
            let load = move || config::load_client(file.as_deref(), arguments.options.clone());
            let config = load()?;
            start_node(config.log_level, &config.log, &config.warnings)?;
            system::run_client(config, load)?;
        }
        Command::Tunnel(arguments) => return tunnel::run(*arguments),
        Command::Cloud(options) => {
            start_node(options.level(), &LogSettings::default(), &[])?;
            cloud_system::run_cloud(options)?;
        }
        Command::Demo(_) => return demo::run(out),
        Command::Selftest(SelftestCommand::Nat(arguments)) => return selftest::nat(&arguments, out),
        Command::Check(arguments) => return Ok(check::run(&arguments, out, &mut io::stderr())?),
        Command::Status(arguments) => status::run(&arguments, out)?,
        Command::Members(arguments) => members::run(&arguments, out)?,
        Command::Paths(arguments) => paths::run(&arguments, out)?,
        Command::Invite(arguments) => orders::invite(&arguments, out)?,
        Command::Ping(arguments) => return ping::run(&arguments, out),
        Command::Why(arguments) => return why::run(&arguments, out),
        Command::Netcheck(arguments) => return netcheck::run(&arguments, out),
        Command::Kick(arguments) => orders::kick(&arguments, out)?,
        Command::Leave(arguments) => orders::leave(&arguments, out)?,
        Command::Map(arguments) => orders::map(&arguments, out)?,
        Command::Configure(arguments) => configure::run(&arguments, out)?,
        Command::ManPages(arguments) => man::run(&arguments.directory, out)?,
        Command::Completions(arguments) => completions::run(arguments.shell, out)?,
        #[cfg(any(debug_assertions, feature = "fault-injection"))]
        Command::InjectPanic(arguments) => orders::inject_panic(&arguments, out)?,
    }
    Ok(0)
}

/// What every node does before it runs.
fn start_node(level: LevelFilter, log: &LogSettings, warnings: &[String]) -> Result<()> {
    logging::start(level, log)?;
    supervisor::install_panic_log();
    for warning in warnings {
        log::warn!("{warning}");
    }
    Ok(())
}

/// Problems of a configuration have their lines already, as `check` prints them; anything else is one line.
fn complain(error: &anyhow::Error) -> io::Result<()> {
    match error.downcast_ref::<ConfigError>() {
        Some(problems) => writeln!(io::stderr(), "{problems}"),
        None => writeln!(io::stderr(), "eps-actor: {}", in_one_line(error)),
    }
}

/// The error and its causes. Many errors tell their cause themselves; it is not told twice.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = anyhow::anyhow!("refused").context("cannot bind: refused; try again").context("server");
        assert_eq!(in_one_line(&error), "server: cannot bind: refused; try again");
    }
}
