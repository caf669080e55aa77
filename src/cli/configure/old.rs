//! The configuration file of EPS Conduits, `eps.conf`: lines of `key=value`, `#` comments, every option of its manual a
//! key, and the two keys of its cipher.

use crate::config::Role;
use crate::config::render::{Setting, has_key};

/// What an old file says, and what is to be said of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Old {
    /// Whose it is, where its keys tell.
    pub role: Option<Role>,
    /// In the order of the file; of a key written twice the last, as it was.
    pub values: Vec<(String, String)>,
    /// What could not be taken over, a sentence each.
    pub remarks: Vec<String>,
}

/// Keys of the old servers only.
const SERVER_KEYS: [&str; 4] = ["graphviz", "network", "sequential", "upnptimeout"];
/// Keys of the old clients only.
const CLIENT_KEYS: [&str; 1] = ["server"];
const COMMON_KEYS: [&str; 4] = ["log", "stats", "scorecard", "port"];
/// Options that made no sense in a file, and were keys nevertheless.
const IDLE_KEYS: [&str; 3] = ["conf", "help", "version"];
/// The one key and vector that all members shared.
const CIPHER_KEYS: [&str; 2] = ["cipher_key", "cipher_iv"];
/// Options that stood for themselves.
const FLAGS: [&str; 2] = ["stats", "sequential"];

/// Reads a file. Every line that is not understood is told by its number.
pub fn read(text: &str) -> Old {
    let mut old = Old::default();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key.trim(), unquoted(value.trim())),
            None => (line, ""),
        };
        let key = key.trim_start_matches('-').to_ascii_lowercase();
        let known = |keys: &[&str]| keys.contains(&key.as_str());
        if known(&CIPHER_KEYS) {
            // The value is a secret that many old machines share; it is not repeated.
            old.remark(format!(
                "line {number}: {key} is not used any more: each machine makes a key of its own, and members join with a \
                 line that the server prints"
            ));
        } else if known(&IDLE_KEYS) {
            old.remark(format!("line {number}: {key} means nothing in a file"));
        } else if known(&SERVER_KEYS) || known(&CLIENT_KEYS) || known(&COMMON_KEYS) {
            let value = if known(&FLAGS) { truth(value).unwrap_or(value) } else { value };
            old.values.retain(|(other, _)| *other != key);
            old.values.push((key, value.to_owned()));
        } else {
            old.remark(format!("line {number}: {key:.40} is no key of eps.conf"));
        }
    }
    old.role = old.tell_role();
    old
}

impl Old {
    /// The values as settings of a role's new file. What it has no key for is told.
    pub fn settings(&mut self, role: Role) -> Vec<Setting> {
        let mut settings = Vec::new();
        for (key, value) in std::mem::take(&mut self.values) {
            let name = if role == Role::Server { "a server" } else { "a client" };
            if !has_key(role, &key) {
                self.remark(format!("{key} is left out: {name} of this version has no such key"));
            } else if value.is_empty() {
                self.remark(format!("{key} is left out: it has no value"));
            } else if key == "server" {
                let hosts = value.split([' ', ',']).filter(|host| !host.is_empty());
                settings.push((key, hosts.map(str::to_owned).collect()));
            } else {
                settings.push((key, vec![value]));
            }
        }
        settings
    }

    fn tell_role(&self) -> Option<Role> {
        let any = |keys: &[&str]| self.values.iter().any(|(key, _)| keys.contains(&key.as_str()));
        match (any(&SERVER_KEYS), any(&CLIENT_KEYS)) {
            (true, false) => Some(Role::Server),
            (false, true) => Some(Role::Client),
            // One file served both programs of a machine.
            (true, true) | (false, false) => None,
        }
    }

    fn remark(&mut self, text: String) {
        self.remarks.push(text);
    }
}

fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

/// What a flag's value means; a flag alone is true.
fn truth(value: &str) -> Option<&'static str> {
    match value.to_ascii_lowercase().as_str() {
        "" | "1" | "true" | "yes" | "on" => Some("true"),
        "0" | "false" | "no" | "off" => Some("false"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::render::{check_text, file};

    #[test]
    fn a_server_s_file_is_taken_over() {
        let mut old = read(
            "# EPS Conduits\nport = 12545\nnetwork=192.168.99.0/24   # the office\nsequential\n\
             scorecard=/var/log/eps_server.stats\ncipher_key=00112233\ncipher_iv=\"44\"\n--port=5000\n",
        );
        assert_eq!(old.role, Some(Role::Server));
        let settings = old.settings(Role::Server);
        let text = file(Role::Server, &settings);
        for line in ["port: 5000,", "network: \"192.168.99.0/24\",", "sequential: true,"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        check_text(Role::Server, "server.ron", &text).expect("a good file");
        assert_eq!(old.remarks.len(), 2, "{:?}", old.remarks);
        assert!(old.remarks[0].starts_with("line 6: cipher_key is not used any more"), "{:?}", old.remarks);
        assert!(!old.remarks.concat().contains("00112233"));
    }

    #[test]
    fn a_client_s_file_names_several_servers() {
        let mut old = read("server=\"192.168.1.42 eps.example.com test.example.com\"\nport=12345\n");
        assert_eq!(old.role, Some(Role::Client));
        let text = file(Role::Client, &old.settings(Role::Client));
        assert!(text.contains("server: [\"192.168.1.42\", \"eps.example.com\", \"test.example.com\"],"), "{text}");
        assert!(text.contains("    port: 12345,"), "{text}");
        check_text(Role::Client, "client.ron", &text).expect("a good file");
    }

    #[test]
    fn every_old_option_is_known_and_what_is_not_is_told_with_its_line() {
        let keys = [COMMON_KEYS.as_slice(), &SERVER_KEYS, &CLIENT_KEYS, &IDLE_KEYS, &CIPHER_KEYS].concat();
        let text: String = keys.iter().map(|key| format!("{key}=1\n")).collect();
        let old = read(&text);
        assert_eq!((old.role, old.values.len(), old.remarks.len()), (None, 9, 5), "{old:?}");
        let old = read("port=1\nfrobnicate=7\n\n=\n");
        assert_eq!(old.remarks, ["line 2: frobnicate is no key of eps.conf", "line 4:  is no key of eps.conf"]);
    }

    #[test]
    fn any_bytes_are_read() {
        for text in ["", "=", "===", "#", "\u{feff}port=1", "a=\"", "'", "--", "port"] {
            let mut old = read(text);
            old.settings(Role::Server);
        }
    }
}
