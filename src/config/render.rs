//! A configuration file as text: the shipped one, which has every key and says what it is for, with other values.
//!
//! A value is written in the shape that the shipped file has for its key, so this knows no key by name but `members`.
//! Whether a value makes sense is `check`'s business, of the text as a whole.

use std::path::PathBuf;

use super::options::{ClientOptions, ServerOptions};
use super::raw::{ClientRaw, Keyed, ServerRaw, Value};
use super::{ClientConfig, ConfigError, Problem, Role, ServerConfig, check, finish, host_name, raw};

/// A key and its value in words: one for a single value, any number for a list.
pub type Setting = (String, Vec<String>);

/// The shipped file of a role.
pub const fn template(role: Role) -> &'static str {
    match role {
        Role::Server => include_str!("../../config/server.ron"),
        Role::Client => include_str!("../../config/client.ron"),
    }
}

/// Whether a role's file has a key.
pub fn has_key(role: Role, key: &str) -> bool {
    value_of(template(role), key).is_some()
}

/// The shipped file of a role with these values in it. A key that it does not have is passed over.
pub fn file(role: Role, settings: &[Setting]) -> String {
    let mut text = template(role).to_owned();
    for (key, words) in settings {
        if let Some((from, to)) = value_of(&text, key) {
            let value = shaped(key, &text[from..to], words);
            text.replace_range(from..to, &value);
        }
    }
    text
}

/// What is wrong with a text that is to be the file `name`, or its warnings.
pub fn check_text(role: Role, name: &str, text: &str) -> Result<Vec<String>, ConfigError> {
    match role {
        Role::Server => server(name, text).map(|config| config.warnings),
        Role::Client => client(name, text).map(|config| config.warnings),
    }
}

/// The keys of a text that say what a node writes to, and the paths that they mean.
///
/// # Errors
/// What is wrong with the text.
pub fn written_to(role: Role, text: &str) -> Result<Vec<(&'static str, PathBuf)>, ConfigError> {
    let (always, optional) = match role {
        Role::Server => {
            let ServerConfig { state, control, scorecard, graphviz, log, .. } = server("", text)?;
            let optional = [("scorecard", scorecard), ("graphviz", graphviz), ("log", log.file)];
            ([("state", state), ("control", control)], optional)
        }
        Role::Client => {
            let mut problems = Vec::new();
            let mut raw: ClientRaw = keyed(role, "", text, &mut problems)?;
            // Where the line is has nothing to do with it, and the file may be closed to whoever asks.
            (raw.join, raw.join_file) = (None, None);
            let config = check::client(&raw, &host_name(), &mut problems);
            let ClientConfig { state, control, scorecard, hosts, log, .. } = finish(config, problems)?;
            ([("state", state), ("control", control)], [("scorecard", scorecard), ("hosts", hosts), ("log", log.file)])
        }
    };
    let optional = optional.into_iter().filter_map(|(key, path)| Some((key, path?)));
    Ok(always.into_iter().chain(optional).collect())
}

fn server(name: &str, text: &str) -> Result<ServerConfig, ConfigError> {
    let mut problems = Vec::new();
    let raw: ServerRaw = keyed(Role::Server, name, text, &mut problems)?;
    let config = check::server(&raw, &mut problems);
    finish(config, problems)
}

fn client(name: &str, text: &str) -> Result<ClientConfig, ConfigError> {
    let mut problems = Vec::new();
    let raw: ClientRaw = keyed(Role::Client, name, text, &mut problems)?;
    let config = check::client(&raw, &host_name(), &mut problems);
    finish(config, problems)
}

fn keyed<K: Keyed>(role: Role, name: &str, text: &str, problems: &mut Vec<Problem>) -> Result<K, ConfigError> {
    let root = raw::read(name, text).map_err(|problem| ConfigError::Problems(vec![*problem]))?;
    Ok(check::keys(root, role, problems))
}

impl ServerOptions {
    /// The options that were given, as settings.
    pub fn settings(self) -> Vec<Setting> {
        let mut raw = ServerRaw::default();
        self.lay_over(&mut raw);
        settings(&mut raw)
    }
}

impl ClientOptions {
    /// The options that were given, as settings.
    pub fn settings(self) -> Vec<Setting> {
        let mut raw = ClientRaw::default();
        self.lay_over(&mut raw);
        settings(&mut raw)
    }
}

