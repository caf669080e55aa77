//! `server --install` and `client --install`: the configuration and the unit at their places, and the unit started.
//!
//! Nothing is written before everything is checked: that systemd runs this machine, and that the configuration is good.
//! `configure` ends here too, when its user wants the service.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::config::render::{self, Setting};
use crate::config::{ConfigError, Role};
use crate::io::files::{FileError, write_atomic};

/// Where configuration files are.
pub const DIRECTORY: &str = "/etc/eps-actor";
/// Anybody may read it; the join line has a file of its own.
const CONFIG_MODE: u32 = 0o644;
const SECRET_MODE: u32 = 0o600;
/// Places that a hardened unit can start a program from.
const PROGRAM_PLACES: [&str; 2] = ["/usr", "/opt"];
/// Where a program that is elsewhere is copied to.
const PROGRAM_COPY: &str = "/usr/local/bin/eps-actor";

/// Why it was not installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(
        "systemd does not run this machine, so there is no unit to install: let its own init system start `eps-actor \
         {role} --config {}`, which `eps-actor configure` writes",
        config.display()
    )]
    NoSystemd { role: &'static str, config: PathBuf },
    #[error(
        "{} exists, and the options given would change it: edit it, or move it away, and use --install alone",
        path.display()
    )]
    ConfigExists { path: PathBuf },
    #[error("--install takes a file or options, not both: write the options into {}", file.display())]
    FileAndOptions { file: PathBuf },
    #[error("`{command}` failed: {said}; `journalctl -u {unit}` may say more")]
    Systemctl { command: String, unit: &'static str, said: String },
}

/// What to install.
pub struct Plan<'a> {
    pub role: Role,
    /// All paths are below it; `/` but in tests.
    pub root: &'a Path,
    /// Where the configuration is to be, without the root.
    pub config: PathBuf,
    /// Its text; `None` leaves what is there.
    pub text: Option<String>,
    /// A join line, for a file of its own beside the configuration.
    pub join: Option<String>,
}

/// Does what `--install` asks: `file` and `settings` are what the command line gave.
pub fn run(
    role: Role,
    root: &Path,
    file: Option<&Path>,
    mut settings: Vec<Setting>,
    out: &mut dyn Write,
) -> Result<()> {
    let config = Path::new(DIRECTORY).join(format!("{}.ron", name_of(role)));
    refuse_without_systemd(role, root, &config)?;
    let join = take(&mut settings, "join");
    let there = under(root, &config);
    let text = match (file, settings.is_empty()) {
        (Some(file), false) => return Err(InstallError::FileAndOptions { file: file.to_owned() }.into()),
        (Some(file), true) => Some(read(file)?),
        // What a package put there and nobody has touched says nothing that options would change against somebody's will.
        (None, false) if there.exists() && read(&there)? != render::template(role) => {
            return Err(InstallError::ConfigExists { path: there }.into());
        }
        (None, true) if there.exists() => None,
        (None, _) => Some(render::file(role, &settings)),
    };
    let (name, judged) = match (&text, file) {
        (Some(text), Some(file)) => (file.display().to_string(), text.clone()),
        (Some(text), None) => ("the options".to_owned(), text.clone()),
        (None, _) => (there.display().to_string(), read(&there)?),
    };
    check(role, &name, &judged, join.as_deref())?;
    let plan = Plan { role, root, config, text: text.map(|text| with_join_file(&text, join.is_some())), join };
    write(&plan, out)?;
    start(&plan, out)
}

/// Whether there is a systemd to hand a unit to; sd_booted(3) looks for the same directory.
pub fn has_systemd(root: &Path) -> bool {
    under(root, Path::new("/run/systemd/system")).is_dir()
}

/// An error that says what to do instead.
pub fn refuse_without_systemd(role: Role, root: &Path, config: &Path) -> Result<(), InstallError> {
    if has_systemd(root) {
        return Ok(());
    }
    Err(InstallError::NoSystemd { role: name_of(role), config: config.to_owned() })
}

/// Whether a text is good as the configuration of a role, with a join line that is not written yet.
pub fn check(role: Role, name: &str, text: &str, join: Option<&str>) -> Result<Vec<String>, ConfigError> {
    match join {
        Some(join) => {
            let text = set(text, "join_file", None);
            render::check_text(role, name, &set(&text, "join", Some(join)))
        }
        None => render::check_text(role, name, text),
    }
}

/// The text with the name of the file for the join line, if there is to be one.
pub fn with_join_file(text: &str, joins: bool) -> String {
    if !joins {
        return text.to_owned();
    }
    let file = Path::new(DIRECTORY).join(JOIN_FILE).display().to_string();
    set(&set(text, "join", None), "join_file", Some(&file))
}

/// The name of the file that holds the join line.
pub const JOIN_FILE: &str = "join";

fn set(text: &str, key: &str, value: Option<&str>) -> String {
    let value = value.map_or_else(|| "None".to_owned(), |value| format!("{value:?}"));
    let lines = text.lines().map(|line| match line.trim_start().strip_prefix(key) {
        Some(rest) if rest.starts_with(':') => format!("    {key}: {value},"),
        _ => line.to_owned(),
    });
    lines.map(|line| line + "\n").collect()
}

