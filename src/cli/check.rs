//! `eps-actor check`: everything that is wrong with a configuration file, in the words `server` and `client` use.

use std::io::{self, Write};
use std::path::Path;

use super::args::CheckArguments;
use crate::config::{self, ClientOptions, ConfigError, Role, ServerOptions};

/// Prints the problems to `err` or `FILE: no problems` to `out`. Returns the exit code: 0, or 2 for a bad file.
/// Warnings go to `err` and leave the code alone.
pub fn run(arguments: &CheckArguments, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<u8> {
    match check(&arguments.config, arguments.role) {
        Ok(warnings) => {
            for warning in warnings {
                writeln!(err, "{}: warning: {warning}", arguments.config.display())?;
            }
            writeln!(out, "{}: no problems", arguments.config.display())?;
            Ok(0)
        }
        Err(error) => {
            writeln!(err, "{error}")?;
            Ok(2)
        }
    }
}

fn check(file: &Path, role: Option<Role>) -> Result<Vec<String>, ConfigError> {
    let role = match role {
        Some(role) => role,
        None => config::role_of(file)?,
    };
    match role {
        Role::Server => Ok(config::load_server(Some(file), ServerOptions::default())?.warnings),
        Role::Client => Ok(config::load_client(Some(file), ClientOptions::default())?.warnings),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Arguments, Command};
    use super::*;

    #[test]
    fn a_good_file_has_no_problems() {
        let (code, out, err) = checked("client.ron", "(mtu: 1400)", &[]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.ends_with("client.ron: no problems\n"), "{out}");
    }

    #[test]
    fn a_bad_file_shows_all_its_problems() {
        let (code, out, err) = checked("server.ron", "(port: 0,\n network: 1)", &[]);
        assert_eq!((code, out.as_str(), err.lines().count()), (2, "", 2), "{err}");
        assert!(err.contains("server.ron:1:8: port: 0 is out of range; "), "{err}");
    }

    #[test]
    fn the_role_may_be_given() {
        let (code, _, err) = checked("x.ron", "(mtu: 1400)", &["--role", "server"]);
        assert_eq!(code, 2);
        assert!(err.contains("x.ron:1:2: mtu: is a key of the client; "), "{err}");
    }

    #[test]
    fn a_warning_is_no_problem() {
        let (code, out, err) = checked("server.ron", "(open: true)", &[]);
        assert_eq!((code, out.lines().count(), err.lines().count()), (0, 1, 1), "{err}");
    }

    fn checked(name: &str, text: &str, more: &[&str]) -> (u8, String, String) {
        let place = tempfile::tempdir().expect("a directory");
        let file = place.path().join(name);
        std::fs::write(&file, text).expect("written");
        let file = file.display().to_string();
        let words = ["eps-actor", "check", "--config", &file].into_iter().chain(more.iter().copied());
        let Command::Check(arguments) = Arguments::try_parse_from(words).expect("good usage").command else {
            panic!("another command")
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(&arguments, &mut out, &mut err).expect("written");
        (code, String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text"))
    }
}