fn settings<K: Keyed>(raw: &mut K) -> Vec<Setting> {
    let mut given = Vec::new();
    for key in K::KEYS {
        let Some(node) = raw.slot(key).and_then(Option::take) else { continue };
        let words = match node.value {
            Value::List(list) => list
                .into_iter()
                .filter_map(|node| match node.value {
                    Value::Text(text) => Some(text),
                    _ => None,
                })
                .collect(),
            Value::Text(text) => vec![text],
            // Options hold nothing else.
            _ => continue,
        };
        given.push(((*key).to_owned(), words));
    }
    given
}

/// Where the value of a key is in a text in which each key has a line of its own.
fn value_of(text: &str, key: &str) -> Option<(usize, usize)> {
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        if let Some(rest) = line[indent..].strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) {
            let from = at + line.len() - rest.len();
            return Some((from, from + rest.trim_end().trim_end_matches(',').len()));
        }
        at += line.len();
    }
    None
}

/// The words in the shape of the value that the shipped file has.
fn shaped(key: &str, shipped: &str, words: &[String]) -> String {
    let joined = words.join(" ");
    let bare = match shipped {
        "true" | "false" => matches!(joined.as_str(), "true" | "false"),
        number if number.starts_with(|first: char| first.is_ascii_digit()) => joined.parse::<u64>().is_ok(),
        _ => false,
    };
    if shipped.starts_with('[') {
        let one = |word: &String| if key == "members" { member(word) } else { quoted(word) };
        format!("[{}]", words.iter().map(one).collect::<Vec<_>>().join(", "))
    } else if bare {
        joined
    } else {
        quoted(&joined)
    }
}

/// `NAME[=ADDRESS][,RIGHT]…` as an entry of the list.
fn member(word: &str) -> String {
    let mut parts = word.split(',').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let (name, address) = first.split_once('=').map_or((first, None), |(name, address)| (name, Some(address)));
    let address = address.map(|address| format!(", address: {}", quoted(address))).unwrap_or_default();
    let rights = parts.map(quoted).collect::<Vec<_>>().join(", ");
    format!("(name: {}{address}, rights: [{rights}])", quoted(name))
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            _ => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::super::{load_client, load_server};
    use super::*;

    #[test]
    fn a_file_made_from_options_means_what_the_options_mean() {
        let options = ServerOptions {
            port: Some("5000".into()),
            network: Some("10.9.0.0/24".into()),
            listen: vec!["127.0.0.1".into()],
            sequential: Some("true".into()),
            advertise: vec!["vpn.example.org".into(), "192.0.2.1:7".into()],
            members: vec!["printer=10.9.0.9,bridge,no-flood".into(), "b".into()],
            invite_expiry: Some("2h".into()),
            scorecard: Some("/tmp/a \"card\"".into()),
            ..ServerOptions::default()
        };
        let text = file(Role::Server, &options.clone().settings());
        let (place, path) = written(&text);
        assert_eq!(
            load_server(Some(&path), ServerOptions::default()).expect("good"),
            load_server(None, options).expect("good")
        );
        drop(place);

        let options = ClientOptions {
            server: vec!["a".into(), "b:7".into()],
            mtu: Some("1280".into()),
            direct: Some("false".into()),
            name: Some("ada".into()),
            ..ClientOptions::default()
        };
        let text = file(Role::Client, &options.clone().settings());
        let (_place, path) = written(&text);
        let (from_file, from_options) =
            (load_client(Some(&path), ClientOptions::default()), load_client(None, options));
        assert_eq!(format!("{:?}", from_file.expect("good")), format!("{:?}", from_options.expect("good")));
    }

    #[test]
    fn without_settings_it_is_the_shipped_file_and_comments_stay() {
        for role in [Role::Server, Role::Client] {
            assert_eq!(file(role, &[]), template(role));
            let text = file(role, &[("port".into(), vec!["99".into()])]);
            let changed = text.lines().zip(template(role).lines()).filter(|(new, old)| new != old).count();
            assert_eq!((text.lines().count(), changed), (template(role).lines().count(), 1));
        }
    }

    #[test]
    fn what_is_wrong_with_a_value_is_told_by_its_key() {
        let text = file(Role::Server, &[("port".into(), vec!["high".into()]), ("open".into(), vec!["maybe".into()])]);
        let said = check_text(Role::Server, "server.ron", &text).expect_err("two problems").to_string();
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(said.contains("port: \"high\"") || said.contains("port: found"), "{said}");
        let text = file(Role::Server, &[("open".into(), vec!["true".into()])]);
        assert_eq!(check_text(Role::Server, "server.ron", &text).expect("good").len(), 1, "a warning");
    }

    fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("x.ron");
        std::fs::write(&path, text).expect("written");
        (place, path)
    }
}