fn take(settings: &mut Vec<Setting>, key: &str) -> Option<String> {
    let at = settings.iter().position(|(found, _)| found == key)?;
    Some(settings.remove(at).1.join(" "))
}

/// Writes the configuration and the join line. What was there before is kept as `NAME.old`.
pub fn write(plan: &Plan<'_>, out: &mut dyn Write) -> Result<()> {
    let path = under(plan.root, &plan.config);
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(|error| needs_root(error, directory))?;
    if let Some(join) = &plan.join {
        let path = directory.join(JOIN_FILE);
        put(&path, format!("{}\n", join.trim()).as_bytes(), SECRET_MODE)?;
        writeln!(out, "wrote {} (its owner alone may read it)", path.display())?;
    }
    let Some(text) = &plan.text else {
        writeln!(out, "kept {}", path.display())?;
        return Ok(());
    };
    match std::fs::read(&path) {
        Ok(old) if old == text.as_bytes() => {
            writeln!(out, "kept {}", path.display())?;
            return Ok(());
        }
        Ok(old) => {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".old");
            let aside = path.with_file_name(name);
            put(&aside, &old, CONFIG_MODE)?;
            writeln!(out, "kept what was there as {}", aside.display())?;
        }
        // There was none, most likely; else the writing fails with better words.
        Err(_) => {}
    }
    put(&path, text.as_bytes(), CONFIG_MODE)?;
    writeln!(out, "wrote {}", path.display())?;
    Ok(())
}

/// Writes the unit, unless a package brought it, and starts it.
pub fn start(plan: &Plan<'_>, out: &mut dyn Write) -> Result<()> {
    let unit = unit_name(plan.role);
    let program = placed_program(plan.root, out)?;
    let text = unit_text(plan.role, &program, &plan.config);
    let packaged =
        ["/usr/lib/systemd/system", "/lib/systemd/system"].map(|dir| under(plan.root, Path::new(dir)).join(unit));
    if packaged.iter().any(|path| std::fs::read_to_string(path).is_ok_and(|there| there == text)) {
        writeln!(out, "the package's {unit} is used")?;
    } else {
        let path = under(plan.root, Path::new("/etc/systemd/system")).join(unit);
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory).map_err(|error| needs_root(error, directory))?;
        put(&path, text.as_bytes(), CONFIG_MODE)?;
        writeln!(out, "wrote {}", path.display())?;
    }
    systemctl(unit, &["daemon-reload"])?;
    systemctl(unit, &["enable", unit])?;
    // Also where it runs already: with the configuration of a moment ago it should not.
    systemctl(unit, &["restart", unit])?;
    let written = std::fs::read_to_string(under(plan.root, &plan.config)).unwrap_or_default();
    for (key, path) in closed_to_the_unit(plan.role, &written) {
        writeln!(
            out,
            "warning: {key} is {}, where the unit may not write: choose a place below /var/log/eps-actor, or allow it \
             with `systemctl edit {unit}`: [Service], ReadWritePaths=, and User= if only another user may write there",
            path.display()
        )?;
    }
    writeln!(out, "{unit} runs, and starts with the machine; `sudo eps-actor status` shows how it is")?;
    if plan.role == Role::Server {
        writeln!(out, "`sudo eps-actor invite` prints the line that lets another machine join")?;
    }
    Ok(())
}

/// The unit of a role as it is shipped, for a program and a configuration at these places.
pub fn unit_text(role: Role, program: &Path, config: &Path) -> String {
    let shipped = match role {
        Role::Server => include_str!("../../packaging/systemd/eps-actor-server.service"),
        Role::Client => include_str!("../../packaging/systemd/eps-actor-client.service"),
    };
    let standard = format!("{DIRECTORY}/{}.ron", name_of(role));
    let join = config.with_file_name(JOIN_FILE);
    shipped
        .replace("ExecStart=/usr/bin/eps-actor ", &format!("ExecStart={} ", program.display()))
        .replace(&standard, &config.display().to_string())
        .replace(
            &format!("LoadCredential=join:{DIRECTORY}/{JOIN_FILE}"),
            &format!("LoadCredential=join:{}", join.display()),
        )
}

/// Keys of a configuration whose paths, written or meant, are outside of what the shipped units may write to.
fn closed_to_the_unit(role: Role, text: &str) -> Vec<(&'static str, PathBuf)> {
    // What is wrong with a file was told when it was judged.
    let mut paths = render::written_to(role, text).unwrap_or_default();
    paths.retain(|(_, path)| !UNIT_WRITES.iter().any(|open| path.starts_with(open)));
    paths
}

/// The state, runtime and log directories of the units.
const UNIT_WRITES: [&str; 3] = ["/var/lib/eps-actor", "/run/eps-actor", "/var/log/eps-actor"];

const fn unit_name(role: Role) -> &'static str {
    match role {
        Role::Server => "eps-actor-server.service",
        Role::Client => "eps-actor-client.service",
    }
}

