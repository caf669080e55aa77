//! Setting a machine up: `configure` from a script, `--install` with a systemd played by a script, the units.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use eps_actor::cli::install;
use eps_actor::config::Role;

use crate::lab::{BIN, SOON, beside, ends_within, finish, has_program, program, text};

const JOIN: &str = "eps://192.0.2.1:5000/aaaqeayeaudaocajbifqydiob4/77777777777777777777777774l52";

#[test]
fn configure_writes_a_file_that_check_has_nothing_against() {
    let _turn = beside();
    let place = tempfile::tempdir().expect("a directory");
    let (old, server, client) =
        (place.path().join("eps.conf"), place.path().join("server.ron"), place.path().join("client.ron"));
    fs::write(&old, "# old\nport=12545\nnetwork=192.168.99.0/24\ncipher_key=00\ncipher_iv=11\n").expect("written");
    let [old, server, client] = [&old, &server, &client].map(|path| path.display().to_string());

    let configured = program(&["configure", "--from", &old, "--output", &server, "--yes"]);
    assert!(configured.status.success(), "{}", text(&configured.stderr));
    let said = text(&configured.stdout);
    for part in ["line 4: cipher_key is not used any more", "line 5: cipher_iv is not used", "    port: 12545,"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let configured = program(&["configure", "--role", "client", "--join", JOIN, "--output", &client, "--yes"]);
    assert!(configured.status.success(), "{}", text(&configured.stderr));
    assert!(!text(&configured.stdout).contains(JOIN), "the join line is a secret");
    for file in [&server, &client] {
        let checked = program(&["check", "--config", file]);
        assert!(checked.status.success(), "{}", text(&checked.stderr));
    }

    let missing = program(&["configure", "--role", "server", "--output", &server]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("give --port, or --yes"), "{}", text(&missing.stderr));
    let bad = program(&["configure", "--role", "server", "--port", "0", "--yes", "--output", &server]);
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
}

#[test]
fn configure_asks_at_a_terminal() {
    if !has_program("script") {
        return;
    }
    let _turn = beside();
    let machine = Machine::new();
    let file = machine.path("server.ron");
    let line = format!("{BIN} configure --root {} --output {}", machine.path("").display(), file.display());
    let mut asked = Command::new("script");
    asked.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env_remove("EPS_JOIN");
    asked.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut asked = asked.spawn().expect("started");
    // Role, port, network, open, then: write it, and no service.
    let answers = "server\n70000\n5000\n10.77.0.0/24\n\ny\nn\n";
    asked.stdin.take().expect("a pipe").write_all(answers.as_bytes()).expect("written");
    let ended = ends_within(SOON, asked).unwrap_or_else(|said| panic!("it does not end: {}", text(&said)));
    let said = text(&ended.stdout);
    assert!(ended.status.success(), "{said}");
    for part in ["Port to listen on, UDP and TCP [43439]: ", "write a whole number from 1 to 65535", "[y/N]"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    let written = fs::read_to_string(&file).expect("a file");
    assert!(written.contains("    port: 5000,") && written.contains("    network: \"10.77.0.0/24\","), "{written}");
    assert_eq!(machine.asked(), [""; 0]);
}

#[test]
fn install_writes_config_and_unit_and_starts_it() {
    let _turn = beside();
    let machine = Machine::new();
    let installed = machine.run(&["server", "--install", "--port", "5000", "--advertise", "vpn.example.org"]);
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    let config = machine.read("etc/eps-actor/server.ron");
    assert!(config.contains("    port: 5000,") && config.contains("    advertise: [\"vpn.example.org\"],"), "{config}");
    let unit = machine.read("etc/systemd/system/eps-actor-server.service");
    assert!(unit.contains("ExecStart=/usr/local/bin/eps-actor server --config /etc/eps-actor/server.ron\n"), "{unit}");
    assert_eq!(machine.mode("usr/local/bin/eps-actor"), 0o755);
    assert_eq!(
        machine.asked(),
        ["daemon-reload", "enable eps-actor-server.service", "restart eps-actor-server.service"]
    );

    // What a package put there is no file that somebody wrote.
    fs::write(machine.path("etc/eps-actor/server.ron"), include_str!("../../config/server.ron")).expect("written");
    let packaged = machine.run(&["server", "--install", "--port", "5000", "--advertise", "vpn.example.org"]);
    assert!(packaged.status.success(), "{}", text(&packaged.stderr));
    assert_eq!(machine.read("etc/eps-actor/server.ron"), config);

    // Again and alone it keeps the file; with options it would have to change it, and does not.
    fs::write(machine.path("etc/eps-actor/server.ron"), config.replace("5000", "5001")).expect("edited");
    let again = machine.run(&["server", "--install"]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert!(machine.read("etc/eps-actor/server.ron").contains("port: 5001"));
    let refused = machine.run(&["server", "--install", "--port", "7"]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("exists, and the options"),
        "{}",
        text(&refused.stderr)
    );

    let joined = machine.run(&["client", "--install", "--join", JOIN, "--name", "ada"]);
    assert!(joined.status.success(), "{}", text(&joined.stderr));
    assert_eq!((machine.read("etc/eps-actor/join").trim(), machine.mode("etc/eps-actor/join")), (JOIN, 0o600));
    assert_eq!(machine.mode("etc/eps-actor/client.ron"), 0o644);
    let config = machine.read("etc/eps-actor/client.ron");
    assert!(config.contains("join_file: \"/etc/eps-actor/join\"") && !config.contains(JOIN), "{config}");
}

#[test]
fn nothing_is_installed_without_systemd_or_from_a_bad_configuration() {
    let _turn = beside();
    let machine = Machine::new();
    let bad = machine.run(&["server", "--install", "--port", "0"]);
    assert_eq!(bad.status.code(), Some(2), "{}", text(&bad.stderr));
    assert!(text(&bad.stderr).contains("port: 0 is out of range"), "{}", text(&bad.stderr));
    fs::write(machine.path("fail"), "").expect("written");
    let failed = machine.run(&["server", "--install"]);
    let said = text(&failed.stderr);
    assert!(
        said.contains("`systemctl daemon-reload` failed: no bus; `journalctl -u eps-actor-server.service`"),
        "{said}"
    );

    let machine = Machine::new();
    fs::remove_dir_all(machine.path("run")).expect("removed");
    for role in ["server", "client"] {
        let refused = machine.run(&[role, "--install"]);
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        let instead = format!("`eps-actor {role} --config /etc/eps-actor/{role}.ron`");
        assert!(said.contains("systemd does not run this machine") && said.contains(&instead), "{said}");
    }
    assert!(!machine.path("etc").exists(), "nothing was written");
}

#[test]
fn configure_offers_the_service_and_starts_it() {
    let _turn = beside();
    let machine = Machine::new();
    let done = machine.run(&["configure", "--role", "server", "--yes", "--install"]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(machine.path("etc/eps-actor/server.ron").exists());
    assert!(machine.asked().contains(&"enable eps-actor-server.service".to_owned()));
    // Not unless it is wanted.
    let machine = Machine::new();
    assert!(machine.run(&["configure", "--role", "server", "--yes"]).status.success());
    assert_eq!(machine.asked(), [""; 0]);
}

#[test]
fn a_service_joins_with_the_credential_it_is_handed() {
    let _turn = beside();
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("client.ron");
    // The file is root's and closed to the service.
    fs::write(&file, "(join_file: \"/nonexistent/join\")").expect("written");
    let start = |credential: &str| {
        fs::write(place.path().join("join"), credential).expect("written");
        let mut command = Command::new(BIN);
        command.args(["client", "--config"]).arg(&file).arg("--state").arg("/proc/none").env_remove("EPS_JOIN");
        finish(command.env("CREDENTIALS_DIRECTORY", place.path()))
    };
    let cut = start(&JOIN[..JOIN.len() - 3]);
    assert_eq!(cut.status.code(), Some(2));
    assert!(text(&cut.stderr).starts_with("credential join: the join line "), "{}", text(&cut.stderr));
    // What stands for none is none: it is good as far as the device or the state, which are not there.
    assert_eq!(start("none").status.code(), Some(1));
}

#[test]
fn the_units_are_what_systemd_understands_and_hardened() {
    if !has_program("systemd-analyze") {
        return;
    }
    let place = tempfile::tempdir().expect("a directory");
    let files = [Role::Server, Role::Client].map(|role| {
        let path = place.path().join(format!("eps-actor-{}.service", install::name_of(role)));
        let unit = install::unit_text(role, Path::new(BIN), Path::new("/etc/eps-actor/x.ron"));
        // The manual pages are not installed here.
        let unit: String = unit
            .lines()
            .filter(|line| !line.starts_with("Documentation="))
            .map(|line| line.to_owned() + "\n")
            .collect();
        fs::write(&path, unit).expect("written");
        path
    });
    let verified = finish(Command::new("systemd-analyze").arg("verify").args(&files));
    let (out, err) = (text(&verified.stdout), text(&verified.stderr));
    assert!(verified.status.success() && out.is_empty() && err.is_empty(), "{out}{err}");
    for file in &files {
        // In tenths; 5 and more is what systemd calls exposed.
        let judged =
            finish(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=40"]).arg(file));
        let said = text(&judged.stdout);
        assert!(judged.status.success(), "{said}");
        println!("units: {}", said.lines().rfind(|line| line.contains("Overall")).unwrap_or_default());
    }
}

#[test]
fn what_the_packages_are_made_of_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).expect("a manifest");
    let metadata = &manifest[manifest.find("[package.metadata.deb]").expect("metadata")..];
    let mut seen = 0;
    for path in metadata.split('"').filter(|text| text.starts_with("config/") || text.starts_with("packaging/")) {
        let (directory, ending) = path.split_once('*').unwrap_or((path, ""));
        let found = match fs::read_dir(root.join(directory)) {
            Ok(mut entries) => {
                entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().ends_with(ending)))
            }
            Err(_) => root.join(directory).is_file(),
        };
        assert!(found, "{path}");
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
    for script in
        ["tools/package", "tools/test-package", "packaging/deb/postinst", "packaging/deb/prerm", "packaging/deb/postrm"]
    {
        let path = root.join(script);
        assert!(fs::metadata(&path).expect("a script").permissions().mode() & 0o111 != 0, "{script} cannot be run");
        let read = finish(Command::new("sh").arg("-n").arg(&path));
        assert!(read.status.success(), "{script}: {}", text(&read.stderr));
    }
}

#[test]
fn the_manual_pages_are_what_man_understands() {
    let _turn = beside();
    let place = tempfile::tempdir().expect("a directory");
    let written = program(&["man-pages", &place.path().display().to_string()]);
    assert!(written.status.success(), "{}", text(&written.stderr));
    let pages: Vec<PathBuf> = text(&written.stdout).lines().map(PathBuf::from).collect();
    assert!(pages.len() > 10, "{pages:?}");
    if !has_program("man") || !has_program("groff") {
        return;
    }
    for page in pages {
        let shown =
            finish(Command::new("man").args(["--warnings", "-E", "UTF-8", "-l"]).arg(&page).env("MANWIDTH", "100"));
        let said = text(&shown.stdout);
        assert!(shown.status.success() && shown.stderr.is_empty(), "{}: {}", page.display(), text(&shown.stderr));
        assert!(said.contains("NAME") && said.contains("SYNOPSIS"), "{said}");
    }
}

/// A machine's root directory, with a `systemctl` that notes what it is asked.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::tempdir().expect("a directory"));
        fs::create_dir_all(machine.path("run/systemd/system")).expect("a directory");
        fs::create_dir_all(machine.path("bin")).expect("a directory");
        let script = "#!/bin/sh\nroot=$(dirname \"$0\")/..\n[ -e \"$root/fail\" ] && { echo 'no bus' >&2; exit 1; }\n\
                      echo \"$*\" >> \"$root/asked\"\n";
        fs::write(machine.path("bin/systemctl"), script).expect("written");
        fs::set_permissions(machine.path("bin/systemctl"), fs::Permissions::from_mode(0o755)).expect("rights");
        machine
    }

    fn run(&self, words: &[&str]) -> Output {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new(BIN);
        command.args(words).arg("--root").arg(self.0.path()).env("PATH", path).env_remove("EPS_JOIN");
        finish(&mut command)
    }

    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside)
    }

    fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.path(inside)).unwrap_or_else(|error| panic!("{inside}: {error}"))
    }

    fn mode(&self, inside: &str) -> u32 {
        fs::metadata(self.path(inside)).expect("a file").permissions().mode() & 0o777
    }

    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.path("asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}