/// The role as commands and files are called.
pub const fn name_of(role: Role) -> &'static str {
    match role {
        Role::Server => "server",
        Role::Client => "client",
    }
}

/// This program where a unit can start it: a unit sees no home directories and no `/tmp` but its own.
fn placed_program(root: &Path, out: &mut dyn Write) -> Result<PathBuf> {
    let program = std::env::current_exe().context("this program does not know where it is")?;
    if PROGRAM_PLACES.iter().any(|place| program.starts_with(place)) {
        return Ok(program);
    }
    let copy = under(root, Path::new(PROGRAM_COPY));
    let directory = copy.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory).map_err(|error| needs_root(error, directory))?;
    let bytes = std::fs::read(&program).with_context(|| format!("{} cannot be read", program.display()))?;
    put(&copy, &bytes, 0o755)?;
    writeln!(out, "copied {} to {}, where a unit can start it", program.display(), copy.display())?;
    Ok(PathBuf::from(PROGRAM_COPY))
}

fn systemctl(unit: &'static str, words: &[&str]) -> Result<()> {
    let command = format!("systemctl {}", words.join(" "));
    let ended = Command::new(OsStr::new("systemctl")).args(words).output().with_context(|| format!("`{command}`"))?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().replace('\n', "; ");
    Err(InstallError::Systemctl { command, unit, said }.into())
}

fn put(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    write_atomic(path, bytes, mode).map_err(|error| match error {
        FileError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            needs_root(source, path)
        }
        error => error.into(),
    })
}

fn needs_root(error: std::io::Error, path: &Path) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("cannot write {}: {error}; run it as root (sudo)", path.display())
        }
        _ => anyhow::anyhow!("cannot write {}: {error}", path.display()),
    }
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }.into()),
    }
}

/// A path below another root.
pub fn under(root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(inside) if !path.starts_with(root) => root.join(inside),
        Ok(_) | Err(_) => path.to_owned(),
    }
}

/// What an absolute path is: the plan of a unit must not depend on where it was made.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    match std::path::absolute(path) {
        Ok(path) => Ok(path),
        Err(error) => bail!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_units_are_for_the_packaged_program_and_file() {
        for role in [Role::Server, Role::Client] {
            let config = Path::new(DIRECTORY).join(format!("{}.ron", name_of(role)));
            let text = unit_text(role, Path::new("/usr/bin/eps-actor"), &config);
            assert!(text.contains(&format!(
                "\nExecStart=/usr/bin/eps-actor {} --config {}\n",
                name_of(role),
                config.display()
            )));
            let moved = unit_text(role, Path::new("/opt/x"), Path::new("/srv/net.ron"));
            assert!(
                moved.contains(&format!("\nExecStart=/opt/x {} --config /srv/net.ron\n", name_of(role))),
                "{moved}"
            );
            assert_eq!(moved.contains("LoadCredential=join:/srv/join\n"), role == Role::Client);
        }
    }

    #[test]
    fn a_join_line_goes_to_a_file_of_its_own() {
        let text = with_join_file(&render::file(Role::Client, &[]), true);
        assert!(
            text.contains("    join: None,\n") && text.contains("    join_file: \"/etc/eps-actor/join\",\n"),
            "{text}"
        );
        assert!(
            check(Role::Client, "x", &text, Some("eps://nonsense")).expect_err("bad").to_string().contains("join:")
        );
    }

    #[test]
    fn a_path_that_the_unit_may_not_write_to_is_told() {
        let closed = |role, settings: &[(&str, &str)]| {
            let setting = |(key, path): &(&str, &str)| ((*key).to_owned(), vec![(*path).to_owned()]);
            let text = render::file(role, &settings.iter().map(setting).collect::<Vec<_>>());
            let closed = closed_to_the_unit(role, &text).into_iter();
            closed.map(|(key, path)| format!("{key} {}", path.display())).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(closed(Role::Server, &[]), none);
        assert_eq!(closed(Role::Client, &[]), none);
        let settings = [("state", "/srv/eps"), ("scorecard", "/var/log/eps-actor/x.json")];
        assert_eq!(closed(Role::Server, &settings), ["state /srv/eps"]);
        // An empty text stands for a path that is nowhere in the file.
        let settings = [("log", ""), ("scorecard", ""), ("graphviz", "")];
        let expected =
            ["scorecard /var/log/eps_server.stats", "graphviz /var/log/eps.gv", "log /var/log/eps_server.log"];
        assert_eq!(closed(Role::Server, &settings), expected);
        let settings = [("hosts", ""), ("log", "/var/log/eps-actor-x/log")];
        assert_eq!(closed(Role::Client, &settings), ["hosts /etc/hosts", "log /var/log/eps-actor-x/log"]);
    }

    #[test]
    fn paths_stay_below_the_root() {
        assert_eq!(under(Path::new("/tmp/r"), Path::new("/etc/x")), Path::new("/tmp/r/etc/x"));
        assert_eq!(under(Path::new("/tmp/r"), Path::new("/tmp/r/etc/x")), Path::new("/tmp/r/etc/x"));
        assert_eq!(under(Path::new("/"), Path::new("/etc/x")), Path::new("/etc/x"));
    }
}
